"""Choosing keys and changing their basis: what is lost, what is kept, what is refused."""

import itertools

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import GatedLinearAttention, Mamba2
from hsv_torch.linear_attention import KeyBasis, KeyChoice, for_linear_attention
from hsv_torch.linear_attention._methods import leave_out, oblique
from hsv_torch.selective import Auto, ChannelBasis, LocalDistillation, SharedBasis, StateChoice
from hsv_torch.selective._bases import balance


def attention(n_states=6, *, decay="head", seed=0, **options):
    """A layer whose queries and keys have directions of very different size, as trained ones do."""
    made = GatedLinearAttention(
        8, n_states, n_heads=2, decay=decay, gate_normalizer=1.0, dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for proj in (made.q_proj, made.k_proj):
            mix = torch.randn(2, n_states, n_states, generator=g, dtype=torch.float64) * 0.6 ** torch.arange(n_states)
            proj.weight.copy_((mix @ proj.weight.unflatten(0, (2, n_states))).flatten(0, 1))
    return made


def mamba(n_states=8, seed=0, **options):
    options = {"head_dim": 4, "n_groups": 2, **options}
    return Mamba2(8, n_states, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), **options)


def sequences(batch=8, length=24, seed=3):
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planned(layer, n_states, criterion, x):
    adapter = hsv_torch.adapter_of(layer)
    with torch.no_grad():
        observation = adapter.observe(layer, criterion)
        observation.update(layer, (x,), {})
        return adapter.reduce(layer, n_states, criterion, observation), observation


def expected_loss(P, G, right, left):
    """``tr(G (I - R L^T) P (I - L R^T))`` of each group."""
    rest = torch.eye(P.shape[1], dtype=P.dtype) - right @ left.mT
    return torch.einsum("gij,gjk,gkl,gil->g", G, rest, P, rest)


