"""Choosing states: one index set a layer, and outputs that make up for the states that go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hsv import DtypeError
from hsv_torch._errors import CutRefusedError
from hsv_torch.layers._checks import check_choice
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut, descending
from hsv_torch.selective._observation import Needs, SelectiveObservation
from hsv_torch.selective._view import SelectiveView

Score = Literal["greedy", "hankel", "ghost", "second_moment", "mean_system", "last", "aire", "magnitude", "random"]

RANK_TOLERANCE = 1e-10
"""Directions of the correlation matrix of the kept states below this share of its largest eigenvalue predict nothing."""


@dataclass(frozen=True)
class StateChoice(SelectiveCriterion):
    r"""Keep some of the states of every channel, the same in all, and let them predict the others.

    .. math:: h_R \approx W^T h_S, \qquad W = P_{SS}^{-1} P_{SR}, \qquad C_S \leftarrow C_S + W C_R

    with the second moments ``P`` of the states, summed over the channels, each with its gate's mean square. The kept states move as before, for ``A`` is diagonal: the
    only error is that of the prediction. Any selective layer can take this cut, and it costs nothing at run time.

    Parameters
    ----------
    score : str
        What decides which states stay. From the recorded sequences:

        - ``"greedy"``: elimination with pivoting on the residual second moment :math:`\tilde P`, the part of ``P`` that the states chosen so far do not predict. The next state is
          the one that lowers :math:`\operatorname{tr}(G \tilde P)` most, :math:`G = E[\sum_c w_c^2 C C^T]`, by :math:`(\tilde P G \tilde P)_{jj} / \tilde P_{jj}`. The only score that
          knows that two states may say the same.
        - ``"hankel"``: :math:`\sqrt{\sum_c p_{cj} q_{cj}}`, with the diagonals of each channel's ``P`` and mean observability Gramian. The product is taken in each
          channel: a state that one channel excites and another one reads is worth nothing.
        - ``"ghost"``: :math:`\sqrt{\sum_c E[(w_c C_j h_{cj})^2]}`, the share of the state in the outputs of the same moment.
        - ``"second_moment"``: :math:`\sqrt{\sum_c p_{cj}}`.

        From the mean LTI surrogate, poles :math:`\lambda`, of every channel, as the neighbours do for time-invariant layers:

        - ``"mean_system"``: :math:`\sum_c |C_j| |B_j| / (1 - |\lambda_{cj}|^2)`, the Hankel singular value of the state alone.
        - ``"last"``, ``"aire"``: :math:`\sum_c |C_j|^2 |B_{cj}|^2 / (1 - |\lambda_{cj}|)^2`, and :math:`/ (1 - |\lambda_{cj}|^2)`.

        Without data: ``"magnitude"`` (norm of the row of ``B`` times norm of the row of ``C`` in ``x_proj``), ``"random"``.
    compensate : bool
        Whether the kept states predict the others; the second moments are needed then whatever the score.
    seed : int
        Of ``"random"``.

    Notes
    -----
    The values that rules choose by are the scores, in descending order. For ``"greedy"`` they are square roots of the steps by which :math:`\operatorname{tr}(G \tilde P)` falls, so that
    ``hsv.HankelEnergy(keep=0.99)`` keeps 99 % of the energy that the states send to the outputs; a value is raised to the largest of those after it, where the steps do not descend.

    The prediction is solved in the eigenvectors of the correlation matrix of the kept states, those with an eigenvalue below ``1e-10`` of the largest left out.
    ``O(n^3)`` after the second moments, whose cost is that of :class:`hsv.time_varying.SelectiveEstimator`.

    For linear attention (Mamba-2) see :class:`hsv_torch.linear_attention.KeyChoice`, which this criterion means there.

    References
    ----------
    The scores of the neighbours: GHOST, LAST and AIRE-Prune. Pivoted elimination as in: Golub and Van Loan, "Matrix Computations", section 4.2.8, with
    another choice of the pivot.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=16)
    >>> calibration = torch.randn(8, 20, 4)
    >>> report = hsv_torch.compress_(layer, 4, calibration=calibration, criterion=hsv_torch.StateChoice("hankel"))
    >>> layer.n_states
    4
    """

    score: Score = "greedy"
    compensate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("score", self.score, get_args(Score))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise DtypeError(f"`seed` must be an int, got {self.seed!r}")

    @override
    def needs(self) -> Needs:
        return Needs(frozenset({"shared"}) if self.compensate or self.score == "greedy" else frozenset())

    @override
    def meaning(self) -> str:
        return f"the values are scores ({self.score}), which rank states and bound no error"

    @override
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        return descending(self._ranking(view, observation)[1])

    @override
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        order, _ = self._ranking(view, observation)
        kept = torch.sort(order[:n_states]).values
        rates = view.rates()
        left = _selection(kept, view.n_states).to(rates.device)
        right: Tensor = left
        notes: tuple[str, ...] = ()
        share = left
        if self.compensate:
            P, _ = observation.shared_gramians()
            right, notes = prediction(P, kept)
            # The share of each old state's second moment that a new one accounts for: 1 where one is a copy of the other.
            size = P.diagonal()[:, None]
            share = torch.where(size > 0, right * P[:, kept] / torch.where(size > 0, size, 1.0), left)
        gain = observation.norm_gain(right, left)
        return SelectiveCut(rates[:, kept], (right, left), None, share.clamp_min(0.0), notes=notes, gain=gain)

    def _ranking(self, view: SelectiveView, observation: SelectiveObservation) -> tuple[Tensor, Tensor]:
        """States in the order in which they are kept, and the value of each place."""
        if view.transformed:
            raise CutRefusedError(
                "the layer keeps transforms a channel since an earlier cut, and states of different channels no longer belong "
                "together: use hsv_torch.ChannelBasis()"
            )
        if self.score == "greedy":
            P, _ = observation.shared_gramians()
            return greedy_elimination(P, observation.readout())
        scores = self._scores(view, observation)
        values, order = torch.sort(scores, descending=True, stable=True)
        return order, values

    def _scores(self, view: SelectiveView, observation: SelectiveObservation) -> Tensor:
        if self.score == "magnitude":
            _, B, C = view.layer.x_proj.weight.detach().double().split([view.dt_rank, view.n_states, view.n_states])
            return torch.linalg.vector_norm(B, dim=1) * torch.linalg.vector_norm(C, dim=1)
        if self.score == "random":
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand(view.n_states, generator=generator, dtype=torch.float64)
            return drawn.to(view.layer.A_log.device)
        estimator = observation.estimator()
        if self.score in ("hankel", "ghost", "second_moment"):
            return estimator.scores(self.score)
        system = estimator.mean_system()
        poles, gain = system.poles(), (system.B[..., 0] * system.C[..., 0, :]).abs()  # (d, n)
        if self.score == "mean_system":
            return (gain / (1 - poles**2)).sum(0)
        return (gain**2 / ((1 - poles) ** 2 if self.score == "last" else 1 - poles**2)).sum(0)


def greedy_elimination(P: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    r"""Eliminate with pivoting on ``P``, always the index that lowers :math:`\operatorname{tr}(G \tilde P)` most.

    Returns the indices in their order, and the square root of what each took off the trace, made descending by raising it to the largest of those after it.
    An index whose residual is a rounding error of its first value takes nothing off.
    """
    n = P.shape[0]
    residual = P.clone()
    first = P.diagonal().clone()
    free = torch.ones(n, dtype=torch.bool, device=P.device)
    order, gains = [], []
    for _ in range(n):
        pivots = residual.diagonal()
        alive = free & (pivots > RANK_TOLERANCE * first)
        drop = ((residual @ G) * residual).sum(1) / torch.where(alive, pivots, 1.0)
        drop = torch.where(alive, drop.clamp_min(0.0), torch.where(free, -1.0, -2.0).to(drop))
        j = int(drop.argmax())
        free[j] = False
        order.append(j)
        gains.append(max(float(drop[j]), 0.0))
        if bool(alive[j]):
            column = residual[:, j].clone()
            residual -= torch.outer(column, column) / pivots[j]
    values = torch.tensor(gains, dtype=P.dtype, device=P.device).sqrt()
    return torch.tensor(order, device=P.device), values.flip(0).cummax(0).values.flip(0)


def prediction(P: Tensor, kept: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return ``M (n, r)`` with ``h`` predicted by ``M h[kept]`` at the least mean square error, and what is to be noted.

    The rows of the kept states are those of the identity, exactly.
    """
    selection = _selection(kept, P.shape[0]).to(P)
    within = P[kept][:, kept]
    size = within.diagonal()
    scale = torch.where(size > 0, size.clamp_min(torch.finfo(P.dtype).tiny).rsqrt(), 0.0)
    eigenvalues, vectors = torch.linalg.eigh(scale[:, None] * within * scale)
    used = eigenvalues > RANK_TOLERANCE * eigenvalues[-1]
    vectors = scale[:, None] * vectors[:, used]
    M = (P[:, kept] @ vectors / eigenvalues[used]) @ vectors.mT
    M[kept] = selection[kept]
    left_out = int((~used).sum())
    if left_out == 0:
        return M, ()
    return M, (
        f"{left_out} directions of the kept states were left out of the prediction: they hardly move on the calibration data",
    )


def _selection(kept: Tensor, n: int) -> Tensor:
    return torch.nn.functional.one_hot(kept, n).mT.double()
