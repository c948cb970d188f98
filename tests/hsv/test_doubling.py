import array_api_strict
import numpy as np
import pytest
import scipy.linalg
import slycot
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import _doubling
from hsv._array import device, to_host
from tests.hsv import reference_systems as known
from tests.hsv import test_lyapunov
from tests.hsv.another_device import ELSEWHERE, bring, move, record_copies
from tests.hsv.exact import heat_equation_hankel_values
from tests.hsv.test_lyapunov import (
    adjoint,
    draw,
    kinds,
    lyapunov_residual,
    norm,
    shapes,
    stein_residual,
)
from tests.tolerances import tolerance

solve_exactly = test_lyapunov.TestFiftyDigits.solve


def stable(rng, n, batch, complex_, damping, discrete):
    return known.random_stable(
        rng, n, 1, 1, dt=True if discrete else 0, complex_=complex_, batch=batch, damping=damping
    ).A


def solve(a, q, *, discrete):
    """With the sign of a Gramian: `q` is what is added."""
    if discrete:
        return hsv.solve_discrete_lyapunov_by_doubling(a, q)
    return hsv.solve_continuous_lyapunov_by_doubling(a, -q)


class TestResiduals:
    @given(discrete=st.booleans(), damping=st.sampled_from([0.5, 1e-2, 1e-4]), **shapes, **kinds)
    def test_plain(self, n, batch, complex_a, complex_q, discrete, damping, seed):
        rng = np.random.default_rng(seed)
        a, q = stable(rng, n, batch, complex_a, damping, discrete), draw(rng, (*batch, n, n), complex_q)
        x = solve(a, q, discrete=discrete)
        assert x.shape == (*batch, n, n)
        assert x.dtype == np.result_type(a, q)
        if discrete:
            assert stein_residual(a, x, q) < tolerance(float)
        else:  # the Cayley map of a lightly damped matrix costs digits of the residual, as its docstring says
            assert lyapunov_residual(a, x, -q) < tolerance(float) / damping**0.5

    @given(m=st.integers(0, 12), discrete=st.booleans(), damping=st.sampled_from([0.5, 1e-2, 1e-4]), **shapes, **kinds)
    def test_factored(self, n, m, batch, complex_a, complex_q, discrete, damping, seed):
        rng = np.random.default_rng(seed)
        a, b = stable(rng, n, batch, complex_a, damping, discrete), draw(rng, (*batch, n, m), complex_q)
        factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=discrete)
        assert factor.shape == a.shape
        assert factor.dtype == np.result_type(a, b)
        x, q = factor @ adjoint(factor), b @ adjoint(b)
        if m == 0:
            np.testing.assert_array_equal(x, 0)
        elif discrete:
            assert stein_residual(a, x, q) < tolerance(float)
        else:  # as above
            assert lyapunov_residual(a, x, -q) < tolerance(float) / damping**0.5

    @given(discrete=st.booleans(), **shapes, **kinds)
    def test_hermitian_right_hand_side_gives_an_exactly_hermitian_solution(
        self, n, batch, complex_a, complex_q, discrete, seed
    ):
        rng = np.random.default_rng(seed)
        a, q = stable(rng, n, batch, complex_a, 0.1, discrete), draw(rng, (*batch, n, n), complex_q)
        x = solve(a, q + adjoint(q), discrete=discrete)
        np.testing.assert_array_equal(x, adjoint(x))


