"""The kernels of `_small_systems_reference`, compiled: one pipeline from poles to Hankel singular values and projections.

A matrix is a sequence of columns, a column one plane of numbers (its real parts) or two (its imaginary parts after them), a plane a
sequence of vectors of eight numbers. Up to `_ACROSS` states the eight numbers are the same row of eight systems; above, they are
eight rows of one system, padded with zeros. The same code serves both: only what mixes rows (a pivot, a sum, a transposition)
asks which of the two it is. No lane depends on another system, so that results do not depend on who is beside whom.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hsv._kernels._small_systems_reference import Numbers, RealArray
from hsv._kernels._vectors import (
    LANES,
    absolute,
    any_less,
    fma,
    load,
    splat,
    sqrt,
    store,
    total,
    totals,
    where_less,
)

_ACROSS = 32
_SWEEPS = 40
_TINY = 2.0**-1000


@njit(cache=True, nogil=True)
def side_by_side(n: int, planes: int) -> int:
    """How many systems share a vector, for ranges of systems that leave no lane empty."""
    return LANES if n * planes <= _ACROSS else 1


# ---------------------------------------------------------------------------------------------------- poles in twice the precision


def _parts(value: Fraction, bits: tuple[int, ...]) -> tuple[float, ...]:
    """Numbers of so many bits whose sum is the value; the last one is rounded to a double."""
    parts = []
    for width in bits:
        unit = Fraction(2) ** (math.frexp(float(value))[1] - width)
        parts.append(float(round(value / unit) * unit))
        value -= Fraction(parts[-1])
    return (*parts, float(value))


# ln 2 and pi / 2 in parts of 32 bits and one of 53: the products with a number of steps below 2^21 are exact but for the last.
_LN2 = _parts(Fraction(0xB17217F7D1CF79ABC9E3B39803F2F6AF40F343267298B62D, 2**192), (32, 32))
_HALF_PI = _parts(Fraction(0x1921FB54442D18469898CC51701B839A252049C1114CF98E, 2**188), (32, 32))
_INVERSE_FACTORIALS = tuple(_parts(Fraction(1, math.factorial(k)), (53,)) for k in range(21))
_MAGIC = 1.5 * 2.0**52  # what is added to it loses its fraction
_STEPS = 2.0**20  # quarters of a turn up to which a phase is reduced without loss
MOST_PHASE = 1.5 * _STEPS


@njit(cache=True, nogil=True, inline="always")
def _dd_sum(a: Any, b: Any) -> Any:
    """The rounded sum and its rounding error (Knuth)."""
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


@njit(cache=True, nogil=True, inline="always")
def _dd_add(a: Any, ar: Any, b: Any, br: Any) -> Any:
    s, e = _dd_sum(a, b)
    return _dd_sum(s, e + (ar + br))


@njit(cache=True, nogil=True, inline="always")
def _dd_multiply(a: Any, ar: Any, b: Any, br: Any) -> Any:
    p = a * b
    e = fma(a, b, splat(0.0) - p) + fma(a, br, ar * b)
    return _dd_sum(p, e)


@njit(cache=True, nogil=True)
def _dd_exp(x: Any) -> Any:
    """``exp(x)`` for ``-700 < x < 1``; the power of two comes last, as a sequence of halvings is exact."""
    zero, magic = splat(0.0), splat(_MAGIC)
    k = (x * splat(1.4426950408889634) + magic) - magic
    minus = zero - k
    r, e = _dd_sum(fma(minus, splat(_LN2[0]), x), minus * splat(_LN2[1]))
    r, e = _dd_sum(r, e + minus * splat(_LN2[2]))
    r, e = r * splat(0.0625), e * splat(0.0625)
    y, ye = splat(_INVERSE_FACTORIALS[14][0]), zero
    for j in range(13, 8, -1):
        y = fma(y, r, splat(_INVERSE_FACTORIALS[j][0]))
    for j in range(8, 0, -1):
        y, ye = _dd_multiply(y, ye, r, e)
        y, ye = _dd_add(splat(_INVERSE_FACTORIALS[j][0]), splat(_INVERSE_FACTORIALS[j][1]), y, ye)
    y, ye = _dd_multiply(y, ye, r, e)  # exp(r) - 1, and now the square four times: 2 y + y^2
    for _ in range(4):
        q, qe = _dd_multiply(y, ye, y, ye)
        y, ye = _dd_add(y + y, ye + ye, q, qe)
    y, ye = _dd_add(splat(1.0), zero, y, ye)
    return y, ye, k


@njit(cache=True, nogil=True)
def _dd_turn(x: Any) -> Any:
    """Cosine and sine."""
    zero, one, magic = splat(0.0), splat(1.0), splat(_MAGIC)
    k = (x * splat(0.6366197723675814) + magic) - magic
    minus = zero - k
    r, e = _dd_sum(fma(minus, splat(_HALF_PI[0]), x), minus * splat(_HALF_PI[1]))
    t = minus * splat(_HALF_PI[2])
    te = fma(minus, splat(_HALF_PI[2]), zero - t)
    r, e = _dd_add(r, e, t, te)
    r, e = r * splat(0.125), e * splat(0.125)
    q, qe = _dd_multiply(r, e, r, e)
    q, qe = zero - q, zero - qe
    c, s = splat(_INVERSE_FACTORIALS[20][0]), splat(_INVERSE_FACTORIALS[19][0])
    for j in range(18, 9, -2):
        c = fma(c, q, splat(_INVERSE_FACTORIALS[j][0]))
        s = fma(s, q, splat(_INVERSE_FACTORIALS[j - 1][0]))
    ce, se = zero, zero
    for j in range(8, 1, -2):
        c, ce = _dd_multiply(c, ce, q, qe)
        c, ce = _dd_add(splat(_INVERSE_FACTORIALS[j][0]), splat(_INVERSE_FACTORIALS[j][1]), c, ce)
        s, se = _dd_multiply(s, se, q, qe)
        s, se = _dd_add(splat(_INVERSE_FACTORIALS[j - 1][0]), splat(_INVERSE_FACTORIALS[j - 1][1]), s, se)
    c, ce = _dd_multiply(c, ce, q, qe)  # cos(r) - 1
    s, se = _dd_multiply(s, se, r, e)
    for _ in range(3):  # cos(2 r) - 1 = -2 sin(r)^2 and sin(2 r) = 2 sin(r) + 2 sin(r) (cos(r) - 1)
        q, qe = _dd_multiply(s, se, c, ce)
        t, te = _dd_multiply(s, se, s, se)
        c, ce = zero - (t + t), zero - (te + te)
        s, se = _dd_add(s + s, se + se, q + q, qe + qe)
    c, ce = _dd_add(one, zero, c, ce)
    quarter = k - splat(4.0) * (((k - splat(1.5)) * splat(0.25) + magic) - magic)
    odd = (quarter - one) * (quarter - splat(3.0))  # zero for 1 and 3
    odd = where_less(zero, absolute(odd), zero, one)
    x, xe = where_less(zero, odd, s, c), where_less(zero, odd, se, ce)
    y, ye = where_less(zero, odd, c, s), where_less(zero, odd, ce, se)
    back, under = absolute(quarter - splat(1.5)), splat(1.5)
    turned = where_less(back, one, one, zero)  # 1 and 2: the cosine changes its sign
    below = where_less(under, quarter, one, zero)  # 2 and 3: the sine does
    x, xe = where_less(zero, turned, zero - x, x), where_less(zero, turned, zero - xe, xe)
    y, ye = where_less(zero, below, zero - y, y), where_less(zero, below, zero - ye, ye)
    return x, xe, y, ye


@njit(cache=True, nogil=True)
def exponentials(first: int, last: int, logs: RealArray, values: RealArray, rests: RealArray) -> None:
    """See `hsv._kernels._small_systems_reference.exponentials`."""
    planes = logs.shape[1]
    w = np.zeros(8 * LANES)
    for begin in range(first, last, LANES):
        count = min(LANES, last - begin)
        for lane in range(count):
            for p in range(planes):
                w[p * LANES + lane] = logs[begin + lane, p]
            # below this an exponential rounds to zero, or to so little that nothing is left of it in a Gramian
            w[lane] = max(w[lane], -700.0)
        y, ye, k = _dd_exp(load(w, 0))
        x, xe = y, ye
        if planes == 2:
            c, ce, s, se = _dd_turn(load(w, LANES))
            x, xe = _dd_multiply(y, ye, c, ce)
            y, ye = _dd_multiply(y, ye, s, se)
            store(w, 4 * LANES, y)
            store(w, 5 * LANES, ye)
        store(w, 2 * LANES, x)
        store(w, 3 * LANES, xe)
        store(w, 6 * LANES, k)
        for lane in range(count):
            scale = 2.0 ** w[6 * LANES + lane] if logs[begin + lane, 0] >= -700.0 else 0.0
            for p in range(planes):
                values[begin + lane, p] = scale * w[(2 + 2 * p) * LANES + lane]
                rests[begin + lane, p] = scale * w[(3 + 2 * p) * LANES + lane]


# ---------------------------------------------------------------------------------------------------- elimination


@njit(cache=True, nogil=True)
def _gap(discrete: bool, planes: int, a: Any, b: Any, ra: Any, rb: Any, c: Any, d: Any, rc: Any, rd: Any) -> Any:
    """``1 - l conj(k)`` or ``-(l + conj k)`` for ``l = a + i b``, ``k = c + i d``, poles with rests; every digit of it."""
    zero, one = splat(0.0), splat(1.0)
    if not discrete:
        return zero - (a + c), d - b
    minus_c, minus_d = zero - c, zero - d
    if planes == 1:
        return fma(minus_c, a, one) - fma(a, rc, ra * c), zero
    first, second = a * c, b * d
    rounding = fma(minus_c, a, first) + fma(minus_d, b, second)
    once = one - first
    back = once - one
    rounding = rounding + ((one - (once - back)) - (first + back))
    twice = once - second
    back = twice - once
    rounding = rounding + ((once - (twice - back)) - (second + back))
    re = twice + (rounding - fma(a, rc, fma(ra, c, fma(b, rd, rb * d))))
    third = b * c
    im = (fma(a, d, zero - third) + fma(minus_c, b, third)) + (fma(a, rd, ra * d) - fma(b, rc, rb * c))
    return re, im


@njit(cache=True, nogil=True)
def _scale_columns(w: RealArray, planes: int, nv: int, weight: int, source: int, target: int, count: int) -> None:
    """Multiply the rows of ``count`` columns by the complex numbers of one."""
    plane = LANES * nv
    for _ in range(count):
        for i in range(0, plane, LANES):
            a, c = load(w, weight + i), load(w, source + i)
            if planes == 1:
                store(w, target + i, a * c)
            else:
                b, d = load(w, weight + plane + i), load(w, source + plane + i)
                store(w, target + i, fma(a, c, splat(0.0) - b * d))
                store(w, target + plane + i, fma(a, d, b * c))
        source += planes * plane
        target += planes * plane


@njit(cache=True, nogil=True)
def _eliminate(
    w: RealArray,
    across: bool,
    planes: int,
    discrete: bool,
    n: int,
    nv: int,
    poles: int,
    rests: int,
    share: int,
    gens: int,
    m: int,
    head: int,
    factor: int,
) -> None:
    """Write the columns of a factor of ``g_i conj(g_j) / d_ij``; `share` holds the weight of a row's pivot over ``d_ii``.

    `head` has room for ``2 m`` columns of one vector: the pivot's row of generators, and the reflection that leaves its first entry.
    """
    zero, one = splat(0.0), splat(1.0)
    plane = LANES * nv
    column = planes * plane
    for k in range(n):
        # the pivot: a lane's own where lanes are systems
        best = zero
        pa, pb, ra, rb = zero, zero, zero, zero
        place, last = 0, 0.0
        for i in range(0, plane, LANES):
            square = zero
            for c in range(0, m * column, plane):
                g = load(w, gens + c + i)
                square = fma(g, g, square)
            square = square * load(w, share + i)
            if across:
                pa = where_less(best, square, load(w, poles + i), pa)
                ra = where_less(best, square, load(w, rests + i), ra)
                if planes == 2:
                    pb = where_less(best, square, load(w, poles + plane + i), pb)
                    rb = where_less(best, square, load(w, rests + plane + i), rb)
                if m > 1:
                    for c in range(m * planes):
                        g = load(w, gens + c * plane + i)
                        store(w, head + c * LANES, where_less(best, square, g, load(w, head + c * LANES)))
                best = where_less(best, square, square, best)
            else:
                store(w, head, square)
                for lane in range(LANES):
                    if w[head + lane] > last:
                        place, last = i + lane, w[head + lane]
        if not across:
            best = splat(last)
            pa, ra = splat(w[poles + place]), splat(w[rests + place])
            if planes == 2:
                pb, rb = splat(w[poles + plane + place]), splat(w[rests + plane + place])
            if m > 1:
                for c in range(m * planes):
                    store(w, head + c * LANES, splat(w[gens + c * plane + place]))
        if not any_less(zero, best):
            w[factor + k * column : factor + n * column] = 0.0
            return
        own, _ = _gap(discrete, planes, pa, pb, ra, rb, pa, pb, ra, rb)
        own = where_less(zero, best, sqrt(own), zero)
        if m > 1:
            _reflect(w, planes, nv, gens, m, head)
        for i in range(0, plane, LANES):
            a, ar = load(w, poles + i), load(w, rests + i)
            b, br = zero, zero
            if planes == 2:
                b, br = load(w, poles + plane + i), load(w, rests + plane + i)
            re, im = _gap(discrete, planes, a, b, ar, br, pa, pb, ra, rb)
            g = load(w, gens + i)
            if planes == 1:
                g = g / re
                store(w, factor + k * column + i, g * own)
                store(w, gens + i, g * ((a - pa) + (ar - ra)))
            else:
                h = load(w, gens + plane + i)
                inverse = one / fma(re, re, im * im)
                g, h = fma(g, re, h * im) * inverse, fma(h, re, zero - g * im) * inverse
                store(w, factor + k * column + i, g * own)
                store(w, factor + k * column + plane + i, h * own)
                x, y = (a - pa) + (ar - ra), (b - pb) + (br - rb)
                store(w, gens + i, fma(g, x, zero - h * y))
                store(w, gens + plane + i, fma(g, y, h * x))


@njit(cache=True, nogil=True)
def _reflect(w: RealArray, planes: int, nv: int, gens: int, m: int, head: int) -> None:
    """Apply to every row of generators the Householder reflection that leaves only the first entry of the row in `head`."""
    zero, one, least = splat(0.0), splat(1.0), splat(_TINY)
    plane = LANES * nv
    big = zero  # the row is scaled to it: near the end of an elimination its squares are no normal numbers, and their inverses none at all
    for c in range(m * planes):
        g = absolute(load(w, head + c * LANES))
        big = where_less(big, g, g, big)
    inverse = where_less(least, big, one / where_less(least, big, big, one), zero)
    square = zero
    for c in range(m * planes):
        g = load(w, head + c * LANES) * inverse
        store(w, head + c * LANES, g)
        square = fma(g, g, square)
    length = sqrt(square)
    a = load(w, head)
    b = zero
    if planes == 2:
        b = load(w, head + LANES)
    size = sqrt(fma(a, a, b * b))
    stretch = where_less(zero, size, length / where_less(zero, size, size, one), zero)
    store(w, head, fma(a, stretch, a + where_less(zero, size, zero, length)))
    if planes == 2:
        store(w, head + LANES, fma(b, stretch, b))
    scale = length * (length + size)
    scale = where_less(zero, scale, one / where_less(zero, scale, scale, one), zero)
    for i in range(0, plane, LANES):
        re, im = zero, zero
        for c in range(m):
            g, v = load(w, gens + c * planes * plane + i), load(w, head + c * planes * LANES)
            re = fma(g, v, re)
            if planes == 2:
                h, u = load(w, gens + (2 * c + 1) * plane + i), load(w, head + (2 * c + 1) * LANES)
                re = fma(h, u, re)
                im = fma(h, v, fma(zero - g, u, im))
        re, im = re * scale, im * scale
        for c in range(m):
            at = gens + c * planes * plane + i
            v = load(w, head + c * planes * LANES)
            if planes == 1:
                store(w, at, fma(zero - re, v, load(w, at)))
            else:
                u = load(w, head + (2 * c + 1) * LANES)
                store(w, at, fma(im, u, fma(zero - re, v, load(w, at))))
                store(w, at + plane, load(w, at + plane) - fma(re, u, im * v))


# ---------------------------------------------------------------------------------------------------- products


@njit(cache=True, nogil=True)
def _put(w: RealArray, across: bool, place: int, row: int, value: Any) -> None:
    """Write an entry of a column: a number a system, or the sum of the lanes."""
    if across:
        store(w, place + row * LANES, value)
    else:
        w[place + row] = total(value)


@njit(cache=True, nogil=True)
def _multiply(
    w: RealArray,
    across: bool,
    planes: int,
    n: int,
    nv: int,
    left: int,
    right: int,
    symmetric: bool,
    target: int,
    stride: int,
) -> None:
    """``X^T Y`` from the columns of ``X`` and ``Y``, without conjugation; half of it where it is known to be symmetric."""
    plane = LANES * nv
    column = planes * plane
    for j in range(0, n, 2):
        second = min(j + 1, n - 1)
        y, z = right + j * column, right + second * column
        for i in range(0, j + 2 if symmetric else n, 2):
            if i >= n:
                break
            other = min(i + 1, n - 1)
            x, u = left + i * column, left + other * column
            a, b, c, d = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            e, f, g, h = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            for r in range(0, plane, LANES):
                xr, ur, yr, zr = load(w, x + r), load(w, u + r), load(w, y + r), load(w, z + r)
                a, b, c, d = fma(xr, yr, a), fma(xr, zr, b), fma(ur, yr, c), fma(ur, zr, d)
                if planes == 2:
                    xi, ui = load(w, x + plane + r), load(w, u + plane + r)
                    yi, zi = splat(0.0) - load(w, y + plane + r), splat(0.0) - load(w, z + plane + r)
                    a, b, c, d = fma(xi, yi, a), fma(xi, zi, b), fma(ui, yi, c), fma(ui, zi, d)
                    e, f, g, h = fma(xr, yi, e), fma(xr, zi, f), fma(ur, yi, g), fma(ur, zi, h)
                    xi, ui = splat(0.0) - xi, splat(0.0) - ui
                    e, f, g, h = fma(xi, yr, e), fma(xi, zr, f), fma(ui, yr, g), fma(ui, zr, h)
            for p in range(planes):
                if p == 1:
                    a, b, c, d = splat(0.0) - e, splat(0.0) - f, splat(0.0) - g, splat(0.0) - h
                _put(w, across, target + j * stride + p * plane, i, a)
                _put(w, across, target + second * stride + p * plane, i, b)
                _put(w, across, target + j * stride + p * plane, other, c)
                _put(w, across, target + second * stride + p * plane, other, d)
                if symmetric:
                    _put(w, across, target + i * stride + p * plane, j, a)
                    _put(w, across, target + i * stride + p * plane, second, b)
                    _put(w, across, target + other * stride + p * plane, j, c)
                    _put(w, across, target + other * stride + p * plane, second, d)


# ---------------------------------------------------------------------------------------------------- orthogonal triangle


@njit(cache=True, nogil=True)
def _largest(w: RealArray, across: bool, planes: int, plane: int, begin: int, column: int) -> Any:
    """The largest modulus of the parts of a column's entries from the vector at `begin` on."""
    zero = splat(0.0)
    big = zero
    for p in range(planes):
        for r in range(begin, plane, LANES):
            size = absolute(load(w, column + p * plane + r))
            big = where_less(big, size, size, big)
    if not across:
        store(w, column + planes * plane, big)  # the scratch that follows every reflection
        last = 0.0
        for lane in range(LANES):
            last = max(last, w[column + planes * plane + lane])
        big = splat(last)
    return big


