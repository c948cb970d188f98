import array_api_strict
import mpmath
import numpy as np
import pytest
import scipy.linalg
import slycot
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import device, to_host
from tests.hsv import reference_systems as known
from tests.hsv.exact import diagonal_hankel_values
from tests.hsv.test_lyapunov import adjoint, draw, kinds, norm, shapes
from tests.tolerances import tolerance


def residual(a, e, x, q, *, discrete):
    """Relative to the size of its terms; `q` with the sign of each solver."""
    if discrete:
        terms = norm(a) ** 2 + norm(e) ** 2
        return np.max(norm(a @ x @ adjoint(a) - e @ x @ adjoint(e) + q) / (terms * norm(x)), initial=0.0)
    return np.max(norm(a @ x @ adjoint(e) + e @ x @ adjoint(a) - q) / (2 * norm(a) * norm(e) * norm(x)), initial=0.0)


def solve(a, e, q, *, discrete):
    if discrete:
        return hsv.solve_generalized_discrete_lyapunov(a, e, q)
    return hsv.solve_generalized_continuous_lyapunov(a, e, q)


def mass_and_stiffness(n):
    """Linear finite elements on `n` inner points of a rod with cold ends: ``M x' = -K x + B u``, and the sine modes of both matrices."""
    h = 1 / (n + 1)
    neighbours = np.eye(n, k=1) + np.eye(n, k=-1)
    mass, stiffness = h / 6 * (4 * np.eye(n) + neighbours), (2 * np.eye(n) - neighbours) / h
    angle = np.arange(1, n + 1) * np.pi * h
    modes = np.sqrt(2 * h) * np.sin(np.outer(np.arange(1, n + 1), angle))
    return mass, stiffness, modes, h / 3 * (2 + np.cos(angle)), 2 / h * (1 - np.cos(angle))


