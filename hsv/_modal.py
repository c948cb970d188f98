"""Modal truncation: a choice of modes, without mixing them, and the scores to choose by."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np

from hsv._array import (
    Array,
    conjugate_transpose,
    copied,
    eye,
    from_host,
    imag,
    is_complex,
    namespace,
    real,
    round_to,
    to_host,
    widen,
)
from hsv._errors import OrderError, OrderWarning
from hsv._gramians import require_stable
from hsv._hankel import from_real_coordinates
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import Reduction, round_up
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, diagonalize, require_system, stability_margin
from hsv._warnings import level_outside


def mode_gains(sys: LinearSystem) -> Array:
    r"""Return the largest gain of each mode alone, its H-infinity norm.

    .. math:: g_i = \frac{\|c_i\| \|b_i\|}{1 - |\lambda_i|} \qquad\text{or}\qquad g_i = \frac{\|c_i\| \|b_i\|}{-\operatorname{Re}\lambda_i}

    LAST ranks states by :math:`g_i^2`. A sum of these gains bounds the H-infinity norm of the sum of the modes.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; a dense system is diagonalised, and its modes come in the order of ``diagonalize(sys)``.

    Returns
    -------
    array
        Shape ``(..., n)``, real; array type, device and precision of the input.

    Raises
    ------
    UnstableSystemError, IllConditionedError

    References
    ----------
    Gwak, Moon, Ko, Park, "Layer-adaptive state pruning for deep state space models" (LAST), NeurIPS 2024.

    Examples
    --------
    >>> import hsv
    >>> hsv.mode_gains(hsv.DiagonalStateSpace([0.5, -0.9], [[1.0], [1.0]], [[3.0, 1.0]], dt=True)).round(12)
    array([ 6., 10.])
    """
    diagonal = _diagonal(sys)
    return round_to(_products(diagonal) / stability_margin(diagonal), real(sys.B))


def mode_energies(sys: LinearSystem) -> Array:
    r"""Return the energy of each mode's impulse response alone, its squared H2 norm.

    .. math:: e_i = \frac{\|c_i\|^2 \|b_i\|^2}{1 - |\lambda_i|^2} \qquad\text{or}\qquad
              e_i = \frac{\|c_i\|^2 \|b_i\|^2}{-2 \operatorname{Re}\lambda_i}

    The score of AIRE-Prune.

    Parameters, returns and errors as in :func:`mode_gains`.

    References
    ----------
    "AIRE-Prune: asymptotic impulse-response energy for state pruning in state space models".

    Examples
    --------
    >>> import hsv
    >>> hsv.mode_energies(hsv.DiagonalStateSpace([0.6], [[4.0]], [[1.0]], dt=True)).round(12)     # 16 / (1 - 0.36)
    array([25.])
    """
    diagonal = _diagonal(sys)
    margin = stability_margin(diagonal)
    width = margin * (2.0 - margin) if diagonal.is_discrete else 2.0 * margin
    return round_to(_products(diagonal) ** 2 / width, real(sys.B))


def modal_truncation(
    sys: LinearSystem, rule: Rule | int, measure: Callable[[DiagonalStateSpace], Array] = mode_gains
) -> Reduction:
    r"""Reduce a stable system to its most important modes, which stay as they are.

    .. math:: G(z) = D + \sum_i \frac{c_i b_i^H}{z - \lambda_i}, \qquad G_r(z) = D + \sum_{i \text{ kept}} \frac{c_i b_i^H}{z - \lambda_i}

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        Chooses by the measures of the modes in place of Hankel singular values. With ``ErrorBound`` the bound is the one below.
    measure : callable
        :func:`mode_gains`, :func:`mode_energies`, or any other function from a diagonal system to one number a mode, ``(..., n)``.

    Returns
    -------
    Reduction
        Diagonal for a diagonal system; real for a real one, for conjugate pairs stay or go together (one mode less is kept where the
        order would split a pair). ``error_bound`` is the sum of the gains of the modes that go, a bound of the H-infinity error that is often far
        from it. ``hankel_singular_values`` is None.

    Raises
    ------
    UnstableSystemError
    IllConditionedError
        A dense system whose matrix has no independent eigenvectors.
    OrderError
        No order meets the rule, ``ErrorBound`` with another measure than gains, or an order of 1 that would split a conjugate pair.

    Notes
    -----
    Poles are exact, which balanced truncation does not promise; the error is larger, most of all where modes nearly cancel each other. Diagonal systems ``O(n (m + p))``,
    dense ones ``O(n^3)`` on the host.

    References
    ----------
    Varga, "Enhanced modal approach for model reduction", Math. Model. Syst. 1 (1995).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5, -0.9, 0.1], [[1.0], [1.0], [1.0]], [[3.0, 1.0, 0.1]], dt=True)
    >>> red = hsv.modal_truncation(sys, 2)
    >>> red.system.poles(), round(float(red.error_bound), 4)                        # 0.1 / 0.9
    (array([ 0.5, -0.9]), 0.1111)
    """
    rule = as_rule(rule)
    if isinstance(rule, ErrorBound) and measure is not mode_gains:
        raise OrderError("ErrorBound bounds the sum of the gains of the modes: use it with measure=hsv.mode_gains")
    require_system(sys)
    paired = isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs
    if paired:
        sys = sys.to_dense()
    require_stable(sys)
    diagonal, vectors, _ = diagonalize(sys)
    require_stable(diagonal)
    partner = _partners(sys, diagonal)
    values = np.take_along_axis(to_host(widen(measure(diagonal))), partner, axis=-1)  # one value for both of a pair
    gains = to_host(widen(mode_gains(diagonal)))
    n = values.shape[-1]
    ranking = np.argsort(-values, axis=-1, kind="stable")
    ranked = np.take_along_axis(values, ranking, axis=-1)
    orders = rule.choose(ranked / 2 if isinstance(rule, ErrorBound) else ranked)  # its bound is twice a sum
    orders, notes = _without_split_pairs(orders, ranking, partner, diagonal)
    for note in notes:
        warnings.warn(note, OrderWarning, stacklevel=level_outside())

    kept = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(kept, ranking, np.arange(n) < orders[..., None], axis=-1)
    bound = np.sum(np.where(kept, 0.0, gains), axis=-1) * (1 + 4 * n * np.finfo(np.float64).eps)
    red = _keep(sys, diagonal, vectors, kept, orders, bound, notes)
    if not paired:
        return red
    return dataclasses.replace(red, left=from_real_coordinates(red.left), right=from_real_coordinates(red.right))


def _diagonal(sys: LinearSystem) -> DiagonalStateSpace:
    require_system(sys)
    require_stable(sys)
    diagonal = diagonalize(sys)[0]
    require_stable(diagonal)
    return diagonal


def _products(sys: DiagonalStateSpace) -> Array:
    """``|c_i| |b_i|``, ``(..., n)``."""
    norm = namespace(sys.B).linalg.vector_norm
    return norm(widen(sys.B), axis=-1) * norm(widen(sys.C), axis=-2)


def _partners(sys: LinearSystem, diagonal: DiagonalStateSpace) -> np.ndarray:
    """For each mode the first of its conjugate pair, itself for any other, ``(..., n)``; only a real dense system has pairs to keep."""
    poles = to_host(diagonal.poles())
    places = np.broadcast_to(np.arange(poles.shape[-1]), poles.shape)
    if isinstance(sys, DiagonalStateSpace) or is_complex(sys.B):
        return places
    return places - (poles.imag < 0)  # LAPACK returns each pair of a real matrix side by side, the upper one first


def _without_split_pairs(
    orders: np.ndarray, ranking: np.ndarray, partner: np.ndarray, diagonal: DiagonalStateSpace
) -> tuple[np.ndarray, tuple[str, ...]]:
    n = ranking.shape[-1]
    ordered = np.take_along_axis(partner, ranking, axis=-1)
    last = np.take_along_axis(ordered, np.clip(orders - 1, 0, n - 1)[..., None], axis=-1)[..., 0]
    following = np.take_along_axis(ordered, np.clip(orders, 0, n - 1)[..., None], axis=-1)[..., 0]
    split = (orders > 0) & (orders < n) & (last == following)
    if not split.any():
        return orders.astype(np.int64), ()
    if np.any(split & (orders == 1)):
        raise OrderError("an order of 1 would split the conjugate pair of the most important mode; keep 2 states")
    note = f"the cut after {orders[split].flat[0]} modes would split a conjugate pair: one mode less was kept"
    return np.where(split, orders - 1, orders).astype(np.int64), (note,)


def _keep(
    sys: LinearSystem,
    diagonal: DiagonalStateSpace,
    vectors: Array,
    kept: np.ndarray,
    orders: np.ndarray,
    bound: np.ndarray,
    notes: tuple[str, ...],
) -> Reduction:
    r = max(int(orders.max(initial=1)), 1)
    order = np.argsort(~kept, axis=-1, kind="stable")[..., :r]
    present = np.take_along_axis(kept, order, axis=-1)
    xp = namespace(sys.B)
    index, mask = from_host(order, sys.B), from_host(present.astype(np.float64), real(sys.B))
    if isinstance(sys, DiagonalStateSpace):
        right = left = _columns(eye(sys.n_states, widen(sys.B)), index, mask, sys.batch_shape)
        B, C = conjugate_transpose(left) @ widen(sys.B), widen(sys.C) @ right
        exact = sys.log_poles is not None and bool(present.all())
        poles = sys.log_poles if exact else sys.poles()
        chosen = xp.take_along_axis(poles, index, axis=-1)
        padding = xp.astype(1 - mask, chosen.dtype)
        chosen = chosen * (1 - padding) - (0 if sys.is_discrete else 1) * padding
        system: LinearSystem = sys._rebuild(
            chosen, chosen if exact else None, round_to(B, sys.B), round_to(C, sys.B), copied(sys.D)
        )
    else:
        assert isinstance(sys, StateSpace)
        right = widen(vectors)
        left = conjugate_transpose(xp.linalg.inv(right))
        if not is_complex(sys.B):
            right, left = (_real_columns(x, diagonal.poles()) for x in (right, left))
        right, left = (_columns(x, index, mask, sys.batch_shape) for x in (right, left))
        left_h = conjugate_transpose(left)
        A = left_h @ widen(sys.A) @ right
        if not sys.is_discrete:
            A = A - xp.astype(1 - mask, A.dtype)[..., None, :] * eye(r, A)
        B, C = left_h @ widen(sys.B), widen(sys.C) @ right
        system = StateSpace(round_to(A, sys.B), round_to(B, sys.B), round_to(C, sys.B), copied(sys.D), dt=sys.dt)
    return Reduction(
        system=system,
        orders=from_host(orders, sys.B),
        hankel_singular_values=None,
        error_bound=round_up(from_host(np.asarray(bound), widen(real(sys.B))), sys),
        left=round_to(left, sys.B),
        right=round_to(right, sys.B),
        notes=notes,
    )


def _columns(matrix: Array, index: Array, mask: Array, batch: tuple[int, ...]) -> Array:
    """The chosen columns ``(..., n, r)``, zero in the padding."""
    xp = namespace(matrix)
    n = matrix.shape[-2]
    matrix = xp.broadcast_to(matrix, (*batch, n, matrix.shape[-1]))
    at = xp.broadcast_to(index[..., None, :], (*batch, n, index.shape[-1]))
    return xp.take_along_axis(matrix, at, axis=-1) * xp.astype(mask, matrix.dtype)[..., None, :]


def _real_columns(vectors: Array, poles: Array) -> Array:
    """``sqrt(2) Re v, sqrt(2) Im v`` in place of ``v, conj v``: a unitary change of the columns of a pair."""
    xp = namespace(vectors)
    upper, lower = (x[..., None, :] for x in (imag(poles) > 0, imag(poles) < 0))
    pair = xp.where(lower, -imag(vectors), real(vectors)) * math.sqrt(2.0)
    return xp.where(upper | lower, pair, real(vectors))
