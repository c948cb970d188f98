"""What all tasks are made of: labelled sequences in three disjoint sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

NOT_ASKED = -100  # the label of a step at which nothing is asked; cross-entropy skips it


@dataclass(frozen=True)
class TaskShape:
    """What a model must take and give: real channels or tokens, and scores a sequence or a step."""

    n_outputs: int
    n_inputs: int | None = None
    vocabulary: int | None = None
    head: Literal["classification", "language_model"] = "classification"


@dataclass(frozen=True)
class Sequences:
    """Labelled sequences.

    `inputs` are (count, length, channels) float32 or tokens (count, length) int64; `labels` are (count,) int64, or (count, length) with
    `NOT_ASKED` at the steps where nothing is asked.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Sequences:
        """Return the same sequences on `device`."""
        return Sequences(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """One task: three disjoint sets of sequences."""

    name: str
    shape: TaskShape
    train: Sequences
    validation: Sequences
    test: Sequences

    def to(self, device: torch.device) -> Dataset:
        """Return the same dataset on `device`."""
        return Dataset(self.name, self.shape, self.train.to(device), self.validation.to(device), self.test.to(device))
