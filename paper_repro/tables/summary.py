"""What the runs of a table amount to: the figures of each row, compared seed by seed, beside those of the paper."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper_repro.configuration import RULES
from paper_repro.results import RunResult
from paper_repro.selection import Choice
from paper_repro.statistics import PairedDifference, Summary, mean_of_best, paired_difference, summarise
from paper_repro.tables.graph import (
    Extent,
    NoRateError,
    choosing_command,
    finished,
    key_of,
    learning_rate,
    rate_choice,
    table_jobs,
)
from paper_repro.tables.grid import NOT_RUN, Grid
from paper_repro.tables.plan import Cell, PaperFigure, TablePlan, TaskPlan, plan_names

BEST = 3  # the paper reports the mean of as many
LEAST_FOR_INTERVAL = (
    3  # seeds; Student's t makes the interval of two 13 times as wide as they are apart, and both say more
)
NOT_CHOSEN = "not chosen"


@dataclass(frozen=True)
class RowFigures:
    """One row of a table: its runs that are finished, by seed, how many there should be, and their learning rate; None where none is chosen yet."""

    cell: Cell
    runs: Mapping[int, RunResult]
    n_seeds: int
    paper: PaperFigure | None
    rate: float | None = None

    @property
    def accuracy_by_seed(self) -> dict[int, float]:
        """Test accuracy of each seed."""
        return {seed: run.test_accuracy for seed, run in self.runs.items() if run.test_accuracy is not None}

    @property
    def accuracy(self) -> Summary | None:
        """Test accuracy over the seeds; None where nothing was run."""
        values = list(self.accuracy_by_seed.values())
        return summarise(values) if values else None

    @property
    def best(self) -> float | None:
        """Mean of the best three seeds; None where there are not more, and it would be the mean of all."""
        values = list(self.accuracy_by_seed.values())
        return mean_of_best(values, BEST) if len(values) > BEST else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test accuracy; None below three seeds."""
        accuracy = self.accuracy
        return None if accuracy is None or accuracy.count < LEAST_FOR_INTERVAL else accuracy.interval

    @property
    def rate_words(self) -> str:
        """The learning rate; nothing in a row that takes no step."""
        if self.cell.config(0).steps == 0:
            return ""
        return NOT_CHOSEN if self.rate is None else f"{self.rate:g}"

    @property
    def states(self) -> float | None:
        """Mean states of a block at the end; None where nothing was run."""
        values = [count for run in self.runs.values() for count in run.states_after]
        return summarise(values).mean if values else None

    @property
    def device(self) -> tuple[str, str] | None:
        """The machine of the runs and the clock of their times, where they are one and the same."""
        devices = {(run.provenance.device, run.timing.clock) for run in self.runs.values()}
        return devices.pop() if len(devices) == 1 else None

    def seconds(self) -> dict[int, float]:
        """Return seconds of training by seed, with those of the model that the run starts from or is taught by."""
        return {seed: run.timing.with_earlier_runs for seed, run in self.runs.items()}

    def step_seconds(self) -> float | None:
        """Return the mean over the seeds of the median seconds of a step with the last size; None where no step was taken, or not by one clock of one machine."""
        values = [run.timing.step_after for run in self.runs.values() if run.config.steps]
        return summarise(values).mean if values and self.device else None

    def step_gain(self) -> float | None:
        """Return how many times as fast a step is after the last cut as before the first, within one run, the median over the seeds; None where none took a step."""
        timings = [run.timing for run in self.runs.values() if run.config.steps]
        return statistics.median(timing.step_before / timing.step_after for timing in timings) if timings else None


@dataclass(frozen=True)
class TableFigures:
    """All rows of a table, as far as they were run."""

    plan: TablePlan
    extent: Extent
    rows: tuple[RowFigures, ...]

    def row(self, cell: Cell, key: str) -> RowFigures | None:
        """Return the row `key` beside `cell`: of the same task, and the same tau or order where it has one."""
        return self.find(cell.task.name, key, cell.at) or self.find(cell.task.name, key)

    def find(self, task: str, key: str, at: float | None = None) -> RowFigures | None:
        """Return the row `key` of a task; None if the table has none."""
        return next((r for r in self.rows if (r.cell.task.name, r.cell.row.key, r.cell.at) == (task, key, at)), None)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(dict.fromkeys(row.cell.task.name for row in self.rows))

    @property
    def n_runs(self) -> tuple[int, int]:
        """How many runs are finished, and how many there should be."""
        return sum(len(row.runs) for row in self.rows), sum(row.n_seeds for row in self.rows)


