# ruff: noqa: NPY002  (the global generator of NumPy is one of those that a guard puts back)

import io
import json
import math
import random
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

import hsv
from hsv_torch import LRU, CutRefusedError, RealHankel, adapters
from hsv_torch.guard import Rollback
from hsv_torch.history import History
from hsv_torch.in_training import InTrainingCompressor
from hsv_torch.optimizer import UnknownOptimizerError
from hsv_torch.schedule import LossFalls, Schedule
from tests.hsv_torch.models import batch, classifier, train_step
from tests.hsv_torch.toy_layer import Decays, third_party  # noqa: F401  (a fixture)


def sizes(model: nn.Module) -> list[int]:
    return [block.ssm.n_states for block in model.blocks]


def make(model=None, *, schedule=None, rule=6, **options):
    model = classifier() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = schedule or Schedule(total_steps=30, window=(0.0, 0.4), attempts=2)  # steps 6 and 12
    return model, optimizer, InTrainingCompressor(model, optimizer, rule=rule, schedule=schedule, **options)


class TestSchedule:
    @pytest.mark.parametrize(
        ("arguments", "steps"),
        [
            ((20_000, (0.0, 0.1), 4), (500, 1000, 1500, 2000)),
            ((100, (0.2, 0.8), 3), (40, 60, 80)),
            ((10, (0.0, 1.0), 10), tuple(range(1, 11))),
            ((7, (0.5, 0.5), 1), (4,)),
            ((1, (0.0, 1.0), 1), (1,)),
        ],
    )
    def test_attempts_fall_where_the_formula_says(self, arguments, steps):
        assert Schedule(*arguments).steps == steps

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0,), "`total_steps` must be at least 1, got 0"),
            ((100, (0.0, 0.1), 0), "`attempts` must be at least 1, got 0"),
            ((100, (0.2, 0.1), 1), "`window` must satisfy 0 <= a <= b <= 1"),
            ((100, (0.0, 1.1), 1), "`window` must satisfy"),
            ((100, (float("nan"), 1.0), 1), "`window` must satisfy"),
            ((100, (0.0, 0.02), 4), "attempt 1 of 4 would fall on step 0"),
            ((100, (0.1, 0.12), 4), "attempts 1 and 2 of 4 would both fall on step 11"),
            ((100, (0.3, 0.3), 2), "attempts 1 and 2 of 2 would both fall on step 30"),
        ],
    )
    def test_what_cannot_happen_is_an_error(self, arguments, message):
        with pytest.raises(hsv.HsvError, match=re.escape(message)):
            Schedule(*arguments)

    @pytest.mark.parametrize("arguments", [(1e3,), (True,), (100, (0.0, 0.1), 2.0), (100, 0.1, 1), (100, (0.0,), 1)])
    def test_types(self, arguments):
        with pytest.raises(hsv.DtypeError):
            Schedule(*arguments)


