"""Printed results of SLICOT's example programs: AB09HD, AB09FD, AB09GD, SB02MD, SB02ND, SB02OD and SG02AD.

That every printed number is found is asked in `test_published_examples.py`; here are the transfer functions of printed systems, and what is known of the solutions beyond the printed digits.
"""

import numpy as np
import pytest

import hsv
from tests.hsv import slicot_examples as printed


def check_transfer_function(found, expected):
    """Four printed decimals of each matrix are some three digits of the response."""
    w = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 20.0])
    expected = expected.frequency_response(w)
    np.testing.assert_allclose(found.frequency_response(w), expected, atol=2e-3 * np.abs(expected).max())


def test_ab09hd():
    example = printed.ab09hd()
    red = hsv.stochastic_truncation(example.sys, example.rule(), alpha=1.0)
    assert int(red.orders) == example.order
    check_transfer_function(red.system, example.reduced)


@pytest.mark.parametrize(
    ("method", "example"),
    [(hsv.balanced_truncation, printed.ab09fd()), (hsv.singular_perturbation, printed.ab09gd())],
    ids=["AB09FD", "AB09GD"],
)
def test_ab09fd_and_ab09gd(method, example):
    """Left factors with an inner denominator."""
    red = hsv.coprime_factor_reduction(
        example.sys, example.rule(), factorization=hsv.inner_coprime_factors, method=method
    )
    assert int(red.orders) == example.order
    check_transfer_function(red.system, example.reduced)


def test_sb02od_and_sg02ad():
    example = printed.sb02od()
    x = hsv.solve_continuous_riccati(example.a, example.b, example.q, example.r)
    np.testing.assert_allclose(x, [[np.sqrt(3), 1.0], [1.0, np.sqrt(3)]], rtol=1e-14)


def test_sb02md():
    example = printed.sb02md()
    x = hsv.solve_continuous_riccati(example.a, example.b, example.q, example.r)
    np.testing.assert_allclose(x, example.x, rtol=1e-14)


def test_sb02nd():
    """And the gain that it prints."""
    example = printed.sb02nd()
    a, b = example.a, example.b
    x = hsv.solve_discrete_riccati(a, b, example.q, example.r)
    np.testing.assert_allclose(x, example.x, atol=1e-13)
    np.testing.assert_allclose(np.linalg.solve(b.T @ x @ b, b.T @ x @ a), example.gain, atol=1e-13)
