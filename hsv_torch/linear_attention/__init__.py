"""How the states of linear attention (Mamba-2, gated linear attention) are reduced: keys are chosen, or their basis is changed.

A layer joins with a :class:`LinearAttentionView` and a thin :class:`LinearAttentionAdapter` that makes it.
"""

from hsv_torch.linear_attention._adapter import LinearAttentionAdapter
from hsv_torch.linear_attention._cut import LinearAttentionCut
from hsv_torch.linear_attention._mamba2 import Mamba2View
from hsv_torch.linear_attention._methods import KeyBasis, KeyChoice, for_linear_attention
from hsv_torch.linear_attention._observation import LinearAttentionObservation
from hsv_torch.linear_attention._projected import ProjectedAttentionView
from hsv_torch.linear_attention._view import LinearAttentionQuantities, LinearAttentionView, Rows, RowsOfStates

__all__ = [
    "KeyBasis",
    "KeyChoice",
    "LinearAttentionAdapter",
    "LinearAttentionCut",
    "LinearAttentionObservation",
    "LinearAttentionQuantities",
    "LinearAttentionView",
    "Mamba2View",
    "ProjectedAttentionView",
    "Rows",
    "RowsOfStates",
    "for_linear_attention",
]
