"""Cuts that lose least in the H2 norm."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
import torch

import hsv
import hsv_torch
from hsv_torch.criteria import DiagonalCut, whole_cut


@dataclass(frozen=True)
class H2Optimal(hsv_torch.DiagonalCriterion):
    """Locally H2-optimal reduction of the complex system (:func:`hsv.irka`), which begins at balanced truncation and is never worse in the H2 norm.

    Rules choose by the Hankel singular values, as for :class:`hsv_torch.ComplexHankel`. No bound of the H-infinity error is known: ``error_bound`` of a cut is infinite.

    Parameters
    ----------
    max_condition : float
        A cut is refused if the eigenvectors of the reduced state matrix have a larger condition number.

    References
    ----------
    H2-optimal reduction of state space layers: arXiv 2507.10078.

    Examples
    --------
    >>> import hsv_torch
    >>> layer = hsv_torch.LRU(4, 16)
    >>> report = hsv_torch.compress_(layer, 6, criterion=H2Optimal())
    >>> layer.n_states
    6
    """

    max_condition: float = 1e6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the complex system, ``(..., n)``."""
        return hsv_torch.ComplexHankel().spectrum(system)

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`hsv_torch.CutRefusedError` if the reduced system has no usable eigenvectors, or no state is left."""
        size = int(hsv.as_rule(rule).choose(self.spectrum(system)).max(initial=0))
        if size == 0:
            raise hsv_torch.CutRefusedError(
                "no state is left: every Hankel singular value is 0, or the rule keeps none"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hsv.OrderWarning)  # the notes of the reduction go into those of the cut
            red = hsv.irka(system, hsv.Order(size))
        unbounded = torch.full_like(red.orders, torch.inf, dtype=torch.float64)
        return whole_cut(system, dataclasses.replace(red, error_bound=unbounded), red.orders, self.max_condition)
