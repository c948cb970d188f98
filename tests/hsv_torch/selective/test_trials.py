"""Methods that run the cut layer on recorded calls: distillation and the automatic choice."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch import Auto, ChannelBasis, LocalDistillation, SharedBasis, StateChoice
from hsv_torch.selective._trial import copy_of, relative_error, targets
from tests.hsv_torch.selective.layers import cut, mamba, plan, sequences


def held_out_errors(planned):
    """The errors that the notes of a distilled cut give: right after the cut, and after training."""
    found = re.search(r"held-out sequences (\S+) before, (\S+) after", " ".join(planned.notes))
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    "criterion",
    [StateChoice(), StateChoice("random"), SharedBasis(), SharedBasis(transforms=False, max_neglected=0.5), ChannelBasis()],
    ids=lambda c: repr(c)[:40],
)  # fmt: skip
@pytest.mark.parametrize("learning_rate", [3e-3, 1e3])
def test_distillation_lowers_the_error_and_never_raises_it(criterion, learning_rate):
    layer, x = mamba(8), sequences(16)
    distilled = LocalDistillation(criterion, steps=40, learning_rate=learning_rate)
    small, planned = cut(layer, 3, distilled, x)
    before, after = held_out_errors(planned)
    held_out = x[3::4]  # every fourth sequence
    with torch.no_grad():
        shown = float((small(held_out) - layer(held_out)).norm() / layer(held_out).norm())
    assert shown == pytest.approx(after, rel=1e-2)
    if learning_rate == 3e-3:
        assert after < (1.0 if isinstance(criterion, ChannelBasis) else 0.8) * before  # it leaves little to repair
    else:  # training diverges, and the cut stays as it was planned
        assert after <= before
        plain = plan(layer, 3, criterion, x[[i for i in range(16) if i % 4 != 3]])
        for name, value in plain.payload.cut.parameters(hsv_torch.adapter_of(layer).view(layer)).items():
            trained = planned.payload.cut.trained.get(name)
            assert (value is None) == (trained is None)
            if value is not None:
                torch.testing.assert_close(trained, value, rtol=1e-9, atol=1e-12)


def test_distillation_improves_on_sequences_that_nobody_has_seen():
    layer, x, new = mamba(8), sequences(48), sequences(seed=7)
    plain, _ = cut(layer, 3, StateChoice(), x)
    distilled, _ = cut(layer, 3, LocalDistillation(StateChoice(), steps=100), x)
    errors = [float((twin(new) - layer(new)).detach().norm()) for twin in (plain, distilled)]
    assert errors[1] < 0.8 * errors[0]


def test_distillation_trains_the_layer_alone_and_carries_all_of_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), mamba(6), nn.Linear(4, 2, dtype=torch.float64))
    model[1].D.requires_grad_(False)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    model(sequences()).square().sum().backward()
    optimizer.step()
    outside = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("1.")}
    before = dict(model[1].named_parameters())
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in before.items() if p.requires_grad}
    report = hsv_torch.compress_(
        model, 2, calibration=[sequences()], optimizer=optimizer, criterion=LocalDistillation(steps=50)
    )
    for name, value in outside.items():
        assert torch.equal(model.get_parameter(name), value)
    assert {name.removeprefix("1.") for name in report.replaced} == set(before)
    assert not torch.equal(model[1].in_proj.weight, before["in_proj.weight"])
    assert not torch.equal(model[1].D, before["D"])
    assert not model[1].D.requires_grad
    for name in ("in_proj.weight", "conv1d.weight", "out_proj.weight", "dt_proj.bias"):
        assert torch.equal(optimizer.state[model[1].get_parameter(name)]["exp_avg"], moments[name])
    optimizer.zero_grad()
    model(sequences()).square().sum().backward()
    optimizer.step()


def test_padding_takes_no_part_in_distillation():
    layer, x = mamba(6), sequences(8)
    lengths = torch.tensor([30, 9, 14, 22] * 2)
    spoiled = x.clone()
    for row, n in enumerate(lengths):
        spoiled[row, n:] = 1e6
        x[row, n:] = 0.0
    criterion = LocalDistillation(steps=10)
    twins = [cut(layer, 3, criterion, [((inputs,), {"lengths": lengths})])[0] for inputs in (x, spoiled)]
    torch.testing.assert_close(twins[0](x, lengths), twins[1](x, lengths), rtol=0, atol=1e-12)


def test_what_is_recorded_is_bounded_and_the_rest_is_not_kept():
    layer = mamba(6)
    adapter = hsv_torch.adapter_of(layer)
    observation = adapter.observe(layer, LocalDistillation(max_sequences=5, held_out=0.25))
    for seed in range(6):
        observation.update(layer, (sequences(7, 10, seed=seed),), {})
    assert observation.n_sequences == 42
    for calls in (observation.calls, observation.held_out):
        assert sum(call.n_sequences for call in calls) == 5
        assert sum(call.args[0].numel() for call in calls) == 5 * 10 * 4
        assert all(call.args[0].untyped_storage().nbytes() == call.args[0].nbytes for call in calls)
    # Every fourth sequence of the stream is held out: numbers 3, 7, 11, ...
    stream = torch.cat([sequences(7, 10, seed=seed) for seed in range(6)])
    held = torch.cat([call.args[0] for call in observation.held_out])
    used = torch.cat([call.args[0] for call in observation.calls])
    torch.testing.assert_close(held, stream[[3, 7, 11, 15, 19]], rtol=0, atol=0)
    torch.testing.assert_close(used, stream[[0, 1, 2, 4, 5]], rtol=0, atol=0)


CANDIDATES = (StateChoice("random", seed=1), SharedBasis(), StateChoice("magnitude", compensate=False), ChannelBasis())


def test_auto_takes_the_smallest_error_on_held_out_sequences():
    """Against each candidate on its own, from the sequences that were not held out."""
    layer, x = mamba(8), sequences(16)
    held = [i for i in range(16) if i % 4 == 3]
    used = [i for i in range(16) if i % 4 != 3]
    adapter = hsv_torch.adapter_of(layer)
    small, planned = cut(layer, 3, Auto(CANDIDATES), x)
    errors = []
    for candidate in CANDIDATES:
        alone, _ = cut(layer, 3, candidate, x[used])
        with torch.no_grad():
            errors.append(float((alone(x[held]) - layer(x[held])).norm() / layer(x[held]).norm()))
        assert any(f"{candidate!r}: relative error {errors[-1]:.4g}" in note for note in planned.notes)
    best = CANDIDATES[int(np.argmin(errors))]
    assert f"taken: {best!r}" in planned.notes
    alone, _ = cut(layer, 3, best, x[used])
    torch.testing.assert_close(small(x), alone(x), rtol=0, atol=1e-11)
    assert adapter.n_states(small) == 3


def test_auto_leaves_out_who_refuses():
    layer, x = mamba(6), sequences()
    strict = SharedBasis(transforms=False, max_neglected=0.0)
    _, planned = cut(layer, 3, Auto((StateChoice(), strict)), x)
    assert any(note.startswith(f"{strict!r} refused: without transforms") for note in planned.notes)
    with pytest.raises(
        hsv_torch.CutRefusedError, match=r"every candidate refused the layer: SharedBasis.* refused: without"
    ):
        plan(layer, 3, Auto((strict,)), x)


def test_auto_of_all_candidates_chooses_the_size_by_the_first():
    layer, x, rule = mamba(8), sequences(16), hsv.Threshold(0.2)
    planned = plan(layer, rule, Auto((StateChoice("ghost"), ChannelBasis())), x)
    values = planned.hankel_singular_values
    assert values.shape == (8,)
    assert planned.n_states_after == int(rule.choose(values))


def test_distillation_of_auto_and_auto_of_distillations():
    layer, x = mamba(6), sequences(16)
    for criterion in (
        LocalDistillation(Auto(), steps=10),
        Auto((StateChoice(), LocalDistillation(StateChoice(), steps=30))),
    ):
        small, planned = cut(layer, 2, criterion, x)
        assert small.n_states == 2
        assert any(note.startswith("taken: ") for note in planned.notes)
    assert planned.notes[0].startswith("the values are")
    assert planned.notes[1].startswith("taken: LocalDistillation")


@pytest.mark.parametrize("criterion", [Auto(), LocalDistillation()])
def test_too_few_sequences(criterion):
    with pytest.raises(
        hsv.HsvError, match=r"3 calibration sequences are too few to hold out 25% of them: pass at least 4"
    ):
        plan(mamba(6), 3, criterion, sequences(3))


def test_outputs_that_are_all_zero():
    layer = mamba(6)
    with torch.no_grad():
        layer.out_proj.weight.zero_()
    with pytest.raises(hsv.HsvError, match=r"outputs on the recorded sequences are all zero|ranks by are zero"):
        plan(layer, 3, Auto((StateChoice("magnitude", compensate=False),)), sequences())


def test_trials_work_on_copies():
    layer, x = mamba(6), sequences()
    view = hsv_torch.adapter_of(layer).view(layer)
    state = copy.deepcopy(layer.state_dict())
    observation = hsv_torch.adapter_of(layer).observe(layer, Auto())
    observation.update(layer, (x,), {})
    known = targets(view, observation.held_out)
    twin = copy_of(view, StateChoice().plan(view, observation, 2))
    assert twin.layer is not layer
    assert twin.n_states == 2
    assert relative_error(copy_of(view), known) == 0.0
    assert relative_error(twin, known) > 0.0
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalDistillation(StateChoice), r"`criterion` must be a hsv_torch.SelectiveCriterion"),
        (lambda: LocalDistillation(steps=0), r"`steps` must be at least 1, got 0"),
        (lambda: LocalDistillation(learning_rate=0.0), r"`learning_rate` must be a positive number, got 0.0"),
        (lambda: LocalDistillation(held_out=0.0), r"`held_out` is a share .* must be in \(0, 1\), got 0.0"),
        (lambda: LocalDistillation(max_sequences=2.5), r"`max_sequences` must be an int"),
        (lambda: Auto(()), r"`candidates` is empty"),
        (lambda: Auto((hsv_torch.ComplexHankel(),)), r"`candidates` must be hsv_torch.SelectiveCriterion objects"),
        (lambda: Auto(held_out=1.0), r"`held_out` is a share"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(hsv.HsvError, match=message):
        make()
