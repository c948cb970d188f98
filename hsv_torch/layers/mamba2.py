"""The layer of Mamba-2, a state-space model whose decay is one number a head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from typing_extensions import override

from hsv import ShapeError
from hsv_torch.adapters import register_adapter
from hsv_torch.layers._checks import check_dtype, check_size, checked_input, padding_mask, without_padding
from hsv_torch.layers._mamba2 import Mamba2Parts, Mamba2Sizes, inverse_rms, mamba2_parts, split_heads, step_sizes
from hsv_torch.linear_attention import LinearAttentionAdapter, Mamba2View
from hsv_torch.scan import gated_linear_attention


class GatedRMSNorm(nn.Module):
    r"""Gate and normalise: :math:`w \odot r / \operatorname{rms}(r)` with :math:`r = y \odot \mathrm{silu}(z)`, the root mean square in each group of channels.

    Parameters
    ----------
    n_channels, n_groups : int
    eps : float
        Added to the mean square.
    device, dtype
        As in ``torch.nn``.
    """

    def __init__(
        self,
        n_channels: int,
        *,
        n_groups: int = 1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(n_channels, device=device, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Map ``y, z (..., n_channels)`` to the same shape, in the dtype of the weight."""
        r = (y * functional.silu(z)).to(self.weight.dtype)
        return r * inverse_rms(r, self.n_groups, self.eps) * self.weight

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"{self.weight.shape[0]}, n_groups={self.n_groups}, eps={self.eps}"


