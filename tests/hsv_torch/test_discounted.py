import copy
import math

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import BalancedChoice, ComplexHankel, Discounted, ModeChoice, RealHankel, RealPoles
from hsv_torch.testing import check_adapter
from tests.hsv_torch.test_criteria import select, systems

BASES = [ComplexHankel(), RealHankel(), ModeChoice("last"), BalancedChoice("random")]


def weighted_impulse_response(system, horizon, n_steps=2000):
    k = torch.arange(n_steps)
    poles = system.log_poles.exp()[:, None] ** k * torch.exp(-k / horizon)
    return torch.einsum("pn,nk,nm->kpm", system.C, poles, system.B)


@pytest.mark.parametrize("horizon", [3, 20.0])
def test_the_values_are_those_of_the_weighted_sums(horizon):
    system = systems(n=5, seed=2)
    k = np.arange(4000)
    powers = np.exp(system.log_poles.numpy()[:, None] * k - k / horizon)
    B, C = system.B.numpy(), system.C.numpy()
    P, Q = (powers @ powers.conj().T) * (B @ B.conj().T), (powers.conj() @ powers.T) * (C.conj().T @ C)
    expected = np.sqrt(np.sort(np.linalg.eigvals(P @ Q).real)[::-1])
    np.testing.assert_allclose(Discounted(horizon).spectrum(system), expected, rtol=1e-7)


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_a_long_horizon_is_the_criterion_itself(base):
    system = systems(2, n=6, seed=4)
    plain, far = base.reduce(system, 3), Discounted(1e13, base).reduce(system, 3)
    for name in ("log_poles", "B", "C"):
        torch.testing.assert_close(getattr(far, name), getattr(plain, name), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(Discounted(1e13, base).spectrum(system), base.spectrum(system), rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_in_the_notes_holds_for_the_weighted_responses(seed):
    system, horizon = systems(n=10, seed=seed), 12
    plan = Discounted(horizon).reduce(system, 4)
    assert plan.error_bound == math.inf
    if "longer-lived" in plan.notes[-1]:
        pytest.fail("choose systems whose reduction needs no correction")
    small = hsv.DiagonalStateSpace.from_log_poles(plan.log_poles, plan.B, plan.C)
    error = weighted_impulse_response(system, horizon) - weighted_impulse_response(small, horizon)
    gains = torch.linalg.matrix_norm(torch.fft.fft(error, dim=0), ord=2)
    bound = float(plan.notes[-1].split()[-1])
    assert 0.02 * bound < float(gains.max()) <= 1.01 * bound  # the notes round to three digits


def test_states_that_never_fade_do_not_crowd_out_the_others():
    torch.manual_seed(0)
    fast = torch.polar(torch.rand(6, dtype=torch.float64) * 0.3 + 0.6, torch.rand(6, dtype=torch.float64) * 3)
    slow = torch.polar(torch.full((6,), 1 - 1e-7, dtype=torch.float64), torch.rand(6, dtype=torch.float64) * 3)
    C = torch.randn(2, 12, dtype=torch.complex128)
    C[:, 6:] *= 1e-3  # over 50 steps they contribute some hundredths of what the others do
    system = hsv.DiagonalStateSpace(torch.cat([fast, slow]), torch.randn(12, 2, dtype=torch.complex128), C, dt=True)
    truth = system.impulse_response(50)

    def error(criterion):
        plan = criterion.reduce(system, 6)
        small = hsv.DiagonalStateSpace.from_log_poles(plan.log_poles, plan.B, plan.C)
        return float(torch.linalg.vector_norm(small.impulse_response(50) - truth) / torch.linalg.vector_norm(truth))

    assert error(ComplexHankel()) > 0.9
    assert error(Discounted(50)) < 0.1


def test_no_pole_is_twice_as_slow_as_the_slowest_old_one():
    found = 0
    for seed in range(30):
        system = systems(2, n=8, seed=seed)
        plan = Discounted(1.5).reduce(system, 2)
        limit = system.log_poles.real.amax(-1, keepdim=True) / 2
        assert (plan.log_poles.real <= limit).all()
        corrected = (plan.log_poles.real == limit).sum()
        assert (f"{int(corrected)} of 4 states came out longer-lived" in plan.notes[-1]) == bool(corrected)
        found += int(corrected)
    assert found > 0


def test_the_systems_of_a_batch_are_weighted_each():
    batch = systems(3, n=6, seed=1)
    together = Discounted(9).reduce(batch, 3)
    for i in range(3):
        alone = Discounted(9).reduce(select(batch, i), 3)
        torch.testing.assert_close(together.log_poles[i], alone.log_poles)


@pytest.mark.parametrize("make", [hsv_torch.LRU, hsv_torch.S5, hsv_torch.S4D], ids=lambda t: t.__name__)
def test_layers_keep_their_contract(make):
    # S4D begins with a real pole, of which the conjugate-aware reading keeps one of its two real states
    bases = [ComplexHankel()] if make is hsv_torch.S4D else [ComplexHankel(), RealHankel()]
    check_adapter(lambda n: make(4, n).double(), criteria=[Discounted(24, base) for base in bases])


def test_real_poles_stay_real():
    torch.manual_seed(1)
    layer = hsv_torch.S4D(3, 8, initialization="real")
    hsv_torch.compress_(layer, 4, criterion=Discounted(30, RealPoles()))
    assert layer.n_states == 4
    assert layer(torch.randn(2, 20, 3)).isfinite().all()


def test_moments_follow():
    torch.manual_seed(2)
    layer = hsv_torch.LRU(4, 16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    before = copy.deepcopy(layer)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 30, 4)).square().mean().backward()
        optimizer.step()
    hsv_torch.compress_(layer, 6, optimizer=optimizer, criterion=Discounted(30))
    assert layer.n_states == 6 < before.n_states
    assert {id(p) for p in optimizer.state} == {id(p) for p in layer.parameters()}


@pytest.mark.parametrize("horizon", [0, -1.0, math.inf, math.nan, True, "64"])
def test_a_horizon_is_a_positive_number(horizon):
    with pytest.raises(hsv.HsvError, match="`horizon` must be a positive number of steps, got"):
        Discounted(horizon)


def test_the_criterion_is_one_of_diagonal_layers():
    with pytest.raises(TypeError, match="`criterion` must be a DiagonalCriterion"):
        Discounted(64, "complex")
