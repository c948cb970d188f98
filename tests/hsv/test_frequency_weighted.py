"""Beside SLICOT's AB09ID where it is right, and beside the definitions everywhere."""

import warnings

import array_api_strict
import ctrlsys
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import to_host
from tests.hsv import reference_systems as known
from tests.hsv import slicot_examples as printed
from tests.hsv.test_array_libraries import convert
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

METHODS = (hsv.frequency_weighted_truncation, hsv.frequency_weighted_singular_perturbation)
W = np.linspace(0.05, 3, 7)


def series(first, second):
    """``first(s) second(s)``: the second acts on the input."""
    first, second = first.to_dense(), second.to_dense()
    batch = np.broadcast_shapes(first.batch_shape, second.batch_shape)
    zero = np.zeros((*batch, second.n_states, first.n_states))
    corner = np.broadcast_to(first.B @ second.C, (*batch, first.n_states, second.n_states))
    A1, A2 = (np.broadcast_to(x.A, (*batch, *x.A.shape[-2:])) for x in (first, second))
    A = np.concatenate([np.concatenate([A1, corner], axis=-1), np.concatenate([zero, A2], axis=-1)], axis=-2)
    B = np.concatenate(np.broadcast_arrays(first.B @ second.D, 0 * first.B @ second.D), axis=-2)[
        ..., : first.n_states, :
    ]
    B = np.concatenate([B, np.broadcast_to(second.B, (*batch, *second.B.shape[-2:]))], axis=-2)
    C = np.concatenate([np.broadcast_to(first.C, (*batch, *first.C.shape[-2:])), first.D @ second.C], axis=-1)
    return hsv.StateSpace(A, B, C, first.D @ second.D, dt=first.dt)


def weighted_error(sys, reduced, input_weight=None, output_weight=None):
    error = sys - reduced
    error = error if input_weight is None else series(error, input_weight)
    return float(hsv.hinf_norm(error if output_weight is None else series(output_weight, error)))


