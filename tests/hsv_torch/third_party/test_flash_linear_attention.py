"""Layers of flash-linear-attention, which need a GPU: layers with their documented attributes stand in for them."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

import hsv
import hsv_torch
from hsv_torch.scan.reference import gated_linear_attention
from hsv_torch.selective import SharedBasis, StateChoice
from hsv_torch.testing import check_adapter


class ShortConvolution(nn.Conv1d):
    """Attributes of ``fla.modules.ShortConvolution``: a depthwise causal convolution with SiLU."""

    def __init__(self, hidden_size, kernel_size, bias):
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size, padding=kernel_size - 1, bias=bias)
        self.hidden_size = hidden_size

    def forward(self, x):
        return functional.silu(super().forward(x.mT)[..., : x.shape[1]].mT)


class Norm(nn.Module):
    """Attributes of ``fla.modules.RMSNorm`` and ``FusedRMSNormGated``."""

    def __init__(self, hidden_size, elementwise_affine, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden_size)) if elementwise_affine else None
        self.eps = eps

    def forward(self, o):
        return functional.rms_norm(o, o.shape[-1:], self.weight, self.eps)


class GatedLinearAttention(nn.Module):
    """Attributes and arguments of ``fla.layers.gla.GatedLinearAttention``."""

    by_key = True

    def __init__(
        self, hidden_size=12, head_k_dim=4, num_heads=3, num_kv_heads=None, feature_map_fn=None, use_short_conv=False, conv_bias=True,
        use_output_gate=True, fuse_norm=True, elementwise_affine=True, clamp_min=None,
    ):  # fmt: skip
        super().__init__()
        self.hidden_size, self.num_heads, self.layer_idx = hidden_size, num_heads, 1
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_groups = num_heads // self.num_kv_heads
        self.head_k_dim, self.head_v_dim = head_k_dim, hidden_size // num_heads
        self.key_dim, self.value_dim = head_k_dim * num_heads, hidden_size
        self.key_dim_per_group = self.key_dim // self.num_kv_groups
        self.feature_map_fn, self.use_short_conv, self.gate_logit_normalizer = feature_map_fn, use_short_conv, 16
        self.q_proj = nn.Linear(hidden_size, self.key_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, self.key_dim_per_group, bias=False)
        self.v_proj = nn.Linear(hidden_size, self.value_dim // self.num_kv_groups, bias=False)
        if use_short_conv:
            for name, width in (("q", self.key_dim), ("k", self.key_dim_per_group), ("v", self.value_dim)):
                setattr(self, f"{name}_conv1d", ShortConvolution(width, 3, conv_bias))
        if self.by_key:
            self.use_output_gate, self.clamp_min = use_output_gate, clamp_min
            self.gk_proj = nn.Sequential(nn.Linear(hidden_size, 5, bias=False), nn.Linear(5, self.key_dim_per_group))
        else:
            self.gk_proj = nn.Linear(hidden_size, num_heads)
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, self.value_dim, bias=False)
        self.fuse_norm_and_gate = fuse_norm and use_output_gate
        norm = Norm(self.head_v_dim, elementwise_affine, 1e-5)
        if self.fuse_norm_and_gate:
            self.g_norm_swish_gate = norm
        else:
            self.g_norm, self.gate_fn = norm, torch.sigmoid
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, **kwargs):
        x, heads = hidden_states, (-1, self.head_k_dim)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.use_short_conv:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        gk = functional.logsigmoid(self.gk_proj(x)) / self.gate_logit_normalizer
        if getattr(self, "clamp_min", None) is not None:
            gk = gk.clamp_min(self.clamp_min)
        q, k = q.unflatten(-1, heads), k.unflatten(-1, heads)
        if self.feature_map_fn is not None:
            q, k = self.feature_map_fn(q), self.feature_map_fn(k)
        v = v.unflatten(-1, (-1, self.head_v_dim))
        o, _ = gated_linear_attention(q * self.head_k_dim**-0.5, k, v, gk.unflatten(-1, heads) if self.by_key else gk)
        if self.fuse_norm_and_gate:
            o = self.g_norm_swish_gate(o).flatten(-2) * functional.silu(self.g_proj(x))
        else:
            o = self.g_norm(o).flatten(-2)
            if hasattr(self, "g_proj"):
                o = o * self.gate_fn(self.g_proj(x))
        return self.o_proj(o), None, past_key_values


class SimpleGatedLinearAttention(GatedLinearAttention):
    """Attributes and arguments of ``fla.layers.simple_gla.SimpleGatedLinearAttention``."""

    by_key = False


@pytest.fixture(scope="module")
def bridge():
    """The adapters, with the layers above where the package has its own."""
    modules = {
        name: types.ModuleType(name) for name in ("fla", "fla.layers", "fla.layers.gla", "fla.layers.simple_gla")
    }
    modules["fla.layers.gla"].GatedLinearAttention = GatedLinearAttention
    modules["fla.layers.simple_gla"].SimpleGatedLinearAttention = SimpleGatedLinearAttention
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("hsv_torch.third_party.flash_linear_attention")


def layer(layer_type, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return layer_type(**options).double().eval()


def sequences(batch=3, length=12, seed=1):
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CHOICE = StateChoice("ghost", compensate=False)
CASES = pytest.mark.parametrize(
    ("layer_type", "options", "criterion"),
    [
        (GatedLinearAttention, {}, StateChoice()),
        (GatedLinearAttention, {"use_short_conv": True, "clamp_min": -0.03}, CHOICE),
        (GatedLinearAttention, {"feature_map_fn": torch.relu, "fuse_norm": False}, CHOICE),
        (GatedLinearAttention, {"use_output_gate": False, "elementwise_affine": False}, StateChoice("hankel")),
        (SimpleGatedLinearAttention, {}, SharedBasis()),
        (SimpleGatedLinearAttention, {"use_short_conv": True, "conv_bias": False}, CHOICE),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value) if isinstance(value, dict) else "",
)


@CASES
def test_quantities_are_those_of_the_layer(bridge, layer_type, options, criterion):
    del criterion
    made, x = layer(layer_type, **options), sequences()
    view = hsv_torch.adapter_of(made).view(made)
    q = view.quantities((x,), {})
    y, _ = gated_linear_attention(q.queries, q.keys, q.values, q.log_decay)
    y = y.detach().requires_grad_()
    norm = getattr(made, "g_norm_swish_gate", None) or made.g_norm
    # What the layer makes of y with the root mean square held: linear, so that a difference quotient is exact.
    root = (y.detach().square().mean(-1, keepdim=True) + norm.eps).sqrt()
    scale = torch.ones_like(y) if norm.weight is None else norm.weight.expand_as(y)
    if hasattr(made, "g_proj"):
        gate = functional.silu if hasattr(made, "g_norm_swish_gate") else made.gate_fn
        scale = scale * gate(made.g_proj(x)).unflatten(-1, y.shape[2:])
    out = made.o_proj((y / root * scale).flatten(-2))
    torch.testing.assert_close(out, made(x)[0], rtol=0, atol=1e-12)
    expected = (scale / root) * made.o_proj.weight.norm(dim=0).unflatten(0, y.shape[2:])
    torch.testing.assert_close(q.weight, expected, rtol=1e-9, atol=1e-12)


@CASES
def test_cuts(bridge, layer_type, options, criterion):
    """To full size without a change; smaller with the sizes told."""
    made, x = layer(layer_type, **options), sequences(6)
    expected = made(x)[0].detach()
    hsv_torch.compress_(made, 4, calibration=x, criterion=criterion)
    torch.testing.assert_close(made(x)[0], expected, rtol=0, atol=1e-6)
    hsv_torch.compress_(made, 2, calibration=x, criterion=criterion)
    assert (made.head_k_dim, made.key_dim, made.key_dim_per_group) == (2, 6, 6)
    assert made.q_proj.out_features == made.k_proj.weight.shape[0] == 6
    if layer_type is GatedLinearAttention:
        assert made.gk_proj[1].out_features == made.gk_proj[1].bias.shape[0] == 6
    if options.get("use_short_conv"):
        assert made.q_conv1d.groups == made.k_conv1d.hidden_size == 6
    error = float((made(x)[0].detach() - expected).norm() / expected.norm())
    assert 1e-6 < error < 1


@pytest.mark.parametrize(
    ("layer_type", "criterion"),
    [(GatedLinearAttention, StateChoice("ghost")), (SimpleGatedLinearAttention, SharedBasis())],
)
def test_the_contract(bridge, layer_type, criterion):
    found = check_adapter(
        lambda n_states: layer(layer_type, head_k_dim=n_states), n_states=4, inputs=sequences(length=8), criteria=[criterion],
        output=lambda y: y[0], tolerance=1e-6,
    )  # fmt: skip
    assert {name for name, reason in found.items() if reason != "holds"} == {"error bound", "step", "lengths"}


def test_padding_is_left_out_of_the_calibration(bridge):
    x, lengths = sequences(4), torch.tensor([12, 5, 9, 2])
    mask = (torch.arange(12) < lengths[:, None]).long()
    alone = [row[None, :n] for row, n in zip(x, lengths.tolist(), strict=True)]
    made, other = layer(SimpleGatedLinearAttention), layer(SimpleGatedLinearAttention)
    hsv_torch.compress_(made, 2, calibration=alone)
    hsv_torch.compress_(other, 2, calibration=[x], forward=lambda model, batch: model(batch, attention_mask=mask))
    for name, value in made.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_our_layer_takes_their_weights(bridge):
    for layer_type, decay in ((GatedLinearAttention, "key"), (SimpleGatedLinearAttention, "head")):
        theirs, x = layer(layer_type), sequences()
        ours = hsv_torch.GatedLinearAttention(12, 4, n_heads=3, decay=decay, gate_rank=5, dtype=torch.float64)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x)[0], rtol=0, atol=1e-12)


def test_what_cannot_be_observed_or_cut_is_refused(bridge):
    x = sequences()
    made = layer(GatedLinearAttention)
    view = hsv_torch.adapter_of(made).view(made)
    with pytest.raises(hsv_torch.CutRefusedError, match="continue a sequence from its cache"):
        view.quantities((x,), {"past_key_values": [0, 1]})
    assert view.quantities((x,), {"past_key_values": [0]}).keys.shape == (3, 12, 3, 4)  # of the layer before this one
    with pytest.raises(hsv_torch.CutRefusedError, match=r"packed into one \(cu_seqlens\)"):
        view.quantities((x,), {"cu_seqlens": torch.tensor([0, 12])})
    shared = layer(GatedLinearAttention, num_kv_heads=1)
    with pytest.raises(hsv_torch.CutRefusedError, match=r"share keys \(num_kv_heads=1\)"):
        hsv_torch.adapter_of(shared).view(shared).quantities((x,), {})
    with pytest.raises(hsv_torch.CutRefusedError, match="decay of its own, which a change of basis would mix"):
        hsv_torch.compress_(made, 2, calibration=x, forward=lambda m, b: m(b), criterion=SharedBasis())
    behind = layer(SimpleGatedLinearAttention, use_short_conv=True)
    with pytest.raises(hsv_torch.CutRefusedError, match="through an activation"):
        hsv_torch.compress_(behind, 2, calibration=x, criterion=StateChoice())


def test_a_missing_package_is_said(bridge, hide_package):
    hide_package("fla")
    with pytest.raises(hsv.MissingBackendError, match=r"`fla` is needed here .*pip install flash-linear-attention"):
        importlib.reload(bridge)
