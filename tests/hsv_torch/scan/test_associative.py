"""The parallel scans of devices without a kernel, run on the CPU against the plain loops."""

import itertools

import pytest
import torch

from hsv_torch.scan import _associative, diagonal_state_space, linear_scan, reference, selective_scan
from tests.hsv_torch.scan import test_diagonal, test_linear, test_selective


@pytest.fixture
def no_kernel(monkeypatch):
    """The public functions as they are on a device without a kernel."""
    from hsv_torch.scan import _diagonal, _linear, _selective

    for module in (_diagonal, _linear, _selective):
        monkeypatch.setattr(module, "has_kernel", lambda device: False)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", test_linear.DTYPES)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 21, 33])
def test_linear_scan_equals_the_plain_loop(length, dtype, varying, no_kernel):
    arguments = [t.requires_grad_() for t in test_linear.problem(2, length, 5, dtype, varying=varying)]
    h, expected = linear_scan(*arguments), reference.linear_scan(*arguments)
    test_linear.assert_same(h, expected, dtype, factor=100)
    weight = torch.linspace(-1, 2, h.numel(), dtype=dtype).reshape(h.shape)
    actual = torch.autograd.grad((h * weight).sum().abs(), arguments)
    wanted = torch.autograd.grad((expected * weight).sum().abs(), arguments)
    for x, y in zip(actual, wanted, strict=True):
        test_linear.assert_same(x, y, dtype)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("size", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_linear_scan_of_nothing(size, varying, no_kernel):
    arguments = [t.requires_grad_() for t in test_linear.problem(*size, varying=varying)]
    h = linear_scan(*arguments)
    assert h.shape == size
    gradients = torch.autograd.grad(h.real.sum(), arguments)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, arguments, strict=True))


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_linear_scan_has_both_derivatives(dtype, varying, no_kernel):
    arguments = [t.requires_grad_() for t in test_linear.problem(2, 5, 2, dtype, varying=varying)]
    assert torch.autograd.gradcheck(linear_scan, arguments)
    assert torch.autograd.gradgradcheck(linear_scan, arguments)


def test_a_scan_counts_its_rounds():
    """Twice the logarithm of the length, not the length."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function is torch.ops.aten.addcmul.default
            return function(*args, **(kwargs or {}))

    a, u, initial = test_linear.problem(1, 1024, 2, varying=True)
    with Count() as count:
        _associative.linear_scan(a, u, initial)
    assert count.calls == 2 * 10 + 1


@pytest.mark.parametrize("size", test_diagonal.SIZES[:4])
def test_diagonal_state_space_equals_the_plain_loop(size, no_kernel):
    arguments = test_diagonal.problem(*size)
    actual = test_diagonal.results(lambda *t: diagonal_state_space(*t, mode="scan"), arguments)
    test_diagonal.assert_same(actual, test_diagonal.results(test_diagonal.plain, arguments), torch.float64, 1e3)


@pytest.mark.parametrize("chunk", [1, 7, 16, 100])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 40, 5, 4), (2, 32, 3, 1)])
def test_selective_scan_equals_the_plain_loop(size, chunk):
    arguments = test_selective.problem(*size)
    actual = test_selective.results(lambda *t: _associative.selective_scan(*t, chunk=chunk), arguments)
    expected = test_selective.results(reference.selective_scan, arguments)
    test_selective.assert_same(actual, expected, torch.float64, factor=100)


@pytest.mark.parametrize("size", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)])
def test_selective_scan_of_nothing(size, no_kernel):
    arguments = test_selective.problem(*size)
    for x, y in itertools.zip_longest(
        test_selective.results(test_selective.scan, arguments),
        test_selective.results(reference.selective_scan, arguments),
    ):
        assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own tracer does it
def test_parallel_scans_are_compiled_in_one_graph():
    arguments = test_selective.problem(2, 20, 3, 4)

    def scan(*tensors):
        return _associative.selective_scan(*tensors, chunk=8)

    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    actual = test_selective.results(compiled, arguments)
    test_selective.assert_same(actual, test_selective.results(scan, arguments), torch.float64, factor=10)


def test_selective_scan_has_both_derivatives():
    arguments = test_selective.problem(1, 6, 2, 2)

    def scan(*tensors):
        return _associative.selective_scan(*tensors, chunk=4)

    assert torch.autograd.gradcheck(scan, arguments)
    assert torch.autograd.gradgradcheck(scan, arguments)


def test_selective_scan_keeps_the_states_of_one_chunk():
    batch, length, d, n = 2, 128, 16, 16
    arguments = test_selective.problem(batch, length, d, n)
    saved = {}

    def save(tensor):
        storage = tensor.untyped_storage()  # a view keeps all of it
        saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        together = _associative.selective_scan(*arguments, chunk=length)
        assert sum(saved.values()) > 2 * batch * length * d * n
        saved.clear()
        apart = _associative.selective_scan(*arguments, chunk=8)
    assert sum(saved.values()) < batch * length * d * n / 2
    torch.testing.assert_close(apart, together)


def test_chunks_grow_short_where_there_are_many_states(monkeypatch):
    x, delta, A, B, C, initial = (t.detach() for t in test_selective.problem(2, 100, 3, 4))
    lengths = []
    plain = _associative.linear_scan

    def record(a, u, before):
        lengths.append(u.shape[1])
        return plain(a, u, before)

    monkeypatch.setattr(_associative, "linear_scan", record)
    for elements, expected in ((10**9, [100]), (2 * 3 * 4 * 40, [40, 40, 20]), (1, [16] * 6 + [4])):
        monkeypatch.setattr(_associative, "CHUNK_ELEMENTS", elements)
        lengths.clear()
        _associative.selective_scan(x, delta, A, B, C, initial)
        assert lengths == expected


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:the scans have no kernel for cuda:UserWarning")
def test_the_device_gives_the_numbers_of_the_cpu():
    arguments = [t.detach() for t in test_selective.problem(3, 300, 20, 4)]
    on_device = [t.cuda() for t in arguments]
    for x, y in zip(test_selective.scan(*on_device), test_selective.scan(*arguments), strict=True):
        torch.testing.assert_close(x.cpu(), y)
    assert selective_scan(*on_device[:5]).is_cuda
    a, u, initial = test_linear.problem(3, 300, 20)
    torch.testing.assert_close(linear_scan(a.cuda(), u.cuda(), initial.cuda()).cpu(), linear_scan(a, u, initial))
    system = test_diagonal.problem(3, 300, 6, 4, 4)
    y = diagonal_state_space(*(t.cuda() for t in system), mode="scan")
    torch.testing.assert_close(y.cpu(), diagonal_state_space(*system, mode="scan"))