def quietly(method, *args, **options):
    """Warnings of unstable results are asked for elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        return method(*args, **options)


def by_slicot(sys, order, output_weight, input_weight, choice, job, mix, alpha=None):
    """AB09ID of ctrlsys: the reduced system and the values."""
    nothing = np.zeros((1, 1), order="F")

    def matrices(system):
        return [np.asfortranarray(x.copy()) for x in (system.A, system.B, system.C, system.D)]

    left = [nothing] * 4 if output_weight is None else matrices(output_weight)
    right = [nothing] * 4 if input_weight is None else matrices(input_weight)
    weight = ("N", "R", "L", "B")[2 * (output_weight is not None) + (input_weight is not None)]
    sizes = (
        *((0, sys.n_outputs) if output_weight is None else (output_weight.n_states, output_weight.n_outputs)),
        *((0, sys.n_inputs) if input_weight is None else (input_weight.n_states, input_weight.n_inputs)),
    )
    alpha = (1.0 if sys.is_discrete else 0.0) if alpha is None else alpha
    time = "D" if sys.is_discrete else "C"
    found = ctrlsys.ab09id(
        *(time, choice, choice, job, weight, "N", "F", sys.n_states, sys.n_inputs, sys.n_outputs, *sizes),
        *(order, alpha, mix, mix, *matrices(sys), *left, *right, 0.0, 0.0),
    )
    A, B, C, D = found[:4]
    stable, values, size, _, info = found[-5:]
    assert info == 0
    return hsv.StateSpace(A[:size, :size], B[:size], C[:, :size], D, dt=sys.dt), values[:stable]


def weights_for(rng, dt, sides, unstable=False, complex_=False):
    V = random_system(rng, n=3, m=3, p=2, complex_=complex_, dt=dt) if "L" in sides else None
    weight = random_system(rng, n=2, m=4, p=2, complex_=complex_, dt=dt) if "R" in sides else None
    if unstable and V is not None:
        V = hsv.StateSpace(np.linalg.inv(V.A) if dt else -V.A, V.B, V.C, V.D, dt=dt)
    return {"output_weight": V, "input_weight": weight}


# Not asked of AB09ID as ctrlsys 1.1 has it: singular perturbation in discrete time (its result misses the gain at frequency 0, without weights too), the observability
# Gramian of choice 'E' in discrete time, and unstable input weights. These are compared with definitions below.
@pytest.mark.parametrize(
    ("dt", "sides", "choice", "unstable"),
    [
        *((0, sides, choice, False) for sides in ("L", "R", "LR") for choice in "SE"),
        *((0, "L", choice, True) for choice in "SE"),
        *((True, sides, "S", False) for sides in ("L", "R", "LR")),
        (True, "R", "E", False),
    ],
)
@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_slicot_gives_the_same_systems(dt, sides, choice, unstable, mix, rng):
    sys = random_system(rng, n=6, complex_=False, dt=dt)
    weights = weights_for(rng, dt, sides, unstable)
    stability = {"S": None, "E": "positive-part"}[choice]
    for job, method in zip("BS" if not dt else "B", METHODS, strict=False):
        peer, values = by_slicot(sys, 3, weights["output_weight"], weights["input_weight"], choice, job, mix)
        red = quietly(method, sys, 3, **weights, input_mix=mix, output_mix=mix, stability=stability)
        np.testing.assert_allclose(red.hankel_singular_values, values, atol=1e-11 * values[0])
        expected = peer.frequency_response(W)
        np.testing.assert_allclose(red.system.frequency_response(W), expected, atol=1e-9 * np.abs(expected).max())


def test_slicots_printed_example():
    """A plant with one unstable pole, which stays; the printed digits of the values and poles: `test_published_examples.py`."""
    example = printed.ab09id()
    red = hsv.reduce_stable_part(
        example.sys,
        example.order - 1,
        lambda stable, rule: hsv.frequency_weighted_truncation(stable, rule, output_weight=example.weight),
    )
    assert red.system.n_states == example.order
    np.testing.assert_allclose(red.system.frequency_response(W), example.reduced.frequency_response(W), atol=1e-3)


@pytest.mark.parametrize("stability", [None, "positive-part", "absolute-value"])
@pytest.mark.parametrize("method", METHODS)
def test_vargas_example_of_order_2(method, stability):
    """Where Julia's package fails: every order of every variant has a system, and those of order 2 are near."""
    example = known.varga_weighted()
    G, weights = example.system(), example.weights()
    for mix in (0.0, 0.5, 1.0):
        options = {**weights, "input_mix": mix, "output_mix": mix, "stability": stability}
        assert weighted_error(G, method(G, 2, **options).system, **weights) < 0.03
        assert weighted_error(G, method(G, 3, **options).system, **weights) < 1e-12


def test_enns_method_may_lose_stability_and_says_so():
    example = known.varga_weighted()
    G, weights = example.system(), example.weights()
    with pytest.warns(hsv.OrderWarning, match="not stable: these Gramians promise no stability"):
        red = hsv.frequency_weighted_truncation(G, 1, **weights)
    assert red.system.poles().real.max() > 0
    assert "absolute-value" in red.notes[0]
    for stability in ("absolute-value", "positive-part"):
        assert hsv.frequency_weighted_truncation(G, 1, **weights, stability=stability).system.poles().real.max() < 0


def by_quadrature(sys, weight):
    """``1/(2 pi) int R B W W^H B^H R^H dw``: shares nothing with Lyapunov equations."""
    step = float(sys.dt)

    def integrand(w):
        s = np.exp(1j * w) if step else 1j * w
        X = np.linalg.solve(s * np.eye(sys.n_states) - sys.A, sys.B @ weight.frequency_response([w / (step or 1)])[0])
        return X @ X.conj().T / (2 * np.pi)

    options = {"epsabs": 1e-12, "epsrel": 1e-11}
    if step:
        return scipy.integrate.quad_vec(integrand, -np.pi, np.pi, **options)[0]
    return scipy.integrate.quad_vec(lambda t: (integrand(1 / t - 1) + integrand(1 - 1 / t)) / t**2, 1e-9, 1, **options)[
        0
    ]


