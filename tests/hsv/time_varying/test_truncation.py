import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import time_varying as tv
from tests.hsv.test_systems import random_system
from tests.hsv.time_varying.test_gramians import KINDS, as_dense, random_sequence
from tests.hsv.time_varying.test_hankel import input_output_matrix


def worst_gain(A, B, C, red, *, layer_convention=False):
    """The largest ratio of the norms of error and input: of the whole map, as a matrix."""
    n = B.shape[-2]
    kind = KINDS[B.ndim - A.ndim]
    G = input_output_matrix(as_dense(A, n, kind), B, C, layer_convention=layer_convention)
    Gr = input_output_matrix(red.A, red.B, red.C, layer_convention=layer_convention)
    size = G.shape[0] * G.shape[1]
    return np.linalg.norm((G - Gr).reshape(size, -1), 2), np.linalg.norm(G.reshape(size, -1), 2)


@pytest.mark.parametrize("layer_convention", [False, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "p"), [(1, 1), (2, 3)])
def test_projections_error_and_full_order(m, p, kind, complex_, layer_convention, rng):
    T, n = 10, 4
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=m, p=p, complex_=complex_)
    dense = as_dense(A, n, kind)
    sigma = tv.hankel_singular_values(A, B, C, layer_convention=layer_convention)
    for r in range(1, n + 1):
        red = tv.balanced_truncation(A, B, C, r, layer_convention=layer_convention)
        assert red.A.shape == (T, r, r)
        assert red.B.shape == (T, r, m)
        assert red.C.shape == (T, p, r)
        assert red.left.shape == red.right.shape == (T + 1, n, r)
        assert int(red.orders) == r
        assert red.ranks[0] == 0
        if m == 1:
            assert red.ranks.tolist()[: r + 1] == list(range(r + 1))  # one input more at each step
        assert (red.ranks <= r).all()
        left_h = red.left.conj().swapaxes(-1, -2)
        identity = np.eye(r) * (np.arange(r) < red.ranks[:, None])[:, None, :]
        np.testing.assert_allclose(left_h @ red.right, identity, atol=1e-12)
        np.testing.assert_allclose(red.A, left_h[1:] @ dense @ red.right[:-1], atol=1e-10)
        np.testing.assert_allclose(red.B, left_h[1:] @ B, atol=1e-10)
        np.testing.assert_allclose(red.C, C @ (red.right[1:] if layer_convention else red.right[:-1]), atol=1e-10)
        of_states = red.hankel_singular_values[1:] if layer_convention else red.hankel_singular_values
        np.testing.assert_allclose(of_states, sigma, atol=1e-13 * sigma.max())
        error, gain = worst_gain(A, B, C, red, layer_convention=layer_convention)
        assert error <= red.error_bound * (1 + 1e-12) + 1e-12 * gain
        # no realisation with r states comes closer than the next Hankel value at any time
        assert error >= (sigma[:, r].max() if r < n else 0) * (1 - 1e-9)
        if r == n:
            assert error < 1e-11 * gain
            assert red.error_bound < 1e-9 * gain


