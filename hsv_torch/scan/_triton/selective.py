# mypy: ignore-errors
# ruff: noqa: RUF005  Triton has no starred tuples
"""The selective scan on a GPU: ``h[t, c] = exp(delta[t, c] A[c]) h[t-1, c] + delta[t, c] x[t, c] B[t]``, ``y[t, c] = <C[t], h[t, c]>``.

A thread has one or two channels, and a chunk of ``STEPS`` steps of them in registers. It goes through the states of the chunk one after
the other, so that 12 states take three quarters of the time of 16, and no number of states is special. What ``B`` and ``C`` have for a step and a
state is one number, the same for all threads; they come with time as the last axis, filled up to whole chunks, so that a chunk has one address.

* ``_outputs`` goes through the chunks of a sequence in turn, with the states between them in memory, or, where there are too few channels
  and sequences to fill a GPU, every chunk by itself, from states that ``_states`` has found first.
* ``_states`` and its mirror image ``_adjoints`` have a few states of a channel in a thread, without outputs: what they find are the
  states, or the gradients of states, at the edges of the chunks.
* ``_gradients`` takes every chunk by itself: it computes its states again, then goes backward. Sums over the channels of a program are
  made inside its warp and written for each part of the channels.

The states at the edges of chunks are kept for one segment of the sequence at a time; for the backward pass the forward pass keeps those at the
edges of segments. For float32, exponentials are the ``ex2`` instruction, two units in the last place.
"""

import math

import torch
import triton
import triton.language as tl

from hsv_torch.scan._triton._launch import (
    OPTIONS,
    ceil_div,
    on_device_of,
    plain,
    segments_of,
    selective_saved_shape,
    steps_of,
)

STATES = 4  # states that `_states` and `_adjoints` have at a time, at most
PARTS = 16  # of the channels, in sums over them, at most
PROGRAMS = 1024  # warps, from which on chunks are taken in turn


@triton.jit
def _signals(pointer, at, row, left, STEPS: tl.constexpr):
    """What a signal has at ``STEPS`` steps, zero where none are left."""
    values = ()
    for k in tl.static_range(STEPS):
        values = values + (tl.load(pointer + at + k * row, mask=k < left, other=0.0),)
    return values


