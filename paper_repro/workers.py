"""Several runs at once, one process each, some of which wait for what another one ends with: its sizes, or its best model."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from paper_repro.configuration import ARMS_WITH_A_RULE, RunConfig
from paper_repro.finished_runs import find_usable_result
from paper_repro.progress import RunProgress
from paper_repro.results import RunResult
from paper_repro.training import RunInterruptedError, train

# Libraries that start a thread a core would let the workers fight over the cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
SECONDS_BETWEEN_LOOKS = 0.1

_messages: Any = None
_stop: Event | None = None


@dataclass(frozen=True)
class Job:
    """One run, which may wait for others, named by their keys.

    Attributes
    ----------
    key : str
    config : RunConfig
    sizes_of : str or None
        The job that says how many states: with how many it ended, this one starts; or, in an arm that cuts by a rule, to so many it is cut.
    label : str
    starts_from : str or None
        The job whose best model is cut, or teaches.
    """

    key: str
    config: RunConfig
    sizes_of: str | None = None
    label: str = ""
    starts_from: str | None = None

    @property
    def waits_for(self) -> frozenset[str]:
        """Keys of the jobs that must have ended before."""
        return frozenset(key for key in (self.sizes_of, self.starts_from) if key is not None)


def resolved(job: Job, results: Mapping[str, RunResult]) -> RunConfig:
    """Return the configuration of `job` once the jobs that it waits for have the given `results`."""
    config = job.config
    if job.sizes_of is not None:
        earlier = results[job.sizes_of]
        config = (
            config.with_values(order=earlier.states_after, tau=None, budget=None, sizes_of=earlier.run_id)
            if config.arm in ARMS_WITH_A_RULE
            else config.with_values(n_states=earlier.states_after, sizes_of=earlier.run_id)
        )
    if job.starts_from is not None:
        config = config.with_values(starts_from=results[job.starts_from].run_id)
    return config


def run_jobs(
    jobs: Sequence[Job],
    directory: Path,
    *,
    n_workers: int,
    progress: RunProgress,
    evaluate_test: bool = True,
    time_is_over: Callable[[], bool] | None = None,
) -> dict[str, RunResult]:
    """Run every job, at most `n_workers` at a time and one thread each, and return the results by key.

    An interrupt from the keyboard or a termination stops all runs at their next step, with their checkpoints written, and so does `time_is_over`
    when it returns True.

    Raises
    ------
    RunInterruptedError
        After such a stop.
    ValueError
        If `n_workers` is below 1, or a job waits for one that is not there.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, got {n_workers}")
    missing = {key for job in jobs for key in job.waits_for} - {job.key for job in jobs}
    if missing:
        raise ValueError(f"jobs wait for {sorted(missing)}, which are not among the jobs")
    for job in jobs:
        progress.add(job.key, job.config, job.label)
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
            return _run_all(jobs, directory, pool, messages, progress, evaluate_test, time_is_over or (lambda: False))
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise RunInterruptedError("stopped; the same command goes on from here") from None
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _run_all(
    jobs: Sequence[Job],
    directory: Path,
    pool: ProcessPoolExecutor,
    messages: Any,
    progress: RunProgress,
    evaluate_test: bool,
    time_is_over: Callable[[], bool],
) -> dict[str, RunResult]:
    waiting = list(jobs)
    running: dict[Future[RunResult], str] = {}
    in_progress: dict[str, str] = {}  # run id of each key that is running
    results: dict[str, RunResult] = {}
    steps = {job.key: job.config.steps for job in jobs}
    while waiting or running:
        for job in [job for job in waiting if job.waits_for <= results.keys()]:
            config = resolved(job, results)
            if config.run_id in in_progress.values():  # two jobs may come to one run: the second finds its result
                continue
            waiting.remove(job)
            finished = find_usable_result(directory, config, evaluate_test=evaluate_test)
            if finished is not None:  # no process needs to start for it
                results[job.key] = finished
                progress.finish(job.key, finished)
            else:
                running[pool.submit(_work, job.key, config, directory, evaluate_test)] = job.key
                in_progress[job.key] = config.run_id
        if time_is_over():
            raise KeyboardInterrupt
        done, _ = concurrent.futures.wait(running, SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED)
        for key, step, note in _drain(messages):
            if key not in results:
                progress.update(key, step, steps[key], note)
        for future in done:
            key = running.pop(future)
            results[key] = future.result()
            del in_progress[key]
            progress.finish(key, results[key])
    return {job.key: results[job.key] for job in jobs}


def _drain(messages: Any) -> Iterator[tuple[str, int, str]]:
    while True:
        try:
            yield messages.get_nowait()
        except queue.Empty:
            return


def start_worker(messages: Any, stop: Event) -> None:
    """Get a new process ready: one thread, deaf to signals that the parent hears."""
    global _messages, _stop
    _messages, _stop = messages, stop
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent hears it and sets `stop`
    torch.set_num_threads(1)


def should_stop() -> bool:
    """Say whether the parent of this process has asked it to stop, or is gone."""
    parent = multiprocessing.parent_process()
    assert _stop is not None
    return _stop.is_set() or (parent is not None and os.getppid() != parent.pid)  # nobody waits for orphans


def _work(key: str, config: RunConfig, directory: Path, evaluate_test: bool) -> RunResult:
    return train(
        config,
        directory,
        evaluate_test=evaluate_test,
        progress=lambda step, note: _messages.put((key, step, note)),
        should_stop=should_stop,
    )


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Turn a termination into an interrupt from the keyboard, in the main thread."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Set the variables that the libraries of new processes read, and put them back."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
