import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import hsv
from hsv_torch import (
    LRU,
    ChannelBasis,
    InTrainingCompressor,
    Mamba,
    Rollback,
    Schedule,
    SequenceModel,
    SequenceModelConfig,
)
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


def rewrite(path, change=lambda header: header, rename=lambda name: name):
    """Write a file as the first releases did: no checksum of the header, no class and shapes of the optimizer."""
    tensors = {rename(name): tensor for name, tensor in safetensors.torch.load_file(path).items()}
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hsv_torch"])
    for key in ("checksum_of_header", "optimizer_class", "optimizer_shapes"):
        header.pop(key, None)
    text = json.dumps(change(header))
    safetensors.torch.save_file(tensors, path, metadata={"hsv_torch": text})


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

    def test_places_of_the_same_name(self, tmp_path):
        model = nn.Linear(1, 1)
        one, two, three = torch.ones(1), torch.zeros(1), torch.full((2,), 2.0)
        extra = {"ema": {1: one, "1": two}, "a.b": one + 2, "a": {"b": three}, "a.b~2": two + 5}
        save_checkpoint(model, tmp_path / "m", extra=extra)
        found = load_checkpoint(tmp_path / "m").extra
        assert found["ema"] == {1: one, "1": two}
        assert torch.equal(found["a.b"], one + 2)
        assert torch.equal(found["a"]["b"], three)
        assert torch.equal(found["a.b~2"], two + 5)

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
    rewrite(tmp_path / "m", lambda header: {**header, "configuration": {**config.to_dict(), "n_states": "many"}})
    with pytest.raises(CheckpointError, match=r"says of no hsv_torch.SequenceModel how to make it: .*many"):
        load_model(tmp_path / "m")
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
        rewrite(saved[2], lambda header: {**header, **change})
        self.check(saved[2], "damaged")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '"text"',
            '{"version": 1}',
            '{"version": 1, "checksums": {}, "content": [], "sizes": {}, "configuration": null}',
        ],
    )
    def test_with_metadata_that_says_nothing(self, tmp_path, text):
        safetensors.torch.save_file({}, tmp_path / "m", metadata={"hsv_torch": text})
        self.check(tmp_path / "m", "damaged: what its metadata says does not fit together")

    @pytest.mark.parametrize(
        "change",
        [
            {"content": {}},
            {"sizes": {"blocks.0.ssm": 5}},
            {"sizes": {"blocks.0.ssm": {"n_states": "5"}}},
            {"configuration": 3},
            {"optimizer_shapes": []},
        ],
    )
    def test_with_parts_of_other_kinds(self, saved, change):
        rewrite(saved[2], lambda header: {**header, **change})
        self.check(saved[2], "damaged: what its metadata says does not fit together")

    def test_with_a_header_that_was_damaged(self, saved):
        path = saved[2]
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        padding = end - len(data[8:end].rstrip()) - 8
        for place in (*range(8), *range(8, end - padding, 211)):
            changed = bytearray(data)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"damaged|was not written by save_checkpoint"):
                load_checkpoint(path)

    @pytest.mark.parametrize("exchanged", [(b"hsv_torch.crc32", b"hsv_torch.crc33"), (b'"F32"', b'"I32"')])
    def test_with_what_no_checksum_of_the_bytes_sees(self, saved, exchanged):
        data = saved[2].read_bytes()
        start = data.rindex(exchanged[0])
        saved[2].write_bytes(data[:start] + exchanged[1] + data[start + len(exchanged[1]) :])
        self.check(saved[2], "damaged: the checksum of its metadata is")

    def test_of_another_kind(self, tmp_path):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        self.check(tmp_path / "other.safetensors", "was not written by save_checkpoint")
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
        self.check(tmp_path / "other.pt", "not written by save_checkpoint")

    def test_text(self, tmp_path):
        (tmp_path / "text.pt").write_text("hello")
        self.check(tmp_path / "text.pt", r"text.pt \(5 bytes\) is not a whole checkpoint")

    def test_of_a_later_release(self, saved):
        rewrite(saved[2], lambda header: {**header, "version": 2})
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


