import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hsv
import hsv_torch
from hsv_torch import __main__, cli


def run(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, [str(x) for x in arguments])


def sequence_model(layer="lru", n_states=16):
    torch.manual_seed(0)
    config = hsv_torch.SequenceModelConfig(
        layer=layer, d_model=4, n_states=n_states, n_blocks=2, head="regression", n_inputs=4, n_outputs=1
    )
    return hsv_torch.SequenceModel(config)


@pytest.fixture
def saved(tmp_path):
    model = sequence_model()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = hsv_torch.Schedule(10, at=(1, 2))
    compressor = hsv_torch.InTrainingCompressor(model, optimizer, rule=[12, 10], schedule=schedule)
    compressor.step(), compressor.step()
    path = tmp_path / "run.safetensors"
    hsv_torch.save_checkpoint(model, path, optimizer=optimizer, extra={"run": {"compressor": compressor.state_dict()}})
    return model, path


class TestInspect:
    def test_prints_layers_and_what_a_cut_would_keep_and_the_history(self, saved):
        result = run("inspect", saved[1])
        assert result.exit_code == 0
        for text in ("a SequenceModel of 2 lru blocks", "with an optimizer", "blocks.0.layer", "16 → 12", "12 → 10"):
            assert text in result.stdout

    def test_json_has_the_numbers(self, saved):
        model, path = saved
        facts = json.loads(run("inspect", path, "--json").stdout)
        layer = facts["layers"]["blocks.1.layer"]
        assert layer["n_states"] == 10
        system = hsv_torch.adapter_of(model.blocks[1].layer).system(model.blocks[1].layer)
        sigma = hsv.hankel_singular_values(system).numpy()
        np.testing.assert_allclose(layer["hankel_singular_values"], sigma, rtol=1e-9)
        assert layer["kept_at_discard"]["0.1"] == hsv.HankelSum(discard=0.1).choose(sigma)
        assert [event["step"] for event in facts["history"]["events"]] == [1, 2]
        assert facts["parameters"] == sum(t.numel() for t in model.state_dict().values())

    def test_report(self, saved, tmp_path):
        assert run("inspect", saved[1], "--report", tmp_path / "report.html").exit_code == 0
        assert "<html" in (tmp_path / "report.html").read_text()

    def test_a_model_of_ones_own(self, tmp_path, monkeypatch):
        hsv_torch.save_checkpoint(torch.nn.Sequential(hsv_torch.S5(4, 8)), tmp_path / "own.safetensors")
        assert "8" in run("inspect", tmp_path / "own.safetensors").stdout
        (tmp_path / "mine.py").write_text(
            "import torch, hsv_torch\n\ndef make():\n    return torch.nn.Sequential(hsv_torch.S5(4, 8))\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        facts = json.loads(run("inspect", "own.safetensors", "--model", "mine:make", "--json").stdout)
        assert len(facts["layers"]["0"]["hankel_singular_values"]) == 8
        assert facts["history"] is None

    def test_a_layer_that_needs_data_has_no_spectrum(self, tmp_path):
        hsv_torch.save_checkpoint(sequence_model("mamba", 8), tmp_path / "m")
        facts = json.loads(run("inspect", tmp_path / "m", "--json").stdout)
        assert set(facts["layers"]["blocks.0.layer"]) & {"hankel_singular_values", "kept_at_discard"} == set()
        assert run("inspect", tmp_path / "m").exit_code == 0


class TestCompress:
    def test_writes_the_smaller_model(self, saved, tmp_path):
        out = tmp_path / "small.safetensors"
        result = run("compress", saved[1], "--states", 5, "-o", out)
        assert result.exit_code == 0
        assert "10 -> 5" in result.stdout
        small = hsv_torch.load_model(out)
        assert small.n_states == (5, 5)
        expected = hsv_torch.load_model(saved[1])
        hsv_torch.compress_(expected, 5)
        x = torch.ones(1, 9, 4)
        assert torch.equal(small.eval()(x), expected.eval()(x))
        assert hsv_torch.load_checkpoint(out).optimizer is None

    @pytest.mark.parametrize("criterion", list(cli.Reading))
    def test_options(self, saved, tmp_path, criterion):
        out = tmp_path / "small"
        options = ["--keep", 0.6, "--criterion", criterion, "--multiple-of", 3, "--layer", "blocks.1.*", "--json"]
        facts = json.loads(run("compress", saved[1], "-o", out, *options).stdout)
        assert [record["layer"] for record in facts["layers"]] == ["blocks.1.layer"]
        sizes = hsv_torch.load_model(out).n_states
        assert sizes[0] == 10
        assert sizes[1] in (3, 6, 9)

    def test_a_budget(self, saved, tmp_path):
        assert run("compress", saved[1], "-o", tmp_path / "s", "--total-states", 9, "--uniform").exit_code == 0
        assert hsv_torch.load_model(tmp_path / "s").n_states == (4, 4)

    def test_layers_that_need_data(self, tmp_path):
        hsv_torch.save_checkpoint(sequence_model("mamba", 8), tmp_path / "m")
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 12, 4)).astype(np.float32))
        refused = run("compress", tmp_path / "m", "-o", tmp_path / "s", "--states", 3)
        assert refused.exit_code == 1
        assert "calibration" in refused.stderr
        assert run("compress", tmp_path / "m", "-o", tmp_path / "s", "--states", 3, "--calibration", tmp_path / "x.npy").exit_code == 0  # fmt: skip
        assert hsv_torch.load_model(tmp_path / "s").n_states == (3, 3)

    def test_numpy_writes_double_precision_and_json_has_no_infinity(self, tmp_path):
        hsv_torch.save_checkpoint(sequence_model("mamba", 8), tmp_path / "m")
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 12, 4)))
        options = ["--states", 3, "--calibration", tmp_path / "x.npy", "--json"]
        result = run("compress", tmp_path / "m", "-o", tmp_path / "s", *options)
        assert result.exit_code == 0
        assert "Infinity" not in result.stdout
        assert [record["error_bound"] for record in json.loads(result.stdout)["layers"]] == [None, None]


