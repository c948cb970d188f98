"""Warnings that point at the code that called the package, whatever lies between."""

from __future__ import annotations

import sys
import warnings
from types import TracebackType

from hsv._errors import OrderWarning


def level_outside() -> int:
    """Return the ``stacklevel`` with which a warning of the function that asks points at the nearest code outside the package.

    Python 3.11 has no ``skip_file_prefixes``, and a fixed number is wrong as soon as one method calls another.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_own(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def _is_own(module: str) -> bool:
    return module == "hsv" or module.startswith("hsv.")


class WarnTheCaller:
    """Within it, warnings of wrapped methods wait; at its end they are issued again, at the code that called the package.

    Python remembers a warning by the line that it points at: one that points inside the package is shown for the first of all calls only. A region that raises issues none.
    """

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings(record=True)
        caught = self._catch.__enter__()
        assert caught is not None  # with record=True
        self._caught = caught
        warnings.simplefilter("always", OrderWarning)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._catch.__exit__(kind, error, trace)
        if kind is None:
            for found in self._caught:
                warnings.warn(found.message, stacklevel=level_outside())
