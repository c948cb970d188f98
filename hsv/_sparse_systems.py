"""Linear systems with a sparse state matrix, or one that is known by products and solves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from hsv._array import as_arrays, require_finite, round_to, to_complex, to_host, widen
from hsv._descriptor import from_descriptor
from hsv._errors import DtypeError, HsvError, IllConditionedError, NonFiniteError, ShapeError
from hsv._large_systems import Bases, LargeSystem
from hsv._low_rank import low_rank_gramians
from hsv._order import Rule
from hsv._pencils import OperatorPencil, Pencil, SparsePencil, StateOperator
from hsv._systems import LinearSystem, StateSpace, _check_dt, _check_maps, _contour, check_parallel, infinite_response

_MOST_STATES = 5000  # a dense matrix of 200 MB


class SparseStateSpace(LinearSystem, LargeSystem):
    r"""A linear system with sparse matrices.

    .. math:: E \dot x = A x + B u,\quad y = C x + D u \qquad\text{or}\qquad E x_{k+1} = A x_k + B u_k,\quad y_k = C x_k + D u_k

    :func:`hsv.hankel_singular_values`, :func:`hsv.balanced_truncation`, :func:`hsv.balancing_free_truncation`, :func:`hsv.balance` and :func:`hsv.singular_perturbation` take it and
    work with low-rank factors of the Gramians (:func:`hsv.low_rank_gramians`), never with an ``n x n`` array.

    Parameters
    ----------
    A : SciPy sparse matrix or array, or StateOperator
        Shape ``(n, n)``, real or complex. Or an object that multiplies and solves, see :class:`hsv.StateOperator`.
    B, C : array or SciPy sparse
        Shapes ``(n, m)`` and ``(p, n)``; stored as dense NumPy arrays.
    D : array, optional
        Shape ``(p, m)``; zero if left out.
    E : SciPy sparse matrix or array, optional
        The mass matrix, shape ``(n, n)``; the identity if left out. Gramians and reductions need it invertible, :meth:`frequency_response` does not.
    dt : float or bool
        As for :class:`hsv.StateSpace`.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The matrices do not fit together, are no numbers, or contain NaN or infinity.

    Notes
    -----
    One system, not a batch, in host memory. Everything is computed in double precision; results have the precision of ``B``, ``C`` and ``D``. With a mass matrix a reduction's projections satisfy :math:`T_l^H E T_r = I`
    and :math:`A_r = T_l^H A T_r`: the reduced system has no mass matrix.

    Examples
    --------
    >>> import hsv
    >>> import numpy as np
    >>> import scipy.sparse
    >>> poles = -np.arange(1.0, 10_001.0)
    >>> sys = hsv.SparseStateSpace(scipy.sparse.diags_array(poles), np.ones((10_000, 1)), 1 / np.arange(1.0, 10_001.0)[None, :] ** 2, dt=0)
    >>> sys
    <SparseStateSpace: 10000 states, 1 inputs, 1 outputs, continuous, float64>
    >>> red = hsv.balanced_truncation(sys, hsv.Threshold(1e-4))
    >>> red.system.n_states
    4
    >>> error = sys.frequency_response([0.0, 1.0]) - red.system.frequency_response([0.0, 1.0])
    >>> bool(np.max(abs(error)) <= red.error_bound)
    True
    """

    __slots__ = ("A", "E", "_pencil")

    A: Any
    E: Any
    _pencil: Pencil

    def __init__(self, A: Any, B: Any, C: Any, D: Any = None, E: Any = None, *, dt: float | bool) -> None:
        n = _square("A", A, None)
        if E is not None:
            _square("E", E, n)
        B, C = (x.toarray() if scipy.sparse.issparse(x) else x for x in (B, C))
        B, C, D = as_arrays("BCD", (B, C, D))
        if not isinstance(B, np.ndarray):
            raise DtypeError(
                f"B, C and D of a sparse system must be NumPy arrays, got {type(B).__name__}; move them to the host"
            )
        B, C, D, batch = _check_maps(n, (), B, C, D)
        if batch:
            raise ShapeError(f"a sparse system is one system: B, C and D must have two axes, got the batch {batch}")
        for name, array in zip("BCD", (B, C, D), strict=True):
            require_finite(name, array)
        self.E = None if E is None else _entries("E", E)
        if scipy.sparse.issparse(A):
            self.A = _entries("A", A)
            self._pencil = SparsePencil(self.A, self.E)
        else:
            self.A = A
            self._pencil = OperatorPencil(A, self.E)
        if self._pencil.is_complex and not np.iscomplexobj(B):  # a complex system is complex in all its results
            B, C, D = (to_complex(x, np.zeros_like(x)) for x in (B, C, D))
        self.B, self.C, self.D = B, C, D
        self.dt = _check_dt(dt)
        self._frozen = True

    def __repr__(self) -> str:
        return self._describe("SparseStateSpace")

    def __add__(self, other: LinearSystem) -> LinearSystem:
        """Parallel connection, sparse again: with a dense system for the error of a reduction, say."""
        if not isinstance(other, LinearSystem):
            return NotImplemented
        other = _as_sparse(other)
        for sys in (self, other):
            if not scipy.sparse.issparse(sys.A):
                raise HsvError("a system whose A is an operator cannot be added; write an operator for the sum")
        check_parallel(self, other)
        E = None
        if self.E is not None or other.E is not None:
            E = scipy.sparse.block_diag([_mass(self), _mass(other)], format="csc")
        return SparseStateSpace(
            scipy.sparse.block_diag([self.A, other.A], format="csc"),
            np.concatenate([self.B, other.B], axis=0),
            np.concatenate([self.C, other.C], axis=1),
            self.D + other.D,
            E,
            dt=self.dt,
        )

    def _with_outputs(self, C: np.ndarray, D: np.ndarray) -> SparseStateSpace:
        return SparseStateSpace(self.A, self.B, C, D, self.E, dt=self.dt)

    def poles(self) -> np.ndarray:
        """Return the eigenvalues of the pencil, shape ``(n,)``, from the dense system: for small ones; else see ``scipy.sparse.linalg.eigs``."""
        return np.asarray(self.to_dense().poles())

    def to_dense(self, *, most_states: int = _MOST_STATES) -> StateSpace:
        """Return the system with a dense state matrix, and without a mass matrix (see :func:`hsv.from_descriptor`).

        Raises
        ------
        HsvError
            There are more than `most_states` states, or ``A`` is an operator.
        """
        if not scipy.sparse.issparse(self.A):
            raise HsvError("a system whose A is an operator has no dense form; reduce it first")
        n = self.n_states
        if n > most_states:
            raise HsvError(
                f"a dense matrix of {n} states takes {8 * n * n / 2**30:.3g} GiB, and to_dense(most_states={most_states}) allows {most_states} states; reduce the system first "
                "(hsv.balanced_truncation takes it as it is), or pass a larger most_states"
            )
        if self.E is None:
            return StateSpace(self.A.toarray(), self.B, self.C, self.D, dt=self.dt)
        return from_descriptor(self.E.toarray(), self.A.toarray(), self.B, self.C, self.D, dt=self.dt)

    def frequency_response(self, w: Any) -> np.ndarray:
        r"""Return :math:`G(i w)` or :math:`G(e^{i w \Delta t})`, with :math:`G(z) = C (z E - A)^{-1} B + D`.

        Parameters
        ----------
        w : array
            Shape ``(k,)``: frequencies in rad/s, or rad/sample where ``dt=True``.

        Returns
        -------
        array
            Shape ``(k, p, m)``, complex. One sparse factorisation a frequency, and as many solves as there are inputs, or outputs if they are fewer.

        Raises
        ------
        IllConditionedError
            A pole lies on a frequency.
        """
        w, points = _contour(self, w)
        if points.ndim != 1:
            raise ShapeError(f"w must have shape (k,) for a sparse system, got {points.shape}")
        B, C = widen(self.B), widen(self.C)
        response = np.empty((len(points), self.n_outputs, self.n_inputs), dtype=np.complex128)
        for k, (value, point) in enumerate(zip(response, points, strict=True)):
            try:
                solves = self._pencil.shifted(-complex(point))
            except IllConditionedError as error:
                raise infinite_response(self, w, points, (k,)) from error
            if self.n_inputs <= self.n_outputs:
                value[:] = -(C @ solves.solve(B))
            else:
                value[:] = -(solves.solve(C.conj().T, adjoint=True).conj().T @ B)
        return np.asarray(round_to(response + widen(self.D), self.B))

    def _large_hankel_values(self) -> np.ndarray:
        return low_rank_gramians(self)._large_hankel_values()

    def _large_truncation(self, rule: Rule, bases: Bases, *, stacklevel: int) -> Any:
        return low_rank_gramians(self)._large_truncation(rule, bases, stacklevel=stacklevel + 1)

    def _large_singular_perturbation(self, rule: Rule, *, stacklevel: int) -> Any:
        return low_rank_gramians(self)._large_singular_perturbation(rule, stacklevel=stacklevel + 1)


def _as_sparse(sys: LinearSystem) -> SparseStateSpace:
    if isinstance(sys, SparseStateSpace):
        return sys
    dense = sys.to_dense()
    if dense.batch_shape:
        raise ShapeError(f"a sparse system is one system and cannot be added to the batch {dense.batch_shape}")
    A, B, C, D = (to_host(x) for x in (dense.A, dense.B, dense.C, dense.D))
    return SparseStateSpace(scipy.sparse.csc_array(A), B, C, D, dt=dense.dt)


def _mass(sys: SparseStateSpace) -> Any:
    return scipy.sparse.eye_array(sys.n_states, format="csc") if sys.E is None else sys.E


def _square(name: str, matrix: Any, n: int | None) -> int:
    """Check the kind and the shape of ``A`` or ``E``; return the number of states."""
    kinds = "a SciPy sparse matrix" if name == "E" else "a SciPy sparse matrix or an operator (hsv.StateOperator)"
    if not scipy.sparse.issparse(matrix) and (name == "E" or not isinstance(matrix, StateOperator)):
        raise DtypeError(f"{name} must be {kinds}, got {type(matrix).__name__}; hsv.StateSpace takes dense ones")
    shape = tuple(matrix.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ShapeError(f"{name} must have shape (n, n) with n >= 1, got {shape}")
    if n is not None and shape[0] != n:
        raise ShapeError(f"E and A must have the same size, got {shape} and {(n, n)}")
    return int(shape[0])


def _entries(name: str, matrix: Any) -> Any:
    """A copy in columns, in double precision, checked for NaN and infinity."""
    if matrix.dtype.kind not in "biufc":
        raise DtypeError(f"{name} must hold real or complex numbers, got dtype {matrix.dtype}")
    kind = np.complex128 if matrix.dtype.kind == "c" else np.float64
    entries = scipy.sparse.csc_array(matrix, dtype=kind, copy=True)
    entries.sum_duplicates()
    if not np.all(np.isfinite(entries.data)):
        raise NonFiniteError(
            f"{name} must be finite, found NaN or infinity among its entries; look for a diverged model or a missing value"
        )
    return entries