class TestAttempts:
    def test_happen_at_their_steps_and_cut(self):
        model, optimizer, compressor = make(rule=hsv.HankelSum(discard=0.2))
        events = {}
        for step in range(1, 31):
            train_step(model, optimizer, step)
            assert compressor.done == (step > 12)
            event = compressor.step()
            if event is not None:
                events[step] = event
        assert list(events) == [6, 12]
        assert compressor.done
        assert compressor.steps == 30
        first = events[6]
        assert first.changed
        assert not first.undone
        for record, block in zip(events[12].layers, model.blocks, strict=True):
            assert record.n_states_after == block.ssm.n_states < 16
        old, new = events[6].replaced["blocks.0.ssm.B"]
        assert old.shape == (16, 4, 2)
        assert new.shape == (first.layers[0].n_states_after, 4, 2)
        assert all(p in set(model.parameters()) for p in optimizer.state)

    def test_the_history_holds_no_tensors_and_survives_json(self):
        model, optimizer, compressor = make()
        for step in range(1, 31):
            train_step(model, optimizer, step)
            compressor.step()
        history = compressor.history
        assert all(not event.replaced for event in history.events)
        copy = History.from_dict(json.loads(json.dumps(history.to_dict())))
        assert copy.to_dict() == history.to_dict()
        assert copy.sizes == {"blocks.0.ssm": 6, "blocks.1.ssm": 6}
        assert copy.sizes_over_steps("blocks.0.ssm") == ([0, 6], [16, 6])
        assert copy.events[0].layers[0].hankel_singular_values.shape == (16,)

    def test_the_margin_of_each_choice(self):
        _, _, compressor = make(rule=hsv.HankelSum(discard=0.1))
        event = next(event for _ in range(30) if (event := compressor.step()))
        for record in event.layers:
            tails = record.hankel_singular_values[::-1].cumsum()[::-1] / record.hankel_singular_values.sum()
            assert record.margin == pytest.approx(abs(tails[1:] - 0.1).min())
        assert event.scalars()[f"margin/{record.layer}"] == record.margin

    def test_a_logger_gets_every_number(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        _, _, compressor = make(rule=hsv.HankelSum(discard=0.1))
        told = {}
        with SummaryWriter(tmp_path) as writer:
            for _ in range(30):
                event = compressor.step()
                if event is not None:
                    for name, value in event.scalars().items():
                        writer.add_scalar(name, value, event.step)
                        told[name, event.step] = value
        read = EventAccumulator(str(tmp_path))
        read.Reload()
        found = {(name, each.step): each.value for name in read.Tags()["scalars"] for each in read.Scalars(name)}
        assert found == pytest.approx(told, rel=1e-6)
        assert {name for name, _ in found} >= {"states/blocks.0.ssm", "compression/memory", "margin/blocks.1.ssm"}

    def test_a_history_of_an_earlier_release(self):
        _, _, compressor = make()
        while compressor.step() is None:
            pass
        stored = compressor.history.to_dict()
        for event in stored["events"]:
            for name in ("memory_before", "memory_after", "peak_memory"):
                del event[name]
            for record in event["layers"]:
                del record["margin"]
        (event,) = History.from_dict(stored).events
        assert event.memory_before is None
        assert event.layers[0].margin is None

    def test_a_layer_that_would_lose_too_little_stays_as_it_is(self):
        model, optimizer, compressor = make(rule=16)
        kept = model.blocks[0].ssm.B
        for step in range(1, 7):
            train_step(model, optimizer, step)
            event = compressor.step()
        assert not event.changed
        assert [record.outcome for record in event.layers] == ["unchanged", "unchanged"]
        assert event.layers[0].reason == "the rule keeps 16 of 16 states, not fewer than 0.95 of them"
        assert model.blocks[0].ssm.B is kept

    def test_what_will_not_be_cut_is_not_computed(self, monkeypatch):
        whole = {}
        for min_reduction in (0.0, 0.05):
            model, optimizer, compressor = make(
                classifier(40, width=40), rule=hsv.HankelSum(discard=1e-6), min_reduction=min_reduction
            )
            for step in range(1, 7):
                train_step(model, optimizer, step)
                if min_reduction:
                    monkeypatch.setattr(torch.linalg, "eig", lambda A: pytest.fail("eigenvectors of what stays"))
                event = compressor.step()
            whole[min_reduction] = event.layers
        for stays, planned in zip(whole[0.05], whole[0.0], strict=True):
            order = planned.order
            assert stays.outcome == "unchanged"
            assert stays.order == stays.n_states_chosen == order
            assert stays.reason == f"the rule keeps {order} of 40 states, not fewer than 0.95 of them"
            np.testing.assert_array_equal(stays.hankel_singular_values, planned.hankel_singular_values)
            assert stays.error_bound is None

    @pytest.mark.parametrize(("min_reduction", "after"), [(0.05, 20), (0.049, 19), (0.0, 19), (0.5, 20)])
    def test_the_threshold_of_a_cut(self, min_reduction, after):
        # 19 of 20 states are exactly 0.95, and a cut needs fewer than that
        model, optimizer, compressor = make(classifier(20, n_blocks=1), rule=19, min_reduction=min_reduction)
        for step in range(1, 7):
            train_step(model, optimizer, step)
            compressor.step()
        assert sizes(model) == [after]

    def test_layers_by_pattern(self):
        model, optimizer, compressor = make(layers=["blocks.1.*"])
        for step in range(1, 7):
            train_step(model, optimizer, step)
            event = compressor.step()
        assert sizes(model) == [16, 6]
        assert [record.layer for record in event.layers] == ["blocks.1.ssm"]

    def test_a_refused_cut_is_recorded_and_the_others_are_made(self, monkeypatch):
        model, optimizer, compressor = make()
        adapter = adapters.adapter_of(model.blocks[0].ssm)
        reduce = type(adapter).reduce

        def refuse_the_first(self, layer, rule, criterion):
            if layer is model.blocks[0].ssm:
                raise CutRefusedError("its eigenvectors have condition 1e9", np.array([2.0, 1.0]))
            return reduce(self, layer, rule, criterion)

        monkeypatch.setattr(type(adapter), "reduce", refuse_the_first)
        for step in range(1, 7):
            train_step(model, optimizer, step)
            event = compressor.step()
        refused, cut = event.layers
        assert (refused.outcome, refused.n_states_after, refused.n_states_chosen) == ("refused", 16, None)
        assert refused.reason == "its eigenvectors have condition 1e9"
        assert refused.hankel_singular_values.tolist() == [2.0, 1.0]
        assert cut.outcome == "cut"
        assert sizes(model) == [16, 6]

    def test_nan_in_a_layer_is_a_refusal_with_the_reason(self):
        model, optimizer, compressor = make()
        for step in range(1, 6):
            train_step(model, optimizer, step)
            compressor.step()
        with torch.no_grad():
            model.blocks[0].ssm.B.fill_(torch.nan)
        event = compressor.step()
        assert event.layers[0].outcome == "refused"
        assert "nan" in event.layers[0].reason.lower() or "finite" in event.layers[0].reason
        assert "drift was not measured" in event.layers[0].notes[0]
        assert event.layers[1].outcome == "cut"

    def test_an_attempt_draws_no_random_numbers(self):
        def run(compress):
            model, optimizer, compressor = make(rule=16)
            draws = []
            for step in range(1, 14):
                train_step(model, optimizer, step)
                if compress:
                    compressor.step()
                draws.append((random.random(), np.random.random(), torch.rand(()).item()))
            return draws

        random.seed(0)
        np.random.seed(0)
        with_attempts = run(True)
        random.seed(0)
        np.random.seed(0)
        assert run(False) == with_attempts

    def test_conjugate_aware_criterion(self):
        model, optimizer, compressor = make(criterion=RealHankel())
        for step in range(1, 7):
            train_step(model, optimizer, step)
            event = compressor.step()
        record = event.layers[0]
        assert record.hankel_singular_values.shape == (32,)
        assert record.order > record.n_states_after == 6

    def test_drift_is_within_weyls_bound(self):
        model, optimizer, compressor = make(rule=10, schedule=Schedule(30, (0.0, 0.4), 4))
        events = []
        for step in range(1, 13):
            train_step(model, optimizer, step)
            event = compressor.step()
            events += [event] if event else []
        assert all(record.drift is None for record in events[0].layers)
        for event, before in zip(events[1:], events, strict=False):
            for record in event.layers:
                assert record.drift.since_step == before.step
                assert 0 < record.drift.largest_change <= record.drift.bound * (1 + 1e-9)

    def test_times(self):
        model, optimizer, compressor = make()
        started = time.perf_counter()
        for step in range(1, 31):
            train_step(model, optimizer, step)
            compressor.step()
        elapsed = time.perf_counter() - started
        history = compressor.history
        assert [event.steps_timed for event in history.events] == [5, 6]
        assert history.steps_timed == 18
        spent = sum(event.step_seconds for event in history.events) + history.step_seconds
        assert 0 < history.reduction_seconds < elapsed
        assert spent + history.reduction_seconds <= elapsed
        assert all(mean > 0 for mean in history.seconds_per_step)

    def test_between_attempts_a_call_costs_next_to_nothing(self):
        _, _, compressor = make(schedule=Schedule(10**6, (0.5, 1.0), 1))
        started = time.perf_counter()
        for _ in range(10_000):
            compressor.step()
        # 0.2 us measured; the limit allows for a busy machine and still excludes any look at the model
        assert (time.perf_counter() - started) / 10_000 < 10e-6

    @pytest.mark.usefixtures("third_party")
    def test_third_partys_layer(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), Decays(4, 8))
        optimizer = torch.optim.Adam(model.parameters())
        compressor = InTrainingCompressor(model, optimizer, rule=3, schedule=Schedule(3, (0, 1), 1))
        for step in range(3):
            optimizer.zero_grad()
            model(batch(step)[0]).square().mean().backward()
            optimizer.step()
            compressor.step()
        assert model[1].size == 3

    def test_a_bare_layer_is_a_model(self):
        layer = LRU(2, 9)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        compressor = InTrainingCompressor(layer, optimizer, rule=4, schedule=Schedule(2, (0, 1), 1))
        compressor.step()
        compressor.step()
        assert layer.n_states == 4


