"""Beside python-control and SLICOT where they are right, and with the right answer where they are not."""

import warnings

import control
import flint
import numpy as np
import pytest
import slycot

import hsv
from tests.hsv import exact
from tests.hsv import reference_systems as known
from tests.tolerances import tolerance

W = np.geomspace(1e-2, 1e2, 60)


def response_of(A, B, C, D, w):
    return np.array([C @ np.linalg.solve(1j * f * np.eye(len(A)) - A, B) + D for f in w])


def systems():
    rng = np.random.default_rng(5)
    yield known.slicot_power_system().system()
    yield known.two_state_lag().system()
    yield known.four_state_transfer_function().system()
    for n, m, p in [(3, 1, 1), (6, 2, 3), (12, 3, 2)]:
        yield known.random_stable(rng, n, m, p, dt=0)


@pytest.mark.parametrize("sys", list(systems()), ids=repr)
def test_python_control_in_continuous_time(sys):
    peer = hsv.to_control(sys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.sort(np.asarray(control.hankel_singular_values(peer)).ravel())[::-1]
        P, Q = control.gram(peer, "c"), control.gram(peer, "o")
    sigma = hsv.hankel_singular_values(sys)
    # the peer takes the root of eig(P Q), which has half the digits for the small values
    np.testing.assert_allclose(sigma**2, values**2, atol=1e-12 * sigma[0] ** 2)
    np.testing.assert_allclose(hsv.controllability_gramian(sys), P, atol=1e-11 * np.abs(P).max())
    np.testing.assert_allclose(hsv.observability_gramian(sys), Q, atol=1e-11 * np.abs(Q).max())


@pytest.mark.parametrize("sys", list(systems()), ids=repr)
def test_slicot_reduces_to_the_same_transfer_function(sys):
    sigma = hsv.hankel_singular_values(sys)
    for order in range(1, sys.n_states):
        if sigma[order - 1] / sigma[order] < 1 + 1e-4:
            continue
        red = hsv.balanced_truncation(sys, order)
        _, A, B, C, values = slycot.ab09ad(
            "C", "B", "N", sys.n_states, sys.n_inputs, sys.n_outputs, sys.A, sys.B, sys.C, order
        )
        np.testing.assert_allclose(sigma, values, atol=tolerance(float) * sigma[0])
        # directions that belong to close values are determined only up to their distance
        loss = 1 / min(1.0, 1 - sigma[order] / sigma[order - 1])
        np.testing.assert_allclose(
            red.system.frequency_response(W),
            response_of(A, B, C, sys.D, W),
            atol=1e-10 * loss * sigma[0],
        )


@pytest.mark.parametrize("seed", range(3))
def test_slicot_in_discrete_time(seed):
    sys = known.random_stable(np.random.default_rng(seed), 8, 2, 2, dt=True)
    _, A, B, C, values = slycot.ab09ad("D", "B", "N", 8, 2, 2, sys.A, sys.B, sys.C, 4)
    red = hsv.balanced_truncation(sys, 4)
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), values, atol=tolerance(float) * values[0])
    w = np.linspace(0, np.pi, 20)
    theirs = hsv.StateSpace(A, B, C, sys.D, dt=True).frequency_response(w)
    np.testing.assert_allclose(red.system.frequency_response(w), theirs, atol=1e-9 * values[0])


def test_a_discrete_system_stays_discrete():
    """python-control's balred takes discrete systems for continuous ones, silently; ours obeys the discrete bound."""
    poles = np.array([0.9, 0.5, -0.3, 0.2])
    sys = hsv.StateSpace(np.diag(poles), np.ones((4, 1)), np.ones((1, 4)), dt=True)
    red = hsv.balanced_truncation(sys, 2)
    assert red.system.dt is True
    assert float(hsv.hinf_error(sys, red.system)) <= red.error_bound
    exact_values = exact.diagonal_hankel_values(poles, sys.B, sys.C)
    np.testing.assert_allclose(red.hankel_singular_values, exact_values, rtol=1e-12)


def test_small_hankel_values_are_real_where_the_product_of_gramians_gives_complex_ones():
    """A heat equation: sqrt(eig(P Q)) loses every digit below 1e-8 of the largest value."""
    sys = known.heat_equation(60).system()
    P, Q = hsv.controllability_gramian(sys), hsv.observability_gramian(sys)
    naive = np.linalg.eigvals(P @ Q)
    assert np.any(naive.real < 0)
    sigma = hsv.hankel_singular_values(sys)
    assert np.isrealobj(sigma)
    assert np.all(sigma >= 0)
    slicot = slycot.ab09ad("C", "B", "N", 60, 1, 1, sys.A, sys.B, sys.C, 1)[-1]
    np.testing.assert_allclose(sigma, slicot, atol=1e-14 * sigma[0])


def exact_truncation_response(poles, B, C, order, z):
    """Transfer function of the balanced truncation of a diagonal discrete system in 1,400-bit arithmetic, at one point `z`.

    With V, W the right and left eigenvectors of P Q for its largest eigenvalues, A_r = (W^H V)^-1 W^H A V and so on: the truncation
    in other coordinates.
    """
    saved, flint.ctx.prec = flint.ctx.prec, exact.BITS
    try:
        lam = [exact._number(x) for x in poles]
        B_, C_ = exact._matrix(B), exact._matrix(C)
        BB, CC = B_ * exact._conjugate_transpose(B_), exact._conjugate_transpose(C_) * C_
        n = len(lam)
        P = flint.acb_mat([[BB[i, j] / (1 - lam[i] * lam[j].conjugate()) for j in range(n)] for i in range(n)])
        Q = flint.acb_mat([[CC[i, j] / (1 - lam[i].conjugate() * lam[j]) for j in range(n)] for i in range(n)])
        values, left, right = (P * Q).eig(left=True, right=True, algorithm="approx")
        keep = sorted(range(n), key=lambda k: -float(abs(values[k]).mid()))[:order]
        V = flint.acb_mat([[right[i, k].mid() for k in keep] for i in range(n)])
        W = flint.acb_mat([[left[k, i].mid() for i in range(n)] for k in keep])  # rows
        A = flint.acb_mat([[lam[i] if i == j else flint.acb(0) for j in range(n)] for i in range(n)])
        mass = W * V
        A_r, B_r, C_r = mass.solve(W * A * V), mass.solve(W * B_), C_ * V
        z_ = exact._number(z)
        resolvent = flint.acb_mat(
            [[(z_ if i == j else flint.acb(0)) - A_r[i, j] for j in range(order)] for i in range(order)]
        )
        G = C_r * resolvent.solve(B_r)
        return np.array([[complex(G[i, j].mid()) for j in range(G.ncols())] for i in range(G.nrows())])
    finally:
        flint.ctx.prec = saved


@pytest.mark.parametrize(("n", "m", "order"), [(6, 2, 3), (12, 1, 5), (16, 4, 8)])
def test_reduced_transfer_functions_against_exact_arithmetic(n, m, order, rng):
    sys = known.lru_initialisation(rng, n, m)
    red = hsv.balanced_truncation(sys, order)
    for w in (-2.0, 0.0, 0.4, 3.0):
        truth = exact_truncation_response(sys.poles(), sys.B, sys.C, order, np.exp(1j * w))
        z = np.exp(1j * w)
        ours = red.system.C @ np.linalg.solve(z * np.eye(order) - red.system.A, red.system.B)
        np.testing.assert_allclose(ours, truth, atol=1e-11 * red.hankel_singular_values[0])
