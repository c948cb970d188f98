r"""A smaller selective layer, how the old one depends on it, and the criteria that plan it.

A cut projects the states of every channel, :math:`h_c \approx R_c z_c` with :math:`z_c = L_c^T h_c` and :math:`L_c^T R_c = I` (transposes, never conjugates: the
layer's outputs are bilinear), and leaves the new states decoupled: :math:`L_c^T A_c R_c` is diagonal or is taken as its diagonal. Then

.. math:: B_{\mathrm{new}} = L_c^T B, \qquad C_{\mathrm{new}} = R_c^T C, \qquad B \approx R_c B_{\mathrm{new}}, \qquad C \approx L_c C_{\mathrm{new}},

the last two for the moments of the optimizer. Where all channels share ``R`` and ``L`` they go into the rows of ``x_proj``; where they do not they become transforms.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import hsv
from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import Replaced, put_parameters
from hsv_torch.criteria import Criterion
from hsv_torch.diagonal_cut import WidelyLinearMap
from hsv_torch.selective._observation import Needs, SelectiveObservation
from hsv_torch.selective._view import SelectiveView

SLOWEST_RATE = 1e-12
"""Rates nearer to 0 are moved out to it: layers store the logarithm."""


@dataclass(frozen=True)
class SelectiveCut:
    r"""A planned reduction of a selective layer.

    Attributes
    ----------
    rates : Tensor
        Poles in continuous time, ``(d, r)``, float64 or complex128, with a negative real part.
    features : tuple of Tensor, optional
        ``R`` and ``L``, ``(n_features, r)``, which the rows of ``x_proj`` for ``B`` and ``C`` are reduced by; None: they stay.
    states : tuple of Tensor, optional
        ``R`` and ``L`` of the states of each channel, ``(d, n, r)``, where the layer had transforms already.
    transforms : tuple of Tensor, optional
        New ``B_transform`` and ``C_transform``, ``(d, r, n_features)``; None for a layer without.
    share : Tensor
        ``(n, r)`` or ``(d, n, r)``: to first order, the change of the old rates from that of the new ones.
    condition : float
        Of the eigenvectors that the states were decoupled by, the largest of all channels.
    gain : float
        What the outputs of the scan must be multiplied by to be what they were, for a layer that normalises B and C over the states: ``out_proj`` is, and ``D``, which it also reaches, is divided.
    notes : tuple of str
    trained : mapping
        Values of the layer's parameters, by name, that were trained after the cut; they replace those that follow from the projection.
    """

    rates: Tensor
    features: tuple[Tensor, Tensor] | None
    transforms: tuple[Tensor, Tensor] | None
    share: Tensor
    states: tuple[Tensor, Tensor] | None = None
    condition: float = 1.0
    notes: tuple[str, ...] = ()
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    gain: float = 1.0

    @property
    def n_states(self) -> int:
        """Number of states after the cut."""
        return int(self.rates.shape[1])

    def parameters(self, view: SelectiveView) -> dict[str, Tensor | None]:
        """Return the new values by the parameters' names, in float64; None for a parameter that the layer has no more."""
        x_proj = view.layer.x_proj.weight.detach().double()
        if self.features is not None:
            (right, left), m = self.features, view.n_features
            step, B, C = x_proj.split([view.dt_rank, m, m])
            x_proj = torch.cat([step, left.mT @ B, right.mT @ C])
        slow = self.rates.real.clamp(max=-SLOWEST_RATE)
        values: dict[str, Tensor | None] = {"A_log": torch.log(-slow), "x_proj.weight": x_proj}
        if self.gain != 1.0:
            values |= {
                "D": view.layer.D.detach().double() / self.gain,
                "out_proj.weight": view.layer.out_proj.weight.detach().double() * self.gain,
            }
        if view.has_room:
            values |= {"A_imag": None, "B_transform": None, "C_transform": None}
        if self.transforms is not None:
            assert view.has_room
            pair = self.transforms
            if self.rates.is_complex():
                values["A_imag"] = self.rates.imag
                pair = (torch.view_as_real(pair[0].resolve_conj()), torch.view_as_real(pair[1].resolve_conj()))
            values |= {"B_transform": pair[0], "C_transform": pair[1]}
        return values | dict(self.trained)

    def put(self, view: SelectiveView) -> Replaced:
        """Put the new parameters into the layer; those that it did not have before take dtype and device of ``A_log``."""
        like = view.layer.A_log
        values = {name: None if v is None else v.to(like) for name, v in self.parameters(view).items()}
        replaced = put_parameters(view.layer, values)
        view.set_n_features(view.n_features)
        return replaced

    def pull_back(
        self, old_rates: Tensor, dt_rank: int, covectors: Mapping[str, Tensor], *, squared: bool
    ) -> dict[str, Tensor]:
        """Carry gradient-like quantities from the old parameters, whose rates were `old_rates`, to the new ones that correspond to them."""
        power = 2 if squared else 1
        wide = {name: tensor.double() for name, tensor in covectors.items()}
        carried = {name: wide[name] for name in wide if name not in _PROJECTED}
        for name, factor in (("D", self.gain), ("out_proj.weight", 1 / self.gain)):
            if name in carried:
                carried[name] = carried[name] * factor**power
        if "A_log" in wide:
            # The rate is -exp(A_log): its covector is that of A_log divided by it.
            real = wide["A_log"] / old_rates.real**power
            rates = torch.complex(real, wide.get("A_imag", torch.zeros_like(real)))
            share = self.share.to(rates.dtype)
            new = WidelyLinearMap(share, torch.zeros_like(share)).pull_back(rates[..., None], squared=squared)[..., 0]
            carried["A_log"] = new.real * self.rates.real**power
            if "A_imag" in wide and self.rates.is_complex():
                carried["A_imag"] = new.imag
        if "x_proj.weight" in wide:
            carried["x_proj.weight"] = self._pull_back_rows(wide["x_proj.weight"], dt_rank, power)
        if self.states is not None and self.transforms is not None:
            for name, projection in zip(("B_transform", "C_transform"), self.states, strict=True):
                if name in wide:
                    carried[name] = self._pull_back_transform(projection, wide[name], squared=squared)
        return {name: tensor.to(covectors[name].dtype) for name, tensor in carried.items()}

    def _pull_back_rows(self, rows: Tensor, dt_rank: int, power: int) -> Tensor:
        if self.features is None:
            return rows
        right, left = self.features
        step, B, C = rows.split([dt_rank, right.shape[0], right.shape[0]])
        return torch.cat([step, (right**power).mT @ B, (left**power).mT @ C])

    def _pull_back_transform(self, projection: Tensor, covector: Tensor, *, squared: bool) -> Tensor:
        """From ``(d, n, n_features[, 2])`` to ``(d, r, n_features[, 2])``."""
        was_complex = covector.ndim == 4
        value = torch.view_as_complex(covector.contiguous()) if was_complex else covector.to(torch.complex128)
        projection = projection.to(value.dtype)
        new = WidelyLinearMap(projection, torch.zeros_like(projection)).pull_back(value, squared=squared)
        return torch.view_as_real(new.contiguous()) if self.rates.is_complex() else new.real


