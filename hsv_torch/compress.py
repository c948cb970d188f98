"""Cutting layers in place: all of them or none, after training in one shot or as one attempt of a longer compression."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

import hsv
from hsv import HsvError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, adapter_of, compressible_layers
from hsv_torch.calibration import Forward, check_calibration, in_layer, observe
from hsv_torch.criteria import Criterion
from hsv_torch.history import CompressionReport, LayerRecord
from hsv_torch.optimizer import Moments, carry_moments, check_optimizer, replace_parameters
from hsv_torch.snapshot import Placement


@dataclass(frozen=True)
class PlannedCut:
    """A layer and the cut that waits for it."""

    layer: nn.Module
    adapter: LayerAdapter
    cut: Cut


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
        raise HsvError(
            f"`model` ({type(model).__qualname__}) has no layer that a known adapter serves; register one for its layers "
            "with hsv_torch.register_adapter"
        )
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
            raise HsvError(f"`layers`: {pattern!r} matches no layer that can be cut{what}; there are {list(known)}")
    return {name: layer for name, layer in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


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
    """Raise if two layers share a parameter that a cut of one of them would replace."""
    owners: dict[int, str] = {}
    for name, parameter in recurrent_parameters(compressible_layers(model)).items():
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
    if optimizer is not None:
        carry_moments(optimizer, plan.adapter, plan.cut, replaced, moments)
    return replaced


def compress_(
    model: nn.Module,
    rule: hsv.Rule | int,
    *,
    calibration: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    layers: Iterable[str] | None = None,
    criterion: Criterion | Mapping[str, Criterion] | None = None,
    forward: Forward | None = None,
    moments: Moments = "carry",
) -> CompressionReport:
    """Cut the states of a model's layers, once and in place.

    Every layer is planned before any is changed. On any exception, even one in the middle, model and optimizer are as
    they were. The parameters of a cut layer are new objects afterwards: an optimizer that is not passed here still holds
    the old ones.

    Parameters
    ----------
    model
        Any model with layers that an adapter serves; a layer that stands in several places is cut once.
    rule
        Chooses the number of states of each layer on its own: ``hsv.HankelSum(discard=0.1)``, ``hsv.ErrorBound(0.01)``,
        ...; an int means ``hsv.Order``.
    calibration
        Batches that the model is run over, without gradients and in evaluation mode; needed where a layer's system depends on its input
        (Mamba), and an error where none does. A tensor is one batch.
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
        ``"reset"`` forgets the optimizer's state of the parameters that are replaced instead of carrying it.

    Returns
    -------
    CompressionReport
        Sizes, spectra and bounds of each layer, seconds spent, and the old and new parameters.

    Raises
    ------
    hsv.HsvError
        If a layer cannot be cut (the message begins with its name), a name matches no layer, or the optimizer's state
        cannot be carried.

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
    chosen = chosen_layers(model, layers)
    criteria = chosen_criteria(chosen, criterion)
    check_calibration(chosen, calibration, forward)
    rule = hsv.as_rule(rule)
    if optimizer is not None:
        check_optimizer(optimizer, recurrent_parameters(chosen), moments)
    observations = observe(model, chosen, criteria, calibration, forward)
    plans: dict[str, PlannedCut] = {}
    for name, layer in chosen.items():
        adapter = adapter_of(layer)
        try:
            plans[name] = PlannedCut(
                layer, adapter, plan_cut(adapter, layer, rule, criteria[name], observations.get(name))
            )
        except HsvError as error:
            raise in_layer(name, error) from error
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
