r"""What decides which states of a diagonal layer stay: criteria, and the change of coordinates that a cut makes.

A diagonal complex layer computes :math:`h_t = \Lambda h_{t-1} + B u_t`, :math:`y_t = \operatorname{Re}(C h_t)`. A criterion truncates its system and
returns to diagonal form. The old state is then a widely linear function of the new one, :math:`h = M_1 h_r + M_2 \bar h_r`, and that is all that
a layer needs to know to carry the optimizer's moments.
"""

from __future__ import annotations

import abc
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._errors import CutRefusedError

SMALLEST_POLE = 1e-30
"""Poles nearer to 0 are moved out to this modulus: layers store the logarithm of the modulus."""


@dataclass(frozen=True)
class WidelyLinearMap:
    r"""The map :math:`z \mapsto M_1 z + M_2 \bar z`, on the first axis; ``linear`` and ``conjugate`` have shape ``(n, r)``."""

    linear: Tensor
    conjugate: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the map to `z`, ``(r, ...)``."""
        return self.linear @ z + self.conjugate @ z.conj()

    def pull_back(self, covector: Tensor, *, squared: bool) -> Tensor:
        r"""Carry a covector (``re``: derivative by the real part, ``im``: by the imaginary part) from :math:`n` to :math:`r` rows.

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
    r"""A smaller diagonal layer and how the old one depends on it.

    Attributes
    ----------
    log_poles : Tensor
        Logarithms of the new poles, ``(r,)``, complex128.
    B, C : Tensor
        ``(r, m)`` and ``(p, r)``, complex128; the layer's output is ``Re(C h)``.
    states : WidelyLinearMap
        ``(n, r)``: the old state, and so the old ``B``, from the new one.
    outputs : WidelyLinearMap
        ``(n, r)``: the old ``C^T`` from the new ``C^T``.
    log_pole_map : WidelyLinearMap
        ``(n, r)``: to first order, the change of the old log-poles from that of the new ones, as far as a diagonal layer can follow.
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
        return int(self.log_poles.shape[0])

    def rescale(self, row_norms: Tensor) -> DiagonalCut:
        """Return the same cut with every row of ``B`` scaled to the given 2-norm ``(r,)``, the columns of ``C`` inversely.

        The scale of a state is free; Adam's steps depend on it.
        """
        s = row_norms / torch.linalg.vector_norm(self.B, dim=1)  # (r,)
        return DiagonalCut(
            self.log_poles,
            self.B * s[:, None],
            self.C / s,
            WidelyLinearMap(self.states.linear / s, self.states.conjugate / s),
            WidelyLinearMap(self.outputs.linear * s, self.outputs.conjugate * s),
            self.log_pole_map,
            self.order,
            self.hankel_singular_values,
            self.error_bound,
            self.eigenvector_condition,
            self.notes,
        )


class Criterion(abc.ABC):  # noqa: B024  (what a criterion computes depends on the kind of layer)
    """Decides which states of a layer stay. Each kind of layer has its own kind of criterion: see the subclasses."""


class DiagonalCriterion(Criterion):
    """Decides which states of a time-invariant diagonal layer stay."""

    @abc.abstractmethod
    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the values that a rule chooses by, descending, float64."""

    @abc.abstractmethod
    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut of a layer with this system, whose output is ``Re(C h)``."""


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
        """Return the Hankel singular values of the complex system, ``(n,)``."""
        return _host(hsv.hankel_singular_values(system))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if the reduced system has no usable eigenvectors."""
        red = _truncate(system, rule)
        poles, B, C, right, left, condition = _diagonal_form(red, self.max_condition)
        zero = torch.zeros_like(right)
        return _diagonal_cut(
            system, red, red.system.n_states, poles, B, C, condition,
            states=(right, zero), outputs=(left.conj(), zero), poles_from=(right * left.conj(), zero),
        )  # fmt: skip


