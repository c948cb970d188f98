"""Pathfinder: do two discs lie on the same dashed curve? Generated, or read from the pictures of the Long Range Arena."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from paper_repro.errors import DataError
from paper_repro.sequences import Dataset, PixelScale, Sequences, TaskShape
from paper_repro.tasks.curves import make_pictures
from paper_repro.tasks.files import Files, Layout
from paper_repro.tasks.task import GeneratedTask, Option, option, place_in_class

SIDE = 32
THICKNESS = 1.0  # of a dash, in pixels
MIDDLE_GREY = PixelScale((0.5,), (0.5,))  # pixels from -1 to 1
PATHFINDER_FOLDERS = (Path("data"), Path("data/pathfinder32"))
EMPTY_FILES = 0.001  # the archive has one empty picture in 200,000; a larger part was not unpacked


@dataclass(frozen=True)
class Difficulty:
    """Dashes of a long curve, how straight it is, and the folder of the Long Range Arena that has such pictures."""

    contour: int
    continuity: float
    folder: str


# The published continuity is 1.8; the Long Range Arena has 1.0 for the longest curves at 32 x 32, which else find no room.
DIFFICULTIES = {
    "easy": Difficulty(6, 1.8, "curv_baseline"),
    "intermediate": Difficulty(9, 1.8, "curv_contour_length_9"),
    "hard": Difficulty(14, 1.0, "curv_contour_length_14"),
}


@dataclass(frozen=True)
class Pathfinder(GeneratedTask):
    """1 if the two discs of a picture lie on the same curve, 0 if on two; 32 x 32 grey pixels read row by row: sequences of length 1,024.

    Pixels run from -1 to 1. The sets have the sizes of the Long Range Arena: 80, 10 and 10 per cent of 200,000 pictures. Of every ten pictures of a class in its files, in
    the order of their lists, eight are for training, the ninth for validation and the tenth for the test; pictures whose file is empty are left out, as there.
    Source: see `paper_repro.tasks.curves`.
    """

    name: ClassVar[str] = "pathfinder"
    summary: ClassVar[str] = "two discs on one dashed curve or on two"
    reference: ClassVar[str] = "Kim et al., ICLR 2020; LRA, 2021"
    small: ClassVar[Mapping[str, Option]] = {"n_train": 400, "n_validation": 60, "n_test": 80}

    n_train: int = option(160_000, "training sequences")
    n_validation: int = option(20_000, "validation sequences")
    n_test: int = option(20_000, "test sequences")
    source: Literal["generated", "files"] = option("generated", "or the files of the Long Range Arena")
    difficulty: Literal["easy", "intermediate", "hard"] = option("easy", "6, 9 or 14 dashes in a long curve")

    def check(self) -> None:
        """Raise ConfigurationError if files are to be read and options of the generator are set."""
        if self.source == "files":
            self.refuse_options_of_generator(but=("difficulty",))

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(n_inputs=1, n_outputs=2)

    @property
    def longest(self) -> int:
        """Pixels of a picture."""
        return SIDE**2

    def files(self) -> Files:
        """Return where the pictures are looked for."""
        layout = Layout(
            {"lists": (f"{DIFFICULTIES[self.difficulty].folder}/metadata",)},
            inside=("", "pathfinder32", "lra_release/pathfinder32", "lra_release/lra_release/pathfinder32"),
        )
        return Files(
            f"Pathfinder ({self.difficulty})",
            {"pictures": layout},
            PATHFINDER_FOLDERS,
            "Unpack lra_release.gz of the Long Range Arena (github.com/google-research/long-range-arena) and name the folder that holds "
            "pathfinder32 with --data-dir; or leave the option 'source' at 'generated'.",
        )

    def where(self) -> str:
        """Say whether the task is generated, or where its files are looked for."""
        return "generated" if self.source == "generated" else ", ".join(str(place) for place in self.files().places)

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets, generated or from files.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        """
        if self.source == "generated":
            return super().load(data_dir)
        _, paths = self.files().find(data_dir)
        pictures, labels = read_pictures(paths["lists"])
        place = place_in_class(labels) % 10
        sets = {"train": place < 8, "validation": place == 8, "test": place == 9}
        return Dataset(
            self.name,
            self.shape,
            **{part: as_sequences(pictures[members], labels[members]) for part, members in sets.items()},
        )

    def generate(self, random: np.random.Generator, count: int) -> Sequences:
        """Return `count` sequences, drawn with `random`."""
        difficulty = DIFFICULTIES[self.difficulty]
        pictures, labels, made = make_pictures(
            random,
            count,
            contour=difficulty.contour,
            side=SIDE,
            continuity=difficulty.continuity,
            thickness=THICKNESS,
        )
        assert made == count, "the curves of every difficulty find room"
        return as_sequences(pictures, labels)


