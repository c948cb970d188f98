"""Benchmarks of `hsv_torch/scan/`, beside the speed of memory and beside plain PyTorch."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

from asv_benchmarks import sizes
from asv_benchmarks.lru_step import CONFIGURATIONS, training_step
from asv_benchmarks.scan_peers import PLAIN
from hsv_torch.scan import linear_scan

N_STATES = 256


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, as the kernel of the system lists them; 32 MiB where it does not."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = [text.strip() for text in (path.read_text() for path in caches) if text.strip()]
    return max((int(text[:-1]) * units[text[-1]] for text in found), default=32 * 2**20)


@numba.njit(parallel=True)
def numba_copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy in parallel, in a loop."""
    for k in numba.prange(source.size):
        target[k] = source[k]


def linear_problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Return poles and inputs of complex64, the inputs four times the last-level cache."""
    batch = 8
    length = 4 * last_level_cache() // (8 * N_STATES * batch)
    generator = torch.Generator().manual_seed(0)
    a = torch.polar(torch.full((N_STATES,), 0.95), 6.28 * torch.rand(N_STATES, generator=generator))
    return a, torch.randn(batch, length, N_STATES, generator=generator, dtype=torch.complex64)


class MemoryBound:
    """How close is the linear scan to a copy of its array, four times the last-level cache, with all threads?"""

    params = (["hsv_torch", "torch copy"],)
    param_names = ("library",)

    def setup(self, library):
        self.a, self.u = linear_problem()
        self.target = torch.empty_like(self.u)
        linear_scan(self.a, self.u)

    def time_linear_scan(self, library):
        if library == "hsv_torch":
            linear_scan(self.a, self.u)
        else:
            self.target.copy_(self.u)


class TrainingStep:
    """What does one training step of a one-block LRU classifier take (sequential MNIST's sizes), beside plain PyTorch?"""

    params = (sizes([256, 28, 13], []), ["hsv_torch", *PLAIN, "no recurrence"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        length, width, batch, blocks, _ = CONFIGURATIONS["smnist"]
        variant = "hsv_torch auto" if library == "hsv_torch" else library
        self.step = training_step(variant, length=length, width=width, batch=batch, n_states=states, blocks=blocks)
        self.step()

    def time_step(self, states, library):
        self.step()

    def peakmem_step(self, states, library):
        self.step()


def main() -> None:
    """Print the scan's share of the copy bandwidth, measured in turn."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.scan", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numba.set_num_threads(arguments.threads)
    a, u = linear_problem()
    target = torch.empty_like(u)
    flat, flat_target = u.view(torch.float32).numpy().ravel(), target.view(torch.float32).numpy().ravel()
    gradient = torch.empty_like(u)
    runs: dict[str, Callable[[], object]] = {
        "scan into new memory": lambda: torch.ops.hsv_torch.linear_scan(a[None, None], u, u[:, 0]),
        "scan into old memory": lambda: _scan_into(a, u, target),
        "torch copy_": lambda: target.copy_(u),
        "torch clone (new memory)": lambda: u.clone(),
        "numba copy": lambda: numba_copy(flat, flat_target),
        "scan backward": lambda: torch.ops.hsv_torch.linear_scan_backward(a[None, None], u, u[:, 0], gradient),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(arguments.rounds + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if k >= 2:
                times[name].append(time.perf_counter() - begin)
    print(f"{u.numel() * 8 / 2**20:.0f} MiB, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    for name, t in times.items():
        rate = 2 * u.numel() * 8 / statistics.median(t) / 1e9
        print(
            f"  {name:25s} {1e3 * statistics.median(t):8.1f} ms (least {1e3 * min(t):7.1f})  {rate:6.1f} GB/s read and written"
        )
    for figure in (statistics.median, min):
        best = min(figure(times["torch copy_"]), figure(times["numba copy"]))
        print(
            f"  scan at {100 * best / figure(times['scan into old memory']):.0f} % of the copy bandwidth ({figure.__name__})"
            f", into new memory at {100 * figure(times['torch clone (new memory)']) / figure(times['scan into new memory']):.0f} % of clone's"
        )


def _scan_into(a: torch.Tensor, u: torch.Tensor, target: torch.Tensor) -> None:
    """The kernel without the allocation, which the copies do not pay either."""
    from hsv_torch.scan import _numba, _operators, _threads

    initial = np.zeros((u.shape[0], u.shape[2]), np.complex64)
    arguments = 1, _operators._past_caches(target), a[None, None].numpy(), u.numpy(), initial, target.numpy()
    _threads.run(_numba.linear_forward, u.shape[0], *arguments, operations=4 * u.numel())


if __name__ == "__main__":
    main()
