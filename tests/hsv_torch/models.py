"""Small models that have all that a cut must not disturb: dropout, batch norm, a layer inside a block."""

import torch
from torch import Tensor, nn

import hsv_torch


class Block(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.ssm = layer
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.ssm(self.norm(x.mT).mT)))


class Classifier(nn.Module):
    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(layer, width) for layer in layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


def classifier(n_states: int = 16, n_blocks: int = 2, width: int = 4, seed: int = 0) -> Classifier:
    """Make a classifier of LRU blocks."""
    torch.manual_seed(seed)
    return Classifier([hsv_torch.LRU(width, n_states, max_phase=0.5) for _ in range(n_blocks)], width)


def batch(step: int, length: int = 12) -> tuple[Tensor, Tensor]:
    """Give batch number `step`, always the same."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(5, length, 1, generator=generator), torch.randint(3, (5,), generator=generator)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Train on batch number `step` and return the loss."""
    x, y = batch(step)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()
