"""What tests of adapters for other packages share."""

import importlib.abc
import sys

import pytest


@pytest.fixture
def hide_package(monkeypatch):
    """A function that makes a package look as if it were not installed, until the test ends."""

    class Hidden(importlib.abc.MetaPathFinder):
        def __init__(self, package):
            self.package = package

        def find_spec(self, fullname, path=None, target=None):
            if fullname == self.package:
                raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    def hide(package):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])

    return hide