@pytest.mark.parametrize("unstable", [False, True])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("dt", [0, True, 0.3])
def test_enns_gramians_by_quadrature(dt, complex_, unstable, rng):
    sys = random_system(rng, n=3, complex_=complex_, dt=dt)
    weight = random_system(rng, n=2, m=3, p=2, complex_=complex_, dt=dt)
    if unstable:  # one pole of two
        poles, vectors = np.linalg.eig(weight.A + np.diag([0, 1e-3]))
        if complex_:
            poles[0] = 1 / poles[0] if dt else -poles[0]
        else:
            poles = 1 / poles if dt else -poles
        A = vectors @ np.diag(poles) @ np.linalg.inv(vectors)
        weight = hsv.StateSpace(A if complex_ else A.real, weight.B, weight.C, weight.D, dt=dt)
    P, Q = hsv.frequency_weighted_gramians(sys, input_weight=weight)
    np.testing.assert_allclose(P, by_quadrature(sys, weight), atol=1e-7 * np.abs(P).max())
    np.testing.assert_allclose(Q, hsv.observability_gramian(sys), rtol=1e-10, atol=1e-12 * np.abs(Q).max())
    mirror = hsv.StateSpace(*(x.conj().T for x in (sys.A, sys.C, sys.B, sys.D)), dt=dt)
    dual_weight = hsv.StateSpace(*(x.conj().T for x in (weight.A, weight.C, weight.B, weight.D)), dt=dt)
    _, dual = hsv.frequency_weighted_gramians(mirror, output_weight=dual_weight)
    np.testing.assert_allclose(dual, P, atol=1e-11 * np.abs(P).max())


def joint_gramian(sys, weight, dt):
    A = np.block([[sys.A, sys.B @ weight.C], [np.zeros((weight.n_states, sys.n_states)), weight.A]])
    B = np.concatenate([sys.B @ weight.D, weight.B])
    if dt:
        return scipy.linalg.solve_discrete_lyapunov(A, B @ B.conj().T)
    return scipy.linalg.solve_continuous_lyapunov(A, -B @ B.conj().T)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("mix", [0.3, 1.0])
def test_mixes_subtract_the_schur_complement(mix, dt, complex_, rng):
    sys = random_system(rng, n=4, complex_=complex_, dt=dt)
    weight = random_system(rng, n=2, m=2, p=2, complex_=complex_, dt=dt)
    joint = joint_gramian(sys, weight, dt)
    expected = joint[:4, :4] - mix**2 * joint[:4, 4:] @ np.linalg.solve(joint[4:, 4:], joint[4:, :4])
    P, _ = hsv.frequency_weighted_gramians(sys, input_weight=weight, input_mix=mix)
    np.testing.assert_allclose(P, expected, atol=1e-10 * np.abs(joint).max())


@pytest.mark.parametrize("stability", ["positive-part", "absolute-value"])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("mix", [0.0, 0.6])
def test_the_modified_gramians_by_definition(mix, dt, stability, rng):
    """Values from eigenvalues of right-hand sides made positive, by SciPy's solvers."""
    sys = random_system(rng, n=4, complex_=False, dt=dt)
    weights = weights_for(rng, dt, "LR")
    solve = scipy.linalg.solve_discrete_lyapunov if dt else lambda a, q: scipy.linalg.solve_continuous_lyapunov(a, -q)
    gramians = []
    for A, P in zip(
        (sys.A, sys.A.T),
        hsv.frequency_weighted_gramians(sys, **weights, input_mix=mix, output_mix=mix),
        strict=True,
    ):
        Y = P - A @ P @ A.T if dt else -A @ P - P @ A.T
        values, vectors = np.linalg.eigh(Y)
        values = np.abs(values) if stability == "absolute-value" else np.maximum(values, 0)
        gramians.append(solve(A, (vectors * values) @ vectors.T))
    expected = np.sqrt(np.sort(np.linalg.eigvals(gramians[0] @ gramians[1]).real)[::-1])
    red = hsv.frequency_weighted_truncation(sys, 2, **weights, input_mix=mix, output_mix=mix, stability=stability)
    np.testing.assert_allclose(red.hankel_singular_values, expected, rtol=1e-8)


