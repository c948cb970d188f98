"""Layers whose system depends on their input: data reaches their adapter, and the run over it leaves no trace."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hsv
import hsv_torch
from hsv_torch import adapters
from hsv_torch.criteria import Criterion


class Forgetting(nn.Module):
    """``h[t] = sigmoid(W u[t]) h[t-1] + B u[t]``, ``y[t] = C h[t]``, with a bias on the states that only a cut adds."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.W, self.B = (nn.Parameter(torch.randn(size, width)) for _ in range(2))
        self.C = nn.Parameter(torch.randn(width, size))
        self.register_parameter("bias", None)

    def states(self, u: Tensor) -> Tensor:
        h, states = u.new_zeros(u.shape[0], self.W.shape[0]), []
        for t in range(u.shape[1]):
            h = torch.sigmoid(u[:, t] @ self.W.mT) * h + u[:, t] @ self.B.mT
            states.append(h)
        return torch.stack(states, dim=1)

    def forward(self, u: Tensor) -> Tensor:
        h = self.states(u)
        return (h if self.bias is None else h + self.bias) @ self.C.mT


class Energy(Criterion):
    """Keeps the states with the largest second moment; drops the mean of none."""


class EnergyObservation(adapters.Observation):
    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.count = 0
        self.training: set[bool] = set()

    def update(self, layer: Forgetting, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        u = args[0]
        finite = torch.isfinite(u).all(dim=(1, 2))
        if not bool(finite.all()):
            raise hsv.NonFiniteError(f"sequence {int(torch.nonzero(~finite)[0])} must be finite")
        assert not torch.is_grad_enabled()
        self.training.add(layer.training)
        energy = layer.states(u).square().mean((0, 1))
        self.sums = energy if self.sums is None else self.sums + energy
        self.count += 1


class ForgettingAdapter(adapters.LayerAdapter):
    recurrent_parameters = ("W", "B")
    criterion_type = Energy
    needs_data: ClassVar[bool] = True
    last: ClassVar[EnergyObservation | None] = None

    def default_criterion(self, layer):
        return Energy()

    def n_states(self, layer):
        return layer.W.shape[0]

    def parameter_names(self, layer):
        return ("W", "B", "C") if layer.bias is None else ("W", "B", "C", "bias")

    def form(self, layer):
        return {"bias": int(layer.bias is not None)}

    def system(self, layer):
        return None

    def observe(self, layer, criterion):
        return EnergyObservation()

    def reduce(self, layer, rule, criterion, observation=None):
        ForgettingAdapter.last = observation
        energy = (observation.sums / observation.count).double().numpy()
        values = np.sort(energy)[::-1].copy()
        kept = int(hsv.as_rule(rule).choose(values))
        index = torch.from_numpy(np.sort(np.argsort(-energy)[:kept]))
        return adapters.Cut(self.n_states(layer), kept, kept, values, float("inf"), 1.0, ("second moments",), index)

    def pick(self, tensors, index):
        return {name: t[:, index] if name == "C" else t[index] for name, t in tensors.items()}

    def apply(self, layer, cut):
        old = {name: layer.get_parameter(name).detach() for name in self.parameter_names(layer)}
        new = self.pick(old, cut.payload)
        return adapters.put_parameters(layer, {"bias": torch.zeros(cut.n_states_after), **new})

    def pull_back(self, cut, covectors, *, squared):
        return self.pick(covectors, cut.payload)

    def resize(self, layer, n_states, bias=0):
        width = layer.B.shape[1]
        shapes = {"W": (n_states, width), "B": (n_states, width), "C": (width, n_states)}
        new = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return adapters.put_parameters(layer, {**new, "bias": torch.zeros(n_states) if bias else None})


@pytest.fixture(autouse=True)
def registered():
    adapters.register_adapter(Forgetting)(ForgettingAdapter)
    yield
    del adapters._registry[Forgetting]


def make(seed=0, size=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(10), nn.Dropout(0.5), Forgetting(4, size), nn.Linear(4, 2))


def batches(n=3, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 10, 3, generator=draw) for _ in range(n)]


def trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(batches()[0]).square().mean().backward()
    optimizer.step()
    return optimizer


