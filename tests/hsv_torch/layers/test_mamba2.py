"""The Mamba-2 layer: initialisation, forward and step, transforms, padding, precisions, errors."""

import copy
import math

import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import Mamba2, selective
from tests.tolerances import tolerance

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def layer(d_model=3, n_states=5, *, seed=0, **options):
    made = Mamba2(d_model, n_states, generator=torch.Generator().manual_seed(seed), **{"head_dim": 2, **options})
    with torch.no_grad():
        made.D.copy_(torch.linspace(-1, 1, len(made.D)))
        made.norm.weight.copy_(torch.linspace(0.5, 2, len(made.norm.weight)))
    return made


def sequences(batch=2, length=20, d_model=3, dtype=torch.float32, seed=1):
    draw = torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw.to(dtype)


def with_transforms(mamba, n_states, seed=2):
    """Put random transforms into a layer, as a cut that keeps a projection does."""
    shape = (mamba.n_groups, n_states, mamba.n_features)
    for name in ("B_transform", "C_transform"):
        seed += 1
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        setattr(mamba, name, torch.nn.Parameter(draw.to(mamba.A_log.dtype)))
    return mamba


def silu(x):
    return x * torch.sigmoid(x)


def by_the_equations(mamba, x):
    """The docstring's equations for one sequence, step by step and head by head, in float64."""
    p = {name: value.detach().double() for name, value in mamba.named_parameters()}
    d, g, n, heads = mamba.d_inner, mamba.n_groups, mamba.n_features, mamba.n_heads
    kernel = p["conv1d.weight"].shape[-1]
    inputs = [torch.zeros(d + 2 * g * n, dtype=torch.float64) for _ in range(kernel - 1)]
    S = [torch.zeros(mamba.n_states, d // heads, dtype=torch.float64) for _ in range(heads)]
    outputs = []
    for x_t in x.double():
        wide = p["in_proj.weight"] @ x_t + p.get("in_proj.bias", 0)
        z, s = wide[:d], wide[len(wide) - heads :]
        inputs.append(wide[d : len(wide) - heads])
        u = sum(p["conv1d.weight"][:, 0, k] * inputs[k - kernel] for k in range(kernel)) + p.get("conv1d.bias", 0)
        u = silu(u)
        delta = torch.log1p(torch.exp(s + p["dt_bias"])).clamp(*mamba.dt_limit)
        y = []
        for h in range(heads):
            group = h // (heads // g)
            v = u[:d].view(heads, -1)[h]
            B, C = u[d + group * n :][:n], u[d + g * n + group * n :][:n]
            if "B_transform" in p:
                B, C = p["B_transform"][group] @ B, p["C_transform"][group] @ C
            S[h] = torch.exp(-delta[h] * p["A_log"][h].exp()) * S[h] + delta[h] * torch.outer(B, v)
            y.append(S[h].T @ C + p["D"][h] * v)
        r = torch.cat(y) * silu(z)
        parts = [part / torch.sqrt(part.square().mean() + mamba.norm.eps) for part in r.chunk(g)]
        outputs.append(p["out_proj.weight"] @ (p["norm.weight"] * torch.cat(parts)) + p.get("out_proj.bias", 0))
    return torch.stack(outputs)


def check_forward_and_step(mamba, x):
    expected = torch.stack([by_the_equations(mamba, sequence) for sequence in x])
    bound = float(expected.abs().max() * tolerance(x.dtype))
    y = mamba(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)
    state = mamba.initial_state(len(x))
    for t in range(x.shape[1]):
        y_t, state = mamba.step(x[:, t], state)
        torch.testing.assert_close(y_t.double(), expected[:, t], rtol=0, atol=bound)
    assert state[1].shape == (len(x), mamba.n_heads, mamba.n_states, mamba.head_dim)


@DTYPES
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "conv_bias": False, "n_groups": 3}, {"expand": 4, "conv_kernel": 1, "n_groups": 2}, {"head_dim": 6, "dt_limit": (0.02, 0.05), "norm_eps": 0.1}],
    ids=str,
)  # fmt: skip
def test_forward_and_step_follow_the_equations(dtype, options):
    check_forward_and_step(layer(dtype=dtype, **options), sequences(dtype=dtype))


