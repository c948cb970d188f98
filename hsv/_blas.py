"""Products and singular values of dense NumPy matrices by SciPy's BLAS and LAPACK, where the Schur forms come from.

The wheels of NumPy and SciPy bring one OpenBLAS each, and each keeps its own threads, which wait for work by spinning. Where the two are called in turn, the threads of
one hold the processors that those of the other need: with two threads on two processors reductions of 100 to 512 states took 1.5 to 1.7 times as long as they do now.
Arrays of other libraries are left to their library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from hsv import _device
from hsv._array import Array, namespace
from hsv._errors import HsvError

# OpenBLAS keeps products of a matrix and a vector below 9,216 multiplications in one thread, and larger products of two matrices.
_ONE_THREAD = 2**13


def product(x: Array, y: Array) -> Array:
    """Return ``x @ y``; leading axes are a batch and broadcast."""
    if type(x) is not np.ndarray or x.shape[-2] * x.shape[-1] * y.shape[-1] < _ONE_THREAD:
        return x @ y
    kind = np.result_type(x, y)
    if kind not in (np.float64, np.complex128):
        return x @ y
    gemm = scipy.linalg.blas.zgemm if kind == np.complex128 else scipy.linalg.blas.dgemm
    if x.ndim == y.ndim == 2:
        return _product(gemm, x, y)
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    xs, ys = (np.broadcast_to(a, (*batch, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in (x, y))
    result = np.empty((len(xs), x.shape[-2], y.shape[-1]), kind)
    for k in range(len(xs)):
        result[k] = _product(gemm, xs[k], ys[k])
    return result.reshape(*batch, *result.shape[1:])


def _product(gemm: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows of ``x y`` are the columns of ``y^T x^T``, and BLAS works by columns."""
    (left, turn_left), (right, turn_right) = _by_columns(y.T), _by_columns(x.T)
    return gemm(1.0, left, right, trans_a=turn_left, trans_b=turn_right).T


