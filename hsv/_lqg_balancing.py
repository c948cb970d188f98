"""LQG balancing: both solutions of the normalised control and filter Riccati equations, for unstable systems too."""

from __future__ import annotations

import numpy as np

from hsv._hankel import Factors
from hsv._lyapunov import Matrix
from hsv._order import Rule
from hsv._riccati_balancing import (
    RiccatiReduction,
    dual,
    matrices_on_host,
    observability_from,
    tail_sums,
    truncate,
)
from hsv._stabilisability import control_solution, require_regulable
from hsv._systems import LinearSystem, require_system


def lqg_balanced_truncation(sys: LinearSystem, rule: Rule | int) -> RiccatiReduction:
    r"""Reduce a system, stable or not, by LQG balanced truncation.

    With the stabilising solutions of the normalised control and filter equations, in continuous time

    .. math:: A^H X + X A - (X B + C^H D) R^{-1} (B^H X + D^H C) + C^H C = 0, \qquad R = I + D^H D,

    .. math:: A Y + Y A^H - (Y C^H + B D^H) S^{-1} (C Y + D B^H) + B B^H = 0, \qquad S = I + D D^H,

    and their discrete counterparts, the state is balanced so that :math:`X = Y = \operatorname{diag}(\mu)`, and the states of small :math:`\mu` are truncated. :math:`\mu` are the LQG characteristic
    values: states that are both easy to filter and easy to control matter least to the closed loop with the optimal LQG compensator.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stabilisable and detectable; continuous or discrete, real or complex, one system or a batch. Poles may be unstable.
    rule : Rule or int
        As in :func:`hsv.balanced_truncation`, of the characteristic values; :class:`hsv.ErrorBound` of ``factor_error_bound``.

    Returns
    -------
    RiccatiReduction
        ``characteristic_values`` are :math:`\mu`. ``factor_error_bound`` is :math:`2 \sum_{i > r} \mu_i / \sqrt{1 + \mu_i^2}`: it bounds the H-infinity norm of :math:`[N - N_r,\ M - M_r]`, where
        :math:`G = M^{-1} N` is the normalised left coprime factorisation and :math:`G_r = M_r^{-1} N_r`, and with it the gap between both systems. Every controller that stabilises
        `sys` with a margin larger than that (in the gap's sense) stabilises the reduced system, and the reverse. The reduced system may be unstable, as `sys` may.

    Raises
    ------
    IllConditionedError
        A pole on or outside the stability boundary is moved by no input or seen by no output; or an equation has no stabilising solution to working precision.
    OrderError
        No order meets the rule.

    Warns
    -----
    OrderWarning
        As in :func:`hsv.balanced_truncation`.

    Notes
    -----
    Each solution is the Gramian of its closed loop, so that its factor comes from a factored Lyapunov equation (the last step of Newton's method) and small values keep digits that the solutions have lost.
    The result is that of :func:`hsv.coprime_factor_reduction` with normalised factors and balanced truncation, in other coordinates; scale inputs and outputs so that 1 means
    the same effort in each of them, for :math:`\mu` depends on it. ``O((2n)^3)``, in double precision on the host, one system of a batch after the other.

    References
    ----------
    Jonckheere and Silverman, "A new set of invariants for linear systems - application to reduced order compensator design", IEEE Trans. Automat. Control 28 (1983); Meyer, "Fractional balanced
    reduction: model reduction via fractional representation", IEEE Trans. Automat. Control 35 (1990), for the bound.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1.0, 0.0], [0.0, -5.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], dt=0)
    >>> red = hsv.lqg_balanced_truncation(sys, 1)
    >>> red.characteristic_values.round(4), red.system.poles().real.round(12)         # 1 + sqrt(2), -5 + sqrt(26)
    (array([2.4142, 0.099 ]), array([1.]))
    """
    require_system(sys)
    A, B, C, D = matrices_on_host(sys)
    require_regulable(A, B, C, discrete=sys.is_discrete)
    observe, first = _closed_loop_factor(A, B, C, D, discrete=sys.is_discrete)
    control, second = _closed_loop_factor(*dual(A, B, C, D), discrete=sys.is_discrete)
    factors = Factors(control, observe, sensitivity=np.maximum(first, second))
    return truncate(sys, rule, factors, _bounds, "factor_error_bound", stable=False)


def _bounds(values: np.ndarray) -> np.ndarray:
    """Of the Hankel values of the normalised factors."""
    return 2 * tail_sums(values / np.hypot(1.0, values))


def _closed_loop_factor(A: Matrix, B: Matrix, C: Matrix, D: Matrix, *, discrete: bool) -> tuple[Matrix, Matrix]:
    """Return a factor of the control equation's solution, the observability Gramian of the closed loop with outputs and efforts, and its sensitivity."""
    solution = control_solution(A, B, C, D, discrete=discrete)
    F = solution.gain
    return observability_from(A + B @ F, C + D @ F, F, discrete=discrete), solution.sensitivity
