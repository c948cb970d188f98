"""Sequence models made of this package's layers: classifier, regressor and language model from one configuration."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from hsv import DtypeError, HsvError, ShapeError
from hsv_torch.layers._checks import check_choice, check_size, checked_input, padding_mask
from hsv_torch.layers.gated_linear_attention import GatedLinearAttention
from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba
from hsv_torch.layers.mamba2 import Mamba2
from hsv_torch.layers.s4d import S4D
from hsv_torch.layers.s5 import S5

Head = Literal["classification", "regression", "language_model"]
Norm = Literal["layer", "batch", "rms"]
Activation = Literal["auto", "glu", "gelu", "none"]
DropoutMask = Literal["element", "sequence"]
Pooling = Literal["mean", "last"]

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LayerKind:
    """A layer type under its short name, and whether it ends with a gate of its own."""

    layer: type[nn.Module]
    gated: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the layer's own arguments: all but those that the model gives to every layer."""
        given = {"d_model", "n_states", "bidirectional", "device", "dtype", "generator"}
        return tuple(name for name in inspect.signature(self.layer).parameters if name not in given)

    @property
    def can_be_bidirectional(self) -> bool:
        """Whether the layer takes the argument ``bidirectional``."""
        return "bidirectional" in inspect.signature(self.layer).parameters


