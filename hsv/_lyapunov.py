r"""Lyapunov, Stein and Sylvester equations, by Schur forms and by doubling; the factored Lyapunov solvers too.

Every solver but those by doubling (`hsv._doubling`) turns its equation into one with triangular coefficients, :math:`a = Z S Z^H`, and hands that to a compiled kernel that
walks through the columns of the solution, a whole batch in one call. LAPACK has no Schur form for batches, so that step takes one
matrix after the other, and it runs on the host: arrays on a device are copied there and back.

The factored solvers keep a real equation real. The others take the complex Schur form of a real matrix, made from the real one by one rotation for each
pair of eigenvalues: half the cost of a complex Schur decomposition, and the pairs stay exact conjugates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from hsv import _doubling, _kernels
from hsv._array import Array, as_arrays, device, on_host, require_finite, require_square, round_to, widen
from hsv._blas import product
from hsv._errors import IllConditionedError, ShapeError, UnstableSystemError

Matrix = np.ndarray
"""A batch of real or complex matrices in double precision, on the host."""

# Two eigenvalues are told apart down to a few rounding errors of the matrices they came from. Exactly singular equations were
# measured at n = 2 to 200: orthogonal and skew-symmetric matrices stay below 1 eps, matrices with an eigenvalue 0 and random
# eigenvectors below 6 eps, but for some with badly conditioned eigenvectors that reached 70. A larger number would begin to refuse
# sound equations whose eigenvalues differ by many orders of magnitude.
_SINGULAR = 10 * np.finfo(np.float64).eps


def solve_sylvester(a: Array, b: Array, q: Array) -> Array:
    r"""Solve the Sylvester equation

    .. math:: a x + x b = q

    Parameters
    ----------
    a, b, q : array
        Shapes ``(..., n, n)``, ``(..., m, m)``, ``(..., n, m)``, real or complex, also mixed. Leading axes are a batch of
        independent equations and broadcast against each other.

    Returns
    -------
    array
        ``x``, shape ``(..., n, m)``, array type, device and precision of the inputs; complex if one of them is.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    IllConditionedError
        ``a`` and ``-b`` have a common eigenvalue (to working precision): there is no solution, or no unique one.

    Notes
    -----
    The method of Bartels and Stewart, in complex arithmetic [1]_: ``O(n^3 + m^3)`` for the Schur forms and ``O(n m (n + m))`` for the
    rest, in double precision on the host. Backward stable in the usual sense: the residual is a small multiple of
    ``eps (|a| + |b|) |x|``; the error is larger by the inverse of the separation of ``a`` and ``-b``. For defective and non-normal
    matrices, too, since no eigenvectors are used.

    References
    ----------
    .. [1] Bartels and Stewart, "Solution of the matrix equation AX + XB = C", Comm. ACM 15 (1972), algorithm 432.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_sylvester([[1.0]], [[2.0]], [[6.0]])               # x + 2 x = 6
    array([[2.]])
    """
    a, b, q = as_arrays("abq", (a, b, q))
    require_square("a", a)
    require_square("b", b)
    check_right_hand_side("q", q, a.shape[-1], b.shape[-1], a, b)
    x = on_host(
        _sylvester,
        *(widen(_finite(name, array)) for name, array in zip("abq", (a, b, q), strict=True)),
        reason="the Schur form",
    )
    return round_to(x, q)


def solve_continuous_lyapunov(a: Array, q: Array) -> Array:
    r"""Solve the continuous Lyapunov equation

    .. math:: a x + x a^H = q

    Parameters
    ----------
    a, q : array
        Shape ``(..., n, n)``, real or complex, also mixed. Leading axes are a batch and broadcast against each other. ``a`` need not
        be stable, ``q`` need not be Hermitian.

    Returns
    -------
    array
        ``x``, shape ``(..., n, n)``, array type, device and precision of the inputs; complex if one of them is. Exactly Hermitian
        if ``q`` is.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    IllConditionedError
        Two eigenvalues of ``a`` satisfy ``l_i + conj(l_j) = 0`` (to working precision): there is no solution, or no unique one.

    See Also
    --------
    solve_lyapunov_factored : keeps twice the digits of a Gramian's small directions.
    solve_continuous_lyapunov_by_doubling : for a stable ``a``, stays on the device of the arrays.

    Notes
    -----
    Bartels and Stewart's method, with one Schur form: ``O(n^3)``, in double precision on the host. Accuracy as for
    `solve_sylvester`. Where ``a`` is diagonal, ``x_ij = q_ij / (a_ii + conj(a_jj))`` needs no solver: see :class:`hsv.DiagonalStateSpace`.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_continuous_lyapunov([[-2.0]], [[-8.0]])            # -2 x - 2 x = -8
    array([[2.]])
    """
    _, q, a_wide, q_wide = _checked("q", a, q)
    return round_to(on_host(_continuous_lyapunov, a_wide, q_wide, reason="the Schur form"), q)


def solve_discrete_lyapunov(a: Array, q: Array) -> Array:
    r"""Solve the discrete Lyapunov (Stein) equation

    .. math:: a x a^H - x + q = 0

    Parameters
    ----------
    a, q : array
        Shape ``(..., n, n)``, real or complex, also mixed. Leading axes are a batch and broadcast against each other. ``a`` need not
        be stable, ``q`` need not be Hermitian.

    Returns
    -------
    array
        ``x``, shape ``(..., n, n)``, array type, device and precision of the inputs; complex if one of them is. Exactly Hermitian
        if ``q`` is.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    IllConditionedError
        Two eigenvalues of ``a`` satisfy ``l_i conj(l_j) = 1`` (to working precision): there is no solution, or no unique one.

    See Also
    --------
    solve_lyapunov_factored : keeps twice the digits of a Gramian's small directions.
    solve_discrete_lyapunov_by_doubling : for a stable ``a``, stays on the device of the arrays.

    Notes
    -----
    The Schur method of Kitagawa [1]_, directly on the discrete equation: no bilinear transformation, which would lose digits when an
    eigenvalue is close to -1. ``O(n^3)``, in double precision on the host. The residual is a small multiple of
    ``eps (1 + |a|^2) |x|``. Where ``a`` is diagonal, ``x_ij = q_ij / (1 - a_ii conj(a_jj))`` needs no solver: :class:`hsv.DiagonalStateSpace`
    has it with every digit, near the unit circle too.

    References
    ----------
    .. [1] Kitagawa, "An algorithm for solving the matrix equation X = FXF' + S", Int. J. Control 25 (1977).

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_discrete_lyapunov([[0.5]], [[3.0]])                # x / 4 - x + 3 = 0
    array([[4.]])
    """
    _, q, a_wide, q_wide = _checked("q", a, q)
    return round_to(on_host(_discrete_lyapunov, a_wide, q_wide, reason="the Schur form"), q)


def solve_lyapunov_factored(a: Array, b: Array, *, discrete: bool) -> Array:
    r"""Return a factor ``L`` of the solution :math:`P = L L^H` of a stable Lyapunov equation, without ever forming ``P``:

    .. math:: a P a^H - P + b b^H = 0 \quad\text{(discrete)},\qquad a P + P a^H + b b^H = 0 \quad\text{(continuous)}

    Parameters
    ----------
    a : array
        Shape ``(..., n, n)``, real or complex, stable.
    b : array
        Shape ``(..., n, m)``, any ``m``. Leading axes are a batch and broadcast against each other.
    discrete : bool
        Which of the two equations.

    Returns
    -------
    array
        ``L``, shape ``(..., n, n)``, array type, device and precision of the inputs; real if both are. A square root of ``P`` is free
        up to a unitary factor from the right; no particular one is promised.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    UnstableSystemError
        An eigenvalue of ``a`` has modulus >= 1 (discrete) or real part >= 0 (continuous).

    Notes
    -----
    Hammarling's method on the Schur form of ``a`` [1]_, the real one where everything is real, which yields the triangular factor one block of columns after the
    other: ``O(n^3)``, in double precision on the host, after ``a`` is balanced by powers of two, so that the units of the states cost no digits, and ``b`` is compressed to at most ``n`` columns. Arrays on another device stay there: for them this
    is `solve_lyapunov_factored_by_doubling`, whose limits then hold. Since ``P`` is never formed, ``L`` has a relative
    error where ``P`` would have the square root of it: directions that hold less than ``1e-8`` of the largest one survive. How well
    the smallest ones do depends on the Schur form, whose error is ``eps |a|`` of the balanced ``a``; for a diagonal ``a`` the closed form behind
    :func:`hsv.controllability_factor` is better still.

    References
    ----------
    .. [1] Hammarling, "Numerical solution of the stable, non-negative definite Lyapunov equation", IMA J. Numer. Anal. 2 (1982).
       Sorensen and Zhou, "Direct methods for matrix Sylvester and Lyapunov equations", J. Appl. Math. 2003 (2003), for the recursion by
       columns.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_lyapunov_factored([[0.6]], [[4.0]], discrete=True)           # sqrt(16 / (1 - 0.36))
    array([[5.]])
    >>> hsv.solve_lyapunov_factored([[-2.0]], [[6.0, 8.0]], discrete=False)    # sqrt(100 / 4)
    array([[5.]])
    """
    _, b, a_wide, b_wide = _checked("b", a, b, any_width=True)
    if _off_the_host(b):
        return round_to(_doubling.factor(a_wide, b_wide, discrete=discrete), b)
    factor = on_host(lambda a, b: _factored(a, b, discrete=discrete), a_wide, b_wide, reason="the Schur form")
    return round_to(factor, b)


def solve_discrete_lyapunov_by_doubling(a: Array, q: Array) -> Array:
    r"""Solve the discrete Lyapunov (Stein) equation with a stable ``a``, on the device of the arrays.

    .. math:: a x a^H - x + q = 0, \qquad x = \sum_{k=0}^\infty a^k q (a^H)^k

    Parameters
    ----------
    a, q : array
        Shape ``(..., n, n)``, real or complex, also mixed. Leading axes are a batch and broadcast against each other. ``q`` need not be
        Hermitian.

    Returns
    -------
    array
        ``x``, shape ``(..., n, n)``, array type, device and precision of the inputs; complex if one of them is. Exactly Hermitian
        if ``q`` is.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    UnstableSystemError
        The powers of ``a`` do not fall below rounding within 45 doublings: the spectral radius is above ``1 - 1e-12``, or the norm of
        a power passes ``1 / eps`` before.
    MissingBackendError
        The device has no double precision.

    See Also
    --------
    solve_discrete_lyapunov : by a Schur form on the host, for an ``a`` that need not be stable.

    Notes
    -----
    Squared Smith iteration [1]_, :math:`x \leftarrow x + a x a^H,\ a \leftarrow a^2`, until :math:`\|a\|_F^2 \le \varepsilon`: what the sum then lacks
    is at most that part of :math:`\|x\|`. Products of matrices alone, three a doubling, and about ``log2(18 / (1 - radius))`` doublings:
    ``O(n^3)`` each, for a whole batch at once, in double precision. The host reads one number a doubling, and nothing else leaves the device.
    Well damped systems take less time than by a Schur form on the host too.

    How far to trust it: as far as `solve_discrete_lyapunov` while the powers of ``a`` do not grow. Both have an error of about
    ``eps |x| / (1 - radius)`` on random matrices. Where ``|a^k|`` rises to ``h`` on its way to zero (strongly non-normal matrices), the
    residual grows like ``eps h^2``, which the Schur form does not know.

    References
    ----------
    .. [1] Smith, "Matrix equation XA + BX = C", SIAM J. Appl. Math. 16 (1968).

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_discrete_lyapunov_by_doubling([[0.5]], [[3.0]])    # x / 4 - x + 3 = 0
    array([[4.]])
    """
    _, q, a_wide, q_wide = _checked("q", a, q)
    return round_to(_doubling.stein(a_wide, q_wide), q)


def solve_continuous_lyapunov_by_doubling(a: Array, q: Array) -> Array:
    r"""Solve the continuous Lyapunov equation with a stable ``a``, on the device of the arrays.

    .. math:: a x + x a^H = q, \qquad x = -\int_0^\infty e^{at} q\, e^{a^H t}\,dt

    Parameters, returns and errors are those of `solve_discrete_lyapunov_by_doubling`; stable means that every eigenvalue has a negative
    real part here, and ``1 - radius`` is that of the Cayley map below.

    See Also
    --------
    solve_continuous_lyapunov : by a Schur form on the host, for an ``a`` that need not be stable.

    Notes
    -----
    The Cayley map :math:`c = (a - pI)^{-1}(a + pI)` turns the equation into :math:`c x c^H - x - 2p\,(a - pI)^{-1} q (a - pI)^{-H} = 0` for
    every shift :math:`p > 0`, and doubling solves that. The shift is :math:`p = (\|a\|_F / \|a^{-1}\|_F)^{1/2}`, between the slowest and the
    fastest eigenvalue: real spectra of condition ``k`` take about ``log2(9 sqrt(k))`` doublings, while an eigenvalue :math:`-\delta \pm i\omega` that is lightly
    damped takes ``log2(18 w / d)`` or more. ``O(n^3)`` each.

    How far to trust it: on heat equations and on the ill-conditioned benchmarks of Kressner, Mehrmann and Penzl the error is that of
    the Schur method or less. The residual of a lightly damped system grows with ``w / d``, in random systems of 20 states to 1e-13
    of the solution at 1e6 and to 1e-11 at 1e10, where the Schur method's stays at 1e-15; the errors of both grow like ``eps w / d``.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_continuous_lyapunov_by_doubling([[-2.0]], [[-8.0]])          # -2 x - 2 x = -8
    array([[2.]])
    """
    _, q, a_wide, q_wide = _checked("q", a, q)
    return round_to(_doubling.lyapunov(a_wide, q_wide), q)


def solve_lyapunov_factored_by_doubling(a: Array, b: Array, *, discrete: bool) -> Array:
    r"""Return a factor ``L`` of the solution :math:`P = L L^H` of a stable Lyapunov equation, on the device of the arrays.

    .. math:: a P a^H - P + b b^H = 0 \quad\text{(discrete)},\qquad a P + P a^H + b b^H = 0 \quad\text{(continuous)}

    Parameters and returns are those of `solve_lyapunov_factored`, which calls this for arrays that are not on the host; errors are
    those of `solve_discrete_lyapunov_by_doubling`.

    Notes
    -----
    :math:`L \leftarrow [L,\ a L],\ a \leftarrow a^2`, until :math:`\|a\|_F \le \varepsilon`; as soon as ``L`` has more columns than rows a QR factorisation
    of :math:`L^H` brings it back to ``n``, and each row keeps its own relative accuracy. ``P`` is never formed. Continuous equations go
    through the Cayley map of `solve_continuous_lyapunov_by_doubling`. ``O(n^3)`` a doubling, for a whole batch at once. The
    Hankel singular values of heat equations come out with the digits that Hammarling's method gives.

    Examples
    --------
    >>> import hsv
    >>> abs(hsv.solve_lyapunov_factored_by_doubling([[0.6]], [[4.0]], discrete=True)).round(12)   # sqrt(16 / (1 - 0.36))
    array([[5.]])
    """
    _, b, a_wide, b_wide = _checked("b", a, b, any_width=True)
    return round_to(_doubling.factor(a_wide, b_wide, discrete=discrete), b)


class FactoredPair(NamedTuple):
    """Square roots of both Gramians: ``P = (right Lc)(right Lc)^H`` and ``Q = (left Lo)(left Lo)^H``, with ``left^H right = I``.

    ``right`` and ``left`` are ``None`` where they are identities. ``sensitivity``, of shape ``(...)``, is ``|a|_F`` over the distance of the poles to the stability
    boundary: how many times its own relative size a rounding error of ``a`` can grow near a resonance. ``None`` where the poles were not computed.
    """

    controllability: Array
    observability: Array
    right: Array | None
    left: Array | None
    sensitivity: Array | None


def solve_lyapunov_factored_pair(a: Array, b: Array, c: Array, *, discrete: bool) -> FactoredPair:
    """Solve for the factors of both Gramians of ``(a, b, c)`` with one Schur form, or with the same powers where the arrays are not on the host.

    On the host they stay in the coordinates of the Schur form, where both are triangular up to the order of their columns: no digits are spent on coming
    back before they are multiplied. Arrays of one library in double precision, already checked.
    """
    if _off_the_host(a):
        return FactoredPair(*_doubling.factor_pair(a, b, c, discrete=discrete), None, None, None)
    return FactoredPair(
        *on_host(lambda a, b, c: _factored_pair(a, b, c, discrete=discrete), a, b, c, reason="the Schur form")
    )


def schur_form(a: Matrix) -> tuple[Matrix, Matrix]:
    """Return complex ``(s, z)`` with ``a = z s z^H``, ``s`` upper triangular, for every matrix of a batch on the host."""
    s, z = _real_schur_form(_real_where_possible(a))
    if not np.iscomplexobj(s):
        n = s.shape[-1]
        flat = _kernels.complex_schur_form(s.reshape(-1, n, n), z.reshape(-1, n, n))
        s, z = (x.reshape(a.shape) for x in flat)
    return s, z


def _real_schur_form(a: Matrix) -> tuple[Matrix, Matrix]:
    """Return ``(s, z)`` with ``a = z s z^H``: for a real batch the real form, with standardized blocks of two on the diagonal of ``s``."""
    n = a.shape[-1]
    flat = a.reshape(-1, n, n)
    s, z = np.empty_like(flat), np.empty_like(flat)
    # Columns a multiple of 1 KiB apart share few lines of the cache: LAPACK takes twice as long for 512 states as for 513. One more state, which
    # nothing enters or leaves and which LAPACK's balancing sets aside, keeps them apart.
    padded = n + (n % 128 == 0)
    room = np.zeros((padded, padded), a.dtype, order="F")
    # LAPACK directly: scipy.linalg.schur asks for the workspace again for each matrix, half of the time at n = 16.
    gees = scipy.linalg.lapack.zgees if np.iscomplexobj(a) else scipy.linalg.lapack.dgees
    workspace = int(gees(_no_selection, room, lwork=-1)[-2][0].real)
    for k, matrix in enumerate(flat):
        room[:n, :n] = matrix
        form, *_, vectors, _, info = gees(_no_selection, room, lwork=workspace)
        if info:
            raise IllConditionedError(f"the QR algorithm did not converge on matrix {k} of the batch; scale its states")
        s[k], z[k] = form[:n, :n], vectors[:n, :n]
    return s.reshape(a.shape), z.reshape(a.shape)


def _no_selection(*eigenvalue: float) -> bool:
    """No eigenvalue is asked to come first: LAPACK wants the function, and does not call it."""
    return False


def check_stable(poles: Matrix, *, discrete: bool) -> None:
    """Raise :class:`UnstableSystemError` that names the worst eigenvalue of a batch ``(..., n)``."""
    size = np.abs(poles) if discrete else poles.real
    if np.all(size < (1.0 if discrete else 0.0)):
        return
    index = np.unravel_index(int(np.argmax(size)), size.shape)
    where = f"system {tuple(int(i) for i in index[:-1])}, " if size.ndim > 1 else ""
    where += f"eigenvalue {complex(poles[index]):.6g}"
    if discrete:
        raise UnstableSystemError(
            f"spectral radius {size[index]:.10g} ({where}) must be below 1; split it off with hsv.split_unstable"
        )
    raise UnstableSystemError(
        f"spectral abscissa {size[index]:.10g} ({where}) must be below 0; split it off with hsv.split_unstable, or pass a discrete system as one"
    )


def _sylvester(a: Matrix, b: Matrix, q: Matrix) -> Matrix:
    s, left = schur_form(a)
    t, right = schur_form(b)
    gap = np.abs(_diagonal(s)[..., :, None] + _diagonal(t)[..., None, :])
    check_regular(gap, _norm(a) + _norm(b), "a and -b must have no eigenvalue in common", "a x + x b = q")
    y = call_on_batch(_kernels.triangular_sylvester, s, t, product(product(adjoint(left), q), right))
    return real_if_all_are(product(product(left, y), adjoint(right)), a, b, q)


def _continuous_lyapunov(a: Matrix, q: Matrix) -> Matrix:
    a, d = _balanced(a)
    return _scaled(_balanced_continuous_lyapunov(a, q / (d * adjoint(d))), d)


def _scaled(x: Matrix, d: Matrix) -> Matrix:
    """The solution in the units of the caller, from that for ``d^-1 a d``: powers of two change no digit."""
    return x * (d * adjoint(d))


def _balanced_continuous_lyapunov(a: Matrix, q: Matrix) -> Matrix:
    s, z = schur_form(a)
    poles = _diagonal(s)
    gap = np.abs(poles[..., :, None] + poles.conj()[..., None, :])
    check_regular(gap, 2 * _norm(a), "no two eigenvalues of a may satisfy l_i + conj(l_j) = 0", "a x + x a^H = q")
    # s y + y s^H = z^H q z. With the order of its rows and columns turned round, s^H is upper triangular.
    upper = adjoint(s)[..., ::-1, ::-1]
    y = call_on_batch(_kernels.triangular_sylvester, s, upper, product(product(adjoint(z), q), z)[..., ::-1])
    return hermitian_where(q, real_if_all_are(product(product(z, y[..., ::-1]), adjoint(z)), a, q))


def _discrete_lyapunov(a: Matrix, q: Matrix) -> Matrix:
    a, d = _balanced(a)
    return _scaled(_balanced_discrete_lyapunov(a, q / (d * adjoint(d))), d)


def _balanced_discrete_lyapunov(a: Matrix, q: Matrix) -> Matrix:
    s, z = schur_form(a)
    poles = _diagonal(s)
    size = np.abs(poles)
    gap = np.abs(1.0 - poles[..., :, None] * poles.conj()[..., None, :])
    scale = 1.0 + _norm(a) * (size[..., :, None] + size[..., None, :])
    check_regular(gap, scale, "no two eigenvalues of a may satisfy l_i conj(l_j) = 1", "a x a^H - x + q = 0")
    y = call_on_batch(_kernels.triangular_stein, s, product(product(adjoint(z), q), z))
    return hermitian_where(q, real_if_all_are(product(product(z, y), adjoint(z)), a, q))


def _factored(a: Matrix, b: Matrix, *, discrete: bool) -> Matrix:
    a, scale = _balanced(a)
    kind, (s, z, _) = np.result_type(a, b), _stable_form(a, b, discrete=discrete)
    return (scale * product(z, _factor_in_schur_form(s, z, b / scale, discrete=discrete))).astype(kind, copy=False)


def _factored_pair(a: Matrix, b: Matrix, c: Matrix, *, discrete: bool) -> tuple[Matrix, ...]:
    a, scale = _balanced(a)
    kind, (s, z, margin) = np.result_type(a, b, c), _stable_form(a, b, c, discrete=discrete)
    # a^H = z s^H z^H, and s^H is upper triangular once the order of its rows and columns is turned round.
    reverse_s, reverse_z = adjoint(s)[..., ::-1, ::-1], z[..., ::-1]
    controllability = _factor_in_schur_form(s, z, b / scale, discrete=discrete)
    observability = _factor_in_schur_form(reverse_s, reverse_z, scale * adjoint(c), discrete=discrete)[..., ::-1, :]
    pair = (_graded(controllability), _graded(observability), scale * z, z / scale)
    return *(x.astype(kind, copy=False) for x in pair), _norm(a)[..., 0, 0] / margin


def _stable_form(a: Matrix, *others: Matrix, discrete: bool) -> tuple[Matrix, Matrix, Matrix]:
    """Return the real Schur form of a stable `a` if the other matrices are real as well, otherwise the complex one, and how far its poles are from the boundary."""
    is_real = not any(np.iscomplexobj(x) and np.any(x.imag) for x in (a, *others))
    s, z = _real_schur_form(_real_where_possible(a)) if is_real else schur_form(a)
    poles = _poles_of_form(s)
    check_stable(poles, discrete=discrete)
    return s, z, np.min(1.0 - np.abs(poles) if discrete else -poles.real, axis=-1)


def _poles_of_form(s: Matrix) -> Matrix:
    """Return the eigenvalues of a complex Schur form, or of a real one with standardized blocks ``[[a, b], [c, a]]``."""
    poles = _diagonal(s)
    if np.iscomplexobj(s):
        return poles
    lower, upper = (np.diagonal(s, offset, -2, -1) for offset in (-1, 1))
    if not np.any(lower):
        return poles
    frequency = np.where(lower != 0, np.sqrt(np.abs(lower)) * np.sqrt(np.abs(upper)), 0.0)
    conjugates = np.zeros(poles.shape)
    conjugates[..., :-1] += frequency
    conjugates[..., 1:] -= frequency
    return poles + 1j * conjugates


def _graded(factor: Matrix) -> Matrix:
    """Return a factor of the same Gramian with its largest columns first: an SVD of graded products finds small values better from that corner.

    Heat equation with 200 states: the first Hankel value that is wrong by 1 % becomes the 23rd instead of the 21st.
    """
    rows = np.swapaxes(factor, -1, -2)  # contiguous, as the kernels make it
    order = np.argsort(-np.linalg.norm(rows, axis=-1), axis=-1)
    place = np.indices(order.shape, sparse=True)[:-1]
    return np.swapaxes(rows[(*place, order)], -1, -2)


def _balanced(a: Matrix) -> tuple[Matrix, Matrix]:
    """Return ``d^-1 a d`` and the column ``d`` (..., n, 1) of powers of two that give rows and columns of each matrix like norms.

    No digit changes. Without it the Schur form has an error of ``eps |a|`` in coordinates that may be far too large for the smaller states: with states
    in units 1e8 apart a stable matrix looks unstable, and Hankel values lose all their digits.
    """
    n = a.shape[-1]
    flat = _real_where_possible(a).reshape(-1, n, n)
    balanced, scale = np.empty_like(flat), np.empty((len(flat), n, 1))
    gebal = scipy.linalg.lapack.zgebal if np.iscomplexobj(flat) else scipy.linalg.lapack.dgebal
    for k, matrix in enumerate(flat):
        balanced[k], _, _, scale[k, :, 0], _ = gebal(matrix, scale=1, permute=0)
    return balanced.reshape(a.shape), scale.reshape(*a.shape[:-1], 1)


def _factor_in_schur_form(s: Matrix, z: Matrix, b: Matrix, *, discrete: bool) -> Matrix:
    """Return upper triangular ``u`` such that ``z u`` is a factor of the Gramian."""
    n = s.shape[-1]
    if not np.iscomplexobj(s):
        b = b.real
    if b.shape[-1] > n:  # b b^H = r^H r
        b = adjoint(np.asarray(np.linalg.qr(adjoint(b), mode="r")))
    # A power of two changes no digit, and keeps the squares inside from overflow and underflow.
    exponent = np.frexp(np.max(np.abs(b), axis=(-1, -2), keepdims=True, initial=0.0))[1]
    exponent = np.minimum(np.maximum(exponent, -1000), 1000)
    if np.iscomplexobj(s):
        kernel = _kernels.discrete_lyapunov_factor if discrete else _kernels.continuous_lyapunov_factor
    else:
        kernel = _kernels.real_discrete_lyapunov_factor if discrete else _kernels.real_continuous_lyapunov_factor
    return call_on_batch(kernel, s, product(adjoint(z), b * np.ldexp(1.0, -exponent))) * np.ldexp(1.0, exponent)


def call_on_batch(kernel: Callable[..., Matrix], *matrices: Matrix) -> Matrix:
    """Broadcast the batch axes, hand them to the kernel as one, real only if all are, and give the result its axes back."""
    kind = np.result_type(*matrices)
    shapes = {m.shape[:-2] for m in matrices}
    batch = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    size = math.prod(batch)
    x = kernel(*(np.ascontiguousarray(_broadcast(m, batch).reshape(size, *m.shape[-2:]), dtype=kind) for m in matrices))
    return x.reshape(*batch, *x.shape[1:]) if batch else x[0]


def _broadcast(x: Matrix, batch: tuple[int, ...]) -> Matrix:
    return x if x.shape[:-2] == batch else np.broadcast_to(x, (*batch, *x.shape[-2:]))


def check_regular(gap: Matrix, scale: Matrix, rule: str, equation: str) -> None:
    """Raise :class:`IllConditionedError` where a gap ``(..., n, m)`` between eigenvalues is below rounding, relative to `scale`."""
    relative = gap / np.where(scale > 0, scale, 1.0)
    if relative.size == 0 or relative.min() > _SINGULAR:
        return
    index = np.unravel_index(int(np.argmin(relative)), relative.shape)
    where = f" (system {tuple(int(i) for i in index[:-2])})" if len(index) > 2 else ""
    raise IllConditionedError(
        f"{rule}, found a pair within {gap[index]:.1e} of it{where}: {equation} is singular to working precision and has no unique solution; "
        "shift or scale the eigenvalues, or split the system"
    )


def _checked(name: str, a: Array, q: Array, *, any_width: bool = False) -> tuple[Array, Array, Array, Array]:
    """Return ``a`` and the right-hand side as arrays of one kind, and both in double precision."""
    a, q = as_arrays(("a", name), (a, q))
    require_square("a", a)
    check_right_hand_side(name, q, a.shape[-1], None if any_width else a.shape[-1], a)
    return a, q, widen(_finite("a", a)), widen(_finite(name, q))


def _off_the_host(x: Array) -> bool:
    return "cpu" not in str(device(x)).lower()


def check_right_hand_side(name: str, q: Array, rows: int, columns: int | None, *coefficients: Array) -> None:
    """Raise :class:`ShapeError` unless `q` has that many rows and columns (``None``: any number) and all batch axes fit together."""
    width = "m" if columns is None else str(columns)
    if q.ndim < 2 or q.shape[-2] != rows or (columns is not None and q.shape[-1] != columns):
        raise ShapeError(
            f"{name} must have shape (..., {rows}, {width}) to fit the other matrices, got {tuple(q.shape)}"
        )
    shapes = [tuple(x.shape[:-2]) for x in (*coefficients, q)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ShapeError(
            f"the batch axes must broadcast against each other, got {', '.join(map(str, shapes))}"
        ) from error


def _finite(name: str, array: Array) -> Array:
    require_finite(name, array)
    return array


def _real_where_possible(x: Matrix) -> Matrix:
    return np.ascontiguousarray(x.real) if np.iscomplexobj(x) and not np.any(x.imag) else x


def real_if_all_are(x: Matrix, *inputs: Matrix) -> Matrix:
    return x if any(np.iscomplexobj(i) for i in inputs) else np.ascontiguousarray(x.real)


def hermitian_where(q: Matrix, x: Matrix) -> Matrix:
    """Return `x`, made exactly Hermitian in those systems of the batch whose `q` is."""
    hermitian = np.all(q == adjoint(q), axis=(-1, -2), keepdims=True)
    return np.where(hermitian, 0.5 * (x + adjoint(x)), x)


def adjoint(x: Matrix) -> Matrix:
    return np.swapaxes(x, -1, -2).conj()


def _diagonal(x: Matrix) -> Matrix:
    return np.diagonal(x, axis1=-2, axis2=-1)


def _norm(x: Matrix) -> Matrix:
    return np.linalg.norm(x, axis=(-2, -1), keepdims=True)
