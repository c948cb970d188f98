"""Pictures of the tables, each from the results that are kept; they can be read on white and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from paper_repro import ranking
from paper_repro.results import RunResult
from paper_repro.statistics import Summary, summarise
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
                        figure = draw(figures, task)
                    if figure is not None:
                        drawn.append(
                            _save(figure, directory / f"{plan.name}_{variant}_{_file_name(task)}_{kind}.{extension}")
                        )
    path = results / f"{RANKING}.json"
    if path.is_file() and (tables is None or RANKING in tables):
        rankings = ranking.read_rankings(path)
        for kind, picture in ((RANKING, ranking_over_training), ("weyl", changes_and_bounds)):
            with mpl.rc_context(STYLE):
                drawn.append(_save(picture(rankings), directory / f"{kind}.{extension}"))
    return drawn


def accuracy_against_states(figures: TableFigures, task: str) -> Figure | None:
    """Draw the accuracy of the rows that are of several sizes over their states, and the full model as a line."""
    groups = [[row for row in _run_rows(figures, task) if row.cell.row.key == key] for key in MARKERS]
    groups = [group for group in groups if group]
    if not groups:
        return None
    figure, axes = _axes()
    _full_line(axes, figures, task)
    for group in groups:
        rows = sorted(group, key=lambda row: row.states or 0)
        key = rows[0].cell.row.key
        means = [
            summarise([float(count) for run in row.runs.values() for count in run.states_after]).mean for row in rows
        ]
        axes.errorbar(
            means,
            [100 * _mean(row) for row in rows],
            yerr=_halves(rows),
            color=COLOURS[key],
            marker=MARKERS[key],
            capsize=2,
            linewidth=1.3,
            label=rows[0].cell.row.label,
        )
        for row in rows:
            axes.scatter(
                [float(np.mean(run.states_after)) for run in row.runs.values()],
                [100 * value for value in row.accuracy_by_seed.values()],
                s=14,
                marker=MARKERS[key],
                edgecolors=COLOURS[key],
                facecolors="none",
                linewidths=0.7,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.set(xlabel="states of a layer at the end", ylabel="test accuracy, %", ylim=_limits(_run_rows(figures, task)))
    axes.legend()
    return figure


def accuracy_against_time(figures: TableFigures, task: str) -> Figure | None:
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
    return figure


def accuracy_of_rows(figures: TableFigures, task: str) -> Figure | None:
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
        values = [100 * value for value in row.accuracy_by_seed.values()]
        axes.scatter(values, [number] * len(values), s=12, edgecolors=_colour(row), facecolors="none", linewidths=0.7)
    axes.set_yticks(range(len(rows)), [row.cell.label for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, %", xlim=(low, high))
    return figure


def spectra_over_training(figures: TableFigures, task: str) -> Figure | None:
    """Draw the Hankel singular values of the first layer over the training of the full model, and of one that is cut."""
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
    for axes, (row, run) in zip(both, kinds.values(), strict=True):
        layer = run.spectra[0].layer
        largest = max(max(spectrum.values) for spectrum in run.spectra)
        for spectrum in run.spectra:
            if spectrum.layer == layer:
                values = np.maximum(spectrum.values, SMALLEST_SHOWN * largest)
                marker = "." if len(values) < 20 else None
                axes.semilogy(
                    np.arange(1, len(values) + 1),
                    values,
                    color=colours(scale(spectrum.step)),
                    linewidth=1,
                    marker=marker,
                )
        axes.set_title(f"{row.cell.label}, seed {run.config.seed}", fontsize=10)
        axes.set(xlabel="number of the value")
    both[0].set(ylabel="Hankel singular value")
    figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=both, label="optimizer step")
    return figure


def step_time_and_accuracy(figures: TableFigures, task: str) -> Figure | None:
    """Draw milliseconds of a step, and accuracy, over the states that a row ends with."""
    rows = [row for row in _run_rows(figures, task) if row.states is not None and row.step_seconds() is not None]
    if len({row.device for row in rows}) != 1 or len(rows) < 2:
        return None
    figure = Figure(figsize=(1.5 * WIDTH, HEIGHT), layout="constrained")
    times, accuracies = figure.subplots(1, 2)
    for key in dict.fromkeys(row.cell.row.key for row in rows):
        group = sorted((row for row in rows if row.cell.row.key == key), key=lambda row: row.states or 0)
        style: dict[str, Any] = {"color": COLOURS.get(key, COLOURS["other"]), "marker": MARKERS.get(key, "D")}
        states = [row.states for row in group]
        times.plot(states, [1e3 * (row.step_seconds() or 0) for row in group], label=group[0].cell.row.label, **style)
        accuracies.errorbar(states, [100 * _mean(row) for row in group], yerr=_halves(group), capsize=2, **style)
    for axes, words in ((times, "milliseconds a step"), (accuracies, "test accuracy, %")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.set(xlabel="states of a layer at the end", ylabel=words)
    times.set_ylim(bottom=0)
    times.legend()
    return figure


def ranking_over_training(rankings: ranking.Rankings) -> Figure:
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
    return figure


def changes_and_bounds(rankings: ranking.Rankings) -> Figure:
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
    axes.legend()
    return figure


Picture = Callable[[TableFigures, str], Figure | None]
PICTURES: dict[str, dict[str, Picture]] = {
    "accuracy": {"states": accuracy_against_states, "spectra": spectra_over_training},
    "methods": {"rows": accuracy_of_rows, "time": accuracy_against_time},
    "sweep": {"states": accuracy_against_states, "time": accuracy_against_time},
    "ablations": {"rows": accuracy_of_rows},
    "regularisation": {"time": accuracy_against_time},
    "mamba": {"states": step_time_and_accuracy},
}


def _run_rows(figures: TableFigures, task: str) -> list[RowFigures]:
    return [row for row in figures.rows if row.cell.task.name == task and row.accuracy is not None]


def _full_line(axes: Axes, figures: TableFigures, task: str) -> None:
    full = figures.find(task, "full")
    if full is None or full.accuracy is None:
        return
    axes.axhline(
        100 * full.accuracy.mean, color=INK, linestyle="--", linewidth=1, label=f"full, {full.states:g} states"
    )
    if full.accuracy.interval is not None:
        axes.axhspan(*(100 * bound for bound in full.accuracy.interval), color=INK, alpha=0.15, linewidth=0)


def _colour(row: RowFigures) -> str:
    key = row.cell.row.key if row.cell.row.key in COLOURS else row.cell.row.arm
    return COLOURS.get(key, COLOURS["other"])


def _summary(row: RowFigures) -> Summary:
    assert row.accuracy is not None
    return row.accuracy


def _mean(row: RowFigures) -> float:
    return _summary(row).mean


def _halves(rows: Sequence[RowFigures]) -> list[float]:
    """Return half of the 95 % intervals, in percent; 0 where there is one seed."""
    intervals = [_summary(row).interval for row in rows]
    return [0.0 if interval is None else 50 * (interval[1] - interval[0]) for interval in intervals]


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
    return min(values) - margin, max(values) + margin


def _axes(height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _file_name(task: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in task)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with mpl.rc_context(STYLE):
        figure.savefig(path, transparent=True, bbox_inches="tight", dpi=160, metadata=metadata)
    return path
