"""How the states of selective layers (Mamba) are reduced: one file a method.

A layer joins with a :class:`SelectiveView` and a thin :class:`SelectiveAdapter` that makes it.
"""

from hsv_torch.selective._view import SelectiveQuantities, SelectiveView

__all__ = ["SelectiveQuantities", "SelectiveView"]
