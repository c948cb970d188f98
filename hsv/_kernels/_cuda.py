"""The two kernels of small diagonal systems for a GPU: factors of Cauchy-like matrices, and singular values of graded ones.

One block of threads a system, for up to 256 states. Everything is float64: a complex number is two of them, side by side in the callers'
arrays and in two planes inside, so that neighbouring threads read neighbouring words. Every branch around a barrier is decided by numbers that all
threads of the block read from the same place. The mathematics is that of the CPU's kernels; Numba's simulator runs these on the host for the tests.
"""

# mypy: disable-error-code="attr-defined"
# (numba.cuda's annotations leave out what exists inside kernels)

import functools
import math
from importlib import import_module
from typing import Any, NamedTuple

from numba import cuda, types

MOST_STATES = 256
_MOST_THREADS = 256  # a register file of 65,536 then has 256 for each, the most a thread can ask for
_ROUNDING = 2.0**-53
_MOST_SWEEPS = 40  # six to ten are usual
_FREE_SHARED_BYTES = 48 * 1024  # more must be asked for, kernel by kernel
_SMALL, _LARGE = 2.0**-200, 2.0**200  # squares outside are brought back by a power of two, which is exact

_ARRAY = types.Array(types.float64, 1, "C")
_FACTOR_SIGNATURE = types.void(*(_ARRAY,) * 6, *(types.int64,) * 3)
_DECOMPOSITION_SIGNATURE = types.void(*(_ARRAY,) * 7, *(types.int64,) * 2)

DISCRETE, DISCRETE_FROM_LOGS, CONTINUOUS = 0, 1, 2


class Plan(NamedTuple):
    """How a kernel is launched for one size."""

    threads: int
    shared_bytes: int
    row: int = 0
    """Distance between the rows of a matrix in shared memory."""
    in_shared: tuple[bool, ...] = ()
    """Which of the large arrays are in shared memory."""
    workspace: int = 1
    """Numbers a system that each of the others needs in global memory."""


@cuda.jit(device=True)
def _exponent(x: float) -> int:
    """The integer ``e`` with ``2^(e - 1) <= x < 2^e``, for ``x > 0``."""
    return math.frexp(x)[1]


@cuda.jit(device=True)
def _expm1(x: float, y: float) -> tuple[float, float]:
    """``exp(x + iy) - 1``, without cancellation."""
    half = math.sin(0.5 * y)
    return math.expm1(x) * math.cos(y) - 2.0 * half * half, math.exp(x) * math.sin(y)


