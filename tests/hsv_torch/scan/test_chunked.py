"""Gated linear attention in chunks in plain PyTorch, as devices without a kernel have it, run on the CPU against the plain loop."""

import pytest
import torch

from hsv_torch.scan import _chunked, reference
from tests.hsv_torch.scan.test_attention import assert_same, problem, results


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 16, 100])
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1, 1), (3, 40, 2, 4, 5, 3), (2, 32, 1, 3, 4, 1)])
def test_it_equals_the_plain_loop(size, chunk, per_key):
    arguments = problem(*size, per_key=per_key)
    actual = results(lambda *t: _chunked.gated_linear_attention(*t, chunk=chunk), arguments)
    assert_same(actual, results(reference.gated_linear_attention, arguments), torch.float64, factor=100)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("size", [(0, 5, 1, 2, 3, 2), (2, 0, 1, 2, 3, 2), (2, 5, 1, 2, 0, 2), (2, 5, 1, 2, 3, 0)])
def test_nothing_to_attend_to(size, per_key):
    arguments = problem(*size, per_key=per_key)
    actual = results(_chunked.gated_linear_attention, arguments)
    for x, y in zip(actual, results(reference.gated_linear_attention, arguments), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("per_key", [False, True])
def test_fast_growing_and_infinite_decays(per_key):
    q, k, v, g, initial = problem(1, 100, 1, 2, 4, 3, per_key=per_key)
    with torch.no_grad():
        g.mul_(300)
        g[:, 70:] = 2.0
        g[:, 41] = -torch.inf
    arguments = q, k, v, g, initial
    actual = results(_chunked.gated_linear_attention, arguments)
    # The 30 growing steps have the rounding of exp(60) in them.
    assert_same(actual, results(reference.gated_linear_attention, arguments), torch.float64, factor=1e3)


@pytest.mark.parametrize("per_key", [False, True])
def test_it_has_both_derivatives(per_key):
    arguments = problem(1, 5, 1, 2, 2, 2, per_key=per_key)

    def attend(*tensors):
        return _chunked.gated_linear_attention(*tensors, chunk=3)

    assert torch.autograd.gradcheck(attend, arguments)
    assert torch.autograd.gradgradcheck(attend, arguments, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own tracer does it
def test_it_is_compiled_in_one_graph():
    arguments = problem(2, 20, 1, 2, 4, 3, per_key=False)

    def attend(*tensors):
        return _chunked.gated_linear_attention(*tensors, chunk=8)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert_same(results(compiled, arguments), results(attend, arguments), torch.float64, factor=10)
