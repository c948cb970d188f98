import math
import pickle

import array_api_strict
import numpy as np
import pytest
import scipy.integrate
import torch

import hsv
from hsv._array import to_host
from tests.hsv.test_systems import random_system, simulate


def pendulum_rate(x, u, t):
    return np.stack([x[..., 1], -np.sin(x[..., 0]) - 0.3 * x[..., 1] + u[..., 0]], axis=-1)


def angle(x, u, t):
    return x[..., :1]


def pendulum(**options):
    return hsv.NonlinearSystem.from_functions(
        pendulum_rate, angle, steady_state=[0.0, 0.0], steady_input=[0.0], dt=0, **options
    )


def test_continuous_time_beside_scipy():
    times = np.linspace(0, 5, 101)
    inputs = np.sin(times)[:, None]
    states, outputs = pendulum().simulate([1.0, 0.0], inputs, times)

    def rate(t, x):
        return pendulum_rate(x, inputs[min(int(t / 0.05 + 1e-9), 99)], t)

    x = np.array([1.0, 0.0])
    for i in range(20):  # the input jumps from sample to sample
        x = scipy.integrate.solve_ivp(rate, (times[i], times[i + 1]), x, rtol=1e-11, atol=1e-12, max_step=0.05).y[:, -1]
        np.testing.assert_allclose(states[i + 1], x, atol=1e-6)
    np.testing.assert_array_equal(outputs[:, 0], states[:, 0])


def test_the_error_is_of_order_four():
    def decay(x, u, t):
        return -x * x * math.cos(t)  # x = 1 / (1 + sin t)

    errors = []
    for steps in (1, 2):
        sys = hsv.NonlinearSystem.from_functions(
            decay, steady_state=[1.0], steady_input=[0.0], dt=0, steps_per_sample=steps
        )
        times = np.linspace(0, 3, 16)
        states, _ = sys.simulate([1.0], np.zeros((16, 1)), times)
        errors.append(np.abs(states[:, 0] - 1 / (1 + np.sin(times))).max())
    assert 12 < errors[0] / errors[1] < 20


def test_discrete_time_is_the_recurrence(rng):
    linear = random_system(rng, n=3, complex_=False, dt=True)
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: x @ linear.A.T + u @ linear.B.T,
        lambda x, u, t: x @ linear.C.T + u @ linear.D.T,
        steady_state=np.zeros(3), steady_input=np.zeros(2), dt=True,
    )  # fmt: skip
    u = rng.normal(size=(4, 9, 2))
    _, outputs = sys.simulate(np.zeros((4, 3)), u, range(9))
    for k in range(4):
        np.testing.assert_allclose(outputs[k], simulate(linear, u[k]), atol=1e-12)


@pytest.mark.parametrize("batched", [True, False])
def test_a_simulation_of_ones_own(batched):
    inner = pendulum()
    seen = []

    def program(initial_states, inputs, times):
        seen.append((initial_states.shape, inputs.shape))
        return inner.simulate(initial_states, inputs, times)

    sys = hsv.NonlinearSystem.from_simulation(
        program, steady_state=[0.0, 0.0], steady_input=[0.0], dt=0, batched=batched
    )
    times, start = np.linspace(0, 1, 5), np.array([[1.0, 0.0], [0.5, 0.1]])
    for mine, theirs in zip(
        sys.simulate(start, np.zeros((2, 5, 1)), times), inner.simulate(start, np.zeros((2, 5, 1)), times), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert seen == ([((2, 2), (2, 5, 1))] if batched else [((2,), (5, 1))] * 2)


@pytest.mark.parametrize("dt", [0, True])
def test_projections_commute_with_linear_ones(dt, rng):
    """About a steady state that is not the origin."""
    linear = random_system(rng, n=4, complex_=False, dt=dt)
    origin = rng.normal(size=4)
    shift = origin if dt else 0

    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: shift + (x - origin) @ linear.A.T + u @ linear.B.T,
        lambda x, u, t: (x - origin) @ linear.C.T,
        steady_state=origin, steady_input=np.zeros(2), dt=dt, input_map=lambda x: np.broadcast_to(linear.B, (len(x), 4, 2)),
    )  # fmt: skip
    red = hsv.balanced_truncation(linear, 2)
    small = sys.project(red.left, red.right)
    assert (small.n_states, small.n_inputs) == (2, 2)
    np.testing.assert_array_equal(small.steady_state, np.zeros(2))
    x, u = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    np.testing.assert_allclose(small.right_hand_side(x, u, 0.0), x @ red.system.A.T + u @ red.system.B.T, atol=1e-12)
    np.testing.assert_allclose(small.output(x, u, 0.0), x @ red.system.C.T, atol=1e-12)
    np.testing.assert_allclose(small.input_map(x)[1], red.system.B, atol=1e-12)


