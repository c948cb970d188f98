"""Every arm trains, stops and goes on bit for bit, and does what it says."""

import json
import shutil

import pytest
import torch

import hsv
import hsv_torch
from paper_repro.batches import ShuffledBatches
from paper_repro.configuration import ARMS, KEYS_OF_ARMS
from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.evaluation import evaluate
from paper_repro.finished_runs import load_best_model, load_start
from paper_repro.regularisation import PENALTIES
from paper_repro.results import RunResult
from paper_repro.tasks import load_dataset
from paper_repro.training import RunInterruptedError, Training, train
from paper_repro.workers import Job, resolved, run_jobs
from tests.paper_repro.test_training import found, stop_after

ONE_CUT = {"tau": None, "order": 5}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits")


@pytest.fixture
def with_start(tmp_path_factory, small_config, dataset, request):
    """Return a function that makes a folder with a finished full run in it, trained once, and the result of that run."""
    cache = request.config.stash.setdefault(STARTED, {})
    config = small_config()
    if config.run_id not in cache:
        directory = tmp_path_factory.mktemp("start")
        cache[config.run_id] = directory, train(config, directory, dataset=dataset)
    source, result = cache[config.run_id]

    def make(directory):
        shutil.copytree(source, directory, dirs_exist_ok=True)
        return result

    return make


STARTED = pytest.StashKey[dict]()

ARM_VALUES = {
    "full": {"seed": 1},  # seed 0 is there
    "in_training": {**ONE_CUT, "gradual": True, "attempts": 3, "window": (0.0, 0.6)},
    "in_training to one size a block": {"arm": "in_training", "tau": None, "order": (5,), "attempts": 1},
    "from_scratch": {},
    "pragmatic": {"attempts": 2, "window": (0.0, 0.5)},
    "pragmatic undone": {"arm": "pragmatic", "attempts": 3, "window": (0.0, 0.75)},
    "post_training": ONE_CUT,
    "distilled": {"n_states": 5},
    "regularised": {**ONE_CUT, "penalty_weight": 0.01, "window": (0.0, 0.5)},
    "regularised by eigenvalues": {
        **ONE_CUT,
        "arm": "regularised",
        "penalty_weight": 0.01,
        "penalty_by": "eigenvalues",
    },
}


def states_decide(training):
    """A metric that falls once fewer than 10 states are left, whatever the model has learned."""
    return float(sum(training.model.n_states) >= 10)


def config_of(name, small_config, start):
    values = {"arm": name, **ARM_VALUES[name]}
    if "starts_from" in KEYS_OF_ARMS[values["arm"]]:
        values["starts_from"] = start.run_id
    return small_config(**values)


def state_of(directory, config):
    return load_best_model(directory / config.run_id).state_dict()


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_every_arm_is_tested():
    assert {values.get("arm", name) for name, values in ARM_VALUES.items()} == set(ARMS)


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((name, 23) for name in ARM_VALUES), ("post_training", 1), ("distilled", 1), ("regularised", 19)],
)
def test_an_interrupted_run_that_goes_on_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path, small_config, dataset, with_start, monkeypatch, name, steps
):
    if name == "pragmatic undone":
        monkeypatch.setattr(Training, "_validation_accuracy", states_decide)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start = [with_start(directory) for directory in (whole, parts)].pop()
    config = config_of(name, small_config, start)
    expected = train(config, whole, dataset=dataset)
    with pytest.raises(RunInterruptedError):
        train(config, parts, dataset=dataset, should_stop=stop_after(steps))
    torch.manual_seed(99)  # whatever happens between the two sessions
    result = train(config, parts, dataset=dataset)
    assert found(result) == found(expected)
    assert len(result.provenance.commits) == (1 if config.steps == 0 else 2)
    assert_equal_states(state_of(parts, config), state_of(whole, config))


def test_a_pragmatic_run_is_interrupted_while_a_cut_is_on_trial(tmp_path, small_config, dataset, monkeypatch):
    monkeypatch.setattr(Training, "_validation_accuracy", states_decide)
    config = small_config(arm="pragmatic", attempts=3, window=(0.0, 0.75))
    assert config.steps_to_decide == 9
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path, dataset=dataset, should_stop=stop_after(23))
    training = Training.restore(config, dataset, tmp_path / config.run_id / "checkpoint.safetensors")
    assert training.compressor.history.events[-1].pending
    assert training.model.n_states == (9,)


