"""The kernels in plain NumPy: what each one means, and what `_numba` is compared with.

All matrices are complex128 with one leading batch axis, unless a kernel says otherwise. ``T`` and ``S`` are upper
triangular (a complex Schur form); nothing below their diagonals is read. The callers have
checked shapes, stability and solvability.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import rq, solve_triangular

ComplexArray = NDArray[np.complex128]
RealArray = NDArray[np.float64]
Real = NDArray[np.floating]  # single or double precision


def complex_schur_form(t: RealArray, z: RealArray) -> tuple[ComplexArray, ComplexArray]:
    """Turn a real Schur form ``z t z^T`` into a complex one, ``z t z^H`` with ``t`` triangular.

    One Givens rotation for each standardised 2 x 2 block ``[[a, b], [c, a]]``, ``b c < 0``,
    whose eigenvalues ``a +- i sqrt(-b c)`` then stand on the diagonal exactly, as conjugates.
    """
    tc, zc = t.astype(np.complex128), z.astype(np.complex128)
    for tk, zk in zip(tc, zc, strict=True):
        for j in range(tk.shape[0] - 1):
            upper, lower = tk[j, j + 1].real, tk[j + 1, j].real
            if lower == 0.0:
                continue
            frequency = np.sqrt(abs(upper)) * np.sqrt(abs(lower))
            centre = tk[j, j].real
            radius = np.hypot(frequency, lower)
            # (i frequency, lower) is the eigenvector of the first eigenvalue
            rotation = np.array([[1j * frequency, lower], [lower, 1j * frequency]]) / radius
            tk[j : j + 2, j:] = rotation.conj().T @ tk[j : j + 2, j:]
            tk[: j + 2, j : j + 2] = tk[: j + 2, j : j + 2] @ rotation
            zk[:, j : j + 2] = zk[:, j : j + 2] @ rotation
            tk[j, j], tk[j + 1, j + 1] = centre + 1j * frequency, centre - 1j * frequency
            tk[j + 1, j] = 0.0
    return tc, zc


def continuous_lyapunov_factor(t: ComplexArray, b: ComplexArray) -> ComplexArray:
    """Solve ``T U U^H + U U^H T^H + B B^H = 0`` for upper triangular ``U``, ``T`` stable.

    Hammarling's method, one column of ``U`` a step, from the last to the first.
    """
    u = np.zeros_like(t)
    for tk, bk, uk in zip(t, b.copy(), u, strict=True):
        for j in reversed(range(tk.shape[0])):
            length = _length(bk[j])
            if length == 0.0:  # the last row of U is zero, and B stays what it is
                continue
            damping = np.sqrt(-2.0 * tk[j, j].real)
            uk[j, j] = length / damping
            row = bk[j] / length * damping
            rhs = -(tk[:j, j] * uk[j, j] + bk[:j] @ row.conj())
            uk[:j, j] = _solve(tk[:j, :j] + np.conj(tk[j, j]) * np.eye(j), rhs)
            bk[:j] -= np.outer(uk[:j, j], row)
    return u


def discrete_lyapunov_factor(t: ComplexArray, b: ComplexArray) -> ComplexArray:
    """Solve ``T U U^H T^H - U U^H + B B^H = 0`` for upper triangular ``U``, ``T`` stable."""
    u = np.zeros_like(t)
    for tk, bk, uk in zip(t, b.copy(), u, strict=True):
        for j in reversed(range(tk.shape[0])):
            length = _length(bk[j])
            if length == 0.0:
                continue
            pole = tk[j, j]
            radius = abs(pole)
            damping = np.sqrt((1.0 - radius) * (1.0 + radius))
            phase = np.conj(pole) / radius if radius > 0.0 else 1.0
            uk[j, j] = length / damping
            row = bk[j] / length * damping
            column = tk[:j, j] * uk[j, j]
            rhs = np.conj(pole) * column + bk[:j] @ row.conj()
            uk[:j, j] = _solve(np.eye(j) - np.conj(pole) * tk[:j, :j], rhs)
            image = tk[:j, :j] @ uk[:j, j] + column
            # The Householder reflection that maps [row^H; conj(pole)] to a multiple of the last
            # unit vector, applied to [B, image]; its last column is u and is dropped.
            bk[:j] -= np.outer(uk[:j, j] + phase * image, row) / (1.0 + radius)
    return u


def real_continuous_lyapunov_factor(t: RealArray, b: RealArray) -> RealArray:
    """Solve ``T U U^T + U U^T T^T + B B^T = 0`` for real upper triangular ``U``, ``T`` stable and a real Schur form with standardized blocks of two.

    Hammarling's method, the columns of one block of ``T`` a step, from the last to the first.
    """
    u = np.zeros_like(t)
    for tk, bk, uk in zip(t, b.copy(), u, strict=True):
        for i, j in reversed(_blocks_of(tk)):
            corner, inner, block = _block_factor(continuous_lyapunov_factor, tk[i:j, i:j], bk[i:j])
            if not np.any(corner):  # the rows of U are zero, and B stays what it is
                continue
            uk[i:j, i:j] = corner
            # T_1 X + X block^T = rhs, as one linear system
            rhs = -(tk[:i, i:j] @ corner + bk[:i] @ inner.T)
            operator = np.kron(tk[:i, :i], np.eye(j - i)) + np.kron(np.eye(i), block)
            uk[:i, i:j] = np.linalg.solve(operator, rhs.reshape(-1)).reshape(rhs.shape)
            bk[:i] -= uk[:i, i:j] @ inner
    return u


def real_discrete_lyapunov_factor(t: RealArray, b: RealArray) -> RealArray:
    """Solve ``T U U^T T^T - U U^T + B B^T = 0``; everything else as for :func:`real_continuous_lyapunov_factor`."""
    u = np.zeros_like(t)
    for tk, bk, uk in zip(t, b.copy(), u, strict=True):
        for i, j in reversed(_blocks_of(tk)):
            corner, inner, block = _block_factor(discrete_lyapunov_factor, tk[i:j, i:j], bk[i:j])
            if not np.any(corner):
                continue
            uk[i:j, i:j] = corner
            # X - T_1 X block^T = rhs
            rhs = tk[:i, i:j] @ corner @ block.T + bk[:i] @ inner.T
            operator = np.eye(i * (j - i)) - np.kron(tk[:i, :i], block)
            uk[:i, i:j] = np.linalg.solve(operator, rhs.reshape(-1)).reshape(rhs.shape)
            image = tk[:i, :i] @ uk[:i, i:j] + tk[:i, i:j] @ corner
            # [B, image] times the orthogonal complement of the columns of [inner, block]^T, which gave X
            complement = np.linalg.qr(np.concatenate([inner, block], axis=1).T, mode="complete")[0][:, j - i :]
            bk[:i] = np.concatenate([bk[:i], image], axis=1) @ complement
    return u


def _blocks_of(t: RealArray) -> list[tuple[int, int]]:
    """First row, and row after the last, of each block of a real Schur form."""
    first = [i for i in range(len(t)) if i == 0 or t[i, i - 1] == 0.0]
    return list(zip(first, [*first[1:], len(t)], strict=True))


def _block_factor(
    solve: Callable[[ComplexArray, ComplexArray], ComplexArray], t: RealArray, b: RealArray
) -> tuple[RealArray, RealArray, RealArray]:
    """Return the real triangular factor ``U`` of the equation of one block, ``U^-1 B`` and ``U^-1 T U``."""
    s, z = complex_schur_form(t[None], np.eye(len(t))[None])
    factor = z[0] @ solve(s, z.swapaxes(-1, -2).conj() @ b)[0]
    upper = rq(np.concatenate([factor.real, factor.imag], axis=1), mode="r")[:, -len(t) :]
    upper = upper * np.copysign(1.0, np.diagonal(upper))
    if not np.any(upper):
        return upper, np.zeros_like(b), t
    return upper, solve_triangular(upper, b), solve_triangular(upper, t @ upper)


def triangular_sylvester(s: ComplexArray, t: ComplexArray, q: ComplexArray) -> ComplexArray:
    """Solve ``S X + X T = Q``, ``S`` and ``T`` upper triangular, column by column."""
    x = q.copy()
    for sk, tk, xk in zip(s, t, x, strict=True):
        for j in range(tk.shape[0]):
            rhs = xk[:, j] - xk[:, :j] @ tk[:j, j]
            xk[:, j] = _solve(sk + tk[j, j] * np.eye(sk.shape[0]), rhs)
    return x


def triangular_stein(s: ComplexArray, q: ComplexArray) -> ComplexArray:
    """Solve ``S X S^H - X + Q = 0``, ``S`` upper triangular, from the last column to the first."""
    x = q.copy()
    for sk, xk in zip(s, x, strict=True):
        identity = np.eye(sk.shape[0])
        for j in reversed(range(sk.shape[0])):
            rhs = xk[:, j] + np.triu(sk) @ (xk[:, j + 1 :] @ sk[j, j + 1 :].conj())
            xk[:, j] = _solve(identity - np.conj(sk[j, j]) * sk, rhs)
    return x


def triangular_pencil(
    s: ComplexArray, t: ComplexArray, u: ComplexArray, v: ComplexArray, q: ComplexArray
) -> ComplexArray:
    """Solve ``S X T^H + U X V^H = Q``, all four upper triangular, from the last column to the first."""
    x = q.copy()
    for sk, tk, uk, vk, xk in zip(np.triu(s), t, np.triu(u), v, x, strict=True):
        for j in reversed(range(tk.shape[0])):
            later = xk[:, j + 1 :]
            rhs = xk[:, j] - sk @ (later @ tk[j, j + 1 :].conj()) - uk @ (later @ vk[j, j + 1 :].conj())
            xk[:, j] = _solve(np.conj(tk[j, j]) * sk + np.conj(vk[j, j]) * uk, rhs)
    return x


def triangular_resolvent(t: ComplexArray, points: ComplexArray, b: ComplexArray) -> ComplexArray:
    """Return ``(z I - T)^-1 B`` for each point ``z``, ``points (k, f)``: from ``b (k, n, m)`` to ``(k, f, n, m)``."""
    x = np.empty((*points.shape, *b.shape[1:]), dtype=np.complex128)
    for tk, bk, zk, xk in zip(t, b, points, x, strict=True):
        for f, z in enumerate(zk):
            xk[f] = _solve(z * np.eye(tk.shape[0]) - tk, bk)
    return x


def _expm1(z: ComplexArray) -> ComplexArray:
    """``exp(z) - 1``; NumPy's own for complex numbers loses digits of the imaginary part in places."""
    half_sine = np.sin(z.imag / 2)
    return np.expm1(z.real) * np.cos(z.imag) - 2 * half_sine**2 + 1j * np.exp(z.real) * np.sin(z.imag)


