"""Texts, a byte a token: reviews of films (IMDB), and pairs of papers of which one may cite the other (AAN).

The Long Range Arena does the same and adds 1 to every byte, to keep 0 for the padding; here lengths say where a text ends, and padding is the byte 0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from paper_repro.errors import DataError
from paper_repro.sequences import Dataset, Sequences, TaskShape
from paper_repro.tasks.files import Files, Layout
from paper_repro.tasks.task import Option, Task, compact, option, place_in_class

BYTES = 256
IMDB_FOLDERS = (Path("data"), Path("data/imdb"))
AAN_FOLDERS = (Path("data"), Path("data/aan"))
AAN_PARTS = {"train": "train", "validation": "eval", "test": "test"}
AAN_COLUMNS = 5  # label, two names, two texts


class ByteTask(Task):
    """Base of the tasks of this file."""

    max_length: int
    published_sizes: ClassVar[tuple[int, int, int]]

    @property
    def longest(self) -> int:
        """Bytes that are kept of a text."""
        return self.max_length

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sequences for training, validation and test, of the published files."""
        return self.published_sizes

    def files(self) -> Files:
        """Return where the files are looked for."""
        raise NotImplementedError

    def where(self) -> str:
        """Return the folders that are looked in."""
        return ", ".join(str(place) for place in self.files().places)


@dataclass(frozen=True)
class Imdb(ByteTask):
    """1 if a review of a film is positive, 0 if negative: its first 4,096 bytes.

    The test set is the published one. The Long Range Arena has no validation set and chooses by the test set; here the last tenth of each class of the published
    training set is held out, in the order of the files' numbers: neighbouring numbers are often reviews of one film, and stay together.
    Source: A. Maas et al., "Learning word vectors for sentiment analysis", ACL 2011; as bytes Y. Tay et al., "Long Range Arena", ICLR 2021.
    """

    name: ClassVar[str] = "imdb"
    summary: ClassVar[str] = "whether a review is positive, by its bytes"
    reference: ClassVar[str] = "Maas et al., ACL 2011; LRA, 2021"
    small: ClassVar[Mapping[str, Option]] = {"max_length": 64}
    published_sizes: ClassVar[tuple[int, int, int]] = (22_500, 2_500, 25_000)

    max_length: int = option(4_096, "bytes that are kept of a text")

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=BYTES, n_outputs=2)

    def files(self) -> Files:
        """Return where the reviews are looked for."""
        folders = {f"{part} {kind}": (f"{part}/{kind}",) for part in ("train", "test") for kind in ("neg", "pos")}
        tables = {part: (f"{part}.tsv", f"imdb_{part}.tsv") for part in ("train", "test")}
        return Files(
            "IMDB",
            {
                "folders": Layout(folders, inside=("", "aclImdb", "imdb/aclImdb")),
                "tables": Layout(tables, inside=("", "imdb")),
            },
            IMDB_FOLDERS,
            "Unpack aclImdb_v1.tar.gz of the Large Movie Review Dataset (ai.stanford.edu/~amaas/data/sentiment) and name the folder that holds "
            "aclImdb with --data-dir; or write train.tsv and test.tsv with a first line 'label<tab>text' (or 'Target<tab>Source'), then 0 or 1, a tab and a "
            "review a line.",
        )

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        """
        layout, paths = self.files().find(data_dir)
        if layout == "folders":
            train, test = (
                _reviews_of_folders([paths[f"{part} neg"], paths[f"{part} pos"]], self.max_length)
                for part in ("train", "test")
            )
        else:
            train, test = (_reviews_of_table(paths[part], self.max_length) for part in ("train", "test"))
        texts, labels = train
        held_out = last_tenth_of_class(labels)
        return Dataset(
            self.name,
            self.shape,
            train=self._sequences(texts, labels, ~held_out),
            validation=self._sequences(texts, labels, held_out),
            test=self._sequences(*test),
        )

    def _sequences(self, texts: list[bytes], labels: np.ndarray, members: np.ndarray | None = None) -> Sequences:
        chosen = np.arange(len(texts)) if members is None else np.flatnonzero(members)
        inputs, lengths = pad((texts[i] for i in chosen), self.max_length)
        return Sequences(torch.from_numpy(inputs), compact(labels[chosen], 0, 1), compact(lengths, 0, self.max_length))


@dataclass(frozen=True)
class Aan(ByteTask):
    """1 if one of two papers cites the other, 0 if not: the first 4,000 bytes of each.

    A model reads the two documents apart, with the same weights, and compares what it made of them (`paper_repro.retrieval`). All three sets are the published ones.
    Source: D. Radev et al., "The ACL anthology network corpus", 2013; as bytes Y. Tay et al., "Long Range Arena", ICLR 2021.
    """

    name: ClassVar[str] = "aan"
    summary: ClassVar[str] = "whether one of two papers cites the other, by their bytes"
    reference: ClassVar[str] = "Radev et al., 2013; LRA, 2021"
    small: ClassVar[Mapping[str, Option]] = {"max_length": 64}
    published_sizes: ClassVar[tuple[int, int, int]] = (147_086, 18_090, 17_437)

    max_length: int = option(4_000, "bytes that are kept of a text")

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=BYTES, n_outputs=2, documents=2)

    def files(self) -> Files:
        """Return where the pairs are looked for."""
        layout = Layout(
            {part: (f"new_aan_pairs.{name}.tsv",) for part, name in AAN_PARTS.items()},
            inside=("", "aan", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data"),
        )
        return Files(
            "AAN",
            {"tsv": layout},
            AAN_FOLDERS,
            "Unpack lra_release.gz of the Long Range Arena (github.com/google-research/long-range-arena) and name the folder that holds "
            "tsv_data/new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv with --data-dir.",
        )

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        """
        _, paths = self.files().find(data_dir)
        return Dataset(self.name, self.shape, **{part: self._pairs(path) for part, path in paths.items()})

    def _pairs(self, path: Path) -> Sequences:
        labels: list[int] = []

        def texts() -> Iterator[bytes]:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    columns = line.rstrip(b"\r\n").split(b"\t")
                    if len(columns) != AAN_COLUMNS:
                        raise DataError(
                            f"{path}, line {number}: {AAN_COLUMNS} columns between tabs (label, two names, two texts) are expected, found {len(columns)}; "
                            "fetch it again"
                        )
                    labels.append(_label(columns[0], path, number))
                    yield from columns[3:]

        inputs, lengths = pad(texts(), self.max_length)
        if not labels:
            raise DataError(f"{path}: has no pairs")
        return Sequences(
            torch.from_numpy(inputs).unflatten(0, (-1, 2)),
            compact(np.array(labels), 0, 1),
            compact(lengths.reshape(-1, 2), 0, self.max_length),
        )


