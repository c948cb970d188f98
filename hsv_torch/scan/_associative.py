"""The scans as parallel scans in plain PyTorch, for devices without a kernel: a logarithmic number of operations on whole arrays.

Two steps ``h -> a h + u`` in a row are one step of the same kind, so that a sequence is scanned by scanning its pairs, which are half
as many. All in all this is twice the work of the loop, in ``2 log2(length)`` rounds instead of ``length``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# States that the selective scan has at a time: 128 MiB in float32. Of such arrays there are six at the peak of a forward pass, and ten of
# a backward pass. Shorter chunks than SHORTEST would cost more in calls than the memory is worth.
CHUNK_ELEMENTS = 2**25
SHORTEST, LONGEST = 16, 256


def linear_scan(a: Tensor, u: Tensor, initial: Tensor) -> Tensor:
    """``h[t] = a[t] h[t-1] + u[t]`` along axis 1, differentiable any number of times; ``a`` broadcasts against ``u``.

    ``u (batch, length, ...)``, ``a`` with as many axes, ``initial (batch, ...)``.
    """
    if u.shape[1] == 0:
        return u + 0 * (a.sum() + initial.sum())  # empty, and all arguments can be differentiated through it
    first = torch.addcmul(u[:, :1], a[:, :1], initial[:, None])
    states: Tensor = _Scan.apply(a, torch.cat([first, u[:, 1:]], 1))
    return states


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of :func:`hsv_torch.scan.selective_scan`, in chunks of time with the state carried along.

    The backward pass computes each chunk again, so that it too has the states of one chunk at a time.
    """
    batch, length, d = x.shape
    if chunk is None:
        chunk = min(max(CHUNK_ELEMENTS // max(1, batch * d * A.shape[1]), SHORTEST), LONGEST)
    if length == 0:
        return x + 0 * (delta.sum() + A.sum() + B.sum() + C.sum()), initial.clone()
    state, outputs = initial, []
    for start in range(0, length, chunk):
        x_t, delta_t, B_t, C_t = (t[:, start : start + chunk] for t in (x, delta, B, C))
        if length > chunk and torch.is_grad_enabled():
            y, state = checkpoint(_selective_chunk, x_t, delta_t, A, B_t, C_t, state, use_reentrant=False)
        else:
            y, state = _selective_chunk(x_t, delta_t, A, B_t, C_t, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def _selective_chunk(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    decay = (delta[..., None] * A).exp()  # (batch, steps, d, n)
    states = linear_scan(decay, (delta * x)[..., None] * B[:, :, None], initial)
    return (states @ C[..., None])[..., 0], states[:, -1].clone()  # a view would keep all states of the chunk


class _Scan(torch.autograd.Function):
    """The scan from zero. Its backward pass is a scan against time, so nothing but ``a`` and the states is kept for it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor) -> Tensor:
        states = _pairs(a, u)
        ctx.save_for_backward(a, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, states = ctx.saved_tensors
        after = a if a.shape[1] == 1 else torch.cat([a[:, 1:], a[:, :1]], 1)  # the last entry meets a state of zero
        du = _Scan.apply(after.conj().flip(1), gradients[0].flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return (du * before.conj()).sum_to_size(a.shape), du


def _pairs(a: Tensor, u: Tensor) -> Tensor:
    length = u.shape[1]
    if length == 1:
        return u
    shared = a.shape[1] == 1  # the same at every step
    first, second = u[:, 0::2], u[:, 1::2]
    a_first, a_second = (a, a) if shared else (a[:, 0::2], a[:, 1::2])
    n_pairs = second.shape[1]
    odd = _pairs(a_first[:, :n_pairs] * a_second, torch.addcmul(second, a_second, first[:, :n_pairs]))
    states = torch.empty_like(u, memory_format=torch.contiguous_format)
    states[:, 1::2] = odd
    states[:, :1] = first[:, :1]
    later = slice(None) if shared else slice(1, None)
    states[:, 2::2] = torch.addcmul(first[:, 1:], a_first[:, later], odd[:, : first.shape[1] - 1])
    return states
