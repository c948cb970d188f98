r"""Reductions by two Gramians that need not be those of the system: weighted, limited in frequency or in time.

Such Gramians satisfy Lyapunov equations whose right-hand sides :math:`Y` may be indefinite, and then nothing promises a stable result. A right-hand side made positive,
:math:`\tilde B \tilde B^H`, is that of the system :math:`(A, \tilde B, \tilde C)`; its reduction is stable. Where :math:`B = \tilde B K` and :math:`C = L \tilde C` as well,
:math:`G - G_r = L (\tilde G - \tilde G_r) K` carries the bound over.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from hsv._array import Array, conjugate_transpose, from_host, namespace, real, round_to, to_host, widen, zeros
from hsv._blas import eigh, product, qr, triangle
from hsv._errors import HsvError, OrderError, OrderWarning
from hsv._hankel import Factors, from_real_coordinates, singular_value_decomposition
from hsv._lyapunov import solve_lyapunov_factored_pair
from hsv._order import ErrorBound, Rule
from hsv._reduction import (
    Reduction,
    Rounding,
    check_stability,
    choose_orders,
    error_bound,
    numerical_rank,
    project,
    round_up,
    rounding_errors,
)
from hsv._singular_perturbation import at_steady_state
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, in_double_precision, stability_margin

_EPS = float(np.finfo(np.float64).eps)
STABILITIES = ("absolute-value", "positive-part")


class GramianPair(NamedTuple):
    """Factors of two Gramians, how far rounding moves their values, and what the bound is multiplied with.

    ``gain`` of shape ``(...)`` on the host is None where theory has no bound, infinite for the systems of a batch that have none. ``stable`` says whether the reduced system must be.
    """

    factors: Factors
    rounding: Rounding | None
    gain: np.ndarray | None = None
    stable: bool = False


class Source(NamedTuple):
    """A positive right-hand side ``B' B'^H``, ``(..., n, k)``, and ``K`` with ``B = B' K``, ``(..., k, m)``; ``exists`` (...) on the host tells where there is one."""

    B: Array
    K: Array
    exists: np.ndarray


def check_stability_name(stability: str | None) -> None:
    """Raise unless `stability` is None or the name of a way to make a right-hand side positive."""
    if stability is not None and stability not in STABILITIES:
        raise HsvError(f"stability must be None or one of {', '.join(map(repr, STABILITIES))}, got {stability!r}")


def dense_in_double(sys: LinearSystem) -> StateSpace:
    """The system in dense real or complex coordinates, those of :meth:`to_dense`, in double precision."""
    return in_double_precision(sys).to_dense()


def positive_source(F: Array | None, J: Array, B: Array, stability: str, error: Array | None = None) -> Source:
    r"""Make :math:`Y = F J F^H` (without ``F``: ``J``) positive: its eigenvalues' absolute values, or the positive ones alone.

    In the coordinates of a QR factorisation of ``F`` (..., n, k), so that a right-hand side of low rank keeps it, and columns of `B` that are columns of `F` stay in its range. Eigenvalues below
    rounding, or below `error` (...), count as zero.
    """
    xp = namespace(J)
    if F is None:
        inner = J
    else:
        Q, R = qr(F)
        inner = product(product(R, J), conjugate_transpose(R))
    values, vectors = eigh(0.5 * (inner + conjugate_transpose(inner)))
    size = xp.abs(values)
    noise = B.shape[-2] * _EPS * xp.max(size, axis=-1, keepdims=True)
    if error is not None:
        noise = xp.maximum(noise, error[..., None])
    kept = (values if stability == "positive-part" else size) > noise
    root = xp.sqrt(xp.where(kept, size, xp.zeros_like(size)))
    basis = vectors if F is None else product(Q, vectors)
    inverse = xp.where(kept, 1.0 / xp.where(kept, root, xp.ones_like(root)), xp.zeros_like(root))
    source = basis * root[..., None, :]
    K = inverse[..., :, None] * product(conjugate_transpose(basis), B)
    missed = to_host(xp.linalg.matrix_norm(B - product(source, K))) / np.maximum(
        to_host(xp.linalg.matrix_norm(B)), np.finfo(np.float64).tiny
    )
    return Source(source, K, missed <= 1e-8)


def pair_of_sources(sys: StateSpace, B: Array, C: Array, gain: np.ndarray | None) -> GramianPair:
    """The Gramians of ``(A, B', C')``, whose reduction is stable and has a bound."""
    batch = np.broadcast_shapes(tuple(B.shape[:-2]), tuple(C.shape[:-2]), sys.batch_shape)
    xp = namespace(sys.A)
    A, B, C = (xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (sys.A, B, C))
    factors = Factors(*solve_lyapunov_factored_pair(A, B, C, discrete=sys.is_discrete))
    return GramianPair(factors, rounding_errors(factors), gain, stable=True)


