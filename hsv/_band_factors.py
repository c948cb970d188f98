r"""Factors of the Gramians of a band of frequencies, by quadrature: no Gramian is formed, and small values keep their digits.

Gauss' rule over pieces of the band, each so short that every pole is far from it on its scale. An ellipse with the foci at the ends of a piece, and with :math:`\varrho` the sum of its half axes in
units of half the piece, that has no pole inside leaves an error of about :math:`\varrho^{-2k}` of ``k`` nodes. Pieces are halved until :math:`\varrho` is 3.5 for all poles.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from hsv._array import Array, on_host, widen
from hsv._blas import triangle
from hsv._lyapunov import adjoint, check_stable, schur_form
from hsv._systems import StateSpace

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)  # 3.5^-40 is 2e-22
_ELLIPSE = 3.5
_MOST_PIECES = 500  # 10,000 nodes: as long as the logarithms of matrices take at 1,000 states
_Pieces = list[tuple[float, float]]


def band_factor(sys: StateSpace, edges: list[tuple[float, float]]) -> Array | None:
    """A factor ``(..., n, n)`` of the controllability Gramian of the bands, whose edges are those of `checked_bands`; None where poles are so lightly damped that too many nodes would be needed."""
    found: list[np.ndarray] = []

    def compute(A: np.ndarray, B: np.ndarray) -> np.ndarray:
        factor = _factor_on_host(A, B, edges, discrete=sys.is_discrete)
        if factor is not None:
            found.append(factor)
        return A if factor is None else factor

    factor = on_host(compute, widen(sys.A), widen(sys.B), reason="the Schur form")
    return factor if found else None


def _factor_on_host(
    A: np.ndarray, B: np.ndarray, edges: list[tuple[float, float]], *, discrete: bool
) -> np.ndarray | None:
    T, Z = schur_form(A)
    poles = np.diagonal(T, axis1=-2, axis2=-1)
    check_stable(poles, discrete=discrete)
    factor = np.empty((*A.shape[:-2], A.shape[-1], A.shape[-1]), np.result_type(A, B))
    for index in np.ndindex(*A.shape[:-2]):
        nodes = _nodes(poles[index], edges, discrete=discrete)
        if nodes is None:
            return None
        rotated = adjoint(Z[index]) @ B[index]
        factor[index] = _one_factor(T[index], Z[index], rotated, nodes, real=not np.iscomplexobj(factor))
    return factor


def _one_factor(
    T: np.ndarray, Z: np.ndarray, B: np.ndarray, nodes: list[tuple[complex, float, float]], *, real: bool
) -> np.ndarray:
    """Columns ``sqrt(w) (s I - scale T)^-1 B`` of all nodes, compressed as they come."""
    n, identity = len(T), np.eye(len(T))
    kept, columns, count = np.zeros((n, 0), B.dtype), [], 0
    for s, scale, weight in nodes:
        for point in (
            (s,) if real else (s, s.conjugate())
        ):  # both signs of frequency; for a real system they are conjugate
            shifted = point * identity - scale * T
            solved = scipy.linalg.solve_triangular(shifted, B, check_finite=False, overwrite_b=False)
            columns.append(math.sqrt(weight / (2 * math.pi)) * solved)
            count += B.shape[-1]
        if count > 4 * n:
            kept, columns, count = adjoint(triangle(adjoint(np.hstack([kept, *columns])))), [], 0
    found = Z @ np.hstack([kept, *columns])
    if real:
        found = math.sqrt(2.0) * np.hstack([found.real, found.imag])
    if found.shape[-1] < n:
        found = np.hstack([found, np.zeros((n, n - found.shape[-1]), found.dtype)])
    return adjoint(triangle(adjoint(found)))


def _nodes(
    poles: np.ndarray, edges: list[tuple[float, float]], *, discrete: bool
) -> list[tuple[complex, float, float]] | None:
    """``(s, scale, weight)`` of all nodes on the positive side: the resolvent is that of ``s I - scale A``."""
    nodes = []
    largest = float(np.abs(poles).max())
    for low, high in edges:
        parts = []  # from, to, the poles in this variable, whether it is one over the frequency
        if discrete:
            moving = poles[poles != 0]
            angles = -1j * np.log(moving)
            around = np.concatenate([angles - 2 * np.pi, angles, angles + 2 * np.pi])
            parts.append((low, high, np.concatenate([around, -around.conj()]), False))
        else:
            finite = high if math.isfinite(high) else max(2 * largest, low)
            if low < finite:
                parts.append((low, finite, np.concatenate([-1j * poles, 1j * poles.conj()]), False))
            if not math.isfinite(high):
                parts.append((0.0, 1 / finite, np.concatenate([1j / poles, -1j / poles.conj()]), True))
        for first, last, singular, inverse in parts:
            pieces = _pieces(first, last, np.concatenate([singular, singular.conj()]))
            if pieces is None:
                return None
            for a, b in pieces:
                for x, weight in zip(0.5 * (a + b) + 0.5 * (b - a) * _NODES, 0.5 * (b - a) * _WEIGHTS, strict=True):
                    if discrete:
                        nodes.append((complex(math.cos(x), math.sin(x)), 1.0, float(weight)))
                    elif inverse:  # (i / x - A)^-1 = x (i - x A)^-1, and dw = dx / x^2
                        nodes.append((1j, float(x), float(weight)))
                    else:
                        nodes.append((1j * float(x), 1.0, float(weight)))
    return nodes


def _pieces(first: float, last: float, singular: np.ndarray) -> _Pieces | None:
    """Halve an interval until no singularity is inside the ellipse of a piece."""
    done: _Pieces = []
    todo = [(first, last)]
    while todo:
        a, b = todo.pop()
        z = (singular - 0.5 * (a + b)) / (0.5 * (b - a))
        root = np.sqrt(z - 1) * np.sqrt(z + 1)
        if z.size == 0 or np.abs(z + root).min() >= _ELLIPSE:
            done.append((a, b))
        else:
            middle = 0.5 * (a + b)
            todo += [(a, middle), (middle, b)]
        if len(done) + len(todo) > _MOST_PIECES:
            return None
    return done
