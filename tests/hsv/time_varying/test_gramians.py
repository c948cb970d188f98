import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import time_varying as tv
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

KINDS = ("dense", "diagonal", "scalar")


def random_sequence(rng, kind="dense", *, T=7, n=4, m=2, p=3, batch=(), complex_=True, size=0.9):
    """A, B, C of a random time-varying system; `size` bounds the norms of A_t."""

    def draw(*shape):
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if complex_ else x

    A = draw(*batch, T, *{"dense": (n, n), "diagonal": (n,), "scalar": ()}[kind])
    norms = np.linalg.norm(A, 2, axis=(-2, -1))[..., None, None] if kind == "dense" else np.abs(A)
    A = size * A / norms * rng.uniform(0.3, 1.0, norms.shape)
    return A, draw(*batch, T, n, m), draw(*batch, T, p, n)


def as_dense(A, n, kind):
    """The same A_t as matrices."""
    if kind == "dense":
        return A
    return A[..., None] * np.eye(n) if kind == "diagonal" else A[..., None, None] * np.eye(n)


def transition(A, t, s):
    """A[t-1] ... A[s] of dense A: from x[s] to x[t]."""
    product = np.eye(A.shape[-1])
    for k in range(s, t):
        product = A[..., k, :, :] @ product
    return product


def impulses_into(A, B, t):
    """Every impulse response that ends in the state at time t: [A[t-1] ... A[s+1] B[s] for s < t], side by side."""
    columns = [transition(A, t, s + 1) @ B[..., s, :, :] for s in range(t)]
    return np.concatenate(columns, axis=-1) if columns else np.zeros((*B.shape[:-3], B.shape[-2], 0))


def impulses_out_of(A, C, t):
    """Every output that follows from the state at time t, stacked."""
    T = C.shape[-3]
    rows = [C[..., s, :, :] @ transition(A, s, t) for s in range(t, T)]
    return np.concatenate(rows, axis=-2) if rows else np.zeros((*C.shape[:-3], 0, C.shape[-1]))


def hermitian(x):
    return x.conj().swapaxes(-1, -2)


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("T", "n", "m", "p", "batch"), [(9, 4, 2, 3, (2, 3)), (5, 3, 1, 1, ()), (4, 2, 5, 4, (3,)), (1, 3, 2, 2, ())]
)
def test_gramians_are_the_sums_over_all_impulse_responses(T, n, m, p, batch, kind, complex_, rng):
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=m, p=p, batch=batch, complex_=complex_)
    dense = as_dense(A, n, kind)
    P, Q = tv.controllability_gramians(A, B), tv.observability_gramians(A, C)
    Lc, Lo = tv.controllability_factors(A, B), tv.observability_factors(A, C)
    assert P.shape == Q.shape == Lc.shape == Lo.shape == (*batch, T + 1, n, n)
    for X in (P, Q, Lc, Lo):
        assert np.iscomplexobj(X) == complex_
    for t in range(T + 1):
        into, out = impulses_into(dense, B, t), impulses_out_of(dense, C, t)
        np.testing.assert_allclose(P[..., t, :, :], into @ hermitian(into), atol=1e-12 * np.abs(P).max())
        np.testing.assert_allclose(Q[..., t, :, :], hermitian(out) @ out, atol=1e-12 * np.abs(Q).max())
    for X, L in ((P, Lc), (Q, Lo)):
        np.testing.assert_allclose(L @ hermitian(L), X, atol=tolerance(float) * np.abs(X).max())
        np.testing.assert_array_equal(np.triu(L, 1), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_unstable_steps_are_allowed_in_a_window(kind, rng):
    A, B, C = random_sequence(rng, kind, T=6, size=3.0)
    dense = as_dense(A, 4, kind)
    into, out = impulses_into(dense, B, 6), impulses_out_of(dense, C, 0)
    P, Q = tv.controllability_gramians(A, B)[6], tv.observability_gramians(A, C)[0]
    np.testing.assert_allclose(P, into @ hermitian(into), atol=1e-11 * np.abs(P).max())
    np.testing.assert_allclose(Q, hermitian(out) @ out, atol=1e-11 * np.abs(Q).max())


@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_a_time_invariant_system_gives_the_time_invariant_gramians(make, rng):
    sys = make(rng, n=5)
    T = 400  # 0.95^800: the limit is reached to working precision
    A = sys.poles() if isinstance(sys, hsv.DiagonalStateSpace) else sys.A
    A, B, C = (np.broadcast_to(x, (T, *x.shape)) for x in (A, sys.B, sys.C))
    P, Q = tv.controllability_gramians(A, B), tv.observability_gramians(A, C)
    for k in (1, 2, 7, 100):
        expected = hsv.controllability_gramian(sys, horizon=k)
        np.testing.assert_allclose(P[k], expected, atol=1e-12 * np.abs(expected).max())
        expected = hsv.observability_gramian(sys, horizon=k)
        np.testing.assert_allclose(Q[T - k], expected, atol=1e-12 * np.abs(expected).max())
    limit = hsv.controllability_gramian(sys)
    np.testing.assert_allclose(P[T], limit, atol=1e-11 * np.abs(limit).max())
    limit = hsv.observability_gramian(sys)
    np.testing.assert_allclose(Q[0], limit, atol=1e-11 * np.abs(limit).max())


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_library_gives_the_numbers_of_numpy(kind, complex_, library, rng):
    arrays = random_sequence(rng, kind, batch=(2,), complex_=complex_)
    A, B, C = arrays
    a, b, c = (library.asarray(x) for x in arrays)
    pairs = [
        (tv.controllability_gramians(a, b), tv.controllability_gramians(A, B)),
        (tv.observability_gramians(a, c), tv.observability_gramians(A, C)),
        (tv.controllability_factors(a, b), tv.controllability_factors(A, B)),
        (tv.observability_factors(a, c), tv.observability_factors(A, C)),
    ]
    for ours, expected in pairs:
        assert type(ours) is type(a)
        got = np.asarray(ours) if library is torch else np.from_dlpack(ours)
        # A column of a factor is free up to a phase, which libraries may choose otherwise.
        np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-12 * np.abs(expected).max())


