"""The linear recurrent unit."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

import hsv
from hsv import ShapeError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, put_parameters, register_adapter
from hsv_torch.criteria import Criterion, DiagonalCriterion
from hsv_torch.diagonal_cut import DiagonalCut
from hsv_torch.layers._checks import (
    COMPLEX,
    check_choice,
    check_dtype,
    check_size,
    check_state,
    checked_input,
    without_padding,
)
from hsv_torch.scan import choose_mode, diagonal_state_space

LayerMode = Literal["auto", "scan", "convolution"]


class LRU(nn.Module):
    r"""Linear recurrent unit: one diagonal complex state-space model with ``d_model`` inputs and outputs.

    .. math::
        h_t &= \lambda \odot h_{t-1} + e^{\gamma} \odot (B u_t), \qquad h_{-1} = 0, \\
        y_t &= \mathrm{Re}(C h_t) + D \odot u_t, \qquad \lambda = \exp(-e^{\nu} + i \theta).

    The parameters are ``nu_log (n,)``, ``theta (n,)`` (the angle itself, so that 0 is allowed), ``gamma_log (n,)``,
    ``B (n, d_model, 2)`` and ``C (d_model, n, 2)`` (last axis: real and imaginary part) and ``D (d_model,)``. Any real
    ``nu_log`` gives a stable pole. The number of states is read from ``nu_log``: a cut replaces the parameters, nothing else.

    The initialisation is the published one: :math:`\lambda` uniform on the ring
    ``min_radius <= |lambda| <= max_radius`` with angles uniform in ``[0, max_phase)``, ``B`` and ``C`` Gaussian with
    variance ``1 / (2 d_model)`` and ``1 / n`` for each part, :math:`e^\gamma = \sqrt{1 - |\lambda|^2}`, which gives every
    state unit variance under white noise, ``D`` standard normal.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Number of complex states.
    min_radius, max_radius : float
        The ring that the poles are drawn from, ``0 <= min_radius <= max_radius < 1``.
    max_phase : float
        Largest initial angle, in radians a step; a small one (``2 pi / 10``) suits long sequences.
    mode : {"auto", "scan", "convolution"}
        How :meth:`forward` computes the same numbers; "auto" is :func:`hsv_torch.scan.choose_mode`, a fixed rule of the sizes.
    device, dtype
        As in ``torch.nn``; ``dtype`` is ``torch.float32`` or ``torch.float64``.
    generator : torch.Generator, optional
        Source of the initial values.

    Raises
    ------
    hsv.HsvError
        A size below 1, an empty ring, an unknown mode, a dtype without a complex counterpart.

    References
    ----------
    Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting Recurrent Neural Networks for Long Sequences",
    ICML 2023, section 3 and appendix A.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.LRU(d_model=3, n_states=5)
    >>> layer(torch.zeros(2, 7, 3)).shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        d_model: int,
        n_states: int,
        *,
        min_radius: float = 0.9,
        max_radius: float = 0.999,
        max_phase: float = 2 * math.pi,
        mode: LayerMode = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("n_states", n_states)
        if not 0 <= min_radius <= max_radius < 1:
            raise ShapeError(
                f"`min_radius` and `max_radius` must satisfy 0 <= min_radius <= max_radius < 1, got {min_radius} and {max_radius}"
            )
        if not (math.isfinite(max_phase) and max_phase >= 0):
            raise ShapeError(f"`max_phase` must be a finite angle of at least 0 radians, got {max_phase}")
        check_choice("mode", mode, get_args(LayerMode))
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        self.d_model = d_model
        self.min_radius, self.max_radius, self.max_phase = min_radius, max_radius, max_phase
        self.mode = mode

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.nu_log = empty(n_states)
        self.theta = empty(n_states)
        self.gamma_log = empty(n_states)
        self.B = empty(n_states, d_model, 2)
        self.C = empty(d_model, n_states, 2)
        self.D = empty(d_model)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model."""
        n_states, d_model = self.n_states, self.d_model
        device = None if generator is None else generator.device

        def uniform() -> Tensor:
            return torch.rand(n_states, generator=generator, dtype=torch.float64, device=device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

        area = self.min_radius**2 + (self.max_radius**2 - self.min_radius**2) * uniform()
        # Half the least area that float32 resolves beside 1 keeps a pole that was drawn at 0 from an infinite nu.
        rate = -0.5 * torch.log(area.clamp_min(2.0**-25))
        self.nu_log.copy_(rate.log())
        self.theta.copy_(self.max_phase * uniform())
        self.gamma_log.copy_(0.5 * torch.log(-torch.expm1(-2 * rate)))
        self.B.copy_(normal(n_states, d_model, 2) / math.sqrt(2 * d_model))
        self.C.copy_(normal(d_model, n_states, 2) / math.sqrt(n_states))
        self.D.copy_(normal(d_model))

    @property
    def n_states(self) -> int:
        """Number of complex states, read from the parameters."""
        return self.nu_log.shape[0]

    def chosen_mode(self, batch: int, length: int) -> Literal["scan", "convolution"]:
        """How :meth:`forward` computes an input of this size: ``mode`` itself, or what "auto" stands for here."""
        if self.mode != "auto":
            return self.mode
        d_model, device = self.d_model, self.nu_log.device
        return choose_mode(
            batch=batch, length=length, n_states=self.n_states, n_inputs=d_model, n_outputs=d_model, device=device
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
        x = without_padding(checked_input(x, ("batch", "length"), self.d_model, self.nu_log.dtype), lengths)
        batch, length, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):
            log_poles, B, C = self._system()
            y = diagonal_state_space(x, log_poles, B, C, mode=self.chosen_mode(batch, length))
            return without_padding(torch.addcmul(y, self.D, x), lengths)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros, ``(batch, n_states)``, complex."""
        return torch.zeros(batch, self.n_states, dtype=COMPLEX[self.nu_log.dtype], device=self.nu_log.device)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and ``state (batch, n_states)`` to output and next state."""
        x_t = checked_input(x_t, ("batch",), self.d_model, self.nu_log.dtype)
        dtype = COMPLEX[self.nu_log.dtype]
        check_state(state, (x_t.shape[0], self.n_states), dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            log_poles, B, C = self._system()
            state = log_poles.exp() * state + x_t.to(dtype) @ B.mT
            return (state @ C.mT).real + self.D * x_t, state

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-poles ``(n,)``, input matrix with its normalisation ``(n, d_model)``, output matrix ``(d_model, n)``; complex."""
        log_poles = torch.complex(-self.nu_log.exp(), self.theta)
        B = self.gamma_log.exp()[:, None] * torch.view_as_complex(self.B.contiguous())
        return log_poles, B, torch.view_as_complex(self.C.contiguous())

    def extra_repr(self) -> str:
        """Sizes and mode, for `repr`."""
        return f"d_model={self.d_model}, n_states={self.n_states}, mode={self.mode!r}"