LAYER_KINDS: dict[str, LayerKind] = {
    "lru": LayerKind(LRU),
    "s5": LayerKind(S5),
    "s4d": LayerKind(S4D),
    "mamba": LayerKind(Mamba, gated=True),
    "mamba2": LayerKind(Mamba2, gated=True),
    "gated_linear_attention": LayerKind(GatedLinearAttention, gated=True),
}


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """What a :class:`SequenceModel` is made of; checked when it is made, and never changed.

    Parameters
    ----------
    layer : str
        ``"lru"``, ``"s5"``, ``"s4d"``, ``"mamba"``, ``"mamba2"`` or ``"gated_linear_attention"``.
    d_model : int
        Width of the model.
    n_states : int or tuple of int
        States of each layer: one number, or one a block.
    head : {"classification", "regression", "language_model"}
        The first two give one vector a sequence, class scores or values; a language model gives scores for every step, from what came up to it.
    n_outputs : int
        Classes, values, or scores a step.
    n_inputs : int, optional
        Real channels of the input; give either this or `vocabulary`.
    vocabulary : int, optional
        The input consists of tokens ``0, ..., vocabulary - 1``.
    n_blocks : int
    layer_options : mapping
        Further arguments of the layer: numbers, strings, booleans, None.
    norm : {"layer", "batch", "rms"}
        Before each layer (pre-norm). Batch norm takes its statistics over the steps that are not padding.
    final_norm : bool
        Whether the same norm stands before the head too.
    activation : {"auto", "glu", "gelu", "none"}
        What follows a layer: GELU and a gated linear unit, GELU, or nothing. "auto": nothing after a layer that has a gate of its own (Mamba, Mamba-2, gated linear attention), else "glu".
    dropout : float
        Probability that a value is set to 0 in training, after the activation and after the gate.
    dropout_mask : {"element", "sequence"}
        A value at a time, or a channel over the whole sequence; in both cases every sequence of a batch has its own mask.
    pooling : {"mean", "last"}
        How a sequence becomes one vector: mean over its steps, or its last step. Padding is never pooled. A language model does not pool.
    bidirectional : bool
        Whether layers also run backwards, where the layer can.

    Raises
    ------
    hsv.HsvError
        A value is impossible, or two do not go together; the message names them.

    Examples
    --------
    >>> import hsv_torch
    >>> config = hsv_torch.SequenceModelConfig(
    ...     layer="lru", d_model=4, n_states=8, head="classification", n_inputs=1, n_outputs=10
    ... )
    >>> config.n_blocks, config.states_of_blocks
    (1, (8,))
    >>> hsv_torch.SequenceModelConfig.from_dict(config.to_dict()) == config
    True
    """

    layer: str
    d_model: int
    n_states: int | tuple[int, ...]
    head: Head
    n_outputs: int
    n_inputs: int | None = None
    vocabulary: int | None = None
    n_blocks: int = 1
    layer_options: Mapping[str, Any] = field(default_factory=dict)
    norm: Norm = "layer"
    final_norm: bool = False
    activation: Activation = "auto"
    dropout: float = 0.0
    dropout_mask: DropoutMask = "element"
    pooling: Pooling = "mean"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        choices = {
            "layer": LAYER_KINDS,
            "head": get_args(Head),
            "norm": get_args(Norm),
            "activation": get_args(Activation),
            "dropout_mask": get_args(DropoutMask),
            "pooling": get_args(Pooling),
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        for name in ("d_model", "n_outputs", "n_blocks"):
            check_size(name, getattr(self, name))
        for name in ("final_norm", "bidirectional"):
            if not isinstance(getattr(self, name), bool):
                raise DtypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise DtypeError(f"`dropout` must be a number, got {self.dropout!r}")
        if not 0 <= self.dropout < 1:
            raise HsvError(f"`dropout` is a probability and must be in [0, 1), got {self.dropout}")
        self._check_inputs()
        self._check_states()
        self._check_layer()

    def _check_inputs(self) -> None:
        if (self.n_inputs is None) == (self.vocabulary is None):
            raise HsvError(
                "the input is either real channels (`n_inputs`) or tokens (`vocabulary`): give exactly one of them, got "
                f"n_inputs={self.n_inputs} and vocabulary={self.vocabulary}"
            )
        name = "vocabulary" if self.n_inputs is None else "n_inputs"
        check_size(name, getattr(self, name))

    def _check_states(self) -> None:
        if isinstance(self.n_states, list | tuple):
            if len(self.n_states) != self.n_blocks:
                raise ShapeError(f"`n_states` names {len(self.n_states)} blocks, but `n_blocks` is {self.n_blocks}")
            object.__setattr__(self, "n_states", tuple(self.n_states))
        for count in self.states_of_blocks:
            check_size("n_states", count)

    def _check_layer(self) -> None:
        if not isinstance(self.layer_options, Mapping):
            raise DtypeError(f"`layer_options` must map names to values, got {self.layer_options!r}")
        object.__setattr__(self, "layer_options", dict(self.layer_options))
        kind = LAYER_KINDS[self.layer]
        for name in self.layer_options:
            if name not in kind.options:
                close = difflib.get_close_matches(str(name), kind.options, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(kind.options)}"
                raise HsvError(f"`layer_options`: {kind.layer.__name__} has no option {name!r}; {hint}")
        if self.bidirectional and not kind.can_be_bidirectional:
            able = [name for name, other in LAYER_KINDS.items() if other.can_be_bidirectional]
            raise HsvError(
                f"`bidirectional`: {kind.layer.__name__} runs forwards only; layers that can: {', '.join(able) or 'none'}"
            )
        if self.bidirectional and self.head == "language_model":
            raise HsvError(
                "`bidirectional`: a language model must not see the steps that it is to predict; leave it False"
            )

    @property
    def states_of_blocks(self) -> tuple[int, ...]:
        """States of each block."""
        return self.n_states if isinstance(self.n_states, tuple) else (self.n_states,) * self.n_blocks

    @property
    def ends_with_glu(self) -> bool:
        """Whether a gated linear unit follows each layer."""
        return self.activation == "glu" or (self.activation == "auto" and not LAYER_KINDS[self.layer].gated)

    @property
    def has_gelu(self) -> bool:
        """Whether GELU follows each layer."""
        return self.ends_with_glu or self.activation == "gelu"

    def to_dict(self) -> dict[str, Any]:
        """Return the values as numbers, strings, lists and dicts, for JSON."""
        values = dataclasses.asdict(self)
        if isinstance(self.n_states, tuple):
            values["n_states"] = list(self.n_states)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration that :meth:`to_dict` described.

        Raises
        ------
        hsv.HsvError
            A key is unknown or missing, or a value is impossible.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = [name for name in values if name not in known]
        missing = [
            name
            for name, f in known.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
        ]
        if unknown or missing:
            raise HsvError(
                f"not a {cls.__name__}: unknown keys {unknown}, missing keys {missing}; it has {', '.join(known)}"
            )
        return cls(**values)


class _BatchNorm(nn.Module):
    """Batch normalisation of ``(batch, length, channels)`` over the steps of all sequences, without their padding."""

    def __init__(self, d_model: int, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_model, eps=NORM_EPSILON, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.norm(x.mT).mT
        y = torch.zeros_like(x)
        y[mask] = self.norm(x[mask])
        return y


class _StepwiseNorm(nn.Module):
    """A norm of each step by itself, which padding does not concern."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        del mask
        return self.norm(x)


def _make_norm(kind: Norm, d_model: int, *, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    if kind == "batch":
        return _BatchNorm(d_model, device=device, dtype=dtype)
    norm = nn.LayerNorm if kind == "layer" else nn.RMSNorm
    return _StepwiseNorm(norm(d_model, eps=NORM_EPSILON, device=device, dtype=dtype))


class _Dropout(nn.Module):
    """Dropout with a mask a value, or a mask a channel that holds over the whole sequence."""

    def __init__(self, probability: float, mask: DropoutMask) -> None:
        super().__init__()
        self.probability = probability
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        if self.mask == "element" or not self.training or self.probability == 0:
            return nn.functional.dropout(x, self.probability, self.training)
        keep = nn.functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.probability)
        return x * keep

    def extra_repr(self) -> str:
        return f"{self.probability}, mask={self.mask!r}"


class _Block(nn.Module):
    """Norm, layer, activation, dropout, gated linear unit, dropout, and the input added."""

    def __init__(
        self,
        config: SequenceModelConfig,
        n_states: int,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        options = dict(config.layer_options)
        if config.bidirectional:
            options["bidirectional"] = True
        self.norm = _make_norm(config.norm, config.d_model, device=device, dtype=dtype)
        self.layer: Any = LAYER_KINDS[config.layer].layer(
            config.d_model, n_states, **options, device=device, dtype=dtype
        )
        self.has_gelu = config.has_gelu
        self.dropout = _Dropout(config.dropout, config.dropout_mask)
        self.gate = (
            nn.Linear(config.d_model, 2 * config.d_model, device=device, dtype=dtype) if config.ends_with_glu else None
        )

    def forward(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map ``(batch, length, d_model)`` to the same shape; `mask` is True where `lengths` have a step."""
        return x + self._after(self.layer(self.norm(x, mask), lengths))

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map ``(batch, d_model)`` and the layer's state to the same shape and the next state; in evaluation mode."""
        y_t, state = self.layer.step(self.norm(x_t[:, None], None)[:, 0], state)
        return x_t + self._after(y_t), state

    def _after(self, y: Tensor) -> Tensor:
        if self.has_gelu:
            y = self.dropout(nn.functional.gelu(y))
        if self.gate is not None:
            y = nn.functional.glu(self.gate(y))
        elif self.has_gelu:
            return y
        return self.dropout(y)


class SequenceModel(nn.Module):
    r"""Encoder, residual blocks of one layer type, head:

    .. math::
        x^{(0)} = \mathrm{encode}(u), \qquad
        x^{(k)} = x^{(k-1)} + g\bigl(\mathrm{layer}_k(\mathrm{norm}(x^{(k-1)}))\bigr), \qquad
        y = \mathrm{head}(\mathrm{pool}(x^{(K)})),

    with :math:`g` dropout(GLU(dropout(GELU))) for layers without a gate, dropout alone for layers with one. The encoder is an embedding of tokens or
    a linear map of real channels; a language model does not pool.

    The layers stand at ``blocks.0.layer``, ``blocks.1.layer``, ... and can be cut (:func:`hsv_torch.compress_`, :class:`hsv_torch.InTrainingCompressor`);
    the configuration keeps the sizes that the model was made with, and checkpoints (:func:`hsv_torch.save_checkpoint`) hold the present ones.

    Parameters
    ----------
    config : SequenceModelConfig
    device, dtype
        As in ``torch.nn``.

    Raises
    ------
    hsv.HsvError
        The layer refuses its options.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> config = hsv_torch.SequenceModelConfig(
    ...     layer="lru", d_model=4, n_states=8, n_blocks=2, head="language_model", vocabulary=20, n_outputs=20
    ... )
    >>> model = hsv_torch.SequenceModel(config).eval()
    >>> model(torch.zeros(3, 7, dtype=torch.int64)).shape
    torch.Size([3, 7, 20])
    >>> scores, state = model.step(torch.zeros(3, dtype=torch.int64), model.initial_state(3))
    >>> scores.shape, model.n_states
    (torch.Size([3, 20]), (8, 8))
    """

    def __init__(
        self,
        config: SequenceModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, SequenceModelConfig):
            raise TypeError(f"`config` must be a hsv_torch.SequenceModelConfig, got {type(config).__qualname__}")
        self.config = config
        d_model = config.d_model
        self.encoder: nn.Module = (
            nn.Linear(config.n_inputs, d_model, device=device, dtype=dtype)
            if config.n_inputs is not None
            else nn.Embedding(config.vocabulary, d_model, device=device, dtype=dtype)  # type: ignore[arg-type]
        )
        self.blocks = nn.ModuleList(
            _Block(config, n_states, device=device, dtype=dtype) for n_states in config.states_of_blocks
        )
        self.norm = _make_norm(config.norm, d_model, device=device, dtype=dtype) if config.final_norm else None
        self.head = nn.Linear(d_model, config.n_outputs, device=device, dtype=dtype)

    @property
    def n_states(self) -> tuple[int, ...]:
        """States of each block now."""
        return tuple(block.layer.n_states for block in self._blocks())

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return ``(batch, n_outputs)``, or ``(batch, length, n_outputs)`` for a language model.

        Parameters
        ----------
        x : Tensor
            ``(batch, length, n_inputs)``, real, or ``(batch, length)``, tokens.
        lengths : Tensor, optional
            ``(batch,)``, integers: steps of each sequence that are not padding; at least 1 where the model pools. What stands in the padding has no influence on
            any output; a language model's scores there are 0.

        Raises
        ------
        hsv.ShapeError, hsv.DtypeError
            `x` or `lengths` do not fit; a token lies outside the vocabulary (looked at on the CPU only).
        """
        mask = self._mask(x, lengths)
        hidden = self._encode(x, mask)
        if self.config.head != "language_model" and hidden.shape[1] < 1:
            raise ShapeError("the sequences have length 0: there is no step to pool")
        for block in self._blocks():
            hidden = block(hidden, lengths, mask)
        if self.norm is not None:
            hidden = self.norm(hidden, mask)
        if self.config.head != "language_model":
            return self.head(self._pool(hidden, lengths, mask))
        scores = self.head(hidden)
        return scores if mask is None else scores * mask[..., None]

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the states of all blocks before the first step."""
        self._check_stepping()
        return tuple(block.layer.initial_state(batch) for block in self._blocks())

    def step(self, x_t: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of a language model: ``x_t (batch,)`` tokens or ``(batch, n_inputs)`` to ``(batch, n_outputs)`` and the next state.

        Raises
        ------
        hsv.HsvError
            The model is no language model, or in training mode (dropout and batch statistics need the whole sequence).
        """
        self._check_stepping()
        if len(state) != len(self.blocks):
            raise ShapeError(f"`state` must have {len(self.blocks)} entries, one a block, got {len(state)}")
        hidden = self._encode(x_t[:, None], None)[:, 0]
        new_states = []
        for block, old in zip(self._blocks(), state, strict=True):
            hidden, new = block.step(hidden, old)
            new_states.append(new)
        if self.norm is not None:
            hidden = self.norm(hidden[:, None], None)[:, 0]
        return self.head(hidden), tuple(new_states)

    def _blocks(self) -> list[_Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _mask(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        if lengths is None:
            return None
        if x.ndim < 2:
            raise ShapeError(f"the input must have axes (batch, length), got {tuple(x.shape)}")
        mask = padding_mask(lengths.to(x.device), x.shape[0], x.shape[1])
        if self.config.head != "language_model" and x.shape[0] and int(lengths.min()) < 1:
            raise ShapeError("`lengths`: a sequence of length 0 has no step to pool; leave it out of the batch")
        return mask

    def _encode(self, x: Tensor, mask: Tensor | None) -> Tensor:
        vocabulary = self.config.vocabulary
        if vocabulary is None:
            assert self.config.n_inputs is not None
            x = checked_input(x, ("batch", "length"), self.config.n_inputs, self.head.weight.dtype)
            return self.encoder(x if mask is None else torch.where(mask[..., None], x, torch.zeros_like(x)))
        if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
            raise DtypeError(f"the input must be tokens, integers, got {x.dtype}")
        if x.ndim != 2:
            raise ShapeError(f"the input must be tokens (batch, length), got {tuple(x.shape)}")
        x = x if mask is None else torch.where(mask, x, torch.zeros_like(x))
        readable = (
            x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling()
        )  # a value asked for breaks a graph
        if readable and not 0 <= int(x.min()) <= int(x.max()) < vocabulary:
            raise ShapeError(f"tokens must lie in [0, {vocabulary}), got {int(x.min())} to {int(x.max())}")
        return self.encoder(x)

    def _pool(self, hidden: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
        if lengths is None or mask is None:
            return hidden.mean(dim=1) if self.config.pooling == "mean" else hidden[:, -1]
        lengths = lengths.to(hidden.device)
        if self.config.pooling == "mean":
            kept = torch.where(mask[..., None], hidden, torch.zeros_like(hidden))
            return kept.sum(dim=1) / lengths[:, None]
        return hidden[torch.arange(len(lengths), device=hidden.device), lengths.long() - 1]

    def _check_stepping(self) -> None:
        if self.config.head != "language_model":
            raise HsvError(
                f"only a language model goes step by step; this model's head is {self.config.head!r}, which pools over the sequence"
            )
        if self.training:
            raise HsvError("steps are for inference: call `model.eval()` first")
