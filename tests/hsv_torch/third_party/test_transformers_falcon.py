"""FalconMambaMixer of Hugging Face transformers, which normalises B and C over the states.

``python -m tests.hsv_torch.third_party.test_transformers_falcon`` prints the table of the documentation.
"""

import copy

import pytest
import torch
import transformers

import hsv_torch
from hsv_torch.selective import ChannelBasis, SharedBasis, StateChoice
from hsv_torch.selective._choice import prediction
from hsv_torch.testing import check_adapter
from hsv_torch.third_party import transformers as bridge

VOCABULARY = 17


def configuration(**options):
    sizes = {"hidden_size": 12, "state_size": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "use_mambapy": False}
    return transformers.FalconMambaConfig(**(sizes | options))


def mixer(seed=0, **options):
    """A mixer with random weights, and rows of B and C of different sizes, as trained ones have."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = bridge.modeling_falcon_mamba.FalconMambaMixer
        layer = made(configuration(**options), layer_idx=0, initialize_mixer_weights=False).eval()
        layer.init_falcon_mamba_weights()  # which needs the norms, that are made after the call that the constructor would do
        with torch.no_grad():
            layer.D.normal_()
            layer.A_log.add_(torch.randn_like(layer.A_log) / 4)
            n, rank = layer.ssm_state_size, layer.time_step_rank
            layer.x_proj.weight[rank:].mul_(torch.exp(torch.randn(2 * n))[:, None])
    return layer


def sequences(batch=3, length=20, d_model=12, seed=1):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed))


def by_the_quantities(layer, q):
    """The layer's output from the quantities of its view, step by step."""
    A = -layer.A_log.exp()
    h, y = torch.zeros(q.u.shape[0], *A.shape), []
    for t in range(q.u.shape[1]):
        h = (q.delta[:, t, :, None] * A).exp() * h + (q.delta * q.u)[:, t, :, None] * q.B[:, t, None]
        y.append((h @ q.C[:, t, :, None])[..., 0] + layer.D * q.u[:, t])
    return layer.out_proj(torch.stack(y, 1) * q.gate)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_quantities_are_those_of_the_mixer(side):
    layer, x, mask = mixer(), sequences(), None
    if side is not None:
        mask = torch.arange(20) < torch.tensor([20, 13, 1])[:, None]
        mask = (mask if side == "right" else mask.flip(1)).long()
    with torch.no_grad():
        q = bridge.FalconMambaMixerView(layer).quantities((x,), {"attention_mask": mask})
        torch.testing.assert_close(by_the_quantities(layer, q), layer(x, attention_mask=mask), rtol=0, atol=1e-5)
    steps = slice(None) if mask is None else mask.bool()
    squares = q.B.square().mean(-1)[steps]
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0, atol=1e-2)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def errors_at_half_the_states(seed, criterion):
    """Relative errors of a cut from 16 states to 8: with the gain, without it, and with B and C cut behind the norm, which no weights of the mixer can hold."""
    layer, x, held_out = mixer(seed, state_size=16), sequences(16, 40), sequences(8, 40, seed=5)
    view, adapter = bridge.FalconMambaMixerView(layer), hsv_torch.adapter_of(layer)
    expected = layer(held_out)
    observation = adapter.observe(layer, criterion)
    observation.update(layer, (x,), {})
    plan = adapter.reduce(layer, 8, criterion, observation)
    cut = plan.payload.cut
    small = copy.deepcopy(layer)
    adapter.apply(small, plan)
    found = {"with the gain": relative_error(small(held_out), expected)}
    small.D.mul_(cut.gain)
    small.out_proj.weight.div_(cut.gain)
    found["without"] = relative_error(small(held_out), expected)
    left = right = cut.features[1].float()
    kept = left.argmax(0)
    if criterion.compensate:
        right = prediction(observation.shared_gramians()[0], kept)[0].float()
    q = view.quantities((held_out,), {})
    q = bridge.Quantities(q.delta, q.B @ left, q.C @ right, q.u, q.gate, None)
    small.A_log.copy_(layer.A_log[:, kept])
    small.D.copy_(layer.D)
    small.out_proj.weight.copy_(layer.out_proj.weight)
    return found | {"cut behind the norm": relative_error(by_the_quantities(small, q), expected)}


