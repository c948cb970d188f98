import numpy as np
import pytest
import torch

import hsv
from tests.hsv.test_systems import random_diagonal, random_system

W = np.linspace(-3, 3, 11)


def stable_mask(poles, discrete):
    return np.abs(poles) < 1 if discrete else poles.real < 0


def unstable_system(make, rng, *, batch=(), complex_=True, dt=True):
    sys = make(rng, n=7, batch=batch, complex_=complex_, dt=dt)
    if isinstance(sys, hsv.DiagonalStateSpace):
        poles = 1.7 * sys.poles() if dt else sys.poles() + 0.9
        return hsv.DiagonalStateSpace(poles, sys.B, sys.C, sys.D, dt=dt)
    A = 1.7 * sys.A if dt else sys.A + 0.9 * np.eye(7)
    return hsv.StateSpace(A, sys.B, sys.C, sys.D, dt=dt)


@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_parts_add_up_and_each_has_its_poles(make, dt, complex_, batch, rng):
    sys = unstable_system(make, rng, batch=batch, complex_=complex_, dt=dt)
    stable, unstable = hsv.split_unstable(sys)
    assert type(stable) is type(unstable) is type(sys)
    assert stable.is_complex == complex_
    np.testing.assert_allclose(
        (stable + unstable).frequency_response(W), sys.frequency_response(W), rtol=1e-9, atol=1e-9
    )
    inside = stable_mask(sys.poles(), bool(dt))
    assert 0 < inside.sum() < inside.size
    for index in np.ndindex(*batch):
        for part, mask in ((stable, inside[index]), (unstable, ~inside[index])):
            poles = part.poles()[index]
            padding = np.full(part.n_states - mask.sum(), 0 if dt else -1)
            expected = np.sort_complex(np.concatenate([sys.poles()[index][mask], padding]))
            np.testing.assert_allclose(np.sort_complex(poles), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_a_part_may_be_empty(make, rng):
    sys = make(rng)
    stable, nothing = hsv.split_unstable(sys)
    assert nothing.n_states == 1
    np.testing.assert_array_equal(nothing.frequency_response(W), 0)
    np.testing.assert_allclose(stable.frequency_response(W), sys.frequency_response(W), atol=1e-12)


def test_the_stable_part_can_be_reduced(rng):
    sys = unstable_system(random_system, rng)
    stable, unstable = hsv.split_unstable(sys)
    red = hsv.balanced_truncation(stable, 2)
    joined = red.system + unstable
    error = np.linalg.norm(sys.frequency_response(W) - joined.frequency_response(W), 2, axis=(-2, -1)).max()
    assert error <= red.error_bound + 1e-9


def test_poles_on_the_boundary_are_unstable_and_log_poles_stay():
    sys = hsv.DiagonalStateSpace.from_log_poles([-0.5, 0.0, -1e-17], np.ones((3, 1)), np.ones((1, 3)))
    stable, unstable = hsv.split_unstable(sys)
    np.testing.assert_array_equal(stable.log_poles, [-0.5, -1e-17])
    np.testing.assert_array_equal(unstable.log_poles, [0.0])


def test_torch_tensors_come_back_as_tensors(rng):
    sys = unstable_system(random_system, rng)
    arrays = (torch.asarray(getattr(sys, k)) for k in "ABCD")
    stable, unstable = hsv.split_unstable(hsv.StateSpace(*arrays, dt=True))
    assert isinstance(stable.A, torch.Tensor)
    ours = hsv.split_unstable(sys)
    np.testing.assert_allclose(stable.frequency_response(W), ours[0].frequency_response(W), atol=1e-12)
    np.testing.assert_allclose(unstable.frequency_response(W), ours[1].frequency_response(W), atol=1e-12)
