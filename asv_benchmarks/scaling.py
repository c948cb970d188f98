r"""How time grows with the number of states, of systems and of threads: pictures for the documentation.

``python -m asv_benchmarks.scaling [--only states batch threads] [--stored] [--seconds 0.5]`` measures, keeps the medians in docs/data/scaling.json and writes
docs/images/scaling_*.svg. ``--stored`` draws the stored medians again. Each kind of computation is measured in turn with its floor, the part that no method goes without.

states: all Hankel values of one dense system and of one diagonal system; the floors are one Schur form and one set of singular values, and the slope is fitted to the upper half of the sizes.
batch: all Hankel values of many diagonal systems of 16 states with one input and output; the floor is the least time a system that a batch reached.
threads: the same for a batch and for one large dense system, in processes with that many threads; the floor is the time of one thread, divided by their number.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks.run import THREAD_VARIABLES
from asv_benchmarks.systems import dense_system, diagonal_system

ROOT = Path(__file__).resolve().parent.parent
DATA, IMAGES = ROOT / "docs" / "data" / "scaling.json", ROOT / "docs" / "images"
STATES = (8, 16, 32, 64, 128, 256, 512)
BATCH = (1, 4, 16, 64, 256, 1024, 4096, 16384)
# Readable on white and on the dark pages of the documentation.
INK, COLOURS = "#808080", ("#3b7dd8", "#e07b39", "#3a9d5d", "#a05fc0")

STYLE = {
    "svg.hashsalt": "hsv",
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
}

Computation = Callable[[], Any]
Series = dict[str, list[float]]


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for and draw everything that is stored."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(MEASURES), default=sorted(MEASURES))
    parser.add_argument("--stored", action="store_true", help="measure nothing: draw what is stored")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each point at least, and at least 5 runs")
    parser.add_argument("--largest", type=int, default=512, help="states of the largest single system")
    parser.add_argument(
        "--one", metavar="NAME", help=argparse.SUPPRESS
    )  # prints one median: for processes of a number of threads
    asked = parser.parse_args(arguments)
    if asked.one:
        print(median(THREADED[asked.one](), asked.seconds))
        return 0
    stored = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in () if asked.stored else asked.only:
        stored[name] = {**MEASURES[name](asked), "made with": about()}
        DATA.parent.mkdir(exist_ok=True)
        DATA.write_text(json.dumps(stored, indent=1) + "\n")
    import matplotlib.pyplot as plt

    for name in (name for name in sorted(MEASURES) if name in stored):
        IMAGES.mkdir(exist_ok=True)
        with plt.rc_context(STYLE):
            draw(name, stored[name]).savefig(IMAGES / f"scaling_{name}.svg", transparent=True, metadata={"Date": None})
    return 0


def median(compute: Computation, seconds: float) -> float:
    """Return the median time of a run, after one that loads or compiles."""
    compute()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 1000):
        before = time.perf_counter()
        compute()
        times.append(time.perf_counter() - before)
    return float(f"{statistics.median(times):.4g}")


def states(asked: argparse.Namespace) -> dict[str, Any]:
    """Time against the number of states of one system."""
    series: dict[str, Series] = {}
    for n in (n for n in STATES if n <= asked.largest):
        dense, diagonal = dense_system(n, dt=0), diagonal_system(n, dt=True, ports=4)
        matrix = dense.A + 1j * np.random.default_rng(n).standard_normal((n, n))
        computations: dict[str, Computation] = {
            "dense system": lambda s=dense: hsv.hankel_singular_values(s),
            "one Schur form (floor)": lambda A=dense.A: scipy.linalg.schur(A),
            "diagonal system": lambda s=diagonal: hsv.hankel_singular_values(s),
            "complex singular values (floor)": lambda A=matrix: np.linalg.svd(A, compute_uv=False),
        }
        _append(series, n, computations, asked.seconds)
    return {"title": "All Hankel singular values of one system, 4 inputs and outputs", "x": "states", "series": series}


def batch(asked: argparse.Namespace) -> dict[str, Any]:
    """Time against the number of systems in one call."""
    series: dict[str, Series] = {}
    for k in BATCH:
        computations: dict[str, Computation] = {}
        for dtype in ("float64", "complex128"):
            system = diagonal_system(16, dt=True, batch=(k,), dtype=dtype)
            computations[f"{dtype} poles"] = lambda s=system: hsv.hankel_singular_values(s)
        _append(series, k, computations, asked.seconds)
    return {
        "title": "All Hankel singular values of a batch, 16 states, one input and output",
        "x": "systems in one call",
        "series": series,
    }


def threads(asked: argparse.Namespace) -> dict[str, Any]:
    """Time against the number of threads of BLAS and of the compiled kernels."""
    series: dict[str, Series] = {}
    for count in range(1, (os.cpu_count() or 1) + 1):
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(count))}
        for name in THREADED:
            command = [sys.executable, "-m", "asv_benchmarks.scaling", "--one", name, "--seconds", str(asked.seconds)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            _add(series, name, count, float(done.stdout))
    return {"title": "All Hankel singular values", "x": "threads", "series": series}


MEASURES = {"states": states, "batch": batch, "threads": threads}


def _values_of(system: Any) -> Computation:
    return lambda: hsv.hankel_singular_values(system)


THREADED: dict[str, Callable[[], Computation]] = {
    "4,096 diagonal systems of 16 states": lambda: _values_of(diagonal_system(16, dt=True, batch=(4096,))),
    "256 diagonal systems of 64 states": lambda: _values_of(diagonal_system(64, dt=True, batch=(256,))),
    "one dense system of 256 states": lambda: _values_of(dense_system(256, dt=0)),
    "one diagonal system of 256 states, 128 inputs": lambda: _values_of(diagonal_system(256, dt=True, ports=128)),
}


def _append(series: dict[str, Series], x: int, computations: dict[str, Computation], seconds: float) -> None:
    for name, compute in computations.items():
        _add(series, name, x, median(compute, seconds))


def _add(series: dict[str, Series], name: str, x: int, y: float) -> None:
    one = series.setdefault(name, {"x": [], "seconds": []})
    one["x"].append(x)
    one["seconds"].append(y)


def slope(one: Series) -> float:
    """Return the exponent of the growth over the upper half of the sizes, by least squares."""
    half = len(one["x"]) // 2
    return float(np.polyfit(np.log(one["x"][half:]), np.log(one["seconds"][half:]), 1)[0])


def draw(name: str, measured: dict[str, Any]) -> Any:
    """Return a figure of one kind of measurement, with slopes and floors."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        colours = iter(COLOURS)
        colour = INK
        for label, one in measured["series"].items():
            x, y, floor = np.asarray(one["x"]), np.asarray(one["seconds"]), "(floor)" in label
            colour = colour if floor else next(colours)  # a floor follows what it belongs to
            exponent = "" if name == "threads" else f", slope {slope(one):.1f}"
            axes.plot(x, y, ":" if floor else "o-", color=colour, label=label + exponent, markersize=4)
            if name == "batch":
                least = float(np.min(y / x))
                axes.plot(x, least * x, ":", color=colour, label=f"{least * 1e6:.2g} µs a system (floor)")
            if name == "threads":
                axes.plot(x, y[0] / x, ":", color=colour)
        axes.set_title(measured["title"], fontsize=10)
        axes.set_xlabel(measured["x"])
        axes.set_ylabel("seconds")
        if name == "threads":
            axes.set_ylim(0)
            title = "dotted: the time of one thread, divided by their number (floor)"
            axes.legend(
                fontsize=8,
                frameon=False,
                title=title,
                title_fontsize=8,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.15),
                ncols=2,
            )
        else:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.legend(fontsize=8, frameon=False)
        axes.set_xticks(x, [f"{tick:,}" for tick in x])
        axes.xaxis.minorticks_off()
        axes.grid(True, which="major", alpha=0.25, linewidth=0.6)
    return figure


def about() -> dict[str, str]:
    """Return where and when the medians come from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def _processor() -> str:
    about_processor = Path("/proc/cpuinfo")
    if about_processor.exists():
        for line in about_processor.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
