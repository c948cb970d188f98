"""Powers of two that bring inputs and outputs to a size whose squares neither overflow nor vanish, exactly."""

from __future__ import annotations

import numpy as np

from hsv._array import Array, from_host, namespace, real, to_host, widen
from hsv._errors import HsvError
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, real_part

_MOST = 1000  # 2^1000 and 2^-1000 are numbers


def exponents(x: np.ndarray) -> np.ndarray:
    """The powers of two next above the largest entry of each matrix ``(..., a, b)``, ``(...)`` integers; 0 for a matrix of zeros."""
    largest = np.maximum(np.abs(x.real), np.abs(x.imag)).max(axis=(-2, -1), initial=0.0)
    return np.clip(np.frexp(largest)[1], -_MOST, _MOST)


def shifted(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """``x 2^e`` for matrices ``(..., a, b)`` and integers ``(...)``; exact but for numbers at the very ends of the range."""
    by = np.asarray(exponent)[..., None, None]
    with np.errstate(over="ignore", under="ignore"):
        if not np.iscomplexobj(x):
            return np.asarray(np.ldexp(x, by))
        result = np.empty(np.broadcast_shapes(x.shape, by.shape), x.dtype)
        result.real, result.imag = np.ldexp(x.real, by), np.ldexp(x.imag, by)
        return result


def even_exponents(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The power of two that takes two sizes to their geometric mean, from the first to the second."""
    return (first - second) // 2


def with_even_ports(sys: LinearSystem) -> tuple[LinearSystem, Array]:
    """A system in double precision with ``B 2^-s`` and ``C 2^s`` of like size, and ``2^s`` of shape ``(..., 1, 1)``: the transfer function, and all Hankel values, are those of `sys`."""
    s = even_exponents(*_port_exponents(sys))
    power = from_host(np.asarray(np.ldexp(1.0, s))[..., None, None], real(widen(sys.B)))
    return _with_ports(sys, widen(sys.B) / power, widen(sys.C) * power), power


def with_unit_ports(sys: LinearSystem) -> tuple[LinearSystem, tuple[np.ndarray, np.ndarray]]:
    """A system in double precision with ``B 2^-b`` and ``C 2^-c`` of a size near 1, and ``b`` and ``c``, ``(...)``."""
    sizes = _port_exponents(sys)
    B, C = (from_host(shifted(to_host(widen(x)), -size), sys.B) for x, size in zip((sys.B, sys.C), sizes, strict=True))
    return _with_ports(sys, B, C), sizes


def _port_exponents(sys: LinearSystem) -> tuple[np.ndarray, np.ndarray]:
    return exponents(to_host(widen(sys.B))), exponents(to_host(widen(sys.C)))


def _with_ports(sys: LinearSystem, B: Array, C: Array) -> LinearSystem:
    """The system in double precision with these maps."""
    D = widen(sys.D)
    if not isinstance(sys, DiagonalStateSpace):
        assert isinstance(sys, StateSpace)
        return StateSpace(widen(sys.A), B, C, D, dt=sys.dt)
    poles, log_poles = widen(sys.poles()), None if sys.log_poles is None else widen(sys.log_poles)
    if not sys._conjugate_pairs:
        return sys._rebuild(poles, log_poles, B, C, D)
    half = sys.n_states // 2
    logs = None if log_poles is None else log_poles[..., :half]
    return real_part(sys._rebuild(poles[..., :half], logs, B[..., :half, :], 2 * C[..., :half], D))


def require_representable(A: Array, B: Array, C: Array) -> None:
    """Raise unless the matrices of a reduced system, scaled back, are numbers."""
    for name, x in (("A", A), ("B", B), ("C", C)):
        if not bool(namespace(x).all(namespace(x).isfinite(x))):
            raise HsvError(
                f"{name} of the reduced system is beyond the range of the precision of sys; choose other units for the inputs or outputs"
            )
