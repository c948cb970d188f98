"""S4D: initialisation, discretisation, the convolution beside a plain loop and steps, precisions, cuts of a batch of systems, errors."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.signal
import torch

import hsv
import hsv_torch
from hsv_torch import ComplexHankel, RealHankel, RealPoles, SymmetricHankel
from hsv_torch._diagonal_form import diagonalize
from hsv_torch.layers.s4d import S4D, convolve_channels, impulse_responses, initial_poles
from tests.tolerances import tolerance

KINDS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"discretization": "bilinear", "initialization": "inv"},
        {"initialization": "legs", "bidirectional": True},
        {"initialization": "real"},
        {"initialization": "real", "discretization": "bilinear", "bidirectional": True},
        {"initialization": "real", "discretization": "bilinear", "dt_min": 3.0, "dt_max": 5.0},  # poles below 0
    ],
    ids=["lin-zoh", "inv-bilinear", "legs-bidirectional", "real", "real-bilinear-bidirectional", "real-alternating"],
)


def layer(d_model=3, n_states=4, *, seed=0, **options):
    return S4D(d_model, n_states, generator=torch.Generator().manual_seed(seed), **options)


def sequences(batch=2, length=20, d_model=3, dtype=torch.float32):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def by_scipy(s4d, x):
    """Each channel as a dense continuous system, discretised by SciPy, one step of one channel at a time, in float64."""
    p = {name: value.detach().double().numpy() for name, value in s4d.named_parameters()}
    A = -np.exp(p["log_A_real"]) + 1j * p.get("A_imag", 0.0)
    real = "A_imag" not in p

    def responses(C, signal):
        y = np.zeros(signal.shape)
        for c in range(s4d.d_model):
            Cc = C[c] if real else 2 * (C[c, :, 0] + 1j * C[c, :, 1])
            system = (np.diag(A[c]), np.ones((s4d.n_states, 1)), Cc[None], np.zeros((1, 1)))
            dt = np.exp(p["log_dt"][c])
            Ad, Bd, _, _, _ = scipy.signal.cont2discrete(system, dt, s4d.discretization)
            if (
                s4d.discretization == "bilinear"
            ):  # SciPy's has a state of its own and a skip term; the input map is dt (1 - dt A / 2)^-1 B
                Bd = dt * np.linalg.solve(np.eye(s4d.n_states) - dt / 2 * np.diag(A[c]), np.ones((s4d.n_states, 1)))
            h = np.zeros((len(signal), s4d.n_states), dtype=complex)
            for t in range(signal.shape[1]):
                h = h @ Ad.T + signal[:, t, c, None] * Bd[:, 0]
                y[:, t, c] = (h @ Cc).real
        return y

    u = x.double().numpy()
    y = responses(p["C"], u) + p["D"] * u
    if s4d.bidirectional:
        y[:, :-1] += responses(p["C_backward"], u[:, ::-1])[:, ::-1][:, 1:]  # strictly later inputs
    return torch.from_numpy(y)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 20, 63])
def test_forward_follows_the_equations(options, dtype, length):
    s4d, x = layer(dtype=dtype, **options), sequences(length=length, dtype=dtype)
    expected = by_scipy(s4d, x)
    y = s4d(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=float(expected.abs().max()) * tolerance(dtype))


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_the_forward_pass(options, dtype):
    s4d, x = layer(dtype=dtype, **options), sequences(dtype=dtype)
    if s4d.bidirectional:
        with pytest.raises(hsv.HsvError, match="a bidirectional layer has no step"):
            s4d.step(x[:, 0], s4d.initial_state(2))
        return
    expected, state = s4d(x), s4d.initial_state(len(x))
    for t in range(x.shape[1]):
        y_t, state = s4d.step(x[:, t], state)
        assert y_t.dtype == dtype
        torch.testing.assert_close(
            y_t, expected[:, t], rtol=0, atol=float(expected.detach().abs().max()) * tolerance(dtype)
        )
    assert state.shape == (2, 3, 4)
    assert state.is_complex() != s4d.is_real


@KINDS
def test_gradcheck(options):
    s4d, x = layer(2, 3, dtype=torch.float64, **options), sequences(2, 5, 2, torch.float64).requires_grad_()
    names = [name for name, _ in s4d.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(s4d, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in s4d.parameters()]))


@KINDS
def test_padding_has_no_influence(options):
    s4d, x = layer(dtype=torch.float64, **options), sequences(3, 16, dtype=torch.float64)
    lengths = torch.tensor([16, 0, 7])
    for i, length in enumerate(lengths):
        x[i, length:] = torch.nan
    y = s4d(x, lengths)
    for i, length in enumerate(lengths):
        assert (y[i, length:] == 0).all()
        torch.testing.assert_close(y[i, :length], s4d(x[i : i + 1, :length])[0])


def test_initial_poles_are_the_published_ones():
    n = 5
    k = np.arange(n)
    torch.testing.assert_close(initial_poles("lin", n), torch.from_numpy(-0.5 + 1j * np.pi * k))
    N = 2 * n  # the paper counts both of each pair
    torch.testing.assert_close(initial_poles("inv", n), torch.from_numpy(-0.5 + 1j * N / np.pi * (N / (2 * k + 1) - 1)))
    torch.testing.assert_close(initial_poles("real", n), torch.from_numpy(-(k + 1.0) + 0j))

    # LegS: the HiPPO matrix plus its correction of rank 1, by the definition.
    i = np.arange(N)
    r = np.sqrt(2 * i + 1)
    hippo = -np.where(i[:, None] > i, np.outer(r, r), np.diag(i + 1.0))
    normal = hippo + np.outer(np.sqrt(i + 0.5), np.sqrt(i + 0.5))
    eigenvalues = np.linalg.eigvals(normal)
    eigenvalues = np.sort_complex(eigenvalues[eigenvalues.imag > 0])
    found = initial_poles("legs", n).numpy()
    np.testing.assert_allclose(found[np.argsort(found.imag)].imag, np.sort(eigenvalues.imag), atol=1e-10)
    np.testing.assert_allclose(eigenvalues.real, -0.5, atol=1e-10)
    np.testing.assert_array_equal(found.real, -0.5)


def test_initialisation():
    s4d = layer(64, 512, dt_min=0.01, dt_max=0.2, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in s4d.named_parameters()} == {
        "log_dt": (64,), "log_A_real": (64, 512), "A_imag": (64, 512), "C": (64, 512, 2), "D": (64,)
    }  # fmt: skip
    log_dt = s4d.log_dt.detach()
    assert float(log_dt.min()) >= math.log(0.01)
    assert float(log_dt.max()) <= math.log(0.2)
    # Log-uniform: three standard errors of the mean of 64 draws.
    middle, width = math.log(0.01 * 0.2) / 2, math.log(20)
    assert abs(float(log_dt.mean()) - middle) < 3 * width / math.sqrt(12 * 64)
    assert s4d.C.std().item() == pytest.approx(math.sqrt(0.5), rel=0.01)
    assert s4d.D.std().item() == pytest.approx(1, rel=0.3)
    real = layer(64, 512, initialization="real", bidirectional=True)
    assert {name: tuple(p.shape) for name, p in real.named_parameters()} == {
        "log_dt": (64,), "log_A_real": (64, 512), "C": (64, 512), "C_backward": (64, 512), "D": (64,)
    }  # fmt: skip
    assert real.C.std().item() == pytest.approx(1, rel=0.02)
    assert not torch.equal(real.C, real.C_backward)


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    first, again, other = layer(), layer(), layer(seed=1)
    double = layer(dtype=torch.float64)
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        assert torch.equal(value, double.get_parameter(name).float())
    for name in ("log_dt", "C", "D"):
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_long_kernel_keeps_its_digits_in_float32():
    """The exponents are float64: after 20,000 steps an angle of 3 radians a step is still known."""
    s4d = layer(1, 2, dt_min=1e-3, dt_max=1e-3)
    with torch.no_grad():
        s4d.log_A_real.fill_(-3.0)
        s4d.A_imag.fill_(3000.0)
    x = torch.zeros(1, 20000, 1)
    x[0, 0] = 1
    expected = copy.deepcopy(s4d).double()(x.double()).detach()
    torch.testing.assert_close(s4d(x).double(), expected, rtol=0, atol=float(expected.abs().max()) * 1e-5)


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0), (1, 1)])
@KINDS
def test_edges(batch, length, options):
    s4d = layer(n_states=1, **options)
    y = s4d(sequences(batch, length))
    assert y.shape == (batch, length, 3)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in s4d.parameters())


def test_inputs_need_not_be_contiguous_and_are_not_changed():
    s4d, x = layer(), sequences()
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = strided.clone()
    torch.testing.assert_close(s4d(strided), s4d(x))
    assert torch.equal(strided, before)


def test_autocast():
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3), layer()), sequences()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)  # the linear map before it ran in bfloat16


def test_compiles_without_a_graph_break():
    s4d, x = layer(discretization="bilinear", bidirectional=True), sequences()
    y = torch.compile(s4d, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, s4d(x))


def test_copies_and_state_dicts():
    s4d, x = layer(bidirectional=True), sequences()
    other = layer(seed=3, bidirectional=True)
    other.load_state_dict(s4d.state_dict())
    for clone in (copy.deepcopy(s4d), pickle.loads(pickle.dumps(s4d)), other):
        assert torch.equal(clone(x), s4d(x))
    assert "n_states=4, initialization='lin', discretization='zoh', bidirectional=True" in repr(s4d)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((0, 3), {}, hsv.ShapeError, "`d_model` must be at least 1, got 0"),
        ((3, 0), {}, hsv.ShapeError, "`n_states` must be at least 1, got 0"),
        ((3, True), {}, hsv.DtypeError, "`n_states` must be an int, got True"),
        ((3, 2), {"dt_min": 0.0}, hsv.HsvError, "0 < dt_min <= dt_max, got 0.0 and 0.1"),
        ((3, 2), {"dt_min": 0.2}, hsv.HsvError, "0 < dt_min <= dt_max, got 0.2 and 0.1"),
        ((3, 2), {"dt_max": math.nan}, hsv.HsvError, "0 < dt_min <= dt_max, got 0.001 and nan"),
        ((3, 2), {"initialization": "hippo"}, hsv.HsvError, "`initialization` must be one of 'lin', 'inv', 'legs', 'real', got 'hippo'"),
        ((3, 2), {"discretization": "euler"}, hsv.HsvError, "`discretization` must be one of 'zoh', 'bilinear', got 'euler'"),
        ((3, 2), {"dtype": torch.bfloat16}, hsv.DtypeError, "`dtype` must be torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)  # fmt: skip
def test_arguments_are_checked(arguments, options, error, match):
    with pytest.raises(error, match=match):
        S4D(*arguments, **options)


def test_inputs_are_checked():
    s4d = layer()
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, length, 3\), got \(2, 20, 4\)"):
        s4d(sequences(d_model=4))
    with pytest.raises(hsv.DtypeError, match=r"the input is torch.float64 and the layer torch.float32"):
        s4d(sequences(dtype=torch.float64))
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, 3\), got \(2, 20, 3\)"):
        s4d.step(sequences(), s4d.initial_state(2))
    with pytest.raises(
        hsv.ShapeError,
        match=r"`state` must be torch.complex64 of shape \(2, 3, 4\), got torch.complex64 of shape \(1, 3, 4\)",
    ):
        s4d.step(sequences()[:, 0], s4d.initial_state(1))  # fmt: skip


COMPLEX_KINDS = [
    {},
    {"discretization": "bilinear", "initialization": "inv"},
    {"initialization": "legs", "bidirectional": True},
]
REAL_KINDS = [
    {"initialization": "real"},
    {"initialization": "real", "discretization": "bilinear", "dt_min": 0.5, "dt_max": 2.0},
]
CUTS = pytest.mark.parametrize(
    ("options", "criterion"),
    [(options, criterion) for options in COMPLEX_KINDS for criterion in (ComplexHankel(), RealHankel())]
    + [(options, criterion) for options in REAL_KINDS for criterion in (SymmetricHankel(), RealPoles())],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "-".join(map(str, value.values())) or "lin",
)  # fmt: skip


def cut(s4d, rule, criterion):
    adapter = hsv_torch.adapter_of(s4d)
    plan = adapter.reduce(s4d, rule, criterion)
    return plan, adapter.apply(s4d, plan)


@CUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cut_to_full_size_changes_nothing(options, criterion, dtype):
    s4d, x = layer(n_states=8, dtype=dtype, **options), sequences(dtype=dtype)
    before = s4d(x)
    # The real poles -1, ..., -8 are 8 states only on paper: the values fall to 1e-9 of the first.
    plan, _ = cut(s4d, 8, criterion)
    assert plan.n_states_after == s4d.n_states == 8
    assert plan.hankel_singular_values.shape == (3, 16 if isinstance(criterion, RealHankel) else 8)
    torch.testing.assert_close(s4d(x), before, rtol=0, atol=float(before.detach().abs().max()) * tolerance(dtype))


@CUTS
def test_each_channel_obeys_its_bound(options, criterion):
    """Not only the layer: twice the discarded sum of each channel's own values."""
    s4d = layer(4, 10, dtype=torch.float64, **options)
    adapter = hsv_torch.adapter_of(s4d)
    before = hsv.real_part(adapter.system(s4d))
    for k in (1, 4, 7):
        smaller = copy.deepcopy(s4d)
        plan, _ = cut(smaller, k, criterion)
        errors = hsv.hinf_error(before, hsv.real_part(adapter.system(smaller))).numpy()
        assert errors.max() <= plan.error_bound * (1 + 1e-10)
        if not isinstance(criterion, RealHankel):  # there a channel's order follows from its pairs
            own = 2 * plan.hankel_singular_values[:, k:].sum(1)
            assert (errors <= own * (1 + 1e-9)).all()
            if isinstance(criterion, RealPoles):
                assert plan.error_bound <= own.max() * (1 + 1e-9)
            else:
                assert plan.error_bound == pytest.approx(own.max(), rel=1e-9)


