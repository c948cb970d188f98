"""Checkpoints of models whose layers no longer have the sizes they were made with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hsv import HsvError
from hsv_torch import _packing
from hsv_torch.adapters import adapter_of, compressible_layers, outside_inference_mode
from hsv_torch.distributed import Ranks
from hsv_torch.models import SequenceModel, SequenceModelConfig
from hsv_torch.optimizer import replace_in_optimizer, replace_parameters
from hsv_torch.sharding import OpenLayer, gathered, parts_of_model, parts_of_state
from hsv_torch.snapshot import Snapshot

_KEY = "hsv_torch"  # of the text in the file's metadata
_CHECKSUM_KEY = "hsv_torch.crc32"  # of its checksum there
_VERSION = 1

# What the wrappers call the model inside: torch.compile, Lightning Fabric, and (a name that models themselves have, too) DataParallel and DistributedDataParallel.
_RESERVED = ("_orig_mod", "_forward_module")
_WRAPPERS = (*_RESERVED, "module")


class CheckpointError(HsvError):
    """A file is no checkpoint, is damaged, or belongs to another model."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of ``torch.compile``, Lightning Fabric, ``DataParallel`` and ``DistributedDataParallel``, in whatever order."""
    while True:
        inside = model.module if isinstance(model, DataParallel | DistributedDataParallel) else None
        for name in _RESERVED:
            inside = model._modules.get(name) if inside is None else inside
        if inside is None:
            return model
        model = inside


def layer_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Of every layer that can be cut: ``n_states`` and whatever else its adapter's ``form`` has, by the dotted name that it has inside all wrappers."""
    return sizes_of(compressible_layers(unwrapped(model)))


def sizes_of(layers: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """The same of these layers, by their names here."""
    return {
        name: {"n_states": adapter_of(layer).n_states(layer), **adapter_of(layer).form(layer)}
        for name, layer in layers.items()
    }


def resize_layers(
    model: nn.Module, sizes: Mapping[str, Mapping[str, int]], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Give layers the sizes asked for, with values unset, so that stored values can be loaded.

    A layer that has its sizes already is left alone. The names may be those inside of all wrappers, or those that layers have in `model`. The optimizer
    forgets the state of what is replaced. Where parameters are split over processes, all of them call this together.

    Raises
    ------
    CheckpointError
        If a name is none of the model's layers.
    """
    layers = {**compressible_layers(unwrapped(model)), **compressible_layers(model)}
    now = sizes_of(layers)
    unknown = [name for name in sizes if name not in layers]
    if unknown:
        raise CheckpointError(
            f"sizes are stored for the layers {unknown}, which the model does not have; it has {list(compressible_layers(model))}"
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
        The model's ``state_dict``; of one that was wrapped (``torch.compile``), the names are those inside.
    configuration : dict or None
        What the model was made from, if it is a :class:`hsv_torch.SequenceModel`.
    optimizer : dict or None
        The optimizer's ``state_dict``, if it was saved.
    optimizer_parameters : list of lists of str, or None
        The names of the parameters in each of its groups, empty for one that is not the model's.
    extra : object
        What was given as `extra`.
    optimizer_class : str or None
        The name of the optimizer's class; None in files of the first releases, too.
    optimizer_shapes : list of lists of tuples, or None
        The shapes of the parameters in each of its groups; None in files of the first releases, too.
    """

    sizes: dict[str, dict[str, int]]
    model: dict[str, Any]
    configuration: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    optimizer_parameters: list[list[str]] | None
    extra: Any
    optimizer_class: str | None = None
    optimizer_shapes: list[list[tuple[int, ...]]] | None = None


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Any = None,
) -> None:
    """Save a model with the present sizes of its layers, so that :func:`load_into` can rebuild it.

    One file in the format of safetensors: all tensors, and in the file's metadata, under ``"hsv_torch"``, a JSON text with the format's version,
    the sizes of the layers, everything that is no tensor, and a checksum of each tensor; under ``"hsv_torch.crc32"``, a checksum of that text and of the
    tensors' names, dtypes and shapes. The model's tensors have the names ``model.*``. Reading such a file never runs code.

    The file appears under its name only once it is complete, on the disk and has been read back: an interruption leaves what was
    there before.

    Of a model that is split over processes (``fully_shard``) the whole tensors are saved, one part of them after another gathered in the first process, which alone
    writes: all processes call this together, and all raise if it fails. The file can then be loaded by any number of processes.

    Parameters
    ----------
    model
        Its parameters and buffers are saved, and the size of each layer that can be cut. Of a ``torch.compile``, a ``DistributedDataParallel``, a
        ``DataParallel`` or what ``Fabric.setup`` returned the model inside is saved: it can be loaded with any wrapper or none.
    path
        The file; its folder must exist.
    optimizer
        Saved too if given. It may have parameters that are not the model's (those of a loss, say): their values are not saved, what it keeps of them is.
    extra
        Anything made of numbers, strings, tensors, lists, tuples and dicts: ``compressor.state_dict()``, a step number.

    Raises
    ------
    CheckpointError
        If `extra`, or a state of the optimizer or the model, contains anything else.
    OSError
        The folder does not exist, or the disk is full; a file that was there before is as it was.
    """
    ranks = Ranks(model)
    model = unwrapped(model)
    content = {
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "optimizer_parameters": None if optimizer is None else _names_in_groups(model, optimizer),
        "extra": extra,
    }
    if ranks.split:
        content = gathered(content, ranks.rank == 0)
        ranks.decide(lambda: _write(model, content, Path(path), optimizer))
    else:
        _write(model, content, Path(path), optimizer)


def _write(model: nn.Module, content: Mapping[str, Any], path: Path, optimizer: torch.optim.Optimizer | None) -> None:
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
        "checksum_of_header": _CHECKSUM_KEY,
        "optimizer_class": None if optimizer is None else _class_of(optimizer),
        "optimizer_shapes": None if optimizer is None else _shapes_in_groups(optimizer),
    }
    text = json.dumps(header, allow_nan=False)
    metadata = {_KEY: text, _CHECKSUM_KEY: _packing.header_checksum(text, tensors)}
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            safetensors.torch.save_file(tensors, draft, metadata=metadata)
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
            # Copies: what the file's mapping holds is aligned to 8 bytes only, and complex arithmetic may take 16 for granted.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a whole checkpoint: it was truncated, damaged, or not written by save_checkpoint: {error}"
        ) from error
    text, checksum = metadata[_KEY], metadata.get(_CHECKSUM_KEY)
    if checksum is not None and checksum != _packing.header_checksum(text, tensors):
        raise CheckpointError(f"{path} is damaged: the checksum of its metadata is not the one that was stored")
    try:
        header = json.loads(text)
        version = header["version"]
        if version == _VERSION:
            return _without_wrappers(_content(header, tensors, checked=checksum is not None))
    except _DamagedError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: what its metadata says does not fit together: {error!r}") from error
    raise CheckpointError(
        f"{path} has format version {version}, and this release reads {_VERSION}; use a newer release"
    )


