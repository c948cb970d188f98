import csv
import io

import pytest

from paper_repro.selection import Choice, Trial, choose, settings_of, write_choice
from paper_repro.tables import graph
from paper_repro.tables.graph import Extent, table_jobs
from paper_repro.tables.grid import Grid
from paper_repro.tables.plan import read_plan
from paper_repro.tables.summary import difference, make_grid, speed_up, table_figures
from tests.paper_repro.tables.runs import accuracy_of, made_results

EXTENT = Extent("quick")


def figures_of(name, without=(), accuracy=accuracy_of, extent=EXTENT):
    plan = read_plan(name)
    results = made_results(table_jobs(plan, extent), accuracy)
    kept = [result for key, result in results.items() if not any(part in key for part in without)]
    return table_figures(plan, extent, kept)


def cells_of(figures):
    grid = make_grid(figures)
    return {row[0]: dict(zip(grid.header, row, strict=True)) for row in grid.rows}


def test_a_row_has_all_seeds_and_differences_by_seed():
    row = cells_of(figures_of("methods"))["cut in training"]
    # accuracies .94 and .942
    assert row["accuracy, %"] == "94.0 and 94.2"  # an interval of two seeds says less than they do
    assert row["minus from scratch"] == "+4.0 and +4.0 (2)"
    assert row["minus full"] == "-1.0 and -1.0 (2)"
    assert row["seeds"] == "2"
    assert row["rate"] == "0.008"
    assert row["speed"] == "2.00x"
    row = cells_of(figures_of("methods", extent=Extent("quick", seeds=(0, 1, 2))))["cut in training"]
    # accuracies .94, .942, .944: half of the interval t(.975, 2) * 100 * .002 / sqrt(3) = 4.303 * .1155
    assert row["accuracy, %"] == "94.2 ± 0.5"
    assert row["minus from scratch"] == "+4.0 ± 0.0 (3)"
    assert row["best 3"] == ""  # it would be the mean of all


def test_the_best_three_stand_beside_the_mean_of_all():
    figures = figures_of("methods", extent=Extent("quick", seeds=(0, 1, 2, 3, 4)))
    row = cells_of(figures)["full"]
    assert row["accuracy, %"].startswith("95.4 ±")
    assert row["best 3"] == "95.6"


def test_what_was_not_run_is_said_and_is_no_number():
    cells = cells_of(figures_of("methods", without=["distilled", "in_training/1"]))
    assert cells["distilled"]["accuracy, %"] == cells["distilled"]["states"] == cells["distilled"]["speed"] == "not run"
    assert cells["distilled"]["minus full"] == "not run"
    assert cells["distilled"]["seeds"] == "0 of 2"
    assert cells["cut in training"]["seeds"] == "1 of 2"
    assert cells["cut in training"]["accuracy, %"] == "94.0"
    assert cells["cut in training"]["minus full"] == "-1.0 (1)"
    assert cells["from scratch"]["seeds"] == "1 of 2"  # the size of seed 1 is not known any more


def test_times_of_a_teacher_count_and_times_of_different_machines_are_not_compared():
    figures = figures_of("methods")
    distilled, full = figures.find("digits", "distilled"), figures.find("digits", "full")
    assert distilled.seconds() == {0: 32.0, 1: 32.0}
    assert speed_up(distilled, full) == pytest.approx(20 / 32)
    run = full.runs[0]
    elsewhere = run.model_copy(update={"provenance": run.provenance.model_copy(update={"device": "another"})})
    moved = type(full)(full.cell, {0: elsewhere}, 2, None)
    assert speed_up(distilled, moved) is None
    assert difference(distilled, moved).mean == pytest.approx(0.92 - 0.95)


def test_the_figures_of_the_paper_stand_beside_ours():
    plan, extent = read_plan("accuracy"), Extent("paper", tasks=("smnist",))
    grid = make_grid(table_figures(plan, extent, []))
    [row] = [dict(zip(grid.header, row, strict=True)) for row in grid.rows if row[0] == "cut in training, tau 0.02"]
    assert (row["paper: states"], row["paper: accuracy"]) == ("27.6", "96.9")
    assert row["accuracy, %"] == "not run"
    assert any(plan.source in note for note in grid.notes)


def test_a_row_that_takes_no_step_has_no_rate():
    cells = cells_of(figures_of("methods"))
    assert cells["cut after training, not trained on"]["rate"] == ""
    assert cells["cut after training, trained on"]["rate"] == "0.008"


@pytest.mark.parametrize(
    ("settings", "command", "words"),
    [
        ({"order": 8}, "select-lr methods --cpu", " It was chosen at order 8 (table methods), and is used here at every tau."),
        ({"tau": 0.1}, "select-lr digits", " It was chosen at tau 0.1 (preset digits), and is used here at every tau."),
        ({}, "select-lr sweep --cpu", " It was chosen at tau 0.2 (table sweep), and is used here at every tau."),
    ],
)  # fmt: skip
def test_a_table_that_sweeps_says_where_its_rates_were_chosen(settings, command, words, tmp_path, monkeypatch):
    plan = read_plan("sweep")
    [task] = plan.tasks("cpu")
    trial = Trial(learning_rate=4e-3, validation=(0.5,), states=((8,),))
    base = {key: value for key, value in settings_of(task.base()).items() if key not in ("tau", "order")}
    arms = {row.key: choose([trial]) for row in plan.rows}
    choice = Choice(command=f"python -m paper_repro {command}", seeds=(100,), settings=base | settings, arms=arms)
    write_choice(choice, tmp_path / "digits_methods.toml")
    monkeypatch.setattr(graph, "CHOICES", tmp_path)
    [note] = [note for note in make_grid(figures_of("sweep", extent=Extent("cpu"))).notes if note.startswith("digits:")]
    assert note.endswith(f"(`python -m paper_repro {command}`).{words}")


def test_one_rate_for_all_is_said():
    assert any("one learning rate, 0.008, for every method; nothing was chosen" in note for note in make_grid(figures_of("methods")).notes)  # fmt: skip


def test_every_form_has_every_cell():
    grid = Grid("a | title", ["method", "%"], [["a & b_1", "1.0 ± 0.1"], ["x|y", "not run"]], ["a note"], n_left=1)
    assert list(csv.reader(io.StringIO(grid.to_csv()))) == [
        ["method", "%"],
        ["a & b_1", "1.0 ± 0.1"],
        ["x|y", "not run"],
    ]
    markdown = grid.to_markdown()
    assert "| --- | ---: |" in markdown
    assert r"| x\|y | not run |" in markdown
    assert markdown.endswith("a note\n")
    latex = grid.to_latex()
    assert r"a \& b\_1 & 1.0 $\pm$ 0.1 \\" in latex
    assert r"\begin{tabular}{lr}" in latex
    assert grid.to_rich().row_count == 2
