"""The Mamba layer: initialisation, forward and step, transforms, padding, precisions, errors."""

import copy
import math

import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import Mamba, selective
from tests.tolerances import tolerance

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def layer(d_model=3, n_states=5, *, seed=0, **options):
    return Mamba(d_model, n_states, generator=torch.Generator().manual_seed(seed), **options)


def sequences(batch=2, length=20, d_model=3, dtype=torch.float32, seed=1):
    draw = torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw.to(dtype)


def with_transforms(mamba, n_states, *, is_complex=True, seed=2):
    """Put random transforms into a layer, as a cut that keeps a change of basis a channel does."""
    g = torch.Generator().manual_seed(seed)
    d, features, dtype = mamba.d_inner, mamba.n_features, mamba.A_log.dtype

    def normal(*shape):
        return torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype))

    mamba.A_log = normal(d, n_states)
    parts = (2,) if is_complex else ()
    mamba.B_transform = normal(d, n_states, features, *parts)
    mamba.C_transform = normal(d, n_states, features, *parts)
    if is_complex:
        mamba.A_imag = normal(d, n_states)
    return mamba


def by_the_equations(mamba, x):
    """The docstring's equations for one sequence, step by step and channel by channel, in float64 or complex128."""
    p = {name: value.detach().double() for name, value in mamba.named_parameters()}
    d, rank = p["A_log"].shape[0], p["dt_proj.weight"].shape[1]
    kernel = p["conv1d.weight"].shape[-1]
    A = -p["A_log"].exp() + 1j * p.get("A_imag", torch.zeros(()))
    features = mamba.n_features

    def transform(name, c):
        value = p.get(name)
        if value is None:
            return torch.eye(features, dtype=torch.complex128)
        return torch.view_as_complex(value[c]) if "A_imag" in p else value[c] + 0j

    inputs = [torch.zeros(d, dtype=torch.float64) for _ in range(kernel - 1)]
    h = [torch.zeros(p["A_log"].shape[1], dtype=torch.complex128) for _ in range(d)]
    outputs = []
    for x_t in x.double():
        wide = p["in_proj.weight"] @ x_t + p.get("in_proj.bias", 0)
        inputs.append(wide[:d])
        u = sum(p["conv1d.weight"][:, 0, k] * inputs[k - kernel] for k in range(kernel)) + p.get("conv1d.bias", 0)
        u = u * torch.sigmoid(u)
        rows = p["x_proj.weight"] @ u
        s, B, C = rows[:rank], rows[rank : rank + features], rows[rank + features :]
        delta = torch.log1p(torch.exp(p["dt_proj.weight"] @ s + p["dt_proj.bias"]))
        y = torch.zeros(d, dtype=torch.float64)
        for c in range(d):
            h[c] = torch.exp(delta[c] * A[c]) * h[c] + delta[c] * u[c] * (transform("B_transform", c) @ (B + 0j))
            y[c] = (h[c] * (transform("C_transform", c) @ (C + 0j))).sum().real + p["D"][c] * u[c]
        z = wide[d:]
        outputs.append(p["out_proj.weight"] @ (y * z * torch.sigmoid(z)) + p.get("out_proj.bias", 0))
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
    assert state[1].shape == (len(x), mamba.d_inner, mamba.n_states)


@DTYPES
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "conv_bias": False}, {"expand": 1, "conv_kernel": 1, "dt_rank": 2}, {"expand": 3, "conv_kernel": 2}],
    ids=str,
)  # fmt: skip
def test_forward_and_step_follow_the_equations(dtype, options):
    check_forward_and_step(layer(dtype=dtype, **options), sequences(dtype=dtype))


@DTYPES
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("n_states", [1, 3, 7])
def test_transforms_follow_the_equations(dtype, is_complex, n_states):
    mamba = with_transforms(layer(dtype=dtype), n_states, is_complex=is_complex)
    assert (mamba.n_states, mamba.n_features) == (n_states, 5)
    check_forward_and_step(mamba, sequences(dtype=dtype))


