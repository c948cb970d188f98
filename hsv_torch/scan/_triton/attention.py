# mypy: ignore-errors
"""Gated linear attention on a GPU: ``S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T``, ``y[t] = S[t]^T q[t]``, in chunks of time.

``_states`` goes along time with a tile of the state of one head and leaves it at the edge of every chunk; with those every chunk is by itself,
a few products of matrices (``_outputs``). Backward, ``_adjoints`` does the same against time for the gradient of the state, then
``_outputs`` against time (for the values) and ``_keys_gradient`` take every chunk by itself. With one decay a head a chunk has 32 or 64 steps,
and the decay between any two of them is a matrix. With a decay for each key it has 16, and the pairs are gone through by the earlier step.

Every exponent is a sum of the logarithms of one stretch of time, never a difference of two sums: nothing overflows where the decay is
fast, and ``-inf`` is a decay like any other. The gradient of the decay is summed in the same way, without cancellation.

Products of matrices are accumulated in float32, from factors in float32, or in TensorFloat-32 where ``torch.backends.cuda.matmul.fp32_precision`` says so. Tiles are filled up with zeros to powers of two, 16 at least, which is what the units for them
take; float64 has no such units and smaller tiles.
"""

import torch
import triton
import triton.language as tl

from hsv_torch.scan._triton._launch import OPTIONS, attention_saved_shape, ceil_div, on_device_of, plain


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """``a @ b``."""
    if PRECISION == "float64":
        product = tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def _tile(pointer, rows, columns, row, here_rows, here_columns):
    """Rows ``row`` apart, zeros outside."""
    here = here_rows[:, None] & here_columns[None, :]
    return tl.load(pointer + rows[:, None] * row + columns[None, :], mask=here, other=0.0)


@triton.jit
def _since_start(g_ptr, t, last, row, i, here_i, PER_KEY: tl.constexpr):
    """``exp(g[first] + ... + g[t])``: ``(steps, keys)``, or ``(steps, 1)`` for one decay a head. Steps past the end do not decay."""
    if PER_KEY:
        sums = tl.cumsum(_tile(g_ptr, t, i, row, t < last, here_i), 0)
    else:
        sums = tl.cumsum(tl.load(g_ptr + t * row, mask=t < last, other=0.0), 0)[:, None]
    return tl.exp(sums)


@triton.jit
def _to_end(g_ptr, t, last, row, i, here_i, PER_KEY: tl.constexpr):
    """``exp(g[t+1] + ... + g[last-1])``, likewise."""
    if PER_KEY:
        sums = tl.cumsum(_tile(g_ptr, t + 1, i, row, t + 1 < last, here_i), 0, reverse=True)
    else:
        sums = tl.cumsum(tl.load(g_ptr + (t + 1) * row, mask=t + 1 < last, other=0.0), 0, reverse=True)[:, None]
    return tl.exp(sums)


@triton.jit
def _whole(g_ptr, t, last, row, i, here_i, PER_KEY: tl.constexpr):
    """``exp(g[first] + ... + g[last-1])``, for every key."""
    if PER_KEY:
        sums = tl.sum(_tile(g_ptr, t, i, row, t < last, here_i), 0)
    else:
        sums = tl.sum(tl.load(g_ptr + t * row, mask=t < last, other=0.0), 0) + tl.where(here_i, 0.0, 0.0)
    return tl.exp(sums)


@triton.jit
def _pairs(g_ptr, t, last, row, STEPS: tl.constexpr):
    """``exp(g[s+1] + ... + g[t])`` for every row ``t`` and column ``s <= t``, zero for later ones. One decay a head."""
    k = tl.arange(0, STEPS)
    g = tl.load(g_ptr + t * row, mask=t < last, other=0.0)
    sums = tl.cumsum(tl.where(k[:, None] > k[None, :], g[:, None], 0.0), 0)
    return tl.where(k[:, None] >= k[None, :], tl.exp(sums), 0.0)


