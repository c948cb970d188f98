"""GHOST's setting on a small model: Mamba-2 trained on recall, states chosen after training, layers recalibrated in turn.

``python -m tests.hsv_torch.linear_attention.test_ghost`` prints the table of the documentation.
"""

import copy

import pytest
import torch
from torch import nn

import hsv_torch
from hsv_torch.selective import SharedBasis, StateChoice

N_KEYS, N_PAIRS, N_STATES, SIZES = 24, 8, 32, (16, 8, 4)
METHODS = {
    "random": StateChoice("random", compensate=False),
    "GHOST": StateChoice("ghost", compensate=False),
    "greedy, contributions together": StateChoice("greedy", compensate=False),
    "greedy with compensation, kept projection": StateChoice("greedy"),
    "best basis, kept projection": SharedBasis(),
}


def recall(batch, generator):
    """Pairs of a key and a value, then all keys again in another order: tokens, and the values to be recalled."""
    keys = torch.rand(batch, N_KEYS, generator=generator).argsort(1)[:, :N_PAIRS]
    values = torch.randint(N_KEYS, (batch, N_PAIRS), generator=generator)
    order = torch.rand(batch, N_PAIRS, generator=generator).argsort(1)
    pairs = torch.stack([keys, N_KEYS + values], 2).flatten(1)
    return torch.cat([pairs, keys.gather(1, order)], 1), values.gather(1, order)


def trained(seed, steps=400):
    """A model of two layers that recalls."""
    config = hsv_torch.SequenceModelConfig(
        layer="mamba2", d_model=32, n_states=N_STATES, n_blocks=2, head="language_model", vocabulary=2 * N_KEYS,
        n_outputs=N_KEYS, norm="rms", layer_options={"head_dim": 16},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hsv_torch.SequenceModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        tokens, answers = recall(64, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens)[:, -N_PAIRS:].flatten(0, 1), answers.flatten()).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, seed=10**6):
    """Share of the values that are recalled, in percent."""
    tokens, answers = recall(512, torch.Generator().manual_seed(seed))
    return 100 * float((model(tokens)[:, -N_PAIRS:].argmax(-1) == answers).double().mean())


def cut_in_turn(model, criterion, n_states, seed):
    """Cut one layer after the other, each by what it sees behind the layers that are cut already."""
    model = copy.deepcopy(model)
    calibration = recall(128, torch.Generator().manual_seed(10**7 + seed))[0]
    for name in hsv_torch.compressible_layers(model):
        hsv_torch.compress_(model, n_states, layers=[name], calibration=calibration, criterion=criterion)
    return model


def accuracies(seeds):
    """``{method: {n_states: mean accuracy}}``, and that of the whole models."""
    whole, found = [], {method: dict.fromkeys(SIZES, 0.0) for method in METHODS}
    for seed in seeds:
        model = trained(seed)
        whole.append(accuracy(model))
        for method, criterion in METHODS.items():
            for n_states in SIZES:
                cut = accuracy(cut_in_turn(model, criterion, n_states, seed))
                found[method][n_states] += cut / len(seeds)
    return sum(whole) / len(whole), found


def test_one_layer_cut_in_turn_sees_the_cut_before_it():
    model = trained(0, steps=2)
    cut = cut_in_turn(model, StateChoice("ghost", compensate=False), 5, 0)
    assert cut.n_states == (5, 5)
    assert model.n_states == (N_STATES, N_STATES)


@pytest.mark.slow
def test_methods_in_the_setting_of_ghost():
    whole, found = accuracies(range(2))
    assert whole > 95
    for n_states in SIZES[1:]:
        assert found["best basis, kept projection"][n_states] > found["GHOST"][n_states]
        assert found["GHOST"][n_states] > found["random"][n_states]


if __name__ == "__main__":
    whole, found = accuracies(range(3))
    print(f"whole: {whole:.1f} % at {N_STATES} states\n")
    print("| method | " + " | ".join(f"{n} states" for n in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    for method, row in found.items():
        print(f"| {method} | " + " | ".join(f"{row[n]:.1f}" for n in SIZES) + " |")
