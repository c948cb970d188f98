"""Rules that change, guards that try again, copies of the model that are cut along, warm-ups: what a run can ask for beyond the paper's schedule."""

import copy
import gc
import io
import math
import weakref

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hsv
import hsv_torch
from hsv_torch import Budget, RankingSettles, Rollback, Schedule, Sizes
from hsv_torch.rewarm import Rewarm
from hsv_torch.schedule import rank_correlation
from tests.hsv_torch.models import batch, classifier, train_step
from tests.hsv_torch.test_in_training import make, sizes


class Loader:
    """Counts batches; stateful."""

    def __init__(self):
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def run(model, optimizer, compressor, steps=30, *, averages=None):
    """Train with batches by the compressor's own count, so that undone steps see their batches again."""
    events = []
    for _ in range(3 * steps):
        if compressor.steps == steps:
            return events
        train_step(model, optimizer, compressor.steps)
        if averages is not None:
            averages.update_parameters(model)
        event = compressor.step()
        events += [] if event is None else [event]
    raise AssertionError("the run does not end")


class TestSchedules:
    def test_named_steps(self):
        assert Schedule(100, at=[3, 50, 100]).steps == (3, 50, 100)
        assert Schedule(100, at=(3, 50)).attempts == 2
        assert Schedule.once(100, 7).steps == (7,)
        assert Schedule.every(100, 30).steps == (30, 60, 90)
        assert Schedule.every(100, 30, start=20, stop=80).steps == (50, 80)
        assert Schedule.after_warm_up(1000, 100, attempts=2).steps == (150, 200)
        assert Schedule.after_warm_up(1000, 100, part=0.4, attempts=2).steps == (300, 500)

    @pytest.mark.parametrize(
        ("make_one", "message"),
        [
            (lambda: Schedule(100, at=()), "`at` is empty"),
            (lambda: Schedule(100, at=(5, 5)), r"`at` must be ascending steps up to total_steps = 100, got \(5, 5\)"),
            (lambda: Schedule(100, at=(5, 101)), "ascending steps up to total_steps = 100"),
            (lambda: Schedule(100, at=(0, 5)), "`at` must be at least 1, got 0"),
            (lambda: Schedule(100, at=(2.5,)), "`at` must be an int"),
            (lambda: Schedule.every(100, 0), "`steps` must be at least 1"),
            (lambda: Schedule.every(100, 60, start=50), "there is no step every 60 steps after `start` = 50"),
            (lambda: Schedule.after_warm_up(100, 95), "`window` must satisfy"),
            (lambda: Schedule.after_warm_up(0, 5), "`total_steps` must be at least 1, got 0"),
            (lambda: Schedule.every(100, 10, start=-50), "`start` must be an int of at least 0"),
            (lambda: Schedule(100, at=3), "`at` must be a list of optimizer steps, got 3; Schedule.once"),
        ],
    )
    def test_impossible_ones(self, make_one, message):
        with pytest.raises(hsv.HsvError, match=message):
            make_one()

    def test_are_followed(self):
        model, optimizer, compressor = make(schedule=Schedule(20, at=(3, 11)), rule=[9, 4])
        assert [event.step for event in run(model, optimizer, compressor, 20)] == [3, 11]
        assert sizes(model) == [4, 4]