@triton.jit
def _scores(
    q_ptr,
    k_ptr,
    g_ptr,
    first,
    last,
    n,
    row,
    g_row,
    PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """``<q[t], exp(g[s+1] + ... + g[t]) k[s]>`` for every row ``t`` and column ``s <= t`` of a chunk."""
    step = tl.arange(0, STEPS)
    t = first + step
    scores = tl.zeros([STEPS, STEPS], q_ptr.dtype.element_ty)
    for block in range(tl.cdiv(n, KEYS)):
        i = block * KEYS + tl.arange(0, KEYS)
        q = _tile(q_ptr, t, i, row, t < last, i < n)
        if PER_KEY:
            sums = tl.zeros([STEPS, KEYS], q.dtype)
            for j in range(STEPS):
                s = STEPS - 1 - j  # the sums reach back one step further each time
                g = tl.load(
                    g_ptr + (first + s + 1) * g_row + i, mask=tl.where(i < n, last - first, 0) > s + 1, other=0.0
                )
                k = tl.load(k_ptr + (first + s) * row + i, mask=tl.where(i < n, last - first, 0) > s, other=0.0)
                sums = tl.where(step[:, None] > s, sums + g[None, :], 0.0)
                column = tl.sum(q * tl.exp(sums) * k[None, :], 1)
                here = (step[:, None] >= s) & (step[None, :] == s)
                scores += tl.where(here, column[:, None], 0.0)
        else:
            k = _tile(k_ptr, t, i, row, t < last, i < n)
            scores += _dot(q, tl.trans(k), PRECISION)
    if not PER_KEY:
        scores = scores * _pairs(g_ptr, t, last, g_row, STEPS)
    return scores


@triton.jit
def _states(
    k_ptr,  # (batch, length, groups, n)
    v_ptr,  # (batch, length, heads, p)
    g_ptr,  # (batch, length, heads), or (batch, length, groups, n) if PER_KEY
    edges_ptr,  # (batch, heads, chunks, n, p): the state before each chunk
    state_ptr,  # (batch, heads, n, p): before the first step, then after the last
    length,
    groups,
    heads,
    n,
    p,
    n_chunks,
    PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    b, head = one * (tl.program_id(0) // heads), tl.program_id(0) % heads
    group = head // (heads // groups)
    i, c = tl.program_id(1) * KEYS + tl.arange(0, KEYS), tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    row, v_row = one * groups * n, one * heads * p
    k_ptr += b * length * row + group * n
    v_ptr += b * length * v_row + head * p
    if PER_KEY:
        g_ptr += b * length * row + group * n
        g_row = row
    else:
        g_ptr += b * length * heads + head
        g_row = one * heads
    size = one * n * p
    edges_ptr += (b * heads + head) * n_chunks * size
    state_ptr += (b * heads + head) * size
    S = _tile(state_ptr, i, c, p, i < n, c < p)
    for chunk in range(n_chunks):
        here = (i < n)[:, None] & (c < p)[None, :]
        tl.store(edges_ptr + chunk * size + i[:, None] * p + c[None, :], S, mask=here)
        t = chunk * STEPS + tl.arange(0, STEPS)
        last = tl.minimum(chunk * STEPS + STEPS, length)
        k, v = _tile(k_ptr, t, i, row, t < last, i < n), _tile(v_ptr, t, c, v_row, t < last, c < p)
        to_end = _to_end(g_ptr, t, last, g_row, i, i < n, PER_KEY)
        whole = _whole(g_ptr, t, last, g_row, i, i < n, PER_KEY)
        S = whole[:, None] * S + _dot(tl.trans(k * to_end), v, PRECISION)
    tl.store(state_ptr + i[:, None] * p + c[None, :], S, mask=(i < n)[:, None] & (c < p)[None, :])


@triton.jit
def _adjoints(
    q_ptr,
    dy_ptr,  # (batch, length, heads, p)
    g_ptr,
    edges_ptr,  # (batch, heads, chunks, n, p): the gradient of the state after each chunk
    adjoint_ptr,  # (batch, heads, n, p): of the last state, then of the one before the first step
    length,
    groups,
    heads,
    n,
    p,
    n_chunks,
    PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    b, head = one * (tl.program_id(0) // heads), tl.program_id(0) % heads
    group = head // (heads // groups)
    i, c = tl.program_id(1) * KEYS + tl.arange(0, KEYS), tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    row, v_row = one * groups * n, one * heads * p
    q_ptr += b * length * row + group * n
    dy_ptr += b * length * v_row + head * p
    if PER_KEY:
        g_ptr += b * length * row + group * n
        g_row = row
    else:
        g_ptr += b * length * heads + head
        g_row = one * heads
    size = one * n * p
    edges_ptr += (b * heads + head) * n_chunks * size
    adjoint_ptr += (b * heads + head) * size
    dS = _tile(adjoint_ptr, i, c, p, i < n, c < p)
    for j in range(n_chunks):
        chunk = n_chunks - 1 - j
        here = (i < n)[:, None] & (c < p)[None, :]
        tl.store(edges_ptr + chunk * size + i[:, None] * p + c[None, :], dS, mask=here)
        t = chunk * STEPS + tl.arange(0, STEPS)
        last = tl.minimum(chunk * STEPS + STEPS, length)
        q, dy = _tile(q_ptr, t, i, row, t < last, i < n), _tile(dy_ptr, t, c, v_row, t < last, c < p)
        since_start = _since_start(g_ptr, t, last, g_row, i, i < n, PER_KEY)
        whole = _whole(g_ptr, t, last, g_row, i, i < n, PER_KEY)
        dS = whole[:, None] * dS + _dot(tl.trans(q * since_start), dy, PRECISION)
    tl.store(adjoint_ptr + i[:, None] * p + c[None, :], dS, mask=(i < n)[:, None] & (c < p)[None, :])


@triton.jit
def _outputs(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    edges_ptr,  # (batch, heads, chunks, n, p): the state before each chunk; AGAINST: the gradient of the state after it
    y_ptr,  # (batch, length, heads, p)
    length,
    groups,
    heads,
    n,
    p,
    n_chunks,
    AGAINST: tl.constexpr,  # time: the gradient of v from that of y, which is in v's place
    PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    b, head = one * (tl.program_id(0) // n_chunks // heads), tl.program_id(0) // n_chunks % heads
    group, chunk = head // (heads // groups), tl.program_id(0) % n_chunks
    c = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    row, v_row = one * groups * n, one * heads * p
    q_ptr += b * length * row + group * n
    k_ptr += b * length * row + group * n
    v_ptr += b * length * v_row + head * p
    y_ptr += b * length * v_row + head * p
    if PER_KEY:
        g_ptr += b * length * row + group * n
        g_row = row
    else:
        g_ptr += b * length * heads + head
        g_row = one * heads
    edges_ptr += ((b * heads + head) * n_chunks + chunk) * n * p
    first = chunk * STEPS
    last = tl.minimum(first + STEPS, length)
    t = first + tl.arange(0, STEPS)
    scores = _scores(q_ptr, k_ptr, g_ptr, first, last, n, row, g_row, PER_KEY, PRECISION, STEPS, KEYS)
    v = _tile(v_ptr, t, c, v_row, t < last, c < p)
    if AGAINST:
        y = _dot(tl.trans(scores), v, PRECISION)
    else:
        y = _dot(scores, v, PRECISION)
    for block in range(tl.cdiv(n, KEYS)):
        i = block * KEYS + tl.arange(0, KEYS)
        S = _tile(edges_ptr, i, c, p, i < n, c < p)
        if AGAINST:
            decay = _to_end(g_ptr, t, last, g_row, i, i < n, PER_KEY)
            side = _tile(k_ptr, t, i, row, t < last, i < n)
        else:
            decay = _since_start(g_ptr, t, last, g_row, i, i < n, PER_KEY)
            side = _tile(q_ptr, t, i, row, t < last, i < n)
        y += _dot(side * decay, S, PRECISION)
    tl.store(y_ptr + t[:, None] * v_row + c[None, :], y, mask=(t < last)[:, None] & (c < p)[None, :])


@triton.jit
def _keys_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    dy_ptr,
    states_ptr,  # (batch, heads, chunks, n, p), of `_states`
    adjoints_ptr,  # of `_adjoints`
    dq_ptr,  # (batch, length, heads, n), for each head of a group; so are
    dk_ptr,
    dg_ptr,  # and this if PER_KEY; otherwise (batch, blocks of keys, length, heads), to be added up
    length,
    groups,
    heads,
    n,
    p,
    n_chunks,
    PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
):
    one = tl.full([], 1, tl.int64)
    b, head = one * (tl.program_id(0) // n_chunks // heads), tl.program_id(0) // n_chunks % heads
    group, chunk = head // (heads // groups), tl.program_id(0) % n_chunks
    step = tl.arange(0, STEPS)
    i = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    row, v_row, out_row = one * groups * n, one * heads * p, one * heads * n
    q_ptr += b * length * row + group * n
    k_ptr += b * length * row + group * n
    v_ptr += b * length * v_row + head * p
    dy_ptr += b * length * v_row + head * p
    dq_ptr += b * length * out_row + head * n
    dk_ptr += b * length * out_row + head * n
    if PER_KEY:
        g_ptr += b * length * row + group * n
        g_row = row
        dg_ptr += b * length * out_row + head * n
    else:
        g_ptr += b * length * heads + head
        g_row = one * heads
        dg_ptr += (b * tl.num_programs(1) + tl.program_id(1)) * length * heads + head
    states_ptr += ((b * heads + head) * n_chunks + chunk) * n * p
    adjoints_ptr += ((b * heads + head) * n_chunks + chunk) * n * p
    first = chunk * STEPS
    last = tl.minimum(first + STEPS, length)
    t = first + step
    q, k = _tile(q_ptr, t, i, row, t < last, i < n), _tile(k_ptr, t, i, row, t < last, i < n)
    d_scores = tl.zeros([STEPS, STEPS], q.dtype)
    dq, dk = tl.zeros([STEPS, KEYS], q.dtype), tl.zeros([STEPS, KEYS], q.dtype)
    through = tl.zeros([KEYS], q.dtype)  # <state before the chunk, gradient of the state after it>
    for block in range(tl.cdiv(p, VALUES)):
        c = block * VALUES + tl.arange(0, VALUES)
        dy, v = _tile(dy_ptr, t, c, v_row, t < last, c < p), _tile(v_ptr, t, c, v_row, t < last, c < p)
        S, dS = _tile(states_ptr, i, c, p, i < n, c < p), _tile(adjoints_ptr, i, c, p, i < n, c < p)
        d_scores += _dot(dy, tl.trans(v), PRECISION)
        dq += _dot(dy, tl.trans(S), PRECISION)
        dk += _dot(v, tl.trans(dS), PRECISION)
        through += tl.sum(S * dS, 1)
    dq = dq * _since_start(g_ptr, t, last, g_row, i, i < n, PER_KEY)
    dk = dk * _to_end(g_ptr, t, last, g_row, i, i < n, PER_KEY)
    through = through * _whole(g_ptr, t, last, g_row, i, i < n, PER_KEY)
    # What passes over step t comes from before it and goes to t or later: from the state before the chunk to an output, from a key to the state after
    # the chunk, from state to state, from a key to an output.
    into, out_of = q * dq, k * dk
    if PER_KEY:
        dg = tl.cumsum(into, 0, reverse=True) + through[None, :]
        dg += tl.cumsum(out_of, 0) - out_of
        sums = tl.zeros([STEPS, KEYS], q.dtype)
        for j in range(STEPS):
            s = STEPS - 1 - j
            g_row_s = tl.load(
                g_ptr + (first + s + 1) * g_row + i, mask=tl.where(i < n, last - first, 0) > s + 1, other=0.0
            )
            k_row_s = tl.load(k_ptr + (first + s) * row + i, mask=tl.where(i < n, last - first, 0) > s, other=0.0)
            sums = tl.where(step[:, None] > s, sums + g_row_s[None, :], 0.0)
            column = tl.sum(tl.where(step[None, :] == s, d_scores, 0.0), 1)
            decay = tl.where(step[:, None] >= s, column[:, None] * tl.exp(sums), 0.0)
            dq += decay * k_row_s[None, :]
            to_key = q * decay
            dk += tl.where(step[:, None] == s, tl.sum(to_key, 0)[None, :], 0.0)
            dg += tl.where(step[:, None] > s, tl.cumsum(to_key * k_row_s[None, :], 0, reverse=True), 0.0)
        tl.store(dg_ptr + t[:, None] * out_row + i[None, :], dg, mask=(t < last)[:, None] & (i < n)[None, :])
    else:
        d_scores = d_scores * _pairs(g_ptr, t, last, g_row, STEPS)
        dq += _dot(d_scores, k, PRECISION)
        dk += _dot(tl.trans(d_scores), q, PRECISION)
        between = tl.cumsum(d_scores * _dot(q, tl.trans(k), PRECISION), 0, reverse=True)
        dg = tl.sum(tl.where(step[:, None] > step[None, :], between, 0.0), 1)
        from_keys = tl.sum(out_of, 1)
        dg += tl.cumsum(tl.sum(into, 1), 0, reverse=True) + tl.cumsum(from_keys, 0) - from_keys
        dg += tl.sum(through, 0)
        tl.store(dg_ptr + t * heads, dg, mask=t < last)
    here = (t < last)[:, None] & (i < n)[None, :]
    tl.store(dq_ptr + t[:, None] * out_row + i[None, :], dq, mask=here)
    tl.store(dk_ptr + t[:, None] * out_row + i[None, :], dk, mask=here)


def _power_of_two(size: int, most: int) -> int:
    """The side of a tile: at least 16, as matrix products need it."""
    return min(max(16, triton.next_power_of_2(size)), most)


def _sizes(q, v, log_decay) -> dict:
    """What every kernel is compiled for."""
    per_key, tf32 = log_decay.ndim == 4, torch.backends.cuda.matmul.fp32_precision == "tf32"
    if v.dtype == torch.float64:
        precision, steps, most = "float64", 16, 16
    elif tf32:
        precision, steps, most = "tf32", 64, 64
    else:
        # Without the units for matrix products every operand is in registers, which larger tiles do not fit into.
        precision, steps, most = "ieee", 32, 64 if per_key else 32
    keys, values = _power_of_two(q.shape[3], most), _power_of_two(v.shape[3], most)
    return {
        "PER_KEY": per_key,
        "PRECISION": precision,
        "STEPS": 16 if per_key else steps,
        "KEYS": keys,
        "VALUES": values,
        "num_warps": 8 if max(keys, values) > 32 else 4,
        "num_stages": 2,
        **OPTIONS,
    }


def _edges(kernel, side, values, log_decay, state, sizes):
    """States, or their gradients, at the edges of the chunks, and in ``state`` the last one."""
    batch, length, groups, n = side.shape
    heads, p = values.shape[2:]
    n_chunks = ceil_div(length, sizes["STEPS"])
    edges = values.new_empty(batch, heads, n_chunks, n, p)
    grid = batch * heads, ceil_div(n, sizes["KEYS"]), ceil_div(p, sizes["VALUES"])
    kernel[grid](side, values, log_decay, edges, state, length, groups, heads, n, p, n_chunks, **sizes)
    return edges


def _values(q, k, v, log_decay, edges, sizes, *, against: bool):
    batch, length, groups, n = q.shape
    heads, p = v.shape[2:]
    y, n_chunks = torch.empty_like(v), edges.shape[2]
    grid = batch * heads * n_chunks, ceil_div(p, sizes["VALUES"])
    _outputs[grid](q, k, v, log_decay, edges, y, length, groups, heads, n, p, n_chunks, AGAINST=against, **sizes)
    return y


def forward(q, k, v, log_decay, initial, return_state, save):
    """Outputs, the last state if asked for, and the first one if the backward pass will need it."""
    saved = v.new_empty(attention_saved_shape(q, v, save))
    state = v.new_zeros(v.shape[0], v.shape[2], q.shape[3], v.shape[3])
    if initial is not None:
        state.copy_(initial)
    if save:
        saved.copy_(state)
    q, k, v, log_decay = (plain(t) for t in (q, k, v, log_decay))
    if v.numel() and q.shape[3]:
        sizes = _sizes(q, v, log_decay)
        with on_device_of(v):
            edges = _edges(_states, k, v, log_decay, state, sizes)
            y = _values(q, k, v, log_decay, edges, sizes, against=False)
    else:
        y = torch.zeros_like(v)
    return y, state if return_state else state[:0].clone(), saved


def backward(q, k, v, log_decay, saved, dy, d_state, has_initial):
    """Gradients of ``q``, ``k``, ``v`` and ``log_decay``, and of ``initial`` if there is one."""
    batch, length, groups, n = q.shape
    heads, p = v.shape[2:]
    adjoint = v.new_zeros(batch, heads, n, p)
    if len(d_state):
        adjoint.copy_(d_state)
    q, k, v, log_decay, dy = (plain(t) for t in (q, k, v, log_decay, dy))
    if v.numel() and n:
        sizes = _sizes(q, v, log_decay)
        per_key, blocks = log_decay.ndim == 4, ceil_div(n, sizes["KEYS"])
        dq, dk = (v.new_empty(batch, length, heads, n) for _ in range(2))
        dg = torch.empty_like(dq) if per_key else v.new_empty(batch, blocks, length, heads)
        with on_device_of(v):
            states = _edges(_states, k, v, log_decay, saved.clone(), sizes)
            adjoints = _edges(_adjoints, q, dy, log_decay, adjoint, sizes)
            dv = _values(q, k, dy, log_decay, adjoints, sizes, against=True)
            arguments = (
                q,
                k,
                v,
                log_decay,
                dy,
                states,
                adjoints,
                dq,
                dk,
                dg,
                length,
                groups,
                heads,
                n,
                p,
                states.shape[2],
            )
            _keys_gradient[batch * heads * states.shape[2], blocks](*arguments, **sizes)
        dq, dk = (_sum_of_heads(t, groups) for t in (dq, dk))
        dg = _sum_of_heads(dg, groups) if per_key else dg.sum(1)
    else:
        dq, dk, dv, dg = (torch.zeros_like(t) for t in (q, k, v, log_decay))
    return dq, dk, dv, dg, adjoint if has_initial else adjoint[:0].clone()


def _sum_of_heads(gradient, groups: int):
    """``(batch, length, heads, n)`` to ``(batch, length, groups, n)``."""
    return gradient.unflatten(2, (groups, -1)).sum(3) if gradient.shape[2] > groups else gradient
