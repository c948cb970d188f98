"""Linear recurrences, diagonal and selective state-space models, and gated linear attention over a time axis, each behind one entry point.

``reference`` has the same functions in a few lines of plain PyTorch, differentiable any number of times.
"""

from hsv_torch.scan import _cuda as _cuda  # makes the kernels known to the operators
from hsv_torch.scan import reference
from hsv_torch.scan._attention import gated_linear_attention
from hsv_torch.scan._diagonal import choose_mode, diagonal_state_space
from hsv_torch.scan._linear import linear_scan
from hsv_torch.scan._selective import selective_scan

__all__ = [
    "choose_mode",
    "diagonal_state_space",
    "gated_linear_attention",
    "linear_scan",
    "reference",
    "selective_scan",
]
