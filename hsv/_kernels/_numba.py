"""The kernels of `_reference`, compiled.

Columns are kept contiguous (each matrix is transposed once on entry), so that every inner
loop is a vectorisable ``y += a x`` over memory in order. A twin's meaning and arguments
are those of the function of the same name in `_reference`.
"""

import math
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from hsv._kernels._reference import ComplexArray, Real, RealArray


@njit(cache=True, nogil=True)
def complex_schur_form(t: RealArray, z: RealArray) -> tuple[ComplexArray, ComplexArray]:
    """See `hsv._kernels._reference.complex_schur_form`."""
    n = t.shape[1]
    tc, zc = t.astype(np.complex128), z.astype(np.complex128)
    for k in range(t.shape[0]):
        tk, zk = tc[k], zc[k]
        for j in range(n - 1):
            upper, lower = tk[j, j + 1].real, tk[j + 1, j].real
            if lower == 0.0:
                continue
            frequency = np.sqrt(abs(upper)) * np.sqrt(abs(lower))
            centre = tk[j, j].real
            radius = np.hypot(frequency, lower)
            c, s = 1j * (frequency / radius), lower / radius
            for i in range(j, n):
                first, second = tk[j, i], tk[j + 1, i]
                tk[j, i] = s * second - c * first
                tk[j + 1, i] = s * first - c * second
            for i in range(j + 2):
                first, second = tk[i, j], tk[i, j + 1]
                tk[i, j] = c * first + s * second
                tk[i, j + 1] = s * first + c * second
            for i in range(n):
                first, second = zk[i, j], zk[i, j + 1]
                zk[i, j] = c * first + s * second
                zk[i, j + 1] = s * first + c * second
            tk[j, j], tk[j + 1, j + 1] = centre + 1j * frequency, centre - 1j * frequency
            tk[j + 1, j] = 0.0
    return tc, zc


@njit(cache=True, nogil=True)
def _length(columns: ComplexArray | RealArray, j: int) -> float:
    """The Euclidean length of row ``j``, safe from underflow and overflow of the squares."""
    largest = 0.0
    for c in range(columns.shape[0]):
        largest = max(largest, abs(columns[c, j]))
    if largest == 0.0:
        return 0.0
    total = 0.0
    for c in range(columns.shape[0]):
        total += (columns[c, j].real / largest) ** 2 + (columns[c, j].imag / largest) ** 2
    return largest * np.sqrt(total)


