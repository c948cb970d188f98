"""Packages that adapters need: found, missing, or broken inside."""

import ast
import sys
from pathlib import Path

import pytest
from torch import nn

import hsv
import hsv_torch
from hsv_torch.third_party import _packages
from hsv_torch.third_party._packages import SERVED, required_package


def test_a_package_that_is_there_is_returned():
    assert required_package("json", "json-of-the-standard-library") is sys.modules["json"]


def test_a_missing_package_is_named_with_what_installs_it():
    with pytest.raises(
        hsv.MissingBackendError,
        match=r"the package `no_such_package_of_layers` is needed here and not installed; pip install no-such",
    ):
        required_package("no_such_package_of_layers.inside", "no-such-package")


def test_an_error_inside_a_package_is_not_mistaken_for_its_absence(tmp_path, monkeypatch):
    (tmp_path / "package_with_a_broken_import.py").write_text("import no_such_package_of_layers\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_layers") as caught:
        required_package("package_with_a_broken_import", "broken")
    assert not isinstance(caught.value, hsv.HsvError)


def registered_in(path):
    """The full names of the layer types that a module registers adapters for, read from its text."""
    tree = ast.parse(path.read_text())
    packages = {
        node.targets[0].id: node.value.args[0].value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(getattr(node.value, "func", None), "id", "") == "required_package"
    }
    decorators = [d for node in tree.body if isinstance(node, ast.ClassDef) for d in node.decorator_list]
    return {f"{packages[d.args[0].value.id]}.{d.args[0].attr}" for d in decorators if d.func.id == "register_adapter"}


def test_the_table_of_what_is_served_is_that_of_the_modules():
    folder = Path(_packages.__file__).parent
    found = {path.stem: registered_in(path) for path in folder.glob("[!_]*.py")}
    assert found == {module: set(names) for module, names in SERVED.items()}


def test_a_model_of_another_package_names_the_import_that_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "hsv_torch.third_party.transformers", raising=False)
    mixer = type("MambaMixer", (nn.Module,), {"__module__": "transformers.models.mamba.modeling_mamba"})
    message = r"; import hsv_torch\.third_party\.transformers first, which serves its MambaMixer$"
    with pytest.raises(hsv.HsvError, match=message):
        hsv_torch.compress_(nn.Sequential(mixer()), 4)
    with pytest.raises(hsv.HsvError, match=r"matches no layer that can be cut .*" + message):
        hsv_torch.compress_(nn.Sequential(mixer(), hsv_torch.LRU(4, 8)), 4, layers=["0"])
    monkeypatch.setitem(sys.modules, "hsv_torch.third_party.transformers", _packages)
    with pytest.raises(hsv.HsvError, match=r"register one for its layers with hsv_torch\.register_adapter$"):
        hsv_torch.compress_(nn.Sequential(mixer()), 4)
