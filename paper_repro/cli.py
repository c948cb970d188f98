"""The command line: ``python -m paper_repro``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.padding import Padding

from paper_repro import provenance
from paper_repro.comparison import best_of_words, group_runs, make_table
from paper_repro.configuration import ARMS, Arm, make_config, overridden, parse_overrides, preset_names, read_preset
from paper_repro.errors import ConfigurationError, ReproError
from paper_repro.finished_runs import BEST_FILE, listing_command
from paper_repro.options import (
    Cpu,
    DataDir,
    Gpu,
    Minutes,
    Out,
    Overrides,
    Paper,
    Quick,
    Rows,
    SharedRate,
    TableName,
    Tasks,
    Workers,
    default_workers,
)
from paper_repro.progress import RunProgress
from paper_repro.results import RunResult, find_result, read_results
from paper_repro.studies import app as studies
from paper_repro.tables.graph import Extent
from paper_repro.tables.grid import Format
from paper_repro.tables.plan import VARIANTS, Variant

NOT_FINISHED = 3  # exit status of a command whose minutes were over before its runs
RUNS, TABLE_RUNS = Path("runs"), Path("runs/tables")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train state space models that shrink while they train, and compare them.\n\n"
    "More: study, moments, ranking, regularisation (see their --help).",
    epilog="Example: [bold]python -m paper_repro run digits --seed 0 --set tau=0.2[/bold]",
)
app.add_typer(studies)


@app.command(epilog="Example: [bold]python -m paper_repro demo --seeds 1[/bold]")
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds an arm: 0, 1, ...")] = 3,
    overrides: Overrides = None,
    workers: Workers = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from what is in the folder.")] = False,
) -> None:
    """Digits in minutes: full, cut, from scratch; and a report."""
    from paper_repro.demo import run_demo

    run_demo(
        out,
        seeds=range(seeds),
        overrides=parse_overrides(overrides or []),
        n_workers=workers or default_workers(),
        console=Console(),
        fresh=fresh,
    )


@app.command(epilog="Example: [bold]python -m paper_repro run methods --cpu --minutes 10[/bold]")
def run(
    name: Annotated[
        str | None,
        typer.Argument(help="A preset, a .toml file, a table, or smoke: all, a few steps.", show_default=False),
    ] = None,
    arm: Annotated[
        Arm, typer.Option(metavar="ARM", help=f"One of {', '.join(ARMS)}.", rich_help_panel="One run of a preset")
    ] = "in_training",
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Of weights, dropout, order of data.", rich_help_panel="One run of a preset"),
    ] = 0,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="lru, s5, s4d or mamba.", show_default=False, rich_help_panel="One run of a preset"
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value.", rich_help_panel="One run of a preset"),
    ] = None,
    sizes_of: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Take the states that it ended with.", rich_help_panel="One run of a preset"),
    ] = None,
    starts_from: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Start from it, or be taught by it.", rich_help_panel="One run of a preset"),
    ] = None,
    test: Annotated[bool, typer.Option(help="Evaluate the test set.", rich_help_panel="One run of a preset")] = True,
    quick: Quick = False,
    cpu: Cpu = False,
    gpu: Gpu = False,
    paper: Paper = False,
    rows: Rows = None,
    tasks: Tasks = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1", help="Only these seeds.", show_default=False)] = None,
    shared_rate: SharedRate = False,
    workers: Workers = None,
    launcher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="slurm: a job a run; local, debug: to try it.", show_default=False),
    ] = None,
    launcher_options: Annotated[
        list[str] | None, typer.Option("--launch", metavar="KEY=VALUE", help="For submitit's executor.")
    ] = None,
    minutes: Minutes = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: runs, or runs/tables.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    list_: Annotated[bool, typer.Option("--list", help="Show tables and presets.")] = False,
) -> None:
    """Train one model or a whole table; repeat it to go on."""
    from paper_repro.tables.plan import find_plan
    from paper_repro.tables.run import TimeBudget, run_table

    if list_ or name is None:
        _list(Console())
        return
    plan = find_plan(name)
    chosen = [quick, cpu, gpu, paper]
    if plan is None:
        if any(chosen):
            raise ConfigurationError(
                f"--quick, --cpu, --gpu and --paper are for tables, and {name!r} is none; {_known()}"
            )
        if name == "smoke":
            from paper_repro.smoke import run_smoke

            run_smoke(out, n_workers=workers or default_workers(), console=Console())
            return
        values = overridden({**read_preset(name), "arm": arm, "seed": seed}, parse_overrides(overrides or []))
        if layer is not None:
            values["layer"] = layer
        if data_dir is not None:
            values["data_dir"] = str(data_dir)
        _run_one(values, out or RUNS, sizes_of=sizes_of, starts_from=starts_from, test=test, budget=TimeBudget(minutes))
        return
    extent = _extent(chosen, rows, tasks, shared_rate, seeds)
    directory = out or TABLE_RUNS
    count = workers or default_workers()
    runner = None
    if launcher is not None:
        from paper_repro.launch import launcher_of

        runner = launcher_of(
            launcher, directory, n_workers=count, minutes=minutes, options=parse_overrides(launcher_options or [])
        )
    budget = TimeBudget(minutes)
    if not run_table(
        plan, extent, directory, console=Console(), budget=budget, runner=runner, n_workers=count, data_dir=data_dir
    ):
        raise typer.Exit(NOT_FINISHED)


def _run_one(
    values: dict[str, Any], out: Path, *, sizes_of: str | None, starts_from: str | None, test: bool, budget: Any
) -> None:
    from paper_repro.training import RunInterruptedError, train
    from paper_repro.workers import Job, resolved

    earlier = {name: _finished_run(out, name, option) for name, option in ((sizes_of, "--sizes-of"), (starts_from, "--starts-from")) if name}  # fmt: skip
    config = resolved(Job("run", make_config(values), sizes_of=sizes_of, starts_from=starts_from), earlier)
    console = Console()
    progress = RunProgress(console)
    progress.add(config.run_id, config)
    with progress, _stop_at_next_step() as stopped:
        try:
            result = train(
                config,
                out,
                evaluate_test=test,
                progress=lambda step, note: progress.update(config.run_id, step, config.steps, note),
                should_stop=lambda: stopped() or budget(),
            )
        except RunInterruptedError as interrupted:
            if stopped():
                raise
            console.print(str(interrupted), highlight=False)
            raise typer.Exit(NOT_FINISHED) from interrupted
        progress.finish(config.run_id, result)
    console.print(make_table(group_runs([result]), title=config.run_id))
    console.print(
        f"One line in {out / 'results.jsonl'}, the best model in {out / config.run_id / BEST_FILE}", highlight=False
    )


def _finished_run(out: Path, name: str, option: str) -> RunResult:
    earlier = find_result(out, name)
    if earlier is None:
        raise ConfigurationError(f"{option}: no finished run {name!r} in {out}; {listing_command(out)} lists them")
    return earlier


@app.command("select-lr", epilog="Example: [bold]python -m paper_repro select-lr methods --cpu --seeds 1[/bold]")
def select_lr(
    name: Annotated[str, typer.Argument(help="A preset, a .toml file, or a table.", show_default=False)],
    rates: Annotated[str, typer.Option(help="Rates to try with every arm or row.")] = "4e-3,8e-3,16e-3",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds an arm and rate.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them; what is shown has others.")] = 100,
    overrides: Overrides = None,
    quick: Quick = False,
    cpu: Cpu = False,
    gpu: Gpu = False,
    paper: Paper = False,
    rows: Rows = None,
    tasks: Tasks = None,
    out: Out = Path("runs/select-lr"),
    output: Annotated[
        Path | None, typer.Option(help="File of the choice; default: where it is looked for.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    workers: Workers = None,
) -> None:
    """Choose each method's learning rate on validation data."""
    from paper_repro.selection import choice_path, describe_choice, select_learning_rates, write_choice
    from paper_repro.tables.plan import find_plan

    command = provenance.plain_command(sys.argv[1:])
    console, numbers = Console(), range(first_seed, first_seed + seeds)
    tried, count = _parse_rates(rates), workers or default_workers()
    plan = find_plan(name)
    if plan is not None:
        from paper_repro.tables.rates import choose_for_table

        extent = _extent([quick, cpu, gpu, paper], rows, tasks, False, None)
        choose_for_table(
            plan, extent, rates=tried, seeds=numbers, directory=out, n_workers=count, console=console, command=command,
            output=output,
        )  # fmt: skip
        return
    values = overridden(read_preset(name), parse_overrides(overrides or []))
    if data_dir is not None:
        values["data_dir"] = str(data_dir)
    with RunProgress(console) as progress:
        choice = select_learning_rates(
            values, rates=tried, seeds=numbers, directory=out, n_workers=count, progress=progress, command=command
        )
    path = output or choice_path(name)
    write_choice(choice, path)
    console.print(*describe_choice(choice), f"Written to {path}", sep="\n", highlight=False)


