"""Balanced truncation with projections that vary in time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsv import _device
from hsv._array import Array, conjugate_transpose, device, from_host, namespace, real, round_to, to_host, widen
from hsv._errors import OrderError, OrderWarning
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import make_biorthogonal
from hsv.time_varying._gramians import between, check_maps, kind_of
from hsv.time_varying._hankel import factor_pair

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class TimeVaryingReduction:
    r"""The outcome of :func:`hsv.time_varying.balanced_truncation` of a time-varying system.

    Attributes
    ----------
    A, B, C : array
        The reduced system, dense: ``(..., T, r, r)``, ``(..., T, r, m)``, ``(..., T, p, r)``, with ``r = max(orders)``. It starts
        from zero and has the convention of the system that was given.
    orders : array
        States kept, one number for all times, shape ``(...)``, integers. In a batch the shorter systems are padded with zeros.
    ranks : array
        States that are there at each time, at most ``orders``: shape ``(..., T + 1)``. Fewer inputs than states have been seen near the start
        and fewer outputs are left near the end. The states beyond are zero.
    hankel_singular_values : array
        Of the system that was given, shape ``(..., T + 1, n)``.
    error_bound : array
        ``(...)``, in double precision: the energy of the error of the outputs is at most the square of this times the energy of the inputs.
        It covers the truncation, not the rounding of the reduced matrices.
    left, right : array
        ``(..., T + 1, n, r)``: the projections of ``x[0] ... x[T]``. :math:`left[t]^H right[t]` is the identity on the first ``ranks[t]``
        states, zero beyond. In the layers' convention ``x[t]`` is ``h[t-1]``.
    notes : tuple of str
        What a careful user should know.
    """

    A: Array
    B: Array
    C: Array
    orders: Array
    ranks: Array
    hankel_singular_values: Array
    error_bound: Array
    left: Array
    right: Array
    notes: tuple[str, ...] = ()


def balanced_truncation(
    A: Any, B: Any, C: Any, rule: Rule | int, *, layer_convention: bool = False
) -> TimeVaryingReduction:
    r"""Reduce a time-varying system over a window by balanced truncation at every time.

    With :math:`L_o[t]^H L_c[t] = U[t] \Sigma[t] V[t]^H` of the factors of both Gramians,

    .. math:: R[t] = L_c[t] V_r[t] \Sigma_r[t]^{-1/2}, \qquad L[t] = L_o[t] U_r[t] \Sigma_r[t]^{-1/2}, \\
              A_r[t] = L[t+1]^H A_t R[t], \qquad B_r[t] = L[t+1]^H B_t, \qquad C_r[t] = C_t R[t].

    Parameters
    ----------
    A : array
        Dense ``(..., T, n, n)``, diagonal ``(..., T, n)`` or scalar ``(..., T)``: known by ``A.ndim - B.ndim``.
    B, C : array
        ``(..., T, n, m)`` and ``(..., T, p, n)``. Batch axes must match exactly.
    rule : Rule or int
        One order for all times, chosen from the **sums over time** :math:`\bar\sigma_i = \sum_t \sigma_i[t]`: shares and thresholds
        are those of the mean over time, and ``hsv.ErrorBound`` is met by ``error_bound``. An int means ``hsv.Order``.
    layer_convention : bool
        :math:`h[t] = A_t h[t-1] + B_t u[t]`, :math:`y[t] = C_t h[t]`: the state after the update is balanced, with the pairing of
        :func:`hsv.time_varying.hankel_singular_values`; then :math:`C_r[t] = C_t R[t+1]`.

    Returns
    -------
    TimeVaryingReduction
        Library, device and precision of the input; computed in double precision and rounded once.

    Raises
    ------
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`.
    OrderError
        No order meets the rule.

    Warns
    -----
    OrderWarning
        At no time are there as many states as the rule asks for, or all Hankel singular values are zero.

    Notes
    -----
    **Times at which fewer states matter.** ``x[0]`` is reached by nothing and ``x[T]`` read by nothing, ``x[1]`` is reached by ``m`` inputs only,
    and so on. Where the numerical rank of the Hankel map is below the order, the projections have that many columns, and zeros beyond:
    nothing is lost, for the discarded values there are zero.

    **Error.** Removing one state at one time costs at most twice its Hankel singular value, so that over all times
    :math:`\|y - y_r\|_2 \le 2 \sum_t \sum_{i > r} \sigma_i[t]\, \|u\|_2`. The bound grows with the window while the error mostly does not;
    :func:`hsv.time_varying.certified_truncation` has bounds that do not grow. It holds for this sequence of matrices alone: if they depend on
    the input, another input has another sequence.

    ``O(T n^2 (n + m + p))``, batched over time and systems but for the recursions.

    References
    ----------
    Verriest and Kailath (1983), IEEE Trans. Automat. Control 28; Sandberg and Rantzer, "Balanced truncation of linear time-varying
    systems", IEEE Trans. Automat. Control 49 (2004); Lall and Beck, "Error-bounds for balanced model-reduction of linear time-varying
    systems", IEEE Trans. Automat. Control 48 (2003), for the bound.

    Examples
    --------
    A weak state that is nearly decoupled:

    >>> import hsv, numpy
    >>> A = numpy.full((20, 2), 0.5)
    >>> B, C = numpy.tile([[1.0], [0.01]], (20, 1, 1)), numpy.tile([[1.0, -0.01]], (20, 1, 1))
    >>> red = hsv.time_varying.balanced_truncation(A, B, C, hsv.HankelSum(keep=0.99))
    >>> red.A.shape, red.ranks.tolist() == [0] + 19 * [1] + [0]
    ((20, 1, 1), True)
    """
    rule = as_rule(rule)
    A, B, C = like = check_maps(A, B=B, C=C)
    A, B, C = (widen(X) for X in like)
    xp = namespace(B)
    reach, observe = factor_pair(A, B, C, layer_convention)
    U, sigma, Vh = _device.svd(conjugate_transpose(observe) @ reach)
    sigma_host = to_host(sigma)
    # What the entries of Lo^H Lc were summed from: multiples of eps of it are rounding errors.
    noise = xp.linalg.matrix_norm(conjugate_transpose(xp.abs(observe)) @ xp.abs(reach))  # (..., T + 1)
    noise_host = _EPS * sigma.shape[-1] * to_host(noise)[..., None]
    orders, ranks, notes = _choose(rule, sigma_host, noise_host)
    r = max(int(orders.max(initial=1)), 1)

    kept = xp.arange(r, device=device(sigma)) < from_host(ranks, sigma)[..., None]  # (..., T + 1, r)
    keep = xp.astype(kept, sigma.dtype)
    root = xp.where(kept, sigma[..., :r], xp.ones_like(keep)) ** -0.5 * keep
    right = (reach @ conjugate_transpose(Vh[..., :r, :])) * root[..., None, :]
    left = make_biorthogonal((observe @ U[..., :, :r]) * root[..., None, :], right, keep)

    axis = C.ndim - 3  # time
    before, after = between(right, axis, 0, -1), between(right, axis, 1, None)
    enter = conjugate_transpose(between(left, axis, 1, None))
    kind = kind_of(A, B)
    image = A @ before if kind == "dense" else (A[..., None] if kind == "diagonal" else A[..., None, None]) * before
    reduced = enter @ image, enter @ B, C @ (after if layer_convention else before)
    A, B, C = (round_to(X, like[1]) for X in reduced)
    return TimeVaryingReduction(
        A=A,
        B=B,
        C=C,
        orders=from_host(orders, sigma),
        ranks=from_host(ranks, sigma),
        hankel_singular_values=round_to(sigma, real(like[1])),
        error_bound=from_host(_error_bound(sigma_host, noise_host, ranks), sigma),
        left=round_to(left, like[1]),
        right=round_to(right, like[1]),
        notes=notes,
    )


def _choose(rule: Rule, sigma: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return orders ``(...)``, ranks ``(..., T + 1)`` and notes for values ``(..., T + 1, n)`` with errors ``(..., T + 1, 1)``."""
    available = np.sum(sigma > noise, axis=-1)
    most = available.max(axis=-1, initial=0)
    notes = []
    if isinstance(rule, ErrorBound):
        orders = _meet(rule, sigma, noise, available)
    else:
        orders = rule.choose(sigma.sum(axis=-2))
    if np.any(orders > most):
        which = np.argmax(orders - most)
        notes.append(
            f"the order was capped at {most.flat[which]} instead of {orders.flat[which]}: at no time does the system have more states"
        )
        orders = np.minimum(orders, most)
    if np.any(most == 0):
        notes.append("all Hankel singular values are zero: no input reaches any later output")
    for note in notes:
        warnings.warn(note, OrderWarning, stacklevel=3)
    ranks = np.minimum(available, orders[..., None])
    return orders.astype(np.int64), ranks.astype(np.int64), tuple(notes)


def _meet(rule: ErrorBound, sigma: np.ndarray, noise: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Return the least order, at least 1, whose bound with all its roundings is at most that of the rule."""
    candidates = range(sigma.shape[-1] + 1)
    bounds = np.stack([_error_bound(sigma, noise, np.minimum(available, k)) for k in candidates])
    met = bounds <= rule.bound
    if not np.all(met[-1]):
        raise OrderError(
            f"no order meets ErrorBound({rule.bound:g}): the smallest bound that double precision can certify is {bounds[-1].max():.3g}"
        )
    return np.maximum(np.argmax(met, axis=0), available.max(axis=-1) > 0)


def _error_bound(sigma: np.ndarray, noise: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """``2 * sum`` of all values discarded at all times, each allowed its rounding error, rounded up."""
    steps, n = sigma.shape[-2:]
    discarded = np.arange(n) >= ranks[..., None]
    total = np.sum(np.where(discarded, sigma + 4 * noise, 0.0), axis=(-2, -1))
    return np.asarray(2 * total * (1 + 2 * n * steps * _EPS))
