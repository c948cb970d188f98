import io

import pytest
from rich.console import Console

from paper_repro.errors import ConfigurationError
from paper_repro.progress import RunProgress
from paper_repro.results import read_results
from paper_repro.selection import choose
from paper_repro.tables.graph import Extent, finished, ordered, table_jobs
from paper_repro.tables.plan import TablePlan, read_plan
from paper_repro.tables.rates import choose_for_table, rows_to_choose, select_rates
from paper_repro.tables.run import TimeBudget, run_table
from paper_repro.training import train
from paper_repro.workers import resolved

QUICK = Extent("quick")


def small_plan(**values):
    """A table of the digits that takes seconds."""
    task = {
        "preset": "digits",
        "seeds": [0],
        "values": {"steps": 24, "evaluate_every": 8, "n_states": 12, "order": 6, "batch_size": 20, "window": [0.0, 0.5]},
        **values,
    }  # fmt: skip
    rows = [
        {"key": "full", "label": "full", "arm": "full"},
        {"key": "in_training", "label": "cut", "arm": "in_training"},
        {"key": "from_scratch", "label": "from scratch", "arm": "from_scratch", "sizes_of": "in_training"},
        {"key": "post", "label": "after", "arm": "post_training", "values": {"steps": 0}, "sizes_of": "in_training", "starts_from": "full", "rate_of": "full"},
    ]  # fmt: skip
    return TablePlan.model_validate(
        {"name": "small", "number": 99, "title": "t", "about": "a", "source": "s", "rows": rows, "variants": {"quick": [task]}}
    )  # fmt: skip


def run_here(jobs, directory, *, n_workers, progress, evaluate_test=True, time_is_over=None):
    """Do what `run_jobs` does in this process: new ones take seconds to begin."""
    results = {}
    for job in ordered(jobs):
        results[job.key] = train(resolved(job, results), directory, evaluate_test=evaluate_test)
    return results


@pytest.fixture
def here(monkeypatch):
    for module in ("run", "rates"):
        monkeypatch.setattr(f"paper_repro.tables.{module}.run_jobs", run_here)


def console():
    return Console(file=io.StringIO(), width=160)


def test_a_table_stops_when_the_time_is_over(tmp_path):
    said = console()
    assert not run_table(small_plan(), QUICK, tmp_path, console=said, budget=TimeBudget(0.0))
    assert "4 runs are left, and the same command goes on" in said.file.getvalue()
    assert not read_results(tmp_path)


def test_a_table_is_run_once_with_what_its_rows_need_of_each_other(tmp_path, here):
    plan = small_plan()
    assert run_table(plan, QUICK, tmp_path, console=console(), budget=TimeBudget(None))
    results = read_results(tmp_path)
    found = finished(table_jobs(plan, QUICK), results)
    assert len(found) == len(results) == 4
    assert found["digits/from_scratch/0"].states_before == found["digits/in_training/0"].states_after == (6,)
    assert found["digits/post/0"].states_after == (6,)
    again = console()
    assert run_table(plan, QUICK, tmp_path, console=again, budget=TimeBudget(None))
    assert "4 runs, 4 of them finished" in again.file.getvalue()
    assert len(read_results(tmp_path)) == 4


def test_every_row_gets_the_best_of_the_same_rates_by_validation_alone(tmp_path, here):
    plan = small_plan()
    [task] = plan.tasks("quick")
    with RunProgress(console()) as progress:
        choice = select_rates(
            plan, QUICK, task, rates=[1e-5, 1e-2], seeds=[100], directory=tmp_path, n_workers=1, progress=progress, command="c"
        )  # fmt: skip
    assert list(choice.arms) == ["full", "in_training", "from_scratch"]  # the last row takes a rate
    results = read_results(tmp_path)
    assert len(results) == 6
    assert all(result.test_accuracy is None for result in results)
    for name, arm in choice.arms.items():
        assert [trial.learning_rate for trial in arm.tried] == [1e-5, 1e-2]
        assert arm == choose(arm.tried)
        expected = {r.config.learning_rate: r.best.accuracy for r in results if r.config.arm == name}
        assert {trial.learning_rate: trial.validation[0] for trial in arm.tried} == expected
    other = small_plan(values={**task.values, "steps": 25})
    with pytest.raises(ConfigurationError, match="other settings"), RunProgress(console()) as progress:
        select_rates(
            other, QUICK, other.tasks("quick")[0], rates=[1e-2], seeds=[100], directory=tmp_path, n_workers=1, progress=progress, command="c", earlier=choice,
        )  # fmt: skip


def test_rates_are_not_chosen_with_seeds_that_are_reported_nor_for_rows_that_take_one(tmp_path):
    plan = small_plan()
    [task] = plan.tasks("quick")
    with pytest.raises(ConfigurationError, match=r"seeds \[0\] are those that the table reports"), RunProgress(console()) as progress:  # fmt: skip
        select_rates(plan, QUICK, task, rates=[1e-2], seeds=[0], directory=tmp_path, n_workers=1, progress=progress, command="c")  # fmt: skip
    keys = [
        cell.row.key
        for cell in rows_to_choose(read_plan("methods"), Extent("cpu"), read_plan("methods").tasks("cpu")[0])
    ]
    assert "in_training" in keys
    assert "post_training" not in keys
    swept = rows_to_choose(read_plan("sweep"), Extent("cpu"), read_plan("sweep").tasks("cpu")[0])
    assert [cell.at for cell in swept if cell.row.key == "distilled"] == [0.2]
    with pytest.raises(ConfigurationError, match="no task of table small --quick has a file of choices"):
        choose_for_table(plan, QUICK, rates=[1e-2], seeds=[100], directory=tmp_path, n_workers=1, console=console(), command="c")  # fmt: skip