@njit(cache=True, nogil=True)
def _triangularize(
    w: RealArray,
    across: bool,
    planes: int,
    n: int,
    nv: int,
    ramp: int,
    matrix: int,
    stride: int,
    reflections: int,
    step: int,
    target: int,
    width: int,
) -> None:
    """Householder's ``M = Q R``: the columns of ``R^H`` go to `target`, the reflections with their factors to `reflections`.

    Rows and columns of ``M`` are graded, largest first, so that no pivoting is needed for errors that are small row by row.
    """
    zero, one = splat(0.0), splat(1.0)
    plane = LANES * nv
    for k in range(n):
        begin = k * LANES if across else k // LANES * LANES
        above = zero if across else splat(float(k - begin))  # in the first vector, rows of R stand above the diagonal
        v, x = reflections + k * step, matrix + k * stride
        for p in range(planes):
            for r in range(begin, plane, LANES):
                store(w, v + p * plane + r, load(w, x + p * plane + r))
            if not across:
                store(w, v + p * plane + begin, where_less(load(w, ramp), above, zero, load(w, x + p * plane + begin)))
        big = _largest(w, across, planes, plane, begin, v)
        inverse = where_less(splat(_TINY), big, one / where_less(splat(_TINY), big, big, one), zero)
        square = zero
        for p in range(planes):
            for r in range(begin, plane, LANES):
                y = load(w, v + p * plane + r) * inverse
                store(w, v + p * plane + r, y)
                square = fma(y, y, square)
        if across:
            a = load(w, v + begin)
            b = zero
            if planes == 2:
                b = load(w, v + plane + begin)
        else:
            square = splat(total(square))
            a = splat(w[v + k])
            b = zero
            if planes == 2:
                b = splat(w[v + plane + k])
        length = sqrt(square)
        size = sqrt(fma(a, a, b * b))
        inverse = one / where_less(zero, length, length, one)
        over = one / where_less(zero, size, size, one)
        cosine, sine = where_less(zero, size, a * over, one), b * over  # of the diagonal entry
        tau = where_less(zero, length, one / fma(size, inverse, one), zero)
        for p in range(planes):
            for r in range(begin, plane, LANES):
                store(w, v + p * plane + r, load(w, v + p * plane + r) * inverse)
        norm = zero - length * where_less(splat(_TINY), big, big, zero)
        if across:
            store(w, v + begin, load(w, v + begin) + cosine)
            store(w, target + k * width + begin, cosine * norm)
            if planes == 2:
                store(w, v + plane + begin, load(w, v + plane + begin) + sine)
                store(w, target + k * width + plane + begin, zero - sine * norm)
        else:
            store(w, v + planes * plane, cosine)
            w[v + k] += w[v + planes * plane]
            store(w, v + planes * plane, cosine * norm)
            w[target + k * width + k] = w[v + planes * plane]
            if planes == 2:
                store(w, v + planes * plane, sine)
                w[v + plane + k] += w[v + planes * plane]
                store(w, v + planes * plane, zero - sine * norm)
                w[target + k * width + plane + k] = w[v + planes * plane]
        store(w, v + planes * plane, tau)
        for j in range(k + 1, n):
            y = matrix + j * stride
            _reflect_column(w, across, planes, plane, begin, v, y)
            if across:
                store(w, target + k * width + j * LANES, load(w, y + begin))
                if planes == 2:
                    store(w, target + k * width + plane + j * LANES, zero - load(w, y + plane + begin))
            else:
                w[target + k * width + j] = w[y + k]
                if planes == 2:
                    w[target + k * width + plane + j] = -w[y + plane + k]


