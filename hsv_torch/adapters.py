"""How a layer shows its system and takes a smaller one, and the registry that knows which adapter serves which layer.

Nothing else in the package names a layer type. To join with a layer of your own, subclass :class:`LayerAdapter` and put
:func:`register_adapter` above it.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import hsv
from hsv_torch.criteria import ComplexHankel, Criterion, DiagonalCriterion

Replaced: TypeAlias = Mapping[str, tuple[nn.Parameter | None, nn.Parameter | None]]
"""Old and new parameters by name; None where there was none before, or is none any more."""


@dataclass(frozen=True)
class Cut:
    """A planned reduction of one layer: nothing has changed yet.

    Attributes
    ----------
    n_states_before, n_states_after : int
        What ``layer.n_states`` is before and after.
    order : int
        Order of the truncated system; differs from `n_states_after` where a conjugate pair takes one state of the layer.
    hankel_singular_values : numpy.ndarray
        The values that the rule chose by, descending, float64, ``(n,)``, or ``(channels, n)`` where a layer has a system a channel. Hankel singular
        values of the system that was truncated; where a layer's system depends on its input, the scores that stand in for them (`notes` say so).
    error_bound : float
        H-infinity bound of the change of the layer's output for a given input, ``inf`` where theory has none.
    eigenvector_condition : float
        Of the reduced state matrix; the layer's new parameters lose about that many digits.
    notes : tuple of str
        What was unusual: a capped order, a clipped pole.
    payload : object
        What the adapter needs to write the smaller system and to carry moments; private to it.
    """

    n_states_before: int
    n_states_after: int
    order: int
    hankel_singular_values: np.ndarray = field(repr=False)
    error_bound: float
    eigenvector_condition: float
    notes: tuple[str, ...]
    payload: Any = field(repr=False)


class Observation(abc.ABC):
    """What a layer's calls on calibration data have shown of it, so far. Its size does not grow with the data."""

    @abc.abstractmethod
    def update(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take in one call of the layer, with the arguments of its ``forward``; without gradients, in evaluation mode.

        Raises
        ------
        hsv.HsvError
            The arguments cannot be used (NaN in one sequence, nothing but padding); the observation is as it was before.
        """


class LayerAdapter(abc.ABC):
    """Speaks for one type of layer. Stateless: one instance serves all layers of its type.

    A cut runs ``reduce`` (plans, changes nothing), ``apply`` (new parameters in place), ``pull_back`` (moments of the optimizer). Where the
    layer's system depends on its input (``needs_data``), ``observe`` comes first.
    """

    layer_type: ClassVar[type[nn.Module]]
    recurrent_parameters: ClassVar[tuple[str, ...]]
    """Names of the parameters that make the recurrence: trained with a smaller step and without weight decay."""
    criterion_type: ClassVar[type[Criterion]] = DiagonalCriterion
    """The kind of criterion that `reduce` takes."""
    needs_data: ClassVar[bool] = False
    """Whether the layer's system depends on its input, so that a cut is planned from calls on calibration data."""

    def default_criterion(self, layer: Any) -> Criterion:
        """Return the criterion that is used if the user names none."""
        return ComplexHankel()

    @abc.abstractmethod
    def n_states(self, layer: Any) -> int:
        """Return the number of states, as ``layer.n_states`` counts them."""

    @abc.abstractmethod
    def parameter_names(self, layer: Any) -> tuple[str, ...]:
        """Return the names, inside the layer, of the parameters whose shape depends on the number of states."""

    @abc.abstractmethod
    def system(self, layer: Any) -> hsv.DiagonalStateSpace | None:
        """Return the layer's system ``(A, B, C)`` in double precision, detached; the skip term ``D u`` stays in the layer.

        None where the system depends on the layer's input.
        """

    def differentiable_system(self, layer: Any) -> hsv.DiagonalStateSpace | None:
        """Return the same system as tensors with the graph of the layer's parameters, for :func:`hsv_torch.hankel_penalty`; None as in `system`.

        Raises
        ------
        hsv.HsvError
            The adapter does not say how its system depends on the parameters.
        """
        if self.needs_data:
            return None
        raise hsv.HsvError(
            f"{type(self).__name__} does not say how the system of {type(layer).__name__} depends on its parameters; give it a `differentiable_system`"
        )

    def observe(self, layer: Any, criterion: Criterion) -> Observation:
        """Return an empty observation of what `criterion` needs to know; only for layers that need data."""
        raise NotImplementedError(f"{type(self).__name__} says needs_data = {self.needs_data} and has no `observe`")

    @abc.abstractmethod
    def reduce(
        self, layer: Any, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        """Plan a cut; the layer does not change.

        `observation` is what `observe` made and the calls on calibration data filled; None where the layer needs no data.

        Raises
        ------
        CutRefusedError
            The layer cannot take the smaller system; the message says why.
        hsv.HsvError
            The layer's system is unstable or not finite, or no order meets the rule.
        """

    @abc.abstractmethod
    def apply(self, layer: Any, cut: Cut) -> Replaced:
        """Put new parameters in place and return ``{name inside the layer: (old, new)}``.

        Old is None for a parameter that the layer did not have before, new for one that it has no more; see :func:`put_parameters`.
        """

    @abc.abstractmethod
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        r"""Carry gradient-like quantities from the old parameters to the new ones.

        With the old parameters of the kept part written as a function :math:`p = g(p_r)` of the new ones, a gradient, and so a first
        moment, becomes :math:`m_r = (\partial g/\partial p_r)^T m`; with ``squared=True`` the element-wise square of the
        Jacobian carries second moments, approximately.

        Parameters
        ----------
        cut : Cut
        covectors : mapping
            One tensor for each of :meth:`parameter_names`, of the old shapes; for a complex parameter a complex one, with the covectors of
            its real and imaginary part.
        squared : bool

        Returns
        -------
        dict
            One tensor for each name, of the new shapes, in the dtype of the old.
        """

    def form(self, layer: Any) -> dict[str, int]:
        """Return the sizes beside the number of states that `resize` must know to rebuild the layer's parameters."""
        return {}

    @abc.abstractmethod
    def resize(self, layer: Any, n_states: int, **form: int) -> Replaced:
        """Put parameters of another size in place, values unset, for loading; returns ``{name: (old, new)}`` as `apply` does."""


AdapterT = TypeVar("AdapterT", bound=LayerAdapter)

_registry: dict[type[nn.Module], LayerAdapter] = {}


def register_adapter(layer_type: type[nn.Module]) -> Callable[[type[AdapterT]], type[AdapterT]]:
    """Class decorator: the adapter serves `layer_type` and its subclasses.

    Raises
    ------
    hsv.HsvError
        The type has an adapter already.
    """

    def register(adapter: type[AdapterT]) -> type[AdapterT]:
        if layer_type in _registry:
            raise hsv.HsvError(
                f"{layer_type.__name__} is registered already, with {type(_registry[layer_type]).__name__}"
            )
        adapter.layer_type = layer_type
        _registry[layer_type] = adapter()
        return adapter

    return register


def registered_layer_types() -> tuple[type[nn.Module], ...]:
    """Return every layer type that can be compressed."""
    return tuple(_registry)


def find_adapter(layer: nn.Module) -> LayerAdapter | None:
    """Return the adapter of the layer's type, or of its nearest base class; None if there is none."""
    for base in type(layer).__mro__:
        if base in _registry:
            return _registry[base]
    return None


def adapter_of(layer: nn.Module) -> LayerAdapter:
    """Return the adapter of the layer.

    Raises
    ------
    hsv.HsvError
        The layer's type has none.
    """
    adapter = find_adapter(layer)
    if adapter is None:
        known = ", ".join(sorted(t.__name__ for t in _registry)) or "none"
        raise hsv.HsvError(
            f"{type(layer).__name__} has no adapter (registered: {known}); see hsv_torch.register_adapter"
        )
    return adapter


def compressible_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have an adapter by their dotted names; a layer that stands in several places is named once."""
    return {name: module for name, module in model.named_modules() if find_adapter(module) is not None}


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Where the caller is under ``torch.inference_mode()``, whose tensors can never be trained, put ``torch.no_grad()`` in its place."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # the first alone would turn gradients on
        yield


def why_no_parameter(module: nn.Module, leaf: str, of: str) -> str | None:
    """Why a new parameter cannot stand under the name `leaf` of a module, which the reader knows as `of`, and what to do; None if it can."""
    if leaf in module._parameters:
        return None
    if leaf in getattr(module, "parametrizations", ()):
        return f"is parametrized, which a cut would not survive: call torch.nn.utils.parametrize.remove_parametrizations({of}, {leaf!r}) first"
    if f"{leaf}_mask" in module._buffers:
        return f"is pruned, which a cut would not survive: call torch.nn.utils.prune.remove({of}, {leaf!r}) first"
    for kind, rest in (("weight_norm", f"{leaf}_g"), ("spectral_norm", f"{leaf}_orig")):
        if rest in module._parameters:
            return f"is computed by {kind}, which a cut would not survive: call torch.nn.utils.remove_{kind}({of}, {leaf!r}) first"
    if not hasattr(module, leaf):
        return f"is missing in this {type(module).__name__}, of which the adapter serves another form: choose `layers` without it"
    return f"is no parameter of the {type(module).__name__} (a {type(getattr(module, leaf, None)).__name__}): make it one, nn.Parameter, before the cut"


def put_parameters(layer: nn.Module, tensors: Mapping[str, Tensor | None]) -> Replaced:
    """Put new parameters with these values in place; they keep dtype, device and ``requires_grad`` of the old ones.

    New objects, not new ``.data``: autograd remembers the shape of a parameter. Under a name that stands for None so far (``register_parameter(name,
    None)``) a new parameter appears, with dtype and device of its tensor; it requires a gradient if one of the parameters that are replaced along with it does. The
    value None takes a parameter away. Under ``torch.inference_mode()`` too the new parameters can be trained.

    Raises
    ------
    hsv.HsvError
        A name is none of a parameter: it is parametrized or pruned, say.
    """
    before: dict[str, nn.Parameter | None] = {}
    for name in tensors:
        owner, _, leaf = name.rpartition(".")
        module = layer.get_submodule(owner)
        reason = why_no_parameter(module, leaf, f"layer.get_submodule({owner!r})" if owner else "layer")
        if reason is not None:
            raise hsv.HsvError(f"{name!r} of the {type(layer).__name__} {reason}")
        before[name] = module._parameters[leaf]
    flags = [old.requires_grad for old in before.values() if old is not None]
    replaced: dict[str, tuple[nn.Parameter | None, nn.Parameter | None]] = {}
    with outside_inference_mode():
        for name, value in tensors.items():
            old = before[name]
            new: nn.Parameter | None = None
            if value is not None:
                values = value.detach() if old is None else value.detach().to(device=old.device, dtype=old.dtype)
                new = nn.Parameter(values.clone(), any(flags) or not flags if old is None else old.requires_grad)
            if old is not None or new is not None:
                replaced[name] = (old, new)
    for name, (_, new) in replaced.items():
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, new)
    return replaced
