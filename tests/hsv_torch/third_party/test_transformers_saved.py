"""A compressed model of transformers goes through `save_pretrained` and stock `from_pretrained`."""

import pytest
import torch
import transformers

import hsv
import hsv_torch
from hsv_torch.third_party.transformers import update_config

MODELS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, {}),
    "mamba2": (
        transformers.Mamba2Config,
        transformers.Mamba2ForCausalLM,
        {"num_heads": 4, "head_dim": 8, "n_groups": 2},
    ),
    "falcon mamba": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM, {}),
}


def model(name="mamba", seed=0):
    configuration, kind, options = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = configuration(vocab_size=9, hidden_size=16, state_size=8, num_hidden_layers=2, **options)
        return kind(config).eval()


def tokens(*shape, seed=1):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_one_size_loads_in_stock_transformers(name, tmp_path):
    net, x = model(name), tokens(3, 20)
    sizes = hsv_torch.Sizes(uniform=True)
    hsv_torch.compress_(net, hsv.HankelSum(keep=0.8), sizes=sizes, calibration=tokens(16, 32, seed=2))
    n_states = update_config(net)
    assert n_states == net.config.state_size < 8
    net.save_pretrained(tmp_path)
    loaded = MODELS[name][1].from_pretrained(tmp_path).eval()
    assert loaded.config.state_size == n_states
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, net(x).logits, rtol=0, atol=0)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(x[:, :4], **options), net.generate(x[:, :4], **options))


def test_layers_of_different_sizes_are_refused_and_go_through_our_checkpoint(tmp_path):
    net, x = model(), tokens(3, 20)
    hsv_torch.compress_(net, 3, layers=["backbone.layers.0.mixer"], calibration=tokens(16, 32, seed=2))
    with pytest.raises(hsv.HsvError, match=r"one number for all layers, and theirs are .*0.mixer': 3.*1.mixer': 8"):
        update_config(net)
    assert net.config.state_size == 8
    hsv_torch.save_checkpoint(net, tmp_path / "net.safetensors")
    fresh = model(seed=4)
    hsv_torch.load_into(fresh, tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(fresh(x).logits, net(x).logits, rtol=0, atol=0)


def test_what_from_pretrained_would_not_build_is_refused():
    with pytest.raises(hsv.HsvError, match=r"a Linear has no state-space layers or no `config.state_size`"):
        update_config(torch.nn.Linear(2, 2))
    net = model()
    net.backbone.layers[1].mixer = hsv_torch.Mamba(16, 8)
    with pytest.raises(hsv.HsvError, match=r"\['backbone.layers.1.mixer'\] are no mixers of transformers"):
        update_config(net)
