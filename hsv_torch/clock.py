"""The time that training steps take."""

from __future__ import annotations

import time


class StepClock:
    """Wall-clock time of training steps: from the first call after an attempt to the last before the next."""

    __slots__ = ("first", "last", "seconds", "ticks")

    def __init__(self, ticks: int = 0, seconds: float = 0.0) -> None:
        self.ticks = ticks  # steps of a run that was resumed
        self.seconds = seconds
        self.first = self.last = 0.0

    def tick(self) -> None:
        """A step has been made."""
        self.last = time.perf_counter()
        if self.first == 0.0:
            self.first = self.last
        else:
            self.ticks += 1

    def read(self) -> tuple[int, float]:
        """Steps timed and the seconds that they took."""
        return self.ticks, self.seconds + self.last - self.first

    def reset(self) -> None:
        """Begin again, now."""
        self.ticks, self.seconds = 0, 0.0
        self.first = self.last = time.perf_counter()
