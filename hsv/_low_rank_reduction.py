"""Hankel singular values and reductions of large systems from low-rank factors of their Gramians."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from hsv._array import copied, real, round_to, widen
from hsv._errors import HsvError, OrderError
from hsv._large_systems import Bases
from hsv._order import ErrorBound, Order, Rule
from hsv._pencils import Pencil
from hsv._reduction import (
    Reduction,
    Rounding,
    balancing_bases,
    check_stability,
    choose_orders,
    error_bound,
    numerical_rank,
    round_up,
)
from hsv._scaling import exponents, shifted
from hsv._systems import StateSpace

if TYPE_CHECKING:
    from hsv._low_rank import LowRankGramians

_EPS = float(np.finfo(np.float64).eps)


class AdiSide(Protocol):
    """What the estimate of the missing values looks at: one of the two iterations."""

    widths: list[int]
    levels: list[float]

    def factor(self) -> np.ndarray:
        """The columns that the steps made, in turn."""


class _Balancing(NamedTuple):
    """``Z_o^H E Z_c = U diag(sigma) V^H``; one zero where a factor has no column."""

    U: np.ndarray
    sigma: np.ndarray  # (k,)
    Vh: np.ndarray
    rounding: Rounding


def _balancing(gramians: LowRankGramians) -> _Balancing:
    control, observe = gramians.controllability.factor, gramians.observability.factor
    image = gramians.system._pencil.mass(control)
    first, second = exponents(image), exponents(observe)
    image, observe, exponent = shifted(image, -first), shifted(observe, -second), int(first + second)
    with np.errstate(over="ignore"):
        noise = np.ldexp(_EPS * np.linalg.norm(image) * np.linalg.norm(observe), exponent)
    columns = max(control.shape[1], observe.shape[1], 1)
    rounding = Rounding(columns * noise, columns * noise + gramians.left_out)
    if min(control.shape[1], observe.shape[1]) == 0:
        return _Balancing(np.zeros((observe.shape[1], 1)), np.zeros(1), np.zeros((1, control.shape[1])), rounding)
    U, sigma, Vh = np.linalg.svd(observe.conj().T @ image, full_matrices=False)
    with np.errstate(over="ignore"):
        sigma = np.ldexp(sigma, exponent)
    if not np.isfinite(sigma[0] * columns):
        raise HsvError(
            "the Hankel singular values are beyond the range of double precision; choose other units for the inputs or outputs"
        )
    n = gramians.system.n_states  # factors of small systems may have more columns than that
    return _Balancing(U[:, :n], sigma[:n], Vh[:n], rounding)


def left_out(pencil: Pencil, control: AdiSide, observe: AdiSide) -> float:
    """An estimate of the sum of the Hankel values that the factors do not have.

    The sum of the values that some steps gave falls short of the whole as the residual does: nearly in proportion to it. To be careful its square root is taken, from the
    step when the residual was a hundred times as large.
    """
    Zc, Zo = control.factor(), observe.factor()
    if min(Zc.shape[1], Zo.shape[1]) == 0:
        return 0.0
    M = Zo.conj().T @ pencil.mass(Zc)
    return _rest(M, control) + _rest(M.conj().T, observe)


def _rest(M: np.ndarray, side: AdiSide) -> float:
    """The part of one side, whose columns those of `M` are."""
    if side.levels[-1] == 0:
        return 0.0
    before = max((k for k, level in enumerate(side.levels) if level >= 10 * side.levels[-1]), default=0)
    columns = sum(side.widths[:before])
    gained = np.linalg.norm(M, "nuc") - (np.linalg.norm(M[:, :columns], "nuc") if columns else 0.0)
    ratio = side.levels[-1] / side.levels[before]
    return max(float(gained), 0.0) * ratio / (1 - ratio)


def hankel_values(gramians: LowRankGramians) -> np.ndarray:
    """Singular values of ``Z_o^H E Z_c``, in the system's precision."""
    sigma = _balancing(gramians).sigma
    return np.asarray(round_to(sigma, real(gramians.system.B)))


def truncation(gramians: LowRankGramians, rule: Rule, bases: Bases, *, stacklevel: int) -> Reduction:
    """The projection of the system on the leading states of a balanced realisation."""
    sys = gramians.system
    parts = _balancing(gramians)
    orders, _, notes = _orders(gramians, rule, parts, stacklevel + 1)
    reduced, left, right = _project(gramians, parts, max(int(orders), 1), bases, empty=int(orders) == 0)
    A, B, C = (round_to(x, sys.B) for x in reduced)
    small = StateSpace(A, B, C, copied(sys.D), dt=sys.dt)
    _check_stability(gramians, small, parts, orders)
    return _reduction(gramians, small, orders, parts, round_to(left, sys.B), round_to(right, sys.B), notes)