@dataclass(frozen=True)
class RealHankel(DiagonalCriterion):
    r"""Balanced truncation of the real system of ``u -> Re(C h)``, which has ``2n`` states: the conjugate-aware reading.

    Closer to optimal than :class:`ComplexHankel`, for it minimises over the outputs that the layer really has. After truncation each conjugate pair takes
    one complex state of the layer and each real eigenvalue one state with angle 0 or pi. Rules choose the real order by the
    ``2n`` values of the real system; ``Order(k)`` counts states of the layer and takes the largest real order that fits into ``k`` of them.

    A complex state whose pole is exactly real holds two real states, each of which takes a state of its own after the cut. For a
    layer made of such states (``max_phase=0``) :class:`ComplexHankel` is the better reading.

    Parameters
    ----------
    max_condition : float
        A cut is refused if the eigenvectors of the reduced state matrix have a larger condition number.
    """

    max_condition: float = 1e6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the real system, ``(2n,)``."""
        return _host(hsv.hankel_singular_values(hsv.real_part(system)))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`CutRefusedError` if the reduced system has no usable eigenvectors."""
        slots = n = system.n_states
        if isinstance(rule, (hsv.Order, int)):
            slots = rule if isinstance(rule, int) else rule.n_states
            hsv.Order(slots).choose(np.ones(n))  # the order must be one of the layer's
            rule = hsv.Order(2 * slots)
        red = _fit_into(_truncate(hsv.real_part(system), rule), slots)
        poles, B, C, right, left, condition = _diagonal_form(red, self.max_condition)

        top_right, top_left = right[:n], left[:n]  # the rows of h; those of conj h mirror them
        overlap = top_right * top_left.conj()  # (n, order): the share of each old pole in each new one
        first, second = _pairs(poles, overlap)
        single = torch.nonzero(poles.imag == 0)[:, 0]
        real_right, real_left, real_overlap = top_right[:, single], top_left[:, single], overlap[:, single]

        def join(pairs: Tensor, singles: Tensor) -> Tensor:
            return torch.cat([pairs, singles], dim=-1)

        # A real state enters through its real part, (z + conj z) / 2, so that its imaginary part has no influence.
        return _diagonal_cut(
            system, red, red.system.n_states,
            join(poles[first], poles[single]),
            torch.cat([B[first], B[single].real + 0j]),
            join(2 * C[:, first], C[:, single].real + 0j),
            condition,
            states=(join(top_right[:, first], real_right / 2), join(top_right[:, second], real_right / 2)),
            outputs=(join(top_left[:, first], real_left).conj(), join(top_left[:, second], real_left).conj()),
            poles_from=(join(overlap[:, first], real_overlap / 2), join(overlap[:, second], real_overlap / 2)),
        )  # fmt: skip


def _truncate(system: hsv.LinearSystem, rule: hsv.Rule | int) -> hsv.Reduction:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # the notes of the reduction go into those of the cut
        red = hsv.balanced_truncation(system, rule)
    if int(red.orders) == 0:
        raise CutRefusedError(
            "all Hankel singular values are zero: no input reaches the output through the states; look for a layer with B = 0 or C = 0",
            _host(red.hankel_singular_values),
        )
    return red


def _fit_into(red: hsv.Reduction, slots: int) -> hsv.Reduction:
    """Return the largest leading part of a balanced real system whose conjugate pairs and real poles fit into the slots."""
    order = red.system.n_states
    while order > slots:  # `slots` real states always fit
        poles = torch.linalg.eigvals(red.system.A[:order, :order])
        if int((poles.imag >= 0).sum()) <= slots:
            break
        order -= 1
    if order == red.system.n_states:
        return red
    assert red.left is not None
    assert red.right is not None
    assert red.error_bound is not None
    sigma = red.hankel_singular_values
    lost = 2 * float(sigma[order : red.system.n_states].sum())
    sys = red.system
    return hsv.Reduction(
        hsv.StateSpace(sys.A[:order, :order], sys.B[:order], sys.C[:, :order], sys.D, dt=sys.dt),
        torch.full_like(red.orders, order),
        sigma,
        red.error_bound + lost * (1 + 1e-12),
        red.left[:, :order],
        red.right[:, :order],
        (
            *red.notes,
            f"the real order is {order}, not {sys.n_states}: its pairs and real poles must fit into {slots} states",
        ),
    )


