"""The linear recurrence over a time axis: one entry point for every device."""

import importlib.util
import warnings

import torch
from torch import Tensor

from hsv import ShapeError
from hsv_torch.scan import _associative, _operators
from hsv_torch.scan._precision import precisions


def linear_scan(a: Tensor, u: Tensor, initial: Tensor | None = None) -> Tensor:
    r"""Return all states of :math:`h_t = a_t h_{t-1} + u_t`, element by element.

    Parameters
    ----------
    a : Tensor
        ``(n,)``, the same at every step, or ``(batch, length, n)``. Real or complex; it need not be stable.
    u : Tensor
        ``(batch, length, n)``, real or complex.
    initial : Tensor, optional
        ``(batch, n)``, the state before the first step; zero by default.

    Returns
    -------
    Tensor
        ``(batch, length, n)``, in the common dtype of ``a`` and ``u``. Half precision is computed in float32, under autocast too, and
        rounded once.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Shapes or devices that do not go together; a dtype that has no scan (integers, complex half precision).

    Notes
    -----
    On the CPU a Numba kernel does the forward and the backward pass in one sweep through memory each, with
    :func:`torch.get_num_threads` threads over sequences and blocks of states; every state's sums run in the order of time, and
    the gradient of a shared ``a`` adds the sequences in order, so results do not depend on the number of threads. There is no
    second derivative.

    On CUDA devices a Triton kernel has a thread for each state of each sequence. Where these are few, it cuts the sequences into pieces, at
    the price of reading ``u`` twice; the sums are then associated by pieces, which follow from the sizes alone. Other devices, and CUDA without
    Triton, take a parallel scan in plain PyTorch, ``2 log2(length)`` rounds of operations on whole arrays and twice the loop's work, said once in a
    warning.

    Examples
    --------
    >>> linear_scan(torch.tensor([0.5]), torch.ones(1, 4, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500, 1.8750])
    """
    if u.ndim != 3:
        raise ShapeError(f"`u` must be (batch, length, n), got {tuple(u.shape)}")
    batch, length, n = u.shape
    if tuple(a.shape) not in ((n,), (batch, length, n)):
        raise ShapeError(f"`a` must be {(n,)} or {(batch, length, n)} to go with `u`, got {tuple(a.shape)}")
    if initial is not None and tuple(initial.shape) != (batch, n):
        raise ShapeError(f"`initial` must be {(batch, n)} to go with `u`, got {tuple(initial.shape)}")
    allowed = (torch.float32, torch.float64, torch.complex64, torch.complex128)
    dtype, compute = precisions((a, u), initial, allowed, "linear scan")
    initial = u.new_zeros(batch, n, dtype=compute) if initial is None else initial.to(compute)
    a, u = (a if a.ndim == 3 else a[None, None]).to(compute), u.to(compute)
    if has_kernel(u.device):
        h: Tensor = _operators.call(_operators.linear_scan, a, u, initial)
    else:
        h = _associative.linear_scan(a, u, initial)
    return h.to(dtype)


TRITON = importlib.util.find_spec("triton") is not None


def has_kernel(device: torch.device) -> bool:
    """Whether the scans have a kernel for this device; a warning, once, where they have not."""
    if device.type == "cpu" or (device.type == "cuda" and TRITON):
        return True
    if device.type not in _warned:
        _warned.add(device.type)
        without = ", for Triton is not installed (`pip install triton`)" if device.type == "cuda" else " yet"
        warnings.warn(
            f"the scans have no kernel for {device.type}{without}: a parallel scan in plain PyTorch is used, which moves all states through "
            'memory several times; time-invariant layers with mode="auto" or mode="convolution" avoid it',
            stacklevel=3,
        )
    return False


_warned: set[str] = set()