def test_the_layer_sees_every_batch_and_the_run_leaves_no_trace():
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("3.")}
    random = torch.get_rng_state()
    shuffled = torch.utils.data.DataLoader(torch.cat(batches()), batch_size=5, shuffle=True)
    report = hsv_torch.compress_(model, 3, calibration=shuffled)
    assert torch.equal(torch.get_rng_state(), random)
    assert ForgettingAdapter.last.count == 3
    assert ForgettingAdapter.last.training == {False}
    assert model.training
    assert model[3].training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert report.layers[0].n_states_after == model[3].W.shape[0] == 3
    assert not model[3]._forward_pre_hooks


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        (batches()[0], None),
        ([(batches()[0], torch.zeros(5))], None),
        ([{"input": batches()[0]}], None),
        ([("label", batches()[0])], lambda model, batch: model(batch[1])),
    ],
    ids=["one tensor", "inputs and labels", "keywords", "own forward"],
)
def test_what_a_batch_may_be(batch, forward):
    model = make()
    hsv_torch.compress_(model, 3, calibration=batch, forward=forward)
    assert model[3].W.shape[0] == 3


def test_an_optimizer_takes_in_what_a_cut_adds_and_a_checkpoint_remembers_it(tmp_path):
    model = make()
    optimizer = trained(model)
    report = hsv_torch.compress_(model, 3, calibration=batches(), optimizer=optimizer)
    old, new = report.replaced["3.bias"]
    assert old is None
    assert new is model[3].bias
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert not optimizer.state.get(new)
    model(batches()[1]).square().mean().backward()
    optimizer.step()
    assert float(new.detach().abs().max()) > 0

    hsv_torch.save_checkpoint(model, tmp_path / "cut.pt", optimizer=optimizer)
    fresh = make(seed=5)
    fresh_optimizer = trained(fresh)
    hsv_torch.load_into(fresh, tmp_path / "cut.pt", optimizer=fresh_optimizer)
    assert torch.equal(fresh.eval()(batches()[2]), model.eval()(batches()[2]))

    # and back: a model that was cut takes the checkpoint of one that was not
    whole = make(seed=6)
    hsv_torch.save_checkpoint(whole, tmp_path / "whole.pt", optimizer=trained(whole))
    hsv_torch.load_into(fresh, tmp_path / "whole.pt", optimizer=fresh_optimizer)
    assert fresh[3].bias is None
    assert {id(p) for group in fresh_optimizer.param_groups for p in group["params"]} == {
        id(p) for p in fresh.parameters()
    }
    assert torch.equal(fresh.eval()(batches()[2]), whole.eval()(batches()[2]))