@njit(cache=True, nogil=True)
def _reflect_column(w: RealArray, across: bool, planes: int, plane: int, begin: int, v: int, y: int) -> None:
    """``y - tau v (v^H y)`` from the vector at `begin` on; ``tau`` stands behind ``v``."""
    zero = splat(0.0)
    tau = load(w, v + planes * plane)
    re, im = zero, zero
    if planes == 1:
        odd = zero
        for r in range(begin, plane - LANES, 2 * LANES):
            re = fma(load(w, v + r), load(w, y + r), re)
            odd = fma(load(w, v + r + LANES), load(w, y + r + LANES), odd)
        if (plane - begin) // LANES % 2 == 1:
            re = fma(load(w, v + plane - LANES), load(w, y + plane - LANES), re)
        re = re + odd
        if not across:
            re = splat(total(re))
        re = zero - re * tau
        for r in range(begin, plane, LANES):
            store(w, y + r, fma(re, load(w, v + r), load(w, y + r)))
        return
    for r in range(begin, plane, LANES):
        a, b = load(w, v + r), load(w, v + plane + r)
        c, d = load(w, y + r), load(w, y + plane + r)
        re, im = fma(b, d, fma(a, c, re)), fma(zero - b, c, fma(a, d, im))
    if not across:
        re, im = splat(total(re)), splat(total(im))
    re, im = zero - re * tau, zero - im * tau
    for r in range(begin, plane, LANES):
        a, b = load(w, v + r), load(w, v + plane + r)
        store(w, y + r, fma(re, a, fma(zero - im, b, load(w, y + r))))
        store(w, y + plane + r, fma(re, b, fma(im, a, load(w, y + plane + r))))


