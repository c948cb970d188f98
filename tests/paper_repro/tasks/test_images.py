import gzip
import struct

import numpy as np
import pytest
import torch

from paper_repro.errors import DataError
from paper_repro.tasks import images, load_dataset


def write_idx(path, array, compress):
    header = bytes([0, 0, 0x08, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_fashion_mnist(folder, *, compress=False, n_train=200, n_test=20, n_test_labels=None):
    rng = np.random.default_rng(0)
    for prefix, count, n_labels in (("train", n_train, n_train), ("t10k", n_test, n_test_labels or n_test)):
        images = rng.integers(0, 256, (count, 28, 28))
        if count:
            images[0, 0, 1] = 255
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images, compress)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(n_labels) % 10, compress)


def test_digits_are_split_by_class_into_three_disjoint_sets_that_never_change():
    first, second = load_dataset("digits"), load_dataset("digits")
    sets = (first.train, first.validation, first.test)
    assert [len(part) for part in sets] == [1085, 357, 355]
    for part in sets:
        assert part.inputs.shape[1:] == (64, 1)
        assert part.inputs.dtype == torch.float32
        assert 0 <= part.inputs.min() <= part.inputs.max() == 1
        counts = torch.bincount(part.labels, minlength=10) / len(part)
        assert (counts - 0.1).abs().max() < 0.01
    rows = [{picture.numpy().tobytes() for picture in part.inputs} for part in sets]
    assert not rows[0] & rows[1]
    assert not rows[1] & rows[2]
    assert not rows[0] & rows[2]
    torch.manual_seed(5)
    for part, again in zip(sets, (second.train, second.validation, second.test), strict=True):
        assert torch.equal(part.inputs, again.inputs)
        assert torch.equal(part.labels, again.labels)


def test_pixels_are_read_row_by_row(tmp_path):
    write_fashion_mnist(tmp_path)
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert dataset.train.inputs.shape == (180, 784, 1)
    assert dataset.train.inputs[0, 1, 0] == 255
    assert dataset.train.batch(slice(1)).inputs[0, 1, 0] == 1


@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_holds_every_tenth_picture_of_a_class_out(tmp_path, compress):
    write_fashion_mnist(tmp_path, compress=compress)
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (180, 20, 20)
    assert (dataset.shape.n_inputs, dataset.shape.n_outputs) == (1, 10)
    assert torch.bincount(dataset.validation.labels).tolist() == [2] * 10


def test_missing_files_say_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/t10k-labels-idx1-ubyte[.gz]" in message
    assert "train-images" not in message
    assert "apt install dataset-fashion-mnist" in message
    assert "--data-dir" in message


def test_without_a_folder_the_usual_places_are_tried_in_turn(tmp_path, monkeypatch):
    empty, full = tmp_path / "empty", tmp_path / "full"
    full.mkdir()
    write_fashion_mnist(full)
    monkeypatch.setattr(images, "FASHION_MNIST_FOLDERS", (empty, full))
    assert len(load_dataset("fashion_mnist").test) == 20
    monkeypatch.setattr(images, "FASHION_MNIST_FOLDERS", (empty,))
    with pytest.raises(DataError, match=r"empty/ \(no such folder\)"):
        load_dataset("fashion_mnist")


def test_labels_that_do_not_fit_the_images_are_an_error(tmp_path):
    write_fashion_mnist(tmp_path, n_test=20, n_test_labels=19)
    with pytest.raises(DataError, match="do not fit together"):
        load_dataset("fashion_mnist", tmp_path)
    write_fashion_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.full(20, 11), compress=False)
    with pytest.raises(DataError, match="labels must lie in 0 to 9"):
        load_dataset("fashion_mnist", tmp_path)
