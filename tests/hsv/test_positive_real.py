import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import PRBTReductor

import hsv
from tests.hsv.test_lqg_balancing import chordal_distance
from tests.hsv.test_riccati_balancing import adjoint, frequencies, passive, with_feedthrough
from tests.hsv.test_systems import random_diagonal, random_system

draws = st.fixed_dictionaries(
    {
        "n": st.integers(2, 7),
        "m": st.integers(1, 3),
        "complex_": st.booleans(),
        "dt": st.sampled_from([0, True, 0.2]),
        "seed": st.integers(0, 10**6),
    }
)


def scattering(response):
    eye = np.eye(response.shape[-1])
    return (response - eye) @ np.linalg.inv(response + eye)


def least_eigenvalue(sys, w):
    """Of the Popov function G + G^H."""
    response = sys.frequency_response(w)
    return np.linalg.eigvalsh(response + adjoint(response))[..., 0].min()


@given(draws, st.sampled_from([random_system, random_diagonal]), st.data())
def test_passivity_is_kept_and_the_bounds_hold(draw, make, data):
    sys = passive(make, np.random.default_rng(draw.pop("seed")), **draw)
    red = hsv.positive_real_truncation(sys, data.draw(st.integers(1, sys.n_states - 1)))
    w = frequencies(sys)
    assert least_eigenvalue(red.system, w) > 0
    assert red.characteristic_values[0] < 1
    full, small = sys.frequency_response(w), red.system.frequency_response(w)
    error = np.linalg.norm(scattering(full) - scattering(small), 2, axis=(-2, -1)).max()
    bound = float(red.scattering_error_bound) * (1 + 1e-9) + 1e-12
    assert error <= bound
    assert chordal_distance(full, small).max() <= bound


def passivity_pencil(sys):
    """Zeros of G + G^~ : eigenvalues of the pencil of states, costates and inputs, from the realisation alone."""
    A, B, C, D = sys.A, sys.B, sys.C, sys.D
    n, m = B.shape
    zero, eye = np.zeros((n, n)), np.eye(n)
    if not sys.is_discrete:
        M = np.block([[A, zero, B], [zero, -adjoint(A), -adjoint(C)], [C, adjoint(B), D + adjoint(D)]])
        N = scipy.linalg.block_diag(eye, eye, np.zeros((m, m)))
    else:
        M = np.block([[A, zero, B], [zero, -eye, adjoint(C)], [C, np.zeros((m, n)), D + adjoint(D)]])
        N = np.block(
            [
                [eye, zero, np.zeros((n, m))],
                [zero, -adjoint(A), np.zeros((n, m))],
                [np.zeros((m, n)), -adjoint(B), np.zeros((m, m))],
            ]
        )
    alpha, beta = scipy.linalg.eigvals(M, N, homogeneous_eigvals=True)
    return alpha, beta


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
def test_the_result_is_passive_by_the_eigenvalues_of_its_pencil(dt, complex_, rng):
    """No zero of G + G^H on the stability boundary, and positive at one frequency: positive at all of them. With a smaller feedthrough there are some."""
    for _ in range(5):
        sys = passive(random_system, rng, n=6, complex_=complex_, dt=dt)
        excess = least_eigenvalue(sys, frequencies(sys))
        active = with_feedthrough(sys, sys.D - 0.5 * (excess + 1e-2) * np.eye(2))
        for system, is_passive in [(hsv.positive_real_truncation(sys, 3).system, True), (sys, True), (active, False)]:
            alpha, beta = passivity_pencil(system)
            distance = np.abs(np.abs(alpha) - np.abs(beta)) if dt else np.abs((alpha * beta.conj()).real)
            on_boundary = distance <= 1e-9 * (np.abs(alpha) ** 2 + np.abs(beta) ** 2)
            finite = np.abs(beta) > 1e-9 * np.abs(alpha)
            assert np.any(on_boundary & finite) == (not is_passive)
            assert (least_eigenvalue(system, frequencies(system)) > 0) == is_passive


@pytest.mark.parametrize("dt", [0, True])
def test_values_are_those_of_scipys_solutions(dt, rng):
    sys = passive(random_system, rng, n=5, dt=dt)
    solve = scipy.linalg.solve_discrete_are if dt else scipy.linalg.solve_continuous_are
    E, zero = sys.D + adjoint(sys.D), np.zeros((5, 5))
    Q = solve(sys.A, sys.B, zero, -E, s=-adjoint(sys.C))
    P = solve(adjoint(sys.A), adjoint(sys.C), zero, -E, s=-sys.B)
    expected = np.sort(np.sqrt(np.linalg.eigvals(P @ Q).real))[::-1]
    # SciPy's P Q has half the digits of the smallest value
    np.testing.assert_allclose(hsv.positive_real_truncation(sys, 2).characteristic_values, expected, rtol=1e-6)


