r"""Gramians of time-varying systems over a finite window, by recursion, and their factors by QR updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hsv._array import (
    Array,
    as_arrays,
    conjugate,
    conjugate_transpose,
    namespace,
    require_finite,
    round_to,
    to_host,
    widen,
    zeros,
)
from hsv._errors import NonFiniteError, ShapeError

KINDS = ("dense", "diagonal", "scalar")


def controllability_gramians(A: Any, B: Any) -> Array:
    r"""Return the controllability Gramians along a window of ``T`` steps.

    .. math:: P[t+1] = A_t P[t] A_t^H + B_t B_t^H, \qquad P[0] = 0

    of :math:`x[t+1] = A_t x[t] + B_t u[t]`: ``P[t]`` is the covariance of ``x[t]`` under unit white noise from ``x[0] = 0``, and
    :math:`x^H P[t]^{-1} x` the least input energy that reaches ``x`` at time ``t``.

    Parameters
    ----------
    A : array
        Dense ``(..., T, n, n)``, diagonal ``(..., T, n)``, or scalar ``(..., T)`` for :math:`A_t = a_t I`: known by ``A.ndim - B.ndim``,
        which is 0, -1 or -2. Any size: the window is finite.
    B : array
        ``(..., T, n, m)``. The batch axes of both must match exactly.

    Returns
    -------
    array
        Shape ``(..., T + 1, n, n)``, Hermitian, positive semidefinite; library, device and precision of the input.

    Raises
    ------
    ShapeError
        The shapes do not fit, or the window is empty.
    NonFiniteError
        NaN or infinity in the input, or a Gramian that overflows; the message names the time.

    Notes
    -----
    ``T`` steps of batched array operations, ``O(T n^3)`` for dense, ``O(T n^2 m)`` for diagonal and scalar :math:`A_t`. Computed in
    double precision and rounded once. Sums of positive semidefinite terms: every step is backward stable. For Hankel values, use
    :func:`hsv.time_varying.hankel_singular_values`, which works on factors. Long recordings that do not fit in memory are the
    business of :class:`hsv.time_varying.GramianEstimator`.

    Layers whose state sees the newest input, :math:`h[t] = A_t h[t-1] + B_t u[t]`, reach ``h[t]`` with ``P[t+1]``.

    References
    ----------
    Verriest and Kailath, "On generalized balanced realizations", IEEE Trans. Automat. Control 28 (1983).

    Examples
    --------
    >>> import hsv
    >>> hsv.time_varying.controllability_gramians([0.5, 2.0], [[[1.0]], [[1.0]]])[:, 0, 0]      # 0, 1, 4 * 1 + 1
    array([0., 1., 5.])
    """
    A, B = check_maps(A, B=B)
    return _rounded("P[{}]", _recursion(widen(A), widen(B)), B)


def observability_gramians(A: Any, C: Any) -> Array:
    r"""Return the observability Gramians along a window of ``T`` steps.

    .. math:: Q[t] = A_t^H Q[t+1] A_t + C_t^H C_t, \qquad Q[T] = 0

    of :math:`x[t+1] = A_t x[t] + B_t u[t]`, :math:`y[t] = C_t x[t]`: :math:`x^H Q[t] x` is the energy of the outputs from ``t`` to the end
    of the window, if ``x[t] = x`` and no input follows.

    Parameters
    ----------
    A : array
        As for :func:`hsv.time_varying.controllability_gramians`; the kind is known by ``A.ndim - C.ndim``.
    C : array
        ``(..., T, p, n)``.

    Returns
    -------
    array
        Shape ``(..., T + 1, n, n)``.

    Raises
    ------
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`.

    Notes
    -----
    The controllability Gramians of :math:`A_t^H, C_t^H` with the time reversed. For layers, :math:`y[t] = C_t h[t]` with ``h[t]`` after the
    update, pass ``A[1:]`` and one unused entry: the first ``T`` results are the Gramians of ``h[0] ... h[T-1]``.

    Examples
    --------
    >>> import hsv
    >>> hsv.time_varying.observability_gramians([0.5, 2.0], [[[1.0]], [[1.0]]])[:, 0, 0]        # 0.25 * 1 + 1, 1, 0
    array([1.25, 1.  , 0.  ])
    """
    A, C = check_maps(A, C=C)
    return _rounded("Q[{}]", namespace(C).flip(_recursion(*dual(widen(A), widen(C))), axis=-3), C)


def controllability_factors(A: Any, B: Any) -> Array:
    r"""Return factors of the controllability Gramians, :math:`P[t] = L[t] L[t]^H`, without ever forming one.

    .. math:: [A_t L[t],\ B_t] = [L[t+1],\ 0]\, U_t^H \qquad (U_t \text{ unitary}), \qquad L[0] = 0

    Parameters
    ----------
    A, B : array
        As for :func:`hsv.time_varying.controllability_gramians`.

    Returns
    -------
    array
        Shape ``(..., T + 1, n, n)``, lower triangular. Half the digits that a Gramian loses in its small eigenvalues stay.

    Raises
    ------
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`. A factor overflows later than its Gramian does.

    Notes
    -----
    One QR factorisation of an ``n + m`` by ``n`` matrix a step: ``O(T n^2 (n + m))``, batched.

    References
    ----------
    Kailath, Sayed and Hassibi, "Linear estimation", Prentice Hall (2000), chapter 12 (array algorithms).

    Examples
    --------
    >>> import hsv
    >>> L = hsv.time_varying.controllability_factors([0.5, 2.0], [[[1.0]], [[1.0]]])
    >>> (L @ L.mT)[:, 0, 0].round(12)
    array([0., 1., 5.])
    """
    A, B = check_maps(A, B=B)
    return _rounded("the factor of P[{}]", reachability_factors(widen(A), widen(B)), B)


def observability_factors(A: Any, C: Any) -> Array:
    r"""Return factors of the observability Gramians, :math:`Q[t] = L[t] L[t]^H`; the dual of :func:`hsv.time_varying.controllability_factors`.

    Examples
    --------
    >>> import hsv
    >>> L = hsv.time_varying.observability_factors([0.5, 2.0], [[[1.0]], [[1.0]]])
    >>> (L @ L.mT)[:, 0, 0].round(12)
    array([1.25, 1.  , 0.  ])
    """
    A, C = check_maps(A, C=C)
    return _rounded("the factor of Q[{}]", observation_factors(widen(A), widen(C)), C)


def reachability_factors(A: Array, B: Array) -> Array:
    """:func:`hsv.time_varying.controllability_factors` of checked arrays in double precision."""
    return _require_no_overflow("the factor of P[{}]", _factors(A, B))


def observation_factors(A: Array, C: Array) -> Array:
    """:func:`hsv.time_varying.observability_factors` of checked arrays in double precision."""
    return _require_no_overflow("the factor of Q[{}]", namespace(C).flip(_factors(*dual(A, C)), axis=-3))


def check_maps(A: Any, *, B: Any = None, C: Any = None) -> list[Array]:
    """Return A and those of B and C that are given as arrays of one library and dtype, or raise what is wrong with their shapes."""
    names = [name for name, value in (("A", A), ("B", B), ("C", C)) if value is not None]
    arrays = as_arrays(names, [value for value in (A, B, C) if value is not None])
    A, maps = arrays[0], dict(zip(names[1:], arrays[1:], strict=True))
    for name, M in maps.items():
        _check_map(A, name, M)
    if len(maps) == 2 and maps["B"].shape[-2] != maps["C"].shape[-1]:
        raise ShapeError(
            f"B and C must have the same number of states, got B {tuple(maps['B'].shape)} and C {tuple(maps['C'].shape)}"
        )
    for name, array in zip(names, arrays, strict=True):
        require_finite(name, array)
    return arrays


def _check_map(A: Array, name: str, M: Array) -> None:
    wanted = "(..., T, n, m)" if name == "B" else "(..., T, p, n)"
    if M.ndim < 3 or M.shape[-1] == 0 or M.shape[-2] == 0:
        raise ShapeError(f"{name} must have shape {wanted} with no empty axis, got {tuple(M.shape)}")
    kind = kind_of(A, M)
    lead = tuple(M.shape[:-2])
    if lead[-1] == 0:
        raise ShapeError(f"{name} must have at least one step of time, got shape {tuple(M.shape)} for {wanted}")
    n = M.shape[-2] if name == "B" else M.shape[-1]
    expected = (*lead, *{"dense": (n, n), "diagonal": (n,), "scalar": ()}[kind])
    if tuple(A.shape) != expected:
        where = "along time" if A.shape[len(lead) - 1] != lead[-1] else "in the batch axes or the states"
        raise ShapeError(
            f"A and {name} must match {where}: a {kind} A has shape {expected} for {name} {tuple(M.shape)}, got {tuple(A.shape)}"
        )


def kind_of(A: Array, M: Array) -> str:
    """Return ``"dense"``, ``"diagonal"`` or ``"scalar"``, from the number of axes of A and of B or C."""
    missing = M.ndim - A.ndim
    if not 0 <= missing < len(KINDS):
        raise ShapeError(
            f"A must have as many axes as B and C (dense), one less (diagonal) or two less (scalar), got {tuple(A.shape)} beside {tuple(M.shape)}"
        )
    return KINDS[missing]


def dual(A: Array, C: Array) -> tuple[Array, Array]:
    """Return ``A^H`` and ``C^H`` with the time reversed: reaching in the dual is observing."""
    xp = namespace(C)
    kind = kind_of(A, C)
    axis = {"dense": -3, "diagonal": -2, "scalar": -1}[kind]
    A = conjugate_transpose(A) if kind == "dense" else conjugate(A)
    return xp.flip(A, axis=axis), xp.flip(conjugate_transpose(C), axis=-3)


def after_update(A: Array, C: Array) -> Array:
    """Return the ``A`` with which ``C`` observes the state after the update: ``A[1:]`` and a zero that nothing reads."""
    axis = C.ndim - 3  # time
    first = between(A, axis, 0, 1)
    return namespace(A).concat([between(A, axis, 1, None), namespace(A).zeros_like(first)], axis=axis)


def between(X: Array, axis: int, start: int | None, stop: int | None) -> Array:
    """Return the entries ``start:stop`` of one axis."""
    return X[(*(slice(None),) * axis, slice(start, stop), ...)]


def propagator(A: Array, M: Array) -> Callable[[int, Array], Array]:
    """Return the function ``(t, X) -> A_t X`` for matrices ``X (..., n, k)``."""
    kind = kind_of(A, M)
    if kind == "dense":
        return lambda t, X: A[..., t, :, :] @ X
    if kind == "diagonal":
        return lambda t, X: A[..., t, :, None] * X
    return lambda t, X: A[..., t, None, None] * X


def _recursion(A: Array, B: Array) -> Array:
    advance = propagator(A, B)
    P = zeros((*B.shape[:-3], B.shape[-2], B.shape[-2]), B)
    gramians = [P]
    with np.errstate(over="ignore", invalid="ignore"):
        sources = B @ conjugate_transpose(B)
        for t in range(B.shape[-3]):
            P = advance(t, conjugate_transpose(advance(t, P))) + sources[..., t, :, :]  # (A P)^H = P A^H
            gramians.append(P)
    return namespace(B).stack(gramians, axis=-3)


def _factors(A: Array, B: Array) -> Array:
    xp = namespace(B)
    advance = propagator(A, B)
    L = zeros((*B.shape[:-3], B.shape[-2], B.shape[-2]), B)
    factors = [L]
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(B.shape[-3]):
            wide = xp.concat([advance(t, L), B[..., t, :, :]], axis=-1)  # (..., n, n + m)
            L = conjugate_transpose(xp.linalg.qr(conjugate_transpose(wide), mode="reduced")[1])
            factors.append(L)
    return xp.stack(factors, axis=-3)


def _rounded(name: str, results: Array, like: Array) -> Array:
    with np.errstate(over="ignore"):
        return _require_no_overflow(name, round_to(results, like))


def _require_no_overflow(name: str, results: Array) -> Array:
    """Raise :class:`NonFiniteError` that names the first time in the order of the recursion: from the finite end of the window."""
    xp = namespace(results)
    finite = xp.isfinite(results)
    if bool(xp.all(finite)):
        return results
    bad = ~to_host(finite)
    times = np.flatnonzero(bad.any(axis=(*range(bad.ndim - 3), -2, -1)))
    first = int(
        times[-1] if bad.shape[-3] - 1 not in times else times[0]
    )  # forward recursions stay infinite to the end
    raise NonFiniteError(
        f"{name.format(first)} overflows in {results.dtype}; likely causes, in this order: an A_t that grows (a modulus above 1 over many "
        "steps), a window too long for it; shorten the window, or scale the system"
    )