@njit(cache=True, nogil=True)
def continuous_lyapunov_factor(t: ComplexArray, b: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.continuous_lyapunov_factor`."""
    n, m = t.shape[1], b.shape[2]
    factor = np.zeros_like(t)
    u = np.empty(n, dtype=np.complex128)
    for k in range(t.shape[0]):
        columns, inputs = t[k].T.copy(), b[k].T.copy()  # (n, n), (m, n): a column each row
        for j in range(n - 1, -1, -1):
            length = _length(inputs, j)
            if length == 0.0:
                continue
            shift = np.conj(columns[j, j])
            damping = np.sqrt(-2.0 * shift.real)
            diagonal = length / damping
            for i in range(j):
                u[i] = -columns[j, i] * diagonal
            for c in range(m):
                weight = np.conj(inputs[c, j] / length * damping)
                for i in range(j):
                    u[i] -= weight * inputs[c, i]
            for h in range(j - 1, -1, -1):
                x = u[h] / (columns[h, h] + shift)
                u[h] = x
                for i in range(h):
                    u[i] -= x * columns[h, i]
            for c in range(m):
                weight = inputs[c, j] / length * damping
                for i in range(j):
                    inputs[c, i] -= weight * u[i]
            factor[k, j, j] = diagonal
            factor[k, :j, j] = u[:j]
    return factor


@njit(cache=True, nogil=True)
def discrete_lyapunov_factor(t: ComplexArray, b: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.discrete_lyapunov_factor`."""
    n, m = t.shape[1], b.shape[2]
    factor = np.zeros_like(t)
    u = np.empty(n, dtype=np.complex128)
    image = np.empty(n, dtype=np.complex128)
    for k in range(t.shape[0]):
        columns, inputs = t[k].T.copy(), b[k].T.copy()
        for j in range(n - 1, -1, -1):
            length = _length(inputs, j)
            if length == 0.0:
                continue
            pole = np.conj(columns[j, j])
            radius = abs(pole)
            phase = pole / radius if radius > 0.0 else 1.0 + 0.0j
            damping = np.sqrt((1.0 - radius) * (1.0 + radius))
            diagonal = length / damping
            for i in range(j):
                image[i] = columns[j, i] * diagonal
                u[i] = pole * image[i]
            for c in range(m):
                weight = np.conj(inputs[c, j] / length * damping)
                for i in range(j):
                    u[i] += weight * inputs[c, i]
            for h in range(j - 1, -1, -1):
                x = u[h] / (1.0 - pole * columns[h, h])
                u[h] = x
                image[h] += x * columns[h, h]
                scaled = pole * x
                for i in range(h):
                    u[i] += scaled * columns[h, i]
                    image[i] += x * columns[h, i]
            factor[k, j, j] = diagonal
            factor[k, :j, j] = u[:j]
            for i in range(j):
                u[i] += phase * image[i]
            for c in range(m):
                weight = inputs[c, j] / length * (damping / (1.0 + radius))
                for i in range(j):
                    inputs[c, i] -= weight * u[i]
    return factor


@njit(cache=True, nogil=True)
def _blocks(columns: RealArray) -> tuple[RealArray, RealArray, RealArray]:
    """For the first row of each block of two, its frequency and the two numbers of its complex Schur vectors; zero everywhere else.

    The block ``[[a, b], [c, a]]`` is ``W [[l, b + c], [0, conj(l)]] W^H`` with ``l = a + i f``, ``W = [[i p, q], [q, i p]]``, ``p^2 + q^2 = 1``.
    """
    n = len(columns)
    frequency, p, q = np.zeros(n), np.zeros(n), np.zeros(n)
    for j in range(n - 1):
        lower = columns[j, j + 1]
        if lower != 0.0:
            frequency[j] = np.sqrt(abs(columns[j + 1, j])) * np.sqrt(abs(lower))
            radius = np.hypot(frequency[j], lower)
            p[j], q[j] = frequency[j] / radius, lower / radius
    return frequency, p, q


@njit(cache=True, nogil=True)
def _pair(
    a: float, f: float, upper: float, x: RealArray, y: RealArray, discrete: bool
) -> tuple[float, float, float, float, float, RealArray]:
    """Solve the equation of the block ``S = [[a, b], [c, a]]``, ``f^2 = -b c``, with the inputs ``B = [x, y]``.

    Returns ``U`` with ``U U^T`` its solution, row by row; ``g`` with ``U^-1 S U = [[a, h g], [-h / g, a]]``, ``h = sign(b) f``; and ``U^-1 B``, ``(2, m)``. Where
    there is no input, ``g`` is zero.

    ``S`` is ``D N D^-1`` with a diagonal ``D`` and a normal ``N``, a rotation times a number. In those coordinates the solution ``P = V diag(l1, l2) V^T`` has the trace
    and the deviator of ``B B^T`` divided by one number each, and ``g^2 = l2 / l1``. All of this is sums of numbers with the same sign: a triangular ``U``
    by elimination would lose half of the digits where a pair of poles is nearly equal and ``P`` nearly singular.
    """
    m = len(x)
    inner = np.empty((2, m))
    h = np.copysign(f, upper)
    ratio = abs(upper) / f
    largest = 0.0
    for c in range(m):
        largest = max(largest, abs(x[c]), abs(y[c]) * ratio)
    if largest == 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, inner
    xx, xy, yy = 0.0, 0.0, 0.0
    for c in range(m):
        inner[0, c], inner[1, c] = x[c] / largest, y[c] * ratio / largest
        xx += inner[0, c] * inner[0, c]
        xy += inner[0, c] * inner[1, c]
        yy += inner[1, c] * inner[1, c]
    pole = complex(a, -h)
    if discrete:
        radius = abs(pole)
        damping, divisor = (1.0 - radius) * (1.0 + radius), (1.0 - pole) * (1.0 + pole)
    else:
        damping, divisor = -2.0 * a, -2.0 * pole
    deviator = complex(0.5 * (xx - yy), xy) / divisor
    size = abs(deviator)
    cosine, sine = 1.0, 0.0  # of half its angle
    if size > 0.0:
        if deviator.real >= 0.0:
            cosine = np.sqrt(0.5 * (1.0 + deviator.real / size))
            sine = 0.5 * deviator.imag / size / cosine
        else:
            sine = np.copysign(np.sqrt(0.5 * (1.0 - deviator.real / size)), deviator.imag)
            cosine = 0.5 * deviator.imag / size / sine
    # V^T B: a first row, and what the second one has beside its direction
    square = 0.0
    for c in range(m):
        inner[0, c], inner[1, c] = (
            cosine * inner[0, c] + sine * inner[1, c],
            cosine * inner[1, c] - sine * inner[0, c],
        )
        square += inner[0, c] * inner[0, c]
    length, rest = np.sqrt(square), 0.0
    for c in range(m):
        inner[0, c] /= length
    for _ in range(2):  # once more, because little may be left
        overlap, square = 0.0, 0.0
        for c in range(m):
            overlap += inner[0, c] * inner[1, c]
        for c in range(m):
            inner[1, c] -= overlap * inner[0, c]
            square += inner[1, c] * inner[1, c]
        rest = np.sqrt(square)
    area = length * rest if m > 1 else 0.0
    first = 0.5 * (xx + yy) / damping + size  # l1
    product = np.hypot((xx + yy) * (f / damping), area) / abs(divisor)  # sqrt(l1 l2)
    g = product / first
    along = 2.0 * h * size / product * (a if discrete else 1.0)
    weight = np.sqrt(damping + f * f * (1.0 - g) * (1.0 + g)) if discrete else np.sqrt(damping)
    beside = area / product / weight / rest if area > 0.0 else 0.0
    for c in range(m):
        inner[0, c], inner[1, c] = weight * inner[0, c], along / weight * inner[0, c] + beside * inner[1, c]
    long = np.sqrt(first) * largest
    short = long * g
    return cosine * long, -sine * short, sine * long / ratio, cosine * short / ratio, g, inner


@njit(cache=True, nogil=True)
def _four(
    pole: complex,
    v: complex,
    w: float,
    t: float,
    other: complex,
    p: float,
    q: float,
    s: float,
    discrete: bool,
    f00: float,
    f01: float,
    f10: float,
    f11: float,
) -> tuple[float, float, float, float]:
    """Solve ``S X + X T^T = F`` or ``X - S X T^T = F`` for two blocks of two, by substitution in the complex Schur vectors of both.

    ``T = V^H [[l, t], [0, conj(l)]] V`` with ``V = [[v, w], [w, v]]``; ``other``, ``p``, ``q`` and ``s`` are of ``S``, see :func:`_blocks`.
    """
    # E = W^H F V^T
    a, b = complex(q * f10, -p * f00), complex(q * f11, -p * f01)
    c, d = complex(q * f00, -p * f10), complex(q * f01, -p * f11)
    e00, e01, e10, e11 = a * v + b * w, a * w + b * v, c * v + d * w, c * w + d * v
    mirror, image = np.conj(pole), np.conj(other)
    if discrete:
        same, across = 1.0 / (1.0 - pole * other), 1.0 / (1.0 - mirror * other)
        y11 = e11 * np.conj(same)
        y01 = (e01 + mirror * s * y11) * across
        y10 = (e10 + t * image * y11) * np.conj(across)
        y00 = (e00 + pole * s * y10 + t * (other * y01 + s * y11)) * same
    else:
        same, across = 1.0 / (pole + other), 1.0 / (mirror + other)
        y11 = e11 * np.conj(same)
        y01 = (e01 - s * y11) * across
        y10 = (e10 - t * y11) * np.conj(across)
        y00 = (e00 - s * y10 - t * y01) * same
    # X = W Y conj(V)
    a, b = complex(0.0, p) * y00 + q * y10, complex(0.0, p) * y01 + q * y11
    c, d = q * y00 + complex(0.0, p) * y10, q * y01 + complex(0.0, p) * y11
    u = np.conj(v)
    return (a * u).real + w * b.real, w * a.real + (b * u).real, (c * u).real + w * d.real, w * c.real + (d * u).real


@njit(cache=True, nogil=True)
def _triangular_pair(
    L: RealArray, j: int, x: RealArray, y: RealArray, u00: float, u01: float, u10: float, u11: float
) -> None:
    """Write two columns and their block as rows of ``L``, turned so that the block is upper triangular."""
    size = np.hypot(u10, u11)
    cosine, sine = u11 / size, u10 / size
    for i in range(j):
        L[j, i] = cosine * x[i] - sine * y[i]
        L[j + 1, i] = sine * x[i] + cosine * y[i]
    L[j, j] = cosine * u00 - sine * u01
    L[j + 1, j], L[j + 1, j + 1] = sine * u00 + cosine * u01, size


@njit(cache=True, nogil=True)
def _width(n: int) -> int:
    """A length of rows for ``n`` numbers such that rows do not compete for the same lines of the cache: an odd number of lines each.

    Without it 512 states took ten times as long as 500.
    """
    return n // 16 * 16 + 24


@njit(cache=True, nogil=True)
def real_continuous_lyapunov_factor(t: RealArray, b: RealArray) -> RealArray:
    """See `hsv._kernels._reference.real_continuous_lyapunov_factor`."""
    n, m = t.shape[1], b.shape[2]
    factor = np.zeros_like(t)  # columns as rows
    width = _width(n)
    columns, inputs, work = np.empty((n, width)), np.empty((m, width)), np.empty((2, width))
    x, y = work[0], work[1]
    for k in range(t.shape[0]):
        for i in range(n):
            columns[i, :n] = t[k, :, i]
        for c in range(m):
            inputs[c, :n] = b[k, :, c]
        L = factor[k]
        frequency, p, q = _blocks(columns)
        j = n - 1
        while j >= 0:
            if j > 0 and frequency[j - 1] > 0.0:
                j -= 1
                pole = complex(columns[j, j], frequency[j])
                a, turn = pole.real, np.copysign(pole.imag, columns[j + 1, j])
                u00, u01, u10, u11, g, inner = _pair(
                    a, frequency[j], columns[j + 1, j], inputs[:m, j], inputs[:m, j + 1], False
                )
                if g > 0.0:
                    t01, t10 = turn * g, -turn / g  # the block in the coordinates of its solution: [[a, t01], [t10, a]]
                    radius = np.hypot(1.0, g)
                    v, w = complex(0.0, -g / radius), -np.copysign(1.0, turn) / radius
                    coupled = t01 + t10
                    for i in range(j):
                        x[i] = -columns[j, i] * u00 - columns[j + 1, i] * u10
                        y[i] = -columns[j, i] * u01 - columns[j + 1, i] * u11
                    for c in range(m):
                        x_weight, y_weight = inner[0, c], inner[1, c]
                        for i in range(j):
                            x[i] -= x_weight * inputs[c, i]
                            y[i] -= y_weight * inputs[c, i]
                    h = j - 1
                    while h >= 0:
                        if h > 0 and frequency[h - 1] > 0.0:
                            h -= 1
                            other = complex(columns[h, h], frequency[h])
                            s = columns[h, h + 1] + columns[h + 1, h]
                            x0, y0, x1, y1 = _four(
                                pole, v, w, coupled, other, p[h], q[h], s, False, x[h], y[h], x[h + 1], y[h + 1]
                            )
                            x[h], x[h + 1], y[h], y[h + 1] = x0, x1, y0, y1
                            for i in range(h):
                                x[i] -= x0 * columns[h, i] + x1 * columns[h + 1, i]
                                y[i] -= y0 * columns[h, i] + y1 * columns[h + 1, i]
                        else:
                            s = columns[h, h]
                            inverse = 1.0 / ((s + pole.real) ** 2 + pole.imag**2)
                            x0 = ((s + a) * x[h] - t01 * y[h]) * inverse
                            y0 = ((s + a) * y[h] - t10 * x[h]) * inverse
                            x[h], y[h] = x0, y0
                            for i in range(h):
                                x[i] -= x0 * columns[h, i]
                                y[i] -= y0 * columns[h, i]
                        h -= 1
                    for c in range(m):
                        x_weight, y_weight = inner[0, c], inner[1, c]
                        for i in range(j):
                            inputs[c, i] -= x_weight * x[i] + y_weight * y[i]
                    _triangular_pair(L, j, x, y, u00, u01, u10, u11)
                j -= 1
                continue
            length = _length(inputs, j)
            if length > 0.0:
                s = columns[j, j]
                damping = np.sqrt(-2.0 * s)
                diagonal = length / damping
                for i in range(j):
                    x[i] = -columns[j, i] * diagonal
                for c in range(m):
                    weight = inputs[c, j] / length * damping
                    for i in range(j):
                        x[i] -= weight * inputs[c, i]
                h = j - 1
                while h >= 0:
                    if h > 0 and frequency[h - 1] > 0.0:
                        h -= 1
                        upper, lower = columns[h + 1, h], columns[h, h + 1]
                        centre = columns[h, h] + s
                        inverse = 1.0 / (centre * centre + frequency[h] ** 2)
                        x0 = (centre * x[h] - upper * x[h + 1]) * inverse
                        x1 = (centre * x[h + 1] - lower * x[h]) * inverse
                        x[h], x[h + 1] = x0, x1
                        for i in range(h):
                            x[i] -= x0 * columns[h, i] + x1 * columns[h + 1, i]
                    else:
                        x0 = x[h] / (columns[h, h] + s)
                        x[h] = x0
                        for i in range(h):
                            x[i] -= x0 * columns[h, i]
                    h -= 1
                for c in range(m):
                    weight = inputs[c, j] / length * damping
                    for i in range(j):
                        inputs[c, i] -= weight * x[i]
                L[j, :j], L[j, j] = x[:j], diagonal
            j -= 1
    return factor.transpose((0, 2, 1))


@njit(cache=True, nogil=True)
def real_discrete_lyapunov_factor(t: RealArray, b: RealArray) -> RealArray:
    """See `hsv._kernels._reference.real_discrete_lyapunov_factor`."""
    n, m = t.shape[1], b.shape[2]
    factor = np.zeros_like(t)  # columns as rows
    width = _width(n)
    columns, inputs, work = np.empty((n, width)), np.empty((m, width)), np.empty((4, width))
    x, y, x_image, y_image = work[0], work[1], work[2], work[3]
    for k in range(t.shape[0]):
        for i in range(n):
            columns[i, :n] = t[k, :, i]
        for c in range(m):
            inputs[c, :n] = b[k, :, c]
        L = factor[k]
        frequency, p, q = _blocks(columns)
        j = n - 1
        while j >= 0:
            if j > 0 and frequency[j - 1] > 0.0:
                j -= 1
                pole = complex(columns[j, j], frequency[j])
                a, turn = pole.real, np.copysign(pole.imag, columns[j + 1, j])
                u00, u01, u10, u11, g, inner = _pair(
                    a, frequency[j], columns[j + 1, j], inputs[:m, j], inputs[:m, j + 1], True
                )
                if g > 0.0:
                    t01, t10 = turn * g, -turn / g  # the block in the coordinates of its solution: [[a, t01], [t10, a]]
                    radius = np.hypot(1.0, g)
                    v, w = complex(0.0, -g / radius), -np.copysign(1.0, turn) / radius
                    coupled = t01 + t10
                    for i in range(j):
                        x[i] = 0.0
                        y[i] = 0.0
                        x_image[i] = columns[j, i] * u00 + columns[j + 1, i] * u10
                        y_image[i] = columns[j, i] * u01 + columns[j + 1, i] * u11
                    for c in range(m):
                        x_weight, y_weight = inner[0, c], inner[1, c]
                        for i in range(j):
                            x[i] += x_weight * inputs[c, i]
                            y[i] += y_weight * inputs[c, i]
                    h = j - 1
                    while h >= 0:
                        # The images are complete up to the rows of this block, which add their own solution.
                        if h > 0 and frequency[h - 1] > 0.0:
                            h -= 1
                            centre, upper, lower = columns[h, h], columns[h + 1, h], columns[h, h + 1]
                            x0, y0, x1, y1 = _four(
                                pole,
                                v,
                                w,
                                coupled,
                                complex(centre, frequency[h]),
                                p[h],
                                q[h],
                                upper + lower,
                                True,
                                x[h] + x_image[h] * a + y_image[h] * t01,
                                y[h] + x_image[h] * t10 + y_image[h] * a,
                                x[h + 1] + x_image[h + 1] * a + y_image[h + 1] * t01,
                                y[h + 1] + x_image[h + 1] * t10 + y_image[h + 1] * a,
                            )
                            x[h], x[h + 1], y[h], y[h + 1] = x0, x1, y0, y1
                            x_image[h] += centre * x0 + upper * x1
                            y_image[h] += centre * y0 + upper * y1
                            x_image[h + 1] += lower * x0 + centre * x1
                            y_image[h + 1] += lower * y0 + centre * y1
                            for i in range(h):
                                x_image[i] += x0 * columns[h, i] + x1 * columns[h + 1, i]
                                y_image[i] += y0 * columns[h, i] + y1 * columns[h + 1, i]
                        else:
                            s = columns[h, h]
                            x_total = x[h] + x_image[h] * a + y_image[h] * t01
                            y_total = y[h] + x_image[h] * t10 + y_image[h] * a
                            # the determinant of 1 - s T, without its cancellation
                            inverse = 1.0 / ((1.0 - s * pole.real) ** 2 + (s * pole.imag) ** 2)
                            x0 = ((1.0 - s * a) * x_total + s * t01 * y_total) * inverse
                            y0 = ((1.0 - s * a) * y_total + s * t10 * x_total) * inverse
                            x[h], y[h] = x0, y0
                            x_image[h] += s * x0
                            y_image[h] += s * y0
                            for i in range(h):
                                x_image[i] += x0 * columns[h, i]
                                y_image[i] += y0 * columns[h, i]
                        h -= 1
                    # B <- B - (U + Y Q) (I + H)^-1 inner, T^T = Q H the polar decomposition
                    cosine, sine = 2.0 * a, t10 - t01
                    size = np.hypot(cosine, sine)
                    cosine, sine = cosine / size, sine / size
                    h00, h01, h11 = (
                        1.0 + cosine * a - sine * t01,
                        cosine * t10 - sine * a,
                        1.0 + sine * t10 + cosine * a,
                    )
                    inverse = 1.0 / (h00 * h11 - h01 * h01)
                    for i in range(j):
                        x_image[i], y_image[i] = (
                            x[i] + cosine * x_image[i] - sine * y_image[i],
                            y[i] + sine * x_image[i] + cosine * y_image[i],
                        )
                    for c in range(m):
                        x_weight = (h11 * inner[0, c] - h01 * inner[1, c]) * inverse
                        y_weight = (h00 * inner[1, c] - h01 * inner[0, c]) * inverse
                        for i in range(j):
                            inputs[c, i] -= x_weight * x_image[i] + y_weight * y_image[i]
                    _triangular_pair(L, j, x, y, u00, u01, u10, u11)
                j -= 1
                continue
            length = _length(inputs, j)
            if length > 0.0:
                pole_j = columns[j, j]
                radius = abs(pole_j)
                damping = np.sqrt((1.0 - radius) * (1.0 + radius))
                diagonal = length / damping
                for i in range(j):
                    x[i] = 0.0
                    x_image[i] = columns[j, i] * diagonal
                for c in range(m):
                    weight = inputs[c, j] / length * damping
                    for i in range(j):
                        x[i] += weight * inputs[c, i]
                h = j - 1
                while h >= 0:
                    if h > 0 and frequency[h - 1] > 0.0:
                        h -= 1
                        upper, lower = columns[h + 1, h], columns[h, h + 1]
                        first, second = x[h] + pole_j * x_image[h], x[h + 1] + pole_j * x_image[h + 1]
                        centre = 1.0 - pole_j * columns[h, h]
                        inverse = 1.0 / (centre * centre + (pole_j * frequency[h]) ** 2)
                        x0 = (centre * first + pole_j * upper * second) * inverse
                        x1 = (centre * second + pole_j * lower * first) * inverse
                        x[h], x[h + 1] = x0, x1
                        x_image[h] += columns[h, h] * x0 + upper * x1
                        x_image[h + 1] += lower * x0 + columns[h, h] * x1
                        for i in range(h):
                            x_image[i] += x0 * columns[h, i] + x1 * columns[h + 1, i]
                    else:
                        x0 = (x[h] + pole_j * x_image[h]) / (1.0 - pole_j * columns[h, h])
                        x[h] = x0
                        x_image[h] += x0 * columns[h, h]
                        for i in range(h):
                            x_image[i] += x0 * columns[h, i]
                    h -= 1
                phase = np.copysign(1.0, pole_j)
                for i in range(j):
                    x_image[i] = x[i] + phase * x_image[i]
                for c in range(m):
                    weight = inputs[c, j] / length * (damping / (1.0 + radius))
                    for i in range(j):
                        inputs[c, i] -= weight * x_image[i]
                L[j, :j], L[j, j] = x[:j], diagonal
            j -= 1
    return factor.transpose((0, 2, 1))


@njit(cache=True, nogil=True)
def triangular_sylvester(s: ComplexArray, t: ComplexArray, q: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.triangular_sylvester`."""
    n, m = s.shape[1], t.shape[1]
    solution = np.empty_like(q)
    for k in range(s.shape[0]):
        columns, x = s[k].T.copy(), q[k].T.copy()  # (n, n), (m, n)
        for j in range(m):
            for h in range(j):
                weight = t[k, h, j]
                for i in range(n):
                    x[j, i] -= weight * x[h, i]
            for h in range(n - 1, -1, -1):
                value = x[j, h] / (columns[h, h] + t[k, j, j])
                x[j, h] = value
                for i in range(h):
                    x[j, i] -= value * columns[h, i]
        solution[k] = x.T
    return solution


@njit(cache=True, nogil=True)
def triangular_stein(s: ComplexArray, q: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.triangular_stein`."""
    n = s.shape[1]
    solution = np.empty_like(q)
    known = np.empty(n, dtype=np.complex128)
    for k in range(s.shape[0]):
        columns, x = s[k].T.copy(), q[k].T.copy()
        for j in range(n - 1, -1, -1):
            known[:] = 0.0
            for h in range(j + 1, n):
                weight = np.conj(s[k, j, h])
                for i in range(n):
                    known[i] += weight * x[h, i]
            pole = np.conj(s[k, j, j])
            for h in range(n - 1, -1, -1):
                # Row h is complete: S reaches it only from rows at and after h.
                total = x[j, h] + known[h] * columns[h, h]
                value = total / (1.0 - pole * columns[h, h])
                x[j, h] = value
                weight = pole * value + known[h]
                for i in range(h):
                    x[j, i] += weight * columns[h, i]
        solution[k] = x.T
    return solution


@njit(cache=True, nogil=True)
def triangular_pencil(
    s: ComplexArray, t: ComplexArray, u: ComplexArray, v: ComplexArray, q: ComplexArray
) -> ComplexArray:
    """See `hsv._kernels._reference.triangular_pencil`."""
    n, m = s.shape[1], t.shape[1]
    solution = np.empty_like(q)
    first, second = np.empty(n, dtype=np.complex128), np.empty(n, dtype=np.complex128)
    for k in range(s.shape[0]):
        s_columns, u_columns, x = s[k].T.copy(), u[k].T.copy(), q[k].T.copy()
        for j in range(m - 1, -1, -1):
            first[:] = 0.0  # what the columns after j send through T
            second[:] = 0.0  # and through V
            for h in range(j + 1, m):
                t_weight, v_weight = np.conj(t[k, j, h]), np.conj(v[k, j, h])
                for i in range(n):
                    first[i] += t_weight * x[h, i]
                    second[i] += v_weight * x[h, i]
            t_pole, v_pole = np.conj(t[k, j, j]), np.conj(v[k, j, j])
            for h in range(n - 1, -1, -1):
                # Row h is complete: S and U reach it only from rows at and after h.
                total = x[j, h] - first[h] * s_columns[h, h] - second[h] * u_columns[h, h]
                value = total / (t_pole * s_columns[h, h] + v_pole * u_columns[h, h])
                x[j, h] = value
                s_weight, u_weight = t_pole * value + first[h], v_pole * value + second[h]
                for i in range(h):
                    x[j, i] -= s_weight * s_columns[h, i] + u_weight * u_columns[h, i]
        solution[k] = x.T
    return solution


@njit(cache=True, nogil=True)
def triangular_resolvent(t: ComplexArray, points: ComplexArray, b: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.triangular_resolvent`."""
    n, m = b.shape[1], b.shape[2]
    solution = np.empty((t.shape[0], points.shape[1], n, m), dtype=np.complex128)
    for k in range(t.shape[0]):
        tk = t[k]
        for f in range(points.shape[1]):
            x = solution[k, f]
            x[:] = b[k]
            for h in range(n - 1, -1, -1):
                inverse = 1.0 / (points[k, f] - tk[h, h])
                for c in range(m):
                    x[h, c] *= inverse
                for i in range(h):
                    weight = tk[i, h]
                    for c in range(m):
                        x[i, c] += weight * x[h, c]
    return solution


@njit(cache=True, nogil=True)
def log_pole_pairs(log_poles: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """See `hsv._kernels._reference.log_pole_pairs`."""
    k, n = log_poles.shape
    differences = np.zeros((k, n, n), log_poles.dtype)
    denominators = np.empty((k, n, n), log_poles.dtype)
    for b in range(k):
        logs, poles = log_poles[b], np.exp(log_poles[b])
        radius, gap = np.exp(logs.real), -np.expm1(logs.real)
        for i in range(n):
            denominators[b, i, i] = gap[i] + radius[i] * gap[i]
            for j in range(i):
                angle = 0.5 * (logs[i].imag - logs[j].imag)
                sine, cosine = np.sin(angle), np.cos(angle)
                product = 2.0 * radius[i] * radius[j] * sine
                denominator = complex(gap[i] + radius[i] * gap[j] + product * sine, -product * cosine)
                denominators[b, i, j] = denominator
                denominators[b, j, i] = denominator.conjugate()
                # exp(log l_i - log l_j) - 1 times l_j, or the other way round, so that nothing overflows
                growth = np.expm1(-abs(logs[i].real - logs[j].real))
                re, im = growth - 2.0 * (growth + 1.0) * sine * sine, 2.0 * (growth + 1.0) * sine * cosine
                if logs[j].real >= logs[i].real:
                    difference = poles[j] * complex(re, im)
                else:
                    difference = -poles[i] * complex(re, -im)
                differences[b, i, j] = difference
                differences[b, j, i] = -difference
    return differences, denominators


@njit(cache=True, nogil=True, error_model="numpy")
def divide_by_log_pole_pairs(log_poles: ComplexArray, first: ComplexArray, second: ComplexArray) -> None:
    """See `hsv._kernels._reference.divide_by_log_pole_pairs`."""
    for b in range(log_poles.shape[0]):
        logs = log_poles[b]
        radius, gap = np.exp(logs.real), -np.expm1(logs.real)
        for i in range(log_poles.shape[1]):
            for j in range(i + 1):
                angle = 0.5 * (logs[i].imag - logs[j].imag)
                sine, cosine = np.sin(angle), np.cos(angle)
                product = 2.0 * radius[i] * radius[j] * sine
                re, im = gap[i] + radius[i] * gap[j] + product * sine, product * cosine
                scale = 1.0 / (re * re + im * im)
                inverse = complex(re * scale, im * scale)
                first[b, i, j] *= inverse
                second[b, i, j] *= inverse.conjugate()


@njit(cache=True, nogil=True, error_model="numpy")
def adjoint_log_pole_pairs(log_poles: ComplexArray, gradient: ComplexArray, product: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.adjoint_log_pole_pairs`."""
    rows = np.zeros_like(log_poles)
    for b in range(log_poles.shape[0]):
        logs, conjugates = log_poles[b], np.exp(log_poles[b]).conj()
        radius, gap = np.exp(logs.real), -np.expm1(logs.real)
        for i in range(log_poles.shape[1]):
            total = 0.0 + 0.0j
            for j in range(i + 1):
                angle = 0.5 * (logs[i].imag - logs[j].imag)
                sine, cosine = np.sin(angle), np.cos(angle)
                both = 2.0 * radius[i] * radius[j] * sine
                re, im = gap[i] + radius[i] * gap[j] + both * sine, both * cosine
                scale = 1.0 / (re * re + im * im)
                inverse = complex(re * scale, im * scale)
                entry = gradient[b, i, j] * inverse.conjugate()
                gradient[b, i, j] = entry
                gradient[b, j, i] = entry.conjugate()
                slope = entry.conjugate() * product[b, i, j] * inverse
                total += slope * conjugates[j]
                if j < i:
                    rows[b, j] += slope.conjugate() * conjugates[i]
            rows[b, i] += total
    return rows


@njit(cache=True, nogil=True)
def cauchy_factor(generators: ComplexArray, differences: ComplexArray, denominators: ComplexArray) -> ComplexArray:
    """See `hsv._kernels._reference.cauchy_factor`.

    Rows of ``differences`` and ``denominators`` are read in place of columns: the first are antisymmetric, the second Hermitian.
    """
    n, m = generators.shape[1], generators.shape[2]
    factor = np.zeros_like(denominators)
    root_gap, squares, weight = np.empty(n), np.empty(n), np.empty(n, dtype=generators.dtype)
    v = np.empty(m, dtype=generators.dtype)
    state = np.empty(
        n, dtype=np.int64
    )  # which one stands at each place: those that are done come first, and are not touched again
    for b in range(generators.shape[0]):
        G = generators[b].T.copy()  # (m, n): a column each row
        L = factor[b]  # columns as rows, until the end
        squares[:] = 0.0
        for i in range(n):
            root_gap[i] = np.sqrt(denominators[b, i, i].real)
            state[i] = i
        for c in range(m):
            for i in range(n):
                squares[i] += G[c, i].real ** 2 + G[c, i].imag ** 2
        for k in range(n):
            place, largest = k, -1.0
            for i in range(k, n):
                pivot = squares[i] / (root_gap[state[i]] * root_gap[state[i]])
                if pivot > largest or (pivot == largest and state[i] < state[place]):
                    place, largest = i, pivot
            if squares[place] == 0.0:
                break
            squares[k], squares[place] = squares[place], squares[k]
            state[k], state[place] = state[place], state[k]
            for c in range(m):
                G[c, k], G[c, place] = G[c, place], G[c, k]
            p, left = state[k], n - k
            later = squares[k:]
            pivot_square = later[0]
            later[:] = 0.0
            if m > 1:
                length = np.sqrt(pivot_square)
                for c in range(m):  # of length 1: near the end of an elimination squares have no inverses
                    v[c] = G[c, k] / length
                length = 0.0
                for c in range(m):
                    length += v[c].real ** 2 + v[c].imag ** 2
                length, size = np.sqrt(length), np.abs(v[0])
                v[0] = v[0] + length if size == 0.0 else v[0] + v[0] / size * length
                scale = 1.0 / (length * (length + size))
                weight[:left] = 0.0
                for c in range(m):
                    coefficient = np.conj(v[c]) * scale
                    column = G[c, k:]
                    for i in range(left):
                        weight[i] += column[i] * coefficient
                for c in range(m):
                    coefficient = v[c]
                    column = G[c, k:]
                    if c == 0:
                        for i in range(left):
                            column[i] -= weight[i] * coefficient
                    else:
                        for i in range(left):
                            x = column[i] - weight[i] * coefficient
                            column[i] = x
                            later[i] += x.real**2 + x.imag**2
            for i in range(k, n):
                quotient = G[0, i] / np.conj(denominators[b, p, state[i]])
                L[k, state[i]] = quotient * root_gap[p]
                x = quotient * differences[b, p, state[i]]
                G[0, i] = -x
                squares[i] += x.real**2 + x.imag**2
        for i in range(n):
            for j in range(i):
                L[i, j], L[j, i] = L[j, i], L[i, j]
    return factor


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """The integer with the bits of a floating-point number."""
    width = x.bitwidth
    integer = types.int32 if width == 32 else types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(width))

    return integer(x), codegen


@intrinsic
def _from_bits(typingctx: Any, i: Any) -> Any:
    """The floating-point number with the bits of an integer."""
    single = i.bitwidth == 32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType() if single else ir.DoubleType())

    return (types.float32 if single else types.float64)(i), codegen


