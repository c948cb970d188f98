"""Moments of linear attention against plain loops, and against the Gramians of the control library."""

import pytest
import torch

import hsv.time_varying
import hsv_torch
from hsv_torch import GatedLinearAttention, Mamba2
from hsv_torch.linear_attention import LinearAttentionObservation
from hsv_torch.linear_attention import _observation as module
from hsv_torch.selective import SharedBasis
from hsv_torch.selective._observation import Needs

LAYERS = pytest.mark.parametrize(
    "make",
    [
        lambda **o: Mamba2(4, 3, head_dim=2, n_groups=2, dtype=torch.float64, **o),
        lambda **o: GatedLinearAttention(4, 3, n_heads=2, decay="key", gate_normalizer=1.0, dtype=torch.float64, **o),
        lambda **o: GatedLinearAttention(4, 3, n_heads=2, decay="head", gate_normalizer=1.0, dtype=torch.float64, **o),
    ],
    ids=["mamba2", "key", "head"],
)


def sequences(batch=3, length=9, seed=1):
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observed(layer, *calls, inputs=("recorded",)):
    view = view_of(layer)
    observation = LinearAttentionObservation(view, Needs(frozenset({"shared", "contributions"}), frozenset(inputs)))
    for x, lengths in calls:
        observation.update(layer, (x, lengths), {})
    return view, observation


def view_of(layer):
    return hsv_torch.adapter_of(layer).view(layer)


def states(q, i, length):
    """States of one sequence, ``(length, heads, n, p)``, by the recursion."""
    heads, groups = q.values.shape[2], q.keys.shape[2]
    S, found = torch.zeros(heads, q.keys.shape[3], q.values.shape[3], dtype=torch.float64), []
    for t in range(length):
        for h in range(heads):
            g = h // (heads // groups)
            decay = q.log_decay[i, t].exp()
            decay = decay[h] if q.log_decay.ndim == 3 else decay[g][:, None]
            S[h] = decay * S[h] + torch.outer(q.keys[i, t, g], q.values[i, t, h])
        found.append(S.clone())
    return torch.stack(found)


