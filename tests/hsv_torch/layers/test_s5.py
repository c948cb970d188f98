"""S5: initial values, both discretisations, both directions, steps, padding, cuts and carried moments."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import scipy.signal
import torch

import hsv
import hsv_torch
from hsv_torch import S5
from hsv_torch.layers._discretization import DISCRETIZATIONS, SampledCut
from hsv_torch.layers._hippo import hippo_normal
from hsv_torch.testing import check_adapter
from tests.tolerances import tolerance

RULES = ("zoh", "bilinear")
READINGS = pytest.mark.parametrize(
    "criterion", [hsv_torch.ComplexHankel(), hsv_torch.RealHankel()], ids=lambda c: type(c).__name__
)
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])


def layer(d_model=3, n_states=6, *, seed=0, **options):
    return S5(d_model, n_states, generator=torch.Generator().manual_seed(seed), **options)


def lively(d_model=3, n_states=6, **options):
    """A layer whose states decay and turn at visible speed within some tens of steps."""
    return layer(d_model, n_states, dt_min=0.05, dt_max=0.5, **options)


def sequences(batch=2, length=20, d_model=3, dtype=torch.float64, seed=1):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def parameters(s5):
    """The parameters of the docstring's equations in NumPy, float64: Lambda, B, C, steps, D."""
    p = {name: value.detach().double().numpy() for name, value in s5.named_parameters()}
    real = np.minimum(p["Lambda_re"], -1e-4) if s5.clip_eigenvalues else p["Lambda_re"]
    steps = s5.step_rescale * np.exp(p["log_step"])
    return real + 1j * p["Lambda_im"], p["B"] @ [1, 1j], p["C"] @ [1, 1j], steps, p["D"]


def by_the_equations(s5, x):
    """The docstring's equations, a step and a matrix at a time, in float64."""
    Lambda, B, C, step, D = parameters(s5)
    if s5.discretization == "zoh":
        poles, gains = np.exp(Lambda * step), (np.exp(Lambda * step) - 1) / Lambda
    else:
        poles, gains = (1 + Lambda * step / 2) / (1 - Lambda * step / 2), step / (1 - Lambda * step / 2)

    def states(x):
        h, all_states = np.zeros((len(x), s5.n_states), dtype=complex), []
        for t in range(x.shape[1]):
            h = poles * h + gains * (x[:, t] @ B.T)
            all_states.append(h)
        return np.stack(all_states, 1)

    x = x.double().numpy()
    h = states(x)
    if s5.bidirectional:
        h = np.concatenate([h, states(x[:, ::-1])[:, ::-1]], axis=-1)
    return torch.from_numpy(2 * (h @ C.T).real + D * x)


