import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import BTReductor
from pymor.solvers.matrix_equations.adi import ADILyapunovSolver
from pymor.solvers.matrix_equations.default import MatrixEquationSolvers

import hsv
from tests.hsv.sparse_reference_systems import (
    complex_advection,
    convection_diffusion,
    damped_chain,
    heat_in_a_square,
    implicit_euler,
    resonances,
    rod_of_finite_elements,
    second_difference,
)
from tests.hsv.test_pencils import Dense

W = np.array([-50.0, -1.0, 0.0, 0.1, 3.0, 200.0])


def sparse_system(A, B, C, E, dt=0):
    return hsv.SparseStateSpace(A, B, C, None, E, dt=dt)


def with_complex_inputs(k):
    A, B, C, E = convection_diffusion(k)
    return A, B * (1 + 2j), C, E


PROBLEMS = {
    "heat": (heat_in_a_square(22), 0, 1e-12),
    "flow": (convection_diffusion(22), 0, 1e-12),
    "fast flow": (convection_diffusion(22, (1000.0, 0.0)), 0, 1e-12),
    "finite elements": (rod_of_finite_elements(500), 0, 1e-12),
    "damped chain": (damped_chain(250, 0.5), 0, 1e-14),
    "resonances": (resonances(60), 0, 1e-12),
    "complex": (complex_advection(400), 0, 1e-12),
    "real A, complex B": (with_complex_inputs(20), 0, 1e-12),
    "Euler heat": (implicit_euler(*heat_in_a_square(22), 1e-3), True, 1e-12),
    "Euler flow": (implicit_euler(*convection_diffusion(22), 1e-3), 1e-3, 1e-12),
    "Euler finite elements": (implicit_euler(*rod_of_finite_elements(500), 1e-3), True, 1e-12),
    "Euler complex": (implicit_euler(*complex_advection(300), 1e-3), True, 1e-12),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_sparse_equals_dense(name):
    (A, B, C, E), dt, tolerance = PROBLEMS[name]
    sys = sparse_system(A, B, C, E, dt)
    dense = sys.to_dense()
    gramians = hsv.low_rank_gramians(sys, tolerance=tolerance)
    found, exact = hsv.hankel_singular_values(gramians), hsv.hankel_singular_values(dense)
    padded = np.zeros(sys.n_states)
    padded[: len(found)] = found
    np.testing.assert_allclose(padded, exact, atol=1e-8 * exact[0], rtol=0)

    red = hsv.balanced_truncation(gramians, hsv.Threshold(1e-5))
    reference = hsv.balanced_truncation(dense, int(red.orders))
    w = W / max(sys.step, 1.0)
    response = red.system.frequency_response(w)
    scale = np.max(abs(reference.system.frequency_response(w)))
    np.testing.assert_allclose(response, reference.system.frequency_response(w), atol=1e-8 * scale)
    errors = np.linalg.norm(sys.frequency_response(w) - response, 2, axis=(1, 2))
    assert errors.max() <= red.error_bound + 1e-12 * scale  # the bound is 0 where all states of a small system stay
    np.testing.assert_allclose(red.error_bound, reference.error_bound, rtol=0.2)

    mass = np.eye(sys.n_states) if E is None else E.toarray()
    r = int(red.orders)
    np.testing.assert_allclose(red.left.conj().T @ mass @ red.right, np.eye(r), atol=1e-9)
    np.testing.assert_allclose(red.left.conj().T @ (A @ red.right), red.system.A, atol=1e-8 * abs(red.system.A).max())
    assert red.system.is_complex == sys.is_complex

    free = hsv.balancing_free_truncation(gramians, r)
    np.testing.assert_allclose(free.right.conj().T @ free.right, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(free.system.frequency_response(w), response, atol=1e-8 * scale)

    slow = hsv.singular_perturbation(gramians, r)
    expected = hsv.singular_perturbation(dense, r).system.frequency_response(w)
    np.testing.assert_allclose(slow.system.frequency_response(w), expected, atol=1e-8 * scale)
    assert slow.left is None


@pytest.mark.parametrize("name", PROBLEMS)
def test_residuals_are_what_they_are_said_to_be(name):
    (A, B, C, E), dt, _ = PROBLEMS[name]
    sys = sparse_system(A, B, C, E, dt)
    gramians = hsv.low_rank_gramians(sys, tolerance=1e-6)
    mass = np.eye(sys.n_states) if E is None else E.toarray()
    for factor, a, e, b in (
        (gramians.controllability, A.toarray(), mass, sys.B),
        (gramians.observability, A.toarray().conj().T, mass.conj().T, sys.C.conj().T),
    ):
        Z = factor.factor
        X = Z @ Z.conj().T
        if sys.is_discrete:
            residual = a @ X @ a.conj().T - e @ X @ e.conj().T + b @ b.conj().T
        else:
            residual = a @ X @ e.conj().T + e @ X @ a.conj().T + b @ b.conj().T
        exact = np.linalg.norm(residual, 2) / np.linalg.norm(b @ b.conj().T, 2)
        np.testing.assert_allclose(factor.relative_residual, exact, rtol=1e-2, atol=1e-9)
        # Lanczos' method approaches the largest eigenvalue from below.
        assert 0.7 * exact < factor.checked_residual < exact * (1 + 1e-6) + 1e-9
        assert factor.relative_residual <= 1e-6


def test_closed_form_of_heat_in_a_rod():
    """Uniform heating and the mean temperature: modes k = 1, 3, 5, ... of the second difference have the shape sin(k pi x)."""
    n = 1500
    ones = np.ones(n)
    sys = sparse_system((n + 1.0) ** 2 * second_difference(n), ones[:, None], ones[None, :] / n, None)
    angle = np.arange(1, n + 1, 2) * np.pi / (2 * (n + 1))
    poles = -4 * (n + 1.0) ** 2 * np.sin(angle) ** 2
    shape = np.sqrt(2 / (n + 1)) / np.tan(angle)  # the sum of a mode's entries
    modes = hsv.DiagonalStateSpace(poles, shape[:, None], shape[None, :] / n, dt=0)
    exact = hsv.hankel_singular_values(modes)
    found = hsv.hankel_singular_values(hsv.low_rank_gramians(sys, tolerance=1e-14))
    np.testing.assert_allclose(found[:12], exact[:12], rtol=0, atol=1e-11 * exact[0])
    np.testing.assert_allclose(found[:5], exact[:5], rtol=1e-8)


def test_gain_of_a_symmetric_system_is_twice_the_sum():
    """With A = A^T and C = B^T all states have the same sign: G(0) = 2 sum(sigma), whatever the size."""
    k = 60
    A, B, _, _ = heat_in_a_square(k)
    sys = sparse_system(A, B, B.T, None)
    gramians = hsv.low_rank_gramians(sys)
    gain = sys.frequency_response([0.0])[0, 0, 0].real
    np.testing.assert_allclose(2 * np.sum(hsv.hankel_singular_values(gramians)), gain, rtol=1e-8)
    assert 2 * np.sum(hsv.hankel_singular_values(gramians)) <= gain * (1 + 1e-12)
    assert gain <= 2 * (np.sum(hsv.hankel_singular_values(gramians)) + 4 * gramians.left_out)
    red = hsv.balanced_truncation(gramians, 3)
    error = abs(sys.frequency_response([0.0]) - red.system.frequency_response([0.0]))[0, 0, 0]
    assert 0.999 * red.error_bound < error <= red.error_bound


@pytest.mark.parametrize("tolerance", [1e-5, 1e-7, 1e-10])
@pytest.mark.parametrize("name", ["heat", "flow", "finite elements", "damped chain", "complex"])
def test_what_is_left_out_is_estimated(name, tolerance):
    (A, B, C, E), dt, _ = PROBLEMS[name]
    sys = sparse_system(A, B, C, E, dt)
    gramians = hsv.low_rank_gramians(sys, tolerance=tolerance)
    exact = np.sum(hsv.hankel_singular_values(sys.to_dense()))
    missing = exact - np.sum(hsv.hankel_singular_values(gramians))
    assert missing <= 4 * gramians.left_out + 1e-10 * exact
    red = hsv.balanced_truncation(gramians, hsv.Threshold(1e-3))
    errors = np.linalg.norm(sys.frequency_response(W) - red.system.frequency_response(W), 2, axis=(1, 2))
    assert errors.max() <= red.error_bound


def test_coarse_factors_are_said_where_the_reduced_system_is_unstable():
    gramians = hsv.low_rank_gramians(sparse_system(*damped_chain(250, 0.5)), tolerance=1e-4)
    with pytest.raises(hsv.OrderError, match="factors too coarse for this order"):
        hsv.balanced_truncation(gramians, hsv.Threshold(1e-3))


def test_factors_of_one_side():
    sys = sparse_system(*convection_diffusion(12))
    both = hsv.low_rank_gramians(sys)
    control, observe = hsv.low_rank_controllability_factor(sys), hsv.low_rank_observability_factor(sys)
    dense = sys.to_dense()
    for factor, pair, gramian in (
        (control, both.controllability, hsv.controllability_gramian(dense)),
        (observe, both.observability, hsv.observability_gramian(dense)),
    ):
        for Z in (factor.factor, pair.factor):
            np.testing.assert_allclose(Z @ Z.T, gramian, atol=1e-9 * np.linalg.norm(gramian, 2))
    assert {step.observability for step in control.history} == {None}
    assert {step.controllability for step in observe.history} == {None}
    assert "144 x" in repr(control)


def test_one_factorisation_serves_both_sides(monkeypatch):
    calls = []
    original = hsv._pencils.SparsePencil.shifted
    monkeypatch.setattr(
        hsv._pencils.SparsePencil, "shifted", lambda self, shift: calls.append(shift) or original(self, shift)
    )
    gramians = hsv.low_rank_gramians(sparse_system(*convection_diffusion(10)))
    assert calls == [step.shift for step in gramians.history]
    assert len(set(calls)) == len(calls)


def test_mass_matrices_of_the_observability_factor():
    sys = sparse_system(*rod_of_finite_elements(60))
    Z = hsv.low_rank_observability_factor(sys).factor
    E, A = sys.E.toarray(), sys.A.toarray()
    plain = hsv.StateSpace(np.linalg.solve(E, A), np.linalg.solve(E, sys.B), sys.C, dt=0)
    Q = hsv.observability_gramian(plain)
    np.testing.assert_allclose(E.T @ Z @ Z.T @ E, Q, atol=1e-8 * np.linalg.norm(Q, 2))


def test_real_systems_stay_real_whatever_the_shifts():
    gramians = hsv.low_rank_gramians(sparse_system(*damped_chain(20, 0.3)))
    assert any(step.shift.imag != 0 for step in gramians.history)
    assert gramians.controllability.factor.dtype == gramians.observability.factor.dtype == np.float64


def test_compressed_factors():
    A, B, C, E = heat_in_a_square(15)
    factor = hsv.low_rank_controllability_factor(sparse_system(A, np.hstack([B, 2 * B, -B]), C, E))
    assert factor.factor.shape[1] == len(factor.history)  # dependent inputs count once
    thin = factor.compressed(1e-10)
    assert thin.factor.shape[1] < factor.factor.shape[1]
    gram = thin.factor.T @ thin.factor
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12 * gram[0, 0])
    P = factor.factor @ factor.factor.T
    np.testing.assert_allclose(thin.factor @ thin.factor.T, P, atol=1.01e-10 * np.linalg.norm(P, 2))
    with pytest.raises(hsv.HsvError, match="tolerance must be"):
        factor.compressed(1.0)


@pytest.mark.parametrize("dt", [0, True])
def test_an_operator_stands_for_the_matrix(dt):
    A, B, C, E = rod_of_finite_elements(50)
    if dt:
        A, B, C, E = implicit_euler(A, B, C, E, 0.01)
    matrix = sparse_system(A, B, C, E, dt)
    operator = hsv.SparseStateSpace(Dense(A.toarray(), E.toarray()), B, C, None, E, dt=dt)
    np.testing.assert_allclose(
        hsv.hankel_singular_values(operator)[:8], hsv.hankel_singular_values(matrix)[:8], rtol=1e-6, atol=1e-11
    )
    found, expected = (hsv.balanced_truncation(s, 4).system.frequency_response(W) for s in (operator, matrix))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(operator.frequency_response(W), matrix.frequency_response(W), rtol=1e-9, atol=1e-12)


def test_pymor_agrees():
    A, B, C, E = rod_of_finite_elements(600)
    sys = sparse_system(A, B, C, E)
    solvers = MatrixEquationSolvers(lyapunov_lr=ADILyapunovSolver(adi_tol=1e-12))
    model = LTIModel.from_matrices(sp.csc_matrix(A), B, C, E=sp.csc_matrix(E), matrix_equation_solvers=solvers)
    reductor = BTReductor(model)
    theirs = hsv.from_pymor(reductor.reduce(6)).frequency_response(W)
    red = hsv.balanced_truncation(sys, 6)
    np.testing.assert_allclose(red.system.frequency_response(W), theirs, atol=1e-6)
    np.testing.assert_allclose(reductor._hankel_svd()[1][:6], red.hankel_singular_values[:6], rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_random_systems(seed):
    """Not symmetric in values or pattern, with a mass matrix: stable by a shift of the spectrum."""
    rng = np.random.default_rng(seed)
    n = 80

    def random_matrix(density):
        return sp.csc_array(rng.uniform(size=(n, n)) * (rng.uniform(size=(n, n)) < density))

    A = random_matrix(0.05)
    E = sp.diags_array(rng.uniform(0.5, 2, n)).tocsc() + 0.1 * random_matrix(0.02)
    poles = np.linalg.eigvals(np.linalg.solve(E.toarray(), A.toarray()))
    A = A - (poles.real.max() + rng.uniform(0.05, 1)) * E
    B, C = rng.standard_normal((n, 1 + seed % 3)), rng.standard_normal((1 + seed % 2, n))
    sys = sparse_system(A, B, C, E)
    exact = hsv.hankel_singular_values(sys.to_dense())
    found = hsv.hankel_singular_values(sys)
    np.testing.assert_allclose(found, exact[: len(found)], atol=1e-8 * exact[0])
    for rule in (hsv.HankelSum(keep=0.9), hsv.HankelEnergy(keep=0.999), hsv.ErrorBound(1e-3 * exact[0])):
        red = hsv.balanced_truncation(sys, rule)
        errors = np.linalg.norm(sys.frequency_response(W) - red.system.frequency_response(W), 2, axis=(1, 2))
        assert errors.max() <= red.error_bound
        assert np.all(red.system.poles().real < 0)
        if isinstance(rule, hsv.ErrorBound):
            assert red.error_bound <= rule.bound


def test_bounds_that_the_factors_cannot_certify():
    sys = sparse_system(*heat_in_a_square(12))
    coarse = hsv.low_rank_gramians(sys, tolerance=1e-3)
    with pytest.raises(hsv.OrderError, match="smaller tolerance"):
        hsv.balanced_truncation(coarse, hsv.ErrorBound(1e-9))
    fine = hsv.balanced_truncation(hsv.low_rank_gramians(sys, tolerance=1e-14), hsv.ErrorBound(1e-9))
    assert fine.error_bound <= 1e-9
    assert "estimate of the sum of all others" in fine.notes[-1]


def test_orders_beyond_the_factors_are_capped_and_said():
    sys = sparse_system(*heat_in_a_square(10))
    with pytest.warns(hsv.OrderWarning, match="capped") as caught:
        red = hsv.balanced_truncation(sys, 90)
    assert caught[0].filename == __file__
    with pytest.warns(hsv.OrderWarning, match="capped") as caught:
        hsv.singular_perturbation(hsv.low_rank_gramians(sys), 90)
    assert caught[0].filename == __file__
    assert red.system.n_states < 30
    with pytest.raises(hsv.OrderError, match="Order must be in"):
        hsv.balanced_truncation(sys, 101)
    bal = hsv.balance(sys).system
    np.testing.assert_allclose(
        np.diag(hsv.controllability_gramian(bal)), hsv.hankel_singular_values(sys)[: bal.n_states], atol=1e-9
    )


@pytest.mark.parametrize("dt", [0, True])
def test_nothing_comes_in_or_out(dt):
    A, B, C, _ = implicit_euler(*heat_in_a_square(6), 0.01) if dt else heat_in_a_square(6)
    for inputs, outputs in ((0 * B, C), (B, 0 * C), (0 * B, 0 * C)):
        sys = hsv.SparseStateSpace(0.5 * sp.eye_array(36) if dt else A, inputs, outputs, [[3.0]], dt=dt)
        np.testing.assert_array_equal(hsv.hankel_singular_values(sys), [0.0])
        for reduce in (hsv.balanced_truncation, hsv.singular_perturbation):
            with pytest.warns(hsv.OrderWarning, match="only D is left"):
                red = reduce(sys, 1)
            assert red.orders == 0
            assert red.error_bound == 0
            np.testing.assert_array_equal(red.system.frequency_response([1.0]), [[[3.0]]])


def test_one_state_and_more_inputs_than_states():
    sys = hsv.SparseStateSpace(sp.csc_array([[-2.0]]), np.ones((1, 5)), np.ones((3, 1)), dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), [np.sqrt(15) / 4], rtol=1e-12)
    wide = hsv.SparseStateSpace(sp.diags_array([-1.0, -3.0]), np.eye(2, 7), np.ones((1, 2)), dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(wide), hsv.hankel_singular_values(wide.to_dense()), rtol=1e-9)


A0, B0, C0, _ = heat_in_a_square(12)  # slowest pole near -19.7


def appended(block, size):
    A = sp.block_diag([A0, sp.csc_array(block)], format="csc")
    return A, np.vstack([B0, np.ones((size, 1))]), np.hstack([C0, np.ones((1, size))])


UNSTABLE = {
    "all": (A0 + 1e4 * sp.eye_array(144), B0, C0, 0, "found a pole at"),
    "slightly": (A0 + 19.9 * sp.eye_array(144), B0, C0, 0, "found a pole at 0.2"),
    "an integrator": (*appended([[0.0]], 1), 0, "found a pole at 0,"),
    "an oscillator": (
        *appended([[0.0, 1.0], [-1.0, 0.0]], 2),
        0,
        "found a pole at .*1i, which is not in the left half plane",
    ),
    "a growing oscillation": (*appended([[1e-3, 50.0], [-50.0, 1e-3]], 2), 0, r"found a pole at 0.001\+50i"),
    "far away": (*appended([[1e4]], 1), 0, "found a pole at 10000,"),
    "discrete": (
        sp.eye_array(144) + 1e-4 * (A0 + 30 * sp.eye_array(144)),
        B0,
        C0,
        True,
        "found a pole at 1.001.*unit circle",
    ),
}


@pytest.mark.parametrize("name", UNSTABLE)
def test_unstable_systems_are_refused_by_their_pole(name):
    A, B, C, dt, message = UNSTABLE[name]
    sys = hsv.SparseStateSpace(A, B, C, dt=dt)
    for function in (
        hsv.low_rank_controllability_factor,
        hsv.low_rank_observability_factor,
        hsv.hankel_singular_values,
    ):
        with pytest.raises(hsv.UnstableSystemError, match=message):
            function(sys)


def test_singular_mass_matrices_are_refused():
    for last in (0.0, 1e-300):
        E = sp.diags_array(np.r_[np.ones(143), last]).tolil()
        E[142, 143] = E[143, 142] = 0.0 if last == 0.0 else 1.0
        E[142, 142] = 1e-300 if last else 1.0
        sys = sparse_system(A0, B0, C0, E.tocsc())
        if last == 0.0:
            with pytest.raises(hsv.IllConditionedError, match="E must be invertible, and is"):
                hsv.low_rank_gramians(sys)
        else:  # a swap of two rows: regular
            hsv._pencils.SparsePencil(sys.A, sys.E).mass_factorization()


def test_no_convergence_is_an_error_that_says_what_was_reached():
    sys = sparse_system(*damped_chain(100, 1e-4))
    with pytest.raises(
        hsv.ConvergenceError, match=r"max_iterations=20 .* reached: controllability .* columns"
    ) as caught:
        hsv.hankel_singular_values(hsv.low_rank_gramians(sys, max_iterations=20))
    assert len(caught.value.history) == 20
    assert caught.value.history[-1].controllability > 1e-12


def test_inaccurate_solves_are_an_error():
    A, B, C, _ = heat_in_a_square(8)

    class Sloppy(Dense):
        def solve_shifted(self, shift, rhs):
            return super().solve_shifted(shift, rhs) * (1 + 1e-6)

    class WrongAdjoint(Dense):
        def solve_shifted_adjoint(self, shift, rhs):
            return np.linalg.solve(self.A + (1 + 1e-4j) * shift * self.E, rhs).real

    for operator in (Sloppy, WrongAdjoint):
        sys = hsv.SparseStateSpace(operator(A.toarray()), B, C, dt=0)
        with pytest.raises(hsv.ConvergenceError, match=r"Gramian's residual is .* not accurate enough"):
            hsv.low_rank_gramians(sys)


def test_progress():
    sys = sparse_system(*heat_in_a_square(10))
    seen = []
    gramians = hsv.low_rank_gramians(sys, progress=seen.append)
    assert tuple(seen) == gramians.history
    assert [step.iteration for step in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].controllability < 1e-12
    assert seen[-1].observability < 1e-12
    assert np.all(np.diff([step.seconds for step in seen]) >= 0)


def test_progress_bar(capsys):
    hsv.low_rank_controllability_factor(sparse_system(*heat_in_a_square(10)), progress=True)
    assert "residual" in capsys.readouterr().out


def test_progress_bar_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(hsv.MissingBackendError, match="progress=True needs rich"):
        hsv.low_rank_gramians(sparse_system(*heat_in_a_square(4)), progress=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 0.0}, hsv.HsvError, "tolerance must be"),
        ({"tolerance": True}, hsv.HsvError, "tolerance must be"),
        ({"max_iterations": 0}, hsv.HsvError, "max_iterations must be"),
        ({"max_iterations": 3.0}, hsv.HsvError, "max_iterations must be"),
        ({"shifts": "penzl"}, hsv.DtypeError, "shifts must be"),
        ({"progress": "yes"}, hsv.DtypeError, "progress must be"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hsv.low_rank_gramians(sparse_system(*heat_in_a_square(4)), **options)


def test_other_systems_are_refused():
    dense = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    for wrong in (dense, hsv.low_rank_gramians(sparse_system(*heat_in_a_square(4)))):
        with pytest.raises(hsv.DtypeError, match=r"sys must be a hsv.SparseStateSpace"):
            hsv.low_rank_gramians(wrong)


def test_inputs_are_left_alone():
    A, B, C, E = rod_of_finite_elements(30)
    before = [x.copy() for x in (A, B, C, E)]
    hsv.balanced_truncation(sparse_system(A, B, C, E), 3)
    for now, then in zip((A, B, C, E), before, strict=True):
        assert np.all((now - then) == 0) if isinstance(now, np.ndarray) else (now - then).nnz == 0


SCRIPT = """
import resource, time
import hsv
from tests.hsv.sparse_reference_systems import heat_in_a_square
A, B, C, E = heat_in_a_square(316)
start = time.process_time()
red = hsv.balanced_truncation(hsv.SparseStateSpace(A, B, C, dt=0), hsv.ErrorBound(1e-9))
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, red.system.n_states)
"""


@pytest.mark.slow
def test_a_hundred_thousand_states_take_less_than_two_minutes_and_four_gigabytes():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    seconds, gibibytes, order = (float(x) for x in run.stdout.split())
    assert seconds < 120
    assert gibibytes < 4
    assert order <= 10


@pytest.mark.parametrize("dt", [0, True])
def test_units_of_inputs_and_outputs_change_nothing(dt):
    n = 30
    A = sp.diags_array([np.ones(n - 1), -2.1 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1])
    A = sp.csc_array(0.2 * A + sp.eye_array(n) if dt else A)

    def reduced(b, c):
        gramians = hsv.low_rank_gramians(hsv.SparseStateSpace(A, b * np.ones((n, 1)), c * np.ones((1, n)), dt=dt))
        return gramians, hsv.balanced_truncation(gramians, 3)

    gramians, plain = reduced(1.0, 1.0)
    for b, c in ((1e200, 1.0), (1e200, 1e-200), (1e-200, 1e-100)):
        others, red = reduced(b, c)
        np.testing.assert_allclose(red.hankel_singular_values[:3] / b / c, plain.hankel_singular_values[:3], rtol=1e-9)
        np.testing.assert_allclose(red.system.poles(), plain.system.poles(), rtol=1e-7)
        np.testing.assert_allclose(red.error_bound / b / c, plain.error_bound, rtol=1e-6)
        np.testing.assert_allclose(
            abs(others.controllability.factor[0, :2]) / b, abs(gramians.controllability.factor[0, :2]), rtol=1e-9
        )
    with pytest.raises(hsv.HsvError, match="beyond the range of double precision; choose other units"):
        reduced(1e200, 1e200)


def test_a_tolerance_of_another_kind_is_refused_by_name():
    sys = hsv.SparseStateSpace(sp.diags_array([-1.0, -2.0]), [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    factor = hsv.low_rank_controllability_factor(sys, max_iterations=np.int64(50))
    for tolerance in ("a", None, True):
        with pytest.raises(hsv.DtypeError, match=r"tolerance must be a number in \[0, 1\), got"):
            factor.compressed(tolerance)
    assert factor.compressed(np.float32(0.5)).factor.shape[1] == 1


@pytest.mark.parametrize("n", [3, 6])
def test_a_pole_at_minus_one_is_found(n, rng):
    """The Cayley transform sends it to infinity."""
    poles = np.r_[-1.0, np.linspace(-0.8, 0.7, n - 1)]
    Q = rng.standard_normal((n, n))
    ones = np.ones((n, 1))
    for A in (np.diag(poles), Q @ np.diag(poles) @ np.linalg.inv(Q)):
        with pytest.raises(hsv.UnstableSystemError, match="found a pole at -1, which is not inside the unit circle"):
            hsv.low_rank_gramians(hsv.SparseStateSpace(sp.csc_array(A), ones, ones.T, dt=True))
