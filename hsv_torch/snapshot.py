"""What training can be put back to: which tensors stood where, their values, and the state of everything around them."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hsv
from hsv import HsvError
from hsv_torch.sharding import Records, joined, local, part_of, parts_of_model, parts_of_state, reshard


def _same_containers(value: Any) -> Any:
    """Copies of the containers, the same leaves."""
    if isinstance(value, dict):
        return {key: _same_containers(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_same_containers(item) for item in value)
    return value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def deep_copy(value: Any) -> Any:
    """A copy that shares nothing; tensors are detached and cloned on their device."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict) and type(value).__init__ is dict.__init__:
        return {key: deep_copy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(deep_copy(item) for item in value)
    return copy.deepcopy(value)


def _numpy_state() -> tuple[Any, ...]:
    # The global generator is the legacy one: data loaders and augmentations of others draw from it.
    return np.random.get_state(legacy=True)  # type: ignore[return-value]  # noqa: NPY002


@dataclass(frozen=True)
class RandomState:
    """The states of the global random generators of Python, NumPy and torch (each CUDA device too, once in use)."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def take(cls) -> RandomState:
        """The states as they are now."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(random.getstate(), _numpy_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors only, as `torch.load(weights_only=True)` accepts them."""
        kind, keys, *rest = self.numpy
        numpy_state = [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest]
        return {"python": self.python, "numpy": numpy_state, "torch": self.torch, "cuda": list(self.cuda)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RandomState:
        """The inverse of :meth:`state_dict`."""
        kind, keys, *rest = state["numpy"]
        version, words, gauss = state["python"]
        numpy_state = (kind, keys.numpy().astype(np.uint32), *rest)
        return cls((version, tuple(words), gauss), numpy_state, state["torch"], tuple(state["cuda"]))


class Placement:
    """Which parameters and buffers stand where, in the model and in the optimizer. References only: nothing is copied.

    Putting it back gives every place its old tensor *object*, so that references held elsewhere are valid again. Plain
    attributes are put back for `layers` alone, because a cut may change them (a stored number of states, say).
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, layers: Iterable[nn.Module] = ()
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.records = Records(model)
        self.modules = [
            (name, module, dict(module._parameters), dict(module._buffers)) for name, module in model.named_modules()
        ]
        inside = {id(part): part for layer in layers for part in layer.modules()}
        containers = ("_parameters", "_buffers", "_modules")
        self.attributes = [
            (part, {key: value for key, value in part.__dict__.items() if key not in containers})
            for part in inside.values()
        ]
        self.groups: list[dict[str, Any]] = []
        self.states: dict[Tensor, dict[str, Any]] = {}
        if optimizer is not None:
            self.groups = [
                {key: _same_containers(value) for key, value in group.items()} for group in optimizer.param_groups
            ]
            self.states = {parameter: _same_containers(state) for parameter, state in optimizer.state.items()}

    def restore(self) -> None:
        """Put every tensor back where it stood."""
        self.records.restore()
        for _, module, parameters, buffers in self.modules:
            _refill(module._parameters, parameters)
            _refill(module._buffers, buffers)
        for part, attributes in self.attributes:
            for key in set(part.__dict__) - set(attributes) - {"_parameters", "_buffers", "_modules"}:
                del part.__dict__[key]
            part.__dict__.update(attributes)
        if self.optimizer is not None:
            for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
                params = group["params"]
                params[:] = kept["params"]
                _refill(group, _same_containers(kept))
                group["params"] = params  # the same list object: some optimizers hold on to it
            _refill(self.optimizer.state, {key: _same_containers(state) for key, state in self.states.items()})


def _refill(target: dict[Any, Any], content: Mapping[Any, Any]) -> None:
    target.clear()
    target.update(content)


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, buffers and the optimizer's state, of what this process holds of them."""
    tensors = [*model.parameters(), *model.buffers(), *_tensors_in(list(optimizer.state.values()))]
    return sum(local(tensor).nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


@contextlib.contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run the model inside, without gradients: modes, buffers, parameters' places and random generators are put back after it."""
    random_state = RandomState.take()
    reshard(model)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, local(buffer).clone()) for buffer in model.buffers()]
    placement = Placement(model, None)
    try:
        with torch.no_grad():
            yield
    finally:
        placement.restore()
        with torch.no_grad():
            for buffer, value in buffers:
                local(buffer).copy_(value)
        for module, training in modes:
            module.training = training
        random_state.restore()


def keepable(value: object) -> bool:
    """Whether an object's state can be taken and put back: ``state_dict`` / ``load_state_dict``, or as torch.Generator."""
    return (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")) or (
        hasattr(value, "get_state") and hasattr(value, "set_state")
    )


@dataclass
class Snapshot:
    """Everything that a cut can be undone from, bit for bit. Costs one copy of model, buffers, gradients and moments, of what this process holds of them.

    Kept are: which tensor stands where, all values (parameters, buffers, gradients, optimizer state and options), the
    training mode of every module, the random generators, and the state of every object in `objects`.
    """

    placement: Placement
    values: list[tuple[Tensor, Tensor]]
    gradients: list[tuple[Tensor, Tensor | None]]
    modes: list[tuple[nn.Module, bool]]
    random: RandomState
    objects: Mapping[str, Any]
    object_states: dict[str, Any] = field(default_factory=dict)
    copies: list[Placement] = field(default_factory=list)

    @classmethod
    def take(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        layers: Iterable[nn.Module] = (),
        objects: Mapping[str, Any] | None = None,
        random_state: RandomState | None = None,
        copies: Iterable[nn.Module] = (),
        offload: bool = False,
    ) -> Snapshot:
        """The state as it is now (`random_state`: as it was earlier); `copies` are those of the objects whose layers are cut along.

        With `offload` all values are kept in the host's memory.
        """

        def kept(tensor: Tensor) -> Tensor:
            return local(tensor).to("cpu", copy=True) if offload else local(tensor).clone()

        placement = Placement(model, optimizer, layers)
        unique = {id(tensor): tensor for tensor in _placed_tensors(placement)}
        parameters = {id(p): p for _, _, held, _ in placement.modules for p in held.values() if p is not None}
        objects = dict(objects or {})
        return cls(
            placement=placement,
            values=[(tensor, kept(tensor)) for tensor in unique.values()],
            gradients=[(p, None if p.grad is None else kept(p.grad)) for p in parameters.values()],
            modes=[(module, module.training) for module in model.modules()],
            random=random_state or RandomState.take(),
            objects=objects,
            object_states={name: _object_state(value, offload) for name, value in objects.items()},
            copies=[Placement(copy, None, copy.modules()) for copy in copies],
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        self.placement.restore()
        for tensor, value in self.values:
            local(tensor).copy_(value)
        for parameter, gradient in self.gradients:
            if gradient is None:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = joined(gradient.to(parameter.device, copy=True), parameter)
            else:
                local(parameter.grad).copy_(gradient)
        for module, training in self.modes:
            module.training = training
        for placement in self.copies:
            placement.restore()
        for name, value in self.objects.items():
            _load_object_state(value, deep_copy(self.object_states[name]))
        self.random.restore()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the gradients, by names and positions, to be read back by :meth:`load_values`."""
        value_of = {id(tensor): joined(value, tensor) for tensor, value in self.values}

        def stored(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value_of.get(id(value), value)
            if isinstance(value, dict):
                return {key: stored(item) for key, item in value.items()}
            return type(value)(stored(item) for item in value) if type(value) in (list, tuple) else value

        places = _optimizer_places(self.placement)
        options = [
            {key: stored(value) for key, value in group.items() if key != "params"} for group in self.placement.groups
        ]
        return {
            "model": {name: value_of[id(tensor)] for name, tensor in _named_tensors(self.placement)},
            "options": options,
            "optimizer": {
                places[id(parameter)]: stored(state)
                for parameter, state in self.placement.states.items()
                if id(parameter) in places
            },
            "modes": [training for _, training in self.modes],
            "random": self.random.state_dict(),
            "objects": self.object_states,
        }

    def load_values(self, state: Mapping[str, Any]) -> None:
        """Make this snapshot of the same places hold the values of `state`, without touching the places.

        Raises
        ------
        HsvError
            The state is of another model or optimizer, or other objects are kept beside them; the snapshot is as it was.
        """
        named = dict(_named_tensors(self.placement))
        self._check_fits(named, state)
        values = {
            id(tensor): (tensor, local(part_of(deep_copy(state["model"][name]), tensor)).to(local(tensor)))
            for name, tensor in named.items()
        }
        random_state = RandomState.from_state_dict(state["random"])
        object_states = {
            name: parts_of_model(kept, self.objects[name].state_dict())
            if isinstance(self.objects[name], nn.Module)
            else kept
            for name, kept in deep_copy(dict(state["objects"])).items()
        }
        parameters = {place: held for held, place in _optimizer_places(self.placement, objects=True).items()}
        states = {
            parameters[place]: parts_of_state(deep_copy(kept), parameters[place])
            for place, kept in state["optimizer"].items()
        }
        self.values = list(values.values())
        self.gradients = [(parameter, None) for parameter, _ in self.gradients]
        self.placement.states = states
        for group, options in zip(self.placement.groups, state["options"], strict=True):
            group.update(deep_copy(options))
        self.modes = [(module, mode) for (module, _), mode in zip(self.modes, state["modes"], strict=True)]
        self.random = random_state
        self.object_states = object_states

    def _check_fits(self, named: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        if set(named) != set(state["model"]):
            differing = sorted(set(named) ^ set(state["model"]))
            raise HsvError(f"the stored state belongs to another model: it differs in {differing[:5]}")
        for name, tensor in named.items():
            if state["model"][name].shape != tensor.shape:
                raise HsvError(
                    f"the stored state belongs to another model: {name!r} has the shape {tuple(state['model'][name].shape)} there, and "
                    f"{tuple(tensor.shape)} here"
                )
        if set(self.objects) != set(state["objects"]):
            raise HsvError(
                f"the stored state has that of the objects {sorted(state['objects'])}, and `state` has {sorted(self.objects)}: give it the same ones"
            )
        unknown = set(state["optimizer"]) - set(_optimizer_places(self.placement).values())
        if len(state["options"]) != len(self.placement.groups) or unknown:
            raise HsvError(
                f"the stored state is of an optimizer of {len(state['options'])} groups, and this one has {len(self.placement.groups)}"
                + (f"; it has no parameters at {sorted(unknown)[:5]} (group.position)" if unknown else "")
            )
        if len(state["modes"]) != len(self.modes):
            raise HsvError(
                f"the stored state is of a model of {len(state['modes'])} modules, and this one has {len(self.modes)}"
            )


def _named_tensors(placement: Placement) -> Iterator[tuple[str, Tensor]]:
    for prefix, _, parameters, buffers in placement.modules:
        for name, tensor in (*parameters.items(), *buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor


def _placed_tensors(placement: Placement) -> Iterator[Tensor]:
    for _, tensor in _named_tensors(placement):
        yield tensor
    for group in placement.groups:  # the parameters, and options that are tensors
        yield from _tensors_in(group)
    for state in placement.states.values():
        yield from _tensors_in(state)


def _optimizer_places(placement: Placement, *, objects: bool = False) -> dict[Any, str]:
    """``"group.position"`` of each parameter of the optimizer, keyed by identity or by the parameter."""
    return {
        parameter if objects else id(parameter): f"{i}.{j}"
        for i, group in enumerate(placement.groups)
        for j, parameter in enumerate(group["params"])
    }


def _object_state(value: Any, offload: bool = False) -> Any:
    state = deep_copy(value.state_dict() if hasattr(value, "state_dict") else value.get_state())
    if offload and isinstance(value, nn.Module):  # others may want their tensors where they were
        return {name: kept.cpu() if isinstance(kept, Tensor) else kept for name, kept in state.items()}
    return state


def _load_object_state(value: Any, state: Any) -> None:
    if hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
    else:
        value.set_state(state)


def copy_system(system: hsv.DiagonalStateSpace) -> hsv.DiagonalStateSpace:
    """The same system in memory of its own: that of a layer in double precision may share its parameters', which training changes."""
    (copied,) = unpack_systems(deep_copy(pack_systems({"": system}))).values()
    return copied


def pack_systems(systems: Mapping[str, hsv.DiagonalStateSpace]) -> dict[str, Any]:
    """Systems as numbers and tensors."""
    packed = {}
    for name, system in systems.items():
        exact = system.log_poles is not None
        arrays = (system.log_poles if exact else system.poles(), system.B, system.C, system.D)
        packed[name] = {"logarithms": exact, "arrays": [torch.as_tensor(x) for x in arrays], "dt": system.dt}
    return packed


def unpack_systems(packed: Mapping[str, Any]) -> dict[str, hsv.DiagonalStateSpace]:
    """The inverse of :func:`pack_systems`."""
    systems = {}
    for name, content in packed.items():
        make = hsv.DiagonalStateSpace.from_log_poles if content["logarithms"] else hsv.DiagonalStateSpace
        systems[name] = make(*content["arrays"], dt=content["dt"])
    return systems