class TestBadInput:
    def test_schedule(self):
        with pytest.raises(TypeError, match=r"`schedule` must be a hsv_torch.Schedule"):
            make(schedule=[100, 200])

    def test_rule(self):
        with pytest.raises(hsv.DtypeError, match="rule must be an int"):
            make(rule=0.1)

    def test_guard(self):
        with pytest.raises(TypeError, match=r"`guard` must be a hsv_torch.Rollback or None"):
            make(guard=lambda: 1.0)

    @pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
    def test_min_reduction(self, value):
        with pytest.raises(hsv.HsvError, match="`min_reduction` is a fraction"):
            make(min_reduction=value)

    @pytest.mark.parametrize("argument", ["forward", "calibration"])
    def test_data_for_layers_that_need_none(self, argument):
        with pytest.raises(hsv.HsvError, match=f"`{argument}` is for layers whose system depends on their input"):
            make(**{argument: lambda model, batch: model(batch)})

    def test_optimizer_of_another_model(self):
        model = classifier()
        optimizer = torch.optim.SGD(classifier().parameters(), lr=0.1)
        with pytest.raises(hsv.HsvError, match="`optimizer` does not hold"):
            InTrainingCompressor(model, optimizer, schedule=Schedule(100))

    def test_unknown_optimizer_is_refused_before_training(self):
        model = classifier()
        optimizer = torch.optim.Rprop(model.parameters())
        with pytest.raises(UnknownOptimizerError, match="Rprop"):
            InTrainingCompressor(model, optimizer, schedule=Schedule(100))
        InTrainingCompressor(model, optimizer, schedule=Schedule(100), moments="reset")

    def test_state_that_cannot_be_put_back(self):
        with pytest.raises(TypeError, match=r"'ema'.*neither state_dict"):
            make(state={"ema": object()})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_drop": -1.0}, "`max_drop` must be a finite number not below 0"),
            ({"max_drop": math.inf}, "`max_drop` must be a finite number"),
            ({"max_drop": math.nan}, "`max_drop` must be a finite number"),
            ({"max_drop": "2 %"}, "`max_drop` must be a number, got '2 %'"),
            ({"max_drop": 0.1, "after_steps": -1}, "`after_steps` must be at least 0"),
            ({"max_drop": 0.1, "after_steps": 1.5}, "`after_steps` must be an int"),
        ],
    )
    def test_rollback(self, options, message):
        with pytest.raises(hsv.HsvError, match=re.escape(message)):
            Rollback(lambda: 1.0, **options)

    def test_rollback_of_no_function(self):
        with pytest.raises(TypeError, match="`evaluate` must be callable"):
            Rollback(0.9, max_drop=0.1)

    def test_deciding_later_needs_a_loader(self):
        with pytest.raises(hsv.HsvError, match=r"state=\{'loader': ...\}.*or after_steps=0"):
            make(guard=Rollback(lambda: 1.0, max_drop=0.1, after_steps=3))

    @pytest.mark.parametrize(
        ("after_steps", "message"), [(6, "attempt 1 is at step 6 and the next one at step 12"), (30, "attempt 1")]
    )
    def test_deciding_after_the_next_attempt(self, after_steps, message):
        guard = Rollback(lambda: 1.0, max_drop=0.1, after_steps=after_steps)
        with pytest.raises(hsv.HsvError, match=message):
            make(guard=guard, state={"loader": Loader()})

    def test_deciding_after_the_end(self):
        guard = Rollback(lambda: 1.0, max_drop=0.1, after_steps=5)
        with pytest.raises(hsv.HsvError, match="attempt 1 is at step 28 and training ends at step 30"):
            make(guard=guard, state={"loader": Loader()}, schedule=Schedule(30, (0.9, 0.94), 1))


