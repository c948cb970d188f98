"""asv's results as plain entries, and as tables with the ratio of ours to each peer."""

import datetime
import importlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

LIBRARY = "library"  # the parameter that says who computes; its first value is ours


def print_table(results: Path, commit: str) -> None:
    """Print the results of one commit, a section for each class of benchmarks, in Markdown."""
    files = sorted(results.glob(f"*/{commit[:8]}*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"no results of commit {commit[:8]} in {results}; run the benchmarks first")
    print(f"\nCommit {commit[:8]}, {machine(files[-1])}.")
    print("The ratio is ours / peer in the same run: below 1, ours takes less.")
    for name, entry in entries(files[-1]).items():
        print(f"\n**{name}**: {entry['question']}\n")
        print("\n".join(section(entry)))


def machine(path: Path) -> str:
    """Return the processor and the system that a file of results comes from."""
    about = json.loads((path.parent / "machine.json").read_text())
    return f"{about['num_cpu']} x {about['cpu']}, {about['os'].split('-')[0]}"


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """Return asv's file of results as one entry for each benchmark that still exists.

    ``values`` are medians in seconds or bytes, None where the benchmark failed and nan where it was not run, the last parameter varying fastest.
    """
    content = json.loads(path.read_text())
    found = {}
    for name, columns in sorted(content["results"].items()):
        column = dict(zip(content["result_columns"], columns, strict=False))
        described = _attribute(name.rpartition(".")[0])
        if described is None:
            continue
        axes = [[value.strip("'\"") for value in axis] for axis in column["params"]]
        count = math.prod(len(axis) for axis in axes)
        found[name] = {
            "question": (described.__doc__ or "").strip().splitlines()[0],
            "param_names": list(getattr(described, "param_names", ())),
            "params": axes,
            "unit": _unit(name.rpartition(".")[2]),
            "values": column["result"] or [None] * count,
            "date": datetime.datetime.fromtimestamp(column["started_at"] / 1000, datetime.UTC).isoformat(
                "T", "seconds"
            ),
        }
    return found


def section(entry: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown table of one benchmark."""
    names, unit = entry["param_names"], entry["unit"]
    values = by_parameters(entry)
    if LIBRARY not in names:
        return markdown([[*names, unit], *([*key, number(value, unit)] for key, value in values.items())])
    ours, *peers = entry["params"][names.index(LIBRARY)]
    header = [n for n in names if n != LIBRARY] + [f"{ours}, {unit}"]
    for peer in peers:
        header += [f"{peer}, {unit}", "ratio"]
    rows = [header]
    for key, of in by_library(entry).items():
        row = [*key, number(of[ours], unit)]
        for peer in peers:
            row += [number(of[peer], unit), _ratio(of[ours], of[peer])]
        rows.append(row)
    return markdown(rows)


def by_parameters(entry: dict[str, Any]) -> dict[tuple[str, ...], float | None]:
    """Return the values by the tuple of all parameters."""
    return dict(zip(itertools.product(*entry["params"]), entry["values"], strict=True))


def by_library(entry: dict[str, Any]) -> dict[tuple[str, ...], dict[str, float | None]]:
    """Return for each tuple of the other parameters what each library took."""
    at = entry["param_names"].index(LIBRARY)
    rows: dict[tuple[str, ...], dict[str, float | None]] = {}
    for key, value in by_parameters(entry).items():
        rows.setdefault((*key[:at], *key[at + 1 :]), {})[key[at]] = value
    return rows


def number(value: float | None, unit: str) -> str:
    """Return a median as the tables show it."""
    if value is None or math.isnan(value):
        return "failed" if value is None else "-"
    if unit == "ms":
        return f"{value * 1e3:.3g}"
    return f"{value / 1e6:.0f}" if unit == "MB" else f"{value:.6g}"


def _unit(method: str) -> str:
    """Return what a benchmark measures, by the beginning of its method's name: bytes, a number of things that the name says, or seconds."""
    if method.startswith(("peakmem_", "mem_")):
        return "MB"
    return method.removeprefix("track_") if method.startswith("track_") else "ms"


def _ratio(ours: float | None, peer: float | None) -> str:
    if ours is None or peer is None or math.isnan(ours) or math.isnan(peer):
        return ""
    return f"{ours / peer:.2g}"


def _attribute(path: str) -> Any:
    """Return the class of that name, or None where the benchmark is no more."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(f"asv_benchmarks.{module}"), attribute, None)
    except ModuleNotFoundError as error:
        if error.name == f"asv_benchmarks.{module}":
            return None
        raise


def markdown(rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its header. Columns of code begin at the left, all others end at the right."""
    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
    rules = []
    for i, column in enumerate(columns):
        width, code = max(map(len, column)), column[-1].startswith("`")
        columns[i] = [cell.ljust(width) if code else cell.rjust(width) for cell in column]
        rules.append("-" * (width + 2) if code else "-" * (width + 1) + ":")
    lines = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    return [lines[0], f"|{'|'.join(rules)}|", *lines[1:]]
