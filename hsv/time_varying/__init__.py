"""Gramians of time-varying systems, exact over a window and estimated from a stream, and what follows from them."""

from hsv.time_varying._certificates import (
    CertifiedReduction,
    certified_truncation,
    controllability_certificate,
    observability_certificate,
)
from hsv.time_varying._estimator import GramianEstimator
from hsv.time_varying._gramians import (
    controllability_factors,
    controllability_gramians,
    observability_factors,
    observability_gramians,
)
from hsv.time_varying._hankel import hankel_singular_values
from hsv.time_varying._layer_systems import gated_linear_attention_system, mamba2_system, mamba_system
from hsv.time_varying._selective import SelectiveEstimator
from hsv.time_varying._truncation import TimeVaryingReduction, balanced_truncation

__all__ = [
    "CertifiedReduction",
    "GramianEstimator",
    "SelectiveEstimator",
    "TimeVaryingReduction",
    "balanced_truncation",
    "certified_truncation",
    "controllability_certificate",
    "controllability_factors",
    "controllability_gramians",
    "gated_linear_attention_system",
    "hankel_singular_values",
    "mamba2_system",
    "mamba_system",
    "observability_certificate",
    "observability_factors",
    "observability_gramians",
]
