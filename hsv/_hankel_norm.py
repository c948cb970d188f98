"""Optimal Hankel-norm approximation."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from hsv._array import from_host, on_host, real, round_to, to_host, widen
from hsv._errors import IllConditionedError
from hsv._order import Rule, as_rule
from hsv._reduction import Reduction, balance, check_stability, choose_orders, error_bound, numerical_rank, round_up
from hsv._systems import LinearSystem, StateSpace, in_double_precision

_EQUAL = 1e-10  # values this close, relatively, are one value of higher multiplicity: dividing by their difference would lose ten digits


def hankel_norm_approximation(sys: LinearSystem, rule: Rule | int) -> Reduction:
    r"""Reduce a stable system with the least possible error in the Hankel norm, :math:`\sigma_{r+1}`.

    In balanced coordinates ordered so that :math:`\Sigma = \operatorname{diag}(\Sigma_1, \sigma I)` with :math:`\sigma = \sigma_{r+1}`,
    :math:`\Gamma = \Sigma_1^2 - \sigma^2 I` and :math:`U = -(C_2^H)^{+} B_2`, the system

    .. math:: \hat A = \Gamma^{-1}(\sigma^2 A_{11}^H + \Sigma_1 A_{11} \Sigma_1 - \sigma C_1^H U B_1^H), \quad
              \hat B = \Gamma^{-1}(\Sigma_1 B_1 + \sigma C_1^H U), \quad \hat C = C_1 \Sigma_1 + \sigma U B_1^H, \quad \hat D = D - \sigma U

    has exactly :math:`r` stable poles; its stable part is the approximation. Discrete systems go through the bilinear map, which leaves Hankel values alone.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`.

    Returns
    -------
    Reduction
        Stable, with :math:`\|G - G_r\|_H = \sigma_{r+1}` and the H-infinity bound of :func:`balanced_truncation` (the true error is often below its own, for
        one part of it is :math:`\sigma_{r+1}` and not twice that). ``left`` and ``right`` are None: the method is no projection. ``D`` changes.

    Raises
    ------
    UnstableSystemError, OrderError
        As in :func:`balanced_truncation`.
    IllConditionedError
        The construction lost its stable poles to rounding: values too close to :math:`\sigma_{r+1}` without being equal to it.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`.

    Notes
    -----
    Values within 1e-10 of :math:`\sigma_{r+1}`, relatively, count as equal to it. Where the order is the numerical minimal one there is no :math:`\sigma_{r+1}`, and
    the balanced system is returned. On the host, in double precision, ``O(n^3)`` a system, one after another.

    References
    ----------
    Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their L-infinity error bounds", Int. J. Control 39 (1984).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> red = hsv.hankel_norm_approximation(sys, 1)
    >>> round(float(hsv.hankel_norm(sys - red.system)), 5)                          # sigma_2
    0.57314
    """
    rule = as_rule(rule)
    bal = balance(in_double_precision(sys))
    sigma = to_host(bal.hankel_singular_values)
    orders, notes = choose_orders(rule, sigma)
    full, ranks = bal.system, numerical_rank(sigma)
    parts = on_host(
        lambda A, B, C, D: _approximate_batch(A, B, C, D, sigma, orders, ranks, discrete=full.is_discrete),
        *(widen(x) for x in (full.A, full.B, full.C, full.D)),
        reason="Hankel-norm approximation",
    )
    reduced = StateSpace(*(round_to(x, sys.B) for x in parts), dt=sys.dt)
    check_stability(reduced, sigma, orders)
    return Reduction(
        system=reduced,
        orders=from_host(orders, sys.B),
        hankel_singular_values=round_to(bal.hankel_singular_values, real(sys.B)),
        error_bound=round_up(from_host(error_bound(sigma, orders), real(widen(sys.B))), sys),
        left=None,
        right=None,
        notes=notes,
    )


def _approximate_batch(
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    sigma: np.ndarray,
    orders: np.ndarray,
    ranks: np.ndarray,
    *,
    discrete: bool,
) -> tuple[np.ndarray, ...]:
    r = max(int(orders.max(initial=1)), 1)
    batch = A.shape[:-2]
    out = (
        np.tile((0.0 if discrete else -1.0) * np.eye(r, dtype=A.dtype), (*batch, 1, 1)),
        np.zeros((*batch, r, B.shape[-1]), A.dtype),
        np.zeros((*batch, C.shape[-2], r), A.dtype),
        D.copy(),
    )
    for index in np.ndindex(*batch):
        order, rank = int(orders[index]), int(ranks[index])
        one = A[index][:rank, :rank], B[index][:rank], C[index][:, :rank], D[index]
        if order < rank:
            one = _approximate(*(bilinear_to_continuous(*one) if discrete else one), sigma[index][:rank], order)
            one = bilinear_to_discrete(*one) if discrete else one
        a, b, c, out[3][index] = one
        out[0][index][:order, :order], out[1][index][:order], out[2][index][:, :order] = a, b, c
    return out


def _approximate(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray, sigma: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The stable part, of `order` states, of Glover's all-pass completion; continuous and balanced arguments."""
    level = sigma[order]
    equal = np.abs(sigma - level) <= _EQUAL * level
    first, second = np.flatnonzero(~equal), np.flatnonzero(equal)
    S = sigma[first]
    A11, B1, B2, C1, C2 = A[np.ix_(first, first)], B[first], B[second], C[:, first], C[:, second]
    U = -np.linalg.pinv(C2.conj().T) @ B2
    gamma = (S - level) * (S + level)
    CU = C1.conj().T @ U
    A_hat = (level**2 * A11.conj().T + S[:, None] * A11 * S - level * CU @ B1.conj().T) / gamma[:, None]
    B_hat = (S[:, None] * B1 + level * CU) / gamma[:, None]
    C_hat = C1 * S + level * U @ B1.conj().T
    D_hat = D - level * U
    a, b, c = _stable_part(A_hat, B_hat, C_hat, int(np.sum(sigma > level * (1 + _EQUAL))))
    return a, b, c, D_hat


def _stable_part(A: np.ndarray, B: np.ndarray, C: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    T, Z, k = scipy.linalg.schur(
        A, output="complex" if np.iscomplexobj(A) else "real", sort=lambda re, im=0.0: complex(re).real < 0
    )
    if k != order:
        raise IllConditionedError(
            f"the Hankel-norm approximation of order {order} has {k} stable poles to working precision: Hankel values close to the first discarded one; "
            "choose another order, or balanced truncation"
        )
    B, C = Z.conj().T @ B, C @ Z
    X = np.zeros((k, len(A) - k), A.dtype)
    if 0 < k < len(A):
        X = scipy.linalg.solve_sylvester(T[:k, :k], -T[k:, k:], -T[:k, k:])
    return T[:k, :k], B[:k] - X @ B[k:], C[:, :k]


def bilinear_to_continuous(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The continuous system ``G((1 + s) / (1 - s))``, which has the Hankel values of the discrete ``G(z)`` and is balanced if it is."""
    n = len(A)
    resolvent = np.linalg.inv(np.eye(n) + A)
    root = np.sqrt(2.0)
    return resolvent @ (A - np.eye(n)), root * resolvent @ B, root * C @ resolvent, D - C @ resolvent @ B


def bilinear_to_discrete(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of :func:`bilinear_to_continuous`: ``G((z - 1) / (z + 1))``."""
    n = len(A)
    resolvent = np.linalg.inv(np.eye(n) - A)
    root = np.sqrt(2.0)
    return resolvent @ (np.eye(n) + A), root * resolvent @ B, root * C @ resolvent, D + C @ resolvent @ B
