"""The runs of a table: which wait for which, their learning rates, and what of them is finished."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper_repro.configuration import RULES, RunConfig
from paper_repro.errors import ConfigurationError
from paper_repro.results import RunResult
from paper_repro.selection import CHOICES, Choice, read_choice
from paper_repro.tables.plan import Cell, TablePlan, TaskPlan, Variant, plan_names, read_plan
from paper_repro.workers import Job, resolved

OF_SIZES = frozenset({"n_states", "sizes_of", *RULES})  # keys of a run that its parents decide


class NoRateError(ConfigurationError):
    """No learning rate has been chosen for a row yet; the message says which command chooses it."""


@dataclass(frozen=True)
class Extent:
    """How much of a table: its variant, and what of it, None for all."""

    variant: Variant
    rows: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    shared_rate: bool = False

    def cells(self, plan: TablePlan) -> list[Cell]:
        """Return the cells of `plan`, with the parents of those that were asked for.

        Raises
        ------
        ConfigurationError
            If a row or a task is not in the table.
        """
        cells = list(plan.cells(self.variant))
        _check("--rows", self.rows, [cell.row.key for cell in cells])
        _check("--tasks", self.tasks, [cell.task.name for cell in cells])
        wanted: dict[str, None] = {}
        for cell in cells:
            if (self.rows is None or cell.row.key in self.rows) and (
                self.tasks is None or cell.task.name in self.tasks
            ):
                _add_with_parents(cell, wanted)
        return [cell for cell in cells if cell.key in wanted]

    def seeds_of(self, task: TaskPlan) -> tuple[int, ...]:
        """Return the seeds of a task."""
        return task.seeds if self.seeds is None else self.seeds


def table_jobs(plan: TablePlan, extent: Extent, *, shown: Collection[RunResult] | None = None) -> list[Job]:
    """Return the runs of the table: all rows of the first seed, then of the next, so that a table that is cut short compares like with like.

    Parameters
    ----------
    shown : collection of RunResult, optional
        Finished runs that the jobs are only looked up in, not trained: a row whose rate has not been chosen yet then has the one of its runs among them.

    Raises
    ------
    NoRateError
        If there is nothing that is shown, and no rate has been chosen for a row.
    """
    cells = extent.cells(plan)
    rates = {cell.key: _rate(cell, extent, shown) for cell in cells}
    most = max(len(extent.seeds_of(cell.task)) for cell in cells)
    jobs = []
    for number in range(most):
        for cell in cells:
            seeds = extent.seeds_of(cell.task)
            if number < len(seeds):
                jobs.append(make_job(cell, seeds[number], rates[cell.key]))
    return jobs


def _rate(cell: Cell, extent: Extent, shown: Collection[RunResult] | None) -> float | None:
    try:
        return learning_rate(cell, shared=extent.shared_rate)
    except NoRateError:
        if shown is None:
            raise
        return _rate_of_runs(cell, extent.seeds_of(cell.task), shown)


def _rate_of_runs(cell: Cell, seeds: Sequence[int], results: Collection[RunResult]) -> float | None:
    """Return the rate that most of the `results` have which are of `cell`, whatever their rate; None if there are none."""
    left_out = {"learning_rate", *(OF_SIZES if cell.row.sizes_of else ()), *(["starts_from"] if cell.row.starts_from else ())}  # fmt: skip

    def identity(config: RunConfig) -> dict[str, Any]:
        return {key: value for key, value in config.identity().items() if key not in left_out}

    wanted = {seed: identity(cell.config(seed)) for seed in seeds}
    task, arm = cell.task.base().task, cell.row.arm
    alike = [result.config for result in results if (result.config.task, result.config.arm) == (task, arm)]
    rates = Counter(config.learning_rate for config in alike if identity(config) == wanted.get(config.seed))
    return rates.most_common(1)[0][0] if rates else None


def make_job(cell: Cell, seed: int, rate: float | None) -> Job:
    """Return the run of one cell and seed, which waits for those of its parents with the same seed."""
    sizes_of, starts_from = (cell.parent(key) for key in (cell.row.sizes_of, cell.row.starts_from))
    return Job(
        key_of(cell, seed),
        cell.config(seed, rate),
        sizes_of=None if sizes_of is None else key_of(sizes_of, seed),
        starts_from=None if starts_from is None else key_of(starts_from, seed),
        label=f" ({cell.task.name}, {cell.label})",
    )


def key_of(cell: Cell, seed: int) -> str:
    """Return the key of the run of a cell and a seed."""
    return f"{cell.key}/{seed}"


def learning_rate(cell: Cell, *, shared: bool) -> float | None:
    """Return the rate that was chosen for the row, or for its arm; None: that of the preset, for all rows alike.

    Raises
    ------
    NoRateError
        If nothing was chosen for it.
    """
    choice = rate_choice(cell, shared=shared)
    if choice is None:
        return None
    names = [name for name in (cell.row.rate_of, cell.row.key, cell.row.arm) if name is not None]
    for name in names:
        if name in choice.arms:
            return choice.arms[name].learning_rate
    raise _no_rate(cell)


def rate_choice(cell: Cell, *, shared: bool) -> Choice | None:
    """Return the choice of learning rates of the task of `cell`; None where all rows have one rate.

    Raises
    ------
    NoRateError
        If its file is missing.
    ConfigurationError
        If it is spoilt.
    """
    if shared or cell.task.choice is None:
        return None
    path = CHOICES / f"{cell.task.choice}.toml"
    if not path.is_file():
        raise _no_rate(cell)
    return read_choice(path)


def _no_rate(cell: Cell) -> NoRateError:
    return NoRateError(
        f"paper_repro/choices/{cell.task.choice}.toml has no learning rate for the row {cell.row.key} of table {cell.plan.name}; choose it with "
        f"`{choosing_command(cell)}`, or give all rows one rate with --shared-rate"
    )


def choosing_command(cell: Cell) -> str:
    """Return the command that chooses the rate of a row, and those of all other rows of its task where none has been chosen."""
    plan, task, rows = cell.plan, cell.task, f" --rows {cell.row.key}"
    if not (CHOICES / f"{task.choice}.toml").is_file():  # the first table that has the choice makes it for all
        rows = ""
        plans = [read_plan(name) for name in plan_names()]
        plan = next((other for other in plans if _variant_of(other, task.choice)), plan)
    place = _variant_of(plan, task.choice)
    assert place is not None  # that of the cell itself, if no other
    variant, name = place
    tasks = "" if "," in name else f" --tasks {shlex.quote(name)}"  # a comma stands between two tasks
    return f"python -m paper_repro select-lr {plan.name} --{variant}{tasks}{rows}"


def _variant_of(plan: TablePlan, choice: str | None) -> tuple[Variant, str] | None:
    """Return the first variant, and the name of its task, that takes its rates from `choice`."""
    return next(((v, task.name) for v, tasks in plan.variants.items() for task in tasks if task.choice == choice), None)


def finished(jobs: Sequence[Job], results: Sequence[RunResult]) -> dict[str, RunResult]:
    """Return the results that belong to `jobs`, by key: those whose configuration is the one that the job comes to.

    A run whose parents are not finished has no configuration yet, and so no result.
    """
    by_id = {result.run_id: result for result in results}
    found: dict[str, RunResult] = {}
    for job in ordered(jobs):
        config = configuration_of(job, found)
        if config is not None and config.run_id in by_id:
            found[job.key] = by_id[config.run_id]
    return found


def configuration_of(job: Job, results: Mapping[str, RunResult]) -> RunConfig | None:
    """Return what `job` comes to once its parents have the `results`; None while they have not."""
    return resolved(job, results) if job.waits_for <= results.keys() else None


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """Return `jobs`, those that others wait for before them."""
    by_key = {job.key: job for job in jobs}
    placed: dict[str, Job] = {}

    def place(job: Job) -> None:
        for parent in sorted(job.waits_for - placed.keys()):
            place(by_key[parent])
        placed.setdefault(job.key, job)

    for job in jobs:
        place(job)
    return list(placed.values())


def _add_with_parents(cell: Cell, wanted: dict[str, None]) -> None:
    wanted[cell.key] = None
    for parent in (cell.parent(cell.row.sizes_of), cell.parent(cell.row.starts_from)):
        if parent is not None:
            _add_with_parents(parent, wanted)


def _check(option: str, asked: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [name for name in asked or () if name not in known]
    if unknown:
        raise ConfigurationError(
            f"{option}: {', '.join(unknown)} not in this table; it has {', '.join(dict.fromkeys(known))}"
        )
