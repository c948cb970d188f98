r"""Algebraic Riccati equations, definite and indefinite, in continuous and discrete time.

Each has many Hermitian solutions. The one wanted here is the stabilising one: it belongs to the invariant subspace of all stable eigenvalues of a matrix of twice the size,
found by an ordered Schur form. Newton's method on the equation itself then takes away what the subspace has lost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from hsv._array import Array, as_arrays, on_host, require_finite, require_square, round_to, widen
from hsv._blas import eigenvalues, product
from hsv._errors import HsvError, IllConditionedError, ShapeError
from hsv._lyapunov import (
    Matrix,
    adjoint,
    check_right_hand_side,
    solve_continuous_lyapunov,
    solve_discrete_lyapunov,
)

_EPS = float(np.finfo(np.float64).eps)
_NEGLIGIBLE = 1e-4  # terms of the equation, relative to its coefficients, that rounding errors are not compared with
# Newton's method: one step suffices but for closed loops near the stability boundary, where the subspace is poor and the first step makes it worse.
_MOST_STEPS, _MOST_IDLE_STEPS = 12, 3
_CONVERGED = 1e-14  # residual, relative to the terms of the equation
_ACCEPTED = 1e-10  # the same: a solved equation has 1e-12 and less, a failed one 1e-4 and more


class StabilisingSolution(NamedTuple):
    """What an equation gives: ``x``, the gain ``f`` of the closed loop ``a + b f``, its weight ``r`` or ``r + b^H x b``, and ``|a + b f|_F`` over its distance to instability."""

    x: Matrix
    gain: Matrix
    weight: Matrix
    sensitivity: Matrix


def solve_continuous_riccati(a: Array, b: Array, q: Array, r: Array, *, s: Array | None = None) -> Array:
    r"""Return the stabilising solution of the continuous algebraic Riccati equation

    .. math:: a^H x + x a - (x b + s)\, r^{-1} (b^H x + s^H) + q = 0

    The closed loop :math:`a + b f`, :math:`f = -r^{-1} (b^H x + s^H)`, is stable. Names, arguments and signs are those of
    :func:`scipy.linalg.solve_continuous_are`.

    Parameters
    ----------
    a, b : array
        Shapes ``(..., n, n)`` and ``(..., n, m)``, real or complex, also mixed. Leading axes are a batch and broadcast against each other.
    q, r : array
        Shapes ``(..., n, n)`` and ``(..., m, m)``, Hermitian. Neither has to be positive: bounded-real and positive-real balancing have a negative ``r``.
    s : array, optional
        Shape ``(..., n, m)``; zero if left out.

    Returns
    -------
    array
        ``x``, shape ``(..., n, n)``, Hermitian; array type, device and precision of the inputs; complex if one of them is.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, HsvError
        The arrays do not fit together, are no numbers, contain NaN or infinity, or ``q`` or ``r`` is not Hermitian.
    IllConditionedError
        ``r`` is singular, or there is no stabilising solution to working precision: a pole that no input moves, a pole on the stability boundary that ``q`` does not
        see, or, with indefinite ``q`` and ``r``, a system that is not bounded or positive real.

    Notes
    -----
    The stable invariant subspace of the Hamiltonian matrix by an ordered real (complex) Schur form [1]_, after states are scaled by powers of two; then steps of Newton's method,
    each a Lyapunov equation, until the residual falls no more [2]_. ``O((2n)^3)``, in double precision on the host, one equation of a batch after the other.
    The residual is a small multiple of ``eps`` times the terms of the equation; closed loops near the stability boundary make the error larger by one over that distance.

    References
    ----------
    .. [1] Laub, "A Schur method for solving algebraic Riccati equations", IEEE Trans. Automat. Control 24 (1979).
    .. [2] Kleinman, "On an iterative technique for Riccati equation computations", IEEE Trans. Automat. Control 13 (1968).

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_continuous_riccati([[3.0]], [[1.0]], [[16.0]], [[1.0]]).round(12)          # 6 x - x^2 + 16 = 0; 3 - 8 < 0
    array([[8.]])
    """
    return _solve(a, b, q, r, s, discrete=False)


def solve_discrete_riccati(a: Array, b: Array, q: Array, r: Array, *, s: Array | None = None) -> Array:
    r"""Return the stabilising solution of the discrete algebraic Riccati equation

    .. math:: a^H x a - x - (a^H x b + s) (r + b^H x b)^{-1} (b^H x a + s^H) + q = 0

    The closed loop :math:`a + b f`, :math:`f = -(r + b^H x b)^{-1} (b^H x a + s^H)`, is stable. Names, arguments and signs are those of
    :func:`scipy.linalg.solve_discrete_are`. Neither ``a`` nor ``r`` has to be invertible, only :math:`r + b^H x b`. Everything else as in :func:`solve_continuous_riccati`.

    Raises
    ------
    IllConditionedError
        There is no stabilising solution to working precision; the causes are those of :func:`solve_continuous_riccati`.

    Notes
    -----
    The subspace is that of the extended symplectic pencil [1]_, mapped by :math:`z \mapsto (z - 1) / (z + 1)`, or by the same with ``-z`` where that is better conditioned, so that one Schur form of size
    ``2n + m`` is enough; Newton's method runs on the discrete equation, so that no digits stay lost by the map. Against an ordered QZ of the pencil that is several times faster.

    References
    ----------
    .. [1] Van Dooren, "A generalized eigenvalue approach for solving Riccati equations", SIAM J. Sci. Stat. Comput. 2 (1981).

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_discrete_riccati([[2.0]], [[1.0]], [[1.0]], [[1.0]]).round(6)     # x^2 - 4 x - 1 = 0
    array([[4.236068]])
    """
    return _solve(a, b, q, r, s, discrete=True)


def _solve(a: Array, b: Array, q: Array, r: Array, s: Array | None, *, discrete: bool) -> Array:
    a, b, q, r, s = as_arrays("abqrs", (a, b, q, r, s), optional="s")
    require_square("a", a)
    n = a.shape[-1]
    check_right_hand_side("b", b, n, None, a)
    m = b.shape[-1]
    if m == 0:
        raise ShapeError(
            "b must have at least one column; without inputs the equation is hsv.solve_continuous_lyapunov's"
        )
    check_right_hand_side("q", q, n, n, a, b)
    check_right_hand_side("r", r, m, m, a, b, q)
    given = [("a", a), ("b", b), ("q", q), ("r", r)]
    if s is not None:
        check_right_hand_side("s", s, n, m, a, b, q, r)
        given.append(("s", s))
    for name, array in given:
        require_finite(name, array)

    def solve(*matrices: Matrix) -> Matrix:
        host = [*matrices] if s is not None else [*matrices, np.zeros((n, m))]
        for name, matrix in (("q", host[2]), ("r", host[3])):
            _require_hermitian(name, matrix)
        return stabilising_solution(*host, discrete=discrete).x

    return round_to(on_host(solve, *(widen(x) for _, x in given), reason="the Schur form"), a)


def stabilising_solution(
    a: Matrix, b: Matrix, q: Matrix, r: Matrix, s: Matrix, *, discrete: bool
) -> StabilisingSolution:
    """Solve a batch of equations in double precision on the host; ``q`` and ``r`` are Hermitian to rounding. Raises :class:`IllConditionedError` as the public functions do."""
    kind = np.result_type(a, b, q, r, s)
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in (a, b, q, r, s)))
    a, b, q, r, s = (np.broadcast_to(x, (*batch, *x.shape[-2:])).astype(kind) for x in (a, b, q, r, s))
    n = a.shape[-1]
    e = np.empty((*batch, n, 1))
    for index in np.ndindex(*batch):
        e[index] = _units(a[index], b[index], q[index], r[index], s[index])[:, None]
    row = np.swapaxes(e, -1, -2)
    q, r = _hermitian(q), _hermitian(r)
    equation = _Equation(a * row / e, b / e, e * q * row, r, e * s, discrete)
    x = np.empty_like(equation.a)
    for index in np.ndindex(*batch):
        one = equation.select(index)
        where = f" (system {tuple(index)})" if index else ""
        x[index] = _from_stable_subspace(one, where)
    try:
        x, gain, weight, closed = _refined(equation, x)
    except np.linalg.LinAlgError as error:
        raise IllConditionedError(
            "r + b^H x b of a discrete Riccati equation is singular to working precision; weight every input"
        ) from error
    margin = _stable_margin(closed, discrete=discrete)
    sensitivity = np.linalg.norm(closed, axis=(-2, -1)) / margin
    return StabilisingSolution(x / (e * row), gain / row, weight, sensitivity)


class _Equation(NamedTuple):
    """The coefficients, and what both kinds of equation share."""

    a: Matrix
    b: Matrix
    q: Matrix
    r: Matrix
    s: Matrix
    discrete: bool

    def select(self, index: tuple[int, ...]) -> _Equation:
        a, b, q, r, s, discrete = self
        return _Equation(a[index], b[index], q[index], r[index], s[index], discrete)

    def gain(self, x: Matrix) -> tuple[Matrix, Matrix]:
        """Return the feedback that belongs to `x`, and its weight."""
        xb = product(x, self.b)
        if not self.discrete:
            return -np.linalg.solve(self.r, adjoint(xb + self.s)), self.r
        weight = _hermitian(self.r + product(adjoint(self.b), xb))
        return -np.linalg.solve(weight, product(adjoint(xb), self.a) + adjoint(self.s)), weight

    def residual(self, x: Matrix, gain: Matrix) -> tuple[Matrix, Matrix]:
        """Return the left-hand side, Hermitian, and the size of its terms.

        As ``(a + b f)^H x (a + b f) - x`` and so on, which is the same where ``f`` is the gain of `x`, and a small matrix minus another where the first form subtracts large ones.
        """
        closed = self.a + product(self.b, gain)
        weighted = self.q + product(self.s, gain) + adjoint(product(self.s, gain))
        weighted = weighted + product(adjoint(gain), product(self.r, gain))
        if self.discrete:
            terms = [product(product(adjoint(closed), x), closed), -x, weighted]
        else:
            half = product(x, closed)
            terms = [half, adjoint(half), weighted]
        total = terms[0] + terms[1] + terms[2]
        size = _size(terms[0]) + _size(terms[1]) + _size(terms[2])
        # Where q = 0 and all poles are stable x = 0, and the terms are rounding errors themselves: of the coefficients, in balanced coordinates.
        return _hermitian(total), size + _NEGLIGIBLE * (_size(self.a) + 1.0)


def _from_stable_subspace(equation: _Equation, where: str) -> Matrix:
    """Return ``X2 X1^-1`` for a basis ``[X1; X2]`` of the stable subspace of one equation."""
    n = equation.a.shape[-1]
    try:
        matrix = _symplectic_by_bilinear_map(equation) if equation.discrete else _hamiltonian(equation)
        basis = _stable_basis(matrix, n, where)
    except np.linalg.LinAlgError as error:
        raise IllConditionedError(
            f"the Schur form of the Riccati equation{where} failed: {error}; scale the states"
        ) from error
    top, bottom = basis[:n], basis[n : 2 * n]
    singular = scipy.linalg.svdvals(top, check_finite=False)
    if singular[-1] <= n * _EPS:
        raise IllConditionedError(
            f"the Riccati equation{where} has no stabilising solution: its stable subspace belongs to no x; the likely cause is a pole of a that is not stable "
            "and that b does not move"
        )
    return _hermitian(np.linalg.solve(top.T, bottom.T).T)


def _hamiltonian(equation: _Equation) -> Matrix:
    a, b, q, r, s, _ = equation
    if np.linalg.cond(r) >= 1 / (len(r) * _EPS):
        raise IllConditionedError(
            "r must be invertible in continuous time, and is singular to working precision; weight every input"
        )
    n = len(a)
    solved = np.linalg.solve(r, np.concatenate([adjoint(s), adjoint(b)], axis=1))
    closed = a - b @ solved[:, :n]
    return np.block([[closed, -b @ solved[:, n:]], [s @ solved[:, :n] - q, -adjoint(closed)]])


def _symplectic_by_bilinear_map(equation: _Equation) -> Matrix:
    """Map the pencil ``M - z N`` of states, costates and inputs to a matrix with the eigenvalues ``(z - 1) / (z + 1)``, or those of ``-z``.

    Infinite ``z``, of which every input brings one, become 1.
    """
    a, b, q, r, s, _ = equation
    n, m = b.shape
    M = np.block([[a, np.zeros((n, n)), b], [q, -np.eye(n), s], [adjoint(s), np.zeros((m, n)), r]])
    N = np.zeros_like(M)
    N[:n, :n] = np.eye(n)
    N[n:, n : 2 * n] = -np.concatenate([adjoint(a), adjoint(b)])
    rows = np.abs(M).max(axis=1) + np.abs(N).max(axis=1)
    M, N = (x / np.where(rows > 0, rows, 1.0)[:, None] for x in (M, N))
    getrf, getrs = scipy.linalg.get_lapack_funcs(("getrf", "getrs"), (M,))
    choices = [(getrf(M + sign * N), M - sign * N) for sign in (1, -1)]
    pivots = [np.abs(np.diagonal(triangles)).min() for (triangles, _, _), _ in choices]
    if max(pivots) <= len(M) * _EPS:
        raise IllConditionedError(
            "the pencil of the Riccati equation is singular to working precision; likely causes: an input that does nothing and costs nothing, or poles at both 1 and -1 that nothing moves"
        )
    (triangles, order, _), right = choices[int(np.argmax(pivots))]
    return np.asarray(getrs(triangles, order, right)[0])


def _stable_basis(matrix: Matrix, n: int, where: str) -> Matrix:
    """Return an orthonormal basis of the invariant subspace of the `n` eigenvalues in the left half-plane."""
    is_real = not np.iscomplexobj(matrix)
    form, vectors = scipy.linalg.schur(matrix, output="real" if is_real else "complex", check_finite=False)
    poles = _poles_of_form(form)
    order = np.argsort(poles.real, kind="stable")
    last, following = poles[order[n - 1]], poles[order[n]]
    if not last.real < 0 < following.real:
        raise IllConditionedError(
            f"the Riccati equation{where} has no stabilising solution: {int(np.sum(poles.real < 0))} eigenvalues of its matrix are stable instead of {n}; likely causes: a pole of a on the "
            "stability boundary that q does not see or b does not move, or, with indefinite q and r, a gain that reaches the bound"
        )
    chosen = np.zeros(len(poles), np.int32)
    chosen[order[:n]] = 1
    trsen = scipy.linalg.lapack.dtrsen if is_real else scipy.linalg.lapack.ztrsen
    result = trsen(chosen, form, vectors, job="N")
    if result[-1]:
        raise IllConditionedError(
            f"the eigenvalues of the Riccati equation{where} are too close to the stability boundary to be ordered"
        )
    return np.asarray(result[1][:, :n])


def _poles_of_form(form: Matrix) -> Matrix:
    poles = np.diagonal(form).astype(np.complex128)
    if not np.iscomplexobj(form):
        lower, upper = np.diagonal(form, -1), np.diagonal(form, 1)
        frequency = np.where(lower != 0, np.sqrt(np.abs(lower)) * np.sqrt(np.abs(upper)), 0.0)
        poles[:-1] += 1j * frequency
        poles[1:] -= 1j * frequency
    return poles


def _refined(equation: _Equation, x: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Take steps of Newton's method until all residuals of the batch are rounding errors or none of them falls; return `x`, gain, weight and closed loop."""
    solve = solve_discrete_lyapunov if equation.discrete else solve_continuous_lyapunov
    gain, weight = equation.gain(x)
    residual, size = equation.residual(x, gain)
    best, backward, idle = (x, gain, weight), _size(residual) / size, 0
    for _ in range(_MOST_STEPS):
        # From a poor start the first step may go far beyond, to come back from above.
        closed = equation.a + product(equation.b, gain)
        try:
            x = x + solve(adjoint(closed), residual if equation.discrete else -residual)
        except IllConditionedError as error:
            raise IllConditionedError(
                f"the Riccati equation has no stabilising solution to working precision: its closed loop has poles at the stability boundary ({error})"
            ) from error
        gain, weight = equation.gain(x)
        residual, size = equation.residual(x, gain)
        found = _size(residual) / size
        better = found < backward
        best = (
            np.where(better, x, best[0]),
            np.where(better, gain, best[1]),
            np.where(better, weight, best[2]),
        )
        idle = 0 if np.any((found < 0.5 * backward) & (backward > _CONVERGED)) else idle + 1
        backward = np.where(better, found, backward)
        if np.all(backward <= _CONVERGED) or idle == _MOST_IDLE_STEPS:
            break
    x, gain, weight = best
    if backward.size and not backward.max() <= _ACCEPTED:  # nor NaN
        index = np.unravel_index(int(np.argmax(backward)), backward.shape)[:-2]
        where = f" (system {tuple(int(i) for i in index)})" if index else ""
        raise IllConditionedError(
            f"the residual of the Riccati equation{where} stays at {backward.max():.1e} of its terms; the likely cause is a closed loop at the stability boundary"
        )
    return x, gain, weight, equation.a + product(equation.b, gain)


