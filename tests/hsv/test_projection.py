import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import to_host
from tests.hsv.test_systems import random_system


@given(seed=st.integers(0, 10**6), dt=st.sampled_from([0, True]), complex_=st.booleans(), order=st.integers(1, 4))
def test_gramians_of_a_system_give_its_balanced_truncation(seed, dt, complex_, order):
    sys = random_system(np.random.default_rng(seed), n=5, complex_=complex_, dt=dt)
    red = hsv.balanced_truncation(sys, order)
    found = hsv.balancing_projection(hsv.controllability_gramian(sys), hsv.observability_gramian(sys), order)
    sigma = red.hankel_singular_values
    np.testing.assert_allclose(found.hankel_singular_values, sigma, atol=1e-7 * sigma[0])
    np.testing.assert_allclose(found.left.conj().T @ found.right, np.eye(order), atol=1e-10)
    # the same projector, as well determined as the cut is wide
    loss = sigma[0] / (sigma[order - 1] - sigma[order])
    mine, theirs = (x.right @ x.left.conj().T for x in (found, red))
    np.testing.assert_allclose(mine, theirs, atol=1e-8 * loss**2 * np.abs(theirs).max())


@pytest.mark.parametrize("library", [np, array_api_strict, torch], ids=["numpy", "array_api_strict", "torch"])
def test_batches_and_libraries(library, rng):
    L = rng.normal(size=(2, 2, 4, 4))
    P, Q = (x @ x.swapaxes(-1, -2) for x in L)
    found = hsv.balancing_projection(library.asarray(P), library.asarray(Q), hsv.HankelSum(keep=0.7))
    X = hsv.cross_gramian_projection(library.asarray(P @ Q), hsv.HankelSum(keep=0.7))
    assert isinstance(found.left, type(library.asarray(P)))
    for i in range(2):
        alone = hsv.balancing_projection(P[i], Q[i], hsv.HankelSum(keep=0.7))
        r = int(alone.orders)
        assert int(found.orders[i]) == r
        np.testing.assert_allclose(np.abs(to_host(found.right)[i][:, :r]), np.abs(alone.right), atol=1e-10)
        assert not to_host(found.right)[i][:, r:].any()
        one = hsv.cross_gramian_projection((P @ Q)[i], hsv.HankelSum(keep=0.7))
        np.testing.assert_allclose(np.abs(to_host(X.left)[i][:, : int(one.orders)]), np.abs(one.left), atol=1e-10)


def test_single_precision_knows_how_little_it_knows(rng):
    Q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    P = (Q * [1, 1e-2, 1e-4, 1e-12, 1e-14]) @ Q.T
    double = hsv.balancing_projection(P, P, hsv.Threshold(1e-7))
    assert int(double.orders) == 3
    with pytest.warns(hsv.OrderWarning, match="capped at"):
        single = hsv.balancing_projection(P.astype(np.float32), P.astype(np.float32), 5)
    assert single.left.dtype == single.hankel_singular_values.dtype == np.float32
    assert int(single.orders) == 2


def test_a_cross_gramian_is_followed(rng):
    X = rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5))
    found = hsv.cross_gramian_projection(X, 2)
    np.testing.assert_allclose(found.left.conj().T @ found.right, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.hankel_singular_values, np.linalg.svd(X, compute_uv=False), rtol=1e-12)
    rest = X - found.left @ found.left.conj().T @ X
    np.testing.assert_allclose(np.linalg.norm(rest, 2), found.hankel_singular_values[2], rtol=1e-12)


def test_inputs_that_make_no_sense_are_refused():
    one = np.eye(2)
    with pytest.raises(hsv.HsvError, match="P must be Hermitian"):
        hsv.balancing_projection([[1.0, 1.0], [0.0, 1.0]], one, 1)
    with pytest.raises(hsv.HsvError, match="Q must be positive semidefinite, found the eigenvalue -1"):
        hsv.balancing_projection(one, np.diag([1.0, -1.0]), 1)
    with pytest.raises(hsv.ShapeError, match="one shape"):
        hsv.balancing_projection(one, np.eye(3), 1)
    with pytest.raises(hsv.ShapeError, match="X must have shape"):
        hsv.cross_gramian_projection(np.ones((2, 3)), 1)
    for call in (
        lambda rule: hsv.balancing_projection(one, one, rule),
        lambda rule: hsv.cross_gramian_projection(one, rule),
    ):
        with pytest.raises(hsv.OrderError, match="ErrorBound asks for a bound"):
            call(hsv.ErrorBound(1.0))
        with pytest.raises(hsv.OrderError, match=r"Order must be in \[1, 2\]"):
            call(3)
