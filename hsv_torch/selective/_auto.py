"""Trying several methods on held-out sequences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
from typing_extensions import override

from hsv import DtypeError
from hsv_torch._errors import CutRefusedError
from hsv_torch.layers._checks import check_size
from hsv_torch.selective._choice import StateChoice
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut
from hsv_torch.selective._distillation import check_share, require_held_out
from hsv_torch.selective._observation import Needs, SelectiveObservation
from hsv_torch.selective._shared import SharedBasis
from hsv_torch.selective._trial import copy_of, relative_error, targets
from hsv_torch.selective._view import SelectiveView

CHEAP: tuple[SelectiveCriterion, ...] = (
    StateChoice("greedy"),
    StateChoice("hankel"),
    StateChoice("ghost"),
    SharedBasis(transforms=False),
    SharedBasis(gramians="white", transforms=False),
)
"""What :class:`Auto` tries: methods that cost nothing at run time, so that any layer takes them."""


@dataclass(frozen=True)
class Auto(SelectiveCriterion):
    """Try several methods and take the one with the smallest error of the layer's output on held-out calibration sequences.

    A method that refuses the layer drops out, and the notes of the cut say why; if all refuse, so does this one. All are cut to the same order, which the rule chooses by the values
    of the first.

    Parameters
    ----------
    candidates : tuple of SelectiveCriterion, optional
        By default those that cost nothing at run time: three ways of choosing states, and one basis for all channels without transforms, from two kinds of Gramians.
    held_out : float
        Share of the calibration sequences that errors are measured on; they are not in the Gramians.
    max_sequences : int
        Sequences held in memory for that, at most: the first ones.

    Raises
    ------
    hsv.HsvError
        An argument is out of its range.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=16)
    >>> report = hsv_torch.compress_(layer, 4, calibration=torch.randn(8, 20, 4), criterion=hsv_torch.Auto())
    >>> layer.n_states
    4
    """

    candidates: tuple[SelectiveCriterion, ...] | None = None
    held_out: float = 0.25
    max_sequences: int = 64

    def __post_init__(self) -> None:
        for candidate in self.tried:
            if not isinstance(candidate, SelectiveCriterion):
                raise DtypeError(f"`candidates` must be hsv_torch.SelectiveCriterion objects, got {candidate!r}")
        if not self.tried:
            raise DtypeError("`candidates` is empty; pass None for the default ones")
        check_share(self.held_out)
        check_size("max_sequences", self.max_sequences)

    @property
    def tried(self) -> tuple[SelectiveCriterion, ...]:
        """The methods that are tried."""
        return CHEAP if self.candidates is None else tuple(self.candidates)

    @override
    def needs(self) -> Needs:
        own = Needs(held_out=self.held_out, n_calls=self.max_sequences)
        return reduce(or_, (candidate.needs() for candidate in self.tried), own)

    @override
    def meaning(self) -> str:
        return self.tried[0].meaning()

    @override
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        return self.tried[0].values(view, observation)

    @override
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        require_held_out(observation)
        known = targets(view, observation.held_out)
        best: tuple[float, SelectiveCut] | None = None
        notes: list[str] = []
        for candidate in self.tried:
            try:
                cut = candidate.plan(view, observation, n_states)
            except CutRefusedError as error:
                notes.append(f"{candidate!r} refused: {error}")
                continue
            found = relative_error(copy_of(view, cut), known)
            notes.append(f"{candidate!r}: relative error {found:.4g} of the layer's output on held-out sequences")
            if best is None or found < best[0]:
                best = found, dataclasses.replace(cut, notes=(f"taken: {candidate!r}", *cut.notes))
        if best is None:
            raise CutRefusedError("every candidate refused the layer: " + "; ".join(notes))
        return dataclasses.replace(best[1], notes=(*best[1].notes, *notes))