class TestErrors:
    def check(self, status, message, *arguments):
        result = run(*arguments)
        assert result.exit_code == status
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert message in result.stderr

    def test_each_says_what_to_do(self, saved, tmp_path):
        path, out = saved[1], tmp_path / "out"
        (tmp_path / "text").write_text("hello")
        hsv_torch.save_checkpoint(torch.nn.Linear(1, 1), tmp_path / "own")
        self.check(2, "exactly one of --keep, --states and --total-states", "compress", path, "-o", out)
        self.check(2, "exactly one of", "compress", path, "-o", out, "--keep", 0.5, "--states", 3)
        self.check(1, "HankelSum(keep=...) is a share in (0, 1], got 1.5", "compress", path, "-o", out, "--keep", 1.5)
        self.check(1, "Order must be in [1, 10], got 50", "compress", path, "-o", out, "--states", 50)
        self.check(2, "exists; --overwrite replaces it", "compress", path, "-o", path, "--states", 3)
        self.check(2, "is not a whole checkpoint", "inspect", tmp_path / "text")
        self.check(2, "No such file", "inspect", tmp_path / "none")
        self.check(2, "holds no history", "inspect", tmp_path / "own", "--report", out)
        self.check(2, "--model MODULE:FUNCTION", "compress", tmp_path / "own", "-o", out, "--states", 3)
        self.check(2, "No module named 'nowhere'", "inspect", path, "--model", "nowhere:make")
        self.check(2, "returns a dict, and must return a torch.nn.Module", "inspect", path, "--model", "builtins:dict")
        assert not out.exists()

    def test_calibration_that_is_no_array(self, tmp_path):
        hsv_torch.save_checkpoint(sequence_model("mamba", 8), tmp_path / "m")
        (tmp_path / "text.npy").write_text("1,2,3")
        (tmp_path / "empty.npy").write_text("")
        np.savez(tmp_path / "several.npz", x=np.zeros(3))
        np.save(tmp_path / "words.npy", np.array(["a", "b"]))
        for name, message in {
            "text.npy": "is no .npy file of numbers",
            "empty.npy": "is no .npy file of numbers",
            "several.npz": "must hold one array of numbers",
            "words.npy": "must hold one array of numbers",
            "none.npy": "No such file",
        }.items():
            self.check(2, message, "compress", tmp_path / "m", "-o", tmp_path / "s", "--states", 3, "--calibration", tmp_path / name)  # fmt: skip
        assert not (tmp_path / "s").exists()


def test_the_command_without_its_packages(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "hsv_torch.cli", raising=False)
    monkeypatch.delattr(hsv_torch, "cli", raising=False)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    assert 'pip install "hsv-control[cli]"' in capsys.readouterr().err


def test_help_fits_one_screen_and_has_an_example():
    done = subprocess.run([sys.executable, "-m", "hsv_torch", "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "80", "PATH": ""})  # fmt: skip
    assert len(done.stdout.splitlines()) <= 24
    assert "Example: hsv-torch compress" in done.stdout


def test_scalars_and_json_of_the_history(saved):
    extra = hsv_torch.load_checkpoint(saved[1]).extra
    history = hsv_torch.History.from_dict(extra["run"]["compressor"]["history"])
    numbers = history.events[1].scalars()
    assert numbers["states/blocks.0.layer"] == 10
    assert numbers["drift/blocks.0.layer"] <= numbers["drift_bound/blocks.0.layer"] + 1e-6
    assert all(np.isfinite(value) for value in numbers.values())
    assert json.loads(history.to_json())["events"][0]["layers"][0]["n_states_after"] == 12
