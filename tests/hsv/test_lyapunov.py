import array_api_strict
import control
import mpmath
import numpy as np
import pytest
import scipy.linalg
import slycot
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import to_host
from tests.hsv import exact_dense
from tests.hsv import reference_systems as known
from tests.hsv.exact import heat_equation_hankel_values
from tests.tolerances import tolerance


def adjoint(x):
    return np.swapaxes(x, -1, -2).conj()


def draw(rng, shape, complex_):
    return known.complex_normal(rng, shape) if complex_ else rng.normal(size=shape)


def norm(x):
    return np.linalg.norm(x, axis=(-2, -1))


def stein_residual(a, x, q):
    """Relative to the size of its terms: a small multiple of the unit roundoff for a backward stable solver."""
    return np.max(norm(a @ x @ adjoint(a) - x + q) / ((1 + norm(a) ** 2) * norm(x)), initial=0.0)


def lyapunov_residual(a, x, q):
    return np.max(norm(a @ x + x @ adjoint(a) - q) / (2 * norm(a) * norm(x)), initial=0.0)


def sylvester_residual(a, b, x, q):
    return np.max(norm(a @ x + x @ b - q) / ((norm(a) + norm(b)) * norm(x)), initial=0.0)


def by_kronecker(a, q, *, discrete):
    """The equation as one linear system, the plain way."""
    n = a.shape[-1]
    if discrete:
        operator = np.eye(n * n) - np.kron(a, a.conj())
        return np.linalg.solve(operator, q.reshape(-1)).reshape(n, n)
    operator = np.kron(a, np.eye(n)) + np.kron(np.eye(n), a.conj())
    return np.linalg.solve(operator, q.reshape(-1)).reshape(n, n)


shapes = {"n": st.integers(1, 8), "batch": st.sampled_from([(), (1,), (3,), (2, 2)])}
kinds = {"complex_a": st.booleans(), "complex_q": st.booleans(), "seed": st.integers(0, 2**20)}


class TestResiduals:
    @given(**shapes, **kinds)
    def test_discrete(self, n, batch, complex_a, complex_q, seed):
        rng = np.random.default_rng(seed)
        a, q = draw(rng, (*batch, n, n), complex_a), draw(rng, (*batch, n, n), complex_q)
        x = hsv.solve_discrete_lyapunov(a, q)
        assert x.dtype == np.result_type(a, q)
        assert stein_residual(a, x, q) < tolerance(float, factor=50)

    @given(**shapes, **kinds)
    def test_continuous(self, n, batch, complex_a, complex_q, seed):
        rng = np.random.default_rng(seed)
        a, q = draw(rng, (*batch, n, n), complex_a), draw(rng, (*batch, n, n), complex_q)
        x = hsv.solve_continuous_lyapunov(a, q)
        assert x.dtype == np.result_type(a, q)
        assert lyapunov_residual(a, x, q) < tolerance(float, factor=50)

    @given(m=st.integers(1, 8), complex_b=st.booleans(), **shapes, **kinds)
    def test_sylvester(self, n, m, batch, complex_a, complex_b, complex_q, seed):
        rng = np.random.default_rng(seed)
        a, b, q = (
            draw(rng, (*batch, n, n), complex_a),
            draw(rng, (m, m), complex_b),
            draw(rng, (*batch, n, m), complex_q),
        )
        x = hsv.solve_sylvester(a, b, q)
        assert x.dtype == np.result_type(a, b, q)
        assert sylvester_residual(a, b, x, q) < tolerance(float, factor=50)

    @given(m=st.integers(0, 12), discrete=st.booleans(), damping=st.sampled_from([0.5, 1e-2, 1e-6]), **shapes, **kinds)
    def test_factored(self, n, m, batch, complex_a, complex_q, discrete, damping, seed):
        rng = np.random.default_rng(seed)
        dt = True if discrete else 0
        a = known.random_stable(rng, n, 1, 1, dt=dt, complex_=complex_a, batch=batch, damping=damping).A
        b = draw(rng, (*batch, n, m), complex_q)
        factor = hsv.solve_lyapunov_factored(a, b, discrete=discrete)
        assert factor.shape == a.shape
        assert factor.dtype == np.result_type(a, b)
        x = factor @ adjoint(factor)
        if m == 0:
            np.testing.assert_array_equal(x, 0)
        elif discrete:
            assert stein_residual(a, x, b @ adjoint(b)) < tolerance(float, factor=50)
        else:
            assert lyapunov_residual(a, x, -b @ adjoint(b)) < tolerance(float, factor=50)


