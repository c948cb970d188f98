import errno
import math
import os

import pytest
import torch

from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.finished_runs import load_best_model
from paper_repro.learning_rate import warmup_cosine_factor
from paper_repro.results import read_results
from paper_repro.tasks import load_dataset
from paper_repro.training import DivergedError, RunInterruptedError, Training, train

CUT = {"arm": "in_training", "tau": 0.3, "attempts": 2, "window": (0.0, 0.5)}
TIMES = {"provenance", "timing"}


def found(result):
    """Return everything of a result that must not depend on the clock, nor on when it was made."""
    values = result.model_dump(exclude=TIMES)
    for event in (values["history"] or {"events": ()})["events"]:
        for key in ("seconds", "evaluation_seconds", "step_seconds", "steps_timed"):
            del event[key]
    for key in ("steps_timed", "step_seconds"):
        (values["history"] or {key: 0}).pop(key)
    return values


def stop_after(steps):
    calls = []

    def should_stop():
        calls.append(None)
        return len(calls) == steps

    return should_stop


@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize(
    "values",
    [
        {**CUT, "norm": "layer", "lr_schedule": "warmup_cosine"},
        {**CUT, "reading": "real", "max_drop": 0.0},
        {"arm": "full"},
    ],
    ids=["cut", "guarded", "full"],
)
def test_an_interrupted_run_that_goes_on_equals_an_uninterrupted_one_bit_for_bit(tmp_path, small_config, values, steps):
    config, dataset = small_config(**values), load_dataset("digits")
    whole = train(config, tmp_path / "whole", dataset=dataset)
    with pytest.raises(RunInterruptedError, match=f"step {steps} of 40"):
        train(config, tmp_path / "parts", dataset=dataset, should_stop=stop_after(steps))
    torch.manual_seed(99)  # whatever happens between the two sessions
    parts = train(config, tmp_path / "parts", dataset=dataset)
    assert found(parts) == found(whole)
    assert len(parts.provenance.commits) == 2
    models = [load_best_model(tmp_path / name / config.run_id) for name in ("whole", "parts")]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_dies_goes_on_from_its_last_checkpoint(tmp_path, small_config):
    config, dataset = small_config(**CUT), load_dataset("digits")
    whole = train(config, tmp_path / "whole", dataset=dataset)

    def die(step, note):
        if step >= 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", dataset=dataset, progress=die)
    assert Training.restore(config, dataset, tmp_path / "parts" / config.run_id / "checkpoint.safetensors").step == 16
    assert found(train(config, tmp_path / "parts", dataset=dataset)) == found(whole)


def test_the_cut_is_made_and_the_best_checkpoint_comes_after_its_window(tmp_path, small_config):
    config = small_config(**CUT)
    result = train(config, tmp_path, dataset=load_dataset("digits"))
    assert [event["step"] for event in result.history["events"]] == [10, 20]
    assert result.states_before == (12,)
    assert result.states_after[0] < 12
    assert result.n_parameters_after < result.n_parameters_before
    assert result.best.step >= config.last_step_of_window == 20
    assert max(evaluation.step for evaluation in result.validations) == 40
    assert load_best_model(tmp_path / config.run_id).n_states == result.states_after
    assert 0 < result.timing.reductions < result.timing.training < result.timing.wall
    spectrum = result.spectra[-1]
    assert len(spectrum.values) == result.states_after[0]
    assert list(spectrum.values) == sorted(spectrum.values, reverse=True)


def test_an_earlier_better_checkpoint_is_not_taken_in_any_arm(tmp_path, small_config, monkeypatch):
    accuracies = iter([0.9, 0.8, 0.1, 0.3, 0.2, 0.0])

    def evaluate(model, sequences, step):
        from paper_repro.results import Evaluation

        return Evaluation(step=step, accuracy=next(accuracies), loss=1.0)

    monkeypatch.setattr("paper_repro.training.evaluate", evaluate)
    result = train(small_config(window=(0.0, 0.5)), tmp_path, dataset=load_dataset("digits"))
    assert (result.best.step, result.best.accuracy, result.test_accuracy) == (32, 0.3, 0.0)


