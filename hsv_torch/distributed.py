"""Several processes that train one model: they decide together, and none waits for one that has failed.

The first process measures and plans, and one broadcast tells the others what it decided; every process then makes the same cut of its own copy of the model, or
of its part of it (:mod:`hsv_torch.sharding`). After whatever a process does alone, all exchange whether it went well, so that an error in one of them is an error
in all.
"""

from __future__ import annotations

import functools
import io
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hsv import HsvError
from hsv_torch.compress import uncompiled
from hsv_torch.sharding import check_split, meshes

T = TypeVar("T")


class RankError(HsvError):
    """Another process of the group failed; the message says which, and how."""


class Ranks:
    """The processes that train the model, or just this one.

    Parameters
    ----------
    model
        What the training loop calls. A ``DistributedDataParallel``, or the mesh that ``fully_shard`` has split parameters over, says which processes belong
        together; any other model is trained by this process alone. What ``torch.compile`` or ``Fabric.setup`` returned stands for the model inside it.

    Attributes
    ----------
    split : bool
        Parameters are split over the processes.
    """

    def __init__(self, model: nn.Module) -> None:
        model = _unwrapped(model)
        self.wrapper = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = uncompiled(model.module if isinstance(model, DistributedDataParallel) else model)
        self.group = None if self.wrapper is None else self.wrapper.process_group
        over = meshes(self.model)
        self.split = bool(over)
        if over:
            check_split(self.model)
            self.group = _group_of(over)
        self.size = 1 if self.group is None else distributed.get_world_size(self.group)
        self.rank = 0 if self.group is None else distributed.get_rank(self.group)

    def decide(self, function: Callable[[], T]) -> T:
        """What `function` returns in the first process, in all of them; an error there is an error everywhere."""
        if self.size == 1:
            return function()
        packet: list[Any] = [None]
        failed: Exception | None = None
        if self.rank == 0:
            try:
                packet = [("done", self._packed(function()))]
            except Exception as error:
                failed = error
                packet = [("failed", _description(error))]
        try:
            distributed.broadcast_object_list(packet, group_src=0, group=self.group)
        except Exception as error:
            raise _no_answer(error) from failed or error
        if failed is not None:
            raise failed
        outcome, content = packet[0]
        if outcome == "failed":
            raise RankError(f"process 0 failed: {content}")
        return self._unpacked(content)

    def together(self, function: Callable[[], T], undo: Callable[[], None]) -> T:
        """Call `function` in every process; if it raises in one of them, or one is gone, `undo` what the others did and raise in all."""
        if self.size == 1:
            return function()
        failed: Exception | None = None
        result: Any = None
        try:
            result = function()
        except Exception as error:
            failed = error
        outcomes: list[str | None] = [None] * self.size
        try:
            distributed.all_gather_object(outcomes, None if failed is None else _description(failed), group=self.group)
        except Exception as error:
            if failed is None:
                undo()
            raise _no_answer(error) from failed or error
        if failed is not None:
            raise failed
        others = [f"process {rank} failed: {outcome}" for rank, outcome in enumerate(outcomes) if outcome is not None]
        if others:
            undo()
            raise RankError("; ".join(others))
        return result

    def mean(self, function: Callable[[], float]) -> float:
        """The mean over the processes of what each of them finds, the same number in all."""
        if self.size == 1:
            return function()
        values: list[Any] = [None] * self.size
        found = self.together(function, lambda: None)
        distributed.all_gather_object(values, found, group=self.group)
        return sum(values) / self.size

    def in_step(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, each when all processes have one more: a forward pass of a model that is split waits for all of them.

        Raises
        ------
        HsvError
            Some processes have more batches than others.
        RankError
            Another process failed to get its next batch.
        """
        iterator, end = iter(batches), object()
        while True:
            batch: Any = self.together(lambda: next(iterator, end), lambda: None)
            ended = self.mean(functools.partial(float, batch is end))
            if ended == 1.0:
                return
            if ended:
                raise HsvError(
                    "`calibration` has more batches in some processes than in others, and a model that is split over them runs in all or in none: "
                    "give each the same number"
                )
            yield batch

    def rebuild(self) -> None:
        """Make the wrapper reduce the gradients of the parameters that the model has now, with the options and hooks that it had."""
        wrapper = self.wrapper
        if wrapper is None:
            return
        own = {name: getattr(wrapper, name) for name in vars(wrapper) if name.endswith("_hooks") or name == "training"}
        communication = list(wrapper._comm_hooks)
        options = {
            "device_ids": wrapper.device_ids,
            "output_device": wrapper.output_device,
            "dim": wrapper.dim,
            "forward_sync_buffers": wrapper.forward_sync_buffers,
            "process_group": wrapper.process_group,
            "bucket_cap_mb": None if wrapper.bucket_bytes_cap_default else wrapper.bucket_bytes_cap / 2**20,
            "find_unused_parameters": wrapper.find_unused_parameters,
            "gradient_as_bucket_view": wrapper.gradient_as_bucket_view,
            "static_graph": wrapper.static_graph,
            "mixed_precision": wrapper.mixed_precision,
            "skip_all_reduce_unused_params": wrapper.skip_all_reduce_unused_params,
            "batched_grad_copy": wrapper.batched_grad_copy,
            "init_sync": False,  # all processes have made the same cut of the same model
        }
        del wrapper.reducer  # takes its hooks off the parameters that stay
        DistributedDataParallel.__init__(wrapper, wrapper.module, **options)
        for name, value in own.items():
            setattr(wrapper, name, value)
        for hook, state in communication:
            wrapper.register_comm_hook(state, hook)

    def _packed(self, value: Any) -> bytes:
        file = io.BytesIO()
        _Pickler(file).dump(value)
        return file.getvalue()

    def _unpacked(self, content: bytes) -> Any:
        where = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return _Unpickler(io.BytesIO(content), where).load()  # from a process of this very run


class _Pickler(pickle.Pickler):
    """Pickles tensors by their values, without their device."""

    def persistent_id(self, obj: Any) -> bytes | None:
        if not isinstance(obj, Tensor):
            return None
        file = io.BytesIO()
        torch.save(obj.detach().clone(), file)
        return file.getvalue()


class _Unpickler(pickle.Unpickler):
    """Puts tensors on this process's device."""

    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self.device = device

    def persistent_load(self, pid: Any) -> Tensor:
        return torch.load(io.BytesIO(pid), map_location=self.device, weights_only=True)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of ``torch.compile`` and of Lightning Fabric, a ``DistributedDataParallel`` where there is one."""
    model = uncompiled(model)
    while isinstance(model, nn.Module) and (inside := model._modules.get("_forward_module")) is not None:
        model = uncompiled(inside)
    return model


def _group_of(over: list[Any]) -> Any:
    """The processes of the meshes that parameters are split over."""
    largest = max(over, key=lambda mesh: mesh.size())
    if largest.ndim == 1:
        return largest.get_group()
    if largest.size() != distributed.get_world_size():
        raise HsvError(
            f"parameters are split over {largest}, which has {largest.size()} of the {distributed.get_world_size()} processes in "
            f"{largest.ndim} dimensions: there is no one group of them; use a mesh of one dimension, or all processes"
        )
    return distributed.group.WORLD


def _no_answer(error: Exception) -> RankError:
    return RankError(f"another process is gone, or did not answer within the group's timeout: {error}")


def _description(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].name}, line {last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"
