"""The history of a compression as tables and pictures: for the terminal, for a figure of one's own, as one HTML file."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hsv import HankelSum, HsvError, MissingBackendError
from hsv_torch.history import Event, History, LayerRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

# Three colours of middling lightness between which the attempts are spread: legible on white and on black.
_EARLY_TO_LATE = ("#2f7fe0", "#a05fd0", "#e0662f")
# Okabe and Ito's colours without black and yellow, for the layers; the linestyle changes with each round.
_LAYER_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_LINE_STYLES = ("-", "--", ":", "-.")
_SMALLEST_SHOWN = 1e-12  # of the largest value: below it is rounding
_TEXT_COLOUR = "#010203"  # stands for the page's own text colour until the picture is inside the page

_COLUMNS = (
    "attempt", "step", "layer", "states", "outcome", "sum kept", "margin", "error bound", "drift (at most)", "metric", "seconds",
)  # fmt: skip
_DISCARDS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.001)


def plot_spectra(history: History, ax: Axes, *, layer: str | None = None) -> Axes:
    """Draw the Hankel singular values that each attempt found in one layer, on a logarithmic axis.

    What the rule keeps is drawn thick, the rest thin; a cut that was undone has a cross at its end, and where nothing was
    cut the whole curve is thin. Of a layer with a system for each channel the curve is the median over the channels, and their range is
    shaded.

    Parameters
    ----------
    history
        ``compressor.history``.
    ax
        Where to draw.
    layer
        Dotted name; it may be left out if there is only one layer.

    Returns
    -------
    Axes
        `ax`.

    Raises
    ------
    HsvError
        If the history has no such layer, or several and none is named.
    """
    if layer is None and len(history.layers) == 1:
        layer = history.layers[0]
    if layer not in history.layers:
        raise HsvError(f"`layer` must be one of {list(history.layers)}, got {layer!r}")
    found = [(event, record) for event, record in history.records(layer) if record.hankel_singular_values is not None]
    for position, (event, record) in enumerate(found):
        colour = _blend(position / max(1, len(found) - 1))
        lowest, values, highest = _spectrum(record)
        states = np.arange(1, len(values) + 1)
        if _n_systems(record) is not None:
            ax.fill_between(states, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        thick = 0 if record.n_states_chosen is None or record.outcome == "unchanged" else (record.order or 0)
        marker = "." if len(values) <= 40 else ""
        ax.plot(
            states,
            values,
            color=colour,
            linewidth=0.8,
            marker=marker,
            markersize=3,
            label=_attempt_label(event, record),
        )
        ax.plot(states[:thick], values[:thick], color=colour, linewidth=2.6, solid_capstyle="round")
        if thick:
            end = "x" if record.outcome == "undone" else "|"
            ax.plot(states[thick - 1], values[thick - 1], color=colour, marker=end, markersize=9, markeredgewidth=2)
    ax.set_xlabel("number of the value, largest first")
    batch = any(_n_systems(record) is not None for _, record in found)
    ax.set_ylabel("Hankel singular value (gain)" + (", median and range" if batch else ""))
    if found:
        ax.set_yscale("log")
        ax.legend(title="attempt at step: states", fontsize="small", title_fontsize="small")
    else:
        _say(ax, "no attempt yet")
    return ax


def plot_states(history: History, ax: Axes) -> Axes:
    """Draw the states of each layer over the optimizer steps.

    Crosses mark cuts that were undone, at the size that was tried; triangles mark cuts that were refused.

    Parameters
    ----------
    history
        ``compressor.history``.
    ax
        Where to draw.

    Returns
    -------
    Axes
        `ax`.
    """
    end = max(history.steps, 1)
    markers = {"undone": "x", "refused": "^"}
    seen: set[str] = set()
    for number, layer in enumerate(history.layers):
        steps, sizes = history.sizes_over_steps(layer)
        colour = _LAYER_COLOURS[number % len(_LAYER_COLOURS)]
        ax.step(
            [*steps, end],
            [*sizes, sizes[-1]],
            where="post",
            color=colour,
            linestyle=_LINE_STYLES[number // len(_LAYER_COLOURS) % len(_LINE_STYLES)],
            linewidth=1.8,
            label=layer or "the model",
        )
        for event, record in history.records(layer):
            if record.outcome in markers:
                tried = record.n_states_before if record.n_states_chosen is None else record.n_states_chosen
                ax.plot(
                    event.step, tried, marker=markers[record.outcome], color=colour, markersize=8, markeredgewidth=2
                )
                seen.add(record.outcome)
    for outcome in sorted(seen):
        ax.plot([], [], linestyle="", marker=markers[outcome], color="#808080", label=f"a cut {outcome}")
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("states of the layer")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax


def plot_heat_map(history: History, ax: Axes, *, layer: str | None = None) -> Axes:
    """Draw the Hankel singular values of one layer over the attempts as colours: how the spectrum moves while training goes on.

    A row is an attempt, a column the number of the value; the colour is the logarithm of the value relative to the largest of its attempt.

    Parameters and errors as for :func:`plot_spectra`; of a layer with a system for each channel the median is shown.
    """
    if layer is None and len(history.layers) == 1:
        layer = history.layers[0]
    if layer not in history.layers:
        raise HsvError(f"`layer` must be one of {list(history.layers)}, got {layer!r}")
    found = [(event, record) for event, record in history.records(layer) if record.hankel_singular_values is not None]
    ax.set_xlabel("number of the value, largest first")
    ax.set_ylabel("attempt at step")
    if not found:
        _say(ax, "no attempt yet")
        return ax
    spectra = [_spectrum(record)[1] for _, record in found]
    table = np.full((len(spectra), max(map(len, spectra))), np.nan)
    for row, values in zip(table, spectra, strict=True):
        largest = np.nanmax(values) if np.isfinite(values).any() else 1.0
        row[: len(values)] = np.log10(values / largest)
    edges = np.arange(table.shape[1] + 1) + 0.5
    image = ax.pcolormesh(edges, np.arange(len(found) + 1), table, cmap="viridis", rasterized=False)
    for position, (_, record) in enumerate(found):
        if record.order is not None and record.outcome in ("cut", "undone"):
            ax.plot([record.order + 0.5] * 2, [position, position + 1], color="#e0662f", linewidth=2.5)
    ax.set_yticks(np.arange(len(found)) + 0.5, [str(event.step) for event, _ in found])
    ax.invert_yaxis()
    ax.grid(visible=False)
    bar = ax.figure.colorbar(image, ax=ax)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")  # a picture inside the picture would not scale
    bar.set_label("log10 of the value, relative to the largest")
    return ax


def plot_drift(history: History, ax: Axes) -> Axes:
    """Draw how far Hankel singular values moved between two attempts (points), and how far they could have (bars, by Weyl's bound)."""
    drawn = False
    for number, layer in enumerate(history.layers):
        found = [(event.step, record.drift) for event, record in history.records(layer) if record.drift is not None]
        if not found:
            continue
        steps = [step for step, _ in found]
        colour = _LAYER_COLOURS[number % len(_LAYER_COLOURS)]
        ax.vlines(steps, 0, [drift.bound for _, drift in found], color=colour, linewidth=5, alpha=0.3)
        changes = [drift.largest_change for _, drift in found]
        ax.plot(steps, changes, "o", color=colour, label=layer or "the model")
        drawn = True
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("change of a Hankel singular value (gain)")
    if drawn:
        ax.set_ylim(bottom=0)
        ax.legend(fontsize="small")
    else:
        _say(ax, "no two attempts to compare")
    return ax


def events_table(history: History) -> Table:
    """Everything that was attempted, as a table for ``rich.print``: refusals and undone cuts included.

    Raises
    ------
    MissingBackendError
        If the package rich is not installed.
    """
    try:
        from rich import box
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingBackendError(
            "events_table needs the package rich, which is not installed: pip install rich"
        ) from error
    left_out = ("drift (at most)", "sum kept", "margin")
    shown = [_COLUMNS.index(column) for column in _COLUMNS if column not in left_out]  # fits into 80 columns
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=_summary(history),
        title_justify="left",
        caption_justify="left",
    )
    for number in shown:
        table.add_column(_COLUMNS[number], overflow="fold", no_wrap=_COLUMNS[number] in ("states", "outcome", "metric"))
    styles = {"cut": "green", "undone": "red", "refused": "yellow", "unchanged": "dim"}
    reasons = [f"{name}: {text}" for name, text in _batch_remarks(history).items()]
    for event, record in _rows(history):
        cells = _cells(event, record)
        table.add_row(*(Text(cells[number]) for number in shown), style=styles[record.outcome])
        if record.reason and record.outcome in ("undone", "refused"):
            reasons.append(f"attempt {event.attempt}, {record.layer}: {record.reason}")
    table.caption = Text("\n".join(reasons)) if reasons else None  # Text: names and reasons may contain [brackets]
    return table


