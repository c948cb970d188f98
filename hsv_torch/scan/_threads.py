"""Threads for kernels that release the GIL.

Numba's own threads are not used: the OpenMP layer kills a forked child (a DataLoader's worker), the workqueue layer must not
be entered twice at once, and both keep their own number of threads beside PyTorch's. Here it is always PyTorch's, and one
in a worker process, as PyTorch sets it there.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads are not in the child


os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., Any], n_tasks: int, *arguments: Any, operations: float) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges that make up ``range(n_tasks)``, one range a thread.

    Tasks must not depend on each other. Below some 50 microseconds of work (``operations``, roughly one multiply-add each)
    a second thread is not worth waking.
    """
    global _pool
    n_threads = min(torch.get_num_threads(), n_tasks, max(1, int(operations / 2e6)))
    if n_threads <= 1:
        kernel(0, n_tasks, *arguments)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="hsv_torch")
    edges = [n_tasks * k // n_threads for k in range(n_threads + 1)]
    others = [_pool.submit(kernel, first, last, *arguments) for first, last in itertools.pairwise(edges[1:])]
    try:
        kernel(0, edges[1], *arguments)
    finally:
        for other in others:
            other.result()
