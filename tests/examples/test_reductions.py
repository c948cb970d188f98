"""The examples that reduce a system or a trained model, each in an interpreter of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    example = EXAMPLES / f"{name}.py"
    assert len(example.read_text().splitlines()) <= 60
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        capture_output=True, text=True, env=environment, timeout=300, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_flexible_structure(tmp_path):
    printed = run("flexible_structure", "--modes", "20", "--tolerance", "1e-2", folder=tmp_path)
    before, after = map(int, re.search(r"(\d+) states -> (\d+)", printed).groups())
    assert before == 40
    assert 2 <= after < 20
    error, bound = map(float, re.search(r"error: (\S+) of the peak gain, guaranteed (\S+)", printed).groups())
    assert error <= bound <= 1e-2
    assert (tmp_path / "beam.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_s5(tmp_path):
    printed = run("compress_s5", "--steps", "60", "--states", "16", folder=tmp_path)
    assert re.search(r"^states \(16, 16\): test accuracy 0\.\d+$", printed, re.MULTILINE)
    rows = re.findall(r"^(\d+)% of the Hankel sum (for ever|within 64 steps): states \((\d+), (\d+)\), test accuracy", printed, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == ["99", "95", "90"] * 2
    for kind in ("for ever", "within 64 steps"):
        sizes = [int(row[2]) for row in rows if row[1] == kind]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < 16


@pytest.mark.slow
def test_a_hugging_face_mamba(tmp_path):
    printed = run("shrink_hugging_face_mamba", "--states", "4", folder=tmp_path)
    assert printed.count("16 -> 4 states") == 2
    again = run(
        "shrink_hugging_face_mamba", "--model", "small-mamba", "--states", "2", "--output", "two", folder=tmp_path
    )
    assert again.count("4 -> 2 states") == 2
    assert (tmp_path / "two" / "config.json").is_file()
