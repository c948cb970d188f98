"""The GPU's kernels, simulated on the host, against plain references, element by element; and how they would be launched."""

import concurrent.futures
import contextlib
import importlib.util
import multiprocessing
import subprocess
import sys
import types
import warnings
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import hsv
from hsv import _array, _cauchy, _device
from tests.hsv import cuda_simulator
from tests.hsv.cuda_simulator import ORDERS
from tests.hsv.exact import diagonal_hankel_values
from tests.hsv.reference_systems import complex_normal
from tests.tolerances import tolerance

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="numba-cuda, whose simulator runs the kernels, is not installed",
)

H100 = 227 * 1024  # bytes of shared memory for a block
DISCRETE, LOGS, CONTINUOUS = 0, 1, 2
NAMES = {DISCRETE: "discrete", LOGS: "logarithms", CONTINUOUS: "continuous"}


@pytest.fixture(scope="module")
def simulate_in():
    """Run a function of `cuda_simulator` in the process of the simulator, which Numba only chooses when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_ENABLE_CUDASIM", "1")
        pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with pool:
            pool.submit(int).result()  # the process starts here, with the variable
            yield lambda *arguments: pool.submit(cuda_simulator.in_order, *arguments).result(timeout=120)


@pytest.fixture
def simulate(simulate_in):
    """The same, with the threads of a block in ascending order."""
    return lambda *arguments: simulate_in("ascending", *arguments)


def draw(rng, kind, n, *, complex_, batch=2):
    """Poles (their logarithms where the kind says so), well inside and near the boundary."""
    radius = rng.uniform(0.3, 0.9999, (batch, n))
    angle = rng.uniform(0, 0.5, (batch, n)) if complex_ else 0.0
    if kind == CONTINUOUS:
        return -rng.uniform(1e-3, 1.0, (batch, n)) + (1j * angle if complex_ else 0.0)
    logs = np.log(radius) + (1j * angle if complex_ else 0.0)
    return logs if kind == LOGS else np.exp(logs)


def gaps_of(kind, poles):
    return _cauchy._denominators(NAMES[kind], poles[..., None])[..., 0, 0].real.copy()


def generators_of(rng, n, m, *, complex_, batch=2):
    return complex_normal(rng, (batch, n, m)) if complex_ else rng.normal(size=(batch, n, m))


class TestFactors:
    @pytest.mark.parametrize("m", [1, 3])
    @pytest.mark.parametrize("kind", [DISCRETE, LOGS, CONTINUOUS], ids=NAMES.values())
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_entries_are_those_of_the_plain_elimination(self, simulate, complex_, kind, m, rng):
        n = 6
        poles, G = draw(rng, kind, n, complex_=complex_), generators_of(rng, n, m, complex_=complex_)
        expected = _cauchy._eliminate(G, *_cauchy._pairs(NAMES[kind], poles))
        for memory in (0, H100):
            found, plan = simulate("factor", poles, gaps_of(kind, poles), G, kind, memory)
            assert plan.in_shared == (memory > 0,)
            if m == 1:  # products alone: every entry
                np.testing.assert_allclose(found, expected, rtol=tolerance(float))
            else:  # every column, next to its largest entry
                scale = np.abs(expected).max(axis=-2, keepdims=True)
                np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance(float, factor=1e4))

    def test_one_state(self, simulate, rng):
        for complex_ in (True, False):
            poles, G = draw(rng, DISCRETE, 1, complex_=complex_), generators_of(rng, 1, 1, complex_=complex_)
            gaps = gaps_of(DISCRETE, poles)
            found, _ = simulate("factor", poles, gaps, G, DISCRETE, H100)
            np.testing.assert_allclose(found, G / np.sqrt(gaps)[..., None], rtol=1e-14)

    def test_equal_poles_and_states_without_input_leave_columns_of_zeros(self, simulate):
        poles, G = np.array([[0.5, 0.5, 0.9]]), np.array([[[3.0], [4.0], [0.0]]])
        found, _ = simulate("factor", poles, gaps_of(DISCRETE, poles), G, DISCRETE, H100)
        np.testing.assert_allclose(found[0], [[3 / 0.75**0.5, 0, 0], [4 / 0.75**0.5, 0, 0], [0, 0, 0]], rtol=1e-15)
        nothing, _ = simulate("factor", poles, gaps_of(DISCRETE, poles), 0 * G, DISCRETE, H100)
        np.testing.assert_array_equal(nothing, 0.0)

    @pytest.mark.parametrize("m", [1, 2])
    def test_sizes_whose_squares_overflow_or_underflow(self, simulate, m, rng):
        poles, G = draw(rng, DISCRETE, 4, complex_=True), generators_of(rng, 4, m, complex_=True)
        gaps = gaps_of(DISCRETE, poles)
        plain, _ = simulate("factor", poles, gaps, G, DISCRETE, H100)
        for scale in (2.0**-900, 2.0**900):
            found, _ = simulate("factor", poles, gaps, G * scale, DISCRETE, H100)
            np.testing.assert_array_equal(found / scale, plain)

    def test_columns_fall_far_below_the_root_of_the_smallest_number(self, simulate):
        """Close poles: the last column is 1e-200 of the first, its square would be zero."""
        poles = 0.5 + 1e-12 * np.array(
            [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]]
        )
        G = np.ones((1, 17, 1))
        found, _ = simulate("factor", poles, gaps_of(DISCRETE, poles), G, DISCRETE, H100)
        columns = np.abs(found[0]).max(axis=0)
        assert 0 < columns[-1] < 1e-170
        expected = _cauchy._eliminate(G, *_cauchy._pairs("discrete", poles))[
            0
        ]  # loses the last ones, whose squares vanish
        kept = np.abs(expected).max(axis=0) > 1e-140
        np.testing.assert_allclose(found[0][:, kept], expected[:, kept], rtol=1e-10)


class TestDecompositions:
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    @pytest.mark.parametrize("n", [1, 2, 3, 7])
    def test_against_lapack_in_every_memory(self, simulate, n, complex_, rng):
        M = generators_of(rng, n, n, complex_=complex_)
        expected = np.linalg.svd(M, compute_uv=False)
        plans = [_plan(n, complex_, memory) for memory in range(0, 10**5, 8)]
        one = 8 * next(i for i, plan in enumerate(plans) if plan.in_shared == (True, False))
        for memory, where in ((10**6, (True, True)), (one, (True, False)), (0, (False, False))):
            left, values, right, converged, plan = simulate("decomposition", M, True, memory)
            assert converged
            assert plan.in_shared == where
            np.testing.assert_allclose(values, expected, atol=1e-14 * n * expected.max())
            for basis in (left, right):
                np.testing.assert_allclose(
                    basis.conj().swapaxes(-1, -2) @ basis, np.broadcast_to(np.eye(n), M.shape), atol=1e-14 * n
                )
            np.testing.assert_allclose((left * values[:, None, :]) @ right, M, atol=1e-14 * n * expected.max())
        alone = simulate("decomposition", M, False, 10**6)[1]
        np.testing.assert_array_equal(alone, simulate("decomposition", M, False, 0)[1])
        np.testing.assert_allclose(alone, expected, atol=1e-14 * n * expected.max())

    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_graded_matrices_keep_the_digits_of_every_value(self, simulate, complex_, rng):
        """Rows and columns over 290 orders of magnitude together; the truth in 700 digits."""
        Z = generators_of(rng, 5, 5, complex_=complex_, batch=1)[0]
        M = 10.0 ** -np.linspace(0, 150, 5)[:, None] * Z * 10.0 ** -np.linspace(0, 140, 5)
        with mpmath.workdps(700):
            decompose = mpmath.svd_c if complex_ else mpmath.svd_r
            exact = np.array([float(x) for x in decompose(mpmath.matrix(M.tolist()), compute_uv=False)])
        assert exact[-1] < 1e-285 * exact[0]
        left, values, right, converged, _ = simulate("decomposition", M[None], True, H100)
        assert converged
        np.testing.assert_allclose(values[0], exact, rtol=1e-13)
        np.testing.assert_allclose(left[0].conj().T @ left[0], np.eye(5), atol=1e-14)
        np.testing.assert_allclose(right[0].conj().T @ right[0], np.eye(5), atol=1e-14)

    def test_columns_whose_squares_vanish_are_not_taken_for_zero(self, simulate):
        M = np.array([[[1.0, 1.0], [0.0, 1e-200]]])
        left, values, right, _, _ = simulate("decomposition", M, True, H100)
        np.testing.assert_allclose(values, [[2**0.5, 1e-200 / 2**0.5]], rtol=1e-14)
        np.testing.assert_allclose(np.abs(right[0]), 0.5**0.5 * np.ones((2, 2)), rtol=1e-14)
        np.testing.assert_allclose(np.abs(left[0]), np.eye(2), atol=1e-15)

    def test_matrices_without_full_rank(self, simulate, rng):
        u, v = complex_normal(rng, (4, 1)), complex_normal(rng, (1, 4))
        M = np.stack([np.zeros((4, 4), complex), u @ v, np.diag([0, 2.0, 0, 1.0]) + 0j])
        left, values, right, converged, _ = simulate("decomposition", M, True, H100)
        assert converged
        expected = [[0, 0, 0, 0], [np.linalg.norm(u) * np.linalg.norm(v), 0, 0, 0], [2, 1, 0, 0]]
        np.testing.assert_allclose(values, expected, atol=1e-14)
        np.testing.assert_allclose((left * values[:, None, :]) @ right, M, atol=1e-14)
        np.testing.assert_allclose(left.conj().swapaxes(-1, -2) @ left, np.broadcast_to(np.eye(4), M.shape), atol=1e-14)
        np.testing.assert_array_equal(right[0], 0.0)  # nothing belongs to an exact 0

    def test_values_that_coincide(self, simulate, rng):
        Q = np.linalg.qr(complex_normal(rng, (6, 6)))[0]
        M = (Q * [3, 3, 3, 1, 1, 1]) @ Q.conj().T
        left, values, right, converged, _ = simulate("decomposition", M[None], True, H100)
        assert converged
        np.testing.assert_allclose(values[0], [3, 3, 3, 1, 1, 1], rtol=1e-14)
        np.testing.assert_allclose((left * values[:, None, :]) @ right, M[None], atol=1e-14)

    def test_extreme_sizes(self, simulate, rng):
        M = rng.normal(size=(1, 4, 4))
        plain = simulate("decomposition", M, False, H100)[1]
        for scale in (2.0**-900, 2.0**900):
            np.testing.assert_array_equal(simulate("decomposition", M * scale, False, H100)[1] / scale, plain)


def _plan(n, complex_, memory):
    return _kernels().decomposition_plan(n, is_complex=complex_, with_vectors=True, most_shared=memory)


def _kernels():
    from hsv._kernels import _cuda  # not where the file is collected: numba-cuda may be missing

    return _cuda


class TestBarriers:
    """Results must not depend on the order in which threads come to a barrier."""

    def test_the_simulator_sees_races_and_threads_that_miss_a_barrier(self, simulate_in):
        assert simulate_in("ascending", "race").tolist() != simulate_in("descending", "race").tolist()
        with pytest.raises(RuntimeError, match="threads of one block wait at different barriers"):
            simulate_in("ascending", "divergence")

    @pytest.mark.parametrize("memory", [0, H100])
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_factors(self, simulate_in, complex_, memory, rng):
        n = 5
        for kind, m in ((DISCRETE, 1), (LOGS, 3), (CONTINUOUS, 2)):
            poles, G = draw(rng, kind, n, complex_=complex_), generators_of(rng, n, m, complex_=complex_)
            G[1, 2:] = 0.0  # ends early
            results = [simulate_in(o, "factor", poles, gaps_of(kind, poles), G, kind, memory)[0] for o in ORDERS]
            for other in results[1:]:
                np.testing.assert_array_equal(other, results[0])

    @pytest.mark.parametrize("memory", [0, H100])
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_decompositions(self, simulate_in, complex_, memory, rng):
        for n in (2, 5):
            M = generators_of(rng, n, n, complex_=complex_, batch=3)
            M[1] *= 10.0 ** -np.linspace(0, 120, n) * 10.0 ** -np.linspace(0, 120, n)[:, None]  # rescaled on the way
            M[2, :, 0] = 0.0  # ends early
            results = [simulate_in(order, "decomposition", M, True, memory)[:3] for order in ORDERS]
            for other in results[1:]:
                for ours, first in zip(other, results[0], strict=True):
                    np.testing.assert_array_equal(ours, first)


class TestWholeSystems:
    @pytest.mark.parametrize("kind", [DISCRETE, LOGS, CONTINUOUS], ids=NAMES.values())
    def test_hankel_values_have_full_relative_accuracy(self, simulate, kind, rng):
        """One input and output, a narrow phase: values over ten orders of magnitude, to 13 digits each."""
        n = 9
        poles = draw(rng, kind, n, complex_=True, batch=1)
        B, C = generators_of(rng, n, 1, complex_=True, batch=1), generators_of(rng, n, 1, complex_=True, batch=1)
        gaps = gaps_of(kind, poles)
        Lc, _ = simulate("factor", poles, gaps, B, kind, H100)
        Lo, _ = simulate("factor", poles.conj(), gaps, C, kind, H100)
        values = simulate("decomposition", Lo.conj().swapaxes(-1, -2) @ Lc, False, H100)[1][0]
        exact = diagonal_hankel_values(
            poles[0], B[0], C[0].conj().T, log_poles=kind == LOGS, discrete=kind != CONTINUOUS
        )
        assert exact[-1] < 1e-6 * exact[0]
        np.testing.assert_allclose(values, exact, rtol=1e-13)


def small_system(rng, *, complex_, dt=True, batch=(2,), n=4):
    kind = DISCRETE if dt else CONTINUOUS
    poles = draw(rng, kind, n, complex_=complex_, batch=int(np.prod(batch))).reshape(*batch, n)
    B, C = (generators_of(rng, *shape, complex_=complex_, batch=int(np.prod(batch))) for shape in ((n, 1), (2, n)))
    return hsv.DiagonalStateSpace(poles, B.reshape(*batch, n, 1), C.reshape(*batch, 2, n), dt=dt)


class TestPublicFunctions:
    """The whole way from a public function to the kernels and back, NumPy arrays in the place of a GPU's."""

    @pytest.mark.parametrize("dt", [0, True])
    @pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
    def test_hankel_values(self, simulate, complex_, dt, rng):
        sys = small_system(rng, complex_=complex_, dt=dt, batch=(2, 1))
        values, launched = simulate("public", "hankel_singular_values", sys)
        assert launched == {"factors": 2, "decompositions": 1}
        np.testing.assert_allclose(values, hsv.hankel_singular_values(sys), rtol=1e-11)

    def test_log_poles_and_factors_and_single_precision(self, simulate, rng):
        logs = draw(rng, LOGS, 4, complex_=True).astype(np.complex64)
        B, C = (generators_of(rng, *shape, complex_=True).astype(np.complex64) for shape in ((4, 6), (1, 4)))
        sys = hsv.DiagonalStateSpace.from_log_poles(logs, B, C)
        L, launched = simulate("public", "controllability_factor", sys)  # more inputs than states: compressed first
        assert launched == {"factors": 1, "decompositions": 0}
        assert L.dtype == np.complex64
        P = hsv.controllability_gramian(sys)
        np.testing.assert_allclose(
            L @ L.conj().swapaxes(-1, -2), P, atol=tolerance(np.complex64, factor=10) * np.abs(P).max()
        )

    @pytest.mark.parametrize("method", ["balanced_truncation", "balancing_free_truncation"])
    def test_truncations(self, simulate, method, rng):
        sys = small_system(rng, complex_=True)
        red, launched = simulate("public", method, sys, (hsv.Order(2),))
        assert launched == {"factors": 2, "decompositions": 1}
        expected = getattr(hsv, method)(sys, hsv.Order(2))
        w = [0.1, 1.0, 3.0]
        np.testing.assert_allclose(
            red.system.frequency_response(w),
            expected.system.frequency_response(w),
            atol=1e-11 * hsv.hinf_norm(sys).max(),
        )
        np.testing.assert_allclose(red.error_bound, expected.error_bound, rtol=1e-8)

    def test_the_real_part_of_a_complex_system(self, simulate, rng):
        sys = hsv.real_part(small_system(rng, complex_=True, n=3))
        values, launched = simulate("public", "hankel_singular_values", sys)
        assert launched == {"factors": 2, "decompositions": 1}
        np.testing.assert_allclose(values, hsv.hankel_singular_values(sys), atol=1e-12 * values.max())

    def test_an_empty_batch_launches_nothing(self, simulate, rng):
        sys = small_system(rng, complex_=True, batch=(0, 3))
        values, launched = simulate("public", "hankel_singular_values", sys)
        assert values.shape == (0, 3, 4)
        assert launched == {"factors": 0, "decompositions": 0}


