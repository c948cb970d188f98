import json

import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch.models import LAYER_KINDS
from tests.tolerances import tolerance

LAYERS = sorted(LAYER_KINDS)
BASE = {"layer": "lru", "d_model": 4, "n_states": 6, "head": "classification", "n_inputs": 2, "n_outputs": 3}
TOKENS = {"n_inputs": None, "vocabulary": 7}


def config(**values):
    return hsv_torch.SequenceModelConfig(**{**BASE, **values})


def model(seed=0, **values):
    torch.manual_seed(seed)
    return hsv_torch.SequenceModel(config(**values), dtype=torch.float64).eval()


def inputs(*lengths, channels=2):
    """Return real sequences of these lengths, padded with NaN, and the lengths."""
    torch.manual_seed(1)
    x = torch.full((len(lengths), max(lengths), channels), float("nan"), dtype=torch.float64)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = torch.randn(length, channels, dtype=torch.float64)
    return x, torch.tensor(lengths)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("head", ["classification", "regression", "language_model"])
@pytest.mark.parametrize("source", ["channels", "tokens"])
def test_every_layer_serves_every_head_and_input_and_learns(layer, head, source):
    net = model(layer=layer, head=head, n_blocks=2, n_states=(6, 5), **(TOKENS if source == "tokens" else {})).train()
    x = torch.randint(7, (3, 9)) if source == "tokens" else inputs(9, 9, 9)[0]
    y = net(x)
    assert y.shape == ((3, 9, 3) if head == "language_model" else (3, 3))
    assert net.n_states == (6, 5)
    y.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert len(hsv_torch.compressible_layers(net)) == 2


def test_the_model_is_what_its_formula_says():
    net = model(n_blocks=2, norm="layer", final_norm=True)
    x, _ = inputs(9, 9)
    hidden = x @ net.encoder.weight.T + net.encoder.bias
    for block in net.blocks:
        y = nn.functional.gelu(block.layer(block.norm.norm(hidden)))
        linear, gate = (y @ block.gate.weight.T + block.gate.bias).chunk(2, dim=-1)
        hidden = hidden + linear * torch.sigmoid(gate)
    expected = net.norm.norm(hidden).mean(dim=1) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), expected, rtol=tolerance(torch.float64), atol=tolerance(torch.float64))


