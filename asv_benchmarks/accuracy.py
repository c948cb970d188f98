"""How many digits are right: tables in Markdown, beside printed answers and beside the peers.

``python -m asv_benchmarks.accuracy examples [--write docs/accuracy.md]``: the printed examples of other packages, expected and found.
``python -m asv_benchmarks.accuracy problems [--all] [--only NAME] [--write docs/accuracy.md]``: problems that a formula defines, beside the peers that are installed.
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path

from asv_benchmarks import formula_problems, published_examples

PEERS = ("control", "slycot", "pymor", "numpy", "scipy")


def main(arguments: list[str] | None = None) -> int:
    """Print or write what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=sorted(SECTIONS))
    parser.add_argument("--all", action="store_true", help="the problems of a minute and more too")
    parser.add_argument("--only", metavar="NAME", default="", help="the problems with this in their name")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put it between the markers of this page as well")
    asked = parser.parse_args(arguments)
    text = SECTIONS[asked.what](asked)
    print(text)
    if asked.write is not None:
        asked.write.write_text(with_section(asked.write.read_text(), asked.what, text))
    return 0


def examples(_: argparse.Namespace | None = None) -> str:
    """Return the table of printed examples."""
    return markdown(published_examples.table())


def problems(asked: argparse.Namespace) -> str:
    """Return both tables of problems, and the versions they were made with."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS if _installed(name))
    values = markdown(formula_problems.table(slow=asked.all, only=asked.only))
    return "\n\n".join([values, markdown(formula_problems.equation_table()), f"Made with {versions}."])


SECTIONS = {"examples": examples, "problems": problems}


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with `text` between ``<!-- name -->`` and ``<!-- end of name -->``."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(first) != 1 or page.count(last) != 1:
        raise SystemExit(f"the page must have the lines {first} and {last} once each")
    return f"{page.partition(first)[0]}{first}\n\n{text}\n\n{last}{page.partition(last)[2]}"


def section(page: str, name: str) -> str:
    """Return what stands between the markers."""
    return page.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].strip()


def markdown(rows: list[list[str]]) -> str:
    """Return a Markdown table; the first row is its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
