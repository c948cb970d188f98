"""Arms side by side: the figures of a table, and sentences computed from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from paper_repro.configuration import KEYS_OF_CUTS, RunConfig
from paper_repro.errors import ResultError
from paper_repro.progress import states_text
from paper_repro.results import RunResult
from paper_repro.statistics import (
    PairedDifference,
    Summary,
    mean_of_best,
    paired_difference,
    percent_with_spread,
    summarise,
)

SHARE_OF_REDUCTIONS_AIMED_AT = 0.02
SAME_SPEED = 0.05  # medians on a shared machine differ by as much between equal runs
ARMS_THAT_CUT = ("in_training", "pragmatic", "regularised")  # while they train
TERMINAL_COLUMNS = ("arm", "states a layer", "test accuracy", "ms a step", "reductions")  # what 80 characters hold


@dataclass(frozen=True)
class ArmFigures:
    """One arm: its runs, in the order of their seeds, and what they amount to."""

    name: str
    runs: tuple[RunResult, ...]

    @property
    def config(self) -> RunConfig:
        """Return the configuration of the first seed."""
        return self.runs[0].config

    @property
    def accuracy_by_seed(self) -> dict[int, float]:
        """Test accuracy of each seed that has one."""
        return {run.config.seed: run.test_accuracy for run in self.runs if run.test_accuracy is not None}

    @property
    def accuracy(self) -> Summary:
        """Test accuracy over the seeds."""
        return summarise(list(self.accuracy_by_seed.values()))

    @property
    def mean_states(self) -> float:
        """Mean over seeds and blocks of the states at the end."""
        return summarise([count for run in self.runs for count in run.states_after]).mean

    @property
    def step_before(self) -> float:
        """Mean over the seeds of the median seconds of a step with the first size."""
        return summarise([run.timing.step_before for run in self.runs]).mean

    @property
    def step_after(self) -> float:
        """Mean over the seeds of the median seconds of a step with the last size."""
        return summarise([run.timing.step_after for run in self.runs]).mean

    @property
    def reduction_seconds(self) -> float:
        """Seconds in reductions, all seeds together."""
        return sum(run.timing.reductions for run in self.runs)

    @property
    def training_seconds(self) -> float:
        """Seconds of training, all seeds together."""
        return sum(run.timing.training for run in self.runs)

    def states_words(self) -> str:
        """Return states before and after, seed by seed where they differ: ``64 → 8 9 8``."""
        before = _distinct(states_text(run.states_before) for run in self.runs)
        after = _distinct(states_text(run.states_after) for run in self.runs)
        return _arrow(before, after)

    def cells(self) -> dict[str, str]:
        """Return the row of this arm: the text under the name of each column."""
        parameters = [
            _distinct(str(count) for count in sizes)
            for sizes in zip(*((run.n_parameters_before, run.n_parameters_after) for run in self.runs), strict=True)
        ]
        tested = bool(self.accuracy_by_seed)
        before, after = (f"{1e3 * seconds:.2f}" for seconds in (self.step_before, self.step_after))
        cuts = self.config.arm in ARMS_THAT_CUT
        share = self.reduction_seconds / self.training_seconds
        return {
            "arm": self.name,
            "rate": _distinct(f"{run.config.learning_rate:g}" for run in self.runs),
            "states a layer": self.states_words(),
            "parameters": _arrow(*parameters),
            "test accuracy": percent_with_spread(self.accuracy) if tested else "not looked at",
            "by seed": " ".join(f"{100 * value:.1f}" for value in self.accuracy_by_seed.values()),
            "ms a step": f"{before} → {after}" if cuts else after,
            "reductions": f"{self.reduction_seconds:.2f} s, {share:.1%}" if cuts else "none",
        }


@dataclass(frozen=True)
class Outcome:
    """A full arm, every cut arm with its twin from scratch, how their learning rates were chosen, and the time of it all."""

    full: ArmFigures
    pairs: tuple[tuple[ArmFigures, ArmFigures], ...]
    choices: tuple[str, ...]
    seconds: float

    @property
    def arms(self) -> tuple[ArmFigures, ...]:
        """Return the full arm, then each cut with its twin from scratch."""
        return (self.full, *(arm for pair in self.pairs for arm in pair))

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """Return every run of every arm."""
        return tuple(run for arm in self.arms for run in arm.runs)


def group_runs(results: Iterable[RunResult]) -> list[ArmFigures]:
    """Gather runs that differ in nothing but the seed (and, from scratch, the sizes) into arms.

    Raises
    ------
    ResultError
        If there is no run.
    """
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        identity = _identity_of_arm(result.config)
        groups.setdefault(identity, []).append(result)
    if not groups:
        raise ResultError("there is no finished run to show")
    arms = [make_arm(runs) for runs in groups.values()]
    return sorted(arms, key=lambda arm: (arm.config.task, arm.config.arm != "full", -arm.mean_states, arm.config.arm))


def _identity_of_arm(config: RunConfig) -> str:
    values = {key: value for key, value in config.identity().items() if key != "seed"}
    values.pop("starts_from", None)  # a run of the same seed
    if config.sizes_of is not None:  # the sizes differ with the seeds; the cuts that they come from do not
        values.pop("n_states", None)
        values |= {key: getattr(config, key) for key in KEYS_OF_CUTS - {"order"}}
    return json.dumps(values, sort_keys=True)


def make_arm(runs: Sequence[RunResult]) -> ArmFigures:
    """Return the figures of `runs`, which are seeds of one arm."""
    config = runs[0].config
    names = {
        "full": "full",
        "in_training": f"cut in training, {rule_words(config)}",
        "from_scratch": "from scratch at its sizes" if config.sizes_of is not None else "from scratch",
        "pragmatic": f"cut by {config.share_of_cut:.0%} while validation improves",
        "post_training": f"cut after training, {rule_words(config, once=True)}",
        "distilled": "distilled",
        "regularised": f"regularised, then cut, {rule_words(config, once=True)}",
    }
    return ArmFigures(names[config.arm], tuple(sorted(runs, key=lambda run: run.config.seed)))


READING_WORDS = {"complex": "", "real": ", conjugate-aware"}


def rule_words(config: RunConfig, *, once: bool = False) -> str:
    """Return the rule of the cuts in words."""
    order = config.order if config.order is None or isinstance(config.order, int) else states_text(config.order)
    rule = f"tau {config.tau:g}" if config.tau is not None else f"to {order} states"
    times = "once" if once or config.attempts == 1 else f"{config.attempts} times"
    reading = READING_WORDS.get(config.reading, f", by {config.reading}")
    how = reading if config.method is None else f", {config.method}"
    return f"{rule}, {times}{how}"


def make_table(arms: Sequence[ArmFigures], title: str) -> Table:
    """Return the table of `arms` for the terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in TERMINAL_COLUMNS:
        words = column in ("arm", "states a layer")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for arm in arms:
        cells = arm.cells()
        table.add_row(*(cells[column] for column in TERMINAL_COLUMNS))
    return table


