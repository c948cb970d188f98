"""A layer of damped oscillators and the adapter by which `hsv_torch` cuts it: everything in one file."""

import torch
from torch import Tensor, nn

import hsv
import hsv_torch


class OscillatorBank(nn.Module):
    r"""``n`` damped oscillators: :math:`h_t = \lambda \odot h_{t-1} + B u_t`, :math:`y_t = \operatorname{Re}(C h_t)`, :math:`\lambda = e^{-e^{\rho} + i \theta}`."""

    def __init__(self, d_model: int, n_states: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.log_decay = nn.Parameter(torch.empty(n_states).uniform_(-5, -1))
        self.angle = nn.Parameter(torch.empty(n_states).uniform_(-3, 3))
        self.B = nn.Parameter(torch.randn(n_states, d_model, 2) / d_model**0.5)
        self.C = nn.Parameter(torch.randn(d_model, n_states, 2) / n_states**0.5)

    @property
    def n_states(self) -> int:
        return len(self.log_decay)  # from a parameter's shape: a cut replaces the parameters, nothing else

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        log_poles = torch.complex(-self.log_decay.exp(), self.angle)
        return log_poles, torch.view_as_complex(self.B), torch.view_as_complex(self.C)

    def forward(self, x: Tensor) -> Tensor:
        return hsv_torch.scan.diagonal_state_space(x, *self.system(), mode="scan")


@hsv_torch.register_adapter(OscillatorBank)
class OscillatorBankAdapter(hsv_torch.LayerAdapter):
    """Truncates the system and goes back to diagonal form; the criterion does both."""

    recurrent_parameters = ("log_decay", "angle", "B")

    def n_states(self, layer):
        return layer.n_states

    def parameter_names(self, layer):
        return ("log_decay", "angle", "B", "C")

    @torch.no_grad()
    def system(self, layer):
        return self.differentiable_system(layer)

    def differentiable_system(self, layer):
        log_poles = torch.complex(-layer.log_decay.double().exp(), layer.angle.double())
        B, C = torch.view_as_complex(layer.B.double()), torch.view_as_complex(layer.C.double())
        return hsv.DiagonalStateSpace.from_log_poles(log_poles, B, C)

    @torch.no_grad()
    def reduce(self, layer, rule, criterion, observation=None):
        plan = criterion.reduce(self.system(layer), rule)
        plan = plan.rescale(torch.ones_like(plan.log_poles.real))  # Adam's steps depend on the scale of the states
        new = {
            "log_decay": torch.log(-plan.log_poles.real),
            "angle": plan.log_poles.imag,
            "B": torch.view_as_real(plan.B.resolve_conj()),
            "C": torch.view_as_real(plan.C.resolve_conj()),
        }
        return hsv_torch.Cut(
            n_states_before=layer.n_states,
            n_states_after=plan.n_states,
            order=plan.order,
            hankel_singular_values=plan.hankel_singular_values,
            error_bound=plan.error_bound,
            eigenvector_condition=plan.eigenvector_condition,
            notes=plan.notes,
            payload=(plan, layer.log_decay.detach().double().exp(), new),
        )

    def apply(self, layer, cut):
        return hsv_torch.put_parameters(layer, cut.payload[2])

    def pull_back(self, cut, covectors, *, squared):
        plan, old_decay, new = cut.payload
        power = 2 if squared else 1
        wide = {name: value.double() for name, value in covectors.items()}
        # Re log(lambda) = -exp(rho): the covector of rho is that of Re log(lambda) times -exp(rho)
        poles = torch.complex(wide["log_decay"] / (-old_decay) ** power, wide["angle"])
        poles = plan.log_pole_map.pull_back(poles[:, None], squared=squared)[:, 0]
        B = plan.states.pull_back(torch.view_as_complex(wide["B"].contiguous()), squared=squared)
        C = plan.outputs.pull_back(torch.view_as_complex(wide["C"].contiguous()).mT, squared=squared).mT
        carried = {
            "log_decay": poles.real * (-new["log_decay"].exp()) ** power,
            "angle": poles.imag,
            "B": torch.view_as_real(B.resolve_conj().contiguous()),
            "C": torch.view_as_real(C.resolve_conj().contiguous()),
        }
        return {name: value.to(covectors[name].dtype) for name, value in carried.items()}

    def resize(self, layer, n_states, **form):
        zeros = layer.log_decay.new_zeros
        return hsv_torch.put_parameters(
            layer,
            {
                "log_decay": zeros(n_states),
                "angle": zeros(n_states),
                "B": zeros(n_states, layer.d_model, 2),
                "C": zeros(layer.d_model, n_states, 2),
            },
        )
