"""The command ``hsv``: look at a model in a file, reduce it, compare two."""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hsv import _files
from hsv._array import dtype_name, to_host
from hsv._errors import DtypeError, HsvError, MissingBackendError, OrderWarning, ShapeError, UnstableSystemError
from hsv._hankel import hankel_singular_values
from hsv._hankel_norm import hankel_norm_approximation
from hsv._irka import irka
from hsv._modal import modal_truncation
from hsv._norms import h2_norm, hankel_norm, hinf_error, hinf_norm
from hsv._order import ErrorBound, HankelEnergy, HankelSum, LargestGap, Order, Rule, Threshold
from hsv._reduction import Reduction, balanced_truncation, error_bound, numerical_rank, values_and_rounding
from hsv._singular_perturbation import singular_perturbation
from hsv._split import split_unstable
from hsv._systems import LinearSystem, StateSpace, stability_margin
from hsv.plotting import MATPLOTLIB_MISSING, plot_hankel_values, plot_poles, plot_sigma

REFUSED, USAGE = 1, 2  # exit statuses
_SHOWN_VALUES, _SHOWN_POLES = 12, 5


class Method(StrEnum):
    """The methods by their names on the command line."""

    balanced = "balanced"
    singular_perturbation = "singular-perturbation"
    hankel_norm = "hankel-norm"
    modal = "modal"
    irka = "irka"


_METHODS: dict[Method, Callable[[LinearSystem, Rule], Reduction]] = {
    Method.balanced: balanced_truncation,
    Method.singular_perturbation: singular_perturbation,
    Method.hankel_norm: hankel_norm_approximation,
    Method.modal: modal_truncation,
    Method.irka: irka,
}

app = typer.Typer(
    name="hsv",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Hankel singular values and model reduction of linear systems in .mat, .npz and .json files.\n\n"
    "Example: hsv reduce plant.mat --error-bound 0.01 -o small.mat",
    epilog="Exit status: 0 done, 1 refused for a numerical reason, 2 wrong use or unreadable file.",
)

ModelFile = Annotated[Path, typer.Argument(help="A .mat, .npz or .json file.", show_default=False)]
TimeBase = Annotated[
    str | None,
    typer.Option(
        "--dt",
        metavar="0|true|SECONDS",
        help="Time base of a file that has none: continuous, discrete, or a sampling period.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, with every digit.")]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture: .png, .svg, .pdf.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


class _UsageError(HsvError):
    """Something about the call rather than about the numbers."""


@app.command()
def info(
    model: ModelFile,
    dt: TimeBase = None,
    norms: Annotated[bool, typer.Option(help="Compute norms; the H-infinity norm takes the longest of all.")] = True,
    as_json: AsJson = False,
) -> None:
    """Show sizes, stability, Hankel values, norms and suggested orders."""
    with _reporting(), _progress() as step:
        step(f"reading {model}")
        system, labels = _read(model, dt)
        step("poles")
        facts = _facts(model, system, labels)
        if facts["stable"]:
            step("Hankel singular values")
            sigma, rounding = values_and_rounding(system)
            facts["hankel_singular_values"] = sigma.tolist()
            facts["minimal_order"] = int(numerical_rank(sigma, rounding))
            bounds = error_bound(sigma, np.arange(1, len(sigma) + 1), rounding)
            facts["error_bounds"] = bounds.tolist()
            facts["suggested_orders"] = _suggest(sigma, facts["minimal_order"], bounds)
            if norms:
                facts["norms"] = _norms(system, sigma, step)
    _show(facts, as_json, _print_info)


