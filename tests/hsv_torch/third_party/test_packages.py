"""Packages that adapters need: found, missing, or broken inside."""

import sys

import pytest

import hsv
from hsv_torch.third_party._packages import required_package


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
