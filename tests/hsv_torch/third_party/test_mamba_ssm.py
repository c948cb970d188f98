"""Mamba and Mamba2 of mamba-ssm, which need a GPU: layers with their documented attributes stand in for them."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

import hsv
import hsv_torch
from hsv_torch.selective import ChannelBasis, StateChoice
from hsv_torch.testing import check_adapter


class Mamba(nn.Module):
    """Attributes and arguments of ``mamba_ssm.modules.mamba_simple.Mamba``, computed by a loop over the time."""

    def __init__(self, d_model, d_state=16, d_conv=4, expand=2, dt_rank=2):
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.dt_rank = d_model, d_state, d_conv, dt_rank
        self.d_inner = d = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d, bias=False)
        self.conv1d = nn.Conv1d(d, d, d_conv, groups=d, padding=d_conv - 1)
        self.x_proj = nn.Linear(d, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d))
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def forward(self, hidden_states, inference_params=None):
        length = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).chunk(2, -1)
        x = functional.silu(self.conv1d(x.mT)[..., :length].mT)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        delta, A = functional.softplus(self.dt_proj(dt)), -self.A_log.exp()
        h, y = x.new_zeros(len(x), self.d_inner, self.d_state), []
        for t in range(length):
            h = (delta[:, t, :, None] * A).exp() * h + (delta * x)[:, t, :, None] * B[:, t, None]
            y.append((h @ C[:, t, :, None])[..., 0] + self.D * x[:, t])
        return self.out_proj(torch.stack(y, 1) * functional.silu(z))


class RMSNormGated(nn.Module):
    """Attributes of ``mamba_ssm.ops.triton.layernorm_gated.RMSNorm``."""

    def __init__(self, d, eps, group_size, norm_before_gate):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d))
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate

    def forward(self, y, z):
        y = y if self.norm_before_gate else y * functional.silu(z)
        parts = y.unflatten(-1, (-1, self.group_size))
        y = (parts * (parts.square().mean(-1, keepdim=True) + self.eps).rsqrt()).flatten(-2) * self.weight
        return y * functional.silu(z) if self.norm_before_gate else y


class Mamba2(nn.Module):
    """Attributes and arguments of ``mamba_ssm.modules.mamba2.Mamba2``, computed by a loop over the time."""

    def __init__(
        self, d_model, d_state=16, d_conv=4, expand=2, headdim=4, d_ssm=None, ngroups=1, D_has_hdim=False, rmsnorm=True,
        norm_before_gate=False, dt_limit=(0.0, float("inf")), process_group=None,
    ):  # fmt: skip
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.headdim, self.ngroups = d_model, d_state, d_conv, headdim, ngroups
        self.d_inner = expand * d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.nheads, self.D_has_hdim, self.rmsnorm = self.d_ssm // headdim, D_has_hdim, rmsnorm
        self.norm_before_gate, self.dt_limit, self.process_group = norm_before_gate, dt_limit, process_group
        n_conv = self.d_ssm + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(n_conv, n_conv, d_conv, groups=n_conv, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(torch.randn(self.nheads))
        self.A_log = nn.Parameter(torch.randn(self.nheads))
        self.D = nn.Parameter(torch.randn(self.d_ssm if D_has_hdim else self.nheads))
        if rmsnorm:
            self.norm = RMSNormGated(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, u, seqlen=None, seq_idx=None, cu_seqlens=None, inference_params=None):
        length, d_mlp = u.shape[1], self.d_inner - self.d_ssm
        rows = self.ngroups * self.d_state
        z0, x0, z, xBC, dt = self.in_proj(u).split([d_mlp, d_mlp, self.d_ssm, self.d_ssm + 2 * rows, self.nheads], -1)
        xBC = functional.silu(self.conv1d(xBC.mT)[..., :length].mT)
        x, B, C = xBC.split([self.d_ssm, rows, rows], -1)
        x = x.unflatten(-1, (self.nheads, -1))
        B, C = (m.unflatten(-1, (self.ngroups, -1)).repeat_interleave(self.nheads // self.ngroups, 2) for m in (B, C))
        delta = functional.softplus(dt + self.dt_bias).clamp(*self.dt_limit)
        D = self.D.view(self.nheads, -1)
        h, y = x.new_zeros(len(x), self.nheads, self.headdim, self.d_state), []
        for t in range(length):
            decay = (-delta[:, t] * self.A_log.exp()).exp()[..., None, None]
            h = decay * h + (delta[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
            y.append((h @ C[:, t, :, :, None])[..., 0] + D * x[:, t])
        y = torch.stack(y, 1).flatten(2)
        y = self.norm(y, z) if self.rmsnorm else y * functional.silu(z)
        return self.out_proj(torch.cat([functional.silu(z0) * x0, y], -1))


@pytest.fixture(scope="module")
def bridge():
    """The adapters, with the layers above where the package has its own."""
    modules = {
        name: types.ModuleType(name)
        for name in ("mamba_ssm", "mamba_ssm.modules", "mamba_ssm.modules.mamba_simple", "mamba_ssm.modules.mamba2")
    }
    modules["mamba_ssm.modules.mamba_simple"].Mamba = Mamba
    modules["mamba_ssm.modules.mamba2"].Mamba2 = Mamba2
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("hsv_torch.third_party.mamba_ssm")


def layer(layer_type, *args, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return layer_type(*args, **options).double().eval()


def sequences(batch=3, length=12, d_model=6, seed=1):
    draw = torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw


VARIANTS = [
    {}, {"ngroups": 3, "headdim": 2}, {"norm_before_gate": True, "ngroups": 3}, {"rmsnorm": False, "D_has_hdim": True},
    {"d_ssm": 8, "dt_limit": (0.1, 0.6)},
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_quantities_of_mamba2_are_those_of_the_layer(bridge, options):
    mamba2, x = layer(Mamba2, 6, 5, **options), sequences()
    view = hsv_torch.adapter_of(mamba2).view(mamba2)
    q, parts = view.quantities((x,), {}), view.parts((x,), {})
    y = hsv_torch.scan.gated_linear_attention(q.queries, q.keys, q.values, q.log_decay)
    y = (y + mamba2.D.view(mamba2.nheads, -1) * parts.x).flatten(2)
    with torch.no_grad():
        y = mamba2.norm(y, parts.z) if mamba2.rmsnorm else y * functional.silu(parts.z)
        found = mamba2.out_proj(torch.cat([parts.mlp, y], -1))
        torch.testing.assert_close(found, mamba2(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_weight_is_the_derivative_of_the_output_with_the_root_mean_square_held(bridge, options):
    mamba2, x = layer(Mamba2, 6, 5, **options), sequences()
    view = hsv_torch.adapter_of(mamba2).view(mamba2)
    q, parts = view.quantities((x,), {}), view.parts((x,), {})
    y = hsv_torch.scan.gated_linear_attention(q.queries, q.keys, q.values, q.log_decay)
    y = (y + mamba2.D.view(mamba2.nheads, -1) * parts.x).flatten(2).detach()
    gate = functional.silu(parts.z).detach()
    scale = torch.ones_like(y)
    if mamba2.rmsnorm:
        inside = (y if mamba2.norm_before_gate else y * gate).unflatten(2, (mamba2.ngroups, -1))
        root = (inside.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        scale = (torch.ones_like(inside) / root).flatten(2) * mamba2.norm.weight
    expected = gate * scale * mamba2.out_proj.weight[:, -mamba2.d_ssm :].norm(dim=0)
    torch.testing.assert_close(q.weight.flatten(2), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS[1::3], ids=str)
def test_the_contract_of_mamba2(bridge, options):
    found = check_adapter(
        lambda n_states: layer(Mamba2, 6, n_states, **options), n_states=4, inputs=sequences(), tolerance=1e-6
    )
    assert {name for name, reason in found.items() if reason != "holds"} == {"error bound", "step", "lengths"}


def test_the_contract_of_mamba(bridge):
    found = check_adapter(lambda n_states: layer(Mamba, 6, n_states), n_states=4, inputs=sequences(), tolerance=1e-6)
    assert {name for name, reason in found.items() if reason != "holds"} == {"error bound", "step", "lengths"}


@pytest.mark.parametrize("layer_type", [Mamba, Mamba2])
def test_the_number_of_states_is_told(bridge, layer_type):
    made, x = layer(layer_type, 6, 8), sequences()
    hsv_torch.compress_(made, 3, calibration=x)
    assert made.d_state == hsv_torch.adapter_of(made).n_states(made) == 3
    if layer_type is Mamba2:
        assert made.conv1d.groups == made.conv1d.in_channels == 12 + 2 * 3
        assert made.in_proj.out_features == 24 + 2 * 3 + 3


def test_our_layers_take_their_weights_and_are_cut_alike(bridge):
    x = sequences()
    theirs, ours = layer(Mamba2, 6, 8, ngroups=3), hsv_torch.Mamba2(6, 8, head_dim=4, n_groups=3, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    for one in (theirs, ours):
        hsv_torch.compress_(one, 3, calibration=x, criterion=StateChoice(compensate=False))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    theirs, ours = layer(Mamba, 6, 8), hsv_torch.Mamba(6, 8, dt_rank=2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    for one in (theirs, ours):
        hsv_torch.compress_(one, 3, calibration=x)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_what_cannot_be_observed_or_cut_is_refused(bridge):
    mamba2, x = layer(Mamba2, 6, 4), sequences()
    view = hsv_torch.adapter_of(mamba2).view(mamba2)
    with pytest.raises(hsv_torch.CutRefusedError, match="called with seq_idx, and only whole sequences"):
        view.quantities((x,), {"seq_idx": torch.zeros(3, 12)})
    with pytest.raises(hsv_torch.CutRefusedError, match="called with 2 positional arguments"):
        view.quantities((x, 12), {})
    cache = types.SimpleNamespace(seqlen_offset=4)
    with pytest.raises(hsv_torch.CutRefusedError, match="continue a sequence from its cache"):
        view.quantities((x,), {"inference_params": cache})
    cache.seqlen_offset = 0
    assert view.quantities((), {"u": x, "inference_params": cache}).keys.shape == (3, 12, 1, 4)
    split = layer(Mamba2, 6, 4, process_group=object())
    with pytest.raises(hsv_torch.CutRefusedError, match="divided among several processes"):
        hsv_torch.compress_(split, 2, calibration=x)
    with pytest.raises(hsv_torch.CutRefusedError, match="Mamba has no room for transforms"):
        hsv_torch.compress_(layer(Mamba, 6, 4), 2, calibration=x, criterion=ChannelBasis())


def test_a_missing_package_is_said(bridge, hide_package):
    hide_package("mamba_ssm")
    with pytest.raises(hsv.MissingBackendError, match=r"`mamba_ssm` is needed here .*pip install mamba-ssm"):
        importlib.reload(bridge)
