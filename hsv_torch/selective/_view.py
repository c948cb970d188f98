r"""What the reductions must know of a selective layer, whatever package it comes from."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class SelectiveQuantities(Protocol):
    r"""What one call of a selective layer computes on the way.

    :math:`h_c[t] = \exp(\delta_{tc} A_c) h_c[t-1] + \delta_{tc} B_t u_{tc}`, and the layer sees :math:`g_{tc} \langle C_t, h_c[t] \rangle`.
    """

    @property
    def delta(self) -> Tensor:
        """Step sizes, ``(batch, length, d)``, positive."""

    @property
    def B(self) -> Tensor:
        """What the inputs enter the states by, ``(batch, length, n_features)``."""

    @property
    def C(self) -> Tensor:
        """What the outputs are read by, ``(batch, length, n_features)``."""

    @property
    def u(self) -> Tensor:
        """Inputs of the scan, ``(batch, length, d)``."""

    @property
    def gate(self) -> Tensor:
        """What the outputs of the scan are multiplied by, ``(batch, length, d)``."""

    @property
    def mask(self) -> Tensor | None:
        """``(batch, length)``, False in padding; None where nothing is padded."""


class LayerView(abc.ABC):
    """A layer whose system depends on its input, as the reductions see it.

    Parameters
    ----------
    layer : torch.nn.Module
    """

    has_room: ClassVar[bool] = False
    """Whether the layer can keep transforms."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @abc.abstractmethod
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute what a call of the layer's ``forward`` with these arguments would, up to the scan, without gradients."""

    def repeatable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments with which the call can be made again; a layer that was given a cache leaves it out."""
        return args, kwargs

    def outputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Call the layer and return its output ``(batch, length, d_model)``."""
        return self.layer(*args, **kwargs)

    def set_n_features(self, n_features: int) -> None:  # noqa: B027  (most layers read it)
        """Tell the layer how many features it has, where it does not read that from the parameters."""

    @property
    @abc.abstractmethod
    def n_states(self) -> int:
        """States, as ``layer.n_states`` counts them."""


class SelectiveView(LayerView):
    """A selective layer as the reductions see it; a subclass for each type of layer says what is particular to it.

    The names are those of the published code: ``A_log (d, n)``, ``x_proj`` with the rows of the step size, of ``B`` and of ``C`` in this
    order, ``dt_proj``, ``out_proj``. Where ``has_room`` is True the layer has the parameters ``A_imag``, ``B_transform`` and ``C_transform``, None
    until a cut needs them.

    Parameters
    ----------
    layer : torch.nn.Module
    """

    normalises: ClassVar[bool] = False
    """Whether the layer divides B and C by their root mean squares over the states, so that taking some away rescales the others."""

    @abc.abstractmethod
    def quantities(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SelectiveQuantities:
        """Compute what a call of the layer's ``forward`` with these arguments would, up to the scan, without gradients."""

    @property
    def n_states(self) -> int:
        """States a channel."""
        return int(self.layer.A_log.shape[1])

    @property
    def n_channels(self) -> int:
        """Channels."""
        return int(self.layer.A_log.shape[0])

    @property
    def dt_rank(self) -> int:
        """Rows of ``x_proj`` that belong to the step size."""
        return int(self.layer.dt_proj.weight.shape[1])

    @property
    def n_features(self) -> int:
        """Rows of ``x_proj`` that belong to ``B`` (and to ``C``)."""
        return (int(self.layer.x_proj.weight.shape[0]) - self.dt_rank) // 2

    @property
    def transformed(self) -> bool:
        """Whether the layer keeps transforms a channel."""
        return self.has_room and self.layer.B_transform is not None

    @torch.no_grad()
    def rates(self) -> Tensor:
        """Return the poles in continuous time, ``(d, n)``, float64, or complex128 where the layer has ``A_imag``."""
        real = -self.layer.A_log.detach().double().exp()
        if self.has_room and self.layer.A_imag is not None:
            return torch.complex(real, self.layer.A_imag.detach().double())
        return real

    @torch.no_grad()
    def transforms(self) -> tuple[Tensor, Tensor]:
        """Return ``B_transform`` and ``C_transform``, ``(d, n, n_features)``, float64 or complex128."""
        pair = tuple(p.detach().double() for p in (self.layer.B_transform, self.layer.C_transform))
        if self.layer.A_imag is not None:
            pair = tuple(torch.view_as_complex(p.contiguous()) for p in pair)
        return pair[0], pair[1]

    @torch.no_grad()
    def output_norms(self) -> Tensor:
        """Return by how much each channel reaches the layer's output: norms of the columns of ``out_proj``, ``(d,)``, float64."""
        return torch.linalg.vector_norm(self.layer.out_proj.weight.detach().double(), dim=0)
