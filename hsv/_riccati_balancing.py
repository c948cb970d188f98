"""What the balancings that rest on Riccati equations share: their result, their factors, and the square-root truncation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from hsv._array import Array, from_host, real, round_to, say_copied, to_host, widen
from hsv._blas import eigenvalues, product
from hsv._errors import IllConditionedError, OrderError
from hsv._gramians import require_stable
from hsv._hankel import Factors, from_real_coordinates, singular_value_decomposition
from hsv._lyapunov import Matrix, adjoint, check_stable, solve_lyapunov_factored
from hsv._order import ErrorBound, Rule, as_rule
from hsv._reduction import Reduction, Rounding, check_stability, choose_orders, numerical_rank, project, round_up
from hsv._riccati import StabilisingSolution
from hsv._singular_perturbation import at_steady_state
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, in_double_precision, require_system
from hsv._text import reduction_html, reduction_text

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, repr=False, kw_only=True)
class RiccatiReduction(Reduction):
    """The outcome of a reduction that balances the solutions of two Riccati equations, or coprime factors.

    A :class:`Reduction` whose ``hankel_singular_values`` are None, for they are those of another kind of balancing. Of the four bounds each method gives the one
    that its theory has, the others are None: a bound of one quantity is no bound of another.

    Attributes
    ----------
    characteristic_values : array
        What the method balances, shape ``(..., n)``, descending; its docstring says which values they are.
    error_bound : array or None
        Of the H-infinity norm of the error, as in :class:`Reduction`.
    factor_error_bound : array or None
        Of the H-infinity norm of the error of the coprime factors, and where these are normalised of the gap between both systems, shape ``(...)``.
    scattering_error_bound : array or None
        Of the H-infinity norm of the error of the scattering function :math:`(G - I)(G + I)^{-1}`, and of the gap between both systems, shape ``(...)``.
    relative_error_bound : array or None
        Of the relative error at every frequency, shape ``(...)``.
    """

    characteristic_values: Array
    factor_error_bound: Array | None = None
    scattering_error_bound: Array | None = None
    relative_error_bound: Array | None = None

    def _count_original_states(self) -> int:
        return int(self.characteristic_values.shape[-1])

    def __repr__(self) -> str:
        return reduction_text(self).removesuffix(">") + "".join(f", {fact}" for fact in self._facts()) + ">"

    def _repr_html_(self) -> str:
        return reduction_html(self) + "".join(f"<p>{fact}</p>" for fact in self._facts())

    def _facts(self) -> list[str]:
        named = {
            "error of the factors": self.factor_error_bound,
            "error of the scattering function": self.scattering_error_bound,
            "relative error": self.relative_error_bound,
        }
        return [f"{name} at most {to_host(x).max(initial=0.0):.3g}" for name, x in named.items() if x is not None]

    def select(self, index: int | tuple[int, ...] = ()) -> RiccatiReduction:
        """Return the reduction of one system of the batch, without the padding."""
        one = super().select(index)
        common: dict[str, Any] = {f.name: getattr(one, f.name) for f in fields(Reduction)}
        index = (index,) if isinstance(index, (int, np.integer)) else tuple(index)
        for name in (f.name for f in fields(self) if f.name not in common):
            of_all = getattr(self, name)
            common[name] = None if of_all is None else of_all[index]
        return RiccatiReduction(**common)


Bounds: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From characteristic values ``(..., n)`` to the bound of each order from 0 to n, ``(..., n + 1)``."""


def tail_sums(terms: np.ndarray) -> np.ndarray:
    """Return the sums of the terms from each place on, ``(..., n + 1)``, summed from the small end."""
    sums = np.cumsum(terms[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros((*terms.shape[:-1], 1))], axis=-1)


def twice_the_tail(values: np.ndarray) -> np.ndarray:
    """The bound of balanced truncation."""
    return 2 * tail_sums(values)


