"""A table as text: rows of cells, on a terminal, in Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.table import Table

NOT_RUN = "not run"
Format = Literal["terminal", "markdown", "latex", "csv"]
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "→": r"$\to$", "−": r"$-$"}


@dataclass(frozen=True)
class Grid:
    """A title, the names of the columns, the rows below them, and remarks."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    n_left: int = 2  # columns of words, which stand at the left

    def to_markdown(self) -> str:
        """Return the table in Markdown, the notes below it."""
        alignment = ["---" if number < self.n_left else "---:" for number in range(len(self.header))]
        lines = [_markdown_row(row) for row in (self.header, alignment, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def to_latex(self) -> str:
        """Return a `tabular` of the package booktabs, with the title and the notes as comments."""
        columns = "l" * self.n_left + "r" * (len(self.header) - self.n_left)
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        head = " & ".join(map(_latex, self.header)) + r" \\"
        comments = [f"% {line}" for line in (self.title, *self.notes)]
        body = [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join([*comments, *body]) + "\n"

    def to_csv(self) -> str:
        """Return header and rows, with commas between."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def to_rich(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        for number, column in enumerate(self.header):
            table.add_column(column, justify="left" if number < self.n_left else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
