"""The page of the reproduction: its marks are filled with tables, pictures and sentences made from the kept results."""

from __future__ import annotations

import os
import re
from pathlib import Path

from paper_repro.errors import ResultError
from paper_repro.results import write_atomically
from paper_repro.tables.claims import CLAIMS, claim_words
from paper_repro.tables.collected import RESULTS, collected_path
from paper_repro.tables.grid import NOT_RUN
from paper_repro.tables.pictures import read_caption
from paper_repro.tables.plan import VARIANTS, read_plan
from paper_repro.tables.show import kept_figures
from paper_repro.tables.summary import make_grid

END = "<!-- end of results -->"
_PART = re.compile(r"<!-- results: (?P<words>[^>]*?) -->\n(?P<old>.*?)<!-- end of results -->", re.DOTALL)
PICTURES = "images/reproduction"  # beside the page


def fill_page(page: Path, results: Path = RESULTS) -> int:
    """Put what the results say between the marks of `page`, and return how many there are.

    A mark is a line ``<!-- results: table accuracy cpu -->``, ``<!-- results: claim speed -->`` or ``<!-- results: pictures accuracy cpu -->``, and what it
    stands for ends with the line ``<!-- end of results -->``. Everything else on the page stays as it is.

    Raises
    ------
    ResultError
        If the page is missing or has no mark, or a mark names what there is not.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not _PART.search(text):
        raise ResultError(
            f"{page} has no place for results: a line '<!-- results: claim speed -->' and, below it, {END!r}"
        )

    def renewed(match: re.Match[str]) -> str:
        words = match["words"]
        return f"<!-- results: {words} -->\n\n{part(words, page.parent, results).strip()}\n\n{END}"

    filled, count = _PART.subn(renewed, text)
    write_atomically(filled.encode(), page)
    return count


def part(words: str, beside: Path, results: Path) -> str:
    """Return what a mark stands for."""
    kind, _, rest = words.partition(" ")
    names = rest.split()
    if kind == "claim" and rest in CLAIMS:
        return claim_words(rest, results)
    if kind in ("table", "pictures") and len(names) == 2 and names[1] in VARIANTS:
        return _table(names[0], names[1], results) if kind == "table" else _pictures("_".join(names), beside)
    if kind == "pictures" and len(names) == 1:
        return _pictures(rest, beside)
    raise ResultError(
        f"a mark says {words!r}; it must be 'table NAME VARIANT', 'pictures NAME VARIANT', 'pictures NAME', or 'claim' and one of {', '.join(CLAIMS)}"
    )


def _table(name: str, variant: str, results: Path) -> str:
    plan = read_plan(name)
    kept = next(own for own in VARIANTS if own == variant)
    if not collected_path(plan, kept, results).is_file():
        return f"**Table {plan.number} ({name}, {variant}): {plan.title}**: {NOT_RUN}. `python -m paper_repro run {name} --{variant}` runs it."
    return make_grid(kept_figures(plan, kept, results)).to_markdown()


def _pictures(prefix: str, beside: Path) -> str:
    """Return the pictures that begin with `prefix`, each with its caption below, as Markdown."""
    found = sorted(
        path for path in (beside / PICTURES).glob("*.svg") if path.stem == prefix or path.stem.startswith(f"{prefix}_")
    )
    captions = {path: read_caption(path) for path in found}
    return "\n\n".join(
        f"![{title}]({os.path.join(PICTURES, path.name)})\n\n*{caption}*" for path, (title, caption) in captions.items()
    )