def matrices_on_host(sys: LinearSystem) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Return ``A, B, C, D`` of the dense system in double precision; real for the real part of a diagonal system."""
    require_system(sys)
    say_copied(sys.B, "the Riccati equation", stacklevel=5)
    dense = sys.to_dense()
    A, B, C, D = (to_host(widen(x)) for x in (dense.A, dense.B, dense.C, dense.D))
    return A, B, C, D


def stable_matrices_on_host(sys: LinearSystem) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """The same for methods that need a stable system; raises :class:`UnstableSystemError`."""
    require_system(sys)
    require_stable(sys)  # a diagonal system, with its logarithms
    matrices = matrices_on_host(sys)
    check_stable(eigenvalues(matrices[0]), discrete=sys.is_discrete)
    return matrices


def dual(A: Matrix, B: Matrix, C: Matrix, D: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """The system whose observability is the controllability of this one."""
    return adjoint(A), adjoint(C), adjoint(B), adjoint(D)


def observability_from(A: Matrix, *outputs: Matrix, discrete: bool) -> Matrix:
    """Return ``L`` with ``L L^H`` the observability Gramian of a stable ``A`` and all these outputs."""
    rows = np.concatenate(outputs, axis=-2)
    return np.asarray(solve_lyapunov_factored(adjoint(A), adjoint(rows), discrete=discrete))


def storage_factor(A: Matrix, solution: StabilisingSolution, *outputs: Matrix, discrete: bool) -> Matrix:
    r"""Return ``L`` with :math:`L L^H = x` for an equation with a negative weight and a stable ``A``.

    There :math:`x` is the observability Gramian of ``A`` with the outputs and :math:`(-w)^{1/2} f`, a sum of positive terms: its factor has the small directions that ``x`` itself has lost.
    """
    try:
        root = np.linalg.cholesky(-solution.weight)
    except np.linalg.LinAlgError as error:
        raise IllConditionedError("the weight of the Riccati equation's solution is not negative definite") from error
    return observability_from(A, *outputs, product(adjoint(root), solution.gain), discrete=discrete)


def truncate(
    sys: LinearSystem,
    rule: Rule | int,
    factors: Factors,
    bounds: Bounds,
    bound_name: str,
    *,
    stable: bool = True,
    exact_at_minus_one: bool = False,
    least: Callable[[np.ndarray], np.ndarray] | None = None,
) -> RiccatiReduction:
    """Balance two Gramians given by factors on the host, with the sensitivity of both, and keep what the rule says.

    The bound goes into the field `bound_name`. `stable`: the result must be. `exact_at_minus_one`: the states that go take their steady state at ``z = -1``, which is truncation after a bilinear map.
    `least` tells the smallest orders allowed.
    """
    U, values, Vh = singular_value_decomposition(factors)
    assert factors.sensitivity is not None
    rows = (np.linalg.norm(L, axis=-1) for L in factors[:2])
    size = np.sum(np.multiply(*rows), axis=-1)  # |Lo| |Lc| in units of the states that make it smallest
    rounding = Rounding(_EPS * size, (sys.n_states + factors.sensitivity) * _EPS * size)
    orders, notes = _orders(as_rule(rule), values, bounds, rounding, least)
    ranks = numerical_rank(values, rounding)
    balanced = ranks if exact_at_minus_one else orders
    r = max(int(balanced.max(initial=1)), 1)
    observe = product(factors.observability, U[..., :r])
    control = product(factors.controllability, adjoint(Vh[..., :r, :]))
    of_sys = [from_host(x, sys.B) for x in (observe, control, values, balanced)]
    if exact_at_minus_one:
        full = project(in_double_precision(sys), *of_sys)[0]
        reduced, left, right = _steady_at_minus_one(full, orders, ranks, sys), None, None
    else:
        reduced, left, right = project(sys, *of_sys)
        if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
            left, right = from_real_coordinates(left), from_real_coordinates(right)
        left, right = round_to(left, sys.B), round_to(right, sys.B)
    if stable:
        check_stability(reduced, values, orders)
    bound = round_up(from_host(_bound(values, orders, bounds, rounding), sys.B), sys)
    return RiccatiReduction(
        system=reduced,
        orders=from_host(orders, sys.B),
        hankel_singular_values=None,
        error_bound=bound if bound_name == "error_bound" else None,
        left=left,
        right=right,
        notes=notes,
        _rounding=rounding,
        characteristic_values=round_to(of_sys[2], real(sys.B)),
        **({} if bound_name == "error_bound" else {bound_name: bound}),
    )


def _steady_at_minus_one(full: StateSpace, orders: np.ndarray, ranks: np.ndarray, like: LinearSystem) -> StateSpace:
    """:func:`at_steady_state` of ``G(-z)``, taken back."""
    turned = at_steady_state(StateSpace(-full.A, full.B, -full.C, full.D, dt=full.dt), orders, ranks, like)
    return StateSpace(-turned.A, turned.B, -turned.C, turned.D, dt=full.dt)


class _Chosen(Rule):
    """Orders that were chosen already."""

    def __init__(self, orders: np.ndarray) -> None:
        self.orders = orders

    def choose(self, sigma: np.ndarray) -> np.ndarray:
        return self.orders


def _orders(
    rule: Rule,
    values: np.ndarray,
    bounds: Bounds,
    rounding: Rounding,
    least: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the rule makes of the characteristic values; :class:`ErrorBound` is about the method's own bound."""
    if isinstance(rule, ErrorBound):
        of_orders = bounds(values)
        orders = np.maximum(np.argmax(of_orders <= rule.bound, axis=-1), values[..., 0] > 0)
        rank = numerical_rank(values, rounding)
        if np.any(orders > rank):
            best = np.take_along_axis(of_orders, rank[..., None], axis=-1).max(initial=0.0)
            raise OrderError(
                f"no order meets ErrorBound({rule.bound:g}): the smallest bound that double precision can certify is {best:.3g}"
            )
    else:
        orders = rule.choose(values)
    if least is not None:
        _check_least(orders, least(values))
    return choose_orders(_Chosen(orders), values, stacklevel=5, rounding=rounding)


def _bound(values: np.ndarray, orders: np.ndarray, bounds: Bounds, rounding: Rounding) -> np.ndarray:
    """The bound of the orders chosen, with the allowance of :func:`hsv.balanced_truncation` for rounding on the first discarded value."""
    place = np.arange(values.shape[-1])
    first = (place == orders[..., None]) * (4 * rounding.response)[..., None]
    of_orders = bounds(values + first)
    chosen = np.take_along_axis(of_orders, orders[..., None], axis=-1)[..., 0]
    return np.asarray(chosen * (1 + 2 * values.shape[-1] * _EPS))


def _check_least(orders: np.ndarray, least: np.ndarray) -> None:
    if np.all(orders >= least):
        return
    index = np.unravel_index(int(np.argmax(least - orders)), orders.shape)
    where = f" of system {tuple(int(i) for i in index)}" if index else ""
    raise OrderError(
        f"the order{where} must be at least {int(least[index])}, got {int(orders[index])}: that many characteristic values are 1, one for each zero outside the stability region, and stochastic "
        "truncation keeps all of them; choose a larger order, or a larger alpha"
    )
