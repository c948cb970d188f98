"""Making planned cuts of a model: in all processes that train it or in none, and of its copies along with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from hsv import HsvError
from hsv_torch.adapters import Replaced, adapter_of, compressible_layers, outside_inference_mode
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
        Modules that are copies of the model (moving averages of the weights, say) are cut along, whatever wrappers they stand in, and so are copies of a part of it;
        modules that hold the model itself, or no layer that can be cut, are left alone.
    moments
        See :func:`hsv_torch.compress_`.

    Raises
    ------
    HsvError
        A copy is split over processes, and the model is not; or a module has layers that can be cut, and is no copy of the model.
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
        self._names = _names_in_copies(self.model, layers, objects)  # of the layers, in each copy
        self._copies: dict[str, nn.Module] = {name: objects[name] for name in self._names}
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
        with outside_inference_mode():
            return self._apply(plans)

    def _apply(self, plans: Mapping[str, PlannedCut]) -> Replaced:
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
        for name, names in self._names.items():
            resize_layers(self._copies[name], {names[layer]: size for layer, size in sizes.items() if layer in names})

    def _placements(self) -> list[Placement]:
        return [Placement(copy, None, copy.modules()) for copy in self._copies.values()]

    def _apply_to_parts(self, name: str, plan: PlannedCut) -> Replaced:
        """Cut one layer of a model that is split over the processes: only that layer is whole at a time."""
        opened = OpenLayer(self.model, plan.layer, self.optimizer)
        copies = [
            OpenLayer(self._copies[key], self._copies[key].get_submodule(names[name]))
            for key, names in self._names.items()
            if name in names
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
            for key, names in self._names.items():
                for name, plan in plans.items():
                    if name in names:
                        _follow(self._copies[key], names[name], plan.layer)
        except BaseException as error:
            for placement in placements:
                placement.restore()
            error.add_note(
                f"while cutting the copies of the model in `state` ({', '.join(self._copies)}) along with it"
            )
            raise
        return replaced


_Path: TypeAlias = tuple[str, ...]


def _names_in_copies(model: nn.Module, layers: Sequence[str], objects: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Which of the objects are copies of the model, or of a part of it, and what the layers are called in each."""
    own = {id(layer) for layer in compressible_layers(model).values()}
    names: dict[str, dict[str, str]] = {}
    for key, value in objects.items():
        if not isinstance(value, nn.Module):
            continue
        known = {name: layer for name, layer in compressible_layers(value).items() if id(layer) not in own}
        if not known:
            continue
        places = _places(model, layers, value, known)
        if len(places) != 1:
            what = (
                "could be a copy of several parts of the model"
                if places
                else "is not recognised as a copy of the model"
            )
            raise HsvError(
                f"`state`: {key!r} ({type(value).__qualname__}) has layers that can be cut ({list(known)[:3]}) and {what}, whose layers are "
                f"{list(layers)[:3]}: a cut would leave it behind; make it a copy of the whole model, or, if it is another one, pass an object with "
                "its state_dict and load_state_dict"
            )
        chosen = {layer: name for layer, name in places[0].items() if layer in layers}
        if chosen:
            names[key] = chosen
    return names


def _places(
    model: nn.Module, layers: Sequence[str], copy: nn.Module, known: Mapping[str, nn.Module]
) -> list[dict[str, str]]:
    """What the model's layers can be called in `copy`, whose layers are `known`: one mapping for each place where a copy could stand."""
    here, there = _paths(dict(model.named_modules())), _paths(dict(copy.named_modules()))
    own, others = _paths(compressible_layers(model)), _paths(known)

    def place(part: _Path, prefix: _Path, paths: Iterable[_Path]) -> dict[str, str] | None:
        found = {own[path]: others.get(prefix + path[len(part) :]) for path in paths}
        if not all(
            name is not None and _are_alike(copy.get_submodule(name), model.get_submodule(layer))
            for layer, name in found.items()
        ):
            return None
        return found  # type: ignore[return-value]

    # Averages and DataParallel keep the model as `module`. Behind that, the layers' names are enough: what else a copy has is its own affair.
    wrappers = [path for path in there if set(path) <= {"module"}]
    for prefix in wrappers:
        if (found := place((), prefix, map(_path, layers))) is not None:
            return [found]
    # Behind other names, or for a part of the model, the modules must be the same all through.
    pairs = [((), prefix) for prefix in there] + [(part, prefix) for part in here for prefix in wrappers]
    places: list[dict[str, str]] = []
    for part, prefix in pairs:
        inside = [path for path in own if path[: len(part)] == part]
        if inside and _below(here, part) == _below(there, prefix):
            found = place(part, prefix, inside)
            if found is not None and found not in places:
                places.append(found)
    return places


def _are_alike(layer: nn.Module, other: nn.Module) -> bool:
    """Whether two layers may be copies of each other, with other numbers of states at most: what both have and no cut replaces has the same shapes."""
    adapter = adapter_of(layer)
    if adapter is not adapter_of(other):
        return False
    kept = [
        {name: value.shape for name, value in each.state_dict().items() if name not in adapter.parameter_names(each)}
        for each in (layer, other)
    ]
    return all(kept[1].get(name, shape) == shape for name, shape in kept[0].items())


def _path(name: str) -> _Path:
    """The parts of a dotted name, without what ``torch.compile`` adds."""
    return tuple(part for part in name.split(".") if part not in ("", "_orig_mod"))


def _paths(modules: Mapping[str, nn.Module]) -> dict[_Path, str]:
    return {_path(name): name for name in modules}


def _below(paths: Iterable[_Path], prefix: _Path) -> set[_Path]:
    return {path[len(prefix) :] for path in paths if path[: len(prefix)] == prefix}


@torch.no_grad()
def _follow(copy: nn.Module, name: str, layer: nn.Module) -> None:
    """Give the layer of that name in `copy` the size and the values of `layer`."""
    adapter, other = adapter_of(layer), copy.get_submodule(name)
    replaced = adapter.resize(other, adapter.n_states(layer), **adapter.form(layer))
    replace_parameters(copy, {old: new for old, new in replaced.values() if old is not None})
    other.load_state_dict(layer.state_dict())
