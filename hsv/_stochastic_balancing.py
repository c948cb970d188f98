"""Balanced stochastic truncation: a small relative error at every frequency."""

from __future__ import annotations

import math

import numpy as np

from hsv._arguments import as_number
from hsv._blas import product
from hsv._errors import DtypeError, HsvError, IllConditionedError
from hsv._hankel import Factors
from hsv._lyapunov import Matrix, adjoint, solve_lyapunov_factored_pair
from hsv._order import Rule
from hsv._riccati import stabilising_solution
from hsv._riccati_balancing import RiccatiReduction, stable_matrices_on_host, storage_factor, tail_sums, truncate
from hsv._systems import LinearSystem, require_system

_EPS = float(np.finfo(np.float64).eps)
# A value s multiplies the bound by (1 + s) / (1 - s): within this of 1 that is above 2e6, and a zero outside the stability region gives 1 with errors below it.
_AT_ONE = 1e-6
_LARGEST = 1e150


def stochastic_truncation(sys: LinearSystem, rule: Rule | int, *, alpha: float = 0.0) -> RiccatiReduction:
    r"""Reduce a stable system by balanced stochastic truncation, whose error is small relative to the gain at every frequency.

    Let :math:`W` be the spectral factor :math:`G G^H = W^H W` that is stable and has a stable inverse, in continuous time

    .. math:: A P + P A^H + B B^H = 0, \quad B_W = P C^H + B D^H, \quad E = D D^H, \qquad
              A^H Q + Q A + (C^H - Q B_W) E^{-1} (C - B_W^H Q) = 0,

    and in discrete time with :math:`B_W = A P C^H + B D^H`, :math:`E = C P C^H + D D^H` and the discrete equation. The state is balanced so that :math:`P = Q = \operatorname{diag}(s)`, and
    the states of small :math:`s` are truncated. These are the Hankel singular values of the phase function :math:`W^{-H} G`, at most 1; 1 stands for each zero outside the stability region.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable, with no more outputs than inputs; :math:`G` has full row rank at all frequencies, in continuous time at infinity too: ``D`` has full row rank. Real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`hsv.balanced_truncation`, of the characteristic values; :class:`hsv.ErrorBound` of ``relative_error_bound``.
    alpha : float
        Reduce :math:`[G\ \ \alpha I]` instead of :math:`G`: whatever the rank of ``D``, errors are relative where the gain is large against ``alpha`` and absolute where it is small. The larger it
        is, the closer the result is to :func:`hsv.balanced_truncation`. SLICOT calls it ``BETA``.

    Returns
    -------
    RiccatiReduction
        Stable. ``characteristic_values`` are :math:`s`. ``relative_error_bound`` is :math:`\prod_{i > r} \frac{1 + s_i}{1 - s_i} - 1`: it bounds the H-infinity norm of :math:`W^{-H} (G - G_r)`, which for one
        output is the error over the gain. Over the gain of the result it is no larger, so that the two differ by at most :math:`20 \log_{10}(1 + \text{bound})` decibels. With ``alpha`` it holds for :math:`W^H W = G G^H + \alpha^2 I`.

    Raises
    ------
    UnstableSystemError
    HsvError
        ``D`` has no full row rank, in continuous time and without ``alpha``; ``alpha`` is negative.
    IllConditionedError
        :math:`G` has a zero on the stability boundary, or too close to it.
    OrderError
        No order meets the rule, or it is below the number of zeros outside the stability region, which the method keeps.

    Warns
    -----
    OrderWarning
        As in :func:`hsv.balanced_truncation`.

    See Also
    --------
    reduce_stable_part : with ``method=hsv.stochastic_truncation``, for systems with unstable poles.

    Notes
    -----
    ``Q`` is the Gramian of :math:`C_W = E^{-1/2} (C - B_W^H Q)`, from which its factor comes. ``O((2n)^3)``, in double precision on the host, one system of a batch after the other. In discrete time
    the equations are the discrete ones, and the states that go are not truncated but take their steady state at ``z = -1``, which is truncation after a bilinear map and what AB09HD does: for this the bound is a theorem.
    ``D`` changes then, and ``left`` and ``right`` are None.

    References
    ----------
    Desai and Pal, "A transformation approach to stochastic model reduction", IEEE Trans. Automat. Control 29 (1984); Green, "A relative error bound for balanced stochastic truncation", IEEE Trans. Automat. Control 33 (1988);
    Varga and Fasol, "A new square-root balancing-free stochastic truncation model reduction algorithm", 12th IFAC World Congress (1993).

    Examples
    --------
    >>> import hsv
    >>> one = [[1.0, 0.0], [0.0, 1.0]]
    >>> sys = hsv.StateSpace([[-1.0, 0.0], [0.0, -8.0]], one, one, one, dt=0)           # 1 + 1 / (s + 1) and 1 + 1 / (s + 8)
    >>> red = hsv.stochastic_truncation(sys, 1)
    >>> red.characteristic_values.round(6), round(float(red.relative_error_bound), 12)  # 1 / 3 and 1 / 17; 18 / 16 - 1
    (array([0.333333, 0.058824]), 0.125)
    """
    require_system(sys)
    alpha = _checked_alpha(alpha)
    A, B, C, D = stable_matrices_on_host(sys)
    p = C.shape[-2]
    power = product(D, adjoint(D)) + alpha**2 * np.eye(p)
    pair = solve_lyapunov_factored_pair(A, B, C, discrete=sys.is_discrete)
    assert pair.sensitivity is not None  # on the host it is there
    control = product(pair.right, pair.controllability)
    seen = product(C, control)  # C P C^H = seen seen^H
    reached = product(control, adjoint(seen))  # P C^H
    if sys.is_discrete:
        power = power + product(seen, adjoint(seen))
        B_W = product(A, reached) + product(B, adjoint(D))
    else:
        _check_rank(D, alpha)
        B_W = reached + product(B, adjoint(D))
    try:
        solution = stabilising_solution(A, B_W, np.zeros_like(A), -power, -adjoint(C), discrete=sys.is_discrete)
        observe = storage_factor(A, solution, discrete=sys.is_discrete)
    except IllConditionedError as error:
        raise IllConditionedError(
            f"the spectral factor of G G^H was not found ({error}); likely causes: a zero on the stability boundary or close to it, or fewer inputs than outputs; pass alpha > 0"
        ) from error
    factors = Factors(control, observe, sensitivity=np.maximum(solution.sensitivity, pair.sensitivity))
    return truncate(
        sys, rule, factors, _bounds, "relative_error_bound", exact_at_minus_one=sys.is_discrete, least=_zeros_outside
    )


