import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hsv

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "million_systems.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example in an interpreter of its own: a cluster leaves threads and sockets behind."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


def test_few_systems_on_two_workers():
    done = run("--systems", "450", "--chunk", "200", "--workers", "2", "--states", "5")
    assert done.returncode == 0, done.stderr
    assert "100% Completed" in done.stdout
    assert re.search(r"450 systems of 5 states in [\d.]+ s: [\d,]+ systems per second", done.stdout)
    shares = {int(order): float(share) for order, share in re.findall(r"order (\d): +([\d.]+)%", done.stdout)}
    reduce_chunk = runpy.run_path(str(EXAMPLE))["reduce_chunk"]
    orders = sum(reduce_chunk(seed, n, 5, 1e-3)[0] for seed, n in enumerate((200, 200, 50)))
    assert shares == {k: pytest.approx(100 * c / 450, abs=0.006) for k, c in enumerate(orders) if c}


def test_a_chunk_counts_each_system_once_and_keeps_the_bound():
    reduce_chunk = runpy.run_path(str(EXAMPLE))["reduce_chunk"]
    counts, bound = reduce_chunk(7, 60, 6, 1e-2)
    assert counts.sum() == 60
    assert counts[0] == 0
    # all of the at most five discarded values are below the tolerance
    assert 0 < bound < 2 * 5 * 1e-2
    rng = np.random.default_rng(7)
    poles = np.exp(-rng.uniform(1e-3, 1.0, (60, 6)))
    B, C = rng.standard_normal((2, 60, 6))
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B[..., None], C[:, None], dt=True))
    np.testing.assert_array_equal(counts, np.bincount((values > 1e-2 * values[:, :1]).sum(-1), minlength=7))


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 60