def _exp(x: Any) -> Any:
    """``exp(x)`` for ``x <= 0``, to two roundings; below the smallest normal number it stays there."""
    return np.exp(x)


# np.exp is a call that LLVM cannot put into vector registers. With x = k ln 2 + r, |r| <= ln(2) / 2, exp(x) = 2^k exp(r): adding
# 1.5 times 2^(bits of the fraction) rounds x / ln 2 to k and leaves k in the last bits, from where a shift brings it to the exponent.
# exp(r) is its Taylor series; the terms left out are below a tenth of a rounding. ln 2 has two parts: k times the first is exact.
@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_overload(x: Any) -> Any:
    return _single_exp() if x.bitwidth == 32 else _double_exp()


def _single_exp() -> Any:
    one, lowest, magic, shift = np.float32(1.0), np.float32(-87.0), np.float32(1.5 * 2.0**23), np.int32(23)
    log2e, ln2, ln2_rest = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
    t2, t3, t4, t5, t6, t7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))

    def single(x: Any) -> Any:
        x = lowest if x < lowest else x
        z = x * log2e + magic
        k = z - magic
        r = (x - k * ln2) - k * ln2_rest
        e = one + r * (one + r * (t2 + r * (t3 + r * (t4 + r * (t5 + r * (t6 + r * t7))))))
        return _from_bits(np.int32(_bits(e) + (_bits(z) << shift)))  # type: ignore[call-arg]

    return single


