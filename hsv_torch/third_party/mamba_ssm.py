"""Cuts ``Mamba`` and ``Mamba2`` of mamba-ssm: import this module once, and models that contain one can be compressed.

The layers need a GPU to run; what they compute before their scans is computed here from their parameters, so that a cut can be planned on any device that the calibration
data runs on. Their ``forward`` and ``step`` go on working: ``d_state`` is set, and caches of the size before are to be allocated anew.

Neither has room for transforms. :class:`hsv_torch.Mamba` and :class:`hsv_torch.Mamba2` have, and take their weights with ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import register_adapter
from hsv_torch.layers._mamba2 import Mamba2Parts, Mamba2Sizes, mamba2_parts
from hsv_torch.layers._selective import Quantities, quantities
from hsv_torch.linear_attention import LinearAttentionAdapter, Mamba2View
from hsv_torch.selective import SelectiveAdapter, SelectiveView
from hsv_torch.third_party._packages import required_package

mamba_simple = required_package("mamba_ssm.modules.mamba_simple", "mamba-ssm")
mamba2 = required_package("mamba_ssm.modules.mamba2", "mamba-ssm")


class MambaView(SelectiveView):
    """A ``Mamba`` as the reductions see it."""

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Quantities:
        return quantities(self.layer, _whole_sequences(args, kwargs), None)

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return (_whole_sequences(args, kwargs),), {}

    @override
    def set_n_features(self, n_features: int) -> None:
        self.layer.d_state = n_features
        self.layer.x_proj.out_features = self.dt_rank + 2 * n_features


@register_adapter(mamba_simple.Mamba)
class MambaAdapter(SelectiveAdapter):
    """Cuts a ``Mamba``, in the ways that keep no transforms."""

    @override
    def view(self, layer: Any) -> MambaView:
        return MambaView(layer)


class Mamba2LayerView(Mamba2View):
    """A ``Mamba2`` as the reductions see it: with groups, a norm before or after the gate or none, an MLP beside, a skip a channel."""

    @property
    @override
    def sizes(self) -> Mamba2Sizes:
        layer = self.layer
        n_features = (layer.conv1d.weight.shape[0] - layer.d_ssm) // (2 * layer.ngroups)
        n_mlp = (layer.in_proj.weight.shape[0] - layer.d_ssm - layer.conv1d.weight.shape[0] - layer.nheads) // 2
        low, high = layer.dt_limit
        return Mamba2Sizes(
            layer.nheads, layer.headdim, layer.ngroups, n_features, n_mlp=n_mlp, dt_limit=(float(low), float(high))
        )

    @property
    @override
    def norm_comes_first(self) -> bool:
        return bool(self.layer.norm_before_gate)

    @property
    @override
    def norm_eps(self) -> float | None:
        return float(self.layer.norm.eps) if self.layer.rmsnorm else None

    @override
    def parts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mamba2Parts:
        if self.layer.process_group is not None:
            raise CutRefusedError(
                "the layer is divided among several processes; cut it before it is, or choose `layers` without it"
            )
        return mamba2_parts(self.layer, self.sizes, _whole_sequences(args, kwargs), None)

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return (_whole_sequences(args, kwargs),), {}

    @override
    def set_n_features(self, n_features: int) -> None:
        super().set_n_features(n_features)
        self.layer.d_state = n_features


@register_adapter(mamba2.Mamba2)
class Mamba2LayerAdapter(LinearAttentionAdapter):
    """Cuts a ``Mamba2`` by choosing states."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    @override
    def view(self, layer: Any) -> Mamba2LayerView:
        return Mamba2LayerView(layer)


def _whole_sequences(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a call, ``(batch, length, d_model)``; a call in another form is refused."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    x = args[0] if args else next((given.pop(name) for name in ("hidden_states", "u") if name in given), None)
    cache = given.pop("inference_params", None)
    if len(args) > 1 or given or x is None:
        what = ", ".join(given) or f"{len(args)} positional arguments"
        raise CutRefusedError(
            f"the layer was called with {what}, and only whole sequences (batch, length, d_model) are observed: run the model over those"
        )
    if cache is not None and cache.seqlen_offset > 0:
        raise CutRefusedError(
            "the layer was called to continue a sequence from its cache, and its states are observed from the first step on: run the "
            "model over whole sequences, each in one call"
        )
    assert isinstance(x, Tensor)
    return x