class _DamagedError(Exception):
    """What is damaged in a file."""


def _content(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, checked: bool) -> Checkpoint:
    """What the metadata and the tensors of a file say; `checked`: the metadata had a checksum.

    Raises whatever comes of it if they say nothing that :func:`save_checkpoint` writes.
    """
    if "checksum_of_header" in header and not checked:
        raise _DamagedError("the checksum of its metadata is missing")
    expected = header["checksums"]
    damaged = [name for name, sum_ in _packing.checksums(tensors).items() if expected[name] != sum_]
    if damaged:
        raise _DamagedError(f"the checksums of {damaged[:5]} are not those that were stored")
    content = {part: _packing.unpack(packed, tensors.__getitem__) for part, packed in header["content"].items()}
    shapes = header.get("optimizer_shapes")
    found = Checkpoint(
        sizes={name: dict(size) for name, size in header["sizes"].items()},
        configuration=header["configuration"],
        optimizer_class=header.get("optimizer_class"),
        optimizer_shapes=None if shapes is None else [[tuple(shape) for shape in group] for group in shapes],
        **content,
    )
    if not isinstance(found.model, dict) or not isinstance(found.configuration, dict | None):
        raise TypeError("the state of the model or its configuration is no dict")
    for name, size in found.sizes.items():
        if "n_states" not in size or not all(type(number) is int and number >= 0 for number in size.values()):
            raise ValueError(f"sizes of {name!r}: {size}")
    if found.optimizer is not None:
        names, groups = found.optimizer_parameters, found.optimizer["param_groups"]
        counts = [len(group["params"]) for group in groups]
        if names is None or [len(group) for group in names] != counts or not isinstance(found.optimizer["state"], dict):
            raise ValueError(f"names of parameters {names} in optimizer groups of {counts}")
        if found.optimizer_shapes is not None and [len(group) for group in found.optimizer_shapes] != counts:
            raise ValueError(f"shapes of parameters {found.optimizer_shapes} in optimizer groups of {counts}")
    return found