class Mamba2(nn.Module):
    r"""Mamba-2: a convolution, heads of a state-space model with a scalar decay, a gate and a norm.

    With ``d = expand d_model`` inner channels in heads :math:`h` of ``head_dim``, and groups :math:`g(h)` of heads that share :math:`B` and :math:`C`, for an input :math:`x_t` of ``d_model`` channels,

    .. math::
        (z_t, \tilde u_t, s_t) &= W_{\mathrm{in}} x_t, \qquad (u_t, B_t, C_t) = \mathrm{silu}(\mathrm{conv}(\tilde u)_t), \qquad
        \delta_t = \mathrm{softplus}(s_t + b_\delta), \\
        S_{t,h} &= \exp(\delta_{t,h} A_h)\, S_{t-1,h} + \delta_{t,h} B_{t,g(h)} u_{t,h}^T \in R^{n \times p}, \qquad A = -\exp(A_{\log}), \\
        y_{t,h} &= S_{t,h}^T C_{t,g(h)} + D_h u_{t,h}, \qquad \mathrm{out}_t = W_{\mathrm{out}} \operatorname{norm}(y_t \odot \mathrm{silu}(z_t)).

    Parameters have the names and shapes of the published code and of ``Mamba2Mixer`` in Hugging Face transformers, so that ``load_state_dict`` takes the weights of either: ``in_proj``
    (rows for z, u, B, C, s in this order), ``conv1d`` (depthwise, causal, over u, B, C), ``dt_bias``, ``A_log`` and ``D (heads,)``, ``norm``, ``out_proj``. The number of states is read from ``in_proj``.

    After a cut that keeps a projection there are two parameters more, which are None before: ``B_transform`` and ``C_transform (groups, r, n_features)``. What the scan sees is then
    :math:`T^B_g B_t` and :math:`T^C_g C_t`, and a state has ``r`` rows. They stand after the activation, where nothing can be folded into ``in_proj``.

    The initialisation is the published one: :math:`-A` uniform in ``A_range``, ``D = 1``; :math:`\delta` at zero input log-uniform in ``[dt_min, dt_max]``; the projections and the convolution as ``torch.nn`` draws them.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Number of states of each inner channel.
    expand : int
        Inner channels for each channel of the input.
    head_dim : int, optional
        Inner channels of a head; it divides their number. By default 64, or all of them where there are fewer.
    n_groups : int
        Groups of heads; each has its own B and C, and its own part of the norm.
    conv_kernel : int
        Steps that the convolution sees.
    A_range : tuple of float
        The interval of the initial decay rates.
    dt_min, dt_max : float
        The interval of initial step sizes, ``0 < dt_min <= dt_max``.
    dt_init_floor : float
        Initial step sizes below it are raised to it.
    dt_limit : tuple of float
        Step sizes are clamped to this interval, always.
    norm_eps : float
        Of the norm.
    bias, conv_bias : bool
        Whether ``in_proj`` and ``out_proj``, and the convolution, have a bias.
    device, dtype
        As in ``torch.nn``; ``dtype`` is ``torch.float32`` or ``torch.float64``. Under autocast the projections run in half precision, the scan
        does not.
    generator : torch.Generator, optional
        Source of the initial values.

    Raises
    ------
    hsv.HsvError
        A size below 1, sizes that do not divide one another, an empty interval, a dtype that layers do not compute in.

    References
    ----------
    T. Dao and A. Gu, "Transformers are SSMs: Generalized models and efficient algorithms through structured state space duality", 2024, section 7.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba2(d_model=8, n_states=6, head_dim=4)
    >>> layer(torch.zeros(2, 7, 8)).shape
    torch.Size([2, 7, 8])
    >>> layer.n_heads, layer.in_proj.weight.shape  # 16 rows for z, 16 for u, 6 for B, 6 for C, 4 for the step sizes
    (4, torch.Size([48, 8]))
    """

    B_transform: nn.Parameter | None
    C_transform: nn.Parameter | None

    def __init__(
        self,
        d_model: int,
        n_states: int = 128,
        *,
        expand: int = 2,
        head_dim: int | None = None,
        n_groups: int = 1,
        conv_kernel: int = 4,
        A_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        norm_eps: float = 1e-5,
        bias: bool = False,
        conv_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "d_model": d_model,
            "n_states": n_states,
            "expand": expand,
            "n_groups": n_groups,
            "conv_kernel": conv_kernel,
        }
        for name, size in sizes.items() if head_dim is None else (sizes | {"head_dim": head_dim}).items():
            check_size(name, size)
        if not 0 < dt_min <= dt_max < math.inf:
            raise ShapeError(f"`dt_min` and `dt_max` must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        if not 0 < A_range[0] <= A_range[1] < math.inf:
            raise ShapeError(f"`A_range` must be an interval of positive decay rates, got {A_range}")
        if not 0 <= dt_limit[0] < dt_limit[1]:
            raise ShapeError(f"`dt_limit` must be an interval of step sizes, 0 <= low < high, got {dt_limit}")
        for name, value in (("norm_eps", norm_eps), ("dt_init_floor", dt_init_floor)):
            if not 0 <= value < math.inf:
                raise ShapeError(f"`{name}` must be finite and at least 0, got {value}")
        d = expand * d_model
        head_dim = min(64, d) if head_dim is None else head_dim
        if d % head_dim:
            raise ShapeError(f"`head_dim` must divide the {d} inner channels (expand * d_model), got {head_dim}")
        if (d // head_dim) % n_groups:
            raise ShapeError(f"`n_groups` must divide the {d // head_dim} heads, got {n_groups}")
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        self.d_model, self.d_inner, self.head_dim, self.n_heads = d_model, d, head_dim, d // head_dim
        self.n_groups, self.conv_kernel = n_groups, conv_kernel
        self.A_range, self.dt_min, self.dt_max, self.dt_init_floor = A_range, dt_min, dt_max, dt_init_floor
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        device = torch.get_default_device() if device is None else device
        n_conv = d + 2 * n_groups * n_states

        def linear(n_inputs: int, n_outputs: int) -> nn.Linear:
            # Without torch's own initial values, which would advance the global generator.
            return skip_init(nn.Linear, n_inputs, n_outputs, bias=bias, device=device, dtype=dtype)

        self.in_proj = linear(d_model, d + n_conv + self.n_heads)
        self.conv1d = skip_init(
            nn.Conv1d, n_conv, n_conv, conv_kernel, groups=n_conv, padding=conv_kernel - 1, bias=conv_bias,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.dt_bias, self.A_log, self.D = (
            nn.Parameter(torch.empty(self.n_heads, device=device, dtype=dtype)) for _ in range(3)
        )
        self.norm = GatedRMSNorm(d, n_groups=n_groups, eps=norm_eps, device=device, dtype=dtype)
        self.out_proj = linear(d, d_model)
        for name in ("B_transform", "C_transform"):
            self.register_parameter(name, None)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model.

        A layer that was cut begins anew with the states it has; transforms that a cut put there stay as they are.
        """
        device = None if generator is None else generator.device

        def uniform(parameter: Tensor, low: float, high: float) -> Tensor:
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device=device)
            return low + (high - low) * draw

        for module in (self.in_proj, self.conv1d, self.out_proj):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                parameter.copy_(uniform(parameter, -bound, bound))
        delta = uniform(self.dt_bias, math.log(self.dt_min), math.log(self.dt_max)).exp().clamp_min(self.dt_init_floor)
        self.dt_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        self.A_log.copy_(uniform(self.A_log, *self.A_range).log())
        self.D.fill_(1)
        self.norm.weight.fill_(1)

    @property
    def n_states(self) -> int:
        """Number of states of each inner channel, read from the parameters."""
        return self.n_features if self.B_transform is None else self.B_transform.shape[1]

    @property
    def n_features(self) -> int:
        """Number of entries of a group's ``B_t`` and of its ``C_t``: the number of states, unless there are transforms."""
        return (self.in_proj.weight.shape[0] - 2 * self.d_inner - self.n_heads) // (2 * self.n_groups)

    @property
    def sizes(self) -> Mamba2Sizes:
        """How the layer divides its channels."""
        return Mamba2Sizes(self.n_heads, self.head_dim, self.n_groups, self.n_features, dt_limit=self.dt_limit)

    def parts(self, x: Tensor, lengths: Tensor | None = None) -> Mamba2Parts:
        """Return what the layer makes of ``x (batch, length, d_model)`` before the scan.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            As :meth:`forward`.
        """
        x = checked_input(x, ("batch", "length"), self.d_model, self.A_log.dtype)
        mask = None if lengths is None else padding_mask(lengths.to(x.device), x.shape[0], x.shape[1])
        return mamba2_parts(self, self.sizes, x, mask)

    def in_states(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """B and C ``(..., groups, n_features)`` as the states see them, ``(..., groups, n_states)``: through the transforms, or as they are."""
        if self.B_transform is None or self.C_transform is None:
            return B, C
        return torch.einsum("...gf,grf->...gr", B, self.B_transform), torch.einsum(
            "...gf,grf->...gr", C, self.C_transform
        )

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
        parts = self.parts(x, lengths)
        dtype = self.A_log.dtype
        with torch.autocast(x.device.type, enabled=False):
            u, B, C, delta, z = (t.to(dtype) for t in (parts.x, parts.B, parts.C, parts.delta, parts.z))
            write, read = self.in_states(B, C)
            y = gated_linear_attention(read, write, delta[..., None] * u, -delta * self.A_log.exp())
            y = self.norm((y + self.D[:, None] * u).flatten(-2), z)
        return without_padding(self.out_proj(y).to(dtype), lengths)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the state before the first step, zeros: the last inputs of the convolution, ``(batch, channels, conv_kernel - 1)``, and ``(batch, heads, n_states, head_dim)``."""
        like = self.A_log.detach()
        last = like.new_zeros(batch, self.conv1d.weight.shape[0], self.conv_kernel - 1)
        return last, like.new_zeros(batch, self.n_heads, self.n_states, self.head_dim)

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and a state to output and next state; see :meth:`initial_state`."""
        dtype = self.A_log.dtype
        x_t = checked_input(x_t, ("batch",), self.d_model, dtype)
        expected = [(dtype, tuple(part.shape)) for part in self.initial_state(x_t.shape[0])]
        if [(part.dtype, tuple(part.shape)) for part in state] != expected:
            found = ", ".join(f"{part.dtype} {tuple(part.shape)}" for part in state)
            raise ShapeError(
                f"`state` must be a pair of {' and '.join(f'{t} of shape {s}' for t, s in expected)}, got {found}; after a cut "
                "begin again with `initial_state`"
            )
        last, S = state
        sizes = self.sizes
        _, _, z, u, dt = self.in_proj(x_t).to(dtype).split(sizes.split, -1)
        with torch.autocast(x_t.device.type, enabled=False):
            window = torch.cat([last, u[..., None]], -1)  # (batch, channels, conv_kernel)
            u = (window * self.conv1d.weight[:, 0]).sum(-1)
            u = functional.silu(u if self.conv1d.bias is None else u + self.conv1d.bias)
            u, B, C = split_heads(u, sizes)
            delta = step_sizes(self, sizes, dt)
            write, read = (m.repeat_interleave(self.n_heads // self.n_groups, 1) for m in self.in_states(B, C))
            decay = (-delta * self.A_log.exp()).exp()
            S = decay[..., None, None] * S + write[..., None] * (delta[..., None] * u)[..., None, :]
            y = (read[..., None] * S).sum(-2) + self.D[:, None] * u
            y = self.norm(y.flatten(-2), z)
        return self.out_proj(y).to(dtype), (window[..., 1:], S)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"d_model={self.d_model}, n_states={self.n_states}, head_dim={self.head_dim}, n_groups={self.n_groups}"


class OwnMamba2View(Mamba2View):
    """A :class:`Mamba2` as the reductions see it; it can keep transforms."""

    has_room: ClassVar[bool] = True

    @property
    @override
    def sizes(self) -> Mamba2Sizes:
        return self.layer.sizes

    @override
    def parts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mamba2Parts:
        return self.layer.parts(*args, **kwargs)


@register_adapter(Mamba2)
class Mamba2Adapter(LinearAttentionAdapter):
    """Cuts a :class:`Mamba2`: a basis of the states kept as a projection, or a choice of states."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    @override
    def view(self, layer: Mamba2) -> OwnMamba2View:
        return OwnMamba2View(layer)
