import json

import pytest

from paper_repro.errors import ResultError
from paper_repro.provenance import plain_command
from paper_repro.results import append_result
from paper_repro.tables import pictures
from paper_repro.tables.claims import CLAIMS, claim_words
from paper_repro.tables.collected import SPECTRA_KEPT, collect, collected_path, collected_variants, read_collected
from paper_repro.tables.graph import Extent, table_jobs
from paper_repro.tables.page import fill_page
from paper_repro.tables.plan import plan_names, read_plan
from paper_repro.tables.show import kept_figures
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
    assert figures.n_runs == (80, 80)
    jobs = table_jobs(plan, SHARED)
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
    assert "- digits, tau 0.1, 17 states: 94.4 ± 0.4 %, from scratch 90.4 ± 0.4 % (+4.0 ± 0.0 (5)), full 95.4 ± 0.4 % (-1.0 ± 0.0 (5))." in words  # fmt: skip
    assert "regularised by dense eigenvalues, then cut: 40.0 times the training time" in claim_words(
        "regularisation", kept
    )
    assert "training 2.00 times as fast as the full model; a step 4.0 ms with all states, 2.0 ms after" in claim_words("speed", kept)  # fmt: skip
    assert "16 cuts" in claim_words("cuts", kept)
    assert "16 cuts" not in claim_words("windows", kept)
    assert "the largest values dropped" in claim_words("criteria", kept)


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
    assert "| cut in training | 8 |" in filled
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