def table_figures(plan: TablePlan, extent: Extent, results: Sequence[RunResult]) -> TableFigures:
    """Gather `results` into the rows of a table; runs that are not of the table are left out.

    A row whose learning rate has not been chosen yet has the runs that are there all the same.
    """
    jobs = table_jobs(plan, extent, shown=results)
    rates = {job.key: job.config.learning_rate for job in jobs}
    found = finished(jobs, results)
    rows = []
    places = [row.key for row in plan.rows]
    names = [task.name for task in plan.tasks(extent.variant)]
    for cell in sorted(extent.cells(plan), key=lambda cell: (names.index(cell.task.name), places.index(cell.row.key))):
        seeds = extent.seeds_of(cell.task)
        runs = {seed: found[key] for seed in seeds if (key := key_of(cell, seed)) in found}
        known = bool(runs) or has_rate(cell, extent)
        rate = rates[key_of(cell, seeds[0])] if known else None
        rows.append(RowFigures(cell, runs, len(seeds), plan.paper_figure(cell), rate))
    return TableFigures(plan, extent, tuple(rows))


def has_rate(cell: Cell, extent: Extent) -> bool:
    """Say whether the learning rate of a row is known: chosen, or the preset's for all rows."""
    try:
        learning_rate(cell, shared=extent.shared_rate)
    except NoRateError:
        return False
    return True


def difference(first: RowFigures | None, second: RowFigures | None) -> PairedDifference | None:
    """Return the paired difference of the test accuracies; None where no seed has both."""
    if first is None or second is None or not first.accuracy_by_seed.keys() & second.accuracy_by_seed.keys():
        return None
    return paired_difference(first.accuracy_by_seed, second.accuracy_by_seed)


def speed_up(row: RowFigures | None, full: RowFigures | None) -> float | None:
    """Return how many times as fast as the full model the row was trained, the median over the seeds of both; None unless on one and the same machine, by the same clock."""
    if row is None or full is None or row.device is None or row.device != full.device:
        return None
    own, theirs = row.seconds(), full.seconds()
    seeds = own.keys() & theirs.keys()
    return statistics.median(theirs[seed] / own[seed] for seed in seeds) if seeds else None


def accuracy_words(row: RowFigures | None) -> str:
    """Return mean and half of the 95 % interval, in percent; of one or two seeds each value."""
    if row is None or row.accuracy is None:
        return NOT_RUN
    if row.interval is None:
        return " and ".join(f"{100 * value:.1f}" for value in row.accuracy_by_seed.values())
    return f"{100 * row.accuracy.mean:.1f} ± {50 * (row.interval[1] - row.interval[0]):.1f}"


def percent_words(row: RowFigures | None) -> str:
    """Return the accuracy in words, with its unit."""
    words = accuracy_words(row)
    return words if words == NOT_RUN else f"{words} %"


def difference_words(found: PairedDifference | None) -> str:
    """Return a difference in points, half of its 95 % interval, and the number of seeds; of one or two seeds each difference."""
    if found is None:
        return NOT_RUN
    count = len(found.by_seed)
    if count < LEAST_FOR_INTERVAL or found.interval is None:
        return f"{' and '.join(f'{100 * value:+.1f}' for value in found.by_seed.values())} ({count})"
    return f"{100 * found.mean:+.1f} ± {50 * (found.interval[1] - found.interval[0]):.1f} ({count})"


def make_grid(figures: TableFigures) -> Grid:
    """Return the table as text, the paper's figures beside ours."""
    plan, against = (
        figures.plan,
        [key for key in figures.plan.against if any(r.cell.row.key == key for r in figures.rows)],
    )
    papers = [row.paper for row in figures.rows if row.paper is not None]
    with_states = any(paper.states is not None or paper.accuracy is not None for paper in papers)
    with_speed = any(paper.speed is not None for paper in papers)
    several = len(figures.tasks) > 1
    header = [
        *(("task",) if several else ()), "method", "rate", "states", "accuracy, %", f"best {BEST}", "seeds",
        *(f"minus {plan.row(key).label}" for key in against), "ms a step", "speed",
        *(("paper: states", "paper: accuracy") if with_states else ()), *(("paper: speed",) if with_speed else ()),
    ]  # fmt: skip
    rows = []
    for row in figures.rows:
        full = figures.row(row.cell, "full")
        ratio, step = speed_up(row, full), row.step_seconds()
        cells = [
            *((row.cell.task.name,) if several else ()),
            row.cell.label,
            row.rate_words,
            NOT_RUN if row.states is None else f"{row.states:.4g}",
            accuracy_words(row),
            "" if row.best is None else f"{100 * row.best:.1f}",
            str(len(row.runs)) if len(row.runs) == row.n_seeds else f"{len(row.runs)} of {row.n_seeds}",
            *(_against(row, key, figures) for key in against),
            f"{1e3 * step:.2f}" if step is not None else "" if row.runs else NOT_RUN,
            _ratio(ratio, row),
        ]
        paper = row.paper
        if with_states:
            cells += ["", ""] if paper is None else [_number(paper.states), _number(paper.accuracy)]
        if with_speed:
            cells.append("" if paper is None else _number(paper.speed, "x"))
        rows.append(cells)
    done, planned = figures.n_runs
    notes = [
        plan.about.strip(),
        f"{done} of {planned} runs. Accuracy on the test set: mean of all seeds ± half of its 95 % interval by Student's t, or each where there are one or two; of more than {BEST} beside it the mean of the best {BEST}, which is the paper's habit. "
        "Differences in points are paired by seed, ± half of their 95 % interval, or each where there are one or two (number of pairs). Speed: training time of the full model over that of the row, median of the seeds; a row has the time of its teacher or start in it. Times of CPUs are processor time of one thread.",
        *_rate_notes(figures),
        *([f"The paper's figures: {plan.source}."] if papers else []),
    ]  # fmt: skip
    task = "" if several else f", {figures.tasks[0]}"
    title = f"Table {plan.number} ({plan.name}, {figures.extent.variant}{task}): {plan.title}"
    return Grid(title, header, rows, notes, n_left=1 + several)


