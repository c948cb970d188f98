import itertools
import math

import array_api_strict
import mpmath
import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv._array import to_host
from tests.hsv.test_array_libraries import convert
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance


def by_quadrature(sys, low, high):
    """The definition, by adaptive Gauss-Kronrod rules: shares nothing with the logarithms under test."""
    dense, step = sys.to_dense(), float(sys.dt)
    if math.isinf(high) and step:
        high = math.pi / step

    def integrand(w):
        total = 0
        for frequency in (w, -w):
            s = np.exp(1j * frequency * step) if step else 1j * frequency
            R = np.linalg.inv(s * np.eye(sys.n_states) - dense.A)
            RB, CR = R @ dense.B, dense.C @ R
            total = total + np.stack([RB @ RB.conj().swapaxes(-1, -2), CR.conj().swapaxes(-1, -2) @ CR])
        return total * (step or 1.0) / (2 * np.pi)

    options = {"epsabs": 1e-13, "epsrel": 1e-12}
    if math.isinf(high):
        return scipy.integrate.quad_vec(lambda t: integrand(low - 1 + 1 / t) / t**2, 0, 1, **options)[0]
    return scipy.integrate.quad_vec(integrand, low, high, **options)[0]


@pytest.mark.parametrize("band", [(0, 0.7), (0.3, 1.9), (2.5, 3.1), (0.5, math.inf)])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True, 0.4])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_integral_by_quadrature(make, dt, complex_, band, rng):
    sys = make(rng, n=4, batch=(2,), complex_=complex_, dt=dt)
    found = hsv.frequency_limited_gramians(sys, band)
    for X, expected in zip(found, by_quadrature(sys, *band), strict=True):
        assert np.iscomplexobj(X) == complex_
        np.testing.assert_allclose(X, expected, atol=1e-10 * np.abs(expected).max())


@given(
    make=st.sampled_from([random_system, random_diagonal]),
    complex_=st.booleans(),
    dt=st.sampled_from([0, True, 0.1]),
    edges=st.lists(st.floats(1e-3, 3.0), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 10**6),
)
def test_bands_that_fill_the_axis_add_up_to_the_gramians(make, complex_, dt, edges, seed):
    sys = make(np.random.default_rng(seed), n=4, complex_=complex_, dt=dt)
    edges = [0.0, *sorted(edges), math.inf]
    parts = [hsv.frequency_limited_gramians(sys, band) for band in itertools.pairwise(edges)]
    for total, full in (
        (sum(p for p, _ in parts), hsv.controllability_gramian(sys)),
        (sum(q for _, q in parts), hsv.observability_gramian(sys)),
    ):
        # each logarithm has an error of rounding times the condition of its edge
        np.testing.assert_allclose(total, full, atol=1e-11 * np.abs(full).max())
    for pair in parts:
        for X in pair:
            np.testing.assert_array_equal(X, X.conj().T)
            assert np.linalg.eigvalsh(X).min() > -1e-12 * max(np.abs(full).max(), np.abs(X).max())


@pytest.mark.parametrize("dt", [0, True])
def test_dense_and_diagonal_agree(dt, rng):
    sys = random_diagonal(rng, n=6, batch=(3,), dt=dt)
    for band in ((0, 1), (1.1, 2), (2, math.inf)):
        for X, Y in zip(
            hsv.frequency_limited_gramians(sys, band),
            hsv.frequency_limited_gramians(sys.to_dense(), band),
            strict=True,
        ):
            np.testing.assert_allclose(X, Y, atol=1e-11 * np.abs(X).max())


def exact_kernel(poles, low, high, *, discrete):
    """Entries of the integral with B = 1, from plain logarithms with 80 digits, one for each pole, edge and side of the band."""
    with mpmath.workdps(80):
        exact = [mpmath.mpmathify(complex(p)) for p in poles]
        low, high = mpmath.mpf(low), mpmath.mpf(high)
        K = np.empty((len(exact), len(exact)), dtype=complex)

        def share(pole):
            total = mpmath.mpc(0)
            for start, end in ((low, high), (-high, -low)):
                if discrete:
                    logs = [mpmath.log(1 - pole * mpmath.expj(-w)) for w in (start, end)]
                    total += (end - start) / 2 - 1j * (logs[1] - logs[0])
                else:
                    total += -1j * (mpmath.log(1j * end - pole) - mpmath.log(1j * start - pole))
            return total / (2 * mpmath.pi)

        shares = [share(p) for p in exact]
        for i, j in np.ndindex(K.shape):
            denominator = 1 - exact[i] * exact[j].conjugate() if discrete else -(exact[i] + exact[j].conjugate())
            K[i, j] = complex((shares[i] + shares[j].conjugate()) / denominator)
        return K


