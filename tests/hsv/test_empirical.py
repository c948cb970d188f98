"""Empirical Gramians of linear systems are their Gramians; of others, their definitions by other quadratures."""

import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import array_api_strict
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch

import hsv
from hsv._array import to_host
from tests.hsv.test_nonlinear import pendulum
from tests.hsv.test_systems import random_system


class Linear:
    """``x M + u N``, of any array library; a class, so that it can be sent to other processes."""

    def __init__(self, M, N):
        self.M, self.N = M, N

    def __call__(self, x, u, t):
        return x @ self.M + u @ self.N


def as_nonlinear(sys, input_map=False, library=np):
    A, B, C, D = (library.asarray(x.T.copy()) for x in (sys.A, sys.B, sys.C, 0 * sys.D))
    return hsv.NonlinearSystem.from_functions(
        Linear(A, B),
        Linear(C, D),
        steady_state=library.asarray(np.zeros(sys.n_states, sys.A.dtype)),
        steady_input=library.zeros(sys.n_inputs),
        dt=sys.dt,
        input_map=(lambda x: np.broadcast_to(sys.B, (len(x), *sys.B.shape))) if input_map else None,
    )


def exact_cross_gramian(sys, horizon):
    if sys.is_discrete:
        powers = [np.linalg.matrix_power(sys.A, k) for k in range(horizon)]
        return sum(power @ sys.B @ sys.C @ power for power in powers)

    def integrand(t):
        E = scipy.linalg.expm(sys.A * t)
        return E @ sys.B @ sys.C @ E

    return scipy.integrate.quad_vec(integrand, 0, horizon, epsrel=1e-12)[0]


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("scales", ["single", "linear", "geometric", "logarithmic", "sparse", [0.5, 2.0]])
def test_gramians_of_discrete_linear_systems_are_exact(scales, complex_, rng):
    sys, T = random_system(rng, n=4, m=2, p=2, complex_=complex_), 6
    twin, times = as_nonlinear(sys), range(T + 1)
    for found, expected in (
        (hsv.empirical_controllability_gramian(twin, times, scales=scales), hsv.controllability_gramian(sys, T)),
        (hsv.empirical_observability_gramian(twin, times, scales=scales), hsv.observability_gramian(sys, T + 1)),
        (
            hsv.empirical_cross_gramian(twin, times, input_scales=scales, state_scales=scales),
            exact_cross_gramian(sys, T),
        ),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize(("input_map", "order"), [(True, 4), (False, 2)])
@pytest.mark.parametrize("complex_", [False, True])
def test_gramians_of_continuous_linear_systems_converge(complex_, input_map, order, rng):
    sys, T = random_system(rng, n=3, m=2, p=2, complex_=complex_, dt=0), 4
    twin = as_nonlinear(sys, input_map)
    expected = hsv.controllability_gramian(sys, T), hsv.observability_gramian(sys, T), exact_cross_gramian(sys, T)
    errors = []
    for steps in (100, 200):
        times = np.linspace(0, T, steps + 1)
        found = (
            hsv.empirical_controllability_gramian(twin, times),
            hsv.empirical_observability_gramian(twin, times),
            hsv.empirical_cross_gramian(twin, times),
        )
        errors.append([np.abs(x - y).max() / np.abs(y).max() for x, y in zip(found, expected, strict=True)])
    assert max(errors[0]) < (1e-5 if order == 4 else 1e-2)
    ratios = np.array(errors[0]) / np.array(errors[1])
    for ratio, expected_order in zip(ratios, (order, 4, order), strict=True):  # outputs need no impulse
        assert 2**expected_order * 0.7 < ratio < 2**expected_order * 1.4


def test_uneven_times_are_the_trapezoidal_rule():
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: -x + u, steady_state=[0.0], steady_input=[0.0], dt=0, steps_per_sample=20
    )
    times = np.array([0, 0.1, 0.3, 0.35, 0.9])
    y = np.exp(-2 * times)
    found = hsv.empirical_observability_gramian(sys, times)
    np.testing.assert_allclose(found, [[np.trapezoid(y, times)]], rtol=1e-7)


def cubic(x, u, t):
    return -x - x**3 + u


