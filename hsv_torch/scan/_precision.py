"""In which precision a scan computes, and in which it answers."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hsv import DtypeError, ShapeError

HALF = (torch.float16, torch.bfloat16)
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def precisions(
    signals: Sequence[Tensor], initial: Tensor | None, allowed: Sequence[torch.dtype], what: str
) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the outputs, the common one of ``signals``, and the one to compute in: ``initial`` counts, and half precision is computed in float32.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Tensors on two devices; a common dtype that is neither half precision nor one of those allowed.
    """
    device, answer = signals[0].device, signals[0].dtype
    for tensor in signals[1:]:
        answer = torch.promote_types(answer, tensor.dtype)
    compute = answer if initial is None else torch.promote_types(answer, initial.dtype)
    compute = torch.float32 if compute in HALF else compute
    for tensor in signals if initial is None else (*signals, initial):
        if tensor.device != device:
            raise ShapeError(f"all arguments must be on one device, got {tensor.device} and {device}")
    for dtype in (answer, compute):
        if dtype not in (*HALF, *allowed):
            *others, last = (str(dtype).removeprefix("torch.") for dtype in (*HALF, *allowed))
            raise DtypeError(f"there is no {what} in {dtype}; convert the arguments to {', '.join(others)} or {last}")
    return answer, compute


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products keep their precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@torch.library.custom_op("hsv_torch::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices in their own precision, and so its gradients, wherever autocast is on.

    An operator, because in a compiled graph the backward pass is under the autocast that surrounds the forward pass; what was turned off inside is
    on again there. Its gradients are products, so that it has derivatives of every order. On the CPU oneDNN multiplies, where PyTorch has it: PyTorch's own
    choice in float32, MKL, uses half the width of the vectors of some processors.
    """
    with without_autocast(a.device):
        if a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() and b.numel() and _has_one_dnn():
            y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
            return y
        return a @ b


@functools.cache
def _has_one_dnn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _save_factors(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _factor_gradients(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    return (
        product(slope, b.mT) if ctx.needs_input_grad[0] else None,
        product(a.mT, slope) if ctx.needs_input_grad[1] else None,
    )


product.register_autograd(_factor_gradients, setup_context=_save_factors)
