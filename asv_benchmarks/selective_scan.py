"""The selective scan beside mambapy's parallel scan and plain PyTorch, measured in turn in one run.

``python -m asv_benchmarks.selective_scan [--threads 2] [--rounds 9] [--cpu-time] [--ours-only]``; ``--memory`` for peaks of memory instead.

The yardstick beside it is as many exponentials as the scan has, ``batch length d n``, of numbers that stay in the first-level cache, by the kernel's own vectors,
the fastest there are here. The forward pass of the scan computes them once, and so does the backward pass.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from asv_benchmarks import sizes
from hsv_torch.scan import _associative, _numba, _threads, reference, selective_scan

Problem = tuple[Tensor, ...]

# (batch, length, d, n): a Mamba layer of 128 channels before expansion, then the training steps of small models.
MAMBA = [(4, 256, 256, n) for n in (16, 64, 128)]
SMALL = [(32, 48, 64, 64), (32, 48, 64, 8)]


def problem(batch: int, length: int, d: int, n: int) -> Problem:
    """Return ``x, delta, A, B, C`` and a weight of the outputs, float32; steps and rates as Mamba begins with."""
    generator = torch.Generator().manual_seed(0)
    x, weight, noise = (torch.randn(batch, length, d, generator=generator) for _ in range(3))
    B, C = (torch.randn(batch, length, n, generator=generator) for _ in range(2))
    delta = 0.01 * (noise + 1).exp()
    A = -torch.arange(1.0, n + 1).repeat(d, 1)
    return *(t.requires_grad_() for t in (x, delta, A, B, C)), weight


def mambapy(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The parallel scan of the package mambapy, as its block calls it."""
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=2, n_layers=1))
    return block.selective_scan(x, delta, A, B, C, torch.zeros(x.shape[-1]))


def torch_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """A loop over the time steps, each for the whole batch."""
    return reference.selective_scan(x, delta, A, B, C)[0]


def parallel_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What devices without a kernel take."""
    return _associative.selective_scan(x, delta, A, B, C, x.new_zeros(x.shape[0], *A.shape))[0]


LIBRARIES: dict[str, Callable[..., Tensor]] = {
    "hsv_torch": selective_scan,
    "mambapy": mambapy,
    "torch loop": torch_loop,
    "torch parallel scan": parallel_scan,
}


def training_pass(library: str, arguments: Problem) -> tuple[Tensor, ...]:
    """Outputs and the gradients of all arguments."""
    *inputs, weight = arguments
    y = LIBRARIES[library](*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, weight)


load, store, exp = _numba.load, _numba.store, _numba.exp


@numba.njit(nogil=True)
def _exponentials(first: int, last: int, x: np.ndarray) -> None:
    y = np.empty_like(x)  # of this thread alone
    for _ in range(first, last):
        for k in range(0, x.size, 16):
            store(y, k, exp(load(x, k)))


def exponentials(size: tuple[int, int, int, int]) -> Callable[[], None]:
    """Return a function that computes as many exponentials as the scan's forward pass, 2,048 at a time and again."""
    x = np.linspace(-5, 0, 2048, dtype=np.float32)
    repeats = int(np.prod(size)) // x.size
    return lambda: _threads.run(_exponentials, repeats, x, operations=1e9)


class SelectiveScan:
    """What does Mamba's recurrence cost on the CPU, alone and with its gradients?"""

    params = (sizes([SMALL[0], MAMBA[0], MAMBA[1]], [SMALL[1], MAMBA[2]]), list(LIBRARIES))
    param_names = ("batch, length, channels, states", "library")
    timeout = 300

    def setup(self, size, library):
        self.arguments = problem(*size)
        training_pass(library, self.arguments)

    def time_forward(self, size, library):
        with torch.no_grad():
            LIBRARIES[library](*self.arguments[:-1])

    def time_forward_and_backward(self, size, library):
        training_pass(library, self.arguments)

    def peakmem_forward_and_backward(self, size, library):
        training_pass(library, self.arguments)


def peak_of(size: tuple[int, int, int, int]) -> None:
    """Print the growth of this process's peak of memory in a training pass, beside the bytes of inputs, outputs and gradients."""

    def resident(which: str) -> int:
        return 1024 * int(re.findall(which + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[0])

    training_pass("hsv_torch", problem(2, 65, 32, 4))  # compiles
    before = resident("VmRSS")
    arguments = problem(*size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    results = training_pass("hsv_torch", arguments)
    ours = sum(t.numel() * t.element_size() for t in (*arguments, *results))
    print(f"{size!s:25s} {(resident('VmHWM') - before) / ours:8.2f} times {ours / 2**20:.0f} MiB")


def main() -> None:
    """Print milliseconds of the forward pass and of both passes, and the ratio of each library to ours."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.selective_scan", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="of all threads together, for a machine that is busy")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peaks of memory of training passes, Linux only")
    parser.add_argument("--peak-of", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        peak_of(tuple(options.peak_of))
        return
    if options.memory:
        print("batch, length, d, n       peak of memory, of inputs, outputs and gradients together")
        for size in ((4, 2048, 256, n) for n in (12, 16, 64, 128)):
            command = [sys.executable, "-m", "asv_benchmarks.selective_scan", "--peak-of", *map(str, size)]
            subprocess.run(command, check=True)
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}, {clock.__name__}")
    print("batch, length, d, n       library               forward ms  (least)    both ms  (least)   both / ours")
    for size in (*SMALL, *MAMBA):
        arguments = problem(*size)
        expected = training_pass("torch loop", arguments)
        libraries = list(LIBRARIES)[: 1 if options.ours_only else None]
        times: dict[str, tuple[list[float], list[float]]] = {library: ([], []) for library in libraries}
        yardstick, alone = exponentials(size), []
        for k in range(options.rounds + 1):
            begin = clock()
            yardstick()
            alone.append(1e3 * (clock() - begin))
            for library, (forward, both) in times.items():
                begin = clock()
                with torch.no_grad():
                    LIBRARIES[library](*arguments[:-1])
                middle = clock()
                results = training_pass(library, arguments)
                end = clock()
                if k > 0:
                    forward.append(1e3 * (middle - begin))
                    both.append(1e3 * (end - middle))
                else:
                    for actual, exact in zip(results, expected, strict=True):
                        assert (actual - exact).abs().max() < 1e-4 * exact.abs().max(), library
        ours = statistics.median(times["hsv_torch"][1])
        for library, (forward, both) in times.items():
            medians = statistics.median(forward), statistics.median(both)
            print(
                f"{size!s:25s} {library:20s} {medians[0]:11.2f} {min(forward):8.2f} {medians[1]:11.2f} {min(both):8.2f}"
                f" {medians[1] / ours:13.1f}"
            )
        forward, both = (statistics.median(passes) for passes in times["hsv_torch"])
        rate = statistics.median(alone[1:])
        print(
            f"{size!s:25s} {'exponentials':20s} {rate:11.2f} {min(alone):8.2f} {2 * rate:11.2f} {2 * min(alone):8.2f}"
            f"   the scan has {rate / forward:.2f} and {2 * rate / both:.2f} of their rate"
        )


if __name__ == "__main__":
    main()
