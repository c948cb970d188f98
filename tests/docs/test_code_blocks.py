"""Every Python block of the documentation runs, top to bottom on each page, and prints what the page says it prints."""

from pathlib import Path

import pytest

from docs.extensions.code_blocks import blocks, run_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if any(language == "python" for language, _, _ in blocks(page.read_text()))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages may write files
    run_blocks(page.read_text(), page)


def test_a_page_that_prints_something_else_is_found() -> None:
    page = "# Title\n\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    with pytest.raises(AssertionError, match=r"page.md:8: the block above prints something else:\n2"):
        run_blocks(page, "page.md")
    run_blocks(page.replace("\n3\n", "\n2\n"), "page.md")


def test_the_documentation_has_code_on_its_quickstart_pages() -> None:
    assert {"README.md", "control.md", "training.md"} <= {page.name for page in WITH_CODE}
