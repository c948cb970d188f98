"""Hankel singular values of diagonal and dense systems to many digits, with python-flint: the truth that tests compare with.

The closed-form or linear-solve Gramians and the eigenvalues of their product are formed in 1,400-bit ball arithmetic, in which the
product's lost digits do not matter.
"""

import flint
import numpy as np

BITS = 1400


def _number(z: complex) -> flint.acb:
    return flint.acb(float(np.real(z)), float(np.imag(z)))


def _conjugate_transpose(M: flint.acb_mat) -> flint.acb_mat:
    return flint.acb_mat([[M[i, j].conjugate() for i in range(M.nrows())] for j in range(M.ncols())])


def _matrix(M: np.ndarray) -> flint.acb_mat:
    return flint.acb_mat([[_number(z) for z in row] for row in np.asarray(M)])


def _values(P: flint.acb_mat, Q: flint.acb_mat) -> np.ndarray:
    squares = (P * Q).eig(algorithm="approx")
    return np.array(sorted((float(abs(v).sqrt().mid()) for v in squares), reverse=True))


def diagonal_hankel_values(
    poles: np.ndarray, B: np.ndarray, C: np.ndarray, *, log_poles: bool = False, discrete: bool = True
) -> np.ndarray:
    """Return the Hankel singular values of the system with exactly these binary numbers, rounded to double precision."""
    saved, flint.ctx.prec = flint.ctx.prec, BITS
    try:
        lam = [_number(z) for z in poles]
        if log_poles:
            lam = [z.exp() for z in lam]
        BB, CC = _matrix(B), _matrix(C)
        BB, CC = BB * _conjugate_transpose(BB), _conjugate_transpose(CC) * CC
        n = len(lam)

        def denominator(a: flint.acb, b: flint.acb) -> flint.acb:
            return 1 - a * b if discrete else -(a + b)

        P = flint.acb_mat([[BB[i, j] / denominator(lam[i], lam[j].conjugate()) for j in range(n)] for i in range(n)])
        Q = flint.acb_mat([[CC[i, j] / denominator(lam[i].conjugate(), lam[j]) for j in range(n)] for i in range(n)])
        return _values(P, Q)
    finally:
        flint.ctx.prec = saved


def dense_hankel_values(A: np.ndarray, B: np.ndarray, C: np.ndarray, *, discrete: bool) -> np.ndarray:
    """Return the Hankel singular values of a small dense system (n <= 12 or so), by the Kronecker form of both equations."""
    saved, flint.ctx.prec = flint.ctx.prec, BITS
    try:
        A_, B_, C_ = _matrix(A), _matrix(B), _matrix(C)
        return _values(
            _gramian(A_, B_ * _conjugate_transpose(B_), discrete),
            _gramian(_conjugate_transpose(A_), _conjugate_transpose(C_) * C_, discrete),
        )
    finally:
        flint.ctx.prec = saved


def _gramian(A: flint.acb_mat, W: flint.acb_mat, discrete: bool) -> flint.acb_mat:
    n = A.nrows()
    one, zero = flint.acb(1), flint.acb(0)
    rows = []
    for i in range(n):
        for j in range(n):  # the equation of entry (i, j), unknowns X[k, l] row by row
            row = []
            for k in range(n):
                for m in range(n):
                    if discrete:
                        row.append(A[i, k] * A[j, m].conjugate() - (one if (i, j) == (k, m) else zero))
                    else:
                        row.append((A[i, k] if j == m else zero) + (A[j, m].conjugate() if i == k else zero))
            rows.append(row)
    right = flint.acb_mat([[-W[i, j]] for i in range(n) for j in range(n)])
    x = flint.acb_mat(rows).solve(right)
    return flint.acb_mat([[x[i * n + j, 0] for j in range(n)] for i in range(n)])


def heat_equation_hankel_values(n: int, bits: int = 500) -> np.ndarray:
    """Return the Hankel singular values of `reference_systems.heat_equation(n)`, by its sine eigenvectors; right down to 1e-60 or so."""
    saved, flint.ctx.prec = flint.ctx.prec, bits
    try:
        step = flint.arb.pi() / (n + 1)
        length = (flint.arb(2) / (n + 1)).sqrt()
        modes = range(1, n + 1)
        poles = [-4 * (n + 1) ** 2 * (k * step / 2).sin() ** 2 for k in modes]
        b = [(n + 1) * length * ((n // 3 + 1) * k * step).sin() for k in modes]
        c = [length * ((2 * n // 3 + 1) * k * step).sin() for k in modes]

        def gramian(g: list[flint.arb]) -> flint.acb_mat:
            return flint.acb_mat(
                [[flint.acb(-g[i] * g[j] / (poles[i] + poles[j])) for j in range(n)] for i in range(n)]
            )

        return _values(gramian(b), gramian(c))
    finally:
        flint.ctx.prec = saved
