"""What stands behind the end of a sequence changes nothing that is learned, chosen or cut."""

import dataclasses

import pytest
import torch

from paper_repro.evaluation import evaluate
from paper_repro.sequences import Dataset, Sequences, TaskShape
from paper_repro.training import Training, train
from tests.paper_repro.test_training import found

LENGTH = 20


def padded(count, filling, seed):
    """Sequences of different lengths whose class is the token that comes more often, 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 3, (count, LENGTH), generator=generator)
    lengths = torch.randint(5, LENGTH, (count,), generator=generator)
    padding = torch.arange(LENGTH) >= lengths[:, None]
    ones = ((tokens == 1) & ~padding).sum(-1)
    labels = (2 * ones < lengths).long()
    tokens[padding] = filling
    return Sequences(tokens.to(torch.uint8), labels.to(torch.int8), lengths.to(torch.int16))


def dataset(filling):
    shape = TaskShape(n_outputs=2, vocabulary=4)
    return Dataset("padded", shape, padded(60, filling, 0), padded(30, filling, 1), padded(30, filling, 2))


@pytest.mark.parametrize(
    "values",
    [
        {"norm": "batch"},
        {"norm": "layer", "pooling": "last"},
        {"arm": "in_training", "attempts": 1, "window": (0.0, 0.5), "tau": 0.3},
    ],
    ids=["batch norm", "last step", "cut"],
)
def test_padding_changes_nothing(tmp_path, small_config, values):
    config = small_config(steps=16, dropout=0.0, **values)
    results = [train(config, tmp_path / str(filling), dataset=dataset(filling)) for filling in (0, 3)]
    assert found(results[0]) == found(results[1])


def test_a_batch_is_pooled_as_each_of_its_sequences_alone(small_config):
    data = dataset(3)
    training = Training(small_config(steps=16), data)
    for _ in range(16):
        training.advance()
    model = training.model.eval()
    batch = data.validation.batch(slice(0, 8))
    together = model(*batch.arguments)
    for number, length in enumerate(batch.lengths.tolist()):
        alone = model(batch.inputs[number : number + 1, :length])
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-5)


def test_mistaking_padding_for_steps_would_be_noticed(small_config):
    data = dataset(3)
    model = Training(small_config(), data).model
    with_lengths, without = (
        evaluate(model, data.test, 0),
        evaluate(model, dataclasses.replace(data.test, lengths=None), 0),
    )
    assert with_lengths.loss != without.loss


def pairs(count, filling, seed):
    """Two documents of different lengths; the label says whether their first tokens agree."""
    both = [padded(count, filling, 2 * seed + number) for number in range(2)]
    labels = (both[0].inputs[:, 0] == both[1].inputs[:, 0]).to(torch.int8)
    inputs, lengths = (torch.stack([getattr(one, name) for one in both], dim=1) for name in ("inputs", "lengths"))
    return Sequences(inputs, labels, lengths)


@pytest.mark.parametrize("values", [{}, {"arm": "in_training", "attempts": 1, "window": (0.0, 0.5), "tau": 0.3}])
def test_two_documents_are_compared_each_without_its_padding(tmp_path, small_config, values):
    shape = TaskShape(n_outputs=2, vocabulary=4, documents=2)
    config = small_config(steps=16, dropout=0.0, **values)
    results = [
        train(
            config,
            tmp_path / str(filling),
            dataset=Dataset("pairs", shape, *(pairs(60, filling, seed) for seed in range(3))),
        )
        for filling in (0, 3)
    ]
    assert found(results[0]) == found(results[1])
    assert results[0].spectra[-1].layer == "encoder.blocks.0.layer"
    assert results[0].states_after[0] < 12 or not values
