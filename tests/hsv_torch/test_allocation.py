import math

import numpy as np
import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch import Budget, Sizes
from hsv_torch.allocation import levels, margin, share_out
from tests.hsv_torch.models import classifier


def states(model):
    return {name: layer.n_states for name, layer in hsv_torch.compressible_layers(model).items()}


def two_layers(sizes=(24, 40), seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(hsv_torch.LRU(4, n, max_phase=0.6) for n in sizes))


class TestLevels:
    def test_by_hand(self):
        sigma = np.array([6.0, 3.0, 2.0, 1.0])
        np.testing.assert_allclose(levels(sigma, 4, "sum"), [1, 6 / 12, 3 / 12, 1 / 12])
        np.testing.assert_allclose(levels(sigma, 4, "prefix"), [1, 3 / 9, 2 / 11, 1 / 12])

    def test_they_select_what_the_rules_select(self):
        sigma = np.sort(np.random.default_rng(0).exponential(size=30))[::-1] ** 3
        for discard in (0.3, 0.1, 0.01):
            assert np.sum(levels(sigma, 30, "sum") > discard) == hsv.HankelSum(discard=discard).choose(sigma)
        for least in (0.2, 0.05, 0.01):
            assert np.sum(levels(sigma, 30, "prefix") >= least) == hsv.PrefixShare(least).choose(sigma)

    def test_a_batch_counts_where_it_needs_most(self):
        sigma = np.array([[1.0, 0.0], [1.0, 1.0]])
        np.testing.assert_allclose(levels(sigma, 2, "sum"), [1, 0.5])

    def test_pairs_of_the_real_system_and_silence(self):
        np.testing.assert_allclose(levels(np.array([3.0, 3.0, 1.0, 1.0]), 2, "sum"), [1, 0.25])
        np.testing.assert_allclose(levels(np.zeros(3), 3, "sum"), 0)


@pytest.mark.parametrize("share", ["sum", "prefix"])
def test_sharing_out_is_the_best_threshold_of_all(share):
    rng = np.random.default_rng(1)
    spectra = {name: np.sort(rng.exponential(size=n))[::-1] for name, n in (("a", 7), ("b", 9))}
    level = {name: levels(sigma, len(sigma), share) for name, sigma in spectra.items()}
    each = {"a": 3.0, "b": 2.0}

    def cost(sizes):
        return sum(each[name] * size for name, size in sizes.items())

    everything = sorted({0.0, *level["a"], *level["b"]})
    for total in range(5, 45):
        found = share_out(level, cost, total, dict, "states")
        allowed = [
            sizes
            for threshold in everything
            if cost(sizes := {name: max(1, int(np.sum(values > threshold))) for name, values in level.items()}) <= total
        ]
        assert found == max(allowed, key=lambda sizes: sum(sizes.values()))


class TestBudget:
    @pytest.mark.parametrize("share", ["sum", "prefix"])
    @pytest.mark.parametrize("criterion", [hsv_torch.ComplexHankel(), hsv_torch.RealHankel(), hsv_torch.ModeChoice("last")], ids=repr)  # fmt: skip
    def test_states(self, share, criterion):
        model = two_layers()
        hsv_torch.compress_(model, Budget(states=20, share=share), criterion=criterion)
        assert 15 <= sum(states(model).values()) <= 20

    @pytest.mark.parametrize("unit", ["parameters", "flops"])
    def test_units_that_follow_the_states(self, unit):
        model = nn.Sequential(hsv_torch.LRU(4, 24), hsv_torch.LRU(4, 24))

        def count():
            return sum(p.numel() for layer in model for name, p in layer.named_parameters() if p.shape != (4,))

        before = count()
        amount = (1 if unit == "parameters" else 2) * before // 2
        hsv_torch.compress_(model, Budget(**{unit: amount}))
        assert 0.4 * before < count() <= before / 2

    def test_a_share_of_what_there_is(self):
        model = two_layers()
        hsv_torch.compress_(model, Budget(keep=0.25))
        assert 12 <= sum(states(model).values()) <= 16

    def test_seconds(self):
        model, seen = two_layers(), []

        def measure(trial):
            assert trial is not model
            seen.append(states(trial))
            torch.rand(3)
            return 1e-3 * sum(states(trial).values())

        torch.manual_seed(5)
        before = torch.get_rng_state()
        hsv_torch.compress_(model, Budget(seconds=0.02, measure=measure))
        assert torch.equal(before, torch.get_rng_state())
        assert 15 <= sum(states(model).values()) <= 20
        assert states(model) in seen
        assert len(seen) <= 12

    @pytest.mark.parametrize("found", [None, math.nan, math.inf, 0.0, -1.0, True, "0.1"])
    def test_what_measure_may_not_return(self, found):
        model = two_layers((6, 6))
        with pytest.raises(
            hsv.HsvError, match=r"`measure` of the Budget must return a positive, finite number of seconds, got"
        ):
            hsv_torch.compress_(model, Budget(seconds=0.1, measure=lambda trial: found))
        assert states(model) == {"0": 6, "1": 6}

    def test_what_cannot_be_met(self):
        model = two_layers()
        with pytest.raises(hsv.OrderError, match=r"budget of 9 states cannot be met: .*\{'0': 5, '1': 5\}, take 10; raise it, or lower the floors"):  # fmt: skip
            hsv_torch.compress_(model, Budget(states=9), sizes=Sizes(floor=5))
        assert states(model) == {"0": 24, "1": 40}

    def test_a_budget_above_what_there_is_cuts_nothing_away(self):
        model = two_layers((6, 6))
        hsv_torch.compress_(model, Budget(states=100))
        assert states(model) == {"0": 6, "1": 6}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "exactly one of states, parameters, flops, seconds and keep, got none of them"),
            ({"states": 3, "keep": 0.5}, "got states, keep"),
            ({"states": 0}, "`states` must be at least 1, got 0"),
            ({"states": 2.5}, "`states` must be an int, got 2.5"),
            ({"keep": 1.5}, r"`keep` must be a number in \(0, 1\), got 1.5"),
            ({"seconds": 0.1}, "`seconds` and `measure` go together"),
            ({"keep": 0.5, "of": "bytes"}, "`of` must be 'states', 'parameters' or 'flops', got 'bytes'"),
            ({"keep": 0.5, "share": "max"}, "`share` must be 'sum' or 'prefix', got 'max'"),
        ],
    )
    def test_impossible_ones(self, arguments, message):
        with pytest.raises(hsv.HsvError, match=message):
            Budget(**arguments)

    def test_gradual(self):
        budget = Budget(states=16)
        sizes = [256.0]
        for remaining in (4, 3, 2, 1):
            sizes.append(budget.total(256, sizes[-1], remaining))
        np.testing.assert_allclose(sizes, [256, 128, 64, 32, 16])
        assert Budget(states=16, gradual=False).total(256, 256, 4) == 16
        assert Budget(keep=0.5).total(100, 60, 1) == 50


