"""Reduce a million small diagonal systems on a local Dask cluster.

    python examples/million_systems.py --systems 1000000

A task makes a chunk of random systems and reduces it in one call. With --scheduler it runs on a cluster of many machines.
"""

import argparse
import os
import time

import numpy as np
from dask.distributed import Client, LocalCluster, as_completed, progress

import hsv


def reduce_chunk(seed: int, n_systems: int, n_states: int, tolerance: float = 1e-3) -> tuple[np.ndarray, float]:
    """Reduce `n_systems` random systems; return how many chose each order, and the largest error bound relative to sigma_1."""
    rng = np.random.default_rng(seed)
    poles = np.exp(-rng.uniform(1e-3, 1.0, (n_systems, n_states)))
    B, C = rng.standard_normal((2, n_systems, n_states))
    sys = hsv.DiagonalStateSpace(poles, B[..., None], C[..., None, :], dt=True)
    red = hsv.balanced_truncation(sys, hsv.Threshold(tolerance))
    largest = float((red.error_bound / red.hankel_singular_values[:, 0]).max())
    return np.bincount(red.orders, minlength=n_states + 1), largest


def main() -> None:
    """Map the chunks over the workers and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=int, default=1_000_000)
    parser.add_argument("--states", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=10_000, help="systems a task")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--scheduler", help="address of a running cluster (default: one on this machine)")
    args = parser.parse_args()

    sizes = [min(args.chunk, args.systems - first) for first in range(0, args.systems, args.chunk)]
    cluster = args.scheduler or LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=None)
    with Client(cluster) as client:
        client.submit(reduce_chunk, 0, 1, args.states).result()  # compiled code is loaded once a worker
        start = time.perf_counter()
        tasks = client.map(reduce_chunk, range(len(sizes)), sizes, n_states=args.states)
        progress(tasks, notebook=False)
        results = [result for _, result in as_completed(tasks, with_results=True)]
        seconds = time.perf_counter() - start
    orders = sum(counts for counts, _ in results)
    rate = args.systems / seconds
    print(f"\n{orders.sum():,} systems of {args.states} states in {seconds:.1f} s: {rate:,.0f} systems per second")
    for order, count in enumerate(orders):
        if count:
            print(f"order {order}: {count / orders.sum():7.2%} {'#' * round(50 * count / orders.max())}")
    print(f"largest error bound: {max(bound for _, bound in results):.2g} of the first Hankel value")


if __name__ == "__main__":
    main()
