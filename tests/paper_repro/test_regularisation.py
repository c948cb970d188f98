import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from paper_repro.regularisation import PENALTIES, dense_hankel_sum


@pytest.mark.parametrize(
    ("layer", "options", "few"),
    [(hsv_torch.LRU, {}, None), (hsv_torch.S5, {}, None), (hsv_torch.S4D, {}, 2)],
    ids=["lru", "s5", "s4d"],
)
def test_both_ways_give_one_penalty_and_one_gradient(layer, options, few):
    """The gradient of the factors is written by hand; that of the eigenvalues is autograd's, through the dense matrices."""
    torch.manual_seed(7)
    sizes = (10, 6) if few is None else (few, few)  # a system of one input a channel has values of very different sizes
    model = torch.nn.Sequential(*(layer(4, size, **options) for size in sizes)).double()
    found = {}
    for name, penalty in PENALTIES.items():
        model.zero_grad()
        value = penalty(model)
        value.backward()
        found[name] = value.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    (one, gradients), (other, others) = found.values()
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0.0)
    assert gradients.keys() == others.keys()
    assert len(gradients) >= 6
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-6, atol=1e-8 * float(gradient.abs().max()))


@pytest.mark.parametrize("dt", [True, 0])
def test_the_dense_sum_is_the_sum_of_the_hankel_values(dt):
    random = np.random.default_rng(2)
    poles = 0.6 * np.exp(2j * np.pi * random.uniform(size=(2, 4)))
    if not dt:
        poles = -np.abs(poles.real) - 0.2 + 1j * poles.imag
    B, C = (random.normal(size=shape) + 1j * random.normal(size=shape) for shape in ((2, 4, 3), (2, 3, 4)))
    system = hsv.DiagonalStateSpace(*map(torch.from_numpy, (poles, B, C)), dt=dt)
    expected = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B, C, dt=dt)).sum(-1)
    np.testing.assert_allclose(dense_hankel_sum(system), expected, rtol=1e-10)


def test_values_that_rounding_errors_hide_get_no_gradient_and_add_little():
    """One input and one output: the values fall below what eigenvalues of the product can tell from zero."""
    torch.manual_seed(1)
    poles = (0.3 + 0.05 * torch.rand(12, dtype=torch.float64)).requires_grad_()
    ones = torch.ones(12, 1, dtype=torch.float64)
    total = dense_hankel_sum(hsv.DiagonalStateSpace(poles, ones, ones.mT, dt=True))
    total.backward()
    values = hsv.hankel_singular_values(
        hsv.DiagonalStateSpace(poles.detach().numpy(), ones.numpy(), ones.mT.numpy(), dt=True)
    )
    assert values[-1] < 1e-14 * values[0]  # the product has its squares, with 16 digits
    noise = 12 * np.sqrt(12 * np.finfo(np.float64).eps) * values[0]
    assert values.sum() <= total.item() * (1 + 1e-12) <= values.sum() + 2 * noise
    assert bool(torch.isfinite(poles.grad).all())
