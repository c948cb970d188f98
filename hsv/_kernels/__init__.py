"""Kernels for what array libraries are bad at: many small recurrences, and many small systems, at once.

`_reference` and `_small_systems_reference` hold each kernel in a few lines of plain NumPy, `_numba` and `_small_systems` the same
functions with the same signatures, compiled. Numba is imported when the first kernel is called, so that ``import hsv`` stays quick.
"""

from importlib import import_module
from typing import Any

_SMALL_SYSTEMS = {"condition_numbers", "exponentials", "hankel_values", "project", "side_by_side", "stable"}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "_small_systems" if name in _SMALL_SYSTEMS else "_numba"
    return getattr(import_module(f"hsv._kernels.{module}"), name)
