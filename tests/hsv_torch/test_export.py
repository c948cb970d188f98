"""Exported models compute what the layers compute: full and cut, over whole sequences and step by step."""

import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import hsv
import hsv_torch
from hsv_torch.layers._checks import COMPLEX
from hsv_torch.selective import ChannelBasis, SharedBasis
from tests.tolerances import tolerance

WIDTH = 8
LAYERS = {
    "lru": lambda: hsv_torch.LRU(WIDTH, 12),
    "s5": lambda: hsv_torch.S5(WIDTH, 12),
    "s4d": lambda: hsv_torch.S4D(WIDTH, 12),
    "mamba": lambda: hsv_torch.Mamba(WIDTH, 12),
    "mamba2": lambda: hsv_torch.Mamba2(WIDTH, 12, head_dim=4, n_groups=2),
    "attention": lambda: hsv_torch.GatedLinearAttention(WIDTH, 12, n_heads=2),
}
FORMS = LAYERS | {
    "s5 bilinear": lambda: hsv_torch.S5(WIDTH, 12, discretization="bilinear"),
    "s5 both ways": lambda: hsv_torch.S5(WIDTH, 12, bidirectional=True),
    "s4d real": lambda: hsv_torch.S4D(WIDTH, 12, initialization="real"),
    "s4d bilinear": lambda: hsv_torch.S4D(WIDTH, 12, initialization="real", discretization="bilinear"),
    "s4d both ways": lambda: hsv_torch.S4D(WIDTH, 12, bidirectional=True),
    "s4d real both ways": lambda: hsv_torch.S4D(WIDTH, 12, initialization="real", bidirectional=True),
    "mamba with biases": lambda: hsv_torch.Mamba(WIDTH, 12, bias=True, conv_kernel=2, dt_rank=3),
    "mamba without": lambda: hsv_torch.Mamba(WIDTH, 12, conv_bias=False, conv_kernel=1),
    "mamba2 with limits": lambda: hsv_torch.Mamba2(WIDTH, 12, dt_limit=(0.01, 0.05)),
    "attention by head": lambda: hsv_torch.GatedLinearAttention(WIDTH, 12, n_heads=2, decay="head", output_gate=False),
}
CUTS = dict.fromkeys(LAYERS) | {
    "mamba channel": ("mamba", ChannelBasis()),
    "mamba shared": ("mamba", SharedBasis(transforms=True)),
    "mamba2 shared": ("mamba2", SharedBasis(transforms=True)),
}

FILES = pytest.mark.parametrize("name", [n if n in LAYERS else pytest.param(n, marks=pytest.mark.slow) for n in CUTS])

pytestmark = [
    # PyTorch's exporter copies its own tree specifications in a way that it warns of.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def sequences(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(name):
    """Return a layer that went from 12 states to 4."""
    layer, criterion = CUTS[name] or (name, None)
    layer = made(LAYERS[layer])
    if isinstance(layer, hsv_torch.Mamba):
        layer.A_log.normal_(std=0.25, generator=torch.Generator().manual_seed(0))  # no channel like the other
    invariant = isinstance(layer, hsv_torch.LRU | hsv_torch.S5 | hsv_torch.S4D)
    calibration = None if invariant else sequences(8, 32, WIDTH, seed=3)
    hsv_torch.compress_(layer, 4, calibration=calibration, criterion=criterion)
    assert layer.n_states == 4
    return layer


def check(found, expected, factor=1e3):
    found = torch.as_tensor(found)
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=scale * tolerance(torch.float32, factor=factor))


def as_pairs(state):
    """The parts of a layer's state as an exported model has them."""
    parts = state if isinstance(state, tuple) else (state,)
    return [torch.view_as_real(part) if part.is_complex() else part for part in parts]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def zeros(shapes, batch):
    return {name: np.zeros((batch, *shape), np.float32) for name, shape in shapes.items()}


def check_sequences(model, path, *inputs):
    """The file gives what the model gives, whatever batch and length."""
    run = session(path)
    for x in inputs:
        check(run.run(None, {"x": x.numpy()})[0], model(x))


def check_steps(model, path, shapes, x):
    """The file, step by step, gives what the model gives step by step, states included."""
    run, state, eager = session(path), zeros(shapes, x.shape[0]), model.initial_state(x.shape[0])
    assert [i.name for i in run.get_inputs()] == ["x_t", *shapes]
    assert [o.name for o in run.get_outputs()] == ["y_t", *(f"next.{name}" for name in shapes)]
    for x_t in x.unbind(1):
        y_t, *parts = run.run(None, {"x_t": x_t.numpy(), **state})
        state = dict(zip(shapes, parts, strict=True))
        expected, eager = model.step(x_t, eager)
        check(y_t, expected)
    layers = eager if isinstance(model, hsv_torch.SequenceModel) else (eager,)
    expected = [part for layer in layers for part in as_pairs(layer)]
    for part, other in zip(parts, expected, strict=True):
        assert part.shape == other.shape
        check(part, other)


