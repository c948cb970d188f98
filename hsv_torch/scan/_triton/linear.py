# mypy: ignore-errors
# ruff: noqa: RUF005  Triton has no starred tuples
"""``h[t] = a[t] h[t-1] + u[t]`` on a GPU, real or complex.

A thread has one state of one sequence. Where there are too few of those to fill the GPU, the sequences are cut into pieces: first every
piece is scanned from zero and only its end and the product of its ``a`` are kept, then the ends are scanned, which is the same problem with
fewer steps, and at last every piece is scanned from where the one before ends. That reads ``u`` twice: three passes
through memory instead of two.

Complex numbers are pairs of real ones in memory; here a number is a tuple of one or two tensors.
"""

import torch
import triton
import triton.language as tl

from hsv_torch.scan._triton._launch import OPTIONS, ceil_div, on_device_of, plain

# Threads with loads on their way that hide the latency of memory on a large GPU. A constant, so that results do not depend on the GPU.
LANES = 2**17
BLOCK = 128  # states of a program, one for each thread
# Steps of a piece, a multiple of those that are loaded at once: in shorter ones the ends would be as much work as the rest.
SHORTEST = 64
MOST = 2**15  # pieces: a launch has a limit


@triton.jit
def _load(pointer, offsets, mask, IS_COMPLEX: tl.constexpr):
    if IS_COMPLEX:
        pair = 2 * offsets[:, None] + tl.arange(0, 2)[None, :]
        re, im = tl.split(tl.load(pointer + pair, mask=mask[:, None], other=0.0))
        number = re, im
    else:
        number = (tl.load(pointer + offsets, mask=mask, other=0.0),)
    return number


@triton.jit
def _store(pointer, offsets, number, mask, IS_COMPLEX: tl.constexpr):
    if IS_COMPLEX:
        pair = 2 * offsets[:, None] + tl.arange(0, 2)[None, :]
        tl.store(pointer + pair, tl.join(number[0], number[1]), mask=mask[:, None])
    else:
        tl.store(pointer + offsets, number[0], mask=mask)


@triton.jit
def _product_add(a, b, c, IS_COMPLEX: tl.constexpr):
    """``a b + c``."""
    if IS_COMPLEX:
        number = a[0] * b[0] - a[1] * b[1] + c[0], a[0] * b[1] + a[1] * b[0] + c[1]
    else:
        number = (a[0] * b[0] + c[0],)
    return number


@triton.jit
def _conj_product_add(a, b, c, IS_COMPLEX: tl.constexpr):
    """``conj(a) b + c``."""
    if IS_COMPLEX:
        number = a[0] * b[0] + a[1] * b[1] + c[0], a[0] * b[1] - a[1] * b[0] + c[1]
    else:
        number = (a[0] * b[0] + c[0],)
    return number


@triton.jit
def _add(a, b, IS_COMPLEX: tl.constexpr):
    if IS_COMPLEX:
        number = a[0] + b[0], a[1] + b[1]
    else:
        number = (a[0] + b[0],)
    return number


@triton.jit
def _real(value: tl.constexpr, like, IS_COMPLEX: tl.constexpr):
    """A real number in every lane."""
    if IS_COMPLEX:
        number = tl.full(like[0].shape, value, like[0].dtype), tl.zeros(like[0].shape, like[0].dtype)
    else:
        number = (tl.full(like[0].shape, value, like[0].dtype),)
    return number


