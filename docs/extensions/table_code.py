"""Long names in tables may break after an underscore, or after a dot before a letter, and nowhere else."""

import re
from typing import Any

_CELL = re.compile(r"<td\b.*?</td>", re.DOTALL)
_CODE = re.compile(r"(<code>)([^<]+)(</code>)")
_BREAK = re.compile(r"(?<=\w_)(?=\w)|(?<=\w\.)(?=[A-Za-z_])")


def on_page_content(html_text: str, **_unused: Any) -> str:
    """Mark the places in the code of every cell of every table."""
    return _CELL.sub(lambda cell: _CODE.sub(_with_breaks, cell[0]), html_text)


def _with_breaks(code: re.Match[str]) -> str:
    return code[1] + _BREAK.sub("<wbr>", code[2]) + code[3]
