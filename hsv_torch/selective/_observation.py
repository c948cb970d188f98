"""What calibration data shows of a selective layer: Gramians and scores over all sequences, and some calls kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

import hsv
import hsv.time_varying
from hsv_torch.scan import linear_scan
from hsv_torch.selective._sequences import ObservedSequences
from hsv_torch.selective._view import SelectiveQuantities, SelectiveView

Inputs = Literal["recorded", "white"]
"""Whether Gramians are second moments of the states under the recorded inputs, or those under white noise."""


@dataclass(frozen=True)
class Needs:
    """What a method must know.

    Attributes
    ----------
    gramians : frozenset of str
        ``"shared"`` (summed over the channels), ``"channel"``; of linear attention ``"shared"`` (of each group), ``"contributions"``.
    inputs : frozenset of str
        ``"recorded"``, ``"white"``.
    held_out : float
        Share of the sequences that stays out of the Gramians and is kept to measure errors on.
    n_calls : int
        Sequences kept whole, of those in the Gramians and of those held out alike.
    """

    gramians: frozenset[str] = frozenset()
    inputs: frozenset[Inputs] = frozenset({"recorded"})
    held_out: float = 0.0
    n_calls: int = 0

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.gramians | other.gramians,
            self.inputs | other.inputs,
            max(self.held_out, other.held_out),
            max(self.n_calls, other.n_calls),
        )


class SelectiveObservation(ObservedSequences):
    """Sums over the sequences of a selective layer; their size does not grow with the number of sequences.

    Everything is computed in double precision. With ``held_out > 0`` every so many sequences, counted over all calls, are held out.

    Parameters
    ----------
    view : SelectiveView
    needs : Needs
    """

    view: SelectiveView
    needs: Needs

    def __init__(self, view: SelectiveView, needs: Needs) -> None:
        super().__init__(view, needs)
        self._estimators: dict[str, hsv.time_varying.SelectiveEstimator] = {}
        self._transformed: TransformedMoments | None = None
        self._norms = view.output_norms()
        self._readout = torch.zeros(view.n_states, view.n_states, dtype=torch.float64, device=self._norms.device)
        self._written = torch.zeros_like(self._readout)
        self._n_steps = 0
        if view.transformed:  # methods that treat all channels alike refuse such a layer when they plan
            if "channel" in needs.gramians:
                self._transformed = TransformedMoments(view)
        else:
            rates = view.rates()
            self._estimators = {
                inputs: hsv.time_varying.SelectiveEstimator(
                    rates, gramians=tuple(sorted(needs.gramians)), inputs=inputs
                )
                for inputs in sorted(needs.inputs)
            }

    @override
    def _tensors(self, q: SelectiveQuantities) -> Mapping[str, Tensor]:
        return {"delta": q.delta, "B": q.B, "C": q.C, "u": q.u, "gate": q.gate}

    @override
    def _add(self, q: SelectiveQuantities, index: Tensor) -> None:
        delta, B, C, u, gate = (t[index].double() for t in (q.delta, q.B, q.C, q.u, q.gate))
        mask = None if q.mask is None else q.mask[index]
        weight = gate * self._norms.to(gate.device)
        if mask is not None:
            weight = torch.where(mask[..., None], weight, 0.0)
        if self.view.transformed:
            if self._transformed is not None:
                self._transformed.add(delta, B, C, u, weight, mask)
            return
        # Unit for unit, a channel's states count as much as its outputs do: the recorded inputs take the root mean square of the weight
        # over the sequence, and the weight leaves it off. A channel's own P Q and the scores do not change.
        lengths = mask.sum(1) if mask is not None else torch.full(delta.shape[:1], delta.shape[1])
        size = torch.linalg.vector_norm(weight, dim=1, keepdim=True) / lengths.to(weight)[:, None, None].sqrt()
        relative = torch.where(size > 0, weight / torch.where(size > 0, size, 1.0), 0.0)
        for inputs, estimator in self._estimators.items():
            if inputs == "recorded":
                estimator.update(delta, B, C, x=u * size, weight=relative, mask=mask)
            else:
                estimator.update(delta, B, C, weight=weight, mask=mask)
        self._readout = self._readout + _weighted_moments(C, relative.square().sum(-1), mask)
        self._written = self._written + _weighted_moments(B, (delta * u).square().sum(-1), mask)
        self._n_steps += int(lengths.sum())

    def estimator(self, inputs: Inputs = "recorded") -> hsv.time_varying.SelectiveEstimator:
        """Return the estimator with these inputs."""
        self.require_data()
        return self._estimators[inputs]

    def readout(self) -> Tensor:
        r"""Return :math:`E[\sum_c w_c^2\, C C^T]`, ``(n, n)``, with the weights of :meth:`shared_gramians`: how the outputs of the same moment see the states."""
        self.require_data()
        return self._readout / self._n_steps

    def norm_gain(self, right: Tensor, left: Tensor) -> float:
        r"""Return what the outputs of the scan must be multiplied by when a layer that normalises B and C does so over the states :math:`L^T B` and :math:`R^T C` alone.

        With n states the normalised B has the norm :math:`\sqrt n`, with r states :math:`\sqrt r`, where :math:`L^T B` of the layer as it was has another one at every step: the
        gain makes up for its root mean square, the steps weighed by what is written (of B) or read (of C). 1 for a layer that does not normalise.
        """
        if not self.view.normalises:
            return 1.0
        self.require_data()
        gain = 1.0
        for moments, projection in ((self._written, left), (self._readout, right)):
            # All of B or C has the mean square 1 by the norm; the trace says with which weights.
            share = (projection.mT @ moments @ projection).trace() / (moments.trace() / moments.shape[0])
            gain *= float(share / projection.shape[1]) ** 0.5
        return gain

    def shared_gramians(self, inputs: Inputs = "recorded") -> tuple[Tensor, Tensor]:
        """Return the mean ``P`` and ``Q`` summed over the channels, ``(n, n)``, symmetric.

        With the recorded inputs every channel's states are scaled by the root mean square of its weight.
        """
        return self.estimator(inputs).shared_gramians()

    def channel_gramians(self, inputs: Inputs = "recorded") -> tuple[Tensor, Tensor]:
        """Return the mean ``P`` and ``Q`` of each channel, ``(d, n, n)``, Hermitian."""
        self.require_data()
        if self._transformed is not None:
            return self._transformed.means()
        return self._estimators[inputs].channel_gramians()


class TransformedMoments:
    r"""Second moments ``P`` of the states and mean ``Q`` of a layer whose channels have transforms, by trajectories.

    The system of a channel is :math:`h_t = e^{\delta_t A_c} h_{t-1} + \delta_t x_t\, T^B_c B_t`, :math:`y_t = w_t\, \mathrm{Re}(C_t^T (T^C_c)^T h_t)`. ``Q`` comes from adjoint
    trajectories driven by random signs, always the same: :math:`E[g g^H] = Q`. Such a layer has few states, so its trajectories, ``(T, d, n)`` of one
    sequence at a time, may be made.
    """

    def __init__(self, view: SelectiveView) -> None:
        self.rates = view.rates()
        self.B, self.C = view.transforms()
        self.generator = torch.Generator().manual_seed(0)
        d, n = self.rates.shape
        self.P = self.rates.new_zeros(d, n, n)
        self.Q = self.rates.new_zeros(d, n, n)
        self.steps = 0

    def add(self, delta: Tensor, B: Tensor, C: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None) -> None:
        """Add sequences: ``(batch, length, ...)``."""
        for i in range(delta.shape[0]):
            keep: Any = slice(None) if mask is None else mask[i]
            self._add_sequence(*(t[i][keep] for t in (delta, B, C, x, weight)))

    def _add_sequence(self, delta: Tensor, B: Tensor, C: Tensor, x: Tensor, weight: Tensor) -> None:
        d, n = self.rates.shape
        dtype = self.rates.dtype
        decay = torch.exp(delta[..., None] * self.rates)  # (T, d, n)
        write = (delta * x)[..., None] * torch.einsum("drf,tf->tdr", self.B, B.to(dtype))
        h = linear_scan(decay.flatten(1)[None], write.flatten(1)[None])[0].unflatten(1, (d, n))
        self.P += torch.einsum("tdi,tdj->dij", h, h.conj())
        signs = torch.randint(2, delta.shape, generator=self.generator).to(weight) * 2 - 1
        read = (weight * signs)[..., None] * torch.einsum("drf,tf->tdr", self.C, C.to(dtype)).conj()
        later = torch.cat([decay[1:], torch.zeros_like(decay[:1])]).conj()  # g_t = read_t + conj(a_{t+1}) g_{t+1}
        g = linear_scan(later.flip(0).flatten(1)[None], read.flip(0).flatten(1)[None])[0].unflatten(1, (d, n))
        self.Q += torch.einsum("tdi,tdj->dij", g, g.conj())
        self.steps += int(delta.shape[0])

    def means(self) -> tuple[Tensor, Tensor]:
        """Return ``P`` and ``Q``, ``(d, n, n)``."""
        return self.P / self.steps, self.Q / self.steps


def _weighted_moments(rows: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of ``weights (batch, length)`` times the products of ``rows (batch, length, n)``, ``(n, n)``, padding left out."""
    rows = rows if mask is None else torch.where(mask[..., None], rows, 0.0)
    weights = weights if mask is None else torch.where(mask, weights, 0.0)
    scaled = (rows * weights.sqrt()[..., None]).flatten(0, 1)
    return scaled.mT @ scaled
