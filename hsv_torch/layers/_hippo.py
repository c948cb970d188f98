"""The HiPPO-LegS matrix in the coordinates that S4, S4D and S5 begin in."""

from typing import NamedTuple

import torch
from torch import Tensor


class HippoNormal(NamedTuple):
    r"""HiPPO-LegS as a normal matrix less one of rank one, in the eigenvectors of the normal one.

    .. math:: A = V (\Lambda - p p^H) V^H, \qquad b_{\mathrm{LegS}} = V b.

    Attributes
    ----------
    eigenvalues : Tensor
        :math:`\Lambda`, ``(n,)``, complex128, by ascending imaginary part: conjugate pairs mirror each other about the middle.
    eigenvectors : Tensor
        :math:`V`, ``(n, n)``, unitary.
    low_rank, input_vector : Tensor
        :math:`p` and :math:`b`, ``(n,)``.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    low_rank: Tensor
    input_vector: Tensor


def hippo_normal(n: int) -> HippoNormal:
    r"""Diagonalise the normal part of HiPPO-LegS ("HiPPO-N", "DPLR").

    .. math::
        A_{jk} = -\begin{cases}\sqrt{(2j+1)(2k+1)} & j > k\\ j + 1 & j = k\\ 0 & j < k\end{cases},\qquad
        A + P P^T = -\tfrac12 I + K,\quad P_j = \sqrt{j + \tfrac12},

    where :math:`K` is real and skew-symmetric: the eigenvalues are :math:`-1/2 + i \omega`, in conjugate pairs (and -1/2 itself for
    odd ``n``). The real part is set, not computed, and the frequencies are those of a Hermitian matrix: all are right to about
    ``n^2`` roundings of double precision. ``O(n^3)``, on the CPU.

    References
    ----------
    Gu, Goel, Re, "Efficiently Modeling Long Sequences with Structured State Spaces", ICLR 2022, appendix C.1; Smith, Warrington,
    Linderman, "Simplified State Space Layers for Sequence Modeling", ICLR 2023, section 4.3.

    Examples
    --------
    For two states the frequencies are ``+-sqrt(3) / 2``:

    >>> hippo_normal(2).eigenvalues.numpy().round(4).tolist()
    [(-0.5-0.866j), (-0.5+0.866j)]
    """
    root = torch.sqrt(2 * torch.arange(n, dtype=torch.float64, device="cpu") + 1)
    outer = 0.5 * torch.outer(root, root)
    skew = torch.triu(outer, 1) - torch.tril(outer, -1)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    into = vectors.mH
    return HippoNormal(
        torch.complex(torch.full_like(frequencies, -0.5), frequencies),
        vectors,
        into @ (root / 2**0.5 + 0j),
        into @ (root + 0j),
    )
