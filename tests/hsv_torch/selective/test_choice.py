"""Choosing states: lossless cases, the elimination, what compensation buys, moments."""

import itertools

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch import StateChoice
from hsv_torch.selective._choice import greedy_elimination, prediction
from tests.hsv_torch.selective.layers import cut, mamba, plan, relative_error, sequences

SCORES = ("greedy", "hankel", "ghost", "second_moment")


def rows(layer):
    """The rows of x_proj for B and C, as views."""
    n = layer.n_states
    return layer.x_proj.weight[layer.dt_rank : layer.dt_rank + n], layer.x_proj.weight[layer.dt_rank + n :]


def with_silent_states(n=5, k=4):
    """A layer with `k` states beside `n` others that no input reaches."""
    layer = mamba(n + k)
    with torch.no_grad():
        rows(layer)[0][[0, 3, 4, 8][:k]] = 0.0
    return layer


def with_copies(n=4):
    """A layer whose states 1 and 3 are followed by multiples of them, in every channel."""
    layer = mamba(n + 2)
    with torch.no_grad():
        for copied, factor, original in ((n, 0.7, 1), (n + 1, -2.0, 3)):
            layer.A_log[:, copied] = layer.A_log[:, original]
            B, _ = rows(layer)
            B[copied] = factor * B[original]
    return layer


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("compensate", [False, True])
def test_states_that_are_never_excited_go_without_a_trace(score, compensate):
    layer, x = with_silent_states(), sequences()
    small, planned = cut(layer, hsv.Threshold(1e-9), StateChoice(score, compensate=compensate), x)
    assert small.n_states == 5
    assert bool((planned.hankel_singular_values[5:] == 0).all())
    new = sequences(seed=9)
    torch.testing.assert_close(small(new), layer(new), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_states_are_made_up_for_exactly(dtype):
    layer, x = with_copies().to(dtype), sequences(dtype=dtype)
    small, planned = cut(layer, 4, StateChoice("greedy"), x)
    new = sequences(seed=9, dtype=dtype)
    torch.testing.assert_close(small(new), layer(new), rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-4)
    values = planned.hankel_singular_values
    # In single precision the copies are copies to 1e-7 of their size only.
    assert values[4] < (1e-6 if dtype == torch.float64 else 1e-3) * values[0]
    assert values[3] > 1e-3 * values[0]


@pytest.mark.parametrize("make", [with_silent_states, with_copies], ids=["silent", "copies"])
def test_moments_of_a_lossless_choice_are_gradients_of_the_small_layer(make):
    layer, x = make(), sequences()
    n_states = 5 if make is with_silent_states else 4
    adapter = hsv_torch.adapter_of(layer)
    target = sequences(seed=4)

    def gradients(of):
        of.zero_grad()
        (of(x) - target).square().mean().backward()
        return {name: of.get_parameter(name).grad for name in adapter.parameter_names(of)}

    old = gradients(layer)
    small, planned = cut(layer, n_states, StateChoice("greedy"), x)
    new, carried = gradients(small), adapter.pull_back(planned, old, squared=False)
    for name, gradient in new.items():
        torch.testing.assert_close(carried[name], gradient, rtol=0, atol=1e-9 * float(gradient.abs().max()))
    second = adapter.pull_back(planned, {name: g**2 for name, g in old.items()}, squared=True)
    for name, moment in second.items():
        assert moment.shape == new[name].shape
        assert bool((moment >= 0).all())


def test_second_moments_are_carried_by_the_squared_jacobian():
    """Every entry of the Jacobian by one covector at a time."""
    layer, x = mamba(4, 2), sequences(d_model=2)
    adapter = hsv_torch.adapter_of(layer)
    planned = plan(layer, 2, StateChoice("greedy"), x)
    names = adapter.parameter_names(layer)
    zero = {name: torch.zeros_like(layer.get_parameter(name)) for name in names}
    for name in names:
        for index in itertools.product(*(range(size) for size in zero[name].shape)):
            unit = {key: value.clone() for key, value in zero.items()}
            unit[name][index] = 1.0
            first, second = (adapter.pull_back(planned, unit, squared=s) for s in (False, True))
            for key, row in first.items():
                torch.testing.assert_close(second[key], row**2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("score", ["greedy", "hankel", "ghost", "magnitude", "random"])
def test_compensation_lowers_the_error_on_the_recorded_sequences(score):
    """On the average of layers and sizes; of a single one it may not, for C and the states of one moment depend on one another."""
    errors = [
        [relative_error(cut(layer, n, StateChoice(score, compensate=c), x)[0], layer, x) for c in (True, False)]
        for layer, x in ((mamba(seed=seed), sequences(seed=10 + seed)) for seed in range(4))
        for n in (2, 5, 8)
    ]
    with_it, without = np.mean(errors, axis=0)
    assert with_it < 0.75 * without


def test_kept_states_move_as_before_and_the_rest_is_prediction():
    """The output error is that of the least-squares prediction of the states that go, by brute force over the states."""
    layer, x = mamba(6, 2), sequences(d_model=2)
    small, planned = cut(layer, 3, StateChoice("hankel"), x)
    kept = planned.payload.cut.features[1].argmax(0)
    with torch.no_grad():
        q = layer.quantities(x)
        h, states = torch.zeros(12, 4, 6, dtype=torch.float64), []
        for t in range(30):
            h = (q.delta[:, t, :, None] * -layer.A_log.exp()).exp() * h + (q.delta * q.u)[:, t, :, None] * q.B[
                :, t, None
            ]
            states.append(h)
        h = torch.stack(states, 1)  # (batch, length, d, n)
        weight = q.gate * layer.out_proj.weight.norm(dim=0)
        size = weight.square().mean(1, keepdim=True).sqrt()
        flat = (size[..., None] * h).flatten(0, 2)
        M = torch.linalg.lstsq(flat[:, kept], flat).solution.T  # (n, r)
        y = torch.einsum("blf,fr,bldr->bld", q.C, M, h[..., kept]) + layer.D * q.u
        expected = layer.out_proj(y * q.gate)
    torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-9)


def test_the_elimination_takes_off_what_it_says():
    """Against the residual of a least-squares prediction by the states chosen so far, and every other candidate."""
    g = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(40, 7, generator=g, dtype=torch.float64) for _ in range(2))
    X[:, 5] = X[:, 0] - 2 * X[:, 3]
    P, G = X.T @ X, Y.T @ Y
    order, values = greedy_elimination(P, G)
    assert sorted(order.tolist()) == list(range(7))

    def left(chosen):
        chosen = list(chosen)
        M = torch.linalg.lstsq(X[:, chosen], X).solution.T if chosen else torch.zeros(7, 0, dtype=torch.float64)
        residual = X - X[:, chosen] @ M.T
        return float((G * (residual.T @ residual)).sum())

    chosen: list[int] = []
    drops = []
    for j in order[:6].tolist():
        best = min(left([*chosen, k]) for k in range(7) if k not in chosen)
        before = left(chosen)
        chosen.append(j)
        assert left(chosen) == pytest.approx(best, rel=1e-9)
        drops.append(before - left(chosen))
    expected = [max(drops[k:]) ** 0.5 for k in range(6)]
    np.testing.assert_allclose(values[:6], expected, rtol=1e-9)
    assert float(values[6]) == 0.0
    assert left(chosen) < 1e-9 * left([])


