"""Mean and spread over seeds, and what a difference between two arms amounts to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Of the values of several seeds.

    `deviation` is the sample standard deviation (divisor ``count - 1``), None for a single value.
    """

    count: int
    mean: float
    deviation: float | None
    least: float
    greatest: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean by Student's t distribution, None below two values."""
        if self.deviation is None:
            return None
        from scipy import stats

        half = float(stats.t.ppf(0.975, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of all values.

    Raises
    ------
    ValueError
        If there is no value, or one is not finite.

    Examples
    --------
    >>> summarise([0.9, 0.92, 0.94]).mean
    0.92
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite numbers, at least one, got {list(values)}")
    mean = math.fsum(values) / len(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), mean, deviation, min(values), max(values))


def mean_of_best(values: Sequence[float], count: int) -> float:
    """Return the mean of the `count` greatest values: what the paper reports, and flattering; show all seeds beside it.

    Raises
    ------
    ValueError
        If `count` is below 1 or above the number of values.
    """
    if not 1 <= count <= len(values):
        raise ValueError(f"count must be in [1, {len(values)}], got {count}")
    return math.fsum(sorted(values)[-count:]) / count


def percent_with_spread(summary: Summary) -> str:
    """Return mean and sample standard deviation of fractions, in percent."""
    spread = "" if summary.deviation is None else f" ± {100 * summary.deviation:.1f}"
    return f"{100 * summary.mean:.1f}{spread} %"


@dataclass(frozen=True)
class PairedDifference:
    """First arm minus second arm, seed by seed.

    `interval` is the 95 % confidence interval of the mean by Student's t distribution, None below two seeds.
    """

    by_seed: dict[int, float]
    mean: float
    interval: tuple[float, float] | None

    @property
    def n_positive(self) -> int:
        """How many seeds favour the first arm."""
        return sum(difference > 0 for difference in self.by_seed.values())

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """Compare two arms on the seeds that both have.

    Parameters
    ----------
    first, second : mapping from seed to value

    Raises
    ------
    ValueError
        If there is no common seed.
    """
    by_seed = {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
    if not by_seed:
        raise ValueError(f"the arms have no seed in common: {sorted(first)} and {sorted(second)}")
    summary = summarise(list(by_seed.values()))
    return PairedDifference(by_seed, summary.mean, summary.interval)
