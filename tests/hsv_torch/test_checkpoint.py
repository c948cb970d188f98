import json
import math
import os
import re
from collections import Counter

import pytest
import safetensors.torch
import torch
from torch import nn

import hsv
from hsv_torch import LRU, SequenceModel, SequenceModelConfig
from hsv_torch.checkpoint import (
    CheckpointError,
    layer_sizes,
    load_checkpoint,
    load_into,
    load_model,
    resize_layers,
    save_checkpoint,
)
from hsv_torch.compress import compress_
from tests.hsv_torch.models import batch, classifier, train_step
from tests.hsv_torch.toy_layer import Decays, third_party  # noqa: F401  (a fixture)


def cut_and_trained(steps: int = 3):
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_step(model, optimizer, 0)
    compress_(model, 5, optimizer=optimizer, layers=["blocks.0.ssm"])
    compress_(model, 7, optimizer=optimizer, layers=["blocks.1.ssm"])
    for step in range(1, steps):
        train_step(model, optimizer, step)
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    model, optimizer = cut_and_trained()
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, optimizer=optimizer, extra={"step": 3, "nested": [1.5, (None, "x")]})
    return model, optimizer, path


def test_a_fresh_full_size_model_takes_the_small_one_and_training_goes_on_exactly(saved):
    model, optimizer, path = saved
    fresh = classifier(seed=9)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    extra = load_into(fresh, path, optimizer=fresh_optimizer)
    assert extra == {"step": 3, "nested": [1.5, (None, "x")]}
    assert layer_sizes(fresh) == {"blocks.0.ssm": {"n_states": 5}, "blocks.1.ssm": {"n_states": 7}}
    assert all(a is b for a, b in zip(fresh_optimizer.param_groups[0]["params"], fresh.parameters(), strict=True))
    model.eval(), fresh.eval()
    assert torch.equal(model(batch(5)[0]), fresh(batch(5)[0]))
    model.train(), fresh.train()
    for step in range(3, 8):
        torch.manual_seed(step)
        expected = train_step(model, optimizer, step)
        torch.manual_seed(step)
        assert train_step(fresh, fresh_optimizer, step) == expected


def test_without_an_optimizer(tmp_path):
    model, _ = cut_and_trained()
    save_checkpoint(model, tmp_path / "m.safetensors")
    fresh = classifier()
    assert load_into(fresh, str(tmp_path / "m.safetensors")) is None
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match="saved without an optimizer"):
        load_into(fresh, tmp_path / "m.safetensors", optimizer=torch.optim.SGD(fresh.parameters()))


def test_a_smaller_model_grows_to_the_stored_size(tmp_path):
    save_checkpoint(classifier(16), tmp_path / "m.safetensors")
    small = classifier(3)
    load_into(small, tmp_path / "m.safetensors")
    assert layer_sizes(small) == {"blocks.0.ssm": {"n_states": 16}, "blocks.1.ssm": {"n_states": 16}}


def test_a_model_without_such_layers_is_saved_too(tmp_path):
    model = nn.Linear(2, 2)
    save_checkpoint(model, tmp_path / "m.safetensors")
    other = nn.Linear(2, 2)
    load_into(other, tmp_path / "m.safetensors")
    assert torch.equal(other.weight, model.weight)


@pytest.mark.usefixtures("third_party")
def test_third_partys_layer(tmp_path):
    model = nn.Sequential(Decays(2, 6))
    compress_(model, 2)
    save_checkpoint(model, tmp_path / "m.safetensors")
    fresh = nn.Sequential(Decays(2, 6))
    load_into(fresh, tmp_path / "m.safetensors")
    assert fresh[0].size == 2
    assert torch.equal(fresh(torch.ones(1, 4, 2)), model(torch.ones(1, 4, 2)))


