"""The penalty of Hankel-nuclear-norm regularisation, in two ways: factors with a gradient of their own, and eigenvalues of a dense product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import hsv
import hsv_torch


def dense_hankel_sum(system: hsv.DiagonalStateSpace) -> Tensor:
    r"""Return :math:`\sum_i \sqrt{\lambda_i(P Q)}` by an eigenvalue routine for dense matrices, ``(...)``, differentiable by autograd alone.

    This is how Hankel values are written down in a few lines of an array library, and what regularised training is compared with; it is no way to compute them. The
    product has only half the digits: eigenvalues below :math:`n \epsilon \lambda_1` are rounding errors and get no gradient, so that the sum is too large by up to
    :math:`n \sqrt{n \epsilon} \sigma_1`. :func:`hsv_torch.hankel_sum` has all of them, at a fraction of the time.

    Parameters
    ----------
    system : hsv.DiagonalStateSpace
        Stable, of tensors with a graph; leading axes are a batch.

    Notes
    -----
    ``O(n^3)`` forward and backward: the routine for non-Hermitian matrices, and one linear system with its eigenvectors.

    Examples
    --------
    >>> import torch, hsv
    >>> poles, B = torch.tensor([0.5], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    >>> round(float(dense_hankel_sum(hsv.DiagonalStateSpace(poles, B, 3 * torch.ones_like(B), dt=True))), 9)  # |b c| / (1 - 0.25)
    8.0
    """
    poles: Tensor = system.poles()
    B, C = (x.to(torch.promote_types(x.dtype, poles.dtype)) for x in (system.B, system.C))
    row, column = poles[..., :, None], poles.conj()[..., None, :]
    gap = 1 - row * column if system.is_discrete else -(row + column)
    P = (B @ B.mH) / gap
    Q = (C.mH @ C) / gap.mT
    squares = torch.linalg.eigvals(P @ Q).real
    noise = poles.shape[-1] * torch.finfo(squares.dtype).eps * squares.detach().amax(dim=-1, keepdim=True)
    return torch.sqrt(torch.maximum(squares, noise)).sum(dim=-1)


def penalty_by_eigenvalues(model: nn.Module) -> Tensor:
    """Return what :func:`hsv_torch.hankel_penalty` returns, by :func:`dense_hankel_sum`; for models whose layers are all time-invariant."""
    sums = []
    for layer in hsv_torch.compressible_layers(model).values():
        system = hsv_torch.adapter_of(layer).differentiable_system(layer)
        assert system is not None  # the configuration refuses layers without one
        sums.append(dense_hankel_sum(system).sum())
    return torch.stack(sums).sum()


PENALTIES: dict[str, Callable[[nn.Module], Tensor]] = {
    "gramians": hsv_torch.hankel_penalty,
    "eigenvalues": penalty_by_eigenvalues,
}
