import pytest

from paper_repro.errors import ConfigurationError
from paper_repro.selection import Choice, Trial, choose, write_choice
from paper_repro.tables import graph
from paper_repro.tables.graph import Extent, finished, learning_rate, table_jobs
from paper_repro.tables.plan import read_plan
from paper_repro.workers import resolved
from tests.paper_repro.tables.runs import made_results


def test_jobs_go_seed_by_seed_and_wait_for_the_same_seed():
    jobs = table_jobs(read_plan("methods"), Extent("quick"))
    seeds = [job.config.seed for job in jobs]
    assert seeds == sorted(seeds)
    for job in jobs:
        assert all(parent.endswith(f"/{job.config.seed}") for parent in job.waits_for)
    distilled = next(job for job in jobs if job.key == "digits/distilled/1")
    assert (distilled.sizes_of, distilled.starts_from) == ("digits/in_training/1", "digits/full/1")


def test_a_part_of_a_table_has_the_parents_of_its_rows():
    jobs = table_jobs(read_plan("methods"), Extent("quick", rows=("distilled",), seeds=(3,)))
    assert [job.key for job in jobs] == ["digits/full/3", "digits/in_training/3", "digits/distilled/3"]
    with pytest.raises(ConfigurationError, match="--rows: distiled not in this table"):
        table_jobs(read_plan("methods"), Extent("quick", rows=("distiled",)))
    with pytest.raises(ConfigurationError, match="--tasks: mnist not in this table"):
        table_jobs(read_plan("methods"), Extent("quick", tasks=("mnist",)))


def test_results_are_found_by_what_their_jobs_come_to_and_by_nothing_else():
    jobs = table_jobs(read_plan("accuracy"), Extent("quick"))
    results = made_results(jobs)
    found = finished(jobs, list(results.values()))
    assert found == results
    cut, scratch = "digits/in_training/tau 0.1/0", "digits/from_scratch/tau 0.1/0"
    by_key = {job.key: job for job in jobs}
    assert resolved(by_key[scratch], results).n_states == results[cut].states_after
    without_cut = [result for key, result in results.items() if key != cut]
    assert scratch not in finished(jobs, without_cut)  # nobody knows its sizes
    other = [result.model_copy(update={"run_id": f"{result.run_id}x"}) for result in results.values()]
    assert finished(jobs, other) == {}


def test_rates_come_from_the_row_or_its_arm_and_a_missing_one_says_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(graph, "CHOICES", tmp_path)
    plan = read_plan("methods")
    cells = {cell.row.key: cell for cell in plan.cells("cpu")}
    with pytest.raises(ConfigurationError, match=r"row full .*select-lr methods --cpu --tasks digits`"):
        learning_rate(cells["full"], shared=False)
    assert learning_rate(cells["full"], shared=True) is None

    def arm(rate):
        return choose([Trial(learning_rate=rate, validation=(0.5,), states=((8,),))])

    arms = {"full": arm(1e-3), "in_training": arm(2e-3), "last": arm(3e-3)}
    write_choice(Choice(command="c", seeds=(100,), settings={}, arms=arms), tmp_path / "digits_methods.toml")
    rates = {key: learning_rate(cells[key], shared=False) for key in ("full", "last", "aire", "post_training")}
    assert rates == {"full": 1e-3, "last": 3e-3, "aire": 2e-3, "post_training": 1e-3}
    with pytest.raises(
        ConfigurationError, match=r"no learning rate for the row distilled .*--tasks digits --rows distilled`"
    ):
        learning_rate(cells["distilled"], shared=False)
