"""MambaBlock of mambapy: equal outputs, equal cuts, steps after a cut."""

import mambapy.mamba
import pytest
import torch

import hsv_torch
from hsv_torch import Mamba
from hsv_torch.third_party import mambapy as bridge


def configuration(**options):
    return mambapy.mamba.MambaConfig(**({"d_model": 12, "d_state": 8, "n_layers": 2} | options))


def block(seed=0, **options):
    """A block with random weights, those included that mambapy begins with at one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = mambapy.mamba.MambaBlock(configuration(**options)).eval()
        with torch.no_grad():
            layer.D.normal_()
            layer.A_log.add_(torch.randn_like(layer.A_log) / 4)
    return layer


def our_twin(layer):
    config = layer.config
    ours = Mamba(
        config.d_model, config.d_state, expand=config.expand_factor, conv_kernel=config.d_conv, dt_rank=config.dt_rank,
        bias=config.bias, conv_bias=config.conv_bias,
    )  # fmt: skip
    ours.load_state_dict(layer.state_dict())
    return ours


def sequences(batch=3, length=20, d_model=12, seed=1):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed))


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_bias": False, "pscan": False},
        {"bias": True, "d_state": 3, "d_conv": 2},
        {"d_model": 40, "expand_factor": 1, "dt_rank": 5},
    ],
    ids=str,
)


@OPTIONS
def test_outputs_equal_those_of_the_block(options):
    layer = block(**options)
    x = sequences(d_model=layer.config.d_model)
    with torch.no_grad():
        torch.testing.assert_close(our_twin(layer)(x), layer(x), rtol=0, atol=1e-5)


@OPTIONS
def test_step_equals_their_step(options):
    layer = block(**options)
    ours, x = our_twin(layer), sequences(d_model=layer.config.d_model)
    cache = (None, torch.zeros(3, layer.config.d_inner, layer.config.d_conv - 1))
    state = ours.initial_state(3)
    with torch.no_grad():
        for x_t in x.unbind(1):
            expected, cache = layer.step(x_t, cache)
            y, state = ours.step(x_t, state)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@OPTIONS
def test_quantities_are_those_of_the_block(options):
    layer = block(**options)
    x = sequences(d_model=layer.config.d_model)
    q = bridge.MambaBlockView(layer).quantities((x,), {})
    with torch.no_grad():
        y = layer.selective_scan_seq(q.u, q.delta, -layer.A_log.exp(), q.B, q.C, layer.D)
        torch.testing.assert_close(layer.out_proj(y * q.gate), layer(x), rtol=0, atol=1e-5)
    assert q.mask is None


def test_norms_over_the_states_are_refused():
    layer = block(inner_layernorms=True)
    with pytest.raises(
        hsv_torch.CutRefusedError, match=r"normalises B and C over the states .*choose `layers` without"
    ):
        bridge.MambaBlockView(layer).quantities((sequences(),), {})
