import array_api_strict as strict
import control
import mpmath
import numpy as np
import pytest
import scipy.signal
import torch

import hsv
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

METHODS = ("zoh", "bilinear")
SMALL = hsv.StateSpace([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]], dt=0)


def assert_same(sys, other, atol=1e-12):
    for name in "ABCD":
        ours, theirs = getattr(sys, name), getattr(other, name)
        np.testing.assert_allclose(ours, theirs, atol=atol * max(np.abs(theirs).max(), 1), err_msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dt", [1e-3, 0.2, 3.0])
@pytest.mark.parametrize("complex_", [True, False])
def test_dense_systems_agree_with_scipy(method, dt, complex_, rng):
    sys = random_system(rng, complex_=complex_, dt=0)
    ours = hsv.discretize(sys, dt, method)
    A, B, C, D, _ = scipy.signal.cont2discrete((sys.A, sys.B, sys.C, sys.D), dt, method=method)
    assert ours.dt == dt
    assert ours.is_complex == complex_
    assert_same(ours, hsv.StateSpace(A, B, C, D, dt=dt))


@pytest.mark.parametrize("method", METHODS)
def test_real_systems_agree_with_python_control(method, rng):
    sys = random_system(rng, complex_=False, dt=0)
    assert_same(hsv.discretize(sys, 0.3, method), control.sample_system(hsv.to_control(sys), 0.3, method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0.01, 0.7, 4.0])
def test_diagonal_systems_stay_diagonal(method, complex_, dt, rng):
    sys = random_diagonal(rng, batch=(3,), complex_=complex_, dt=0)
    ours = hsv.discretize(sys, dt, method)
    assert isinstance(ours, hsv.DiagonalStateSpace)
    assert ours.is_complex == complex_
    assert_same(ours.to_dense(), hsv.discretize(sys.to_dense(), dt, method))


def test_the_reference_number():
    """Gramian of the small system sampled with zero-order hold 0.2, from the reference tables of the peers."""
    P = hsv.controllability_gramian(hsv.discretize(SMALL, 0.2))
    np.testing.assert_allclose(P, [[1.418978, 1.946180], [1.946180, 2.670758]], atol=5e-7)


def test_hold_is_exact_at_the_samples():
    """Against the exact step response of the continuous system, from its partial fractions."""
    sampled = hsv.discretize(SMALL, 0.25)
    x = np.zeros((2, 1))
    poles, V = np.linalg.eig(SMALL.A)
    for k in range(1, 9):
        x = sampled.A @ x + sampled.B
        exact = V @ ((np.expm1(poles * 0.25 * k) / poles)[:, None] * np.linalg.solve(V, SMALL.B))
        np.testing.assert_allclose(x, exact, rtol=1e-12)


@pytest.mark.parametrize("make", [random_diagonal, random_system])
def test_the_bilinear_map_keeps_norms_and_hankel_values(make, rng):
    sys = make(rng, dt=0)
    ours = hsv.discretize(sys, 0.4, "bilinear")
    np.testing.assert_allclose(hsv.hankel_singular_values(ours), hsv.hankel_singular_values(sys), rtol=1e-10)
    np.testing.assert_allclose(hsv.hinf_norm(ours), hsv.hinf_norm(sys), rtol=1e-6)
    # s = 2/dt (z - 1)/(z + 1) at z = exp(i w dt) is s = i 2/dt tan(w dt / 2)
    w = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(
        ours.frequency_response(w), sys.frequency_response(2 / 0.4 * np.tan(w * 0.4 / 2)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_closed_forms_keep_every_digit_near_the_stability_boundary(method):
    poles = np.array([0, -1e-300, -1e-17, -1e-9, -1e-3, -1.0, -1e-13 + 5j, -1e-5 - 300j, 1e-14 - 2j, -256 + 1e-9j])
    dt = 2.0**-7  # pole * dt is exact
    sys = hsv.DiagonalStateSpace(poles, np.ones((len(poles), 1)) + 0j, np.ones((1, len(poles))), dt=0)
    ours = hsv.discretize(sys, dt, method)
    with mpmath.workdps(700):
        for i, pole in enumerate(poles):
            z = mpmath.mpc(pole) * mpmath.mpf(dt)
            if method == "zoh":
                log, B = z, (mpmath.expm1(z) / mpmath.mpc(pole) if pole else mpmath.mpf(dt))
            else:
                log, B = mpmath.log((1 + z / 2) / (1 - z / 2)), mpmath.mpf(dt) / (1 - z / 2)
            got = ours.log_poles[i]
            # the margin to the unit circle, to full relative accuracy: the Gramians depend on it
            assert abs(got.real - log.real) <= 1e-15 * abs(log.real) + 1e-320, pole
            assert abs(got.imag - log.imag) <= 1e-15 * abs(log), pole
            assert abs(ours.B[i, 0] - B) <= 2e-15 * abs(B), pole


def test_real_log_poles_where_there_are_some():
    one = np.ones((2, 1)), np.ones((1, 2))
    right = hsv.discretize(hsv.DiagonalStateSpace([-1e-12, -1.0], *one, dt=0), 1.0, "bilinear")
    np.testing.assert_allclose(right.log_poles, [-1e-12, -np.log(3)], rtol=1e-15)
    left = hsv.discretize(hsv.DiagonalStateSpace([-2.0, -6.0], *one, dt=0), 1.0, "bilinear")
    assert left.log_poles is None
    np.testing.assert_allclose(left.poles(), [0, -0.5])
    complex_ = hsv.discretize(hsv.DiagonalStateSpace([-2.0 + 0j, -6.0], *one, dt=0), 1.0, "bilinear")
    np.testing.assert_allclose(complex_.poles(), [0, -0.5])


@pytest.mark.parametrize("method", METHODS)
def test_a_step_for_each_state(method, rng):
    sys = random_diagonal(rng, n=4, batch=(2,), dt=0)
    steps = rng.uniform(0.01, 1, (2, 4))
    ours = hsv.discretize(sys, steps, method)
    assert ours.dt is True
    for i in np.ndindex(2, 4):
        one = hsv.DiagonalStateSpace(sys.poles()[i][None], sys.B[i][None], sys.C[i[0], :, i[1]][:, None], dt=0)
        alone = hsv.discretize(one, float(steps[i]), method)
        np.testing.assert_allclose(ours.poles()[i], alone.poles()[0], rtol=1e-14)
        np.testing.assert_allclose(ours.B[i], alone.B[0], rtol=1e-13)
        np.testing.assert_allclose(ours.C[i[0], :, i[1]], alone.C[:, 0], rtol=1e-13)
    # the whole is the sum of its states: the direct terms too
    same = hsv.discretize(sys, np.full(4, 0.3), method)
    number = hsv.discretize(sys, 0.3, method)
    assert_same(same.to_dense(), number.to_dense(), atol=1e-15)
    assert_same(hsv.discretize(sys, [0.3, 0.3, 0.3, 0.3], method).to_dense(), number.to_dense(), atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_the_real_system_of_a_complex_one_keeps_its_structure(method, rng):
    sys = random_diagonal(rng, n=3, dt=0)
    ours = hsv.discretize(hsv.real_part(sys), 0.2, method)
    expected = hsv.real_part(hsv.discretize(sys, 0.2, method))
    dense = ours.to_dense()
    assert not dense.is_complex
    assert_same(dense, expected.to_dense(), atol=1e-14)
    assert_same(hsv.discretize(hsv.real_part(sys), np.full(6, 0.2), method).to_dense(), expected.to_dense(), atol=1e-14)
    with pytest.raises(hsv.HsvError, match="both states of a conjugate pair"):
        hsv.discretize(hsv.real_part(sys), np.arange(1.0, 7.0), method)


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("complex_", [True, False])
def test_every_library_gives_the_numbers_of_numpy(complex_, method, library, rng):
    for make, dt in ((random_diagonal, 0.1), (random_diagonal, np.full(5, 0.1)), (random_system, 0.1)):
        sys = make(rng, batch=(2,), complex_=complex_, dt=0)
        B, C, D = (library.asarray(getattr(sys, name)) for name in "BCD")
        if make is random_diagonal:
            other = hsv.DiagonalStateSpace(library.asarray(sys.poles()), B, C, D, dt=0)
        else:
            other = hsv.StateSpace(library.asarray(sys.A), B, C, D, dt=0)
        step = dt if isinstance(dt, float) else library.asarray(dt)
        ours, expected = hsv.discretize(other, step, method), hsv.discretize(sys, dt, method)
        assert type(ours.B) is type(B)
        for name in "ABCD":
            got = getattr(ours.to_dense(), name)
            got = np.asarray(got) if library is torch else np.from_dlpack(got)
            np.testing.assert_allclose(got, getattr(expected.to_dense(), name), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_stays(method, rng):
    sys = random_diagonal(rng, complex_=False, dt=0)
    single = hsv.DiagonalStateSpace(*(x.astype(np.float32) for x in (sys.poles(), sys.B, sys.C, sys.D)), dt=0)
    ours = hsv.discretize(single, 0.1, method)
    assert ours.B.dtype == ours.poles().dtype == np.float32
    assert_same(ours.to_dense(), hsv.discretize(sys, 0.1, method).to_dense(), atol=tolerance(np.float32))


def test_what_makes_no_sense_is_refused(rng):
    diagonal, dense = random_diagonal(rng, dt=0), random_system(rng, dt=0)
    for sys in (diagonal, dense):
        with pytest.raises(hsv.HsvError, match="method must be one of 'zoh', 'bilinear', got 'tustin'"):
            hsv.discretize(sys, 0.1, "tustin")
        for bad in (0, -0.1, np.inf, np.nan):
            with pytest.raises(hsv.HsvError, match="dt must be a positive number of seconds"):
                hsv.discretize(sys, bad)
        for bad in (True, None, "0.1", 1j):
            with pytest.raises(hsv.DtypeError, match="dt must be a positive number of seconds"):
                hsv.discretize(sys, bad)
    with pytest.raises(hsv.HsvError, match="takes a continuous system"):
        hsv.discretize(random_diagonal(rng), 0.1)
    with pytest.raises(hsv.ShapeError, match="one number for a dense system"):
        hsv.discretize(dense, np.ones(5))
    with pytest.raises(hsv.ShapeError, match=r"broadcast to the shape of the poles, \(5,\), got \(4,\)"):
        hsv.discretize(diagonal, np.ones(4))
    with pytest.raises(hsv.HsvError, match="dt must be positive, found -1"):
        hsv.discretize(diagonal, np.array([1.0, 1.0, 1.0, 1.0, -1.0]))
    with pytest.raises(hsv.NonFiniteError, match="dt must be finite"):
        hsv.discretize(diagonal, np.array([1.0, 1.0, 1.0, 1.0, np.nan]))
    with pytest.raises(hsv.DtypeError, match="dt must be real"):
        hsv.discretize(diagonal, np.ones(5) + 1j)
    at_infinity = hsv.DiagonalStateSpace([20.0], [[1.0]], [[1.0]], dt=0)
    for sys in (at_infinity, at_infinity.to_dense()):
        with pytest.raises(hsv.IllConditionedError, match="a pole lies at 2 / dt"):
            hsv.discretize(sys, 0.1, "bilinear")
        with pytest.raises(hsv.NonFiniteError):
            hsv.discretize(sys, 100.0)
