"""Gradients beside finite differences: PyTorch's in double precision, and those of exact arithmetic where values (nearly) coincide or vanish."""

import numpy as np
import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from tests.hsv.exact import diagonal_hankel_values

REAL, COMPLEX = torch.float64, torch.complex128
KINDS = ["logarithms", "discrete", "continuous", "dense discrete", "dense continuous"]


def make(kind, poles, B, C):
    if kind == "logarithms":
        return hsv.DiagonalStateSpace.from_log_poles(poles, B, C)
    if kind.startswith("dense"):
        return hsv.StateSpace(poles, B, C, dt=kind == "dense discrete" or 0)
    return hsv.DiagonalStateSpace(poles, B, C, dt=kind == "discrete" or 0)


def draw(kind, dtype, *, n=4, m=2, p=3, batch=()):
    """State matrix, poles or logarithms, and B and C, that require gradients."""
    torch.manual_seed(0)
    B, C = torch.randn(*batch, n, m, dtype=dtype), torch.randn(*batch, p, n, dtype=dtype)
    if kind.startswith("dense"):
        A = 0.25 * torch.randn(*batch, n, n, dtype=dtype)
        poles = A if kind == "dense discrete" else A - torch.eye(n, dtype=dtype)
    else:
        poles = (0.1 + 0.8 * torch.rand(*batch, n, dtype=REAL)).to(dtype)
        if dtype == COMPLEX:
            poles = poles * torch.exp(6j * torch.rand(*batch, n, dtype=REAL))
        poles = {"logarithms": poles.log(), "discrete": poles, "continuous": poles - 1.2}[kind]
    return [x.clone().requires_grad_() for x in (poles, B, C)]


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind, dtype):
    poles, B, C = draw(kind, dtype, batch=(2,))
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=REAL)

    def values(*arrays):
        return hsv_torch.hankel_singular_values(make(kind, *arrays)) @ weights

    assert torch.autograd.gradcheck(values, (poles, B, C), rtol=1e-5, atol=1e-7)
    C0, B0 = C.detach(), B.detach()
    assert torch.autograd.gradcheck(lambda a, b: hsv_torch.controllability_gramian(make(kind, a, b, C0)), (poles, B))
    assert torch.autograd.gradcheck(lambda a, c: hsv_torch.observability_gramian(make(kind, a, B0, c)), (poles, C))


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_control_library(kind, dtype):
    sys = make(kind, *(x.detach() for x in draw(kind, dtype, batch=(3,))))
    torch.testing.assert_close(hsv_torch.hankel_singular_values(sys), hsv.hankel_singular_values(sys))
    torch.testing.assert_close(hsv_torch.hankel_sum(sys), hsv.hankel_singular_values(sys).sum(-1))
    torch.testing.assert_close(hsv_torch.controllability_gramian(sys), hsv.controllability_gramian(sys))
    torch.testing.assert_close(hsv_torch.observability_gramian(sys), hsv.observability_gramian(sys))
    poles, B, C = draw(kind, dtype, batch=(3,))
    found = hsv_torch.hankel_singular_values(make(kind, poles, B, C))
    torch.testing.assert_close(found.detach(), hsv.hankel_singular_values(sys))


def exact_slope(arrays, directions, *, step=1e-9):
    """Central difference of the sum in exact arithmetic: its only error is that of the formula, and the rounding of the values."""
    moved = [[x + s * step * d for x, d in zip(arrays, directions, strict=True)] for s in (1, -1)]
    high, low = (np.sum(diagonal_hankel_values(*x, log_poles=True)) for x in moved)
    return (high - low) / (2 * step)


def slope(arrays, directions):
    """The same derivative from the gradient."""
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    hsv_torch.hankel_sum(hsv.DiagonalStateSpace.from_log_poles(*tensors)).backward()
    return sum(float((x.grad.conj() * torch.tensor(d)).real.sum()) for x, d in zip(tensors, directions, strict=True))


def directions_like(arrays, rng):
    return [rng.normal(size=x.shape) + (1j * rng.normal(size=x.shape) if np.iscomplexobj(x) else 0.0) for x in arrays]


@pytest.mark.parametrize("gap", [0.0, 1e-13, 1e-9, 1e-5])
def test_coinciding_and_nearly_coinciding_values(gap, rng):
    """Three uncoupled systems with one input and output each, and equal values: the sum stays smooth."""
    logs = np.array([-0.1 + 0.3j, -0.1 + 2.0j, -0.1 - 1.0j])
    B, C = np.eye(3) + 0j, np.diag([1.0, 1.0 + gap, 1.0 + 2 * gap]) + 0j
    unitary = np.linalg.qr(rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3)))[0]
    arrays = logs, B @ unitary, unitary @ C
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace.from_log_poles(*arrays))
    np.testing.assert_allclose(values, values[0], rtol=3 * gap + 1e-13)
    for _ in range(3):
        directions = directions_like(arrays, rng)
        # A smooth function: the error of the formula is step^2, that of the difference eps / step.
        np.testing.assert_allclose(slope(arrays, directions), exact_slope(arrays, directions, step=1e-6), rtol=1e-8)


