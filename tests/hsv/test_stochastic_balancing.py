import ctrlsys
import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given
from hypothesis import strategies as st

import hsv
from tests.hsv.test_riccati_balancing import adjoint, draws, frequencies, stable, wide
from tests.hsv.test_systems import random_diagonal, random_system


def relative_error(sys, reduced, w, alpha=0.0):
    """The largest singular value of (G G^H + alpha^2 I)^(-1/2) (G - G_r) over the frequencies, and how far rounding may move it."""
    full, small = sys.frequency_response(w), reduced.frequency_response(w)
    power = full @ adjoint(full) + alpha**2 * np.eye(sys.n_outputs)
    root = np.linalg.cholesky(power)
    error = np.linalg.norm(np.linalg.solve(root, full - small), 2, axis=(-2, -1)).max()
    return error, np.sqrt(np.linalg.cond(power).max())


@given(draws, st.sampled_from([random_system, random_diagonal]), st.sampled_from([0.0, 0.1, 3.0]), st.data())
def test_the_relative_bound_holds(draw, make, alpha, data):
    assume(alpha > 0 or draw["p"] <= draw["m"])
    sys = make(np.random.default_rng(draw.pop("seed")), **draw)
    order = data.draw(st.integers(1, sys.n_states - 1))
    try:
        red = hsv.stochastic_truncation(sys, order, alpha=alpha)
    except hsv.OrderError as error:  # the zeros outside: their number is that of the values at 1
        assert "zero outside the stability region" in str(error)  # noqa: PT017
        return
    error, condition = relative_error(sys, red.system, frequencies(sys), alpha)
    assert error <= float(red.relative_error_bound) * (1 + 1e-9) + 1e-11 * condition
    assert red.characteristic_values[0] <= 1 + 1e-9


@given(draws, st.sampled_from([1.0, 5.0, 20.0]), st.data())
def test_decibels_of_one_output(draw, feedthrough, data):
    """The error over the reduced gain obeys the bound as well as that over the gain: so decibels do, up and down."""
    draw.update(m=1, p=1)
    sys = random_system(np.random.default_rng(draw.pop("seed")), **draw)
    sys = hsv.StateSpace(sys.A, sys.B, sys.C, feedthrough * sys.D, dt=sys.dt)
    order = data.draw(st.integers(1, sys.n_states - 1))
    try:
        red = hsv.stochastic_truncation(sys, order)
    except hsv.OrderError:
        assume(False)
    w = frequencies(sys)
    full, small = (x.frequency_response(w)[:, 0, 0] for x in (sys, red.system))
    allowed = float(red.relative_error_bound) * (1 + 1e-9) + 1e-9
    assert np.abs((full - small) / small).max() <= allowed
    assert np.abs(20 * np.log10(np.abs(small / full))).max() <= 20 * np.log10(1 + allowed)


def zeros_of(sys):
    """Eigenvalues of A - B D^-1 C, for as many inputs as outputs."""
    return np.linalg.eigvals(sys.A - sys.B @ np.linalg.solve(sys.D, sys.C))


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
def test_zeros_outside_the_stability_region_have_the_value_one_and_stay(dt, complex_, rng):
    seen = set()
    for _ in range(30):
        sys = random_system(rng, n=5, m=2, p=2, complex_=complex_, dt=dt)
        zeros = zeros_of(sys)
        outside = int(np.sum(np.abs(zeros) > 1 if dt else zeros.real > 0))
        if outside in (0, 5):
            continue
        seen.add(outside)
        if outside > 1:
            with pytest.raises(hsv.OrderError, match=f"at least {outside}, got {outside - 1}"):
                hsv.stochastic_truncation(sys, outside - 1)
        red = hsv.stochastic_truncation(sys, outside)
        np.testing.assert_allclose(red.characteristic_values[:outside], 1, atol=1e-8)
        assert red.characteristic_values[outside] < 1 - 1e-6
        kept = zeros_of(red.system)
        assert np.sum(np.abs(kept) > 1 if dt else kept.real > 0) == outside
    assert len(seen) >= 2


