"""The diagonal state-space model: fused kernel, wide path and convolution against the plain loop."""

import math

import numpy as np
import pytest
import torch

import hsv
from hsv_torch.scan import _convolution, _diagonal, _operators, choose_mode, diagonal_state_space, reference
from tests.tolerances import tolerance

PRECISIONS = ((torch.float32, torch.complex64), (torch.float64, torch.complex128))


def problem(batch, length, n, n_inputs, n_outputs, dtype=torch.float64, *, radii=(0.9, 0.999), seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(batch, length, n_inputs, **draw)
    radius = radii[0] + (radii[1] - radii[0]) * torch.rand(n, **draw)
    log_poles = torch.complex(radius.log(), 2 * math.pi * torch.rand(n, **draw))
    B = torch.complex(torch.randn(n, n_inputs, **draw), torch.randn(n, n_inputs, **draw)) / math.sqrt(2 * n_inputs)
    C = torch.complex(torch.randn(n_outputs, n, **draw), torch.randn(n_outputs, n, **draw)) / math.sqrt(n)
    return [x.to(dtype)] + [t.to(dict(PRECISIONS)[dtype]) for t in (log_poles, B, C)]


def results(function, arguments):
    """Outputs and gradients of one weighted sum of them, in float64."""
    arguments = [t.detach().requires_grad_() for t in arguments]
    y = function(*arguments)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    gradients = torch.autograd.grad((y * weight).sum(), arguments)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in arguments]
    assert y.dtype == arguments[0].dtype
    return [t.detach().to(torch.complex128) for t in (y, *gradients)]


def plain(x, log_poles, B, C):
    return reference.diagonal_state_space(x, log_poles.exp(), B, C)


def assert_same(actual, expected, dtype, factor):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=float(y.abs().max() * tolerance(dtype, factor=factor)))


SIZES = [
    (3, 30, 5, 4, 4),  # two chunks, the second one short
    (1, 1, 1, 1, 1),
    (2, 1, 3, 2, 5),
    (17, 53, 2, 8, 8),  # three chunks; a second tile with one sequence
    (40, 24, 3, 9, 3),  # two groups of inputs, one of outputs
    (2, 25, 1, 3, 20),
    (48, 26, 4, 16, 24),
]


@pytest.mark.parametrize("way", ["fused", "wide", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_equal_the_plain_loop(size, dtype, way, monkeypatch):
    monkeypatch.setattr(_diagonal, "_cost", lambda **_: {"fused": way != "fused", "wide": way != "wide"})
    mode = "convolution" if way == "convolution" else "scan"
    arguments = problem(*size, dtype)
    expected = results(plain, [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in arguments])
    actual = results(lambda *t: diagonal_state_space(*t, mode=mode), arguments)
    assert_same(actual, expected, dtype, factor=1e3)


@pytest.mark.parametrize("mode", ["scan", "convolution"])
@pytest.mark.parametrize("size", [(0, 5, 2, 3, 3), (2, 0, 2, 3, 3), (2, 5, 0, 3, 3), (0, 5, 2, 70, 70)])
def test_nothing_in_nothing_out(size, mode):
    arguments = [t.requires_grad_() for t in problem(*size)]
    y = diagonal_state_space(*arguments, mode=mode)
    assert y.shape == (size[0], size[1], size[4])
    assert not y.any()
    gradients = torch.autograd.grad(y.sum(), arguments)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, arguments, strict=True))


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_poles_on_the_circle(mode):
    arguments = problem(2, 50, 6, 3, 3, radii=(1.0, 1.0))
    assert_same(
        results(lambda *t: diagonal_state_space(*t, mode=mode), arguments),
        results(plain, arguments),
        torch.float64,
        1e3,
    )


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_poles_at_zero_leave_a_gain(mode):
    x, log_poles, B, C = problem(2, 20, 3, 2, 2)
    log_poles = torch.full_like(log_poles, -1e5)  # exp underflows to 0
    y = diagonal_state_space(x, log_poles, B, C, mode=mode)
    torch.testing.assert_close(y, x @ (C @ B).real.mT)


def test_an_impulse_by_hand():
    x = torch.zeros(1, 4, 1, dtype=torch.float64)
    x[0, 0] = 1
    quarter_turn = torch.tensor([complex(math.log(0.5), math.pi / 2)])
    one = torch.ones(1, 1, dtype=torch.complex128)
    for mode in ("scan", "convolution"):
        y = diagonal_state_space(x, quarter_turn.to(torch.complex128), one, one, mode=mode)
        torch.testing.assert_close(y.flatten(), torch.tensor([1, 0, -0.25, 0], dtype=torch.float64), atol=1e-7, rtol=0)


def test_single_precision_near_the_circle_over_a_long_sequence():
    """Powers of poles with k theta in the thousands, time constants of a thousand steps."""
    arguments = problem(2, 2000, 16, 2, 2, torch.float32, radii=(0.999, 0.9995))
    exact = plain(*(t.to(torch.complex128 if t.is_complex() else torch.float64) for t in arguments))
    # The convolution takes the log-poles as given: only products and transforms are rounded.
    error = (diagonal_state_space(*arguments, mode="convolution") - exact).abs().max() / exact.abs().max()
    assert error < tolerance(torch.float32, factor=50)
    # The scan rounds the poles themselves, which a thousand steps amplify a thousandfold.
    error = (diagonal_state_space(*arguments, mode="scan") - exact).abs().max() / exact.abs().max()
    assert error < tolerance(torch.float32, factor=2000)


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_gradcheck(mode):
    arguments = [t.requires_grad_() for t in problem(2, 5, 3, 2, 3)]
    assert torch.autograd.gradcheck(lambda *t: diagonal_state_space(*t, mode=mode), arguments)


