"""How far the runs are: bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from paper_repro.configuration import RunConfig
from paper_repro.results import RunResult

SECONDS_BETWEEN_LINES = 15.0


def run_name(config: RunConfig) -> str:
    """Return a short name of a run, for people."""
    return f"{config.arm.replace('_', ' ')}, seed {config.seed}"


def states_text(states: tuple[int, ...] | list[int]) -> str:
    """Return numbers of states, one a block, as text: ``64`` or ``64+32``."""
    return "+".join(str(count) for count in states)


class RunProgress:
    """Shows several runs at once; use it as a context manager.

    On a terminal every run has a bar. Elsewhere (a file, a CI log) a line tells of each run that ends, and of the
    runs in progress every quarter of a minute.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._lines: dict[str, str] = {}
        self._spoke = time.monotonic()
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def add(self, key: str, config: RunConfig, label: str = "") -> None:
        """Announce the run `key`."""
        self._names[key] = f"{run_name(config)}{label}"
        if self._bars:
            self._tasks[key] = self._bars.add_task(self._names[key], total=config.steps, note="", start=False)

    def update(self, key: str, step: int, total: int, note: str) -> None:
        """Tell that the run `key` has done `step` of `total` steps."""
        if self._bars:
            self._bars.start_task(self._tasks[key])
            self._bars.update(self._tasks[key], completed=step, note=note)
            return
        self._lines[key] = f"{self._names[key]}: step {step:,} of {total:,}, {note}"
        if time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            for line in self._lines.values():
                self._console.print(line, markup=False, highlight=False)

    def finish(self, key: str, result: RunResult) -> None:
        """Tell that the run `key` has ended."""
        before, after = states_text(result.states_before), states_text(result.states_after)
        states = before if before == after else f"{before} → {after}"
        note = f"{states} states, validation {result.best.accuracy:.1%}"
        self._lines.pop(key, None)
        if self._bars:
            self._bars.start_task(self._tasks[key])
            self._bars.update(self._tasks[key], completed=result.config.steps, note=note)
        else:
            line = f"{self._names[key]}: done, {note}, {result.timing.wall:.0f} s"
            self._console.print(line, markup=False, highlight=False)