def write_html(history: History, path: str | os.PathLike[str], *, title: str = "Compression while training") -> None:
    """Write the history as one HTML file that needs nothing else: no network, no script.

    Parameters
    ----------
    history
        ``compressor.history``.
    path
        The file; it is replaced.
    title
        Heading of the page.

    Raises
    ------
    MissingBackendError
        If matplotlib is not installed.
    """
    Path(path).write_text(to_html(history, title=title), encoding="utf-8")


def to_html(history: History, *, title: str = "Compression while training") -> str:
    """The page of :func:`write_html` as a string."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_summary(history))}</p>",
        _html_table(("layer", "states at first", "states now", "kept"), _size_cells(history)),
        "<h2>States over training</h2>",
        _picture(lambda ax: plot_states(history, ax), "States of each layer over the optimizer steps", "states"),
        "<h2>Hankel singular values</h2>",
        "<p>One curve for each attempt, of the layer before it. Thick: what the rule keeps. A cross ends a cut that was "
        "undone; a curve without a thick part was left as it was. Below it the same as colours, with the cut as a line.</p>",
        *(
            f"<p>{escape(name)}: {escape(text)}. The curve is the median over the channels, their range is shaded.</p>"
            for name, text in _batch_remarks(history).items()
        ),
    ]
    for number, layer in enumerate(history.layers):
        name = layer or "the model"
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.append(
            _picture(
                lambda ax, layer=layer: plot_spectra(history, ax, layer=layer),
                f"Hankel singular values of {name} at each attempt",
                f"spectra{number}",
            )
        )
        parts.append(
            _picture(
                lambda ax, layer=layer: plot_heat_map(history, ax, layer=layer),
                f"Hankel singular values of {name} over the attempts, as colours",
                f"heat{number}",
            )
        )
    discards = _discard_cells(history)
    if discards:
        parts += [
            "<h2>With another tau</h2>",
            "<p>How many values each attempt would have kept, had it been allowed to discard this share of their sum.</p>",
            _html_table(("attempt", "step", "layer", "values", *map(str, _DISCARDS)), discards),
        ]
    parts += [
        "<h2>Drift</h2>",
        _picture(lambda ax: plot_drift(history, ax), "Change of the Hankel singular values between attempts", "drift"),
        "<h2>Attempts</h2>",
        "<p>Drift is the largest change of a Hankel singular value since the attempt before, and the Hankel norm of the "
        "difference of the two systems, which no change exceeds. Margin is how far the rule was from another choice: runs whose rounding errors are "
        "smaller choose alike.</p>",
        _html_table(
            _COLUMNS,
            [_cells(event, record) for event, record in _rows(history)],
            classes=[record.outcome for _, record in _rows(history)],
            remarks=[_remarks(record) for _, record in _rows(history)],
        ),
        "<h2>Time</h2>",
        _html_table(("", "steps", "seconds"), _time_cells(history)),
        "<p>A step is timed from one call of the compressor to the next, with all that the training loop does between.</p>",
    ]
    memory = _memory_cells(history)
    if memory:
        parts += [
            "<h2>Memory</h2>",
            "<p>Parameters, buffers and the optimizer's state, as one process holds them.</p>",
            _html_table(
                ("attempt", "step", "MiB before", "MiB after", "most allocated on the GPU so far, MiB"), memory
            ),
        ]
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def figure_to_svg(figure: Figure, *, prefix: str) -> str:
    """A figure as an ``<svg>`` element to stand inside a page, equal for equal figures.

    Parameters
    ----------
    figure
        The figure.
    prefix
        Put before every id, so that several pictures can stand in one page.
    """
    mpl = _matplotlib()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "hsv_torch", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingBackendError(
            "pictures need the package matplotlib, which is not installed: pip install matplotlib"
        ) from error
    return mpl


def _picture(draw: Any, caption: str, prefix: str) -> str:
    mpl = _matplotlib()
    from matplotlib.figure import Figure

    own = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT_COLOUR)
    style = {
        **own,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#80808040",
        "legend.frameon": False,
        "font.size": 11,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")  # inches; the page scales it to its width
        draw(figure.add_subplot())
        svg = figure_to_svg(figure, prefix=prefix)
    return f'<figure role="img" aria-label="{escape(caption, quote=True)}">{svg}</figure>'


def _blend(fraction: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(colour) for colour in _EARLY_TO_LATE])
    place = fraction * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    return tuple((colours[first] + (place - first) * (colours[first + 1] - colours[first])).tolist())


def _n_systems(record: LayerRecord) -> int | None:
    """How many systems a layer has; None for one, and where nothing was measured."""
    values = record.hankel_singular_values
    return None if values is None or values.ndim == 1 else values.shape[0]


def _spectrum(record: LayerRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest, median and largest value of a layer's systems at each place. What is only rounding is left out, NaN."""
    values = np.atleast_2d(np.asarray(record.hankel_singular_values, dtype=np.float64))  # (systems, n)
    counted = values > _SMALLEST_SHOWN * values.max(axis=1, initial=0.0, keepdims=True)
    some = counted.any(axis=0)  # (n,)
    kept = np.where(counted, values, np.nan)[:, some]
    result = np.full((3, values.shape[1]), np.nan)
    if some.any():
        result[:, some] = np.nanmin(kept, axis=0), np.nanmedian(kept, axis=0), np.nanmax(kept, axis=0)
    return result[0], result[1], result[2]


