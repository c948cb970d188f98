"""Balanced truncation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hsv import _small_systems
from hsv._array import (
    Array,
    conjugate_transpose,
    copied,
    device,
    dtype_name,
    eye,
    from_host,
    in_host_memory,
    namespace,
    real,
    round_to,
    to_host,
    widen,
)
from hsv._blas import eigenvalues, inverse, product
from hsv._cauchy import cholesky
from hsv._doubling import is_stable
from hsv._errors import HsvError, OrderError, OrderWarning
from hsv._hankel import (
    Factors,
    from_real_coordinates,
    gramian_factors,
    hankel_singular_values,
    singular_value_decomposition,
    singular_values,
)
from hsv._large_systems import LargeSystem
from hsv._order import ErrorBound, Order, Rule, as_rule
from hsv._systems import (
    DiagonalStateSpace,
    LinearSystem,
    StateSpace,
    require_system,
    stability_margin,
    without_gradient,
)
from hsv._text import reduction_html, reduction_text

_EPS = float(np.finfo(np.float64).eps)
_SMALL = 32  # states up to which eigenvalues take no longer than what would prove that they are stable
_CLUSTER = 1e-6  # neighbours closer than this, relatively, make the kept subspace arbitrary


class Rounding(NamedTuple):
    """How far rounding errors move each Hankel value, and the transfer function in the H-infinity norm, to first order: host arrays ``(...)``."""

    values: np.ndarray
    response: np.ndarray


@dataclass(frozen=True)
class Reduction:
    r"""The outcome of a model reduction.

    Attributes
    ----------
    system : StateSpace or DiagonalStateSpace
        The reduced system; diagonal only where a method keeps it so. In a batch it has ``max(orders)`` states; shorter systems are padded with states that nothing enters or
        leaves: zero rows and columns of ``B`` and ``C``, poles at 0 (discrete) or -1 (continuous). :meth:`select` strips them.
    orders : array
        Kept states of each system, shape ``(...)``, integers.
    hankel_singular_values : array or None
        Of the original system, shape ``(..., n)``; None where a method does not need them.
    error_bound : array or None
        Upper bound of the H-infinity norm of the error, shape ``(...)``; None where theory has none. It covers the truncation and, for dense systems on the
        host, the rounding errors of double precision to first order (see :func:`balanced_truncation`), not the rounding of the reduced matrices to single precision.
        Zero where nothing is discarded.
    left, right : array or None
        ``(..., n, r)`` with ``left^H right = I`` and ``A_r = left^H A right``, ``B_r = left^H B``, ``C_r = C right``; zero in the padding.
    notes : tuple of str
        What a careful user should know: an order that was capped, a cut inside a cluster of equal values.
    n_original_states : int or None
        Number of states of the system before. Read off ``left`` or the values where it is left out.
    """

    system: Any  # a union would make every user of balanced_truncation say which of the two it is
    orders: Array
    hankel_singular_values: Array | None
    error_bound: Array | None
    left: Array | None
    right: Array | None
    notes: tuple[str, ...] = ()
    _rounding: Rounding | None = field(default=None, repr=False, compare=False)
    n_original_states: int | None = None

    def __post_init__(self) -> None:
        # Projections count as constants where they are computed: what a graph would go on with is no derivative.
        object.__setattr__(self, "system", without_gradient(self.system))
        if type(self.system.B) is not np.ndarray:
            for name in ("hankel_singular_values", "error_bound", "left", "right"):
                value = getattr(self, name)
                if getattr(value, "requires_grad", False):
                    object.__setattr__(self, name, value.detach())
        if self.n_original_states is None:
            n = self._count_original_states()
            object.__setattr__(self, "n_original_states", n)

    def _count_original_states(self) -> int | None:
        if self.left is not None:
            return int(self.left.shape[-2])
        return None if self.hankel_singular_values is None else int(self.hankel_singular_values.shape[-1])

    def __repr__(self) -> str:
        return reduction_text(self)

    def _repr_html_(self) -> str:
        return reduction_html(self)

    def select(self, index: int | tuple[int, ...] = ()) -> Reduction:
        """Return the reduction of one system of the batch, without the padding.

        Examples
        --------
        >>> import hsv
        >>> batch = hsv.DiagonalStateSpace([[0.5, 0.1], [0.9, 0.8]], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
        >>> red = hsv.balanced_truncation(batch, hsv.Threshold(0.04))
        >>> [red.select(i).system.n_states for i in range(2)]
        [2, 1]
        """
        index = (index,) if isinstance(index, (int, np.integer)) else tuple(index)
        batch = self.system.batch_shape
        if len(index) != len(batch):
            raise HsvError(f"select takes {len(batch)} indices for the batch {batch}, got {index}")
        for i, size in zip(index, batch, strict=True):
            if not -size <= i < size:
                raise HsvError(f"select must stay inside the batch {batch}, got {index}")
        sys = self.system
        r = max(int(self.orders[index]), 1)
        B, C, D = sys.B[index][:r, :], sys.C[index][:, :r], sys.D[index]
        single: LinearSystem
        if isinstance(sys, DiagonalStateSpace):
            log_poles = None if sys.log_poles is None else sys.log_poles[index][:r]
            single = sys._rebuild(sys.poles()[index][:r], log_poles, B, C, D)
        else:
            assert isinstance(sys, StateSpace)
            single = StateSpace(sys.A[index][:r, :r], B, C, D, dt=sys.dt)
        return Reduction(
            single,
            self.orders[index],
            None if self.hankel_singular_values is None else self.hankel_singular_values[index],
            None if self.error_bound is None else self.error_bound[index],
            None if self.left is None else self.left[index][:, :r],
            None if self.right is None else self.right[index][:, :r],
            self.notes,
            None if self._rounding is None else Rounding(*(x[index] for x in self._rounding)),
            self.n_original_states,
        )


def balanced_truncation(sys: LinearSystem | LargeSystem, rule: Rule | int) -> Reduction:
    r"""Reduce a stable system by balanced truncation.

    With factors :math:`P = L_c L_c^H`, :math:`Q = L_o L_o^H` and the singular value decomposition :math:`L_o^H L_c = U \Sigma V^H`,

    .. math:: T_r = L_c V_r \Sigma_r^{-1/2}, \quad T_l = L_o U_r \Sigma_r^{-1/2}, \quad
              (A_r, B_r, C_r, D) = (T_l^H A T_r,\ T_l^H B,\ C T_r,\ D).

    Parameters
    ----------
    sys : StateSpace, DiagonalStateSpace, SparseStateSpace or LowRankGramians
        Stable; continuous or discrete, real or complex, one system or a batch. Of a sparse system the error bound counts the values that its low-rank factors have, see :func:`low_rank_gramians`.
    rule : Rule or int
        :class:`Order`, :class:`HankelSum`, :class:`HankelEnergy`, :class:`Threshold`, :class:`ErrorBound`; an int means ``Order``.

    Returns
    -------
    Reduction
        Balanced, stable, with :math:`\|G - G_r\|_\infty \le 2 \sum_{i > r} \sigma_i`, all discarded values counted. Array library,
        device and precision of the input; computed in double precision and rounded once.

    Raises
    ------
    UnstableSystemError
        The system has a pole on or outside the stability boundary.
    OrderError
        No order meets the rule.

    Warns
    -----
    OrderWarning
        The order was capped at the numerical minimal order, beyond which the projections lose their meaning, or the cut splits
        a cluster of nearly equal values, so that another choice of states would be as good. ``Reduction.notes`` says it too.

    Notes
    -----
    ``O(n^3)``; dense systems on the host, diagonal ones on the device of the arrays.

    How far to trust the bound: it is twice the sum of the discarded values plus an allowance for rounding. For a dense system on the host that is
    :math:`8\,(n + |A|_F / d)\,\varepsilon\,|L_o|_F |L_c|_F`, with ``A`` balanced by powers of two and ``d`` the distance of its poles to the stability boundary: the Schur form is exact for a matrix
    that differs from ``A`` by rounding, and near a resonance that moves the response by so much. For well-conditioned systems it is below 1e-10 of the bound. To first order,
    and two things are not in it: a cut between two values that agree to some digits, where rounding turns the kept subspace by ``eps`` over their distance, and the
    rounding errors of a reduction that keeps every state, whose bound is zero.

    References
    ----------
    Moore (1981), IEEE Trans. Automat. Control 26; Tombs and Postlethwaite (1987), Int. J. Control 46 (square-root method);
    Enns (1984), Glover (1984), Al-Saggaf and Franklin (1987) for the bound in continuous and discrete time.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> red = hsv.balanced_truncation(sys, 1)
    >>> red.system.n_states, round(float(red.error_bound), 4)          # 2 x 0.5731395
    (1, 1.1463)
    """
    return _truncate(sys, as_rule(rule), balancing_bases)


def balancing_free_truncation(sys: LinearSystem | LargeSystem, rule: Rule | int) -> Reduction:
    r"""Reduce a stable system by balanced truncation in orthonormal bases: the system of :func:`balanced_truncation` in other coordinates.

    With orthonormal bases :math:`X` of the columns of :math:`L_o U_r` and :math:`Y` of those of :math:`L_c V_r`,

    .. math:: T_r = Y, \qquad T_l = X (Y^H X)^{-H}.

    Nothing is divided by small Hankel singular values, so that orders near the numerical rank come out with better conditioned coordinates;
    the reduced system is not balanced.

    Parameters, results, errors and warnings as in :func:`balanced_truncation`; the columns of ``right`` are orthonormal.

    References
    ----------
    Varga, "Efficient minimal realization procedure based on balancing", IMACS Symposium on Modelling and Control of Technological Systems (1991); Safonov and Chiang, "A Schur method for
    balanced-truncation model reduction", IEEE Trans. Automat. Control 34 (1989).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> red = hsv.balancing_free_truncation(sys, 1)
    >>> round(float((red.right.T @ red.right)[0, 0]), 12)
    1.0
    """
    return _truncate(sys, as_rule(rule), _orthonormal_bases)


_Bases: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def balancing_bases(observe: Array, control: Array, sigma: Array, keep: Array) -> tuple[Array, Array]:
    """``left`` and ``right`` from ``Lo U_r`` and ``Lc V_r``, both divided by the roots of the values."""
    xp = namespace(sigma)
    root = (xp.where(keep > 0, sigma, xp.ones_like(keep)) ** -0.5 * keep)[..., None, :]
    return observe * root, control * root


def _orthonormal_bases(observe: Array, control: Array, sigma: Array, keep: Array) -> tuple[Array, Array]:
    xp = namespace(sigma)
    mask = keep[..., None, :]
    return xp.linalg.qr(observe * mask)[0] * mask, xp.linalg.qr(control * mask)[0] * mask


def _truncate_small(sys: LinearSystem, rule: Rule) -> Reduction:
    """:func:`balanced_truncation` of systems that the compiled pipeline takes."""
    single = dtype_name(sys.B) in ("float32", "complex64")
    small = _small_systems.truncate(
        sys,
        lambda sigma: np.minimum(rule.choose(sigma), numerical_rank(sigma)),
        lambda sigma: choose_orders(rule, sigma, stacklevel=7),
        single,
    )
    batch = sys.batch_shape
    left, right, A, B, C = (
        from_host(x.reshape(*batch, *x.shape[1:]), sys.B) for x in (small.left, small.right, small.A, small.B, small.C)
    )
    reduced = StateSpace(A, B, C, copied(sys.D), dt=sys.dt)
    sigma = small.values.reshape(*batch, sys.n_states)
    if not _small_systems.certainly_stable(small.A, sys.is_discrete):
        check_stability(reduced, sigma, small.orders)
    return Reduction(
        system=reduced,
        orders=from_host(small.orders, sys.B),
        hankel_singular_values=round_to(from_host(sigma, sys.B), real(sys.B)),
        error_bound=round_up(from_host(error_bound(sigma, small.orders), sys.B), sys),
        left=left,
        right=right,
        notes=small.notes,
    )


def _truncate(sys: LinearSystem | LargeSystem, rule: Rule, bases: _Bases) -> Reduction:
    require_system(sys, LargeSystem)
    if isinstance(sys, LargeSystem):
        return sys._large_truncation(rule, bases, stacklevel=4)
    small = _small_systems.fits(sys) and not getattr(sys, "_conjugate_pairs", False)
    if small and bases is balancing_bases:
        return _truncate_small(sys, rule)
    if small:
        sigma, all_observe, all_control = _small_systems.balancing_bases(sys)
    else:
        factors = gramian_factors(sys)
        U, sigma, Vh = singular_value_decomposition(factors)
    sigma_host = to_host(sigma)
    rounding = None if small else rounding_errors(factors)
    orders, notes = choose_orders(rule, sigma_host, stacklevel=4, rounding=rounding)
    r = max(int(orders.max(initial=1)), 1)

    orders_device = from_host(orders, sigma)
    if small:
        observe, control = all_observe[..., :r], all_control[..., :r]
    else:
        observe = product(factors.observability, U[..., :, :r])
        control = product(factors.controllability, conjugate_transpose(Vh[..., :r, :]))
        if factors.left is not None:
            observe, control = product(factors.left, observe), product(factors.right, control)
    reduced, left, right = project(sys, observe, control, sigma, orders_device, bases)
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
        left, right = from_real_coordinates(left), from_real_coordinates(right)
    bound = error_bound(sigma_host, orders, rounding)
    check_stability(reduced, sigma_host, orders)
    return Reduction(
        system=reduced,
        orders=orders_device,
        hankel_singular_values=round_to(sigma, real(sys.B)),
        error_bound=round_up(from_host(bound, sigma), sys),
        left=round_to(left, sys.B),
        right=round_to(right, sys.B),
        notes=notes,
        _rounding=rounding,
    )


def balance(sys: LinearSystem | LargeSystem) -> Reduction:
    """Return the balanced realisation: both Gramians equal ``diag(sigma)``.

    States beyond the numerical minimal order cannot be balanced and are removed; ``Reduction.orders`` says how many are left.
    Everything else as in :func:`balanced_truncation`.

    Examples
    --------
    >>> import hsv
    >>> bal = hsv.balance(hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0))
    >>> hsv.controllability_gramian(bal.system).round(4) + 0.0
    array([[24.4269,  0.    ],
           [ 0.    ,  0.5731]])
    """
    require_system(sys, LargeSystem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OrderWarning)  # the cap is the point here, and is in the orders
        return balanced_truncation(sys, Order(sys.n_states))


def rounding_errors(factors: Factors) -> Rounding | None:
    """Return what double precision can do to a reduction by these factors; None where they have high relative accuracy, or poles were not computed.

    A product of factors has an error near ``eps |Lo| |Lc|``. A Schur form is exact for a matrix ``A + dA`` with ``|dA|`` near ``eps |A|``, which moves the response by
    ``|C R| |dA| |R B|`` with the resolvent ``R``: at a resonance with the damping ``d`` that is ``eps |A| / d`` times the peak, and ``|Lo| |Lc|`` is near it.
    """
    if factors.sensitivity is None:
        return None
    control, observe = (np.linalg.norm(to_host(L), axis=(-2, -1)) for L in factors[:2])
    size = control * observe
    n = factors.controllability.shape[-1]
    return Rounding(_EPS * size, (n + to_host(factors.sensitivity)) * _EPS * size)


def values_and_rounding(sys: LinearSystem) -> tuple[np.ndarray, Rounding | None]:
    """Hankel singular values on the host, and what double precision does to them and to a reduction: all that orders and bounds are computed from."""
    if _small_systems.fits(sys):
        return to_host(widen(hankel_singular_values(sys))), None
    factors = gramian_factors(sys)
    return to_host(widen(round_to(singular_values(factors), real(sys.B)))), rounding_errors(factors)


def noise_level(sigma: np.ndarray, rounding: Rounding | None = None) -> np.ndarray:
    """The rounding errors of the largest value, or those of the factors where they are known and larger, ``(...)``."""
    noise = np.asarray(sigma.shape[-1] * _EPS * sigma[..., 0])
    return noise if rounding is None else np.maximum(noise, rounding.values)


def numerical_rank(sigma: np.ndarray, rounding: Rounding | None = None) -> np.ndarray:
    """How many values stand above :func:`noise_level`, ``(...)``."""
    return np.asarray(np.sum(sigma > noise_level(sigma, rounding)[..., None], axis=-1))


def choose_orders(
    rule: Rule, sigma: np.ndarray, stacklevel: int = 3, rounding: Rounding | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Orders within the numerical rank ``(...)``, and what is remarkable about them, warned of as well."""
    orders = rule.choose(sigma)
    rank = numerical_rank(sigma, rounding)
    notes = []
    if np.any(orders > rank):
        if isinstance(rule, ErrorBound):
            best = error_bound(sigma, rank, rounding).max(initial=0.0)
            raise OrderError(
                f"no order meets ErrorBound({rule.bound:g}): the smallest bound that double precision can certify is {best:.3g}"
            )
        which = np.argmax(orders - rank)
        notes.append(
            f"the order was capped at {rank.flat[which]} instead of {orders.flat[which]}: the values beyond are rounding errors"
            + (f" (in {int(np.sum(orders > rank))} of {orders.size} systems)" if orders.size > 1 else "")
        )
        orders = np.minimum(orders, rank)
    n = sigma.shape[-1]
    flat, cuts = sigma.reshape(-1, n), orders.reshape(-1)
    system = np.arange(len(cuts))
    last, following = flat[system, np.maximum(cuts, 1) - 1], flat[system, np.minimum(cuts, n - 1)]
    split = (cuts > 0) & (cuts < rank.reshape(-1)) & (last - following <= _CLUSTER * last)
    if np.any(split):
        k = np.argmax(split)
        notes.append(
            f"the cut after {cuts[k]} states splits a cluster of nearly equal Hankel values ({last[k]:.9g}, {following[k]:.9g}): "
            "which of its states stay is arbitrary; an order outside the cluster is safer"
        )
    if np.any(flat[:, 0] == 0):
        notes.append("all Hankel singular values are zero: no input reaches any output, and only D is left")
    for note in notes:
        warnings.warn(note, OrderWarning, stacklevel=stacklevel)
    return orders.astype(np.int64), tuple(notes)


