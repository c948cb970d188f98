"""H2-optimal reduction of diagonal systems by descent on their closed-form error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hsv._arguments import checked_count, checked_tolerance
from hsv._array import Array, copied, from_host, real, round_to, say_copied, to_host, widen
from hsv._cauchy import expm1
from hsv._errors import DtypeError, OrderError, OrderWarning
from hsv._order import ErrorBound, Order, Rule, as_rule
from hsv._reduction import Reduction, balanced_truncation
from hsv._scaling import even_exponents, require_representable, shifted, with_even_ports, with_unit_ports
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, real_part, require_system
from hsv._warnings import WarnTheCaller, level_outside

_EPS = float(np.finfo(np.float64).eps)
_KRYLOV_STEPS = 100  # at most, before the descent: where they settle, they do so in fewer than the descent needs
_KRYLOV_IDLE = 20  # iterates in a row that are no better
_KRYLOV_SETTLED = 1e-11  # of the largest pole, as they are stored
_RIDGE = 1e-14  # of a Gramian with unit diagonal, so that states that say the same can be told apart
_MEMORY = 20  # pairs of steps and gradients
_SUFFICIENT = 1e-4  # of the decrease that the slope promises
_HALVINGS = 40
_LOG_OF_ZERO = -1000.0  # stands for the logarithm of a pole at 0, which it becomes again


def h2_optimal_reduction(
    sys: LinearSystem, rule: Rule | int, *, max_iterations: int = 500, tolerance: float = 1e-9
) -> Reduction:
    r"""Reduce a stable diagonal system to a diagonal one with a locally least error in the H2 norm.

    With poles :math:`\lambda_i`, rows :math:`b_i` of ``B`` and columns :math:`c_i` of ``C``, and a hat on those of the reduced system, the squared error is

    .. math:: \|G - \hat G\|_2^2 = \sum_{ij} c_j^H c_i\, b_i b_j^H k(\lambda_i, \lambda_j) - 2 \operatorname{Re} \sum_{ij} \hat c_j^H c_i\, b_i \hat b_j^H k(\lambda_i, \hat\lambda_j)
              + \sum_{ij} \hat c_j^H \hat c_i\, \hat b_i \hat b_j^H k(\hat\lambda_i, \hat\lambda_j)

    with :math:`k(\lambda, \mu) = 1 / (1 - \lambda\bar\mu)` in discrete and :math:`-1 / (\lambda + \bar\mu)` in continuous time. Its gradient has a closed form too, and vanishes where
    the tangential interpolation conditions of Meier and Luenberger hold. The descent is a quasi-Newton method (L-BFGS) in :math:`\hat\lambda = \exp(-e^\alpha + i \theta)` or
    :math:`-e^\alpha + i \omega`, which cannot become unstable, and in :math:`\hat b`; the best :math:`\hat c` for them solves a linear problem. It begins at the best of balanced truncation, the states with the most energy,
    and up to 100 iterates of the rational Krylov algorithm (:func:`irka`) from either; the error never rises.

    Parameters
    ----------
    sys : DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch. A system made by :func:`real_part` is reduced to conjugate pairs: the result is the
        ``real_part`` of a complex system with half as many states.
    rule : Rule or int
        Chooses the order by the Hankel singular values; ``ErrorBound`` is refused, for the method has no bound. An odd order for conjugate pairs is rounded up.
    max_iterations : int
        Of the descent.
    tolerance : float
        Stop where the next step promises to lower the squared error by no more than this share of it; in (0, 1).

    Returns
    -------
    Reduction
        ``system`` is a complex DiagonalStateSpace, from log-poles in discrete time. ``error_bound`` is None. ``right`` and ``left`` are the bases
        :math:`P_{12} \hat P^{-1}` and :math:`Q_{12} \hat Q^{-1}` of the Petrov-Galerkin projection that an optimal reduction is: ``left^H right = I``, and
        ``left^H A right``, ``left^H B``, ``C right`` are the reduced system as far as the descent has converged and :math:`\hat P`, :math:`\hat Q` are regular.

    Raises
    ------
    UnstableSystemError
    OrderError
        No order meets the rule.
    DtypeError, HsvError
        The system is not diagonal; `max_iterations` or `tolerance` is no such number; the reduced system is beyond the range of the precision of `sys`.

    Warns
    -----
    OrderWarning
        The descent ended after `max_iterations`.

    See Also
    --------
    irka : for dense systems; a fixed-point iteration that may not converge, without descent.
    balanced_truncation : has a bound of the H-infinity error.

    Notes
    -----
    A local optimum, not always the global one: the poles of a real system that begin real stay so. Squared errors below ``1e-14`` of the squared norm of `sys` are rounding, and the descent stops
    there. On the host, the whole batch at once: ``O(n r (m + p))`` an iteration and system, some 50 to 300 iterations.

    References
    ----------
    Meier and Luenberger, "Approximation of linear constant systems", IEEE Trans. Automat. Control 12 (1967), for the conditions; Wilson, "Optimum solution of model-reduction problem", Proc. IEE 117 (1970), for the
    projection; Nocedal and Wright, "Numerical Optimization", algorithm 7.4 (L-BFGS). Sakamoto and Sato, "Compression method for deep diagonal state space model based on H2 optimal reduction", IEEE Control Systems
    Letters (2025), reduce the diagonal layers of networks by this norm.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -3.0, -10.0], [[1.0], [1.0], [1.0]], [[1.0, 1.0, 1.0]], dt=0)
    >>> optimal, balanced = hsv.h2_optimal_reduction(sys, 1).system, hsv.balanced_truncation(sys, 1).system
    >>> bool(hsv.h2_norm(sys - optimal) < hsv.h2_norm(sys - balanced))
    True
    """
    require_system(sys)
    if not isinstance(sys, DiagonalStateSpace):
        raise DtypeError(
            f"h2_optimal_reduction takes a DiagonalStateSpace, got a {type(sys).__name__}; hsv.diagonalize makes one of it, and hsv.irka takes it as it is"
        )
    max_iterations, tolerance = checked_count("max_iterations", max_iterations), checked_tolerance(tolerance)
    rule = as_rule(rule)
    if isinstance(rule, ErrorBound):
        raise OrderError(
            "ErrorBound asks for a bound, which H2-optimal reduction does not have; use hsv.balanced_truncation"
        )
    say_copied(sys.B, "the descent on the H2 error")
    paired = sys._conjugate_pairs
    with WarnTheCaller():
        balanced = balanced_truncation(with_even_ports(sys)[0], rule)
    orders = to_host(balanced.orders)
    slots = (orders + 1) // 2 if paired else orders
    r = max(int(slots.max(initial=0)), 1)
    unit, sizes = with_unit_ports(sys)  # what follows has fourth powers of B and C
    assert isinstance(unit, DiagonalStateSpace)
    problem = _Problem.of(unit)
    used = np.arange(r) < slots.reshape(-1)[:, None]  # (k, r)
    start = _best_start(
        problem, _starts(problem, unit, replace(balanced, system=_in_units(balanced.system, sizes)), used)
    )
    found = _descend(problem, start, max_iterations, tolerance)
    exact = _errors(problem, start) <= problem.noise
    model = _where(exact, start, found.model)
    notes = [note for note in balanced.notes if "cluster" not in note]
    if not found.settled.all():
        note = f"the descent had not settled after {max_iterations} iterations" + (
            f" (in {int((~found.settled).sum())} of {found.settled.size} systems)" if found.settled.size > 1 else ""
        )
        warnings.warn(note, OrderWarning, stacklevel=level_outside())
        notes.append(note)
    else:
        notes.append(f"the descent had settled after {found.iterations} iterations")
    left, right = _projections(problem, model, used)
    if left.shape[-1] == sys.n_states:
        unchanged = (exact & used.all(axis=-1))[:, None, None]  # the system itself: see _dominant
        left, right = (np.where(unchanged, np.eye(sys.n_states), x) for x in (left, right))
    like = sys.B if sys.is_complex else sys.B + 0j

    def back(x: np.ndarray) -> Array:
        return round_to(from_host(x.reshape(*sys.batch_shape, *x.shape[1:]), like), like)

    poles, B, C = _padded(model, used, _LOG_OF_ZERO if sys.is_discrete else -1.0)
    B, C = (shifted(x, size.reshape(-1)) for x, size in zip((B, C), sizes, strict=True))
    poles, B, C = (back(x) for x in (poles, B, C))
    require_representable(poles, B, C)
    D = copied(sys.D) if sys.is_complex else sys.D + 0j
    if sys.is_discrete:
        reduced = DiagonalStateSpace.from_log_poles(poles, B, C, D, dt=sys.dt)
    else:
        reduced = DiagonalStateSpace(poles, B, C, D, dt=sys.dt)
    assert balanced.hankel_singular_values is not None
    return Reduction(
        system=real_part(reduced) if paired else reduced,
        orders=from_host((2 * slots if paired else slots).astype(np.int64), sys.B),
        hankel_singular_values=round_to(balanced.hankel_singular_values, real(sys.B)),
        error_bound=None,
        left=back(left),
        right=back(right),
        notes=tuple(notes),
    )


def _in_units(balanced: StateSpace, sizes: tuple[np.ndarray, np.ndarray]) -> StateSpace:
    """The reduction of :func:`hsv._scaling.with_even_ports`, on the host, in the units of :func:`hsv._scaling.with_unit_ports`."""
    even = even_exponents(*sizes)
    A, B, C, D = (to_host(widen(x)) for x in (balanced.A, balanced.B, balanced.C, balanced.D))
    return StateSpace(A, shifted(B, even - sizes[0]), shifted(C, -even - sizes[1]), D, dt=balanced.dt)


class _Model(NamedTuple):
    """Diagonal systems: logarithms of discrete poles or continuous poles ``(k, r)``, ``B (k, r, m)``, ``C (k, p, r)``; complex."""

    poles: np.ndarray
    B: np.ndarray
    C: np.ndarray

    def take(self, rows: np.ndarray) -> _Model:
        return _Model(*(x[rows] for x in self))


class _Cross(NamedTuple):
    """What two systems ``G`` and ``H`` have in common: ``k(l_i, m_j)``, ``c_i^T conj(c_j)`` and the cross Gramian ``b_i b_j^H k(l_i, m_j)``, ``(k, n, r)`` each."""

    K: np.ndarray
    X: np.ndarray
    P: np.ndarray

    @property
    def Q(self) -> np.ndarray:
        """The observability Gramian's block."""
        return (self.X * self.K).conj()

    @property
    def value(self) -> np.ndarray:
        """``Re <G, H>``, ``(k,)``."""
        return np.asarray((self.P * self.X).sum(axis=(-2, -1)).real)


