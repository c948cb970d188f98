import warnings

import numpy as np
import pytest
import torch

import hsv
from tests.hsv.test_systems import random_diagonal, random_system


def optimality(sys, red):
    """The largest violation of the tangential interpolation conditions, relative to the size of what is compared."""
    poles, vectors = np.linalg.eig(red.system.A)
    b, c = np.linalg.solve(vectors, red.system.B), red.system.C @ vectors
    points = 1 / poles.conj() if sys.is_discrete else -poles.conj()
    worst = 0.0

    def value(system, s):
        dense = system.to_dense()
        resolvent = np.linalg.inv(s * np.eye(dense.n_states) - dense.A)
        return dense.C @ resolvent @ dense.B, -dense.C @ resolvent @ resolvent @ dense.B

    for i, s in enumerate(points):
        (G, dG), (R, dR) = value(sys, s), value(red.system, s)
        right, left = b[i].conj(), c[:, i].conj()
        for full, small in ((G @ right, R @ right), (left @ G, left @ R), (left @ dG @ right, left @ dR @ right)):
            worst = max(worst, float(np.max(np.abs(full - small)) / np.max(np.abs(full))))
    return worst


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_a_fixed_point_meets_the_conditions_of_optimality(make, complex_, dt, rng):
    settled = 0
    for _ in range(6):
        sys = make(rng, n=8, m=2, p=2, complex_=complex_, dt=dt)
        for r in (1, 2, 4):
            balanced = hsv.balanced_truncation(sys, r)
            red = quietly(sys, r)
            assert red.system.n_states == r
            assert red.system.is_complex == complex_
            assert red.error_bound is None
            assert hsv.h2_norm(sys - red.system) <= hsv.h2_norm(sys - balanced.system) * (1 + 1e-12)
            np.testing.assert_allclose(red.left.conj().T @ red.right, np.eye(r), atol=1e-9)
            np.testing.assert_allclose(red.left.conj().T @ sys.to_dense().A @ red.right, red.system.A, atol=1e-8)
            if "had settled" in red.notes[-1] and "returned" not in red.notes[-1]:
                settled += 1
                assert optimality(sys, red) < 1e-4
    assert settled >= 12  # of 18


def quietly(sys, r):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # that the poles had not settled is in the notes
        return hsv.irka(sys, r, max_iterations=300)


def test_first_order_by_search():
    """One input, one output, order one: the optimum can be found by looking at every pole."""
    sys = hsv.DiagonalStateSpace([-1.0, -3.0, -10.0], [[1.0], [1.0], [1.0]], [[1.0, 1.0, 1.0]], dt=0)
    red = hsv.irka(sys, 1)
    poles = -np.linspace(0.5, 5, 20001)
    # The best residue for a pole l is -2 l G(-l); the squared error is then |G|^2 + 2 l G(-l)^2.
    G = np.sum(1 / (-poles[:, None] + np.array([1.0, 3.0, 10.0])), axis=1)
    best = poles[np.argmin(2 * poles * G**2)]
    np.testing.assert_allclose(red.system.A, best, atol=3e-4)


def test_batches_and_tensors(rng):
    sys = random_diagonal(rng, batch=(3,), n=6, m=1, p=1, dt=0)
    red = quietly(sys, 2)
    for i in range(3):
        alone = hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=0)
        expected = quietly(alone, 2).system
        w = np.linspace(-2, 2, 5)
        np.testing.assert_allclose(
            red.system.frequency_response(w)[i], expected.frequency_response(w), rtol=1e-6, atol=1e-8
        )
        assert f"(system ({i},))" in red.notes[i]
    single = hsv.DiagonalStateSpace(torch.tensor([0.9, 0.5, 0.1]), torch.ones(3, 1), torch.ones(1, 3), dt=True)
    assert hsv.irka(single, 1).system.A.dtype == torch.float32


def test_too_few_iterations_are_said():
    sys = hsv.DiagonalStateSpace([-1.0, -3.0, -10.0], [[1.0], [1.0], [1.0]], [[1.0, 1.0, 1.0]], dt=0)
    with pytest.warns(hsv.OrderWarning, match="had not settled after 1 iterations"):
        red = hsv.irka(sys, 1, max_iterations=1)
    assert "had not settled" in red.notes[-1]


def test_bad_input():
    sys = hsv.DiagonalStateSpace([-1.0, -3.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    with pytest.raises(hsv.OrderError, match="does not have"):
        hsv.irka(sys, hsv.ErrorBound(0.1))
    with pytest.raises(hsv.HsvError, match="max_iterations"):
        hsv.irka(sys, 1, max_iterations=0)
    with pytest.raises(hsv.HsvError, match="tolerance"):
        hsv.irka(sys, 1, tolerance=2.0)
    with pytest.raises(hsv.UnstableSystemError):
        hsv.irka(hsv.DiagonalStateSpace([1.0], [[1.0]], [[1.0]], dt=0), 1)


@pytest.mark.parametrize("k", [1e78, 1e100, 1e160, 1e-160])
def test_units_of_inputs_and_outputs_change_nothing(k):
    def reduced(k):
        return hsv.irka(hsv.StateSpace([[-1.0, 1.0], [0.0, -2.0]], [[k], [k]], [[1 / k, 0.0]], dt=0), 1)

    red, plain = reduced(k), reduced(1.0)
    np.testing.assert_allclose(red.system.A, plain.system.A, rtol=1e-7)
    gain = (red.system.C @ red.system.B, plain.system.C @ plain.system.B)
    np.testing.assert_allclose(*gain, rtol=1e-7)
    assert red.notes == plain.notes
    np.testing.assert_allclose(red.left.T @ [[k], [k]], red.system.B, rtol=1e-12)


def test_arguments_of_the_wrong_kind_are_refused_by_name(rng):
    sys = random_system(rng, n=3, complex_=False)
    for tolerance in ("a", None, True):
        with pytest.raises(hsv.DtypeError, match=r"tolerance must be a number in \(0, 1\), got"):
            hsv.irka(sys, 1, tolerance=tolerance)
    for most in (1.5, True, "a", None):
        with pytest.raises(hsv.DtypeError, match="max_iterations must be an int of at least 1, got"):
            hsv.irka(sys, 1, max_iterations=most)
    assert hsv.irka(sys, 2, max_iterations=np.int64(300), tolerance=np.float32(1e-6)).system.n_states == 2