@njit(cache=True, nogil=True)
def _form_unitary(
    w: RealArray, across: bool, planes: int, n: int, nv: int, reflections: int, target: int, width: int
) -> None:
    """The columns of ``Q`` of `_triangularize`."""
    plane = LANES * nv
    column = planes * plane + LANES
    for k in range(n - 1, -1, -1):
        begin = k * LANES if across else k // LANES * LANES
        q = target + k * width
        w[q : q + planes * plane] = 0.0
        if across:
            store(w, q + begin, splat(1.0))
        else:
            w[q + k] = 1.0
        for j in range(k, n):
            _reflect_column(w, across, planes, plane, begin, reflections + k * column, target + j * width)


# ---------------------------------------------------------------------------------------------------- Jacobi


@njit(cache=True, nogil=True)
def _inner(w: RealArray, planes: int, plane: int, x: int, y: int) -> Any:
    """``x^H y``, still to be summed over lanes where these are rows."""
    re, im = splat(0.0), splat(0.0)
    odd, most = splat(0.0), splat(0.0)
    if planes == 1:
        for r in range(0, plane - LANES, 2 * LANES):
            re = fma(load(w, x + r), load(w, y + r), re)
            odd = fma(load(w, x + r + LANES), load(w, y + r + LANES), odd)
        if plane // LANES % 2 == 1:
            re = fma(load(w, x + plane - LANES), load(w, y + plane - LANES), re)
        return re + odd, im
    for r in range(0, plane, LANES):
        a, b, c, d = load(w, x + r), load(w, x + plane + r), load(w, y + r), load(w, y + plane + r)
        re, odd = fma(a, c, re), fma(b, d, odd)
        im, most = fma(a, d, im), fma(b, c, most)
    return re + odd, im - most


@njit(cache=True, nogil=True)
def _rotate(
    w: RealArray, planes: int, plane: int, columns: int, x: int, y: int, ar: Any, ai: Any, br: Any, bi: Any
) -> None:
    """``x + a y`` and ``y - b x`` in place, for columns of so many pairs of planes."""
    if planes == 1:
        b = splat(0.0) - br
        for r in range(0, columns * plane, LANES):
            u, v = load(w, x + r), load(w, y + r)
            store(w, x + r, fma(ar, v, u))
            store(w, y + r, fma(b, u, v))
        return
    minus_a, minus_b = splat(0.0) - ai, splat(0.0) - br
    minus_i = splat(0.0) - bi
    for c in range(columns):
        for r in range(2 * c * plane, (2 * c + 1) * plane, LANES):
            u, s, v, t = load(w, x + r), load(w, x + plane + r), load(w, y + r), load(w, y + plane + r)
            store(w, x + r, fma(ar, v, fma(minus_a, t, u)))
            store(w, x + plane + r, fma(ar, t, fma(ai, v, s)))
            store(w, y + r, fma(minus_b, u, fma(bi, s, v)))
            store(w, y + plane + r, fma(minus_b, s, fma(minus_i, u, t)))


@njit(cache=True, nogil=True)
def _measure(
    w: RealArray,
    across: bool,
    planes: int,
    nv: int,
    n: int,
    columns: int,
    matrix: int,
    stride: int,
    sizes: int,
    active: Any,
) -> None:
    """Divide the columns by their lengths, and multiply the sizes by them, in the lanes that are active.

    The sizes stand before their inverses and the squared lengths, three vectors (or numbers) a column.
    """
    zero, one = splat(0.0), splat(1.0)
    plane = LANES * nv
    for k in range(n):
        x = matrix + k * stride
        square, _ = _inner(w, planes, plane, x, x)
        place = sizes + 3 * LANES * k
        size, back, old = load(w, place), load(w, place + LANES), load(w, place + 2 * LANES)
        if not across:
            square, size, back, old = (
                splat(total(square)),
                splat(w[place]),
                splat(w[place + LANES]),
                splat(w[place + 2 * LANES]),
            )
        length = sqrt(where_less(zero, square, square, one))
        length = where_less(zero, active, length, one)
        inverse = one / length
        store(w, place, size * length)
        store(w, place + LANES, back * inverse)
        store(w, place + 2 * LANES, where_less(zero, active, square * inverse * inverse, old))
        for r in range(0, columns * planes * plane, LANES):
            store(w, x + r, load(w, x + r) * inverse)


@njit(cache=True, nogil=True)
def _prepare(
    w: RealArray, across: bool, planes: int, nv: int, n: int, columns: int, matrix: int, stride: int, sizes: int
) -> None:
    """Bring the largest entry of every column to one, so that no square under- or overflows."""
    zero, one = splat(0.0), splat(1.0)
    plane = LANES * nv
    for k in range(n):
        x, place = matrix + k * stride, sizes + 3 * LANES * k
        big = zero
        for r in range(0, planes * plane, LANES):
            size = absolute(load(w, x + r))
            big = where_less(big, size, size, big)
        if not across:
            store(w, place, big)
            last = 0.0
            for lane in range(LANES):
                last = max(last, w[place + lane])
            big = splat(last)
        alive = where_less(splat(_TINY), big, big, zero)
        big = where_less(zero, alive, big, one)
        inverse = where_less(zero, alive, one / big, zero)
        for r in range(0, columns * planes * plane, LANES):
            store(w, x + r, load(w, x + r) * inverse)
        store(w, place, alive)
        store(w, place + LANES, inverse)
        store(w, place + 2 * LANES, where_less(zero, alive, one, zero))


