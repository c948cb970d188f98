import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import BRBTReductor

import hsv
from tests.hsv.test_riccati_balancing import adjoint, draws, frequencies, of_norm_one
from tests.hsv.test_systems import random_diagonal, random_system


@given(draws, st.sampled_from([1.001, 1.1, 2.0, 50.0]), st.sampled_from([random_system, random_diagonal]), st.data())
def test_the_gain_stays_below_gamma_and_the_bound_holds(draw, room, make, data):
    sys = make(np.random.default_rng(draw.pop("seed")), **draw)
    gamma = room * float(hsv.hinf_norm(sys))
    red = hsv.bounded_real_truncation(sys, data.draw(st.integers(1, sys.n_states - 1)), gamma=gamma)
    assert float(hsv.hinf_norm(red.system)) <= gamma * (1 + 1e-9)
    assert float(hsv.hinf_error(sys, red.system)) <= float(red.error_bound)
    assert np.all(red.characteristic_values < gamma)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
def test_the_result_is_bounded_real_by_its_hamiltonian(dt, complex_, rng):
    """Its matrix at the level gamma has no eigenvalue on the axis: no gain reaches gamma, and the gain at one frequency is below it."""
    for _ in range(5):
        sys = of_norm_one(random_system, rng, n=6, complex_=complex_, dt=dt)
        small = hsv.bounded_real_truncation(sys, 3).system
        if dt:
            # (z - 1) / (z + 1) maps the circle to the axis, and gains to gains
            A = np.linalg.inv(small.A + np.eye(3)) @ (small.A - np.eye(3))
            inverse = np.linalg.inv(small.A + np.eye(3))
            small = hsv.StateSpace(
                A,
                np.sqrt(2) * inverse @ small.B,
                np.sqrt(2) * small.C @ inverse,
                small.D - small.C @ inverse @ small.B,
                dt=0,
            )
        A, B, C, D = small.A, small.B, small.C, small.D
        R = np.linalg.inv(np.eye(D.shape[1]) - adjoint(D) @ D)
        closed = A + B @ R @ adjoint(D) @ C
        hamiltonian = np.block(
            [[closed, B @ R @ adjoint(B)], [-adjoint(C) @ (np.eye(len(C)) + D @ R @ adjoint(D)) @ C, -adjoint(closed)]]
        )
        assert np.abs(np.linalg.eigvals(hamiltonian).real).min() > 1e-6
        assert np.linalg.norm(D, 2) < 1


@pytest.mark.parametrize("dt", [0, True])
def test_values_are_those_of_scipys_solutions(dt, rng):
    sys = of_norm_one(random_system, rng, n=5, dt=dt)
    solve = scipy.linalg.solve_discrete_are if dt else scipy.linalg.solve_continuous_are
    A, B, C, D = sys.A, sys.B, sys.C, sys.D
    Q = solve(A, B, adjoint(C) @ C, adjoint(D) @ D - 4 * np.eye(2), s=adjoint(C) @ D)
    P = solve(adjoint(A), adjoint(C), B @ adjoint(B), D @ adjoint(D) - 4 * np.eye(3), s=B @ adjoint(D))
    expected = np.sort(np.sqrt(np.linalg.eigvals(P @ Q).real))[::-1]
    red = hsv.bounded_real_truncation(sys, 2, gamma=2.0)
    # SciPy's P Q has half the digits of the smallest value
    np.testing.assert_allclose(red.characteristic_values, expected, rtol=1e-7)


def test_values_survive_the_bilinear_map_and_scale_with_the_gain(rng):
    sys = of_norm_one(random_system, rng, n=6, dt=0)
    values = hsv.bounded_real_truncation(sys, 2).characteristic_values
    sampled = hsv.bounded_real_truncation(hsv.discretize(sys, 0.3, "bilinear"), 2)
    np.testing.assert_allclose(sampled.characteristic_values, values, rtol=1e-9)
    louder = hsv.StateSpace(sys.A, sys.B, 7 * sys.C, 7 * sys.D, dt=0)
    np.testing.assert_allclose(
        hsv.bounded_real_truncation(louder, 2, gamma=7.0).characteristic_values, 7 * values, rtol=1e-9
    )


