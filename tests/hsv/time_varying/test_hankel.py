import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from hsv import time_varying as tv
from tests.hsv.test_systems import random_diagonal, random_system
from tests.hsv.time_varying.test_gramians import (
    KINDS,
    as_dense,
    impulses_into,
    impulses_out_of,
    random_sequence,
    transition,
)


def simulate(A, B, C, u, *, layer_convention):
    """Outputs of dense A for inputs u (T, m) from rest, by the definition."""
    x, ys = np.zeros(A.shape[-1]), []
    for t in range(len(u)):
        if layer_convention:
            x = A[t] @ x + B[t] @ u[t]
            ys.append(C[t] @ x)
        else:
            ys.append(C[t] @ x)
            x = A[t] @ x + B[t] @ u[t]
    return np.array(ys)


def input_output_matrix(A, B, C, *, layer_convention):
    """The whole map from u to y, (T, p, T, m), impulse by impulse."""
    T, _, m = B.shape
    columns = [
        simulate(A, B, C, np.eye(T * m)[k].reshape(T, m), layer_convention=layer_convention) for k in range(T * m)
    ]
    return np.moveaxis(np.array(columns), 0, -1).reshape(T, C.shape[-2], T, m)


def hankel_matrix(G, t):
    """The part of the map from the inputs before `t` to the outputs from `t` on."""
    T, p, _, m = G.shape
    return G[t:, :, :t, :].reshape((T - t) * p, t * m)


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "n", "m", "p"), [(9, 4, 2, 3), (12, 5, 1, 1), (3, 4, 1, 1)])
def test_values_are_those_of_the_hankel_operator_at_every_time(T, n, m, p, kind, complex_, rng):
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=m, p=p, complex_=complex_)
    sigma = tv.hankel_singular_values(A, B, C)
    assert sigma.shape == (T + 1, n)
    assert sigma.dtype == np.float64
    G = input_output_matrix(as_dense(A, n, kind), B, C, layer_convention=False)
    for t in range(T + 1):
        values = np.linalg.svd(hankel_matrix(G, t), compute_uv=False) if 0 < t < T else np.zeros(0)
        expected = np.zeros(max(n, len(values)))
        expected[: len(values)] = values
        assert expected[n:].max(initial=0) < 1e-12 * np.linalg.norm(G)  # the operator has rank n at the most
        np.testing.assert_allclose(sigma[t], expected[:n], atol=1e-10 * sigma.max() * 1e-2)


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "n", "m", "p"), [(9, 4, 2, 3), (1, 2, 3, 3), (3, 4, 1, 1)])
def test_the_layers_pairing_is_the_hankel_operator_after_the_update(T, n, m, p, kind, complex_, rng):
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=m, p=p, complex_=complex_)
    sigma = tv.hankel_singular_values(A, B, C, layer_convention=True)
    assert sigma.shape == (T, n)
    G = input_output_matrix(as_dense(A, n, kind), B, C, layer_convention=True)
    for t in range(T):  # h[t] has seen u[t], and y[t] reads h[t]
        values = np.linalg.svd(G[t:, :, : t + 1, :].reshape((T - t) * p, (t + 1) * m), compute_uv=False)
        expected = np.zeros(max(n, len(values)))
        expected[: len(values)] = values
        np.testing.assert_allclose(sigma[t], expected[:n], atol=1e-12 * sigma.max())


def test_the_pairing_of_the_design_and_the_two_wrong_ones(rng):
    """P[t+1] with Q[t] of the shifted A; P[t], Q[t] and P[t+1], Q[t+1] of one system differ from it."""
    A, B, C = random_sequence(rng, "diagonal", T=8)
    sigma = tv.hankel_singular_values(A, B, C, layer_convention=True)
    P = tv.controllability_gramians(A, B)
    shifted = np.concatenate([A[1:], np.full_like(A[:1], np.pi)])  # the last entry is not used
    Q = tv.observability_gramians(shifted, C)

    def values(P, Q):
        return np.sort(np.sqrt(np.abs(np.linalg.eigvals(P @ Q))), axis=-1)[..., ::-1]

    # square roots of eigenvalues of a product have half the digits
    np.testing.assert_allclose(values(P[1:], Q[:-1]), sigma, atol=1e-6 * sigma.max())
    plain = tv.observability_gramians(A, C)
    for wrong in (values(P[:-1], plain[:-1]), values(P[1:], plain[1:])):
        assert np.abs(wrong - sigma).max() > 0.1 * sigma.max()


