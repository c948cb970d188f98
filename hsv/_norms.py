"""H2, H-infinity and Hankel norms, and the H-infinity error of a reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsv import _kernels
from hsv._array import (
    Array,
    conjugate_transpose,
    from_host,
    namespace,
    real,
    round_to,
    say_copied,
    squared_modulus,
    to_host,
    widen,
)
from hsv._errors import HsvError, ShapeError
from hsv._gramians import check_horizon, controllability_gramian, factor, require_stable
from hsv._hankel import hankel_singular_values
from hsv._large_systems import LargeSystem
from hsv._lyapunov import check_stable, schur_form
from hsv._scaling import even_exponents, exponents, shifted
from hsv._systems import (
    DiagonalStateSpace,
    LinearSystem,
    StateSpace,
    in_double_precision,
    require_dense,
    require_system,
    without_gradient,
)


def h2_norm(sys: LinearSystem, horizon: float | None = None) -> Array:
    r"""Return the H2 norm: the energy of the impulse response, summed over inputs and outputs.

    .. math:: \|G\|_2^2 = \operatorname{tr}(D D^H) + \sum_{k \ge 0} \|C A^k B\|_F^2
              \qquad\text{or}\qquad \|G\|_2^2 = \int_0^\infty \|C e^{At} B\|_F^2\,dt

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
    horizon : int or float, optional
        Sum over that many terms, integrate over that many seconds instead of for ever; the system may then be unstable. ``h2_norm(sys - reduced, horizon)`` is the error
        on a window.

    Returns
    -------
    array
        Shape ``(...)``, real; array type, device and precision of the input. Infinite for a continuous system with ``D != 0``,
        whose impulse response holds a Dirac impulse. Discrete sums count steps, whatever the length of a step.

    Raises
    ------
    UnstableSystemError

    Notes
    -----
    :math:`\|C L\|_F` with the factor :math:`P = L L^H` of the controllability Gramian, never the trace of a product with ``P``:
    nothing is subtracted, so also the norm of a difference of two close systems has an error of only ``eps`` times the norm of
    each. ``O(n^3)``. With a horizon in discrete time from the impulse response, in continuous time from the Gramian: an error below ``1e-8`` of the norms of
    the two systems is rounding there.

    Examples
    --------
    >>> import hsv
    >>> float(hsv.h2_norm(hsv.StateSpace([[0.6]], [[4.0]], [[1.0]], dt=True)))        # sqrt(16 / (1 - 0.36))
    5.0
    >>> float(hsv.h2_norm(hsv.StateSpace([[-2.0]], [[6.0]], [[1.0]], dt=0)))          # sqrt(36 / 4)
    3.0
    """
    require_system(sys)
    xp = namespace(sys.B)
    if horizon is not None:
        strictly_proper = _norm_on_a_window(sys, horizon)
    else:
        sys = without_gradient(sys)
        strictly_proper = xp.linalg.vector_norm(widen(sys.C) @ factor(sys), axis=(-2, -1))
    if sys.is_discrete:
        norm = xp.hypot(strictly_proper, xp.linalg.vector_norm(widen(sys.D), axis=(-2, -1)))
    else:
        norm = xp.where(xp.any(sys.D != 0, axis=(-2, -1)), xp.inf, strictly_proper)
    return round_to(norm, real(sys.B))


def _norm_on_a_window(sys: LinearSystem, horizon: float) -> Array:
    """The norm of the strictly proper part."""
    xp = namespace(sys.B)
    check_horizon(sys, horizon)
    sys = in_double_precision(sys)
    if sys.is_discrete:
        assert isinstance(sys, StateSpace | DiagonalStateSpace)
        response = sys.impulse_response(int(horizon) + 1)[..., 1:, :, :]
        return xp.sqrt(xp.sum(squared_modulus(response), axis=(-3, -2, -1)))
    C = sys.C
    energy = xp.sum(xp.linalg.diagonal(C @ controllability_gramian(sys, horizon) @ conjugate_transpose(C)), axis=-1)
    energy = real(energy)
    return xp.sqrt(xp.where(energy > 0, energy, xp.zeros_like(energy)))


def hankel_norm(sys: LinearSystem) -> Array:
    r"""Return the Hankel norm, the largest Hankel singular value :math:`\sigma_1`.

    The gain from the energy of past inputs to that of the output they leave behind; ``D`` has no part in it. Always between
    ``hinf_norm / (2 n)`` and ``hinf_norm`` (for ``D = 0``). For differences of systems it bounds the drift of every Hankel singular
    value, :math:`|\sigma_i(G_1) - \sigma_i(G_2)| \le \|G_1 - G_2\|_H`.

    Returns
    -------
    array
        Shape ``(...)``, real; array type, device and precision of the input.

    Raises
    ------
    UnstableSystemError

    See Also
    --------
    hankel_singular_values : all of them, at the same cost.

    Examples
    --------
    >>> import hsv
    >>> round(float(hsv.hankel_norm(hsv.StateSpace([[0.5]], [[1.0]], [[3.0]], dt=True))), 12)    # 3 / (1 - 0.25)
    4.0
    """
    require_system(sys, LargeSystem)
    return hankel_singular_values(sys)[..., 0]


def hinf_norm(sys: LinearSystem) -> Array:
    r"""Return the H-infinity norm: the largest gain over all frequencies.

    .. math:: \|G\|_\infty = \sup_w \sigma_{\max}(G(e^{iw})) \qquad\text{or}\qquad \sup_w \sigma_{\max}(G(iw)),
              \qquad G(z) = C (zI - A)^{-1} B + D

    Frequencies of both signs count for a complex system.

    Returns
    -------
    array
        Shape ``(...)``, real; array type, device and precision of the input.

    Raises
    ------
    UnstableSystemError
        A pole lies on or outside the stability boundary.

    See Also
    --------
    hinf_error : the norm of a difference, cheaper and without forming the difference.
    hankel_norm : within a factor ``2 n`` of it, without any search.

    Notes
    -----
    Two steps. A refined frequency grid gives a gain that is reached somewhere: every pole's frequency, one damping width to each side of it, 0 and
    the highest frequency, and a uniform grid (continuous time: a logarithmic one, and infinity), with the highest local maxima enclosed and refined.
    Then the level-set method looks for what the grid has missed: a level :math:`\gamma` is exceeded somewhere if and only if the Hamiltonian matrix

    .. math:: \begin{pmatrix} A + B R^{-1} D^H C & B R^{-1} B^H \\ -C^H (I + D R^{-1} D^H) C & -(A + B R^{-1} D^H C)^H \end{pmatrix},
              \qquad R = \gamma^2 I - D^H D

    has eigenvalues on the imaginary axis, at the frequencies where a gain is exactly :math:`\gamma`. Between them the gain is looked up, and the search
    ends when nothing exceeds :math:`(1 + 10^{-9})` times the best. Discrete systems go there by a bilinear map about a point of the unit circle far from poles.
    The result is a gain that is reached, and to rounding no gain is larger by more than ``1e-9``, relatively.

    ``O((2n)^3)``, mostly for the eigenvalues; in double precision on the host.

    References
    ----------
    Bruinsma and Steinbuch, "A fast algorithm to compute the H-infinity norm of a transfer function matrix", Systems & Control Letters 14 (1990).

    Examples
    --------
    >>> import hsv
    >>> float(hsv.hinf_norm(hsv.StateSpace([[0.5]], [[1.0]], [[3.0]], dt=True)))     # at z = 1: 3 / (1 - 0.5)
    6.0
    """
    require_system(sys)
    return _largest_gain(sys)


def hinf_error(sys: LinearSystem, reduced: LinearSystem) -> Array:
    r"""Return :math:`\|G - G_r\|_\infty`, what the reduction may change of a unit sine at the worst frequency.

    Parameters
    ----------
    sys, reduced : StateSpace or DiagonalStateSpace
        Same inputs, outputs and ``dt``; the order matters not. The batch axes broadcast.

    Returns
    -------
    array
        Shape ``(...)``, real; array type, device and precision of `sys`.

    Raises
    ------
    UnstableSystemError
        One of them has a pole on or outside the stability boundary.
    ShapeError, HsvError
        They differ in inputs, outputs or ``dt``.

    Notes
    -----
    Equal to ``hinf_norm(sys - reduced)``, and as far to be trusted, but both responses are evaluated each in its own form (a diagonal
    system stays one) and subtracted at each frequency. An error below ``1e-15`` of the gain of `sys` is rounding.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.5, -0.5], [[1.0], [1.0]], [[3.0, 1.0]], dt=True)
    >>> reduced = hsv.StateSpace([[0.5]], [[1.0]], [[3.0]], dt=True)
    >>> float(hsv.hinf_error(sys, reduced))                                          # at z = -1: 1 / (1 - 0.5)
    2.0
    """
    require_system(sys)
    require_system(reduced, name="reduced")
    if (sys.n_inputs, sys.n_outputs) != (reduced.n_inputs, reduced.n_outputs):
        raise ShapeError(
            f"reduced must have the inputs and outputs of sys, {sys.n_inputs} -> {sys.n_outputs}, got {reduced.n_inputs} -> {reduced.n_outputs}"
        )
    if reduced.dt != sys.dt or (reduced.dt is True) != (sys.dt is True):
        raise HsvError(f"reduced must have the dt of sys, {sys.dt!r}, got {reduced.dt!r}")
    return _largest_gain(sys, reduced)


def _largest_gain(*systems: LinearSystem) -> Array:
    """H-infinity norm of the first system less the others: the one place that knows how it is found."""
    first = systems[0]
    batch = np.broadcast_shapes(*(s.batch_shape for s in systems))
    for s in systems:
        require_stable(s)
    say_copied(first.B, "the search for the largest gain", stacklevel=4)
    difference = _Difference.of(systems, batch)
    gain = _exceed_nowhere(difference, _peak(difference)).reshape(batch)
    return round_to(from_host(gain, first.B), real(first.B))


# Seeds and rounds of the search. Each round divides an enclosing interval by 4, and a gain is quadratic in the distance to its peak:
# 12 rounds give 1e-14 of the gain from an interval of one damping width. Eight candidates, of which two go on after 3 rounds, found every
# peak that 64 found on the random systems of the tests.
_UNIFORM = 129
_CANDIDATES, _FINALISTS = 8, 2
_ROUNDS, _FINAL_ROUNDS = 3, 9
_INTERIOR = np.arange(1, 8) / 8
_CHUNK = 2**21  # complex numbers in the largest intermediate array: 32 MiB


def _peak(system: _Difference) -> np.ndarray:
    """Return the largest gain of every system of the batch ``(k,)``."""
    if system.n_systems == 0:
        return np.empty(0)
    w = _candidate_frequencies(system)
    gains = np.where(np.isfinite(w), system.gain(np.where(np.isfinite(w), w, 0.0)), -np.inf)
    best = gains.max(axis=1)
    if not system.discrete:
        best = np.maximum(best, _spectral_norm(system.D))  # at infinity
    low, high, height = _local_maxima(system, w, gains)
    for n_kept, n_rounds in ((_CANDIDATES, _ROUNDS), (_FINALISTS, _FINAL_ROUNDS)):
        order = np.argsort(-height, axis=1)[:, :n_kept]
        low, high, height = (np.take_along_axis(x, order, axis=1) for x in (low, high, height))
        for _ in range(n_rounds):
            inside = low[..., None] + (high - low)[..., None] * _INTERIOR  # (k, candidates, 7)
            found = system.gain(inside.reshape(len(inside), -1)).reshape(inside.shape)
            top = found.argmax(axis=-1)[..., None]
            centre = np.take_along_axis(inside, top, axis=-1)[..., 0]
            eighth = (high - low) * _INTERIOR[0]
            low, high = centre - eighth, centre + eighth
            height = np.take_along_axis(found, top, axis=-1)[..., 0]
            best = np.maximum(best, height.max(axis=1))
    return best


_LEVEL_TOLERANCE = 1e-9
_NEAR_AXIS = 1e-6  # a peak that only touches the level is a double eigenvalue, which rounding moves off the axis by its square root


def _exceed_nowhere(system: _Difference, best: np.ndarray) -> np.ndarray:
    """Raise each gain ``(k,)`` until the level-set method finds no frequency with a larger one."""
    if not system.n_systems:
        return best
    A, B, C, D, frequency = system.continuous_realisation()
    best = np.maximum(best, _spectral_norm(D))  # at infinity, which is between no two crossings
    active = np.flatnonzero(best > 0)
    while active.size:
        level = best[active] * (1 + _LEVEL_TOLERANCE)
        eigenvalues = np.linalg.eigvals(_hamiltonian(A[active], B[active], C[active], D[active], level))
        size = np.abs(eigenvalues)
        near = np.abs(eigenvalues.real) <= _NEAR_AXIS * (size + size.max(axis=1, keepdims=True) * _NEAR_AXIS)
        found = best[active].copy()
        for row, index in enumerate(active):
            w = np.sort(eigenvalues.imag[row, near[row]])
            if w.size:
                w = frequency(int(index), np.concatenate([w, 0.5 * (w[1:] + w[:-1])]))
                found[row] = max(found[row], float(system.select(int(index)).gain(w[None]).max()))
        best[active] = found
        active = active[found > level]
    return best


def _hamiltonian(A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray, level: np.ndarray) -> np.ndarray:
    def adjoint(x: np.ndarray) -> np.ndarray:
        return x.conj().swapaxes(-1, -2)

    # Scaled to level 1 by C and D, and B and C to like size: the Hamiltonian's two halves are, too, and their products stay in range.
    C, D = C / level[:, None, None], D / level[:, None, None]
    B, C = _with_even_sizes(B, C)
    R = np.eye(D.shape[-1]) - adjoint(D) @ D
    K = np.linalg.solve(R, np.concatenate([adjoint(D) @ C, adjoint(B)], axis=-1))
    DC, BH = K[..., : A.shape[-1]], K[..., A.shape[-1] :]
    closed = A + B @ DC
    return np.concatenate(
        [
            np.concatenate([closed, B @ BH], axis=-1),
            np.concatenate([-adjoint(C) @ (C + D @ DC), -adjoint(closed)], axis=-1),
        ],
        axis=-2,
    )


def _with_even_sizes(B: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``B`` and ``C`` of like size, by a power of two that leaves the transfer function as it is."""
    even = even_exponents(exponents(B), exponents(C))
    return shifted(B, -even), shifted(C, even)


