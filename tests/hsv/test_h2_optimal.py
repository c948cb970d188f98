"""H2-optimal reduction of diagonal systems: its gradient, its descent, the conditions of optimality, and other programs."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

import hsv
from hsv import _h2_optimal
from tests.hsv.test_systems import random_diagonal


def quietly(reduce, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # what they say is in the notes
        return reduce(*arguments, **options)


def error(sys, reduced):
    """Of the strictly proper parts."""
    difference = sys - reduced
    return np.asarray(hsv.h2_norm(difference._with_outputs(difference.C, 0 * difference.D)))


def optimality(sys, reduced):
    """The largest violation of the tangential interpolation conditions, relative to the size of what is compared."""
    worst = 0.0
    points = 1 / reduced.poles().conj() if sys.is_discrete else -reduced.poles().conj()

    def value(system, s):
        resolvent = 1 / (s - system.poles())
        return (system.C * resolvent) @ system.B, -(system.C * resolvent**2) @ system.B

    for i, s in enumerate(points):
        (G, dG), (R, dR) = value(sys, s), value(reduced, s)
        right, left = reduced.B[i].conj(), reduced.C[:, i].conj()
        for full, small in ((G @ right, R @ right), (left @ G, left @ R), (left @ dG @ right, left @ dR @ right)):
            worst = max(worst, float(np.max(np.abs(full - small)) / np.max(np.abs(full))))
    return worst


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("paired", [False, True])
def test_error_and_gradient(paired, dt, rng):
    """The closed form is the norm of the difference, its gradient the slope of that norm, and no other ``C`` is better."""
    sys = random_diagonal(rng, batch=(2,), n=6, m=2, p=3, complex_=True, dt=dt)
    if paired:
        sys = hsv.real_part(sys)
    problem, coordinates = _h2_optimal._Problem.of(sys), _h2_optimal._Coordinates(3, 2)
    x, direction = rng.normal(size=(2, 2, 18)) * 0.5

    def squared(model):
        poles, B, C = model
        if dt:
            reduced = hsv.DiagonalStateSpace.from_log_poles(poles, B, C, dt=True)
        else:
            reduced = hsv.DiagonalStateSpace(poles, B, C, dt=0)
        return error(sys, hsv.real_part(reduced) if paired else reduced) ** 2

    def fitted(x):
        return problem.fitted(*coordinates.poles_and_inputs(x))

    model = fitted(x)
    found, by = problem.error(model)
    np.testing.assert_allclose(found, squared(model), rtol=1e-10)
    np.testing.assert_allclose(coordinates.of(model), x, atol=1e-13)
    slope = (squared(fitted(x + 1e-5 * direction)) - squared(fitted(x - 1e-5 * direction))) / 2e-5
    np.testing.assert_allclose((coordinates.gradient(model, by) * direction).sum(-1), slope, rtol=1e-5)
    np.testing.assert_allclose(by.C, 0, atol=1e-10 * np.abs(sys.C).max())
    other = model._replace(C=model.C + 0.1 * (rng.normal(size=(*model.C.shape, 2)) @ [1, 1j]))
    value, by = problem.error(other)
    np.testing.assert_allclose(value, squared(other), rtol=1e-10)
    assert (value > found).all()
    moved = [other._replace(C=other.C + h * model.C) for h in (1e-5, -1e-5)]
    slope = (squared(moved[0]) - squared(moved[1])) / 2e-5
    np.testing.assert_allclose((by.C.conj() * model.C).sum((-2, -1)).real, slope, rtol=1e-5)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
def test_optimal_and_no_worse_than_where_it_begins(complex_, dt, rng):
    for _ in range(4):
        sys = random_diagonal(rng, n=8, m=2, p=2, complex_=complex_, dt=dt)
        for r in (1, 2, 4):
            red = hsv.h2_optimal_reduction(sys, r, tolerance=1e-14)
            assert red.error_bound is None
            assert red.system.n_states == red.orders == r
            assert (np.abs(red.system.poles()) < 1 if dt else red.system.poles().real < 0).all()
            for other in (hsv.balanced_truncation, hsv.irka):
                assert error(sys, red.system) <= error(sys, quietly(other, sys, r).system) * (1 + 1e-7)
            assert optimality(sys, red.system) < 1e-4
            np.testing.assert_allclose(red.left.conj().T @ red.right, np.eye(r), atol=1e-9)
            A = red.left.conj().T @ (sys.poles()[:, None] * red.right)
            np.testing.assert_allclose(A, np.diag(red.system.poles()), atol=1e-4)
            scale = np.abs(red.system.B).max(), np.abs(red.system.C).max()
            np.testing.assert_allclose(red.left.conj().T @ sys.B, red.system.B, atol=1e-4 * scale[0])
            np.testing.assert_allclose(sys.C @ red.right, red.system.C, atol=1e-4 * scale[1])


def test_the_error_never_rises(rng, monkeypatch):
    """Also from a start of which the fixed-point iteration makes nothing."""
    monkeypatch.setattr(_h2_optimal, "_KRYLOV_STEPS", 1)
    sys = random_diagonal(rng, batch=(3,), n=30, m=6, p=6, complex_=True, dt=True)
    errors = []
    for most in (1, 2, 4, 8, 16, 32, 64):
        red = quietly(hsv.h2_optimal_reduction, sys, 8, max_iterations=most, tolerance=1e-13)
        errors.append(error(sys, red.system))
    assert (np.diff(errors, axis=0) <= 1e-12 * errors[0]).all()
    assert (errors[-1] < errors[0]).all()


@pytest.mark.parametrize("r", [1, 2])
def test_against_search_from_many_places(r):
    """Impulse responses and no closed form, minimised by another program from random places."""
    rng = np.random.default_rng(5)
    reached = 0
    for _ in range(4):
        sys = random_diagonal(rng, n=4, m=1, p=1, complex_=False, dt=True)
        sys = hsv.DiagonalStateSpace(0.8 * sys.poles(), sys.B, sys.C, dt=True)
        steps = np.arange(60)
        target = (sys.C[0] * sys.B[:, 0]) @ sys.poles()[:, None] ** steps

        def cost(x, target=target, steps=steps):
            poles, weights = np.tanh(x[:r]) + 0j, x[r:] + 0j
            if r == 2:  # two real poles or a pair, on either side of x[1] = 0
                middle, spread = np.tanh(x[0]), np.sqrt(x[1] + 0j) * (1 - np.abs(np.tanh(x[0])))
                poles = middle + np.array([1, -1]) * spread
                if np.abs(poles).max() >= 1:
                    return 1e3
                # the best weights: a linear problem
                basis = poles[:, None] ** steps
                weights = np.linalg.lstsq(basis.T, target + 0j, rcond=None)[0]
            return float(np.sum(np.abs(target - weights @ poles[:, None] ** steps) ** 2))

        best = min(
            scipy.optimize.minimize(cost, rng.normal(size=2 * r if r == 1 else 2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}).fun
            for _ in range(12)
        )  # fmt: skip
        found = float(error(sys, hsv.h2_optimal_reduction(sys, r).system) ** 2)
        assert found >= best * (1 - 1e-5)
        reached += found <= best * (1 + 1e-5) + 1e-13
    assert reached >= 3


@pytest.mark.parametrize("dt", [0, True])
def test_conjugate_pairs_of_a_real_system(dt, rng):
    """The real reading has a smaller error in the real outputs than the complex one, and its own conditions hold."""
    sys = random_diagonal(rng, n=12, m=2, p=2, complex_=True, dt=dt)
    real = hsv.real_part(sys)
    red = hsv.h2_optimal_reduction(real, 8, tolerance=1e-13, max_iterations=1000)
    assert red.system.n_states == red.orders == 8
    response = red.system.to_dense()
    assert not response.is_complex
    np.testing.assert_allclose(red.left.conj().T @ red.right, np.eye(8), atol=1e-8)
    assert optimality(real, red.system) < 1e-3
    own = error(real, red.system)
    for other in (hsv.h2_optimal_reduction(sys, 4), hsv.balanced_truncation(sys, 4)):
        assert own < error(real, hsv.real_part(other.system))
    assert hsv.h2_optimal_reduction(real, 7).system.n_states == 8
    balanced = hsv.balanced_truncation(real, 8)
    if np.all(balanced.system.poles().imag != 0):
        assert own <= error(real, balanced.system)


def test_a_batch_is_its_systems(rng):
    batch = random_diagonal(rng, batch=(2, 2), n=7, m=2, p=1, complex_=True, dt=True)
    red = hsv.h2_optimal_reduction(batch, 3)
    assert red.system.batch_shape == red.orders.shape == (2, 2)
    for index in np.ndindex(2, 2):
        one = hsv.DiagonalStateSpace(batch.poles()[index], batch.B[index], batch.C[index], dt=True)
        expected = error(one, hsv.h2_optimal_reduction(one, 3).system)
        np.testing.assert_allclose(error(one, red.select(index).system), expected, rtol=1e-7)


def test_each_system_of_a_batch_has_its_own_order(rng):
    batch = random_diagonal(rng, batch=(3,), n=8, m=1, p=1, complex_=True, dt=True)
    rule = hsv.HankelSum(discard=0.1)
    red, balanced = quietly(hsv.h2_optimal_reduction, batch, rule), hsv.balanced_truncation(batch, rule)
    assert len(set(red.orders.tolist())) > 1
    np.testing.assert_array_equal(red.orders, balanced.orders)
    assert (error(batch, red.system) <= error(batch, balanced.system)).all()
    for i, order in enumerate(red.orders):
        assert (red.system.poles()[i, order:] == 0).all()
        for x in (red.system.B[i, order:], red.system.C[i, :, order:], red.left[i, :, order:], red.right[i, :, order:]):
            assert (x == 0).all()
        gram = red.left[i].conj().T @ red.right[i]
        np.testing.assert_allclose(gram, np.diag(np.arange(len(gram)) < order), atol=1e-8)


@pytest.mark.parametrize("dt", [0, True])
def test_all_states_and_poles_at_zero(dt, rng):
    sys = random_diagonal(rng, n=5, m=2, p=2, complex_=True, dt=dt)
    red = hsv.h2_optimal_reduction(sys, 5)
    assert error(sys, red.system) < 1e-6 * hsv.h2_norm(sys)
    if dt:
        poles = sys.poles().copy()
        poles[0] = 0
        sys = hsv.DiagonalStateSpace(poles, sys.B, sys.C, dt=True)
        red = hsv.h2_optimal_reduction(sys, 2)
        assert error(sys, red.system) <= error(sys, hsv.balanced_truncation(sys, 2).system)
        assert error(sys, hsv.h2_optimal_reduction(sys, 5).system) < 1e-6 * hsv.h2_norm(sys)


def test_tensors_in_single_precision(rng):
    sys = random_diagonal(rng, batch=(2,), n=6, m=2, p=2, complex_=True, dt=True)
    single = hsv.DiagonalStateSpace(*(torch.from_numpy(x).to(torch.complex64) for x in (sys.poles(), sys.B, sys.C)), dt=True)  # fmt: skip
    red = hsv.h2_optimal_reduction(single, 2)
    for x in (red.system.poles(), red.system.B, red.system.C, red.left, red.right):
        assert x.dtype == torch.complex64
    expected = error(sys, hsv.h2_optimal_reduction(sys, 2).system)
    np.testing.assert_allclose(error(single, red.system), expected, rtol=1e-3)


@pytest.mark.parametrize("reductor", ["IRKAReductor", "TSIAReductor"])
def test_beside_pymor(reductor, rng):
    h2 = pytest.importorskip("pymor.reductors.h2")
    from pymor.core.logger import set_log_levels
    from pymor.models.iosys import LTIModel

    set_log_levels({"pymor": "ERROR"})
    for n, r in ((12, 2), (30, 6)):
        poles = -np.geomspace(0.01, 10, n)
        B, C = rng.normal(size=(n, 2)), rng.normal(size=(2, n))
        sys = hsv.DiagonalStateSpace(poles, B, C, dt=0)
        ours = error(sys, hsv.h2_optimal_reduction(sys, r).system)
        begin = hsv.balanced_truncation(sys, r).system
        begin = LTIModel.from_matrices(begin.A, begin.B, begin.C)
        reduced = getattr(h2, reductor)(LTIModel.from_matrices(np.diag(poles), B, C)).reduce(begin, tol=1e-6, maxit=300)
        A, Br, Cr = (getattr(reduced, x).matrix for x in ("A", "B", "C"))
        if reduced.E.__class__.__name__ != "IdentityOperator":
            E = reduced.E.matrix
            A, Br = np.linalg.solve(E, A), np.linalg.solve(E, Br)
        theirs = error(sys, hsv.StateSpace(A, Br, Cr, dt=0))
        assert ours <= theirs * (1 + 1e-6)


def test_what_is_refused(rng):
    sys = random_diagonal(rng, n=4, m=1, p=1, dt=True)
    with pytest.raises(hsv.DtypeError, match=r"takes a DiagonalStateSpace, got a StateSpace; hsv\.diagonalize"):
        hsv.h2_optimal_reduction(sys.to_dense(), 2)
    with pytest.raises(hsv.OrderError, match="ErrorBound asks for a bound"):
        hsv.h2_optimal_reduction(sys, hsv.ErrorBound(0.1))
    for most in (0, 1.5, True):
        with pytest.raises(hsv.HsvError, match="max_iterations must be an int of at least 1"):
            hsv.h2_optimal_reduction(sys, 2, max_iterations=most)
    with pytest.raises(hsv.HsvError, match=r"tolerance must be a number in \(0, 1\)"):
        hsv.h2_optimal_reduction(sys, 2, tolerance=0.0)
    unstable = hsv.DiagonalStateSpace([1.1, 0.2], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    with pytest.raises(hsv.UnstableSystemError):
        hsv.h2_optimal_reduction(unstable, 1)


def test_what_has_not_settled_is_said(rng):
    sys = hsv.real_part(random_diagonal(rng, n=30, m=4, p=4, complex_=True, dt=True))
    with pytest.warns(hsv.OrderWarning, match="the descent had not settled after 2 iterations"):
        red = hsv.h2_optimal_reduction(sys, 12, max_iterations=2, tolerance=1e-13)
    assert "the descent had not settled after 2 iterations" in red.notes


@pytest.mark.parametrize("convert", [lambda sys: sys, hsv.real_part])
@pytest.mark.parametrize("dt", [0, True])
def test_units_of_inputs_and_outputs_change_nothing(dt, convert):
    poles = np.array([-0.1 + 3j, -0.3 + 1j, -0.2 + 8j])
    poles = np.exp(0.2 * poles) if dt else poles

    def reduced(b, c):
        sys = convert(hsv.DiagonalStateSpace(poles, b * np.ones((3, 1)), c * np.ones((1, 3)), dt=dt))
        return hsv.h2_optimal_reduction(sys, 2, tolerance=1e-15).system

    plain = reduced(1.0, 1.0)
    for b, c in ((1e80, 1e80), (1e-80, 1e-80), (1e-100, 1e-100), (1e160, 1e-160), (1e-200, 1e170)):
        system = reduced(b, c)
        np.testing.assert_allclose(np.sort(system.poles()), np.sort(plain.poles()), rtol=1e-5)
        gain = (system.C @ system.B / b / c, plain.C @ plain.B)
        np.testing.assert_allclose(*gain, atol=1e-5 * np.abs(gain[1]).max())


def test_arguments_of_the_wrong_kind_are_refused_by_name(rng):
    sys = random_diagonal(rng, n=3)
    for tolerance in ("a", None, True):
        with pytest.raises(hsv.DtypeError, match=r"tolerance must be a number in \(0, 1\), got"):
            hsv.h2_optimal_reduction(sys, 1, tolerance=tolerance)
    assert hsv.h2_optimal_reduction(sys, 2, max_iterations=np.int64(500)).system.n_states == 2
