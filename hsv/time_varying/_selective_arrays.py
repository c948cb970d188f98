"""The sums of :class:`SelectiveEstimator` by array operations alone: for devices, and for array libraries without compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hsv._array import Array, device, from_host, namespace, to_host, widen
from hsv.time_varying._stream import blocks, moved_to_front

N_ELEMENTS = 2**24
"""Of an intermediate array: as many sequences are taken at once as fit, one at least."""


def scan(a: Array, u: Array, carry: Array) -> Array:
    """Return ``h[t] = a[t] h[t-1] + u[t]`` along axis 1, from ``carry`` on; by doubling, ``ceil(log2 T)`` rounds."""
    xp = namespace(a)
    shift, h = 1, u
    while shift < u.shape[1]:
        h = xp.concat([h[:, :shift, ...], h[:, shift:, ...] + a[:, shift:, ...] * h[:, :-shift, ...]], axis=1)
        a = xp.concat([a[:, :shift, ...], a[:, shift:, ...] * a[:, :-shift, ...]], axis=1)
        shift *= 2
    return h + a * carry[:, None, ...]


def selective_sums(
    A: Array,
    delta: Array,
    B: Array,
    C: Array,
    x: Array | None,
    weight: Array | None,
    mask: np.ndarray | None,
    *,
    window: int | None,
    gramians: dict[str, tuple[int, ...]],
    exact: bool,
    signs: Callable[[int, int, int], np.ndarray],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield, for each block of sequences, the number of its first one and its sums on the host.

    Sums of ``p``, ``q``, ``product (b, d, n)``, ``delta (b, d)``, ``B``, ``C (b, n)`` are those of each sequence, ``poles``, ``delta_B (d, n)`` and the matrices named
    in `gramians`, with their shapes, those of the block. White inputs where `x` is ``None``. ``signs(i, which, length)`` are the random signs of sequence ``i``, if not `exact`.
    """
    xp = namespace(A)
    (d, n), (batch, length) = A.shape, delta.shape[:2]
    lengths = np.full(batch, length) if mask is None else mask.sum(axis=1)
    chunk = math.isqrt(length - 1) + 1
    largest = d * n * max(chunk, n if exact and gramians else 1)
    n_together = max(1, N_ELEMENTS // largest)
    for first in range(0, batch, n_together):
        here = slice(first, min(first + n_together, batch))
        steps = lengths[here]
        present = from_host(np.arange(length) < steps[:, None], A)  # (b, T)
        part = None if mask is None else mask[here]
        arrays = [None if a is None else moved_to_front(a[here, ...], part) for a in (delta, B, C, x, weight)]
        ones = xp.ones_like(arrays[0]) * xp.astype(present, A.dtype)[..., None]
        yield (
            first,
            _block_sums(
                A,
                arrays[0],
                arrays[1],
                arrays[2],
                arrays[3],
                ones if arrays[4] is None else arrays[4],
                xp.astype(present, A.dtype),
                chunk,
                window,
                gramians,
                exact,
                lambda which: _padded_signs(signs, which, range(here.start, here.stop), steps, length, A),  # noqa: B023
            ),
        )


def _padded_signs(
    signs: Callable[[int, int, int], np.ndarray],
    which: int,
    sequences: range,
    steps: np.ndarray,
    length: int,
    like: Array,
) -> Array:
    host = [signs(i, which, int(k)) for i, k in zip(sequences, steps, strict=True)]
    padded = [np.concatenate([s, np.zeros((length - len(s), s.shape[1]), s.dtype)]) for s in host]
    return namespace(like).astype(from_host(np.stack(padded), like), like.dtype)


def _block_sums(
    A: Array,
    delta: Array,
    B: Array,
    C: Array,
    x: Array | None,
    weight: Array,
    present: Array,
    chunk: int,
    window: int | None,
    gramians: dict[str, tuple[int, ...]],
    exact: bool,
    signs: Callable[[int], Array],
) -> dict[str, np.ndarray]:
    xp = namespace(A)
    (batch, length, d), n = delta.shape, A.shape[1]
    sums: dict[str, Any] = {
        "delta": xp.sum(widen(delta), axis=1),
        "B": xp.sum(widen(B), axis=1),
        "C": xp.sum(widen(C), axis=1),
        "delta_B": xp.sum(widen(xp.matrix_transpose(delta) @ B), axis=0),
    }

    def add(name: str, value: Array) -> None:
        sums[name] = widen(value) + sums[name] if name in sums else widen(value)

    def add_product(name: str, rows: Array) -> None:
        if len(gramians[name]) == 2:
            flat = xp.reshape(rows, (-1, n))
        else:
            flat = xp.reshape(xp.permute_dims(rows, (2, 0, 1, 3)), (d, -1, n))
        add(name, xp.matrix_transpose(flat) @ flat)

    def decay(steps: Array) -> Array:
        return xp.exp(steps[..., None] * A)  # (b, L, d, n)

    def add_recursion(name: str, steps: Array, scale: Array, vectors: Array, counted: Array) -> None:
        gramian = total = xp.zeros((batch, d, n, n), dtype=A.dtype, device=device(A))
        for t in range(steps.shape[1]):
            a, v = decay(steps[:, t, :]), scale[:, t, :, None] * vectors[:, t, None, :]
            gramian = a[..., None] * a[..., None, :] * gramian + v[..., None] * v[..., None, :]
            total = total + gramian * counted[:, t, None, None, None]
        add(name, xp.sum(total, axis=(0, 1) if len(gramians[name]) == 2 else 0))

    def backward_counts(start: int, stop: int, end: int) -> Array:
        """Which of the steps from `stop` back to `start` count: those below `end` that are there."""
        inside = xp.asarray(np.arange(stop - 1, start - 1, -1) < end, device=device(A))
        return xp.flip(present[:, start:stop], axis=1) * xp.astype(inside, A.dtype)

    white = x is None
    drive = signs(0) if white and "P" in gramians and not exact else x
    if white and "P" in gramians and exact:
        add_recursion("P", delta, delta, B, present)
    h = p = g = xp.zeros((batch, d, n), dtype=A.dtype, device=device(A))
    for begin in range(0, length, chunk):
        t = slice(begin, min(begin + chunk, length))
        a, counted = decay(delta[:, t, :]), present[:, t, None, None]
        inputs = delta[:, t, :, None] * B[:, t, None, :]
        if drive is not None:
            states = scan(a, inputs * drive[:, t, :, None], h)
            h = states[:, -1, ...]
            if "P" in gramians:
                add_product("P", states * counted)
        second = scan(a * a, inputs**2, p) if white else states**2
        p = second[:, -1, ...]
        add("poles", xp.sum(a * counted, axis=(0, 1)))
        add("p", xp.sum(second * counted, axis=1))
        add("product", xp.sum(second * (weight[:, t, :, None] * C[:, t, None, :]) ** 2, axis=1))

    probes = signs(1) if "Q" in gramians and not exact else None
    zero, following = xp.zeros_like(g), xp.concat([delta[:, 1:, :], xp.zeros_like(delta[:, :1, :])], axis=1)
    for begin, end, horizon in blocks(length, window):
        g = q = zero
        for start in reversed(range(begin, horizon, chunk)):
            stop = min(start + chunk, horizon)
            a = xp.flip(decay(following[:, start:stop, :]), axis=1)
            outputs = xp.flip(weight[:, start:stop, :, None] * C[:, start:stop, None, :], axis=1)
            counted = backward_counts(start, stop, end)
            observed = scan(a * a, outputs**2, q)
            q = observed[:, -1, ...]
            add("q", xp.sum(observed * counted[..., None, None], axis=1))
            if probes is not None:
                adjoints = scan(a, outputs * xp.flip(probes[:, start:stop, :], axis=1)[..., None], g)
                g = adjoints[:, -1, ...]
                add_product("Q", adjoints * counted[..., None, None])
        if "Q" in gramians and exact:
            t = slice(begin, horizon)
            steps, gates, outputs = (xp.flip(v[:, t, :], axis=1) for v in (following, weight, C))
            add_recursion("Q", steps, gates, outputs, backward_counts(begin, horizon, end))
    return {name: to_host(value) for name, value in sums.items()}
