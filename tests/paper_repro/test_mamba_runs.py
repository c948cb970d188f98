"""Mamba models train and are cut in training from end to end."""

import shutil
import sys

import pytest
import torch

from paper_repro import cli
from paper_repro.configuration import make_config, read_preset
from paper_repro.cuts import make_calibration
from paper_repro.errors import ConfigurationError
from paper_repro.evaluation import evaluate
from paper_repro.finished_runs import load_best_model
from paper_repro.results import read_results
from paper_repro.tasks import load_dataset
from paper_repro.training import RunInterruptedError, Training, train
from tests.paper_repro.test_training import found, stop_after

SMALL = {
    "steps": 30,
    "n_states": 8,
    "d_model": 8,
    "batch_size": 8,
    "evaluate_every": 6,
    "checkpoint_every": 10,
    "calibration_sequences": 12,
    "task_options": {
        "pairs": 4,
        "queries": 4,
        "keys": 8,
        "values": 4,
        "n_train": 200,
        "n_validation": 20,
        "n_test": 24,
    },
    "arm": "in_training",
    "order": 3,
    "window": (0.0, 0.5),
}


def small_config(**values):
    return make_config({**read_preset("mqar"), **SMALL, **values})


def data(config):
    return load_dataset(config.task, options=config.task_options)


@pytest.mark.parametrize("method", [None, "hankel_uncompensated", "channel_basis"])
def test_a_run_that_is_cut_and_interrupted_equals_an_uninterrupted_one_bit_for_bit(tmp_path, method):
    config = small_config(method=method)
    whole = train(config, tmp_path / "whole", dataset=data(config))
    assert (whole.states_before, whole.states_after) == ((8,), (3,))
    assert whole.spectra == ()
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path / "parts", dataset=data(config), should_stop=stop_after(20))
    torch.manual_seed(99)  # whatever happens between the two sessions
    parts = train(config, tmp_path / "parts", dataset=data(config))
    assert found(parts) == found(whole)
    best = load_best_model(tmp_path / "parts" / config.run_id)
    assert best.n_states == (3,)
    assert evaluate(best, data(config).test, 0).accuracy == whole.test_accuracy


@pytest.mark.parametrize(
    ("values", "states"),
    [
        ({"arm": "pragmatic", "attempts": 2}, (6,)),  # a tenth of 8 states, twice: 7.2 and 6.48
        ({"arm": "post_training"}, (3,)),
        ({"arm": "post_training", "method": "channel_basis"}, (3,)),
        ({"arm": "distilled", "n_states": 3, "order": None}, (3,)),
    ],
    ids=["pragmatic", "post-training", "post-training with transforms", "distilled"],
)
def test_the_other_arms_go_on_bit_for_bit_too(tmp_path, monkeypatch, values, states):
    monkeypatch.setattr(Training, "_validation_accuracy", lambda training: 1.0)  # what is cut stays cut
    full = small_config(arm="full")
    start = train(full, tmp_path / "whole", dataset=data(full))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    if values["arm"] != "pragmatic":
        values = {**values, "starts_from": start.run_id}
    config = small_config(**values)
    whole = train(config, tmp_path / "whole", dataset=data(config))
    assert whole.states_after == states
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path / "parts", dataset=data(config), should_stop=stop_after(18))
    torch.manual_seed(99)  # whatever happens between the two sessions
    parts = train(config, tmp_path / "parts", dataset=data(config))
    assert found(parts) == found(whole)
    best = load_best_model(tmp_path / "parts" / config.run_id)
    assert evaluate(best, data(config).test, 0).accuracy == whole.test_accuracy