class Loader:
    """A loader that can be rewound."""

    def __init__(self):
        self.position = 0

    def next(self):
        self.position += 1
        return self.position

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Training:
    """A run with all that a guard has to put back, of which every loss is compared."""

    def __init__(self, guard=None, *, compress=True, seed=0, **options):
        random.seed(seed)
        np.random.seed(seed)
        self.model = classifier(seed=seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 30)
        self.average = torch.optim.swa_utils.AveragedModel(nn.Linear(1, 1))
        self.generator = torch.Generator().manual_seed(7)
        self.loader = Loader()
        self.losses = {}
        self.events = []
        self.compressor = None
        if compress:
            self.compressor = InTrainingCompressor(
                self.model,
                self.optimizer,
                rule=5,
                schedule=Schedule(total_steps=30, window=(0.0, 0.4), attempts=2),
                guard=guard and guard(self),
                state={
                    "scheduler": self.scheduler,
                    "ema": self.average,
                    "loader": self.loader,
                    "generator": self.generator,
                },
                **options,
            )

    def steps(self):
        return self.compressor.steps if self.compressor else self.loader.position

    def run(self, until=30):
        while self.steps() < until:
            number = self.loader.next()
            x, y = batch(number)
            x = x + 0.01 * torch.randn(x.shape, generator=self.generator) + random.random() + np.random.random()
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses[number] = loss.item()
            if self.compressor:
                event = self.compressor.step()
                self.events += [event] if event else []
        return self

    def values(self):
        state = self.model.state_dict()
        moments = [v for p in self.model.parameters() for v in self.optimizer.state[p].values()]
        return [*state.values(), *moments]


