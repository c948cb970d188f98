import html.parser
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from paper_repro.demo import PRESETS, forget_other_code, run_demo
from paper_repro.results import read_results

FEW_STEPS = {
    "steps": 24,
    "evaluate_every": 8,
    "batch_size": 20,
    "n_states": 16,
    "window": [0.0, 0.5],
    "learning_rate": 0.01,
}


class Outside(html.parser.HTMLParser):
    """Collects what a page would fetch from elsewhere, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    text = io.StringIO()
    console = Console(file=text, width=160)
    outcome = run_demo(directory, seeds=range(2), overrides=FEW_STEPS, n_workers=2, console=console)
    return directory, outcome, text.getvalue()


def test_every_arm_has_every_seed_and_the_small_ones_the_sizes_of_the_cut(demo):
    directory, outcome, _ = demo
    assert len(read_results(directory)) == len(outcome.runs) == 2 * (1 + 2 * len(PRESETS))
    for cut, scratch in outcome.pairs:
        assert [run.config.seed for run in cut.runs] == [run.config.seed for run in scratch.runs] == [0, 1]
        for large, small in zip(cut.runs, scratch.runs, strict=True):
            assert small.config.sizes_of == large.run_id
            assert small.states_before == small.states_after == large.states_after
            assert large.states_after < large.states_before == (16,)


def test_the_text_is_sane_where_there_is_no_terminal(demo):
    _, outcome, text = demo
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("done in ") == len(outcome.runs)
    for words in ("test accuracy", "from scratch", "95 %", "Reductions took", "report.html"):
        assert words in text
    assert f"{100 * outcome.full.accuracy.mean:.1f} ±" in text


def test_the_report_needs_nothing_else_and_has_every_picture(demo):
    directory, outcome, _ = demo
    page = (directory / "report.html").read_text(encoding="utf-8")
    parser = Outside()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == []
    assert not re.search(r"url\((?!#)|@import|<script", page)
    assert page.count("<svg") == 6
    assert page.count("<tr>") == 1 + len(outcome.arms)


def test_running_it_again_trains_nothing_anew_unless_asked_or_the_code_changed(demo):
    directory, outcome, _ = demo
    again = run_demo(
        directory, seeds=range(2), overrides=FEW_STEPS, n_workers=1, console=Console(file=io.StringIO(), width=160)
    )
    assert [run.provenance.started for run in again.runs] == [run.provenance.started for run in outcome.runs]
    kept = directory / "mine"
    kept.mkdir()
    (kept / "notes.txt").write_text("not the demo's")
    (directory / "code.txt").write_text("other code")
    forget_other_code(directory, everything=False)
    assert read_results(directory) == []
    assert not list(directory.glob("*/best.safetensors"))
    assert (kept / "notes.txt").is_file()


def group_is_alive(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_demo_leaves_checkpoints_and_no_process_behind(tmp_path, number):
    command = [sys.executable, "-m", "paper_repro", "demo", "--out", str(tmp_path), "--workers", "2"]
    command += ["--set", "steps=1000000", "--set", "learning_rate=0.01", "--set", "checkpoint_every=10"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("*/checkpoint.safetensors"))
    deadline = time.monotonic() + 30
    while group_is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_is_alive(process.pid)
