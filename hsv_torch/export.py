"""Models for other programs: copies in plain real arithmetic, and ONNX files of them, over whole sequences and step by step."""

from __future__ import annotations

import copy
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from typing_extensions import override

import hsv
from hsv import DtypeError, HsvError, ShapeError
from hsv_torch.adapters import adapter_of
from hsv_torch.layers._checks import refuse_steps_of_a_bidirectional_layer
from hsv_torch.layers._mamba2 import split_heads, step_sizes
from hsv_torch.layers.gated_linear_attention import GatedLinearAttention
from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba
from hsv_torch.layers.mamba2 import Mamba2
from hsv_torch.layers.s4d import S4D
from hsv_torch.layers.s5 import S5
from hsv_torch.models import SequenceModel
from hsv_torch.third_party._packages import required_package

LARGEST_FILE = 2**30
"""Bytes of parameters and buffers up to which they stand in the ONNX file itself; such a file cannot exceed 2 GiB."""

State: TypeAlias = tuple[Tensor, ...]
Advance: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


def _scan(advance: Advance, h: Tensor, signals: tuple[Tensor, ...]) -> Tensor:
    """``h, y[:, t] = advance(h, *(s[:, t] for s in signals))`` for all steps: the outputs, ``(batch, length, ...)``."""
    if not torch.compiler.is_compiling():
        outputs = []
        for t in range(signals[0].shape[1]):
            h, y = advance(h, *(s[:, t] for s in signals))
            outputs.append(y)
        return torch.stack(outputs, 1)
    from torch._higher_order_ops.scan import scan

    def body(h: Tensor, signals: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        h, y = advance(h, *signals)
        return h, y.clone()  # an output must not be the state itself

    in_time: Tensor = scan(body, h, tuple(s.transpose(0, 1) for s in signals))[1]
    return in_time.transpose(0, 1)


class _Plain(nn.Module):
    """A layer for inference, in plain operations on real numbers: what is known beforehand is computed once, in float64."""

    state_names: ClassVar[tuple[str, ...]] = ("state",)
    conv1d: nn.Conv1d | None

    def __init__(self, conv1d: nn.Conv1d | None = None) -> None:
        super().__init__()
        self.conv1d = copy.deepcopy(conv1d)

    def constant(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, None if value is None else value.detach().to(torch.float32, copy=True).contiguous())

    @abstractmethod
    def initial_h(self, batch: int) -> Tensor:
        """The state of the recurrence before the first step."""

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Any]:
        """What goes through the convolution, if there is one, and what `signals` and `output` need beside it."""

    @abstractmethod
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        """What the recurrence reads at each step."""

    @abstractmethod
    def advance(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: next state, and what `output` reads."""

    @abstractmethod
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        """The layer's output."""

    def initial_state(self, batch: int) -> State:
        h = self.initial_h(batch)
        if self.conv1d is None:
            return (h,)
        channels, _, kernel_size = self.conv1d.weight.shape
        return h.new_zeros(batch, channels, kernel_size - 1), h

    def forward(self, x: Tensor, lengths: None = None) -> Tensor:
        if lengths is not None:
            raise HsvError("an exported model takes sequences without padding: leave `lengths` out")
        u, rest = self.project(x)
        if self.conv1d is not None:
            u = functional.silu(self.conv1d(u.mT)[..., : u.shape[1]].mT)
        return self.output(_scan(self.advance, self.initial_h(x.shape[0]), self.signals(u, rest)), u, rest)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        *last, h = state
        u, rest = self.project(x_t)
        if self.conv1d is not None:
            window = torch.cat([last[0], u[..., None]], -1)
            u = (window * self.conv1d.weight[:, 0]).sum(-1)
            u = functional.silu(u if self.conv1d.bias is None else u + self.conv1d.bias)
            last = [window[..., 1:]]
        h, y = self.advance(h, *self.signals(u, rest))
        return self.output(y, u, rest), (*last, h)


def _parts(z: Tensor) -> Tensor:
    """Real and imaginary part along a last axis; real numbers as they are."""
    return torch.view_as_real(z.resolve_conj()) if z.is_complex() else z


def _times(factor: tuple[Tensor, Tensor | None], h: Tensor) -> Tensor:
    """The product of two complex numbers as pairs, or of two real ones; `factor` is made by `_factor`."""
    stay, turn = factor
    return stay * h if turn is None else stay * h + turn * h.flip(-1)


def _factor(real: Tensor, imaginary: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if imaginary is None:
        return real, None
    return real[..., None], torch.stack([-imaginary, imaginary], -1)


def _system(layer: nn.Module) -> hsv.DiagonalStateSpace:
    """The discrete system of a time-invariant layer, in double precision."""
    system = adapter_of(layer).system(layer)
    assert system is not None
    return system


class _TimeInvariant(_Plain):
    """Constant poles; a bidirectional layer has output maps for both directions."""

    poles_real: Tensor
    poles_imag: Tensor | None
    D: Tensor

    def __init__(self, layer: LRU | S5 | S4D) -> None:
        super().__init__()
        poles = _system(layer).poles()
        self.constant("poles_real", poles.real)
        self.constant("poles_imag", poles.imag if poles.is_complex() else None)
        self.constant("D", layer.D)
        self.bidirectional = bool(getattr(layer, "bidirectional", False))

    @override
    def initial_h(self, batch: int) -> Tensor:
        parts = () if self.poles_imag is None else (2,)
        return self.D.new_zeros(batch, *self.poles_real.shape, *parts)

    @override
    def project(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, None

    @override
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        refuse_steps_of_a_bidirectional_layer(self.bidirectional)
        return super().step(x_t, state)

    def next_state(self, h: Tensor, drive: Tensor) -> Tensor:
        return _times(_factor(self.poles_real, self.poles_imag), h) + drive


class _Diagonal(_TimeInvariant):
    """One system with all channels as inputs and outputs: products of matrices around the recurrence. State ``(batch, n, 2)``."""

    write: Tensor  # (d_model, 2n)
    read: Tensor  # (2n, d_model), or twice as many columns

    def __init__(self, layer: LRU | S5) -> None:
        super().__init__(layer)
        system = _system(layer)
        self.constant("write", _parts(system.B).transpose(1, 2).flatten(0, 1).mT)
        self.constant("read", _parts(system.C.conj()).flatten(1).mT)  # Re(C h) = Re C Re h - Im C Im h

    @override
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        return ((u @ self.write).unflatten(-1, (-1, 2)),)

    @override
    def advance(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        h = self.next_state(h, *signals)
        return h, h

    @override
    def forward(self, x: Tensor, lengths: None = None) -> Tensor:
        y = super().forward(x, lengths)
        if self.bidirectional:
            backward = _scan(self.advance, self.initial_h(x.shape[0]), self.signals(x.flip(1), None)).flip(1)
            y = y + backward.flatten(-2) @ self.read[:, self.D.shape[0] :]
        return y

    @override
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        return y.flatten(-2) @ self.read[:, : self.D.shape[0]] + self.D * u


class _Channels(_TimeInvariant):
    """A system for each channel. State ``(batch, d_model, n, 2)``, or ``(batch, d_model, n)`` with real poles."""

    write: Tensor
    read: Tensor
    read_backward: Tensor

    def __init__(self, layer: S4D) -> None:
        super().__init__(layer)
        system = _system(layer)
        self.constant("write", _parts(system.B[..., 0]))
        # The system of both directions has a factor that its error bound needs.
        maps = system.C.conj() / (2**0.5 if layer.bidirectional else 1)
        self.constant("read", _parts(maps[:, 0]))
        if layer.bidirectional:
            self.constant("read_backward", _parts(maps[:, 1]))

    def drive(self, u_t: Tensor) -> Tensor:
        return u_t[..., None] * self.write if self.poles_imag is None else u_t[..., None, None] * self.write

    def seen(self, h: Tensor, read: Tensor) -> Tensor:
        return (h * read).sum(-1 if self.poles_imag is None else (-1, -2))

    @override
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        return (u,)

    @override
    def advance(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        h = self.next_state(h, self.drive(*signals))
        return h, self.seen(h, self.read)

    def advance_backward(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the state before the step is written: the other direction has the step itself."""
        return self.next_state(h, self.drive(*signals)), self.seen(h, self.read_backward)

    @override
    def forward(self, x: Tensor, lengths: None = None) -> Tensor:
        y = super().forward(x, lengths)
        if self.bidirectional:
            y = y + _scan(self.advance_backward, self.initial_h(x.shape[0]), (x.flip(1),)).flip(1)
        return y

    @override
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        return y + self.D * u


class _PlainMamba(_Plain):
    """State ``(batch, d, n)``, or ``(batch, d, n, 2)`` after a cut that made the poles complex."""

    state_names: ClassVar[tuple[str, ...]] = ("window", "state")

    A_real: Tensor
    A_imag: Tensor | None
    B_transform: Tensor | None
    C_transform: Tensor
    D: Tensor

    def __init__(self, layer: Mamba) -> None:
        super().__init__(layer.conv1d)
        self.in_proj, self.x_proj, self.dt_proj, self.out_proj = (
            copy.deepcopy(module) for module in (layer.in_proj, layer.x_proj, layer.dt_proj, layer.out_proj)
        )
        self.sizes = [layer.dt_rank, layer.n_features, layer.n_features]
        self.constant("A_real", -layer.A_log.double().exp())
        self.constant("D", layer.D)
        self.constant("A_imag", layer.A_imag)
        write, read = (None if t is None else t.movedim(2, 0) for t in (layer.B_transform, layer.C_transform))
        if read is not None and layer.A_imag is not None:
            read = read * read.new_tensor([1, -1])  # the real part of a product
        self.constant("B_transform", write)
        self.constant("C_transform", read)

    @override
    def initial_h(self, batch: int) -> Tensor:
        parts = () if self.A_imag is None else (2,)
        return self.D.new_zeros(batch, *self.A_real.shape, *parts)

    @override
    def project(self, x: Tensor) -> tuple[Tensor, Any]:
        u, z = self.in_proj(x).chunk(2, -1)
        return u, z

    @override
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        dt, B, C = self.x_proj(u).split(self.sizes, -1)
        delta = functional.softplus(self.dt_proj(dt))
        if self.B_transform is not None:
            B, C = (
                (t @ transform.flatten(1)).unflatten(-1, transform.shape[1:])
                for t, transform in ((B, self.B_transform), (C, self.C_transform))
            )
        return delta, delta * u, B, C

    @override
    def advance(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        delta, drive, write, read = signals
        decay = (delta[..., None] * self.A_real).exp()
        if self.B_transform is None:
            h = decay * h + drive[..., None] * write[:, None]
            return h, (h @ read[..., None]).squeeze(-1)
        if self.A_imag is None:
            h = decay * h + drive[..., None] * write
            return h, (h * read).sum(-1)
        angle = delta[..., None] * self.A_imag
        h = _times(_factor(decay * angle.cos(), decay * angle.sin()), h) + drive[..., None, None] * write
        return h, (h * read).sum((-1, -2))

    @override
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        y = self.out_proj((y + self.D * u) * functional.silu(rest))
        return y


class _Attention(_Plain):
    """``S = decay S + k v^T``, ``y = S^T q`` in each head. State ``(batch, heads, n, head_dim)``."""

    @override
    def advance(self, h: Tensor, *signals: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, decay = signals  # (batch, heads, n), likewise, (batch, heads, p), (batch, heads, n or 1)
        h = decay[..., None] * h + k[..., None] * v[..., None, :]
        return h, (q[..., None, :] @ h).squeeze(-2)


class _PlainMamba2(_Attention):
    state_names: ClassVar[tuple[str, ...]] = ("window", "state")

    A: Tensor
    B_transform: Tensor | None
    C_transform: Tensor
    D: Tensor

    def __init__(self, layer: Mamba2) -> None:
        super().__init__(layer.conv1d)
        self.in_proj, self.norm, self.out_proj = (
            copy.deepcopy(module) for module in (layer.in_proj, layer.norm, layer.out_proj)
        )
        self.sizes, self.n_states, self.share = layer.sizes, layer.n_states, layer.n_heads // layer.n_groups
        self.constant("A", -layer.A_log.double().exp())
        self.constant("D", layer.D[:, None])
        self.constant("dt_bias", layer.dt_bias)
        self.constant("B_transform", None if layer.B_transform is None else layer.B_transform.mT)
        self.constant("C_transform", None if layer.C_transform is None else layer.C_transform.mT)

    @override
    def initial_h(self, batch: int) -> Tensor:
        return self.A.new_zeros(batch, self.sizes.n_heads, self.n_states, self.sizes.head_dim)

    @override
    def project(self, x: Tensor) -> tuple[Tensor, Any]:
        _, _, z, u, dt = self.in_proj(x).split(self.sizes.split, -1)
        return u, (z, step_sizes(self, self.sizes, dt))

    @override
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        values, B, C = split_heads(u, self.sizes)
        if self.B_transform is not None:
            B, C = ((t[..., None, :] @ m).squeeze(-2) for t, m in ((B, self.B_transform), (C, self.C_transform)))
        _, delta = rest
        return self._of_heads(C), self._of_heads(B), delta[..., None] * values, (delta * self.A).exp()[..., None]

    def _of_heads(self, t: Tensor) -> Tensor:
        """From ``(..., groups, n)`` to ``(..., heads, n)``."""
        shape = (*t.shape[:-1], self.share, t.shape[-1])
        return t if self.share == 1 else t[..., None, :].expand(shape).flatten(-3, -2)

    @override
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        values, _, _ = split_heads(u, self.sizes)
        y = self.out_proj(self.norm((y + self.D * values).flatten(-2), rest[0]))
        return y


class _PlainAttention(_Attention):
    def __init__(self, layer: GatedLinearAttention) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)

    @override
    def initial_h(self, batch: int) -> Tensor:
        return self.layer.initial_state(batch)

    @override
    def project(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, None

    @override
    def signals(self, u: Tensor, rest: Any) -> tuple[Tensor, ...]:
        q, k, v, log_decay = self.layer._projections(u)
        decay = log_decay.exp()
        return q, k, v, decay if self.layer.decay == "key" else decay[..., None]

    @override
    def output(self, y: Tensor, u: Tensor, rest: Any) -> Tensor:
        return self.layer._outputs(u, y)


_PLAIN: dict[type[nn.Module], Callable[[Any], _Plain]] = {
    LRU: _Diagonal,
    S5: _Diagonal,
    S4D: _Channels,
    Mamba: _PlainMamba,
    Mamba2: _PlainMamba2,
    GatedLinearAttention: _PlainAttention,
}


class _PlainModel(nn.Module):
    """A sequence model of plain layers, without the checks of its input, which depend on its values."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        hidden = model.encoder(x)
        for block in model._blocks():
            hidden = block(hidden, None, None)
        if model.norm is not None:
            hidden = model.norm(hidden, None)
        y: Tensor = model.head(hidden if model.config.head == "language_model" else model._pool(hidden, None, None))
        return y

    def initial_state(self, batch: int) -> tuple[State, ...]:
        return self.model.initial_state(batch)

    def step(self, x_t: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        model = self.model
        hidden, new = model.encoder(x_t), []
        for block, old in zip(model._blocks(), state, strict=True):
            hidden, after = block.step(hidden, old)
            new.append(after)
        if model.norm is not None:
            hidden = model.norm(hidden[:, None], None)[:, 0]
        return model.head(hidden), tuple(new)


def plain_copy(model: nn.Module) -> nn.Module:
    r"""Return a copy for inference in which every layer of this package computes :math:`h_t = \lambda \odot h_{t-1} + \dots` in standard operations on real numbers.

    Complex numbers become pairs: a state :math:`a + i b` is :math:`(a, b)` along a last axis, as in :func:`torch.view_as_real`, and :math:`\lambda h` is two
    real products. None of the package's operators is left, so that `torch.export` of the copy holds nothing but PyTorch's own operations, for programs that know
    no others. What depends on parameters alone is computed here, in float64, and rounded once. A model is copied as it is now: after a cut with its present sizes.

    The copy is made to be exported. It can be called, for comparison: over a sequence that is a loop in Python.

    Parameters
    ----------
    model : nn.Module
        A :class:`hsv_torch.SequenceModel`, a layer, or any module with such layers inside. In float32. It is not changed.

    Returns
    -------
    nn.Module
        In evaluation mode, on the model's device. ``forward(x)`` takes sequences without padding; ``step`` and ``initial_state`` are there if the model has them, and a layer's
        state is a tuple: ``(state,)``, or ``(window, state)`` with a convolution. ``state`` has the layer's own axes, and one of length 2 at the end if it was complex.

    Raises
    ------
    hsv.HsvError
        A layer of a subclass, whose computation is not known here.
    hsv.DtypeError
        A parameter or buffer is in another precision than float32.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.LRU(d_model=3, n_states=5)
    >>> plain = hsv_torch.plain_copy(layer)
    >>> x = torch.randn(2, 7, 3)
    >>> bool(torch.allclose(plain(x), layer(x), atol=1e-5))
    True
    >>> [tuple(part.shape) for part in plain.initial_state(batch=2)]
    [(2, 5, 2)]
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise DtypeError(
                f"a model is exported in float32, and {name!r} is {tensor.dtype}: export `copy.deepcopy(model).float()`"
            )
    plain: dict[int, Any] = {}
    with torch.no_grad():
        for name, layer in model.named_modules():
            if _known(layer):
                plain[id(layer)] = _plain_layer(name, layer)
        copied: nn.Module = copy.deepcopy(model, plain)
    if isinstance(copied, SequenceModel):
        copied = _PlainModel(copied)
    return copied.eval().requires_grad_(False)


def _known(layer: nn.Module) -> bool:
    return isinstance(layer, tuple(_PLAIN))


def _plain_layer(name: str, layer: nn.Module) -> _Plain:
    if type(layer) not in _PLAIN:
        base = next(known for known in _PLAIN if isinstance(layer, known))
        raise HsvError(
            f"the layer {name or 'given'!r} is a {type(layer).__qualname__}, a subclass of {base.__name__}, and may compute something else: replace it by a "
            f"{base.__name__} with the same `state_dict` if it does not"
        )
    return _PLAIN[type(layer)](layer)


class StepModule(nn.Module):
    r"""A module whose ``forward`` is one step of a model, with the parts of its state one after the other: what `torch.export` takes.

    .. math:: (x_t, s_1, s_2, \dots) \mapsto (y_t, s'_1, s'_2, \dots)

    Parameters
    ----------
    model : nn.Module
        A layer, a language model, a :func:`hsv_torch.plain_copy` of one, or a module with methods ``step`` and ``initial_state`` like theirs.

    Raises
    ------
    hsv.HsvError
        The model has no step: a classifier pools over the whole sequence, a bidirectional layer reads it from its end.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> module = hsv_torch.StepModule(hsv_torch.LRU(d_model=3, n_states=5))
    >>> y_t, state = module(torch.zeros(2, 3), *module.initial_state(batch=2))
    >>> y_t.shape, state.shape
    (torch.Size([2, 3]), torch.Size([2, 5]))
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not (callable(getattr(model, "step", None)) and callable(getattr(model, "initial_state", None))):
            raise HsvError(
                f"a {type(model).__qualname__} has no methods `step` and `initial_state`: export it over whole sequences, or give it both, built from those "
                "of its layers"
            )
        for module in model.modules():
            refuse_steps_of_a_bidirectional_layer(bool(getattr(module, "bidirectional", False)))
        self.model = model
        self.train(model.training)
        self._structure = pytree.tree_structure(self.model.initial_state(1))

    def initial_state(self, batch: int) -> list[Tensor]:
        """Return the parts of the state before the first step."""
        return pytree.tree_leaves(self.model.initial_state(batch))

    def forward(self, x_t: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map an input and the parts of a state to the output and the parts of the next state."""
        y_t, new = self.model.step(x_t, pytree.tree_unflatten(list(state), self._structure))
        return y_t, *pytree.tree_leaves(new)

    @property
    def state_names(self) -> list[str]:
        """A name for each part of the state: ``state`` and ``window`` of a layer, after the block that it belongs to; in other modules numbers."""
        if isinstance(self.model, _Plain):
            return list(self.model.state_names)
        if isinstance(self.model, _PlainModel):
            layers = [block.layer for block in self.model.model._blocks()]
            return [f"blocks.{i}.{name}" for i, layer in enumerate(layers) for name in layer.state_names]
        return [f"state.{i}" for i in range(self._structure.num_leaves)]


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], example: Tensor | None = None, *, opset: int | None = None
) -> None:
    r"""Write an ONNX file that maps whole sequences ``x`` to ``y``; batch and length are free.

    Every layer's recurrence :math:`h_t = f(h_{t-1}, x_t)` is an ONNX ``Scan`` over time; what surrounds it is done for all steps at once. Nothing but standard operations
    in float32, with complex numbers as pairs (:func:`hsv_torch.plain_copy`).

    Parameters
    ----------
    model : nn.Module
        As for :func:`hsv_torch.plain_copy`. Dropout is off and batch statistics are the stored ones.
    path
        The file; above 1 GiB the parameters stand in a second file beside it, with ``.data`` after its name.
    example : Tensor, optional
        An input ``(batch, length, ...)`` of any size; only needed for a model that is neither a :class:`hsv_torch.SequenceModel` nor a layer.
    opset : int, optional
        Version of the operator set; PyTorch's choice by default.

    Raises
    ------
    hsv.HsvError
        As :func:`hsv_torch.plain_copy`; or PyTorch finds no ONNX form of the model.
    hsv.MissingBackendError
        onnx and onnxscript are not installed: ``pip install hsv-control[export]``.

    Notes
    -----
    The states of one step are in memory for Mamba, Mamba-2, S4D and gated linear attention, those of all steps for LRU and S5. A ``Scan`` runs its steps one after the other, each with the
    overhead of a few operators: ``python -m asv_benchmarks.step_mode --sequence 256`` found a quarter to a half of the time of as many calls of an :func:`export_onnx_step`, and
    1.2 to 2.1 times that of this package's own kernels.

    Examples
    --------
    >>> import hsv_torch
    >>> layer = hsv_torch.LRU(d_model=3, n_states=5)
    >>> hsv_torch.export_onnx(layer, "layer.onnx")  # doctest: +SKIP
    """
    from torch.export import Dim

    plain = plain_copy(model)
    if example is None:
        example = _example(model, length=2)
    elif example.ndim < 2 or example.numel() == 0:
        raise ShapeError(f"`example` must be (batch, length, ...) and not empty, got {tuple(example.shape)}")
    for axis in (0, 1):  # a length of 1 would be taken for a constant
        example = torch.cat([example, example], axis) if example.shape[axis] == 1 else example
    sizes = {0: Dim("batch"), 1: Dim("length")}
    _write(plain, (example,), path, dynamic_shapes=(sizes,), input_names=["x"], output_names=["y"], opset=opset)


def export_onnx_step(
    model: nn.Module, path: str | os.PathLike[str], example: Tensor | None = None, *, opset: int | None = None
) -> dict[str, tuple[int, ...]]:
    r"""Write an ONNX file of one step :math:`(x_t, s) \mapsto (y_t, s')`; the batch is free.

    Its inputs are ``x_t`` and the parts of the state, its outputs ``y_t`` and the next state, in the same order, each with ``next.`` before its name. A layer has the part ``state``, and one with a convolution ``window`` before it:
    its last inputs. In a :class:`hsv_torch.SequenceModel` they are called ``blocks.0.state`` and so on. A state that is complex in PyTorch is a
    pair of real numbers along a last axis, ``torch.view_as_real(state)``.

    Parameters
    ----------
    model : nn.Module
        As for :func:`hsv_torch.plain_copy`; with a step: a layer that is not bidirectional, a language model, or a module with ``step`` and ``initial_state``.
    path
        As for :func:`hsv_torch.export_onnx`.
    example : Tensor, optional
        An input ``(batch, ...)`` of one step; as for :func:`hsv_torch.export_onnx`.
    opset : int, optional
        As for :func:`hsv_torch.export_onnx`.

    Returns
    -------
    dict
        The shape of each part of the state, without its batch axis. All begin at 0.

    Raises
    ------
    hsv.HsvError, hsv.MissingBackendError
        As :func:`hsv_torch.export_onnx`; or the model has no step.

    Examples
    --------
    >>> import hsv_torch
    >>> layer = hsv_torch.Mamba(d_model=4, n_states=8)
    >>> hsv_torch.export_onnx_step(layer, "layer.onnx")  # doctest: +SKIP
    {'window': (8, 3), 'state': (8, 8)}
    """
    from torch.export import Dim

    module = StepModule(plain_copy(model))
    if example is None:
        example = _example(model, length=None)
    elif example.ndim < 1 or example.numel() == 0:
        raise ShapeError(f"`example` must be (batch, ...) and not empty, got {tuple(example.shape)}")
    example = torch.cat([example, example]) if example.shape[0] == 1 else example
    state, names = module.initial_state(example.shape[0]), module.state_names
    _write(
        module,
        (example, *state),
        path,
        dynamic_shapes=({0: Dim("batch")}, tuple({0: Dim.AUTO} for _ in state)),
        input_names=["x_t", *names],
        output_names=["y_t", *(f"next.{name}" for name in names)],
        opset=opset,
    )
    return {name: tuple(part.shape[1:]) for name, part in zip(names, state, strict=True)}


def _example(model: nn.Module, *, length: int | None) -> Tensor:
    """An input of a model that says what its inputs are: two sequences, or two steps."""
    device = next(model.parameters()).device
    axes = (2,) if length is None else (2, length)
    if isinstance(model, SequenceModel):
        if model.config.n_inputs is None:
            return torch.zeros(axes, dtype=torch.int64, device=device)
        return torch.zeros(*axes, model.config.n_inputs, device=device)
    if _known(model):
        return torch.zeros(*axes, int(model.d_model), device=device)  # type: ignore[arg-type]
    raise HsvError(
        f"what a {type(model).__qualname__} takes is not known: pass `example`, an input {'(batch, ...)' if length is None else '(batch, length, ...)'}"
    )


def _write(
    module: nn.Module, arguments: tuple[Tensor, ...], path: str | os.PathLike[str], *, opset: int | None, **names: Any
) -> None:
    for package in ("onnx", "onnxscript"):
        required_package(package, "hsv-control[export]")
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    n_bytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    with warnings.catch_warnings():
        # PyTorch warns of its own use of its own classes.
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            program = torch.onnx.export(module, arguments, dynamo=True, opset_version=opset, verbose=False, **names)
        except torch.onnx.OnnxExporterError as error:
            raise HsvError(
                f"PyTorch finds no ONNX form of this {type(getattr(module, 'model', module)).__qualname__}: a module in it has operations that ONNX lacks, or depends on the values or on the "
                f"sizes of its input; its own message: {error}"
            ) from error
    assert program is not None
    RemoveUnusedNodesPass()(program.model)  # constants that PyTorch leaves behind, of which onnxruntime warns
    program.save(path, external_data=n_bytes > LARGEST_FILE)
