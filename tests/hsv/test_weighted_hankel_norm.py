"""Beside SLICOT's AB09JD and AB09KD, and by the Hankel norm of the weighted error."""

import array_api_strict
import ctrlsys
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import to_host
from tests.hsv import slicot_examples as printed
from tests.hsv.test_array_libraries import convert
from tests.hsv.test_frequency_weighted import series
from tests.hsv.test_systems import random_diagonal, random_system

W = np.linspace(-3, 3, 8)


def minimum_phase(rng, size, dt, complex_, batch=()):
    """A gain of 3 and so little else that the zeros stay on the side of the poles."""
    x = random_system(rng, n=3, m=size, p=size, batch=batch, complex_=complex_, dt=dt)
    D, B = 3 * np.eye(size) + 0.1 * x.D / np.linalg.norm(x.D), x.B
    while True:
        zeros = np.linalg.eigvals(x.A - B @ np.linalg.solve(D, x.C))
        if (np.abs(zeros) < 0.97).all() if dt else (zeros.real < -0.03).all():
            return hsv.StateSpace(x.A, B, x.C, D, dt=dt)
        B = B / 2


def conjugate(sys):
    """``V(-conj s)^H`` or ``V(1 / conj z)^H``."""
    A, B, C, D = (x.conj().T for x in (sys.A, sys.B, sys.C, sys.D))
    if not sys.is_discrete:
        return hsv.StateSpace(-A, C, -B, D, dt=0)
    inverse = np.linalg.inv(A)
    return hsv.StateSpace(inverse, inverse @ C, -B @ inverse, D - B @ inverse @ C, dt=sys.dt)


@given(
    seed=st.integers(0, 10**6),
    dt=st.sampled_from([0, True, 0.5]),
    complex_=st.booleans(),
    sides=st.sampled_from(["L", "R", "LR"]),
    stable=st.booleans(),
    order=st.integers(1, 3),
)
def test_the_hankel_norm_of_the_weighted_error_is_the_first_discarded_value(seed, dt, complex_, sides, stable, order):
    rng = np.random.default_rng(seed)
    sys = random_system(rng, n=5, m=2, p=3, complex_=complex_, dt=dt)
    weights = {"output_weight": (3, "L"), "input_weight": (2, "R")}
    weights = {name: minimum_phase(rng, k, dt, complex_) for name, (k, side) in weights.items() if side in sides}
    mirrored = {name: conjugate(x) for name, x in weights.items()}
    red = hsv.frequency_weighted_hankel_norm_approximation(sys, order, **(weights if stable else mirrored))
    error = sys - red.system
    if "R" in sides:
        error = series(error, mirrored["input_weight"])
    if "L" in sides:
        error = series(mirrored["output_weight"], error)
    found, _ = hsv.split_unstable(error)
    values = red.hankel_singular_values
    np.testing.assert_allclose(hsv.hankel_norm(found), values[order], rtol=1e-6, atol=1e-9 * values[0])
    assert red.left is red.right is red.error_bound is None
    assert (red.system.dt, red.system.is_complex) == (dt, complex_)


def test_slicots_printed_example():
    """The values, the order and D to the last digit: `test_published_examples.py`. Printed matrices give poles and responses to three digits."""
    example = printed.ab09jd()
    red = hsv.frequency_weighted_hankel_norm_approximation(example.sys, example.rule(), output_weight=example.weight)
    assert int(red.orders) == example.order
    poles, expected = (np.sort_complex(x.poles()) for x in (red.system, example.reduced))
    np.testing.assert_allclose(poles, expected, atol=2e-4)
    np.testing.assert_allclose(red.system.frequency_response(W), example.reduced.frequency_response(W), atol=1e-3)


def by_slicot(routine, sys, order, V):
    nothing = np.zeros((1, 1), order="F")
    matrices = [np.asfortranarray(x.copy()) for s in (sys, V) for x in (s.A, s.B, s.C, s.D)]
    n, m, p, k = sys.n_states, sys.n_inputs, sys.n_outputs, V.n_states
    sizes = (order, 0.0, *matrices[:4], *matrices[4:], *[nothing] * 4, 0.0, 0.0)
    if routine == "ab09jd":
        found = ctrlsys.ab09jd("V", "N", "I", "C", "N", "F", n, k, 0, m, p, *sizes)
    else:
        found = ctrlsys.ab09kd("N", "C", "L", "N", "F", n, k, 0, m, p, *sizes)
    A, B, C, D = found[:4]
    size, stable, values, _, info = found[-5:]
    assert info == 0
    return hsv.StateSpace(A[:size, :size], B[:size], C[:, :size], D, dt=0), values[:stable]