def rude_metrics(values):
    """Return an `evaluate` that disturbs all it can and reports the values one after another."""

    def guard(training, **options):
        stream = iter(values)

        def evaluate():
            assert not torch.is_grad_enabled()
            random.random(), np.random.random(), torch.rand(3)
            training.model.train()
            training.model(batch(999)[0] + 5)  # moves the batch-norm statistics
            training.model.blocks[0].norm.running_mean = torch.full((4,), 3.0)
            training.model.eval()
            return next(stream)

        return Rollback(evaluate, max_drop=0.02, **options)

    return guard


class TestRollback:
    @pytest.mark.parametrize("after", [0.5, math.nan, -math.inf])
    def test_an_undone_cut_leaves_training_bit_identical(self, after):
        plain = Training(compress=False).run()
        guarded = Training(rude_metrics([0.9, after] * 2))
        before = dict(guarded.model.named_parameters())
        guarded.run()
        assert [event.undone for event in guarded.events] == [True, True]
        assert guarded.losses == plain.losses
        assert len(plain.losses) == 30
        assert all(p is before[name] for name, p in guarded.model.named_parameters())
        assert all(torch.equal(a, b) for a, b in zip(guarded.values(), plain.values(), strict=True))
        assert guarded.scheduler.state_dict() == plain.scheduler.state_dict()

    def test_the_copy_may_be_kept_in_host_memory(self):
        plain = Training(compress=False).run()
        guarded = Training(lambda training: rude_metrics([0.9, 0.5] * 2)(training, offload=True)).run()
        assert [event.undone for event in guarded.events] == [True, True]
        assert guarded.losses == plain.losses
        assert all(torch.equal(a, b) for a, b in zip(guarded.values(), plain.values(), strict=True))

    def test_memory_of_an_undone_cut_and_of_one_that_stays(self):
        training = Training(rude_metrics([0.9, 0.5, 0.9, 0.89])).run()
        undone, made = training.events
        held = sum(t.nbytes for t in training.values())  # parameters, buffers, moments
        assert undone.memory_before == undone.memory_after == made.memory_before
        assert made.memory_after == held < made.memory_before
        assert made.peak_memory is None
        assert training.compressor.history.events[1].memory_after == held

    def test_the_undone_cut_is_in_the_history(self):
        training = Training(rude_metrics([0.9, 0.5, 0.9, 0.89])).run()
        first, second = training.compressor.history.events
        assert first.undone
        assert not first.changed
        assert (first.metric_before, first.metric_after) == (0.9, 0.5)
        assert first.reason == "the metric fell from 0.9 to 0.5, by more than 0.02"
        record = first.layers[0]
        assert (record.outcome, record.n_states_before, record.n_states_chosen, record.n_states_after) == (
            "undone",
            16,
            5,
            16,
        )
        assert not second.undone
        assert second.changed
        assert sizes(training.model) == [5, 5]
        assert training.compressor.history.sizes_over_steps("blocks.1.ssm") == ([0, 12], [16, 5])
        assert training.events[0].replaced == {}
        assert "blocks.0.ssm.B" in training.events[1].replaced
        assert first.evaluation_seconds > 0

    def test_evaluate_leaves_no_trace_where_the_cut_stays(self):
        rude = Training(rude_metrics([0.9, 0.9] * 2)).run()
        unguarded = Training().run()
        assert rude.losses == unguarded.losses
        assert rude.losses != Training(compress=False).run().losses  # so that the comparisons above mean something
        assert all(torch.equal(a, b) for a, b in zip(rude.values(), unguarded.values(), strict=True))

    @pytest.mark.parametrize(
        ("higher", "before", "after", "stays"),
        [
            (True, 0.9, 0.89, True),
            (True, 0.9, 0.87, False),
            (True, 0.5, 0.9, True),
            (False, 0.10, 0.11, True),
            (False, 0.10, 0.13, False),
            (False, 0.10, 0.01, True),
            (False, math.nan, 0.1, False),
            (False, 0.1, math.nan, False),
            (True, math.inf, math.inf, False),
        ],
    )
    def test_what_is_a_drop(self, higher, before, after, stays):
        guard = Rollback(lambda: 0.0, max_drop=0.02, higher_is_better=higher)
        assert (guard.objection(before, after) is None) == stays

    def test_a_tensor_is_a_metric(self):
        training = Training(rude_metrics([torch.tensor(0.9), torch.tensor(0.1)] * 2)).run()
        assert [event.undone for event in training.events] == [True, True]

    @pytest.mark.parametrize("call", [1, 2])
    def test_an_exception_in_evaluate_puts_everything_back(self, call):
        calls = []

        def guard(training):
            def evaluate():
                calls.append(1)
                training.model.eval()
                if len(calls) == call:
                    raise RuntimeError("out of memory")
                return 0.5

            return Rollback(evaluate, max_drop=0.02)

        training = Training(guard)
        before = dict(training.model.named_parameters())
        with pytest.raises(RuntimeError, match="out of memory"):
            training.run()
        assert all(p is before[name] for name, p in training.model.named_parameters())
        assert all(any(p is held for held in before.values()) for p in training.optimizer.state)
        assert training.model.training
        training.run()  # and the schedule goes on
        assert sizes(training.model) == [5, 5]

    def test_without_a_cut_nothing_is_evaluated(self):
        def guard(training):
            return Rollback(lambda: pytest.fail("evaluated"), max_drop=0.1)

        training = Training(guard)
        training.compressor.rules = lambda attempt: hsv.Order(16)
        training.run()
        assert [event.metric_before for event in training.events] == [None, None]


