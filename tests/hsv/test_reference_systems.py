"""The library agrees with every answer that `reference_systems` knows and that it can compute today."""

import numpy as np
import pytest

import hsv
from tests.hsv import reference_systems as known
from tests.tolerances import tolerance

SYSTEMS = [
    known.slicot_power_system,
    known.two_state_lag,
    known.two_state_lag_sampled,
    known.four_state_transfer_function,
    known.two_state_oscillator,
]


@pytest.mark.parametrize("make", SYSTEMS)
def test_printed_gramians_and_hankel_values(make):
    reference = make()
    sys, atol = reference.system(), 0.6 * 10.0**-reference.digits  # half a unit of the last printed digit, and ours
    for function, answer in (
        (hsv.hankel_singular_values, reference.hankel_singular_values),
        (hsv.controllability_gramian, reference.controllability_gramian),
        (hsv.observability_gramian, reference.observability_gramian),
    ):
        if answer is not None:
            np.testing.assert_allclose(function(sys), answer, rtol=0, atol=atol)


def test_order_that_slicot_chooses_by_its_tolerance():
    reference = known.slicot_power_system()
    wanted = reference.reductions["balanced_truncation"]
    reduced = hsv.balanced_truncation(
        reference.system(), hsv.Threshold(wanted["threshold"] / reference.hankel_singular_values[0])
    )
    assert int(reduced.orders) == wanted["order"]


def test_poles_of_a_printed_truncation():
    reference = known.four_state_transfer_function()
    wanted = reference.reductions["balanced_truncation"]
    poles = np.sort(hsv.balanced_truncation(reference.system(), wanted["order"]).system.poles().real)
    # four digits of each entry were printed, so about three of the poles
    np.testing.assert_allclose(poles, np.sort(np.linalg.eigvals(wanted["A"])), atol=1e-3)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_lyapunov_benchmark_has_the_solution_it_claims(n, discrete):
    a, b, x = known.lyapunov_benchmark(n, discrete=discrete)
    residual = a @ x @ a.T - x + b @ b.T if discrete else a @ x + x @ a.T + b @ b.T
    scale = np.linalg.norm(a) ** (2 if discrete else 1) * np.linalg.norm(x)
    assert np.linalg.norm(residual) <= tolerance(float) * scale


def test_families_are_stable_and_have_the_sizes_asked_for(rng):
    assert known.penzl_fom(40).system().n_states == 46
    assert known.heat_equation(30).system().poles().real.max() < 0
    layer = known.lru_initialisation(rng, 12, 3, max_phase=0.3, batch=(2,))
    assert (layer.batch_shape, layer.n_states, layer.n_inputs) == ((2,), 12, 3)
    assert np.abs(layer.poles()).min() >= 0.9
    for dt in (0, True):
        sys = known.random_stable(rng, 6, 2, 1, dt=dt, complex_=True, damping=0.01, batch=(3,))
        margin = 1 - np.abs(sys.poles()) if dt else -sys.poles().real
        np.testing.assert_allclose(margin.min(axis=-1), 0.01, rtol=1e-8)