@pytest.mark.parametrize("is_complex", [False, True])
def test_transforms_that_do_nothing_change_nothing(is_complex):
    mamba, x = layer(dtype=torch.float64), sequences(dtype=torch.float64)
    expected = mamba(x)
    identity = torch.eye(5, dtype=torch.float64).expand(mamba.d_inner, 5, 5).clone()
    if is_complex:
        identity = torch.view_as_real(identity + 0j).clone()
        mamba.A_imag = torch.nn.Parameter(torch.zeros_like(mamba.A_log))
    mamba.B_transform, mamba.C_transform = torch.nn.Parameter(identity), torch.nn.Parameter(identity.clone())
    torch.testing.assert_close(mamba(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("change", ["none", "real", "complex"])
def test_gradcheck(change):
    mamba, x = layer(2, 2, dtype=torch.float64), sequences(2, 4, 2, torch.float64).requires_grad_()
    if change != "none":
        with_transforms(mamba, 2, is_complex=change == "complex")
    names = [name for name, _ in mamba.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(mamba, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in mamba.parameters()]))


def test_steps_have_the_gradients_of_forward():
    mamba, x = layer(dtype=torch.float64), sequences(dtype=torch.float64)
    expected = torch.autograd.grad(mamba(x).square().sum(), list(mamba.parameters()))
    state, loss = mamba.initial_state(2), 0
    for x_t in x.unbind(1):
        y_t, state = mamba.step(x_t, state)
        loss = loss + y_t.square().sum()
    for a, b in zip(torch.autograd.grad(loss, list(mamba.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max() * tolerance(torch.float64)))


def test_initialisation_is_the_published_one():
    mamba = layer(64, 24, expand=32, dt_min=0.01, dt_max=0.3, dtype=torch.float64)
    d = 2048
    assert (mamba.d_inner, mamba.dt_rank) == (d, 4)
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 25.0, dtype=torch.float64).expand(d, 24))
    assert bool((mamba.D == 1).all())
    log_delta = torch.nn.functional.softplus(mamba.dt_proj.bias).log()
    low, high = math.log(0.01), math.log(0.3)
    assert low - 1e-9 <= log_delta.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < log_delta.max() <= high + 1e-9
    # Log-uniform: three standard errors of the mean over 2048 draws.
    assert abs(log_delta.mean() - (low + high) / 2) < 3 * (high - low) / math.sqrt(12 * d)

    def check_uniform(weight, bound):
        assert 0.99 * bound < weight.abs().max() <= bound
        assert abs(weight.mean()) < 4 * bound / math.sqrt(3 * weight.numel())
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)

    check_uniform(mamba.dt_proj.weight, 4**-0.5)
    check_uniform(mamba.in_proj.weight, 64**-0.5)
    check_uniform(mamba.x_proj.weight, d**-0.5)
    check_uniform(mamba.out_proj.weight, d**-0.5)
    check_uniform(mamba.conv1d.weight, 0.5)
    check_uniform(mamba.conv1d.bias, 0.5)


def test_options_of_the_step_size():
    constant = layer(40, dt_init="constant", dt_scale=0.5)
    assert constant.dt_rank == 3
    torch.testing.assert_close(constant.dt_proj.weight, torch.full((80, 3), 0.5 / math.sqrt(3)))
    floor = layer(dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-4, dtype=torch.float64)
    torch.testing.assert_close(
        torch.nn.functional.softplus(floor.dt_proj.bias), torch.full((6,), 1e-4, dtype=torch.float64)
    )


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    before = torch.get_rng_state()
    first, again, other = layer(bias=True), layer(bias=True), layer(bias=True, seed=1)
    double = layer(bias=True, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used beside the one given"
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        assert torch.equal(value, double.get_parameter(name).float())
        if name not in ("A_log", "D"):
            assert not torch.equal(value, other.get_parameter(name))


def test_parameters_have_the_published_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in layer(32, 5, expand=3, conv_kernel=2).named_parameters()}
    assert shapes == {
        "in_proj.weight": (192, 32), "conv1d.weight": (96, 1, 2), "conv1d.bias": (96,), "x_proj.weight": (12, 96),
        "dt_proj.weight": (96, 2), "dt_proj.bias": (96,), "A_log": (96, 5), "D": (96,), "out_proj.weight": (32, 96),
    }  # fmt: skip
    assert layer().n_states == 5
    assert Mamba(4).n_states == 16


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
        torch.testing.assert_close(y[row, :n], mamba(x[row : row + 1, :n])[0], rtol=0, atol=50 * torch.finfo(dtype).eps)
        assert bool((y[row, n:] == 0).all())
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mamba.parameters())
    for row, n in enumerate(lengths):
        assert bool((spoiled.grad[row, n:] == 0).all())


