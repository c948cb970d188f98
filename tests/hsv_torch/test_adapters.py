"""The contract of every registered layer: what a cut must and must not change."""

import importlib
import pkgutil

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import layers, selective
from hsv_torch.testing import check_adapter
from tests.tolerances import tolerance

CRITERIA = [hsv_torch.ComplexHankel(), hsv_torch.RealHankel()]
# How to make a small layer of each type; a new layer adds its line here, and its cases below.
MAKE = {
    hsv_torch.GatedLinearAttention: lambda n_states, **options: hsv_torch.GatedLinearAttention(
        3, n_states, **{"n_heads": 3, **options}
    ),
    hsv_torch.LRU: lambda n_states, **options: hsv_torch.LRU(3, n_states, **options),
    hsv_torch.Mamba: lambda n_states, **options: hsv_torch.Mamba(3, n_states, **options),
    hsv_torch.Mamba2: lambda n_states, **options: hsv_torch.Mamba2(3, n_states, **{"head_dim": 2, **options}),
    hsv_torch.S4D: lambda n_states, **options: hsv_torch.S4D(3, n_states, **{"initialization": "legs", **options}),
    hsv_torch.S5: lambda n_states, **options: hsv_torch.S5(3, n_states, **options),
}
TIME_INVARIANT = [t for t in MAKE if not hsv_torch.find_adapter(MAKE[t](2)).needs_data]
LAYERS = pytest.mark.parametrize("layer_type", TIME_INVARIANT, ids=lambda t: t.__name__)
READINGS = pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: type(c).__name__)

# Options and criteria that the whole contract is checked with.
CASES = [
    (hsv_torch.LRU, {}, CRITERIA),
    (hsv_torch.LRU, {"max_phase": 0.3, "mode": "scan"}, CRITERIA),
    (hsv_torch.S4D, {}, CRITERIA),
    (hsv_torch.S4D, {"initialization": "inv", "discretization": "bilinear", "bidirectional": True}, CRITERIA),
    (hsv_torch.S4D, {"initialization": "real"}, [hsv_torch.SymmetricHankel(), hsv_torch.RealPoles()]),
    (hsv_torch.S5, {}, CRITERIA),
    (hsv_torch.S5, {"discretization": "bilinear", "bidirectional": True}, CRITERIA),
    (hsv_torch.Mamba, {}, [selective.StateChoice(), selective.SharedBasis(), selective.ChannelBasis()]),
    (hsv_torch.Mamba2, {}, [selective.SharedBasis(), selective.StateChoice(), selective.StateChoice(compensate=False)]),
    (hsv_torch.Mamba2, {"n_groups": 3, "bias": True}, [selective.StateChoice("ghost", compensate=False)]),
    (hsv_torch.GatedLinearAttention, {"decay": "head"}, [selective.SharedBasis(), selective.StateChoice("ghost")]),
    (hsv_torch.GatedLinearAttention, {}, [selective.StateChoice(), selective.StateChoice("ghost")]),
]


def without_influence(layer, k):
    """States from the k-th on reach no output."""
    if isinstance(layer, hsv_torch.GatedLinearAttention):
        layer.q_proj.weight.unflatten(0, (layer.n_heads, -1))[:, k:] = 0
        return
    if isinstance(layer, hsv_torch.Mamba2):
        outputs = layer.n_groups * layer.n_states
        inputs = layer.in_proj.weight[: -layer.n_heads], layer.conv1d.bias
        if layer.in_proj.bias is not None:
            inputs += (layer.in_proj.bias[: -layer.n_heads],)
        for rows in inputs:
            rows[-outputs:].unflatten(0, (layer.n_groups, -1))[:, k:] = 0
        return
    if isinstance(layer, hsv_torch.Mamba):
        layer.x_proj.weight[-layer.n_states :][k:] = 0
        return
    directions = [layer.C] if not isinstance(layer, hsv_torch.S5) else list(layer.C.split(layer.n_states, dim=1))
    if getattr(layer, "C_backward", None) is not None:
        directions.append(layer.C_backward)
    for C in directions:
        C[:, k:] = 0


def keeps_features(layer_type, criterion):
    """Whether a cut leaves features in place that are no states, or may prefer a silent state that predicts the others."""
    if layer_type is hsv_torch.Mamba2:
        return not isinstance(criterion, selective.StateChoice) or criterion.compensate
    greedy = selective.StateChoice()
    return isinstance(criterion, selective.ChannelBasis) or (
        layer_type is hsv_torch.GatedLinearAttention and criterion == greedy
    )


def make(layer_type, n_states, seed=0, **options):
    return MAKE[layer_type](n_states, generator=torch.Generator().manual_seed(seed), **options)


def cut(layer, rule, criterion):
    adapter = hsv_torch.adapter_of(layer)
    plan = adapter.reduce(layer, rule, criterion)
    return plan, adapter.apply(layer, plan)


