"""What needs a CUDA device: the numbers of the CPU, on the device, for torch and CuPy arrays.

The kernels themselves are tested without one, in Numba's simulator (`test_cuda_kernels.py`); here they meet sizes that a simulator is too slow
for, both libraries' memory and streams, and a device's limits.
"""

import numpy as np
import pytest
import torch

import hsv
from hsv import _device
from tests.hsv.reference_systems import complex_normal, random_stable
from tests.tolerances import tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning"),  # said once, and expected here
    pytest.mark.filterwarnings("ignore::hsv.OrderWarning"),  # what is cut is of no interest
]


@pytest.fixture(params=["torch", "cupy"])
def move(request):
    """A function that copies a NumPy array to the device."""
    if request.param == "torch":
        return lambda array: torch.asarray(array, device="cuda")
    return pytest.importorskip("cupy").asarray


def bring(x):
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x.get()


def moved(sys, move):
    matrices = [move(x) for x in (sys.B, sys.C, sys.D)]
    if isinstance(sys, hsv.DiagonalStateSpace):
        if sys.log_poles is not None:
            return hsv.DiagonalStateSpace.from_log_poles(move(sys.log_poles), *matrices, dt=sys.dt)
        return hsv.DiagonalStateSpace(move(sys.poles()), *matrices, dt=sys.dt)
    return hsv.StateSpace(move(sys.A), *matrices, dt=sys.dt)


def diagonal(rng, n, *, batch=(), m=2, p=2, dt=True, complex_=True, logs=False, angle=6.28):
    shape = (*batch, n)
    log_poles = np.log(rng.uniform(0.5, 0.999, shape)) + (1j * rng.uniform(0, angle, shape) if complex_ else 0.0)
    draw = complex_normal if complex_ else lambda rng, shape: rng.normal(size=shape)
    B, C, D = draw(rng, (*shape, m)), draw(rng, (*batch, p, n)), draw(rng, (*batch, p, m))
    if logs:
        return hsv.DiagonalStateSpace.from_log_poles(log_poles, B, C, D)
    return hsv.DiagonalStateSpace(np.exp(log_poles) if dt else log_poles, B, C, D, dt=dt)


def squared(factor):
    """A factor is not unique, its Gramian is."""
    return factor @ (factor.conj().mT if hasattr(factor, "mT") else factor.conj().swapaxes(-1, -2))


W = [0.1, 2.0]

CALLS = {
    "hankel_singular_values": hsv.hankel_singular_values,
    "controllability_gramian": hsv.controllability_gramian,
    "observability_gramian": hsv.observability_gramian,
    "controllability_factor": lambda s: squared(hsv.controllability_factor(s)),
    "observability_factor": lambda s: squared(hsv.observability_factor(s)),
    "cross_gramian": hsv.cross_gramian,
    "finite gramian": lambda s: hsv.controllability_gramian(s, 7 if s.is_discrete else 1.5),
    "frequency_response": lambda s: s.frequency_response(W),
    "hankel_norm": hsv.hankel_norm,
    "hinf_norm": hsv.hinf_norm,
    "real_part": lambda s: hsv.hankel_singular_values(hsv.real_part(s)),
    "to_dense": lambda s: hsv.hankel_singular_values(s.to_dense()),
    "difference": lambda s: (s - (-s)).frequency_response(W),
    "diagonalize": lambda s: hsv.diagonalize(s)[0].frequency_response(W),
    "balanced_truncation": lambda s: hsv.balanced_truncation(s, hsv.HankelSum(keep=0.8)).system.frequency_response(W),
    "error_bound": lambda s: hsv.balanced_truncation(s, hsv.Threshold(0.1)).error_bound,
    "balancing_free_truncation": lambda s: hsv.balancing_free_truncation(s, 3).system.frequency_response(W),
    "truncated real part": lambda s: hsv.balanced_truncation(hsv.real_part(s), 4).system.frequency_response(W),
    "balance": lambda s: hsv.controllability_gramian(hsv.balance(s).system),
    "singular_perturbation": lambda s: hsv.singular_perturbation(s, 3).system.frequency_response(W),
    "hankel_norm_approximation": lambda s: hsv.hankel_norm_approximation(s, 3).system.frequency_response(W),
    "modal_truncation": lambda s: hsv.modal_truncation(s, 3).system.frequency_response(W),
    "irka": lambda s: hsv.irka(s, 2, max_iterations=3).system.frequency_response(W),
}


