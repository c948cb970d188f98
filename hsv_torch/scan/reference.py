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