@njit(cache=True, nogil=True, inline="always")
def _angle(x: Any, y: Any, si: Any, ti: Any, qi: Any, sj: Any, tj: Any, qj: Any, small: Any, loose: Any) -> Any:
    """What makes two columns orthogonal whose inner product is ``x + i y``: no rotation in the lanes where that is small enough.

    Returns whether there is one, the factors ``a`` and ``b`` of the conjugate and of the inner product, and the new sizes, inverses and squares.
    """
    zero, one, two, four = splat(0.0), splat(1.0), splat(2.0), splat(4.0)
    square = fma(x, x, y * y)
    up, down = sj * ti, si * tj  # ratios of the sizes, one of them at most 1
    first = where_less(up * up * qj, qi, one, zero)  # the first column is the longer
    ratio = where_less(zero, first, up, down)
    ratio = ratio * ratio
    large, other = where_less(zero, first, qi, qj), where_less(zero, first, qj, qi)
    square = where_less(small * qi * qj, square, square, zero)
    gap = fma(zero - ratio, other, large)
    high = two / (gap + sqrt(fma(gap, gap, four * ratio * square)))
    square = where_less(loose * other, high * square, square, zero)
    turned = where_less(zero, square, one, zero)
    high = where_less(zero, square, high, zero)
    low = ratio * high
    growth = fma(low * high, square, one)
    cosecant = sqrt(growth)  # one over the cosine of the rotation
    cosine = one / cosecant
    a, b = where_less(zero, first, low, zero - high), where_less(zero, first, high, zero - low)
    qi, qj = fma(a, square, qi) * growth, fma(zero - b, square, qj) * growth
    return turned, a, b, si * cosine, ti * cosecant, qi, sj * cosine, tj * cosecant, qj


