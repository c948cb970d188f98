"""Optimal Hankel-norm approximation."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg

from hsv import _con_eigenvalues
from hsv._array import Array, from_host, on_host, real, round_to, to_host, widen
from hsv._con_eigenvalues import MinimalSystem, PoleResidueForm
from hsv._errors import IllConditionedError, OrderError, OrderWarning
from hsv._hankel import gramian_factors, singular_values
from hsv._order import Rule, as_rule
from hsv._reduction import (
    Reduction,
    Rounding,
    balance,
    check_stability,
    choose_orders,
    error_bound,
    numerical_rank,
    round_up,
)
from hsv._systems import (
    DiagonalStateSpace,
    LinearSystem,
    StateSpace,
    in_double_precision,
    require_system,
    stability_margin,
)
from hsv._warnings import level_outside

_EPS = float(np.finfo(np.float64).eps)
_EXCESS = 1e-5  # how far, relatively, the checked error of a diagonal result may be above the least one
_ROUNDINGS = 32  # and, for each state, how many roundings of the largest value: 5 were found where the error is 1e-12 of that, fewer elsewhere
_EQUAL = 1e-10  # values this close, relatively, are one value of higher multiplicity: dividing by their difference would lose ten digits


def hankel_norm_approximation(sys: LinearSystem, rule: Rule | int) -> Reduction:
    r"""Reduce a stable system with the least possible error in the Hankel norm, :math:`\sigma_{r+1}`.

    In balanced coordinates ordered so that :math:`\Sigma = \operatorname{diag}(\Sigma_1, \sigma I)` with :math:`\sigma = \sigma_{r+1}`,
    :math:`\Gamma = \Sigma_1^2 - \sigma^2 I` and :math:`U = -(C_2^H)^{+} B_2`, the system

    .. math:: \hat A = \Gamma^{-1}(\sigma^2 A_{11}^H + \Sigma_1 A_{11} \Sigma_1 - \sigma C_1^H U B_1^H), \quad
              \hat B = \Gamma^{-1}(\Sigma_1 B_1 + \sigma C_1^H U), \quad \hat C = C_1 \Sigma_1 + \sigma U B_1^H, \quad \hat D = D - \sigma U

    has exactly :math:`r` stable poles; its stable part is the approximation. Discrete systems go through the bilinear map, which leaves Hankel values alone.

    A diagonal system with one input and one output stays diagonal: the poles are the stable zeros of the function :math:`v(z)` whose coordinates are the
    con-eigenvector of :math:`\sigma_{r+1}`, and the residues those of :math:`G - \sigma_{r+1} v_* / v`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`.

    Returns
    -------
    Reduction
        Stable, with :math:`\|G - G_r\|_H = \sigma_{r+1}` and the H-infinity bound of :func:`balanced_truncation` (the true error is below its own: at most
        :math:`\sigma_{r+1} + 2 \sum_{i > r + 1} \sigma_i`). ``left`` and ``right`` are None: the method is no projection. ``D`` changes. ``system`` is a
        :class:`DiagonalStateSpace` if `sys` is one with one input and one output, complex, for the optimal poles of a real system may be so (then in exact
        pairs), and by ``log_poles`` if `sys` has them; else a :class:`StateSpace`.

    Raises
    ------
    UnstableSystemError, OrderError
        As in :func:`balanced_truncation`.
    IllConditionedError
        The construction lost its stable poles to rounding: values too close to :math:`\sigma_{r+1}` without being equal to it. For a diagonal
        system every result is checked: its error, computed to high relative accuracy, is above :math:`(1 + 10^{-5})\,\sigma_{r+1}` by more than rounding,
        ``32 n eps sigma_1`` and what the distance of the poles to the stability boundary loses when they are stored.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`, and where the system has fewer states than the rule chose, because :math:`\sigma_{r+1}` is a multiple value.

    See Also
    --------
    balanced_truncation : leaves ``D`` alone, and needs no gap between the Hankel values.

    Notes
    -----
    Values within 1e-10 of :math:`\sigma_{r+1}`, relatively, count as equal to it. A cut inside such a group keeps the states before the group, whose error is the
    same: ``Reduction.orders`` says how many. Where the order is the numerical minimal one there is no :math:`\sigma_{r+1}`, and
    the balanced system is returned. On the host, in double precision, ``O(n^3)`` a system, one after another.

    How far to trust the digits: errors come out as :math:`\sigma_{r+1}` down to about ``1e-12`` of :math:`\sigma_1` for diagonal systems with one input and one output, and down to the rounding errors of
    the balanced matrices otherwise, ``eps |A|`` times the slowest time constant. Diagonal systems with several inputs or outputs take
    the dense way. So do those whose :math:`\sigma_{r+1}` has a neighbour within 1e-8, relatively, or whose con-eigenvector misses the error; these are diagonalised after it, and checked as well.

    References
    ----------
    Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their L-infinity error bounds", Int. J. Control 39 (1984).
    Adamjan, Arov and Krein, "Analytic properties of Schmidt pairs for a Hankel operator and the generalized Schur-Takagi problem", Math. USSR Sbornik 15 (1971); Haut
    and Beylkin, "Fast and accurate con-eigenvalue algorithm for optimal rational approximations", SIAM J. Matrix Anal. Appl. 33 (2012), for diagonal systems.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> red = hsv.hankel_norm_approximation(sys, 1)
    >>> round(float(hsv.hankel_norm(sys - red.system)), 5)                          # sigma_2
    0.57314
    >>> even = hsv.DiagonalStateSpace([0.5, -0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)      # v(z) = z / (1 - z^2 / 4) for sigma_2
    >>> hsv.hankel_norm_approximation(even, 1).system.poles().round(12) + 0
    array([0.+0.j])
    """
    rule = as_rule(rule)
    require_system(sys)
    if isinstance(sys, DiagonalStateSpace) and sys.n_inputs == sys.n_outputs == 1:
        return _approximate_diagonal(sys, rule)
    bal = balance(in_double_precision(sys))
    sigma = to_host(bal.hankel_singular_values)
    chosen, notes = choose_orders(rule, sigma, rounding=bal._rounding)
    full, ranks = bal.system, numerical_rank(sigma, bal._rounding)
    *parts, orders = on_host(
        lambda A, B, C, D: _approximate_batch(A, B, C, D, sigma, chosen, ranks, discrete=full.is_discrete),
        *(widen(x) for x in (full.A, full.B, full.C, full.D)),
        reason="Hankel-norm approximation",
    )
    reduced = StateSpace(*(round_to(x, sys.B) for x in parts), dt=sys.dt)
    return _reduction(sys, reduced, orders, bal.hankel_singular_values, chosen, notes, bal._rounding)


def _reduction(
    sys: LinearSystem,
    reduced: StateSpace | DiagonalStateSpace,
    orders: Array,
    sigma: Array,
    chosen: np.ndarray,
    notes: tuple[str, ...],
    rounding: Rounding | None = None,
) -> Reduction:
    values = to_host(sigma)
    notes += _say_if_fewer(to_host(orders), chosen, values)
    if isinstance(reduced, StateSpace):
        check_stability(reduced, values, chosen)
    else:
        _check_poles(reduced, chosen)
    return Reduction(
        system=reduced,
        orders=orders,
        hankel_singular_values=round_to(sigma, real(sys.B)),
        error_bound=round_up(from_host(error_bound(values, chosen, rounding), real(widen(sys.B))), sys),
        left=None,
        right=None,
        notes=notes,
        _rounding=rounding,
    )


def _say_if_fewer(orders: np.ndarray, chosen: np.ndarray, sigma: np.ndarray) -> tuple[str, ...]:
    """A note, warned of as well, where a system has not the order that was chosen for it."""
    fewer = orders < chosen
    if not np.any(fewer):
        return ()
    index = np.unravel_index(int(np.argmax(fewer)), fewer.shape)
    k, r = int(orders[index]), int(chosen[index])
    count = f" (in {int(np.sum(fewer))} of {fewer.size} systems)" if fewer.size > 1 else ""
    note = f"the order is {k} instead of {r}: Hankel values {k + 1} to {r + 1} are equal ({sigma[index][k]:.9g}), and without their states the error is the same{count}"
    warnings.warn(note, OrderWarning, stacklevel=level_outside())
    return (note,)


def _check_poles(reduced: DiagonalStateSpace, chosen: np.ndarray) -> None:
    """The poles were stable before they were rounded to the precision of the input."""
    margin = to_host(stability_margin(reduced))
    if np.all(margin > 0):
        return
    index = np.unravel_index(int(np.argmin(margin)), margin.shape)[:-1]
    where = f" of system {tuple(int(i) for i in index)}" if index else ""
    raise OrderError(
        f"the reduced system{where} of order {int(chosen[index])} has a pole closer to the stability boundary than its precision can hold; "
        "use double precision, or log_poles"
    )


def _approximate_diagonal(sys: DiagonalStateSpace, rule: Rule) -> Reduction:
    sigma = singular_values(gramian_factors(sys))
    values = to_host(sigma)
    chosen, notes = choose_orders(rule, values, stacklevel=4)
    orders, r = np.array(chosen), max(int(chosen.max(initial=1)), 1)
    logs = sys.log_poles
    padding = (0.0 if sys.is_discrete else -1.0) if logs is None else np.log(np.finfo(np.float32).tiny)
    poles = np.full((*chosen.shape, r), padding, np.complex128)  # or their logarithms
    roots, D = np.zeros_like(poles), to_host(widen(sys.D)) + 0j
    symmetric = not sys.is_complex or sys._conjugate_pairs
    for index in np.ndindex(*chosen.shape):
        if chosen[index] == 0:
            continue
        one = _con_eigenvalues.minimal_system(_member(sys, index))
        where = f" of system {tuple(int(i) for i in index)}" if index else ""
        kept = _approximate_one(one, values[index], int(chosen[index]), symmetric=symmetric, where=where)
        k = orders[index] = len(kept.poles)
        poles[index][:k] = kept.poles if logs is None else kept.logs
        roots[index][:k] = np.sqrt(kept.residues)
        D[index] += kept.constant
    make = DiagonalStateSpace if logs is None else DiagonalStateSpace.from_log_poles
    reduced = make(
        *(round_to(from_host(x, sys.B), sys.B) for x in (poles, roots[..., :, None], roots[..., None, :], D)), dt=sys.dt
    )
    return _reduction(sys, reduced, from_host(orders, sys.B), sigma, chosen, notes)


def _member(sys: DiagonalStateSpace, index: tuple[int, ...]) -> DiagonalStateSpace:
    """One system of the batch in double precision, on the host."""
    logs = None if sys.log_poles is None else to_host(widen(sys.log_poles))[index]
    poles, B, C, D = (to_host(widen(x))[index] for x in (sys.poles(), sys.B, sys.C, sys.D))
    return sys._rebuild(poles, logs, B, C, D)


def _approximate_one(
    system: MinimalSystem, sigma: np.ndarray, order: int, *, symmetric: bool, where: str
) -> PoleResidueForm:
    """By the con-eigenvector; by Glover's construction where that is not determined (it takes all those of a multiple value together) or has not the promised error."""
    if order >= len(system.poles):
        return PoleResidueForm(system.poles, system.residues, logs=system.logs)
    least = float(sigma[order])
    norms, reasons = [np.inf], []
    for method in (_con_eigenvalues.approximate, _approximate_by_balancing):
        try:
            kept = method(system, order)
        except IllConditionedError as error:
            reasons.append(str(error))
            continue
        kept = _symmetric(kept) if symmetric else kept
        norms.append(_con_eigenvalues.hankel_norm_of_difference(system, kept))
        rounding = _ROUNDINGS * len(sigma) * _EPS * float(sigma[0]) + _cost_of_rounding(system, kept)
        if norms[-1] <= least * (1 + _EXCESS) + rounding:
            return kept
    raise IllConditionedError(
        f"the Hankel-norm approximation{where} of order {order} has an error of {min(norms):.3g} where {least:.3g} is the least: likely causes are Hankel values close to the "
        f"first discarded one, or an order whose error is below rounding; choose another order, or balanced truncation{''.join(f' ({reason})' for reason in reasons)}"
    )


def _approximate_by_balancing(system: MinimalSystem, order: int) -> PoleResidueForm:
    roots = np.sqrt(system.residues)
    full = balance(DiagonalStateSpace(system.poles, roots[:, None], roots[None, :], dt=True if system.discrete else 0))
    sigma, balanced = to_host(full.hankel_singular_values), full.system
    parts = _approximate_batch(
        balanced.A,
        balanced.B,
        balanced.C,
        balanced.D,
        sigma,
        np.array(order),
        numerical_rank(sigma),
        discrete=system.discrete,
    )
    A, B, C, D, orders = parts
    k = int(orders)
    poles, vectors = np.linalg.eig(A[:k, :k])
    residues = (C[0, :k] @ vectors) * np.linalg.solve(vectors, B[:k, 0])
    logs = None if system.logs is None else np.log(np.where(poles == 0, np.finfo(np.float64).tiny, poles))
    return PoleResidueForm(poles, residues, complex(D[0, 0]), logs)


def _symmetric(reduced: PoleResidueForm) -> PoleResidueForm:
    """Make the conjugate pairs of a real transfer function exact, and real what is its own conjugate."""
    poles, residues, constant, logs = reduced
    partner = np.argmin(np.abs(poles[:, None] - poles.conj()), axis=0)
    if not np.array_equal(partner[partner], np.arange(len(poles))):
        return reduced
    poles, residues = (0.5 * (x + x[partner].conj()) for x in (poles, residues))
    if logs is not None:  # of a negative real pole both logarithms have the imaginary part pi
        logs = 0.5 * (logs.real + logs[partner].real) + 1j * np.where(poles.imag == 0, logs.imag, np.angle(poles))
    return PoleResidueForm(poles, residues, complex(constant).real, logs)


def _cost_of_rounding(system: MinimalSystem, reduced: PoleResidueForm) -> float:
    """Poles that are stored in double precision lose digits of their distance to the stability boundary; their logarithms do not."""
    if reduced.logs is not None:
        return 0.0
    size = np.abs(reduced.poles)
    margin = np.maximum(1.0 - size if system.discrete else -reduced.poles.real, np.finfo(np.float64).tiny)
    return float(4 * _EPS * np.sum(np.abs(reduced.residues) / margin * (1.0 + size / margin)))


def _approximate_batch(
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    sigma: np.ndarray,
    orders: np.ndarray,
    ranks: np.ndarray,
    *,
    discrete: bool,
) -> tuple[np.ndarray, ...]:
    r = max(int(orders.max(initial=1)), 1)
    batch = A.shape[:-2]
    kept = np.array(orders)
    out = (
        np.tile((0.0 if discrete else -1.0) * np.eye(r, dtype=A.dtype), (*batch, 1, 1)),
        np.zeros((*batch, r, B.shape[-1]), A.dtype),
        np.zeros((*batch, C.shape[-2], r), A.dtype),
        D.copy(),
    )
    for index in np.ndindex(*batch):
        order, rank = int(orders[index]), int(ranks[index])
        one = A[index][:rank, :rank], B[index][:rank], C[index][:, :rank], D[index]
        if order < rank:
            one = _approximate(*(bilinear_to_continuous(*one) if discrete else one), sigma[index][:rank], order)
            one = bilinear_to_discrete(*one) if discrete else one
        a, b, c, out[3][index] = one
        k = kept[index] = len(a)  # fewer than asked for where the cut splits a multiple value
        out[0][index][:k, :k], out[1][index][:k], out[2][index][:, :k] = a, b, c
    return *out, kept


def _approximate(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray, sigma: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The stable part, of `order` states, of Glover's all-pass completion; continuous and balanced arguments."""
    level = sigma[order]
    equal = np.abs(sigma - level) <= _EQUAL * level
    first, second = np.flatnonzero(~equal), np.flatnonzero(equal)
    S = sigma[first]
    A11, B1, B2, C1, C2 = A[np.ix_(first, first)], B[first], B[second], C[:, first], C[:, second]
    U = -np.linalg.pinv(C2.conj().T) @ B2
    gamma = (S - level) * (S + level)
    CU = C1.conj().T @ U
    # In coordinates divided by the roots of |gamma|, where balanced matrices have entries of one size; rows times 1 / gamma would not.
    root = np.sqrt(np.abs(gamma))
    left = (np.sign(gamma) / root)[:, None]
    A_hat = left * (level**2 * A11.conj().T + S[:, None] * A11 * S - level * CU @ B1.conj().T) / root
    B_hat = left * (S[:, None] * B1 + level * CU)
    C_hat = (C1 * S + level * U @ B1.conj().T) / root
    D_hat = D - level * U
    a, b, c = _stable_part(A_hat, B_hat, C_hat, int(np.sum(sigma > level * (1 + _EQUAL))))
    return a, b, c, D_hat


def _stable_part(A: np.ndarray, B: np.ndarray, C: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    T, Z, k = scipy.linalg.schur(
        A, output="complex" if np.iscomplexobj(A) else "real", sort=lambda re, im=0.0: complex(re).real < 0
    )
    if k != order:
        raise IllConditionedError(
            f"the Hankel-norm approximation of order {order} has {k} stable poles to working precision: Hankel values close to the first discarded one; "
            "choose another order, or balanced truncation"
        )
    B, C = Z.conj().T @ B, C @ Z
    X = np.zeros((k, len(A) - k), A.dtype)
    if 0 < k < len(A):
        X = scipy.linalg.solve_sylvester(T[:k, :k], -T[k:, k:], -T[:k, k:])
    return T[:k, :k], B[:k] - X @ B[k:], C[:, :k]


def bilinear_to_continuous(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The continuous system ``G((1 + s) / (1 - s))``, which has the Hankel values of the discrete ``G(z)`` and is balanced if it is."""
    n = len(A)
    resolvent = np.linalg.inv(np.eye(n) + A)
    root = np.sqrt(2.0)
    return resolvent @ (A - np.eye(n)), root * resolvent @ B, root * C @ resolvent, D - C @ resolvent @ B


def bilinear_to_discrete(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of :func:`bilinear_to_continuous`: ``G((z - 1) / (z + 1))``."""
    n = len(A)
    resolvent = np.linalg.inv(np.eye(n) - A)
    root = np.sqrt(2.0)
    return resolvent @ (np.eye(n) + A), root * resolvent @ B, root * C @ resolvent, D + C @ resolvent @ B
