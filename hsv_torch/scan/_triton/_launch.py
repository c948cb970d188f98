"""What every launch has in common, and the shapes that tracing needs. This file imports no Triton."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

# Contraction of a b + c to one operation, as on the CPU; said here because the default of Triton is about to change.
OPTIONS = {"enable_fp_fusion": True}

# Of the selective scan. Bytes of a signal in a chunk, for each channel: the backward pass has seven such signals in registers, the forward
# pass three. Bytes of the states at the edges of chunks that may be kept at a time even where two signals are smaller.
FORWARD_BYTES, BACKWARD_BYTES = 64, 32
SEGMENT_BYTES = 2**26


def on_device_of(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def plain(tensor: Tensor) -> Tensor:
    """As it stands in memory: contiguous, neither conjugated nor negated on the fly."""
    return tensor.contiguous().resolve_conj().resolve_neg()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def steps_of(itemsize: int) -> tuple[int, int]:
    """Steps of a chunk of the selective scan, forward and backward."""
    return FORWARD_BYTES // itemsize, BACKWARD_BYTES // itemsize


def segments_of(batch: int, length: int, d: int, n: int, itemsize: int) -> tuple[int, int]:
    """Into how many segments the selective scan cuts the time axis, and how long they are: as many as hold two states at the edge of each
    chunk to the size of two signals, but not so many that the states at the edges of segments are more than those.
    """
    longest, shortest = steps_of(itemsize)
    edges = 2 * itemsize * batch * ceil_div(length, shortest) * d * n
    budget = max(SEGMENT_BYTES, 2 * itemsize * batch * length * d)
    wanted = min(ceil_div(edges, budget), math.isqrt(ceil_div(2 * length, shortest)))
    segment = ceil_div(ceil_div(length, max(1, wanted)), longest) * longest
    return ceil_div(length, segment), segment


def selective_saved_shape(x: Tensor, n: int, save: bool) -> tuple[int, int, int, int]:
    """Of the states before each segment."""
    batch, length, d = x.shape
    count = segments_of(batch, length, d, n, x.element_size())[0] if save and batch * length * d * n else 0
    return batch, count, n, d


def attention_saved_shape(q: Tensor, v: Tensor, save: bool) -> tuple[int, int, int, int]:
    """Of the state before the first step."""
    return v.shape[0] if save else 0, v.shape[2], q.shape[3], v.shape[3]
