"""ListOps: nested operations on lists of digits, generated, or read from the files of the Long Range Arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from paper_repro.errors import ConfigurationError, DataError
from paper_repro.sequences import Dataset, Sequences, TaskShape
from paper_repro.tasks import expressions
from paper_repro.tasks.files import Files, Layout
from paper_repro.tasks.task import GeneratedTask, Option, compact, option

LISTOPS_FOLDERS = (Path("data"), Path("data/listops"))
PARTS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class ListOps(GeneratedTask):
    """The value, 0 to 9, of an expression such as ``[MAX 4 [SM 7 6 ] 2 ]``, a token a word: ``0, ..., 9``, ``[MIN``, ``[MAX``, ``[MED``, ``[SM`` and ``]``.

    The defaults are those of the Long Range Arena: 96,000, 2,000 and 2,000 expressions of 501 to 1,999 tokens. Parentheses in the files, which bracket every
    pair of neighbours, are left out.
    Source: see `paper_repro.tasks.expressions`.
    """

    name: ClassVar[str] = "listops"
    summary: ClassVar[str] = "the value of nested operations on digits"
    reference: ClassVar[str] = "Nangia and Bowman, 2018; LRA, 2021"
    small: ClassVar[Mapping[str, Option]] = {
        "n_train": 400,
        "n_validation": 60,
        "n_test": 80,
        "min_length": 6,
        "max_length": 40,
        "max_depth": 4,
        "max_arguments": 4,
    }

    n_train: int = option(96_000, "training sequences")
    n_validation: int = option(2_000, "validation sequences")
    n_test: int = option(2_000, "test sequences")
    source: Literal["generated", "files"] = option("generated", "or the files of the Long Range Arena")
    max_depth: int = option(10, "of a digit", least=2)
    max_arguments: int = option(10, "of an operator", least=2)
    min_length: int = option(500, "tokens; every sequence has more", least=0)
    max_length: int = option(2_000, "tokens; every sequence has fewer", least=4)

    def check(self) -> None:
        """Raise ConfigurationError if no length is allowed, or if files are to be read and options of the generator are set."""
        if self.source == "files":
            self.refuse_options_of_generator()
        elif self.min_length + 1 >= self.max_length:
            raise ConfigurationError(
                f"key 'task_options': min_length + 1 < max_length must hold, got {self.min_length} and {self.max_length}"
            )

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(vocabulary=expressions.VOCABULARY, n_outputs=10)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_length - 1

    def files(self) -> Files:
        """Return where the files are looked for."""
        layout = Layout(
            {part: (f"basic_{name}.tsv",) for part, name in PARTS.items()},
            inside=("", "listops", "listops-1000", "lra_release/listops-1000", "lra_release/lra_release/listops-1000"),
        )
        return Files(
            "ListOps",
            {"tsv": layout},
            LISTOPS_FOLDERS,
            "Unpack lra_release.gz of the Long Range Arena (github.com/google-research/long-range-arena) and name the folder that holds "
            "listops-1000/basic_train.tsv, basic_val.tsv and basic_test.tsv with --data-dir; or leave the option 'source' at 'generated'.",
        )

    def where(self) -> str:
        """Say whether the task is generated, or where its files are looked for."""
        return "generated" if self.source == "generated" else ", ".join(str(place) for place in self.files().places)

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        tokens, lengths, values, made = expressions.make_expressions(
            random,
            count,
            max_depth=self.max_depth,
            max_arguments=self.max_arguments,
            min_length=self.min_length,
            max_length=self.max_length,
        )
        if made < count:
            raise ConfigurationError(
                f"key 'task_options': of {expressions.TRIES:,} expressions of listops none had more than {self.min_length} and fewer than "
                f"{self.max_length} tokens; raise max_depth or max_arguments, or widen the lengths"
            )
        return Sequences(torch.from_numpy(tokens), compact(values, 0, 9), compact(lengths, 0, self.longest))

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets, generated or from files.

        Raises
        ------
        ConfigurationError
            If the options allow too few expressions.
        DataError
            If a file is missing or damaged: every expression is evaluated and compared with the value that the file gives.
        """
        if self.source == "generated":
            return super().load(data_dir)
        _, paths = self.files().find(data_dir)
        return Dataset(self.name, self.shape, **{part: read_expressions(path) for part, path in paths.items()})


# One byte for each word; what is left of a correct line after that are single letters and spaces.
LETTER_OF_WORD = {b"[MIN": b"a", b"[MAX": b"b", b"[MED": b"c", b"[SM": b"d", b"]": b"e"}
TOKEN_OF_LETTER = np.zeros(256, np.uint8)  # 0: no word
TOKEN_OF_LETTER[np.frombuffer(b"0123456789abcde", np.uint8)] = np.arange(expressions.FIRST_DIGIT, expressions.END + 1)


def read_expressions(path: Path) -> Sequences:
    """Return the expressions of a file of the Long Range Arena: a line ``Source<tab>Target``, then an expression and its value a line.

    Raises
    ------
    DataError
        If a line is no expression, or has another value.
    """
    rows: list[np.ndarray] = []
    values: list[int] = []
    with path.open("rb") as file:
        header = file.readline().rstrip(b"\r\n")
        if header != b"Source\tTarget":
            raise DataError(f"{path}: the first line must be 'Source<tab>Target', found {_shown(header)}")
        for number, line in enumerate(file, start=2):
            source, tab, target = line.rstrip(b"\r\n").partition(b"\t")
            tokens = _tokens(source)
            value = expressions.NOT_AN_EXPRESSION if tokens is None else expressions.evaluate(tokens)
            if tokens is None or not tab or value == expressions.NOT_AN_EXPRESSION:
                raise DataError(
                    f"{path}, line {number}: not an expression, a tab and its value: {_shown(line)}; fetch it again"
                )
            if target != b"%d" % value:
                raise DataError(
                    f"{path}, line {number}: the value of the expression is {value}, the file says {_shown(target)}"
                )
            rows.append(tokens)
            values.append(value)
    if not rows:
        raise DataError(f"{path}: has no expressions")
    lengths = np.array([len(row) for row in rows])
    inputs = np.zeros((len(rows), lengths.max()), np.uint8)
    for filled, row in zip(inputs, rows, strict=True):
        filled[: len(row)] = row
    return Sequences(torch.from_numpy(inputs), compact(np.array(values), 0, 9), compact(lengths, 0, int(lengths.max())))


def _tokens(source: bytes) -> np.ndarray | None:
    """Return the tokens of an expression without its parentheses, None where a word is unknown."""
    for word, letter in LETTER_OF_WORD.items():
        source = source.replace(word, letter)
    words = source.translate(None, b"()").split()
    letters = b"".join(words)
    tokens = TOKEN_OF_LETTER[np.frombuffer(letters, np.uint8)]
    return tokens if len(letters) == len(words) and tokens.all() else None


def _shown(content: bytes) -> str:
    text = content[:60].decode("utf-8", "replace")
    return repr(text + ("..." if len(content) > 60 else ""))