@dataclass(frozen=True)
class _Problem:
    """Systems to approximate; with ``paired`` by the conjugate pairs of the model's states, so that ``full`` is real."""

    full: _Model
    discrete: bool
    paired: bool
    energy: np.ndarray  # (k,): the squared norms

    @classmethod
    def of(cls, sys: DiagonalStateSpace) -> _Problem:
        def flat(x: np.ndarray, axes: int) -> np.ndarray:
            return x.reshape(-1, *x.shape[x.ndim - axes :]).astype(np.complex128)

        if not sys.is_discrete:
            poles = to_host(sys.poles())
        elif sys.log_poles is not None:
            poles = to_host(sys.log_poles)
        else:
            poles = _logarithms(to_host(sys.poles()))
        full = _Model(flat(poles, 1), flat(to_host(sys.B), 2), flat(to_host(sys.C), 2))
        problem = cls(full, sys.is_discrete, sys._conjugate_pairs, np.zeros(len(full.B)))
        return cls(full, sys.is_discrete, sys._conjugate_pairs, problem.cross(full, full).value)

    @property
    def noise(self) -> np.ndarray:
        """Rounding errors of squared errors, ``(k,)``."""
        return 64 * _EPS * self.energy

    def take(self, rows: np.ndarray) -> _Problem:
        return _Problem(self.full.take(rows), self.discrete, self.paired, self.energy[rows])

    def whole(self, model: _Model) -> _Model:
        """The states of the model, and their conjugates where it stands for pairs."""
        if not self.paired:
            return model
        z, B, C = model
        return _Model(
            np.concatenate([z, z.conj()], axis=-1),
            np.concatenate([B, B.conj()], axis=-2),
            np.concatenate([C, C.conj()], axis=-1) / 2,
        )

    def kernel(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = x[:, :, None] + y.conj()[:, None, :]
        return -1.0 / (expm1(total) if self.discrete else total)

    def cross(self, first: _Model, second: _Model) -> _Cross:
        K = self.kernel(first.poles, second.poles)
        X = first.C.swapaxes(-1, -2) @ second.C.conj()
        return _Cross(K, X, first.B @ second.B.conj().swapaxes(-1, -2) * K)

    def gradient(self, cross: _Cross, first: _Model) -> _Model:
        """Of ``Re <G, H>`` by ``H``: its change is ``Re <gradient, dH>``."""
        slope = (cross.P * cross.X * (cross.K - 1.0 if self.discrete else cross.K)).sum(axis=-2)
        return _Model(slope, (cross.X * cross.K).swapaxes(-1, -2) @ first.B, first.C @ cross.P)

    def error(self, model: _Model) -> tuple[np.ndarray, _Model]:
        """Squared errors ``(k,)`` and their gradients."""
        whole = self.whole(model)
        mixed, own = self.cross(self.full, model), self.cross(whole, model)
        by = zip(self.gradient(mixed, self.full), self.gradient(own, whole), strict=True)
        return self.energy - 2 * mixed.value + own.value, _Model(*(2 * (b - a) for a, b in by))

    def squared_error(self, model: _Model) -> np.ndarray:
        """Squared errors alone."""
        mixed, own = self.cross(self.full, model).value, self.cross(self.whole(model), model).value
        return np.asarray(self.energy - 2 * mixed + own)

    def fitted(self, poles: np.ndarray, B: np.ndarray) -> _Model:
        """The model with these poles and this ``B`` and the least error: ``C`` solves a linear problem, ``C P = C_full P_cross``."""
        k, r, _ = B.shape
        whole = self.whole(_Model(poles, B, np.zeros((k, self.full.C.shape[1], r), complex)))
        B_h = whole.B.conj().swapaxes(-1, -2)
        own = whole.B @ B_h * self.kernel(whole.poles, whole.poles)
        target = self.full.C @ (self.full.B @ B_h * self.kernel(self.full.poles, whole.poles))
        size = np.sqrt(np.diagonal(own, axis1=-2, axis2=-1).real)
        scale = np.where(size > 0, 1.0 / np.where(size > 0, size, 1.0), 0.0)
        gram = own * scale[:, :, None] * scale[:, None, :] + _RIDGE * np.eye(own.shape[-1])
        target_h = (target * scale[:, None, :]).conj().swapaxes(-1, -2)
        C = np.linalg.solve(gram, target_h).conj().swapaxes(-1, -2) * scale[:, None, :]
        return _Model(poles, B, 2 * C[:, :, :r] if self.paired else C)

    def stored(self, poles: np.ndarray) -> np.ndarray:
        """Poles as the model keeps them."""
        return _logarithms(poles) if self.discrete else poles

    def plain(self, poles: np.ndarray) -> np.ndarray:
        return np.exp(poles) if self.discrete else poles


def _logarithms(poles: np.ndarray) -> np.ndarray:
    zero = poles == 0
    return np.where(zero, _LOG_OF_ZERO, np.log(np.where(zero, 1.0, poles).astype(np.complex128)))


def _padded(model: _Model, used: np.ndarray, pole: float = -1.0) -> _Model:
    """The model with nothing but a stable pole where a state is not used."""
    return _Model(
        np.where(used, model.poles, pole),
        np.where(used[:, :, None], model.B, 0.0),
        np.where(used[:, None, :], model.C, 0.0),
    )


def _starts(problem: _Problem, sys: DiagonalStateSpace, balanced: Reduction, used: np.ndarray) -> list[_Model]:
    """Models to begin at: stable ones, or ones with NaN where there is none."""
    r = used.shape[1]
    if problem.paired:
        half = sys.n_states // 2
        logs = None if sys.log_poles is None else sys.log_poles[..., :half]
        upper = sys._rebuild(sys.poles()[..., :half], logs, sys.B[..., :half, :], 2 * sys.C[..., :half], sys.D)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrderWarning)
            dense = balanced_truncation(upper, Order(min(r, half))).system
        size = balanced.system.n_states
        own = np.arange(size) < to_host(balanced.orders).reshape(-1)[:, None]
        pairs = _upper_halves(problem, _diagonalized(problem, balanced.system, own), own, r)
        models = [_diagonalized(problem, dense, used), _padded(pairs, used)]
    else:
        models = [_diagonalized(problem, balanced.system, used)]
    models.append(_dominant(problem, used))
    # The best of what they lead to comes first, and any of them is stable at the end.
    return [*(_krylov(problem, _Model(*(x.copy() for x in model)), used) for model in models), *models]


