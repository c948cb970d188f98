"""One change of basis for all channels of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hsv import DtypeError, OrderError
from hsv_torch._errors import CutRefusedError
from hsv_torch.layers._checks import check_choice
from hsv_torch.selective._bases import balance, joint_diagonalizer, weighted_galerkin, weights_of
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut, descending
from hsv_torch.selective._observation import Inputs, Needs, SelectiveObservation
from hsv_torch.selective._view import SelectiveView


@dataclass(frozen=True)
class SharedBasis(SelectiveCriterion):
    r"""Project the states of all channels on one basis, from Gramians summed over the channels.

    .. math:: h_c \approx R z_c, \qquad z_c = L^T h_c, \qquad B \leftarrow L^T B, \qquad C \leftarrow R^T C, \qquad A_c \leftarrow L^T A_c R.

    ``B`` and ``C`` become smaller rows of ``x_proj``. The matrices :math:`L^T A_c R` are no longer diagonal. Where the layer has room, each is
    diagonalised, :math:`T_c \Lambda_c T_c^T`, and :math:`T_c` is kept as a run-time transform, ``r x r`` a channel. Without transforms one rotation ``V`` has to serve all channels: the one that makes the
    matrices as diagonal as one can, and what stays beside their diagonals is neglected. If the channels' ``A`` are multiples of one another, as they are initialised, nothing stays.

    ``R`` spans the leading balanced directions of ``P`` and ``Q``, and ``L`` makes the projection orthogonal for the inner product whose weights are the diagonal of ``Q``:
    every :math:`L^T A_c R` is then similar to a symmetric negative definite matrix, with eigenvalues between those of :math:`A_c`. A balanced ``L`` promises no stability here, for these Gramians solve no
    Lyapunov equation of :math:`A_c`.

    Parameters
    ----------
    gramians : {"recorded", "white"}
        Whether ``P`` holds the second moments of the states on the recorded inputs, or those under white noise.
    transforms : bool, optional
        Whether to keep transforms; by default where the layer has room for them.
    max_neglected : float
        Without transforms: the cut is refused if a larger share of the squares of the reduced matrices stays beside their diagonals.

    Notes
    -----
    The values that rules choose by are the singular values of :math:`L_Q^T L_P` with :math:`P = L_P L_P^T`, :math:`Q = L_Q L_Q^T`: Hankel singular values of no system, and no bound. Rows of ``B`` are scaled to the
    root mean square of their norms before the cut, rows of ``C`` inversely.

    For linear attention (Mamba-2) see :class:`hsv_torch.linear_attention.KeyBasis`, which this criterion means there.

    References
    ----------
    Moore, "Principal component analysis in linear systems", IEEE Trans. Automatic Control 26 (1981), for the balancing.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=16)
    >>> criterion = hsv_torch.SharedBasis(transforms=False)
    >>> report = hsv_torch.compress_(layer, 4, calibration=torch.randn(8, 20, 4), criterion=criterion)
    >>> layer.n_states, layer.B_transform is None
    (4, True)
    """

    gramians: Inputs = "recorded"
    transforms: bool | None = None
    max_neglected: float = 0.2  # trained layers neglected 0.3 % to 8 %, and lost 0.01 of relative error to it at most

    def __post_init__(self) -> None:
        check_choice("gramians", self.gramians, ("recorded", "white"))
        if self.transforms not in (None, True, False):
            raise DtypeError(f"`transforms` must be True, False or None, got {self.transforms!r}")
        if not 0 <= self.max_neglected <= 1:
            raise OrderError(f"`max_neglected` is a share and must be in [0, 1], got {self.max_neglected!r}")

    @override
    def needs(self) -> Needs:
        return Needs(frozenset({"shared"}), frozenset({self.gramians}))

    @override
    def meaning(self) -> str:
        return f"the values are those of the mean Gramians ({self.gramians} inputs) summed over the channels, which bound no error"

    @override
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        return descending(balance(*self._gramians(view, observation))[0])

    @override
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        keep = view.has_room if self.transforms is None else self.transforms
        if keep and not view.has_room:
            raise CutRefusedError(
                f"{type(view.layer).__name__} has no room for transforms a channel: use hsv_torch.SharedBasis(transforms=False) "
                "or hsv_torch.StateChoice()"
            )
        P, Q = self._gramians(view, observation)
        basis = balance(P, Q)[1][:, :n_states]
        right, left = weighted_galerkin(basis, weights_of(Q))
        reduced = torch.einsum("ni,dn,nj->dij", left, view.rates(), right)
        reduced = (reduced + reduced.mT) / 2  # symmetric but for rounding
        old_B = view.layer.x_proj.weight.detach().double()[view.dt_rank : view.dt_rank + view.n_features]
        if keep:
            scale = _row_scale(old_B, left)
            eigenvalues, vectors = torch.linalg.eigh(reduced)  # (d, r), (d, r, r)
            share = (right @ vectors) * (left @ vectors)
            # Bt = T^T S^-1 and Ct = T^T S with the scaled features S z, so that what the channels compute is T^T z.
            transforms = (vectors.mT / scale, vectors.mT * scale)
            return SelectiveCut(eigenvalues, (right / scale, left * scale), transforms, share)
        V, neglected = joint_diagonalizer(reduced)
        if neglected > self.max_neglected:
            raise CutRefusedError(
                f"without transforms {neglected:.1%} of the reduced state matrices would be neglected, above the limit {self.max_neglected:.1%}: the channels' "
                "A are too different for one basis; use hsv_torch.StateChoice(), or raise max_neglected"
                + (", or keep transforms" if view.has_room else ""),
                descending(balance(P, Q)[0]),
            )
        right, left = right @ V, left @ V
        scale = _row_scale(old_B, left)
        rates = (V.mT @ reduced @ V).diagonal(dim1=1, dim2=2)
        note = f"one basis for all channels neglects {neglected:.2%} of the squares of the reduced state matrices"
        return SelectiveCut(rates, (right / scale, left * scale), None, right * left, notes=(note,))

    def _gramians(self, view: SelectiveView, observation: SelectiveObservation) -> tuple[Tensor, Tensor]:
        if view.normalises:
            raise CutRefusedError(
                f"{type(view.layer).__name__} normalises B and C over the states, and a change of basis changes their norms at every step: use "
                "hsv_torch.StateChoice()"
            )
        if view.transformed:
            raise CutRefusedError(
                "the layer keeps transforms a channel since an earlier cut, so that its channels no longer share a basis: use "
                "hsv_torch.ChannelBasis()"
            )
        return observation.shared_gramians(self.gramians)


def _row_scale(old: Tensor, left: Tensor) -> Tensor:
    """By how much to scale each new state for the rows of the new ``B`` to have the root mean square of the norms of the old ones."""
    norms = torch.linalg.vector_norm(left.mT @ old, dim=1)
    target = torch.linalg.vector_norm(old) / old.shape[0] ** 0.5
    return torch.where(norms > 1e-6 * target, target / norms.clamp_min(1e-300), 1.0)