class TestRules:
    def test_a_rule_for_each_attempt(self):
        model, optimizer, compressor = make(rule=[10, hsv.Order(4)])
        first, second = run(model, optimizer, compressor)
        assert [r.n_states_after for r in first.layers + second.layers] == [10, 10, 4, 4]

    def test_a_function_of_the_attempt(self):
        asked = []

        def rule(attempt, attempts):
            asked.append((attempt, attempts))
            return 12 // attempt

        model, optimizer, compressor = make(rule=rule)
        assert asked == [(1, 2), (2, 2)]  # an impossible one is found here
        run(model, optimizer, compressor)
        assert asked == [(1, 2), (2, 2)] * 2
        assert sizes(model) == [6, 6]

    def test_a_budget_is_approached_in_equal_ratios_and_met_at_the_end(self):
        model, optimizer, compressor = make(rule=Budget(states=8), sizes=Sizes(multiple_of=2))
        first, second = run(model, optimizer, compressor)
        assert 12 <= sum(r.n_states_after for r in first.layers) <= 16
        assert 6 <= sum(r.n_states_after for r in second.layers) <= 8
        assert all(size % 2 == 0 for size in sizes(model))

    def test_a_budget_that_cannot_be_met_is_in_the_history(self):
        model, optimizer, compressor = make(rule=Budget(states=8, gradual=False), sizes=Sizes(floor=5))
        event = run(model, optimizer, compressor)[0]
        assert [record.outcome for record in event.layers] == ["refused", "refused"]
        assert "the budget of 8 states cannot be met" in event.layers[0].reason
        assert sizes(model) == [16, 16]

    def test_bad_input(self):
        with pytest.raises(hsv.HsvError, match="`rule` is a list of 3 rules, and the schedule has 2 attempts"):
            make(rule=[4, 3, 2])
        with pytest.raises(hsv.DtypeError, match=r"got 0\.5"):
            make(rule=[0.5, 4])
        with pytest.raises(hsv.DtypeError, match="got 'all'"):
            make(rule="all")
        with pytest.raises(TypeError, match="`sizes` must be"):
            make(sizes={"floor": 3})

    @pytest.mark.parametrize("rule", [hsv.HankelSum, [4, hsv.HankelSum], lambda attempt, attempts: hsv.HankelSum])
    def test_a_class_is_no_rule(self, rule):
        with pytest.raises(hsv.DtypeError, match=r"got the class HankelSum; make one of it, as HankelSum\(\.\.\.\)"):
            make(rule=rule)

    def test_a_function_of_other_arguments(self):
        with pytest.raises(hsv.DtypeError, match=r"`rule` is called as rule\(attempt, attempts\).*too many positional"):
            make(rule=lambda attempt: 4)
        make(rule=lambda *attempts: 4)

    @pytest.mark.parametrize("bad", [0.9, None, 0])
    def test_a_function_that_returns_no_rule(self, bad):
        with pytest.raises(hsv.HsvError) as caught:
            make(rule=lambda attempt, attempts: 4 if attempt == 1 else bad)
        assert "called as rule(2, 2)" in caught.value.__notes__[0]


