"""Gated linear attention over a time axis, the recurrence of Mamba-2 among it: one entry point for every device."""

from typing import Literal, overload

import torch
from torch import Tensor

from hsv import ShapeError
from hsv_torch.scan import _chunked, _operators
from hsv_torch.scan._linear import has_kernel
from hsv_torch.scan._precision import precisions, without_autocast


@overload
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial: Tensor | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...


@overload
def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, initial: Tensor | None = ..., return_state: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the outputs of linear attention with a decaying memory, which is also the recurrence of Mamba-2 (SSD). For each head,

    .. math::

        S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + k_t v_t^T \in R^{n \times p}, \qquad y_t = S_t^T q_t.

    Parameters
    ----------
    q, k : Tensor
        ``(batch, length, groups, n)``: queries and keys. ``groups`` divides the number of heads; neighbouring heads share those of their group.
        Mamba-2's :math:`C` and :math:`B`.
    v : Tensor
        ``(batch, length, heads, p)``: values. Mamba-2's :math:`\delta x`.
    log_decay : Tensor
        ``(batch, length, heads)``, one number a head: Mamba-2's :math:`\delta A`; or ``(batch, length, groups, n)``, one a key, that the heads of
        a group share as they share the keys. At most 0 where the memory fades; ``-inf`` forgets everything before
        the step. Positive numbers are accepted as long as the state does not overflow.
    initial : Tensor, optional
        ``(batch, heads, n, p)``, the state before the first step; zero by default.
    return_state : bool
        Whether to return the state after the last step too.

    Returns
    -------
    Tensor or tuple of two
        ``(batch, length, heads, p)``, in the common dtype of ``q``, ``k``, ``v`` and `log_decay`; and the last state ``(batch, heads, n, p)`` if
        asked for. Half precision is computed in float32, under autocast too, and a state stays in the dtype of the computation.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Shapes or devices that do not go together; a dtype that has no scan (integers, complex numbers).

    Notes
    -----
    On the CPU a Numba kernel runs the recurrence itself, with eight rows of a vector of columns of a state in registers over a chunk of 64 steps: three
    operations a step and entry of a state, as many as matrix products over chunks need, and no quotient of decays that could overflow. It has
    :func:`torch.get_num_threads` threads over sequences, groups and parts of the heads; how these are parted, and so the order of every sum, follows
    from the sizes alone: results do not depend on the number of threads. For the backward pass, some ten operations, the states between chunks are kept
    and those inside a chunk are computed again. Keys are filled up to a multiple of 8 (16 for the gradients), values of 16 (8 in float64). There is no second derivative.

    On CUDA devices Triton kernels take matrix products over chunks of 32 or 64 steps, of 16 with a decay for each key, in the precision that
    ``torch.backends.cuda.matmul.fp32_precision`` asks for. The states at the edges of chunks are in memory while a pass runs, ``n / chunk`` times the size of `v`.
    Other devices, and CUDA without Triton, take matrix products over chunks in plain PyTorch, said once in a warning, which has derivatives of every order.

    Sources: T. Dao and A. Gu, "Transformers are SSMs", 2024 (a decay a head); S. Yang et al., "Gated linear attention transformers with
    hardware-efficient training", 2024 (a decay a key).

    Examples
    --------
    One head, one key: a running sum that loses half of itself at each step.

    >>> one = torch.ones(1, 3, 1, 1)
    >>> gated_linear_attention(one, one, one, torch.full((1, 3, 1), 0.5).log()).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    if q.ndim != 4 or k.shape != q.shape:
        raise ShapeError(
            f"`q` and `k` must both be (batch, length, groups, n), got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    batch, length, groups, n = q.shape
    if v.ndim != 4 or v.shape[:2] != q.shape[:2]:
        raise ShapeError(f"`v` must be ({batch}, {length}, heads, p) to go with `q`, got {tuple(v.shape)}")
    heads, p = v.shape[2:]
    if groups < 1 or heads < 1 or heads % groups:
        raise ShapeError(
            f"the number of groups, axis 2 of `q`, must divide the number of heads, axis 2 of `v`; got {groups} and {heads}"
        )
    if tuple(log_decay.shape) not in ((batch, length, heads), (batch, length, groups, n)):
        raise ShapeError(
            f"`log_decay` must be {(batch, length, heads)} or, for each key, {(batch, length, groups, n)}, "
            f"got {tuple(log_decay.shape)}"
        )
    if initial is not None and tuple(initial.shape) != (batch, heads, n, p):
        raise ShapeError(f"`initial` must be {(batch, heads, n, p)} to go with `q` and `v`, got {tuple(initial.shape)}")
    signals = q, k, v, log_decay
    dtype, compute = precisions(signals, initial, (torch.float32, torch.float64), "gated linear attention")
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (*signals, initial) if t is not None)
    q, k, v, log_decay = (tensor.to(compute) for tensor in signals)
    initial = None if initial is None else initial.to(compute)
    with without_autocast(q.device):
        if has_kernel(q.device):
            y, state, _ = _operators.call(
                _operators.gated_linear_attention, q, k, v, log_decay, initial, return_state, save
            )
        else:
            initial = q.new_zeros(batch, heads, n, p) if initial is None else initial
            y, state = _chunked.gated_linear_attention(q, k, v, log_decay, initial)
    return (y.to(dtype), state) if return_state else y.to(dtype)