def _double_exp() -> Any:
    lowest, magic, shift = -708.0, 1.5 * 2.0**52, np.int64(52)
    log2e, ln2, ln2_rest = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
    t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13 = (1.0 / math.factorial(k) for k in range(2, 14))

    def double(x: Any) -> Any:
        x = lowest if x < lowest else x
        z = x * log2e + magic
        k = z - magic
        r = (x - k * ln2) - k * ln2_rest
        e = t7 + r * (t8 + r * (t9 + r * (t10 + r * (t11 + r * (t12 + r * t13)))))
        e = 1.0 + r * (1.0 + r * (t2 + r * (t3 + r * (t4 + r * (t5 + r * (t6 + r * e))))))
        return _from_bits(_bits(e) + (_bits(z) << shift))  # type: ignore[call-arg]

    return double


# The sums of this many steps are kept in the precision of the arrays before they go to the double-precision ones.
_PART = 64


# Multiplications and additions may be fused; nothing is reordered. Each loop touches few arrays: LLVM vectorises a loop only if
# few comparisons of addresses show that the arrays do not overlap.
@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def selective_forward(
    first: int,
    last: int,
    base: int,
    A: Real,
    delta: Real,
    x: Real,
    weight: Real,
    B: Real,
    C: Real,
    white: bool,
    carry: Real,
    poles: RealArray,
    gains: RealArray,
    second: RealArray,
    product: RealArray,
    states: Real,
) -> None:
    """See `hsv._kernels._reference.selective_forward`."""
    n, length = A.shape[1], delta.shape[0]
    a, h, p = np.empty(n, A.dtype), np.empty(n, A.dtype), np.empty(n, A.dtype)
    part_a, part_b, part_p, part_c = (
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
    )
    squares = C * C
    keep = states.size > 0
    for k in range(first, last):
        c = base + k
        rates = A[c]
        h[:], p[:] = carry[0, c], carry[1, c]
        part_a[:], part_b[:], part_p[:], part_c[:] = 0.0, 0.0, 0.0, 0.0
        for t in range(length):
            step = delta[t, c]
            inputs, outputs = B[t], squares[t]
            for j in range(n):
                a[j] = _exp(step * rates[j])
            if keep or not white:
                scale = step * x[t, c]
                for j in range(n):
                    h[j] = a[j] * h[j] + scale * inputs[j]
                if keep:
                    states[k, t] = h
            if white:
                scale = step * step
                for j in range(n):
                    p[j] = (a[j] * a[j]) * p[j] + scale * (inputs[j] * inputs[j])
            else:
                for j in range(n):
                    p[j] = h[j] * h[j]
            scale = weight[t, c] * weight[t, c]
            for j in range(n):
                part_a[j] += a[j]
            for j in range(n):
                part_b[j] += step * inputs[j]
            for j in range(n):
                part_p[j] += p[j]
            for j in range(n):
                part_c[j] += (scale * outputs[j]) * p[j]
            if (t + 1) % _PART == 0 or t + 1 == length:
                for j in range(n):
                    poles[c, j] += part_a[j]
                    gains[c, j] += part_b[j]
                    second[c, j] += part_p[j]
                    product[c, j] += part_c[j]
                part_a[:], part_b[:], part_p[:], part_c[:] = 0.0, 0.0, 0.0, 0.0
        carry[0, c], carry[1, c] = h, p


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def selective_backward(
    first: int,
    last: int,
    base: int,
    A: Real,
    delta: Real,
    signs: Real,
    weight: Real,
    C: Real,
    counted: bool,
    carry: Real,
    second: RealArray,
    adjoints: Real,
) -> None:
    """See `hsv._kernels._reference.selective_backward`."""
    n, length = A.shape[1], delta.shape[0]
    a, g, q, part, squares = (
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
        np.empty(n, A.dtype),
        C * C,
    )
    keep = adjoints.size > 0
    for k in range(first, last):
        c = base + k
        rates = A[c]
        g[:], q[:] = carry[0, c], carry[1, c]
        part[:] = 0.0
        for t in range(length - 1, -1, -1):
            step, scale = delta[t, c], weight[t, c] * weight[t, c]
            outputs = squares[t]
            for j in range(n):
                a[j] = _exp(step * rates[j])
            for j in range(n):
                q[j] += scale * outputs[j]
            if counted:
                for j in range(n):
                    part[j] += q[j]
            for j in range(n):
                q[j] *= a[j] * a[j]
            if keep:
                scale = weight[t, c] * signs[t, c]
                outputs = C[t]
                for j in range(n):
                    g[j] += scale * outputs[j]
                if counted:
                    adjoints[k, t] = g
                for j in range(n):
                    g[j] *= a[j]
            if t % _PART == 0:
                for j in range(n):
                    second[c, j] += part[j]
                part[:] = 0.0
        carry[0, c], carry[1, c] = g, q