def _attempt_label(event: Event, record: LayerRecord) -> str:
    change = f"{event.step}: {record.n_states_before}"
    if record.n_states_chosen is not None and record.outcome != "unchanged":
        change += f" → {record.n_states_chosen}"
    return change + ("" if record.outcome == "cut" else f" ({record.outcome})")


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)


def _rows(history: History) -> list[tuple[Event, LayerRecord]]:
    return [(event, record) for event in history.events for record in event.layers]


def _summary(history: History) -> str:
    before, now = sum(history.initial_sizes.values()), sum(history.sizes.values())
    undone = sum(event.undone for event in history.events)
    refused = sum(record.outcome == "refused" for _, record in _rows(history))
    remarks = [f"undone by the guard: {undone}"] * bool(undone) + [f"cuts of a layer refused: {refused}"] * bool(
        refused
    )
    text = (
        f"{len(history.initial_sizes)} {'layer' if len(history.initial_sizes) == 1 else 'layers'}, {before} states at first, "
        f"{now} after {history.steps} of {history.total_steps} steps and {len(history.events)} attempts"
    )
    return text + (f" ({', '.join(remarks)})." if remarks else ".")


def _size_cells(history: History) -> list[tuple[str, ...]]:
    now = history.sizes
    return [
        (layer or "the model", str(first), str(now[layer]), f"{now[layer] / first:.0%}")
        for layer, first in history.initial_sizes.items()
    ]