def outputs(layer, seed=1, length=50):
    x = torch.randn(4, length, 3, generator=torch.Generator().manual_seed(seed), dtype=next(layer.parameters()).dtype)
    return layer(x)


def test_every_file_in_layers_is_registered_and_under_contract():
    registered = set(hsv_torch.registered_layer_types())
    for module in pkgutil.iter_modules(layers.__path__):
        if module.name.startswith("_"):  # what layers share
            continue
        source = importlib.import_module(f"hsv_torch.layers.{module.name}")
        types = {t for t in registered if t.__module__ == source.__name__}
        assert types, f"{source.__name__} registers no adapter"
        assert types <= set(MAKE), f"add {types} to MAKE, so that the contract tests run over it"


def test_every_registered_layer_has_cases():
    assert {layer_type for layer_type, _, _ in CASES} == set(MAKE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("layer_type", "options", "criterion"),
    [(layer_type, options, criterion) for layer_type, options, criteria in CASES for criterion in criteria],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__ if not isinstance(value, dict) else "-".join(value) or "default",
)  # fmt: skip
def test_the_contract(layer_type, options, criterion, dtype):
    adapter = hsv_torch.adapter_of(make(layer_type, 2))
    found = check_adapter(
        lambda n_states: MAKE[layer_type](n_states, dtype=dtype, **options),
        criteria=[criterion],
        # Where states are taken away and the features left in place, the gradients of silent ones change.
        silence=None if keeps_features(layer_type, criterion) else without_influence,
        # Bases from second moments of the data have half the digits.
        tolerance=1e-6 if adapter.needs_data and dtype == torch.float64 else None,
    )
    excused = {"error bound"} if adapter.needs_data else {"observation"}
    if options.get("bidirectional"):
        excused.add("step")
    assert {name for name, reason in found.items() if reason != "holds"} == excused


@LAYERS
@READINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cut_to_full_size_gives_the_same_outputs(layer_type, criterion, dtype):
    layer = make(layer_type, 12, dtype=dtype)
    before = outputs(layer)
    plan, _ = cut(layer, 12, criterion)
    assert plan.n_states_before == plan.n_states_after == layer.n_states == 12
    np.testing.assert_allclose(outputs(layer).detach(), before.detach(), atol=1e-10 if dtype == torch.float64 else 5e-5)


@LAYERS
@READINGS
@pytest.mark.parametrize("n_states", [1, 3, 7, 11])
def test_the_change_of_the_output_obeys_the_bound(layer_type, criterion, n_states):
    """In energy: over all inputs, here the worst that power iteration on the convolution finds, and at every frequency."""
    layer = make(layer_type, 12, dtype=torch.float64)
    adapter = hsv_torch.adapter_of(layer)
    before = hsv.real_part(adapter.system(layer))
    plan, _ = cut(layer, n_states, criterion)
    assert plan.n_states_after == layer.n_states <= n_states
    after = hsv.real_part(adapter.system(layer))
    assert float(hsv.hinf_error(before, after).max()) <= plan.error_bound * (1 + 1e-10)


@LAYERS
@READINGS
@pytest.mark.parametrize("rule", [hsv.HankelSum(discard=0.1), hsv.HankelEnergy(keep=0.9), hsv.Threshold(0.2)])
def test_every_rule_cuts_and_the_layer_stays_stable_and_trainable(layer_type, criterion, rule):
    layer = make(layer_type, 16, **({"max_phase": 0.5} if layer_type is hsv_torch.LRU else {}))
    _, replaced = cut(layer, rule, criterion)
    names = set(hsv_torch.adapter_of(layer).parameter_names(layer))
    assert set(replaced) == names
    for name, (old, new) in replaced.items():
        assert layer.get_parameter(name) is new
        assert new is not old
        assert (new.dtype, new.device, new.requires_grad) == (old.dtype, old.device, old.requires_grad)
    assert layer.n_states < 16
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (outputs(layer) - 1).square().mean()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    margin = -hsv_torch.adapter_of(layer).system(layer).log_poles.real
    assert bool((margin > 0).all())


