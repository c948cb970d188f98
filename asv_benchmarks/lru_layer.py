"""One complex diagonal system with many inputs, an LRU layer, beside the floor of its linear algebra, measured in turn in one run.

``python -m asv_benchmarks.lru_layer [--states 384] [--width 128] [--order 92] [--threads 2] [--rounds 15] [--cpu-time] [--memory]``

The floor is what no way of finding all Hankel values through factors goes without, in NumPy: two Cholesky factors, one set of singular
values, two products of ``n x n x m`` and one of ``n x n x n``. The textbook's pipeline is the one that in-training compression was published
with, written down from its description: Gramians in closed form, values from the eigenvalues of ``P Q``; for the truncation the full
balancing transform and its inverse, of which a corner is kept, then the eigenvectors of what is left.
"""

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import hsv
from asv_benchmarks.libraries import plain_hankel_singular_values
from asv_benchmarks.systems import lru_system

FLOOR = "floor"


def floor(system: hsv.DiagonalStateSpace) -> Callable[[], Any]:
    """Return the factorisations and products alone, on matrices of the system's own sizes and conditions."""
    P, Q = hsv.controllability_gramian(system), hsv.observability_gramian(system)
    Lc, Lo = np.linalg.cholesky(P), np.linalg.cholesky(Q)
    product = Lo.conj().T @ Lc
    B, C, Bh, Ch, Loh = system.B, system.C, system.B.conj().T.copy(), system.C.conj().T.copy(), Lo.conj().T.copy()

    def run() -> None:
        B @ Bh
        Ch @ C
        np.linalg.cholesky(P)
        np.linalg.cholesky(Q)
        Loh @ Lc
        np.linalg.svd(product, compute_uv=False)

    return run


def textbook_gramians(system: hsv.DiagonalStateSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return both Gramians from the closed form as it stands."""
    gap = 1 - system.poles()[:, None] * system.poles().conj()
    return system.B @ system.B.conj().T / gap, system.C.conj().T @ system.C / gap.conj()


def textbook_values(system: hsv.DiagonalStateSpace) -> np.ndarray:
    """Return the roots of the eigenvalues of ``P Q``."""
    P, Q = textbook_gramians(system)
    return np.sort(np.sqrt(np.abs(np.linalg.eigvals(P @ Q))))[::-1]


def textbook_truncation(system: hsv.DiagonalStateSpace, order: int) -> tuple[np.ndarray, ...]:
    """Return poles, inputs and outputs of the system cut in full balanced coordinates."""
    P, Q = textbook_gramians(system)
    L = np.linalg.cholesky(P)
    squares, U = np.linalg.eigh(L.conj().T @ Q @ L)
    T = (L @ U[:, ::-1]) * squares[::-1] ** -0.25
    inverse = np.linalg.inv(T)
    A, B, C = inverse @ np.diag(system.poles()) @ T, inverse @ system.B, system.C @ T
    poles, V = np.linalg.eig(A[:order, :order])
    return poles, np.linalg.inv(V) @ B[:order], C[:, :order] @ V


def measure(steps: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step, the steps in turn, after two rounds that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 2):
        for name, step in steps.items():
            begin = clock()
            step()
            if k >= 2:
                times[name].append(clock() - begin)
    return times


def most_numbers(step: Callable[[], Any], system: hsv.DiagonalStateSpace) -> float:
    """Return the largest amount of memory that arrays take at a time, in multiples of one ``n x n`` matrix of the system's double precision.

    LAPACK's own workspace inside NumPy is not seen.
    """
    step()  # loads the compiled kernels
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / (16 * system.n_states**2)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.lru_layer", description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--order", type=int, default=92)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="time on the processor, not on the wall")
    parser.add_argument("--memory", action="store_true", help="numbers held at a time instead of times")
    asked = parser.parse_args()
    system = lru_system(asked.states, asked.width)
    single = hsv.DiagonalStateSpace.from_log_poles(
        *(x.astype(np.complex64) for x in (system.log_poles, system.B, system.C))
    )

    def cut(sys: hsv.DiagonalStateSpace) -> Any:
        return hsv.diagonalize(hsv.balanced_truncation(sys, asked.order).system)

    values = {
        "all values": lambda: hsv.hankel_singular_values(system),
        "all values, complex64": lambda: hsv.hankel_singular_values(single),
    }
    truncations = {"truncation": lambda: cut(system), "truncation, complex64": lambda: cut(single)}
    peers = {
        "plain NumPy, values": lambda: plain_hankel_singular_values(system),
        "textbook, values": lambda: textbook_values(system),
        "textbook, truncation": lambda: textbook_truncation(system, asked.order),
    }
    size = f"{asked.states} states, {asked.width} inputs and outputs, cut to {asked.order}"
    if asked.memory:
        print(f"{size}; numbers held at a time, in n x n complex ones")
        for name, step in (values | truncations).items():
            print(f"| {name:24s} | {most_numbers(step, system):6.2f} |")
        return
    clock = time.process_time if asked.cpu_time else time.perf_counter
    with threadpool_limits(asked.threads):
        times = measure({FLOOR: floor(system), **values, **truncations, **peers}, asked.rounds, clock)
    print(f"{size}; {asked.threads} threads, load {os.getloadavg()[0]:.1f}, medians of {asked.rounds}\n")
    print("| computation | ms | of the floor |\n|---|---:|---:|")
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(t, times[FLOOR], strict=True))
        print(f"| {name} | {1e3 * statistics.median(t):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