@triton.jit
def _states(
    delta_ptr,  # (batch, length, d)
    x_ptr,
    A_ptr,  # (n, d), times log2(e)
    B_ptr,  # (batch, n, padded)
    edges_ptr,  # (batch, chunks of the segment, n, d): the state before each chunk
    state_ptr,  # (batch, n, d): before the segment, then after it
    d,
    n,
    length,
    padded,
    segment,  # its first step, a multiple of STEPS
    n_chunks,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n_blocks = tl.cdiv(n, STATES)
    one = tl.full([], 1, tl.int64)
    row = one * d
    b, i = one * (tl.program_id(0) // n_blocks), tl.program_id(0) % n_blocks * STATES
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    h, rates = (), ()
    for s in tl.static_range(STATES):
        here = tl.where(c < d, n - i, 0) > s
        rates = rates + (tl.load(A_ptr + (i + s) * row + c, mask=here, other=0.0),)
        h = h + (tl.load(state_ptr + (b * n + i + s) * row + c, mask=here, other=0.0),)
    for chunk in range(n_chunks):
        t = segment + chunk * STEPS
        left = tl.where(c < d, length - t, 0)
        delta = _signals(delta_ptr, (b * length + t) * row + c, row, left, STEPS)
        x = _signals(x_ptr, (b * length + t) * row + c, row, left, STEPS)
        for s in tl.static_range(STATES):
            here = tl.where(c < d, n - i, 0) > s
            tl.store(edges_ptr + ((b * n_chunks + chunk) * n + i + s) * row + c, h[s], mask=here)
        for k in tl.static_range(STEPS):
            drive = delta[k] * x[k]  # past the end 0, and so is `delta`: nothing changes
            after = ()
            for s in tl.static_range(STATES):
                weight = tl.load(B_ptr + (b * n + tl.minimum(i + s, n - 1)) * padded + t + k)
                after = after + (tl.exp2(delta[k] * rates[s]) * h[s] + drive * weight,)
            h = after
    for s in tl.static_range(STATES):
        here = tl.where(c < d, n - i, 0) > s
        tl.store(state_ptr + (b * n + i + s) * row + c, h[s], mask=here)


@triton.jit
def _adjoints(
    delta_ptr,  # (batch, length, d)
    dy_ptr,
    A_ptr,  # (n, d), times log2(e)
    C_ptr,  # (batch, n, padded)
    edges_ptr,  # (batch, chunks of the segment, n, d): exp(delta A) times the gradient of the first state after each chunk
    adjoint_ptr,  # (batch, n, d): the same after the segment, then before it
    d,
    n,
    length,
    padded,
    segment,
    n_chunks,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n_blocks = tl.cdiv(n, STATES)
    one = tl.full([], 1, tl.int64)
    row = one * d
    b, i = one * (tl.program_id(0) // n_blocks), tl.program_id(0) % n_blocks * STATES
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    later, rates = (), ()
    for s in tl.static_range(STATES):
        here = tl.where(c < d, n - i, 0) > s
        rates = rates + (tl.load(A_ptr + (i + s) * row + c, mask=here, other=0.0),)
        later = later + (tl.load(adjoint_ptr + (b * n + i + s) * row + c, mask=here, other=0.0),)
    for j in range(n_chunks):
        chunk = n_chunks - 1 - j
        t = segment + chunk * STEPS
        left = tl.where(c < d, length - t, 0)
        delta = _signals(delta_ptr, (b * length + t) * row + c, row, left, STEPS)
        dy = _signals(dy_ptr, (b * length + t) * row + c, row, left, STEPS)
        for s in tl.static_range(STATES):
            here = tl.where(c < d, n - i, 0) > s
            tl.store(edges_ptr + ((b * n_chunks + chunk) * n + i + s) * row + c, later[s], mask=here)
        for k in tl.static_range(STEPS - 1, -1, -1):
            before = ()
            for s in tl.static_range(STATES):
                weight = tl.load(C_ptr + (b * n + tl.minimum(i + s, n - 1)) * padded + t + k)
                before = before + (tl.exp2(delta[k] * rates[s]) * (later[s] + dy[k] * weight),)
            later = before
    for s in tl.static_range(STATES):
        here = tl.where(c < d, n - i, 0) > s
        tl.store(adjoint_ptr + (b * n + i + s) * row + c, later[s], mask=here)


@triton.jit
def _outputs(
    delta_ptr,  # (batch, length, d)
    x_ptr,
    A_ptr,  # (n, d), times log2(e)
    B_ptr,  # (batch, n, padded)
    C_ptr,
    y_ptr,  # (batch, length, d)
    start_ptr,  # IN_TURN: (batch, n, d), before the first step, then after the last; otherwise (batch, chunks of the segment, n, d)
    saved_ptr,  # (batch, segments, n, d), written if SAVE: the states before each segment
    d,
    n,
    length,
    padded,
    segment,
    n_chunks,  # for each program
    programs,  # for each sequence: one, IN_TURN
    chunks_of_a_segment,
    n_segments,
    IN_TURN: tl.constexpr,
    SAVE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    row = one * d
    b = one * (tl.program_id(0) // programs)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = start_ptr + tl.program_id(0) * n * row + c
    for chunk in range(n_chunks):
        t = segment + (tl.program_id(0) % programs * n_chunks + chunk) * STEPS
        left = tl.where(c < d, length - t, 0)
        delta = _signals(delta_ptr, (b * length + t) * row + c, row, left, STEPS)
        x = _signals(x_ptr, (b * length + t) * row + c, row, left, STEPS)
        drives, y = (), ()
        for k in tl.static_range(STEPS):
            drives = drives + (delta[k] * x[k],)
            y = y + (tl.zeros_like(delta[k]),)
        for i in range(n):
            rate = tl.load(A_ptr + i * row + c, mask=c < d, other=0.0)
            h = tl.load(start + i * row, mask=c < d, other=0.0)
            if SAVE:
                first = tl.where(c < d, chunk % chunks_of_a_segment, 1) == 0
                at = ((b * n_segments + chunk // chunks_of_a_segment) * n + i) * row + c
                tl.store(saved_ptr + at, h, mask=first)
            sums, at = (), (b * n + i) * padded + t
            for k in tl.static_range(STEPS):
                h = tl.exp2(delta[k] * rate) * h + drives[k] * tl.load(B_ptr + at + k)
                sums = sums + (y[k] + h * tl.load(C_ptr + at + k),)
            y = sums
            if IN_TURN:
                tl.store(start + i * row, h, mask=c < d)
        for k in tl.static_range(STEPS):
            tl.store(y_ptr + (b * length + t + k) * row + c, y[k], mask=k < left)
        if IN_TURN:
            tl.debug_barrier()  # the states are read again, perhaps by another thread


@triton.jit
def _gradients(
    delta_ptr,  # (batch, length, d)
    x_ptr,
    A_ptr,  # (n, d), times log2(e)
    B_ptr,  # (batch, n, padded)
    C_ptr,
    dy_ptr,  # (batch, length, d)
    states_ptr,  # (batch, chunks of the segment, n, d), as `_states` leaves them; then the gradient of A from each chunk
    adjoints_ptr,  # as `_adjoints` leaves them
    d_delta_ptr,  # (batch, length, d)
    dx_ptr,
    dB_ptr,  # (batch, parts, n, steps of the segment), zeros before
    dC_ptr,
    d,
    n,
    length,
    padded,
    segment,
    n_chunks,
    blocks,  # of channels, in a part
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    row = one * d
    b, chunk = one * (tl.program_id(0) // n_chunks), tl.program_id(0) % n_chunks
    t = segment + chunk * STEPS
    part = b * tl.num_programs(1) + tl.program_id(1)
    for block in range(blocks):
        c = (tl.program_id(1) * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        left = tl.where(c < d, length - t, 0)
        at = (b * length + t) * row + c
        delta, x = _signals(delta_ptr, at, row, left, STEPS), _signals(x_ptr, at, row, left, STEPS)
        dy = _signals(dy_ptr, at, row, left, STEPS)
        drives, Bg, Aq = (), (), ()  # the last two are sums over the states
        for k in tl.static_range(STEPS):
            drives = drives + (delta[k] * x[k],)
            Bg, Aq = Bg + (tl.zeros_like(delta[k]),), Aq + (tl.zeros_like(delta[k]),)
        for i in range(n):
            edge = ((b * n_chunks + chunk) * n + i) * row + c
            rate = tl.load(A_ptr + i * row + c, mask=c < d, other=0.0)
            now = tl.load(states_ptr + edge, mask=c < d, other=0.0)
            later = tl.load(adjoints_ptr + edge, mask=c < d, other=0.0)
            slope = tl.zeros_like(now)
            h, decays, weights = (now,), (), ()
            weight_at, sum_at = (b * n + i) * padded + t, ((part * n + i) * n_chunks + chunk) * STEPS
            for k in tl.static_range(STEPS):
                weight = tl.load(B_ptr + weight_at + k)
                decay = tl.exp2(delta[k] * rate)
                now = decay * now + drives[k] * weight
                h, decays, weights = h + (now,), decays + (decay,), weights + (weight,)
            new_Bg, new_Aq = (), ()  # from the last step to the first
            for k in tl.static_range(STEPS - 1, -1, -1):
                weight = tl.load(C_ptr + weight_at + k)
                g = later + weight * dy[k]
                dC, dB = tl.sum(dy[k] * h[k + 1], 0), tl.sum(g * drives[k], 0)
                tl.store(dC_ptr + sum_at + k, tl.load(dC_ptr + sum_at + k) + dC)
                tl.store(dB_ptr + sum_at + k, tl.load(dB_ptr + sum_at + k) + dB)
                later = decays[k] * g
                q = later * h[k]
                slope += delta[k] * q
                new_Bg, new_Aq = new_Bg + (Bg[k] + weights[k] * g,), new_Aq + (Aq[k] + rate * q,)
            Bg, Aq = (), ()
            for k in tl.static_range(STEPS):
                Bg, Aq = Bg + (new_Bg[STEPS - 1 - k],), Aq + (new_Aq[STEPS - 1 - k],)
            tl.store(states_ptr + edge, slope, mask=c < d)
        for k in tl.static_range(STEPS):
            tl.store(dx_ptr + at + k * row, delta[k] * Bg[k], mask=k < left)
            # A is there times log2(e).
            d_delta = tl.load(x_ptr + at + k * row, mask=k < left, other=0.0) * Bg[k] + 0.6931471805599453 * Aq[k]
            tl.store(d_delta_ptr + at + k * row, d_delta, mask=k < left)
        tl.debug_barrier()  # the sums are read again, by other threads than the one that wrote them


def _block(x) -> int:
    """Channels of a program, which is one warp: two for each thread, if they are many and fit into the registers."""
    return 64 if x.shape[2] > 32 and x.element_size() == 4 else 32


def _states_of_a_thread(n: int) -> int:
    """At most ``STATES``, and so that few stay unused."""
    return ceil_div(n, ceil_div(n, STATES))


def _rates(A):
    """``(n, d)``, for exponentials of base 2. Infinite rates would meet steps of zero past the end."""
    return (A.mT * math.log2(math.e)).clamp(min=-1e30).contiguous()


def _weights(B, padded: int):
    """``(batch, n, padded)``, with zeros at the end."""
    return plain(torch.nn.functional.pad(B.mT, (0, padded - B.shape[1])))


def _to_states(initial, like, n: int):
    """A copy, or zeros, as ``(batch, n, d)``."""
    if initial is None or not len(initial):
        return like.new_zeros(like.shape[0], n, like.shape[2])
    return initial.mT.clone(memory_format=torch.contiguous_format)


def _from_states(state, wanted: bool):
    """``(batch, d, n)``, or nothing."""
    return (state if wanted else state[:0]).mT.clone(memory_format=torch.contiguous_format)


def forward(x, delta, A, B, C, initial, return_state, save):
    """Outputs, the last state if asked for, and the states before each segment if the backward pass will need them."""
    batch, length, d = x.shape
    n = A.shape[1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    saved = x.new_empty(selective_saved_shape(x, n, save))
    state = _to_states(initial, x, n)
    if not (x.numel() and n):
        return y.zero_(), _from_states(state, return_state), saved
    x, delta, rates, block = plain(x), plain(delta), _rates(A), _block(x)
    n_segments, segment = segments_of(batch, length, d, n, x.element_size())
    padded = n_segments * segment
    B, C = _weights(B, padded), _weights(C, padded)
    steps, _ = steps_of(x.element_size())
    chunks, blocks = segment // steps, ceil_div(d, block)
    sizes = {"STEPS": steps, "BLOCK": block, "num_warps": 1, **OPTIONS}
    with on_device_of(x):
        if batch * blocks >= PROGRAMS:
            arguments = delta, x, rates, B, C, y, state, saved, d, n, length, padded, 0, ceil_div(length, steps)
            _outputs[batch, blocks](*arguments, 1, chunks, n_segments, IN_TURN=True, SAVE=save, **sizes)
        else:
            edges = x.new_empty(batch, chunks, n, d)
            for k in range(n_segments):
                if save:
                    saved[:, k] = state
                first = k * segment
                _find_states(delta, x, rates, B, edges, state, first, sizes)
                arguments = delta, x, rates, B, C, y, edges, saved, d, n, length, padded, first, 1
                _outputs[batch * chunks, blocks](
                    *arguments, chunks, chunks, n_segments, IN_TURN=False, SAVE=False, **sizes
                )
    return y, _from_states(state, return_state), saved


def _find_states(delta, x, rates, B, edges, state, segment: int, sizes) -> None:
    batch, length, d = x.shape
    n, padded = B.shape[1:]
    states = _states_of_a_thread(n)
    arguments = delta, x, rates, B, edges, state, d, n, length, padded, segment, edges.shape[1]
    _states[batch * ceil_div(n, states), ceil_div(d, sizes["BLOCK"])](*arguments, STATES=states, **sizes)


def backward(x, delta, A, B, C, saved, dy, d_state, has_initial):
    """Gradients of ``x``, ``delta``, ``A``, ``B``, ``C``, and of ``initial`` if there is one."""
    batch, length, d = x.shape
    n = A.shape[1]
    adjoint = _to_states(d_state, x, n)
    if not (x.numel() and n):
        zeros = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, delta, A, B, C))
        return *zeros, _from_states(adjoint, has_initial)
    x, delta, dy, rates, block = plain(x), plain(delta), plain(dy), _rates(A), _block(x)
    n_segments, segment = segments_of(batch, length, d, n, x.element_size())
    padded = n_segments * segment
    B, C = _weights(B, padded), _weights(C, padded)
    _, steps = steps_of(x.element_size())
    chunks, blocks, states = segment // steps, ceil_div(d, block), _states_of_a_thread(n)
    blocks_of_a_part = ceil_div(blocks, PARTS)
    parts = ceil_div(blocks, blocks_of_a_part)
    sizes = {"STEPS": steps, "BLOCK": block, "num_warps": 1, **OPTIONS}
    dx, d_delta, dA = torch.empty_like(x), torch.empty_like(delta), torch.zeros_like(rates)
    dB, dC = (x.new_empty(batch, length, n) for _ in range(2))
    edges, later = (x.new_empty(batch, chunks, n, d) for _ in range(2))
    with on_device_of(x):
        for k in range(n_segments - 1, -1, -1):
            first = k * segment
            last = min(first + segment, length)
            _find_states(delta, x, rates, B, edges, saved[:, k].contiguous(), first, sizes)
            arguments = delta, dy, rates, C, later, adjoint, d, n, length, padded, first, chunks
            _adjoints[batch * ceil_div(n, states), blocks](*arguments, STATES=states, **sizes)
            sums = x.new_zeros(2, batch, parts, n, segment)
            arguments = delta, x, rates, B, C, dy, edges, later, d_delta, dx, *sums, d, n, length, padded, first
            _gradients[batch * chunks, parts](*arguments, chunks, blocks_of_a_part, **sizes)
            dB[:, first:last], dC[:, first:last] = sums.sum(2).mT[:, :, : last - first]
            dA += edges.sum((0, 1))
    return dx, d_delta, dA.mT.contiguous(), dB, dC, _from_states(adjoint, has_initial)