def _diagonal_form(red: hsv.Reduction, max_condition: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Poles, B, C of the reduced system in eigenvector coordinates, and the projections that lead there."""
    try:
        diagonal, vectors, condition = hsv.diagonalize(red.system)
    except hsv.IllConditionedError as error:
        raise CutRefusedError(
            f"the reduced system cannot be diagonalised: {error}", _host(red.hankel_singular_values)
        ) from error
    worst = float(condition)
    if worst > max_condition:
        raise CutRefusedError(
            f"the eigenvectors of the reduced state matrix have condition {worst:.1e}, above the limit {max_condition:.1e}; choose another order or raise max_condition",
            _host(red.hankel_singular_values),
        )
    assert red.left is not None
    assert red.right is not None
    right = red.right.to(vectors.dtype) @ vectors
    left = torch.linalg.solve(vectors, red.left.to(vectors.dtype).mH).mH  # left^H right = I stays
    return diagonal.poles(), diagonal.B, diagonal.C, right, left, worst


def _pairs(poles: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the conjugate pairs: first the pole that the old poles resemble more, so that angles and moments continue."""
    upper = torch.nonzero(poles.imag > 0)[:, 0]
    lower = upper + 1  # LAPACK returns each pair of a real matrix side by side
    assert torch.equal(poles[lower], poles[upper].conj())
    size = overlap.abs().amax(dim=0)
    swap = size[lower] > size[upper]
    return torch.where(swap, lower, upper), torch.where(swap, upper, lower)


def _diagonal_cut(
    system: hsv.DiagonalStateSpace,
    red: hsv.Reduction,
    order: int,
    poles: Tensor,
    B: Tensor,
    C: Tensor,
    condition: float,
    *,
    states: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor],
    poles_from: tuple[Tensor, Tensor],
) -> DiagonalCut:
    notes = red.notes
    size = poles.abs()
    at_zero = size < SMALLEST_POLE
    if bool(at_zero.any()):
        notes = (
            *notes,
            f"{int(at_zero.sum())} poles at 0 were moved out to modulus {SMALLEST_POLE:g}: the layer stores the logarithm of the modulus",
        )
        poles = torch.where(at_zero, torch.full_like(poles, SMALLEST_POLE), poles)
    # Turn every state so that the old state it depends on most is a positive multiple of it: moments of re and im stay apart.
    dominant = poles_from[0].abs().argmax(dim=0, keepdim=True)
    lead = torch.gather(states[0], 0, dominant)[0]
    phase = torch.where(
        (lead.abs() > 0) & (poles.imag != 0), lead / lead.abs().clamp(min=1e-300), torch.ones_like(lead)
    )
    old_poles = torch.exp(system.log_poles) if system.log_poles is not None else system.poles()
    return DiagonalCut(
        log_poles=torch.complex(torch.log(poles.abs()), torch.angle(poles)),
        B=B * phase[:, None],
        C=C * phase.conj(),
        states=WidelyLinearMap(states[0] * phase.conj(), states[1] * phase),
        outputs=WidelyLinearMap(outputs[0] * phase, outputs[1] * phase.conj()),
        log_pole_map=WidelyLinearMap(
            poles_from[0] * poles / old_poles[:, None], poles_from[1] * poles.conj() / old_poles[:, None]
        ),
        order=order,
        hankel_singular_values=_host(red.hankel_singular_values),
        error_bound=float(red.error_bound) if red.error_bound is not None else math.inf,
        eigenvector_condition=condition,
        notes=notes,
    )


def _host(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)