@pytest.mark.parametrize("criterion", [ComplexHankel(), RealHankel()], ids=lambda c: type(c).__name__)
def test_the_bound_of_a_bidirectional_layer_holds_for_its_outputs(criterion):
    """The worst input of each channel, by power iteration on the difference of both layers."""
    s4d = layer(3, 6, dtype=torch.float64, bidirectional=True, dt_min=0.05)
    smaller = copy.deepcopy(s4d)
    plan, _ = cut(smaller, 3, criterion)

    def difference(x):
        return s4d(x) - smaller(x)

    u = sequences(1, 300, dtype=torch.float64)
    for _ in range(30):
        u = u / u.norm(dim=1, keepdim=True)
        _, u = torch.autograd.functional.vjp(difference, u, difference(u))
    u = u / u.norm(dim=1, keepdim=True)
    worst = float(difference(u).norm(dim=1).max().detach())
    assert 0.1 * plan.error_bound < worst <= plan.error_bound


@CUTS
def test_a_batch_is_cut_as_its_channels_one_at_a_time(options, criterion):
    s4d, x = layer(4, 8, dtype=torch.float64, **options), sequences(d_model=4, dtype=torch.float64)
    alone = []
    for c in range(4):
        single = S4D(1, 8, dtype=torch.float64, **options)
        single.load_state_dict({name: value[c : c + 1] for name, value in s4d.state_dict().items()})
        plan, _ = cut(single, 5, criterion)
        alone.append((single(x[..., c : c + 1]), plan))
    plan, _ = cut(s4d, 5, criterion)
    torch.testing.assert_close(s4d(x), torch.cat([y for y, _ in alone], dim=-1), rtol=1e-8, atol=1e-8)
    assert plan.error_bound == pytest.approx(max(p.error_bound for _, p in alone))
    assert plan.eigenvector_condition == pytest.approx(max(p.eigenvector_condition for _, p in alone), rel=1e-6)
    assert plan.order == max(p.order for _, p in alone)
    values = np.concatenate([p.hankel_singular_values for _, p in alone])
    np.testing.assert_allclose(plan.hankel_singular_values, values, atol=1e-12 * values.max())


