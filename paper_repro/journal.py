"""What a run writes down while it goes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Journal:
    """What a run has recorded so far; numbers, strings, lists and dicts, for a checkpoint.

    Attributes
    ----------
    step_seconds : list of float
        Of every optimizer step that stands.
    reduction_seconds : float
        Spent in cuts, and in what is measured to decide on them.
    penalty_seconds, teacher_seconds : float
        Parts of the steps' seconds: the penalty with its gradient; the teacher's forward pass.
    undone_seconds : float
        Of optimizer steps that were taken back with the cut before them.
    validations, states, spectra : list of dict
        Each with the ``step`` that it belongs to.
    first_cut : dict or None
        The history of a cut that came before the first step.
    """

    started: str = ""
    warm_up_seconds: float = 0.0
    commits: list[str | None] = field(default_factory=list)
    code_digests: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    reduction_seconds: float = 0.0
    penalty_seconds: float = 0.0
    teacher_seconds: float = 0.0
    undone_seconds: float = 0.0
    validations: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    first_cut: dict[str, Any] | None = None

    @property
    def training_seconds(self) -> float:
        """Seconds of all steps, those that were taken back too, and of the cuts."""
        return math.fsum(self.step_seconds) + self.undone_seconds + self.reduction_seconds

    def take_back(self, step: int) -> None:
        """Forget what was recorded since the cut after `step` steps, which was undone, but not the time that it took."""
        self.undone_seconds += math.fsum(self.step_seconds[step:])
        del self.step_seconds[step:]
        for name in ("validations", "states", "spectra"):
            setattr(self, name, [entry for entry in getattr(self, name) if entry["step"] < step])

    def median_step_seconds(self) -> tuple[float, float]:
        """Return the medians over the steps with the first and with the last size; equal where only one size was trained, 0 without steps."""
        seconds = np.asarray(self.step_seconds)
        if not len(seconds):
            return 0.0, 0.0
        changes = [entry["step"] for entry in self.states[1:] if 0 < entry["step"] < len(seconds)]
        first, last = (changes[0], changes[-1]) if changes else (len(seconds), 0)
        return float(np.median(seconds[:first])), float(np.median(seconds[last:]))

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return dataclasses.asdict(self)
