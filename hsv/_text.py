"""How systems and reductions look when printed, and in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from hsv._array import to_host

_LARGEST_SHOWN = 10  # rows and columns of the four matrices together
_VALUES_SHOWN = 8


def system_html(sys: Any) -> str:
    """The one line of ``repr``, and below it the four matrices of a small system."""
    parts = [f"<p><code>{escape(repr(sys))}</code></p>"]
    size = sys.n_states + max(sys.n_inputs, sys.n_outputs)
    if not sys.batch_shape and size <= _LARGEST_SHOWN:
        dense = sys.to_dense()
        A, B, C, D = (to_host(x) for x in (dense.A, dense.B, dense.C, dense.D))
        n = A.shape[0]
        rows = []
        for i, row in enumerate(np.block([[A, B], [C, D]])):
            cells = "".join(f"<td{_borders(above=i == n, left=j == n)}>{_number(x)}</td>" for j, x in enumerate(row))
            rows.append(f"<tr>{cells}</tr>")
        parts.append(f'<table title="A, B above C, D" style="border-collapse:collapse">{"".join(rows)}</table>')
    return "".join(parts)


def _borders(*, above: bool, left: bool) -> str:
    lines = "border-top:1px solid;" * above + "border-left:1px solid;" * left
    return f' style="{lines}"' if lines else ""


def reduction_text(red: Any) -> str:
    """One line: what was reduced to what, with which guarantee."""
    batch = f"batch {red.system.batch_shape}, " if red.system.batch_shape else ""
    facts = [f"{batch}{_orders(red)}"]
    if red.error_bound is not None:
        facts.append(f"error at most {_largest(red.error_bound)}")
    if red.notes:
        facts.append(f"{len(red.notes)} note{'s' * (len(red.notes) > 1)}")
    return f"<Reduction: {', '.join(facts)}>"


def reduction_html(red: Any) -> str:
    """A table of what :func:`reduction_text` says, with the first Hankel values and the notes."""
    rows = [("system", repr(red.system)), ("states", _orders(red).removesuffix(" states"))]
    if red.error_bound is not None:
        rows.append(("error at most", _largest(red.error_bound)))
    if red.hankel_singular_values is not None and not red.system.batch_shape:
        values = to_host(red.hankel_singular_values)
        shown = ", ".join(f"{x:.3g}" for x in values[:_VALUES_SHOWN])
        rows.append(("Hankel singular values", shown + (", …" if len(values) > _VALUES_SHOWN else "")))
    rows += [("note", note) for note in red.notes]
    return _rows_html("Reduction", rows)


def _rows_html(title: str, rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(key)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for key, value in rows
    )
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


def _orders(red: Any) -> str:
    orders = to_host(red.orders)
    least, most = int(orders.min(initial=red.system.n_states)), int(orders.max(initial=0))
    kept = f"{most}" if least >= most else f"{least} to {most}"
    return f"{kept} states" if red.n_original_states is None else f"{red.n_original_states} -> {kept} states"


def _largest(bound: Any) -> str:
    return f"{float(to_host(bound).max(initial=0.0)):.3g}"


def _number(x: complex) -> str:
    if not np.iscomplexobj(x):
        return f"{x:.4g}"
    return f"{x.real:.4g}{x.imag:+.4g}i"
