"""The linear recurrent unit: initialisation, both modes, steps, precisions, tracing, errors."""

import copy
import math

import pytest
import torch

import hsv
from hsv_torch import LRU
from tests.tolerances import tolerance


def layer(d_model=3, n_states=5, *, seed=0, **options):
    return LRU(d_model, n_states, generator=torch.Generator().manual_seed(seed), **options)


def sequences(batch=2, length=20, d_model=3, dtype=torch.float32):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def by_the_equations(lru, x):
    """The docstring's equations, a step and a matrix at a time, in float64."""
    p = {name: value.detach().double() for name, value in lru.named_parameters()}
    poles = torch.exp(torch.complex(-p["nu_log"].exp(), p["theta"]))
    B, C = torch.view_as_complex(p["B"]), torch.view_as_complex(p["C"])
    h, outputs = torch.zeros(len(x), lru.n_states, dtype=torch.complex128), []
    for u in x.double().unbind(1):
        h = poles * h + p["gamma_log"].exp() * (u.to(torch.complex128) @ B.mT)
        outputs.append((h @ C.mT).real + p["D"] * u)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("mode", ["auto", "scan", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_step_follow_the_equations(mode, dtype):
    lru, x = layer(mode=mode, dtype=dtype), sequences(dtype=dtype)
    expected = by_the_equations(lru, x)
    bound = float(expected.abs().max() * tolerance(dtype))
    y = lru(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)
    state = lru.initial_state(len(x))
    for t in range(x.shape[1]):
        y_t, state = lru.step(x[:, t], state)
        torch.testing.assert_close(y_t.double(), expected[:, t], rtol=0, atol=bound)
    assert state.shape == (2, 5)
    assert state.is_complex()


def test_both_modes_have_the_same_gradients():
    lru, x = layer(dtype=torch.float64), sequences(dtype=torch.float64).requires_grad_()
    gradients = {}
    for lru.mode in ("scan", "convolution"):
        gradients[lru.mode] = torch.autograd.grad(lru(x).pow(2).sum(), [x, *lru.parameters()])
    for a, b in zip(gradients["scan"], gradients["convolution"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max() * tolerance(torch.float64)))


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_gradcheck(mode):
    lru, x = layer(2, 3, mode=mode, dtype=torch.float64), sequences(2, 5, 2, torch.float64).requires_grad_()
    names = [name for name, _ in lru.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(lru, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in lru.parameters()]))


def test_initialisation_is_the_published_one():
    lru = layer(64, 4096, min_radius=0.5, max_radius=0.8, max_phase=math.pi / 5, dtype=torch.float64)
    radius = torch.exp(-lru.nu_log.exp())
    assert radius.min() >= 0.5
    assert radius.max() <= 0.8
    # Uniform on the ring: the square of the radius is uniform. Three standard errors of its mean over 4096 draws.
    assert abs(radius.square().mean() - (0.25 + 0.64) / 2) < 3 * (0.64 - 0.25) / math.sqrt(12 * 4096)
    assert lru.theta.min() >= 0
    assert math.pi / 5 * 0.99 < lru.theta.max() < math.pi / 5
    torch.testing.assert_close(lru.gamma_log.exp().square() + radius.square(), torch.ones(4096, dtype=torch.float64))
    assert lru.B.std().item() == pytest.approx(1 / math.sqrt(2 * 64), rel=0.01)
    assert lru.C.std().item() == pytest.approx(1 / math.sqrt(4096), rel=0.01)
    assert lru.D.std().item() == pytest.approx(1, rel=0.3)
    assert {name: tuple(p.shape) for name, p in lru.named_parameters()} == {
        "nu_log": (4096,), "theta": (4096,), "gamma_log": (4096,), "B": (4096, 64, 2), "C": (64, 4096, 2), "D": (64,)
    }  # fmt: skip


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    first, again, other = layer(), layer(), layer(seed=1)
    double = layer(dtype=torch.float64)
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        assert not torch.equal(value, other.get_parameter(name))
        assert torch.equal(value, double.get_parameter(name).float())


def test_poles_drawn_at_zero_are_finite():
    lru = layer(n_states=64, min_radius=0.0, max_radius=0.0)
    assert all(p.isfinite().all() for p in lru.parameters())
    lru(sequences()).sum().backward()
    assert all(p.grad.isfinite().all() for p in lru.parameters())


def test_the_number_of_states_is_read_from_the_parameters():
    lru, x = layer(n_states=5), sequences()
    full = lru(x)
    with torch.no_grad():
        lru.C[:, 2:] = 0
        expected = lru(x)
    for name, axis in {"nu_log": 0, "theta": 0, "gamma_log": 0, "B": 0, "C": 1}.items():
        setattr(
            lru, name, torch.nn.Parameter(lru.get_parameter(name).detach().narrow(axis, 0, 2))
        )  # C is not contiguous
    assert lru.n_states == 2
    assert "n_states=2" in repr(lru)
    assert not torch.allclose(full, expected)
    for lru.mode in ("scan", "convolution"):
        torch.testing.assert_close(lru(x), expected)
    assert lru.initial_state(4).shape == (4, 2)


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0), (1, 1)])
@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_edges(batch, length, mode):
    lru = layer(n_states=1, mode=mode)
    y = lru(sequences(batch, length))
    assert y.shape == (batch, length, 3)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in lru.parameters())


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_inputs_need_not_be_contiguous_and_are_not_changed(mode):
    lru, x = layer(mode=mode), sequences()
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = strided.clone()
    torch.testing.assert_close(lru(strided), lru(x))
    assert torch.equal(strided, before)


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_autocast(mode):
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3), layer(mode=mode)), sequences()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)  # the linear map before it ran in bfloat16
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_compiles_without_a_graph_break(mode):
    lru, x = layer(mode=mode), sequences()
    expected = lru(x)
    y = torch.compile(lru, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected)
    weight = torch.linspace(0, 1, y.numel()).view_as(y)
    actual = torch.autograd.grad((y * weight).sum(), list(lru.parameters()))
    for a, b in zip(actual, torch.autograd.grad((expected * weight).sum(), list(lru.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_copies_and_state_dicts():
    lru, x = layer(), sequences()
    clone = copy.deepcopy(lru)
    other = layer(seed=3)
    other.load_state_dict(lru.state_dict())
    assert torch.equal(clone(x), lru(x))
    assert torch.equal(other(x), lru(x))


def test_without_gradients_nothing_is_kept_and_the_numbers_are_the_same():
    lru, x = layer(mode="scan"), sequences()
    with torch.no_grad():
        y = lru(x)
    assert torch.equal(y, lru(x))


def test_chosen_mode():
    lru = layer(8, 13)
    assert lru.chosen_mode(50, 784) == "scan"
    lru.mode = "convolution"
    assert lru.chosen_mode(50, 784) == "convolution"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((0, 3), {}, hsv.ShapeError, "`d_model` must be at least 1, got 0"),
        ((3, 0), {}, hsv.ShapeError, "`n_states` must be at least 1, got 0"),
        ((3, 2.0), {}, hsv.DtypeError, "`n_states` must be an int, got 2.0"),
        ((3, True), {}, hsv.DtypeError, "`n_states` must be an int, got True"),
        (
            (3, 2),
            {"min_radius": 0.9, "max_radius": 0.5},
            hsv.HsvError,
            "0 <= min_radius <= max_radius < 1, got 0.9 and 0.5",
        ),
        ((3, 2), {"max_radius": 1.0}, hsv.HsvError, "max_radius < 1, got 0.9 and 1.0"),
        (
            (3, 2),
            {"max_phase": -1.0},
            hsv.HsvError,
            "`max_phase` must be a finite angle of at least 0 radians, got -1.0",
        ),
        ((3, 2), {"mode": "fft"}, hsv.HsvError, "`mode` must be one of 'auto', 'scan', 'convolution', got 'fft'"),
        (
            (3, 2),
            {"dtype": torch.bfloat16},
            hsv.DtypeError,
            "`dtype` must be torch.float32 or torch.float64, got torch.bfloat16",
        ),
    ],
)
def test_arguments_are_checked(arguments, options, error, match):
    with pytest.raises(error, match=match):
        LRU(*arguments, **options)


def test_inputs_are_checked():
    lru = layer()
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, length, 3\), got \(2, 20, 4\)"):
        lru(sequences(d_model=4))
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, length, 3\), got \(20, 3\)"):
        lru(sequences()[0])
    with pytest.raises(hsv.DtypeError, match=r"the input is torch.float64 and the layer torch.float32"):
        lru(sequences(dtype=torch.float64))
    with pytest.raises(hsv.DtypeError, match="complex numbers of other precisions are not supported"):
        layer().bfloat16()(sequences(dtype=torch.bfloat16))
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, 3\), got \(2, 20, 3\)"):
        lru.step(sequences(), lru.initial_state(2))
    with pytest.raises(
        hsv.ShapeError,
        match=r"`state` must be torch.complex64 of shape \(2, 5\), got torch.complex64 of shape \(3, 5\)",
    ):
        lru.step(sequences()[:, 0], lru.initial_state(3))
