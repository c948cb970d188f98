"""Formulas become MathML while the pages are built, so that they need no script and no font from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)  # as pymdownx.arithmatex marks them


_SPACING = [
    (
        re.compile(r"<mo(?: stretchy=\"false\")?>&#x0007C;</mo>"),
        '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>',
    ),
    (re.compile(r"<mi>(&#x02A(?:AF|B0);)</mi>"), r"<mo>\1</mo>"),  # smaller, larger in the order of matrices
    (re.compile(r"<mo>(\w{2,})</mo>(?=<mo stretchy=\"false\">&#x00028;)"), r'<mo lspace="0.17em" rspace="0">\1</mo>'),
]
"""Spaces that the converter leaves wrong: around bars of a modulus, around relations that it does not know, between a name and its bracket."""


def on_page_content(html_text: str, **_unused: Any) -> str:
    """Convert every formula of a page; what the converter does not know ends the build."""
    return _FORMULA.sub(_to_mathml, html_text)


def _to_mathml(match: re.Match[str]) -> str:
    text = convert(html.unescape(match["latex"]).strip(), display="block" if match["tag"] == "div" else "inline")
    for wrong, right in _SPACING:
        text = wrong.sub(right, text)
    return text