@CUTS
@pytest.mark.parametrize("rule", [hsv.HankelSum(discard=0.1), hsv.HankelEnergy(keep=0.9), hsv.Threshold(0.05)])
def test_a_rule_gives_all_channels_what_the_largest_needs(options, criterion, rule):
    s4d = layer(5, 10, dtype=torch.float64, **options)
    adapter = hsv_torch.adapter_of(s4d)
    plan, _ = cut(copy.deepcopy(s4d), rule, criterion)
    if not isinstance(criterion, RealHankel | RealPoles):
        assert plan.n_states_after == rule.choose(criterion.spectrum(adapter.system(s4d))).max()
    if isinstance(criterion, RealPoles):  # states that are empty in all channels are left out
        assert plan.n_states_after <= rule.choose(criterion.spectrum(adapter.system(s4d))).max()
        return
    same, _ = cut(copy.deepcopy(s4d), plan.n_states_after, criterion)
    assert plan.n_states_after == same.n_states_after
    assert plan.error_bound == same.error_bound


def test_an_error_bound_asked_for_is_kept_in_both_directions():
    for options in COMPLEX_KINDS:
        plan, _ = cut(layer(n_states=10, dtype=torch.float64, **options), hsv.ErrorBound(3.0), ComplexHankel())
        assert plan.error_bound <= 3.0 * (1 + 1e-12)
        assert plan.n_states_after < 10


