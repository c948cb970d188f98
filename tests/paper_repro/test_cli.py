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
        (["run", "fashion_mnist", "--data-dir", "/nowhere"], "/nowhere/train-images-idx3-ubyte[.gz]"),
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
