r"""Cuts ``S5SSM`` of s5-pytorch: import this module once, and models that contain ``S5`` or ``S5Block`` can be compressed.

The layer computes :math:`y = \mathrm{Re}(C h) + D u`: every state counts once, where :class:`hsv_torch.S5` has each stand for a pair and doubles the
output. The poles begin as conjugate pairs, but with independent step sizes, so that no state is the conjugate of another. The layer's forward pass
and its ``forward_rnn`` go on working after a cut, for whatever ``step_scale``; the cut itself is made, and its bound holds, at ``step_scale=1``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

import hsv
from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import Cut, LayerAdapter, Observation, Replaced, put_parameters, register_adapter
from hsv_torch.criteria import Criterion, DiagonalCriterion
from hsv_torch.layers._discretization import DISCRETIZATIONS, Discretization, SampledCut, SampledStates
from hsv_torch.layers.s5 import check_fits, sampled_cut_record, stacked_outputs, unstacked_outputs
from hsv_torch.third_party._packages import required_package

s5_model = required_package("s5.s5_model", "s5-pytorch")

ROW_DEVIATION = 0.87962566103423978**2
"""B begins as a normal variable of variance 1 / n that is cut off at two deviations, which leaves 0.88 of the deviation, times 0.88 once more."""


@register_adapter(s5_model.S5SSM)
class S5SSMAdapter(LayerAdapter):
    r"""Cuts an ``S5SSM``, with one direction or two, zero-order hold or bilinear: one system, ``(diag(lambda), g B, C)``, or ``[C1; C2]``.

    As for :class:`hsv_torch.S5` each new state takes the step size of the old state that it overlaps most. After a cut to ``r`` states every
    row of ``B`` has the norm ``0.77 sqrt(width / r)`` that the rows of a new layer have on average.

    ``Lambda`` and ``C`` are complex parameters; as covectors their real and imaginary parts hold what belongs to either part.

    Examples
    --------
    >>> import hsv, hsv_torch, hsv_torch.third_party.s5_pytorch
    >>> from s5 import S5
    >>> model = torch.nn.Sequential(S5(3, 16), torch.nn.Linear(3, 2))
    >>> report = hsv_torch.compress_(model, hsv.Order(8))
    >>> [(layer.layer, layer.n_states_before, layer.n_states_after) for layer in report.layers]
    [('0.seq', 16, 8)]
    """

    recurrent_parameters: ClassVar[tuple[str, ...]] = ("Lambda", "log_step", "B")

    @override
    def n_states(self, layer: Any) -> int:
        return int(layer.Lambda.shape[0])

    @override
    def parameter_names(self, layer: Any) -> tuple[str, ...]:
        return ("Lambda", "B", "C", "log_step")

    @override
    @torch.no_grad()
    def system(self, layer: Any) -> hsv.DiagonalStateSpace:
        return self.differentiable_system(layer)

    @override
    def differentiable_system(self, layer: Any) -> hsv.DiagonalStateSpace:
        states = _states(layer)
        C = layer.C.to(torch.complex128)
        return states.system(
            torch.view_as_complex(layer.B.double().contiguous()), stacked_outputs(C, len(states.poles))
        )

    @override
    @torch.no_grad()
    def reduce(
        self, layer: Any, rule: hsv.Rule | int, criterion: Criterion, observation: Observation | None = None
    ) -> Cut:
        assert isinstance(criterion, DiagonalCriterion)
        width = layer.D.shape[0]
        plan = criterion.reduce(self.system(layer), rule)
        cut = SampledCut.write_back(plan, _states(layer), row_norm=ROW_DEVIATION * math.sqrt(width / plan.n_states))
        new = {
            "Lambda": cut.new.poles,
            "B": torch.view_as_real(cut.B),
            "C": unstacked_outputs(cut.discrete.C, width),
            "log_step": torch.log(cut.new.steps),
        }
        for name, value in new.items():
            check_fits({name: value}, layer.get_parameter(name).dtype, plan.hankel_singular_values)
        return sampled_cut_record(self.n_states(layer), cut, width, bidirectional=layer.bidir, new=new)

    @override
    def apply(self, layer: Any, cut: Cut) -> Replaced:
        return put_parameters(layer, cut.payload[1])

    @override
    @torch.no_grad()
    def pull_back(self, cut: Cut, covectors: Mapping[str, Tensor], *, squared: bool) -> dict[str, Tensor]:
        sampled = cut.payload[0]
        assert isinstance(sampled, SampledCut)
        poles, B, C, log_step = sampled.pull_back(
            covectors["Lambda"].to(torch.complex128),
            torch.view_as_complex(covectors["B"].double().contiguous()),
            stacked_outputs(covectors["C"].to(torch.complex128), cut.n_states_before),
            squared=squared,
        )
        carried = {
            "Lambda": poles,
            "B": torch.view_as_real(B.resolve_conj()),
            "C": unstacked_outputs(C, covectors["C"].shape[0]).resolve_conj(),
            "log_step": log_step,
        }
        return {name: tensor.to(covectors[name].dtype) for name, tensor in carried.items()}

    @override
    def resize(self, layer: Any, n_states: int, **form: int) -> Replaced:
        width = layer.D.shape[0]
        return put_parameters(
            layer,
            {
                "Lambda": layer.Lambda.detach().new_zeros(n_states),
                "B": layer.B.detach().new_zeros(n_states, width, 2),
                "C": layer.C.detach().new_zeros(width, n_states * (1 + layer.bidir)),
                "log_step": layer.log_step.detach().new_zeros(n_states),
            },
        )


def _states(layer: Any) -> SampledStates:
    rule = _rule(layer)
    poles, steps = layer.Lambda.to(torch.complex128), layer.log_step.double().exp()
    return SampledStates(poles, steps, torch.zeros_like(steps, dtype=torch.bool), rule)


def _rule(layer: Any) -> Discretization:
    """The layer's rule of discretisation, if it is a linear system with matrices of its own."""
    if layer.liquid or layer.degree != 1:
        raise CutRefusedError(
            f"the layer is no linear time-invariant system (liquid={layer.liquid}, degree={layer.degree}); choose `layers` without it"
        )
    if layer.bcInit == "factorized":
        raise CutRefusedError(
            "the layer keeps B and C as products of factors (bcInit='factorized'), which are not cut; choose `layers` without it"
        )
    names = {s5_model.discretize_zoh: "zoh", s5_model.discretize_bilinear: "bilinear"}
    if layer.discretize not in names:
        raise CutRefusedError(
            f"the layer's discretisation {layer.discretize!r} is none of those of s5-pytorch; choose `layers` without it"
        )
    return DISCRETIZATIONS[names[layer.discretize]]
