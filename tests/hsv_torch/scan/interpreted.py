"""The Triton kernels, run on the CPU by Triton's interpreter, behind the public entry points: collected by ``test_triton.py`` only.

The interpreter has to be chosen before anything imports Triton, and PyTorch itself may import it: hence a process of its own.
"""

import os

import pytest
import torch

from hsv_torch.scan import (
    _cuda,
    _diagonal,
    _operators,
    diagonal_state_space,
    gated_linear_attention,
    linear_scan,
    reference,
    selective_scan,
)
from hsv_torch.scan._triton import _launch
from tests.hsv_torch.scan import test_attention, test_diagonal, test_linear, test_selective
from tests.tolerances import tolerance

OPERATORS = ("linear_scan", "selective_scan", "gated_linear_attention")


@pytest.fixture(scope="session", autouse=True)
def kernels_of_the_gpu():
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.set_num_threads(1)
    _operators._selective_saved_shape = _launch.selective_saved_shape
    _operators._attention_saved_shape = _launch.attention_saved_shape
    for name in OPERATORS:
        for operator in (name, f"{name}_backward"):
            getattr(_operators, operator).register_kernel("cpu")(getattr(_cuda, operator))


def assert_same(actual, expected, dtype, factor=100.0):
    for x, y in zip(actual, expected, strict=True):
        assert x.shape == y.shape
        atol = float(y.abs().max() * tolerance(dtype, factor=factor)) if y.numel() else 0
        torch.testing.assert_close(x.to(y.dtype), y, rtol=0, atol=atol)


# --- linear scan ------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_pieces(monkeypatch):
    from hsv_torch.scan._triton import linear

    monkeypatch.setattr(linear, "SHORTEST", 16)
    monkeypatch.setattr(linear, "LANES", 40)
    return linear.pieces_of


def linear_results(function, arguments):
    h = function(*arguments)
    weight = torch.linspace(-1, 2, h.numel(), dtype=h.dtype).reshape(h.shape)
    return [h.detach(), *torch.autograd.grad(h, arguments, weight)]


def check_linear(size, dtype, varying):
    arguments = [t.requires_grad_() for t in test_linear.problem(*size, dtype, varying=varying)]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = [t.detach().to(wide).requires_grad_() for t in arguments]
    assert_same(linear_results(linear_scan, arguments), linear_results(reference.linear_scan, exact), dtype)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 1, 1), torch.float32),
        ((2, 17, 3), torch.float32),
        ((2, 1, 65), torch.float64),  # two programs
        ((3, 9, 2), torch.complex64),
        ((1, 3, 1), torch.complex128),
    ],
)
def test_linear_states_and_gradients_equal_the_plain_loop(size, dtype, varying):
    check_linear(size, dtype, varying)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_linear_scan_in_pieces(dtype, varying, short_pieces):
    assert short_pieces(2, 40, 3) == (2, 32)
    check_linear((2, 40, 3), dtype, varying)


@pytest.mark.slow
def test_linear_scan_in_pieces_of_pieces(short_pieces, monkeypatch):
    """So many pieces that their ends are scanned in pieces too."""
    from hsv_torch.scan._triton import linear

    monkeypatch.setattr(linear, "SHORTEST", 8)
    assert short_pieces(1, 120, 1) == (15, 8)
    assert short_pieces(1, 16, 1) == (2, 8)
    check_linear((1, 125, 1), torch.float64, False)