@pytest.mark.parametrize("shape", [(6, 1), (6, 3)])
@pytest.mark.parametrize("radius", [0.9, 1 - 1e-6])
def test_layers_beside_exact_arithmetic(shape, radius, rng):
    n, m = shape
    logs = np.log(radius) * rng.uniform(1, 3, n) + 1j * rng.uniform(0, 6, n)
    arrays = logs, rng.normal(size=(n, m, 2)) @ [1, 1j], rng.normal(size=(m, n, 2)) @ [1, 1j]
    directions = directions_like(arrays, rng)
    directions[0] = directions[0] * abs(logs.real)  # the scale on which poles next to the circle matter
    step = 1e-6
    np.testing.assert_allclose(
        slope(arrays, directions), exact_slope(arrays, directions, step=step), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("phase", [6.0, 0.8, 0.0])
def test_the_sum_from_an_eigendecomposition(phase, rng):
    """Many states and inputs: beside the sum of the values, which come from a singular value decomposition. The last system's values are too far apart."""
    logs = -rng.uniform(1e-3, 0.1, 70) + 1j * phase * rng.uniform(size=70)
    arrays = logs, rng.normal(size=(70, 5, 2)) @ [1, 1j], rng.normal(size=(5, 70, 2)) @ [1, 1j]
    results = []
    for total in (hsv_torch.hankel_sum, lambda sys: hsv_torch.hankel_singular_values(sys).sum()):
        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        value = total(hsv.DiagonalStateSpace.from_log_poles(*tensors))
        value.backward()
        results.append((value.detach(), [x.grad for x in tensors]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-14, atol=0)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * b.abs().max().item())


def test_states_that_no_input_reaches(rng):
    """Values of 0: a kink, at which the gradient is finite, and right in every direction that leaves them 0."""
    logs = -rng.uniform(0.1, 0.5, 4) + 1j * rng.uniform(0, 6, 4)
    B, C = rng.normal(size=(4, 2, 2)) @ [1, 1j], rng.normal(size=(2, 4, 2)) @ [1, 1j]
    B[3] = 0
    arrays = logs, B, C
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace.from_log_poles(*arrays))
    assert values[3] < 1e-15 * values[0]
    directions = directions_like(arrays, rng)
    directions[1][3] = 0
    np.testing.assert_allclose(slope(arrays, directions), exact_slope(arrays, directions, step=1e-6), rtol=1e-8)
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    hsv_torch.hankel_sum(hsv.DiagonalStateSpace.from_log_poles(*tensors)).backward()
    assert all(bool(torch.isfinite(x.grad.abs()).all()) for x in tensors)


def test_a_system_of_zeros():
    B = torch.zeros(3, 2, dtype=REAL, requires_grad=True)
    poles = torch.tensor([0.5, 0.2, 0.1], dtype=REAL, requires_grad=True)
    total = hsv_torch.hankel_sum(hsv.DiagonalStateSpace(poles, B, torch.ones(1, 3, dtype=REAL), dt=True))
    total.backward()
    assert total.item() == 0
    assert torch.equal(B.grad, torch.zeros_like(B))
    assert torch.equal(poles.grad, torch.zeros_like(poles))