@pytest.mark.parametrize("name", FORMS)
def test_a_plain_copy_computes_the_same(name):
    layer, x = made(FORMS[name]), sequences(3, 21, WIDTH)
    before = copy.deepcopy(layer.state_dict())
    plain = hsv_torch.plain_copy(layer)
    check(plain(x), layer(x))
    if not getattr(layer, "bidirectional", False):
        check_plain_steps(plain, layer, x)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in layer.parameters()}
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", CUTS)
def test_a_plain_copy_of_a_cut_layer_computes_the_same(name):
    layer, x = cut(name), sequences(3, 21, WIDTH)
    plain = hsv_torch.plain_copy(layer)
    check(plain(x), layer(x))
    check_plain_steps(plain, layer, x)


def check_plain_steps(plain, layer, x):
    state, expected = plain.initial_state(x.shape[0]), layer.initial_state(x.shape[0])
    assert [part.shape for part in state] == [part.shape for part in as_pairs(expected)]
    for x_t in x.unbind(1):
        y_t, state = plain.step(x_t, state)
        y, expected = layer.step(x_t, expected)
        check(y_t, y)
    for part, other in zip(state, as_pairs(expected), strict=True):
        check(part, other)


def test_poles_near_the_unit_circle_keep_their_place():
    layer = made(lambda: hsv_torch.LRU(2, 3))
    layer.nu_log.fill_(np.log(1e-6))
    plain = hsv_torch.plain_copy(layer)
    exact = np.exp(-np.exp(layer.nu_log.double().numpy()) + 1j * layer.theta.double().numpy())
    found = plain.poles_real.double().numpy() + 1j * plain.poles_imag.double().numpy()
    np.testing.assert_allclose(found, exact, rtol=0, atol=2**-24)


@FILES
def test_a_cut_layer_as_an_onnx_file_of_whole_sequences(name, tmp_path):
    layer, path = cut(name), tmp_path / "layer.onnx"
    hsv_torch.export_onnx(layer, path)
    check_sequences(layer, path, sequences(3, 21, WIDTH), sequences(1, 1, WIDTH), sequences(1, 70, WIDTH))
    assert {(opset.domain, opset.version > 17) for opset in onnx.load(path).opset_import} == {("", True)}


@FILES
def test_a_cut_layer_as_an_onnx_file_of_one_step(name, tmp_path):
    layer, path = cut(name), tmp_path / "layer.onnx"
    shapes = hsv_torch.export_onnx_step(layer, path)
    assert list(shapes) == (["window", "state"] if isinstance(layer, hsv_torch.Mamba | hsv_torch.Mamba2) else ["state"])
    check_steps(layer, path, shapes, sequences(3, 12, WIDTH))
    check_steps(layer, path, shapes, sequences(1, 2, WIDTH))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_full_layer_as_onnx_files(name, tmp_path):
    layer = made(FORMS[name])
    hsv_torch.export_onnx(layer, tmp_path / "layer.onnx")
    check_sequences(layer, tmp_path / "layer.onnx", sequences(3, 21, WIDTH), sequences(1, 70, WIDTH))
    if not getattr(layer, "bidirectional", False):
        shapes = hsv_torch.export_onnx_step(layer, tmp_path / "step.onnx")
        check_steps(layer, tmp_path / "step.onnx", shapes, sequences(3, 12, WIDTH))


def model(layer="lru", n_states=(6, 5), **options):
    given = {"d_model": WIDTH, "n_blocks": 2, "head": "language_model", "n_outputs": 5, "vocabulary": 7}
    return made(
        lambda: hsv_torch.SequenceModel(
            hsv_torch.SequenceModelConfig(layer=layer, n_states=n_states, **(given | options))
        )
    )


@pytest.mark.parametrize("layer", ["lru", pytest.param("mamba", marks=pytest.mark.slow)])
def test_a_cut_language_model_as_onnx_files(layer, tmp_path):
    net = model(layer, final_norm=True)
    tokens = torch.randint(7, (3, 12), generator=torch.Generator().manual_seed(0))
    hsv_torch.compress_(net, 3, calibration=tokens if layer == "mamba" else None)
    hsv_torch.export_onnx(net, tmp_path / "net.onnx")
    check_sequences(net, tmp_path / "net.onnx", tokens, tokens[:1, :1])
    shapes = hsv_torch.export_onnx_step(net, tmp_path / "step.onnx")
    names = ["state"] if layer == "lru" else ["window", "state"]
    assert list(shapes) == [f"blocks.{i}.{name}" for i in (0, 1) for name in names]
    check_steps(net, tmp_path / "step.onnx", shapes, tokens)


