"""Formulas become MathML while the pages are built, so that they need no script and no font from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)  # as pymdownx.arithmatex marks them


def on_page_content(html_text: str, **_unused: Any) -> str:
    """Convert every formula of a page; what the converter does not know ends the build."""
    return _FORMULA.sub(_to_mathml, html_text)


def _to_mathml(match: re.Match[str]) -> str:
    return convert(html.unescape(match["latex"]).strip(), display="block" if match["tag"] == "div" else "inline")
