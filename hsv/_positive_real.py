"""Positive-real balancing: reductions that keep passivity."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from hsv._array import to_host, widen
from hsv._errors import HsvError, IllConditionedError, ShapeError
from hsv._hankel import Factors
from hsv._lyapunov import Matrix, adjoint
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
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_system

_EPS = float(np.finfo(np.float64).eps)


def positive_real_truncation(sys: LinearSystem, rule: Rule | int) -> RiccatiReduction:
    r"""Reduce a passive system so that the result is passive: :math:`G + G^H \ge 0` at all frequencies.

    With the stabilising solutions of the positive-real equations, in continuous time

    .. math:: A^H Q + Q A + (C^H - Q B) E^{-1} (C - B^H Q) = 0, \qquad
              A P + P A^H + (B - P C^H) E^{-1} (B^H - C P) = 0, \qquad E = D + D^H,

    and their discrete counterparts, the state is balanced so that :math:`P = Q = \operatorname{diag}(\pi)`, and the states of small :math:`\pi` are truncated. Between
    :math:`x^H Q x` and :math:`x^H P^{-1} x` lies what a passive system may store in a state and what it takes at least to get there.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable, with as many outputs as inputs (voltages and currents of the same ports) and :math:`G + G^H > 0` at all frequencies, infinity among them: :math:`D + D^H > 0`.
        Continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`hsv.balanced_truncation`, of the characteristic values; :class:`hsv.ErrorBound` of ``scattering_error_bound``.

    Returns
    -------
    RiccatiReduction
        Stable and passive. ``characteristic_values`` are :math:`\pi`, all below 1. ``scattering_error_bound`` is :math:`2 \sum_{i > r} \pi_i`: it bounds the H-infinity norm of the error of the scattering
        function :math:`(G - I)(G + I)^{-1}`, and so the gap between both systems. Of :math:`\|G - G_r\|_\infty` itself theory has no bound that is known before the reduction;
        :func:`hsv.hinf_error` computes it.

    Raises
    ------
    UnstableSystemError, ShapeError
        The system is not stable, or not square.
    HsvError
        :math:`D + D^H` is not positive definite, or :math:`G + G^H` has a negative eigenvalue; the message has the eigenvalue and the frequency.
    IllConditionedError
        :math:`G + G^H` is nearly singular somewhere, so that the equations cannot be solved to working precision.
    OrderError
        No order meets the rule.

    Warns
    -----
    OrderWarning
        As in :func:`hsv.balanced_truncation`.

    Notes
    -----
    The equations are those of bounded-real balancing of the scattering function, in the same coordinates. Each solution is the Gramian of a spectral factor of :math:`G + G^H` with the poles
    of `sys`, from which its factor comes. A system with a singular :math:`D + D^H` (an inductor in series, a capacitor across a port) becomes admissible with a small resistor at each port, ``D + delta * I``; the
    result is then passive with that resistor. ``O((2n)^3)``, in double precision on the host, one system of a batch after the other.

    References
    ----------
    Desai and Pal, "A transformation approach to stochastic model reduction", IEEE Trans. Automat. Control 29 (1984); Gugercin and Antoulas, "A survey of model reduction by balanced truncation and some
    new results", Int. J. Control 77 (2004); Guiver and Opmeer, "Error bounds in the gap metric for dissipative balanced approximations", Linear Algebra Appl. 439 (2013), for the bound.

    Examples
    --------
    >>> import hsv
    >>> one = [[1.0, 0.0], [0.0, 1.0]]
    >>> sys = hsv.StateSpace([[-1.0, 0.0], [0.0, -8.0]], one, one, [[0.5, 0.0], [0.0, 0.5]], dt=0)     # 1/2 + 1/(s + 1) and 1/2 + 1/(s + 8)
    >>> red = hsv.positive_real_truncation(sys, 1)
    >>> red.characteristic_values.round(4)                                              # 2 - sqrt(3), 9 - sqrt(80)
    array([0.2679, 0.0557])
    """
    require_system(sys)
    if sys.n_inputs != sys.n_outputs:
        raise ShapeError(
            f"a passive system has as many outputs as inputs, got {sys.n_inputs} inputs and {sys.n_outputs} outputs"
        )
    A, B, C, D = stable_matrices_on_host(sys)
    _check_feedthrough(D)
    try:
        observe, first = _factor(A, B, C, D, discrete=sys.is_discrete)
        control, second = _factor(*dual(A, B, C, D), discrete=sys.is_discrete)
    except IllConditionedError as error:
        _refuse(sys, error)
    factors = Factors(control, observe, sensitivity=np.maximum(first, second))
    return truncate(sys, rule, factors, twice_the_tail, "scattering_error_bound")


def _factor(A: Matrix, B: Matrix, C: Matrix, D: Matrix, *, discrete: bool) -> tuple[Matrix, Matrix]:
    solution = stabilising_solution(A, B, np.zeros_like(A), -(D + adjoint(D)), -adjoint(C), discrete=discrete)
    return storage_factor(A, solution, discrete=discrete), solution.sensitivity


def _check_feedthrough(D: Matrix) -> None:
    smallest = np.linalg.eigvalsh(D + adjoint(D))[..., 0]
    if np.all(smallest > 4 * D.shape[-1] * _EPS * np.abs(D).max(axis=(-2, -1))):
        return
    index = np.unravel_index(int(np.argmin(smallest)), smallest.shape)
    where = f" (system {tuple(int(i) for i in index)})" if index else ""
    raise HsvError(
        f"D + D^H must be positive definite, its smallest eigenvalue{where} is {smallest[index]:.3g}; if the system is passive, put a small resistor at each port: reduce it with D + delta * I"
    )


def _refuse(sys: LinearSystem, cause: IllConditionedError) -> NoReturn:
    """Say where the system is not passive, as far as a grid of frequencies shows it."""
    poles = to_host(widen(sys.poles())).ravel().astype(np.complex128)
    if sys.is_discrete:
        w = np.concatenate([np.angle(poles), np.linspace(-np.pi, np.pi, 257)]) / sys.step
    else:
        size = np.abs(poles)
        grid = np.geomspace(0.1 * size.min(), 10 * size.max(), 128)
        w = np.concatenate([poles.imag, size, -size, [0.0], grid, -grid])
    w = np.unique(w)
    assert isinstance(sys, StateSpace | DiagonalStateSpace)
    response = to_host(widen(sys.frequency_response(w)))
    smallest = np.linalg.eigvalsh(response + adjoint(response))[..., 0]  # (..., k)
    index = np.unravel_index(int(np.argmin(smallest)), smallest.shape)
    where = f" of system {tuple(int(i) for i in index[:-1])}" if len(index) > 1 else ""
    found = (
        f"the smallest eigenvalue of G + G^H{where} found on a grid is {smallest[index]:.3g}, at w = {w[index[-1]]:.6g}"
    )
    if smallest[index] <= 0:
        raise HsvError(f"the system must be passive: {found}; it must be positive at all frequencies") from cause
    raise IllConditionedError(
        f"the positive-real equations cannot be solved to working precision: {found}; likely causes: the system is not passive at a frequency between, or only just; enlarge D"
    ) from cause
