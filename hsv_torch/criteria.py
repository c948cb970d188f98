r"""What decides which states of a diagonal layer stay: the criteria.

A diagonal complex layer computes :math:`h_t = \Lambda h_{t-1} + B u_t`, :math:`y_t = \operatorname{Re}(C h_t)`. A criterion truncates its system and
returns to diagonal form. What a layer needs to know of it to follow is a :class:`~hsv_torch.diagonal_cut.DiagonalCut`.

A layer with a system for each channel shows a batch of systems. All are cut to one number of states, the largest that the rule chooses for any of
them; a system with fewer states to distinguish than that gets states that nothing enters or leaves (``DiagonalCut.padding``).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._diagonal_form import (
    bound_of,
    diagonal_form,
    diagonalize,
    fit_into,
    largest_real_orders,
    leading,
    nothing_to_keep,
    sigma_of,
    slot_columns,
    slots_needed,
    truncated,
    whole_cut,
)
from hsv_torch.diagonal_cut import DiagonalCut, diagonal_cut, empty_states, merged_cut, to_host, widened

_EPS = float(np.finfo(np.float64).eps)


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
            own = red = fit_into(truncated(real, hsv.Order(2 * slots)), slots)
        else:
            own = red = fit_into(truncated(real, rule), n)
            needed = slots_needed(red.system.A, red.orders)
            slots = int(needed.max())
            if int(needed.min()) < slots:
                red = fit_into(truncated(real, hsv.Order(2 * slots)), slots)
        form = diagonal_form(red, own.orders, self.max_condition)

        top_right, top_left = (
            form.right[..., :n, :],
            form.left[..., :n, :],
        )  # the rows of h; those of conj h mirror them
        overlap = top_right * top_left.conj()  # (..., n, order): the share of each old pole in each new one
        first, second, pair, padding = slot_columns(form.poles, overlap, form.padding)

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
            padding=padding, order=form.order, sigma=sigma_of(red), error_bound=form.error_bound,
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
        red = leading(red, largest_real_orders(red, system.poles().amin(-1) > 0))
        usable = diagonalize(red.system)[1].to(red.orders.device) <= self.max_condition
        red = leading(red, torch.where(usable, red.orders, 0))
        whole_bounds = to_host(bound_of(red))
        better = (whole_bounds < bounds) & (to_host(red.orders) > 0)
        if not better.any():
            return apart
        whole = widened(whole_cut(system, red, red.orders, self.max_condition), apart.n_states)
        merged = merged_cut(torch.from_numpy(np.asarray(better)).to(red.orders.device), whole, apart)
        notes = () if better.all() else (
            f"in {int((~better).sum())} of {better.size} systems the states with positive and with negative weight were truncated apart, for together they "
            "would have no real poles or a larger error",
        )  # fmt: skip
        return replace(
            merged,
            order=merged.n_states,
            error_bound=float(np.where(better, whole_bounds, bounds).max()),
            notes=(*notes, *empty_states(merged.padding)),
        )


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