class TestOptimizers:
    @pytest.mark.parametrize("first_release", [False, True])
    @pytest.mark.parametrize(("one", "other"), [("SGD", "AdamW"), ("AdamW", "SGD"), ("Adam", "RMSprop")])
    def test_of_another_class(self, tmp_path, one, other, first_release):
        model = classifier()
        optimizer = getattr(torch.optim, one)(model.parameters(), lr=1e-3)
        train_step(model, optimizer, 0)
        save_checkpoint(model, tmp_path / "m", optimizer=optimizer)
        message = f"of the class {one!r}, and `optimizer` is of the class {other!r}"
        if first_release:
            rewrite(tmp_path / "m")
            message = f"of another class than {other!r}: its groups do not have the options"
        fresh = classifier(seed=4)
        fresh_optimizer = getattr(torch.optim, other)(fresh.parameters(), lr=1e-3)
        options = dict(fresh_optimizer.param_groups[0])
        weight = fresh.head.weight.detach().clone()
        with pytest.raises(CheckpointError, match=message):
            load_into(fresh, tmp_path / "m", optimizer=fresh_optimizer)
        assert fresh_optimizer.param_groups[0] == options
        assert not fresh_optimizer.state
        assert torch.equal(fresh.head.weight, weight)
        train_step(fresh, fresh_optimizer, 1)

    def test_an_option_that_the_class_has_got_since(self, saved):
        model, optimizer, path = saved

        def without_the_option(header):
            (groups,) = [value for key, value in header["content"]["optimizer"]["dict"] if key == "param_groups"]
            for group in groups:
                group["dict"] = [pair for pair in group["dict"] if pair[0] != "fused"]
            return header

        rewrite(path, without_the_option)
        load_into(model, path, optimizer=optimizer)
        assert optimizer.param_groups[0]["fused"] is None

    def begin(self, *, swapped=False, shapes=((2,), (2,))):
        """A model, two parameters of a loss, and a function that makes an optimizer of them all."""
        torch.manual_seed(0)
        model = nn.Sequential(Mamba(d_model=4, n_states=8), nn.Linear(4, 1))
        own = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        given = own[::-1] if swapped else own
        return model, own, lambda: torch.optim.AdamW([*model.parameters(), *given])

    def save(self, path, **options):
        model, (one, two), optimize = self.begin(**options)
        optimizer, x = optimize(), torch.randn(2, 6, 4)
        compress_(model, 4, calibration=x, criterion=ChannelBasis(), optimizer=optimizer)
        (model(x).sum() + one.sum() + 1000 * two.sum()).backward()
        optimizer.step()
        save_checkpoint(model, path, optimizer=optimizer)
        return optimizer.state[one]["exp_avg"], optimizer.state[two]["exp_avg"]

    @pytest.mark.parametrize("first_release", [False, True])
    def test_parameters_that_are_not_the_models(self, tmp_path, first_release):
        expected = self.save(tmp_path / "m")
        if first_release:
            rewrite(tmp_path / "m")
        model, own, optimize = self.begin()
        load_into(model, tmp_path / "m")
        optimizer = optimize()  # the parameters that the cut has added stand elsewhere in it
        load_into(model, tmp_path / "m", optimizer=optimizer)
        for parameter, moment in zip(own, expected, strict=True):
            assert torch.equal(optimizer.state[parameter]["exp_avg"], moment)

    def test_parameters_that_are_not_the_models_in_another_order(self, tmp_path):
        shapes = ((2,), (3,))
        self.save(tmp_path / "m", shapes=shapes)
        model, _, optimize = self.begin(swapped=True, shapes=shapes)
        load_into(model, tmp_path / "m")
        optimizer = optimize()
        with pytest.raises(
            CheckpointError, match=r"parameter 0 of those that are not the model's .* shape \(3,\), and had \(2,\)"
        ):
            load_into(model, tmp_path / "m", optimizer=optimizer)
        assert not optimizer.state


