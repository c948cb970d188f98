"""Hankel singular values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from hsv import _blas, _small_systems
from hsv._array import Array, conjugate_transpose, imag, in_host_memory, namespace, real, round_to, transpose, widen
from hsv._cauchy import cauchy_factors
from hsv._gramians import require_range, require_stable
from hsv._large_systems import LargeSystem
from hsv._lyapunov import solve_lyapunov_factored_pair
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_system

# In each of some six matrices a system: 6 GiB on a device.
_MOST_NUMBERS = 2**27


class Factors(NamedTuple):
    """Factors of both Gramians in double precision, in the coordinates in which the algebra is done.

    For a system made by :func:`hsv.real_part` these are the real coordinates of its ``to_dense()``. Where ``right`` and ``left`` are given, the factors
    in the system's own coordinates are ``right @ controllability`` and ``left @ observability``, and ``left^H right = I``. ``sensitivity`` is that of
    :class:`hsv._lyapunov.FactoredPair`.
    """

    controllability: Array
    observability: Array
    right: Array | None = None
    left: Array | None = None
    sensitivity: Array | None = None


def hankel_singular_values(sys: LinearSystem | LargeSystem) -> Array:
    r"""Return the Hankel singular values :math:`\sigma_1 \ge \dots \ge \sigma_n \ge 0`.

    .. math:: \sigma_i = \sqrt{\lambda_i(P Q)} = \sigma_i(L_o^H L_c), \qquad P = L_c L_c^H,\ Q = L_o L_o^H

    They are the singular values of the map from past inputs to future outputs: how much each state of the balanced system matters.

    Returns
    -------
    array
        Shape ``(..., n)``, descending, real, never negative, never NaN; array library, device and precision of the input. Of a :class:`SparseStateSpace`
        as many of the largest as the low-rank factors have (:func:`low_rank_gramians`).

    Raises
    ------
    UnstableSystemError

    Notes
    -----
    From factors, never from the product ``P Q``, whose eigenvalues have half the digits. The error of every value is a small multiple of
    ``eps |Lo| |Lc|``, which is near ``eps * sigma_1`` unless the system is nearly uncontrollable or unobservable as a whole. Where a diagonal system has one input and one output every value has nearly full *relative* accuracy, because the factors have: the tests ask
    for 1e-12, down to 1e-38 of the largest, with poles up to 0.99999. Values do not depend on coordinates, nor on ``D``. Diagonal systems with at most 128 real or 64 complex states and 8 inputs and outputs,
    in NumPy arrays or CPU tensors, run through one compiled pipeline, several at once and in threads; a system's values do not depend on what else is in the batch. Diagonal systems: ``O(n^2 m + n^3)`` on the device of the
    arrays; dense systems: ``O(n^3)`` on the host.

    References
    ----------
    Tombs and Postlethwaite, "Truncated balanced realization of a stable non-minimal state-space system", Int. J. Control 46 (1987).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> hsv.hankel_singular_values(sys).round(5)
    array([24.42686,  0.57314])
    """
    require_system(sys, LargeSystem)
    if isinstance(sys, LargeSystem):
        return sys._large_hankel_values()
    if _small_systems.fits(sys):
        return round_to(_small_systems.hankel_values(sys), real(sys.B))
    values = [singular_values(gramian_factors(block)) for block in _blocks(sys)]
    if len(values) > 1:
        xp = namespace(sys.B)
        values = [xp.reshape(xp.concat(values, axis=0), (*sys.batch_shape, sys.n_states))]
    return round_to(values[0], real(sys.B))


def _blocks(sys: LinearSystem) -> Iterator[LinearSystem]:
    """The system, or parts of a batch on a device whose matrices would take more memory than a device may have to spare."""
    numbers = sys.n_states**2 * (2 if sys.is_complex else 1)
    count = math.prod(sys.batch_shape)
    step = max(1, _MOST_NUMBERS // numbers)
    if count <= step or in_host_memory(sys.B) or not isinstance(sys, DiagonalStateSpace) or sys._conjugate_pairs:
        yield sys
        return
    require_stable(sys)  # here, where the index of a system is that of the caller
    xp = namespace(sys.B)

    def flat(x: Array, core: int) -> Array:
        return xp.reshape(x, (-1, *x.shape[x.ndim - core :]))

    poles, B, C, D = (flat(x, core) for x, core in ((sys.poles(), 1), (sys.B, 2), (sys.C, 2), (sys.D, 2)))
    logs = None if sys.log_poles is None else flat(sys.log_poles, 1)
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        yield sys._rebuild(
            poles[part, ...], None if logs is None else logs[part, ...], B[part, ...], C[part, ...], D[part, ...]
        )


def singular_values(factors: Factors) -> Array:
    """Singular values of ``Lo^H Lc``."""
    return _blas.singular_values(_blas.product(conjugate_transpose(factors.observability), factors.controllability))


def singular_value_decomposition(factors: Factors) -> tuple[Array, Array, Array]:
    """``U, sigma, V^H`` with ``Lo^H Lc = U diag(sigma) V^H``."""
    return _blas.svd(_blas.product(conjugate_transpose(factors.observability), factors.controllability))


def gramian_factors(sys: LinearSystem) -> Factors:
    """Return the factors of both Gramians; real ones wherever the system is real in some known coordinates."""
    if isinstance(sys, StateSpace):
        return Factors(
            *solve_lyapunov_factored_pair(widen(sys.A), widen(sys.B), widen(sys.C), discrete=sys.is_discrete)
        )
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    require_range(sys)
    factors = Factors(*cauchy_factors(sys))
    if sys._conjugate_pairs:
        return Factors(*(_real_factor(L) for L in factors[:2]))
    return factors


def to_real_coordinates(x: Array) -> Array:
    """Multiply by the unitary ``[[I, I], [-iI, iI]] / sqrt(2)``, which maps ``(h, conj h)`` to ``sqrt(2) (Re h, Im h)``."""
    xp = namespace(x)
    half = x.shape[-2] // 2
    top, bottom = x[..., :half, :], x[..., half:, :]
    return xp.concat([top + bottom, -1j * (top - bottom)], axis=-2) / math.sqrt(2.0)


def from_real_coordinates(x: Array) -> Array:
    """The inverse of :func:`to_real_coordinates`, for a real `x`."""
    xp = namespace(x)
    half = x.shape[-2] // 2
    re, im = x[..., :half, :], x[..., half:, :]
    return xp.concat([re + 1j * im, re - 1j * im], axis=-2) / math.sqrt(2.0)


def _real_factor(L: Array) -> Array:
    """Real factor of the Gramian, real in the new coordinates, that the complex ``L`` factors: ``Re Re^T + Im Im^T``, compressed."""
    xp = namespace(L)
    rotated = to_real_coordinates(L)
    wide = xp.concat([real(rotated), imag(rotated)], axis=-1)
    return transpose(xp.linalg.qr(transpose(wide), mode="reduced")[1])