def test_systems_of_functions_can_be_sent_to_other_processes():
    sys = pickle.loads(pickle.dumps(pendulum()))
    small = pickle.loads(pickle.dumps(sys.project(np.eye(2), np.eye(2))))
    times = np.linspace(0, 1, 5)
    np.testing.assert_array_equal(
        small.simulate([1.0, 0.0], np.zeros((5, 1)), times)[0],
        pendulum().simulate([1.0, 0.0], np.zeros((5, 1)), times)[0],
    )


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
def test_other_libraries_and_single_precision(library):
    sys = hsv.NonlinearSystem.from_functions(
        lambda x, u, t: -x * x * x + u,
        steady_state=library.zeros(2, dtype=library.float32),
        steady_input=library.zeros(2, dtype=library.float32),
        dt=0,
    )
    states, outputs = sys.simulate([1.0, 2.0], library.zeros((4, 2), dtype=library.float32), [0.0, 0.1, 0.2, 0.3])
    assert isinstance(states, type(library.zeros(1)))
    assert states.dtype == outputs.dtype == library.float32
    np.testing.assert_allclose(to_host(states)[-1], 1 / np.sqrt(0.6 + np.array([1.0, 0.25])), rtol=1e-3)


def test_what_makes_no_sense_is_refused():
    make = hsv.NonlinearSystem.from_functions
    for state, control, message in (([[0.0]], [0.0], "steady_state"), ([0.0], [], "steady_input")):
        with pytest.raises(hsv.ShapeError, match=f"{message} must have one axis"):
            make(angle, steady_state=state, steady_input=control, dt=0)
    with pytest.raises(hsv.NonFiniteError, match="steady_state must be finite"):
        make(angle, steady_state=[math.nan], steady_input=[0.0], dt=0)
    for dt in (-1, False, "a"):
        with pytest.raises(hsv.HsvError, match="dt must be"):
            make(angle, steady_state=[0.0], steady_input=[0.0], dt=dt)
    for steps in (0, 1.5, True):
        with pytest.raises(hsv.HsvError, match="steps_per_sample must be an int of at least 1"):
            pendulum(steps_per_sample=steps)
    with pytest.raises(hsv.ShapeError, match=r"must have shapes \(k, 2\), \(k, T, 1\) and \(T,\)"):
        pendulum().simulate([1.0, 0.0], np.zeros((4, 1)), range(5))
    wrong = hsv.NonlinearSystem.from_simulation(lambda x, u, t: (x, x), steady_state=[0.0], steady_input=[0.0], dt=True)
    with pytest.raises(
        hsv.ShapeError, match=r"the simulation must return states \(1, 3, 1\) and outputs \(1, 3, p\), got \(1, 1\)"
    ):
        wrong.simulate([0.0], np.zeros((3, 1)), range(3))
    with pytest.raises(hsv.HsvError, match="only a system of a right-hand side can be projected"):
        wrong.project(np.eye(1), np.eye(1))
    with pytest.raises(hsv.ShapeError, match=r"left and right must both have shape \(2, r\)"):
        pendulum().project(np.eye(3), np.eye(3))
    explodes = make(lambda x, u, t: 1e300 * x, steady_state=[0.0], steady_input=[0.0], dt=True)
    with pytest.raises(hsv.NonFiniteError, match="the simulated states must be finite"), np.errstate(over="ignore"):
        explodes.simulate([1e300], np.zeros((3, 1)), range(3))


def test_projections_that_are_none_are_refused():
    left = np.array([[1.0], [0.0]])
    with pytest.raises(hsv.HsvError, match=r"left\^H right must be the identity, found one that is off by 1.0e\+00"):
        pendulum().project(left, 2 * left)
    assert pendulum().project(left.tolist(), left.tolist()).n_states == 1


@pytest.mark.parametrize("dt", [0, True])
def test_functions_of_another_width_are_refused(dt):
    """One state too few would be broadcast in silence."""

    def system(f, g=None):
        return hsv.NonlinearSystem.from_functions(f, g, steady_state=[0.0, 0.0], steady_input=[0.0], dt=dt)

    def simulate(sys):
        return sys.simulate(np.ones((3, 2)), np.zeros((3, 4, 1)), np.arange(4.0))

    with pytest.raises(hsv.ShapeError, match=r"right_hand_side must return .* \(3, 2\), got shape \(3, 1\)"):
        simulate(system(lambda x, u, t: -x[..., :1]))
    with pytest.raises(hsv.ShapeError, match=r"right_hand_side must return .* \(3, 2\), got list"):
        simulate(system(lambda x, u, t: [0.0, 0.0]))
    with pytest.raises(hsv.ShapeError, match=r"output must return .* \(3, p\) .* got shape \(3,\)"):
        simulate(system(lambda x, u, t: -0.1 * x, lambda x, u, t: x[..., 0]))
    one = np.array([[1.0], [0.0]])
    with pytest.raises(hsv.ShapeError, match="right_hand_side must return"):
        system(lambda x, u, t: -x[..., :1]).project(one, one).simulate([1.0], np.zeros((4, 1)), np.arange(4.0))
