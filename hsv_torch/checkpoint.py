"""Checkpoints of models whose layers no longer have the sizes they were made with."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from hsv import HsvError
from hsv_torch import _packing
from hsv_torch.adapters import adapter_of, compressible_layers
from hsv_torch.distributed import Ranks
from hsv_torch.models import SequenceModel, SequenceModelConfig
from hsv_torch.optimizer import replace_in_optimizer, replace_parameters
from hsv_torch.sharding import OpenLayer, gathered, parts_of_model, parts_of_state
from hsv_torch.snapshot import Snapshot

_KEY = "hsv_torch"  # of the text in the file's metadata
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

    A layer that has its sizes already is left alone. The optimizer forgets the state of what is replaced. Where parameters are split over processes, all
    of them call this together.

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
            opened = OpenLayer(model, layers[name], optimizer)
            replaced = adapter_of(layers[name]).resize(layers[name], **size)
            replace_parameters(model, {old: new for old, new in replaced.values() if old is not None})
            if optimizer is not None:
                replace_in_optimizer(optimizer, replaced)
            opened.close()


@dataclass(frozen=True)
class Checkpoint:
    """What a file of :func:`save_checkpoint` holds, on the CPU.

    Attributes
    ----------
    sizes : dict
        Of every layer that can be cut, by dotted name: ``n_states`` and whatever else its adapter's ``form`` has.
    model : dict
        The model's ``state_dict``.
    configuration : dict or None
        What the model was made from, if it is a :class:`hsv_torch.SequenceModel`.
    optimizer : dict or None
        The optimizer's ``state_dict``, if it was saved.
    extra : object
        What was given as `extra`.
    """

    sizes: dict[str, dict[str, int]]
    model: dict[str, Any]
    configuration: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    optimizer_parameters: list[list[str]] | None
    extra: Any


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Any = None,
) -> None:
    """Save a model with the present sizes of its layers, so that :func:`load_into` can rebuild it.

    One file in the format of safetensors: all tensors, and in the file's metadata, under ``"hsv_torch"``, a JSON text with the format's version,
    the sizes of the layers, everything that is no tensor, and a checksum of each tensor. The model's tensors have the names ``model.*``. Reading
    such a file never runs code.

    The file appears under its name only once it is complete, on the disk and has been read back: an interruption leaves what was
    there before.

    Of a model that is split over processes (``fully_shard``) the whole tensors are saved, one part of them after another gathered in the first process, which alone
    writes: all processes call this together, and all raise if it fails. The file can then be loaded by any number of processes.

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
        If `extra`, or a state of the optimizer or the model, contains anything else.
    OSError
        The folder does not exist, or the disk is full; a file that was there before is as it was.
    """
    content = {
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "optimizer_parameters": None if optimizer is None else _names_in_groups(model, optimizer),
        "extra": extra,
    }
    ranks = Ranks(model)
    if ranks.split:
        content = gathered(content, ranks.rank == 0)
        ranks.decide(lambda: _write(model, content, Path(path)))
    else:
        _write(model, content, Path(path))


def _write(model: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    configuration = getattr(model, "config", None)
    packed: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for part, value in content.items():
        try:
            packed[part], found = _packing.pack(value, part)
        except TypeError as error:
            raise CheckpointError(
                f"`{part}` cannot be stored: {error}; convert it to numbers, strings, tensors, lists, tuples and dicts"
            ) from error
        tensors |= found
    header = {
        "version": _VERSION,
        "sizes": layer_sizes(model),
        "configuration": configuration.to_dict() if isinstance(configuration, SequenceModelConfig) else None,
        "content": packed,
        "checksums": _packing.checksums(tensors),
    }
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            safetensors.torch.save_file(tensors, draft, metadata={_KEY: json.dumps(header, allow_nan=False)})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} could not be written, and is as it was: {error}") from error
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        with safetensors.safe_open(draft, framework="pt") as written:
            assert set(written.keys()) == set(tensors)
        os.replace(draft, path)
        _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote, without a model.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, is truncated or damaged, or was written by a newer release.

    Examples
    --------
    >>> import tempfile, hsv_torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hsv_torch.save_checkpoint(torch.nn.Sequential(hsv_torch.LRU(4, 16)), f"{folder}/model.safetensors")
    ...     hsv_torch.load_checkpoint(f"{folder}/model.safetensors").sizes
    {'0': {'n_states': 16}}
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the file in it")
    tensors: dict[str, torch.Tensor] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(
                    f"{path} is a file of safetensors, but was not written by save_checkpoint; load it with safetensors.torch.load_file"
                )
            header = json.loads(metadata[_KEY])
            if header["version"] != _VERSION:
                raise CheckpointError(
                    f"{path} has format version {header['version']}, and this release reads {_VERSION}; use a newer release"
                )
            # Copies: what the file's mapping holds is aligned to 8 bytes only, and complex arithmetic may take 16 for granted.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a whole checkpoint: it was truncated, damaged, or not written by save_checkpoint: {error}"
        ) from error
    try:
        expected = header["checksums"]
        damaged = [name for name, sum_ in _packing.checksums(tensors).items() if expected[name] != sum_]
        content = {part: _packing.unpack(packed, tensors.__getitem__) for part, packed in header["content"].items()}
        sizes, configuration = header["sizes"], header["configuration"]
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: what its metadata says does not fit together: {error!r}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksums of {damaged[:5]} are not those that were stored")
    return Checkpoint(sizes=sizes, configuration=configuration, **content)


def load_into(model: nn.Module, path: str | os.PathLike[str], *, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Load a checkpoint into a model of the same structure, whatever the sizes of its layers, and into its optimizer.

    Layers whose stored size differs get new parameters, in the model and in `optimizer`. On any error model and optimizer
    are as they were.

    Parameters
    ----------
    model
        Made by the code that made the saved one; its layers may still have their first, full size. Its tensors stay on their devices.
    path
        A file that :func:`save_checkpoint` wrote. Where the model is split over processes, each of them reads it and takes its part.
    optimizer
        An optimizer of the same kind and groups; its state is loaded too.

    Returns
    -------
    object
        What was saved as `extra`, its tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, is truncated or damaged, or its names or shapes are not those of the model.
    """
    ranks = Ranks(model)
    if not ranks.split:
        return _put_into(model, load_checkpoint(path), path, optimizer)
    content = ranks.together(lambda: load_checkpoint(path), lambda: None)
    return _put_into(model, content, path, optimizer)


