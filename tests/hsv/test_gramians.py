import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import hsv
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance


def residual(A, X, W, dt):
    """Residual of the Lyapunov or Stein equation, relative to the size of its terms."""
    Ah = A.conj().swapaxes(-1, -2)
    r = A @ X @ Ah - X + W if dt else A @ X + X @ Ah + W
    return np.abs(r).max() / (np.abs(X).max() * max(np.abs(A).max(), 1) ** 2)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_gramians_solve_their_equations(make, complex_, dt, m, rng):
    sys = make(rng, m=m, p=m, batch=(3,), complex_=complex_, dt=dt)
    dense = sys.to_dense()
    Ah, Bh, Ch = (x.conj().swapaxes(-1, -2) for x in (dense.A, dense.B, dense.C))
    P, Q = hsv.controllability_gramian(sys), hsv.observability_gramian(sys)
    Lc, Lo = hsv.controllability_factor(sys), hsv.observability_factor(sys)
    assert residual(dense.A, P, dense.B @ Bh, dt) < tolerance(float)
    assert residual(Ah, Q, Ch @ dense.C, dt) < tolerance(float)
    for X, L in ((P, Lc), (Q, Lo)):
        assert np.iscomplexobj(X) == np.iscomplexobj(L) == complex_
        np.testing.assert_allclose(X, X.conj().swapaxes(-1, -2), atol=1e-14 * np.abs(X).max())
        np.testing.assert_allclose(L @ L.conj().swapaxes(-1, -2), X, atol=tolerance(float) * np.abs(X).max())


@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 8, 100])
def test_a_finite_gramian_is_the_sum_of_its_terms(make, horizon, rng):
    sys = make(rng, batch=(2,))
    dense = sys.to_dense()
    term, total = dense.B @ dense.B.conj().swapaxes(-1, -2), 0
    for _ in range(horizon):
        total = total + term
        term = dense.A @ term @ dense.A.conj().swapaxes(-1, -2)
    np.testing.assert_allclose(hsv.controllability_gramian(sys, horizon), total, rtol=1e-11, atol=1e-12)
    Ah = dense.A.conj().swapaxes(-1, -2)
    term, total = dense.C.conj().swapaxes(-1, -2) @ dense.C, 0
    for _ in range(horizon):
        total = total + term
        term = Ah @ term @ dense.A
    np.testing.assert_allclose(hsv.observability_gramian(sys, horizon), total, rtol=1e-11, atol=1e-12)


def test_a_finite_horizon_takes_unstable_systems():
    sys = hsv.DiagonalStateSpace([1.0, 2.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    np.testing.assert_array_equal(hsv.controllability_gramian(sys, 3), [[3, 7], [7, 21]])


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12, 1e-15])
def test_log_poles_keep_every_digit_next_to_the_circle(gap):
    sys = hsv.DiagonalStateSpace.from_log_poles([-gap + 0.3j, -gap + (0.3 + gap) * 1j], [[1.0], [1.0]], [[1.0, 1.0]])
    P = hsv.controllability_gramian(sys)
    exact_diagonal = -1 / np.expm1(-2 * gap)
    np.testing.assert_allclose(P[0, 0], exact_diagonal, rtol=1e-14)
    # off the diagonal: 1 / (1 - exp(-2 gap - i delta)), delta the difference of the rounded angles
    delta = (0.3 + gap) - 0.3
    x, y = -2 * gap, -delta
    exact = -1 / complex(np.expm1(x) * np.cos(y) - 2 * np.sin(y / 2) ** 2, np.exp(x) * np.sin(y))
    np.testing.assert_allclose(P[0, 1], exact, rtol=1e-12)


def test_poles_next_to_the_circle_keep_every_digit():
    from fractions import Fraction

    re, im = 0.6, 0.8 * (1 - 1e-13)
    sys = hsv.DiagonalStateSpace([re + 1j * im], [[1.0]], [[1.0]], dt=True)
    exact = 1 / (1 - Fraction(re) ** 2 - Fraction(im) ** 2)
    assert abs(hsv.controllability_gramian(sys)[0, 0].real / float(exact) - 1) < 4e-16