class TestPrintedAnswers:
    def test_sb03od(self):
        reference = known.slicot_sb03od()
        np.testing.assert_allclose(hsv.solve_continuous_lyapunov(reference.a, reference.q), reference.x, rtol=1e-12)
        factor = hsv.solve_lyapunov_factored(reference.a, known.slicot_sb03od_factor(), discrete=False)
        np.testing.assert_allclose(factor @ factor.T, reference.x, rtol=1e-12)

    def test_sb03md(self):
        reference = known.slicot_sb03md()
        np.testing.assert_allclose(hsv.solve_discrete_lyapunov(reference.a, reference.q), reference.x, atol=1e-13)

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("n", [2, 10, 20])
    def test_benchmark_family(self, n, discrete):
        a, b, x = known.lyapunov_benchmark(n, discrete=discrete)
        factor = hsv.solve_lyapunov_factored(a, b, discrete=discrete)
        q = b @ b.T
        plain = hsv.solve_discrete_lyapunov(a, q) if discrete else hsv.solve_continuous_lyapunov(a, -q)
        # The eigenvectors' condition is 1.5^(n-1), squared in the solution: 1e7 for n = 20.
        limit = tolerance(float) * 1.5 ** (2 * n)
        assert norm(factor @ factor.T - x) <= limit * norm(x)
        assert norm(plain - x) <= limit * norm(x)


class TestPeers:
    @pytest.mark.parametrize("n", [1, 4, 9])
    def test_scipy(self, n, rng):
        a, b, q = rng.normal(size=(n, n)), rng.normal(size=(3, 3)), rng.normal(size=(n, n))
        for ours, theirs in (
            (hsv.solve_continuous_lyapunov(a, q), scipy.linalg.solve_continuous_lyapunov(a, q)),
            (hsv.solve_discrete_lyapunov(a, q), scipy.linalg.solve_discrete_lyapunov(a, q, method="direct")),
            (
                hsv.solve_sylvester(a, b, q[:, :1] @ np.ones((1, 3))),
                scipy.linalg.solve_sylvester(a, b, q[:, :1] @ np.ones((1, 3))),
            ),
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max())

    def test_real_a_with_complex_q_where_scipy_is_wrong(self, rng):
        """Issue 26177 of SciPy, its Sylvester solver too: a real Schur form, with blocks of two, goes to a solver for triangular ones."""
        a = rng.normal(size=(6, 6)) + 3 * np.kron(np.eye(3), [[0, 1], [-1, 0]])
        assert np.abs(np.linalg.eigvals(a).imag).max() > 1  # without pairs of eigenvalues SciPy is right
        q, b = known.complex_normal(rng, (6, 6)), rng.normal(size=(6, 6))
        exact = by_kronecker(a, q, discrete=True)
        np.testing.assert_allclose(hsv.solve_discrete_lyapunov(a, q), exact, atol=1e-11 * np.abs(exact).max())
        exact = by_kronecker(a, q, discrete=False)
        np.testing.assert_allclose(hsv.solve_continuous_lyapunov(a, q), exact, atol=1e-11 * np.abs(exact).max())
        exact = np.linalg.solve(np.kron(a, np.eye(6)) + np.kron(np.eye(6), b.T), q.reshape(-1)).reshape(6, 6)
        np.testing.assert_allclose(hsv.solve_sylvester(a, b, q), exact, atol=1e-11 * np.abs(exact).max())

    @pytest.mark.parametrize("dt", [0, True])
    def test_python_control_and_slicot(self, dt, rng):
        sys = known.random_stable(rng, 8, 2, 2, dt=dt)
        q = sys.B @ sys.B.T
        theirs = control.dlyap(sys.A, q) if dt else control.lyap(sys.A, q)
        factor = hsv.solve_lyapunov_factored(sys.A, sys.B, discrete=bool(dt))
        np.testing.assert_allclose(factor @ factor.T, theirs, atol=1e-12 * np.abs(theirs).max())
        wide = rng.normal(size=(8, 20))  # python-control's own factored Gramian crashes with more inputs than states
        factor = hsv.solve_lyapunov_factored(sys.A, wide, discrete=bool(dt))
        theirs = control.dlyap(sys.A, wide @ wide.T) if dt else control.lyap(sys.A, wide @ wide.T)
        np.testing.assert_allclose(factor @ factor.T, theirs, atol=1e-12 * np.abs(theirs).max())

    @pytest.mark.parametrize("n", [50, 100])
    def test_factors_keep_as_many_hankel_values_as_slicot(self, n):
        """A heat equation, whose values fall below 1e-100: both must lose track at about the same index."""
        reference = known.heat_equation(n)
        exact = heat_equation_hankel_values(n)
        lc = hsv.solve_lyapunov_factored(reference.A, reference.B, discrete=False)
        lo = hsv.solve_lyapunov_factored(reference.A.T, reference.C.T, discrete=False)
        both = hsv.hankel_singular_values(reference.system())
        peer = slycot.ab09ad("C", "B", "N", n, 1, 1, reference.A, reference.B, reference.C, nr=1, tol=0)[4]

        def first_wrong(values, relative):
            return int(np.argmax(np.append(np.abs(values - exact) > relative * exact, True)))

        for ours in (np.linalg.svd(lo.T @ lc, compute_uv=False), both):
            for relative in (1e-8, 1e-2):
                # two values more or less are the luck of the rounding errors
                assert first_wrong(ours, relative) >= first_wrong(peer, relative) - 2
            assert np.abs(ours - exact).max() <= 2 * np.abs(peer - exact).max()


