"""Cuts ``MambaMixer`` of Hugging Face transformers: import this module once, and models that contain it can be compressed.

Everything of the mixer goes on working after a cut, generation with its cache too: the cache takes the size of each layer's state from the state
itself. ``config.state_size`` is one number for the whole model and is left alone. ``from_pretrained`` builds all layers with it; where all layers
have been cut to one size, set it to that size before ``save_pretrained``, and for layers of different sizes use
:func:`hsv_torch.save_checkpoint` and :func:`hsv_torch.load_into`.

A mixer has no room for transforms a channel. :class:`hsv_torch.Mamba` has, and takes the weights of a mixer with ``load_state_dict``.

Examples
--------
>>> import torch, transformers, hsv_torch
>>> import hsv_torch.third_party.transformers
>>> config = transformers.MambaConfig(vocab_size=9, hidden_size=8, state_size=6, num_hidden_layers=2)
>>> model = transformers.MambaForCausalLM(config)
>>> report = hsv_torch.compress_(model, 3, calibration=torch.randint(9, (16, 32)))
>>> [block.mixer.ssm_state_size for block in model.backbone.layers]
[3, 3]
"""

from __future__ import annotations

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

modeling_mamba = required_package("transformers.models.mamba.modeling_mamba", "transformers")


class MambaMixerView(SelectiveView):
    """A ``MambaMixer`` as the reductions see it."""

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Quantities:
        hidden_states, cache, attention_mask = _arguments(*args, **kwargs)
        if cache is not None and cache.has_previous_state(self.layer.layer_idx):
            raise CutRefusedError(
                "the layer was called to continue a sequence from its cache, and its states are observed from the first step on: run the "
                "model over whole sequences, each in one call"
            )
        mask = None if attention_mask is None else attention_mask.bool()
        return quantities(self.layer, hidden_states, mask, self.layer.act)

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        hidden_states, _, attention_mask = _arguments(*args, **kwargs)
        return (hidden_states,), {"attention_mask": attention_mask}

    @override
    def set_n_features(self, n_features: int) -> None:
        self.layer.ssm_state_size = n_features
        self.layer.x_proj.out_features = self.dt_rank + 2 * n_features


@register_adapter(modeling_mamba.MambaMixer)
class MambaMixerAdapter(SelectiveAdapter):
    """Cuts a ``MambaMixer``, in the ways that keep no transforms."""

    @override
    def view(self, layer: Any) -> MambaMixerView:
        return MambaMixerView(layer)


def _arguments(
    hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, Any, Tensor | None]:
    """What ``MambaMixer.forward`` was called with; the rest goes to kernels."""
    return hidden_states, cache_params, attention_mask
