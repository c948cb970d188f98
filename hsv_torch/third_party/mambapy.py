"""Cuts ``MambaBlock`` of mambapy: import this module once, and models that contain it can be compressed.

The block reads its number of states from ``config.d_state``, and its model's layers share one configuration: a block that is cut gets a copy of its
own. Everything of the block goes on working, ``step`` too.

A block has no room for transforms a channel. :class:`hsv_torch.Mamba` has, and takes the weights of a block with ``load_state_dict``.

Examples
--------
>>> import torch, mambapy.mamba, hsv_torch
>>> import hsv_torch.third_party.mambapy
>>> model = mambapy.mamba.Mamba(mambapy.mamba.MambaConfig(d_model=8, n_layers=2, d_state=6))
>>> report = hsv_torch.compress_(model, 3, calibration=torch.randn(16, 32, 8))
>>> [block.mixer.config.d_state for block in model.layers]
[3, 3]
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import register_adapter
from hsv_torch.layers._selective import Quantities, quantities
from hsv_torch.selective import SelectiveAdapter, SelectiveView
from hsv_torch.third_party._packages import required_package

mamba = required_package("mambapy.mamba", "mambapy")


class MambaBlockView(SelectiveView):
    """A ``MambaBlock`` as the reductions see it."""

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Quantities:
        return self._quantities(*args, **kwargs)

    def _quantities(self, x: Tensor) -> Quantities:
        if self.layer.B_layernorm is not None:
            raise CutRefusedError(
                "the block normalises B and C over the states (`inner_layernorms=True`), so that taking some away would rescale the others; "
                "choose `layers` without it"
            )
        return quantities(self.layer, x, None)

    @override
    def set_n_features(self, n_features: int) -> None:
        layer = self.layer
        layer.config = copy.copy(layer.config)
        layer.config.d_state = n_features
        layer.x_proj.out_features = self.dt_rank + 2 * n_features


@register_adapter(mamba.MambaBlock)
class MambaBlockAdapter(SelectiveAdapter):
    """Cuts a ``MambaBlock``, in the ways that keep no transforms."""

    @override
    def view(self, layer: Any) -> MambaBlockView:
        return MambaBlockView(layer)
