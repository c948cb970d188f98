"""From continuous to discrete time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hsv._array import (
    Array,
    as_arrays,
    eye,
    imag,
    is_array,
    is_complex,
    namespace,
    on_host,
    real,
    require_finite,
    round_to,
    squared_modulus,
    to_complex,
    to_host,
    widen,
)
from hsv._cauchy import expm1
from hsv._errors import DtypeError, HsvError, IllConditionedError, ShapeError
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, real_part, require_dense, require_system

METHODS = ("zoh", "bilinear")


def discretize(sys: LinearSystem, dt: Any, method: str = "zoh") -> LinearSystem:
    r"""Return the discrete system that a continuous one becomes under sampling.

    With ``"zoh"``, zero-order hold: the input is constant over each step, and the states and outputs at the sampling times are exact,

    .. math:: A_d = e^{A\,\Delta t}, \qquad B_d = \int_0^{\Delta t} e^{A\tau}\,d\tau\, B, \qquad C_d = C, \qquad D_d = D.

    With ``"bilinear"`` (Tustin's rule, the trapezoidal rule), :math:`s = \frac{2}{\Delta t}\,\frac{z-1}{z+1}`: the left half plane goes to
    the unit disc, so that stability, the H-infinity norm and the Hankel singular values stay what they are,

    .. math:: M = (I - \tfrac{\Delta t}{2} A)^{-1}, \quad A_d = M (I + \tfrac{\Delta t}{2} A), \quad B_d = \Delta t\, M B, \quad C_d = C M, \quad
              D_d = D + \tfrac{\Delta t}{2}\, C M B.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Continuous (``dt=0``); stable or not; one system or a batch.
    dt : float or array
        Length of a step in seconds, positive. For a diagonal system also an array ``(..., n)`` with a step for each state, as S5 layers have, broadcast
        against the poles: each state then runs on a clock of its own, and the result has ``dt=True``, for a step is no time any more.
    method : str
        ``"zoh"`` or ``"bilinear"``.

    Returns
    -------
    StateSpace or DiagonalStateSpace
        Of the same kind, library, device and precision; computed in double precision and rounded once. A diagonal system keeps the logarithms of
        its poles, so that nothing is lost near the unit circle (real systems with ``"bilinear"`` only where every pole lies between
        ``-2 / dt`` and ``2 / dt``: outside, the discrete poles are negative and have no real logarithm).

    Raises
    ------
    HsvError
        The system is discrete already, the step is not positive, or the method is not known.
    ShapeError
        An array of steps for a dense system, or one that does not fit the poles.
    IllConditionedError
        ``"bilinear"`` and a pole at ``2 / dt``, which goes to infinity.

    Notes
    -----
    Dense systems: a matrix exponential of size ``n + m`` on the host, or one linear solve on the device. Diagonal systems: closed forms,
    ``O(n (m + p))``; :math:`(e^{\lambda\,\Delta t} - 1)/\lambda` has full accuracy near and at :math:`\lambda = 0`.

    S4 and S5 layers read ``"bilinear"`` in another way: they keep ``C`` and ``D`` and see the newest input. This function gives the textbook
    system, as SciPy and python-control do.

    References
    ----------
    Van Loan, "Computing integrals involving the matrix exponential", IEEE Trans. Automat. Control 23 (1978). Al-Saggaf and Franklin,
    "Model reduction via balanced realizations: an extension and frequency weighting techniques", IEEE Trans. Automat. Control 33 (1988),
    for the Hankel values under the bilinear map.

    Examples
    --------
    >>> import hsv, math
    >>> sys = hsv.DiagonalStateSpace([-1.0], [[1.0]], [[1.0]], dt=0)
    >>> sampled = hsv.discretize(sys, math.log(2))
    >>> sampled.poles().round(12), sampled.B.round(12)                     # exp(-log 2), 1 - exp(-log 2)
    (array([0.5]), array([[0.5]]))
    >>> hsv.discretize(sys, 1.0, "bilinear").poles().round(6)              # (1 - 1/2) / (1 + 1/2)
    array([0.333333])
    """
    require_system(sys)
    if method not in METHODS:
        raise HsvError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if sys.is_discrete:
        raise HsvError(f"discretize takes a continuous system (dt=0), got dt={sys.dt!r}")
    if isinstance(sys, DiagonalStateSpace):
        if sys._conjugate_pairs:  # made of a complex system with half the states, and made so again
            return real_part(discretize(_upper_half(sys), _half_of(dt, sys), method))
        return _discretize_diagonal(sys, dt, method)
    sys = require_dense(sys)
    if _is_per_state(dt):
        raise ShapeError(
            "dt must be one number for a dense system: a step for each state makes sense in diagonal coordinates only"
        )
    step = _positive_number(dt)
    A, B, C, D = (widen(X) for X in (sys.A, sys.B, sys.C, sys.D))
    if method == "zoh":
        A, B = on_host(lambda a, b: _hold(a, b, step), A, B, reason="the matrix exponential")
    else:
        A, B, C, D = _bilinear(A, B, C, D, step)
    return StateSpace(*(round_to(X, sys.B) for X in (A, B, C, D)), dt=step)


def _hold(A: np.ndarray, B: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The exponential of ``[[A, B], [0, 0]]`` has both matrices in its first rows."""
    import scipy.linalg  # deferred: slow to import

    n, m = B.shape[-2:]
    block = np.zeros((*B.shape[:-2], n + m, n + m), B.dtype)
    block[..., :n, :n], block[..., :n, n:] = A * step, B * step
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is reported by the system that is made of it
        exponential = scipy.linalg.expm(block)
    return exponential[..., :n, :n], exponential[..., :n, n:]


def _bilinear(A: Array, B: Array, C: Array, D: Array, step: float) -> tuple[Array, Array, Array, Array]:
    xp = namespace(A)
    n, half = A.shape[-1], step / 2
    denominator = eye(n, A) - half * A
    smallest = xp.linalg.svdvals(denominator)[..., -1]
    largest = xp.linalg.matrix_norm(denominator)
    if bool(xp.any(smallest <= n * float(np.finfo(np.float64).eps) * largest)):
        raise _pole_at_infinity(step)
    solved = xp.linalg.solve(denominator, xp.concat([eye(n, A) + half * A, B], axis=-1))
    Ad, MB = solved[..., :n], solved[..., n:]
    CM = xp.matrix_transpose(xp.linalg.solve(xp.matrix_transpose(denominator), xp.matrix_transpose(C)))
    return Ad, step * MB, CM, D + half * (C @ MB)


def _discretize_diagonal(sys: DiagonalStateSpace, dt: Any, method: str) -> DiagonalStateSpace:
    xp = namespace(sys.B)
    steps, base = _steps(sys, dt)
    z = widen(sys.poles()) * steps  # (..., n)
    B, C, D = (widen(X) for X in (sys.B, sys.C, sys.D))
    logs: Array | None = z
    with np.errstate(over="ignore", invalid="ignore"):  # an unstable pole may overflow: the system made of it says so
        if method == "zoh":
            B = (_exponential_ratio(z) * steps)[..., None] * B
        else:
            ratio = 1.0 - z / 2
            if bool(xp.any(xp.abs(ratio) <= float(np.finfo(np.float64).eps))):
                raise _pole_at_infinity(dt)
            logs = _logarithm_of_bilinear(z)
            MB = B / ratio[..., None]
            B, D = steps[..., None] * MB, D + C @ (MB * (steps[..., None] / 2))
            C = C / ratio[..., None, :]
        B, C, D = (round_to(X, sys.B) for X in (B, C, D))
        if logs is None:
            return DiagonalStateSpace(round_to((1.0 + z / 2) / (1.0 - z / 2), sys.B), B, C, D, dt=base)
        return DiagonalStateSpace.from_log_poles(round_to(logs, sys.B), B, C, D, dt=base)


def _exponential_ratio(z: Array) -> Array:
    """``(exp(z) - 1) / z``, which is 1 at 0."""
    xp = namespace(z)
    zero = z == 0
    return xp.where(zero, xp.ones_like(z), expm1(z) / xp.where(zero, xp.ones_like(z), z))


def _logarithm_of_bilinear(z: Array) -> Array | None:
    """``log((1 + z/2) / (1 - z/2))`` to full accuracy near 0 and near the imaginary axis; None where a pole has no logarithm of its kind."""
    xp = namespace(z)
    if not is_complex(z):
        return 2.0 * xp.atanh(z / 2) if bool(xp.all(xp.abs(z) < 2)) else None
    if bool(xp.any(z == -2)):
        return None
    x, y, zero, one = real(z), imag(z), xp.zeros_like(real(z)), xp.ones_like(real(z))
    above, below = squared_modulus(1.0 + z / 2), squared_modulus(1.0 - z / 2)
    near_zero = above < 0.25 * below  # a discrete pole near 0: the difference of the two cancels in log1p
    modulus = xp.where(
        near_zero,
        xp.log(xp.where(near_zero, above / below, one)),
        xp.log1p(xp.where(near_zero, zero, 2.0 * x / below)),
    )
    angle = xp.atan2(y / 2, 1.0 + x / 2) + xp.atan2(y / 2, 1.0 - x / 2)
    return to_complex(modulus / 2, angle)


def _steps(sys: DiagonalStateSpace, dt: Any) -> tuple[Array, float | bool]:
    """Return the steps as an array that broadcasts against the poles, and the time base of the result."""
    like = real(sys.B)
    if not _is_per_state(dt):
        step = _positive_number(dt)
        return widen(as_arrays(("like", "dt"), (widen(like), step))[1]), step
    steps = widen(as_arrays(("like", "dt"), (like, dt))[1])
    if is_complex(steps):
        raise DtypeError("dt must be real, got complex numbers")
    require_finite("dt", steps)
    if not bool(namespace(steps).all(steps > 0)):
        raise HsvError(f"dt must be positive, found {float(np.min(to_host(steps))):.6g}")
    shape = tuple(sys.poles().shape)
    try:
        fits = tuple(np.broadcast_shapes(tuple(steps.shape), shape)) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"dt must broadcast to the shape of the poles, {shape}, got {tuple(steps.shape)}")
    return namespace(steps).broadcast_to(steps, shape), True