class TestRealSchurForm:
    """Real systems stay real, with blocks of two where the poles are complex; ``1j * b`` has the Gramian of ``b`` and takes the complex way."""

    @given(m=st.integers(1, 12), discrete=st.booleans(), damping=st.sampled_from([0.5, 1e-2, 1e-6]), **shapes)
    def test_real_and_complex_arithmetic_agree(self, n, m, batch, discrete, damping):
        rng = np.random.default_rng(100 * n + m)
        a = known.random_stable(rng, n, 1, 1, dt=True if discrete else 0, batch=batch, damping=damping).A
        b = rng.normal(size=(*batch, n, m))
        real, other = (hsv.solve_lyapunov_factored(a, x, discrete=discrete) for x in (b, 1j * b))
        assert real.dtype == np.float64
        assert other.dtype == np.complex128
        x, y = real @ adjoint(real), other @ adjoint(other)
        # the poles move by a rounding error of `a`, which is that share of their distance from the boundary
        assert np.all(norm(x - y) <= tolerance(float) / damping * norm(x))

    @pytest.mark.parametrize("size", [1e-300, 1e-20, 1e-9])
    @pytest.mark.parametrize("discrete", [True, False])
    def test_tiny_imaginary_parts_change_little(self, discrete, size, rng):
        sys = known.random_stable(rng, 7, 2, 2, dt=True if discrete else 0)
        shifted = sys.A + 1j * size * rng.normal(size=(7, 7)), sys.B + 0j
        x, y = (
            factor @ adjoint(factor)
            for factor in (hsv.solve_lyapunov_factored(*ab, discrete=discrete) for ab in ((sys.A, sys.B), shifted))
        )
        assert norm(x - y) <= (tolerance(float) + 1e3 * size) * norm(x)

    @pytest.mark.parametrize("complex_", [False, True])
    def test_sizes_for_which_the_schur_form_has_one_state_more(self, complex_, rng):
        """128 states: the result is that of LAPACK without the decoupled one, which keeps columns off the same lines of the cache."""
        a = draw(rng, (128, 128), complex_) / 12 - 2 * np.eye(128)
        b = draw(rng, (128, 2), complex_)
        factor = hsv.solve_lyapunov_factored(a, b, discrete=False)
        assert lyapunov_residual(a, factor @ adjoint(factor), -b @ adjoint(b)) < tolerance(float)
        permuted = np.roll(np.roll(np.triu(a), 5, 0), 5, 1)  # LAPACK's balancing has something to set aside in it, too
        factor = hsv.solve_lyapunov_factored(permuted - 4 * np.eye(128), b, discrete=False)
        residual = lyapunov_residual(permuted - 4 * np.eye(128), factor @ adjoint(factor), -b @ adjoint(b))
        assert residual < tolerance(float)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_nearly_equal_poles_keep_the_digits_that_slicot_loses(self, discrete):
        """Jordan blocks in orthogonal coordinates: rounding makes pairs of poles a +- i f with f near 1e-8, whose Gramian is nearly singular.

        AB09AD loses digits there in continuous time; its discrete solver does not.
        """
        worst_ours, worst_peer = 0.0, 0.0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            couplings = np.diag(rng.normal(size=6) * rng.integers(2, size=6), 1)
            q = np.linalg.qr(rng.normal(size=(7, 7)))[0]
            a, b, c = q @ (couplings - 0.5 * np.eye(7)) @ q.T, rng.normal(size=(7, 2)), rng.normal(size=(3, 7))
            a = a + np.eye(7) if discrete else a
            exact = exact_dense.hankel_values(a, b, c, discrete=discrete)
            ours = hsv.hankel_singular_values(hsv.StateSpace(a, b, c, dt=True if discrete else 0))
            peer = slycot.ab09ad("D" if discrete else "C", "B", "N", 7, 2, 3, a, b, c, nr=1, tol=0)[4]
            worst_ours = max(worst_ours, np.abs(ours - exact).max() / exact[0])
            worst_peer = max(worst_peer, np.abs(peer - exact).max() / exact[0])
        assert worst_ours < tolerance(float, factor=1e4)
        if not discrete:
            assert worst_peer > 1e3 * worst_ours