def _diagonalized(problem: _Problem, dense: LinearSystem, used: np.ndarray) -> _Model:
    """Eigenvector coordinates of dense systems, empty states last; NaN where they have none."""
    assert isinstance(dense, StateSpace)
    A, B, C = (to_host(widen(x)) for x in (dense.A, dense.B, dense.C))
    A, B, C = (x.reshape(-1, *x.shape[-2:]).astype(np.complex128) for x in (A, B, C))
    return _padded(_eigen_coordinates(problem, A, B, C, used), used)


def _eigen_coordinates(problem: _Problem, A: np.ndarray, B: np.ndarray, C: np.ndarray, used: np.ndarray) -> _Model:
    k, r = used.shape
    usable = np.isfinite(A).all(axis=(-2, -1))
    poles, vectors = np.linalg.eig(np.where(usable[:, None, None], A, 0.0))
    # a shorter system is block diagonal with its padding
    outside = ((np.abs(vectors) ** 2) * ~used[:, :, None]).sum(axis=-2) > 0.5
    order = np.argsort(outside, axis=-1, kind="stable")
    poles, vectors = np.take_along_axis(poles, order, -1), np.take_along_axis(vectors, order[:, None, :], -1)
    singular = np.linalg.svd(vectors, compute_uv=False)
    usable &= singular[:, -1] > 1e-12 * singular[:, 0]
    vectors = np.where(usable[:, None, None], vectors, np.eye(r))
    model = _Model(problem.stored(poles), np.linalg.solve(vectors, B), C @ vectors)
    return _Model(*(np.where(usable.reshape(k, *(1,) * (x.ndim - 1)), x, np.nan) for x in model))


