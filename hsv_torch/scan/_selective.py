"""The selective scan of Mamba over a time axis: one entry point for every device."""

from typing import Literal, overload

import torch
from torch import Tensor

from hsv import ShapeError
from hsv_torch.scan import _associative, _operators
from hsv_torch.scan._linear import has_kernel
from hsv_torch.scan._precision import precisions, without_autocast


@overload
def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial: Tensor | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...


@overload
def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial: Tensor | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the outputs of Mamba's recurrence, with :math:`n` states for each of :math:`d` channels:

    .. math::

        h_{t,c} = \exp(\delta_{t,c} A_c) \odot h_{t-1,c} + \delta_{t,c} x_{t,c} B_t, \qquad
        y_{t,c} = \langle C_t, h_{t,c} \rangle.

    Parameters
    ----------
    x, delta : Tensor
        ``(batch, length, d)``: inputs and step sizes.
    A : Tensor
        ``(d, n)``: the rate of each state in continuous time. Negative where the system is stable; any sign is accepted.
    B, C : Tensor
        ``(batch, length, n)``, shared by the channels.
    initial : Tensor, optional
        ``(batch, d, n)``, the state before the first step; zero by default.
    return_state : bool
        Whether to return the state after the last step too.

    Returns
    -------
    Tensor or tuple of two
        ``(batch, length, d)``, in the common dtype of ``x``, ``delta``, ``A``, ``B`` and ``C``; and the last state ``(batch, d, n)`` if asked for.
        Half precision is computed in float32, under autocast too, and a state stays in the dtype of the computation.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Shapes or devices that do not go together; a dtype that has no scan (integers, complex numbers).

    Notes
    -----
    Source: A. Gu and T. Dao, "Mamba: Linear-time sequence modeling with selective state spaces", 2023, equation 2a with the
    discretisation of its reference code: a zero-order hold of ``A``, an Euler step of ``B``.

    On the CPU a Numba kernel works on a vector of channels at a time, with :func:`torch.get_num_threads` threads over sequences and parts
    of the channels. How channels are parted, and so the order of every sum, follows from the sizes alone: results do not depend on
    the number of threads. The cost is ``batch length d n`` exponentials forward and again backward; ``d`` is
    filled up to a multiple of 16 (8 in float64). For the backward pass the states between chunks of 64 steps are kept, and those inside a
    chunk are computed again: no array has ``length d n`` elements. The exponentials are right to two units in the last place; where they are
    below 1.5 times the least normal number they are 0. There is no second derivative.

    On CUDA devices a Triton kernel has the channels across its threads and takes the states of a chunk of time one after the other: the cost is
    proportional to ``n``, whatever ``n`` is. It is one exponential a step, channel and state forward (two where
    sequences and channels are too few to fill a GPU) and three backward. The states at the edges of chunks take the memory of two signals like `x`, or 64 MiB.

    Other devices, and CUDA without Triton, take a parallel scan in plain PyTorch, in chunks of time that are computed again in the backward
    pass, said once in a warning. It has derivatives of every order.

    Examples
    --------
    Half of the state is left after each step of size 1, a quarter after a step of size 2:

    >>> delta = torch.tensor([1.0, 1.0, 2.0]).reshape(1, 3, 1)
    >>> x, A = torch.ones(1, 3, 1), torch.tensor([[0.5]]).log()
    >>> selective_scan(x, delta, A, x, x).flatten()
    tensor([1.0000, 1.5000, 2.3750])
    """
    if x.ndim != 3 or delta.shape != x.shape:
        raise ShapeError(
            f"`x` and `delta` must both be (batch, length, d), got {tuple(x.shape)} and {tuple(delta.shape)}"
        )
    batch, length, d = x.shape
    if A.ndim != 2 or A.shape[0] != d:
        raise ShapeError(f"`A` must be (d, n) with d = {d} to go with `x`, got {tuple(A.shape)}")
    n = A.shape[1]
    for name, tensor in (("B", B), ("C", C)):
        if tuple(tensor.shape) != (batch, length, n):
            raise ShapeError(f"`{name}` must be {(batch, length, n)} to go with `x` and `A`, got {tuple(tensor.shape)}")
    if initial is not None and tuple(initial.shape) != (batch, d, n):
        raise ShapeError(f"`initial` must be {(batch, d, n)} to go with `x` and `A`, got {tuple(initial.shape)}")
    signals = x, delta, A, B, C
    dtype, compute = precisions(signals, initial, (torch.float32, torch.float64), "selective scan")
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (*signals, initial) if t is not None)
    x, delta, A, B, C = (tensor.to(compute) for tensor in signals)
    initial = None if initial is None else initial.to(compute)
    with without_autocast(x.device):
        if has_kernel(x.device):
            y, state, _ = _operators.call(_operators.selective_scan, x, delta, A, B, C, initial, return_state, save)
        else:
            initial = x.new_zeros(batch, d, n) if initial is None else initial
            y, state = _associative.selective_scan(x, delta, A, B, C, initial)
    return (y.to(dtype), state) if return_state else y.to(dtype)
