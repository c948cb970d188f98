"""The core runs on anything that follows the array API standard: array_api_strict allows nothing else."""

import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from tests.hsv.test_systems import random_diagonal, random_system


def convert(sys, library):
    arrays = {k: library.asarray(getattr(sys, k)) for k in "BCD"}
    if isinstance(sys, hsv.DiagonalStateSpace):
        return hsv.DiagonalStateSpace(library.asarray(sys.poles()), arrays["B"], arrays["C"], arrays["D"], dt=sys.dt)
    return hsv.StateSpace(library.asarray(sys.A), arrays["B"], arrays["C"], arrays["D"], dt=sys.dt)


def to_numpy(x):
    return np.asarray(x) if isinstance(x, torch.Tensor) else np.from_dlpack(x)


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_every_library_gives_the_numbers_of_numpy(make, dt, complex_, library, rng):
    sys = make(rng, n=5, batch=(2,), complex_=complex_, dt=dt)
    other = convert(sys, library)
    w = [0.1, 1.0]
    calls = {
        "hankel_singular_values": hsv.hankel_singular_values,
        "controllability_gramian": hsv.controllability_gramian,
        "observability_gramian": hsv.observability_gramian,
        "frequency_response": lambda s: s.frequency_response(w),
        "reduced": lambda s: hsv.balanced_truncation(s, hsv.HankelSum(keep=0.8)).system.frequency_response(w),
        "bound": lambda s: hsv.balanced_truncation(s, hsv.HankelSum(keep=0.8)).error_bound,
        "real_part": lambda s: hsv.hankel_singular_values(hsv.real_part(s)),
        "reduced real part": lambda s: hsv.balanced_truncation(hsv.real_part(s), 3).system.frequency_response(w),
        "difference": lambda s: (s - s).frequency_response(w),
        "diagonal": lambda s: hsv.diagonalize(s)[0].frequency_response(w),
    }
    if dt:
        calls["impulse_response"] = lambda s: s.impulse_response(7)
        calls["finite gramian"] = lambda s: hsv.controllability_gramian(s, 5)
    for name, call in calls.items():
        ours = call(other)
        assert type(ours) is type(other.B), name
        np.testing.assert_allclose(to_numpy(ours), call(sys), atol=1e-10, err_msg=name)


def test_log_poles_on_every_library(rng):
    logs = -rng.uniform(1e-4, 0.1, 4) + 1j * rng.uniform(0, 6, 4)
    B, C = rng.normal(size=(4, 2)) + 0j, rng.normal(size=(2, 4)) + 0j
    expected = hsv.hankel_singular_values(hsv.DiagonalStateSpace.from_log_poles(logs, B, C))
    for library in (strict, torch):
        sys = hsv.DiagonalStateSpace.from_log_poles(*(library.asarray(x) for x in (logs, B, C)))
        np.testing.assert_allclose(to_numpy(hsv.hankel_singular_values(sys)), expected, rtol=1e-11)


def test_torch_tensors_that_require_gradients_are_read():
    poles = torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True)
    sys = hsv.DiagonalStateSpace(
        poles, torch.ones(2, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), dt=True
    )
    assert hsv.balanced_truncation(sys, 1).system.n_states == 1
    assert hsv.balanced_truncation(sys.to_dense(), 1).system.n_states == 1