class TestEquations:
    @given(discrete=st.booleans(), complex_e=st.booleans(), **shapes, **kinds)
    def test_residuals(self, n, batch, complex_a, complex_q, complex_e, discrete, seed):
        rng = np.random.default_rng(seed)
        a, e = draw(rng, (*batch, n, n), complex_a), draw(rng, (n, n), complex_e)
        q = draw(rng, (*batch, n, n), complex_q)
        x = solve(a, e, q, discrete=discrete)
        assert x.dtype == np.result_type(a, e, q)
        assert residual(a, e, x, q, discrete=discrete) < tolerance(float)
        hermitian = solve(a, e, q + adjoint(q), discrete=discrete)
        np.testing.assert_array_equal(hermitian, adjoint(hermitian))

    def test_sg03ad(self):
        """Printed result of SLICOT's example program of SG03AD: A^T X E + E^T X A = Y."""
        a = np.array([[3.0, 1, 1], [1, 3, 0], [1, 0, 2]])
        e = np.array([[1.0, 3, 0], [3, 2, 1], [1, 0, 1]])
        y = np.array([[-64.0, -73, -28], [-73, -70, -25], [-28, -25, -18]])
        x = hsv.solve_generalized_continuous_lyapunov(a.T, e.T, y)
        np.testing.assert_allclose(x, [[-2, -1, 0], [-1, -3, -1], [0, -1, -3]], atol=1e-13)

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("n", [1, 5, 20])
    def test_slicot(self, n, discrete, rng):
        a, e, b = rng.normal(size=(n, n)), rng.normal(size=(n, n)) + 3 * np.eye(n), rng.normal(size=(n, 2))
        y = b @ b.T
        arguments = ("D" if discrete else "C", "X", "N", "T", "U", n, a.copy(), e.copy(), np.eye(n), np.eye(n))
        _, _, _, _, theirs, scale, *_ = slycot.sg03ad(*arguments, y.copy(), ldwork=2 * n * n + 8 * n + 16)
        ours = solve(a, e, -y if discrete else y, discrete=discrete)
        np.testing.assert_allclose(ours, theirs / scale, atol=1e-11 * np.abs(ours).max())

    def test_the_identity_gives_the_plain_equations(self, rng):
        a, q = rng.normal(size=(2, 5, 5)), known.complex_normal(rng, (5, 5))
        for discrete, plain in ((True, hsv.solve_discrete_lyapunov), (False, hsv.solve_continuous_lyapunov)):
            expected = plain(a, q)
            found = solve(a, np.eye(5), q, discrete=discrete)
            np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())

    def test_an_ill_conditioned_e_costs_the_residual_nothing(self, rng):
        """cond(E) = 1e11: by E^{-1} the residual would be that much larger than rounding, and is."""
        n = 8
        u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
        e, a = u @ np.diag(np.logspace(0, -11, n)) @ v, rng.normal(size=(n, n))
        q = np.eye(n)
        x = hsv.solve_generalized_continuous_lyapunov(a, e, q)
        assert residual(a, e, x, q, discrete=False) < tolerance(float)
        inverse = np.linalg.inv(e)
        plain = hsv.solve_continuous_lyapunov(inverse @ a, inverse @ q @ inverse.T)
        assert residual(a, e, plain, q, discrete=False) > 100 * residual(a, e, x, q, discrete=False)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_a_real_pencil_is_solved_as_the_complex_one(self, discrete, rng):
        """Real pencils take the real QZ algorithm: one with pairs of eigenvalues, real ones, and repeated ones."""
        a, e = rng.normal(size=(3, 9, 9)), rng.normal(size=(3, 9, 9))
        a[1] = np.diag(np.arange(1.5, 10)) + np.triu(a[1], 1)
        a[2] = np.kron(np.eye(3), a[2, :3, :3])
        e[1:] = np.eye(9)
        q = rng.normal(size=(9, 9))
        expected = solve(a + 0j, e, q, discrete=discrete)
        found = solve(a, e, q, discrete=discrete)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())

    def test_a_singular_e_is_no_obstacle_in_discrete_time(self):
        x = hsv.solve_generalized_discrete_lyapunov(2 * np.eye(2), np.diag([1.0, 0.0]), np.eye(2))
        np.testing.assert_allclose(x, np.diag([-1 / 3, -1 / 4]))

    @pytest.mark.parametrize(
        ("a", "e"),
        [
            (np.eye(2), np.diag([1.0, 0.0])),
            (np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 2.0], [2.0, 4.0]])),
            (np.diag([1.0, -2.0]), np.diag([1.0, 2.0])),
            (np.zeros((2, 2)), np.eye(2)),
        ],
    )
    def test_singular_continuous_equations(self, a, e):
        with pytest.raises(hsv.IllConditionedError, match=r"e must be invertible, and no two eigenvalues.*is singular"):
            hsv.solve_generalized_continuous_lyapunov(a, e, np.eye(2))

    def test_singular_discrete_equations(self):
        for a, e in ((np.eye(2), np.eye(2)), (np.diag([4.0, 1.0]), np.diag([2.0, 2.0])), (np.diag([0.0, 1.0]),) * 2):
            with pytest.raises(hsv.IllConditionedError, match=r"l_i conj\(l_j\) = 1"):
                hsv.solve_generalized_discrete_lyapunov(a, e, np.eye(2))

    @pytest.mark.parametrize("library", [np, torch, array_api_strict], ids=["numpy", "torch", "strict"])
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    def test_library_and_precision_are_kept_and_inputs_unchanged(self, library, dtype, rng):
        host = [draw(rng, (2, 4, 4), dtype.startswith("complex")).astype(dtype) for _ in range(3)]
        arrays = [library.asarray(x.tolist(), dtype=getattr(library, dtype)) for x in host]
        wide = [x.astype(np.result_type(x, np.float64)) for x in host]
        for discrete in (True, False):
            x = solve(*arrays, discrete=discrete)
            assert type(x) is type(arrays[0])
            np.testing.assert_array_equal(to_host(x), solve(*wide, discrete=discrete).astype(dtype))
        for array, before in zip(arrays, host, strict=True):
            np.testing.assert_array_equal(to_host(array), before)

    def test_an_empty_batch(self):
        assert solve(np.zeros((0, 3, 3)), np.eye(3), np.eye(3), discrete=False).shape == (0, 3, 3)

    def test_bad_arguments_are_named(self):
        one = np.eye(2)
        with pytest.raises(hsv.ShapeError, match=r"e must have shape \(\.\.\., 2, 2\)"):
            hsv.solve_generalized_continuous_lyapunov(one, np.eye(3), one)
        with pytest.raises(hsv.ShapeError, match=r"q must have shape \(\.\.\., 2, 2\)"):
            hsv.solve_generalized_discrete_lyapunov(one, one, np.eye(3))
        with pytest.raises(hsv.NonFiniteError, match="e must be finite"):
            hsv.solve_generalized_discrete_lyapunov(one, one * np.nan, one)