@app.command()
def reduce(
    model: ModelFile,
    order: Annotated[int | None, typer.Option(help="Keep so many states.", show_default=False)] = None,
    bound: Annotated[
        float | None, typer.Option("--error-bound", help="Least order with this guaranteed error.", show_default=False)
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Least order with this share of the sum of Hankel values.", show_default=False)
    ] = None,
    keep_energy: Annotated[
        float | None, typer.Option(help="Least order with this share of their squares.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep values above this multiple of the largest.", show_default=False)
    ] = None,
    largest_gap: Annotated[bool, typer.Option("--largest-gap", help="Cut at the largest ratio of neighbours.")] = False,
    method: Annotated[Method, typer.Option(help="How to reduce.")] = Method.balanced,
    keep_unstable: Annotated[
        bool, typer.Option("--keep-unstable", help="Reduce the stable part alone, and add the unstable one unchanged.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the reduced model.", show_default=False)
    ] = None,
    plot: PlotFile = None,
    check: Annotated[bool, typer.Option(help="Compute the true error, which takes longer than the reduction.")] = True,
    overwrite: Overwrite = False,
    dt: TimeBase = None,
    as_json: AsJson = False,
) -> None:
    """Reduce a model; say what to keep with one of --order ... --largest-gap."""
    with _reporting(), _progress() as step:
        rule = _rule(
            {
                "--order": (Order, order),
                "--error-bound": (ErrorBound, bound),
                "--keep": (lambda share: HankelSum(keep=share), keep),
                "--keep-energy": (lambda share: HankelEnergy(keep=share), keep_energy),
                "--threshold": (Threshold, threshold),
                "--largest-gap": (lambda _: LargestGap(), largest_gap or None),
            }
        )
        _check_targets(output, plot, overwrite=overwrite)
        step(f"reading {model}")
        system, labels = _read(model, dt)
        stable, unstable = _stable_part(system, step) if keep_unstable else (system, None)
        step(f"reducing {stable.n_states} states ({method.value})")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrderWarning)  # the notes say the same, and are shown
            reduction = _METHODS[method](stable, rule)
        reduced = reduction.system if unstable is None else reduction.system + unstable
        facts: dict[str, Any] = {
            "file": str(model),
            "method": method.value,
            "states": system.n_states,
            "order": reduced.n_states,
            "unstable_states_kept": 0 if unstable is None else unstable.n_states,
            "error_bound": None if reduction.error_bound is None else float(reduction.error_bound),
            "notes": list(reduction.notes),
        }
        if check:
            step("H-infinity error")
            facts["error"] = float(hinf_error(stable, reduction.system))
            facts["relative_error"] = _ratio(facts["error"], float(hinf_norm(stable)))
        if output is not None:
            step(f"writing {output}")
            _save(reduced, output, labels, overwrite=overwrite)
            facts["output"] = str(output)
        if plot is not None:
            step(f"drawing {plot}")
            drawn = reduction if unstable is None else reduced
            draws: list[Callable[[Any], object]] = [
                lambda ax: plot_sigma(system, drawn, ax),
                lambda ax: plot_poles(system, drawn, ax),
            ]
            if reduction.hankel_singular_values is not None:
                draws.insert(0, lambda ax: plot_hankel_values(reduction, ax))
            _write_picture(plot, draws)
            facts["plot"] = str(plot)
    _show(facts, as_json, _print_reduction)


@app.command()
def compare(
    first: ModelFile,
    second: ModelFile,
    plot: PlotFile = None,
    overwrite: Overwrite = False,
    dt: TimeBase = None,
    as_json: AsJson = False,
) -> None:
    """Show two models beside each other, and the norms of their difference."""
    with _reporting(), _progress() as step:
        _check_targets(None, plot, overwrite=overwrite)
        systems = []
        for path in (first, second):
            step(f"reading {path}")
            systems.append(_read(path, dt)[0])
        a, b = systems
        sizes = [(s.n_inputs, s.n_outputs) for s in systems]
        if sizes[0] != sizes[1]:
            raise _UsageError(
                f"the models must have the same inputs and outputs, got {sizes[0][0]} -> {sizes[0][1]} and {sizes[1][0]} -> {sizes[1][1]}"
            )
        if a.dt != b.dt or (a.dt is True) != (b.dt is True):
            raise _UsageError(f"the models must have the same dt, got {a.dt!r} and {b.dt!r}")
        models = []
        for path, system in zip((first, second), systems, strict=True):
            step(f"norms of {path}")
            facts = _facts(path, system, {})
            if facts["stable"]:
                facts["norms"] = _norms(system, to_host(hankel_singular_values(system)), step)
            models.append(facts)
        result: dict[str, Any] = {"models": models}
        if all(facts["stable"] for facts in models):
            step("norms of the difference")
            difference = a - b
            result["difference"] = {
                "hinf": float(hinf_error(a, b)),
                "h2": _finite(float(h2_norm(difference))),
                "hankel": float(hankel_norm(difference)),
            }
        if plot is not None:
            step(f"drawing {plot}")
            _write_picture(plot, [lambda ax: plot_sigma(a, b, ax), lambda ax: plot_poles(a, b, ax)])
            result["plot"] = str(plot)
    _show(result, as_json, _print_comparison)