class TestPublicFunctions:
    @pytest.mark.parametrize("make", ["diagonal", "from_log_poles", "dense"])
    @pytest.mark.parametrize("dt", [0, True])
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_numbers_of_the_host(self, call, complex_, dt, make, move, rng):
        if make == "dense":
            sys = random_stable(rng, 6, 2, 2, dt=dt, complex_=complex_, batch=(3,))
        elif make == "diagonal" or dt:
            sys = diagonal(rng, 6, batch=(3,), dt=dt, complex_=complex_, logs=make == "from_log_poles")
        else:
            pytest.skip("log-poles are of discrete systems")
        there = moved(sys, move)
        result, expected = call(there), call(sys)
        assert type(result) is type(there.B)
        np.testing.assert_allclose(bring(result), expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())

    @pytest.mark.parametrize("dt", [0, True])
    def test_h2_norm(self, dt, move, rng):
        sys = diagonal(rng, 6, batch=(3,), dt=dt)
        sys = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C, dt=dt)  # D has an infinite norm in continuous time
        np.testing.assert_allclose(bring(hsv.h2_norm(moved(sys, move))), hsv.h2_norm(sys), rtol=1e-11)

    @pytest.mark.parametrize("dtype", ["float32", "complex64"])
    def test_single_precision_is_computed_in_double_and_rounded_once(self, dtype, move, rng):
        sys = diagonal(rng, 12, batch=(5,), complex_=dtype == "complex64")
        single = hsv.DiagonalStateSpace(*(x.astype(dtype) for x in (sys.poles(), sys.B, sys.C)), dt=True)
        values = hsv.hankel_singular_values(moved(single, move))
        assert str(values.dtype).endswith("float32")
        np.testing.assert_allclose(bring(values), hsv.hankel_singular_values(single), rtol=1e-6)


class TestKernels:
    def test_they_are_chosen(self, move):
        assert _device.kernels_serve(move(np.eye(256)), 256)
        assert not _device.kernels_serve(move(np.eye(3)), 257)

    @pytest.mark.parametrize("n", [1, 2, 7, 16, 33, 64, 100, 128, 200, 256])
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_decomposition(self, complex_, n, move, rng):
        M = complex_normal(rng, (5, n, n)) if complex_ else rng.normal(size=(5, n, n))
        expected = np.linalg.svd(M, compute_uv=False)
        error = {"atol": tolerance(float, factor=10.0 * n) * expected.max()}
        np.testing.assert_allclose(bring(_device.singular_values(move(M))), expected, **error)
        U, s, Vh = (bring(x) for x in _device.svd(move(M)))
        np.testing.assert_allclose(s, expected, **error)
        np.testing.assert_allclose((U * s[:, None, :]) @ Vh, M, **error)
        for basis in (U, Vh):
            product = basis.conj().swapaxes(-1, -2) @ basis
            np.testing.assert_allclose(
                product, np.broadcast_to(np.eye(n), M.shape), atol=tolerance(float, factor=10.0 * n)
            )

    @pytest.mark.parametrize("n", [1, 2, 7, 33, 64, 128, 256])
    @pytest.mark.parametrize("m", [1, 3, 70])
    def test_factors(self, m, n, move, rng):
        for logs, complex_, dt in ((False, True, True), (True, True, True), (False, False, True), (False, True, 0)):
            sys = diagonal(rng, n, batch=(3,), m=m, dt=dt, logs=logs, complex_=complex_)
            L, P = bring(hsv.controllability_factor(moved(sys, move))), hsv.controllability_gramian(sys)
            assert L.shape == P.shape
            np.testing.assert_allclose(
                L @ L.conj().swapaxes(-1, -2), P, atol=tolerance(float, factor=1e4) * np.abs(P).max()
            )

    def test_every_value_has_the_digits_that_the_host_gives_it(self, move, rng):
        """One input and output, narrow phase: values over more than thirty orders of magnitude."""
        sys = diagonal(rng, 64, batch=(4,), m=1, p=1, angle=0.31)
        expected = hsv.hankel_singular_values(sys)
        assert np.all(expected[:, -1] < 1e-30 * expected[:, 0])
        np.testing.assert_allclose(bring(hsv.hankel_singular_values(moved(sys, move))), expected, rtol=1e-10)

    def test_many_systems(self, move, rng):
        sys = diagonal(rng, 16, batch=(3, 1700), m=1, p=1)
        np.testing.assert_allclose(
            bring(hsv.hankel_singular_values(moved(sys, move))), hsv.hankel_singular_values(sys), rtol=1e-9
        )
        empty = diagonal(rng, 16, batch=(0, 3))
        assert hsv.hankel_singular_values(moved(empty, move)).shape == (0, 3, 16)

    def test_a_matrix_of_zeros_and_one_of_rank_one(self, move, rng):
        M = np.stack([np.zeros((40, 40)), np.outer(rng.normal(size=40), rng.normal(size=40))])
        U, s, Vh = (bring(x) for x in _device.svd(move(M)))
        np.testing.assert_allclose(s, np.linalg.svd(M, compute_uv=False), atol=1e-13)
        np.testing.assert_allclose((U * s[:, None, :]) @ Vh, M, atol=1e-13)