@pytest.mark.parametrize(
    "band",
    [
        (0, 1e-6),  # narrow, below every resonance
        (0.99, 1.01),  # on a resonance
        (1 - 1e-7, 1 + 2e-7),
        (0.2, 3.0),  # winds once around two lightly damped poles
        (2.9, 2.9000001),  # narrow, far from every pole
    ],
)
@pytest.mark.parametrize("discrete", [True, False])
def test_every_entry_has_its_digits(discrete, band):
    """Lightly damped poles and bands that hardly touch them: entries many orders below those of the full Gramian."""
    damping = np.array([1e-6, 1e-4, 1e-2, 0.3])
    angles = np.array([1.0, 1.001, -2.0, 0.1])
    poles = (1 - damping) * np.exp(1j * angles) if discrete else -damping + 1j * angles
    exact = exact_kernel(poles, *band, discrete=discrete)
    n = len(poles)
    sys = hsv.DiagonalStateSpace(poles, np.ones((n, 1)), np.ones((1, n)), dt=discrete or 0)
    P, Q = hsv.frequency_limited_gramians(sys, band)
    # an edge is rounded: relative to its distance from the resonance and to the width of the band
    limit = 1e-13 + 1e-15 / (band[1] - band[0])
    np.testing.assert_allclose(P, exact, rtol=limit)
    np.testing.assert_allclose(Q, exact.conj(), rtol=limit)


def test_bands_far_above_all_poles():
    """In continuous time the rest of the energy falls like 1 / w: the full Gramian less the band below would have no digit of it."""
    poles = np.array([-1.0, -2.0])
    sys = hsv.DiagonalStateSpace(poles, np.ones((2, 1)), np.ones((1, 2)), dt=0)
    P, _ = hsv.frequency_limited_gramians(sys, (1e14, math.inf))
    np.testing.assert_allclose(P, np.full((2, 2), 1 / (math.pi * 1e14)), rtol=1e-14)
    P, _ = hsv.frequency_limited_gramians(sys, (1e14, 2e14))
    np.testing.assert_allclose(P, np.full((2, 2), 0.5 / (math.pi * 1e14)), rtol=1e-13)


def test_log_poles_keep_every_digit_next_to_the_circle():
    gap = 1e-12
    sys = hsv.DiagonalStateSpace.from_log_poles([-gap + 0.5j], [[1.0]], [[1.0]])
    # with u = w - 0.5 the integrand is 1 / (2 pi (gap^2 + u^2)) up to 1e-12 of itself: atan over both sides of the resonance
    low, high = 0.5 - 4 * gap, 0.5 + 7 * gap
    P, _ = hsv.frequency_limited_gramians(sys, (low, high))
    inside = (math.atan((high - 0.5) / gap) + math.atan((0.5 - low) / gap)) / (2 * math.pi * gap)
    np.testing.assert_allclose(P, [[inside]], rtol=1e-10)


