"""Learning rates of a table's rows: each one's best of the same few values, on validation data and seeds that are not reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from paper_repro import provenance
from paper_repro.errors import ConfigurationError
from paper_repro.progress import RunProgress
from paper_repro.results import RunResult
from paper_repro.selection import (
    CHOICES,
    ArmChoice,
    Choice,
    Trial,
    choose,
    describe_choice,
    read_choice,
    settings_of,
    write_choice,
)
from paper_repro.tables.graph import Extent, key_of
from paper_repro.tables.plan import Cell, TablePlan, TaskPlan
from paper_repro.workers import Job, run_jobs


def rows_to_choose(plan: TablePlan, extent: Extent, task: TaskPlan) -> list[Cell]:
    """Return the cells of `task` whose rates are to be chosen, parents first: one a row, and none for a row that takes another's rate."""
    cells: dict[str, Cell] = {}
    for cell in extent.cells(plan):
        row = cell.row
        if cell.task.name != task.name or row.rate_of is not None or "learning_rate" in row.values:
            continue
        swept = task.swept(row)
        if cell.at == swept[len(swept) // 2]:
            cells[row.key] = cell
    return list(cells.values())


def choose_for_table(
    plan: TablePlan,
    extent: Extent,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    directory: Path,
    n_workers: int,
    console: Console,
    command: str,
    output: Path | None = None,
) -> None:
    """Choose the rates of every task of a table that has a file for them, and write it; rows that the file has already stay.

    Raises
    ------
    ConfigurationError
        If no task has such a file, or `output` names one file for several tasks.
    """
    cells = extent.cells(plan)
    tasks = {cell.task.name: cell.task for cell in cells if cell.task.choice is not None}
    if not tasks:
        raise ConfigurationError(
            f"no task of table {plan.name} --{extent.variant} has a file of choices; its rows have the rate of their preset"
        )
    if output is not None and len(tasks) > 1:
        raise ConfigurationError(
            f"--output is one file, but there are the tasks {', '.join(tasks)}; name one with --tasks"
        )
    for task in tasks.values():
        path = output or CHOICES / f"{task.choice}.toml"
        with RunProgress(console) as progress:
            choice = select_rates(
                plan,
                extent,
                task,
                rates=rates,
                seeds=seeds,
                directory=directory,
                n_workers=n_workers,
                progress=progress,
                command=command,
                earlier=read_choice(path) if path.is_file() else None,
            )
        write_choice(choice, path)
        console.print(*describe_choice(choice), f"Written to {path}", sep="\n", highlight=False)


def select_rates(
    plan: TablePlan,
    extent: Extent,
    task: TaskPlan,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    directory: Path,
    n_workers: int,
    progress: RunProgress,
    command: str,
    earlier: Choice | None = None,
) -> Choice:
    """Train every row with every rate and seed, never looking at the test set, and return the best rate of each row.

    A row that takes sizes or a model from another one takes them from that row's runs at its chosen rate, seed by seed. Rows that `earlier` has already are
    not chosen anew; where they are not finished in `directory` they are trained again at their rates.

    Raises
    ------
    ConfigurationError
        If there is nothing to try, a seed is one that the table reports, or `earlier` was made with other seeds or settings.
    """
    if not rates or not seeds:
        raise ConfigurationError("at least one learning rate and one seed are needed")
    reported = sorted(set(seeds) & set(extent.seeds_of(task)))
    if reported:
        raise ConfigurationError(
            f"seeds {reported} are those that the table reports; choose the rates with others (--first-seed)"
        )
    base = task.base()
    settings = settings_of(base)
    if earlier is not None and (earlier.seeds != tuple(seeds) or earlier.differing_settings(base)):
        raise ConfigurationError(
            f"the choice that is there has seeds {list(earlier.seeds)} and other settings {earlier.differing_settings(base)}; "
            "move it away to choose all rates anew"
        )
    chosen: dict[str, ArmChoice] = {} if earlier is None else dict(earlier.arms)
    jobs: dict[str, Job] = {}

    def run(keys: Sequence[str]) -> Mapping[str, RunResult]:
        needed = _with_ancestors(keys, jobs)
        return run_jobs(needed, directory, n_workers=n_workers, progress=progress, evaluate_test=False)

    waiting = [cell for cell in rows_to_choose(plan, extent, task) if cell.row.key not in chosen]
    while waiting:
        due = [cell for cell in waiting if not any(_waits_for(cell, other) for other in waiting)]
        waiting = [cell for cell in waiting if cell not in due]
        keys = {
            (cell.row.key, rate, seed): _add_job(cell, rate, seed, chosen, jobs)
            for cell in due
            for rate in rates
            for seed in seeds
        }
        results = run(list(keys.values()))
        for name in (cell.row.key for cell in due):
            trials = []
            for rate in rates:
                runs = [results[keys[name, rate, seed]] for seed in seeds]
                validation, states = tuple(r.best.accuracy for r in runs), tuple(r.states_after for r in runs)
                trials.append(Trial(learning_rate=rate, validation=validation, states=states))
            chosen[name] = choose(trials)
    return Choice(command=command, commit=provenance.commit(), seeds=tuple(seeds), settings=settings, arms=chosen)


def _add_job(cell: Cell, rate: float | None, seed: int, chosen: Mapping[str, ArmChoice], jobs: dict[str, Job]) -> str:
    """Add the run of `cell`, and those of its parents at their chosen rates, to `jobs`; return its key."""
    key = f"{key_of(cell, seed)} {rate}"
    parents = {}
    for role, name in (("sizes_of", cell.row.sizes_of), ("starts_from", cell.row.starts_from)):
        parent = cell.parent(name)
        if parent is not None:
            parents[role] = _add_job(parent, _rate_of(parent, chosen), seed, chosen, jobs)
    words = "" if rate is None else f", rate {rate:g}"
    jobs[key] = Job(key, cell.config(seed, rate), label=f" ({cell.label}){words}", **parents)
    return key


def _waits_for(cell: Cell, other: Cell) -> bool:
    """Say whether the rate of `other` must be known before `cell` can be trained."""
    parents = [parent for key in (cell.row.sizes_of, cell.row.starts_from) if (parent := cell.parent(key)) is not None]
    return any(other.row.key in (parent.row.key, parent.row.rate_of) or _waits_for(parent, other) for parent in parents)


def _rate_of(cell: Cell, chosen: Mapping[str, ArmChoice]) -> float | None:
    for name in (cell.row.rate_of, cell.row.key, cell.row.arm):
        if name is not None and name in chosen:
            return chosen[name].learning_rate
    if "learning_rate" in cell.row.values:
        return None
    raise ConfigurationError(f"row {cell.row.key} has no learning rate yet; choose it too, or first (--rows)")


def _with_ancestors(keys: Sequence[str], jobs: Mapping[str, Job]) -> list[Job]:
    needed: dict[str, Job] = {}

    def add(key: str) -> None:
        for parent in sorted(jobs[key].waits_for):
            add(parent)
        needed[key] = jobs[key]

    for key in keys:
        add(key)
    return list(needed.values())