def _bounds(values: np.ndarray) -> np.ndarray:
    """The product of ``(1 + s) / (1 - s)``, less one, without cancellation; infinite where a discarded value is 1."""
    at_one = values >= 1.0
    terms = np.where(at_one, np.inf, np.arctanh(np.where(at_one, 0.0, values)))
    with np.errstate(over="ignore"):
        return np.asarray(np.expm1(2 * tail_sums(terms)))


def _zeros_outside(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sum(values >= 1.0 - _AT_ONE, axis=-1))


def _checked_alpha(alpha: float) -> float:
    number = as_number(alpha)
    if number is None:
        raise DtypeError(f"alpha must be a number, got {alpha!r}")
    if not 0 <= number < math.inf:
        raise HsvError(f"alpha must be zero or positive, and finite, got {alpha!r}")
    if number > _LARGEST:
        raise HsvError(
            f"alpha must be at most {_LARGEST:g}, for the equation has its square, got {alpha!r}; choose other units for the outputs"
        )
    return number


def _check_rank(D: Matrix, alpha: float) -> None:
    p, m = D.shape[-2:]
    wide = np.concatenate([D, np.broadcast_to(alpha * np.eye(p), (*D.shape[:-2], p, p))], axis=-1)
    singular = np.linalg.svd(wide, compute_uv=False)
    ratio = singular[..., -1] / np.where(singular[..., 0] > 0, singular[..., 0], 1.0)
    if np.all(ratio > (p + m) * _EPS):
        return
    index = np.unravel_index(int(np.argmin(ratio)), ratio.shape)
    where = f" of system {tuple(int(i) for i in index)}" if index else ""
    raise HsvError(
        f"D{where} must have full row rank {p} in continuous time, its singular values are {np.array2string(singular[index][:p], precision=3)}: relative to a gain that falls to zero no error is small; "
        "pass alpha > 0, near the gain below which errors need not be relative"
    )
