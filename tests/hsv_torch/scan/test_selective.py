"""The selective scan: the kernel against the plain loop, element by element, at the edges too."""

import mpmath
import numba
import numpy as np
import pytest
import torch

import hsv
from hsv_torch.scan import _linear, _operators, reference, selective_scan
from tests.tolerances import tolerance

NAMES = ("x", "delta", "A", "B", "C", "initial")


def problem(batch, length, d, n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * d + 1000 * n)
    x, delta, A, B, C, initial = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((batch, length, d),) * 2 + ((d, n),) + ((batch, length, n),) * 2 + ((batch, d, n),)
    )
    arguments = x, torch.nn.functional.softplus(delta - 1), -A.exp(), B, C, initial
    return [t.to(dtype).requires_grad_() for t in arguments]


def scan(*arguments):
    return selective_scan(*arguments[:5], initial=arguments[5], return_state=True)


def results(function, arguments):
    """Outputs, last state, and the gradients of a weighted sum of both."""
    y, state = function(*arguments)
    weight = torch.linspace(-1, 2, y.numel() + state.numel(), dtype=y.dtype)
    total = (torch.cat([y.flatten(), state.flatten()]) * weight).sum()
    gradients = torch.autograd.grad(total, arguments)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in arguments]
    return [t.detach() for t in (y, state, *gradients)]


def assert_same(actual, expected, dtype, factor):
    assert len(actual) == len(expected) == 2 + len(NAMES)
    for name, x, y in zip(("y", "state", *NAMES), actual, expected, strict=True):
        atol = float(y.abs().max() * tolerance(dtype, factor=factor))
        torch.testing.assert_close(x.to(y.dtype), y, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


SIZES = [
    (1, 1, 1, 1),
    (2, 1, 3, 5),
    (3, 70, 20, 4),  # two chunks, the second one short; a vector of channels with few in use
    (1, 140, 16, 16),  # whole vectors; a part for every vector of channels
    (9, 65, 150, 3),  # one part of two groups of vectors; a state alone
    (2, 64, 8, 12),
    (2, 20, 64, 64),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_equal_the_plain_loop(size, dtype):
    arguments = problem(*size, dtype)
    actual = results(scan, arguments)
    assert all(t.dtype == dtype for t in actual)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    assert_same(actual, results(reference.selective_scan, exact), dtype, factor=100)


def test_every_element_in_double_precision():
    """Relative to each element's own terms: to 1e-12 of the sum of absolute values that it is made of."""
    arguments = problem(3, 50, 20, 8)
    x, delta, A, B, C, initial = (t.detach() for t in arguments)
    y, state = scan(*arguments)
    expected, expected_state = reference.selective_scan(x, delta, A, B, C, initial)
    size, state_size = reference.selective_scan(x.abs(), delta, A, B.abs(), C.abs(), initial.abs())
    assert ((y - expected).abs() <= 1e-12 * size).all()
    assert ((state - expected_state).abs() <= 1e-12 * state_size).all()


def test_nothing_to_scan_from_a_state_of_zero():
    x, delta, A, B, C, initial = problem(2, 0, 3, 2)
    y, state = selective_scan(x, delta, A, B, C, return_state=True)
    assert torch.equal(state, torch.zeros_like(initial))
    assert y.shape == (2, 0, 3)
    assert all(not g.any() for g in torch.autograd.grad(y.sum() + state.sum(), (x, delta, A, B, C)))


@pytest.mark.parametrize("size", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)])
def test_nothing_to_scan(size):
    arguments = problem(*size)
    actual = results(scan, arguments)
    assert not actual[0].any()
    if size[1] == 0:
        assert torch.equal(actual[1], arguments[-1])
        assert torch.equal(actual[-1].flatten(), torch.linspace(-1, 2, 12, dtype=torch.float64))
    else:
        assert not any(t.any() for t in actual[1:])


def test_a_state_by_hand():
    half = torch.tensor([[0.5]]).log()
    one = torch.ones(1, 2, 1)
    y, state = selective_scan(3 * one, one, half, one, 2 * one, initial=torch.tensor([[[4.0]]]), return_state=True)
    torch.testing.assert_close(y.flatten(), torch.tensor([10.0, 11.0]))  # states 4/2 + 3 and 5/2 + 3
    torch.testing.assert_close(state.flatten(), torch.tensor([5.5]))


