import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import hsv
import hsv_torch
from hsv_torch import LRU, ComplexHankel, CutRefusedError, RealHankel
from hsv_torch.compress import compress_
from tests.hsv_torch.models import classifier, train_step
from tests.hsv_torch.toy_layer import ChoosingAdapter, Decays, third_party  # noqa: F401  (a fixture)

CRITERIA = [ComplexHankel(), RealHankel()]


def padded_layer(n_small: int, n_more: int, dtype: torch.dtype, size: float) -> LRU:
    """Make a layer whose last `n_more` states hardly reach the output."""
    torch.manual_seed(1)
    layer = LRU(5, n_small + n_more, dtype=dtype)
    with torch.no_grad():
        layer.B[n_small:] *= size
        layer.C[:, n_small:] *= size
    return layer


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("criterion", CRITERIA, ids=["complex", "real"])
# The tolerances are those of the project's requirement; the padding is below the rounding of each precision.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)], ids=["f64", "f32"])
def test_a_padded_layer_comes_back_to_its_size_and_agrees(criterion, dtype, tolerance):
    layer = padded_layer(12, 20, dtype, 1e-8)
    x = torch.randn(3, 100, 5, dtype=dtype)
    expected = layer(x).detach()
    report = compress_(nn.Sequential(layer), 12, criterion=criterion)
    assert layer.n_states == report.layers[0].n_states_after == 12
    assert (layer(x) - expected).abs().max() < tolerance * max(1, expected.abs().max())


