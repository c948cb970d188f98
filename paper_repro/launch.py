"""The runs of a table on other machines, through submitit: Slurm, or processes of this machine to try it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from paper_repro.configuration import RunConfig
from paper_repro.errors import ConfigurationError, ReproError
from paper_repro.finished_runs import find_usable_result
from paper_repro.progress import RunProgress
from paper_repro.results import RunResult
from paper_repro.training import RunInterruptedError, train
from paper_repro.workers import Job, resolved

if TYPE_CHECKING:
    import submitit

Cluster = Literal["slurm", "local", "debug"]
CLUSTERS: tuple[Cluster, ...] = get_args(Cluster)
LOG_FOLDER = "submitit"
SECONDS_BETWEEN_LOOKS = 1.0
MINUTES_TO_STOP = 2  # what a job has, beside its time for training, to load its data and to write its checkpoint
DEFAULT_MINUTES = 24 * 60


class TrainOnce:
    """Trains one run on the machine of a job; returns None when the time was over before the run was.

    A job that the cluster stops (its time, or a more important job) is queued again: the run goes on from its checkpoint.
    """

    def __call__(self, config: RunConfig, directory: Path, evaluate_test: bool, minutes: float) -> RunResult | None:
        """Train until the run ends or the minutes are over."""
        end = time.monotonic() + 60 * minutes
        try:
            return train(config, directory, evaluate_test=evaluate_test, should_stop=lambda: time.monotonic() >= end)
        except RunInterruptedError:
            return None

    def checkpoint(self, *arguments: Any, **keywords: Any) -> submitit.helpers.DelayedSubmission:
        """Return what is to be queued again; called by submitit where the cluster stops a job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments, **keywords)


def launch_jobs(
    jobs: Sequence[Job],
    directory: Path,
    *,
    cluster: Cluster,
    n_workers: int,
    progress: RunProgress,
    minutes: float | None = None,
    options: Mapping[str, Any] | None = None,
    evaluate_test: bool = True,
) -> dict[str, RunResult]:
    """Run every job as one job of the cluster, at most `n_workers` at a time, and return the results by key.

    A job is submitted as soon as those that it waits for have ended. All machines must see `directory` under the same path.

    Parameters
    ----------
    directory : Path
        Gets results and checkpoints, and submitit's logs in the folder ``submitit``.
    minutes : float, optional
        For each job; a run that needs more stops with its checkpoint written. Default: a day.
    options : mapping, optional
        Further parameters of submitit's executor, such as ``slurm_partition``, ``gpus_per_node``, ``cpus_per_task``.

    Raises
    ------
    RunInterruptedError
        If runs are left, because their time was over; the same command goes on.
    ReproError
        If a job failed; the message names its log.
    ConfigurationError
        If submitit is missing or refuses an option.
    """
    executor = _executor(directory, cluster, minutes, options or {})
    allowed = DEFAULT_MINUTES if minutes is None else minutes
    for job in jobs:
        progress.add(job.key, job.config, job.label)
    waiting, left = list(jobs), 0
    running: dict[str, tuple[str, submitit.Job[RunResult | None]]] = {}  # key: run id and job
    results: dict[str, RunResult] = {}
    while True:
        for job in [job for job in waiting if job.waits_for <= results.keys()]:
            config = resolved(job, results)
            finished = find_usable_result(directory, config, evaluate_test=evaluate_test)
            if finished is not None:
                waiting.remove(job)
                results[job.key] = finished
                progress.finish(job.key, finished)
            elif len(running) < n_workers and config.run_id not in {run_id for run_id, _ in running.values()}:
                waiting.remove(job)
                submitted = executor.submit(TrainOnce(), config, directory, evaluate_test, allowed)
                running[job.key] = (config.run_id, submitted)
        if not running and not any(job.waits_for <= results.keys() for job in waiting):
            break
        ended = [key for key, (_, job) in running.items() if job.done()]
        for key in ended:
            result = _result_of(running.pop(key)[1])
            if result is None:
                left += 1
            else:
                results[key] = result
                progress.finish(key, result)
        if running and not ended:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if waiting or left:
        raise RunInterruptedError(
            f"{len(waiting) + left} runs are left, for their time was over; the same command goes on"
        )
    return results


def launcher_of(
    cluster: str, directory: Path, *, n_workers: int, minutes: float | None, options: Mapping[str, Any]
) -> Callable[[Sequence[Job], RunProgress], dict[str, RunResult]]:
    """Return what runs jobs by `launch_jobs` on the cluster of that name.

    Raises
    ------
    ConfigurationError
        If there is no such cluster.
    """
    if cluster not in CLUSTERS:
        raise ConfigurationError(f"--launcher takes {', '.join(CLUSTERS)}, got {cluster!r}")
    return lambda jobs, progress: launch_jobs(
        jobs, directory, cluster=cluster, n_workers=n_workers, progress=progress, minutes=minutes, options=options
    )


def _executor(
    directory: Path, cluster: Cluster, minutes: float | None, options: Mapping[str, Any]
) -> submitit.AutoExecutor:
    try:
        import submitit
    except ImportError as error:
        raise ConfigurationError(
            "--launcher needs the package submitit: pip install submitit, or the extra [sweep] of this repository"
        ) from error
    limit = DEFAULT_MINUTES if minutes is None else minutes
    try:
        executor = submitit.AutoExecutor(folder=directory.absolute() / LOG_FOLDER, cluster=cluster)
        executor.update_parameters(name="paper_repro", timeout_min=int(limit) + MINUTES_TO_STOP, **options)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"--launcher {cluster}: {error}") from error
    return executor


def _result_of(job: submitit.Job[RunResult | None]) -> RunResult | None:
    """Return what a job that has ended returned."""
    error = job.exception()
    if error is not None:
        raise ReproError(f"job {job.job_id} failed; its log is {job.paths.stderr}\n{error}") from error
    return job.result()