def test_a_pragmatic_run_keeps_what_goes_well_and_stops_after_what_does_not(
    tmp_path, small_config, dataset, monkeypatch
):
    monkeypatch.setattr(Training, "_validation_accuracy", states_decide)
    config = small_config(arm="pragmatic", attempts=3, window=(0.0, 0.75))
    result = train(config, tmp_path, dataset=dataset)
    events = result.compression().events
    assert [(event.step, event.undone) for event in events] == [(10, False), (20, True)]
    assert result.states_after == (10,)
    assert [entry.states for entry in result.states] == [(12,), (10,)]
    assert [entry.step for entry in result.validations] == [8, 16, 24, 32, 40]
    assert result.best.step >= config.last_step_of_window == 39
    assert 0 < result.timing.undone < result.timing.training


def test_a_pragmatic_run_whose_cuts_are_all_undone_is_the_full_run(tmp_path, small_config, dataset, monkeypatch):
    """Model, moments, rates, batch-norm statistics, dropout masks and order of data: all are put back."""
    monkeypatch.setattr(Training, "_validation_accuracy", lambda training: float(sum(training.model.n_states)))
    values = {"window": (0.0, 0.5), "lr_schedule": "warmup_cosine"}
    finals = []
    for config in (small_config(arm="pragmatic", attempts=2, **values), small_config(**values)):
        training = Training(config, dataset)
        training.record_start()
        while training.step < config.steps:
            training.advance()
        finals.append(training)
    pragmatic, full = finals
    assert [event.undone for event in pragmatic.compressor.history.events] == [True]
    assert len(pragmatic.journal.step_seconds) == len(full.journal.step_seconds) == 40
    assert_equal_states(pragmatic.model.state_dict(), full.model.state_dict())
    assert pragmatic.journal.validations == full.journal.validations
    assert pragmatic.journal.spectra == full.journal.spectra


def test_attempts_that_leave_no_time_to_decide_name_their_keys(small_config, dataset):
    for values in ({"attempts": 2, "decide_after": 10, "window": (0.0, 0.5)}, {"attempts": 2, "window": (0.0, 1.0)}):
        with pytest.raises(
            ConfigurationError, match=r"'window', 'attempts' and 'decide_after': .*attempt \d is at step"
        ):
            Training(small_config(arm="pragmatic", **values), dataset)


def test_the_window_is_approached_in_equal_ratios(tmp_path, small_config, dataset):
    config = small_config(
        arm="in_training", tau=None, order=3, gradual=True, attempts=2, window=(0.0, 0.5), n_states=12
    )
    result = train(config, tmp_path, dataset=dataset)
    assert [entry.states for entry in result.states] == [(12,), (6,), (3,)]


def test_blocks_are_cut_to_the_sizes_that_each_is_to_have(tmp_path, small_config, dataset):
    config = small_config(arm="in_training", n_blocks=2, tau=None, order=(9, 3), attempts=1, steps=10)
    assert train(config, tmp_path, dataset=dataset).states_after == (9, 3)


@pytest.mark.parametrize("reading", ["complex", "last"])
def test_a_budget_is_shared_out_among_the_blocks_as_the_reading_has_it(tmp_path, small_config, dataset, reading):
    config = small_config(arm="in_training", n_blocks=2, tau=None, budget=11, reading=reading, attempts=1, steps=10)
    training = Training(config, dataset)
    training.record_start()
    for _ in range(config.last_step_of_window):
        training.advance()
    assert sum(training.model.n_states) <= 11
    fresh = Training(config, dataset)  # the same, up to the cut
    for _ in range(config.last_step_of_window - 1):
        fresh.advance()
    fresh.compressor = None
    fresh.advance()
    share = "prefix" if reading == "last" else "sum"
    criterion = hsv_torch.ModeChoice("last") if reading == "last" else hsv_torch.ComplexHankel()
    hsv_torch.compress_(fresh.model, hsv_torch.Budget(states=11, share=share), criterion=criterion)
    assert fresh.model.n_states == training.model.n_states


@pytest.mark.parametrize("values", [{"tau": 0.3}, {**ONE_CUT}, {**ONE_CUT, "reading": "last"}])
def test_without_fine_tuning_the_model_is_what_compress_makes_of_the_start(
    tmp_path, small_config, dataset, with_start, values
):
    start = with_start(tmp_path)
    config = small_config(arm="post_training", steps=0, starts_from=start.run_id, **values)
    result = train(config, tmp_path, dataset=dataset)
    model = load_best_model(tmp_path / start.run_id)
    criterion = hsv_torch.ModeChoice("last") if "reading" in values else hsv_torch.ComplexHankel()
    rule = hsv.HankelSum(discard=0.3) if values["tau"] else hsv.Order(5)
    hsv_torch.compress_(model, rule, criterion=criterion)
    assert_equal_states(state_of(tmp_path, config), model.state_dict())
    assert result.best == evaluate(model, dataset.validation, 0)
    assert result.test_accuracy == evaluate(model, dataset.test, 0).accuracy
    assert (result.states_before, result.states_after) == (start.states_after, model.n_states)
    assert result.n_parameters_after < result.n_parameters_before
    assert (result.timing.step_before, result.timing.step_after) == (0, 0)
    assert result.timing.training == result.timing.reductions > 0
    assert result.timing.earlier == start.timing.training
    [event] = result.compression().events
    assert (event.step, event.layers[0].n_states_after) == (0, model.n_states[0])


