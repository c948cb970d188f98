import copy
import dataclasses
import io
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import hsv_torch
from paper_repro import cli
from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.methods import METHODS
from paper_repro.study.measurements import Measurement, append_measurements, read_measurements
from paper_repro.study.plan import DEFAULT, POINTS, QUICK, make_jobs, restricted
from paper_repro.study.run import run_study
from paper_repro.study.tables import MARKS, agreement, best_from_scratch, study_tables
from paper_repro.study.work import kept_states, perform
from paper_repro.training import RunInterruptedError

ROOT = Path(__file__).resolve().parents[3]
FEW_METHODS = ("greedy", "random_uncompensated", "shared_basis", "channel_basis_mean_system")


def small_plan():
    plan = restricted(QUICK, tasks=["mqar"], seeds=1, methods=FEW_METHODS, methods_trained_on=["greedy"])
    return dataclasses.replace(plan, methods_ranked=("greedy", "hankel"))


def run(plan, directory, workers=2):
    text = io.StringIO()
    measurements = run_study(
        plan,
        results=directory / "measurements.jsonl",
        directory=directory,
        n_workers=workers,
        console=Console(file=text, width=200),
    )
    return measurements, text.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    measurements, text = run(small_plan(), directory)
    return directory, measurements, text


def test_every_measurement_of_the_plan_is_made_once(study):
    directory, measurements, text = study
    keys = [measurement.key for measurement in measurements]
    assert sorted(keys) == sorted(itertools.chain.from_iterable(job.keys for job in make_jobs(small_plan())))
    assert len((directory / "measurements.jsonl").read_text().splitlines()) == len(keys)
    assert f"{len(make_jobs(small_plan()))} jobs, 0 done already" in text
    kinds = {measurement.kind for measurement in measurements}
    assert kinds == {"full", "point", "scratch", "cut", "trained_on", "ranking"}
    assert all(0 <= m.accuracy <= 1 for m in measurements if m.reason is None)


def test_running_it_again_does_nothing_and_what_is_missing_alone_is_done(study):
    directory, measurements, _ = study
    again, text = run(small_plan(), directory)
    assert again == measurements
    jobs = len(make_jobs(small_plan()))
    assert f"{jobs} jobs, {jobs} done already" in text
    wider, text = run(dataclasses.replace(small_plan(), methods_trained_on=("greedy", "hankel")), directory)
    assert len(wider) == len(measurements) + len(POINTS)
    assert f"{jobs + 2} jobs, {jobs} done already" in text


def test_what_a_job_finds_does_not_depend_on_the_process(study, tmp_path):
    _, measurements, _ = study
    known = {measurement.key: measurement for measurement in measurements}
    found = [
        m
        for job in make_jobs(small_plan())
        if job.kind in ("full", "trained_on")
        for m in perform(job, tmp_path, lambda: False)
    ]
    assert len(found) == 1 + 2 * len(POINTS)
    for measurement in found:
        assert measurement.accuracy == pytest.approx(known[measurement.key].accuracy, abs=1e-5)


def test_a_job_that_is_stopped_leaves_no_measurement(tmp_path):
    full = make_jobs(small_plan())[0]
    calls = iter(range(100))
    with pytest.raises(RunInterruptedError):
        perform(full, tmp_path, lambda: next(calls) == 5)


