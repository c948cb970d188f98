"""Cuts ``MambaMixer``, ``FalconMambaMixer`` and ``Mamba2Mixer`` of Hugging Face transformers: import this module once, and models that contain one can be compressed.

Everything of a mixer goes on working after a cut, generation with its cache too: the cache takes the size of each layer's state from the state
itself. ``config.state_size`` is one number for the whole model and is left alone. ``from_pretrained`` builds all layers with it; where all layers
have been cut to one size, :func:`update_config` sets it to that size before ``save_pretrained``, and for layers of different sizes use
:func:`hsv_torch.save_checkpoint` and :func:`hsv_torch.load_into`.

A mixer has no room for transforms. :class:`hsv_torch.Mamba` and :class:`hsv_torch.Mamba2` have, and take the weights of a ``MambaMixer`` and of a ``Mamba2Mixer`` with ``load_state_dict``.

``FalconMambaMixer`` divides B and C by their root mean squares over the states: with fewer states every one would weigh more, and differently at each step. What the norm does on
average is a factor, which goes into ``D`` and ``out_proj``; what it does beside that is lost.

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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from hsv import HsvError
from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import adapter_of, compressible_layers, register_adapter
from hsv_torch.layers._mamba2 import Mamba2Parts, Mamba2Sizes, mamba2_parts
from hsv_torch.layers._selective import Normalise, Quantities, quantities, unchanged
from hsv_torch.linear_attention import LinearAttentionAdapter, Mamba2View
from hsv_torch.selective import SelectiveAdapter, SelectiveView
from hsv_torch.third_party._packages import required_package

modeling_mamba = required_package("transformers.models.mamba.modeling_mamba", "transformers")
modeling_falcon_mamba = required_package("transformers.models.falcon_mamba.modeling_falcon_mamba", "transformers")
modeling_mamba2 = required_package("transformers.models.mamba2.modeling_mamba2", "transformers")


class MambaMixerView(SelectiveView):
    """A ``MambaMixer`` as the reductions see it."""

    @property
    def normalise(self) -> Normalise:
        """What the mixer makes of the parts of ``x_proj``'s output."""
        return unchanged

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Quantities:
        hidden_states, mask = _whole_sequences(self.layer, args, kwargs)
        return quantities(self.layer, hidden_states, mask, self.layer.act, self.normalise)

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return _without_cache(args, kwargs)

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


class FalconMambaMixerView(MambaMixerView):
    """A ``FalconMambaMixer`` as the reductions see it: B and C are those after the norm."""

    normalises: ClassVar[bool] = True

    @property
    @override
    def normalise(self) -> Normalise:
        layer = self.layer
        return lambda dt, B, C: (layer.dt_layernorm(dt), layer.b_layernorm(B), layer.c_layernorm(C))

    @override
    def set_n_features(self, n_features: int) -> None:
        super().set_n_features(n_features)
        for norm in (self.layer.b_layernorm, self.layer.c_layernorm):
            norm.weight = norm.weight.new_ones(n_features)  # a buffer that only kernels look at


@register_adapter(modeling_falcon_mamba.FalconMambaMixer)
class FalconMambaMixerAdapter(SelectiveAdapter):
    """Cuts a ``FalconMambaMixer``, in the ways that keep no transforms."""

    @override
    def view(self, layer: Any) -> FalconMambaMixerView:
        return FalconMambaMixerView(layer)


class Mamba2MixerView(Mamba2View):
    """A ``Mamba2Mixer`` as the reductions see it."""

    @property
    @override
    def sizes(self) -> Mamba2Sizes:
        layer = self.layer
        n_features = (layer.conv1d.weight.shape[0] - layer.intermediate_size) // (2 * layer.n_groups)
        low, high = layer.time_step_limit
        return Mamba2Sizes(
            layer.num_heads, layer.head_dim, layer.n_groups, n_features, dt_limit=(float(low), float(high))
        )

    @property
    @override
    def norm_eps(self) -> float:
        return float(self.layer.norm.variance_epsilon)

    @override
    def parts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mamba2Parts:
        hidden_states, mask = _whole_sequences(self.layer, args, kwargs)
        return mamba2_parts(self.layer, self.sizes, hidden_states, mask, self.layer.act)

    @override
    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return _without_cache(args, kwargs)

    @override
    def set_n_features(self, n_features: int) -> None:
        super().set_n_features(n_features)
        self.layer.ssm_state_size = n_features
        self.layer.conv_dim = self.layer.conv1d.weight.shape[0]


