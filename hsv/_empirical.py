r"""Gramians of nonlinear systems from simulated experiments."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from hsv._arguments import checked_count
from hsv._array import (
    Array,
    as_arrays,
    conjugate,
    conjugate_transpose,
    device,
    dtype_name,
    is_array,
    is_complex,
    namespace,
    real,
    round_to,
    to_host,
    widen,
)
from hsv._errors import DtypeError, HsvError, ShapeError
from hsv._nonlinear import NonlinearSystem
from hsv._warnings import level_outside

SCALES = {
    "single": (1.0,),
    "linear": (0.25, 0.5, 0.75, 1.0),
    "geometric": (0.125, 0.25, 0.5, 1.0),
    "logarithmic": (0.001, 0.01, 0.1, 1.0),
    "sparse": (0.01, 0.5, 0.99, 1.0),
}
CENTERINGS = ("none", "steady", "trajectory", "final", "mean", "rms", "midrange")
# Gregory's rule of order 4: what the first weights of a sum over a uniform grid are, from either end.
_GREGORY = (3 / 8, 7 / 6, 23 / 24)
_DRIFT = 1e-3  # of the responses: an error of some thousandths of the Gramian


def empirical_controllability_gramian(
    sys: NonlinearSystem,
    times: Any,
    *,
    scales: str | Sequence[float] | Array = "single",
    rotations: Array | None = None,
    signal: Array | None = None,
    centering: str = "steady",
    chunk: int = 64,
    executor: Executor | None = None,
) -> Array:
    r"""Return the empirical controllability Gramian, from responses of the states to perturbed inputs.

    .. math:: W_C = \frac{1}{r s} \sum_{l=1}^{r} \sum_{h=1}^{s} \sum_{j=1}^{m} \frac{1}{c_h^2} \int_0^T (x^{hlj}(t) - \bar x^{hlj}) (x^{hlj}(t) - \bar x^{hlj})^H\,dt,
              \qquad u^{hlj}(t) = \bar u + c_h\, T_l e_j\, \delta(t)

    For a linear system it is :func:`controllability_gramian` over the horizon.

    Parameters
    ----------
    sys : NonlinearSystem
    times : array
        Shape ``(T,)``, ascending, from 0: the sampling times. In discrete time all steps, ``0, 1, 2, ...`` or their multiples of ``dt``, and the integral is a sum over them.
    scales : str or array
        The sizes :math:`c_h`: ``"single"`` (1), ``"linear"`` (0.25, 0.5, 0.75, 1), ``"geometric"`` (0.125 .. 1), ``"logarithmic"`` (0.001 .. 1), ``"sparse"`` (0.01, 0.5, 0.99, 1), or numbers
        ``(s,)``, or ``(s, m)`` for sizes of each input.
    rotations : array, optional
        Shape ``(r, m, m)``, orthogonal or unitary: the :math:`T_l`. By default :math:`\{I, -I\}`, perturbations of both signs.
    signal : array, optional
        Shape ``(T,)``, real: takes the place of the impulse. The result is then an empirical covariance, not a Gramian.
    centering : str
        What :math:`\bar x` is: ``"steady"`` the steady state, ``"trajectory"`` the unperturbed trajectory, ``"final"`` the last sample, ``"mean"``, ``"rms"`` or ``"midrange"`` over time,
        ``"none"`` zero.
    chunk : int
        Experiments simulated in one call; the memory is that of ``chunk T (n + p)`` numbers.
    executor : concurrent.futures.Executor, optional
        Chunks go to its workers: threads, processes (the functions must then be picklable), joblib's or dask's.

    Returns
    -------
    array
        Shape ``(n, n)``, Hermitian, positive semidefinite; array library, device and precision of the steady state.

    Raises
    ------
    HsvError, ShapeError, DtypeError, NonFiniteError
        Times do not ascend from 0 or leave out steps of a discrete system, a scale is zero, a matrix is not orthogonal, a simulation diverged, or a name is not known; `sys` is not a NonlinearSystem.

    Warns
    -----
    UserWarning
        With ``centering="steady"``, where the system without perturbation leaves its steady state by more than a thousandth of the responses: then it is none.

    Notes
    -----
    ``r s m`` simulations. An impulse is a jump :math:`B(x) u` of the state where the system has an ``input_map``, and else a pulse of height ``1 / h`` over the first step of length ``h``, which is exact in discrete
    time and has an error of order ``h^2`` in continuous time. Integrals over uniform grids of at least 6 times are Gregory's rule, of order 4 (after a pulse the midpoint rule, of order 2); over other grids the trapezoidal rule.

    References
    ----------
    Lall, Marsden and Glavaški, "A subspace approach to balanced truncation for model reduction of nonlinear control systems", Int. J. Robust Nonlinear Control 12 (2002). Hahn and Edgar, "An improved
    method for nonlinear model reduction using balancing of empirical gramians", Comput. Chem. Eng. 26 (2002). Himpe, "emgr: the empirical Gramian framework", Algorithms 11 (2018).

    Examples
    --------
    >>> import hsv, numpy as np
    >>> lag = hsv.NonlinearSystem.from_functions(lambda x, u, t: 0.5 * x + u, steady_state=[0.0], steady_input=[0.0], dt=True)
    >>> float(hsv.empirical_controllability_gramian(lag, range(4))[0, 0])                  # 1 + 0.25 + 0.0625
    1.3125
    """
    plan = _Plan(sys, times, centering, chunk, executor)
    sizes, rotations = plan.sizes(scales, sys.n_inputs), plan.rotations(rotations, sys.n_inputs)
    total = 0.0
    weights = plan.weights(pulse=signal is None and sys.input_map is None)
    for scale, states, _ in plan.input_experiments(sizes, rotations, signal):
        scaled = states / scale[:, None, None]
        flat = plan.xp.reshape(scaled * plan.xp.sqrt(weights)[None, :, None], (-1, sys.n_states))
        total = total + plan.xp.matrix_transpose(flat) @ conjugate(flat)
    return plan.finish(total / (sizes.shape[0] * rotations.shape[0]))


def empirical_observability_gramian(
    sys: NonlinearSystem,
    times: Any,
    *,
    scales: str | Sequence[float] | Array = "single",
    rotations: Array | None = None,
    centering: str = "steady",
    chunk: int = 64,
    executor: Executor | None = None,
) -> Array:
    r"""Return the empirical observability Gramian, from responses of the outputs to perturbed initial states.

    .. math:: W_O = \frac{1}{r s} \sum_{l=1}^{r} \sum_{h=1}^{s} \frac{1}{d_h^2}\, T_l \left( \int_0^T \Psi^{hl}(t)\,dt \right) T_l^H, \qquad
              \Psi^{hl}_{ij}(t) = (y^{hli}(t) - \bar y^{hli})^H (y^{hlj}(t) - \bar y^{hlj}), \qquad x^{hlj}(0) = \bar x + d_h\, T_l e_j

    For a linear system it is :func:`observability_gramian` over the horizon. Inputs stay at the steady input.

    Parameters
    ----------
    sys, times, centering, chunk, executor
        As in :func:`empirical_controllability_gramian`.
    scales, rotations
        As there, of the initial states: ``(s,)`` or ``(s, n)``, and ``(r, n, n)``.

    Returns
    -------
    array
        Shape ``(n, n)``, Hermitian, positive semidefinite; array library, device and precision of the steady state.

    Raises
    ------
    HsvError, ShapeError, DtypeError, NonFiniteError
        As there.

    Notes
    -----
    ``r s n`` simulations. In discrete time the sum has all of the times, the first included.

    Examples
    --------
    >>> import hsv, numpy as np
    >>> lag = hsv.NonlinearSystem.from_functions(
    ...     lambda x, u, t: 0.5 * x + u, lambda x, u, t: 2 * x, steady_state=[0.0], steady_input=[0.0], dt=True)
    >>> float(hsv.empirical_observability_gramian(lag, range(3))[0, 0])                    # 4 (1 + 0.25 + 0.0625)
    5.25
    """
    plan = _Plan(sys, times, centering, chunk, executor)
    sizes, rotations = plan.sizes(scales, sys.n_states), plan.rotations(rotations, sys.n_states)
    xp, total = plan.xp, 0.0
    root = xp.sqrt(plan.weights())[:, None, None]
    for responses in plan.state_experiments(sizes, rotations):  # (T, p, n)
        flat = xp.reshape(root * responses, (-1, sys.n_states))
        total = total + conjugate_transpose(flat) @ flat
    return plan.finish(total / (sizes.shape[0] * rotations.shape[0]))


def empirical_cross_gramian(
    sys: NonlinearSystem,
    times: Any,
    *,
    input_scales: str | Sequence[float] | Array = "single",
    state_scales: str | Sequence[float] | Array = "single",
    input_rotations: Array | None = None,
    state_rotations: Array | None = None,
    non_symmetric: bool = False,
    centering: str = "steady",
    chunk: int = 64,
    executor: Executor | None = None,
) -> Array:
    r"""Return the empirical cross Gramian, from states after perturbed inputs and outputs after perturbed initial states.

    .. math:: W_X = \int_0^T \sum_{i=1}^{m} X_i(t)\, Y_i(t)\,dt

    with :math:`X_i (n)` the mean response of the states to an impulse of input :math:`i`, divided by its size, and :math:`Y_i (1 \times n)` that of output :math:`i` to unit perturbations of the initial state. For a linear
    system it is :func:`cross_gramian` over the horizon. With ``non_symmetric=True`` the sums of :math:`X_i` over all inputs and of :math:`Y_i` over all outputs are multiplied, which any numbers of both allow.

    Parameters
    ----------
    sys, times, centering, chunk, executor
        As in :func:`empirical_controllability_gramian`.
    input_scales, input_rotations, state_scales, state_rotations
        As the scales and rotations of :func:`empirical_controllability_gramian` and :func:`empirical_observability_gramian`.
    non_symmetric : bool
        The average cross Gramian, for systems that are not symmetric or not square.

    Returns
    -------
    array
        Shape ``(n, n)``, not Hermitian in general.

    Raises
    ------
    HsvError, ShapeError, DtypeError, NonFiniteError
        As there; the numbers of inputs and outputs differ, and ``non_symmetric`` is False.

    Notes
    -----
    The simulations of both other Gramians together. In continuous time without an ``input_map`` the impulse is a pulse over the first step, from whose middle time counts: an error of order ``h^2`` over
    uniform grids, ``h`` over others.

    References
    ----------
    Himpe and Ohlberger, "Cross-Gramian-based combined state and parameter reduction for large-scale control systems", Math. Probl. Eng. (2014); "A note on the cross Gramian for non-symmetric systems",
    Syst. Sci. Control Eng. 4 (2016).

    Examples
    --------
    >>> import hsv, numpy as np
    >>> lag = hsv.NonlinearSystem.from_functions(
    ...     lambda x, u, t: 0.5 * x + u, lambda x, u, t: 2 * x, steady_state=[0.0], steady_input=[0.0], dt=True)
    >>> float(hsv.empirical_cross_gramian(lag, range(3))[0, 0])                            # 2 (1 + 0.25)
    2.5
    """
    plan = _Plan(sys, times, centering, chunk, executor)
    inputs = plan.sizes(input_scales, sys.n_inputs), plan.rotations(input_rotations, sys.n_inputs)
    initial = plan.sizes(state_scales, sys.n_states), plan.rotations(state_rotations, sys.n_states)
    xp = plan.xp
    X: Any = 0.0  # (T, n, m)
    for scale, states, directions in plan.input_experiments(*inputs, None):
        X = X + xp.tensordot(states / scale[:, None, None], conjugate(directions), axes=((0,), (0,)))
    X = X / (inputs[0].shape[0] * inputs[1].shape[0])
    Y: Any = 0.0  # (T, p, n)
    for responses in plan.state_experiments(*initial):
        Y = Y + responses
    Y = Y / (initial[0].shape[0] * initial[1].shape[0])
    if non_symmetric:
        X, Y = xp.sum(X, axis=2, keepdims=True), xp.sum(Y, axis=1, keepdims=True)
    elif X.shape[2] != Y.shape[1]:
        raise ShapeError(
            f"a cross Gramian needs as many inputs as outputs, got {X.shape[2]} and {Y.shape[1]}; pass non_symmetric=True for the average one"
        )
    weights = plan.weights(pulse=sys.input_map is None)
    if sys.is_discrete:  # the state sees an input one step later than an initial state
        X, Y, weights = X[1:, :, :], Y[:-1, :, :], weights[1:]
    elif sys.input_map is None and plan.uniform:  # half a step later than the middle of the pulse
        X, Y, weights = X[1:, :, :], 0.5 * (Y[:-1, :, :] + Y[1:, :, :]), weights[1:]
    n, T = sys.n_states, X.shape[0]
    first = xp.reshape(xp.permute_dims(X, (1, 0, 2)) * weights[None, :, None], (n, T * X.shape[2]))
    return round_to(first @ xp.reshape(Y, (T * Y.shape[1], n)), sys.steady_state)


def _checked_times(sys: NonlinearSystem, times: Any) -> tuple[Array, np.ndarray]:
    """The times in the library and precision of the steady state, and on the host."""
    advice = (
        "for a horizon T with N steps pass linspace(0, T, N + 1)"
        if not sys.is_discrete
        else "for N steps pass range(N)"
    )
    try:
        grid = times if is_array(times) else list(times)
    except TypeError as error:
        raise DtypeError(f"times must be a sequence of numbers, got {times!r}; {advice}") from error
    checked = as_arrays(("steady_state", "times"), (real(sys.steady_state), grid))[1]
    if is_complex(checked):
        raise DtypeError(f"times must be real, got complex numbers; {advice}")
    clock = to_host(checked).astype(np.float64)
    if clock.ndim != 1 or len(clock) < 2 or not np.all(np.diff(clock) > 0) or not np.all(np.isfinite(clock)):
        raise HsvError(f"times must be at least 2 finite numbers that ascend; {advice}")
    if clock[0] != 0:
        raise HsvError(f"times must begin at 0, when the perturbation comes, got {clock[0]:g}; {advice}")
    if sys.is_discrete:
        rounding = 16 * float(np.finfo(dtype_name(checked)).eps) * clock[-1]
        steps = np.arange(len(clock))
        if not any(np.all(np.abs(clock - steps * step) <= rounding) for step in (1.0, float(sys.dt))):
            unit = "0, 1, 2, ..." + ("" if sys.dt in (True, 1) else f" or multiples of dt = {sys.dt:g}")
            raise HsvError(
                f"times of a discrete system must be all of its steps, {unit}, got {clock[:4].tolist()}; {advice}"
            )
    return checked, clock


class _Plan:
    """The experiments of one call, in double precision: times, weights, and what is subtracted from each response."""

    def __init__(self, sys: NonlinearSystem, times: Any, centering: str, chunk: int, executor: Executor | None) -> None:
        if not isinstance(sys, NonlinearSystem):
            raise DtypeError(
                f"sys must be a NonlinearSystem, got {type(sys).__name__}; linear systems have hsv.controllability_gramian, hsv.observability_gramian and hsv.cross_gramian with a horizon"
            )
        if centering not in CENTERINGS:
            raise HsvError(f"centering must be one of {', '.join(map(repr, CENTERINGS))}, got {centering!r}")
        if executor is not None and not callable(getattr(executor, "map", None)):
            raise DtypeError(
                f"executor must have a method map, as those of concurrent.futures have, or be None, got {executor!r}"
            )
        self.sys, self.centering, self.executor = sys, centering, executor
        self.chunk = checked_count("chunk", chunk)
        self.like = sys.steady_state
        self.xp = namespace(self.like)
        self.times, self.clock = _checked_times(sys, times)
        self.steady: tuple[Array, Array] | None = None
        self.drifts = False

    def weights(self, *, pulse: bool = False) -> Array:
        """Of the samples in a sum over time, ``(T,)``."""
        T = len(self.clock)
        gaps, uniform = np.diff(self.clock), self.uniform
        if self.sys.is_discrete:
            weights = np.ones(T)
        elif pulse and uniform:  # samples at the middle of intervals that begin with the pulse
            weights = np.concatenate([[0.0], gaps])
        elif uniform and 2 * len(_GREGORY) <= T:
            weights = np.full(T, gaps.mean())
            weights[:3] *= _GREGORY
            weights[-3:] *= _GREGORY[::-1]
        else:
            weights = 0.5 * (np.concatenate([[0.0], gaps]) + np.concatenate([gaps, [0.0]]))
        return self._array(weights)

    @property
    def uniform(self) -> bool:
        """Whether the times are one step apart, to rounding."""
        gaps = np.diff(self.clock)
        rounding = 16 * float(self.xp.finfo(self.times.dtype).eps) * np.abs(self.clock).max()
        return bool(np.all(np.abs(gaps - gaps.mean()) <= rounding))

    def sizes(self, scales: Any, count: int) -> Array:
        """``(s, count)``."""
        if isinstance(scales, str):
            if scales not in SCALES:
                raise HsvError(f"scales must be numbers or one of {', '.join(map(repr, SCALES))}, got {scales!r}")
            scales = SCALES[scales]
        host = to_host(scales) if hasattr(scales, "ndim") else np.asarray(scales)
        if host.dtype.kind not in "iuf" or host.ndim not in (1, 2) or (host.ndim == 2 and host.shape[1] != count):
            raise ShapeError(
                f"scales must be real numbers of shape (s,) or (s, {count}), got {host.dtype} of shape {host.shape}"
            )
        if host.size == 0 or not np.all(np.isfinite(host)) or not np.all(host > 0):
            raise HsvError("scales must be positive and finite; signs come from the rotations")
        host = host.astype(np.float64)
        return self._array(np.broadcast_to(host[:, None], (len(host), count)) if host.ndim == 1 else host)

    def rotations(self, rotations: Any, count: int) -> Array:
        """``(r, count, count)``."""
        if rotations is None:
            return self._array(np.stack([np.eye(count), -np.eye(count)]))
        host = to_host(rotations) if hasattr(rotations, "ndim") else np.asarray(rotations)
        if host.ndim != 3 or host.shape[1:] != (count, count) or host.shape[0] == 0:
            raise ShapeError(f"rotations must have shape (r, {count}, {count}), got {host.shape}")
        error = np.abs(host @ host.conj().swapaxes(-1, -2) - np.eye(count)).max()
        if not error < 1e-5:
            raise HsvError(f"rotations must be orthogonal or unitary, found one that is off by {error:.1e}")
        if np.iscomplexobj(host) and not np.iscomplexobj(to_host(self.like)):
            raise DtypeError("rotations of a real system must be real")
        return self._array(host)

    def input_experiments(self, sizes: Array, rotations: Array, signal: Any) -> Iterator[tuple[Array, Array, Array]]:
        """Sizes (k,), centred states (k, T, n) and directions (k, m) of chunks of experiments with perturbed inputs."""
        xp, sys, m = self.xp, self.sys, self.sys.n_inputs
        course = self._course(signal)
        directions = xp.matrix_transpose(rotations)  # rows: T_l e_j
        every = list(itertools.product(range(sizes.shape[0]), range(rotations.shape[0]), range(m)))
        parts = [every[first : first + self.chunk] for first in range(0, len(every), self.chunk)]
        jump = signal is None and sys.input_map is not None and not sys.is_discrete
        start, base = widen(self.like), widen(sys.steady_input)

        def perturbations(part: list[tuple[int, int, int]]) -> tuple[Array, Array]:
            return xp.stack([sizes[h, j] for h, _, j in part]), xp.stack(
                [directions[turn, j, :] for _, turn, j in part]
            )

        def experiment(part: list[tuple[int, int, int]]) -> tuple[Array, Array]:
            size, where = perturbations(part)
            change = size[:, None] * where
            first = xp.broadcast_to(start, (len(part), sys.n_states))
            inputs = xp.broadcast_to(base, (len(part), len(self.clock), m))
            if not jump:
                return first, inputs + course[None, :, None] * change[:, None, :]
            assert sys.input_map is not None
            return first + (widen(sys.input_map(round_to(first, self.like))) @ change[:, :, None])[:, :, 0], inputs

        responses = self._run(experiment(part) for part in parts)
        for part, (states, _) in zip(parts, responses, strict=True):
            size, where = perturbations(part)
            yield size, self._centred(states, 0), where

    def state_experiments(self, sizes: Array, rotations: Array) -> Iterator[Array]:
        """Centred outputs (T, p, n) for unit perturbations of each initial state, for each size and rotation."""
        xp, sys, n = self.xp, self.sys, self.sys.n_states
        start, base = widen(self.like), widen(sys.steady_input)
        for h, turn in itertools.product(range(sizes.shape[0]), range(rotations.shape[0])):
            where = xp.matrix_transpose(rotations[turn, :, :])  # rows: T_l e_j
            first = start + sizes[h, :][:, None] * where
            parts = (first[a : a + self.chunk, :] for a in range(0, n, self.chunk))
            experiments = ((x, xp.broadcast_to(base, (x.shape[0], len(self.clock), sys.n_inputs))) for x in parts)
            found = xp.concat([outputs for _, outputs in self._run(experiments)], axis=0)
            scaled = self._centred(found, 1) / sizes[h, :][:, None, None]
            yield xp.tensordot(scaled, conjugate(where), axes=((0,), (0,)))

    def finish(self, W: Array) -> Array:
        return round_to(0.5 * (W + conjugate_transpose(W)), self.like)

    def _course(self, signal: Any) -> Array:
        T = len(self.clock)
        if signal is None:
            impulse = np.zeros(T)
            impulse[0] = 1.0 if self.sys.is_discrete else 1.0 / (self.clock[1] - self.clock[0])
            return self._array(impulse)
        host = to_host(signal) if is_array(signal) else np.asarray(signal)
        if host.dtype.kind not in "iuf":
            raise DtypeError(f"signal must hold real numbers, got {type(signal).__name__} with dtype {host.dtype}")
        if host.shape != (T,) or not np.all(np.isfinite(host)):
            raise ShapeError(f"signal must be {T} finite numbers, one for each of the times, got shape {host.shape}")
        return self._array(host.astype(np.float64))

    def _run(self, experiments: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        """Simulate chunks, in the precision of the steady state, one after the other or by workers."""
        calls = (tuple(round_to(x, self.like) for x in pair) for pair in experiments)
        apply: Callable[..., Any] = map if self.executor is None else self.executor.map
        for states, outputs in apply(functools.partial(_simulate, self.sys, self.times), calls):
            yield widen(states), widen(outputs)

    def _centred(self, responses: Array, kind: int) -> Array:
        """Responses (k, T, q) less their centre; `kind` 0: states, 1: outputs."""
        xp, centering = self.xp, self.centering
        if centering == "none":
            return responses
        if centering in ("steady", "trajectory"):
            nominal = self._nominal()[kind]
            centred = responses - (nominal if centering == "trajectory" else nominal[:1, :])
            if centering == "steady":
                self._say_if_it_drifts(nominal, centred)
            return centred
        if centering == "final":
            return responses - responses[:, -1:, :]
        if centering == "midrange":
            return responses - 0.5 * (
                xp.max(responses, axis=1, keepdims=True) + xp.min(responses, axis=1, keepdims=True)
            )
        share = (self.weights() / xp.sum(self.weights()))[None, :, None]
        if centering == "mean":
            return responses - xp.sum(share * responses, axis=1, keepdims=True)
        return responses - xp.sqrt(xp.sum(share * xp.abs(responses) ** 2, axis=1, keepdims=True))

    def _say_if_it_drifts(self, nominal: Array, centred: Array) -> None:
        """Warn, once, where the unperturbed system leaves its steady state by more than a small part of the responses."""
        if self.drifts:
            return
        drift, size = (float(self.xp.max(self.xp.abs(x))) for x in (nominal - nominal[:1, :], centred))
        if drift > _DRIFT * size:
            self.drifts = True
            warnings.warn(
                f"steady_state is none with steady_input: without perturbation the system leaves it by {drift:.2g}, and responses are up to {size:.2g}; pass a better one, or "
                "centering='trajectory'",
                UserWarning,
                stacklevel=level_outside(),
            )

    def _nominal(self) -> tuple[Array, Array]:
        """States (T, n) and outputs (T, p) without perturbation."""
        if self.steady is None:
            xp, sys = self.xp, self.sys
            inputs = xp.broadcast_to(sys.steady_input, (len(self.clock), sys.n_inputs))
            states, outputs = sys.simulate(self.like, inputs, self.times)
            self.steady = widen(states), widen(outputs)
        return self.steady

    def _array(self, host: np.ndarray) -> Array:
        name = "complex128" if np.iscomplexobj(host) else "float64"
        return self.xp.asarray(np.array(host), dtype=getattr(self.xp, name), device=device(self.like))


def _simulate(sys: NonlinearSystem, times: Array, experiment: tuple[Array, Array]) -> tuple[Array, Array]:
    return sys.simulate(*experiment, times)