def test_a_nonlinear_system_by_quadrature():
    """x' = -x - x^3: x(t) = e^-t / sqrt(1 / x0^2 + 1 - e^-2t), and averages over sizes and signs by adaptive rules."""
    sys = hsv.NonlinearSystem.from_functions(
        cubic, steady_state=[0.0], steady_input=[0.0], dt=0, input_map=lambda x: np.ones((len(x), 1, 1))
    )
    times, sizes = np.linspace(0, 5, 1001), [0.5, 1.0, 2.0]

    def energy(size):
        def square(t):
            return math.exp(-2 * t) / (size**-2 + 1 - math.exp(-2 * t))

        return scipy.integrate.quad(square, 0, 5, epsabs=1e-13)[0] / size**2

    expected = np.mean([energy(size) for size in sizes])
    for found in (
        hsv.empirical_controllability_gramian(sys, times, scales=sizes),
        hsv.empirical_observability_gramian(sys, times, scales=sizes),
    ):
        np.testing.assert_allclose(found, [[expected]], rtol=1e-7)
    ways = [math.exp(-t) / math.sqrt(s**-2 + 1 - math.exp(-2 * t)) / s for s in sizes for t in times]
    mean = np.mean(np.reshape(ways, (3, -1)), axis=0)  # the same for states and outputs
    found = hsv.empirical_cross_gramian(sys, times, input_scales=sizes, state_scales=sizes)
    np.testing.assert_allclose(found, [[scipy.integrate.simpson(mean**2, x=times)]], rtol=1e-7)


def test_both_signs_count():
    """x' = -x + x^2 is not odd: the response to -1 differs from that to 1."""
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: 0.5 * x - 0.1 * x**2, steady_state=[0.0], steady_input=[0.0], dt=True
    )
    both = hsv.empirical_observability_gramian(sys, range(8))
    plus, minus = (hsv.empirical_observability_gramian(sys, range(8), rotations=[[[sign]]]) for sign in (1.0, -1.0))
    assert abs(plus - minus).max() > 0.05
    np.testing.assert_allclose(both, (plus + minus) / 2, rtol=1e-14)


def test_rotations_change_nothing_for_linear_systems(rng):
    sys = random_system(rng, n=3, m=2, p=2)
    twin, times = as_nonlinear(sys), range(6)
    turn_inputs = np.stack([scipy.linalg.qr(rng.normal(size=(2, 2)) + 1j * rng.normal(size=(2, 2)))[0] for _ in "ab"])
    turn_states = np.stack([scipy.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in "abc"])
    for found, expected in (
        (
            hsv.empirical_controllability_gramian(twin, times, rotations=turn_inputs, scales=[[0.5, 3.0]]),
            hsv.controllability_gramian(sys, 5),
        ),
        (
            hsv.empirical_observability_gramian(twin, times, rotations=turn_states, scales=[[1.0, 2.0, 3.0]]),
            hsv.observability_gramian(sys, 6),
        ),
        (
            hsv.empirical_cross_gramian(twin, times, input_rotations=turn_inputs, state_rotations=turn_states),
            exact_cross_gramian(sys, 5),
        ),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())


def test_the_average_cross_gramian(rng):
    sys = random_system(rng, n=3, m=3, p=2, complex_=False)
    twin = as_nonlinear(sys)
    average = hsv.StateSpace(sys.A, sys.B.sum(axis=1, keepdims=True), sys.C.sum(axis=0, keepdims=True), dt=True)
    found = hsv.empirical_cross_gramian(twin, range(8), non_symmetric=True)
    expected = exact_cross_gramian(average, 7)
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    with pytest.raises(hsv.ShapeError, match="as many inputs as outputs, got 3 and 2; pass non_symmetric=True"):
        hsv.empirical_cross_gramian(twin, range(8))


def test_centres():
    """y[k] = a^k about a steady output of 3, by the definitions of the centres."""
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: 1 + 0.5 * (x - 1), lambda x, u, t: 2 + x, steady_state=[1.0], steady_input=[0.0], dt=True
    )
    y = 3 + 0.5 ** np.arange(5)
    centres = {
        "none": 0,
        "steady": 3,
        "trajectory": 3,
        "final": y[-1],
        "mean": y.mean(),
        "rms": np.sqrt((y**2).mean()),
        "midrange": (y.max() + y.min()) / 2,
    }
    for centering, centre in centres.items():
        found = hsv.empirical_observability_gramian(sys, range(5), centering=centering, rotations=[[[1.0]]])
        np.testing.assert_allclose(found, [[((y - centre) ** 2).sum()]], rtol=1e-13)


def test_a_trajectory_that_is_not_steady_is_its_own_centre():
    """A drift that all experiments share drops out of a linear system about it, and only then."""
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: 0.5 * x + 1 + u, steady_state=[0.0], steady_input=[0.0], dt=True
    )
    for call in (hsv.empirical_controllability_gramian, hsv.empirical_observability_gramian):
        with pytest.warns(
            UserWarning, match=r"steady_state is none .*; pass a better one, or centering='trajectory'"
        ) as said:
            drifting = call(sys, range(6))
        assert len(said) == 1
        assert said[0].filename == __file__
        plain = call(sys, range(6), centering="trajectory")
        expected = sum(0.25**k for k in range(5 + (call is hsv.empirical_observability_gramian)))
        np.testing.assert_allclose(plain, [[expected]], rtol=1e-12)
        assert drifting[0, 0] > 2 * expected


