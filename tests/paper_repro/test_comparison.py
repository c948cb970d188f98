import pytest

from paper_repro.comparison import best_of_words, findings, group_runs, make_arm
from paper_repro.configuration import make_config, read_preset
from paper_repro.errors import ResultError
from paper_repro.results import (
    Evaluation,
    Provenance,
    RunResult,
    States,
    Timing,
    append_result,
    find_result,
    read_results,
)


def make_run(arm, seed, accuracy, states=(64, 8), step=(4e-3, 3e-3), reductions=0.1, **values):
    config = make_config({**read_preset("digits"), "arm": arm, "seed": seed, **values})
    before, after = states
    layer = {
        "layer": "ssm", "outcome": "cut", "n_states_before": before, "n_states_after": after, "n_states_chosen": after,
        "hankel_singular_values": None, "error_bound": 1.0, "eigenvector_condition": 1.0, "reason": None, "notes": [],
        "drift": None,
    }  # fmt: skip
    event = {"attempt": 1, "step": 300, "layers": [layer], "seconds": reductions}
    history = {"initial_sizes": {"ssm": before}, "events": [event], "total_steps": 3000, "steps": 3000}
    return RunResult(
        run_id=config.run_id,
        config=config,
        provenance=Provenance(
            commits=("abc",), code_digests=("d",), versions={}, device="x", threads=1, started="now", command="c"
        ),
        timing=Timing(
            warm_up=1.0, wall=11.0, training=10.0, reductions=reductions, step_before=step[0], step_after=step[1]
        ),
        states_before=(before,),
        states_after=(after,),
        n_parameters_before=1000,
        n_parameters_after=500,
        best=Evaluation(step=3000, accuracy=accuracy, loss=0.3),
        test_accuracy=accuracy,
        validations=(),
        states=(States(step=0, states=(before,)), States(step=300, states=(after,))),
        spectra=(),
        history=history if arm == "in_training" else None,
    )


def make_arms(cut, scratch, full=(0.97, 0.97, 0.97), **values):
    return (
        make_arm([make_run("full", seed, value, (64, 64)) for seed, value in enumerate(full)]),
        make_arm([make_run("in_training", seed, value, **values) for seed, value in enumerate(cut)]),
        make_arm([make_run("from_scratch", seed, value, (8, 8)) for seed, value in enumerate(scratch)]),
    )


def said(cut, scratch, **values):
    full, cut, scratch = make_arms(cut, scratch, **values)
    return " ".join(sentence for group in findings(full, [(cut, scratch)]).values() for sentence in group)


def test_the_sentences_follow_the_numbers_both_ways():
    better = said([0.93, 0.94, 0.95], [0.90, 0.91, 0.92])
    assert "94.0 ± 1.0 %" in better
    assert "3.0 points more for the cut models, ahead in 3 of 3 seeds" in better
    worse = said([0.90, 0.91, 0.92], [0.93, 0.94, 0.95])
    assert "3.0 points less for the cut models, ahead in 0 of 3 seeds" in worse
    assert "too much to be sure" in said([0.90, 0.95, 0.92], [0.93, 0.91, 0.92])


@pytest.mark.parametrize(
    ("step", "words"),
    [((4e-3, 2e-3), "2.00 times as fast"), ((2e-3, 2.02e-3), "no gain"), ((2e-3, 3e-3), "slower, by a factor of 1.50")],
)
def test_speed_is_said_as_it_is(step, words):
    assert words in said([0.9] * 3, [0.9] * 3, step=step)


@pytest.mark.parametrize(("reductions", "words"), [(0.1, "1.00%: below the 2%"), (0.5, "5.00%: NOT below the 2%")])
def test_reductions_that_cost_too_much_are_said(reductions, words):
    assert words in said([0.9] * 3, [0.9] * 3, reductions=reductions)


def test_a_row_has_sizes_seed_by_seed_only_where_they_differ():
    runs = [make_run("in_training", seed, 0.9, (64, 8 + seed % 2)) for seed in range(3)]
    assert make_arm(runs).cells()["states a layer"] == "64 → 8 9 8"
    assert make_arm(runs[::2]).cells()["states a layer"] == "64 → 8"


def test_runs_are_grouped_by_everything_but_the_seed_and_sizes_that_follow_it():
    cut = [make_run("in_training", seed, 0.9, tau=tau) for tau in (0.1, 0.2) for seed in (0, 1)]
    scratch = [
        make_run("from_scratch", run.config.seed, 0.8, (n, n), n_states=n, sizes_of=run.run_id, tau=run.config.tau)
        for n, run in enumerate(cut, start=5)
    ]
    alone = [make_run("from_scratch", 0, 0.8, (n, n), n_states=n) for n in (3, 4)]
    assert [len(arm.runs) for arm in group_runs([*cut, *scratch, *alone])].count(2) == 4
    assert len(group_runs(alone)) == 2
    with pytest.raises(ResultError, match="no finished run"):
        group_runs([])


def test_the_mean_of_the_best_seeds_stands_beside_the_mean_of_all():
    runs = [make_run("full", seed, accuracy) for seed, accuracy in enumerate([0.5, 0.9, 0.7, 0.8])]
    assert best_of_words(make_arm(runs)) == "full: 80.0 % for the best 3 of 4 seeds, 72.5 % for all"
    assert best_of_words(make_arm(runs[:3])) is None


def test_results_are_lines_of_which_the_latest_of_a_run_counts(tmp_path):
    first, other, second = make_run("full", 0, 0.5), make_run("full", 1, 0.6), make_run("full", 0, 0.7)
    for run in (first, other, second):
        append_result(tmp_path, run)
    assert read_results(tmp_path) == [other, second]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"run_id": 3}\n')
    with pytest.raises(ResultError, match="line 4: not a result"):
        read_results(tmp_path)


def test_half_a_line_takes_no_other_result_with_it_and_reading_says_what_to_do(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_bytes('{"run_id": "half of ü'.encode()[:-1])  # half of a character, too
    run = make_run("full", 0, 0.5)
    append_result(tmp_path, run)
    append_result(tmp_path, make_run("full", 1, 0.6))
    assert find_result(tmp_path, run.run_id) == run
    with pytest.raises(
        ResultError, match=r"results\.jsonl, line 1 is damaged or half-written .*remove the line and repeat"
    ):
        read_results(tmp_path)
    file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[1:]))
    assert read_results(tmp_path) == [run, make_run("full", 1, 0.6)]
