"""Printed results of SLICOT's example programs of the special balancings and of Riccati equations, each with its input.

All systems are in continuous time. The printed matrices have four digits after the decimal point. Where SLICOT's tolerance chooses the order, it is absolute.
"""

from dataclasses import dataclass

import numpy as np

import hsv
from tests.hsv.reference_systems import slicot_power_system

DIGITS = 4


@dataclass(frozen=True)
class PrintedReduction:
    """A reduction: the system that goes in, the values that are printed, and the system that comes out."""

    sys: hsv.StateSpace
    values: np.ndarray
    order: int
    reduced: hsv.StateSpace
    tolerance: float | None = None
    """What chose the order; None if the order was asked for."""
    weight: hsv.StateSpace | None = None
    """Weight of the output."""

    def rule(self) -> hsv.Threshold:
        """Return the rule with the same effect as the absolute tolerance."""
        assert self.tolerance is not None
        return hsv.Threshold(self.tolerance / self.values[0])


@dataclass(frozen=True)
class PrintedRiccati:
    """Coefficients of a Riccati equation, its printed solution, and the printed gain of the feedback."""

    a: np.ndarray
    b: np.ndarray
    q: np.ndarray
    r: np.ndarray
    x: np.ndarray
    gain: np.ndarray | None = None


def ab09id() -> PrintedReduction:
    """Frequency-weighted balanced truncation. The plant has one unstable pole, which stays; the values are of its stable part."""
    A = np.array([[-26.4, 6.4023, 4.3868], [32, 0, 0], [0, 8, 0]])
    C = [[9.2994, 1.1624, 0.1090]]
    AV = np.zeros((6, 6))
    AV[:3, :3] = [[-1, 0, 4], [0, 2, 0], [0, 0, -3]]
    AV[:3, 3:] = -np.array(C)
    AV[3, :3] = 16
    AV[3:, 3:] = A
    ones = np.array([[1.0, 1, 1, 0, 0, 0]])
    return PrintedReduction(
        hsv.StateSpace(A, [[16.0], [0], [0]], C, dt=0),
        values=np.array([3.8253, 0.2005]),
        order=2,
        reduced=hsv.StateSpace([[9.1900, 0], [0, -34.5297]], [[11.9593], [16.9329]], [[2.8955, 6.9152]], [[0.0]], dt=0),
        weight=hsv.StateSpace(AV, ones.T, ones, dt=0),
    )


def ab09jd() -> PrintedReduction:
    """Weighted Hankel-norm approximation of a Butterworth filter of order 6, with a weight whose poles and zeros are unstable. AB09KD prints the same."""
    A = np.vstack([[-3.8637, -7.4641, -9.1416, -7.4641, -3.8637, -1.0], np.eye(5, 6)])
    reduced = [
        [-0.2391, 0.3072, 1.1630, 1.1967],
        [-2.9709, -0.2391, 2.6270, 3.1027],
        [0, 0, -0.5137, -1.2842],
        [0, 0, 0.1519, -0.5137],
    ]
    return PrintedReduction(
        hsv.StateSpace(A, np.eye(6, 1), np.eye(6)[[5]], dt=0),
        values=np.array([2.6790, 2.1589, 0.8424, 0.1929, 0.0219, 0.0011]),
        tolerance=0.1,
        order=4,
        reduced=hsv.StateSpace(
            reduced,
            [[-1.0497], [-3.7052], [0.8223], [0.7435]],
            [[-0.4466, 0.0143, -0.4780, -0.2013]],
            [[0.0219]],
            dt=0,
        ),
        weight=hsv.StateSpace([[0.2, -1.0], [1.0, 0.0]], [[1.0], [0.0]], [[-1.8, 0.0]], [[1.0]], dt=0),
    )


def ab09hd() -> PrintedReduction:
    """Balanced stochastic truncation of the power system, ``alpha = 1``, in coordinates that are not balanced."""
    return PrintedReduction(
        slicot_power_system().system(),
        values=np.array([0.8803, 0.8506, 0.8038, 0.4494, 0.3973, 0.0214, 0.0209]),
        tolerance=0.1,
        order=5,
        reduced=hsv.StateSpace(
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
        ),
    )


def ab09fd() -> PrintedReduction:
    """Balanced truncation of left coprime factors with an inner denominator."""
    return PrintedReduction(
        _unstable_power_system(),
        values=_FACTOR_VALUES,
        tolerance=0.1,
        order=5,
        reduced=hsv.StateSpace(
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
        ),
    )


def ab09gd() -> PrintedReduction:
    """Singular perturbation of the same factors."""
    return PrintedReduction(
        _unstable_power_system(),
        values=_FACTOR_VALUES,
        tolerance=0.1,
        order=5,
        reduced=hsv.StateSpace(
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
        ),
    )


def sb02od() -> PrintedRiccati:
    """Two integrators, in continuous time; SG02AD prints the same."""
    x = np.array([[1.7321, 1.0], [1.0, 1.7321]])
    return PrintedRiccati(_INTEGRATORS, np.eye(2)[:, [1]], q=np.eye(2), r=np.eye(1), x=x)


def sb02md() -> PrintedRiccati:
    """Two integrators, in continuous time; there with ``G = b r^-1 b^H``."""
    x = np.array([[2.0, 1.0], [1.0, 2.0]])
    return PrintedRiccati(_INTEGRATORS, np.eye(2)[:, [1]], q=np.diag([1.0, 2.0]), r=np.eye(1), x=x)


def sb02nd() -> PrintedRiccati:
    """In discrete time, with ``r = 0``."""
    a = np.array([[2.0, -1.0], [1.0, 0.0]])
    b, r, gain = np.eye(2, 1), np.zeros((1, 1)), np.array([[2.0, -1.0]])
    return PrintedRiccati(a, b, q=np.diag([0.0, 1.0]), r=r, x=np.eye(2), gain=gain)


_INTEGRATORS = np.array([[0.0, 1.0], [0.0, 0.0]])
_FACTOR_VALUES = np.array([13.6047, 9.4106, 1.7684, 0.7456, 0.6891, 0.0241, 0.0230])


def _unstable_power_system() -> hsv.StateSpace:
    """Return the power system of AB09AD with two unstable poles."""
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
    stable = slicot_power_system()
    return hsv.StateSpace(A, stable.B, stable.C, dt=0)
