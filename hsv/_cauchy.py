r"""Cauchy-like matrices :math:`g_i g_j^H / d_{ij}`, the Gramians of diagonal systems, and their factors.

With :math:`d_{ij} = 1 - \lambda_i\bar\lambda_j` or :math:`-(\lambda_i + \bar\lambda_j)` they are numerically singular long before they are exactly so.
Their factors come from elimination on the generators (the generalised Schur algorithm), which never forms the matrix. Many inputs make
them well conditioned; where that is found to hold, Cholesky's method is as good, and faster on a library's products.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.linalg

from hsv import _device, _kernels
from hsv._array import (
    Array,
    conjugate,
    conjugate_transpose,
    from_host,
    imag,
    in_host_memory,
    is_complex,
    namespace,
    on_host,
    real,
    squared_modulus,
    to_complex,
    to_host,
    widen,
)
from hsv._kernels import _threads
from hsv._systems import DiagonalStateSpace

_Kind = Literal["logarithms", "discrete", "continuous"]  # what the numbers that stand for the poles are

# A matrix of unit diagonal counts as well conditioned if its inverse has at most this trace t. Rounding errors of its entries and of its factor
# then move no singular value of Lo^H Lc by more than about n t roundings of itself; measured, values are as right as after the elimination.
_WELL_CONDITIONED = 1e4

# Where it is worth trying: the elimination of fewer states takes no longer, and with more states an input the Gramians of layers are seldom so
# well conditioned.
_LEAST_STATES = 48
_STATES_PER_INPUT = 32


def cauchy_factor(sys: DiagonalStateSpace) -> Array:
    """Factor the controllability Gramian in double precision, by pivoted elimination on its generators; see :func:`hsv.controllability_factor`."""
    return _elimination(*_poles(sys), widen(sys.B))


def cauchy_factors(sys: DiagonalStateSpace) -> tuple[Array, Array]:
    """Factor both Gramians in double precision, by Cholesky's method where they are found to be well conditioned, elsewhere by elimination."""
    kind, poles = _poles(sys)
    B, C = widen(sys.B), conjugate_transpose(widen(sys.C))  # the generators of both
    few = sys.n_states < _LEAST_STATES or sys.n_states > _STATES_PER_INPUT * min(sys.n_inputs, sys.n_outputs)
    if few or _device.kernels_serve(B, sys.n_states):
        return _eliminate_both(kind, poles, B, C)
    if not in_host_memory(B) or not sys.batch_shape:
        return _factor_both(kind, poles, B, C)
    # Each system of a batch is found well conditioned for itself, and is large enough for a round of this loop.
    factors = [_factor_both(kind, poles[i], B[i], C[i]) for i in np.ndindex(sys.batch_shape)]
    xp, shape = namespace(B), (*sys.batch_shape, sys.n_states, sys.n_states)
    first, second = (xp.reshape(xp.stack(each), shape) for each in zip(*factors, strict=True))
    return first, second


def cauchy_adjoint(sys: DiagonalStateSpace, gradient: Array) -> tuple[Array, Array]:
    r"""Return the gradients by the poles (or their logarithms) and by ``B`` of a function whose gradient by the controllability Gramian is `gradient`.

    `gradient` ``(..., n, n)`` is Hermitian, in double precision, and may be overwritten. With :math:`S_{ij}` its entries divided by :math:`\bar d_{ij}`, the gradient by
    ``B`` is :math:`2 S B`, and by a discrete pole :math:`2 \sum_j S_{ij} \overline{(B B^H)_{ij}}\,\lambda_j / \bar d_{ij}`; by its logarithm that times
    :math:`\bar\lambda_i`, by a continuous pole the same without :math:`\lambda_j`.
    """
    kind, poles = _poles(sys)
    B = widen(sys.B)
    product = B @ conjugate_transpose(B)
    if kind == "logarithms" and is_complex(poles) and in_host_memory(B):
        rows, gradient = on_host(_adjoint_on_host, poles, gradient, product, reason="the adjoint")
    else:
        inverse = 1 / _denominators(kind, poles)
        gradient = gradient * conjugate(inverse)
        slope = conjugate(gradient) * inverse * product
        xp = namespace(B)
        if kind == "continuous":
            rows = xp.sum(slope, axis=-1)
        else:
            weights = conjugate(xp.exp(poles) if kind == "logarithms" else poles)
            rows = (slope @ weights[..., None])[..., 0]
    by_poles = namespace(B).exp(poles) * rows if kind == "logarithms" else rows
    return 2 * conjugate(by_poles), 2 * (gradient @ B)