def test_the_factor_of_a_numerically_singular_gramian_has_relative_accuracy():
    """Hilbert-like Gramian (condition above 1e30): P = L L^T entry by entry, and the determinant of Cauchy's formula."""
    poles = np.array([-float(k) for k in range(1, 25)])
    sys = hsv.DiagonalStateSpace(poles, np.ones((24, 1)), np.ones((1, 24)), dt=0)
    L = hsv.controllability_factor(sys)
    np.testing.assert_allclose(L @ L.T, 1 / -(poles[:, None] + poles[None, :]), rtol=1e-13)
    pairs = [(i, j) for i in range(24) for j in range(i)]
    log_det = (
        sum(2 * np.log(abs(poles[i] - poles[j])) for i, j in pairs) - np.log(-(poles[:, None] + poles[None, :])).sum()
    )
    _, log_abs = np.linalg.slogdet(L)
    np.testing.assert_allclose(2 * log_abs, log_det, rtol=1e-12)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_repeated_poles_are_no_obstacle(n, m, seed):
    rng = np.random.default_rng(seed)
    poles = rng.choice([0.5, -0.2 + 0.7j, 0.0], size=n)
    sys = hsv.DiagonalStateSpace(poles, rng.normal(size=(n, m)), rng.normal(size=(m, n)), dt=True)
    L = hsv.controllability_factor(sys)
    P = hsv.controllability_gramian(sys)
    np.testing.assert_allclose(L @ L.conj().T, P, atol=1e-13 * np.abs(P).max())


def test_rows_of_zeros_and_an_empty_batch():
    sys = hsv.DiagonalStateSpace([0.5, 0.6], np.zeros((2, 3)), np.ones((1, 2)), dt=True)
    np.testing.assert_array_equal(hsv.controllability_factor(sys), np.zeros((2, 2)))
    empty = hsv.DiagonalStateSpace(np.zeros((0, 2)), np.zeros((0, 2, 1)), np.zeros((0, 1, 2)), dt=True)
    assert hsv.controllability_factor(empty).shape == (0, 2, 2)
    assert hsv.controllability_gramian(empty).shape == (0, 2, 2)


def test_an_unstable_system_is_named():
    with pytest.raises(hsv.UnstableSystemError, match=r"spectral radius 1.0003 \(state 1\) must be below 1"):
        hsv.controllability_gramian(hsv.DiagonalStateSpace([0.5, 1.0003], np.ones((2, 1)), np.ones((1, 2)), dt=True))
    with pytest.raises(hsv.UnstableSystemError, match=r"spectral abscissa 0 \(system \(1,\), state 0\)"):
        hsv.controllability_factor(
            hsv.DiagonalStateSpace([[-1.0, -1.0], [0.0, -1.0]], np.ones((2, 1)), np.ones((1, 2)), dt=0)
        )
    for dt, A in ((True, [[0.5, 0.0], [0.0, 1.01]]), (0, [[-0.5, 0.0], [0.0, 0.01]])):
        with pytest.raises(hsv.UnstableSystemError, match="must be below"):
            hsv.controllability_gramian(hsv.StateSpace(A, np.ones((2, 1)), np.ones((1, 2)), dt=dt))