def project(
    sys: LinearSystem,
    observe: Array,
    control: Array,
    sigma: Array,
    orders: Array,
    bases: _Bases = balancing_bases,
) -> tuple[StateSpace, Array, Array]:
    """Return the reduced system, ``left`` and ``right`` from ``Lo U_r`` and ``Lc V_r`` ``(..., n, r)`` of any two Gramians, in double precision but for the system."""
    xp = namespace(sigma)
    r = observe.shape[-1]
    keep = xp.astype(xp.arange(r, device=device(sigma)) < orders[..., None], sigma.dtype)  # (..., r): 0 for padding
    left, right = bases(observe, control, sigma[..., :r], keep)
    left = make_biorthogonal(left, right, keep)
    return _project(sys, left, right, keep), left, right


def make_biorthogonal(left: Array, right: Array, keep: Array) -> Array:
    """Remove the rounding errors of ``left^H right``, which grow like ``eps sigma_1 / sigma_r``, by one small solve."""
    xp = namespace(left)
    r = left.shape[-1]
    gram = product(conjugate_transpose(left), right)
    padding = xp.astype(xp.eye(r, dtype=keep.dtype, device=device(keep)) * (1 - keep)[..., None, :], gram.dtype)
    return product(left, conjugate_transpose(inverse(gram + padding)))


