"""Nested values as JSON beside named tensors: what a checkpoint stores them as. Nothing in it runs code when it is read."""

from __future__ import annotations

import collections
import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def pack(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the value as JSON and the tensors in it by name, on the CPU; a tensor that stands in several places is stored once.

    A tensor has the name of its place, with a number behind it where two places have one (the keys 1 and "1" of a dict, say).

    Parameters
    ----------
    value
        None, numbers, strings, tensors, and lists, tuples and dicts of them.
    name
        What the names of the tensors begin with.

    Raises
    ------
    TypeError
        Anything else is in it; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    memories: set[int] = set()

    def put(item: Any, at: str) -> Any:
        kind = type(item)
        if item is None or kind in (bool, int, str):
            return item
        if kind is float:
            return item if math.isfinite(item) else {"float": repr(item)}
        if kind is list:
            return [put(part, f"{at}.{i}") for i, part in enumerate(item)]
        if kind in (tuple, torch.Size):
            return {"tuple": [put(part, f"{at}.{i}") for i, part in enumerate(item)]}
        if kind in (dict, collections.OrderedDict, collections.Counter):
            label = "counter" if kind is collections.Counter else "dict"
            return {label: [[put(key, at), put(part, f"{at}.{key}")] for key, part in item.items()]}
        if isinstance(item, Tensor):
            return put_tensor(item.detach(), at)
        raise TypeError(f"{at} is a {kind.__module__}.{kind.__qualname__}")

    def put_tensor(tensor: Tensor, at: str) -> dict[str, Any]:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise TypeError(f"{at} is a tensor that is sparse or quantised ({tensor.layout}, {tensor.dtype})")
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj())
        known = seen.get(place) if tensor.numel() else None
        if known is None:
            # safetensors has no complex128; both complex dtypes go the same way
            plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
            stored = plain.resolve_neg().cpu().contiguous()
            memory = stored.untyped_storage().data_ptr()
            free = unused(at)
            # a part of another tensor is stored in full: files hold no shared memory
            tensors[free] = stored.clone() if memory in memories else stored
            memories.add(memory)
            known = {"tensor": free, **({"complex": True} if tensor.is_complex() else {})}
            seen[place] = known
        return known

    def unused(at: str) -> str:
        return at if at not in tensors else next(n for i in itertools.count(2) if (n := f"{at}~{i}") not in tensors)

    return put(value, name), tensors


def unpack(packed: Any, take: Callable[[str], Tensor]) -> Any:
    """The inverse of :func:`pack`; `take` returns a tensor by its name."""
    if isinstance(packed, list):
        return [unpack(part, take) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content), *rest) = packed.items()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(unpack(part, take) for part in content)
    if kind in ("dict", "counter"):
        pairs = {unpack(key, take): unpack(part, take) for key, part in content}
        return collections.Counter(pairs) if kind == "counter" else pairs
    if kind == "tensor":
        tensor = take(content)
        return torch.view_as_complex(tensor) if rest else tensor
    raise ValueError(f"unknown kind {kind!r}")


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """CRC-32 of the bytes of each tensor, on the CPU and contiguous."""
    # a single number counts as contiguous whatever its stride, but its bytes cannot be looked at then
    flat = {name: t.reshape(-1).as_strided((t.numel(),), (1,)) for name, t in tensors.items()}
    return {name: zlib.crc32(t.view(torch.uint8).numpy().data) for name, t in flat.items()}


def header_checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the text that is stored beside the tensors, and of the names, dtypes and shapes that these are read with."""
    read = [f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}" for name in sorted(tensors)]
    return str(zlib.crc32("\n".join([text, *read]).encode()))