def test_another_signal_than_the_impulse(rng):
    sys = random_system(rng, n=3, m=2, p=2, complex_=False)
    steps = hsv.empirical_controllability_gramian(as_nonlinear(sys), range(6), signal=np.ones(6))
    states = [np.zeros((3, 2))]
    for _ in range(5):
        states.append(sys.A @ states[-1] + sys.B)
    np.testing.assert_allclose(steps, sum(x @ x.T for x in states), rtol=1e-11)


def test_chunks_and_workers_change_nothing(rng):
    sys = random_system(rng, n=5, m=2, p=2, complex_=False)
    twin, times = as_nonlinear(sys), range(6)
    calls = (hsv.empirical_controllability_gramian, hsv.empirical_observability_gramian, hsv.empirical_cross_gramian)
    for call in calls:
        whole = call(twin, times)
        for chunk in (1, 3):
            np.testing.assert_allclose(call(twin, times, chunk=chunk), whole, rtol=1e-12, atol=1e-14)
        with ThreadPoolExecutor(2) as executor:
            np.testing.assert_array_equal(call(twin, times, chunk=2, executor=executor), call(twin, times, chunk=2))


@pytest.mark.slow
def test_other_processes_change_nothing(rng):
    twin = as_nonlinear(random_system(rng, n=5, m=2, p=2, complex_=False))
    with ProcessPoolExecutor(1) as executor:
        np.testing.assert_array_equal(
            hsv.empirical_observability_gramian(twin, range(6), chunk=2, executor=executor),
            hsv.empirical_observability_gramian(twin, range(6), chunk=2),
        )


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("dt", [0, True])
def test_every_library_gives_the_numbers_of_numpy(dt, complex_, library, rng):
    sys = random_system(rng, n=3, m=2, p=2, complex_=complex_, dt=dt)
    mine = as_nonlinear(sys)
    if complex_ and library is array_api_strict:  # no product of a real and a complex matrix there
        B, D = (library.asarray(x.T.copy()) for x in (sys.B, 0 * sys.D))
        theirs = hsv.NonlinearSystem.from_functions(
            lambda x, u, t: x @ library.asarray(sys.A.T.copy()) + library.astype(u, library.complex128) @ B,
            lambda x, u, t: x @ library.asarray(sys.C.T.copy()) + library.astype(u, library.complex128) @ D,
            steady_state=library.zeros(3, dtype=library.complex128), steady_input=library.zeros(2), dt=dt,
        )  # fmt: skip
    else:
        theirs = as_nonlinear(sys, library=library)
    times = list(range(8)) if dt else [0.1 * k for k in range(8)]
    for call in (
        hsv.empirical_controllability_gramian,
        hsv.empirical_observability_gramian,
        hsv.empirical_cross_gramian,
    ):
        found = call(theirs, times, chunk=3)
        assert isinstance(found, type(library.zeros(1)))
        expected = call(mine, times)
        np.testing.assert_allclose(to_host(found), expected, atol=1e-12 * np.abs(expected).max())


def test_balancing_a_nonlinear_system_keeps_what_matters():
    """A pendulum and a second one that no input reaches and no output sees."""
    plant = pendulum()

    def rate(x, u, t):
        first = plant.right_hand_side(x[..., :2], u, t)
        second = plant.right_hand_side(x[..., 2:], 0 * u, t)
        return np.concatenate([first, second + 1e-3 * x[..., :2]], axis=-1)

    sys = hsv.NonlinearSystem.from_functions(
        rate, lambda x, u, t: x[..., :1] + 1e-3 * x[..., 2:3], steady_state=np.zeros(4), steady_input=[0.0], dt=0
    )
    times = np.linspace(0, 20, 401)
    P = hsv.empirical_controllability_gramian(sys, times, scales="linear")
    Q = hsv.empirical_observability_gramian(sys, times, scales="linear")
    found = hsv.balancing_projection(P, Q, hsv.HankelSum(keep=0.999))
    assert int(found.orders) == 2
    inputs = 0.3 * np.sin(times)[:, None]
    _, full = sys.simulate(np.zeros(4), inputs, times)
    _, reduced = sys.project(found.left, found.right).simulate(np.zeros(2), inputs, times)
    assert np.abs(full - reduced).max() < 0.01 * np.abs(full).max()


