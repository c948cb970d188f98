r"""Certificates: constant matrices that bound the Gramians of a time-varying system at all times, and the truncation that they certify.

For scalar and diagonal ``A_t`` the inequality ``A_t P A_t^H + B_t B_t^H <= P`` is ``M_t M_t^H <= P`` with ``M_t = (I - A_t A_t^H)^{-1/2} B_t``, for
every ``P`` that is a matrix (scalar) or a diagonal one (diagonal): an ellipsoid, or one with axes along the states, around the ellipsoids of all times.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hsv._array import Array, conjugate_transpose, is_complex, namespace, on_host, round_to, to_host, widen
from hsv._errors import HsvError, OrderError, OrderWarning, UnstableSystemError
from hsv._order import ErrorBound, Rule, as_rule
from hsv.time_varying._gramians import after_update, check_maps, kind_of

_EPS = float(np.finfo(np.float64).eps)
_SLACK = 1e-6  # relative widening of a certificate, so that rounding errors, squared and divided by it, stay far below the values
_SHARE = (
    1e-4  # of a certificate given to the states that are kept: their size is free, for only the others enter the bound
)
_GAP = 1e-2  # how far from the least volume an ellipsoid may be, as a share of it for each dimension
_STEPS = 2000  # at the most, for one ellipsoid; what is found after them holds too, and is larger
_ROUNDS = 8  # of new points, and of new shares among the states that are cut off


@dataclass(frozen=True)
class CertifiedReduction:
    r"""The outcome of :func:`hsv.time_varying.certified_truncation`.

    Attributes
    ----------
    A, B, C : array
        The reduced system, ``(..., T, r, m)`` and ``(..., T, p, r)`` with ``r = max(orders)``; ``A`` as it was for scalar :math:`A_t`, ``(..., T, r)`` for
        diagonal ones. In a batch the shorter systems are padded with zeros.
    orders : array
        Kept states of each system, ``(...)``, integers.
    certified_values : array
        ``(..., n)``, in double precision, descending: the square roots of the eigenvalues of ``P Q`` of the certificates for all states, in place of
        Hankel singular values. The rule has seen these.
    error_bound : array
        ``(...)``, in double precision: :math:`\|y - y_r\|_2 \le` this :math:`\|u\|_2`, with both systems at rest at the start. It covers the truncation, not the
        rounding of the reduced matrices.
    left, right : array
        ``(..., n, r)``, the same at all times: :math:`left^H right = I`, ``B_r[t] = left^H B_t``, ``C_r[t] = C_t right``. Columns of the
        identity for diagonal :math:`A_t`; zero in the padding.
    P, Q : array
        ``(..., n, n)``, in double precision: the certificates that the bound rests on, block diagonal in the coordinates of the reduction. The bound is
        twice the sum of the ``n - r`` smallest square roots of the eigenvalues of ``P Q``.
    notes : tuple of str
        What a careful user should know.
    """

    A: Array
    B: Array
    C: Array
    orders: Array
    certified_values: Array
    error_bound: Array
    left: Array
    right: Array
    P: Array
    Q: Array
    notes: tuple[str, ...] = ()


def controllability_certificate(A: Any, B: Any) -> Array:
    r"""Return one constant :math:`P` for all times of a time-varying system:

    .. math:: A_t P A_t^H + B_t B_t^H \preceq P \qquad \text{for all } t .

    Every controllability Gramian ``P[t]`` of the sequence is then at most :math:`P`, and with its dual it bounds the error of a truncation
    (:func:`hsv.time_varying.certified_truncation`).

    Parameters
    ----------
    A : array
        Scalar ``(..., T)`` or diagonal ``(..., T, n)``, of modulus below 1; a modulus of 1 may stand where ``B`` is zero.
    B : array
        ``(..., T, n, m)``. Batch axes must match exactly.

    Returns
    -------
    array
        Shape ``(..., n, n)``, in **double precision** whatever the input, since rounding would break the inequality; diagonal for a diagonal ``A``.

    Raises
    ------
    HsvError
        ``A`` is dense: a common solution need not exist, and none is known in closed form.
    UnstableSystemError
        A modulus is 1 or more; the message says where.
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`.

    Notes
    -----
    Scalar :math:`A_t = a_t I`: the inequality is :math:`P \succeq B_t B_t^H / (1 - |a_t|^2)`. The ellipsoid of least volume around all
    of them (Löwner and John) comes from Khachiyan's algorithm with away steps, to 1 % a dimension.

    Diagonal :math:`A_t`: with :math:`P = \operatorname{diag}(p)` and :math:`g_{ti} = \|b_{ti}\|^2 / (1 - |a_{ti}|^2)`, where :math:`b_{ti}` is row
    ``i`` of :math:`B_t`, it is enough that :math:`\sum_i g_{ti} / p_i \le 1` for all ``t``; for one input this is necessary too. (Several inputs:
    the largest eigenvalue of :math:`B_t^H (P - A_t P A_t^H)^{-1} B_t`, which must be at most 1, is at most its trace, the sum; the result
    is then scaled down until the largest eigenvalue is 1.) Among these the least :math:`\sum_i \log p_i` is found by the multiplicative
    algorithm of optimal design.

    The mean over ``t`` of the solutions for each ``t`` is **not** a certificate. The result is widened by 1e-6, and by what double
    precision cannot resolve of its largest eigenvalue, so that the inequality holds for the numbers returned. On the host;
    a step of the search costs ``O(T n m)``.

    References
    ----------
    Khachiyan, "Rounding of polytopes in the real number model of computation", Math. Oper. Res. 21 (1996). Todd and Yıldırım, "On
    Khachiyan's algorithm for the computation of minimum-volume enclosing ellipsoids", Discrete Appl. Math. 155 (2007), for away steps.
    Silvey, Titterington and Torsney (1978), Commun. Statist. A7, for the multiplicative algorithm.

    Examples
    --------
    >>> import hsv
    >>> P = hsv.time_varying.controllability_certificate([0.6, 0.0], [[[4.0]], [[2.0]]])      # the larger of 16 / (1 - 0.36) and 4
    >>> round(float(P[0, 0]), 3)
    25.0
    """
    A, B = check_maps(A, B=B)
    return on_host(
        lambda M: _dense_certificate(M, kind_of(A, B)),
        _sources(widen(A), widen(B), "B"),
        reason="the search for a certificate",
    )


def observability_certificate(A: Any, C: Any) -> Array:
    r"""Return one constant :math:`Q` for all times, the dual of :func:`hsv.time_varying.controllability_certificate`:

    .. math:: A_t^H Q A_t + C_t^H C_t \preceq Q \qquad \text{for all } t .

    Parameters
    ----------
    A : array
        As for :func:`hsv.time_varying.controllability_certificate`. For layers, :math:`y[t] = C_t h[t]` after the update, pass ``A[1:]`` and one zero.
    C : array
        ``(..., T, p, n)``.

    Returns
    -------
    array
        Shape ``(..., n, n)``, in double precision.

    Raises
    ------
    HsvError, UnstableSystemError, ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_certificate`.

    Examples
    --------
    >>> import hsv
    >>> Q = hsv.time_varying.observability_certificate([[0.6], [0.0]], [[[4.0]], [[2.0]]])
    >>> round(float(Q[0, 0]), 3)
    25.0
    """
    A, C = check_maps(A, C=C)
    return on_host(
        lambda M: _dense_certificate(M, kind_of(A, C)),
        _sources(widen(A), conjugate_transpose(widen(C)), "C"),
        reason="the search for a certificate",
    )


def certified_truncation(
    A: Any, B: Any, C: Any, rule: Rule | int, *, layer_convention: bool = False
) -> CertifiedReduction:
    r"""Reduce a time-varying system by one change of basis for all times, with a bound of the error that does not grow with time.

    With constant certificates :math:`A_t P A_t^H + B_t B_t^H \preceq P` and :math:`A_t^H Q A_t + C_t^H C_t \preceq Q` for all ``t``, both
    block diagonal in the coordinates in which the last states are cut off,

    .. math:: \|y - y_r\|_2 \le 2 \sum_{i > r} \sqrt{\lambda_i(P Q)}\;\|u\|_2 .

    **What is certified:** the sequence of matrices that is passed in, taken as given, for every input ``u`` of it. If :math:`A_t, B_t, C_t` are
    computed from the input of a model, as in selective state-space layers, the bound says nothing about other inputs, for they make other
    matrices. Nothing is claimed for projections followed by compensation or training.

    Parameters
    ----------
    A : array
        Scalar ``(..., T)``: any change of basis commutes with it, and the reduced system is balanced. Diagonal ``(..., T, n)``: states are
        chosen, without compensation. Of modulus below 1; a modulus of 1 may stand where ``B`` and ``C`` are zero.
    B, C : array
        ``(..., T, n, m)`` and ``(..., T, p, n)``. Batch axes must match exactly.
    rule : Rule or int
        Sees the certified values of all states. An int means ``hsv.Order``.
    layer_convention : bool
        :math:`h[t] = A_t h[t-1] + B_t u[t]`, :math:`y[t] = C_t h[t]`.

    Returns
    -------
    CertifiedReduction
        Library and device of the input; ``A``, ``B``, ``C`` in its precision, the certificate in double precision.

    Raises
    ------
    HsvError
        ``A`` is dense: no certificate is known.
    UnstableSystemError
        A modulus is 1 or more.
    OrderError
        No order meets the rule.
    ShapeError, NonFiniteError
        As for :func:`hsv.time_varying.controllability_gramians`.

    Warns
    -----
    OrderWarning
        The order was capped at the number of states that double precision can tell from nothing, or nothing is left to keep.

    Notes
    -----
    The certificates are found as in :func:`hsv.time_varying.controllability_certificate`, once for all states, by which the basis or the states
    are chosen, and once more for the part that is cut off: certificates may be as large as one likes on what is kept, and the bound
    does not see it. Each time the ellipsoid of least volume competes with the mean of :math:`M_t M_t^H`,
    :math:`M_t = (I - A_t A_t^H)^{-1/2} B_t`, scaled by its largest generalised eigenvalue, and the better pair is taken.

    Since a rule sees the first certificates and not the tightened ones, ``hsv.ErrorBound`` is met with room to spare.
    How tight the bound is, is measured in the documentation: see "Time-varying systems".

    References
    ----------
    Sandberg and Rantzer, "Balanced truncation of linear time-varying systems", IEEE Trans. Automat. Control 49 (2004); Lall and Beck,
    "Error-bounds for balanced model-reduction of linear time-varying systems", IEEE Trans. Automat. Control 48 (2003).

    Examples
    --------
    Two states, the second one a hundred times weaker in and out; the bound is about ``2 * 0.01^2 / (1 - 0.25)``:

    >>> import hsv, numpy
    >>> A = numpy.full((20, 2), 0.5)
    >>> B, C = numpy.tile([[1.0], [0.01]], (20, 1, 1)), numpy.tile([[1.0, -0.01]], (20, 1, 1))
    >>> red = hsv.time_varying.certified_truncation(A, B, C, 1)
    >>> red.A.shape, round(float(red.error_bound), 6)
    ((20, 1), 0.000267)
    """
    rule = as_rule(rule)
    A, B, C = check_maps(A, B=B, C=C)
    kind = kind_of(A, B)
    wide = widen(A), widen(B), conjugate_transpose(widen(C))
    later = after_update(wide[0], C) if layer_convention else wide[0]
    M, N = _sources(wide[0], wide[1], "B"), _sources(later, wide[2], "C")
    search = _choose_basis if kind == "scalar" else _choose_states
    found = _Found(*on_host(lambda M, N: search(_flat(M), _flat(N), rule), M, N, reason="the search for a certificate"))
    for note in found.notes:
        warnings.warn(note, OrderWarning, stacklevel=2)
    xp, batch = namespace(B), tuple(M.shape[:-3])

    def back(x: Array) -> Array:
        return xp.reshape(x, (*batch, *x.shape[1:]))

    left, right = back(found.left), back(found.right)
    reduced_A = round_to(wide[0] @ right, A) if kind == "diagonal" else A
    in_time = (..., None, slice(None), slice(None))
    return CertifiedReduction(
        A=reduced_A,
        B=round_to(conjugate_transpose(left)[in_time] @ wide[1], B),
        C=round_to(widen(C) @ right[in_time], B),
        orders=back(found.orders),
        certified_values=back(found.values),
        error_bound=back(found.bound),
        left=round_to(left, B),
        right=round_to(right, B),
        P=back(found.P),
        Q=back(found.Q),
        notes=found.notes,
    )


class _Found(NamedTuple):
    """What the search found; the first axis is the batch."""

    left: Array
    right: Array
    orders: Array
    values: Array
    bound: Array
    P: Array
    Q: Array
    notes: tuple[str, ...]


def _sources(A: Array, B: Array, name: str) -> Array:
    """``M_t = (I - A_t A_t^H)^{-1/2} B_t``, ``(..., T, n, m)``, or raise what makes that impossible."""
    xp = namespace(B)
    kind = kind_of(A, B)
    if kind == "dense":
        raise HsvError(
            "no certificate is known for a dense A: one P with A_t P A_t^H + B_t B_t^H <= P for all t need not exist; pass scalar (..., T) or "
            "diagonal (..., T, n) A, or use hsv.time_varying.balanced_truncation, whose bound counts every time"
        )
    modulus = xp.abs(A)[..., None] if kind == "diagonal" else xp.abs(A)[..., None, None]
    modulus = xp.broadcast_to(modulus, (*B.shape[:-1], 1))
    silent = xp.all(B == 0, axis=-1, keepdims=True)
    if kind == "scalar":
        silent = xp.broadcast_to(xp.all(silent, axis=-2, keepdims=True), tuple(silent.shape))
    if is_complex(A):  # next to 1 the rounding error of the modulus itself matters
        modulus = xp.where(silent, modulus, modulus * (1 + 4 * _EPS))
    gap = (1.0 - modulus) * (1.0 + modulus)
    bad = (gap < 0) | ((gap == 0) & ~silent)
    if bool(xp.any(bad)):
        index = tuple(int(i) for i in np.argwhere(to_host(bad))[0])[: A.ndim]
        raise UnstableSystemError(
            f"A must have modulus below 1 for a certificate (1 where {name} is zero), found {float(to_host(modulus)[(*index, *(0,) * (B.ndim - len(index)))]):.10g} "
            f"at index {index}; leave out steps that only hold the state, or use hsv.time_varying.balanced_truncation"
        )
    return B * xp.astype(xp.where(gap > 0, gap, xp.ones_like(gap)) ** -0.5, B.dtype)


def _flat(M: np.ndarray) -> np.ndarray:
    return M.reshape(-1, *M.shape[-3:])


def _dense_certificate(M: np.ndarray, kind: str) -> np.ndarray:
    """The certificate of the host arrays ``M_t`` as matrices, widened until the rounded numbers satisfy the inequality."""
    batch, n = M.shape[:-3], M.shape[-2]
    M = _flat(M)
    if kind == "diagonal":
        P = np.eye(n) * _axes(M)[:, None, :]
    else:
        L = _ellipsoids(M)[0]
        P = L @ _h(L)
        P = P + 4 * n * _EPS * np.trace(P, axis1=-2, axis2=-1).real[:, None, None] * np.eye(n)
    return P.reshape(*batch, n, n).astype(M.dtype)


def _choose_basis(M: np.ndarray, N: np.ndarray, rule: Rule) -> _Found:
    """Scalar ``A_t``: balance the certificates, cut, and certify anew what was cut off."""
    n = M.shape[-2]
    reach, observe, U, sigma, Vh = _best_pair(M, N, rule)
    noise = _noise(reach, observe)
    orders, notes = _choose_orders(rule, sigma, noise)
    r = max(int(orders.max(initial=1)), 1)
    keep = np.arange(r) < orders[:, None]  # (batch, r)
    root = np.where(keep, sigma[:, :r], 1.0) ** -0.5 * keep
    right = (reach @ _h(Vh[:, :r])) * root[:, None, :]
    left = (observe @ U[:, :, :r]) * root[:, None, :]
    padding = np.eye(r) * ~keep[:, None, :]
    left = left @ _h(np.linalg.inv(_h(left) @ right + padding))  # removes the rounding errors of left^H right

    onto = right @ _h(left)  # the projection onto what is kept, along what is cut off
    beside = np.eye(n) - onto
    error = 4 * n * _EPS * np.linalg.norm(onto, axis=(-2, -1))
    tail_reach, tail_observe, *_ = _best_pair(
        beside[:, None] @ M,
        _h(beside)[:, None] @ N,
        None,
        error * np.linalg.norm(M, axis=(-2, -1)).max(axis=-1),
        error * np.linalg.norm(N, axis=(-2, -1)).max(axis=-1),
    )
    tail_reach, tail_observe = beside @ tail_reach, _h(beside) @ tail_observe
    tail = np.linalg.svd(_h(tail_observe) @ tail_reach, compute_uv=False)
    # n - r of these values are there; the others are rounding errors, and counted as such.
    bound = 2 * np.sum(tail + _noise(tail_reach, tail_observe)[:, None], axis=-1) / (1 - _SHARE)
    P = _join(onto @ reach, tail_reach)
    Q = _join(_h(onto) @ observe, tail_observe)
    return _Found(left, right, orders, sigma, bound, P, Q, notes)


def _choose_states(M: np.ndarray, N: np.ndarray, rule: Rule) -> _Found:
    """Diagonal ``A_t``: keep the states with the largest certified values, and certify anew the others."""
    n = M.shape[-2]
    p, q = _axes(M), _axes(N)
    score = np.sqrt(p * q)
    ranking = np.argsort(-score, axis=-1, kind="stable")
    sigma = np.take_along_axis(score, ranking, axis=-1)
    orders, notes = _choose_orders(rule, sigma, np.zeros(len(M)))
    kept = np.zeros((len(M), n), bool)
    np.put_along_axis(kept, ranking, np.arange(n) < orders[:, None], axis=-1)
    r = max(int(orders.max(initial=1)), 1)
    states = np.argsort(~kept, axis=-1, kind="stable")[:, :r]  # in their old order
    select = (np.arange(n)[:, None] == states[:, None, :]) & (np.arange(r) < orders[:, None])[:, None, :]
    select = select.astype(M.dtype)

    tail_p, tail_q = _tail_axes(M, N, ~kept)
    p = np.where(kept, p / _SHARE, tail_p / (1 - _SHARE))
    q = np.where(kept, q / _SHARE, tail_q / (1 - _SHARE))
    bound = 2 * np.sum(np.where(kept, 0.0, np.sqrt(p * q)), axis=-1) * (1 + 4 * n * _EPS)
    identity = np.eye(n, dtype=M.dtype)
    return _Found(select, select, orders, sigma, bound, identity * p[:, None, :], identity * q[:, None, :], notes)


def _choose_orders(rule: Rule, sigma: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    orders = rule.choose(sigma)
    most = np.sum(sigma > noise[:, None], axis=-1)
    notes = []
    if np.any(orders > most):
        if isinstance(rule, ErrorBound):
            raise OrderError(
                f"no order meets ErrorBound({rule.bound:g}): certified values below {noise.max():.3g} are rounding errors"
            )
        which = np.argmax(orders - most)
        notes.append(
            f"the order was capped at {most.flat[which]} instead of {orders.flat[which]}: the certified values beyond are rounding errors or zero"
        )
        orders = np.minimum(orders, most)
    if np.any(orders == 0):
        notes.append("all certified values are zero: no input reaches the state, or no output sees it")
    return orders.astype(np.int64), tuple(notes)


def _best_pair(
    M: np.ndarray,
    N: np.ndarray,
    rule: Rule | None,
    error_M: np.ndarray | float = 0.0,
    error_N: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, ...]:
    """Return factors of both certificates and the SVD of ``observe^H reach`` for the pair that serves the rule best: fewest states, then the least bound.

    Without a rule, the least sum of all values.
    """
    best: list[np.ndarray] = []
    best_cost = np.full((2, len(M)), np.inf)
    reaches, observes = _ellipsoids(M, error_M), _ellipsoids(N, error_N)
    for reach in reaches:
        for observe in observes:
            U, sigma, Vh = np.linalg.svd(_h(observe) @ reach)
            orders = np.zeros(len(M), np.int64) if rule is None else rule.choose(sigma)
            discarded = np.arange(sigma.shape[-1]) >= orders[:, None]
            cost = np.stack([orders, np.sum(sigma * discarded, axis=-1)])
            candidate = [reach, observe, U, sigma, Vh]
            if not best:
                best, best_cost = candidate, cost
                continue
            better = (cost[0] < best_cost[0]) | ((cost[0] == best_cost[0]) & (cost[1] < best_cost[1]))
            best_cost = np.where(better, cost, best_cost)
            best = [
                np.where(better.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip(candidate, best, strict=True)
            ]
    return tuple(best)


def _join(kept: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """A certificate of ``v = v_kept + v_tail`` from those of both parts: ``v v^H <= v_k v_k^H / s + v_t v_t^H / (1 - s)``."""
    return kept @ _h(kept) / _SHARE + tail @ _h(tail) / (1 - _SHARE)


def _noise(reach: np.ndarray, observe: np.ndarray) -> np.ndarray:
    """The rounding errors of the singular values of ``observe^H reach``."""
    return 4 * reach.shape[-1] * _EPS * np.linalg.norm(_h(np.abs(observe)) @ np.abs(reach), axis=(-2, -1))


def _h(x: np.ndarray) -> np.ndarray:
    return x.conj().swapaxes(-1, -2)


def _lower(wide: np.ndarray) -> np.ndarray:
    """The lower triangular ``L`` with ``L L^H = wide wide^H``."""
    return _h(np.linalg.qr(_h(wide), mode="reduced")[1])


def _ellipsoids(M: np.ndarray, error: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``L (batch, n, n)`` with ``L L^H >= M_t M_t^H`` for all ``t``: of nearly the least volume, and the scaled mean.

    ``M (batch, T, n, m)``; `error (batch,)` says how far its columns may be from the true ones. All is done in coordinates in which the mean is the
    identity, and on its range alone.
    """
    size, steps, n, m = M.shape
    V = np.moveaxis(M, 1, 2).reshape(size, n, steps * m)
    U, s, _ = np.linalg.svd(_lower(V), full_matrices=False)  # (batch, n, k)
    used = s > 1e-12 * s[:, :1]  # (batch, k)
    Z = np.where(used, 1 / np.where(used, s, 1.0), 0.0)[:, :, None] * (_h(U) @ V)  # (batch, k, T m), Z Z^H = I
    outside = (V - U @ (np.where(used, s, 0.0)[:, :, None] * Z)).reshape(size, n, steps, m)
    missed = np.sqrt(np.sum(np.abs(outside) ** 2, axis=(1, 3)).max(axis=-1)) + 4 * n * _EPS * s[:, 0] + error
    # v v^H <= (1 + e) v' v'^H + (1 + 1 / e) (v - v') (v - v')^H: the floor covers what the main axes miss
    floor = np.sqrt(1 + 1 / _SLACK) * missed[:, None, None] * np.eye(n)
    unused = np.eye(s.shape[-1]) * ~used[:, None, :]
    shapes = (
        _least_volume(np.moveaxis(Z.reshape(size, s.shape[-1], steps, m), 2, 1), used),
        np.eye(s.shape[-1]) - unused,
    )
    factors = []
    for shape in shapes:
        root = np.linalg.cholesky(shape + unused)
        axes = (U * s[:, None, :]) @ root * (np.sqrt(1 + _SLACK) * _reach(root, Z, m))[:, None, None]
        L = _lower(np.concatenate([axes, floor], axis=-1))
        # Checked on the numbers that are used, and widened if need be: L L^H >= M_t M_t^H where |L^{-1} M_t| <= 1.
        factors.append(L * np.maximum(1.0, _reach(L, V, m) * (1 + 4 * n * _EPS))[:, None, None])
    return factors[0], factors[1]


