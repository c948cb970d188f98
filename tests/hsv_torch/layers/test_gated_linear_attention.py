"""Gated linear attention: forward and step, decays a key and a head, padding, precisions, errors."""

import copy
import math

import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import GatedLinearAttention, selective
from tests.tolerances import tolerance

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
DECAYS = pytest.mark.parametrize("decay", ["key", "head"])


def layer(d_model=4, n_states=5, *, seed=0, **options):
    options = {"n_heads": 2, "gate_rank": 3, "gate_normalizer": 2.0, **options}
    made = GatedLinearAttention(d_model, n_states, generator=torch.Generator().manual_seed(seed), **options)
    with torch.no_grad():
        made.g_norm.weight.copy_(torch.linspace(0.5, 2, made.head_dim))
    return made


def sequences(batch=2, length=20, d_model=4, dtype=torch.float32, seed=1):
    draw = torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw.to(dtype)


def by_the_equations(gla, x):
    """The docstring's equations for one sequence, step by step and head by head, in float64."""
    p = {name: value.detach().double() for name, value in gla.named_parameters()}
    heads, n = gla.n_heads, gla.n_states
    S = [torch.zeros(n, gla.head_dim, dtype=torch.float64) for _ in range(heads)]
    outputs = []
    for x_t in x.double():
        q, k, v = (p[f"{name}_proj.weight"] @ x_t for name in "qkv")
        if gla.decay == "key":
            logits = p["gk_proj.1.weight"] @ (p["gk_proj.0.weight"] @ x_t) + p["gk_proj.1.bias"]
        else:
            logits = (p["gk_proj.weight"] @ x_t + p["gk_proj.bias"]).repeat_interleave(n)
        decay = torch.sigmoid(logits) ** (1 / gla.gate_normalizer)
        y = []
        for h in range(heads):
            rows, columns = slice(h * n, (h + 1) * n), slice(h * gla.head_dim, (h + 1) * gla.head_dim)
            S[h] = decay[rows, None] * S[h] + torch.outer(k[rows], v[columns])
            o = S[h].T @ q[rows] / math.sqrt(n)
            y.append(p["g_norm.weight"] * o / torch.sqrt(o.square().mean() + gla.norm_eps))
        y = torch.cat(y)
        if gla.g_proj is not None:
            gate = p["g_proj.weight"] @ x_t
            y = y * gate * torch.sigmoid(gate)
        outputs.append(p["o_proj.weight"] @ y)
    return torch.stack(outputs)


def check_forward_and_step(gla, x):
    expected = torch.stack([by_the_equations(gla, sequence) for sequence in x])
    bound = 10 * float(expected.abs().max() * tolerance(x.dtype))  # the norm enlarges what is small
    y = gla(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)
    state = gla.initial_state(len(x))
    for t in range(x.shape[1]):
        y_t, state = gla.step(x[:, t], state)
        torch.testing.assert_close(y_t.double(), expected[:, t], rtol=0, atol=bound)
    assert state.shape == (len(x), gla.n_heads, gla.n_states, gla.head_dim)


@DTYPES
@DECAYS
@pytest.mark.parametrize(
    "options", [{}, {"n_heads": 1, "n_values": 3}, {"output_gate": False, "norm_eps": 0.1, "n_values": 12, "n_heads": 4}], ids=str
)  # fmt: skip
def test_forward_and_step_follow_the_equations(dtype, decay, options):
    check_forward_and_step(layer(dtype=dtype, decay=decay, **options), sequences(dtype=dtype))


@DECAYS
def test_gradcheck(decay):
    gla, x = layer(2, 2, dtype=torch.float64, decay=decay), sequences(2, 4, 2, torch.float64).requires_grad_()
    names = [name for name, _ in gla.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(gla, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in gla.parameters()]))


@DECAYS
def test_steps_have_the_gradients_of_forward(decay):
    gla, x = layer(dtype=torch.float64, decay=decay), sequences(dtype=torch.float64)
    expected = torch.autograd.grad(gla(x).square().sum(), list(gla.parameters()))
    state, loss = gla.initial_state(2), 0
    for x_t in x.unbind(1):
        y_t, state = gla.step(x_t, state)
        loss = loss + y_t.square().sum()
    for a, b in zip(torch.autograd.grad(loss, list(gla.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max() * 10 * tolerance(torch.float64)))


def test_parameters_have_the_published_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in GatedLinearAttention(8, 6, n_heads=2, n_values=10).named_parameters()}
    assert shapes == {
        "q_proj.weight": (12, 8), "k_proj.weight": (12, 8), "v_proj.weight": (10, 8), "g_proj.weight": (10, 8), "gk_proj.0.weight": (16, 8),
        "gk_proj.1.weight": (12, 16), "gk_proj.1.bias": (12,), "g_norm.weight": (5,), "o_proj.weight": (8, 10),
    }  # fmt: skip
    simple = {
        name: tuple(p.shape) for name, p in GatedLinearAttention(8, 6, n_heads=2, decay="head").named_parameters()
    }
    assert (simple["gk_proj.weight"], simple["gk_proj.bias"]) == ((2, 8), (2,))


