"""The test kit for anybody's layer: a good third-party layer passes, and every clause can fail, with a message that helps."""

import ast
import dataclasses
import inspect
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch import adapters
from hsv_torch.layers.lru import LRUAdapter
from hsv_torch.layers.mamba import MambaAdapter
from hsv_torch.testing import ContractError, check_adapter
from tests.hsv_torch.toy_layer import ChoosingAdapter, Decays, third_party  # noqa: F401  (a fixture)

INPUTS = torch.randn(3, 24, 3, generator=torch.Generator().manual_seed(0))


def decays(n_states):
    return Decays(3, n_states)


def silence(layer, k):
    layer.C[:, k:] = 0


@pytest.mark.usefixtures("third_party")
class TestGood:
    def test_a_third_party_layer_passes(self):
        found = check_adapter(decays, inputs=INPUTS, silence=silence)
        reasons = {name: reason for name, reason in found.items() if reason != "holds"}
        assert reasons == {
            "error bound": "no plan has a finite bound",
            "step": "the layer has no `step` and `initial_state`",
            "lengths": "`forward` takes no `lengths`",
            "observation": "the layer needs no data",
        }
        assert len(found) == 15

    def test_what_it_draws_is_put_back(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        check_adapter(decays, inputs=INPUTS)
        assert torch.equal(torch.rand(3), expected)

    def test_clauses_can_be_skipped(self):
        found = check_adapter(decays, inputs=INPUTS, skip=["checkpoint", "copies"])
        assert [name for name, reason in found.items() if reason == "skipped"] == ["checkpoint", "copies"]

    def test_outputs_in_a_tuple(self):
        class Pair(Decays):
            def forward(self, u):
                return super().forward(u), None

        def make(n):
            return Pair(3, n)

        assert check_adapter(make, inputs=INPUTS, output=lambda pair: pair[0], skip=["copies"])["full size"] == "holds"
        with pytest.raises(ContractError, match="returns a tuple: pass `output`"):
            check_adapter(make, inputs=INPUTS)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (
                {"skip": ["taste"]},
                r"`skip` names clauses that do not exist: \['taste'\]; there are \['adapter', 'plan'",
            ),
            ({"n_states": 1}, "`n_states` must be an int of at least 2"),
            ({"n_states": 4.0}, "`n_states` must be an int of at least 2"),
            ({"inputs": None}, "Decays has no attribute `d_model` .* pass `inputs`"),
        ],
    )
    def test_impossible_arguments(self, options, match):
        with pytest.raises(hsv.HsvError, match=match):
            check_adapter(decays, **{"inputs": INPUTS, **options})


def test_it_needs_no_test_framework():
    tree = ast.parse(inspect.getsource(hsv_torch.testing))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "hsv", "hsv_torch", "numpy", "torch"}


# Adapters for Decays with one thing wrong each.


def with_plan(**changes):
    class Adapter(ChoosingAdapter):
        def reduce(self, layer, rule, criterion):
            plan = super().reduce(layer, rule, criterion)
            return dataclasses.replace(plan, **{name: change(plan) for name, change in changes.items()})

    return Adapter


class UnknownName(ChoosingAdapter):
    def parameter_names(self, layer):
        return ("rate", "B", "C", "phase")


class UnknownRecurrentName(ChoosingAdapter):
    recurrent_parameters = ("rates",)


class NoNames(ChoosingAdapter):
    def parameter_names(self, layer):
        return ()


class OtherCriterion(ChoosingAdapter):
    criterion_type = hsv_torch.RealHankel  # the default is a ComplexHankel