@LAYERS
@pytest.mark.parametrize("piece", [1, 2**21])
def test_moments_are_those_of_the_recursion(make, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    layer, x = make(generator=torch.Generator().manual_seed(0)), sequences()
    lengths = torch.tensor([9, 4, 6])
    view, observation = observed(layer, (x[:2], lengths[:2]), (x[2:], lengths[2:]))
    q = view.quantities((x, lengths), {})
    groups, n, heads = q.keys.shape[2], q.keys.shape[3], q.values.shape[2]
    P, G, M = torch.zeros(3, groups, n, n, dtype=torch.float64)
    for i, length in enumerate(lengths.tolist()):
        S, w = states(q, i, length), q.weight[i, :length]
        size = w.square().mean(0).sqrt()
        for t in range(length):
            for h in range(heads):
                g = h // (heads // groups)
                read = q.queries[i, t, g]
                for c in range(w.shape[2]):
                    s = S[t, h, :, c]
                    P[g] += size[h, c] ** 2 * torch.outer(s, s)
                    share = (w[t, h, c] / size[h, c]) ** 2 / (heads // groups * w.shape[2])
                    G[g] += share * torch.outer(read, read)
                    M[g] += w[t, h, c] ** 2 * torch.outer(read * s, read * s)
    steps = float(lengths.sum())
    for found, expected in (
        (observation.second_moments(), P),
        (observation.readout(), G),
        (observation.contributions(), M),
    ):
        torch.testing.assert_close(found, expected / steps, rtol=1e-10, atol=1e-14)


@LAYERS
def test_leaving_states_out_costs_what_the_contributions_say(make):
    layer, x = make(generator=torch.Generator().manual_seed(0)), sequences()
    view, observation = observed(layer, (x, None))
    q, M = view.quantities((x,), {}), observation.contributions()
    groups, heads = q.keys.shape[2], q.values.shape[2]
    left_out = torch.tensor([True, False, True])
    lost = torch.zeros(groups, dtype=torch.float64)
    for i in range(3):
        S = states(q, i, 9)
        for h in range(heads):
            g = h // (heads // groups)
            wrong = torch.einsum("tn,tnc->tc", q.queries[i, :, g] * left_out, S[:, h]) * q.weight[i, :, h]
            lost[g] += wrong.square().sum()
    torch.testing.assert_close(M[:, left_out][:, :, left_out].sum((1, 2)), lost / 27, rtol=1e-10, atol=0)


@LAYERS
def test_white_gramians_are_those_of_the_control_library(make):
    layer, x = make(generator=torch.Generator().manual_seed(0)), sequences(1)
    view, observation = observed(layer, (x, None), inputs=("recorded", "white"))
    q = view.quantities((x,), {})
    size = q.weight[0].square().mean(0).sqrt()
    relative = q.weight[0] / size
    groups, share = q.keys.shape[2], q.values.shape[2] // q.keys.shape[2]
    for g in range(groups):
        P, Q = 0, 0
        for h in range(g * share, (g + 1) * share):
            a = q.log_decay[0].exp()
            a = a[:, h] if a.ndim == 2 else a[:, g]
            B, C = q.keys[0, :, g, :, None], q.queries[0, :, g, None]
            P = P + size[h].square().sum() * hsv.time_varying.controllability_gramians(a, B)[1:].mean(0)
            seen = relative[:, h].square().mean(-1).sqrt()[:, None, None] * C
            later = torch.cat([a[1:], torch.zeros_like(a[:1])])
            Q = Q + hsv.time_varying.observability_gramians(later, seen)[:-1].mean(0) / share
        torch.testing.assert_close(observation.second_moments("white")[g], P, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(observation.observability()[g], Q, rtol=1e-10, atol=1e-14)


def test_padding_and_holes_before_a_sequence_do_not_count():
    layer, x = Mamba2(4, 3, head_dim=2, dtype=torch.float64), sequences()
    lengths = torch.tensor([9, 2, 5])
    spoiled = torch.where((torch.arange(9) < lengths[:, None])[..., None], x, torch.nan)
    _, observation = observed(layer, (spoiled, lengths))
    _, alone = observed(layer, *((x[i : i + 1, :n], None) for i, n in enumerate(lengths.tolist())))
    for name in ("second_moments", "readout", "contributions"):
        torch.testing.assert_close(getattr(observation, name)(), getattr(alone, name)(), rtol=1e-12, atol=1e-15)
    assert observation.n_sequences == alone.n_sequences == 3


def test_what_cannot_be_used_is_refused_and_changes_nothing():
    layer, x = Mamba2(4, 3, head_dim=2, dtype=torch.float64), sequences()
    _, observation = observed(layer)
    with pytest.raises(hsv.HsvError, match="no calibration sequence has been seen"):
        observation.second_moments()
    observation.update(layer, (x,), {})
    before = observation.second_moments()
    with pytest.raises(hsv.HsvError, match=r"all of sequence 1 is padding"):
        observation.update(layer, (x, torch.tensor([9, 0, 3])), {})
    spoiled = x.clone()
    spoiled[2, 4] = torch.inf
    with pytest.raises(hsv.NonFiniteError, match=r"sequence 2 has a value of \w+ that is not finite at step 4"):
        observation.update(layer, (spoiled,), {})
    with pytest.raises(hsv.HsvError, match="called without a step"):
        observation.update(layer, (x[:, :0],), {})
    with pytest.raises(hsv.HsvError, match="made for another layer"):
        observation.update(Mamba2(4, 3, head_dim=2, dtype=torch.float64), (x,), {})
    assert torch.equal(observation.second_moments(), before)


def test_an_adapter_needs_what_calibration_has_shown():
    layer = Mamba2(4, 3, head_dim=2)
    with pytest.raises(hsv.HsvError, match="a Mamba2 is cut by what calibration data has shown of it"):
        hsv_torch.adapter_of(layer).reduce(layer, 2, SharedBasis())
    with pytest.raises(hsv.HsvError, match="pass `calibration`"):
        hsv_torch.compress_(layer, 2)