def _without_wrappers(content: Checkpoint, model: nn.Module | None = None) -> Checkpoint:
    """The content of a file, which the first releases wrote with the names of a wrapped model, with the names inside the wrappers.

    Those that fit `model` best; without one, names that are reserved for wrappers are taken away, and of a :class:`hsv_torch.SequenceModel` all of them.
    """
    wrappers = _RESERVED if model is None and content.configuration is None else _WRAPPERS

    def shorter(names: Collection[str], own: Iterable[str]) -> Callable[[str], str]:
        components = [name.split(".") for name in names]
        depth = 0
        while components and {"".join(parts[depth : depth + 1]) for parts in components} in [{w} for w in wrappers]:
            depth += 1
        known = set(own)

        def fitting(n: int) -> int:
            return len(known.intersection(".".join(parts[n:]) for parts in components))

        n = depth if model is None else max(range(depth + 1), key=fitting)
        return lambda name: ".".join(name.split(".")[n:])

    groups = content.optimizer_parameters or []
    layer = shorter(content.sizes, () if model is None else compressible_layers(model))
    entry = shorter(content.model, () if model is None else model.state_dict())
    parameter = shorter(
        [name for group in groups for name in group if name],
        () if model is None else (name for name, _ in model.named_parameters()),
    )
    return dataclasses.replace(
        content,
        sizes={layer(name): size for name, size in content.sizes.items()},
        model={entry(name): value for name, value in content.model.items()},
        optimizer_parameters=content.optimizer_parameters
        and [[name and parameter(name) for name in group] for group in groups],
    )


