"""A solver and a layer join from a package outside the repository: one file each, the public names alone."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

EXTENSION = Path(__file__).parent / "extension" / "hsv_extension"

USE = """
import copy
import numpy as np
import torch
import hsv
import hsv_torch
from hsv_extension import OscillatorBank, moment_matching
from hsv_torch.testing import check_adapter

rng = np.random.default_rng(0)
A = rng.standard_normal((20, 20))
A -= (np.linalg.eigvals(A).real.max() + 0.5) * np.eye(20)
sys = hsv.StateSpace(A, rng.standard_normal((20, 1)), rng.standard_normal((2, 20)), dt=0)
red = moment_matching(sys, hsv.Order(5))
assert red.system.n_states == 5
for k in range(1, 6):  # Taylor coefficients at 0
    whole, small = (-s.C @ np.linalg.matrix_power(np.linalg.inv(s.A), k) @ s.B for s in (sys, red.system))
    np.testing.assert_allclose(small, whole, rtol=1e-6)
print(red)

found = check_adapter(lambda n: OscillatorBank(4, n).double())
print(found)
torch.manual_seed(0)
model = torch.nn.Sequential(OscillatorBank(4, 32), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = hsv_torch.Schedule(total_steps=20, window=(0.0, 0.5), attempts=2)
compressor = hsv_torch.InTrainingCompressor(model, optimizer, rule=hsv.HankelSum(discard=0.1), schedule=schedule)
for _ in range(20):
    x = torch.randn(8, 20, 4)
    loss = (model(x) - x.cumsum(1)[..., :1]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    compressor.step()
assert model[0].n_states < 32
hsv_torch.save_checkpoint(model, "model.safetensors")
"""


def test_a_package_outside_the_repository_adds_a_solver_and_a_layer(tmp_path):
    shutil.copytree(EXTENSION, tmp_path / "hsv_extension", ignore=shutil.ignore_patterns("__pycache__"))
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(tmp_path), root))}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    assert (tmp_path / "model.safetensors").is_file()


def test_it_has_at_most_three_files_and_imports_public_names_only():
    files = sorted(EXTENSION.glob("*.py"))
    assert len(files) <= 3
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            )  # fmt: skip
            assert not any(part.startswith("_") for name in names for part in name.split(".")), (path, names)
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_") or node.attr == "__init__", (path, node.attr)
