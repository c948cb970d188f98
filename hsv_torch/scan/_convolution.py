r"""The diagonal state-space model as a causal convolution, by FFT.

.. math:: y_t = \sum_{s \le t} K_{t-s} x_s, \qquad K_k = \mathrm{Re}(C \Lambda^k B) \in R^{H \times H}.

The powers are split in two levels, :math:`\Lambda^{a T + r} = \Lambda^{aT} \Lambda^r` with :math:`T \approx \sqrt{L}`, so
that the kernel is one real matrix product, of :math:`C \Lambda^{aT}` by :math:`\Lambda^r B`, instead of ``n L`` complex
exponentials. The exponents are formed in float64, for ``k theta`` reaches thousands of radians, of which float32 would keep
three digits after the point.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from hsv_torch.scan._operators import call, refuse_second_derivative
from hsv_torch.scan._precision import product


@functools.lru_cache(maxsize=256)
def fast_length(least: int) -> int:
    """The smallest ``4 * 2^i 3^j 5^k`` that is at least ``least``: FFTs of such lengths are quick on every library."""
    best = 4
    while best < least:
        best *= 2
    power_of_5 = 4
    while power_of_5 < best:
        power = power_of_5
        while power < best:
            candidate = power
            while candidate < least:
                candidate *= 2
            best = min(best, candidate)
            power *= 3
        power_of_5 *= 5
    return best


def impulse_response(log_poles: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """``Re(C diag(poles)^k B)`` for ``k < length``, as ``(n_outputs, n_inputs, length)``, in the precision of ``B``."""
    n_fine = max(1, math.isqrt(length))
    n_coarse = -(-length // n_fine)
    exponents = log_poles.to(torch.complex128)
    steps = torch.arange(max(n_fine, n_coarse), device=B.device, dtype=torch.float64)
    fine = torch.exp(steps[:n_fine, None] * exponents).to(B.dtype)  # (n_fine, n)
    coarse = torch.exp(steps[:n_coarse, None] * (n_fine * exponents)).to(B.dtype)  # (n_coarse, n)
    right = B.mT[:, None, :] * fine  # (n_inputs, n_fine, n)
    left = C[:, None, :] * coarse  # (n_outputs, n_coarse, n)
    left = torch.cat([left.real, -left.imag], dim=-1).flatten(0, 1)
    right = torch.cat([right.real, right.imag], dim=-1).flatten(0, 1)
    n_outputs, n_inputs = C.shape[0], B.shape[1]
    response = product(left, right.mT).view(n_outputs, n_coarse, n_inputs, n_fine)
    return response.transpose(1, 2).reshape(n_outputs, n_inputs, n_coarse * n_fine)[..., :length]


@torch.library.custom_op("hsv_torch::convolve", mutates_args=())
def _convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution, and the spectra of both for the backward pass.

    An operator with its own backward, because PyTorch's backward of ``rfft`` transforms complex signals of twice the size.
    Transposing two-dimensional arrays is what PyTorch copies fast; everything is arranged around that.
    """
    length = x.shape[1]
    n_fft = fast_length(2 * length - 1)
    spectrum = _spectrum(x.permute(2, 0, 1), n_fft)  # (frequency, n_inputs, batch)
    gain = _spectrum(kernel, n_fft)  # (frequency, n_outputs, n_inputs)
    y = _signal(torch.bmm(gain, spectrum), n_fft, length)  # (n_outputs, batch, length)
    return y.permute(1, 2, 0).contiguous(), spectrum, gain


@_convolve.register_fake
def _(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, n_inputs = x.shape
    n_outputs = kernel.shape[0]
    frequencies = fast_length(int(2 * length - 1)) // 2 + 1  # a graph is for one length, as a plan of an FFT is
    dtype = torch.complex64 if x.dtype == torch.float32 else torch.complex128
    y = x.new_empty(batch, length, n_outputs)
    spectrum = x.new_empty(frequencies, n_inputs, batch, dtype=dtype)
    return y, spectrum, x.new_empty(frequencies, n_outputs, n_inputs, dtype=dtype)


@torch.library.custom_op("hsv_torch::convolve_backward", mutates_args=())
def _convolve_backward(spectrum: Tensor, gain: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the signal and of the kernel: correlations."""
    length = dy.shape[1]
    n_fft = fast_length(2 * length - 1)
    given = _spectrum(dy.permute(2, 0, 1), n_fft)
    dx = _signal(torch.bmm(gain.mH, given), n_fft, length).permute(1, 2, 0).contiguous()
    return dx, _signal(torch.bmm(given, spectrum.mH), n_fft, length).contiguous()


@_convolve_backward.register_fake
def _(spectrum: Tensor, gain: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, n_outputs = dy.shape
    n_inputs = gain.shape[2]
    return dy.new_empty(batch, length, n_inputs), dy.new_empty(n_outputs, n_inputs, length)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _convolve_backward(*ctx.saved_tensors, dy)


_convolve.register_autograd(_gradients, setup_context=_save)
_convolve_backward.register_autograd(refuse_second_derivative)


def _spectrum(signal: Tensor, n_fft: int) -> Tensor:
    """``(rows, columns, length)`` to ``(frequency, rows, columns)``."""
    rows, columns, _ = signal.shape
    flat = torch.fft.rfft(signal.contiguous(), n_fft).view(rows * columns, -1)
    return flat.t().contiguous().view(-1, rows, columns)


def _signal(spectrum: Tensor, n_fft: int, length: int) -> Tensor:
    """``(frequency, rows, columns)`` to ``(rows, columns, length)``."""
    n_frequencies, rows, columns = spectrum.shape
    flat = spectrum.reshape(n_frequencies, rows * columns).t().contiguous()
    return torch.fft.irfft(flat, n_fft)[:, :length].reshape(rows, columns, length)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """``y[:, t] = sum over s <= t of kernel[:, :, t - s] x[:, s]``.

    ``x (batch, length, n_inputs)``, ``kernel (n_outputs, n_inputs, length)``, real; the result is ``(batch, length, n_outputs)``.
    """
    if x.numel() == 0 or kernel.numel() == 0:  # FFTs of nothing are errors
        return x.new_zeros(*x.shape[:2], kernel.shape[0]) + (x.sum() + kernel.sum())
    y: Tensor = call(_convolve, x, kernel)[0]
    return y
