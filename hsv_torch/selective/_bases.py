r"""Reduced bases of diagonal systems: balanced ones, and those that cannot become unstable.

A state-space model with a diagonal :math:`A < 0` and any basis ``Y`` with orthonormal columns has the reduced matrix :math:`Y^T A Y`, symmetric and negative definite,
whose eigenvalues lie between the smallest and the largest of ``A``. As a diagonal ``S`` commutes with ``A``, the same holds of the projection :math:`R = S^{-1} Y`, :math:`L = S Y`, which is
orthogonal for the inner product with weights :math:`S^2`. A balanced projection is orthogonal for the inner product of ``Q``; the diagonal of ``Q`` is the nearest weight that keeps
every reduced system stable, whatever ``P`` and ``Q`` are. Gramians of time-varying systems solve no Lyapunov equation of ``A``, so that balancing with them promises nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-6
"""Weights below this share of the largest are raised to it: their roots scale rows of parameters in single precision."""

SMALLEST_TURN = 1e-7
"""A sweep without a larger angle ends the joint diagonalisation; what is left of the off-diagonal share is its square."""


def square_root(gramian: Tensor) -> Tensor:
    """Return ``F (..., n, n)`` with ``gramian = F F^H``; eigenvalues below 0, rounding errors, count as 0."""
    eigenvalues, vectors = torch.linalg.eigh(gramian)
    return vectors * eigenvalues.clamp_min(0.0).sqrt()[..., None, :].to(vectors.dtype)


def balance(P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values ``(..., n)`` and unscaled balanced bases ``Lc V``, ``Lo U`` ``(..., n, n)`` by the square-root method."""
    reach, see = square_root(P), square_root(Q)
    U, values, Vh = torch.linalg.svd(see.mH @ reach)
    return values, reach @ Vh.mH, see @ U


def weights_of(Q: Tensor) -> Tensor:
    """Return the roots ``(..., n)`` of the diagonal of ``Q``, relative to the largest, small ones raised."""
    diagonal = Q.diagonal(dim1=-2, dim2=-1).real
    top = diagonal.amax(-1, keepdim=True)
    relative = torch.where(top > 0, diagonal / torch.where(top > 0, top, 1.0), 1.0)
    return relative.clamp_min(SMALLEST_WEIGHT).sqrt()


def weighted_galerkin(basis: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``R, L (..., n, r)`` with ``L^H R = I`` that span `basis`, orthogonal for the inner product with the squares of `weights`."""
    s = weights[..., None].to(basis.dtype)
    # Columns of one length: those that are nearly zero would otherwise be lost in the rounding of the others.
    length = torch.linalg.vector_norm(s * basis, dim=-2, keepdim=True)
    Y = torch.linalg.qr(s * basis / torch.where(length > 0, length, 1.0).to(basis.dtype)).Q
    return Y / s, Y * s


def joint_diagonalizer(matrices: Tensor, sweeps: int = 30) -> tuple[Tensor, float]:
    r"""Return the rotation ``V (r, r)`` that makes symmetric matrices ``(d, r, r)`` as diagonal as one can, and what stays beside the diagonals.

    Jacobi's method: each rotation of two axes minimises :math:`\sum_c \| \operatorname{off}(V^T M_c V) \|^2` over its angle. Begins at the eigenvectors of the mean. What stays is the share
    of the sum of squares. ``O(d r^3)`` a sweep.

    References
    ----------
    Cardoso and Souloumiac, "Jacobi angles for simultaneous diagonalization", SIAM J. Matrix Anal. Appl. 17 (1996).
    """
    start = torch.linalg.eigh(matrices.mean(0)).eigenvectors
    V = start.cpu().numpy().copy()
    M = (start.mT @ matrices @ start).cpu().numpy().copy()
    r = M.shape[-1]
    for _ in range(sweeps):
        largest_turn = 0.0
        for i in range(r - 1):
            for j in range(i + 1, r):
                difference, cross = M[:, i, i] - M[:, j, j], 2 * M[:, i, j]
                on, off = difference @ difference - cross @ cross, 2 * difference @ cross
                angle = math.atan2(off, on) / 4
                largest_turn = max(largest_turn, abs(angle))
                c, s = math.cos(angle), math.sin(angle)
                turn = np.array([[c, -s], [s, c]])
                pair = [i, j]
                M[:, :, pair] = M[:, :, pair] @ turn
                M[:, pair] = turn.T @ M[:, pair]
                V[:, pair] = V[:, pair] @ turn
        if largest_turn < SMALLEST_TURN:
            break
    diagonal = np.diagonal(M, axis1=1, axis2=2)
    return torch.from_numpy(V).to(matrices), max(0.0, 1.0 - float((diagonal**2).sum() / (M**2).sum()))
