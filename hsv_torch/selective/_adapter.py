"""The adapter that selective layers share."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

import hsv
from hsv import HsvError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, put_parameters
from hsv_torch.criteria import Criterion
from hsv_torch.selective._channel import ChannelBasis
from hsv_torch.selective._choice import StateChoice
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut, no_bound
from hsv_torch.selective._observation import SelectiveObservation
from hsv_torch.selective._view import SelectiveView

TRANSFORMS = ("A_imag", "B_transform", "C_transform")
"""What a layer with room for transforms has once a cut needs them; where it has room its adapter names them in `recurrent_parameters` too."""


@dataclass(frozen=True)
class _Plan:
    """What :meth:`SelectiveAdapter.apply` and :meth:`SelectiveAdapter.pull_back` need."""

    cut: SelectiveCut
    old_rates: Tensor
    dt_rank: int


class SelectiveAdapter(LayerAdapter):
    """Cuts a selective layer, by data; a layer joins with a subclass that makes its :class:`SelectiveView`."""

    criterion_type: ClassVar[type[Criterion]] = SelectiveCriterion
    needs_data: ClassVar[bool] = True
    recurrent_parameters: ClassVar[tuple[str, ...]] = ("A_log", "x_proj.weight", "dt_proj.weight", "dt_proj.bias")

    @abc.abstractmethod
    def view(self, layer: Any) -> SelectiveView:
        """Return the layer as the reductions see it."""

    @override
    def default_criterion(self, layer: Any) -> SelectiveCriterion:
        """Return the greedy choice of states with compensation; for a layer that has transforms already, a basis for every channel."""
        return ChannelBasis() if self.view(layer).transformed else StateChoice()

    @override
    def n_states(self, layer: Any) -> int:
        return self.view(layer).n_states

    @override
    def parameter_names(self, layer: Any) -> tuple[str, ...]:
        further = [name for name in TRANSFORMS if getattr(layer, name, None) is not None]
        return ("A_log", "x_proj.weight", *further)

    @override
    def system(self, layer: Any) -> None:
        return None

    @override
    def observe(self, layer: Any, criterion: Criterion) -> SelectiveObservation:
        assert isinstance(criterion, SelectiveCriterion)
        return criterion.observe(self.view(layer))

    @override
    @torch.no_grad()
    def reduce(
        self, layer: Any, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        view = self.view(layer)
        assert isinstance(criterion, SelectiveCriterion)
        if not isinstance(observation, SelectiveObservation):
            raise HsvError(
                f"a {type(layer).__name__} is cut by what calibration data has shown of it: pass `calibration`, or what `observe` made as `observation`"
            )
        planned = criterion.reduce(view, rule, observation)
        cut = planned.cut
        return Cut(
            n_states_before=view.n_states,
            n_states_after=cut.n_states,
            order=cut.n_states,
            hankel_singular_values=planned.values,
            error_bound=no_bound(),
            eigenvector_condition=cut.condition,
            notes=(planned.meaning, *cut.notes),
            payload=_Plan(cut, view.rates(), view.dt_rank),
        )

    @override
    def apply(self, layer: Any, cut: Cut) -> Replaced:
        return cut.payload.cut.put(self.view(layer))

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        plan: _Plan = cut.payload
        return plan.cut.pull_back(plan.old_rates, plan.dt_rank, covectors, squared=squared)

    @override
    def form(self, layer: Any) -> dict[str, int]:
        """``n_features``, and whether there are transforms and whether they are complex (0 or 1)."""
        view = self.view(layer)
        is_complex = view.transformed and layer.A_imag is not None
        return {
            "n_features": view.n_features,
            "transforms": int(view.transformed),
            "complex_transforms": int(is_complex),
        }

    @override
    def resize(self, layer: Any, n_states: int, **form: int) -> Replaced:
        view = self.view(layer)
        n_features = form.get("n_features", n_states)
        transforms, is_complex = form.get("transforms", 0), form.get("complex_transforms", 0)
        if transforms and not view.has_room:
            raise HsvError(
                f"the stored layer keeps transforms a channel, and {type(layer).__name__} has no room for them"
            )
        like = layer.A_log.detach()
        d = view.n_channels
        rows = view.dt_rank + 2 * n_features
        tensors: dict[str, Tensor | None] = {
            "A_log": like.new_zeros(d, n_states),
            "x_proj.weight": layer.x_proj.weight.detach().new_zeros(rows, d),
        }
        if view.has_room:
            shape = (d, n_states, n_features, 2) if is_complex else (d, n_states, n_features)
            transform = like.new_zeros(shape) if transforms else None
            tensors |= {
                "A_imag": like.new_zeros(d, n_states) if is_complex else None,
                "B_transform": transform,
                "C_transform": transform,
            }
        replaced = put_parameters(layer, tensors)
        view.set_n_features(n_features)
        return replaced