def denominators(sys: DiagonalStateSpace, *, conjugated: bool = True) -> Array:
    """``1 - l_i conj(l_j)`` or ``-(l_i + conj(l_j))`` for every pair, ``(..., n, n)``, without cancellation; or without the conjugate."""
    return _denominators(*_poles(sys), conjugated=conjugated)


def differences(sys: DiagonalStateSpace) -> Array:
    """``l_i - l_k`` for every pair, ``(..., n, n)``; from log-poles, where there are any, so that close poles keep their digits."""
    return _differences(*_poles(sys))


def _eliminate(G: Array, differences: Array, denominators: Array) -> Array:
    """Factor the matrix with entries ``g_i g_j^H / d_ij`` by pivoted elimination on its generators ``G (..., n, m)``, on their device."""
    xp = namespace(G)
    G = _compressed(G)
    pole_gap = real(xp.linalg.diagonal(denominators))  # (..., n): 1 - |l_i|^2 or -2 Re l_i
    columns = []
    for _ in range(G.shape[-2]):
        diagonal = xp.sum(squared_modulus(G), axis=-1) / pole_gap  # of the Schur complement
        pivot = xp.argmax(diagonal, axis=-1)[..., None, None]  # (..., 1, 1)
        if G.shape[-1] > 1:
            G = _rotate_into_first(G, pivot)
        denominator = _take(denominators, pivot, axis=-1)[..., 0]  # d_ik, (..., n)
        first = G[..., 0]
        columns.append(first * (xp.sqrt(_take(pole_gap[..., None, :], pivot, axis=-1)[..., 0]) / denominator))
        first = first * (_take(differences, pivot, axis=-1)[..., 0] / denominator)
        G = xp.concat([first[..., None], G[..., 1:]], axis=-1) if G.shape[-1] > 1 else first[..., None]
    return xp.stack(columns, axis=-1)


def _factor_on_host(kind: _Kind, poles: np.ndarray, G: np.ndarray) -> np.ndarray:
    return _eliminate_on_host(G, *_pairs_on_host(kind, poles))


