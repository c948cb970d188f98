import tomllib

import pytest

import hsv_torch
from paper_repro.configuration import PRESETS, make_config, preset_names, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.tables.plan import PLANS, TablePlan, find_plan, plan_names, read_plan


def paper_presets():
    """Blocks, width, states, steps, batch, rate, weight decay, factor of the state space parameters, dropout: the paper's table of hyperparameters."""
    return {
        "smnist": (1, 8, 256, 200_000, 50, 4e-4, 0.0, 1.0, 0.1),
        "scifar": (6, 512, 384, 180_000, 50, 1e-3, 0.05, 0.25, 0.1),
        "listops": (6, 128, 256, 80_000, 32, 1e-3, 0.05, 0.5, 0.0),
        "imdb": (1, 256, 192, 50_000, 32, 1e-3, 0.05, 0.1, 0.2),
        "aan": (6, 128, 256, 100_000, 64, 1e-3, 0.05, 0.5, 0.1),
        "pathfinder": (6, 192, 256, 500_000, 64, 1e-3, 0.05, 0.25, 0.0),
    }


@pytest.mark.parametrize(("preset", "values"), paper_presets().items())
def test_presets_have_the_hyperparameters_of_the_paper(preset, values):
    keys = (
        "n_blocks", "d_model", "n_states", "steps", "batch_size", "learning_rate", "weight_decay", "ssm_lr_factor", "dropout",
    )  # fmt: skip
    read = read_preset(preset)
    assert tuple(read[key] for key in keys) == values
    assert read["lr_schedule"] == ("constant" if preset == "smnist" else "warmup_cosine")


@pytest.mark.parametrize("name", plan_names())
def test_every_run_of_every_variant_is_possible_and_every_figure_of_the_paper_has_its_place(name):
    plan = read_plan(name)
    cells = [cell for variant in plan.variants for cell in plan.cells(variant)]
    keys = [[cell.key for cell in plan.cells(variant)] for variant in plan.variants]
    assert all(len(set(own)) == len(own) for own in keys)
    for cell in cells:
        config = cell.config(7, 1e-2)
        assert (config.seed, config.arm) == (7, cell.row.arm)
    places = [plan.paper_figure(cell) for cell in cells]
    assert all(figure in places for figure in plan.paper)


def test_names_of_tables_and_presets_differ_and_numbers_are_unique():
    numbers = [read_plan(name).number for name in plan_names()]
    assert numbers == sorted(set(numbers))
    assert not set(preset_names()) & {*plan_names(), *(f"table{number}" for number in numbers), "smoke"}
    assert find_plan("table2") == read_plan("methods")


def test_the_comment_of_a_preset_names_the_steps_of_its_attempts():
    config = make_config({**read_preset("imdb"), "arm": "in_training"})
    schedule = hsv_torch.Schedule(total_steps=config.steps, window=config.window, attempts=config.attempts)
    assert schedule.steps == (1667, 2333, 3000)
    assert "at steps 1,667, 2,333 and 3,000" in (PRESETS / "imdb.toml").read_text(encoding="utf-8")


def test_the_score_without_poles_is_called_so():
    row = read_plan("methods").row("magnitude")
    assert (row.values["reading"], row.label) == ("magnitude", "largest |B| |C|, without the poles")


def test_a_row_has_its_rule_in_place_of_that_of_the_preset():
    cells = {cell.row.key: cell for cell in read_plan("methods").cells("cpu")}
    cut = cells["in_training"].config(0)
    assert (cut.tau, cut.order, cut.learning_rate) == (None, 8, read_preset("digits")["learning_rate"])
    swept = [cell for cell in read_plan("sweep").cells("cpu") if cell.row.key == "distilled"]
    assert [cell.at for cell in swept] == [0.05, 0.1, 0.2, 0.3]
    parent = swept[0].parent("in_training")
    assert (parent.at, parent.config(0).tau, parent.config(0).order) == (0.05, 0.05, None)
    assert swept[0].parent("full").at is None
    assert "tau 0.05" in swept[0].label


def test_parents_come_before_the_rows_that_need_them():
    for name in plan_names():
        plan = read_plan(name)
        for variant in plan.variants:
            seen = set()
            for cell in plan.cells(variant):
                for key in (cell.row.sizes_of, cell.row.starts_from):
                    assert key is None or cell.parent(key).key in seen
                seen.add(cell.key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [{"key": "a", "label": "a", "arm": "full", "sizes_of": "b"}]}, "no row 'b'"),
        ({"rows": [{"key": "a", "label": "a", "arm": "full"}] * 2}, "two rows have one key"),
        ({"variants": {"cpu": [{"preset": "digit", "seeds": [0]}]}}, "no preset 'digit'"),
        ({"variants": {"fast": []}}, "quick"),
        ({"row": []}, "row"),
    ],
)
def test_a_spoilt_plan_is_refused(change, words):
    values = tomllib.loads((PLANS / "accuracy.toml").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=words):
        TablePlan.model_validate({"name": "spoilt", **values, **change})


def test_what_is_not_there_is_said():
    with pytest.raises(ConfigurationError, match="did you mean 'accuracy'"):
        read_plan("acuracy")
    with pytest.raises(ConfigurationError, match="it has --quick, --cpu, --paper"):
        list(read_plan("methods").cells("gpu"))