@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_a_time_invariant_system_gives_the_time_invariant_values(make, rng):
    sys = make(rng, n=5)
    T = 800
    A = sys.poles() if isinstance(sys, hsv.DiagonalStateSpace) else sys.A
    A, B, C = (np.broadcast_to(x, (T, *x.shape)) for x in (A, sys.B, sys.C))
    expected = hsv.hankel_singular_values(sys)
    for layer_convention in (False, True):
        sigma = tv.hankel_singular_values(A, B, C, layer_convention=layer_convention)
        # in the middle of a long window nothing is seen of its ends
        np.testing.assert_allclose(sigma[T // 2], expected, atol=1e-11 * expected[0])
    short = tv.hankel_singular_values(A[:7], B[:7], C[:7])
    for t in (2, 4):
        P, Q = hsv.controllability_gramian(sys, horizon=t), hsv.observability_gramian(sys, horizon=7 - t)
        squares = np.sort(np.linalg.eigvals(P @ Q).real)[::-1]
        np.testing.assert_allclose(short[t] ** 2, squares, atol=1e-10 * squares[0])


def test_values_do_not_depend_on_coordinates_that_change_with_time(rng):
    A, B, C = random_sequence(rng, "dense", T=8, n=4)
    T = rng.normal(size=(9, 4, 4)) + 3 * np.eye(4)
    inverse = np.linalg.inv(T)
    moved = T[1:] @ A @ inverse[:-1], T[1:] @ B, C @ inverse[:-1]
    sigma = tv.hankel_singular_values(A, B, C)
    np.testing.assert_allclose(tv.hankel_singular_values(*moved), sigma, atol=1e-11 * sigma.max())


def test_a_batch_is_its_systems(rng):
    A, B, C = random_sequence(rng, "diagonal", batch=(2, 3))
    for layer_convention in (False, True):
        sigma = tv.hankel_singular_values(A, B, C, layer_convention=layer_convention)
        for i in np.ndindex(2, 3):
            alone = tv.hankel_singular_values(A[i], B[i], C[i], layer_convention=layer_convention)
            np.testing.assert_allclose(sigma[i], alone, atol=1e-13 * sigma.max())


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("layer_convention", [True, False])
def test_every_library_gives_the_numbers_of_numpy(layer_convention, library, rng):
    arrays = random_sequence(rng, "diagonal", batch=(2,))
    expected = tv.hankel_singular_values(*arrays, layer_convention=layer_convention)
    got = tv.hankel_singular_values(*(library.asarray(x) for x in arrays), layer_convention=layer_convention)
    np.testing.assert_allclose(
        np.asarray(got) if library is torch else np.from_dlpack(got), expected, atol=1e-12 * expected.max()
    )


def test_brute_force_and_simulation_agree(rng):
    """The helpers of these tests, one against the other."""
    A, B, C = random_sequence(rng, "dense", T=6)
    G = input_output_matrix(A, B, C, layer_convention=False)
    into, out = impulses_into(A, B, 3), impulses_out_of(A, C, 3)
    np.testing.assert_allclose(hankel_matrix(G, 3), out @ into, atol=1e-13)
    np.testing.assert_allclose(G[5, :, 1, :], C[5] @ transition(A, 5, 2) @ B[1], atol=1e-13)


def test_maps_that_do_not_fit_each_other_are_named(rng):
    A, B, C = random_sequence(rng, "scalar", T=5, n=4)
    with pytest.raises(hsv.ShapeError, match="same number of states"):
        tv.hankel_singular_values(A, B, C[..., :3])
    with pytest.raises(hsv.ShapeError, match="along time"):
        tv.hankel_singular_values(A, B, C[1:])
