import numpy as np
import pytest
import torch

from paper_repro.errors import DataError
from paper_repro.tasks import load_dataset
from paper_repro.tasks.texts import last_tenth_of_class, pad


def write_reviews(root, per_class=20):
    """Write reviews whose text says where they stand."""
    for part in ("train", "test"):
        for kind in ("pos", "neg"):
            folder = root / part / kind
            folder.mkdir(parents=True)
            for number in range(per_class):
                (folder / f"{number}_{7 if kind == 'pos' else 3}.txt").write_text(f"{part} {kind} {number} caf\u00e9")
    (root / "train/unsup").mkdir()
    (root / "train/unsup/0_0.txt").write_text("of no class")


def texts_of(sequences):
    batch = sequences.batch(slice(None))
    return [
        bytes(row[:length]).decode() for row, length in zip(batch.inputs.tolist(), batch.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("inside", ["", "aclImdb"])
def test_reviews_are_read_in_the_order_of_their_numbers_and_the_last_tenth_is_held_out(tmp_path, inside):
    write_reviews(tmp_path / inside)
    dataset = load_dataset("imdb", tmp_path)
    assert texts_of(dataset.train) == [f"train {kind} {n} café" for kind in ("neg", "pos") for n in range(18)]
    assert texts_of(dataset.validation) == [f"train {kind} {n} café" for kind in ("neg", "pos") for n in (18, 19)]
    assert texts_of(dataset.test) == [f"test {kind} {n} café" for kind in ("neg", "pos") for n in range(20)]
    assert dataset.test.labels.tolist() == [0] * 20 + [1] * 20
    assert dataset.train.inputs.shape == (36, 4096)
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.batch(slice(0, 2)).inputs.shape == (2, len("train neg 0 café".encode()))
    assert (dataset.shape.vocabulary, dataset.shape.n_outputs) == (256, 2)


def test_long_reviews_are_cut_and_an_empty_one_is_one_step(tmp_path):
    write_reviews(tmp_path)
    (tmp_path / "test/neg/0_3.txt").write_text("x" * 100)
    (tmp_path / "test/neg/1_3.txt").write_text("")
    dataset = load_dataset("imdb", tmp_path, {"max_length": 15})
    assert dataset.test.lengths[:3].tolist() == [15, 1, 15]
    assert dataset.test.inputs.shape == (40, 15)
    assert dataset.test.inputs[1].tolist() == [0] * 15


@pytest.mark.parametrize("header", ["label\ttext", "Target\tSource", "id\ttext\tlabel"])
def test_reviews_in_tables_give_the_same_split(tmp_path, header):
    columns = header.split("\t")
    for part in ("train", "test"):
        lines = [header]
        for number in range(40):
            row = {"id": "7", "text": f'{part} "{number}', "label": str(number % 2)}
            row |= {"Target": row["label"], "Source": row["text"]}
            lines.append("\t".join(row[column] for column in columns))
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset("imdb", tmp_path)
    assert texts_of(dataset.validation) == [f'train "{number}' for number in (36, 37, 38, 39)]
    assert dataset.validation.labels.tolist() == [0, 1, 0, 1]
    assert len(dataset.test) == 40


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"train.tsv: the first line must name the columns label and text, found \[\]"),
        (b"0\tgood\n", r"the first line must name the columns label and text, found \['0', 'good'\]"),
        (b"label\ttext\n0\tbad\tvery\n", "line 2: 2 columns between tabs are expected, found 3"),
        (b"label\ttext\n0\tbad\n2\tgood\n", "line 3: the label must be 0 or 1, found '2'"),
        (b"label\ttext\n0\tbad\n", r"reviews of both classes, 0 and 1, are expected, found \[0\]"),
        (b"label\ttext\n", "reviews of both classes, 0 and 1, are expected, found none"),
        (b"label\ttext\n0\t\xff\xfe\n", "not a table of UTF-8 text"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, words):
    (tmp_path / "train.tsv").write_bytes(content)
    (tmp_path / "test.tsv").write_bytes(b"label\ttext\n0\tbad\n1\tgood\n")
    with pytest.raises(DataError, match=words):
        load_dataset("imdb", tmp_path)


def test_missing_or_strange_reviews_are_named(tmp_path):
    write_reviews(tmp_path, per_class=1)
    (tmp_path / "train/pos/notes.txt").write_text("?")
    with pytest.raises(DataError, match=r"notes.txt: reviews are called <number>_<stars>.txt"):
        load_dataset("imdb", tmp_path)
    for path in (tmp_path / "train/pos").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/pos: has no reviews"):
        load_dataset("imdb", tmp_path)
    (tmp_path / "train/pos").rmdir()
    with pytest.raises(DataError) as caught:
        load_dataset("imdb", tmp_path)
    for part in (f"{tmp_path}/train/pos\n", f"{tmp_path}/aclImdb/ (no such", f"{tmp_path}/train.tsv\n", "aclImdb_v1"):
        assert part in str(caught.value)
    assert f"{tmp_path}/train/neg\n" not in str(caught.value)


def write_pairs(folder, counts=(9, 4, 5)):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "eval", "test"), counts, strict=True):
        lines = [f"{i % 2}.0\tP{i}\tP{i + 1}\t{part} one {i}\t{part} the other {i} \u00fc" for i in range(count)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("inside", ["", "tsv_data", "lra_release/lra_release/tsv_data"])
def test_pairs_have_two_documents_and_the_published_split(tmp_path, inside):
    write_pairs(tmp_path / inside)
    dataset = load_dataset("aan", tmp_path, {"max_length": 30})
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [9, 4, 5]
    assert dataset.shape.documents == 2
    assert dataset.train.inputs.shape == (9, 2, 30)
    assert dataset.train.inputs.dtype == torch.uint8
    inputs, labels, lengths = dataset.validation.batch(slice(None))
    assert inputs.shape == (4, 2, len("eval the other 0 ü".encode()))
    assert labels.tolist() == [0, 1, 0, 1]
    for number, (documents, counts) in enumerate(zip(inputs.tolist(), lengths.tolist(), strict=True)):
        found = [bytes(row[:count]).decode() for row, count in zip(documents, counts, strict=True)]
        assert found == [f"eval one {number}", f"eval the other {number} ü"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "new_aan_pairs.eval.tsv: has no pairs"),
        (b"1.0\tA\tB\tone\n", "line 1: 5 columns between tabs .* are expected, found 4"),
        (b"1.0\tA\tB\tone\ttwo\n0.5\tA\tB\tone\ttwo\n", "line 2: the label must be 0 or 1, found '0.5'"),
        (b"label\tid1\tid2\ttext1\ttext2\n", "line 1: the label must be 0 or 1, found 'label'"),
    ],
)
def test_damaged_pairs_are_named(tmp_path, content, words):
    write_pairs(tmp_path)
    (tmp_path / "new_aan_pairs.eval.tsv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_dataset("aan", tmp_path)


def test_missing_pairs_are_named(tmp_path):
    write_pairs(tmp_path / "tsv_data")
    (tmp_path / "tsv_data/new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("aan", tmp_path)
    for part in (f"{tmp_path}/tsv_data/new_aan_pairs.eval.tsv\n", "lra_release.gz", "--data-dir"):
        assert part in str(caught.value)
    assert f"{tmp_path}/tsv_data/new_aan_pairs.test.tsv\n" not in str(caught.value)


def test_padding_keeps_the_first_bytes():
    inputs, lengths = pad([b"abcd", b"", b"xy"], 3)
    assert inputs.tolist() == [[97, 98, 99], [0, 0, 0], [120, 121, 0]]
    assert lengths.tolist() == [3, 1, 2]


def test_the_last_tenth_is_of_each_class():
    labels = np.array([1] * 30 + [0] * 10 + [1] * 10)
    assert np.flatnonzero(last_tenth_of_class(labels)).tolist() == [39, 46, 47, 48, 49]


def test_a_folder_that_is_not_there_is_said_once(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset("imdb")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines.count("data/imdb/ (no such folder)") == 1
    assert len(set(lines)) == len(lines)
    assert not any("data/imdb/aclImdb" in line for line in lines)
