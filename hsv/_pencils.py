"""Large pencils ``A - s E``: their products, and solves with ``A + p E`` for both sides from one factorisation."""

from __future__ import annotations

import abc
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from hsv._errors import IllConditionedError, ShapeError

_EPS = float(np.finfo(np.float64).eps)
_REFINE = 1e-14  # backward error of a solve above which one step of refinement is taken
_GIVE_UP = 1e-11  # backward error above which pivots on the diagonal are not good enough
_NEAR_SINGULAR = 1 / (10 * _EPS)


@runtime_checkable
class StateOperator(Protocol):
    r"""What may stand for the matrix ``A`` of a :class:`hsv.SparseStateSpace`: products and solves, no entries.

    ``x`` and ``rhs`` are NumPy arrays of shape ``(n, k)``, real or complex; ``shift`` is a real or complex number. ``E`` in the shifted solves is that of the
    system, the identity where it has none. A real operator (a real ``dtype``) gets real arrays wherever real arithmetic will do.

    The adjoint methods serve the observability Gramian and everything that needs it.

    Examples
    --------
    >>> import hsv
    >>> import numpy as np
    >>> class Diagonal:
    ...     def __init__(self, poles):
    ...         self.poles, self.shape, self.dtype = poles[:, None], (len(poles), len(poles)), poles.dtype
    ...     def apply(self, x):
    ...         return self.poles * x
    ...     def apply_adjoint(self, x):
    ...         return self.poles.conj() * x
    ...     def solve_shifted(self, shift, rhs):
    ...         return rhs / (self.poles + shift)
    ...     def solve_shifted_adjoint(self, shift, rhs):
    ...         return rhs / (self.poles + shift).conj()
    >>> isinstance(Diagonal(np.array([-1.0])), hsv.StateOperator)
    True
    >>> sys = hsv.SparseStateSpace(Diagonal(np.array([-1.0, -2.0])), [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> hsv.hankel_singular_values(sys).round(4)
    array([0.731, 0.019])
    """

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""

    @property
    def dtype(self) -> Any:
        """Whether the matrix is real or complex."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return ``A x``."""

    def apply_adjoint(self, x: np.ndarray) -> np.ndarray:
        """Return ``A^H x``."""

    def solve_shifted(self, shift: complex, rhs: np.ndarray) -> np.ndarray:
        """Return ``(A + shift E)^{-1} rhs``."""

    def solve_shifted_adjoint(self, shift: complex, rhs: np.ndarray) -> np.ndarray:
        """Return ``(A + shift E)^{-H} rhs``."""