def padded(layer_type, n, k, dtype, seed=0):
    """A layer of `n` states, and the same with `k` more that hardly matter: half of them unreachable, half unobservable."""
    small, big = make(layer_type, n, seed, dtype=dtype), make(layer_type, n + k, seed + 1, dtype=dtype)
    negligible = 1e-13 if dtype == torch.float64 else 1e-7
    with torch.no_grad():
        for name in ("nu_log", "theta", "gamma_log", "B"):
            getattr(big, name)[:n] = getattr(small, name)
        big.C[:, :n] = small.C
        big.D.copy_(small.D)
        big.B[n : n + k // 2] *= negligible
        big.C[:, n + k // 2 :] *= negligible
    return small, big


@READINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (5, 6), (12, 8)])
def test_a_padded_lru_goes_back_to_its_size(criterion, dtype, n, k):
    """Through the real cut: same outputs, and the carried moments are those of the small model."""
    _, big = padded(hsv_torch.LRU, n, k, dtype)
    adapter = hsv_torch.adapter_of(big)
    x = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(3), dtype=dtype)
    target = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(4), dtype=dtype)

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
    assert big.n_states == n
    after, new = gradients()
    np.testing.assert_allclose(after, before, atol=1e-10 if dtype == torch.float64 else 5e-5)
    for name, gradient in new.items():
        scale = float(gradient.abs().max())
        # float32: the negligible states are only as negligible as 1e-7, and both gradients are rounded
        np.testing.assert_allclose(first[name], gradient, atol=(1e-9 if dtype == torch.float64 else 2e-4) * scale)
        if name != "gamma_log":  # a sum over the inputs: its square is no sum of squares
            error = float((second[name] - gradient**2).abs().max())
            assert error <= (1e-8 if dtype == torch.float64 else 1e-3) * scale**2


