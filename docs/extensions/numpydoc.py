"""Docstrings are numpydoc, whose text is reStructuredText; the pages are Markdown. This translates what the docstrings use of it:
formulas (``.. math::`` and ``:math:``) and cross-references (``:func:`` and its kin).
"""

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>[^\n]*)\n(?P<rest>(?: *\n|(?P=indent) +[^\n]*\n?)*)", re.MULTILINE
)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|func|meth|attr|exc|mod|data):`~?([\w.]+)`")
_CITATION = re.compile(r"^( *)\.\. \[(\w+)\] ", re.MULTILINE)


class Numpydoc(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_unused: Any) -> None:
        """Translate the docstring of one module, class, function or attribute."""
        if obj.docstring is None:
            return
        text = _BLOCK.sub(_block, obj.docstring.value + "\n")
        text = _INLINE.sub(lambda match: f"${' '.join(match[1].split())}$", text)
        text = _CITATION.sub(r"\1", text)
        obj.docstring.value = _ROLE.sub(lambda match: _link(match[1], obj), text).strip()


def _block(match: re.Match[str]) -> str:
    formula = " ".join(f"{match['first']} {match['rest']}".split())
    if r"\\" in formula and r"\begin" not in formula:  # Sphinx aligns lines by itself
        formula = rf"\begin{{aligned}} {formula} \end{{aligned}}"
    return textwrap.indent(f"\n$$\n{formula}\n$$\n\n", match["indent"])


def _link(name: str, obj: Object) -> str:
    """Return a link to a public name, or the bare name where there is none: an internal one, or another project's."""
    package = obj.package
    owner = obj if obj.is_class else obj.parent
    if owner is not None and owner.is_class and owner.name in package.members and name in owner.members:
        return f"[`{name}`][{package.name}.{owner.name}.{name}]"
    root, _, rest = name.partition(".")
    if root in ("hsv", "hsv_torch") and rest:
        return (
            f"[`{name}`][{name}]" if root != package.name or rest.partition(".")[0] in package.members else f"`{name}`"
        )
    return f"[`{name}`][{package.name}.{name}]" if root in package.members else f"`{name}`"
