"""What stands around a selective scan: kernels against plain PyTorch, element by element, at the edges too."""

import mpmath
import numpy as np
import pytest
import torch
from torch.nn import functional

from hsv_torch.scan import _elementwise
from hsv_torch.scan._elementwise import causal_convolution, skip_and_gate, step_sizes
from tests.tolerances import tolerance


def plain_convolution(x, weight, bias):
    padded = functional.pad(x, (0, 0, weight.shape[1] - 1, 0))
    total = sum(weight[:, j] * padded[:, j : j + x.shape[1]] for j in range(weight.shape[1]))
    return functional.silu(total + bias)


def convolution_problem(batch, length, d, kernel_size=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * d)
    shapes = (batch, length, d), (d, kernel_size), (d,)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def gate_problem(batch, length, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * d)
    shapes = (batch, length, d), (batch, length, d), (d,), (batch, length, d)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def steps_problem(batch, length, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * d)
    shapes = (batch, length, d), (d,)
    return [(3 * torch.randn(s, generator=generator)).to(dtype).requires_grad_() for s in shapes]


# name: function, the same in plain PyTorch, problem
FUNCTIONS = {
    "convolution": (causal_convolution, plain_convolution, convolution_problem),
    "gate": (skip_and_gate, lambda y, u, D, z: (y + D * u) * functional.silu(z), gate_problem),
    "step sizes": (step_sizes, lambda x, bias: functional.softplus(x + bias), steps_problem),
}


def results(function, arguments):
    y = function(*arguments)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    gradients = torch.autograd.grad((y * weight).sum(), arguments)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in arguments]
    return y.detach(), *gradients


def assert_same(actual, expected, dtype, factor=100):
    for x, y in zip(actual, expected, strict=True):
        scale = float(y.abs().max()) if y.numel() else 1.0
        torch.testing.assert_close(x.to(y.dtype), y, rtol=0, atol=scale * tolerance(dtype, factor=factor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
# whole vectors; one that overlaps; fewer steps than the convolution sees; too few channels for a vector; nothing
@pytest.mark.parametrize(
    "size", [(2, 40, 32), (3, 33, 37), (1, 1, 16), (9, 2, 20), (2, 5, 3), (0, 5, 16), (2, 0, 16), (2, 3, 0)]
)
def test_outputs_and_gradients_equal_plain_pytorch(size, name, dtype):
    function, plain, problem = FUNCTIONS[name]
    arguments = problem(*size, dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    assert_same(results(function, arguments), results(plain, exact), dtype)


@pytest.mark.parametrize("kernel_size", [1, 2, 7])
def test_convolutions_of_other_lengths(kernel_size):
    arguments = convolution_problem(2, 11, 24, kernel_size)
    assert_same(results(causal_convolution, arguments), results(plain_convolution, arguments), torch.float64)


def test_a_convolution_without_a_bias():
    x, weight, bias = convolution_problem(2, 11, 24)
    expected = plain_convolution(x, weight, torch.zeros_like(bias))
    torch.testing.assert_close(causal_convolution(x, weight, None), expected)
    torch.testing.assert_close(causal_convolution(x[..., :3], weight[:3], None), expected[..., :3])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_need_not_be_contiguous(name):
    function, _, problem = FUNCTIONS[name]
    arguments = problem(3, 9, 16)
    expected = results(function, arguments)
    halves = [torch.cat([t.detach(), t.detach()], -1)[..., : t.shape[-1]].requires_grad_() for t in arguments]
    strided = [t.detach().mT.contiguous().mT if t.ndim > 1 else t.detach() for t in arguments]
    for other in (halves, [t.requires_grad_() for t in strided]):
        assert not all(t.is_contiguous() for t in other)
        for x, y in zip(results(function, other), expected, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck_and_one_compiled_graph(name):
    function, _, problem = FUNCTIONS[name]
    arguments = problem(2, 9, 16)
    operators = {
        "convolution": (torch.ops.hsv_torch.causal_convolution, [arguments[0], torch.randn(5, 16).double()]),
        "gate": (torch.ops.hsv_torch.skip_and_gate, arguments),
        "step sizes": (torch.ops.hsv_torch.step_sizes, arguments),
    }
    operator, tensors = operators[name]
    torch.library.opcheck(operator, tuple(t.detach().requires_grad_() for t in tensors))
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for x, y in zip(results(compiled, arguments), results(function, arguments), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck_and_no_second_derivative(name):
    function, _, problem = FUNCTIONS[name]
    arguments = problem(2, 3, 8)
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    (gradient,) = torch.autograd.grad(function(*arguments).pow(2).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_threads_do_not_change_a_bit(name):
    function, _, problem = FUNCTIONS[name]
    arguments = problem(3, 300, 150, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            runs.append(results(function, arguments))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_sizes_to_the_last_digits(dtype):
    """Relative to each value, over the range where the exponential is normal."""
    low = -80 if dtype == torch.float32 else -700
    x = torch.cat([torch.linspace(low, -low, 801), torch.linspace(-3, 3, 799)]).to(dtype)
    actual = step_sizes(x.reshape(1, -1, 16), torch.zeros(16, dtype=dtype)).flatten()
    with mpmath.workprec(120):
        exact = [mpmath.log1p(mpmath.exp(float(value))) for value in x]
        errors = [float(abs(mpmath.mpf(float(a)) / e - 1)) for a, e in zip(actual, exact, strict=True)]
    assert max(errors) < 4 * torch.finfo(dtype).eps
    edges = torch.tensor([torch.inf, -torch.inf, torch.nan] + 13 * [0.0], dtype=dtype).reshape(1, 1, 16)
    np.testing.assert_array_equal(step_sizes(edges, torch.zeros(16, dtype=dtype)).flatten()[:3], [np.inf, 0, np.nan])


def test_half_precision_takes_plain_pytorch():
    x, weight, bias = (t.detach().bfloat16() for t in convolution_problem(2, 5, 16))
    assert not _elementwise._has_kernel(x, weight)
    assert causal_convolution(x, weight, bias).dtype == torch.bfloat16
