import json

import pytest
from matplotlib.collections import LineCollection

from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.provenance import plain_command
from paper_repro.ranking import read_rankings
from paper_repro.results import append_result
from paper_repro.selection import Choice, Trial, choose, write_choice
from paper_repro.tables import graph, pictures
from paper_repro.tables.claims import CLAIMS, claim_words
from paper_repro.tables.collected import (
    RESULTS,
    SPECTRA_KEPT,
    collect,
    collected_path,
    collected_variants,
    read_collected,
)
from paper_repro.tables.graph import Extent, table_jobs
from paper_repro.tables.page import fill_page
from paper_repro.tables.plan import plan_names, read_plan
from paper_repro.tables.show import kept_figures
from paper_repro.tables.summary import make_grid
from paper_repro.tasks import load_dataset
from paper_repro.training import train
from tests.paper_repro.tables.runs import made_results

SHARED = Extent("cpu", shared_rate=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of results of every table, made from results that no run has made."""
    runs, results = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("results")
    seen = set()
    for plan in map(read_plan, plan_names()):
        for result in made_results(table_jobs(plan, SHARED)).values():
            if result.run_id not in seen:
                seen.add(result.run_id)
                append_result(runs, result)
    for plan in map(read_plan, plan_names()):
        collect(plan, SHARED, runs, results)
    return results


def test_what_is_kept_makes_the_same_table_without_its_bulk(kept):
    plan = read_plan("methods")
    path = collected_path(plan, "cpu", kept)
    head, results = read_collected(path)
    assert (head.table, head.variant, head.shared_rate) == ("methods", "cpu", True)
    assert head.command == "python -m paper_repro run methods --cpu --shared-rate"
    assert collected_variants(plan, kept) == ["cpu"]
    figures = kept_figures(plan, "cpu", kept)
    jobs = table_jobs(plan, SHARED)
    assert figures.n_runs == (len(jobs), len(jobs))
    accuracies = {key: result.test_accuracy for key, result in made_results(jobs).items()}
    for row in figures.rows:
        assert row.accuracy_by_seed == {seed: accuracies[f"{row.cell.key}/{seed}"] for seed in range(5)}
    for result in results:
        assert result.provenance.command == "python -m paper_repro run methods --cpu"
        steps = {spectrum.step for spectrum in result.spectra}
        assert len(steps) == (SPECTRA_KEPT if result.config.seed == 0 and result.config.steps else len(steps))
        assert not result.spectra or result.config.seed == 0
    assert json.loads(path.read_text().splitlines()[1])["spectra"][0]["values"][0] == 1.23457


def test_nothing_finished_and_spoilt_files_are_said(tmp_path):
    plan = read_plan("accuracy")
    with pytest.raises(ResultError, match="has no finished run of table accuracy --quick"):
        collect(plan, Extent("quick"), tmp_path)
    path = collected_path(plan, "quick", tmp_path)
    with pytest.raises(ResultError, match="collect"):
        read_collected(path)
    path.write_text('{"table": 3}\n')
    with pytest.raises(ResultError, match="not a file of results"):
        read_collected(path)


def check_pictures(paths):
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "test accuracy" in text or "Hankel singular value" in text
        assert pictures.INK in text


def figures_with(tmp_path, name, change):
    return kept_figures(read_plan(name), "cpu", keep(tmp_path, name, change))


def test_no_axis_of_accuracies_and_no_bar_goes_beyond_100_percent(tmp_path):
    def change(key, result):
        return result.model_copy(update={"test_accuracy": 1 - 0.03 * (result.config.seed % 2)})

    for name, draw in (("methods", pictures.accuracy_of_rows), ("mamba", pictures.step_time_and_accuracy)):
        picture = draw(figures_with(tmp_path / name, name, change), "digits" if name == "methods" else "mqar")
        axes = picture.figure.axes[-1]
        index = 0 if name == "methods" else 1
        assert (axes.get_xlim(), axes.get_ylim())[index][1] <= 100
        ends = [point[index] for bars in axes.collections if isinstance(bars, LineCollection) for path in bars.get_segments() for point in path]  # fmt: skip
        assert max(ends) == pytest.approx(100)
        assert "bars: 95 % interval of the mean, cut off at 100 %; open marks: single seeds" in picture.caption


def test_a_caption_says_what_is_drawn_and_nothing_else(tmp_path):
    picture = pictures.step_time_and_accuracy(figures_with(tmp_path, "mamba", lambda key, result: None if result.config.seed > 1 else result), "mqar")  # fmt: skip
    assert "bars" not in picture.caption  # of two seeds
    assert picture.caption.startswith("Table 6, mqar, over the states of a layer at the end (logarithmic). Left: milliseconds of a step")  # fmt: skip
    assert picture.title == "Milliseconds a step, and test accuracy, over states, mqar: full, cut in training, from scratch"  # fmt: skip


def test_spectra_have_one_for_each_size_though_no_validation_came_between_the_cuts(tmp_path, small_config):
    config = small_config(arm="in_training", order=4, gradual=True, tau=None, attempts=3, window=(0.0, 0.5), evaluate_every=40)  # fmt: skip
    run = train(config, tmp_path, dataset=load_dataset("digits"))
    assert {len(spectrum.values) for spectrum in run.spectra} == {12, 4}
    spectra = pictures.spectra_of_sizes(run)
    assert [len(spectrum.values) for spectrum in spectra] == list(dict.fromkeys(states.states[0] for states in run.states))  # fmt: skip
    assert len(spectra) == 4
    assert [spectrum.step for spectrum in spectra] == [7, 13, 20, 40]


def test_the_legend_of_the_changes_stands_above_the_lines():
    figure = pictures.changes_and_bounds(read_rankings(RESULTS / "ranking.json")).figure
    figure.draw_without_rendering()
    [legend], [axes] = figure.legends, figure.axes
    assert axes.get_legend() is None
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1


def test_a_page_has_captions_under_its_pictures_and_refuses_pictures_without(kept, tmp_path):
    [path] = pictures.draw_all(tmp_path / "images/reproduction", "svg", kept, tables=["ablations"])
    page = tmp_path / "page.md"
    page.write_text("<!-- results: pictures ablations cpu -->\n<!-- end of results -->\n", encoding="utf-8")
    fill_page(page, kept)
    filled = page.read_text(encoding="utf-8")
    assert "![Test accuracy of each row, digits: full; balanced truncation, complex; " in filled
    assert "](images/reproduction/ablations_cpu_digits_rows.svg)\n\n*Table 4, digits: test accuracy of each row; filled marks: means of the seeds; bars: 95 % interval of the mean; open marks: single seeds.*\n" in filled  # fmt: skip
    path.write_text("<svg></svg>", encoding="utf-8")
    with pytest.raises(
        ResultError, match=r"digits_rows\.svg has no caption; draw it again with `python -m paper_repro figures --into "
    ):
        fill_page(page, kept)


@pytest.mark.slow  # a second a picture
def test_every_table_has_its_pictures(kept, tmp_path):
    drawn = pictures.draw_all(tmp_path, "svg", kept)
    names = {path.name for path in drawn}
    assert {f"{name}_cpu" for name in plan_names()} == {"_".join(name.split("_")[:2]) for name in names}
    assert {"accuracy_cpu_digits_spectra.svg", "methods_cpu_digits_time.svg", "mamba_cpu_mqar_states.svg"} <= names
    check_pictures(drawn)


def test_a_table_has_its_pictures_and_nothing_is_drawn_from_nothing(kept, tmp_path):
    drawn = pictures.draw_all(tmp_path, "svg", kept, tables=["ablations"])
    assert [path.name for path in drawn] == ["ablations_cpu_digits_rows.svg"]
    check_pictures(drawn)
    assert not pictures.draw_all(tmp_path, "svg", tmp_path / "nothing")


def test_sentences_have_the_numbers_of_the_results(kept):
    words = claim_words("in_training", kept)
    # .94 against .90 and .95, for every seed alike
    assert "- Table 1, digits, tau 0.1, 17 states, rate 0.008: 94.4 ± 0.4 %, from scratch 90.4 ± 0.4 % (+4.0 ± 0.0 (5)), full 95.4 ± 0.4 % (-1.0 ± 0.0 (5))." in words  # fmt: skip
    assert "regularised by dense eigenvalues, then cut, rate 0.008: 40.0 times the training time" in claim_words(
        "regularisation", kept
    )
    speed = claim_words("speed", kept)
    assert "training 2.00 times as fast as the full model (between runs, paired by seed); a step 4.0 ms before the first cut and 2.0 ms after the last, 2.00 times as fast (within a run, median of 5 seeds)" in speed  # fmt: skip
    assert "16 cuts" in claim_words("cuts", kept)
    assert "16 cuts" not in claim_words("windows", kept)
    assert "the largest values dropped" in claim_words("criteria", kept)


def keep(directory, name, change, extent=SHARED):
    """Keep the results of a table that no run has made, each as `change` returns it; what is None was not run."""
    changed = [change(key, result) for key, result in made_results(table_jobs(read_plan(name), extent)).items()]
    for result in {result.run_id: result for result in changed if result is not None}.values():
        append_result(directory / "runs", result)
    collect(read_plan(name), extent, directory / "runs", directory / "results")
    return directory / "results"


def with_times(result, **times):
    return result.model_copy(update={"timing": result.timing.model_copy(update=times)})


def test_the_gain_of_a_step_is_within_a_run_and_not_between_runs_of_a_drifting_machine(tmp_path):
    def change(key, result):
        if "/full/" in key or not key.startswith("mqar"):  # the steps of the full model, of a busy hour
            return with_times(result, step_before=12.4e-3, step_after=12.4e-3)
        slower = 1 + 0.5 * result.config.seed
        return with_times(result, step_before=8e-3 * slower, step_after=5e-3 * slower)

    [line] = [line for line in claim_words("speed", keep(tmp_path, "mamba", change)).splitlines() if "mqar, 64 to 8" in line]  # fmt: skip
    assert "a step 16.0 ms before the first cut and 10.0 ms after the last, 1.60 times as fast (within a run" in line


def test_two_seeds_are_said_one_by_one_and_what_was_not_run_is_a_whole_sentence(tmp_path):
    def change(key, result):
        seed = result.config.seed
        if seed > 1 or key.startswith("mqar") or "/from_scratch/" in key:
            return None
        return result.model_copy(update={"test_accuracy": result.test_accuracy - 0.1 * seed})

    results = keep(tmp_path, "mamba", change)
    [line] = claim_words("in_training", results).splitlines()
    assert line == "- Table 6, selective_copying, 8 states, rate 0.01: 94.0 and 84.2 %, from scratch not run, full 95.0 and 85.2 % (-1.0 and -1.0 (2))."  # fmt: skip


def test_claims_name_the_rates_of_rows_that_are_compared(tmp_path, monkeypatch):
    choose_rates(monkeypatch, tmp_path, "digits", full=4e-3, in_training=8e-3, from_scratch=16e-3)
    extent = Extent("cpu", tasks=("digits",))
    results = keep(tmp_path, "accuracy", lambda key, result: result, extent)
    assert "17 states, rate 0.008 (from scratch 0.016, full 0.004):" in claim_words("in_training", results)
    rates = {row[1]: row[2] for row in make_grid(kept_figures(read_plan("accuracy"), "cpu", results)).rows if row[0] == "digits"}  # fmt: skip
    assert rates == {"full": "0.004", "cut in training, tau 0.1": "0.008", "from scratch, tau 0.1": "0.016"}


def choose_rates(monkeypatch, directory, name, **rates):
    """Make a file of choices, the only one that there is; return it."""
    arms = {key: choose([Trial(learning_rate=rate, validation=(0.5,), states=((8,),))]) for key, rate in rates.items()}
    choice = Choice(command=f"python -m paper_repro select-lr {name}", seeds=(100,), settings={}, arms=arms)
    write_choice(choice, directory / f"{name}.toml")
    monkeypatch.setattr(graph, "CHOICES", directory)
    return directory / f"{name}.toml"


def runs_of(figures, task):
    return [dict(row.runs) for row in figures.rows if row.cell.task.name == task]


def test_what_is_kept_is_shown_though_the_rates_of_its_task_are_not_chosen(tmp_path, monkeypatch):
    path = choose_rates(monkeypatch, tmp_path, "digits", full=4e-3, in_training=8e-3, from_scratch=16e-3)
    extent, plan = Extent("cpu", tasks=("digits",)), read_plan("accuracy")
    results = keep(tmp_path, "accuracy", lambda key, result: result, extent)
    before = runs_of(kept_figures(plan, "cpu", results), "digits")
    assert list(map(len, before)) == [5, 5, 5]
    path.unlink()
    figures = kept_figures(plan, "cpu", results)
    assert runs_of(figures, "digits") == before  # at the rates of the runs
    notes = "\n".join(make_grid(figures).notes)
    assert "digits: no learning rate has been chosen yet for any row; `python -m paper_repro select-lr accuracy --cpu --tasks digits` does it. The runs that are shown have the rates beside them." in notes  # fmt: skip
    assert notes.splitlines()[2].endswith(
        "select-lr accuracy --cpu --tasks fashion_mnist_short` does it."
    )  # and no run is shown
    assert {row.rate_words for row in figures.rows if not row.runs} == {"not chosen"}
    assert "rate 0.008 (from scratch 0.016, full 0.004)" in claim_words("in_training", results)
    with pytest.raises(ConfigurationError, match="select-lr accuracy --cpu --tasks digits`"):
        table_jobs(plan, extent)


def test_without_results_every_claim_is_not_run(tmp_path):
    assert {claim_words(name, tmp_path) for name in CLAIMS} == {"- Not run."}


def test_a_page_is_filled_between_its_marks_and_stays_as_it_is_elsewhere(kept, tmp_path):
    page = tmp_path / "page.md"
    marks = ["claim speed", "table methods cpu", "table methods gpu", "pictures ranking"]
    text = "\n".join(f"before {mark}\n<!-- results: {mark} -->\nold\n<!-- end of results -->" for mark in marks)
    page.write_text(f"{text}\nafter\n", encoding="utf-8")
    assert fill_page(page, kept) == 4
    filled = page.read_text(encoding="utf-8")
    assert "old" not in filled
    assert filled.endswith("<!-- end of results -->\nafter\n")
    assert "| cut in training | 0.008 | 8 |" in filled
    assert "every method at one size**: not run. `python -m paper_repro run methods --gpu` runs it." in filled
    fill_page(page, kept)
    assert page.read_text(encoding="utf-8") == filled


def test_a_page_without_marks_or_with_a_wrong_one_is_refused(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(ResultError, match="no place for results"):
        fill_page(page)
    page.write_text("<!-- results: claim sped -->\n<!-- end of results -->\n")
    with pytest.raises(ResultError, match="'claim sped'; it must be"):
        fill_page(page)


def test_a_kept_command_has_nothing_of_the_machine():
    arguments = [
        "run",
        "methods",
        "--cpu",
        "--workers",
        "2",
        "--out=/some/where",
        "--rows",
        "full",
        "--data-dir",
        "/data",
    ]
    assert plain_command(arguments) == "python -m paper_repro run methods --cpu --rows full"