class TestFiftyDigits:
    """Ill-conditioned equations against linear systems solved with 50 digits: the error is what perturbing `a` by rounding explains."""

    @staticmethod
    def solve(a, q, *, discrete):
        with mpmath.workdps(50):
            n = len(a)
            operator, right = mpmath.zeros(n * n), mpmath.zeros(n * n, 1)
            for i in range(n):
                for j in range(n):
                    right[i * n + j] = mpmath.mpmathify(complex(q[i, j]))
                    for k in range(n):
                        for h in range(n):
                            left, right_factor = (
                                mpmath.mpmathify(complex(a[i, k])),
                                mpmath.mpmathify(complex(a[j, h])).conjugate(),
                            )
                            if discrete:
                                term = ((i, j) == (k, h)) - left * right_factor
                            else:
                                term = left * (j == h) + right_factor * (i == k)
                            operator[i * n + j, k * n + h] = term
            x = mpmath.lu_solve(operator, right)
            return np.array([[complex(x[i * n + j]) for j in range(n)] for i in range(n)])

    def test_close_to_the_unit_circle(self, rng):
        for gap in (1e-3, 1e-7):
            a = np.array([[1 - gap, 1.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, -1 + 2 * gap]])
            b = rng.normal(size=(3, 1))
            exact = self.solve(a, b @ b.T, discrete=True)
            factor = hsv.solve_lyapunov_factored(a, b, discrete=True)
            limit = tolerance(float) / gap  # a rounding error in `a` moves the pole by that much of its distance
            assert norm(factor @ factor.T - exact) <= limit * norm(exact)
            assert norm(hsv.solve_discrete_lyapunov(a, b @ b.T) - exact) <= limit * norm(exact)

    def test_non_normal(self, rng):
        a = np.triu(1e4 * rng.normal(size=(4, 4)), 1) - np.diag([1.0, 2.0, 2.0, 3.0])
        b = known.complex_normal(rng, (4, 1))
        exact = self.solve(a, -b @ adjoint(b), discrete=False)
        factor = hsv.solve_lyapunov_factored(a, b, discrete=False)
        assert norm(factor @ adjoint(factor) - exact) <= tolerance(float) * norm(exact)
        # each direction on its own scale: what the plain solution could not keep
        scale = 1 / np.sqrt(np.diag(exact).real)
        error = scale[:, None] * (factor @ adjoint(factor) - exact) * scale
        assert np.abs(error).max() < 1e-10

    def test_graded(self):
        """`P` has condition 1e24; the factor's smallest row still has most of its digits."""
        a, b = np.diag([-1.0, -2.0, -3.0]), np.array([[1.0], [1e-6], [1e-12]])
        exact = self.solve(a, -b @ b.T, discrete=False).real
        factor = hsv.solve_lyapunov_factored(a, b, discrete=False)
        np.testing.assert_allclose(factor @ factor.T, exact, rtol=1e-12)