def findings(full: ArmFigures, pairs: Sequence[tuple[ArmFigures, ArmFigures]]) -> dict[str, list[str]]:
    """Return what the arms show, in sentences under headings: whichever way the figures point.

    Parameters
    ----------
    full : ArmFigures
    pairs : sequence of (cut in training, from scratch at its sizes)
    """
    cuts = [cut for cut, _ in pairs]
    found = {
        f"Cut in training ({rule_words(cut.config)}), ending at {_mean_states(cut)}": [
            _against_scratch(cut, scratch),
            _against_full(cut, full),
            _cuts_made(cut),
            _speed(cut),
        ]
        for cut, scratch in pairs
    }
    found["Time"] = [
        _reduction_share(cuts),
        _training_time(full, cuts),
        _compilation([full, *(arm for pair in pairs for arm in pair)]),
    ]
    return found


def best_of_words(arm: ArmFigures, count: int = 3) -> str | None:
    """Return the mean of the best `count` seeds beside the mean of all, None where there are not more seeds."""
    values = list(arm.accuracy_by_seed.values())
    if len(values) <= count:
        return None
    best, mean = mean_of_best(values, count), arm.accuracy.mean
    return f"{arm.name}: {100 * best:.1f} % for the best {count} of {len(values)} seeds, {100 * mean:.1f} % for all"


def _against_scratch(cut: ArmFigures, scratch: ArmFigures) -> str:
    difference = paired_difference(cut.accuracy_by_seed, scratch.accuracy_by_seed)
    return (
        f"Cut in training {percent_with_spread(cut.accuracy)}, from scratch at the same sizes "
        f"{percent_with_spread(scratch.accuracy)}: {_points(difference.mean, 'more', 'less')} for the cut models, "
        f"ahead in {difference.n_positive} of {len(difference.by_seed)} seeds. {_clearness(difference)}"
    )