def test_tied_layers(tmp_path):
    layer, other = LRU(3, 8), LRU(3, 8)
    model, fresh = nn.Sequential(layer, layer), nn.Sequential(other, other)
    compress_(model, 2)
    save_checkpoint(model, tmp_path / "m.safetensors")
    load_into(fresh, tmp_path / "m.safetensors")
    assert fresh[0] is fresh[1]
    assert torch.equal(fresh(torch.ones(1, 4, 3)), model(torch.ones(1, 4, 3)))


class TestWriting:
    def test_an_interrupted_save_leaves_the_old_file(self, saved, monkeypatch):
        model, _, path = saved
        before = path.read_bytes()

        def interrupted(tensors, file, metadata):
            file.write_bytes(b"half of it")
            raise KeyboardInterrupt

        monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(model, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["model.safetensors"]

    def test_what_could_not_be_loaded_is_not_saved(self, saved):
        model, _, path = saved
        before = path.read_bytes()
        with pytest.raises(CheckpointError, match=r"`extra` cannot be stored: extra.rule.1 is a hsv\._order\.Order"):
            save_checkpoint(model, path, extra={"rule": [0, hsv.Order(3)]})
        assert path.read_bytes() == before

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            save_checkpoint(classifier(), tmp_path / "nowhere" / "m.safetensors")


class TestContent:
    def test_every_kind_of_value(self, tmp_path):
        whole = torch.arange(6.0)
        extra = {
            "numbers": [1, -2.5, math.inf, -math.inf, True, None, 2**70, 1e-320],
            3: ("tuple", [()], {}),
            "tensors": [
                torch.tensor(1.5),
                torch.zeros(0, 3),
                torch.tensor([1 + 2j], dtype=torch.complex128),
                torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
                torch.ones(2, 3, dtype=torch.bfloat16).mT,
                torch.tensor([True]),
            ],
            "counter": Counter({5: 2}),
            "shared": [whole, whole, whole[2:4], whole.view(2, 3)],
        }
        save_checkpoint(nn.Linear(1, 1), tmp_path / "m", extra=extra)
        found = load_checkpoint(tmp_path / "m").extra
        assert list(found) == list(extra)
        assert found["numbers"] == extra["numbers"]
        assert found[3] == extra[3]
        assert found["counter"] == extra["counter"]
        assert isinstance(found["counter"], Counter)
        for a, b in zip(found["tensors"] + found["shared"], extra["tensors"] + extra["shared"], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert math.isnan(self.round_trip(tmp_path, math.nan))

    def round_trip(self, tmp_path, value):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "m", extra=value)
        return load_checkpoint(tmp_path / "m").extra

    def test_a_tied_weight_is_stored_once(self, tmp_path):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        save_checkpoint(model, tmp_path / "m")
        assert set(safetensors.torch.load_file(tmp_path / "m")) == {"model.0.weight", "model.0.bias", "model.1.bias"}

    @pytest.mark.parametrize("value", [{1, 2}, torch.eye(2).to_sparse(), hsv.Order(1), float])
    def test_other_values_are_refused(self, tmp_path, value):
        with pytest.raises(CheckpointError, match=r"`extra` cannot be stored: extra.a is a"):
            save_checkpoint(nn.Linear(1, 1), tmp_path / "m", extra={"a": value})
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sequence_model_is_rebuilt_from_the_file_alone(tmp_path, dtype):
    config = SequenceModelConfig(
        layer="lru", d_model=4, n_states=16, head="regression", n_outputs=2, n_inputs=3, n_blocks=2
    )
    model = SequenceModel(config, dtype=dtype)
    compress_(model, 5, layers=["blocks.1.*"])
    save_checkpoint(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.n_states == (16, 5)
    x = torch.ones(1, 7, 3, dtype=dtype)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    save_checkpoint(nn.Linear(1, 1), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds no hsv_torch.SequenceModel.*load_into"):
        load_model(tmp_path / "other")


class TestBadFiles:
    def check(self, path, message, model=None):
        model = model or classifier()
        optimizer = torch.optim.AdamW(model.parameters())
        train_step(model, optimizer, 0)
        before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
        moments = optimizer.state[model.head.weight]["exp_avg"].clone()
        with pytest.raises(CheckpointError, match=message):
            load_into(model, path, optimizer=optimizer)
        after = dict(model.named_parameters())
        assert all(after[name] is p and torch.equal(p, value) for name, (p, value) in before.items())
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))
        assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], moments)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_into(classifier(), tmp_path / "none.safetensors")

    def test_a_folder(self, tmp_path):
        self.check(tmp_path, "is a folder; name the file in it")

    @pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
    def test_truncated(self, saved, keep):
        path = saved[2]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
        self.check(path, re.escape(str(path)) + r".*(truncated|damaged)")

    def test_damaged_inside(self, saved):
        path = saved[2]
        data = bytearray(path.read_bytes())
        data[-5] ^= 1  # one bit of the last tensor
        path.write_bytes(bytes(data))
        self.check(path, r"damaged: the checksums of \['")

    @pytest.mark.parametrize(
        "change",
        [
            {"checksums": {}},
            {"content": {"model": {"dict": [[]]}}},
            {"content": {"model": {"tensor": "none such"}}},
            {"content": {"model": {"unheard of": 1}}},
        ],
    )
    def test_with_a_header_that_does_not_fit(self, saved, change):
        self.rewrite(saved[2], change)
        self.check(saved[2], "damaged")

    def rewrite(self, path, change):
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["hsv_torch"])
        safetensors.torch.save_file(tensors, path, metadata={"hsv_torch": json.dumps({**header, **change})})

    def test_of_another_kind(self, tmp_path):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        self.check(tmp_path / "other.safetensors", "was not written by save_checkpoint")
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
        self.check(tmp_path / "other.pt", "not written by save_checkpoint")

    def test_text(self, tmp_path):
        (tmp_path / "text.pt").write_text("hello")
        self.check(tmp_path / "text.pt", r"text.pt \(5 bytes\) is not a whole checkpoint")

    def test_of_a_later_release(self, saved):
        self.rewrite(saved[2], {"version": 2})
        self.check(saved[2], "format version 2, and this release reads 1")

    def test_of_another_model(self, saved):
        self.check(saved[2], r"stored for the layers \['blocks.1.ssm'\]", classifier(n_blocks=1))

    def test_with_other_names(self, saved):
        model = classifier()
        model.extra = nn.Linear(1, 1)
        self.check(saved[2], "belongs to another model: it lacks .*extra.bias", model)

    def test_with_other_shapes(self, saved):
        self.check(saved[2], r"'encoder.weight' has shape \(4, 1\), and \(6, 1\) in this model", classifier(width=6))

    def test_with_other_optimizer_groups(self, saved):
        model = classifier()
        optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
        with pytest.raises(CheckpointError, match="optimizer of other groups"):
            load_into(model, saved[2], optimizer=optimizer)
        assert layer_sizes(model) == {"blocks.0.ssm": {"n_states": 16}, "blocks.1.ssm": {"n_states": 16}}


def test_resize_of_an_unknown_layer():
    with pytest.raises(CheckpointError, match=r"\['x'\], which the model does not have; it has \['blocks.0.ssm'\]"):
        resize_layers(classifier(n_blocks=1), {"x": {"n_states": 3}})


def test_single_numbers_with_a_stride_are_saved(tmp_path):
    layer = LRU(4, 1)
    layer.theta = torch.nn.Parameter(torch.view_as_real(torch.ones(1, dtype=torch.complex64) * (2 + 3j))[:, 1])
    assert layer.theta.stride() == (2,)
    save_checkpoint(layer, tmp_path / "one.safetensors")
    loaded = LRU(4, 1)
    load_into(loaded, tmp_path / "one.safetensors")
    assert loaded.theta.item() == 3