def _project(sys: LinearSystem, left: Array, right: Array, keep: Array) -> StateSpace:
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
        sys = sys.to_dense()
    B, C = widen(sys.B), widen(sys.C)
    left_h = conjugate_transpose(left)
    if isinstance(sys, DiagonalStateSpace):
        image = widen(sys.poles())[..., :, None] * right
    else:
        assert isinstance(sys, StateSpace)
        image = product(widen(sys.A), right)
    A = product(left_h, image)
    if not sys.is_discrete:  # padding at 0 would be an integrator, with an infinite gain at w = 0
        A = A - (1 - keep)[..., None, :] * eye(left.shape[-1], A)
    A, B, C = (round_to(x, sys.B) for x in (A, product(left_h, B), product(C, right)))
    return StateSpace(A, B, C, copied(sys.D), dt=sys.dt)


def error_bound(sigma: np.ndarray, orders: np.ndarray, rounding: Rounding | None = None) -> np.ndarray:
    """``2 * sum`` of the discarded values, with an allowance for rounding errors where there are any, rounded up."""
    n = sigma.shape[-1]
    discarded = np.arange(n) >= orders[..., None]
    if rounding is None:  # the backward error of each singular value
        allowance = n * _EPS * sigma[..., 0] * np.sum(discarded, axis=-1)
    else:
        allowance = np.where(discarded[..., -1], rounding.response, 0.0)
    tail = np.sum(np.where(discarded, sigma, 0.0), axis=-1)
    return np.asarray(2 * (tail + 4 * allowance) * (1 + 2 * n * _EPS))


