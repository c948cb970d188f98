"""The command line: ``python -m paper_repro``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paper_repro import provenance
from paper_repro.comparison import best_of_words, group_runs, make_table
from paper_repro.configuration import Arm, make_config, parse_overrides, preset_names, read_preset
from paper_repro.errors import ConfigurationError, ReproError
from paper_repro.progress import RunProgress
from paper_repro.results import find_result, read_results

MOST_WORKERS = 8

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train state space models that shrink while they train, and compare them.",
    epilog="Example: [bold]python -m paper_repro run digits --seed 0 --set tau=0.2[/bold]",
)

Preset = Annotated[
    str, typer.Argument(help=f"One of {', '.join(preset_names())}, or a .toml file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value; may be repeated.")
]
Out = Annotated[Path, typer.Option(help="Folder of results and checkpoints.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data files.", show_default=False)]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: the cores.", show_default=False)]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds an arm: 0, 1, ...")] = 3,
    overrides: Overrides = None,
    workers: Workers = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from what is in the folder.")] = False,
) -> None:
    """Digits in minutes: full, cut in training, from scratch; a table and a report."""
    from paper_repro.demo import run_demo

    run_demo(
        out,
        seeds=range(seeds),
        overrides=parse_overrides(overrides or []),
        n_workers=workers or default_workers(),
        console=Console(),
        fresh=fresh,
    )


@app.command()
def run(
    preset: Preset,
    arm: Annotated[Arm, typer.Option(help="What to train.")] = "in_training",
    seed: Annotated[int, typer.Option(help="Of weights, dropout and order of the data.")] = 0,
    layer: Annotated[
        str | None, typer.Option(help="Layer in place of the preset's: lru, s5, s4d, mamba.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    sizes_of: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start with the states that this run ended with.")
    ] = None,
    out: Out = Path("runs"),
    data_dir: DataDir = None,
    test: Annotated[bool, typer.Option(help="Evaluate the test set at the end.")] = True,
) -> None:
    """Train one model, or go on with it where it was interrupted."""
    from paper_repro.training import train

    values: dict[str, Any] = {**read_preset(preset), "arm": arm, "seed": seed, **parse_overrides(overrides or [])}
    if layer is not None:
        values["layer"] = layer
    if data_dir is not None:
        values["data_dir"] = str(data_dir)
    if sizes_of is not None:
        earlier = find_result(out, sizes_of)
        if earlier is None:
            raise ConfigurationError(
                f"--sizes-of: no finished run {sizes_of!r} in {out}; `python -m paper_repro table` lists them"
            )
        values |= {"n_states": list(earlier.states_after), "sizes_of": sizes_of}
    config = make_config(values)
    console = Console()
    progress = RunProgress(console)
    progress.add(config.run_id, config)
    with progress, _stop_at_next_step() as stopped:
        result = train(
            config,
            out,
            evaluate_test=test,
            progress=lambda step, note: progress.update(config.run_id, step, config.steps, note),
            should_stop=stopped,
        )
        progress.finish(config.run_id, result)
    console.print(make_table(group_runs([result]), title=config.run_id))
    console.print(
        f"One line in {out / 'results.jsonl'}, the best model in {out / config.run_id / 'best.safetensors'}",
        highlight=False,
    )


@app.command("select-lr")
def select_lr(
    preset: Preset,
    rates: Annotated[str, typer.Option(help="Rates to try with every arm.")] = "4e-3,8e-3,16e-3",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds an arm and rate.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them; the demo has others.")] = 100,
    overrides: Overrides = None,
    out: Out = Path("runs/select-lr"),
    output: Annotated[
        Path | None, typer.Option(help="File of the choice; default: the one the demo reads.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    workers: Workers = None,
) -> None:
    """Choose each arm's learning rate on validation data."""
    from paper_repro.selection import choice_path, describe_choice, select_learning_rates, write_choice

    values = {**read_preset(preset), **parse_overrides(overrides or [])}
    if data_dir is not None:
        values["data_dir"] = str(data_dir)
    console = Console()
    with RunProgress(console) as progress:
        choice = select_learning_rates(
            values,
            rates=_parse_rates(rates),
            seeds=range(first_seed, first_seed + seeds),
            directory=out,
            n_workers=workers or default_workers(),
            progress=progress,
            command=shlex.join(["python", "-m", "paper_repro", *sys.argv[1:]]),
        )
    path = output or choice_path(preset)
    write_choice(choice, path)
    console.print(*describe_choice(choice), f"Written to {path}", sep="\n", highlight=False)


@app.command()
def table(out: Out = Path("runs")) -> None:
    """Show the finished runs of a folder, arm by arm."""
    results = read_results(out)
    arms = group_runs(results)
    console = Console()
    console.print(make_table(arms, title=f"{len(results)} runs in {out}"))
    for words in filter(None, map(best_of_words, arms)):
        console.print(words, highlight=False)
    for result in results:
        console.print(f"  {result.run_id}", highlight=False)


@app.command()
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
    """Cuts of Mamba layers by every method, early and late, right after the cut and after training on."""
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


@app.command("study-table")
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


@app.command()
def moments(
    results: Annotated[Path, typer.Option(help="File of the measurements.")] = Path("runs/moments.json"),
    into: Annotated[
        Path | None, typer.Option(help="Page that gets the table, between its two marks.", show_default=False)
    ] = None,
    stored: Annotated[bool, typer.Option("--stored", help="Measure nothing: the table of what the file has.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds and a few steps: whether everything runs.")] = False,
) -> None:
    """Cuts with the optimizer's moments carried, sliced and reset."""
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


def default_workers() -> int:
    """Return how many runs go at a time: the cores, but not more than `MOST_WORKERS`."""
    return min(provenance.available_cores(), MOST_WORKERS)


def main() -> None:
    """Run the command line; an error that the user can mend is one message and exit status 2."""
    try:
        app()
    except ReproError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(2)


def _parse_rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"--rates takes numbers with commas between, got {text!r}") from error
    if len(set(rates)) != len(rates):
        raise ConfigurationError(f"--rates names a rate twice: {text!r}")
    return rates


@contextmanager
def _stop_at_next_step() -> Iterator[Any]:
    """Turn an interrupt or a termination into a request that the training loop asks for after every step."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
