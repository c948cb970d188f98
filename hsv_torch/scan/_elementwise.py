"""What stands around a selective scan, each in one pass over its arrays: a short convolution with its activation, step sizes, skip and gate.

In plain PyTorch these are a dozen passes, and with few states they take longer than the scan. On the CPU Numba kernels do them, in float32 and float64 and where
there are as many channels as a vector has lanes; everywhere else the same in plain PyTorch. As in the scans, half precision is computed in float32.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hsv_torch.scan import _threads
from hsv_torch.scan._operators import N_BYTES, as_array, call, refuse_second_derivative


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``silu(bias + sum over j of weight[:, j] x[:, t - K + 1 + j])``, zeros before the first step: ``x (batch, length, d)``, ``weight (d, K)``, ``bias (d,)``."""
    if not (_has_kernel(x, weight) and (bias is None or bias.dtype == x.dtype)):
        if not x.numel():  # torch has no convolution of nothing
            return x + 0 * (weight.sum() + (0 if bias is None else bias.sum()))
        d, kernel_size = weight.shape
        padded = functional.pad(x.mT, (kernel_size - 1, 0))
        return functional.silu(functional.conv1d(padded, weight[:, None], bias, groups=d).mT)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    y: Tensor = call(_convolution, x, torch.cat([bias[None], weight.mT]))
    return y