def square_factor(L: Array) -> Array:
    """A factor (..., n, n) of ``L L^H`` for an ``L`` of any width."""
    xp = namespace(L)
    n, k = L.shape[-2:]
    if k < n:
        return xp.concat([L, zeros((*L.shape[:-1], n - k), L)], axis=-1)
    return L if k == n else conjugate_transpose(triangle(conjugate_transpose(L)))


def factor_of_gramian(P: Array) -> Array:
    """A factor of a positive semidefinite matrix with rounding errors, by eigenvectors after its diagonal is scaled to 1."""
    xp = namespace(P)
    diagonal = real(xp.linalg.diagonal(P))
    scale = xp.sqrt(xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal)))
    values, vectors = eigh(P / (scale[..., :, None] * scale[..., None, :]))
    root = xp.sqrt(xp.where(values > 0, values, xp.zeros_like(values)))
    return scale[..., :, None] * vectors * root[..., None, :]


def noise_of_gramians(P: Array, Q: Array, *scales: Array) -> Rounding:
    """Rounding of a pair whose Gramians, not their factors, were computed with an error of ``eps`` times the norm of `scales` (P and Q): roots of it in the values."""
    xp = namespace(P)
    P0, Q0 = scales or (P, Q)
    sizes = [to_host(xp.linalg.matrix_norm(x)) for x in (P, Q, P0, Q0)]
    n = P.shape[-1]
    values = np.sqrt(n * _EPS * np.maximum(sizes[0] * sizes[3], sizes[1] * sizes[2]))
    return Rounding(values, values)


def reduce_by_pair(
    sys: LinearSystem, rule: Rule, pair: GramianPair, *, steady_state: bool, without_bound: str
) -> Reduction:
    """Truncate, or bring to their steady state, the states of least value in the coordinates that balance the pair."""
    full = dense_in_double(sys)
    U, sigma, Vh = singular_value_decomposition(pair.factors)
    sigma_host = to_host(sigma)
    orders, notes = _choose(rule, sigma_host, pair, without_bound)
    ranks = numerical_rank(sigma_host, pair.rounding)
    columns = max(int((ranks if steady_state else orders).max(initial=1)), 1)
    factors = pair.factors
    observe = product(factors.observability, U[..., :, :columns])
    control = product(factors.controllability, conjugate_transpose(Vh[..., :columns, :]))
    if factors.left is not None:
        observe, control = product(factors.left, observe), product(factors.right, control)
    reduced, left, right = project(full, observe, control, sigma, from_host(ranks if steady_state else orders, sigma))
    if steady_state:
        reduced = at_steady_state(reduced, orders, ranks, sys)
    else:
        reduced = StateSpace(*(round_to(x, sys.B) for x in (reduced.A, reduced.B, reduced.C, reduced.D)), dt=sys.dt)
    if pair.stable:
        check_stability(reduced, sigma_host, orders)
    else:
        notes += _say_if_unstable(reduced)
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
        left, right = from_real_coordinates(left), from_real_coordinates(right)
    return Reduction(
        system=reduced,
        orders=from_host(orders, sys.B),
        hankel_singular_values=round_to(sigma, real(sys.B)),
        error_bound=_bound(sys, sigma_host, orders, pair),
        left=None if steady_state else round_to(left, sys.B),
        right=None if steady_state else round_to(right, sys.B),
        notes=notes,
        _rounding=pair.rounding,
    )


def _choose(rule: Rule, sigma: np.ndarray, pair: GramianPair, without_bound: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if not isinstance(rule, ErrorBound):
        return choose_orders(rule, sigma, stacklevel=5, rounding=pair.rounding)
    if pair.gain is None or not np.all(np.isfinite(pair.gain)):
        raise OrderError(f"ErrorBound asks for a bound, which {without_bound}")
    gain = pair.gain[..., None]
    rounding = None if pair.rounding is None else Rounding(*(pair.gain * x for x in pair.rounding))
    return choose_orders(rule, sigma * gain, stacklevel=5, rounding=rounding)


def _bound(sys: LinearSystem, sigma: np.ndarray, orders: np.ndarray, pair: GramianPair) -> Array | None:
    if pair.gain is None or not np.any(np.isfinite(pair.gain)):
        return None
    bound = error_bound(sigma, orders, pair.rounding)
    bound = np.multiply(bound, pair.gain, out=np.zeros_like(bound), where=bound > 0)  # 0, not NaN, where nothing is cut
    return round_up(from_host(bound, real(widen(sys.B))), sys)


def _say_if_unstable(reduced: StateSpace) -> tuple[str, ...]:
    margin = to_host(stability_margin(reduced))
    if np.all(margin > 0):
        return ()
    wrong = np.any(margin <= 0, axis=-1)
    note = "the reduced system is not stable" + (
        f" (in {int(wrong.sum())} of {wrong.size} systems)" if wrong.size > 1 else ""
    )
    note += f": these Gramians promise no stability; choose another order, or stability={STABILITIES[0]!r}"
    warnings.warn(note, OrderWarning, stacklevel=4)
    return (note,)
