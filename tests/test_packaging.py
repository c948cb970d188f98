"""What the packages promise as packages: what they import, export and ship."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hsv", "hsv_torch", "paper_repro")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(package: str) -> dict[str, Path]:
    """Return the modules of a package by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, inside functions too: modules, or ``module.name`` for names in them."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}; imports are absolute here"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("hsv", {"torch", "hsv_torch", "paper_repro", "slycot", "tests"}),
        ("hsv_torch", {"paper_repro", "slycot", "control", "tests"}),
        ("paper_repro", {"slycot", "control", "tests"}),
    ],
)
def test_arrows_between_packages_never_run_backwards(package: str, forbidden: set[str]) -> None:
    wrong = {name: bad for name, path in sources(package).items() if (bad := top_level(imports(path)) & forbidden)}
    assert not wrong, wrong


def test_paper_repro_uses_the_public_interface_alone() -> None:
    private = {
        name: bad
        for name, path in sources("paper_repro").items()
        if (
            bad := {
                i
                for i in imports(path)
                if i.startswith(("hsv.", "hsv_torch.")) and any(p.startswith("_") for p in i.split("."))
            }
        )
    }
    assert not private, private


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_one_another_without_cycles(package: str) -> None:
    modules = sources(package)
    # `from a import b` uses the module a.b if there is one, else the module a.
    uses = {
        name: {i if i in modules else i.rpartition(".")[0] for i in imports(path)} & modules.keys() - {name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for used in sorted(uses[name]):
                visit(used, (*trail, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("hsv", ("torch", "numba", "matplotlib", "control", "slycot", "cupy", "pandas", "sklearn")),
        ("hsv_torch", ("numba", "matplotlib", "control", "slycot", "sklearn")),
    ],
)
def test_importing_leaves_optional_and_slow_packages_alone(package: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {package}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_importing_hsv_is_quick() -> None:
    # Half a second is several times what it takes on two cores; importing numba or torch by accident takes longer.
    script = "import time, numpy; start = time.process_time(); import hsv; print(time.process_time() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.5


@pytest.mark.parametrize("package", ["hsv", "hsv_torch"])
def test_every_public_name_exists_and_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__), "a name is listed twice in __all__"
    assert module.__doc__
    undocumented = []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue
        if not (value.__doc__ or "").strip():
            undocumented.append(name)
        if inspect.isclass(value):
            undocumented += [f"{name}.{method}" for method in undocumented_methods(value)]
    assert not undocumented, undocumented


def undocumented_methods(cls: type) -> list[str]:
    """Return the public methods and properties that a class defines without a docstring, its own or an inherited one."""
    members = {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    }
    return [name for name, value in members.items() if not inspect.getdoc(getattr(cls, name)) and value is not None]


@pytest.mark.parametrize("package", ["hsv", "hsv_torch"])
def test_all_lists_every_public_name_of_the_init_file(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    bound = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    public = {name for name in bound if not name.startswith("_")} - {"annotations"}
    assert public <= set(module.__all__), public - set(module.__all__)


@pytest.mark.parametrize("package", ["hsv", "hsv_torch"])
def test_type_information_is_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_wheel_has_the_two_packages_alone() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["hsv", "hsv_torch"]


def test_no_gpl_package_is_needed_at_run_time() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = PYPROJECT["project"]["dependencies"] + [r for e in extras.keys() - {"test", "bench"} for r in extras[e]]
    assert "slycot" not in {Requirement(r).name for r in needed}


def test_every_pin_satisfies_the_range_that_the_packages_accept() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = PYPROJECT["project"]
    # The CUDA extras are not part of the pinned environment: a machine has one of the two at most.
    extras = {name: rs for name, rs in project["optional-dependencies"].items() if not name.startswith("cuda")}
    for text in project["dependencies"] + [r for requirements in extras.values() for r in requirements]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{text}: no pin in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{text}: pinned to {pins[name]}"
