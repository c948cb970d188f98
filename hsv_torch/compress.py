"""Cutting layers in place: all of them or none, after training in one shot or as one attempt of a longer compression."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

import hsv
from hsv import HsvError
from hsv_torch.adapters import (
    Cut,
    LayerAdapter,
    Observation,
    Replaced,
    adapter_of,
    compressible_layers,
    outside_inference_mode,
    why_no_parameter,
)
from hsv_torch.allocation import Budget, Sizes, levels, share_out
from hsv_torch.calibration import Forward, check_calibration, in_layer, observe
from hsv_torch.criteria import Criterion, DiagonalCriterion
from hsv_torch.history import CompressionReport, LayerRecord
from hsv_torch.optimizer import Moments, carry_gradients, carry_moments, check_optimizer, replace_parameters
from hsv_torch.sharding import check_unsplit
from hsv_torch.snapshot import Placement, without_trace
from hsv_torch.third_party._packages import missing_imports


@dataclass(frozen=True)
class PlannedCut:
    """A layer and the cut that waits for it."""

    layer: nn.Module
    adapter: LayerAdapter
    cut: Cut


def uncompiled(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile`` returned, with the names that its layers have there; any other model as it is."""
    while isinstance(model, nn.Module) and (inside := model._modules.get("_orig_mod")) is not None:
        model = inside
    return model


