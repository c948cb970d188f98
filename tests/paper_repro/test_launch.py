import io
import os
import types

import pytest
from rich.console import Console

from paper_repro.errors import ConfigurationError, ReproError
from paper_repro.launch import TrainOnce, _result_of, launch_jobs, launcher_of
from paper_repro.progress import RunProgress
from paper_repro.results import read_results
from paper_repro.training import RunInterruptedError
from paper_repro.workers import Job

submitit = pytest.importorskip("submitit", reason="the sweep over machines needs the extra [sweep]")


def jobs_of(small_config):
    return [
        Job("cut", small_config(arm="in_training", tau=0.3, window=[0.0, 0.5])),
        Job("same cut", small_config(arm="in_training", tau=0.3, window=[0.0, 0.5])),
        Job("scratch", small_config(arm="from_scratch"), sizes_of="cut"),
    ]


class Here:
    """An executor that runs what is submitted at once; submitit's own for tests leaves its logs open."""

    def submit(self, function, *arguments):
        result = function(*arguments)
        return types.SimpleNamespace(done=lambda: True, exception=lambda: None, result=lambda: result)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("paper_repro.launch._executor", lambda *_: Here())


def launch(jobs, directory, cluster="debug", **values):
    with RunProgress(Console(file=io.StringIO())) as progress:
        return launch_jobs(jobs, directory, cluster=cluster, n_workers=2, progress=progress, **values)


def test_jobs_of_a_cluster_wait_for_each_other_and_are_found_again(small_config, tmp_path, here):
    results = launch(jobs_of(small_config), tmp_path)
    assert results["scratch"].states_before == results["cut"].states_after
    assert results["cut"] == results["same cut"]
    assert len(read_results(tmp_path)) == 2
    assert launch(jobs_of(small_config), tmp_path) == results
    assert len(read_results(tmp_path)) == 2


def test_a_run_whose_minutes_are_over_goes_on_when_it_is_launched_again(small_config, tmp_path, here):
    jobs = jobs_of(small_config)
    with pytest.raises(RunInterruptedError, match="3 runs are left"):
        launch(jobs[:1] + jobs[2:] + jobs[1:2], tmp_path, minutes=0)
    assert not read_results(tmp_path)
    assert (tmp_path / jobs[0].config.run_id / "checkpoint.safetensors").is_file()
    assert len(launch(jobs, tmp_path)) == 3


class FailedJob:
    """What submitit gives for a job that raised; its own executor for tests would ask a debugger."""

    job_id = "17"
    paths = types.SimpleNamespace(stderr="/logs/17_0_log.err")

    def exception(self):
        return submitit.core.utils.FailedJobError("batch_size must be in [1, 1085]")


def test_a_job_that_fails_says_where_its_log_is():
    with pytest.raises(ReproError, match=r"job 17 failed; its log is /logs/17_0_log.err\nbatch_size must be"):
        _result_of(FailedJob())


def test_a_job_that_is_stopped_is_queued_again_as_it_was(small_config, tmp_path):
    again = TrainOnce().checkpoint(small_config(), tmp_path, True, 5.0)
    assert isinstance(again.function, TrainOnce)
    assert again.args == (small_config(), tmp_path, True, 5.0)


def test_what_there_is_not_is_said(monkeypatch, tmp_path):
    with pytest.raises(ConfigurationError, match="slurm, local, debug, got 'ray'"):
        launcher_of("ray", tmp_path, n_workers=1, minutes=None, options={})
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ConfigurationError, match="--launcher slurm: "):
        launch([], tmp_path, "slurm")
    with pytest.raises(ConfigurationError, match=r"--launcher debug: .*gpu_kind"):
        launch([], tmp_path, "debug", options={"gpu_kind": 3})


@pytest.mark.slow  # a process that imports everything, for each job
def test_processes_of_this_machine_stand_for_a_cluster(small_config, tmp_path):
    results = launch(jobs_of(small_config), tmp_path, "local", options={"cpus_per_task": 1})
    assert results["scratch"].states_before == results["cut"].states_after
