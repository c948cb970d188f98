"""Sequence layers whose state can be cut."""

from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba

__all__ = ["LRU", "Mamba"]