def test_a_layer_with_its_own_gate_stands_in_a_plain_residual_unless_asked_otherwise():
    plain, gated = model(layer="mamba"), model(layer="mamba", activation="glu")
    x, _ = inputs(9, 9)
    [block] = plain.blocks
    hidden = plain.encoder(x)
    expected = plain.head((hidden + block.layer(block.norm.norm(hidden))).mean(dim=1))
    assert torch.equal(plain(x), expected)
    assert plain.blocks[0].gate is None
    assert gated.blocks[0].gate is not None
    assert model(activation="none").blocks[0].gate is None
    assert model(activation="gelu").blocks[0].gate is None


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", ["layer", "batch", "rms"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_has_no_influence_whatever_stands_in_it(layer, norm, pooling):
    net = model(layer=layer, norm=norm, pooling=pooling, final_norm=True, n_blocks=2)
    x, lengths = inputs(9, 4, 1)
    together = net(x, lengths)
    alone = torch.cat([net(x[i : i + 1, :length]) for i, length in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", [name for name, kind in LAYER_KINDS.items() if kind.can_be_bidirectional])
def test_layers_that_can_run_backwards_see_what_comes_and_still_no_padding(layer):
    net = model(layer=layer, bidirectional=True, pooling="last", n_blocks=2)
    x, lengths = inputs(9, 4)
    together = net(x, lengths)
    alone = torch.cat([net(x[i : i + 1, :length]) for i, length in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    [block, _] = net.blocks
    y = x[:1, :, [0, 1, 0, 1]].clone().requires_grad_()
    block.layer(y)[0, 0].sum().backward()
    assert y.grad[0, -1].abs().sum() > 0


def test_padded_tokens_may_be_anything_and_a_language_model_says_nothing_there():
    net = model(head="language_model", **TOKENS)
    x = torch.randint(7, (2, 6))
    padded = x.clone()
    padded[1, 4:] = -100
    scores = net(padded, torch.tensor([6, 4]))
    torch.testing.assert_close(scores[1, :4], net(x)[1, :4])
    assert (scores[1, 4:] == 0).all()


def test_batch_norm_takes_its_statistics_over_the_steps_that_are_not_padding():
    net = model(norm="batch").train()
    x, lengths = inputs(9, 4)
    net(x, lengths)
    steps = net.encoder(torch.cat([x[0], x[1, :4]]))
    norm = net.blocks[0].norm.norm
    torch.testing.assert_close(norm.running_mean, 0.1 * steps.mean(dim=0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * steps.var(dim=0))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("source", ["channels", "tokens"])
def test_step_by_step_a_language_model_says_the_same(layer, source):
    net = model(
        layer=layer, head="language_model", norm="batch", final_norm=True, n_blocks=2,
        **(TOKENS if source == "tokens" else {}),
    )  # fmt: skip
    x = torch.randint(7, (3, 9)) if source == "tokens" else inputs(9, 9, 9)[0]
    net.train()(x)  # statistics other than those at the start
    net.eval()
    state, scores = net.initial_state(3), []
    for t in range(9):
        y, state = net.step(x[:, t], state)
        scores.append(y)
    torch.testing.assert_close(torch.stack(scores, dim=1), net(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", ["element", "sequence"])
def test_dropout_has_a_fresh_mask_for_every_sequence(mask):
    net = model(dropout=0.5, dropout_mask=mask).train()
    torch.manual_seed(3)
    y = net.blocks[0].dropout(torch.ones(8, 20, 4))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    dropped = y == 0
    same_over_time = (dropped == dropped[:, :1]).all()
    assert bool(same_over_time) == (mask == "sequence")
    assert len(dropped[:, 0].unique(dim=0)) > 1
    assert torch.equal(net.eval().blocks[0].dropout(y), y)


def test_a_cut_model_is_saved_with_its_sizes_and_loaded_into_a_new_one(tmp_path):
    net, x = model(n_blocks=2, n_states=12), inputs(9, 9)[0]
    hsv_torch.compress_(net, hsv.Order(5), layers=["blocks.1.*"])
    assert net.n_states == (12, 5)
    hsv_torch.save_checkpoint(net, tmp_path / "net.pt", extra=net.config.to_dict())
    new = hsv_torch.SequenceModel(net.config, dtype=torch.float64)
    values = hsv_torch.load_into(new, tmp_path / "net.pt")
    assert hsv_torch.SequenceModelConfig.from_dict(values) == net.config
    assert torch.equal(new.eval()(x), net(x))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"n_blocks": 2, "n_states": (3, 4), "layer_options": {"max_phase": 0.5}, "dropout": 0.1, "norm": "rms"},
        {"layer": "mamba", "head": "language_model", **TOKENS, "layer_options": {"expand": 1}},
    ],
)
def test_a_configuration_survives_json(values):
    original = config(**values)
    assert hsv_torch.SequenceModelConfig.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert hsv_torch.SequenceModel(original).config is original


def test_options_reach_the_layer():
    assert model(layer_options={"max_phase": 0.5}).blocks[0].layer.max_phase == 0.5
    assert model(layer="mamba", layer_options={"expand": 3}).blocks[0].layer.d_inner == 12


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"layer": "gru"}, hsv.ShapeError, r"`layer` must be one of 'lru', .*got 'gru'"),
        ({"head": "softmax"}, hsv.ShapeError, r"`head` must be one of 'classification'"),
        ({"norm": "group"}, hsv.ShapeError, r"`norm` must be one of"),
        ({"pooling": "max"}, hsv.ShapeError, r"`pooling` must be one of"),
        ({"dropout_mask": "batch"}, hsv.ShapeError, r"`dropout_mask` must be one of"),
        ({"activation": "relu"}, hsv.ShapeError, r"`activation` must be one of"),
        ({"d_model": 0}, hsv.ShapeError, r"`d_model` must be at least 1, got 0"),
        ({"n_states": 2.5}, hsv.DtypeError, r"`n_states` must be an int"),
        ({"n_states": (3, 4)}, hsv.ShapeError, r"names 2 blocks, but `n_blocks` is 1"),
        ({"n_states": (3, 0), "n_blocks": 2}, hsv.ShapeError, r"`n_states` must be at least 1"),
        ({"dropout": 1.0}, hsv.HsvError, r"`dropout`.*\[0, 1\), got 1.0"),
        ({"dropout": "much"}, hsv.DtypeError, r"`dropout` must be a number"),
        ({"vocabulary": 7}, hsv.HsvError, r"exactly one.*n_inputs=2 and vocabulary=7"),
        ({"n_inputs": None}, hsv.HsvError, r"exactly one"),
        ({"layer_options": {"max_fase": 1.0}}, hsv.HsvError, r"LRU has no option 'max_fase'; did you mean 'max_phase'"),
        ({"layer_options": {"d_model": 3}}, hsv.HsvError, r"no option 'd_model'"),
        ({"layer_options": ["expand"]}, hsv.DtypeError, r"`layer_options` must map"),
        ({"bidirectional": True}, hsv.HsvError, r"LRU runs forwards only; layers that can: s5, s4d"),
        ({"bidirectional": True, "layer": "s5", "head": "language_model"}, hsv.HsvError, "must not see the steps"),
        ({"final_norm": 1}, hsv.DtypeError, r"`final_norm` must be True or False"),
    ],
)
def test_an_impossible_configuration_says_why(values, error, words):
    with pytest.raises(error, match=words):
        config(**values)


