r"""Diagonal layers that hold a continuous system and a step size a state: how they become discrete, and how they are cut.

A state :math:`\dot h = \Lambda h + b u` with step :math:`\Delta` becomes :math:`h_t = \lambda h_{t-1} + g b u_t`. Each rule of discretisation gives
:math:`\log\lambda` and the gain :math:`g`; and the other way, for a cut is made in discrete time and written back.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

import hsv
from hsv_torch._errors import CutRefusedError
from hsv_torch.diagonal_cut import DiagonalCut


class Discretization(abc.ABC):
    """A rule between continuous poles with steps and discrete log-poles with gains; element by element, complex, differentiable."""

    @abc.abstractmethod
    def discretize(self, poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``log_poles`` and ``gains`` of continuous ``poles`` (complex) with ``steps`` (real)."""

    @abc.abstractmethod
    def undo(self, log_poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the continuous poles and the gains that give these ``log_poles`` at these ``steps``."""


class ZeroOrderHold(Discretization):
    r"""Exact for inputs that are constant over a step: :math:`\log\lambda = \Lambda\Delta`, :math:`g = (e^{\Lambda\Delta} - 1)/\Lambda`, or :math:`\Delta` at :math:`\Lambda = 0`."""

    @override
    def discretize(self, poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        log_poles = poles * steps
        return log_poles, steps * _mean_exponential(log_poles)

    @override
    def undo(self, log_poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        return log_poles / steps, steps * _mean_exponential(log_poles)


class Bilinear(Discretization):
    r"""Tustin's rule: :math:`\lambda = (1 + w)/(1 - w)`, :math:`g = \Delta/(1 - w)` with :math:`w = \Lambda\Delta/2`.

    At :math:`w = -1` the pole is 0 and has no logarithm: within eight roundings of that point `w` is moved aside by twice as much. No finite
    :math:`\Lambda` gives :math:`\lambda = -1`, which a stable system does not have.
    """

    @override
    def discretize(self, poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        w = 0.5 * poles * steps
        room = 8 * torch.finfo(w.dtype).eps
        w = torch.where((w + 1).abs() < room, w + 2 * room, w)
        size = w.real.square() + w.imag.square()
        below = (1 - w.real).square() + w.imag.square()  # |1 - w|^2
        growth = 4 * w.real / below  # |lambda|^2 - 1, without cancellation near the unit circle
        near = growth > -0.5
        logarithm = torch.where(
            near,
            torch.log1p(torch.where(near, growth, 0)),
            torch.log(torch.where(near, 1, ((1 + w.real).square() + w.imag.square()) / torch.where(near, 1, below))),
        )
        return torch.complex(0.5 * logarithm, torch.atan2(2 * w.imag, 1 - size)), steps / (1 - w)

    @override
    def undo(self, log_poles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (
            log_poles.real,
            log_poles.imag,
        )  # w = tanh(log_poles / 2), without cancellation near the unit circle and near -1
        w = torch.complex(torch.sinh(a), torch.sin(b)) / (2 * (torch.sinh(a / 2).square() + torch.cos(b / 2).square()))
        return 2 * w / steps, steps / (1 - w)


DISCRETIZATIONS: Mapping[str, Discretization] = {"zoh": ZeroOrderHold(), "bilinear": Bilinear()}


def _mean_exponential(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``, the mean of ``exp`` on the way from 0 to ``z``; near 0 by its series, for the sake of the derivative."""
    near = z.abs() < 0.1
    half, large = torch.where(near, 0.5 * z, 0), torch.where(near, 1, z)
    q = half * half
    series = half.exp() * (
        1 + q * (1 / 6 + q * (1 / 120 + q / 5040))
    )  # exp(z/2) sinh(z/2) / (z/2), to a rounding of double precision
    return torch.where(near, series, torch.expm1(large) / large)


@dataclass(frozen=True)
class SampledStates:
    """The states of a layer, in continuous time.

    Attributes
    ----------
    poles : Tensor
        ``(n,)``, complex128.
    steps : Tensor
        ``(n,)``, float64.
    held : Tensor
        ``(n,)``, True where the layer holds the real part of a pole at a limit, so that its parameter has no influence.
    rule : Discretization
    """

    poles: Tensor
    steps: Tensor
    held: Tensor
    rule: Discretization

    def system(self, B: Tensor, C: Tensor) -> hsv.DiagonalStateSpace:
        """Return the discrete system of ``B (n, m)`` (before its gains) and ``C (p, n)``."""
        log_poles, gains = self.rule.discretize(self.poles, self.steps)
        return hsv.DiagonalStateSpace.from_log_poles(log_poles, gains[:, None] * B, C, dt=True)


@dataclass(frozen=True)
class SampledCut:
    r"""A cut of such a layer: made in discrete time, written back with the steps of old states.

    Each new state takes the step :math:`\Delta` of the old state that it overlaps most, and of the logarithms of its pole, which differ by
    :math:`2\pi i`, the one nearest to that state's; a real pole the principal one. :math:`\Lambda = \log(\lambda)/\Delta` for the
    zero-order hold, and the rows of `B` are divided by their gains.

    Attributes
    ----------
    discrete : DiagonalCut
    old, new : SampledStates
    B : Tensor
        ``(r, m)``, complex128, before the gains; ``discrete.B`` has them.
    """

    discrete: DiagonalCut
    old: SampledStates
    new: SampledStates
    B: Tensor

    @classmethod
    def write_back(
        cls, discrete: DiagonalCut, old: SampledStates, *, row_norm: float, max_real: float | None = None
    ) -> SampledCut:
        """Plan the write-back: rows of `B` of norm `row_norm`, and poles whose real part is below `max_real`.

        Where the step of the old state would put a pole above that limit, the new state takes a shorter step, and a note says so.

        Raises
        ------
        CutRefusedError
            A pole of the reduced system is on the unit circle to working precision.
        """
        if not bool((discrete.log_poles.real < 0).all()):
            worst = float(discrete.log_poles.real.max())
            raise CutRefusedError(
                f"the reduced system has a pole on the unit circle to working precision (log|pole| = {worst:.1e}); choose another order",
                discrete.hankel_singular_values,
            )
        origin = discrete.log_pole_map.linear.abs().argmax(dim=0)  # (r,)
        angle = discrete.log_poles.imag
        turn = 2 * math.pi
        turns = torch.round((old.rule.discretize(old.poles, old.steps)[0].imag[origin] - angle) / turn)
        turns = torch.where((angle == 0) | (angle.abs() == math.pi), 0.0, turns)
        log_poles = torch.complex(discrete.log_poles.real, angle + turn * turns)

        steps = old.steps[origin]
        if max_real is not None:
            longest = old.rule.undo(log_poles, torch.ones_like(steps))[0].real / (2 * max_real)  # well inside the limit
            shortened = int((steps > longest).sum())
            if shortened:
                note = f"{shortened} states take a shorter step than the old state they stem from: their poles decay so slowly that the layer would clip them"
                discrete = replace(discrete, notes=(*discrete.notes, note))
            steps = torch.minimum(steps, longest)
        poles, gains = old.rule.undo(log_poles, steps)
        discrete = discrete.rescale(row_norm * gains.abs())
        new = SampledStates(poles, steps, torch.zeros_like(steps, dtype=torch.bool), old.rule)
        return cls(discrete, old, new, discrete.B / gains[:, None])

    def pull_back(self, poles: Tensor, B: Tensor, C: Tensor, *, squared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Carry covectors of the old poles ``(n,)``, ``B (n, m)`` and ``C (p, n)`` to the new poles, `B`, `C` and log-steps.

        Complex ones, with the derivatives by real and by imaginary part as their parts. The old parameters are a function of the new ones
        with the old steps held fixed; this is the transpose of its Jacobian. ``squared``: by the element-wise squares of the Jacobians of
        old poles by new ones, old `B` by new `B`, old `C` by new `C`, and, for the log-steps, of old poles through :math:`\log\lambda` and old `B`
        through the gain. Dropped is what poles do to old `B` through the gains; it cancels where a new state has one old state's step and pole.
        """
        poles = torch.where(self.old.held, 1j * poles.imag, poles)
        return self._pull_back_squares(poles, B, C) if squared else self._pull_back(poles, B, C)

    def _pull_back(self, poles: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        plan, old, new = self.discrete, self.old, self.new
        rule = old.rule
        old_log, _ = rule.discretize(old.poles, old.steps)
        new_log, _ = rule.discretize(new.poles, new.steps)

        def old_from_new(poles: Tensor, log_steps: Tensor, B: Tensor, C_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_poles, gains = rule.discretize(poles, log_steps.exp())
            change = plan.log_pole_map((log_poles - new_log)[:, None])[:, 0]
            change = torch.where(old.held, 1j * change.imag, change)
            old_poles, old_gains = rule.undo(old_log + change, old.steps)
            return old_poles, plan.states(gains[:, None] * B) / old_gains[:, None], plan.outputs(C_rows)

        _, transpose = torch.func.vjp(  # type: ignore[misc]
            old_from_new, new.poles, new.steps.log(), self.B, plan.C.mT
        )
        poles, log_steps, B, C_rows = transpose((poles, B, C.mT))
        return poles, B, C_rows.mT, log_steps

    def _pull_back_squares(self, poles: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        plan, old, new = self.discrete, self.old, self.new
        rule = old.rule
        old_log, old_gains = rule.discretize(old.poles, old.steps)
        _, new_gains = rule.discretize(new.poles, new.steps)
        by_log_pole = derivative(lambda log_poles: rule.undo(log_poles, old.steps)[0], old_log)
        by_pole = derivative(lambda poles: rule.discretize(poles, new.steps)[0], new.poles)
        # Both depend on the product of pole and step, so that a change of log-step is one of the pole by its own size.
        by_step = by_pole * new.poles
        gain_by_step = 1 + new.poles * derivative(lambda p: rule.discretize(p, new.steps)[1].log(), new.poles)

        poles_map = plan.log_pole_map.between(by_log_pole, by_pole)
        steps_map = plan.log_pole_map.between(by_log_pole, by_step)
        new_B = plan.states.between(1 / old_gains, new_gains).pull_back(B, squared=True)
        lengthened = gain_by_step[:, None] * self.B
        log_steps = steps_map.pull_back(poles[:, None], squared=True)[:, 0].real
        log_steps = log_steps + (new_B.real * lengthened.real**2 + new_B.imag * lengthened.imag**2).sum(1)
        new_poles = poles_map.pull_back(poles[:, None], squared=True)[:, 0]
        return new_poles, new_B, plan.outputs.pull_back(C.mT, squared=True).mT, log_steps


def derivative(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Of a function that is holomorphic and acts element by element."""
    value, transpose = torch.func.vjp(function, z)  # type: ignore[misc]
    return transpose(torch.ones_like(value))[0].conj()