def test_a_layer_can_be_chosen_on_the_command_line(tmp_path, monkeypatch, capsys):
    values = {"steps": 12, "n_states": 8, "order": 3, "tau": "none", "attempts": 1, "window": "[0.0, 0.5]"}
    values |= {"batch_size": 8, "evaluate_every": 6, "calibration_sequences": 12}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr(
        sys, "argv", ["paper_repro", "run", "digits", "--layer", "mamba", "--out", str(tmp_path), *sets]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    [result] = read_results(tmp_path)
    assert (result.config.layer, result.states_after) == ("mamba", (3,))
    assert "8 → 3" in capsys.readouterr().out


@pytest.mark.parametrize("layer", ["s5", "s4d"])
def test_the_other_layers_are_cut_in_training_too(tmp_path, layer):
    config = make_config(
        {**read_preset("digits_s5"), "layer": layer, "arm": "in_training", "steps": 20, "n_states": 8, "batch_size": 20,
         "evaluate_every": 5, "tau": 0.3, "attempts": 1, "window": (0.0, 0.5)}
    )  # fmt: skip
    result = train(config, tmp_path)
    assert result.states_after < result.states_before
    assert all(len(spectrum.values) <= 8 for spectrum in result.spectra)


def test_calibration_sequences_come_from_the_training_set_and_follow_the_seed():
    config = small_config()
    dataset = data(config)
    batches = make_calibration(config, dataset)
    rows = {tuple(row) for row in torch.cat(batches).tolist()}
    assert len(rows) == 12
    assert rows <= {tuple(row) for row in dataset.train.inputs.tolist()}
    again, other = (torch.cat(make_calibration(small_config(seed=seed), dataset)) for seed in (0, 1))
    assert torch.equal(torch.cat(batches), again)
    assert not torch.equal(again, other)
    with pytest.raises(ConfigurationError, match=r"'calibration_sequences'.*200 sequences, 300 are"):
        make_calibration(small_config(calibration_sequences=300), dataset)
    assert make_calibration(make_config(read_preset("digits")), dataset) is None


def test_accuracy_counts_the_steps_at_which_something_is_asked():
    config = small_config()
    dataset = data(config)

    class Oracle(torch.nn.Module):
        def forward(self, tokens):
            """Name the value of each query but the last."""
            scores = torch.zeros(*tokens.shape, 4)
            for row, score in zip(tokens.tolist(), scores, strict=True):
                value_of = dict(zip(row[0:8:2], row[1:8:2], strict=True))
                for t in range(8, 12):
                    right = value_of[row[t]] - 8
                    score[t, right if t < 11 else (right + 1) % 4] = 1.0
            return scores

    evaluation = evaluate(Oracle(), dataset.test, 7)
    assert (evaluation.step, evaluation.accuracy) == (7, 0.75)
    right, wrong = (
        torch.logsumexp(torch.tensor([1.0, 0, 0, 0]), 0) - 1,
        torch.logsumexp(torch.tensor([1.0, 0, 0, 0]), 0),
    )
    assert evaluation.loss == pytest.approx(float(0.75 * right + 0.25 * wrong), rel=1e-5)


def test_a_cut_that_is_put_off_is_made_when_the_loss_has_fallen_and_the_best_model_comes_after_it(tmp_path):
    config = small_config(
        ready_to=1e9, window=(0.0, 0.1)
    )  # ready as soon as it knows 50 losses, which is after the window
    result = train(config.with_values(steps=60), tmp_path, dataset=data(config))
    outcomes = [(event["step"], event["put_off"]) for event in result.history["events"]]
    assert outcomes == [(6, True), (50, False)]
    assert result.best.step >= 50
    assert load_best_model(tmp_path / result.run_id).n_states == (3,)


def test_a_cut_that_never_gets_ready_is_not_made(tmp_path):
    config = small_config(ready_by=0.99)
    result = train(config, tmp_path, dataset=data(config))
    assert result.states_after == result.states_before == (8,)
    assert any("not made" in (event["reason"] or "") for event in result.history["events"])


def test_gradients_are_clipped_where_asked():
    config = small_config(clip_norm=1e-3)
    training = Training(config, data(config))
    training.advance()
    norms = [parameter.grad.norm() for parameter in training.model.parameters()]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)
