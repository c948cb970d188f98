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
from hsv._gramians import require_range, require_stable
from hsv._kernels import _threads
from hsv._systems import DiagonalStateSpace, LinearSystem

_MOST_NUMBERS = 128  # in a column: states of a real system, twice the states of a complex one
_MOST_PORTS = (
    8  # inputs or outputs; above, a matrix product of a library is faster than the elimination on many generators
)
_BLOCK = 2**21  # numbers of input that are copied at a time, 16 MiB
_BASES = 2**20  # numbers of each basis that are held at a time, 8 MiB
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
    if max(sys.n_inputs, sys.n_outputs) > 1:
        require_range(sys)
    values = np.empty((math.prod(sys.batch_shape), sys.n_states))
    for begin, end, arrays in _blocks(sys):
        _run(sys, arrays, False, values[begin:end])
    return from_host(values.reshape(*sys.batch_shape, sys.n_states), real(sys.B))


def balancing_bases(sys: LinearSystem) -> tuple[Array, Array, Array]:
    """All Hankel singular values and, of the singular value decomposition ``Lo^H Lc = U S V^H``, ``Lo U`` and ``Lc V``; in double precision."""
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    if max(sys.n_inputs, sys.n_outputs) > 1:
        require_range(sys)
    n, count = sys.n_states, math.prod(sys.batch_shape)
    values, bases = np.empty((count, n)), np.empty((2, count, n, n, 2 if is_complex(sys.B) else 1))
    for begin, end, arrays in _blocks(sys):
        _run(sys, arrays, True, values[begin:end], *bases[:, begin:end])
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
    sys: LinearSystem,
    guess: Callable[[np.ndarray], np.ndarray],
    choose: Callable[[np.ndarray], tuple[np.ndarray, tuple[str, ...]]],
    single: bool,
) -> Truncation:
    """Balanced truncation to the orders that a function chooses from all Hankel singular values; `single` rounds the matrices to single precision.

    Only two small buffers of bases are held, for fresh memory is dear where threads write to it. So a block is projected before the values of the
    next one are known, to orders that are a `guess` from its values alone. Where the choice from all values is another one, all is done once more.
    """
    assert isinstance(sys, DiagonalStateSpace)
    require_stable(sys)
    if max(sys.n_inputs, sys.n_outputs) > 1:
        require_range(sys)
    values = np.empty((math.prod(sys.batch_shape), sys.n_states))
    guessed, results = _truncate_blocks(sys, values, lambda part: guess(values[part]), single)
    orders, notes = choose(values.reshape(*sys.batch_shape, sys.n_states))
    flat = np.ascontiguousarray(orders.reshape(-1))
    if not np.array_equal(flat, guessed):
        _, results = _truncate_blocks(sys, values, lambda part: flat[part], single)
    return Truncation(values, orders, notes, *results)


def _truncate_blocks(
    sys: DiagonalStateSpace, values: np.ndarray, orders_of: Callable[[slice], np.ndarray], single: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Write the values, and return the orders and ``left``, ``right``, ``A``, ``B``, ``C`` with as many columns as the largest order has."""
    count, n = values.shape
    planes = 2 if is_complex(sys.B) else 1
    block = max(1, _BASES // (n * n * planes))
    bases = np.empty((2, min(block, count), n, n, planes))
    kind = np.dtype({(1, False): "f8", (2, False): "c16", (1, True): "f4", (2, True): "c8"}[planes, single])
    orders, r = np.empty(count, np.int64), 0
    results: list[np.ndarray] = []
    for begin, end, arrays in _blocks(sys, block):
        part = slice(begin, end)
        left, right = bases[:, : end - begin]
        _run(sys, arrays, True, values[part], left, right)
        orders[part] = orders_of(part)
        needed = max(int(orders[part].max(initial=1)), r)
        if needed > r:
            results, r = _with_columns(sys, results, begin, r, needed, kind), needed
        poles, _, B, C = arrays
        _threads.run(
            _kernels.project,
            end - begin,
            sys.is_discrete,
            *map(_numbers, (poles, B, C)),
            values[part],
            orders[part],
            *map(_numbers, (left, right)),
            *(x[part] for x in results),
            operations=(end - begin) * 4.0 * n * r * r,
        )
    return orders, results


def _with_columns(
    sys: DiagonalStateSpace, results: list[np.ndarray], done: int, old: int, r: int, kind: np.dtype
) -> list[np.ndarray]:
    """Arrays for ``left``, ``right``, ``A``, ``B``, ``C`` of `r` columns, in which the results of the first systems stand, of fewer columns, with padding."""
    count, n, m, p = math.prod(sys.batch_shape), sys.n_states, sys.n_inputs, sys.n_outputs
    wider = [np.zeros((count, *shape), kind) for shape in ((n, r), (n, r), (r, r), (r, m), (p, r))]
    for x, y in zip(wider, results, strict=False):
        x[tuple(slice(size) for size in (done, *y.shape[1:]))] = y[:done]
    if not sys.is_discrete:  # padding at 0 would be an integrator
        wider[2][:done, range(old, r), range(old, r)] = -1.0
    return wider


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
    if not np.all(np.isfinite(values)):
        raise HsvError(
            "the Hankel singular values of a system are beyond the range of double precision, or B or C is near its end; scale B and C down"
        )