def test_a_horizon_that_makes_no_sense_is_refused(rng):
    sys = random_system(rng)
    with pytest.raises(hsv.DtypeError, match="horizon must be an int"):
        hsv.controllability_gramian(sys, 2.0)
    with pytest.raises(hsv.HsvError, match="at least 1 step"):
        hsv.controllability_gramian(sys, 0)
    continuous = random_system(rng, dt=0)
    for horizon in (0, -1.0, np.inf):
        with pytest.raises(hsv.HsvError, match="positive, finite number of seconds"):
            hsv.controllability_gramian(continuous, horizon)
    with pytest.raises(hsv.DtypeError, match="number of seconds"):
        hsv.controllability_gramian(continuous, "1 s")


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("seconds", [1e-3, 0.7, 30])
def test_a_finite_integral_by_quadrature(make, complex_, seconds, rng):
    """Gauss-Legendre on 40 pieces, a method that shares nothing with the one under test."""
    sys = make(rng, batch=(2,), n=4, complex_=complex_, dt=0)
    dense = sys.to_dense()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, seconds, 41)
    P = np.zeros_like(dense.A)
    Q = np.zeros_like(dense.A)
    for low, high in itertools.pairwise(edges):
        for x, weight in zip(nodes, weights, strict=True):
            E = scipy.linalg.expm(dense.A * (low + (x + 1) / 2 * (high - low)))
            EB, CE = E @ dense.B, dense.C @ E
            P = P + weight * (high - low) / 2 * EB @ EB.conj().swapaxes(-1, -2)
            Q = Q + weight * (high - low) / 2 * CE.conj().swapaxes(-1, -2) @ CE
    np.testing.assert_allclose(hsv.controllability_gramian(sys, seconds), P, rtol=1e-9, atol=1e-11 * np.abs(P).max())
    np.testing.assert_allclose(hsv.observability_gramian(sys, seconds), Q, rtol=1e-9, atol=1e-11 * np.abs(Q).max())


def test_a_finite_integral_takes_integrators_and_unstable_systems():
    integrator = hsv.DiagonalStateSpace([0.0, 1.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    expected = [[2.0, np.expm1(2)], [np.expm1(2), np.expm1(4) / 2]]
    np.testing.assert_allclose(hsv.controllability_gramian(integrator, 2), expected, rtol=1e-14)
    np.testing.assert_allclose(hsv.controllability_gramian(integrator.to_dense(), 2), expected, rtol=1e-13)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_cross_gramian_solves_its_equation(make, complex_, dt, rng):
    sys = make(rng, batch=(3,), n=5, m=2, p=2, complex_=complex_, dt=dt)
    X, dense = hsv.cross_gramian(sys), sys.to_dense()
    A, BC = dense.A, dense.B @ dense.C
    residual = A @ X @ A - X + BC if dt else A @ X + X @ A + BC
    assert np.abs(residual).max() < 1e-11 * np.abs(X).max()
    assert np.iscomplexobj(X) == complex_


def test_the_cross_gramian_of_one_input_and_output_has_the_hankel_values(rng):
    for sys in (random_system(rng, n=6, m=1, p=1, dt=True), random_diagonal(rng, n=6, m=1, p=1, dt=0)):
        X = hsv.cross_gramian(sys)
        P, Q = hsv.controllability_gramian(sys), hsv.observability_gramian(sys)
        if not sys.is_complex:
            np.testing.assert_allclose(X @ X, P @ Q, atol=1e-10 * np.abs(X @ X).max())
    sys = random_system(rng, n=6, m=1, p=1, complex_=False, dt=0)
    found = np.sort(np.abs(np.linalg.eigvals(hsv.cross_gramian(sys))))[::-1]
    np.testing.assert_allclose(found, hsv.hankel_singular_values(sys), atol=1e-9 * found[0])


def test_a_cross_gramian_needs_a_square_stable_system(rng):
    with pytest.raises(hsv.ShapeError, match="as many inputs as outputs, got 2 and 3"):
        hsv.cross_gramian(random_system(rng, m=2, p=3))
    for sys in (
        hsv.DiagonalStateSpace([1.0], [[1.0]], [[1.0]], dt=True),
        hsv.StateSpace([[1.5]], [[1.0]], [[1.0]], dt=True),
    ):
        with pytest.raises(hsv.UnstableSystemError):
            hsv.cross_gramian(sys)
