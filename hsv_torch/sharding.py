"""Models whose parameters are split over processes by ``fully_shard``: layers are made whole for a cut, and split again as they were.

PyTorch has no public way to give a module that ``fully_shard`` has split a parameter of another shape. This file, and no other, exchanges the records that
``FSDPParamGroup.fsdp_params`` keeps of single parameters (PyTorch 2.13). Everything else of the module stays: its hooks and streams, the mesh, the policies of
precision and offloading, and what is resharded after the forward pass.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hsv import HsvError


def is_split(tensor: object) -> bool:
    """Whether it is a ``DTensor``; nothing is before the module that makes them has been imported, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is split, detached, in each process; all of them call it together. Any other tensor as it is."""
    if not is_split(tensor):
        return tensor
    split: Any = tensor.detach()
    mesh = split.device_mesh
    if split.device.type != mesh.device_type:  # offloaded to the host, where the group cannot communicate
        split = split.to(mesh.device_type)
    whole: Tensor = split.full_tensor()
    return whole


def gathered(value: Any, keep: bool) -> Any:
    """`value` with every tensor in it gathered, on the host, in a process that is to `keep` them; others take part and get empty ones."""
    if isinstance(value, dict):
        return {key: gathered(item, keep) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gathered(item, keep) for item in value)
    if is_split(value):
        whole = gather(value)
        return whole.cpu() if keep else whole.new_empty(0)
    return value


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached; it shares the memory."""
    held: Any = tensor.detach()
    part: Tensor = held.to_local() if is_split(tensor) else held
    return part


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The split tensor of which this process holds `part`, split as `like`; `part` itself if that is not split."""
    if not is_split(like):
        return part
    like_split: Any = like
    made: Tensor = type(like_split).from_local(
        part,
        like_split.device_mesh,
        like_split.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made if made.device == part.device else made.to(part.device)  # offloaded: it has gone to the mesh's device


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that this process holds once it is split as `like` of the same shape, without communication; `whole` itself if that is not."""
    if not is_split(like) or is_split(whole):
        return whole
    like_split: Any = like
    mesh, part = like_split.device_mesh, whole
    for size, place, placement in zip(mesh.shape, mesh.get_coordinate(), like_split.placements, strict=True):
        if placement.is_shard():
            chunks = part.chunk(size, placement.dim)
            part = chunks[place] if place < len(chunks) else part.narrow(placement.dim, 0, 0)
    return joined(part.to(like.device).clone(memory_format=torch.contiguous_format), like)


