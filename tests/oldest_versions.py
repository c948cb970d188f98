"""Print the oldest releases that `pyproject.toml` allows, as requirements: ``python tests/oldest_versions.py torch cli > oldest.txt``."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


def lower_bounds(extras: list[str]) -> Iterator[str]:
    """Yield ``name==lowest`` for every dependency of the package and of `extras`, those that they include too."""
    for text in (*PYPROJECT["dependencies"], *(text for e in extras for text in PYPROJECT["optional-dependencies"][e])):
        requirement = Requirement(text)
        if requirement.name == PYPROJECT["name"]:
            yield from lower_bounds(sorted(requirement.extras))
        elif requirement.marker is None or requirement.marker.evaluate():
            (lowest,) = (specifier.version for specifier in requirement.specifier if specifier.operator == ">=")
            extra = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            yield f"{requirement.name}{extra}=={lowest}"


if __name__ == "__main__":
    print("\n".join(sorted(set(lower_bounds(sys.argv[1:])))))