def _upper_halves(problem: _Problem, model: _Model, used: np.ndarray, r: int) -> _Model:
    """The states of real systems with poles above the real axis, `r` of them with the empty ones last; NaN where a pole is real."""
    upper = (problem.plain(model.poles).imag > 0) & used
    fits = 2 * upper.sum(axis=-1) == used.sum(axis=-1)
    order = np.argsort(~upper, axis=-1, kind="stable")[:, :r]
    return _Model(
        np.where(fits[:, None], np.take_along_axis(model.poles, order, -1), np.nan),
        np.take_along_axis(model.B, order[:, :, None], -2),
        2 * np.take_along_axis(model.C, order[:, None, :], -1),
    )


def _krylov(problem: _Problem, start: _Model, used: np.ndarray) -> _Model:
    """The best of the iterates of the rational Krylov algorithm, each system for itself; those that do not use all states stay at `start`."""
    best, best_error = start, _errors(problem, start)
    free = replace(problem, paired=False)  # real systems may have real poles on the way
    rows = np.flatnonzero(used.all(axis=-1) & np.isfinite(best_error))
    model, idle = problem.whole(start).take(rows), np.zeros(len(rows), int)
    for _ in range(_KRYLOV_STEPS):
        part = free.take(rows)
        cross = part.cross(part.full, model)
        V, W = (np.linalg.qr(x / np.linalg.norm(x, axis=-2, keepdims=True))[0] for x in (cross.P, cross.Q))
        W_h = W.conj().swapaxes(-1, -2)
        gram = W_h @ V
        regular = np.linalg.cond(gram) < 1e12
        left_h = np.linalg.solve(np.where(regular[:, None, None], gram, np.eye(gram.shape[-1])), W_h)
        A = left_h @ (part.plain(part.full.poles)[:, :, None] * V)
        new = _eigen_coordinates(part, A, left_h @ part.full.B, part.full.C @ V, np.ones(model.poles.shape, bool))
        own = problem.take(rows)
        found = _upper_halves(own, new, np.ones(new.poles.shape, bool), used.shape[1]) if own.paired else new
        error = np.where(regular, _errors(own, found), np.inf)
        better = error < best_error[rows]
        taken = rows[better]
        idle = np.where(better, 0, idle + 1)
        best_error[taken] = error[better]
        for old, x in zip(best, found, strict=True):
            old[taken] = x[better]
        moved = np.abs(np.sort_complex(new.poles) - np.sort_complex(model.poles)).max(axis=-1)
        open_ = regular & (moved > _KRYLOV_SETTLED * np.abs(model.poles).max(axis=-1))  # False for NaN
        open_ &= idle < _KRYLOV_IDLE
        if not open_.any():
            break
        rows, idle, model = rows[open_], idle[open_], new.take(open_)
    return best


