"""Pictures of the tables, each from the results that are kept, with captions; they can be read on white and on dark pages."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from paper_repro import ranking
from paper_repro.errors import ResultError
from paper_repro.results import RunResult, Spectrum
from paper_repro.statistics import summarise
from paper_repro.tables.collected import RESULTS, collected_variants
from paper_repro.tables.plan import plan_names, read_plan
from paper_repro.tables.show import kept_figures
from paper_repro.tables.summary import RowFigures, TableFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#808080"
COLOURS = {"full": INK, "in_training": "#3b7dd8", "from_scratch": "#e07b39", "distilled": "#3a9d5d", "other": "#a05fc0"}
MARKERS = {"in_training": "o", "from_scratch": "^", "distilled": "s"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "hsv",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#80808040",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDTH, HEIGHT = 5.6, 3.6  # inches; a page scales it to its width
RANKING = "ranking"
FAR_BELOW = 10  # distances from the lower quartile to the median
SMALLEST_SHOWN = 1e-6  # of the largest Hankel value
MOST = 100.0  # per cent: no axis of accuracies, and no bar, goes beyond
OPEN_MARKS = "open marks: single seeds"
FAINT_LINES = f"faint lines: single runs; dotted line: {ranking.EARLY:.0%} of the steps".replace("%", " %")


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows in a few words for those who do not see it, and the caption below it: what is on the axes and what the marks are."""

    figure: Figure
    title: str
    caption: str


def draw_all(
    directory: Path, extension: str, results: Path = RESULTS, *, tables: Collection[str] | None = None
) -> list[Path]:
    """Draw every picture for which the folder `results` has something into `directory`, and return the files.

    Parameters
    ----------
    tables : collection of str, optional
        Only of these tables; ``ranking`` stands for the pictures of the rankings.
    """
    drawn = []
    for plan in map(read_plan, plan_names() if tables is None else [name for name in tables if name != RANKING]):
        for variant in collected_variants(plan, results):
            figures = kept_figures(plan, variant, results)
            for kind, draw in PICTURES[plan.name].items():
                for task in figures.tasks:
                    with mpl.rc_context(STYLE):
                        picture = draw(figures, task)
                    if picture is not None:
                        drawn.append(
                            _save(picture, directory / f"{plan.name}_{variant}_{_file_name(task)}_{kind}.{extension}")
                        )
    path = results / f"{RANKING}.json"
    if path.is_file() and (tables is None or RANKING in tables):
        rankings = ranking.read_rankings(path)
        for kind, draw_rankings in ((RANKING, ranking_over_training), ("weyl", changes_and_bounds)):
            with mpl.rc_context(STYLE):
                drawn.append(_save(draw_rankings(rankings), directory / f"{kind}.{extension}"))
    return drawn


def read_caption(path: Path) -> tuple[str, str]:
    """Return the title and the caption that :func:`draw_all` wrote into an SVG file.

    Raises
    ------
    ResultError
        If it has none.
    """
    text = path.read_text(encoding="utf-8")
    found = [re.search(rf"<dc:{name}>(.*?)</dc:{name}>", text, re.DOTALL) for name in ("title", "description")]
    title, caption = (match and html.unescape(match[1]) for match in found)
    if not title or not caption:
        raise ResultError(
            f"{path} has no caption; draw it again with `python -m paper_repro figures --into {path.parent}`, or remove it if no results of it are kept"
        )
    return title, caption


def accuracy_against_states(figures: TableFigures, task: str) -> Picture | None:
    """Draw the accuracy of the rows that are of several sizes over their states, and the full model as a line."""
    groups = [[row for row in _run_rows(figures, task) if row.cell.row.key == key] for key in MARKERS]
    groups = [group for group in groups if group]
    if not groups:
        return None
    figure, axes = _axes()
    line = _full_line(axes, figures, task)
    low, high = _limits(_run_rows(figures, task))
    for group in groups:
        rows = sorted(group, key=lambda row: row.states or 0)
        key = rows[0].cell.row.key
        means = [
            summarise([float(count) for run in row.runs.values() for count in run.states_after]).mean for row in rows
        ]
        _means(axes, means, rows, key, low, linewidth=1.3, label=rows[0].cell.row.label)
        for row in rows:
            _seeds(axes, row, key, low)
    _states_axis(axes)
    axes.set(ylabel="test accuracy, %", ylim=(low, high))
    axes.legend()
    shown_rows = [row for group in groups for row in group]
    marks = ["filled marks: means of the seeds", *_bars_words(shown_rows), OPEN_MARKS, *line]
    names = ", ".join(group[0].cell.row.label for group in groups)
    return Picture(
        figure,
        f"Test accuracy over states, {task}: {names}",
        f"{_place(figures, task)}: test accuracy over the states of a layer at the end, mean of the layers (logarithmic); {'; '.join(marks)}.",
    )


