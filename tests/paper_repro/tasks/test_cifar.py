import os
import pickle
import struct

import numpy as np
import pytest
import torch

from paper_repro.errors import DataError
from paper_repro.tasks import load_dataset
from paper_repro.tasks.cifar import read_batch
from paper_repro.tasks.images import COLOUR_SCALE, to_grey

PARTS = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)


def planes(images):
    return images.reshape(len(images), -1)  # all red pixels, all green, all blue


def as_python_2(images, labels):
    """Write what Python 2 wrote: the opcodes of protocol 2, with texts of bytes and the old name of NumPy's function."""

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content  # BINSTRING

    def number(value):
        return b"J" + struct.pack("<i", value)  # BININT

    shape = number(len(images)) + number(3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
    array += b"(" + number(1) + shape + dtype + b"\x89" + text(planes(images).tobytes()) + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    entries = [(b"batch_label", text(b"a batch")), (b"labels", listed), (b"data", array)]
    entries.append((b"filenames", b"](" + b"".join(text(b"%d.png" % i) for i in range(len(labels))) + b"e"))
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries) + b"u."


def as_pickle(protocol):
    def write(images, labels):
        return pickle.dumps({b"data": planes(images), b"labels": labels.tolist()}, protocol=protocol)

    return write


def as_binary(images, labels):
    return np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1).tobytes()


WRITERS = {"python 2": as_python_2, "protocol 2": as_pickle(2), "protocol 4": as_pickle(4), "binary": as_binary}


def write_all(folder, writer, ending="", per_batch=20):
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(PARTS):
        images, _ = pictures(per_batch, number)
        (folder / f"{part}{ending}").write_bytes(writer(images, np.arange(per_batch) % 10))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_form_gives_the_same_pictures(tmp_path, kind):
    images, labels = pictures(7)
    path = tmp_path / "batch"
    path.write_bytes(WRITERS[kind](images, labels))
    found, found_labels = read_batch(path, python=kind != "binary")
    np.testing.assert_array_equal(found, images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found_labels, labels)


def test_the_python_2_form_is_what_pickle_reads_without_our_limits(tmp_path):
    images, labels = pictures(3)
    content = as_python_2(images, labels).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    batch = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], planes(images))
    assert batch[b"labels"] == labels.tolist()


class Malicious:
    def __reduce__(self):
        return os.system, ("echo called > called",)


def test_no_function_of_the_file_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps({b"data": Malicious(), b"labels": []}), pickle.dumps(Malicious(), protocol=0)):
        (tmp_path / "batch").write_bytes(content)
        with pytest.raises(DataError, match=r"batch: a batch of CIFAR-10 needs no \w+\.system; the file is refused"):
            read_batch(tmp_path / "batch", python=True)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("content", "python", "words"),
    [
        (b"", True, "not a pickled batch"),
        (b"\x89PNG\r\n", True, "not a pickled batch"),
        (as_python_2(*pictures(4))[:5000], True, "not a pickled batch of CIFAR-10, or damaged"),
        (pickle.dumps([1, 2]), True, "a pickled batch is a dict, found list"),
        (pickle.dumps({b"data": 3}), True, r"has an array 'data' and a list 'labels', found \['data'\]"),
        (pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}), True, r"shape \(2, 3072\), found uint8 \(2, 3\)"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}), True, "an array of 'f8', where pictures are bytes"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]}), True, "'labels' must be integers"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), True, "labels must lie in 0 to 9, found 10 to 10"),
        (b"", False, "records of 3073 bytes, but the file has 0"),
        (b"\0" * 3072, False, "records of 3073 bytes, but the file has 3072"),
        (b"\x0b" + b"\0" * 3072, False, "labels must lie in 0 to 9, found 11 to 11"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, content, python, words):
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_batch(path, python=python)


def test_flipped_bytes_are_read_or_named(tmp_path):
    images, labels = pictures(1)
    good = as_python_2(images, labels)
    path = tmp_path / "batch"
    random = np.random.default_rng(0)
    named = 0
    for _ in range(300):
        content = bytearray(good)
        content[random.integers(150)] = random.integers(256)
        path.write_bytes(content)
        try:
            found, _ = read_batch(path, python=True)
        except DataError:
            named += 1
        else:
            assert found.shape == (1, 32, 32, 3)
    assert 100 < named < 300


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_a_tenth_of_each_class_is_held_out_of_the_training_batches(tmp_path, inside):
    write_all(tmp_path / inside, as_python_2)
    dataset = load_dataset("cifar10", tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (90, 10, 20)
    assert torch.bincount(dataset.validation.labels).tolist() == [1] * 10
    assert dataset.train.inputs.shape == (90, 1024, 3)
    assert dataset.train.inputs.dtype == torch.uint8
    first, _ = pictures(20, 0)
    expected = (first[0, :, 0, 1] / 255 - np.array(COLOUR_SCALE.mean)) / np.array(COLOUR_SCALE.std)
    np.testing.assert_allclose(dataset.train.batch(slice(1)).inputs[0, 1], expected, rtol=1e-5)


def test_binary_batches_give_the_same_dataset(tmp_path):
    write_all(tmp_path / "a/cifar-10-batches-py", as_python_2)
    write_all(tmp_path / "b/cifar-10-batches-bin", as_binary, ".bin")
    one, other = load_dataset("cifar10", tmp_path / "a"), load_dataset("cifar10", tmp_path / "b")
    assert torch.equal(one.validation.inputs, other.validation.inputs)
    assert torch.equal(one.test.labels, other.test.labels)


def test_grey_is_brightness(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], np.uint8)
    assert to_grey(colours)[0, :, 0].tolist() == [76, 150, 29, 255, 0]
    write_all(tmp_path, as_python_2)
    dataset = load_dataset("cifar10", tmp_path, {"grey": True})
    assert dataset.shape.n_inputs == 1
    assert dataset.train.inputs.shape == (90, 1024, 1)


def test_a_missing_batch_says_where_and_how(tmp_path):
    write_all(tmp_path / "cifar-10-batches-py", as_python_2)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/cifar-10-batches-py/data_batch_3\n" in message
    assert f"{tmp_path}/cifar-10-batches-py/data_batch_2\n" not in message
    assert f"{tmp_path}/cifar-10-batches-bin/ (no such folder)" in message
    assert "cifar-10-python.tar.gz" in message
    assert "--data-dir" in message
