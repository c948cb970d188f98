"""Sequence layers whose state can be cut."""

from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba
from hsv_torch.layers.s4d import S4D
from hsv_torch.layers.s5 import S5

__all__ = ["LRU", "S4D", "S5", "Mamba"]