@register_adapter(modeling_mamba2.Mamba2Mixer)
class Mamba2MixerAdapter(LinearAttentionAdapter):
    """Cuts a ``Mamba2Mixer`` by choosing states."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    @override
    def view(self, layer: Any) -> Mamba2MixerView:
        return Mamba2MixerView(layer)


_MIXERS = (modeling_mamba.MambaMixer, modeling_falcon_mamba.FalconMambaMixer, modeling_mamba2.Mamba2Mixer)


def update_config(model: nn.Module) -> int:
    """Set ``model.config.state_size`` to the number of states that all of its mixers have, so that ``save_pretrained`` writes what ``from_pretrained`` can load.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its configuration is changed in place.

    Returns
    -------
    int
        The number of states.

    Raises
    ------
    hsv.HsvError
        The model has no mixers, they have different sizes, or a layer is none of transformers' own. Nothing is changed then.

    Examples
    --------
    >>> import torch, transformers, hsv, hsv_torch
    >>> from hsv_torch.third_party.transformers import update_config
    >>> config = transformers.MambaConfig(vocab_size=9, hidden_size=8, state_size=6, num_hidden_layers=2)
    >>> model = transformers.MambaForCausalLM(config)
    >>> report = hsv_torch.compress_(
    ...     model, hsv.HankelSum(keep=0.5), sizes=hsv_torch.Sizes(uniform=True), calibration=torch.randint(9, (16, 32))
    ... )
    >>> update_config(model) == model.config.state_size == model.backbone.layers[0].mixer.ssm_state_size
    True
    """
    layers = compressible_layers(model)
    config = getattr(model, "config", None)
    if not layers or not hasattr(config, "state_size"):
        raise HsvError(
            f"a {type(model).__qualname__} has no state-space layers or no `config.state_size`: give the model that you would call `save_pretrained` of"
        )
    foreign = [name for name, layer in layers.items() if type(layer) not in _MIXERS]
    if foreign:
        raise HsvError(
            f"the layers {foreign} are no mixers of transformers, and `from_pretrained` would not build them: use hsv_torch.save_checkpoint and load_into"
        )
    sizes = {name: adapter_of(layer).n_states(layer) for name, layer in layers.items()}
    if len(set(sizes.values())) > 1:
        raise HsvError(
            f"`config.state_size` is one number for all layers, and theirs are {sizes}: cut with sizes=hsv_torch.Sizes(uniform=True), or use "
            "hsv_torch.save_checkpoint and load_into, which keep a size for each layer"
        )
    config.state_size = next(iter(sizes.values()))  # type: ignore[union-attr]
    return next(iter(sizes.values()))


def _whole_sequences(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Input and mask of a call, which must not go on from a cache."""
    hidden_states, cache, attention_mask = _arguments(*args, **kwargs)
    if cache is not None and cache.has_previous_state(layer.layer_idx):
        raise CutRefusedError(
            "the layer was called to continue a sequence from its cache, and its states are observed from the first step on: run the "
            "model over whole sequences, each in one call"
        )
    return hidden_states, None if attention_mask is None else attention_mask.bool()


def _without_cache(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    hidden_states, _, attention_mask = _arguments(*args, **kwargs)
    return (hidden_states,), {"attention_mask": attention_mask}


def _arguments(
    hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, Any, Tensor | None]:
    """What a mixer was called with; the rest goes to kernels."""
    return hidden_states, cache_params, attention_mask
