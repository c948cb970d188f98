"""Options that several commands have, and how many runs go at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paper_repro import provenance

MOST_WORKERS = 8

TableName = Annotated[str, typer.Argument(help="Name of a table, or table1, table2, ...", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value; may be repeated.")
]
Out = Annotated[Path, typer.Option(help="Folder of results and checkpoints.")]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data files.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Runs at a time; default: the cores.", show_default=False)
]
Minutes = Annotated[
    float | None, typer.Option(metavar="N", min=0, help="Stop then; repeat to go on (status 3).", show_default=False)
]
Quick = Annotated[bool, typer.Option("--quick", help="Of a table: to see that it runs.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="What a CPU does in an hour.")]
Gpu = Annotated[bool, typer.Option("--gpu", help="What a GPU does in hours.")]
Paper = Annotated[bool, typer.Option("--paper", help="As in the paper.")]
SharedRate = Annotated[bool, typer.Option("--shared-rate", help="The preset's learning rate for all.")]
Rows = Annotated[str | None, typer.Option(metavar="A,B", help="Only these rows of the table.", show_default=False)]
Tasks = Annotated[str | None, typer.Option(metavar="A,B", help="Only these tasks.", show_default=False)]


def default_workers() -> int:
    """Return how many runs go at a time: the cores, but not more than `MOST_WORKERS`."""
    return min(provenance.available_cores(), MOST_WORKERS)
