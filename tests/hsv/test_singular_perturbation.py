import numpy as np
import pytest
import torch

import hsv
from tests.hsv import reference_systems
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance


def steady_state(sys):
    return sys.frequency_response(np.array([0.0]))[..., 0, :, :]


@pytest.mark.parametrize("dt", [0, True, 0.2])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_promises(make, complex_, dt, rng):
    sys = make(rng, n=7, complex_=complex_, dt=dt)
    for r in range(1, 8):
        red = hsv.singular_perturbation(sys, r)
        assert red.system.n_states == int(red.orders) == r
        assert (red.system.dt, red.system.is_complex) == (sys.dt, complex_)
        assert red.left is red.right is None
        np.testing.assert_allclose(steady_state(red.system), steady_state(sys), rtol=1e-9, atol=1e-9)
        assert (
            float(hsv.hinf_error(sys, red.system)) <= red.error_bound + tolerance(float) * red.hankel_singular_values[0]
        )
        sigma = np.diag(red.hankel_singular_values[:r])  # balanced with the values that are kept
        np.testing.assert_allclose(hsv.controllability_gramian(red.system), sigma, atol=1e-9 * sigma.max())
        np.testing.assert_allclose(hsv.observability_gramian(red.system), sigma, atol=1e-9 * sigma.max())


def test_slicot_prints_this_for_its_power_system():
    reference = reference_systems.slicot_power_system()
    expected = reference.reductions["singular_perturbation"]
    red = hsv.singular_perturbation(hsv.StateSpace(reference.A, reference.B, reference.C, dt=0), expected["order"])
    np.testing.assert_allclose(red.system.D, expected["D"], atol=5e-5)


def test_four_state_transfer_function_by_fifty_digits():
    reference = reference_systems.four_state_transfer_function()
    expected = reference.reductions["singular_perturbation"]
    red = hsv.singular_perturbation(hsv.StateSpace(reference.A, reference.B, reference.C, dt=0), expected["order"])
    np.testing.assert_allclose(np.abs(red.system.A), np.abs(expected["A"]), rtol=1e-10)
    np.testing.assert_allclose(red.system.D, expected["D"], rtol=1e-11)


def reciprocal(sys):
    """The continuous system ``G(1 / s)``."""
    A = np.linalg.inv(sys.A)
    return hsv.StateSpace(A, -A @ sys.B, sys.C @ A, sys.D - sys.C @ A @ sys.B, dt=0)


def test_truncating_the_reciprocal_system_is_the_same(rng):
    """Liu and Anderson's characterisation: singular perturbation of G(s) is truncation of G(1/s), taken back."""
    sys = random_system(rng, n=7, dt=0)
    truncated = hsv.balanced_truncation(reciprocal(sys), 3).system
    w = np.linspace(-3, 3, 20)
    found = hsv.singular_perturbation(sys, 3).system.frequency_response(w)
    np.testing.assert_allclose(found, reciprocal(truncated).frequency_response(w), atol=1e-9)


def test_it_commutes_with_the_bilinear_map(rng):
    """z = 1 stands for s = 0, and balanced coordinates stay balanced: discrete time from continuous time."""
    sys = random_system(rng, n=7, dt=0)
    sampled = hsv.discretize(sys, 0.3, "bilinear")
    w = np.linspace(-9, 9, 20)
    found = hsv.singular_perturbation(sampled, 3).system.frequency_response(w)
    expected = hsv.discretize(hsv.singular_perturbation(sys, 3).system, 0.3, "bilinear").frequency_response(w)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_batch_is_its_systems_one_by_one(rng):
    sys = random_diagonal(rng, batch=(5,), n=8, dt=0)
    rule = hsv.HankelSum(discard=0.2)
    red = hsv.singular_perturbation(sys, rule)
    assert len(set(red.orders.tolist())) > 1
    for i in range(5):
        alone = hsv.singular_perturbation(
            hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=0), rule
        )
        w = np.linspace(-3, 3, 7)
        mine = red.select(i).system
        assert mine.n_states == alone.system.n_states
        np.testing.assert_allclose(mine.frequency_response(w), alone.system.frequency_response(w), atol=1e-10)
        np.testing.assert_allclose(
            hsv.StateSpace(red.system.A[i], red.system.B[i], red.system.C[i], red.system.D[i], dt=0).frequency_response(
                w
            ),
            alone.system.frequency_response(w),
            atol=1e-10,
        )


def test_a_real_part_stays_real_and_single_precision_single(rng):
    sys = hsv.real_part(random_diagonal(rng, n=4))
    red = hsv.singular_perturbation(sys, 3)
    assert not red.system.is_complex
    np.testing.assert_allclose(steady_state(red.system), steady_state(sys).real, atol=1e-10)
    single = hsv.DiagonalStateSpace(torch.tensor([0.9, 0.5, 0.1]), torch.ones(3, 1), torch.ones(1, 3), dt=True)
    red = hsv.singular_perturbation(single, 1)
    assert red.system.A.dtype == torch.float32
    np.testing.assert_allclose(steady_state(red.system).real.numpy(), 10 + 2 + 1 / 0.9, rtol=1e-6)


def test_states_beyond_the_numerical_rank_are_truncated():
    sys = hsv.DiagonalStateSpace([-1.0, -2.0, -3.0], [[1.0], [1.0], [0.0]], [[1.0, 1e-3, 1.0]], dt=0)
    with pytest.warns(hsv.OrderWarning, match="capped at 2"):
        red = hsv.singular_perturbation(sys, 3)
    np.testing.assert_allclose(steady_state(red.system), [[1 + 5e-4]], rtol=1e-12)


def test_an_unstable_system_is_refused():
    with pytest.raises(hsv.UnstableSystemError):
        hsv.singular_perturbation(hsv.DiagonalStateSpace([1.0], [[1.0]], [[1.0]], dt=0), 1)
