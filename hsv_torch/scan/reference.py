"""The scans in a few lines of plain PyTorch: what every kernel is compared with, element by element."""

import torch
from torch import Tensor


def linear_scan(a: Tensor, u: Tensor, initial: Tensor | None = None) -> Tensor:
    """``h[t] = a[t] h[t-1] + u[t]`` by a loop over the time steps; see :func:`hsv_torch.scan.linear_scan`."""
    state = u.new_zeros(()) if initial is None else initial
    states = []
    for t in range(u.shape[1]):
        state = (a[:, t] if a.ndim == 3 else a) * state + u[:, t]
        states.append(state)
    return torch.stack(states, dim=1) if states else a.sum() * u


def diagonal_state_space(x: Tensor, poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """``y[t] = Re(C h[t])``, ``h[t] = poles h[t-1] + B x[t]``; see :func:`hsv_torch.scan.diagonal_state_space`."""
    drive = x.to(B.dtype) @ B.mT  # (batch, length, n)
    return (linear_scan(poles, drive) @ C.mT).real


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and last state by a loop over the time steps; see :func:`hsv_torch.scan.selective_scan`."""
    state = x.new_zeros(x.shape[0], *A.shape) if initial is None else initial
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)  # (batch, d, n)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1))
    nothing = 0 * (delta.sum() + A.sum() + B.sum() + C.sum())
    return torch.stack(outputs, dim=1) if outputs else x + nothing, state


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and last state by a loop over the time steps; see :func:`hsv_torch.scan.gated_linear_attention`."""
    batch, length, heads, p = v.shape
    share = heads // q.shape[2]
    q, k = q.repeat_interleave(share, 2), k.repeat_interleave(share, 2)
    decay = (log_decay[..., None] if log_decay.ndim == 3 else log_decay.repeat_interleave(share, 2)).exp()
    state = v.new_zeros(batch, heads, q.shape[3], p) if initial is None else initial
    outputs = []
    for t in range(length):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]  # (batch, heads, n, p)
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    nothing = 0 * (q.sum() + k.sum() + decay.sum())
    return torch.stack(outputs, dim=1) if outputs else v + nothing, state