_TILE = 4  # rows of a tile: 8 sums of 64 bytes, as many as two fused units with a latency of four steps keep busy
_VECTORS = 2  # of 64 bytes, side by side in a tile
_BLOCK = 64  # rows of H that stay in the first-level cache: 32 KiB for 128 columns in single precision
_PRODUCT_PART = 16  # blocks whose products are added up in the precision of the arrays


@intrinsic
def _add_tile(typingctx: Any, rows: Any, count: Any, stride: Any, i: Any, j: Any, products: Any) -> Any:
    """Add to ``products[i + r, j + c]`` the sum over ``k < count`` of ``rows[k, i + r] rows[k, j + c]`` for the rows and columns of a tile.

    Both arrays are flat, with lines of ``stride`` numbers; bounds are not checked. The sums stay in registers.
    """
    dtype = rows.dtype
    lanes = 512 // dtype.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 5))
        _, count, stride, i, j, _ = args
        vector = ir.VectorType(context.get_value_type(dtype), lanes)
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fma.v{lanes}f{dtype.bitwidth}")
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        same = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)  # lane 0 everywhere
        size = dtype.bitwidth // 8

        def after(pointer: Any, index: Any, constant: int) -> Any:
            return builder.gep(pointer, [builder.add(index, ir.Constant(index.type, constant))])

        def vector_after(pointer: Any, index: Any, constant: int) -> Any:
            return builder.bitcast(after(pointer, index, constant), ir.PointerType(vector))

        zero = ir.Constant(vector, None)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(_VECTORS)] for _ in range(_TILE)]
        with cgutils.for_range(builder, count) as loop:
            line = builder.gep(source, [builder.mul(loop.index, stride)])
            right = [builder.load(vector_after(line, j, v * lanes), align=size) for v in range(_VECTORS)]
            for r in range(_TILE):
                left = builder.insert_element(undefined, builder.load(after(line, i, r)), first)
                left = builder.shuffle_vector(left, undefined, same)
                for v in range(_VECTORS):
                    builder.store(builder.call(fma, [left, right[v], builder.load(sums[r][v])]), sums[r][v])
        for r in range(_TILE):
            line = builder.gep(target, [builder.mul(builder.add(i, ir.Constant(i.type, r)), stride)])
            for v in range(_VECTORS):
                pointer = vector_after(line, j, v * lanes)
                total = builder.fadd(builder.load(pointer, align=size), builder.load(sums[r][v]))
                builder.store(total, pointer, align=size)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, types.intp, types.intp, products), codegen