def test_pushing_moments_forward_would_be_wrong():
    """The inverse of the pull-back's Jacobian is another map: on this cut the two differ by more than half."""
    _, big = padded(hsv_torch.LRU, 4, 4, torch.float64)
    plan = hsv_torch.adapter_of(big).reduce(big, 4, hsv_torch.ComplexHankel())
    states = plan.payload[0].states
    g = torch.randn(8, 1, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    pulled = states.pull_back(g, squared=False)
    pushed = torch.linalg.lstsq(states.linear, g).solution
    assert float((pulled - pushed).norm() / pulled.norm()) > 0.5


def test_widely_linear_pull_back_is_the_transpose():
    """<g, f(z)> = <pull_back(g), z> in the real inner product, and the squared one is that of the squared Jacobian."""
    draw = torch.Generator().manual_seed(0)
    M1, M2 = (torch.randn(5, 3, dtype=torch.complex128, generator=draw) for _ in range(2))
    f = hsv_torch.diagonal_cut.WidelyLinearMap(M1, M2)
    z = torch.randn(3, 1, dtype=torch.complex128, generator=draw)
    g = torch.randn(5, 1, dtype=torch.complex128, generator=draw)

    def real(x):
        return torch.cat([x.real, x.imag])

    jacobian = torch.cat(
        [real(f(e)) for e in (*torch.eye(3, dtype=z.dtype)[..., None], *torch.eye(3, dtype=z.dtype)[..., None] * 1j)],
        dim=1,
    )
    torch.testing.assert_close(jacobian @ real(z), real(f(z)))
    torch.testing.assert_close(real(f.pull_back(g, squared=False)), jacobian.T @ real(g))
    torch.testing.assert_close(real(f.pull_back(g, squared=True)), (jacobian**2).T @ real(g))


def test_the_conjugate_aware_reading_counts_slots():
    layer = make(hsv_torch.LRU, 12, max_phase=0.3, dtype=torch.float64)
    for k in range(1, 13):
        plan = hsv_torch.adapter_of(layer).reduce(layer, k, hsv_torch.RealHankel())
        real_poles = int((plan.payload[0].log_poles.imag == 0).sum())
        assert plan.order == 2 * (plan.n_states_after - real_poles) + real_poles
        assert plan.n_states_after <= k
        assert len(plan.hankel_singular_values) == 24


def test_real_slots_have_a_real_system():
    """Angle 0 or pi, real rows of B and C: what a real eigenvalue becomes, and stays, for its gradients vanish."""
    layer = make(hsv_torch.LRU, 10, seed=4, max_phase=0.3, dtype=torch.float64)
    plan, _ = cut(layer, 2, hsv_torch.RealHankel())
    slots = torch.nonzero(plan.payload[0].log_poles.imag == 0)[:, 0]
    assert len(slots) == 1  # order 3 in two slots: a pair and a real pole
    outputs(layer).square().sum().backward()
    for i in slots:
        assert float(layer.B[i, :, 1].detach().abs().max()) == 0
        assert float(layer.C[:, i, 1].detach().abs().max()) == 0
        scale = float(layer.B.grad[i, :, 0].abs().max())
        assert float(layer.B.grad[i, :, 1].abs().max()) < 1e-12 * scale
        assert abs(float(layer.theta.grad[i])) < 1e-12 * scale


def with_special_poles(n_states):
    """Two equal poles, one at angle 0, one at angle pi, one of modulus 2e-24."""
    layer = make(hsv_torch.LRU, n_states, dtype=torch.float64)
    with torch.no_grad():
        layer.nu_log[:2] = layer.nu_log[0]  # |lambda| = exp(-exp(nu))
        layer.theta[:2] = layer.theta[0]
        layer.theta[2], layer.theta[3] = 0.0, torch.pi
        layer.nu_log[4] = 4.0
    return layer


def test_repeated_real_and_zero_poles():
    layer = with_special_poles(6)
    before = outputs(layer)
    cut(layer, 6, hsv_torch.ComplexHankel())
    np.testing.assert_allclose(outputs(layer).detach(), before.detach(), atol=1e-10)


def test_complex_states_with_real_poles_need_two_real_states_each():
    """Said in the notes, and within the bound; given room, nothing is lost."""
    layer = with_special_poles(6)
    adapter = hsv_torch.adapter_of(layer)
    before = hsv.real_part(adapter.system(layer))
    plan, _ = cut(layer, 6, hsv_torch.RealHankel())
    assert "must fit into 6 states" in plan.notes[-1]
    error = float(hsv.hinf_error(before, hsv.real_part(adapter.system(layer))))
    assert 1e-3 < error <= plan.error_bound


def test_a_pole_at_zero_is_moved_out_and_recorded():
    """A delay of one step: both poles of the reduced system are 0 exactly."""
    arrays = (torch.zeros(2), torch.eye(2), torch.diag(torch.tensor([2.0, 1.0])))
    delay = hsv.DiagonalStateSpace(*(x.to(torch.complex128) for x in arrays), dt=True)
    plan = hsv_torch.ComplexHankel().reduce(delay, 1)
    assert "1 poles at 0 were moved out" in plan.notes[-1]
    assert plan.log_poles.isfinite().all()


@READINGS
def test_a_layer_without_input_or_output_is_refused(criterion):
    for name in ("B", "C"):
        layer = make(hsv_torch.LRU, 5)
        with torch.no_grad():
            getattr(layer, name).zero_()
        with pytest.raises(hsv_torch.CutRefusedError, match="no input reaches the output") as caught:
            cut(layer, 2, criterion)
        np.testing.assert_array_equal(caught.value.hankel_singular_values, 0)
        assert layer.n_states == 5


@READINGS
def test_a_layer_that_diverged_is_refused(criterion):
    layer = make(hsv_torch.LRU, 5)
    with torch.no_grad():
        layer.B[2, 1, 0] = torch.nan
    with pytest.raises(hsv.NonFiniteError, match=r"B must be finite, found .*nan.* at index \(2, 1\)"):
        cut(layer, 2, criterion)


@READINGS
@pytest.mark.parametrize("order", [0, 6, -1])
def test_an_order_outside_the_layer_is_refused(criterion, order):
    with pytest.raises(hsv.OrderError, match="Order must be"):
        cut(make(hsv_torch.LRU, 5), order, criterion)


def test_ill_conditioned_eigenvectors_are_refused():
    strict = hsv_torch.ComplexHankel(max_condition=1.0 + 1e-9)
    layer = make(hsv_torch.LRU, 8)
    with pytest.raises(hsv_torch.CutRefusedError, match=r"condition .* above the limit") as caught:
        cut(layer, 3, strict)
    assert len(caught.value.hankel_singular_values) == 8
    assert layer.n_states == 8


@READINGS
def test_complex_and_real_readings_obey_the_bound_for_many_initialisations(criterion):
    """`n` from 1 to 64 in float32, as the layers come: the output's error on white noise, in energy, is within the bound."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 65))
        layer = make(hsv_torch.LRU, n, seed, max_phase=float(rng.choice([6.28, 0.3])))
        adapter = hsv_torch.adapter_of(layer)
        before = hsv.real_part(adapter.system(layer))
        plan, _ = cut(layer, hsv.HankelSum(discard=0.1), criterion)
        error = float(hsv.hinf_error(before, hsv.real_part(adapter.system(layer))))
        scale = float(plan.hankel_singular_values[0])
        # rounding the new parameters to float32 moves poles by eps / (1 - |pole|), relatively
        assert error <= plan.error_bound + scale * tolerance(torch.float32, factor=100) / 1e-3


def test_the_registry():
    layer = make(hsv_torch.LRU, 3)

    class Mine(hsv_torch.LRU):
        pass

    assert hsv_torch.find_adapter(Mine(2, 2)) is hsv_torch.find_adapter(layer)
    assert hsv_torch.find_adapter(torch.nn.Linear(2, 2)) is None
    with pytest.raises(hsv.HsvError, match="Linear has no adapter"):
        hsv_torch.adapter_of(torch.nn.Linear(2, 2))
    with pytest.raises(hsv.HsvError, match="LRU is registered already"):
        hsv_torch.register_adapter(hsv_torch.LRU)(type(hsv_torch.adapter_of(layer)))
    twice = torch.nn.ModuleDict({"a": layer, "b": layer, "c": torch.nn.Linear(2, 2)})
    assert list(hsv_torch.compressible_layers(twice)) == ["a"]
