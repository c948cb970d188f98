"""The Triton kernels without a GPU: their numbers in Triton's interpreter, and that they compile for one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hsv_torch.scan import _linear

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_interpreted(*options):
    """``interpreted.py``, in a process in which nothing has imported Triton yet."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    path = Path(__file__).with_name("interpreted.py").relative_to(ROOT)
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("scan", ["linear or diagonal", "selective", "attention"])
def test_in_the_interpreter(scan):
    run_interpreted("-m", "not slow", "-k", scan)


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter_for_longer():
    run_interpreted("-m", "slow")


def test_a_missing_triton_is_said_once(monkeypatch):
    monkeypatch.setattr(_linear, "_warned", set())
    monkeypatch.setattr(_linear, "TRITON", False)
    with pytest.warns(UserWarning, match=r"no kernel for cuda, for Triton is not installed \(`pip install triton`\)"):
        assert not _linear.has_kernel(torch.device("cuda"))
    assert not _linear.has_kernel(torch.device("cuda"))  # filterwarnings = error
    monkeypatch.setattr(_linear, "TRITON", True)
    assert _linear.has_kernel(torch.device("cuda"))


def test_importing_the_scans_imports_no_triton():
    code = "import sys, hsv_torch.scan; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
