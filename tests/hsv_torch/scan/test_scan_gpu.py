"""The scans on a CUDA device: the plain loop's numbers in float64, at the sizes where kernels take another way, and through the layers."""

import pytest
import torch

from hsv_torch.scan import (
    choose_mode,
    diagonal_state_space,
    gated_linear_attention,
    linear_scan,
    reference,
    selective_scan,
)
from tests.hsv_torch.scan import test_attention, test_diagonal, test_linear, test_selective
from tests.tolerances import tolerance

pytestmark = pytest.mark.gpu


def on_device(arguments):
    return [t.detach().cuda().requires_grad_() for t in arguments]


def in_double(arguments):
    wide = {torch.complex64: torch.complex128, torch.float32: torch.float64}
    return [t.detach().to(wide.get(t.dtype, t.dtype)).requires_grad_() for t in arguments]


def results(function, arguments, *, scale=1.0):
    """Outputs and the gradients of a weighted sum of them, on the CPU."""
    outputs = function(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [scale * torch.linspace(-1, 2, y.numel()).to(y).reshape(y.shape) for y in outputs]
    gradients = torch.autograd.grad(outputs, arguments, weights)
    return [t.detach().cpu() for t in (*outputs, *gradients)]


def assert_same(actual, expected, dtype, factor=200.0):
    for x, y in zip(actual, expected, strict=True):
        assert x.isfinite().all()
        atol = float(y.abs().max() * tolerance(dtype, factor=factor)) if y.numel() else 0
        torch.testing.assert_close(x.to(y.dtype), y, rtol=0, atol=atol)


def check(function, plain, arguments, dtype, factor=200.0):
    actual = results(function, on_device(arguments))
    assert_same(actual, results(plain, in_double(arguments)), dtype, factor)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", test_linear.DTYPES)
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1),
        (3, 20, 5),
        (2, 33, 1),
        (1, 40, 200),
        (40, 70, 512),  # one piece
        (2, 1000, 3),  # pieces
        (1, 9000, 1),  # so many that their ends are scanned in pieces
    ],
)
def test_linear_scan(size, dtype, varying):
    arguments = test_linear.problem(*size, dtype, varying=varying)
    check(linear_scan, reference.linear_scan, arguments, dtype, factor=1e3)


def scan(*arguments):
    return selective_scan(*arguments[:5], initial=arguments[5], return_state=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1, 1),
        (2, 1, 3, 5),
        (3, 40, 20, 4),
        (1, 70, 64, 3),
        (2, 33, 150, 12),
        (2, 32, 8, 17),
        (1, 100, 40, 256),
        (40, 17, 1700, 2),  # chunks in turn
    ],
)
def test_selective_scan(size, dtype):
    check(scan, reference.selective_scan, test_selective.problem(*size, dtype), dtype)


@pytest.mark.parametrize("size", [(2, 100, 70, 12), (64, 17, 1024, 8)])
def test_selective_scan_in_segments(size, monkeypatch):
    from hsv_torch.scan._triton import _launch

    monkeypatch.setattr(_launch, "SEGMENT_BYTES", 1)
    batch, length, d, n = size
    assert _launch.segments_of(batch, length, d, n, 4)[0] > 1
    check(scan, reference.selective_scan, test_selective.problem(*size, torch.float32), torch.float32)


def attend(*arguments):
    return gated_linear_attention(*arguments[:4], initial=arguments[4], return_state=True)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [*test_attention.SIZES, (2, 100, 2, 4, 12, 64), (1, 70, 1, 2, 100, 130), (1, 40, 1, 1, 256, 64)]
)
def test_gated_linear_attention(size, dtype, per_key):
    arguments = test_attention.problem(*size, per_key=per_key, dtype=dtype)
    check(attend, reference.gated_linear_attention, arguments, dtype)


