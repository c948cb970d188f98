"""Running a model over calibration data while the layers whose systems depend on their input are observed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from hsv import HsvError
from hsv_torch.adapters import Observation, adapter_of, outside_inference_mode
from hsv_torch.criteria import Criterion
from hsv_torch.sharding import whole
from hsv_torch.snapshot import without_trace

Forward: TypeAlias = Callable[[nn.Module, Any], Any]


def check_calibration(layers: Mapping[str, nn.Module], calibration: object, forward: object = None) -> None:
    """Raise if data was given that no layer could use (an argument without an effect hides a mistake), or is missing."""
    needing = [name for name, layer in layers.items() if adapter_of(layer).needs_data]
    if needing:
        if calibration is None:
            raise HsvError(
                f"the system of {needing[0]!r} ({type(layers[needing[0]]).__name__}) depends on its input: pass `calibration`, batches of "
                "training data (64 sequences are often enough)"
            )
        if not isinstance(calibration, Tensor | Iterable) or isinstance(calibration, str | bytes | Mapping):
            raise TypeError(
                f"`calibration` must be batches (a list, a loader, or a tensor as the only batch), got a {type(calibration).__qualname__}; "
                "put a single batch of another kind into a list"
            )
        if isinstance(calibration, np.ndarray):
            raise TypeError("`calibration` must hold tensors, got a NumPy array: pass torch.from_numpy(calibration)")
        if (
            type(calibration) is tuple
            and len(calibration) > 1
            and any(isinstance(part, Tensor) for part in calibration)
        ):
            raise TypeError(
                f"`calibration` is a tuple of {len(calibration)} with tensors in it, which could be one batch (inputs, targets) or {len(calibration)} "
                "batches: pass [calibration] for one, list(calibration) for several"
            )
        if forward is not None and not callable(forward):
            raise TypeError(f"`forward` must be callable with a model and a batch, got {forward!r}")
        return
    for argument, value in (("calibration", calibration), ("forward", forward)):
        if value is not None:
            raise HsvError(
                f"`{argument}` is for layers whose system depends on their input, and none of {list(layers)} is one: "
                "leave it out"
            )


def observe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    criteria: Mapping[str, Criterion],
    calibration: Any,
    forward: Forward | None = None,
) -> dict[str, Observation]:
    """Run the model over the calibration batches and return what was seen of each layer that needs data.

    The run leaves no trace: training modes, buffers (batch-norm statistics) and random generators are as before.

    Raises
    ------
    HsvError
        If there was no batch, a layer was never called, or a layer refused what it was called with (its name comes first in the message).
    """
    needing = {name: layer for name, layer in layers.items() if adapter_of(layer).needs_data}
    if not needing:
        return {}
    with whole(model, needing.values()):
        observations = {name: adapter_of(layer).observe(layer, criteria[name]) for name, layer in needing.items()}
    calls = dict.fromkeys(needing, 0)

    def hook(name: str) -> Callable[..., None]:
        def before_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            try:
                observations[name].update(layer, args, kwargs)
            except HsvError as error:
                raise in_layer(name, error) from error
            calls[name] += 1

        return before_call

    hooks = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in needing.items()]
    try:
        with outside_inference_mode(), without_trace(model):
            model.eval()
            n_batches = 0
            for batch in [calibration] if isinstance(calibration, Tensor) else calibration:
                if forward is None:
                    _check_batch(batch)
                (forward or _forward)(model, batch)
                n_batches += 1
    finally:
        for handle in hooks:
            handle.remove()
    if n_batches == 0:
        raise HsvError(
            "`calibration` has no batches; if it is a generator it has been used up: pass a list or a loader, which can be gone through again"
        )
    silent = [name for name, count in calls.items() if count == 0]
    if silent:
        raise HsvError(
            f"the calibration runs never called the layers {silent}: pass a `forward` that uses them, or choose `layers` without them"
        )
    return observations


def in_layer(name: str, error: HsvError) -> HsvError:
    """The same error, with the layer's name before its message."""
    message = f"layer {name!r}: {error}"
    try:
        named = type(error)(message)
    except TypeError:  # a third party's error with a constructor of its own
        return HsvError(message)
    named.__dict__.update(error.__dict__)
    return named


def _check_batch(batch: Any) -> None:
    """Raise if a model of torch would be called with an array of NumPy."""
    given = batch.values() if isinstance(batch, Mapping) else batch[:1] if isinstance(batch, tuple | list) else [batch]
    if any(isinstance(value, np.ndarray) for value in given):
        raise TypeError(
            "`calibration`: a batch holds a NumPy array, and the model takes tensors: convert it with torch.from_numpy, or pass a `forward` that does"
        )


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)