@DTYPES
@pytest.mark.parametrize(("n_states", "n_groups"), [(1, 1), (3, 3), (7, 1)])
def test_transforms_follow_the_equations(dtype, n_states, n_groups):
    mamba = with_transforms(layer(dtype=dtype, n_groups=n_groups), n_states)
    assert (mamba.n_states, mamba.n_features) == (n_states, 5)
    check_forward_and_step(mamba, sequences(dtype=dtype))


@pytest.mark.parametrize("transformed", [False, True])
def test_gradcheck(transformed):
    mamba, x = layer(2, 2, dtype=torch.float64, n_groups=2), sequences(2, 4, 2, torch.float64).requires_grad_()
    if transformed:
        with_transforms(mamba, 2)
    names = [name for name, _ in mamba.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(mamba, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in mamba.parameters()]))


def test_steps_have_the_gradients_of_forward():
    mamba, x = layer(dtype=torch.float64, n_groups=3), sequences(dtype=torch.float64)
    expected = torch.autograd.grad(mamba(x).square().sum(), list(mamba.parameters()))
    state, loss = mamba.initial_state(2), 0
    for x_t in x.unbind(1):
        y_t, state = mamba.step(x_t, state)
        loss = loss + y_t.square().sum()
    for a, b in zip(torch.autograd.grad(loss, list(mamba.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max() * tolerance(torch.float64)))


def test_initialisation_is_the_published_one():
    mamba = Mamba2(
        64, 24, expand=32, head_dim=1, A_range=(2.0, 5.0), dt_min=0.01, dt_max=0.3, dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    d = 2048
    assert (mamba.d_inner, mamba.n_heads) == (d, d)
    assert bool((mamba.D == 1).all())
    assert bool((mamba.norm.weight == 1).all())
    rates = mamba.A_log.exp()
    assert 2 <= rates.min() < 2.01
    assert 4.99 < rates.max() <= 5
    log_delta = torch.nn.functional.softplus(mamba.dt_bias).log()
    low, high = math.log(0.01), math.log(0.3)
    assert low - 1e-9 <= log_delta.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < log_delta.max() <= high + 1e-9
    # Log-uniform: three standard errors of the mean over 2048 draws.
    assert abs(log_delta.mean() - (low + high) / 2) < 3 * (high - low) / math.sqrt(12 * d)
    for weight, bound in (
        (mamba.in_proj.weight, 64**-0.5),
        (mamba.out_proj.weight, d**-0.5),
        (mamba.conv1d.weight, 0.5),
    ):
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    floor = layer(dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-4, dtype=torch.float64)
    torch.testing.assert_close(
        torch.nn.functional.softplus(floor.dt_bias), torch.full((3,), 1e-4, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    before = torch.get_rng_state()
    first, again, other = layer(bias=True), layer(bias=True), layer(bias=True, seed=1)
    double = layer(bias=True, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used beside the one given"
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        if name not in ("D", "norm.weight"):
            assert torch.equal(value, double.get_parameter(name).float())
            assert not torch.equal(value, other.get_parameter(name))


def test_parameters_have_the_published_names_and_shapes():
    made = Mamba2(32, 5, expand=3, head_dim=8, n_groups=2, conv_kernel=2)
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes == {
        "dt_bias": (12,), "A_log": (12,), "D": (12,), "in_proj.weight": (2 * 96 + 20 + 12, 32), "conv1d.weight": (116, 1, 2),
        "conv1d.bias": (116,), "norm.weight": (96,), "out_proj.weight": (32, 96),
    }  # fmt: skip
    assert Mamba2(4).n_states == 128
    assert (Mamba2(4).head_dim, Mamba2(64).head_dim) == (8, 64)


@DTYPES
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_padding_has_no_influence(dtype, transformed, bias):
    mamba, x = layer(dtype=dtype, bias=bias), sequences(4, 12, dtype=dtype)
    if transformed:
        with_transforms(mamba, 3)
    lengths = torch.tensor([12, 7, 1, 0])
    spoiled = x.clone()
    for row, n in enumerate(lengths):
        spoiled[row, n:] = torch.nan
    spoiled.requires_grad_()
    y = mamba(spoiled, lengths)
    for row, n in enumerate(lengths):
        expected = mamba(x[row : row + 1, :n])[0]
        torch.testing.assert_close(y[row, :n], expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
        assert bool((y[row, n:] == 0).all())
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mamba.parameters())
    for row, n in enumerate(lengths):
        assert bool((spoiled.grad[row, n:] == 0).all())


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0), (1, 1)])
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("conv_kernel", [1, 4])
def test_edges(batch, length, transformed, conv_kernel):
    mamba = layer(n_states=1, conv_kernel=conv_kernel)
    if transformed:
        with_transforms(mamba, 1)
    y = mamba(sequences(batch, length))
    assert y.shape == (batch, length, 3)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mamba.parameters())


def test_inputs_need_not_be_contiguous_and_are_not_changed():
    mamba, x = layer(), sequences()
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = strided.clone()
    torch.testing.assert_close(mamba(strided), mamba(x))
    assert torch.equal(strided, before)
    state = mamba.initial_state(2)
    mamba.step(x[:, 0], state)
    assert all(bool((part == 0).all()) for part in state)


@pytest.mark.parametrize("transformed", [False, True])
def test_autocast(transformed):
    mamba, x = layer(), sequences()
    if transformed:
        with_transforms(mamba, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), mamba)
    expected = model(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y_t, _ = mamba.step(x[:, 0], mamba.initial_state(2))
        y.sum().backward()
    assert y.dtype == y_t.dtype == torch.float32
    # bfloat16 has 8 bits, four products in a row are rounded to it, and the norm enlarges what is small.
    torch.testing.assert_close(y, expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_copies_states_and_devices_without_storage():
    mamba, x = with_transforms(layer(), 3), sequences()
    torch.testing.assert_close(copy.deepcopy(mamba)(x), mamba(x), rtol=0, atol=0)
    twin = with_transforms(layer(seed=5), 3, seed=6)
    twin.load_state_dict(mamba.state_dict())
    torch.testing.assert_close(twin(x), mamba(x), rtol=0, atol=0)
    assert Mamba2(3, 5, device="meta").A_log.is_meta


def test_training_lowers_a_loss():
    mamba, x = layer(4, 6), sequences(8, 30, 4)
    target = torch.roll(x, 1, 1)  # repeat the input of the step before
    optimizer = torch.optim.Adam(mamba.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (mamba(x)[:, 1:] - target[:, 1:]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


CUTS = pytest.mark.parametrize(
    ("criterion", "transformed"),
    [
        (selective.SharedBasis(), True),
        (selective.StateChoice(), True),
        (selective.StateChoice(compensate=False), False),
    ],
    ids=["basis", "choice", "choice alone"],
)


@CUTS
def test_forward_and_step_follow_the_equations_after_cuts(criterion, transformed):
    mamba, x = layer(n_states=8, n_groups=3, dtype=torch.float64), sequences(dtype=torch.float64)
    for n_states in (5, 3):  # the second cut meets the transforms of the first
        hsv_torch.compress_(mamba, n_states, calibration=sequences(8, dtype=torch.float64, seed=3), criterion=criterion)
        assert mamba.n_states == n_states
        assert mamba.n_features == (8 if transformed else n_states)
        assert (mamba.B_transform is not None) == transformed
        assert mamba.conv1d.groups == mamba.conv1d.in_channels == mamba.conv1d.weight.shape[0]
        check_forward_and_step(mamba, x)
    lengths = torch.tensor([20, 7])
    torch.testing.assert_close(mamba(x, lengths)[1, :7], mamba(x[1:, :7])[0], rtol=0, atol=1e-13)


@CUTS
def test_a_cut_layer_is_saved_and_loaded_into_a_full_one(criterion, transformed, tmp_path):
    mamba, x = layer(), sequences()
    hsv_torch.compress_(mamba, 2, calibration=sequences(8, seed=3), criterion=criterion)
    hsv_torch.save_checkpoint(mamba, tmp_path / "cut.pt")
    fresh = layer(seed=4)
    hsv_torch.load_into(fresh, tmp_path / "cut.pt")
    assert fresh.n_states == 2
    assert (fresh.C_transform is not None) == transformed
    torch.testing.assert_close(fresh(x), mamba(x), rtol=0, atol=0)
    hsv_torch.save_checkpoint(layer(seed=5), tmp_path / "full.pt")
    hsv_torch.load_into(fresh, tmp_path / "full.pt")
    torch.testing.assert_close(fresh(x), layer(seed=5)(x), rtol=0, atol=0)
    assert {name for name, _ in fresh.named_parameters()} == {name for name, _ in layer().named_parameters()}


def test_a_layer_with_transforms_begins_anew_with_the_states_it_has():
    mamba = with_transforms(layer(), 3)
    mamba.reset_parameters(torch.Generator().manual_seed(0))
    assert mamba.n_states == 3
    assert "n_states=3" in repr(mamba)
    assert bool((mamba.D == 1).all())


def test_training_with_cuts():
    """In training, with calibration data and a guard: the optimizer holds exactly the model's parameters, and the loss goes on falling."""
    config = hsv_torch.SequenceModelConfig(
        layer="mamba2", d_model=8, n_states=8, head="language_model", vocabulary=6, n_outputs=6, layer_options={"head_dim": 4}
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hsv_torch.SequenceModel(config)
    tokens = torch.randint(6, (16, 20), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compressor = hsv_torch.InTrainingCompressor(
        model,
        optimizer,
        rule=hsv.Order(3),
        schedule=hsv_torch.Schedule(total_steps=30, window=(0.0, 0.5), attempts=1),
        calibration=[tokens],
    )
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        compressor.step()
    assert model.n_states == (3,)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert losses[-1] < losses[15] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, r"`d_model` must be at least 1, got 0"),
        ({"n_states": 2.0}, r"`n_states` must be an int"),
        ({"n_groups": 0}, r"`n_groups` must be at least 1"),
        ({"n_groups": 2}, r"`n_groups` must divide the 3 heads, got 2"),
        ({"head_dim": 4}, r"`head_dim` must divide the 6 inner channels .*, got 4"),
        ({"head_dim": 0}, r"`head_dim` must be at least 1"),
        ({"dt_min": 0.2}, r"0 < dt_min <= dt_max, got 0\.2 and 0\.1"),
        ({"dt_max": math.nan}, r"0 < dt_min <= dt_max"),
        ({"A_range": (0.0, 1.0)}, r"`A_range` must be an interval of positive decay rates, got \(0\.0, 1\.0\)"),
        ({"dt_limit": (0.1, 0.1)}, r"`dt_limit` must be an interval of step sizes"),
        ({"norm_eps": -1.0}, r"`norm_eps` must be finite and at least 0, got -1"),
        ({"dt_init_floor": math.inf}, r"`dt_init_floor` must be finite"),
        ({"dtype": torch.bfloat16}, r"`dtype` must be torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(hsv.HsvError, match=message):
        layer(**options)


def test_bad_inputs():
    mamba, x = layer(), sequences()
    with pytest.raises(hsv.ShapeError, match=r"\(batch, length, 3\), got \(2, 20, 4\)"):
        mamba(sequences(d_model=4))
    with pytest.raises(hsv.ShapeError, match=r"\(batch, 3\), got \(2, 20, 3\)"):
        mamba.step(x, mamba.initial_state(2))
    with pytest.raises(hsv.DtypeError, match=r"torch\.float64 and the layer torch\.float32"):
        mamba(x.double())
    with pytest.raises(hsv.ShapeError, match=r"`lengths` must lie in \[0, 20\]"):
        mamba(x, torch.tensor([3, 21]))
    with pytest.raises(
        hsv.ShapeError, match=r"torch\.float32 of shape \(2, 3, 5, 2\), got .*; after a cut begin again"
    ):
        mamba.step(x[:, 0], layer(n_states=6).initial_state(2))
