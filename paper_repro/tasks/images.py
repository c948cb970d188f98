"""Pictures read pixel by pixel, row by row: digits of scikit-learn, MNIST, Fashion-MNIST, CIFAR-10.

The test sets are the published ones. Where no validation set was published, every tenth picture of a class of the training set is held out for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from paper_repro.errors import DataError
from paper_repro.idx import read_idx
from paper_repro.sequences import Dataset, PixelScale, Sequences, TaskShape
from paper_repro.tasks.cifar import read_batch
from paper_repro.tasks.files import Files, Layout
from paper_repro.tasks.task import Task, option, place_in_class

CLASSES = 10
FASHION_MNIST_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
MNIST_FOLDERS = (Path("data/mnist"), Path("data/MNIST/raw"))
CIFAR_10_FOLDERS = (Path("data"), Path("data/cifar10"))

# Means and standard deviations of the pixels of CIFAR-10's training pictures; grey is what ITU-R BT.601 says.
COLOUR_SCALE = PixelScale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
GREY_SCALE = PixelScale((0.4808,), (0.2392,))
GREY_WEIGHTS = (0.299, 0.587, 0.114)


def idx_layout(inside: tuple[str, ...]) -> Layout:
    """Return the four idx files of MNIST and its relatives, under either of their usual names."""
    names = {
        "train images": "train-images-idx3-ubyte",
        "train labels": "train-labels-idx1-ubyte",
        "test images": "t10k-images-idx3-ubyte",
        "test labels": "t10k-labels-idx1-ubyte",
    }
    files = {part: (name, name.replace("-idx", ".idx")) for part, name in names.items()}
    return Layout(files, inside=inside, compressed=True)


class Pictures(Task):
    """Base of the tasks that are pictures in ten classes."""

    side: ClassVar[int]
    published_sizes: ClassVar[tuple[int, int, int]]

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(n_inputs=1, n_outputs=CLASSES)

    @property
    def longest(self) -> int:
        """Pixels of a picture."""
        return self.side**2

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Pictures for training, validation and test."""
        return self.published_sizes

    def hold_out(
        self, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], pixels: PixelScale
    ) -> Dataset:
        """Return the three sets from the published two, bytes ``(count, ..., channels)`` and labels each."""
        images, labels = train
        held_out = place_in_class(labels) % 10 == 9
        return Dataset(
            self.name,
            self.shape,
            train=_sequences(images[~held_out], labels[~held_out], pixels),
            validation=_sequences(images[held_out], labels[held_out], pixels),
            test=_sequences(*test, pixels),
        )


@dataclass(frozen=True)
class Digits(Pictures):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 17 grey values: sequences of length 64.

    Of every five digits of a class, in the order of the collection, three are for training, the fourth for validation
    and the fifth for the test. Pixels run from 0 to 1.
    """

    name: ClassVar[str] = "digits"
    summary: ClassVar[str] = "handwritten digits of scikit-learn"
    reference: ClassVar[str] = "scikit-learn, load_digits; UCI, 1998"
    side: ClassVar[int] = 8
    published_sizes: ClassVar[tuple[int, int, int]] = (1_085, 357, 355)

    def where(self) -> str:
        """Say that the digits come with scikit-learn."""
        return "comes with scikit-learn"

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets. `data_dir` is not used."""
        del data_dir
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy((images / 16).astype(np.float32))[:, :, None]  # (count, length, 1)
        fifth = place_in_class(labels) % 5

        def chosen(members: np.ndarray) -> Sequences:
            return Sequences(pixels[torch.from_numpy(members)], torch.from_numpy(labels[members].astype(np.uint8)))

        return Dataset(
            self.name, self.shape, train=chosen(fifth < 3), validation=chosen(fifth == 3), test=chosen(fifth == 4)
        )


