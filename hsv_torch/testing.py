"""The contract that every layer and its adapter keep, as one call for the author of a layer.

It runs inside any test framework, or none: a clause that does not hold raises :class:`ContractError`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

import hsv
from hsv_torch.adapters import Cut, LayerAdapter, Replaced, adapter_of
from hsv_torch.calibration import observe
from hsv_torch.checkpoint import load_into, save_checkpoint
from hsv_torch.compress import compress_, plan_cut
from hsv_torch.criteria import Criterion
from hsv_torch.optimizer import parameter_groups
from hsv_torch.snapshot import Snapshot

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Default relative errors: what rounding the parameters once does to a layer whose poles are within 1e-3 of the unit circle."""


class ContractError(AssertionError, hsv.HsvError):
    """A layer or its adapter breaks a clause of the contract; the message names the clause and what to look at.

    Attributes
    ----------
    clause : str
    """

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"clause {clause!r}: {message}")
        self.clause = clause


class _NotApplicableError(Exception):
    """A clause has nothing to say of this layer."""


def check_adapter(
    make_layer: Callable[[int], nn.Module],
    *,
    n_states: int = 8,
    inputs: Tensor | None = None,
    criteria: Iterable[Criterion] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    silence: Callable[[Any, int], None] | None = None,
    tolerance: float | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> dict[str, str]:
    """Run the contract of layers over one layer and its adapter.

    The clauses, in this order:

    - "adapter": the layer's type is registered; names that the adapter gives are parameters; sizes are those asked for.
    - "plan": planning changes nothing in the layer, gives the same plan twice, and the plan is well formed.
    - "full size": a cut to full size changes no output.
    - "size": a cut leaves the layer with the states of the plan, and as many as were asked for at most.
    - "error bound": where the plan has a finite bound, no input that power iteration finds changes the output by more.
    - "new parameters": new objects with dtype, device and ``requires_grad`` of the old ones; exactly those that the adapter names; the layer uses them.
    - "moments": ``pull_back`` is linear, keeps second moments from being negative, and on a cut that loses nothing turns the old gradient into the new one.
    - "optimizer": after :func:`hsv_torch.compress_` the optimizer holds exactly the model's parameters, and training goes on.
    - "refusal": an order outside the layer and values that are not finite are refused with an :class:`hsv.HsvError`, and everything is as before.
    - "undo": a cut can be taken back, bit for bit.
    - "checkpoint": a cut model can be saved and loaded into one of the first size, and the other way round.
    - "copies": a cut layer can be copied and pickled.
    - "step": step by step the layer computes what it computes at once, before and after a cut (for a layer with ``step`` and ``initial_state``).
    - "lengths": padding has no influence, and outputs there are 0 (for a layer whose ``forward`` takes ``lengths``).
    - "observation": a call with NaN is refused and leaves the observation as it was (for a layer that needs data).

    Parameters
    ----------
    make_layer : callable
        ``make_layer(n_states)`` returns a new layer of that size, of a type with a registered adapter. Layers of float64 find more than those of float32.
    n_states : int
        Size of the layers that are made, at least 2.
    inputs : Tensor, optional
        What the layer is called with, ``(batch, length, channels)``; calibration data too, for a layer that needs it. By default normal, ``(3, 24, layer.d_model)``.
    criteria : iterable of Criterion, optional
        What decides; every clause runs with each of them. By default the adapter's default.
    output : callable, optional
        Takes the output tensor, ``(batch, length, ...)``, out of what the layer returns; needed where that is not a tensor.
    silence : callable, optional
        ``silence(layer, k)`` changes a layer in place so that all states but the first `k` have no influence on the output. With it, "moments" is
        checked on a cut that really takes states away, and not only on one to full size.
    tolerance : float, optional
        Largest relative error of outputs, and of gradients a tenfold. By default 1e-3 in float32 and 1e-9 in float64.
    skip : collection of str
        Clauses to leave out.
    seed : int
        Everything random is drawn from it; the global generator is put back.

    Returns
    -------
    dict
        For each clause ``"holds"``, ``"skipped"``, or why there is nothing to check.

    Raises
    ------
    ContractError
        A clause does not hold. It is an :class:`AssertionError`.
    hsv.HsvError
        An argument is impossible.

    Examples
    --------
    >>> import hsv_torch
    >>> from hsv_torch.testing import check_adapter
    >>> found = check_adapter(lambda n_states: hsv_torch.LRU(3, n_states, dtype=torch.float64))
    >>> found["full size"], found["observation"]
    ('holds', 'the layer needs no data')
    """
    unknown = [name for name in skip if name not in _CLAUSES]
    if unknown:
        raise hsv.HsvError(f"`skip` names clauses that do not exist: {unknown}; there are {list(_CLAUSES)}")
    if isinstance(n_states, bool) or not isinstance(n_states, int) or n_states < 2:
        raise hsv.HsvError(f"`n_states` must be an int of at least 2, or there is nothing to cut, got {n_states!r}")
    found = {}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        layer = make_layer(n_states)
        if inputs is None:
            inputs = _default_inputs(layer)
        dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
        try:
            adapter = adapter_of(layer)
        except hsv.HsvError as error:
            raise ContractError("adapter", f"{error}") from error
        subject = _Subject(
            make_layer,
            layer,
            adapter,
            inputs,
            n_states,
            output,
            silence,
            TOLERANCE.get(dtype, 1e-3) if tolerance is None else tolerance,
            seed,
        )
        for name, clause in _CLAUSES.items():
            if name in skip:
                found[name] = "skipped"
                continue
            found[name] = "holds"
            for criterion in (adapter.default_criterion(layer),) if criteria is None else criteria:
                try:
                    clause(dataclasses.replace(subject, criterion=criterion, clause=name))
                except _NotApplicableError as reason:
                    found[name] = str(reason)
                except ContractError:
                    raise
                except Exception as error:
                    raise ContractError(
                        name,
                        f"{type(layer).__name__} with {type(criterion).__name__} raised {type(error).__name__}: {error}; see the exception above",
                    ) from error
    return found


def _default_inputs(layer: nn.Module) -> Tensor:
    d_model = getattr(layer, "d_model", None)
    if not isinstance(d_model, int):
        raise hsv.HsvError(
            f"{type(layer).__name__} has no attribute `d_model` that says how many channels it takes: pass `inputs`, a tensor (batch, length, channels)"
        )
    like = next(p for p in layer.parameters() if p.is_floating_point())
    return torch.randn(3, 24, d_model, dtype=torch.float64).to(like)


class _Model(nn.Module):
    """A layer in a model: what users cut is never the layer alone."""

    def __init__(self, layer: nn.Module, output: Callable[[Any], Tensor] | None) -> None:
        super().__init__()
        self.layer = layer
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.output is not None:
            y = self.output(y)
        if not isinstance(y, Tensor):
            raise hsv.HsvError(
                f"the layer returns a {type(y).__name__}: pass `output`, which takes the tensor out of it"
            )
        return y


@dataclass(frozen=True)
class _Subject:
    """The layer under test and what is done with it; no clause changes `layer`."""

    make_layer: Callable[[int], nn.Module]
    layer: nn.Module
    adapter: LayerAdapter
    inputs: Tensor
    n_states: int
    output: Callable[[Any], Tensor] | None
    silence: Callable[[Any, int], None] | None
    tolerance: float
    seed: int
    criterion: Criterion | None = None
    clause: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that layers are cut to."""
        return tuple(dict.fromkeys((self.n_states // 2, 1)))

    def model(self) -> _Model:
        """The layer, copied, inside a model in evaluation mode."""
        return _Model(copy.deepcopy(self.layer), self.output).eval()

    def plan(self, model: _Model, n_states: int) -> Cut:
        assert self.criterion is not None
        seen = observe(model, {"layer": model.layer}, {"layer": self.criterion}, self.calibration)
        return plan_cut(self.adapter, model.layer, hsv.Order(n_states), self.criterion, seen.get("layer"))

    def cut(self, model: _Model, n_states: int) -> tuple[Cut, Replaced]:
        plan = self.plan(model, n_states)
        return plan, self.adapter.apply(model.layer, plan)

    def compress(self, model: _Model, n_states: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        calibration = self.calibration if self.adapter.needs_data else None
        compress_(model, hsv.Order(n_states), calibration=calibration, optimizer=optimizer, criterion=self.criterion)

    @property
    def calibration(self) -> list[Tensor]:
        return [self.inputs]

    def random_like(self, x: Tensor) -> Tensor:
        """Normal numbers, always the same."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

    def fail(self, message: str) -> NoReturn:
        raise ContractError(self.clause, f"{type(self.layer).__name__} with {type(self.criterion).__name__}: {message}")

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            self.fail(message)

    def require_close(self, found: Tensor, expected: Tensor, message: str, *, factor: float = 1.0) -> None:
        """Raise if the largest difference is above the tolerance times the largest value."""
        self.require(
            found.shape == expected.shape, f"{message}: the shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
        )
        if not expected.numel():
            return
        scale = float(expected.detach().abs().max())
        error = float((found - expected).detach().abs().max())
        if not error <= factor * self.tolerance * scale:  # NaN is not close
            self.fail(
                f"{message}: they differ by {error:.2g} where values go up to {scale:.2g} (allowed: {factor * self.tolerance:.0e} of that)"
            )


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


class _Itself:
    """An object that equals itself alone. It keeps the object alive: the number that `id` gives is given to another one afterwards."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _state(layer: nn.Module) -> tuple[dict[str, Any], dict[str, _Itself], dict[str, Any]]:
    """Values, parameters as objects, plain attributes."""
    values = {
        name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in layer.state_dict().items()
    }
    containers = ("_parameters", "_buffers", "_modules")
    attributes = {
        f"{prefix}.{key}" if prefix else key: value
        for prefix, module in layer.named_modules()
        for key, value in vars(module).items()
        if key not in containers and isinstance(value, bool | int | float | str | None)
    }
    return values, {name: _Itself(p) for name, p in _parameters(layer).items()}, attributes


def _require_unchanged(
    s: _Subject, layer: nn.Module, before: tuple[dict[str, Any], dict[str, _Itself], dict[str, Any]], what: str
) -> None:
    values, identities, attributes = _state(layer)
    s.require(
        identities == before[1],
        f"{what} put other parameter objects into the layer: {_differing(identities, before[1])}",
    )
    s.require(
        values.keys() == before[0].keys() and all(_same(value, before[0][name]) for name, value in values.items()),
        f"{what} changed values of the layer's state_dict",
    )
    s.require(attributes == before[2], f"{what} changed the attributes {_differing(attributes, before[2])}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return bool(a == b)


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def _check_adapter(s: _Subject) -> None:
    layer, adapter = s.layer, s.adapter
    found = adapter.n_states(layer)
    s.require(
        found == s.n_states,
        f"`make_layer({s.n_states})` made a layer of which `n_states` of the adapter says {found}: look at either",
    )
    parameters = _parameters(layer)
    for attribute in ("parameter_names", "recurrent_parameters"):
        value = getattr(adapter, attribute)
        names = tuple(value(layer)) if callable(value) else tuple(value)
        optional = {
            f"{prefix}.{key}" if prefix else key
            for prefix, module in layer.named_modules()
            for key, p in module._parameters.items()
            if p is None
        }
        missing = [
            name
            for name in names
            if name not in parameters and (attribute == "parameter_names" or name not in optional)
        ]
        s.require(
            not missing,
            f"`{attribute}` names {missing}, which are no parameters of the layer; it has {list(parameters)}",
        )
    s.require(
        bool(adapter.parameter_names(layer)),
        "`parameter_names` names nothing: no parameter's shape follows the number of states",
    )
    s.require(
        isinstance(s.criterion, adapter.criterion_type),
        f"the criterion is no {adapter.criterion_type.__name__}, which `criterion_type` asks for",
    )
    model = s.model()
    grouped = [p for group in parameter_groups(model, lr=1e-3) for p in group["params"]]
    s.require(
        sorted(map(id, grouped)) == sorted(id(p) for p in model.parameters() if p.requires_grad),
        "hsv_torch.parameter_groups does not give each parameter of the layer once",
    )
    with torch.no_grad():
        y = model(s.inputs)
    s.require(
        y.shape[:2] == s.inputs.shape[:2],
        f"the output has shape {tuple(y.shape)} for inputs {tuple(s.inputs.shape)}: batch and length must stay",
    )
    s.require(bool(y.isfinite().all()), "the output is not finite as the layer comes: nothing can be compared")
    s.require(bool(y.any()), "the output is zero as the layer comes: nothing can be compared")


def _check_plan(s: _Subject) -> None:
    model = s.model()
    before = _state(model.layer)
    for size in s.sizes:
        first, second = s.plan(model, size), s.plan(model, size)
        _require_unchanged(s, model.layer, before, f"planning a cut to {size} states (`reduce`)")
        sigma = first.hankel_singular_values
        s.require(
            isinstance(sigma, np.ndarray)
            and sigma.dtype == np.float64
            and sigma.ndim in (1, 2)
            and bool(np.all(sigma >= 0)),
            "`hankel_singular_values` of the plan must be a float64 array (n,) or (channels, n), finite and not negative",
        )
        s.require(bool(np.all(np.diff(sigma, axis=-1) <= 0)), "`hankel_singular_values` of the plan must be descending")
        s.require(
            np.array_equal(sigma, second.hankel_singular_values),
            "planning twice gives two spectra: `reduce` must not draw random numbers or keep anything",
        )
        s.require(
            first.n_states_before == s.n_states,
            f"`n_states_before` of the plan is {first.n_states_before}, and the layer has {s.n_states}",
        )
        s.require(
            1 <= first.n_states_after <= size,
            f"`n_states_after` of the plan is {first.n_states_after} where the rule asks for {size}",
        )
        s.require(
            first.error_bound >= 0, f"`error_bound` of the plan is {first.error_bound}; where theory has none it is inf"
        )
        s.require(
            first.eigenvector_condition >= 1,
            f"`eigenvector_condition` of the plan is {first.eigenvector_condition}, and condition numbers are at least 1",
        )
        s.require(all(isinstance(note, str) for note in first.notes), "`notes` of the plan must be strings")


def _check_full_size(s: _Subject) -> None:
    model = s.model()
    with torch.no_grad():
        before = model(s.inputs)
        s.cut(model, s.n_states)
        s.require_close(
            model(s.inputs),
            before,
            f"outputs before and after a cut to the full size of {s.n_states} states, which loses nothing; look at the scaling of B and C in `reduce`, and at what "
            "`system` leaves out (the skip term stays in the layer)",
        )


def _check_size(s: _Subject) -> None:
    for size in (*s.sizes, s.n_states):
        model = s.model()
        plan, _ = s.cut(model, size)
        left = s.adapter.n_states(model.layer)
        s.require(left == plan.n_states_after, f"`apply` left {left} states where its plan has {plan.n_states_after}")
        with torch.no_grad():
            s.require(
                bool(model(s.inputs).isfinite().all()), f"the output of the layer with {left} states is not finite"
            )


def _check_error_bound(s: _Subject) -> None:
    bounds = []
    for size in s.sizes:
        model, small = s.model(), s.model()
        plan, _ = s.cut(small, size)
        if not np.isfinite(plan.error_bound):
            continue
        bounds.append(plan.error_bound)
        for module in (model, small):
            module.requires_grad_(False)
        u = s.random_like(s.inputs)
        worst = 0.0
        for _ in range(12):
            u = (u / u.flatten(1).norm(dim=1)[:, None, None]).requires_grad_()
            change = model(u) - small(u)
            worst = max(worst, float(change.detach().flatten(1).norm(dim=1).max()))
            (u,) = torch.autograd.grad(change.square().sum() / 2, u)
            if not bool((u.flatten(1).norm(dim=1) > 0).all()):
                break
        with torch.no_grad():
            gain = float(model(s.inputs).flatten(1).norm(dim=1).max() / s.inputs.flatten(1).norm(dim=1).min())
        s.require(
            worst <= plan.error_bound * (1 + 1e-6) + s.tolerance * gain,
            f"cut to {size} states, an input of norm 1 changes the output by {worst:.4g}, and `error_bound` of the plan says {plan.error_bound:.4g}; look at the bound "
            "(inf where theory has none), and at `apply`, which may write something else than what was planned",
        )
    if not bounds:
        raise _NotApplicableError("no plan has a finite bound")


def _check_new_parameters(s: _Subject) -> None:
    size = s.sizes[0]
    frozen = s.adapter.parameter_names(s.layer)[0]
    model = s.model()
    layer = model.layer
    layer.get_parameter(frozen).requires_grad_(False)
    old = _parameters(layer)
    named = set(s.adapter.parameter_names(layer))
    _, replaced = s.cut(model, size)
    new = _parameters(layer)
    changed = {name for name in {*old, *new} if old.get(name) is not new.get(name)}
    s.require(
        changed == set(replaced),
        f"`apply` returned {sorted(replaced)}, and the parameters that became others are {sorted(changed)}",
    )
    missed = sorted(named - set(replaced))
    s.require(
        not missed,
        f"`apply` left {missed} in place, which `parameter_names` says follow the number of states: {_advice()}",
    )
    for name, (before, after) in replaced.items():
        s.require(
            before is old.get(name) and after is new.get(name),
            f"`apply` returned other objects for {name!r} than those before and after it in the layer",
        )
        if before is None or after is None:
            continue
        for attribute in ("dtype", "device", "requires_grad"):
            was, now = getattr(before, attribute), getattr(after, attribute)
            s.require(was == now, f"{attribute} of {name!r} was {was} and is {now}: {_advice()}")
        s.require(isinstance(after, nn.Parameter), f"{name!r} is no nn.Parameter: {_advice()}")
    for p in layer.parameters():
        p.requires_grad_(True)
    model(s.inputs).square().mean().backward()
    idle = [name for name in replaced if replaced[name][1] is not None and new[name].grad is None]
    s.require(
        not idle,
        f"the layer's output does not depend on the new parameters {idle}: does it still hold old ones somewhere?",
    )


def _advice() -> str:
    return "use hsv_torch.put_parameters"


def _check_moments(s: _Subject) -> None:
    size = s.n_states
    model = s.model()
    if s.silence is not None:
        size = s.n_states // 2
        with torch.no_grad():
            s.silence(model.layer, size)
    names = s.adapter.parameter_names(model.layer)
    target = s.random_like(s.inputs)[..., :1]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        y = model(s.inputs)
        (y - target.expand_as(y) if y.ndim == 3 else y).square().mean().backward()
        return {name: grad_of(p) for name, p in _parameters(model.layer).items()}

    def grad_of(p: nn.Parameter) -> Tensor:
        return torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()

    old = {name: gradient for name, gradient in gradients().items() if name in names}
    plan = s.plan(model, size)
    carried = s.adapter.pull_back(plan, old, squared=False)
    doubled = s.adapter.pull_back(plan, {name: 2 * g for name, g in old.items()}, squared=False)
    squares = s.adapter.pull_back(plan, {name: _squared_parts(g) for name, g in old.items()}, squared=True)
    lossless = s.plan(model, size)
    s.adapter.apply(model.layer, lossless)
    new = gradients()
    for name in carried:
        s.require(name in new, f"`pull_back` returned {name!r}, which is no parameter of the new layer")
        parameter = model.layer.get_parameter(name)
        for which, found in (("first", carried[name]), ("second", squares[name])):
            s.require(
                found.shape == parameter.shape,
                f"`pull_back` gave the {which} moment of {name!r} the shape {tuple(found.shape)}, and the parameter has {tuple(parameter.shape)}",
            )
            s.require(
                name not in old or found.dtype == old[name].dtype,
                f"`pull_back` gave the {which} moment of {name!r} the dtype {found.dtype}, not that of the old one, {old[name].dtype}",
            )
        s.require(
            bool((_parts(squares[name]) >= 0).all()),
            f"`pull_back(squared=True)` made a second moment of {name!r} negative: square the Jacobian element by element",
        )
        s.require_close(
            doubled[name],
            2 * carried[name],
            f"`pull_back` of twice the gradient of {name!r} and twice its pull-back (it must be linear)",
        )
    missing = [name for name in s.adapter.parameter_names(model.layer) if name in old and name not in carried]
    s.require(not missing, f"`pull_back` returned nothing for {missing}")
    for name in carried:
        s.require_close(
            carried[name],
            new[name],
            f"the carried gradient of {name!r} and the small layer's own, on a cut from {s.n_states} to {size} states that loses nothing; moments are covectors: with the old parameters "
            "as a function of the new ones, `pull_back` is the transpose of that function's Jacobian (not its inverse)",
            factor=10,
        )


def _parts(x: Tensor) -> Tensor:
    """Real and imaginary part apart, as optimizers see complex parameters."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _squared_parts(x: Tensor) -> Tensor:
    return torch.view_as_complex(_parts(x).square()) if x.is_complex() else x.square()


def _train(s: _Subject, model: _Model, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(s.inputs)
        loss = (y - 1).square().mean()
        s.require(bool(loss.isfinite()), "the loss of the training steps is not finite")
        loss.backward()
        for name, p in _parameters(model).items():
            s.require(p.grad is None or bool(p.grad.isfinite().all()), f"the gradient of {name!r} is not finite")
        optimizer.step()


def _require_optimizer_fits(s: _Subject, model: _Model, optimizer: torch.optim.Optimizer) -> None:
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    own = [id(p) for p in model.parameters()]
    s.require(len(held) == len(set(held)), "the optimizer holds a parameter twice")
    s.require(
        set(held) == set(own),
        f"the optimizer holds {len(set(held) - set(own))} parameters that are no longer the model's and lacks {len(set(own) - set(held))} that are: `apply` must return every parameter that it replaces",
    )
    for name, p in _parameters(model).items():
        for key, value in optimizer.state.get(p, {}).items():
            s.require(
                not isinstance(value, Tensor) or value.ndim == 0 or value.shape == p.shape,
                f"{key!r} of {name!r} in the optimizer has another shape than the parameter, {tuple(p.shape)}",
            )


def _check_optimizer(s: _Subject) -> None:
    model = s.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _train(s, model, optimizer, 3)
    s.compress(model, s.sizes[0], optimizer)
    _require_optimizer_fits(s, model, optimizer)
    before = {name: p.detach().clone() for name, p in _parameters(model.layer).items()}
    _train(s, model, optimizer, 3)
    still = [
        name
        for name in s.adapter.parameter_names(model.layer)
        if torch.equal(model.layer.get_parameter(name), before[name])
    ]
    s.require(
        not still, f"three training steps after the cut did not move {still}: does the layer's output depend on them?"
    )


def _check_refusal(s: _Subject) -> None:
    model = s.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _train(s, model, optimizer, 1)

    def refused(n_states: int, what: str) -> None:
        before = _state(model.layer)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        try:
            s.compress(model, n_states, optimizer)
        except hsv.HsvError:
            pass
        except Exception as error:
            s.fail(
                f"{what} was refused with a {type(error).__name__} ({error}), which is no hsv.HsvError: a compression that meets it stops the training"
            )
        else:
            s.fail(f"{what} was not refused: `reduce` must raise an hsv.HsvError")
        _require_unchanged(s, model.layer, before, f"{what}, which was refused,")
        s.require(
            held == [id(p) for group in optimizer.param_groups for p in group["params"]],
            f"{what}, which was refused, changed the optimizer's parameters",
        )

    refused(s.n_states + 1, f"a cut to {s.n_states + 1} states, more than there are,")
    name = s.adapter.parameter_names(model.layer)[-1]
    with torch.no_grad():
        value = model.layer.get_parameter(name)
        value[(0,) * value.ndim] = torch.nan
    refused(s.sizes[0], f"a cut of a layer whose {name!r} holds a NaN")


def _check_undo(s: _Subject) -> None:
    model = s.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _train(s, model, optimizer, 2)
    with torch.no_grad():
        y = model(s.inputs)
    before = _state(model.layer)
    snapshot = Snapshot.take(model, optimizer, layers=[model.layer])
    s.compress(model, s.sizes[0], optimizer)
    _train(s, model, optimizer, 1)
    snapshot.restore()
    _require_unchanged(s, model.layer, before, "a cut that was taken back")
    _require_optimizer_fits(s, model, optimizer)
    with torch.no_grad():
        s.require(
            torch.equal(model(s.inputs), y),
            "a cut that was taken back changed the outputs: `apply` must not write into old parameters, nor keep anything outside the layer's attributes",
        )


def _check_checkpoint(s: _Subject) -> None:
    cut, full = s.model(), s.model()
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (cut, full)}
    s.compress(cut, s.sizes[0], optimizers[cut])
    with tempfile.TemporaryDirectory() as folder:
        for saved, other in ((cut, "the size it was made with"), (full, "the size of a cut one")):
            path = Path(folder) / "model.pt"
            _train(s, saved, optimizers[saved], 1)
            save_checkpoint(saved, path, optimizer=optimizers[saved])
            target = _Model(s.make_layer(s.n_states), s.output).eval()
            if saved is full:
                s.compress(target, s.sizes[0])
            target_optimizer = torch.optim.AdamW(target.parameters(), lr=1e-3)
            load_into(target, path, optimizer=target_optimizer)
            with torch.no_grad():
                s.require_close(
                    target(s.inputs),
                    saved(s.inputs),
                    f"outputs of a model with {s.adapter.n_states(saved.layer)} states and of one of {other} that its checkpoint was loaded into; look at `resize` and at `form`, and whether everything that "
                    "a cut changes is a parameter or a buffer",
                )
            _require_optimizer_fits(s, target, target_optimizer)
            _train(s, target, target_optimizer, 1)


def _check_copies(s: _Subject) -> None:
    model = s.model()
    s.cut(model, s.sizes[0])
    with torch.no_grad():
        y = model(s.inputs)
        for how, layer in (
            ("copy.deepcopy", copy.deepcopy(model.layer)),
            ("pickle", pickle.loads(pickle.dumps(model.layer))),
        ):
            found = s.adapter.n_states(layer)
            s.require(
                found == s.adapter.n_states(model.layer),
                f"the adapter counts {found} states in a {how} copy of a cut layer",
            )
            s.require_close(
                _Model(layer, s.output).eval()(s.inputs), y, f"outputs of a {how} copy of a cut layer and its own"
            )


def _check_step(s: _Subject) -> None:
    if not (hasattr(s.layer, "step") and hasattr(s.layer, "initial_state")):
        raise _NotApplicableError("the layer has no `step` and `initial_state`")
    model = s.model()
    for moment in ("before", "after"):
        layer: Any = model.layer
        with torch.no_grad():
            expected = model(s.inputs)
            state = layer.initial_state(s.inputs.shape[0])
            outputs = []
            for x_t in s.inputs.unbind(1):
                try:
                    y_t, state = layer.step(x_t, state)
                except hsv.HsvError as error:
                    raise _NotApplicableError(f"the layer refuses to go step by step: {error}") from error
                outputs.append(y_t)
            s.require_close(torch.stack(outputs, 1), expected, f"outputs step by step and at once, {moment} a cut")
        if moment == "before":
            s.cut(model, s.sizes[0])


def _check_lengths(s: _Subject) -> None:
    if "lengths" not in inspect.signature(s.layer.forward).parameters:
        raise _NotApplicableError("`forward` takes no `lengths`")
    model = s.model()
    batch, length = s.inputs.shape[:2]
    for moment in ("before", "after"):
        short = length // 2
        lengths = torch.full((batch,), short)
        lengths[0] = length
        x = s.inputs.clone()
        for i in range(1, batch):
            x[i, short:] = torch.nan
        with torch.no_grad():
            y = model.layer(x, lengths=lengths)
            y = y if s.output is None else s.output(y)
            s.require(
                bool((y[1:, short:] == 0).all()),
                f"outputs in the padding are not 0, {moment} a cut (the padding holds NaN)",
            )
            s.require_close(
                y[:1],
                model(s.inputs[:1]),
                f"outputs of a sequence without padding, beside padded ones and alone, {moment} a cut",
            )
            s.require_close(
                y[1:, :short],
                model(s.inputs[1:, :short]),
                f"outputs of padded sequences and of the same ones cut to their lengths, {moment} a cut",
            )
        if moment == "before":
            s.cut(model, s.sizes[0])


def _check_observation(s: _Subject) -> None:
    if not s.adapter.needs_data:
        raise _NotApplicableError("the layer needs no data")
    assert s.criterion is not None
    model = s.model()
    layer, criterion = model.layer, s.criterion
    rule = hsv.Order(s.sizes[0])
    with torch.no_grad():
        observation = s.adapter.observe(layer, criterion)
        observation.update(layer, (s.inputs,), {})
        before = s.adapter.reduce(layer, rule, criterion, observation)
        broken = s.inputs.clone()
        broken[0, 0, 0] = torch.nan
        try:
            observation.update(layer, (broken,), {})
        except hsv.HsvError:
            pass
        else:
            s.fail("a call with NaN in one sequence was not refused: `Observation.update` must raise an hsv.HsvError")
        after = s.adapter.reduce(layer, rule, criterion, observation)
    s.require(
        np.array_equal(before.hankel_singular_values, after.hankel_singular_values),
        "a call with NaN, which was refused, changed the observation: look at `Observation.update`",
    )


_CLAUSES: dict[str, Callable[[_Subject], None]] = {
    "adapter": _check_adapter,
    "plan": _check_plan,
    "full size": _check_full_size,
    "size": _check_size,
    "error bound": _check_error_bound,
    "new parameters": _check_new_parameters,
    "moments": _check_moments,
    "optimizer": _check_optimizer,
    "refusal": _check_refusal,
    "undo": _check_undo,
    "checkpoint": _check_checkpoint,
    "copies": _check_copies,
    "step": _check_step,
    "lengths": _check_lengths,
    "observation": _check_observation,
}
