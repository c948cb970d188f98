"""Every benchmark is well formed, and every public computation of `hsv` has one."""

import importlib
import inspect
import itertools
import re
from pathlib import Path

import pytest

import hsv
from asv_benchmarks import table

FOLDER = Path(importlib.import_module("asv_benchmarks").__file__).parent
# What computes nothing, or only looks at a system: conversions, pictures, labels, reading a rule.
NOT_TIMED = re.compile(
    r"as_rule|labels|real_part|(require_)?backends?|(from|to)_(control|pymor|scipy)|plot_\w+|balance|observability_\w+"
)


FILES = [
    path.stem
    for path in sorted(FOLDER.glob("*.py"))
    if re.search(r"^    param_names = ", path.read_text(), re.MULTILINE)
]


def classes(name):
    """Return the classes of benchmarks of a file."""
    module = importlib.import_module(f"asv_benchmarks.{name}")
    found = [x for _, x in inspect.getmembers(module, inspect.isclass) if x.__module__ == module.__name__]
    return [x for x in found if hasattr(x, "params")]


@pytest.mark.parametrize("name", FILES)
def test_a_class_asks_a_question_and_names_its_parameters(name):
    for benchmark in classes(name):
        assert "?" in benchmark.__doc__.splitlines()[0]
        assert len(benchmark.param_names) == len(benchmark.params)
        if table.LIBRARY in benchmark.param_names:
            libraries = benchmark.params[benchmark.param_names.index(table.LIBRARY)]
            assert libraries[0].startswith("hsv")


def test_every_public_computation_is_timed():
    sources = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    names = [name for name in hsv.__all__ if inspect.isfunction(getattr(hsv, name)) and not NOT_TIMED.fullmatch(name)]
    missing = [name for name in names if not re.search(rf"\bhsv\.{name}\b", sources)]
    assert not missing


OURS = [
    "descriptor", "discretize", "empirical", "files", "frequency_limited", "frequency_weighted", "gramians", "hankel", "hankel_norm", "irka", "limited", "modal", "norms",
    "riccati_balancing", "singular_perturbation", "split", "state_space", "sylvester",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_library_computes(name):
    """With the smallest sizes."""
    for benchmark in classes(name):
        (method,) = [m for m in dir(benchmark) if m.startswith("time_")]
        first, *others = benchmark.params
        for key in itertools.product(first[:1], *others):
            one = benchmark()
            try:
                one.setup(*key)
            except NotImplementedError:
                continue
            getattr(one, method)(*key)
            getattr(one, "teardown", lambda *_: None)(*key)
