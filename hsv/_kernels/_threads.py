"""Threads for kernels that release the GIL.

Numba's own threads are not used: its OpenMP layer kills a forked child (a data loader's worker), its workqueue layer must not be entered
twice at once, and both keep a number of threads of their own.
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


def run(
    kernel: Callable[..., Any], n_tasks: int, *arguments: Any, operations: float, most_threads: int | None = None
) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges that make up ``range(n_tasks)``, in so many threads at most, or in ``NUMBA_NUM_THREADS``.

    Tasks must not depend on each other. Threads take the next range when they are done with one, so that a core that is busy with
    something else delays nobody; a thread that has not even begun when the rest is done is not waited for. Below some 50
    microseconds of work each (``operations``, roughly one multiply-add) a second thread is not worth waking.
    """
    global _pool
    n_threads = min(n_tasks, int(operations / 2e6))
    if n_threads > 1:
        if most_threads is None:
            import numba

            most_threads = int(getattr(numba.config, "NUMBA_NUM_THREADS"))  # noqa: B009 - set from the environment when Numba is imported
        n_threads = min(n_threads, most_threads)
    if n_threads <= 1:
        kernel(0, n_tasks, *arguments)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="hsv")
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
