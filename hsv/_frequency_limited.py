"""Gramians of the energy within a band of frequencies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from hsv._arguments import as_number
from hsv._array import (
    Array,
    conjugate,
    conjugate_transpose,
    imag,
    is_complex,
    namespace,
    on_host,
    real,
    round_to,
    squared_modulus,
    to_complex,
    widen,
)
from hsv._band_factors import band_factor
from hsv._blas import product
from hsv._cauchy import denominators, expm1
from hsv._errors import DtypeError, HsvError
from hsv._gramians import dual, factor, require_stable
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_system

Band = tuple[float, float] | Sequence[tuple[float, float]]
"""``(low, high)``, or several such pairs."""


def frequency_limited_gramians(sys: LinearSystem, band: Band) -> tuple[Array, Array]:
    r"""Return both Gramians of a band of frequencies, :math:`P_\Omega` and :math:`Q_\Omega`.

    .. math:: P_\Omega = \frac{1}{2\pi} \int_{\Omega} R(\omega)\, B B^H R(\omega)^H\,d\omega,\qquad
              Q_\Omega = \frac{1}{2\pi} \int_{\Omega} R(\omega)^H C^H C\, R(\omega)\,d\omega,\qquad
              \Omega = \{\mathrm{low} \le |\omega| \le \mathrm{high}\}

    with :math:`R(\omega) = (i\omega I - A)^{-1}` in continuous time, and :math:`(e^{i\theta} I - A)^{-1}` over the angle :math:`\theta = \omega\,\Delta t` in
    discrete time. Both signs of frequency count. Gramians of bands that fill the axis add up to the Gramians of :func:`hsv.controllability_gramian` and
    :func:`hsv.observability_gramian`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable.
    band : (float, float), or a list of such pairs
        ``(low, high)`` with ``0 <= low < high``, in rad/s, or rad/sample where ``dt=True``. ``math.inf`` is allowed for ``high`` and stands for
        :math:`\pi / \Delta t` in discrete time. Several bands must not overlap; they count together.

    Returns
    -------
    P, Q : array
        Shape ``(..., n, n)``, Hermitian, positive semidefinite; array type, device and precision of the input, real for a real system.

    Raises
    ------
    UnstableSystemError
    DtypeError, HsvError
        The band is no pair of numbers, empty, or reaches beyond :math:`\pi / \Delta t`; two bands overlap.

    Notes
    -----
    Diagonal systems: every entry is the logarithm of a cross ratio, evaluated without cancellation, so that bands far from all poles
    and narrow ones keep their digits; ``O(n^2 m)``, on the device of the arrays. Dense systems: Gauss' rule over pieces of the band that are so short that no pole comes near on their
    scale, 32 nodes each; ``O(n^3)`` and ``O(n^2 m)`` a node, on the host, one matrix of a batch after the other. Where more than 500 pieces would be needed (tens of resonances in the band whose damping is below ``1e-6`` of
    their distance), :math:`P_\Omega = S P + P S^H` and :math:`Q_\Omega = S^H Q + Q S` with :math:`S = \frac{1}{2\pi}\int_\Omega (i\omega I - A)^{-1} d\omega` from matrix logarithms at both edges, whose error is of the
    order of ``eps`` times the full Gramian, not the one of the band.

    References
    ----------
    Gawronski and Juang, "Model reduction in limited time and frequency intervals", Int. J. Systems Sci. 21 (1990).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0], [[2.0]], [[1.0]], dt=0)           # |G(iw)|^2 = 4 / (1 + w^2)
    >>> P, Q = hsv.frequency_limited_gramians(sys, (0.0, 1.0))                # 4 / pi * atan(1); over all frequencies 2
    >>> P, Q
    (array([[1.]]), array([[0.25]]))
    """
    require_system(sys)
    edges = checked_bands(sys, band)
    if isinstance(sys, DiagonalStateSpace):
        require_stable(sys)
        return _of_diagonal(sys, edges)
    assert isinstance(sys, StateSpace)
    mirror = dual(sys)
    assert isinstance(mirror, StateSpace)
    factors = [band_factor(x, edges) for x in (sys, mirror)]
    if any(L is None for L in factors):
        return by_logarithms(sys, edges)
    P, Q = (round_to(product(L, conjugate_transpose(L)), sys.B) for L in factors)
    return P, Q


def by_logarithms(sys: StateSpace, edges: list[tuple[float, float]]) -> tuple[Array, Array]:
    """Both Gramians from the matrix logarithm, for poles of any damping."""
    P, Q = (L @ conjugate_transpose(L) for L in (factor(sys), factor(dual(sys))))
    S = band_operator(sys, edges)
    half_P, half_Q = S @ P, Q @ S
    return (
        round_to(half_P + conjugate_transpose(half_P), sys.B),
        round_to(half_Q + conjugate_transpose(half_Q), sys.B),
    )


def band_operator(sys: StateSpace, edges: list[tuple[float, float]]) -> Array:
    r"""Return ``S`` of :func:`frequency_limited_gramians`, ``(..., n, n)``, which commutes with ``A``; the edges are those of :func:`checked_bands`."""
    S: Array = on_host(
        lambda A: sum(
            _edge(A, high, discrete=sys.is_discrete) - _edge(A, low, discrete=sys.is_discrete) for low, high in edges
        ),
        widen(sys.A),
        reason="the matrix logarithm",
    )
    return S


def checked_bands(sys: LinearSystem, band: Any) -> list[tuple[float, float]]:
    """Return the edges of one band or several, ascending; see :func:`_checked_band`."""
    several = isinstance(band, (list, tuple)) and len(band) > 0 and all(isinstance(x, (list, tuple)) for x in band)
    edges = sorted(_checked_band(sys, one) for one in (band if several else [band]))
    for (low, first), (second, high) in itertools.pairwise(edges):
        if second < first:
            step = sys.step if sys.is_discrete else 1.0
            raise HsvError(
                f"bands must not overlap, got ({low / step:.6g}, {first / step:.6g}) and ({second / step:.6g}, {high / step:.6g})"
            )
    return edges


def _checked_band(sys: LinearSystem, band: Any) -> tuple[float, float]:
    """Return the edges of the band, as angles in discrete time, and infinity there as pi."""
    try:
        low, high = (None, None) if isinstance(band, (str, bytes)) else (as_number(edge) for edge in band)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"band must be a pair of numbers (low, high), got {band!r}") from error
    if low is None or high is None:
        raise DtypeError(f"band must be a pair of numbers (low, high), got {band!r}")
    if not 0 <= low < high or math.isinf(low):
        raise HsvError(
            f"band must satisfy 0 <= low < high, got ({low}, {high}); both signs of frequency are counted by themselves"
        )
    if not sys.is_discrete:
        return low, high
    nyquist = math.pi / sys.step
    if math.isinf(high):
        high = nyquist
    if low >= nyquist or high > nyquist * (
        1 + 4 * np.finfo(np.float64).eps
    ):  # pi / dt may be rounded in more ways than one
        unit = "rad/sample" if sys.dt is True else "rad/s"
        raise HsvError(
            f"band must end at pi / dt = {nyquist:.6g} {unit} or before, got ({low:.6g}, {high:.6g}); math.inf stands for that end"
        )
    return low * sys.step, min(high * sys.step, math.pi)


def _of_diagonal(sys: DiagonalStateSpace, edges: list[tuple[float, float]]) -> tuple[Array, Array]:
    B, C = widen(sys.B), widen(sys.C)
    positive = sum(_half_band(sys, low, high) for low, high in edges)
    if is_complex(sys.poles()):
        mirror = _conjugate_poles(sys)
        kernel = positive + conjugate(sum(_half_band(mirror, low, high) for low, high in edges))
    else:
        kernel = 2.0 * real(positive)
    kernel = 0.5 * (kernel + conjugate_transpose(kernel))
    P = (B @ conjugate_transpose(B)) * kernel
    Q = (conjugate_transpose(C) @ C) * conjugate(kernel)
    return round_to(P, sys.B), round_to(Q, sys.B)


def _conjugate_poles(sys: DiagonalStateSpace) -> DiagonalStateSpace:
    log_poles = None if sys.log_poles is None else conjugate(sys.log_poles)
    return sys._rebuild(conjugate(sys.poles()), log_poles, sys.B, sys.C, sys.D)


def _half_band(sys: DiagonalStateSpace, low: float, high: float) -> Array:
    r"""Return :math:`\frac{1}{2\pi}\int (s - \lambda_i)^{-1} (\bar s - \bar\lambda_j)^{-1}` over the band on its positive side, ``(..., n, n)``.

    With :math:`g_{1,i} = s_1 - \lambda_i`, :math:`g_{2,j} = s_2 - \lambda_j` at the edges and :math:`d_{ij}` the denominators of the Gramian, the integral is
    :math:`\log(1 + \zeta) / (2\pi i\,d_{ij})`, :math:`\zeta = \delta\, d_{ij} / (g_{1,i}\,\bar g_{2,j})`, where :math:`\delta` is :math:`s_2 - s_1` or
    :math:`1 - s_1 \bar s_2`. The imaginary part of the logarithm is the sum of the angles under which :math:`\lambda_i` and :math:`\lambda_j` see the band,
    less half the arc's own: it may reach 2 pi, and then ``1 + zeta`` does not know it.
    """
    xp = namespace(sys.B)
    first, first_angle = _edge_gap(sys, low)
    last, last_angle = _edge_gap(sys, high)
    if not sys.is_discrete:
        step, arc = (1j * (high - low), 0.0) if math.isfinite(high) else (1j, 0.0)
    else:
        arc = high - low
        step = complex(2 * math.sin(arc / 2) ** 2, math.sin(arc))  # 1 - exp(-i arc)
    angle = last_angle - first_angle + 0.5 * arc  # (..., n)
    angle = angle[..., :, None] + angle[..., None, :]
    scale = step / (first[..., :, None] * conjugate(last)[..., None, :])
    zeta = scale * denominators(sys)
    x, y = xp.real(zeta), xp.imag(zeta)
    # Where the ratio is close to 1 on the first sheet, its logarithm comes from what it differs by; elsewhere from moduli and angles.
    small = (squared_modulus(zeta) < 0.25) & (angle < math.pi)
    inside = xp.where(small, x * (2 + x) + y * y, xp.zeros_like(x))
    growth = xp.log(xp.abs(last)) - xp.log(xp.abs(first))
    logarithm = to_complex(
        xp.where(small, 0.5 * xp.log1p(inside), growth[..., :, None] - growth[..., None, :]),
        xp.where(small, xp.atan2(y, 1 + x), angle),
    )
    known = squared_modulus(zeta) > 0
    quotient = xp.where(known, logarithm / xp.where(known, zeta, xp.ones_like(zeta)), xp.ones_like(zeta))
    return scale * quotient / (2j * math.pi)


def _edge_gap(sys: DiagonalStateSpace, edge: float) -> tuple[Array, Array]:
    """Return ``s - poles`` at an edge and its angle, ``(..., n)``, measured from that of ``s`` in discrete time: in (-pi/2, pi/2) then, for stable poles."""
    xp = namespace(sys.B)
    poles = widen(sys.poles())
    re, im = real(poles), imag(poles)
    if not sys.is_discrete:
        if math.isinf(edge):  # in units of the frequency
            return 1j * xp.ones_like(to_complex(re, im)), math.pi / 2 * xp.ones_like(re)
        gap = to_complex(-re, edge - im)
        return gap, xp.atan2(xp.imag(gap), xp.real(gap))
    s = complex(math.cos(edge), math.sin(edge))
    if sys.log_poles is None:
        gap = to_complex(s.real - re, s.imag - im)
    else:
        logs = widen(sys.log_poles)
        gap = to_complex(re, im) * expm1(to_complex(-real(logs), edge - imag(logs)))
    turned = gap * s.conjugate()
    return gap, xp.atan2(xp.imag(turned), xp.real(turned))


def _edge(A: np.ndarray, edge: float, *, discrete: bool) -> np.ndarray:
    r"""Return :math:`\frac{1}{2\pi}\int_{-w}^{w} (i\omega I - A)^{-1} d\omega`, or :math:`\frac{1}{2\pi}\int_{-w}^{w} (I - A e^{-i\theta})^{-1} d\theta` less half the arc, on the host."""
    one = np.eye(A.shape[-1])
    if edge == 0 or edge == (math.pi if discrete else math.inf):
        return np.zeros_like(A) if edge == 0 else np.broadcast_to(0.5 * one, A.shape).astype(A.dtype)
    share = edge / (2 * math.pi) * one if discrete else 0.0

    def logarithm(w: float) -> np.ndarray:
        return _logm(one - A * np.exp(-1j * w) if discrete else 1j * w * one - A)

    if not np.iscomplexobj(A):  # the other edge is the complex conjugate
        return np.asarray(share + logarithm(edge).imag / math.pi)
    return np.asarray(share - 0.5j / math.pi * (logarithm(edge) - logarithm(-edge)))


def _logm(x: np.ndarray) -> np.ndarray:
    """Principal logarithm of every matrix of a batch."""
    logarithms = [scipy.linalg.logm(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
    return np.asarray(logarithms, dtype=np.complex128).reshape(x.shape)