def test_single_precision_is_computed_in_double_and_rounded_once(rng):
    A, B, _ = random_sequence(rng, "diagonal", T=50, complex_=False)
    A, B = A.astype(np.float32), B.astype(np.float32)
    P = tv.controllability_gramians(A, B)
    assert P.dtype == np.float32
    np.testing.assert_array_equal(P, tv.controllability_gramians(A.astype(float), B.astype(float)).astype(np.float32))


def test_factors_keep_the_digits_that_gramians_lose():
    """Two nearly parallel inputs: det P = gap^2 is below the rounding errors of P and safe in the factor."""
    gap = 1e-12
    A, B = np.ones(2), np.array([[[1.0], [1.0]], [[1.0], [1.0 + gap]]])
    L = tv.controllability_factors(A, B)[-1]
    np.testing.assert_allclose(abs(np.linalg.det(L)), (1.0 + gap) - 1.0, rtol=1e-3)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_gramians_are_hermitian_positive_and_leave_their_inputs_alone(T, n, m, kind, seed):
    A, B, C = random_sequence(np.random.default_rng(seed), kind, T=T, n=n, m=m, size=1.5)
    copies = A.copy(), B.copy(), C.copy()
    for X in (tv.controllability_gramians(A, B), tv.observability_gramians(A, C)):
        top = np.abs(X).max(initial=1e-300)
        np.testing.assert_allclose(X, hermitian(X), atol=1e-14 * top)
        assert np.linalg.eigvalsh(X).min() >= -1e-13 * top
    for array, copy in zip((A, B, C), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_an_empty_batch_is_a_batch():
    A, B, C = np.zeros((0, 3, 2)), np.zeros((0, 3, 2, 1)), np.zeros((0, 3, 1, 2))
    assert tv.controllability_gramians(A, B).shape == (0, 4, 2, 2)
    assert tv.observability_factors(A, C).shape == (0, 4, 2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_growth_beyond_the_range_is_named_with_its_time(kind):
    n, T = 2, 400
    A = np.full(T, 10.0)
    A = as_dense(A, n, "scalar") if kind == "dense" else np.tile(A[:, None], (1, n)) if kind == "diagonal" else A
    B, C = np.ones((T, n, 1)), np.ones((T, 1, n))
    # P[t] = 1 + 100 + ... + 100^(t-1) passes 1.8e308 at t = 156; Q in mirror image; a factor 10^(t-1) at t = 310.
    with pytest.raises(hsv.NonFiniteError, match=r"P\[156\] overflows .* an A_t that grows"):
        tv.controllability_gramians(A, B)
    with pytest.raises(hsv.NonFiniteError, match=r"Q\[244\] overflows"):
        tv.observability_gramians(A, C)
    with pytest.raises(hsv.NonFiniteError, match=r"the factor of P\[3\d\d\] overflows"):
        tv.controllability_factors(A, B)
    with pytest.raises(hsv.NonFiniteError, match=r"the factor of Q\[\d\d\] overflows"):
        tv.observability_factors(A, C)
    with pytest.raises(hsv.NonFiniteError, match=r"P\[21\] overflows in float32"):
        tv.controllability_gramians(A[:50].astype(np.float32), B[:50].astype(np.float32))


def test_nan_is_named(rng):
    A, B, C = random_sequence(rng, "diagonal", batch=(3,))
    A[1, 4, 2] = np.nan
    with pytest.raises(hsv.NonFiniteError, match=r"A must be finite, found .*nan.* at index \(1, 4, 2\)"):
        tv.controllability_gramians(A, B)
    A[1, 4, 2], C[2, 0, 0, 0] = 0.5, np.inf
    with pytest.raises(hsv.NonFiniteError, match=r"C must be finite, found .*inf.* at index \(2, 0, 0, 0\)"):
        tv.observability_gramians(A, C)


def test_shapes_that_do_not_match_are_named(rng):
    A, B, C = random_sequence(rng, "diagonal", T=7, n=4)
    with pytest.raises(
        hsv.ShapeError, match=r"must match along time: a diagonal A has shape \(7, 4\) for B \(7, 4, 2\), got \(6, 4\)"
    ):
        tv.controllability_gramians(A[1:], B)
    with pytest.raises(hsv.ShapeError, match="in the batch axes or the states"):
        tv.observability_gramians(A[:, 1:], C)
    with pytest.raises(hsv.ShapeError, match="in the batch axes or the states"):
        tv.controllability_gramians(np.stack([A, A]), np.stack([B]))
    with pytest.raises(hsv.ShapeError, match="at least one step of time"):
        tv.controllability_gramians(A[:0], B[:0])
    with pytest.raises(hsv.ShapeError, match="no empty axis"):
        tv.controllability_gramians(A[:, :0], B[:, :0])
    with pytest.raises(hsv.ShapeError, match=r"B must have shape \(\.\.\., T, n, m\)"):
        tv.controllability_gramians(A, B[0])
    with pytest.raises(hsv.ShapeError, match="A must have as many axes"):
        tv.controllability_gramians(A[None, None, None], B)
    with pytest.raises(hsv.ShapeError, match="A must have as many axes"):
        tv.controllability_gramians(A[0, 0], B)
    with pytest.raises(hsv.DtypeError, match="one array library"):
        tv.controllability_gramians(torch.asarray(A), B)