class TestAccuracy:
    """What the docstrings say of how far to trust doubling, beside the Schur methods."""

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("n", [2, 10, 20])
    def test_benchmark_family(self, n, discrete):
        a, b, x = known.lyapunov_benchmark(n, discrete=discrete)
        factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=discrete)
        # The eigenvectors' condition is 1.5^(n-1), squared in the solution: 1e7 for n = 20.
        limit = tolerance(float) * 1.5 ** (2 * n)
        assert norm(factor @ factor.T - x) <= limit * norm(x)
        assert norm(solve(a, b @ b.T, discrete=discrete) - x) <= limit * norm(x)

    def test_sb03od(self):
        """SLICOT's printed example with more inputs (5) than states (4)."""
        reference = known.slicot_sb03od()
        np.testing.assert_allclose(solve(reference.a, -reference.q, discrete=False), reference.x, rtol=1e-12)
        factor = hsv.solve_lyapunov_factored_by_doubling(reference.a, known.slicot_sb03od_factor(), discrete=False)
        assert factor.shape == (4, 4)
        np.testing.assert_allclose(factor @ factor.T, reference.x, rtol=1e-12)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_real_a_with_complex_q_where_scipy_is_wrong(self, discrete, rng):
        """Issue 26177 of SciPy, for matrices with pairs of eigenvalues."""
        a, q = stable(rng, 6, (), False, 0.1, discrete), known.complex_normal(rng, (6, 6))
        assert np.any(np.linalg.eigvals(a).imag)
        exact = test_lyapunov.by_kronecker(a, q if discrete else -q, discrete=discrete)
        np.testing.assert_allclose(solve(a, q, discrete=discrete), exact, atol=1e-12 * np.abs(exact).max())

    def test_the_heat_equation_keeps_as_many_hankel_values_as_slicot_knows(self):
        n = 50
        reference, exact = known.heat_equation(n), heat_equation_hankel_values(n)
        lc = hsv.solve_lyapunov_factored_by_doubling(reference.A, reference.B, discrete=False)
        lo = hsv.solve_lyapunov_factored_by_doubling(reference.A.T, reference.C.T, discrete=False)
        ours = np.linalg.svd(lo.T @ lc, compute_uv=False)
        peer = slycot.ab09ad("C", "B", "N", n, 1, 1, reference.A, reference.B, reference.C, nr=1, tol=0)[4]
        assert np.abs(ours - exact).max() <= 2 * np.abs(peer - exact).max()

        def first_wrong(values):
            return int(np.argmax(np.append(np.abs(values - exact) > 1e-2 * exact, True)))

        assert first_wrong(ours) >= first_wrong(peer) - 2  # the luck of the rounding errors

    def test_close_to_the_unit_circle(self, rng):
        for gap in (1e-3, 1e-7):
            a = np.array([[1 - gap, 1.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, -1 + 2 * gap]])
            b = rng.normal(size=(3, 1))
            exact = solve_exactly(a, b @ b.T, discrete=True)
            factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=True)
            limit = tolerance(float) / gap  # a rounding error in `a` moves the pole by that much of its distance
            assert norm(factor @ factor.T - exact) <= limit * norm(exact)
            assert norm(solve(a, b @ b.T, discrete=True) - exact) <= limit * norm(exact)

    def test_powers_that_grow_first_cost_digits_that_the_schur_form_keeps(self):
        """Entries above the diagonal of 1e4: the powers rise to 1e8, and the residual with their square."""
        a = 0.5 * np.eye(3) + 1e4 * np.eye(3, k=1)
        q = np.diag([1.0, 1.0, 1.0])
        exact = solve_exactly(a, q, discrete=True).real
        height = max(norm(np.linalg.matrix_power(a, k)) for k in range(30))
        assert height > 1e8
        x = solve(a, q, discrete=True)
        assert norm(x - exact) <= tolerance(float) * norm(exact)  # the solution is as large as the squares
        assert stein_residual(a, hsv.solve_discrete_lyapunov(a, q), q) < tolerance(float)
        assert np.abs(a @ x @ a.T - x + q).max() <= tolerance(float) * height**2

    def test_graded_rows_keep_their_own_accuracy(self):
        a, b = np.diag([-1.0, -2.0, -3.0]), np.array([[1.0], [1e-6], [1e-12]])
        exact = solve_exactly(a, -b @ b.T, discrete=False).real
        factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=False)
        np.testing.assert_allclose(factor @ factor.T, exact, rtol=1e-12)

    def test_small_directions_of_the_factor_survive(self):
        """Singular values of the factor over 14 orders of magnitude; of the Gramian's only half would be above rounding."""
        sys = hsv.DiagonalStateSpace(np.linspace(-0.5, 0.5, 9), np.ones((9, 1)), np.ones((1, 9)), dt=True)
        exact = np.linalg.svd(hsv.controllability_factor(sys), compute_uv=False)
        factor = hsv.solve_lyapunov_factored_by_doubling(sys.to_dense().A, sys.B, discrete=True)
        assert exact[-1] < 1e-5 * exact[0]
        np.testing.assert_allclose(np.linalg.svd(factor, compute_uv=False), exact, atol=tolerance(float) * exact[0])

    @pytest.mark.parametrize("discrete", [True, False])
    def test_extreme_sizes_of_the_input(self, discrete, rng):
        sys = known.random_stable(rng, 5, 2, 1, dt=True if discrete else 0)
        factor = hsv.solve_lyapunov_factored_by_doubling(sys.A, sys.B, discrete=discrete)
        for scale in (2.0**-900, 2.0**900):
            scaled = hsv.solve_lyapunov_factored_by_doubling(sys.A, sys.B * scale, discrete=discrete)
            np.testing.assert_allclose(scaled / scale, factor, rtol=1e-12, atol=1e-13)


