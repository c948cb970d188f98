import csv
import random
import re
import statistics

import numpy as np
import pytest
import torch

from paper_repro.errors import ConfigurationError, DataError
from paper_repro.tasks import load_dataset
from paper_repro.tasks.expressions import END, FIRST_DIGIT, MIN, NOT_AN_EXPRESSION, WORDS, evaluate, make_expressions
from paper_repro.tasks.listops import ListOps, read_expressions

SHORT = {"min_length": 8, "max_length": 60, "max_depth": 5, "max_arguments": 5}


def words_of(tokens):
    return [WORDS[token - 1] for token in tokens]


def parse(words):
    """Return an expression as a digit or a list of operator and arguments."""
    word = words.pop(0)
    if not word.startswith("["):
        return int(word)
    node = [word]
    while words[0] != "]":
        node.append(parse(words))
    words.pop(0)
    return node


def value(tree):
    if isinstance(tree, int):
        return tree
    arguments = [value(argument) for argument in tree[1:]]
    return {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda numbers: int(statistics.median(numbers)),
        "[SM": lambda numbers: sum(numbers) % 10,
    }[tree[0]](arguments)


def depth(tree):
    return 1 if isinstance(tree, int) else 1 + max(depth(argument) for argument in tree[1:])


def operators(tree):
    return [] if isinstance(tree, int) else [tree, *(node for argument in tree[1:] for node in operators(argument))]


def written(tree):
    """Return an expression with the parentheses of the published files: around each pair of neighbours, from the left."""
    if isinstance(tree, int):
        return str(tree)
    text = tree[0]
    for argument in tree[1:]:
        text = f"( {text} {written(argument)} )"
    return f"( {text} ] )"


def trees(sequences):
    batch = sequences.batch(slice(None))
    return [
        parse(words_of(row[:length])) for row, length in zip(batch.inputs.tolist(), batch.lengths.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def published():
    return ListOps(n_train=400, n_validation=2, n_test=2).load().train


def test_every_label_is_the_value_of_its_expression(published):
    short = ListOps(n_train=3000, n_validation=2, n_test=2, **SHORT).load().train
    for sequences in (published, short):
        assert [value(tree) for tree in trees(sequences)] == sequences.labels.tolist()


def test_expressions_obey_the_published_sizes(published):
    found = trees(published)
    lengths = published.lengths
    assert 500 < lengths.min() <= lengths.max() < 2000
    assert max(depth(tree) for tree in found) == 10
    nodes = [node for tree in found for node in operators(tree)]
    assert {len(node) - 1 for node in nodes} == set(range(2, 11))
    counts = [sum(node[0] == word for node in nodes) for word in ("[MIN", "[MAX", "[MED", "[SM")]
    assert max(counts) / min(counts) < 1.1
    assert published.inputs.dtype == torch.uint8
    shares = torch.bincount(published.labels, minlength=10)
    assert 1.5 < (shares[0] + shares[9]) / shares[1:9].sum() * 4 < 2.7  # MIN and MAX favour 0 and 9
    for row, length in zip(published.inputs, lengths, strict=True):
        assert (row[length:] == 0).all()


def test_trees_are_as_frequent_as_in_a_plain_version_of_the_grammar():
    plain = random.Random(0)

    def grow(level):
        if level < 4 and plain.random() < 0.25:
            return [plain.choice(WORDS[10:14]), *(grow(level + 1) for _ in range(plain.randint(2, 3)))]
        return plain.choice(range(10))

    def length(tree):
        return 1 if isinstance(tree, int) else 2 + sum(length(argument) for argument in tree[1:])

    count = 20_000
    expected = np.bincount([min(length(grow(1)), 30) for _ in range(count)], minlength=31)
    _, lengths, _, made = make_expressions(
        np.random.default_rng(1), count, max_depth=4, max_arguments=3, min_length=0, max_length=200
    )
    assert made == count
    found = np.bincount(np.minimum(lengths, 30), minlength=31)
    seen = expected + found > 20
    # The difference of two counts has at most the variance of their sum.
    assert np.all(np.abs(expected - found)[seen] < 5 * np.sqrt((expected + found)[seen]))
    assert abs(found[1] / count - 0.75) < 0.02  # a digit alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("[MED 1 2 ]", 1),
        ("[MED 9 0 4 ]", 4),
        ("[MED 1 2 9 8 ]", 5),
        ("[SM 9 9 [MAX 1 4 ] ]", 2),
        ("[MIN 5 ]", 5),
        ("", NOT_AN_EXPRESSION),
        ("]", NOT_AN_EXPRESSION),
        ("[MIN ]", NOT_AN_EXPRESSION),
        ("[MIN 1 2", NOT_AN_EXPRESSION),
        ("[MIN 1 ] 2", NOT_AN_EXPRESSION),
        ("1 2", NOT_AN_EXPRESSION),
        ("[MIN 1 ] ]", NOT_AN_EXPRESSION),
    ],
)
def test_evaluation_knows_what_is_no_expression(text, expected):
    tokens = np.array([WORDS.index(word) + 1 for word in text.split()], np.uint8)
    assert evaluate(tokens) == expected


