"""Gated linear attention in chunks of time in plain PyTorch, for devices without a kernel: matrix products, and a state carried along.

Inside a chunk every pair of steps has its own decay ``exp(g[j+1] + ... + g[i])``, summed for that pair: a quotient of two cumulative
products would overflow where the decay is fast, and be 0 / 0 after a reset.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Steps of a chunk. With a decay for each key a chunk has CHUNK_PER_KEY^2 n numbers a head, with one decay CHUNK^2.
CHUNK, CHUNK_PER_KEY = 64, 16


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of :func:`hsv_torch.scan.gated_linear_attention`; ``initial`` is given.

    The backward pass computes each chunk again, so that it too has the pairs of one chunk at a time.
    """
    batch, length, groups, n = q.shape
    heads, p = v.shape[2:]
    if chunk is None:
        chunk = CHUNK if log_decay.ndim == 3 else CHUNK_PER_KEY
    g = log_decay[..., None] if log_decay.ndim == 3 else log_decay
    # Heads as (groups, heads of a group); a decay of the group stands for all of its heads.
    v, g = v.unflatten(2, (groups, -1)), g.unflatten(2, (groups, -1))
    state, outputs = initial.unflatten(1, (groups, -1)), []
    for start in range(0, length, chunk):
        arguments = *(t[:, start : start + chunk] for t in (q, k, v, g)), state
        if length > chunk and torch.is_grad_enabled():
            y, state = checkpoint(_chunk, *arguments, use_reentrant=False)
        else:
            y, state = _chunk(*arguments)
        outputs.append(y)
    if not outputs:
        return v.flatten(2, 3) + 0 * (q.sum() + k.sum() + g.sum() + initial.sum()), initial.clone()
    return torch.cat(outputs, 1).reshape(batch, length, heads, p), state.reshape(batch, heads, n, p)


def _chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``q, k (b, t, g, n)``, ``v (b, t, g, r, p)``, ``g (b, t, g, r or 1, n or 1)``, ``state (b, g, r, n, p)``."""
    steps = q.shape[1]
    g = g.permute(0, 2, 3, 4, 1)  # time last
    later = torch.ones(steps, steps, dtype=torch.bool, device=g.device).tril(-1)  # the row comes after the column
    sums = torch.where(later, g[..., None], 0).cumsum(-2)  # (..., i, j): g[j+1] + ... + g[i]
    pairs = torch.where(later | torch.eye(steps, dtype=torch.bool, device=g.device), sums.exp(), 0)
    if g.shape[3] == 1:
        scores = torch.einsum("bign,bjgn->bgij", q, k)[:, :, None] * pairs[:, :, :, 0]
    else:
        scores = torch.einsum("bign,bgrnij,bjgn->bgrij", q, pairs, k)
    y = torch.einsum("bgrij,bjgrp->bigrp", scores.expand(-1, -1, v.shape[3], -1, -1), v)
    since_start = g.cumsum(-1).exp().expand(-1, -1, v.shape[3], q.shape[3], -1)
    y = y + torch.einsum("bign,bgrni,bgrnp->bigrp", q, since_start, state)
    to_end = pairs[..., -1, :].expand_as(since_start)
    state = since_start[..., -1, None] * state + torch.einsum("bjgn,bgrnj,bjgrp->bgrnp", k, to_end, v)
    return y, state
