import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import LQGBTReductor

import hsv
from tests.hsv.test_riccati_balancing import adjoint, draws, frequencies, unstable
from tests.hsv.test_systems import random_system
from tests.tolerances import tolerance


def chordal_distance(first, second):
    """Of two responses ``(k, p, m)`` at each frequency: the sine of the largest angle between their graphs, without any factorisation."""
    left = np.linalg.cholesky(np.eye(second.shape[-2]) + second @ adjoint(second))
    right = np.linalg.cholesky(np.eye(first.shape[-1]) + adjoint(first) @ first)
    scaled = np.linalg.solve(left, first - second)
    return np.linalg.norm(np.linalg.solve(right, adjoint(scaled)), 2, axis=(-2, -1))


@given(draws, st.data())
def test_the_bound_holds_for_the_distance_of_the_graphs(draw, data):
    """At every frequency the chordal distance is at most the gap, which is at most the error of normalised factors."""
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    red = hsv.lqg_balanced_truncation(sys, data.draw(st.integers(1, sys.n_states - 1)))
    w = frequencies(sys)
    distance = chordal_distance(sys.frequency_response(w), red.system.frequency_response(w)).max()
    assert distance <= float(red.factor_error_bound) * (1 + 1e-9) + tolerance(float, factor=1e5)


@given(draws, st.data())
def test_normalised_factors_reduce_to_the_same_system(draw, data):
    """Meyer's theorem in continuous time, and in discrete time, where the reduced factors are no longer normalised."""
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    order = data.draw(st.integers(1, sys.n_states - 1))
    red, other = hsv.lqg_balanced_truncation(sys, order), hsv.coprime_factor_reduction(sys, order)
    mu = red.characteristic_values
    np.testing.assert_allclose(mu / np.hypot(1, mu), other.characteristic_values, atol=1e-9)
    np.testing.assert_allclose(red.factor_error_bound, other.factor_error_bound, atol=1e-8)
    gap = mu[order - 1] - mu[order]
    w = frequencies(sys, 31)
    ours, theirs = (x.system.frequency_response(w) for x in (red, other))
    # graphs, for a reduced pole may lie on a frequency
    assert chordal_distance(ours, theirs).max() <= 1e-9 * max(1, mu[0] / gap)


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
def test_values_are_those_of_the_product_of_scipys_solutions(dt, complex_, rng):
    sys = unstable(random_system, rng, n=5, complex_=complex_, dt=dt)
    solve = scipy.linalg.solve_discrete_are if dt else scipy.linalg.solve_continuous_are
    A, B, C, D = sys.A, sys.B, sys.C, sys.D
    X = solve(A, B, adjoint(C) @ C, np.eye(2) + adjoint(D) @ D, s=adjoint(C) @ D)
    Y = solve(adjoint(A), adjoint(C), B @ adjoint(B), np.eye(3) + D @ adjoint(D), s=B @ adjoint(D))
    expected = np.sort(np.sqrt(np.linalg.eigvals(X @ Y).real))[::-1]
    np.testing.assert_allclose(hsv.lqg_balanced_truncation(sys, 1).characteristic_values, expected, rtol=1e-8)


def test_values_survive_the_bilinear_map(rng):
    """Both equations have the same solutions in both times."""
    sys = unstable(random_system, rng, n=6, dt=0)
    sampled = hsv.discretize(sys, 0.3, "bilinear")
    values = [hsv.lqg_balanced_truncation(s, 2).characteristic_values for s in (sys, sampled)]
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_pymor_agrees_in_continuous_time(rng):
    sys = unstable(random_system, rng, n=8, m=2, p=2, complex_=False, dt=0)
    sys = hsv.StateSpace(sys.A, sys.B, sys.C, dt=0)  # pyMOR's equations leave D out
    model = LTIModel.from_matrices(sys.A, sys.B, sys.C)
    reductor = LQGBTReductor(model)
    red = hsv.lqg_balanced_truncation(sys, 4)
    np.testing.assert_allclose(red.characteristic_values, reductor._hankel_svd()[1], rtol=1e-6)
    np.testing.assert_allclose(red.factor_error_bound, reductor.error_bounds()[3], rtol=1e-6)
    theirs = hsv.from_pymor(reductor.reduce(4, projection="sr"))
    w = frequencies(sys, 21)
    response = theirs.frequency_response(w)
    np.testing.assert_allclose(red.system.frequency_response(w), response, atol=1e-6 * np.abs(response).max())


