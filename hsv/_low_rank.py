"""Gramians of large sparse systems by low-rank factors: the alternating-direction implicit (ADI) iteration."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from hsv._arguments import checked_count, checked_tolerance
from hsv._array import widen
from hsv._errors import (
    ConvergenceError,
    DtypeError,
    IllConditionedError,
    UnstableSystemError,
)
from hsv._large_systems import Bases, LargeSystem
from hsv._low_rank_reduction import hankel_values, left_out, steady_state_reduction, truncation
from hsv._order import Rule
from hsv._pencils import Factorization, Pencil
from hsv._progress import AdiStep, Progress, reporter
from hsv._scaling import exponents, shifted
from hsv._shifts import Shifts, as_shifts, project

if TYPE_CHECKING:
    from hsv._sparse_systems import SparseStateSpace

_EPS = float(np.finfo(np.float64).eps)
_DUST = 1e-60
_TOLERANCE = 1e-12
_ITERATIONS = 300
_GROWTH = 1e3  # times the first residual: time to look for an unstable pole
_PATIENCE = 40  # iterations in which the residual should have fallen by half
_AT_MINUS_ONE = 1e4 * _EPS  # a pole of a matrix that is not normal, as far as rounding moves it
_LANCZOS_STEPS = 12  # enough for the largest eigenvalue of the residual to a few per cent


@dataclass(frozen=True)
class LowRankFactor:
    r"""A thin factor ``Z`` of a Gramian, :math:`P \approx Z Z^H`.

    Attributes
    ----------
    factor : numpy.ndarray
        ``Z``, shape ``(n, k)``, double precision, real for a real system.
    relative_residual : float
        Of the Lyapunov equation, in the 2-norm and relative to its right-hand side, as the iteration keeps it.
    checked_residual : float
        The same computed from ``Z`` and the matrices alone, by twelve Lanczos steps. Rounding errors of the products are in it, so that it may end above the other.
    history : tuple of AdiStep
    """

    factor: np.ndarray
    relative_residual: float
    checked_residual: float
    history: tuple[AdiStep, ...] = field(repr=False)

    def __repr__(self) -> str:
        n, k = self.factor.shape
        return f"<LowRankFactor: {n} x {k}, {self.factor.dtype}, relative residual {self.relative_residual:.1e}, checked {self.checked_residual:.1e}, {len(self.history)} shifts>"

    def compressed(self, tolerance: float = 1e-15) -> LowRankFactor:
        """Return a factor with fewer, orthogonal columns: singular values of ``Z`` below ``sqrt(tolerance)`` times the largest are dropped.

        That changes the Gramian by at most `tolerance` relatively. ``O(n k^2)``. The residuals are those before.
        """
        tolerance = checked_tolerance(tolerance, zero=True)
        if self.factor.shape[1] == 0:
            return self
        Q, R = scipy.linalg.qr(self.factor, mode="economic", check_finite=False)
        U, s, _ = np.linalg.svd(R)
        keep = s > max(math.sqrt(tolerance), _EPS) * s[0]
        return LowRankFactor(
            Q @ (U[:, : len(s)][:, keep] * s[keep]), self.relative_residual, self.checked_residual, self.history
        )


@dataclass(frozen=True)
class LowRankGramians(LargeSystem):
    """Factors of both Gramians of a large system, which :func:`hsv.hankel_singular_values`, :func:`hsv.balanced_truncation`, :func:`hsv.balancing_free_truncation`
    and :func:`hsv.singular_perturbation` take in place of the system: computed once, used for several rules.

    Attributes
    ----------
    system : SparseStateSpace
    controllability, observability : LowRankFactor
        ``P = Z Z^H`` and, with a mass matrix, ``Q = E^H Z Z^H E``.
    left_out : float
        An estimate of the sum of the Hankel singular values that the factors do not have; error bounds count it. It continues the
        fall of the residuals, and the contributions of the last columns of each factor with it.
    """

    system: SparseStateSpace
    controllability: LowRankFactor
    observability: LowRankFactor
    left_out: float

    @property
    def n_states(self) -> int:
        """Number of states of the system."""
        return self.system.n_states

    @property
    def history(self) -> tuple[AdiStep, ...]:
        """Every shift, and the residuals after it."""
        return self.controllability.history

    def _large_hankel_values(self) -> np.ndarray:
        return hankel_values(self)

    def _large_truncation(self, rule: Rule, bases: Bases, *, stacklevel: int) -> Any:
        return truncation(self, rule, bases, stacklevel=stacklevel + 1)

    def _large_singular_perturbation(self, rule: Rule, *, stacklevel: int) -> Any:
        return steady_state_reduction(self, rule, stacklevel=stacklevel + 1)


def low_rank_gramians(
    sys: SparseStateSpace,
    *,
    tolerance: float = _TOLERANCE,
    max_iterations: int = _ITERATIONS,
    shifts: Shifts | Sequence[complex] | None = None,
    progress: Progress = False,
) -> LowRankGramians:
    r"""Return thin factors of both Gramians of a large sparse system, :math:`P \approx Z_c Z_c^H` and :math:`Q \approx E^H Z_o Z_o^H E`.

    In continuous time

    .. math:: A Z_c Z_c^H E^H + E Z_c Z_c^H A^H + B B^H = R_c, \qquad A^H Z_o Z_o^H E + E^H Z_o Z_o^H A + C^H C = R_o

    and in discrete time :math:`A Z_c Z_c^H A^H - E Z_c Z_c^H E^H + B B^H = R_c`, with residuals :math:`R` of low rank. From :math:`W_0 = B` each step does

    .. math:: V_k = (A + p_k E)^{-1} W_{k-1}, \qquad W_k = W_{k-1} - 2 \operatorname{Re}(p_k) E V_k, \qquad
              Z_k = \left[ Z_{k-1},\ \sqrt{-2 \operatorname{Re} p_k}\, V_k \right], \qquad R_k = W_k W_k^H.

    Parameters
    ----------
    sys : SparseStateSpace
        Stable; continuous or discrete, real or complex, with an invertible ``E``.
    tolerance : float
        Both residuals are brought below this, relative to the right-hand side, in the 2-norm. Hankel singular values far below the largest need a small one.
    max_iterations : int
        The most shifts; a pair of conjugates counts once.
    shifts : Shifts or sequence of numbers, optional
        :class:`hsv.ProjectionShifts` by default: chosen while it runs. :class:`hsv.PenzlShifts` and :class:`hsv.WachspressShifts` choose before. Numbers with negative real parts are used in turn.
    progress : bool or callable
        True: a progress bar in the terminal. A callable gets each :class:`hsv.AdiStep`.

    Returns
    -------
    LowRankGramians
        Its `history` has each shift and the residuals.

    Raises
    ------
    UnstableSystemError
        The residual does not fall, and a pole on the wrong side was found.
    ConvergenceError
        The tolerance was not reached; what was is in the message and in ``error.history``. Nothing is returned in such a case.
    IllConditionedError
        ``E`` is singular, or a shifted matrix is so badly scaled that LU factorisation fails.
    MissingBackendError
        ``progress=True`` without rich.

    Notes
    -----
    One sparse LU factorisation a shift serves both sides, which use the same shifts: the side that is behind chooses them. Real systems stay in real
    arithmetic but for the solves with complex shifts, each of which does the work of two. Discrete time is the Cayley transform of the pencil,
    :math:`(A - E, A + E)`, which has the same Gramians. Memory: the columns of both factors and one factorisation.

    The norm of the residual is that of :math:`W_k^H W_k`. At the end it is computed again without ``W``, and what rounding errors cannot explain is an error.

    That the iteration converges shows every mode stable that inputs reach or outputs see; modes that are hidden from both are not looked for.

    The rank of the factors is the number of modes that matter, roughly: diffusion needs some tens of columns, a structure with
    a thousand lightly damped modes all of which the input excites needs thousands, and then this is the wrong method.

    References
    ----------
    Li and White, "Low rank solution of Lyapunov equations", SIAM J. Matrix Anal. Appl. 24 (2002). Benner, Kürschner, Saak, "Efficient handling of complex shift parameters in the low-rank
    Cholesky factor ADI method", Numer. Algorithms 62 (2013), and "An improved numerical method for balanced truncation for symmetric second-order systems",
    Math. Comput. Model. Dyn. Syst. 19 (2013) for the residual.

    Examples
    --------
    >>> import hsv
    >>> import numpy as np
    >>> import scipy.sparse
    >>> n = 1000
    >>> ones = np.ones(n)
    >>> A = scipy.sparse.diags_array([ones[1:], -2 * ones, ones[1:]], offsets=[-1, 0, 1]) * (n + 1.0) ** 2     # heat in a rod
    >>> B, C = ones[:, None], ones[None, :] / n
    >>> gramians = hsv.low_rank_gramians(hsv.SparseStateSpace(A, B, C, dt=0))
    >>> bool(gramians.controllability.checked_residual < 1e-10)
    True
    >>> hsv.hankel_singular_values(gramians)[:2].round(5)
    array([0.0413 , 0.00038])
    >>> hsv.balanced_truncation(gramians, hsv.ErrorBound(1e-4)).system.n_states
    2
    """
    run = _Run(sys, (False, True), tolerance, max_iterations, shifts, progress)
    control, observe = run.factors()
    with np.errstate(over="ignore"):
        rest = float(np.ldexp(left_out(sys._pencil, *run.sides), sum(side.exponent for side in run.sides)))
    return LowRankGramians(sys, control, observe, rest)


def low_rank_controllability_factor(
    sys: SparseStateSpace,
    *,
    tolerance: float = _TOLERANCE,
    max_iterations: int = _ITERATIONS,
    shifts: Shifts | Sequence[complex] | None = None,
    progress: Progress = False,
) -> LowRankFactor:
    r"""Return a thin factor of the controllability Gramian, :math:`P \approx Z Z^H`.

    Everything as in :func:`low_rank_gramians`, which needs no more factorisations for both.

    Examples
    --------
    >>> import hsv
    >>> import scipy.sparse
    >>> sys = hsv.SparseStateSpace(scipy.sparse.diags_array([-1.0, -2.0]), [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> Z = hsv.low_rank_controllability_factor(sys).factor
    >>> (Z @ Z.T).round(6)
    array([[0.5     , 0.333333],
           [0.333333, 0.25    ]])
    """
    return _Run(sys, (False,), tolerance, max_iterations, shifts, progress).factors()[0]


def low_rank_observability_factor(
    sys: SparseStateSpace,
    *,
    tolerance: float = _TOLERANCE,
    max_iterations: int = _ITERATIONS,
    shifts: Shifts | Sequence[complex] | None = None,
    progress: Progress = False,
) -> LowRankFactor:
    r"""Return a thin factor for the observability Gramian, :math:`Q \approx Z Z^H`, or :math:`Q \approx E^H Z Z^H E` with a mass matrix.

    Everything as in :func:`low_rank_gramians`, which needs no more factorisations for both.

    Examples
    --------
    >>> import hsv
    >>> import scipy.sparse
    >>> sys = hsv.SparseStateSpace(scipy.sparse.diags_array([-1.0, -2.0]), [[1.0], [1.0]], [[1.0, 2.0]], dt=0)
    >>> Z = hsv.low_rank_observability_factor(sys).factor
    >>> (Z @ Z.T).round(6)
    array([[0.5     , 0.666667],
           [0.666667, 1.      ]])
    """
    return _Run(sys, (True,), tolerance, max_iterations, shifts, progress).factors()[0]


class _Side:
    """The iteration for one Gramian: its residual factor and the columns so far."""

    def __init__(self, pencil: Pencil, rhs: np.ndarray, *, adjoint: bool) -> None:
        self.pencil, self.adjoint = pencil, adjoint
        self.exponent = int(exponents(rhs))
        rhs = shifted(rhs, np.asarray(-self.exponent))  # its square is computed below
        self.rhs = rhs
        self.residual_factor = _thin(rhs)
        self.blocks: list[np.ndarray] = []
        self.widths: list[int] = []  # columns that a step made
        self.levels = [1.0]  # sqrt of the residual, before the first step and after each
        self._first = self._size()
        self.residual = 1.0 if self._first > 0 else 0.0

    @property
    def name(self) -> str:
        return "observability" if self.adjoint else "controllability"

    def _size(self) -> float:
        """``|W W^H|`` in the 2-norm."""
        W = self.residual_factor
        return float(np.linalg.norm(W.conj().T @ W, 2)) if W.shape[1] else 0.0

    def step(self, shift: complex, solves: Factorization, *, paired: bool) -> None:
        if self.adjoint:
            shift = shift.conjugate()
        V = _without_dust(solves.solve(self.residual_factor, adjoint=self.adjoint))
        weight = -2 * shift.real
        if paired and shift.imag != 0:  # the step with p and that with conj(p) in one, in real arithmetic
            ratio = shift.real / shift.imag
            re, im = V.real + ratio * V.imag, V.imag
            self.blocks += [math.sqrt(2 * weight) * re, math.sqrt(2 * weight * (1 + ratio**2)) * im]
            update = 2 * weight * re
        else:
            self.blocks.append(math.sqrt(weight) * V)
            update = weight * V
        self.residual_factor = _without_dust(self.residual_factor + self.pencil.mass(update, adjoint=self.adjoint))
        self.residual = self._size() / self._first
        self.widths.append(V.shape[1] * (2 if paired and shift.imag != 0 else 1))
        self.levels.append(math.sqrt(self.residual))

    def factor(self) -> np.ndarray:
        """The columns for ``rhs``, which is the given one divided by ``2^exponent``."""
        if not self.blocks:
            return np.zeros((self.pencil.n_states, 0), dtype=self.residual_factor.dtype)
        factor = np.concatenate(self.blocks, axis=1)
        self.blocks = [factor]
        return factor

    def checked_residual(self) -> float:
        """The relative residual from the factor and the matrices alone: largest eigenvalue by Lanczos' method."""
        Z, B = self.factor(), self.rhs
        if self._first == 0:
            return 0.0
        n = len(B)

        def residual(x: np.ndarray) -> np.ndarray:
            def inner(y: np.ndarray) -> np.ndarray:
                return Z @ (Z.conj().T @ y)

            A, E, flip = self.pencil.apply, self.pencil.mass, not self.adjoint
            one = A(inner(E(x, adjoint=flip)), adjoint=self.adjoint)
            other = E(inner(A(x, adjoint=flip)), adjoint=self.adjoint)
            return one + other + B @ (B.conj().T @ x)

        steps = min(_LANCZOS_STEPS, n)
        V = np.zeros((n, steps + 1), dtype=np.result_type(Z, B))
        T = np.zeros((steps, steps))
        V[:, 0] = _unit(np.random.default_rng(0).standard_normal(n))
        for k in range(steps):
            w = residual(V[:, k : k + 1])[:, 0]
            T[k, k] = float(np.real(np.vdot(V[:, k], w)))
            for _ in range(2):
                w = w - V[:, : k + 1] @ (V[:, : k + 1].conj().T @ w)
            beta = float(np.linalg.norm(w))
            if k + 1 == steps or beta == 0:
                T = T[: k + 1, : k + 1]
                break
            T[k, k + 1] = T[k + 1, k] = beta
            V[:, k + 1] = w / beta
        return float(np.max(abs(np.linalg.eigvalsh(T)))) / self._first

    def rounding(self) -> float:
        """What rounding errors may add to :meth:`checked_residual`."""
        if self._first == 0:
            return 0.0
        A, E = self.pencil.sizes()
        size = float(np.linalg.norm(self.factor())) ** 2
        return _EPS * (2 * A * E * size + self._first) / self._first


class _Run:
    """The iteration for one side or both, with one factorisation a shift."""

    def __init__(
        self,
        sys: SparseStateSpace,
        adjoints: tuple[bool, ...],
        tolerance: float,
        max_iterations: int,
        shifts: Any,
        progress: Progress,
    ) -> None:
        _check(sys)
        self.tolerance, self.max_iterations = (
            checked_tolerance(tolerance),
            checked_count("max_iterations", max_iterations),
        )
        self.system = sys
        pencil = sys._pencil
        try:
            pencil.mass_factorization()
        except IllConditionedError as error:
            raise IllConditionedError(
                f"E must be invertible, and is {error}: algebraic equations among the rows have to be eliminated first"
            ) from error
        self.pencil = pencil.cayley() if sys.is_discrete else pencil
        scale = math.sqrt(2.0) if sys.is_discrete else 1.0
        sides = {False: widen(sys.B), True: widen(sys.C).conj().T}
        dtype = np.complex128 if pencil.is_complex else np.float64
        self.sides = [
            _Side(self.pencil, scale * sides[adjoint].astype(np.result_type(dtype, sides[adjoint])), adjoint=adjoint)
            for adjoint in adjoints
        ]
        self.paired = not any(np.iscomplexobj(side.rhs) for side in self.sides)
        if not self.paired:
            for side in self.sides:
                side.residual_factor = side.residual_factor.astype(np.complex128)
        self.shifts = as_shifts(shifts)
        self.history: list[AdiStep] = []
        self.report = reporter(progress, tolerance)
        self._lowest, self._lowest_at, self._looked_at = 1.0, 0, 0

    def factors(self) -> list[LowRankFactor]:
        """Iterate, check, and return the factor of each side."""
        with self.report as report:
            self._iterate(report)
        history = tuple(self.history)
        return [
            LowRankFactor(
                shifted(side.factor(), np.asarray(side.exponent)), side.residual, self._check_residual(side), history
            )
            for side in self.sides
        ]

    def _iterate(self, report: Callable[[AdiStep], object]) -> None:
        start = time.perf_counter()
        choose = None
        queue: deque[complex] = deque()
        while active := [side for side in self.sides if side.residual > self.tolerance]:
            if len(self.history) == self.max_iterations:
                self._fail(f"max_iterations={self.max_iterations} shifts were used up")
            if choose is None:
                choose = self.shifts.begin(self.pencil, paired=self.paired)
            if not queue:
                queue.extend(choose(max(active, key=lambda side: side.residual)))
            shift = self.pencil.admissible(complex(queue.popleft()))
            solves = self._factorise(shift)
            for side in active:
                side.step(shift, solves, paired=self.paired)
            step = AdiStep(
                len(self.history) + 1, shift, self._residual(False), self._residual(True), time.perf_counter() - start
            )
            self.history.append(step)
            report(step)
            self._watch(max(side.residual for side in self.sides))

    def _factorise(self, shift: complex) -> Factorization:
        try:
            return self.pencil.shifted(shift)
        except IllConditionedError as error:
            if "exactly singular" not in str(error):
                raise
            self._raise_unstable(-shift)
            raise AssertionError from error  # the line above raises

    def _residual(self, adjoint: bool) -> float | None:
        return next((side.residual for side in self.sides if side.adjoint == adjoint), None)

    def _watch(self, residual: float) -> None:
        """Look for an unstable pole where the residual has grown, or has not fallen for long."""
        k = len(self.history)
        if not math.isfinite(residual):
            self._fail("the residual overflowed")
        if residual < 0.5 * self._lowest:
            self._lowest, self._lowest_at = residual, k
        grown = residual > _GROWTH and k - self._looked_at >= 5
        if grown or k - max(self._lowest_at, self._looked_at) >= _PATIENCE:
            self._looked_at = k
            self._look_for_unstable_pole()

    def _look_for_unstable_pole(self) -> None:
        """Raise if inverse iteration near the rightmost projected eigenvalues, or near 0, ends at a pole that is not stable."""
        if self.system.is_discrete and self._has_pole_at_minus_one():
            self._raise_unstable(complex(math.inf))
        side = max(self.sides, key=lambda side: side.residual)
        newest = np.concatenate([*side.blocks[-60:], side.residual_factor], axis=1)[:, -120:]
        if not np.all(np.isfinite(newest)):
            newest = side.rhs
        projected = project(self.pencil, newest, side.residual_factor, adjoint=side.adjoint)
        values = projected.values[np.argsort(-projected.values.real)][:6]
        targets = [0.0, *values[values.imag >= 0][:3]] if self.paired else [0.0, *values[:3]]
        for target in targets:
            found = self._eigenvalue_near(complex(target))
            if found is not None and found.real >= -_EPS * abs(found):
                self._raise_unstable(found)

    def _has_pole_at_minus_one(self) -> bool:
        """Whether a pole lies at ``z = -1``, which the Cayley transform sends to infinity, where no finite target finds it."""
        try:
            values = _eigenvalues_near(self.system._pencil, -1.0 + 0j)
        except IllConditionedError:
            return False
        return bool(np.any(abs(values + 1) <= _AT_MINUS_ONE))

    def _eigenvalue_near(self, target: complex) -> complex | None:
        """The rightmost of the eigenvalues nearest to a number; None where they were not found."""
        values = _eigenvalues_near(self.pencil, target)
        return complex(values[int(np.argmax(values.real))]) if len(values) else None

    def _raise_unstable(self, pole: complex) -> None:
        discrete = self.system.is_discrete
        if discrete:  # of the Cayley transform (z - 1) / (z + 1)
            if not np.isfinite(pole):
                pole = -1 + 0j
            else:
                pole = (1 + pole) / (1 - pole) if pole != 1 else complex(math.inf)
        shown = f"{pole.real:.6g}" if pole.imag == 0 else f"{pole.real:.6g}{pole.imag:+.6g}i"
        rule = "inside the unit circle" if discrete else "in the left half plane"
        raise UnstableSystemError(
            f"the system must be asymptotically stable, found a pole at {shown}, which is not {rule}; stabilise it first, or project the unstable "
            "modes out (their number is small: scipy.sparse.linalg.eigs finds them)"
        )

    def _fail(self, why: str) -> None:
        """Raise that the tolerance was not reached: for an unstable pole, or else with what was reached."""
        if all(np.all(np.isfinite(side.residual_factor)) for side in self.sides):
            self._look_for_unstable_pole()
        reached = ", ".join(f"{side.name} {side.residual:.2e} with {_columns(side)} columns" for side in self.sides)
        raise ConvergenceError(
            f"{why} before the relative residual of each Gramian was below {self.tolerance:g}; reached: {reached}. Likely causes: many lightly damped modes (raise "
            "max_iterations, or most_columns of hsv.ProjectionShifts), a tolerance below what rounding allows, shifts that do not fit the spectrum",
            tuple(self.history),
        )

    def _check_residual(self, side: _Side) -> float:
        found = side.checked_residual()
        allowed = 10 * (self.tolerance + side.rounding())
        if found > allowed:
            raise ConvergenceError(
                f"the {side.name} Gramian's residual is {found:.2e}, where the iteration ended at {side.residual:.2e} and rounding explains {side.rounding():.1e}: the solves with shifted "
                "matrices are not accurate enough; likely causes: badly scaled states, or an operator whose solves are iterative or whose adjoint is not its adjoint",
                tuple(self.history),
            )
        return found


def _eigenvalues_near(pencil: Pencil, target: complex) -> np.ndarray:
    """The few eigenvalues nearest to a number, by Arnoldi's method with the inverse; none where that does not settle."""
    n = pencil.n_states
    try:
        solves = pencil.shifted(-target)
    except IllConditionedError:
        return np.array([target])
    dtype = np.complex128 if pencil.is_complex or target.imag else np.float64
    multiply = scipy.sparse.linalg.LinearOperator(
        (n, n), dtype=dtype, matvec=lambda x: solves.solve(pencil.mass(x.reshape(n, 1)))[:, 0]
    )
    if n < 5:
        inverse = np.linalg.eigvals(multiply @ np.eye(n, dtype=dtype))
    else:
        try:
            inverse = scipy.sparse.linalg.eigs(
                multiply,
                k=3,
                v0=np.random.default_rng(0).standard_normal(n),
                return_eigenvectors=False,
                maxiter=100,
            )
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            inverse = error.eigenvalues
    inverse = inverse[inverse != 0]
    return np.asarray(target + 1 / inverse)


def _columns(side: _Side) -> int:
    return sum(block.shape[1] for block in side.blocks)


def _thin(rhs: np.ndarray) -> np.ndarray:
    """A factor with the same product ``B B^H`` and independent columns."""
    if not np.any(rhs):
        return rhs[:, :0]
    if rhs.shape[1] == 1:
        return rhs
    Q, R = scipy.linalg.qr(rhs, mode="economic", check_finite=False)
    U, s, _ = np.linalg.svd(R, full_matrices=False)
    keep = s > rhs.shape[1] * _EPS * s[0]
    return rhs if np.all(keep) else np.asarray(Q @ (U[:, keep] * s[keep]))


def _without_dust(x: np.ndarray) -> np.ndarray:
    """The columns with zeros for entries that no rounding error could be as small as.

    Solutions of diffusion decay exponentially from where the heat comes in, down to numbers below the normal range, with which processors compute dozens of times more slowly.
    """
    size = abs(x)
    x[size < _DUST * size.max(axis=0)] = 0
    return x


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x))


def _full_name(x: object) -> str:
    package = type(x).__module__.split(".")[0]
    return type(x).__name__ if package == "builtins" else f"{package}.{type(x).__name__}"


def _check(sys: Any) -> None:
    if not isinstance(sys, LargeSystem) or isinstance(sys, LowRankGramians):
        raise DtypeError(
            f"sys must be a hsv.SparseStateSpace, got {_full_name(sys)}; dense systems have hsv.controllability_factor and hsv.observability_factor"
        )
