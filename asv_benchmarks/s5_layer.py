"""One S5 layer, forward and backward, beside the package s5-pytorch, measured in turn in one run.

``python -m asv_benchmarks.s5_layer [--threads 2] [--rounds 9] [--cpu-time]``

Both layers store the same number of complex states and have gradients of all parameters and of the input.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import hsv_torch
from asv_benchmarks import sizes

# (batch, length, channels, complex states): a small layer, one in the middle, and the published ones of sequential and of list operations.
PROBLEMS = [(16, 784, 16, 64), (8, 1024, 64, 64), (4, 1024, 128, 192), (4, 2048, 128, 8)]
LIBRARIES = ("hsv_torch", "s5-pytorch")


def layer(library: str, channels: int, states: int) -> nn.Module:
    """Return a layer of a library."""
    torch.manual_seed(0)
    if library == "hsv_torch":
        return hsv_torch.S5(channels, states)
    from s5 import S5

    made: nn.Module = S5(channels, state_width=states)
    assert made.seq.Lambda.shape == (states,)
    return made


def training_pass(library: str, size: tuple[int, int, int, int]) -> Callable[[], None]:
    """Return a function that runs forward and backward on fixed random data."""
    batch, length, channels, states = size
    made = layer(library, channels, states)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    x.requires_grad_()

    def run() -> None:
        made.zero_grad()
        x.grad = None
        (made(x) * weight).sum().backward()

    return run


class S5Layer:
    """What do a forward and a backward pass of an S5 layer take on the CPU, beside s5-pytorch?"""

    params = (sizes(PROBLEMS[:2], PROBLEMS[2:]), list(LIBRARIES))
    param_names = ("batch, length, channels, states", "library")
    timeout = 300

    def setup(self, size, library):
        self.run = training_pass(library, size)
        self.run()

    def time_forward_and_backward(self, size, library):
        self.run()

    def peakmem_forward_and_backward(self, size, library):
        self.run()


def main() -> None:
    """Print milliseconds of both passes, and the ratio of the other library to ours."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.s5_layer", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="of all threads together, for a machine that is busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {clock.__name__}")
    print("batch, length, channels, states  library       median ms   least ms   median of ratios to hsv_torch")
    for size in PROBLEMS:
        runs = {library: training_pass(library, size) for library in LIBRARIES}
        times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
        for k in range(options.rounds + 1):
            for library, run in runs.items():
                begin = clock()
                run()
                if k > 0:
                    times[library].append(1e3 * (clock() - begin))
        for library, t in times.items():
            ratio = statistics.median(a / b for a, b in zip(t, times["hsv_torch"], strict=True))
            print(f"{size!s:32s} {library:12s} {statistics.median(t):10.2f} {min(t):10.2f} {ratio:10.2f}")


if __name__ == "__main__":
    main()
