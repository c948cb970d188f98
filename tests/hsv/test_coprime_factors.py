from functools import partial

import ctrlsys
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hsv
from tests.hsv import reference_systems
from tests.hsv.test_lqg_balancing import chordal_distance
from tests.hsv.test_riccati_balancing import adjoint, draws, frequencies, unstable
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

FACTORIZATIONS = [
    hsv.normalized_coprime_factors,
    hsv.inner_coprime_factors,
    partial(hsv.stable_coprime_factors, decay=0.1),
]


def norm_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@given(draws, st.sampled_from(FACTORIZATIONS), st.booleans())
def test_the_quotient_is_the_system_and_the_factors_are_stable(draw, factorization, left):
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    factors = factorization(sys, left=left)
    w = frequencies(sys, 21)
    N, M = (x.frequency_response(w) for x in (factors.numerator, factors.denominator))
    response = sys.frequency_response(w)
    np.testing.assert_allclose(M @ response if left else response @ M, N, atol=1e-8 * np.abs(N).max())
    assert norm_error(factors.quotient().frequency_response(w), response) < 1e-7
    poles = np.asarray(factors.system.poles())
    assert np.all(np.abs(poles) < 1 if sys.is_discrete else poles.real < 0)


@given(draws, st.booleans())
def test_normalised_factors_are_orthonormal_at_every_frequency(draw, left):
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    response = hsv.normalized_coprime_factors(sys, left=left).system.frequency_response(frequencies(sys, 41))
    gram = response @ adjoint(response) if left else adjoint(response) @ response
    np.testing.assert_allclose(
        gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), atol=tolerance(float, factor=1e5)
    )


@given(draws, st.booleans())
def test_inner_denominators_are_unitary_and_mirror_the_unstable_poles(draw, left):
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    factors = hsv.inner_coprime_factors(sys, left=left)
    M = factors.denominator.frequency_response(frequencies(sys, 41))
    np.testing.assert_allclose(
        M @ adjoint(M), np.broadcast_to(np.eye(M.shape[-1]), M.shape), atol=tolerance(float, factor=1e6)
    )
    poles = np.asarray(sys.poles())
    if sys.is_discrete:
        expected = np.where(np.abs(poles) < 1, poles, 1 / poles.conj())
    else:
        expected = np.where(poles.real < 0, poles, -poles.conj())
    found = np.asarray(factors.system.poles())
    for pole in expected:
        assert np.abs(found - pole).min() < 1e-6


@pytest.mark.parametrize("dt", [0, True, 0.2])
@pytest.mark.parametrize("left", [True, False])
def test_a_prescribed_decay(left, dt, rng):
    sys = unstable(random_system, rng, n=5, dt=dt)
    for decay in (0.05, 0.5):
        poles = np.asarray(hsv.stable_coprime_factors(sys, decay, left=left).system.poles())
        if dt:
            assert np.abs(poles).max() < np.exp(-decay * float(dt))
        else:
            assert poles.real.max() < -decay


@given(
    draws,
    st.sampled_from(FACTORIZATIONS),
    st.booleans(),
    st.sampled_from([hsv.balanced_truncation, hsv.singular_perturbation]),
    st.data(),
)
def test_the_bound_holds_for_the_factors(draw, factorization, left, method, data):
    sys = unstable(random_system, np.random.default_rng(draw.pop("seed")), **draw)
    order = data.draw(st.integers(1, sys.n_states - 1))
    factors = factorization(sys, left=left)
    red = hsv.coprime_factor_reduction(sys, order, factorization=lambda _: factors, method=method)
    reduced = method(factors.system, order)
    error = float(hsv.hinf_error(factors.system, reduced.system))
    assert error <= float(red.factor_error_bound) * (1 + 1e-9)
    w = frequencies(sys, 41)
    quotient = hsv.CoprimeFactors(reduced.system, left).quotient()
    np.testing.assert_allclose(
        chordal_distance(red.system.frequency_response(w), quotient.frequency_response(w)), 0, atol=1e-7
    )
    if factorization is hsv.normalized_coprime_factors:
        distance = chordal_distance(sys.frequency_response(w), red.system.frequency_response(w)).max()
        assert distance <= float(red.factor_error_bound) * (1 + 1e-9) + tolerance(float, factor=1e5)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_right_factors_are_left_ones_of_the_dual_system(factorization, rng):
    sys = unstable(random_system, rng, n=4, dt=True)
    turned = hsv.StateSpace(adjoint(sys.A), adjoint(sys.C), adjoint(sys.B), adjoint(sys.D), dt=True)
    right, left = factorization(sys, left=False), factorization(turned, left=True)
    w = frequencies(sys, 11)
    for name in ("numerator", "denominator"):
        x, y = (getattr(f, name).frequency_response(z) for f, z in ((right, w), (left, -w)))
        np.testing.assert_allclose(x, adjoint(y), atol=1e-9 * np.abs(x).max())


