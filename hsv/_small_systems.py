"""Small diagonal systems in host memory, thousands at once: which they are, and how compiled kernels get them.

Everything here comes in blocks of a few megabytes, so that a batch needs little more than its input and its results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from hsv import _kernels
from hsv._array import Array, from_host, in_host_memory, is_complex, real, to_host
from hsv._errors import HsvError
from hsv._gramians import require_stable
from hsv._kernels import _threads
from hsv._systems import DiagonalStateSpace, LinearSystem

_MOST_NUMBERS = 128  # in a column: states of a real system, twice the states of a complex one
_MOST_PORTS = (
    8  # inputs or outputs; above, a matrix product of a library is faster than the elimination on many generators
)
_BLOCK = 2**21  # numbers of input that are copied at a time, 16 MiB
_BASES = 2**23  # numbers of each basis that are held at a time, 64 MiB
_NOTHING = np.empty((0, 0, 0, 0))
_WIDEST = 1e100  # continuous poles must lie within this factor of 1, so that squares of their sums neither vanish nor overflow
_MOST_PHASE = 1e6  # radians that the reduction of a phase in twice the working precision allows


def fits(sys: LinearSystem) -> bool:
    """Tell whether the compiled pipeline takes the system, or the batch."""
    if not isinstance(sys, DiagonalStateSpace) or not in_host_memory(sys.B):
        return False
    numbers = sys.n_states * (2 if is_complex(sys.B) else 1)
    if numbers > _MOST_NUMBERS or max(sys.n_inputs, sys.n_outputs) > _MOST_PORTS:
        return False
    if sys.log_poles is not None:
        return not is_complex(sys.log_poles) or _largest(to_host(sys.log_poles).imag) < _MOST_PHASE
    if sys.is_discrete:
        return True
    poles = to_host(sys.poles())
    return _largest(poles) < _WIDEST and _largest(1.0 / (np.abs(poles.real) + 1.0 / _WIDEST**2)) < _WIDEST


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def hankel_values(sys: LinearSystem) -> Array:
    """:func:`hsv.hankel_singular_values` in double precision, of a system that :func:`fits`."""
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    values = np.empty((math.prod(sys.batch_shape), sys.n_states))
    for begin, end, arrays in _blocks(sys):
        _run(sys, arrays, False, values[begin:end])
    return from_host(values.reshape(*sys.batch_shape, sys.n_states), real(sys.B))


def balancing_bases(sys: LinearSystem) -> tuple[Array, Array, Array]:
    """All Hankel singular values and, of the singular value decomposition ``Lo^H Lc = U S V^H``, ``Lo U`` and ``Lc V``; in double precision."""
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    n, count = sys.n_states, math.prod(sys.batch_shape)
    values = np.empty((count, n))
    bases = _bases(sys, count, next(_blocks(sys, count))[2], values)
    shaped = (x.reshape(*sys.batch_shape, *x.shape[1:]) for x in (values, *map(_numbers, bases)))
    sigma, left, right = (from_host(x, sys.B) for x in shaped)
    return sigma, left, right


class Truncation(NamedTuple):
    """What :func:`hsv.balanced_truncation` needs of a system that :func:`fits`; NumPy arrays, in double precision but for the values' batch axes."""

    values: np.ndarray
    orders: np.ndarray
    notes: tuple[str, ...]
    left: np.ndarray
    right: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray


