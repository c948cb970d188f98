"""The sum of Hankel singular values with its gradient beside one eigendecomposition of the same size and dtype, measured in turn in one run.

``python -m asv_benchmarks.gradients [--states 256] [--threads 2] [--rounds 15] [--cpu-time]``

Complex systems as an LRU layer is initialised, as log-poles with 1, 8 and 128 inputs and outputs. "by autograd" lets PyTorch differentiate
the closed-form Gramians, plain Cholesky factors and ``svdvals``, which fails for one input.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import hsv
import hsv_torch
from asv_benchmarks.lru_layer import measure
from asv_benchmarks.systems import lru_system

EIGH = "torch.linalg.eigh"


def eigh(n_states: int) -> Callable[[], None]:
    """Return one decomposition of a random Hermitian matrix, complex128."""
    A = torch.randn(n_states, n_states, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    A = A + A.mH

    def run() -> None:
        torch.linalg.eigh(A)

    return run


def step(n_states: int, width: int, dtype: torch.dtype, value: Callable[..., Tensor]) -> Callable[[], None]:
    """Return a forward and backward pass of `value` of log-poles, ``B`` and ``C``."""
    system = lru_system(n_states, width)
    inputs = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (system.log_poles, system.B, system.C)]

    def run() -> None:
        for x in inputs:
            x.grad = None
        value(*inputs).backward()

    return run


def ours(log_poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the sum as the package computes it."""
    return hsv_torch.hankel_sum(hsv.DiagonalStateSpace.from_log_poles(log_poles, B, C))


def by_autograd(log_poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the sum in the way of a few lines of PyTorch."""
    gap = -torch.expm1(log_poles[:, None] + log_poles.conj())
    Lc = torch.linalg.cholesky(B @ B.mH / gap)
    Lo = torch.linalg.cholesky(C.mH @ C / gap.conj())
    return torch.linalg.svdvals(Lo.mH @ Lc).sum()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.gradients", description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="time on the processor, not on the wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    steps = {EIGH: eigh(asked.states)}
    for width in (1, 8, 128):
        for dtype in (torch.complex128, torch.complex64):
            steps[f"hankel_sum, H = {width}, {dtype}"] = step(asked.states, width, dtype, ours)
    for width in (8, 128):
        steps[f"by autograd, H = {width}"] = step(asked.states, width, torch.complex128, by_autograd)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    times = measure(steps, asked.rounds, clock)
    print(f"{asked.states} states, {asked.threads} threads, load {os.getloadavg()[0]:.1f}, medians of {asked.rounds}\n")
    print("| forward and backward | ms | of one eigh |\n|---|---:|---:|")
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(t, times[EIGH], strict=True))
        print(f"| {name} | {1e3 * statistics.median(t):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