_PROJECTED = frozenset({"A_log", "A_imag", "x_proj.weight", "B_transform", "C_transform"})


class SelectiveCriterion(Criterion):
    """Decides how the states of a selective layer are reduced, from what calibration data has shown of it."""

    @abc.abstractmethod
    def needs(self) -> Needs:
        """Return what must be observed."""

    @abc.abstractmethod
    def values(self, view: SelectiveView, observation: SelectiveObservation) -> np.ndarray:
        """Return the values that a rule chooses by, ``(n,)`` or ``(d, n)``, float64, descending."""

    @abc.abstractmethod
    def meaning(self) -> str:
        """Say what :meth:`values` are, for the notes of a cut."""

    @abc.abstractmethod
    def plan(self, view: SelectiveView, observation: SelectiveObservation, n_states: int) -> SelectiveCut:
        """Plan a cut to this number of states; the layer does not change."""

    def observe(self, view: SelectiveView) -> SelectiveObservation:
        """Return an empty observation of what the method needs."""
        return SelectiveObservation(view, self.needs())

    def reduce(
        self, view: SelectiveView, rule: hsv.Rule | int, observation: SelectiveObservation
    ) -> PlannedSelectiveCut:
        """Let the rule choose a number of states by :meth:`values`, and plan the cut to it.

        Raises
        ------
        CutRefusedError
            The rule asks for a bound, which choices made by data do not have; all values are zero; or the layer cannot take this cut.
        hsv.OrderError
            The order is not one of the layer's.
        """
        observation.require_data()
        rule = hsv.as_rule(rule)
        if isinstance(rule, hsv.ErrorBound):
            raise CutRefusedError(
                f"{rule!r} needs a bound of the error, and none holds for a layer whose system depends on its input: use hsv.Order, "
                "hsv.HankelSum, hsv.HankelEnergy or hsv.Threshold, and a guard that evaluates the model"
            )
        values = self.values(view, observation)
        n_states = int(np.max(rule.choose(values)))
        if n_states == 0:
            raise CutRefusedError(
                f"all values that {type(self).__name__} ranks by are zero: the calibration data never moves the states, or the outputs never see them",
                values,
            )
        return PlannedSelectiveCut(self.plan(view, observation, n_states), values, self.meaning())


@dataclass(frozen=True)
class PlannedSelectiveCut:
    """A cut, and the values that its size was chosen by."""

    cut: SelectiveCut
    values: np.ndarray
    meaning: str


def descending(values: Tensor) -> np.ndarray:
    """Return the values on the host, in float64, in descending order along the last axis."""
    host = values.detach().cpu().numpy().astype(np.float64)
    if not np.isfinite(host).all():
        raise hsv.NonFiniteError(
            "the values to rank states by are not finite: the layer's parameters or its calibration data are too large for double precision"
        )
    return np.sort(host, axis=-1)[..., ::-1].copy()


def largest(scores: Tensor, n: int) -> Tensor:
    """Return the indices of the `n` largest scores, ascending; of equal ones the first."""
    return torch.sort(torch.sort(scores, descending=True, stable=True).indices[:n]).values


def no_bound() -> float:
    """The error bound of a data-based cut."""
    return math.inf
