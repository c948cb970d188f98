"""Benchmarks of the packages beside their peers, measured in the same run.

One file for each source module; a class answers one question, which is its docstring. A parameter named ``library`` holds
who computes: first ours, then the peers; `table` turns the rest of the parameters into rows and quotes the ratio to each peer.
"""

import os
from collections.abc import Callable
from typing import Any

FULL = os.environ.get("HSV_BENCHMARK_SIZES", "quick") == "full"
"""Whether `make bench-full` asked for the large sizes too."""


def sizes(quick: list, full: list) -> list:
    """Return the sizes to measure: the quick ones, and with ``make bench-full`` the others too."""
    return quick + full if FULL else quick


def prepared(compute: Callable[[], Any], library: str) -> Callable[[], Any]:
    """Return a computation after a first run if it is ours: the first run loads or compiles the kernel."""
    if library == "hsv":
        compute()
    return compute
