"""What calibration data shows of a layer of linear attention: second moments of states, queries and contributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from typing_extensions import override

import hsv.time_varying
from hsv_torch.linear_attention._view import LinearAttentionQuantities, LinearAttentionView
from hsv_torch.scan import linear_scan
from hsv_torch.selective._observation import Inputs, Needs
from hsv_torch.selective._sequences import ObservedSequences

PIECE = 2**21
"""Numbers of state that are in memory at once: 16 MiB."""


class LinearAttentionObservation(ObservedSequences):
    r"""Sums over the sequences of a layer; their size does not grow with the number of sequences.

    All are matrices ``(groups, n, n)``, means over the steps and sums over the heads of a group and their values :math:`c`, in double precision. ``G`` always, ``P`` and ``M`` where `needs` asks for the Gramians
    "shared" and "contributions", at ``O(n^2 p)`` a step and head each:

    - :math:`P = E[\sum \bar w_c^2\, s_c s_c^T]`, the second moments of the columns :math:`s_c` of the states on the recorded values, each with the root mean square
      :math:`\bar w_c` of its weight over the sequence;
    - :math:`G = E[\operatorname{mean}_c (w_c / \bar w_c)^2\, q q^T]`, of the queries;
    - :math:`M = E[\sum w_c^2\, (q \odot s_c)(q \odot s_c)^T]`, of what each state contributes to the outputs: leaving out the states ``R`` costs :math:`1_R^T M 1_R` of their energy, exactly.

    With "white" among the inputs of `needs`, :class:`hsv.time_varying.GramianEstimator` adds Gramians under white values.

    Parameters
    ----------
    view : LinearAttentionView
    needs : Needs
    """

    view: LinearAttentionView
    needs: Needs

    def __init__(self, view: LinearAttentionView, needs: Needs) -> None:
        super().__init__(view, needs)
        device = next(view.layer.parameters()).device
        shape = (view.n_groups, view.n_states, view.n_states)
        self._P, self._G, self._M = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        self._n_steps = 0
        self._estimators = (
            [hsv.time_varying.GramianEstimator() for _ in range(view.n_groups)] if "white" in needs.inputs else []
        )

    @override
    def _tensors(self, q: LinearAttentionQuantities) -> Mapping[str, Tensor]:
        return {
            "queries": q.queries,
            "keys": q.keys,
            "values": q.values,
            "log_decay": q.log_decay,
            "weight": q.weight,
        }

    @override
    def _add(self, q: LinearAttentionQuantities, index: Tensor) -> None:
        for i in index.tolist():
            keep = slice(None) if q.mask is None else q.mask[i]
            self._add_sequence(*(t[i][keep].double() for t in (q.queries, q.keys, q.values, q.log_decay, q.weight)))

    def _add_sequence(self, queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, weight: Tensor) -> None:
        length, groups, _ = keys.shape
        size = weight.square().mean(0).sqrt()  # (heads, p)
        relative = torch.where(size > 0, weight / torch.where(size > 0, size, 1.0), 0.0)
        by_group = relative.unflatten(1, (groups, -1)).square().mean((-1, -2)).sqrt()  # (length, groups)
        seen = (queries * by_group[..., None]).transpose(0, 1)
        self._G += seen.mT @ seen
        wanted = self.needs.gramians
        for steps, S in trajectories(keys, values, log_decay) if wanted else ():  # S (heads, t, n, p)
            if "shared" in wanted:
                self._P += _moments(S * size[:, None, None], groups)
            if "contributions" in wanted:
                read = queries[steps].transpose(0, 1).repeat_interleave(S.shape[0] // groups, 0)  # (heads, t, n)
                self._M += _moments(S * read[..., None] * weight[steps].transpose(0, 1)[:, :, None], groups)
        self._n_steps += length
        if self._estimators:
            self._add_white(queries, keys, log_decay, size, relative)

    def _add_white(self, queries: Tensor, keys: Tensor, log_decay: Tensor, size: Tensor, relative: Tensor) -> None:
        """A system for each head of a group: every value column of it has the same, under unit white values."""
        share = size.shape[0] // keys.shape[1]
        for g, estimator in enumerate(self._estimators):
            heads = slice(g * share, (g + 1) * share)
            decay = log_decay[:, heads].T if log_decay.ndim == 2 else log_decay[None, :, g].expand(share, -1, -1)
            B = size[heads].square().sum(-1).sqrt()[:, None, None] * keys[:, g]  # (heads, length, n)
            C = relative[:, heads].square().mean(-1).sqrt().T[..., None] * queries[:, g]
            estimator.update(decay.exp(), B[..., None], C[..., None, :])

    def second_moments(self, inputs: Inputs = "recorded") -> Tensor:
        """Return ``P (groups, n, n)``: of the states on the recorded values, or under white ones."""
        self.require_data()
        if inputs == "recorded":
            self._require("shared")
            return self._P / self._n_steps
        # A mean over the heads' systems as well as over the steps: sums over the heads, as for the recorded values.
        share = self._estimators[0].n_steps / self._n_steps
        return torch.stack([e.mean_gramians()[0] for e in self._estimators]) * share

    def _require(self, gramians: str) -> None:
        assert gramians in self.needs.gramians, f"the method did not say that it needs {gramians!r}"

    def readout(self) -> Tensor:
        """Return ``G (groups, n, n)``."""
        self.require_data()
        return self._G / self._n_steps

    def contributions(self) -> Tensor:
        """Return ``M (groups, n, n)``."""
        self.require_data()
        self._require("contributions")
        return self._M / self._n_steps

    def observability(self) -> Tensor:
        """Return the mean ``Q (groups, n, n)``: how the outputs of this moment and of those to come see the states."""
        self.require_data()
        return torch.stack([estimator.mean_gramians()[1] for estimator in self._estimators])


def trajectories(keys: Tensor, values: Tensor, log_decay: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield pieces of time and the states in them, ``(heads, t, n, p)``, of one sequence: ``keys (length, groups, n)``, ``values (length, heads, p)``."""
    length, heads, p = values.shape
    n, share = keys.shape[2], heads // keys.shape[1]
    decay = log_decay.exp()
    if decay.ndim == 2:
        decay = decay[..., None].expand(-1, -1, n)  # (length, heads, n)
    else:
        decay = decay.repeat_interleave(share, 1)
    keys = keys.repeat_interleave(share, 1)
    state = keys.new_zeros(heads, n * p)
    piece = max(1, PIECE // (heads * n * p))
    for start in range(0, length, piece):
        steps = slice(start, start + piece)
        write = keys[steps, :, :, None] * values[steps, :, None]  # (t, heads, n, p)
        fade = decay[steps, :, :, None].expand_as(write)
        S = linear_scan(fade.transpose(0, 1).flatten(2), write.transpose(0, 1).flatten(2), state)
        state = S[:, -1]
        yield steps, S.unflatten(2, (n, p))


def _moments(S: Tensor, groups: int) -> Tensor:
    """Sum of the products of the columns of ``S (heads, t, n, p)`` over heads of a group, time and values: ``(groups, n, n)``."""
    rows = S.unflatten(0, (groups, -1)).movedim(3, 1).flatten(2)  # (groups, n, heads t p)
    return rows @ rows.mT