@pytest.mark.parametrize(("options", "criterion"), [({}, ComplexHankel()), ({}, RealHankel()), ({"initialization": "real"}, SymmetricHankel())])  # fmt: skip
def test_channels_with_less_to_keep_get_empty_states(options, criterion):
    """One channel has a single state that matters, one none at all; the third needs them all."""
    s4d, x = layer(3, 6, dtype=torch.float64, **options), sequences(dtype=torch.float64)
    with torch.no_grad():
        s4d.C[0, 1:] = 0
        s4d.C[1] = 0
        if not s4d.is_real:
            s4d.A_imag[0, 0] = 2.0
    before = s4d(x)
    plan, _ = cut(s4d, 4, criterion)
    assert s4d.n_states == 4
    torch.testing.assert_close(s4d(x)[..., :2], before[..., :2], rtol=0, atol=1e-10)
    assert int((s4d.C[0].flatten(1).abs() > 0).any(-1).sum() if not s4d.is_real else (s4d.C[0] != 0).sum()) == 1
    assert not s4d.C[1].any()
    assert (
        plan.notes[-1]
        == "in 2 of 3 systems fewer than 4 states are of use or can be told from rounding errors: 7 states stay empty"
    )
    # They are of use again once training gives them an output.
    s4d(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in s4d.parameters())
    poles = initial_poles(s4d.initialization, 6)[:4]
    torch.testing.assert_close(-s4d.log_A_real[1].exp(), poles.real)
    if not s4d.is_real:
        torch.testing.assert_close(s4d.A_imag[1], poles.imag)