class TestSpecialMatrices:
    def test_zero_matrix_and_nilpotent_matrix(self):
        q = np.array([[4.0, 2.0], [2.0, 9.0]])
        np.testing.assert_array_equal(solve(np.zeros((2, 2)), q, discrete=True), q)
        np.testing.assert_array_equal(solve([[0.0, 1.0], [0.0, 0.0]], q, discrete=True), [[13.0, 2.0], [2.0, 9.0]])
        factor = hsv.solve_lyapunov_factored_by_doubling([[0.0, 1.0], [0.0, 0.0]], [[0.0], [3.0]], discrete=True)
        np.testing.assert_allclose(factor @ factor.T, 9 * np.eye(2), atol=1e-15)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_jordan_block(self, discrete, rng):
        a = (0.5 if discrete else -0.5) * np.eye(8) + np.eye(8, k=1)
        b = rng.normal(size=(8, 1))
        exact = scipy.linalg.solve_discrete_lyapunov if discrete else hsv.solve_continuous_lyapunov
        expected = exact(a, b @ b.T if discrete else -b @ b.T)
        factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=discrete)
        np.testing.assert_allclose(factor @ factor.T, expected, atol=1e-10 * np.abs(expected).max())

    @pytest.mark.parametrize("discrete", [True, False])
    def test_a_fast_and_a_slow_state(self, discrete):
        slow, fast = (1 - 1e-6, 0.0) if discrete else (-1e-6, -1e6)
        x = solve(np.diag([slow, fast]), np.eye(2), discrete=discrete)
        expected = [1 / ((1 - slow) * (1 + slow)), 1.0] if discrete else [5e5, 5e-7]
        np.testing.assert_allclose(np.diag(x), expected, rtol=1e-9)

    def test_up_to_which_radius_doubling_goes(self):
        """45 doublings are enough for 1 - 1.1e-12; a relative error of eps / (1 - radius) is left."""
        radius = 1 - 1.1e-12
        exact = 1 / ((1 - radius) * (1 + radius))
        assert solve([[radius]], [[1.0]], discrete=True)[0, 0] == pytest.approx(exact, rel=1e-2)
        factor = hsv.solve_lyapunov_factored_by_doubling([[radius]], [[1.0]], discrete=True)
        assert factor[0, 0] ** 2 == pytest.approx(exact, rel=1e-2)
        with pytest.raises(hsv.UnstableSystemError, match="within 1e-12 of the stability boundary"):
            solve([[1 - 1e-13]], [[1.0]], discrete=True)