def test_a_compensator_with_a_margin_above_the_bound_stabilises_the_original(rng):
    """What LQG balancing is for: the optimal compensator of the reduced system, whose margin in the gap is known."""
    A = np.diag(np.concatenate([[1.0, 0.3], -np.geomspace(1, 50, 10)])) + 0.1 * rng.normal(size=(12, 12))
    sys = hsv.StateSpace(A, rng.normal(size=(12, 1)), rng.normal(size=(1, 12)), dt=0)
    assert np.linalg.eigvals(A).real.max() > 0
    w = np.concatenate([-np.geomspace(1e-4, 1e4, 2000), np.geomspace(1e-4, 1e4, 2000)])
    promised = []
    for order in range(2, 12):
        red = hsv.lqg_balanced_truncation(sys, order)
        a, b, c = red.system.A, red.system.B, red.system.C
        F = -b.T @ hsv.solve_continuous_riccati(a, b, c.T @ c, np.eye(1))
        H = -hsv.solve_continuous_riccati(a.T, c.T, b @ b.T, np.eye(1)) @ c.T
        K = hsv.StateSpace(a + b @ F + H @ c, -H, F, dt=0).frequency_response(w)
        G = red.system.frequency_response(w)
        closed = (
            np.concatenate([np.ones_like(K), K], axis=-2) @ np.concatenate([np.ones_like(G), G], axis=-1) / (1 - G * K)
        )
        margin = 1 / np.linalg.norm(closed, 2, axis=(-2, -1)).max()
        if margin > float(red.factor_error_bound):
            promised.append(order)
            loop = np.block([[A, sys.B @ F], [-H @ sys.C, a + b @ F + H @ c]])
            assert np.linalg.eigvals(loop).real.max() < 0
    assert 3 <= len(promised) < 10


@pytest.mark.parametrize("dt", [0, True])
def test_an_unstable_pole_that_nothing_moves_or_shows(dt):
    A = np.diag([2.0, 0.5]) if dt else np.diag([2.0, -1.0])
    one = np.ones((2, 1))
    with pytest.raises(hsv.IllConditionedError, match=r"the pole 2\+0j is not stable and is moved by no input"):
        hsv.lqg_balanced_truncation(hsv.StateSpace(A, [[0.0], [1.0]], one.T, dt=dt), 1)
    with pytest.raises(hsv.IllConditionedError, match=r"the pole 2\+0j is not stable and is seen by no output"):
        hsv.lqg_balanced_truncation(hsv.StateSpace(A, one, [[0.0, 1.0]], dt=dt), 1)
    batch = hsv.StateSpace(np.stack([A, A]), np.array([[[1.0], [1.0]], [[0.0], [1.0]]]), one.T, dt=dt)
    with pytest.raises(hsv.IllConditionedError, match=r"system \(1,\)"):
        hsv.lqg_balanced_truncation(batch, 1)


def test_poles_on_the_boundary_are_allowed():
    """An integrator is stabilisable: the double integrator's solution is X = [[sqrt(2), 1], [1, sqrt(2)]], and Y is its mirror image."""
    sys = hsv.StateSpace([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0]], dt=0)
    red = hsv.lqg_balanced_truncation(sys, 1)
    X = np.array([[np.sqrt(2), 1], [1, np.sqrt(2)]])
    expected = np.sort(np.sqrt(np.linalg.eigvals(X @ X[::-1, ::-1]).real))[::-1]
    np.testing.assert_allclose(red.characteristic_values, expected, rtol=1e-12)
