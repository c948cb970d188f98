"""H2-optimal reduction by the iterative rational Krylov algorithm."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.optimize

from hsv._arguments import checked_count, checked_tolerance
from hsv._array import copied, from_host, is_complex, real, round_to, say_copied, to_host
from hsv._errors import OrderError, OrderWarning
from hsv._hankel import from_real_coordinates
from hsv._norms import h2_norm
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import Reduction, balanced_truncation
from hsv._scaling import exponents, require_representable, shifted, with_even_ports
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, in_double_precision, require_system
from hsv._warnings import WarnTheCaller, level_outside


def irka(sys: LinearSystem, rule: Rule | int, *, max_iterations: int = 100, tolerance: float = 1e-8) -> Reduction:
    r"""Reduce a stable system with a locally least error in the H2 norm.

    A reduced system with poles :math:`\lambda_i` and residues :math:`c_i b_i^H` can only be optimal if it interpolates `sys` tangentially at the mirrored poles,

    .. math:: G(s_i) b_i = G_r(s_i) b_i, \quad c_i^H G(s_i) = c_i^H G_r(s_i), \quad c_i^H G'(s_i) b_i = c_i^H G_r'(s_i) b_i, \qquad
              s_i = -\bar\lambda_i \ \text{ or } \ s_i = 1 / \bar\lambda_i

    (continuous or discrete time). The algorithm projects with the columns :math:`(s_i I - A)^{-1} B b_i` and :math:`(s_i I - A)^{-H} C^H c_i`, takes the poles of
    the result, and repeats. It begins at :func:`balanced_truncation`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        Chooses the order by the Hankel singular values; ``ErrorBound`` is refused, for the method has no bound.
    max_iterations : int
    tolerance : float
        Stop when no pole moves by more, relatively to the largest; in (0, 1).

    Returns
    -------
    Reduction
        ``error_bound`` is None. ``notes`` say after how many iterations the poles had settled, or that they had not. Where an iterate is unstable, or the H2 error
        ends above that of balanced truncation, the best stable iterate is returned, which may be balanced truncation itself; the notes say it.

    Raises
    ------
    UnstableSystemError
    OrderError
        No order meets the rule.
    DtypeError, HsvError
        `max_iterations` or `tolerance` is no such number; the reduced system is beyond the range of the precision of `sys`.

    Warns
    -----
    OrderWarning
        The poles had not settled after `max_iterations`; what :func:`balanced_truncation` warns of.

    Notes
    -----
    A fixed point is a local optimum, not always the global one. On the host, one system after another, ``O(n^3)`` once for a dense system and ``O(r n^2)`` an iteration (``O(r n m)`` for
    a diagonal one).

    References
    ----------
    Gugercin, Antoulas, Beattie, "H2 model reduction for large-scale linear dynamical systems", SIAM J. Matrix Anal. Appl. 30 (2008). Bunse-Gerstner, Kubalinska, Vossen,
    Wilczek, "H2-norm optimal model reduction for large scale discrete dynamical MIMO systems", J. Comput. Appl. Math. 233 (2010).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -3.0, -10.0], [[1.0], [1.0], [1.0]], [[1.0, 1.0, 1.0]], dt=0)
    >>> optimal, balanced = hsv.irka(sys, 1).system, hsv.balanced_truncation(sys, 1).system
    >>> bool(hsv.h2_norm(sys - optimal) < hsv.h2_norm(sys - balanced))
    True
    """
    require_system(sys)
    max_iterations, tolerance = checked_count("max_iterations", max_iterations), checked_tolerance(tolerance)
    if isinstance(as_rule(rule), ErrorBound):
        raise OrderError(
            "ErrorBound asks for a bound, which H2-optimal reduction does not have; use hsv.balanced_truncation"
        )
    say_copied(sys.B, "the iteration for H2-optimal reduction")
    double = in_double_precision(sys)
    even, power = with_even_ports(double)
    with WarnTheCaller():
        start = balanced_truncation(even, rule)
    orders = to_host(start.orders)
    A, B, C, left, right = (
        np.array(to_host(x))
        for x in (start.system.A, start.system.B * power, start.system.C / power, start.left, start.right)
    )
    notes = list(start.notes)
    for index in np.ndindex(*sys.batch_shape):
        r = int(orders[index])
        if not 0 < r < sys.n_states:
            continue
        found = _best(_full(double, index), right[index][:, :r], left[index][:, :r], max_iterations, tolerance)
        note = found.note + (f" (system {tuple(int(i) for i in index)})" if index else "")
        notes.append(note)
        if not found.settled:
            warnings.warn(note, OrderWarning, stacklevel=level_outside())
        A[index][:r, :r], B[index][:r], C[index][:, :r] = found.A, found.B, found.C
        left[index][:, :r], right[index][:, :r] = found.left, found.right
    A, B, C = (round_to(from_host(x, sys.B), sys.B) for x in (A, B, C))
    require_representable(A, B, C)
    bases = [from_host(x, sys.B) for x in (left, right)]
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
        bases = [from_real_coordinates(x) for x in bases]
    assert start.hankel_singular_values is not None
    return Reduction(
        system=StateSpace(A, B, C, copied(round_to(double.D, sys.B)), dt=sys.dt),
        orders=start.orders,
        hankel_singular_values=round_to(start.hankel_singular_values, real(sys.B)),
        error_bound=None,
        left=round_to(bases[0], sys.B),
        right=round_to(bases[1], sys.B),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Full:
    """One system to reduce, in Schur or diagonal form: ``T (n, n)`` upper triangular, or the poles ``(n,)``, and ``Z`` (None: identity)."""

    T: np.ndarray
    Z: np.ndarray | None
    A: np.ndarray  # (n, n), or the poles (n,)
    B: np.ndarray
    C: np.ndarray
    discrete: bool
    real: bool
    sizes: tuple[
        np.ndarray, np.ndarray
    ]  # powers of two that B and C were divided by: they count in fourth powers below

    def apply(self, x: np.ndarray) -> np.ndarray:
        """``A x``."""
        return self.A[:, None] * x if self.A.ndim == 1 else self.A @ x

    def resolvents(self, poles: np.ndarray, x: np.ndarray, *, adjoint: bool) -> np.ndarray:
        """Column ``i`` of ``x`` multiplied by the resolvent of ``A`` at the mirror image of pole ``i``, or by its adjoint.

        Continuous: ``(-conj(l) I - A)^{-1}``. Discrete: ``(I - conj(l) A)^{-1}``, which is the resolvent at ``1 / conj(l)`` up to a factor and exists at ``l = 0`` too.
        """
        shift, scale = (np.ones_like(poles), poles.conj()) if self.discrete else (-poles.conj(), np.ones_like(poles))
        if self.T.ndim == 1:
            values = shift - scale * self.T[:, None]
            return x / (values.conj() if adjoint else values)
        assert self.Z is not None
        x = self.Z.conj().T @ x
        eye = np.eye(len(self.T))
        columns = [
            scipy.linalg.solve_triangular(shift[i] * eye - scale[i] * self.T, x[:, i], trans="C" if adjoint else "N")
            for i in range(len(poles))
        ]
        return self.Z @ np.stack(columns, axis=1)

    def h2_error(self, A: np.ndarray, B: np.ndarray, C: np.ndarray) -> float:
        """H2 norm of the difference from a reduced system, in the units of the scaled ``B`` and ``C``; infinite for an unstable one."""
        dt = self.discrete
        poles = np.linalg.eigvals(A)
        if not np.all(np.abs(poles) < 1 if dt else poles.real < 0):
            return np.inf
        full: LinearSystem
        if self.A.ndim == 1:
            full = DiagonalStateSpace(self.A, self.B, self.C, dt=dt or 0)
        else:
            full = StateSpace(self.A, self.B, self.C, dt=dt or 0)
        return float(h2_norm(full - StateSpace(A, B, C, dt=dt or 0)))


def _full(sys: LinearSystem, index: tuple[int, ...]) -> _Full:
    B, C = (to_host(x)[index] for x in (sys.B, sys.C))
    sizes = exponents(B), exponents(C)
    B, C = shifted(B, -sizes[0]), shifted(C, -sizes[1])
    if isinstance(sys, DiagonalStateSpace):
        poles = to_host(sys.poles())[index]
        return _Full(poles, None, poles, B, C, sys.is_discrete, not is_complex(sys.B), sizes)
    assert isinstance(sys, StateSpace)
    A = to_host(sys.A)[index]
    T, Z = scipy.linalg.schur(A, output="complex")
    return _Full(T, Z, A, B, C, sys.is_discrete, not is_complex(sys.B), sizes)


@dataclass(frozen=True)
class _Projected:
    """A reduced system and the bases it comes from."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    left: np.ndarray
    right: np.ndarray
    settled: bool = False
    note: str = ""


