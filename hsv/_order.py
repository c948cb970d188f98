"""How many states to keep: each rule turns Hankel singular values into an order."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsv._arguments import as_number
from hsv._array import is_array
from hsv._errors import DtypeError, HsvError, OrderError


class Rule(abc.ABC):
    """A rule that chooses an order for each system from its Hankel singular values."""

    @abc.abstractmethod
    def choose(self, sigma: np.ndarray) -> np.ndarray:
        """Return the order for each system.

        Parameters
        ----------
        sigma : numpy.ndarray
            Shape ``(..., n)``, float64, descending, not negative.

        Returns
        -------
        numpy.ndarray
            Shape ``(...)``, int64, between 0 (nothing to keep: all values are zero) and ``n``.
        """


@dataclass(frozen=True)
class Order(Rule):
    """Keep exactly `n_states` states.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.Order(2).choose(numpy.array([3.0, 2.0, 1.0])))
    2
    """

    n_states: int

    def __post_init__(self) -> None:
        if isinstance(self.n_states, bool) or not isinstance(self.n_states, (int, np.integer)):
            raise DtypeError(
                f"Order takes an int, got {self.n_states!r}; a share of the Hankel sum is hsv.HankelSum(keep=...)"
            )
        if self.n_states < 1:
            raise OrderError(f"Order must be at least 1, got {self.n_states}")

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        n = sigma.shape[-1]
        if self.n_states > n:
            raise OrderError(
                f"Order must be in [1, {n}], got {self.n_states}; pass hsv.ErrorBound(...) to let the bound choose"
            )
        return np.where(sigma[..., 0] > 0, self.n_states, 0)


@dataclass(frozen=True, init=False)
class _Share(Rule):
    """The least order whose discarded part is at most the share `discard` of a sum."""

    discard: float

    def __init__(self, *, keep: float | None = None, discard: float | None = None) -> None:
        name = type(self).__name__
        if (keep is None) == (discard is None):
            raise DtypeError(
                f"{name} takes either keep=... or discard=..., got {'both' if keep is not None else 'neither'}"
            )
        given, value = ("keep", keep) if keep is not None else ("discard", discard)
        checked = _number(f"{name}({given}=...)", value)
        if not 0 <= checked <= 1 or checked == (0 if given == "keep" else 1):
            allowed = "(0, 1]" if given == "keep" else "[0, 1)"
            raise OrderError(f"{name}({given}=...) is a share in {allowed}, got {value!r}")
        object.__setattr__(self, "discard", checked if given == "discard" else 1.0 - checked)

    def _weights(self, sigma: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        top = np.maximum(sigma[..., :1], np.finfo(np.float64).tiny)
        tails = _tails(self._weights(sigma / top))
        # A share like 0.1 of ten equal values must discard one of them: allow the rounding of the sums, not more.
        allowed = self.discard * tails[..., :1] * (1 + sigma.shape[-1] * np.finfo(np.float64).eps)
        return np.asarray(np.argmax(tails <= allowed, axis=-1))  # tails[..., n] = 0 always meets it


class HankelSum(_Share):
    """The least order that keeps the share `keep` (or loses at most `discard`) of the plain sum of Hankel singular values.

    ``discard`` is the tolerance ``tau`` of CompreSSM: ``r = min k`` with ``sum_{i<=k} sigma_i >= (1 - tau) sum sigma``.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.HankelSum(discard=0.1).choose(numpy.array([6.0, 3.0, 0.5, 0.5])))
    2
    """

    def _weights(self, sigma: np.ndarray) -> np.ndarray:
        return sigma


class HankelEnergy(_Share):
    """The least order that keeps the share `keep` (or loses at most `discard`) of the sum of squared Hankel singular values.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.HankelEnergy(keep=0.99).choose(numpy.array([10.0, 1.0, 0.1])))
    1
    """

    def _weights(self, sigma: np.ndarray) -> np.ndarray:
        return sigma * sigma


@dataclass(frozen=True)
class Threshold(Rule):
    """Keep the values above `relative` times the largest one.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.Threshold(1e-2).choose(numpy.array([10.0, 1.0, 0.1])))
    2
    """

    relative: float

    def __post_init__(self) -> None:
        relative = _number("Threshold", self.relative)
        if not 0 < relative < 1:
            raise OrderError(f"Threshold is relative to the largest value and must be in (0, 1), got {self.relative!r}")
        object.__setattr__(self, "relative", relative)

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(sigma > self.relative * sigma[..., :1], axis=-1))


@dataclass(frozen=True)
class ErrorBound(Rule):
    """The least order, at least 1, whose H-infinity error bound, twice the sum of the discarded values, is at most `bound` (absolute).

    A number, or an array without axes of any library: ``hsv.ErrorBound(1e-3 * hsv.hinf_norm(sys))``.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.ErrorBound(0.5).choose(numpy.array([10.0, 1.0, 0.2])))
    2
    """

    bound: float

    def __post_init__(self) -> None:
        bound = _number("ErrorBound", self.bound)
        if not 0 < bound < math.inf:
            raise OrderError(f"ErrorBound must be a positive finite number, got {self.bound!r}")
        object.__setattr__(self, "bound", bound)

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        least = np.argmax(2 * _tails(sigma) <= self.bound, axis=-1)
        return np.maximum(least, sigma[..., 0] > 0)


@dataclass(frozen=True)
class LargestGap(Rule):
    """Cut where a value is largest relative to the next one; values below the rounding errors of the largest one count as equal.

    Where all values are equal nothing is cut.

    Parameters
    ----------
    at_most : int, optional
        Look only at orders up to this one.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.LargestGap().choose(numpy.array([6.0, 3.0, 0.1, 0.05])))
    2
    """

    at_most: int | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None:
            Order(self.at_most)  # raises what there is to raise

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        n = sigma.shape[-1]
        floor = np.maximum(n * np.finfo(np.float64).eps * sigma[..., :1], np.finfo(np.float64).tiny)
        values = np.maximum(sigma, floor)
        gaps = np.concatenate([values[..., :-1] / values[..., 1:], np.ones_like(values[..., :1])], axis=-1)
        gaps = gaps[..., : self.at_most]
        order = np.where(gaps.max(axis=-1) > 1, np.argmax(gaps, axis=-1) + 1, gaps.shape[-1])
        return np.where(sigma[..., 0] > 0, order, 0)


@dataclass(frozen=True)
class PrefixShare(Rule):
    r"""Keep values while each is at least the share `least` of the sum of all up to it, :math:`s_k \ge` ``least`` :math:`\sum_{i \le k} s_i`.

    The left-hand side over the sum is LAST's and AIRE-Prune's normalised score: it falls with :math:`k` and has the same meaning in every layer of a
    network, so that one share serves all of them.

    Examples
    --------
    >>> import hsv, numpy
    >>> int(hsv.PrefixShare(0.2).choose(numpy.array([6.0, 3.0, 2.0, 1.0])))          # 6/6, 3/9, 2/11
    2
    """

    least: float

    def __post_init__(self) -> None:
        least = _number("PrefixShare", self.least)
        if not 0 < least <= 1:
            raise OrderError(f"PrefixShare is a share of a sum and must be in (0, 1], got {self.least!r}")
        object.__setattr__(self, "least", least)

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum((sigma >= self.least * np.cumsum(sigma, axis=-1)) & (sigma > 0), axis=-1))


def as_rule(rule: Rule | int) -> Rule:
    """Return the rule; an int means :class:`Order`.

    Raises
    ------
    DtypeError
        A float or anything else: is it an order, a share or a bound?

    Examples
    --------
    >>> import hsv
    >>> hsv.as_rule(12)
    Order(n_states=12)
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, (int, np.integer)) and not isinstance(rule, bool):
        return Order(int(rule))
    known = ", ".join(sorted(f"hsv.{cls.__name__}" for cls in _RULES))
    raise DtypeError(f"rule must be an int (the order) or one of {known}; got {rule!r}")


_RULES = (Order, HankelSum, HankelEnergy, Threshold, ErrorBound, LargestGap, PrefixShare)


def _tails(values: np.ndarray) -> np.ndarray:
    """``tails[..., k] = sum_{i >= k} values[..., i]`` for k = 0 .. n, summed from the small end."""
    sums = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros((*values.shape[:-1], 1))], axis=-1)


def _number(name: str, value: Any) -> float:
    """A float, also of an array without axes: what norms and bounds come in."""
    number = as_number(value)
    if number is None:
        hint = ": a rule serves a whole batch, reduce its systems one by one" if is_array(value) else ""
        raise DtypeError(f"{name} takes a number, got {value!r}{hint}")
    if math.isnan(number):
        raise HsvError(f"{name} takes a number, got nan")
    return number
