r"""Optimal Hankel-norm approximation of diagonal systems with one input and one output, by con-eigenvectors.

Write :math:`G(z) = \sum_i \alpha_i / (z - \lambda_i)` with equal maps :math:`b_i = c_i = \sqrt{\alpha_i}`. Then the observability factor is the conjugate of
the controllability factor ``L``, and the Hankel operator is the complex symmetric :math:`L^T L`. Elimination with diagonal pivoting gives
:math:`L_{ij} = \sqrt{\alpha_i}\,\varphi_j(\lambda_i)`, where

.. math:: \varphi_j(z) = \frac{\sqrt{d(p_j, p_j)}}{d(z, p_j)} \prod_{l < j} \frac{z - p_l}{d(z, p_l)}, \qquad d(z, p) = 1 - z \bar p \ \text{or}\ -(z + \bar p),

is the orthonormal basis of rational functions (Takenaka and Malmquist) with the pivots as nodes. A con-eigenvector, :math:`L^T L\,v = \sigma_{r+1}
e^{i\theta} \bar v`, therefore holds the coordinates of a unit function :math:`v(z) = \sum_j v_j \varphi_j(z)` in an orthonormal basis; in the functions
:math:`1 / d(z, \lambda_i)` it would cancel half of its digits or all of them. By the theorem of Adamjan, Arov and Krein the zeros of ``v`` in the
stable region, `r` of them, are the poles of the optimal approximant, and its residues are those of :math:`G - \sigma e^{i\theta} v_* / v`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.linalg

from hsv._cauchy import denominators, differences, expm1
from hsv._errors import IllConditionedError
from hsv._systems import DiagonalStateSpace

_EPS = float(np.finfo(np.float64).eps)
_CLUSTER = 1e-8  # neighbours closer than this, relatively, leave fewer than eight digits of the con-eigenvector
_NEWTON_STEPS = 3  # the pencil's zeros have half of their digits at the least, and each step doubles them
_VANISHES = 1e-8  # of a unit function: fewer than eight digits of its phase are left


class UndeterminedError(IllConditionedError):
    """The value at the cut is a multiple one, or nearly so: any combination of its con-eigenvectors is one."""


class PoleResidueForm(NamedTuple):
    """``sum(residues / (z - poles)) + constant``; with the logarithms of the poles where the given system has them."""

    poles: np.ndarray
    residues: np.ndarray
    constant: complex = 0.0
    logs: np.ndarray | None = None

    def __call__(self, z: complex) -> complex:
        return complex(np.sum(self.residues / (z - self.poles)) + self.constant)


class MinimalSystem(NamedTuple):
    """Distinct poles with residues that are not zero; ``pole_gaps[i, j] = l_i - l_j`` and ``gaps[i, j] = d(l_i, l_j)`` without cancellation."""

    poles: np.ndarray
    residues: np.ndarray
    pole_gaps: np.ndarray
    gaps: np.ndarray
    discrete: bool
    logs: np.ndarray | None


class _RationalFunction(NamedTuple):
    """A function in the orthonormal basis: coordinates, nodes, and ``d(p_j, p_j)``."""

    coordinates: np.ndarray
    nodes: np.ndarray
    node_gaps: np.ndarray
    discrete: bool
    logs: np.ndarray | None


def minimal_system(sys: DiagonalStateSpace) -> MinimalSystem:
    """Merge equal poles and drop those without a residue. One system of one input and one output, in double precision, on the host."""
    return _merge(sys.poles(), sys.log_poles, sys.C[0, :] * sys.B[:, 0], sys.dt)


def _merge(poles: np.ndarray, logs: np.ndarray | None, residues: np.ndarray, dt: float | bool) -> MinimalSystem:
    keys, member = np.unique(poles if logs is None else logs, return_inverse=True)
    sums = np.zeros(len(keys), np.complex128)
    np.add.at(sums, member, residues)
    keys, sums = keys[sums != 0] + 0j, sums[sums != 0]
    if not len(keys):
        nothing = np.zeros((0, 0), np.complex128)
        return MinimalSystem(keys, sums, nothing, nothing, dt != 0, None if logs is None else keys)
    ones = np.ones((len(keys), 1))
    make = DiagonalStateSpace if logs is None else DiagonalStateSpace.from_log_poles
    distinct = make(keys, ones, ones.T, dt=dt)
    return MinimalSystem(
        distinct.poles(), sums, differences(distinct), denominators(distinct), distinct.is_discrete, distinct.log_poles
    )


def hankel_norm_of_difference(system: MinimalSystem, reduced: PoleResidueForm) -> float:
    """Return the Hankel norm of the difference, by factors of high relative accuracy: tiny differences have all their digits.

    The poles of both are taken as they are, so that what the rounding of the reduced ones costs is counted.
    """
    poles = np.concatenate([system.poles, reduced.poles])
    logs = None if system.logs is None or reduced.logs is None else np.concatenate([system.logs, reduced.logs])
    residues = np.concatenate([system.residues, -reduced.residues])
    both = _merge(poles, logs, residues, True if system.discrete else 0)
    if not len(both.poles):
        return 0.0
    factor = _factor(both)[1]
    return float(np.linalg.norm(factor.T @ factor, ord=2))


def approximate(system: MinimalSystem, order: int) -> PoleResidueForm:
    """Return the optimal approximant with `order` poles, fewer than the system has.

    Raises
    ------
    UndeterminedError
        The value at the cut has a neighbour so close that its con-eigenvector is not determined.
    IllConditionedError
        It has not `order` zeros in the stable region to working precision.
    """
    nodes, factor = _factor(system)
    left, sigma, right_h = scipy.linalg.svd(factor.T @ factor, lapack_driver="gesvd", check_finite=False)
    _check_gap(sigma, order)
    v = right_h[order].conj()
    phase = np.angle(v @ left[:, order])  # L^T L v = sigma e^{i theta} conj(v)
    logs = None if system.logs is None else system.logs[nodes]
    function = _RationalFunction(v, system.poles[nodes], system.gaps[nodes, nodes].real, system.discrete, logs)
    at_poles, poles, logs = _stable_zeros(function, order)
    at_given = (system.pole_gaps[:, nodes], system.gaps[:, nodes])
    slopes = _divided_difference(function, at_poles, at_poles)
    weights = _divided_difference(function, (at_poles[0][:, None], at_poles[1][:, None]), at_given)
    kept = PoleResidueForm(poles, (weights @ system.residues) / slopes, logs=logs)
    # The rest of G - sigma e^{i theta} v_* / v has no poles in the stable region; its value at z = -1 or at infinity goes into the constant.
    rest = sigma[order] * np.exp(1j * phase) * _reflection(function)
    if system.discrete:
        rest += PoleResidueForm(system.poles, system.residues)(-1.0) - kept(-1.0)
    return kept._replace(constant=rest)


def _factor(system: MinimalSystem) -> tuple[np.ndarray, np.ndarray]:
    """Pivots and the factor ``L`` (n, R): products alone, so that every entry has high relative accuracy."""
    g = np.sqrt(system.residues)
    size = system.gaps.diagonal().real
    nodes, columns = [], []
    for _ in range(len(g)):
        square = np.abs(g) ** 2 / size
        p = int(np.argmax(square))
        if square[p] == 0.0:
            break
        quotient = g / system.gaps[:, p]
        nodes.append(p)
        columns.append(quotient * np.sqrt(size[p]))
        g = quotient * system.pole_gaps[:, p]
    return np.array(nodes), np.stack(columns, axis=-1)


def _check_gap(sigma: np.ndarray, order: int) -> None:
    level = sigma[order]
    for neighbour in (order - 1, order + 1):
        if 0 <= neighbour < len(sigma) and abs(sigma[neighbour] - level) <= _CLUSTER * level:
            raise UndeterminedError(
                f"the first discarded Hankel value {level:.9g} has a neighbour {sigma[neighbour]:.9g}: its con-eigenvector is not determined"
            )


_Points: TypeAlias = tuple[np.ndarray, np.ndarray]
"""``z - p_j`` and ``d(z, p_j)``, the nodes along the last axis."""


def _points(function: _RationalFunction, z: np.ndarray) -> _Points:
    z, nodes = np.asarray(z)[..., None], function.nodes
    return z - nodes, 1.0 - z * nodes.conj() if function.discrete else -(z + nodes.conj())


def _points_from_logs(function: _RationalFunction, logs: np.ndarray) -> _Points:
    assert function.logs is not None
    z = logs[..., None]
    return function.nodes * expm1(z - function.logs), -expm1(z + function.logs.conj())


def _value(function: _RationalFunction, z: _Points) -> np.ndarray:
    """Return ``v(z)``."""
    product = np.ones(z[0].shape[:-1], np.complex128)
    total = np.zeros_like(product)
    for j, (coordinate, _, gap) in enumerate(
        zip(function.coordinates, function.nodes, function.node_gaps, strict=True)
    ):
        inverse = 1.0 / z[1][..., j]
        total = total + coordinate * np.sqrt(gap) * (product * inverse)
        product = product * (z[0][..., j] * inverse)
    return total


def _divided_difference(function: _RationalFunction, y: _Points, z: _Points) -> np.ndarray:
    """Return ``(v(y) - v(z)) / (y - z)``, which is the derivative where both are equal: each factor of the basis has its own in closed form."""
    product = np.ones(y[0].shape[:-1], np.complex128)  # at y
    total, of_product = (np.zeros(np.broadcast_shapes(y[0].shape, z[0].shape)[:-1], np.complex128) for _ in range(2))
    for j, (coordinate, node, gap) in enumerate(
        zip(function.coordinates, function.nodes, function.node_gaps, strict=True)
    ):
        y_inverse, z_inverse = 1.0 / y[1][..., j], 1.0 / z[1][..., j]
        both = product * y_inverse * z_inverse
        slope = np.conj(node) if function.discrete else 1.0  # minus the derivative of the denominator
        total = total + coordinate * np.sqrt(gap) * (of_product * z_inverse + slope * both)
        of_product = of_product * (z[0][..., j] * z_inverse) + gap * both
        product = product * (y[0][..., j] * y_inverse)
    return total


def _reflection(function: _RationalFunction) -> complex:
    """Return ``conj(v) / v`` at ``z = -1``, or its limit at infinity."""
    if function.discrete:
        value = complex(_value(function, _points(function, np.array(-1.0))))
    else:
        signs = (-1.0) ** np.arange(len(function.nodes))
        terms = function.coordinates * np.sqrt(function.node_gaps / function.node_gaps.max()) * signs
        value = complex(terms.sum())
    if abs(value) <= _VANISHES:
        raise IllConditionedError(
            "the con-eigenvector vanishes at the end of the frequency axis to working precision, so that D is not determined"
        )
    return value.conjugate() / value


def _stable_zeros(function: _RationalFunction, order: int) -> tuple[_Points, np.ndarray, np.ndarray | None]:
    """Return the zeros of ``v`` in the stable region, as points, as numbers, and their logarithms if the system has them.

    ``phi_{j+1}(z) d(z, p_{j+1}) / s_{j+1} = phi_j(z) (z - p_j) / s_j`` with ``s_j^2 = d(p_j, p_j)`` says that the row of all ``phi_j(z)`` annihilates the columns of a
    bidiagonal pencil; ``v(z) = 0`` is one column more. Newton's method on ``v`` itself then gives each zero the accuracy that its value allows.
    """
    last = (
        int(np.flatnonzero(np.abs(function.coordinates) > 1e-3 * _EPS)[-1]) + 1
    )  # what follows is far below the rounding of v
    v, nodes, size = function.coordinates[:last], function.nodes[:last], np.sqrt(function.node_gaps[:last])
    unit = 1.0 if function.discrete else float(np.exp(np.mean(np.log(np.abs(nodes)))))  # of z
    constant, linear = np.zeros((2, last, last), np.complex128)
    j = np.arange(last - 1)
    constant[j, j], linear[j, j] = nodes[j] * size[j + 1], -unit * size[j + 1]
    following = nodes[j + 1].conj()
    constant[j + 1, j] = size[j] if function.discrete else -following * size[j]
    linear[j + 1, j] = -unit * size[j] * (following if function.discrete else 1.0)
    scale = np.linalg.norm(np.abs(constant) + np.abs(linear), axis=0)
    scale[-1] = 1.0
    constant, linear = constant / scale, linear / scale
    constant[:, -1] = v
    alpha, beta = scipy.linalg.eigvals(constant, -linear, homogeneous_eigvals=True, check_finite=False)
    inside = np.abs(alpha) < np.abs(beta) if function.discrete else (alpha * beta.conj()).real < 0
    if int(inside.sum()) != order:
        raise IllConditionedError(
            f"the con-eigenvector of the first discarded Hankel value has {int(inside.sum())} stable zeros to working precision in place of {order}"
        )
    zeros: np.ndarray = unit * alpha[inside] / beta[inside]
    if function.logs is None:
        for _ in range(_NEWTON_STEPS):
            zeros = zeros - _newton_step(function, _points(function, zeros))
        return _points(function, zeros), zeros, None
    logs = np.log(np.where(zeros == 0, np.finfo(np.float64).tiny, zeros))
    for _ in range(_NEWTON_STEPS):
        logs = logs - _newton_step(function, _points_from_logs(function, logs)) / np.exp(logs)
    return _points_from_logs(function, logs), np.exp(logs), logs


def _newton_step(function: _RationalFunction, z: _Points) -> np.ndarray:
    return _value(function, z) / _divided_difference(function, z, z)