def _candidate_frequencies(system: _Difference) -> np.ndarray:
    """Distinct frequencies ``(k, f)`` in rad/sample or rad/s, ascending; rows that have fewer end in ``inf``."""
    centre, width = system.pole_frequencies()
    near_poles = np.concatenate([centre, centre - width, centre + width], axis=1)
    if system.discrete:
        seeds = near_poles - 2 * np.pi * np.round(near_poles / (2 * np.pi))
        common = np.broadcast_to(np.linspace(-np.pi, np.pi, _UNIFORM), (len(seeds), _UNIFORM))
    else:
        modulus = np.hypot(centre, width)
        seeds = np.concatenate([near_poles, modulus, -modulus], axis=1)
        exponents = np.linspace(-1.0, 1.0, _UNIFORM // 2)
        # one decade beyond the fastest and the slowest pole
        slow, fast = np.log10(modulus.min(axis=1)) - 1, np.log10(modulus.max(axis=1)) + 1
        grid = 10.0 ** (0.5 * (slow + fast)[:, None] + 0.5 * (fast - slow)[:, None] * exponents)
        common = np.concatenate([-grid, np.zeros((len(grid), 1)), grid], axis=1)
    w = np.concatenate([seeds, common], axis=1)
    w = np.sort(np.abs(w) if system.real else w, axis=1)
    # Copies that differ by rounding would enclose nothing between them: a conjugate pair gives two of each frequency.
    w[:, 1:][
        np.diff(w, axis=1)
        <= 4 * np.finfo(np.float64).eps * np.maximum(1.0 if system.discrete else 0.0, np.abs(w[:, 1:]))
    ] = np.inf
    w = np.sort(w, axis=1)
    return w[:, : int(np.isfinite(w).sum(axis=1).max())]


def _local_maxima(system: _Difference, w: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enclose each grid point that is no lower than its neighbours: lower and upper ends and heights ``(k, f)``; -inf where there is none."""
    rows, last = np.arange(len(w)), np.isfinite(w).sum(axis=1) - 1
    before, after = np.roll(w, 1, axis=1), np.roll(w, -1, axis=1)
    left, right = np.roll(gains, 1, axis=1), np.roll(gains, -1, axis=1)
    if system.real:  # the gain is even about 0, and about pi
        before[:, 0], left[:, 0] = -after[:, 0], right[:, 0]
        after[rows, last] = 2 * np.pi - before[rows, last] if system.discrete else 2 * w[rows, last]
        right[rows, last] = left[rows, last] if system.discrete else -np.inf
    elif system.discrete:  # -pi and pi are one frequency
        before[:, 0], left[:, 0] = w[rows, last] - 2 * np.pi, -np.inf
        after[rows, last], right[rows, last] = w[:, 0] + 2 * np.pi, -np.inf
    else:
        before[:, 0], left[:, 0] = 2 * w[:, 0], -np.inf
        after[rows, last], right[rows, last] = 2 * w[rows, last], -np.inf
    is_peak = (gains >= left) & (gains >= right) & np.isfinite(w)
    low, high = np.where(is_peak, before, 0.0), np.where(is_peak, after, 0.0)
    return low, high, np.where(is_peak, gains, -np.inf)


@dataclass(frozen=True)
class _DenseResponse:
    """``C (zI - S)^-1 B`` with ``S`` upper triangular: ``S (k, n, n)``, ``B (k, n, m)``, ``C (k, p, n)``."""

    S: np.ndarray
    B: np.ndarray
    C: np.ndarray

    @property
    def work(self) -> int:
        return max(self.B.shape[1] * self.B.shape[2], self.C.shape[1] * self.B.shape[2])

    def poles(self) -> np.ndarray:
        return np.diagonal(self.S, axis1=-2, axis2=-1)

    def state_matrix(self) -> np.ndarray:
        return self.S

    def select(self, rows: slice) -> _DenseResponse:
        return _DenseResponse(self.S[rows], self.B[rows], self.C[rows])

    def evaluate(self, rows: slice, z: np.ndarray) -> np.ndarray:
        return self.C[rows, None] @ _kernels.triangular_resolvent(self.S[rows], z, self.B[rows])


@dataclass(frozen=True)
class _DiagonalResponse:
    """``C diag(1 / (z - l)) B``: ``l (k, n)``, ``B (k, n, m)``, ``C (k, p, n)``."""

    diagonal: np.ndarray
    B: np.ndarray
    C: np.ndarray

    @property
    def work(self) -> int:
        return max(self.C.shape[1] * self.B.shape[1], self.C.shape[1] * self.B.shape[2])

    def poles(self) -> np.ndarray:
        return self.diagonal

    def state_matrix(self) -> np.ndarray:
        return self.diagonal[:, :, None] * np.eye(self.diagonal.shape[1])

    def select(self, rows: slice) -> _DiagonalResponse:
        return _DiagonalResponse(self.diagonal[rows], self.B[rows], self.C[rows])

    def evaluate(self, rows: slice, z: np.ndarray) -> np.ndarray:
        resolvent = 1.0 / (z[:, :, None] - self.diagonal[rows, None, :])  # (k, f, n)
        return (self.C[rows, None] * resolvent[:, :, None, :]) @ self.B[rows, None]


@dataclass(frozen=True)
class _Difference:
    """The first response less the others, plus ``D``, on the host, with the batch as one axis ``k``."""

    responses: tuple[_DenseResponse | _DiagonalResponse, ...]
    D: np.ndarray  # (k, p, m)
    discrete: bool
    real: bool

    @classmethod
    def of(cls, systems: tuple[LinearSystem, ...], batch: tuple[int, ...]) -> _Difference:
        def flat(x: Any) -> Any:
            host = to_host(widen(x))
            return np.broadcast_to(host, (*batch, *host.shape[-2:])).reshape(-1, *host.shape[-2:])

        # G and its transpose have the same gain: fewer inputs than outputs make the resolvent cheaper.
        swap = systems[0].n_outputs < systems[0].n_inputs
        responses: list[_DenseResponse | _DiagonalResponse] = []
        D: Any = 0.0
        for sign, s in zip((1.0, *(-1.0 for _ in systems[1:])), systems, strict=True):
            B, C = _with_even_sizes(flat(s.B), sign * flat(s.C))
            D = D + sign * flat(s.D)
            if isinstance(s, DiagonalStateSpace):
                poles = flat(s.poles()[..., None, :])[:, 0, :]
                B, C = (C.swapaxes(-1, -2), B.swapaxes(-1, -2)) if swap else (B, C)
                responses.append(
                    _DiagonalResponse(*(np.ascontiguousarray(x, dtype=np.complex128) for x in (poles, B, C)))
                )
                continue
            s = require_dense(s)
            A = flat(s.A)
            A, B, C = (A.swapaxes(-1, -2), C.swapaxes(-1, -2), B.swapaxes(-1, -2)) if swap else (A, B, C)
            triangle, z = schur_form(A)
            poles = np.diagonal(triangle, axis1=-2, axis2=-1).reshape(*batch, s.n_states)
            check_stable(poles, discrete=s.is_discrete)
            B, C = z.conj().swapaxes(-1, -2) @ B, C @ z
            responses.append(_DenseResponse(*(np.ascontiguousarray(x, dtype=np.complex128) for x in (triangle, B, C))))
        D = D.swapaxes(-1, -2) if swap else D
        is_real = all(not s.is_complex or getattr(s, "_conjugate_pairs", False) for s in systems)
        return cls(tuple(responses), D.astype(np.complex128), systems[0].is_discrete, is_real)

    @property
    def n_systems(self) -> int:
        return len(self.D)

    def select(self, index: int) -> _Difference:
        """One system of the batch, as a batch of one."""
        one = slice(index, index + 1)
        return _Difference(tuple(r.select(one) for r in self.responses), self.D[one], self.discrete, self.real)

    def continuous_realisation(
        self,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Callable[[int, np.ndarray], np.ndarray]]:
        """``A, B, C, D`` of a continuous system with the same gains, and the map from a system's number and its frequencies to ours."""
        n = sum(r.poles().shape[1] for r in self.responses)
        A = np.zeros((self.n_systems, n, n), np.complex128)
        place = 0
        for r in self.responses:
            states = slice(place, place + r.poles().shape[1])
            A[:, states, states] = r.state_matrix()
            place = states.stop
        B = np.concatenate([r.B for r in self.responses], axis=1)
        C = np.concatenate([r.C for r in self.responses], axis=2)
        if not self.discrete:
            return A, B, C, self.D, lambda index, w: w
        # z = -turn is mapped to infinity. It must be far from the poles, and its gain far below the largest: a level that is
        # touched at infinity has a Hamiltonian with infinite eigenvalues.
        angles = 2 * np.pi * np.arange(64) / 64
        poles = np.concatenate([r.poles() for r in self.responses], axis=1)
        distance = np.abs(poles[:, :, None] - np.exp(1j * angles)).min(axis=1)  # (k, 64)
        far = distance >= 0.5 * distance.max(axis=1, keepdims=True)
        gains = self.gain(np.broadcast_to(angles, distance.shape))
        chosen = np.where(far, gains, np.inf).argmin(axis=1)
        turn = -np.exp(1j * angles[chosen])[:, None, None]
        resolvent = np.linalg.inv(np.eye(n) + A / turn)
        root = np.sqrt(2.0)
        BB = resolvent @ (B / turn)
        angle = np.angle(turn[:, 0, 0])
        return (
            resolvent @ (A / turn - np.eye(n)),
            root * BB,
            root * C @ resolvent,
            self.D - C @ BB,
            lambda index, w: angle[index] + 2 * np.arctan(w),
        )

    def pole_frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequency and damping width of every pole, ``(k, n)`` each."""
        poles = np.concatenate([r.poles() for r in self.responses], axis=1)
        return (np.angle(poles), 1.0 - np.abs(poles)) if self.discrete else (poles.imag, -poles.real)

    def gain(self, w: np.ndarray) -> np.ndarray:
        """Largest singular value at each frequency, ``(k, f)``, in pieces that fit into the cache of a small machine."""
        z = np.exp(1j * w) if self.discrete else 1j * w
        gains = np.empty(w.shape)
        work = max(r.work for r in self.responses)
        n_frequencies = min(w.shape[1], max(1, _CHUNK // work))
        n_systems = max(1, _CHUNK // (work * n_frequencies))
        for k in range(0, w.shape[0], n_systems):
            rows = slice(k, k + n_systems)
            for f in range(0, w.shape[1], n_frequencies):
                columns = slice(f, f + n_frequencies)
                total = sum((r.evaluate(rows, z[rows, columns]) for r in self.responses), self.D[rows, None])
                gains[rows, columns] = _spectral_norm(total)
        return gains


def _spectral_norm(matrices: np.ndarray) -> np.ndarray:
    """Largest singular value over the last two axes, from the smaller Gram matrix: the largest eigenvalue loses no digits there."""
    p, m = matrices.shape[-2:]
    sizes = np.abs(matrices)
    if p == m == 1:
        return np.asarray(sizes[..., 0, 0])
    scale = np.max(sizes, axis=(-2, -1), keepdims=True)
    unit = np.where(scale > 0, scale, 1.0)
    if min(p, m) == 1:
        return scale[..., 0, 0] * np.linalg.norm(sizes / unit, axis=(-2, -1))
    scaled = matrices / unit
    adjoint = scaled.conj().swapaxes(-1, -2)
    largest = np.linalg.eigvalsh(adjoint @ scaled if m <= p else scaled @ adjoint)[..., -1]
    return scale[..., 0, 0] * np.sqrt(np.maximum(largest, 0.0))
