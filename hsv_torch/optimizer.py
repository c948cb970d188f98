"""Optimizers whose parameters change shape: new parameters in their place, moments carried over, parameter groups."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hsv import HsvError
from hsv_torch.adapters import Cut, LayerAdapter, Replaced, adapter_of, compressible_layers

Moments: TypeAlias = Literal["carry", "reset"]
_ParameterState: TypeAlias = dict[str, Any]


class UnknownOptimizerError(HsvError, TypeError):
    """Nobody said how the state of this optimizer changes with the coordinates of its parameters."""


@dataclass(frozen=True)
class _PullBack:
    """The states of one layer's parameters, and the way of their moments into the coordinates after a cut.

    Moments of complex parameters have a further last axis here, for real and imaginary part: optimizers keep moments of either part.
    """

    adapter: LayerAdapter
    cut: Cut
    old: Mapping[str, nn.Parameter]
    states: Mapping[str, _ParameterState]

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The moments called `key`, of the parameters that have one."""
        return {name: _parts(state[key]) for name, state in self.states.items() if isinstance(state.get(key), Tensor)}

    def __call__(self, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        """Carry `covectors`; a parameter without a moment (a frozen one, say) has the gradient 0."""
        if not covectors:
            return {}
        given = {
            name: _joined(covectors[name].detach(), parameter) if name in covectors else torch.zeros_like(parameter)
            for name, parameter in self.old.items()
        }
        carried = self.adapter.pull_back(self.cut, given, squared=squared)
        return {name: _parts(carried[name].detach()).to(covectors[name]) for name in covectors if name in carried}


def _parts(moment: Tensor) -> Tensor:
    return torch.view_as_real(moment.resolve_conj()) if moment.is_complex() else moment


def _joined(moment: Tensor, parameter: Tensor) -> Tensor:
    """The inverse of :func:`_parts`."""
    return torch.view_as_complex(moment.contiguous()) if parameter.is_complex() else moment


_Carrier: TypeAlias = Callable[[_PullBack, Mapping[str, Mapping[str, Any]]], dict[str, dict[str, Tensor]]]


_Weigher: TypeAlias = Callable[[_ParameterState, Mapping[str, Any]], None]


@dataclass(frozen=True)
class _Rule:
    """What the state of an optimizer holds (`keys`) and how it is carried; `carry` gives {key: {parameter name: tensor}}, `weigh` changes a carried state in place."""

    keys: frozenset[str]
    carry: _Carrier
    weigh: _Weigher | None = None


def _moments_rule(first: Iterable[str], second: Iterable[str], magnitude: Iterable[str]) -> _Rule:
    first, second, magnitude = tuple(first), tuple(second), tuple(magnitude)

    def carry(pull: _PullBack, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        carried = {key: pull(pull.tensors(key), squared=False) for key in first}
        for key in second:
            moments = pull(pull.tensors(key), squared=True)
            carried[key] = {name: moment.clamp_min(0) for name, moment in moments.items()}
        for key in magnitude:  # a running |gradient|: carried as the root of a second moment
            squares = pull({name: value.square() for name, value in pull.tensors(key).items()}, squared=True)
            carried[key] = {name: square.clamp_min(0).sqrt() for name, square in squares.items()}
        return carried

    return _Rule(frozenset((*first, *second, *magnitude)), carry)


def _carry_rmsprop(pull: _PullBack, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """RMSprop keeps gradients divided by their root mean square: they are covectors only once multiplied by it again."""
    mean, square = pull.tensors("grad_avg"), pull.tensors("square_avg")
    buffer = pull.tensors("momentum_buffer")

    def divisor(name: str, square: Tensor, mean: Mapping[str, Tensor]) -> Tensor:
        variance = square - mean[name].square() if name in mean else square
        return variance.clamp_min(0).sqrt() + groups[name]["eps"]

    new_mean = pull(mean, squared=False)
    # The variance goes by the squared Jacobian and the squared mean is added after it: the difference of the two, of
    # which the centred variant takes the root, can then not become negative.
    variance = {name: (value - mean[name].square() if name in mean else value) for name, value in square.items()}
    new_square = {
        name: value.clamp_min(0) + (new_mean[name].square() if name in new_mean else 0)
        for name, value in pull(variance, squared=True).items()
    }
    new_buffer = pull(
        {name: value * divisor(name, square[name], mean) for name, value in buffer.items()}, squared=False
    )
    new_buffer = {name: value / divisor(name, new_square[name], new_mean) for name, value in new_buffer.items()}
    return {"grad_avg": new_mean, "square_avg": new_square, "momentum_buffer": new_buffer}


_RULES: dict[type[torch.optim.Optimizer], _Rule] = {
    torch.optim.RMSprop: _Rule(frozenset(("grad_avg", "square_avg", "momentum_buffer")), _carry_rmsprop)
}


def register_moments(
    optimizer_type: type[torch.optim.Optimizer],
    *,
    first: Iterable[str] = (),
    second: Iterable[str] = (),
    magnitude: Iterable[str] = (),
) -> None:
    """Say what the state of an optimizer holds, so that a cut can carry it over.

    Subclasses inherit the rule. Everything that is neither named here nor a single number (a step count, say) makes
    :func:`carry_moments` refuse the optimizer.

    Parameters
    ----------
    optimizer_type
        The class; a rule that it had before is replaced.
    first
        Keys of running means of the gradient: carried by the transposed Jacobian.
    second
        Keys of running means of the squared gradient: carried by the transposed, element-wise squared Jacobian.
    magnitude
        Keys of running magnitudes of the gradient: carried as the root of a second moment.

    Examples
    --------
    >>> class Lion(torch.optim.Optimizer):
    ...     pass
    >>> register_moments(Lion, first=["exp_avg"])
    """
    if not (isinstance(optimizer_type, type) and issubclass(optimizer_type, torch.optim.Optimizer)):
        raise TypeError(f"`optimizer_type` must be a subclass of torch.optim.Optimizer, got {optimizer_type!r}")
    _RULES[optimizer_type] = _moments_rule(first, second, magnitude)


for _type in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam):
    register_moments(_type, first=["exp_avg"], second=["exp_avg_sq", "max_exp_avg_sq"])

# The second moments that Adam has learnt belong to the gradients of the old model. After a cut that loses something the gradients are larger, and steps that are divided by the
# old ones too long: a tenth to a hundredth of the new second moment was seen. As two steps' worth they are a beginning, and what comes counts at once.
CARRIED_STEPS = 2


def _weigh_adam(state: _ParameterState, group: Mapping[str, Any]) -> None:
    """Let carried moments count as few steps; the bias correction, which begins anew there, makes the same of them as before."""
    steps = float(state.get("step", 0))
    if steps <= CARRIED_STEPS:
        return
    for keys, beta in zip((("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq")), group["betas"], strict=True):
        factor = (1 - float(beta) ** CARRIED_STEPS) / (1 - float(beta) ** steps)
        for key in keys:
            if key in state:
                state[key] = state[key] * factor
    step = state["step"]
    state["step"] = torch.full_like(step, CARRIED_STEPS) if isinstance(step, Tensor) else type(step)(CARRIED_STEPS)


for _type in (torch.optim.Adam, torch.optim.AdamW):
    _RULES[_type] = replace(_RULES[_type], weigh=_weigh_adam)
register_moments(torch.optim.SGD, first=["momentum_buffer"])
register_moments(torch.optim.Adagrad, second=["sum"])
register_moments(torch.optim.Adamax, first=["exp_avg"], magnitude=["exp_inf"])


def check_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Moments = "carry"
) -> None:
    """Raise unless the state that `optimizer` keeps of `parameters` can be carried through a cut; change nothing.

    Parameters
    ----------
    optimizer
        The optimizer that trains `parameters`.
    parameters
        The parameters that a cut would replace, by the names that errors shall use.
    moments
        ``"carry"``, or ``"reset"`` to forget the state.

    Raises
    ------
    UnknownOptimizerError
        If nobody said what the optimizer's state means; not with ``moments="reset"``.
    HsvError
        If a parameter that is trained is missing from the optimizer.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__qualname__}")
    if moments not in ("carry", "reset"):
        raise HsvError(f"`moments` must be 'carry' or 'reset', got {moments!r}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if parameter.requires_grad and id(parameter) not in held:
            raise HsvError(
                f"`optimizer` does not hold the parameter {name!r}, which requires a gradient: after the cut another "
                "optimizer would go on training the old one; pass the optimizer that trains it, or freeze it"
            )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnknownOptimizerError(
            "`optimizer` is an LBFGS, which keeps one flat history of all parameters: no part of it survives a change "
            "of shape; cut without an optimizer and make a new LBFGS after it"
        )
    if moments == "carry":
        _check_state(optimizer, parameters)


def _rule_of(optimizer: torch.optim.Optimizer) -> _Rule | None:
    return next((_RULES[base] for base in type(optimizer).__mro__ if base in _RULES), None)


def _check_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    kind = type(optimizer).__qualname__
    rule = _rule_of(optimizer)
    if rule is None:
        known = ", ".join(sorted(known_type.__name__ for known_type in _RULES))
        raise UnknownOptimizerError(
            f"`optimizer` is a {kind}, of which it is not known how its state changes with the coordinates of a "
            f"parameter (known: {known}); call register_moments({kind}, ...), or pass moments='reset'"
        )
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if key not in rule.keys and isinstance(value, Tensor) and value.ndim > 0:
                raise UnknownOptimizerError(
                    f"`optimizer` ({kind}) keeps {key!r} of shape {tuple(value.shape)} for {name!r}, and only "
                    f"{sorted(rule.keys)} are known to be moments; call register_moments({kind}, ...), or pass "
                    "moments='reset'"
                )


def carried_state(
    optimizer: torch.optim.Optimizer, adapter: LayerAdapter, cut: Cut, old: Mapping[str, nn.Parameter]
) -> dict[str, _ParameterState]:
    """The optimizer's state of a layer's parameters in the coordinates after `cut`; nothing is changed.

    Parameters
    ----------
    optimizer
        An optimizer that :func:`check_optimizer` accepts.
    adapter, cut
        The layer's adapter, and the cut.
    old
        The layer's parameters that the cut replaces, by name.

    Returns
    -------
    dict
        The new state of each parameter that had one. Entries that are not moments are kept, as step counts are but for Adam and AdamW.
    """
    states = {name: optimizer.state[parameter] for name, parameter in old.items() if optimizer.state.get(parameter)}
    rule = _rule_of(optimizer)
    if not states or rule is None:
        return {}
    groups = {
        name: group
        for group in optimizer.param_groups
        for name, parameter in old.items()
        if any(parameter is held for held in group["params"])
    }
    new = {name: dict(state) for name, state in states.items()}
    for key, tensors in rule.carry(_PullBack(adapter, cut, old, states), groups).items():
        for name, tensor in tensors.items():
            new[name][key] = _joined(tensor, old[name]).contiguous()
    if rule.weigh is not None:
        for name, state in new.items():
            rule.weigh(state, groups[name])
    return new


def carry_moments(
    optimizer: torch.optim.Optimizer,
    adapter: LayerAdapter,
    cut: Cut,
    replaced: Replaced,
    moments: Moments = "carry",
) -> None:
    r"""Put the new parameters of a cut layer into the optimizer, and its moments into the new coordinates.

    Moments are covectors. With the old parameters of the kept part as a function of the new ones,
    ``p_old = g(p_new)``, first moments become ``(dg/dp_new)^T m`` and second moments ``((dg/dp_new)^2)^T v``, with the
    square taken element by element; the second is an approximation, for it forgets the correlations. On a cut that
    loses nothing the carried first moment of a gradient is the gradient of the small model. With Adam and AdamW the moments that are
    carried count as two steps: their values after the bias correction are the carried ones, and the gradients of the small model, which after a cut are larger, soon
    outweigh them. Other step counts stay, learning rates and all other options too, and so does the order of the groups.

    Parameters
    ----------
    optimizer
        SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, RMSprop, a subclass of one of them, or what
        :func:`register_moments` was told of. ``foreach``, ``fused`` and ``capturable`` make no difference.
    adapter, cut
        The layer's adapter, and the cut that was planned for it.
    replaced
        ``{name: (old, new)}`` as `adapter.apply` returned it.
    moments
        ``"carry"``, or ``"reset"`` to begin with no state for the new parameters.

    Raises
    ------
    UnknownOptimizerError
        If the state cannot be carried; nothing has been changed then.
    """
    old = {name: before for name, (before, _) in replaced.items() if before is not None}
    check_optimizer(optimizer, old, moments)
    states = carried_state(optimizer, adapter, cut, old) if moments == "carry" else {}
    replace_in_optimizer(optimizer, replaced)
    for name, (_, new) in replaced.items():
        if new is not None and name in states:
            optimizer.state[new] = states[name]


def carry_gradients(adapter: LayerAdapter, cut: Cut, replaced: Replaced) -> None:
    """Give the new parameters of a cut layer the gradients that the old ones have accumulated, in the new coordinates.

    A gradient is a covector as a first moment is, so that a cut between two micro-batches loses no more of the first one's gradient than of the
    model. Gradients that an optimizer step has used already are carried too; whoever clears them after it clears the new ones.
    """
    old = {name: before for name, (before, _) in replaced.items() if before is not None}
    if all(parameter.grad is None for parameter in old.values()):
        return
    covectors = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()
        for name, parameter in old.items()
    }
    carried = adapter.pull_back(cut, covectors, squared=False)
    for name, (before, new) in replaced.items():
        if before is not None and before.grad is not None and new is not None and name in carried:
            new.grad = carried[name].detach().to(new).contiguous()


def replace_in_optimizer(optimizer: torch.optim.Optimizer, replaced: Replaced) -> None:
    """Put a layer's new parameters where its old ones stood; what the optimizer knew of the old ones is forgotten.

    A parameter that was not there before joins the group of the first one that was replaced and that the optimizer holds; one that is gone leaves its group. Where a
    group keeps names (``param_names``, of an optimizer made from ``named_parameters()``) they follow.
    """
    mapping = {old: new for old, new in replaced.values() if old is not None}
    added = {name: new for name, (old, new) in replaced.items() if old is None and new is not None}
    _replace_in_groups(optimizer, mapping)
    if not added:
        return
    for name, (old, new) in replaced.items():
        for group in optimizer.param_groups if old is not None and new is not None else ():
            place = next((i for i, parameter in enumerate(group["params"]) if parameter is new), None)
            if place is not None:
                if "param_names" in group:
                    given = group["param_names"][place]
                    prefix = given.removesuffix(name) if given.endswith(name) else f"{given}."
                    group["param_names"].extend(prefix + inner for inner in added)
                group["params"].extend(added.values())
                return


def _replace_in_groups(optimizer: torch.optim.Optimizer, mapping: Mapping[nn.Parameter, nn.Parameter | None]) -> None:
    for group in optimizer.param_groups:
        places = [mapping.get(parameter, parameter) for parameter in group["params"]]
        if "param_names" in group:
            named = zip(group["param_names"], places, strict=True)
            group["param_names"][:] = [name for name, parameter in named if parameter is not None]
        group["params"][:] = [parameter for parameter in places if parameter is not None]
    for old in mapping:
        optimizer.state.pop(old, None)


def replace_parameters(
    model: nn.Module,
    mapping: Mapping[nn.Parameter, nn.Parameter | None],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Put new parameters wherever old ones stand: in every module of the model, under every name, and in the optimizer.

    The new parameter takes over `requires_grad` and the Python attributes of the old one. What the optimizer knew of
    the old one is forgotten; :func:`carry_moments` carries it over.

    Parameters
    ----------
    model
        The model; changed in place.
    mapping
        ``{old: new}``; new is None for a parameter that is gone. An old parameter that stands nowhere is not an error.
    optimizer
        Its parameter groups keep their order and options.

    Warns
    -----
    UserWarning
        If an old parameter has gradient hooks: they stay with it, and must be registered anew.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in mapping:
                module._parameters[name] = mapping[parameter]
    for old, new in mapping.items():
        if new is not None:
            take_over_attributes(old, new)
    if optimizer is not None:
        _replace_in_groups(optimizer, mapping)


def take_over_attributes(old: nn.Parameter, new: nn.Parameter) -> None:
    """Give `new` the flag `requires_grad` and the Python attributes of `old`; warn of hooks, which cannot be moved."""
    new.requires_grad_(old.requires_grad)
    new.__dict__.update(old.__dict__)
    if old._backward_hooks or getattr(old, "_post_accumulate_grad_hooks", None):
        warnings.warn(
            f"a parameter of shape {tuple(old.shape)} was replaced by one of shape {tuple(new.shape)}; its gradient "
            "hooks stay with the old one: register them again (the event's `replaced` has both)",
            UserWarning,
            stacklevel=3,
        )


def _recurrent_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for layer in compressible_layers(model).values():
        parameters = dict(layer.named_parameters())  # some layers have a parameter only in some of their forms
        yield from (parameters[name] for name in adapter_of(layer).recurrent_parameters if name in parameters)


def parameter_groups(
    model: nn.Module, *, lr: float, ssm_lr_factor: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the recurrent parameters apart from the rest.

    The recurrent ones (those that a layer's adapter names in `recurrent_parameters`: they make the poles and what enters
    the states) are trained with ``lr * ssm_lr_factor`` and without weight decay, for decay would move the poles; the rest
    with `lr` and `weight_decay`. Parameters that need no gradient are left out.

    Parameters
    ----------
    model
        A model with at least one layer that has an adapter.
    lr
        Learning rate of the rest, positive.
    ssm_lr_factor
        What the rate of the recurrent parameters is multiplied by, positive.
    weight_decay
        Weight decay of the rest, not negative.

    Returns
    -------
    list of dict
        ``[recurrent, rest]``, each with ``params``, ``lr``, ``weight_decay`` and ``name``; an empty one is left out.

    Raises
    ------
    HsvError
        If the model has no layer with an adapter, or a number is out of its range.

    Examples
    --------
    >>> import hsv_torch
    >>> model = torch.nn.Sequential(hsv_torch.LRU(4, 8), torch.nn.Linear(4, 2))
    >>> groups = hsv_torch.parameter_groups(model, lr=1e-3, ssm_lr_factor=0.5, weight_decay=0.05)
    >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    [('recurrent', 0.0005, 0.0), ('rest', 0.001, 0.05)]
    """
    for argument, value, least in (("lr", lr, 0.0), ("ssm_lr_factor", ssm_lr_factor, 0.0)):
        if not (math.isfinite(value) and value > least):
            raise HsvError(f"`{argument}` must be a positive number, got {value!r}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise HsvError(f"`weight_decay` must be a number not below 0, got {weight_decay!r}")
    recurrent_ids = {id(parameter) for parameter in _recurrent_parameters(model)}
    if not recurrent_ids:
        raise HsvError(
            "`model` has no layer that a known adapter serves; give all parameters to the optimizer as they are, or "
            "register an adapter for the layer with hsv_torch.register_adapter"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if id(parameter) in recurrent_ids],
            "lr": lr * ssm_lr_factor,
            "weight_decay": 0.0,
            "name": "recurrent",
        },
        {
            "params": [parameter for parameter in trained if id(parameter) not in recurrent_ids],
            "lr": lr,
            "weight_decay": weight_decay,
            "name": "rest",
        },
    ]
    return [group for group in groups if group["params"]]
