"""When cuts are attempted, and what an attempt waits for."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

import hsv
from hsv import DtypeError, HsvError
from hsv_torch.mode_choice import ModeChoice
from hsv_torch.snapshot import pack_systems, unpack_systems

Systems: TypeAlias = Callable[[], dict[str, hsv.DiagonalStateSpace]]
"""Returns the systems of the layers that have one, by name, as they are now."""


@dataclass(frozen=True)
class Schedule:
    """When cuts are attempted: attempt k of K at optimizer step ``round(total * (a + (b - a) * k / K))``.

    The default is the schedule of the CompreSSM paper. :meth:`once`, :meth:`every` and :meth:`after_warm_up` make others, and `at` names any steps.

    Parameters
    ----------
    total_steps
        Optimizer steps of the whole training.
    window
        ``(a, b)``, the part of the training in which attempts happen, as fractions of `total_steps`.
    attempts
        Number of attempts K.
    at
        The optimizer steps of the attempts themselves, ascending, in place of `window` and `attempts`.

    Raises
    ------
    HsvError
        If an attempt would fall on step 0 or two on the same step: attempts that are asked for happen.

    Examples
    --------
    >>> Schedule(total_steps=20_000, window=(0.0, 0.1), attempts=4).steps
    (500, 1000, 1500, 2000)
    >>> Schedule(total_steps=20_000, at=(700, 900)).steps
    (700, 900)
    """

    total_steps: int
    window: tuple[float, float] = (0.0, 0.1)
    attempts: int = 4
    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.at is not None:
            object.__setattr__(self, "at", self._checked_steps(self.at))
            object.__setattr__(self, "attempts", len(self.steps))
        for name in ("total_steps", "attempts"):
            _check_count(name, getattr(self, name))
        try:
            start, stop = (float(edge) for edge in self.window)
        except (TypeError, ValueError):
            raise DtypeError(f"`window` must be a pair of fractions of the training, got {self.window!r}") from None
        if not 0.0 <= start <= stop <= 1.0:
            raise HsvError(f"`window` must satisfy 0 <= a <= b <= 1 (fractions of the training), got {self.window!r}")
        object.__setattr__(self, "window", (start, stop))
        if self.at is not None:
            return
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

    def _checked_steps(self, at: Iterable[int]) -> tuple[int, ...]:
        _check_count("total_steps", self.total_steps)
        if not isinstance(at, Iterable):
            raise DtypeError(
                f"`at` must be a list of optimizer steps, got {at!r}; Schedule.once makes a single attempt"
            )
        steps = tuple(at)
        if not steps:
            raise HsvError("`at` is empty, so nothing would ever be cut; name at least one optimizer step")
        for step in steps:
            _check_count("at", step)
        if any(earlier >= later for earlier, later in itertools.pairwise(steps)) or steps[-1] > self.total_steps:
            raise HsvError(f"`at` must be ascending steps up to total_steps = {self.total_steps}, got {steps}")
        return steps

    @classmethod
    def once(cls, total_steps: int, step: int) -> Schedule:
        """One attempt, at an optimizer step.

        Examples
        --------
        >>> Schedule.once(20_000, 2_000).steps
        (2000,)
        """
        return cls(total_steps, at=(step,))

    @classmethod
    def every(cls, total_steps: int, steps: int, *, start: int = 0, stop: int | None = None) -> Schedule:
        """Continuous: an attempt every so many optimizer steps, after `start` and up to `stop` (the end by default).

        Examples
        --------
        >>> Schedule.every(1_000, 200, start=100).steps
        (300, 500, 700, 900)
        """
        _check_count("total_steps", total_steps)
        _check_count("steps", steps)
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise HsvError(f"`start` must be an int of at least 0 (optimizer steps), got {start!r}")
        stop = total_steps if stop is None else stop
        at = tuple(range(start + steps, stop + 1, steps))
        if not at:
            raise HsvError(f"there is no step every {steps} steps after `start` = {start} and up to `stop` = {stop}")
        return cls(total_steps, at=at)

    @classmethod
    def after_warm_up(cls, total_steps: int, warm_up_steps: int, *, part: float = 0.1, attempts: int = 4) -> Schedule:
        """Evenly spaced attempts in the `part` of the training that follows the warm-up.

        Examples
        --------
        >>> Schedule.after_warm_up(20_000, 1_000).steps
        (1500, 2000, 2500, 3000)
        """
        _check_count("total_steps", total_steps)
        _check_count("warm_up_steps", warm_up_steps)
        begin = warm_up_steps / total_steps
        return cls(total_steps, window=(begin, begin + part), attempts=attempts)

    @property
    def steps(self) -> tuple[int, ...]:
        """The optimizer steps after which attempts are made, ascending."""
        if self.at is not None:
            return self.at
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
        _check_count("average", self.average)

    def meter(self, systems: Systems) -> LossMeter:
        """What follows the loss; the layers' systems are of no interest here."""
        return LossMeter(self)


