"""What Mamba-2 layers compute before and after their scan: one set of functions for those of several packages.

All of them have ``in_proj``, ``conv1d``, ``dt_bias``, ``A_log``, ``D``, ``norm`` and ``out_proj`` under these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Mamba2Sizes:
    """How a Mamba-2 layer divides its channels; the rows of ``in_proj`` are gate and input of an MLP, then z, x, B, C, step size.

    Attributes
    ----------
    n_heads, head_dim, n_groups : int
    n_features : int
        Entries of B (and of C) of a group.
    n_mlp : int
        Channels of the MLP beside the state-space model; 0 in most layers.
    dt_limit : tuple of float
        Step sizes are clamped to this interval.
    """

    n_heads: int
    head_dim: int
    n_groups: int
    n_features: int
    n_mlp: int = 0
    dt_limit: tuple[float, float] = (0.0, float("inf"))

    @property
    def d_ssm(self) -> int:
        """Channels of the state-space model."""
        return self.n_heads * self.head_dim

    @property
    def split(self) -> list[int]:
        """Rows of ``in_proj``: the two of the MLP, z, the input of the convolution, step sizes."""
        return [self.n_mlp, self.n_mlp, self.d_ssm, self.d_ssm + 2 * self.n_groups * self.n_features, self.n_heads]


@dataclass(frozen=True)
class Mamba2Parts:
    """What a Mamba-2 layer makes of its input before the scan.

    Attributes
    ----------
    x : Tensor
        ``(batch, length, heads, head_dim)``: after the convolution and its activation.
    B, C : Tensor
        ``(batch, length, groups, n_features)``, likewise.
    delta : Tensor
        ``(batch, length, heads)``: step sizes.
    z : Tensor
        ``(batch, length, d_ssm)``: input of the gate.
    mlp : Tensor
        ``(batch, length, n_mlp)``: output of the MLP beside.
    mask : Tensor or None
        ``(batch, length)``, False in the padding.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    delta: Tensor
    z: Tensor
    mlp: Tensor
    mask: Tensor | None


def mamba2_parts(
    layer: Any,
    sizes: Mamba2Sizes,
    x: Tensor,
    mask: Tensor | None,
    activation: Callable[[Tensor], Tensor] = functional.silu,
) -> Mamba2Parts:
    """Return the parts of `layer` for ``x (batch, length, d_model)``, all sequences beginning at state zero.

    Input and scan see zeros where `mask` is False, before the sequence or after it.
    """
    length = x.shape[1]
    z0, x0, z, u, dt = layer.in_proj(masked(x, mask)).split(sizes.split, -1)
    if length:  # torch has no convolution of nothing
        weight = layer.conv1d.weight
        u = functional.conv1d(u.mT, weight, layer.conv1d.bias, padding=weight.shape[-1] - 1, groups=weight.shape[0])
        u = u[..., :length].mT
    values, B, C = split_heads(masked(activation(u), mask), sizes)
    return Mamba2Parts(values, B, C, step_sizes(layer, sizes, dt), z, functional.silu(z0) * x0, mask)


def split_heads(u: Tensor, sizes: Mamba2Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Divide ``u (..., d_ssm + 2 groups n_features)`` into ``x (..., heads, head_dim)``, ``B`` and ``C (..., groups, n_features)``."""
    rows = sizes.n_groups * sizes.n_features
    x, B, C = u.split([sizes.d_ssm, rows, rows], -1)
    shape = (sizes.n_groups, sizes.n_features)
    return x.unflatten(-1, (sizes.n_heads, sizes.head_dim)), B.unflatten(-1, shape), C.unflatten(-1, shape)


def step_sizes(layer: Any, sizes: Mamba2Sizes, dt: Tensor) -> Tensor:
    """Return the step sizes from ``dt (..., heads)``, in single precision at least."""
    wide = torch.promote_types(
        layer.dt_bias.dtype, torch.float32
    )  # half precision would round small steps away beside the bias
    delta = functional.softplus(dt.to(wide) + layer.dt_bias.to(wide))
    return delta if sizes.dt_limit == (0.0, float("inf")) else delta.clamp(*sizes.dt_limit)


def inverse_rms(y: Tensor, n_groups: int, eps: float) -> Tensor:
    """Return what an RMS norm over each of `n_groups` parts of ``y (..., d)`` multiplies by, ``(..., d)``."""
    parts = y.unflatten(-1, (n_groups, -1))
    return (parts.square().mean(-1, keepdim=True) + eps).rsqrt().expand_as(parts).flatten(-2)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x (batch, length, channels)`` with zeros where the mask is False."""
    if mask is None:
        return x
    # Not a product: NaN in the padding would stay.
    return torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
