"""Gated linear attention against the plain loop, element by element, at the edges too."""

import pytest
import torch

import hsv
from hsv_torch.scan import _linear, _operators, gated_linear_attention, reference, selective_scan
from tests.tolerances import tolerance

NAMES = ("q", "k", "v", "log_decay", "initial")


def problem(batch, length, groups, heads, n, p, *, per_key, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 10 * length + 100 * heads + 1000 * n + p)
    keys, values = (batch, length, groups, n), (batch, length, heads, p)
    decays = keys if per_key else (batch, length, heads)
    q, k, v, rate, initial = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (keys, keys, values, decays, (batch, heads, n, p))
    )
    arguments = q, k, v, -torch.nn.functional.softplus(2 * rate - 1), initial
    return [t.to(dtype).requires_grad_() for t in arguments]


def attend(*arguments):
    return gated_linear_attention(*arguments[:4], initial=arguments[4], return_state=True)


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


# batch, length, groups, heads, n, p
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 1, 1, 2, 3, 5),
    (2, 70, 2, 4, 5, 3),  # two chunks, the second one short; nothing fills a vector
    (1, 64, 1, 3, 16, 16),  # one whole chunk; whole vectors
    (3, 130, 1, 1, 20, 33),
    (1, 40, 3, 3, 64, 1),
    (9, 17, 1, 2, 1, 40),
]


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_equal_the_plain_loop(size, dtype, per_key):
    arguments = problem(*size, per_key=per_key, dtype=dtype)
    actual = results(attend, arguments)
    assert all(t.dtype == dtype for t in actual)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    assert_same(actual, results(reference.gated_linear_attention, exact), dtype, factor=100)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("size", [(0, 5, 1, 2, 3, 2), (2, 0, 1, 2, 3, 2), (2, 5, 1, 2, 0, 2), (2, 5, 1, 2, 3, 0)])
def test_nothing_to_attend_to(size, per_key):
    arguments = problem(*size, per_key=per_key)
    y, state, *gradients = results(attend, arguments)
    assert not y.any()
    assert torch.equal(state, arguments[-1])
    if size[1] == 0:
        assert torch.equal(gradients[-1].flatten(), torch.linspace(-1, 2, state.numel(), dtype=torch.float64))
    else:
        assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("per_key", [False, True])
def test_nothing_to_attend_to_from_a_state_of_zero(per_key):
    *arguments, initial = problem(2, 0, 1, 2, 3, 2, per_key=per_key)
    y, state = gated_linear_attention(*arguments, return_state=True)
    assert torch.equal(state, torch.zeros_like(initial))
    assert y.shape == (2, 0, 2, 2)
    assert all(not g.any() for g in torch.autograd.grad(y.sum() + state.sum(), arguments))