class TestSpecialMatrices:
    @pytest.mark.parametrize("n", [2, 5, 12])
    def test_jordan_block(self, n, rng):
        q = known.complex_normal(rng, (n, n))
        a = 0.5 * np.eye(n) + np.eye(n, k=1)
        assert stein_residual(a, hsv.solve_discrete_lyapunov(a, q), q) < tolerance(float)
        a = -0.5 * np.eye(n) + np.eye(n, k=1)
        assert lyapunov_residual(a, hsv.solve_continuous_lyapunov(a, q), q) < tolerance(float)
        b = rng.normal(size=(n, 1))
        factor = hsv.solve_lyapunov_factored(a, b, discrete=False)
        assert factor.dtype == np.float64
        assert lyapunov_residual(a, factor @ factor.T, -b @ b.T) < tolerance(float)

    def test_zero_matrix_and_nilpotent_matrix(self):
        q = np.array([[4.0, 2.0], [2.0, 9.0]])
        np.testing.assert_array_equal(hsv.solve_discrete_lyapunov(np.zeros((2, 2)), q), q)
        np.testing.assert_allclose(hsv.solve_discrete_lyapunov([[0.0, 1.0], [0.0, 0.0]], q), [[13.0, 2.0], [2.0, 9.0]])
        factor = hsv.solve_lyapunov_factored([[0.0, 1.0], [0.0, 0.0]], [[0.0], [3.0]], discrete=True)
        np.testing.assert_allclose(factor @ factor.T, 9 * np.eye(2), atol=1e-15)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_no_input_and_states_that_no_input_reaches(self, discrete):
        a = np.diag([0.5, 0.25]) if discrete else np.diag([-0.5, -0.25])
        np.testing.assert_array_equal(hsv.solve_lyapunov_factored(a, np.zeros((2, 3)), discrete=discrete), 0)
        factor = hsv.solve_lyapunov_factored(a, [[1.0], [0.0]], discrete=discrete)
        np.testing.assert_array_equal(factor[1], 0)
        assert factor[0] @ factor[0] == pytest.approx(4 / 3 if discrete else 1)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_extreme_sizes_of_the_input(self, discrete, rng):
        sys = known.random_stable(rng, 5, 2, 1, dt=True if discrete else 0)
        factor = hsv.solve_lyapunov_factored(sys.A, sys.B, discrete=discrete)
        for scale in (2.0**-1000, 2.0**1000):  # the squares underflow or overflow; a power of two changes no digit
            scaled = hsv.solve_lyapunov_factored(sys.A, sys.B * scale, discrete=discrete)
            np.testing.assert_allclose(scaled / scale, factor, rtol=1e-13, atol=0)
        # a number without a normalised form holds fewer digits
        smallest = hsv.solve_lyapunov_factored(sys.A, np.full((5, 1), 2.0**-1060), discrete=discrete)
        plain = hsv.solve_lyapunov_factored(sys.A, np.ones((5, 1)), discrete=discrete)
        np.testing.assert_allclose(smallest * 2.0**1000 * 2.0**60, plain, atol=1e-3)

    @given(**shapes, **kinds)
    def test_hermitian_right_hand_side_gives_an_exactly_hermitian_solution(self, n, batch, complex_a, complex_q, seed):
        rng = np.random.default_rng(seed)
        a, q = draw(rng, (*batch, n, n), complex_a), draw(rng, (*batch, n, n), complex_q)
        q = q + adjoint(q)
        for x in (hsv.solve_discrete_lyapunov(a, q), hsv.solve_continuous_lyapunov(a, q)):
            np.testing.assert_array_equal(x, adjoint(x))