def _put_into(
    model: nn.Module, content: Checkpoint, path: str | os.PathLike[str], optimizer: torch.optim.Optimizer | None = None
) -> Any:
    if optimizer is not None and content.optimizer is None:
        raise CheckpointError(f"{path} was saved without an optimizer: leave `optimizer` out and make a new one")
    before = Snapshot.take(model, optimizer, layers=compressible_layers(model).values())
    try:
        resize_layers(model, content.sizes, optimizer)
        _check_matches(model, content.model, path)
        model.load_state_dict(parts_of_model(content.model, model.state_dict()))
        if optimizer is not None:
            assert content.optimizer is not None
            assert content.optimizer_parameters is not None
            state = _in_the_order_of(optimizer, model, content.optimizer, content.optimizer_parameters, path)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {**state, "state": {i: parts_of_state(kept, parameters[i]) for i, kept in state["state"].items()}}
            try:
                optimizer.load_state_dict(state)
            except (KeyError, ValueError) as error:
                raise CheckpointError(f"{path} was saved with an optimizer of other groups: {error}") from error
    except BaseException:
        before.restore()
        raise
    return content.extra


def load_model(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> SequenceModel:
    """Rebuild a :class:`hsv_torch.SequenceModel` from its checkpoint alone, with the sizes that its layers were saved with.

    Parameters
    ----------
    path
        A file that :func:`save_checkpoint` wrote of such a model.
    device, dtype
        As for :class:`hsv_torch.SequenceModel`; the dtype is the stored one by default.

    Raises
    ------
    CheckpointError
        As :func:`load_checkpoint`; or the file holds another model, which :func:`load_into` loads into one that your code makes.
    """
    content = load_checkpoint(path)
    if content.configuration is None:
        raise CheckpointError(
            f"{path} holds no hsv_torch.SequenceModel: make the model with your own code and use load_into(model, path)"
        )
    stored_dtype = content.model["head.weight"].dtype
    config = SequenceModelConfig.from_dict(content.configuration)
    model = SequenceModel(config, device=device, dtype=stored_dtype if dtype is None else dtype)
    _put_into(model, content, path)
    return model


def _sync_folder(folder: Path) -> None:
    """Bring a new name onto the disk too, where the system can."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