def test_moments_find_their_parameters_whatever_their_order(tmp_path):
    """An optimizer made after the cut has the added parameter where the module has it, one that lived through the cut at the end."""
    model = make()
    hsv_torch.compress_(model, 3, calibration=batches())
    optimizer = trained(model)
    hsv_torch.save_checkpoint(model, tmp_path / "cut.pt", optimizer=optimizer)
    fresh = make(seed=5)
    fresh_optimizer = trained(fresh)
    hsv_torch.load_into(fresh, tmp_path / "cut.pt", optimizer=fresh_optimizer)
    names = [name for name, _ in fresh.named_parameters()]
    assert names.index("3.bias") < len(names) - 1
    held = [id(p) for p in fresh_optimizer.param_groups[0]["params"]]
    assert held != [id(p) for p in fresh.parameters()]
    for (name, mine), (_, theirs) in zip(fresh.named_parameters(), model.named_parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(fresh_optimizer.state[mine][key], value), (name, key)


def test_an_optimizer_of_other_groups_is_refused(tmp_path):
    model = make()
    hsv_torch.save_checkpoint(model, tmp_path / "all.pt", optimizer=trained(model))
    part = torch.optim.AdamW(model[3].parameters())
    with pytest.raises(hsv_torch.CheckpointError, match=r"optimizer of other groups: 1 groups of \[9\]"):
        hsv_torch.load_into(model, tmp_path / "all.pt", optimizer=part)


def test_a_guard_takes_away_what_the_cut_added():
    model = make()
    optimizer = trained(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = iter([1.0, 0.0])
    compressor = hsv_torch.InTrainingCompressor(
        model,
        optimizer,
        rule=hsv.Order(3),
        schedule=hsv_torch.Schedule(total_steps=10, attempts=1),
        calibration=batches(),
        guard=hsv_torch.Rollback(lambda: next(metrics), max_drop=0.1),
    )
    event = compressor.step()
    assert event.undone
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_compressor_goes_on_from_a_cut_that_added_a_parameter(tmp_path):
    def new():
        model = make()
        optimizer = trained(model)
        compressor = hsv_torch.InTrainingCompressor(
            model, optimizer, rule=hsv.Order(3), schedule=hsv_torch.Schedule(40), calibration=batches()
        )
        return model, optimizer, compressor

    model, optimizer, compressor = new()
    assert compressor.step().changed
    hsv_torch.save_checkpoint(model, tmp_path / "c.pt", optimizer=optimizer, extra=compressor.state_dict())
    other, other_optimizer, resumed = new()
    resumed.load_state_dict(hsv_torch.load_into(other, tmp_path / "c.pt", optimizer=other_optimizer))
    assert other[3].bias is not None
    assert resumed.history.sizes == {"3": 3}
    assert torch.equal(other.eval()(batches()[0]), model.eval()(batches()[0]))


def test_criteria_by_pattern():
    model = nn.Sequential(hsv_torch.LRU(4, 8), Forgetting(4, 8))
    x = torch.randn(3, 10, 4)
    with pytest.raises(
        hsv.HsvError, match=r"RealHankel does not serve the layer '1' \(Forgetting\), which takes a Energy"
    ):
        hsv_torch.compress_(model, 3, calibration=x, criterion=hsv_torch.RealHankel())
    with pytest.raises(hsv.HsvError, match="'encoder' matches no layer"):
        hsv_torch.compress_(model, 3, calibration=x, criterion={"encoder": hsv_torch.RealHankel()})
    with pytest.raises(TypeError, match="`criterion` must be a hsv_torch"):
        hsv_torch.compress_(model, 3, calibration=x, criterion="real")
    report = hsv_torch.compress_(model, 3, calibration=x, criterion={"0": hsv_torch.RealHankel()})
    assert [len(record.hankel_singular_values) for record in report.layers] == [16, 8]


class TestBadInput:
    def refused(self, message, calibration, error=hsv.HsvError, **options):
        model = make()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(error, match=message):
            hsv_torch.compress_(model, 3, calibration=calibration, **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not model[3]._forward_pre_hooks

    def test_no_calibration(self):
        self.refused(r"the system of '3' \(Forgetting\) depends on its input: pass `calibration`", None)

    def test_no_batches(self):
        self.refused("`calibration` has no batches", [])
        self.refused("`calibration` has no batches", iter(()))

    def test_not_batches(self):
        self.refused("`calibration` must be batches", 64, TypeError)
        self.refused("got a str; put a single batch", "train.csv", TypeError)
        self.refused("got a dict; put a single batch", {"input": batches()[0]}, TypeError)
        self.refused("`forward` must be callable", batches(), TypeError, forward="model")

    def test_a_tuple_of_tensors_could_be_one_batch_or_several(self):
        x, y = batches(2)
        self.refused(
            r"a tuple of 2 with tensors .* pass \[calibration\] for one, list\(calibration\)", (x, y), TypeError
        )
        for calibration in ([(x, y)], [x, y]):
            assert hsv_torch.compress_(make(), 3, calibration=calibration).layers[0].n_states_after == 3

    def test_arrays_of_numpy(self):
        x = batches(1)[0].numpy()
        self.refused("`calibration` must hold tensors, got a NumPy array", x, TypeError)
        for batch in (x, [x], {"input": x}):
            self.refused("a batch holds a NumPy array, .* torch.from_numpy", [batch], TypeError)

        def forward(model, batch):
            return model(torch.from_numpy(batch))

        assert hsv_torch.compress_(make(), 3, calibration=[x], forward=forward).layers[0].n_states_after == 3

    def test_a_layer_that_is_never_called(self):
        self.refused(r"never called the layers \['3'\]", batches(), forward=lambda model, batch: model[0](batch))

    def test_nan_in_one_sequence(self):
        bad = batches()
        bad[1][2, 0, 0] = torch.nan
        self.refused("layer '3': sequence 2 must be finite", bad, hsv.NonFiniteError)

    def test_a_generator_in_training(self):
        model = make()
        with pytest.raises(TypeError, match="can be gone through only once"):
            hsv_torch.InTrainingCompressor(
                model,
                trained(model),
                schedule=hsv_torch.Schedule(40),
                calibration=(batch for batch in batches()),
            )
