# mypy: ignore-errors
"""What every launch has in common."""

import contextlib

import torch

# A large GPU hides the latency of its memory when about this many threads have loads on their way. The exact number matters little, and
# a constant makes results the same on every GPU.
LANES = 2**17

# Contraction of a b + c is what the CPU kernels do too; said here because the default of Triton is about to change.
OPTIONS = {"enable_fp_fusion": True}


def on_device_of(tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