def test_a_cut_of_nothing_is_refused():
    s4d = layer()
    with torch.no_grad():
        s4d.C.zero_()
    for criterion in (ComplexHankel(), RealHankel()):
        with pytest.raises(hsv_torch.CutRefusedError, match="no input reaches the output") as caught:
            cut(s4d, 2, criterion)
        assert caught.value.hankel_singular_values.shape[0] == 3
    real = layer(initialization="real")
    with torch.no_grad():
        real.C.zero_()
    with pytest.raises(hsv_torch.CutRefusedError, match="no input reaches the output"):
        cut(real, 2, SymmetricHankel())


def padded(n, k, options):
    """A layer of `n + k` states, the last `k` of which have no outputs."""
    s4d = layer(2, n + k, dtype=torch.float64, dt_min=0.05, dt_max=0.5, **options)
    with torch.no_grad():
        if s4d.A_imag is not None:
            s4d.A_imag += 0.5  # at a pole that is exactly real the imaginary part of C has no influence, and is lost
        s4d.C[:, n:] *= 1e-13
        if s4d.C_backward is not None:
            s4d.C_backward[:, n:] *= 1e-13
    return s4d


@CUTS
def test_moments_of_a_lossless_cut_are_those_of_the_small_layer(options, criterion):
    n, k = 4, 3
    s4d = padded(n, k, {name: value for name, value in options.items() if not name.startswith("dt")})
    adapter = hsv_torch.adapter_of(s4d)
    x, target = sequences(3, 40, 2, torch.float64), sequences(3, 40, 2, torch.float64).flip(1)

    def gradients():
        s4d.zero_grad()
        y = s4d(x)
        (y - target).square().mean().backward()
        return y.detach(), {name: s4d.get_parameter(name).grad for name in adapter.parameter_names(s4d)}

    before, old = gradients()
    plan = adapter.reduce(s4d, n, criterion)
    first = adapter.pull_back(plan, old, squared=False)
    second = adapter.pull_back(plan, {name: g**2 for name, g in old.items()}, squared=True)
    adapter.apply(s4d, plan)
    after, new = gradients()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    for name, gradient in new.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(first[name], gradient, rtol=0, atol=1e-7 * scale)
        torch.testing.assert_close(second[name], gradient**2, rtol=0, atol=1e-6 * scale**2)


