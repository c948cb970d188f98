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

    A line tells of each run that ends. On a terminal, bars below the lines show the runs in progress and how many of all
    are done; elsewhere (a file, a CI log) lines do, every quarter of a minute.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._names: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._spoke = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        self._all: TaskID | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
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
        if self._bars is None:
            return
        if self._all is None:
            self._all = self._bars.add_task("runs", total=0, note="")
        self._bars.update(self._all, total=len(self._names))

    def update(self, key: str, step: int, total: int, note: str) -> None:
        """Tell that the run `key` has done `step` of `total` steps."""
        if self._bars:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(self._names[key], total=total, note="")
            self._bars.update(self._tasks[key], completed=step, note=note)
            return
        self._notes[key] = f"step {step:,} of {total:,}, {note}"
        if time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            for running, text in self._notes.items():
                self._say(f"{self._names[running]}: {text}")

    def finish(self, key: str, result: RunResult) -> None:
        """Tell that the run `key` has ended."""
        before, after = states_text(result.states_before), states_text(result.states_after)
        states = before if before == after else f"{before} → {after}"
        self._notes.pop(key, None)
        if self._bars:
            if key in self._tasks:
                self._bars.remove_task(self._tasks.pop(key))
            assert self._all is not None
            self._bars.advance(self._all)
        accuracy = f"validation {result.best.accuracy:.1%}"
        self._say(f"{self._names[key]}: {states} states, {accuracy}, done in {result.timing.wall:.0f} s")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)
