"""Observing a layer whose system depends on its input, sequence by sequence: which count, which are held out, which are kept whole."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from hsv import HsvError, NonFiniteError
from hsv_torch.adapters import Observation
from hsv_torch.selective._view import LayerView


class KeptSequences(Protocol):
    """What of the sequences is kept whole."""

    @property
    def held_out(self) -> float:
        """Share of the sequences that stays out of all sums."""

    @property
    def n_calls(self) -> int:
        """Sequences kept whole, of those in the sums and of those held out alike."""


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


class ObservedSequences(Observation):
    """Sums over the sequences of a layer, and some calls kept whole; the size of the sums does not grow with the number of sequences.

    With ``held_out > 0`` every so many sequences, counted over all calls, are held out.

    Parameters
    ----------
    view : LayerView
    needs : KeptSequences
    """

    def __init__(self, view: LayerView, needs: KeptSequences) -> None:
        self.view: Any = view
        self.needs: Any = needs
        self.calls: list[Call] = []
        self.held_out: list[Call] = []
        self.n_sequences = 0

    @abc.abstractmethod
    def _tensors(self, q: Any) -> Mapping[str, Tensor]:
        """Return by name what must be finite of the quantities of a call, each ``(batch, length, ...)``."""

    @abc.abstractmethod
    def _add(self, q: Any, index: Tensor) -> None:
        """Add the sequences `index` of a call to the sums."""

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
        tensors = self._tensors(q)
        require_usable(tensors, q.mask)
        first = next(iter(tensors.values()))
        batch = int(first.shape[0])
        held = torch.tensor([self._is_held_out(self.n_sequences + i) for i in range(batch)], dtype=torch.bool)
        used = torch.nonzero(~held)[:, 0]
        if len(used):
            self._add(q, used.to(first.device))
        self.n_sequences += batch
        positional, keywords = self.view.repeatable(args, kwargs)
        call = Call(positional, keywords, q.mask, batch)
        for kept, index in ((self.calls, used), (self.held_out, torch.nonzero(held)[:, 0])):
            room = self.needs.n_calls - sum(c.n_sequences for c in kept)
            if room > 0 and len(index):
                kept.append(call.select(index[:room]))

    def _is_held_out(self, k: int) -> bool:
        return int((k + 1) * self.needs.held_out) > int(k * self.needs.held_out)

    def require_data(self) -> None:
        """Raise if nothing was observed."""
        if self.n_sequences == 0:
            raise HsvError(
                "no calibration sequence has been seen; a layer whose system depends on its input is cut by data: pass `calibration`"
            )


def require_usable(quantities: Mapping[str, Tensor], mask: Tensor | None) -> None:
    """Raise if a sequence is all padding, or one of the quantities ``(batch, length, ...)`` is not finite outside of it; the message names it."""
    for name, value in quantities.items():
        if 0 in value.shape:
            raise HsvError(f"the layer was called without a step: {name} has the shape {tuple(value.shape)}")
    if mask is not None:
        empty = torch.nonzero(~mask.any(dim=1))[:, 0]
        if len(empty):
            raise HsvError(f"all of sequence {int(empty[0])} is padding; leave it out of the calibration data")
    for name, value in quantities.items():
        bad = ~torch.isfinite(value).flatten(2).all(dim=-1)  # (batch, length)
        if mask is not None:
            bad = bad & mask
        if bool(bad.any()):
            sequence, step = torch.nonzero(bad)[0].tolist()
            raise NonFiniteError(
                f"sequence {sequence} has a value of {name} that is not finite at step {step}; the observation is as it was: look for NaN "
                "in that sequence of the calibration data, or for a layer before this one that has diverged"
            )