def test_fine_tuning_starts_from_the_cut_model_and_never_counts_the_large_one(
    tmp_path, small_config, dataset, with_start
):
    start = with_start(tmp_path)
    config = small_config(arm="post_training", starts_from=start.run_id, **ONE_CUT)
    result = train(config, tmp_path, dataset=dataset)
    assert [entry.step for entry in result.validations] == [0, 8, 16, 24, 32, 40]
    assert [entry.states for entry in result.states] == [(12,), (5,)]
    assert result.timing.step_before == result.timing.step_after > 0
    assert load_best_model(tmp_path / config.run_id).n_states == (5,)


def test_a_student_without_its_teachers_voice_is_the_model_from_scratch(tmp_path, small_config, dataset, with_start):
    """The same weights at the start, the same batches, the same dropout masks: a teacher draws no random numbers."""
    start = with_start(tmp_path)
    student = small_config(arm="distilled", n_states=5, starts_from=start.run_id, distillation_weight=0.0)
    alone = small_config(arm="from_scratch", n_states=5)
    results = [train(config, tmp_path, dataset=dataset) for config in (student, alone)]
    assert results[0].validations == results[1].validations
    assert_equal_states(state_of(tmp_path, student), state_of(tmp_path, alone))
    assert results[0].timing.earlier == start.timing.training
    assert 0 < results[0].timing.teacher < results[0].timing.training
    assert results[1].timing.earlier == results[1].timing.teacher == 0


def test_a_teacher_changes_what_is_learned_and_stays_as_it_is(tmp_path, small_config, dataset, with_start):
    start = with_start(tmp_path)
    config = small_config(arm="distilled", n_states=5, starts_from=start.run_id)
    training = Training(config, dataset, load_start(config, tmp_path))
    alone = Training(small_config(arm="from_scratch", n_states=5), dataset)
    assert_equal_states(training.model.state_dict(), alone.model.state_dict())
    for _ in range(3):
        training.advance()
        alone.advance()
    assert not torch.equal(training.model.head.weight, alone.model.head.weight)
    assert not training.teacher.training
    assert all(parameter.grad is None for parameter in training.teacher.parameters())
    assert_equal_states(training.teacher.state_dict(), state_of(tmp_path, start.config))


@pytest.mark.parametrize(("every", "times"), [(1, 20), (3, 6)])
def test_a_penalty_is_paid_up_to_the_cut_and_not_after_it(tmp_path, small_config, dataset, monkeypatch, every, times):
    paid_at = []

    def penalty(model):
        paid_at.append(model.n_states)
        return hsv_torch.hankel_penalty(model)

    monkeypatch.setitem(PENALTIES, "gramians", penalty)
    config = small_config(arm="regularised", penalty_weight=0.01, penalty_every=every, window=(0.0, 0.5), **ONE_CUT)
    result = train(config, tmp_path, dataset=dataset)
    assert paid_at == [(12,)] * (1 + times)  # one of the warm-up
    assert [entry.step for entry in result.states] == [0, 20]
    assert result.best.step >= 20
    assert 0 < result.timing.penalty < result.timing.training


def test_a_penalty_makes_the_sum_of_hankel_values_smaller(small_config, dataset):
    sums = []
    for values in ({}, {"arm": "regularised", "penalty_weight": 0.1, "window": (0.0, 1.0), **ONE_CUT}):
        training = Training(small_config(**values), dataset)
        for _ in range(20):
            training.advance()
        sums.append(hsv_torch.hankel_penalty(training.model).item())
    assert sums[1] < 0.9 * sums[0]


def test_a_penalty_that_comes_seldom_weighs_more(small_config, dataset):
    gradients = []
    for values in ({"penalty_weight": 0.1, "penalty_every": 2}, {"penalty_weight": 0.2}):
        training = Training(small_config(arm="regularised", **values, **ONE_CUT), dataset)
        training.step = 1  # the second step, at which both pay
        training.advance()
        gradients.append(training.model.blocks[0].layer.B.grad)
    assert torch.equal(*gradients)


