r"""Gramians over every horizon, and their factors.

A diagonal system has Gramians in closed form: they are Cauchy-like matrices :math:`P_{ij} = g_i g_j^H / d_{ij}` with
:math:`d_{ij} = 1 - \lambda_i\bar\lambda_j` or :math:`-(\lambda_i + \bar\lambda_j)`, numerically singular long before they are exactly so.
Their factors come from :mod:`hsv._cauchy`.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from hsv._array import (
    Array,
    conjugate,
    conjugate_transpose,
    eye,
    namespace,
    on_host,
    round_to,
    to_host,
    widen,
    zeros,
)
from hsv._cauchy import cauchy_factor, denominators, expm1
from hsv._errors import DtypeError, HsvError, ShapeError, UnstableSystemError
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_dense, require_system, stability_margin


def controllability_gramian(sys: LinearSystem, horizon: float | None = None) -> Array:
    r"""Return the controllability Gramian :math:`P`.

    .. math:: P = \sum_{k=0}^{\infty} A^k B B^H (A^H)^k \qquad\text{or}\qquad P = \int_0^\infty e^{At} B B^H e^{A^H t}\,dt

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
    horizon : int or float, optional
        Sum over that many steps (discrete time, an int), integrate over that many seconds (continuous time) instead of for ever; the system may then
        be unstable.

    Returns
    -------
    array
        Shape ``(..., n, n)``, Hermitian, positive semidefinite; array type, device and precision of the input.

    Raises
    ------
    UnstableSystemError
        An infinite horizon and a pole on or outside the stability boundary.

    Notes
    -----
    Diagonal systems: closed form, every entry to nearly full relative accuracy, ``O(n^2 m)``. Dense systems: from the factor,
    ``O(n^3)``; a finite horizon by doubling, in continuous time from Van Loan's exponential over a piece so short that ``|A| t < 1/2``. A Gramian holds half the digits of its factor: for anything but looking at it use :func:`controllability_factor`.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5], [[3.0]], [[1.0]], dt=True)
    >>> hsv.controllability_gramian(sys)                                     # 9 / (1 - 0.25)
    array([[12.]])
    >>> hsv.controllability_gramian(sys, horizon=2)                          # 9 (1 + 0.25)
    array([[11.25]])
    """
    require_system(sys)
    if horizon is not None:
        check_horizon(sys, horizon)
        return _finite_gramian(sys, int(horizon)) if sys.is_discrete else _finite_integral(sys, float(horizon))
    if isinstance(sys, DiagonalStateSpace):
        require_stable(sys)
        B = widen(sys.B)
        return round_to((B @ conjugate_transpose(B)) / denominators(sys), sys.B)
    L = widen(controllability_factor(sys))
    return round_to(L @ conjugate_transpose(L), sys.B)


def observability_gramian(sys: LinearSystem, horizon: float | None = None) -> Array:
    r"""Return the observability Gramian :math:`Q`.

    .. math:: Q = \sum_{k=0}^{\infty} (A^H)^k C^H C A^k \qquad\text{or}\qquad Q = \int_0^\infty e^{A^H t} C^H C e^{At}\,dt

    Everything else as in :func:`controllability_gramian`, whose dual it is.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5], [[1.0]], [[3.0]], dt=True)
    >>> hsv.observability_gramian(sys)
    array([[12.]])
    """
    require_system(sys)
    return controllability_gramian(dual(sys), horizon)


def controllability_factor(sys: LinearSystem) -> Array:
    r"""Return :math:`L` with :math:`P = L L^H`, without ever forming :math:`P`.

    Returns
    -------
    array
        Shape ``(..., n, n)``; array type, device and precision of the input. For a diagonal system the columns are those of a pivoted
        triangular factor, largest first; for a dense one ``L`` is a square root in the original coordinates.

    Raises
    ------
    UnstableSystemError

    Notes
    -----
    Diagonal systems: elimination with diagonal pivoting on the generators of the Cauchy-like Gramian. With :math:`k` the pivot, the
    unitary rotation that leaves only the first entry :math:`\gamma` of row :math:`g_k` makes the column
    :math:`g_{i1}\,\sqrt{d_{kk}}/d_{ik}` of :math:`L`, and the Schur complement has the same generators but for
    :math:`g_{i1} \leftarrow g_{i1}\,(\lambda_i - \lambda_k)/d_{ik}`. For one input these are products alone, so every entry has high
    relative accuracy; for several each row has it. ``O(n^2 m)``, batched, on the device of the arrays.

    Dense systems: Hammarling's method on a Schur form, ``O(n^3)``; arrays on another device than the host stay there, by
    :func:`hsv.solve_lyapunov_factored_by_doubling`.

    References
    ----------
    Demmel, "Accurate singular value decompositions of structured matrices", SIAM J. Matrix Anal. Appl. 21 (1999). Kailath and Sayed,
    "Displacement structure: theory and applications", SIAM Review 37 (1995), section 5. Hammarling, "Numerical solution of the
    stable, non-negative definite Lyapunov equation", IMA J. Numer. Anal. 2 (1982).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.6], [[4.0]], [[1.0]], dt=True)
    >>> hsv.controllability_factor(sys)                                      # sqrt(16 / (1 - 0.36))
    array([[5.]])
    """
    require_system(sys)
    return round_to(factor(sys), sys.B)


def observability_factor(sys: LinearSystem) -> Array:
    r"""Return :math:`L` with :math:`Q = L L^H`, without ever forming :math:`Q`; the dual of :func:`controllability_factor`.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.6], [[1.0]], [[4.0]], dt=True)
    >>> hsv.observability_factor(sys)
    array([[5.]])
    """
    require_system(sys)
    return controllability_factor(dual(sys))


def cross_gramian(sys: LinearSystem) -> Array:
    r"""Return the cross Gramian :math:`X` of a system with as many inputs as outputs.

    .. math:: X = \sum_{k=0}^{\infty} A^k B C A^k \qquad\text{or}\qquad X = \int_0^\infty e^{At} B C e^{At}\,dt

    It solves :math:`A X A - X + B C = 0` or :math:`A X + X A + B C = 0`. Where the system is symmetric (every system with one input and
    one output is), :math:`X^2 = P Q`, and the moduli of its eigenvalues are the Hankel singular values; elsewhere it has no such meaning.

    Returns
    -------
    array
        Shape ``(..., n, n)``, not Hermitian in general; array type, device and precision of the input.

    Raises
    ------
    UnstableSystemError
    ShapeError
        The system has not as many inputs as outputs.

    Notes
    -----
    No conjugate: neither of ``A`` nor of ``C``. Diagonal systems: closed form, ``O(n^2 m)``. Dense ones: a Sylvester equation, ``O(n^3)``, on the host; discrete
    ones after a bilinear map.

    References
    ----------
    Fernando and Nicholson, "On the structure of balanced and other principal representations of SISO systems", IEEE Trans. Automat.
    Control 28 (1983).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5], [[3.0]], [[-1.0]], dt=True)
    >>> hsv.cross_gramian(sys)                                               # -3 / (1 - 0.25)
    array([[-4.]])
    """
    require_system(sys)
    if sys.n_inputs != sys.n_outputs:
        raise ShapeError(
            f"a cross Gramian needs as many inputs as outputs, got {sys.n_inputs} and {sys.n_outputs}; use both Gramians instead"
        )
    require_stable(sys)
    product = widen(sys.B) @ widen(sys.C)
    if isinstance(sys, DiagonalStateSpace):
        # conj(l_j) in place of l_j makes the denominators of a Gramian those of the cross Gramian.
        return round_to(product / denominators(sys, conjugated=False), sys.B)
    from hsv._lyapunov import check_stable, solve_sylvester  # deferred: loads the compiled kernels

    sys = require_dense(sys)
    A = widen(sys.A)
    check_stable(to_host(sys.poles()), discrete=sys.is_discrete)
    if sys.is_discrete:
        xp = namespace(A)
        resolvent = xp.linalg.inv(A + eye(sys.n_states, A))
        A, product = resolvent @ (A - eye(sys.n_states, A)), 2.0 * resolvent @ product @ resolvent
    return round_to(solve_sylvester(A, A, -product), sys.B)


def factor(sys: LinearSystem) -> Array:
    """:func:`controllability_factor` in double precision, as the rest of the library uses it."""
    require_stable(sys)
    if isinstance(sys, DiagonalStateSpace):
        return cauchy_factor(sys)
    from hsv._lyapunov import solve_lyapunov_factored  # deferred: loads the compiled kernels

    sys = require_dense(sys)
    return solve_lyapunov_factored(widen(sys.A), widen(sys.B), discrete=sys.is_discrete)


def dual(sys: LinearSystem) -> LinearSystem:
    """Return the system ``(A^H, C^H, B^H, D^H)``: its controllability Gramian is the observability Gramian of `sys`."""
    B, C, D = conjugate_transpose(sys.C), conjugate_transpose(sys.B), conjugate_transpose(sys.D)
    if isinstance(sys, DiagonalStateSpace):
        log_poles = None if sys.log_poles is None else conjugate(sys.log_poles)
        return sys._rebuild(conjugate(sys.poles()), log_poles, B, C, D)
    sys = require_dense(sys)
    return StateSpace(conjugate_transpose(sys.A), B, C, D, dt=sys.dt)


def require_range(sys: LinearSystem) -> None:
    """Raise unless squares of the largest entries of ``B`` and of ``C`` are normal numbers, or a map is zero: elimination chooses its pivots by them."""
    for name, X in (("B", sys.B), ("C", sys.C)):
        xp = namespace(X)
        largest = widen(xp.max(xp.max(xp.abs(X), axis=-1), axis=-1))
        wrong = ((largest < 1e-150) & (largest > 0)) | (largest > 1e150)
        if bool(xp.any(wrong)):
            found = float(to_host(largest).reshape(-1)[int(np.argmax(to_host(wrong)))])
            raise HsvError(
                f"the largest entry of {name} must be zero or have a size in [1e-150, 1e150], found {found:.3g}; choose other units for the "
                f"{'inputs' if name == 'B' else 'outputs'}"
            )


def require_stable(sys: LinearSystem) -> None:
    """Raise :class:`UnstableSystemError` that names the worst pole; dense systems are left to the solver, which sees the Schur form."""
    if not isinstance(sys, DiagonalStateSpace):
        return
    xp = namespace(sys.B)
    margin = stability_margin(sys)
    if bool(xp.all(margin > 0)):
        return
    host = to_host(margin)
    index = np.unravel_index(int(np.argmin(host)), host.shape)
    system = f"system {tuple(int(i) for i in index[:-1])}, " if len(index) > 1 else ""
    where = f"({system}state {int(index[-1])})"
    if sys.is_discrete:
        raise UnstableSystemError(
            f"spectral radius {1 - host[index]:.10g} {where} must be below 1; split it off with hsv.split_unstable"
        )
    raise UnstableSystemError(
        f"spectral abscissa {-host[index]:.10g} {where} must be below 0; split it off with hsv.split_unstable"
    )


def _finite_gramian(sys: LinearSystem, horizon: int) -> Array:
    """Sum of `horizon` terms by doubling: ``P_{j+k} = P_j + A^j P_k A^{jH}``; only sums of positive semidefinite terms."""
    diagonal = isinstance(sys, DiagonalStateSpace)
    power = widen(sys.poles()[..., :, None] if isinstance(sys, DiagonalStateSpace) else sys.A)  # type: ignore[attr-defined]
    B = widen(sys.B)

    def advance(by: Array, P: Array) -> Array:
        return by * P * conjugate_transpose(by) if diagonal else by @ P @ conjugate_transpose(by)

    block = B @ conjugate_transpose(B)  # the sum of the first 2^j terms
    total, shift = zeros(tuple(block.shape), block), None  # the sum so far, and A to the number of its terms
    remaining = horizon
    while remaining:
        if remaining & 1:
            total = block if shift is None else total + advance(shift, block)
            shift = power if shift is None else (shift * power if diagonal else shift @ power)
        remaining >>= 1
        if remaining:
            block = block + advance(power, block)
            power = power * power if diagonal else power @ power
    return round_to(total, sys.B)


def _finite_integral(sys: LinearSystem, seconds: float) -> Array:
    if isinstance(sys, DiagonalStateSpace):
        B, poles = widen(sys.B), widen(sys.poles())
        xp = namespace(poles)
        rate = poles[..., :, None] + conjugate(poles)[..., None, :]
        still = xp.abs(rate) * seconds < 1e-300
        safe = xp.where(still, xp.ones_like(rate), rate)
        integral = xp.where(still, seconds * xp.ones_like(rate), expm1(safe * seconds) / safe)
        return round_to((B @ conjugate_transpose(B)) * integral, sys.B)
    sys = require_dense(sys)
    total = on_host(
        lambda A, B: _integral_by_doubling(A, B, seconds), widen(sys.A), widen(sys.B), reason="the matrix exponential"
    )
    return round_to(total, sys.B)


def _integral_by_doubling(A: np.ndarray, B: np.ndarray, seconds: float) -> np.ndarray:
    """``P(2t) = P(t) + e^{At} P(t) e^{A^H t}``, from a ``t`` for which the exponential of :math:`-A` cancels nothing (Van Loan 1978)."""
    n = A.shape[-1]
    largest = float(np.linalg.norm(A, axis=(-2, -1)).max(initial=0.0)) * seconds
    doublings = max(0, math.ceil(math.log2(2 * largest))) if largest > 0 else 0
    step = seconds / 2**doublings
    adjoint = A.conj().swapaxes(-1, -2)
    source = B @ B.conj().swapaxes(-1, -2)
    block = np.concatenate(
        [np.concatenate([-A, source], axis=-1), np.concatenate([np.zeros_like(A), adjoint], axis=-1)], axis=-2
    )
    exponential = scipy.linalg.expm(block * step)
    advance = exponential[..., n:, n:].conj().swapaxes(-1, -2)  # e^{At}
    total = advance @ exponential[..., :n, n:]
    for _ in range(doublings):
        total = total + advance @ total @ advance.conj().swapaxes(-1, -2)
        advance = advance @ advance
    return np.asarray(0.5 * (total + total.conj().swapaxes(-1, -2)))


def check_horizon(sys: LinearSystem, horizon: float) -> None:
    """Raise unless `horizon` is a positive number of steps, an int, or of seconds."""
    if not sys.is_discrete:
        if isinstance(horizon, bool) or not isinstance(horizon, (int, float, np.integer, np.floating)):
            raise DtypeError(f"horizon must be a number of seconds or None (infinite), got {horizon!r}")
        if not 0 < horizon < math.inf:
            raise HsvError(
                f"horizon must be a positive, finite number of seconds, got {horizon}; None stands for infinity"
            )
        return
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)):
        raise DtypeError(f"horizon must be an int (a number of steps) or None (infinite), got {horizon!r}")
    if horizon < 1:
        raise HsvError(f"horizon must be at least 1 step, got {horizon}")
