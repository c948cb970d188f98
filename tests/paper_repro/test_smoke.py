import io

from rich.console import Console

from paper_repro.configuration import ARMS
from paper_repro.methods import METHODS, READINGS
from paper_repro.smoke import run_smoke, smoke_jobs
from paper_repro.tasks import TASKS, load_dataset
from paper_repro.tiny_files import WRITERS, write_tiny_files


def test_every_task_and_every_method_runs(tmp_path):
    text = io.StringIO()
    results = run_smoke(tmp_path, n_workers=1, console=Console(file=text))
    assert {f"task {name}" for name in TASKS} <= results.keys()
    assert {f"reading {name}" for name in READINGS} <= results.keys()
    assert {f"method {name}" for name in METHODS} <= results.keys()
    assert {result.config.arm for result in results.values()} == set(ARMS)
    assert all(result.test_accuracy is not None for result in results.values())
    assert f"{len(results)} runs, every one as it should be" in text.getvalue()


def test_tiny_files_are_read_as_the_true_ones(tmp_path):
    for task in WRITERS:
        write_tiny_files(task, tmp_path / task)
        dataset = load_dataset(task, tmp_path / task, dict(TASKS[task].small))
        assert all(len(part) for part in (dataset.train, dataset.validation, dataset.test))


def test_jobs_have_one_name_each(tmp_path):
    keys = [job.key for job in smoke_jobs(tmp_path)]
    assert len(set(keys)) == len(keys)