def pad(texts: Iterable[bytes], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first bytes of each text ``(count, max_length)``, filled up with 0, and how many there are; an empty text is one byte 0."""
    rows, lengths = bytearray(), []  # one text after the other: lists of them would take the memory twice
    for text in texts:
        kept = text[:max_length]
        rows += kept.ljust(max_length, b"\0")
        lengths.append(max(1, len(kept)))
    return np.frombuffer(rows, np.uint8).reshape(-1, max_length), np.array(lengths)


def last_tenth_of_class(labels: np.ndarray) -> np.ndarray:
    """Return which labels are in the last tenth of those that are equal."""
    counts = np.bincount(labels)
    return place_in_class(labels) * 10 >= 9 * counts[labels]


def _reviews_of_folders(folders: list[Path], max_length: int) -> tuple[list[bytes], np.ndarray]:
    """Return the reviews in the files ``<number>_<stars>.txt`` of one folder a class, in the order of their numbers."""
    texts: list[bytes] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        numbers: dict[int, Path] = {}
        for path in folder.glob("*.txt"):
            number = path.stem.partition("_")[0]
            if not number.isdecimal():
                raise DataError(f"{path}: reviews are called <number>_<stars>.txt")
            numbers[int(number)] = path
        if not numbers:
            raise DataError(f"{folder}: has no reviews (<number>_<stars>.txt)")
        texts += [_beginning(numbers[key], max_length) for key in sorted(numbers)]
        labels += [label] * len(numbers)
    return texts, np.array(labels)


def _beginning(path: Path, max_length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(max_length)


def _reviews_of_table(path: Path, max_length: int) -> tuple[list[bytes], np.ndarray]:
    """Return the reviews of a table with a column for the label and one for the text, in the order of its lines."""
    texts: list[bytes] = []
    labels: list[int] = []
    for number, (label, text) in _rows(path):
        texts.append(text.encode()[:max_length])
        labels.append(_label(label.encode(), path, number))
    if set(labels) != {0, 1}:
        raise DataError(
            f"{path}: reviews of both classes, 0 and 1, are expected, found {sorted(set(labels)) or 'none'}"
        )
    return texts, np.array(labels)


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(reader, [])
            names = ("label", "text") if {"label", "text"} <= set(header) else ("Target", "Source")
            if not set(names) <= set(header):
                raise DataError(f"{path}: the first line must name the columns label and text, found {header}")
            label, text = (header.index(name) for name in names)
            for row in reader:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(header)} columns between tabs are expected, found {len(row)}"
                    )
                yield reader.line_num, (row[label], row[text])
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: not a table of UTF-8 text with tabs ({error}); fetch it again") from error


def _label(text: bytes, path: Path, number: int) -> int:
    labels = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
    if text not in labels:
        shown = text[:20].decode("utf-8", "replace")
        raise DataError(f"{path}, line {number}: the label must be 0 or 1, found {shown!r}")
    return labels[text]
