"""Hankel singular values along time."""

from __future__ import annotations

from typing import Any

from hsv import _device
from hsv._array import Array, conjugate_transpose, namespace, real, round_to, widen
from hsv.time_varying._gramians import after_update, between, check_maps, observation_factors, reachability_factors


def hankel_singular_values(A: Any, B: Any, C: Any, *, layer_convention: bool = False) -> Array:
    r"""Return the Hankel singular values of a time-varying system at every time of a window.

    .. math:: \sigma_i[t] = \sigma_i(L_o[t]^H L_c[t]), \qquad P[t] = L_c[t] L_c[t]^H,\ Q[t] = L_o[t] L_o[t]^H

    of :math:`x[t+1] = A_t x[t] + B_t u[t]`, :math:`y[t] = C_t x[t]`. They are the singular values of the map from the inputs
    ``u[0] ... u[t-1]`` to the outputs ``y[t] ... y[T-1]``, with no input from ``t`` on.

    Parameters
    ----------
    A : array
        Dense ``(..., T, n, n)``, diagonal ``(..., T, n)`` or scalar ``(..., T)``: known by ``A.ndim - B.ndim``.
    B, C : array
        ``(..., T, n, m)`` and ``(..., T, p, n)``. Batch axes must match exactly.
    layer_convention : bool
        The state of a layer sees the newest input and is read after that: :math:`h[t] = A_t h[t-1] + B_t u[t]`,
        :math:`y[t] = C_t h[t]`. Its values come from ``P[t+1]`` of ``(A, B)`` and ``Q[t]`` of ``A[1:]`` and ``C``: the map from
        ``u[0] ... u[t]`` to ``y[t] ... y[T-1]``.

    Returns
    -------
    array
        Shape ``(..., T + 1, n)``, for ``x[0] ... x[T]``; in the layers' convention ``(..., T, n)``, for ``h[0] ... h[T-1]``.
        Descending, real, never negative; library, device and precision of the input.

    Raises
    ------
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`.

    Notes
    -----
    From factors, never from a product ``P Q``: the error of each value is a small multiple of ``eps`` times the largest entry of
    ``Lo^H Lc`` before cancellation. ``x[0]`` is reached by nothing and ``x[T]`` read by nothing, so both ends are zero.
    ``O(T n^2 (n + m + p))``, batched.

    References
    ----------
    Verriest and Kailath (1983), IEEE Trans. Automat. Control 28; Dewilde and van der Veen, "Time-varying systems and computations",
    Kluwer (1998).

    Examples
    --------
    >>> import hsv
    >>> ones = [[[1.0]], [[1.0]], [[1.0]]]
    >>> hsv.time_varying.hankel_singular_values([0.0, 0.0, 0.0], ones, ones)[:, 0]                # a delay by one step
    array([0., 1., 1., 0.])
    >>> hsv.time_varying.hankel_singular_values([0.0, 0.0, 0.0], ones, ones, layer_convention=True)[:, 0]
    array([1., 1., 1.])
    """
    A, B, C = check_maps(A, B=B, C=C)
    reach, observe = factor_pair(widen(A), widen(B), widen(C), layer_convention)
    if layer_convention:
        reach, observe = reach[..., 1:, :, :], observe[..., 1:, :, :]
    return round_to(_device.singular_values(conjugate_transpose(observe) @ reach), real(B))


def factor_pair(A: Array, B: Array, C: Array, layer_convention: bool) -> tuple[Array, Array]:
    """Return the factors of ``P`` and ``Q`` of the states ``x[0] ... x[T]``, each ``(..., T + 1, n, n)``.

    In the layers' convention ``x[t]`` is ``h[t - 1]``, and ``Q`` counts the outputs that see it: ``y[t - 1]`` and later.
    """
    reach = reachability_factors(A, B)
    if not layer_convention:
        return reach, observation_factors(A, C)
    xp = namespace(C)
    axis = C.ndim - 3  # time
    # Nothing reads h[-1] itself: one step without an output in front, then A_0 leads to h[0].
    silent = xp.zeros_like(between(C, axis, 0, 1))
    observe = observation_factors(
        xp.concat([between(A, axis, 0, 1), after_update(A, C)], axis=axis), xp.concat([silent, C], axis=axis)
    )
    return reach, observe[..., :-1, :, :]