class TestChoice:
    """Which arrays go to the kernels."""

    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch):
        monkeypatch.setattr(_device, "_usable", None)

    def test_arrays_on_the_host_do_not(self):
        assert not _device.kernels_serve(np.empty(3), 3)
        assert _device._usable is None  # and nothing was looked for

    def test_small_ones_on_a_gpu_do(self, monkeypatch):
        monkeypatch.setattr(_device, "in_cuda_memory", lambda x: True)
        monkeypatch.setattr(_device, "look_for", lambda name: types.SimpleNamespace(available=True))
        assert _device.kernels_serve(np.empty(3), 256)
        assert not _device.kernels_serve(np.empty(3), 257)

    def test_where_the_compiler_is_missing_it_is_said_once(self, monkeypatch):
        monkeypatch.setattr(_device, "in_cuda_memory", lambda x: True)
        missing = types.SimpleNamespace(available=False, reason="not installed", install="pip install X")
        monkeypatch.setattr(_device, "look_for", lambda name: missing)
        with pytest.warns(UserWarning, match=r"numba-cuda is not available \(not installed; pip install X\)"):
            assert not _device.kernels_serve(np.empty(3), 3)
        assert not _device.kernels_serve(np.empty(3), 3)

    def test_what_does_not_converge_is_an_error(self, monkeypatch):
        kernels = _kernels()
        monkeypatch.setattr(kernels, "most_shared_bytes", lambda: H100)
        monkeypatch.setattr(_device, "_on_device_of", lambda x: contextlib.nullcontext())

        def never(arrays, plan, **options):
            arrays[4][:] = kernels._MOST_SWEEPS + 1

        monkeypatch.setattr(kernels, "decompositions", never)
        monkeypatch.setattr(_device, "kernels_serve", lambda x, n: True)
        with pytest.raises(hsv.HsvError, match="did not converge"):
            _device.singular_values(np.eye(3)[None])


