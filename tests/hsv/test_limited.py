"""Balanced truncation within a band or a window: by definition, at the limits where it is balanced truncation, and its bound as a theorem."""

import math
import warnings

import array_api_strict
import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import _limited
from hsv._array import to_host
from tests.hsv.test_array_libraries import convert
from tests.hsv.test_systems import random_diagonal, random_system

BANDS = (hsv.frequency_limited_truncation, hsv.frequency_limited_singular_perturbation)
W = np.linspace(-3, 3, 9)


def quietly(method, *args, **options):
    """Warnings of unstable results are asked for elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        return method(*args, **options)


def values_of(P, Q):
    return np.sqrt(np.sort(np.linalg.eigvals(P @ Q).real)[::-1])


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True, 0.4])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_gramians_of_the_band_are_balanced(make, dt, complex_, rng):
    sys, band = make(rng, n=5, complex_=complex_, dt=dt), (0.3, 1.9)
    P, Q = hsv.frequency_limited_gramians(sys, band)
    red = quietly(hsv.frequency_limited_truncation, sys, 3, band)
    np.testing.assert_allclose(red.hankel_singular_values, values_of(P, Q), rtol=1e-5, atol=1e-9)
    sigma = np.diag(red.hankel_singular_values[:3])
    np.testing.assert_allclose(red.right.conj().T @ Q @ red.right, sigma, atol=1e-8 * sigma.max())
    np.testing.assert_allclose(red.left.conj().T @ P @ red.left, sigma, atol=1e-8 * sigma.max())
    np.testing.assert_allclose(red.left.conj().T @ sys.to_dense().A @ red.right, red.system.A, atol=1e-9)
    assert red.error_bound is None


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True, 0.4])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_gramians_of_the_window_are_balanced(make, dt, complex_, rng):
    sys, horizon = make(rng, n=5, complex_=complex_, dt=dt), 7
    P, Q = hsv.controllability_gramian(sys, horizon), hsv.observability_gramian(sys, horizon)
    red = quietly(hsv.time_limited_truncation, sys, 3, horizon)
    np.testing.assert_allclose(red.hankel_singular_values, values_of(P, Q), rtol=1e-5, atol=1e-9)
    sigma = np.diag(red.hankel_singular_values[:3])
    np.testing.assert_allclose(red.right.conj().T @ Q @ red.right, sigma, atol=1e-10 * sigma.max())
    np.testing.assert_allclose(red.left.conj().T @ P @ red.left, sigma, atol=1e-10 * sigma.max())
    assert red.error_bound is None


@pytest.mark.parametrize("dt", [0, True])
def test_a_window_that_starts_later(dt, rng):
    """The difference of two windows from 0, which loses digits that the factors keep."""
    sys = random_system(rng, n=4, complex_=False, dt=dt)
    early, late = ((hsv.controllability_gramian(sys, t), hsv.observability_gramian(sys, t)) for t in (2, 6))
    P, Q = (x - y for x, y in zip(late, early, strict=True))
    red = quietly(hsv.time_limited_truncation, sys, 2, (2, 6))
    np.testing.assert_allclose(red.hankel_singular_values, values_of(P, Q), rtol=1e-6, atol=1e-9)
    from_zero = quietly(hsv.time_limited_truncation, sys, 2, (0, 6))
    plain = quietly(hsv.time_limited_truncation, sys, 2, 6)
    np.testing.assert_array_equal(from_zero.hankel_singular_values, plain.hankel_singular_values)
    stable = hsv.time_limited_truncation(sys, 2, (2, 6), stability="absolute-value")
    assert float(hsv.hinf_error(sys, stable.system)) <= float(
        stable.error_bound
    )  # four columns have the range of all four states
    larger = random_system(rng, n=6, complex_=False, dt=dt)
    assert hsv.time_limited_truncation(larger, 2, (2, 6), stability="absolute-value").error_bound is None
    X = P
    Y = X - sys.A @ X @ sys.A.T if dt else -sys.A @ X - X @ sys.A.T
    values, vectors = np.linalg.eigh(Y)
    solve = scipy.linalg.solve_discrete_lyapunov if dt else lambda a, q: scipy.linalg.solve_continuous_lyapunov(a, -q)
    modified = solve(sys.A, (vectors * np.abs(values)) @ vectors.T)
    found = stable.left.T @ modified @ stable.left
    np.testing.assert_allclose(found, np.diag(stable.hankel_singular_values[:2]), atol=1e-8 * np.abs(found).max())


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_two_bands_count_together(make, dt, rng):
    sys, bands = make(rng, n=4, dt=dt), [(1.0, 2.0), (0.2, 0.5)]
    parts = [hsv.frequency_limited_gramians(sys, band) for band in bands]
    P, Q = hsv.frequency_limited_gramians(sys, bands)
    np.testing.assert_allclose(P, parts[0][0] + parts[1][0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(Q, parts[0][1] + parts[1][1], rtol=1e-9, atol=1e-12)
    whole = hsv.frequency_limited_gramians(sys, [(0.2, 0.7), (0.7, 2.0)])  # bands may touch
    np.testing.assert_allclose(whole[0], hsv.frequency_limited_gramians(sys, (0.2, 2.0))[0], rtol=1e-8, atol=1e-12)
    red = quietly(hsv.frequency_limited_truncation, sys, 2, bands)
    np.testing.assert_allclose(red.hankel_singular_values, values_of(P, Q), rtol=1e-5, atol=1e-9)
    stable = hsv.frequency_limited_truncation(sys, 2, bands, stability="absolute-value")
    assert float(hsv.hinf_error(sys, stable.system)) <= float(stable.error_bound)


@pytest.mark.parametrize("stability", [None, "absolute-value", "positive-part"])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_all_frequencies_and_all_times_are_balanced_truncation(make, dt, stability, rng):
    sys = make(rng, n=5, dt=dt)
    plain = hsv.balanced_truncation(sys, 3)
    steady = hsv.singular_perturbation(sys, 3)
    horizon = 10_000 if dt else 1e4
    for red, expected in (
        (hsv.frequency_limited_truncation(sys, 3, (0, math.inf), stability=stability), plain),
        (hsv.frequency_limited_singular_perturbation(sys, 3, (0, math.inf), stability=stability), steady),
        (hsv.time_limited_truncation(sys, 3, horizon, stability=stability), plain),
    ):
        np.testing.assert_allclose(red.hankel_singular_values, plain.hankel_singular_values, rtol=1e-6)
        np.testing.assert_allclose(red.system.frequency_response(W), expected.system.frequency_response(W), atol=1e-6)
        if stability:  # then B and C are their own modified maps
            np.testing.assert_allclose(red.error_bound, plain.error_bound, rtol=1e-6)


@pytest.mark.parametrize("dt", [0, True])
def test_modified_gramians_by_definition(dt, rng):
    """|Y| of the Lyapunov equations of the limited Gramians, by eigenvalues and SciPy's solvers."""
    sys = random_system(rng, n=4, complex_=False, dt=dt)
    solve = scipy.linalg.solve_discrete_lyapunov if dt else lambda a, q: scipy.linalg.solve_continuous_lyapunov(a, -q)
    band, horizon = (0.4, 1.5), 3
    window = hsv.controllability_gramian(sys, horizon), hsv.observability_gramian(sys, horizon)
    for pair, method, limit in (
        (hsv.frequency_limited_gramians(sys, band), hsv.frequency_limited_truncation, band),
        (window, hsv.time_limited_truncation, horizon),
    ):
        for stability, change in (("absolute-value", np.abs), ("positive-part", lambda x: np.maximum(x, 0))):
            modified = []
            for A, X in zip((sys.A, sys.A.T), pair, strict=True):
                values, vectors = np.linalg.eigh(X - A @ X @ A.T if dt else -A @ X - X @ A.T)
                modified.append(solve(A, (vectors * change(values)) @ vectors.T))
            red = quietly(method, sys, 2, limit, stability=stability)
            # the peer takes the root of eig(P Q), which has half the digits for the small values
            np.testing.assert_allclose(
                red.hankel_singular_values**2, values_of(*modified) ** 2, atol=1e-9 * red.hankel_singular_values[0] ** 2
            )


