"""How the states of selective layers (Mamba) are reduced: one file a method.

A layer joins with a :class:`SelectiveView` and a thin :class:`SelectiveAdapter` that makes it.
"""

from hsv_torch.selective._adapter import SelectiveAdapter
from hsv_torch.selective._auto import Auto
from hsv_torch.selective._channel import ChannelBasis
from hsv_torch.selective._choice import StateChoice
from hsv_torch.selective._cut import SelectiveCriterion, SelectiveCut
from hsv_torch.selective._distillation import LocalDistillation
from hsv_torch.selective._observation import SelectiveObservation
from hsv_torch.selective._shared import SharedBasis
from hsv_torch.selective._view import SelectiveQuantities, SelectiveView

__all__ = [
    "Auto",
    "ChannelBasis",
    "LocalDistillation",
    "SelectiveAdapter",
    "SelectiveCriterion",
    "SelectiveCut",
    "SelectiveObservation",
    "SelectiveQuantities",
    "SelectiveView",
    "SharedBasis",
    "StateChoice",
]