def test_gradcheck_of_many_channels(monkeypatch):
    monkeypatch.setattr(_diagonal, "_cost", lambda **_: {"fused": 1, "wide": 0})
    arguments = [t.requires_grad_() for t in problem(2, 5, 3, 2, 3)]
    assert torch.autograd.gradcheck(lambda *t: diagonal_state_space(*t, mode="scan"), arguments)


@pytest.mark.parametrize("save", [False, True])
def test_opcheck(save):
    x, log_poles, B, C = problem(2, 5, 3, 2, 3)
    arguments = [t.requires_grad_(save) for t in (x, log_poles.exp(), B, C)]
    torch.library.opcheck(torch.ops.hsv_torch.diagonal_scan.default, (*arguments, save))


def test_opcheck_of_the_convolution():
    generator = torch.Generator().manual_seed(0)
    x, kernel = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((2, 9, 3), (4, 3, 9)))
    torch.library.opcheck(torch.ops.hsv_torch.convolve.default, (x, kernel))
    with torch.no_grad():
        y, spectrum, gain = torch.ops.hsv_torch.convolve(x, kernel)
    torch.library.opcheck(torch.ops.hsv_torch.convolve_backward.default, (spectrum, gain, torch.ones_like(y)))


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_arguments_need_not_be_contiguous(mode):
    x, log_poles, B, C = arguments = problem(4, 9, 6, 3, 3)
    strided = [x.transpose(0, 2).contiguous().transpose(0, 2), log_poles.repeat_interleave(2)[::2]]
    strided += [B.mT.contiguous().mT, C.conj().resolve_conj().conj()]
    actual = results(lambda *t: diagonal_state_space(*t, mode=mode), strided)
    assert_same(actual, results(plain, arguments), torch.float64, 1e3)


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_the_second_derivative_is_refused(mode):
    arguments = [t.requires_grad_() for t in problem(1, 3, 2, 2, 2)]
    y = diagonal_state_space(*arguments, mode=mode)
    (gradient,) = torch.autograd.grad(y.pow(2).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_threads_do_not_change_a_bit():
    arguments = problem(50, 200, 20, 8, 8, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            runs.append(results(lambda *t: diagonal_state_space(*t, mode="scan"), arguments))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_a_sequence_does_not_depend_on_the_others_in_its_batch():
    x, *system = problem(20, 30, 4, 3, 3, torch.float32)
    together = diagonal_state_space(x, *system, mode="scan")
    assert torch.equal(together[7:], diagonal_state_space(x[7:], *system, mode="scan"))


def test_the_rule_is_a_function_of_sizes_and_device():
    size = {"batch": 50, "length": 784, "n_inputs": 8, "n_outputs": 8}
    assert choose_mode(n_states=13, **size) == "scan"
    assert choose_mode(n_states=28, **size) == "scan"
    assert choose_mode(n_states=4096, **size) == "convolution"
    assert choose_mode(n_states=13, **size, device="meta") == "convolution"  # no scan kernel there


def test_operator_and_kernel_agree_on_the_tiling():
    from hsv_torch.scan import _numba

    assert _operators.N_BYTES == _numba.N_BYTES
    assert _operators.CHUNK == _numba.CHUNK
    assert _operators.GROUP == _numba.GROUP


@pytest.mark.parametrize("least", [1, 4, 5, 127, 1567, 99_999])
def test_fast_lengths(least):
    n = _convolution.fast_length(least)
    assert n >= least
    remainder = n // 4
    assert n % 4 == 0
    for prime in (2, 3, 5):
        while remainder % prime == 0:
            remainder //= prime
    assert remainder == 1
    assert n <= max(4, 1.25 * least + 4)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 50])
def test_impulse_response_equals_powers(length):
    _, log_poles, B, C = problem(1, 1, 4, 2, 3)
    poles, B, C = (t.numpy() for t in (log_poles.exp(), B, C))
    expected = np.stack([(C @ np.diag(poles**k) @ B).real for k in range(length)], -1)
    actual = _convolution.impulse_response(log_poles, torch.from_numpy(B), torch.from_numpy(C), length)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


def test_wrong_arguments():
    x, log_poles, B, C = problem(2, 5, 3, 2, 2)
    with pytest.raises(hsv.ShapeError, match="shapes must be x"):
        diagonal_state_space(x, log_poles, B.mT, C, mode="scan")
    with pytest.raises(hsv.DtypeError, match="dtypes must be float32 or half precision for x"):
        diagonal_state_space(x.float(), log_poles, B, C, mode="scan")
    with pytest.raises(hsv.ShapeError, match="`mode` must be one of 'scan', 'convolution', got 'auto'"):
        diagonal_state_space(x, log_poles, B, C, mode="auto")
