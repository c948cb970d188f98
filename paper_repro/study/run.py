"""Running the study: jobs side by side in processes of one thread, results kept as soon as they are there."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from paper_repro.study.measurements import Measurement, append_measurements, read_measurements
from paper_repro.study.plan import Job, StudyPlan, make_jobs
from paper_repro.study.work import checkpoint_path, perform
from paper_repro.training import RunInterruptedError
from paper_repro.workers import one_thread_each, should_stop, start_worker, termination_as_interrupt

SECONDS_BETWEEN_LOOKS = 0.5


def run_study(
    plan: StudyPlan, *, results: Path, directory: Path, n_workers: int, console: Console
) -> list[Measurement]:
    """Do everything of `plan` that is not in the file `results` yet, and return all its measurements.

    Parameters
    ----------
    plan : StudyPlan
    results : Path
        Gets a line for each measurement, as soon as its job is done.
    directory : Path
        For the checkpoints of the full models; a full model whose checkpoints are missing is trained again.
    n_workers : int
    console : Console

    Raises
    ------
    RunInterruptedError
        After an interrupt from the keyboard or a termination; the same call goes on.
    """
    jobs = make_jobs(plan)
    known = {measurement.key for measurement in read_measurements(results)}
    open_jobs = _open_jobs(jobs, known, directory)
    console.print(
        f"{len(jobs)} jobs, {len(jobs) - len(open_jobs)} done already; the results go to {results}", highlight=False
    )
    if open_jobs:
        _run(open_jobs, results, directory, n_workers, console)
    wanted = frozenset().union(*(job.keys for job in jobs))
    return [measurement for measurement in read_measurements(results) if measurement.key in wanted]


def _open_jobs(jobs: Sequence[Job], known: set[str], directory: Path) -> list[Job]:
    """Return the jobs to do: those with a measurement missing, and full runs whose checkpoints one of them needs."""
    missing = [job for job in jobs if not job.keys <= known]
    needed = {
        job.config.run_id
        for job in missing
        if job.needs_full and not checkpoint_path(directory, job.config, job.point).is_file()
    }
    return [job for job in jobs if job in missing or (job.kind == "full" and job.config.run_id in needed)]


def _run(jobs: Sequence[Job], results: Path, directory: Path, n_workers: int, console: Console) -> None:
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    with (
        one_thread_each(),
        termination_as_interrupt(),
        ProcessPoolExecutor(
            min(n_workers, len(jobs)), mp_context=context, initializer=start_worker, initargs=(messages, stop)
        ) as pool,
    ):
        try:
            _run_all(jobs, results, directory, pool, n_workers, console)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise RunInterruptedError("stopped; the same command goes on from here") from None
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _run_all(
    jobs: Sequence[Job], results: Path, directory: Path, pool: ProcessPoolExecutor, n_workers: int, console: Console
) -> None:
    """Start jobs in their order, as soon as a process is free and the full run that they need is there."""
    waiting, running = list(jobs), dict[Future[list[Measurement]], Job]()
    training = {job.config.run_id for job in jobs if job.kind == "full"}
    start, done_jobs = time.monotonic(), 0
    while waiting or running:
        ready = (job for job in list(waiting) if not (job.needs_full and job.config.run_id in training))
        while len(running) < n_workers and (job := next(ready, None)) is not None:
            waiting.remove(job)
            running[pool.submit(_work, job, directory)] = job
        done, _ = concurrent.futures.wait(running, SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED)
        for future in done:
            job = running.pop(future)
            append_measurements(results, future.result())
            if job.kind == "full":
                training.discard(job.config.run_id)
            done_jobs += 1
            minutes = (time.monotonic() - start) / 60
            console.print(f"{done_jobs} of {len(jobs)}, {minutes:.1f} min: {job.describe()}", highlight=False)


def _work(job: Job, directory: Path) -> list[Measurement]:
    return perform(job, directory, should_stop)
