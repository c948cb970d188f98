"""A model that compares two documents: one encoder for both, and a head that sees both codes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

import hsv_torch
from hsv import HsvError, ShapeError

DOCUMENTS = 2


class RetrievalModel(nn.Module):
    r"""Two documents to class scores:

    .. math::
        a = f(u_1), \quad b = f(u_2), \qquad
        y = W_2 \, \mathrm{GELU}(W_1 [a,\, b,\, a \odot b,\, a - b] + w_1) + w_2,

    with the same encoder :math:`f` for both, a :class:`hsv_torch.SequenceModel` whose head gives `d_model` values a document. The documents of a batch go through it
    side by side, so that batch norm sees the steps of all of them.

    The layers stand at ``encoder.blocks.0.layer``, ``encoder.blocks.1.layer``, ... and are cut like those of any model.

    Parameters
    ----------
    config : hsv_torch.SequenceModelConfig
        Of the whole: `n_outputs` are the classes.
    device, dtype
        As in ``torch.nn``.

    Raises
    ------
    hsv.HsvError
        The head is no classification, or the layer refuses its options.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> config = hsv_torch.SequenceModelConfig(
    ...     layer="lru", d_model=4, n_states=8, head="classification", vocabulary=20, n_outputs=2
    ... )
    >>> model = RetrievalModel(config)
    >>> model(torch.ones(3, 2, 7, dtype=torch.int64), torch.tensor([[7, 5], [2, 7], [1, 1]])).shape
    torch.Size([3, 2])
    >>> model.n_states
    (8,)
    """

    def __init__(
        self,
        config: hsv_torch.SequenceModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.head != "classification":
            raise HsvError(
                f"two documents are classified together: `head` must be 'classification', got {config.head!r}"
            )
        self.config = config
        width = config.d_model
        self.encoder = hsv_torch.SequenceModel(dataclasses.replace(config, n_outputs=width), device=device, dtype=dtype)
        self.hidden = nn.Linear(4 * width, width, device=device, dtype=dtype)
        self.head = nn.Linear(width, config.n_outputs, device=device, dtype=dtype)

    @property
    def n_states(self) -> tuple[int, ...]:
        """States of each block now."""
        return self.encoder.n_states

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return ``(batch, n_outputs)``.

        Parameters
        ----------
        x : Tensor
            ``(batch, 2, length)``, tokens, or ``(batch, 2, length, n_inputs)``, real.
        lengths : Tensor, optional
            ``(batch, 2)``: steps of each document that are not padding, at least 1.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            `x` or `lengths` do not fit.
        """
        if x.ndim < 3 or x.shape[1] != DOCUMENTS:
            raise ShapeError(
                f"the input must have axes (batch, 2, length), two documents a sample, got {tuple(x.shape)}"
            )
        if lengths is not None and lengths.shape != x.shape[:2]:
            raise ShapeError(f"`lengths` must be {tuple(x.shape[:2])}, one a document, got {tuple(lengths.shape)}")
        codes = self.encoder(x.flatten(0, 1), None if lengths is None else lengths.flatten())
        a, b = codes.unflatten(0, (-1, DOCUMENTS)).unbind(1)
        return self.head(nn.functional.gelu(self.hidden(torch.cat([a, b, a * b, a - b], dim=-1))))