@njit(cache=True, nogil=True, error_model="numpy")
def add_products(first: int, last: int, rows: Real, products: RealArray) -> None:
    """See `hsv._kernels._reference.add_products`.

    A BLAS library would use its own threads, which wait for one another and come to a stop where cores are shared; this runs on the
    threads of the callers. Tiles above the diagonal alone are computed.
    """
    length, n = rows.shape[1], rows.shape[2]
    columns = _VECTORS * 64 // rows.itemsize
    width = (n + columns - 1) // columns * columns
    block, part = np.zeros((_BLOCK, width), rows.dtype), np.zeros((width, width), rows.dtype)
    flat_block, flat_part = block.reshape(-1), part.reshape(-1)
    for k in range(first, last):
        for begin in range(0, length, _BLOCK):
            count = min(_BLOCK, length - begin)
            block[:count, :n] = rows[k, begin : begin + count]
            for i in range(0, n, _TILE):
                for j in range(i // columns * columns, n, columns):
                    _add_tile(flat_block, count, width, i, j, flat_part)  # type: ignore[call-arg]
            if (begin // _BLOCK + 1) % _PRODUCT_PART == 0 or begin + count == length:
                for i in range(n):
                    for j in range(i, n):
                        products[k, i, j] += part[i, j]
                        if j > i:
                            products[k, j, i] += part[i, j]
                part[:] = 0.0


@intrinsic
def _run_tile(
    typingctx: Any, decays: Any, vectors: Any, count: Any, stride: Any, i: Any, j: Any, gramian: Any, total: Any
) -> Any:
    """Run ``G = a a^T o G + v v^T`` for ``count`` lines ``a`` and ``v`` on one tile of ``gramian``, and add every ``G`` to ``total``.

    All arrays are flat, with lines of ``stride`` numbers; bounds are not checked. The tile and its sum stay in registers.
    """
    dtype = decays.dtype
    lanes = 512 // dtype.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = [context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 6, 7)]
        _, _, count, stride, i, j, _, _ = args
        vector = ir.VectorType(context.get_value_type(dtype), lanes)
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fma.v{lanes}f{dtype.bitwidth}")
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        same = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)  # lane 0 everywhere
        size = dtype.bitwidth // 8

        def after(pointer: Any, index: Any, constant: int) -> Any:
            return builder.gep(pointer, [builder.add(index, ir.Constant(index.type, constant))])

        def vector_after(pointer: Any, index: Any, constant: int) -> Any:
            return builder.bitcast(after(pointer, index, constant), ir.PointerType(vector))

        def splat(pointer: Any) -> Any:
            one = builder.insert_element(undefined, builder.load(pointer), first)
            return builder.shuffle_vector(one, undefined, same)

        tile = [(r, v) for r in range(_TILE) for v in range(_VECTORS)]
        places = []  # of the tile in memory
        for r, v in tile:
            line = builder.mul(builder.add(i, ir.Constant(i.type, r)), stride)
            places.append([vector_after(builder.gep(p, [line]), j, v * lanes) for p in data[2:]])
        state = [cgutils.alloca_once_value(builder, builder.load(p, align=size)) for p, _ in places]
        sums = [cgutils.alloca_once_value(builder, builder.load(p, align=size)) for _, p in places]
        with cgutils.for_range(builder, count) as loop:
            a, b = (builder.gep(p, [builder.mul(loop.index, stride)]) for p in data[:2])
            right_a, right_b = (
                [builder.load(vector_after(p, j, v * lanes), align=size) for v in range(_VECTORS)] for p in (a, b)
            )
            left = [(splat(after(a, i, r)), splat(after(b, i, r))) for r in range(_TILE)]
            for (r, v), g, s in zip(tile, state, sums, strict=True):
                decay, added = builder.fmul(left[r][0], right_a[v]), builder.fmul(left[r][1], right_b[v])
                value = builder.call(fma, [decay, builder.load(g), added])
                builder.store(value, g)
                builder.store(builder.fadd(builder.load(s), value), s)
        for (p, q), g, s in zip(places, state, sums, strict=True):
            builder.store(builder.load(g), p, align=size)
            builder.store(builder.load(s), q, align=size)
        return context.get_dummy_value()

    signature = types.void(decays, vectors, types.intp, types.intp, types.intp, types.intp, gramian, total)
    return signature, codegen


_LINES = 32  # of decays and of vectors that stay in the first-level cache together


@njit(cache=True, nogil=True, error_model="numpy")
def gramian_recursion(
    first: int,
    last: int,
    base: int,
    A: Real,
    delta: Real,
    scale: Real,
    vectors: Real,
    skip: int,
    gramians: RealArray,
) -> None:
    """See `hsv._kernels._reference.gramian_recursion`."""
    length, n = delta.shape[0], A.shape[1]
    columns = _VECTORS * 64 // A.itemsize
    width = (n + columns - 1) // columns * columns
    decays, added = np.zeros((_LINES, width), A.dtype), np.zeros((_LINES, width), A.dtype)
    gramian, total, unwanted = (
        np.zeros((width, width), A.dtype),
        np.zeros((width, width), A.dtype),
        np.zeros((width, width), A.dtype),
    )
    flat_decays, flat_added, flat_gramian = decays.reshape(-1), added.reshape(-1), gramian.reshape(-1)
    for k in range(first, last):
        c = base + k
        rates = A[c]
        gramian[:], begin, blocks = 0.0, 0, 0
        while begin < length:
            end = min(begin + _LINES, length)
            if begin < skip:
                end = min(end, skip)
            for t in range(begin, end):
                step, factor, decay, line, row = (
                    delta[t, c],
                    scale[t, c],
                    decays[t - begin],
                    added[t - begin],
                    vectors[t],
                )
                for j in range(n):
                    decay[j] = _exp(step * rates[j])
                for j in range(n):
                    line[j] = factor * row[j]
            flat_total = unwanted.reshape(-1) if begin < skip else total.reshape(-1)
            for i in range(0, n, _TILE):
                for j in range(i // columns * columns, n, columns):
                    _run_tile(flat_decays, flat_added, end - begin, width, i, j, flat_gramian, flat_total)  # type: ignore[call-arg]
            begin, blocks = end, blocks + 1
            if blocks % _PRODUCT_PART == 0 or end == length:
                for i in range(n):
                    for j in range(i, n):
                        gramians[k, i, j] += total[i, j]
                        if j > i:
                            gramians[k, j, i] += total[i, j]
                total[:], unwanted[:] = 0.0, 0.0