def stable_pencil(rng, n, *, discrete, complex_, condition=None, batch=()):
    """``a = e A`` with a random stable ``A`` and an ``e`` of that condition."""
    plain = known.random_stable(rng, n, 1, 1, dt=True if discrete else 0, complex_=complex_, damping=0.2, batch=batch)
    e = draw(rng, (*batch, n, n), complex_)
    if condition is not None:
        u, _, v = np.linalg.svd(e)
        e = u @ (np.geomspace(1, 1 / condition, n)[:, None] * v)
    return e @ plain.A, e


def exact_factored_residual(a, e, b, L, *, discrete):
    """In 60 digits, relative to the size of the terms."""
    with mpmath.workdps(60):
        a, e, b, L = (mpmath.matrix(x.tolist()) for x in (a, e, b, L))
        P = L * L.H
        rest = a * P * a.H - e * P * e.H + b * b.H if discrete else a * P * e.H + e * P * a.H + b * b.H
        size = [mpmath.mnorm(x, "f") for x in (a, e, P, rest)]
        return float(size[3] / ((size[0] ** 2 + size[1] ** 2 if discrete else 2 * size[0] * size[1]) * size[2]))


class TestFactors:
    @given(
        discrete=st.booleans(),
        complex_=st.booleans(),
        complex_b=st.booleans(),
        m=st.integers(1, 8),
        **shapes,
        seed=kinds["seed"],
    )
    def test_they_solve_the_equation(self, n, m, batch, discrete, complex_, complex_b, seed):
        rng = np.random.default_rng(seed)
        a, e = stable_pencil(rng, n, discrete=discrete, complex_=complex_, batch=batch)
        b = draw(rng, (n, m), complex_b)
        L = hsv.solve_generalized_lyapunov_factored(a, e, b, discrete=discrete)
        assert L.shape == (*batch, n, n)
        assert L.dtype == np.result_type(a, e, b)
        P, q = L @ adjoint(L), b @ adjoint(b)
        assert residual(a, e, P, q if discrete else -q, discrete=discrete) < tolerance(float)

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("condition", [1e2, 1e7, 1e12])
    def test_the_condition_of_e_costs_the_residual_nothing(self, condition, discrete, rng):
        a, e = stable_pencil(rng, 8, discrete=discrete, complex_=True, condition=condition)
        b = rng.normal(size=(8, 2))
        L = hsv.solve_generalized_lyapunov_factored(a, e, b, discrete=discrete)
        assert exact_factored_residual(a, e, b, L, discrete=discrete) < 1e-14

    @pytest.mark.parametrize("discrete", [True, False])
    def test_the_identity_gives_the_plain_factor(self, discrete, rng):
        plain = known.random_stable(rng, 7, 3, 1, dt=True if discrete else 0, damping=0.2)
        expected = hsv.solve_lyapunov_factored(plain.A, plain.B, discrete=discrete)
        L = hsv.solve_generalized_lyapunov_factored(plain.A, np.eye(7), plain.B, discrete=discrete)
        np.testing.assert_allclose(L @ L.T, expected @ expected.T, atol=1e-13 * norm(expected) ** 2)

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("n", [1, 5, 20])
    def test_sg03bd(self, n, discrete, rng):
        """SLICOT's routine of the same method."""
        a, e = stable_pencil(rng, n, discrete=discrete, complex_=False)
        m = min(n, 2)
        b = rng.normal(size=(n, m))
        room = np.hstack([b, np.zeros((n, n - m))])
        U, scale, _ = slycot.sg03bd(
            n,
            m,
            a.copy(),
            e.copy(),
            np.eye(n),
            np.eye(n),
            room,
            "D" if discrete else "C",
            trans="T",
            ldwork=16 * n + 16,
        )
        L = hsv.solve_generalized_lyapunov_factored(a, e, b, discrete=discrete)
        expected = U @ U.T / scale**2
        np.testing.assert_allclose(L @ L.T, expected, atol=1e-11 * np.abs(expected).max())

    @pytest.mark.parametrize("discrete", [True, False])
    def test_small_directions_survive(self, discrete):
        """A diagonal pencil: the closed form has singular values down to 1e-12 of the largest, of which a Gramian would hold the squares."""
        n = 14
        poles = np.linspace(0.1, 0.8, n) if discrete else -np.linspace(1, 8, n)
        scale, weights = np.geomspace(1, 1e-3, n), np.linspace(1, 2, n)
        L = hsv.solve_generalized_lyapunov_factored(
            np.diag(scale * poles), np.diag(scale), (scale * weights)[:, None], discrete=discrete
        )
        sys = hsv.DiagonalStateSpace(poles, weights[:, None], np.ones((1, n)), dt=True if discrete else 0)
        expected = np.linalg.svd(hsv.controllability_factor(sys), compute_uv=False)
        assert expected[-1] < 1e-8 * expected[0]
        np.testing.assert_allclose(np.linalg.svd(L, compute_uv=False), expected, atol=1e-14 * expected[0])

    @pytest.mark.parametrize("discrete", [True, False])
    def test_units_of_equations_and_states_cost_no_digits(self, discrete, rng):
        """Powers of ten that make ``e`` singular by any condition number."""
        a, e = stable_pencil(rng, 5, discrete=discrete, complex_=False)
        b = rng.normal(size=(5, 2))
        expected = hsv.solve_generalized_lyapunov_factored(a, e, b, discrete=discrete)
        equations, states = 10.0 ** np.array([[0], [-14], [9], [3], [-6]]), 10.0 ** np.array([5, -12, 0, 9, -3])
        assert np.linalg.cond(equations * e / states) > 1e20
        L = hsv.solve_generalized_lyapunov_factored(
            equations * a / states, equations * e / states, equations * b, discrete=discrete
        )
        L = L / states[:, None]
        np.testing.assert_allclose(L @ L.T, expected @ expected.T, atol=1e-10 * norm(expected) ** 2)

    def test_no_input_and_huge_ones(self, rng):
        a, e = stable_pencil(rng, 4, discrete=False, complex_=False)
        zero = hsv.solve_generalized_lyapunov_factored(a, e, np.zeros((4, 1)), discrete=False)
        np.testing.assert_array_equal(zero, np.zeros((4, 4)))
        b = rng.normal(size=(4, 2))
        once, huge = (hsv.solve_generalized_lyapunov_factored(a, e, b * x, discrete=False) for x in (1.0, 2.0**700))
        np.testing.assert_array_equal(huge, once * 2.0**700)

    @pytest.mark.parametrize("library", [np, torch, array_api_strict], ids=["numpy", "torch", "strict"])
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    def test_library_and_precision_are_kept_and_inputs_unchanged(self, library, dtype, rng):
        pencil = stable_pencil(rng, 4, discrete=True, complex_=dtype.startswith("complex"), batch=(2,))
        host = [x.astype(dtype) for x in (*pencil, rng.normal(size=(4, 2)))]
        arrays = [library.asarray(x.tolist(), dtype=getattr(library, dtype)) for x in host]
        wide = [x.astype(np.result_type(x, np.float64)) for x in host]
        L = hsv.solve_generalized_lyapunov_factored(*arrays, discrete=True)
        assert type(L) is type(arrays[0])
        expected = hsv.solve_generalized_lyapunov_factored(*wide, discrete=True)
        np.testing.assert_array_equal(to_host(L), expected.astype(dtype))
        for array, before in zip(arrays, host, strict=True):
            np.testing.assert_array_equal(to_host(array), before)

    def test_an_empty_batch(self):
        L = hsv.solve_generalized_lyapunov_factored(np.zeros((0, 3, 3)), np.eye(3), np.eye(3), discrete=False)
        assert L.shape == (0, 3, 3)

    def test_unstable_and_singular_pencils(self):
        solver = hsv.solve_generalized_lyapunov_factored
        with pytest.raises(hsv.UnstableSystemError, match=r"spectral abscissa 0\.5"):
            solver(np.diag([-1.0, 1.0]), np.diag([1.0, 2.0]), np.ones((2, 1)), discrete=False)
        with pytest.raises(hsv.UnstableSystemError, match="spectral radius 2"):
            solver(np.diag([0.5, 1.0]), np.diag([1.0, 0.5]), np.ones((2, 1)), discrete=True)
        singular = np.array([[1.0, 2.0], [2.0, 4.0]])
        for discrete in (True, False):
            with pytest.raises(hsv.IllConditionedError, match="e must be invertible"):
                solver(-np.eye(2), singular, np.ones((2, 1)), discrete=discrete)
        with pytest.raises(hsv.IllConditionedError, match=r"\(system \(1,\)\)"):
            solver(-np.eye(2), np.stack([np.eye(2), singular]), np.ones((2, 1)), discrete=False)

    def test_bad_arguments_are_named(self):
        one = np.eye(2)
        with pytest.raises(hsv.ShapeError, match=r"b must have shape \(\.\.\., 2, m\)"):
            hsv.solve_generalized_lyapunov_factored(-one, one, np.eye(3), discrete=False)
        with pytest.raises(hsv.ShapeError, match=r"e must have shape \(\.\.\., 2, 2\)"):
            hsv.solve_generalized_lyapunov_factored(-one, np.eye(3), one, discrete=False)
        with pytest.raises(hsv.NonFiniteError, match="a must be finite"):
            hsv.solve_generalized_lyapunov_factored(one * np.nan, one, one, discrete=False)