@contextlib.contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Compute what is inside in the precision of its numbers, also where the caller is under autocast."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def eager(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Call compiled parts of the model as they were written: for a few batches, with hooks, they would all be compiled again."""
    if any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def chosen_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The layers of `model` that an adapter serves, by dotted name.

    Parameters
    ----------
    model
        The model.
    layers
        Dotted names, or patterns as ``"encoder.*"``; None for all.

    Raises
    ------
    HsvError
        If the model has no such layer at all, or a name or pattern matches none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__qualname__}")
    known = compressible_layers(model)
    if not known:
        needed = missing_imports(model)
        remedy = "; and ".join(needed) or "register one for its layers with hsv_torch.register_adapter"
        raise HsvError(f"`model` ({type(model).__qualname__}) has no layer that a known adapter serves; {remedy}")
    if layers is None:
        return known
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of names or patterns, got the string {layers!r}; pass [{layers!r}]")
    patterns = list(layers)
    if not patterns:
        raise HsvError("`layers` is empty, so nothing would ever be cut; pass None for every known layer")
    modules = dict(model.named_modules())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            what = f" ({pattern!r} is a {type(modules[pattern]).__qualname__})" if pattern in modules else ""
            remedy = "".join(f"; {needed}" for needed in missing_imports(model))
            raise HsvError(
                f"`layers`: {pattern!r} matches no layer that can be cut{what}; there are {list(known)}{remedy}"
            )
    return {name: layer for name, layer in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def check_parameters(layers: Mapping[str, nn.Module]) -> None:
    """Raise unless what cuts of these layers would replace are parameters, and have values."""
    for name, layer in layers.items():
        for inner in adapter_of(layer).parameter_names(layer):
            full = f"{name}.{inner}" if name else inner
            owner, _, leaf = full.rpartition(".")
            module = layer.get_submodule(inner.rpartition(".")[0])
            reason = why_no_parameter(module, leaf, f"model.get_submodule({owner!r})" if owner else "model")
            if reason is not None:
                raise HsvError(f"{full!r} {reason}")
            parameter = module._parameters[leaf]
            if parameter is not None and parameter.is_meta:
                raise HsvError(
                    f"{full!r} is on the meta device and has no values: call model.to_empty(device=...) and load the weights first"
                )


def chosen_criteria(
    layers: Mapping[str, nn.Module], criterion: Criterion | Mapping[str, Criterion] | None
) -> dict[str, Criterion]:
    """The criterion of each layer: the one given, the one whose pattern matches first, or the default of the layer's adapter.

    Raises
    ------
    HsvError
        If a criterion is not of the kind that a layer takes, or a pattern matches no layer.
    """
    if isinstance(criterion, Mapping):
        for pattern in criterion:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise HsvError(f"`criterion`: {pattern!r} matches no layer that is to be cut; there are {list(layers)}")
    given = {"*": criterion} if isinstance(criterion, Criterion) else {} if criterion is None else criterion
    if not isinstance(given, Mapping) or not all(isinstance(value, Criterion) for value in given.values()):
        raise TypeError(
            f"`criterion` must be a hsv_torch.Criterion object, or a mapping of patterns to them, got {criterion!r}"
        )
    chosen = {}
    for name, layer in layers.items():
        adapter = adapter_of(layer)
        matching = (value for pattern, value in given.items() if fnmatchcase(name, pattern))
        chosen[name] = next(matching, None) or adapter.default_criterion(layer)
        if not isinstance(chosen[name], adapter.criterion_type):
            raise HsvError(
                f"`criterion`: {type(chosen[name]).__name__} does not serve the layer {name!r} ({type(layer).__name__}), which takes a "
                f"{adapter.criterion_type.__name__}; give each layer its own with {{pattern: criterion}}, or choose `layers`"
            )
    return chosen


def recurrent_parameters(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter whose shape follows the number of states, by dotted name."""
    return {
        f"{name}.{inner}" if name else inner: layer.get_parameter(inner)
        for name, layer in layers.items()
        for inner in adapter_of(layer).parameter_names(layer)
    }


def check_unshared(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise if what a cut of these layers would replace is no parameter with values, or one that two layers share."""
    check_parameters(layers)
    owners: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = (
        f"{name}.{inner}" if name else inner
        for name, layer in compressible_layers(model).items()
        for inner in adapter_of(layer).parameter_names(layer)
    )
    for name, parameter in ((name, parameters[name]) for name in every if name in parameters):
        other = owners.setdefault(id(parameter), name)
        if other != name:
            raise HsvError(
                f"the parameters {other!r} and {name!r} are one tensor, shared between two layers (of {list(layers)} at "
                "least one is to be cut): a cut of one would break the other; share the whole layer instead"
            )


def apply_cuts(
    model: nn.Module,
    plans: Mapping[str, PlannedCut],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments = "carry",
) -> dict[str, tuple[nn.Parameter | None, nn.Parameter | None]]:
    """Apply every planned cut, or, on any exception, none.

    Parameters
    ----------
    model
        The model that the layers belong to.
    plans
        The cuts by the dotted names of their layers.
    optimizer
        Gets the new parameters in place of the old ones, and their moments.
    moments
        See :func:`hsv_torch.compress_`.

    Returns
    -------
    dict
        ``{"layer.parameter": (old, new)}``.
    """
    layers = {name: plan.layer for name, plan in plans.items()}
    check_unshared(model, layers)
    if optimizer is not None:
        check_optimizer(optimizer, recurrent_parameters(layers), moments)
    before = Placement(model, optimizer, layers.values())
    all_replaced: dict[str, tuple[nn.Parameter | None, nn.Parameter | None]] = {}
    try:
        for name, plan in plans.items():
            try:
                with outside_inference_mode():
                    replaced = _apply_one(model, plan, optimizer, moments)
            except Exception as error:
                error.add_note(f"while cutting the layer {name!r}; everything is as it was before")
                raise
            all_replaced.update({f"{name}.{inner}" if name else inner: pair for inner, pair in replaced.items()})
    except BaseException:
        before.restore()
        raise
    return all_replaced


def _apply_one(
    model: nn.Module, plan: PlannedCut, optimizer: torch.optim.Optimizer | None, moments: Moments
) -> Replaced:
    replaced = plan.adapter.apply(plan.layer, plan.cut)
    found = plan.adapter.n_states(plan.layer)
    if found != plan.cut.n_states_after:
        raise HsvError(
            f"{type(plan.adapter).__qualname__}.apply left {found} states where its own plan has {plan.cut.n_states_after}"
        )
    replace_parameters(model, {old: new for old, new in replaced.values() if old is not None})
    carry_gradients(plan.adapter, plan.cut, replaced)
    if optimizer is not None:
        carry_moments(optimizer, plan.adapter, plan.cut, replaced, moments)
    return replaced


def compress_(
    model: nn.Module,
    rule: hsv.Rule | int | Budget,
    *,
    calibration: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    layers: Iterable[str] | None = None,
    criterion: Criterion | Mapping[str, Criterion] | None = None,
    forward: Forward | None = None,
    moments: Moments = "carry",
    sizes: Sizes | None = None,
) -> CompressionReport:
    """Cut the states of a model's layers, once and in place.

    Every layer is planned before any is changed. On any exception, even one in the middle, model and optimizer are as
    they were. The parameters of a cut layer are new objects afterwards: an optimizer that is not passed here still holds
    the old ones.

    Parameters
    ----------
    model
        Any model with layers that an adapter serves; a layer that stands in several places is cut once. Of a ``torch.compile``
        the model inside is cut; its next call compiles it anew, once.
    rule
        Chooses the number of states of each layer on its own: ``hsv.HankelSum(discard=0.1)``, ``hsv.ErrorBound(0.01)``,
        ...; an int means ``hsv.Order``. Or a :class:`hsv_torch.Budget` for all layers together.
    calibration
        Batches that the model is run over, without gradients and in evaluation mode; needed where a layer's system depends on its input
        (Mamba), and an error where none does. A tensor is one batch; a tuple of several tensors is refused, for it could be one batch with its targets or several.
    optimizer
        Gets the new parameters in place of the old ones. Its moments are carried into the new coordinates.
    layers
        Dotted names or patterns (``"encoder.*"``) of the layers to cut; None for all.
    criterion
        What decides which states stay; a mapping ``{pattern: criterion}`` for a model with several kinds of layers. By default that of the layer's
        adapter: :class:`hsv_torch.ComplexHankel` for the time-invariant ones.
    forward
        ``forward(model, batch)`` runs the model over one batch of `calibration`. By default a tensor is passed on, a mapping as
        keywords, and of a tuple or list the first element.
    moments
        ``"carry"``: into the new coordinates; those of Adam and AdamW count as two steps there, for the gradients of a model that was cut are larger. ``"reset"`` forgets the optimizer's state of
        the parameters that are replaced.
    sizes
        What sizes are allowed: floors, ceilings, multiples, one size for all.

    Returns
    -------
    CompressionReport
        Sizes, spectra and bounds of each layer, seconds spent, and the old and new parameters.

    Raises
    ------
    hsv.HsvError
        If a layer cannot be cut (the message begins with its name), a name matches no layer, a parameter to be replaced is parametrized, pruned
        or without values (on the meta device), or the optimizer's state cannot be carried.

    See Also
    --------
    InTrainingCompressor : cuts while the model trains, which costs less accuracy.

    Examples
    --------
    >>> import hsv_torch
    >>> model = torch.nn.Sequential(hsv_torch.LRU(4, 32), torch.nn.Linear(4, 2))
    >>> report = hsv_torch.compress_(model, hsv.Order(8))
    >>> model[0].n_states
    8
    """
    started = time.perf_counter()
    model = uncompiled(model)
    chosen = chosen_layers(model, layers)
    check_parameters(chosen)
    check_unsplit(model, "compress_ cannot cut", "cut before the model is split, or by hsv_torch.InTrainingCompressor")
    criteria = chosen_criteria(chosen, criterion)
    check_calibration(chosen, calibration, forward)
    checked, allowed = checked_rule(rule), checked_sizes(sizes, chosen)
    if optimizer is not None:
        check_optimizer(optimizer, recurrent_parameters(chosen), moments)
    plans: dict[str, PlannedCut] = {}
    with without_autocast(model):
        with eager(model):
            observations = observe(model, chosen, criteria, calibration, forward)
        for name, plan in Planner(model, chosen, criteria, observations, allowed).cuts(checked).items():
            if isinstance(plan, HsvError):
                raise in_layer(name, plan) from plan
            plans[name] = PlannedCut(chosen[name], adapter_of(chosen[name]), plan)
        replaced = apply_cuts(model, plans, optimizer=optimizer, moments=moments)
    return CompressionReport(
        layers=tuple(cut_record(name, plan.cut) for name, plan in plans.items()),
        seconds=time.perf_counter() - started,
        replaced=replaced,
    )


def plan_cut(
    adapter: LayerAdapter,
    layer: nn.Module,
    rule: hsv.Rule | int,
    criterion: Criterion,
    observation: Observation | None,
) -> Cut:
    """The adapter's plan; adapters of layers that need no data may leave the argument out."""
    if observation is None:
        return adapter.reduce(layer, rule, criterion)
    return adapter.reduce(layer, rule, criterion, observation)


def checked_rule(rule: hsv.Rule | int | Budget) -> hsv.Rule | Budget:
    """The rule; an int means ``hsv.Order``."""
    return rule if isinstance(rule, Budget) else hsv.as_rule(rule)


def checked_sizes(sizes: Sizes | None, layers: Mapping[str, nn.Module]) -> Sizes:
    """What sizes are allowed; raises if it is something else, or names layers that are not cut."""
    if not isinstance(sizes, Sizes | None):
        raise TypeError(f"`sizes` must be a hsv_torch.Sizes or None, got {sizes!r}")
    sizes = Sizes() if sizes is None else sizes
    sizes.check(layers)
    return sizes


class KeepsTooManyError(HsvError):
    """The rule keeps so many states of a layer that it is not worth planning the cut.

    Attributes
    ----------
    order : int
        The order that it chose.
    hankel_singular_values : numpy.ndarray
        What it chose by.
    """

    def __init__(self, order: int, hankel_singular_values: np.ndarray) -> None:
        super().__init__(f"the rule keeps {order} of {hankel_singular_values.shape[-1]} states")
        self.order = order
        self.hankel_singular_values = hankel_singular_values


# Values above this share of the largest are no rounding errors, for which an order would be lowered later.
_CERTAIN = 1e-9


@dataclass(frozen=True)
class _Fewer(hsv.Rule):
    """The orders of `rule`, or :class:`KeepsTooManyError` in place of one of `limit` or more among `n_states` values."""

    rule: hsv.Rule
    n_states: int
    limit: float

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        orders = self.rule.choose(sigma)
        order = int(orders.max(initial=0))
        if sigma.shape[-1] == self.n_states and order >= max(self.limit, 1):
            largest = sigma[orders == order]
            if (largest[..., order - 1] > _CERTAIN * largest[..., 0]).any():
                raise KeepsTooManyError(order, sigma)
        return orders


@dataclass(frozen=True)
class Planner:
    """Plans the cuts of a model's layers; the model does not change.

    Attributes
    ----------
    model, layers, criteria, observations
        As :func:`chosen_layers`, :func:`chosen_criteria` and :func:`hsv_torch.calibration.observe` return them.
    sizes
        What sizes are allowed.
    min_reduction
        A layer that would not lose more than this fraction of its states has a :class:`KeepsTooManyError` in place of its cut where that shows before the cut
        is computed: half of the work of an attempt is in eigenvectors that would not be used. None: every cut is computed.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    criteria: Mapping[str, Criterion]
    observations: Mapping[str, Observation]
    sizes: Sizes
    min_reduction: float | None = None

    @property
    def states(self) -> dict[str, int]:
        """States of each layer now."""
        return {name: adapter_of(layer).n_states(layer) for name, layer in self.layers.items()}

    @property
    def parameters(self) -> dict[str, int]:
        """Real numbers in the parameters of each layer that follow its states, now."""
        return {
            name: sum(
                p.numel() * (2 if p.is_complex() else 1)
                for p in (layer.get_parameter(inner) for inner in adapter_of(layer).parameter_names(layer))
            )
            for name, layer in self.layers.items()
        }

    def cuts(
        self, rule: hsv.Rule | Budget, *, remaining: int = 1, first: Mapping[str, int] | None = None
    ) -> dict[str, Cut | HsvError]:
        """The cut of each layer, or what refused it.

        Parameters
        ----------
        rule
            What chooses the numbers of states.
        remaining
            Attempts that are left, this one included, for a budget that is approached in several.
        first
            States of each layer when the budget was first used; now by default.
        """
        if isinstance(rule, Budget):
            return self._by_budget(rule, remaining, self.states if first is None else first)
        plans = {name: self.cut(name, self._fewer(name, rule)) for name in self.layers}
        chosen = {name: plan.n_states_after for name, plan in plans.items() if isinstance(plan, Cut)}
        for name, size in self.sizes.adjust(chosen, self.states).items():
            if size != chosen[name]:
                plans[name] = self.cut(name, hsv.Order(size))
        return plans

    def _fewer(self, name: str, rule: hsv.Rule) -> hsv.Rule:
        """The rule, or one that stops where it keeps too many. A fixed order and a bound, which criteria treat in ways of their own, and sizes that others change are left alone."""
        if self.min_reduction is None or self.sizes != Sizes() or isinstance(rule, hsv.Order | hsv.ErrorBound):
            return rule
        n = self.states[name]
        return _Fewer(rule, n, (1 - self.min_reduction) * n)

    def cut(self, name: str, rule: hsv.Rule) -> Cut | HsvError:
        """The cut of one layer, or what refused it."""
        layer = self.layers[name]
        try:
            with outside_inference_mode():
                return plan_cut(adapter_of(layer), layer, rule, self.criteria[name], self.observations.get(name))
        except HsvError as error:
            return error

    def _by_budget(self, budget: Budget, remaining: int, first: Mapping[str, int]) -> dict[str, Cut | HsvError]:
        plans: dict[str, Cut | HsvError] = {}
        now, level = self.states, {}
        for name, n in now.items():
            spectrum = self._spectrum(name)
            if isinstance(spectrum, HsvError):
                plans[name] = spectrum
            else:
                level[name] = levels(spectrum, n, budget.share)
        if not level:
            return plans

        def cost(sizes: Mapping[str, int]) -> float:
            sizes = {**now, **sizes}  # layers that refuse to be cut cost what they cost
            if budget.unit == "seconds":
                return self._seconds(budget, sizes)
            each = budget.costs_per_state(now, self.parameters)
            return sum(each[name] * size for name, size in sizes.items())

        total = budget.total(cost(first), cost(now), remaining)
        orders = share_out(level, cost, total, lambda chosen: self.sizes.adjust(chosen, now), budget.unit)
        return plans | {name: self.cut(name, hsv.Order(order)) for name, order in orders.items()}

    def _spectrum(self, name: str) -> np.ndarray | HsvError:
        layer, criterion = self.layers[name], self.criteria[name]
        adapter = adapter_of(layer)
        try:
            system = adapter.system(layer)
            if system is not None and isinstance(criterion, DiagonalCriterion):
                return criterion.spectrum(system)
        except HsvError as error:
            return error
        plan = self.cut(name, hsv.Order(adapter.n_states(layer)))
        return plan if isinstance(plan, HsvError) else plan.hankel_singular_values

    def _seconds(self, budget: Budget, sizes: Mapping[str, int]) -> float:
        """What `measure` says of a copy with these sizes; whatever it does leaves no trace."""
        assert budget.measure is not None
        trial = copy.deepcopy(self.model)
        layers = {name: trial.get_submodule(name) for name in self.layers}
        planner = Planner(trial, layers, self.criteria, self.observations, self.sizes)
        plans = {}
        for name, size in sizes.items():
            if size < self.states[name]:
                plan = planner.cut(name, hsv.Order(size))
                if isinstance(plan, HsvError):
                    raise in_layer(name, plan) from plan
                plans[name] = PlannedCut(layers[name], adapter_of(layers[name]), plan)
        apply_cuts(trial, plans)
        with without_trace(self.model), torch.enable_grad():
            found = budget.measure(trial)
        if isinstance(found, bool) or not isinstance(found, int | float | np.number) or not 0 < found < math.inf:
            raise HsvError(
                f"`measure` of the Budget must return a positive, finite number of seconds, got {found!r} for the sizes {dict(sizes)}"
            )
        return float(found)


def cut_record(name: str, cut: Cut) -> LayerRecord:
    """What a cut that was made is remembered by."""
    return LayerRecord(
        layer=name,
        outcome="cut",
        n_states_before=cut.n_states_before,
        n_states_after=cut.n_states_after,
        n_states_chosen=cut.n_states_after,
        hankel_singular_values=cut.hankel_singular_values,
        order=cut.order,
        error_bound=cut.error_bound,
        eigenvector_condition=cut.eigenvector_condition,
        notes=cut.notes,
    )
