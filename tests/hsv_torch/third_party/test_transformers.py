"""MambaMixer of Hugging Face transformers: equal outputs, equal cuts, generation after a cut."""

import pytest
import torch
import transformers

import hsv_torch
from hsv_torch import Mamba
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
