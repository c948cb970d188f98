"""What all layers check of their arguments, and how they treat padded sequences."""

from collections.abc import Collection

import torch
from torch import Tensor

from hsv import DtypeError, HsvError, ShapeError

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
"""The dtypes that layers compute in, and their complex counterparts."""


def check_size(name: str, size: object) -> None:
    """Raise unless `size` is an int of at least 1."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise DtypeError(f"`{name}` must be an int, got {size!r}")
    if size < 1:
        raise ShapeError(f"`{name}` must be at least 1, got {size}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ShapeError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_dtype(dtype: torch.dtype, name: str = "dtype of the layer") -> torch.dtype:
    """Return `dtype` if a layer can compute in it; complex numbers exist in two precisions only."""
    if dtype not in COMPLEX:
        raise DtypeError(
            f"`{name}` must be {' or '.join(map(str, COMPLEX))}, got {dtype}: complex numbers of other precisions are not "
            "supported; keep the layer in float32 and use torch.autocast around the model"
        )
    return dtype


def checked_input(x: Tensor, axes: tuple[str, ...], d_model: int, dtype: torch.dtype) -> Tensor:
    """Return ``x (*axes, d_model)`` in the layer's `dtype`; half precision is taken up to it, so that autocast works."""
    check_dtype(dtype)
    if x.ndim != len(axes) + 1 or x.shape[-1] != d_model:
        raise ShapeError(f"the input must be ({', '.join(axes)}, {d_model}), got {tuple(x.shape)}")
    if x.dtype != dtype and x.dtype not in (torch.float16, torch.bfloat16):
        raise DtypeError(f"the input is {x.dtype} and the layer {dtype}; convert one of them with `.to`")
    return x.to(dtype)


def padding_mask(lengths: Tensor, batch: int, length: int) -> Tensor:
    """Return ``(batch, length)``, True where a sequence of ``lengths (batch,)`` has a step and False in the padding after it.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        `lengths` are not `batch` integers in ``[0, length]``.
    """
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise DtypeError(f"`lengths` must be integers, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ShapeError(
            f"`lengths` must have shape ({batch},), one for each sequence of the batch, got {tuple(lengths.shape)}"
        )
    if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ShapeError(
            f"`lengths` must lie in [0, {length}], the length of the input, got {int(lengths.min())} to {int(lengths.max())}"
        )
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return ``x (batch, length, channels)`` with zeros in the padding; ``None``: no sequence is padded."""
    if lengths is None:
        return x
    mask = padding_mask(lengths.to(x.device), x.shape[0], x.shape[1])
    return torch.where(
        mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device)
    )  # also for NaN in the padding


def check_state(state: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise unless the carried state is of this shape and dtype."""
    if tuple(state.shape) != shape or state.dtype != dtype:
        raise ShapeError(
            f"`state` must be {dtype} of shape {shape}, got {state.dtype} of shape {tuple(state.shape)}; after a cut begin again "
            "with `initial_state`"
        )


def refuse_steps_of_a_bidirectional_layer(bidirectional: bool) -> None:
    """Raise if a layer that is asked for one step reads its inputs in both directions."""
    if bidirectional:
        raise HsvError(
            "a bidirectional layer has no step: its outputs depend on later inputs; call the layer on whole sequences"
        )