@app.command(epilog="Example: [bold]python -m paper_repro table methods --cpu --format markdown[/bold]")
def table(
    name: Annotated[
        str | None, typer.Argument(help="A table; none: the finished runs of a folder.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs; default: the results that are kept.", show_default=False)
    ] = None,
    style: Annotated[Format, typer.Option("--format", help="How it is written.")] = "terminal",
    quick: Quick = False,
    cpu: Cpu = False,
    gpu: Gpu = False,
    paper: Paper = False,
    shared_rate: SharedRate = False,
) -> None:
    """Show a table beside the paper's figures, or a folder's runs."""
    if name is not None:
        from paper_repro.tables.plan import read_plan
        from paper_repro.tables.show import show_table

        chosen = [quick, cpu, gpu, paper]
        variant = _variant(chosen) if any(chosen) else None
        show_table(read_plan(name), variant, out, style=style, shared_rate=shared_rate, console=Console())
        return
    folder = out or RUNS
    results = read_results(folder)
    arms = group_runs(results)
    console = Console()
    console.print(make_table(arms, title=f"{len(results)} runs in {folder}"))
    for words in filter(None, map(best_of_words, arms)):
        console.print(words, highlight=False)
    for result in results:
        console.print(f"  {result.run_id}", highlight=False)


@app.command(epilog="Example: [bold]python -m paper_repro collect methods --cpu[/bold]")
def collect(
    name: TableName,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = TABLE_RUNS,
    quick: Quick = False,
    cpu: Cpu = False,
    gpu: Gpu = False,
    paper: Paper = False,
    shared_rate: SharedRate = False,
    into: Annotated[
        Path | None, typer.Option(help="Folder of the file; default: paper_repro/results.", show_default=False)
    ] = None,
) -> None:
    """Copy a table's finished runs into the repository."""
    from paper_repro.tables.collected import RESULTS, collect
    from paper_repro.tables.plan import read_plan

    extent = _extent([quick, cpu, gpu, paper], None, None, shared_rate, None)
    path, count, planned = collect(read_plan(name), extent, out, into or RESULTS)
    Console().print(f"{count} of {planned} runs are in {path}", highlight=False)


