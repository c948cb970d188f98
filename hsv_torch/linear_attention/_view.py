r"""What the reductions must know of a layer of linear attention, whatever package it comes from."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from hsv_torch.selective._view import LayerView

Role = Literal["write", "read", "decay"]
"""What rows of a parameter make of the states: keys (what they are written with), queries (what they are read with), or their decay."""


@dataclass(frozen=True)
class LinearAttentionQuantities:
    r"""What one call of a layer computes on the way.

    With the groups :math:`g` of heads :math:`h` that share keys and queries,

    .. math:: S_{t,h} = \operatorname{diag}(e^{a_t}) S_{t-1,h} + k_{t,g} v_{t,h}^T, \qquad y_{t,h} = S_{t,h}^T q_{t,g},

    and the layer's output sees :math:`w_{t,h,c}\, y_{t,h,c}`.

    Attributes
    ----------
    queries, keys : Tensor
        ``(batch, length, groups, n_states)``, as the states see them: whatever scales them, and transforms, are part of them.
    values : Tensor
        ``(batch, length, heads, p)``; of Mamba-2 times the step size.
    log_decay : Tensor
        ``(batch, length, heads)``, or ``(batch, length, groups, n_states)``, at most 0.
    weight : Tensor
        ``(batch, length, heads, p)``: by how much an output reaches the layer's output.
    mask : Tensor or None
        ``(batch, length)``, False in the padding; None where there is none.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_decay: Tensor
    weight: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a parameter that no state has a part in."""

    count: int


@dataclass(frozen=True)
class RowsOfStates:
    """Consecutive rows of a parameter, as many as there are states in all groups, group after group."""

    role: Role


class LinearAttentionView(LayerView):
    """A layer of linear attention as the reductions see it; a subclass for each type of layer says what is particular to it.

    Where ``has_room`` is True the layer has the parameters ``B_transform`` (of the keys) and ``C_transform`` (of the queries), ``(groups, n_states, n_features)``, None until a
    cut needs them.
    """

    @abc.abstractmethod
    @override
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinearAttentionQuantities:
        """Compute what a call of the layer's ``forward`` with these arguments would, up to the scan, without gradients."""

    @property
    @abc.abstractmethod
    def n_groups(self) -> int:
        """Groups of heads that share keys and queries."""

    @property
    @abc.abstractmethod
    def n_features(self) -> int:
        """Keys (and queries) that the layer computes for a group: the states, unless there are transforms."""

    @property
    @abc.abstractmethod
    def is_linear(self) -> bool:
        """Whether keys and queries are linear in the rows of parameters, so that a change of basis goes into those."""

    @property
    @abc.abstractmethod
    def decays_by_key(self) -> bool:
        """Whether every key has a decay of its own."""

    @abc.abstractmethod
    def layout(self) -> dict[str, tuple[Rows | RowsOfStates, ...]]:
        """Return what the rows of the parameters are whose shape follows the number of features, by the parameters' names."""

    @property
    def divides_by_root_of_states(self) -> bool:
        """Whether the layer divides its queries by the root of the number of states that it has."""
        return False

    @property
    @override
    def n_states(self) -> int:
        """States of each value: keys of a head."""
        return int(self.layer.B_transform.shape[1]) if self.transformed else self.n_features

    @property
    def transformed(self) -> bool:
        """Whether the layer keeps transforms."""
        return self.has_room and self.layer.B_transform is not None

    @property
    def can_project(self) -> bool:
        """Whether keys and queries can be projected: in the parameters' rows, or by transforms."""
        return self.is_linear or self.has_room

    @torch.no_grad()
    def key_rows(self) -> Tensor:
        """Return the rows that keys are made by, in float64: ``(groups, n_states, k)``; of a layer with transforms those."""
        return self._rows_of("write")

    @torch.no_grad()
    def query_rows(self) -> Tensor:
        """Return the rows that queries are made by, in float64: ``(groups, n_states, k)``; of a layer with transforms those."""
        return self._rows_of("read")

    def _rows_of(self, role: Role) -> Tensor:
        if self.transformed:
            return (self.layer.B_transform if role == "write" else self.layer.C_transform).detach().double()
        for name, blocks in self.layout().items():
            start = 0
            for block in blocks:
                count = block.count if isinstance(block, Rows) else self.n_groups * self.n_features
                if isinstance(block, RowsOfStates) and block.role == role:
                    rows = self.layer.get_parameter(name).detach()[start : start + count].double()
                    return rows.flatten(1).unflatten(0, (self.n_groups, self.n_features))
                start += count
        raise AssertionError(f"the layout of {type(self).__name__} has no rows with the role {role!r}")