def test_the_tables_name_every_method_and_count_refusals(study):
    _, measurements, _ = study
    refused = [
        m.model_copy(update={"accuracy": None, "reason": "no"})
        if (m.kind, m.method, m.n_states, m.seed) == ("cut", "greedy", 4, 0)
        else m
        for m in measurements
    ]
    text = study_tables(refused)
    for words in ("## mqar", "greedy", "random, uncompensated", "shared basis", "from scratch", "early, 4", "late, 2"):
        assert words in text
    assert text.count("(1 refused)") == len(POINTS)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_figures_of_the_tables_are_means_over_the_seeds():
    base = {"run": "r", "task": "mqar", "n_states": 8, "seconds": 1.0, "commit": None}

    def at(kind, seed, accuracy, **values):
        return Measurement(**base, kind=kind, seed=seed, accuracy=accuracy, **values)

    late = {"point": "late", "method": "greedy"}
    text = study_tables(
        [
            *(
                Measurement(**{**base, "n_states": 32}, kind="point", seed=seed, accuracy=0.9, point="late")
                for seed in (0, 1)
            ),
            *(at("cut", seed, value, **late) for seed, value in enumerate((0.5, 0.7))),
            *(
                at("cut", seed, value, point="late", method="greedy_uncompensated")
                for seed, value in enumerate((0.4, 0.7))
            ),
            *(at("trained_on", seed, value, **late) for seed, value in enumerate((0.8, 0.9))),
            *(at("scratch", seed, value, learning_rate=0.01) for seed, value in enumerate((0.7, 0.6))),
        ]
    )
    assert "| greedy | 60.0 ± 14.1 | 1.0 |" in text
    assert "| method | 0.25 of the states | worst at 0.25 | refused |" in text
    assert "| greedy | 30.0 | 40.0 | 0 |\n| greedy, uncompensated | 35.0 | 50.0 | 0 |" in text
    assert re.search(r"\| greedy \| 85\.0 ± 7\.1 \(\+20\.0; -107\.1 to \+147\.1\) \|", text)  # t(0.975, 1) = 12.706
    assert "| from scratch, best rate | 65.0 ± 7.1 |" in text
    assert "| greedy | +5.0 | +0.0 to +10.0 | 1 : 0 |" in text


def test_agreement_is_the_share_of_states_that_draws_of_one_seed_have_in_common():
    base = {
        "run": "r",
        "task": "mqar",
        "n_states": 2,
        "seconds": 1.0,
        "commit": None,
        "kind": "ranking",
        "accuracy": 0.5,
    }
    kept = {(0, 0): ((1, 2),), (0, 1): ((2, 3),), (1, 0): ((5, 6),), (1, 1): ((5, 6),)}
    draws = [
        Measurement(**base, seed=seed, draw=draw, n_sequences=4, kept=states) for (seed, draw), states in kept.items()
    ]
    assert agreement(draws) == pytest.approx(0.75)
    assert agreement([draws[0].model_copy(update={"kept": None}), draws[1]]) is None


def test_kept_states_are_found_and_a_new_basis_keeps_none():
    config = hsv_torch.SequenceModelConfig(
        layer="mamba", d_model=4, n_states=6, n_blocks=2, head="language_model", vocabulary=5, n_outputs=5
    )
    torch.manual_seed(0)
    model = hsv_torch.SequenceModel(config)
    tokens = torch.randint(5, (8, 12))
    chosen, rotated = copy.deepcopy(model), copy.deepcopy(model)
    hsv_torch.compress_(chosen, 3, calibration=tokens, criterion=METHODS["magnitude_uncompensated"](0))
    for layer, kept in zip((block.layer for block in model.blocks), kept_states(model, chosen), strict=True):
        weight = layer.x_proj.weight.detach()
        strength = [float(weight[-12 + k].norm() * weight[-6 + k].norm()) for k in range(6)]
        assert kept == tuple(sorted(sorted(range(6), key=lambda k: -strength[k])[:3]))
    hsv_torch.compress_(rotated, 3, calibration=tokens, criterion=METHODS["channel_basis"](0))
    assert kept_states(model, rotated) is None


def test_the_default_study_is_what_the_documentation_says():
    assert {task.preset: task.sizes for task in DEFAULT.tasks} == {
        "mqar": (32, 16, 8, 4),
        "selective_copying": (32, 16, 8),
        "digits_mamba": (32, 16, 8),
    }
    assert len(DEFAULT.seeds) >= 3
    assert DEFAULT.methods == tuple(METHODS)
    keys = [key for job in make_jobs(DEFAULT) for key in job.keys]
    assert len(keys) == len(set(keys))


