"""Every relative link of the pages that stand outside of the built site leads to a file, and to a heading in it. Links inside the site are checked by its build, which is strict."""

import re
from pathlib import Path

import pytest

from docs.extensions.code_blocks import FENCE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    return [link for link in LINK.findall(prose(page)) if not link.startswith(("http://", "https://")) and not leads_somewhere(page, link)]  # fmt: skip


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    return not anchor or anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(target), re.M)}


def slug(heading: str) -> str:
    """The anchor of a heading where repositories are read: small letters, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert not broken(ROOT / page)


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A title\n\n```sh\n# a comment\n```\n")
    page.write_text(
        "[a](other.md) [b](other.md#a-title) [c](https://example.org/none) [d](other.md#a-comment) [e](gone.md) [f](#none)"
    )
    assert broken(page) == ["other.md#a-comment", "gone.md", "#none"]


def test_the_readme_has_links():
    assert len(LINK.findall(prose(ROOT / "README.md"))) >= 4
