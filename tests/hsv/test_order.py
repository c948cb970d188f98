import numpy as np
import pytest
import torch
from array_api_strict import asarray as strict
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._order import as_rule

SIGMA = np.array([6.0, 3.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (hsv.Order(3), 3),
        (hsv.HankelSum(keep=0.9), 2),
        (hsv.HankelSum(discard=0.1), 2),
        (hsv.HankelSum(discard=0.0999), 3),
        (hsv.HankelSum(keep=1.0), 4),
        (hsv.HankelSum(discard=0.0), 4),
        (hsv.HankelSum(discard=0.99), 1),
        (hsv.HankelEnergy(keep=0.98), 2),  # 45 / 45.5 = 0.989
        (hsv.HankelEnergy(keep=0.99), 3),
        (hsv.HankelEnergy(discard=0.2), 2),  # the tail after one state is 9.5 / 45.5 = 0.209
        (hsv.HankelEnergy(discard=0.21), 1),
        (hsv.Threshold(0.1), 2),
        (hsv.Threshold(0.08), 4),
        (hsv.ErrorBound(2.0), 2),
        (hsv.ErrorBound(1.99), 3),
        (hsv.ErrorBound(100.0), 1),
        (hsv.LargestGap(), 2),
        (hsv.LargestGap(at_most=1), 1),
        (hsv.PrefixShare(0.33), 2),  # 6/6, 3/9, .5/9.5
        (hsv.PrefixShare(0.05), 4),  # .5/9.5 = 0.0526, .5/10 = 0.05
        (hsv.PrefixShare(0.051), 3),
        (hsv.PrefixShare(1.0), 1),
    ],
)
def test_rules_by_hand(rule, order):
    assert int(rule.choose(SIGMA)) == order


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 0.999))
def test_the_hankel_sum_is_the_papers_rule(values, tau):
    sigma = np.sort(np.array(values))[::-1]
    if sigma[0] == 0:
        return
    r = int(hsv.HankelSum(discard=tau).choose(sigma))
    total, slack = sigma.sum(), 1e-12 * sigma.sum()
    assert sigma[:r].sum() >= (1 - tau) * total - slack
    if r > 0:
        assert sigma[: r - 1].sum() <= (1 - tau) * total + slack


def test_equal_values_are_shared_out_exactly():
    assert int(hsv.HankelSum(discard=0.1).choose(np.ones(10))) == 9
    assert int(hsv.HankelSum(discard=0.3).choose(np.ones(10))) == 7


def test_a_batch_chooses_for_each_system():
    sigma = np.array([[1.0, 0.5, 0.1], [1.0, 1e-4, 1e-5], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(hsv.Threshold(0.01).choose(sigma), [3, 1, 0])
    np.testing.assert_array_equal(hsv.HankelSum(keep=0.9).choose(sigma), [2, 1, 0])
    np.testing.assert_array_equal(hsv.ErrorBound(0.5).choose(sigma), [2, 1, 0])
    np.testing.assert_array_equal(hsv.Order(2).choose(sigma), [2, 2, 0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: hsv.Order(0), hsv.OrderError, "at least 1, got 0"),
        (lambda: hsv.Order(2.0), hsv.DtypeError, "HankelSum"),
        (lambda: hsv.Order(True), hsv.DtypeError, "takes an int"),
        (lambda: hsv.Order(5).choose(SIGMA), hsv.OrderError, r"in \[1, 4\], got 5"),
        (lambda: hsv.HankelSum(), hsv.DtypeError, "neither"),
        (lambda: hsv.HankelSum(keep=0.5, discard=0.5), hsv.DtypeError, "both"),
        (lambda: hsv.HankelSum(keep=0.0), hsv.OrderError, r"share in \(0, 1\]"),
        (lambda: hsv.HankelSum(discard=1.0), hsv.OrderError, r"share in \[0, 1\)"),
        (lambda: hsv.HankelSum(keep=1.5), hsv.OrderError, "share"),
        (lambda: hsv.HankelEnergy(keep="0.5"), hsv.DtypeError, "takes a number"),
        (lambda: hsv.HankelSum(keep=float("nan")), hsv.HsvError, "nan"),
        (lambda: hsv.Threshold(1.0), hsv.OrderError, r"\(0, 1\)"),
        (lambda: hsv.ErrorBound(0.0), hsv.OrderError, "positive"),
        (lambda: hsv.ErrorBound(float("inf")), hsv.OrderError, "finite"),
        (lambda: as_rule(0.9), hsv.DtypeError, "rule must be an int"),
        (lambda: as_rule(True), hsv.DtypeError, "rule must be an int"),
        (lambda: as_rule("all"), hsv.DtypeError, "hsv.Threshold"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_positional_share_is_refused():
    with pytest.raises(TypeError):
        hsv.HankelSum(0.9)


@pytest.mark.parametrize("library", [np.asarray, np.float64, np.float32, torch.tensor, strict])
def test_numbers_come_as_arrays_without_axes(library):
    """As norms and bounds do."""
    assert hsv.ErrorBound(library(0.5)) == hsv.ErrorBound(0.5)
    assert repr(hsv.ErrorBound(library(0.5))) == "ErrorBound(bound=0.5)"
    assert hsv.Threshold(library(0.5)) == hsv.Threshold(0.5)
    assert hsv.PrefixShare(library(0.5)) == hsv.PrefixShare(0.5)
    assert hsv.HankelSum(keep=library(0.5)) == hsv.HankelSum(keep=0.5)
    with pytest.raises(hsv.OrderError, match="positive finite"):
        hsv.ErrorBound(library(-0.5))


@pytest.mark.parametrize("wrong", [torch.tensor([0.5]), np.array([0.5, 1.0]), np.array(0.5j), torch.tensor(True)])
def test_a_batch_of_numbers_is_no_number(wrong):
    with pytest.raises(hsv.DtypeError, match="ErrorBound takes a number, got"):
        hsv.ErrorBound(wrong)


def test_a_bound_relative_to_the_norm_of_tensors():
    A, B, C = (
        torch.tensor(x, dtype=torch.float64) for x in ([[-1.0, 0.0], [0.0, -100.0]], [[1.0], [1.0]], [[1.0, 1.0]])
    )
    sys = hsv.StateSpace(A, B, C, dt=0)
    assert hsv.balanced_truncation(sys, hsv.ErrorBound(0.1 * hsv.hinf_norm(sys))).system.n_states == 1
