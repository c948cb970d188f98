"""Tasks that need memory, generated from a seed: recall of several pairs, and selective copying.

Training, validation and test sequences come from different streams of random numbers, and no stream depends on the seed of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from paper_repro.errors import ConfigurationError
from paper_repro.sequences import NOT_ASKED, Dataset, Sequences, TaskShape

STREAMS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class GeneratedTask:
    """Base of the tasks: sizes, and the seed of the random numbers."""

    name: ClassVar[str]

    seed: int = 0
    n_train: int = 65_536
    n_validation: int = 1_024
    n_test: int = 2_048

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the task with `options` in place of its defaults.

        Raises
        ------
        ConfigurationError
            If an option is unknown or impossible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise ConfigurationError(
                    f"key 'task_options': {cls.name} has no option {name!r}; it has {', '.join(sorted(known))}"
                )
            least = 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"key 'task_options': {name} must be an int of at least {least}, got {value!r}"
                )
        task = cls(**options)
        task.check()
        return task

    def check(self) -> None:
        """Raise ConfigurationError if the sizes do not go together."""

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        raise NotImplementedError

    def generate(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `count` sequences of tokens and their labels, both ``(count, length)``."""
        raise NotImplementedError

    def load(self) -> Dataset:
        """Return the three sets."""
        sets = {}
        for stream, number in STREAMS.items():
            tokens, labels = self.generate(np.random.default_rng([self.seed, number]), getattr(self, f"n_{stream}"))
            sets[stream] = Sequences(torch.from_numpy(tokens), torch.from_numpy(labels))
        return Dataset(self.name, self.shape, **sets)


@dataclass(frozen=True)
class MultiQueryRecall(GeneratedTask):
    """Multi-query associative recall: key, value, key, value, ..., then keys again; the model names the value of each.

    Keys are the tokens ``0, ..., keys - 1`` and occur once among the pairs, values are the tokens after them. The label at a
    query is the value's number, ``0, ..., values - 1``; no other position has a label. Length ``2 * pairs + queries``.
    Source: S. Arora et al., "Zoology: Measuring and improving recall in efficient language models", ICLR 2024; here the queries stand in one block at the end.
    """

    name: ClassVar[str] = "mqar"

    pairs: int = 16
    queries: int = 16
    keys: int = 32
    values: int = 8

    def check(self) -> None:
        """Raise ConfigurationError if there are fewer keys than pairs, or fewer pairs than queries."""
        if not self.queries <= self.pairs <= self.keys:
            raise ConfigurationError(
                f"key 'task_options': queries <= pairs <= keys must hold, got {self.queries}, {self.pairs}, {self.keys}"
            )

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=self.keys + self.values, n_outputs=self.values, head="language_model")

    def generate(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and labels."""
        keys = random.random((count, self.keys)).argsort(axis=1)[:, : self.pairs]
        values = random.integers(self.values, size=(count, self.pairs))
        asked = random.random((count, self.pairs)).argsort(axis=1)[:, : self.queries]
        pairs = np.stack([keys, self.keys + values], axis=2).reshape(count, 2 * self.pairs)
        tokens = np.concatenate([pairs, np.take_along_axis(keys, asked, axis=1)], axis=1)
        labels = np.full_like(tokens, NOT_ASKED)
        labels[:, 2 * self.pairs :] = np.take_along_axis(values, asked, axis=1)
        return tokens, labels


@dataclass(frozen=True)
class SelectiveCopying(GeneratedTask):
    """Symbols at random places in a stream of blanks; at the markers after it the model repeats them in their order.

    Symbols are the tokens ``0, ..., symbols - 1``, then come the blank and the marker. Length ``context + copied``.
    Source: A. Gu and T. Dao, "Mamba: Linear-time sequence modeling with selective state spaces", 2023, section 4.1.1.
    """

    name: ClassVar[str] = "selective_copying"

    context: int = 48
    copied: int = 8
    symbols: int = 16

    def check(self) -> None:
        """Raise ConfigurationError if the symbols have no room."""
        if self.copied > self.context:
            raise ConfigurationError(
                f"key 'task_options': copied <= context must hold, got {self.copied} and {self.context}"
            )

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=self.symbols + 2, n_outputs=self.symbols, head="language_model")

    def generate(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and labels."""
        blank, marker = self.symbols, self.symbols + 1
        places = np.sort(random.random((count, self.context)).argsort(axis=1)[:, : self.copied], axis=1)
        symbols = random.integers(self.symbols, size=(count, self.copied))
        tokens = np.full((count, self.context + self.copied), blank, dtype=np.int64)
        np.put_along_axis(tokens, places, symbols, axis=1)
        tokens[:, self.context :] = marker
        labels = np.full_like(tokens, NOT_ASKED)
        labels[:, self.context :] = symbols
        return tokens, labels


GENERATED_TASKS: dict[str, type[GeneratedTask]] = {task.name: task for task in (MultiQueryRecall, SelectiveCopying)}
