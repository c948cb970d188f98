"""What the kept results say about each claim of the paper, in sentences made from their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from paper_repro import ranking
from paper_repro.tables.collected import RESULTS, collected_variants
from paper_repro.tables.grid import NOT_RUN
from paper_repro.tables.plan import read_plan
from paper_repro.tables.show import kept_figures
from paper_repro.tables.summary import (
    RowFigures,
    TableFigures,
    difference,
    difference_words,
    percent_words,
    speed_up,
)

Claim = Callable[[Path], list[str]]


def in_training_against_scratch(results: Path) -> list[str]:
    """Compare models cut in training with the full ones, and with small ones from scratch, wherever both were run."""
    lines = []
    for figures in _kept("accuracy", results) + _kept("sweep", results) + _kept("mamba", results):
        for row in figures.rows:
            scratch, full = figures.row(row.cell, "from_scratch"), figures.row(row.cell, "full")
            if row.cell.row.key != "in_training" or row.accuracy is None or scratch is None or full is None:
                continue
            lines.append(
                f"{_where(figures, row)}, {row.states:.4g} states{_rates(row, scratch, full)}: {percent_words(row)}, "
                f"from scratch {percent_words(scratch)}{_difference(row, scratch)}, full {percent_words(full)}{_difference(row, full)}."
            )
    return lines


def methods_against_in_training(results: Path) -> list[str]:
    """Compare every other method with the cut in training."""
    return [
        line
        for figures in _kept("methods", results)
        for line in _against(figures, "in_training", lambda row: row.cell.row.key != "full")
    ]


def early_and_late(results: Path) -> list[str]:
    """Compare windows of the cuts with the paper's."""
    return _ablations(results, "window")


def numbers_of_cuts(results: Path) -> list[str]:
    """Compare numbers of cuts with the paper's four."""
    return _ablations(results, "cuts")


def criteria(results: Path) -> list[str]:
    """Compare which states stay: other than the leading balanced ones of the complex system, as in the paper."""
    return [
        line
        for figures in _kept("ablations", results)
        for line in _against(
            figures, "complex", lambda row: not row.cell.row.key.startswith(("full", "window", "cuts"))
        )
    ]