@pytest.mark.parametrize("options", [{}, COMPLEX_KINDS[1], REAL_KINDS[0]])
def test_the_pull_back_is_the_derivative_of_the_old_layer_by_the_new_one(options):
    """On a lossy cut: the covector of (log-poles, B, C) of the old system, each a map of the new parameters."""
    s4d = layer(2, 6, dtype=torch.float64, **options)
    adapter = hsv_torch.adapter_of(s4d)
    plan = adapter.reduce(s4d, 3, adapter.default_criterion(s4d))
    payload = plan.payload
    x, weights = sequences(2, 30, 2, torch.float64), sequences(2, 30, 2, torch.float64).flip(1)
    log_poles, B = (value.detach() for value in s4d._discrete())
    C = s4d._outputs(s4d.C).detach()

    def old_output(new):
        """The old system moved to first order as the new one is, and its output."""
        A = torch.complex(-new["log_A_real"].exp(), new.get("A_imag", torch.zeros(2, 3, dtype=torch.float64)))
        moved, moved_B = s4d._rule.discretize(A, s4d._steps().detach())
        start, start_B = s4d._rule.discretize(payload.new.A, s4d._steps().detach())
        moved_C = new["C"] + 0j if s4d.is_real else 2 * torch.view_as_complex(new["C"])
        start_C = moved_C.detach()
        new_log_poles = log_poles + payload.plan.log_pole_map((moved - start)[..., None])[..., 0]
        new_B = B + payload.plan.states((moved_B - start_B)[..., None])[..., 0]
        new_C = C + payload.plan.outputs((moved_C - start_C)[..., None])[..., 0]
        kernel = impulse_responses(new_log_poles, new_B, new_C, 30, dtype=torch.float64)
        return (convolve_channels(x, kernel) * weights).sum()

    new = {name: value.detach().clone().requires_grad_() for name, value in payload.values.items()}
    expected = dict(zip(new, torch.autograd.grad(old_output(new), list(new.values())), strict=True))
    (s4d(x) * weights).sum().backward()
    found = adapter.pull_back(plan, {name: s4d.get_parameter(name).grad for name in new}, squared=False)
    for name in new:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-8, atol=1e-8 * float(expected[name].abs().max())
        )


