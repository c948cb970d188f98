r"""Factors of the Gramians of a band of frequencies, by quadrature: no Gramian is formed, and small values keep their digits.

Gauss' rule over pieces of the band, each so short that every pole is far from it on its scale. An ellipse with the foci at the ends of a piece, and with :math:`\varrho` the sum of its half axes in
units of half the piece, that has no pole inside leaves an error of about :math:`\varrho^{-2k}` of ``k`` nodes. Pieces are halved until :math:`\varrho` is 3.5 for all poles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg

from hsv._array import Array, on_host, widen
from hsv._blas import triangle
from hsv._lyapunov import adjoint, check_stable, schur_form
from hsv._systems import StateSpace

# 3.5^-64 is 1e-35: no more than poles of multiplicity 60 need, near which the integrand grows. With 20 nodes these had an error of 4e-6, and those of multiplicity 30 one of 5e-10.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_ELLIPSE = 3.5
_MOST_PIECES = 500  # 16,000 nodes: as long as the logarithms of matrices take at 1,000 states
_Pieces = list[tuple[float, float]]
_Node = tuple[complex, float, float]  # s, scale, weight: the resolvent is that of s I - scale A


def band_factor(sys: StateSpace, edges: list[tuple[float, float]]) -> Array | None:
    """A factor ``(..., n, n)`` of the controllability Gramian of the bands, whose edges are those of `checked_bands`; None where poles are so lightly damped that too many nodes would be needed."""
    return _unless_none(sys, edges, _factor_on_host)


def _unless_none(
    sys: StateSpace, edges: list[tuple[float, float]], function: Callable[..., np.ndarray | None]
) -> Array | None:
    """Run a function of host arrays, which may find no result, and give its result back where the arrays came from."""
    results: list[np.ndarray] = []

    def compute(A: np.ndarray, B: np.ndarray) -> np.ndarray:
        result = function(A, B, edges, sys.is_discrete)
        if result is None:
            return A
        results.append(result)
        return result

    result = on_host(compute, widen(sys.A), widen(sys.B), reason="the Schur form")
    return result if results else None


def _factor_on_host(
    A: np.ndarray, B: np.ndarray, edges: list[tuple[float, float]], discrete: bool
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


def _solutions(
    T: np.ndarray, B: np.ndarray, nodes: list[_Node], *, real: bool
) -> Iterator[tuple[complex, float, np.ndarray]]:
    """``s``, the weight over ``2 pi`` and ``(s I - scale T)^-1 B`` at all nodes; at both signs of frequency unless the system is real, where they are conjugate."""
    T, B = np.asfortranarray(T), np.asfortranarray(B, dtype=np.complex128)
    identity = np.eye(len(T), order="F")
    for s, scale, weight in nodes:
        for point in (s,) if real else (s, s.conjugate()):
            # LAPACK directly: SciPy's function looks for batches, and takes longer over that than over a small system.
            solved, _ = scipy.linalg.lapack.ztrtrs(point * identity - scale * T, B)
            yield point, weight / (2 * math.pi), solved


def _one_factor(T: np.ndarray, Z: np.ndarray, B: np.ndarray, nodes: list[_Node], *, real: bool) -> np.ndarray:
    """Columns ``sqrt(w) (s I - scale T)^-1 B`` of all nodes, compressed as they come."""
    n = len(T)
    kept, columns, count = np.zeros((n, 0), B.dtype), [], 0
    for _, weight, solved in _solutions(T, B, nodes, real=real):
        columns.append(math.sqrt(weight) * solved)
        count += B.shape[-1]
        if count > 4 * n:
            kept, columns, count = adjoint(triangle(adjoint(np.hstack([kept, *columns])))), [], 0
    found = Z @ np.hstack([kept, *columns])
    if real:
        found = math.sqrt(2.0) * np.hstack([found.real, found.imag])
    if found.shape[-1] < n:
        found = np.hstack([found, np.zeros((n, n - found.shape[-1]), found.dtype)])
    return adjoint(triangle(adjoint(found)))


def band_input(sys: StateSpace, edges: list[tuple[float, float]]) -> Array | None:
    r"""``S B`` with the ``S`` of :func:`hsv.frequency_limited_gramians`, ``(..., n, m)``: the Gramian of the bands has the right-hand side ``S B B^H + B B^H S^H``. None as for :func:`band_factor`."""
    return _unless_none(sys, edges, _input_on_host)


def _input_on_host(A: np.ndarray, B: np.ndarray, edges: list[tuple[float, float]], discrete: bool) -> np.ndarray | None:
    T, Z = schur_form(A)
    poles = np.diagonal(T, axis1=-2, axis2=-1)
    check_stable(poles, discrete=discrete)
    # Over all frequencies S is half the identity.
    bounded = [((0.0, low), -1.0) if math.isinf(high) else ((low, high), 1.0) for low, high in edges]
    total = 0.5 * sum(math.isinf(high) for _, high in edges) * B
    is_real = not np.iscomplexobj(total) and not np.iscomplexobj(A)
    total = total.astype(np.result_type(A, B))
    for index in np.ndindex(*A.shape[:-2]):
        rotated = adjoint(Z[index]) @ B[index]
        for band, sign in bounded:
            if band[0] == band[1]:
                continue
            nodes = _nodes(poles[index], [band], discrete=discrete)
            if nodes is None:
                return None
            part = np.zeros(rotated.shape, np.complex128)
            for point, weight, solved in _solutions(T[index], rotated, nodes, real=is_real):
                part += weight * (point * solved - 0.5 * rotated if discrete else solved)
            found = Z[index] @ part
            total[index] += sign * (2.0 * found.real if is_real else found)
    return total


def _nodes(poles: np.ndarray, edges: list[tuple[float, float]], *, discrete: bool) -> list[_Node] | None:
    """All nodes on the positive side."""
    nodes: list[_Node] = []
    largest = float(np.abs(poles).max())
    for low, high in edges:
        parts = []  # from, to, the poles in this variable at both signs of frequency, whether it is one over the frequency
        if discrete:
            moving = poles[poles != 0]
            angles = -1j * np.log(moving)
            around = np.concatenate([angles - 2 * np.pi, angles, angles + 2 * np.pi])
            parts.append((low, high, np.concatenate([around, -around]), False))
        else:
            finite = high if math.isfinite(high) else max(2 * largest, low)
            if low < finite:
                parts.append((low, finite, np.concatenate([-1j * poles, 1j * poles]), False))
            if not math.isfinite(high):
                parts.append((0.0, 1 / finite, np.concatenate([1j / poles, -1j / poles]), True))
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
