"""A cut layer beside the whole one: how far its outputs are off, on recorded calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hsv import HsvError
from hsv_torch.selective._cut import SelectiveCut
from hsv_torch.selective._sequences import Call
from hsv_torch.selective._view import SelectiveView


@dataclass(frozen=True)
class Target:
    """A recorded call and the output that the whole layer gave, zero in the padding."""

    call: Call
    output: Tensor


def copy_of(view: SelectiveView, cut: SelectiveCut | None = None) -> SelectiveView:
    """A view of a copy of the layer, in evaluation mode, with the cut put into it."""
    twin = type(view)(copy.deepcopy(view.layer).eval())
    if cut is not None:
        cut.put(twin)
    return twin


@torch.no_grad()
def targets(view: SelectiveView, calls: Sequence[Call]) -> list[Target]:
    """Return the calls with the outputs of the layer as it is."""
    twin = copy_of(view)
    return [Target(call, outputs(twin, call)) for call in calls]


def outputs(view: SelectiveView, call: Call) -> Tensor:
    """The layer's output of a call, zero in the padding."""
    y = view.outputs(call.args, call.kwargs)
    return y if call.mask is None else torch.where(call.mask[..., None], y, 0.0)


def energy(known: Sequence[Target]) -> float:
    """Sum of the squares of all target outputs."""
    total = sum(float(target.output.double().square().sum()) for target in known)
    if not total > 0:
        raise HsvError(
            "the layer's outputs on the recorded sequences are all zero, so no error can be measured by them"
        )
    return total


@torch.no_grad()
def relative_error(view: SelectiveView, known: Sequence[Target]) -> float:
    """Root of the squared error of a layer's outputs, relative to the outputs of the whole one."""
    wrong = sum(float((outputs(view, t.call) - t.output).double().square().sum()) for t in known)
    return float((wrong / energy(known)) ** 0.5)