@pytest.mark.parametrize("criterion", CRITERIA, ids=["complex", "real"])
def test_a_cut_to_full_size_is_a_real_cut_and_changes_nothing_in_the_output(criterion):
    torch.manual_seed(2)
    layer = LRU(5, 9, dtype=torch.float64)
    x = torch.randn(3, 50, 5, dtype=torch.float64)
    expected, old = layer(x).detach(), layer.B
    compress_(nn.Sequential(layer), 9, criterion=criterion)
    assert layer.B is not old
    assert (layer(x) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("criterion", CRITERIA, ids=["complex", "real"])
def test_the_error_obeys_the_bound_and_training_goes_on(criterion):
    torch.manual_seed(3)
    layer = LRU(5, 24, dtype=torch.float64, max_phase=0.3)
    model = nn.Sequential(layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.zeros(1, 4000, 5, dtype=torch.float64)
    x[:, :1000] = torch.randn(1, 1000, 5)
    expected = layer(x).detach()
    report = compress_(model, hsv.HankelSum(discard=0.1), criterion=criterion, optimizer=optimizer)
    error = (layer(x) - expected).norm() / x.norm()
    assert 1 <= layer.n_states < 24
    assert error <= report.layers[0].error_bound
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x[:, :200]) - expected[:, :200]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class TestReport:
    def test_tells_sizes_spectra_and_parameters(self):
        model = classifier()
        before = parameters_of(model)
        report = compress_(model, 5)
        assert [(r.layer, r.n_states_before, r.n_states_after, r.outcome) for r in report.layers] == [
            ("blocks.0.ssm", 16, 5, "cut"),
            ("blocks.1.ssm", 16, 5, "cut"),
        ]
        spectrum = report.layers[0].hankel_singular_values
        assert spectrum.shape == (16,)
        assert (np.diff(spectrum) <= 0).all()
        assert report.seconds > 0
        assert report.replaced["blocks.1.ssm.B"] == (before["blocks.1.ssm.B"], model.blocks[1].ssm.B)
        assert "blocks.0.ssm: 16 -> 5 states, error at most" in str(report)

    def test_a_bare_layer_is_a_model(self):
        layer = LRU(4, 8)
        report = compress_(layer, 3)
        assert layer.n_states == 3
        assert set(report.replaced) == {"nu_log", "theta", "gamma_log", "B", "C"}


class TestChoiceOfLayers:
    def test_by_name(self):
        model = classifier()
        compress_(model, 5, layers=["blocks.1.ssm"])
        assert [block.ssm.n_states for block in model.blocks] == [16, 5]

    def test_by_pattern(self):
        model = classifier(n_blocks=3)
        compress_(model, 5, layers=["blocks.[01].*"])
        assert [block.ssm.n_states for block in model.blocks] == [5, 5, 16]

    def test_a_name_that_matches_nothing_lists_those_there_are(self):
        with pytest.raises(hsv.HsvError, match=r"'blocks.7.\*' matches no layer.*\['blocks.0.ssm', 'blocks.1.ssm'\]"):
            compress_(classifier(), 5, layers=["blocks.0.ssm", "blocks.7.*"])

    def test_a_name_of_a_layer_without_an_adapter_says_so(self):
        with pytest.raises(hsv.HsvError, match=r"'head' is a Linear"):
            compress_(classifier(), 5, layers=["head"])

    def test_a_string_is_not_a_list(self):
        with pytest.raises(TypeError, match=r"must be a list.*pass \['head'\]"):
            compress_(classifier(), 5, layers="head")

    def test_an_empty_list_is_an_error(self):
        with pytest.raises(hsv.HsvError, match="`layers` is empty"):
            compress_(classifier(), 5, layers=[])

    def test_a_model_without_a_known_layer_is_an_error(self):
        with pytest.raises(hsv.HsvError, match=r"`model` \(Linear\) has no layer that a known adapter serves"):
            compress_(nn.Linear(2, 2), 5)

    def test_no_model_is_an_error(self):
        with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got list"):
            compress_([LRU(2, 2)], 1)

    def test_a_layer_that_stands_in_two_places_is_cut_once(self):
        layer = LRU(4, 16)
        model = nn.Sequential(layer, nn.Tanh(), layer)
        report = compress_(model, 5)
        assert len(report.layers) == 1
        assert model[0] is model[2]
        model(torch.randn(2, 8, 4)).sum().backward()


class TestBadInput:
    @pytest.mark.parametrize("rule", [0.1, "half", None, True])
    def test_rules(self, rule):
        with pytest.raises(hsv.DtypeError, match="rule must be an int"):
            compress_(classifier(), rule)

    def test_order_above_n_names_the_layer(self):
        with pytest.raises(hsv.OrderError, match=r"layer 'blocks.0.ssm': Order must be in \[1, 16\], got 17"):
            compress_(classifier(), 17)

    def test_order_below_one(self):
        with pytest.raises(hsv.OrderError, match="Order must be at least 1, got 0"):
            compress_(classifier(), 0)

    def test_calibration_that_nobody_needs(self):
        with pytest.raises(hsv.HsvError, match="`calibration` is for layers whose system depends on their input"):
            compress_(classifier(), 5, calibration=[torch.zeros(1)])

    def test_criterion(self):
        with pytest.raises(TypeError, match=r"`criterion` must be a hsv_torch.Criterion"):
            compress_(classifier(), 5, criterion="hankel")

    def test_nan_names_the_layer_and_nothing_is_changed(self):
        model = classifier()
        with torch.no_grad():
            model.blocks[1].ssm.B[3] = torch.nan
        before = parameters_of(model)
        with pytest.raises(hsv.NonFiniteError, match=r"layer 'blocks.1.ssm': "):
            compress_(model, 5)
        assert all(p is before[name] for name, p in parameters_of(model).items())

    def test_a_layer_that_no_input_reaches_is_refused_with_its_spectrum(self):
        model = classifier(n_blocks=1)
        with torch.no_grad():
            model.blocks[0].ssm.B.zero_()
        with pytest.raises(CutRefusedError, match=r"layer 'blocks.0.ssm': .*B = 0") as caught:
            compress_(model, hsv.HankelSum(discard=0.1))
        assert caught.value.hankel_singular_values.shape == (16,)

    def test_a_parameter_shared_by_two_layers_is_an_error(self):
        model = classifier()
        model.blocks[1].ssm.B = model.blocks[0].ssm.B
        with pytest.raises(hsv.HsvError, match=r"'blocks.0.ssm.B' and 'blocks.1.ssm.B' are one tensor"):
            compress_(model, 5, layers=["blocks.0.ssm"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda layer: nn.utils.parametrizations.weight_norm(layer, "C"),
            r"^'0\.C' is parametrized, .* call torch\.nn\.utils\.parametrize\.remove_parametrizations\(model\.get_submodule\('0'\), 'C'\) first$",
        ),
        (
            lambda layer: prune.random_unstructured(layer, "theta", 0.2),
            r"'0\.theta' is pruned, .*prune\.remove\(",
        ),
        (
            lambda layer: nn.utils.spectral_norm(layer, "C"),
            r"'0\.C' is computed by spectral_norm, .*remove_spectral_norm\(",
        ),
        (lambda layer: layer.to("meta"), r"'0\.nu_log' is on the meta device and has no values"),
        (lambda layer: delattr(layer, "C"), r"'0\.C' is missing in this LRU"),
        (
            lambda layer: (layer._parameters.pop("C"), layer.register_buffer("C", torch.zeros(2, 4, 8))),
            r"'0\.C' is no parameter of the LRU \(a Tensor\)",
        ),
    ],
    ids=["weight norm", "pruned", "spectral norm", "meta", "missing", "buffer"],
)
def test_parameters_that_a_cut_cannot_replace_are_named_with_what_to_do(change, message):
    model = nn.Sequential(LRU(4, 8), LRU(4, 8), nn.Linear(4, 1))
    change(model[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(hsv.HsvError, match=message):
        compress_(model, 3, optimizer=optimizer)
    with pytest.raises(hsv.HsvError, match=message):
        hsv_torch.InTrainingCompressor(model, optimizer, rule=3, schedule=hsv_torch.Schedule(10, at=(1,)))
    compress_(model, 3, layers=["1"], optimizer=optimizer)  # a layer that is not cut may have them
    assert model[1].n_states == 3


@pytest.mark.parametrize(
    ("layer", "criterion"),
    [
        (lambda: LRU(4, 8), None),
        (lambda: hsv_torch.Mamba(4, 8), hsv_torch.ChannelBasis()),
        (lambda: hsv_torch.Mamba(4, 8), hsv_torch.LocalDistillation(hsv_torch.StateChoice(), steps=2)),
    ],
    ids=["LRU", "Mamba", "distilled"],
)
@pytest.mark.parametrize("how", ["compress_", "compressor"])
def test_a_model_that_is_cut_in_inference_mode_can_be_trained_on(layer, criterion, how):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer(), nn.Linear(4, 1)), torch.randn(6, 10, 4)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    options = {"criterion": criterion, "calibration": None if criterion is None else x}
    model(x).sum().backward()
    optimizer.step()
    if how == "compressor":
        compressor = hsv_torch.InTrainingCompressor(
            model, optimizer, rule=4, schedule=hsv_torch.Schedule(10, at=(1,)), state={"ema": average}, **options
        )
    with torch.inference_mode():
        if how == "compressor":
            compressor.step()
        else:
            compress_(model, 4, optimizer=optimizer, **options)
    assert model[0].n_states == 4
    model(x).sum().backward()
    optimizer.step()
    if how == "compressor":
        average.update_parameters(model)


def test_a_model_that_is_resized_in_inference_mode_can_be_trained_on(tmp_path):
    make = lambda n: nn.Sequential(LRU(4, n), nn.Linear(4, 1))  # noqa: E731
    hsv_torch.save_checkpoint(make(5), tmp_path / "file")
    model = make(8)
    with torch.inference_mode():
        hsv_torch.load_into(model, tmp_path / "file")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(6, 10, 4)).sum().backward()
    optimizer.step()
    assert model[0].n_states == 5