def test_models_from_scratch_have_the_rate_that_is_best_on_validation_data():
    base = {"run": "r", "task": "mqar", "n_states": 8, "seconds": 1.0, "commit": None, "kind": "scratch"}
    runs = [
        Measurement(**base, seed=seed, learning_rate=rate, accuracy=accuracy, validation=validation)
        for seed, rate, accuracy, validation in [
            (0, 0.01, 0.9, 0.5), (1, 0.01, 0.9, 0.6), (0, 0.02, 0.7, 0.7), (1, 0.02, 0.8, 0.5), (0, 0.04, 0.9, 0.9),
        ]
    ]  # fmt: skip
    assert [run.accuracy for run in best_from_scratch(runs)] == [0.7, 0.8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["sorting"]}, "no task 'sorting'; it has mqar"),
        ({"methods": ["luck"]}, "unknown method 'luck'"),
        ({"sizes_trained_on": [8]}, r"sizes must lie in \[1, 7\]"),
    ],
)
def test_what_the_study_does_not_have_is_said(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        make_jobs(restricted(QUICK, **changes))


def test_a_spoilt_file_names_its_line_and_an_empty_one_has_no_table(tmp_path):
    path = tmp_path / "measurements.jsonl"
    with pytest.raises(ResultError, match="nothing yet"):
        study_tables(read_measurements(path))
    measurement = Measurement(
        run="r", task="mqar", seed=0, kind="full", n_states=8, accuracy=0.5, seconds=1.0, commit=None
    )
    append_measurements(path, [measurement, measurement.model_copy(update={"accuracy": 0.75})])
    assert [m.accuracy for m in read_measurements(path)] == [0.75]
    with path.open("a") as file:
        file.write('{"run": 3}\n')
    with pytest.raises(ResultError, match="line 3: not a measurement"):
        read_measurements(path)


def command(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["paper_repro", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


def test_the_table_comes_from_the_file_alone(study, capsys, monkeypatch):
    directory, _, _ = study
    code, out, _ = command(capsys, monkeypatch, "study-table", str(directory / "measurements.jsonl"))
    assert code == 0
    assert "### Right after the cut" in out
    assert "| method | early, 4 | early, 2 | late, 4 | late, 2 | s a cut |" in out


def test_the_tables_are_put_between_the_marks_of_a_page(study, tmp_path, capsys, monkeypatch):
    directory, _, _ = study
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(MARKS) + "\nafter\n")
    arguments = ("study-table", str(directory / "measurements.jsonl"), "--into", str(page))
    for _ in range(2):
        assert command(capsys, monkeypatch, *arguments)[0] == 0
    expected = f"before\n{MARKS[0]}\n\n{study_tables(read_measurements(directory / 'measurements.jsonl'))}\n{MARKS[1]}\nafter\n"
    assert page.read_text() == expected
    page.write_text("no marks")
    code, _, errors = command(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "has no place for the tables" in errors


def test_the_page_of_the_study_has_the_tables_of_its_file():
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    tables = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert tables.strip() == study_tables(read_measurements(ROOT / "docs" / "data" / "study.jsonl")).strip()


def test_a_wrong_argument_is_one_message(tmp_path, capsys, monkeypatch):
    code, _, errors = command(capsys, monkeypatch, "study", "--quick", "--method", "luck")
    assert code == 2
    assert "unknown method 'luck'" in errors
    code, _, errors = command(capsys, monkeypatch, "study-table", str(tmp_path / "none.jsonl"))
    assert code == 2
    assert "nothing yet" in errors


@pytest.mark.slow
def test_the_quick_study_runs_from_the_command_line_with_every_method(tmp_path, capsys, monkeypatch):
    places = ("--results", str(tmp_path / "m.jsonl"), "--directory", str(tmp_path))
    code, out, _ = command(capsys, monkeypatch, "study", "--quick", "--workers", "2", *places)
    assert code == 0
    measurements = read_measurements(tmp_path / "m.jsonl")
    assert {m.method for m in measurements if m.kind == "cut"} == set(METHODS)
    assert "## selective_copying" in out
