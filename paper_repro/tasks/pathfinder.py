"""Pathfinder: do two discs lie on the same dashed curve? Generated, or read from the pictures of the Long Range Arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from paper_repro.sequences import PixelScale, Sequences, TaskShape
from paper_repro.tasks.curves import make_pictures
from paper_repro.tasks.task import GeneratedTask, Option, option

SIDE = 32
THICKNESS = 1.0  # of a dash, in pixels
MIDDLE_GREY = PixelScale((0.5,), (0.5,))  # pixels from -1 to 1


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

    Pixels run from -1 to 1. The sets have the sizes of the Long Range Arena: 80, 10 and 10 per cent of 200,000 pictures.
    Source: see `paper_repro.tasks.curves`.
    """

    name: ClassVar[str] = "pathfinder"
    summary: ClassVar[str] = "two discs on one dashed curve or on two"
    reference: ClassVar[str] = "Kim et al., ICLR 2020; LRA, 2021"
    small: ClassVar[Mapping[str, Option]] = {"n_train": 400, "n_validation": 60, "n_test": 80}

    n_train: int = option(160_000, "training sequences")
    n_validation: int = option(20_000, "validation sequences")
    n_test: int = option(20_000, "test sequences")
    source: Literal["generated"] = option("generated", "or the files of the Long Range Arena")
    difficulty: Literal["easy", "intermediate", "hard"] = option("easy", "6, 9 or 14 dashes in a long curve")

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(n_inputs=1, n_outputs=2)

    @property
    def longest(self) -> int:
        """Pixels of a picture."""
        return SIDE**2

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
