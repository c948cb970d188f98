"""MambaBlock of mambapy: equal outputs, equal cuts, steps after a cut."""

import importlib

import mambapy.mamba
import pytest
import torch

import hsv
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


@OPTIONS
def test_the_same_cut_gives_the_same_outputs_as_ours(options):
    layer = block(**options)
    config = layer.config
    ours, x = our_twin(layer), sequences(d_model=config.d_model)
    with torch.no_grad():
        full = layer(x)
        for one in (layer, ours):
            hsv_torch.compress_(one, 2, calibration=x)
        expected = layer(x)
        assert ours.n_states == layer.config.d_state == 2
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(full, expected, rtol=0, atol=1e-4)
    assert config.d_state == options.get("d_state", 8), "the configuration that other layers share was changed"


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mambapy.mamba.Mamba(configuration()).eval()


def test_layers_of_different_sizes_step_and_are_loaded(tmp_path):
    made, x = model(), sequences()
    for name, n_states in (("layers.0.mixer", 3), ("layers.1.mixer", 6)):
        hsv_torch.compress_(made, n_states, layers=[name], calibration=x)
    assert [part.mixer.config.d_state for part in made.layers] == [3, 6]
    assert made.config.d_state == 8
    caches = [(None, torch.zeros(3, 24, 3)) for _ in made.layers]
    with torch.no_grad():
        expected = made(x)
        for t in range(20):
            y, caches = made.step(x[:, t], caches)
            torch.testing.assert_close(y, expected[:, t], rtol=0, atol=1e-5)
    hsv_torch.save_checkpoint(made, tmp_path / "checkpoint.safetensors")
    fresh = model(seed=1)
    hsv_torch.load_into(fresh, tmp_path / "checkpoint.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(fresh(x), expected, rtol=0, atol=0)


def test_a_cut_that_fails_half_way_left_no_trace(monkeypatch):
    made, x = model(), sequences()
    with torch.no_grad():
        expected = made(x)
    adapter, applied = hsv_torch.adapter_of(made.layers[0].mixer), []
    apply = type(adapter).apply

    def fail_at_the_second(self, layer, cut):
        if applied:
            raise RuntimeError("out of memory")
        applied.append(layer)
        return apply(self, layer, cut)

    monkeypatch.setattr(type(adapter), "apply", fail_at_the_second)
    with pytest.raises(RuntimeError, match="out of memory"):
        hsv_torch.compress_(made, 2, calibration=x)
    assert all(part.mixer.config is made.config for part in made.layers)
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected, rtol=0, atol=0)


def test_a_missing_package_is_said(hide_package):
    hide_package("mambapy")
    with pytest.raises(hsv.MissingBackendError, match=r"`mambapy.*` is needed here .*pip install mambapy"):
        importlib.reload(bridge)
