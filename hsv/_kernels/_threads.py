"""Threads for kernels that release the GIL.

Numba's own threads are not used: its OpenMP layer kills a forked child, and its workqueue layer must not be entered twice at once.
"""

import collections
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads are not in the child


os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., Any], n_tasks: int, *arguments: Any, operations: float) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges that make up ``range(n_tasks)``, in ``NUMBA_NUM_THREADS`` threads at most.

    Tasks must not depend on each other. Below some 100 microseconds of work each (``operations``, one multiply-add) a second
    thread is not worth waking.
    """
    global _pool
    import numba

    allowed = int(getattr(numba.config, "NUMBA_NUM_THREADS"))  # noqa: B009 - set from the environment when Numba is imported
    n_threads = min(allowed, n_tasks, int(operations / 2e6))
    if n_threads <= 1:
        kernel(0, n_tasks, *arguments)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(allowed - 1, thread_name_prefix="hsv")
    n_ranges = min(n_tasks, 4 * n_threads)
    ranges = collections.deque(itertools.pairwise(n_tasks * k // n_ranges for k in range(n_ranges + 1)))

    def work() -> None:
        while True:
            try:
                first, last = ranges.popleft()
            except IndexError:
                return
            kernel(first, last, *arguments)

    others = [_pool.submit(work) for _ in range(n_threads - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