class TestArrays:
    def test_a_batch_is_its_systems_one_by_one(self, rng):
        for discrete in (True, False):
            a = stable(rng, 5, (2, 1), False, 0.1, discrete)
            a[1] *= 1e-3 if discrete else 1e3  # systems that stop after different numbers of doublings
            q, b = known.complex_normal(rng, (3, 5, 5)), rng.normal(size=(3, 5, 2))
            x = solve(a, q, discrete=discrete)
            factor = hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=discrete)
            P = factor @ adjoint(factor)
            assert x.shape == P.shape == (2, 3, 5, 5)
            for i, j in np.ndindex(2, 3):
                np.testing.assert_allclose(x[i, j], solve(a[i, 0], q[j], discrete=discrete), rtol=1e-10)
                np.testing.assert_allclose(P[i, j], solve(a[i, 0], b[j] @ b[j].T, discrete=discrete), rtol=1e-9)
            assert solve(a[:0], q, discrete=discrete).shape == (0, 3, 5, 5)
            assert hsv.solve_lyapunov_factored_by_doubling(a[:0], b, discrete=discrete).shape == (0, 3, 5, 5)

    @pytest.mark.parametrize("library", [np, torch, array_api_strict], ids=["numpy", "torch", "strict"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
    @pytest.mark.parametrize("discrete", [True, False])
    def test_library_and_precision_are_kept_and_inputs_unchanged(self, discrete, library, dtype, rng):
        a = stable(rng, 4, (2,), dtype.startswith("complex"), 0.2, discrete)
        host = [np.asarray(x, dtype=dtype) for x in (a, rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 4, 4)))]
        a, b, q = (library.asarray(x.tolist(), dtype=getattr(library, dtype)) for x in host)
        x, L = solve(a, q, discrete=discrete), hsv.solve_lyapunov_factored_by_doubling(a, b, discrete=discrete)
        for result in (x, L):
            assert type(result) is type(a)
            assert result.dtype == getattr(library, dtype)
        for array, before in zip((a, b, q), host, strict=True):
            np.testing.assert_array_equal(to_host(array), before)
        a_, b_, q_ = (x.astype(np.result_type(x, np.float64)) for x in host)
        wanted = solve(a_, q_, discrete=discrete)
        np.testing.assert_allclose(to_host(x), wanted, rtol=tolerance(dtype, factor=4), atol=1e-12)
        P = hsv.solve_lyapunov_factored(a_, b_, discrete=discrete)
        L = to_host(L).astype(P.dtype)
        np.testing.assert_allclose(L @ adjoint(L), P @ adjoint(P), atol=tolerance(dtype) * np.abs(P).max() ** 2)

    @pytest.mark.parametrize("dt", [0, True])
    def test_nothing_leaves_another_device(self, dt, rng, monkeypatch):
        sys = known.random_stable(rng, 6, 2, 2, dt=dt)
        a, b, c, q = (move(x) for x in (sys.A, sys.B, sys.C, sys.B @ sys.B.T))
        there = hsv.StateSpace(a, b, c, dt=dt)
        copies = record_copies(monkeypatch)
        results = [
            solve(a, q, discrete=bool(dt)),
            hsv.solve_lyapunov_factored(a, b, discrete=bool(dt)),
            hsv.controllability_gramian(there),
            hsv.observability_gramian(there),
            hsv.hankel_singular_values(there),
        ]
        assert copies == []
        assert all(device(x) == ELSEWHERE for x in results)
        P, Q = hsv.controllability_gramian(sys), hsv.observability_gramian(sys)
        x, L, *rest = (bring(x) for x in results)
        for found, expected in zip([x, L @ L.T, *rest], [P, P, P, Q, hsv.hankel_singular_values(sys)], strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())


