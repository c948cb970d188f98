"""Every task and every method for a few steps: whether all of it runs. Generated tasks are generated, the others read tiny files in their true formats."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from paper_repro.configuration import make_config
from paper_repro.errors import ResultError
from paper_repro.methods import METHODS, READINGS
from paper_repro.progress import RunProgress
from paper_repro.results import RunResult
from paper_repro.tasks import TASKS
from paper_repro.tiny_files import WRITERS, write_tiny_files
from paper_repro.workers import Job, run_jobs

STATES, KEPT = 8, 4
TINY: dict[str, Any] = {
    "n_blocks": 1,
    "d_model": 4,
    "n_states": STATES,
    "batch_size": 4,
    "steps": 8,
    "evaluate_every": 4,
    "learning_rate": 1e-3,
    "order": KEPT,
    "attempts": 2,
    "window": [0.0, 0.5],
    "threads": 1,
}
SELECTIVE: dict[str, Any] = {"layer": "mamba", "norm": "rms", "attempts": 1, "calibration_sequences": 4}
ARMS: dict[str, dict[str, Any]] = {
    "full": {"arm": "full"},
    "gradual": {"gradual": True},
    "horizon": {"horizon": 64.0},
    "tau": {"tau": 0.3, "order": None},
    "guard": {"max_drop": 1.0},
    "pragmatic": {"arm": "pragmatic"},
    "regularised by factors": {"arm": "regularised", "penalty_weight": 1e-3},
    "regularised seldom": {"arm": "regularised", "penalty_weight": 1e-3, "penalty_every": 4},
    "regularised by eigenvalues": {"arm": "regularised", "penalty_weight": 1e-3, "penalty_by": "eigenvalues"},
    "s5": {"layer": "s5"},
    "s4d": {"layer": "s4d"},
}


def run_smoke(directory: Path | None, *, n_workers: int, console: Console) -> dict[str, RunResult]:
    """Run every task and every method for a few steps, print how long it took, and return the results by name.

    Parameters
    ----------
    directory : Path or None
        Gets the files and the runs; None: a temporary one.

    Raises
    ------
    ResultError
        If a run that was to be cut has other states than it should.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        place = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paper_repro_")))
        jobs = smoke_jobs(place / "data")
        with RunProgress(console) as progress:
            results = run_jobs(jobs, place, n_workers=n_workers, progress=progress)
    for job in jobs:
        _check(job, results[job.key])
    seconds = time.perf_counter() - start
    console.print(f"{len(results)} runs, every one as it should be, in {seconds:.0f} s", highlight=False)
    return results


def smoke_jobs(data: Path) -> list[Job]:
    """Return a run for each task, each arm, and each way to cut; the files of tasks that need some are written into `data`."""
    jobs = [_job("task", name, {"task": name, **_data(name, data)}) for name in TASKS]
    jobs += [_job("reading", name, {"task": "digits", "reading": name}) for name in READINGS]
    jobs += [_job("arm", name, {"task": "digits", **values}) for name, values in ARMS.items()]
    small = {"task": "mqar", "task_options": dict(TASKS["mqar"].small), **SELECTIVE}
    jobs += [_job("method", name, {**small, "method": name}) for name in METHODS]
    cut, full = "reading complex", "arm full"
    digits = {"task": "digits"}
    return [
        *jobs,
        _job("after", "from scratch", {**digits, "arm": "from_scratch"}, sizes_of=cut),
        _job("after", "distilled", {**digits, "arm": "distilled"}, sizes_of=cut, starts_from=full),
        _job("after", "cut", {**digits, "arm": "post_training", "steps": 0}, sizes_of=cut, starts_from=full),
        _job("after", "cut and trained on", {**digits, "arm": "post_training"}, sizes_of=cut, starts_from=full),
    ]


def _job(kind: str, name: str, values: Mapping[str, Any], **waits_for: str) -> Job:
    config = make_config({"arm": "in_training", **TINY, **values})
    return Job(f"{kind} {name}", config, label=f" ({kind} {name})", **waits_for)


def _data(task: str, data: Path) -> dict[str, Any]:
    values: dict[str, Any] = {"task_options": dict(TASKS[task].small)}
    if task in WRITERS:
        folder = data / task
        write_tiny_files(task, folder)
        values["data_dir"] = str(folder)
    return values


def _check(job: Job, result: RunResult) -> None:
    config = result.config
    cut = config.arm in ("in_training", "post_training", "regularised") and config.order is not None
    if cut and result.states_after != (KEPT,):
        raise ResultError(
            f"{job.key}: the run should have ended with {KEPT} states, but has {list(result.states_after)}"
        )
