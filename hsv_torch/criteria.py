r"""What decides which states of a diagonal layer stay: criteria, and the change of coordinates that a cut makes.

A diagonal complex layer computes :math:`h_t = \Lambda h_{t-1} + B u_t`, :math:`y_t = \operatorname{Re}(C h_t)`. A criterion truncates its system and
returns to diagonal form. The old state is then a widely linear function of the new one, :math:`h = M_1 h_r + M_2 \bar h_r`, and that is all that
a layer needs to know to carry the optimizer's moments.

A layer with a system for each channel shows a batch of systems. All are cut to one number of states, the largest that the rule chooses for any of
them; a system with fewer states to distinguish than that gets states that nothing enters or leaves (``DiagonalCut.padding``).
"""

from __future__ import annotations

import abc
import math
import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._errors import CutRefusedError

SMALLEST_POLE = 1e-30
"""Poles nearer to 0 are moved out to this modulus: layers store the logarithm of the modulus."""

_EPS = float(np.finfo(np.float64).eps)

# States above which eigenvectors of CPU tensors come from torch. hsv takes them from NumPy, whose BLAS has threads of its own that go on spinning for a while: after
# each call the next operation of torch waited up to 60 ms for a processor, a third of what it took to plan the cut of a layer of 384 states.
_OWN_EIGENVECTORS = 32


