import os
import subprocess
import sys

import pytest

from paper_repro import cli
from paper_repro.results import read_results

SMALL = ["steps=24", "n_states=12", "batch_size=20", "evaluate_every=8", "window=[0.0, 0.5]"]


def run(capsys, monkeypatch, *arguments):
    """Run the command line in this process; return its exit status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["paper_repro", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


def sets(values):
    return [argument for value in values for argument in ("--set", value)]


def test_a_run_is_trained_found_again_and_shown(capsys, monkeypatch, tmp_path):
    arguments = (
        "run",
        "digits",
        "--arm",
        "in_training",
        "--seed",
        "0",
        "--out",
        str(tmp_path),
        *sets([*SMALL, "tau=0.3"]),
    )
    code, out, _ = run(capsys, monkeypatch, *arguments)
    assert code == 0
    [cut] = read_results(tmp_path)
    assert (cut.config.seed, cut.config.tau, cut.config.arm) == (0, 0.3, "in_training")
    assert cut.run_id in out
    scratch = ("run", "digits", "--arm", "from_scratch", "--sizes-of", cut.run_id, "--out", str(tmp_path), *sets(SMALL))
    assert run(capsys, monkeypatch, *scratch)[0] == 0
    assert read_results(tmp_path)[1].states_before == cut.states_after
    code, out, _ = run(capsys, monkeypatch, "table", "--out", str(tmp_path))
    assert code == 0
    assert "cut in training, tau 0.3" in out
    assert "from scratch" in out
    assert cut.run_id in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "digits", "--set", "taus=0.1"], "unknown key 'taus'; did you mean 'tau'?"),
        (["run", "digits", "--set", "steps=-3"], "key 'steps'"),
        (["run", "digits", "--seed", "-1"], "key 'seed'"),
        (["run", "digit"], "did you mean 'digits'?"),
        (["run", "digits", "--sizes-of", "nobody"], "no finished run 'nobody'"),
        (["run", "digits", "--sizes-of", "nobody"], "`python -m paper_repro table --out /"),
        (["run", "fashion_mnist", "--data-dir", "/nowhere"], "/nowhere/ (no such folder)"),
        (["run", "digits", "--arm", "distilled", "--starts-from", "nobody"], "--starts-from: no finished run 'nobody'"),
        (["run", "digits", "--quick"], "--quick, --cpu, --gpu and --paper are for tables"),
        (["run", "methods"], "give one of --quick, --cpu, --gpu and --paper"),
        (["run", "methods", "--quick", "--rows", "fulll"], "--rows: fulll not in this table"),
        (["run", "methods", "--quick", "--seeds", "one"], "--seeds takes whole numbers"),
        (["run", "methods", "--quick", "--launcher", "ray"], "--launcher takes slurm, local, debug"),
        (["table", "method", "--cpu"], "did you mean 'methods'?"),
        (["collect", "methods", "--quick"], "has no finished run of table methods --quick"),
        (["select-lr", "digits", "--rates", "fast"], "--rates takes numbers"),
        (["table"], "no finished run"),
    ],
)
def test_what_a_user_gets_wrong_is_one_message_and_status_2(capsys, monkeypatch, tmp_path, arguments, words):
    code, out, err = run(capsys, monkeypatch, *arguments, "--out", str(tmp_path))
    assert code == 2
    assert words in err.replace("\n", " ")
    assert "Traceback" not in out + err


def test_the_help_fits_one_screen_and_has_an_example():
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "paper_repro", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert len(text.splitlines()) <= 24
    for words in ("demo", "run", "select-lr", "table", "Example: python -m paper_repro run digits"):
        assert words in text


def test_a_run_stops_when_its_minutes_are_over_and_the_same_command_goes_on(capsys, monkeypatch, tmp_path):
    arguments = ("run", "digits", "--arm", "full", "--out", str(tmp_path), *sets(SMALL))
    code, out, _ = run(capsys, monkeypatch, *arguments, "--minutes", "0")
    assert code == cli.NOT_FINISHED
    assert "the same command goes on" in out.replace("\n", " ")
    assert not read_results(tmp_path)
    assert run(capsys, monkeypatch, *arguments)[0] == 0
    assert len(read_results(tmp_path)) == 1


def test_a_run_can_start_from_another_one(capsys, monkeypatch, tmp_path):
    full = ("run", "digits", "--arm", "full", "--out", str(tmp_path), *sets(SMALL))
    assert run(capsys, monkeypatch, *full)[0] == 0
    [result] = read_results(tmp_path)
    cut = ("run", "digits", "--arm", "post_training", "--starts-from", result.run_id, "--out", str(tmp_path))
    code, out, _ = run(capsys, monkeypatch, *cut, *sets([*SMALL[1:], "steps=0", "order=5", "tau=none"]))
    assert code == 0
    assert "cut after training" in out
    assert read_results(tmp_path)[1].states_after == (5,)


def test_tables_presets_and_tasks_are_listed(capsys, monkeypatch):
    _, out, _ = run(capsys, monkeypatch, "run", "--list")
    assert "table2  methods: every method at one size (--quick --cpu --paper)" in out
    assert "smnist" in out
    _, out, _ = run(capsys, monkeypatch, "tasks")
    assert "pathfinder" in out


def test_a_table_that_was_not_run_is_shown_as_such_in_every_form(capsys, monkeypatch, tmp_path):
    for style in ("terminal", "markdown", "latex", "csv"):
        code, out, _ = run(
            capsys, monkeypatch, "table", "methods", "--quick", "--out", str(tmp_path), "--format", style
        )
        assert code == 0
        assert out.count("not run") >= 16
