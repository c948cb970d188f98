r"""Cuts of diagonal layers that keep some states as they are, and subsets of balanced states for comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._diagonal_form import nothing_to_keep, truncated, whole_cut
from hsv_torch.criteria import DiagonalCriterion
from hsv_torch.diagonal_cut import DiagonalCut, WidelyLinearMap, to_host

ModeScore = Literal["last", "aire", "hankel", "magnitude", "random"]
ScoreFunction: TypeAlias = Callable[[hsv.DiagonalStateSpace], Tensor]


@dataclass(frozen=True)
class ModeChoice(DiagonalCriterion):
    r"""Keep some of a layer's states as they are, and drop the others: no change of basis, nothing to diagonalise.

    The error of dropping the states :math:`R` is at most :math:`\sum_{k \in R} |C_k| |B_k| / (1 - |\lambda_k|)`, the sum of the gains that each state
    has alone; this is the cut's ``error_bound``. Balanced truncation (:class:`ComplexHankel`) keeps far more with as many states where states say
    nearly the same; a choice costs ``O(n (m + p))``, and suits layers that have no room for another basis.

    Parameters
    ----------
    score : str or callable
        What the states are ranked by, with :math:`|B_k|`, :math:`|C_k|` the 2-norms of row and column:

        - ``"last"``: :math:`|C_k|^2 |B_k|^2 / (1 - |\lambda_k|)^2`, the squared H-infinity norm of the state alone (:func:`hsv.mode_gains`);
        - ``"aire"``: :math:`|C_k|^2 |B_k|^2 / (1 - |\lambda_k|^2)`, its squared H2 norm (:func:`hsv.mode_energies`);
        - ``"hankel"``: :math:`|C_k| |B_k| / (1 - |\lambda_k|^2)`, its Hankel singular value;
        - ``"magnitude"``: :math:`|C_k| |B_k|`;
        - ``"random"``: uniform numbers, for comparison.

        Or a function of the layer's :class:`hsv.DiagonalStateSpace`, with tensors in double precision, that returns a score for each state, real and not
        negative, with the shape of its ``poles()``.
    reverse : bool
        Rank the other way round, so that the states with the smallest scores stay: for comparison.
    seed : int
        Of ``"random"``.

    Notes
    -----
    Rules choose by the scores in descending order. ``hsv.PrefixShare`` with "last" or "aire" is the normalised threshold of LAST and AIRE-Prune, which serves all layers of
    a network alike.

    References
    ----------
    Gwak et al., "Layer-adaptive state pruning for deep state space models", NeurIPS 2024 (LAST); AIRE-Prune, 2026.

    Examples
    --------
    >>> import hsv, hsv_torch
    >>> layer = hsv_torch.LRU(4, 32)
    >>> report = hsv_torch.compress_(layer, 8, criterion=hsv_torch.ModeChoice("last"))
    >>> layer.n_states
    8
    """

    score: ModeScore | ScoreFunction = "last"
    reverse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.score) and self.score not in get_args(ModeScore):
            known = ", ".join(map(repr, get_args(ModeScore)))
            raise hsv.HsvError(
                f"`score` must be one of {known}, or a function of the layer's system, got {self.score!r}"
            )

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the scores, descending, ``(..., n)``."""
        return np.asarray(-np.sort(-to_host(self.scores(system)), axis=-1))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if every score is 0."""
        scores = self.scores(system)
        ranking = torch.argsort(scores, dim=-1, descending=True, stable=True)
        sigma = to_host(torch.take_along_dim(scores, ranking, dim=-1))
        size = int(hsv.as_rule(rule).choose(sigma).max(initial=0))
        if size == 0:
            raise nothing_to_keep(sigma)
        kept = torch.sort(ranking[..., :size], dim=-1).values  # in the order they had
        selection = torch.nn.functional.one_hot(kept, system.n_states).to(torch.complex128).mT  # (..., n, size)
        same = WidelyLinearMap(selection, torch.zeros_like(selection))
        dropped = 1 - selection.real.sum(-1)  # (..., n)
        logs = system.log_poles if system.log_poles is not None else torch.log(system.poles() + 0j)
        return DiagonalCut(
            log_poles=torch.take_along_dim(logs, kept, dim=-1).to(torch.complex128),
            B=torch.take_along_dim(system.B, kept[..., :, None], dim=-2).to(torch.complex128),
            C=torch.take_along_dim(system.C, kept[..., None, :], dim=-1).to(torch.complex128),
            states=same,
            outputs=same,
            log_pole_map=same,
            order=size,
            hankel_singular_values=sigma,
            error_bound=float((hsv.mode_gains(system) * dropped).sum(-1).max()),
            eigenvector_condition=1.0,
            notes=(),
        )

    def scores(self, system: hsv.DiagonalStateSpace) -> Tensor:
        """Return the score of each state, in the order of ``poles()``."""
        poles = system.poles()
        if callable(self.score):
            scores = torch.as_tensor(self.score(system), dtype=torch.float64, device=poles.device)
            if scores.shape != poles.shape or not bool((scores >= 0).all()):
                raise hsv.HsvError(
                    f"`score` must return numbers that are not negative, one for each state, {tuple(poles.shape)}; got {tuple(scores.shape)}"
                    + ("" if scores.shape != poles.shape else f" with the smallest number {float(scores.min()):g}")
                )
        elif self.score == "random":
            generator = np.random.default_rng(self.seed)
            scores = torch.from_numpy(generator.uniform(size=tuple(poles.shape))).to(poles.device)
        elif self.score == "last":
            scores = hsv.mode_gains(system) ** 2
        elif self.score == "aire":
            scores = hsv.mode_energies(system)
        else:
            scores = torch.linalg.vector_norm(system.B, dim=-1) * torch.linalg.vector_norm(system.C, dim=-2)
            if self.score == "hankel":
                scores = torch.where(scores > 0, hsv.mode_energies(system) / scores, 0.0)
        if not self.reverse:
            return scores
        return scores.amax(-1, keepdim=True) + scores.amin(-1, keepdim=True) - scores


@dataclass(frozen=True)
class BalancedChoice(DiagonalCriterion):
    r"""Keep balanced states other than the leading ones: what the ablations of the CompreSSM paper compare with.

    The system is balanced in full, up to its numerical order, and then loses states from the other end, or at random. The H-infinity error of dropping any set of
    balanced states is at most twice the sum of their Hankel singular values (Enns 1984, one state at a time), which is large here.

    Parameters
    ----------
    keep : {"smallest", "random"}
        Which states stay.
    seed : int
        Of ``"random"``.
    max_condition : float
        As for :class:`ComplexHankel`.

    Notes
    -----
    The rule chooses a number of states by the Hankel singular values, as for :class:`ComplexHankel`.

    Examples
    --------
    >>> import hsv_torch
    >>> layer = hsv_torch.LRU(4, 16)
    >>> report = hsv_torch.compress_(layer, 8, criterion=hsv_torch.BalancedChoice("smallest"))
    >>> layer.n_states
    8
    """

    keep: Literal["smallest", "random"]
    seed: int = 0
    max_condition: float = 1e6

    def __post_init__(self) -> None:
        if self.keep not in ("smallest", "random"):
            raise hsv.HsvError(
                f"`keep` must be 'smallest' or 'random', got {self.keep!r}; ComplexHankel keeps the largest"
            )

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the complex system, ``(..., n)``."""
        return to_host(hsv.hankel_singular_values(system))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if the reduced system has no usable eigenvectors."""
        sigma = self.spectrum(system)
        size = int(hsv.as_rule(rule).choose(sigma).max(initial=0))
        if size == 0:
            raise nothing_to_keep(sigma)
        full = truncated(system, hsv.Order(system.n_states))
        rank = int(full.orders.min())  # a state beyond it is rounding errors
        size = min(size, rank)
        if self.keep == "smallest":
            kept = torch.arange(rank - size, rank)
        else:
            kept = torch.from_numpy(np.sort(np.random.default_rng(self.seed).permutation(rank)[:size]))
        kept = kept.to(full.orders.device)
        assert full.left is not None
        assert full.right is not None
        assert full.hankel_singular_values is not None
        sys, values = full.system, full.hankel_singular_values
        red = hsv.Reduction(
            hsv.StateSpace(sys.A[..., kept[:, None], kept], sys.B[..., kept, :], sys.C[..., kept], sys.D, dt=sys.dt),
            torch.full_like(full.orders, size),
            values,
            2 * (values.sum(-1) - values[..., kept].sum(-1)),
            full.left[..., kept],
            full.right[..., kept],
            full.notes,
        )
        return whole_cut(system, red, red.orders, self.max_condition)
