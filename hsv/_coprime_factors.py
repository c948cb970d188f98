"""Coprime factorisations, and the reduction of unstable systems through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hsv._arguments import as_number, checked_flag
from hsv._array import (
    conjugate_transpose,
    from_host,
    namespace,
    round_to,
    to_host,
    widen,
)
from hsv._errors import DtypeError, HsvError, IllConditionedError
from hsv._hankel import from_real_coordinates
from hsv._lyapunov import Matrix, adjoint
from hsv._order import Rule
from hsv._reduction import Reduction, balanced_truncation
from hsv._riccati import stabilising_solution
from hsv._riccati_balancing import RiccatiReduction, dual, matrices_on_host
from hsv._stabilisability import control_solution, require_regulable
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_system
from hsv._warnings import WarnTheCaller

_STEEPEST = 32.0  # exp(32) is 1 / 57 roundings of 1: the equations see poles no closer to 0


@dataclass(frozen=True)
class CoprimeFactors:
    r"""Two stable systems with the same poles and no common zero outside the stability region, whose quotient is a system.

    Attributes
    ----------
    system : StateSpace
        Both factors as one: :math:`[N\ \ M]` of :math:`G = M^{-1} N` (left), :math:`[N; M]` of :math:`G = N M^{-1}` (right).
    left : bool
        Which of the two.
    """

    system: LinearSystem
    left: bool

    def __post_init__(self) -> None:
        if (self.system.n_inputs if self.left else self.system.n_outputs) <= self._size:
            raise HsvError(
                f"the factors side by side must have more {'inputs than outputs' if self.left else 'outputs than inputs'}"
            )

    @property
    def _size(self) -> int:
        """Rows and columns of the denominator."""
        return self.system.n_outputs if self.left else self.system.n_inputs

    @property
    def numerator(self) -> StateSpace:
        """``N``."""
        return self._part(slice(None, -self._size))

    @property
    def denominator(self) -> StateSpace:
        """``M``, square."""
        return self._part(slice(-self._size, None))

    def _part(self, place: slice) -> StateSpace:
        s = self.system.to_dense()
        if self.left:
            return StateSpace(s.A, s.B[..., :, place], s.C, s.D[..., :, place], dt=s.dt)
        return StateSpace(s.A, s.B, s.C[..., place, :], s.D[..., place, :], dt=s.dt)

    def quotient(self) -> StateSpace:
        r"""Return the system :math:`M^{-1} N` (left) or :math:`N M^{-1}` (right), with as many states as the factors.

        Raises
        ------
        IllConditionedError
            The denominator is not invertible at infinite frequency.

        Examples
        --------
        >>> import hsv
        >>> sys = hsv.StateSpace([[1.0]], [[2.0]], [[3.0]], dt=0)
        >>> hsv.normalized_coprime_factors(sys).quotient().poles().real.round(12)
        array([1.])
        """
        N, M = self.numerator, self.denominator
        A, B, C, D = (widen(x) for x in (N.A, N.B, N.C, N.D))
        xp = namespace(A)
        feedthrough = widen(M.D)
        condition = np.linalg.cond(to_host(feedthrough))
        if np.any(condition >= 1 / np.finfo(np.float64).eps):
            raise IllConditionedError(
                f"the denominator is not invertible at infinite frequency (condition {np.max(condition):.1e}), so that the quotient has no state space; choose another order, or a method that keeps D"
            )
        if self.left:
            solved = xp.linalg.solve(feedthrough, xp.concat([C, D], axis=-1))
            n = C.shape[-1]
            C, D = solved[..., :n], solved[..., n:]
            A, B = A - widen(M.B) @ C, B - widen(M.B) @ D
        else:
            rows = xp.concat([B, D], axis=-2)
            solved = conjugate_transpose(xp.linalg.solve(conjugate_transpose(feedthrough), conjugate_transpose(rows)))
            n = B.shape[-2]
            B, D = solved[..., :n, :], solved[..., n:, :]
            A, C = A - B @ widen(M.C), C - D @ widen(M.C)
        return StateSpace(*(round_to(x, N.B) for x in (A, B, C, D)), dt=N.dt)


def normalized_coprime_factors(sys: LinearSystem, *, left: bool = True) -> CoprimeFactors:
    r"""Return the normalised coprime factorisation of a system, stable or not.

    .. math:: G = M^{-1} N, \quad N N^H + M M^H = I \qquad\text{or}\qquad G = N M^{-1}, \quad N^H N + M^H M = I

    at all frequencies: the graph of the system, all pairs of inputs and outputs of finite energy, in orthonormal coordinates.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stabilisable and detectable; continuous or discrete, real or complex, one system or a batch.
    left : bool
        Whether the denominator stands on the left.

    Returns
    -------
    CoprimeFactors
        With the states of `sys`; array library, device and precision of the input.

    Raises
    ------
    IllConditionedError
        A pole on or outside the stability boundary is moved by no input or seen by no output; or the equation has no stabilising solution to working precision.

    Notes
    -----
    From the stabilising gain of the normalised filter equation (left) or control equation (right) of :func:`hsv.lqg_balanced_truncation`: with :math:`H` such that :math:`A + H C` is stable and a weight
    :math:`V`, :math:`N = V (A + H C,\ B + H D,\ C,\ D)` and :math:`M = V (A + H C,\ H,\ C,\ I)`. ``O((2n)^3)``, in double precision on the host.

    References
    ----------
    Vidyasagar, "Normalised coprime factorizations for nonstrictly proper systems", IEEE Trans. Automat. Control 33 (1988); Bongers and Heuberger, "Discrete normalized coprime factorization", Lect. Notes Control Inf. Sci. 144 (1990).

    Examples
    --------
    >>> import hsv
    >>> factors = hsv.normalized_coprime_factors(hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0))       # 1 / (s - 1)
    >>> N, M = (abs(x.frequency_response([0.7])[0, 0, 0]) ** 2 for x in (factors.numerator, factors.denominator))
    >>> round(float(N + M), 12)
    1.0
    """
    require_system(sys)

    def gain(A: Matrix, B: Matrix, C: Matrix, D: Matrix) -> tuple[Matrix, Matrix]:
        solution = control_solution(A, B, C, D, discrete=sys.is_discrete)
        return solution.gain, solution.weight

    return _factors(sys, gain, checked_flag("left", left), normalized=True)


def inner_coprime_factors(sys: LinearSystem, *, left: bool = True) -> CoprimeFactors:
    r"""Return the coprime factorisation with an inner denominator: :math:`M M^H = M^H M = I` at all frequencies.

    The unstable poles are mirrored at the stability boundary, the stable ones stay. Of a stable system it is :math:`N = G`, :math:`M = I`.

    Parameters, results and errors as in :func:`normalized_coprime_factors`, but a pole on the stability boundary is always an error.

    References
    ----------
    Varga, "A Schur method for computing coprime factorizations with inner denominators and applications in model reduction", American Control Conference (1993). SLICOT's SB08CD and SB08DD.

    Examples
    --------
    >>> import hsv
    >>> factors = hsv.inner_coprime_factors(hsv.StateSpace([[1.0, 0.0], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 1.0]], dt=0))
    >>> sorted(factors.system.poles().real.round(12).tolist())
    [-3.0, -1.0]
    """
    return _mirrored(sys, left, 0.0)


def stable_coprime_factors(sys: LinearSystem, decay: float, *, left: bool = True) -> CoprimeFactors:
    r"""Return a coprime factorisation whose factors have a prescribed stability degree.

    Poles with a slower decay than asked for are mirrored at that boundary, the others stay: at :math:`\operatorname{Re} \lambda = -` ``decay`` in continuous time, at
    :math:`|\lambda| = e^{-\text{decay}\,\Delta t}` in discrete time.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
    decay : float
        Positive, in 1/s, or per step where ``dt=True``; in discrete time at most 32 a step.
    left : bool
        Whether the denominator stands on the left.

    Returns, errors as in :func:`inner_coprime_factors`, with the stability boundary moved.

    Notes
    -----
    The inner factorisation of the system with shifted (discrete: scaled) ``A``. SLICOT's SB08ED and SB08FD put the slow poles onto the boundary instead.

    Examples
    --------
    >>> import hsv
    >>> factors = hsv.stable_coprime_factors(hsv.StateSpace([[1.0, 0.0], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 1.0]], dt=0), 2.0)
    >>> sorted(factors.system.poles().real.round(12).tolist())                        # -2 - 3 in place of 1
    [-5.0, -3.0]
    """
    number = as_number(decay)
    if number is None:
        raise DtypeError(f"decay must be a number, got {decay!r}")
    if not 0 < number < np.inf:
        raise HsvError(
            f"decay must be positive and finite, got {decay!r}; without a degree it is hsv.inner_coprime_factors"
        )
    return _mirrored(sys, left, number)


def coprime_factor_reduction(
    sys: LinearSystem,
    rule: Rule | int,
    *,
    factorization: Callable[[LinearSystem], CoprimeFactors] = normalized_coprime_factors,
    method: Callable[[LinearSystem, Rule | int], Reduction] = balanced_truncation,
) -> RiccatiReduction:
    r"""Reduce a system, stable or not, through its coprime factors.

    .. math:: G = M^{-1} N, \qquad [N\ \ M] \to [N_r\ \ M_r], \qquad G_r = M_r^{-1} N_r

    The factors side by side are a stable system, which any method reduces; the quotient of the reduced factors has its order.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stabilisable and detectable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As `method` takes it, about the Hankel singular values of the factors.
    factorization : callable
        :func:`normalized_coprime_factors`, :func:`inner_coprime_factors`, or any function from a system to :class:`CoprimeFactors`; ``functools.partial(hsv.inner_coprime_factors, left=False)`` for right factors.
    method : callable
        :func:`hsv.balanced_truncation`, :func:`hsv.singular_perturbation`, :func:`hsv.balancing_free_truncation`, :func:`hsv.hankel_norm_approximation`.

    Returns
    -------
    RiccatiReduction
        ``characteristic_values`` are the Hankel singular values of the factors; ``factor_error_bound`` is the bound of `method` for :math:`\|[N - N_r\ \ M - M_r]\|_\infty`, and, with
        normalised factors, for the gap between both systems. ``left`` and ``right`` are those of `method`, of the factors and of the system alike.

    Raises
    ------
    IllConditionedError
        The factorisation does not exist, or the reduced denominator is not invertible at infinite frequency.
    OrderError
        No order meets the rule.

    See Also
    --------
    lqg_balanced_truncation : the same reduced system from normalised factors, with the LQG characteristic values.
    reduce_stable_part : keeps the unstable poles exactly where they are.

    Notes
    -----
    With inner factors the error of the factors is an error of the system seen through an all-pass function, so that for stable systems nothing changes against `method` itself; with normalised factors the error
    is the one that matters to a controller. ``O((2n)^3)``, in double precision on the host.

    References
    ----------
    Liu and Anderson, "Controller reduction via stable factorization and balancing", Int. J. Control 44 (1986); McFarlane and Glover, "Robust controller design using normalized coprime factor plant descriptions" (1990).
    SLICOT's AB09FD and AB09GD.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1.0, 0.0], [0.0, -5.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], dt=0)
    >>> red = hsv.coprime_factor_reduction(sys, 1)
    >>> red.characteristic_values.round(4), red.system.poles().real.round(12)         # cos(pi / 8), and twice the other is the bound
    (array([0.9239, 0.0985]), array([1.]))
    """
    require_system(sys)
    factors = factorization(sys)
    with WarnTheCaller():
        reduced = method(factors.system, rule)
    if reduced.hankel_singular_values is None:
        raise HsvError("method must be one that computes Hankel singular values, such as hsv.balanced_truncation")
    common: dict[str, Any] = {f.name: getattr(reduced, f.name) for f in fields(Reduction)}
    common.update(
        system=CoprimeFactors(reduced.system, factors.left).quotient(), hankel_singular_values=None, error_bound=None
    )
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs and reduced.left is not None:
        common.update({name: from_real_coordinates(common[name]) for name in ("left", "right")})
    return RiccatiReduction(
        **common, characteristic_values=reduced.hankel_singular_values, factor_error_bound=reduced.error_bound
    )


def _mirrored(sys: LinearSystem, left: bool, decay: float) -> CoprimeFactors:
    """Factors from the gain of least effort that mirrors slow poles at the boundary of this decay."""
    require_system(sys)
    left = checked_flag("left", left)
    shift = decay * sys.step if sys.is_discrete else decay
    if sys.is_discrete and shift > _STEEPEST:
        raise HsvError(
            f"decay must be at most {_STEEPEST / sys.step:g}{'' if sys.dt is True else ' / s'} with {'dt=True' if sys.dt is True else f'steps of {sys.step:g} s'}, got {decay:g}: "
            f"poles within exp(-{_STEEPEST:g}) of 0 are 0 to working precision"
        )

    def gain(A: Matrix, B: Matrix, C: Matrix, D: Matrix) -> tuple[Matrix, Matrix]:
        # In discrete time (A + B F) e^shift is the closed loop of A e^shift and B e^shift.
        A, B = (A * np.exp(shift), B * np.exp(shift)) if sys.is_discrete else (A + shift * np.eye(A.shape[-1]), B)
        solution = stabilising_solution(
            A, B, np.zeros_like(A), np.eye(B.shape[-1]), np.zeros_like(B), discrete=sys.is_discrete
        )
        return solution.gain, solution.weight

    return _factors(sys, gain, left, decay=shift)


def _factors(
    sys: LinearSystem,
    gain: Callable[[Matrix, Matrix, Matrix, Matrix], tuple[Matrix, Matrix]],
    left: bool,
    *,
    normalized: bool = False,
    decay: float = 0.0,
) -> CoprimeFactors:
    """Right factors from a feedback and its weight, left ones as those of the dual system."""
    A, B, C, D = system = matrices_on_host(sys)
    # What moves the poles must: outputs, by an injection, or inputs, by a feedback. Normalised factors need both.
    inputs, outputs = (B if normalized or not left else None), (C if normalized or left else None)
    require_regulable(A, inputs, outputs, discrete=sys.is_discrete, decay=decay)
    A, B, C, D = dual(*system) if left else system
    F, weight = gain(A, B, C, D)
    V = np.linalg.inv(adjoint(np.linalg.cholesky(weight)))  # V V^H = weight^-1
    stacked = (
        A + B @ F,
        B @ V,
        np.concatenate([C + D @ F, F], axis=-2),
        np.concatenate([D @ V, V], axis=-2),
    )
    back = dual(*stacked) if left else stacked
    return CoprimeFactors(StateSpace(*(round_to(from_host(x, sys.B), sys.B) for x in back), dt=sys.dt), left)
