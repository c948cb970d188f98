"""The linear scan: the kernel against the plain loop, element by element, at the edges too."""

import multiprocessing

import pytest
import torch

import hsv
from hsv_torch.scan import _linear, linear_scan, reference
from tests.tolerances import tolerance

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def problem(batch, length, n, dtype=torch.complex128, *, varying=False, radius=0.95):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * n)
    real = torch.randn(3, batch, length, n, generator=generator, dtype=torch.float64)
    draw = torch.complex(real[0], real[1]) if dtype.is_complex else real[0]
    a = draw.clone() if varying else torch.randn(n, generator=generator, dtype=torch.float64).to(draw.dtype)
    if not varying and dtype.is_complex:
        a = torch.polar(torch.ones(n, dtype=torch.float64), a.real)
    a = radius * torch.sgn(a)
    u, initial = draw * 0.5, torch.randn(batch, n, generator=generator, dtype=draw.dtype)
    return a.to(dtype), u.to(dtype), initial.to(dtype)


def assert_same(actual, expected, dtype, factor=1e3):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = expected.detach().abs().max() if expected.numel() else 1
    torch.testing.assert_close(actual, expected, rtol=0, atol=float(scale * tolerance(dtype, factor=factor)))


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "n"), [(3, 20, 5), (1, 1, 1), (2, 1, 7), (5, 33, 1), (1, 40, 200)])
def test_states_and_gradients_equal_the_plain_loop(batch, length, n, dtype, varying):
    arguments = [t.requires_grad_() for t in problem(batch, length, n, dtype, varying=varying)]
    h, expected = linear_scan(*arguments), reference.linear_scan(*arguments)
    assert_same(h, expected, dtype)
    weight = torch.randn_like(h)
    actual = torch.autograd.grad((h * weight.conj()).sum().abs(), arguments)
    for gradient, wanted in zip(
        actual, torch.autograd.grad((expected * weight.conj()).sum().abs(), arguments), strict=True
    ):
        assert_same(gradient, wanted, dtype)


@pytest.mark.parametrize(("batch", "length", "n"), [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("varying", [False, True])
def test_nothing_in_nothing_out(batch, length, n, varying):
    arguments = [t.requires_grad_() for t in problem(batch, length, n, varying=varying)]
    h = linear_scan(*arguments)
    assert h.shape == (batch, length, n)
    gradients = torch.autograd.grad(h.real.sum(), arguments)
    assert [g.shape for g in gradients] == [t.shape for t in arguments]
    assert all(not g.any() for g in gradients)


@pytest.mark.parametrize("radius", [0.0, 1.0])
def test_poles_at_zero_and_on_the_circle(radius):
    a, u, initial = problem(2, 50, 6, radius=radius)
    assert_same(linear_scan(a, u, initial), reference.linear_scan(a, u, initial), a.dtype)
    if radius == 0:
        assert torch.equal(linear_scan(a, u, initial), u)


def test_a_decay_by_hand():
    h = linear_scan(torch.tensor([0.5]), torch.ones(1, 4, 1), initial=torch.tensor([[2.0]]))
    assert h.flatten().tolist() == [2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(dtype, varying):
    assert torch.autograd.gradcheck(linear_scan, [t.requires_grad_() for t in problem(2, 4, 3, dtype, varying=varying)])


@pytest.mark.parametrize("varying", [False, True])
def test_opcheck(varying):
    a, u, initial = problem(2, 4, 3, varying=varying)
    arguments = [t.requires_grad_() for t in (a if varying else a[None, None], u, initial)]
    torch.library.opcheck(torch.ops.hsv_torch.linear_scan.default, arguments)


def test_arguments_need_not_be_contiguous():
    a, u, initial = problem(4, 9, 6)
    expected = reference.linear_scan(a, u, initial)
    strided = [t.mT.contiguous().mT if t.ndim > 1 else t.repeat_interleave(2)[::2] for t in (a, u, initial)]
    assert_same(linear_scan(*strided), expected, a.dtype)
    assert_same(linear_scan(a.conj(), u.conj(), initial.conj()), expected.conj(), a.dtype)


def test_dtypes_are_promoted():
    h = linear_scan(torch.tensor([0.5j]), torch.ones(1, 3, 1))
    assert h.dtype == torch.complex64
    assert h[0, 2, 0] == 0.75 + 0.5j


def test_the_second_derivative_is_refused():
    a, u, initial = (t.requires_grad_() for t in problem(1, 3, 2, torch.float64))
    (gradient,) = torch.autograd.grad(linear_scan(a, u, initial).pow(2).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((3,), (2, 3)), r"`u` must be \(batch, length, n\), got \(2, 3\)"),
        (((4,), (2, 5, 3)), r"`a` must be \(3,\) or \(2, 5, 3\) to go with `u`, got \(4,\)"),
        (((3,), (2, 5, 3), (3,)), r"`initial` must be \(2, 3\) to go with `u`, got \(3,\)"),
    ],
)
def test_wrong_shapes(shapes, match):
    with pytest.raises(hsv.ShapeError, match=match):
        linear_scan(*(torch.ones(shape) for shape in shapes))


def test_wrong_dtypes():
    with pytest.raises(hsv.DtypeError, match="there is no linear scan in torch"):
        linear_scan(torch.ones(2, dtype=torch.int64), torch.ones(1, 3, 2, dtype=torch.int64))


def test_a_device_without_a_kernel_is_said_once(monkeypatch):
    monkeypatch.setattr(_linear, "_warned", set())
    with pytest.warns(UserWarning, match="no kernel for meta yet"):
        h = linear_scan(torch.ones(2, device="meta"), torch.ones(1, 3, 2, device="meta"))
    assert h.shape == (1, 3, 2)
    linear_scan(torch.ones(2, device="meta"), torch.ones(1, 3, 2, device="meta"))  # filterwarnings = error


def test_threads_do_not_change_a_bit():
    a, u, initial = (t.requires_grad_() for t in problem(6, 400, 300, torch.complex64))
    results = []
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            h = linear_scan(a, u, initial)
            results.append([h.detach(), *torch.autograd.grad(h.abs().sum(), (a, u, initial))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def _states_in_a_child(arguments, queue):
    h = linear_scan(*arguments)  # nothing else of torch: its own OpenMP threads do not survive a fork
    queue.put(h.numpy().tobytes())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork")
@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # Python >= 3.12 warns of threads in the parent; that is the point
def test_threads_in_a_forked_child():
    arguments = problem(4, 300, 1000, torch.float64)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = linear_scan(*arguments)  # the parent has threads now
        child = context.Process(target=_states_in_a_child, args=(arguments, queue), daemon=True)
        child.start()
        assert queue.get(timeout=60) == expected.numpy().tobytes()
        child.join()
    finally:
        torch.set_num_threads(threads)
