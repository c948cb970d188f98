"""Threads for the scan kernels: as many as PyTorch has, and one in a worker process, as PyTorch sets it there."""

from collections.abc import Callable
from typing import Any

import torch

from hsv._kernels import _threads


def run(kernel: Callable[..., Any], n_tasks: int, *arguments: Any, operations: float) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges that make up ``range(n_tasks)``; see ``hsv._kernels._threads``."""
    _threads.run(kernel, n_tasks, *arguments, operations=operations, most_threads=torch.get_num_threads())