def test_a_cut_classifier_with_batch_norm_as_an_onnx_file(tmp_path):
    options = {"vocabulary": None, "n_inputs": 2, "norm": "batch", "dropout": 0.5, "n_blocks": 1}
    net = model("s5", 6, head="classification", **options)
    for block in net.blocks:
        block.norm.norm.running_mean.normal_()
    hsv_torch.compress_(net, 3)
    net.train()
    hsv_torch.export_onnx(net, tmp_path / "net.onnx")
    assert net.training
    check_sequences(net.eval(), tmp_path / "net.onnx", sequences(3, 21, 2), sequences(1, 9, 2))


class Shared(nn.Module):
    """A layer used twice, inside a module of the user's own, with steps."""

    def __init__(self):
        super().__init__()
        self.first = hsv_torch.S4D(WIDTH, 6)
        self.again = self.first

    def forward(self, x):
        return self.again(torch.tanh(self.first(x)))

    def initial_state(self, batch):
        return {"a": self.first.initial_state(batch), "b": self.again.initial_state(batch)}

    def step(self, x_t, state):
        y, a = self.first.step(x_t, state["a"])
        y, b = self.again.step(torch.tanh(y), state["b"])
        return y, {"a": a, "b": b}


def test_other_modules_are_exported_with_an_example(tmp_path):
    net, x = made(Shared), sequences(3, 9, WIDTH)
    plain = hsv_torch.plain_copy(net)
    assert plain.first is plain.again
    hsv_torch.export_onnx(net, tmp_path / "net.onnx", x[:1, :1])
    check_sequences(net, tmp_path / "net.onnx", x)
    shapes = hsv_torch.export_onnx_step(net, tmp_path / "step.onnx", x[:1, 0])
    assert shapes == {"state.0": (WIDTH, 6, 2), "state.1": (WIDTH, 6, 2)}
    run, state = session(tmp_path / "step.onnx"), zeros(shapes, 3)
    for t in range(9):
        y_t, *parts = run.run(None, {"x_t": x[:, t].numpy(), **state})
        state = dict(zip(shapes, parts, strict=True))
        check(y_t, net(x)[:, t])


# --- torch.export ----------------------------------------------------------------------------------------------------


def nodes(program):
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes]


def operators(program):
    return {str(node.target) for node in nodes(program) if node.op == "call_function"}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_export_keeps_the_kernels(name):
    layer, x = cut(name), sequences(3, 21, WIDTH)
    sizes = {0: Dim.AUTO} if name == "s4d" else {0: Dim.AUTO, 1: Dim.AUTO}  # an FFT is for one length
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
    assert name == "s4d" or any(operator.startswith("hsv_torch.") for operator in operators(program))
    other = sequences(5, 21 if name == "s4d" else 40, WIDTH)
    check(program.module()(other), layer(other))


@pytest.mark.parametrize("name", LAYERS)
def test_torch_export_of_a_step(name):
    layer, x_t = cut(name), sequences(3, WIDTH)
    module = hsv_torch.StepModule(layer)
    state = module.initial_state(3)
    sizes = ({0: Dim.AUTO}, tuple({0: Dim.AUTO} for _ in state))
    program = torch.export.export(module, (x_t, *state), dynamic_shapes=sizes)
    x, state, expected = sequences(5, 4, WIDTH), module.initial_state(5), layer.initial_state(5)
    for x_t in x.unbind(1):
        y_t, *state = program.module()(x_t, *state)
        y, expected = layer.step(x_t, expected)
        check(y_t, y)


