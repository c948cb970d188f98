"""A cut layer, trained for a moment to do what the whole one did."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hsv import DtypeError, HsvError
from hsv_torch.layers._checks import check_size
from hsv_torch.selective._choice import StateChoice
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut
from hsv_torch.selective._observation import Needs, SelectiveObservation
from hsv_torch.selective._trial import Target, copy_of, energy, outputs, relative_error, targets
from hsv_torch.selective._view import SelectiveView

N_CHECKS = 10
"""How often the error on held-out sequences is measured while training."""


@dataclass(frozen=True)
class LocalDistillation(SelectiveCriterion):
    r"""Cut by another method, then train the cut layer alone to give the outputs that it gave before.

    .. math:: \min \sum_t \| y_t^{\mathrm{cut}} - y_t \|^2 \Big/ \sum_t \| y_t \|^2

    over all parameters of the layer, by Adam with a cosine schedule, on recorded inputs of the layer and its own recorded outputs: no labels, nothing else of the model, seconds. A copy is trained; the cut
    carries the trained values. What is kept is the state with the least error on held-out sequences, that right after the cut among them: it never gets worse there.

    Parameters
    ----------
    criterion : SelectiveCriterion
        How to cut.
    steps : int
        Of the optimizer.
    learning_rate : float
        At the beginning; it falls to zero.
    max_sequences : int
        Sequences recorded for training, and as many for the measure of the error, at most: the first ones of the calibration data. Their inputs are held in memory until the cut is planned.
    batch_size : int
        Sequences a step.
    held_out : float
        Share of the calibration sequences that are held out, of the Gramians too.
    seed : int
        Of the order of the sequences.

    Raises
    ------
    hsv.HsvError
        An argument is out of its range.

    Notes
    -----
    All parameters of the layer are trained, frozen ones too, as a cut replaces frozen ones too. The optimizer's moments of parameters that are trained and not cut are carried as they are. More sequences (`max_sequences`) help as long as the error on held-out ones is above that of training.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=16)
    >>> criterion = hsv_torch.LocalDistillation(hsv_torch.StateChoice(), steps=20)
    >>> report = hsv_torch.compress_(layer, 4, calibration=torch.randn(8, 20, 4), criterion=criterion)
    >>> layer.n_states
    4
    """

    criterion: SelectiveCriterion = field(default_factory=StateChoice)
    steps: int = 150
    learning_rate: float = 3e-3
    max_sequences: int = 64
    batch_size: int = 16
    held_out: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.criterion, SelectiveCriterion):
            raise DtypeError(f"`criterion` must be a hsv_torch.SelectiveCriterion, got {self.criterion!r}")
        for name in ("steps", "max_sequences", "batch_size"):
            check_size(name, getattr(self, name))
        if not 0 < self.learning_rate < math.inf:
            raise HsvError(f"`learning_rate` must be a positive number, got {self.learning_rate!r}")
        check_share(self.held_out)

    @override
    def needs(self) -> Needs:
        return self.criterion.needs() | Needs(held_out=self.held_out, n_calls=self.max_sequences)

    @override
    def meaning(self) -> str:
        return self.criterion.meaning()

    @override
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        return self.criterion.values(view, observation)

    @override
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        cut = self.criterion.plan(view, observation, n_states)
        require_held_out(observation)
        student = copy_of(view, cut)
        held_out = targets(view, observation.held_out)
        before = relative_error(student, held_out)
        after, trained = self._train(student, targets(view, observation.calls), held_out, before)
        note = f"distilled in {self.steps} steps: relative error of the layer's output on held-out sequences {before:.3g} before, {after:.3g} after"
        return dataclasses.replace(cut, trained=trained, notes=(*cut.notes, note))

    def _train(
        self, student: SelectiveView, known: list[Target], held_out: list[Target], before: float
    ) -> tuple[float, dict[str, Tensor]]:
        """The least error on held-out sequences, and the values that have it."""
        layer: nn.Module = student.layer
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
        best, values = before, _values(layer)
        optimizer = torch.optim.Adam(layer.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        scale = energy(known) / sum(target.call.n_sequences for target in known)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            for step in range(1, self.steps + 1):
                target = self._batch(known, generator)
                loss = (outputs(student, target.call) - target.output).square().sum() / scale
                optimizer.zero_grad()
                (loss / target.call.n_sequences).backward()
                optimizer.step()
                schedule.step()
                if step % max(1, self.steps // N_CHECKS) == 0 or step == self.steps:
                    error = relative_error(student, held_out)
                    if error < best:  # False for NaN
                        best, values = error, _values(layer)
        return best, values

    def _batch(self, known: list[Target], generator: torch.Generator) -> Target:
        """Some sequences of one recorded call, a call as often as its number of sequences says."""
        sizes = torch.tensor([float(target.call.n_sequences) for target in known])
        target = known[int(torch.multinomial(sizes, 1, generator=generator))]
        index = torch.randperm(target.call.n_sequences, generator=generator)[: self.batch_size]
        return Target(target.call.select(index), target.output[index.to(target.output.device)])


def _values(layer: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def check_share(held_out: float) -> None:
    """Raise unless a share of the sequences is held out, and not all."""
    if not 0 < held_out < 1:
        raise HsvError(f"`held_out` is a share of the calibration sequences and must be in (0, 1), got {held_out!r}")


def require_held_out(observation: SelectiveObservation) -> None:
    """Raise if there were too few sequences to hold some out and to learn from others."""
    if not observation.held_out or not observation.calls:
        raise HsvError(
            f"{observation.n_sequences} calibration sequences are too few to hold out {observation.needs.held_out:.0%} of them: pass at least "
            f"{math.ceil(1 / observation.needs.held_out)}"
        )
