"""Printed results of SLICOT's example programs: AB09HD, AB09FD, AB09GD, SB02MD, SB02ND, SB02OD and SG02AD."""

import numpy as np
import pytest

import hsv
from tests.hsv import reference_systems as known


def unstable_power_system():
    """The data of the example programs of AB09FD and AB09GD: the power system of AB09AD with two unstable poles."""
    A = np.array(
        [
            [-0.04165, 0, 4.92, 0.492, 0, 0, 0],
            [-5.21, -12.5, 0, 0, 0, 0, 0],
            [0, 3.33, -3.33, 0, 0, 0, 0],
            [0.545, 0, 0, 0, 0.0545, 0, 0],
            [0, 0, 0, -0.492, 0.004165, 0, 4.92],
            [0, 0, 0, 0, 0.521, -12.5, 0],
            [0, 0, 0, 0, 0, 3.33, -3.33],
        ]
    )
    stable = known.slicot_power_system()
    return hsv.StateSpace(A, stable.B, stable.C, dt=0)


FACTOR_VALUES = [13.6047, 9.4106, 1.7684, 0.7456, 0.6891, 0.0241, 0.0230]
AB09FD = hsv.StateSpace(
    [
        [0.0520, -0.1491, 0.0037, -0.0232, 0.0168],
        [0.2340, 0.2618, 0.0010, -0.0153, -0.0318],
        [0.1197, 0.0075, -0.5752, 2.0119, -0.7779],
        [0.1571, -0.2019, -2.1282, -2.1192, -0.3618],
        [0.0368, -0.4810, 0.8395, -0.2790, -2.8796],
    ],
    [[1.0454, 0.5860], [-0.0489, -1.9194], [-1.4282, 0.0541], [-1.6144, -0.7533], [0.5916, -1.9242]],
    [
        [0.4368, 0.1122, -1.2917, 1.5888, -0.6354],
        [1.1170, 0.3963, 0.6115, 0.1249, -0.0859],
        [0.0756, -1.8904, 0.0144, 0.7964, 1.9085],
    ],
    dt=0,
)
AB09GD = hsv.StateSpace(
    [
        [0.0521, -0.1491, 0.0032, -0.0242, 0.0181],
        [0.2341, 0.2615, 0.0009, -0.0171, -0.0362],
        [0.1170, 0.0076, -0.5471, 2.0904, -0.8098],
        [0.1675, -0.2122, -2.2113, -2.4097, -0.4139],
        [0.0390, -0.5061, 0.8787, -0.3166, -3.2955],
    ],
    [[1.0449, 0.5863], [-0.0490, -1.9210], [-1.3930, 0.0540], [-1.7206, -0.8039], [0.6358, -2.0542]],
    [
        [0.4331, 0.1125, -1.2534, 1.6965, -0.6773],
        [1.1171, 0.3963, 0.6102, 0.1213, -0.0841],
        [0.0736, -1.8815, 0.0134, 0.8457, 2.0413],
    ],
    [[0.0480, 0.0003], [-0.0017, 0.0001], [0.0005, 0.0460]],
    dt=0,
)
AB09HD = hsv.StateSpace(
    [
        [1.2729, 0.0000, 6.5947, 0.0000, -3.4229],
        [0.0000, 0.8169, 0.0000, 2.4821, 0.0000],
        [-2.9889, 0.0000, -2.9028, 0.0000, -0.3692],
        [0.0000, -3.3921, 0.0000, -3.1126, 0.0000],
        [-1.4767, 0.0000, -2.0339, 0.0000, -0.6107],
    ],
    [[0.1331, -0.1331], [-0.0862, -0.0862], [-2.6777, 2.6777], [-3.5767, -3.5767], [-2.3033, 2.3033]],
    [
        [-0.6907, -0.6882, 0.0779, 0.0958, -0.0038],
        [0.0676, 0.0000, 0.6532, 0.0000, -0.7522],
        [0.6907, -0.6882, -0.0779, 0.0958, 0.0038],
    ],
    dt=0,
)
STOCHASTIC_VALUES = [0.8803, 0.8506, 0.8038, 0.4494, 0.3973, 0.0214, 0.0209]


def check_transfer_function(found, printed):
    """Four printed decimals of each matrix are some three digits of the response."""
    w = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 20.0])
    expected = printed.frequency_response(w)
    np.testing.assert_allclose(found.frequency_response(w), expected, atol=2e-3 * np.abs(expected).max())


def test_ab09hd():
    """Its tolerance of 0.1 is absolute."""
    sys = known.slicot_power_system().system()
    red = hsv.stochastic_truncation(sys, hsv.Threshold(0.1 / STOCHASTIC_VALUES[0]), alpha=1.0)
    assert int(red.orders) == 5
    np.testing.assert_allclose(red.characteristic_values, STOCHASTIC_VALUES, atol=5.1e-5)
    check_transfer_function(red.system, AB09HD)


@pytest.mark.parametrize(
    ("method", "printed"),
    [(hsv.balanced_truncation, AB09FD), (hsv.singular_perturbation, AB09GD)],
    ids=["AB09FD", "AB09GD"],
)
def test_ab09fd_and_ab09gd(method, printed):
    """Left factors with an inner denominator; its tolerance of 0.1 is absolute."""
    red = hsv.coprime_factor_reduction(
        unstable_power_system(),
        hsv.Threshold(0.1 / FACTOR_VALUES[0]),
        factorization=hsv.inner_coprime_factors,
        method=method,
    )
    assert int(red.orders) == 5
    np.testing.assert_allclose(red.characteristic_values, FACTOR_VALUES, atol=5.1e-5)
    np.testing.assert_allclose(red.system.D, printed.D, atol=5.1e-5)
    check_transfer_function(red.system, printed)


def test_sb02od_and_sg02ad():
    x = hsv.solve_continuous_riccati([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], np.eye(2), [[1.0]])
    np.testing.assert_allclose(x, [[1.7321, 1.0], [1.0, 1.7321]], atol=5e-5)
    np.testing.assert_allclose(x, [[np.sqrt(3), 1.0], [1.0, np.sqrt(3)]], rtol=1e-14)


def test_sb02md():
    """There with ``G = b r^-1 b^H`` and ``q`` given."""
    x = hsv.solve_continuous_riccati([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0], [0.0, 2.0]], [[1.0]])
    np.testing.assert_allclose(x, [[2.0, 1.0], [1.0, 2.0]], rtol=1e-14)


def test_sb02nd():
    """Discrete, with ``r = 0``, and the gain that it prints."""
    a, b, q = np.array([[2.0, -1.0], [1.0, 0.0]]), np.array([[1.0], [0.0]]), np.diag([0.0, 1.0])
    x = hsv.solve_discrete_riccati(a, b, q, [[0.0]])
    np.testing.assert_allclose(x, np.eye(2), atol=1e-13)
    np.testing.assert_allclose(np.linalg.solve(b.T @ x @ b, b.T @ x @ a), [[2.0, -1.0]], atol=1e-13)
