"""The diagonal structured state-space layer S4D: one single-input, single-output system a channel."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

import hsv
from hsv import ShapeError
from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, put_parameters, register_adapter
from hsv_torch.criteria import ComplexHankel, Criterion, DiagonalCriterion, RealPoles
from hsv_torch.diagonal_cut import DiagonalCut
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
from hsv_torch.layers._discretization import DISCRETIZATIONS, derivative
from hsv_torch.layers._discretization import Discretization as Rule
from hsv_torch.layers._hippo import hippo_normal
from hsv_torch.scan._convolution import fast_length

Initialization = Literal["lin", "inv", "legs", "real"]
Discretization = Literal["zoh", "bilinear"]


class S4D(nn.Module):
    r"""Diagonal state-space model with a system of its own for each channel :math:`c`.

    .. math::
        \dot h_c &= A_c \odot h_c + \mathbf 1 u_c, \qquad A_c = -e^{\alpha_c} + i \omega_c, \\
        h_{c,t} &= \bar A_c \odot h_{c,t-1} + \bar B_c u_{c,t}, \qquad h_{c,-1} = 0, \\
        y_{c,t} &= 2\, \mathrm{Re}(C_c^T h_{c,t}) + D_c u_{c,t},

    with the step size :math:`\Delta_c = e^{\delta_c}` in units of the model's choosing, and

    .. math::
        \text{zoh:}\quad & \bar A = e^{\Delta A}, & \bar B &= (e^{\Delta A} - 1) / A, \\
        \text{bilinear:}\quad & \bar A = \frac{1 + \Delta A / 2}{1 - \Delta A / 2}, & \bar B &= \frac{\Delta}{1 - \Delta A / 2}.

    The parameters are ``log_dt (d_model,)`` (:math:`\delta`), ``log_A_real (d_model, n)`` (:math:`\alpha`), ``A_imag (d_model, n)``
    (:math:`\omega`), ``C (d_model, n, 2)`` (last axis: real and imaginary part) and ``D (d_model,)``. Each of the ``n`` states stands
    for a conjugate pair, hence the factor 2. With ``initialization="real"`` the poles are real: there is no ``A_imag``, ``C``
    is ``(d_model, n)``, a state is a real number, and the factor 2 is left out. Any values of the parameters are stable. The number of
    states is read from ``log_A_real``.

    With ``bidirectional=True`` a second output map ``C_backward``, of ``C``'s shape, reads the same poles from the other end: the steps
    ``s > t`` add :math:`\sum_{s > t} 2\, \mathrm{Re}(C^{\leftarrow T}_c \bar A_c^{s-t-1} \bar B_c)\, u_{c,s}`.

    Initial values are the published ones: :math:`\mathrm{Re} A = -1/2`; :math:`\omega_k = \pi k` ("lin"),
    :math:`\omega_k = \frac{2n}{\pi} (\frac{2n}{2k + 1} - 1)` ("inv"), or the positive ones among the eigenvalues of the normal part of the
    HiPPO-LegS matrix of size :math:`2n` ("legs"); :math:`A_k = -(k + 1)` ("real"), each for :math:`k = 0, \dots, n - 1`. ``log_dt`` is
    uniform between the logarithms of `dt_min` and `dt_max`; ``C`` is normal with variance 1 (complex: 1/2 for each part), ``D``
    standard normal.

    Parameters
    ----------
    d_model : int
        Number of channels, of the input and of the output.
    n_states : int
        Number of states of each channel: conjugate pairs, or real states with "real".
    initialization : {"lin", "inv", "legs", "real"}
        Initial poles; "real" also makes them stay real.
    discretization : {"zoh", "bilinear"}
        Zero-order hold or the bilinear transform, by SciPy's names.
    dt_min, dt_max : float
        Range of the initial step sizes, ``0 < dt_min <= dt_max``: a channel remembers some ``1 / dt`` steps.
    bidirectional : bool
        See above; such a layer cannot run step by step.
    device, dtype
        As in ``torch.nn``; ``dtype`` is ``torch.float32`` or ``torch.float64``.
    generator : torch.Generator, optional
        Source of the initial values.

    Raises
    ------
    hsv.HsvError
        A size below 1, an empty range of step sizes, an unknown choice, a dtype without a complex counterpart.

    Notes
    -----
    The forward pass convolves with the impulse response by FFT: ``O(batch d_model L log L)``, and ``O(d_model n L)`` for the impulse
    responses as one batched matrix product of ``O(d_model n sqrt(L))`` complex powers, whose exponents are formed in float64.

    References
    ----------
    Gu, Gupta, Goel, Re, "On the Parameterization and Initialization of Diagonal State Space Models", NeurIPS 2022.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.S4D(d_model=3, n_states=5)
    >>> layer(torch.zeros(2, 7, 3)).shape
    torch.Size([2, 7, 3])
    """

    A_imag: nn.Parameter | None
    C_backward: nn.Parameter | None

    def __init__(
        self,
        d_model: int,
        n_states: int,
        *,
        initialization: Initialization = "lin",
        discretization: Discretization = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("n_states", n_states)
        check_choice("initialization", initialization, get_args(Initialization))
        check_choice("discretization", discretization, get_args(Discretization))
        if not 0 < dt_min <= dt_max < math.inf:
            raise ShapeError(f"`dt_min` and `dt_max` must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        dtype = check_dtype(torch.get_default_dtype() if dtype is None else dtype, "dtype")
        self.d_model = d_model
        self.initialization, self.discretization = initialization, discretization
        self.dt_min, self.dt_max = dt_min, dt_max
        self.bidirectional = bidirectional

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        real = initialization == "real"
        output_map = (d_model, n_states) if real else (d_model, n_states, 2)
        self.log_dt = empty(d_model)
        self.log_A_real = empty(d_model, n_states)
        self.register_parameter("A_imag", None if real else empty(d_model, n_states))
        self.C = empty(*output_map)
        self.register_parameter("C_backward", empty(*output_map) if bidirectional else None)
        self.D = empty(d_model)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew; in float64, rounded once, so that both precisions begin at the same model."""
        device = None if generator is None else generator.device

        def normal(like: Tensor, variance: float = 1.0) -> None:
            drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64, device=device)
            like.copy_(drawn * math.sqrt(variance))

        fraction = torch.rand(self.d_model, generator=generator, dtype=torch.float64, device=device)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        self.log_dt.copy_(low + (high - low) * fraction)
        poles = initial_poles(self.initialization, self.n_states)
        self.log_A_real.copy_(torch.log(-poles.real).expand(self.d_model, -1))
        if self.A_imag is not None:
            self.A_imag.copy_(poles.imag.expand(self.d_model, -1))
        for output_map in (self.C, self.C_backward):
            if output_map is not None:
                normal(output_map, 1.0 if self.is_real else 0.5)
        normal(self.D)

    @property
    def n_states(self) -> int:
        """Number of states of each channel, read from the parameters."""
        return self.log_A_real.shape[1]

    @property
    def is_real(self) -> bool:
        """Whether the poles are real numbers."""
        return self.A_imag is None

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
        x = without_padding(checked_input(x, ("batch", "length"), self.d_model, self.log_dt.dtype), lengths)
        if x.numel() == 0:  # FFTs of nothing are errors
            return x * self.D
        with torch.autocast(x.device.type, enabled=False):
            length = x.shape[1]
            log_poles, B = self._discrete()
            future = None
            if self.C_backward is not None:
                future = impulse_responses(log_poles, B, self._outputs(self.C_backward), length - 1, dtype=x.dtype)
            past = impulse_responses(log_poles, B, self._outputs(self.C), length, dtype=x.dtype)
            y = convolve_channels(x, past, future)
            return without_padding(torch.addcmul(y, self.D, x), lengths)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros, ``(batch, d_model, n_states)``, complex unless the poles are real."""
        return torch.zeros(batch, self.d_model, self.n_states, dtype=self._state_dtype(), device=self.log_dt.device)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: ``x_t (batch, d_model)`` and ``state (batch, d_model, n_states)`` to output and next state.

        Raises
        ------
        hsv.HsvError
            The layer is bidirectional: its outputs depend on inputs yet to come.
        """
        refuse_steps_of_a_bidirectional_layer(self.bidirectional)
        x_t = checked_input(x_t, ("batch",), self.d_model, self.log_dt.dtype)
        dtype = self._state_dtype()
        check_state(state, (x_t.shape[0], self.d_model, self.n_states), dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            log_poles, B = self._discrete()
            poles, C = log_poles.exp(), self._outputs(self.C)
            if self.is_real:
                poles, B, C = poles.real, B.real, C.real
            state = poles.to(dtype) * state + B.to(dtype) * x_t[..., None]
            return (C.to(dtype) * state).sum(-1).real + self.D * x_t, state

    def _state_dtype(self) -> torch.dtype:
        return self.log_dt.dtype if self.is_real else COMPLEX[self.log_dt.dtype]

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the poles and input maps of the discrete systems, ``(d_model, n)``, complex128."""
        return self._rule.discretize(self._poles(), self._steps())

    @property
    def _rule(self) -> Rule:
        return DISCRETIZATIONS[self.discretization]

    def _steps(self) -> Tensor:
        """``(d_model, 1)``, float64."""
        return self.log_dt.double().exp()[:, None]

    def _poles(self) -> Tensor:
        """The poles of the continuous systems, ``(d_model, n)``, complex128."""
        decay = -self.log_A_real.double().exp()
        return torch.complex(decay, torch.zeros_like(decay) if self.A_imag is None else self.A_imag.double())

    def _outputs(self, C: Tensor) -> Tensor:
        """``C`` with its factor of 2, so that the output is ``Re(C h)``: ``(d_model, n)``, complex128."""
        if self.is_real:
            return torch.complex(C.double(), torch.zeros_like(C, dtype=torch.float64))
        return 2 * torch.view_as_complex(C.double().contiguous())

    def extra_repr(self) -> str:
        """Sizes and choices, for `repr`."""
        return (
            f"d_model={self.d_model}, n_states={self.n_states}, initialization={self.initialization!r}, "
            f"discretization={self.discretization!r}" + (", bidirectional=True" if self.bidirectional else "")
        )


@register_adapter(S4D)
class S4DAdapter(LayerAdapter):
    r"""Cuts an :class:`S4D`: a batch of systems with one input, all of them in one call and to one number of states.

    The system of a channel is ``(diag(exp(log_poles)), B_bar, 2 C)``. That of a bidirectional layer has two outputs, one for each direction, times
    :math:`\sqrt 2`: the layer adds them up, and :math:`\|E_1 u\| + \|E_2 u\| \le \sqrt 2\, \|(E_1 u, E_2 u)\|`. After truncation and
    re-diagonalisation a state is scaled so that ``B = 1`` again, and :math:`A = \log(\bar A) / \Delta` with the channel's step size as it was;
    of the logarithms that differ by :math:`2 \pi i` it is the one nearest to the old pole that the new one comes from. The error bound is
    the largest over the channels, for no input of one reaches the output of another.

    States that a channel has no use for have ``C = 0`` and a pole of the initialisation, so that training can make use of them.
    """

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("log_dt", "log_A_real", "A_imag")

    @override
    def default_criterion(self, layer: S4D) -> Criterion:
        """:class:`RealPoles` where poles are real and have one weight each, otherwise :class:`ComplexHankel`."""
        return RealPoles() if layer.is_real and not layer.bidirectional else ComplexHankel()

    @override
    def n_states(self, layer: S4D) -> int:
        return layer.n_states

    @override
    def parameter_names(self, layer: S4D) -> tuple[str, ...]:
        names = ("log_A_real", "A_imag", "C", "C_backward")
        return tuple(name for name in names if getattr(layer, name) is not None)

    @override
    @torch.no_grad()
    def system(self, layer: S4D) -> hsv.DiagonalStateSpace:
        return self.differentiable_system(layer)

    @override
    def differentiable_system(self, layer: S4D) -> hsv.DiagonalStateSpace:
        log_poles, B = layer._discrete()
        B, C = B[..., None], self._output_factor(layer) * self._output_maps(layer)
        if not layer.is_real:
            return hsv.DiagonalStateSpace.from_log_poles(log_poles, B, C, dt=True)
        if layer.discretization == "zoh":
            return hsv.DiagonalStateSpace.from_log_poles(log_poles.real, B.real, C.real, dt=True)
        return hsv.DiagonalStateSpace(log_poles.exp().real, B.real, C.real, dt=True)  # some may be negative

    @override
    @torch.no_grad()
    def reduce(
        self, layer: S4D, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        assert isinstance(criterion, DiagonalCriterion)
        plan = criterion.reduce(self.system(layer), rule)
        old, new = _coordinates(layer, layer._poles()), _coordinates(layer, _continuous_poles(layer, plan))
        factor = self._output_factor(layer)
        # In the padding B is 0, and any factor will do.
        factors = torch.where(plan.B[..., 0] == 0, torch.ones_like(new.B), new.B / plan.B[..., 0])
        C = plan.C * plan.B.mT / new.B[:, None] / factor  # (d_model, outputs, r)
        values = {"log_A_real": torch.log(-new.A.real)}
        if not layer.is_real:
            values["A_imag"] = new.A.imag
        for i, name in enumerate(self._output_names(layer)):
            values[name] = C[:, i].real if layer.is_real else torch.view_as_real(C[:, i].contiguous())
        return Cut(
            n_states_before=layer.n_states,
            n_states_after=plan.n_states,
            order=plan.order,
            hankel_singular_values=plan.hankel_singular_values,
            error_bound=plan.error_bound,
            eigenvector_condition=plan.eigenvector_condition,
            notes=plan.notes,
            payload=_Payload(
                plan.scale(factors),
                old,
                new,
                self._output_maps(layer) / old.B[:, None],
                values,
                self._output_names(layer),
            ),
        )

    @override
    def apply(self, layer: S4D, cut: Cut) -> Replaced:
        return put_parameters(layer, cut.payload.values)

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        assert isinstance(cut.payload, _Payload)
        plan, old, new, gains, _, outputs = cut.payload
        power = 2 if squared else 1
        wide = {name: tensor.double() for name, tensor in covectors.items()}
        real = "A_imag" not in wide

        def as_complex(C: Tensor) -> Tensor:
            return torch.complex(C, torch.zeros_like(C)) if real else torch.view_as_complex(C.contiguous())

        # The criterion's maps are for log-poles, B and C that can be chosen freely. Here B follows from A: its covector is that
        # of C times C / B, and comes back to A through dB / dA, with what A's own covector had of it taken away.
        decay = wide["log_A_real"] / old.A.real**power
        A = torch.complex(decay, torch.zeros_like(decay) if real else wide["A_imag"])[..., None]
        through_poles = plan.log_pole_map.between(1 / old.log_pole_slope, new.log_pole_slope)
        new_A = through_poles.pull_back(A, squared=squared)
        carried = {}
        for i, name in enumerate(outputs):
            C = as_complex(wide[name])[..., None]
            through_B = plan.states.between(gains[:, i], new.input_slope)
            own_part = through_poles.between(gains[:, i] * old.input_slope, torch.ones_like(new.B))
            new_A = new_A + (through_B - own_part).pull_back(C, squared=squared)
            new_C = plan.outputs.pull_back(C, squared=squared)[..., 0]
            carried[name] = new_C.real if real else torch.view_as_real(new_C)
        carried["log_A_real"] = new_A[..., 0].real * new.A.real**power
        if not real:
            carried["A_imag"] = new_A[..., 0].imag
        return {name: carried[name].to(tensor.dtype) for name, tensor in covectors.items()}

    @override
    def resize(self, layer: S4D, n_states: int, **form: int) -> Replaced:
        sizes = {name: list(layer.get_parameter(name).shape) for name in self.parameter_names(layer)}
        for shape in sizes.values():
            shape[1] = n_states
        return put_parameters(layer, {name: layer.log_dt.detach().new_zeros(shape) for name, shape in sizes.items()})

    @staticmethod
    def _output_names(layer: S4D) -> tuple[str, ...]:
        return ("C", "C_backward") if layer.bidirectional else ("C",)

    @staticmethod
    def _output_factor(layer: S4D) -> float:
        """What the system's ``C`` has over the layer's parameter: 2 for a conjugate pair, the root of 2 for two directions."""
        return (1.0 if layer.is_real else 2.0) * (math.sqrt(2.0) if layer.bidirectional else 1.0)

    def _output_maps(self, layer: S4D) -> Tensor:
        """The parameters ``C``, ``(d_model, outputs, n)``, complex128."""
        maps = torch.stack([layer.get_parameter(name).double() for name in self._output_names(layer)], dim=1)
        return torch.complex(maps, torch.zeros_like(maps)) if layer.is_real else torch.view_as_complex(maps)


class _Coordinates(NamedTuple):
    """Poles in continuous time and what follows from them, ``(d_model, n)`` each, complex128."""

    A: Tensor
    B: Tensor  # the discrete input map
    log_pole_slope: Tensor  # derivative by A
    input_slope: Tensor


class _Payload(NamedTuple):
    plan: DiagonalCut  # scaled to the new B
    old: _Coordinates
    new: _Coordinates
    gains: Tensor  # (d_model, outputs, n): C / B before the cut
    values: dict[str, Tensor]  # of the new parameters
    outputs: tuple[str, ...]  # names of the output maps


def _coordinates(layer: S4D, A: Tensor) -> _Coordinates:
    rule, steps = layer._rule, layer._steps()
    return _Coordinates(
        A,
        rule.discretize(A, steps)[1],
        derivative(lambda A: rule.discretize(A, steps)[0], A),
        derivative(lambda A: rule.discretize(A, steps)[1], A),
    )


def _continuous_poles(layer: S4D, plan: DiagonalCut) -> Tensor:
    """The poles in continuous time that a channel's step size turns into the new ones, ``(d_model, r)``."""
    if layer.is_real:
        _refuse_what_is_not_real(layer, plan)
    log_poles = plan.log_poles
    if layer.discretization == "zoh":
        closest = plan.log_pole_map.linear.abs().argmax(dim=-2)  # (d_model, r): the old pole that each is most like
        before = torch.take_along_dim(layer._discrete()[0].imag, closest, dim=-1)
        turns = torch.round((before - log_poles.imag) / (2 * math.pi))
        log_poles = torch.complex(log_poles.real, log_poles.imag + 2 * math.pi * turns)
    A = layer._rule.undo(log_poles, layer._steps())[0]
    spare = initial_poles(layer.initialization, layer.n_states)[: plan.n_states].to(A.device)
    return torch.where(plan.padding, spare, A)


def _refuse_what_is_not_real(layer: S4D, plan: DiagonalCut) -> None:
    """Real poles become any real ones inside the unit circle by the bilinear transform, positive ones by zero-order hold."""
    poles = plan.log_poles.exp()
    bad = plan.log_poles.imag != 0
    if layer.discretization == "bilinear":
        bad = bad & (plan.log_poles.imag.abs() != math.pi)
    if not bool(bad.any()):
        return
    channel, state = (int(i) for i in torch.nonzero(bad)[0])
    pole = complex(poles[channel, state])
    found = f"{pole.real:.4g}" + (f"{pole.imag:+.4g}j" if abs(pole.imag) > 1e-12 else "")
    raise CutRefusedError(
        f"channel {channel}: the reduced system has the pole {found} (as have {int(bad.any(1).sum())} of {layer.d_model} channels some that are not "
        f"{'real' if layer.discretization == 'bilinear' else 'positive'}), and the layer's poles are real; use RealPoles(), under which they stay real, "
        "another order, or a layer with complex poles",
        plan.hankel_singular_values,
    )


def initial_poles(initialization: Initialization, n_states: int) -> Tensor:
    """The poles that every channel begins with, ``(n_states,)``, complex128; see :class:`S4D`."""
    k = torch.arange(n_states, dtype=torch.float64)
    if initialization == "real":
        return torch.complex(-(k + 1), torch.zeros_like(k))
    if initialization == "lin":
        frequencies = math.pi * k
    elif initialization == "inv":
        size = 2 * n_states
        frequencies = size / math.pi * (size / (2 * k + 1) - 1)
    else:
        frequencies = hippo_normal(2 * n_states).eigenvalues.imag[n_states:]
    return torch.complex(torch.full_like(k, -0.5), frequencies)


def impulse_responses(log_poles: Tensor, B: Tensor, C: Tensor, length: int, *, dtype: torch.dtype) -> Tensor:
    r"""``Re(sum over n of C_n poles_n^k B_n)`` for ``k < length`` and each channel, ``(channels, length)``.

    Powers in two levels, :math:`\lambda^{aT + r} = \lambda^{aT} \lambda^r` with :math:`T \approx \sqrt{L}`: a product of two matrices for each channel.

    Parameters
    ----------
    log_poles, B, C : Tensor
        ``(channels, n)``, complex128.
    length : int
    dtype : torch.dtype
        Of the result, and of the sums; the exponents are float64.
    """
    n_fine = max(1, math.isqrt(length))
    n_coarse = -(-length // n_fine)
    steps = torch.arange(max(n_fine, n_coarse), device=B.device, dtype=torch.float64)
    right = torch.exp(steps[:n_fine, None] * log_poles[:, None, :])  # (channels, n_fine, n)
    left = torch.exp(steps[:n_coarse, None] * (n_fine * log_poles[:, None, :])) * (B * C)[:, None, :]
    left, right = torch.cat([left.real, -left.imag], dim=-1), torch.cat([right.real, right.imag], dim=-1)
    return (left.to(dtype) @ right.to(dtype).mT).flatten(1)[:, :length]


def convolve_channels(x: Tensor, past: Tensor, future: Tensor | None = None) -> Tensor:
    """``y[:, t, c] = sum over s <= t of past[c, t - s] x[:, s, c] + sum over s > t of future[c, s - t - 1] x[:, s, c]``.

    Parameters
    ----------
    x : Tensor
        ``(batch, length, channels)``, real, not empty.
    past : Tensor
        ``(channels, length)``, of ``x``'s dtype.
    future : Tensor, optional
        ``(channels, length - 1)``.

    Returns
    -------
    Tensor
        Of ``x``'s shape and dtype.
    """
    length = x.shape[1]
    n_fft = fast_length.__wrapped__(2 * length - 1)  # without the cache, which torch.compile cannot trace
    kernel = nn.functional.pad(past, (0, n_fft - length))
    if future is not None:  # negative times stand at the end of the period
        kernel = kernel + nn.functional.pad(future.flip(-1), (n_fft - length + 1, 0))
    gain = torch.fft.rfft(kernel)
    spectrum = torch.fft.rfft(x.mT, n_fft)
    return torch.fft.irfft(spectrum * gain, n_fft)[..., :length].mT.contiguous()
