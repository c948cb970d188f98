"""The CPU kernels as PyTorch operators, each with its shapes for tracing and its own backward pass; ``_cuda.py`` adds those of CUDA devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hsv_torch.scan import _threads
from hsv_torch.scan._triton import _launch

# The tiling of the kernels, needed here for shapes while tracing, when Numba should stay out; a test compares them.
N_BYTES = 64
CHUNK = 24
GROUP = 8
SELECTIVE_CHUNK = 64
ATTENTION_CHUNK = 64

_USE_REFERENCE = "compute them in plain PyTorch (`hsv_torch.scan.reference`)"


def refuse_second_derivative(ctx: Any, *_: Tensor) -> None:
    """The backward pass of every backward operator."""
    raise NotImplementedError(f"the scans have no second derivative; drop `create_graph=True`, or {_USE_REFERENCE}")


def call(operator: Callable[..., Any], *arguments: Any) -> Any:
    """``operator(*arguments)``, where PyTorch can differentiate it.

    Forward mode would silently leave out tangents, for an operator has a backward pass only; the reverse mode of ``torch.func`` refuses operators
    with a message that names none.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors if t.is_floating_point() or t.is_complex()):
        raise NotImplementedError(f"the scans have no forward-mode derivative; {_USE_REFERENCE}")
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "setup_context" in str(error):
            raise NotImplementedError(
                f"the scans have no gradient inside `torch.func.grad` and its kin; use `torch.autograd.grad`, or {_USE_REFERENCE}"
            ) from error
        raise