def steady_state_reduction(gramians: LowRankGramians, rule: Rule, *, stacklevel: int) -> Reduction:
    """Singular perturbation of the balanced realisation that the factors have, at their numerical rank."""
    sys = gramians.system
    parts = _balancing(gramians)
    orders, rank, notes = _orders(gramians, rule, parts, stacklevel + 1)
    r = max(int(orders), 1)
    (A, B, C), _, _ = _project(gramians, parts, rank, balancing_bases, empty=int(orders) == 0)
    D = widen(sys.D)
    fast = A[r:, r:] - np.eye(rank - r) if sys.is_discrete else A[r:, r:]
    X, Y = np.linalg.solve(fast, A[r:, :r]), np.linalg.solve(fast, B[r:])
    result = (A[:r, :r] - A[:r, r:] @ X, B[:r] - A[:r, r:] @ Y, C[:, :r] - C[:, r:] @ X, D - C[:, r:] @ Y)
    small = StateSpace(*(round_to(x, sys.B) for x in result), dt=sys.dt)
    _check_stability(gramians, small, parts, orders)
    return _reduction(gramians, small, orders, parts, None, None, notes)


def _orders(
    gramians: LowRankGramians, rule: Rule, parts: _Balancing, stacklevel: int
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """The order, how many values stand above rounding errors (at least one), and what is remarkable."""
    sigma, n = parts.sigma, gramians.system.n_states
    if isinstance(rule, Order) and rule.n_states > n:  # n is not the number of values, which rules see
        raise OrderError(
            f"Order must be in [1, {n}], the number of states, got {rule.n_states}; pass hsv.ErrorBound(...) to let the bound choose"
        )
    if isinstance(rule, Order) and sigma.size < rule.n_states:
        sigma = np.concatenate([sigma, np.zeros(rule.n_states - sigma.size)])  # capped, and said, as for a dense system
    if isinstance(rule, ErrorBound):  # room for what the bound allows beside the discarded values
        least = float(error_bound(np.zeros(1), np.zeros((), dtype=np.int64), parts.rounding))
        room = rule.bound * (1 - 1e-9) - least
        if room <= 0:
            raise OrderError(
                f"no order meets ErrorBound({rule.bound:g}): what the low-rank factors leave out takes {least:.3g} of it; compute them with a smaller tolerance "
                "(hsv.low_rank_gramians)"
            )
        rule = ErrorBound(room)
    orders, notes = choose_orders(rule, sigma, stacklevel=stacklevel + 1, rounding=parts.rounding)
    note = (
        f"the error bound counts the {parts.sigma.size} Hankel values that the low-rank factors have, and an estimate of the sum of all others ({gramians.left_out:.1e}); "
        "it is no proof"
    )
    return orders, max(int(numerical_rank(sigma, parts.rounding)), 1), (*notes, note)


def _project(
    gramians: LowRankGramians, parts: _Balancing, r: int, bases: Bases, *, empty: bool
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """``(A_r, B_r, C_r)`` and the projections, with ``left^H E right = I``; a state that nothing enters or leaves where nothing is kept."""
    sys, pencil = gramians.system, gramians.system._pencil
    if empty:
        nothing = np.zeros((sys.n_states, 1), dtype=parts.U.dtype)
        pole = np.asarray([[0.0 if sys.is_discrete else -1.0]], dtype=parts.U.dtype)
        return (pole, nothing[:1, :] @ np.zeros((1, sys.n_inputs)), np.zeros((sys.n_outputs, 1))), nothing, nothing
    observe = gramians.observability.factor @ parts.U[:, :r]
    control = gramians.controllability.factor @ parts.Vh[:r].conj().T
    left, right = bases(observe, control, parts.sigma[:r], np.ones(r))
    # Removes the rounding errors of left^H E right, which grow like eps sigma_1 / sigma_r.
    left = left @ np.linalg.inv(left.conj().T @ pencil.mass(right)).conj().T
    left_h = left.conj().T
    reduced = (left_h @ pencil.apply(right), left_h @ widen(sys.B), widen(sys.C) @ right)
    return reduced, left, right


def _check_stability(gramians: LowRankGramians, small: StateSpace, parts: _Balancing, orders: np.ndarray) -> None:
    try:
        check_stability(small, parts.sigma, orders)
    except OrderError as error:
        residual = max(gramians.controllability.checked_residual, gramians.observability.checked_residual)
        raise OrderError(
            f"{error}; or, first of all for a sparse system, factors too coarse for this order (their relative residual is {residual:.1e}): compute them with a smaller tolerance "
            "(hsv.low_rank_gramians), or keep fewer states"
        ) from error


def _reduction(
    gramians: LowRankGramians,
    small: StateSpace,
    orders: np.ndarray,
    parts: _Balancing,
    left: Any,
    right: Any,
    notes: tuple[str, ...],
) -> Reduction:
    sys, sigma = gramians.system, parts.sigma
    if sigma.size < sys.n_states:  # something is left out whatever the order
        sigma = np.concatenate([sigma, [0.0]])
    return Reduction(
        system=small,
        orders=orders,
        hankel_singular_values=round_to(parts.sigma, real(sys.B)),
        error_bound=round_up(error_bound(sigma, orders, parts.rounding), sys),
        left=left,
        right=right,
        notes=notes,
        _rounding=parts.rounding,
        n_original_states=sys.n_states,
    )