class TestArrays:
    def test_a_batch_is_its_systems_one_by_one(self, rng):
        a, q = rng.normal(size=(2, 1, 5, 5)), known.complex_normal(rng, (3, 5, 5))
        b = rng.normal(size=(3, 3))
        x, y = hsv.solve_discrete_lyapunov(a, q), hsv.solve_sylvester(a, b, q[..., :3])
        assert x.shape == (2, 3, 5, 5)
        for i, j in np.ndindex(2, 3):
            np.testing.assert_allclose(x[i, j], hsv.solve_discrete_lyapunov(a[i, 0], q[j]), rtol=1e-10)
            np.testing.assert_allclose(y[i, j], hsv.solve_sylvester(a[i, 0], b, q[j, :, :3]), rtol=1e-10)
        assert hsv.solve_continuous_lyapunov(a[:0], q).shape == (0, 3, 5, 5)
        assert hsv.solve_lyapunov_factored(a[:0], q, discrete=True).shape == (0, 3, 5, 5)

    @pytest.mark.parametrize("library", [np, torch, array_api_strict], ids=["numpy", "torch", "strict"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
    def test_library_and_precision_are_kept_and_inputs_unchanged(self, library, dtype, rng):
        sys = known.random_stable(rng, 4, 2, 1, dt=True, complex_=dtype.startswith("complex"))
        host = [np.asarray(x, dtype=dtype) for x in (0.5 * sys.A, sys.B, sys.A + np.eye(4))]
        a, b, q = (library.asarray(x.tolist(), dtype=getattr(library, dtype)) for x in host)
        results = [
            hsv.solve_discrete_lyapunov(a, q),
            hsv.solve_continuous_lyapunov(a, q),
            hsv.solve_sylvester(a, a, q),
            hsv.solve_lyapunov_factored(a, b, discrete=True),
        ]
        for x in results:
            assert type(x) is type(a)
            assert x.dtype == getattr(library, dtype)
        for x, before in zip((a, b, q), host, strict=True):
            np.testing.assert_array_equal(to_host(x), before)
        a_, b_, q_ = (x.astype(np.result_type(x, np.float64)) for x in host)
        wanted = [
            hsv.solve_discrete_lyapunov(a_, q_),
            hsv.solve_continuous_lyapunov(a_, q_),
            hsv.solve_sylvester(a_, a_, q_),
            hsv.solve_lyapunov_factored(a_, b_, discrete=True),
        ]
        for x, w in zip(results, wanted, strict=True):  # computed in double precision and rounded once
            np.testing.assert_array_equal(to_host(x), w.astype(dtype))

    def test_complex_matrices_that_are_real_get_the_real_answer(self, rng):
        sys = known.random_stable(rng, 6, 2, 1, dt=True)
        real = hsv.solve_lyapunov_factored(sys.A, sys.B, discrete=True)
        complex_ = hsv.solve_lyapunov_factored(sys.A + 0j, sys.B + 0j, discrete=True)
        assert complex_.dtype == np.complex128
        np.testing.assert_array_equal(real, complex_)


SQUARE = np.eye(2) / 2


class TestErrors:
    @pytest.mark.parametrize(
        "a",
        [
            np.eye(2),  # 1 * 1
            np.diag([2.0, 0.5]),  # 2 * 0.5
            np.array([[0.6, 0.8], [-0.8, 0.6]]),  # a rotation
            np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0],
        ],
    )
    def test_singular_discrete_equation(self, a):
        with pytest.raises(hsv.IllConditionedError, match=r"l_i conj\(l_j\) = 1"):
            hsv.solve_discrete_lyapunov(a, np.eye(len(a)))

    @pytest.mark.parametrize(
        "a",
        [
            np.zeros((2, 2)),
            np.diag([1.0, -1.0]),
            np.array([[0.0, 3.0], [-3.0, 0.0]]),
            np.array([[1.0, 2.0], [2.0, 4.0]]),  # eigenvalue 0, not exactly so in floating point
            np.diag([1e8j, -3.0]),
        ],
    )
    def test_singular_continuous_equation(self, a):
        with pytest.raises(hsv.IllConditionedError, match=r"l_i \+ conj\(l_j\) = 0"):
            hsv.solve_continuous_lyapunov(a, np.eye(len(a)))

    def test_singular_sylvester_equation_of_a_batch_names_the_system(self):
        a = np.array([[[1.0]], [[2.0]]])
        with pytest.raises(hsv.IllConditionedError, match=r"a and -b.*system \(1,\).*singular"):
            hsv.solve_sylvester(a, [[-2.0]], [[1.0]])

    def test_stiff_equations_are_not_called_singular(self):
        np.testing.assert_allclose(
            hsv.solve_continuous_lyapunov(np.diag([-1e7, -1e-7]), -2 * np.eye(2)), np.diag([1e-7, 1e7])
        )

    @pytest.mark.parametrize(
        ("a", "discrete", "message"),
        [
            (np.diag([0.5, 1.0]), True, "spectral radius 1 .*must be below 1"),
            (np.diag([0.5, -1.25]), True, "spectral radius 1.25 .*eigenvalue -1.25"),
            (np.diag([-1.0, 0.0]), False, "spectral abscissa 0 .*must be below 0"),
            (np.stack([-SQUARE, SQUARE]), False, r"spectral abscissa 0.5 \(system \(1,\)"),
        ],
    )
    def test_unstable_systems_have_no_factor(self, a, discrete, message):
        with pytest.raises(hsv.UnstableSystemError, match=message):
            hsv.solve_lyapunov_factored(a, np.ones((2, 1)), discrete=discrete)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda: hsv.solve_discrete_lyapunov(np.ones((2, 3)), SQUARE),
                hsv.ShapeError,
                r"a must have shape \(\.\.\., n, n\)",
            ),
            (
                lambda: hsv.solve_discrete_lyapunov(SQUARE, np.eye(3)),
                hsv.ShapeError,
                r"q must have shape \(\.\.\., 2, 2\).*got \(3, 3\)",
            ),
            (lambda: hsv.solve_continuous_lyapunov(SQUARE, np.ones(2)), hsv.ShapeError, "q must have shape"),
            (lambda: hsv.solve_sylvester(SQUARE, np.ones((1, 2)), SQUARE), hsv.ShapeError, "b must have shape"),
            (
                lambda: hsv.solve_sylvester(SQUARE, np.eye(3), SQUARE),
                hsv.ShapeError,
                r"q must have shape \(\.\.\., 2, 3\)",
            ),
            (
                lambda: hsv.solve_lyapunov_factored(SQUARE, np.ones((3, 1)), discrete=True),
                hsv.ShapeError,
                r"b must have shape \(\.\.\., 2, m\)",
            ),
            (lambda: hsv.solve_discrete_lyapunov(np.empty((0, 0)), np.empty((0, 0))), hsv.ShapeError, "n >= 1"),
            (
                lambda: hsv.solve_discrete_lyapunov(np.stack([SQUARE] * 2), np.stack([SQUARE] * 3)),
                hsv.ShapeError,
                "broadcast",
            ),
            (
                lambda: hsv.solve_discrete_lyapunov([[np.nan]], [[1.0]]),
                hsv.NonFiniteError,
                r"a must be finite, found nan at index \(0, 0\)",
            ),
            (lambda: hsv.solve_continuous_lyapunov([[1.0]], [[np.inf]]), hsv.NonFiniteError, "q must be finite"),
            (
                lambda: hsv.solve_lyapunov_factored([[0.5]], [[np.nan]], discrete=True),
                hsv.NonFiniteError,
                "b must be finite",
            ),
            (lambda: hsv.solve_discrete_lyapunov([["x"]], [[1.0]]), hsv.DtypeError, "a must be an array of numbers"),
            (lambda: hsv.solve_discrete_lyapunov(np.eye(2), torch.eye(2)), hsv.DtypeError, "one array library"),
        ],
    )
    def test_bad_arguments_are_named(self, call, error, message):
        with pytest.raises(error, match=message):
            call()

    def test_discrete_has_no_default(self):
        with pytest.raises(TypeError, match="discrete"):
            hsv.solve_lyapunov_factored(SQUARE, SQUARE)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_stable_systems_in_bad_units_are_solved(discrete, complex_):
    """Units of 1e+-8 for each state change the solution by their products, and nothing else."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, q = (rng.normal(size=(6, 6)) + 1j * complex_ * rng.normal(size=(6, 6)) for _ in range(2))
        a, q = (a, q) if complex_ else (a.real, q.real)
        poles = np.linalg.eigvals(a)
        a = a / (1.2 * np.abs(poles).max()) if discrete else a - (poles.real.max() + 0.5) * np.eye(6)
        q = q + q.conj().T
        units = 2.0 ** rng.integers(-27, 28, 6)
        solve = hsv.solve_discrete_lyapunov if discrete else hsv.solve_continuous_lyapunov
        expected = solve(a, q)
        found = solve(a * units[:, None] / units, q * units[:, None] * units) / (units[:, None] * units)
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
