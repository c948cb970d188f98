"""Showing a table: from a folder of runs, or from the results that the repository keeps."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from paper_repro.errors import ResultError
from paper_repro.results import read_results
from paper_repro.tables.collected import RESULTS, collected_path, collected_variants, read_collected
from paper_repro.tables.graph import Extent
from paper_repro.tables.grid import Format, Grid
from paper_repro.tables.plan import TablePlan, Variant
from paper_repro.tables.summary import TableFigures, make_grid, table_figures


def kept_figures(plan: TablePlan, variant: Variant, directory: Path = RESULTS) -> TableFigures:
    """Return the figures of the results that the repository keeps.

    Raises
    ------
    ResultError
        If there are none of this variant.
    """
    head, results = read_collected(collected_path(plan, variant, directory))
    return table_figures(plan, Extent(variant, shared_rate=head.shared_rate), results)


def show_table(
    plan: TablePlan,
    variant: Variant | None,
    runs: Path | None,
    *,
    style: Format,
    shared_rate: bool,
    console: Console,
) -> None:
    """Print a table in the given style.

    Parameters
    ----------
    variant : str or None
        None: every variant of which results are kept.
    runs : Path or None
        Folder of the runs; None: the results that are kept.

    Raises
    ------
    ResultError
        If there is nothing to show.
    """
    if runs is not None:
        if variant is None:
            raise ResultError(
                "a folder of runs does not say which variant is meant: give one of --quick, --cpu, --gpu and --paper"
            )
        grids = [make_grid(table_figures(plan, Extent(variant, shared_rate=shared_rate), read_results(runs)))]
    else:
        variants = collected_variants(plan) if variant is None else [variant]
        if not variants:
            raise ResultError(
                f"no results of table {plan.name} are kept; `python -m paper_repro run {plan.name} --cpu` makes runs, and `collect` keeps them"
            )
        grids = [make_grid(kept_figures(plan, variant)) for variant in variants]
    for grid in grids:
        _print(grid, style, console)


def _print(grid: Grid, style: Format, console: Console) -> None:
    if style == "terminal":
        console.print(grid.to_rich())
        for note in grid.notes:
            console.print(note, highlight=False)
        return
    text = {"markdown": grid.to_markdown, "latex": grid.to_latex, "csv": grid.to_csv}[style]()
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
