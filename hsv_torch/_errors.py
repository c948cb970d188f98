"""Errors that say why a layer stays as it is."""

from __future__ import annotations

import numpy as np

import hsv


class CutRefusedError(hsv.HsvError):
    """A layer must stay as it is; the message says why.

    Attributes
    ----------
    hankel_singular_values : numpy.ndarray or None
        The spectrum that was measured before the refusal, if it got so far.
    """

    def __init__(self, message: str, hankel_singular_values: np.ndarray | None = None) -> None:
        super().__init__(message)
        self.hankel_singular_values = hankel_singular_values
