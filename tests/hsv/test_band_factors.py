import math

import numpy as np
import pytest
import scipy.integrate

import hsv
from hsv._band_factors import band_factor, band_input
from hsv._frequency_limited import band_operator, by_logarithms, checked_bands
from tests.hsv.test_systems import random_diagonal, random_system

BANDS = [(0, 0.7), (0.3, 1.9), (2.5, 3.1), (0.5, math.inf), (0, math.inf), [(0, 0.1), (1, 2)]]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True, 0.4])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_gramians_by_logarithms(make, dt, complex_, band, rng):
    """Logarithms of matrices for dense systems, of cross ratios for diagonal ones: no quadrature."""
    sys = make(rng, n=5, batch=(2,), complex_=complex_, dt=dt)
    edges = checked_bands(sys, band)
    expected, _ = (
        by_logarithms(sys.to_dense(), edges) if make is random_system else hsv.frequency_limited_gramians(sys, band)
    )
    L = band_factor(sys.to_dense(), edges)
    assert (L.shape, np.iscomplexobj(L)) == ((2, 5, 5), complex_)
    np.testing.assert_allclose(L @ L.conj().swapaxes(-1, -2), expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True, 0.4])
def test_the_right_hand_side_by_logarithms(dt, complex_, band, rng):
    sys = random_system(rng, n=5, batch=(2,), complex_=complex_, dt=dt)
    edges = checked_bands(sys, band)
    expected = band_operator(sys, edges) @ sys.B
    found = band_input(sys, edges)
    assert np.iscomplexobj(found) == complex_
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(sys.B).max())


@pytest.mark.parametrize("sign", [1, -1, 0])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("damping", [1e-3, 1e-6, 1e-9])
def test_a_resonance_in_the_band(damping, dt, sign):
    """Closed forms of diagonal systems; the resonance has all of the Gramian, on a scale of its damping. Complex systems may have it at one sign of frequency alone."""
    poles = -damping * np.array([1.0, 1.0]) + 1j * np.array([1.0, -1.0] if sign == 0 else [sign, 1.1 * sign])
    sys = hsv.DiagonalStateSpace(np.exp(poles) if dt else poles, np.ones((2, 1)), np.ones((1, 2)), dt=dt)
    for band in ((0.5, 1.5), (0.5, math.inf)):
        expected, _ = hsv.frequency_limited_gramians(sys, band)
        L = band_factor(sys.to_dense(), checked_bands(sys, band))
        # a pole of 1 - d has a rounding error of eps / d relative to its distance to the boundary
        np.testing.assert_allclose(L @ L.conj().T, expected, atol=(1e-11 + 1e-15 / damping) * np.abs(expected).max())


@pytest.mark.parametrize("n", [10, 60])
def test_poles_of_high_multiplicity(n):
    """A chain of equal lags, whose matrix has no logarithm that double precision could hold: P_jj is the integral of (1 + w^2)^-(n - j)."""
    sys = hsv.StateSpace(-np.eye(n) + np.eye(n, k=1), np.eye(n)[:, -1:], np.eye(1, n), dt=0)
    L = band_factor(sys, [(0.0, 2.0)])
    expected = [scipy.integrate.quad(lambda w, j=j: (1 + w * w) ** (j - n) / math.pi, 0, 2)[0] for j in range(n)]
    np.testing.assert_allclose(np.sum(L * L, axis=1), expected, rtol=1e-11)


def test_many_columns_are_compressed_on_the_way(rng):
    sys = random_system(rng, n=3, m=7, complex_=False, dt=0)
    expected, _ = by_logarithms(sys, [(0.1, 40.0)])
    L = band_factor(sys, [(0.1, 40.0)])
    np.testing.assert_allclose(L @ L.T, expected, atol=1e-12 * np.abs(expected).max())


def test_few_columns_are_filled_up():
    sys = hsv.StateSpace(-np.eye(60), np.ones((60, 1)), np.ones((1, 60)), dt=0)
    L = band_factor(sys, [(0.0, 0.1)])
    assert L.shape == (60, 60)
    np.testing.assert_allclose(L @ L.T, np.full((60, 60), math.atan(0.1) / math.pi), rtol=1e-12)


@pytest.mark.parametrize("dt", [0, True])
def test_poles_at_the_origin(dt):
    """Delays have no logarithm, and no resonance either."""
    A = np.diag(np.ones(2), 1) if dt else -np.eye(3) * 1e-3
    sys = hsv.StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), dt=dt)
    full = band_factor(sys, checked_bands(sys, (0, math.inf)))
    np.testing.assert_allclose(full @ full.T, hsv.controllability_gramian(sys), rtol=1e-10)


def test_too_many_resonances_are_left_to_others():
    w = np.linspace(1, 2, 40)
    poles = -1e-12 + 1j * np.concatenate([w, -w])
    sys = hsv.DiagonalStateSpace(poles, np.ones((80, 1)), np.ones((1, 80)), dt=0).to_dense()
    assert band_factor(sys, [(0.5, 2.5)]) is None
    assert band_input(sys, [(0.5, 2.5)]) is None
    for X, Y in zip(hsv.frequency_limited_gramians(sys, (0.5, 2.5)), by_logarithms(sys, [(0.5, 2.5)]), strict=True):
        np.testing.assert_array_equal(X, Y)
    with pytest.raises(hsv.UnstableSystemError):
        band_factor(hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0), [(0.5, 2.5)])
