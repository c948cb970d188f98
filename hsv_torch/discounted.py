"""A criterion that looks as far back as the sequences are long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch.criteria import ComplexHankel, DiagonalCriterion
from hsv_torch.diagonal_cut import DiagonalCut

LONGEST_LIFE = 2.0
"""Times the time constant of the slowest old state: balanced truncation alone makes slower poles now and then, hardly ever more than twice as slow."""


@dataclass(frozen=True)
class Discounted(DiagonalCriterion):
    r"""Another criterion's cut of the system whose past fades: :math:`\Lambda e^{-1/T}` in place of :math:`\Lambda`.

    Hankel singular values weigh an input by all that it does for ever. A state that never forgets, :math:`|\lambda| \to 1`, has arbitrarily large ones, however little it does
    within the length of the sequences that the layer reads; S5 layers come to have such states when they learn from short sequences, and truncation
    then keeps these and drops what the model lives by. Here the impulse response is weighted by :math:`e^{-k/T}` with a `horizon` of :math:`T` steps,
    which is the same system with its poles moved inwards. It is truncated by `criterion`, and the poles of the result are moved back.

    The error bound is one of the weighted system. It bounds nothing of the layer for ever, and so ``error_bound`` of the cut is infinite and the notes have it.
    The weighted system's reduction is stable, the one that is moved back need not be: a pole that comes out with more than twice the time constant of the slowest old one
    of its system gets that time constant. The notes say so.

    Parameters
    ----------
    horizon : float
        :math:`T` in steps, positive. The length of the sequences is a good first choice.
    criterion : DiagonalCriterion
        What cuts the weighted system. Default: :class:`ComplexHankel`.

    Raises
    ------
    hsv.HsvError
        `horizon` is not a positive number.
    TypeError
        `criterion` is not one of time-invariant diagonal layers.

    Examples
    --------
    A state that fades within two steps carries the signal; one that never fades has hardly any weight.

    >>> import hsv, hsv_torch, torch
    >>> system = hsv.DiagonalStateSpace(torch.tensor([0.5, 0.99999]), torch.ones(2, 1), torch.tensor([[1.0, 1e-3]]), dt=True)
    >>> hsv_torch.ComplexHankel().reduce(system, 1).log_poles.exp().abs() > 0.9
    tensor([True])
    >>> hsv_torch.Discounted(horizon=32).reduce(system, 1).log_poles.exp().abs() > 0.9
    tensor([False])

    References
    ----------
    The shift of the poles is that of exponentially weighted balancing for systems on or outside the stability boundary; the purpose, that of time-limited
    balancing: Gawronski and Juang, "Model reduction in limited time and frequency intervals", International Journal of Systems Science 21 (1990).
    """

    horizon: float
    criterion: DiagonalCriterion = field(default_factory=ComplexHankel)

    def __post_init__(self) -> None:
        horizon = self.horizon
        if isinstance(horizon, bool) or not isinstance(horizon, int | float) or not 0 < horizon < math.inf:
            raise hsv.HsvError(
                f"`horizon` must be a positive number of steps, got {horizon!r}; try the length of the sequences"
            )
        if not isinstance(self.criterion, DiagonalCriterion):
            raise TypeError(
                f"`criterion` must be a DiagonalCriterion such as hsv_torch.ComplexHankel(), got {self.criterion!r}"
            )

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the values of the weighted system that `criterion` lets a rule choose by."""
        return self.criterion.spectrum(self._weighted(system))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut of the weighted system, and move its poles back; raises what `criterion` raises."""
        cut = self.criterion.reduce(self._weighted(system), rule)
        moved = cut.log_poles + 1 / self.horizon
        limit = _log_moduli(system).amax(-1, keepdim=True) / LONGEST_LIFE
        too_slow = (moved.real > limit) & ~cut.padding
        bound = f"weighted by exp(-k / {self.horizon:g}) the change of the impulse response has an H-infinity norm of at most {cut.error_bound:.3g}"
        count = int(too_slow.sum())
        note = (
            f"{count} of {too_slow.numel()} states came out longer-lived and got {LONGEST_LIFE:g} times the time constant of the slowest old one; but for that, {bound}"
            if count
            else bound
        )
        return replace(
            cut,
            log_poles=torch.complex(torch.minimum(moved.real, limit), moved.imag),
            error_bound=math.inf,
            notes=(*cut.notes, note),
        )

    def _weighted(self, system: hsv.DiagonalStateSpace) -> hsv.DiagonalStateSpace:
        if system.log_poles is not None:
            return hsv.DiagonalStateSpace.from_log_poles(
                system.log_poles - 1 / self.horizon, system.B, system.C, system.D, dt=system.dt
            )
        poles = system.poles() * math.exp(-1 / self.horizon)
        return hsv.DiagonalStateSpace(poles, system.B, system.C, system.D, dt=system.dt)


def _log_moduli(system: hsv.DiagonalStateSpace) -> Tensor:
    return system.log_poles.real if system.log_poles is not None else system.poles().abs().log()
