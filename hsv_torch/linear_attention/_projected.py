"""Linear attention whose queries and keys are projections of the input, as the reductions see it."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import override

from hsv_torch.linear_attention._view import LinearAttentionView, Role, Rows, RowsOfStates


class ProjectedAttentionView(LinearAttentionView):
    """A layer with ``q_proj``, ``k_proj`` and ``gk_proj``, all three of a group after the other; a subclass says how it is called.

    With a decay a key ``gk_proj`` is a sequence of two maps, and the rows of the second belong to keys.
    """

    @property
    @override
    def n_features(self) -> int:
        return int(self.layer.q_proj.weight.shape[0]) // self.n_groups

    @property
    @override
    def is_linear(self) -> bool:
        return True

    @property
    @override
    def divides_by_root_of_states(self) -> bool:
        return True

    @override
    def layout(self) -> dict[str, tuple[Rows | RowsOfStates, ...]]:
        roles: dict[str, Role] = {"q_proj": "read", "k_proj": "write"}
        if self.decays_by_key:
            roles["gk_proj.1"] = "decay"
        layout: dict[str, tuple[Rows | RowsOfStates, ...]] = {}
        for name, role in roles.items():
            module: Any = self.layer.get_submodule(name)
            for leaf in ("weight", "bias"):
                if getattr(module, leaf) is not None:
                    layout[f"{name}.{leaf}"] = (RowsOfStates(role),)
        return layout

    @override
    def set_n_features(self, n_features: int) -> None:
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self.layout()):
            module: Any = self.layer.get_submodule(name)
            if isinstance(module, nn.Conv1d):  # depthwise
                module.in_channels = module.out_channels = module.groups = module.weight.shape[0]
            else:
                module.out_features = module.weight.shape[0]