def test_a_name_that_another_module_has_for_the_same_parameter_follows():
    model = classifier(n_blocks=1)
    model.penalised = nn.ParameterList([model.blocks[0].ssm.C])
    compress_(model, 5)
    assert model.penalised[0] is model.blocks[0].ssm.C


@pytest.mark.usefixtures("third_party")
class TestThirdParty:
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 4), Decays(4, 8), LRU(4, 12), Decays(4, 6))

    def test_joins_by_the_protocol_alone(self):
        model = self.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = torch.randn(3, 10, 1)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        moments = optimizer.state[model[1].B]["exp_avg"]
        report = compress_(model, hsv.HankelSum(discard=0.05), optimizer=optimizer)
        assert [record.layer for record in report.layers] == ["1", "2", "3"]
        kept = model[1].size
        assert kept == model[1].B.shape[0] < 8
        assert {tuple(row) for row in optimizer.state[model[1].B]["exp_avg"].tolist()} <= {
            tuple(row) for row in moments.tolist()
        }
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    @pytest.mark.parametrize("method", ["apply", "pull_back"])
    def test_any_exception_in_the_middle_restores_everything(self, method, monkeypatch):
        model = self.model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        model(torch.randn(3, 10, 1)).square().mean().backward()
        optimizer.step()
        before = parameters_of(model)
        values = {name: p.detach().clone() for name, p in before.items()}
        held = list(optimizer.param_groups[0]["params"])
        states = {p: dict(state) for p, state in optimizer.state.items()}
        calls = []
        original = getattr(ChoosingAdapter, method)

        def fail_at_the_second_layer(self, *arguments, **options):
            calls.append(1)
            result = original(self, *arguments, **options)
            if len(calls) > 1:
                raise KeyboardInterrupt if method == "apply" else RuntimeError("the cable was pulled")
            return result

        monkeypatch.setattr(ChoosingAdapter, method, fail_at_the_second_layer)
        with pytest.raises(KeyboardInterrupt if method == "apply" else RuntimeError):
            compress_(model, 3, optimizer=optimizer)
        assert len(calls) > 1
        after = parameters_of(model)
        assert all(after[name] is p and torch.equal(p, values[name]) for name, p in before.items())
        assert [model[i].size for i in (1, 3)] == [8, 6]
        assert model[2].n_states == 12
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))
        assert {p: dict(state) for p, state in optimizer.state.items()} == states

    def test_the_layer_is_named_where_an_adapter_breaks(self, monkeypatch):
        def broken(self, layer, cut):
            raise RuntimeError("no")

        monkeypatch.setattr(ChoosingAdapter, "apply", broken)
        with pytest.raises(RuntimeError) as caught:
            compress_(self.model(), 3)
        assert "while cutting the layer '1'" in caught.value.__notes__[0]

    def test_an_adapter_that_does_not_do_what_it_planned_is_an_error(self, monkeypatch):
        monkeypatch.setattr(ChoosingAdapter, "apply", lambda self, layer, cut: {})
        model = self.model()
        with pytest.raises(hsv.HsvError, match=r"ChoosingAdapter.apply left 8 states where its own plan has 3"):
            compress_(model, 3)


def test_the_optimizer_that_is_not_passed_keeps_the_old_parameters():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, 0)
    old = model.blocks[0].ssm.B
    compress_(model, 5)
    assert any(p is old for p in optimizer.param_groups[0]["params"])
