"""Cuts of diagonal layers with a locally least H2 error."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch

import hsv
from hsv_torch._diagonal_form import nothing_to_keep
from hsv_torch.criteria import DiagonalCriterion
from hsv_torch.diagonal_cut import DiagonalCut, diagonal_cut, to_host


@dataclass(frozen=True)
class H2Optimal(DiagonalCriterion):
    r"""Replace a layer's system by a smaller one with a locally least error in the H2 norm (:func:`hsv.h2_optimal_reduction`).

    The squared error is that of the impulse response, summed over time, inputs and outputs: what the cut adds to the output for white noise. Balanced truncation keeps the worst frequency small
    instead (:class:`ComplexHankel`, from where this begins and than which its H2 error is never larger). There is no bound of the H-infinity error, and so ``error_bound`` of the cut is infinite. Rules choose
    by the Hankel singular values of the complex system, as :class:`ComplexHankel` does.

    Parameters
    ----------
    real_outputs : bool
        Minimise the error of ``Re(C h)``, which is what a layer computes; False: that of ``C h``.
    max_iterations, tolerance
        See :func:`hsv.h2_optimal_reduction`. Where the descent ends before it has settled the notes say so; the cut is made.

    Notes
    -----
    An optimal reduction is an oblique projection, whose bases carry the optimizer's moments. On the host. The descent takes tens to hundreds
    of times as long as balanced truncation: ``python -m asv_benchmarks.h2_optimal`` says how long, and how much smaller the error is.

    References
    ----------
    Sakamoto and Sato, "Compression method for deep diagonal state space model based on H2 optimal reduction", IEEE Control Systems Letters (2025).

    Examples
    --------
    >>> import hsv_torch
    >>> layer = hsv_torch.LRU(2, 16)
    >>> report = hsv_torch.compress_(layer, 4, criterion=hsv_torch.H2Optimal())
    >>> layer.n_states
    4
    """

    real_outputs: bool = True
    max_iterations: int = 500
    tolerance: float = 1e-6

    def spectrum(self, system: hsv.DiagonalStateSpace) -> np.ndarray:
        """Return the Hankel singular values of the complex system, ``(..., n)``."""
        return to_host(hsv.hankel_singular_values(system))

    def reduce(self, system: hsv.DiagonalStateSpace, rule: hsv.Rule | int) -> DiagonalCut:
        """Plan the cut; raises :class:`hsv.HsvError` for layers whose poles are real numbers."""
        if not system.is_complex:
            raise hsv.HsvError(
                "H2Optimal makes complex poles, which a layer with real poles cannot hold; use RealPoles or SymmetricHankel"
            )
        n, sigma = system.n_states, self.spectrum(system)
        size = int(hsv.as_rule(rule).choose(sigma).max(initial=0))
        if size == 0:
            raise nothing_to_keep(sigma)
        target = hsv.real_part(system) if self.real_outputs else system
        assert isinstance(target, hsv.DiagonalStateSpace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hsv.OrderWarning)  # the notes of the reduction go into those of the cut
            red = hsv.h2_optimal_reduction(
                target,
                hsv.Order(2 * size if self.real_outputs else size),
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
            )
        slots = red.orders // 2 if self.real_outputs else red.orders
        k, reduced = int(slots.max()), red.system
        assert red.right is not None
        assert red.left is not None
        right, left = (
            red.right[..., :n, :],
            red.left[..., :n, :],
        )  # (..., n, k), or (..., n, 2k): states and their conjugates
        overlap = right * left.conj()  # the share of each old pole in each new one

        def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[..., :k], x[..., k:] if self.real_outputs else torch.zeros_like(x)

        return diagonal_cut(
            system,
            reduced.poles()[..., :k],
            reduced.B[..., :k, :],
            reduced.C[..., :k] * (2 if self.real_outputs else 1),
            states=halves(right),
            outputs=halves(left.conj()),
            poles_from=halves(overlap),
            padding=torch.arange(k, device=slots.device) >= slots[..., None],
            order=k,
            sigma=torch.from_numpy(np.asarray(sigma)),
            error_bound=math.inf,
            condition=1.0,
            notes=red.notes,
        )
