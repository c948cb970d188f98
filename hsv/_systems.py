"""Linear time-invariant systems: checked once, then frozen."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import numpy as np

from hsv import _kernels
from hsv._arguments import as_number
from hsv._array import (
    Array,
    as_arrays,
    broadcast_batch,
    dtype_name,
    eye,
    imag,
    is_array,
    is_complex,
    namespace,
    on_host,
    real,
    require_finite,
    require_square,
    round_to,
    to_complex,
    to_host,
    widen,
    zeros,
)
from hsv._errors import DtypeError, HsvError, IllConditionedError, ShapeError
from hsv._kernels import _threads
from hsv._large_systems import LargeSystem
from hsv._text import system_html

_SMALL = (
    64  # states up to which matrices are shared among threads: libraries of linear algebra have threads for larger ones
)
_TOGETHER = 8  # matrices, the lanes of a vector


class LinearSystem:
    """What dense and diagonal systems share: the maps ``B``, ``C``, ``D``, the time base and the shapes.

    Not made directly: use :class:`StateSpace` or :class:`DiagonalStateSpace`.
    """

    __slots__ = ("B", "C", "D", "_frozen", "dt")

    B: Array
    C: Array
    D: Array
    dt: float | bool

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"a {type(self).__name__} is frozen: make a new one instead of setting {name}")
        object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._all_slots()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    @classmethod
    def _all_slots(cls) -> list[str]:
        return [name for base in cls.__mro__ for name in getattr(base, "__slots__", ())]

    @property
    def n_states(self) -> int:
        """Number of states ``n``."""
        return int(self.B.shape[-2])

    @property
    def n_inputs(self) -> int:
        """Number of inputs ``m``."""
        return int(self.B.shape[-1])

    @property
    def n_outputs(self) -> int:
        """Number of outputs ``p``."""
        return int(self.C.shape[-2])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes: one independent system for each index; ``()`` for one system."""
        return tuple(self.B.shape[:-2])

    @property
    def is_discrete(self) -> bool:
        """Whether the system is in discrete time (``dt != 0``)."""
        return self.dt is True or self.dt > 0

    @property
    def is_complex(self) -> bool:
        """Whether the matrices are stored in a complex dtype."""
        return is_complex(self.B)

    @property
    def step(self) -> float:
        """Length of one step in seconds; 1 where ``dt=True`` (steps are then the unit of time), 0 in continuous time."""
        return float(self.dt)

    def __neg__(self) -> Self:
        return self._with_outputs(-self.C, -self.D)

    def __sub__(self, other: LinearSystem) -> LinearSystem:
        return self + (-other)

    def __add__(self, other: LinearSystem) -> LinearSystem:
        """Parallel connection: the outputs of both systems for the same input, added."""
        if not isinstance(other, LinearSystem):
            return NotImplemented
        check_parallel(self, other)
        return _parallel(self, other)

    def _with_outputs(self, C: Array, D: Array) -> Self:
        raise NotImplementedError

    def poles(self) -> Array:
        """Return the eigenvalues of ``A``, shape ``(..., n)``."""
        raise NotImplementedError

    def to_dense(self) -> StateSpace:
        """Return the system with a dense state matrix."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return system_html(self)

    def _describe(self, kind: str) -> str:
        batch = f"batch {self.batch_shape}, " if self.batch_shape else ""
        if not self.is_discrete:
            time = "continuous"
        else:
            time = "discrete" if self.dt is True else f"discrete, dt={self.dt} s"
        return f"<{kind}: {batch}{self.n_states} states, {self.n_inputs} inputs, {self.n_outputs} outputs, {time}, {dtype_name(self.B)}>"


class StateSpace(LinearSystem):
    r"""A dense linear system, or a batch of them.

    .. math:: x_{k+1} = A x_k + B u_k,\quad y_k = C x_k + D u_k \qquad\text{or}\qquad \dot x = A x + B u,\quad y = C x + D u

    Parameters
    ----------
    A, B, C : array
        Shapes ``(..., n, n)``, ``(..., n, m)``, ``(..., p, n)``. Leading axes are a batch of independent systems and broadcast
        against each other. NumPy, CuPy, torch or any other array that follows the array API standard; lists become NumPy arrays.
    D : array, optional
        Shape ``(..., p, m)``; zero if left out.
    dt : float or bool
        ``0``: continuous time. ``True``: discrete time, a step is the unit of time. A positive number: discrete time, seconds a step.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[0.5]], [[1.0]], [[2.0]], dt=True)
    >>> sys
    <StateSpace: 1 states, 1 inputs, 1 outputs, discrete, float64>
    >>> sys.impulse_response(3)[:, 0, 0]
    array([0., 2., 1.])
    """

    __slots__ = ("A",)

    A: Array

    def __init__(self, A: Any, B: Any, C: Any, D: Any = None, *, dt: float | bool) -> None:
        A, B, C, D = as_arrays("ABCD", (A, B, C, D))
        require_square("A", A)
        B, C, D, batch = _check_maps(A.shape[-1], tuple(A.shape[:-2]), B, C, D)
        for name, array in zip("ABCD", (A, B, C, D), strict=True):
            require_finite(name, array)
        self.A, self.B, self.C, self.D = broadcast_batch(A, batch, 2), B, C, D
        self.dt = _check_dt(dt)
        self._frozen = True

    def __repr__(self) -> str:
        return self._describe("StateSpace")

    def _with_outputs(self, C: Array, D: Array) -> StateSpace:
        return StateSpace(self.A, self.B, C, D, dt=self.dt)

    def poles(self) -> Array:
        """Return the eigenvalues of ``A``, shape ``(..., n)``, complex; computed on the host."""
        return on_host(
            lambda a: np.linalg.eigvals(a).astype(np.result_type(a, np.complex64)),
            self.A,
            reason="the general eigenvalue problem",
        )

    def to_dense(self) -> StateSpace:
        """Return the system itself."""
        return self

    def frequency_response(self, w: Any) -> Array:
        r"""Return :math:`G(e^{i w \Delta t})` or :math:`G(i w)`, with :math:`G(z) = C (z I - A)^{-1} B + D`.

        Parameters
        ----------
        w : array
            Shape ``(k,)``, or ``(..., k)`` with the batch axes of the system: frequencies in rad/s, or rad/sample where ``dt=True``.

        Returns
        -------
        array
            Shape ``(..., k, p, m)``, complex. One linear solve a frequency: ``O(k n^3)``.

        Raises
        ------
        IllConditionedError
            A pole lies on a frequency, where the response is infinite.
        """
        xp = namespace(self.A)
        w, z = _contour(self, w)
        A, B, C, D = (xp.astype(widen(x), xp.complex128)[..., None, :, :] for x in (self.A, self.B, self.C, self.D))
        B = broadcast_batch(B, tuple(np.broadcast_shapes(z.shape, B.shape[:-2])), 2)
        resolvent = z[..., None, None] * eye(self.n_states, A) - A  # (..., k, n, n), to be inverted
        try:
            states = xp.linalg.solve(resolvent, B)
        except (np.linalg.LinAlgError, RuntimeError) as error:
            if "LinAlgError" not in type(error).__name__:  # torch's is a RuntimeError
                raise
            raise infinite_response(self, w, z, _most_singular(resolvent)[0]) from error
        if not bool(xp.all(xp.isfinite(states))):  # CuPy raises nothing
            where, distance = _most_singular(resolvent)
            if distance <= self.n_states * np.finfo(np.float64).eps:
                raise infinite_response(self, w, z, where)
        return round_to(C @ states + D, self.A)

    def impulse_response(self, n_steps: int) -> Array:
        """Return ``D, C B, C A B, C A^2 B, ...``, shape ``(..., n_steps, p, m)``; by doubling, ``O(n^3 log n_steps)`` + the products."""
        _check_steps(self, n_steps)
        xp = namespace(self.A)
        A, B, C = (widen(x) for x in (self.A, self.B, self.C))
        states, power = B[..., None, :, :], A  # states: A^k B for k = 0, 1, ...
        while states.shape[-3] < n_steps - 1:
            states = xp.concat([states, power[..., None, :, :] @ states], axis=-3)
            power = power @ power
        tail = C[..., None, :, :] @ states[..., : max(n_steps - 1, 0), :, :]
        return round_to(xp.concat([widen(self.D)[..., None, :, :], tail], axis=-3), self.A)


class DiagonalStateSpace(LinearSystem):
    r"""A linear system with a diagonal state matrix, or a batch of them: the core of LRU, S5 and S4D layers.

    .. math:: x_{k+1} = \operatorname{diag}(\lambda) x_k + B u_k,\qquad y_k = C x_k + D u_k

    Everything that has a closed form for a diagonal matrix uses it: Gramians, their factors, simulation. The reduction of such a
    system is a dense :class:`StateSpace`; :func:`hsv.diagonalize` takes it back.

    Parameters
    ----------
    poles : array
        Shape ``(..., n)``, real or complex.
    B, C, D, dt
        As for :class:`StateSpace`.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5, -0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    >>> sys.impulse_response(4)[:, 0, 0]
    array([0. , 2. , 0. , 0.5])
    """

    __slots__ = ("_conjugate_pairs", "_poles", "log_poles")

    log_poles: Array | None
    _poles: Array
    _conjugate_pairs: bool

    def __init__(self, poles: Any, B: Any, C: Any, D: Any = None, *, dt: float | bool) -> None:
        poles, B, C, D = as_arrays(("poles", "B", "C", "D"), (poles, B, C, D))
        self._set(poles, None, B, C, D, _check_dt(dt))

    @classmethod
    def from_log_poles(
        cls, log_poles: Any, B: Any, C: Any, D: Any = None, *, dt: float | bool = True
    ) -> DiagonalStateSpace:
        """Make a discrete system whose poles are ``exp(log_poles)``.

        Where a model stores the logarithm of its poles, this keeps every digit of ``1 - |pole|`` near the unit circle, on which
        the Gramians depend; ``exp`` would round them away.

        Examples
        --------
        >>> import hsv
        >>> sys = hsv.DiagonalStateSpace.from_log_poles([-1e-12], [[1.0]], [[1.0]])
        >>> round(float(hsv.controllability_gramian(sys)[0, 0]), 2)      # 1 / (1 - exp(-2e-12))
        500000000000.5
        """
        dt = _check_dt(dt)
        if dt == 0:
            raise HsvError(
                "log_poles describe a discrete system, got dt=0; pass poles to DiagonalStateSpace for continuous time"
            )
        log_poles, B, C, D = as_arrays(("log_poles", "B", "C", "D"), (log_poles, B, C, D))
        self = cls.__new__(cls)
        require_finite("log_poles", log_poles)
        self._set(namespace(log_poles).exp(log_poles), log_poles, B, C, D, dt)
        return self

    def _set(
        self, poles: Array, log_poles: Array | None, B: Array, C: Array, D: Array | None, dt: float | bool
    ) -> None:
        if poles.ndim < 1 or poles.shape[-1] == 0:
            raise ShapeError(f"poles must have shape (..., n) with n >= 1, got {tuple(poles.shape)}")
        B, C, D, batch = _check_maps(poles.shape[-1], tuple(poles.shape[:-1]), B, C, D)
        for name, array in zip(("poles", "B", "C", "D"), (poles, B, C, D), strict=True):
            require_finite(name, array)
        self._poles, self.B, self.C, self.D, self.dt = broadcast_batch(poles, batch, 1), B, C, D, dt
        self.log_poles = None if log_poles is None else broadcast_batch(log_poles, batch, 1)
        self._conjugate_pairs = False
        self._frozen = True

    def __repr__(self) -> str:
        return self._describe("DiagonalStateSpace")

    def _with_outputs(self, C: Array, D: Array) -> DiagonalStateSpace:
        return self._rebuild(self._poles, self.log_poles, self.B, C, D)

    def _rebuild(self, poles: Array, log_poles: Array | None, B: Array, C: Array, D: Array) -> DiagonalStateSpace:
        if log_poles is not None:
            return DiagonalStateSpace.from_log_poles(log_poles, B, C, D, dt=self.dt)
        return DiagonalStateSpace(poles, B, C, D, dt=self.dt)

    def poles(self) -> Array:
        """Return the poles, shape ``(..., n)``, in the order of the states."""
        return self._poles

    def to_dense(self) -> StateSpace:
        """Return the same system with a dense state matrix.

        A system made by :func:`hsv.real_part` comes back real: its pairs ``diag(l, conj l)`` become
        ``[[Re l, -Im l], [Im l, Re l]]``, an orthonormal change of the state's coordinates.
        """
        if self._conjugate_pairs:
            half = self.n_states // 2
            xp = namespace(self.B)
            poles, B, C = self._poles[..., :half], self.B[..., :half, :], self.C[..., :, :half]
            re, im = real(poles)[..., None] * eye(half, real(poles)), imag(poles)[..., None] * eye(half, real(poles))
            A = xp.concat([xp.concat([re, -im], axis=-1), xp.concat([im, re], axis=-1)], axis=-2)
            root2 = math.sqrt(2.0)
            B2 = root2 * xp.concat([real(B), imag(B)], axis=-2)
            C2 = root2 * xp.concat([real(C), -imag(C)], axis=-1)  # self.C holds C / 2
            return StateSpace(A, B2, C2, real(self.D), dt=self.dt)
        return StateSpace(self._poles[..., None] * eye(self.n_states, self._poles), self.B, self.C, self.D, dt=self.dt)

    def frequency_response(self, w: Any) -> Array:
        """Return the transfer function on the unit circle or the imaginary axis, shape ``(..., k, p, m)``; see :meth:`StateSpace.frequency_response`.

        ``O(k n m p)``: a product, no linear solve. At a pole it raises :class:`IllConditionedError`, too.
        """
        xp = namespace(self.B)
        w, z = _contour(self, w)
        poles, B, C, D = (xp.astype(widen(x), xp.complex128) for x in (self._poles, self.B, self.C, self.D))
        distance = z[..., :, None] - poles[..., None, :]  # (..., k, n)
        on_a_pole = distance == 0
        if bool(xp.any(on_a_pole)):
            raise infinite_response(self, w, z, tuple(np.argwhere(to_host(on_a_pole))[0][:-1]))
        resolvent = 1.0 / distance
        response = (C[..., None, :, :] * resolvent[..., :, None, :]) @ B[..., None, :, :] + D[..., None, :, :]
        return round_to(response, xp.astype(self.B, xp.complex64) if dtype_name(self.B) == "float32" else self.B)

    def impulse_response(self, n_steps: int) -> Array:
        """Return ``D, C B, C A B, C A^2 B, ...``, shape ``(..., n_steps, p, m)``; ``O(n_steps n m p)``."""
        _check_steps(self, n_steps)
        xp = namespace(self.B)
        poles, B, C = (widen(x) for x in (self._poles, self.B, self.C))
        powers, power = xp.ones_like(poles)[..., None, :], poles  # (..., steps, n)
        while powers.shape[-2] < n_steps - 1:
            powers = xp.concat([powers, power[..., None, :] * powers], axis=-2)
            power = power * power
        powers = powers[..., : max(n_steps - 1, 0), :]
        tail = (C[..., None, :, :] * powers[..., :, None, :]) @ B[..., None, :, :]
        return round_to(xp.concat([widen(self.D)[..., None, :, :], tail], axis=-3), self.B)


def real_part(sys: LinearSystem) -> LinearSystem:
    r"""Return the real system of ``u -> Re(y)`` for real inputs ``u``.

    For a diagonal system with poles :math:`\lambda` it has :math:`2n` states,

    .. math:: \operatorname{diag}(\lambda, \bar\lambda),\quad \begin{bmatrix} B\\ \bar B\end{bmatrix},\quad
              \tfrac12 \begin{bmatrix} C & \bar C\end{bmatrix},\quad \operatorname{Re} D,

    and its Gramians, Hankel values and reductions are computed in real arithmetic (:meth:`DiagonalStateSpace.to_dense` shows the real
    matrices). For a dense system it is the real block form with :math:`2n` states. A real system is returned as it is.

    Notes
    -----
    An LRU layer computes :math:`y = \operatorname{Re}(C x)`. Truncating the complex system is valid, for its error bound carries over to the
    real part; truncating this real one is closer to optimal, for it minimises over the outputs that are used.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5j], [[1.0]], [[1.0]], dt=True)     # 1, 0.5i, -0.25, ...
    >>> hsv.real_part(sys).to_dense().impulse_response(4)[:, 0, 0]
    array([ 0.  ,  1.  ,  0.  , -0.25])
    """
    require_system(sys, LinearSystem)  # a real sparse system is its own real part
    if not sys.is_complex:
        return sys
    xp = namespace(sys.B)
    if isinstance(sys, DiagonalStateSpace):
        if sys._conjugate_pairs:
            return sys
        twice = DiagonalStateSpace.__new__(DiagonalStateSpace)
        poles = sys.poles()
        twice._poles = xp.concat([poles, xp.conj(poles)], axis=-1)
        log_poles = sys.log_poles
        twice.log_poles = None if log_poles is None else xp.concat([log_poles, xp.conj(log_poles)], axis=-1)
        twice.B = xp.concat([sys.B, xp.conj(sys.B)], axis=-2)
        twice.C = xp.concat([sys.C, xp.conj(sys.C)], axis=-1) / 2
        twice.D = xp.astype(real(sys.D), sys.D.dtype)
        twice.dt, twice._conjugate_pairs = sys.dt, True
        twice._frozen = True
        return twice
    sys = require_dense(sys)
    A = xp.concat(
        [xp.concat([real(sys.A), -imag(sys.A)], axis=-1), xp.concat([imag(sys.A), real(sys.A)], axis=-1)], axis=-2
    )
    B = xp.concat([real(sys.B), imag(sys.B)], axis=-2)
    C = xp.concat([real(sys.C), -imag(sys.C)], axis=-1)
    return StateSpace(A, B, C, real(sys.D), dt=sys.dt)


def diagonalize(sys: LinearSystem) -> tuple[DiagonalStateSpace, Array, Array]:
    r"""Change to eigenvector coordinates: :math:`A = V \Lambda V^{-1}`.

    Returns
    -------
    system : DiagonalStateSpace
        ``(Lambda, V^{-1} B, C V, D)``, complex.
    eigenvectors : array
        ``V``, shape ``(..., n, n)``, columns of unit length. Each column is free up to a factor.
    condition : array
        The 2-norm condition number of ``V``, shape ``(...)``: digits lost in ``B`` and ``C`` are about its logarithm.

    Raises
    ------
    IllConditionedError
        ``A`` is defective to working precision.

    Notes
    -----
    Computed in double precision on the host: ``O(25 n^3)``. Batches of matrices of up to 32 states are shared among threads; each matrix has
    the same result in any batch, to the last bit. The eigenvectors of a real matrix are conjugate in pairs, exactly, which stand side by side. A
    condition number has a relative error of about itself times the rounding unit.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[0.0, 0.25], [1.0, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], dt=True)
    >>> diagonal, vectors, condition = hsv.diagonalize(sys)
    >>> sorted(diagonal.poles().real.round(12).tolist())
    [-0.5, 0.5]
    """
    require_system(sys)
    if isinstance(sys, DiagonalStateSpace):
        xp = namespace(sys.B)
        complex_poles = sys.poles() if is_complex(sys.poles()) else to_complex(sys.poles(), xp.zeros_like(sys.poles()))
        vectors = broadcast_batch(eye(sys.n_states, complex_poles), (*sys.batch_shape, sys.n_states), 1)
        return sys, vectors, xp.ones_like(real(sys.poles()[..., 0]))
    sys = require_dense(sys)
    poles, V, B, C, condition = on_host(
        _diagonalize_host, *(widen(x) for x in (sys.A, sys.B, sys.C)), reason="the general eigenvalue problem"
    )
    xp = namespace(sys.A)
    worst = float(xp.max(condition)) if math.prod(condition.shape) else 1.0
    if not worst < 1.0 / np.finfo(np.float64).eps:
        raise IllConditionedError(
            f"A must have independent eigenvectors, but their condition number is {worst:.1e}: it is defective to working precision; keep the dense system"
        )
    D = to_complex(sys.D, xp.zeros_like(sys.D)) if not is_complex(sys.D) else sys.D
    poles, B, C = (round_to(x, sys.A) for x in (poles, B, C))
    diagonal = DiagonalStateSpace(poles, B, C, D, dt=sys.dt)
    return diagonal, round_to(V, sys.A), round_to(condition, real(sys.A))


def _diagonalize_host(A: np.ndarray, B: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, ...]:
    batch, n, m, p = A.shape[:-2], A.shape[-1], B.shape[-1], C.shape[-2]
    A, B, C = (x.reshape(-1, *x.shape[-2:]) for x in (A, B, C))
    count = len(A)
    shapes = (n,), (n, n), (n, m), (p, n)
    poles, V, inputs, outputs = (np.empty((count, *shape), np.complex128) for shape in shapes)
    condition = np.empty(count)

    def work(first: int, last: int) -> None:
        part = slice(first * _TOGETHER, min(last * _TOGETHER, count))
        poles[part], V[part] = np.linalg.eig(A[part])
        _eigenvector_conditions(not np.iscomplexobj(A), poles[part], V[part], condition[part])
        if np.all(condition[part] < 1e16):  # else refused by the caller: no division by zero here
            inputs[part], outputs[part] = np.linalg.solve(V[part], B[part]), C[part] @ V[part]

    n_parts = -(-count // _TOGETHER)
    most = None if n <= _SMALL else 1
    _threads.run(work, n_parts, operations=count * 50.0 * n**3, most_threads=most)
    return tuple(x.reshape((*batch, *x.shape[1:])) for x in (poles, V, inputs, outputs, condition))


def _eigenvector_conditions(paired: bool, poles: np.ndarray, V: np.ndarray, condition: np.ndarray) -> None:
    """Write the condition numbers of eigenvectors; those of a real matrix are in `paired` columns."""
    if V.shape[-1] * (1 if paired else 2) > _SMALL:
        singular = np.linalg.svd(V, compute_uv=False)
        condition[:] = np.divide(
            singular[:, 0], singular[:, -1], out=np.full(len(V), np.inf), where=singular[:, -1] > 0
        )
    elif not _kernels.condition_numbers(0, len(V), paired, poles, V, condition):
        raise HsvError(
            "the one-sided Jacobi iteration on the eigenvectors did not converge; look for entries of A of extreme sizes, and scale the states"
        )


_CONVERTERS = {"control": "from_control", "scipy.signal": "from_scipy", "pymor": "from_pymor"}


def require_system(sys: object, *also: type, name: str = "sys") -> None:
    """Raise unless `sys` is a :class:`StateSpace`, a :class:`DiagonalStateSpace` or of one of the other types given: the first line of what takes a system.

    ``require_system(sys, LargeSystem)`` lets sparse systems and low-rank Gramians pass.
    """
    if isinstance(sys, (StateSpace, DiagonalStateSpace)) or (also and isinstance(sys, also)):
        return
    kinds = ", a SparseStateSpace or LowRankGramians" if LargeSystem in also else ""
    raise DtypeError(
        f"{name} must be a StateSpace{',' if kinds else ' or'} a DiagonalStateSpace{kinds} of hsv, {_found_instead(sys, name)}"
    )


def _found_instead(sys: object, name: str) -> str:
    """What stands where a system should, and how a system is made of it."""
    if sys is None:
        return "got None; make a system of its matrices: hsv.StateSpace(A, B, C, D, dt=...)"
    kind = type(sys)
    package = kind.__module__.split(".")[0]
    found = f"got a {kind.__name__}" + ("" if package in ("builtins", "hsv") else f" of {package}")
    for prefix, convert in _CONVERTERS.items():
        if f"{kind.__module__}.".startswith(f"{prefix}."):
            return f"{found}; convert it first: hsv.{convert}({name})"
    if isinstance(sys, (LinearSystem, LargeSystem)):
        own = name if isinstance(sys, LinearSystem) else f"{name}.system"
        return f"{found}, for which this method has no path; pass {own}.to_dense(), or reduce it with hsv.balanced_truncation first"
    if package == "hsv" and isinstance(getattr(sys, "system", None), LinearSystem):
        return f"{found}; pass {name}.system"
    return f"{found}; make a system of its matrices: hsv.StateSpace(A, B, C, D, dt=...)"


def require_dense(sys: LinearSystem) -> StateSpace:
    """Return `sys` where its matrices are dense arrays; raise where a large sparse system came to a method that has no path for one."""
    if not isinstance(sys, StateSpace):
        raise DtypeError(f"sys must be a StateSpace or a DiagonalStateSpace of hsv, {_found_instead(sys, 'sys')}")
    return sys


def in_double_precision(sys: LinearSystem) -> LinearSystem:
    """Return the same system in double precision, for methods of several steps that are to be rounded once."""
    if isinstance(sys, DiagonalStateSpace) and not sys._conjugate_pairs:
        log_poles = None if sys.log_poles is None else widen(sys.log_poles)
        return sys._rebuild(widen(sys.poles()), log_poles, widen(sys.B), widen(sys.C), widen(sys.D))
    dense = sys.to_dense()
    return StateSpace(widen(dense.A), widen(dense.B), widen(dense.C), widen(dense.D), dt=sys.dt)


def without_gradient(sys: LinearSystem) -> LinearSystem:
    """Return the system with its tensors cut from their graphs, for results whose graph would have a part of the derivative only."""
    if type(sys.B) is np.ndarray:
        return sys
    ends = {name: x.detach() for name in sys._all_slots() if getattr(x := getattr(sys, name), "requires_grad", False)}
    if not ends:
        return sys
    result = copy.copy(sys)
    for name, x in ends.items():
        object.__setattr__(result, name, x)
    return result


def stability_margin(sys: LinearSystem) -> Array:
    """Return ``1 - |pole|`` or ``-Re(pole)`` for every pole, ``(..., n)``; positive for a stable pole."""
    xp = namespace(sys.B)
    log_poles = sys.log_poles if isinstance(sys, DiagonalStateSpace) else None
    if log_poles is not None:
        return -xp.expm1(widen(real(log_poles)))
    poles = widen(sys.poles())
    return 1.0 - xp.abs(poles) if sys.is_discrete else -real(poles)


def check_parallel(left: LinearSystem, right: LinearSystem) -> None:
    """Raise unless the two systems can be connected in parallel."""
    if right.dt != left.dt or (right.dt is True) != (left.dt is True):
        raise HsvError(
            f"the two systems must have the same dt, got {left.dt!r} and {right.dt!r}; discretize or relabel one of them"
        )
    if (left.n_inputs, left.n_outputs) != (right.n_inputs, right.n_outputs):
        raise ShapeError(
            f"the two systems must have the same inputs and outputs, got {left.n_inputs} -> {left.n_outputs} and {right.n_inputs} -> {right.n_outputs}"
        )


def _parallel(left: LinearSystem, right: LinearSystem) -> LinearSystem:
    xp = namespace(left.B, right.B)
    batch = tuple(np.broadcast_shapes(left.batch_shape, right.batch_shape))

    def pair(a: Array, b: Array, core: int) -> tuple[Array, Array]:
        return broadcast_batch(a, batch, core), broadcast_batch(b, batch, core)

    B = xp.concat(_same_dtype(*pair(left.B, right.B, 2)), axis=-2)
    C = xp.concat(_same_dtype(*pair(left.C, right.C, 2)), axis=-1)
    D = left.D + right.D
    if isinstance(left, DiagonalStateSpace) and isinstance(right, DiagonalStateSpace):
        if left.log_poles is not None and right.log_poles is not None:
            logs = xp.concat(_same_dtype(*pair(left.log_poles, right.log_poles, 1)), axis=-1)
            return DiagonalStateSpace.from_log_poles(logs, B, C, D, dt=left.dt)
        poles = xp.concat(_same_dtype(*pair(left.poles(), right.poles(), 1)), axis=-1)
        return DiagonalStateSpace(poles, B, C, D, dt=left.dt)
    first, second = left.to_dense(), right.to_dense()
    B = xp.concat(_same_dtype(*pair(first.B, second.B, 2)), axis=-2)
    C = xp.concat(_same_dtype(*pair(first.C, second.C, 2)), axis=-1)
    A1, A2 = _same_dtype(*pair(first.A, second.A, 2))
    n1, n2 = A1.shape[-1], A2.shape[-1]
    A = xp.concat(
        [xp.concat([A1, zeros((*batch, n1, n2), A1)], axis=-1), xp.concat([zeros((*batch, n2, n1), A1), A2], axis=-1)],
        axis=-2,
    )
    return StateSpace(A, B, C, first.D + second.D, dt=left.dt)


def _same_dtype(a: Array, b: Array) -> list[Array]:
    return as_arrays(("left", "right"), (a, b))


def _contour(sys: LinearSystem, w: Any) -> tuple[Array, Array]:
    """The frequencies ``w``, and ``exp(i w dt)`` in discrete time, ``i w`` in continuous time; in double precision."""
    xp = namespace(sys.B)
    if is_array(w) and not isinstance(w, type(sys.B)):  # frequencies are mostly NumPy's, whatever the system's library
        w = to_host(w)[...].tolist()
    w = as_arrays(("like", "w"), (real(sys.B), w))[1]
    if is_complex(w):
        raise DtypeError("w must be real frequencies, got complex numbers; pass the imaginary part")
    require_finite("w", w)
    w = widen(w)
    if w.ndim == 0:
        raise ShapeError("w must have shape (k,), got a single number; pass [w]")
    if not sys.is_discrete:
        return w, to_complex(xp.zeros_like(w), w)
    return w, to_complex(xp.cos(w * sys.step), xp.sin(w * sys.step))


def infinite_response(sys: LinearSystem, w: Array, z: Array, index: tuple[int, ...]) -> IllConditionedError:
    """The error of a frequency response at a pole: system and frequency `index`, ``(..., k)``."""
    shape = np.broadcast_shapes((*sys.batch_shape, 1), tuple(w.shape))
    frequency, point = (np.broadcast_to(to_host(x), shape)[index] for x in (w, z))
    system = f" of system {tuple(int(i) for i in index[:-1])}" if sys.batch_shape else ""
    return IllConditionedError(
        f"the frequency response{system} is infinite at w={frequency:.6g}: a pole lies at {point:.6g}; leave this frequency out"
    )


def _most_singular(matrices: Array) -> tuple[tuple[int, ...], float]:
    """The index of the matrix nearest to a singular one, relatively, and how near it is."""
    values = np.linalg.svd(to_host(matrices), compute_uv=False)
    distance = values[..., -1] / np.where(values[..., 0] > 0, values[..., 0], 1.0)
    index = np.unravel_index(int(np.argmin(distance)), distance.shape)
    return tuple(int(i) for i in index), float(distance[index])


def _check_dt(dt: float | bool) -> float | bool:
    value = _true_or_number(dt)
    if value is True:
        return True
    if value is None:
        raise DtypeError(f"dt must be 0 (continuous), True (discrete) or a positive number of seconds, got {dt!r}")
    if not math.isfinite(value) or value < 0:
        raise HsvError(f"dt must be 0 (continuous), True (discrete) or a positive number of seconds, got {dt!r}")
    return value


def _true_or_number(dt: Any) -> float | None:
    """``True`` or a float; None for all else, ``False`` above all: is it 0 or "not discrete"?"""
    if type(dt) is float or dt is True:
        return dt
    if is_array(dt) and dt.ndim == 0 and str(dt.dtype).endswith("bool"):
        dt = bool(dt)
    if isinstance(dt, (bool, np.bool_)):
        return True if dt else None
    return as_number(dt)


def _check_steps(sys: LinearSystem, n_steps: int) -> None:
    if not sys.is_discrete:
        raise HsvError("impulse_response counts steps, which a continuous system does not have; discretize it first")
    if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)):
        raise DtypeError(f"n_steps must be an int, got {n_steps!r}")
    if n_steps < 1:
        raise HsvError(f"n_steps must be at least 1, got {n_steps}")


def _check_maps(
    n: int, batch: tuple[int, ...], B: Array, C: Array, D: Array | None
) -> tuple[Array, Array, Array, tuple[int, ...]]:
    """Check that B, C and D fit `n` states, and broadcast all batch axes."""
    if B.ndim < 2 or B.shape[-2] != n or B.shape[-1] == 0:
        raise ShapeError(f"B must have shape (..., {n}, m) with m >= 1 to fit {n} states, got {tuple(B.shape)}")
    if C.ndim < 2 or C.shape[-1] != n or C.shape[-2] == 0:
        hint = "; it looks transposed" if C.ndim >= 2 and C.shape[-2] == n else ""
        raise ShapeError(f"C must have shape (..., p, {n}) with p >= 1 to fit {n} states, got {tuple(C.shape)}{hint}")
    p, m = C.shape[-2], B.shape[-1]
    if D is not None and D.ndim == 0:  # a number stands for all entries, D=0 above all
        D = D + zeros((p, m), B)
    if D is not None and (D.ndim < 2 or tuple(D.shape[-2:]) != (p, m)):
        raise ShapeError(f"D must have shape (..., {p}, {m}) to fit B and C, got {tuple(D.shape)}")
    shapes = [batch, tuple(B.shape[:-2]), tuple(C.shape[:-2]), () if D is None else tuple(D.shape[:-2])]
    try:
        common = tuple(np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise ShapeError(
            f"the batch axes of the arrays must broadcast against each other, got {', '.join(map(str, shapes))}"
        ) from error
    D = zeros((*common, p, m), B) if D is None else broadcast_batch(D, common, 2)
    return broadcast_batch(B, common, 2), broadcast_batch(C, common, 2), D, common