@given(
    seed=st.integers(0, 10**6),
    make=st.sampled_from([random_system, random_diagonal]),
    dt=st.sampled_from([0, True, 0.3]),
    complex_=st.booleans(),
    order=st.integers(1, 5),
    low=st.floats(0, 1.5),
    width=st.floats(0.05, 1.5),
)
def test_the_bound_of_the_modified_methods(seed, make, dt, complex_, order, low, width):
    sys = make(np.random.default_rng(seed), n=5, complex_=complex_, dt=dt)
    horizon = 1 + int(10 * width) if dt else 5 * width
    for red in (
        *(method(sys, order, (low, low + width), stability="absolute-value") for method in BANDS),
        hsv.time_limited_truncation(sys, order, horizon, stability="absolute-value"),
    ):
        assert red.error_bound is not None
        error = float(hsv.hinf_error(sys, red.system))
        assert error <= float(red.error_bound) + 1e-10 * float(
            hsv.hinf_norm(sys)
        )  # of the rounding where all states stay


def band_error(sys, reduced, band):
    w = np.linspace(*band, 200)
    return np.abs((sys - reduced).frequency_response(w)).max()


def test_errors_in_the_band_are_smaller():
    """A lightly damped mode in the band and a stronger one outside it."""
    poles = np.array([-0.01 + 1j, -0.01 - 1j, -0.05 + 10j, -0.05 - 10j])
    sys = hsv.DiagonalStateSpace(poles, np.ones((4, 1)), [[0.01, 0.01, 1.0, 1.0]], dt=0)
    plain = hsv.balanced_truncation(sys, 2)
    limited = hsv.frequency_limited_truncation(sys, 2, (0.5, 1.5))
    assert band_error(sys, limited.system, (0.5, 1.5)) < 0.3 * band_error(sys, plain.system, (0.5, 1.5))
    assert float(hsv.hinf_error(sys, limited.system)) > float(hsv.hinf_error(sys, plain.system))