def test_the_test_set_is_looked_at_once_or_never(tmp_path, small_config, monkeypatch):
    import paper_repro.training as module

    dataset = load_dataset("digits")
    looks = []
    evaluate = module.evaluate

    def watch(model, sequences, step):
        looks.append(sequences.inputs is dataset.test.inputs)
        return evaluate(model, sequences, step)

    monkeypatch.setattr(module, "evaluate", watch)
    assert train(small_config(), tmp_path / "never", dataset=dataset, evaluate_test=False).test_accuracy is None
    assert sum(looks) == 0
    assert train(small_config(), tmp_path / "once", dataset=dataset).test_accuracy is not None
    assert sum(looks) == 1


def test_a_finished_run_is_not_trained_again(tmp_path, small_config):
    config, dataset = small_config(), load_dataset("digits")
    first = train(config, tmp_path, dataset=dataset)
    assert train(config, tmp_path, dataset=dataset, progress=pytest.fail) == first
    assert read_results(tmp_path) == [first]


def test_seeds_differ_and_seed_0_is_not_replaced(tmp_path, small_config):
    dataset = load_dataset("digits")
    weights = [Training(small_config(seed=seed), dataset).model.encoder.weight for seed in (0, 1, 0)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    batches = [Training(small_config(seed=seed), dataset).batches.next().labels for seed in (0, 1, 0)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_every_epoch_has_every_sequence_at_most_once_in_a_new_order(small_config):
    dataset = load_dataset("digits")
    batches = Training(small_config(batch_size=500), dataset).batches
    epochs = [torch.cat([batches.next().inputs for _ in range(2)]) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch.flatten(1).unique(dim=0)) == len(epoch) == 1000
    assert not torch.equal(*epochs)


def test_what_does_not_fit_the_machine_or_the_data_names_its_key(tmp_path, small_config):
    with pytest.raises(ConfigurationError, match=r"'batch_size'.*1085"):
        train(small_config(batch_size=2000), tmp_path)
    with pytest.raises(ConfigurationError, match=r"'device'.*'warp'"):
        train(small_config(device="warp"), tmp_path)


def test_attempts_that_do_not_fit_their_window_name_their_keys(tmp_path, small_config):
    with pytest.raises(
        ConfigurationError, match=r"'steps', 'window' and 'attempts'.*attempt 1 of 4 would fall on step 0"
    ):
        train(small_config(arm="in_training", steps=3, attempts=4), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_word_on_the_rate(tmp_path, small_config):
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d+; a smaller learning_rate than 1e\+30"):
        train(small_config(learning_rate=1e30), tmp_path)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path, small_config):
    config = small_config()
    checkpoint = tmp_path / config.run_id / "checkpoint.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(ResultError, match=r"not a whole checkpoint.*remove .*checkpoint\.safetensors to start"):
        train(config, tmp_path)


def test_warm_up_and_cosine_have_the_papers_ends():
    def factor(step):
        return warmup_cosine_factor(step, steps=1000, warmup=0.1, floor=1e-4)

    assert factor(0) == pytest.approx(1e-4)
    assert factor(100) == pytest.approx(1)
    assert factor(550) == pytest.approx((1 + 1e-4) / 2)
    assert factor(1000) == pytest.approx(1e-4)
    assert all(map(math.isfinite, map(factor, range(1001))))
    assert warmup_cosine_factor(0, steps=10, warmup=0.0, floor=1e-4) == 1
    assert warmup_cosine_factor(10, steps=10, warmup=1.0, floor=1e-4) == 1


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(tmp_path, small_config, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for out, reason in ((file, "it is a file"), (file / "runs", "Not a directory")):
        with pytest.raises(ConfigurationError, match=rf"--out must be a folder .*{out} cannot be \({reason}\)"):
            train(small_config(), out, progress=pytest.fail)
    monkeypatch.setattr("tempfile.TemporaryFile", _no_file)  # for the superuser every folder can be written
    with pytest.raises(ConfigurationError, match=r"cannot be \(Read-only file system\)"):
        train(small_config(), tmp_path / "runs", progress=pytest.fail)


def _no_file(**values):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