@pytest.mark.parametrize("per_key", [False, True])
def test_gated_linear_attention_in_reduced_precision(per_key):
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    arguments = test_attention.problem(2, 150, 1, 2, 64, 64, per_key=per_key, dtype=torch.float32)
    try:
        settings.fp32_precision = "tf32"
        actual = results(attend, on_device(arguments))
    finally:
        settings.fp32_precision = before
    for x, y in zip(actual, results(reference.gated_linear_attention, in_double(arguments)), strict=True):
        assert (x - y).abs().max() < 1e-2 * y.abs().max()  # factors of ten bits


@pytest.mark.parametrize("per_key", [False, True])
def test_gated_linear_attention_that_forgets(per_key):
    *signals, g, initial = (t.detach() for t in test_attention.problem(2, 150, 1, 2, 20, 10, per_key=per_key))
    g = 300 * g
    g[:, 70], g[:, 12, 0] = -torch.inf, 0.5
    check(attend, reference.gated_linear_attention, [*signals, g, initial], torch.float64)


@pytest.mark.parametrize("mode", ["scan", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diagonal_state_space(dtype, mode):
    arguments = test_diagonal.problem(3, 300, 12, 5, 4, dtype)
    check(lambda *t: diagonal_state_space(*t, mode=mode), test_diagonal.plain, arguments, dtype, factor=1e3)


def test_nothing_to_scan():
    for size in ((0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)):
        check(scan, scan, test_selective.problem(*size), torch.float64)
    for size in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
        check(linear_scan, linear_scan, test_linear.problem(*size), torch.complex128)
    for size in ((0, 5, 1, 2, 3, 2), (2, 0, 1, 2, 3, 2), (2, 5, 1, 2, 0, 2), (2, 5, 1, 2, 3, 0)):
        check(attend, attend, test_attention.problem(*size, per_key=False), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_state_in_single(dtype):
    arguments = [t.detach().cuda().to(dtype) for t in test_selective.problem(2, 200, 40, 12)[:5]]
    y, state = selective_scan(*arguments, return_state=True)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    exact = reference.selective_scan(*(t.double() for t in arguments))[0]
    assert (y.double() - exact).abs().max() < 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_results_repeat_to_the_bit():
    arguments = on_device(test_selective.problem(3, 200, 300, 17, torch.float32))
    first, second = (results(scan, arguments) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    arguments = on_device(test_attention.problem(2, 200, 2, 4, 12, 40, per_key=True, dtype=torch.float32))
    first, second = (results(attend, arguments) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_compiled_without_graph_breaks():
    for function, arguments in (
        (scan, test_selective.problem(2, 50, 20, 12, torch.float32)),
        (attend, test_attention.problem(2, 50, 1, 2, 12, 8, per_key=False, dtype=torch.float32)),
        (linear_scan, test_linear.problem(2, 50, 12, torch.float32)),
    ):
        arguments = on_device(arguments)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for x, y in zip(results(compiled, arguments), results(function, arguments), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("n", [16, 64])
def test_memory_of_a_training_pass(n):
    """At most half as much again as inputs, outputs and their gradients; all states would be ``n`` times a signal."""
    batch, length, d = 8, 2048, 1024
    signals = [torch.rand(batch, length, d, device="cuda", requires_grad=True) for _ in range(2)]
    weights = [torch.rand(batch, length, n, device="cuda", requires_grad=True) for _ in range(2)]
    A = torch.rand(d, n, device="cuda").neg().requires_grad_()
    dy = torch.rand_like(signals[0])
    torch.cuda.synchronize()
    others = torch.cuda.memory_allocated() - sum(4 * t.numel() for t in (*signals, *weights, A, dy))
    torch.cuda.reset_peak_memory_stats()
    y = selective_scan(*signals, A, *weights)
    y.backward(dy)
    needed = sum(4 * t.numel() for t in (*signals, *weights, A, dy)) * 2  # y and a gradient for each argument
    assert torch.cuda.max_memory_allocated() - others < 1.5 * needed


def test_the_rule_has_a_scan_on_the_device():
    assert choose_mode(batch=50, length=784, n_inputs=8, n_outputs=8, n_states=12, device="cuda") == "scan"
