"""What systems too large for dense algebra have to bring along to be reduced by the functions for dense ones."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from hsv._order import Rule

Bases: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``left`` and ``right`` from ``Lo U_r``, ``Lc V_r``, the values and a mask of ones, before they are made biorthogonal."""


class LargeSystem(abc.ABC):
    """A system that knows how to find its own Hankel values and reductions.

    :func:`hsv.hankel_singular_values`, :func:`hsv.balanced_truncation` and :func:`hsv.singular_perturbation` ask here first.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def n_states(self) -> int:
        """Number of states ``n``."""

    @abc.abstractmethod
    def _large_hankel_values(self) -> np.ndarray:
        """Hankel singular values, descending, as many as are known."""

    @abc.abstractmethod
    def _large_truncation(self, rule: Rule, bases: Bases, *, stacklevel: int) -> Any:
        """The :class:`hsv.Reduction` by projection on these bases."""

    @abc.abstractmethod
    def _large_singular_perturbation(self, rule: Rule, *, stacklevel: int) -> Any:
        """The :class:`hsv.Reduction` that keeps the steady-state gain."""