def accuracy_against_time(figures: TableFigures, task: str) -> Picture | None:
    """Draw the accuracy of every row over the seconds of its training, those of its teacher or start included."""
    rows = _one_of_each_arm(_run_rows(figures, task))
    if len({row.device for row in rows}) != 1 or len(rows) < 2:
        return None  # times of several machines do not belong into one picture
    figure, axes = _axes()
    low, high = _limits(rows)
    for number, row in enumerate(rows):
        seconds, mean = float(np.median(list(row.seconds().values()))), 100 * _mean(row)
        colour = _colour(row)
        if mean < low:
            axes.annotate(f"{number + 1}: {mean:.1f} ↓", (seconds, low), xytext=(0, 6), textcoords="offset points", color=colour, ha="center", fontsize=8)  # fmt: skip
        else:
            axes.errorbar(seconds, mean, yerr=_halves([row]), color=colour, marker="o", capsize=2, markersize=4)
            axes.annotate(str(number + 1), (seconds, mean), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set(xlabel="seconds of training, median of the seeds", ylabel="test accuracy, %", ylim=(low, high))
    names = "\n".join(f"{number + 1}  {row.cell.label}" for number, row in enumerate(rows))
    figure.text(1.0, 0.5, names, fontsize=8, va="center", ha="left")
    inside = [row for row in rows if 100 * _mean(row) >= low]
    arrows = ["arrow down: a mean below the axis"] if len(inside) < len(rows) else []
    marks = ["marks: means of the seeds, numbered as in the list", *_bars_words(inside), *arrows]
    return Picture(
        figure,
        f"Test accuracy over seconds of training, {task}: {'; '.join(row.cell.label for row in rows)}",
        f"{_place(figures, task)}: test accuracy over the seconds of training (logarithmic), median of the seeds, those of a teacher or of the model that is started from included; {'; '.join(marks)}.",
    )


def accuracy_of_rows(figures: TableFigures, task: str) -> Picture | None:
    """Draw the accuracy of every row with its 95 % interval, one below the other."""
    rows = _run_rows(figures, task)
    if not rows:
        return None
    figure, axes = _axes(height=0.8 + 0.27 * len(rows), width=1.3 * WIDTH)  # half of it are the labels
    low, high = _limits(rows)
    for number, row in enumerate(rows):
        if 100 * _mean(row) < low:
            axes.annotate(f"← {100 * _mean(row):.1f}", (low, number), xytext=(2, 0), textcoords="offset points", color=_colour(row), va="center", fontsize=8)  # fmt: skip
            continue
        axes.errorbar(
            100 * _mean(row), number, xerr=_halves([row]), color=_colour(row), marker="o", capsize=2, markersize=4
        )
        values = [100 * value for value in row.accuracy_by_seed.values() if 100 * value >= low]
        axes.scatter(values, [number] * len(values), s=12, edgecolors=_colour(row), facecolors="none", linewidths=0.7, clip_on=False)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.cell.label for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, %", xlim=(low, high))
    inside = [row for row in rows if 100 * _mean(row) >= low]
    arrows = ["arrow: a mean left of the axis"] if len(inside) < len(rows) else []
    marks = ["filled marks: means of the seeds", *_bars_words(inside), OPEN_MARKS, *arrows]
    return Picture(
        figure,
        f"Test accuracy of each row, {task}: {'; '.join(row.cell.label for row in rows)}",
        f"{_place(figures, task)}: test accuracy of each row; {'; '.join(marks)}.",
    )


def spectra_over_training(figures: TableFigures, task: str) -> Picture | None:
    """Draw the Hankel singular values of the first layer over the training of the full model, and of one that is cut, there one spectrum for each size."""
    rows = [row for row in _run_rows(figures, task) if row.cell.row.arm in ("full", "in_training")]
    runs = [(row, run) for row in rows for run in row.runs.values() if run.spectra]
    kinds: dict[str, tuple[RowFigures, RunResult]] = {}
    for row, run in runs:
        kinds.setdefault(row.cell.row.arm, (row, run))
    if len(kinds) < 2:
        return None
    figure = Figure(figsize=(1.5 * WIDTH, HEIGHT), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    colours = mpl.colormaps["viridis"]
    scale = mpl.colors.Normalize(0, max(run.config.steps for _, run in kinds.values()))
    full, (cut, cut_run) = kinds["full"][1], kinds["in_training"]
    layer = full.spectra[0].layer
    shown = {"full": [spectrum for spectrum in full.spectra if spectrum.layer == layer], "in_training": spectra_of_sizes(cut_run)}  # fmt: skip
    is_raised = False
    for axes, (arm, spectra) in zip(both, shown.items(), strict=True):
        row, run = kinds[arm]
        least = SMALLEST_SHOWN * max(max(spectrum.values) for spectrum in spectra)
        is_raised = is_raised or any(min(spectrum.values) < least for spectrum in spectra)
        for spectrum in spectra:
            values = np.maximum(spectrum.values, least)
            marker = "." if len(values) < 20 else None
            axes.semilogy(
                np.arange(1, len(values) + 1), values, color=colours(scale(spectrum.step)), linewidth=1, marker=marker
            )
            if arm == "in_training":
                axes.annotate(str(len(values)), (len(values), values[-1]), xytext=(0, -3), textcoords="offset points", fontsize=8, va="top", ha="center")  # fmt: skip
        axes.set_title(f"{row.cell.label}, seed {run.config.seed}", fontsize=10)
        axes.set(xlabel="number of the value")
    both[0].set(ylabel="Hankel singular value")
    figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=both, label="optimizer step")
    sizes = ", ".join(f"{len(spectrum.values)} at step {spectrum.step:,}" for spectrum in shown["in_training"])
    raised = f"; values below {SMALLEST_SHOWN:g} of the largest are drawn there" if is_raised else ""
    return Picture(
        figure,
        f"Hankel singular values of the first layer over training, {task}: the full model, and {cut.cell.label}",
        f"{_place(figures, task)}: Hankel singular values of the first layer (logarithmic), largest first; colour: optimizer step. Left: the full model, "
        f"{len(shown['full'])} moments of one run. Right: {cut.cell.label}, one run, one spectrum for each size, the last that was measured with it ({sizes}); "
        f"numbers: states{raised}.",
    )


def spectra_of_sizes(run: RunResult) -> list[Spectrum]:
    """Return the last spectrum of the first layer with each of its sizes: those at its validations, and those that its cuts were decided by."""
    layer = run.spectra[0].layer
    found = [spectrum for spectrum in run.spectra if spectrum.layer == layer]
    history = run.compression()
    if history is not None and run.config.reading == "complex":  # the criterion ranks by the Hankel values
        found += [
            Spectrum(step=event.step, layer=layer, values=tuple(record.hankel_singular_values))
            for event in history.events
            for record in event.layers
            if record.layer == layer and record.hankel_singular_values is not None
        ]
    last = {len(spectrum.values): spectrum for spectrum in sorted(found, key=lambda spectrum: spectrum.step)}
    return sorted(last.values(), key=lambda spectrum: spectrum.step)


def step_time_and_accuracy(figures: TableFigures, task: str) -> Picture | None:
    """Draw milliseconds of a step, and accuracy, over the states that a row ends with."""
    rows = [row for row in _run_rows(figures, task) if row.states is not None and row.step_seconds() is not None]
    if len({row.device for row in rows}) != 1 or len(rows) < 2:
        return None
    figure = Figure(figsize=(1.5 * WIDTH, HEIGHT), layout="constrained")
    times, accuracies = figure.subplots(1, 2)
    low, high = _limits(rows)
    for key in dict.fromkeys(row.cell.row.key for row in rows):
        group = sorted((row for row in rows if row.cell.row.key == key), key=lambda row: row.states or 0)
        states = [row.states or 0 for row in group]
        style: dict[str, Any] = {"color": COLOURS.get(key, COLOURS["other"]), "marker": MARKERS.get(key, "D")}
        times.plot(states, [1e3 * (row.step_seconds() or 0) for row in group], label=group[0].cell.row.label, **style)
        _means(accuracies, states, group, key, low)
        for row in group:
            _seeds(accuracies, row, key, low)
    for axes, words in ((times, "milliseconds a step"), (accuracies, "test accuracy, %")):
        _states_axis(axes)
        axes.set(ylabel=words)
    times.set_ylim(bottom=0)
    accuracies.set_ylim(low, high)
    times.legend()
    names = ", ".join(dict.fromkeys(row.cell.row.label for row in rows))
    marks = ["filled marks: means of the seeds", *_bars_words(rows), OPEN_MARKS]
    return Picture(
        figure,
        f"Milliseconds a step, and test accuracy, over states, {task}: {names}",
        f"{_place(figures, task)}, over the states of a layer at the end (logarithmic). Left: milliseconds of a step with the last size, mean over the seeds of each run's median. "
        f"Right: test accuracy; {'; '.join(marks)}.",
    )


def ranking_over_training(rankings: ranking.Rankings) -> Picture:
    """Draw how far the ranking of the states at each moment agrees with that at the end."""
    figure, axes = _axes()
    runs = rankings.runs()
    count = max(1, len(runs[0][0].scores) // ranking.SHARE_KEPT)
    measures: tuple[tuple[str, str, Callable[[Any, Any], float]], ...] = (
        ("rank correlation of all states", COLOURS["in_training"], ranking.rank_correlation),
        (
            f"share of the top {count} that is the same",
            COLOURS["from_scratch"],
            lambda a, b: ranking.overlap(a, b, count),
        ),
    )
    for words, colour, measure in measures:
        curves = np.array([[measure(moment, run[-1]) for moment in run] for run in runs])
        percent = [100 * moment.fraction for moment in runs[0]]
        axes.plot(percent, curves.T, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(
            percent,
            curves.mean(axis=0),
            color=colour,
            marker="o",
            markersize=4,
            label=f"{words}, mean of {len(runs)} seeds",
        )
    axes.axvline(100 * ranking.EARLY, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="% of the steps", ylabel="agreement with the end", ylim=(min(0.0, axes.get_ylim()[0]), 1.02))
    axes.legend(loc="lower right")
    return Picture(
        figure,
        f"How far the ranking of the states agrees with that at the end of training, {runs[0][0].preset}",
        f"{runs[0][0].preset}: agreement of the ranking of the states with that at the end (1: the same) over the steps taken, in per cent; lines with marks: means of {len(runs)} seeds; {FAINT_LINES}.",
    )


def changes_and_bounds(rankings: ranking.Rankings) -> Picture:
    """Draw by how much a Hankel singular value moves at most between two moments, and Weyl's bound of it."""
    figure, axes = _axes()
    runs = rankings.runs()
    percent = [100 * moment.fraction for moment in runs[0][1:]]
    for index, words, colour, marker in (
        (2, "Weyl's bound, the Hankel norm of the change", COLOURS["from_scratch"], "^"),
        (1, "largest change of a singular value", COLOURS["in_training"], "o"),
    ):
        curves = np.array([[found[index] for found in ranking.changes(run)] for run in runs])
        axes.semilogy(percent, curves.T, color=colour, linewidth=0.6, alpha=0.5)
        axes.semilogy(
            percent, np.median(curves, axis=0), color=colour, marker=marker, markersize=4, label=f"{words}, median"
        )
    axes.axvline(100 * ranking.EARLY, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="% of the steps, since the moment before", ylabel="change")
    figure.legend(loc="outside upper left")  # the lines of single runs leave no room for it between them
    return Picture(
        figure,
        f"Largest change of a Hankel singular value between two moments of training, and Weyl's bound of it, {runs[0][0].preset}",
        f"{runs[0][0].preset}: by how much a Hankel singular value has moved at most since the moment before, and Weyl's bound of it (logarithmic), over the steps taken, in per cent; "
        f"lines with marks: medians of {len(runs)} seeds; {FAINT_LINES}.",
    )


Draw = Callable[[TableFigures, str], Picture | None]
PICTURES: dict[str, dict[str, Draw]] = {
    "accuracy": {"states": accuracy_against_states, "spectra": spectra_over_training},
    "methods": {"rows": accuracy_of_rows, "time": accuracy_against_time},
    "sweep": {"states": accuracy_against_states, "time": accuracy_against_time},
    "ablations": {"rows": accuracy_of_rows},
    "regularisation": {"time": accuracy_against_time},
    "mamba": {"states": step_time_and_accuracy},
}


def _run_rows(figures: TableFigures, task: str) -> list[RowFigures]:
    return [row for row in figures.rows if row.cell.task.name == task and row.accuracy is not None]


def _place(figures: TableFigures, task: str) -> str:
    return f"Table {figures.plan.number}, {task}"


def _bars_words(rows: Sequence[RowFigures]) -> list[str]:
    """Return what the bars are, where there are any."""
    intervals = [row.interval for row in rows if row.interval is not None]
    cut_off = f", cut off at {MOST:g} %" if any(100 * interval[1] > MOST for interval in intervals) else ""
    return [f"bars: 95 % interval of the mean{cut_off}"] if intervals else []


def _seeds(axes: Axes, row: RowFigures, key: str, low: float) -> None:
    """Draw the accuracy of every seed over its states, but none below `low`."""
    states = {seed: float(np.mean(run.states_after)) for seed, run in row.runs.items()}
    shown = {seed: 100 * value for seed, value in row.accuracy_by_seed.items() if 100 * value >= low}
    axes.scatter(
        [states[seed] for seed in shown],
        list(shown.values()),
        s=14,
        marker=MARKERS.get(key, "D"),
        edgecolors=COLOURS.get(key, COLOURS["other"]),
        facecolors="none",
        linewidths=0.7,
        clip_on=False,  # a mark at 100 % is shown whole
    )


def _means(axes: Axes, states: Sequence[float], rows: Sequence[RowFigures], key: str, low: float, **style: Any) -> None:
    """Draw the mean accuracies of `rows` with their intervals over their states."""
    means = [100 * _mean(row) for row in rows]
    drawn = axes.errorbar(
        states,
        means,
        yerr=_halves(rows),
        color=COLOURS.get(key, COLOURS["other"]),
        marker=MARKERS.get(key, "D"),
        capsize=2,
        **style,
    )
    drawn[0].set_clip_on(min(means) < low)  # a mark at 100 % is shown whole


def _states_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set(xlabel="states of a layer at the end")


def _full_line(axes: Axes, figures: TableFigures, task: str) -> list[str]:
    """Draw the full model as a line, its interval as a band; return what they are."""
    full = figures.find(task, "full")
    if full is None or full.accuracy is None:
        return []
    axes.axhline(
        100 * full.accuracy.mean, color=INK, linestyle="--", linewidth=1, label=f"full, {full.states:g} states"
    )
    if full.interval is None:
        return ["dashed line: mean of the full model"]
    axes.axhspan(*(min(100 * bound, MOST) for bound in full.interval), color=INK, alpha=0.15, linewidth=0)
    return ["dashed line and band: mean of the full model and its 95 % interval"]


def _colour(row: RowFigures) -> str:
    key = row.cell.row.key if row.cell.row.key in COLOURS else row.cell.row.arm
    return COLOURS.get(key, COLOURS["other"])


def _mean(row: RowFigures) -> float:
    assert row.accuracy is not None
    return row.accuracy.mean


def _halves(rows: Sequence[RowFigures]) -> np.ndarray:
    """Return what the 95 % intervals reach below and above the means, in percent ``(2, rows)``, up to 100 %; NaN, which draws no bar, where there are too few seeds."""
    halves = [np.nan if row.interval is None else 50 * (row.interval[1] - row.interval[0]) for row in rows]
    return np.array([halves, np.minimum(halves, [MOST - 100 * _mean(row) for row in rows])])


def _one_of_each_arm(rows: Sequence[RowFigures]) -> list[RowFigures]:
    """Return the rows without further criteria of a cut in training, which all take the same time."""
    first = next((row for row in rows if row.cell.row.arm == "in_training" and row.cell.at is None), None)
    return [row for row in rows if row is first or row.cell.row.arm != "in_training" or row.cell.at is not None]


def _limits(rows: Sequence[RowFigures]) -> tuple[float, float]:
    """Return limits of an axis that has the seeds of every row, but not of rows that lie far below the others; an interval may be cut off."""
    means = np.array([100 * _mean(row) for row in rows])
    quarter, half = np.quantile(means, [0.25, 0.5])
    least = quarter - FAR_BELOW * (half - quarter) - 1
    values = [
        100 * v for row, mean in zip(rows, means, strict=True) if mean >= least for v in row.accuracy_by_seed.values()
    ]
    margin = 1 + 0.08 * (max(values) - min(values))
    return min(values) - margin, min(max(values) + margin, MOST)


def _axes(height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _file_name(task: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in task)


def _save(picture: Picture, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, str | None] = {"Title": picture.title, "Description": picture.caption}
    if path.suffix == ".svg":
        metadata["Date"] = None
    with mpl.rc_context(STYLE):
        picture.figure.savefig(path, transparent=True, bbox_inches="tight", dpi=160, metadata=metadata)
    return path