@given(st.integers(2, 12), st.integers(2, 5), st.integers(1, 3), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_the_bound_holds_for_unstable_steps_too(T, n, m, kind, seed):
    A, B, C = random_sequence(np.random.default_rng(seed), kind, T=T, n=n, m=m, p=2, size=1.5)
    red = tv.balanced_truncation(A, B, C, hsv.HankelSum(discard=0.2))
    error, gain = worst_gain(A, B, C, red)
    assert error <= red.error_bound * (1 + 1e-12) + 1e-11 * gain


def test_a_time_invariant_system_gives_the_time_invariant_reduction(rng):
    """In the middle of a long window the reduced matrices have the transfer function of the time-invariant reduction."""
    sys = random_system(rng, n=5, m=2, p=2)
    T, r = 400, 3
    A, B, C = (np.broadcast_to(x, (T, *x.shape)) for x in (sys.A, sys.B, sys.C))
    red = tv.balanced_truncation(A, B, C, r)
    expected = hsv.balanced_truncation(hsv.StateSpace(sys.A, sys.B, sys.C, dt=True), r).system.impulse_response(20)
    k = T // 2
    state, response = red.B[k], []
    for step in range(1, 20):
        response.append(red.C[k + step] @ state)
        state = red.A[k + step] @ state
    np.testing.assert_allclose(np.array(response), expected[1:], atol=1e-9 * np.abs(expected).max())


def test_the_rule_sees_the_sum_over_time(rng):
    A, B, C = random_sequence(rng, "diagonal", T=30, n=6, m=1, p=1)
    summed = tv.hankel_singular_values(A, B, C).sum(axis=0)
    for rule in (hsv.HankelSum(keep=0.9), hsv.HankelEnergy(keep=0.99), hsv.Threshold(0.1), hsv.Order(2)):
        assert int(tv.balanced_truncation(A, B, C, rule).orders) == int(rule.choose(summed))
    bound = 2 * summed[3:].sum() * 1.0001
    red = tv.balanced_truncation(A, B, C, hsv.ErrorBound(bound))
    assert int(red.orders) == 3
    assert red.error_bound <= bound


def test_a_batch_is_its_systems(rng):
    A, B, C = random_sequence(rng, "diagonal", T=8, n=5, m=1, p=1, batch=(2, 3))
    C[0] *= np.array([1, 1e-1, 1e-2, 1e-3, 1e-4])
    red = tv.balanced_truncation(A, B, C, hsv.HankelSum(keep=0.95))
    assert red.orders.max() > red.orders.min()
    assert red.ranks.shape == (2, 3, 9)
    for i in np.ndindex(2, 3):
        alone = tv.balanced_truncation(A[i], B[i], C[i], hsv.HankelSum(keep=0.95))
        r = int(alone.orders)
        assert int(red.orders[i]) == r
        np.testing.assert_array_equal(red.ranks[i], alone.ranks)
        np.testing.assert_allclose(red.error_bound[i], alone.error_bound, rtol=1e-9)
        of_batch = input_output_matrix(red.A[i], red.B[i], red.C[i], layer_convention=False)
        of_one = input_output_matrix(alone.A, alone.B, alone.C, layer_convention=False)
        np.testing.assert_allclose(of_batch, of_one, atol=1e-10 * np.abs(of_one).max())
        for padded in (red.A[i][:, r:], red.A[i][..., r:], red.B[i][:, r:], red.C[i][..., r:], red.left[i][..., r:]):
            np.testing.assert_array_equal(padded, 0)


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_library_gives_the_numbers_of_numpy(kind, library, rng):
    arrays = random_sequence(rng, kind, T=6, batch=(2,))
    expected = tv.balanced_truncation(*arrays, 2)
    red = tv.balanced_truncation(*(library.asarray(x) for x in arrays), 2)

    def host(x):
        return np.asarray(x) if library is torch else np.from_dlpack(x)

    for i in range(2):
        ours, theirs = (
            input_output_matrix(*(host(getattr(x, name))[i] for name in "ABC"), layer_convention=False)
            for x in (red, expected)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max())
    np.testing.assert_allclose(host(red.error_bound), expected.error_bound, rtol=1e-9)
    np.testing.assert_array_equal(host(red.ranks), expected.ranks)


def test_what_is_asked_in_vain(rng):
    A, B, C = random_sequence(rng, "diagonal", T=3, n=4, m=1, p=1)
    with pytest.warns(hsv.OrderWarning, match="capped at 1 instead of 4: at no time"):
        red = tv.balanced_truncation(A, B, C, 4)  # three steps: one input before x[1], one output after x[2]
    assert int(red.orders) == 1
    with pytest.warns(hsv.OrderWarning, match="all Hankel singular values are zero"):
        red = tv.balanced_truncation(A, B, 0 * C, 1)
    assert red.A.shape == (3, 1, 1)
    assert int(red.orders) == 0
    assert float(red.error_bound) == 0
    with pytest.raises(hsv.OrderError, match=r"no order meets ErrorBound\(1e-30\)"):
        tv.balanced_truncation(*random_sequence(rng, "diagonal", T=20, n=4), hsv.ErrorBound(1e-30))
    with pytest.raises(hsv.OrderError, match=r"must be in \[1, 4\]"):
        tv.balanced_truncation(A, B, C, 5)
    with pytest.raises(hsv.DtypeError, match="rule must be"):
        tv.balanced_truncation(A, B, C, 0.5)
    with pytest.raises(hsv.NonFiniteError, match="overflows"):
        tv.balanced_truncation(np.full((400, 2), 10.0), np.ones((400, 2, 1)), np.ones((400, 1, 2)), 1)