class TestLibraries:
    """Device, stream and memory of a library's arrays, with stand-ins for the libraries and for Numba's side."""

    @pytest.fixture
    def numba_cuda(self, monkeypatch):
        from numba import cuda

        entered = []

        class Context:
            def __init__(self, index):
                self.index = index

            def __enter__(self):
                entered.append(self.index)

            def __exit__(self, *_):
                entered.append(None)

        monkeypatch.setattr(cuda, "gpus", [Context(i) for i in range(3)])
        monkeypatch.setattr(cuda, "external_stream", lambda pointer: ("stream", pointer))
        monkeypatch.setattr(_device, "device", lambda x: x.device)
        return entered

    def array_of(self, monkeypatch, name, where, library):
        module = types.ModuleType(name)
        vars(module).update(library)
        monkeypatch.setitem(sys.modules, name, module)
        array = type("Array", (), {"__module__": f"{name}.arrays"})()
        array.device = where
        return array

    @pytest.mark.parametrize(("pointer", "stream"), [(0, 0), (7, ("stream", 7))])
    def test_torch(self, monkeypatch, numba_cuda, pointer, stream):
        where = types.SimpleNamespace(type="cuda", index=2)
        asked = []
        current = types.SimpleNamespace(cuda_stream=pointer)
        cuda = types.SimpleNamespace(current_stream=lambda device: asked.append(device) or current)
        x = self.array_of(monkeypatch, "torch", where, {"cuda": cuda})
        with _device._on_device_of(x) as found:
            assert numba_cuda == [2]
            warnings.warn("Grid size 1 will likely result in GPU under-utilization", UserWarning, stacklevel=1)
        assert found == stream
        assert asked == [where]
        assert numba_cuda == [2, None]

    @pytest.mark.parametrize(("pointer", "stream"), [(0, 0), (7, ("stream", 7))])
    def test_cupy(self, monkeypatch, numba_cuda, pointer, stream):
        current = types.SimpleNamespace(ptr=pointer)
        cuda = types.SimpleNamespace(get_current_stream=lambda: current)
        x = self.array_of(monkeypatch, "cupy", types.SimpleNamespace(id=1), {"cuda": cuda})
        with _device._on_device_of(x) as found:
            assert numba_cuda == [1]
        assert found == stream

    def test_memory_is_handed_over_without_a_copy(self, monkeypatch):
        from numba import cuda

        class OnDevice:
            __cuda_array_interface__: dict = {}

        there, seen = OnDevice(), []
        monkeypatch.setattr(_device, "flat_memory", lambda x: x)
        view = np.array([1 + 2j, 3 + 4j])
        monkeypatch.setattr(cuda, "as_cuda_array", lambda x, sync: seen.append((x, sync)) or view, raising=False)
        argument = _device._kernel_argument(there)
        assert seen == [(there, False)]  # the stream is the library's own: nothing to wait for
        assert argument.tolist() == [1, 2, 3, 4]
        assert np.shares_memory(argument, view)

    def test_torch_tensors_are_read_as_numbers_in_a_row(self):
        z = torch.tensor([[1 + 2j, 3 - 4j]], dtype=torch.complex128, requires_grad=True)
        flat = _array.flat_memory(z.mH)  # a lazy conjugate and a lazy transpose, in a graph
        assert not flat.is_conj()
        assert not flat.requires_grad
        assert flat.is_contiguous()
        assert flat.tolist() == [1 - 2j, 3 + 4j]
        expanded = torch.ones(1, dtype=torch.float64).expand(3)
        assert _array.flat_memory(expanded).stride() == (1,)


