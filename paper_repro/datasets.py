"""The tasks by name: images as pixel sequences here, generated tasks from `paper_repro.synthetic`, each with one fixed split.

No split depends on a run's seed, and no validation sequence is a test sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper_repro.errors import ConfigurationError, DataError
from paper_repro.idx import read_idx
from paper_repro.sequences import Dataset, Sequences, TaskShape
from paper_repro.synthetic import GENERATED_TASKS, GeneratedTask

FASHION_MNIST_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


PICTURES_IN_TEN_CLASSES = TaskShape(n_inputs=1, n_outputs=10)


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


def load_digits(data_dir: Path | None = None) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels read row by row: sequences of length 64.

    Of every five digits of a class, in the order of the collection, three are for training, the fourth for validation
    and the fifth for the test. Pixels run from 0 to 1. `data_dir` is not used: the digits come with scikit-learn.
    """
    del data_dir
    from sklearn.datasets import load_digits as load_digits_of_sklearn

    images, labels = load_digits_of_sklearn(return_X_y=True)
    fifth = place_in_class(labels) % 5
    return Dataset(
        "digits",
        PICTURES_IN_TEN_CLASSES,
        train=_sequences(images[fifth < 3] / 16, labels[fifth < 3]),
        validation=_sequences(images[fifth == 3] / 16, labels[fifth == 3]),
        test=_sequences(images[fifth == 4] / 16, labels[fifth == 4]),
    )


def load_fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Return Fashion-MNIST, 28 x 28 pixels read row by row: sequences of length 784.

    The test set is the published one; every tenth picture of a class of the published training set is for validation.
    Pixels run from 0 to 1.

    Parameters
    ----------
    data_dir : Path, optional
        Folder of the four idx files, compressed or not. Default: the first of `FASHION_MNIST_FOLDERS` that has them.

    Raises
    ------
    DataError
        If a file is missing or damaged, or if images and labels do not fit together.
    """
    folder = _fashion_mnist_folder(data_dir)
    images, labels = _labelled_images(folder, "train")
    test_images, test_labels = _labelled_images(folder, "test")
    held_out = place_in_class(labels) % 10 == 9
    return Dataset(
        "fashion_mnist",
        PICTURES_IN_TEN_CLASSES,
        train=_sequences(images[~held_out] / np.float32(255), labels[~held_out]),
        validation=_sequences(images[held_out] / np.float32(255), labels[held_out]),
        test=_sequences(test_images / np.float32(255), test_labels),
    )


IMAGE_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
}


def load_dataset(name: str, data_dir: Path | None = None, options: Mapping[str, Any] | None = None) -> Dataset:
    """Return the dataset of the task `name`, with `options` where it is a generated one.

    Raises
    ------
    ConfigurationError
        If an option is unknown or impossible.
    """
    if name in GENERATED_TASKS:
        return _generated(name, options).load()
    _refuse_options(name, options)
    return IMAGE_LOADERS[name](data_dir)


def task_shape(name: str, options: Mapping[str, Any] | None = None) -> TaskShape:
    """Return what a model of the task `name` must take and give, without its data."""
    if name in GENERATED_TASKS:
        return _generated(name, options).shape
    _refuse_options(name, options)
    return PICTURES_IN_TEN_CLASSES


def _generated(name: str, options: Mapping[str, Any] | None) -> GeneratedTask:
    return GENERATED_TASKS[name].from_options(options or {})


def _refuse_options(name: str, options: Mapping[str, Any] | None) -> None:
    if options:
        raise ConfigurationError(
            f"key 'task_options': {name} is not generated and has none, got {dict(options)}; tasks that have: "
            f"{', '.join(GENERATED_TASKS)}"
        )


def _sequences(images: np.ndarray, labels: np.ndarray) -> Sequences:
    pixels = np.ascontiguousarray(images, dtype=np.float32).reshape(len(images), -1, 1)  # (count, length, 1)
    return Sequences(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _fashion_mnist_folder(data_dir: Path | None) -> Path:
    names = [name for pair in FASHION_MNIST_FILES.values() for name in pair]
    folders = (data_dir,) if data_dir is not None else FASHION_MNIST_FOLDERS
    for folder in folders:
        if all(_find(folder, name) for name in names):
            return folder
    missing = [f"{folder}/{name}[.gz]" for folder in folders for name in names if _find(folder, name) is None]
    raise DataError(
        "Fashion-MNIST was not found. Looked for, and did not find:\n  "
        + "\n  ".join(missing)
        + "\nOn Debian and Ubuntu `apt install dataset-fashion-mnist` puts the files into "
        + f"{FASHION_MNIST_FOLDERS[0]}; elsewhere fetch the four idx files of github.com/zalandoresearch/fashion-mnist "
        + "and name their folder with --data-dir."
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _labelled_images(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    image_path, label_path = (_find(folder, name) for name in FASHION_MNIST_FILES[part])
    assert image_path is not None
    assert label_path is not None
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{image_path} and {label_path} do not fit together: shapes {images.shape} and {labels.shape}, "
            "expected (count, rows, columns) and (count,)"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        raise DataError(f"{label_path}: labels must lie in 0 to 9, found {labels.min()} to {labels.max()}")
    return images, labels