class ChangesWhilePlanning(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        layer.rate.data.mul_(0.99)
        return super().reduce(layer, rule, criterion)


class RemembersWhilePlanning(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        layer.planned = True
        return super().reduce(layer, rule, criterion)


class DrawsWhilePlanning(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        plan = super().reduce(layer, rule, criterion)
        return dataclasses.replace(
            plan, hankel_singular_values=plan.hankel_singular_values * (1 + float(torch.rand(1)))
        )


class ReplacesWhilePlanning(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        layer.C = nn.Parameter(layer.C.detach().clone())
        return super().reduce(layer, rule, criterion)


class LosesGain(ChoosingAdapter):
    def apply(self, layer, cut):
        replaced = super().apply(layer, cut)
        layer.C.data.mul_(1.1)
        return replaced


class ForgetsSize(ChoosingAdapter):
    def apply(self, layer, cut):
        size = layer.size
        replaced = super().apply(layer, cut)
        layer.size = size
        return replaced


class WritesIntoOldOnes(ChoosingAdapter):
    def apply(self, layer, cut):
        layer.size = cut.n_states_after
        old = {name: layer.get_parameter(name) for name in self.parameter_names(layer)}
        for name, value in self._pick({name: p.detach() for name, p in old.items()}, cut.payload).items():
            old[name].data = value.clone()
        return {name: (p, p) for name, p in old.items()}


class ReturnsOnlySome(ChoosingAdapter):
    def apply(self, layer, cut):
        replaced = dict(super().apply(layer, cut))
        del replaced["B"]
        return replaced


class ChangesDtype(ChoosingAdapter):
    def apply(self, layer, cut):
        replaced = dict(super().apply(layer, cut))
        for name, (old, new) in replaced.items():
            wide = nn.Parameter(new.detach().double(), requires_grad=new.requires_grad)
            setattr(layer, name, wide)
            replaced[name] = (old, wide)
        return replaced


class Unfreezes(ChoosingAdapter):
    def apply(self, layer, cut):
        replaced = super().apply(layer, cut)
        for _, new in replaced.values():
            new.requires_grad_(True)
        return replaced


class DoublesMoments(ChoosingAdapter):
    def pull_back(self, cut, covectors, *, squared):
        return {name: 2 * t for name, t in super().pull_back(cut, covectors, squared=squared).items()}


class LosesMoments(ChoosingAdapter):
    def pull_back(self, cut, covectors, *, squared):
        carried = super().pull_back(cut, covectors, squared=squared)
        del carried["B"]
        return carried


class KeepsMomentShapes(ChoosingAdapter):
    def pull_back(self, cut, covectors, *, squared):
        return dict(covectors)


class SquaresByTheJacobian(ChoosingAdapter):
    def pull_back(self, cut, covectors, *, squared):
        return {name: -t if squared else t for name, t in super().pull_back(cut, covectors, squared=squared).items()}


class NormalisesMoments(ChoosingAdapter):
    def pull_back(self, cut, covectors, *, squared):
        return {
            name: t / t.norm().clamp(min=1e-9) for name, t in super().pull_back(cut, covectors, squared=squared).items()
        }


class ClampsOrders(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        return super().reduce(layer, hsv.Order(min(rule.n_states, layer.size)), criterion)


class RefusesByKeyError(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        if rule.n_states > layer.size:
            raise KeyError(rule.n_states)
        return super().reduce(layer, rule, criterion)


class ChangesBeforeRefusing(ChoosingAdapter):
    def reduce(self, layer, rule, criterion):
        if rule.n_states > layer.size:
            layer.rate.data.add_(1.0)
        return super().reduce(layer, rule, criterion)


class CutsNonsense(ChoosingAdapter):
    """Takes values that are not finite as they come."""

    def system(self, layer):
        with torch.no_grad():
            rate, B, C = (torch.nan_to_num(p.double()) for p in (layer.rate, layer.B, layer.C))
        return hsv.DiagonalStateSpace(torch.sigmoid(rate), B, C, dt=True)


class ForgetsToResize(ChoosingAdapter):
    def resize(self, layer, n_states):
        replaced = super().resize(layer, n_states)
        layer.size = 8
        return replaced


class ResizesElsewhere(ChoosingAdapter):
    def resize(self, layer, n_states):
        return super().resize(layer, n_states + 1)


@pytest.mark.parametrize(
    ("adapter", "clause", "match"),
    [
        (UnknownName, "adapter", r"`parameter_names` names \['phase'\], which are no parameters of the layer"),
        (UnknownRecurrentName, "adapter", r"`recurrent_parameters` names \['rates'\]"),
        (NoNames, "adapter", "`parameter_names` names nothing"),
        (OtherCriterion, "adapter", "the criterion is no RealHankel"),
        (ChangesWhilePlanning, "plan", "planning a cut to 4 states .`reduce`. changed values"),
        (RemembersWhilePlanning, "plan", r"changed the attributes \['planned'\]"),
        (DrawsWhilePlanning, "plan", "planning twice gives two spectra"),
        (ReplacesWhilePlanning, "plan", r"put other parameter objects into the layer: \['C'\]"),
        (with_plan(hankel_singular_values=lambda p: p.hankel_singular_values[::-1]), "plan", "must be descending"),
        (with_plan(hankel_singular_values=lambda p: p.hankel_singular_values.astype(np.float32)), "plan", "must be a float64 array"),
        (with_plan(n_states_before=lambda p: 3), "plan", "`n_states_before` of the plan is 3, and the layer has 8"),
        (with_plan(n_states_after=lambda p: p.n_states_after + 1), "plan", "`n_states_after` of the plan is 5 where the rule asks for 4"),
        (with_plan(error_bound=lambda p: float("nan")), "plan", "`error_bound` of the plan is nan"),
        (with_plan(eigenvector_condition=lambda p: 0.0), "plan", "condition numbers are at least 1"),
        (with_plan(notes=lambda p: (None,)), "plan", "`notes` of the plan must be strings"),
        (LosesGain, "full size", "before and after a cut to the full size of 8 states, .* they differ by"),
        (ForgetsSize, "size", "raised RuntimeError|left 8 states where its plan has 4"),
        (with_plan(error_bound=lambda p: 1e-6), "error bound", r"changes the output by .*, and `error_bound` of the plan says 1e-06"),
        (WritesIntoOldOnes, "new parameters", r"`apply` returned \['B', 'C', 'rate'\], and the parameters that became others are \[\]"),
        (ReturnsOnlySome, "new parameters", r"`apply` returned \['C', 'rate'\], and the parameters that became others are \['B', 'C', 'rate'\]"),
        (Unfreezes, "new parameters", "requires_grad of 'rate' was False and is True: use hsv_torch.put_parameters"),
        (DoublesMoments, "moments", "the carried gradient of 'rate' and the small layer's own, .* moments are covectors"),
        (LosesMoments, "moments", r"`pull_back` returned nothing for \['B'\]"),
        (KeepsMomentShapes, "moments", r"gave the first moment of 'rate' the shape \(8,\), and the parameter has \(4,\)"),
        (SquaresByTheJacobian, "moments", "made a second moment of 'rate' negative"),
        (NormalisesMoments, "moments", "it must be linear"),
        (ClampsOrders, "refusal", "a cut to 9 states, more than there are, was not refused"),
        (RefusesByKeyError, "refusal", "refused with a KeyError .9., which is no hsv.HsvError"),
        (ChangesBeforeRefusing, "refusal", "more than there are,, which was refused, changed values"),
        (CutsNonsense, "refusal", "a cut of a layer whose 'C' holds a NaN was not refused"),
        (ForgetsToResize, "checkpoint", "RuntimeError"),
        (ResizesElsewhere, "checkpoint", r"has shape \(4,\), and \(5,\) in this model"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else getattr(value, "__name__", None),
)  # fmt: skip
def test_a_broken_adapter_is_found(adapter, clause, match):
    adapters.register_adapter(Decays)(adapter)
    try:
        with pytest.raises(ContractError, match=match) as caught:
            check_adapter(decays, inputs=INPUTS, silence=silence)
    finally:
        del adapters._registry[Decays]
    assert caught.value.clause == clause
    assert str(caught.value).startswith(f"clause '{clause}': Decays with ComplexHankel")
    assert isinstance(caught.value, AssertionError)


def test_an_optimizer_that_misses_a_parameter_is_found():
    """The clause before it would say so first."""
    adapters.register_adapter(Decays)(ReturnsOnlySome)
    try:
        with pytest.raises(
            ContractError, match="holds 1 parameters that are no longer the model's and lacks 1 that are"
        ):
            check_adapter(decays, inputs=INPUTS, skip=["new parameters"])
    finally:
        del adapters._registry[Decays]


def test_a_dtype_that_changes_is_found():
    adapters.register_adapter(Decays)(ChangesDtype)
    try:
        with pytest.raises(ContractError, match=r"dtype of 'rate' was torch\.float32 and is torch\.float64"):
            check_adapter(decays, inputs=INPUTS, skip=["plan", "full size", "size"])
    finally:
        del adapters._registry[Decays]


class ComplexOutputs(Decays):
    """A parameter of complex numbers, whose moments optimizers keep part by part."""

    def __init__(self, width, size):
        super().__init__(width, size)
        self.C = nn.Parameter(torch.complex(self.C.detach(), self.C.detach().flip(0)))

    def forward(self, u):
        h, outputs = u.new_zeros(u.shape[0], self.size), []
        for t in range(u.shape[1]):
            h = torch.sigmoid(self.rate) * h + u[:, t] @ self.B.mT
            outputs.append((h.to(self.C.dtype) @ self.C.mT).real)
        return torch.stack(outputs, dim=1)


class ComplexAdapter(ChoosingAdapter):
    @torch.no_grad()
    def system(self, layer):
        """The scores depend on the moduli alone."""
        rate, B, C = layer.rate.double(), layer.B.double(), layer.C.abs().double()
        return hsv.DiagonalStateSpace(torch.sigmoid(rate), B, C, dt=True)


class NegativeComplexMoments(ComplexAdapter):
    def pull_back(self, cut, covectors, *, squared):
        carried = super().pull_back(cut, covectors, squared=squared)
        return {name: -t if squared and t.is_complex() else t for name, t in carried.items()}


def test_complex_parameters():
    def check():
        return check_adapter(lambda n: ComplexOutputs(3, n), inputs=INPUTS, silence=silence)

    adapters.register_adapter(ComplexOutputs)(ComplexAdapter)
    try:
        assert check()["moments"] == "holds"
        adapters._registry[ComplexOutputs] = NegativeComplexMoments()
        with pytest.raises(ContractError, match="made a second moment of 'C' negative"):
            check()
    finally:
        del adapters._registry[ComplexOutputs]


# Layers with one thing wrong each.


class Gains(Decays):
    """Keeps something in a list, which nobody can put back."""

    def __init__(self, width, size):
        super().__init__(width, size)
        self.gains = [1.0]

    def forward(self, u):
        return self.gains[0] * super().forward(u)


class GainsAdapter(ChoosingAdapter):
    def apply(self, layer, cut):
        layer.gains[0] *= 1.5
        return super().apply(layer, cut)


class Hidden(Decays):
    """What a cut changes is no parameter."""

    def __init__(self, width, size):
        super().__init__(width, size)
        self.gain = 1.0

    def forward(self, u):
        return self.gain * super().forward(u)


class HiddenAdapter(ChoosingAdapter):
    def apply(self, layer, cut):
        layer.gain = 1.0 if cut.n_states_after == 8 else 0.5
        return super().apply(layer, cut)


class Unpicklable(Decays):
    def __init__(self, width, size):
        super().__init__(width, size)
        self.activation = lambda x: x


class Fixed(Decays):
    """Of another size than asked for."""

    def __init__(self, width, size):
        super().__init__(width, 5)


class Silent(Decays):
    def forward(self, u):
        return 0 * super().forward(u)


class OwnCopies(Decays):
    """Uses the first `B` for ever, by way of a list."""

    def __init__(self, width, size):
        super().__init__(width, size)
        self.kept = [self.C]

    def forward(self, u):
        C = self.kept[0][:, : self.size]
        h, outputs = u.new_zeros(u.shape[0], self.size), []
        for t in range(u.shape[1]):
            h = torch.sigmoid(self.rate) * h + u[:, t] @ self.B.mT
            outputs.append(h @ C.mT)
        return torch.stack(outputs, dim=1)


@pytest.mark.parametrize(
    ("layer_type", "adapter", "clause", "match", "skip"),
    [
        (Fixed, ChoosingAdapter, "adapter", r"`make_layer\(8\)` made a layer of which `n_states` of the adapter says 5", []),
        (Silent, ChoosingAdapter, "adapter", "the output is zero as the layer comes", []),
        (OwnCopies, ChoosingAdapter, "new parameters", r"does not depend on the new parameters \['C'\]", ["full size", "size"]),
        (Gains, GainsAdapter, "undo", "a cut that was taken back changed the outputs", ["full size", "moments"]),
        (Hidden, HiddenAdapter, "checkpoint", "with 4 states and of one of the size it was made with", ["moments"]),
        (Unpicklable, ChoosingAdapter, "copies", "raised (PicklingError|AttributeError)", []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_broken_layer_is_found(layer_type, adapter, clause, match, skip):
    adapters.register_adapter(layer_type)(adapter)
    try:
        with pytest.raises(ContractError, match=match) as caught:
            check_adapter(lambda n: layer_type(3, n), inputs=INPUTS, skip=skip)
    finally:
        del adapters._registry[layer_type]
    assert caught.value.clause == clause


def test_a_layer_without_an_adapter():
    with pytest.raises(ContractError, match="clause 'adapter': Decays has no adapter"):
        check_adapter(decays, inputs=INPUTS)


class StepsWithoutSkip(hsv_torch.LRU):
    def step(self, x_t, state):
        y, state = super().step(x_t, state)
        return y - self.D * x_t, state


class ReadsPadding(hsv_torch.LRU):
    def forward(self, x, lengths=None):
        y = super().forward(torch.nan_to_num(x, nan=1.0).flip(1)).flip(1)
        return y if lengths is None else torch.where((torch.arange(x.shape[1]) < lengths[:, None])[..., None], y, 0)


class LeavesPadding(hsv_torch.LRU):
    def forward(self, x, lengths=None):
        return super().forward(torch.nan_to_num(x))


class PushesMoments(LRUAdapter):
    """The inverse of the Jacobian: the change of coordinates applied to gradients as if they were parameters."""

    def pull_back(self, cut, covectors, *, squared):
        carried = super().pull_back(cut, covectors, squared=squared)
        states = cut.payload[0].states
        if not squared:
            B = torch.linalg.lstsq(states.linear, torch.view_as_complex(covectors["B"].double())).solution
            carried["B"] = torch.view_as_real(B).to(covectors["B"].dtype)
        return carried


@pytest.mark.parametrize(
    ("layer_type", "clause", "match"),
    [
        (StepsWithoutSkip, "step", "outputs step by step and at once, before a cut"),
        (
            ReadsPadding,
            "lengths",
            "outputs of padded sequences and of the same ones cut to their lengths, before a cut",
        ),
        (LeavesPadding, "lengths", "outputs in the padding are not 0, before a cut"),
    ],
)
def test_broken_modes_are_found(layer_type, clause, match):
    others = {"step", "plan", "full size", "size", "error bound", "new parameters", "moments", "optimizer", "refusal", "undo", "checkpoint"} - {clause}  # fmt: skip
    with pytest.raises(ContractError, match=match) as caught:
        check_adapter(lambda n: layer_type(3, n), skip=others)
    assert caught.value.clause == clause


def test_moments_that_are_pushed_forward_are_found():
    class Mine(hsv_torch.LRU):
        pass

    adapters.register_adapter(Mine)(PushesMoments)
    try:
        with pytest.raises(ContractError, match="the carried gradient of 'B' and the small layer's own"):
            check_adapter(lambda n: Mine(3, n, dtype=torch.float64))
    finally:
        del adapters._registry[Mine]


def test_an_observation_that_swallows_nan_is_found():
    class Mine(hsv_torch.Mamba):
        pass

    class Swallows(MambaAdapter):
        def observe(self, layer, criterion):
            observation = super().observe(layer, criterion)
            update = observation.update

            def with_zeros(layer, args, kwargs):
                update(layer, (torch.nan_to_num(args[0]),), kwargs)

            observation.update = with_zeros
            return observation

    class Spoiled(MambaAdapter):
        def observe(self, layer, criterion):
            observation = super().observe(layer, criterion)
            update = observation.update

            def counted_before_refused(layer, args, kwargs):
                if not args[0].isfinite().all():
                    update(layer, (torch.nan_to_num(args[0]) * 2,), kwargs)
                    raise hsv.NonFiniteError("NaN")
                update(layer, args, kwargs)

            observation.update = counted_before_refused
            return observation

    for adapter, match in ((Swallows, "NaN in one sequence was not refused"), (Spoiled, "which was refused, changed the observation")):  # fmt: skip
        adapters.register_adapter(Mine)(adapter)
        try:
            with pytest.raises(ContractError, match=match) as caught:
                check_adapter(lambda n: Mine(3, n), skip=["copies"])
        finally:
            del adapters._registry[Mine]
        assert caught.value.clause == "observation"
