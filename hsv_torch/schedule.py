"""When cuts are attempted, and what an attempt waits for."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsv import DtypeError, HsvError


@dataclass(frozen=True)
class Schedule:
    """When cuts are attempted: attempt k of K at optimizer step ``round(total * (a + (b - a) * k / K))``.

    Parameters
    ----------
    total_steps
        Optimizer steps of the whole training.
    window
        ``(a, b)``, the part of the training in which attempts happen, as fractions of `total_steps`.
    attempts
        Number of attempts K.

    Raises
    ------
    HsvError
        If an attempt would fall on step 0 or two on the same step: attempts that are asked for happen.

    Examples
    --------
    >>> Schedule(total_steps=20_000, window=(0.0, 0.1), attempts=4).steps
    (500, 1000, 1500, 2000)
    """

    total_steps: int
    window: tuple[float, float] = (0.0, 0.1)
    attempts: int = 4

    def __post_init__(self) -> None:
        for name in ("total_steps", "attempts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise DtypeError(f"`{name}` must be an int, got {value!r}")
            if value < 1:
                raise HsvError(f"`{name}` must be at least 1, got {value}")
        try:
            start, stop = (float(edge) for edge in self.window)
        except (TypeError, ValueError):
            raise DtypeError(f"`window` must be a pair of fractions of the training, got {self.window!r}") from None
        if not 0.0 <= start <= stop <= 1.0:
            raise HsvError(f"`window` must satisfy 0 <= a <= b <= 1 (fractions of the training), got {self.window!r}")
        object.__setattr__(self, "window", (start, stop))
        steps = self.steps
        if steps[0] < 1:
            raise HsvError(
                f"attempt 1 of {self.attempts} would fall on step 0, before any training; give `window` {self.window} a later "
                f"end, or ask for fewer attempts in these {self.total_steps} steps"
            )
        for attempt, (earlier, later) in enumerate(itertools.pairwise(steps), start=1):
            if earlier == later:
                raise HsvError(
                    f"attempts {attempt} and {attempt + 1} of {self.attempts} would both fall on step {later}; widen `window` "
                    f"{self.window}, or ask for fewer attempts in these {self.total_steps} steps"
                )

    @property
    def steps(self) -> tuple[int, ...]:
        """The optimizer steps after which attempts are made, ascending."""
        start, stop = self.window
        return tuple(
            round(self.total_steps * (start + (stop - start) * k / self.attempts)) for k in range(1, self.attempts + 1)
        )


@dataclass(frozen=True)
class LossFalls:
    """What an attempt waits for: the training loss has begun to fall. Before it has, spectra are those of the initialisation.

    The loss is averaged over the last `average` steps. On tasks with a plateau (a classifier that first learns how frequent the classes are)
    name the loss itself, a little below the plateau; elsewhere a fraction of the loss at the start is enough. Once met, the
    condition stays met.

    Parameters
    ----------
    to
        The mean loss that must be reached, in units of the loss.
    by
        Or: the fraction of the mean over the first `average` steps by which it must have fallen, in (0, 1).
    average
        Optimizer steps that a mean is taken over.

    Raises
    ------
    HsvError
        If not exactly one of `to` and `by` is given, or a number is impossible.

    Examples
    --------
    >>> LossFalls(by=0.2)
    LossFalls(to=None, by=0.2, average=50)
    """

    to: float | None = None
    by: float | None = None
    average: int = 50

    def __post_init__(self) -> None:
        if (self.to is None) == (self.by is None):
            raise HsvError(
                f"`to` or `by`: exactly one of them says how far the loss must have fallen, got to={self.to!r}, by={self.by!r}"
            )
        if self.to is not None and not math.isfinite(self.to):
            raise HsvError(f"`to` must be a finite loss, got {self.to!r}")
        if self.by is not None and not 0 < self.by < 1:
            raise HsvError(f"`by` is a fraction of the loss at the start and must be in (0, 1), got {self.by!r}")
        if isinstance(self.average, bool) or not isinstance(self.average, int):
            raise DtypeError(f"`average` must be an int (optimizer steps), got {self.average!r}")
        if self.average < 1:
            raise HsvError(f"`average` must be at least 1, got {self.average}")


class LossMeter:
    """Follows the loss for a :class:`LossFalls`. Tensors are kept as they are until somebody asks: no wait for a GPU at each step."""

    def __init__(self, condition: LossFalls) -> None:
        self.condition = condition
        self._first: list[float | Tensor] = []
        self._last: collections.deque[float | Tensor] = collections.deque(maxlen=condition.average)
        self._count = 0
        self._met = False

    def see(self, loss: float | Tensor) -> None:
        """Take in the loss of one step."""
        if self._met:
            return
        value = loss.detach() if isinstance(loss, Tensor) else float(loss)
        self._last.append(value)
        self._count += 1
        if len(self._first) < self.condition.average:
            self._first.append(value)

    def objection(self) -> str | None:
        """Why it is too early, or None once the loss has fallen as asked."""
        if self._met:
            return None
        average, to = self.condition.average, self.condition.to
        if self._count < average:
            return f"only {self._count} losses are known, and means are taken over {average}"
        last = _mean(self._last)
        if to is None:
            assert self.condition.by is not None
            to = _mean(self._first) * (1 - self.condition.by)
        self._met = last <= to
        return (
            None
            if self._met
            else f"the mean loss of the last {average} steps is {last:.4g}, and has to fall to {to:.4g} first"
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists."""
        return {
            "first": [float(x) for x in self._first],
            "last": [float(x) for x in self._last],
            "count": self._count,
            "met": self._met,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._first = list(state["first"])
        self._last = collections.deque(state["last"], maxlen=self.condition.average)
        self._count, self._met = int(state["count"]), bool(state["met"])


def _mean(losses: Iterable[float | Tensor]) -> float:
    values = list(losses)
    return float(torch.tensor([float(value) for value in values], dtype=torch.float64).mean())
