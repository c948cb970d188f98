import numpy as np
import pytest
import torch

import hsv
from hsv._hankel_norm import bilinear_to_continuous, bilinear_to_discrete
from tests.hsv import reference_systems
from tests.hsv.test_systems import random_diagonal, random_system


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (3, 1), (1, 1)])
def test_the_error_has_the_least_hankel_norm(sizes, complex_, dt, rng):
    m, p = sizes
    sys = random_system(rng, n=7, m=m, p=p, complex_=complex_, dt=dt)
    sigma = hsv.hankel_singular_values(sys)
    for r in range(1, 7):
        red = hsv.hankel_norm_approximation(sys, r)
        assert red.system.n_states == int(red.orders) == r
        assert (red.system.dt, red.system.is_complex) == (sys.dt, complex_)
        np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[r], rtol=1e-7, atol=1e-10 * sigma[0])
        assert float(hsv.hinf_error(sys, red.system)) <= red.error_bound + 1e-11 * sigma[0]


def test_slicot_prints_this_for_its_power_system():
    reference = reference_systems.slicot_power_system()
    expected = reference.reductions["hankel_norm_approximation"]
    sys = hsv.StateSpace(reference.A, reference.B, reference.C, dt=0)
    red = hsv.hankel_norm_approximation(sys, expected["order"])
    found, printed = (np.sort_complex(np.asarray(x, dtype=complex)) for x in (red.system.poles(), expected["poles"]))
    np.testing.assert_allclose(found, printed, atol=5e-5)
    np.testing.assert_allclose(red.system.D, expected["D"], atol=5e-5)


def test_repeated_values_are_removed_together():
    """Two equal channels: every Hankel value comes twice, and the first discarded one has multiplicity two."""
    one = ([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]])
    sys = hsv.StateSpace(*(np.kron(np.eye(2), x) for x in one), dt=0)
    red = hsv.hankel_norm_approximation(sys, 2)
    np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), 0.5731395, rtol=1e-6)


def test_a_cut_inside_a_multiple_value_keeps_the_states_before_it():
    """They attain the same error; another state would gain nothing."""
    one = ([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]])
    sys = hsv.StateSpace(*(np.kron(np.eye(2), x) for x in one), dt=0)
    for asked, kept, error in ((1, 0, 24.42686044), (3, 2, 0.5731395581)):
        with pytest.warns(hsv.OrderWarning) as caught:
            red = hsv.hankel_norm_approximation(sys, asked)
        assert int(red.orders) == kept
        fewer = f"the order is {kept} instead of {asked}: Hankel values {kept + 1} to {asked + 1} are equal"
        assert [note.startswith(fewer) for note in red.notes] == [False, True]
        assert [str(warning.message) for warning in caught] == list(red.notes)
        assert caught[1].filename == __file__
        assert red.select().system.n_states == max(kept, 1)
        np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), error, rtol=1e-9)
        assert hsv.hinf_error(sys, red.system) <= red.error_bound


@pytest.mark.parametrize("n", [10, 20])
def test_small_errors_keep_their_digits(n):
    """Heat equation: errors down to 1e-10 of the largest value, of which the rows divided by differences of squares would lose all."""
    sys = reference_systems.heat_equation(n).system()
    sigma = hsv.hankel_singular_values(sys)
    for r in np.flatnonzero(sigma > 1e-11 * sigma[0])[1:]:
        red = hsv.hankel_norm_approximation(sys, int(r))
        # the state matrix has a norm of 4 n^2, and so have its rounding errors
        excess = 1e-13 * n * sigma[0]
        np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[r], rtol=1e-6, atol=excess)


def test_the_minimal_order_loses_nothing(rng):
    sys = random_system(rng, n=4, dt=True)
    red = hsv.hankel_norm_approximation(sys, 4)
    w = np.linspace(-3, 3, 9)
    np.testing.assert_allclose(red.system.frequency_response(w), sys.frequency_response(w), atol=1e-10)


def test_batches_of_different_orders_and_tensors(rng):
    sys = random_diagonal(rng, batch=(5,), n=6, dt=True)
    rule = hsv.Threshold(0.11)
    red = hsv.hankel_norm_approximation(sys, rule)
    assert len(set(red.orders.tolist())) > 1
    w = np.linspace(-3, 3, 7)
    for i in range(5):
        alone = hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=True)
        expected = hsv.hankel_norm_approximation(alone, rule).system.frequency_response(w)
        np.testing.assert_allclose(red.select(i).system.frequency_response(w), expected, atol=1e-9)
        np.testing.assert_allclose(red.system.frequency_response(w)[i], expected, atol=1e-9)
    single = hsv.DiagonalStateSpace(torch.tensor([0.9, 0.5, 0.1]), torch.ones(3, 2), torch.ones(1, 3), dt=True)
    red = hsv.hankel_norm_approximation(single, 1)
    assert red.system.A.dtype == torch.float32
    assert red.orders.dtype == torch.int64


def test_the_bilinear_map_and_its_inverse(rng):
    sys = random_system(rng, n=4, dt=True)
    parts = (sys.A, sys.B, sys.C, sys.D)
    continuous = hsv.StateSpace(*bilinear_to_continuous(*parts), dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(continuous), hsv.hankel_singular_values(sys), rtol=1e-10)
    for there, back in zip(parts, bilinear_to_discrete(*bilinear_to_continuous(*parts)), strict=True):
        np.testing.assert_allclose(back, there, atol=1e-12)


def test_bad_input():
    with pytest.raises(hsv.UnstableSystemError):
        hsv.hankel_norm_approximation(hsv.DiagonalStateSpace([1.1], [[1.0]], [[1.0]], dt=True), 1)
    with pytest.raises(hsv.OrderError):
        hsv.hankel_norm_approximation(hsv.DiagonalStateSpace([0.1], [[1.0]], [[1.0]], dt=True), 2)