class TestSystems:
    @pytest.mark.parametrize("dt", [0, True, 0.5])
    @pytest.mark.parametrize("complex_", [True, False])
    @pytest.mark.parametrize("definite", [True, False])
    def test_the_transfer_function(self, definite, complex_, dt, rng):
        n, batch = 5, (2,)
        plain = known.random_stable(rng, n, 2, 3, dt=dt, complex_=complex_, batch=batch)
        E = draw(rng, (*batch, n, n), complex_)
        if definite:
            E = E @ adjoint(E) + np.eye(n)
        D = draw(rng, (3, 2), complex_)
        sys = hsv.from_descriptor(E, E @ plain.A, E @ plain.B, plain.C, D, dt=dt)
        assert sys.dt == dt
        assert sys.is_complex == complex_
        w = [0.0, 0.3, 1.2, -2.0]
        expected = plain.frequency_response(w) + D
        np.testing.assert_allclose(sys.frequency_response(w), expected, atol=1e-10 * np.abs(expected).max())

    @pytest.mark.parametrize("definite", [True, False])
    @pytest.mark.parametrize("discrete", [True, False])
    def test_hankel_values_are_those_of_the_pencil(self, discrete, definite, rng):
        """sigma^2 are the eigenvalues of P E^H Q E, with P and Q from the generalised equations: pyMOR's and MATLAB's definition."""
        n = 6
        plain = known.random_stable(rng, n, 2, 2, dt=True if discrete else 0, complex_=True, damping=0.2)
        E = known.complex_normal(rng, (n, n)) + 2 * np.eye(n)
        E = E @ adjoint(E) if definite else E
        A, B, C = E @ plain.A, E @ plain.B, plain.C
        sign = 1 if discrete else -1
        P = solve(A, E, sign * B @ adjoint(B), discrete=discrete)
        Q = solve(adjoint(A), adjoint(E), sign * adjoint(C) @ C, discrete=discrete)
        squares = np.sort(np.linalg.eigvals(P @ adjoint(E) @ Q @ E).real)[::-1]
        sys = hsv.from_descriptor(E, A, B, C, dt=plain.dt)
        found = hsv.hankel_singular_values(sys)
        np.testing.assert_allclose(found**2, squares, rtol=1e-8, atol=1e-12 * squares[0])
        red = hsv.balanced_truncation(sys, 3)
        assert hsv.hinf_error(plain, red.system) <= red.error_bound * (1 + 1e-9)

    def test_the_heat_equation_by_finite_elements(self):
        """Both matrices have the sine modes: poles and Hankel values in closed form, the latter in ball arithmetic."""
        n = 20
        mass, stiffness, modes, mass_values, stiffness_values = mass_and_stiffness(n)
        B, C = np.eye(n)[:, [n // 3]], np.eye(n)[[2 * n // 3]]
        poles = -stiffness_values / mass_values
        root = np.sqrt(mass_values)
        exact = diagonal_hankel_values(poles, modes.T @ B / root[:, None], C @ modes / root, discrete=False)
        sys = hsv.from_descriptor(mass, -stiffness, B, C, dt=0)
        np.testing.assert_array_equal(sys.A, sys.A.T)
        np.testing.assert_allclose(np.sort(sys.poles().real), np.sort(poles), rtol=1e-12)
        found = hsv.hankel_singular_values(sys)
        np.testing.assert_allclose(found, exact, atol=1e-13 * exact[0])
        # in the coordinates of the nodes the state matrix is not symmetric, and the values are the same
        by_lu = hsv.StateSpace(np.linalg.solve(mass, -stiffness), np.linalg.solve(mass, B), C, dt=0)
        np.testing.assert_allclose(hsv.hankel_singular_values(by_lu), exact, atol=1e-12 * exact[0])

    def test_the_states_are_the_documented_ones(self, rng):
        sys = known.random_stable(rng, 4, 1, 1, dt=0)
        E = rng.normal(size=(4, 4))
        np.testing.assert_allclose(hsv.from_descriptor(E, E @ sys.A, E @ sys.B, sys.C, dt=0).A, sys.A, atol=1e-12)
        E, A = E @ E.T + np.eye(4), -sys.A @ sys.A.T
        L = np.linalg.cholesky(E)
        new = hsv.from_descriptor(E, A, sys.B, sys.C, dt=0)
        for found, expected in (
            (new.A, np.linalg.inv(L) @ A @ np.linalg.inv(L.T)),
            (new.B, np.linalg.inv(L) @ sys.B),
            (new.C, sys.C @ np.linalg.inv(L.T)),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_array_equal(new.A, new.A.T)

    def test_symmetric_systems_in_different_units_keep_their_digits(self, rng):
        """A graded mass matrix and the stiffness that belongs to it: the spectrum is that of the matrices before the change of units."""
        mass, stiffness, _, mass_values, stiffness_values = mass_and_stiffness(6)
        units = 10.0 ** np.array([0, -6, 3, -10, 1, 4])
        E, A = (units[:, None] * x * units for x in (mass, -stiffness))
        E, A = (0.5 * (x + x.T) for x in (E, A))
        sys = hsv.from_descriptor(E, A, np.ones((6, 1)), np.ones((1, 6)), dt=0)
        np.testing.assert_allclose(np.linalg.eigvalsh(sys.A), np.sort(-stiffness_values / mass_values), rtol=1e-12)

    @pytest.mark.parametrize("definite", [True, False])
    def test_rows_of_very_different_sizes_cost_nothing(self, definite, rng):
        n = 5
        sys = known.random_stable(rng, n, 1, 1, dt=0, damping=0.5)
        scale = 10.0 ** np.array([0, -12, 6, -20, 3])
        E = np.diag(scale) if definite else scale[:, None] * rng.normal(size=(n, n))
        assert np.linalg.cond(E) > 1e16
        found = hsv.from_descriptor(E, E @ sys.A, E @ sys.B, sys.C, dt=0)
        expected = hsv.hankel_singular_values(sys)
        np.testing.assert_allclose(hsv.hankel_singular_values(found), expected, atol=1e-10 * expected[0])

    def test_the_loss_is_that_of_the_condition_of_e(self, rng):
        sys = known.random_stable(rng, 6, 1, 1, dt=True, damping=0.3)
        u, v = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
        expected = hsv.hankel_singular_values(sys)
        for condition in (1e3, 1e6, 1e9):
            E = u @ np.diag(np.geomspace(1, 1 / condition, 6)) @ v
            found = hsv.hankel_singular_values(hsv.from_descriptor(E, E @ sys.A, E @ sys.B, sys.C, dt=True))
            np.testing.assert_allclose(found, expected, atol=tolerance(float) * condition * expected[0])

    def test_an_indefinite_hermitian_e_takes_the_other_way(self, rng):
        sys = known.random_stable(rng, 3, 1, 1, dt=0)
        E = np.diag([1.0, -2.0, 3.0])
        np.testing.assert_allclose(hsv.from_descriptor(E, E @ sys.A, E @ sys.B, sys.C, dt=0).A, sys.A, rtol=1e-14)

    def test_batch_axes_broadcast(self, rng):
        E = rng.normal(size=(3, 1, 4, 4)) + 3 * np.eye(4)
        plain = known.random_stable(rng, 4, 1, 2, dt=True, batch=(2,))
        sys = hsv.from_descriptor(E, plain.A, plain.B, plain.C, dt=True)
        assert sys.batch_shape == (3, 2)
        np.testing.assert_allclose(E[1, 0] @ sys.A[1, 1], plain.A[1], atol=1e-13)
        empty = hsv.from_descriptor(np.zeros((0, 2, 2)), -np.eye(2), np.ones((2, 1)), np.ones((1, 2)), dt=0)
        assert empty.batch_shape == (0,)

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_libraries_and_devices(self, symmetric, rng):
        plain = known.random_stable(rng, 4, 1, 2, dt=0)
        E = np.diag([1.0, 2.0, 3.0, 4.0])
        plain = hsv.StateSpace(-np.eye(4) if symmetric else plain.A, plain.B, plain.C, dt=0)
        expected = hsv.from_descriptor(E, plain.A, plain.B, plain.C, dt=0)
        tensors = [torch.asarray(x, dtype=torch.float32) for x in (E, plain.A, plain.B, plain.C)]
        sys = hsv.from_descriptor(*tensors, dt=0)
        assert sys.A.dtype == torch.float32
        np.testing.assert_allclose(to_host(sys.A), expected.A, rtol=1e-6, atol=1e-6)
        where = array_api_strict.Device("device1")
        there = [array_api_strict.asarray(x.tolist(), device=where) for x in (E, plain.A, plain.B, plain.C)]
        sys = hsv.from_descriptor(*there, dt=0)
        assert device(sys.A) == where
        found = to_host(sys.A.to_device(array_api_strict.Device("CPU_DEVICE")))
        np.testing.assert_allclose(found, expected.A, rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("definite", [True, False])
    def test_a_singular_e_is_refused(self, definite, rng):
        singular = np.diag([1.0, 2.0, 0.0])
        if not definite:
            singular = rng.normal(size=(3, 2)) @ rng.normal(size=(2, 3))
        arguments = -np.eye(3), np.ones((3, 1)), np.ones((1, 3))
        with pytest.raises(hsv.IllConditionedError, match=r"E must be invertible, found 1 / cond\(E\)"):
            hsv.from_descriptor(singular, *arguments, dt=0)
        with pytest.raises(hsv.IllConditionedError, match=r"\(system \(1,\)\)"):
            hsv.from_descriptor(np.stack([np.eye(3), singular]), *arguments, dt=0)
        with pytest.raises(hsv.IllConditionedError, match="algebraic equations"):
            hsv.from_descriptor(np.zeros((3, 3)), *arguments, dt=0)

    def test_a_hilbert_matrix_is_refused_where_no_digit_would_be_left(self):
        arguments = -np.eye(13), np.ones((13, 1)), np.ones((1, 13))
        with pytest.raises(hsv.IllConditionedError, match="E must be invertible"):
            hsv.from_descriptor(scipy.linalg.hilbert(13), *arguments, dt=0)

    def test_bad_arguments_are_named(self):
        one, b, c = np.eye(2), np.ones((2, 1)), np.ones((1, 2))
        with pytest.raises(hsv.ShapeError, match="E and A must have the same size"):
            hsv.from_descriptor(np.eye(3), one, b, c, dt=0)
        with pytest.raises(hsv.ShapeError, match=r"E must have shape \(\.\.\., n, n\)"):
            hsv.from_descriptor(np.ones((2, 3)), one, b, c, dt=0)
        with pytest.raises(hsv.NonFiniteError, match="E must be finite"):
            hsv.from_descriptor(one + np.inf, one, b, c, dt=0)
        with pytest.raises(hsv.ShapeError, match="broadcast"):
            hsv.from_descriptor(np.stack([one] * 2), np.stack([one] * 3), b, c, dt=0)
        with pytest.raises(TypeError, match="dt"):
            hsv.from_descriptor(one, one, b, c)