def _dominant(problem: _Problem, used: np.ndarray) -> _Model:
    """The states with the most energy, each for itself."""
    z, B, C = problem.full
    n = z.shape[-1] // 2 if problem.paired else z.shape[-1]
    z, B, C = z[:, :n], B[:, :n], C[:, :, :n] * (2 if problem.paired else 1)
    gap = -np.expm1(2 * z.real) if problem.discrete else -2 * z.real
    energy = (np.abs(B) ** 2).sum(axis=-1) * (np.abs(C) ** 2).sum(axis=-2) / gap
    kept = np.argsort(-energy, axis=-1, kind="stable")[:, : used.shape[1]]
    kept = np.minimum(np.sort(np.where(used, kept, n), axis=-1), n - 1)  # in the order they had
    return _padded(
        _Model(
            np.take_along_axis(z, kept, -1),
            np.take_along_axis(B, kept[:, :, None], -2),
            np.take_along_axis(C, kept[:, None, :], -1),
        ),
        used,
    )


def _errors(problem: _Problem, model: _Model) -> np.ndarray:
    """Squared errors, infinite where the model is no stable system."""
    usable = (
        (model.poles.real < 0).all(axis=-1)
        & np.isfinite(model.B).all(axis=(-2, -1))
        & np.isfinite(model.C).all(axis=(-2, -1))
    )
    empty = _Model(np.full_like(model.poles, -1.0), np.zeros_like(model.B), np.zeros_like(model.C))
    return np.where(usable, problem.squared_error(_where(usable, model, empty)), np.inf)