@given(
    seed=st.integers(0, 10**6),
    dt=st.sampled_from([0, True, 0.2]),
    complex_=st.booleans(),
    sides=st.sampled_from(["L", "R", "LR"]),
    mix=st.sampled_from([0.0, 0.4, 0.9]),
    order=st.integers(1, 4),
)
def test_the_bound_of_the_weighted_error(seed, dt, complex_, sides, mix, order):
    rng = np.random.default_rng(seed)
    sys = random_system(rng, n=5, complex_=complex_, dt=dt)
    weights = weights_for(rng, dt, sides, complex_=complex_)
    for method in METHODS:
        red = method(sys, order, **weights, input_mix=mix, output_mix=mix, stability="absolute-value")
        assert red.error_bound is not None
        assert weighted_error(sys, red.system, **weights) <= float(red.error_bound)


@given(
    seed=st.integers(0, 10**6), dt=st.sampled_from([0, True]), sides=st.sampled_from(["L", "R"]), mix=st.floats(0, 1)
)
def test_one_weight_keeps_stability(seed, dt, sides, mix):
    """Enns' theorem for a weight on one side; `filterwarnings` makes an unstable result an error."""
    rng = np.random.default_rng(seed)
    sys = random_system(rng, n=5, dt=dt)
    weights = weights_for(rng, dt, sides, complex_=True)
    for method in METHODS:
        poles = method(sys, 2, **weights, input_mix=mix, output_mix=mix).system.poles()
        assert (np.abs(poles).max() < 1) if dt else (poles.real.max() < 0)


@given(seed=st.integers(0, 10**6), dt=st.sampled_from([0, True]))
def test_lin_and_chius_choice_keeps_stability_with_both_weights(seed, dt):
    rng = np.random.default_rng(seed)
    sys = random_system(rng, n=5, dt=dt)
    weights = weights_for(rng, dt, "LR", complex_=True)
    for method in METHODS:
        poles = method(sys, 2, **weights, input_mix=1.0, output_mix=1.0).system.poles()
        assert (np.abs(poles).max() < 1) if dt else (poles.real.max() < 0)


@pytest.mark.parametrize("dt", [0, True])
def test_weights_without_effect_change_nothing(dt, rng):
    sys = random_system(rng, n=5, dt=dt)
    rotation = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    idle = hsv.StateSpace([[-0.5]], np.zeros((1, 2)), np.zeros((2, 1)), rotation, dt=dt)
    plain = hsv.balanced_truncation(sys, 3)
    for mix in (0.0, 1.0):
        for stability in (None, "absolute-value", "positive-part"):
            red = hsv.frequency_weighted_truncation(sys, 3, input_weight=idle, input_mix=mix, stability=stability)
            np.testing.assert_allclose(red.hankel_singular_values, plain.hankel_singular_values, rtol=1e-9)
            np.testing.assert_allclose(red.system.frequency_response(W), plain.system.frequency_response(W), atol=1e-9)
            if stability:
                np.testing.assert_allclose(red.error_bound, plain.error_bound, rtol=1e-6)
    np.testing.assert_allclose(
        hsv.frequency_weighted_truncation(sys, 3).system.frequency_response(W),
        plain.system.frequency_response(W),
        atol=1e-9,
    )