@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
@pytest.mark.parametrize("mode", ["auto", "scan", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_step_follow_the_equations(mode, dtype, discretization, bidirectional):
    options = {"discretization": discretization, "bidirectional": bidirectional, "step_rescale": 1.7}
    s5, x = lively(mode=mode, dtype=dtype, blocks=2, **options), sequences(dtype=dtype)
    expected = by_the_equations(s5, x)
    bound = float(expected.abs().max() * tolerance(dtype))
    y = s5(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)
    if bidirectional:
        return
    state = s5.initial_state(len(x))
    for t in range(x.shape[1]):
        y_t, state = s5.step(x[:, t], state)
        torch.testing.assert_close(y_t.double(), expected[:, t], rtol=0, atol=bound)
    assert state.shape == (2, 6)
    assert state.is_complex()


@pytest.mark.parametrize("method", RULES)
def test_discretisation_is_that_of_scipy(method):
    """As the real system of both states of each pair, one state at a time: the steps differ."""
    s5 = lively(discretization=method, dtype=torch.float64)
    Lambda, B, C, step, _ = parameters(s5)
    discrete = hsv_torch.adapter_of(s5).system(s5)
    for i in range(s5.n_states):
        A = np.array([[Lambda[i].real, -Lambda[i].imag], [Lambda[i].imag, Lambda[i].real]])
        arrays = (A, np.stack([B[i].real, B[i].imag]), np.zeros((1, 2)), np.zeros((1, 3)))
        Ad, Bd, *_ = scipy.signal.cont2discrete(arrays, step[i], method=method)
        np.testing.assert_allclose(discrete.poles()[i], Ad[0, 0] + 1j * Ad[1, 0], rtol=1e-12)
        # SciPy's bilinear keeps the trapezoidal rule's factor (1 + pole) / 2 of its input in C: its B is that of S5.
        np.testing.assert_allclose(discrete.B[i], Bd[0] + 1j * Bd[1], rtol=1e-12)
        np.testing.assert_allclose(discrete.C[:, i], 2 * C[:, i], rtol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_discretisations_and_their_inverses(name):
    """There and back again, also near the unit circle, near 0 and where the series of the gain ends."""
    rule = DISCRETIZATIONS[name]
    sizes = torch.logspace(-9, math.log10(0.9), 40, dtype=torch.float64)
    angles = torch.tensor([0.5 + 1e-8, *np.linspace(0.51, 1.49, 23)], dtype=torch.float64) * torch.pi
    poles = (sizes[:, None] * torch.exp(1j * angles)).flatten()
    for step in (0.01, 1.0, 3.0):
        steps = torch.full_like(poles.real, step)
        log_poles, gains = rule.discretize(poles, steps)
        assert bool((log_poles.real < 0).all())
        back, same_gains = rule.undo(log_poles, steps)
        torch.testing.assert_close(back.real, poles.real, rtol=1e-7, atol=0)  # what keeps the state stable
        torch.testing.assert_close(back.imag, poles.imag, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(same_gains, gains, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_discretisation_against_arbitrary_precision(name):
    mpmath = pytest.importorskip("mpmath")
    cases = [
        (-1e-12, 1e-3, 1.0),
        (-1e-9, 0.0, 0.5),
        (-0.5, 300.0, 0.1),
        (-0.09, 0.04, 1.0),
        (-0.11, 0.01, 1.0),
        (-30, 1, 0.3),
    ]
    with mpmath.workdps(50):
        for re, im, step in cases:
            z = mpmath.mpc(re, im) * mpmath.mpf(step)
            if name == "zoh":
                logarithm, gain = z, step * (mpmath.exp(z) - 1) / z
            else:
                logarithm, gain = mpmath.log((1 + z / 2) / (1 - z / 2)), step / (1 - z / 2)
            found = DISCRETIZATIONS[name].discretize(
                torch.tensor([complex(re, im)], dtype=torch.complex128), torch.tensor([step], dtype=torch.float64)
            )
            for value, exact in zip(found, (logarithm, gain), strict=True):
                assert value.real.item() == pytest.approx(float(exact.real), rel=2e-15)
                assert value.imag.item() == pytest.approx(float(exact.imag), rel=2e-14, abs=1e-300)


@pytest.mark.parametrize("name", RULES)
def test_derivatives_of_discretisations(name):
    """Across the edge between series and formula, at 0 for the zero-order hold, near and at the pole 0 for the bilinear rule."""
    rule = DISCRETIZATIONS[name]
    poles = [complex(-0.0999999, 0.0), complex(-0.07, 0.0715), complex(-0.5, 3.0), complex(-1.9, 0.1), complex(-3, 1)]
    z = torch.tensor(poles, dtype=torch.complex128, requires_grad=True)
    steps = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rule.discretize, (z, steps))
    for dtype in (torch.complex64, torch.complex128):
        singular = torch.tensor([-2.0 if name == "bilinear" else 0.0], dtype=dtype, requires_grad=True)
        log_pole, gain = rule.discretize(singular, torch.ones(1, dtype=singular.real.dtype))
        pole = log_pole.exp()
        slope = torch.autograd.grad(pole.real.sum(), singular, retain_graph=True)[0].conj()
        if name == "bilinear":
            assert abs(pole.item()) < 20 * torch.finfo(dtype).eps
            expected = 0.25  # 1 / (1 - z / 2)^2
        else:
            assert gain.item() == 1
            assert torch.autograd.grad(gain.real.sum(), singular)[0].item() == pytest.approx(0.5)
            expected = 1.0
        assert slope.item() == pytest.approx(expected, rel=1e-2 if dtype == torch.complex64 else 1e-9)


def test_both_modes_have_the_same_gradients():
    s5, x = lively(dtype=torch.float64, bidirectional=True), sequences().requires_grad_()
    gradients = {}
    for s5.mode in ("scan", "convolution"):
        gradients[s5.mode] = torch.autograd.grad(s5(x).pow(2).sum(), [x, *s5.parameters()])
    for a, b in zip(gradients["scan"], gradients["convolution"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(b.abs().max() * tolerance(torch.float64)))


@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
def test_gradcheck(discretization, bidirectional):
    s5 = lively(2, 2, discretization=discretization, bidirectional=bidirectional, mode="scan", dtype=torch.float64)
    x = sequences(2, 4, 2).requires_grad_()
    names = [name for name, _ in s5.named_parameters()]
    lengths = torch.tensor([4, 3])

    def run(x, *values):
        return torch.func.functional_call(s5, dict(zip(names, values, strict=True)), (x, lengths))

    assert torch.autograd.gradcheck(run, (x, *[p.detach().requires_grad_() for p in s5.parameters()]))


@DIRECTIONS
def test_padding_has_no_influence(bidirectional):
    s5 = lively(bidirectional=bidirectional, dtype=torch.float64)
    x, lengths = sequences(4, 15), torch.tensor([15, 0, 7, 1])
    for i, n in enumerate(lengths.tolist()):
        x[i, n:] = torch.nan
    y = s5(x, lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[i, :n], s5(x[i : i + 1, :n])[0], rtol=0, atol=1e-12)
        assert (y[i, n:] == 0).all()
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in s5.parameters())
    with pytest.raises(hsv.ShapeError, match="`lengths` must have shape"):
        s5(x, torch.tensor([3]))


def test_backwards_is_forwards_on_the_reversed_sequence():
    s5, x = lively(bidirectional=True, dtype=torch.float64), sequences()
    mirrored = copy.deepcopy(s5)
    with torch.no_grad():
        mirrored.C.copy_(torch.cat([s5.C[:, 6:], s5.C[:, :6]], dim=1))
    torch.testing.assert_close(mirrored(x.flip(1)).flip(1), s5(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_states", "blocks"), [(8, 1), (12, 3), (4, 4)])
def test_initial_eigenvalues_are_those_of_hippo_n_blocks(n_states, blocks):
    s5 = layer(n_states=n_states, blocks=blocks, dtype=torch.float64)
    size = 2 * n_states // blocks
    j = np.arange(size)
    legs = -np.tril(np.sqrt(np.outer(2 * j + 1, 2 * j + 1)), -1) - np.diag(j + 1)
    expected = np.linalg.eigvals(legs + np.sqrt(np.outer(j + 0.5, j + 0.5)))
    expected = np.sort(expected.imag[expected.imag > 0])
    assert len(expected) == n_states // blocks
    np.testing.assert_allclose(s5.Lambda_re.detach(), -0.5, rtol=0, atol=0)
    np.testing.assert_allclose(s5.Lambda_im.detach().reshape(blocks, -1), np.tile(expected, (blocks, 1)), rtol=1e-12)


@DIRECTIONS
def test_initialisation_is_the_published_one(bidirectional):
    n, d = 64, 512
    s5 = layer(d, n, blocks=4, dt_min=0.01, dt_max=0.2, bidirectional=bidirectional, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in s5.named_parameters()} == {
        "Lambda_re": (n,), "Lambda_im": (n,), "B": (n, d, 2), "C": (d, n * (1 + bidirectional), 2), "log_step": (n,), "D": (d,)
    }  # fmt: skip
    # Back from the eigenvectors: what was drawn is real and truncated normal, of variance 1 / (2n). B_0 = 2 Re(V B).
    V = torch.block_diag(*[hippo_normal(2 * n // 4).eigenvectors[:, n // 4 :]] * 4)
    B = 2 * (V @ torch.view_as_complex(s5.B.detach())).real
    cut_off = 2 / 0.8796256610342398
    assert B.std().item() * math.sqrt(2 * n) == pytest.approx(1, rel=0.01)
    assert 0.99 * cut_off < float(B.abs().max()) * math.sqrt(2 * n) <= cut_off * (1 + 1e-12)
    kurtosis = float((B**4).mean() / (B**2).mean() ** 2)  # of the truncated normal: 2.36, of the normal 3
    assert kurtosis == pytest.approx(2.36, abs=0.05)
    C = torch.view_as_complex(s5.C.detach())
    # C = C_0 V with a complex C_0 of variance 2 / (2n): the same for each entry, for the columns of V have length 1.
    assert C.abs().square().mean().item() == pytest.approx(1 / n, rel=0.02)
    if bidirectional:
        assert abs(torch.corrcoef(torch.stack([C[:, :n].real.flatten(), C[:, n:].real.flatten()]))[0, 1]) < 0.02
    log_step = s5.log_step.detach()
    assert math.log(0.01) <= log_step.min() < math.log(0.02)
    assert math.log(0.1) < log_step.max() <= math.log(0.2)
    assert s5.D.std().item() == pytest.approx(1, rel=0.15)

    normal = layer(d, n, C_init="complex_normal", bidirectional=bidirectional, dtype=torch.float64)
    assert normal.C.std().item() == pytest.approx(math.sqrt(0.5), rel=0.01)


def test_a_generator_decides_everything_and_both_precisions_begin_alike():
    first, again, other = layer(), layer(), layer(seed=1)
    double = layer(dtype=torch.float64)
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        assert name.startswith("Lambda") or not torch.equal(value, other.get_parameter(name))
        assert torch.equal(value, double.get_parameter(name).float())


def test_a_layer_can_be_made_without_memory():
    """Under a default device other than the CPU: what is drawn is drawn on the CPU all the same."""
    with torch.device("meta"):
        s5 = layer()
    assert {p.device.type for p in s5.parameters()} == {"meta"}


def test_clipping_keeps_states_stable_and_can_be_left_out():
    for clip in (True, False):
        s5 = layer(clip_eigenvalues=clip, dtype=torch.float64)
        with torch.no_grad():
            s5.Lambda_re[0], s5.Lambda_re[1] = 0.3, 0.0
        torch.testing.assert_close(s5(sequences()), by_the_equations_with_a_limit(s5, sequences()), rtol=0, atol=1e-10)
        s5(sequences()).square().sum().backward()
        assert s5.Lambda_re.grad.isfinite().all()
        assert (s5.Lambda_re.grad[:2] == 0).all() == clip
    with pytest.raises(hsv.UnstableSystemError, match="spectral radius"):
        hsv_torch.adapter_of(s5).reduce(s5, 3, hsv_torch.ComplexHankel())


def by_the_equations_with_a_limit(s5, x):
    """Away from the pole at 0, where the plain formula divides by 0: by too little to matter."""
    moved = copy.deepcopy(s5)
    with torch.no_grad():
        if not s5.clip_eigenvalues:
            moved.Lambda_re[1] = 1e-9
            moved.Lambda_im[1] = s5.Lambda_im[1]
    return by_the_equations(moved, x)


def test_step_rescale_is_another_sampling_rate():
    """Twice the steps at half the rate: a held input gives the same outputs at every second step (zero-order hold)."""
    s5, x = lively(dtype=torch.float64), sequences()
    coarse = s5(x)
    s5.step_rescale = 0.5
    fine = s5(x.repeat_interleave(2, dim=1))
    torch.testing.assert_close(fine[:, 1::2], coarse, rtol=0, atol=1e-12)


def test_the_number_of_states_is_read_from_the_parameters():
    s5 = layer()
    for name, axis in {"Lambda_re": 0, "Lambda_im": 0, "log_step": 0, "B": 0, "C": 1}.items():
        setattr(s5, name, torch.nn.Parameter(s5.get_parameter(name).detach().narrow(axis, 0, 2)))
    assert s5.n_states == 2
    assert "n_states=2" in repr(s5)
    assert s5(sequences(dtype=torch.float32)).shape == (2, 20, 3)
    assert s5.initial_state(4).shape == (4, 2)


@DIRECTIONS
@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0), (1, 1)])
@pytest.mark.parametrize("mode", ["scan", "convolution"])
def test_edges(batch, length, mode, bidirectional):
    s5 = layer(n_states=1, mode=mode, bidirectional=bidirectional)
    y = s5(sequences(batch, length, dtype=torch.float32))
    assert y.shape == (batch, length, 3)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in s5.parameters())


def test_autocast():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer(bidirectional=True))
    x = sequences(dtype=torch.float32)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)  # the linear map before it ran in bfloat16
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("discretization", RULES)
def test_compiles_without_a_graph_break(discretization):
    s5, x = layer(discretization=discretization, bidirectional=True, mode="scan"), sequences(dtype=torch.float32)
    expected = s5(x)
    y = torch.compile(s5, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected)


def test_copies_and_state_dicts():
    s5, x = layer(), sequences(dtype=torch.float32)
    other = layer(seed=3)
    other.load_state_dict(s5.state_dict())
    assert torch.equal(copy.deepcopy(s5)(x), s5(x))
    assert torch.equal(other(x), s5(x))


# Cuts


def cut(s5, rule, criterion):
    adapter = hsv_torch.adapter_of(s5)
    plan = adapter.reduce(s5, rule, criterion)
    return plan, adapter.apply(s5, plan)


@READINGS
@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cut_to_full_size_gives_the_same_outputs(dtype, discretization, bidirectional, criterion):
    s5 = layer(n_states=12, discretization=discretization, bidirectional=bidirectional, step_rescale=1.3, dtype=dtype)
    x = sequences(length=50, dtype=dtype)
    before, steps = s5(x).detach(), s5.log_step.detach().clone()
    cut(s5, 12, criterion)
    np.testing.assert_allclose(s5(x).detach(), before, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)
    # Each state is found again with its own step size, and rows of B have their size.
    np.testing.assert_allclose(s5.log_step.detach().sort()[0], steps.sort()[0], rtol=1e-5)
    np.testing.assert_allclose(s5.B.detach().square().sum((1, 2)), 3 / 24, rtol=1e-5)


def response(s5, n_frequencies=256):
    """The layer's map from inputs to outputs at each frequency, measured: the spectrum of its response to impulses, ``(k, p, m)``."""
    half = 2048
    x = torch.zeros(s5.d_model, 2 * half, s5.d_model, dtype=torch.float64)
    x[range(s5.d_model), half, range(s5.d_model)] = 1.0
    with torch.no_grad():
        y = s5(x)
    spectrum = torch.fft.fft(y, dim=1)[:, :: 2 * half // n_frequencies]
    return spectrum.permute(1, 2, 0) * torch.where(torch.arange(n_frequencies) % 2 == 0, 1, -1)[:, None, None]


@READINGS
@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
@pytest.mark.parametrize("d_model", [1, 3])
def test_the_change_of_the_layers_own_output_obeys_the_bound(d_model, discretization, bidirectional, criterion):
    """Measured on the whole layer, both directions together, at 256 frequencies; and not vacuous."""
    for n_states in (1, 3, 7, 11):
        s5 = lively(d_model, 12, discretization=discretization, bidirectional=bidirectional, dtype=torch.float64)
        before, realised = response(s5), hsv_torch.adapter_of(s5).system(s5)
        plan, _ = cut(s5, n_states, criterion)
        assert plan.n_states_after == s5.n_states <= n_states
        error = float(torch.linalg.matrix_norm(response(s5) - before, ord=2).max())
        assert 0 < error <= plan.error_bound
        after = hsv_torch.adapter_of(s5).system(s5)
        stacked = float(hsv.hinf_error(hsv.real_part(realised), hsv.real_part(after)))
        factor = (math.sqrt(2) if d_model == 1 else 2) if bidirectional else 1
        assert stacked <= plan.error_bound / factor * (1 + 1e-9)
        assert error <= stacked * factor * (1 + 1e-9)


def test_the_bound_of_both_directions_needs_its_factor():
    """[E1; E2] of norm 1 at a frequency, the sum of the two directions of norm 2: one factor 2, and sqrt(2) for one channel."""
    E1, E2 = np.array([[1, -1j], [0, 0]]) / np.sqrt(2), np.array([[1, 1j], [0, 0]]) / np.sqrt(2)
    assert np.linalg.norm(np.vstack([E1, E2]), 2) == pytest.approx(1)
    assert np.linalg.norm(E1 + E2.conj(), 2) == pytest.approx(2)
    assert np.linalg.norm(np.vstack([1, 1]), 2) * math.sqrt(2) == pytest.approx(1 + 1)


@READINGS
@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
def test_the_contract_of_layers_holds(discretization, bidirectional, criterion):
    def make(n_states):
        return S5(
            3, n_states, discretization=discretization, bidirectional=bidirectional, dt_min=0.02, dtype=torch.float64
        )

    def silence(s5, kept):
        with torch.no_grad():
            s5.B[kept:] = 0

    found = check_adapter(make, criteria=[criterion], silence=silence)
    but = {"step", "observation"} if bidirectional else {"observation"}
    assert {name for name, outcome in found.items() if outcome != "holds"} == but


@READINGS
@pytest.mark.parametrize("discretization", RULES)
def test_rules_cut_and_training_goes_on(discretization, criterion):
    s5 = lively(n_states=16, discretization=discretization, bidirectional=True)
    x = sequences(4, 40, dtype=torch.float32)
    _, replaced = cut(s5, hsv.HankelSum(discard=0.1), criterion)
    assert s5.n_states < 16
    for name, (old, new) in replaced.items():
        assert s5.get_parameter(name) is new
        assert (new.dtype, new.device, new.requires_grad) == (old.dtype, old.device, old.requires_grad)
    optimizer = torch.optim.AdamW(s5.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (s5(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert bool((hsv_torch.adapter_of(s5).system(s5).log_poles.real < 0).all())


def padded(n, k, dtype=torch.float64, **options):
    """A layer of `n` states, and the same with `k` more that hardly matter: half of them unreachable, half unobservable."""
    small, big = lively(3, n, dtype=dtype, **options), lively(3, n + k, seed=1, dtype=dtype, **options)
    with torch.no_grad():
        for name in ("Lambda_re", "Lambda_im", "log_step", "B"):
            big.get_parameter(name)[:n] = small.get_parameter(name)
        big.D.copy_(small.D)
        for direction in range(1 + small.bidirectional):
            big.C[:, direction * (n + k) : direction * (n + k) + n] = small.C[:, direction * n : (direction + 1) * n]
            big.C[:, direction * (n + k) + n + k // 2 : (direction + 1) * (n + k)] *= 1e-13
        big.B[n : n + k // 2] *= 1e-13
    return small, big


@READINGS
@DIRECTIONS
@pytest.mark.parametrize("discretization", RULES)
@pytest.mark.parametrize(("n", "k"), [(1, 3), (5, 6)])
def test_carried_moments_are_those_of_the_small_model(n, k, discretization, bidirectional, criterion):
    """On a cut that loses nothing, for every parameter: also for the steps, which the parametrisation has too many of."""
    _, big = padded(n, k, discretization=discretization, bidirectional=bidirectional)
    adapter = hsv_torch.adapter_of(big)
    x, target = sequences(5, 40), sequences(5, 40, seed=2)

    def gradients():
        big.zero_grad()
        y = big(x)
        (y - target).square().mean().backward()
        return y.detach(), {name: big.get_parameter(name).grad for name in adapter.parameter_names(big)}

    before, old = gradients()
    plan = adapter.reduce(big, n, criterion)
    first = adapter.pull_back(plan, old, squared=False)
    second = adapter.pull_back(plan, {name: g**2 for name, g in old.items()}, squared=True)
    adapter.apply(big, plan)
    after, new = gradients()
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10)
    assert set(first) == set(second) == set(new)
    for name, gradient in new.items():
        scale = float(gradient.abs().max())
        assert scale > 0
        np.testing.assert_allclose(first[name], gradient, rtol=0, atol=1e-9 * scale, err_msg=name)
        assert (second[name] >= 0).all()
        if name != "log_step":  # a sum over pole and inputs: its square is no sum of squares
            np.testing.assert_allclose(second[name], gradient**2, rtol=0, atol=1e-8 * scale**2, err_msg=name)


def test_moments_of_steps_with_other_steps_and_a_limit():
    """The transpose of a Jacobian taken by finite differences: steps changed after the plan, a pole held at its limit."""
    s5 = lively(2, 4, dtype=torch.float64)
    with torch.no_grad():
        s5.Lambda_re[1] = 0.1  # held
    adapter = hsv_torch.adapter_of(s5)
    plan = adapter.reduce(s5, 3, hsv_torch.RealHankel())
    sampled, new = plan.payload
    draw = torch.Generator().manual_seed(0)
    covectors = {
        name: torch.randn(s5.get_parameter(name).shape, generator=draw, dtype=torch.float64)
        for name in adapter.parameter_names(s5)
    }
    rule, old = sampled.old.rule, sampled.old
    old_log = rule.discretize(old.poles, old.steps)[0]
    new_log = rule.discretize(sampled.new.poles, sampled.new.steps)[0]

    def pairing(p):
        """<covectors, g(p)>: the old parameters as a function of the new ones, written out."""
        log_poles, gains = rule.discretize(torch.complex(p["Lambda_re"], p["Lambda_im"]), p["log_step"].exp())
        discrete, change = sampled.discrete, (log_poles - new_log)[:, None]
        change = (discrete.log_pole_map.linear @ change + discrete.log_pole_map.conjugate @ change.conj())[:, 0]
        change[1] = 1j * change[1].imag
        Lambda, old_gains = (
            (old_log + change) / old.steps,
            torch.expm1(old_log + change) / (old_log + change) * old.steps,
        )
        B = gains[:, None] * torch.view_as_complex(p["B"])
        B = (discrete.states.linear @ B + discrete.states.conjugate @ B.conj()) / old_gains[:, None]
        C = torch.view_as_complex(p["C"]).mT
        C = (discrete.outputs.linear @ C + discrete.outputs.conjugate @ C.conj()).mT
        total = (covectors["Lambda_re"] * Lambda.real * ~old.held).sum() + (covectors["Lambda_im"] * Lambda.imag).sum()
        total = total + (covectors["B"] * torch.view_as_real(B)).sum()
        return total + (covectors["C"] * torch.view_as_real(C.resolve_conj())).sum()

    carried = adapter.pull_back(plan, covectors, squared=False)
    base = {name: value.clone().contiguous() for name, value in new.items()}
    for name, value in base.items():
        for i in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = {key: tensor.clone() for key, tensor in base.items()}
                moved[name].view(-1)[i] += sign * 1e-6
                ends.append(pairing(moved))
            slope = float(ends[0] - ends[1]) / 2e-6
            assert carried[name].reshape(-1)[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-7), (name, i)


def test_slow_poles_take_a_shorter_step_than_their_limit_asks_for():
    """Reduced poles may decay more slowly than the limit allows at the old step: nothing is clipped, and a note says so."""
    s5 = layer(2, 2, dt_min=1.0, dt_max=1.0, dtype=torch.float64)
    with torch.no_grad():
        s5.Lambda_re.fill_(-1.0e-4)
        s5.Lambda_im.copy_(torch.tensor([0.5, 1.5]))
    x = sequences(2, 30, 2)
    before = s5(x).detach()
    plan, _ = cut(s5, 2, hsv_torch.ComplexHankel())
    assert any("2 states take a shorter step" in note for note in plan.notes)
    assert (s5.Lambda_re < -1.5e-4).all()
    np.testing.assert_allclose(s5(x).detach(), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("discretization", RULES)
def test_a_negative_real_pole_has_a_state(discretization):
    """A filter that flips sign at each step: after the cut a real pole at angle pi, real input and output maps."""
    s5 = layer(1, 3, discretization=discretization, clip_eigenvalues=False, dtype=torch.float64)
    with torch.no_grad():
        rule, steps = DISCRETIZATIONS[discretization], s5.log_step.exp()
        wanted = torch.complex(torch.tensor([-0.05, -0.8, -1.0]).double(), torch.tensor([torch.pi, 0.3, 1.0]).double())
        poles, gains = rule.undo(wanted, steps)
        s5.Lambda_re.copy_(poles.real)
        s5.Lambda_im.copy_(poles.imag)
        s5.B.copy_(torch.view_as_real((torch.tensor([1.0, 0.01, 0.01]) / gains)[:, None]))
        s5.C.fill_(0.3)
        s5.C[0, 0, 1] = 0
    np.testing.assert_allclose(hsv_torch.adapter_of(s5).system(s5).poles(), wanted.exp(), rtol=1e-9)
    x = sequences(2, 40, 1)
    before = s5(x).detach()
    plan, _ = cut(s5, 1, hsv_torch.RealHankel())
    system = hsv_torch.adapter_of(s5).system(s5)
    assert plan.order == 1
    assert abs(abs(system.log_poles.imag.item()) - torch.pi) < 1e-12
    assert system.log_poles.real.item() == pytest.approx(-0.05, abs=5e-3)
    for matrix in (system.B, system.C):
        assert float(matrix.imag.abs().max()) < 1e-12 * float(matrix.abs().max())
    if discretization == "bilinear":
        assert abs(s5.Lambda_im.item()) < 1e-9 * abs(s5.Lambda_re.item())
        assert s5.Lambda_re.item() < -2 / s5.log_step.exp().item()
    else:
        assert s5.Lambda_im.item() * s5.log_step.exp().item() == pytest.approx(torch.pi)
    assert float((s5(x) - before).detach().norm()) <= plan.error_bound * float(x.norm())


def test_a_pole_without_a_continuous_image_in_the_layers_dtype_is_refused():
    """A pole at angle 3 becomes a real one at angle pi, whose Lambda_im is beyond float32 with a step that small."""
    s5 = layer(1, 1)
    with torch.no_grad():
        s5.log_step.fill_(-87.6)
        s5.Lambda_im.fill_(3.0 * math.exp(87.6))
        s5.Lambda_re.fill_(-0.1 * math.exp(87.6))
        s5.C[..., 1] = 0
        s5.B[..., 1] = 0
    state = copy.deepcopy(s5.state_dict())
    with pytest.raises(
        hsv_torch.CutRefusedError, match=r"Lambda_im of the smaller layer is not finite in torch.float32"
    ):
        cut(s5, hsv.HankelSum(discard=0.3), hsv_torch.RealHankel())
    assert all(torch.equal(value, state[name]) for name, value in s5.state_dict().items())
    plan, _ = cut(s5.double(), hsv.HankelSum(discard=0.3), hsv_torch.RealHankel())
    assert plan.order == 1


def test_resize_makes_room_for_another_state_dict():
    for bidirectional in (False, True):
        small, big = layer(n_states=2, bidirectional=bidirectional), layer(n_states=5, bidirectional=bidirectional)
        hsv_torch.adapter_of(big).resize(big, 2)
        big.load_state_dict(small.state_dict())
        x = sequences(dtype=torch.float32)
        torch.testing.assert_close(big(x), small(x))


def test_compress_carries_the_moments_of_adamw():
    model = torch.nn.Sequential(torch.nn.Linear(1, 3), lively(n_states=12), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(hsv_torch.parameter_groups(model, lr=1e-3, ssm_lr_factor=0.5, weight_decay=0.05))

    def train():
        optimizer.zero_grad()
        loss = model(sequences(4, 30, 1, torch.float32)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        train()
    report = hsv_torch.compress_(model, hsv.Order(4), optimizer=optimizer)
    assert model[1].n_states == 4
    assert report.layers[0].n_states_after == 4
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    for p in model[1].parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert (optimizer.state[p]["exp_avg_sq"] >= 0).all()
    assert all(math.isfinite(train()) for _ in range(3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((0, 3), {}, hsv.ShapeError, "`d_model` must be at least 1, got 0"),
        ((3, 2.0), {}, hsv.DtypeError, "`n_states` must be an int, got 2.0"),
        ((3, 6), {"blocks": 4}, hsv.ShapeError, "`blocks` must divide `n_states`, got 4 blocks of 6 states"),
        ((3, 6), {"blocks": 0}, hsv.ShapeError, "`blocks` must be at least 1, got 0"),
        ((3, 2), {"discretization": "euler"}, hsv.HsvError, "`discretization` must be one of 'zoh', 'bilinear', got"),
        (
            (3, 2),
            {"C_init": "zeros"},
            hsv.HsvError,
            "`C_init` must be one of 'trunc_standard_normal', 'complex_normal'",
        ),
        ((3, 2), {"mode": "fft"}, hsv.HsvError, "`mode` must be one of 'auto', 'scan', 'convolution', got 'fft'"),
        ((3, 2), {"dt_min": 0.2}, hsv.HsvError, "0 < dt_min <= dt_max, got 0.2 and 0.1"),
        ((3, 2), {"dt_min": 0.0}, hsv.HsvError, "0 < dt_min <= dt_max, got 0.0 and 0.1"),
        ((3, 2), {"step_rescale": -1.0}, hsv.HsvError, "`step_rescale` must be a positive number, got -1.0"),
        ((3, 2), {"dtype": torch.bfloat16}, hsv.DtypeError, "`dtype` must be torch.float32 or torch.float64"),
    ],
)
def test_arguments_are_checked(arguments, options, error, match):
    with pytest.raises(error, match=match):
        S5(*arguments, **options)


def test_inputs_are_checked():
    s5 = layer()
    x = sequences(dtype=torch.float32)
    with pytest.raises(hsv.ShapeError, match=r"the input must be \(batch, length, 3\), got \(20, 3\)"):
        s5(x[0])
    with pytest.raises(hsv.DtypeError, match=r"the input is torch.float64 and the layer torch.float32"):
        s5(x.double())
    with pytest.raises(hsv.ShapeError, match=r"`state` must be torch.complex64 of shape \(2, 6\)"):
        s5.step(x[:, 0], s5.initial_state(3))
    with pytest.raises(hsv.HsvError, match="a bidirectional layer has no step"):
        layer(bidirectional=True).step(x[:, 0], s5.initial_state(2))


def test_blocks_that_no_longer_divide_the_states_are_an_error_only_when_drawn_anew():
    s5 = layer(n_states=6, blocks=3)
    cut(s5, 4, hsv_torch.ComplexHankel())
    with pytest.raises(hsv.ShapeError, match="`blocks` must divide the number of states, got 3 blocks of 4 states"):
        s5.reset_parameters()
    s5.blocks = 2
    s5.reset_parameters()
    assert (s5.Lambda_re == -0.5).all()


def test_a_reduced_pole_on_the_unit_circle_is_refused():
    s5 = layer(2, 3, dtype=torch.float64)
    sampled, _ = hsv_torch.adapter_of(s5).reduce(s5, 2, hsv_torch.ComplexHankel()).payload
    unstable = dataclasses.replace(sampled.discrete, log_poles=1j * sampled.discrete.log_poles.imag)
    with pytest.raises(
        hsv_torch.CutRefusedError, match=r"a pole on the unit circle to working precision \(log\|pole\| = 0"
    ):
        SampledCut.write_back(unstable, sampled.old, row_norm=1.0)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning")  # said once, and expected here
@READINGS
@pytest.mark.parametrize("discretization", RULES)
def test_a_layer_is_run_and_cut_on_the_device(discretization, criterion):
    host = lively(n_states=12, discretization=discretization, bidirectional=True)
    device, x = copy.deepcopy(host).cuda(), sequences(dtype=torch.float32)
    torch.testing.assert_close(device(x.cuda()).cpu(), host(x), rtol=0, atol=1e-5)
    gradients = {name: torch.ones_like(p) for name, p in device.named_parameters() if name != "D"}
    (plan, _), (expected, _) = cut(device, 5, criterion), cut(host, 5, criterion)
    assert {p.device.type for p in device.parameters()} == {"cuda"}
    assert plan.error_bound == pytest.approx(expected.error_bound, rel=1e-4)
    torch.testing.assert_close(device(x.cuda()).cpu(), host(x), rtol=0, atol=1e-4)
    for squared in (False, True):
        carried = hsv_torch.adapter_of(device).pull_back(plan, gradients, squared=squared)
        assert all(value.is_cuda and value.isfinite().all() for value in carried.values())
