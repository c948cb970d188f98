r"""The change of coordinates that a cut of a diagonal layer makes: the smaller layer, and how the old one depends on it.

The old state is a widely linear function of the new one, :math:`h = M_1 h_r + M_2 \bar h_r`, and that is all that a layer needs to know to carry the optimizer's moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import hsv

SMALLEST_POLE = 1e-30
"""Poles nearer to 0 are moved out to this modulus: layers store the logarithm of the modulus."""


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
    notes = (*notes, *empty_states(padding))
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


def widened(cut: DiagonalCut, size: int) -> DiagonalCut:
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


def merged_cut(which: Tensor, first: DiagonalCut, second: DiagonalCut) -> DiagonalCut:
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


def empty_states(padding: Tensor) -> tuple[str, ...]:
    """Return a note on the states that stay empty, or none."""
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