def test_the_parseval_sum_of_one_channel(rng):
    """trace(C P C^H) is the energy of the response within the band."""
    sys = random_system(rng, n=5, m=1, p=1, complex_=False, dt=0)
    sys = hsv.StateSpace(sys.A, sys.B, sys.C, dt=0)
    P, Q = hsv.frequency_limited_gramians(sys, (0.2, 1.3))
    energy = scipy.integrate.quad(lambda w: abs(sys.frequency_response([w])[0, 0, 0]) ** 2 / np.pi, 0.2, 1.3)[0]
    np.testing.assert_allclose([(sys.C @ P @ sys.C.T)[0, 0], (sys.B.T @ Q @ sys.B)[0, 0]], energy, rtol=1e-10)


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_every_library_gives_the_numbers_of_numpy(make, dt, complex_, library, rng):
    sys = make(rng, n=4, batch=(2,), complex_=complex_, dt=dt)
    for band in ((0.1, 2), (1, math.inf)):
        for ours, expected in zip(
            hsv.frequency_limited_gramians(convert(sys, library), band),
            hsv.frequency_limited_gramians(sys, band),
            strict=True,
        ):
            assert isinstance(ours, torch.Tensor) == (library is torch)
            np.testing.assert_allclose(to_host(ours), expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("logarithms", [True, False])
@pytest.mark.parametrize("complex_", [True, False])
def test_diagonal_systems_stay_on_their_device(complex_, logarithms, rng):
    """Arrays on this device cannot be copied to the host at all."""
    sys = random_diagonal(rng, n=3, complex_=complex_, dt=True)
    where = array_api_strict.Device("device1")
    poles = np.log(sys.poles() + 0j) if logarithms else sys.poles()
    B, C = (x + 0j if logarithms else x for x in (sys.B, sys.C))
    make = hsv.DiagonalStateSpace.from_log_poles if logarithms else hsv.DiagonalStateSpace
    there = make(*(array_api_strict.asarray(x.tolist(), device=where) for x in (poles, B, C)), dt=True)
    for ours, expected in zip(
        hsv.frequency_limited_gramians(there, (0.2, 1.5)), hsv.frequency_limited_gramians(sys, (0.2, 1.5)), strict=True
    ):
        assert ours.device == where
        host = to_host(ours.to_device(array_api_strict.Device("CPU_DEVICE")))
        np.testing.assert_allclose(host, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_batches_precision_and_inputs(make, rng):
    sys = make(rng, n=3, batch=(2, 2), dt=0)
    P, Q = hsv.frequency_limited_gramians(sys, (0.1, 1))
    dense = sys.to_dense()
    for index in np.ndindex(2, 2):
        one = hsv.StateSpace(dense.A[index], dense.B[index], dense.C[index], dt=0)
        for X, Y in zip(hsv.frequency_limited_gramians(one, (0.1, 1)), (P[index], Q[index]), strict=True):
            np.testing.assert_allclose(X, Y, atol=1e-12 * np.abs(Y).max())
    single = hsv.StateSpace(*(x.astype(np.complex64) for x in (dense.A, dense.B, dense.C)), dt=0)
    X, _ = hsv.frequency_limited_gramians(single, (0.1, 1))
    assert X.dtype == np.complex64
    np.testing.assert_allclose(X, P, atol=tolerance(np.complex64) * np.abs(P).max())
    empty = hsv.StateSpace(np.zeros((0, 2, 2)), np.zeros((0, 2, 1)), np.zeros((0, 1, 2)), dt=0)
    assert hsv.frequency_limited_gramians(empty, (0.1, 1))[0].shape == (0, 2, 2)


def test_the_end_of_the_axis_in_discrete_time():
    sys = hsv.DiagonalStateSpace([0.5], [[3.0]], [[1.0]], dt=0.1)
    for high in (math.pi / 0.1, math.inf):
        np.testing.assert_allclose(hsv.frequency_limited_gramians(sys, (0, high))[0], [[12.0]], rtol=1e-14)


@pytest.mark.parametrize(
    ("band", "dt", "error", "message"),
    [
        ((1, 1), 0, hsv.HsvError, r"0 <= low < high, got \(1.0, 1.0\)"),
        ((-1, 1), 0, hsv.HsvError, "both signs of frequency are counted"),
        ((2, 1), 0, hsv.HsvError, "0 <= low < high"),
        ((math.nan, 1), 0, hsv.HsvError, "0 <= low < high"),
        ((math.inf, math.inf), 0, hsv.HsvError, "0 <= low < high"),
        ((0, 3.2), True, hsv.HsvError, "pi / dt = 3.14159 rad/sample"),
        ((0, 100), 0.1, hsv.HsvError, r"pi / dt = 31.4159 rad/s or before, got \(0, 100\)"),
        ((32, math.inf), 0.1, hsv.HsvError, "rad/s or before"),
        (1.0, 0, hsv.DtypeError, "pair of numbers"),
        ((1, 2, 3), 0, hsv.DtypeError, "pair of numbers"),
        (("a", 2), 0, hsv.DtypeError, "pair of numbers"),
    ],
)
def test_a_band_that_makes_no_sense_is_refused(band, dt, error, message):
    sys = hsv.DiagonalStateSpace([-0.5], [[1.0]], [[1.0]], dt=dt)
    with pytest.raises(error, match=message):
        hsv.frequency_limited_gramians(sys, band)


@pytest.mark.parametrize("dt", [0, True])
def test_an_unstable_system_is_refused(dt):
    for sys in (
        hsv.DiagonalStateSpace([1.5], [[1.0]], [[1.0]], dt=dt),
        hsv.StateSpace([[1.5]], [[1.0]], [[1.0]], dt=dt),
    ):
        with pytest.raises(hsv.UnstableSystemError):
            hsv.frequency_limited_gramians(sys, (0, 1))


@pytest.mark.parametrize("band", ["01", b"01", ("0", "1"), (True, 2), (0.0, None), [(0, 1), ("2", 3)], 5])
def test_texts_and_truth_values_are_no_edges(band):
    sys = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    with pytest.raises(hsv.DtypeError, match=r"band must be a pair of numbers \(low, high\), got"):
        hsv.frequency_limited_gramians(sys, band)


def test_edges_may_be_arrays_without_axes():
    sys = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    expected = hsv.frequency_limited_gramians(sys, (0.0, 1.0))
    for band in (np.array([0, 1]), torch.tensor([0.0, 1.0]), (np.float32(0), torch.tensor(1.0))):
        np.testing.assert_array_equal(hsv.frequency_limited_gramians(sys, band), expected)
