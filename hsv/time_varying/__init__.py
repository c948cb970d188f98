"""Gramians of time-varying systems, exact over a window and estimated from a stream, and what follows from them."""

from hsv.time_varying._gramians import (
    controllability_factors,
    controllability_gramians,
    observability_factors,
    observability_gramians,
)
from hsv.time_varying._hankel import hankel_singular_values

__all__ = [
    "controllability_factors",
    "controllability_gramians",
    "hankel_singular_values",
    "observability_factors",
    "observability_gramians",
]