class TestDriftWithoutTraining:
    """Drift leaves out the cut itself, so without training between the attempts there is none."""

    @pytest.mark.parametrize("after_steps", [0, 2])
    @pytest.mark.parametrize("metric", [None, 0.9, 0.1], ids=["no guard", "stays", "undone"])
    def test_is_zero(self, metric, after_steps):
        metrics = iter([0.9, metric] * 2)
        guard = metric and Rollback(lambda: next(metrics), max_drop=0.0, after_steps=after_steps)
        _, _, compressor = make(guard=guard, state={"loader": Loader()}, rule=hsv.HankelSum(discard=0.3))
        while not compressor.done:
            compressor.step()
        first, second = compressor.history.events
        for record, earlier in zip(second.layers, first.layers, strict=True):
            assert earlier.n_states_chosen < 16
            assert record.drift.since_step == 6
            top = record.hankel_singular_values[0]
            # The difference of two equal systems is not exactly zero once its Gramian is factored.
            assert record.drift.largest_change < 1e-10 * top
            assert record.drift.bound < 1e-6 * top

    def test_resumes(self):
        _, _, compressor = make()
        for _ in range(8):
            compressor.step()
        other = make()[2]
        other.load_state_dict(compressor.state_dict())
        other.model.load_state_dict(compressor.model.state_dict())
        while not other.done:
            other.step()
        assert all(record.drift.bound < 1e-6 for record in other.history.events[1].layers)