@njit(cache=True, nogil=True)
def _schedule(n: int, block: int, group: int) -> NDArray[np.int16]:
    """The pairs of columns of one sweep, in groups without a common column; short groups are filled with the column ``n``, which is zero.

    Blocks of columns meet in turn, so that two of them stay in the first-level cache for all their pairs.
    """
    blocks = (n + block - 1) // block
    pairs = np.full((blocks * block * (blocks * block + block) // 2, 2), n, np.int16)  # small beside the matrices
    count = 0
    for i in range(blocks):
        for turn in range(block - 1):
            for k in range(block // 2):
                a, b = (turn + k) % (block - 1), (turn - k + block - 1) % (block - 1)
                if k == 0:
                    b = block - 1
                a, b = min(a, b) + i * block, max(a, b) + i * block
                if b < n:
                    pairs[count, 0], pairs[count, 1] = a, b
                    count += 1
            count = (count + group - 1) // group * group
        for j in range(i + 1, blocks):
            for turn in range(block):
                for k in range(block):
                    a, b = i * block + k, j * block + (k + turn) % block
                    if b < n:
                        pairs[count, 0], pairs[count, 1] = a, b
                        count += 1
                count = (count + group - 1) // group * group
    return pairs[:count]


@njit(cache=True, nogil=True)
def _sweep_across(
    w: RealArray,
    planes: int,
    plane: int,
    columns: int,
    matrix: int,
    stride: int,
    sizes: int,
    pairs: NDArray[np.int16],
    small: Any,
    loose: Any,
) -> Any:
    """Visit all pairs of columns of eight systems; the result is one in the lanes in which any pair was rotated."""
    zero = splat(0.0)
    any_turned = zero
    for k in range(pairs.shape[0]):
        i, j = matrix + pairs[k, 0] * stride, matrix + pairs[k, 1] * stride
        pi, pj = sizes + 3 * LANES * pairs[k, 0], sizes + 3 * LANES * pairs[k, 1]
        x, y = _inner(w, planes, plane, i, j)
        qi, qj = load(w, pi + 2 * LANES), load(w, pj + 2 * LANES)
        if not any_less(small * qi * qj, fma(x, x, y * y)):
            continue
        turned, a, b, si, ti, qi, sj, tj, qj = _angle(
            x, y, load(w, pi), load(w, pi + LANES), qi, load(w, pj), load(w, pj + LANES), qj, small, loose
        )
        if not any_less(zero, turned):
            continue
        any_turned = where_less(zero, turned, turned, any_turned)
        _rotate(w, planes, plane, columns, i, j, a * x, zero - a * y, b * x, b * y)
        store(w, pi, si)
        store(w, pi + LANES, ti)
        store(w, pi + 2 * LANES, qi)
        store(w, pj, sj)
        store(w, pj + LANES, tj)
        store(w, pj + 2 * LANES, qj)
    return any_turned


@njit(cache=True, nogil=True)
def _sweep_within(
    w: RealArray,
    planes: int,
    plane: int,
    columns: int,
    matrix: int,
    stride: int,
    sizes: int,
    pairs: NDArray[np.int16],
    scratch: int,
    small: Any,
    loose: Any,
) -> Any:
    """Visit all pairs of columns of one system, eight pairs at a time."""
    zero = splat(0.0)
    any_turned = zero
    for begin in range(0, pairs.shape[0], LANES):
        for k in range(LANES):
            i, j = pairs[begin + k, 0], pairs[begin + k, 1]
            w[scratch + 18 * LANES + k] = w[sizes + (3 * i + 2) * LANES]
            w[scratch + 21 * LANES + k] = w[sizes + (3 * j + 2) * LANES]
        _eight_products(w, planes, plane, matrix, stride, pairs, begin, scratch)
        x, y = load(w, scratch), zero
        if planes == 2:
            y = load(w, scratch + LANES)
        qi, qj = load(w, scratch + 18 * LANES), load(w, scratch + 21 * LANES)
        if not any_less(small * qi * qj, fma(x, x, y * y)):
            continue
        for k in range(LANES):
            i, j = sizes + 3 * LANES * pairs[begin + k, 0], sizes + 3 * LANES * pairs[begin + k, 1]
            w[scratch + 16 * LANES + k], w[scratch + 17 * LANES + k] = w[i], w[i + LANES]
            w[scratch + 19 * LANES + k], w[scratch + 20 * LANES + k] = w[j], w[j + LANES]
        si, ti = load(w, scratch + 16 * LANES), load(w, scratch + 17 * LANES)
        sj, tj = load(w, scratch + 19 * LANES), load(w, scratch + 20 * LANES)
        turned, a, b, si, ti, qi, sj, tj, qj = _angle(x, y, si, ti, qi, sj, tj, qj, small, loose)
        if not any_less(zero, turned):
            continue
        any_turned = where_less(zero, turned, turned, any_turned)
        store(w, scratch, turned)
        store(w, scratch + LANES, a * x)
        store(w, scratch + 2 * LANES, zero - a * y)
        store(w, scratch + 3 * LANES, b * x)
        store(w, scratch + 4 * LANES, b * y)
        store(w, scratch + 16 * LANES, si)
        store(w, scratch + 17 * LANES, ti)
        store(w, scratch + 18 * LANES, qi)
        store(w, scratch + 19 * LANES, sj)
        store(w, scratch + 20 * LANES, tj)
        store(w, scratch + 21 * LANES, qj)
        for k in range(LANES):
            if w[scratch + k] == 0.0:
                continue
            i, j = pairs[begin + k, 0], pairs[begin + k, 1]
            at = scratch + LANES + k
            ar, ai = splat(w[at]), splat(w[at + LANES])
            br, bi = splat(w[at + 2 * LANES]), splat(w[at + 3 * LANES])
            _rotate(w, planes, plane, columns, matrix + i * stride, matrix + j * stride, ar, ai, br, bi)
            for c in range(0, 3 * LANES, LANES):
                w[sizes + 3 * LANES * i + c] = w[scratch + 16 * LANES + c + k]
                w[sizes + 3 * LANES * j + c] = w[scratch + 19 * LANES + c + k]
    return any_turned


@njit(cache=True, nogil=True)
def _eight_products(
    w: RealArray, planes: int, plane: int, matrix: int, stride: int, pairs: NDArray[np.int16], begin: int, target: int
) -> None:
    """The inner products ``x^H y`` of eight pairs of columns: the real parts, then the imaginary ones."""
    i0, i1, i2, i3 = (matrix + pairs[begin, 0] * stride, matrix + pairs[begin + 1, 0] * stride,
                      matrix + pairs[begin + 2, 0] * stride, matrix + pairs[begin + 3, 0] * stride)  # fmt: skip
    i4, i5, i6, i7 = (matrix + pairs[begin + 4, 0] * stride, matrix + pairs[begin + 5, 0] * stride,
                      matrix + pairs[begin + 6, 0] * stride, matrix + pairs[begin + 7, 0] * stride)  # fmt: skip
    j0, j1, j2, j3 = (matrix + pairs[begin, 1] * stride, matrix + pairs[begin + 1, 1] * stride,
                      matrix + pairs[begin + 2, 1] * stride, matrix + pairs[begin + 3, 1] * stride)  # fmt: skip
    j4, j5, j6, j7 = (matrix + pairs[begin + 4, 1] * stride, matrix + pairs[begin + 5, 1] * stride,
                      matrix + pairs[begin + 6, 1] * stride, matrix + pairs[begin + 7, 1] * stride)  # fmt: skip
    a = b = c = d = e = f = g = h = splat(0.0)
    for r in range(0, planes * plane, LANES):
        a, b = fma(load(w, i0 + r), load(w, j0 + r), a), fma(load(w, i1 + r), load(w, j1 + r), b)
        c, d = fma(load(w, i2 + r), load(w, j2 + r), c), fma(load(w, i3 + r), load(w, j3 + r), d)
        e, f = fma(load(w, i4 + r), load(w, j4 + r), e), fma(load(w, i5 + r), load(w, j5 + r), f)
        g, h = fma(load(w, i6 + r), load(w, j6 + r), g), fma(load(w, i7 + r), load(w, j7 + r), h)
    store(w, target, totals(a, b, c, d, e, f, g, h))
    if planes == 1:
        return
    a = b = c = d = e = f = g = h = splat(0.0)
    s = t = u = v = x = y = z = o = splat(0.0)
    for r in range(0, plane, LANES):
        k = r + plane
        a, b = fma(load(w, i0 + r), load(w, j0 + k), a), fma(load(w, i1 + r), load(w, j1 + k), b)
        c, d = fma(load(w, i2 + r), load(w, j2 + k), c), fma(load(w, i3 + r), load(w, j3 + k), d)
        e, f = fma(load(w, i4 + r), load(w, j4 + k), e), fma(load(w, i5 + r), load(w, j5 + k), f)
        g, h = fma(load(w, i6 + r), load(w, j6 + k), g), fma(load(w, i7 + r), load(w, j7 + k), h)
        s, t = fma(load(w, i0 + k), load(w, j0 + r), s), fma(load(w, i1 + k), load(w, j1 + r), t)
        u, v = fma(load(w, i2 + k), load(w, j2 + r), u), fma(load(w, i3 + k), load(w, j3 + r), v)
        x, y = fma(load(w, i4 + k), load(w, j4 + r), x), fma(load(w, i5 + k), load(w, j5 + r), y)
        z, o = fma(load(w, i6 + k), load(w, j6 + r), z), fma(load(w, i7 + k), load(w, j7 + r), o)
    store(w, target + LANES, totals(a, b, c, d, e, f, g, h) - totals(s, t, u, v, x, y, z, o))


@njit(cache=True, nogil=True)
def _orthogonalize(
    w: RealArray,
    across: bool,
    planes: int,
    n: int,
    nv: int,
    columns: int,
    matrix: int,
    stride: int,
    sizes: int,
    scratch: int,
    pairs: NDArray[np.int16],
    strict: bool,
) -> bool:
    """One-sided Jacobi: rotate pairs of columns until all are orthogonal; the rest of the columns follows. Returns whether they are.

    A column is a vector of about unit length times a size, so that columns of any ratio are compared by cosines. The
    rotations are of the fast kind: ``x + a y``, ``y - b x``, with the common factor in the sizes. Where that is not `strict`, for values alone, a
    cosine is small enough once its square, relative to the difference of the two lengths, is nothing beside them.
    """
    zero = splat(0.0)
    plane = LANES * nv
    small = splat(2.0**-104 * n)
    loose = zero if strict else splat(2.0**-56)
    _prepare(w, across, planes, nv, n, columns, matrix, stride, sizes)
    w[matrix + n * stride : matrix + (n + 1) * stride] = 0.0
    w[sizes + 3 * LANES * n : sizes + 3 * LANES * (n + 1)] = 0.0
    active = splat(1.0)
    for _ in range(_SWEEPS):
        _measure(w, across, planes, nv, n, columns, matrix, stride, sizes, active)
        if across:
            active = _sweep_across(w, planes, plane, columns, matrix, stride, sizes, pairs, small, loose)
        else:
            active = _sweep_within(w, planes, plane, columns, matrix, stride, sizes, pairs, scratch, small, loose)
            active = splat(total(active))
        if not any_less(zero, active):
            return True
    return False


# ---------------------------------------------------------------------------------------------------- the pipeline


@njit(cache=True, nogil=True)
def _load_systems(
    w: RealArray, across: bool, planes: int, nv: int, n: int, begin: int, source: RealArray, offset: int, place: int
) -> None:
    """Write ``source[system, k, plane]`` to a column: of eight systems, the last one again where the batch ends, or of one."""
    plane = LANES * nv
    count = source.shape[0]
    for p in range(planes):
        for k in range(n):
            if across:
                for lane in range(LANES):
                    w[place + p * plane + k * LANES + lane] = source[min(begin + lane, count - 1), k + offset, p]
            else:
                w[place + p * plane + k] = source[begin, k + offset, p]


@njit(cache=True, nogil=True)
def _factor(
    w: RealArray,
    across: bool,
    planes: int,
    discrete: bool,
    n: int,
    nv: int,
    poles: int,
    rests: int,
    weight: int,
    share: int,
    gens: int,
    m: int,
    head: int,
    factor: int,
) -> None:
    """A factor of the Gramian of the generators; `weight` is the place of one complex weight a row, or -1."""
    zero, one = splat(0.0), splat(1.0)
    plane = LANES * nv
    for i in range(0, plane, LANES):
        a, ar = load(w, poles + i), load(w, rests + i)
        b, br = zero, zero
        if planes == 2:
            b, br = load(w, poles + plane + i), load(w, rests + plane + i)
        own, _ = _gap(discrete, planes, a, b, ar, br, a, b, ar, br)
        own = where_less(zero, own, own, one)  # padding may have no gap
        value = one
        if weight >= 0:
            value = absolute(load(w, weight + i))
            if planes == 2:
                other = absolute(load(w, weight + plane + i))
                large, least = where_less(value, other, other, value), where_less(value, other, value, other)
                least = least / where_less(zero, large, large, one)
                value = large * sqrt(fma(least, least, one))
        store(w, share + i, value / own)
    if not across:  # rows of padding are never pivots
        w[share + n : share + plane] = 0.0
    _eliminate(w, across, planes, discrete, n, nv, poles, rests, share, gens, m, head, factor)


@njit(cache=True, nogil=True)
def _combine(
    w: RealArray, across: bool, planes: int, n: int, nv: int, basis: int, coefficients: int, stride: int
) -> None:
    """Replace the columns of coefficients by the sums of columns of the basis that they stand for."""
    zero = splat(0.0)
    plane = LANES * nv
    column = planes * plane
    extra = coefficients + n * stride
    for k in range(n):
        c = coefficients + k * stride
        w[extra : extra + column] = w[c : c + column]
        for r in range(0, plane, LANES):
            re, im, odd, most = zero, zero, zero, zero
            for j in range(n):
                x = load(w, basis + j * column + r)
                if across:
                    a = load(w, extra + j * LANES)
                else:
                    a = splat(w[extra + j])
                re = fma(x, a, re)
                if planes == 2:
                    y = load(w, basis + j * column + plane + r)
                    if across:
                        b = load(w, extra + plane + j * LANES)
                    else:
                        b = splat(w[extra + plane + j])
                    odd, im, most = fma(y, b, odd), fma(x, b, im), fma(y, a, most)
            store(w, c + r, re - odd)
            if planes == 2:
                store(w, c + plane + r, im + most)


@njit(cache=True, nogil=True)
def _store_columns(
    w: RealArray,
    across: bool,
    planes: int,
    nv: int,
    n: int,
    lane: int,
    source: int,
    stride: int,
    order: NDArray[np.int64],
    target: RealArray,
) -> None:
    """Write the columns of a system, in another order, as ``target[row, column, plane]``."""
    plane = LANES * nv
    for k in range(n):
        x = source + order[k] * stride
        for p in range(planes):
            for i in range(n):
                target[i, k, p] = w[x + p * plane + (i * LANES + lane if across else i)]


@njit(cache=True, nogil=True)
def hankel_values(
    first: int,
    last: int,
    discrete: bool,
    poles: RealArray,
    rests: RealArray,
    B: RealArray,
    C: RealArray,
    strict: bool,
    values: RealArray,
    left_bases: RealArray,
    right_bases: RealArray,
) -> bool:
    """See `hsv._kernels._small_systems_reference.hankel_values`."""
    _, n, m, planes = B.shape
    p = C.shape[1]
    across = side_by_side(n, planes) > 1
    nv = n if across else (n + LANES - 1) // LANES
    vectors = left_bases.shape[0] > 0
    strict |= vectors
    single = m == 1 and p == 1
    plane = LANES * nv
    column = planes * plane
    most = max(m, p)
    width = 2 * column if vectors else column  # of a column that is rotated
    kept = n * (column + LANES) if vectors else column + LANES  # reflections
    sizes_of = (2 * column, plane, LANES, most * column, 2 * most * planes * LANES, 2 * column, (n + 1) * column, n * column,
                n * column, 2 * kept, (n + 1) * width if vectors else 0, 3 * LANES * (n + 1), 22 * LANES)  # fmt: skip
    w = np.zeros(sum(sizes_of) + LANES)
    pole = (64 - w.ctypes.data % 64) // 8 % LANES
    rest = pole + column
    share = rest + column
    ramp = share + plane
    gens = ramp + LANES
    head = gens + most * column
    weight = head + 2 * most * planes * LANES
    left = weight + 2 * column
    right = left + (n + 1) * column
    matrix = right + n * column
    mirror = matrix + n * column
    second = mirror + kept
    rotated = second + kept
    sizes = rotated + ((n + 1) * width if vectors else 0)
    scratch = sizes + 3 * LANES * (n + 1)
    step_of = column + LANES if vectors else 0
    if not vectors:
        rotated = left
    for lane in range(LANES):
        w[ramp + lane] = lane
    pairs = _schedule(n, 4 if across and n > 32 else 8, 1 if across else LANES)
    line = np.empty(n)
    converged = True
    step = LANES if across else 1
    for begin in range(first, last, step):
        _load_systems(w, across, planes, nv, n, begin, poles, 0, pole)
        if rests.shape[0] > 0:
            _load_systems(w, across, planes, nv, n, begin, rests, 0, rest)
        if single:
            _load_systems(w, across, planes, nv, n, begin, B[:, :, 0], 0, weight)
            _load_systems(w, across, planes, nv, n, begin, C[:, 0], 0, weight + column)
            _scale_columns(w, planes, nv, weight, weight + column, gens, 1)
            w[weight : weight + column] = w[gens : gens + column]
            w[gens : gens + plane] = 1.0
            w[gens + plane : gens + column] = 0.0
            _factor(w, across, planes, discrete, n, nv, pole, rest, weight, share, gens, 1, head, right)
            _scale_columns(w, planes, nv, weight, right, left, n)
        else:
            for c in range(p):
                _load_systems(w, across, planes, nv, n, begin, C[:, c], 0, gens + c * column)
            _factor(w, across, planes, discrete, n, nv, pole, rest, -1, share, gens, p, head, left)
            for c in range(m):
                _load_systems(w, across, planes, nv, n, begin, B[:, :, c], 0, gens + c * column)
            _factor(w, across, planes, discrete, n, nv, pole, rest, -1, share, gens, m, head, right)
        _multiply(w, across, planes, n, nv, left, right, single, matrix, column)
        if vectors and single:
            _scale_columns(w, planes, nv, weight + column, right, left, n)
            _load_systems(w, across, planes, nv, n, begin, B[:, :, 0], 0, weight)
            _scale_columns(w, planes, nv, weight, right, right, n)
        # Two triangles: with Q R = M and Q2 R2 = R^H the columns of R2^H are nearly orthogonal where M is graded.
        w[rotated : rotated + n * width] = 0.0
        _triangularize(w, across, planes, n, nv, ramp, matrix, column, mirror, step_of, rotated, width)
        for k in range(n):
            w[matrix + k * column : matrix + (k + 1) * column] = w[rotated + k * width : rotated + k * width + column]
        w[rotated : rotated + n * width] = 0.0
        _triangularize(w, across, planes, n, nv, ramp, matrix, column, second, step_of, rotated, width)
        if vectors:
            _form_unitary(w, across, planes, n, nv, second, rotated + column, width)
        turns = 2 if vectors else 1
        converged &= _orthogonalize(w, across, planes, n, nv, turns, rotated, width, sizes, scratch, pairs, strict)
        if strict:
            _measure(w, across, planes, nv, n, turns, rotated, width, sizes, splat(1.0))
        if vectors:
            for j in range(n):
                size = load(w, sizes + 3 * LANES * j)
                for r in range(rotated + j * width + column, rotated + (j + 1) * width, LANES):
                    store(w, r, load(w, r) * size)
                for k in range(n - 1, -1, -1):
                    place = mirror + k * step_of
                    _reflect_column(
                        w,
                        across,
                        planes,
                        plane,
                        k * LANES if across else k // LANES * LANES,
                        place,
                        rotated + j * width,
                    )
            if planes == 2:  # the bases come from conj(X)
                for k in range(n):
                    for r in range(left + k * column + plane, left + (k + 1) * column, LANES):
                        store(w, r, splat(0.0) - load(w, r))
            _combine(w, across, planes, n, nv, left, rotated, width)
            _combine(w, across, planes, n, nv, right, rotated + column, width)
        for lane in range(min(step, last - begin)):
            for k in range(n):
                place = sizes + 3 * LANES * k + lane
                line[k] = -w[place] * math.sqrt(w[place + 2 * LANES])
            if vectors:
                order = np.argsort(line, kind="mergesort")
                _store_columns(w, across, planes, nv, n, lane, rotated, width, order, left_bases[begin + lane])
                _store_columns(
                    w, across, planes, nv, n, lane, rotated + column, width, order, right_bases[begin + lane]
                )
            line.sort()
            for k in range(n):
                values[begin + lane, k] = abs(line[k])
    return converged


# ---------------------------------------------------------------------------------------------------- eigenvectors


@njit(cache=True, nogil=True)
def condition_numbers(
    first: int, last: int, paired: bool, poles: Numbers, vectors: Numbers, conditions: RealArray
) -> bool:
    """See `hsv._kernels._small_systems_reference.condition_numbers`."""
    n = vectors.shape[1]
    planes = 1 if paired else 2
    plane = LANES * n
    column = planes * plane
    w = np.zeros((n + 1) * (column + 3 * LANES) + LANES)
    matrix = (64 - w.ctypes.data % 64) // 8 % LANES
    sizes = matrix + (n + 1) * column
    pairs = _schedule(n, 8, 1)
    converged = True
    for begin in range(first, last, LANES):
        for lane in range(LANES):
            s = min(begin + lane, last - 1)
            for k in range(n):
                side = poles[s, k].imag if paired else 0.0
                scale = math.sqrt(2.0) if side != 0.0 else 1.0
                for i in range(n):
                    place = matrix + k * column + i * LANES + lane
                    v = vectors[s, i, k]
                    w[place] = scale * (v.imag if side < 0.0 else v.real)
                    if not paired:
                        w[place + plane] = v.imag
        done = _orthogonalize(w, True, planes, n, n, 1, matrix, column, sizes, 0, pairs, False)
        for lane in range(min(LANES, last - begin)):
            most, least, whole = 0.0, np.inf, True
            for k in range(n):
                place = sizes + 3 * LANES * k + lane
                size = w[place] * math.sqrt(w[place + 2 * LANES])
                most, least = max(most, size), min(least, size)
                whole &= size > 0.0
            # of a singular matrix a column of rounding errors is rotated again and again, until nothing, or no number, is left of it
            whole &= least > 2.0**-100 * most
            conditions[begin + lane] = most / least if whole else np.inf
            done |= not whole
        converged &= done
    return converged


# ---------------------------------------------------------------------------------------------------- projections


@njit(cache=True, nogil=True, error_model="numpy")
def project(
    first: int,
    last: int,
    discrete: bool,
    poles: Numbers,
    B: Numbers,
    C: Numbers,
    values: RealArray,
    orders: NDArray[np.int64],
    left_bases: Numbers,
    right_bases: Numbers,
    left: Numbers,
    right: Numbers,
    A_r: Numbers,
    B_r: Numbers,
    C_r: Numbers,
) -> None:
    """See `hsv._kernels._small_systems_reference.project`."""
    n, m, p, most = poles.shape[1], B.shape[2], C.shape[1], A_r.shape[1]
    gram, dual, basis = np.empty((most, most), B.dtype), np.empty((most, n), B.dtype), np.empty((n, most), B.dtype)
    row, ports = np.empty(most, B.dtype), np.empty(m, B.dtype)
    for s in range(first, last):
        r = orders[s]
        for k in range(r):
            scale = 1.0 / math.sqrt(values[s, k])
            for i in range(n):
                basis[i, k] = right_bases[s, i, k] * scale
                dual[k, i] = np.conj(left_bases[s, i, k] * scale)
        for k in range(r):
            row[:] = 0.0
            for i in range(n):
                x = dual[k, i]
                for j in range(r):
                    row[j] += x * basis[i, j]
            gram[k, :r] = row[:r]
        # gram^-1 left^H, by elimination with partial pivoting: it differs from the identity by rounding errors alone
        for k in range(r):
            pivot = k
            for j in range(k + 1, r):
                if abs(gram[j, k]) > abs(gram[pivot, k]):
                    pivot = j
            if pivot != k:
                for j in range(r):
                    gram[k, j], gram[pivot, j] = gram[pivot, j], gram[k, j]
                for i in range(n):
                    dual[k, i], dual[pivot, i] = dual[pivot, i], dual[k, i]
            for j in range(r):
                if j == k:
                    continue
                x = gram[j, k] / gram[k, k]
                for i in range(k + 1, r):
                    gram[j, i] -= x * gram[k, i]
                for i in range(n):
                    dual[j, i] -= x * dual[k, i]
        left[s], right[s], A_r[s], B_r[s], C_r[s] = 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(r):
            x = 1.0 / gram[k, k]
            row[:], ports[:] = 0.0, 0.0
            for i in range(n):
                y = dual[k, i] * x
                left[s, i, k], right[s, i, k] = np.conj(y), basis[i, k]
                for c in range(m):
                    ports[c] += y * B[s, i, c]
                y *= poles[s, i]
                for j in range(r):
                    row[j] += y * basis[i, j]
            A_r[s, k, :r], B_r[s, k] = row[:r], ports
        for c in range(p):
            row[:] = 0.0
            for i in range(n):
                x = C[s, c, i]
                for j in range(r):
                    row[j] += x * basis[i, j]
            C_r[s, c, :r] = row[:r]
        if not discrete:  # padding at 0 would be an integrator
            for k in range(r, most):
                A_r[s, k, k] = -1.0


@njit(cache=True, nogil=True, error_model="numpy")
def stable(first: int, last: int, discrete: bool, A: Numbers, verdicts: NDArray[np.bool_]) -> None:
    """See `hsv._kernels._small_systems_reference.stable`."""
    n = A.shape[1]
    x, y = np.empty((n, n), A.dtype), np.empty((n, n), A.dtype)
    for s in range(first, last):
        x[:] = A[s]
        if not discrete:
            _cayley(x, y)
        verdicts[s] = False
        for _ in range(50):
            square = 0.0
            for i in range(n):
                for j in range(n):
                    square += x[i, j].real ** 2 + x[i, j].imag ** 2
            if square < 0.5:
                verdicts[s] = True
            if not 0.5 <= square < 1e100:
                break
            for i in range(n):
                y[i] = 0.0
                for k in range(n):
                    factor = x[i, k]
                    for j in range(n):
                        y[i, j] += factor * x[k, j]
            x, y = y, x


@njit(cache=True, nogil=True, error_model="numpy")
def _cayley(x: Numbers, y: Numbers) -> None:
    """Replace ``x`` by ``(a - x)^-1 (a + x)``, ``a`` twice its norm, whose eigenvalues lie in the unit disc where those of ``x`` lie in the left half-plane."""
    n = x.shape[0]
    square = 0.0
    for i in range(n):
        for j in range(n):
            square += x[i, j].real ** 2 + x[i, j].imag ** 2
    shift = max(2.0 * math.sqrt(square), _TINY)
    for i in range(n):
        for j in range(n):
            y[i, j] = x[i, j]
            x[i, j] = -x[i, j]
        x[i, i] += shift
        y[i, i] += shift
    for k in range(n):
        pivot = k
        for j in range(k + 1, n):
            if abs(x[j, k]) > abs(x[pivot, k]):
                pivot = j
        if pivot != k:
            for j in range(n):
                x[k, j], x[pivot, j] = x[pivot, j], x[k, j]
                y[k, j], y[pivot, j] = y[pivot, j], y[k, j]
        for j in range(n):
            if j != k:
                factor = x[j, k] / x[k, k]
                for i in range(k + 1, n):
                    x[j, i] -= factor * x[k, i]
                for i in range(n):
                    y[j, i] -= factor * y[k, i]
    for k in range(n):
        diagonal = x[k, k]
        for i in range(n):
            x[k, i] = y[k, i] / diagonal
