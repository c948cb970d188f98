"""The guard: when a cut is undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hsv import DtypeError, HsvError
from hsv_torch.schedule import Schedule


@dataclass(frozen=True)
class Rollback:
    """A guard: puts back what a cut changed if a metric falls by more than is allowed.

    What is put back, bit for bit: parameters (the same objects in the same places), buffers such as batch-norm
    statistics, gradients, training modes, the optimizer, the objects in the compressor's `state`, and the global random
    generators of Python, NumPy and torch. The metric is compared with that of the moment before the cut; a metric that is
    NaN on either side counts as a fall.

    The pragmatic variant of the CompreSSM paper, which takes a tenth of the states at a time and stops when that no longer pays, is ``Rollback(evaluate,
    max_drop=0.0, after_steps=..., then="stop")`` with a rule such as ``lambda attempt, attempts: hsv_torch.Budget(keep=0.9**attempt, gradual=False)``.

    Parameters
    ----------
    evaluate
        Called without arguments, returns the metric as a number. It is called without gradients, and whatever it does to
        random generators, training modes and buffers is put back; it shall call ``model.eval()`` itself.
    max_drop
        Largest fall that is accepted, in units of the metric, not negative.
    higher_is_better
        False for a loss.
    after_steps
        0: evaluate right after the cut, and decide before the next batch. Otherwise train that many optimizer steps with
        the small model first. If the cut is undone then, the steps are undone with it: the compressor's `state` must have
        the data loader as ``"loader"`` so that it is rewound, and the training loop must ask it for a new iterator when
        the event says ``undone``.
    gentler
        How many times a cut that was undone is tried again, with half the reduction each time; at the next optimizer step.
    then
        What follows a cut that was undone for good: ``"go on"`` with the later attempts, or ``"stop"``: no more attempts.
    offload
        Keep the copy that a cut is undone from in the host's memory instead of the device's.
    """

    evaluate: Callable[[], Any]
    max_drop: float
    higher_is_better: bool = True
    after_steps: int = 0
    gentler: int = 0
    then: Literal["go on", "stop"] = "go on"
    offload: bool = False

    def __post_init__(self) -> None:
        if not callable(self.evaluate):
            raise TypeError(f"`evaluate` must be callable without arguments, got {self.evaluate!r}")
        if isinstance(self.max_drop, bool) or not isinstance(self.max_drop, int | float | np.number):
            raise DtypeError(f"`max_drop` must be a number, got {self.max_drop!r}")
        if not self.max_drop >= 0 or math.isinf(self.max_drop):
            raise HsvError(f"`max_drop` must be a finite number not below 0, got {self.max_drop!r}")
        for name, unit in (("after_steps", "optimizer steps"), ("gentler", "further tries")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise DtypeError(f"`{name}` must be an int ({unit}), got {value!r}")
            if value < 0:
                raise HsvError(f"`{name}` must be at least 0, got {value}")
        if self.then not in ("go on", "stop"):
            raise HsvError(f"`then` must be 'go on' or 'stop', got {self.then!r}")

    @property
    def span(self) -> int:
        """Optimizer steps after an attempt until the last decision on it."""
        return self.after_steps + self.gentler * (self.after_steps + 1)

    def objection(self, before: float, after: float) -> str | None:
        """Why a cut with these metrics is to be undone, or None if it may stay."""
        if math.isnan(before) or math.isnan(after):
            return f"the metric is NaN (before the cut {before:g}, after it {after:g})"
        drop = before - after if self.higher_is_better else after - before
        if drop <= self.max_drop:  # false for inf - inf, too
            return None
        word = "fell" if self.higher_is_better else "rose"
        return f"the metric {word} from {before:g} to {after:g}, by more than {self.max_drop:g}"


def check_guard(guard: Rollback | None, schedule: Schedule, objects: Mapping[str, Any]) -> None:
    """Raise if the guard cannot do its work with this schedule and these objects of `state`."""
    if guard is None:
        return
    if not isinstance(guard, Rollback):
        raise TypeError(f"`guard` must be a hsv_torch.Rollback or None, got {guard!r}")
    if guard.after_steps > 0 and "loader" not in objects:
        raise HsvError(
            f"`guard` decides {guard.after_steps} steps after a cut, and going back exactly needs the data of those steps again: "
            "pass state={'loader': ...} with a loader that has state_dict and load_state_dict, or after_steps=0"
        )
    ends = (*schedule.steps[1:], schedule.total_steps + 1)
    for attempt, (step, end) in enumerate(zip(schedule.steps, ends, strict=True), start=1):
        if step + guard.span >= end:
            last = attempt == schedule.attempts
            raise HsvError(
                f"`guard` decides up to {guard.span} steps after an attempt, but attempt {attempt} is at step {step} and "
                + (f"training ends at step {schedule.total_steps}" if last else f"the next one at step {end}")
                + "; lower after_steps or gentler, or change the schedule"
            )
