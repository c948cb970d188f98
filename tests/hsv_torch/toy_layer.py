"""A layer of a third party: it joins by the protocol alone, and stores its size where a cut has to change it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hsv
from hsv_torch import adapters


class Decays(nn.Module):
    """``h[t] = sigmoid(rate) h[t-1] + B u[t]``, ``y[t] = C h[t]``, with real poles."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.rate = nn.Parameter(torch.linspace(-1.0, 3.0, size))
        self.B = nn.Parameter(torch.randn(size, width) / width**0.5)
        self.C = nn.Parameter(torch.randn(width, size) / size**0.5 * torch.logspace(0, -3, size))

    def forward(self, u: Tensor) -> Tensor:
        h = u.new_zeros(u.shape[0], self.size)
        outputs = []
        for t in range(u.shape[1]):
            h = torch.sigmoid(self.rate) * h + u[:, t] @ self.B.mT
            outputs.append(h @ self.C.mT)
        return torch.stack(outputs, dim=1)


@dataclass(frozen=True)
class ChoosingAdapter(adapters.LayerAdapter):
    """Keeps the states with the largest Hankel singular values of their own: the Jacobian of a choice is a row selection."""

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("rate", "B")

    def n_states(self, layer: Decays) -> int:
        return layer.size

    def parameter_names(self, layer: Decays) -> tuple[str, ...]:
        return ("rate", "B", "C")

    @torch.no_grad()
    def system(self, layer: Decays) -> hsv.DiagonalStateSpace:
        return hsv.DiagonalStateSpace(torch.sigmoid(layer.rate.double()), layer.B.double(), layer.C.double(), dt=True)

    def reduce(self, layer: Decays, rule: hsv.Rule | int, criterion: object) -> adapters.Cut:
        system = self.system(layer)
        poles = system.poles().numpy()
        scores = np.linalg.norm(system.B.numpy(), axis=1) * np.linalg.norm(system.C.numpy(), axis=0) / (1 - poles**2)
        kept = int(rule.choose(np.sort(scores)[::-1]))
        index = torch.from_numpy(np.sort(np.argsort(-scores)[:kept]))
        return adapters.Cut(
            n_states_before=layer.size,
            n_states_after=kept,
            order=kept,
            hankel_singular_values=np.sort(scores)[::-1].copy(),
            error_bound=float("inf"),
            eigenvector_condition=1.0,
            notes=(),
            payload=index,
        )

    def _pick(self, tensors: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        return {name: t[:, index] if name == "C" else t[index] for name, t in tensors.items()}

    def apply(self, layer: Decays, cut: adapters.Cut) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        layer.size = cut.n_states_after
        old = {name: layer.get_parameter(name).detach() for name in self.parameter_names(layer)}
        return adapters.put_parameters(layer, self._pick(old, cut.payload))

    def pull_back(self, cut: adapters.Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        return self._pick(covectors, cut.payload)

    def resize(self, layer: Decays, n_states: int) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        layer.size = n_states
        width = layer.B.shape[1]
        return adapters.put_parameters(
            layer, {"rate": torch.zeros(n_states), "B": torch.zeros(n_states, width), "C": torch.zeros(width, n_states)}
        )


@pytest.fixture
def third_party() -> Iterator[None]:
    """Register the adapter for one test only: tests over all registered layers must not see it."""
    adapters.register_adapter(Decays)(ChoosingAdapter)
    yield
    del adapters._registry[Decays]
