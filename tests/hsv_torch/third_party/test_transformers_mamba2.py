"""Mamba2Mixer of Hugging Face transformers: equal outputs, cuts by choosing states, generation after a cut."""

import pytest
import torch
import transformers

import hsv
import hsv_torch
from hsv_torch import Mamba2
from hsv_torch.selective import Auto, ChannelBasis, LocalDistillation, SharedBasis, StateChoice
from hsv_torch.testing import check_adapter
from hsv_torch.third_party import transformers as bridge

Mamba2Mixer = bridge.modeling_mamba2.Mamba2Mixer
DynamicCache = transformers.DynamicCache
VOCABULARY = 17
CHOICE = StateChoice(compensate=False)


def configuration(**options):
    sizes = {
        "hidden_size": 12, "state_size": 8, "num_heads": 6, "head_dim": 4, "n_groups": 2, "expand": 2, "chunk_size": 8,
        "num_hidden_layers": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return transformers.Mamba2Config(**(sizes | options))


def mixer(seed=0, **options):
    """A mixer with random weights, those included that transformers would begin with at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = Mamba2Mixer(configuration(**options), layer_idx=0).eval()
        with torch.no_grad():
            for parameter in (layer.D, layer.norm.weight, layer.A_log):
                parameter.normal_()
    return layer


def our_twin(layer):
    config = layer.norm
    ours = Mamba2(
        layer.hidden_size, layer.ssm_state_size, expand=layer.intermediate_size // layer.hidden_size, head_dim=layer.head_dim,
        n_groups=layer.n_groups, conv_kernel=layer.conv_kernel_size, bias=layer.use_bias, conv_bias=layer.use_conv_bias,
        norm_eps=config.variance_epsilon, dt_limit=layer.time_step_limit,
    )  # fmt: skip
    ours.load_state_dict(layer.state_dict())
    return ours


def sequences(batch=3, length=20, d_model=12, seed=1):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed))


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_groups": 1, "use_conv_bias": False},
        {"use_bias": True, "state_size": 3, "conv_kernel": 2, "n_groups": 3},
        {"hidden_size": 24, "expand": 1, "num_heads": 1, "head_dim": 24, "n_groups": 1, "time_step_limit": (0.01, 0.5)},
    ],
    ids=str,
)


@OPTIONS
def test_outputs_and_gradients_equal_theirs(options):
    layer = mixer(**options)
    ours, x = our_twin(layer), sequences(d_model=layer.hidden_size)
    expected, y = layer(x), ours(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    target = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * target).sum(), list(layer.parameters()))
    own = torch.autograd.grad((y * target).sum(), [ours.get_parameter(name) for name, _ in layer.named_parameters()])
    for (name, _), a, b in zip(layer.named_parameters(), own, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())), msg=name)


def test_step_equals_their_step_from_a_cache():
    layer = mixer(n_groups=2)
    ours, x = our_twin(layer), sequences()
    cache, state = DynamicCache(config=configuration()), ours.initial_state(3)
    with torch.no_grad():
        layer(x[:, :12], cache_params=cache)
        for t in range(12):
            _, state = ours.step(x[:, t], state)
        for t in range(12, 20):
            y, state = ours.step(x[:, t], state)
            torch.testing.assert_close(y, layer(x[:, t : t + 1], cache_params=cache)[:, 0], rtol=0, atol=1e-5)


@OPTIONS
@pytest.mark.parametrize("side", ["left", "right", None])
def test_quantities_are_those_of_the_mixer(options, side):
    layer = mixer(**options)
    x, mask = sequences(d_model=layer.hidden_size), None
    if side is not None:
        mask = torch.arange(20) < torch.tensor([20, 13, 1])[:, None]
        mask = (mask if side == "right" else mask.flip(1)).long()
    view = bridge.Mamba2MixerView(layer)
    q = view.quantities((x,), {"attention_mask": mask})
    share = layer.num_heads // layer.n_groups
    S, y = torch.zeros(3, layer.num_heads, layer.ssm_state_size, layer.head_dim, dtype=torch.float64), []
    for t in range(20):
        k, read = (m[:, t].repeat_interleave(share, 1) for m in (q.keys, q.queries))
        S = q.log_decay[:, t].exp()[..., None, None] * S + k[..., None] * q.values[:, t, :, None]
        y.append((read[..., None] * S).sum(-2))
    y = torch.stack(y, 1)
    parts = view.parts((x,), {"attention_mask": mask})
    with torch.no_grad():
        whole = (y + layer.D[:, None] * parts.x).flatten(2)
        expected = layer(x, attention_mask=mask)
        torch.testing.assert_close(layer.out_proj(layer.norm(whole.float(), parts.z)), expected, rtol=0, atol=1e-5)
    assert (q.mask is None) if mask is None else torch.equal(q.mask, mask.bool())


def test_the_weight_is_the_derivative_of_the_output_with_the_norm_held():
    layer = mixer(n_groups=2).double()
    view, x = bridge.Mamba2MixerView(layer), sequences().double()
    q, parts = view.quantities((x,), {}), view.parts((x,), {})
    y = hsv_torch.scan.gated_linear_attention(q.queries, q.keys, q.values, q.log_decay)
    gated = (y + layer.D[:, None] * parts.x).flatten(2) * torch.nn.functional.silu(parts.z)
    rms = gated.unflatten(2, (2, -1)).square().mean(-1, keepdim=True).add(layer.norm.variance_epsilon).sqrt()
    factor = (torch.nn.functional.silu(parts.z).unflatten(2, (2, -1)) / rms).flatten(2) * layer.norm.weight
    expected = factor * layer.out_proj.weight.norm(dim=0)
    torch.testing.assert_close(q.weight.flatten(2), expected, rtol=1e-9, atol=1e-12)


def model(seed=0, **options):
    """A language model of two mixers with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = transformers.Mamba2ForCausalLM(configuration(**options)).eval()
        with torch.no_grad():
            for block in made.backbone.layers:
                block.mixer.in_proj.weight.mul_(20)  # states that matter
    return made


def tokens(batch=4, length=16, seed=2):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


FIRST, SECOND = "backbone.layers.0.mixer", "backbone.layers.1.mixer"


def test_the_same_cut_gives_the_same_outputs_as_ours():
    layer = mixer()
    ours, x = our_twin(layer), sequences()
    with torch.no_grad():
        for one in (layer, ours):
            hsv_torch.compress_(one, 3, calibration=x, criterion=CHOICE)
        assert ours.n_states == layer.ssm_state_size == 3
        torch.testing.assert_close(ours(x), layer(x), rtol=0, atol=1e-5)
    for name, value in layer.state_dict().items():
        assert ours.state_dict()[name].shape == value.shape


def test_layers_of_different_sizes_generate_with_their_cache():
    lm, prompt = model(), tokens(2, 5)
    for name, n_states in ((FIRST, 3), (SECOND, 6)):
        hsv_torch.compress_(lm, n_states, layers=[name], calibration=tokens())
    mixers = [block.mixer for block in lm.backbone.layers]
    assert [m.ssm_state_size for m in mixers] == [3, 6]
    assert [m.conv_dim for m in mixers] == [m.conv1d.groups for m in mixers] == [24 + 4 * 3, 24 + 4 * 6]
    assert lm.config.state_size == 8
    expected = prompt
    with torch.no_grad():
        for _ in range(8):
            logits = lm(expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(lm.generate(prompt, use_cache=True, **options), expected)
    assert lm(prompt, use_cache=True).cache_params.layers[1].recurrent_states[0].shape == (2, 6, 4, 6)


@pytest.mark.parametrize(
    "criterion", [Auto((CHOICE, StateChoice("ghost", compensate=False))), LocalDistillation(CHOICE, steps=3)], ids=lambda c: type(c).__name__
)  # fmt: skip
def test_methods_that_run_the_layer_again_leave_the_cache_out(criterion):
    lm, ids = model(), tokens(8)
    calibration = [{"input_ids": ids, "attention_mask": (torch.arange(16) < torch.arange(9, 17)[:, None]).long()}]
    hsv_torch.compress_(lm, 4, calibration=calibration, criterion=criterion)
    assert [block.mixer.ssm_state_size for block in lm.backbone.layers] == [4, 4]
    assert lm(ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (
            StateChoice(),
            r"queries through an activation .*compensate=False\), or convert the layer to hsv_torch.Mamba2",
        ),
        (SharedBasis(), r"no room for transforms; use hsv_torch.StateChoice\(compensate=False\)"),
        (ChannelBasis(), r"ChannelBasis has no meaning for linear attention"),
    ],
    ids=str,
)
def test_what_the_mixer_has_no_room_for_is_refused(criterion, message):
    with pytest.raises(hsv_torch.CutRefusedError, match=message):
        hsv_torch.compress_(model(), 4, calibration=tokens(), criterion=criterion)


def test_a_call_that_continues_a_sequence_is_refused():
    layer, x = mixer(), sequences()
    view, cache = bridge.Mamba2MixerView(layer), DynamicCache(config=configuration())
    with torch.no_grad():
        layer(x, cache_params=cache)
    with pytest.raises(hsv_torch.CutRefusedError, match="called to continue a sequence from its cache"):
        view.quantities((x,), {"cache_params": cache})


def test_a_cut_model_is_saved_and_loaded(tmp_path):
    lm, ids = model(), tokens()
    hsv_torch.compress_(lm, 5, calibration=ids)
    lm.config.state_size = 5
    with torch.no_grad():
        expected = lm(ids).logits
    lm.save_pretrained(tmp_path / "pretrained")
    again = transformers.Mamba2ForCausalLM.from_pretrained(tmp_path / "pretrained").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
    hsv_torch.save_checkpoint(lm, tmp_path / "checkpoint.pt")
    fresh = model(seed=3)
    hsv_torch.load_into(fresh, tmp_path / "checkpoint.pt")
    assert [block.mixer.ssm_state_size for block in fresh.backbone.layers] == [5, 5]
    with torch.no_grad():
        torch.testing.assert_close(fresh(ids).logits, expected, rtol=0, atol=0)


def test_the_contract():
    found = check_adapter(
        lambda n_states: mixer(state_size=n_states).double(),
        inputs=sequences(length=12).double(),
        criteria=[CHOICE],
        tolerance=1e-5,
    )
    # The mixer's scan runs in single precision.
    assert {name for name, reason in found.items() if reason != "holds"} == {"error bound", "step", "lengths"}


def test_a_rule_sees_the_values_of_every_group():
    lm = model()
    report = hsv_torch.compress_(lm, hsv.PrefixShare(0.05), calibration=tokens())
    assert all(layer.hankel_singular_values.shape == (2, 8) for layer in report.layers)
    assert [layer.n_states_after for layer in report.layers] == [b.mixer.ssm_state_size for b in lm.backbone.layers]