@register_adapter(LRU)
class LRUAdapter(LayerAdapter):
    r"""Cuts an :class:`LRU`: one system, closed under truncation followed by re-diagonalisation.

    The system is ``(diag(lambda), exp(gamma) B, C)``. After a cut every row of ``B`` has the norm 1 that it is drawn with, and
    :math:`e^\gamma = \sqrt{1 - |\lambda|^2}`.
    """

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("nu_log", "theta", "gamma_log", "B")

    @override
    def n_states(self, layer: LRU) -> int:
        return layer.n_states

    @override
    def parameter_names(self, layer: LRU) -> tuple[str, ...]:
        return ("nu_log", "theta", "gamma_log", "B", "C")

    @override
    @torch.no_grad()
    def system(self, layer: LRU) -> hsv.DiagonalStateSpace:
        return self.differentiable_system(layer)

    @override
    def differentiable_system(self, layer: LRU) -> hsv.DiagonalStateSpace:
        log_poles = torch.complex(-layer.nu_log.double().exp(), layer.theta.double())
        B = layer.gamma_log.double().exp()[:, None] * torch.view_as_complex(layer.B.double().contiguous())
        return hsv.DiagonalStateSpace.from_log_poles(
            log_poles, B, torch.view_as_complex(layer.C.double().contiguous()), dt=True
        )

    @override
    @torch.no_grad()
    def reduce(
        self, layer: LRU, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        assert isinstance(criterion, DiagonalCriterion)
        plan = criterion.reduce(self.system(layer), rule)
        gamma = torch.sqrt(-torch.expm1(2 * plan.log_poles.real))
        plan = plan.rescale(gamma)
        old = {name: layer.get_parameter(name).detach().double() for name in ("nu_log", "gamma_log")}
        new = {
            "nu_log": torch.log(-plan.log_poles.real),
            "theta": plan.log_poles.imag,
            "gamma_log": torch.log(gamma),
            "B": torch.view_as_real(plan.B / gamma[:, None]),
            "C": torch.view_as_real(plan.C.resolve_conj()),
        }
        return Cut(
            n_states_before=layer.n_states,
            n_states_after=plan.n_states,
            order=plan.order,
            hankel_singular_values=plan.hankel_singular_values,
            error_bound=plan.error_bound,
            eigenvector_condition=plan.eigenvector_condition,
            notes=plan.notes,
            payload=(plan, old, new),
        )

    @override
    def apply(self, layer: LRU, cut: Cut) -> Replaced:
        return put_parameters(layer, cut.payload[2])

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        plan, old, new = cut.payload
        assert isinstance(plan, DiagonalCut)
        power = 2 if squared else 1
        wide = {name: tensor.double() for name, tensor in covectors.items()}

        # Re log(lambda) = -exp(nu): the covector of nu is that of Re log(lambda) times -exp(nu).
        log_pole = torch.complex(wide["nu_log"] / (-old["nu_log"].exp()) ** power, wide["theta"])
        log_pole = plan.log_pole_map.pull_back(log_pole[:, None], squared=squared)[:, 0]

        # The system's B is exp(gamma) B; the old gamma stays what it was, the new one moves the new row as a whole.
        B = torch.view_as_complex(wide["B"].contiguous()) / old["gamma_log"].exp()[:, None] ** power
        B = (
            torch.view_as_real(plan.states.pull_back(B, squared=squared))
            * new["gamma_log"].exp()[:, None, None] ** power
        )
        C = plan.outputs.pull_back(torch.view_as_complex(wide["C"].contiguous()).mT, squared=squared).mT
        carried = {
            "nu_log": log_pole.real * (-new["nu_log"].exp()) ** power,
            "theta": log_pole.imag,
            "gamma_log": (B * new["B"] ** power).sum((1, 2)),
            "B": B,
            "C": torch.view_as_real(C.resolve_conj().contiguous()),
        }
        return {name: tensor.to(covectors[name].dtype) for name, tensor in carried.items()}

    @override
    def resize(self, layer: LRU, n_states: int, **form: int) -> Replaced:
        d_model, like = layer.d_model, layer.nu_log.detach()
        vector = like.new_zeros(n_states)
        return put_parameters(
            layer,
            {
                "nu_log": vector,
                "theta": vector,
                "gamma_log": vector,
                "B": like.new_zeros(n_states, d_model, 2),
                "C": like.new_zeros(d_model, n_states, 2),
            },
        )
