r"""Cauchy-like matrices :math:`g_i g_j^H / d_{ij}`, the Gramians of diagonal systems, and their factors.

With :math:`d_{ij} = 1 - \lambda_i\bar\lambda_j` or :math:`-(\lambda_i + \bar\lambda_j)` they are numerically singular long before they are exactly so.
Their factors come from elimination on the generators (the generalised Schur algorithm), which never forms the matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hsv import _kernels
from hsv._array import (
    Array,
    conjugate,
    conjugate_transpose,
    imag,
    in_host_memory,
    is_complex,
    namespace,
    on_host,
    real,
    squared_modulus,
    to_complex,
    widen,
)
from hsv._systems import DiagonalStateSpace


def cauchy_factor(G: Array, differences: Array, denominators: Array) -> Array:
    """Factor the matrix with entries ``g_i g_j^H / d_ij`` by pivoted elimination on its generators ``G (..., n, m)``; see :func:`hsv.controllability_factor`."""
    xp = namespace(G)
    n, m = G.shape[-2], G.shape[-1]
    if m > n:  # G G^H needs n columns at the most
        G = conjugate_transpose(xp.linalg.qr(conjugate_transpose(G), mode="reduced")[1])
    if in_host_memory(G):
        return on_host(_eliminate_on_host, G, differences, denominators, reason="the elimination")
    pole_gap = real(xp.linalg.diagonal(denominators))  # (..., n): 1 - |l_i|^2 or -2 Re l_i
    columns = []
    for _ in range(n):
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


def _eliminate_on_host(*arrays: np.ndarray) -> np.ndarray:
    """Hand a batch to the compiled twin of the loop above: the same numbers without the cost of its many small calls."""
    batch = arrays[-1].shape[:-2]
    flat = (np.ascontiguousarray(x).reshape(-1, *x.shape[-2:]) for x in arrays)
    return _kernels.cauchy_factor(*flat).reshape(*batch, *arrays[-1].shape[-2:])


def _rotate_into_first(G: Array, pivot: Array) -> Array:
    """Multiply ``G`` from the right by the Householder reflection that turns the pivot row into ``(gamma, 0, ..., 0)``."""
    xp = namespace(G)
    row = _take(G, pivot, axis=-2)  # (..., 1, m)
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


def differences(sys: DiagonalStateSpace) -> Array:
    """``l_i - l_k`` for every pair, ``(..., n, n)``; from log-poles, where there are any, so that close poles keep their digits."""
    if sys.log_poles is not None:
        logs, poles = widen(sys.log_poles), widen(sys.poles())
        gap = logs[..., :, None] - logs[..., None, :]
        return poles[..., None, :] * expm1(gap)
    poles = widen(sys.poles())
    return poles[..., :, None] - poles[..., None, :]


def denominators(sys: DiagonalStateSpace, *, conjugated: bool = True) -> Array:
    """``1 - l_i conj(l_j)`` or ``-(l_i + conj(l_j))`` for every pair, ``(..., n, n)``, without cancellation; or without the conjugate."""
    if sys.log_poles is not None:
        logs = widen(sys.log_poles)
        return -expm1(logs[..., :, None] + (conjugate(logs) if conjugated else logs)[..., None, :])
    poles = widen(sys.poles())
    if not sys.is_discrete:
        return -(poles[..., :, None] + (conjugate(poles) if conjugated else poles)[..., None, :])
    re, im = real(poles), imag(poles)
    row_re, row_im = re[..., None, :], (im if conjugated else -im)[..., None, :]
    re, im = re[..., :, None], im[..., :, None]
    if not is_complex(poles):
        return _one_minus((re, row_re))
    plus, plus_error = _two_product(re, row_im)
    minus, minus_error = _two_product(im, row_re)
    return to_complex(_one_minus((re, row_re), (im, row_im)), (plus - minus) + (plus_error - minus_error))


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
