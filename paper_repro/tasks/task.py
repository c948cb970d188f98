"""What a task is: a name, options that are checked, a shape, and a way to its three sets."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
import torch

from paper_repro.errors import ConfigurationError
from paper_repro.sequences import Dataset, Sequences, TaskShape

Option: TypeAlias = bool | int | float | str

STREAMS = {"train": 0, "validation": 1, "test": 2}
ROUNDS_OF_REPLACEMENT = 50


def option(default: Option, meaning: str, *, least: float = 1) -> Any:
    """Return the field of an option: its default, what it means, and the least number that it may be."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "least": least})


@dataclass(frozen=True)
class Task:
    """Base of all tasks. The fields of a subclass are its options, what describes it are class variables.

    Attributes
    ----------
    name : str
        What the key ``task`` of a configuration says.
    summary, reference : str
        A line on what is to be found, and where the task comes from.
    published : mapping
        Options with which the task has the size that its source has, where the defaults are another.
    small : mapping
        Options with which it takes a moment on a CPU, for tests.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    published: ClassVar[Mapping[str, Option]] = {}
    small: ClassVar[Mapping[str, Option]] = {}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the task with `options` in place of its defaults.

        Raises
        ------
        ConfigurationError
            If an option is unknown or impossible.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        hints = get_type_hints(cls)
        for name, value in options.items():
            if name not in known:
                raise ConfigurationError(
                    f"key 'task_options': {cls.name} has no option {name!r}; "
                    + (f"it has {', '.join(sorted(known))}" if known else "it has none")
                )
            _check_option(name, value, hints[name], known[name].metadata["least"])
        task = cls(**options)
        task.check()
        return task

    def check(self) -> None:
        """Raise ConfigurationError if the options do not go together."""

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        raise NotImplementedError

    @property
    def longest(self) -> int:
        """Steps of the longest sequence."""
        raise NotImplementedError

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sequences for training, validation and test; of tasks that are read, those of the published files."""
        raise NotImplementedError

    def where(self) -> str:
        """Say where the data comes from: the folders that are looked in, or that it is generated."""
        raise NotImplementedError

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets, from files in `data_dir` or the usual places where the task has files.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        """
        raise NotImplementedError


def _check_option(name: str, value: Any, hint: Any, least: float) -> None:
    def refuse(rule: str) -> ConfigurationError:
        return ConfigurationError(f"key 'task_options': {name} must be {rule}, got {value!r}")

    if get_origin(hint) is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            raise refuse(f"one of {', '.join(repr(choice) for choice in get_args(hint))}")
    elif hint is bool:
        if not isinstance(value, bool):
            raise refuse("true or false")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise refuse(f"an int of at least {least}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise refuse(f"a number of at least {least:g}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return how to go on after an unknown name: a name that is close, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


@dataclass(frozen=True)
class GeneratedTask(Task):
    """Base of the tasks that are generated. Training, validation and test sequences come from different streams of random numbers.

    No stream depends on the seed of a run. A sequence of the validation set that is also a training sequence is replaced by another one, and so is
    a sequence of the test set that is in one of the others: with small options these occur.
    """

    seed: int = option(0, "of the random numbers", least=0)
    n_train: int = option(65_536, "training sequences")
    n_validation: int = option(1_024, "validation sequences")
    n_test: int = option(2_048, "test sequences")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sequences for training, validation and test."""
        return self.n_train, self.n_validation, self.n_test

    def where(self) -> str:
        """Say that there are no files."""
        return "generated"

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        raise NotImplementedError

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets. `data_dir` is not used.

        Raises
        ------
        ConfigurationError
            If the options allow too few different sequences for three sets.
        """
        del data_dir
        taken: set[bytes] = set()
        sets = {}
        for (stream, number), count in zip(STREAMS.items(), self.sizes, strict=True):
            random = np.random.default_rng([self.seed, number])
            sets[stream] = self._generate_new(random, count, taken, stream)
            taken.update(_digests(sets[stream]))
        return Dataset(self.name, self.shape, **sets)

    def refuse_options_of_generator(self, but: tuple[str, ...] = ()) -> None:
        """Raise ConfigurationError if an option other than ``source`` and `but` is set: files are read as they are."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("source", *but) and value != field.default:
                raise ConfigurationError(
                    f"key 'task_options': {field.name} is set to {value!r}, but {self.name} is read from files (source = 'files'); leave it out"
                )

    def _generate_new(self, random: np.random.Generator, count: int, taken: set[bytes], stream: str) -> Sequences:
        found: list[Sequences] = []
        missing = count
        for _ in range(ROUNDS_OF_REPLACEMENT):
            drawn = self.generate(random, missing)
            new = torch.tensor([digest not in taken for digest in _digests(drawn)], dtype=torch.bool)
            missing -= int(new.sum())
            found.append(drawn if bool(new.all()) else _select(drawn, new))
            if not missing:
                return found[0] if len(found) == 1 else _concatenate(found)
        raise ConfigurationError(
            f"key 'task_options': {self.name} has too few different sequences for three sets with these options: {missing} of {count} "
            f"{stream} sequences are missing after {ROUNDS_OF_REPLACEMENT} rounds; ask for fewer or longer ones"
        )


def _digests(sequences: Sequences) -> list[bytes]:
    rows = sequences.inputs.numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _select(sequences: Sequences, chosen: torch.Tensor) -> Sequences:
    lengths = None if sequences.lengths is None else sequences.lengths[chosen]
    return dataclasses.replace(
        sequences, inputs=sequences.inputs[chosen], labels=sequences.labels[chosen], lengths=lengths
    )


def _concatenate(parts: list[Sequences]) -> Sequences:
    lengths = [part.lengths for part in parts if part.lengths is not None]
    return dataclasses.replace(
        parts[0],
        inputs=torch.cat([part.inputs for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        lengths=torch.cat(lengths) if lengths else None,
    )


def compact(numbers: np.ndarray, least: int, most: int) -> torch.Tensor:
    """Return integers from `least` to `most` in the smallest type for these: bytes, or 8, 16, 32 or 64 bits with a sign."""
    for dtype in (np.uint8, np.int8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= least and most <= limits.max:
            return torch.from_numpy(numbers.astype(dtype))
    return torch.from_numpy(numbers.astype(np.int64))


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """Return, for each label, how many equal labels stand before it.

    Splits are made from this place, without a random number, so that every class has its share in each set and the
    split is the same on every machine and in every version of every library.
    """
    places = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = np.arange(len(members))
    return places
