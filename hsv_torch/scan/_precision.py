"""In which precision a scan computes, and in which it answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hsv import DtypeError, ShapeError

_HALF = (torch.float16, torch.bfloat16)


def precisions(tensors: Sequence[Tensor], allowed: Sequence[torch.dtype], what: str) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the result, which is the common one of all tensors, and the dtype to compute in: float32 for half precision.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Tensors on two devices; a common dtype that is neither half precision nor one of those allowed.
    """
    result = tensors[0].dtype
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            raise ShapeError(f"all arguments must be on one device, got {tensor.device} and {tensors[0].device}")
        result = torch.promote_types(result, tensor.dtype)
    compute = torch.float32 if result in _HALF else result
    if compute not in allowed:
        *others, last = (str(dtype).removeprefix("torch.") for dtype in (*_HALF, *allowed))
        raise DtypeError(f"there is no {what} in {result}; convert the arguments to {', '.join(others)} or {last}")
    return result, compute