def _reach(L: np.ndarray, V: np.ndarray, m: int) -> np.ndarray:
    """The largest norm of ``L^{-1} M_t`` over time, ``(batch,)``, by forward substitution; ``V`` has all columns, ``m`` for each time."""
    Y = np.zeros_like(V)
    for i in range(L.shape[-1]):
        rest = V[:, i] - (L[:, i, None, :i] @ Y[:, :i])[:, 0]
        pivot = L[:, i, i, None]
        Y[:, i] = np.where(pivot == 0, 0.0, rest / np.where(pivot == 0, 1.0, pivot))  # zero only where all sources are
    blocks = np.moveaxis(Y.reshape(*Y.shape[:2], V.shape[-1] // m, m), 2, 1)  # (batch, T, k, m)
    return np.linalg.norm(blocks, 2, axis=(-2, -1)).max(axis=-1)


def _least_volume(Z: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The shape ``S (batch, k, k)`` of the ellipsoid of least volume around the ellipsoids ``Z_t Z_t^H``, up to a factor.

    Khachiyan's algorithm on points of the ellipsoids: for one input there is one each; for several, first the ends of their axes, and
    then, round by round, the points that stick out most.
    """
    size, _, k, m = Z.shape
    dimension = used.sum(axis=-1)
    unused = np.eye(k) * ~used[:, None, :]
    points = Z
    if m > 1:
        axes, lengths, _ = np.linalg.svd(Z, full_matrices=False)
        points = axes * lengths[..., None, :]
    points = np.moveaxis(points, 1, 2).reshape(size, k, points.shape[1] * points.shape[3])
    weights = _first_weights(points, dimension)
    for _ in range(_ROUNDS):
        weights = _khachiyan(points, weights, dimension)
        shape = (points * weights[:, None, :]) @ _h(points)
        if m == 1:
            break
        squares, directions = np.linalg.eigh(_h(Z) @ np.linalg.solve((shape + unused)[:, None], Z))
        out = np.any(
            squares[..., -1] > dimension[:, None] * (1 + 2 * _GAP), axis=0
        )  # (T,): in some system of the batch
        if not np.any(out):
            break
        farthest = (Z[:, out] @ directions[:, out, :, -1:])[..., 0]  # (batch, times, k)
        needed = np.any(weights > 0, axis=0)
        points = np.concatenate([points[:, :, needed], np.moveaxis(farthest, 1, 2)], axis=-1)
        weights = np.concatenate([weights[:, needed], np.zeros(farthest.shape[:2])], axis=-1)
    return shape


def _first_weights(points: np.ndarray, dimension: np.ndarray) -> np.ndarray:
    """Equal weights on as many points as there are dimensions, each the farthest from the span of those before it (Kumar and Yıldırım 2005)."""
    rows, rest = np.arange(len(points)), points.copy()
    weights = np.zeros((len(points), points.shape[-1]))
    for i in range(points.shape[1]):
        farthest = np.sum(np.abs(rest) ** 2, axis=1).argmax(axis=-1)
        weights[rows, farthest] += i < dimension
        direction = rest[rows, :, farthest]
        length = np.linalg.norm(direction, axis=-1)
        direction = direction / np.where(length > 0, length, 1.0)[:, None]
        rest = rest - direction[:, :, None] * (direction[:, None, :].conj() @ rest)
    return weights / np.maximum(dimension, 1)[:, None]


def _khachiyan(points: np.ndarray, weights: np.ndarray, dimension: np.ndarray) -> np.ndarray:
    """Improve weights ``w`` until ``z_i^H S^{-1} z_i <= (1 + gap) d`` for ``S = sum w_i z_i z_i^H`` and all points ``z_i``.

    Steps towards the point that sticks out most, or away from one with a weight that lies deepest inside, whichever is further off;
    exact line search; a whole batch at once. Todd and Yıldırım (2007), algorithm 4.2, with points in place of a lifted set.
    """
    weights = weights.copy()
    rows, d = np.arange(len(points)), np.maximum(dimension, 1)
    unused = 1.0 * ~np.any(points != 0, axis=-1)  # (batch, k)
    for step in range(_STEPS):
        if step % 50 == 0:  # the updates below gather rounding errors
            S = (points * weights[:, None, :]) @ _h(points) + unused[:, None, :] * np.eye(points.shape[1])
            X = np.linalg.inv(S)
            kappa = np.sum((points.conj() * (X @ points)).real, axis=1)
        outermost = np.argmax(kappa, axis=-1)
        innermost = np.argmin(np.where(weights > 0, kappa, np.inf), axis=-1)
        beyond, within = kappa[rows, outermost] / d - 1, 1 - kappa[rows, innermost] / d
        active = (beyond > _GAP) & (dimension > 1)  # in one dimension every weighting gives the same ellipsoid
        if not np.any(active):
            break
        chosen = np.where(beyond >= within, outermost, innermost)
        k, w = kappa[rows, chosen], weights[rows, chosen]
        least = -w / np.maximum(1 - w, _EPS)  # removes the point
        length = np.where(k > 1, (k / d - 1) / np.where(k > 1, k - 1, 1.0), least)
        length = np.where(active, np.maximum(length, least), 0.0)
        z = points[rows, :, chosen]
        x = (X @ z[:, :, None])[:, :, 0]
        c = length / (1 - length + length * k)
        inner = (points.conj() * x[:, :, None]).sum(axis=1)
        kappa = (kappa - c[:, None] * np.abs(inner) ** 2) / (1 - length)[:, None]
        X = (X - c[:, None, None] * x[:, :, None] * x[:, None, :].conj()) / (1 - length)[:, None, None]
        weights = (1 - length)[:, None] * weights
        weights[rows, chosen] = np.where(length == least, 0.0, weights[rows, chosen] + length)
    return weights


def _axes(M: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """The diagonal ``p (batch, n)`` of a matrix ``>= M_t M_t^H`` for all ``t``, with nearly the least ``sum_i share_i log p_i``.

    States without a share get 0 and are left out of the inequality.
    """
    size, steps, n, m = M.shape
    G = np.sum(np.abs(M) ** 2, axis=-1)  # (batch, T, n)
    unit = G.max(axis=1)
    share = np.ones((size, n)) if share is None else share
    share = share * (unit > 0)
    share = share / np.maximum(share.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    live = share > 0
    G = np.where(live[:, None], G / np.where(unit > 0, unit, 1.0)[:, None], 0.0)
    weights = np.full((size, steps), 1 / steps)
    for _ in range(_STEPS):
        mixture = np.einsum("st,stn->sn", weights, G)
        pull = np.einsum("stn,sn->st", G, np.where(live, share / np.where(live, mixture, 1.0), 0.0))
        if np.all(pull.max(axis=-1) <= 1 + _GAP):
            break
        weights = weights * pull  # sums to 1 again: sum_t w_t pull_t = sum_i share_i
    p = np.where(live, mixture / np.where(live, share, 1.0), 0.0) * pull.max(axis=-1, keepdims=True)
    if m > 1:
        inside = M * np.where(live, np.where(live, p * unit, 1.0) ** -0.5, 0.0)[:, None, :, None]
        p = p * np.linalg.norm(inside, 2, axis=(-2, -1)).max(axis=-1)[:, None] ** 2
    return p * unit * (1 + 16 * (n + m) * _EPS)


def _tail_axes(M: np.ndarray, N: np.ndarray, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal certificates of the states in `tail` alone, with nearly the least ``sum sqrt(p_i q_i)``.

    In the logarithms of ``p`` and ``q`` that is a convex problem. Its linear part at a point is that of :func:`_axes` with shares
    ``sqrt(p_i q_i)``; a point at which these reproduce themselves is the solution.
    """
    share = tail / np.maximum(tail.sum(axis=-1, keepdims=True), 1)
    best, least = (np.zeros(tail.shape), np.zeros(tail.shape)), np.full(len(tail), np.inf)
    for _ in range(_ROUNDS):
        p, q = _axes(M, share), _axes(N, share)
        values = np.sqrt(p * q)
        total = values.sum(axis=-1)
        better = total < least
        least = np.where(better, total, least)
        best = np.where(better[:, None], p, best[0]), np.where(better[:, None], q, best[1])
        share = np.sqrt(share * values / np.maximum(total, np.finfo(float).tiny)[:, None])
        share = share / np.maximum(share.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    return best
