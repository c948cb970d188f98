"""A diagonal state-space model over a whole sequence: one entry point, two ways of computing it, a fixed rule between them."""

from typing import Literal, get_args

import torch
from torch import Tensor

from hsv import DtypeError, ShapeError
from hsv_torch.scan import _operators, reference
from hsv_torch.scan._convolution import convolve, impulse_response
from hsv_torch.scan._linear import has_kernel, linear_scan

Mode = Literal["scan", "convolution"]

# Above this number of channels two matrix products and a scan beat the fused kernel, whose products are no match for BLAS.
_FUSED_CHANNELS = 64


def choose_mode(
    *, batch: int, length: int, n_states: int, n_inputs: int, n_outputs: int, device: torch.device | str = "cpu"
) -> Mode:
    """Scan or convolution, from the sizes alone, so that equal sizes give equal results on every run."""
    if torch.device(device).type != "cpu":
        return "convolution"
    return "scan" if n_states < 128 else "convolution"


def diagonal_state_space(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor, *, mode: Mode) -> Tensor:
    if mode not in get_args(Mode):
        raise ShapeError(f"`mode` must be one of {', '.join(map(repr, get_args(Mode)))}, got {mode!r}")
    n = log_poles.shape[0]
    if x.ndim != 3 or B.shape != (n, x.shape[-1]) or C.ndim != 2 or C.shape[1] != n:
        raise ShapeError(
            "shapes must be x (batch, length, m), log_poles (n,), B (n, m), C (p, n), got "
            + ", ".join(str(tuple(t.shape)) for t in (x, log_poles, B, C))
        )
    if x.dtype not in _operators._COMPLEX or any(t.dtype != _operators._COMPLEX[x.dtype] for t in (log_poles, B, C)):
        raise DtypeError(
            "dtypes must be float32 for x and complex64 for the others, or float64 and complex128, got "
            + ", ".join(str(t.dtype) for t in (x, log_poles, B, C))
        )
    if mode == "convolution":
        return convolve(x, impulse_response(log_poles, B, C, x.shape[1]))
    poles = log_poles.exp()
    if not has_kernel(x.device):
        return reference.diagonal_state_space(x, poles, B, C)
    if max(B.shape[1], C.shape[0]) <= _FUSED_CHANNELS:
        save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, log_poles, B, C))
        return _operators.diagonal_scan(x, poles, B, C, save)[0]
    return _wide(x, poles, B, C)


def _wide(x: Tensor, poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Many channels: real matrix products into and out of the states, real and imaginary parts side by side."""
    n = poles.shape[0]
    drive = x @ torch.view_as_real(B).transpose(1, 2).reshape(2 * n, -1).mT  # (batch, length, 2n)
    states = linear_scan(poles, torch.view_as_complex(drive.unflatten(-1, (n, 2))))
    output = torch.view_as_real(C.conj().resolve_conj()).flatten(1)  # Re(C h) = Re C Re h - Im C Im h
    return torch.view_as_real(states).flatten(2) @ output.mT
