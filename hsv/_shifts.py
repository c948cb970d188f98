"""Shifts of the alternating-direction implicit iteration: where they come from decides how fast it converges."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import scipy.linalg
import scipy.special

from hsv._errors import DtypeError, HsvError
from hsv._pencils import Pencil

_NEARLY_REAL = (
    1e-4  # an angle to the real axis below which a shift is made real: a pair of conjugates would cancel digits
)
_DEPENDENT = 1e-8


class SideState(Protocol):
    """What the choice of shifts may look at: one of the two iterations."""

    adjoint: bool
    residual_factor: np.ndarray  # (n, k)
    blocks: list[np.ndarray]  # the columns of the factor so far


Choice: TypeAlias = Callable[[SideState], "Sequence[complex]"]
"""The next shifts, never none, for the iteration that is behind."""


class Shifts(abc.ABC):
    """A way to choose shifts; a sequence of numbers with negative real parts, used in turn, will do as well."""

    @abc.abstractmethod
    def begin(self, pencil: Pencil, *, paired: bool) -> Choice:
        """Prepare for one pencil. Where `paired`, a complex shift stands for itself and its conjugate."""


@dataclass(frozen=True)
class ProjectionShifts(Shifts):
    r"""Shifts that look where the residual is: the pencil is projected on the columns of the factor so far, and shifts are chosen among the projected eigenvalues.

    In an orthonormal basis ``Q`` of the newest columns, with :math:`E_Q^{-1} A_Q = X \Lambda X^{-1}` and the residual factor :math:`W`, a shift multiplies the
    eigenvalue :math:`\lambda_i`'s part of :math:`X^{-1} E_Q^{-1} Q^H W` by :math:`(\lambda_i - \bar p) / (\lambda_i + p)`. The shift is taken that leaves the
    smallest residual so predicted, then the next, and after a few the basis is renewed.

    Parameters
    ----------
    most_columns : int
        Size of the basis. More find the eigenvalues of systems with many lightly damped modes; the cost is ``O(n most_columns^2)`` a renewal.

    Notes
    -----
    Projected eigenvalues as shifts are Benner, Kürschner and Saak's; the choice among them by the predicted residual is what keeps the number of factorisations
    near the optimum where that is known, and low for damped vibrations, where shifts chosen before the start fail.

    References
    ----------
    Benner, Kürschner, Saak, "Self-generating and efficient shift parameters in ADI methods for large Lyapunov and Sylvester equations", ETNA 43 (2014).

    Examples
    --------
    >>> import hsv
    >>> hsv.ProjectionShifts()
    ProjectionShifts(most_columns=160)
    """

    most_columns: int = 160

    def __post_init__(self) -> None:
        _check_count("most_columns", self.most_columns)

    def begin(self, pencil: Pencil, *, paired: bool) -> Choice:
        def choose(side: SideState) -> Sequence[complex]:
            width = max(side.residual_factor.shape[1], 1)
            columns = min(self.most_columns, max(24, sum(block.shape[1] for block in side.blocks)))
            newest = _newest(side, columns)
            projected = project(pencil, newest, side.residual_factor, adjoint=side.adjoint)
            chosen = _least_residual(projected, max(2, columns // (8 * width)), paired)
            if not chosen:  # the projection of A is zero: any shift of its size moves on
                A, E = pencil.sizes()
                return [complex(-A / E if A > 0 else -1.0)]
            # The dual equation has the shift conj(p) where the other has p.
            return [p.conjugate() for p in chosen] if side.adjoint else chosen

        return choose


@dataclass(frozen=True)
class PenzlShifts(Shifts):
    r"""Penzl's heuristic: shifts once and for all, used in turn, from the eigenvalues that Arnoldi's method finds.

    .. math:: \min_{p_1, \dots, p_l} \max_{\lambda} \prod_j \left| \frac{\lambda - \bar p_j}{\lambda + p_j} \right|

    over projected eigenvalues :math:`\lambda`, large and small ones, by choosing one shift after the other where the product is largest.

    Parameters
    ----------
    n_shifts : int
    n_large, n_small : int
        Steps of Arnoldi's method with :math:`E^{-1} A` and :math:`A^{-1} E`.

    References
    ----------
    Penzl, "A cyclic low-rank Smith method for large sparse Lyapunov equations", SIAM J. Sci. Comput. 21 (1999), algorithms 5.1 and 5.2.

    Examples
    --------
    >>> import hsv
    >>> hsv.PenzlShifts(n_shifts=10)
    PenzlShifts(n_shifts=10, n_large=40, n_small=40)
    """

    n_shifts: int = 20
    n_large: int = 40
    n_small: int = 40

    def __post_init__(self) -> None:
        for name in ("n_shifts", "n_large", "n_small"):
            _check_count(name, getattr(self, name))

    def begin(self, pencil: Pencil, *, paired: bool) -> Choice:
        values = arnoldi_values(pencil, self.n_large, self.n_small)
        chosen = _least_maximum(values, self.n_shifts, paired)
        return lambda side: chosen


@dataclass(frozen=True)
class WachspressShifts(Shifts):
    r"""Wachspress' shifts, optimal for real spectra and nearly so for those near the real axis, from three numbers that Arnoldi's method estimates.

    .. math:: p_j = -\sqrt{a b / k'} \; \mathrm{dn}\!\left(\frac{2j - 1}{2 l} K, k\right), \qquad j = 1, \dots, l

    The numbers: the least :math:`a` and the largest :math:`b` of :math:`|\operatorname{Re} \lambda|`, and the largest angle to the negative real axis.

    Parameters
    ----------
    tolerance : float
        Relative residual that one round of the shifts is to reach; their number follows from it.
    n_large, n_small : int
        As for :class:`PenzlShifts`.

    Raises
    ------
    HsvError
        The spectrum is too wide for real shifts: :class:`ProjectionShifts` is right for it.

    References
    ----------
    Wachspress, "The ADI Model Problem", Springer (2013), chapters 1 and 4.

    Examples
    --------
    >>> import hsv
    >>> hsv.WachspressShifts(tolerance=1e-8)
    WachspressShifts(tolerance=1e-08, n_large=40, n_small=40)
    """

    tolerance: float = 1e-12
    n_large: int = 40
    n_small: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise HsvError(f"tolerance must be a number in (0, 1), got {self.tolerance!r}")
        for name in ("n_large", "n_small"):
            _check_count(name, getattr(self, name))

    def begin(self, pencil: Pencil, *, paired: bool) -> Choice:
        values = arnoldi_values(pencil, self.n_large, self.n_small)
        chosen = wachspress_shifts(values, self.tolerance)
        return lambda side: chosen


@dataclass(frozen=True)
class _GivenShifts(Shifts):
    values: tuple[complex, ...]

    def begin(self, pencil: Pencil, *, paired: bool) -> Choice:
        values = [p for p in self.values if p.imag >= 0 or p.conjugate() not in self.values] if paired else self.values
        return lambda side: [complex(p.real, abs(p.imag)) if paired else p for p in values]


def as_shifts(shifts: Any) -> Shifts:
    """The shifts that an argument means: None, a :class:`Shifts`, or a sequence of numbers."""
    if shifts is None:
        return ProjectionShifts()
    if isinstance(shifts, Shifts):
        return shifts
    if isinstance(shifts, (str, bytes)) or np.ndim(shifts) != 1 or np.asarray(shifts).dtype.kind not in "iufc":
        raise DtypeError(
            f"shifts must be hsv.ProjectionShifts, hsv.PenzlShifts, hsv.WachspressShifts or a sequence of numbers, got {shifts!r}"
        )
    values = tuple(complex(p) for p in shifts)
    wrong = [p for p in values if not (p.real < 0 and math.isfinite(abs(p)))]
    if wrong or not values:
        raise HsvError(f"shifts must be finite numbers with negative real parts, at least one, got {shifts!r}")
    return _GivenShifts(values)


@dataclass(frozen=True)
class Projected:
    """A pencil in a small basis: eigenvalues, eigenvectors, and the residual in their coordinates."""

    values: np.ndarray  # (k,)
    vectors: np.ndarray  # (k, k)
    parts: np.ndarray  # (k, m)
    basis: np.ndarray  # (n, k)


def project(pencil: Pencil, columns: np.ndarray, residual: np.ndarray, *, adjoint: bool) -> Projected:
    """Project on the span of `columns`; what cannot be divided by the projected ``E`` is left out."""
    Q = orthonormal(columns)
    A, E = (Q.conj().T @ f(Q, adjoint=adjoint) for f in (pencil.apply, pencil.mass))
    U, s, Vh = np.linalg.svd(E)  # E may be indefinite, and its projection singular where E is not
    keep = s > 1e-12 * s[0]
    divide = (Vh[keep].conj().T / s[keep]) @ U[:, keep].conj().T
    values, vectors = np.linalg.eig(divide @ A)
    if not np.all(keep):
        real = np.argsort(-abs(values))[: int(keep.sum())]
        values, vectors = values[real], vectors[:, real]
    parts = np.linalg.lstsq(vectors, divide @ (Q.conj().T @ residual), rcond=None)[0]
    return Projected(values, vectors, parts, Q)


def arnoldi_values(pencil: Pencil, n_large: int, n_small: int) -> np.ndarray:
    """Eigenvalues of projections of ``E^{-1} A`` and of ``A^{-1} E``, those in the left half plane."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(pencil.n_states).astype(np.complex128 if pencil.is_complex else np.float64)
    E, A = pencil.mass_factorization(), pencil.shifted(0.0)
    large = _arnoldi(lambda x: E.solve(pencil.apply(x)), start, n_large)
    small = _arnoldi(lambda x: A.solve(pencil.mass(x)), start, n_small)
    values = np.concatenate([large, 1 / small[small != 0]])
    values = values[(values.real < 0) & np.isfinite(values)]
    if len(values) == 0:
        raise HsvError(
            "Arnoldi's method found no eigenvalue in the left half plane; pass hsv.ProjectionShifts or numbers"
        )
    return values


def _arnoldi(multiply: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int) -> np.ndarray:
    """Eigenvalues of the Hessenberg matrix after so many steps, or fewer where the space is invariant."""
    steps = min(steps, len(start))
    V = np.zeros((len(start), steps + 1), dtype=start.dtype)
    H = np.zeros((steps + 1, steps), dtype=start.dtype)
    V[:, 0] = start / np.linalg.norm(start)
    for k in range(steps):
        w = multiply(V[:, k : k + 1])[:, 0]
        size = np.linalg.norm(w)
        for _ in range(2):
            h = V[:, : k + 1].conj().T @ w
            w = w - V[:, : k + 1] @ h
            H[: k + 1, k] += h
        H[k + 1, k] = np.linalg.norm(w)
        if abs(H[k + 1, k]) <= 1e-12 * size:
            return np.linalg.eigvals(H[: k + 1, : k + 1])
        V[:, k + 1] = w / H[k + 1, k]
    return np.linalg.eigvals(H[:steps, :steps])


def wachspress_shifts(values: np.ndarray, tolerance: float) -> list[complex]:
    """Wachspress' shifts for a spectrum of which `values` are samples."""
    a, b = float(np.min(-values.real)), float(np.max(-values.real))
    if b <= a * (1 + 1e-12):
        return [complex(-a)]
    cosine = float(np.min(-values.real / abs(values)))
    m = cosine**2 * (1 + (a / b + b / a) / 2) - 1
    if m <= 1:
        raise HsvError(
            f"WachspressShifts: eigenvalues up to {math.degrees(math.acos(cosine)):.0f} degrees from the real axis are too far from it for real shifts; "
            "use hsv.ProjectionShifts"
        )
    complementary = 1 / (m + math.sqrt(m * m - 1))  # k'
    K = float(scipy.special.ellipkm1(complementary**2))
    angle = math.asin(min(1.0, math.sqrt(a / (b * complementary))))
    v = float(scipy.special.ellipkinc(angle, complementary**2))
    count = max(
        1, math.ceil(K / (2 * math.pi * v) * math.log(4 / tolerance))
    )  # the residual is the square of the product
    scale = math.sqrt(a * b / complementary)
    return [complex(-scale * _dn((j + 0.5) / count * K, complementary, K)) for j in range(count)]


def _dn(u: float, complementary: float, K: float) -> float:
    """Jacobi's ``dn`` for a modulus next to 1: of ``u`` and ``K - u``, whose values have the product ``k'``, the smaller has all its digits."""
    if u > K / 2:
        return complementary / _dn(K - u, complementary, K)
    return float(scipy.special.ellipj(u, 1 - complementary**2)[2])


def orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns, each of which counts the same whatever its length; directions that rounding made are left out."""
    sizes = np.linalg.norm(columns, axis=0)
    scaled = columns[:, sizes > 0] / sizes[sizes > 0]
    Q, R, _ = scipy.linalg.qr(scaled, mode="economic", pivoting=True, overwrite_a=True, check_finite=False)
    diagonal = abs(np.diag(R))
    return np.asarray(Q[:, diagonal > _DEPENDENT * diagonal[0]])


def _newest(side: SideState, columns: int) -> np.ndarray:
    """At least so many of the newest columns of the factor; the residual where there is none yet."""
    if not side.blocks:
        return side.residual_factor
    count, first = 0, len(side.blocks)
    while first > 0 and count < columns:
        first -= 1
        count += side.blocks[first].shape[1]
    return np.concatenate(side.blocks[first:], axis=1)


def _stable(values: np.ndarray) -> np.ndarray:
    """Values in the left half plane; mirrored where a projection put them on the right, and made real where they nearly are."""
    values = values[values != 0]
    real = np.where(values.real == 0, -abs(values), -abs(values.real))
    imaginary = np.where(abs(values.imag) < _NEARLY_REAL * abs(real), 0.0, values.imag)
    return np.asarray(real + 1j * imaginary)


def _damping(values: np.ndarray, shift: complex, paired: bool) -> np.ndarray:
    """What a shift, or a pair of them, multiplies the parts of the residual by."""
    factor = (values - np.conj(shift)) / (values + shift)
    if paired and shift.imag != 0:
        factor = factor * (values - shift) / (values + np.conj(shift))
    return np.asarray(factor)


def _least_residual(projected: Projected, count: int, paired: bool) -> list[complex]:
    """Shifts one after the other, each leaving the least residual that the projection predicts."""
    seen = projected.values != 0
    values, vectors, parts = _stable(projected.values), projected.vectors[:, seen], projected.parts[seen]
    candidates = values.conj()
    if paired:
        candidates = candidates[candidates.imag >= 0]
    chosen: list[complex] = []
    for _ in range(min(count, len(candidates))):
        damped = [_damping(values, p, paired)[:, None] * parts for p in candidates]
        best = int(np.argmin([np.linalg.norm(vectors @ x) for x in damped]))
        chosen.append(complex(candidates[best]))
        parts, candidates = damped[best], np.delete(candidates, best)
    return chosen


def _least_maximum(values: np.ndarray, count: int, paired: bool) -> list[complex]:
    """Penzl's choice among the values."""
    values = _stable(values)
    candidates = values.conj()
    if paired:
        candidates = candidates.real + 1j * abs(candidates.imag)
    costs = [float(np.max(abs(_damping(values, p, paired)))) for p in candidates]
    chosen = [complex(candidates[int(np.argmin(costs))])]
    product = abs(_damping(values, chosen[0], paired))
    while len(chosen) < count and product.max() > 0:
        chosen.append(complex(candidates[int(np.argmax(product))]))
        product = product * abs(_damping(values, chosen[-1], paired))
    return chosen


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise HsvError(f"{name} must be an int of at least 1, got {value!r}")