def _best(full: _Full, right: np.ndarray, left: np.ndarray, max_iterations: int, tolerance: float) -> _Projected:
    """The better of where the iteration ends and where it began."""
    start = end = _project(full, right, left)
    note = f"the poles had not settled after {max_iterations} iterations"
    settled = False
    for iteration in range(1, max_iterations + 1):
        poles, vectors = np.linalg.eig(end.A)
        if np.linalg.cond(vectors) > 1e12:
            note = f"iteration {iteration} met a reduced system without independent eigenvectors and stopped there"
            break
        b, c = np.linalg.solve(vectors, end.B), end.C @ vectors  # residues c_i b_i^T
        V = full.resolvents(poles, full.B @ b.conj().T, adjoint=False)
        W = full.resolvents(poles, full.C.conj().T @ c, adjoint=True)
        new = _project(full, _basis(V, poles, full.real), _basis(W, poles, full.real))
        moved = _distance(np.linalg.eigvals(new.A), poles)
        end = new
        if moved <= tolerance * np.abs(poles).max():
            settled, note = True, f"the poles had settled after {iteration} iterations"
            break
    before, after = full.h2_error(start.A, start.B, start.C), full.h2_error(end.A, end.B, end.C)
    if after > before:
        end = start
        with np.errstate(over="ignore"):
            after, before = (float(np.ldexp(x, sum(full.sizes))) for x in (after, before))
        note += (
            f"; the H2 error there, {after:.3g}, is above that of balanced truncation, {before:.3g}, which is returned"
        )
    B, C = (shifted(x, size) for x, size in zip((end.B, end.C), full.sizes, strict=True))
    return replace(end, B=B, C=C, settled=settled, note=note)


def _project(full: _Full, right: np.ndarray, left: np.ndarray) -> _Projected:
    left = left @ np.linalg.inv(right.conj().T @ left)  # left^H right = I
    left_h = left.conj().T
    return _Projected(left_h @ full.apply(right), left_h @ full.B, full.C @ right, left, right)


def _basis(columns: np.ndarray, poles: np.ndarray, is_real: bool) -> np.ndarray:
    """An orthonormal basis of the columns; a real one where they come in conjugate pairs."""
    if is_real:
        upper = poles.imag > 0
        columns = np.concatenate(
            [columns[:, poles.imag == 0].real, columns[:, upper].real, columns[:, upper].imag], axis=1
        )
    scaled = columns / np.linalg.norm(columns, axis=0)
    return np.linalg.qr(scaled)[0]


def _distance(new: np.ndarray, old: np.ndarray) -> float:
    """The largest move of a pole, each paired with the one it most likely came from."""
    gaps = np.abs(new[:, None] - old)
    return float(gaps[scipy.optimize.linear_sum_assignment(gaps)].max())