def test_projections_and_coordinates(rng):
    sys = random_system(rng, n=5, complex_=False, dt=0)
    weights = weights_for(rng, 0, "LR")
    red = quietly(hsv.frequency_weighted_truncation, sys, 3, **weights)
    np.testing.assert_allclose(red.left.T @ red.right, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(red.left.T @ sys.A @ red.right, red.system.A, atol=1e-12)
    P, Q = hsv.frequency_weighted_gramians(sys, **weights)
    sigma = np.diag(red.hankel_singular_values[:3])
    np.testing.assert_allclose(red.right.T @ Q @ red.right, sigma, atol=1e-9 * sigma.max())
    np.testing.assert_allclose(red.left.T @ P @ red.left, sigma, atol=1e-9 * sigma.max())
    T = rng.normal(size=(5, 5))
    other = hsv.StateSpace(np.linalg.solve(T, sys.A @ T), np.linalg.solve(T, sys.B), sys.C @ T, sys.D, dt=0)
    again = quietly(hsv.frequency_weighted_truncation, other, 3, **weights)
    np.testing.assert_allclose(again.system.frequency_response(W), red.system.frequency_response(W), atol=1e-8)


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_every_library_gives_the_numbers_of_numpy(make, dt, library, rng):
    sys = make(rng, n=4, batch=(2,), dt=dt)
    V, weight = random_system(rng, n=2, m=3, p=3, dt=dt), random_system(rng, n=2, m=2, p=2, batch=(2,), dt=dt)
    there = [convert(x, library) for x in (sys, V, weight)]
    for stability in (None, "absolute-value"):
        for method in METHODS:
            mine = quietly(method, sys, 2, output_weight=V, input_weight=weight, stability=stability)
            theirs = quietly(method, there[0], 2, output_weight=there[1], input_weight=there[2], stability=stability)
            np.testing.assert_allclose(
                to_host(theirs.system.frequency_response([0.3, 1.0])),
                mine.system.frequency_response([0.3, 1.0]),
                atol=1e-9,
            )
            if stability:
                np.testing.assert_allclose(to_host(theirs.error_bound), mine.error_bound, rtol=1e-8)


def test_a_batch_is_its_systems_one_by_one(rng):
    """The batch of a weight alone makes a batch too."""
    sys = random_system(rng, n=4, complex_=False, dt=0)
    weight = random_system(rng, n=2, m=2, p=2, batch=(3,), complex_=False, dt=0)
    for method in METHODS:
        red = quietly(method, sys, hsv.HankelSum(keep=0.8), input_weight=weight, stability="absolute-value")
        for i in range(3):
            one = hsv.StateSpace(weight.A[i], weight.B[i], weight.C[i], weight.D[i], dt=0)
            alone = method(sys, hsv.HankelSum(keep=0.8), input_weight=one, stability="absolute-value")
            assert int(red.orders[i]) == int(alone.orders)
            np.testing.assert_allclose(red.error_bound[i], alone.error_bound, rtol=1e-9)
            np.testing.assert_allclose(
                red.select(i).system.frequency_response(W), alone.system.frequency_response(W), atol=1e-9
            )

    P, Q = hsv.frequency_weighted_gramians(sys, input_weight=weight)
    assert P.shape == Q.shape == (3, 4, 4)


@pytest.mark.parametrize("stability", [None, "absolute-value"])
def test_nothing_to_reduce(stability):
    """Maps of zeros, and a batch of no systems."""
    weight = hsv.StateSpace([[-1.0]], np.ones((1, 2)), np.ones((2, 1)), dt=0)
    idle = hsv.StateSpace(-np.eye(3), np.zeros((3, 2)), np.ones((1, 3)), dt=0)
    empty = hsv.StateSpace(np.zeros((0, 3, 3)), np.zeros((0, 3, 2)), np.zeros((0, 1, 3)), dt=0)
    for method in METHODS:
        with pytest.warns(hsv.OrderWarning, match="all Hankel singular values are zero"):
            red = method(idle, 1, input_weight=weight, stability=stability)
        assert int(red.orders) == 0
        assert not red.system.frequency_response([0.0, 1.0]).any()
        assert method(empty, 1, input_weight=weight, stability=stability).orders.shape == (0,)


def test_a_real_part_stays_real_and_single_precision_single(rng):
    sys = hsv.real_part(random_diagonal(rng, n=3))
    weight = random_system(rng, n=2, m=2, p=2, complex_=False)
    red = hsv.frequency_weighted_truncation(sys, 4, input_weight=weight)
    assert not red.system.is_complex
    dense = hsv.frequency_weighted_truncation(sys.to_dense(), 4, input_weight=weight)
    np.testing.assert_allclose(red.system.frequency_response(W), dense.system.frequency_response(W), atol=1e-9)
    single = hsv.StateSpace(*(x.astype(np.float32) for x in (dense.system.A, dense.system.B, dense.system.C)), dt=True)
    weight = hsv.StateSpace(*(x.astype(np.float32) for x in (weight.A, weight.B, weight.C, weight.D)), dt=True)
    red = hsv.frequency_weighted_truncation(single, 2, input_weight=weight, stability="absolute-value")
    assert red.system.A.dtype == red.error_bound.dtype == red.left.dtype == np.float32


def test_rules_and_the_bound(rng):
    sys = random_system(rng, n=5, complex_=False, dt=0)
    weights = weights_for(rng, 0, "LR")
    full = hsv.frequency_weighted_truncation(sys, 2, **weights, stability="absolute-value")
    red = hsv.frequency_weighted_truncation(
        sys, hsv.ErrorBound(float(full.error_bound) * 1.001), **weights, stability="absolute-value"
    )
    assert int(red.orders) == 2
    np.testing.assert_allclose(red.error_bound, full.error_bound, rtol=1e-12)
    for stability in (None, "positive-part"):
        with pytest.raises(hsv.OrderError, match="ErrorBound asks for a bound, which this method has only"):
            hsv.frequency_weighted_truncation(sys, hsv.ErrorBound(1.0), **weights, stability=stability)
    assert hsv.frequency_weighted_truncation(sys, 5, **weights, stability="absolute-value").error_bound == 0


def test_inputs_that_make_no_sense_are_refused(rng):
    sys = random_system(rng, n=3, complex_=False, dt=0)
    good = random_system(rng, n=2, m=2, p=2, complex_=False, dt=0)
    call = hsv.frequency_weighted_truncation

    def weight(A, dt=0):
        return hsv.StateSpace(A, np.ones((len(A), 2)), np.ones((2, len(A))), np.eye(2), dt=dt)

    with pytest.raises(hsv.ShapeError, match="input_weight must have as many outputs as sys has inputs, 2, got 3"):
        call(sys, 1, input_weight=random_system(rng, n=2, m=2, p=3, complex_=False, dt=0))
    with pytest.raises(hsv.ShapeError, match="output_weight must have as many inputs as sys has outputs, 3, got 2"):
        call(sys, 1, output_weight=good)
    with pytest.raises(hsv.HsvError, match=r"input_weight must have the dt of sys, 0(.0)?, got True"):
        call(sys, 1, input_weight=weight([[0.5]], dt=True))
    with pytest.raises(hsv.DtypeError, match="input_weight must be a system, got float"):
        call(sys, 1, input_weight=2.0)
    with pytest.raises(hsv.DtypeError, match="must be real"):
        call(sys, 1, input_weight=random_system(rng, n=2, m=2, p=2, dt=0))
    with pytest.raises(hsv.IllConditionedError, match="input_weight must have no pole on the stability boundary"):
        call(sys, 1, input_weight=weight([[0.0, 1.0], [-1.0, 0.0]]))
    with pytest.raises(hsv.HsvError, match="unstable, which only a single system may be"):
        call(sys, 1, input_weight=hsv.StateSpace(np.ones((2, 1, 1)), np.ones((1, 2)), np.ones((2, 1)), dt=0))
    with pytest.raises(hsv.ShapeError, match="batch axes of input_weight"):
        call(
            hsv.StateSpace(np.broadcast_to(sys.A, (3, 3, 3)), sys.B, sys.C, dt=0),
            1,
            input_weight=random_system(rng, n=1, m=2, p=2, batch=(2,), complex_=False, dt=0),
        )
    with pytest.raises(hsv.HsvError, match="stability must be None or one of 'absolute-value', 'positive-part'"):
        call(sys, 1, input_weight=good, stability="E")
    for mix, error in ((1.5, hsv.HsvError), (-0.1, hsv.HsvError), ("a", hsv.DtypeError), (True, hsv.DtypeError)):
        with pytest.raises(error, match="output_mix must be"):
            call(sys, 1, input_weight=good, output_mix=mix)
    unstable = hsv.StateSpace(sys.A + 3 * np.eye(3), sys.B, sys.C, dt=0)
    with pytest.raises(hsv.UnstableSystemError, match="split_unstable"):
        call(unstable, 1, input_weight=good)
    with pytest.raises(hsv.OrderError, match=r"Order must be in \[1, 3\]"):
        call(sys, 4, input_weight=good)


def test_a_bound_is_missing_only_where_its_factors_are(rng):
    """Lin and Chiu's right-hand side is positive as it is, and its range does not hold the inputs: no bound."""
    sys = random_system(rng, n=5, complex_=False, dt=0)
    weight = random_system(rng, n=2, m=2, p=2, complex_=False, dt=0)
    assert hsv.frequency_weighted_truncation(sys, 2, input_weight=weight, stability="positive-part").error_bound is None
    red = hsv.frequency_weighted_truncation(sys, 2, input_weight=weight, input_mix=1.0, stability="absolute-value")
    assert red.error_bound is None
    values = hsv.frequency_weighted_truncation(sys, 2, input_weight=weight, input_mix=1.0).hankel_singular_values
    np.testing.assert_allclose(
        red.hankel_singular_values, values, rtol=tolerance(float, factor=1e5)
    )  # from P once more


@pytest.mark.parametrize("dt", [0, True])
def test_gramians_of_a_real_part_are_in_its_own_coordinates(dt, rng):
    sys = hsv.real_part(random_diagonal(rng, n=3, m=2, p=2, dt=dt))
    P, Q = hsv.frequency_weighted_gramians(sys)
    np.testing.assert_allclose(P, hsv.controllability_gramian(sys), atol=1e-12)
    np.testing.assert_allclose(Q, hsv.observability_gramian(sys), atol=1e-12)
    lag = hsv.StateSpace(-0.5 * np.eye(2), np.eye(2), np.eye(2), dt=dt)
    complex_ = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C, sys.D, dt=dt)  # the same states, nothing known of them
    for found, expected in zip(
        hsv.frequency_weighted_gramians(sys, input_weight=lag, output_weight=lag, input_mix=0.5),
        hsv.frequency_weighted_gramians(complex_, input_weight=lag, output_weight=lag, input_mix=0.5),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("dt", [0, True])
def test_an_unstable_pole_that_a_weight_hides_is_refused_by_the_name_of_the_weight(dt):
    sys = hsv.StateSpace([[0.5 if dt else -1.0]], [[1.0]], [[1.0]], dt=dt)
    A, one, hidden = [[2.0, 0.0], [0.0, 0.2 if dt else -2.0]], [[1.0], [1.0]], [[0.0], [1.0]]
    unreached = hsv.StateSpace(A, hidden, np.transpose(one), dt=dt)
    unseen = hsv.StateSpace(A, one, np.transpose(hidden), dt=dt)
    with pytest.raises(hsv.IllConditionedError, match=r"input_weight must .* that its inputs do not reach"):
        hsv.frequency_weighted_truncation(sys, 1, input_weight=unreached)
    with pytest.raises(hsv.IllConditionedError, match=r"output_weight must .* that its outputs do not see"):
        hsv.frequency_weighted_gramians(sys, output_weight=unseen)