class TestStability:
    """What is asked in place of eigenvalues where these would have to leave the device."""

    @pytest.mark.parametrize("discrete", [True, False])
    def test_it_is_proved_of_stable_matrices_alone(self, discrete, rng):
        a = stable(rng, 6, (3,), True, 1e-3, discrete)
        assert _doubling.is_stable(a, discrete=discrete)
        a[1] -= (np.linalg.eigvals(a[1])[0] - (1.0 if discrete else 0.0) * 1.001) * np.eye(6)
        assert not _doubling.is_stable(a, discrete=discrete)

    @pytest.mark.parametrize("library", [torch, array_api_strict], ids=["torch", "strict"])
    def test_every_library(self, library):
        assert _doubling.is_stable(library.asarray([[0.5, 1e3], [0.0, 0.5]]), discrete=True)
        assert not _doubling.is_stable(library.asarray([[0.5, 0.0], [0.0, 1.0]]), discrete=True)

    def test_edges(self):
        assert _doubling.is_stable(np.zeros((2, 2)), discrete=True)
        assert not _doubling.is_stable(np.zeros((2, 2)), discrete=False)  # an eigenvalue on the boundary
        assert not _doubling.is_stable(np.diag([1e200, 0.0]), discrete=True)
        assert not _doubling.is_stable(np.array([[0.6, 0.8], [-0.8, 0.6]]), discrete=True)
        assert _doubling.is_stable(np.array([[1 - 1e-11]]), discrete=True)
        assert _doubling.is_stable(np.zeros((0, 2, 2)), discrete=True)


class TestErrors:
    @pytest.mark.parametrize(
        "a",
        [
            np.eye(2),
            np.diag([0.5, 1.0]),
            np.diag([0.5, -1.25]),
            np.array([[0.6, 0.8], [-0.8, 0.6]]),
            np.diag([1e200, 0.0]),
            # rounding moves the moduli of its powers away from 1, but not far within 45 doublings
            np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0],
        ],
    )
    def test_unstable_in_discrete_time(self, a):
        with pytest.raises(hsv.UnstableSystemError, match="its powers fell to no limit within 45 doublings"):
            solve(a, np.eye(len(a)), discrete=True)
        with pytest.raises(hsv.UnstableSystemError, match="must be stable for doubling"):
            hsv.solve_lyapunov_factored_by_doubling(a, np.ones((len(a), 1)), discrete=True)

    @pytest.mark.parametrize(
        "a",
        [
            np.zeros((2, 2)),
            np.diag([-1.0, 0.0]),
            np.eye(1),  # equal to the shift
            np.diag([-1.0, 2.0]),
            np.array([[0.0, 3.0], [-3.0, 0.0]]),
            np.diag([1e-3 + 2j, -1.0]),
        ],
    )
    def test_unstable_in_continuous_time(self, a):
        with pytest.raises(hsv.UnstableSystemError, match=r"stable|negative real part"):
            solve(a, np.eye(len(a)), discrete=False)
        with pytest.raises(hsv.UnstableSystemError, match=r"stable|negative real part"):
            hsv.solve_lyapunov_factored_by_doubling(a, np.ones((len(a), 1)), discrete=False)

    def test_the_system_of_a_batch_is_named(self):
        a = np.stack([0.5 * np.eye(2), 1.5 * np.eye(2)])
        with pytest.raises(hsv.UnstableSystemError, match=r"system \(1,\)"):
            solve(a, np.eye(2), discrete=True)
        with pytest.raises(hsv.UnstableSystemError, match=r"system \(1,\)"):
            solve(np.stack([-np.eye(2), np.zeros((2, 2))]), np.eye(2), discrete=False)

    def test_bad_arguments_are_named(self):
        with pytest.raises(hsv.ShapeError, match=r"q must have shape \(\.\.\., 2, 2\)"):
            hsv.solve_discrete_lyapunov_by_doubling(np.eye(2) / 2, np.eye(3))
        with pytest.raises(hsv.ShapeError, match=r"b must have shape \(\.\.\., 2, m\)"):
            hsv.solve_lyapunov_factored_by_doubling(np.eye(2) / 2, np.eye(3), discrete=True)
        with pytest.raises(hsv.NonFiniteError, match="a must be finite"):
            hsv.solve_continuous_lyapunov_by_doubling([[np.nan]], [[1.0]])