def main() -> None:
    """Run the command line."""
    app(prog_name="hsv")


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn an error that the user can mend into one line and an exit status."""
    try:
        yield
    except (_UsageError, ShapeError, DtypeError, MissingBackendError) as error:
        _fail(str(error), USAGE)
    except UnstableSystemError as error:
        what = str(error).partition(";")[0]
        _fail(f"{what}; --keep-unstable reduces the stable part and adds the rest unchanged", REFUSED)
    except HsvError as error:
        _fail(str(error), REFUSED)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), USAGE)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", REFUSED)


def _fail(message: str, status: int) -> None:
    print("Error: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(status) from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is going on and for how long, on a terminal's standard error; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda description: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda description: progress.update(task, description=description)


def _read(path: Path, dt: str | None) -> _files.Model:
    given = _parse_dt(dt)
    try:
        model = _files.read_model(path, dt=given)
    except MissingBackendError:
        raise
    except HsvError as error:
        raise _UsageError(
            str(error).replace(
                "pass dt=0 (continuous), dt=True or dt=seconds (discrete)",
                "pass --dt 0 (continuous), --dt true or --dt SECONDS (discrete)",
            )
        ) from error
    if model.system.batch_shape:
        raise _UsageError(
            f"{path} holds a batch of shape {model.system.batch_shape}, and the command takes one system; write one of them with hsv.save"
        )
    return model


def _parse_dt(text: str | None) -> float | bool | None:
    if text is None:
        return None
    if text.lower() == "true":
        return True
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise _UsageError(f"--dt must be 0 (continuous), true (discrete) or a positive number of seconds, got {text!r}")
    return value


def _rule(options: Mapping[str, tuple[Callable[[Any], Rule], Any]]) -> Rule:
    given = [name for name, (_, value) in options.items() if value is not None]
    if len(given) != 1:
        raise _UsageError(
            f"say what to keep with exactly one of {', '.join(options)}, got {' and '.join(given) or 'none of them'}"
        )
    make, value = options[given[0]]
    try:
        return make(value)
    except HsvError as error:
        raise _UsageError(f"{given[0]}: {error}") from error


def _check_targets(output: Path | None, plot: Path | None, *, overwrite: bool) -> None:
    """Whatever can be known before the work begins."""
    if output is not None and output.suffix.lower() not in _files.SUFFIXES:
        raise _UsageError(f"{output} must end in {', '.join(_files.SUFFIXES)}, for the suffix decides the format")
    if plot is not None:
        types = _figure().canvas.get_supported_filetypes()
        if plot.suffix.lower().lstrip(".") not in types:
            raise _UsageError(f"{plot} must end in one of {', '.join('.' + kind for kind in types)}")
    for path in (output, plot):
        if path is None:
            continue
        if path.exists() and not overwrite:
            raise _UsageError(f"{path} exists; --overwrite replaces it")
        if not path.parent.is_dir():
            raise _UsageError(f"{path}: there is no folder {path.parent}")


def _save(system: LinearSystem, path: Path, labels: Mapping[str, Any], *, overwrite: bool) -> None:
    try:
        _files.save(system, path, **labels, overwrite=overwrite)
    except HsvError as error:
        raise _UsageError(str(error)) from error


def _figure(n_axes: int = 1) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingBackendError(MATPLOTLIB_MISSING) from error
    return Figure(figsize=(5.2 * n_axes, 4.4), layout="constrained", dpi=120)


def _write_picture(path: Path, draws: list[Callable[[Any], object]]) -> None:
    figure = _figure(len(draws))
    for draw, ax in zip(draws, np.ravel(figure.subplots(1, len(draws))), strict=True):
        draw(ax)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().lstrip("."))
    _files.write_atomically(path, buffer.getvalue())


def _stable_part(system: LinearSystem, step: Callable[[str], None]) -> tuple[LinearSystem, LinearSystem | None]:
    """The stable part, and the unstable one if there is any."""
    n_unstable = int(np.sum(to_host(stability_margin(system)) <= 0))
    if n_unstable == 0:
        return system, None
    if n_unstable == system.n_states:
        raise HsvError("all poles are unstable: there is no stable part to reduce")
    step("splitting off the unstable part")
    return split_unstable(system)


def _facts(path: Path, system: LinearSystem, labels: Mapping[str, Any]) -> dict[str, Any]:
    margins = to_host(stability_margin(system))
    poles = to_host(system.poles())
    nearest = np.argsort(margins, kind="stable")
    if not system.is_complex:  # one of each conjugate pair
        nearest = nearest[poles.imag[nearest] >= 0]
    return {
        "file": str(path),
        "states": system.n_states,
        "inputs": system.n_inputs,
        "outputs": system.n_outputs,
        "dt": system.dt,
        "matrix": "dense" if isinstance(system, StateSpace) else "diagonal",
        "dtype": dtype_name(system.B),
        "labels": dict(labels),
        "stable": bool(margins.min() > 0),
        "unstable_poles": int(np.sum(margins <= 0)),
        "poles_near_boundary": [
            {"real": float(poles[i].real), "imag": float(poles[i].imag), "margin": float(margins[i])}
            for i in nearest[:_SHOWN_POLES]
        ],
    }


def _norms(system: LinearSystem, sigma: np.ndarray, step: Callable[[str], None]) -> dict[str, float | None]:
    step("H2 norm")
    h2 = _finite(float(h2_norm(system)))
    step("H-infinity norm")
    return {"hinf": float(hinf_norm(system)), "h2": h2, "hankel": float(sigma[0])}


def _finite(x: float) -> float | None:
    """None for infinity, which JSON does not have."""
    return x if math.isfinite(x) else None


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _suggest(sigma: np.ndarray, rank: int, bounds: np.ndarray) -> list[dict[str, Any]]:
    """What each rule would keep, where it keeps anything that double precision can tell from rounding."""
    if not sigma[0] > 0:
        return []
    rules: list[tuple[str, Rule]] = [(f"--keep {share}", HankelSum(keep=share)) for share in (0.9, 0.99, 0.999)]
    rules.append(("--largest-gap", LargestGap()))
    for relative in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
        size = float(f"{relative * sigma[0]:.2g}")
        rules.append((f"--error-bound {size:g}", ErrorBound(size)))
    suggested: dict[tuple[str, int], dict[str, Any]] = {}  # of options that keep as many, the first
    for option, rule in rules:
        order = int(rule.choose(sigma))
        if order <= rank:
            row = {"option": option, "order": order, "error_bound": float(bounds[order - 1])}
            suggested.setdefault((option.split()[0], order), row)
    return list(suggested.values())


def _show(facts: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    if as_json:
        print(json.dumps(facts, allow_nan=False))
    else:
        show(Console(highlight=False), facts)


def _print_info(console: Console, facts: dict[str, Any]) -> None:
    table = _table(facts["file"], "", "")
    table.add_row("states, inputs, outputs", f"{facts['states']}, {facts['inputs']}, {facts['outputs']}")
    for key in ("name", "inputs", "outputs"):
        if key in facts["labels"]:
            value = facts["labels"][key]
            table.add_row(key if key == "name" else f"names of {key}", value if key == "name" else ", ".join(value))
    table.add_row("time", _time(facts["dt"]))
    table.add_row("matrices", f"{facts['matrix']}, {facts['dtype']}")
    table.add_row(
        "stable", "yes" if facts["stable"] else f"no: {facts['unstable_poles']} of {facts['states']} poles are not"
    )
    if facts["stable"]:
        table.add_row("numerical minimal order", str(facts["minimal_order"]))
    for name, value in facts.get("norms", {}).items():
        table.add_row(_NORM_NAMES[name], "infinite (D is not zero)" if value is None else f"{value:.6g}")
    console.print(table)

    unit = "rad/sample" if facts["dt"] is True else "rad/s"
    poles = _table("Poles nearest to the stability boundary", "pole", "distance", f"frequency ({unit})", "damping")
    for pole in facts["poles_near_boundary"]:
        poles.add_row(*_pole_cells(pole, facts["dt"], pairs=not facts["dtype"].startswith("complex")))
    console.print(poles)

    if not facts["stable"]:
        console.print(
            "Hankel singular values and norms are those of stable systems; `hsv reduce --keep-unstable` reduces the stable part.",
            soft_wrap=True,
        )
        return
    sigma = np.array(facts["hankel_singular_values"])
    values = _table("Hankel singular values", "order", "value", "share of the sum", "guaranteed error")
    for k, bound in enumerate(facts["error_bounds"][:_SHOWN_VALUES], start=1):
        share = sigma[:k].sum() / sigma.sum() if sigma[0] > 0 else 1.0
        values.add_row(str(k), f"{sigma[k - 1]:.4e}", f"{share:.6f}", f"{bound:.2e}")
    if len(sigma) > _SHOWN_VALUES:
        values.caption = f"and {len(sigma) - _SHOWN_VALUES} more; --json has all"
    console.print(values)

    suggested = _table("Suggested orders", "option of hsv reduce", "order", "guaranteed error")
    for row in facts["suggested_orders"]:
        suggested.add_row(row["option"], str(row["order"]), f"{row['error_bound']:.2e}")
    console.print(suggested)


def _print_reduction(console: Console, facts: dict[str, Any]) -> None:
    table = _table(facts["file"], "", "")
    table.add_row("method", facts["method"])
    table.add_row("states", f"{facts['states']} -> {facts['order']}")
    if facts["unstable_states_kept"]:
        table.add_row("of them unstable, kept", str(facts["unstable_states_kept"]))
    bound = facts["error_bound"]
    table.add_row("guaranteed error", "none for this method" if bound is None else f"{bound:.4e}")
    if "error" in facts:
        relative = facts["relative_error"]
        table.add_row(
            "error found",
            f"{facts['error']:.4e}" + ("" if relative is None else f" ({relative:.2e} of the largest gain)"),
        )
    for key in ("output", "plot"):
        if key in facts:
            table.add_row("written", facts[key])
    console.print(table)
    for note in facts["notes"]:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def _print_comparison(console: Console, result: dict[str, Any]) -> None:
    models = result["models"]
    table = _table("", "", *(facts["file"] for facts in models), "difference")
    table.add_row("states", *(str(facts["states"]) for facts in models), "")
    table.add_row(
        "stable", *("yes" if facts["stable"] else f"no, {facts['unstable_poles']} unstable" for facts in models), ""
    )
    for key, name in _NORM_NAMES.items():
        columns = [facts.get("norms") for facts in models] + [result.get("difference")]
        table.add_row(name, *("" if x is None else "infinite" if x[key] is None else f"{x[key]:.4e}" for x in columns))
    console.print(table)
    if "difference" not in result:
        console.print("Norms are those of stable systems.")
        return
    largest = models[0]["norms"]["hinf"]
    if largest > 0:
        console.print(
            f"The frequency responses differ by at most {result['difference']['hinf'] / largest:.2e} of the first one's largest gain.",
            soft_wrap=True,
        )
    if "plot" in result:
        console.print(f"written: {result['plot']}", markup=False)


_NORM_NAMES = {"hinf": "H-infinity norm", "h2": "H2 norm", "hankel": "Hankel norm"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", show_header=any(columns), caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or not any(columns) else "right", overflow="fold")
    return table


def _time(dt: float | bool) -> str:
    if dt is True:
        return "discrete"
    return f"discrete, a step is {dt:g} s" if dt else "continuous"


def _pole_cells(pole: Mapping[str, float], dt: float | bool, *, pairs: bool) -> tuple[str, ...]:
    """Value, distance from the boundary, natural frequency and damping ratio of a pole or a conjugate pair."""
    value = complex(pole["real"], pole["imag"])
    text = f"{value.real:.6g}"
    if value.imag:
        text += f" {'±' if pairs else '+' if value.imag > 0 else '-'} {abs(value.imag):.6g}i"
    speed = value if not dt else np.log(value) / float(dt) if value else complex(-math.inf)
    size = abs(speed)
    damping = f"{-speed.real / size:.4g}" if 0 < size < math.inf else ""
    return text, f"{pole['margin']:.3e}", f"{size:.4g}", damping