class Factorization(abc.ABC):
    """Solves with one matrix and its adjoint."""

    @abc.abstractmethod
    def solve(self, rhs: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        """The solution, shape of `rhs` ``(n, k)``."""


class Pencil(abc.ABC):
    """A large pencil: all that the iterations know of a system beside its inputs and outputs."""

    n_states: int
    is_complex: bool

    @abc.abstractmethod
    def apply(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        """``A x`` or ``A^H x``."""

    @abc.abstractmethod
    def mass(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        """``E x`` or ``E^H x``."""

    def admissible(self, shift: complex) -> complex:
        """The shift, or one next to it that the pencil can be shifted by."""
        return shift

    @abc.abstractmethod
    def shifted(self, shift: complex) -> Factorization:
        """Solves with ``A + shift E``. Raises :class:`IllConditionedError` where that is singular."""

    @abc.abstractmethod
    def mass_factorization(self) -> Factorization:
        """Solves with ``E``. Raises :class:`IllConditionedError` where that is singular."""

    @abc.abstractmethod
    def cayley(self) -> Pencil:
        """The pencil ``(A - E) - s (A + E)``, whose continuous Lyapunov equations are the discrete ones of this, for a right-hand side times 2."""

    @abc.abstractmethod
    def sizes(self) -> tuple[float, float]:
        """Norms of ``A`` and ``E``, to a small factor: what rounding errors are measured by."""


class SparsePencil(Pencil):
    """Both matrices with their entries, factorised by SuperLU."""

    def __init__(self, A: Any, E: Any | None) -> None:
        self.A = A.tocsc()
        self.E = None if E is None else E.tocsc()
        self.n_states = A.shape[0]
        self.is_complex = np.iscomplexobj(A.data) or (E is not None and np.iscomplexobj(E.data))
        self._diagonal_pivots: bool | None = None  # not decided before the first factorisation

    def apply(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        return np.asarray((self.A.conj().T if adjoint else self.A) @ x)

    def mass(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        if self.E is None:
            return x
        return np.asarray((self.E.conj().T if adjoint else self.E) @ x)

    def shifted(self, shift: complex) -> Factorization:
        shift = shift.real if np.imag(shift) == 0 else shift
        E = scipy.sparse.eye_array(self.n_states, format="csc") if self.E is None else self.E
        return self._factorize((self.A + shift * E).tocsc())

    def mass_factorization(self) -> Factorization:
        if self.E is None:
            return _Identity()
        factorization = self._factorize(self.E)
        if factorization.condition() > _NEAR_SINGULAR:
            raise IllConditionedError("singular to working precision")
        return factorization

    def _factorize(self, matrix: Any) -> SparseFactorization:
        if self._diagonal_pivots is None:
            self._diagonal_pivots = self._choose_pivots(matrix)
        return SparseFactorization(matrix, diagonal_pivots=self._diagonal_pivots)

    def _choose_pivots(self, matrix: Any) -> bool:
        """Whether an ordering for symmetric patterns gives less fill: tried once where the pattern is not symmetric."""
        pattern = matrix.astype(bool)
        if (pattern != pattern.T).nnz == 0:
            return True
        return _superlu(matrix, diagonal_pivots=True).nnz <= _superlu(matrix, diagonal_pivots=False).nnz

    def cayley(self) -> SparsePencil:
        E = scipy.sparse.eye_array(self.n_states, format="csc") if self.E is None else self.E
        return SparsePencil(self.A - E, self.A + E)

    def sizes(self) -> tuple[float, float]:
        return _norm(self.A), 1.0 if self.E is None else _norm(self.E)


class SparseFactorization(Factorization):
    """An LU factorisation of one sparse matrix whose every solve is checked.

    Pivots stay on the diagonal at first: the fill is then what the ordering foresaw, half of that of an ordering for any pivots, while pivots off the diagonal can
    make it a hundred times larger (second-order systems with proportional damping). Where the backward error shows that this was wrong, after one step of refinement, the matrix is factorised anew with
    partial pivoting.
    """

    def __init__(self, matrix: Any, *, diagonal_pivots: bool) -> None:
        self.matrix, self.size = matrix, _norm(matrix)
        self._diagonal_pivots = diagonal_pivots
        self._lu = _superlu(matrix, diagonal_pivots=diagonal_pivots)

    def solve(self, rhs: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        x, error = self._checked(rhs, adjoint)
        if error > _GIVE_UP and self._diagonal_pivots:
            self._diagonal_pivots = False
            self._lu = _superlu(self.matrix, diagonal_pivots=False)
            x, error = self._checked(rhs, adjoint)
        if not error <= _GIVE_UP:
            raise IllConditionedError(
                f"a sparse LU factorisation solves with the backward error {error:.1e}, even with partial pivoting; the likely cause are entries of "
                "extreme sizes: scale the states"
            )
        return x

    def _checked(self, rhs: np.ndarray, adjoint: bool) -> tuple[np.ndarray, float]:
        """The solution and its backward error, refined once if that helps."""
        matrix = self.matrix.conj().T if adjoint else self.matrix
        x = self._raw(rhs, adjoint)
        size = float(np.linalg.norm(rhs))

        def backward_error(x: np.ndarray) -> tuple[np.ndarray, float]:
            residual = rhs - matrix @ x
            whole = self.size * float(np.linalg.norm(x)) + size
            return residual, float(np.linalg.norm(residual)) / whole if whole > 0 else 0.0

        with np.errstate(over="ignore", invalid="ignore"):
            residual, error = backward_error(x)
            if _REFINE < error < 1:
                refined = x + self._raw(residual, adjoint)
                new_error = backward_error(refined)[1]
                if new_error < error:
                    return refined, new_error
        return x, error if np.isfinite(error) else np.inf

    def _raw(self, rhs: np.ndarray, adjoint: bool) -> np.ndarray:
        trans = "H" if adjoint else "N"
        if np.iscomplexobj(rhs) and not np.iscomplexobj(self.matrix.data):
            both = self._lu.solve(np.concatenate([rhs.real, rhs.imag], axis=1), trans)
            return np.asarray(both[:, : rhs.shape[1]] + 1j * both[:, rhs.shape[1] :])
        return np.asarray(self._lu.solve(rhs.astype(self.matrix.dtype, copy=False), trans))

    def condition(self) -> float:
        """An estimate of the condition number in the 1-norm, with the rows scaled to the same size: equations in different units count for nothing."""
        n = self.matrix.shape[0]
        rows = abs(self.matrix).sum(axis=1)[:, None]
        inverse = scipy.sparse.linalg.LinearOperator(
            (n, n),
            dtype=self.matrix.dtype,
            matvec=lambda x: self._raw(rows * x.reshape(n, -1), False),
            rmatvec=lambda x: rows * self._raw(x.reshape(n, -1), True),
        )
        scaled = abs(self.matrix).multiply(1 / rows).sum(axis=0).max()
        estimate = scipy.sparse.linalg.onenormest(inverse) if n > 4 else abs(inverse @ np.eye(n)).sum(axis=0).max()
        return float(estimate * scaled)


class _Identity(Factorization):
    def solve(self, rhs: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        return rhs


class OperatorPencil(Pencil):
    """A matrix known by products and solves alone, in continuous time or, by the Cayley transform, in discrete time."""

    def __init__(self, operator: StateOperator, E: Any | None, *, cayley: bool = False) -> None:
        self.operator, self._cayley = operator, cayley
        self._mass = SparsePencil(scipy.sparse.eye_array(operator.shape[0], format="csc"), E)
        self.n_states = operator.shape[0]
        self.is_complex = np.issubdtype(operator.dtype, np.complexfloating) or self._mass.is_complex

    def _product(self, x: np.ndarray, adjoint: bool) -> np.ndarray:
        return np.asarray((self.operator.apply_adjoint if adjoint else self.operator.apply)(x))

    def apply(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        product = self._product(x, adjoint)
        return product - self._mass.mass(x, adjoint=adjoint) if self._cayley else product

    def mass(self, x: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        mass = self._mass.mass(x, adjoint=adjoint)
        return self._product(x, adjoint) + mass if self._cayley else mass

    def admissible(self, shift: complex) -> complex:
        # At -1 the matrix A drops out of (1 + p) A - (1 - p) E, and with it what the operator can solve.
        return -1 + 1e-6 + 0j if self._cayley and abs(1 + shift) < 1e-6 else shift

    def shifted(self, shift: complex) -> Factorization:
        if not self._cayley:
            return _OperatorSolves(self.operator, shift, 1.0)
        return _OperatorSolves(self.operator, -(1 - shift) / (1 + shift), 1 + shift)

    def mass_factorization(self) -> Factorization:
        return _OperatorSolves(self.operator, 1.0, 1.0) if self._cayley else self._mass.mass_factorization()

    def cayley(self) -> OperatorPencil:
        return OperatorPencil(self.operator, self._mass.E, cayley=True)

    def sizes(self) -> tuple[float, float]:
        x = np.random.default_rng(0).standard_normal((self.n_states, 3))
        scale = np.linalg.norm(x, axis=0)
        A, E = (float(np.max(np.linalg.norm(y, axis=0) / scale)) for y in (self.apply(x), self.mass(x)))
        return A, E


class _OperatorSolves(Factorization):
    """Solves with ``scale (A + shift E)``, checked for shape and finiteness."""

    def __init__(self, operator: StateOperator, shift: complex, scale: complex) -> None:
        self.operator, self.scale = operator, scale
        self.shift = shift.real if np.imag(shift) == 0 else shift

    def solve(self, rhs: np.ndarray, *, adjoint: bool = False) -> np.ndarray:
        solve = self.operator.solve_shifted_adjoint if adjoint else self.operator.solve_shifted
        x = np.asarray(solve(self.shift, rhs))
        name = solve.__name__
        if x.shape != rhs.shape:
            raise ShapeError(f"{name} must return the shape of its right-hand side {rhs.shape}, got {x.shape}")
        if not np.all(np.isfinite(x)):
            raise IllConditionedError(f"{name} returned NaN or infinity for the shift {self.shift}")
        scale = np.conj(self.scale) if adjoint else self.scale
        return x if scale == 1 else x / scale


def _superlu(matrix: Any, *, diagonal_pivots: bool) -> Any:
    try:
        if diagonal_pivots:
            return scipy.sparse.linalg.splu(
                matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
            )
        return scipy.sparse.linalg.splu(matrix, permc_spec="COLAMD")
    except RuntimeError as error:
        if "singular" not in str(error):
            raise
        raise IllConditionedError("exactly singular") from error


def _norm(matrix: Any) -> float:
    """An upper bound of the 2-norm of a sparse matrix."""
    size = abs(matrix)
    return float(np.sqrt(size.sum(axis=0).max(initial=0.0) * size.sum(axis=1).max(initial=0.0)))
