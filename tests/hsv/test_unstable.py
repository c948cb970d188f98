import numpy as np
import pytest

import hsv
from tests.hsv import reference_systems
from tests.hsv.test_systems import random_diagonal, random_system


def with_unstable_poles(make, rng, dt):
    stable = make(rng, n=5, m=2, p=2, complex_=False, dt=dt)
    unstable = np.array([1.5, -2.0]) if dt else np.array([0.3, 2.0])
    B, C = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    return stable, stable + hsv.DiagonalStateSpace(unstable, B, C, dt=dt), unstable


@pytest.mark.parametrize(
    "method",
    [hsv.balanced_truncation, hsv.singular_perturbation, hsv.hankel_norm_approximation, hsv.balancing_free_truncation],
)
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_unstable_poles_stay_and_the_error_obeys_the_bound(make, dt, method, rng):
    stable, sys, unstable = with_unstable_poles(make, rng, dt)
    red = hsv.reduce_stable_part(sys, 2, method)
    assert red.system.n_states == int(red.orders) == 4
    poles = red.system.poles()
    for pole in unstable:
        assert np.abs(poles - pole).min() < 1e-9
    np.testing.assert_allclose(red.hankel_singular_values, hsv.hankel_singular_values(stable), rtol=1e-6, atol=1e-9)
    w = np.linspace(-3, 3, 200)
    error = np.linalg.norm(sys.frequency_response(w) - red.system.frequency_response(w), 2, axis=(-2, -1))
    assert error.max() <= float(red.error_bound) * (1 + 1e-9)


def test_slicot_prints_this_for_the_part_left_of_a_line():
    """AB09MD counts everything right of -0.6 as unstable: shift the system so that this line is the axis."""
    reference = reference_systems.slicot_power_system()
    sys = hsv.StateSpace(reference.A + 0.6 * np.eye(7), reference.B, reference.C, dt=0)
    expected = reference.reductions["part_left_of_-0.6"]["hankel_singular_values"]
    stable = hsv.split_unstable(sys)[0]
    unshifted = hsv.StateSpace(stable.A - 0.6 * np.eye(stable.n_states), stable.B, stable.C, dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(unshifted), expected, atol=5e-5)


def test_a_stable_system_is_just_reduced(rng):
    sys = random_system(rng, n=5, dt=True)
    red = hsv.reduce_stable_part(sys, 2)
    w = np.linspace(-3, 3, 9)
    expected = hsv.balanced_truncation(sys, 2).system.frequency_response(w)
    np.testing.assert_allclose(red.system.frequency_response(w), expected, atol=1e-12)


def test_warnings_point_at_the_caller():
    """Python shows a warning once for each line that it points at."""
    sys = hsv.StateSpace(np.diag([1.0, -1.0, -1.0]), np.eye(3), np.eye(3), dt=0)
    with pytest.warns(hsv.OrderWarning, match="cluster") as caught:
        hsv.reduce_stable_part(sys, 1)
    assert [warning.filename for warning in caught] == [__file__]


def test_bad_input(rng):
    with pytest.raises(hsv.HsvError, match="takes one system, got a batch"):
        hsv.reduce_stable_part(random_system(rng, batch=(2,)), 1)
    with pytest.raises(hsv.OrderError, match="no stable pole"):
        hsv.reduce_stable_part(hsv.DiagonalStateSpace([2.0], [[1.0]], [[1.0]], dt=True), 1)