def test_a_large_gamma_gives_balanced_truncation(rng):
    sys = random_system(rng, n=6, dt=True)
    red, plain = hsv.bounded_real_truncation(sys, 3, gamma=1e6), hsv.balanced_truncation(sys, 3)
    np.testing.assert_allclose(red.characteristic_values, plain.hankel_singular_values, rtol=1e-8)
    w = frequencies(sys, 11)
    np.testing.assert_allclose(red.system.frequency_response(w), plain.system.frequency_response(w), atol=1e-7)


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_pymor_agrees_in_continuous_time(gamma, rng):
    sys = of_norm_one(random_system, rng, n=8, m=2, p=2, complex_=False, dt=0)
    sys = hsv.StateSpace(sys.A, sys.B, 0.4 * sys.C, dt=0)  # pyMOR's equations leave D out
    reductor = BRBTReductor(LTIModel.from_matrices(sys.A, sys.B, sys.C), gamma=gamma)
    red = hsv.bounded_real_truncation(sys, 4, gamma=gamma)
    np.testing.assert_allclose(red.characteristic_values, reductor._hankel_svd()[1], rtol=1e-6)
    np.testing.assert_allclose(red.error_bound, reductor.error_bounds()[3], rtol=1e-6)
    theirs = hsv.from_pymor(reductor.reduce(4, projection="sr"))
    w = frequencies(sys, 21)
    response = theirs.frequency_response(w)
    np.testing.assert_allclose(red.system.frequency_response(w), response, atol=1e-6 * np.abs(response).max())


@given(draws, st.sampled_from([0.5, 0.9, 0.999, 1 - 1e-6]))
def test_a_gain_above_gamma_is_refused_with_the_norm(draw, share):
    """Never a system that looks reduced: where the equations have no solution they are not solved, however small the excess."""
    sys = random_system(np.random.default_rng(draw.pop("seed")), **draw)
    norm = float(hsv.hinf_norm(sys))
    with pytest.raises(hsv.HsvError, match="must be below gamma") as caught:
        hsv.bounded_real_truncation(sys, 1, gamma=share * norm)
    assert f"found {norm:.6g}"[:10] in str(caught.value)


@pytest.mark.parametrize("dt", [0, True])
def test_next_to_the_norm_the_promise_holds_or_the_cause_is_said(dt, rng):
    solved, causes = 0, []
    for exponent in range(2, 15):
        sys = random_system(rng, n=4, dt=dt)
        gamma = float(hsv.hinf_norm(sys)) * (1 + 10.0**-exponent)
        try:
            red = hsv.bounded_real_truncation(sys, 2, gamma=gamma)
        except hsv.HsvError as error:
            causes.append((exponent, str(error)))
            continue
        solved += 1
        assert float(hsv.hinf_norm(red.system)) <= gamma * (1 + 1e-7)
        assert float(hsv.hinf_error(sys, red.system)) <= float(red.error_bound) * (1 + 1e-7)
    assert solved >= 7
    assert all(exponent > 8 and "gamma" in cause for exponent, cause in causes)


def test_refusals():
    sys = hsv.StateSpace([[[-1.0]], [[-1.0]]], [[1.0]], [[[0.5]], [[3.0]]], dt=0)
    with pytest.raises(
        hsv.HsvError, match=r"norm of system \(1,\) must be below gamma = 1, found 3; pass a larger gamma"
    ):
        hsv.bounded_real_truncation(sys, 1)
    feedthrough = hsv.StateSpace([[-1.0]], [[0.1]], [[0.1]], [[1.5]], dt=0)
    with pytest.raises(hsv.HsvError, match=r"must be below gamma = 1, found 1\.51"):
        hsv.bounded_real_truncation(feedthrough, 1)
    for gamma, error in [
        (0.0, hsv.HsvError),
        (-1.0, hsv.HsvError),
        (np.inf, hsv.HsvError),
        ("1", hsv.DtypeError),
        (True, hsv.DtypeError),
    ]:
        with pytest.raises(error, match="gamma must be"):
            hsv.bounded_real_truncation(sys, 1, gamma=gamma)


def test_a_gamma_whose_square_is_no_number_is_refused():
    sys = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    for gamma in (1e200, 1e-200):
        with pytest.raises(
            hsv.HsvError, match="gamma must be between 1e-150 and 1e\\+150, for the equations have its square"
        ):
            hsv.bounded_real_truncation(sys, 1, gamma=gamma)
    assert hsv.bounded_real_truncation(sys, 1, gamma=np.array(2.0)).system.n_states == 1