@pytest.mark.parametrize(("batch", "length", "n"), [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("varying", [False, True])
def test_linear_nothing_in_nothing_out(batch, length, n, varying):
    test_linear.test_nothing_in_nothing_out(batch, length, n, varying)


def test_linear_arguments_need_not_be_contiguous():
    test_linear.test_arguments_need_not_be_contiguous()


@pytest.mark.slow
def test_linear_opcheck():
    test_linear.test_opcheck(False)


def test_diagonal_model_around_the_linear_scan(monkeypatch):
    monkeypatch.setattr(_diagonal, "_cost", lambda **_: {"fused": 1, "wide": 0})  # as on a GPU
    arguments = test_diagonal.problem(2, 9, 3, 2, 2)
    actual = test_diagonal.results(lambda *t: diagonal_state_space(*t, mode="scan"), arguments)
    assert_same(actual, test_diagonal.results(test_diagonal.plain, arguments), torch.float64)


# --- selective scan ---------------------------------------------------------------------------------------------------


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 4 and 2 steps in float64, of 8 and 4 in float32: the same edges in less time."""
    monkeypatch.setattr(_launch, "FORWARD_BYTES", 32)
    monkeypatch.setattr(_launch, "BACKWARD_BYTES", 16)


def check_selective(size, dtype):
    arguments = test_selective.problem(*size, dtype)
    actual = test_selective.results(test_selective.scan, arguments)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    test_selective.assert_same(actual, test_selective.results(reference.selective_scan, exact), dtype, factor=100)


@pytest.mark.parametrize("programs", [0, 10**6], ids=["chunks in turn", "chunks at once"])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 1, 1, 1), torch.float32),
        ((2, 9, 3, 3), torch.float64),
        ((1, 9, 35, 2), torch.float32),  # programs of 64 channels
        ((1, 5, 2, 12), torch.float64),
        ((1, 3, 1, 17), torch.float32),
    ],
)
def test_selective_outputs_and_gradients_equal_the_plain_loop(size, dtype, programs, short_chunks, monkeypatch):
    from hsv_torch.scan._triton import selective

    monkeypatch.setattr(selective, "PROGRAMS", programs)
    check_selective(size, dtype)


@pytest.mark.slow
def test_selective_in_chunks_of_full_size():
    check_selective((1, 17, 2, 2), torch.float32)


@pytest.mark.parametrize("programs", [0, 10**6], ids=["chunks in turn", "chunks at once"])
def test_selective_in_segments(programs, short_chunks, monkeypatch):
    from hsv_torch.scan._triton import selective

    monkeypatch.setattr(selective, "PROGRAMS", programs)
    monkeypatch.setattr(_launch, "SEGMENT_BYTES", 1)
    assert _launch.segments_of(1, 13, 2, 3, 8) == (2, 8)
    check_selective((1, 13, 2, 3), torch.float64)


def test_selective_sums_over_more_channels_than_parts(short_chunks, monkeypatch):
    from hsv_torch.scan._triton import selective

    monkeypatch.setattr(selective, "PARTS", 2)
    check_selective((1, 3, 70, 2), torch.float64)  # three blocks of 32 channels, two parts


def test_selective_without_states(short_chunks):
    arguments = test_selective.problem(2, 5, 3, 2)[:5]
    actual = selective_scan(*arguments)
    expected = reference.selective_scan(*arguments)[0]
    gradients = (torch.autograd.grad(y.sum(), arguments) for y in (actual, expected))
    assert_same([actual.detach(), *next(gradients)], [expected.detach(), *next(gradients)], torch.float64)


@pytest.mark.parametrize("size", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)])
def test_selective_nothing_to_scan(size):
    test_selective.test_nothing_to_scan(size)


@pytest.mark.parametrize("rate", [-1e5, -torch.inf])
def test_selective_forgets_at_once(rate, short_chunks):
    """``exp(delta A)`` is 0, with an infinite rate too: only the newest input is left."""
    x, delta, A, B, C, initial = test_selective.problem(1, 5, 3, 2)
    y, state = selective_scan(x, delta, torch.full_like(A, rate), B, C, initial=initial, return_state=True)
    torch.testing.assert_close(y, delta * x * (B * C).sum(-1, keepdim=True))
    (gradient,) = torch.autograd.grad(y.sum() + state.sum(), (initial,))
    assert not gradient.any()


def test_selective_opcheck(short_chunks):
    test_selective.test_opcheck((1, 3, 2, 2), True, True)


@pytest.mark.slow
def test_selective_compiled_graphs_hold_the_operator(short_chunks):
    test_selective.test_compiled_graphs_hold_the_operator()


# --- gated linear attention -------------------------------------------------------------------------------------------


def check_attention(arguments, dtype):
    actual = test_attention.results(test_attention.attend, arguments)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    test_attention.assert_same(actual, test_attention.results(reference.gated_linear_attention, exact), dtype, 100)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 1, 1, 1, 1, 1), torch.float64),
        ((1, 18, 1, 2, 3, 5), torch.float64),  # two chunks, two heads of a group
        ((1, 33, 2, 2, 12, 17), torch.float32),  # two chunks of 32 steps, three of 16; two groups
        ((1, 7, 1, 1, 17, 20), torch.float64),  # two tiles of keys, two of values
        ((1, 5, 1, 1, 66, 2), torch.float32),  # two tiles of keys of any kind
    ],
)
def test_attention_outputs_and_gradients_equal_the_plain_loop(size, dtype, per_key):
    check_attention(test_attention.problem(*size, per_key=per_key, dtype=dtype), dtype)


def test_attention_with_larger_chunks_on_units_for_matrix_products():
    """The interpreter has no such units: it rounds less than they would."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "tf32"
        check_attention(test_attention.problem(1, 66, 1, 1, 3, 2, per_key=False, dtype=torch.float32), torch.float32)
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("per_key", [False, True])
def test_attention_forgets_and_fades_fast(per_key):
    """Decays of nothing inside a chunk, and so fast that a quotient of two of them would be 0 / 0."""
    *signals, g, initial = (t.detach() for t in test_attention.problem(1, 17, 1, 1, 3, 2, per_key=per_key))
    g = 300 * g
    g[:, 7], g[:, 12, 0] = -torch.inf, 0.5
    arguments = [t.requires_grad_() for t in (*signals, g, initial)]
    check_attention(arguments, torch.float64)
    *_, slope, _ = test_attention.results(test_attention.attend, arguments)
    assert not slope[:, 7].any()


def test_attention_without_states():
    arguments = test_attention.problem(1, 4, 1, 1, 2, 2, per_key=True)[:4]
    actual = gated_linear_attention(*arguments)
    expected = reference.gated_linear_attention(*arguments)[0]
    gradients = (torch.autograd.grad(y.sum(), arguments) for y in (actual, expected))
    assert_same([actual.detach(), *next(gradients)], [expected.detach(), *next(gradients)], torch.float64)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("size", [(0, 5, 1, 2, 3, 2), (2, 0, 1, 2, 3, 2), (2, 5, 1, 2, 0, 2), (2, 5, 1, 2, 3, 0)])
def test_attention_nothing_to_attend_to(size, per_key):
    test_attention.test_nothing_to_attend_to(size, per_key)


@pytest.mark.slow
def test_attention_opcheck():
    arguments = test_attention.problem(1, 3, 1, 2, 2, 2, per_key=False)
    torch.library.opcheck(torch.ops.hsv_torch.gated_linear_attention.default, (*arguments, True, True))
