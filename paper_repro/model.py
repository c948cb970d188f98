"""The paper's sequence classifier: linear encoder, LRU blocks, mean over time, linear head."""

from __future__ import annotations

import torch
from torch import nn

import hsv_torch
from paper_repro.configuration import RunConfig


class BatchNorm(nn.Module):
    """Batch normalisation of (batch, length, channels) over batch and time."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` normalised, in its own shape."""
        return self.norm(x.mT).mT


NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": BatchNorm}


class Block(nn.Module):
    """Norm, LRU, GELU, dropout, gated linear unit, dropout, and the input added."""

    def __init__(self, config: RunConfig, n_states: int) -> None:
        super().__init__()
        self.norm = NORMS[config.norm](config.d_model)
        self.ssm = hsv_torch.LRU(
            config.d_model,
            n_states,
            min_radius=config.min_radius,
            max_radius=config.max_radius,
            max_phase=config.max_phase,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.gate = nn.Linear(config.d_model, 2 * config.d_model)

    @property
    def n_states(self) -> int:
        """States of the LRU now."""
        return self.ssm.n_states

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, d_model) to the same shape."""
        hidden = self.dropout(nn.functional.gelu(self.ssm(self.norm(x))))
        return x + self.dropout(nn.functional.glu(self.gate(hidden)))


class Classifier(nn.Module):
    """Map sequences (batch, length, channels) to class scores (batch, classes).

    All sequences of a batch have one length and no padding, so the mean over time is the mean of real steps.
    """

    def __init__(self, config: RunConfig, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(n_channels, config.d_model)
        self.blocks = nn.ModuleList(Block(config, n_states) for n_states in config.states_of_blocks)
        self.head = nn.Linear(config.d_model, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores."""
        hidden = self.encoder(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(dim=1))

    def states_of_blocks(self) -> list[int]:
        """Return how many states each block has now."""
        return [block.n_states for block in self.blocks if isinstance(block, Block)]
