"""The core runs on anything that follows the array API standard: array_api_strict allows nothing else."""

import warnings

import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from hsv import _array, _hankel
from tests.hsv.another_device import ELSEWHERE, bring, move, record_copies
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


def squared(factor):
    """A factor is not unique, its Gramian is."""
    return factor @ _array.conjugate_transpose(factor)


# What each function may bring to the host of a batch (2,) of systems of 5 states. Numbers alone (a norm to compare, whether all is finite) are not counted.
NOTHING = {
    "hankel_singular_values": hsv.hankel_singular_values,
    "controllability_gramian": hsv.controllability_gramian,
    "observability_gramian": hsv.observability_gramian,
    "controllability_factor": lambda s: squared(hsv.controllability_factor(s)),
    "observability_factor": lambda s: squared(hsv.observability_factor(s)),
    "h2_norm": hsv.h2_norm,
    "hankel_norm": hsv.hankel_norm,
    "frequency_response": lambda s: s.frequency_response([0.1, 1.0]),
    "real_part": lambda s: hsv.hankel_singular_values(hsv.real_part(s)),
    "to_dense": lambda s: hsv.hankel_singular_values(s.to_dense()),
    "difference": lambda s: (s - s).frequency_response([0.5]),
}
HANKEL_VALUES = {  # rules choose orders on the host
    "balanced_truncation": lambda s: hsv.balanced_truncation(s, 2),
    "balancing_free_truncation": lambda s: hsv.balancing_free_truncation(s, hsv.HankelSum(keep=0.9)),
    "truncated real part": lambda s: hsv.balanced_truncation(hsv.real_part(s), 3),
    "balance": hsv.balance,
    "singular_perturbation": lambda s: hsv.singular_perturbation(s, 2),
}
MATRICES = {  # says so
    "hinf_norm": (hsv.hinf_norm, "the search for the largest gain"),
    "hinf_error": (lambda s: hsv.hinf_error(s, s), "the search for the largest gain"),
    "irka": (lambda s: hsv.irka(s, 2), "the iteration for H2-optimal reduction"),
    "hankel_norm_approximation": (lambda s: hsv.hankel_norm_approximation(s, 2), "Hankel-norm approximation"),
    "diagonalize": (lambda s: hsv.diagonalize(s.to_dense()), "the general eigenvalue problem"),
}


@pytest.fixture
def copies(monkeypatch):
    """The shapes of the arrays that are copied to the host."""
    monkeypatch.setattr(_array, "_warned_host_copy", set())
    return record_copies(monkeypatch)


@pytest.fixture(
    params=[
        (make, dt, complex_)
        for make in (random_diagonal, random_system)
        for dt in (0, True)
        for complex_ in (True, False)
    ]
)
def elsewhere(request, rng):
    """A system, and the same on a device that is not the host."""
    make, dt, complex_ = request.param
    sys = make(rng, n=5, batch=(2,), complex_=complex_, dt=dt)
    if isinstance(sys, hsv.DiagonalStateSpace):
        return sys, hsv.DiagonalStateSpace(*(move(x) for x in (sys.poles(), sys.B, sys.C, sys.D)), dt=dt)
    return sys, hsv.StateSpace(*(move(x) for x in (sys.A, sys.B, sys.C, sys.D)), dt=dt)


class TestAnotherDevice:
    def test_every_way_to_the_host_is_closed_or_recorded(self, copies):
        """What the tests below rely on."""
        x = move([[1.0, 2.0]])
        for read in (np.asarray, memoryview, lambda x: np.add(x, 1.0)):
            with pytest.raises((RuntimeError, TypeError)):
                read(x)
        np.testing.assert_array_equal(_array.to_host(x), [[1.0, 2.0]])
        assert copies == [(1, 2)]

    @pytest.mark.parametrize("call", NOTHING.values(), ids=NOTHING)
    def test_diagonal_and_doubling_paths_stay_there(self, call, elsewhere, copies):
        here, there = elsewhere
        result = call(there)
        assert copies == []
        assert _array.device(result) == ELSEWHERE
        np.testing.assert_allclose(bring(result), call(here), atol=1e-9)

    @pytest.mark.parametrize("call", HANKEL_VALUES.values(), ids=HANKEL_VALUES)
    def test_reductions_show_the_host_the_hankel_values_alone(self, call, elsewhere, copies):
        here, there = elsewhere
        result = call(there)
        assert copies
        assert {len(shape) for shape in copies} == {2}  # (batch, states)
        for array in (result.system.B, result.orders, result.error_bound, result.left):
            assert array is None or _array.device(array) == ELSEWHERE
        w = [0.1, 2.0]
        np.testing.assert_allclose(
            bring(result.system.frequency_response(w)), call(here).system.frequency_response(w), atol=1e-9
        )

    @pytest.mark.parametrize(("call", "reason"), MATRICES.values(), ids=MATRICES)
    def test_what_runs_on_the_host_says_so_once(self, call, reason, elsewhere, copies):
        _, there = elsewhere
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(there)
            call(there)
        said = [str(w.message) for w in caught if f"{reason} runs on the host: arrays on" in str(w.message)]
        assert len(said) == 1
        assert copies

    def test_nothing_is_said_of_arrays_on_the_host(self, rng):
        for library in (np, strict, torch):
            sys = convert(random_diagonal(rng, n=3, batch=(), complex_=True, dt=True), library)
            hsv.hinf_norm(sys)
            hsv.diagonalize(sys.to_dense())

    @pytest.mark.parametrize("logs", [True, False])
    def test_large_batches_go_through_in_blocks(self, logs, rng, copies, monkeypatch):
        here = random_diagonal(rng, n=5, batch=(2, 3), complex_=True, dt=True)
        make = hsv.DiagonalStateSpace.from_log_poles if logs else hsv.DiagonalStateSpace
        poles = np.log(here.poles()) if logs else here.poles()
        there = make(*(move(x) for x in (poles, here.B, here.C, here.D)), dt=True)
        expected = hsv.hankel_singular_values(here)
        sizes, factor = [], _hankel.gramian_factors
        monkeypatch.setattr(_hankel, "gramian_factors", lambda s: sizes.append(s.batch_shape) or factor(s))
        for most, blocks in ((2**27, [(2, 3)]), (200, [(4,), (2,)]), (1, 6 * [(1,)])):
            monkeypatch.setattr(_hankel, "_MOST_NUMBERS", most)
            sizes.clear()
            np.testing.assert_allclose(bring(hsv.hankel_singular_values(there)), expected, rtol=1e-9)
            assert sizes == blocks
        assert copies == []
        poles = np.array(np.exp(poles) if logs else poles)
        poles[1, 2, 3] = 2.0
        unstable = make(*(move(x) for x in (np.log(poles) if logs else poles, here.B, here.C)), dt=True)
        with pytest.raises(hsv.UnstableSystemError, match=r"system \(1, 2\), state 3"):
            hsv.hankel_singular_values(unstable)