def round_up(bound: Array, sys: LinearSystem) -> Array:
    """Round a bound to the precision of the system, never down."""
    xp = namespace(bound)
    rounded = round_to(bound, real(sys.B))
    if rounded.dtype == bound.dtype:
        return rounded
    unit = float(np.finfo(np.float32).eps)
    return xp.where(widen(rounded) < bound, rounded * (1 + unit), rounded)


def _contracts(reduced: StateSpace, sigma: np.ndarray, orders: np.ndarray) -> bool:
    r"""Whether ``X = S^{-1/2} A S^{1/2}`` with ``S = diag(sigma)`` is found to shrink every vector, by a Cholesky factorization of ``I - X X^H`` or ``-(X + X^H)``.

    The truncation of a balanced system does: ``A S A^H - S`` is minus ``B B^H``, and in discrete time minus what came from the states that were dropped. Where these
    have too few columns for a regular matrix there is nothing to try.
    """
    r, n = reduced.n_states, sigma.shape[-1]
    if r <= _SMALL or reduced.n_inputs + (n - r if reduced.is_discrete else 0) < r:
        return False
    A = widen(reduced.A)
    kept = np.arange(r) < orders[..., None]
    root = from_host(np.sqrt(np.where(kept, sigma[..., :r], 1.0)), A)
    X = A * (1.0 / root)[..., :, None] * root[..., None, :]
    gap = eye(r, A) - product(X, conjugate_transpose(X)) if reduced.is_discrete else -(X + conjugate_transpose(X))
    # The Frobenius norm bounds the rounding errors of the products and of the factorization.
    xp = namespace(A)
    noise = 4 * r * _EPS * (1.0 + xp.linalg.matrix_norm(X) ** (2 if reduced.is_discrete else 1))
    return cholesky(gap - xp.astype(noise[..., None, None] * eye(r, root), A.dtype)) is not None