def test_errors_in_the_window_are_smaller():
    sys = hsv.DiagonalStateSpace([0.999, 0.3, -0.4], [[0.1], [1.0], [1.0]], [[0.1, 1.0, 1.0]], dt=True)
    plain, limited = hsv.balanced_truncation(sys, 2), hsv.time_limited_truncation(sys, 2, 4)
    errors = [float(hsv.h2_norm(sys - red.system, 4)) for red in (plain, limited)]
    assert errors[1] < 0.3 * errors[0]


def test_values_of_a_band_by_fifty_digits():
    """1 / (s + 1) + 1 / (s + 3): P_ij from the antiderivative of 1 / ((iw + a)(-iw + b)), in mpmath."""
    a, low, high = [1, 3], mpmath.mpf("0.5"), mpmath.mpf(2)
    with mpmath.workdps(50):
        P = mpmath.matrix(2)
        for i in range(2):
            for j in range(2):

                def integrand(w, i=i, j=j):
                    return mpmath.re(1 / ((1j * w + a[i]) * (-1j * w + a[j]))) / mpmath.pi

                P[i, j] = mpmath.quad(integrand, [low, high])
        values = sorted((mpmath.sqrt(x) for x in mpmath.eigsy(P * P, eigvals_only=True)), reverse=True)
    sys = hsv.DiagonalStateSpace([-1.0, -3.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    for system in (sys, sys.to_dense()):
        red = hsv.frequency_limited_truncation(system, 1, (0.5, 2.0))
        np.testing.assert_allclose(red.hankel_singular_values, [float(x) for x in values], rtol=1e-12)


def test_small_values_of_a_window_keep_their_digits():
    """Factors are doubled, Gramians never formed: the smallest value is 1e-12 of the largest; the closed form in 60 digits."""
    poles, steps = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 40
    with mpmath.workdps(60):
        exact = [mpmath.mpf(p) for p in poles]
        P = mpmath.matrix(10)
        for i in range(10):
            for j in range(10):
                P[i, j] = (1 - (exact[i] * exact[j]) ** steps) / (1 - exact[i] * exact[j])
        values = sorted((mpmath.fabs(x) for x in mpmath.eigsy(P, eigvals_only=True)), reverse=True)  # P = Q
    sys = hsv.DiagonalStateSpace(poles, np.ones((10, 1)), np.ones((1, 10)), dt=True)
    red = hsv.time_limited_truncation(sys, 3, steps)
    np.testing.assert_allclose(red.hankel_singular_values, [float(x) for x in values], atol=1e-14 * float(values[0]))
    assert 1e-14 < values[-1] / values[0] < 1e-11


def test_a_window_on_an_unstable_system(rng):
    for dt in (0, True):
        sys = random_system(rng, n=4, complex_=False, dt=dt)
        shift = 1.5 * np.eye(4) if not dt else 0.9 * np.eye(4)
        sys = hsv.StateSpace(sys.A + shift, sys.B, sys.C, dt=dt)
        P, Q = hsv.controllability_gramian(sys, 3), hsv.observability_gramian(sys, 3)
        with pytest.warns(hsv.OrderWarning, match="not stable"):
            red = hsv.time_limited_truncation(sys, 3, 3)
        np.testing.assert_allclose(red.hankel_singular_values, values_of(P, Q), rtol=1e-6)
        with pytest.raises(hsv.UnstableSystemError):
            hsv.time_limited_truncation(sys, 3, 3, stability="absolute-value")


def test_warnings_point_at_the_caller(rng):
    sys = hsv.StateSpace(-np.eye(3), [[1.0], [1.0], [0.0]], [[1.0, 0.0, 1.0]], dt=0)  # of order 1
    weight = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    for call in (
        lambda: hsv.frequency_limited_truncation(sys, 3, (0, 1)),
        lambda: hsv.frequency_limited_singular_perturbation(sys, 3, (0, 1)),
        lambda: hsv.time_limited_truncation(sys, 3, 1.0),
        lambda: hsv.frequency_weighted_truncation(sys, 3, input_weight=weight),
        lambda: hsv.frequency_weighted_singular_perturbation(sys, 3, input_weight=weight),
    ):
        with pytest.warns(hsv.OrderWarning, match="capped at 1") as caught:
            call()
        assert caught[0].filename == __file__


@pytest.mark.parametrize(("pole", "dt"), [(2.0, True), (2.0, 0)])
def test_states_that_overflow_are_refused(pole, dt):
    sys = hsv.StateSpace([[pole]], [[1.0]], [[1.0]], dt=dt)
    with pytest.raises(hsv.HsvError, match="grows beyond what double precision holds within the horizon 5000"):
        hsv.time_limited_truncation(sys, 1, 5000)


def test_small_values_of_a_band_keep_their_digits():
    """Factors come from a quadrature, Gramians are never formed; the antiderivative in 60 digits."""
    n, low, high = 8, mpmath.mpf("0.5"), mpmath.mpf(1)
    with mpmath.workdps(60):
        P = mpmath.matrix(n)
        for i in range(n):
            for j in range(n):
                a, b = i + 1, j + 1  # 1 / ((iw + a)(-iw + b)), both signs of w
                angle = sum(mpmath.atan(high / x) - mpmath.atan(low / x) for x in (a, b))
                P[i, j] = angle / (a + b) / mpmath.pi
        values = sorted((mpmath.fabs(x) for x in mpmath.eigsy(P, eigvals_only=True)), reverse=True)  # P = Q
    expected = np.array([float(x) for x in values])
    sys = hsv.DiagonalStateSpace(-np.arange(1.0, n + 1), np.ones((n, 1)), np.ones((1, n)), dt=0)
    for system in (sys, sys.to_dense()):
        red = hsv.frequency_limited_truncation(system, 2, (0.5, 1.0))
        np.testing.assert_allclose(red.hankel_singular_values, expected, atol=1e-15 * expected[0])
    assert (expected < 1e-12 * expected[0]).any()


@pytest.mark.parametrize("dense", [False, True])
def test_lightly_damped_systems_are_reduced_from_gramians(dense):
    """Forty resonances with a relative damping of 1e-12 would need too many nodes: the order is capped where Gramians end."""
    w = np.linspace(1, 2, 40)
    poles = np.concatenate([-1e-12 + 1j * w, -1e-12 - 1j * w])
    B = np.concatenate([np.ones((40, 1)), np.ones((40, 1))]) * np.tile(np.geomspace(1, 1e-9, 40), 2)[:, None]
    sys = hsv.DiagonalStateSpace(poles, B, np.ones((1, 80)), dt=0)
    sys = sys.to_dense() if dense else sys
    with pytest.warns(hsv.OrderWarning, match="capped at"):
        red = hsv.frequency_limited_truncation(sys, 80, (0.5, 2.5))
    assert red.hankel_singular_values[int(red.orders) - 1] > 1e-9 * red.hankel_singular_values[0]
    assert int(red.orders) >= 4
    stable = hsv.frequency_limited_truncation(sys, 4, (0.5, 2.5), stability="absolute-value")
    assert stable.system.poles().real.max() < 0


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_every_library_gives_the_numbers_of_numpy(make, dt, library, rng):
    sys = make(rng, n=4, batch=(2,), dt=dt)
    there, w = convert(sys, library), [0.3, 1.0]
    for stability in (None, "absolute-value"):
        for method, limit in ((BANDS[0], (0.2, 1.4)), (BANDS[1], (0.2, 1.4)), (hsv.time_limited_truncation, 4)):
            mine = quietly(method, sys, hsv.HankelSum(keep=0.7), limit, stability=stability)
            theirs = quietly(method, there, hsv.HankelSum(keep=0.7), limit, stability=stability)
            np.testing.assert_array_equal(to_host(theirs.orders), mine.orders)
            np.testing.assert_allclose(
                to_host(theirs.system.frequency_response(w)), mine.system.frequency_response(w), atol=1e-8
            )
            for i in range(2):
                parts = [getattr(sys.to_dense(), name)[i] for name in "ABCD"]
                alone = quietly(
                    method, hsv.StateSpace(*parts, dt=dt), hsv.HankelSum(keep=0.7), limit, stability=stability
                )
                np.testing.assert_allclose(
                    mine.select(i).system.frequency_response(w), alone.system.frequency_response(w), atol=1e-8
                )


def test_a_window_stays_on_its_device(rng):
    """Arrays on this device cannot be copied to the host at all, but for norms and values."""
    sys = random_system(rng, n=3, dt=True)
    where = array_api_strict.Device("device1")
    L, _ = _limited._by_steps(*(array_api_strict.asarray(x.tolist(), device=where) for x in (sys.A, sys.B)), 5)
    assert L.device == where
    host = to_host(L.to_device(array_api_strict.Device("CPU_DEVICE")))
    np.testing.assert_allclose(host @ host.conj().T, hsv.controllability_gramian(sys, 5), rtol=1e-10)


def test_a_real_part_stays_real_and_single_precision_single(rng):
    sys = hsv.real_part(random_diagonal(rng, n=3))
    dense = sys.to_dense()
    for method, limit in ((hsv.frequency_limited_truncation, (0.2, 1.4)), (hsv.time_limited_truncation, 4)):
        for stability in (None, "absolute-value"):
            red = quietly(method, sys, 3, limit, stability=stability)
            assert not red.system.is_complex
            expected = quietly(method, dense, 3, limit, stability=stability)
            np.testing.assert_allclose(
                red.system.frequency_response(W), expected.system.frequency_response(W), atol=1e-8
            )
            np.testing.assert_allclose(red.left.conj().T @ np.diag(sys.poles()) @ red.right, red.system.A, atol=1e-8)
    single = hsv.StateSpace(*(x.astype(np.float32) for x in (dense.A, dense.B, dense.C)), dt=True)
    red = hsv.time_limited_truncation(single, 2, 4, stability="absolute-value")
    assert red.system.A.dtype == red.error_bound.dtype == red.left.dtype == np.float32


def test_rules(rng):
    sys = random_system(rng, n=5, complex_=False, dt=0)
    full = hsv.frequency_limited_truncation(sys, 2, (0, 1), stability="absolute-value")
    rule = hsv.ErrorBound(float(full.error_bound) * 1.001)
    assert int(hsv.frequency_limited_truncation(sys, rule, (0, 1), stability="absolute-value").orders) == 2
    for method, limit in ((hsv.frequency_limited_truncation, (0, 1)), (hsv.time_limited_truncation, 2.0)):
        for stability in (None, "positive-part"):
            with pytest.raises(hsv.OrderError, match="ErrorBound asks for a bound"):
                method(sys, rule, limit, stability=stability)


@pytest.mark.parametrize(
    ("limit", "dt", "error", "message"),
    [
        (0, True, hsv.HsvError, "horizon must be at least 1 step, got 0"),
        (2.5, True, hsv.DtypeError, "horizon must be an int"),
        (0.0, 0, hsv.HsvError, "positive, finite number of seconds, got 0"),
        (math.inf, 0, hsv.HsvError, "positive, finite number of seconds"),
        ("a", 0, hsv.DtypeError, "number of seconds"),
        ((2, 1), 0, hsv.HsvError, r"0 <= start < end, got \(2, 1\)"),
        ((0, 0), True, hsv.HsvError, "horizon must be at least 1 step"),
        ((-1, 1), True, hsv.HsvError, "horizon must be at least 1 step, got -1"),
        ((1, 2, 3), True, hsv.DtypeError, "a number or a pair"),
        ((True, 2), True, hsv.DtypeError, "horizon must be an int"),
    ],
)
def test_windows_that_make_no_sense_are_refused(limit, dt, error, message):
    with pytest.raises(error, match=message):
        hsv.time_limited_truncation(hsv.DiagonalStateSpace([-0.5], [[1.0]], [[1.0]], dt=dt), 1, limit)


@pytest.mark.parametrize(
    ("band", "dt", "message"),
    [
        ((1, 1), 0, "0 <= low < high"),
        ((0, 4), True, r"pi / dt = 3.14159"),
        ([(0, 1), (2, 2)], 0, "0 <= low < high"),
        ([(1, 3), (0.5, 2)], 0, r"bands must not overlap, got \(0.5, 2\) and \(1, 3\)"),
        ([(1, 3), (0.5, 2)], 0.5, r"bands must not overlap, got \(0.5, 2\) and \(1, 3\)"),
        ([], 0, "pair of numbers"),
    ],
)
def test_bands_that_make_no_sense_are_refused(band, dt, message):
    sys = hsv.DiagonalStateSpace([-0.5], [[1.0]], [[1.0]], dt=dt)
    for method in (*BANDS, lambda sys, _, band: hsv.frequency_limited_gramians(sys, band)):
        with pytest.raises(hsv.HsvError, match=message):
            method(sys, 1, band)


def test_unknown_ways_to_stability_are_refused():
    sys = hsv.DiagonalStateSpace([-0.5], [[1.0]], [[1.0]], dt=0)
    for method, limit in ((BANDS[0], (0, 1)), (BANDS[1], (0, 1)), (hsv.time_limited_truncation, 1)):
        with pytest.raises(
            hsv.HsvError, match="stability must be None or one of 'absolute-value', 'positive-part', got 'E'"
        ):
            method(sys, 1, limit, stability="E")
    for stability in (None, "absolute-value"):
        with pytest.raises(hsv.UnstableSystemError):
            BANDS[0](hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0), 1, (0, 1), stability=stability)


def test_horizons_up_to_the_largest_number():
    sys = hsv.StateSpace([[-1.0, 1.0], [0.0, -2.0]], [[1.0], [1.0]], [[1.0, 0.0]], dt=0)
    for horizon in (1e20, 1e308):
        window, always = hsv.time_limited_truncation(sys, 1, horizon), hsv.balanced_truncation(sys, 1)
        np.testing.assert_allclose(window.system.poles(), always.system.poles(), rtol=1e-10)
    with pytest.raises(hsv.HsvError, match="the state grows beyond what double precision holds"):
        hsv.time_limited_truncation(hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0), 1, 1e308)