class TestSizes:
    def test_floors_ceilings_and_multiples(self):
        now = {"a": 64, "b": 64, "c": 6}
        chosen = {"a": 3, "b": 41, "c": 2}
        assert Sizes().adjust(chosen, now) == chosen
        assert Sizes(floor=5, ceiling=32).adjust(chosen, now) == {"a": 5, "b": 32, "c": 5}
        assert Sizes(multiple_of=8).adjust(chosen, now) == {"a": 8, "b": 48, "c": 6}
        assert Sizes(uniform=True, multiple_of=4).adjust(chosen, now) == {"a": 44, "b": 44, "c": 6}
        assert Sizes(floor={"a": 10, "*": 4}).adjust(chosen, now) == {"a": 10, "b": 41, "c": 4}

    def test_a_rule_and_sizes(self):
        model = classifier(16)
        hsv_torch.compress_(model, hsv.HankelSum(discard=0.5), sizes=Sizes(multiple_of=4, uniform=True))
        (size,) = set(states(model).values())
        assert size % 4 == 0
        assert size < 16

    @pytest.mark.parametrize("criterion", [hsv_torch.ComplexHankel(), hsv_torch.RealHankel()], ids=repr)
    def test_a_floor_keeps_what_a_rule_would_not(self, criterion):
        model = classifier(16)
        hsv_torch.compress_(model, 2, criterion=criterion, sizes=Sizes(floor={"blocks.0.*": 7}))
        assert list(states(model).values()) == [7, 2]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"floor": 0}, "`floor` must be at least 1, got 0"),
            ({"ceiling": {"*": 2.0}}, "`ceiling` must be an int, got 2.0"),
            ({"multiple_of": True}, "`multiple_of` must be an int, got True"),
            ({"floor": 5, "ceiling": 4}, "`floor` must not be above `ceiling`, got 5 and 4"),
        ],
    )
    def test_impossible_ones(self, arguments, message):
        with pytest.raises(hsv.HsvError, match=message):
            Sizes(**arguments)

    def test_names_that_match_nothing(self):
        with pytest.raises(
            hsv.HsvError, match=r"`floor`: 'x\*' matches no layer that is to be cut; there are \['0', '1'\]"
        ):
            hsv_torch.compress_(two_layers(), 3, sizes=Sizes(floor={"x*": 3}))

    def test_something_else(self):
        with pytest.raises(TypeError, match=r"`sizes` must be a hsv_torch.Sizes or None, got 8"):
            hsv_torch.compress_(two_layers(), 3, sizes=8)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda limit: hsv.HankelSum(discard=limit), 0.1),
        (lambda limit: hsv.HankelEnergy(discard=limit), 0.01),
        (lambda limit: hsv.Threshold(limit), 0.05),
        (lambda limit: hsv.PrefixShare(limit), 0.05),
        (lambda limit: hsv.ErrorBound(3.0 * limit), 1.0),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_margin_is_how_far_the_limit_can_move(make, limit):
    """Within it the choice stays, in both directions; beyond it, in one of them, it does not."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        sigma = np.sort(generator.lognormal(sigma=2.0, size=12))[::-1]
        found = margin(make(limit), sigma)
        chosen = make(limit).choose(sigma)
        near = [make(limit + sign * 0.999 * found).choose(sigma) for sign in (-1, 1)]
        far = [
            make(limit + sign * 1.001 * found).choose(sigma)
            for sign in (-1, 1)
            if limit + sign * 1.001 * found > 0 and (limit + sign * 1.001 * found < 1 or limit == 1.0)
        ]
        assert near == [chosen, chosen]
        assert any(other != chosen for other in far)


def test_margins_of_batches_and_of_rules_without_a_limit():
    first, second = np.array([4.0, 2.0, 1.0]), np.array([6.0, 3.0, 0.5])
    rule = hsv.HankelSum(discard=0.3)
    assert margin(rule, first) == pytest.approx(3 / 7 - 0.3)
    assert margin(rule, second) == pytest.approx(3.5 / 9.5 - 0.3)
    assert margin(rule, np.stack([first, second])) == margin(rule, second)
    for other in (hsv.Order(2), hsv.LargestGap(), Budget(states=4)):
        assert margin(other, first) is None
    assert margin(rule, np.array([1.0])) is None
    assert margin(rule, np.zeros(3)) is None