def check_stability(reduced: StateSpace, sigma: np.ndarray, orders: np.ndarray) -> None:
    """The promise of balanced reductions, checked on the rounded result: by its Gramian or, off the host, by powers if they prove it, else by the eigenvalues."""
    if _contracts(reduced, sigma, orders):
        return
    if not in_host_memory(reduced.A) and is_stable(widen(reduced.A), discrete=reduced.is_discrete):
        return
    if type(reduced.A) is np.ndarray:
        poles = eigenvalues(widen(reduced.A))
        margin = 1.0 - np.abs(poles) if reduced.is_discrete else -poles.real
    else:
        margin = to_host(stability_margin(reduced))
    if np.all(margin > 0):
        return
    index = np.unravel_index(int(np.argmin(margin)), margin.shape)[:-1]
    order = int(orders[index])
    values = sigma[index]
    pair = f"{values[order - 1]:.6g} and {values[min(order, len(values) - 1)]:.6g}"
    where = f" of system {tuple(int(i) for i in index)}" if index else ""
    raise OrderError(
        f"the reduced system{where} of order {order} is not stable to working precision; likely causes: the cut is inside a cluster of equal Hankel "
        f"values (here {pair}), or poles closer to the stability boundary than the precision of the result; choose another order, or double precision"
    )