def test_the_branch_of_the_logarithm_is_the_old_one():
    """Frequencies of "inv" turn many times in a step; after a cut to full size they are what they were."""
    s4d = layer(2, 8, initialization="inv", dt_min=0.1, dt_max=0.1, dtype=torch.float64)
    before = torch.sort(s4d.A_imag.detach()).values
    assert float(before.max()) * 0.1 > math.pi
    cut(s4d, 8, ComplexHankel())
    torch.testing.assert_close(torch.sort(s4d.A_imag.detach()).values, before, rtol=1e-6, atol=1e-6)


class TestRealPoles:
    def test_one_sign_is_balanced_truncation(self):
        """A relaxation system: the same Hankel values, poles, and bound as those of the whole."""
        s4d = layer(3, 8, initialization="real", dtype=torch.float64)
        with torch.no_grad():
            s4d.C.abs_()
            s4d.C[1] *= -1
        adapter = hsv_torch.adapter_of(s4d)
        whole, parts = (adapter.reduce(s4d, 3, criterion) for criterion in (ComplexHankel(), SymmetricHankel()))
        np.testing.assert_allclose(parts.hankel_singular_values, whole.hankel_singular_values, atol=1e-12)
        assert parts.error_bound == pytest.approx(whole.error_bound, rel=1e-6)
        expected, found = (torch.sort(plan.payload.new.A.real).values for plan in (whole, parts))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("options", REAL_KINDS)
    def test_new_poles_lie_between_the_old_ones(self, options):
        s4d = layer(16, 8, dtype=torch.float64, **options)
        adapter = hsv_torch.adapter_of(s4d)
        before = adapter.system(s4d).poles()
        for k in range(1, 8):
            smaller = copy.deepcopy(s4d)
            plan, _ = cut(smaller, k, SymmetricHankel())
            poles = adapter.system(smaller).poles()
            assert not poles.is_complex()
            assert bool((poles >= before.amin(1, keepdim=True) - 1e-9).all())
            assert bool((poles <= before.amax(1, keepdim=True) + 1e-9).all())
            assert plan.eigenvector_condition == 1.0

    def test_the_default_goes_with_the_poles(self):
        kinds = [{}, {"initialization": "real"}, {"initialization": "real", "bidirectional": True}]
        defaults = [hsv_torch.adapter_of(s4d).default_criterion(s4d) for s4d in (layer(**options) for options in kinds)]
        assert defaults == [ComplexHankel(), RealPoles(), ComplexHankel()]

    @pytest.mark.parametrize("criterion", [ComplexHankel(), RealHankel()], ids=lambda c: type(c).__name__)
    def test_complex_poles_are_refused_with_the_channel(self, criterion):
        """An impulse response that rises and falls again: its best system of order 2 turns."""
        s4d = layer(2, 4, initialization="real", dtype=torch.float64, dt_min=0.1)
        with torch.no_grad():
            s4d.C[0] = 1.0
            s4d.C[1] = torch.tensor([1.0, -3.0, 3.0, -1.0])  # exp(-t) (1 - exp(-t))^3
        with pytest.raises(
            hsv_torch.CutRefusedError,
            match=r"channel 1: the reduced system has the pole 0\.\d+[+-]0\.\d+j .as have 1 of 2 channels.* use RealPoles",
        ) as caught:
            cut(s4d, 2, criterion)
        assert caught.value.hankel_singular_values.shape == (2, 4)
        assert s4d.n_states == 4
        cut(s4d, 2, RealPoles())

    def test_two_outputs_or_complex_systems_are_not_symmetric(self):
        for options, match in (
            ({"initialization": "real", "bidirectional": True}, "a real one with 1 inputs and 2 outputs"),
            ({}, "a complex one with 1 inputs and 1 outputs"),
        ):
            with pytest.raises(hsv.HsvError, match=match):
                cut(layer(**options), 2, SymmetricHankel())


