r"""Descriptor systems :math:`E \dot x = A x + B u` with an invertible ``E``, and the Lyapunov equations that belong to them.

The equations are solved on the pencil itself, through its generalised Schur form (QZ): backward stable in ``a`` and ``e``, where
:math:`e^{-1} a` would carry the condition of ``e`` into every digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg

from hsv import _kernels
from hsv._array import (
    Array,
    as_arrays,
    conjugate_transpose,
    namespace,
    on_host,
    real,
    require_finite,
    require_square,
    round_to,
    to_host,
    widen,
)
from hsv._errors import IllConditionedError, ShapeError
from hsv._lyapunov import (
    Matrix,
    adjoint,
    call_on_batch,
    check_regular,
    check_right_hand_side,
    check_stable,
    hermitian_where,
    real_if_all_are,
)
from hsv._systems import StateSpace

_EPS = float(np.finfo(np.float64).eps)
_SCALING_SWEEPS = 4  # over rows and columns; matrices in bad units are within a factor of four after two


def solve_generalized_continuous_lyapunov(a: Array, e: Array, q: Array) -> Array:
    r"""Solve the generalised continuous Lyapunov equation

    .. math:: a x e^H + e x a^H = q

    The sign of ``q`` is that of :func:`hsv.solve_continuous_lyapunov`, which this is for ``e = I``: the controllability Gramian of
    :math:`E \dot x = A x + B u` has :math:`q = -B B^H`.

    Parameters
    ----------
    a, e, q : array
        Shape ``(..., n, n)``, real or complex, also mixed. Leading axes are a batch and broadcast against each other. The pencil need not
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
        ``e`` is singular, or two eigenvalues of the pencil :math:`a - \lambda e` satisfy ``l_i + conj(l_j) = 0`` (to working precision):
        there is no solution, or no unique one.

    Notes
    -----
    Penzl's generalisation [1]_ of Bartels and Stewart's method, on a generalised Schur form: ``O(n^3)``, in double
    precision on the host, one pencil of a batch after the other. The residual is a small multiple of ``eps |a| |e| |x|`` whatever the condition of ``e``.

    References
    ----------
    .. [1] Penzl, "Numerical solution of generalized Lyapunov equations", Adv. Comput. Math. 8 (1998).

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_generalized_continuous_lyapunov([[-2.0]], [[4.0]], [[-8.0]])   # -8 x - 8 x = -8
    array([[0.5]])
    """
    return _solve(a, e, q, discrete=False)


def solve_generalized_discrete_lyapunov(a: Array, e: Array, q: Array) -> Array:
    r"""Solve the generalised discrete Lyapunov (Stein) equation

    .. math:: a x a^H - e x e^H + q = 0

    The sign of ``q`` is that of :func:`hsv.solve_discrete_lyapunov`, which this is for ``e = I``: the controllability Gramian of
    :math:`E x_{k+1} = A x_k + B u_k` has :math:`q = B B^H`. Everything else as in :func:`solve_generalized_continuous_lyapunov`.

    Raises
    ------
    IllConditionedError
        Two eigenvalues of the pencil satisfy ``l_i conj(l_j) = 1`` (to working precision). A singular ``e`` is no obstacle here, as long as
        ``a`` is regular.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_generalized_discrete_lyapunov([[1.0]], [[2.0]], [[12.0]])      # x - 4 x + 12 = 0
    array([[4.]])
    """
    return _solve(a, e, q, discrete=True)


def solve_generalized_lyapunov_factored(a: Array, e: Array, b: Array, *, discrete: bool) -> Array:
    r"""Return a factor ``L`` of the solution :math:`P = L L^H` of a stable generalised Lyapunov equation, without ever forming ``P``:

    .. math:: a P a^H - e P e^H + b b^H = 0 \quad\text{(discrete)},\qquad a P e^H + e P a^H + b b^H = 0 \quad\text{(continuous)}

    This is :func:`solve_lyapunov_factored` for :math:`E x_{k+1} = A x_k + B u_k` and :math:`E \dot x = A x + B u`.

    Parameters
    ----------
    a, e : array
        Shape ``(..., n, n)``, real or complex, also mixed. The eigenvalues of :math:`a - \lambda e` are stable, and ``e`` is invertible.
    b : array
        Shape ``(..., n, m)``, any ``m``. Leading axes are a batch and broadcast against each other.
    discrete : bool
        Which of the two equations.

    Returns
    -------
    array
        ``L``, shape ``(..., n, n)``, array type, device and precision of the inputs; real if all of them are. A square root of ``P`` is free
        up to a unitary factor from the right; no particular one is promised.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    IllConditionedError
        ``e`` is singular to working precision.
    UnstableSystemError
        An eigenvalue of the pencil has modulus >= 1 (discrete) or real part >= 0 (continuous).

    See Also
    --------
    solve_generalized_continuous_lyapunov, solve_generalized_discrete_lyapunov : for pencils that need not be stable.

    Notes
    -----
    Penzl's generalisation [1]_ of Hammarling's method, on the generalised Schur form of the pencil (QZ): neither ``e`` nor ``P`` is ever formed or
    inverted. ``O(n^3)``, in double precision on the host, one pencil of a batch after the other, after rows and columns of ``a`` and ``e`` are scaled by powers of two, so that
    units of equations and states cost no digits. The residual is a small multiple of ``eps |a| |e| |P|`` whatever the condition of ``e``, and small directions of ``P`` survive as in
    :func:`solve_lyapunov_factored`.

    References
    ----------
    .. [1] Penzl, "Numerical solution of generalized Lyapunov equations", Adv. Comput. Math. 8 (1998), section 5.

    Examples
    --------
    >>> import hsv
    >>> hsv.solve_generalized_lyapunov_factored([[-2.0]], [[4.0]], [[12.0]], discrete=False)     # -16 P + 144 = 0
    array([[3.]])
    >>> hsv.solve_generalized_lyapunov_factored([[3.0]], [[5.0]], [[8.0]], discrete=True)        # 9 P - 25 P + 64 = 0
    array([[2.]])
    """
    a, e, b = as_arrays("aeb", (a, e, b))
    require_square("a", a)
    n = a.shape[-1]
    check_right_hand_side("e", e, n, n, a)
    check_right_hand_side("b", b, n, None, a, e)
    for name, array in zip("aeb", (a, e, b), strict=True):
        require_finite(name, array)
    factor = on_host(
        lambda a, e, b: _factored(a, e, b, discrete=discrete),
        *(widen(array) for array in (a, e, b)),
        reason="the generalised Schur form",
    )
    return round_to(factor, b)


def from_descriptor(E: Any, A: Any, B: Any, C: Any, D: Any = None, *, dt: float | bool) -> StateSpace:
    r"""Return the standard system of a descriptor system with an invertible ``E``.

    .. math:: E \dot x = A x + B u,\quad y = C x + D u \qquad\text{or}\qquad E x_{k+1} = A x_k + B u_k,\quad y_k = C x_k + D u_k

    The transfer function is the same, and with it poles, Hankel singular values and reductions. The state is

    * :math:`L^H x`, with :math:`E = L L^H`, where every ``A`` of the batch is Hermitian and every ``E`` Hermitian and positive definite
      (diffusion by finite elements, with a mass matrix): ``A`` becomes :math:`L^{-1} A L^{-H}`, exactly Hermitian again;
    * ``x`` itself otherwise: ``A`` becomes :math:`E^{-1} A`, by an LU factorisation with pivoting.

    Parameters
    ----------
    E, A : array
        Shape ``(..., n, n)``. Leading axes are a batch of independent systems and broadcast against each other.
    B, C, D, dt
        As for :class:`hsv.StateSpace`.

    Returns
    -------
    StateSpace
        Array type, device and precision of the inputs.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    IllConditionedError
        ``E`` is singular to working precision: algebraic equations among the rows, which have to be eliminated first.

    See Also
    --------
    solve_generalized_continuous_lyapunov : Gramians in the coordinates of the descriptor system, without the loss of digits below.

    Notes
    -----
    ``O(n^3)``, in double precision, on the device of the arrays. About ``log10(cond(E))`` digits of the matrices are lost, where ``cond``
    is that after its rows are scaled to the same size (rows and columns in the first case): equations in different units cost nothing, and
    mass matrices of finite elements on a line have a ``cond`` below 3.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.from_descriptor([[2.0]], [[-6.0]], [[4.0]], [[1.0]], dt=0)     # dx/dt = -3 x + 2 u
    >>> sys.poles().real, hsv.hankel_singular_values(sys).round(12)              # 2 / (2 * 3)
    (array([-3.]), array([0.33333333]))
    """
    E, A, B, C, D = as_arrays("EABCD", (E, A, B, C, D))
    require_square("E", E)
    require_square("A", A)
    if E.shape[-1] != A.shape[-1]:
        raise ShapeError(f"E and A must have the same size, got {tuple(E.shape)} and {tuple(A.shape)}")
    sys = StateSpace(A, B, C, D, dt=dt)  # checks everything else
    require_finite("E", E)
    check_right_hand_side("A", sys.A, E.shape[-1], E.shape[-1], E)
    wide = [widen(x) for x in (E, sys.A, sys.B, sys.C)]
    new = (_by_cholesky if _is_symmetric(*wide[:2]) else _by_lu)(*wide)
    A, B, C = (round_to(x, sys.B) for x in new)
    return StateSpace(A, B, C, sys.D, dt=dt)


def _solve(a: Array, e: Array, q: Array, *, discrete: bool) -> Array:
    a, e, q = as_arrays("aeq", (a, e, q))
    require_square("a", a)
    n = a.shape[-1]
    check_right_hand_side("e", e, n, n, a)
    check_right_hand_side("q", q, n, n, a, e)
    for name, array in zip("aeq", (a, e, q), strict=True):
        require_finite(name, array)
    x = on_host(
        lambda a, e, q: _by_schur_form(a, e, q, discrete=discrete),
        *(widen(array) for array in (a, e, q)),
        reason="the generalised Schur form",
    )
    return round_to(x, q)


def _by_schur_form(a: Matrix, e: Matrix, q: Matrix, *, discrete: bool) -> Matrix:
    s, t, left, right = _generalized_schur_form(a, e)
    s_poles, t_poles = (np.diagonal(x, axis1=-2, axis2=-1) for x in (s, t))
    s_sizes, t_sizes = (_pairwise_sum(np.abs(x)) for x in (s_poles, t_poles))
    a_norm, e_norm = (np.linalg.norm(x, axis=(-2, -1), keepdims=True) for x in (a, e))
    if discrete:
        gap = _pairwise(t_poles, t_poles) - _pairwise(s_poles, s_poles)
        rule = "no two eigenvalues of the pencil a - l e may satisfy l_i conj(l_j) = 1"
        check_regular(np.abs(gap), a_norm * s_sizes + e_norm * t_sizes, rule, "a x a^H - e x e^H + q = 0")
        coefficients, right_hand_side = (s, s, t, -t), -q
    else:
        gap = _pairwise(s_poles, t_poles) + _pairwise(t_poles, s_poles)
        rule = "e must be invertible, and no two eigenvalues of the pencil a - l e may satisfy l_i + conj(l_j) = 0"
        check_regular(np.abs(gap), a_norm * t_sizes + e_norm * s_sizes, rule, "a x e^H + e x a^H = q")
        coefficients, right_hand_side = (s, t, t, s), q
    y = call_on_batch(_kernels.triangular_pencil, *coefficients, adjoint(left) @ right_hand_side @ left)
    return hermitian_where(q, real_if_all_are(right @ y @ adjoint(right), a, e, q))


def _factored(a: Matrix, e: Matrix, b: Matrix, *, discrete: bool) -> Matrix:
    n = a.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], e.shape[:-2], b.shape[:-2])
    is_real = not any(np.iscomplexobj(x) for x in (a, e, b))
    if b.shape[-1] > n:  # b b^H = r^H r
        b = adjoint(np.asarray(np.linalg.qr(adjoint(b), mode="r")))
    rows, columns = _units(a, e)
    a, e, b = rows * a * columns, rows * e * columns, rows * b
    # A power of two changes no digit, and keeps squares inside from overflow and underflow.
    exponent = np.clip(np.frexp(np.max(np.abs(b), axis=(-1, -2), keepdims=True, initial=0.0))[1], -1000, 1000)
    s, t, left, right = _generalized_schur_form(a, e)
    _check_stable_pencil(s, t, np.linalg.norm(e, axis=(-2, -1)), discrete=discrete)
    arguments = s, t, adjoint(left) @ (b * np.ldexp(1.0, -exponent))
    flat = (np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in arguments)
    step = _discrete_step if discrete else _continuous_step
    u = np.array([_triangular_factor(*one, step=step) for one in zip(*flat, strict=True)], np.complex128)
    factor = np.swapaxes(columns, -1, -2) * (right @ u.reshape(*batch, n, n)) * np.ldexp(1.0, exponent)
    if not is_real:
        return factor
    both = np.concatenate([factor.real, factor.imag], axis=-1)  # P = Re L Re L^T + Im L Im L^T
    return np.swapaxes(np.asarray(np.linalg.qr(np.swapaxes(both, -1, -2), mode="r")), -1, -2)


def _units(a: Matrix, e: Matrix) -> tuple[Matrix, Matrix]:
    """Powers of two ``(..., n, 1)`` and ``(..., 1, n)`` that give the rows and the columns of ``|a| + |e|`` sizes near one."""
    size = np.abs(a) + np.abs(e)
    rows, columns = np.ones((*size.shape[:-1], 1)), np.ones((*size.shape[:-2], 1, size.shape[-1]))
    for _ in range(_SCALING_SWEEPS):
        rows = rows * _to_one(np.max(rows * size * columns, axis=-1, keepdims=True))
        columns = columns * _to_one(np.max(rows * size * columns, axis=-2, keepdims=True))
    return rows, columns


def _to_one(size: Matrix) -> Matrix:
    exponent = np.where(size > 0, np.frexp(size)[1], 0)
    return np.ldexp(1.0, -exponent)


def _check_stable_pencil(s: Matrix, t: Matrix, size: Matrix, *, discrete: bool) -> None:
    s_poles, t_poles = (np.diagonal(x, axis1=-2, axis2=-1) for x in (s, t))
    relative = np.abs(t_poles) / np.where(size > 0, size, 1.0)[..., None]
    if relative.size and relative.min() <= s.shape[-1] * _EPS:
        index = np.unravel_index(int(np.argmin(relative)), relative.shape)
        where = f" (system {tuple(int(i) for i in index[:-1])})" if len(index) > 1 else ""
        raise IllConditionedError(
            f"e must be invertible, found {relative[index]:.1e} of its norm on the diagonal of its generalised Schur form{where}: "
            "the pencil has an eigenvalue at infinity to working precision; eliminate the algebraic equations first"
        )
    check_stable(s_poles / t_poles, discrete=discrete)


_Change: TypeAlias = Callable[[Matrix, Matrix], Matrix]
_Step: TypeAlias = Callable[[complex, complex, Matrix], tuple[float, complex, complex, _Change]]


def _triangular_factor(s: Matrix, t: Matrix, b: Matrix, *, step: _Step) -> Matrix:
    """Upper triangular ``U`` with ``s U U^H t^H + t U U^H s^H + b b^H = 0``, or ``s U U^H s^H - t U U^H t^H + b b^H = 0``, from its last column to its first.

    With the last column ``(u, v)`` of ``U``, ``p = s_1 u + s_n v`` and ``q = t_1 u + t_n v``, the equation's last column is a triangular system for ``u``, and the rest of it is the same
    equation, one size smaller, with ``b`` changed by a rank-one term.
    """
    U, b = np.zeros_like(s), b.copy()
    for j in reversed(range(len(s))):
        row = b[j]
        if not np.any(row):
            continue  # the last row of U is zero, and b stays what it is
        v, of_s, of_t, change = step(s[j, j], t[j, j], row)
        U[j, j] = v
        if j == 0:
            break
        right = -(of_s * s[:j, j] + of_t * t[:j, j]) * v - b[:j] @ row.conj() / v
        # LAPACK directly: SciPy's checks take three times as long as a small system.
        u, _ = scipy.linalg.lapack.ztrtrs(of_s * s[:j, :j] + of_t * t[:j, :j], right)
        U[:j, j] = u
        b[:j] -= change(s[:j, :j] @ u + s[:j, j] * v, t[:j, :j] @ u + t[:j, j] * v)
    return U


def _continuous_step(alpha: complex, beta: complex, row: Matrix) -> tuple[float, complex, complex, _Change]:
    v = float(np.linalg.norm(row)) / np.sqrt(-2.0 * (alpha * np.conj(beta)).real)
    if abs(beta) >= abs(alpha):  # p q^H + q p^H = -b b^H + (b - q w)(b - q w)^H, and with p and q interchanged
        return v, np.conj(beta), np.conj(alpha), lambda p, q: np.outer(q, row / (beta * v))
    return v, np.conj(beta), np.conj(alpha), lambda p, q: np.outer(p, row / (alpha * v))


def _discrete_step(alpha: complex, beta: complex, row: Matrix) -> tuple[float, complex, complex, _Change]:
    radius = abs(alpha) / abs(beta)
    phase = np.conj(alpha / beta) / radius if radius > 0 else 1.0
    v = float(np.linalg.norm(row)) / (abs(beta) * np.sqrt((1.0 - radius) * (1.0 + radius)))
    # The Householder reflection that maps [row^H / v; conj(alpha)] / conj(beta) to a multiple of the last unit vector, applied to [b, p]; its last column is q.
    weight = row / (v * beta * (1.0 + radius))
    return v, np.conj(alpha), -np.conj(beta), lambda p, q: np.outer(q + phase * p, weight)


def _generalized_schur_form(a: Matrix, e: Matrix) -> tuple[Matrix, ...]:
    """Return ``s, t, left, right`` with ``a = left s right^H`` and ``e = left t right^H``, ``s`` and ``t`` upper triangular."""
    shape = np.broadcast_shapes(a.shape, e.shape)
    pairs = (np.broadcast_to(x, shape).reshape(-1, *shape[-2:]) for x in (a, e))
    parts = np.array([_triangular_pair(*pair) for pair in zip(*pairs, strict=True)], dtype=np.complex128)
    return tuple(parts.reshape(-1, 4, *shape[-2:])[:, k].reshape(shape) for k in range(4))


def _triangular_pair(a: Matrix, e: Matrix) -> tuple[Matrix, ...]:
    """One pencil; a real one by the real QZ algorithm, a quarter of the work, whose blocks of two are made triangular afterwards."""
    if np.iscomplexobj(a):
        return tuple(scipy.linalg.qz(a, e, output="complex", check_finite=False))
    form = scipy.linalg.qz(a, e, output="real", check_finite=False)
    starts = np.flatnonzero(np.diagonal(form[0], -1))
    s, t, left, right = (x.astype(np.complex128) for x in form)
    for j in starts:
        pair = slice(j, j + 2)
        rows, columns = scipy.linalg.qz(s[pair, pair], t[pair, pair], output="complex", check_finite=False)[2:]
        for x in (s, t):
            x[pair] = adjoint(rows) @ x[pair]
            x[:, pair] = x[:, pair] @ columns
        left[:, pair] = left[:, pair] @ rows
        right[:, pair] = right[:, pair] @ columns
    return s, t, left, right


def _pairwise(x: Matrix, y: Matrix) -> Matrix:
    return x[..., :, None] * y.conj()[..., None, :]


def _pairwise_sum(x: Matrix) -> Matrix:
    return x[..., :, None] + x[..., None, :]


def _is_symmetric(E: Array, A: Array) -> bool:
    """Whether all matrices are Hermitian, and every `E` safely positive definite after its diagonal is scaled to ones."""
    xp = namespace(E)
    diagonal = real(xp.linalg.diagonal(E))
    if not all(bool(xp.all(conjugate_transpose(x) == x)) for x in (E, A)) or not bool(xp.all(diagonal > 0)):
        return False
    root = xp.astype(xp.sqrt(diagonal), E.dtype)
    eigenvalues = xp.linalg.eigvalsh(E / root[..., :, None] / root[..., None, :])
    return bool(xp.all(eigenvalues > E.shape[-1] * _EPS))


def _by_cholesky(E: Array, A: Array, B: Array, C: Array) -> tuple[Array, Array, Array]:
    xp = namespace(E)
    L = xp.linalg.cholesky(E)
    new = conjugate_transpose(xp.linalg.solve(L, conjugate_transpose(xp.linalg.solve(L, A))))
    return (
        0.5 * (new + conjugate_transpose(new)),
        xp.linalg.solve(L, B),
        conjugate_transpose(xp.linalg.solve(L, conjugate_transpose(C))),
    )


def _by_lu(E: Array, A: Array, B: Array, C: Array) -> tuple[Array, Array, Array]:
    xp = namespace(E)
    rows = xp.max(xp.abs(E), axis=-1, keepdims=True)
    rows = xp.astype(xp.where(rows > 0, rows, xp.ones_like(rows)), E.dtype)
    E = E / rows
    singular = xp.linalg.svdvals(E)
    if not bool(xp.all(singular[..., -1] > E.shape[-1] * _EPS * singular[..., 0])):
        _raise_singular(to_host(singular))
    return xp.linalg.solve(E, A / rows), xp.linalg.solve(E, B / rows), C


def _raise_singular(singular: np.ndarray) -> None:
    ratio = singular[..., -1] / np.where(singular[..., 0] > 0, singular[..., 0], 1.0)
    index = np.unravel_index(int(np.argmin(ratio)), ratio.shape)
    where = f" (system {tuple(int(i) for i in index)})" if index else ""
    raise IllConditionedError(
        f"E must be invertible, found 1 / cond(E) = {ratio[index]:.1e}{where}; rows without a derivative are algebraic equations: "
        "solve them for the states that they determine, and put these into the other rows"
    )
