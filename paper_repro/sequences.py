"""What all tasks are made of: labelled sequences in three disjoint sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch

NOT_ASKED = -100  # the label of a step at which nothing is asked; cross-entropy skips it
PADDING = 0  # what stands after the end of a sequence; `lengths` decide what is padding, not this number

Calibration: TypeAlias = torch.Tensor | dict[str, torch.Tensor]  # inputs, or inputs and lengths by a model's names


@dataclass(frozen=True)
class TaskShape:
    """What a model must take and give: real channels or tokens, scores a sequence or a step, and documents a sample."""

    n_outputs: int
    n_inputs: int | None = None
    vocabulary: int | None = None
    head: Literal["classification", "language_model"] = "classification"
    documents: int = 1


class Batch(NamedTuple):
    """What a model takes, and what it is to say."""

    inputs: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor | None = None

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        """The arguments of a model: inputs, and lengths where sequences are padded."""
        return (self.inputs,) if self.lengths is None else (self.inputs, self.lengths)


@dataclass(frozen=True)
class PixelScale:
    """How bytes become real numbers: ``(byte / 255 - mean) / std``, a channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(..., channels)`` as float32."""
        values = pixels.to(torch.float32) / 255
        if self == PixelScale():
            return values
        mean, std = (torch.tensor(part, device=pixels.device) for part in (self.mean, self.std))
        return (values - mean) / std


@dataclass(frozen=True)
class Sequences:
    """Labelled sequences, held in as few bytes as they need; `batch` makes of them what a model takes.

    Parameters
    ----------
    inputs : Tensor
        Tokens ``(count, length)``, of any integer type; documents ``(count, documents, length)``, also tokens; or ``(count, length, channels)``, float32, or bytes
        where `pixels` is given.
    labels : Tensor
        ``(count,)``, or ``(count, length)`` with `NOT_ASKED` at the steps where nothing is asked; of any signed integer type.
    lengths : Tensor, optional
        ``(count,)`` or ``(count, documents)``: the steps of each that are not padding, at least 1. None: there is no padding.
    pixels : PixelScale, optional
        How bytes are read.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor | None = None
    pixels: PixelScale | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(part.nbytes for part in (self.inputs, self.labels, self.lengths) if part is not None)

    def batch(self, chosen: torch.Tensor | slice) -> Batch:
        """Return the sequences `chosen`, cut after the last step of the longest: float32 or int64 inputs, int64 labels and lengths."""
        inputs, lengths = self.inputs[chosen], None
        if self.lengths is not None:
            lengths = self.lengths[chosen].long()
            inputs = inputs[..., : int(lengths.max())] if len(lengths) else inputs
        if self.pixels is not None:
            inputs = self.pixels(inputs)
        elif not inputs.dtype.is_floating_point:
            inputs = inputs.long()
        return Batch(inputs, self.labels[chosen].long(), lengths)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all sequences in their order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def calibration(self, chosen: torch.Tensor, size: int) -> list[Calibration]:
        """Return the sequences `chosen`, `size` at a time, as `hsv_torch` takes them to observe a model."""
        batches = [self.batch(part) for part in chosen.to(self.inputs.device).split(size)]
        return [
            batch.inputs if batch.lengths is None else {"x": batch.inputs, "lengths": batch.lengths}
            for batch in batches
        ]

    def to(self, device: torch.device) -> Sequences:
        """Return the same sequences on `device`."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return dataclasses.replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device), lengths=lengths)


@dataclass(frozen=True)
class Dataset:
    """One task: three disjoint sets of sequences."""

    name: str
    shape: TaskShape
    train: Sequences
    validation: Sequences
    test: Sequences

    @property
    def n_bytes(self) -> int:
        """Memory of the three sets."""
        return self.train.n_bytes + self.validation.n_bytes + self.test.n_bytes

    def to(self, device: torch.device) -> Dataset:
        """Return the same dataset on `device`."""
        return Dataset(self.name, self.shape, self.train.to(device), self.validation.to(device), self.test.to(device))