class TestGuard:
    def metrics(self, values, **options):
        values = iter(values)
        return Rollback(lambda: next(values), max_drop=0.0, **options)

    def test_a_gentler_cut_follows_at_the_next_step(self):
        # before and after, three times: undone, undone, kept
        guard = self.metrics([0.9, 0.1, 0.9, 0.2, 0.9, 0.9], gentler=2)
        model, optimizer, compressor = make(schedule=Schedule(30, at=(6,)), rule=4, guard=guard)
        events = run(model, optimizer, compressor)
        assert [(e.attempt, e.step, e.undone) for e in events] == [(1, 6, True), (1, 7, True), (1, 8, False)]
        assert [e.layers[0].n_states_chosen for e in events] == [4, 10, 13]
        assert "tried again with half of the reduction" in events[0].reason
        assert sizes(model) == [13, 13]
        assert compressor.done

    def test_tries_come_to_an_end(self):
        guard = self.metrics([0.9, 0.1] * 4, gentler=1)
        model, optimizer, compressor = make(rule=4, guard=guard)
        events = run(model, optimizer, compressor)
        assert [(e.attempt, e.step, e.undone) for e in events] == [
            (1, 6, True),
            (1, 7, True),
            (2, 12, True),
            (2, 13, True),
        ]
        assert sizes(model) == [16, 16]

    def test_later_decisions_try_again_too(self):
        guard = self.metrics([0.9, 0.1, 0.9, 0.9], gentler=1, after_steps=2)
        model, optimizer, compressor = make(
            schedule=Schedule(30, at=(6,)), rule=4, guard=guard, state={"loader": Loader()}
        )
        events = run(model, optimizer, compressor)
        assert [(e.step, e.undone, e.pending) for e in events] == [(6, False, True), (6, True, False), (7, False, True), (7, False, False)]  # fmt: skip
        assert sizes(model) == [10, 10]

    def test_stopping_for_good(self):
        guard = self.metrics([0.9, 0.1], then="stop")
        model, optimizer, compressor = make(rule=4, guard=guard)
        (event,) = run(model, optimizer, compressor)
        assert event.undone
        assert "no further attempts are made" in event.reason
        assert compressor.done
        assert sizes(model) == [16, 16]

    def test_the_pragmatic_variant(self):
        """A tenth of the states at a time, kept while validation holds."""
        guard = self.metrics([0.5, 0.6, 0.6, 0.7, 0.7, 0.6], after_steps=3, then="stop")
        model, optimizer, compressor = make(
            schedule=Schedule.every(30, 5, stop=25),
            rule=lambda attempt, attempts: Budget(keep=0.9**attempt, gradual=False),
            sizes=Sizes(uniform=True),
            guard=guard,
            state={"loader": Loader()},
        )
        run(model, optimizer, compressor)
        assert sizes(model) == [12, 12]
        assert [event.undone for event in compressor.history.events] == [False, False, True]

    def test_bad_input(self):
        for options, message in (
            ({"gentler": -1}, "`gentler` must be at least 0"),
            ({"gentler": 1.5}, "`gentler` must be an int"),
            ({"then": "give up"}, "`then` must be 'go on' or 'stop', got 'give up'"),
        ):
            with pytest.raises(hsv.HsvError, match=message):
                Rollback(lambda: 0.0, max_drop=0.0, **options)
        with pytest.raises(hsv.HsvError, match=r"decides up to 7 steps after an attempt, but attempt 1 is at step 6 and the next one at step 12"):  # fmt: skip
            make(guard=Rollback(lambda: 0.0, max_drop=0.0, gentler=7))

    def test_a_run_resumed_between_two_tries(self):
        def begin():
            values = iter([0.9, 0.1, 0.9, 0.9])
            return values, make(schedule=Schedule(30, at=(6,)), rule=4, guard=Rollback(lambda: next(values), max_drop=0.0, gentler=1))  # fmt: skip

        _, (model, optimizer, compressor) = begin()
        run(model, optimizer, compressor, 6)
        state = copy.deepcopy((compressor.state_dict(), model.state_dict(), optimizer.state_dict()))
        torch.manual_seed(0)
        run(model, optimizer, compressor)
        values, (other, other_optimizer, resumed) = begin()
        next(values), next(values)
        resumed.load_state_dict(state[0])
        other.load_state_dict(state[1])
        other_optimizer.load_state_dict(state[2])
        torch.manual_seed(0)
        run(other, other_optimizer, resumed)
        assert sizes(other) == sizes(model) == [10, 10]
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )


