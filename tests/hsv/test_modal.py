import warnings

import numpy as np
import pytest
import torch

import hsv
from tests.hsv.test_systems import random_diagonal, random_system


@pytest.mark.parametrize("dt", [0, True, 0.2])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_promises(make, complex_, dt, rng):
    sys = make(rng, n=8, complex_=complex_, dt=dt)
    poles = sys.poles()
    for r in range(2, 9):
        if make is random_system and not complex_:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hsv.OrderWarning)  # a pair that the order would split
                red = hsv.modal_truncation(sys, r)
            assert int(red.orders) in (r, r - 1)
        else:
            red = hsv.modal_truncation(sys, r)
            assert int(red.orders) == r
        reduced = red.system
        assert reduced.n_states == int(red.orders)
        assert reduced.is_complex == complex_
        assert isinstance(reduced, type(sys))
        for pole in reduced.poles():
            assert np.abs(poles - pole).min() < 1e-10
        assert float(hsv.hinf_error(sys, reduced)) <= float(red.error_bound) * (1 + 1e-9) + 1e-9
        left_h, dense = red.left.conj().T, sys.to_dense()
        np.testing.assert_allclose(left_h @ red.right, np.eye(reduced.n_states), atol=1e-10)
        np.testing.assert_allclose(left_h @ dense.A @ red.right, reduced.to_dense().A, atol=1e-9)
        np.testing.assert_allclose(left_h @ dense.B, reduced.B, atol=1e-9)
        np.testing.assert_allclose(dense.C @ red.right, reduced.C, atol=1e-9)


def test_full_order_is_the_same_system(rng):
    sys = random_system(rng, n=7, complex_=False, dt=0)
    red = hsv.modal_truncation(sys, 7)
    w = np.linspace(-3, 3, 9)
    np.testing.assert_allclose(red.system.frequency_response(w), sys.frequency_response(w), atol=1e-9)
    assert float(red.error_bound) == 0


def test_measures_are_norms_of_single_modes(rng):
    sys = random_diagonal(rng, n=5, dt=True)
    for i in range(5):
        mode = hsv.DiagonalStateSpace(sys.poles()[[i]], sys.B[[i]], sys.C[:, [i]], dt=True)
        np.testing.assert_allclose(hsv.mode_gains(sys)[i], hsv.hinf_norm(mode), rtol=1e-9)
        np.testing.assert_allclose(hsv.mode_energies(sys)[i], hsv.h2_norm(mode) ** 2, rtol=1e-12)
    sys = random_diagonal(rng, n=5, dt=0)
    for i in range(5):
        mode = hsv.DiagonalStateSpace(sys.poles()[[i]], sys.B[[i]], sys.C[:, [i]], dt=0)
        np.testing.assert_allclose(hsv.mode_gains(sys)[i], hsv.hinf_norm(mode), rtol=1e-9)
        np.testing.assert_allclose(hsv.mode_energies(sys)[i], hsv.h2_norm(mode) ** 2, rtol=1e-12)


def test_log_poles_stay_exact():
    log_poles = np.array([-1e-12, -0.5, -1e-9])
    sys = hsv.DiagonalStateSpace.from_log_poles(log_poles, np.ones((3, 1)), np.ones((1, 3)))
    np.testing.assert_allclose(hsv.mode_gains(sys), 1 / -np.expm1(log_poles), rtol=1e-14)
    red = hsv.modal_truncation(sys, 2)
    np.testing.assert_array_equal(red.system.log_poles, [-1e-12, -1e-9])


def test_the_measure_decides():
    # gains 2 / .5 = 4 and .5 / .1 = 5, energies 4 / .75 and .25 / .19
    sys = hsv.DiagonalStateSpace([0.5, 0.9], [[2.0], [0.5]], [[1.0, 1.0]], dt=True)
    assert hsv.modal_truncation(sys, 1).system.poles() == [0.9]
    assert hsv.modal_truncation(sys, 1, hsv.mode_energies).system.poles() == [0.5]


def test_a_bound_that_is_asked_for_is_met():
    sys = hsv.DiagonalStateSpace([0.5, -0.9, 0.1], [[1.0], [1.0], [1.0]], [[3.0, 1.0, 0.1]], dt=True)
    red = hsv.modal_truncation(sys, hsv.ErrorBound(0.112))  # 0.1 / 0.9 = 0.1111
    assert int(red.orders) == 2
    assert float(red.error_bound) <= 0.112
    assert int(hsv.modal_truncation(sys, hsv.ErrorBound(0.111)).orders) == 3
    with pytest.raises(hsv.OrderError, match="mode_gains"):
        hsv.modal_truncation(sys, hsv.ErrorBound(0.1), hsv.mode_energies)


def test_conjugate_pairs_stay_together():
    A = np.array([[0.5, 0.6, 0.0], [-0.6, 0.5, 0.0], [0.0, 0.0, 0.1]])
    sys = hsv.StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), dt=True)
    with pytest.raises(hsv.OrderError, match="keep 2 states"):
        hsv.modal_truncation(sys, 1)
    red = hsv.modal_truncation(sys, 2)
    np.testing.assert_allclose(sorted(red.system.poles().imag), [-0.6, 0.6], atol=1e-12)
    slow = hsv.StateSpace(np.diag([0.95, 0, 0]) + np.pad(A[:2, :2], ((1, 0), (1, 0))), *(sys.B, sys.C), dt=True)
    with pytest.warns(hsv.OrderWarning, match="after 2 modes would split a conjugate pair"):
        red = hsv.modal_truncation(slow, 2)
    np.testing.assert_allclose(red.system.poles(), [0.95])


def test_batches_and_other_libraries(rng):
    sys = random_diagonal(rng, batch=(4,), n=6, dt=0)
    red = hsv.modal_truncation(sys, hsv.PrefixShare(0.1))
    w = np.linspace(-3, 3, 5)
    for i in range(4):
        alone = hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=0)
        expected = hsv.modal_truncation(alone, hsv.PrefixShare(0.1))
        mine = red.select(i)
        assert int(mine.orders) == int(expected.orders)
        np.testing.assert_allclose(mine.system.frequency_response(w), expected.system.frequency_response(w))
        np.testing.assert_allclose(red.system.frequency_response(w)[i], expected.system.frequency_response(w))
    assert len(set(red.orders.tolist())) > 1
    tensors = hsv.DiagonalStateSpace(*(torch.from_numpy(x) for x in (sys.poles(), sys.B, sys.C)), dt=0)
    again = hsv.modal_truncation(tensors, hsv.PrefixShare(0.1))
    np.testing.assert_array_equal(again.system.poles().numpy(), red.system.poles())
    dense = random_system(rng, batch=(3,), n=5, complex_=False, dt=True)
    red = hsv.modal_truncation(dense, 5)
    np.testing.assert_allclose(red.system.frequency_response(w), dense.frequency_response(w), atol=1e-9)


def test_bad_input():
    with pytest.raises(hsv.UnstableSystemError):
        hsv.modal_truncation(hsv.DiagonalStateSpace([1.1], [[1.0]], [[1.0]], dt=True), 1)
    with pytest.raises(hsv.UnstableSystemError):
        hsv.modal_truncation(hsv.StateSpace([[1.1]], [[1.0]], [[1.0]], dt=True), 1)
    with pytest.raises(hsv.IllConditionedError, match="defective"):
        hsv.modal_truncation(hsv.StateSpace([[0.5, 1.0], [0.0, 0.5]], np.ones((2, 1)), np.ones((1, 2)), dt=True), 1)