def test_both_penalties_teach_the_same(small_config, dataset):
    models = []
    for way in PENALTIES:
        training = Training(small_config(arm="regularised", penalty_weight=0.1, penalty_by=way, **ONE_CUT), dataset)
        for _ in range(3):
            training.advance()
        models.append(training.model.state_dict())
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_a_cut_at_the_last_step_is_evaluated_after_it(tmp_path, small_config, dataset):
    config = small_config(arm="regularised", penalty_weight=0.01, window=(0.0, 1.0), **ONE_CUT)
    result = train(config, tmp_path, dataset=dataset)
    assert (result.best.step, result.states_after) == (40, (5,))
    assert load_best_model(tmp_path / config.run_id).n_states == (5,)


@pytest.mark.parametrize("arm", ["in_training", "from_scratch", "distilled", "post_training", "regularised"])
def test_every_arm_sees_the_batches_of_the_full_run(tmp_path, small_config, dataset, with_start, monkeypatch, arm):
    start = with_start(tmp_path)
    seen = []
    take = ShuffledBatches.next

    def watch(batches):
        batch = take(batches)
        seen.append(batch)
        return batch

    monkeypatch.setattr(ShuffledBatches, "next", watch)
    for config in (small_config(), config_of(arm, small_config, start)):
        training = Training(config, dataset, load_start(config, tmp_path))
        training.record_start()
        for _ in range(10):
            training.advance()
    assert len(seen) == 20
    for one, other in zip(seen[:10], seen[10:], strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_what_a_run_starts_from_must_be_there_and_fit(tmp_path, small_config, dataset, with_start):
    start = with_start(tmp_path)

    def refuse(error, words, **values):
        with pytest.raises(error, match=words):
            train(
                small_config(**{"arm": "post_training", "starts_from": start.run_id, **ONE_CUT, **values}),
                tmp_path,
                dataset=dataset,
            )

    refuse(
        ConfigurationError,
        "'starts_from': arm post_training needs the name of a finished run, got None",
        starts_from=None,
    )
    refuse(ConfigurationError, "'starts_from': no finished run 'nobody'", starts_from="nobody")
    refuse(ConfigurationError, r"'n_states': this run has \(8,\), .* ended with \(12,\)", n_states=8)
    refuse(ConfigurationError, "'d_model': this run has 3, and .*, from which it starts, 4", d_model=3)
    refuse(
        ConfigurationError,
        "'task': this run has 'mqar', and .*, from which it starts, 'digits'",
        task="mqar",
        arm="distilled",
    )
    (tmp_path / start.run_id / "best.safetensors").unlink()
    refuse(ResultError, "best.safetensors is gone")


def test_a_result_of_before_there_were_more_arms_can_be_read(tmp_path, small_config, dataset, with_start):
    values = json.loads(with_start(tmp_path).model_dump_json())
    for key in ("penalty", "teacher", "undone", "earlier"):
        del values["timing"][key]
    for key in (
        "starts_from",
        "temperature",
        "distillation_weight",
        "penalty_weight",
        "penalty_by",
        "gradual",
        "share_of_cut",
        "decide_after",
    ):
        del values["config"][key]
    result = RunResult.model_validate_json(json.dumps(values))
    assert result.config.run_id == result.run_id
    assert result.timing.with_earlier_runs == result.timing.training


def test_jobs_take_sizes_and_starts_from_the_results_of_others(small_config, tmp_path, dataset, with_start):
    start = with_start(tmp_path)
    results = {"full": start}

    def job(arm, **waits):
        return Job("key", small_config(arm=arm, penalty_weight=0.1), **waits)

    scratch = resolved(job("from_scratch", sizes_of="full"), results)
    assert (scratch.n_states, scratch.sizes_of, scratch.tau) == ((12,), start.run_id, 0.1)
    cut = resolved(job("post_training", sizes_of="full", starts_from="full"), results)
    assert (cut.n_states, cut.order, cut.tau, cut.starts_from) == (12, (12,), None, start.run_id)
    assert resolved(job("regularised", sizes_of="full"), results).order == (12,)
    student = job("distilled", sizes_of="full", starts_from="full")
    assert student.waits_for == {"full"}
    assert resolved(student, results).starts_from == start.run_id
    with pytest.raises(ValueError, match=r"wait for \['nobody'\]"):
        run_jobs([job("distilled", starts_from="nobody")], tmp_path, n_workers=1, progress=None)