class TestCopies:
    def averaged(self, model):
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def test_an_average_is_cut_along_and_goes_on(self):
        model = classifier()
        average, plain = self.averaged(model), copy.deepcopy(model)
        model, optimizer, compressor = make(
            model, state={"ema": average, "copy": plain, "other": torch.nn.Linear(2, 2)}
        )
        run(model, optimizer, compressor, 6, averages=average)
        assert sizes(average.module) == sizes(plain) == [6, 6]
        assert torch.equal(average.module.blocks[0].ssm.theta, model.blocks[0].ssm.theta)
        assert not torch.equal(average.module.head.weight, model.head.weight)  # what is not cut stays averaged
        run(model, optimizer, compressor, averages=average)
        average.eval(), model.eval()
        x, _ = batch(0)
        assert torch.isfinite(average(x)).all()
        assert not torch.equal(average(x), model(x))

    @pytest.mark.parametrize("after_steps", [0, 2])
    def test_an_undone_cut_leaves_the_average_bit_for_bit(self, after_steps):
        def train(guard):
            model = classifier()
            average = self.averaged(model)
            state = {"ema": average, "loader": Loader()}
            model, optimizer, compressor = make(model, guard=guard, state=state, rule=4 if guard else 16)
            run(model, optimizer, compressor, averages=average)
            return average

        values = iter([0.9, 0.1] * 2)
        undone = train(Rollback(lambda: next(values), max_drop=0.0, after_steps=after_steps))
        never = train(None)
        assert sizes(undone.module) == [16, 16]
        assert all(
            torch.equal(a, b) for a, b in zip(undone.state_dict().values(), never.state_dict().values(), strict=True)
        )

    def test_a_resumed_run_with_a_pending_decision(self):
        def begin():
            model = classifier()
            average, values = self.averaged(model), iter([0.9, 0.1])
            guard = Rollback(lambda: next(values), max_drop=0.0, after_steps=4)
            state = {"ema": average, "loader": Loader()}
            return (*make(model, schedule=Schedule(30, at=(6,)), guard=guard, state=state), average, values)

        model, optimizer, compressor, average, _ = begin()
        run(model, optimizer, compressor, 8, averages=average)
        assert sizes(average.module) == [6, 6]
        file = io.BytesIO()
        torch.save([x.state_dict() for x in (compressor, model, optimizer, average)], file)
        torch.manual_seed(0)
        run(model, optimizer, compressor, averages=average)

        other, other_optimizer, resumed, other_average, values = begin()
        next(values)
        file.seek(0)
        states = torch.load(file)
        for thing, state in zip((resumed, other, other_optimizer, other_average), states, strict=True):
            thing.load_state_dict(state)
        torch.manual_seed(0)
        run(other, other_optimizer, resumed, averages=other_average)
        assert sizes(other) == sizes(other_average.module) == [16, 16]
        for a, b in ((model, other), (average, other_average)):
            assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda model: AveragedModel(torch.compile(model, backend="eager")),
            lambda model: AveragedModel(torch.nn.DataParallel(model)),
            lambda model: torch.nn.DataParallel(
                AveragedModel(torch.compile(torch.nn.DataParallel(model), backend="eager"))
            ),
            lambda model: torch.nn.ModuleDict({"online": model, "ema": copy.deepcopy(model)}),
            lambda model: AveragedModel(model.blocks),
        ],
        ids=["compiled", "parallel", "all of them", "beside the model itself", "a part"],
    )
    def test_a_copy_is_found_whatever_it_is_wrapped_in(self, wrap):
        model = classifier()
        state = {"copy": wrap(model)}
        model, optimizer, compressor = make(model, state=state)
        run(model, optimizer, compressor, 6)
        layers = [module for module in state["copy"].modules() if isinstance(module, hsv_torch.LRU)]
        assert {layer.n_states for layer in layers} == {6}
        own = [block.ssm for block in model.blocks]
        layer = next(layer for layer in layers if layer not in own)
        assert torch.equal(layer.theta, model.blocks[0].ssm.theta)

    def test_a_model_that_is_a_layer_is_found_in_its_average(self):
        model = hsv_torch.LRU(3, 16)
        average = AveragedModel(model)
        optimizer = torch.optim.AdamW(model.parameters())
        compressor = hsv_torch.InTrainingCompressor(
            model, optimizer, rule=6, schedule=Schedule(2, at=(1,)), state={"ema": average}
        )
        compressor.step()
        assert average.module.n_states == model.n_states == 6

    def test_the_model_itself_in_state_is_left_to_its_own_cut(self):
        model = classifier()
        other, other_optimizer, without = make(copy.deepcopy(model))
        state = {"model": model, "all": torch.nn.ModuleDict({"model": model})}
        model, optimizer, compressor = make(model, state=state)
        for arguments in ((model, optimizer, compressor), (other, other_optimizer, without)):
            torch.manual_seed(0)
            run(*arguments, 6)
        assert sizes(model) == [6, 6]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    def test_another_model_is_no_copy(self):
        other = torch.nn.Sequential(hsv_torch.LRU(4, 8), hsv_torch.LRU(4, 8), hsv_torch.LRU(4, 8))
        with pytest.raises(
            hsv.HsvError, match=r"`state`: 'critic' \(Sequential\) has .* is not recognised as a copy of the model"
        ):
            make(state={"critic": other})
        wider = classifier(width=8)
        with pytest.raises(hsv.HsvError, match=r"'critic' .* is not recognised as a copy of the model"):
            make(state={"critic": wider})
        with pytest.raises(hsv.HsvError, match="could be a copy of several parts of the model"):
            make(state={"block": copy.deepcopy(classifier().blocks[0])})

    def test_a_copy_that_cannot_follow_leaves_everything_as_it_was(self):
        model = classifier()
        other = copy.deepcopy(model)
        other.blocks[1].ssm.d_extra = torch.nn.Parameter(torch.zeros(1))  # one parameter too many
        model, optimizer, compressor = make(model, state={"copy": other})
        before = dict(other.named_parameters())
        with pytest.raises(RuntimeError, match="Missing key") as caught:
            run(model, optimizer, compressor, 6)
        assert "while cutting the copies of the model in `state` (copy)" in caught.value.__notes__[0]
        assert all(before[name] is p for name, p in other.named_parameters())


