"""Steps of an iteration, and the bar that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hsv._errors import DtypeError, MissingBackendError


@dataclass(frozen=True)
class AdiStep:
    """One iteration: one shift (or a pair of conjugates), one factorisation, for one Gramian or both.

    Attributes
    ----------
    iteration : int
        Counted from 1.
    shift : complex
        Of the controllability side; the other has its conjugate.
    controllability, observability : float or None
        Relative residual after the step; None where that Gramian was not asked for.
    seconds : float
        Since the begin.
    """

    iteration: int
    shift: complex
    controllability: float | None
    observability: float | None
    seconds: float


Progress: TypeAlias = "bool | Callable[[AdiStep], object]"


class _Report:
    """A context manager that calls a function for each step."""

    def __init__(self, call: Callable[[AdiStep], object]) -> None:
        self.call = call

    def __enter__(self) -> Callable[[AdiStep], object]:
        return self.call

    def __exit__(self, *error: object) -> None:
        return None


class _Bar:
    """A progress bar of the decades that the residual has fallen."""

    def __init__(self, tolerance: float) -> None:
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError as error:
            raise MissingBackendError(
                'progress=True needs rich: pip install "hsv-control[cli]", or pass a function that takes a step'
            ) from error
        self._decades = -math.log10(tolerance)
        self._bar = Progress(
            TextColumn("low-rank factors"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        )

    def __enter__(self) -> Callable[[AdiStep], object]:
        self._bar.start()
        self._task = self._bar.add_task("residual 1", total=self._decades)
        return self._show

    def _show(self, step: AdiStep) -> None:
        residual = max(x for x in (step.controllability, step.observability) if x is not None)
        done = min(max(-math.log10(max(residual, 1e-300)), 0.0), self._decades)
        self._bar.update(self._task, completed=done, description=f"shift {step.iteration}, residual {residual:.1e}")

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def reporter(progress: Progress, tolerance: float) -> _Report | _Bar:
    """The context manager that `progress` asks for."""
    if callable(progress):
        return _Report(progress)
    if not isinstance(progress, (bool, np.bool_)):
        raise DtypeError(f"progress must be True, False or a function of one step, got {progress!r}")
    return _Bar(tolerance) if progress else _Report(lambda step: None)
