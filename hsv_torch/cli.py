"""The command ``hsv-torch``: look at a checkpoint, compress it after training, show what a training run did."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import hsv
from hsv import DtypeError, HsvError, MissingBackendError, ShapeError
from hsv_torch.adapters import adapter_of, compressible_layers
from hsv_torch.allocation import Budget, Sizes
from hsv_torch.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_into, load_model, save_checkpoint
from hsv_torch.compress import compress_
from hsv_torch.criteria import ComplexHankel, Criterion, DiagonalCriterion, RealHankel
from hsv_torch.history import History, json_text
from hsv_torch.mode_choice import ModeChoice
from hsv_torch.report import events_table, write_html

REFUSED, USAGE = 1, 2  # exit statuses
_DISCARDS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.001)


class Reading(StrEnum):
    """The criteria by their names on the command line."""

    default = "default"
    complex = "complex"
    real = "real"
    last = "last"
    aire = "aire"


_CRITERIA: dict[Reading, Criterion | None] = {
    Reading.default: None,
    Reading.complex: ComplexHankel(),
    Reading.real: RealHankel(),
    Reading.last: ModeChoice("last"),
    Reading.aire: ModeChoice("aire"),
}

app = typer.Typer(
    name="hsv-torch",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Look at checkpoints of hsv_torch and compress them.\n\nExample: hsv-torch compress run.safetensors --keep 0.95 -o small.safetensors",
    epilog="Exit status: 0 done, 1 refused for a numerical reason, 2 wrong use or unreadable file.",
)

CheckpointFile = Annotated[
    Path, typer.Argument(help="A file that hsv_torch.save_checkpoint wrote.", show_default=False)
]
MakeModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FUNCTION",
        help="What makes the model, where the file holds no SequenceModel: a function without arguments, or a class.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, with every digit.")]


class _UsageError(HsvError):
    """Something about the call rather than about the numbers."""


@app.command()
def inspect(
    checkpoint: CheckpointFile,
    model: MakeModel = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the HTML report of the training run.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show layers and sizes, what a cut would keep, and what the training run did.

    Example: hsv-torch inspect run.safetensors
    """
    with _reporting():
        content = load_checkpoint(checkpoint)
        facts = _facts(checkpoint, content)
        if model is not None or content.configuration is not None:
            for name, layer in compressible_layers(_model(checkpoint, content, model)).items():
                facts["layers"][name] |= _spectrum(layer)
        history = _history(content.extra)
        facts["history"] = None if history is None else json.loads(history.to_json())
        if report is not None:
            if history is None:
                raise _UsageError(
                    f"{checkpoint} holds no history: save extra={{'compressor': compressor.state_dict()}}"
                )
            write_html(history, report)
        if as_json:
            print(json_text(facts, indent=2))
            return
        _print_facts(facts, history)


