"""Tasks that need memory, generated: recall of pairs, induction heads, and selective copying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paper_repro.errors import ConfigurationError
from paper_repro.sequences import NOT_ASKED, Sequences, TaskShape
from paper_repro.tasks.task import GeneratedTask, Option, compact, option

FEW: Mapping[str, Option] = {"n_train": 400, "n_validation": 60, "n_test": 80}
NUMBERS_AT_ONCE = 2**24  # 128 MiB of random numbers: the keys of all sequences at once would fill the memory


def choices(random: np.random.Generator, count: int, n: int, chosen: int) -> np.ndarray:
    """Return, for each of `count` sequences, `chosen` different numbers below `n`, in random order."""
    rows = max(1, NUMBERS_AT_ONCE // n)
    parts = [
        random.random((min(rows, count - start), n)).argsort(axis=1)[:, :chosen] for start in range(0, count, rows)
    ]
    return np.concatenate(parts) if parts else np.empty((0, chosen), dtype=np.int64)


class TokenTask(GeneratedTask):
    """Base of the tasks of this file: tokens, and scores for every step."""

    def sequences(self, tokens: np.ndarray, labels: np.ndarray) -> Sequences:
        """Return tokens and labels, both ``(count, length)``, in few bytes."""
        shape = self.shape
        assert shape.vocabulary is not None
        return Sequences(compact(tokens, 0, shape.vocabulary - 1), compact(labels, NOT_ASKED, shape.n_outputs - 1))


@dataclass(frozen=True)
class MultiQueryRecall(TokenTask):
    """Multi-query associative recall: key, value, key, value, ..., then keys again; the model names the value of each.

    Keys are the tokens ``0, ..., keys - 1`` and occur once among the pairs, values are the tokens after them. The label at a
    query is the value's number, ``0, ..., values - 1``; no other position has a label. Length ``2 * pairs + queries``.
    Source: S. Arora et al., "Zoology: Measuring and improving recall in efficient language models", ICLR 2024. There 16 pairs stand in sequences of 256
    tokens: after the pairs the queries are spread with gaps by a power law, and random tokens fill what is between them. Here the queries stand in one
    block at the end, so `published`, which has the paper's numbers of pairs, keys, values and training sequences, makes sequences of 48.
    """

    name: ClassVar[str] = "mqar"
    summary: ClassVar[str] = "recall of several keys' values"
    reference: ClassVar[str] = "Arora et al., Zoology, ICLR 2024"
    published: ClassVar[Mapping[str, Option]] = {
        "pairs": 16,
        "queries": 16,
        "keys": 4_096,
        "values": 4_096,
        "n_train": 100_000,
    }
    small: ClassVar[Mapping[str, Option]] = {**FEW, "pairs": 4, "queries": 4, "keys": 8, "values": 4}

    pairs: int = option(16, "of a key and a value")
    queries: int = option(16, "keys that are asked for")
    keys: int = option(32, "different ones")
    values: int = option(8, "different ones")

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

    @property
    def longest(self) -> int:
        """Steps of every sequence."""
        return 2 * self.pairs + self.queries

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        keys = choices(random, count, self.keys, self.pairs)
        values = random.integers(self.values, size=(count, self.pairs))
        asked = choices(random, count, self.pairs, self.queries)
        pairs = np.stack([keys, self.keys + values], axis=2).reshape(count, 2 * self.pairs)
        tokens = np.concatenate([pairs, np.take_along_axis(keys, asked, axis=1)], axis=1)
        labels = np.full_like(tokens, NOT_ASKED)
        labels[:, 2 * self.pairs :] = np.take_along_axis(values, asked, axis=1)
        return self.sequences(tokens, labels)


@dataclass(frozen=True)
class InductionHeads(TokenTask):
    """Random tokens, one of them preceded by a mark; at the same mark at the end the model names that token.

    The mark is the last token of the vocabulary and stands at a random place, with at least one step between what follows it and the end.
    Source: A. Gu and T. Dao, "Mamba: Linear-time sequence modeling with selective state spaces", 2023, section 4.1.2, after D. Fu et al., "Hungry hungry hippos", ICLR 2023.
    """

    name: ClassVar[str] = "induction_heads"
    summary: ClassVar[str] = "recall of what followed a mark"
    reference: ClassVar[str] = "Gu and Dao, Mamba, 2023, 4.1.2"
    small: ClassVar[Mapping[str, Option]] = {**FEW, "length": 16, "vocabulary": 6}

    length: int = option(256, "of a sequence", least=4)
    vocabulary: int = option(16, "tokens, the mark among them", least=3)

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=self.vocabulary, n_outputs=self.vocabulary - 1, head="language_model")

    @property
    def longest(self) -> int:
        """Steps of every sequence."""
        return self.length

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        mark = self.vocabulary - 1
        tokens = random.integers(mark, size=(count, self.length))
        places = random.integers(self.length - 2, size=(count, 1))
        labels = np.full_like(tokens, NOT_ASKED)
        labels[:, -1:] = np.take_along_axis(tokens, places + 1, axis=1)
        np.put_along_axis(tokens, places, mark, axis=1)
        tokens[:, -1] = mark
        return self.sequences(tokens, labels)


@dataclass(frozen=True)
class SelectiveCopying(TokenTask):
    """Symbols at random places in a stream of blanks; at the markers after it the model repeats them in their order.

    Symbols are the tokens ``0, ..., symbols - 1``, then come the blank and the marker. Length ``context + copied``.
    Source: A. Gu and T. Dao, "Mamba: Linear-time sequence modeling with selective state spaces", 2023, section 4.1.1.
    """

    name: ClassVar[str] = "selective_copying"
    summary: ClassVar[str] = "copying of symbols between blanks"
    reference: ClassVar[str] = "Gu and Dao, Mamba, 2023, 4.1.1"
    published: ClassVar[Mapping[str, Option]] = {"context": 4_096, "copied": 16, "symbols": 14}
    small: ClassVar[Mapping[str, Option]] = {**FEW, "context": 12, "copied": 3, "symbols": 4}

    context: int = option(48, "steps that the symbols are spread over")
    copied: int = option(8, "symbols in a sequence")
    symbols: int = option(16, "different ones")

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

    @property
    def longest(self) -> int:
        """Steps of every sequence."""
        return self.context + self.copied

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        blank, marker = self.symbols, self.symbols + 1
        places = np.sort(choices(random, count, self.context, self.copied), axis=1)
        symbols = random.integers(self.symbols, size=(count, self.copied))
        tokens = np.full((count, self.context + self.copied), blank, dtype=np.int64)
        np.put_along_axis(tokens, places, symbols, axis=1)
        tokens[:, self.context :] = marker
        labels = np.full_like(tokens, NOT_ASKED)
        labels[:, self.context :] = symbols
        return self.sequences(tokens, labels)