def test_the_worst_channel_is_named():
    s4d = layer(3, 8, dtype=torch.float64)
    condition = cut(copy.deepcopy(s4d), 4, ComplexHankel())[0].eigenvector_condition
    conditions = []
    for c in range(3):
        single = S4D(1, 8, dtype=torch.float64)
        single.load_state_dict({name: value[c : c + 1] for name, value in s4d.state_dict().items()})
        conditions.append(cut(single, 4, ComplexHankel())[0].eigenvector_condition)
    worst = int(np.argmax(conditions))
    with pytest.raises(hsv_torch.CutRefusedError, match=f"matrix of channel {worst} have condition .* above the limit"):
        cut(s4d, 4, ComplexHankel(max_condition=condition * 0.999))


def test_channels_give_back_states_that_only_harm_them():
    """Condition numbers grow with the order here: a channel that asked for less keeps to it rather than stop the cut."""
    s4d, rule = layer(6, 8, seed=33, dtype=torch.float64), hsv.HankelSum(discard=0.3)
    adapter = hsv_torch.adapter_of(s4d)
    own = rule.choose(ComplexHankel().spectrum(adapter.system(s4d)))
    plan, _ = cut(copy.deepcopy(s4d), rule, ComplexHankel())

    def conditions(orders):
        found = []
        for c, order in enumerate(orders):
            single = S4D(1, 8, dtype=torch.float64)
            single.load_state_dict({name: value[c : c + 1] for name, value in s4d.state_dict().items()})
            found.append(cut(single, int(order), ComplexHankel())[0].eigenvector_condition)
        return np.array(found)

    widened, alone = conditions([own.max()] * 6), conditions(own)
    limit = max(alone.max(), widened[own == own.max()].max()) * 1.001
    greedy = widened > limit
    assert greedy.any()  # the seed is chosen for it
    gentle, _ = cut(s4d, rule, ComplexHankel(max_condition=limit))
    assert gentle.n_states_after == plan.n_states_after
    assert f"{greedy.sum()} of 6 systems keep only the states that the rule chose for them" in " ".join(gentle.notes)
    empty = ~(s4d.C.detach() != 0).any(-1)
    np.testing.assert_array_equal(empty.sum(1), np.where(greedy, own.max() - own, 0))


def test_a_defective_state_matrix_has_an_infinite_condition():
    blocks = torch.tensor([[[0.5, 0.0], [0.0, 0.2]], [[0.5, 1.0], [0.0, 0.5]]], dtype=torch.float64)
    result, condition = diagonalize(hsv.StateSpace(blocks, torch.ones(2, 1), torch.ones(1, 2), dt=True))
    assert result is None
    assert float(condition[0]) == pytest.approx(1.0)
    assert float(condition[1]) > 1e15


@CUTS
def test_a_diverged_layer_and_impossible_orders_are_refused(options, criterion):
    s4d = layer(**options)
    for order in (0, 5, -1):
        with pytest.raises(hsv.OrderError, match="Order must be"):
            cut(s4d, order, criterion)
    with torch.no_grad():
        s4d.C[(2, 1, 0)[: s4d.C.ndim]] = torch.nan
    with pytest.raises(hsv.NonFiniteError, match="must be finite"):
        cut(s4d, 2, criterion)
    assert s4d.n_states == 4


@KINDS
def test_resize_makes_room_for_another_state_dict(options):
    small, big = layer(n_states=3, seed=1, **options), layer(n_states=7, **options)
    hsv_torch.adapter_of(big).resize(big, 3)
    big.load_state_dict(small.state_dict())
    assert torch.equal(big(sequences()), small(sequences()))


@CUTS
def test_training_goes_on_after_a_cut(options, criterion):
    model, x = torch.nn.Sequential(layer(n_states=12, **options), torch.nn.Linear(3, 1)), sequences(8, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x)[:, -1] - x[:, 3, :1]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    train(5)
    report = hsv_torch.compress_(model, hsv.Order(4), optimizer=optimizer, criterion=criterion)
    assert report.layers[0].n_states_after == 4
    losses = train(20)
    assert losses[-1] < losses[0]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