class TestMemory:
    """Arrays as users have them."""

    def test_views_and_lazy_conjugates(self, move, rng):
        M = complex_normal(rng, (4, 9, 9))
        expected = np.linalg.svd(M, compute_uv=False)
        there = move(M)
        for view in (there.conj().swapaxes(-1, -2), there.swapaxes(-1, -2), there.conj()):
            np.testing.assert_allclose(bring(_device.singular_values(view)), expected, rtol=1e-12)
        np.testing.assert_allclose(bring(_device.singular_values(there[::2])), expected[::2], rtol=1e-12)

    def test_tensors_that_require_gradients_are_read(self, rng):
        sys = diagonal(rng, 8)
        poles = torch.asarray(sys.poles(), device="cuda").requires_grad_()
        there = hsv.DiagonalStateSpace(poles, *(torch.asarray(x, device="cuda") for x in (sys.B, sys.C)), dt=True)
        np.testing.assert_allclose(
            bring(hsv.hankel_singular_values(there).detach()), hsv.hankel_singular_values(sys), rtol=1e-10
        )

    def test_kernels_run_in_the_stream_of_the_caller(self, rng):
        """Work is queued in another stream, and the kernels must wait for it and nothing else for them."""
        M = complex_normal(rng, (50, 32, 32))
        expected = np.linalg.svd(M, compute_uv=False)
        there = torch.asarray(M, device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            values = _device.singular_values(there * 2.0) / 2.0
        stream.synchronize()
        np.testing.assert_allclose(bring(values), expected, rtol=1e-10)

    def test_streams_of_cupy(self, rng):
        cupy = pytest.importorskip("cupy")
        M = complex_normal(rng, (50, 32, 32))
        there = cupy.asarray(M)
        cupy.cuda.get_current_stream().synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            values = _device.singular_values(there * 2.0) / 2.0
            stream.synchronize()
        np.testing.assert_allclose(bring(values), np.linalg.svd(M, compute_uv=False), rtol=1e-10)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_the_second_device(self, rng):
        M = complex_normal(rng, (3, 8, 8))
        values = _device.singular_values(torch.asarray(M, device="cuda:1"))
        assert values.device.index == 1
        np.testing.assert_allclose(bring(values), np.linalg.svd(M, compute_uv=False), rtol=1e-10)


class TestBackends:
    def test_the_device_is_named(self):
        name = torch.cuda.get_device_name(0)
        found = hsv.backends(probe=True)
        assert name in found["torch"].devices
        assert hsv.require_backend("numba-cuda").devices[0] == name

    def test_cupys_device_is_named(self):
        pytest.importorskip("cupy")
        assert hsv.require_backend("cupy").devices[0] == torch.cuda.get_device_name(0)


class TestDoubling:
    @pytest.mark.parametrize("n", [64, 300])
    @pytest.mark.parametrize("dt", [0, True])
    def test_dense_systems(self, dt, n, move, rng):
        sys = random_stable(rng, n, 3, 2, dt=dt, batch=(2,))
        expected = hsv.hankel_singular_values(sys)
        values = hsv.hankel_singular_values(moved(sys, move))
        np.testing.assert_allclose(bring(values), expected, atol=1e-11 * expected.max())
