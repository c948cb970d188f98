"""A change of basis for every channel, kept as transforms at run time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

import hsv
from hsv import OrderError
from hsv_torch._errors import CutRefusedError
from hsv_torch.layers._checks import check_choice
from hsv_torch.selective._bases import balance, weighted_galerkin, weights_of
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut, descending
from hsv_torch.selective._observation import Needs, SelectiveObservation
from hsv_torch.selective._view import SelectiveView

RANK_TOLERANCE = 1e-10
"""Balanced directions with a smaller share of the largest value are rounding errors of the Gramians."""


@dataclass(frozen=True)
class ChannelBasis(SelectiveCriterion):
    r"""Project the states of every channel on a basis of its own: truncate in continuous time, discretise after.

    .. math:: h_c \approx R_c z_c, \qquad z_c = L_c^T h_c, \qquad A_c \leftarrow L_c^T A_c R_c = T_c \Lambda_c T_c^{-1},

    then :math:`\exp(\delta_{tc} \Lambda_c)` moves ``r`` states, real or complex, and the transforms :math:`T_c^{-1} L_c^T` and :math:`T_c^T R_c^T` between them and the ``B`` and ``C`` of ``x_proj``, which stay as they
    are, are applied at every step: ``2 d r n`` products, more than the scan saves if ``r`` is not small. Only layers with room for them can take this cut.

    Parameters
    ----------
    gramians : {"time_varying", "mean_system"}
        ``"time_varying"``: ``P``, the second moments of the channel's states on the recorded sequences, and ``Q``, its mean observability Gramian with the gate as weight.
        ``"mean_system"``: ``P`` and ``Q`` of the time-invariant system :math:`(A_c, E[B], E[C])`, the way of the CompreSSM paper.
    projection : {"balanced", "galerkin"}
        ``"balanced"``: the square-root method. With time-varying Gramians it promises no stability: a pole that it makes slower than all that the channel had, or unstable, is moved
        to the slowest of them. (Gramians of the mean system keep that system stable.) Channels where the eigenvectors have a condition above `max_condition`, or `r` is above the numerical rank, take the other projection. The notes count both.
        ``"galerkin"``: orthogonal for the inner product with the diagonal of ``Q`` as weights: always stable and real, and so half as expensive at run time.
    max_condition : float
        Of the eigenvectors :math:`T_c`.

    Notes
    -----
    The values that rules choose by are those of each channel, ``(d, n)``; the layer takes the largest order of all. They bound no error, not even for ``"mean_system"``: the layer is
    not that system. Rows of ``B_transform`` have norm 1.

    A layer that has transforms already can be cut again, with time-varying Gramians only.

    References
    ----------
    Chahine, Nazari, Rus, Rusch, "The Curious Case of In-Training Compression of State Space Models", ICLR 2026, for the transforms at run time.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=16)
    >>> report = hsv_torch.compress_(layer, 4, calibration=torch.randn(8, 20, 4), criterion=hsv_torch.ChannelBasis())
    >>> layer.n_states, layer.n_features
    (4, 16)
    """

    gramians: Literal["time_varying", "mean_system"] = "time_varying"
    projection: Literal["balanced", "galerkin"] = "balanced"
    max_condition: float = 1e3

    def __post_init__(self) -> None:
        check_choice("gramians", self.gramians, ("time_varying", "mean_system"))
        check_choice("projection", self.projection, ("balanced", "galerkin"))
        if not 1 <= self.max_condition < math.inf:
            raise OrderError(f"`max_condition` must be finite and at least 1, got {self.max_condition!r}")

    @override
    def needs(self) -> Needs:
        return Needs(frozenset({"channel"}) if self.gramians == "time_varying" else frozenset())

    @override
    def meaning(self) -> str:
        if self.gramians == "mean_system":
            return "the values are Hankel singular values of the mean time-invariant system of each channel, and bound no error of the layer"
        return "the values are those of the mean time-varying Gramians of each channel, which bound no error"

    @override
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        self._check(view)
        if self.gramians == "mean_system":
            return descending(hsv.hankel_singular_values(observation.estimator().mean_continuous_system()))
        return descending(balance(*observation.channel_gramians())[0])

    @override
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        self._check(view)
        values, reach, see, Q = self._bases(observation)
        rates = view.rates()
        basis = reach[..., :n_states]
        right, left = weighted_galerkin(basis, weights_of(Q))
        new, right, left, condition = _decoupled(rates, right, left, symmetric=not rates.is_complex())
        notes: tuple[str, ...] = ()
        if self.projection == "balanced":
            usable = values[:, n_states - 1] > RANK_TOLERANCE * values[:, 0]
            # Bases of orthonormal columns: the square roots of small values would explode.
            first, second = (torch.linalg.qr(part[..., :n_states]).Q for part in (basis, see))
            overlap = second.mH @ first
            usable = usable & (torch.linalg.cond(overlap) < 1 / RANK_TOLERANCE)
            overlap = torch.where(usable[:, None, None], overlap, torch.eye(n_states).to(overlap))
            second = torch.linalg.solve(overlap, second.mH).mH
            poles, balanced_right, balanced_left, balanced_condition = _decoupled(rates, first, second, symmetric=False)
            usable = usable & (balanced_condition < self.max_condition)
            slowest = rates.real.amax(1, keepdim=True)
            # The mean system's own Gramians keep its reduced system stable, at whatever rate.
            limit = slowest * (1 - 1e-9) if self.gramians == "time_varying" else torch.zeros_like(slowest)
            moved = (poles.real > limit) & usable[:, None]
            poles = torch.where(moved, torch.complex(slowest.expand_as(poles.real), poles.imag), poles)
            choose = usable[:, None, None]
            if bool((poles.imag[usable] != 0).any()) or rates.is_complex():
                new, right, left = (t.to(torch.complex128) for t in (new, right, left))
            else:
                poles, balanced_right, balanced_left = poles.real, balanced_right.real, balanced_left.real
            new = torch.where(usable[:, None], poles, new)
            right, left = torch.where(choose, balanced_right, right), torch.where(choose, balanced_left, left)
            condition = torch.where(usable, balanced_condition, condition)
            notes = _remarks(usable, moved)
        scale = torch.linalg.vector_norm(left, dim=1, keepdim=True)
        right, left = right * scale, left / scale
        transforms = (left.mT, right.mT)
        states = None
        if view.transformed:
            old = view.transforms()
            transforms = (left.mT @ old[0].to(left.dtype), right.mT @ old[1].to(left.dtype))
            states = (right, left)
        return SelectiveCut(new, None, transforms, right * left, states, condition=float(condition.max()), notes=notes)

    def _check(self, view: SelectiveView) -> None:
        if not view.has_room:
            raise CutRefusedError(
                f"{type(view.layer).__name__} has no room for transforms a channel: use hsv_torch.StateChoice() or "
                "hsv_torch.SharedBasis(transforms=False), or convert the layer to hsv_torch.Mamba"
            )
        if view.transformed and self.gramians == "mean_system":
            raise CutRefusedError(
                "the layer keeps transforms a channel since an earlier cut, and its mean system is not known: use "
                'hsv_torch.ChannelBasis(gramians="time_varying")'
            )

    def _bases(self, observation: SelectiveObservation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, unscaled balanced bases and ``Q``."""
        if self.gramians == "time_varying":
            P, Q = observation.channel_gramians()
            return *balance(P, Q), Q
        system = observation.estimator().mean_continuous_system()
        reach, see = hsv.controllability_factor(system), hsv.observability_factor(system)
        U, values, Vh = torch.linalg.svd(see.mH @ reach)
        return values, reach @ Vh.mH, see @ U, see @ see.mH