@pytest.mark.parametrize("name", ["lru", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_torch_export_of_a_plain_copy_needs_none_of_our_operators(name):
    layer = cut(name)
    sizes = {0: Dim("batch"), 1: Dim("length")}
    program = torch.export.export(hsv_torch.plain_copy(layer), (sequences(3, 21, WIDTH),), dynamic_shapes=(sizes,))
    assert not any("hsv_torch" in operator for operator in operators(program))
    values = [node.meta.get("val") for node in nodes(program)]
    assert not any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)
    x = sequences(2, 40, WIDTH)
    check(program.module()(x), layer(x))


def test_torch_export_of_a_cut_model_of_real_channels():
    net = model(vocabulary=None, n_inputs=2)
    hsv_torch.compress_(net, 3)
    program = torch.export.export(net, (sequences(3, 21, 2),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    x = sequences(5, 40, 2)
    check(program.module()(x), net(x))


# --- errors ----------------------------------------------------------------------------------------------------------


class Squared(hsv_torch.LRU):
    def forward(self, x, lengths=None):
        return super().forward(x, lengths).square()


class Averages(nn.Module):
    """A module of the user's own that calls one of the scans."""

    def forward(self, x):
        return hsv_torch.scan.linear_scan(torch.full((WIDTH,), 0.9), x)


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path):
    path, x = tmp_path / "model.onnx", torch.zeros(2, 3, WIDTH)
    with pytest.raises(hsv.HsvError, match=r"layer '0' is a Squared, a subclass of LRU.*replace it by a LRU"):
        hsv_torch.export_onnx(nn.Sequential(Squared(WIDTH, 3)), path, x)
    with pytest.raises(hsv.DtypeError, match=r"exported in float32, and 'nu_log' is torch.float64: export .*float\(\)"):
        hsv_torch.export_onnx(hsv_torch.LRU(WIDTH, 3, dtype=torch.float64), path)
    with pytest.raises(hsv.HsvError, match=r"what a Sequential takes is not known: pass `example`.*\(batch, length"):
        hsv_torch.export_onnx(nn.Sequential(hsv_torch.LRU(WIDTH, 3)), path)
    with pytest.raises(hsv.ShapeError, match=r"`example` must be \(batch, length, ...\) and not empty, got \(0, 3\)"):
        hsv_torch.export_onnx(hsv_torch.LRU(WIDTH, 3), path, torch.zeros(0, 3))
    with pytest.raises(hsv.ShapeError, match=r"`example` must be \(batch, ...\) and not empty, got \(0, 8\)"):
        hsv_torch.export_onnx_step(hsv_torch.LRU(WIDTH, 3), path, torch.zeros(0, WIDTH))
    with pytest.raises(hsv.HsvError, match=r"a Sequential has no methods `step` and `initial_state`"):
        hsv_torch.export_onnx_step(nn.Sequential(hsv_torch.LRU(WIDTH, 3)), path, x[0])
    with pytest.raises(hsv.HsvError, match=r"a bidirectional layer has no step"):
        hsv_torch.export_onnx_step(hsv_torch.S4D(WIDTH, 3, bidirectional=True), path)
    with pytest.raises(hsv.HsvError, match=r"only a language model goes step by step"):
        hsv_torch.export_onnx_step(model(head="classification"), path)
    with pytest.raises(hsv.HsvError, match=r"without padding: leave `lengths` out"):
        hsv_torch.plain_copy(hsv_torch.LRU(WIDTH, 3))(x, torch.tensor([1, 2]))
    assert not path.exists()


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(
        hsv.HsvError, match=r"(?s)no ONNX form of this Averages.*operations that ONNX lacks.*linear_scan"
    ):
        hsv_torch.export_onnx(Averages(), tmp_path / "model.onnx", torch.zeros(2, 3, WIDTH))


def test_a_missing_onnx_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        hsv.MissingBackendError, match=r"`onnxscript`.* not installed; pip install hsv-control\[export\]"
    ):
        hsv_torch.export_onnx(hsv_torch.LRU(WIDTH, 3), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21, 23])
def test_other_operator_sets(opset, tmp_path):
    layer, path = made(LAYERS["mamba"]), tmp_path / "layer.onnx"
    hsv_torch.export_onnx(layer, path, opset=opset)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    check_sequences(layer, path, sequences(3, 21, WIDTH))


def test_a_complex_state_is_a_pair_along_the_last_axis():
    assert COMPLEX[torch.float32] == torch.complex64
    layer = made(LAYERS["lru"])
    plain, x_t = hsv_torch.plain_copy(layer), sequences(2, WIDTH)
    _, state = layer.step(x_t, layer.initial_state(2))
    _, (pairs,) = plain.step(x_t, plain.initial_state(2))
    check(pairs[..., 0], state.real)
    check(pairs[..., 1], state.imag)


def test_large_models_have_their_parameters_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hsv_torch.export, "LARGEST_FILE", 100)
    layer = made(LAYERS["lru"])
    shapes = hsv_torch.export_onnx_step(layer, tmp_path / "layer.onnx")
    assert (tmp_path / "layer.onnx.data").is_file()
    check_steps(layer, tmp_path / "layer.onnx", shapes, sequences(2, 3, WIDTH))
