"""Selective layers in which the states matter, and what the tests do with them."""

import copy

import torch

import hsv_torch


def mamba(n_states=12, d_model=4, *, seed=0, dtype=torch.float64, **options):
    """Make a layer that differs from its initialisation as a trained one does: fast steps, strong B and C, A different in every channel."""
    g = torch.Generator().manual_seed(seed)
    layer = hsv_torch.Mamba(d_model, n_states, generator=g, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.A_log += 0.1 * torch.randn(layer.A_log.shape, generator=g, dtype=torch.float64)
        layer.dt_proj.bias += 2.0
        layer.x_proj.weight[layer.dt_rank :] *= 4.0
        layer.D *= 0.1
    return layer.to(dtype)


def sequences(batch=12, length=30, d_model=4, *, seed=1, dtype=torch.float64):
    """Draw inputs that remember: white noise through a filter."""
    noise = torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for t in range(1, length):
        noise[:, t] += 0.6 * noise[:, t - 1]
    return noise.to(dtype)


def plan(layer, rule, criterion, calibration):
    """Return the plan of a cut from calibration inputs, or from lists of positional and keyword arguments."""
    adapter = hsv_torch.adapter_of(layer)
    observation = adapter.observe(layer, criterion)
    for batch in [calibration] if isinstance(calibration, torch.Tensor) else calibration:
        args, kwargs = batch if isinstance(batch, tuple) else ((batch,), {})
        observation.update(layer, args, kwargs)
    return adapter.reduce(layer, rule, criterion, observation)


def cut(layer, rule, criterion, calibration):
    """Return a copy of the layer after the cut, and the plan."""
    planned = plan(layer, rule, criterion, calibration)
    twin = copy.deepcopy(layer)
    hsv_torch.adapter_of(twin).apply(twin, planned)
    return twin, planned


@torch.no_grad()
def relative_error(small, layer, x):
    """Return the error of the outputs relative to the outputs, both without what does not pass through the states."""
    still = copy.deepcopy(layer)
    still.x_proj.weight[still.dt_rank :] = 0.0
    return float((small(x) - layer(x)).norm() / (layer(x) - still(x)).norm())
