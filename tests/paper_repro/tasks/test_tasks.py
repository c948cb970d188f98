"""What every task promises."""

import itertools
from dataclasses import fields

import pytest
import torch

from paper_repro.configuration import make_config, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.sequences import NOT_ASKED
from paper_repro.tasks import TASKS, describe_tasks, load_dataset, make_task, task_shape
from paper_repro.tasks.task import GeneratedTask

GENERATED = [name for name, task in TASKS.items() if issubclass(task, GeneratedTask)]


@pytest.mark.parametrize("name", GENERATED)
def test_the_three_sets_are_disjoint_and_depend_on_the_seed_of_the_task_alone(name):
    small = dict(TASKS[name].small)
    first = load_dataset(name, options=small)
    torch.manual_seed(5)
    again, other = (load_dataset(name, options={**small, "seed": seed}) for seed in (0, 1))
    parts = (first.train, first.validation, first.test)
    assert tuple(len(part) for part in parts) == make_task(name, small).sizes == (400, 60, 80)
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in parts]
    for one, two in itertools.combinations(rows, 2):
        assert not one & two
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert task_shape(name, small) == first.shape


@pytest.mark.parametrize("name", GENERATED)
def test_batches_are_what_the_shape_says(name):
    dataset = load_dataset(name, options=dict(TASKS[name].small))
    shape, task = dataset.shape, make_task(name, TASKS[name].small)
    batch = dataset.train.batch(slice(50))
    assert batch.inputs.dtype == (torch.float32 if shape.vocabulary is None else torch.int64)
    assert batch.labels.dtype == torch.int64
    assert batch.inputs.shape[1] <= task.longest
    asked = batch.labels[batch.labels != NOT_ASKED]
    assert 0 <= asked.min() <= asked.max() < shape.n_outputs
    if shape.vocabulary is not None:
        assert 0 <= batch.inputs.min() <= batch.inputs.max() < shape.vocabulary
        assert dataset.train.inputs.dtype == torch.uint8  # a byte a token
    if batch.lengths is not None:
        assert batch.inputs.shape[1] == batch.lengths.max()


def test_sequences_that_occur_twice_are_replaced_and_too_few_different_ones_are_an_error():
    sizes = {"n_train": 30, "n_validation": 10, "n_test": 10}
    tiny = {"length": 5, "vocabulary": 3}  # 3 places with 2^3 sequences each, 2 less for what a mark leaves out
    dataset = load_dataset("induction_heads", options={**tiny, **sizes, "n_train": 8, "n_validation": 4, "n_test": 4})
    rows = [
        {row.numpy().tobytes() for row in part.inputs} for part in (dataset.train, dataset.validation, dataset.test)
    ]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    with pytest.raises(ConfigurationError, match="too few different sequences for three sets"):
        load_dataset("induction_heads", options={**tiny, **sizes, "n_train": 5000})


def test_every_task_describes_itself():
    descriptions = describe_tasks()
    assert [description.name for description in descriptions] == list(TASKS)
    for description in descriptions:
        task = TASKS[description.name]
        assert description.summary
        assert description.reference
        assert description.where
        assert description.longest > 1
        assert all(size > 1 for size in description.sizes)
        assert set(description.options) == {field.name for field in fields(task)}
        assert all(field.metadata["meaning"] for field in fields(task))
        task.from_options(task.small)
        task.from_options(task.published)


def test_a_configuration_knows_its_task_and_the_options_before_anything_is_loaded():
    preset = read_preset("digits")
    with pytest.raises(ConfigurationError, match=r"'task': unknown task 'pathfindr'; did you mean 'pathfinder'\?"):
        make_config({**preset, "task": "pathfindr"})
    with pytest.raises(ConfigurationError, match=r"unknown task 'lottery'; known are digits, mnist, .*pathfinder"):
        make_config({**preset, "task": "lottery"})
    with pytest.raises(ConfigurationError, match=r"difficulty must be one of 'easy', 'intermediate', 'hard', got 'x'"):
        make_config({**preset, "task": "pathfinder", "task_options": {"difficulty": "x"}})
    with pytest.raises(ConfigurationError, match="grey must be true or false, got 1"):
        make_config({**preset, "task": "cifar10", "task_options": {"grey": 1}})
    config = make_config({**preset, "task": "cifar10", "task_options": {"grey": True}})
    assert config.task_options["grey"] is True


def test_what_a_task_takes_is_printed_as_a_table(capsys, monkeypatch, tmp_path):
    from paper_repro.tasks.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main(["digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| digits | 1,085 / 357 / 355 | 64 | 0.4 | ")  # 1,797 * (64 * 4 + 1) bytes
    assert main(["digits", "mnist"]) == 1
    captured = capsys.readouterr()
    assert "MNIST was not found" in captured.err
    assert "data/mnist/" in captured.err