def _is_per_state(dt: Any) -> bool:
    return (is_array(dt) and dt.ndim > 0) or isinstance(dt, (list, tuple))


def _positive_number(dt: Any) -> float:
    if isinstance(dt, (bool, np.bool_, str, complex)) or dt is None:
        raise DtypeError(f"dt must be a positive number of seconds, got {dt!r}")
    value = float(dt)
    if not (math.isfinite(value) and value > 0):
        raise HsvError(f"dt must be a positive number of seconds, got {dt!r}")
    return value


def _upper_half(sys: DiagonalStateSpace) -> DiagonalStateSpace:
    """The complex system that :func:`hsv.real_part` made `sys` of."""
    half = sys.n_states // 2
    return DiagonalStateSpace(sys.poles()[..., :half], sys.B[..., :half, :], 2 * sys.C[..., :half], sys.D, dt=sys.dt)


def _half_of(dt: Any, sys: DiagonalStateSpace) -> Any:
    """Steps for the upper half of conjugate pairs; the lower half must have the same ones."""
    if not is_array(dt) or dt.ndim == 0 or dt.shape[-1] != sys.n_states:
        return dt
    half = sys.n_states // 2
    if not bool(namespace(dt).all(dt[..., :half] == dt[..., half:])):
        raise HsvError("dt must be the same for both states of a conjugate pair")
    return dt[..., :half]


def _pole_at_infinity(step: Any) -> IllConditionedError:
    return IllConditionedError(
        f'a pole lies at 2 / dt, which the bilinear map sends to infinity (dt={step!r}); choose another step, or method="zoh"'
    )
