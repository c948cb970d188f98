"""MambaMixer of Hugging Face transformers: equal outputs, equal cuts, generation after a cut."""

import importlib

import pytest
import torch
import transformers

import hsv
import hsv_torch
from hsv_torch import Mamba
from hsv_torch.selective import Auto, ChannelBasis, LocalDistillation, StateChoice
from hsv_torch.third_party import transformers as bridge

MambaMixer = bridge.modeling_mamba.MambaMixer
DynamicCache = transformers.DynamicCache
VOCABULARY = 17


def configuration(**options):
    sizes = {"hidden_size": 12, "state_size": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    return transformers.MambaConfig(**(sizes | options))


def mixer(seed=0, **options):
    """A mixer with random weights, those included that transformers would begin with at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = MambaMixer(configuration(**options), layer_idx=0).eval()
        with torch.no_grad():
            layer.D.normal_()
            layer.A_log.add_(torch.randn_like(layer.A_log) / 4)
    return layer


def our_twin(layer):
    config = layer.config
    ours = Mamba(
        config.hidden_size, layer.ssm_state_size, expand=config.expand, conv_kernel=config.conv_kernel,
        dt_rank=layer.time_step_rank, bias=config.use_bias, conv_bias=config.use_conv_bias,
    )  # fmt: skip
    ours.load_state_dict(layer.state_dict())
    return ours


def sequences(batch=3, length=20, d_model=12, seed=1):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(seed))


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_conv_bias": False},
        {"use_bias": True, "state_size": 3, "conv_kernel": 2},
        {"hidden_size": 40, "expand": 1, "time_step_rank": 5},
    ],
    ids=str,
)


@OPTIONS
def test_outputs_and_gradients_equal_the_slow_path(options):
    layer = mixer(**options)
    ours, x = our_twin(layer), sequences(d_model=layer.hidden_size)
    expected, y = layer(x), ours(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    target = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * target).sum(), list(layer.parameters()))
    for (name, _), a, b in zip(
        layer.named_parameters(),
        torch.autograd.grad((y * target).sum(), [ours.get_parameter(name) for name, _ in layer.named_parameters()]),
        theirs,
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()), msg=name)


@OPTIONS
def test_step_equals_their_step_from_a_cache(options):
    layer = mixer(**options)
    ours, x = our_twin(layer), sequences(d_model=layer.hidden_size)
    cache, state = DynamicCache(config=layer.config), ours.initial_state(3)
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
    q = bridge.MambaMixerView(layer).quantities((x,), {"attention_mask": mask})
    A = -layer.A_log.exp()
    h, y = torch.zeros(3, *A.shape), []
    for t in range(20):
        h = (q.delta[:, t, :, None] * A).exp() * h + (q.delta * q.u)[:, t, :, None] * q.B[:, t, None]
        y.append((h @ q.C[:, t, :, None])[..., 0] + layer.D * q.u[:, t])
    with torch.no_grad():
        expected = layer(x, attention_mask=mask)
        torch.testing.assert_close(layer.out_proj(torch.stack(y, 1) * q.gate), expected, rtol=0, atol=1e-5)
    if side is None:
        assert q.mask is None
    else:
        assert torch.equal(q.mask, mask.bool())


def test_a_call_that_continues_a_sequence_is_refused():
    layer, x = mixer(), sequences()
    view, cache = bridge.MambaMixerView(layer), DynamicCache(config=layer.config)
    view.quantities((x, cache), {})  # a cache with nothing in it yet, as models pass in evaluation
    with torch.no_grad():
        layer(x, cache_params=cache)
    with pytest.raises(hsv_torch.CutRefusedError, match="called to continue a sequence from its cache"):
        view.quantities((x,), {"cache_params": cache})
    args, kwargs = view.repeatable((x, cache), {})
    with torch.no_grad():
        torch.testing.assert_close(layer(*args, **kwargs), layer(x), rtol=0, atol=0)


def model(seed=0, **options):
    """A language model of two mixers with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = transformers.MambaForCausalLM(configuration(**options)).eval()
        with torch.no_grad():
            for block in made.backbone.layers:
                block.mixer.D.normal_()
                block.mixer.x_proj.weight.mul_(3)  # states that matter
    return made


def tokens(batch=4, length=16, seed=2):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


FIRST, SECOND = "backbone.layers.0.mixer", "backbone.layers.1.mixer"
CRITERIA = pytest.mark.parametrize(
    "criterion", [StateChoice(), StateChoice("hankel", compensate=False)], ids=lambda c: c.score
)


@CRITERIA
@OPTIONS
def test_the_same_cut_gives_the_same_outputs_as_ours(options, criterion):
    layer = mixer(**options)
    ours, x = our_twin(layer), sequences(d_model=layer.hidden_size)
    with torch.no_grad():
        full = layer(x)
        for one in (layer, ours):
            hsv_torch.compress_(one, 2, calibration=x, criterion=criterion)
        expected = layer(x)
        assert ours.n_states == layer.ssm_state_size == 2
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(full, expected, rtol=0, atol=1e-4)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


@CRITERIA
def test_layers_of_different_sizes_generate_with_their_cache(criterion):
    lm, prompt = model(), tokens(2, 5)
    for name, n_states in ((FIRST, 3), (SECOND, 6)):
        hsv_torch.compress_(lm, n_states, layers=[name], calibration=tokens(), criterion=criterion)
    mixers = [block.mixer for block in lm.backbone.layers]
    assert [m.ssm_state_size for m in mixers] == [3, 6]
    assert [m.x_proj.out_features for m in mixers] == [7, 13]
    assert lm.config.state_size == 8
    expected = prompt
    with torch.no_grad():
        for _ in range(8):
            logits = lm(expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(lm.generate(prompt, use_cache=True, **options), expected)
    assert lm(prompt, use_cache=True).cache_params.layers[1].recurrent_states[0].shape == (2, 24, 6)


def test_padding_on_either_side_is_left_out_of_the_calibration():
    batch, n_tokens = tokens(), [16, 9, 4, 12]
    mask = (torch.arange(16) < torch.tensor(n_tokens)[:, None]).long()
    shifted = torch.stack([row.roll(16 - n) for row, n in zip(batch, n_tokens, strict=True)])
    ways = {
        "alone": [row[None, :n] for row, n in zip(batch, n_tokens, strict=True)],
        "right": [{"input_ids": batch, "attention_mask": mask}],
        "left": [{"input_ids": shifted, "attention_mask": mask.flip(1)}],
    }
    cut = {name: model() for name in ways}
    for name, calibration in ways.items():
        hsv_torch.compress_(cut[name], 3, calibration=calibration)
    for name in ("right", "left"):
        for key, value in cut["alone"].state_dict().items():
            torch.testing.assert_close(cut[name].state_dict()[key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("criterion", [Auto(), LocalDistillation(steps=3)], ids=lambda c: type(c).__name__)
def test_methods_that_run_the_layer_again_leave_the_cache_out(criterion):
    lm, ids = model(), tokens(8)
    calibration = [{"input_ids": ids, "attention_mask": (torch.arange(16) < torch.arange(9, 17)[:, None]).long()}]
    hsv_torch.compress_(lm, 4, calibration=calibration, criterion=criterion)
    assert [block.mixer.ssm_state_size for block in lm.backbone.layers] == [4, 4]
    assert lm(ids).logits.isfinite().all()


def test_transforms_a_channel_are_refused():
    lm, ids = model(), tokens()
    with torch.no_grad():
        expected = lm(ids).logits
    with pytest.raises(
        hsv_torch.CutRefusedError, match=r"mixer': MambaMixer has no room .* convert the layer to hsv_torch"
    ):
        hsv_torch.compress_(lm, 4, calibration=ids, criterion=ChannelBasis())
    with torch.no_grad():
        torch.testing.assert_close(lm(ids).logits, expected, rtol=0, atol=0)


def test_a_cut_model_is_saved_and_loaded(tmp_path):
    lm, ids = model(), tokens()
    hsv_torch.compress_(lm, 5, calibration=ids)
    with torch.no_grad():
        expected = lm(ids).logits
    lm.config.state_size = 5
    lm.save_pretrained(tmp_path / "pretrained")
    again = transformers.MambaForCausalLM.from_pretrained(tmp_path / "pretrained").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)

    hsv_torch.compress_(lm, 2, layers=[SECOND], calibration=ids)
    with torch.no_grad():
        expected = lm(ids).logits
    hsv_torch.save_checkpoint(lm, tmp_path / "checkpoint.safetensors")
    fresh = model(seed=3)
    hsv_torch.load_into(fresh, tmp_path / "checkpoint.safetensors")
    assert [block.mixer.ssm_state_size for block in fresh.backbone.layers] == [5, 2]
    with torch.no_grad():
        torch.testing.assert_close(fresh(ids).logits, expected, rtol=0, atol=0)


def test_training_goes_on_after_a_cut_and_a_cut_that_is_put_back_left_no_trace():
    lm, ids = model().train(), tokens()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)

    def step():
        optimizer.zero_grad()
        loss = lm(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    before = step()
    with torch.no_grad():
        expected = lm(ids).logits
    compressor = hsv_torch.InTrainingCompressor(
        lm,
        optimizer,
        rule=hsv.Order(2),
        schedule=hsv_torch.Schedule(total_steps=10, window=(0.0, 0.5), attempts=2),
        calibration=[ids],
        guard=hsv_torch.Rollback(lambda: -float(lm.backbone.layers[0].mixer.ssm_state_size < 8), max_drop=0.5),
    )
    while not compressor.done and not compressor.history.events:
        compressor.step()
    assert compressor.history.events[0].undone
    mixers = [block.mixer for block in lm.backbone.layers]
    assert [m.ssm_state_size for m in mixers] == [m.A_log.shape[1] for m in mixers] == [8, 8]
    with torch.no_grad():
        torch.testing.assert_close(lm(ids).logits, expected, rtol=0, atol=0)

    hsv_torch.compress_(lm, 2, calibration=ids, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in lm.parameters()}
    losses = [step() for _ in range(15)]
    assert losses[-1] < before


def test_a_missing_package_is_said(hide_package):
    hide_package("transformers")
    with pytest.raises(hsv.MissingBackendError, match=r"`transformers.*` is needed here .*pip install transformers"):
        importlib.reload(bridge)
