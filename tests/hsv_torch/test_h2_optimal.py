"""Cuts of layers with a locally least H2 error."""

import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import ComplexHankel, H2Optimal, RealHankel
from hsv_torch.adapters import adapter_of
from hsv_torch.testing import check_adapter

CRITERIA = pytest.mark.parametrize("criterion", [H2Optimal(), H2Optimal(real_outputs=False)], ids=["real", "complex"])


def h2_error(system, plan, *, real):
    reduced = hsv.DiagonalStateSpace.from_log_poles(plan.log_poles, plan.B, plan.C)
    difference = hsv.real_part(system) - hsv.real_part(reduced) if real else system - reduced
    return torch.linalg.vector_norm(hsv.h2_norm(difference))


@pytest.mark.parametrize(
    ("make", "options"), [(hsv_torch.LRU, {"max_phase": 0.5}), (hsv_torch.S5, {}), (hsv_torch.S4D, {})]
)
def test_less_error_than_balanced_truncation(make, options):
    torch.manual_seed(0)
    layer = make(3, 24, **options)
    system = adapter_of(layer).system(layer)
    for real in (True, False):
        found = h2_error(system, H2Optimal(real_outputs=real).reduce(system, 6), real=real)
        assert found < 0.97 * h2_error(system, ComplexHankel().reduce(system, 6), real=real)
        if real:
            assert found < 0.97 * h2_error(system, RealHankel().reduce(system, 6), real=real)


@pytest.mark.parametrize(
    "make", [hsv_torch.LRU, *(pytest.param(make, marks=pytest.mark.slow) for make in (hsv_torch.S5, hsv_torch.S4D))]
)
def test_layers_keep_their_contract(make):
    check_adapter(lambda n: make(4, n).double(), criteria=[H2Optimal(tolerance=1e-3)])


@CRITERIA
def test_the_maps_are_the_projection(criterion):
    """At an optimum the old ``B`` is that of the new one but for what the projection drops, and so is ``C``."""
    torch.manual_seed(0)
    system = adapter_of(layer := hsv_torch.LRU(2, 12)).system(layer)
    plan = criterion.reduce(system, hsv.Order(12))  # nothing is dropped
    scale = system.B.abs().max()
    torch.testing.assert_close(plan.states(plan.B), system.B, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(plan.outputs(plan.C.mT).mT, system.C, rtol=0, atol=1e-6 * system.C.abs().max())


def test_cuts_while_training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(hsv_torch.LRU(3, 20), hsv_torch.S5(3, 20), torch.nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    compressor = hsv_torch.InTrainingCompressor(
        model, optimizer, rule=8, schedule=hsv_torch.Schedule.once(4, 2), criterion=H2Optimal(), moments="carry"
    )
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 15, 3)).square().mean()
        loss.backward()
        optimizer.step()
        event = compressor.step()
        if event is not None:
            for record in event.layers:
                assert (record.outcome, record.n_states_after) == ("cut", 8)
                assert record.error_bound == float("inf")
                assert "the descent had" in record.notes[-1]
            moments = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
            assert all(m.isfinite().all() for m in moments)
            assert optimizer.state[model[0].B]["exp_avg"].abs().max() > 0
    assert loss.isfinite()
    assert [model[0].n_states, model[1].n_states] == [8, 8]


def test_the_sizes_of_the_values():
    torch.manual_seed(0)
    system = adapter_of(layer := hsv_torch.LRU(2, 12)).system(layer)
    for rule in (hsv.HankelSum(discard=0.2), hsv.Threshold(0.05)):
        for real in (True, False):
            plan = H2Optimal(real_outputs=real).reduce(system, rule)
            assert plan.n_states == plan.order == int(rule.choose(H2Optimal().spectrum(system)))


def test_real_poles_are_refused():
    layer = hsv_torch.S4D(3, 8, initialization="real")
    with pytest.raises(hsv.HsvError, match="a layer with real poles cannot hold; use RealPoles"):
        hsv_torch.compress_(layer, 4, criterion=H2Optimal())


def test_a_layer_without_any_influence():
    layer = hsv_torch.LRU(2, 6)
    torch.nn.init.zeros_(layer.C)
    with pytest.raises(hsv_torch.CutRefusedError, match="all Hankel singular values are zero"):
        H2Optimal().reduce(adapter_of(layer).system(layer), hsv.HankelSum(discard=0.1))
