"""Making planned cuts of a model: in all processes that train it or in none, and of its copies along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hsv import HsvError
from hsv_torch.adapters import Replaced, adapter_of, compressible_layers
from hsv_torch.checkpoint import resize_layers
from hsv_torch.compress import PlannedCut, apply_cuts, without_autocast
from hsv_torch.distributed import Ranks
from hsv_torch.optimizer import Moments, replace_parameters
from hsv_torch.sharding import OpenLayer, meshes
from hsv_torch.snapshot import Placement


class Cutter:
    """Cuts a model, its optimizer, and those of some objects that are copies of the model.

    Parameters
    ----------
    ranks
        The processes that train the model.
    optimizer
        What trains it.
    layers
        The dotted names of the layers that may be cut.
    objects
        Modules with these layers are copies (moving averages of the weights, say), under the same names or inside a ``module``; others are left alone.
    moments
        See :func:`hsv_torch.compress_`.

    Raises
    ------
    HsvError
        A copy is split over processes, and the model is not.
    """

    def __init__(
        self,
        ranks: Ranks,
        optimizer: torch.optim.Optimizer,
        layers: Sequence[str],
        objects: Mapping[str, Any],
        moments: Moments,
    ) -> None:
        self.ranks, self.model, self.optimizer, self.moments = ranks, ranks.model, optimizer, moments
        self._prefixes = _prefixes(layers, objects)  # of the layers' names in each copy
        self._copies: dict[str, nn.Module] = {name: objects[name] for name in self._prefixes}
        for name, copy in self._copies.items():
            if meshes(copy) and not ranks.split:
                raise HsvError(
                    f"`state`: {name!r} is split over processes, and the model is not; split both or neither"
                )

    @property
    def copies(self) -> list[nn.Module]:
        """The copies of the model."""
        return list(self._copies.values())

    def apply(self, plans: Mapping[str, PlannedCut]) -> Replaced:
        """Cut the model in all processes, or in none; returns ``{"layer.parameter": (old, new)}``."""
        placements = [Placement(self.model, self.optimizer, [plan.layer for plan in plans.values()])]
        placements += self._placements()

        def undo() -> None:
            for placement in placements:
                placement.restore()

        if not self.ranks.split:
            replaced = self.ranks.together(lambda: self._apply_here(plans), undo)
        else:
            try:
                replaced = {}
                for name, plan in plans.items():
                    replaced |= self._apply_to_parts(name, plan)
            except BaseException:
                undo()
                raise
        self.ranks.rebuild()
        return replaced

    def resize_copies(self, sizes: Mapping[str, Mapping[str, int]]) -> None:
        """Give the layers of the copies the sizes of the model's, with values unset."""
        for name, prefix in self._prefixes.items():
            resize_layers(self._copies[name], {prefix + layer: size for layer, size in sizes.items()})

    def _placements(self) -> list[Placement]:
        return [Placement(copy, None, copy.modules()) for copy in self._copies.values()]

    def _apply_to_parts(self, name: str, plan: PlannedCut) -> Replaced:
        """Cut one layer of a model that is split over the processes: only that layer is whole at a time."""
        opened = OpenLayer(self.model, plan.layer, self.optimizer)
        copies = [
            OpenLayer(self._copies[key], self._copies[key].get_submodule(prefix + name))
            for key, prefix in self._prefixes.items()
        ]

        def cut() -> tuple[Replaced, dict[nn.Parameter, nn.Parameter]]:
            replaced = self._apply_here({name: plan})
            for copy in copies:
                copy.close()
            return replaced, opened.close()

        replaced, parts = self.ranks.together(cut, lambda: None)  # who called undoes

        def part_of(parameter: nn.Parameter | None) -> nn.Parameter | None:
            return None if parameter is None else parts.get(parameter, parameter)

        return {inner: (part_of(old), part_of(new)) for inner, (old, new) in replaced.items()}

    def _apply_here(self, plans: Mapping[str, PlannedCut]) -> Replaced:
        """Cut the model in this process, and the copies of it along with it."""
        placements = self._placements()
        with without_autocast(self.model):
            replaced = apply_cuts(self.model, plans, optimizer=self.optimizer, moments=self.moments)
        try:
            for key, prefix in self._prefixes.items():
                for name, plan in plans.items():
                    _follow(self._copies[key], prefix + name, plan.layer)
        except BaseException as error:
            for placement in placements:
                placement.restore()
            error.add_note(
                f"while cutting the copies of the model in `state` ({', '.join(self._copies)}) along with it"
            )
            raise
        return replaced


def _prefixes(layers: Sequence[str], objects: Mapping[str, Any]) -> dict[str, str]:
    """Which of the objects are modules with these layers, and what their names there begin with."""
    prefixes = {}
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            known = compressible_layers(value)
            for prefix in ("", "module."):
                if all(prefix + layer in known for layer in layers):
                    prefixes[name] = prefix
    return prefixes


@torch.no_grad()
def _follow(copy: nn.Module, name: str, layer: nn.Module) -> None:
    """Give the layer of that name in `copy` the size and the values of `layer`."""
    adapter, other = adapter_of(layer), copy.get_submodule(name)
    replaced = adapter.resize(other, adapter.n_states(layer), **adapter.form(layer))
    replace_parameters(copy, {old: new for old, new in replaced.values() if old is not None})
    other.load_state_dict(layer.state_dict())
