"""Pictures of a comparison; those of one compression alone come from `hsv_torch.report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hsv_torch.report import plot_spectra
from paper_repro.comparison import ArmFigures
from paper_repro.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which most colour-blind readers tell apart; arms keep theirs in every picture.
COLOURS = {"full": "#000000", "in_training": "#0072b2", "from_scratch": "#d55e00"}
MARKERS = {"full": "s", "in_training": "o", "from_scratch": "^"}
NAMES = {"full": "full", "in_training": "cut in training", "from_scratch": "from scratch"}
SIZE = (4.6, 3.4)  # inches: text stays legible where a phone shows the picture on its whole width
SMALLEST_SHOWN = 1e-6  # of the largest Hankel value


def spectra_over_training(run: RunResult) -> Figure:
    """Draw the Hankel singular values of the first layer of `run`, one line a measurement, dark is early."""
    layer = run.spectra[0].layer
    spectra = [spectrum for spectrum in run.spectra if spectrum.layer == layer]
    figure, axes = _axes()
    steps = [spectrum.step for spectrum in spectra]
    colours = mpl.colormaps["viridis"]
    scale = mpl.colors.Normalize(0, max(steps))
    largest = max(max(spectrum.values) for spectrum in spectra)
    for spectrum in spectra:
        values = np.maximum(spectrum.values, SMALLEST_SHOWN * largest)
        marker = "." if len(values) < 20 else None
        axes.semilogy(
            np.arange(1, len(values) + 1), values, color=colours(scale(spectrum.step)), linewidth=0.9, marker=marker
        )
    axes.set(xlabel="state", ylabel="Hankel singular value")
    figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=axes, label="optimizer step")
    return figure


def spectra_at_attempts(run: RunResult) -> Figure:
    """Draw what every attempt found in the first layer of `run` (thick: what was kept)."""
    history = run.compression()
    assert history is not None
    figure, axes = _axes()
    plot_spectra(history, axes, layer=history.layers[0])
    return figure


def states_over_steps(arms: Sequence[ArmFigures]) -> Figure:
    """Draw the states of all blocks together over the steps, one line a run."""
    figure, axes = _axes()
    for arm in arms:
        for number, run in enumerate(arm.runs):
            steps = [entry.step for entry in run.states] + [run.config.steps]
            states = [sum(entry.states) for entry in run.states] + [sum(run.states[-1].states)]
            axes.step(
                steps,
                states,
                where="post",
                color=COLOURS[arm.config.arm],
                alpha=0.7,
                linestyle=("-", "--", ":", "-.")[number % 4],
                label=NAMES[arm.config.arm] if number == 0 else None,
            )
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.set(xlabel="optimizer step", ylabel="states")
    _legend(axes, loc="upper right", bbox_to_anchor=(1, 0.92))  # below the full models, right of the cuts
    return figure


def accuracy_against_states(arms: Sequence[ArmFigures]) -> Figure:
    """Draw the test accuracy of every run over its states at the end, and the mean of every arm."""
    figure, axes = _axes()
    for kind, colour in COLOURS.items():
        same = sorted((arm for arm in arms if arm.config.arm == kind), key=lambda arm: arm.mean_states)
        if not same:
            continue
        axes.plot(
            [arm.mean_states for arm in same],
            [100 * arm.accuracy.mean for arm in same],
            color=colour,
            marker=MARKERS[kind],
            label=f"{NAMES[kind]}, mean",
        )
        for arm in same:
            axes.scatter(
                [sum(run.states_after) / len(run.states_after) for run in arm.runs],
                [100 * accuracy for accuracy in arm.accuracy_by_seed.values()],
                edgecolors=colour,
                marker=MARKERS[kind],
                facecolors="none",
                s=22,
                linewidths=0.9,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.set(xlabel="states a layer at the end", ylabel="test accuracy, %")
    _legend(axes)
    return figure


def validation_over_steps(arms: Sequence[ArmFigures]) -> Figure:
    """Draw the validation accuracy over the steps, one line a run."""
    figure, axes = _axes()
    for arm in arms:
        for number, run in enumerate(arm.runs):
            axes.plot(
                [evaluation.step for evaluation in run.validations],
                [100 * evaluation.accuracy for evaluation in run.validations],
                color=COLOURS[arm.config.arm],
                linewidth=0.9,
                alpha=0.8,
                label=NAMES[arm.config.arm] if number == 0 else None,
            )
    axes.set(xlabel="optimizer step", ylabel="validation accuracy, %")
    _legend(axes)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes, **place: Any) -> None:
    lines, names = axes.get_legend_handles_labels()
    once = dict(zip(names, lines, strict=True))  # several arms of one kind share a name and a colour
    axes.legend(once.values(), once.keys(), frameon=False, fontsize=9, **place)