def test_the_elimination_knows_that_two_states_say_the_same():
    """Two large copies and a small one apart: the scores keep both copies, the elimination one."""
    P = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.1, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    order, _ = greedy_elimination(P, torch.eye(3, dtype=torch.float64))
    assert order.tolist() == [1, 2, 0]


def test_prediction_of_states_that_hardly_move_is_left_out_and_noted():
    P = torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
    P[0, 1] = P[1, 0] = 1.0
    P[2, 0] = P[0, 2] = P[2, 1] = P[1, 2] = 0.5
    M, notes = prediction(P, torch.tensor([0, 1]))
    torch.testing.assert_close(M, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.25]], dtype=torch.float64))
    assert notes == (
        "1 directions of the kept states were left out of the prediction: they hardly move on the calibration data",
    )


def test_scores_follow_their_definitions():
    layer, x = mamba(5, 2), sequences(d_model=2)
    with torch.no_grad():
        q = layer.quantities(x)
        A = -layer.A_log.exp()
        norms = layer.out_proj.weight.norm(dim=0)
        poles = (q.delta[..., None] * A).exp().mean((0, 1))
        B = (q.delta[..., None] * q.B[:, :, None]).mean((0, 1))
        gain = B.abs() * q.C.mean((0, 1)).abs()
        h, ghost = torch.zeros(12, 4, 5, dtype=torch.float64), 0.0
        for t in range(30):
            h = (q.delta[:, t, :, None] * A).exp() * h + (q.delta * q.u)[:, t, :, None] * q.B[:, t, None]
            ghost = ghost + ((q.gate[:, t] * norms)[..., None] * q.C[:, t, None] * h).square().sum((0, 1))
        B_rows, C_rows = rows(layer)
        expected = {
            "mean_system": (gain / (1 - poles**2)).sum(0),
            "last": (gain**2 / (1 - poles) ** 2).sum(0),
            "aire": (gain**2 / (1 - poles**2)).sum(0),
            "ghost": (ghost / (12 * 30)).sqrt(),
            "magnitude": B_rows.norm(dim=1) * C_rows.norm(dim=1),
        }
    for score, values in expected.items():
        found = plan(layer, 2, StateChoice(score), x).hankel_singular_values
        np.testing.assert_allclose(found, values.sort(descending=True).values, rtol=1e-9, err_msg=score)


def test_random_choices_differ_by_seed():
    layer, x = mamba(), sequences()
    kept = {tuple(cut(layer, 3, StateChoice("random", seed=seed), x)[0].A_log[0].tolist()) for seed in (0, 0, 1, 2, 3)}
    assert len(kept) == 4


@pytest.mark.parametrize("arguments", [("best",), ("greedy", True, 1.5)])
def test_bad_arguments(arguments):
    with pytest.raises(
        hsv.HsvError, match=r"`score` must be one of 'greedy', .*got 'best'|`seed` must be an int, got 1.5"
    ):
        StateChoice(*arguments)