def _by_columns(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The matrix, or its transpose, without a copy where it lies in memory by columns or by rows, and whether it is the transpose."""
    if x.flags.c_contiguous and not x.flags.f_contiguous:
        return x.T, True
    return x, False


def singular_values(x: Array) -> Array:
    """Return the singular values of square matrices ``(..., n, n)``, descending.

    A QR factorization first: where the columns of a matrix fall in size, the rows of its triangle do as well, and far smaller values survive the bidiagonal form. With it the
    first Hankel value wrong by 1 % is the 24th of the heat equation with 200 states, in place of the 23rd, and the 33rd of Penzl's FOM in place of the 31st.
    """
    if type(x) is not np.ndarray or _device.kernels_serve(x, x.shape[-1]):
        return _device.singular_values(x)
    geqrf, gesdd = _routines(x, "geqrf", "gesdd")
    n = x.shape[-1]
    values = np.empty((math.prod(x.shape[:-2]), n))
    for k, matrix in enumerate(x.reshape(-1, n, n)):
        triangle = geqrf(matrix, lwork=_BLOCK * n)[0]
        triangle[np.tri(n, k=-1, dtype=bool)] = 0  # in place: one array less at a time
        values[k] = _values_of_triangle(gesdd, triangle, _tails(triangle), overwrite=True)
    return values.reshape(x.shape[:-1])


def svd(x: Array) -> tuple[Array, Array, Array]:
    """Return ``U, s, Vh`` of square matrices ``(..., n, n)``; see :func:`singular_values`.

    From large NumPy arrays only as many columns of ``U`` and rows of ``Vh`` as the triangle has rows above rounding errors, the others are zero. At 512 states of a random
    stable system that is a tenth of them, which pays for values with all their digits: LAPACK's fast method for vectors loses those below ``eps s_1``.
    """
    if type(x) is not np.ndarray or _device.kernels_serve(x, x.shape[-1]):
        return _device.svd(x)
    n = x.shape[-1]
    flat = x.reshape(-1, n, n)
    left, values, right = np.zeros_like(flat), np.empty(flat.shape[:-1]), np.zeros_like(flat)
    if n <= _SMALL:
        (gesvd,) = _routines(x, "gesvd")
        for k, matrix in enumerate(flat):
            left[k], values[k], right[k], info = gesvd(matrix)
            _require_convergence(info)
    else:
        geqrf, gesdd, unmqr = _routines(x, "geqrf", "gesdd", "unmqr" if np.iscomplexobj(x) else "ormqr")
        for k, matrix in enumerate(flat):
            reflectors, scales, _, _ = geqrf(matrix, lwork=_BLOCK * n)
            triangle = np.triu(reflectors)
            tails = _tails(triangle)
            rows = _rows_above(tails, 0, _EPS)
            core = np.zeros((n, rows), x.dtype, order="F")
            core[:rows], few_values, right[k, :rows], info = gesdd(triangle[:rows], full_matrices=0)
            _require_convergence(info)
            values[k] = few_values if rows == n else _values_of_triangle(gesdd, triangle, tails)
            left[k, :, :rows] = unmqr("L", "N", reflectors, scales, core, lwork=_BLOCK * n, overwrite_c=1)[0]
    return left.reshape(x.shape), values.reshape(x.shape[:-1]), right.reshape(x.shape)


def inverse(x: Array) -> Array:
    """Return the inverses of regular matrices ``(..., n, n)``."""
    if type(x) is not np.ndarray or x.shape[-1] <= _INSTANT:
        return namespace(x).linalg.inv(x)
    getrf, getri = _routines(x, "getrf", "getri")
    n = x.shape[-1]
    flat = x.reshape(-1, n, n)
    result = np.empty_like(flat)
    for k, matrix in enumerate(flat):
        triangles, pivots, info = getrf(matrix)
        if not info:
            result[k], info = getri(triangles, pivots, lwork=_BLOCK * n, overwrite_lu=1)
        if info:
            raise np.linalg.LinAlgError(f"matrix {k} of the batch is singular")
    return result.reshape(x.shape)


def eigenvalues(x: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of matrices ``(..., n, n)`` of finite numbers, complex, ``(..., n)``."""
    n = x.shape[-1]
    if n <= _INSTANT:
        return np.linalg.eigvals(x).astype(np.complex128)
    values = np.empty((math.prod(x.shape[:-2]), n), np.complex128)
    for k, matrix in enumerate(x.reshape(-1, n, n)):
        values[k] = scipy.linalg.eigvals(matrix, check_finite=False)
    return values.reshape(x.shape[:-1])


def qr(x: Array) -> tuple[Array, Array]:
    """Return ``Q`` with orthonormal columns and triangular ``R`` of matrices ``(..., n, k)``: ``min(n, k)`` columns and rows."""
    if type(x) is not np.ndarray or max(x.shape[-2:]) <= _INSTANT:
        Q, R = namespace(x).linalg.qr(x, mode="reduced")
        return Q, R
    return _each(x, lambda matrix: scipy.linalg.qr(matrix, mode="economic", check_finite=False))


def triangle(x: Array) -> Array:
    """Return ``R`` of :func:`qr` alone."""
    if type(x) is not np.ndarray or max(x.shape[-2:]) <= _INSTANT:
        return namespace(x).linalg.qr(x, mode="reduced")[1]
    rows = min(x.shape[-2:])
    return _each(x, lambda matrix: (scipy.linalg.qr(matrix, mode="r", check_finite=False)[0][:rows],))[0]


def eigh(x: Array) -> tuple[Array, Array]:
    """Return the eigenvalues, ascending, and the eigenvectors of Hermitian matrices."""
    if type(x) is not np.ndarray or x.shape[-1] <= _INSTANT:
        values, vectors = namespace(x).linalg.eigh(x)
        return values, vectors
    return _each(x, lambda matrix: scipy.linalg.eigh(matrix, check_finite=False))


def row_space(x: Array) -> tuple[Array, Array]:
    """Return the singular values of wide matrices ``(..., k, n)`` and all right singular vectors, ``(..., n, n)``, as the rows of ``V^H``."""
    if type(x) is not np.ndarray or x.shape[-1] <= _INSTANT:
        _, values, rows = namespace(x).linalg.svd(x, full_matrices=True)
        return values, rows
    return _each(x, lambda matrix: scipy.linalg.svd(matrix, check_finite=False)[1:])


def _each(x: np.ndarray, function: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> Any:
    """Call a function of SciPy on every matrix of a batch."""
    if x.ndim == 2:
        return tuple(function(x))
    batch = x.shape[:-2]
    if not math.prod(batch):  # shapes and kinds of what is empty
        return tuple(np.zeros((*batch, *part.shape), part.dtype) for part in function(np.zeros(x.shape[-2:], x.dtype)))
    results = [function(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
    return tuple(np.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*results, strict=True))


_INSTANT = 20  # up to here no routine of a BLAS asks for a second thread, and NumPy takes a batch in one call
_EPS = float(np.finfo(np.float64).eps)
_BLOCK = 32  # columns that LAPACK takes at a time, if the workspace is that long
_SMALL = 64  # up to here the QR iteration for vectors, which keeps all digits of the values, takes no longer than the fast method


def _routines(x: np.ndarray, *names: str) -> tuple[Callable[..., Any], ...]:
    """LAPACK's functions of these names in double precision, looked up without the checks of ``get_lapack_funcs``."""
    return tuple(getattr(scipy.linalg.lapack, ("z" if np.iscomplexobj(x) else "d") + name) for name in names)


def _values_of_triangle(
    gesdd: Callable[..., Any], triangle: np.ndarray, tails: np.ndarray, *, overwrite: bool = False
) -> np.ndarray:
    """Singular values, descending, in blocks of rows: those that are below ``eps^2`` of the rows above change nothing there.

    A block is a matter of some 30 rows where the values of a system fall fast.
    """
    n = len(triangle)
    values, begin = np.empty(n), 0
    while begin < n:
        end = _rows_above(tails, begin, _EPS**2)
        block = triangle[begin:end, begin:]
        _, values[begin:end], _, info = gesdd(block, compute_uv=0, full_matrices=0, overwrite_a=overwrite)
        _require_convergence(info)
        begin = end
    return -np.sort(-values)


def _tails(triangle: np.ndarray) -> np.ndarray:
    """For each row a bound of the norm of what lies in it and below: no squares, which would underflow."""
    n = len(triangle)
    sums = sum(np.abs(triangle[:, k : k + _BLOCK]).sum(axis=1) for k in range(0, n, _BLOCK))
    return np.cumsum(np.asarray(sums)[::-1])[::-1]


def _rows_above(tails: np.ndarray, begin: int, share: float) -> int:
    """The first row, after `begin`, from which on all is smaller than this share of the rows from `begin` on."""
    below = tails[begin + 1 :] <= share * tails[begin] / len(tails)
    return begin + 1 + (int(np.argmax(below)) if below.any() else len(below))


def _require_convergence(info: int) -> None:
    if info:
        raise HsvError(
            "the singular values of a product of factors did not converge; the likely cause is an overflow in its factors: scale B and C down"
        )