@pytest.mark.parametrize("dt", [0, True])
def test_values_are_those_of_scipys_spectral_factor(dt, rng):
    sys = wide(random_system, rng, n=5, dt=dt)
    A, B, C, D = sys.A, sys.B, sys.C, sys.D
    if dt:
        P = scipy.linalg.solve_discrete_lyapunov(A, B @ adjoint(B))
        E, BW = C @ P @ adjoint(C) + D @ adjoint(D), A @ P @ adjoint(C) + B @ adjoint(D)
        Q = scipy.linalg.solve_discrete_are(A, BW, np.zeros((5, 5)), -E, s=-adjoint(C))
    else:
        P = scipy.linalg.solve_continuous_lyapunov(A, -B @ adjoint(B))
        E, BW = D @ adjoint(D), P @ adjoint(C) + B @ adjoint(D)
        Q = scipy.linalg.solve_continuous_are(A, BW, np.zeros((5, 5)), -E, s=-adjoint(C))
    expected = np.sort(np.sqrt(np.linalg.eigvals(P @ Q).real))[::-1]
    red = hsv.stochastic_truncation(sys, 2)
    # SciPy's P Q has half the digits of the smallest value
    np.testing.assert_allclose(red.characteristic_values, expected, rtol=1e-5)


def test_it_commutes_with_the_bilinear_map(rng):
    """The discrete equations and the steady state at z = -1 against truncation in continuous time."""
    sys = wide(random_system, rng, n=6, dt=0)
    red, sampled = hsv.stochastic_truncation(sys, 3), hsv.stochastic_truncation(hsv.discretize(sys, 0.3, "bilinear"), 3)
    np.testing.assert_allclose(sampled.characteristic_values, red.characteristic_values, rtol=1e-9)
    w = np.linspace(-9, 9, 20)
    expected = hsv.discretize(red.system, 0.3, "bilinear").frequency_response(w)
    np.testing.assert_allclose(sampled.system.frequency_response(w), expected, atol=1e-9 * np.abs(expected).max())
    nyquist = np.array([np.pi / 0.3])
    np.testing.assert_allclose(
        sampled.system.frequency_response(nyquist),
        hsv.discretize(sys, 0.3, "bilinear").frequency_response(nyquist),
        rtol=1e-9,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dt", [0, True])
def test_slicot_agrees(dt, alpha, rng):
    """AB09HD. In discrete time ctrlsys 1.1 returns a wrong first column of B, and all else as we do."""
    n, m, p, order = 7, 3, 2, 4
    sys = wide(random_system, rng, n=n, complex_=False, dt=dt)
    red = hsv.stochastic_truncation(sys, order, alpha=alpha)
    matrices = (np.asfortranarray(x.copy()) for x in (sys.A, sys.B, sys.C, sys.D))
    time, boundary = ("D", 1.0) if dt else ("C", 0.0)
    Ar, Br, Cr, Dr, nr, ns, values, warning, info = ctrlsys.ab09hd(
        time, "B", "N", "F", n, m, p, order, boundary, alpha, *matrices, 0.0, 0.0
    )
    assert (nr, ns, warning, info) == (order, n, 0, 0)
    np.testing.assert_allclose(red.characteristic_values, values[:n], atol=1e-10)
    w = frequencies(sys, 21)
    theirs = hsv.StateSpace(Ar[:nr, :nr], Br[:nr], Cr[:, :nr], Dr, dt=dt).frequency_response(w)
    inputs = slice(1, None) if dt else slice(None)
    np.testing.assert_allclose(
        red.system.frequency_response(w)[..., inputs], theirs[..., inputs], atol=1e-8 * np.abs(theirs).max()
    )
    if dt:
        assert relative_error(sys, red.system, w, alpha)[0] <= red.relative_error_bound


def test_a_large_alpha_gives_balanced_truncation(rng):
    sys = random_system(rng, n=6, dt=0)
    red, plain = hsv.stochastic_truncation(sys, 3, alpha=1e6), hsv.balanced_truncation(sys, 3)
    np.testing.assert_allclose(1e6 * red.characteristic_values, plain.hankel_singular_values, rtol=1e-6)
    w = frequencies(sys, 11)
    np.testing.assert_allclose(red.system.frequency_response(w), plain.system.frequency_response(w), atol=1e-5)


def lags(poles, zeros):
    """The product of ``(s + z) / (s + p) p / z``."""
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.ones((1, 1))
    for p, z in zip(poles, zeros, strict=True):
        A = np.block([[A, np.zeros((len(A), 1))], [C, np.array([[-p]])]])
        B, C, D = np.vstack([B, D]), p / z * np.hstack([C, [[z - p]]]), p / z * D
    return hsv.StateSpace(A, B, C, D, dt=0)


def test_small_gains_are_kept_where_balanced_truncation_loses_them():
    """A gain that falls by 87 dB: the error in decibels is bounded at all frequencies."""
    sys = lags([1.0, 2.0, 4.0, 8.0], [12.0, 24.0, 50.0, 100.0])
    w = np.geomspace(1e-2, 1e5, 400)
    gain = np.abs(sys.frequency_response(w)[:, 0, 0])
    red = hsv.stochastic_truncation(sys, 3)
    decibels, others = (
        np.abs(20 * np.log10(np.abs(x.system.frequency_response(w)[:, 0, 0]) / gain)).max()
        for x in (red, hsv.balanced_truncation(sys, 3))
    )
    assert decibels <= 20 * np.log10(1 + float(red.relative_error_bound))
    assert decibels < 0.2 * others


def test_unstable_systems_by_their_stable_part(rng):
    sys = stable(random_system, rng, n=4, m=2, p=2, dt=0)
    grown = sys + hsv.StateSpace([[1.0]], [[1.0, 0.0]], [[0.0], [1.0]], dt=0)
    red = hsv.reduce_stable_part(grown, 3, lambda s, rule: hsv.stochastic_truncation(s, rule, alpha=0.1))
    assert isinstance(red, hsv.RiccatiReduction)
    assert np.abs(np.asarray(red.system.poles()) - 1).min() < 1e-12


def test_refusals():
    strictly_proper = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    with pytest.raises(hsv.HsvError, match=r"D must have full row rank 1 in continuous time.*pass alpha > 0"):
        hsv.stochastic_truncation(strictly_proper, 1)
    hsv.stochastic_truncation(strictly_proper, 1, alpha=0.1)
    delayed = hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True)  # a zero at infinity, outside the circle
    assert hsv.stochastic_truncation(delayed, 1).characteristic_values[0] == pytest.approx(1)
    tall = hsv.StateSpace(-np.eye(2), [[1.0], [1.0]], np.eye(2), [[1.0], [0.0]], dt=0)
    with pytest.raises(hsv.HsvError, match="full row rank 2"):
        hsv.stochastic_truncation(tall, 1)
    for alpha, error in [(-1.0, hsv.HsvError), (np.nan, hsv.HsvError), ("1", hsv.DtypeError), (True, hsv.DtypeError)]:
        with pytest.raises(error, match="alpha must be"):
            hsv.stochastic_truncation(delayed, 1, alpha=alpha)
    batch = hsv.StateSpace(-np.ones((2, 1, 1)), [[1.0]], [[1.0]], np.array([[[1.0]], [[0.0]]]), dt=0)
    with pytest.raises(hsv.HsvError, match=r"D of system \(1,\) must"):
        hsv.stochastic_truncation(batch, 1)


@pytest.mark.parametrize("dt", [0, True])
def test_a_zero_on_the_stability_boundary_counts_as_outside_or_is_said(dt):
    """s / (s + 1) and (z - 1) / (z - 0.5) beside a second state: a double eigenvalue at the boundary, which rounding splits one way or the other."""
    pole = 0.5 if dt else -1.0
    A, C = np.diag([pole, pole / 3]), np.diag([pole - (1.0 if dt else 0.0), 0.5])
    sys = hsv.StateSpace(A, np.eye(2), C, np.eye(2), dt=dt)
    try:
        red = hsv.stochastic_truncation(sys, 1)
    except hsv.IllConditionedError as error:
        said = str(error)
    else:
        said = "zero on the stability boundary"
        assert red.characteristic_values[0] == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(zeros_of(red.system), [1.0 if dt else 0.0], atol=1e-6)
    assert "zero on the stability boundary" in said


def test_an_alpha_whose_square_is_no_number_is_refused():
    sys = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[1.0]], dt=0)
    with pytest.raises(hsv.HsvError, match="alpha must be at most 1e\\+150, for the equation has its square"):
        hsv.stochastic_truncation(sys, 1, alpha=1e200)