def _against(row: RowFigures, key: str, figures: TableFigures) -> str:
    other = figures.row(row.cell, key)
    return "" if other is None or row.cell.row.key == key else difference_words(difference(row, other))


def _ratio(ratio: float | None, row: RowFigures) -> str:
    if ratio is None:
        return NOT_RUN if not row.runs else ""
    return f"{ratio:.2f}x"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:g}{unit}"


def _rate_notes(figures: TableFigures) -> list[str]:
    """Return where the learning rates of each task come from."""
    notes = []
    for name in figures.tasks:
        rows = [row for row in figures.rows if row.cell.task.name == name]
        without = [row for row in rows if not has_rate(row.cell, figures.extent)]
        chosen = next((row for row in rows if row not in without), None)
        if chosen is not None:
            choice = rate_choice(chosen.cell, shared=figures.extent.shared_rate)
            notes.append(_rate_words(figures.plan, chosen.cell.task, choice))
        if without:
            which = "any row" if chosen is None else ", ".join(dict.fromkeys(row.cell.label for row in without))
            commands = dict.fromkeys(f"`{choosing_command(row.cell)}`" for row in without)
            are = " The runs that are shown have the rates beside them." if any(row.runs for row in without) else ""
            notes.append(
                f"{name}: no learning rate has been chosen yet for {which}; {', '.join(commands)} does it.{are}"
            )
    return notes


def _rate_words(plan: TablePlan, task: TaskPlan, choice: Choice | None) -> str:
    base = task.base()
    if choice is None:
        return f"{task.name}: one learning rate, {base.learning_rate:g}, for every method; nothing was chosen."
    tried = sorted({trial.learning_rate for arm in choice.arms.values() for trial in arm.tried})
    rates, seeds = ", ".join(f"{rate:g}" for rate in tried), " ".join(map(str, choice.seeds))
    words = f"{task.name}: the learning rate of every method was chosen from {rates} on validation data, seeds {seeds} (`{choice.command}`)."
    changes = choice.differing_settings(base)
    swept = next((row.sweep for row in plan.rows if row.sweep is not None), None)
    if swept is not None:
        changes = {key: change for key, change in changes.items() if key not in RULES}
        words += _swept_words(plan, task, choice, swept)
    others = ", ".join(f"{key} {then}, here {now}" for key, (then, now) in changes.items())
    return f"{words} It was chosen with other settings: {others}." if others else words


def _swept_words(plan: TablePlan, task: TaskPlan, choice: Choice, swept: str) -> str:
    """Return at which tau or order the rates were chosen that a table has at all of those that it sweeps; nothing where that is the same one."""
    values: Sequence[float] = getattr(task, swept)
    name = _chosen_for(choice)
    at: Any
    if name == plan.name:
        rule, at = swept, values[len(values) // 2]  # the one that `rows_to_choose` takes
    else:
        rule = next((rule for rule in RULES if choice.settings.get(rule) is not None), "")
        at = choice.settings.get(rule)
    if rule == swept and set(values) == {at}:
        return ""
    where = f" ({'table' if name in plan_names() else 'preset'} {name})"
    every = f"at every {swept}" if len(values) > 1 else f"at {swept} {values[0]:g}"
    return f" It was chosen at {rule} {at}{where}, and is used here {every}."


def _chosen_for(choice: Choice) -> str:
    """Return the table or preset whose rates the command of a choice chose."""
    words = shlex.split(choice.command)
    return words[words.index("select-lr") + 1] if "select-lr" in words[:-1] else ""