def test_a_stable_system_is_its_own_numerator(rng):
    sys = random_system(rng, n=4, dt=0)
    factors = hsv.inner_coprime_factors(sys)
    np.testing.assert_array_equal(factors.denominator.B, 0)
    red, plain = (
        hsv.coprime_factor_reduction(sys, 2, factorization=hsv.inner_coprime_factors),
        hsv.balanced_truncation(sys, 2),
    )
    np.testing.assert_allclose(red.characteristic_values, plain.hankel_singular_values, rtol=1e-10)
    w = frequencies(sys, 11)
    np.testing.assert_allclose(red.system.frequency_response(w), plain.system.frequency_response(w), atol=1e-9)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("left", [True, False])
def test_slicot_agrees(left, dt, rng):
    """AB09FD with inner denominators and two outputs: of three outputs, and of right factors, ctrlsys 1.1 has denominators that are not unitary. So right factors are its left ones of the transposed system."""
    n, m, p, order = (7, 3, 2, 4) if left else (7, 2, 3, 4)
    sys = unstable(random_system, rng, n=n, m=m, p=p, complex_=False, dt=dt)
    sys = hsv.StateSpace(sys.A, sys.B, sys.C, dt=dt)
    factorization = partial(hsv.inner_coprime_factors, left=left)
    red = hsv.coprime_factor_reduction(sys, order, factorization=factorization)
    A, B, C = (sys.A, sys.B, sys.C) if left else (sys.A.T, sys.C.T, sys.B.T)
    sizes = (n, m, p) if left else (n, p, m)
    matrices = (np.asfortranarray(x.copy()) for x in (A, B, C))
    time = "D" if dt else "C"
    Ar, Br, Cr, nr, nq, values, warning, info = ctrlsys.ab09fd(
        time, "L", "I", "B", "N", "F", *sizes, order, 0.0, *matrices, 0.0, 0.0
    )
    assert (nr, nq, warning, info) == (order, n, 0, 0)
    np.testing.assert_allclose(red.characteristic_values, values[:n], atol=1e-9 * values[0])
    w = frequencies(sys, 21)
    theirs = hsv.StateSpace(Ar[:nr, :nr], Br[:nr], Cr[:, :nr], dt=dt).frequency_response(w)
    theirs = theirs if left else theirs.swapaxes(-1, -2)
    assert norm_error(red.system.frequency_response(w), theirs) < 1e-8


def test_slicots_singular_perturbation_agrees_in_continuous_time(rng):
    """AB09GD, with feedthrough. In discrete time it does not keep the gain at z = 1 as ctrlsys 1.1 calls it; ours does."""
    n, m, p, order = 6, 3, 2, 3
    sys = unstable(random_system, rng, n=n, m=m, p=p, complex_=False, dt=0)
    red = hsv.coprime_factor_reduction(
        sys, order, factorization=hsv.inner_coprime_factors, method=hsv.singular_perturbation
    )
    matrices = (np.asfortranarray(x.copy()) for x in (sys.A, sys.B, sys.C, sys.D))
    Ar, Br, Cr, Dr, nr, *_, info = ctrlsys.ab09gd(
        "C", "L", "I", "B", "N", "F", n, m, p, order, -0.1, *matrices, 0.0, 0.0, 0.0
    )
    assert info == 0
    w = frequencies(sys, 21)
    theirs = hsv.StateSpace(Ar[:nr, :nr], Br[:nr], Cr[:, :nr], Dr, dt=0).frequency_response(w)
    assert norm_error(red.system.frequency_response(w), theirs) < 1e-8


@pytest.mark.parametrize("dt", [0, True])
def test_singular_perturbation_keeps_the_steady_state(dt, rng):
    sys = unstable(random_system, rng, n=5, dt=dt)
    for factorization in FACTORIZATIONS:
        red = hsv.coprime_factor_reduction(sys, 3, factorization=factorization, method=hsv.singular_perturbation)
        assert norm_error(red.system.frequency_response([0.0]), sys.frequency_response([0.0])) < 1e-9
        assert red.left is red.right is None


def test_hankel_norm_approximation_of_the_factors(rng):
    """Any method that computes Hankel values serves: here one whose error is known exactly."""
    sys = unstable(random_system, rng, n=5, m=1, p=1, dt=0)
    factors = hsv.normalized_coprime_factors(sys)
    red = hsv.coprime_factor_reduction(sys, 3, method=hsv.hankel_norm_approximation)
    sigma = hsv.hankel_singular_values(factors.system)
    np.testing.assert_allclose(red.characteristic_values, sigma, rtol=1e-10)
    w = frequencies(sys)
    distance = chordal_distance(sys.frequency_response(w), red.system.frequency_response(w)).max()
    assert distance <= float(red.factor_error_bound)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
