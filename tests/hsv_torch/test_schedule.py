"""Attempts that wait until the loss has begun to fall. The schedule's own arithmetic is tested with the compressor."""

import copy

import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch.schedule import LossFalls, LossMeter


def compressor(ready, total=100, window=(0.0, 0.4), attempts=2, **options):
    torch.manual_seed(0)
    model = nn.Sequential(hsv_torch.LRU(2, 12))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = hsv_torch.Schedule(total_steps=total, window=window, attempts=attempts)
    return hsv_torch.InTrainingCompressor(
        model, optimizer, rule=hsv.Order(5), schedule=schedule, ready=ready, min_reduction=0.0, **options
    )


def run(made, loss_at, steps=100):
    """The events by step."""
    events = ((step, made.step(loss_at(step))) for step in range(1, steps + 1))
    return {step: event for step, event in events if event is not None}


def test_attempts_wait_and_the_rest_of_the_schedule_moves_with_them():
    made = compressor(LossFalls(to=1.0, average=5))  # planned at steps 20 and 40
    events = run(made, lambda step: 2.0 if step <= 30 else 0.5)
    # the mean of five is 4 * 0.5 + 2 = 0.8 at the fourth step of 0.5: (2 + 4 * .5) / 5; at the third (4 + 1.5) / 5 > 1
    assert list(events) == [20, 34, 54]
    assert events[20].put_off
    assert events[20].layers == ()
    assert "attempt 1 is put off: the mean loss of the last 5 steps is 2" in events[20].reason
    assert [events[step].attempt for step in (20, 34, 54)] == [1, 1, 2]
    assert events[34].changed
    assert not events[34].put_off
    assert made.done
    assert [event.put_off for event in made.history.events] == [True, False, False]


def test_a_loss_that_has_fallen_changes_nothing():
    events = run(compressor(LossFalls(by=0.5, average=5)), lambda step: 1.0 / step)
    assert list(events) == [20, 40]


def test_a_fraction_of_the_loss_at_the_start():
    events = run(compressor(LossFalls(by=0.5, average=4)), lambda step: 3.0 if step < 50 else 1.4)
    assert list(events) == [20, 53, 73]


def test_once_met_stays_met():
    events = run(compressor(LossFalls(to=1.0, average=1)), lambda step: 0.5 if step == 20 else 9.0)
    assert list(events) == [20, 40]


def test_attempts_that_come_too_late_are_not_made_and_the_history_says_so():
    made = compressor(LossFalls(to=1.0, average=5))
    events = run(made, lambda step: 2.0)
    assert list(events) == [20, 100]
    assert "attempts 1 to 2 are not made: the mean loss of the last 5 steps is 2" in events[100].reason
    assert made.done
    assert not any(event.changed for event in made.history.events)

    made = compressor(LossFalls(to=1.0, average=1))
    events = run(made, lambda step: 2.0 if step < 90 else 0.5)
    assert list(events) == [20, 90, 100]
    assert events[90].changed
    assert "attempts 2 to 2 are not made: put off by 70 steps" in events[100].reason


def test_a_guard_that_decides_later_still_gets_to_decide():
    class Loader:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    guard = hsv_torch.Rollback(lambda: 1.0, max_drop=0.0, after_steps=8)
    made = compressor(LossFalls(to=1.0, average=1), guard=guard, state={"loader": Loader()})
    events = run(made, lambda step: 2.0 if step < 92 else 0.5)
    assert list(events) == [20, 92, 100]  # 92 + 8 steps is the last moment
    assert events[100].attempt == 1
    assert not events[100].put_off
    made = compressor(LossFalls(to=1.0, average=1), guard=guard, state={"loader": Loader()})
    assert list(run(made, lambda step: 2.0 if step < 93 else 0.5)) == [20, 92]


def test_tensors_are_taken_as_they_come():
    made = compressor(LossFalls(to=1.0, average=5))
    for step in range(1, 40):
        loss = torch.tensor(2.0 if step <= 25 else 0.5, requires_grad=True) * 1
        made.step(loss)
    assert [event.step for event in made.history.events] == [20, 29]


@pytest.mark.parametrize("stop", [10, 25, 31, 50])
def test_a_compressor_that_waits_can_be_resumed(stop):
    def loss_at(step):
        return 2.0 if step <= 30 else 0.5

    whole = run(compressor(LossFalls(to=1.0, average=5)), loss_at)
    first = compressor(LossFalls(to=1.0, average=5))
    run(first, loss_at, stop)
    second = compressor(LossFalls(to=1.0, average=5))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(stop + 1, 101):
        second.step(loss_at(step))
    assert [event.step for event in second.history.events] == list(whole)
    with pytest.raises(hsv.HsvError, match="was saved with `ready`"):
        compressor(None).load_state_dict(first.state_dict())


def test_the_history_survives_json_and_pictures():
    made = compressor(LossFalls(to=1.0, average=5))
    run(made, lambda step: 2.0)
    again = hsv_torch.History.from_dict(made.history.to_dict())
    assert [event.reason for event in again.events] == [event.reason for event in made.history.events]


def test_bad_input():
    for options in ({}, {"to": 1.0, "by": 0.1}):
        with pytest.raises(hsv.HsvError, match="exactly one of them"):
            LossFalls(**options)
    with pytest.raises(hsv.HsvError, match=r"in \(0, 1\), got 1\.5"):
        LossFalls(by=1.5)
    with pytest.raises(hsv.HsvError, match="finite loss"):
        LossFalls(to=float("nan"))
    with pytest.raises(hsv.HsvError, match="at least 1"):
        LossFalls(to=1.0, average=0)
    with pytest.raises(hsv.DtypeError, match="int"):
        LossFalls(to=1.0, average=2.5)
    made = compressor(LossFalls(to=1.0))
    with pytest.raises(TypeError, match="`loss` is missing"):
        made.step()
    assert made.steps == 0
    with pytest.raises(TypeError, match=r"LossFalls, a hsv_torch\.RankingSettles or None"):
        compressor(0.5)


def test_a_nan_is_no_fall():
    meter = LossMeter(LossFalls(by=0.1, average=2))
    for loss in (1.0, 1.0, float("nan"), float("nan")):
        meter.see(loss)
    assert meter.objection() is not None
