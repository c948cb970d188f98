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
from hsv import HsvError, NonFiniteError
from hsv_torch.adapters import Observation
from hsv_torch.scan import linear_scan
from hsv_torch.selective._view import SelectiveQuantities, SelectiveView

Inputs = Literal["recorded", "white"]
"""Whether Gramians are second moments of the states under the recorded inputs, or those under white noise."""


@dataclass(frozen=True)
class Needs:
    """What a method must know.

    Attributes
    ----------
    gramians : frozenset of str
        ``"shared"`` (summed over the channels), ``"channel"``.
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


@dataclass(frozen=True)
class Call:
    """Arguments of some sequences of a call of the layer; ``mask`` as in the quantities."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mask: Tensor | None
    n_sequences: int

    def select(self, index: Tensor) -> Call:
        """The same call for some of its sequences."""

        def part(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.n_sequences:
                return value.detach()[index.to(value.device)]
            return value

        return Call(
            tuple(part(value) for value in self.args),
            {name: part(value) for name, value in self.kwargs.items()},
            part(self.mask),
            int(index.shape[0]),
        )


class SelectiveObservation(Observation):
    """Sums over the sequences of a selective layer; their size does not grow with the number of sequences.

    Everything is computed in double precision. With ``held_out > 0`` every so many sequences, counted over all calls, are held out.

    Parameters
    ----------
    view : SelectiveView
    needs : Needs
    """

    def __init__(self, view: SelectiveView, needs: Needs) -> None:
        self.view = view
        self.needs = needs
        self.calls: list[Call] = []
        self.held_out: list[Call] = []
        self.n_sequences = 0
        self._estimators: dict[str, hsv.time_varying.SelectiveEstimator] = {}
        self._transformed: TransformedMoments | None = None
        self._norms = view.output_norms()
        self._readout = torch.zeros(view.n_states, view.n_states, dtype=torch.float64, device=self._norms.device)
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
    @torch.no_grad()
    def update(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take in one call of the layer.

        Raises
        ------
        hsv.NonFiniteError
            A sequence, which is named, contains NaN or infinity.
        hsv.HsvError
            All of a sequence is padding. The observation is as it was before.
        """
        if layer is not self.view.layer:
            raise HsvError("the observation was made for another layer; make one for each with `observe`")
        q = self.view.quantities(args, kwargs)
        _check(q)
        batch = int(q.delta.shape[0])
        held = torch.tensor([self._is_held_out(self.n_sequences + i) for i in range(batch)], dtype=torch.bool)
        used = torch.nonzero(~held)[:, 0]
        if len(used):
            self._add(q, used.to(q.delta.device))
        self.n_sequences += batch
        call = Call(*self.view.repeatable(args, kwargs), q.mask, batch)
        for kept, index in ((self.calls, used), (self.held_out, torch.nonzero(held)[:, 0])):
            room = self.needs.n_calls - sum(c.n_sequences for c in kept)
            if room > 0 and len(index):
                kept.append(call.select(index[:room]))

    def _is_held_out(self, k: int) -> bool:
        return int((k + 1) * self.needs.held_out) > int(k * self.needs.held_out)

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
        C = C if mask is None else torch.where(mask[..., None], C, 0.0)
        seen = C * torch.linalg.vector_norm(relative, dim=-1, keepdim=True)
        self._readout = self._readout + seen.flatten(0, 1).mT @ seen.flatten(0, 1)
        self._n_steps += int(lengths.sum())

    def require_data(self) -> None:
        """Raise if nothing was observed."""
        if self.n_sequences == 0:
            raise HsvError(
                "no calibration sequence has been seen; a selective layer is cut by data: pass `calibration`"
            )

    def estimator(self, inputs: Inputs = "recorded") -> hsv.time_varying.SelectiveEstimator:
        """Return the estimator with these inputs."""
        self.require_data()
        return self._estimators[inputs]

    def readout(self) -> Tensor:
        r"""Return :math:`E[\sum_c w_c^2\, C C^T]`, ``(n, n)``, with the weights of :meth:`shared_gramians`: how the outputs of the same moment see the states."""
        self.require_data()
        return self._readout / self._n_steps

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


def _check(q: SelectiveQuantities) -> None:
    """Raise if a sequence is all padding, or has values that are not finite outside of it; the message names it."""
    if 0 in q.delta.shape:
        raise HsvError(f"the layer was called without a step: batch, length and channels are {tuple(q.delta.shape)}")
    if q.mask is not None:
        empty = torch.nonzero(~q.mask.any(dim=1))[:, 0]
        if len(empty):
            raise HsvError(f"all of sequence {int(empty[0])} is padding; leave it out of the calibration data")
    for name in ("delta", "B", "C", "u", "gate"):
        bad = ~torch.isfinite(getattr(q, name)).all(dim=-1)  # (batch, length)
        if q.mask is not None:
            bad = bad & q.mask
        if bool(bad.any()):
            sequence, step = torch.nonzero(bad)[0].tolist()
            raise NonFiniteError(
                f"sequence {sequence} has a value of {name} that is not finite at step {step}; the observation is as it was: look for NaN "
                "in that sequence of the calibration data, or for a layer before this one that has diverged"
            )
