"""Kernels for what array libraries are bad at: many small recurrences at once.

`_reference` holds each kernel in a few lines of plain NumPy, `_numba` the same
functions with the same signatures, compiled. Numba is imported when the first
kernel is called, so that ``import hsv`` stays quick.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hsv._kernels._numba"), name)
