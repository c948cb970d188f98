"""Every Python block of the documentation runs, top to bottom on each page, and prints what the page says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Return language, text and first line number of each fenced block."""
    text = page.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(language == "python" for language, _, _ in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages may write files
    namespace = {"__name__": "__main__"}
    printed = None
    for language, text, line in blocks(page):
        if language == "python":
            code = compile("\n" * (line - 1) + text, page, "exec")  # tracebacks then name the line of the page
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed = output.getvalue()
        elif language == "text" and printed is not None:
            assert printed.strip() == text.strip(), (
                f"{page.relative_to(ROOT)}:{line}: the block above prints something else"
            )
            printed = None


def test_the_documentation_has_code_on_its_quickstart_pages() -> None:
    with_code = {page.name for page in PAGES if any(language == "python" for language, _, _ in blocks(page))}
    assert {"README.md", "control.md", "training.md"} <= with_code