@dataclass(frozen=True)
class WidelyLinearMap:
    r"""The map :math:`z \mapsto M_1 z + M_2 \bar z`, on the last axis but one; ``linear`` and ``conjugate`` have shape ``(..., n, r)``."""

    linear: Tensor
    conjugate: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the map to `z`, ``(..., r, k)``."""
        return self.linear @ z + self.conjugate @ z.conj()

    def between(self, rows: Tensor, columns: Tensor) -> WidelyLinearMap:
        r"""Return :math:`z \mapsto \mathrm{rows} \odot M(\mathrm{columns} \odot z)` for factors ``rows (..., n)`` and ``columns (..., r)``."""
        rows, columns = rows[..., :, None], columns[..., None, :]
        return WidelyLinearMap(rows * self.linear * columns, rows * self.conjugate * columns.conj())

    def __sub__(self, other: WidelyLinearMap) -> WidelyLinearMap:
        return WidelyLinearMap(self.linear - other.linear, self.conjugate - other.conjugate)

    def pull_back(self, covector: Tensor, *, squared: bool) -> Tensor:
        r"""Carry a covector ``(..., n, k)`` (``re``: derivative by the real part, ``im``: by the imaginary part) from :math:`n` to :math:`r` rows.

        ``squared``: by the element-wise square of the real Jacobian.
        """
        plus, minus = self.linear + self.conjugate, self.linear - self.conjugate
        # d(re, im) of the old by d(re, im) of the new
        re_re, im_re, re_im, im_im = plus.real, plus.imag, -minus.imag, minus.real
        if squared:
            re_re, im_re, re_im, im_im = re_re**2, im_re**2, re_im**2, im_im**2
        re, im = covector.real, covector.imag
        return torch.complex(re_re.mT @ re + im_re.mT @ im, re_im.mT @ re + im_im.mT @ im)


@dataclass(frozen=True)
class DiagonalCut:
    r"""A smaller diagonal layer and how the old one depends on it; leading axes are a batch of systems.

    Attributes
    ----------
    log_poles : Tensor
        Logarithms of the new poles, ``(..., r)``, complex128.
    B, C : Tensor
        ``(..., r, m)`` and ``(..., p, r)``, complex128; the layer's output is ``Re(C h)``.
    states : WidelyLinearMap
        ``(..., n, r)``: the old state, and so the old ``B``, from the new one.
    outputs : WidelyLinearMap
        ``(..., n, r)``: the old ``C^T`` from the new ``C^T``.
    log_pole_map : WidelyLinearMap
        ``(..., n, r)``: to first order, the change of the old log-poles from that of the new ones, as far as a diagonal layer can follow.
    order : int
        Order of the truncated system, the largest one in a batch.
    hankel_singular_values : numpy.ndarray
        ``(..., n)``, what the rule chose by.
    error_bound : float
        H-infinity bound of the change, the largest one in a batch.
    eigenvector_condition : float
        Of the reduced state matrix, the worst one in a batch.
    """

    log_poles: Tensor
    B: Tensor
    C: Tensor
    states: WidelyLinearMap
    outputs: WidelyLinearMap
    log_pole_map: WidelyLinearMap
    order: int
    hankel_singular_values: np.ndarray
    error_bound: float
    eigenvector_condition: float
    notes: tuple[str, ...]

    @property
    def n_states(self) -> int:
        """Number of states after the cut."""
        return int(self.log_poles.shape[-1])

    @property
    def padding(self) -> Tensor:
        """``(..., r)``, True for states that nothing enters or leaves: their system has no more states to fill them with."""
        return (self.B == 0).all(-1) & (self.C == 0).all(-2)

    def scale(self, factors: Tensor) -> DiagonalCut:
        """Return the same cut with every new state multiplied by a factor, ``(..., r)``, real or complex and not 0."""
        one = torch.ones_like(self.states.linear[..., 0])
        return replace(
            self,
            B=self.B * factors[..., :, None],
            C=self.C / factors[..., None, :],
            states=self.states.between(one, 1 / factors),
            outputs=self.outputs.between(one, factors),
        )

    def rescale(self, row_norms: Tensor) -> DiagonalCut:
        """Return the same cut with every row of ``B`` scaled to the given 2-norm ``(..., r)``, the columns of ``C`` inversely.

        The scale of a state is free; Adam's steps depend on it.
        """
        norms = torch.linalg.vector_norm(self.B, dim=-1)
        return self.scale(row_norms / torch.where(self.padding, torch.ones_like(norms), norms))


class Criterion(abc.ABC):  # noqa: B024  (what a criterion computes depends on the kind of layer)
    """Decides which states of a layer stay. Each kind of layer has its own kind of criterion: see the subclasses."""


class DiagonalCriterion(Criterion):
    """Decides which states of a time-invariant diagonal layer stay."""

    @abc.abstractmethod
    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the values that a rule chooses by, descending, float64, with the system's batch axes."""

    @abc.abstractmethod
    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut of a layer with this system, or batch of systems, whose output is ``Re(C h)``."""


@dataclass(frozen=True)
class ComplexHankel(DiagonalCriterion):
    """Balanced truncation of the complex system, as the CompreSSM paper does it.

    Its error bound carries over to the real part of the output.

    Parameters
    ----------
    max_condition : float
        A cut is refused if the eigenvectors of the reduced state matrix have a larger condition number.
    """

    max_condition: float = 1e6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the complex system, ``(..., n)``."""
        return to_host(hsv.hankel_singular_values(system))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if the reduced system has no usable eigenvectors."""
        own = truncated(system, rule)
        size = int(own.orders.max())
        red = own if int(own.orders.min()) == size else truncated(system, hsv.Order(size))
        return whole_cut(system, red, own.orders, self.max_condition)


@dataclass(frozen=True)
class RealHankel(DiagonalCriterion):
    r"""Balanced truncation of the real system of ``u -> Re(C h)``, which has ``2n`` states: the conjugate-aware reading.

    Closer to optimal than :class:`ComplexHankel`, for it minimises over the outputs that the layer really has. After truncation each conjugate pair takes
    one complex state of the layer and each real eigenvalue one state with angle 0 or pi. Rules choose the real order by the
    ``2n`` values of the real system; ``Order(k)`` counts states of the layer and takes the largest real order that fits into ``k`` of them. In a batch
    every system fills the states that the largest one needs. A layer whose poles are real numbers has one reading only, that of :class:`ComplexHankel`.

    A complex state whose pole is exactly real holds two real states, each of which takes a state of its own after the cut. For a
    layer made of such states (``max_phase=0``) :class:`ComplexHankel` is the better reading.

    Parameters
    ----------
    max_condition : float
        A cut is refused if the eigenvectors of the reduced state matrix have a larger condition number.
    """

    max_condition: float = 1e6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the real system, ``(..., 2n)``."""
        return to_host(hsv.hankel_singular_values(hsv.real_part(system)))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if the reduced system has no usable eigenvectors."""
        if not system.is_complex:
            return ComplexHankel(self.max_condition).reduce(system, rule)
        n, real = system.n_states, hsv.real_part(system)
        if isinstance(rule, (hsv.Order, int)):
            slots = rule if isinstance(rule, int) else rule.n_states
            hsv.Order(slots).choose(np.ones(n))  # the order must be one of the layer's
            own = red = _fit_into(truncated(real, hsv.Order(2 * slots)), slots)
        else:
            own = red = _fit_into(truncated(real, rule), n)
            needed = _slots(red.system.A, red.orders)
            slots = int(needed.max())
            if int(needed.min()) < slots:
                red = _fit_into(truncated(real, hsv.Order(2 * slots)), slots)
        form = _diagonal_form(red, own.orders, self.max_condition)

        top_right, top_left = (
            form.right[..., :n, :],
            form.left[..., :n, :],
        )  # the rows of h; those of conj h mirror them
        overlap = top_right * top_left.conj()  # (..., n, order): the share of each old pole in each new one
        first, second, pair, padding = _slot_columns(form.poles, overlap, form.padding)

        def columns(matrix: Tensor, index: Tensor) -> Tensor:
            return torch.take_along_dim(matrix, index[..., None, :], dim=-1)

        # A real state enters through its real part, (z + conj z) / 2, so that its imaginary part has no influence.
        half = torch.where(pair, 1.0, 0.5)[..., None, :]
        B, C = torch.take_along_dim(form.B, first[..., None], dim=-2), columns(form.C, first)
        return diagonal_cut(
            system,
            torch.take_along_dim(form.poles, first, dim=-1),
            torch.where(pair[..., None], B, B.real + 0j),
            torch.where(pair[..., None, :], 2 * C, C.real + 0j),
            states=(columns(top_right, first) * half, columns(top_right, second) * half),
            outputs=(columns(top_left, first).conj(), columns(top_left, second).conj()),
            poles_from=(columns(overlap, first) * half, columns(overlap, second) * half),
            padding=padding, order=form.order, sigma=_sigma(red), error_bound=form.error_bound,
            condition=form.condition, notes=form.notes,
        )  # fmt: skip


@dataclass(frozen=True)
class SymmetricHankel(DiagonalCriterion):
    r"""Balanced truncation of real systems that keeps real poles real: the states with positive and with negative weight apart.

    A real diagonal system with one input and one output, :math:`y = \sum_i c_i b_i \sum_k \lambda_i^k u_{t-k}`, is the difference of the part with
    :math:`c_i b_i > 0` and the part with :math:`c_i b_i < 0`. Scaled so that :math:`b_i = \pm c_i`, each part is symmetric and has one Gramian :math:`P = V \Sigma V^T` for
    controllability and observability: its Hankel singular values are the eigenvalues, its balanced truncation is :math:`V_r^T A V_r`, again symmetric.
    So the new poles are real, lie between the smallest and the largest old one (Cauchy's interlacing theorem), and have orthonormal eigenvectors. The rule
    chooses by the values of both parts together, and the error is at most twice the sum of the discarded ones, the bound of each part added up.

    Truncating the whole system, as :class:`ComplexHankel` does, discards less for the same order, but may make pairs of complex poles, which
    a layer with real poles cannot hold. :class:`RealPoles` takes the better of both.

    References
    ----------
    Liu, Sreeram, Teo, "Model reduction for state-space symmetric systems", Systems & Control Letters 34 (1998), for the truncation of a symmetric system.
    """

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of both parts, sorted into one list, ``(..., n)``."""
        return to_host(_symmetric_parts(system).sigma)

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`hsv.HsvError` if the systems are complex or have several inputs or outputs."""
        return _apart(system, rule)[0]


@dataclass(frozen=True)
class RealPoles(DiagonalCriterion):
    r"""Balanced truncation that keeps real poles real: of each system whatever has the smaller bound.

    One candidate is the balanced truncation of the whole system at the largest order, up to the size of the layer, at which its poles are real, positive if the old
    ones are, and its eigenvectors well conditioned. It decays faster, for the parts with positive and negative weight cancel in it. The other is :class:`SymmetricHankel`, which
    always exists. Both bounds are known beforehand, so that the choice is never worse than :class:`SymmetricHankel`, whose values the rule chooses by.

    Parameters
    ----------
    max_condition : float
        Balanced truncations of the whole system with eigenvectors of a larger condition number are no candidates.
    """

    max_condition: float = 1e6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of both parts, as :class:`SymmetricHankel` does."""
        return SymmetricHankel().spectrum(system)

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`hsv.HsvError` if the systems are complex or have several inputs or outputs."""
        apart, bounds = _apart(system, rule)
        red = truncated(system, hsv.Order(apart.n_states))
        red = _leading(red, _largest_real_orders(red, system.poles().amin(-1) > 0))
        usable = _diagonalize(red.system)[1].to(red.orders.device) <= self.max_condition
        red = _leading(red, torch.where(usable, red.orders, 0))
        whole_bounds = to_host(_bound(red))
        better = (whole_bounds < bounds) & (to_host(red.orders) > 0)
        if not better.any():
            return apart
        whole = _widened(whole_cut(system, red, red.orders, self.max_condition), apart.n_states)
        merged = _choose(torch.from_numpy(np.asarray(better)).to(red.orders.device), whole, apart)
        notes = () if better.all() else (
            f"in {int((~better).sum())} of {better.size} systems the states with positive and with negative weight were truncated apart, for together they "
            "would have no real poles or a larger error",
        )  # fmt: skip
        return replace(
            merged,
            order=merged.n_states,
            error_bound=float(np.where(better, whole_bounds, bounds).max()),
            notes=(*notes, *_empty_states(merged.padding)),
        )


def whole_cut(system: hsv.DiagonalStateSpace, red: hsv.Reduction, own: Tensor, max_condition: float) -> DiagonalCut:
    """The cut that a reduction of the whole system makes; see :func:`_diagonal_form`."""
    form = _diagonal_form(red, own, max_condition)
    zero = torch.zeros_like(form.right)
    return diagonal_cut(
        system, form.poles, form.B, form.C,
        states=(form.right, zero), outputs=(form.left.conj(), zero), poles_from=(form.right * form.left.conj(), zero),
        padding=form.padding, order=form.order, sigma=_sigma(red), error_bound=form.error_bound,
        condition=form.condition, notes=form.notes,
    )  # fmt: skip


def _largest_real_orders(red: hsv.Reduction, positive: Tensor) -> Tensor:
    """Largest order at which the leading part of each balanced real system has real poles, where asked for positive ones; 0 if none has."""
    orders, A = red.orders.clone(), red.system.A
    open_ = orders > 0
    while bool(open_.any()):
        order = orders[open_]
        size = int(order.max())
        keep = torch.arange(size, device=A.device) < order[:, None]
        poles = torch.linalg.eigvals(A[open_][..., :size, :size] * keep[:, :, None] * keep[:, None, :])
        not_positive = (poles.real <= 0) & positive[open_][:, None]
        # The empty rows have the pole 0.
        spare = torch.where(positive[open_], size - order, 0)
        bad = ((poles.imag != 0) | not_positive).sum(-1) > spare
        orders[open_] = order - bad.to(order.dtype)
        open_[open_.clone()] = bad & (order > 1)
    return orders


def _widened(cut: DiagonalCut, size: int) -> DiagonalCut:
    """The same cut with empty states up to `size`."""
    extra = size - cut.n_states

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(*x.shape[:-1], extra)], dim=-1)

    def wide_map(f: WidelyLinearMap) -> WidelyLinearMap:
        return WidelyLinearMap(wide(f.linear), wide(f.conjugate))

    return replace(
        cut, log_poles=wide(cut.log_poles), B=wide(cut.B.mT).mT, C=wide(cut.C),
        states=wide_map(cut.states), outputs=wide_map(cut.outputs), log_pole_map=wide_map(cut.log_pole_map),
    )  # fmt: skip


def _choose(which: Tensor, first: DiagonalCut, second: DiagonalCut) -> DiagonalCut:
    """The first cut for the systems in the mask `which`, the second for the others, without states that are empty in all."""

    def where(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which.reshape(which.shape + (1,) * (a.ndim - which.ndim)), a, b)

    padding = where(first.padding, second.padding)
    size = int((~padding).sum(-1).max())

    def where_map(a: WidelyLinearMap, b: WidelyLinearMap) -> WidelyLinearMap:
        return WidelyLinearMap(where(a.linear, b.linear)[..., :size], where(a.conjugate, b.conjugate)[..., :size])

    log_poles = torch.where(padding, math.log(0.5), where(first.log_poles, second.log_poles))
    return replace(
        second, log_poles=log_poles[..., :size], B=where(first.B, second.B)[..., :size, :], C=where(first.C, second.C)[..., :size],
        states=where_map(first.states, second.states), outputs=where_map(first.outputs, second.outputs),
        log_pole_map=where_map(first.log_pole_map, second.log_pole_map),
        eigenvector_condition=max(first.eigenvector_condition, second.eigenvector_condition),
    )  # fmt: skip


def _apart(system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> tuple[DiagonalCut, np.ndarray]:
    """The cut of :class:`SymmetricHankel`, and the bound of each system."""
    parts = _symmetric_parts(system)
    sigma, n = to_host(parts.sigma), system.n_states
    chosen = hsv.as_rule(rule).choose(sigma)
    if not chosen.max(initial=0):
        raise nothing_to_keep(sigma)
    # The factor holds the roots of the values to the precision that the values themselves have elsewhere.
    rank = np.sum(sigma > (n * _EPS) ** 2 * sigma[..., :1], axis=-1)
    orders = torch.from_numpy(np.asarray(np.minimum(chosen.max(), rank))).to(parts.sigma.device)
    size = int(orders.max())
    kept = torch.arange(size, device=orders.device) < orders[..., None]  # (..., size)

    basis = parts.vectors[..., :size] * kept[..., None, :]  # (..., n, size), orthonormal
    A = basis.mT @ (system.poles()[..., :, None] * basis)
    # Empty states get the pole 2, so that they come last.
    poles, vectors = torch.linalg.eigh(A + 2 * torch.diag_embed((~kept).to(A.dtype)))
    basis = (basis @ vectors) * kept[..., None, :]
    weight, scale = parts.weight[..., :, None], parts.scale[..., :, None]  # (..., n, 1)
    zero = torch.zeros_like(basis)
    tail = np.where(np.arange(n) >= to_host(orders)[..., None], sigma, 0.0)
    rounding = 8 * n * _EPS * np.sqrt(tail * sigma[..., :1]) + (8 * n * _EPS) ** 2 * sigma[..., :1]
    bounds = np.asarray(2 * (tail + rounding).sum(-1))
    cut = diagonal_cut(
        system, poles + 0j, basis.mT @ weight + 0j, (parts.sign[..., None, :] * weight.mT) @ basis + 0j,
        states=(torch.where(scale > 0, basis / scale, 0.0) + 0j, zero + 0j), outputs=(scale * basis + 0j, zero + 0j),
        poles_from=(basis**2 + 0j, zero + 0j), padding=~kept, order=size, sigma=parts.sigma,
        error_bound=float(bounds.max()), condition=1.0, notes=(),
    )  # fmt: skip
    return cut, bounds


class _SymmetricParts(NamedTuple):
    """Both parts of a batch of real systems in symmetric coordinates, ``h_symmetric = scale h``."""

    sigma: Tensor  # (..., n), of both, descending
    vectors: Tensor  # (..., n, n): the eigenvector of P of each of them, zero outside its part
    weight: Tensor  # (..., n): the input map, whose product with `sign` is the output map
    sign: Tensor
    scale: Tensor


def _symmetric_parts(system: hsv.DiagonalStateSpace) -> _SymmetricParts:
    if system.is_complex or system.n_inputs != 1 or system.n_outputs != 1:
        raise hsv.HsvError(
            "SymmetricHankel and RealPoles take real systems with one input and one output (S4D with real poles, in one direction), got a "
            f"{'complex' if system.is_complex else 'real'} one with {system.n_inputs} inputs and {system.n_outputs} outputs; use "
            "ComplexHankel or RealHankel"
        )
    B, gain = system.B[..., 0], system.B[..., 0] * system.C[..., 0, :]
    weight, sign = gain.abs().sqrt(), gain.sign()
    parts = torch.stack([weight * (sign > 0), weight * (sign < 0)])[..., None]  # (2, ..., n, 1)
    empty = torch.zeros_like(parts).mT
    if system.log_poles is not None:
        part = hsv.DiagonalStateSpace.from_log_poles(system.log_poles, parts, empty, dt=True)
    else:
        part = hsv.DiagonalStateSpace(system.poles(), parts, empty, dt=system.dt)
    vectors, roots, _ = torch.linalg.svd(hsv.controllability_factor(part))
    sigma, place = torch.sort(torch.cat(list(roots**2), dim=-1), dim=-1, descending=True, stable=True)
    n = system.n_states  # at most n of the 2n values are not zero
    vectors = torch.take_along_dim(torch.cat(list(vectors), dim=-1), place[..., None, :n], dim=-1)
    scale = torch.where(B != 0, weight / B, 0.0)
    return _SymmetricParts(sigma[..., :n], vectors, weight, sign, scale)


def nothing_to_keep(sigma: np.ndarray) -> CutRefusedError:
    """The error for a layer whose states carry nothing."""
    return CutRefusedError(
        "all Hankel singular values are zero: no input reaches the output through the states; look for a layer with B = 0 or C = 0",
        sigma,
    )


def truncated(system: hsv.LinearSystem, rule: hsv.Rule | int) -> hsv.Reduction:
    """Balanced truncation without warnings; an error where no state is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # the notes of the reduction go into those of the cut
        red = hsv.balanced_truncation(system, rule)
    if int(red.orders.max()) == 0:
        raise nothing_to_keep(to_host(_sigma(red)))
    return red


def _sigma(red: hsv.Reduction) -> Tensor:
    assert red.hankel_singular_values is not None
    return red.hankel_singular_values


def _bound(red: hsv.Reduction) -> Tensor:
    assert red.error_bound is not None
    return red.error_bound


def _leading(red: hsv.Reduction, orders: Tensor, note: str = "") -> hsv.Reduction:
    """The reductions to the leading `orders` states, at most those of `red`: a part of a balanced system is balanced."""
    assert red.left is not None
    assert red.right is not None
    assert red.error_bound is not None
    size, sys, sigma = max(int(orders.max()), 1), red.system, _sigma(red)
    keep = (torch.arange(size, device=sys.A.device) < orders[..., None]).to(sys.A.real.dtype)  # (..., size)
    rows, columns = keep[..., :, None], keep[..., None, :]
    index = torch.arange(sigma.shape[-1], device=sigma.device)
    dropped = (index >= orders[..., None]) & (index < red.orders[..., None])
    return hsv.Reduction(
        hsv.StateSpace(
            sys.A[..., :size, :size] * rows * columns, sys.B[..., :size, :] * rows, sys.C[..., :size] * columns, sys.D, dt=sys.dt
        ),
        orders,
        sigma,
        red.error_bound + 2 * (sigma * dropped).sum(-1) * (1 + 1e-12),
        red.left[..., :size] * columns,
        red.right[..., :size] * columns,
        (*red.notes, note) if note else red.notes,
    )  # fmt: skip


def _slots(A: Tensor, orders: Tensor) -> Tensor:
    """States of a layer that the leading `orders` states of real systems ``A (..., k, k)`` take, ``(...)``."""
    keep = torch.arange(A.shape[-1], device=A.device) < orders[..., None]
    poles = torch.linalg.eigvals(A * keep[..., :, None] * keep[..., None, :])
    return (poles.imag >= 0).sum(-1) - (A.shape[-1] - orders)  # the empty rows have the pole 0


def _fit_into(red: hsv.Reduction, slots: int) -> hsv.Reduction:
    """Return the largest leading part of each balanced real system whose conjugate pairs and real poles fit into the slots."""
    orders, A = red.orders.clone(), red.system.A
    open_ = orders > slots  # `slots` real states always fit
    while bool(open_.any()):
        order = orders[open_]
        size = int(order.max())
        too_many = _slots(A[open_][..., :size, :size], order) > slots
        orders[open_] = order - too_many.to(order.dtype)
        open_[open_.clone()] = too_many & (order - 1 > slots)
    shortened = orders < red.orders
    if not bool(shortened.any()):
        return red
    which = int(torch.argmax((red.orders - orders).flatten()))
    note = (
        f"the real order is {int(orders.flatten()[which])}, not {int(red.orders.flatten()[which])}: its pairs and real poles must fit into {slots} states"
    ) + (f" (in {int(shortened.sum())} of {orders.numel()} systems)" if orders.numel() > 1 else "")
    return _leading(red, orders, note)


class _DiagonalForm(NamedTuple):
    """Reduced systems in eigenvector coordinates, and the projections that lead there; zero in the padding, which comes last."""

    poles: Tensor  # (..., k)
    B: Tensor
    C: Tensor
    right: Tensor  # (..., n, k)
    left: Tensor  # left^H right = I
    padding: Tensor  # (..., k)
    order: int
    error_bound: float
    condition: float
    notes: tuple[str, ...]


def _diagonal_form(red: hsv.Reduction, own: Tensor, max_condition: float) -> _DiagonalForm:
    """Diagonalise; systems whose eigenvectors are bad only because they got more states than the rule chose for them, `own`, give those back."""
    result, condition = _diagonalize(red.system)
    worst = to_host(condition)
    greedy = (worst > max_condition) & to_host(red.orders > own)
    if greedy.any():
        note = (
            f"{int(greedy.sum())} of {greedy.size} systems keep only the states that the rule chose for them: with as many as the others their "
            f"eigenvectors would have condition numbers up to {worst[greedy].max():.1e}"
        )
        given_back = torch.from_numpy(greedy).to(own.device)
        red = _leading(red, torch.where(given_back, own, red.orders), note)
        result, condition = _diagonalize(red.system)
        worst = to_host(condition)
    highest = float(worst.max(initial=1.0))
    if highest > max_condition:
        which = f" of channel {int(worst.argmax())}" if worst.ndim else ""
        raise CutRefusedError(
            f"the eigenvectors of the reduced state matrix{which} have condition {highest:.1e}, above the limit {max_condition:.1e}; choose another order or raise max_condition",
            to_host(_sigma(red)),
        )
    if result is None:
        raise CutRefusedError(
            f"the reduced system cannot be diagonalised: its state matrix is defective to working precision (condition {highest:.1e}); choose another order",
            to_host(_sigma(red)),
        )
    diagonal, vectors = result
    assert red.left is not None
    assert red.right is not None
    assert red.error_bound is not None
    right = red.right.to(vectors.dtype) @ vectors
    left = torch.linalg.solve(vectors, red.left.to(vectors.dtype).mH).mH  # left^H right = I stays
    poles, B, C = diagonal.poles(), diagonal.B, diagonal.C
    size = poles.shape[-1]
    padding = torch.arange(size, device=poles.device) >= red.orders[..., None]
    if bool(padding.any()):
        # A shorter system is block diagonal with its padding, so that an eigenvector lies in one of both.
        outside = (vectors.abs() ** 2 * padding[..., :, None]).sum(-2) > 0.5
        last = torch.argsort(outside.to(torch.int8), dim=-1, stable=True)
        assert torch.equal(torch.take_along_dim(outside, last, dim=-1), padding)
        keep = (~padding).to(right.real.dtype)
        poles = torch.take_along_dim(poles, last, dim=-1)
        B = torch.take_along_dim(B, last[..., :, None], dim=-2) * keep[..., :, None]
        C, right, left = (
            torch.take_along_dim(x, last[..., None, :], dim=-1) * keep[..., None, :] for x in (C, right, left)
        )
    bound = float(to_host(red.error_bound).max())
    return _DiagonalForm(poles, B, C, right, left, padding, int(red.orders.max()), bound, highest, red.notes)


def _diagonalize(system: hsv.StateSpace) -> tuple[tuple[hsv.DiagonalStateSpace, Tensor] | None, Tensor]:
    """Diagonal form and eigenvectors, or None if one of the systems has none; and the condition numbers of the eigenvectors."""
    if system.n_states > _OWN_EIGENVECTORS and system.A.device.type == "cpu":
        return _diagonalize_here(system)
    try:
        diagonal, vectors, condition = hsv.diagonalize(system)
    except hsv.IllConditionedError:
        singular = torch.linalg.svdvals(torch.linalg.eig(system.A.cpu())[1])
        return None, singular[..., 0] / singular[..., -1]
    return (diagonal, vectors), condition


def _diagonalize_here(system: hsv.StateSpace) -> tuple[tuple[hsv.DiagonalStateSpace, Tensor] | None, Tensor]:
    """What :func:`hsv.diagonalize` does, by torch's library."""
    A, B, C = (x.to(torch.promote_types(x.dtype, torch.float64)) for x in (system.A, system.B, system.C))
    poles, vectors = torch.linalg.eig(A)
    singular = torch.linalg.svdvals(vectors)
    condition = singular[..., 0] / singular[..., -1]
    if not bool((condition < 1 / _EPS).all()):
        return None, condition
    B, C, D = torch.linalg.solve(vectors, B.to(vectors.dtype)), C.to(vectors.dtype) @ vectors, system.D + 0j
    return (hsv.DiagonalStateSpace(poles, B, C, D, dt=system.dt), vectors), condition


def _slot_columns(poles: Tensor, overlap: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What takes each state of a layer: the two columns of a conjugate pair, or twice that of a real pole; ``(..., slots)`` each.

    Of a pair the first is the pole that the old poles resemble more, so that angles and moments continue. Then come a mask of the pairs, and one
    of the states that stay empty.
    """
    k = poles.shape[-1]
    upper, lower, single = poles.imag > 0, poles.imag < 0, (poles.imag == 0) & ~padding
    kind = torch.where(upper, 0, torch.where(single, 1, torch.where(lower, 3, 2)))
    slots = int((upper | single).sum(-1).max())
    first = torch.argsort(kind, dim=-1, stable=True)[..., :slots]
    pair = torch.take_along_dim(upper, first, dim=-1)
    empty = ~(pair | torch.take_along_dim(single, first, dim=-1))
    second = torch.where(
        pair, (first + 1).clamp(max=k - 1), first
    )  # LAPACK returns each pair of a real matrix side by side
    found = torch.take_along_dim(poles, second, dim=-1)
    assert torch.equal(found[pair], torch.take_along_dim(poles, first, dim=-1)[pair].conj())
    size = overlap.abs().amax(dim=-2)
    swap = torch.take_along_dim(size, second, dim=-1) > torch.take_along_dim(size, first, dim=-1)
    return torch.where(swap, second, first), torch.where(swap, first, second), pair, empty


def diagonal_cut(
    system: hsv.DiagonalStateSpace,
    poles: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    states: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor],
    poles_from: tuple[Tensor, Tensor],
    padding: Tensor,
    order: int,
    sigma: Tensor,
    error_bound: float,
    condition: float,
    notes: tuple[str, ...],
) -> DiagonalCut:
    """The cut to a system with these poles, as the layer stores it; states are turned so that moments stay apart, and empty ones get a pole."""
    notes = (*notes, *_empty_states(padding))
    size = poles.abs()
    at_zero = (size < SMALLEST_POLE) & ~padding
    if bool(at_zero.any()):
        notes = (
            *notes,
            f"{int(at_zero.sum())} poles at 0 were moved out to modulus {SMALLEST_POLE:g}: the layer stores the logarithm of the modulus",
        )
        poles = torch.where(at_zero, torch.full_like(poles, SMALLEST_POLE), poles)
    poles = torch.where(padding, torch.full_like(poles, 0.5), poles)
    # Turn every state so that the old state it depends on most is a positive multiple of it: moments of re and im stay apart.
    dominant = poles_from[0].abs().argmax(dim=-2, keepdim=True)
    lead = torch.take_along_dim(states[0], dominant, dim=-2)[..., 0, :]
    phase = torch.where(
        (lead.abs() > 0) & (poles.imag != 0), lead / lead.abs().clamp(min=1e-300), torch.ones_like(lead)
    )
    one = torch.ones_like(states[0][..., 0])
    old_poles = torch.exp(system.log_poles) if system.log_poles is not None else system.poles()
    return DiagonalCut(
        log_poles=torch.complex(torch.log(poles.abs()), torch.angle(poles)),
        B=B * phase[..., :, None],
        C=C * phase.conj()[..., None, :],
        states=WidelyLinearMap(*states).between(one, phase.conj()),
        outputs=WidelyLinearMap(*outputs).between(one, phase),
        log_pole_map=WidelyLinearMap(*poles_from).between(1 / old_poles, poles),
        order=order,
        hankel_singular_values=to_host(sigma),
        error_bound=error_bound,
        eigenvector_condition=condition,
        notes=notes,
    )


def _empty_states(padding: Tensor) -> tuple[str, ...]:
    short = int(padding.any(-1).sum())
    if not short:
        return ()
    return (
        f"in {short} of {padding[..., 0].numel()} systems fewer than {padding.shape[-1]} states are of use or can be told from rounding errors: "
        f"{int(padding.sum())} states stay empty",
    )


def to_host(values: Tensor) -> np.ndarray:
    """The values in NumPy, floating ones in double precision."""
    array = values.detach().cpu().numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else array
