"""Bounded-real balancing: reductions that keep a bound of the gain."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np

from hsv._arguments import as_number
from hsv._array import to_host
from hsv._errors import DtypeError, HsvError, IllConditionedError
from hsv._hankel import Factors
from hsv._lyapunov import Matrix, adjoint
from hsv._norms import hinf_norm
from hsv._order import Rule
from hsv._riccati import stabilising_solution
from hsv._riccati_balancing import (
    RiccatiReduction,
    dual,
    stable_matrices_on_host,
    storage_factor,
    truncate,
    twice_the_tail,
)
from hsv._systems import LinearSystem, require_system

_LARGEST = 1e150


def bounded_real_truncation(sys: LinearSystem, rule: Rule | int, *, gamma: float = 1.0) -> RiccatiReduction:
    r"""Reduce a system whose H-infinity norm is below ``gamma`` so that the norm of the result is, too.

    With the stabilising solutions of the bounded-real equations, in continuous time

    .. math:: A^H Q + Q A + (Q B + C^H D) R^{-1} (B^H Q + D^H C) + C^H C = 0, \qquad R = \gamma^2 I - D^H D,

    .. math:: A P + P A^H + (P C^H + B D^H) S^{-1} (C P + D B^H) + B B^H = 0, \qquad S = \gamma^2 I - D D^H,

    and their discrete counterparts, the state is balanced so that :math:`P = Q = \operatorname{diag}(\xi)`, and the states of small :math:`\xi` are truncated.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable, :math:`\|G\|_\infty < \gamma`; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`hsv.balanced_truncation`, of the characteristic values.
    gamma : float
        The bound of the gain. 1 is the scattering function of a passive system.

    Returns
    -------
    RiccatiReduction
        Stable, with :math:`\|G_r\|_\infty \le \gamma`. ``characteristic_values`` are :math:`\xi`, all below ``gamma``; ``error_bound`` is :math:`2 \sum_{i > r} \xi_i`, of the H-infinity norm of the error.

    Raises
    ------
    UnstableSystemError
    HsvError
        The H-infinity norm is not below ``gamma``; the message has the norm. ``gamma`` is not positive, or its square is beyond the range of double precision.
    IllConditionedError
        The norm is so close to ``gamma`` that the equations cannot be solved to working precision.
    DtypeError, OrderError
        ``gamma`` is no number; no order meets the rule.

    Warns
    -----
    OrderWarning
        As in :func:`hsv.balanced_truncation`.

    Notes
    -----
    Each solution is the Gramian of `sys` with the outputs (inputs) of a spectral factor :math:`W` of :math:`\gamma^2 I - G^H G` beside its own; the factors of the solutions come from those, and the
    bound is that of balanced truncation of the larger system. The larger ``gamma``, the closer the result is to balanced truncation, whose values are smaller. ``O((2n)^3)``, in double precision on the host, one
    system of a batch after the other.

    References
    ----------
    Opdenacker and Jonckheere, "A contraction mapping preserving balanced reduction scheme and its infinity norm error bounds", IEEE Trans. Circuits Syst. 35 (1988).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[-1.0, 0.0], [0.0, -5.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.0], [0.0, 1.4]], dt=0)
    >>> red = hsv.bounded_real_truncation(sys, 1)
    >>> red.characteristic_values.round(6), round(float(red.error_bound), 6)            # 1 / 3 and 1 / 7
    (array([0.333333, 0.142857]), 0.285714)
    """
    require_system(sys)
    gamma = _checked_gamma(gamma)
    A, B, C, D = stable_matrices_on_host(sys)
    if np.any(np.linalg.norm(D, 2, axis=(-2, -1)) >= gamma):
        _refuse(sys, gamma, None)
    try:
        observe, first = _factor(A, B, C, D, gamma, discrete=sys.is_discrete)
        control, second = _factor(*dual(A, B, C, D), gamma, discrete=sys.is_discrete)
    except IllConditionedError as error:
        _refuse(sys, gamma, error)
    factors = Factors(control, observe, sensitivity=np.maximum(first, second))
    return truncate(sys, rule, factors, twice_the_tail, "error_bound")


def _factor(A: Matrix, B: Matrix, C: Matrix, D: Matrix, gamma: float, *, discrete: bool) -> tuple[Matrix, Matrix]:
    r = adjoint(D) @ D - gamma**2 * np.eye(D.shape[-1])
    solution = stabilising_solution(A, B, adjoint(C) @ C, r, adjoint(C) @ D, discrete=discrete)
    return storage_factor(A, solution, C, discrete=discrete), solution.sensitivity


def _checked_gamma(gamma: float) -> float:
    number = as_number(gamma)
    if number is None:
        raise DtypeError(f"gamma must be a number, got {gamma!r}")
    if not 0 < number < math.inf:
        raise HsvError(f"gamma must be positive and finite, got {gamma!r}")
    if not 1 / _LARGEST < number < _LARGEST:
        raise HsvError(
            f"gamma must be between {1 / _LARGEST:g} and {_LARGEST:g}, for the equations have its square, got {gamma!r}; choose other units for the inputs or outputs"
        )
    return number


def _refuse(sys: LinearSystem, gamma: float, cause: IllConditionedError | None) -> NoReturn:
    norms = to_host(hinf_norm(sys))
    index = np.unravel_index(int(np.argmax(norms)), norms.shape)
    where = f" of system {tuple(int(i) for i in index)}" if index else ""
    norm = float(norms[index])
    if norm >= gamma:
        raise HsvError(
            f"the H-infinity norm{where} must be below gamma = {gamma:g}, found {norm:.9g}; pass a larger gamma"
        ) from cause
    raise IllConditionedError(
        f"the H-infinity norm{where}, {norm:.9g}, is too close to gamma = {gamma:g} for the bounded-real equations to be solved to working precision; pass a larger gamma"
    ) from cause
