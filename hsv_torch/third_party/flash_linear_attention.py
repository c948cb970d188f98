"""Cuts ``GatedLinearAttention`` and ``SimpleGatedLinearAttention`` of flash-linear-attention: import this module once, and models that contain one can be compressed.

The layers need a GPU to run; what they compute before their kernels is computed here from their parameters. Their ``forward`` goes on working: ``head_k_dim``, ``key_dim`` and the widths of the
projections are set.

Queries and keys that come straight from their projections take a change of basis (``SimpleGatedLinearAttention``) or a choice of keys with compensation into the rows of the weights. Behind a
short convolution, or a feature map, keys can only be chosen, without compensation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import register_adapter
from hsv_torch.layers._mamba2 import masked
from hsv_torch.linear_attention import (
    LinearAttentionAdapter,
    LinearAttentionQuantities,
    ProjectedAttentionView,
    Rows,
    RowsOfStates,
)
from hsv_torch.scan import gated_linear_attention
from hsv_torch.third_party._packages import required_package

gla = required_package("fla.layers.gla", "flash-linear-attention")
simple_gla = required_package("fla.layers.simple_gla", "flash-linear-attention")


class GatedLinearAttentionView(ProjectedAttentionView):
    """A ``GatedLinearAttention`` as the reductions see it."""

    @property
    @override
    def n_groups(self) -> int:
        return int(self.layer.num_heads)

    @property
    @override
    def is_linear(self) -> bool:
        return not self.layer.use_short_conv and self.layer.feature_map_fn is None

    @property
    @override
    def decays_by_key(self) -> bool:
        return True

    @override
    def layout(self) -> dict[str, tuple[Rows | RowsOfStates, ...]]:
        layout = super().layout()
        if self.layer.use_short_conv:
            convolutions = {"q_conv1d": RowsOfStates("read"), "k_conv1d": RowsOfStates("write")}
            for name, rows in convolutions.items():
                for leaf in ("weight", "bias"):
                    if getattr(self.layer.get_submodule(name), leaf) is not None:
                        layout[f"{name}.{leaf}"] = (rows,)
        return layout

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinearAttentionQuantities:
        layer, heads = self.layer, (self.n_groups, -1)
        if layer.num_kv_groups != 1:
            raise CutRefusedError(
                f"{layer.num_kv_groups} heads with queries of their own share keys (num_kv_heads={layer.num_kv_heads}), which is not cut; choose `layers` without it"
            )
        x, mask = self._whole_sequences(args, kwargs)
        x = masked(x, mask)
        q, k, v = (self._projected(name, x, mask).unflatten(-1, heads) for name in "qkv")
        if layer.feature_map_fn is not None:
            q, k = layer.feature_map_fn(q), layer.feature_map_fn(k)
        log_decay = functional.logsigmoid(layer.gk_proj(x)) / layer.gate_logit_normalizer
        least = getattr(layer, "clamp_min", None)  # the layer with a decay a head has none
        if least is not None:
            log_decay = log_decay.clamp_min(least)
        if self.decays_by_key:
            log_decay = log_decay.unflatten(-1, heads)
        q = q * q.shape[-1] ** -0.5
        y = gated_linear_attention(q, k, v, log_decay)
        return LinearAttentionQuantities(q, k, v, log_decay, self._weight(x, y), mask)

    def _projected(self, name: str, x: Tensor, mask: Tensor | None) -> Tensor:
        """Queries, keys or values of all heads, through their convolution and its activation where there is one."""
        rows: Tensor = getattr(self.layer, f"{name}_proj")(x)
        if not self.layer.use_short_conv:
            return rows
        conv, length = getattr(self.layer, f"{name}_conv1d"), x.shape[1]
        kernel = conv.weight
        rows = functional.conv1d(rows.mT, kernel, conv.bias, padding=kernel.shape[-1] - 1, groups=kernel.shape[0])
        return masked(functional.silu(rows[..., :length].mT), mask)

    def _weight(self, x: Tensor, y: Tensor) -> Tensor:
        """By how much a small change of ``y (batch, length, heads, p)`` reaches the output; the root mean square taken as it is."""
        layer = self.layer
        fused = hasattr(layer, "g_norm_swish_gate")
        norm = layer.g_norm_swish_gate if fused else layer.g_norm
        weight = (y.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        if norm.weight is not None:
            weight = weight * norm.weight
        if getattr(layer, "use_output_gate", True):
            gate = functional.silu if fused else layer.gate_fn
            weight = weight * gate(layer.g_proj(x)).unflatten(-1, y.shape[2:])
        return weight * torch.linalg.vector_norm(layer.o_proj.weight, dim=0).unflatten(0, y.shape[2:])

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        x, mask = self._whole_sequences(args, kwargs)
        return (x,), {"attention_mask": mask}

    def _whole_sequences(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Input and mask of a call, which must not go on from a cache, nor hold several sequences in one."""
        x, mask, cache, options = _arguments(*args, **kwargs)
        if cache is not None and len(cache) > self.layer.layer_idx:
            raise CutRefusedError(
                "the layer was called to continue a sequence from its cache, and its states are observed from the first step on: run the "
                "model over whole sequences, each in one call"
            )
        if options.get("cu_seqlens") is not None:
            raise CutRefusedError(
                "sequences packed into one (cu_seqlens) are not observed: pass them as a padded batch"
            )
        return x, None if mask is None else mask.bool()

    @override
    def outputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        y: Tensor = self.layer(*args, **kwargs)[0]
        return y

    @override
    def set_n_features(self, n_features: int) -> None:
        super().set_n_features(n_features)
        layer = self.layer
        layer.head_k_dim = n_features
        layer.key_dim = layer.key_dim_per_group = n_features * self.n_groups
        if layer.use_short_conv:
            for conv in (layer.q_conv1d, layer.k_conv1d):
                conv.hidden_size = conv.weight.shape[0]


@register_adapter(gla.GatedLinearAttention)
class GatedLinearAttentionAdapter(LinearAttentionAdapter):
    """Cuts a ``GatedLinearAttention`` by choosing keys."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("q_proj.weight", "k_proj.weight")

    @override
    def view(self, layer: Any) -> GatedLinearAttentionView:
        return GatedLinearAttentionView(layer)


class SimpleGatedLinearAttentionView(GatedLinearAttentionView):
    """A ``SimpleGatedLinearAttention`` as the reductions see it: one decay a head."""

    @property
    @override
    def decays_by_key(self) -> bool:
        return False


@register_adapter(simple_gla.SimpleGatedLinearAttention)
class SimpleGatedLinearAttentionAdapter(LinearAttentionAdapter):
    """Cuts a ``SimpleGatedLinearAttention``: a change of basis of its keys, or a choice of them."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("q_proj.weight", "k_proj.weight")

    @override
    def view(self, layer: Any) -> SimpleGatedLinearAttentionView:
        return SimpleGatedLinearAttentionView(layer)


def _arguments(
    hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, *_: Any, **options: Any
) -> tuple[Tensor, Tensor | None, Any, Mapping[str, Any]]:
    """What a layer was called with: input, mask, cache and the rest."""
    return hidden_states, attention_mask, past_key_values, options
