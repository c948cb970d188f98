"""What selective layers compute before their scan: one function for those of several packages.

All of them have ``in_proj``, ``conv1d``, ``x_proj``, ``dt_proj`` and ``out_proj`` under these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from hsv_torch.scan._elementwise import step_sizes


@dataclass(frozen=True)
class Quantities:
    """What a selective layer makes of its input on the way to its output ``out_proj((C h + D u) * gate)``.

    Attributes
    ----------
    delta : Tensor
        Step sizes, ``(batch, length, d)``, positive.
    B, C : Tensor
        What the states are written with and read with, ``(batch, length, n_features)``, shared by the channels.
    u : Tensor
        Input of the scan, ``(batch, length, d)``: after the convolution and its activation.
    gate : Tensor
        ``(batch, length, d)``.
    mask : Tensor or None
        ``(batch, length)``, False in the padding; None where there is none.
    """

    delta: Tensor
    B: Tensor
    C: Tensor
    u: Tensor
    gate: Tensor
    mask: Tensor | None


Normalise: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""What a layer makes of the three parts of ``x_proj``'s output, before the step sizes are projected."""


def unchanged(dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three parts as they are."""
    return dt, B, C


def projections(layer: Any, u: Tensor, normalise: Normalise = unchanged) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes, B and C of a layer from the input ``u (..., d)`` of its scan."""
    dt_rank = layer.dt_proj.weight.shape[1]
    rows = layer.x_proj(u)
    n_features = (rows.shape[-1] - dt_rank) // 2
    dt, B, C = normalise(*rows.split([dt_rank, n_features, n_features], -1))
    bias = layer.dt_proj.bias
    wide = torch.promote_types(bias.dtype, torch.float32)  # half precision would round small steps away beside the bias
    delta = step_sizes(functional.linear(dt, layer.dt_proj.weight).to(wide), bias.to(wide))
    return delta, B, C


def quantities(
    layer: Any,
    x: Tensor,
    mask: Tensor | None,
    activation: Callable[[Tensor], Tensor] = functional.silu,
    normalise: Normalise = unchanged,
) -> Quantities:
    """Return the quantities of `layer` for ``x (batch, length, d_model)``, all sequences beginning at state zero.

    Input and scan see zeros where `mask` is False, before the sequence or after it.
    """
    length = x.shape[1]
    u, z = layer.in_proj(masked(x, mask)).chunk(2, -1)
    if length:  # torch has no convolution of nothing
        u = layer.conv1d(u.mT)[..., :length].mT
    u = masked(activation(u), mask)
    delta, B, C = projections(layer, u, normalise)
    return Quantities(delta, B, C, u, functional.silu(z), mask)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (batch, length, d)`` with zeros where ``mask (batch, length)`` is False."""
    if mask is None:
        return x
    # Not a product: NaN in the padding would stay.
    return torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