@pytest.fixture(scope="module")
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.usefixtures("one_process")
class TestWrappers:
    WRAPPERS = (
        lambda model: model,
        compiled,
        DataParallel,
        DistributedDataParallel,
        lambda model: compiled(DistributedDataParallel(compiled(model))),
    )
    PREFIXES = ("", "_orig_mod.", "module.", "module.", "_orig_mod.module._orig_mod.")

    def named_as_before(self, path, prefix):
        """Give a file the names that the first releases gave what they saved of a wrapped model."""

        def renamed(header):
            ((_, pairs),) = header["content"]["model"].items()
            for pair in pairs:
                pair[0] = prefix + pair[0]
            groups = header["content"]["optimizer_parameters"]
            header["content"]["optimizer_parameters"] = [[prefix + name for name in group] for group in groups]
            return {**header, "sizes": {prefix + name: size for name, size in header["sizes"].items()}}

        rewrite(path, renamed)

    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_of_the_saved_model_do_not_matter(self, tmp_path, wrap):
        model, optimizer = cut_and_trained()
        save_checkpoint(wrap(model), tmp_path / "m", optimizer=optimizer)
        stored = load_checkpoint(tmp_path / "m")
        assert stored.sizes == layer_sizes(model) == layer_sizes(wrap(model))
        assert list(stored.model) == list(model.state_dict())
        assert "blocks.0.ssm.theta" in stored.optimizer_parameters[0]

    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_either_may_be_wrapped(self, tmp_path, wrap, prefix):
        model, optimizer = cut_and_trained()
        save_checkpoint(model, tmp_path / "m", optimizer=optimizer)
        self.named_as_before(tmp_path / "m", prefix)
        fresh = classifier(seed=2)
        fresh_optimizer = torch.optim.AdamW(fresh.parameters())
        trained = wrap(fresh)
        load_into(trained, tmp_path / "m", optimizer=fresh_optimizer)
        assert layer_sizes(fresh) == {"blocks.0.ssm": {"n_states": 5}, "blocks.1.ssm": {"n_states": 7}}
        for name, value in model.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)
        for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(optimizer.state[p]["exp_avg"], fresh_optimizer.state[q]["exp_avg"])

    def test_processes_reduce_the_gradients_of_the_new_parameters(self, saved):
        fresh = classifier()
        trained = DistributedDataParallel(fresh)
        optimizer = torch.optim.AdamW(fresh.parameters())
        load_into(trained, saved[2], optimizer=optimizer)
        for step in range(3):  # without a new reducer the second one raises
            train_step(trained, optimizer, step)

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
    def test_a_sequence_model_is_rebuilt(self, tmp_path, prefix):
        config = SequenceModelConfig(
            layer="lru", d_model=4, n_states=16, head="regression", n_outputs=2, n_inputs=3, n_blocks=1
        )
        model = SequenceModel(config)
        compress_(model, 5)
        save_checkpoint(compiled(model), tmp_path / "m", optimizer=torch.optim.AdamW(model.parameters()))
        assert load_model(tmp_path / "m").n_states == (5,)
        self.named_as_before(tmp_path / "m", prefix)
        assert load_model(tmp_path / "m").n_states == (5,)

    def test_a_model_with_a_part_of_a_wrappers_name(self, tmp_path):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = LRU(2, 8)

        model, fresh = Net(), Net()
        compress_(model, 3)
        save_checkpoint(DataParallel(model), tmp_path / "m")
        assert list(load_checkpoint(tmp_path / "m").sizes) == ["module"]
        load_into(fresh, tmp_path / "m")
        assert fresh.module.n_states == 3

    def test_a_bare_layer(self, tmp_path):
        layer, fresh = LRU(2, 8), LRU(2, 8)
        optimizer = torch.optim.AdamW(layer.parameters())
        compress_(layer, 3, optimizer=optimizer)
        save_checkpoint(layer, tmp_path / "m", optimizer=optimizer)
        load_into(compiled(fresh), tmp_path / "m")
        assert fresh.n_states == 3

    def test_sizes_go_by_the_names_of_the_wrapper_too(self):
        model = classifier()
        for prefix, size in (("module.", 3), ("", 4)):
            resize_layers(DataParallel(model), {f"{prefix}blocks.0.ssm": {"n_states": size}})
            assert layer_sizes(model)["blocks.0.ssm"] == {"n_states": size}


def test_a_run_that_a_first_release_saved_goes_on():
    """The file was written by the commit 537bfb9, from torch.compile(model), after 5 of 10 steps."""
    path = Path(__file__).parent / "data/checkpoint_of_a_first_release.safetensors"
    torch.manual_seed(1)
    model = nn.Sequential(LRU(2, 6), nn.Linear(2, 1))
    own = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([*model.parameters(), *own], lr=1e-2)
    guard = Rollback(lambda: 0.5, max_drop=0.1)
    compressor = InTrainingCompressor(
        model, optimizer, rule=[4, 2], schedule=Schedule(10, at=(2, 8)), guard=guard, min_reduction=0.0
    )
    compressor.load_state_dict(load_into(model, path, optimizer=optimizer))
    assert compressor.steps == 5
    assert model[0].n_states == 4
    assert [optimizer.state[p]["exp_avg"][0].sign().item() for p in own] == [1.0, -1.0]
    with torch.no_grad():  # these are no part of the file
        own[0].fill_(0.9499), own[1].fill_(1.0499)
    while compressor.steps < 10:
        x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(compressor.steps))
        optimizer.zero_grad()
        (model(x).square().mean() + own[0].square().sum() + 100 * (own[1] - 3).square().sum()).backward()
        optimizer.step()
        compressor.step()
    assert model[0].n_states == 2
    expected = torch.tensor([[-0.4915294349193573, 0.3116716146469116]])  # of that run itself
    assert torch.allclose(model[1].weight, expected, rtol=1e-4)


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


def test_what_is_loaded_in_inference_mode_can_be_trained(tmp_path):
    model, optimizer = cut_and_trained()
    save_checkpoint(model, tmp_path / "run.safetensors", optimizer=optimizer)
    other = classifier()
    again = torch.optim.AdamW(other.parameters(), lr=1e-2)
    with torch.inference_mode():
        load_into(other, tmp_path / "run.safetensors", optimizer=again)
    for pair in ((model, optimizer), (other, again)):
        torch.manual_seed(0)
        train_step(*pair, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