def _cells(event: Event, record: LayerRecord) -> tuple[str, ...]:
    chosen = record.n_states_chosen
    drift = record.drift
    metrics = [f"{value:.4g}" for value in (event.metric_before, event.metric_after) if value is not None]
    return (
        str(event.attempt),
        str(event.step),
        record.layer or "the model",
        str(record.n_states_before) + (f" → {chosen}" if chosen is not None else ""),
        record.outcome + (" (not yet decided)" if event.pending and record.outcome == "cut" else ""),
        _share_kept(record),
        "" if record.margin is None else f"{record.margin:.2g}",
        "" if record.error_bound is None else f"{record.error_bound:.3g}",
        "" if drift is None else f"{drift.largest_change:.2g} ({drift.bound:.2g})",
        " → ".join(metrics),
        f"{event.seconds:.3f}",
    )


def _share_kept(record: LayerRecord) -> str:
    """The share of the Hankel sum that a cut keeps, or would have kept; the least one of a layer with many systems."""
    values, order = record.hankel_singular_values, record.order
    if values is None or order is None or record.outcome == "unchanged":
        return ""
    sums = np.atleast_2d(values).sum(axis=-1)
    kept = np.atleast_2d(values)[:, :order].sum(axis=-1)[sums > 0] / sums[sums > 0]
    return f"{kept.min():.1%}" if kept.size else ""