class TestLaterDecision:
    def guard(self, values, after_steps=4):
        return lambda training: rude_metrics(values)(training, after_steps=after_steps)

    def test_an_undone_cut_leaves_training_bit_identical(self):
        plain = Training(compress=False).run()
        guarded = Training(self.guard([0.9, 0.5] * 2))
        before = dict(guarded.model.named_parameters())
        guarded.run()
        assert guarded.losses == plain.losses
        assert all(p is before[name] for name, p in guarded.model.named_parameters())
        assert all(torch.equal(a, b) for a, b in zip(guarded.values(), plain.values(), strict=True))
        assert guarded.scheduler.state_dict() == plain.scheduler.state_dict()
        assert [(event.step, event.pending, event.undone) for event in guarded.events] == [
            (6, True, False),
            (6, False, True),
            (12, True, False),
            (12, False, True),
        ]
        assert [(event.attempt, event.undone) for event in guarded.compressor.history.events] == [(1, True), (2, True)]

    def test_a_cut_that_stays(self):
        training = Training(self.guard([0.9, 0.9, 0.9, 0.5])).run(11)
        event = training.compressor.history.events[0]
        assert not event.pending
        assert event.changed
        assert event.metric_after == 0.9
        assert sizes(training.model) == [5, 5]
        training.run()
        # the second attempt finds 5 of 5 states and cuts nothing
        assert [e.pending for e in training.compressor.history.events] == [False, False]
        assert training.compressor.done

    def test_the_history_says_that_it_is_not_decided(self):
        training = Training(self.guard([0.9, 0.5])).run(8)
        event = training.compressor.history.events[0]
        assert event.pending
        assert event.changed
        assert not training.compressor.done

    @pytest.mark.parametrize("loaded_first", [False, True])
    def test_resumes_while_a_decision_is_open(self, loaded_first):
        straight = Training(self.guard([0.9, 0.5, 0.9, 0.9])).run()
        first = Training(self.guard([0.9])).run(8)
        stored = save(first)
        second = Training(self.guard([0.5, 0.9, 0.9]), seed=3)
        resume(second, stored)
        if loaded_first:  # a model that has its sizes and values already is left alone
            resume(second, stored)
        assert sizes(second.model) == [5, 5]
        second.run()
        assert {n: loss for n, loss in straight.losses.items() if n > 8} == {
            n: loss for n, loss in second.losses.items() if n > 8
        }
        assert all(torch.equal(a, b) for a, b in zip(straight.values(), second.values(), strict=True))
        plain = [
            {**event, "seconds": 0, "evaluation_seconds": 0, "step_seconds": 0, "steps_timed": 0}
            for history in (straight.compressor.history, second.compressor.history)
            for event in history.to_dict()["events"]
        ]
        assert plain[:2] == plain[2:]