def _where(which: np.ndarray, first: _Model, second: _Model) -> _Model:
    """The first model for the systems in the mask `which`, the second for the others."""
    return _Model(
        *(np.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(first, second, strict=True))
    )


def _best_start(problem: _Problem, models: list[_Model]) -> _Model:
    """The model with the least error; the last one, whose states are some of the system's, where it is as good."""
    errors = [_errors(problem, model) for model in models]
    best, least = models[-1], errors[-1]
    for model, error in zip(models[:-1], errors[:-1], strict=True):
        better = error < least - problem.noise
        best, least = _where(better, model, best), np.where(better, error, least)
    return best


class _Found(NamedTuple):
    model: _Model
    settled: np.ndarray  # (k,)
    iterations: int


@dataclass(frozen=True)
class _Coordinates:
    """Real coordinates ``(k, N)`` of the poles and ``B`` of models: any of them is stable."""

    r: int
    m: int

    def of(self, model: _Model) -> np.ndarray:
        return self._flat(np.log(-model.poles.real), model.poles.imag, model.B)

    def poles_and_inputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = self.r
        z = -np.exp(x[:, :r]) + 1j * x[:, r : 2 * r]
        return z, x[:, 2 * r :].copy().view(np.complex128).reshape(len(x), r, self.m)

    def gradient(self, model: _Model, by: _Model) -> np.ndarray:
        """From the gradient by poles and ``B``; ``C`` is best for them, so that its change adds nothing."""
        return self._flat(model.poles.real * by.poles.real, by.poles.imag, by.B)

    def curvature(self, problem: _Problem, model: _Model) -> np.ndarray:
        """The diagonal of the Gauss-Newton matrix: squared norms of what a unit step of each coordinate changes."""
        z, B, C = model
        b, c = (np.abs(B) ** 2).sum(axis=-1), (np.abs(C) ** 2).sum(axis=-2)
        gap = -np.expm1(2 * z.real) if problem.discrete else -2 * z.real
        # sum of k^2 rho^k, and the integral of t^2 exp(-gap t)
        slope = b * c * (np.exp(2 * z.real) * (2 - gap) if problem.discrete else 2.0) / gap**3
        rows = np.concatenate([z.real**2 * slope, slope, np.repeat(c / gap, 2 * self.m, axis=-1)], axis=-1)
        # A state that nothing enters or leaves has no curvature, and no gradient.
        return np.where(rows > 0, rows, 1.0) * (1.0 if problem.paired else 2.0)

    def _flat(self, first: np.ndarray, second: np.ndarray, B: np.ndarray) -> np.ndarray:
        return np.concatenate([first, second, np.ascontiguousarray(B).reshape(len(B), -1).view(np.float64)], axis=-1)


