"""Mamba-2 as the reductions see it, whatever package it comes from."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from hsv_torch.layers._mamba2 import Mamba2Parts, Mamba2Sizes, inverse_rms
from hsv_torch.linear_attention._view import LinearAttentionQuantities, LinearAttentionView, Rows, RowsOfStates
from hsv_torch.scan import gated_linear_attention


class Mamba2View(LinearAttentionView):
    """A layer with the parameters of Mamba-2 under their published names; a subclass says where its sizes stand and how it is called."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Mamba2Sizes:
        """How the layer divides its channels."""

    @abc.abstractmethod
    def parts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mamba2Parts:
        """Compute what a call of the layer with these arguments would, up to the scan."""

    @property
    def norm_comes_first(self) -> bool:
        """Whether the outputs are normalised before the gate, and not after it."""
        return False

    @property
    def norm_groups(self) -> int:
        """Parts of the channels that the norm takes one by one."""
        return self.sizes.n_groups

    @property
    def norm_eps(self) -> float | None:
        """What the norm adds to the mean square; None where the layer has no norm."""
        return float(self.layer.norm.eps)

    @property
    @override
    def n_groups(self) -> int:
        return self.sizes.n_groups

    @property
    @override
    def n_features(self) -> int:
        return self.sizes.n_features

    @property
    @override
    def is_linear(self) -> bool:
        return False  # a convolution and SiLU stand between the rows and the states

    @property
    @override
    def decays_by_key(self) -> bool:
        return False

    @override
    def layout(self) -> dict[str, tuple[Rows | RowsOfStates, ...]]:
        s, states = self.sizes, (RowsOfStates("write"), RowsOfStates("read"))
        projection = (Rows(2 * s.n_mlp + 2 * s.d_ssm), *states, Rows(s.n_heads))
        convolution = (Rows(s.d_ssm), *states)
        layout: dict[str, tuple[Rows | RowsOfStates, ...]] = {"in_proj.weight": projection}
        if self.layer.in_proj.bias is not None:
            layout["in_proj.bias"] = projection
        layout["conv1d.weight"] = convolution
        if self.layer.conv1d.bias is not None:
            layout["conv1d.bias"] = convolution
        return layout

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinearAttentionQuantities:
        parts, layer = self.parts(args, kwargs), self.layer
        u, B, C, delta, z = (t.double() for t in (parts.x, parts.B, parts.C, parts.delta, parts.z))
        if self.transformed:
            B = torch.einsum("...gf,grf->...gr", B, layer.B_transform.double())
            C = torch.einsum("...gf,grf->...gr", C, layer.C_transform.double())
        values, log_decay = delta[..., None] * u, -delta * layer.A_log.double().exp()
        y = gated_linear_attention(C, B, values, log_decay)
        D = layer.D.double().reshape(u.shape[2], -1)  # one number a head, or one a channel
        return LinearAttentionQuantities(C, B, values, log_decay, self._weight((y + D * u).flatten(2), z), parts.mask)

    def _weight(self, y: Tensor, z: Tensor) -> Tensor:
        """By how much a small change of ``y (batch, length, d_ssm)`` reaches the output, ``(batch, length, heads, head_dim)``; the root mean square taken as it is."""
        layer, d = self.layer, y.shape[-1]
        weight = functional.silu(z) * torch.linalg.vector_norm(layer.out_proj.weight.double(), dim=0)[-d:]
        if self.norm_eps is not None:
            normed = y if self.norm_comes_first else y * functional.silu(z)
            weight = weight * inverse_rms(normed, self.norm_groups, self.norm_eps) * layer.norm.weight.double()
        return weight.unflatten(-1, (self.sizes.n_heads, self.sizes.head_dim))

    @override
    def set_n_features(self, n_features: int) -> None:
        layer = self.layer
        layer.in_proj.out_features = layer.in_proj.weight.shape[0]
        layer.conv1d.in_channels = layer.conv1d.out_channels = layer.conv1d.groups = layer.conv1d.weight.shape[0]
