"""Hankel-norm approximation with invertible frequency weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hsv import _blas
from hsv._array import Array, conjugate_transpose, eye, namespace, real, round_to, to_host
from hsv._blas import product
from hsv._errors import HsvError, IllConditionedError, OrderError, ShapeError
from hsv._frequency_weighted import prepared_weight
from hsv._gramian_pair import dense_in_double
from hsv._hankel_norm import hankel_norm_approximation
from hsv._lyapunov import check_stable, solve_sylvester
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import Reduction, check_stability
from hsv._systems import LinearSystem, StateSpace, require_system, stability_margin
from hsv._warnings import WarnTheCaller


def frequency_weighted_hankel_norm_approximation(
    sys: LinearSystem,
    rule: Rule | int,
    *,
    input_weight: LinearSystem | None = None,
    output_weight: LinearSystem | None = None,
) -> Reduction:
    r"""Reduce a stable system with the least possible Hankel norm of the weighted error, :math:`\sigma_{r+1}`.

    .. math:: \| [V_- (G - G_r)\, W_-]_+ \|_H = \sigma_{r+1}([V_-\, G\, W_-]_+)

    where :math:`[\cdot]_+` is the stable part, :math:`V_-` is the weight if its poles and zeros are all unstable, and its conjugate, :math:`V(-\bar s)^H` or :math:`V(1/\bar z)^H`, which has the same
    singular values at every frequency, if they are all stable. The stable part of :math:`V_-^{-1} [V_- G W_-]_{+,r} W_-^{-1}`, with the Hankel-norm approximation of
    the weighted stable part in its midst, is :math:`G_r`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`, for the Hankel values of the weighted stable part; ``ErrorBound`` is refused, for the method has no bound.
    input_weight, output_weight : StateSpace or DiagonalStateSpace, optional
        Square, with an invertible ``D``; poles and zeros all stable (minimum phase) or all unstable. None: the identity. With several inputs and outputs the singular values of :math:`V^H (G - G_r) W^H`
        are not those of :math:`V (G - G_r) W`: pass unstable weights, which are taken as they are, where that matters.

    Returns
    -------
    Reduction
        Stable. ``hankel_singular_values`` are those of the weighted stable part; ``error_bound``, ``left`` and ``right`` are None.

    Raises
    ------
    UnstableSystemError
        `sys` is not stable.
    HsvError, ShapeError, IllConditionedError
        A weight is not square, its ``D`` is not invertible, it has poles or zeros of both kinds, or it does not fit `sys`.
    OrderError
        As in :func:`balanced_truncation`; ``ErrorBound``.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`.

    See Also
    --------
    hankel_norm_approximation : without weights.
    frequency_weighted_truncation : any weights.

    Notes
    -----
    Stable parts come from Sylvester equations with the weights, ``O((n + n_w)^3)``; discrete systems and weights go through the bilinear map. On the host, in double precision.

    References
    ----------
    Latham and Anderson, "Frequency-weighted optimal Hankel-norm approximation of stable transfer functions", Systems & Control Letters 5 (1985). SLICOT's AB09JD and AB09KD.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -10.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> lead = hsv.StateSpace([[-20.0]], [[1.0]], [[-18.0]], [[1.0]], dt=0)                   # (s + 2) / (s + 20)
    >>> red = hsv.frequency_weighted_hankel_norm_approximation(sys, 1, output_weight=lead)
    >>> red.system.n_states, bool(red.hankel_singular_values[1] < hsv.hankel_singular_values(sys)[1])
    (1, True)
    """
    rule = as_rule(rule)
    if isinstance(rule, ErrorBound):
        raise OrderError(
            "ErrorBound asks for a bound, which weighted Hankel-norm approximation does not have; use hsv.frequency_weighted_truncation"
        )
    require_system(sys)
    full = dense_in_double(sys)
    check_stable(_blas.eigenvalues(to_host(full.A)), discrete=full.is_discrete)
    pairs = [
        None if weight is None else _unstable_pair(name, full, weight, size)
        for name, weight, size in (
            ("output_weight", output_weight, full.n_outputs),
            ("input_weight", input_weight, full.n_inputs),
        )
    ]
    V, W = (None if pair is None else pair[0] for pair in pairs)
    inverse_V, inverse_W = (None if pair is None else pair[1] for pair in pairs)
    weighted = _stable_part(_to_continuous(full), V, W)
    with WarnTheCaller():
        red = hankel_norm_approximation(weighted, rule)
    reduced = _stable_part(red.system, inverse_V, inverse_W)
    if sys.is_discrete:
        reduced = _to_discrete(reduced, sys.dt)
    reduced = StateSpace(*(round_to(x, sys.B) for x in (reduced.A, reduced.B, reduced.C, reduced.D)), dt=sys.dt)
    check_stability(reduced, to_host(red.hankel_singular_values), to_host(red.orders))
    return dataclasses.replace(
        red,
        system=reduced,
        hankel_singular_values=round_to(red.hankel_singular_values, real(sys.B)),
        error_bound=None,
        _rounding=None,
    )


def _unstable_pair(name: str, full: StateSpace, weight: LinearSystem, size: int) -> tuple[StateSpace, StateSpace]:
    """The weight or its conjugate, whose poles and zeros are unstable, and its inverse; continuous."""
    checked = prepared_weight(name, full, weight)
    if checked.n_inputs != size or checked.n_outputs != size:
        raise ShapeError(f"{name} must be square of size {size}, got {checked.n_outputs} x {checked.n_inputs}")
    if full.is_discrete:
        _require_no_pole_at_minus_one(name, checked)
    V = _to_continuous(checked)
    singular = to_host(namespace(V.D).linalg.svdvals(V.D))
    if np.any(singular[..., -1] <= 1e-12 * singular[..., 0]):
        where = "-1" if full.is_discrete else "infinity"
        raise IllConditionedError(
            f"{name} must be invertible at {where}, found singular values from {singular[..., -1].min():.1e} to {singular[..., 0].max():.1e} there; "
            "add a gain to it"
        )
    margins = [to_host(stability_margin(x)) for x in (V, _inverse(V))]
    if all(np.all(margin > 0) for margin in margins):
        V = StateSpace(
            -conjugate_transpose(V.A),
            conjugate_transpose(V.C),
            -conjugate_transpose(V.B),
            conjugate_transpose(V.D),
            dt=0,
        )
    elif not all(np.all(margin < 0) for margin in margins):
        counts = [
            f"{int(np.sum(m > 0))} stable and {int(np.sum(m <= 0))} unstable {what}"
            for m, what in zip(margins, ("poles", "zeros"), strict=True)
        ]
        raise HsvError(
            f"{name} must have only stable poles and zeros, or only unstable ones, found {' and '.join(counts)}; mirror those on the wrong side, which "
            "leaves the gain alone"
        )
    return V, _inverse(V)


def _require_no_pole_at_minus_one(name: str, weight: StateSpace) -> None:
    one = np.eye(weight.n_states)
    condition = np.linalg.cond(one + to_host(weight.A))
    if np.all(condition < 1 / np.finfo(np.float64).eps):
        return
    poles = to_host(weight.poles())
    distance = np.abs(poles + 1).min()
    raise IllConditionedError(
        f"{name} must have no pole on the stability boundary, found one within {distance:.1e} of z = -1; move it inside"
    )


def _stable_part(sys: StateSpace, V: StateSpace | None, W: StateSpace | None) -> StateSpace:
    """The part of ``V G W`` with the poles of ``G``, for unstable ``V`` and ``W`` of several batches that broadcast; continuous."""
    B, C, D = sys.B, sys.C, sys.D
    if V is not None:  # x_V - Y x decouples
        Y = solve_sylvester(V.A, -sys.A, -product(V.B, C))
        C, D = product(V.D, C) + product(V.C, Y), product(V.D, D)
    if W is not None:
        Z = solve_sylvester(sys.A, -W.A, -product(sys.B, W.C))
        B, D = product(B, W.D) - product(Z, W.B), product(D, W.D)
    return StateSpace(sys.A, B, C, D, dt=0)


def _inverse(V: StateSpace) -> StateSpace:
    D = _blas.inverse(V.D)
    BD, DC = product(V.B, D), product(D, V.C)
    return StateSpace(V.A - product(BD, V.C), BD, -DC, D, dt=0)


def _to_continuous(sys: StateSpace) -> StateSpace:
    """A discrete system as ``G((1 + s) / (1 - s))``, with the same Hankel values."""
    if not sys.is_discrete:
        return sys
    one = eye(sys.n_states, sys.A)
    R = _blas.inverse(one + sys.A)
    return _bilinear(sys, product(R, sys.A - one), R, -1.0, 0)


def _to_discrete(sys: StateSpace, dt: float | bool) -> StateSpace:
    one = eye(sys.n_states, sys.A)
    R = _blas.inverse(one - sys.A)
    return _bilinear(sys, product(R, one + sys.A), R, 1.0, dt)


def _bilinear(sys: StateSpace, A: Array, R: Array, sign: float, dt: float | bool) -> StateSpace:
    root = math.sqrt(2.0)
    RB = product(R, sys.B)
    return StateSpace(A, root * RB, root * product(sys.C, R), sys.D + sign * product(sys.C, RB), dt=dt)