def skip_and_gate(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """``(y + D u) silu(z)``: ``y, u, z (batch, length, d)``, ``D (d,)``."""
    if not (_has_kernel(y, u) and y.dtype == D.dtype == z.dtype):
        return torch.addcmul(y, D, u) * functional.silu(z)
    out: Tensor = call(_gate, y, u, D, z)
    return out


def step_sizes(x: Tensor, bias: Tensor) -> Tensor:
    """``log(1 + exp(x + bias))``: ``x (batch, length, d)``, ``bias (d,)``."""
    if not _has_kernel(x, bias):
        return functional.softplus(x + bias)
    y: Tensor = call(_softplus, x, bias)
    return y


def _has_kernel(x: Tensor, other: Tensor) -> bool:
    """Whether the kernels take ``x (batch, length, d)`` and another tensor."""
    known = x.device.type == "cpu" and x.dtype == other.dtype and x.dtype in (torch.float32, torch.float64)
    return known and x.ndim == 3 and x.shape[-1] * x.element_size() >= N_BYTES


def _flat(x: Tensor) -> np.ndarray:
    return as_array(x)


def _rows(x: Tensor) -> np.ndarray:
    return _flat(x).reshape(-1, x.shape[-1])


def _strided(x: Tensor) -> tuple[np.ndarray, int]:
    """All memory from the first to the last number, and how far rows are apart: a part of the columns of an array is not copied."""
    batch, length, d = x.shape
    stride = x.stride(1) if length > 1 else x.stride(0)
    if x.stride(2) != 1 or (length > 1 and batch > 1 and x.stride(0) != length * stride):
        x, stride = x.contiguous(), d
    span = (batch * length - 1) * stride + d
    return x.detach().as_strided((span,), (1,)).numpy(), stride


def _parts(x: Tensor, of: int, least: int) -> int:
    """How many tasks to make ``of`` something, by sizes alone, because sums depend on it; no task with less than ``least``."""
    return max(1, min(of // least, -(-8 // x.shape[0])))


def _kernels() -> Any:
    from hsv_torch.scan import _numba  # Numba takes a while to import: only when a kernel is needed

    return _numba


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@torch.library.custom_op("hsv_torch::causal_convolution", mutates_args=(), device_types="cpu")
def _convolution(x: Tensor, coefficients: Tensor) -> Tensor:
    """``coefficients (1 + K, d)``: the bias, then the weights."""
    y = _empty(x)
    if y.numel():
        parts = _parts(x, x.shape[2] * x.element_size() // N_BYTES, 1)
        arguments = parts, x.shape[1], *_strided(x), _flat(coefficients), y.numpy()
        _threads.run(_kernels().convolution_forward, x.shape[0] * parts, *arguments, operations=20 * x.numel())
    return y


@torch.library.custom_op("hsv_torch::causal_convolution_backward", mutates_args=(), device_types="cpu")
def _convolution_backward(x: Tensor, coefficients: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    dx, sums = _empty(x), np.zeros((x.shape[0], *coefficients.shape), _flat(coefficients).dtype)
    if dx.numel():
        parts = _parts(x, x.shape[2] * x.element_size() // N_BYTES, 1)
        arguments = parts, x.shape[1], *_strided(x), _flat(coefficients), _flat(slope), dx.numpy(), sums
        _threads.run(_kernels().convolution_backward, x.shape[0] * parts, *arguments, operations=40 * x.numel())
    return dx, torch.from_numpy(sums.sum(0))


@_convolution.register_fake
def _(x: Tensor, coefficients: Tensor) -> Tensor:
    return _empty(x)


@_convolution_backward.register_fake
def _(x: Tensor, coefficients: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(x), _empty(coefficients)


@torch.library.custom_op("hsv_torch::skip_and_gate", mutates_args=(), device_types="cpu")
def _gate(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    out = _empty(y)
    if out.numel():
        parts = _parts(y, y.shape[1], 16) * y.shape[0]
        arguments = parts, _rows(y), _rows(u), _flat(D), *_strided(z), out.numpy()
        _threads.run(_kernels().gate_forward, parts, *arguments, operations=20 * y.numel())
    return out


@torch.library.custom_op("hsv_torch::skip_and_gate_backward", mutates_args=(), device_types="cpu")
def _gate_backward(y: Tensor, u: Tensor, D: Tensor, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, du, dz = (_empty(t) for t in (y, u, z))
    if not y.numel():
        return dy, du, torch.zeros_like(D), dz
    parts = _parts(y, y.shape[1], 16) * y.shape[0]
    sums = np.zeros((parts, D.shape[0]), _flat(D).dtype)
    arguments = (
        parts,
        _rows(y),
        _rows(u),
        _flat(D),
        *_strided(z),
        _flat(slope),
        dy.numpy(),
        du.numpy(),
        dz.numpy(),
        sums,
    )
    _threads.run(_kernels().gate_backward, parts, *arguments, operations=30 * y.numel())
    return dy, du, torch.from_numpy(sums.sum(0)), dz


@_gate.register_fake
def _(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return _empty(y)


@_gate_backward.register_fake
def _(y: Tensor, u: Tensor, D: Tensor, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(y), _empty(u), _empty(D), _empty(z)


@torch.library.custom_op("hsv_torch::step_sizes", mutates_args=(), device_types="cpu")
def _softplus(x: Tensor, bias: Tensor) -> Tensor:
    y = _empty(x)
    if y.numel():
        parts = _parts(x, x.shape[1], 16) * x.shape[0]
        arguments = parts, _rows(x), _flat(bias), y.numpy()
        _threads.run(_kernels().softplus_forward, parts, *arguments, operations=20 * x.numel())
    return y


@torch.library.custom_op("hsv_torch::step_sizes_backward", mutates_args=(), device_types="cpu")
def _softplus_backward(x: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
    dx = _empty(x)
    if dx.numel():
        parts = _parts(x, x.shape[1], 16) * x.shape[0]
        arguments = parts, _rows(x), _flat(bias), _flat(slope), dx.numpy()
        _threads.run(_kernels().softplus_backward, parts, *arguments, operations=20 * x.numel())
    return dx


@_softplus.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return _empty(x)


@_softplus_backward.register_fake
def _(x: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
    return _empty(x)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _step_size_gradients(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
    dx = _softplus_backward(*ctx.saved_tensors, slope)
    return dx, dx.sum((0, 1))


_convolution.register_autograd(lambda ctx, slope: _convolution_backward(*ctx.saved_tensors, slope), setup_context=_save)
_gate.register_autograd(lambda ctx, slope: _gate_backward(*ctx.saved_tensors, slope), setup_context=_save)
_softplus.register_autograd(_step_size_gradients, setup_context=_save)
for _operator in (_convolution_backward, _gate_backward, _softplus_backward):
    _operator.register_autograd(refuse_second_derivative)
