"""Nonlinear systems, as right-hand sides or as simulations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsv._arguments import checked_count
from hsv._array import (
    Array,
    as_arrays,
    conjugate_transpose,
    dtype_name,
    is_array,
    namespace,
    real,
    require_finite,
    to_host,
    zeros,
)
from hsv._errors import HsvError, ShapeError

RightHandSide = Callable[[Array, Array, float], Array]
"""``f(states (..., n), inputs (..., m), t)``: the derivative, or the next state."""

Simulation = Callable[[Array, Array, Array], tuple[Array, Array]]
"""``simulate(initial_states (k, n), inputs (k, T, m), times (T,))``: states ``(k, T, n)`` and outputs ``(k, T, p)``."""


@dataclass(frozen=True)
class NonlinearSystem:
    r"""A nonlinear system about a steady state.

    .. math:: \dot x = f(x, u, t),\quad y = g(x, u, t) \qquad\text{or}\qquad x_{k+1} = f(x_k, u_k, t_k),\quad y_k = g(x_k, u_k, t_k)

    Make one by :meth:`from_functions`, and the methods here integrate it, or by :meth:`from_simulation` where a program of yours does.

    Attributes
    ----------
    simulation : callable
        ``simulation(initial_states, inputs, times) -> states, outputs`` with shapes ``(k, n)``, ``(k, T, m)``, ``(T,)``, ``(k, T, n)``, ``(k, T, p)``. ``states[:, 0]`` are the initial ones;
        ``inputs[:, i]`` holds from ``times[i]`` to ``times[i + 1]``.
    steady_state, steady_input : array
        Shapes ``(n,)`` and ``(m,)``: what perturbations are added to. They say how many states and inputs there are, and of which array library and precision everything is.
    dt : float or bool
        As for :class:`StateSpace`: 0 in continuous time.
    right_hand_side, output : callable or None
        :math:`f` and :math:`g`, where they are known.
    input_map : callable or None
        ``input_map(states (k, n)) -> (k, n, m)``: :math:`B(x)` of :math:`\dot x = a(x) + B(x) u`. An impulse of the inputs is then a jump of the state.

    Examples
    --------
    >>> import hsv, numpy as np
    >>> pendulum = hsv.NonlinearSystem.from_functions(
    ...     lambda x, u, t: np.stack([x[..., 1], -np.sin(x[..., 0]) - x[..., 1] + u[..., 0]], axis=-1),
    ...     lambda x, u, t: x[..., :1],
    ...     steady_state=[0.0, 0.0], steady_input=[0.0], dt=0)
    >>> states, outputs = pendulum.simulate([1.0, 0.0], np.zeros((101, 1)), np.linspace(0, 10, 101))
    >>> states.shape, bool(abs(outputs[-1, 0]) < 0.01)
    ((101, 2), True)
    """

    simulation: Simulation
    steady_state: Array
    steady_input: Array
    dt: float | bool
    right_hand_side: RightHandSide | None = None
    output: RightHandSide | None = None
    input_map: Callable[[Array], Array] | None = None

    @classmethod
    def from_functions(
        cls,
        right_hand_side: RightHandSide,
        output: RightHandSide | None = None,
        *,
        steady_state: Any,
        steady_input: Any,
        dt: float | bool,
        input_map: Callable[[Array], Array] | None = None,
        steps_per_sample: int = 1,
    ) -> NonlinearSystem:
        """Make a system of its right-hand side.

        Parameters
        ----------
        right_hand_side : callable
            ``f(x, u, t)`` with ``x (..., n)`` and ``u (..., m)``, for any leading axes: the derivative (continuous time) or the next state (discrete time).
        output : callable, optional
            ``g(x, u, t) -> (..., p)``; the state itself if left out.
        steady_state, steady_input, dt, input_map
            As the attributes.
        steps_per_sample : int
            Runge-Kutta steps from one sampling time to the next, in continuous time.

        Notes
        -----
        Continuous time: the classical method of Runge and Kutta of order 4 with fixed steps, inputs held over each sample.
        """
        steps_per_sample = checked_count("steps_per_sample", steps_per_sample)
        observe = _state_as_output if output is None else output
        simulation = _FixedSteps(right_hand_side, observe, bool(_checked_dt(dt)), steps_per_sample)
        return cls._checked(simulation, steady_state, steady_input, dt, right_hand_side, observe, input_map)

    @classmethod
    def from_simulation(
        cls,
        simulate: Callable[[Array, Array, Array], tuple[Array, Array]],
        *,
        steady_state: Any,
        steady_input: Any,
        dt: float | bool,
        batched: bool = True,
        input_map: Callable[[Array], Array] | None = None,
    ) -> NonlinearSystem:
        """Make a system of a simulation.

        Parameters
        ----------
        simulate : callable
            ``simulate(initial_states, inputs, times) -> states, outputs`` with the shapes of the attribute ``simulation``; with ``batched=False`` those of one experiment,
            ``(n,)``, ``(T, m)``, ``(T,)`` to ``(T, n)`` and ``(T, p)``.
        steady_state, steady_input, dt, input_map
            As the attributes.
        batched : bool
            Whether `simulate` takes many experiments at once.
        """
        simulation = simulate if batched else _OneByOne(simulate)
        return cls._checked(simulation, steady_state, steady_input, dt, None, None, input_map)

    @classmethod
    def _checked(
        cls,
        simulation: Simulation,
        steady_state: Any,
        steady_input: Any,
        dt: float | bool,
        right_hand_side: RightHandSide | None,
        output: RightHandSide | None,
        input_map: Callable[[Array], Array] | None,
    ) -> NonlinearSystem:
        state, control = as_arrays(("steady_state", "steady_input"), (steady_state, steady_input))
        for name, array in (("steady_state", state), ("steady_input", control)):
            if array.ndim != 1 or array.shape[0] == 0:
                raise ShapeError(f"{name} must have one axis with at least one entry, got {tuple(array.shape)}")
            require_finite(name, array)
        return cls(simulation, state, control, _checked_dt(dt), right_hand_side, output, input_map)

    @property
    def n_states(self) -> int:
        """Number of states ``n``."""
        return int(self.steady_state.shape[0])

    @property
    def n_inputs(self) -> int:
        """Number of inputs ``m``."""
        return int(self.steady_input.shape[0])

    @property
    def is_discrete(self) -> bool:
        """Whether the system is in discrete time."""
        return self.dt is True or self.dt > 0

    def simulate(self, initial_states: Any, inputs: Any, times: Any) -> tuple[Array, Array]:
        """Return states and outputs at `times`.

        Parameters
        ----------
        initial_states, inputs, times : array
            Shapes ``(..., n)``, ``(..., T, m)`` and ``(T,)`` with at most one leading axis, of experiments.

        Returns
        -------
        states, outputs : array
            Shapes ``(..., T, n)`` and ``(..., T, p)``.

        Raises
        ------
        ShapeError
            What goes in, or what the simulation gave, has another shape.
        NonFiniteError
            The simulation gave NaN or infinity: it diverged.
        """
        like = self.steady_state
        _, start, inputs = as_arrays(("steady_state", "initial_states", "inputs"), (like, initial_states, inputs))
        times = as_arrays(("steady_state", "times"), (real(like), times))[1]
        single = start.ndim == 1
        if single:
            start, inputs = start[None, :], inputs[None, ...]
        k, n, m = int(start.shape[0]), self.n_states, self.n_inputs
        if tuple(start.shape) != (k, n) or times.ndim != 1 or tuple(inputs.shape) != (k, times.shape[0], m):
            raise ShapeError(
                f"initial_states, inputs and times must have shapes (k, {n}), (k, T, {m}) and (T,), got {tuple(start.shape)}, "
                f"{tuple(inputs.shape)} and {tuple(times.shape)}"
            )
        states, outputs = self.simulation(start, inputs, times)
        if (
            tuple(states.shape) != (k, times.shape[0], n)
            or outputs.ndim != 3
            or tuple(outputs.shape[:2]) != (k, times.shape[0])
        ):
            raise ShapeError(
                f"the simulation must return states ({k}, {times.shape[0]}, {n}) and outputs ({k}, {times.shape[0]}, p), got "
                f"{tuple(states.shape)} and {tuple(outputs.shape)}"
            )
        require_finite("the simulated states", states)
        require_finite("the simulated outputs", outputs)
        return (states[0, ...], outputs[0, ...]) if single else (states, outputs)

    def project(self, left: Array, right: Array) -> NonlinearSystem:
        r"""Return the system of :math:`x = \bar x + T_r z`, with the right-hand side projected along :math:`T_l`.

        .. math:: \dot z = T_l^H f(\bar x + T_r z, u, t), \quad y = g(\bar x + T_r z, u, t) \qquad\text{or}\qquad z_{k+1} = T_l^H (f(\bar x + T_r z_k, u_k, t_k) - \bar x)

        Parameters
        ----------
        left, right : array
            Shape ``(n, r)`` with ``left^H right = I``, as from :func:`balancing_projection`.

        Raises
        ------
        HsvError
            The system is known by a simulation alone.
            ``left^H right`` is not the identity, by more than the root of the rounding unit.
        ShapeError
        """
        f, g = self.right_hand_side, self.output
        if f is None or g is None:
            raise HsvError(
                "only a system of a right-hand side can be projected; make it by NonlinearSystem.from_functions"
            )
        n = self.n_states
        _, left, right = as_arrays(("steady_state", "left", "right"), (self.steady_state, left, right))
        if tuple(left.shape) != tuple(right.shape) or left.ndim != 2 or left.shape[0] != n:
            raise ShapeError(
                f"left and right must both have shape ({n}, r), got {tuple(left.shape)} and {tuple(right.shape)}"
            )
        gram = to_host(conjugate_transpose(left) @ right)
        off = float(np.abs(gram - np.eye(gram.shape[0])).max(initial=0.0))
        if not off <= float(np.sqrt(np.finfo(dtype_name(left)).eps)):
            raise HsvError(
                f"left^H right must be the identity, found one that is off by {off:.1e}; multiply left by the inverse of right^H left, or take both from hsv.balancing_projection"
            )
        xp, origin, input_map = namespace(left), self.steady_state, self.input_map
        down, up = xp.matrix_transpose(conjugate_transpose(left)), xp.matrix_transpose(right)  # (n, r), (r, n)
        return NonlinearSystem.from_functions(
            _ProjectedRightHandSide(f, origin, up, down, relative=self.is_discrete),
            _AtFullState(g, origin, up),
            steady_state=zeros((left.shape[1],), origin),
            steady_input=self.steady_input,
            dt=self.dt,
            input_map=None
            if input_map is None
            else _ProjectedInputMap(input_map, origin, up, conjugate_transpose(left)),
        )


# Classes and no closures, so that systems can be sent to other processes.
@dataclass(frozen=True)
class _FixedSteps:
    f: RightHandSide
    g: RightHandSide
    discrete: bool
    steps: int

    def __call__(self, initial_states: Array, inputs: Array, times: Array) -> tuple[Array, Array]:
        xp = namespace(initial_states)
        clock = [float(t) for t in to_host(times)]
        x, states = initial_states, [initial_states]
        for i in range(len(clock) - 1):
            u = inputs[:, i, :]
            x = (
                _next(self.f, x, u, clock[i])
                if self.discrete
                else _runge_kutta(self.f, x, u, clock[i], clock[i + 1], self.steps)
            )
            states.append(x)
        outputs = [self.g(x, inputs[:, i, :], clock[i]) for i, x in enumerate(states)]
        for y in outputs:
            if not is_array(y) or y.ndim != 2 or y.shape[0] != initial_states.shape[0]:
                raise ShapeError(
                    f"output must return an array of shape ({initial_states.shape[0]}, p) for states {tuple(initial_states.shape)}, got {_shape_of(y)}"
                )
        return xp.stack(states, axis=1), xp.stack(outputs, axis=1)


@dataclass(frozen=True)
class _OneByOne:
    simulate: Simulation

    def __call__(self, initial_states: Array, inputs: Array, times: Array) -> tuple[Array, Array]:
        xp = namespace(initial_states)
        results = [self.simulate(initial_states[k, :], inputs[k, :, :], times) for k in range(initial_states.shape[0])]
        states, outputs = zip(*results, strict=True)
        return xp.stack(states, axis=0), xp.stack(outputs, axis=0)


@dataclass(frozen=True)
class _ProjectedRightHandSide:
    f: RightHandSide
    origin: Array
    up: Array
    down: Array
    relative: bool

    def __call__(self, z: Array, u: Array, t: float) -> Array:
        value = _next(self.f, self.origin + z @ self.up, u, t)
        return (value - self.origin if self.relative else value) @ self.down


@dataclass(frozen=True)
class _AtFullState:
    g: RightHandSide
    origin: Array
    up: Array

    def __call__(self, z: Array, u: Array, t: float) -> Array:
        return self.g(self.origin + z @ self.up, u, t)


@dataclass(frozen=True)
class _ProjectedInputMap:
    input_map: Callable[[Array], Array]
    origin: Array
    up: Array
    left: Array

    def __call__(self, z: Array) -> Array:
        return self.left @ self.input_map(self.origin + z @ self.up)


def _checked_dt(dt: float | bool) -> float | bool:
    if dt is True or (not isinstance(dt, bool) and isinstance(dt, (int, float)) and 0 <= dt < math.inf):
        return dt
    raise HsvError(f"dt must be 0 (continuous), True or a positive number of seconds, got {dt!r}")


def _state_as_output(x: Array, u: Array, t: float) -> Array:
    return x


def _next(f: RightHandSide, x: Array, u: Array, t: float) -> Array:
    """``f(x, u, t)``, with the shape of ``x``: another one might be broadcast in silence."""
    value = f(x, u, t)
    if not is_array(value) or tuple(value.shape) != tuple(x.shape):
        raise ShapeError(
            f"right_hand_side must return an array of the shape of the states, {tuple(x.shape)}, got {_shape_of(value)}"
        )
    return value


def _shape_of(value: object) -> str:
    return f"shape {tuple(value.shape)}" if is_array(value) else f"{type(value).__name__}"  # type: ignore[attr-defined]


def _runge_kutta(f: RightHandSide, x: Array, u: Array, start: float, end: float, steps: int) -> Array:
    h = (end - start) / steps
    for j in range(steps):
        t = start + j * h
        a = _next(f, x, u, t)
        b = f(x + 0.5 * h * a, u, t + 0.5 * h)
        c = f(x + 0.5 * h * b, u, t + 0.5 * h)
        d = f(x + h * c, u, t + h)
        x = x + (h / 6) * (a + 2 * b + 2 * c + d)
    return x