def _kernels() -> Any:
    from hsv_torch.scan import _numba  # Numba takes a while to import: only when a kernel is needed

    return _numba


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def as_array(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, contiguous, as an array that may be written to."""
    tensor = tensor.detach().contiguous().resolve_conj().resolve_neg()
    # Tensor.numpy() pins the memory for good, but `fully_shard` frees that of a gathered parameter by resizing it.
    view = np.from_dlpack(tensor)
    return view if view.flags.writeable else tensor.numpy()  # NumPy before 2.1 lets nobody write there


# --- h[t] = a[t] h[t-1] + u[t] ---------------------------------------------------------------------------------------


def _blocks(batch: int, n: int) -> int:
    """Into how many blocks of states to cut a sequence, where there are fewer sequences than threads; at least 64 states each."""
    return 1 if batch >= torch.get_num_threads() else max(1, n // 64)


def _past_caches(h: Tensor) -> bool:
    """Whether a result is too large for caches, so that it is written without being read first, and aligned, as that needs."""
    row = h.shape[2] * h.element_size()
    return h.numel() * h.element_size() > 2**25 and row % N_BYTES == 0 and h.data_ptr() % N_BYTES == 0


@torch.library.custom_op("hsv_torch::linear_scan", mutates_args=(), device_types="cpu")
def linear_scan(a: Tensor, u: Tensor, initial: Tensor) -> Tensor:
    """``a (1 or batch, 1 or length, n)``, ``u (batch, length, n)``, ``initial (batch, n)``, all of one dtype."""
    h = _empty(u)
    if h.numel():
        batch, _, n = u.shape
        blocks = _blocks(batch, n)
        arguments = blocks, _past_caches(h), as_array(a), as_array(u), as_array(initial), h.numpy()
        _threads.run(_kernels().linear_forward, batch * blocks, *arguments, operations=4 * u.numel())
    return h


@linear_scan.register_fake
def _(a: Tensor, u: Tensor, initial: Tensor) -> Tensor:
    return _empty(u)


@torch.library.custom_op("hsv_torch::linear_scan_backward", mutates_args=(), device_types="cpu")
def linear_scan_backward(a: Tensor, h: Tensor, initial: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``a``, ``u`` and ``initial``."""
    batch, length, n = h.shape
    du = _empty(h)
    da = torch.zeros(batch, min(a.shape[1], length), n, dtype=h.dtype)
    d_initial = torch.zeros_like(initial, memory_format=torch.contiguous_format)
    if h.numel():
        blocks = _blocks(batch, n)
        arguments = as_array(a), as_array(h), as_array(initial), as_array(dh), du.numpy(), da.numpy(), d_initial.numpy()
        _threads.run(
            _kernels().linear_backward, batch * blocks, blocks, _past_caches(h), *arguments, operations=8 * h.numel()
        )
    if a.shape[0] == 1:
        da = da.sum(0, keepdim=True)
    return da.sum_to_size(a.shape) if da.numel() else torch.zeros_like(a), du, d_initial


@linear_scan_backward.register_fake
def _(a: Tensor, h: Tensor, initial: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(a), _empty(h), _empty(initial)


def _save_linear(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    a, _, initial = inputs
    ctx.save_for_backward(a, output, initial)


def _linear_gradients(ctx: Any, dh: Tensor) -> tuple[Tensor, ...]:
    return linear_scan_backward(*ctx.saved_tensors, dh)


linear_scan.register_autograd(_linear_gradients, setup_context=_save_linear)


# --- y = Re(C h), h[t] = poles h[t-1] + B x[t] -----------------------------------------------------------------------


def _padded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of ``(n, channels)``, flat, with channels up to a multiple of the kernel's group."""
    n, channels = matrix.shape
    padded = np.zeros((2, n, -(-channels // GROUP) * GROUP), matrix.real.dtype)
    padded[0, :, :channels], padded[1, :, :channels] = matrix.real, matrix.imag
    return padded[0].ravel(), padded[1].ravel()


def _coefficients(poles: Tensor, B: Tensor, C: Tensor) -> tuple[np.ndarray, ...]:
    values = as_array(poles)
    return values.real.copy(), values.imag.copy(), *_padded(as_array(B)), *_padded(as_array(C).conj().T)


def _saved_shape(x: Tensor, n: int, save: bool) -> tuple[int, int, int]:
    lanes = N_BYTES // x.element_size()  # sequences in a tile
    return -(-x.shape[0] // lanes), -(-x.shape[1] // CHUNK) if save else 0, 2 * n * lanes


@torch.library.custom_op("hsv_torch::diagonal_scan", mutates_args=(), device_types="cpu")
def diagonal_scan(x: Tensor, poles: Tensor, B: Tensor, C: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """Outputs ``(batch, length, n_outputs)``, and the states between chunks if the backward pass will need them."""
    batch, length, _ = x.shape
    n = poles.shape[0]
    y = x.new_empty(batch, length, C.shape[0])
    saved = x.new_empty(_saved_shape(x, n, save))
    if not (y.numel() and x.numel() and n):
        y.zero_()
    else:
        operations = batch * length * n * 2 * (B.shape[1] + C.shape[0] + 2)
        arguments = as_array(x), *_coefficients(poles, B, C), y.numpy(), saved.numpy()
        _threads.run(_kernels().diagonal_forward, saved.shape[0], *arguments, operations=operations)
    return y, saved


@diagonal_scan.register_fake
def _(x: Tensor, poles: Tensor, B: Tensor, C: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], C.shape[0]), x.new_empty(_saved_shape(x, poles.shape[0], save))


@torch.library.custom_op("hsv_torch::diagonal_scan_backward", mutates_args=(), device_types="cpu")
def diagonal_scan_backward(
    x: Tensor, poles: Tensor, B: Tensor, C: Tensor, saved: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``poles``, ``B`` and ``C``."""
    n, n_inputs = B.shape
    n_outputs = C.shape[0]
    dx = _empty(x)
    if not (dx.numel() and dy.numel() and n):
        return dx.zero_(), torch.zeros_like(poles), torch.zeros_like(B), torch.zeros_like(C)
    coefficients = _coefficients(poles, B, C)
    tiles = saved.shape[0]
    sums = [np.empty((tiles, array.size)) for array in coefficients]
    operations = x.shape[0] * x.shape[1] * n * 5 * (n_inputs + n_outputs + 2)
    arguments = as_array(x), *coefficients, saved.numpy(), as_array(dy), dx.numpy(), *sums
    _threads.run(_kernels().diagonal_backward, tiles, *arguments, operations=operations)
    totals = [re.sum(0) + 1j * im.sum(0) for re, im in zip(sums[::2], sums[1::2], strict=True)]
    gradients = totals[0], totals[1].reshape(n, -1)[:, :n_inputs], totals[2].reshape(n, -1)[:, :n_outputs].conj().T
    d_poles, d_B, d_C = (torch.from_numpy(np.ascontiguousarray(g)).to(poles.dtype) for g in gradients)
    return dx, d_poles, d_B, d_C


@diagonal_scan_backward.register_fake
def _(
    x: Tensor, poles: Tensor, B: Tensor, C: Tensor, saved: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(x), _empty(poles), _empty(B), _empty(C)


def _save_diagonal(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])


def _diagonal_gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *diagonal_scan_backward(*ctx.saved_tensors, dy), None


diagonal_scan.register_autograd(_diagonal_gradients, setup_context=_save_diagonal)


# --- h[t, c] = exp(delta[t, c] A[c]) h[t-1, c] + delta[t, c] x[t, c] B[t], y[t, c] = <C[t], h[t, c]> ---------------------


# Layouts change in NumPy and in the kernels, not in PyTorch: on a busy machine its threads wait for each other longer than all of
# the rest takes.


def _lanes(like: Tensor) -> int:
    return N_BYTES // like.element_size()


def _signal(signal: Tensor) -> np.ndarray:
    """``(batch, length, d)`` with the channels filled up with zeros to whole vectors."""
    missing = -signal.shape[-1] % _lanes(signal)
    return as_array(torch.nn.functional.pad(signal, (0, missing)) if missing else signal)


def _rates(A: Tensor) -> np.ndarray:
    """``(d, n)`` as ``(blocks, n lanes)``: for each state vectors of channels, the last one filled up with zeros."""
    lanes = _lanes(A)
    padded = np.pad(as_array(A), ((0, -A.shape[0] % lanes), (0, 0)))
    return padded.reshape(-1, lanes, A.shape[1]).swapaxes(1, 2).reshape(-1, A.shape[1] * lanes)


def _from_rates(vectors: np.ndarray, d: int, n: int) -> Tensor:
    """The inverse of ``_rates``."""
    return torch.from_numpy(vectors.reshape(len(vectors), n, -1).swapaxes(1, 2).reshape(-1, n)[:d].copy())


def _parts(x: Tensor) -> int:
    """Into how many parts to cut the channels, where sequences are few: by sizes alone, for the sums over channels depend on it."""
    return min(-(-x.shape[2] // _lanes(x)), -(-8 // x.shape[0]))


def _selective_saved_shape(x: Tensor, n: int, save: bool) -> tuple[int, int, int, int]:
    if x.device.type == "cuda":
        return _launch.selective_saved_shape(x, n, save)
    chunks = -(-x.shape[1] // SELECTIVE_CHUNK) if save else 0
    return x.shape[0], -(-x.shape[2] // _lanes(x)), chunks, n * _lanes(x)


@torch.library.custom_op("hsv_torch::selective_scan", mutates_args=(), device_types="cpu")
def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    return_state: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state if asked for, and the states between chunks if the backward pass will need them."""
    batch, _, d = x.shape
    n = A.shape[1]
    saved = x.new_empty(_selective_saved_shape(x, n, save))
    state = x.new_empty(batch if return_state else 0, d, n)
    if not (x.numel() and n):
        if return_state and initial is not None:
            state.copy_(initial)
        else:
            state.zero_()
        return _empty(x).zero_(), state, saved
    signals = _signal(x), _signal(delta)
    y = np.empty_like(signals[0])
    first = np.empty((0, d, n), y.dtype) if initial is None else as_array(initial)
    arguments = *signals, _rates(A), as_array(B), as_array(C), first, y, state.numpy(), saved.numpy()
    n_parts = _parts(x)
    _threads.run(_kernels().selective_forward, batch * n_parts, n_parts, *arguments, operations=8 * x.numel() * n)
    return torch.from_numpy(y)[..., :d].contiguous(), state, saved


@selective_scan.register_fake
def _(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    return_state: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n = A.shape[1]
    state = x.new_empty(x.shape[0] if return_state else 0, x.shape[2], n)
    return _empty(x), state, x.new_empty(_selective_saved_shape(x, n, save))


@torch.library.custom_op("hsv_torch::selective_scan_backward", mutates_args=(), device_types="cpu")
def selective_scan_backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    saved: Tensor,
    dy: Tensor,
    d_state: Tensor,
    has_initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``delta``, ``A``, ``B``, ``C``, and of ``initial`` if there is one."""
    batch, length, d = x.shape
    n = A.shape[1]
    d_initial = x.new_empty(batch if has_initial else 0, d, n)
    if not (x.numel() and n):
        dx, d_delta, d_A, d_B, d_C = (_empty(t).zero_() for t in (x, delta, A, B, C))
        if has_initial and len(d_state):
            d_initial.copy_(d_state)
        else:
            d_initial.zero_()
        return dx, d_delta, d_A, d_B, d_C, d_initial
    n_parts, signals, rates = _parts(x), (_signal(x), _signal(delta)), _rates(A)
    slopes = np.empty_like(signals[0]), np.empty_like(signals[0])
    dA = np.empty((batch, *rates.shape), rates.dtype)
    dB, dC = (np.empty((batch, n_parts, length, n), rates.dtype) for _ in range(2))
    arguments = *signals, rates, as_array(B), as_array(C), saved.numpy(), _signal(dy), as_array(d_state)
    results = *slopes, dA, dB, dC, d_initial.numpy()
    kernel = _kernels().selective_backward
    _threads.run(kernel, batch * n_parts, n_parts, *arguments, *results, operations=24 * x.numel() * n)
    dx, d_delta = (torch.from_numpy(slope)[..., :d].contiguous() for slope in slopes)
    del arguments, results
    d_B = torch.from_numpy(dB[:, 0] if n_parts == 1 else dB.sum(1))
    del dB  # all parts of one at a time would be enough to set the peak of memory
    d_C = torch.from_numpy(dC[:, 0] if n_parts == 1 else dC.sum(1))
    return dx, d_delta, _from_rates(dA.sum(0), d, n), d_B, d_C, d_initial


@selective_scan_backward.register_fake
def _(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    saved: Tensor,
    dy: Tensor,
    d_state: Tensor,
    has_initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_initial = x.new_empty(x.shape[0] if has_initial else 0, *A.shape)
    return _empty(x), _empty(delta), _empty(A), _empty(B), _empty(C), d_initial


def _save_selective(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # of the saved states
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.has_initial = inputs[5] is not None


def _selective_gradients(
    ctx: Any, dy: Tensor | None, d_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: torch.utils.checkpoint lets nobody look twice
    x, _, A, *_ = saved
    dy = torch.zeros_like(x) if dy is None else dy
    d_state = x.new_empty(0, *A.shape) if d_state is None else d_state
    *gradients, d_initial = selective_scan_backward(*saved, dy, d_state, ctx.has_initial)
    return *gradients, d_initial if ctx.has_initial else None, None, None


selective_scan.register_autograd(_selective_gradients, setup_context=_save_selective)


# --- S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T, y[t] = S[t]^T q[t] -------------------------------------------------------


def _attention_parts(q: Tensor, v: Tensor) -> int:
    """Into how many parts to cut the heads of a group, by sizes alone, for sums over heads depend on it."""
    return min(v.shape[2] // q.shape[2], -(-8 // (q.shape[0] * q.shape[2])))


def _attention_saved_shape(q: Tensor, v: Tensor, save: bool) -> tuple[int, int, int, int]:
    if v.device.type == "cuda":
        return _launch.attention_saved_shape(q, v, save)
    chunks = -(-q.shape[1] // ATTENTION_CHUNK) if save else 0
    return q.shape[0] * chunks, v.shape[2], q.shape[3], v.shape[3]


def _per_key(log_decay: Tensor) -> np.ndarray:
    return as_array(log_decay if log_decay.ndim == 4 else log_decay[..., None])


@torch.library.custom_op("hsv_torch::gated_linear_attention", mutates_args=(), device_types="cpu")
def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None, return_state: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state if asked for, and the states between chunks if the backward pass will need them."""
    batch, _, groups, n = q.shape
    heads, p = v.shape[2:]
    y = _empty(v)
    state = v.new_empty(batch if return_state else 0, heads, n, p)
    saved = v.new_empty(_attention_saved_shape(q, v, save))
    if not (v.numel() and n):
        if return_state and initial is not None:
            state.copy_(initial)
        else:
            state.zero_()
        return y.zero_(), state, saved
    values = as_array(v)
    first = np.empty((0, heads, n, p), values.dtype) if initial is None else as_array(initial)
    arguments = as_array(q), as_array(k), values, _per_key(log_decay), first, y.numpy(), state.numpy(), saved.numpy()
    parts = _attention_parts(q, v)
    _threads.run(_kernels().attention_forward, batch * groups * parts, parts, *arguments, operations=3 * v.numel() * n)
    return y, state, saved


@gated_linear_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None, return_state: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    state = v.new_empty(v.shape[0] if return_state else 0, v.shape[2], q.shape[3], v.shape[3])
    return _empty(v), state, v.new_empty(_attention_saved_shape(q, v, save))


@torch.library.custom_op("hsv_torch::gated_linear_attention_backward", mutates_args=(), device_types="cpu")
def gated_linear_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    saved: Tensor,
    dy: Tensor,
    d_state: Tensor,
    has_initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``q``, ``k``, ``v`` and ``log_decay``, and of ``initial`` if there is one."""
    batch, length, groups, n = q.shape
    heads, p = v.shape[2:]
    d_initial = v.new_empty(batch if has_initial else 0, heads, n, p)
    if not (v.numel() and n):
        dq, dk, dv, dg = (_empty(t).zero_() for t in (q, k, v, log_decay))
        if has_initial and len(d_state):
            d_initial.copy_(d_state)
        else:
            d_initial.zero_()
        return dq, dk, dv, dg, d_initial
    parts, decays = _attention_parts(q, v), _per_key(log_decay)
    dq, dk = (v.new_empty(batch * parts, length, groups, n) for _ in range(2))
    dv = _empty(v)
    dg = v.new_empty(batch * parts, length, groups, n) if log_decay.ndim == 4 else v.new_empty(decays.shape)
    arguments = as_array(q), as_array(k), as_array(v), decays, saved.numpy(), as_array(dy), as_array(d_state)
    results = dq.numpy(), dk.numpy(), dv.numpy(), dg.numpy(), d_initial.numpy()
    kernel = _kernels().attention_backward
    _threads.run(kernel, batch * groups * parts, parts, *arguments, *results, operations=10 * v.numel() * n)
    if parts > 1:
        dq, dk = (_sum_of_parts(t, parts) for t in (dq, dk))
        dg = _sum_of_parts(dg, parts) if log_decay.ndim == 4 else dg
    return dq, dk, dv, dg.view(log_decay.shape), d_initial


def _sum_of_parts(sums: Tensor, parts: int) -> Tensor:
    return torch.from_numpy(sums.numpy().reshape(-1, parts, *sums.shape[1:]).sum(1))


@gated_linear_attention_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    saved: Tensor,
    dy: Tensor,
    d_state: Tensor,
    has_initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_initial = v.new_empty(v.shape[0] if has_initial else 0, v.shape[2], q.shape[3], v.shape[3])
    return _empty(q), _empty(k), _empty(v), _empty(log_decay), d_initial


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # of the saved states
    ctx.save_for_backward(*inputs[:4], output[2])
    ctx.has_initial = inputs[4] is not None


def _attention_gradients(
    ctx: Any, dy: Tensor | None, d_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    q, _, v, *_ = saved
    dy = torch.zeros_like(v) if dy is None else dy
    d_state = v.new_empty(0, v.shape[2], q.shape[3], v.shape[3]) if d_state is None else d_state
    *gradients, d_initial = gated_linear_attention_backward(*saved, dy, d_state, ctx.has_initial)
    return *gradients, d_initial if ctx.has_initial else None, None, None


gated_linear_attention.register_autograd(_attention_gradients, setup_context=_save_attention)


for _operator in (
    linear_scan_backward,
    diagonal_scan_backward,
    selective_scan_backward,
    gated_linear_attention_backward,
):
    _operator.register_autograd(refuse_second_derivative)
