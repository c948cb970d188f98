"""The methods of selective layers, as linear attention takes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hsv_torch._errors import CutRefusedError
from hsv_torch.linear_attention._cut import LinearAttentionCut
from hsv_torch.linear_attention._observation import LinearAttentionObservation
from hsv_torch.linear_attention._view import LinearAttentionView
from hsv_torch.selective import Auto, LocalDistillation, SelectiveCriterion, SharedBasis, StateChoice
from hsv_torch.selective._bases import balance
from hsv_torch.selective._choice import greedy_elimination, prediction
from hsv_torch.selective._cut import descending
from hsv_torch.selective._observation import Inputs, Needs

SMALLEST_VALUE = 1e-8
"""Values below this share of the largest come from Gramians' rounding errors: there is no direction to keep."""

LARGEST_CONDITION = 1e6
"""Of an oblique projection; its rows stand in single precision."""

SCORES = ("greedy", "hankel", "ghost", "second_moment", "magnitude", "random")


def for_linear_attention(criterion: SelectiveCriterion) -> SelectiveCriterion:
    """Return the method that `criterion` means for a layer of linear attention.

    :class:`hsv_torch.StateChoice` becomes a :class:`KeyChoice`, :class:`hsv_torch.SharedBasis` a :class:`KeyBasis`; :class:`hsv_torch.LocalDistillation` and :class:`hsv_torch.Auto` wrap what
    their methods become.

    Raises
    ------
    CutRefusedError
        The method has no meaning here.
    """
    if isinstance(criterion, KeyChoice | KeyBasis):
        return criterion
    if isinstance(criterion, StateChoice):
        return KeyChoice(criterion.score, criterion.compensate, criterion.seed)
    if isinstance(criterion, SharedBasis):
        return KeyBasis(criterion.gramians, criterion.transforms)
    if isinstance(criterion, LocalDistillation):
        return dataclasses.replace(criterion, criterion=for_linear_attention(criterion.criterion))
    if isinstance(criterion, Auto):
        tried = CANDIDATES if criterion.candidates is None else criterion.candidates
        return dataclasses.replace(criterion, candidates=tuple(for_linear_attention(one) for one in tried))
    raise CutRefusedError(
        f"{type(criterion).__name__} has no meaning for linear attention, whose states share one basis a group: use hsv_torch.SharedBasis() or "
        "hsv_torch.StateChoice()"
    )