def test_a_badly_scaled_system_with_many_unstable_poles(factorization):
    """A beam with a norm of 1e10 and poles moved across the axis: without a cost, the equation's states have no units but those of the poles."""
    beam = reference_systems.clamped_beam(15).system()
    sys = hsv.StateSpace(beam.A + np.eye(beam.n_states), beam.B, beam.C, dt=0)
    assert np.sum(np.asarray(sys.poles()).real > 0) > 5
    factors = factorization(sys)
    assert np.asarray(factors.system.poles()).real.max() < 0
    w = np.array([0.1, 1.0, 3.0, 10.0, 30.0])
    N, M = (x.frequency_response(w) for x in (factors.numerator, factors.denominator))
    np.testing.assert_allclose(M @ sys.frequency_response(w), N, atol=1e-6 * np.abs(N).max())


def test_diagonal_systems_and_batches(rng):
    sys = unstable(random_diagonal, rng, n=4, batch=(3,), dt=0)
    factors = hsv.normalized_coprime_factors(sys)
    w = frequencies(sys, 11)
    assert factors.system.batch_shape == (3,)
    assert norm_error(factors.quotient().frequency_response(w), sys.frequency_response(w)) < 1e-9


@pytest.mark.parametrize("dt", [0, True])
def test_refusals(dt, rng):
    boundary = hsv.StateSpace([[1.0 if dt else 0.0]], [[1.0]], [[1.0]], dt=dt)
    hsv.normalized_coprime_factors(boundary)  # an integrator has normalised factors
    with pytest.raises(hsv.IllConditionedError, match="boundary"):
        hsv.inner_coprime_factors(boundary)
    hidden = hsv.StateSpace(np.diag([2.0, -0.5]), np.ones((2, 1)), [[0.0, 1.0]], dt=dt)
    for factorization in FACTORIZATIONS:
        with pytest.raises(hsv.IllConditionedError, match="seen by no output"):
            factorization(hidden)
    hsv.inner_coprime_factors(hidden, left=False)  # a feedback sees all states
    with pytest.raises(hsv.IllConditionedError, match="moved by no input"):
        hsv.inner_coprime_factors(hsv.StateSpace(hidden.A, [[0.0], [1.0]], hidden.C, dt=dt), left=False)
    slow = hsv.StateSpace(np.diag([0.9, 0.1] if dt else [-0.05, -3.0]), np.ones((2, 1)), [[0.0, 1.0]], dt=dt)
    with pytest.raises(hsv.IllConditionedError, match=r"decays no faster than 0\.2 and is seen by no output"):
        hsv.stable_coprime_factors(slow, 0.2)
    for decay, error in [(0.0, hsv.HsvError), (-1.0, hsv.HsvError), (True, hsv.DtypeError), ("1", hsv.DtypeError)]:
        with pytest.raises(error, match="decay"):
            hsv.stable_coprime_factors(boundary, decay)
    with pytest.raises(hsv.HsvError, match="more inputs than outputs"):
        hsv.CoprimeFactors(boundary, True)
    singular = hsv.StateSpace([[0.5 if dt else -1.0]], [[1.0, 1.0]], [[1.0]], [[1.0, 0.0]], dt=dt)
    with pytest.raises(hsv.IllConditionedError, match="not invertible at infinite frequency"):
        hsv.CoprimeFactors(singular, True).quotient()
    with pytest.raises(hsv.HsvError, match="Hankel singular values"):
        hsv.coprime_factor_reduction(unstable(random_system, rng, n=4, dt=dt), 2, method=hsv.modal_truncation)


def test_flags_and_decays_of_another_kind_are_refused_by_name():
    sys = hsv.StateSpace([[2.0]], [[1.0]], [[1.0]], dt=True)
    for call in (
        hsv.inner_coprime_factors,
        hsv.normalized_coprime_factors,
        lambda s, left: hsv.stable_coprime_factors(s, 0.1, left=left),
    ):
        with pytest.raises(hsv.DtypeError, match="left must be True or False, got 'no'"):
            call(sys, left="no")
    with pytest.raises(hsv.HsvError, match="decay must be at most 32 with dt=True, got 1000"):
        hsv.stable_coprime_factors(sys, 1000.0)
    timed = hsv.StateSpace([[2.0]], [[1.0]], [[1.0]], dt=0.5)
    with pytest.raises(hsv.HsvError, match=r"decay must be at most 64 / s with steps of 0.5 s, got 65"):
        hsv.stable_coprime_factors(timed, 65)