def test_weights_of_a_fused_norm_are_taken():
    gla, other, x = layer(), layer(seed=5), sequences()
    state = gla.state_dict()
    state["g_norm_swish_gate.weight"] = state.pop("g_norm.weight")
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), gla(x), rtol=0, atol=0)
    model = torch.nn.Sequential(layer(seed=6))
    model.load_state_dict({f"0.{name}": value for name, value in state.items()})
    torch.testing.assert_close(model(x), gla(x), rtol=0, atol=0)


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    before = torch.get_rng_state()
    first, again, other, double = layer(), layer(), layer(seed=1), layer(dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used beside the one given"
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        if name != "g_norm.weight":
            assert torch.equal(value, double.get_parameter(name).float())
            assert not torch.equal(value, other.get_parameter(name))
    first.reset_parameters(torch.Generator().manual_seed(0))
    assert bool((first.g_norm.weight == 1).all())
    assert torch.equal(first.q_proj.weight, again.q_proj.weight)
    assert GatedLinearAttention(4, device="meta").q_proj.weight.is_meta


@DTYPES
@DECAYS
def test_padding_has_no_influence(dtype, decay):
    gla, x = layer(dtype=dtype, decay=decay), sequences(4, 12, dtype=dtype)
    lengths = torch.tensor([12, 7, 1, 0])
    spoiled = x.clone()
    for row, n in enumerate(lengths):
        spoiled[row, n:] = torch.nan
    spoiled.requires_grad_()
    y = gla(spoiled, lengths)
    for row, n in enumerate(lengths):
        expected = gla(x[row : row + 1, :n])[0]
        torch.testing.assert_close(y[row, :n], expected, rtol=0, atol=500 * torch.finfo(dtype).eps)
        assert bool((y[row, n:] == 0).all())
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in gla.parameters())
    for row, n in enumerate(lengths):
        assert bool((spoiled.grad[row, n:] == 0).all())


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0), (1, 1)])
@DECAYS
def test_edges(batch, length, decay):
    gla = layer(n_states=1, decay=decay)
    y = gla(sequences(batch, length))
    assert y.shape == (batch, length, 4)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gla.parameters())


@DECAYS
def test_autocast(decay):
    gla, x = layer(decay=decay), sequences()
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), gla)
    expected = model(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y_t, _ = gla.step(x[:, 0], gla.initial_state(2))
        y.sum().backward()
    assert y.dtype == y_t.dtype == torch.float32
    # bfloat16 has 8 bits, four products in a row are rounded to it, and the norm enlarges what is small.
    torch.testing.assert_close(y, expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_inputs_need_not_be_contiguous_and_are_not_changed():
    gla, x = layer(), sequences()
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = strided.clone()
    torch.testing.assert_close(gla(strided), gla(x))
    assert torch.equal(strided, before)
    state = gla.initial_state(2)
    gla.step(x[:, 0], state)
    assert bool((state == 0).all())
    torch.testing.assert_close(copy.deepcopy(gla)(x), gla(x), rtol=0, atol=0)


CUTS = pytest.mark.parametrize(
    ("decay", "criterion"),
    [("head", selective.SharedBasis()), ("head", selective.StateChoice()), ("key", selective.StateChoice()), ("key", selective.StateChoice("ghost", compensate=False))],
    ids=["basis", "head", "key", "alone"],
)  # fmt: skip


@CUTS
def test_forward_and_step_follow_the_equations_after_cuts(decay, criterion, tmp_path):
    gla, x = layer(n_states=8, decay=decay, dtype=torch.float64), sequences(dtype=torch.float64)
    for n_states in (5, 3):
        hsv_torch.compress_(gla, n_states, calibration=sequences(8, dtype=torch.float64, seed=3), criterion=criterion)
        assert gla.n_states == n_states
        assert gla.q_proj.out_features == gla.k_proj.out_features == 2 * n_states
        check_forward_and_step(gla, x)
    hsv_torch.save_checkpoint(gla, tmp_path / "cut.pt")
    fresh = layer(n_states=8, decay=decay, dtype=torch.float64, seed=4)
    hsv_torch.load_into(fresh, tmp_path / "cut.pt")
    torch.testing.assert_close(fresh(x), gla(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, r"`d_model` must be at least 1, got 0"),
        ({"n_states": 2.0}, r"`n_states` must be an int"),
        ({"n_heads": 3}, r"`n_heads` must divide the 4 values, got 3"),
        ({"n_values": 0}, r"`n_values` must be at least 1"),
        ({"decay": "value"}, r"`decay` must be one of 'key', 'head', got 'value'"),
        ({"gate_normalizer": 0.0}, r"`gate_normalizer` must be positive and finite, got 0"),
        ({"norm_eps": math.inf}, r"`norm_eps` must be finite"),
        ({"dtype": torch.bfloat16}, r"`dtype` must be torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(hsv.HsvError, match=message):
        layer(**options)


def test_bad_inputs():
    gla, x = layer(), sequences()
    with pytest.raises(hsv.ShapeError, match=r"\(batch, length, 4\), got \(2, 20, 3\)"):
        gla(sequences(d_model=3))
    with pytest.raises(hsv.DtypeError, match=r"torch\.float64 and the layer torch\.float32"):
        gla(x.double())
    with pytest.raises(hsv.ShapeError, match=r"`lengths` must lie in \[0, 20\]"):
        gla(x, torch.tensor([3, 21]))
    with pytest.raises(
        hsv.ShapeError, match=r"`state` must be torch\.float32 of shape \(2, 2, 5, 2\), got .*after a cut"
    ):
        gla.step(x[:, 0], layer(n_states=6).initial_state(2))
