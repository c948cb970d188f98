"""How many states each layer keeps: one budget for all of them, and what sizes are allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np

import hsv
from hsv import DtypeError, HsvError, OrderError

Share = Literal["sum", "prefix"]
Limit = int | Mapping[str, int]
_UNITS = ("states", "parameters", "flops", "seconds")


@dataclass(frozen=True)
class Sizes:
    """What numbers of states layers may be cut to, whatever the rule chooses.

    Parameters
    ----------
    floor, ceiling
        Least and largest number of states of a layer: one number, or a mapping from patterns of layers' names to numbers, of which the first that matches
        counts. A layer with fewer states than its floor is left alone; a ceiling may ask for fewer states than the rule.
    multiple_of
        Sizes are rounded up to a multiple of this (as kernels like them), but never above what a layer has.
    uniform
        Give all layers one size, the largest that any of them is to have: some code has one number of states for a whole model.

    Raises
    ------
    HsvError
        A number below 1, or a floor above the ceiling.

    Examples
    --------
    >>> Sizes(floor=4, multiple_of=8).adjust({"a": 3, "b": 21}, now={"a": 64, "b": 64})
    {'a': 8, 'b': 24}
    """

    floor: Limit = 1
    ceiling: Limit | None = None
    multiple_of: int = 1
    uniform: bool = False

    def __post_init__(self) -> None:
        for name in ("floor", "ceiling"):
            limit = getattr(self, name)
            for value in limit.values() if isinstance(limit, Mapping) else [] if limit is None else [limit]:
                _check_count(name, value)
        _check_count("multiple_of", self.multiple_of)
        if isinstance(self.floor, int) and isinstance(self.ceiling, int) and self.floor > self.ceiling:
            raise HsvError(f"`floor` must not be above `ceiling`, got {self.floor} and {self.ceiling}")

    def check(self, layers: Mapping[str, Any]) -> None:
        """Raise if a pattern matches none of the layers."""
        for name in ("floor", "ceiling"):
            limit = getattr(self, name)
            for pattern in limit if isinstance(limit, Mapping) else ():
                if not any(fnmatchcase(layer, pattern) for layer in layers):
                    raise HsvError(
                        f"`{name}`: {pattern!r} matches no layer that is to be cut; there are {list(layers)}"
                    )

    def adjust(self, chosen: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
        """Return allowed sizes near those that were chosen; `now` has what each layer has."""
        sizes = {}
        for name, size in chosen.items():
            least, largest = _of(self.floor, name, 1), _of(self.ceiling, name, now[name])
            size = min(max(size, least), largest)
            sizes[name] = min(-(-size // self.multiple_of) * self.multiple_of, now[name])
        if self.uniform and sizes:
            largest = max(sizes.values())
            sizes = {name: min(largest, now[name]) for name in sizes}
        return sizes


@dataclass(frozen=True)
class Budget:
    r"""One budget for all layers together, shared out by one level of importance that serves them all.

    The state that comes :math:`k`-th in a layer's spectrum :math:`\sigma_1 \ge \sigma_2 \ge \dots` has the level

    .. math::
        \ell_k = \sum_{i \ge k} \sigma_i \Big/ \sum_i \sigma_i \quad\text{("sum")}, \qquad
        \ell_k = \min_{j \le k} \sigma_j \Big/ \sum_{i \le j} \sigma_i \quad\text{("prefix")}

    and all states stay whose level is above one threshold, the lowest that the budget allows; it is found by bisection. "sum" loses the same share
    of the Hankel sum in every layer, "prefix" is the normalisation of LAST and AIRE-Prune.

    Give exactly one of `states`, `parameters`, `flops`, `seconds` and `keep`.

    Parameters
    ----------
    states
        Number of states of all layers that are cut, added up.
    parameters
        Number of real parameters whose number follows the states, added up; taken as proportional to the states of a layer.
    flops
        Operations a time step and sequence that follow the states, two for each such parameter.
    seconds, measure
        Time that ``measure(model)`` returns (of a training step, say), called with copies of the model that are cut for trial: about ten times. Whatever it
        measures should not grow when states go.
    keep, of
        A share in (0, 1) of what the layers have when the budget is first used: `of` states, parameters or flops.
    share
        ``"sum"`` or ``"prefix"``.
    gradual
        With several attempts: approach the budget in equal ratios, so that the last attempt meets it. False: meet it at the first attempt.

    Raises
    ------
    HsvError
        Not exactly one amount, or an impossible one; later, if layers cannot be made small enough.

    References
    ----------
    Gwak et al., "Layer-adaptive state pruning for deep state space models", NeurIPS 2024, for the second level.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> model = torch.nn.Sequential(hsv_torch.LRU(4, 32), hsv_torch.LRU(4, 64))
    >>> report = hsv_torch.compress_(model, hsv_torch.Budget(states=24))
    >>> model[0].n_states + model[1].n_states
    24
    """

    states: int | None = None
    parameters: int | None = None
    flops: int | None = None
    seconds: float | None = None
    measure: Callable[[Any], float] | None = None
    keep: float | None = None
    of: Literal["states", "parameters", "flops"] = "states"
    share: Share = "sum"
    gradual: bool = True

    def __post_init__(self) -> None:
        given = [name for name in (*_UNITS, "keep") if getattr(self, name) is not None]
        if len(given) != 1:
            raise HsvError(
                f"a Budget takes exactly one of {', '.join(_UNITS)} and keep, got {', '.join(given) or 'none of them'}"
            )
        for name in ("states", "parameters", "flops"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name, upper in (("seconds", math.inf), ("keep", 1.0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < upper):
                raise HsvError(f"`{name}` must be a number in (0, {upper:g}), got {value!r}")
        if (self.seconds is None) != (self.measure is None):
            raise HsvError("`seconds` and `measure` go together: `measure(model)` returns the seconds that are meant")
        if self.of not in ("states", "parameters", "flops"):
            raise HsvError(f"`of` must be 'states', 'parameters' or 'flops', got {self.of!r}")
        if self.share not in get_args(Share):
            raise HsvError(f"`share` must be {' or '.join(map(repr, get_args(Share)))}, got {self.share!r}")

    @property
    def unit(self) -> str:
        """What the budget counts."""
        return self.of if self.keep is not None else next(u for u in _UNITS if getattr(self, u) is not None)

    @property
    def amount(self) -> float:
        """The number that was given."""
        return next(float(v) for v in (getattr(self, name) for name in (*_UNITS, "keep")) if v is not None)

    def costs_per_state(self, states: Mapping[str, int], parameters: Mapping[str, int]) -> dict[str, float]:
        """What one state of each layer costs, in the unit of the budget; not for seconds."""
        each = {name: parameters[name] / states[name] for name in states}
        factor = {"states": 0.0, "parameters": 1.0, "flops": 2.0}[self.unit]
        return {name: factor * cost if factor else 1.0 for name, cost in each.items()}

    def total(self, first: float, now: float, remaining: int) -> float:
        """The amount to meet at an attempt after which `remaining - 1` will follow, from the cost at the first one and the cost now."""
        goal = first * self.amount if self.keep is not None else self.amount
        if not self.gradual or remaining <= 1 or goal >= now:
            return goal
        return float(now * (goal / now) ** (1 / remaining))


def levels(sigma: np.ndarray, n_states: int, share: Share) -> np.ndarray:
    """The level of each state, ``(n_states,)``, descending; of a batch of systems the highest one."""
    values = np.asarray(sigma, dtype=np.float64).reshape(-1, sigma.shape[-1])
    if values.shape[-1] == 2 * n_states:  # of the real system: two values a state
        values = values.reshape(len(values), n_states, 2).sum(-1)
    total = values.sum(-1, keepdims=True)
    total[total == 0] = 1.0
    if share == "sum":
        level = np.cumsum(values[:, ::-1], axis=-1)[:, ::-1] / total
    else:
        sums = np.cumsum(values, axis=-1)
        level = np.minimum.accumulate(values / np.where(sums > 0, sums, 1.0), axis=-1)
    return np.asarray(level.max(axis=0))


def share_out(
    level: Mapping[str, np.ndarray],
    cost: Callable[[dict[str, int]], float],
    total: float,
    sizes: Callable[[Mapping[str, int]], dict[str, int]],
    unit: str,
) -> dict[str, int]:
    """The sizes of the lowest threshold whose cost is at most `total`.

    Raises
    ------
    OrderError
        Even the smallest sizes that are allowed cost more.
    """
    thresholds = np.unique(np.concatenate([np.concatenate(list(level.values())), [0.0]]))  # ascending

    def at(threshold: float) -> dict[str, int]:
        return sizes({name: max(1, int(np.sum(values > threshold))) for name, values in level.items()})

    best = at(thresholds[-1])
    least = cost(best)
    if least > total:
        raise OrderError(
            f"the budget of {total:g} {unit} cannot be met: the smallest sizes that are allowed, {best}, take {least:g}; raise it, or lower "
            "the floors"
        )
    low, high = -1, len(thresholds) - 1  # the cost at `high` is known to be allowed
    while high - low > 1:
        middle = (low + high) // 2
        found = at(thresholds[middle])
        if cost(found) <= total:
            high, best = middle, found
        else:
            low = middle
    return best


def margin(rule: hsv.Rule | Budget, sigma: np.ndarray) -> float | None:
    """How far the rule is from choosing another order: the distance of its limit to the nearest number that is compared with it; None if it has no limit.

    Parameters
    ----------
    rule
        What chose.
    sigma
        Hankel singular values, descending; of a batch of systems the smallest margin is returned.
    """
    values = np.asarray(sigma, dtype=np.float64).reshape(-1, sigma.shape[-1])
    values = values[values[:, 0] > 0]
    if values.size == 0 or values.shape[-1] == 1:
        return None
    values = values / values[:, :1]
    if isinstance(rule, hsv.HankelSum | hsv.HankelEnergy):
        weights = values if isinstance(rule, hsv.HankelSum) else values**2
        tails = np.cumsum(weights[:, ::-1], axis=-1)[:, ::-1]
        compared, limit = tails[:, 1:] / tails[:, :1], rule.discard
    elif isinstance(rule, hsv.ErrorBound):
        original = np.asarray(sigma, dtype=np.float64).reshape(-1, sigma.shape[-1])
        compared, limit = 2 * np.cumsum(original[:, ::-1], axis=-1)[:, ::-1][:, 1:] / rule.bound, 1.0
    elif isinstance(rule, hsv.Threshold):
        compared, limit = values[:, 1:], rule.relative
    elif isinstance(rule, hsv.PrefixShare):
        compared, limit = values[:, 1:] / np.cumsum(values, axis=-1)[:, 1:], rule.least
    else:
        return None
    return float(np.abs(compared - limit).min())


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DtypeError(f"`{name}` must be an int, got {value!r}")
    if value < 1:
        raise HsvError(f"`{name}` must be at least 1, got {value}")


def _of(limit: Limit | None, name: str, otherwise: int) -> int:
    if limit is None:
        return otherwise
    if isinstance(limit, int):
        return limit
    return next((value for pattern, value in limit.items() if fnmatchcase(name, pattern)), otherwise)
