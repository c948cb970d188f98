"""Sequence layers whose state can be cut."""

from hsv_torch.layers.lru import LRU

__all__ = ["LRU"]