@cuda.jit(device=True)
def _divide(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    """``(a + ib) / (c + id)``; no square overflows or underflows."""
    scale = max(abs(c), abs(d))
    c, d = c / scale, d / scale
    square = c * c + d * d
    return (a * c + b * d) / square / scale, (b * c - a * d) / square / scale


@functools.cache
def _elimination(is_complex: bool) -> Any:
    """The body of the elimination, for real or for complex numbers."""
    width = 2 if is_complex else 1

    @cuda.jit(device=True)
    def eliminate(
        poles: Any,
        logs: Any,
        gaps: Any,
        generators: Any,
        factors: Any,
        n: int,
        m: int,
        kind: int,
        shared: Any,
        G: Any,
        start: int,
    ) -> None:
        """`shared` has ``3 n + width (2 n + m)`` numbers; ``G[start:]`` has ``width n m``: a row for each input, first real, then imaginary parts."""
        thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
        system = cuda.blockIdx.x
        gap = 2 * n
        pole = gap + n
        log = pole + width * n
        row = log + width * n
        imaginary = start + n * m
        first = system * n * width

        for i in range(thread, n, n_threads):
            shared[gap + i] = gaps[system * n + i]
            for part in range(width):
                shared[pole + part * n + i] = poles[first + width * i + part]
                shared[log + part * n + i] = logs[first + width * i + part]
            largest = 0.0
            for c in range(m):
                for part in range(width):
                    largest = max(largest, abs(generators[m * (first + width * i) + width * c + part]))
            shared[i] = largest
        cuda.syncthreads()
        largest = 0.0
        for i in range(n):
            largest = max(largest, shared[i])
        power = 0
        if largest > 0.0:
            power = _exponent(largest)
        for i in range(thread, n, n_threads):
            for c in range(m):
                for part in range(width):
                    G[start + part * n * m + c * n + i] = math.ldexp(
                        generators[m * (first + width * i) + width * c + part], -power
                    )
        cuda.syncthreads()

        rank = n
        for k in range(n):
            sizes = (k & 1) * n  # two in turn: one barrier a step
            for i in range(thread, n, n_threads):
                square = 0.0
                for c in range(m):
                    square += G[start + c * n + i] ** 2
                    if is_complex:
                        square += G[imaginary + c * n + i] ** 2
                shared[sizes + i] = square / shared[gap + i]
            cuda.syncthreads()
            p = 0
            largest = -1.0
            for i in range(n):
                if shared[sizes + i] > largest:
                    p = i
                    largest = shared[sizes + i]
            if largest == 0.0:
                rank = k
                break
            pivot_gap = shared[gap + p]
            if m > 1:
                for c in range(thread, m, n_threads):
                    shared[row + c] = G[start + c * n + p]
                    if is_complex:
                        shared[row + m + c] = G[imaginary + c * n + p]
                cuda.syncthreads()
            root = math.sqrt(pivot_gap)
            length = math.sqrt(largest) * root
            scaling = 0
            if largest < _SMALL:
                scaling = -(_exponent(largest) // 2)
            pole_re = shared[pole + p]
            pole_im = 0.0
            if is_complex:
                pole_im = shared[pole + n + p]

            for i in range(thread, n, n_threads):
                if m > 1:
                    # The reflection that leaves only the first entry of the pivot row.
                    head_re = shared[row]
                    head_im = 0.0
                    if is_complex:
                        head_im = shared[row + m]
                    head = math.hypot(head_re, head_im)
                    v_re, v_im = head_re + length, head_im
                    if head > 0.0:
                        v_re, v_im = head_re + head_re / head * length, head_im + head_im / head * length
                    scale = 1.0 / (length * (length + head))
                    w_re, w_im = 0.0, 0.0
                    for c in range(m):
                        x_re = v_re if c == 0 else shared[row + c]
                        g_re = G[start + c * n + i]
                        w_re += g_re * x_re
                        if is_complex:
                            x_im = v_im if c == 0 else shared[row + m + c]
                            g_im = G[imaginary + c * n + i]
                            w_re += g_im * x_im
                            w_im += g_im * x_re - g_re * x_im
                    w_re, w_im = w_re * scale, w_im * scale
                    for c in range(m):
                        x_re = v_re if c == 0 else shared[row + c]
                        if is_complex:
                            x_im = v_im if c == 0 else shared[row + m + c]
                            G[start + c * n + i] -= w_re * x_re - w_im * x_im
                            G[imaginary + c * n + i] -= w_re * x_im + w_im * x_re
                        else:
                            G[start + c * n + i] -= w_re * x_re
                        if c > 0 and i == p:
                            G[start + c * n + i] = 0.0
                            if is_complex:
                                G[imaginary + c * n + i] = 0.0

                # l_i - l_p and 1 - l_i conj(l_p) or -(l_i + conj(l_p)): sums of positive numbers in the real part.
                difference_re, difference_im = shared[pole + i] - pole_re, 0.0
                if is_complex:
                    difference_im = shared[pole + n + i] - pole_im
                if kind == DISCRETE_FROM_LOGS:
                    log_im = 0.0
                    if is_complex:
                        log_im = shared[log + n + i] - shared[log + n + p]
                    grown_re, grown_im = _expm1(shared[log + i] - shared[log + p], log_im)
                    difference_re = pole_re * grown_re - pole_im * grown_im
                    difference_im = pole_re * grown_im + pole_im * grown_re
                denominator_re = 0.5 * (shared[gap + i] + pivot_gap)
                denominator_im = -difference_im
                if kind != CONTINUOUS:
                    denominator_re += 0.5 * (difference_re * difference_re + difference_im * difference_im)
                    denominator_im = difference_re * pole_im - difference_im * pole_re
                to = width * (n * (system * n + k) + i)
                if is_complex:
                    q_re, q_im = _divide(G[start + i], G[imaginary + i], denominator_re, denominator_im)
                    factors[to] = math.ldexp(q_re * root, power)
                    factors[to + 1] = math.ldexp(q_im * root, power)
                    G[start + i] = q_re * difference_re - q_im * difference_im
                    G[imaginary + i] = q_re * difference_im + q_im * difference_re
                else:
                    q_re = G[start + i] / denominator_re
                    factors[to] = math.ldexp(q_re * root, power)
                    G[start + i] = q_re * difference_re
                if scaling != 0:
                    for c in range(m):
                        G[start + c * n + i] = math.ldexp(G[start + c * n + i], scaling)
                        if is_complex:
                            G[imaginary + c * n + i] = math.ldexp(G[imaginary + c * n + i], scaling)
            power -= scaling

        for k in range(rank, n):
            for i in range(thread, width * n, n_threads):
                factors[width * n * (system * n + k) + i] = 0.0

    return eliminate


@functools.cache
def _factor_kernel(is_complex: bool, in_shared: bool) -> Any:
    eliminate = _elimination(is_complex)
    width = 2 if is_complex else 1

    if in_shared:

        @cuda.jit(_FACTOR_SIGNATURE)
        def kernel(
            poles: Any, logs: Any, gaps: Any, generators: Any, factors: Any, workspace: Any, n: int, m: int, kind: int
        ) -> None:
            shared = cuda.shared.array(0, types.float64)
            start = 3 * n + width * (2 * n + m)
            eliminate(poles, logs, gaps, generators, factors, n, m, kind, shared, shared, start)
    else:

        @cuda.jit(_FACTOR_SIGNATURE)
        def kernel(
            poles: Any, logs: Any, gaps: Any, generators: Any, factors: Any, workspace: Any, n: int, m: int, kind: int
        ) -> None:
            shared = cuda.shared.array(0, types.float64)
            start = cuda.blockIdx.x * width * n * m
            eliminate(poles, logs, gaps, generators, factors, n, m, kind, shared, workspace, start)

    return kernel


@functools.cache
def _decomposition(is_complex: bool, with_vectors: bool) -> Any:
    """The body of the singular value decomposition."""
    width = 2 if is_complex else 1

    @cuda.jit(device=True)
    def decompose(
        matrices: Any,
        values: Any,
        left: Any,
        right: Any,
        sweeps: Any,
        n: int,
        shared: Any,
        R: Any,
        r_start: int,
        r_row: int,
        V: Any,
        v_start: int,
        v_row: int,
    ) -> None:
        r"""Factor by pivoted Householder reflections, :math:`M P = Q R`, then rotate the rows of :math:`R` until they are orthogonal.

        `shared` has ``4 n_threads + 5 n`` numbers. ``R[r_start:]`` and, with vectors, ``V[v_start:]`` have ``width`` planes of `n` rows of length
        ``r_row`` and ``v_row``. A column of the trailing matrix and a row of :math:`R` are each kept as a power of two times entries near 1.
        """
        thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
        system = cuda.blockIdx.x
        squares = 4 * n_threads
        keys = squares + n
        exponents = keys + n  # of columns first, of rows later
        row_exponents = exponents + n
        permutation = row_exponents + n
        r_im, v_im = r_start + n * r_row, v_start + n * v_row
        n_groups = n_threads // n
        group, column = thread // n, thread % n
        working = group < n_groups

        offset = width * n * n * system
        for place in range(thread, n * n, n_threads):
            i, j = place // n, place % n
            R[r_start + i * r_row + j] = matrices[offset + width * place]
            if is_complex:
                R[r_im + i * r_row + j] = matrices[offset + width * place + 1]
            if with_vectors:
                V[v_start + i * v_row + j] = 1.0 if i == j else 0.0
                if is_complex:
                    V[v_im + i * v_row + j] = 0.0
        for j in range(thread, n, n_threads):
            shared[exponents + j] = 0.0
            shared[row_exponents + j] = 0.0
            shared[permutation + j] = float(j)
        cuda.syncthreads()

        k = 0
        while k < n:
            # Squared length and largest entry of what is left of each column.
            if working and column >= k:
                square, largest = 0.0, 0.0
                for i in range(k + group, n, n_groups):
                    x = R[r_start + i * r_row + column]
                    square += x * x
                    largest = max(largest, abs(x))
                    if is_complex:
                        x = R[r_im + i * r_row + column]
                        square += x * x
                        largest = max(largest, abs(x))
                shared[thread] = square
                shared[n_threads + thread] = largest
            cuda.syncthreads()
            for j in range(thread, n, n_threads):
                square, largest = 0.0, 0.0
                if j >= k:
                    for g in range(n_groups):
                        square += shared[g * n + j]
                        largest = max(largest, shared[n_threads + g * n + j])
                shared[squares + j] = square
                shared[keys + j] = largest
            cuda.syncthreads()
            p = -1
            best = 0.0
            rescaled = False
            for j in range(k, n):
                largest = shared[keys + j]
                if largest > 0.0:
                    square = shared[squares + j]
                    if square < _SMALL or square > _LARGE:
                        rescaled = True
                    else:
                        size = 0.5 * math.log2(square) + shared[exponents + j]
                        if p < 0 or size > best:
                            p = j
                            best = size
            if rescaled:
                if working and column >= k:
                    largest = shared[keys + column]
                    square = shared[squares + column]
                    if largest > 0.0 and (square < _SMALL or square > _LARGE):
                        shift = _exponent(largest)
                        for i in range(k + group, n, n_groups):
                            R[r_start + i * r_row + column] = math.ldexp(R[r_start + i * r_row + column], -shift)
                            if is_complex:
                                R[r_im + i * r_row + column] = math.ldexp(R[r_im + i * r_row + column], -shift)
                        if group == 0:
                            shared[exponents + column] += shift
                cuda.syncthreads()
                continue
            if p < 0:
                break
            length = math.sqrt(shared[squares + p])
            cuda.syncthreads()
            for i in range(thread, n, n_threads):
                x = R[r_start + i * r_row + k]
                R[r_start + i * r_row + k] = R[r_start + i * r_row + p]
                R[r_start + i * r_row + p] = x
                if is_complex:
                    x = R[r_im + i * r_row + k]
                    R[r_im + i * r_row + k] = R[r_im + i * r_row + p]
                    R[r_im + i * r_row + p] = x
            if thread == 0:
                x = shared[permutation + k]
                shared[permutation + k] = shared[permutation + p]
                shared[permutation + p] = x
                x = shared[exponents + k]
                shared[exponents + k] = shared[exponents + p]
                shared[exponents + p] = x
                shared[row_exponents + k] = shared[exponents + k]
            cuda.syncthreads()

            # The reflection I - scale v v^H that leaves only the first entry of column k; v has its first entry in registers.
            head_re = R[r_start + k * r_row + k]
            head_im = 0.0
            if is_complex:
                head_im = R[r_im + k * r_row + k]
            head = math.hypot(head_re, head_im)
            image_re, image_im = length, 0.0
            if head > 0.0:
                image_re, image_im = head_re / head * length, head_im / head * length
            first_re, first_im = head_re + image_re, head_im + image_im
            scale = 1.0 / (length * (length + head))
            if working:
                a_re, a_im, b_re, b_im = 0.0, 0.0, 0.0, 0.0
                for i in range(k + group, n, n_groups):
                    x_re, x_im = first_re, first_im
                    if i > k:
                        x_re = R[r_start + i * r_row + k]
                        if is_complex:
                            x_im = R[r_im + i * r_row + k]
                    y_re = R[r_start + i * r_row + column]
                    a_re += x_re * y_re
                    if is_complex:
                        y_im = R[r_im + i * r_row + column]
                        a_re += x_im * y_im
                        a_im += x_re * y_im - x_im * y_re
                    if with_vectors:
                        y_re = V[v_start + i * v_row + column]
                        b_re += x_re * y_re
                        if is_complex:
                            y_im = V[v_im + i * v_row + column]
                            b_re += x_im * y_im
                            b_im += x_re * y_im - x_im * y_re
                shared[thread] = a_re
                shared[n_threads + thread] = a_im
                shared[2 * n_threads + thread] = b_re
                shared[3 * n_threads + thread] = b_im
            cuda.syncthreads()
            if working:
                a_re, a_im, b_re, b_im = 0.0, 0.0, 0.0, 0.0
                for g in range(n_groups):
                    a_re += shared[g * n + column]
                    a_im += shared[n_threads + g * n + column]
                    b_re += shared[2 * n_threads + g * n + column]
                    b_im += shared[3 * n_threads + g * n + column]
                a_re, a_im, b_re, b_im = a_re * scale, a_im * scale, b_re * scale, b_im * scale
                for i in range(k + group, n, n_groups):
                    x_re, x_im = first_re, first_im
                    if i > k:
                        x_re = R[r_start + i * r_row + k]
                        if is_complex:
                            x_im = R[r_im + i * r_row + k]
                    if column > k:
                        if is_complex:
                            R[r_start + i * r_row + column] -= a_re * x_re - a_im * x_im
                            R[r_im + i * r_row + column] -= a_re * x_im + a_im * x_re
                        else:
                            R[r_start + i * r_row + column] -= a_re * x_re
                        if i == k:  # row k of R is complete: from here on it has an exponent of its own
                            shift = int(shared[exponents + column] - shared[exponents + k])
                            R[r_start + i * r_row + column] = math.ldexp(R[r_start + i * r_row + column], shift)
                            if is_complex:
                                R[r_im + i * r_row + column] = math.ldexp(R[r_im + i * r_row + column], shift)
                    if with_vectors:
                        if is_complex:
                            V[v_start + i * v_row + column] -= b_re * x_re - b_im * x_im
                            V[v_im + i * v_row + column] -= b_re * x_im + b_im * x_re
                        else:
                            V[v_start + i * v_row + column] -= b_re * x_re
            cuda.syncthreads()
            for i in range(k + thread, n, n_threads):
                R[r_start + i * r_row + k] = -image_re if i == k else 0.0
                if is_complex:
                    R[r_im + i * r_row + k] = -image_im if i == k else 0.0
            k += 1
        cuda.syncthreads()

        # One-sided Jacobi on the rows: each round has n / 2 disjoint pairs, each sweep every pair once.
        n_players = n + n % 2
        n_pairs = n_players // 2
        team = n_threads // n_pairs
        pair, member = thread // team, thread % team
        tolerance = math.sqrt(float(n)) * _ROUNDING
        sweep = 0
        rotated = 1
        while rotated != 0 and sweep < _MOST_SWEEPS:
            rotated = 0
            for turn in range(n_players - 1):
                i, j = n_players - 1, turn
                if pair > 0:
                    i = (turn + pair) % (n_players - 1)
                    j = (turn + n_players - 1 - pair) % (n_players - 1)
                playing = pair < n_pairs and i < n and j < n
                shift = 0
                if playing:
                    shift = int(shared[row_exponents + j] - shared[row_exponents + i])
                    if shift > 0:  # i is the row of the larger exponent
                        i, j = j, i
                        shift = -shift
                    xx, yy, xy_re, xy_im = 0.0, 0.0, 0.0, 0.0
                    for c in range(member, n, team):
                        x_re, y_re = R[r_start + i * r_row + c], R[r_start + j * r_row + c]
                        xx += x_re * x_re
                        yy += y_re * y_re
                        xy_re += x_re * y_re
                        if is_complex:
                            x_im, y_im = R[r_im + i * r_row + c], R[r_im + j * r_row + c]
                            xx += x_im * x_im
                            yy += y_im * y_im
                            xy_re += x_im * y_im
                            xy_im += x_im * y_re - x_re * y_im
                    shared[thread] = xx
                    shared[n_threads + thread] = yy
                    shared[2 * n_threads + thread] = xy_re
                    shared[3 * n_threads + thread] = xy_im
                cuda.syncthreads()
                if playing:
                    xx, yy, xy_re, xy_im = 0.0, 0.0, 0.0, 0.0
                    for other in range(pair * team, pair * team + team):
                        xx += shared[other]
                        yy += shared[n_threads + other]
                        xy_re += shared[2 * n_threads + other]
                        xy_im += shared[3 * n_threads + other]
                    size = math.hypot(xy_re, xy_im)
                    if xx > 0.0 and yy > 0.0 and size > tolerance * math.sqrt(xx) * math.sqrt(yy):
                        rotated = 1
                        # With Y = ratio y in the unit of x the tangent is ratio * slope: nothing underflows where the rows differ much.
                        ratio = math.ldexp(1.0, max(shift, -1074))
                        difference = xx - ratio * ratio * yy
                        root = math.sqrt(difference * difference + 4.0 * (ratio * size) ** 2)
                        slope = 2.0 * size / (difference + root if difference >= 0.0 else difference - root)
                        tangent = ratio * slope
                        cosine = 1.0 / math.sqrt(1.0 + tangent * tangent)
                        phase_re, phase_im = xy_re / size * cosine, xy_im / size * cosine
                        # x <- cosine x + e^(i phase) up y, y <- cosine y - e^(-i phase) down x
                        x_scale, y_scale = 0, 0
                        if xx < _SMALL or xx > _LARGE:
                            x_scale = _exponent(xx) // 2
                        if yy < _SMALL or yy > _LARGE:
                            y_scale = _exponent(yy) // 2
                        x_unit, y_unit = math.ldexp(1.0, -x_scale), math.ldexp(1.0, -y_scale)
                        up, down = ratio * tangent * x_unit, slope * y_unit
                        up_re, up_im, down_re, down_im = phase_re * up, phase_im * up, phase_re * down, phase_im * down
                        x_keep, y_keep = cosine * x_unit, cosine * y_unit
                        for c in range(member, n, team):
                            x_re, y_re = R[r_start + i * r_row + c], R[r_start + j * r_row + c]
                            if is_complex:
                                x_im, y_im = R[r_im + i * r_row + c], R[r_im + j * r_row + c]
                                R[r_start + i * r_row + c] = x_keep * x_re + (up_re * y_re - up_im * y_im)
                                R[r_im + i * r_row + c] = x_keep * x_im + (up_re * y_im + up_im * y_re)
                                R[r_start + j * r_row + c] = y_keep * y_re - (down_re * x_re + down_im * x_im)
                                R[r_im + j * r_row + c] = y_keep * y_im - (down_re * x_im - down_im * x_re)
                            else:
                                R[r_start + i * r_row + c] = x_keep * x_re + up_re * y_re
                                R[r_start + j * r_row + c] = y_keep * y_re - down_re * x_re
                        if with_vectors:
                            sine_re, sine_im = phase_re * tangent, phase_im * tangent
                            for c in range(member, n, team):
                                x_re, y_re = V[v_start + i * v_row + c], V[v_start + j * v_row + c]
                                if is_complex:
                                    x_im, y_im = V[v_im + i * v_row + c], V[v_im + j * v_row + c]
                                    V[v_start + i * v_row + c] = cosine * x_re + (sine_re * y_re - sine_im * y_im)
                                    V[v_im + i * v_row + c] = cosine * x_im + (sine_re * y_im + sine_im * y_re)
                                    V[v_start + j * v_row + c] = cosine * y_re - (sine_re * x_re + sine_im * x_im)
                                    V[v_im + j * v_row + c] = cosine * y_im - (sine_re * x_im - sine_im * x_re)
                                else:
                                    V[v_start + i * v_row + c] = cosine * x_re + sine_re * y_re
                                    V[v_start + j * v_row + c] = cosine * y_re - sine_re * x_re
                        if member == 0:
                            shared[row_exponents + i] += x_scale
                            shared[row_exponents + j] += y_scale
                cuda.syncthreads()
            rotated = cuda.syncthreads_or(rotated)
            sweep += 1
        if thread == 0:
            sweeps[system] = float(_MOST_SWEEPS + 1 if rotated != 0 else sweep)

        for i in range(thread, n, n_threads):
            square = 0.0
            for c in range(n):
                square += R[r_start + i * r_row + c] ** 2
                if is_complex:
                    square += R[r_im + i * r_row + c] ** 2
            shared[squares + i] = math.sqrt(square)
            shared[keys + i] = math.ldexp(shared[squares + i], int(shared[row_exponents + i]))
        cuda.syncthreads()
        for i in range(thread, n, n_threads):
            place = 0
            for other in range(n):
                if shared[keys + other] > shared[keys + i] or (shared[keys + other] == shared[keys + i] and other < i):
                    place += 1
            values[system * n + place] = shared[keys + i]
            shared[exponents + place] = float(i)
        cuda.syncthreads()
        if with_vectors:
            for place in range(thread, n * n, n_threads):
                i, j = place // n, place % n
                row = int(shared[exponents + j])
                left[offset + width * place] = V[v_start + row * v_row + i]
                if is_complex:
                    left[offset + width * place + 1] = -V[v_im + row * v_row + i]
                row = int(shared[exponents + i])
                length = shared[squares + row]
                unit = 1.0 / length if length > 0.0 else 0.0
                to = offset + width * (i * n + int(shared[permutation + j]))
                right[to] = R[r_start + row * r_row + j] * unit
                if is_complex:
                    right[to + 1] = R[r_im + row * r_row + j] * unit

    return decompose


@functools.cache
def _decomposition_kernel(is_complex: bool, with_vectors: bool, rows_shared: bool, vectors_shared: bool) -> Any:
    decompose = _decomposition(is_complex, with_vectors)
    width = 2 if is_complex else 1

    if vectors_shared:  # then the rows are too

        @cuda.jit(_DECOMPOSITION_SIGNATURE)
        def kernel(
            matrices: Any, values: Any, left: Any, right: Any, sweeps: Any, rows: Any, vectors: Any, n: int, row: int
        ) -> None:
            shared = cuda.shared.array(0, types.float64)
            start = 4 * cuda.blockDim.x + 5 * n
            second = start + width * n * row
            decompose(matrices, values, left, right, sweeps, n, shared, shared, start, row, shared, second, row)
    elif rows_shared:

        @cuda.jit(_DECOMPOSITION_SIGNATURE)
        def kernel(
            matrices: Any, values: Any, left: Any, right: Any, sweeps: Any, rows: Any, vectors: Any, n: int, row: int
        ) -> None:
            shared = cuda.shared.array(0, types.float64)
            start = 4 * cuda.blockDim.x + 5 * n
            second = cuda.blockIdx.x * width * n * n
            decompose(matrices, values, left, right, sweeps, n, shared, shared, start, row, vectors, second, n)
    else:

        @cuda.jit(_DECOMPOSITION_SIGNATURE)
        def kernel(
            matrices: Any, values: Any, left: Any, right: Any, sweeps: Any, rows: Any, vectors: Any, n: int, row: int
        ) -> None:
            shared = cuda.shared.array(0, types.float64)
            start = cuda.blockIdx.x * width * n * n
            decompose(matrices, values, left, right, sweeps, n, shared, rows, start, n, vectors, start, n)

    return kernel


def most_shared_bytes() -> int:
    """Shared memory that a block may ask for on the current device."""
    return int(getattr(cuda.get_current_device(), "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", _FREE_SHARED_BYTES))


def factor_plan(n: int, m: int, *, is_complex: bool, most_shared: int) -> Plan:
    """Say how generators of shape ``(n, m)`` are eliminated."""
    width = 2 if is_complex else 1
    always = 8 * (3 * n + width * (2 * n + m))
    generators = 8 * width * n * m
    if always + generators <= most_shared:
        return Plan(n, always + generators, in_shared=(True,))
    return Plan(n, always, in_shared=(False,), workspace=width * n * m)


def decomposition_plan(n: int, *, is_complex: bool, with_vectors: bool, most_shared: int) -> Plan:
    """Say how a matrix of size `n` is decomposed: the rows in shared memory if they fit, the vectors if both do."""
    width = 2 if is_complex else 1
    n_pairs = (n + 1) // 2
    team = max(1, min(8, _MOST_THREADS // n_pairs))
    threads = max(n, n_pairs * team)
    always = 8 * (4 * threads + 5 * n)
    conflict_free = n + (8 - n) % 16  # two teams of eight then read different banks
    for count in (2, 1) if with_vectors else (1,):
        for row in (conflict_free, n):
            n_bytes = always + 8 * count * width * n * row
            if n_bytes <= most_shared:
                return Plan(
                    threads, n_bytes, row, (True, count == 2), width * n * n if with_vectors and count == 1 else 1
                )
    return Plan(threads, always, n, (False, False), width * n * n)


def factors(
    arrays: tuple[Any, ...], plan: Plan, *, n: int, m: int, kind: int, is_complex: bool, batch: int, stream: Any
) -> None:
    """Launch the elimination on flat float64 arrays: poles, their logarithms, gaps, generators, the factors to be written (a column after another), workspace."""
    kernel = _factor_kernel(is_complex, *plan.in_shared)
    _allow_shared_bytes(kernel, plan.shared_bytes)
    kernel[batch, plan.threads, stream, plan.shared_bytes](*arrays, n, m, kind)


def decompositions(
    arrays: tuple[Any, ...], plan: Plan, *, n: int, is_complex: bool, with_vectors: bool, batch: int, stream: Any
) -> None:
    """Launch the decomposition on flat float64 arrays: matrices; values, left and right vectors and numbers of sweeps to be written; two workspaces."""
    kernel = _decomposition_kernel(is_complex, with_vectors, *plan.in_shared)
    _allow_shared_bytes(kernel, plan.shared_bytes)
    kernel[batch, plan.threads, stream, plan.shared_bytes](*arrays, n, plan.row)


def converged(most_sweeps: float) -> bool:
    """Tell from the largest number of sweeps of a batch whether every decomposition converged."""
    return most_sweeps <= _MOST_SWEEPS


def _allow_shared_bytes(kernel: Any, n_bytes: int) -> None:
    """Ask for more dynamic shared memory than every kernel has; Numba passes the size on and leaves the asking to its caller."""
    if n_bytes <= _FREE_SHARED_BYTES:
        return
    driver = import_module("cuda.bindings.driver")
    wanted = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for overload in kernel.overloads.values():
        function = overload.library.get_cufunc()
        if isinstance(function.handle, driver.CUkernel):
            device = driver.CUdevice(cuda.get_current_device().id)
            (status,) = driver.cuKernelSetAttribute(wanted, n_bytes, function.handle, device)
        else:
            (status,) = driver.cuFuncSetAttribute(function.handle, wanted, n_bytes)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the device refuses {n_bytes} bytes of shared memory for a block: {status.name}")
