r"""Stable Lyapunov and Stein equations by doubling: nothing but products, one inverse and QR factorisations of the array library.

The sum :math:`\sum_k a^k q (a^H)^k` doubles its number of terms with every squaring of ``a`` (Smith 1968), so that a handful of steps
reaches any stable spectrum; a batch and a device are as good as one matrix on the host. Arguments here are in double precision and
checked by the callers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hsv._array import (
    Array,
    broadcast_batch,
    conjugate_transpose,
    eye,
    namespace,
    to_host,
    zeros,
)
from hsv._errors import UnstableSystemError

_EPS = float(np.finfo(np.float64).eps)

# Each squaring adds a relative error of some eps to the eigenvalues, and each later one doubles it: after 45, a modulus of 1 may have
# drifted by 1 %, too little to make a sum that has no limit look as if it had one. The spectral radius may be 1 - 1.1e-12.
MAX_DOUBLINGS = 45


def stein(a: Array, q: Array) -> Array:
    """Solve ``a x a^H - x + q = 0``."""
    x = q
    # What the sum lacks is a^K x (a^H)^K: below rounding where the norm of a^K is below its root.
    for power in _powers(a, until=_EPS**0.5):
        x = x + power @ x @ conjugate_transpose(power)
    return _hermitian_where(q, broadcast_batch(x, _common_batch(a, q), 2))


def lyapunov(a: Array, q: Array) -> Array:
    """Solve ``a x + x a^H = q``."""
    map_, resolvent, shift = _cayley(a)
    return stein(map_, _hermitian_where(q, -2.0 * shift * (resolvent @ q @ conjugate_transpose(resolvent))))


def factor(a: Array, b: Array, *, discrete: bool) -> Array:
    """Return ``L``, square, with ``P = L L^H`` the controllability Gramian of ``(a, b)``."""
    if not discrete:
        a, resolvent, shift = _cayley(a)
        b = namespace(b).sqrt(2.0 * shift) * (resolvent @ b)
    batch = _common_batch(a, b)
    L = broadcast_batch(b, batch, 2)
    # L itself is summed here, and its small directions are to survive: to rounding, not to the root of it.
    for power in _powers(a, until=_EPS):
        L = _compress(namespace(a).concat([L, power @ L], axis=-1))
    return _square(L)


def factor_pair(a: Array, b: Array, c: Array, *, discrete: bool) -> tuple[Array, Array]:
    """Return the factors of both Gramians from the same powers of ``a``."""
    xp = namespace(a)
    if not discrete:
        a, resolvent, shift = _cayley(a)
        root = xp.sqrt(2.0 * shift)
        b, c = root * (resolvent @ b), root * (c @ resolvent)
    batch = _common_batch(a, b, c)
    left, right = broadcast_batch(conjugate_transpose(c), batch, 2), broadcast_batch(b, batch, 2)
    for power in _powers(a, until=_EPS):
        right = _compress(xp.concat([right, power @ right], axis=-1))
        left = _compress(xp.concat([left, conjugate_transpose(power) @ left], axis=-1))
    return _square(right), _square(left)


def is_stable(a: Array, *, discrete: bool) -> bool:
    """Tell whether every matrix of a batch is found to be stable, without its eigenvalues.

    A power of norm below 1 proves it. What is not proved within 45 squarings is unstable or within 1e-12 of the boundary.
    """
    xp = namespace(a)
    if not discrete:
        try:
            a = _cayley(a)[0]
        except UnstableSystemError:
            return False
    for _ in range(MAX_DOUBLINGS + 1):
        norm = _frobenius(a)
        if bool(xp.all(norm < 1.0)):
            return True
        if not bool(xp.all(norm < 1.0 / _EPS)):
            return False
        a = a @ a
    return False


def _powers(a: Array, *, until: float) -> Iterator[Array]:
    """Yield ``a, a^2, a^4, a^8, ...`` of a whole batch, until the Frobenius norm of every one is at most `until`."""
    xp = namespace(a)
    for k in range(MAX_DOUBLINGS + 1):
        norm = _frobenius(a)
        if bool(xp.all(norm <= until)):
            return
        if k == MAX_DOUBLINGS or not bool(xp.all(norm < 1.0 / _EPS)):  # NaN is not below it either
            break
        yield a
        a = a @ a
    _raise_unstable(to_host(_frobenius(a))[..., 0, 0])


def _raise_unstable(norm: np.ndarray) -> None:
    index = np.unravel_index(int(np.argmax(norm)), norm.shape)
    where = f" (system {tuple(int(i) for i in index)})" if index else ""
    raise UnstableSystemError(
        f"a must be stable for doubling, its powers fell to no limit within {MAX_DOUBLINGS} doublings: the norm of the last is {norm[index]:.1e}{where}. "
        "The system is unstable, or within 1e-12 of the stability boundary, or its powers pass 1e15 on their way to zero; "
        "hsv.solve_discrete_lyapunov and hsv.solve_continuous_lyapunov take such an a, hsv.split_unstable splits it"
    )


def _cayley(a: Array) -> tuple[Array, Array, Array]:
    """Return ``(a - p)^{-1} (a + p)``, ``(a - p)^{-1}`` and the shift ``p (..., 1, 1)``, between the slowest and the fastest eigenvalue."""
    xp = namespace(a)
    _require_regular(a)
    shift = xp.sqrt(_frobenius(a) / _frobenius(xp.linalg.inv(a)))
    one = eye(a.shape[-1], a)
    shifted = a - xp.astype(shift, a.dtype) * one
    _require_regular(shifted)
    resolvent = xp.linalg.inv(shifted)
    shift = xp.astype(shift, a.dtype)
    return one + 2.0 * shift * resolvent, resolvent, shift


def _require_regular(a: Array) -> None:
    """An eigenvalue 0, or one equal to the shift, is an unstable one; libraries differ in what their inverse says then."""
    xp = namespace(a)
    log_determinant = xp.linalg.slogdet(a)[1]
    if bool(xp.all(xp.isfinite(log_determinant))):
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(to_host(log_determinant)))[0])
    where = f" (system {index})" if index else ""
    raise UnstableSystemError(
        f"every eigenvalue of a must have a negative real part, found one that is zero or positive{where}; split it off with hsv.split_unstable"
    )


def _compress(wide: Array) -> Array:
    """Return ``L`` with ``L L^H = wide wide^H`` and no more columns than rows; each row keeps its own relative accuracy."""
    if wide.shape[-1] <= wide.shape[-2]:
        return wide
    return conjugate_transpose(namespace(wide).linalg.qr(conjugate_transpose(wide), mode="reduced")[1])


def _square(L: Array) -> Array:
    if L.shape[-1] > L.shape[-2]:
        return _compress(L)
    missing = L.shape[-2] - L.shape[-1]
    if missing == 0:
        return L
    return namespace(L).concat([L, zeros((*L.shape[:-1], missing), L)], axis=-1)


def _hermitian_where(q: Array, x: Array) -> Array:
    xp = namespace(q)
    hermitian = xp.all(q == conjugate_transpose(q), axis=(-1, -2), keepdims=True)
    return xp.where(hermitian, 0.5 * (x + conjugate_transpose(x)), x)


def _frobenius(x: Array) -> Array:
    """Frobenius norm, shape ``(..., 1, 1)``, real; the squares neither overflow nor underflow."""
    xp = namespace(x)
    size = xp.abs(x)
    largest = xp.max(size, axis=(-1, -2), keepdims=True)
    scaled = size / xp.where(largest > 0, largest, xp.ones_like(largest))
    return largest * xp.sqrt(xp.sum(scaled * scaled, axis=(-1, -2), keepdims=True))


def _common_batch(*matrices: Array) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(tuple(m.shape[:-2]) for m in matrices)))