def save(training: Training) -> io.BytesIO:
    """Save what a user would save, as a file that can be loaded without running code."""
    file = io.BytesIO()
    torch.save(
        {
            "compressor": training.compressor.state_dict(),
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scheduler": training.scheduler.state_dict(),
            "loader": training.loader.state_dict(),
            "generator": training.generator.get_state(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
            "position": np.random.get_state()[2],
        },
        file,
    )
    file.seek(0)
    return file


def resume(training: Training, file: io.BytesIO) -> None:
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    training.compressor.load_state_dict(stored["compressor"])
    for name in ("model", "optimizer", "scheduler", "loader"):
        getattr(training, name).load_state_dict(stored[name])
    training.generator.set_state(stored["generator"])
    torch.set_rng_state(stored["torch"])
    random.setstate(stored["python"])
    np.random.set_state(("MT19937", stored["numpy"].numpy().astype(np.uint32), stored["position"]))


class TestResume:
    @pytest.mark.parametrize("until", [3, 6, 9, 12, 20])
    def test_goes_on_exactly(self, until):
        straight = Training().run()
        stored = save(Training().run(until))
        second = Training(seed=5)
        resume(second, stored)
        second.run()
        assert {n: x for n, x in straight.losses.items() if n > until} == second.losses
        assert all(torch.equal(a, b) for a, b in zip(straight.values(), second.values(), strict=True))
        a, b = (t.compressor.history.to_dict() for t in (straight, second))
        for one, other in zip(a["events"], b["events"], strict=True):
            for record, record2 in zip(one["layers"], other["layers"], strict=True):
                assert record == record2
        assert second.compressor.done

    def test_gives_a_fresh_model_its_sizes(self):
        first = Training().run(8)
        second = Training()
        held = second.optimizer.param_groups[0]["params"]
        second.compressor.load_state_dict(first.compressor.state_dict())
        assert sizes(second.model) == [5, 5]
        assert all(a is b for a, b in zip(held, second.model.parameters(), strict=True))

    def test_of_another_schedule(self):
        model, optimizer, _ = make()
        other = InTrainingCompressor(model, optimizer, rule=6, schedule=Schedule(100))
        with pytest.raises(hsv.HsvError, match=r"saved with the schedule \[30, "):
            other.load_state_dict(make()[2].state_dict())

    def test_of_other_layers(self):
        with pytest.raises(hsv.HsvError, match=r"saved for the layers .*blocks.0.ssm.* cuts \['blocks.1.ssm'\]"):
            make(layers=["blocks.1.ssm"])[2].load_state_dict(make()[2].state_dict())

    def test_of_something_else(self):
        for state in ({"last_epoch": 3}, None):
            with pytest.raises(hsv.HsvError, match="is no state of an InTrainingCompressor"):
                make()[2].load_state_dict(state)

    def test_of_half_a_state(self):
        with pytest.raises(
            hsv.HsvError, match=r"no whole state of an InTrainingCompressor: it lacks \['schedule', 'steps'"
        ):
            make()[2].load_state_dict({"version": 1})

    def pending(self):
        return Training(lambda t: rude_metrics([0.9, 0.5])(t, after_steps=4)).run(8).compressor.state_dict()

    def refused(self, training, state, message):
        """Check that nothing has changed, either."""
        before, placed = training.compressor.state_dict(), dict(training.model.named_parameters())
        with pytest.raises(hsv.HsvError, match=message):
            training.compressor.load_state_dict(state)
        after = training.compressor.state_dict()
        before["history"].pop("step_seconds"), after["history"].pop("step_seconds")
        assert after == before
        assert all(placed[name] is p for name, p in training.model.named_parameters())
        assert all(
            a is b
            for a, b in zip(training.optimizer.param_groups[0]["params"], training.model.parameters(), strict=True)
        )
        training.run(5)  # it goes on

    def test_of_an_open_decision_without_a_guard(self):
        self.refused(Training(), self.pending(), "the guard had yet to decide, at step 10, .* made without `guard`")

    def test_of_an_open_decision_with_other_objects(self):
        state = self.pending()
        del state["pending"]["snapshot"]["objects"]["ema"]
        training = Training(lambda t: rude_metrics([0.9])(t, after_steps=4))
        self.refused(training, state, r"objects \['generator', 'loader', 'scheduler'\], and `state` has \['ema', ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sizes": {"none such": {"n_states": 3}}}, "sizes are stored for the layers"),
            ({"steps": "many"}, "`state` is damaged"),
            ({"attempts_made": None}, "`state` is damaged"),
            ({"systems": {"steps": {}}}, "`state` is damaged.*KeyError"),
            ({"history": {"initial_sizes": {"blocks.0.ssm": 16, "blocks.1.ssm": 16}}}, "`state` is damaged"),
        ],
    )
    def test_of_a_damaged_state(self, change, message):
        self.refused(Training(), {**Training().run(8).compressor.state_dict(), **change}, message)

    def test_a_late_failure_leaves_what_waits_for_the_loss_as_it_was(self):
        def begin():
            return make(ready=LossFalls(to=0.5))[2]

        first, second = begin(), begin()
        for _ in range(3):
            first.step(1.0)
        before = second.state_dict()
        with pytest.raises(hsv.HsvError, match="sizes are stored for the layers"):
            second.load_state_dict({**first.state_dict(), "sizes": {"none such": {"n_states": 3}}})
        assert second.state_dict()["ready"] == before["ready"]


def test_repr_says_where_it_is():
    _, _, compressor = make()
    assert repr(compressor) == (
        "InTrainingCompressor(step 0, 0 of 2 attempts, states {'blocks.0.ssm': 16, 'blocks.1.ssm': 16})"
    )