@dataclass(frozen=True)
class RankingSettles:
    r"""What an attempt waits for: the order of importance of each layer's states no longer changes.

    The layers' systems are looked at when an attempt is due, and then every `every` optimizer steps until this is met: between two looks the scores
    :math:`|B_k| |C_k| / (1 - |\lambda_k|^2)` of the states have Spearman's rank correlation of at least `correlation` in every layer; and, with `drift`,
    no Hankel singular value can have moved by more than the fraction `drift` of the largest one, by Weyl's bound
    :math:`|\sigma_i(G_1) - \sigma_i(G_2)| \le \|G_1 - G_2\|_H`.

    Layers whose system depends on their input have no such scores without data and are not waited for; a model without other layers is refused.

    Parameters
    ----------
    correlation
        In (0, 1].
    every
        Optimizer steps between two looks.
    drift
        Positive; None for no such condition.

    Raises
    ------
    HsvError
        If a number is impossible.

    Examples
    --------
    >>> RankingSettles(correlation=0.98, every=100)
    RankingSettles(correlation=0.98, every=100, drift=None)
    """

    correlation: float = 0.95
    every: int = 50
    drift: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.correlation <= 1:
            raise HsvError(f"`correlation` is a rank correlation and must be in (0, 1], got {self.correlation!r}")
        _check_count("every", self.every)
        if self.drift is not None and not 0 < self.drift < math.inf:
            raise HsvError(
                f"`drift` is a fraction of the largest Hankel singular value, a positive number, got {self.drift!r}"
            )

    def meter(self, systems: Systems) -> RankingMeter:
        """What looks at the layers' systems."""
        if not systems():
            raise HsvError(
                "`ready`: RankingSettles looks at layers whose system does not depend on their input, and none of those that are cut is one; "
                "use LossFalls"
            )
        return RankingMeter(self, systems)


class LossMeter:
    """Follows the loss for a :class:`LossFalls`. Tensors are kept as they are until somebody asks: no wait for a GPU at each step."""

    needs_loss = True

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


class RankingMeter:
    """Looks at the layers' systems for a :class:`RankingSettles`, when it is asked and enough steps have passed since the last look."""

    needs_loss = False

    def __init__(self, condition: RankingSettles, systems: Systems) -> None:
        self.condition = condition
        self._systems = systems
        self._before: dict[str, hsv.DiagonalStateSpace] = {}
        self._since = 0  # steps since the last look
        self._objection: str | None = None
        self._met = False

    def see(self, loss: object) -> None:
        """Count one step; the loss is of no interest here."""
        self._since += 1

    def objection(self) -> str | None:
        """Why it is too early, or None once the ranking has settled."""
        if self._met or (self._before and self._since < self.condition.every):
            return self._objection
        now, before = self._systems(), self._before
        self._before, self._since = now, 0
        self._objection = self._compare(before, now)
        self._met = self._objection is None
        return self._objection

    def _compare(self, before: dict[str, hsv.DiagonalStateSpace], now: dict[str, hsv.DiagonalStateSpace]) -> str | None:
        steps = self.condition.every
        for name, system in now.items():
            if name not in before or before[name].n_states != system.n_states:
                return f"the ranking of the states is compared with that of {steps} steps before, and this is the first look"
            found = rank_correlation(_scores(before[name]), _scores(system))
            if found < self.condition.correlation:
                return (
                    f"the ranking of the states of {name!r} has a correlation of {found:.3f} with that of {steps} steps before, and "
                    f"must have {self.condition.correlation:g}"
                )
            if self.condition.drift is not None:
                largest = float(hsv.hankel_norm(system).max())
                moved = float(hsv.hankel_norm(system - before[name]).max()) / largest if largest > 0 else 0.0
                if moved > self.condition.drift:
                    return (
                        f"Hankel singular values of {name!r} may have moved by {moved:.3g} of the largest one in {steps} steps, and may "
                        f"by {self.condition.drift:g}"
                    )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, tensors."""
        return {
            "met": self._met,
            "objection": self._objection,
            "since": self._since,
            "before": pack_systems(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._met, self._objection = bool(state["met"]), state["objection"]
        self._before, self._since = unpack_systems(state["before"]), int(state["since"])


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation over the last axis, the least one of a batch; ties in the order in which they stand."""
    n = first.shape[-1]
    if n == 1:
        return 1.0
    ranks = [torch.argsort(torch.argsort(x, dim=-1, stable=True), dim=-1).double() for x in (first, second)]
    squares = ((ranks[0] - ranks[1]) ** 2).sum(-1)
    return float((1 - 6 * squares / (n * (n * n - 1))).min())


def _scores(system: hsv.DiagonalStateSpace) -> Tensor:
    return ModeChoice("hankel").scores(system)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DtypeError(f"`{name}` must be an int (optimizer steps), got {value!r}")
    if value < 1:
        raise HsvError(f"`{name}` must be at least 1, got {value}")


def _mean(losses: Iterable[float | Tensor]) -> float:
    values = list(losses)
    return float(torch.tensor([float(value) for value in values], dtype=torch.float64).mean())
