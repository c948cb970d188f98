"""The selective state-space layer of Mamba, S6."""

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
    COMPLEX,
    check_choice,
    check_dtype,
    check_size,
    checked_input,
    padding_mask,
    without_padding,
)
from hsv_torch.layers._selective import Quantities, masked, projections
from hsv_torch.scan import linear_scan, selective_scan
from hsv_torch.scan._elementwise import causal_convolution, skip_and_gate
from hsv_torch.selective import SelectiveAdapter, SelectiveView
from hsv_torch.selective._adapter import TRANSFORMS

StepSizeInit = Literal["random", "constant"]


class Mamba(nn.Module):
    r"""Mamba: a convolution, a selective state-space model with :math:`n` states a channel, and a gate.

    With ``d = expand d_model`` channels :math:`c`, for an input :math:`x_t` of ``d_model`` channels,

    .. math::
        (\tilde u_t, z_t) &= W_{\mathrm{in}} x_t, \qquad u_t = \mathrm{silu}(\mathrm{conv}(\tilde u)_t), \\
        (s_t, B_t, C_t) &= W_x u_t, \qquad \delta_t = \mathrm{softplus}(W_\delta s_t + b_\delta), \\
        h_{t,c} &= \exp(\delta_{t,c} A_c) \odot h_{t-1,c} + \delta_{t,c} u_{t,c} B_t, \qquad A = -\exp(A_{\log}), \\
        y_{t,c} &= \langle C_t, h_{t,c} \rangle + D_c u_{t,c}, \qquad \mathrm{out}_t = W_{\mathrm{out}} (y_t \odot \mathrm{silu}(z_t)).

    Parameters have the names and shapes of the published code and of ``MambaMixer`` in Hugging Face transformers, so that
    ``load_state_dict`` takes the weights of either: ``in_proj``, ``conv1d`` (depthwise, causal), ``x_proj`` (rows for :math:`s`, ``B``
    and ``C``), ``dt_proj``, ``out_proj``, ``A_log (d, n)`` and ``D (d,)``. The number of states is read from ``A_log``.

    After a cut that keeps a change of basis a channel, there are three parameters more, which are None before: ``A_imag (d, r)`` and
    ``B_transform``, ``C_transform (d, r, n_features[, 2])`` (last axis: real and imaginary part, there if ``A_imag`` is). The recurrence is then

    .. math::
        h_{t,c} = \exp(\delta_{t,c} (A_c + i A^{\mathrm{imag}}_c)) \odot h_{t-1,c} + \delta_{t,c} u_{t,c} T^B_c B_t, \qquad
        y_{t,c} = \mathrm{Re} \langle T^C_c C_t, h_{t,c} \rangle + D_c u_{t,c}

    with a bilinear :math:`\langle \cdot, \cdot \rangle`: nothing is conjugated.

    The initialisation is the published one: ``A_log[c, k] = log(k + 1)``, ``D = 1``; :math:`\delta` at zero input log-uniform in ``[dt_min, dt_max]``; ``dt_proj.weight`` uniform
    within :math:`\pm` ``dt_scale / sqrt(dt_rank)``; the other projections and the convolution as ``torch.nn`` draws them.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Number of states of each inner channel.
    expand : int
        Inner channels for each channel of the input.
    conv_kernel : int
        Steps that the convolution sees.
    dt_rank : int, optional
        Rank of the map to the step sizes; ``ceil(d_model / 16)`` by default.
    dt_min, dt_max : float
        The interval of initial step sizes, ``0 < dt_min <= dt_max``; in the unit of time of ``A``.
    dt_init : {"random", "constant"}
        Whether ``dt_proj.weight`` is drawn or all equal to its bound.
    dt_scale : float
        Factor of that bound.
    dt_init_floor : float
        Initial step sizes below it are raised to it.
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
        A size below 1, an empty interval of step sizes, an unknown ``dt_init``, a dtype that layers do not compute in.

    References
    ----------
    A. Gu and T. Dao, "Mamba: Linear-time sequence modeling with selective state spaces", 2023, algorithm 2 and section 3.6.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=8)
    >>> layer(torch.zeros(2, 7, 4)).shape
    torch.Size([2, 7, 4])
    >>> layer.A_log.shape, layer.x_proj.weight.shape  # 8 channels; rank 1 for the step size, 8 rows for B and 8 for C
    (torch.Size([8, 8]), torch.Size([17, 8]))
    """

    A_imag: nn.Parameter | None
    B_transform: nn.Parameter | None
    C_transform: nn.Parameter | None

    def __init__(
        self,
        d_model: int,
        n_states: int = 16,
        *,
        expand: int = 2,
        conv_kernel: int = 4,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: StepSizeInit = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_states": n_states, "expand": expand, "conv_kernel": conv_kernel}
        for name, size in sizes.items() if dt_rank is None else (sizes | {"dt_rank": dt_rank}).items():
            check_size(name, size)
        if not 0 < dt_min <= dt_max < math.inf:
            raise ShapeError(f"`dt_min` and `dt_max` must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        for name, value in (("dt_scale", dt_scale), ("dt_init_floor", dt_init_floor)):
            if not 0 <= value < math.inf:
                raise ShapeError(f"`{name}` must be finite and at least 0, got {value}")
        check_choice("dt_init", dt_init, get_args(StepSizeInit))
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.d_model, self.d_inner, self.dt_rank, self.conv_kernel = d_model, expand * d_model, dt_rank, conv_kernel
        self.dt_min, self.dt_max, self.dt_init = dt_min, dt_max, dt_init
        self.dt_scale, self.dt_init_floor = dt_scale, dt_init_floor
        d = self.d_inner
        device = torch.get_default_device() if device is None else device

        def linear(n_inputs: int, n_outputs: int, *, bias: bool) -> nn.Linear:
            # Without torch's own initial values, which would advance the global generator.
            return skip_init(nn.Linear, n_inputs, n_outputs, bias=bias, device=device, dtype=dtype)

        self.in_proj = linear(d_model, 2 * d, bias=bias)
        self.conv1d = skip_init(
            nn.Conv1d, d, d, conv_kernel, groups=d, padding=conv_kernel - 1, bias=conv_bias,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.x_proj = linear(d, dt_rank + 2 * n_states, bias=False)
        self.dt_proj = linear(dt_rank, d, bias=True)
        self.A_log = nn.Parameter(torch.empty(d, n_states, device=device, dtype=dtype))
        self.D = nn.Parameter(torch.empty(d, device=device, dtype=dtype))
        self.out_proj = linear(d, d_model, bias=bias)
        for name in ("A_imag", "B_transform", "C_transform"):
            self.register_parameter(name, None)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model.

        A layer that was cut begins anew with the states it has; transforms that a cut put there stay as they are.
        """
        device = None if generator is None else generator.device

        def uniform(parameter: Tensor, bound: float) -> Tensor:
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device=device)
            return bound * (2 * draw - 1)

        for module in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                parameter.copy_(uniform(parameter, bound))
        bound = self.dt_scale / math.sqrt(self.dt_rank)
        if self.dt_init == "random":
            self.dt_proj.weight.copy_(uniform(self.dt_proj.weight, bound))
        else:
            self.dt_proj.weight.fill_(bound)
        middle, half = math.log(self.dt_min * self.dt_max) / 2, math.log(self.dt_max / self.dt_min) / 2
        delta = (middle + uniform(self.dt_proj.bias, half)).exp().clamp_min(self.dt_init_floor)
        self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        self.A_log.copy_(torch.arange(1, self.n_states + 1, dtype=torch.float64).log().expand_as(self.A_log))
        self.D.fill_(1)

    @property
    def n_states(self) -> int:
        """Number of states of each inner channel, read from the parameters."""
        return self.A_log.shape[1]

    @property
    def n_features(self) -> int:
        """Number of entries of ``B_t`` and of ``C_t``: the number of states, unless there are transforms."""
        return (self.x_proj.weight.shape[0] - self.dt_rank) // 2

    def quantities(self, x: Tensor, lengths: Tensor | None = None) -> Quantities:
        """Return what the layer makes of ``x (batch, length, d_model)`` before the scan: step sizes, B, C, input, gate.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            As :meth:`forward`.
        """
        u, z, delta, B, C, mask = self._before_the_scan(x, lengths)
        return Quantities(delta, B, C, u, functional.silu(z), mask)

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
        dtype = self.A_log.dtype
        u, z, delta, B, C, _ = self._before_the_scan(x, lengths)
        with torch.autocast(x.device.type, enabled=False):
            y = skip_and_gate(self._scan(u, delta.to(dtype), B.to(dtype), C.to(dtype)), u, self.D, z)
        return without_padding(self.out_proj(y).to(dtype), lengths)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the state before the first step, zeros: the last inputs of the convolution, ``(batch, d, conv_kernel - 1)``, and ``(batch, d, n_states)``."""
        like = self.A_log.detach()
        last = like.new_zeros(batch, self.d_inner, self.conv_kernel - 1)
        return last, like.new_zeros(batch, self.d_inner, self.n_states, dtype=self._state_dtype)

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and a state to output and next state; see :meth:`initial_state`."""
        dtype = self.A_log.dtype
        x_t = checked_input(x_t, ("batch",), self.d_model, dtype)
        batch, d = x_t.shape[0], self.d_inner
        expected = [(dtype, (batch, d, self.conv_kernel - 1)), (self._state_dtype, (batch, d, self.n_states))]
        if [(part.dtype, tuple(part.shape)) for part in state] != expected:
            found = ", ".join(f"{part.dtype} {tuple(part.shape)}" for part in state)
            raise ShapeError(
                f"`state` must be a pair of {' and '.join(f'{t} of shape {s}' for t, s in expected)}, got {found}; after a cut "
                "begin again with `initial_state`"
            )
        last, h = state
        u, z = self.in_proj(x_t).to(dtype).chunk(2, -1)
        with torch.autocast(x_t.device.type, enabled=False):
            window = torch.cat([last, u[..., None]], -1)  # (batch, d, conv_kernel)
            u = (window * self.conv1d.weight[:, 0]).sum(-1)
            u = functional.silu(u if self.conv1d.bias is None else u + self.conv1d.bias)
        delta, B, C = projections(self, u)
        with torch.autocast(x_t.device.type, enabled=False):
            delta = delta.to(dtype)
            write, read = self._in_states(B.to(dtype), C.to(dtype))
            h = (delta[..., None] * self._poles()).exp() * h + (delta * u)[..., None] * write
            y = _real_part((read * h).sum(-1)) + self.D * u
            y = y * functional.silu(z)
        return self.out_proj(y).to(dtype), (window[..., 1:], h)

    def _before_the_scan(
        self, x: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Input of the scan, what the gate is made of, step sizes, B, C and the mask of what is not padding."""
        x = checked_input(x, ("batch", "length"), self.d_model, self.A_log.dtype)
        mask = None if lengths is None else padding_mask(lengths.to(x.device), x.shape[0], x.shape[1])
        u, z = self.in_proj(masked(x, mask)).to(self.A_log.dtype).chunk(2, -1)
        with torch.autocast(x.device.type, enabled=False):
            u = masked(causal_convolution(u, self.conv1d.weight[:, 0], self.conv1d.bias), mask)
        return u, z, *projections(self, u), mask

    def _scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """``<C_t, h_t>`` of all steps, ``(batch, length, d)``."""
        if self.B_transform is None:
            return selective_scan(u, delta, self._poles(), B, C)
        write, read = self._in_states(B, C)  # (batch, length, d, r)
        decay = (delta[..., None] * self._poles()).exp()
        h = linear_scan(decay.flatten(2), ((delta * u)[..., None] * write).flatten(2))
        return _real_part((read * h.unflatten(2, write.shape[2:])).sum(-1))

    def _poles(self) -> Tensor:
        rates = -self.A_log.exp()
        return rates if self.A_imag is None else torch.complex(rates, self.A_imag)

    def _in_states(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """B and C with the axes ``(..., d, n_states)``: through the transforms, or shared by the channels."""
        if self.B_transform is None or self.C_transform is None:
            return B[..., None, :], C[..., None, :]
        write = torch.tensordot(B, self.B_transform, ([-1], [2]))
        read = torch.tensordot(C, self.C_transform, ([-1], [2]))
        if self.A_imag is None:
            return write, read
        return torch.view_as_complex(write), torch.view_as_complex(read)

    @property
    def _state_dtype(self) -> torch.dtype:
        return self.A_log.dtype if self.A_imag is None else COMPLEX[self.A_log.dtype]

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"d_model={self.d_model}, n_states={self.n_states}, dt_rank={self.dt_rank}"


def _real_part(y: Tensor) -> Tensor:
    return y.real if y.is_complex() else y


class MambaView(SelectiveView):
    """A :class:`Mamba` as the reductions see it; it can keep transforms."""

    has_room: ClassVar[bool] = True

    @override
    @torch.no_grad()
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Quantities:
        layer: Mamba = self.layer
        return layer.quantities(*args, **kwargs)

    @override
    def set_n_features(self, n_features: int) -> None:
        self.layer.x_proj.out_features = self.dt_rank + 2 * n_features


@register_adapter(Mamba)
class MambaAdapter(SelectiveAdapter):
    """Cuts a :class:`Mamba`, in every way that :mod:`hsv_torch.selective` knows."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = (*SelectiveAdapter.recurrent_parameters, *TRANSFORMS)

    @override
    def view(self, layer: Mamba) -> MambaView:
        return MambaView(layer)
