"""Training a table: its runs by the processes of this machine, in slices of time if need be."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from paper_repro.progress import RunProgress
from paper_repro.results import RunResult, read_results
from paper_repro.tables.graph import Extent, finished, table_jobs
from paper_repro.tables.plan import TablePlan
from paper_repro.training import RunInterruptedError
from paper_repro.workers import Job, run_jobs

SECONDS_A_MINUTE = 60.0


class TimeBudget:
    """Says when the minutes are over that a command may take; without minutes they never are."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + SECONDS_A_MINUTE * minutes

    def __call__(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() >= self._end


def run_table(
    plan: TablePlan,
    extent: Extent,
    directory: Path,
    *,
    console: Console,
    budget: TimeBudget,
    runner: Callable[[list[Job], RunProgress], dict[str, RunResult]] | None = None,
    n_workers: int = 1,
    data_dir: Path | None = None,
) -> bool:
    """Train what of the table is not finished yet, and say whether all of it is.

    Parameters
    ----------
    directory : Path
        Gets the results and the checkpoints.
    budget : TimeBudget
        When it is over, all runs stop with their checkpoints written; the same command goes on.
    runner : callable, optional
        Runs jobs and returns their results by key; default: `n_workers` processes of this machine.
    data_dir : Path, optional
        Folder of the data files.
    """
    jobs = table_jobs(plan, extent)
    if data_dir is not None:
        jobs = [dataclasses.replace(job, config=job.config.with_values(data_dir=str(data_dir))) for job in jobs]
    done = finished(jobs, read_results(directory))
    console.print(
        f"Table {plan.number}, {plan.name} --{extent.variant}: {len(jobs)} runs, {len(done)} of them finished; the results go to {directory}",
        highlight=False,
    )
    with RunProgress(console) as progress:
        try:
            if runner is None:
                run_jobs(jobs, directory, n_workers=n_workers, progress=progress, time_is_over=budget)
            else:
                runner(jobs, progress)
        except RunInterruptedError:
            if not budget():
                raise
    left = len(jobs) - len(finished(jobs, read_results(directory)))
    if left:
        console.print(
            f"The time is over; {left} runs are left, and the same command goes on with them.", highlight=False
        )
    return not left