@pytest.mark.parametrize("n_states", [1, 2, 4, 6])
@pytest.mark.parametrize("make", [attention, mamba], ids=["attention", "mamba2"])
def test_the_discarded_values_are_what_is_lost_and_no_choice_loses_less(make, n_states):
    layer, x = make(), sequences()
    plan, observation = planned(layer, n_states, SharedBasis(), x)
    cut, P, G = plan.payload.cut, observation.second_moments(), observation.readout()
    eye = torch.eye(n_states, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(cut.left.mT @ cut.right, eye, rtol=0, atol=1e-7)
    lost = expected_loss(P, G, cut.right, cut.left)
    tail = torch.from_numpy((plan.hankel_singular_values[:, n_states:] ** 2).sum(1))
    torch.testing.assert_close(lost, tail, rtol=1e-6, atol=1e-12 * float(G.abs().max() * P.abs().max()))
    chosen = planned(layer, n_states, StateChoice(), x)[0].payload.cut
    assert bool((lost <= expected_loss(P, G, chosen.right, chosen.left) + 1e-12).all())
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        right = cut.right + 0.1 * torch.randn(cut.right.shape, generator=g, dtype=torch.float64)
        left = torch.linalg.solve(cut.left.mT @ right, cut.left.mT).mT  # still a projection
        assert bool((lost <= expected_loss(P, G, right, left) * (1 + 1e-9) + 1e-15).all())


@pytest.mark.parametrize("make", [attention, mamba], ids=["attention", "mamba2"])
def test_new_states_are_projections_of_the_old_ones_exactly(make):
    layer, x = make(), sequences(2)
    adapter = hsv_torch.adapter_of(layer)

    def last_state(layer):
        q = adapter.view(layer).quantities((x,), {})
        return hsv_torch.scan.gated_linear_attention(q.queries, q.keys, q.values, q.log_decay, return_state=True)[1]

    with torch.no_grad():
        before = last_state(layer)
        plan, _ = planned(layer, 3, SharedBasis(), sequences())
        adapter.apply(layer, plan)
        share = before.shape[1] // 2
        left = plan.payload.cut.left.repeat_interleave(share, 0)
        torch.testing.assert_close(last_state(layer), left.mT @ before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inputs", ["recorded", "white"])
def test_a_basis_keeps_more_than_a_choice_and_a_choice_more_than_chance(inputs):
    x, held_out = sequences(16), sequences(8, seed=9)

    def error(criterion):
        errors = []
        for seed in range(4):
            layer = attention(8, seed=seed)
            with torch.no_grad():
                expected = layer(held_out)
                hsv_torch.compress_(layer, 3, calibration=x, criterion=criterion)
                errors.append(float((layer(held_out) - expected).norm() / expected.norm()))
        return np.mean(errors)

    basis, choice, alone = error(SharedBasis(inputs)), error(StateChoice()), error(StateChoice(compensate=False))
    chance = np.mean([error(StateChoice("random", compensate=False, seed=seed)) for seed in range(3)])
    assert basis < choice < alone < chance


@pytest.mark.parametrize("decay", ["head", "key"])
def test_a_key_that_copies_another_goes_without_a_loss(decay):
    layer, x = attention(4, decay=decay), sequences()
    with torch.no_grad():
        rows = [layer.k_proj.weight] + ([layer.gk_proj[1].weight, layer.gk_proj[1].bias] if decay == "key" else [])
        for row in rows:
            of_heads = row.unflatten(0, (2, 4))
            of_heads[:, 3] = of_heads[:, 1]
        layer.k_proj.weight.unflatten(0, (2, 4))[:, 3] *= -2.0
        expected = layer(x)
        report = hsv_torch.compress_(layer, 3, calibration=x, criterion=StateChoice())
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert report.layers[0].hankel_singular_values[:, 3].max() < 1e-6 * report.layers[0].hankel_singular_values.max()


def test_leaving_out_is_greedy_and_its_values_add_up():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 8, generator=g, dtype=torch.float64)
    M = root @ root.mT
    order, values = leave_out(M)
    gone = []
    for j in order.flip(0).tolist():
        costs = {k: float(M[[*gone, k]][:, [*gone, k]].sum()) for k in range(6) if k not in gone}
        assert costs[j] == pytest.approx(min(costs.values()))
        gone.append(j)
    assert sorted(gone) == list(range(6))
    assert bool((values.diff() <= 0).all())
    best = min(float(M[list(r)][:, list(r)].sum()) for r in itertools.combinations(range(6), 2))
    assert float(M[gone[:2]][:, gone[:2]].sum()) < 3 * best
    diagonal = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    order, values = leave_out(diagonal.diag())
    assert order.tolist() == [0, 2, 1]
    torch.testing.assert_close(values.square(), torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_projection_is_completed_where_the_data_has_fewer_directions(rank):
    g = torch.Generator().manual_seed(0)
    P, G = (r @ r.mT for r in torch.randn(2, 6, max(rank, 1), generator=g, dtype=torch.float64))
    P = P if rank else torch.zeros_like(P)
    for n_states in (1, 4, 6):
        right, left, found, condition = oblique(*balance(P, G), n_states)
        assert found == min(rank, n_states)
        assert condition < 1e6
        eye = torch.eye(n_states, dtype=torch.float64)
        torch.testing.assert_close(left.mT @ right, eye, rtol=0, atol=1e-8)
        if n_states >= rank:
            assert float(expected_loss(P[None], G[None], right[None], left[None])) < 1e-10


def test_states_that_carry_nothing_are_noted_and_a_cut_to_full_size_loses_nothing():
    layer, x = attention(6), sequences()
    with torch.no_grad():
        layer.k_proj.weight[3:6] = 0  # the first head has three keys that nothing is written with
        expected = layer(x)
        report = hsv_torch.compress_(layer, 5, calibration=x)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert (
        "group 0: 2 of the states carry nothing that the outputs see on the calibration data" in report.layers[0].notes
    )


@pytest.mark.parametrize("score", ["greedy", "hankel", "ghost", "second_moment", "magnitude", "random"])
@pytest.mark.parametrize("compensate", [False, True])
def test_scores_rank_the_states_of_every_group(score, compensate):
    layer, x = attention(6, decay="key"), sequences()
    with torch.no_grad():
        # Nobody writes or reads the states from the fourth on, or hardly.
        for proj in (layer.q_proj, layer.k_proj):
            proj.weight.unflatten(0, (2, 6))[:, 3:] *= 1e-3
    criterion = StateChoice(score, compensate=compensate, seed=1)
    plan, _ = planned(layer, 3, criterion, x)
    assert plan.hankel_singular_values.shape == (2, 6)
    assert bool((np.diff(plan.hankel_singular_values) <= 0).all())
    assert plan.notes[0] == f"the values are scores ({score}), which rank states and bound no error"
    kept = plan.payload.cut.kept.tolist()
    if score == "random":
        assert kept == planned(layer, 3, criterion, x)[0].payload.cut.kept.tolist()
        others = [planned(layer, 3, StateChoice("random", seed=s), x)[0].payload.cut.kept.tolist() for s in range(4)]
        assert any(other != kept for other in others)
    else:
        assert kept == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("criterion", [SharedBasis(), StateChoice(), StateChoice(compensate=False)], ids=str)
def test_distillation_never_makes_the_held_out_error_larger(criterion):
    layer = mamba()
    report = hsv_torch.compress_(
        layer, 3, calibration=sequences(16), criterion=LocalDistillation(criterion, steps=20, learning_rate=1e-2)
    )
    before, after = (float(word) for word in report.layers[0].notes[-1].split("sequences ")[1].split()[::2])
    assert after <= before
    assert layer.n_states == 3


def test_auto_takes_the_best_of_its_candidates():
    layer = attention(8, decay="head")
    report = hsv_torch.compress_(layer, 3, calibration=sequences(16), criterion=Auto())
    notes = report.layers[0].notes
    errors = {
        note.split(": relative error ")[0]: float(note.split("relative error ")[1].split()[0])
        for note in notes
        if ": relative error" in note
    }
    assert f"taken: {min(errors, key=errors.get)}" in notes
    assert len(errors) == 4


def test_the_same_criteria_serve_mamba_and_mamba2_in_one_model():
    model = torch.nn.Sequential(hsv_torch.Mamba(8, 8, dtype=torch.float64), mamba(), attention())
    hsv_torch.compress_(model, 3, calibration=sequences(), criterion=StateChoice("ghost"))
    assert [layer.n_states for layer in model] == [3, 3, 3]


def test_rules_choose_a_size_a_layer():
    layer = mamba()
    report = hsv_torch.compress_(layer, hsv.HankelEnergy(keep=0.9), calibration=sequences())
    values = report.layers[0].hankel_singular_values
    share = (values[:, : layer.n_states] ** 2).sum(1) / (values**2).sum(1)
    assert share.min() >= 0.9
    assert 1 <= layer.n_states < 8


def test_what_criteria_mean():
    assert for_linear_attention(StateChoice("ghost", compensate=False, seed=3)) == KeyChoice("ghost", False, 3)
    assert for_linear_attention(SharedBasis("white", transforms=True)) == KeyBasis("white", True)
    assert for_linear_attention(KeyChoice()) == KeyChoice()
    wrapped = for_linear_attention(LocalDistillation(SharedBasis(), steps=7))
    assert (wrapped.criterion, wrapped.steps) == (KeyBasis(), 7)
    assert for_linear_attention(Auto((StateChoice(),))).tried == (KeyChoice(),)


@pytest.mark.parametrize(
    ("layer", "criterion", "message"),
    [
        (
            mamba(),
            ChannelBasis(),
            "ChannelBasis has no meaning for linear attention, whose states share one basis a group",
        ),
        (mamba(), StateChoice("last"), r'score="last" asks for the mean time-invariant system'),
        (mamba(), SharedBasis(transforms=False), "go through an activation, so that a projection has to be kept"),
        (attention(), SharedBasis(transforms=True), "no room for transforms; its keys and queries are linear"),
        (attention(decay="key"), SharedBasis(), "every key of this GatedLinearAttention has a decay of its own"),
    ],
    ids=["channel", "last", "fold", "transforms", "key"],
)
def test_what_is_impossible_is_refused_and_leaves_no_trace(layer, criterion, message):
    before = {name: id(p) for name, p in layer.named_parameters()}
    with pytest.raises(hsv_torch.CutRefusedError, match=message):
        hsv_torch.compress_(layer, 3, calibration=sequences(), criterion=criterion)
    assert before == {name: id(p) for name, p in layer.named_parameters()}


def test_bounds_are_refused():
    with pytest.raises(hsv_torch.CutRefusedError, match="needs a bound of the error, and none holds"):
        hsv_torch.compress_(mamba(), hsv.ErrorBound(0.1), calibration=sequences())


def test_nothing_to_see_is_refused():
    layer = attention()
    with torch.no_grad():
        layer.q_proj.weight.zero_()
    with pytest.raises(hsv_torch.CutRefusedError, match="ranks by are zero"):
        hsv_torch.compress_(layer, hsv.HankelEnergy(keep=0.9), calibration=sequences())