def _length(row: ComplexArray) -> float:
    """The Euclidean length, safe from underflow and overflow of the squares."""
    largest = np.max(np.abs(row), initial=0.0)
    return float(largest * np.linalg.norm(row / largest)) if largest > 0.0 else 0.0


def _solve(triangle: ComplexArray, rhs: ComplexArray) -> ComplexArray:
    if rhs.size == 0:
        return rhs.copy()
    solution: ComplexArray = solve_triangular(triangle, rhs, check_finite=False)
    return solution


def log_pole_pairs(log_poles: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """Return ``l_i - l_j`` and ``1 - l_i conj(l_j)`` for every pair of poles ``l = exp(log_poles)``, from ``(k, n)`` to ``(k, n, n)``.

    Every digit is kept where poles are close to each other or to the unit circle.
    """
    rows, columns = log_poles[:, :, None], log_poles[:, None, :]
    gap = rows - columns
    sign = np.where(gap.real > 0, -1.0, 1.0)  # nothing overflows
    differences = sign * np.exp(np.where(gap.real > 0, rows, columns)) * _expm1(sign * gap)
    return differences, -_expm1(rows + columns.conj())


def divide_by_log_pole_pairs(log_poles: ComplexArray, first: ComplexArray, second: ComplexArray) -> None:
    """Divide ``first (k, n, n)`` by ``1 - l_i conj(l_j)`` and ``second`` by its conjugate, in place; below and on the diagonal only."""
    denominators = log_pole_pairs(log_poles)[1]
    lower = np.tri(log_poles.shape[1], dtype=bool)
    first[:] = np.where(lower, first / denominators, first)
    second[:] = np.where(lower, second / denominators.conj(), second)


def adjoint_log_pole_pairs(log_poles: ComplexArray, gradient: ComplexArray, product: ComplexArray) -> ComplexArray:
    """Divide a Hermitian ``gradient (k, n, n)`` by ``1 - conj(l_i) l_j``, in place, and return ``sum_j conj(gradient_ij) product_ij conj(l_j) / d_ij^2``.

    With ``d_ij = 1 - l_i conj(l_j)`` and ``l = exp(log_poles)``: what :func:`hsv._cauchy.cauchy_adjoint` needs, ``product`` being ``G G^H``.
    """
    denominators = log_pole_pairs(log_poles)[1]
    gradient /= denominators.conj()
    return np.einsum("kij,kj->ki", gradient.conj() * product / denominators, np.exp(log_poles).conj())


def cauchy_factor(generators: ComplexArray, differences: ComplexArray, denominators: ComplexArray) -> ComplexArray:
    """Factor the matrices ``g_i g_j^H / d_ij`` by elimination with diagonal pivoting on their generators ``(n, m)``.

    ``differences`` are ``l_i - l_j``, ``denominators`` ``1 - l_i conj(l_j)`` or ``-(l_i + conj(l_j))``. All real or all
    complex. See :func:`hsv.controllability_factor`.
    """
    factor = np.zeros_like(denominators)
    for G, gap, d, L in zip(generators.copy(), differences, denominators, factor, strict=True):
        for k in range(len(d)):
            p = np.argmax(np.sum(np.abs(G) ** 2, axis=1) / np.diagonal(d).real)
            row = G[p].copy()
            length, size = np.linalg.norm(row), np.abs(row[:1]).sum()
            if length == 0.0:  # the Schur complement is zero, and so are the columns that are left
                break
            if G.shape[1] > 1:
                row /= length  # near the end of an elimination squares have no inverses
                length, size = np.linalg.norm(row), np.abs(row[:1]).sum()
                row[0] += length if size == 0 else row[0] / size * length
                G -= np.outer(G @ row.conj() / (length * (length + size)), row)
            L[:, k] = G[:, 0] * np.sqrt(d[p, p].real) / d[:, p]
            G[:, 0] *= gap[:, p] / d[:, p]
            G[p] = 0  # but for rounding errors
    return factor


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
    """Run ``h[t] = a[t] h[t-1] + delta[t] x[t] B[t]``, ``a[t] = exp(delta[t] A)``, for the channels ``base + k``, ``first <= k < last``.

    ``A (d, n)``; ``delta, x, weight (T, d)``; ``B, C (T, n)``; all float32 or all float64. With ``white`` the second moments follow
    ``p[t] = a[t]^2 p[t-1] + (delta[t] B[t])^2``, otherwise they are ``h[t]^2``. ``carry (2, d, n)`` holds ``h`` and ``p``, before and after.
    Added to ``poles``, ``gains``, ``second``, ``product (d, n)``: the sums over time of ``a``, ``delta B``, ``p`` and ``(weight C)^2 p``. If ``states``
    is not empty, ``h[t]`` of channel ``base + k`` is written to ``states[k, t]``; if it is, a ``white`` run leaves ``h`` out.
    """
    c = slice(base + first, base + last)
    h, p = carry[0, c], carry[1, c]
    for t in range(delta.shape[0]):
        step = delta[t, c, None]
        a = np.exp(step * A[c])
        if states.size or not white:
            h[:] = a * h + step * x[t, c, None] * B[t]
        p[:] = a * a * p + (step * B[t]) ** 2 if white else h * h
        poles[c] += a
        gains[c] += step * B[t]
        second[c] += p
        product[c] += (weight[t, c, None] * C[t]) ** 2 * p
        if states.size:
            states[first:last, t] = h


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
    """Run ``g[t] = weight[t] signs[t] C[t] + a[t+1] g[t+1]`` and ``q[t] = (weight[t] C[t])^2 + a[t+1]^2 q[t+1]`` backward in time.

    Shapes as for :func:`selective_forward`. ``carry (2, d, n)`` holds ``a[t+1] g[t+1]`` and ``a[t+1]^2 q[t+1]``, before and after.
    Where ``counted``, the sum of ``q`` is added to ``second`` and ``g[t]`` is written to ``adjoints``; if that is empty, ``g`` is left out.
    """
    c = slice(base + first, base + last)
    g, q = carry[0, c], carry[1, c]
    for t in reversed(range(delta.shape[0])):
        output = weight[t, c, None] * C[t]
        a = np.exp(delta[t, c, None] * A[c])
        q += output**2
        if counted:
            second[c] += q
        q *= a * a
        if adjoints.size:
            g += signs[t, c, None] * output
            if counted:
                adjoints[first:last, t] = g
            g *= a


def add_products(first: int, last: int, rows: Real, products: RealArray) -> None:
    """Add ``H^T H`` of ``H = rows[k]``, ``rows (k, T, n)``, to ``products[k]``, ``(k, n, n)``, for ``first <= k < last``."""
    for k in range(first, last):
        products[k] += rows[k].T @ rows[k]


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
    """Run ``G[t] = a[t] a[t]^T o G[t-1] + v[t] v[t]^T``, ``a[t] = exp(delta[t] A)``, ``v[t] = scale[t] vectors[t]``, for the channels ``base + k``.

    ``A (d, n)``; ``delta, scale (T, d)``; ``vectors (T, n)``. The sum of ``G[t]`` over ``t >= skip`` is added to ``gramians[k]``, ``(k, n, n)``, for
    ``first <= k < last``.
    """
    c = slice(base + first, base + last)
    gramian = np.zeros((last - first, A.shape[1], A.shape[1]), A.dtype)
    for t in range(delta.shape[0]):
        a, v = np.exp(delta[t, c, None] * A[c]), scale[t, c, None] * vectors[t]
        gramian = a[:, :, None] * a[:, None, :] * gramian + v[:, :, None] * v[:, None, :]
        if t >= skip:
            gramians[first:last] += gramian