def _descend(problem: _Problem, start: _Model, max_iterations: int, tolerance: float) -> _Found:
    """L-BFGS with backtracking, for all systems at once; those that have settled are taken out."""
    k, r, m = start.B.shape
    coordinates = _Coordinates(r, m)
    whole_problem, fitted = problem, problem.fitted(start.poles, start.B)
    result, settled = coordinates.of(start), np.zeros(k, bool)
    rows, x = np.arange(k), result.copy()
    error, by = problem.error(fitted)
    gradient = coordinates.gradient(fitted, by)
    inverse = 1.0 / coordinates.curvature(problem, fitted)  # the first guess of the inverse Hessian, diagonal
    history: list[tuple[np.ndarray, ...]] = []
    iteration = 0
    while True:
        direction = -_two_loops(history, inverse, gradient)
        slope = _dot(gradient, direction)
        done = -slope <= tolerance * np.maximum(error, 0.0) + problem.noise
        if done.any() or iteration == max_iterations:
            result[rows], settled[rows] = x, done
            if done.all() or iteration == max_iterations:
                return _Found(whole_problem.fitted(*coordinates.poles_and_inputs(result)), settled, iteration)
            open_ = ~done
            rows, problem = rows[open_], problem.take(open_)
            x, error, gradient, inverse, direction, slope = (
                v[open_] for v in (x, error, gradient, inverse, direction, slope)
            )
            history = [tuple(v[open_] for v in step) for step in history]
        new_x, new_error, new_gradient, moved = _search(problem, coordinates, x, error, gradient, direction, slope)
        iteration += 1
        step, change = new_x - x, new_gradient - gradient
        curved = _dot(step, change)
        usable = curved > _EPS * np.sqrt(_dot(step, step) * _dot(change, change))
        weight = np.where(usable, 1.0 / np.where(usable, curved, 1.0), 0.0)
        size = _dot(change, inverse * change)
        history = [
            *history[-_MEMORY + 1 :],
            (step, change, weight, np.where(usable, curved / np.where(size > 0, size, 1.0), 0.0)),
        ]
        stuck = ~moved
        if stuck.any():
            # No step lowers the error any more: rounding, unless the memory misleads, which is then forgotten.
            fresh = np.array([not any(h[2][i] for h in history[:-1]) for i in np.flatnonzero(stuck)])
            ended = np.flatnonzero(stuck)[fresh]
            for h in history:
                h[2][stuck] = 0.0
            result[rows[ended]], settled[rows[ended]] = x[ended], True
            open_ = np.ones(len(rows), bool)
            open_[ended] = False
            if not open_.any():
                return _Found(whole_problem.fitted(*coordinates.poles_and_inputs(result)), settled, iteration)
            rows, problem = rows[open_], problem.take(open_)
            new_x, new_error, new_gradient, inverse = (v[open_] for v in (new_x, new_error, new_gradient, inverse))
            history = [tuple(v[open_] for v in h) for h in history]
        x, error, gradient = new_x, new_error, new_gradient