def test_quantities_are_those_of_forward():
    mamba, x = layer(dtype=torch.float64), sequences(3, 9, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 0])
    q = mamba.quantities(x, lengths)
    A = -mamba.A_log.exp()
    h, y = torch.zeros(3, 6, 5, dtype=torch.float64), []
    for t in range(9):
        h = (q.delta[:, t, :, None] * A).exp() * h + (q.delta * q.u)[:, t, :, None] * q.B[:, t, None]
        y.append((h @ q.C[:, t, :, None])[..., 0] + mamba.D * q.u[:, t])
    expected = mamba.out_proj(torch.stack(y, 1) * q.gate)
    torch.testing.assert_close(mamba(x, lengths), expected * q.mask[..., None], rtol=0, atol=1e-14)
    assert q.mask.sum(1).tolist() == [9, 4, 0]
    assert bool((q.u[~q.mask] == 0).all())
    assert bool((q.delta > 0).all())
    assert mamba.quantities(x).mask is None


def test_the_number_of_states_is_read_from_the_parameters():
    mamba, x = layer(), sequences()
    with torch.no_grad():
        mamba.x_proj.weight[1 + 5 + 2 :] = 0  # rows of C: the last three states have no influence
        expected = mamba(x)
    kept = [0, 1, 2, 6, 7]
    mamba.A_log = torch.nn.Parameter(mamba.A_log.detach()[:, :2])
    mamba.x_proj.weight = torch.nn.Parameter(mamba.x_proj.weight.detach()[kept])
    assert (mamba.n_states, mamba.n_features) == (2, 2)
    assert "n_states=2" in repr(mamba)
    torch.testing.assert_close(mamba(x), expected)
    assert mamba.initial_state(4)[1].shape == (4, 6, 2)
    mamba.reset_parameters()
    torch.testing.assert_close(mamba.A_log.exp(), torch.tensor([1.0, 2.0]).expand(6, 2))


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
        x = 0.1 * x
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), mamba)
    expected = model(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y_t, _ = mamba.step(x[:, 0], mamba.initial_state(2))
        y.sum().backward()
    assert y.dtype == y_t.dtype == torch.float32
    # bfloat16 has 8 bits, and four products in a row are rounded to it.
    torch.testing.assert_close(y, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_scan_stays_in_single_precision_under_autocast():
    """A thousand equal steps of an integrator: in bfloat16 the sum would stop growing after 256."""
    mamba = layer(1, 1, dt_min=1e-3, dt_max=1e-3, dt_init="constant", dt_scale=0.0)
    with torch.no_grad():
        mamba.A_log.fill_(-20.0)
        for module in (mamba.in_proj, mamba.conv1d, mamba.x_proj, mamba.out_proj):
            module.weight.fill_(1.0)
        mamba.conv1d.bias.zero_()
        mamba.D.zero_()
    x = torch.ones(1, 1000, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mamba(x)
    with torch.no_grad():
        expected = mamba(x)[0, :, 0]
    steps = expected.diff()[3:]
    assert expected[-1] > 900 * steps.max()
    assert float(y[0, -1].detach()) == pytest.approx(float(expected[-1]), rel=0.05)


def test_copies_states_and_devices_without_storage():
    mamba, x = with_transforms(layer(), 3), sequences()
    torch.testing.assert_close(copy.deepcopy(mamba)(x), mamba(x), rtol=0, atol=0)
    twin = with_transforms(layer(seed=5), 3, seed=6)
    twin.load_state_dict(mamba.state_dict())
    torch.testing.assert_close(twin(x), mamba(x), rtol=0, atol=0)
    assert layer(device="meta").A_log.is_meta


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
    "criterion",
    [
        selective.StateChoice(),
        selective.SharedBasis(transforms=True),
        selective.ChannelBasis(projection="galerkin"),
        selective.ChannelBasis(),
    ],
    ids=lambda c: type(c).__name__,
)


@CUTS
def test_forward_and_step_follow_the_equations_after_a_cut(criterion):
    mamba, x = layer(n_states=8, dtype=torch.float64), sequences(dtype=torch.float64)
    with torch.no_grad():
        mamba.A_log.normal_(std=0.25, generator=torch.Generator().manual_seed(0))  # no channel like the other
    hsv_torch.compress_(mamba, 4, calibration=sequences(8, dtype=torch.float64, seed=3), criterion=criterion)
    assert mamba.n_states == 4
    assert (mamba.A_imag is not None) == (criterion == selective.ChannelBasis())
    assert mamba.x_proj.out_features == mamba.x_proj.weight.shape[0] == 1 + 2 * mamba.n_features
    check_forward_and_step(mamba, x)
    lengths = torch.tensor([20, 7])
    torch.testing.assert_close(mamba(x, lengths)[1, :7], mamba(x[1:, :7])[0], rtol=0, atol=1e-14)


@CUTS
def test_a_cut_layer_is_saved_and_loaded_into_a_full_one(criterion, tmp_path):
    mamba, x = layer(), sequences()
    hsv_torch.compress_(mamba, 2, calibration=sequences(8, seed=3), criterion=criterion)
    hsv_torch.save_checkpoint(mamba, tmp_path / "cut.pt")
    fresh = layer(seed=4)
    hsv_torch.load_into(fresh, tmp_path / "cut.pt")
    assert fresh.n_states == 2
    torch.testing.assert_close(fresh(x), mamba(x), rtol=0, atol=0)
    hsv_torch.save_checkpoint(layer(seed=5), tmp_path / "full.pt")
    hsv_torch.load_into(fresh, tmp_path / "full.pt")
    torch.testing.assert_close(fresh(x), layer(seed=5)(x), rtol=0, atol=0)
    assert {name for name, _ in fresh.named_parameters()} == {name for name, _ in layer().named_parameters()}


def test_a_cut_to_full_size_changes_nothing():
    mamba, x = layer(dtype=torch.float64), sequences(dtype=torch.float64)
    expected = mamba(x)
    for criterion in (selective.StateChoice(), selective.ChannelBasis()):
        twin = copy.deepcopy(mamba)
        hsv_torch.compress_(twin, 5, calibration=sequences(8, dtype=torch.float64, seed=3), criterion=criterion)
        assert twin.n_states == 5
        # The basis of a channel may have a condition of up to 1e3, and is inverted.
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, r"`d_model` must be at least 1, got 0"),
        ({"n_states": 2.0}, r"`n_states` must be an int"),
        ({"expand": 0}, r"`expand` must be at least 1"),
        ({"conv_kernel": 0}, r"`conv_kernel` must be at least 1"),
        ({"dt_rank": 0}, r"`dt_rank` must be at least 1"),
        ({"dt_rank": "auto"}, r"`dt_rank` must be an int"),
        ({"dt_min": 0.0}, r"0 < dt_min <= dt_max, got 0\.0 and 0\.1"),
        ({"dt_min": 0.2}, r"0 < dt_min <= dt_max, got 0\.2 and 0\.1"),
        ({"dt_max": math.nan}, r"0 < dt_min <= dt_max"),
        ({"dt_scale": -1.0}, r"`dt_scale` must be finite and at least 0, got -1"),
        ({"dt_init_floor": math.inf}, r"`dt_init_floor` must be finite"),
        ({"dt_init": "zero"}, r"`dt_init` must be one of 'random', 'constant', got 'zero'"),
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
    with pytest.raises(hsv.ShapeError, match=r"torch\.float32 of shape \(2, 6, 5\), got .*; after a cut begin again"):
        mamba.step(x[:, 0], layer(n_states=6).initial_state(2))
    with pytest.raises(
        hsv.ShapeError, match=r"torch\.complex64 of shape \(2, 6, 5\), got .*torch\.float32 \(2, 6, 5\)"
    ):
        with_transforms(layer(), 5).step(x[:, 0], mamba.initial_state(2))