def as_sequences(pictures: np.ndarray, labels: np.ndarray) -> Sequences:
    """Return pictures ``(count, side, side)``, bytes, as sequences of pixels."""
    pixels = torch.from_numpy(pictures.reshape(len(pictures), -1, 1))
    return Sequences(pixels, torch.from_numpy(labels), pixels=MIDDLE_GREY)


def read_pictures(lists: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures ``(count, 32, 32)``, bytes, and labels, in the order of the lists ``0.npy``, ``1.npy``, ... in the folder `lists`.

    Raises
    ------
    DataError
        If a list or a picture is missing or damaged.
    """
    root = lists.parent
    names = [(root / folder / name, label) for path in _numbered(lists) for folder, name, label in _entries(path)]
    rows, labels = bytearray(), []
    for path, label in names:
        picture = _read_picture(path)
        if picture is not None:
            rows += picture
            labels.append(label)
    if len(labels) < (1 - EMPTY_FILES) * len(names):
        raise DataError(
            f"{root}: {len(names) - len(labels)} of {len(names)} pictures are empty files; unpack the archive again"
        )
    return np.frombuffer(rows, np.uint8).reshape(-1, SIDE, SIDE), np.array(labels, np.uint8)


def _numbered(lists: Path) -> list[Path]:
    paths = list(lists.glob("*.npy"))
    strange = [path for path in paths if not path.stem.isdecimal()]
    if strange or not paths:
        found = strange[0] if strange else "none"
        raise DataError(f"{lists}: lists of pictures are called 0.npy, 1.npy, ...; found {found}")
    return sorted(paths, key=lambda path: int(path.stem))


def _entries(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield folder, name and label of each picture of a list: lines of text (as in the archive), or an array of text (as NumPy saves it)."""
    content = path.read_bytes()
    try:
        if content.startswith(b"\x93NUMPY"):
            rows = [[str(entry) for entry in row] for row in np.load(io.BytesIO(content), allow_pickle=False)]
        else:
            rows = [line.split() for line in content.decode("utf-8").splitlines()]
    except (ValueError, TypeError, EOFError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: neither text nor an array of text ({error}); unpack the archive again") from error
    if not rows:
        raise DataError(f"{path}: has no pictures; unpack the archive again")
    for number, row in enumerate(rows, start=1):
        if len(row) < 4 or row[3] not in ("0", "1"):
            raise DataError(
                f"{path}, entry {number}: folder, name, number and label (0 or 1) of a picture are expected, found {' '.join(row)[:60]!r}"
            )
        yield row[0], row[1], int(row[3])


def _read_picture(path: Path) -> bytes | None:
    """Return the grey pixels of a picture, None if its file is empty."""
    from PIL import Image

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), but its list names it") from error
    if not content:
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            pixels = image.convert("L").tobytes() if size == (SIDE, SIDE) else b""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise DataError(f"{path}: not a picture, or damaged ({error}); unpack the archive again") from error
    if not pixels:
        raise DataError(f"{path}: pictures must be {SIDE} x {SIDE} pixels, found {size[0]} x {size[1]}")
    return pixels
