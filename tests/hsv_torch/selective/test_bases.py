"""Changes of basis: stability, what is neglected, transforms, cuts of layers that have transforms already."""

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import ChannelBasis, SharedBasis, StateChoice
from hsv_torch.selective._bases import balance, joint_diagonalizer, weighted_galerkin, weights_of
from tests.hsv_torch.selective.layers import cut, mamba, plan, relative_error, sequences
from tests.tolerances import tolerance


def random_gramian(g, *shape):
    X = torch.randn(*shape, shape[-1], generator=g, dtype=torch.float64)
    return X @ X.mT


def test_a_weighted_projection_cannot_become_unstable():
    g = torch.Generator().manual_seed(0)
    A = -torch.rand(50, 9, generator=g, dtype=torch.float64).mul(6).exp()
    P, Q = random_gramian(g, 50, 9), random_gramian(g, 50, 9)
    R, L = weighted_galerkin(balance(P, Q)[1][..., :4], weights_of(Q))
    torch.testing.assert_close(L.mT @ R, torch.eye(4, dtype=torch.float64).expand(50, 4, 4), rtol=0, atol=1e-12)
    reduced = L.mT @ (A[..., None] * R)
    torch.testing.assert_close(reduced, reduced.mT, rtol=0, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(reduced)
    assert bool((eigenvalues >= A.amin(1, keepdim=True) * (1 + 1e-12)).all())
    assert bool((eigenvalues <= A.amax(1, keepdim=True) * (1 - 1e-12)).all())


def test_poles_that_balancing_makes_unstable_are_moved_and_noted():
    """Balancing with Gramians of another system promises nothing; the projection alone is seen to fail here."""
    layer, x = mamba(16, seed=9), sequences(length=100, seed=9)
    adapter = hsv_torch.adapter_of(layer)
    observation = adapter.observe(layer, ChannelBasis())
    observation.update(layer, (x,), {})
    values, reach, see = balance(*observation.channel_gramians())
    rates, unstable = adapter.view(layer).rates(), []
    for r in range(1, 6):
        planned = adapter.reduce(layer, r, ChannelBasis(), observation)
        left, right = (part[..., :r] / values[:, None, :r].sqrt() for part in (see, reach))
        alone = torch.linalg.eigvals(left.mT @ (rates[..., None] * right)).real.sort(dim=1).values
        if bool((alone > 0).any()):
            unstable.append(r)
        expected = torch.minimum(alone, rates.amax(1, keepdim=True))
        found = planned.payload.cut.rates.real.sort(dim=1).values
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        moved = int((alone > rates.amax(1, keepdim=True)).sum())
        notes = [note for note in planned.notes if "poles were moved to the slowest rate" in note]
        assert notes == ([note for note in notes if note.startswith(f"{moved} of {alone.numel()} ")] if moved else [])
        assert len(notes) == (moved > 0)
        assert planned.eigenvector_condition <= 1e3
    assert unstable, "no reduced system was unstable: the test needs other data"


def test_channels_that_are_too_ill_conditioned_take_the_other_projection():
    layer, x = mamba(d_model=8), sequences(d_model=8)
    strict = plan(layer, 4, ChannelBasis(max_condition=1.0), x)
    assert (
        "16 of 16 channels were projected by Galerkin's method: the balanced projection is too ill-conditioned"
        in strict.notes
    )
    galerkin = plan(layer, 4, ChannelBasis(projection="galerkin"), x)
    torch.testing.assert_close(strict.payload.cut.rates, galerkin.payload.cut.rates, rtol=1e-10, atol=0)


def test_balance_gives_hankel_singular_values():
    """Of a time-invariant system, from its own Gramians."""
    g = torch.Generator().manual_seed(1)
    poles = -torch.rand(3, 6, generator=g, dtype=torch.float64)
    B, C = (
        torch.randn(3, 6, 1, generator=g, dtype=torch.float64),
        torch.randn(3, 1, 6, generator=g, dtype=torch.float64),
    )
    system = hsv.DiagonalStateSpace(poles, B, C, dt=0)
    values, reach, see = balance(hsv.controllability_gramian(system), hsv.observability_gramian(system))
    exact = hsv.hankel_singular_values(system)
    # Squaring into a Gramian leaves half the digits of the small values.
    torch.testing.assert_close(values, exact, rtol=0, atol=1e-7 * float(exact.max()))
    torch.testing.assert_close(see.mT @ reach, torch.diag_embed(values), rtol=0, atol=1e-10)


def test_joint_diagonalisation():
    g = torch.Generator().manual_seed(2)
    V0 = torch.linalg.qr(torch.randn(7, 7, generator=g, dtype=torch.float64)).Q
    exact = V0 @ torch.diag_embed(torch.randn(5, 7, generator=g, dtype=torch.float64)) @ V0.mT
    V, left = joint_diagonalizer(exact)
    assert left < 1e-14
    torch.testing.assert_close(V.mT @ V, torch.eye(7, dtype=torch.float64), rtol=0, atol=tolerance("float64"))
    torch.testing.assert_close((V0.mT @ V).abs().amax(0), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-7)

    noise = torch.randn(5, 7, 7, generator=g, dtype=torch.float64)
    noisy = exact + 0.1 * (noise + noise.mT)
    V, left = joint_diagonalizer(noisy)
    start = torch.linalg.eigh(noisy.mean(0)).eigenvectors

    def share(of):
        turned = of.mT @ noisy @ of
        off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
        return float((off**2).sum() / (noisy**2).sum())

    assert left == pytest.approx(share(V), abs=1e-12)
    assert left < share(start)
    for seed in range(20):  # no small rotation does better
        small = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert share(V @ torch.linalg.matrix_exp(1e-2 * (small - small.mT))) > left


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_without_transforms_nothing_is_neglected_where_the_channels_agree(spread):
    layer, x = mamba(8), sequences()
    with torch.no_grad():
        g = torch.Generator().manual_seed(3)
        scale = torch.rand(8, 1, generator=g, dtype=torch.float64)  # every A a multiple of one
        layer.A_log.copy_(
            torch.arange(1.0, 9.0).log() + scale + spread * torch.randn(8, 8, generator=g, dtype=torch.float64)
        )
    kept, with_transforms = cut(layer, 4, SharedBasis(), x)
    if spread:
        with pytest.raises(
            hsv_torch.CutRefusedError, match=r"% of the reduced state matrices would be neglected, above the limit 0.1%"
        ):
            plan(layer, 4, SharedBasis(transforms=False, max_neglected=0.001), x)
        small, planned = cut(layer, 4, SharedBasis(transforms=False, max_neglected=0.5), x)
        assert relative_error(small, kept, x) > 1e-4
    else:
        small, planned = cut(layer, 4, SharedBasis(transforms=False), x)
        torch.testing.assert_close(small(x), kept(x), rtol=0, atol=1e-11)
        assert any("neglects 0.00%" in note for note in planned.notes)
    np.testing.assert_array_equal(planned.hankel_singular_values, with_transforms.hankel_singular_values)
    assert small.B_transform is None
    assert small.n_features == small.n_states == 4


def test_a_shared_basis_is_the_projection_that_it_says():
    """By brute force: the projected system of each channel, its matrix exponential at every step."""
    layer, x = mamba(6, 2), sequences(3, 12, 2)
    small, planned = cut(layer, 3, SharedBasis(), x)
    right, left = planned.payload.cut.features
    torch.testing.assert_close(left.mT @ right, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    with torch.no_grad():
        q = layer.quantities(x)
        A = torch.diag_embed(-layer.A_log.exp())
        reduced = left.mT @ A @ right
        z, outputs = torch.zeros(3, 4, 3, dtype=torch.float64), []
        for t in range(12):
            decay = torch.linalg.matrix_exp(q.delta[:, t, :, None, None] * reduced)
            z = (decay @ z[..., None])[..., 0] + (q.delta * q.u)[:, t, :, None] * (q.B[:, t] @ left)[:, None]
            outputs.append((z * (q.C[:, t] @ right)[:, None]).sum(-1) + layer.D * q.u[:, t])
        expected = layer.out_proj(torch.stack(outputs, 1) * q.gate)
    torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-11)
    rows = layer.x_proj.weight.detach()[1:7], small.x_proj.weight.detach()[1:4]
    assert float(rows[1].norm(dim=1).std()) < 1e-12
    assert float(rows[1].norm(dim=1).mean()) == pytest.approx(float(rows[0].square().sum(1).mean().sqrt()))


@pytest.mark.parametrize(
    "criterion",
    [
        SharedBasis(),
        SharedBasis(transforms=False, max_neglected=0.5),
        ChannelBasis(),
        ChannelBasis(projection="galerkin"),
    ],
)
def test_moments_of_a_full_basis_are_gradients(criterion):
    """Through a change of basis that loses nothing: the new rows of x_proj and the new rates; new parameters have none."""
    layer, x = mamba(5, 3), sequences(d_model=3)
    if criterion.__class__ is SharedBasis and criterion.transforms is False:
        with torch.no_grad():
            layer.A_log.copy_(torch.arange(1.0, 6.0).log().expand_as(layer.A_log))
    adapter, target = hsv_torch.adapter_of(layer), sequences(seed=4, d_model=3)

    def gradients(of):
        of.zero_grad()
        (of(x) - target).square().mean().backward()
        return {name: of.get_parameter(name).grad for name in adapter.parameter_names(of)}

    old = gradients(layer)
    small, planned = cut(layer, 5, criterion, x)
    new, carried = gradients(small), adapter.pull_back(planned, old, squared=False)
    assert set(carried) == {"A_log", "x_proj.weight"}
    if small.B_transform is not None and small.A_imag is None:
        assert set(new) == {"A_log", "x_proj.weight", "B_transform", "C_transform"}
    rows, expected = carried["x_proj.weight"], new["x_proj.weight"]
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert carried["A_log"].shape == new["A_log"].shape


def test_a_complex_basis_keeps_the_outputs_real_and_the_same():
    layer, x = mamba(), sequences()
    orders = [r for r in range(2, 9) if cut(layer, r, ChannelBasis(), x)[0].A_imag is not None]
    assert orders, "no reduced system had complex poles: the test needs other data"
    small, planned = cut(layer, orders[0], ChannelBasis(), x)
    assert small.B_transform.shape == (8, orders[0], 12, 2)
    transforms, rates = planned.payload.cut.transforms, planned.payload.cut.rates
    with torch.no_grad():  # the impulse response of each channel is that of a real system
        response = torch.einsum(
            "drf,drt,drg->dtfg", transforms[1], (rates[..., None] * torch.arange(5.0)).exp(), transforms[0]
        )
    assert float(response.imag.abs().max()) < 1e-9 * float(response.abs().max())


@pytest.mark.parametrize("first", [SharedBasis(), ChannelBasis(), ChannelBasis(projection="galerkin")])
def test_a_layer_with_transforms_is_cut_again(first):
    layer, x = mamba(), sequences()
    middle, _ = cut(layer, 6, first, x)
    same, _ = cut(middle, 6, ChannelBasis(), x)
    # A basis of a channel may have a condition of up to 1e3.
    torch.testing.assert_close(same(x), middle(x), rtol=0, atol=1e-9)
    for criterion in (ChannelBasis(), ChannelBasis(projection="galerkin")):
        small, planned = cut(middle, 3, criterion, x)
        assert (small.n_states, small.n_features) == (3, middle.n_features)
        assert bool((planned.payload.cut.rates.real < 0).all())
        if criterion.projection == "balanced":  # as close as one cut to that size, or nearly
            at_once, _ = cut(layer, 3, first, x)
            assert relative_error(small, layer, x) < 1.2 * relative_error(at_once, layer, x)
    assert hsv_torch.adapter_of(middle).default_criterion(middle) == ChannelBasis()
    for criterion in (StateChoice(), SharedBasis(), ChannelBasis("mean_system")):
        with pytest.raises(hsv_torch.CutRefusedError, match=r"since an earlier cut.*use hsv_torch.ChannelBasis\("):
            plan(middle, 3, criterion, x)


def test_moments_of_transforms_that_are_cut_again():
    """Without loss: the carried moments are the gradients of the new transforms."""
    layer, x = mamba(8, 3), sequences(d_model=3)
    middle, _ = cut(layer, 4, ChannelBasis(), x)
    adapter, target = hsv_torch.adapter_of(middle), sequences(seed=4, d_model=3)

    def gradients(of):
        of.zero_grad()
        (of(x) - target).square().mean().backward()
        return {name: of.get_parameter(name).grad for name in adapter.parameter_names(of)}

    old = gradients(middle)
    small, planned = cut(middle, 4, ChannelBasis(), x)
    assert small.A_imag is not None, "the test needs complex transforms"
    new, carried = gradients(small), adapter.pull_back(planned, old, squared=False)
    assert set(new) == set(carried)
    for name in ("x_proj.weight", "B_transform", "C_transform"):
        torch.testing.assert_close(carried[name], new[name], rtol=0, atol=1e-8 * float(new[name].abs().max()))
    second = adapter.pull_back(planned, {name: g**2 for name, g in old.items()}, squared=True)
    assert all(bool((moment >= 0).all()) for moment in second.values())


def test_second_moments_of_a_layer_with_transforms_are_those_of_its_states():
    """P by brute force; Q is unbiased: the mean over many draws of the signs comes near the exact recursion."""
    layer, x = mamba(6, 2), sequences(4, 10, 2)
    middle, _ = cut(layer, 3, ChannelBasis(), x)
    adapter = hsv_torch.adapter_of(middle)
    observation = adapter.observe(middle, ChannelBasis())
    lengths = torch.tensor([10, 4, 7, 1])
    for _ in range(150):
        observation.update(middle, (x,), {"lengths": lengths})
    P, Q = observation.channel_gramians()
    view = adapter.view(middle)
    rates, (Bt, Ct) = view.rates(), view.transforms()
    expected_P, expected_Q, steps = 0.0, 0.0, 0
    with torch.no_grad():
        q = middle.quantities(x, lengths)
        weight = q.gate * middle.out_proj.weight.norm(dim=0)
        for i, n in enumerate(lengths.tolist()):
            decay = (q.delta[i, :n, :, None] * rates).exp()
            h, g = torch.zeros(4, 3, dtype=rates.dtype), torch.zeros(4, 3, 3, dtype=rates.dtype)
            for t in range(n):
                h = decay[t] * h + (q.delta * q.u)[i, t, :, None] * (Bt @ q.B[i, t].to(Bt.dtype))
                expected_P = expected_P + h[:, :, None] * h[:, None].conj()
            for t in reversed(range(n)):
                c = weight[i, t, :, None] * (Ct @ q.C[i, t].to(Ct.dtype)).conj()
                g = g + c[:, :, None] * c[:, None].conj()
                expected_Q = expected_Q + g
                g = decay[t].conj()[:, :, None] * decay[t][:, None] * g
            steps += n
    expected_P, expected_Q = expected_P / steps, expected_Q / steps
    torch.testing.assert_close(P, expected_P, rtol=0, atol=1e-11 * float(expected_P.abs().max()))
    # Random signs: 150 draws leave some per cent.
    assert float((Q - expected_Q).norm() / expected_Q.norm()) < 0.1


def test_bad_arguments():
    for make, message in (
        (lambda: SharedBasis("red"), r"`gramians` must be one of 'recorded', 'white', got 'red'"),
        (lambda: SharedBasis(transforms="yes"), r"`transforms` must be True, False or None"),
        (lambda: SharedBasis(max_neglected=2.0), r"`max_neglected` is a share and must be in \[0, 1\], got 2.0"),
        (lambda: ChannelBasis("red"), r"`gramians` must be one of 'time_varying', 'mean_system'"),
        (lambda: ChannelBasis(projection="oblique"), r"`projection` must be one of 'balanced', 'galerkin'"),
        (lambda: ChannelBasis(max_condition=0.5), r"`max_condition` must be finite and at least 1, got 0.5"),
    ):
        with pytest.raises(hsv.HsvError, match=message):
            make()


def test_the_mean_system_is_truncated_as_a_system():
    """Poles, and the impulse response from u to y, are those of hsv's balanced truncation of each channel's mean system."""
    layer, x = mamba(8, 2), sequences(d_model=2)
    _, planned = cut(layer, 3, ChannelBasis("mean_system"), x)
    assert len(planned.notes) == 1
    with torch.no_grad():
        q = layer.quantities(x)
        B, C = (part.mean((0, 1)).expand(4, 8) for part in (q.B, q.C))
        system = hsv.DiagonalStateSpace(-layer.A_log.exp(), B[..., None], C[:, None], dt=0)
    reduced = hsv.balanced_truncation(system, 3)
    np.testing.assert_allclose(planned.hankel_singular_values, reduced.hankel_singular_values, rtol=1e-9, atol=1e-15)
    rates, (Bt, Ct) = planned.payload.cut.rates, planned.payload.cut.transforms
    dtype = torch.complex128
    w = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    write, read = (Bt.to(dtype) @ B.to(dtype)[..., None])[..., 0], (Ct.to(dtype) @ C.to(dtype)[..., None])[..., 0]
    response = (read * write / (1j * w[:, None, None] - rates)).sum(-1).T  # (d, frequencies)
    expected = torch.as_tensor(reduced.system.frequency_response(w))[..., 0, 0]
    torch.testing.assert_close(response, expected.reshape(response.shape), rtol=1e-7, atol=1e-12)