@triton.jit
def _forward(
    a_ptr,  # (1 or batch, 1 or length, n); its steps in memory are `a_batch` and `a_time`
    u_ptr,  # (batch, length, n)
    h_ptr,  # (batch, length, n), written if WRITE
    start_ptr,  # (batch, pieces, n), read if WRITE
    end_ptr,  # (batch, pieces, n), written if not WRITE; so is `product_ptr`. Those of the last piece mean nothing.
    product_ptr,
    n_lanes,
    n,
    length,
    piece,  # a multiple of STEPS
    a_batch,
    a_time,
    WRITE: tl.constexpr,
    VARYING: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < n_lanes
    b, i = lane // n, lane % n
    first = tl.program_id(1) * piece
    last = tl.minimum(first + piece, length)
    edge = (b * tl.num_programs(1) + tl.program_id(1)) * n + i
    a_at, at = b * a_batch + i, b * length * n + i
    one = tl.full([], 1, tl.int64)
    row, a_row = one * n, one * a_time  # offsets between steps, of 64 bits
    a = _load(a_ptr, a_at, mask, IS_COMPLEX)
    zero = _real(0.0, a, IS_COMPLEX)
    product = _real(1.0, a, IS_COMPLEX)
    if WRITE:
        h = _load(start_ptr, edge, mask, IS_COMPLEX)
    else:
        h = zero
    for block in range(tl.cdiv(last - first, STEPS)):
        t = first + block * STEPS
        left = tl.where(mask, last - t, 0)  # steps
        rates, drives = (), ()
        for k in tl.static_range(STEPS):
            here = k < left
            drives = drives + (_load(u_ptr, at + (t + k) * row, here, IS_COMPLEX),)
            if VARYING:
                rates = rates + (_load(a_ptr, a_at + (t + k) * a_row, here, IS_COMPLEX),)
            else:
                rates = rates + (a,)
        for k in tl.static_range(STEPS):
            h = _product_add(rates[k], h, drives[k], IS_COMPLEX)
            if WRITE:
                _store(h_ptr, at + (t + k) * row, h, k < left, IS_COMPLEX)
            else:
                product = _product_add(rates[k], product, zero, IS_COMPLEX)
    if not WRITE:
        _store(end_ptr, edge, h, mask, IS_COMPLEX)
        _store(product_ptr, edge, product, mask, IS_COMPLEX)


@triton.jit
def _backward(
    a_ptr,
    h_ptr,  # (batch, length, n), read if WRITE
    initial_ptr,  # (batch, n)
    dh_ptr,  # (batch, length, n)
    du_ptr,  # (batch, length, n)
    da_ptr,  # (batch, length, n) if VARYING, otherwise sums over the piece: (batch, pieces, n)
    start_ptr,  # (batch, pieces, n): conj(a) times the gradient of the first state after the piece; read if WRITE
    end_ptr,  # (batch, pieces, n): the same of the first state of the piece
    product_ptr,  # as above, of conj(a); written if not WRITE
    n_lanes,
    n,
    length,
    piece,
    a_batch,
    a_time,
    WRITE: tl.constexpr,
    VARYING: tl.constexpr,
    IS_COMPLEX: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < n_lanes
    b, i = lane // n, lane % n
    first = tl.program_id(1) * piece
    last = tl.minimum(first + piece, length)
    edge = (b * tl.num_programs(1) + tl.program_id(1)) * n + i
    a_at, at = b * a_batch + i, b * length * n + i
    one = tl.full([], 1, tl.int64)
    row, a_row = one * n, one * a_time  # offsets between steps, of 64 bits
    a = _load(a_ptr, a_at, mask, IS_COMPLEX)
    zero = _real(0.0, a, IS_COMPLEX)
    product, da = _real(1.0, a, IS_COMPLEX), zero
    if WRITE:
        later = _load(start_ptr, edge, mask, IS_COMPLEX)
        initial = _load(initial_ptr, b * n + i, mask, IS_COMPLEX)
    else:
        later = zero
    n_blocks = tl.cdiv(last - first, STEPS)
    for block in range(n_blocks):
        t = first + (n_blocks - 1 - block) * STEPS
        left, past = tl.where(mask, last - t, 0), tl.where(mask, t, 0)  # steps
        rates, gradients, states = (), (), ()
        # Steps past the end come first, when `later` is still zero, and stay so: their loads give zeros.
        for k in tl.static_range(STEPS):
            here = k < left
            gradients = gradients + (_load(dh_ptr, at + (t + k) * row, here, IS_COMPLEX),)
            if VARYING:
                rates = rates + (_load(a_ptr, a_at + (t + k) * a_row, here, IS_COMPLEX),)
            else:
                rates = rates + (a,)
            if WRITE:
                before = _load(h_ptr, at + (t + k - 1) * row, here & (past + k > 0), IS_COMPLEX)
                if k == 0:
                    if IS_COMPLEX:
                        before = tl.where(past > 0, before[0], initial[0]), tl.where(past > 0, before[1], initial[1])
                    else:
                        before = (tl.where(past > 0, before[0], initial[0]),)
                states = states + (before,)
        for k in tl.static_range(STEPS - 1, -1, -1):
            g = _add(gradients[k], later, IS_COMPLEX)
            later = _conj_product_add(rates[k], g, zero, IS_COMPLEX)
            if WRITE:
                here = k < left
                _store(du_ptr, at + (t + k) * row, g, here, IS_COMPLEX)
                if VARYING:
                    slope = _conj_product_add(states[k], g, zero, IS_COMPLEX)
                    _store(da_ptr, at + (t + k) * row, slope, here, IS_COMPLEX)
                else:
                    da = _conj_product_add(states[k], g, da, IS_COMPLEX)
            else:
                product = _conj_product_add(rates[k], product, zero, IS_COMPLEX)
    _store(end_ptr, edge, later, mask, IS_COMPLEX)
    if WRITE:
        if not VARYING:
            _store(da_ptr, edge, da, mask, IS_COMPLEX)
    else:
        _store(product_ptr, edge, product, mask, IS_COMPLEX)


def pieces_of(batch: int, length: int, n: int) -> tuple[int, int]:
    """Into how many pieces to cut the time axis, and how long they are."""
    wanted = min(ceil_div(LANES, batch * n), length // SHORTEST, MOST)
    if wanted <= 1:
        return 1, ceil_div(length, SHORTEST) * SHORTEST
    piece = ceil_div(ceil_div(length, wanted), SHORTEST) * SHORTEST
    return ceil_div(length, piece), piece


def _run(kernel, a, u, *pointers, pieces, piece, write):
    """Launch one of the two kernels; complex tensors go as real ones."""
    batch, length, n = u.shape
    is_complex = u.is_complex()
    strides = [0 if size == 1 else stride for size, stride in zip(a.shape[:2], a.stride()[:2], strict=True)]
    pointers = [torch.view_as_real(t) if is_complex else t for t in (a, *pointers)]
    kernel[(ceil_div(batch * n, BLOCK), pieces)](
        *pointers,
        batch * n,
        n,
        length,
        piece,
        *strides,
        WRITE=write,
        VARYING=a.shape[1] > 1,
        IS_COMPLEX=is_complex,
        STEPS=16 if u.element_size() == 4 else 8,
        BLOCK=BLOCK,
        num_warps=BLOCK // 32,
        **OPTIONS,
    )


def forward(a, u, initial):
    """``a (1 or batch, 1 or length, n)``, ``u (batch, length, n)``, ``initial (batch, n)``."""
    a, u, initial = (plain(t) for t in (a, u, initial))
    h = torch.empty_like(u)
    if h.numel() == 0:
        return h
    batch, length, n = u.shape
    pieces, piece = pieces_of(batch, length, n)
    with on_device_of(u):
        start = initial[:, None]
        if pieces > 1:
            end, product = (u.new_empty(batch, pieces, n) for _ in range(2))
            _run(_forward, a, u, u, h, u, end, product, pieces=pieces, piece=piece, write=False)
            start = torch.cat([start, forward(product, end, initial)[:, :-1]], 1)
        _run(_forward, a, u, u, h, start, u, u, pieces=pieces, piece=piece, write=True)
    return h


def backward(a, h, initial, dh):
    """Gradients of ``a``, ``u`` and ``initial``."""
    a, h, initial, dh = (plain(t) for t in (a, h, initial, dh))
    if h.numel() == 0:
        return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(initial)
    batch, length, n = h.shape
    pieces, piece = pieces_of(batch, length, n)
    du = torch.empty_like(h)
    da = torch.empty_like(h) if a.shape[1] > 1 else h.new_empty(batch, pieces, n)
    arguments = h, initial, dh, du, da
    with on_device_of(h):
        start = h.new_zeros(batch, pieces, n)
        if pieces > 1:
            end, product = (h.new_empty(batch, pieces, n) for _ in range(2))
            _run(_backward, a, h, *arguments, start, end, product, pieces=pieces, piece=piece, write=False)
            after = forward(product.flip(1), end.flip(1), torch.zeros_like(initial))  # of the last piece first
            start = torch.cat([after[:, :-1].flip(1), start[:, :1]], 1)
        end = torch.empty_like(start)
        _run(_backward, a, h, *arguments, start, end, end, pieces=pieces, piece=piece, write=True)
    return da.sum_to_size(a.shape), du, end[:, 0].clone()
