"""Data files in the true formats with hardly anything in them, for runs that only show whether everything works."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES = 10
PICTURES, TEST_PICTURES = 10 * CLASSES, 2 * CLASSES  # ten of each class: one of them is for validation
TEXTS = 20  # of each class
WORDS = ("a", "film", "that", "was", "good", "bad", "long", "and", "not", "seen")


def write_tiny_files(task: str, folder: Path) -> None:
    """Write the files of `task` into `folder`.

    Raises
    ------
    KeyError
        If the task has no files, see `WRITERS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[task](folder, np.random.default_rng(0))


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write bytes as an idx file: two zeros, the type, the number of axes, their lengths, the bytes."""
    header = bytes([0, 0, 0x08, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def _write_pictures(folder: Path, random: np.random.Generator) -> None:
    for prefix, count in (("train", PICTURES), ("t10k", TEST_PICTURES)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % CLASSES)


def _write_cifar(folder: Path, random: np.random.Generator) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(exist_ok=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = random.integers(0, 256, (TEST_PICTURES, 3 * 32 * 32), dtype=np.uint8)
        batch = {b"data": data, b"labels": [number % CLASSES for number in range(TEST_PICTURES)]}
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))


def _write_reviews(folder: Path, random: np.random.Generator) -> None:
    for part in ("train", "test"):
        for kind, stars in (("neg", 2), ("pos", 9)):
            own = folder / "aclImdb" / part / kind
            own.mkdir(parents=True, exist_ok=True)
            for number in range(TEXTS):
                (own / f"{number}_{stars}.txt").write_text(_text(random), encoding="utf-8")


def _write_pairs(folder: Path, random: np.random.Generator) -> None:
    for part in ("train", "eval", "test"):
        rows = [f"{number % 2}\tP{number}\tQ{number}\t{_text(random)}\t{_text(random)}\n" for number in range(TEXTS)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(rows), encoding="utf-8")


def _text(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(2, 20)))


WRITERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "mnist": _write_pictures,
    "fashion_mnist": _write_pictures,
    "cifar10": _write_cifar,
    "imdb": _write_reviews,
    "aan": _write_pairs,
}
