"""Hankel singular values of dense systems of up to a hundred states, and of long one-input one-output diagonal ones, to many digits.

With python-flint, on exactly the binary numbers given. Unlike `exact`, whose Kronecker form ends at a dozen states, the Gramians are summed by squaring
(Smith, "Matrix equation XA + BX = C", 1968), in continuous time after the Cayley map, which leaves them alone; defective matrices do no harm.
"""

import flint
import numpy as np

BITS = 640
"""About 190 digits: the eigenvalues of the product of the Gramians are right to 1e-60 of the first value and below."""


def hankel_values(A: np.ndarray, B: np.ndarray, C: np.ndarray, *, discrete: bool) -> np.ndarray:
    """Return the Hankel singular values of a stable system, descending, rounded to double precision."""
    saved, flint.ctx.prec = flint.ctx.prec, BITS
    try:
        complex_ = any(np.iscomplexobj(M) for M in (A, B, C))
        a, b, c = (matrix(M, complex_) for M in (A, B, C))
        if not discrete:
            a, b, c = _cayley(a, b, c, shift=_typical_size(np.linalg.eigvals(A)))
        P = _sum_of_powers(a, b * adjoint(b))
        Q = _sum_of_powers(adjoint(a), adjoint(c) * c)
        return _roots_of_eigenvalues(P * Q)
    finally:
        flint.ctx.prec = saved


def long_diagonal_hankel_values(poles: list[flint.acb], b: list[flint.acb], c: list[flint.acb]) -> np.ndarray:
    """Return the values above 1e-35 of the first one of a continuous diagonal system with one input and one output, as many as there are.

    Each Gramian is eliminated with diagonal pivoting until what is left is below 1e-80 of it, so that a thousand states leave small factors.
    """
    Lc = _eliminated(poles, b)
    Lo = _eliminated([pole.conjugate() for pole in poles], [x.conjugate() for x in c])
    M = adjoint(Lo) * Lc
    values = _roots_of_eigenvalues(M * adjoint(M))
    return values[values > 1e-35 * values[0]]


def matrix(M: np.ndarray, complex_: bool) -> flint.arb_mat | flint.acb_mat:
    """Return exactly these binary numbers."""
    if complex_:
        return flint.acb_mat([[flint.acb(float(np.real(z)), float(np.imag(z))) for z in row] for row in M])
    return flint.arb_mat([[flint.arb(float(x)) for x in row] for row in M])


def adjoint(M: flint.arb_mat | flint.acb_mat) -> flint.arb_mat | flint.acb_mat:
    """Return the conjugate transpose."""
    if isinstance(M, flint.arb_mat):
        return M.transpose()
    return flint.acb_mat([[M[i, j].conjugate() for i in range(M.nrows())] for j in range(M.ncols())])


def _typical_size(poles: np.ndarray) -> flint.arb:
    size = np.abs(poles)
    return flint.arb(float(np.sqrt(size.max() * max(size.min(), 1e-30))))


def _cayley(a, b, c, *, shift):
    """``(s I + a) (s I - a)^-1`` and the maps with which the discrete Gramians are the continuous ones."""
    n = a.nrows()
    kind = type(a)
    identity = kind([[1 if i == j else 0 for j in range(n)] for i in range(n)])
    resolvent = (identity * shift - a).inv()
    root = (2 * shift).sqrt()
    return _middle((identity * shift + a) * resolvent), _middle(resolvent * b) * root, _middle(c * resolvent) * root


def _sum_of_powers(a, q):
    """``sum_k a^k q (a^H)^k``, by doubling the number of terms until the next ones are below the working precision."""
    total, power, tiny = q, a, 2.0**-BITS
    for _ in range(300):
        term = _middle(power * total * adjoint(power))
        total = _middle(total + term)
        if _largest(term) <= tiny * _largest(total):
            return total
        power = _middle(power * power)
    raise AssertionError("the powers do not decay: the matrix is not stable")


def _eliminated(poles: list[flint.acb], g: list[flint.acb]) -> flint.acb_mat:
    """Return a factor of the Gramian ``-g_i conj(g_j) / (p_i + conj(p_j))``; each Schur complement has generators of the same form."""
    columns, g = [], list(g)
    first = None
    while True:
        diagonal = [float((abs(x) ** 2 / (-2 * p.real)).mid()) for p, x in zip(poles, g, strict=True)]
        k = int(np.argmax(diagonal))
        first = first or diagonal[k]
        if diagonal[k] <= 1e-80 * first or len(columns) == len(g):
            return flint.acb_mat([[column[i] for column in columns] for i in range(len(g))])
        p_k, root = poles[k], (-2 * poles[k].real).sqrt()
        phase = g[k].conjugate() / abs(g[k])
        gaps = [-(p + p_k.conjugate()) for p in poles]
        columns.append([(x * phase * root / gap).mid() for x, gap in zip(g, gaps, strict=True)])
        g = [(x * (p_k - p) / gap).mid() for x, p, gap in zip(g, poles, gaps, strict=True)]


def _roots_of_eigenvalues(M) -> np.ndarray:
    squares = flint.acb_mat(M).eig(algorithm="approx")
    return np.array(sorted((float(abs(v).sqrt().mid()) for v in squares), reverse=True))


def _middle(M):
    """Forget the radii: the working precision is far beyond what is read off."""
    return M.mid()


def _largest(M) -> float:
    # log scale would be needed beyond 1e308, which no test reaches
    return max(float(abs(x).mid()) for x in M.entries())