@app.command()
def compress(
    checkpoint: CheckpointFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the smaller model.")],
    keep: Annotated[
        float | None,
        typer.Option(help="Of each layer the least order with this share of its Hankel sum.", show_default=False),
    ] = None,
    states: Annotated[int | None, typer.Option(help="Keep so many states in each layer.", show_default=False)] = None,
    total_states: Annotated[
        int | None, typer.Option(help="Keep so many states in all layers together.", show_default=False)
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", metavar="PATTERN", help="Cut these layers only.", show_default=False)
    ] = None,
    criterion: Annotated[Reading, typer.Option(help="What decides which states stay.")] = Reading.default,
    multiple_of: Annotated[int, typer.Option(help="Round sizes up to a multiple.")] = 1,
    uniform: Annotated[bool, typer.Option("--uniform", help="Give all layers one size.")] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Inputs as one batch, for layers that need data (Mamba); numbers that are not whole take the model's dtype.",
            show_default=False,
        ),
    ] = None,
    model: MakeModel = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cut a trained model and write the smaller one, without its optimizer.

    Example: hsv-torch compress run.safetensors --keep 0.95 -o small.safetensors
    """
    with _reporting():
        if output.exists() and not overwrite:
            raise _UsageError(f"{output} exists; --overwrite replaces it")
        rule = _rule(keep, states, total_states)
        content = load_checkpoint(checkpoint)
        made = _model(checkpoint, content, model)
        data = None if calibration is None else [_inputs(calibration, made)]
        done = compress_(
            made,
            rule,
            layers=layers or None,
            criterion=_CRITERIA[criterion],
            calibration=data,
            sizes=Sizes(multiple_of=multiple_of, uniform=uniform),
        )
        save_checkpoint(made, output)
        records = [record.to_dict() for record in done.layers]
        if as_json:
            print(json_text({"output": str(output), "seconds": done.seconds, "layers": records}, indent=2))
            return
        table = _table(f"{output}: {output.stat().st_size:,} bytes, was {checkpoint.stat().st_size:,}")
        for column in ("layer", "states", "error at most", "condition"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for record in done.layers:
            bound = record.error_bound
            table.add_row(
                record.layer,
                f"{record.n_states_before} -> {record.n_states_after}",
                "" if bound is None or not np.isfinite(bound) else f"{bound:.3g}",
                f"{record.eigenvector_condition:.3g}",
            )
        Console().print(table)


def main() -> None:
    """Run the command line."""
    app(prog_name="hsv-torch")


def _rule(keep: float | None, states: int | None, total_states: int | None) -> hsv.Rule | Budget:
    given: list[hsv.Rule | Budget] = []
    given += [] if keep is None else [hsv.HankelSum(keep=keep)]
    given += [] if states is None else [hsv.Order(states)]
    given += [] if total_states is None else [Budget(states=total_states)]
    if len(given) != 1:
        raise _UsageError("exactly one of --keep, --states and --total-states says how much to keep")
    return given[0]


def _model(path: Path, content: Checkpoint, make: str | None) -> nn.Module:
    """The stored model."""
    if make is None:
        if content.configuration is None:
            raise _UsageError(f"{path} holds a model of your own: name what makes it with --model MODULE:FUNCTION")
        return load_model(path)
    module_name, _, name = make.partition(":")
    sys.path.insert(0, "")  # as `python -m` has it: the folder of the call
    try:
        made = getattr(importlib.import_module(module_name), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise _UsageError(f"--model {make}: {error}; write MODULE:FUNCTION, both importable from here") from error
    finally:
        sys.path.remove("")
    if not isinstance(made, nn.Module):
        raise _UsageError(f"--model {make} returns a {type(made).__qualname__}, and must return a torch.nn.Module")
    load_into(made, path)
    return made


def _inputs(path: Path, model: nn.Module) -> torch.Tensor:
    """The array in a file of NumPy, floating-point numbers in the dtype of the model's parameters."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _UsageError(
            f"--calibration {path} is no .npy file of numbers: {error}; write it with numpy.save"
        ) from error
    try:
        inputs = torch.from_numpy(array)
    except TypeError as error:
        raise _UsageError(
            f"--calibration {path} must hold one array of numbers, got {array!r:.80}: {error}; write it with numpy.save"
        ) from error
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def _facts(path: Path, content: Checkpoint) -> dict[str, Any]:
    tensors = [value for value in content.model.values() if isinstance(value, torch.Tensor)]
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(t.numel() for t in tensors),
        "configuration": content.configuration,
        "optimizer": content.optimizer is not None,
        "layers": {name: dict(sizes) for name, sizes in content.sizes.items()},
    }


def _spectrum(layer: nn.Module) -> dict[str, Any]:
    """Hankel singular values, and how many states a rule would keep; nothing where they depend on the layer's input."""
    adapter = adapter_of(layer)
    system, criterion = adapter.system(layer), adapter.default_criterion(layer)
    if system is None or not isinstance(criterion, DiagonalCriterion):
        return {}
    sigma = criterion.spectrum(system)
    kept = {str(tau): int(hsv.HankelSum(discard=tau).choose(sigma).max()) for tau in _DISCARDS}
    return {"hankel_singular_values": sigma.tolist(), "kept_at_discard": kept}


def _history(extra: Any) -> History | None:
    """The history of a compressor whose state is in `extra`, at whatever place."""
    if isinstance(extra, Mapping):
        if {"history", "schedule", "attempts_made"} <= set(extra):
            return History.from_dict(extra["history"])
        for value in extra.values():
            found = _history(value)
            if found is not None:
                return found
    return None


def _print_facts(facts: dict[str, Any], history: History | None) -> None:
    console = Console()
    configuration = facts["configuration"]
    console.print(
        f"{facts['file']}: {facts['bytes']:,} bytes, {facts['parameters']:,} numbers, "
        + ("with" if facts["optimizer"] else "without")
        + " an optimizer"
        + (
            ""
            if configuration is None
            else f"; a SequenceModel of {configuration['n_blocks']} {configuration['layer']} blocks"
        ),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    with_spectra = any("kept_at_discard" in sizes for sizes in facts["layers"].values())
    table = _table(
        "states that a cut would keep, if it may discard this share of the Hankel sum" if with_spectra else ""
    )
    for column in ("layer", "states", *(map(str, _DISCARDS) if with_spectra else ())):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, sizes in facts["layers"].items():
        kept = sizes.get("kept_at_discard", {})
        table.add_row(name, str(sizes["n_states"]), *(str(kept.get(str(tau), "")) for tau in _DISCARDS if with_spectra))
    console.print(table if facts["layers"] else "no layer that can be cut")
    if history is not None and history.events:
        console.print(events_table(history))


def _table(title: str) -> Table:
    return Table(title=title or None, title_justify="left")


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn an error that the user can mend into one line and an exit status."""
    try:
        yield
    except (_UsageError, CheckpointError, ShapeError, DtypeError, MissingBackendError) as error:
        _fail(str(error), USAGE)
    except HsvError as error:
        _fail(str(error), REFUSED)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), USAGE)


def _fail(message: str, status: int) -> None:
    print("Error: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(status) from None
