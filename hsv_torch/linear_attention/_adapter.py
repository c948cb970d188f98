"""The adapter that layers of linear attention share."""

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
from hsv_torch.linear_attention._cut import Layout, LinearAttentionCut
from hsv_torch.linear_attention._methods import for_linear_attention
from hsv_torch.linear_attention._observation import LinearAttentionObservation
from hsv_torch.linear_attention._view import LinearAttentionView, Rows
from hsv_torch.selective import SelectiveCriterion, SharedBasis, StateChoice
from hsv_torch.selective._cut import no_bound

TRANSFORMS = ("B_transform", "C_transform")


@dataclass(frozen=True)
class _Plan:
    """What :meth:`LinearAttentionAdapter.apply` and :meth:`LinearAttentionAdapter.pull_back` need."""

    cut: LinearAttentionCut
    layout: Layout
    n_groups: int
    gain: float


class LinearAttentionAdapter(LayerAdapter):
    """Cuts a layer of linear attention, by data; a layer joins with a subclass that makes its :class:`LinearAttentionView`."""

    criterion_type: ClassVar[type[Criterion]] = SelectiveCriterion
    needs_data: ClassVar[bool] = True

    @abc.abstractmethod
    def view(self, layer: Any) -> LinearAttentionView:
        """Return the layer as the reductions see it."""

    @override
    def default_criterion(self, layer: Any) -> SelectiveCriterion:
        """Return the best basis where decays allow one and there is a place for it, else a choice of keys, with compensation where there is one for that."""
        view = self.view(layer)
        if view.can_project and not view.decays_by_key:
            return SharedBasis()
        return StateChoice(compensate=view.can_project)

    @override
    def n_states(self, layer: Any) -> int:
        return self.view(layer).n_states

    @override
    def parameter_names(self, layer: Any) -> tuple[str, ...]:
        view = self.view(layer)
        return (*view.layout(), *(TRANSFORMS if view.transformed else ()))

    @override
    def system(self, layer: Any) -> None:
        return None

    @override
    def observe(self, layer: Any, criterion: Criterion) -> LinearAttentionObservation:
        assert isinstance(criterion, SelectiveCriterion)
        return LinearAttentionObservation(self.view(layer), for_linear_attention(criterion).needs())

    @override
    @torch.no_grad()
    def reduce(
        self, layer: Any, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        view = self.view(layer)
        assert isinstance(criterion, SelectiveCriterion)
        if not isinstance(observation, LinearAttentionObservation):
            raise HsvError(
                f"a {type(layer).__name__} is cut by what calibration data has shown of it: pass `calibration`, or what `observe` made as `observation`"
            )
        planned = for_linear_attention(criterion).reduce(view, rule, observation)  # type: ignore[arg-type]
        cut: Any = planned.cut
        return Cut(
            n_states_before=view.n_states,
            n_states_after=cut.n_states,
            order=cut.n_states,
            hankel_singular_values=planned.values,
            error_bound=no_bound(),
            eigenvector_condition=cut.condition,
            notes=(planned.meaning, *cut.notes),
            payload=_Plan(cut, view.layout(), view.n_groups, cut.gain(view)),
        )

    @override
    def apply(self, layer: Any, cut: Cut) -> Replaced:
        return cut.payload.cut.put(self.view(layer))

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        plan: _Plan = cut.payload
        return plan.cut.pull_back(plan.layout, plan.n_groups, plan.gain, covectors, squared=squared)

    @override
    def form(self, layer: Any) -> dict[str, int]:
        """``n_features``, and whether there are transforms (0 or 1)."""
        view = self.view(layer)
        return {"n_features": view.n_features, "transforms": int(view.transformed)}

    @override
    def resize(self, layer: Any, n_states: int, **form: int) -> Replaced:
        view = self.view(layer)
        n_features, transforms = form.get("n_features", n_states), form.get("transforms", 0)
        if transforms and not view.has_room:
            raise HsvError(f"the stored layer keeps transforms, and {type(layer).__name__} has no room for them")
        tensors: dict[str, Tensor | None] = {}
        for name, blocks in view.layout().items():
            counts = (block.count if isinstance(block, Rows) else view.n_groups * n_features for block in blocks)
            old = layer.get_parameter(name).detach()
            tensors[name] = old.new_zeros(sum(counts), *old.shape[1:])
        if view.has_room:
            shape = (view.n_groups, n_states, n_features)
            tensors |= dict.fromkeys(TRANSFORMS, old.new_zeros(shape) if transforms else None)
        replaced = put_parameters(layer, tensors)
        view.set_n_features(n_features)
        return replaced
