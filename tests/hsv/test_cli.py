import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

import hsv
from hsv import __main__, cli
from tests.hsv import reference_systems as known


@pytest.fixture
def power():
    return known.slicot_power_system().system()


@pytest.fixture
def model(tmp_path, power):
    path = tmp_path / "power.mat"
    hsv.save(power, path, inputs=["u1", "u2"], outputs=["a", "b", "c"], name="power")
    return path


@pytest.fixture
def unstable(tmp_path):
    path = tmp_path / "unstable.json"
    hsv.save(hsv.StateSpace(np.diag([1.5, 0.5, 0.2]), np.ones((3, 1)), np.ones((1, 3)), dt=0.1), path)
    return path


def run(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, [str(x) for x in arguments])


def test_help_fits_one_screen_and_its_example_runs(model, monkeypatch):
    done = subprocess.run([sys.executable, "-m", "hsv", "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "80", "PATH": ""})  # fmt: skip
    assert len(done.stdout.splitlines()) <= 24
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    (example,) = re.findall(r"Example: hsv (.*\S)", done.stdout)
    monkeypatch.chdir(model.rename(model.with_name("plant.mat")).parent)
    assert run(*shlex.split(example)).exit_code == 0
    assert hsv.load("small.mat").n_states == 7  # its last values are above 0.01


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def as_json(*arguments):
    return json.loads(succeed(*arguments, "--json"))


def fail(status, *arguments):
    """The one line of an error."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_info_of_a_complex_mat_file_has_both_parts(tmp_path):
    path = tmp_path / "complex.mat"
    hsv.save(hsv.StateSpace([[-1.0 + 2j]], [[1.0]], [[1j]], dt=0), path)
    facts = as_json("info", path)
    assert facts["dtype"] == "complex128"
    assert facts["poles_near_boundary"] == [{"real": -1.0, "imag": 2.0, "margin": 1.0}]


def test_info_for_machines_has_every_digit(model, power):
    facts = as_json("info", model)
    sizes = {"states": 7, "inputs": 2, "outputs": 3, "dt": 0, "matrix": "dense", "dtype": "float64", "stable": True}
    assert facts.items() >= sizes.items()
    assert facts["labels"] == {"inputs": ["u1", "u2"], "outputs": ["a", "b", "c"], "name": "power"}
    sigma = hsv.hankel_singular_values(power)
    assert facts["hankel_singular_values"] == sigma.tolist()
    assert facts["minimal_order"] == 7
    assert facts["norms"] == {
        "hinf": float(hsv.hinf_norm(power)),
        "h2": float(hsv.h2_norm(power)),
        "hankel": float(hsv.hankel_norm(power)),
    }
    margins = [pole["margin"] for pole in facts["poles_near_boundary"]]
    assert margins == sorted(margins)
    np.testing.assert_allclose(margins[0], -power.poles().real.max())
    suggested = {row["option"]: row for row in facts["suggested_orders"]}
    for share in (0.9, 0.99):
        red = hsv.balanced_truncation(power, hsv.HankelSum(keep=share))
        row = suggested[f"--keep {share}"]
        assert row["order"] == red.orders
        assert row["error_bound"] == pytest.approx(float(red.error_bound), rel=1e-14)


def test_info_says_the_bound_that_a_reduction_will_have_where_rounding_counts(tmp_path):
    path, system = tmp_path / "heat.npz", known.heat_equation(100).system()
    hsv.save(system, path)
    facts = as_json("info", path)
    sigma = np.array(facts["hankel_singular_values"])
    assert len(facts["error_bounds"]) == 100
    for order in (5, 14):
        red = hsv.balanced_truncation(system, order)
        assert facts["error_bounds"][order - 1] == pytest.approx(float(red.error_bound), rel=1e-3)
    assert float(red.error_bound) > 2 * sigma[14:].sum() * 1.4
    for row in facts["suggested_orders"]:
        assert row["error_bound"] == facts["error_bounds"][row["order"] - 1]


def test_info_for_people_says_the_same(model):
    text = succeed("info", model)
    for words in (
        "7, 2, 3",
        "u1, u2",
        "continuous",
        "-0.518127 ± 3.12592i",
        "2.5139e+00",
        "H-infinity norm",
        "4.23278",
    ):
        assert words in text
    assert "H-infinity norm" not in succeed("info", model, "--no-norms")


def test_info_of_an_unstable_model(unstable):
    facts = as_json("info", unstable)
    assert (facts["stable"], facts["unstable_poles"]) == (False, 1)
    assert facts["poles_near_boundary"][0] == {"real": 1.5, "imag": 0.0, "margin": -0.5}
    assert "hankel_singular_values" not in facts
    text = succeed("info", unstable)
    assert "no: 1 of 3 poles are not" in text
    assert "--keep-unstable" in text


def test_infinite_norms_are_null_for_machines(tmp_path):
    path = tmp_path / "direct.npz"
    hsv.save(hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[2.0]], dt=0), path)
    assert as_json("info", path)["norms"]["h2"] is None
    assert "infinite" in succeed("info", path)
    assert "infinite" in succeed("compare", path, path)


def test_models_that_are_hard_to_describe(tmp_path):
    """No controllable state; a delay, whose pole is at 0; many complex states."""
    path = tmp_path / "model.npz"
    hsv.save(hsv.StateSpace([[0.0]], [[1.0]], [[0.0]], dt=True), path)
    assert as_json("info", path)["suggested_orders"] == []
    assert "1 of" not in succeed("info", path)
    hsv.save(known.lru_initialisation(np.random.default_rng(0), 30, 2), path, overwrite=True)
    assert as_json("info", path)["matrix"] == "diagonal"
    assert "and 18 more; --json has all" in succeed("info", path)


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        (["--order", "3"], hsv.Order(3)),
        (["--error-bound", "1.5"], hsv.ErrorBound(1.5)),
        (["--keep", "0.9"], hsv.HankelSum(keep=0.9)),
        (["--keep-energy", "0.9"], hsv.HankelEnergy(keep=0.9)),
        (["--threshold", "0.5"], hsv.Threshold(0.5)),
        (["--largest-gap"], hsv.LargestGap()),
    ],
)
def test_every_rule_reduces_as_the_library_does(option, rule, model, power, tmp_path):
    out = tmp_path / "small.json"
    facts = as_json("reduce", model, *option, "-o", out)
    red = hsv.balanced_truncation(power, rule)
    small = hsv.load(out)
    assert facts["order"] == small.n_states == red.system.n_states
    assert facts["error_bound"] == float(red.error_bound)
    assert facts["error"] == pytest.approx(float(hsv.hinf_error(power, small)))
    np.testing.assert_allclose(small.A, red.system.A)
    assert hsv.labels(out) == hsv.labels(model)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("singular-perturbation", hsv.singular_perturbation),
        ("hankel-norm", hsv.hankel_norm_approximation),
        ("modal", hsv.modal_truncation),
        ("irka", hsv.irka),
    ],
)
def test_every_method_is_the_librarys(name, method, tmp_path):
    system = known.random_stable(np.random.default_rng(3), 6, 1, 1, dt=True)
    path, out = tmp_path / "model.npz", tmp_path / "small.npz"
    hsv.save(system, path)
    facts = as_json("reduce", path, "--order", "3", "--method", name, "-o", out)
    red = method(system, 3)
    assert facts["error_bound"] == (None if red.error_bound is None else float(red.error_bound))
    w = np.linspace(0, np.pi, 9)
    np.testing.assert_allclose(hsv.load(out).frequency_response(w), red.system.frequency_response(w))
    assert "error found" in succeed("reduce", path, "--order", "3", "--method", name)


def test_notes_are_shown(model):
    doubled = model.with_name("doubled.json")
    system = hsv.load(model)
    hsv.save(system + system, doubled)
    text = succeed("reduce", doubled, "--order", "10")
    assert "Note: the order was capped at 7 instead of 10" in text
    assert as_json("reduce", doubled, "--order", "10", "--no-check").keys().isdisjoint({"error", "relative_error"})


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_written(suffix, start, model, tmp_path):
    picture = tmp_path / f"out.{suffix}"
    assert str(picture) == as_json("reduce", model, "--order", "3", "--plot", picture, "--no-check")["plot"]
    assert picture.read_bytes().startswith(start)


def test_pictures_of_every_kind_of_result(model, unstable, tmp_path):
    succeed("reduce", model, "--order", "2", "--method", "modal", "--plot", tmp_path / "modal.png")
    succeed("reduce", unstable, "--order", "1", "--keep-unstable", "--plot", tmp_path / "unstable.png")
    succeed("compare", model, model, "--plot", tmp_path / "compare.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_an_unstable_model_is_refused_or_split(unstable, model, tmp_path):
    line = fail(cli.REFUSED, "reduce", unstable, "--order", "1")
    assert "spectral radius 1.5" in line
    assert "--keep-unstable" in line
    out = tmp_path / "small.npz"
    facts = as_json("reduce", unstable, "--order", "1", "--keep-unstable", "-o", out)
    assert (facts["order"], facts["unstable_states_kept"]) == (2, 1)
    small, whole = hsv.load(out), hsv.load(unstable)
    assert np.abs(small.poles()).max() == pytest.approx(1.5)
    w = np.linspace(0, 30, 50)
    difference = np.abs(small.frequency_response(w) - whole.frequency_response(w)).max()
    assert 0 < difference <= facts["error_bound"]
    assert as_json("reduce", model, "--order", "3", "--keep-unstable")["unstable_states_kept"] == 0
    hsv.save(hsv.StateSpace([[2.0]], [[1.0]], [[1.0]], dt=True), out, overwrite=True)
    assert "no stable part" in fail(cli.REFUSED, "reduce", out, "--order", "1", "--keep-unstable")


def test_compare(model, power, tmp_path):
    small = tmp_path / "small.npz"
    succeed("reduce", model, "--order", "3", "-o", small)
    result = as_json("compare", model, small)
    reduced = hsv.load(small)
    assert [facts["states"] for facts in result["models"]] == [7, 3]
    assert result["difference"] == {
        "hinf": float(hsv.hinf_error(power, reduced)),
        "h2": float(hsv.h2_norm(power - reduced)),
        "hankel": float(hsv.hankel_norm(power - reduced)),
    }
    text = succeed("compare", model, small)
    assert f"{result['difference']['hinf']:.4e}" in text
    assert "of the first one's largest gain" in text


def test_compare_what_cannot_be_compared(model, unstable, tmp_path):
    assert "same inputs and outputs, got 2 -> 3 and 1 -> 1" in fail(cli.USAGE, "compare", model, unstable)
    other = tmp_path / "other.npz"
    hsv.save(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True), other)
    assert "same dt, got 0.1 and True" in fail(cli.USAGE, "compare", unstable, other)
    assert "Norms are those of stable systems" in succeed("compare", unstable, unstable)
    assert "difference" not in as_json("compare", unstable, unstable)


def test_the_time_base_of_a_file_that_has_none(tmp_path):
    path = tmp_path / "model.mat"
    scipy.io.savemat(path, {"A": [[0.5]], "B": [[1.0]], "C": [[1.0]]})
    assert "pass --dt 0 (continuous), --dt true or --dt SECONDS (discrete)" in fail(cli.USAGE, "info", path)
    assert as_json("info", path, "--dt", "true")["dt"] is True
    assert as_json("info", path, "--dt", "0.5")["dt"] == 0.5
    for wrong in ("-1", "soon", "inf", "nan"):
        assert f"got '{wrong}'" in fail(cli.USAGE, "info", path, "--dt", wrong)


def test_wrong_use_is_status_2(model, tmp_path, rng):
    assert "exactly one of --order" in fail(cli.USAGE, "reduce", model)
    assert "got --order and --keep" in fail(cli.USAGE, "reduce", model, "--order", "3", "--keep", "0.9")
    assert "--keep: HankelSum(keep=...) is a share" in fail(cli.USAGE, "reduce", model, "--keep", "1.5")
    assert "No such file" in fail(cli.USAGE, "info", tmp_path / "nothing.mat")
    assert "must end in .npz, .json, .mat" in fail(cli.USAGE, "reduce", model, "--order", "3", "-o", tmp_path / "a.txt")
    assert "must end in one of" in fail(cli.USAGE, "reduce", model, "--order", "3", "--plot", tmp_path / "a.txt")
    assert "there is no folder" in fail(cli.USAGE, "reduce", model, "--order", "3", "-o", tmp_path / "no" / "a.mat")
    assert "exists; --overwrite replaces it" in fail(cli.USAGE, "reduce", model, "--order", "3", "-o", model)
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    assert "cannot be read as JSON" in fail(cli.USAGE, "info", damaged)
    batch = tmp_path / "batch.npz"
    hsv.save(known.random_stable(rng, 3, 1, 1, dt=True, batch=(2,)), batch)
    assert "batch of shape (2,)" in fail(cli.USAGE, "info", batch)
    small = tmp_path / "small.mat"
    hsv.save(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True), small)
    assert "Order must be in [1, 1], got 3" in fail(cli.REFUSED, "reduce", small, "--order", "3")
    assert run("reduce", model, "--method", "magic").exit_code == cli.USAGE
    assert run("reduce", model, "--order", "2.5").exit_code == cli.USAGE


def test_a_refusal_writes_nothing(unstable, tmp_path):
    fail(cli.REFUSED, "reduce", unstable, "--order", "1", "-o", tmp_path / "o.npz", "--plot", tmp_path / "o.png")
    assert list(tmp_path.iterdir()) == [unstable]


def test_overwrite_replaces(model, power):
    succeed("reduce", model, "--order", "3", "-o", model, "--overwrite")
    assert hsv.load(model).n_states == 3


def test_without_matplotlib(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture = tmp_path / "out.png"
    assert 'pip install "hsv-control[plot]"' in fail(cli.USAGE, "reduce", model, "--order", "3", "--plot", picture)
    succeed("reduce", model, "--order", "3")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_packages_of_the_command(package, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] in ("typer", "rich") or name == "hsv.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(hsv, "cli")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith('pip install "hsv-control[cli]"')


def test_as_a_process(model):
    """`python -m hsv`: status, standard output for results, standard error for errors, no traceback."""
    ran = subprocess.run([sys.executable, "-m", "hsv", "info", model, "--json"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["states"] == 7
    assert ran.stderr == ""


def test_the_documentation_shows_what_the_command_prints(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text()
    blocks = re.findall(r"^```(python|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shown = 0
    for language, text in blocks:
        if language == "python":
            exec(text, {})
            continue
        command, _, expected = text.partition("\n")
        program, *arguments = shlex.split(command.removeprefix("$ "))
        assert program == "hsv"
        result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, arguments)
        assert [x.rstrip() for x in result.stdout.splitlines()] == expected.splitlines(), command
        shown += 1
    assert shown == 3


def test_the_library_imports_nothing_that_only_the_command_needs():
    script = "import sys, hsv; print(*sorted({'typer', 'rich', 'matplotlib', 'h5py', 'pymor'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