@pytest.mark.parametrize("routine", ["ab09jd", "ab09kd"])
def test_slicot_gives_the_same_systems(routine, rng):
    sys = random_system(rng, n=5, m=2, p=3, complex_=False, dt=0)
    V = conjugate(minimum_phase(rng, 3, 0, False))
    for order in (1, 3):
        peer, values = by_slicot(routine, sys, order, V)
        red = hsv.frequency_weighted_hankel_norm_approximation(sys, order, output_weight=V)
        np.testing.assert_allclose(red.hankel_singular_values, values, atol=1e-11 * values[0])
        expected = peer.frequency_response(W)
        np.testing.assert_allclose(red.system.frequency_response(W), expected, atol=1e-8 * np.abs(expected).max())
        assert red.system.n_states == peer.n_states == order


@pytest.mark.parametrize("routine", ["ab09jd", "ab09kd"])
def test_slicot_gives_the_same_systems_of_one_input(routine, rng):
    example = printed.ab09jd()
    sys, weight = example.sys, example.weight
    for order in (1, 2, 4):
        peer, values = by_slicot(routine, sys, order, weight)
        red = hsv.frequency_weighted_hankel_norm_approximation(sys, order, output_weight=weight)
        np.testing.assert_allclose(red.hankel_singular_values, values, atol=1e-11 * values[0])
        np.testing.assert_allclose(red.system.frequency_response(W), peer.frequency_response(W), atol=1e-8)


@pytest.mark.parametrize("dt", [0, True])
def test_without_weights_it_is_the_approximation_without_weights(dt, rng):
    sys = random_system(rng, n=5, dt=dt)
    weighted, plain = hsv.frequency_weighted_hankel_norm_approximation(sys, 2), hsv.hankel_norm_approximation(sys, 2)
    np.testing.assert_allclose(weighted.hankel_singular_values, plain.hankel_singular_values, rtol=1e-9)
    np.testing.assert_allclose(weighted.system.frequency_response(W), plain.system.frequency_response(W), atol=1e-8)


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("dt", [0, True])
def test_batches_and_libraries(dt, library, rng):
    sys = random_diagonal(rng, n=4, batch=(2,), dt=dt)
    V = minimum_phase(rng, 3, dt, True, batch=(2,))
    red = hsv.frequency_weighted_hankel_norm_approximation(sys, 2, output_weight=V)
    other = hsv.frequency_weighted_hankel_norm_approximation(
        convert(sys, library), 2, output_weight=convert(V, library)
    )
    w = [0.2, 1.0]
    np.testing.assert_allclose(to_host(other.system.frequency_response(w)), red.system.frequency_response(w), atol=1e-8)
    for i in range(2):
        one = hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=dt)
        weight = hsv.StateSpace(V.A[i], V.B[i], V.C[i], V.D[i], dt=dt)
        alone = hsv.frequency_weighted_hankel_norm_approximation(one, 2, output_weight=weight)
        np.testing.assert_allclose(red.system.frequency_response(w)[i], alone.system.frequency_response(w), atol=1e-8)


def test_inputs_that_make_no_sense_are_refused(rng):
    sys = random_system(rng, n=3, m=1, p=1, complex_=False, dt=0)
    call = hsv.frequency_weighted_hankel_norm_approximation

    def weight(A, C, D):
        return hsv.StateSpace([[A]], [[1.0]], [[C]], [[D]], dt=0)

    with pytest.raises(hsv.HsvError, match="1 stable and 0 unstable poles and 0 stable and 1 unstable zeros; mirror"):
        call(sys, 1, input_weight=weight(-1.0, -3.0, 1.0))  # (s - 2) / (s + 1)
    with pytest.raises(hsv.IllConditionedError, match="output_weight must be invertible at infinity"):
        call(sys, 1, output_weight=weight(-1.0, 1.0, 0.0))
    with pytest.raises(hsv.ShapeError, match="input_weight must be square of size 1, got 2 x 1"):
        call(sys, 1, input_weight=hsv.StateSpace([[-1.0]], [[1.0]], [[1.0], [1.0]], dt=0))
    with pytest.raises(hsv.OrderError, match="ErrorBound asks for a bound"):
        call(sys, hsv.ErrorBound(1.0))
    with pytest.raises(hsv.UnstableSystemError):
        call(hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0), 1)


def test_a_discrete_weight_with_a_pole_at_minus_one_is_refused():
    sys = hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True)
    weight = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[1.0]], dt=True)
    with pytest.raises(
        hsv.IllConditionedError, match=r"output_weight must have no pole on .* within 0.0e\+00 of z = -1"
    ):
        hsv.frequency_weighted_hankel_norm_approximation(sys, 1, output_weight=weight)