def ranking_settles(results: Path) -> list[str]:
    """Say how far the ranking at 10 % of the steps is that of the end, and whether Weyl's bound held."""
    path = results / "ranking.json"
    if not path.is_file():
        return []
    runs = ranking.read_rankings(path).runs()
    early = ranking.FRACTIONS.index(ranking.EARLY)
    count = max(1, len(runs[0][0].scores) // ranking.SHARE_KEPT)
    lines = []
    for number, words in ((0, "before the first step"), (early, f"at {ranking.EARLY:.0%} of the steps")):
        pairs = [(run[number], run[-1]) for run in runs]
        correlations = [ranking.rank_correlation(*pair) for pair in pairs]
        shares = [ranking.overlap(*pair, count) for pair in pairs]
        lines.append(
            f"{runs[0][0].preset}, {len(runs)} seeds, {words}: rank correlation with the end {_spread(correlations)}, "
            f"{_spread([100 * share for share in shares], 0)} % of the top {count} of {len(runs[0][0].scores)} states are those of the end."
        )
    found = [(change, bound) for run in runs for _, change, bound in ranking.changes(run)]
    held = sum(change <= bound * (1 + 1e-6) for change, bound in found)
    median = statistics.median(bound / change for change, bound in found)
    lines.append(
        f"Weyl's bound held in {held} of {len(found)} pairs of moments; it is {median:.1f} times the largest change in the median."
    )
    return lines


def speed(results: Path) -> list[str]:
    """Say what cuts in training save: of a step, within the run that is cut; and of the training, beside the full model of the same seed."""
    lines = []
    for figures in _kept("accuracy", results) + _kept("mamba", results):
        for row in figures.rows:
            full, gain = figures.row(row.cell, "full"), row.step_gain()
            if row.cell.row.key != "in_training" or full is None or full.states is None or gain is None:
                continue
            ratio = speed_up(row, full)
            training = (
                ""
                if ratio is None
                else f" training {ratio:.2f} times as fast as the full model (between runs, paired by seed);"
            )
            lines.append(
                f"{_where(figures, row)}, {full.states:.4g} to {row.states:.4g} states:{training} "
                f"a step {_step_words(row)}, {gain:.2f} times as fast (within a run, median of {len(row.runs)} seeds)."
            )
    return lines


def _step_words(row: RowFigures) -> str:
    """Return the times of a step before and after the cuts, where they were taken by one clock of one machine."""
    if row.device is None:
        return "after the last cut against one before the first"
    timings = [run.timing for run in row.runs.values()]
    before, after = statistics.median(t.step_before for t in timings), statistics.median(t.step_after for t in timings)
    return f"{1e3 * before:.1f} ms before the first cut and {1e3 * after:.1f} ms after the last"


def against_regularisation(results: Path) -> list[str]:
    """Say how many times as long regularised training takes to the same size, and what accuracy it ends with."""
    lines = []
    for figures in _kept("regularisation", results):
        for row in figures.rows:
            cut = figures.row(row.cell, "in_training")
            ratio = speed_up(cut, row)  # the time of `row` over that of `cut`
            if row.cell.row.arm != "regularised" or cut is None or ratio is None:
                continue
            lines.append(
                f"{_where(figures, row)}, {row.states:.4g} states, {row.cell.label}{_rates(row, cut)}: {ratio:.1f} times the training time of the model cut in training; "
                f"{percent_words(row)} against {percent_words(cut)}{_difference(row, cut)}."
            )
    return lines


CLAIMS: dict[str, Claim] = {
    "in_training": in_training_against_scratch,
    "methods": methods_against_in_training,
    "windows": early_and_late,
    "cuts": numbers_of_cuts,
    "criteria": criteria,
    "ranking": ranking_settles,
    "speed": speed,
    "regularisation": against_regularisation,
}


def claim_words(name: str, results: Path = RESULTS) -> str:
    """Return what the results say about a claim, as a list in Markdown; "not run" where there are none."""
    return "\n".join(f"- {line}" for line in CLAIMS[name](results)) or f"- {NOT_RUN.capitalize()}."


def _kept(name: str, results: Path) -> list[TableFigures]:
    """Return the kept variants of a table, but not the quick one, which shows nothing."""
    plan = read_plan(name)
    return [kept_figures(plan, variant, results) for variant in collected_variants(plan, results) if variant != "quick"]


def _ablations(results: Path, prefix: str) -> list[str]:
    return [
        line
        for figures in _kept("ablations", results)
        for line in _against(figures, "complex", lambda row: row.cell.row.key.startswith(prefix))
    ]


def _against(figures: TableFigures, key: str, wanted: Callable[[RowFigures], bool]) -> Iterable[str]:
    for task in figures.tasks:
        base = figures.find(task, key)
        if base is None or base.accuracy is None:
            continue
        yield f"{_table(figures)}, {task}, {base.cell.label}: {percent_words(base)}, {base.states:.4g} states{_rates(base)}. Beside it:"
        for row in figures.rows:
            if row.cell.task.name == task and row.cell.row.key != key and wanted(row):
                states = "" if row.states is None else f", {row.states:.4g} states{_rates(row)}"
                yield f"{row.cell.label}: {percent_words(row)}{states}{_difference(row, base)}."


def _difference(row: RowFigures, other: RowFigures) -> str:
    """Return the difference in brackets; nothing where no seed has both."""
    found = difference(row, other)
    return "" if found is None else f" ({difference_words(found)})"


def _rates(row: RowFigures, *others: RowFigures) -> str:
    """Return the learning rate of a row, and of those that it is compared with where theirs is another."""
    if not row.rate_words:
        return ""
    different = [f"{other.cell.row.label} {other.rate_words}" for other in others if other.runs and other.rate_words not in ("", row.rate_words)]  # fmt: skip
    return f", rate {row.rate_words}" + (f" ({', '.join(different)})" if different else "")


def _table(figures: TableFigures) -> str:
    return f"Table {figures.plan.number}"


def _where(figures: TableFigures, row: RowFigures) -> str:
    sweep = "" if row.cell.at is None or row.cell.row.sweep == "order" else f", tau {row.cell.at:g}"
    return f"{_table(figures)}, {row.cell.task.name}{sweep}" + (
        "" if figures.extent.variant == "cpu" else f" ({figures.extent.variant})"
    )


def _spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
