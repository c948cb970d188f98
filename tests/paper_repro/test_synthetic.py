import itertools

import numpy as np
import pytest
import torch

from paper_repro.datasets import load_dataset, task_shape
from paper_repro.errors import ConfigurationError
from paper_repro.sequences import NOT_ASKED
from paper_repro.synthetic import GENERATED_TASKS, MultiQueryRecall, SelectiveCopying

FEW = {"n_train": 300, "n_validation": 50, "n_test": 60}


def test_every_query_of_recall_asks_for_the_value_that_followed_its_key():
    dataset = MultiQueryRecall(**FEW).load()
    tokens, labels = dataset.train.inputs, dataset.train.labels
    assert tokens.shape == labels.shape == (300, 48)
    assert (labels[:, :32] == NOT_ASKED).all()
    for row, answers in zip(tokens.tolist(), labels[:, 32:].tolist(), strict=True):
        value_of = dict(zip(row[0:32:2], row[1:32:2], strict=True))
        assert len(value_of) == 16
        assert sorted(row[32:]) == sorted(value_of)
        assert answers == [value_of[key] - 32 for key in row[32:]]
    assert (dataset.shape.vocabulary, dataset.shape.n_outputs) == (40, 8)
    assert (int(tokens.min()), int(tokens.max())) == (0, 39)


def test_recall_may_ask_for_some_of_the_keys_only():
    dataset = MultiQueryRecall(**FEW, pairs=5, queries=2, keys=9, values=3).load()
    assert dataset.test.inputs.shape == (60, 12)
    for row in dataset.test.inputs.tolist():
        assert len(set(row[10:])) == 2
        assert set(row[10:]) <= set(row[0:10:2])


def test_selective_copying_wants_the_symbols_in_their_order():
    dataset = SelectiveCopying(**FEW).load()
    tokens, labels = dataset.train.inputs, dataset.train.labels
    assert tokens.shape == labels.shape == (300, 56)
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        assert [token for token in row[:48] if token != 16] == answers[48:]
        assert row[48:] == [17] * 8
        assert set(answers[:48]) == {NOT_ASKED}


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_the_three_sets_are_disjoint_and_depend_on_the_seed_of_the_task_alone(name):
    first, again, other = (load_dataset(name, options={**FEW, "seed": seed}) for seed in (0, 0, 1))
    rows = [{tuple(row) for row in part.inputs.tolist()} for part in (first.train, first.validation, first.test)]
    assert [len(part) for part in rows] == [300, 50, 60]
    for one, two in itertools.combinations(rows, 2):
        assert not one & two
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert task_shape(name) == first.shape


def test_symbols_and_places_are_evenly_spread():
    tokens, _ = SelectiveCopying().generate(np.random.default_rng(0), 4000)
    filled = (tokens[:, :48] != 16).mean(axis=0)
    assert np.abs(filled - 8 / 48).max() < 5 * np.sqrt(8 / 48 * 40 / 48 / 4000)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mqar", {"pears": 3}, r"mqar has no option 'pears'; it has .*pairs"),
        ("mqar", {"pairs": 0}, r"pairs must be an int of at least 1, got 0"),
        ("mqar", {"pairs": 40}, r"queries <= pairs <= keys must hold, got 16, 40, 32"),
        ("mqar", {"queries": 20}, r"queries <= pairs"),
        ("selective_copying", {"context": 4}, r"copied <= context must hold, got 8 and 4"),
        ("digits", {"seed": 1}, r"digits is not generated"),
    ],
)
def test_impossible_options_name_the_key(name, options, words):
    with pytest.raises(ConfigurationError, match=rf"'task_options': .*{words}|'task_options': {words}"):
        load_dataset(name, options=options)
    with pytest.raises(ConfigurationError):
        task_shape(name, options)