def _two_loops(history: list[tuple[np.ndarray, ...]], inverse: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The approximate inverse Hessian times the gradient; steps of weight 0 are left out."""
    q = gradient.copy()
    shares = []
    scale = np.ones(len(q))
    for step, change, weight, _ in reversed(history):
        share = weight * _dot(step, q)
        q -= share[:, None] * change
        shares.append(share)
    for *_, weight, size in history:
        scale = np.where(weight > 0, size, scale)
    q *= inverse * scale[:, None]
    for (step, change, weight, _), share in zip(history, reversed(shares), strict=True):
        q += (share - weight * _dot(change, q))[:, None] * step
    return q


def _search(
    problem: _Problem,
    coordinates: _Coordinates,
    x: np.ndarray,
    error: np.ndarray,
    gradient: np.ndarray,
    direction: np.ndarray,
    slope: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shorten steps until the error falls enough; those that never do stay where they are."""
    new_x, new_error, new_gradient = x.copy(), error.copy(), gradient.copy()
    r = coordinates.r
    # No pole moves by more than a factor e in its distance to the boundary, nor in angle by more than about its width.
    reach = np.concatenate([np.abs(direction[:, :r]), np.abs(direction[:, r : 2 * r]) * np.exp(-x[:, :r]) / 4], axis=-1)
    length = np.minimum(1.0, 1.0 / np.maximum(reach.max(axis=-1), 1e-300))
    open_ = np.flatnonzero(slope < 0)
    for _ in range(_HALVINGS):
        if not open_.size:
            break
        trial = x[open_] + length[open_, None] * direction[open_]
        part = problem.take(open_)
        model = part.fitted(*coordinates.poles_and_inputs(trial))
        found, by = part.error(model)
        lower = (found < error[open_]) & (found <= error[open_] + _SUFFICIENT * length[open_] * slope[open_])
        taken = open_[lower]
        new_x[taken], new_error[taken] = trial[lower], found[lower]
        new_gradient[taken] = coordinates.gradient(model, by)[lower]
        open_ = open_[~lower]
        # The minimum of the parabola through what is known, within [0.1, 0.5] of the step.
        fall, rise = slope[open_] * length[open_], found[~lower] - error[open_]
        length[open_] *= np.clip(-fall / (2 * np.maximum(rise - fall, 1e-300)), 0.1, 0.5)
    moved = np.ones(len(x), bool)
    moved[open_] = False
    moved[slope >= 0] = False
    return new_x, new_error, new_gradient, moved


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(axis=-1))


def _projections(problem: _Problem, model: _Model, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``left`` and ``right``, zero in the padding."""
    whole = problem.whole(model)
    cross, own = problem.cross(problem.full, whole), problem.cross(whole, whole)
    used = np.concatenate([used, used], axis=-1) if problem.paired else used
    right, left = _divided(cross.P, own.P, used), _divided(cross.Q, own.Q, used)
    gram = right.conj().swapaxes(-1, -2) @ left  # (left^H right)^H
    return left @ np.linalg.pinv(gram, rcond=1e-12), right


def _divided(cross: np.ndarray, own: np.ndarray, used: np.ndarray) -> np.ndarray:
    """``cross @ own^-1`` for a Hermitian ``own``, within the numerical rank of its scaled form."""
    size = np.sqrt(np.diagonal(own, axis1=-2, axis2=-1).real)
    scale = np.where(used & (size > 0), 1.0 / np.where(size > 0, size, 1.0), 0.0)
    inverse = np.linalg.pinv(own * scale[:, :, None] * scale[:, None, :], rcond=1e-13, hermitian=True)
    return (cross * scale[:, None, :]) @ inverse * scale[:, None, :]