def _discard_cells(history: History) -> list[tuple[str, ...]]:
    """What every attempt would have kept with another tau."""
    rows = []
    for event, record in _rows(history):
        values = record.hankel_singular_values
        if values is not None and values.size:
            kept = (int(HankelSum(discard=tau).choose(values).max()) for tau in _DISCARDS)
            name = record.layer or "the model"
            rows.append((str(event.attempt), str(event.step), name, str(values.shape[-1]), *map(str, kept)))
    return rows


def _batch_remarks(history: History) -> dict[str, str]:
    """What the number of states means in layers with a system for each channel."""
    systems = {record.layer: _n_systems(record) for _, record in _rows(history)}
    return {
        layer or "the model": f"one system for each of {n} channels, with as many states each"
        for layer, n in systems.items()
        if n is not None
    }


def _remarks(record: LayerRecord) -> str:
    return "; ".join((*([record.reason] if record.reason else []), *record.notes))


def _time_cells(history: History) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    stretches: list[Event | History] = [*history.events, history]
    for number, part in enumerate(stretches):
        name = f"a step before attempt {part.attempt}" if isinstance(part, Event) else "a step after the last attempt"
        if part.steps_timed:
            rows.append((name, str(part.steps_timed), f"{part.step_seconds / part.steps_timed:.4g}"))
        elif number == len(stretches) - 1:
            rows.append((name, "0", "not timed"))
    rows.append(("all measuring and cutting", "", f"{history.reduction_seconds:.3g}"))
    training = sum(part.step_seconds for part in stretches)
    if training > 0:
        share = history.reduction_seconds / (training + history.reduction_seconds)
        rows.append(("its share of the time timed here", "", f"{share:.2%}"))
    if history.evaluation_seconds:
        rows.append(("the guard's evaluations", "", f"{history.evaluation_seconds:.3g}"))
    return rows


def _memory_cells(history: History) -> list[tuple[str, ...]]:
    return [
        (
            str(event.attempt),
            str(event.step),
            _mebibytes(event.memory_before),
            _mebibytes(event.memory_after),
            _mebibytes(event.peak_memory),
        )
        for event in history.events
        if event.memory_before is not None
    ]


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.4g}"


def _html_table(
    columns: Iterable[str],
    rows: Sequence[Sequence[str]],
    *,
    classes: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for number, row in enumerate(rows):
        kind = f' class="{escape(classes[number], quote=True)}"' if classes else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
        if remarks and remarks[number]:
            body.append(f'<tr class="remark"><td></td><td colspan="{len(row) - 1}">{escape(remarks[number])}</td></tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --line: #d4d9df; --cut: #16703a; --undone: #b3261e; --refused: #8a5a00; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e8eb; --page: #14171a; --line: #3a4047; --cut: #6fcf97; --undone: #ff8a80; --refused: #f2c14e; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 52rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.25rem; margin-top: 2rem; }} h3 {{ font-size: 1rem; font-family: ui-monospace, monospace; }}
figure {{ margin: 0.5rem 0; }}
svg {{ width: 100%; height: auto; max-width: 44rem; display: block; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }}
th, td {{ text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }}
tr.remark td {{ white-space: normal; font-size: 0.85rem; opacity: 0.85; }}
tr.cut td:nth-child(5) {{ color: var(--cut); font-weight: 600; }}
tr.undone td:nth-child(5) {{ color: var(--undone); font-weight: 600; }}
tr.refused td:nth-child(5) {{ color: var(--refused); font-weight: 600; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
