"""The simplified state-space layer S5: one multiple-input, multiple-output diagonal system."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

import hsv
from hsv import ShapeError
from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, put_parameters, register_adapter
from hsv_torch.criteria import Criterion, DiagonalCriterion
from hsv_torch.layers._checks import (
    COMPLEX,
    check_choice,
    check_dtype,
    check_size,
    check_state,
    checked_input,
    refuse_steps_of_a_bidirectional_layer,
    without_padding,
)
from hsv_torch.layers._discretization import DISCRETIZATIONS, SampledCut, SampledStates
from hsv_torch.layers._hippo import hippo_normal
from hsv_torch.scan import choose_mode, diagonal_state_space

LayerMode = Literal["auto", "scan", "convolution"]
DiscretizationName = Literal["zoh", "bilinear"]
OutputInitialization = Literal["trunc_standard_normal", "complex_normal"]

LARGEST_REAL_PART = -1e-4
"""Where real parts of eigenvalues are clipped; the published limit."""


class S5(nn.Module):
    r"""Simplified state-space layer: one diagonal model with ``d_model`` inputs and outputs, and a step size a state.

    .. math::
        \dot h &= \Lambda \odot h + B u, \\
        h_t &= \bar\lambda \odot h_{t-1} + \bar g \odot (B u_t), \qquad h_{-1} = 0, \\
        y_t &= 2\, \mathrm{Re}(C h_t) + D \odot u_t,

    with the step sizes :math:`\Delta = \rho\, e^{\delta}` (:math:`\rho`: ``step_rescale``) and, element by element,

    .. math::
        \text{zoh:}\quad & \bar\lambda = e^{\Lambda\Delta}, & \bar g &= (e^{\Lambda\Delta} - 1) / \Lambda, \\
        \text{bilinear:}\quad & \bar\lambda = \frac{1 + \Lambda\Delta / 2}{1 - \Lambda\Delta / 2}, & \bar g &= \frac{\Delta}{1 - \Lambda\Delta / 2}.

    The parameters are ``Lambda_re (n,)``, ``Lambda_im (n,)``, ``B (n, d_model, 2)``, ``C (d_model, n, 2)`` (last axis: real and
    imaginary part), ``log_step (n,)`` (:math:`\delta`) and ``D (d_model,)``. Each of the ``n`` states stands for itself and its conjugate, hence
    the factor 2: a layer that others say has 64 states, 32 of which it stores, has ``n_states=32`` here. The number of states is read
    from ``Lambda_re``: a cut replaces the parameters, nothing else.

    With ``bidirectional=True`` ``C`` is ``(d_model, 2 n, 2)``: its first half reads the states :math:`h_t`, its second half those of
    the same recurrence run from the last step to the first; the input at ``t`` is in both.

    Initial values are the published ones. :math:`\Lambda`: of each conjugate pair of eigenvalues of the normal part of HiPPO-LegS
    ("HiPPO-N", all with real part -1/2) the one with positive imaginary part, of a matrix of size ``2 n / blocks``, repeated ``blocks`` times.
    With the eigenvectors :math:`V`: ``B`` is :math:`V^H B_0`, :math:`B_0` real and truncated normal with variance ``1 / (2 n)``; ``C`` is
    :math:`C_0 V`, :math:`C_0` complex with truncated normal parts of variance ``1 / (2 n)``, or, with "complex_normal", normal of variance 1/2 for each
    part and without :math:`V`. ``log_step`` is uniform between the logarithms of `dt_min` and `dt_max`, ``D`` standard normal.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Number of complex states kept, one for each conjugate pair.
    blocks : int
        Number of HiPPO-N blocks that the initial state matrix has on its diagonal; a divisor of `n_states`.
    discretization : {"zoh", "bilinear"}
        Zero-order hold or the bilinear transform, by SciPy's names.
    C_init : {"trunc_standard_normal", "complex_normal"}
        See above, by the published names.
    dt_min, dt_max : float
        Range of the initial step sizes, ``0 < dt_min <= dt_max``.
    step_rescale : float
        A positive factor of all step sizes, an attribute that may be changed: at another sampling rate than the one trained for, the ratio of
        the two intervals.
    clip_eigenvalues : bool
        Use ``min(Lambda_re, -1e-4)`` for the real parts, as published: that keeps every state stable whatever training does. A parameter
        beyond the limit has no gradient. Without it nothing holds ``Lambda_re`` below 0 but the loss, and a layer that has become unstable cannot be cut.
    bidirectional : bool
        See above; such a layer cannot run step by step.
    mode : {"auto", "scan", "convolution"}
        How :meth:`forward` computes the same numbers; "auto" is :func:`hsv_torch.scan.choose_mode`, a fixed rule of the sizes.
    device, dtype
        As in ``torch.nn``; ``dtype`` is ``torch.float32`` or ``torch.float64``.
    generator : torch.Generator, optional
        Source of the initial values.

    Raises
    ------
    hsv.HsvError
        A size below 1, `blocks` that do not divide `n_states`, an empty range of step sizes, an unknown choice, a dtype without a
        complex counterpart.

    References
    ----------
    Smith, Warrington, Linderman, "Simplified State Space Layers for Sequence Modeling", ICLR 2023, sections 3 and 4, appendices B and D.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.S5(d_model=3, n_states=6, blocks=2)
    >>> layer(torch.zeros(2, 7, 3)).shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        d_model: int,
        n_states: int,
        *,
        blocks: int = 1,
        discretization: DiscretizationName = "zoh",
        C_init: OutputInitialization = "trunc_standard_normal",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        step_rescale: float = 1.0,
        clip_eigenvalues: bool = True,
        bidirectional: bool = False,
        mode: LayerMode = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"d_model": d_model, "n_states": n_states, "blocks": blocks}.items():
            check_size(name, size)
        if n_states % blocks:
            raise ShapeError(f"`blocks` must divide `n_states`, got {blocks} blocks of {n_states} states")
        check_choice("discretization", discretization, get_args(DiscretizationName))
        check_choice("C_init", C_init, get_args(OutputInitialization))
        check_choice("mode", mode, get_args(LayerMode))
        if not 0 < dt_min <= dt_max < math.inf:
            raise ShapeError(f"`dt_min` and `dt_max` must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        if not 0 < step_rescale < math.inf:
            raise ShapeError(f"`step_rescale` must be a positive number, got {step_rescale}")
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        self.d_model = d_model
        self.blocks, self.C_init = blocks, C_init
        self.dt_min, self.dt_max = dt_min, dt_max
        self.discretization, self.step_rescale, self.clip_eigenvalues = discretization, step_rescale, clip_eigenvalues
        self.bidirectional = bidirectional
        self.mode = mode

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.Lambda_re = empty(n_states)
        self.Lambda_im = empty(n_states)
        self.B = empty(n_states, d_model, 2)
        self.C = empty(d_model, n_states * (1 + bidirectional), 2)
        self.log_step = empty(n_states)
        self.D = empty(d_model)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model.

        Raises
        ------
        hsv.ShapeError
            After a cut `blocks` may not divide the number of states any more: there is no such initial state matrix then.
        """
        n, d_model = self.n_states, self.d_model
        if n % self.blocks:
            raise ShapeError(f"`blocks` must divide the number of states, got {self.blocks} blocks of {n} states")
        device = torch.device("cpu") if generator is None else generator.device
        half = n // self.blocks
        hippo = hippo_normal(2 * half)
        poles = hippo.eigenvalues[half:].repeat(self.blocks)
        vectors = torch.block_diag(*[hippo.eigenvectors[:, half:]] * self.blocks).to(device)  # (2n, n)

        def truncated(*shape: int) -> Tensor:
            """Normal within two deviations, of variance 1 / (2n) after that."""
            sigma = 1 / (math.sqrt(2 * n) * 0.87962566103423978)  # of a standard normal that is cut off at -2 and 2
            drawn = torch.empty(*shape, dtype=torch.float64, device=device)
            return nn.init.trunc_normal_(drawn, std=sigma, a=-2 * sigma, b=2 * sigma, generator=generator)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

        def output_map() -> Tensor:
            if self.C_init == "complex_normal":
                return normal(d_model, n, 2) * math.sqrt(0.5)
            return torch.view_as_real(torch.view_as_complex(truncated(d_model, 2 * n, 2)) @ vectors)

        self.Lambda_re.copy_(poles.real)
        self.Lambda_im.copy_(poles.imag)
        self.B.copy_(torch.view_as_real((vectors.mH @ (truncated(2 * n, d_model) + 0j)).resolve_conj()))
        self.C.copy_(torch.cat([output_map() for _ in range(1 + self.bidirectional)], dim=1))
        fraction = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        self.log_step.copy_(low + (high - low) * fraction)
        self.D.copy_(normal(d_model))

    @property
    def n_states(self) -> int:
        """Number of complex states kept, one for each conjugate pair; read from the parameters."""
        return self.Lambda_re.shape[0]

    def chosen_mode(self, batch: int, length: int) -> Literal["scan", "convolution"]:
        """How :meth:`forward` computes an input of this size: ``mode`` itself, or what "auto" stands for here."""
        if self.mode != "auto":
            return self.mode
        d_model, device = self.d_model, self.Lambda_re.device
        return choose_mode(
            batch=batch, length=length, n_states=self.n_states, n_inputs=d_model, n_outputs=d_model, device=device
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``x (batch, length, d_model)`` to an output of the same shape and of the parameters' dtype.

        Parameters
        ----------
        x : Tensor
        lengths : Tensor, optional
            ``(batch,)``, integers: steps of each sequence that are not padding. What stands in the padding has no influence, also
            where states run backwards, and outputs there are 0.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            ``x`` has other axes, another number of channels, or a dtype other than the layer's (half precision is
            taken up to the layer's dtype, so that autocast works); `lengths` do not fit.
        """
        x = without_padding(checked_input(x, ("batch", "length"), self.d_model, self.Lambda_re.dtype), lengths)
        batch, length, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):
            log_poles, B, C = self._system()
            mode = self.chosen_mode(batch, length)
            y = torch.addcmul(diagonal_state_space(x, log_poles, B, C[: self.d_model], mode=mode), self.D, x)
            if self.bidirectional:  # backwards, padding comes first and leaves the state at zero
                y = y + diagonal_state_space(x.flip(1), log_poles, B, C[self.d_model :], mode=mode).flip(1)
            return without_padding(y, lengths)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros, ``(batch, n_states)``, complex."""
        return torch.zeros(batch, self.n_states, dtype=COMPLEX[self.Lambda_re.dtype], device=self.Lambda_re.device)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and ``state (batch, n_states)`` to output and next state.

        Raises
        ------
        hsv.HsvError
            The layer is bidirectional: its outputs depend on inputs yet to come.
        """
        refuse_steps_of_a_bidirectional_layer(self.bidirectional)
        x_t = checked_input(x_t, ("batch",), self.d_model, self.Lambda_re.dtype)
        dtype = COMPLEX[self.Lambda_re.dtype]
        check_state(state, (x_t.shape[0], self.n_states), dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            log_poles, B, C = self._system()
            state = log_poles.exp() * state + x_t.to(dtype) @ B.mT
            return (state @ C.mT).real + self.D * x_t, state

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-poles ``(n,)``, input matrix with its gains ``(n, d_model)``, twice the output matrix, ``(d_model, n)``, or both one above the other."""
        real = self.Lambda_re.clamp(max=LARGEST_REAL_PART) if self.clip_eigenvalues else self.Lambda_re
        log_poles, gains = DISCRETIZATIONS[self.discretization].discretize(
            torch.complex(real, self.Lambda_im), self.step_rescale * self.log_step.exp()
        )
        B = gains[:, None] * torch.view_as_complex(self.B.contiguous())
        return log_poles, B, 2 * stacked_outputs(torch.view_as_complex(self.C.contiguous()), self.n_states)

    def extra_repr(self) -> str:
        """Sizes and choices, for `repr`."""
        return (
            f"d_model={self.d_model}, n_states={self.n_states}, discretization={self.discretization!r}, mode={self.mode!r}"
            + (", bidirectional=True" if self.bidirectional else "")
        )


def stacked_outputs(C: Tensor, n_states: int) -> Tensor:
    """``[C1, C2]``, the output maps of both directions side by side, one above the other; a single one as it is."""
    return torch.cat(C.split(n_states, dim=1))


def unstacked_outputs(C: Tensor, d_model: int) -> Tensor:
    """The inverse of :func:`stacked_outputs`."""
    return torch.cat(C.split(d_model), dim=1)


def output_error_bound(stacked: float, d_model: int, *, bidirectional: bool) -> float:
    r"""Bound of the change of a layer's output, from that of the system whose outputs are those of both directions one above the other.

    Let :math:`E_1, E_2` be the real error systems of the two directions and :math:`\|[E_1; E_2]\|_\infty \le b`. The layer's error is
    :math:`E_1 u + R E_2 R u` with the reversal of time :math:`R`, at each frequency :math:`E_1(e^{i\omega}) + \overline{E_2(e^{i\omega})}`. For a
    vector :math:`v` of length 1 that is at most :math:`|E_1 v| + |E_2 \bar v|`, each at most ``b``: together ``2 b``, which is attained where
    :math:`v` and :math:`\bar v` are orthogonal. With one channel both act on the same number, and :math:`|E_1| + |E_2| \le \sqrt2\, b`.
    """
    if not bidirectional:
        return stacked
    return stacked * (math.sqrt(2) * (1 + 1e-15) if d_model == 1 else 2)


@register_adapter(S5)
class S5Adapter(LayerAdapter):
    r"""Cuts an :class:`S5`: one system, closed under truncation followed by re-diagonalisation.

    The system is the discrete one, ``(diag(lambda), g B, 2 C)``; of a bidirectional layer ``2 [C1; C2]``, for both directions share the states. Each new
    state takes the step size of the old state that it overlaps most, and ``Lambda``, ``B`` follow by the inverse of the discretisation. After a
    cut to ``r`` states every row of ``B`` has the norm ``sqrt(d_model / (2 r))`` that the rows of a new layer have on average.

    A real pole has a state of its own, whose conjugate is itself, after a cut by :class:`hsv_torch.RealHankel`. A negative one has no real continuous
    image under the zero-order hold: ``Lambda_im`` is then ``pi / step``, which stands for the angle pi, and real ``B`` and ``C`` of the discrete
    system. It stays on the negative axis only until training moves it; other packages that keep conjugate pairs cannot hold it
    at all. Under the bilinear transform it is a real ``Lambda`` below ``-2 / step``.
    """

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("Lambda_re", "Lambda_im", "log_step", "B")

    @override
    def n_states(self, layer: S5) -> int:
        return layer.n_states

    @override
    def parameter_names(self, layer: S5) -> tuple[str, ...]:
        return ("Lambda_re", "Lambda_im", "B", "C", "log_step")

    def _states(self, layer: S5) -> SampledStates:
        real = layer.Lambda_re.double()
        held = (real > LARGEST_REAL_PART) & torch.tensor(layer.clip_eigenvalues, device=real.device)
        poles = torch.complex(torch.where(held, LARGEST_REAL_PART, real), layer.Lambda_im.double())
        steps = layer.step_rescale * layer.log_step.double().exp()
        return SampledStates(poles, steps, held, DISCRETIZATIONS[layer.discretization])

    @override
    @torch.no_grad()
    def system(self, layer: S5) -> hsv.DiagonalStateSpace:
        return self.differentiable_system(layer)

    @override
    def differentiable_system(self, layer: S5) -> hsv.DiagonalStateSpace:
        B, C = (torch.view_as_complex(p.double().contiguous()) for p in (layer.B, layer.C))
        return self._states(layer).system(B, 2 * stacked_outputs(C, layer.n_states))

    @override
    @torch.no_grad()
    def reduce(
        self, layer: S5, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        assert isinstance(criterion, DiagonalCriterion)
        plan = criterion.reduce(self.system(layer), rule)
        cut = SampledCut.write_back(
            plan,
            self._states(layer),
            row_norm=math.sqrt(layer.d_model / (2 * plan.n_states)),
            max_real=LARGEST_REAL_PART if layer.clip_eigenvalues else None,
        )
        C = unstacked_outputs(cut.discrete.C / 2, layer.d_model)
        new = {
            "Lambda_re": cut.new.poles.real,
            "Lambda_im": cut.new.poles.imag,
            "B": torch.view_as_real(cut.B),
            "C": torch.view_as_real(C.resolve_conj()),
            "log_step": torch.log(cut.new.steps / layer.step_rescale),
        }
        check_fits(new, layer.Lambda_re.dtype, plan.hankel_singular_values)
        return sampled_cut_record(layer.n_states, cut, layer.d_model, bidirectional=layer.bidirectional, new=new)

    @override
    def apply(self, layer: S5, cut: Cut) -> Replaced:
        return put_parameters(layer, cut.payload[1])

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        sampled = cut.payload[0]
        assert isinstance(sampled, SampledCut)
        wide = {name: tensor.double().contiguous() for name, tensor in covectors.items()}
        # The factor 2 of C stands on both sides of the map, and cancels.
        poles, B, C, log_step = sampled.pull_back(
            torch.complex(wide["Lambda_re"], wide["Lambda_im"]),
            torch.view_as_complex(wide["B"]),
            stacked_outputs(torch.view_as_complex(wide["C"]), cut.n_states_before),
            squared=squared,
        )
        carried = {
            "Lambda_re": poles.real,
            "Lambda_im": poles.imag,
            "B": torch.view_as_real(B.resolve_conj()),
            "C": torch.view_as_real(unstacked_outputs(C, covectors["C"].shape[0]).resolve_conj().contiguous()),
            "log_step": log_step,
        }
        return {name: tensor.to(covectors[name].dtype) for name, tensor in carried.items()}

    @override
    def resize(self, layer: S5, n_states: int, **form: int) -> Replaced:
        d_model, like = layer.d_model, layer.Lambda_re.detach()
        vector = like.new_zeros(n_states)
        return put_parameters(
            layer,
            {
                "Lambda_re": vector,
                "Lambda_im": vector,
                "B": like.new_zeros(n_states, d_model, 2),
                "C": like.new_zeros(d_model, n_states * (1 + layer.bidirectional), 2),
                "log_step": vector,
            },
        )


def check_fits(new: Mapping[str, Tensor], dtype: torch.dtype, hankel_singular_values: np.ndarray) -> None:
    """Raise unless the new parameters are finite in the layer's dtype."""
    for name, value in new.items():
        if not bool(value.to(dtype).isfinite().all()):
            raise CutRefusedError(
                f"{name} of the smaller layer is not finite in {dtype}: a pole of the reduced system has no continuous image "
                "at the step size of the state it stems from; choose another order",
                hankel_singular_values,
            )


def sampled_cut_record(
    n_states: int, cut: SampledCut, d_model: int, *, bidirectional: bool, new: Mapping[str, Tensor]
) -> Cut:
    """The plan of a layer with `n_states` in continuous time; its payload is ``(cut, new)``."""
    plan = cut.discrete
    return Cut(
        n_states_before=n_states,
        n_states_after=plan.n_states,
        order=plan.order,
        hankel_singular_values=plan.hankel_singular_values,
        error_bound=output_error_bound(plan.error_bound, d_model, bidirectional=bidirectional),
        eigenvector_condition=plan.eigenvector_condition,
        notes=plan.notes,
        payload=(cut, new),
    )