def test_inputs_that_make_no_sense_are_refused(rng):
    sys = as_nonlinear(random_system(rng, n=3, m=2, p=2, complex_=False))
    call = hsv.empirical_controllability_gramian
    for times in ([0], [0, 0, 1], [0, math.inf], [[0, 1]], []):
        with pytest.raises(hsv.HsvError, match="times must be at least 2 finite numbers that ascend"):
            call(sys, times)
    with pytest.raises(hsv.HsvError, match="scales must be numbers or one of 'single', 'linear'"):
        call(sys, range(4), scales="cubic")
    for scales in ([0.0], [-1.0], [], [math.nan]):
        with pytest.raises(hsv.HsvError, match="scales must be positive and finite"):
            call(sys, range(4), scales=scales)
    for scales in ([[1.0, 2.0, 3.0]], 1.0, [1j], ["a"]):
        with pytest.raises(hsv.ShapeError, match=r"scales must be real numbers of shape \(s,\) or \(s, 2\)"):
            call(sys, range(4), scales=scales)
    with pytest.raises(hsv.ShapeError, match=r"rotations must have shape \(r, 2, 2\)"):
        call(sys, range(4), rotations=np.eye(2))
    with pytest.raises(hsv.HsvError, match="rotations must be orthogonal or unitary"):
        call(sys, range(4), rotations=2 * np.eye(2)[None])
    with pytest.raises(hsv.DtypeError, match="rotations of a real system must be real"):
        call(sys, range(4), rotations=1j * np.eye(2)[None])
    with pytest.raises(hsv.ShapeError, match="signal must be 4 finite numbers"):
        call(sys, range(4), signal=np.ones(3))
    with pytest.raises(hsv.HsvError, match="centering must be one of 'none', 'steady'"):
        call(sys, range(4), centering="median")
    for chunk in (0, 1.5, True):
        with pytest.raises(hsv.HsvError, match="chunk must be an int of at least 1"):
            call(sys, range(4), chunk=chunk)


@pytest.mark.parametrize(
    ("times", "dt", "error", "message"),
    [
        (5, 0, hsv.DtypeError, "times must be a sequence of numbers, got 5; for a horizon"),
        (None, True, hsv.DtypeError, "times must be a sequence of numbers, got None; for N steps"),
        ([0.0, 1j], 0, hsv.DtypeError, "times must be real"),
        ([1.0, 2.0], 0, hsv.HsvError, "times must begin at 0"),
        (
            [0.0, 0.5, 1.2],
            True,
            hsv.HsvError,
            r"times of a discrete system must be all of its steps, 0, 1, 2, \.\.\., got",
        ),
        ([0, 1, 3], 0.5, hsv.HsvError, r"all of its steps, 0, 1, 2, \.\.\. or multiples of dt = 0.5"),
    ],
)
def test_times_that_are_no_grid_of_the_system_are_refused(times, dt, error, message):
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: -0.5 * x + u, steady_state=[0.0], steady_input=[0.0], dt=dt
    )
    for call in (
        hsv.empirical_controllability_gramian,
        hsv.empirical_observability_gramian,
        hsv.empirical_cross_gramian,
    ):
        with pytest.raises(error, match=message):
            call(sys, times)


def test_steps_may_be_counted_or_timed():
    def gramian(times):
        sys = hsv.NonlinearSystem.from_functions(
            lambda x, u, t: 0.5 * x + u, steady_state=[0.0], steady_input=[0.0], dt=0.1
        )
        return float(hsv.empirical_controllability_gramian(sys, times)[0, 0])

    assert gramian(range(4)) == gramian(0.1 * np.arange(4)) == 1.3125


def test_other_kinds_of_arguments_are_refused_by_name(rng):
    linear = random_system(rng, n=2, m=1, p=1, complex_=False)
    with pytest.raises(
        hsv.DtypeError, match=r"sys must be a NonlinearSystem, got StateSpace; linear systems have hsv.contr"
    ):
        hsv.empirical_controllability_gramian(linear, range(4))
    sys = as_nonlinear(linear)
    for signal, found in (("a", "str"), (np.ones(4) * 1j, "complex128")):
        with pytest.raises(hsv.DtypeError, match=f"signal must hold real numbers, got .*{found}"):
            hsv.empirical_controllability_gramian(sys, range(4), signal=signal)
    with pytest.raises(hsv.DtypeError, match=r"executor must have a method map, .* got 3"):
        hsv.empirical_observability_gramian(sys, range(4), executor=3)
    expected = hsv.empirical_controllability_gramian(sys, range(4))
    np.testing.assert_array_equal(hsv.empirical_controllability_gramian(sys, range(4), chunk=np.int64(64)), expected)