def test_the_state_carries_a_sequence_on():
    x, delta, A, B, C, initial = problem(2, 45, 5, 3)
    y, state = scan(x, delta, A, B, C, initial)
    head, middle = scan(x[:, :17], delta[:, :17], A, B[:, :17], C[:, :17], initial)
    tail, end = scan(x[:, 17:], delta[:, 17:], A, B[:, 17:], C[:, 17:], middle)
    torch.testing.assert_close(torch.cat([head, tail], 1), y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(end, state, rtol=1e-13, atol=1e-13)


def test_no_initial_state_is_a_state_of_zero():
    x, delta, A, B, C, initial = problem(2, 9, 5, 3)
    y = selective_scan(x, delta, A, B, C)
    assert torch.equal(y, scan(x, delta, A, B, C, torch.zeros_like(initial))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_step_forgets_the_state(dtype):
    """``exp(delta A)`` underflows to 0: only the newest input is left, and its gradient."""
    x, delta, A, B, C, initial = problem(2, 7, 3, 4, dtype)
    y, state = scan(x, torch.full_like(delta, 1e5), A, B, C, initial)
    expected = 1e5 * x * (B * C).sum(-1, keepdim=True)
    scale = (1e5 * x * (B * C).abs().sum(-1, keepdim=True)).detach().abs().max()
    torch.testing.assert_close(y, expected, rtol=0, atol=float(scale * tolerance(dtype, factor=10)))
    gradients = torch.autograd.grad(y.sum() + state.sum(), (x, A, initial))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1].any()
    assert not gradients[2].any()


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_steps_of_zero_and_backward_in_time(value):
    arguments = problem(2, 20, 5, 4)
    arguments[1] = torch.full_like(arguments[1], value).requires_grad_()
    assert_same(results(scan, arguments), results(reference.selective_scan, arguments), torch.float64, factor=100)


def test_a_nan_stays_where_it_is():
    x, delta, A, B, C, initial = (t.detach() for t in problem(3, 10, 20, 4))
    delta[1, 4, 7] = torch.nan
    y, state = scan(x, delta, A, B, C, initial)
    bad = torch.zeros_like(y, dtype=torch.bool)
    bad[1, 4:, 7] = True
    assert torch.equal(y.isnan(), bad)
    assert torch.equal(state.isnan().all(-1), bad[:, -1])


@pytest.mark.parametrize("size", [(2, 5, 3, 2), (1, 34, 2, 1)])
def test_gradcheck(size):
    assert torch.autograd.gradcheck(scan, problem(*size))


def test_gradcheck_without_states():
    assert torch.autograd.gradcheck(selective_scan, problem(2, 5, 3, 2)[:5])


def test_gradcheck_with_one_of_the_two_states():
    arguments = problem(2, 5, 17, 2)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t[:5], initial=t[5]), arguments, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, return_state=True), arguments[:5], fast_mode=True)
    assert torch.autograd.gradcheck(lambda *t: scan(*t)[1], arguments, fast_mode=True)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("size", [(2, 5, 3, 2), (1, 3, 16, 2), (0, 5, 3, 2)])
def test_opcheck(size, states, save):
    arguments = [t.requires_grad_(save) for t in problem(*size)]
    if not states:
        arguments[-1] = None
    torch.library.opcheck(torch.ops.hsv_torch.selective_scan.default, (*arguments, states, save))


def test_only_what_is_asked_for_is_made():
    arguments = [t.detach() for t in problem(2, 40, 3, 2)]
    _, state, saved = _operators.selective_scan(*arguments, False, False)
    assert state.numel() == saved.numel() == 0


def test_what_is_saved_is_a_chunk_apart():
    arguments = problem(2, 10 * _operators.SELECTIVE_CHUNK, 64, 64, torch.float32)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        scan(*arguments)
    assert max(sizes) == 2 * 10 * 64 * 64


def test_compiled_graphs_hold_the_operator():
    arguments = problem(2, 9, 5, 3)
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for x, y in zip(results(compiled, arguments), results(scan, arguments), strict=True):
        assert torch.equal(x, y)


def test_export_with_any_batch_and_length():
    class Layer(torch.nn.Module):
        def forward(self, x, delta, A, B, C):
            return selective_scan(x, delta, A, B, C)

    x, delta, A, B, C = (t.detach() for t in problem(2, 9, 5, 3)[:5])
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(Layer(), (x, delta, A, B, C), dynamic_shapes=(free, free, None, free, free))
    x, delta, _, B, C = (t.detach() for t in problem(3, 20, 5, 3)[:5])
    assert torch.equal(program.module()(x, delta, A, B, C), selective_scan(x, delta, A, B, C))


def test_arguments_need_not_be_contiguous():
    arguments = problem(4, 9, 6, 3)
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in arguments]
    assert not any(t.is_contiguous() for t in strided)
    for x, y in zip(results(scan, strided), results(scan, arguments), strict=True):
        assert torch.equal(x, y)


def test_dtypes_are_promoted():
    x, delta, A, B, C, initial = problem(1, 3, 2, 2, torch.float32)
    y, state = scan(x.to(torch.bfloat16), delta, A.double(), B, C, initial)
    assert y.dtype == state.dtype == torch.float64


