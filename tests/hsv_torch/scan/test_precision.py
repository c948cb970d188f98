"""What holds for every scan: half precision, autocast, compilation, and which transforms of PyTorch are refused."""

import pytest
import torch

from hsv_torch.scan import (
    _attention,
    _diagonal,
    _linear,
    _precision,
    _selective,
    diagonal_state_space,
    gated_linear_attention,
    linear_scan,
    selective_scan,
)
from tests.hsv_torch.scan import test_attention, test_diagonal, test_linear, test_selective

HALF = [torch.bfloat16, torch.float16]


def diagonal_in_parts(mode):
    """The entry point with real arguments only, as layers have them."""

    def scan(x, *parts):
        log_poles, B, C = (torch.complex(*parts[k : k + 2]) for k in (0, 2, 4))
        return diagonal_state_space(x, log_poles, B, C, mode=mode)

    return scan


def diagonal_arguments(length=30):
    x, *system = test_diagonal.problem(2, length, 4, 3, 5, torch.float32)
    return [x, *(part.contiguous() for t in system for part in (t.real, t.imag))]


def attend(q, k, v, log_decay):
    return gated_linear_attention(q, k, v, log_decay)


# name: function, float32 arguments, which of them may come in half precision
SCANS = {
    "linear": (linear_scan, list(test_linear.problem(2, 30, 5, torch.float32, varying=True)[:2]), 2),
    "selective": (selective_scan, test_selective.problem(2, 40, 5, 3, torch.float32)[:5], 5),
    "a decay a head": (attend, test_attention.problem(2, 70, 1, 2, 5, 3, per_key=False, dtype=torch.float32)[:4], 4),
    "a decay a key": (attend, test_attention.problem(2, 70, 1, 2, 5, 3, per_key=True, dtype=torch.float32)[:4], 4),
    "diagonal scan": (diagonal_in_parts("scan"), diagonal_arguments(), 1),
    "diagonal convolution": (diagonal_in_parts("convolution"), diagonal_arguments(), 1),
}


@pytest.fixture(params=SCANS)
def scan(request):
    function, arguments, halves = SCANS[request.param]
    return function, [t.detach().clone().requires_grad_() for t in arguments], halves


@pytest.fixture(params=[True, False], ids=["kernel", "plain"])
def with_kernel(request, monkeypatch):
    if not request.param:
        for module in (_attention, _diagonal, _linear, _selective):
            monkeypatch.setattr(module, "has_kernel", lambda device: False)


def outputs_and_gradients(function, arguments, autocast=None):
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        y = function(*arguments)
    weight = torch.linspace(-1, 2, y.numel()).reshape(y.shape)
    return y.detach(), *torch.autograd.grad((y * weight).sum(), arguments)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_single_precision_and_rounded_once(scan, dtype, with_kernel):
    function, arguments, halves = scan
    rounded = [t.detach().to(dtype) if k < halves else t.detach() for k, t in enumerate(arguments)]
    y, *gradients = outputs_and_gradients(function, [t.requires_grad_() for t in rounded])
    wide = [t.detach().float().requires_grad_() for t in rounded]
    expected, *wide_gradients = outputs_and_gradients(function, wide)
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))
    for gradient, wide_gradient, argument in zip(gradients, wide_gradients, rounded, strict=True):
        assert gradient.dtype == argument.dtype
        # The weights of the outputs are rounded on their way back, to half a unit each.
        atol = float(2 * wide_gradient.abs().max() * torch.finfo(dtype).eps)
        torch.testing.assert_close(gradient.float(), wide_gradient, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_changes_nothing(scan, dtype, with_kernel):
    function, arguments, _ = scan
    actual = outputs_and_gradients(function, arguments, autocast=dtype)
    for x, y in zip(actual, outputs_and_gradients(function, arguments), strict=True):
        assert torch.equal(x, y)


def test_half_precision_loses_nothing_over_many_steps():
    """A sum of 5,000 ones: in half precision it would stop at 256 or 2,048."""
    for dtype, dtype_of_sum in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)):
        one = torch.ones(1, 5000, 1, dtype=dtype)
        expected = torch.tensor(5000.0).to(dtype_of_sum)
        h = linear_scan(one, one)
        y = selective_scan(one, one, torch.zeros(1, 1, dtype=dtype), one, one)
        attended = attend(one[..., None], one[..., None], one[..., None], torch.zeros_like(one))
        assert h[0, -1, 0] == y[0, -1, 0] == attended[0, -1, 0, 0] == expected


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own tracer does it
def test_compiled_in_one_graph(scan):
    function, arguments, _ = scan
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for x, y in zip(
        outputs_and_gradients(compiled, arguments), outputs_and_gradients(function, arguments), strict=True
    ):
        torch.testing.assert_close(x, y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own compiler
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators:UserWarning")
def test_compiled_by_inductor_under_autocast(scan):
    function, arguments, _ = scan
    compiled = torch.compile(function, fullgraph=True)
    actual = outputs_and_gradients(compiled, arguments, autocast=torch.bfloat16)
    for x, y in zip(actual, outputs_and_gradients(function, arguments), strict=True):
        # Other sums and products fused: a few roundings more.
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


@pytest.mark.filterwarnings(
    "ignore:.*jit.script:DeprecationWarning"
)  # of PyTorch's own, when forward mode is first used
def test_forward_mode_is_refused(scan):
    function, arguments, _ = scan
    plain = tuple(t.detach() for t in arguments)
    with pytest.raises(NotImplementedError, match="the scans have no forward-mode derivative; compute them in plain"):
        torch.func.jvp(function, plain, plain)


def test_gradients_inside_function_transforms_are_refused(scan):
    function, arguments, _ = scan
    plain = tuple(t.detach() for t in arguments)
    with pytest.raises(NotImplementedError, match=r"inside `torch.func.grad` and its kin; use `torch.autograd.grad`"):
        torch.func.grad(lambda *tensors: function(*tensors).sum())(*plain)


def test_mapped_over_a_further_axis(scan):
    function, arguments, _ = scan
    first = torch.stack([arguments[0].detach(), 2 * arguments[0].detach()])
    others = [t.detach() for t in arguments[1:]]
    actual = torch.func.vmap(function, in_dims=(0, *(None for _ in others)))(first, *others)
    for y, x in zip(actual, first, strict=True):
        torch.testing.assert_close(y, function(x, *others))


def test_products_have_derivatives_of_every_order():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in ((3, 4), (4, 2)))
    torch.library.opcheck(torch.ops.hsv_torch.product.default, (a, b.detach().mT.contiguous().mT.requires_grad_()))
    assert torch.autograd.gradcheck(_precision.product, (a, b))
    assert torch.autograd.gradgradcheck(_precision.product, (a, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(_precision.product(a.float(), b.float()), (a @ b).float())