def load_into(model: nn.Module, path: str | os.PathLike[str], *, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Load a checkpoint into a model of the same structure, whatever the sizes of its layers, and into its optimizer.

    Layers whose stored size differs get new parameters, in the model and in `optimizer`. On any error model and optimizer
    are as they were.

    Parameters
    ----------
    model
        Made by the code that made the saved one; its layers may still have their first, full size. Its tensors stay on their devices. Either of
        the two may be wrapped (``torch.compile``, ``DistributedDataParallel``, ``DataParallel``, ``Fabric.setup``); a ``DistributedDataParallel`` reduces the
        gradients of the new parameters from then on.
    path
        A file that :func:`save_checkpoint` wrote. Where the model is split over processes, each of them reads it and takes its part.
    optimizer
        An optimizer of the same class and groups; its state is loaded too. Of parameters that are not the model's, the first in a group gets the state of
        the first one in that group, and so on.

    Returns
    -------
    object
        What was saved as `extra`, its tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, is truncated or damaged, or its names or shapes are not those of the model, or its optimizer is of another class or
        has other groups.
    """
    ranks = Ranks(model)
    with outside_inference_mode():  # what is loaded is to be trained
        content = ranks.together(lambda: load_checkpoint(path), lambda: None) if ranks.split else load_checkpoint(path)
        model = unwrapped(model)
        sizes = layer_sizes(model)
        extra = _put_into(model, content, path, optimizer)
    if layer_sizes(model) != sizes:
        ranks.rebuild()
    return extra


def _put_into(
    model: nn.Module, content: Checkpoint, path: str | os.PathLike[str], optimizer: torch.optim.Optimizer | None = None
) -> Any:
    if optimizer is not None and content.optimizer is None:
        raise CheckpointError(f"{path} was saved without an optimizer: leave `optimizer` out and make a new one")
    content = _without_wrappers(content, model)
    before = Snapshot.take(model, optimizer, layers=compressible_layers(model).values())
    try:
        resize_layers(model, content.sizes, optimizer)
        _check_matches(model, content.model, path)
        model.load_state_dict(parts_of_model(content.model, model.state_dict()))
        if optimizer is not None:
            _put_into_optimizer(optimizer, model, content, path)
    except BaseException:
        before.restore()
        raise
    return content.extra


def _put_into_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, content: Checkpoint, path: str | os.PathLike[str]
) -> None:
    own_class = _class_of(optimizer)
    if content.optimizer_class not in (None, own_class):
        raise CheckpointError(
            f"{path} was saved with an optimizer of the class {content.optimizer_class!r}, and `optimizer` is of the class {own_class!r}, which keeps "
            "another state: make one of that class, or leave `optimizer` out"
        )
    state = _in_the_order_of(optimizer, model, content, path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {**state, "state": {i: parts_of_state(kept, parameters[i]) for i, kept in state["state"].items()}}
    options = [set(group) & set(optimizer.defaults) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} was saved with an optimizer of other groups: {error}") from error
    # Options that a class has got since the file was written it sets itself; others say that the file is of another class.
    for own, group in zip(options, optimizer.param_groups, strict=True):
        if own - set(group):
            raise CheckpointError(
                f"{path} was saved with an optimizer of another class than {own_class!r}: its groups do not have the options {sorted(own - set(group))}; "
                "make one of that class, or leave `optimizer` out"
            )


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
    try:
        stored_dtype = content.model["head.weight"].dtype
        config = SequenceModelConfig.from_dict(content.configuration)
    except (KeyError, TypeError, AttributeError, HsvError) as error:
        raise CheckpointError(f"{path} says of no hsv_torch.SequenceModel how to make it: {error!r}") from error
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
        if isinstance(value, torch.Tensor) and not isinstance(found, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(found).__qualname__}, and a tensor of shape {tuple(value.shape)} in this model"
            )
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


def _shapes_in_groups(optimizer: torch.optim.Optimizer) -> list[list[tuple[int, ...]]]:
    return [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _class_of(optimizer: torch.optim.Optimizer) -> str:
    """The name of the class, of the optimizer inside where another package has wrapped it (Lightning Fabric, accelerate)."""
    while isinstance(inside := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inside
    return type(optimizer).__qualname__


def _keys(names: list[list[str]]) -> list[list[str | tuple[int, int]]]:
    """The names in groups, with ``(group, position among its foreign parameters)`` in place of an empty one."""
    keys: list[list[str | tuple[int, int]]] = []
    for i, group in enumerate(names):
        foreign = iter(range(len(group)))
        keys.append([name or (i, next(foreign)) for name in group])
    return keys


def _in_the_order_of(
    optimizer: torch.optim.Optimizer, model: nn.Module, content: Checkpoint, path: str | os.PathLike[str]
) -> dict[str, Any]:
    """The stored state with the places that the parameters have in `optimizer`."""
    stored, stored_names = content.optimizer, content.optimizer_parameters
    assert stored is not None
    assert stored_names is not None
    own_names = _names_in_groups(model, optimizer)
    if [sorted(group) for group in own_names] != [sorted(group) for group in stored_names]:
        missing = sorted({name for group in own_names for name in group} - {n for group in stored_names for n in group})
        raise CheckpointError(
            f"{path} was saved with an optimizer of other groups: {len(stored_names)} groups of {[len(g) for g in stored_names]} parameters, where this one "
            f"has {[len(g) for g in own_names]}" + (f"; {missing[:5]} were not in it" if missing else "")
        )
    own_keys, stored_keys = _keys(own_names), _keys(stored_names)
    if content.optimizer_shapes is not None:
        _check_shapes(own_keys, _shapes_in_groups(optimizer), stored_keys, content.optimizer_shapes, path)
    if own_names == stored_names:
        return stored
    places = {
        key: place
        for keys, group in zip(stored_keys, stored["param_groups"], strict=True)
        for key, place in zip(keys, group["params"], strict=True)
    }
    own = optimizer.state_dict()
    state = {}
    for keys, group in zip(own_keys, own["param_groups"], strict=True):
        for key, place in zip(keys, group["params"], strict=True):
            if places[key] in stored["state"]:
                state[place] = stored["state"][places[key]]
    groups = [
        {**there, "params": here["params"]}
        for here, there in zip(own["param_groups"], stored["param_groups"], strict=True)
    ]
    return {**stored, "state": state, "param_groups": groups}


def _check_shapes(
    own_keys: list[list[str | tuple[int, int]]],
    own_shapes: list[list[tuple[int, ...]]],
    stored_keys: list[list[str | tuple[int, int]]],
    stored_shapes: list[list[tuple[int, ...]]],
    path: str | os.PathLike[str],
) -> None:
    for i, keys in enumerate(own_keys):
        stored = dict(zip(stored_keys[i], stored_shapes[i], strict=True))
        for key, shape in zip(keys, own_shapes[i], strict=True):
            if stored[key] != shape:
                which = repr(key) if isinstance(key, str) else f"parameter {key[1]} of those that are not the model's"
                raise CheckpointError(
                    f"{path}: {which} in group {i} of `optimizer` has the shape {shape}, and had {stored[key]} when it was saved; give the "
                    "optimizer its parameters in the order that they had then"
                )
