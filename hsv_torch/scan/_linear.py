"""The linear recurrence over a time axis: one entry point for every device."""

import warnings

import torch
from torch import Tensor

from hsv import DtypeError, ShapeError
from hsv_torch.scan import _associative, _operators


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
        ``(batch, length, n)``, in the common dtype of the arguments, which must come down to float32, float64, complex64
        or complex128.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Shapes or devices that do not go together; a dtype that has no kernel (half precision, integers).

    Notes
    -----
    On the CPU a Numba kernel does the forward and the backward pass in one sweep through memory each, with
    :func:`torch.get_num_threads` threads over sequences and blocks of states; every state's sums run in the order of time, and
    the gradient of a shared ``a`` adds the sequences in order, so results do not depend on the number of threads. There is no
    second derivative. Other devices have no kernel yet and take a parallel scan in plain PyTorch, ``2 log2(length)`` rounds of operations
    on whole arrays and twice the loop's work, said once in a warning.

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
    tensors = [a, u] if initial is None else [a, u, initial]
    dtype = a.dtype
    for tensor in tensors:
        if tensor.device != u.device:
            raise ShapeError(f"all arguments must be on one device, got {tensor.device} and {u.device}")
        dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise DtypeError(
            f"there is no scan in {dtype}; convert the arguments to float32, float64, complex64 or complex128"
        )
    if initial is None:
        initial = u.new_zeros(batch, n)
    a, u, initial = a.to(dtype), u.to(dtype), initial.to(dtype)
    a = a if a.ndim == 3 else a[None, None]
    if not has_kernel(u.device):
        return _associative.linear_scan(a, u, initial)
    return _operators.linear_scan(a, u, initial)


def has_kernel(device: torch.device) -> bool:
    """Whether the scans have a kernel for this device; a warning, once, where they have not."""
    if device.type == "cpu":
        return True
    if device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(
            f"the scans have no kernel for {device.type} yet: a parallel scan in plain PyTorch is used, which moves all states through "
            'memory several times; time-invariant layers with mode="auto" or mode="convolution" avoid it',
            stacklevel=3,
        )
    return False


_warned: set[str] = set()
