"""Singular perturbation approximation: balanced reduction that keeps the steady-state gain."""

from __future__ import annotations

import numpy as np

from hsv._array import eye, from_host, namespace, real, round_to, to_host, widen
from hsv._large_systems import LargeSystem
from hsv._order import Rule, as_rule
from hsv._reduction import Reduction, balance, check_stability, choose_orders, error_bound, numerical_rank, round_up
from hsv._systems import LinearSystem, StateSpace, in_double_precision, require_system


def singular_perturbation(sys: LinearSystem | LargeSystem, rule: Rule | int) -> Reduction:
    r"""Reduce a stable system by singular perturbation approximation: the fast balanced states follow the slow ones at once.

    In balanced coordinates, with the states that go marked 2, their equation is solved for its steady state,

    .. math:: A_r = A_{11} - A_{12} A_{22}^{-1} A_{21}, \quad B_r = B_1 - A_{12} A_{22}^{-1} B_2, \quad
              C_r = C_1 - C_2 A_{22}^{-1} A_{21}, \quad D_r = D - C_2 A_{22}^{-1} B_2,

    in continuous time, and with :math:`A_{22} - I` in place of :math:`A_{22}` in discrete time. The gain at frequency 0 is that of `sys`, and low
    frequencies are approximated better than by :func:`balanced_truncation`, which is exact at infinite frequency (continuous time).

    Parameters
    ----------
    sys : StateSpace, DiagonalStateSpace, SparseStateSpace or LowRankGramians
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`.

    Returns
    -------
    Reduction
        Balanced and stable, with the error bound of :func:`balanced_truncation`. ``left`` and ``right`` are None: the method is no
        projection. ``D`` changes, so that the result cannot be written back into a layer that sees its newest input.

    Raises
    ------
    UnstableSystemError, OrderError
        As in :func:`balanced_truncation`.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`.

    Notes
    -----
    States beyond the numerical minimal order are truncated, the rest of the eliminated ones solved for; ``O(n^3)``.

    References
    ----------
    Liu and Anderson, "Singular perturbation approximation of balanced systems", Int. J. Control 50 (1989).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -10.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> red = hsv.singular_perturbation(sys, 1)
    >>> float(red.system.frequency_response([0.0])[0, 0, 0].real.round(12))          # 1 / 1 + 1 / 10
    1.1
    """
    rule = as_rule(rule)
    require_system(sys, LargeSystem)
    if isinstance(sys, LargeSystem):
        return sys._large_singular_perturbation(rule, stacklevel=3)
    bal = balance(in_double_precision(sys))
    sigma = to_host(bal.hankel_singular_values)
    orders, notes = choose_orders(rule, sigma, rounding=bal._rounding)
    reduced = at_steady_state(bal.system, orders, numerical_rank(sigma, bal._rounding), sys)
    check_stability(reduced, sigma, orders)
    return Reduction(
        system=reduced,
        orders=from_host(orders, sys.B),
        hankel_singular_values=round_to(bal.hankel_singular_values, real(sys.B)),
        error_bound=round_up(from_host(error_bound(sigma, orders, bal._rounding), real(bal.system.A)), sys),
        left=None,
        right=None,
        notes=notes,
        _rounding=bal._rounding,
    )


def at_steady_state(full: StateSpace, orders: np.ndarray, ranks: np.ndarray, like: LinearSystem) -> StateSpace:
    """Keep the first `orders` states, solve for the steady state of those up to `ranks`, truncate the rest; in the precision of `like`."""
    r = max(int(orders.max(initial=1)), 1)
    A, B, C, D = (widen(x) for x in (full.A, full.B, full.C, full.D))
    xp = namespace(A)
    place = np.arange(full.n_states)
    gone = (place >= orders[..., None]) & (place < ranks[..., None])
    kept = place < orders[..., None]
    E, K = (from_host(mask.astype(np.float64), real(A)) for mask in (gone, kept))  # (..., n)
    E, K = xp.astype(E, A.dtype), xp.astype(K, A.dtype)
    identity = eye(full.n_states, A)
    fast = A - identity if full.is_discrete else A
    # On the eliminated states the steady-state equation, on all others the identity: one solve for a batch of different orders.
    steady = E[..., :, None] * fast * E[..., None, :] + (1 - E)[..., None, :] * identity
    X = xp.linalg.solve(steady, E[..., :, None] * A * K[..., None, :])  # (..., n, n): eliminated states from kept ones
    Y = xp.linalg.solve(steady, E[..., :, None] * B)
    reduced_A = K[..., :, None] * (A * K[..., None, :] - A @ X)
    if not full.is_discrete:
        reduced_A = reduced_A - (1 - K)[..., None, :] * identity  # padding
    reduced_B = K[..., :, None] * (B - A @ Y)
    reduced_C = C * K[..., None, :] - C @ X
    parts = (reduced_A[..., :r, :r], reduced_B[..., :r, :], reduced_C[..., :r], D - C @ Y)
    return StateSpace(*(round_to(x, like.B) for x in parts), dt=full.dt)