@dataclass(frozen=True)
class KeyChoice(SelectiveCriterion):
    r"""Keep some of the keys of every group, and let their states predict the others; what :class:`hsv_torch.StateChoice` means here.

    .. math:: S_R \approx W^T S_K, \qquad W = P_{KK}^{-1} P_{KR}, \qquad q_K \leftarrow q_K + W q_R .

    The kept states move as before. The sum goes into the rows of the queries where those are linear, and into ``C_transform`` where there is room; elsewhere only ``compensate=False``
    is possible.

    With compensation ``"greedy"`` eliminates as for selective layers. Without, it leaves out, one by one, the state that adds least to the energy :math:`1_R^T M 1_R` that the outputs lose, with the
    moments ``M`` of the contributions; ``"ghost"``, :math:`\sqrt{M_{jj}}`, is its diagonal.

    Parameters
    ----------
    score, compensate, seed
        As of :class:`hsv_torch.StateChoice`; scores of a mean time-invariant system are refused.
    """

    score: str = "greedy"
    compensate: bool = True
    seed: int = 0

    @override
    def needs(self) -> Needs:
        inputs: tuple[Inputs, ...] = ("recorded", "white") if self.score == "hankel" else ("recorded",)
        gramians = {"shared"} if self.compensate or self.score in ("hankel", "second_moment") else set()
        if self.score == "ghost" or (self.score == "greedy" and not self.compensate):
            gramians.add("contributions")
        return Needs(frozenset(gramians), frozenset(inputs))

    @override
    def meaning(self) -> str:
        return f"the values are scores ({self.score}), which rank states and bound no error"

    @override
    def values(self, view: Any, observation: Any) -> np.ndarray:
        self._check(view)
        return descending(torch.stack([values for _, values in self._rankings(view, observation)]))

    @override
    def plan(self, view: Any, observation: Any, n_states: int) -> Any:
        self._check(view)
        kept = torch.stack([torch.sort(order[:n_states]).values for order, _ in self._rankings(view, observation)])
        left = torch.nn.functional.one_hot(kept, view.n_states).mT.double()
        right = share = left
        notes: dict[str, None] = {}
        if self.compensate:
            P = observation.second_moments()
            predictions = [prediction(P[g], kept[g]) for g in range(view.n_groups)]
            right = torch.stack([M for M, _ in predictions])
            notes = dict.fromkeys(note for _, some in predictions for note in some)
            size = P.diagonal(dim1=1, dim2=2)[..., None]
            # The share of each old state's second moment that a new one accounts for: 1 where one is a copy of the other.
            among = torch.take_along_dim(P, kept[:, None], 2)
            share = torch.where(size > 0, right * among / torch.where(size > 0, size, 1.0), left).clamp_min(0.0)
        # A prediction cannot go back through an activation: transforms keep it. Without one the rows themselves go.
        transforms = view.transformed or (self.compensate and not view.is_linear)
        return LinearAttentionCut(right, left, share, kept, transforms, notes=tuple(notes))

    def _check(self, view: LinearAttentionView) -> None:
        if self.score not in SCORES:
            raise CutRefusedError(
                f'score="{self.score}" asks for the mean time-invariant system, which says little of keys and queries: use one of {", ".join(map(repr, SCORES))}'
            )
        if self.compensate and not view.can_project:
            raise CutRefusedError(
                f"{type(view.layer).__name__} computes its queries through an activation and has no room for a projection after it, so that the kept states cannot make up for the "
                "others: use hsv_torch.StateChoice(compensate=False), or convert the layer to hsv_torch.Mamba2"
            )

    def _rankings(
        self, view: LinearAttentionView, observation: LinearAttentionObservation
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each group: states in the order in which they are kept, and the value of each place."""
        if self.score == "greedy" and self.compensate:
            pairs = zip(observation.second_moments(), observation.readout(), strict=True)
            return [greedy_elimination(P, G) for P, G in pairs]
        if self.score == "greedy":
            return [leave_out(M) for M in observation.contributions()]
        rankings = (torch.sort(s, descending=True, stable=True) for s in self._scores(view, observation))
        return [(order, values) for values, order in rankings]

    def _scores(self, view: LinearAttentionView, observation: LinearAttentionObservation) -> Tensor:
        """``(groups, n)``."""
        if self.score == "magnitude":
            return torch.linalg.vector_norm(view.key_rows(), dim=2) * torch.linalg.vector_norm(view.query_rows(), dim=2)
        if self.score == "random":
            drawn = torch.rand(
                view.n_groups, view.n_states, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
            )
            return drawn.to(observation.readout().device)
        squares = observation.contributions() if self.score == "ghost" else observation.second_moments()
        diagonal = squares.diagonal(dim1=1, dim2=2)
        if self.score == "hankel":
            diagonal = diagonal * observation.observability().diagonal(dim1=1, dim2=2)
        return diagonal.clamp_min(0.0).sqrt()


@dataclass(frozen=True)
class KeyBasis(SelectiveCriterion):
    r"""Project the states of every group on the basis that the outputs see most of; what :class:`hsv_torch.SharedBasis` means here.

    One decay a head is a multiple of the identity: it commutes with every change of basis, and the new states are :math:`L^T S_t` exactly. The outputs lose :math:`q_t^T (I - R L^T) S_t` and nothing
    else; for queries and states that are uncorrelated the energy of that is

    .. math:: \operatorname{tr}\big( G\, (I - R L^T)\, P\, (I - L R^T) \big),

    which the balanced truncation of ``P`` and ``G`` makes least: the sum of the squares of the discarded singular values of :math:`G^{1/2} P^{1/2}`. The outputs to come need not be looked at, for the states
    that matter to them are those that matter now.

    The projection goes into the rows of keys and queries where those are linear; else it is kept, as ``B_transform`` and ``C_transform``.

    Parameters
    ----------
    gramians : {"recorded", "white"}
        Whether ``P`` holds the second moments of the states on the recorded values, or those under white noise.
    transforms : bool, optional
        Whether to keep transforms; by default where nothing else is possible.
    """

    gramians: Inputs = "recorded"
    transforms: bool | None = None

    @override
    def needs(self) -> Needs:
        return Needs(frozenset({"shared"} if self.gramians == "recorded" else ()), frozenset({self.gramians}))

    @override
    def meaning(self) -> str:
        return (
            f"the values are the roots of what the outputs lose with each direction of the states ({self.gramians} values), if queries and states are uncorrelated; they bound "
            "no error"
        )

    @override
    def values(self, view: Any, observation: Any) -> np.ndarray:
        self._keeps_transforms(view)
        return descending(balance(observation.second_moments(self.gramians), observation.readout())[0])

    @override
    def plan(self, view: Any, observation: Any, n_states: int) -> Any:
        transforms = self._keeps_transforms(view)
        values, reach, see = balance(observation.second_moments(self.gramians), observation.readout())
        rights, lefts, condition, notes = [], [], 1.0, []
        for g in range(view.n_groups):
            right, left, rank, of_group = oblique(values[g], reach[g], see[g], n_states)
            scale = _row_scale(view, g, left, transforms)
            rights.append(right / scale)
            lefts.append(left * scale)
            condition = max(condition, of_group)
            if rank < n_states:
                notes.append(
                    f"group {g}: {n_states - rank} of the states carry nothing that the outputs see on the calibration data"
                )
        right, left = torch.stack(rights), torch.stack(lefts)
        return LinearAttentionCut(
            right, left, right * left, transforms=transforms, condition=condition, notes=tuple(notes)
        )

    def _keeps_transforms(self, view: LinearAttentionView) -> bool:
        name = type(view.layer).__name__
        if view.decays_by_key:
            raise CutRefusedError(
                f"every key of this {name} has a decay of its own, which a change of basis would mix: use hsv_torch.StateChoice()"
            )
        keep = not view.is_linear if self.transforms is None else self.transforms
        if keep and not view.has_room:
            other = (
                "its keys and queries are linear, and take the projection into their rows: use hsv_torch.SharedBasis()"
                if view.is_linear
                else "use hsv_torch.StateChoice(compensate=False), or convert the layer to hsv_torch.Mamba2"
            )
            raise CutRefusedError(f"{name} has no room for transforms; {other}")
        if not keep and not view.is_linear:
            raise CutRefusedError(
                f"the keys and queries of this {name} go through an activation, so that a projection has to be kept: use hsv_torch.SharedBasis()"
            )
        return keep


CANDIDATES = (
    StateChoice("greedy"),
    StateChoice("greedy", compensate=False),
    StateChoice("ghost", compensate=False),
    SharedBasis(),
)
"""What :class:`hsv_torch.Auto` tries by default."""


def leave_out(M: Tensor) -> tuple[Tensor, Tensor]:
    r"""Leave out index after index, always the one that adds least to :math:`1_R^T M 1_R`.

    Returns the indices from the last one left to the first one out, and the square root of what each added, made descending by raising it to the largest of those after it.
    """
    n = M.shape[0]
    cost = M.diagonal().clone()  # of leaving out each one next
    free = torch.ones(n, dtype=torch.bool, device=M.device)
    order, added = [], []
    for _ in range(n):
        j = int(torch.where(free, cost, torch.inf).argmin())
        free[j] = False
        order.append(j)
        added.append(max(float(cost[j]), 0.0))
        cost = cost + 2 * M[:, j]
    values = torch.tensor(added, dtype=M.dtype, device=M.device).sqrt().cummax(0).values
    return torch.tensor(order[::-1], device=M.device), values.flip(0)


def oblique(values: Tensor, reach: Tensor, see: Tensor, n_states: int) -> tuple[Tensor, Tensor, int, float]:
    """Return ``R, L (n, n_states)`` with ``L^T R = I`` on the leading balanced directions, how many of those there are, and the condition.

    ``reach`` and ``see`` ``(n, n)`` are the unscaled bases of :func:`balance`. Beyond the rank, states are added that the projection on the others does not touch.
    """
    rank = min(n_states, int((values > SMALLEST_VALUE * values[0]).sum()))
    while True:
        first, second = (torch.linalg.qr(part[:, :rank]).Q for part in (reach, see))
        overlap = second.mT @ first
        condition = float(torch.linalg.cond(overlap)) if rank else 1.0
        if condition < LARGEST_CONDITION:
            break
        rank -= 1
    right, left = first, torch.linalg.solve(overlap, second.mT).mT
    missing = n_states - rank
    if missing:
        beside = torch.eye(len(values)).to(right) - right @ left.mT
        more = torch.linalg.svd(beside).U[:, :missing]
        right, left = torch.cat([right, more], 1), torch.cat([left, beside.mT @ more], 1)
    return right, left, rank, condition


def _row_scale(view: LinearAttentionView, group: int, left: Tensor, transforms: bool) -> Tensor:
    """By how much to scale each new state: rows of the transforms get the norm 1, rows of keys the root mean square of the norms before."""
    old = view.key_rows()[group] if view.transformed or not transforms else torch.eye(left.shape[0]).to(left)
    norms = torch.linalg.vector_norm(left.mT @ old, dim=1)
    target = 1.0 if transforms else torch.linalg.vector_norm(old) / old.shape[0] ** 0.5
    return torch.where(norms > 1e-6 * target, target / norms.clamp_min(1e-300), 1.0)