class IdxPictures(Pictures):
    """Base of MNIST and its relatives: 28 x 28 grey pixels, in four idx files."""

    side: ClassVar[int] = 28
    published_sizes: ClassVar[tuple[int, int, int]] = (54_000, 6_000, 10_000)

    def files(self) -> Files:
        """Return where the idx files are looked for."""
        raise NotImplementedError

    def where(self) -> str:
        """Return the folders that are looked in."""
        return ", ".join(str(place) for place in self.files().places)

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets, pixels from 0 to 1.

        Raises
        ------
        DataError
            If a file is missing or damaged, or if images and labels do not fit together.
        """
        _, paths = self.files().find(data_dir)
        train, test = (
            _labelled_images(paths[f"{part} images"], paths[f"{part} labels"], self.side) for part in ("train", "test")
        )
        return self.hold_out(train, test, PixelScale())


@dataclass(frozen=True)
class FashionMnist(IdxPictures):
    """Fashion-MNIST, 28 x 28 pixels: sequences of length 784.

    Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.
    """

    name: ClassVar[str] = "fashion_mnist"
    summary: ClassVar[str] = "clothes, pixel by pixel"
    reference: ClassVar[str] = "Xiao et al., Fashion-MNIST, 2017"

    def files(self) -> Files:
        """Return where the idx files are looked for."""
        return Files(
            "Fashion-MNIST",
            {"idx": idx_layout(("", "fashion-mnist", "FashionMNIST/raw"))},
            FASHION_MNIST_FOLDERS,
            "On Debian and Ubuntu `apt install dataset-fashion-mnist` puts the files into "
            f"{FASHION_MNIST_FOLDERS[0]}; elsewhere fetch the four idx files of github.com/zalandoresearch/fashion-mnist "
            "and name their folder with --data-dir.",
        )


@dataclass(frozen=True)
class Mnist(IdxPictures):
    """Sequential MNIST, 28 x 28 pixels: sequences of length 784.

    Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998; as sequences Q. Le, N. Jaitly and G. Hinton, 2015.
    """

    name: ClassVar[str] = "mnist"
    summary: ClassVar[str] = "handwritten digits, pixel by pixel (sMNIST)"
    reference: ClassVar[str] = "LeCun, Cortes and Burges, 1998"

    def files(self) -> Files:
        """Return where the idx files are looked for."""
        return Files(
            "MNIST",
            {"idx": idx_layout(("", "mnist", "MNIST/raw"))},
            MNIST_FOLDERS,
            "Fetch the four idx files of the MNIST database (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
            "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz), plain or compressed, and name their folder with "
            "--data-dir.",
        )


@dataclass(frozen=True)
class Cifar10(Pictures):
    """Sequential CIFAR-10, 32 x 32 pixels of three colours: sequences of length 1,024.

    Pixels are shifted and scaled by mean and standard deviation of the published training set, a channel.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """

    name: ClassVar[str] = "cifar10"
    summary: ClassVar[str] = "photographs, pixel by pixel (sCIFAR)"
    reference: ClassVar[str] = "Krizhevsky, 2009; grey: LRA, 2021"
    side: ClassVar[int] = 32
    published_sizes: ClassVar[tuple[int, int, int]] = (45_000, 5_000, 10_000)

    grey: bool = option(False, "one channel, as the Long Range Arena has it")

    @property
    def shape(self) -> TaskShape:
        """What a model must take and give."""
        return TaskShape(n_inputs=1 if self.grey else 3, n_outputs=CLASSES)

    def files(self) -> Files:
        """Return where the batches are looked for."""
        parts = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]

        def layout(ending: str, folder: str) -> Layout:
            return Layout({part: (part + ending,) for part in parts}, inside=("", folder, f"cifar10/{folder}"))

        return Files(
            "CIFAR-10",
            {"python": layout("", "cifar-10-batches-py"), "binary": layout(".bin", "cifar-10-batches-bin")},
            CIFAR_10_FOLDERS,
            "Fetch cifar-10-python.tar.gz or cifar-10-binary.tar.gz of the CIFAR-10 page of the University of Toronto, unpack it, "
            "and name the folder that holds cifar-10-batches-py or cifar-10-batches-bin with --data-dir.",
        )

    def where(self) -> str:
        """Return the folders that are looked in."""
        return ", ".join(str(place) for place in self.files().places)

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Return the three sets.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        """
        layout, paths = self.files().find(data_dir)
        batches = {part: read_batch(path, python=layout == "python") for part, path in paths.items()}
        test = batches.pop("test_batch")
        images, labels = (np.concatenate(parts) for parts in zip(*batches.values(), strict=True))
        if not self.grey:
            return self.hold_out((images, labels), test, COLOUR_SCALE)
        return self.hold_out((to_grey(images), labels), (to_grey(test[0]), test[1]), GREY_SCALE)


def to_grey(images: np.ndarray) -> np.ndarray:
    """Return the brightness ``(..., 1)`` of bytes ``(..., 3)``, rounded to bytes."""
    return np.rint(images @ np.array(GREY_WEIGHTS)).astype(np.uint8)[..., None]


def _sequences(images: np.ndarray, labels: np.ndarray, pixels: PixelScale) -> Sequences:
    channels = len(pixels.mean)
    rows = np.ascontiguousarray(images).reshape(len(images), -1, channels)  # (count, length, channels)
    return Sequences(torch.from_numpy(rows), torch.from_numpy(labels.astype(np.uint8)), pixels=pixels)


def _labelled_images(image_path: Path, label_path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{image_path} and {label_path} do not fit together: shapes {images.shape} and {labels.shape}, "
            "expected (count, rows, columns) and (count,)"
        )
    if images.dtype != np.uint8 or images.shape[1:] != (side, side):
        raise DataError(
            f"{image_path}: pictures must be {side} x {side} bytes, found {images.shape[1:]} of {images.dtype}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < CLASSES:
        raise DataError(f"{label_path}: labels must lie in 0 to 9, found {labels.min()} to {labels.max()}")
    return images, labels