def _stable_margin(closed: Matrix, *, discrete: bool) -> Matrix:
    """Return the distance of the closed loops' poles to the stability boundary ``(...)``; raise where it is not positive."""
    poles = eigenvalues(closed)
    margins = 1.0 - np.abs(poles) if discrete else -poles.real
    margin = margins.min(axis=-1)
    if margin.size and margin.min() <= 0:
        index = np.unravel_index(int(np.argmin(margins)), margins.shape)
        where = f" (system {tuple(int(i) for i in index[:-1])})" if len(index) > 1 else ""
        raise IllConditionedError(
            f"the Riccati equation{where} has no stabilising solution to working precision: the closed loop keeps the pole {complex(poles[index]):.6g} at the stability boundary"
        )
    return np.asarray(margin)


def _units(a: Matrix, b: Matrix, q: Matrix, r: Matrix, s: Matrix) -> np.ndarray:
    """Powers of two for the states of one equation, ``x = e x_new``, that balance its pencil and give ``q`` and ``b r^-1 b^H`` like sizes."""
    n = len(a)
    size = np.block(
        [
            [np.abs(a), np.zeros((n, n)), np.abs(b)],
            [np.abs(q), np.abs(a).T, np.abs(s)],
            [np.abs(s).T, np.abs(b).T, np.abs(r)],
        ]
    )
    np.fill_diagonal(size, 0.0)
    _, (scale, _) = scipy.linalg.matrix_balance(size, permute=False, separate=True)
    exponent = 0.5 * (np.log2(scale[:n]) - np.log2(scale[n : 2 * n]))
    e = np.exp2(np.round(exponent))[:, None]
    weight = np.linalg.norm(r) or 1.0
    reach = np.linalg.norm(b / e) ** 2 / weight
    cost = np.linalg.norm(e * q * e.T) + np.linalg.norm(e * s) ** 2 / weight
    speed = np.linalg.norm(a * e.T / e)
    if reach > 0 and cost > 0:
        exponent = exponent + 0.25 * np.log2(reach / cost)
    elif reach > 0 and speed > 0:  # x is of the size of a / (b r^-1 b^H) then, or zero
        exponent = exponent + 0.5 * np.log2(reach / speed)
    exponent = np.round(exponent)
    return np.ldexp(1.0, exponent.astype(int))


def _require_hermitian(name: str, x: Matrix) -> None:
    skew = np.abs(x - adjoint(x)).max(axis=(-2, -1), initial=0.0)
    size = np.abs(x).max(axis=(-2, -1), initial=0.0)
    if np.any(skew > 1e3 * _EPS * size):
        raise HsvError(
            f"{name} must be Hermitian, found entries that differ from their conjugates by {np.max(skew):.1e}; pass 0.5 * ({name} + {name}^H)"
        )


def _hermitian(x: Matrix) -> Matrix:
    return 0.5 * (x + adjoint(x))


def _size(x: Matrix) -> Matrix:
    return np.linalg.norm(x, axis=(-2, -1), keepdims=True)