def _remarks(usable: Tensor, moved: Tensor) -> tuple[str, ...]:
    """What is to be noted of a balanced projection: channels where it was not used, poles that were moved."""
    notes = []
    if not bool(usable.all()):
        notes.append(
            f"{int((~usable).sum())} of {len(usable)} channels were projected by Galerkin's method: the balanced projection is too ill-conditioned"
        )
    if bool(moved.any()):
        notes.append(
            f"{int(moved.sum())} of {moved.numel()} poles were moved to the slowest rate that their channel had: balancing had made them slower, or unstable"
        )
    return tuple(notes)


def _decoupled(rates: Tensor, right: Tensor, left: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return poles ``(d, r)``, ``R T``, ``L T^-T`` (bilinear) and the condition of ``T (d,)`` for a projection with ``left^H right = I``.

    `symmetric`: the reduced matrices are, to rounding, and everything stays real; else everything becomes complex.
    """
    reduced = left.mH @ (rates[..., None] * right)
    if symmetric:
        poles, T = torch.linalg.eigh((reduced + reduced.mT) / 2)
        return poles, right @ T, left @ T, torch.ones_like(poles[:, 0])
    poles, T = torch.linalg.eig(reduced)
    condition = torch.linalg.cond(T)
    T = torch.where((condition < 1 / RANK_TOLERANCE)[:, None, None], T, torch.eye(T.shape[-1]).to(T))
    return poles, right.to(T.dtype) @ T, torch.linalg.solve(T, left.mH.to(T.dtype)).mT, condition