@pytest.mark.parametrize("n", [20, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_is_the_rounding_of_double(n, dtype):
    wide = COMPLEX if dtype == torch.complex64 else REAL
    single = [x.detach().to(dtype).requires_grad_() for x in draw("discrete", wide, n=n, m=3, p=3)]
    double = [x.detach().to(wide).requires_grad_() for x in single]
    for arrays in (single, double):
        hsv_torch.hankel_sum(make("discrete", *arrays)).backward()
    for a, b in zip(single, double, strict=True):
        assert a.grad.dtype == dtype
        torch.testing.assert_close(a.grad, b.grad.to(dtype))


def test_a_graph_without_some_of_the_tensors():
    for needed in range(3):
        arrays = [x.detach() for x in draw("logarithms", COMPLEX)]
        whole = draw("logarithms", COMPLEX)
        arrays[needed].requires_grad_()
        for tensors in (arrays, whole):
            hsv_torch.hankel_sum(make("logarithms", *tensors)).backward()
        torch.testing.assert_close(arrays[needed].grad, whole[needed].grad)
        assert all(x.grad is None for i, x in enumerate(arrays) if i != needed)


def test_gradients_reach_what_the_system_is_made_of():
    """A layer's own parameters before the system, hsv.real_part after it."""
    nu = torch.tensor([0.1, 0.3], dtype=REAL, requires_grad=True)
    theta, B, C = torch.tensor([0.5, 2.0], dtype=REAL), *draw("discrete", COMPLEX, n=2, m=1, p=1)[1:]

    def total(nu, B, C):
        sys = hsv.DiagonalStateSpace.from_log_poles(torch.complex(-nu.exp(), theta), B, C)
        return hsv_torch.hankel_sum(hsv.real_part(sys))

    assert torch.autograd.gradcheck(total, (nu, B, C))


def test_a_second_derivative_is_refused():
    poles, B, C = draw("logarithms", COMPLEX)
    for value in (
        hsv_torch.hankel_sum(make("logarithms", poles, B, C)),
        hsv_torch.controllability_gramian(make("logarithms", poles, B, C)).abs().sum(),
    ):
        (gradient,) = torch.autograd.grad(value, B, create_graph=True)
        assert gradient.requires_grad
        with pytest.raises(hsv.HsvError, match="no second derivative here"):
            gradient.abs().sum().backward()


def test_arrays_that_are_no_tensors_and_unstable_systems_are_refused():
    with pytest.raises(hsv.DtypeError, match="must be tensors to be differentiated, but B is a ndarray"):
        hsv_torch.hankel_sum(hsv.DiagonalStateSpace([0.5], [[1.0]], [[1.0]], dt=True))
    poles = torch.tensor([0.5, 1.5], dtype=REAL)
    sys = hsv.DiagonalStateSpace(poles, torch.ones(2, 1, dtype=REAL), torch.ones(1, 2, dtype=REAL), dt=True)
    for function in (hsv_torch.hankel_sum, hsv_torch.controllability_gramian, hsv_torch.observability_gramian):
        with pytest.raises(hsv.UnstableSystemError, match="must be below 1"):
            function(sys)


LAYERS = {
    "LRU": lambda: hsv_torch.LRU(3, 5, dtype=REAL),
    "S5": lambda: hsv_torch.S5(3, 4, dtype=REAL),
    "S5 bilinear": lambda: hsv_torch.S5(3, 4, discretization="bilinear", bidirectional=True, dtype=REAL),
    "S4D": lambda: hsv_torch.S4D(3, 4, dtype=REAL),
    "S4D real": lambda: hsv_torch.S4D(3, 4, initialization="real", dtype=REAL),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_penalty_reaches_a_layers_own_parameters(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    model = nn.Sequential(layer)
    expected = np.sum(hsv.hankel_singular_values(hsv_torch.adapter_of(layer).system(layer)).numpy())
    penalty = hsv_torch.hankel_penalty(model)
    np.testing.assert_allclose(penalty.item(), expected, rtol=1e-12)
    penalty.backward()
    for key, parameter in layer.named_parameters():
        if key == "D":  # the skip term is no part of the system
            assert parameter.grad is None
            continue
        direction = torch.randn_like(parameter)
        step = 1e-6
        with torch.no_grad():
            ends = []
            for s in (step, -2 * step):
                parameter += s * direction
                ends.append(hsv_torch.hankel_penalty(model).item())
            parameter += step * direction
        np.testing.assert_allclose(
            float((parameter.grad * direction).sum()), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8
        )


def test_the_penalty_of_a_model():
    model = nn.Sequential(hsv_torch.LRU(2, 3), nn.Linear(2, 2), hsv_torch.S4D(2, 4), hsv_torch.Mamba(2, 2))
    parts = [hsv_torch.hankel_penalty(model, layers=[name]) for name in ("0", "2")]
    total = hsv_torch.hankel_penalty(model)
    assert total.dtype == REAL
    torch.testing.assert_close(total, sum(parts))
    with pytest.raises(hsv.HsvError, match=r"layer '3' \(Mamba\) has no Hankel singular values"):
        hsv_torch.hankel_penalty(model, layers=["0", "3"])
    with pytest.raises(hsv.HsvError, match=r"no time-invariant layer: the systems of all its layers \(Mamba\)"):
        hsv_torch.hankel_penalty(model[3:])


def test_training_on_the_penalty_lowers_the_order():
    torch.manual_seed(0)
    layer = hsv_torch.LRU(2, 12)
    rule = hsv.HankelSum(keep=0.99)
    before = hsv_torch.adapter_of(layer).reduce(layer, rule, hsv_torch.ComplexHankel()).order
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = hsv_torch.hankel_penalty(layer)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]
    after = hsv_torch.adapter_of(layer).reduce(layer, rule, hsv_torch.ComplexHankel()).order
    assert after < before


def test_an_adapter_that_does_not_say_how_is_named():
    class Plain(nn.Module):
        pass

    class PlainAdapter(type(hsv_torch.adapter_of(hsv_torch.LRU(1, 1)))):
        differentiable_system = hsv_torch.LayerAdapter.differentiable_system

    with pytest.raises(hsv.HsvError, match="PlainAdapter does not say how the system of Plain depends"):
        PlainAdapter().differentiable_system(Plain())
