r"""A smaller layer of linear attention, and how the old one depends on it.

A cut projects the states of every group, :math:`S \approx R Z` with :math:`Z = L^T S` and :math:`L^T R = I`. Keys and queries follow: :math:`k_{\mathrm{new}} = L^T k`, :math:`q_{\mathrm{new}} = R^T q`.
With one decay a head the new state is :math:`L^T S` exactly, whatever ``L``; with one a key that holds where ``L`` picks keys. Going back, for the moments of the optimizer, :math:`k = R k_{\mathrm{new}}` and
:math:`q = L q_{\mathrm{new}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsv_torch.adapters import Replaced, put_parameters
from hsv_torch.linear_attention._view import LinearAttentionView, Rows, RowsOfStates

Layout = Mapping[str, tuple[Rows | RowsOfStates, ...]]


@dataclass(frozen=True)
class LinearAttentionCut:
    """A planned reduction of a layer of linear attention.

    Attributes
    ----------
    right, left : Tensor
        ``R`` and ``L``, ``(groups, n, r)``, float64.
    share : Tensor
        ``(groups, n, r)``: to first order, the change of the old decay rates from that of the new ones.
    kept : Tensor, optional
        ``(groups, r)``: the keys that stay, where keys are chosen.
    transforms : bool
        Whether the projection is kept at run time; else it goes into the rows of the parameters.
    condition : float
        Of the change of basis, the largest of all groups.
    notes : tuple of str
    trained : mapping
        Values of the layer's parameters, by name, that were trained after the cut; they replace those that follow from the projection.
    """

    right: Tensor
    left: Tensor
    share: Tensor
    kept: Tensor | None = None
    transforms: bool = False
    condition: float = 1.0
    notes: tuple[str, ...] = ()
    trained: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_states(self) -> int:
        """Number of states after the cut."""
        return int(self.right.shape[2])

    def parameters(self, view: LinearAttentionView) -> dict[str, Tensor | None]:
        """Return the new values by the parameters' names, in float64; None for a parameter that the layer does not have."""
        values: dict[str, Tensor | None] = {}
        gain = self.gain(view)
        for name, blocks in view.layout().items():
            old = view.layer.get_parameter(name).detach().double()
            values[name] = old if self.transforms else self._new_rows(old, blocks, view.n_groups, gain)
        if view.has_room:
            values |= {"B_transform": None, "C_transform": None}
        if self.transforms:
            identity = torch.eye(view.n_features).to(self.right).expand(view.n_groups, -1, -1)
            for name, projection in (("B_transform", self.left), ("C_transform", self.right)):
                old = getattr(view.layer, name).detach().double() if view.transformed else identity
                values[name] = projection.mT @ old
        return values | dict(self.trained)

    def gain(self, view: LinearAttentionView) -> float:
        """By what the rows of the queries grow, so that dividing by another number of states changes nothing; 1 behind an activation, where rows cannot make up for it."""
        if not (view.divides_by_root_of_states and view.is_linear):
            return 1.0
        return float((self.n_states / self.right.shape[1]) ** 0.5)

    def _new_rows(self, old: Tensor, blocks: tuple[Rows | RowsOfStates, ...], groups: int, gain: float) -> Tensor:
        new, start = [], 0
        for block in blocks:
            if isinstance(block, Rows):
                new.append(old[start : start + block.count])
                start += block.count
                continue
            count = groups * self.right.shape[1]
            rows = old[start : start + count].unflatten(0, (groups, -1))
            start += count
            if self.kept is not None and block.role != "read":
                # Picked, not multiplied: a product with zeros would spread what is not finite.
                rows = torch.stack([part[index] for part, index in zip(rows, self.kept, strict=True)])
            else:
                projection = self.left if block.role == "write" else self.right * gain
                rows = torch.einsum("gnr,gn...->gr...", projection, rows)
            new.append(rows.flatten(0, 1))
        return torch.cat(new)

    def put(self, view: LinearAttentionView) -> Replaced:
        """Put the new parameters into the layer; those that it did not have before take dtype and device of the first of the others."""
        values = self.parameters(view)
        like = view.layer.get_parameter(next(iter(values)))
        replaced = put_parameters(view.layer, {k: None if v is None else v.to(like) for k, v in values.items()})
        view.set_n_features(view.n_features if self.transforms else self.n_states)
        return replaced

    def pull_back(
        self, layout: Layout, groups: int, gain: float, covectors: Mapping[str, Tensor], *, squared: bool
    ) -> dict[str, Tensor]:
        """Carry gradient-like quantities from the old parameters, of this layout, to the new ones that correspond to them."""
        power = 2 if squared else 1
        back = {"write": self.right**power, "read": (self.left / gain) ** power, "decay": self.share**power}
        carried = {}
        for name, covector in covectors.items():
            wide = covector.double()
            if name in ("B_transform", "C_transform"):
                if self.transforms:
                    carried[name] = back["write" if name == "B_transform" else "read"].mT @ wide
            elif name in layout and not self.transforms:
                carried[name] = self._pull_back_rows(wide, layout[name], groups, back)
            else:
                carried[name] = wide
        return {name: tensor.to(covectors[name].dtype) for name, tensor in carried.items()}

    def _pull_back_rows(
        self, wide: Tensor, blocks: tuple[Rows | RowsOfStates, ...], groups: int, back: Mapping[str, Tensor]
    ) -> Tensor:
        new, start = [], 0
        for block in blocks:
            count = block.count if isinstance(block, Rows) else groups * self.right.shape[1]
            rows = wide[start : start + count]
            start += count
            if isinstance(block, RowsOfStates):
                rows = torch.einsum("gnr,gn...->gr...", back[block.role], rows.unflatten(0, (groups, -1))).flatten(0, 1)
            new.append(rows)
        return torch.cat(new)
