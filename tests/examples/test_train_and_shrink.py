"""The training loops of the examples, for a few steps, each in an interpreter of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


@pytest.mark.parametrize(
    "name",
    ["", "_lightning", *(pytest.param(n, marks=pytest.mark.slow) for n in ("_accelerate", "_fabric", "_transformers"))],
)
def test_the_model_ends_smaller(name, tmp_path):
    example = EXAMPLES / f"train_and_shrink{name}.py"
    assert len(example.read_text().splitlines()) <= 60
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(example), "--steps", "40"],
        capture_output=True, text=True, env=environment, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    share, states = re.findall(r"(?:accuracy|repeats) ([\d.]+) (?:of the tokens )?with (.*) states", done.stdout)[0]
    assert 0 <= float(share) <= 1
    assert all(0 < int(n) < 64 for n in re.findall(r"(?<!layers\.)\b\d+\b(?!\.)", states))