def test_padding_is_no_expression():
    assert evaluate(np.array([MIN, FIRST_DIGIT, 0, END], np.uint8)) == NOT_AN_EXPRESSION


def write_files(folder, sets):
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in sets.items():
        with (folder / f"basic_{part}.tsv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["Source", "Target"])
            writer.writerows((written(tree), value(tree)) for tree in rows)


@pytest.mark.parametrize("inside", ["", "listops-1000", "lra_release/listops-1000"])
def test_files_give_what_was_written(tmp_path, inside):
    generated = load_dataset("listops", options={**SHORT, "n_train": 30, "n_validation": 5, "n_test": 6})
    sets = {"train": generated.train, "val": generated.validation, "test": generated.test}
    write_files(tmp_path / inside, {part: trees(sequences) for part, sequences in sets.items()})
    dataset = load_dataset("listops", tmp_path, {"source": "files"})
    assert dataset.shape == generated.shape
    for found, expected in zip((dataset.train, dataset.validation, dataset.test), sets.values(), strict=True):
        assert torch.equal(found.batch(slice(None)).inputs, expected.batch(slice(None)).inputs)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.lengths.long(), expected.lengths.long())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the first line must be 'Source<tab>Target', found ''"),
        (b"7\t7\n", "the first line must be 'Source<tab>Target', found '7.t7'"),
        (b"\x1f\x8b\x08junk", "the first line must be"),
        (b"Source\tTarget\n", "has no expressions"),
        (b"Source\tTarget\n( ( [MIN 1 ) ] )\t1\n( ( ( [MAX 2 ) 5", "line 3: not an expression, a tab and its value"),
        (b"Source\tTarget\n( ( ( [MAX 2 ) 5 ) ] )\t4\n", "line 2: the value of the expression is 5, the file says '4'"),
        (b"Source\tTarget\n( ( ( [MUX 2 ) 5 ) ] )\t5\n", "line 2: not an expression"),
        (b"Source\tTarget\n( ( ( [MAX 25 ) 5 ) ] )\t5\n", "line 2: not an expression"),
        (b"Source\tTarget\n( ( ( [MAX2 ) 5 ) ] )\t5\n", "line 2: not an expression"),
        (b"Source\tTarget\n7\n", "line 2: not an expression"),
    ],
)
def test_damage_is_named(tmp_path, content, words):
    path = tmp_path / "basic_train.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_expressions(path)


def test_missing_files_say_where_they_were_looked_for_and_that_they_can_be_generated(tmp_path):
    with pytest.raises(DataError) as caught:
        load_dataset("listops", tmp_path, {"source": "files"})
    for part in (f"{tmp_path}/basic_train.tsv", f"{tmp_path}/listops-1000/ (no such", "lra_release.gz", "'generated'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_length": 10, "max_length": 11}, r"min_length \+ 1 < max_length must hold, got 10 and 11"),
        ({"source": "files", "max_depth": 4}, "max_depth is set to 4, but listops is read from files"),
        ({"source": "web"}, "source must be one of 'generated', 'files', got 'web'"),
        ({"max_depth": 1}, "max_depth must be an int of at least 2, got 1"),
    ],
)
def test_impossible_options_name_the_key(options, words):
    with pytest.raises(ConfigurationError, match=words):
        load_dataset("listops", options=options)


def test_sizes_that_no_expression_has_are_an_error(monkeypatch):
    monkeypatch.setattr("paper_repro.tasks.expressions.TRIES", 1000)
    options = {"max_depth": 2, "max_arguments": 3, "min_length": 20, "max_length": 30}
    with pytest.raises(ConfigurationError, match=re.escape("had more than 20 and fewer than 30 tokens")):
        load_dataset("listops", options={**options, "n_train": 2, "n_validation": 1, "n_test": 1})
