"""The LRU's recurrence as one would write it in plain PyTorch: three ways, each as good as its authors' or better.

All take ``x (batch, length, H)``, ``log_poles (n,)``, ``B (n, H)``, ``C (H, n)`` and return ``Re(C h)`` from ``h = 0``.
"""

import torch
from torch import Tensor


def fft_convolution(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The H x H kernel from all powers of the poles, one matrix product, and a product of spectra."""
    length = x.shape[1]
    n_outputs, n_inputs = C.shape[0], B.shape[1]
    powers = torch.exp(log_poles[:, None] * torch.arange(length, device=x.device))  # (n, length)
    pairs = (C[:, None, :] * B.mT[None]).flatten(0, 1)  # (H H, n)
    kernel = torch.cat([pairs.real, -pairs.imag], 1) @ torch.cat(
        [powers.real, powers.imag]
    )  # half the work of the complex product
    gain = torch.fft.rfft(kernel.view(n_outputs, n_inputs, length), 2 * length)
    spectrum = torch.fft.rfft(x.transpose(1, 2), 2 * length)  # (batch, H, frequency)
    return torch.fft.irfft((gain * spectrum[:, None]).sum(2), 2 * length)[..., :length].transpose(1, 2)


def unbound_loop(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """All inputs of the states at once, a loop over the unbound time steps, all outputs at once."""
    poles = log_poles.exp()
    drive = x.transpose(0, 1).to(B.dtype) @ B.mT  # time first, so that steps are contiguous
    state = torch.zeros_like(drive[0])
    states = []
    for now in drive.unbind(0):
        state = torch.addcmul(now, poles, state)
        states.append(state)
    return (torch.stack(states) @ C.mT).real.transpose(0, 1)


def associative_scan(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Pairs of steps are one step of the squared poles: linear work, logarithmic depth, as in `jax.lax.associative_scan`."""
    return (_pairs(log_poles.exp(), x.to(B.dtype) @ B.mT) @ C.mT).real


def _pairs(poles: Tensor, drive: Tensor) -> Tensor:
    length = drive.shape[1]
    if length == 1:
        return drive
    first, second = drive[:, 0::2], drive[:, 1::2]
    odd = _pairs(poles * poles, torch.addcmul(second, poles, first[:, : second.shape[1]]))
    even = torch.cat([first[:, :1], torch.addcmul(first[:, 1:], poles, odd[:, : first.shape[1] - 1])], 1)
    both = torch.stack([even[:, : odd.shape[1]], odd], 2).flatten(1, 2)
    return both if length % 2 == 0 else torch.cat([both, even[:, -1:]], 1)


PLAIN = {"fft convolution": fft_convolution, "unbound loop": unbound_loop, "associative scan": associative_scan}