class TestPlans:
    """Every size must fit the device: numbers of threads, bytes of shared memory, registers (256 threads may have all there are)."""

    @pytest.mark.parametrize("most_shared", [48 * 1024, 99 * 1024, H100])
    @pytest.mark.parametrize("complex_", [True, False])
    def test_every_size_is_within_the_limits(self, most_shared, complex_):
        plans = _kernels()
        for n in range(1, plans.MOST_STATES + 1):
            for m in (1, n):
                plan = plans.factor_plan(n, m, is_complex=complex_, most_shared=most_shared)
                assert n <= plan.threads <= 256
                assert plan.shared_bytes <= most_shared
            for vectors in (True, False):
                plan = plans.decomposition_plan(n, is_complex=complex_, with_vectors=vectors, most_shared=most_shared)
                assert n <= plan.threads <= 256
                assert plan.threads >= (n + 1) // 2
                assert plan.row >= n
                assert plan.shared_bytes <= most_shared

    def test_64_complex_states_stay_on_the_chip_of_an_h100(self):
        plans = _kernels()
        alone = plans.decomposition_plan(64, is_complex=True, with_vectors=False, most_shared=H100)
        assert alone.in_shared[0]
        assert 2 * (alone.shared_bytes + 1024) <= 228 * 1024  # two blocks a multiprocessor
        assert plans.decomposition_plan(64, is_complex=True, with_vectors=True, most_shared=H100).in_shared == (
            True,
            True,
        )

    def test_shared_memory_beyond_48_kib_is_asked_for(self, monkeypatch):
        """What Numba leaves to its caller, on a stand-in for the driver."""
        plans = _kernels()
        asked = []

        class Kernel:
            pass

        success = types.SimpleNamespace(name="CUDA_SUCCESS")
        refused = types.SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")
        driver = types.SimpleNamespace(
            CUfunction_attribute=types.SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8),
            CUresult=types.SimpleNamespace(CUDA_SUCCESS=success),
            CUkernel=Kernel,
            CUdevice=lambda i: i,
            cuKernelSetAttribute=lambda *a: asked.append(("kernel", *a)) or (success,),
            cuFuncSetAttribute=lambda *a: asked.append(("function", *a)) or (refused,),
        )
        monkeypatch.setattr(plans, "import_module", lambda name: driver)
        monkeypatch.setattr(
            plans, "cuda", types.SimpleNamespace(get_current_device=lambda: types.SimpleNamespace(id=3))
        )

        def with_handle(handle):
            library = types.SimpleNamespace(get_cufunc=lambda: types.SimpleNamespace(handle=handle))
            return types.SimpleNamespace(overloads={"signature": types.SimpleNamespace(library=library)})

        kernel = Kernel()
        plans._allow_shared_bytes(with_handle(kernel), 48 * 1024)
        assert asked == []
        plans._allow_shared_bytes(with_handle(kernel), 49 * 1024)
        assert asked == [("kernel", 8, 49 * 1024, kernel, 3)]
        with pytest.raises(RuntimeError, match=r"refuses 300000 bytes .* CUDA_ERROR_INVALID_VALUE"):
            plans._allow_shared_bytes(with_handle("older"), 300000)


def test_the_benchmark_runs_without_a_gpu():
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "asv_benchmarks.gpu", "--quick"], capture_output=True, text=True, check=True, cwd=root
    )
    for group in ("batch", "layer", "doubling", "decomposition"):
        assert f"group: {group}  " in run.stdout
