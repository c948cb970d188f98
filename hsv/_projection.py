"""Projections that balance two given Gramians, or follow a cross Gramian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hsv._array import (
    Array,
    as_arrays,
    conjugate_transpose,
    device,
    from_host,
    namespace,
    real,
    require_finite,
    require_square,
    round_to,
    to_host,
    widen,
)
from hsv._blas import product, svd
from hsv._errors import HsvError, OrderError, ShapeError
from hsv._gramian_pair import factor_of_gramian, noise_of_gramians
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import Rounding, balancing_bases, choose_orders, make_biorthogonal

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Projection:
    """Two bases of a reduced state space.

    Attributes
    ----------
    left, right : array
        Shape ``(..., n, r)`` with ``left^H right = I``; zero in the padding of a batch.
    hankel_singular_values : array
        What the rule chose by, shape ``(..., n)``, descending.
    orders : array
        Kept states, shape ``(...)``, integers.
    notes : tuple of str
        As in :class:`Reduction`.
    """

    left: Array
    right: Array
    hankel_singular_values: Array
    orders: Array
    notes: tuple[str, ...] = ()


def balancing_projection(P: Any, Q: Any, rule: Rule | int) -> Projection:
    r"""Return the projection that balances two Gramians, wherever they come from: empirical, time-varying, measured.

    .. math:: P = L_c L_c^H,\quad Q = L_o L_o^H,\quad L_o^H L_c = U \Sigma V^H, \qquad T_r = L_c V_r \Sigma_r^{-1/2}, \quad T_l = L_o U_r \Sigma_r^{-1/2}

    Parameters
    ----------
    P, Q : array
        Shape ``(..., n, n)``, Hermitian, positive semidefinite but for rounding.
    rule : Rule or int
        As in :func:`balanced_truncation`; ``ErrorBound`` is refused, for Gramians alone bound nothing.

    Returns
    -------
    Projection

    Raises
    ------
    HsvError, ShapeError, DtypeError, NonFiniteError
        The matrices are not Hermitian, have negative eigenvalues beyond rounding, or do not fit together.
    OrderError
        No order meets the rule, or ``ErrorBound``.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`.

    Notes
    -----
    A Gramian holds half the digits of its factor: values below about ``1e-8`` of the largest (``3e-4`` in single precision) are rounding errors, and the order is capped there. ``O(n^3)``.

    See Also
    --------
    balanced_truncation : for linear systems, from factors, with all digits and a bound.
    NonlinearSystem.project : the reduced nonlinear system.

    Examples
    --------
    >>> import hsv, numpy as np
    >>> found = hsv.balancing_projection(np.diag([4.0, 1.0]), np.diag([9.0, 1.0]), 1)
    >>> found.hankel_singular_values, abs(found.right).round(4)
    (array([6., 1.]), array([[0.8165],
           [0.    ]]))
    """
    P, Q = as_arrays(("P", "Q"), (P, Q))
    for name, X in (("P", P), ("Q", Q)):
        require_square(name, X)
        require_finite(name, X)
    if tuple(P.shape) != tuple(Q.shape):
        raise ShapeError(f"P and Q must have one shape, got {tuple(P.shape)} and {tuple(Q.shape)}")
    like, xp = P, namespace(P)
    eps = float(xp.finfo(P.dtype).eps)
    P, Q = (_hermitian(name, widen(X), eps) for name, X in (("P", P), ("Q", Q)))
    control, observe = factor_of_gramian(P), factor_of_gramian(Q)
    U, sigma, Vh = svd(product(conjugate_transpose(observe), control))
    noise = noise_of_gramians(P, Q)
    rounding = Rounding(*(x * (eps / _EPS) ** 0.5 for x in noise))
    orders, notes, keep = _kept(rule, sigma, rounding)
    r = keep.shape[-1]
    left, right = balancing_bases(
        product(observe, U[..., :, :r]), product(control, conjugate_transpose(Vh[..., :r, :])), sigma[..., :r], keep
    )
    left = make_biorthogonal(left, right, keep)
    return Projection(
        round_to(left, like), round_to(right, like), round_to(sigma, real(like)), from_host(orders, like), notes
    )


def cross_gramian_projection(X: Any, rule: Rule | int) -> Projection:
    r"""Return the orthogonal projection on the dominant left singular vectors of a cross Gramian, :math:`X = U \Sigma V^H`, :math:`T_l = T_r = U_r`.

    Parameters
    ----------
    X : array
        Shape ``(..., n, n)``.
    rule : Rule or int
        Chooses by the singular values of `X`; ``ErrorBound`` is refused.

    Returns
    -------
    Projection
        ``left`` and ``right`` are the same, with orthonormal columns; ``hankel_singular_values`` are the singular values of `X`, which depend on the coordinates.

    Raises
    ------
    HsvError, ShapeError, DtypeError, NonFiniteError, OrderError
        As in :func:`balancing_projection`.

    References
    ----------
    Sorensen and Antoulas, "The Sylvester equation and approximate balanced reduction", Linear Algebra Appl. 351 (2002). Himpe and Ohlberger, Math. Probl. Eng. (2014).

    Examples
    --------
    >>> import hsv
    >>> hsv.cross_gramian_projection([[3.0, 0.0], [0.0, -1.0]], 1).hankel_singular_values
    array([3., 1.])
    """
    X = as_arrays(("X",), (X,))[0]
    require_square("X", X)
    require_finite("X", X)
    U, sigma, _ = svd(widen(X))
    noise = X.shape[-1] * float(namespace(X).finfo(X.dtype).eps) * to_host(sigma[..., 0])
    orders, notes, keep = _kept(rule, sigma, Rounding(noise, noise))
    basis = round_to(U[..., :, : keep.shape[-1]] * keep[..., None, :], X)
    return Projection(basis, basis, round_to(sigma, real(X)), from_host(orders, X), notes)


def _kept(rule: Rule | int, sigma: Array, rounding: Rounding) -> tuple[np.ndarray, tuple[str, ...], Array]:
    """Orders, notes, and ones for what is kept ``(..., r)``."""
    rule = as_rule(rule)
    if isinstance(rule, ErrorBound):
        raise OrderError(
            "ErrorBound asks for a bound, which given Gramians do not have; choose by Order, HankelSum or Threshold"
        )
    orders, notes = choose_orders(rule, to_host(sigma), stacklevel=4, rounding=rounding)
    xp = namespace(sigma)
    r = max(int(orders.max(initial=1)), 1)
    keep = xp.arange(r, device=device(sigma)) < from_host(orders, sigma)[..., None]
    return orders, notes, xp.astype(keep, sigma.dtype)


def _hermitian(name: str, X: Array, eps: float) -> Array:
    xp = namespace(X)
    mean = 0.5 * (X + conjugate_transpose(X))
    size = to_host(xp.linalg.matrix_norm(X))
    allowed = 100 * X.shape[-1] * eps * size
    if np.any(to_host(xp.linalg.matrix_norm(X - mean)) > allowed):
        raise HsvError(
            f"{name} must be Hermitian, but differs from its conjugate transpose by more than rounding; a cross Gramian goes to cross_gramian_projection"
        )
    least = to_host(xp.linalg.eigvalsh(mean))[..., 0]
    if np.any(least < -allowed):
        raise HsvError(
            f"{name} must be positive semidefinite, found the eigenvalue {least.min():.3g}; look for a difference of Gramians, or a wrong sign"
        )
    return mean
