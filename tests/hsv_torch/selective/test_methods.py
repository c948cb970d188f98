"""What holds for every method: full size, better than chance, data, rules, refusals, moments, checkpoints, rollback."""

import copy

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import Auto, ChannelBasis, LocalDistillation, SharedBasis, StateChoice
from tests.hsv_torch.selective.layers import cut, mamba, plan, relative_error, sequences

DATA_SCORES = ("greedy", "hankel", "ghost", "second_moment")
CHOICES = [
    *(StateChoice(score) for score in (*DATA_SCORES, "mean_system", "last", "aire", "magnitude", "random")),
    StateChoice("hankel", compensate=False),
]
BASES = [
    SharedBasis(),
    SharedBasis(gramians="white"),
    ChannelBasis(),
    ChannelBasis(projection="galerkin"),
    ChannelBasis(gramians="mean_system"),
]
WITHOUT_TRANSFORMS = SharedBasis(transforms=False, max_neglected=0.5)
OTHERS = [Auto(), LocalDistillation(steps=5)]
ALL = [*CHOICES, *BASES, WITHOUT_TRANSFORMS, *OTHERS]


def name_of(criterion):
    return repr(criterion).split(", max_")[0]


EVERY = pytest.mark.parametrize("criterion", ALL, ids=name_of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("criterion", [*CHOICES, *BASES], ids=name_of)
def test_a_cut_to_full_size_gives_the_same_outputs(criterion, dtype):
    layer, x = mamba(8, dtype=dtype), sequences(dtype=dtype)
    small, planned = cut(layer, 8, criterion, x)
    assert planned.n_states_before == planned.n_states_after == small.n_states == 8
    # Outputs are near 0.1; a basis of a channel may have a condition of up to 1e3.
    torch.testing.assert_close(small(x), layer(x), rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize(
    "criterion", [StateChoice(), SharedBasis(), ChannelBasis(), ChannelBasis("mean_system")], ids=name_of
)
@pytest.mark.parametrize("n_states", [1, 5])
def test_a_single_state_and_a_single_channel(criterion, n_states):
    layer, x = mamba(n_states, 1, expand=1), sequences(d_model=1)
    small, _ = cut(layer, 1, criterion, x)
    assert small.n_states == 1
    assert bool(small(x).isfinite().all())
    if n_states == 1:
        torch.testing.assert_close(small(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "criterion", [*(StateChoice(s) for s in DATA_SCORES), *BASES[:4], WITHOUT_TRANSFORMS], ids=name_of
)
def test_a_method_that_looks_at_data_beats_chance(criterion):
    """On recorded and on new sequences, over several layers, against the mean of random choices without compensation."""
    chance, method = [], []
    for seed in range(3):
        layer, calibration, x = mamba(seed=seed), sequences(seed=10 + seed), sequences(seed=20 + seed)
        draws = (StateChoice("random", compensate=False, seed=k) for k in range(5))
        chance.append(np.mean([relative_error(cut(layer, 4, draw, calibration)[0], layer, x) for draw in draws]))
        method.append(relative_error(cut(layer, 4, criterion, calibration)[0], layer, x))
    assert np.mean(method) < 0.5 * np.mean(chance)


def test_a_basis_of_each_channel_is_the_closest_and_the_mean_system_the_worst_of_them():
    layer, x = mamba(), sequences()
    errors = {name_of(c): relative_error(cut(layer, 3, c, x)[0], layer, x) for c in [*BASES, StateChoice()]}
    assert min(errors, key=errors.get) == name_of(ChannelBasis())
    assert errors[name_of(ChannelBasis("mean_system"))] == max(errors.values())


@EVERY
def test_planning_changes_nothing_and_is_deterministic(criterion):
    layer, x = mamba(6), sequences()
    before, random_state = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    first, again = plan(layer, 3, criterion, x), plan(layer, 3, criterion, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert layer.training
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    twins = [copy.deepcopy(layer), copy.deepcopy(layer)]
    for twin, planned in zip(twins, (first, again), strict=True):
        hsv_torch.adapter_of(twin).apply(twin, planned)
    for (name, one), (_, other) in zip(*(twin.named_parameters() for twin in twins), strict=True):
        assert torch.equal(one, other), name


@EVERY
def test_the_plan_of_a_cut(criterion):
    layer, x = mamba(6), sequences()
    planned = plan(layer, 3, criterion, x)
    assert (planned.n_states_before, planned.n_states_after, planned.order) == (6, 3, 3)
    assert planned.error_bound == np.inf
    values = planned.hankel_singular_values
    assert values.dtype == np.float64
    assert values.shape in ((6,), (layer.d_inner, 6))
    assert bool((np.diff(values, axis=-1) <= 0).all())
    assert bool((values >= 0).all())
    assert any("values are" in note for note in planned.notes)


@pytest.mark.parametrize("rule", [hsv.HankelSum(discard=0.2), hsv.HankelEnergy(keep=0.9), hsv.Threshold(0.1)])
@pytest.mark.parametrize("criterion", [StateChoice(), SharedBasis(), ChannelBasis(), *OTHERS], ids=name_of)
def test_rules_choose_by_the_values(criterion, rule):
    layer, x = mamba(), sequences()
    small, planned = cut(layer, rule, criterion, x)
    assert small.n_states == int(np.max(rule.choose(planned.hankel_singular_values))) < 12


@EVERY
def test_a_bound_is_refused(criterion):
    with pytest.raises(hsv_torch.CutRefusedError, match=r"needs a bound of the error, and none holds"):
        plan(mamba(6), hsv.ErrorBound(0.1), criterion, sequences())


@EVERY
@pytest.mark.parametrize("order", [7, 100])
def test_an_order_outside_the_layer(criterion, order):
    with pytest.raises(hsv.OrderError, match=rf"Order must be in \[1, 6\], got {order}"):
        plan(mamba(6), order, criterion, sequences())


@EVERY
def test_without_data(criterion):
    layer = mamba(6)
    adapter = hsv_torch.adapter_of(layer)
    with pytest.raises(
        hsv.HsvError, match=r"a Mamba is cut by what calibration data has shown of it: pass `calibration`"
    ):
        adapter.reduce(layer, 3, criterion)
    with pytest.raises(hsv.HsvError, match=r"no calibration sequence has been seen"):
        adapter.reduce(layer, 3, criterion, adapter.observe(layer, criterion))


@EVERY
def test_training_goes_on(criterion):
    layer, x = mamba(6, dtype=torch.float32), sequences(dtype=torch.float32)
    target = layer(x).detach().roll(1, 0)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    losses = []

    def step():
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    step()
    report = hsv_torch.compress_(layer, 3, calibration=x, optimizer=optimizer, criterion=criterion)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in layer.parameters()}
    for name, (old, new) in report.replaced.items():
        if old is not None and new is not None:
            assert (new.dtype, new.requires_grad) == (old.dtype, old.requires_grad), name
            assert {k: v.shape for k, v in optimizer.state[new].items()} == {"step": torch.Size([])} | dict.fromkeys(
                ("exp_avg", "exp_avg_sq"), new.shape
            )
        elif new is not None:
            assert new not in optimizer.state
    for _ in range(15):
        step()
    assert losses[-1] < losses[1]
    assert bool((hsv_torch.adapter_of(layer).view(layer).rates().real < 0).all())


@pytest.mark.parametrize("criterion", [StateChoice(), SharedBasis(), ChannelBasis()], ids=name_of)
def test_padding_is_not_looked_at(criterion):
    """Calibration with NaN in the padding gives the cut that the bare sequences give."""
    layer, x = mamba(6), sequences(3)
    lengths = torch.tensor([30, 11, 19])
    spoiled = x.clone()
    for row, n in enumerate(lengths):
        spoiled[row, n:] = torch.nan
    padded = plan(layer, 3, criterion, [((spoiled,), {"lengths": lengths})])
    bare = plan(layer, 3, criterion, [x[i : i + 1, :n] for i, n in enumerate(lengths)])
    np.testing.assert_allclose(padded.hankel_singular_values, bare.hankel_singular_values, rtol=1e-6)
    twins = [copy.deepcopy(layer), copy.deepcopy(layer)]
    for twin, planned in zip(twins, (padded, bare), strict=True):
        hsv_torch.adapter_of(twin).apply(twin, planned)
    torch.testing.assert_close(twins[0](x), twins[1](x), rtol=0, atol=1e-8)


def test_a_sequence_that_cannot_be_used_is_named_and_changes_nothing():
    layer, x = mamba(6), sequences(4)
    adapter, criterion = hsv_torch.adapter_of(layer), LocalDistillation(ChannelBasis(), steps=3)
    observation = adapter.observe(layer, criterion)
    observation.update(layer, (x,), {})
    before = adapter.reduce(layer, 3, criterion, observation)
    spoiled = x.clone()
    spoiled[2, 5, 1] = torch.nan
    with pytest.raises(hsv.NonFiniteError, match=r"sequence 2 has a value of delta that is not finite at step 5"):
        observation.update(layer, (spoiled,), {})
    with pytest.raises(hsv.HsvError, match=r"all of sequence 1 is padding"):
        observation.update(layer, (x,), {"lengths": torch.tensor([30, 0, 3, 4])})
    with pytest.raises(hsv.HsvError, match=r"called without a step"):
        observation.update(layer, (x[:0],), {})
    with pytest.raises(hsv.HsvError, match=r"made for another layer"):
        observation.update(mamba(6), (x,), {})
    after = adapter.reduce(layer, 3, criterion, observation)
    np.testing.assert_array_equal(before.hankel_singular_values, after.hankel_singular_values)
    assert before.notes == after.notes
    assert observation.n_sequences == 4


@pytest.mark.parametrize("criterion", [StateChoice("ghost"), SharedBasis(), ChannelBasis()], ids=name_of)
def test_a_layer_whose_states_do_nothing_is_refused(criterion):
    layer = mamba(6)
    with torch.no_grad():
        layer.x_proj.weight[layer.dt_rank :] = 0.0
    with pytest.raises(hsv_torch.CutRefusedError, match=r"all values that \w+ ranks by are zero"):
        plan(layer, hsv.HankelSum(discard=0.1), criterion, sequences())


def test_calibration_that_is_not_given_or_not_finite_through_the_front_door():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float64), mamba(6))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(hsv.HsvError, match=r"depends on its input: pass `calibration`"):
        hsv_torch.compress_(model, 3)
    x = sequences(3)
    x[1, 4] = torch.inf
    with pytest.raises(hsv.NonFiniteError, match=r"layer '1': sequence 1 has a value of"):
        hsv_torch.compress_(model, 3, calibration=[x])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "criterion", [StateChoice(), SharedBasis(), ChannelBasis(), LocalDistillation(steps=2)], ids=name_of
)
def test_checkpoints(criterion, tmp_path):
    layer, x = mamba(6), sequences()
    optimizer = torch.optim.Adam(layer.parameters())
    layer(x).square().sum().backward()
    optimizer.step()
    hsv_torch.compress_(layer, 3, calibration=x, optimizer=optimizer, criterion=criterion)
    hsv_torch.save_checkpoint(layer, tmp_path / "cut.pt", optimizer=optimizer)
    fresh = mamba(6, seed=5)
    fresh_optimizer = torch.optim.Adam(fresh.parameters())
    hsv_torch.load_into(fresh, tmp_path / "cut.pt", optimizer=fresh_optimizer)
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    for model, by in ((layer, optimizer), (fresh, fresh_optimizer)):
        by.zero_grad()
        model(x).square().sum().backward()
        by.step()
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "criterion", [StateChoice(), SharedBasis(), ChannelBasis(), LocalDistillation(steps=2)], ids=name_of
)
def test_a_guard_puts_everything_back(criterion):
    layer, x = mamba(6), sequences()
    optimizer = torch.optim.Adam(layer.parameters())
    layer(x).square().sum().backward()
    optimizer.step()
    parameters = dict(layer.named_parameters())
    values, moments = copy.deepcopy(layer.state_dict()), copy.deepcopy(optimizer.state_dict())
    scores = iter([1.0, 0.0])
    compressor = hsv_torch.InTrainingCompressor(
        layer, optimizer, rule=2, calibration=x, criterion=criterion,
        schedule=hsv_torch.Schedule(total_steps=2, window=(0.0, 0.5), attempts=1),
        guard=hsv_torch.Rollback(lambda: next(scores), max_drop=0.1),
    )  # fmt: skip
    event = compressor.step()
    assert event.undone
    assert layer.x_proj.out_features == layer.x_proj.weight.shape[0]
    assert {name: id(p) for name, p in layer.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, values[name])
    restored = optimizer.state_dict()["state"]
    for index, state in moments["state"].items():
        for key, value in state.items():
            assert torch.equal(restored[index][key], value)


def test_cuts_while_a_layer_trains():
    """Four attempts: the second and later ones meet a layer that has transforms already."""
    layer, x = mamba(16, dtype=torch.float32), sequences(dtype=torch.float32)
    target = layer(x).detach().roll(1, 0)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3)
    compressor = hsv_torch.InTrainingCompressor(
        layer, optimizer, rule=hsv.Threshold(0.3), calibration=[x], criterion=ChannelBasis(),
        schedule=hsv_torch.Schedule(total_steps=12, window=(0.0, 1.0), attempts=4),
    )  # fmt: skip
    for _ in range(12):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
        compressor.step()
    outcomes = [event.layers[0].outcome for event in compressor.history.events]
    assert outcomes[0] == "cut"
    assert set(outcomes) <= {"cut", "unchanged"}
    assert layer.n_states < 16
    assert layer.n_features == 16
