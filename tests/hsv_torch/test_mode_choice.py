import copy

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import BalancedChoice, CutRefusedError, ModeChoice
from tests.hsv_torch.test_criteria import select, systems

SCORES = ["last", "aire", "hankel", "magnitude", "random"]
LAYERS = [hsv_torch.LRU, hsv_torch.S5, hsv_torch.S4D]


def expected(score, system):
    size = torch.linalg.vector_norm(system.B, dim=-1) * torch.linalg.vector_norm(system.C, dim=-2)
    modulus = system.poles().abs()
    return {
        "last": (size / (1 - modulus)) ** 2,
        "aire": size**2 / (1 - modulus**2),
        "hankel": size / (1 - modulus**2),
        "magnitude": size,
    }[score]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("score", SCORES[:-1])
def test_scores_are_those_of_the_formulas_and_the_best_states_stay(score, batch):
    system = systems(*batch)
    values = expected(score, system)
    criterion = ModeChoice(score)
    np.testing.assert_allclose(criterion.spectrum(system), -np.sort(-values.numpy(), axis=-1), rtol=1e-12)
    plan = criterion.reduce(system, 4)
    kept = torch.sort(torch.argsort(-values, dim=-1)[..., :4], dim=-1).values
    assert torch.equal(plan.log_poles, torch.take_along_dim(system.log_poles, kept, dim=-1))
    assert torch.equal(plan.B, torch.take_along_dim(system.B, kept[..., None], dim=-2))
    assert torch.equal(plan.C, torch.take_along_dim(system.C, kept[..., None, :], dim=-1))
    assert torch.equal(plan.states(plan.B), system.B * plan.states.linear.real.sum(-1)[..., None])
    worst = ModeChoice(score, reverse=True).reduce(system, 2)
    others = torch.sort(torch.argsort(values, dim=-1)[..., :2], dim=-1).values
    assert torch.equal(worst.log_poles, torch.take_along_dim(system.log_poles, others, dim=-1))


def test_hankel_score_is_the_hankel_value_of_a_state_alone():
    system = systems()
    single = hsv.DiagonalStateSpace.from_log_poles(
        system.log_poles[:, None], system.B[:, None, :], system.C.mT[..., None]
    )
    alone = hsv.hankel_singular_values(single)[:, 0]
    np.testing.assert_allclose(ModeChoice("hankel").spectrum(system), -np.sort(-alone.numpy()), rtol=1e-12)


@pytest.mark.parametrize(
    "criterion", [*map(ModeChoice, SCORES), BalancedChoice("smallest"), BalancedChoice("random")], ids=repr
)
def test_the_error_obeys_the_bound(criterion):
    system = systems(4, n=12, seed=3)
    plan = criterion.reduce(system, 5)
    grid = np.linspace(-np.pi, np.pi, 400)
    for i in range(4):
        before = select(system, i)
        after = hsv.DiagonalStateSpace.from_log_poles(plan.log_poles[i], plan.B[i], plan.C[i])
        error = np.linalg.norm(
            (before.frequency_response(grid) - after.frequency_response(grid)).numpy(), ord=2, axis=(-2, -1)
        )
        assert error.max() <= plan.error_bound
        assert error.max() > 0


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("criterion", [ModeChoice("last"), BalancedChoice("smallest")], ids=repr)
def test_a_cut_to_full_size_changes_no_output(make, criterion):
    layer = make(4, 8)
    cut, x = copy.deepcopy(layer), torch.randn(2, 30, 4)
    hsv_torch.compress_(cut, layer.n_states, criterion=criterion)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), layer(x), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("make", [hsv_torch.LRU, hsv_torch.S4D])
def test_moments_of_the_states_that_stay_are_kept_as_they_are(make):
    layer = make(4, 12)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 30, 4)).square().mean().backward()
    optimizer.step()
    before = copy.deepcopy(layer)
    name = {hsv_torch.LRU: "theta", hsv_torch.S4D: "C"}[make]
    moments = optimizer.state[layer.get_parameter(name)]["exp_avg"].clone()
    hsv_torch.compress_(layer, 5, criterion=ModeChoice("magnitude"), optimizer=optimizer)
    carried = optimizer.state[layer.get_parameter(name)]["exp_avg"]
    old = {float(x) for x in moments.flatten()}
    assert all(min(abs(float(x) - y) for y in old) <= 1e-5 * abs(float(x)) + 1e-12 for x in carried.flatten())
    assert layer.get_parameter(name).numel() < before.get_parameter(name).numel()


def test_random_choices_repeat_and_depend_on_the_seed():
    system = systems(n=20)
    first, again, other = (ModeChoice("random", seed=s).reduce(system, 5).log_poles for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ModeChoice("random").reduce(system, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_function_of_the_user():
    system = systems()
    plan = ModeChoice(lambda sys: sys.poles().abs()).reduce(system, 2)
    largest = torch.sort(system.poles().abs(), descending=True).values[:2]
    assert sorted(plan.log_poles.exp().abs().tolist()) == pytest.approx(sorted(largest.tolist()))


@pytest.mark.parametrize(
    "scores", [lambda s: -s.poles().abs(), lambda s: torch.ones(2), lambda s: s.poles().abs() * torch.nan]
)
def test_a_function_that_returns_something_else(scores):
    with pytest.raises(
        hsv.HsvError, match=r"`score` must return numbers that are not negative, one for each state, \(6,\)"
    ):
        ModeChoice(scores).reduce(systems(), 2)


def test_rules_choose_by_the_scores():
    system = systems(n=10)
    scores = ModeChoice("aire").spectrum(system)
    plan = ModeChoice("aire").reduce(system, hsv.PrefixShare(0.05))
    assert plan.n_states == int(hsv.PrefixShare(0.05).choose(scores)) > 1


def test_nothing_to_keep():
    system = systems()
    silent = hsv.DiagonalStateSpace.from_log_poles(system.log_poles, system.B * 0, system.C)
    for criterion in (ModeChoice("last"), BalancedChoice("random")):
        with pytest.raises(CutRefusedError, match="all Hankel singular values are zero"):
            criterion.reduce(silent, hsv.HankelSum(keep=0.9))


def test_unknown_names():
    with pytest.raises(hsv.HsvError, match=r"`score` must be one of 'last', 'aire', .* got 'best'"):
        ModeChoice("best")
    with pytest.raises(hsv.HsvError, match=r"`keep` must be 'smallest' or 'random', got 'largest'; ComplexHankel"):
        BalancedChoice("largest")


def test_the_smallest_balanced_states_carry_least():
    system = systems(n=12, seed=5)
    errors = [
        c.reduce(system, 6).error_bound
        for c in (hsv_torch.ComplexHankel(), BalancedChoice("random"), BalancedChoice("smallest"))
    ]
    assert errors[0] < errors[1] < errors[2]
