"""The order in which a run sees its training data."""

from __future__ import annotations

import numpy as np
import torch

from paper_repro.sequences import Batch, Sequences


class ShuffledBatches:
    """Endless batches, every epoch in a new order; what is left over at the end of an epoch is dropped.

    The order of an epoch is a function of the seed and the epoch's number alone, so the number of batches taken is the
    whole state, and a run that resumes meets the batches that it would have met.

    Parameters
    ----------
    sequences : Sequences
    batch_size : int
        Must not exceed the number of sequences.
    seed : int
    """

    def __init__(self, sequences: Sequences, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= len(sequences):
            raise ValueError(f"batch_size must be in [1, {len(sequences)}] for this training set, got {batch_size}")
        self._sequences = sequences
        self._batch_size = batch_size
        self._seed = seed
        self._taken = 0
        self._order: tuple[int, torch.Tensor] | None = None

    def next(self) -> Batch:
        """Return the next batch of `batch_size` sequences."""
        epoch, place = divmod(self._taken, len(self._sequences) // self._batch_size)
        if self._order is None or self._order[0] != epoch:
            permutation = np.random.default_rng([self._seed, epoch]).permutation(len(self._sequences))
            self._order = (epoch, torch.from_numpy(permutation).to(self._sequences.labels.device))
        chosen = self._order[1][place * self._batch_size : (place + 1) * self._batch_size]
        self._taken += 1
        return self._sequences.batch(chosen)

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after ``state["taken"]`` batches."""
        self._taken = state["taken"]