def _factor_both(kind: _Kind, poles: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """Factor both Gramians, with generators ``B (..., n, m)`` and ``C (..., n, p)``; a batch by one method alone."""
    P, Q = B @ conjugate_transpose(B), C @ conjugate_transpose(C)
    if kind == "logarithms" and is_complex(poles) and in_host_memory(poles) and poles.ndim == 1:
        _kernels.divide_by_log_pole_pairs(*(to_host(x)[None] for x in (poles, P, Q)))
    else:
        pairs = _denominators(kind, poles)
        P, Q = P / pairs, Q / conjugate(pairs)
        del pairs
    first = _cholesky_factor(P)
    del P
    if first is None:  # two eliminations side by side take little longer than one
        del Q
        return _eliminate_both(kind, poles, B, C)
    second = _cholesky_factor(Q)
    del Q
    if second is not None:
        return first, second
    return first, _elimination(kind, conjugate(poles), C)


def _cholesky_factor(P: Array) -> Array | None:
    """Return the lower factor of a matrix that is given on and below its diagonal, which is overwritten; None unless it is well conditioned.

    With ``R R^H`` the matrix scaled to a unit diagonal and ``z`` random of unit variance, ``|R^-H z|^2`` is the trace of the inverse on the mean, and falls a hundred
    times short of the inverse's norm with probability 1/100: for all of four vectors, 1e-8. (A real ``z`` falls short more often, and there are eight.)
    """
    xp = namespace(P)
    scale = xp.sqrt(real(xp.linalg.diagonal(P)))
    L = cholesky(P)
    if L is None:
        return None
    # A squared pivot of R is no less than the least eigenvalue. Whatever is not a number is not well conditioned either.
    if not bool(xp.all((real(xp.linalg.diagonal(L)) / scale) ** 2 * _WELL_CONDITIONED > 1)):
        return None
    n = P.shape[-1]
    z = np.random.default_rng(0).normal(size=(n, 8))
    if in_host_memory(P) and P.ndim == 2:
        z = z.view(complex) * math.sqrt(0.5) * to_host(scale)[:, None]
        solution = scipy.linalg.solve_triangular(to_host(L), z, lower=True, trans="C", check_finite=False)
        return L if np.max(np.sum(squared_modulus(solution), axis=-2)) < _WELL_CONDITIONED else None
    z = xp.astype(from_host(z.view(complex) * math.sqrt(0.5) if is_complex(P) else z, P), P.dtype)
    solution = xp.linalg.solve(conjugate_transpose(L), xp.astype(scale, P.dtype)[..., None] * z)
    return L if bool(xp.all(xp.sum(squared_modulus(solution), axis=-2) < _WELL_CONDITIONED)) else None


def cholesky(P: Array) -> Array | None:
    """Return the lower factor of Hermitian matrices, of which what is above the diagonal is not read; None unless all are positive definite."""
    try:
        return namespace(P).linalg.cholesky(P)
    except Exception as error:
        if "LinAlgError" in type(error).__name__:  # each library has its own
            return None
        raise


def _elimination(kind: _Kind, poles: Array, G: Array) -> Array:
    if in_host_memory(G):
        return on_host(partial(_factor_on_host, kind), poles, _compressed(G), reason="the elimination")
    if _device.kernels_serve(G, poles.shape[-1]):
        return _device.cauchy_factor(kind, poles, _diagonal(kind, poles), _compressed(G))
    return _eliminate(G, *_pairs(kind, poles))


def _eliminate_both(kind: _Kind, poles: Array, B: Array, C: Array) -> tuple[Array, Array]:
    if in_host_memory(B):
        generators = _compressed(B), _compressed(C)
        first, second = on_host(partial(_factors_on_host, kind), poles, *generators, reason="the elimination")
        return first, second
    if _device.kernels_serve(B, poles.shape[-1]):
        # The dual system has the conjugate poles.
        return _elimination(kind, poles, B), _elimination(kind, conjugate(poles), C)
    gaps, pairs = _pairs(kind, poles)
    return _eliminate(B, gaps, pairs), _eliminate(C, conjugate(gaps), conjugate(pairs))


def _factors_on_host(kind: _Kind, poles: np.ndarray, B: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps, pairs = _pairs_on_host(kind, poles)
    generators, factors = (B, np.conjugate(C)), [B, C]  # the second is the conjugate of a factor with the same pairs

    def eliminate(first: int, last: int) -> None:
        for k in range(first, last):
            factors[k] = _eliminate_on_host(generators[k], gaps, pairs)

    columns = max(B.shape[-1], C.shape[-1])
    _threads.run(eliminate, 2, operations=2.0 * pairs.size * poles.shape[-1] * columns)
    return factors[0], np.conjugate(factors[1], out=factors[1])


def _eliminate_on_host(G: np.ndarray, differences: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Hand a batch to the compiled twin of :func:`_eliminate`: the same numbers without the cost of its many small calls."""
    flat = (np.ascontiguousarray(x).reshape(-1, *x.shape[-2:]) for x in (G, differences, denominators))
    return _kernels.cauchy_factor(*flat).reshape(denominators.shape)


def _compressed(G: Array) -> Array:
    """``G G^H`` needs ``n`` columns at the most."""
    if G.shape[-1] <= G.shape[-2]:
        return G
    return conjugate_transpose(_triangle(conjugate_transpose(G)))


def _triangle(x: Array) -> Array:
    """The triangle of a QR factorization, without the other factor where the library can leave it out, as the standard's functions cannot."""
    xp = namespace(x)
    if isinstance(x, np.ndarray):
        return np.linalg.qr(x, mode="r")
    if "torch" in xp.__name__:
        return xp.linalg.qr(x, mode="r")[1]
    return xp.linalg.qr(x, mode="reduced")[1]


def _rotate_into_first(G: Array, pivot: Array) -> Array:
    """Multiply ``G`` from the right by the Householder reflection that turns the pivot row into ``(gamma, 0, ..., 0)``."""
    xp = namespace(G)
    row = _take(G, pivot, axis=-2)  # (..., 1, m)
    norm = xp.sqrt(xp.sum(squared_modulus(row), axis=-1, keepdims=True))
    # Of length 1 or 0: near the end of an elimination squares are no normal numbers, and have no inverses.
    row = row / xp.where(norm > 0, norm, xp.ones_like(norm)) * xp.astype(norm > 0, norm.dtype)
    norm = xp.sqrt(xp.sum(squared_modulus(row), axis=-1, keepdims=True))
    head = row[..., :1]
    size = xp.abs(head)
    sign = xp.where(size > 0, head / xp.where(size > 0, size, xp.ones_like(size)), xp.ones_like(head))
    v = xp.concat([head + sign * norm, row[..., 1:]], axis=-1)  # (..., 1, m)
    square = norm * (norm + size)  # |v|^2 / 2
    scale = xp.where(square > 0, 1.0 / xp.where(square > 0, square, xp.ones_like(square)), xp.zeros_like(square))
    return G - ((G @ conjugate_transpose(v)) * scale) @ v


def _take(x: Array, index: Array, axis: int) -> Array:
    """Select one slice along `axis` in every system of the batch; the axis stays, with length one."""
    xp = namespace(x)
    shape = list(x.shape)
    shape[axis] = 1
    return xp.take_along_axis(x, xp.broadcast_to(index, tuple(shape)), axis=axis)


def _poles(sys: DiagonalStateSpace) -> tuple[_Kind, Array]:
    """The most exact numbers that are known of the poles, in double precision."""
    if sys.log_poles is not None:
        return "logarithms", widen(sys.log_poles)
    return "discrete" if sys.is_discrete else "continuous", widen(sys.poles())


def _adjoint_on_host(poles: np.ndarray, gradient: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = poles.shape[-1]
    flat = np.ascontiguousarray(gradient).reshape(-1, n, n)
    rows = _kernels.adjoint_log_pole_pairs(np.ascontiguousarray(poles).reshape(-1, n), flat, product.reshape(-1, n, n))
    return rows.reshape(poles.shape), flat.reshape(gradient.shape)


def _pairs(kind: _Kind, poles: Array) -> tuple[Array, Array]:
    return _differences(kind, poles), _denominators(kind, poles)


def _pairs_on_host(kind: _Kind, poles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind != "logarithms" or not np.iscomplexobj(poles):
        return _pairs(kind, poles)
    shape = (*poles.shape, poles.shape[-1])
    gaps, pairs = _kernels.log_pole_pairs(np.ascontiguousarray(poles).reshape(-1, poles.shape[-1]))
    return gaps.reshape(shape), pairs.reshape(shape)


def _differences(kind: _Kind, poles: Array) -> Array:
    gap = poles[..., :, None] - poles[..., None, :]
    return namespace(poles).exp(poles)[..., None, :] * expm1(gap) if kind == "logarithms" else gap


def _denominators(kind: _Kind, poles: Array, *, conjugated: bool = True) -> Array:
    if kind == "logarithms":
        return -expm1(poles[..., :, None] + (conjugate(poles) if conjugated else poles)[..., None, :])
    if kind == "continuous":
        return -(poles[..., :, None] + (conjugate(poles) if conjugated else poles)[..., None, :])
    re, im = real(poles), imag(poles)
    row_re, row_im = re[..., None, :], (im if conjugated else -im)[..., None, :]
    re, im = re[..., :, None], im[..., :, None]
    if not is_complex(poles):
        return _one_minus((re, row_re))
    plus, plus_error = _two_product(re, row_im)
    minus, minus_error = _two_product(im, row_re)
    return to_complex(_one_minus((re, row_re), (im, row_im)), (plus - minus) + (plus_error - minus_error))


def _diagonal(kind: _Kind, poles: Array) -> Array:
    """``1 - |l_i|^2`` or ``-2 Re l_i``, ``(..., n)``, real: the denominators of systems of one state each."""
    return real(_denominators(kind, poles[..., None])[..., 0, 0])


def _one_minus(*pairs: tuple[Array, Array]) -> Array:
    """``1 - sum(a b)`` as if computed in twice the working precision (compensated, after Ogita, Rump and Oishi 2005)."""
    total: Any = 1.0
    correction: Any = 0.0
    for a, b in pairs:
        product, product_error = _two_product(a, b)
        new = total - product
        part = new - total
        correction = correction + ((total - (new - part)) + (-product - part)) - product_error
        total = new
    return total + correction


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded product and its exact rounding error (Dekker 1971)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(a: Array) -> tuple[Array, Array]:
    scaled = 134217729.0 * a  # 2^27 + 1: halves of 26 bits
    high = scaled - (scaled - a)
    return high, a - high


def expm1(z: Array) -> Array:
    """``exp(z) - 1`` for complex ``z``, accurate near every multiple of ``2 pi i``."""
    xp = namespace(z)
    if not is_complex(z):
        return xp.expm1(z)
    x, y = xp.real(z), xp.imag(z)
    half_sine = xp.sin(y / 2)
    return to_complex(xp.expm1(x) * xp.cos(y) - 2 * half_sine * half_sine, xp.exp(x) * xp.sin(y))
