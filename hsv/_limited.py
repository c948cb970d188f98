"""Balanced truncation within a band of frequencies or a window of time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from hsv._array import Array, conjugate_transpose, eye, namespace, to_host, zeros
from hsv._band_factors import band_factor, band_input
from hsv._blas import product
from hsv._errors import DtypeError, HsvError
from hsv._frequency_limited import Band, band_operator, by_logarithms, checked_bands, frequency_limited_gramians
from hsv._gramian_pair import (
    GramianPair,
    Source,
    check_stability_name,
    dense_in_double,
    factor_of_gramian,
    noise_of_gramians,
    pair_of_sources,
    positive_source,
    reduce_by_pair,
    square_factor,
)
from hsv._gramians import check_horizon, controllability_gramian, dual, observability_gramian
from hsv._hankel import Factors
from hsv._order import Rule, as_rule
from hsv._reduction import Reduction, Rounding
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, in_double_precision, require_system

_EPS = float(np.finfo(np.float64).eps)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(
    8
)  # exact for the series of an exponential over |A| t < 1/2 to the last digit
_TERMS = 16  # 2^-16 / 16! is 1e-18
_WITHOUT_BOUND = "this method has only with stability='absolute-value', and where the maps of the system are in the range of the modified ones"


def frequency_limited_truncation(
    sys: LinearSystem, rule: Rule | int, band: Band, *, stability: str | None = None
) -> Reduction:
    r"""Reduce a stable system by balanced truncation within a band of frequencies.

    The Gramians that are balanced are those of :func:`frequency_limited_gramians`, so that the states that matter in the band are kept. They satisfy

    .. math:: A P_\Omega + P_\Omega A^H + Y = 0, \qquad Y = S B B^H + B B^H S^H

    (in discrete time :math:`A P_\Omega A^H - P_\Omega + Y = 0`) and the dual, with indefinite right-hand sides: the reduced system may be unstable. With
    ``stability="absolute-value"`` they are replaced by the Gramians of :math:`(A, \tilde B, \tilde C)` with :math:`\tilde B \tilde B^H = |Y|`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`, for the values of the band. ``ErrorBound`` only where there is a bound, see below.
    band : (float, float), or a list of such pairs
        ``(low, high)`` as in :func:`frequency_limited_gramians`.
    stability : {None, "absolute-value", "positive-part"}
        None: the Gramians of the band. ``"absolute-value"``: :math:`|Y|`. ``"positive-part"``: the positive eigenvalues of :math:`Y` alone, closer to the band.

    Returns
    -------
    Reduction
        ``hankel_singular_values`` are the roots of the eigenvalues of the product of the two Gramians used. ``error_bound`` is that of the H-infinity norm over **all** frequencies,

        .. math:: \|G - G_r\|_\infty \le 2\, \|L\|_2\, \|K\|_2 \sum_{i > r} \tilde\sigma_i, \qquad B = \tilde B K,\ C = L \tilde C,

        where these factors exist (always, but for rounding, with ``"absolute-value"``; infinite for the systems of a batch where they do not, None where no system has them) and None with ``stability=None``.

    Raises
    ------
    UnstableSystemError
    DtypeError, HsvError
        The band is no pair of numbers, empty, or reaches beyond :math:`\pi / \Delta t`, two bands overlap, or `stability` is not known.
    OrderError
        No order meets the rule, or ``ErrorBound`` where there is no bound.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`; also where the result with ``stability=None`` is unstable.

    See Also
    --------
    frequency_weighted_truncation : a weight that is a system in place of a band.
    balanced_truncation : all frequencies alike; smaller errors outside the band, and always stable.

    Notes
    -----
    ``O(n^3)``, on the host. Without `stability` the Gramians are never formed: their factors are sums over the nodes of a quadrature, 32 in each piece of the band, and pieces are so short that no pole comes near on
    their scale; ``O(n^2 m)`` a node. Values keep the digits that they have in :func:`balanced_truncation`. Where more than 500 pieces would be needed (tens of resonances in the band whose damping is below ``1e-6`` of their distance),
    factors come from the Gramians, which have half the digits: values below about ``1e-8`` of the largest are then rounding errors, and the order is capped there. With `stability` they come from Lyapunov equations.

    References
    ----------
    Gawronski and Juang, "Model reduction in limited time and frequency intervals", Int. J. Systems Sci. 21 (1990). Gugercin and Antoulas, "A survey of model reduction
    by balanced truncation and some new results", Int. J. Control 77 (2004), for the absolute values and the bound.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -100.0], [[1.0], [100.0]], [[1.0, 1.0]], dt=0)      # 1 / (s + 1) + 100 / (s + 100)
    >>> slow, fast = (hsv.frequency_limited_truncation(sys, 1, band) for band in ((0.0, 0.1), (500.0, 1000.0)))
    >>> slow.system.poles().real.round(1), fast.system.poles().real.round(1)
    (array([-2.]), array([-99.]))
    """
    rule, pair = as_rule(rule), _pair_of_band(sys, band, stability)
    return reduce_by_pair(sys, rule, pair, steady_state=False, without_bound=_WITHOUT_BOUND)


def frequency_limited_singular_perturbation(
    sys: LinearSystem, rule: Rule | int, band: Band, *, stability: str | None = None
) -> Reduction:
    """Reduce a stable system by singular perturbation approximation within a band of frequencies.

    The states that :func:`frequency_limited_truncation` truncates are solved for their steady state, as in :func:`singular_perturbation`: the gain at frequency 0 is kept.
    Parameters, results, errors, warnings and the bound as there; ``left`` and ``right`` are None, and ``D`` changes.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -10.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> red = hsv.frequency_limited_singular_perturbation(sys, 1, (0.0, 2.0))
    >>> float(red.system.frequency_response([0.0])[0, 0, 0].real.round(12))          # 1 / 1 + 1 / 10
    1.1
    """
    rule, pair = as_rule(rule), _pair_of_band(sys, band, stability)
    return reduce_by_pair(sys, rule, pair, steady_state=True, without_bound=_WITHOUT_BOUND)


def time_limited_truncation(
    sys: LinearSystem, rule: Rule | int, horizon: float | tuple[float, float], *, stability: str | None = None
) -> Reduction:
    r"""Reduce a system by balanced truncation within a window of time.

    The Gramians that are balanced are those over the horizon, :func:`controllability_gramian` and :func:`observability_gramian` with ``horizon``. They satisfy

    .. math:: A P_T + P_T A^H + Y = 0, \quad Y = B B^H - e^{AT} B B^H e^{A^H T} \qquad\text{or}\qquad A P_T A^H - P_T + Y = 0, \quad Y = B B^H - A^T B B^H (A^H)^T

    and the dual, with indefinite right-hand sides: the reduced system may be unstable, and `sys` may be so as well. With ``stability="absolute-value"`` they are replaced by the
    Gramians of :math:`(A, \tilde B, \tilde C)` with :math:`\tilde B \tilde B^H = |Y|`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Continuous or discrete, real or complex, one system or a batch. Stable if `stability` is given.
    rule : Rule or int
        As in :func:`balanced_truncation`, for the values of the window. ``ErrorBound`` only where there is a bound.
    horizon : int or float, or a pair of them
        Steps (discrete time, an int) or seconds (continuous time); a pair ``(start, end)`` is the window between them, whose Gramians are
        :math:`e^{A t_1} P_{t_2 - t_1} e^{A^H t_1}`.
    stability : {None, "absolute-value", "positive-part"}
        As in :func:`frequency_limited_truncation`.

    Returns
    -------
    Reduction
        ``hankel_singular_values`` are the roots of the eigenvalues of the product of the two Gramians used; ``error_bound`` as in :func:`frequency_limited_truncation`, over an infinite window; for
        a window that starts later its factors hardly ever exist.

    Raises
    ------
    UnstableSystemError
        `stability` is given, and the system is not stable.
    DtypeError, HsvError
        The horizon is no positive, finite number (of steps: no int), or `stability` is not known.
    OrderError
        No order meets the rule, or ``ErrorBound`` where there is no bound.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`; also where the result with ``stability=None`` is unstable.

    Notes
    -----
    The Gramians are never formed: their factors are doubled, :math:`L_{2t} = [L_t,\ e^{At} L_t]`, from a quadrature of 8 nodes over a piece with :math:`\|A\| t \le 1/2` in continuous time. ``O(n^3)`` a
    doubling, with all the digits of :func:`balanced_truncation` and on the device of the arrays.

    References
    ----------
    Gawronski and Juang, "Model reduction in limited time and frequency intervals", Int. J. Systems Sci. 21 (1990). Gugercin and Antoulas, "A survey of model reduction
    by balanced truncation and some new results", Int. J. Control 77 (2004), for the absolute values and the bound.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([0.99, 0.1], [[0.3], [1.0]], [[0.3, 1.0]], dt=True)             # the slow state needs time to matter
    >>> short, long = hsv.time_limited_truncation(sys, 1, 2), hsv.time_limited_truncation(sys, 1, 500)
    >>> short.system.poles().real.round(2), long.system.poles().real.round(2)
    (array([0.2]), array([0.98]))
    """
    require_system(sys)
    check_stability_name(stability)
    start, length = _checked_window(sys, horizon)
    rule = as_rule(rule)
    full = dense_in_double(sys)
    mirror = dual(full)
    assert isinstance(mirror, StateSpace)
    windows = [_window(x, start, length) for x in (full, mirror)]
    control, observe = (window.factor for window in windows)
    if not all(np.all(np.isfinite(to_host(L))) for L in (control, observe)):
        raise HsvError(
            f"the state grows beyond what double precision holds within the horizon {horizon}; take a shorter one, or scale B and C down"
        )
    if stability is None:
        pair = GramianPair(Factors(control, observe), _noise_of_factors(control, observe))
    else:
        parts = [_window_source(x, window, stability) for x, window in zip((full, mirror), windows, strict=True)]
        pair = _pair_of(full, *parts)
    return reduce_by_pair(sys, rule, pair, steady_state=False, without_bound=_WITHOUT_BOUND)


def _pair_of_band(sys: LinearSystem, band: Band, stability: str | None) -> GramianPair:
    require_system(sys)
    check_stability_name(stability)
    edges = checked_bands(sys, band)
    full = dense_in_double(sys)
    mirror = dual(full)
    assert isinstance(mirror, StateSpace)
    if stability is not None:
        inputs = [band_input(x, edges) for x in (full, mirror)]
        if any(x is None for x in inputs):
            S = band_operator(full, edges)
            inputs = [product(S, full.B), product(conjugate_transpose(S), mirror.B)]
        parts = [_band_source(x, SB, stability) for x, SB in zip((full, mirror), inputs, strict=True)]
        return _pair_of(full, *parts)
    control, observe = band_factor(full, edges), band_factor(mirror, edges)
    if control is not None and observe is not None:
        return GramianPair(Factors(control, observe), _noise_of_factors(control, observe))
    # From Gramians, where poles are too lightly damped for a quadrature.
    if isinstance(sys, DiagonalStateSpace) and not sys._conjugate_pairs:  # closed forms: their errors are relative
        P, Q = frequency_limited_gramians(in_double_precision(sys), band)
        rounding = noise_of_gramians(P, Q)
    else:
        P, Q = by_logarithms(full, edges)
        rounding = noise_of_gramians(P, Q, controllability_gramian(full), observability_gramian(full))
    return GramianPair(Factors(factor_of_gramian(P), factor_of_gramian(Q)), rounding)


def _noise_of_factors(control: Array, observe: Array) -> Rounding:
    norms = [np.linalg.norm(to_host(L), axis=(-2, -1)) for L in (control, observe)]
    noise = control.shape[-1] * _EPS * norms[0] * norms[1]
    return Rounding(noise, noise)


def _pair_of(full: StateSpace, control: Source, observe: Source) -> GramianPair:
    gain = np.ones(full.batch_shape)
    for source in (control, observe):
        norm = to_host(namespace(source.K).linalg.matrix_norm(source.K, ord=2))
        gain = gain * np.where(source.exists, norm, np.inf)
    return pair_of_sources(full, control.B, conjugate_transpose(observe.B), gain * (1 + 1e-8))


def _band_source(sys: StateSpace, SB: Array, stability: str) -> Source:
    """``S B B^H + B B^H S^H``, made positive."""
    xp = namespace(sys.B)
    one, nothing = eye(sys.n_inputs, sys.B), zeros((sys.n_inputs, sys.n_inputs), sys.B)
    J = xp.concat([xp.concat([nothing, one], axis=-1), xp.concat([one, nothing], axis=-1)], axis=-2)
    return positive_source(xp.concat([sys.B, SB], axis=-1), J, sys.B, stability)


class _Window(NamedTuple):
    """A factor of the controllability Gramian of a window, and the inputs' effect on the state at its two ends, ``e^{At} B``."""

    factor: Array
    first: Array
    last: Array


def _window(sys: StateSpace, start: float, length: float) -> _Window:
    L, over = _finite_factor(sys, length)
    first = sys.B
    if start:
        _, before = _finite_factor(sys, start)
        L, first = product(before, L), product(before, first)
    return _Window(L, first, product(over, first))


def _window_source(sys: StateSpace, window: _Window, stability: str) -> Source:
    """The right-hand side of the window's Lyapunov equation, the products of its two ends, made positive."""
    xp = namespace(sys.B)
    one, nothing = eye(sys.n_inputs, sys.B), zeros((sys.n_inputs, sys.n_inputs), sys.B)
    J = xp.concat([xp.concat([one, nothing], axis=-1), xp.concat([nothing, -one], axis=-1)], axis=-2)
    return positive_source(xp.concat([window.first, window.last], axis=-1), J, sys.B, stability)


def _checked_window(sys: LinearSystem, horizon: float | tuple[float, float]) -> tuple[float, float]:
    """Start and length."""
    if not isinstance(horizon, (tuple, list)):
        check_horizon(sys, horizon)
        return 0, horizon
    if len(horizon) != 2:
        raise DtypeError(f"horizon must be a number or a pair (start, end), got {horizon!r}")
    start, end = horizon
    check_horizon(sys, end)
    if isinstance(start, bool) or start != 0:
        check_horizon(sys, start)
    if start >= end:
        raise HsvError(f"horizon must satisfy 0 <= start < end, got ({start}, {end})")
    return start, end - start


def _finite_factor(sys: StateSpace, horizon: float) -> tuple[Array, Array]:
    """A factor ``(..., n, n)`` of the controllability Gramian over a horizon, and the map of the state over it, ``A^T`` or ``e^{AT}``; infinite or NaN where these overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _by_steps(sys.A, sys.B, int(horizon)) if sys.is_discrete else _by_seconds(sys, float(horizon))


def _by_seconds(sys: StateSpace, horizon: float) -> tuple[Array, Array]:
    largest = float(to_host(namespace(sys.A).linalg.matrix_norm(sys.A)).max(initial=0.0))
    doublings = max(0, math.ceil(math.log2(largest) + math.log2(horizon) + 1)) if largest > 0 else 0
    step = math.ldexp(horizon, -doublings)
    L, advance = _over_a_piece(sys.A, sys.B, step)
    xp = namespace(L)
    for _ in range(doublings):
        L = square_factor(xp.concat([L, product(advance, L)], axis=-1))
        advance = product(advance, advance)
    return L, advance


def _by_steps(A: Array, B: Array, steps: int) -> tuple[Array, Array]:
    """By the binary digits of the number of steps: factors of ``P_j`` for ``j`` a power of two, and of their sums."""
    xp = namespace(A)
    block, power = square_factor(B), A
    total: Array | None = None
    shift = A
    while steps:
        if steps & 1:
            total, shift = (
                (block, power)
                if total is None
                else (square_factor(xp.concat([total, product(shift, block)], axis=-1)), product(shift, power))
            )
        steps >>= 1
        if steps:
            block = square_factor(xp.concat([block, product(power, block)], axis=-1))
            power = product(power, power)
    return total, shift


def _over_a_piece(A: Array, B: Array, seconds: float) -> tuple[Array, Array]:
    """A factor of the integral over a piece with ``|A| t <= 1/2`` by Gauss' rule, and ``e^{At}`` there, both by Taylor's series."""
    xp = namespace(A)
    terms, last = [B], B
    advance, power = eye(A.shape[-1], A), eye(A.shape[-1], A)
    for k in range(1, _TERMS):
        last, power = product(A, last) * (seconds / k), product(A, power) * (seconds / k)
        terms.append(last)
        advance = advance + power
    columns = []
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        at = 0.5 * (1.0 + float(node))  # as a part of the piece
        columns.append(sum(term * at**k for k, term in enumerate(terms)) * float(np.sqrt(0.5 * weight * seconds)))
    return square_factor(xp.concat(columns, axis=-1)), advance