@pytest.mark.parametrize("compensate", [False, True])
def test_the_gain_makes_up_for_the_norm_over_fewer_states(compensate):
    found = errors_at_half_the_states(0, StateChoice("hankel", compensate=compensate))
    assert found["with the gain"] < 0.25 * found["without"]
    assert found["cut behind the norm"] < found["with the gain"] < 3 * found["cut behind the norm"]


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.FalconMambaForCausalLM(configuration(pad_token_id=0, eos_token_id=0, bos_token_id=0)).eval()


def tokens(batch=4, length=16, seed=2):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_layers_of_different_sizes_generate_with_their_cache_and_are_loaded(tmp_path):
    lm, prompt = model(), tokens(2, 5)
    names = ["backbone.layers.0.mixer", "backbone.layers.1.mixer"]
    for name, n_states in zip(names, (3, 6), strict=True):
        hsv_torch.compress_(lm, n_states, layers=[name], calibration=tokens())
    mixers = [block.mixer for block in lm.backbone.layers]
    assert [m.ssm_state_size for m in mixers] == [m.b_layernorm.weight.shape[0] for m in mixers] == [3, 6]
    expected = prompt
    with torch.no_grad():
        for _ in range(8):
            logits = lm(expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
        whole = lm(prompt).logits
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(lm.generate(prompt, use_cache=True, **options), expected)
    hsv_torch.save_checkpoint(lm, tmp_path / "checkpoint.pt")
    fresh = model(seed=3)
    hsv_torch.load_into(fresh, tmp_path / "checkpoint.pt")
    with torch.no_grad():
        torch.testing.assert_close(fresh(prompt).logits, whole, rtol=0, atol=0)


def test_moments_of_what_the_gain_scales_are_carried():
    layer, x = mixer(), sequences()
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(x).square().mean().backward()
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in layer.named_parameters()}
    squares = optimizer.state[layer.D]["exp_avg_sq"].clone()
    old = layer.D.detach().clone()
    hsv_torch.compress_(layer, 4, calibration=x, optimizer=optimizer)
    gain = old / layer.D.detach()  # D is divided by it
    torch.testing.assert_close(gain, gain[:1].expand_as(gain), rtol=1e-5, atol=0)
    torch.testing.assert_close(optimizer.state[layer.D]["exp_avg"], before["D"] * gain, rtol=1e-5, atol=0)
    torch.testing.assert_close(optimizer.state[layer.D]["exp_avg_sq"], squares * gain**2, rtol=1e-5, atol=0)
    found = optimizer.state[layer.out_proj.weight]["exp_avg"]
    torch.testing.assert_close(found, before["out_proj.weight"] / gain[0], rtol=1e-5, atol=0)


def test_the_contract():
    inputs = sequences(length=10).double()
    found = check_adapter(lambda n_states: mixer(state_size=n_states).double(), inputs=inputs, tolerance=1e-4)
    # The norms run in single precision.
    assert {name for name, reason in found.items() if reason != "holds"} == {"error bound", "step", "lengths"}


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (ChannelBasis(), "FalconMambaMixer has no room"),
        (
            SharedBasis(transforms=False),
            "normalises B and C over the states, and a change of basis changes their norms",
        ),
    ],
    ids=str,
)
def test_what_the_norm_forbids_is_refused(criterion, message):
    with pytest.raises(hsv_torch.CutRefusedError, match=message):
        hsv_torch.compress_(mixer(), 4, calibration=sequences(), criterion=criterion)


if __name__ == "__main__":
    names = ("with the gain", "without", "cut behind the norm")
    print("| cut | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for criterion in (StateChoice("ghost", compensate=False), StateChoice()):
        found = [errors_at_half_the_states(seed, criterion) for seed in range(8)]
        means = (sum(row[name] for row in found) / len(found) for name in names)
        print(f"| `{criterion}` | " + " | ".join(f"{100 * mean:.1f} %" for mean in means) + " |")
