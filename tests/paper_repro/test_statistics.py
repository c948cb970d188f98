import math

import pytest

from paper_repro.statistics import mean_of_best, paired_difference, summarise


def test_mean_and_sample_deviation():
    summary = summarise([1.0, 2.0, 3.0, 6.0])
    assert (summary.count, summary.mean, summary.least, summary.greatest) == (4, 3.0, 1.0, 6.0)
    assert summary.deviation == pytest.approx(math.sqrt(14 / 3))


def test_one_value_has_no_deviation():
    assert summarise([0.5]).deviation is None


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_values_must_be_finite_and_there(values):
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_mean_of_the_best():
    assert mean_of_best([0.5, 0.9, 0.7, 0.8], 3) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        mean_of_best([0.1, 0.2], 3)


def test_differences_are_taken_seed_by_seed():
    difference = paired_difference({0: 0.9, 1: 0.8, 2: 0.7, 9: 0.0}, {2: 0.5, 1: 0.7, 0: 0.9, 5: 1.0})
    assert difference.by_seed == pytest.approx({0: 0.0, 1: 0.1, 2: 0.2})
    assert difference.n_positive == 2
    # Student's t with 2 degrees of freedom: 4.302653; standard error 0.1 / sqrt(3)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert difference.interval == pytest.approx((0.1 - half, 0.1 + half))
    assert not difference.is_clear


def test_a_difference_that_all_seeds_share_is_clear():
    assert paired_difference({0: 0.9, 1: 0.81, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6}).is_clear
    assert paired_difference({0: 0.6, 1: 0.71, 2: 0.8}, {0: 0.7, 1: 0.8, 2: 0.9}).is_clear


def test_one_seed_has_no_interval_and_none_is_an_error():
    assert paired_difference({0: 1.0}, {0: 0.5}).interval is None
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 0.5})