def truncate(
    sys: LinearSystem, choose: Callable[[np.ndarray], tuple[np.ndarray, tuple[str, ...]]], single: bool
) -> Truncation:
    """Balanced truncation to the orders that a function chooses from all Hankel singular values; `single` rounds the matrices to single precision."""
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    n, m, p = sys.n_states, sys.n_inputs, sys.n_outputs
    count = math.prod(sys.batch_shape)
    planes = 2 if is_complex(sys.B) else 1
    block = max(1, _BASES // (n * n * planes))
    values = np.empty((count, n))
    bases: tuple[np.ndarray, ...] = ()
    if count > block:  # the bases of all systems are too many numbers: the values first
        for begin, end, arrays in _blocks(sys):
            _run(sys, arrays, True, values[begin:end])
    else:
        bases = _bases(sys, count, next(_blocks(sys, count))[2], values)
    orders, notes = choose(values.reshape(*sys.batch_shape, n))
    flat_orders = np.ascontiguousarray(orders.reshape(-1))
    r = max(int(orders.max(initial=1)), 1)
    kind = np.dtype({(1, False): "f8", (2, False): "c16", (1, True): "f4", (2, True): "c8"}[planes, single])
    left, right = np.empty((count, n, r), kind), np.empty((count, n, r), kind)
    A, B, C = np.empty((count, r, r), kind), np.empty((count, r, m), kind), np.empty((count, p, r), kind)
    for begin, end, arrays in _blocks(sys, block):
        if count > block:
            bases = _bases(sys, end - begin, arrays, np.empty((end - begin, n)))
        part = slice(begin, end)
        results = _project(sys, bases, arrays, values[part], flat_orders[part], r)
        for target, result in zip((left, right, A, B, C), results, strict=True):
            target[part] = result
    return Truncation(values, orders, notes, left, right, A, B, C)


def _bases(
    sys: DiagonalStateSpace, count: int, arrays: tuple[np.ndarray, ...], values: np.ndarray
) -> tuple[np.ndarray, ...]:
    """``Lo U`` and ``Lc V`` of a block of systems."""
    n, planes = sys.n_states, arrays[0].shape[-1]
    left, right = np.empty((count, n, n, planes)), np.empty((count, n, n, planes))
    _run(sys, arrays, True, values, left, right)
    return left, right


def _project(
    sys: DiagonalStateSpace,
    bases: tuple[np.ndarray, ...],
    arrays: tuple[np.ndarray, ...],
    values: np.ndarray,
    orders: np.ndarray,
    r: int,
) -> tuple[np.ndarray, ...]:
    """Both projections to `r` columns and the reduced matrices."""
    left, right = (np.ascontiguousarray(_numbers(x)[..., :r]) for x in bases)
    poles, _, B, C = arrays
    poles, B, C = (_numbers(x) for x in (poles, B, C))
    count, n, m = B.shape
    reduced = [np.empty(shape, B.dtype) for shape in ((count, r, r), (count, r, m), (count, C.shape[1], r))]
    _threads.run(
        _kernels.project,
        count,
        sys.is_discrete,
        poles,
        B,
        C,
        values,
        orders,
        left,
        right,
        *reduced,
        operations=count * 4.0 * n * r * r,
    )
    return (left, right, *reduced)


def certainly_stable(A: np.ndarray, discrete: bool) -> bool:
    """Tell whether some power of every matrix, or of its Cayley transform, is a contraction: quicker than eigenvalues, and no is not an answer."""
    flat = A.reshape(-1, *A.shape[-2:])
    flat = np.array(flat, np.complex128 if np.iscomplexobj(A) else np.float64, order="C")
    verdicts = np.empty(len(flat), np.bool_)
    _threads.run(
        _kernels.stable, len(flat), discrete, flat, verdicts, operations=len(flat) * 20.0 * flat.shape[-1] ** 3
    )
    return bool(np.all(verdicts))


def _numbers(x: np.ndarray) -> np.ndarray:
    """The real or complex numbers whose parts are on the last axis."""
    return x[..., 0] if x.shape[-1] == 1 else x.view(np.complex128)[..., 0]


def _blocks(sys: DiagonalStateSpace, most: int | None = None) -> Iterator[tuple[int, int, tuple[np.ndarray, ...]]]:
    """Ranges of `most` systems, and of each: poles, their rests (empty without log-poles), ``B`` and ``C``, with real and imaginary parts last."""
    n, m, p = sys.n_states, sys.n_inputs, sys.n_outputs
    logs = sys.log_poles is not None
    flat = [
        to_host(x).reshape(-1, *core)
        for x, core in ((sys.log_poles if logs else sys.poles(), (n,)), (sys.B, (n, m)), (sys.C, (p, n)))
    ]
    planes = 2 if is_complex(sys.B) else 1
    step = max(1, _BLOCK // (n * (1 + m + p) * planes) if most is None else most)
    for begin in range(0, max(len(flat[0]), 1), max(step, 1)):
        end = min(begin + step, len(flat[0]))
        poles, B, C = (_planes(x[begin:end]) for x in flat)
        rests = np.empty((0, 1, 1))
        if logs:
            logarithms = poles.reshape(-1, planes)
            poles, rests = np.empty_like(poles), np.empty_like(poles)
            flat_poles, flat_rests = poles.reshape(-1, planes), rests.reshape(-1, planes)
            _threads.run(
                _kernels.exponentials,
                len(logarithms),
                logarithms,
                flat_poles,
                flat_rests,
                operations=100.0 * logarithms.size,
            )
        yield begin, end, (poles, rests, B, C)


def _planes(x: np.ndarray) -> np.ndarray:
    """A copy in double precision with a last axis of real and imaginary parts."""
    if np.iscomplexobj(x):
        return np.array(x, np.complex128, order="C").view(np.float64).reshape(*x.shape, 2)
    return np.array(x, np.float64, order="C")[..., None]


def _run(
    sys: DiagonalStateSpace,
    arrays: tuple[np.ndarray, ...],
    strict: bool,
    values: np.ndarray,
    left: np.ndarray = _NOTHING,
    right: np.ndarray = _NOTHING,
) -> None:
    """Compute the values, and the bases if there are arrays for them, of a block of systems in threads."""
    count, n, planes = arrays[0].shape
    step = _kernels.side_by_side(n, planes)
    failures = []

    def work(first: int, last: int) -> None:
        whole = _kernels.hankel_values(
            first * step, min(last * step, count), sys.is_discrete, *arrays, strict, values, left, right
        )
        if not whole:
            failures.append(first)

    _threads.run(work, -(-count // step), operations=count * 10.0 * planes * n**3)
    if failures:
        raise HsvError(
            "the one-sided Jacobi iteration did not converge; look for poles, B or C of extreme sizes, and scale the states"
        )
