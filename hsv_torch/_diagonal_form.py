"""From a balanced real or complex system back to a diagonal layer: its leading part, eigenvectors, and states that hold conjugate pairs."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._errors import CutRefusedError
from hsv_torch.diagonal_cut import DiagonalCut, diagonal_cut, to_host

_EPS = float(np.finfo(np.float64).eps)

# States above which eigenvectors of CPU tensors come from torch. hsv takes them from NumPy, whose BLAS has threads of its own that go on spinning for a while: after
# each call the next operation of torch waited up to 60 ms for a processor, a third of what it took to plan the cut of a layer of 384 states.
_OWN_EIGENVECTORS = 32


def whole_cut(system: hsv.DiagonalStateSpace, red: hsv.Reduction, own: Tensor, max_condition: float) -> DiagonalCut:
    """The cut that a reduction of the whole system makes; see :func:`diagonal_form`."""
    form = diagonal_form(red, own, max_condition)
    zero = torch.zeros_like(form.right)
    return diagonal_cut(
        system, form.poles, form.B, form.C,
        states=(form.right, zero), outputs=(form.left.conj(), zero), poles_from=(form.right * form.left.conj(), zero),
        padding=form.padding, order=form.order, sigma=sigma_of(red), error_bound=form.error_bound,
        condition=form.condition, notes=form.notes,
    )  # fmt: skip


def truncated(system: hsv.LinearSystem, rule: hsv.Rule | int) -> hsv.Reduction:
    """Balanced truncation without warnings; an error where no state is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # the notes of the reduction go into those of the cut
        red = hsv.balanced_truncation(system, rule)
    if int(red.orders.max()) == 0:
        raise nothing_to_keep(to_host(sigma_of(red)))
    return red


def nothing_to_keep(sigma: np.ndarray) -> CutRefusedError:
    """The error for a layer whose states carry nothing."""
    return CutRefusedError(
        "all Hankel singular values are zero: no input reaches the output through the states; look for a layer with B = 0 or C = 0",
        sigma,
    )


def sigma_of(red: hsv.Reduction) -> Tensor:
    assert red.hankel_singular_values is not None
    return red.hankel_singular_values


def bound_of(red: hsv.Reduction) -> Tensor:
    assert red.error_bound is not None
    return red.error_bound


def leading(red: hsv.Reduction, orders: Tensor, note: str = "") -> hsv.Reduction:
    """The reductions to the leading `orders` states, at most those of `red`: a part of a balanced system is balanced."""
    assert red.left is not None
    assert red.right is not None
    assert red.error_bound is not None
    size, sys, sigma = max(int(orders.max()), 1), red.system, sigma_of(red)
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


def largest_real_orders(red: hsv.Reduction, positive: Tensor) -> Tensor:
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


def slots_needed(A: Tensor, orders: Tensor) -> Tensor:
    """States of a layer that the leading `orders` states of real systems ``A (..., k, k)`` take, ``(...)``."""
    keep = torch.arange(A.shape[-1], device=A.device) < orders[..., None]
    poles = torch.linalg.eigvals(A * keep[..., :, None] * keep[..., None, :])
    return (poles.imag >= 0).sum(-1) - (A.shape[-1] - orders)  # the empty rows have the pole 0


def fit_into(red: hsv.Reduction, slots: int) -> hsv.Reduction:
    """Return the largest leading part of each balanced real system whose conjugate pairs and real poles fit into the slots."""
    orders, A = red.orders.clone(), red.system.A
    open_ = orders > slots  # `slots` real states always fit
    while bool(open_.any()):
        order = orders[open_]
        size = int(order.max())
        too_many = slots_needed(A[open_][..., :size, :size], order) > slots
        orders[open_] = order - too_many.to(order.dtype)
        open_[open_.clone()] = too_many & (order - 1 > slots)
    shortened = orders < red.orders
    if not bool(shortened.any()):
        return red
    which = int(torch.argmax((red.orders - orders).flatten()))
    note = (
        f"the real order is {int(orders.flatten()[which])}, not {int(red.orders.flatten()[which])}: its pairs and real poles must fit into {slots} states"
    ) + (f" (in {int(shortened.sum())} of {orders.numel()} systems)" if orders.numel() > 1 else "")
    return leading(red, orders, note)


class DiagonalForm(NamedTuple):
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


def diagonal_form(red: hsv.Reduction, own: Tensor, max_condition: float) -> DiagonalForm:
    """Diagonalise; systems whose eigenvectors are bad only because they got more states than the rule chose for them, `own`, give those back."""
    result, condition = diagonalize(red.system)
    worst = to_host(condition)
    greedy = (worst > max_condition) & to_host(red.orders > own)
    if greedy.any():
        note = (
            f"{int(greedy.sum())} of {greedy.size} systems keep only the states that the rule chose for them: with as many as the others their "
            f"eigenvectors would have condition numbers up to {worst[greedy].max():.1e}"
        )
        given_back = torch.from_numpy(greedy).to(own.device)
        red = leading(red, torch.where(given_back, own, red.orders), note)
        result, condition = diagonalize(red.system)
        worst = to_host(condition)
    highest = float(worst.max(initial=1.0))
    if highest > max_condition:
        which = f" of channel {int(worst.argmax())}" if worst.ndim else ""
        raise CutRefusedError(
            f"the eigenvectors of the reduced state matrix{which} have condition {highest:.1e}, above the limit {max_condition:.1e}; choose another order or raise max_condition",
            to_host(sigma_of(red)),
        )
    if result is None:
        raise CutRefusedError(
            f"the reduced system cannot be diagonalised: its state matrix is defective to working precision (condition {highest:.1e}); choose another order",
            to_host(sigma_of(red)),
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
    return DiagonalForm(poles, B, C, right, left, padding, int(red.orders.max()), bound, highest, red.notes)


def diagonalize(system: hsv.StateSpace) -> tuple[tuple[hsv.DiagonalStateSpace, Tensor] | None, Tensor]:
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


def slot_columns(poles: Tensor, overlap: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