def test_the_second_derivative_is_refused():
    arguments = problem(1, 3, 2, 2)
    (gradient,) = torch.autograd.grad(scan(*arguments)[0].pow(2).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("size", [(1, 300, 100, 20), (9, 100, 64, 16)])
def test_threads_do_not_change_a_bit(size):
    arguments = problem(*size, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            runs.append(results(scan, arguments))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_operator_and_kernel_agree_on_the_chunk():
    from hsv_torch.scan import _numba

    assert _operators.SELECTIVE_CHUNK == _numba.SELECTIVE_CHUNK


@pytest.mark.parametrize(
    ("changed", "shape", "match"),
    [
        ("x", (2, 5), r"`x` and `delta` must both be \(batch, length, d\), got \(2, 5\) and \(2, 5, 3\)"),
        ("delta", (2, 5, 1), r"`x` and `delta` must both be .*, got \(2, 5, 3\) and \(2, 5, 1\)"),
        ("A", (4, 2), r"`A` must be \(d, n\) with d = 3 to go with `x`, got \(4, 2\)"),
        ("B", (2, 5, 3), r"`B` must be \(2, 5, 2\) to go with `x` and `A`, got \(2, 5, 3\)"),
        ("C", (5, 2), r"`C` must be \(2, 5, 2\) to go with `x` and `A`, got \(5, 2\)"),
        ("initial", (3, 2), r"`initial` must be \(2, 3, 2\) to go with `x` and `A`, got \(3, 2\)"),
    ],
)
def test_wrong_shapes(changed, shape, match):
    arguments = dict(zip(NAMES, problem(2, 5, 3, 2), strict=True)) | {changed: torch.ones(shape)}
    with pytest.raises(hsv.ShapeError, match=match):
        selective_scan(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_wrong_dtypes(dtype):
    with pytest.raises(hsv.DtypeError, match="there is no selective scan in torch"):
        selective_scan(*(t.detach().to(dtype) for t in problem(1, 3, 2, 2)[:5]))


def test_arguments_on_two_devices():
    x, delta, A, B, C, _ = problem(1, 3, 2, 2)
    with pytest.raises(hsv.ShapeError, match="all arguments must be on one device, got meta and cpu"):
        selective_scan(x, delta, A.to("meta"), B, C)


def test_a_device_without_a_kernel_is_said_once(monkeypatch):
    monkeypatch.setattr(_linear, "_warned", set())
    arguments = [t.detach().to("meta") for t in problem(2, 9, 3, 2)]
    with pytest.warns(UserWarning, match="no kernel for meta yet: a parallel scan in plain PyTorch is used"):
        y, state = scan(*arguments)
    assert (y.shape, state.shape) == ((2, 9, 3), (2, 3, 2))
    scan(*arguments)  # filterwarnings = error


# --- the exponential of the kernels -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exponentials():
    """The kernels' ``exp`` of a whole array."""
    from hsv_torch.scan import _numba

    load, store, exp, n_bytes = _numba.load, _numba.store, _numba.exp, _numba.N_BYTES

    @numba.njit
    def fill(x, y):
        for k in range(0, x.size, n_bytes // x.itemsize):
            store(y, k, exp(load(x, k)))

    def compute(x):
        padded = np.zeros(-(-x.size // 16) * 16, x.dtype)
        padded[: x.size] = x
        out = np.empty_like(padded)
        fill(padded, out)
        return out[: x.size]

    return compute


def test_exp_in_single_precision_over_its_whole_range(exponentials):
    x = np.concatenate([np.linspace(-104, 89, 10**6), np.linspace(-1, 1, 10**5)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    actual = exponentials(x)
    least, largest = 1.5 * np.finfo(np.float32).tiny, float(np.finfo(np.float32).max)
    normal = (exact > least) & (exact < largest)
    last_place = np.spacing(exact[normal].astype(np.float32))
    assert (np.abs(actual[normal] - exact[normal]) <= 1.5 * last_place).all()
    assert (np.abs(actual - exact)[exact <= least] <= least).all()
    assert np.isinf(actual[exact > 1.0001 * largest]).all()


def test_exp_in_double_precision_over_its_whole_range(exponentials, rng):
    x = np.concatenate([rng.uniform(-708, 709.7, 2000), rng.uniform(-1, 1, 1000), np.linspace(-0.35, 0.35, 501)])
    with mpmath.workprec(120):
        errors = [abs(mpmath.mpf(float(y)) - mpmath.exp(float(z))) for z, y in zip(x, exponentials(x), strict=True)]
    assert (np.array(errors, float) <= 1.5 * np.spacing(np.exp(x))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_the_edges(dtype, exponentials):
    tiny = np.finfo(dtype).tiny
    x = np.array([0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).min, -1e4], dtype)
    np.testing.assert_array_equal(exponentials(x), np.array([1, 1, 1, 1, np.inf, 0, np.nan, np.inf, 0, 0], dtype))
    falling = exponentials(np.linspace(-800, -80, 10_001).astype(dtype))
    assert (falling >= 0).all()
    assert (np.diff(falling) >= 0).all()