def _against_full(cut: ArmFigures, full: ArmFigures) -> str:
    difference = paired_difference(cut.accuracy_by_seed, full.accuracy_by_seed)
    return (
        f"Beside the full models, {percent_with_spread(full.accuracy)} with {_mean_states(full)}: "
        f"{_points(difference.mean, 'more', 'less')}. {_clearness(difference)}"
    )


def _cuts_made(cut: ArmFigures) -> str:
    histories = [history for run in cut.runs if (history := run.compression()) is not None]
    records = [record for history in histories for event in history.events for record in event.layers]
    counts: Counter[str] = Counter(record.outcome for record in records)
    words = {
        "cut": "made it smaller",
        "unchanged": "found it not worth a cut",
        "refused": "were refused",
        "undone": "were undone by the guard",
    }
    outcomes = ", ".join(f"{counts[outcome]} {text}" for outcome, text in words.items() if counts[outcome])
    reasons = sorted(
        {reason for record in records if (reason := record.reason)}
        | {note for record in records for note in record.notes}
    )
    noted = f" What was noted: {'; '.join(reasons)}." if reasons else ""
    return f"Of {len(records)} attempts at a layer, {outcomes}.{noted}"


def _speed(cut: ArmFigures) -> str:
    ratio = cut.step_after / cut.step_before
    figures = f"{1e3 * cut.step_before:.2f} ms before the first cut and {1e3 * cut.step_after:.2f} ms after the last"
    if ratio > 1 + SAME_SPEED:
        return f"A step takes {figures}: slower, by a factor of {ratio:.2f}."
    if ratio >= 1 - SAME_SPEED:
        return (
            f"A step takes {figures}: no gain that would show beside the noise of the clock (a factor of {ratio:.2f})."
        )
    return f"A step takes {figures}: {1 / ratio:.2f} times as fast."


def _reduction_share(cuts: Sequence[ArmFigures]) -> str:
    seconds, training = sum(arm.reduction_seconds for arm in cuts), sum(arm.training_seconds for arm in cuts)
    share = seconds / training
    verdict = "below" if share < SHARE_OF_REDUCTIONS_AIMED_AT else "NOT below"
    return (
        f"Reductions took {seconds:.2f} s of the {training:.1f} s that the cut models trained, {share:.2%}: "
        f"{verdict} the {SHARE_OF_REDUCTIONS_AIMED_AT:.0%} aimed at."
    )


def _training_time(full: ArmFigures, cuts: Sequence[ArmFigures]) -> str:
    names = ["full", *(f"cut, {rule_words(arm.config)}" for arm in cuts)]
    arms = zip(names, (full, *cuts), strict=True)
    times = [f"{arm.training_seconds / len(arm.runs):.1f} s ({name})" for name, arm in arms]
    return f"Training of one model, reductions included: {', '.join(times)}."


def _compilation(arms: Sequence[ArmFigures]) -> str:
    seconds = sum(run.timing.warm_up for arm in arms for run in arm.runs)
    return (
        f"Before their first step the runs spent {seconds:.1f} s in all on compiling or loading kernels; that is in none of "
        "the other times."
    )


def _clearness(difference: PairedDifference) -> str:
    if difference.interval is None:
        return "One seed says nothing about the spread."
    low, high = (100 * bound for bound in difference.interval)
    verdict = "it stands out from the seeds" if difference.is_clear else "the seeds differ too much to be sure of it"
    return f"95 % interval {low:+.1f} to {high:+.1f} points: {verdict}."


def _points(difference: float, more: str, less: str) -> str:
    return f"{abs(100 * difference):.1f} points {more if difference >= 0 else less}"


def _mean_states(arm: ArmFigures) -> str:
    sizes = {count for run in arm.runs for count in run.states_after}
    return f"{sizes.pop()} states" if len(sizes) == 1 else f"{arm.mean_states:.1f} states on average"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _distinct(texts: Iterable[str]) -> str:
    """Return the texts, once if they are all equal."""
    listed = list(texts)
    return listed[0] if len(set(listed)) == 1 else " ".join(listed)