def test_a_state_by_hand():
    k, v = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1), torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)
    g = torch.tensor([0.5, 0.25]).log().reshape(1, 2, 1)
    y, state = attend(-k, k, v, g, torch.full((1, 1, 1, 1), 4.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([-16.0, -7.0]))  # states 4/2 + 6 and 8/4 + 5
    torch.testing.assert_close(state.flatten(), torch.tensor([7.0]))


@pytest.mark.parametrize("per_key", [False, True])
def test_minus_infinity_forgets_everything_before(per_key):
    q, k, v, g, initial = problem(2, 100, 1, 2, 3, 4, per_key=per_key)
    with torch.no_grad():
        g[:, 41] = -torch.inf
    y, state, *gradients = results(attend, (q, k, v, g, initial))
    y_after, state_after = gated_linear_attention(q[:, 41:], k[:, 41:], v[:, 41:], g[:, 41:], return_state=True)
    assert (state - state_after).abs().max() < 1e-13
    assert (y[:, 41:] - y_after).abs().max() < 1e-13
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[3][:, 41].any()
    exact = results(reference.gated_linear_attention, (q, k, v, g, initial))
    assert_same((y, state, *gradients), exact, torch.float64, factor=100)


@pytest.mark.parametrize("per_key", [False, True])
def test_fast_and_growing_decays_stay_finite(per_key):
    """Cumulative decays from exp(-30,000) to exp(60): no quotient of them exists in floating point."""
    q, k, v, g, initial = problem(1, 300, 1, 2, 8, 4, per_key=per_key, dtype=torch.float32)
    with torch.no_grad():
        g.mul_(100)
        g[:, 270:] = 2.0
    arguments = [q, k, v, g, initial]
    actual = results(attend, arguments)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    # The sum of 30 growing steps has the rounding of exp(60) in it.
    assert_same(actual, results(reference.gated_linear_attention, exact), torch.float32, factor=1e3)


def test_one_channel_a_head_is_the_selective_scan():
    generator = torch.Generator().manual_seed(0)
    x, rate = (torch.randn(2, 50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    B, C = (torch.randn(2, 50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    A = -torch.arange(1.0, 4, dtype=torch.float64)
    delta = torch.nn.functional.softplus(rate)
    expected = selective_scan(x, delta, A[:, None].expand(3, 4), B, C)
    actual = gated_linear_attention(C[:, :, None], B[:, :, None], (delta * x)[..., None], delta * A)
    torch.testing.assert_close(actual[..., 0], expected)


def test_without_decay_it_is_causal_linear_attention():
    q, k, v, g, _ = (t.detach() for t in problem(2, 90, 2, 2, 5, 3, per_key=False))
    scores = torch.einsum("bihn,bjhn->bhij", q, k).tril()
    torch.testing.assert_close(
        gated_linear_attention(q, k, v, torch.zeros_like(g)), torch.einsum("bhij,bjhp->bihp", scores, v)
    )


def test_the_heads_of_a_group_share_its_keys():
    q, k, v, g, initial = problem(2, 30, 2, 6, 4, 3, per_key=True)
    y, state = attend(q, k, v, g, initial)
    for head in range(6):
        own, group = slice(head, head + 1), slice(head // 3, head // 3 + 1)
        y_own, state_own = attend(q[:, :, group], k[:, :, group], v[:, :, own], g[:, :, group], initial[:, own])
        torch.testing.assert_close(y[:, :, own], y_own)
        torch.testing.assert_close(state[:, own], state_own)


@pytest.mark.parametrize("per_key", [False, True])
def test_the_state_carries_a_sequence_on(per_key):
    q, k, v, g, initial = problem(2, 150, 1, 2, 4, 3, per_key=per_key)
    y, state = attend(q, k, v, g, initial)
    first, middle = attend(q[:, :67], k[:, :67], v[:, :67], g[:, :67], initial)
    second, last = attend(q[:, 67:], k[:, 67:], v[:, 67:], g[:, 67:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("per_key", [False, True])
def test_gradcheck(per_key):
    assert torch.autograd.gradcheck(attend, problem(2, 5, 1, 2, 3, 2, per_key=per_key))


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_opcheck(save, per_key):
    arguments = problem(2, 70, 1, 3, 4, 5, per_key=per_key)
    arguments = arguments if save else [t.detach() for t in arguments]
    torch.library.opcheck(torch.ops.hsv_torch.gated_linear_attention, (*arguments, True, save))
    with torch.no_grad():
        *_, saved = _operators.gated_linear_attention(*arguments, True, True)
        d_state = torch.ones_like(arguments[-1])
        torch.library.opcheck(
            torch.ops.hsv_torch.gated_linear_attention_backward,
            (*arguments[:4], saved, torch.ones_like(arguments[2]), d_state, True),
        )


def test_only_what_is_asked_for_is_made():
    arguments = [t.detach() for t in problem(2, 40, 1, 2, 3, 2, per_key=False)]
    _, state, saved = _operators.gated_linear_attention(*arguments, False, False)
    assert state.numel() == saved.numel() == 0


def test_what_is_saved_is_a_chunk_apart():
    arguments = problem(2, 10 * _operators.ATTENTION_CHUNK, 1, 2, 64, 16, per_key=False, dtype=torch.float32)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(*arguments)
    assert max(sizes) == max(2 * 10 * 2 * 64 * 16, arguments[0].numel())


@pytest.mark.parametrize("per_key", [False, True])
def test_compiled_graphs_hold_the_operator(per_key):
    arguments = problem(2, 9, 1, 2, 5, 3, per_key=per_key)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for x, y in zip(results(compiled, arguments), results(attend, arguments), strict=True):
        assert torch.equal(x, y)


def test_export_with_any_batch_and_length():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, log_decay):
            return gated_linear_attention(q, k, v, log_decay)

    arguments = tuple(t.detach() for t in problem(2, 9, 1, 2, 5, 3, per_key=False)[:4])
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(Layer(), arguments, dynamic_shapes=(free,) * 4)
    arguments = tuple(t.detach() for t in problem(3, 70, 1, 2, 5, 3, per_key=False)[:4])
    assert torch.equal(program.module()(*arguments), gated_linear_attention(*arguments))


def test_arguments_need_not_be_contiguous():
    arguments = problem(4, 9, 1, 2, 6, 3, per_key=False)
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in arguments]
    assert not all(t.is_contiguous() for t in strided)
    for x, y in zip(results(attend, strided), results(attend, arguments), strict=True):
        assert torch.equal(x, y)


def test_the_second_derivative_is_refused():
    arguments = problem(1, 3, 1, 1, 2, 2, per_key=False)
    (gradient,) = torch.autograd.grad(attend(*arguments)[0].pow(2).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("size", [(1, 300, 1, 12, 20, 16), (9, 100, 2, 2, 32, 33)])
def test_threads_do_not_change_a_bit(size, per_key):
    arguments = problem(*size, per_key=per_key, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            runs.append(results(attend, arguments))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_operator_and_kernel_agree_on_the_chunk():
    from hsv_torch.scan import _numba

    assert _operators.ATTENTION_CHUNK == _numba.ATTENTION_CHUNK


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_holds_the_state_in_single_precision(dtype):
    arguments = [t.detach().to(dtype) for t in problem(2, 70, 1, 2, 5, 3, per_key=False)]
    y, state = attend(*arguments)
    expected, expected_state = attend(*(t.float() for t in arguments))
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(y, expected.to(dtype))
    assert torch.equal(state, expected_state)
    # A state in single precision does not widen what is answered.
    y, state = attend(*arguments[:4], expected_state)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("changed", "shape", "match"),
    [
        ("q", (2, 5, 2), r"`q` and `k` must both be \(batch, length, groups, n\), got \(2, 5, 2\) and \(2, 5, 2, 3\)"),
        ("k", (2, 5, 2, 4), r"`q` and `k` must both be"),
        ("v", (2, 5, 4), r"`v` must be \(2, 5, heads, p\) to go with `q`, got \(2, 5, 4\)"),
        ("v", (2, 5, 3, 1), r"must divide the number of heads, axis 2 of `v`; got 2 and 3"),
        ("log_decay", (2, 5, 4, 3), r"must be \(2, 5, 4\) or, for each key, \(2, 5, 2, 3\), got \(2, 5, 4, 3\)"),
        ("initial", (2, 2, 3, 1), r"`initial` must be \(2, 4, 3, 1\) to go with `q` and `v`, got \(2, 2, 3, 1\)"),
    ],
)
def test_wrong_shapes(changed, shape, match):
    arguments = dict(zip(NAMES, problem(2, 5, 2, 4, 3, 1, per_key=False), strict=True)) | {changed: torch.ones(shape)}
    with pytest.raises(hsv.ShapeError, match=match):
        gated_linear_attention(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_wrong_dtypes(dtype):
    with pytest.raises(hsv.DtypeError, match="there is no gated linear attention in torch"):
        gated_linear_attention(*(t.detach().to(dtype) for t in problem(1, 3, 1, 1, 2, 2, per_key=False)[:4]))


def test_arguments_on_two_devices():
    q, k, v, g, _ = problem(1, 3, 1, 1, 2, 2, per_key=False)
    with pytest.raises(hsv.ShapeError, match="all arguments must be on one device, got meta and cpu"):
        gated_linear_attention(q, k, v, g.to("meta"))


def test_a_device_without_a_kernel_is_said_once(monkeypatch):
    monkeypatch.setattr(_linear, "_warned", set())
    arguments = [t.detach().to("meta") for t in problem(2, 9, 1, 2, 3, 2, per_key=False)]
    with pytest.warns(UserWarning, match="no kernel for meta yet"):
        y, state = attend(*arguments)
    assert (y.shape, state.shape) == ((2, 9, 2, 2), (2, 2, 3, 2))
    attend(*arguments)  # filterwarnings = error
