"""Run the Python blocks of a page, top to bottom, and compare what they print with the page.

As a hook of mkdocs it runs the tutorials while the documentation is built, and a page that no longer says what happens stops the build. The tests run every page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TUTORIALS = "quickstart/"


def blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield language, text and first line number of each fenced block."""
    for m in FENCE.finditer(text):
        yield m[1], m[2], text.count("\n", 0, m.start(2)) + 1


def run_blocks(text: str, page: str | Path) -> None:
    """Run the Python blocks of `text` in the current folder; a block of text below one must be what it prints.

    Raises
    ------
    AssertionError
        It prints something else; the message has the line.
    """
    namespace = {"__name__": "__main__"}
    printed = None
    for language, code, line in blocks(text):
        if language == "python":
            program = compile("\n" * (line - 1) + code, str(page), "exec")  # tracebacks then name the line of the page
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(program, namespace)  # noqa: S102  (the pages are ours)
            printed = output.getvalue()
        elif language == "text" and printed is not None:
            if printed.strip() != code.strip():
                raise AssertionError(f"{page}:{line}: the block above prints something else:\n{printed}")
            printed = None


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> None:
    """Run a tutorial in a folder of its own; the page itself stays as it is."""
    if not page.file.src_uri.startswith(TUTORIALS):
        return
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            run_blocks(markdown, page.file.src_uri)
        finally:
            os.chdir(before)
