"""Train state-space models that shrink while they train."""

from hsv_torch.adapters import (
    Cut,
    CutRefusedError,
    LayerAdapter,
    adapter_of,
    compressible_layers,
    find_adapter,
    register_adapter,
    registered_layer_types,
)
from hsv_torch.criteria import ComplexHankel, Criterion, RealHankel
from hsv_torch.layers.lru import LRU

__all__ = [
    "LRU",
    "ComplexHankel",
    "Criterion",
    "Cut",
    "CutRefusedError",
    "LayerAdapter",
    "RealHankel",
    "adapter_of",
    "compressible_layers",
    "find_adapter",
    "register_adapter",
    "registered_layer_types",
]
