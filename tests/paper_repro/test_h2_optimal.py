import warnings

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from paper_repro.h2_optimal import H2Optimal


def system_of(layer):
    return hsv_torch.adapter_of(layer).system(layer)


def as_system(cut):
    return hsv.DiagonalStateSpace.from_log_poles(cut.log_poles, cut.B, cut.C, dt=True)


@pytest.fixture
def layer():
    torch.manual_seed(2)
    return hsv_torch.LRU(3, 16, min_radius=0.7, max_radius=0.95)


def test_the_cut_is_the_reduction_in_diagonal_form_and_nearer_than_balanced_truncation(layer):
    system = system_of(layer)
    cut = H2Optimal().reduce(system, hsv.Order(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        wanted = hsv.irka(system, hsv.Order(5)).system
    np.testing.assert_allclose(as_system(cut).impulse_response(30), wanted.impulse_response(30), atol=1e-9)
    errors = [
        float(hsv.h2_norm(system - as_system(c))) for c in (cut, hsv_torch.ComplexHankel().reduce(system, hsv.Order(5)))
    ]
    assert errors[0] < 0.99 * errors[1]
    assert cut.error_bound == np.inf


def test_a_cut_layer_computes_what_the_reduced_system_does(layer):
    system = system_of(layer)
    cut = as_system(H2Optimal().reduce(system, hsv.Order(5)))
    hsv_torch.compress_(layer, hsv.Order(5), criterion=H2Optimal())
    assert layer.n_states == 5
    np.testing.assert_allclose(system_of(layer).impulse_response(20), cut.impulse_response(20), atol=1e-4)  # float32


def test_rules_choose_by_the_hankel_values(layer):
    system, rule = system_of(layer), hsv.HankelSum(discard=0.2)
    assert H2Optimal().reduce(system, rule).order == hsv_torch.ComplexHankel().reduce(system, rule).order


def test_the_gradient_of_the_small_layer_is_carried_as_by_any_cut(layer):
    """A lossless cut of a layer with a state that nothing reads: the carried moment is the small layer's gradient."""
    x = torch.randn(4, 12, 3)
    with torch.no_grad():
        layer.C[:, -1] = 0.0
        layer.B[-1] = 0.0
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-9, momentum=0.5)
    layer(x).square().sum().backward()
    optimizer.step()
    hsv_torch.compress_(layer, hsv.Order(15), criterion=H2Optimal(), optimizer=optimizer)
    carried = {name: optimizer.state[p]["momentum_buffer"] for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer(x).square().sum().backward()
    for name in ("B", "C"):
        torch.testing.assert_close(carried[name], layer.get_parameter(name).grad, rtol=2e-2, atol=1e-2)


def test_a_layer_of_nothing_is_not_cut(layer):
    with torch.no_grad():
        layer.C.zero_()
    with pytest.raises(hsv_torch.CutRefusedError, match="no state is left"):
        H2Optimal().reduce(system_of(layer), hsv.HankelSum(discard=0.1))