class TestRewarm:
    def test_rates_rise_after_a_cut_and_schedulers_do_not_notice(self):
        model, optimizer, compressor = make(schedule=Schedule(30, at=(6,)), rewarm_steps=4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        used = []
        optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
        expected = []
        for _ in range(12):
            expected.append(optimizer.param_groups[0]["lr"])
            train_step(model, optimizer, compressor.steps)
            assert optimizer.param_groups[0]["lr"] == expected[-1]
            scheduler.step()
            compressor.step()
        factors = [a / b for a, b in zip(used, expected, strict=True)]
        assert factors == pytest.approx([1] * 6 + [0.2, 0.4, 0.6, 0.8] + [1] * 2)
        assert expected == pytest.approx([1e-2 * (1 + math.cos(math.pi * k / 30)) / 2 for k in range(12)])

    def test_an_undone_cut_needs_none(self):
        metrics = iter([0.9, 0.1])
        guard = Rollback(lambda: next(metrics), max_drop=0.0)
        model, optimizer, compressor = make(schedule=Schedule(30, at=(6,)), rewarm_steps=4, guard=guard)
        used = []
        optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
        run(model, optimizer, compressor, 10)
        assert set(used) == {1e-2}

    def test_a_step_that_fails_leaves_no_trace(self):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([p], lr=1.0)
        rewarm = Rewarm(optimizer, 1)
        rewarm.start()
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        p.grad = torch.ones(1)
        optimizer.step()
        assert p.item() == -0.5
        assert optimizer.param_groups[0]["lr"] == 1.0
        optimizer.step()
        assert p.item() == -1.5

    @pytest.mark.parametrize("scheduled", ["before", "after", "twice"])
    @pytest.mark.parametrize(
        "kind", [torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.LambdaLR], ids=lambda k: k.__name__
    )
    def test_a_scheduler_goes_on_from_the_rate_of_before_a_failed_step(self, scheduled, kind):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([p], lr=1.0)
        options = (1, 0.1) if kind is torch.optim.lr_scheduler.StepLR else (lambda epoch: 0.1**epoch,)
        scheduler = kind(optimizer, *options) if scheduled == "before" else None
        rewarm = Rewarm(optimizer, 3)
        if scheduled == "twice":
            Rewarm(optimizer, 2)
        scheduler = scheduler or kind(optimizer, *options)
        rewarm.start()
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        assert optimizer.param_groups[0]["lr"] == 1.0
        scheduler.step()
        p.grad = torch.ones(1)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        assert p.item() == pytest.approx(-0.1 / 4)

    def test_the_optimizer_is_freed_as_soon_as_it_is_dropped_and_can_be_copied(self):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        rewarm = Rewarm(optimizer, 1)
        copy.deepcopy(optimizer).step()
        reference = weakref.ref(optimizer)
        gc.disable()
        try:
            del optimizer
            assert reference() is None
        finally:
            gc.enable()
        assert rewarm.n_steps == 1

    def test_bad_input(self):
        for value, error in ((-1, hsv.HsvError), (1.5, hsv.DtypeError)):
            with pytest.raises(error, match="`rewarm_steps` must be"):
                make(rewarm_steps=value)


class TestRankingSettles:
    def test_rank_correlation(self):
        x = torch.tensor([0.3, 0.1, 0.5, 0.9])
        assert rank_correlation(x, 7 * x) == 1
        assert rank_correlation(x, -x) == -1
        assert rank_correlation(x, torch.tensor([0.3, 0.1, 0.9, 0.5])) == pytest.approx(0.8)
        assert rank_correlation(torch.stack([x, x]), torch.stack([x, -x])) == -1

    def test_an_attempt_waits_for_the_ranking(self):
        model, optimizer, compressor = make(schedule=Schedule(60, at=(6,)), ready=RankingSettles(0.99, every=3))
        stir = torch.Generator().manual_seed(0)
        events = []
        for step in range(1, 61):
            train_step(model, optimizer, step)
            if step < 20:  # the states change places
                with torch.no_grad():
                    model.blocks[1].ssm.C.copy_(torch.randn(model.blocks[1].ssm.C.shape, generator=stir))
            event = compressor.step()
            events += [] if event is None else [event]
        assert [(event.step, event.put_off) for event in events] == [(6, True), (24, False)]
        assert "attempt 1 is put off: the ranking of the states is compared" in events[0].reason
        assert sizes(model) == [6, 6]

    def test_it_settles_at_the_second_look_where_nothing_moves(self):
        _, _, compressor = make(schedule=Schedule(30, at=(6,)), ready=RankingSettles(every=4, drift=1e-6))
        events = [event for event in (compressor.step() for _ in range(20)) if event is not None]
        assert [(event.step, event.put_off) for event in events] == [(6, True), (10, False)]

    def test_drift_has_a_say(self):
        model, _, compressor = make(schedule=Schedule(30, at=(6,)), ready=RankingSettles(0.1, every=4, drift=0.01))
        found = []
        for _ in range(30):
            with torch.no_grad():
                model.blocks[0].ssm.B.mul_(1.01)  # the ranking stays, the values do not
            event = compressor.step()
            found += [] if event is None else [event]
        assert [event.put_off for event in found] == [True, True]
        assert "'blocks.0.ssm' may have moved by 0.0" in found[1].reason

    def test_a_run_resumed_while_waiting_goes_on_alike(self):
        def begin():
            return make(schedule=Schedule(60, at=(6,)), ready=RankingSettles(0.999, every=5))

        model, optimizer, compressor = begin()
        run(model, optimizer, compressor, 9)
        state = copy.deepcopy((compressor.state_dict(), model.state_dict(), optimizer.state_dict()))
        torch.manual_seed(0)
        events = run(model, optimizer, compressor, 60)
        other, other_optimizer, resumed = begin()
        resumed.load_state_dict(state[0])
        other.load_state_dict(state[1])
        other_optimizer.load_state_dict(state[2])
        torch.manual_seed(0)
        assert [e.step for e in run(other, other_optimizer, resumed, 60)] == [e.step for e in events]
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )

    def test_bad_input(self):
        for options, message in (
            ({"correlation": 0.0}, r"must be in \(0, 1\], got 0.0"),
            ({"every": 0}, "`every` must be at least 1"),
            ({"drift": -1.0}, "`drift` is a fraction"),
        ):
            with pytest.raises(hsv.HsvError, match=message):
                RankingSettles(**options)
        model = torch.nn.Sequential(hsv_torch.Mamba(4, 8))
        with pytest.raises(
            hsv.HsvError, match="RankingSettles looks at layers whose system does not depend on their input"
        ):
            make(model, ready=RankingSettles(), calibration=[torch.randn(2, 8, 4)])
