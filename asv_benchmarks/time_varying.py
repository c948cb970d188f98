"""Benchmarks of `hsv/time_varying/`. No other library has these; the peer is the recursion in plain NumPy, one step at a time."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from asv_benchmarks import prepared, sizes
from hsv import time_varying

LAYER = (256, 128, 64, 1024)  # channels, states, sequences, steps: the layer that the limits are stated for
SMALL = (64, 16, 8, 256)

Computation = Callable[[], Any]


def recorded(channels: int, states: int, sequences: int, steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the poles of a Mamba layer as it is initialised, and recorded arrays of the sizes asked for, in single precision."""
    rng = np.random.default_rng(0)
    A = -np.tile(np.arange(1.0, states + 1), (channels, 1))
    arrays = {
        "delta": np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (sequences, steps, channels))),
        "B": rng.normal(size=(sequences, steps, states)),
        "C": rng.normal(size=(sequences, steps, states)),
        "x": rng.normal(size=(sequences, steps, channels)),
        "weight": rng.normal(size=(sequences, steps, channels)),
    }
    return A.astype(np.float32), {name: values.astype(np.float32) for name, values in arrays.items()}


def estimate(shape: tuple[int, int, int, int], **options: Any) -> Computation:
    """What ours does: feed an estimator and ask for the scores."""
    A, arrays = recorded(*shape)

    def compute() -> Any:
        estimator = time_varying.SelectiveEstimator(A, **options)
        estimator.update(**arrays)
        return estimator.scores(), estimator.standard_error()

    return compute


def plain_scores(shape: tuple[int, int, int, int]) -> Computation:
    """The same scores by the recursions over all sequences and channels at once."""
    A, arrays = recorded(*shape)
    delta, B, C, x, weight = (arrays[name] for name in ("delta", "B", "C", "x", "weight"))

    def compute() -> np.ndarray:
        state = np.zeros((len(B), *A.shape), np.float32)
        p, q = np.zeros(A.shape), np.zeros(A.shape)
        for t in range(B.shape[1]):
            state *= np.exp(delta[:, t, :, None] * A)
            state += (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
            p += np.sum(state**2, axis=0)
        state[:] = 0.0
        for t in reversed(range(B.shape[1])):
            state += (weight[:, t, :, None] * C[:, t, None]) ** 2
            q += np.sum(state, axis=0)
            state *= np.exp(2.0 * delta[:, t, :, None] * A)
        return np.sqrt(np.sum(p * q, axis=0))

    return compute


class Scores:
    """How long do the scores of a selective layer take, beside the recursion in plain NumPy?"""

    params = (sizes([SMALL], [LAYER]), ["hsv", "numpy"])
    param_names = ("(channels, states, sequences, steps)", "library")
    timeout = 600

    def setup(self, shape, library):
        self.compute = prepared(estimate(shape) if library == "hsv" else plain_scores(shape), library)

    def time_scores(self, shape, library):
        self.compute()

    def peakmem_scores(self, shape, library):
        self.compute()


class MeanGramians:
    """How long do the mean Gramians of a selective layer take, summed over the channels or one a channel?"""

    params = (sizes([SMALL], [LAYER]), ["shared", "channel"], [True, False])
    param_names = ("(channels, states, sequences, steps)", "Gramians", "exact")
    timeout = 600

    def setup(self, shape, gramians, exact):
        self.compute = prepared(estimate(shape, gramians=(gramians,), exact=exact), "hsv")

    def time_gramians(self, shape, gramians, exact):
        self.compute()

    def peakmem_gramians(self, shape, gramians, exact):
        self.compute()


def main() -> None:
    """Print how long the layer of 256 channels and 128 states takes, and the limits that these figures must stay below."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.time_varying", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    channels, states, sequences, steps = LAYER
    print(
        f"{channels} channels, {states} states, {sequences} sequences of {steps:,} steps, load {os.getloadavg()[0]:.1f}"
    )
    runs = {
        "scores": ({}, 10.0),
        "scores, white inputs": ({"inputs": "white"}, 10.0),
        "Gramians summed over the channels": ({"gramians": ("shared",)}, 60.0),
        "the same from random signs": ({"gramians": ("shared",), "exact": False}, 60.0),
        "Gramians of each channel": ({"gramians": ("channel",)}, None),
    }
    for name, (options, limit) in runs.items():
        compute = estimate(LAYER, **options)
        estimate(SMALL, **options)()  # loads the kernels
        times, busy = [], []
        for _ in range(arguments.rounds):
            begin, begin_busy = time.perf_counter(), time.process_time()
            compute()
            times.append(time.perf_counter() - begin)
            busy.append(time.process_time() - begin_busy)
        allowed = "" if limit is None else f", limit {limit:.0f} s"
        print(
            f"  {name:34s} {statistics.median(times):6.2f} s (least {min(times):.2f} s{allowed}), {statistics.median(busy):.2f} s of all cores together"
        )


if __name__ == "__main__":
    main()