@app.command(epilog="Example: [bold]python -m paper_repro figures --into docs/images/reproduction[/bold]")
def figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tables, or ranking; none: all.", show_default=False)
    ] = None,
    into: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("runs/figures"),
    style: Annotated[Literal["svg", "png"], typer.Option("--format")] = "svg",
) -> None:
    """Draw the results that the repository keeps."""
    from paper_repro.tables.pictures import draw_all

    paths = draw_all(into, style, tables=names)
    Console().print("\n".join(map(str, paths)) or "There are no results to draw; see `collect`.", highlight=False)


@app.command(epilog="Example: [bold]python -m paper_repro page --into docs/reproduction.md[/bold]")
def page(
    into: Annotated[Path, typer.Option(help="Page that has the marks.")] = Path("docs/reproduction.md"),
) -> None:
    """Put the results into the page of the reproduction."""
    from paper_repro.tables.page import fill_page

    Console().print(f"{fill_page(into)} parts of {into} are renewed", highlight=False)


@app.command(epilog="Example: [bold]python -m paper_repro tasks[/bold]")
def tasks() -> None:
    """What the tasks are, and where their data come from."""
    from paper_repro.tasks import describe_tasks

    console = Console()
    for task in describe_tasks():
        console.print(f"[bold]{task.name}[/bold]  {task.summary}", highlight=False)
        train, validation, test = (f"{count:,}" for count in task.sizes)
        options = ", ".join(f"{name} = {value}" for name, value in task.options.items())
        sizes = f"{train} sequences to train on, {validation} to validate, {test} to test; at most {task.longest:,} steps long."
        lines = [f"Data: {task.where}. {sizes}", f"Options: {options or 'none'}", f"Source: {task.reference}"]
        console.print(Padding("\n".join(lines), (0, 0, 0, 4)), highlight=False)


def _known() -> str:
    from paper_repro.tables.plan import plan_names

    return f"tables are {', '.join(plan_names())}"


def main() -> None:
    """Run the command line; an error that the user can mend is one message and exit status 2."""
    try:
        app()
    except ReproError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(2)


def _variant(chosen: list[bool]) -> Variant:
    """Return the variant whose flag was given."""
    if sum(chosen) != 1:
        raise ConfigurationError("a table has variants: give one of --quick, --cpu, --gpu and --paper")
    return VARIANTS[chosen.index(True)]


def _extent(chosen: list[bool], rows: str | None, tasks: str | None, shared_rate: bool, seeds: str | None) -> Extent:
    """Return how much of a table was asked for."""
    try:
        numbers = None if seeds is None else tuple(int(part) for part in seeds.split(","))
    except ValueError as error:
        raise ConfigurationError(f"--seeds takes whole numbers with commas between, got {seeds!r}") from error
    return Extent(_variant(chosen), rows=_names(rows), tasks=_names(tasks), seeds=numbers, shared_rate=shared_rate)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _list(console: Console) -> None:
    """Print tables and presets."""
    from paper_repro.tables.plan import plan_names, read_plan

    console.print("Tables", style="bold")
    for plan in map(read_plan, plan_names()):
        variants = " ".join(f"--{variant}" for variant in plan.variants)
        console.print(f"  table{plan.number}  {plan.name}: {plan.title} ({variants})", highlight=False)
    console.print("Presets", style="bold")
    console.print("  " + ", ".join(preset_names()), highlight=False)


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
