"""Sequence layers whose state can be cut."""

from hsv_torch.layers.gated_linear_attention import GatedLinearAttention
from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba
from hsv_torch.layers.mamba2 import Mamba2
from hsv_torch.layers.s4d import S4D
from hsv_torch.layers.s5 import S5

__all__ = ["LRU", "S4D", "S5", "GatedLinearAttention", "Mamba", "Mamba2"]
