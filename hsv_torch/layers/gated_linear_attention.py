"""Gated linear attention: a matrix of memory a head that fades, a number a key or a number a head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from typing_extensions import override

from hsv import ShapeError
from hsv_torch.adapters import register_adapter
from hsv_torch.layers._checks import (
    check_choice,
    check_dtype,
    check_size,
    check_state,
    checked_input,
    padding_mask,
    without_padding,
)
from hsv_torch.layers._mamba2 import masked
from hsv_torch.linear_attention import LinearAttentionAdapter, LinearAttentionQuantities, ProjectedAttentionView
from hsv_torch.scan import gated_linear_attention

Decay = Literal["key", "head"]


class GatedLinearAttention(nn.Module):
    r"""Gated linear attention: queries, keys and values are projections of the input, and the memory fades by gates that depend on it.

    For an input :math:`x_t` of ``d_model`` channels, in each head with ``n`` states for each of its ``head_dim`` values,

    .. math::
        q_t &= W_q x_t / \sqrt n, \qquad k_t = W_k x_t, \qquad v_t = W_v x_t, \qquad
        g_t = \log \sigma(W_2 W_1 x_t + b) / \tau, \\
        S_t &= \operatorname{diag}(e^{g_t}) S_{t-1} + k_t v_t^T \in R^{n \times p}, \qquad y_t = S_t^T q_t, \\
        \mathrm{out}_t &= W_o \big( \mathrm{silu}(W_g x_t) \odot w \odot y_t / \operatorname{rms}(y_t) \big).

    With ``decay="head"`` the gate is one number for all keys of a head, and the layer is closed under every change of basis of its keys; with ``decay="key"`` it has a number for each.

    Parameters have the names and shapes of ``GatedLinearAttention`` of flash-linear-attention (of ``SimpleGatedLinearAttention`` where there is one decay a head), so that ``load_state_dict`` takes
    its weights: ``q_proj``, ``k_proj``, ``v_proj``, ``g_proj``, ``gk_proj``, ``g_norm`` (there also under the name ``g_norm_swish_gate``), ``o_proj``. The number of states is read from ``q_proj``.

    The initialisation is that of ``torch.nn`` for the projections; the norm begins at 1.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Keys of a head: states for each of its values.
    n_heads : int
        It divides the number of values.
    n_values : int, optional
        Values of all heads; ``d_model`` by default.
    decay : {"key", "head"}
        Whether each key fades at a rate of its own, or all keys of a head at one.
    gate_rank : int
        Rank of the map to the gates of keys.
    gate_normalizer : float
        :math:`\tau`: the larger, the nearer the gates begin to 1.
    output_gate : bool
        Whether the outputs are gated; ``g_proj`` is None without.
    norm_eps : float
        Of the norm of each head's outputs.
    device, dtype
        As in ``torch.nn``; ``dtype`` is ``torch.float32`` or ``torch.float64``. Under autocast the projections run in half precision, the scan
        does not.
    generator : torch.Generator, optional
        Source of the initial values.

    Raises
    ------
    hsv.HsvError
        A size below 1, heads that do not divide the values, an unknown decay, a dtype that layers do not compute in.

    References
    ----------
    S. Yang, B. Wang, Y. Shen, R. Panda, Y. Kim, "Gated linear attention transformers with hardware-efficient training", ICML 2024, section 4.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.GatedLinearAttention(d_model=8, n_states=6, n_heads=2)
    >>> layer(torch.zeros(2, 7, 8)).shape
    torch.Size([2, 7, 8])
    >>> layer.k_proj.weight.shape, layer.gk_proj[1].weight.shape  # 6 keys in each of 2 heads, and their gates
    (torch.Size([12, 8]), torch.Size([12, 16]))
    """

    g_proj: nn.Linear | None

    def __init__(
        self,
        d_model: int,
        n_states: int = 64,
        *,
        n_heads: int = 4,
        n_values: int | None = None,
        decay: Decay = "key",
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        output_gate: bool = True,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_states": n_states, "n_heads": n_heads, "gate_rank": gate_rank}
        for name, size in sizes.items() if n_values is None else (sizes | {"n_values": n_values}).items():
            check_size(name, size)
        n_values = d_model if n_values is None else n_values
        if n_values % n_heads:
            raise ShapeError(f"`n_heads` must divide the {n_values} values, got {n_heads}")
        check_choice("decay", decay, get_args(Decay))
        if not 0 < gate_normalizer < math.inf:
            raise ShapeError(f"`gate_normalizer` must be positive and finite, got {gate_normalizer}")
        if not 0 <= norm_eps < math.inf:
            raise ShapeError(f"`norm_eps` must be finite and at least 0, got {norm_eps}")
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        self.d_model, self.n_heads, self.n_values, self.head_dim = d_model, n_heads, n_values, n_values // n_heads
        self.decay, self.gate_normalizer, self.norm_eps = decay, float(gate_normalizer), norm_eps
        device = torch.get_default_device() if device is None else device

        def linear(n_inputs: int, n_outputs: int, *, bias: bool = False) -> nn.Linear:
            # Without torch's own initial values, which would advance the global generator.
            return skip_init(nn.Linear, n_inputs, n_outputs, bias=bias, device=device, dtype=dtype)

        n_keys = n_heads * n_states
        self.q_proj, self.k_proj = linear(d_model, n_keys), linear(d_model, n_keys)
        self.v_proj = linear(d_model, n_values)
        self.g_proj = linear(d_model, n_values) if output_gate else None
        self.gk_proj: nn.Module = (
            nn.Sequential(linear(d_model, gate_rank), linear(gate_rank, n_keys, bias=True))
            if decay == "key"
            else linear(d_model, n_heads, bias=True)
        )
        self.g_norm = nn.RMSNorm(self.head_dim, eps=norm_eps, device=device, dtype=dtype)
        self.o_proj = linear(n_values, d_model)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model."""
        device = None if generator is None else generator.device
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.weight.shape[1])
                for parameter in module.parameters():
                    draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device=device)
                    parameter.copy_(bound * (2 * draw - 1))
        self.g_norm.weight.fill_(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the norm's weight under the name that it has where norm and gate are fused."""
        fused = f"{prefix}g_norm_swish_gate.weight"
        if fused in state_dict:
            state_dict[f"{prefix}g_norm.weight"] = state_dict.pop(fused)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def n_states(self) -> int:
        """Keys of a head, read from the parameters."""
        return self.q_proj.weight.shape[0] // self.n_heads

    def quantities(self, x: Tensor, lengths: Tensor | None = None) -> LinearAttentionQuantities:
        """Return what the layer makes of ``x (batch, length, d_model)`` before the scan, and by how much its outputs count.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            As :meth:`forward`.
        """
        x = checked_input(x, ("batch", "length"), self.d_model, self.q_proj.weight.dtype)
        mask = None if lengths is None else padding_mask(lengths.to(x.device), x.shape[0], x.shape[1])
        x = masked(x, mask)
        q, k, v, log_decay = self._projections(x)
        y = gated_linear_attention(q, k, v, log_decay)
        weight = (y.square().mean(-1, keepdim=True) + self.norm_eps).rsqrt() * self.g_norm.weight
        if self.g_proj is not None:
            weight = weight * functional.silu(self.g_proj(x).unflatten(-1, (self.n_heads, -1)))
        norms = torch.linalg.vector_norm(self.o_proj.weight, dim=0).unflatten(0, (self.n_heads, -1))
        return LinearAttentionQuantities(q, k, v, log_decay, weight * norms, mask)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``x (batch, length, d_model)`` to an output of the same shape and of the parameters' dtype.

        Parameters
        ----------
        x : Tensor
        lengths : Tensor, optional
            ``(batch,)``, integers: steps of each sequence that are not padding. What stands in the padding has no influence, and
            outputs there are 0.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            ``x`` has other axes, another number of channels, or a dtype other than the layer's (half precision is
            taken up to the layer's dtype, so that autocast works); `lengths` do not fit.
        """
        x = checked_input(x, ("batch", "length"), self.d_model, self.q_proj.weight.dtype)
        x = without_padding(x, lengths)
        q, k, v, log_decay = self._projections(x)
        with torch.autocast(x.device.type, enabled=False):
            y = gated_linear_attention(q, k, v, log_decay)
        return without_padding(self._outputs(x, y), lengths)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step, zeros: ``(batch, n_heads, n_states, head_dim)``."""
        return self.q_proj.weight.detach().new_zeros(batch, self.n_heads, self.n_states, self.head_dim)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and a state to output and next state; see :meth:`initial_state`."""
        dtype = self.q_proj.weight.dtype
        x_t = checked_input(x_t, ("batch",), self.d_model, dtype)
        check_state(state, (x_t.shape[0], self.n_heads, self.n_states, self.head_dim), dtype)
        q, k, v, log_decay = self._projections(x_t)
        with torch.autocast(x_t.device.type, enabled=False):
            decay = log_decay.exp() if self.decay == "key" else log_decay.exp()[..., None]
            state = decay[..., None] * state + k[..., None] * v[..., None, :]
            y = (q[..., None] * state).sum(-2)
        return self._outputs(x_t, y), state

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys ``(..., n_heads, n_states)``, values ``(..., n_heads, head_dim)`` and logarithms of the decay, in the layer's dtype."""
        dtype, heads = self.q_proj.weight.dtype, (self.n_heads, -1)
        q, k, v = (proj(x).to(dtype).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        log_decay = functional.logsigmoid(self.gk_proj(x).to(dtype)) / self.gate_normalizer
        return q * self.n_states**-0.5, k, v, log_decay.unflatten(-1, heads) if self.decay == "key" else log_decay

    def _outputs(self, x: Tensor, y: Tensor) -> Tensor:
        """From ``y (..., n_heads, head_dim)`` to the layer's output."""
        with torch.autocast(x.device.type, enabled=False):
            y = self.g_norm(y).flatten(-2)
        if self.g_proj is not None:
            y = y * functional.silu(self.g_proj(x)).to(y.dtype)
        return self.o_proj(y).to(self.q_proj.weight.dtype)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"d_model={self.d_model}, n_states={self.n_states}, n_heads={self.n_heads}, decay={self.decay!r}"


class OwnAttentionView(ProjectedAttentionView):
    """A :class:`GatedLinearAttention` as the reductions see it."""

    @property
    @override
    def n_groups(self) -> int:
        return int(self.layer.n_heads)

    @property
    @override
    def decays_by_key(self) -> bool:
        return bool(self.layer.decay == "key")

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinearAttentionQuantities:
        layer: GatedLinearAttention = self.layer
        return layer.quantities(*args, **kwargs)


@register_adapter(GatedLinearAttention)
class GatedLinearAttentionAdapter(LinearAttentionAdapter):
    """Cuts a :class:`GatedLinearAttention`: a change of basis of the keys with one decay a head, a choice of keys with compensation with one a key."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("q_proj.weight", "k_proj.weight")

    @override
    def view(self, layer: GatedLinearAttention) -> OwnAttentionView:
        return OwnAttentionView(layer)