def test_a_dict_that_is_no_configuration_says_why():
    with pytest.raises(hsv.HsvError, match=r"unknown keys \['depth'\], missing keys \['n_outputs'\]"):
        hsv_torch.SequenceModelConfig.from_dict(
            {key: value for key, value in BASE.items() if key != "n_outputs"} | {"depth": 2}
        )
    with pytest.raises(TypeError, match="SequenceModelConfig, got dict"):
        hsv_torch.SequenceModel(BASE)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: model()(torch.zeros(2, 5, 3)), hsv.ShapeError, r"\(batch, length, 2\)"),
        (lambda: model()(torch.zeros(2, 5, 2)), hsv.DtypeError, "float32 and the layer torch.float64"),
        (lambda: model()(inputs(5)[0], torch.tensor([6])), hsv.ShapeError, r"lie in \[0, 5\]"),
        (lambda: model()(inputs(5)[0], torch.tensor([0])), hsv.ShapeError, "no step to pool"),
        (lambda: model()(torch.zeros(2, 0, 2, dtype=torch.float64)), hsv.ShapeError, "no step to pool"),
        (lambda: model(**TOKENS)(torch.zeros(2, 5)), hsv.DtypeError, "tokens, integers, got torch.float32"),
        (lambda: model(**TOKENS)(torch.zeros(5, dtype=torch.int64)), hsv.ShapeError, r"tokens \(batch, length\)"),
        (lambda: model(**TOKENS)(torch.full((1, 3), 7)), hsv.ShapeError, r"\[0, 7\), got 7 to 7"),
        (lambda: model().initial_state(1), hsv.HsvError, "only a language model.*'classification'"),
        (lambda: model(head="language_model").train().initial_state(1), hsv.HsvError, "model.eval"),
        (
            lambda: model(head="language_model").step(torch.zeros(1, 2, dtype=torch.float64), ()),
            hsv.ShapeError,
            "must have 1 entries",
        ),
    ],
)
def test_an_impossible_call_says_why(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_every_layer_of_the_package_has_a_short_name():
    own = {layer for layer in hsv_torch.registered_layer_types() if layer.__module__.startswith("hsv_torch.layers")}
    assert own == {kind.layer for kind in LAYER_KINDS.values()}


def test_a_language_model_compiles_in_one_graph():
    config = hsv_torch.SequenceModelConfig(
        layer="mamba", d_model=8, n_states=4, head="language_model", n_outputs=5, vocabulary=5
    )
    model = hsv_torch.SequenceModel(config)
    tokens = torch.randint(5, (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    assert torch.export.export(model.eval(), (tokens,)).module()(tokens).shape == (2, 9, 5)
