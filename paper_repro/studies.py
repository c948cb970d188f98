"""Commands of single studies: cuts of Mamba layers, moments at a cut, rankings, the cost of a penalty."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from paper_repro import provenance
from paper_repro.configuration import parse_overrides
from paper_repro.options import Overrides, Workers, default_workers

app = typer.Typer()


@app.command(
    "ranking", hidden=True, epilog="Example: [bold]python -m paper_repro ranking --preset digits --seeds 5[/bold]"
)
def ranking_command(
    preset: Annotated[str, typer.Option(help="A preset, or a .toml file.")] = "digits",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds: 0, 1, ...")] = 5,
    overrides: Overrides = None,
    results: Annotated[
        Path | None, typer.Option(help="File; default: ranking.json in paper_repro/results.", show_default=False)
    ] = None,
) -> None:
    """How early the ranking of the states settles."""
    import torch

    from paper_repro.ranking import measure_rankings, write_rankings
    from paper_repro.tables.collected import RESULTS

    torch.set_num_threads(1)
    path = results or RESULTS / "ranking.json"
    moments_ = list(measure_rankings(preset, range(seeds), parse_overrides(overrides or [])))
    write_rankings(moments_, provenance.plain_command(sys.argv[1:]), path)
    Console().print(f"{len(moments_)} moments are in {path}", highlight=False)


@app.command(hidden=True, epilog="[bold]python -m paper_repro study-table FILE[/bold] shows what was measured.")
def study(
    results: Annotated[Path, typer.Option(help="File that gets a line for each measurement.")] = Path(
        "runs/study/measurements.jsonl"
    ),
    directory: Annotated[Path, typer.Option(help="Folder of the full models' checkpoints.")] = Path("runs/study"),
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task; may be repeated.", show_default=False)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds: 0, 1, ...; default: the plan's.", show_default=False)
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method, right after the cut; may be repeated.")
    ] = None,
    train_on: Annotated[
        list[str] | None, typer.Option(help="Method after whose cuts models are trained on; may be repeated.")
    ] = None,
    train_on_sizes: Annotated[
        list[int] | None, typer.Option(help="States of the models that are trained on; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models: whether everything runs, in minutes.")] = False,
    workers: Workers = None,
) -> None:
    """Cuts of Mamba layers by every method, early and late."""
    from paper_repro.study.plan import DEFAULT, QUICK, restricted
    from paper_repro.study.run import run_study
    from paper_repro.study.tables import study_tables

    plan = restricted(
        QUICK if quick else DEFAULT,
        tasks=tasks,
        seeds=seeds,
        methods=methods,
        methods_trained_on=train_on,
        sizes_trained_on=train_on_sizes,
    )
    console = Console()
    measurements = run_study(
        plan, results=results, directory=directory, n_workers=workers or default_workers(), console=console
    )
    console.print(study_tables(measurements), markup=False, highlight=False, soft_wrap=True)


@app.command("study-table", hidden=True)
def study_table(
    results: Annotated[Path, typer.Argument(help="File of measurements.")] = Path("runs/study/measurements.jsonl"),
    into: Annotated[
        Path | None, typer.Option(help="Page that gets the tables, between its two marks.", show_default=False)
    ] = None,
) -> None:
    """Show what a study has measured, or put it into a page."""
    from paper_repro.study.measurements import read_measurements
    from paper_repro.study.tables import put_tables, study_tables

    tables = study_tables(read_measurements(results))
    if into is None:
        Console().print(tables, markup=False, highlight=False, soft_wrap=True)
    else:
        put_tables(tables, into)


@app.command(hidden=True, epilog="Example: [bold]python -m paper_repro moments --quick[/bold]")
def moments(
    results: Annotated[Path, typer.Option(help="File of the measurements.")] = Path("runs/moments.json"),
    into: Annotated[
        Path | None, typer.Option(help="Page that gets the table, between its two marks.", show_default=False)
    ] = None,
    stored: Annotated[bool, typer.Option("--stored", help="Measure nothing: the table of what the file has.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds and a few steps: whether everything runs.")] = False,
) -> None:
    """Cuts with the moments carried, sliced and reset."""
    import torch

    from paper_repro.moments import MARKS, QUICK, Plan, measure, moments_table, read_results, write_results
    from paper_repro.study.tables import put_tables

    if not stored:
        torch.set_num_threads(1)
        origin = {"commit": provenance.commit(), **provenance.versions()}
        write_results(list(measure(QUICK if quick else Plan())), origin, results)
    table = moments_table(read_results(results))
    if into is None:
        Console().print(table, markup=False, highlight=False, soft_wrap=True)
    else:
        put_tables(f"{table}\n", into, MARKS)


@app.command(hidden=True, epilog="Example: [bold]python -m paper_repro regularisation --quick[/bold]")
def regularisation(
    results: Annotated[Path, typer.Option(help="File of the measurements.")] = Path("runs/regularisation.json"),
    into: Annotated[
        Path | None, typer.Option(help="Page that gets the table, between its two marks.", show_default=False)
    ] = None,
    stored: Annotated[bool, typer.Option("--stored", help="Measure nothing: the table of what the file has.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: whether everything runs.")] = False,
) -> None:
    """What a step costs with a penalty, and after a cut."""
    import torch

    from paper_repro.regularisation_time import MARKS, QUICK, Plan, measure, read_results, times_table, write_results
    from paper_repro.study.tables import put_tables

    if not stored:
        torch.set_num_threads(1)
        device = provenance.device_name(torch.device("cpu"))
        origin = {"commit": provenance.commit(), **provenance.versions(), "device": device, "threads": 1}
        write_results(list(measure(QUICK if quick else Plan())), origin, results)
    table = times_table(read_results(results))
    if into is None:
        Console().print(table, markup=False, highlight=False, soft_wrap=True)
    else:
        put_tables(f"{table}\n", into, MARKS)
