"""Checkpoints of models whose layers no longer have the sizes they were made with."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hsv import HsvError
from hsv_torch.adapters import adapter_of, compressible_layers
from hsv_torch.optimizer import replace_in_optimizer, replace_parameters
from hsv_torch.snapshot import Snapshot

_FORMAT = "hsv_torch.checkpoint"
_VERSION = 1


class CheckpointError(HsvError):
    """A file is no checkpoint, is damaged, or belongs to another model."""


def layer_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Of every layer that can be cut, by dotted name: ``n_states`` and whatever else its adapter's ``form`` has."""
    return {
        name: {"n_states": adapter_of(layer).n_states(layer), **adapter_of(layer).form(layer)}
        for name, layer in compressible_layers(model).items()
    }


def resize_layers(
    model: nn.Module, sizes: Mapping[str, Mapping[str, int]], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Give layers the sizes asked for, with values unset, so that stored values can be loaded.

    A layer that has its sizes already is left alone. The optimizer forgets the state of what is replaced.

    Raises
    ------
    CheckpointError
        If a name is none of the model's layers.
    """
    layers, now = compressible_layers(model), layer_sizes(model)
    unknown = [name for name in sizes if name not in layers]
    if unknown:
        raise CheckpointError(
            f"sizes are stored for the layers {unknown}, which the model does not have; it has {list(layers)}"
        )
    for name, size in sizes.items():
        if now[name] != dict(size):
            replaced = adapter_of(layers[name]).resize(layers[name], **size)
            replace_parameters(model, {old: new for old, new in replaced.values() if old is not None})
            if optimizer is not None:
                replace_in_optimizer(optimizer, replaced)


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Any = None,
) -> None:
    """Save a model with the present sizes of its layers, so that :func:`load_into` can rebuild it.

    The file appears under its name only once it is complete and has been read back: an interruption leaves what was
    there before.

    Parameters
    ----------
    model
        Its parameters and buffers are saved, and the size of each layer that can be cut.
    path
        The file; its folder must exist.
    optimizer
        Saved too if given.
    extra
        Anything made of numbers, strings, tensors, lists, tuples and dicts: ``compressor.state_dict()``, a step number.

    Raises
    ------
    CheckpointError
        If `extra` contains objects that cannot be loaded without running code.
    """
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "sizes": layer_sizes(model),
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "optimizer_parameters": None if optimizer is None else _names_in_groups(model, optimizer),
        "extra": extra,
    }
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                "`extra` (or a state of the optimizer) holds objects that can only be loaded by running code; save numbers, "
                f"strings, tensors, lists, tuples and dicts: {_first_line(error)}"
            ) from error
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_into(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    map_location: Any = None,
) -> Any:
    """Load a checkpoint into a model of the same structure, whatever the sizes of its layers, and into its optimizer.

    Layers whose stored size differs get new parameters, in the model and in `optimizer`. On any error model and optimizer
    are as they were.

    Parameters
    ----------
    model
        Made by the code that made the saved one; its layers may still have their first, full size.
    path
        A file that :func:`save_checkpoint` wrote.
    optimizer
        An optimizer of the same kind and groups; its state is loaded too.
    map_location
        As for `torch.load`.

    Returns
    -------
    object
        What was saved as `extra`.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, is truncated or damaged, or its names or shapes are not those of the model.
    """
    content = _read(Path(path), map_location)
    if optimizer is not None and content["optimizer"] is None:
        raise CheckpointError(f"{path} was saved without an optimizer: leave `optimizer` out and make a new one")
    before = Snapshot.take(model, optimizer, layers=compressible_layers(model).values())
    try:
        resize_layers(model, content["sizes"], optimizer)
        _check_matches(model, content["model"], path)
        model.load_state_dict(content["model"])
        if optimizer is not None:
            state = _in_the_order_of(optimizer, model, content["optimizer"], content["optimizer_parameters"], path)
            try:
                optimizer.load_state_dict(state)
            except (KeyError, ValueError) as error:
                raise CheckpointError(f"{path} was saved with an optimizer of other groups: {error}") from error
    except BaseException:
        before.restore()
        raise
    return content["extra"]


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            size = path.stat().st_size
            raise CheckpointError(
                f"{path} ({size} bytes) is not a whole checkpoint: it was truncated, or was not written by save_checkpoint"
            )
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: damaged, or not written by save_checkpoint: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is a file of torch.save, but was not written by save_checkpoint; load it with torch.load"
        )
    if content["version"] != _VERSION:
        raise CheckpointError(
            f"{path} has format version {content['version']}, and this release reads {_VERSION}; use a newer release"
        )
    return content


def _check_matches(model: nn.Module, stored: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(stored)), sorted(set(stored) - set(own))
    if missing or unexpected:
        raise CheckpointError(
            f"{path} belongs to another model: it lacks {missing[:5] or 'nothing'} and has {unexpected[:5] or 'nothing'} "
            "beside what this model has"
        )
    for name, value in own.items():
        found = stored[name]
        if isinstance(value, torch.Tensor) and value.shape != found.shape:
            raise CheckpointError(
                f"{path}: {name!r} has shape {tuple(found.shape)}, and {tuple(value.shape)} in this model"
            )


def _names_in_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in each group; empty for one that is not the model's.

    A cut can add a parameter at the end of its group, where a new optimizer has it elsewhere: positions alone do not say which is which.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def _in_the_order_of(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    stored: dict[str, Any],
    stored_names: list[list[str]],
    path: str | os.PathLike[str],
) -> dict[str, Any]:
    """The stored state with the places that the model's parameters have in `optimizer`."""
    own_names = _names_in_groups(model, optimizer)
    if own_names == stored_names:
        return stored
    if [sorted(group) for group in own_names] != [sorted(group) for group in stored_names]:
        missing = sorted({name for group in own_names for name in group} - {n for group in stored_names for n in group})
        raise CheckpointError(
            f"{path} was saved with an optimizer of other groups: {len(stored_names)} groups of {[len(g) for g in stored_names]} parameters, where this one "
            f"has {[len(g) for g in own_names]}" + (f"; {missing[:5]} were not in it" if missing else "")
        )
    places = {
        name: place
        for names, group in zip(stored_names, stored["param_groups"], strict=True)
        for name, place in zip(names, group["params"], strict=True)
    }
    own = optimizer.state_dict()
    state = {}
    for names, group in zip(own_names, own["param_groups"], strict=True):
        for name, place in zip(names, group["params"], strict=True):
            if places[name] in stored["state"]:
                state[place] = stored["state"][places[name]]
    groups = [
        {**there, "params": here["params"]}
        for here, there in zip(own["param_groups"], stored["param_groups"], strict=True)
    ]
    return {**stored, "state": state, "param_groups": groups}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
