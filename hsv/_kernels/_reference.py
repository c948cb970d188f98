"""The kernels in plain NumPy: what each one means, and what `_numba` is compared with.

All matrices are complex128 with one leading batch axis. ``T`` and ``S`` are upper
triangular (a complex Schur form); nothing below their diagonals is read. The callers have
checked shapes, stability and solvability.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

ComplexArray = NDArray[np.complex128]
RealArray = NDArray[np.float64]


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


def triangular_resolvent(t: ComplexArray, points: ComplexArray, b: ComplexArray) -> ComplexArray:
    """Return ``(z I - T)^-1 B`` for each point ``z``, ``points (k, f)``: from ``b (k, n, m)`` to ``(k, f, n, m)``."""
    x = np.empty((*points.shape, *b.shape[1:]), dtype=np.complex128)
    for tk, bk, zk, xk in zip(t, b, points, x, strict=True):
        for f, z in enumerate(zk):
            xk[f] = _solve(z * np.eye(tk.shape[0]) - tk, bk)
    return x


def _length(row: ComplexArray) -> float:
    """The Euclidean length, safe from underflow and overflow of the squares."""
    largest = np.max(np.abs(row), initial=0.0)
    return float(largest * np.linalg.norm(row / largest)) if largest > 0.0 else 0.0


def _solve(triangle: ComplexArray, rhs: ComplexArray) -> ComplexArray:
    if rhs.size == 0:
        return rhs.copy()
    solution: ComplexArray = solve_triangular(triangle, rhs, check_finite=False)
    return solution


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
                row[0] += length if size == 0 else row[0] / size * length
                G -= np.outer(G @ row.conj() / (length * (length + size)), row)
            L[:, k] = G[:, 0] * np.sqrt(d[p, p].real) / d[:, p]
            G[:, 0] *= gap[:, p] / d[:, p]
    return factor