def parts_of_state(state: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """The state that an optimizer keeps of one parameter, with what has the parameter's shape split as the parameter `like`."""
    return {
        key: part_of(value, like)
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape == like.shape
        else value
        for key, value in state.items()
    }


def parts_of_model(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A ``state_dict`` of whole tensors, split as in that of the model, `own`."""
    return {name: part_of(value, own[name]) if name in own else value for name, value in state.items()}


def reshard(model: nn.Module) -> None:
    """See that the module holds its parts, and not what a forward pass has gathered."""
    for module in _split_modules(model):
        module.reshard()


def _split_modules(model: nn.Module) -> Iterator[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (module for module in model.modules() if isinstance(module, fsdp.FSDPModule))


def _groups(model: nn.Module) -> list[Any]:
    """The parameter groups of ``fully_shard`` in the model, each once."""
    found = {}
    for module in _split_modules(model):
        for group in module._get_fsdp_state()._fsdp_param_groups:
            found[id(group)] = group
    return list(found.values())


def check_split(model: nn.Module) -> None:
    """Raise if a parameter is split in a way that a cut could not restore.

    Raises
    ------
    HsvError
        A parameter is split by something other than ``fully_shard`` (tensor parallelism), or by both.
    """
    plain = {id(r.sharded_param) for group in _groups(model) for r in group.fsdp_params if not r.is_dtensor}
    reshard(model)
    for name, parameter in model.named_parameters():
        if is_split(parameter) and id(parameter) not in plain:
            raise HsvError(
                f"the parameter {name!r} is split over processes by something other than fully_shard, as in tensor parallelism: a cut "
                "could not split it again; keep the layers that are cut out of it"
            )


IN_A_LOOP = "use hsv_torch.InTrainingCompressor and hsv_torch.save_checkpoint in a loop of your own, or train with DistributedDataParallel"


def check_unsplit(model: nn.Module, what: str, remedy: str) -> None:
    """Raise if parameters are split, for `what` cannot work with them; `remedy` says what can."""
    if meshes(model):
        raise HsvError(f"the model's parameters are split over processes (fully_shard), which {what}: {remedy}")


def meshes(model: nn.Module) -> list[Any]:
    """The device meshes that parameters are split over, each once."""
    found: list[Any] = []
    for parameter in model.parameters():
        if is_split(parameter):
            mesh = parameter.device_mesh  # type: ignore[attr-defined]
            found += [] if mesh in found else [mesh]
    return found


class Records:
    """Which records ``fully_shard`` keeps of a model's parameters, to be put back. References only."""

    def __init__(self, model: nn.Module) -> None:
        reshard(model)
        self.model = model
        self.groups = [(group, list(group.fsdp_params)) for group in _groups(model)]

    def restore(self) -> None:
        """Put the records back; the parameters that stand in the modules are the caller's affair."""
        reshard(self.model)
        for group, records in self.groups:
            for record in group.fsdp_params:
                _detach(record)
            group.fsdp_params[:] = records
            for record in records:
                _make_ready(record, group)
                _attach(record)


@contextlib.contextmanager
def whole(model: nn.Module, layers: Iterable[nn.Module], *, keep: bool = True) -> Iterator[None]:
    """Let layers have whole parameters inside, to be read; all processes enter it together, and only those that `keep` them get them."""
    inside = {id(part): part for layer in layers for part in layer.modules()}.values()
    if not any(is_split(parameter) for part in inside for parameter in part._parameters.values()):
        yield
        return
    reshard(model)
    places = [(part, dict(part._parameters)) for part in inside]
    made: dict[int, nn.Parameter] = {}
    try:
        for part, parameters in places:
            for name, parameter in parameters.items():
                if parameter is None or not is_split(parameter):
                    continue
                if id(parameter) not in made:
                    full = gather(parameter)
                    made[id(parameter)] = nn.Parameter(full, parameter.requires_grad) if keep else parameter
                    del full
                part._parameters[name] = made[id(parameter)]
        yield
    finally:
        for part, parameters in places:
            part._parameters.clear()
            part._parameters.update(parameters)


class OpenLayer:
    """A layer whose parameters, their gradients and the optimizer's state of them are whole, so that it can be cut like any other.

    All processes open it together: that is where they communicate. Nothing does afterwards: whatever fails fails in one process alone, and can be
    undone there by :class:`hsv_torch.snapshot.Placement`.

    Parameters
    ----------
    model
        What the layer belongs to.
    layer
        The layer; if none of its parameters is split, nothing happens here.
    optimizer
        What trains them, if anything does.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.model, self.layer, self.optimizer = model, layer, optimizer
        self.places = [
            (part, name, parameter) for part in layer.modules() for name, parameter in part._parameters.items()
        ]
        split = {id(p): p for _, _, p in self.places if p is not None and is_split(p)}
        self.whole: dict[nn.Parameter, nn.Parameter] = {}  # by the split one
        self.states: dict[nn.Parameter, dict[str, Any]] = {}  # of the split ones
        self.records: dict[int, tuple[Any, Any]] = {}
        if not split:
            return
        reshard(model)
        self.records = {
            id(record.sharded_param): (group, record)
            for group in _groups(model)
            for record in group.fsdp_params
            if id(record.sharded_param) in split
        }
        for group, record in self.records.values():
            unsharded = getattr(record, "_unsharded_param", None)
            waiting = (None if unsharded is None else unsharded.grad, record.unsharded_accumulated_grad)
            if group._partial_reduce_output is not None or any(gradient is not None for gradient in waiting):
                raise HsvError(
                    "a cut came between micro-batches whose gradients have not been reduced yet (set_requires_gradient_sync(False)): call "
                    "`step` after the last of them"
                )
        whole_states: dict[Tensor, dict[str, Any]] = {}
        for parameter in split.values():
            self.whole[parameter] = made = nn.Parameter(gather(parameter), parameter.requires_grad)
            made.__dict__.update(parameter.__dict__)
            if parameter.grad is not None:
                made.grad = gather(parameter.grad)
            if optimizer is not None and parameter in optimizer.state:
                self.states[parameter] = optimizer.state[parameter]
                whole_states[made] = {
                    key: gather(value) if isinstance(value, Tensor) else value
                    for key, value in optimizer.state[parameter].items()
                }
        for _, record in self.records.values():
            _detach(record)
        _exchange(model, optimizer, self.whole)
        if optimizer is not None:
            for parameter in self.states:
                del optimizer.state[parameter]
            optimizer.state.update(whole_states)

    def close(self) -> dict[nn.Parameter, nn.Parameter]:
        """Split what is whole, and return the split parameter of every whole one.

        A parameter that has not been replaced meanwhile gets its old split one back, values, gradient and state as they were.
        """
        if not self.whole:
            return {}
        parts = {made: parameter for parameter, made in self.whole.items()}
        states = dict(self.states)
        model_of_new = next(iter(self.records.values()))
        for part, name, parameter in self._places_now():
            present = part._parameters.get(name)
            if parameter is not None and parameter in self.whole:
                group, record = self.records[id(parameter)]
                if present is self.whole[parameter]:
                    continue
                if record in group.fsdp_params:
                    place = group.fsdp_params.index(record)
                    group.fsdp_params[place : place + 1] = []
                    if present is not None:
                        group.fsdp_params.insert(place, self._split(present, group, record, record._module_info, parts))
            elif parameter is None and present is not None:
                group, record = model_of_new
                info = type(record._module_info)(part, name)
                group.fsdp_params.append(self._split(present, group, record, info, parts))
        for made, parameter in parts.items():
            if self.optimizer is not None and made in self.optimizer.state:
                state = self.optimizer.state.pop(made)
                states.setdefault(parameter, parts_of_state(state, parameter))
        _exchange(self.model, self.optimizer, parts)
        if self.optimizer is not None:
            present_now = {id(p) for p in parts.values() if self._stands(p)}
            for parameter, state in states.items():
                if id(parameter) in present_now:
                    self.optimizer.state[parameter] = state
        for group in {id(group): group for group, _ in self.records.values()}.values():
            for record in group.fsdp_params:
                _attach(record)
        return parts

    def _places_now(self) -> list[tuple[nn.Module, str, nn.Parameter | None]]:
        before = {(id(part), name) for part, name, _ in self.places}
        added = [
            (part, name, None)
            for part in self.layer.modules()
            for name in part._parameters
            if (id(part), name) not in before
        ]
        return [*self.places, *added]

    def _stands(self, parameter: nn.Parameter) -> bool:
        return any(parameter is held for part in self.layer.modules() for held in part._parameters.values())

    def _split(
        self, parameter: nn.Parameter, group: Any, like: Any, info: Any, parts: dict[nn.Parameter, nn.Parameter]
    ) -> Any:
        """The record of a new parameter that is split like another; it puts its part into the module."""
        dim, size = like.fsdp_placement.dim, like._shard_mesh.size()
        if dim > 0 and parameter.shape[dim] % size:
            raise HsvError(
                f"a parameter of shape {tuple(parameter.shape)} cannot be split over {size} processes along axis {dim}, as shard_placement_fn "
                f"asks: allow multiples of {size} only, with sizes=hsv_torch.Sizes(multiple_of={size})"
            )
        attributes = dict(parameter.__dict__)
        record = type(like)(
            nn.Parameter(parameter.detach().contiguous(), parameter.requires_grad),
            info,
            like.mesh_info,
            like.post_forward_mesh_info,
            like.device,
            lambda _: like.fsdp_placement,
            like.mp_policy,
            group.offload_policy,
        )
        _make_ready(record, group)
        record._param_fqn = like._param_fqn
        record.sharded_param.__dict__.update(attributes)
        if parameter.grad is not None:
            record.sharded_param.grad = part_of(parameter.grad, record.sharded_param)
        parts[parameter] = record.sharded_param
        return record


def _exchange(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, mapping: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    """Put parameters of the same values and another form in place of others, in the model and in the optimizer's groups."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in mapping:
                module._parameters[name] = mapping[parameter]
    for group in optimizer.param_groups if optimizer is not None else ():
        group["params"][:] = [mapping.get(parameter, parameter) for parameter in group["params"]]


def _make_ready(record: Any, group: Any) -> None:
    """Do for the record what its group did for all of them in its first forward pass, if that was before the record was made or put back."""
    if hasattr(group, "_orig_dtype") and not hasattr(record, "orig_dtype"):
        record.init_dtype_attrs(group.mp_policy)


def _detach(record: Any) -> None:
    """Let the record of a parameter no longer take what is loaded into the module for its part."""
    record._post_load_hook_handle.remove()


def _attach(record: Any) -> None:
    """The inverse of :func:`_detach`."""
    _detach(record)
    reset: Callable[..., None] = lambda *_: record.reset_sharded_param()  # noqa: E731
    record._post_load_hook_handle = record._module_info.module.register_load_state_dict_post_hook(reset)
