"""What the runs of a table amount to: the figures of each row, compared seed by seed, beside those of the paper."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paper_repro.results import RunResult
from paper_repro.selection import Choice
from paper_repro.statistics import PairedDifference, Summary, mean_of_best, paired_difference, summarise
from paper_repro.tables.graph import Extent, finished, key_of, rate_choice, table_jobs
from paper_repro.tables.grid import NOT_RUN, Grid
from paper_repro.tables.plan import Cell, PaperFigure, TablePlan

BEST = 3  # the paper reports the mean of as many


@dataclass(frozen=True)
class RowFigures:
    """One row of a table: its runs that are finished, by seed, and how many there should be."""

    cell: Cell
    runs: Mapping[int, RunResult]
    n_seeds: int
    paper: PaperFigure | None

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
        """Mean of the best three seeds; None where there are fewer."""
        values = list(self.accuracy_by_seed.values())
        return mean_of_best(values, BEST) if len(values) >= BEST else None

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
    """Gather `results` into the rows of a table; runs that are not of the table are left out."""
    found = finished(table_jobs(plan, extent), results)
    rows = []
    places = [row.key for row in plan.rows]
    names = [task.name for task in plan.tasks(extent.variant)]
    for cell in sorted(extent.cells(plan), key=lambda cell: (names.index(cell.task.name), places.index(cell.row.key))):
        seeds = extent.seeds_of(cell.task)
        runs = {seed: found[key] for seed in seeds if (key := key_of(cell, seed)) in found}
        rows.append(RowFigures(cell, runs, len(seeds), plan.paper_figure(cell)))
    return TableFigures(plan, extent, tuple(rows))


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


def accuracy_words(summary: Summary | None) -> str:
    """Return mean and half of the 95 % interval, in percent."""
    if summary is None:
        return NOT_RUN
    if summary.interval is None:
        return f"{100 * summary.mean:.1f}"
    return f"{100 * summary.mean:.1f} ± {50 * (summary.interval[1] - summary.interval[0]):.1f}"


def difference_words(found: PairedDifference | None) -> str:
    """Return a difference in points, half of its 95 % interval, and the number of seeds."""
    if found is None:
        return NOT_RUN
    half = "" if found.interval is None else f" ± {50 * (found.interval[1] - found.interval[0]):.1f}"
    return f"{100 * found.mean:+.1f}{half} ({len(found.by_seed)})"


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
        *(("task",) if several else ()), "method", "states", "accuracy, %", f"best {BEST}", "seeds",
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
            NOT_RUN if row.states is None else f"{row.states:.4g}",
            accuracy_words(row.accuracy),
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
        f"{done} of {planned} runs. Accuracy on the test set: mean of all seeds ± half of its 95 % interval by Student's t; beside it the mean of the best {BEST}, which is the paper's habit. "
        "Differences in points are paired by seed, ± half of their 95 % interval (number of pairs). Speed: training time of the full model over that of the row, median of the seeds; a row has the time of its teacher or start in it. Times of CPUs are processor time of one thread.",
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
    notes: dict[str, None] = {}
    for row in figures.rows:
        choice = rate_choice(row.cell, shared=figures.extent.shared_rate)
        notes[_rate_words(row.cell, choice)] = None
    return list(notes)


def _rate_words(cell: Cell, choice: Choice | None) -> str:
    task = cell.task
    base = task.base()
    if choice is None:
        return f"{task.name}: one learning rate, {base.learning_rate:g}, for every method; nothing was chosen."
    tried = sorted({trial.learning_rate for arm in choice.arms.values() for trial in arm.tried})
    rates, seeds = ", ".join(f"{rate:g}" for rate in tried), " ".join(map(str, choice.seeds))
    words = f"{task.name}: the learning rate of every method was chosen from {rates} on validation data, seeds {seeds} (`{choice.command}`)."
    changes = ", ".join(f"{key} {then}, here {now}" for key, (then, now) in choice.differing_settings(base).items())
    return f"{words} It was chosen with other settings: {changes}." if changes else words
