import os
import re

import pytest
import torch
from torch import nn

import hsv
from hsv_torch import LRU
from hsv_torch.checkpoint import CheckpointError, layer_sizes, load_into, resize_layers, save_checkpoint
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
    path = tmp_path / "model.pt"
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
    save_checkpoint(model, tmp_path / "m.pt")
    fresh = classifier()
    assert load_into(fresh, str(tmp_path / "m.pt")) is None
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match="saved without an optimizer"):
        load_into(fresh, tmp_path / "m.pt", optimizer=torch.optim.SGD(fresh.parameters()))


def test_a_smaller_model_grows_to_the_stored_size(tmp_path):
    save_checkpoint(classifier(16), tmp_path / "m.pt")
    small = classifier(3)
    load_into(small, tmp_path / "m.pt")
    assert layer_sizes(small) == {"blocks.0.ssm": {"n_states": 16}, "blocks.1.ssm": {"n_states": 16}}


def test_a_model_without_such_layers_is_saved_too(tmp_path):
    model = nn.Linear(2, 2)
    save_checkpoint(model, tmp_path / "m.pt")
    other = nn.Linear(2, 2)
    load_into(other, tmp_path / "m.pt")
    assert torch.equal(other.weight, model.weight)


@pytest.mark.usefixtures("third_party")
def test_third_partys_layer(tmp_path):
    model = nn.Sequential(Decays(2, 6))
    compress_(model, 2)
    save_checkpoint(model, tmp_path / "m.pt")
    fresh = nn.Sequential(Decays(2, 6))
    load_into(fresh, tmp_path / "m.pt")
    assert fresh[0].size == 2
    assert torch.equal(fresh(torch.ones(1, 4, 2)), model(torch.ones(1, 4, 2)))


def test_tied_layers(tmp_path):
    layer, other = LRU(3, 8), LRU(3, 8)
    model, fresh = nn.Sequential(layer, layer), nn.Sequential(other, other)
    compress_(model, 2)
    save_checkpoint(model, tmp_path / "m.pt")
    load_into(fresh, tmp_path / "m.pt")
    assert fresh[0] is fresh[1]
    assert torch.equal(fresh(torch.ones(1, 4, 3)), model(torch.ones(1, 4, 3)))


class TestWriting:
    def test_an_interrupted_save_leaves_the_old_file(self, saved, monkeypatch):
        model, _, path = saved
        before = path.read_bytes()

        def interrupted(content, file):
            file.write(b"half of it")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(model, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["model.pt"]

    def test_what_could_not_be_loaded_is_not_saved(self, saved):
        model, _, path = saved
        before = path.read_bytes()
        with pytest.raises(CheckpointError, match=r"`extra`.*only be loaded by running code"):
            save_checkpoint(model, path, extra=hsv.Order(3))
        assert path.read_bytes() == before

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            save_checkpoint(classifier(), tmp_path / "nowhere" / "m.pt")


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
            load_into(classifier(), tmp_path / "none.pt")

    @pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
    def test_truncated(self, saved, keep):
        path = saved[2]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
        self.check(path, re.escape(str(path)) + r".*(truncated|damaged)")

    def test_damaged_inside(self, saved):
        path = saved[2]
        data = bytearray(path.read_bytes())
        at = data.find(b"data.pkl") + 40
        data[at : at + 200] = bytes(200)
        path.write_bytes(bytes(data))
        self.check(path, "damaged")

    def test_of_another_kind(self, tmp_path):
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
        self.check(tmp_path / "other.pt", "was not written by save_checkpoint")

    def test_text(self, tmp_path):
        (tmp_path / "text.pt").write_text("hello")
        self.check(tmp_path / "text.pt", r"text.pt \(5 bytes\) is not a whole checkpoint")

    def test_of_a_later_release(self, saved):
        content = torch.load(saved[2])
        torch.save({**content, "version": 2}, saved[2])
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