@pytest.mark.parametrize("dt", [0, True])
def test_it_is_bounded_real_balancing_of_the_scattering_function(dt, rng):
    sys = passive(random_system, rng, n=6, dt=dt)
    inverse = np.linalg.inv(sys.D + np.eye(2))
    port = hsv.StateSpace(
        sys.A - sys.B @ inverse @ sys.C,
        np.sqrt(2) * sys.B @ inverse,
        np.sqrt(2) * inverse @ sys.C,
        (sys.D - np.eye(2)) @ inverse,
        dt=dt,
    )
    red, waves = hsv.positive_real_truncation(sys, 3), hsv.bounded_real_truncation(port, 3)
    np.testing.assert_allclose(red.characteristic_values, waves.characteristic_values, rtol=1e-8)
    np.testing.assert_allclose(red.scattering_error_bound, waves.error_bound, rtol=1e-8)
    w = frequencies(sys, 21)
    np.testing.assert_allclose(
        scattering(red.system.frequency_response(w)), waves.system.frequency_response(w), atol=1e-8
    )


def test_values_survive_the_bilinear_map(rng):
    sys = passive(random_system, rng, n=6, dt=0)
    sampled = hsv.discretize(sys, 0.3, "bilinear")
    values = [hsv.positive_real_truncation(s, 2).characteristic_values for s in (sys, sampled)]
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_pymor_agrees_in_continuous_time(rng):
    sys = passive(random_system, rng, n=8, complex_=False, dt=0)
    reductor = PRBTReductor(LTIModel.from_matrices(sys.A, sys.B, sys.C, sys.D))
    red = hsv.positive_real_truncation(sys, 4)
    np.testing.assert_allclose(red.characteristic_values, reductor._hankel_svd()[1], rtol=1e-6)
    theirs = hsv.from_pymor(reductor.reduce(4, projection="sr"))
    w = frequencies(sys, 21)
    response = theirs.frequency_response(w)
    np.testing.assert_allclose(red.system.frequency_response(w), response, atol=1e-6 * np.abs(response).max())


def ladder(sections, resistance):
    """Voltage to current of a ladder of inductors with resistors in series and leaky capacitors across: passive by construction."""
    n = 2 * sections
    A = np.zeros((n, n))
    for k in range(sections):
        current, voltage = 2 * k, 2 * k + 1
        A[current, current], A[current, voltage] = -resistance, -1.0
        A[voltage, current], A[voltage, voltage] = 1.0, -0.01
        if k + 1 < sections:
            A[voltage, current + 2], A[current + 2, voltage] = -1.0, 1.0
    B = np.zeros((n, 1))
    B[0] = 1.0
    return hsv.StateSpace(A, B, B.T, [[1e-3]], dt=0)


def test_an_electrical_ladder_stays_passive():
    sys = ladder(10, 0.05)
    w = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 2000)])
    for order in range(1, 16):
        assert least_eigenvalue(hsv.positive_real_truncation(sys, order).system, w) > 0


def test_balanced_truncation_loses_passivity_that_this_method_keeps():
    lost = 0
    for seed in range(12):
        sys = passive(random_system, np.random.default_rng(seed), n=6, dt=0)
        for order in (2, 3, 4):
            kept, other = (
                method(sys, order).system for method in (hsv.positive_real_truncation, hsv.balanced_truncation)
            )
            assert least_eigenvalue(kept, frequencies(sys)) > 0
            lost += least_eigenvalue(other, frequencies(sys)) <= 0
    assert lost > 0


@given(draws, st.sampled_from([0.5, 0.01]))
def test_what_is_not_passive_is_refused(draw, share):
    sys = passive(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    m = sys.n_inputs
    least = least_eigenvalue(sys, frequencies(sys))
    active = with_feedthrough(sys, sys.D - 0.5 * (1 + share) * least * np.eye(m))
    with pytest.raises(hsv.HsvError, match="positive"):
        hsv.positive_real_truncation(active, 1)


def test_refusals():
    sys = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    with pytest.raises(
        hsv.HsvError,
        match=r"D \+ D\^H must be positive definite, its smallest eigenvalue is 0; if the system is passive",
    ):
        hsv.positive_real_truncation(sys, 1)
    with pytest.raises(hsv.ShapeError, match="as many outputs as inputs"):
        hsv.positive_real_truncation(hsv.StateSpace([[-1.0]], [[1.0, 1.0]], [[1.0]], dt=0), 1)
    negative = hsv.StateSpace([[[-1.0]], [[-1.0]]], [[1.0]], [[[1.0]], [[-3.0]]], [[1.0]], dt=0)
    with pytest.raises(
        hsv.HsvError, match=r"smallest eigenvalue of G \+ G\^H of system \(1,\) found on a grid is -4, at w = 0"
    ):
        hsv.positive_real_truncation(negative, 1)


def test_a_violation_between_the_frequencies_that_are_looked_at():
    """By 1e-8 at the one frequency where G + G^H is smallest: the equations have no solution, and the message does not claim to have seen why."""
    A = [[-0.5, 2.0, 0.0], [-2.0, -0.5, 0.0], [0.0, 0.0, -1.0]]
    sys = hsv.StateSpace(A, [[1.0], [0.0], [1.0]], [[-1.0, 0.0, -0.6]], [[1.0]], dt=0)
    least = scipy.optimize.minimize_scalar(
        lambda w: least_eigenvalue(sys, np.array([w])), bounds=(1.0, 3.0), method="bounded", options={"xatol": 1e-12}
    )
    active = with_feedthrough(sys, sys.D - 0.5 * (least.fun + 1e-8))
    with pytest.raises(hsv.IllConditionedError, match="not passive at a frequency between, or only just"):
        hsv.positive_real_truncation(active, 2)
