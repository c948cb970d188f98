"""asv's results as a table with the ratio of ours to each peer."""

import importlib
import itertools
import json
import math
from pathlib import Path

LIBRARY = "library"  # the parameter that says who computes; its first value is ours


def print_table(results: Path, commit: str) -> None:
    """Print the results of one commit, a section for each class of benchmarks, in Markdown."""
    files = sorted(results.glob(f"*/{commit[:8]}*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"no results of commit {commit[:8]} in {results}; run the benchmarks first")
    content = json.loads(files[-1].read_text())
    machine = json.loads((files[-1].parent / "machine.json").read_text())
    print(f"\nCommit {commit[:8]}, {machine['num_cpu']} x {machine['cpu']}, {machine['os']}.")
    print("The ratio is ours / peer in the same run: below 1, ours takes less.")
    for name, columns in content["results"].items():
        entry = dict(zip(content["result_columns"], columns, strict=False))
        print(f"\n**{name}**: {_question(name)}\n")
        print("\n".join(section(name, entry)))


def section(name: str, entry: dict) -> list[str]:
    """Return the lines of the Markdown table of one benchmark."""
    module, _, method = name.rpartition(".")
    names = list(_attribute(module).param_names)
    axes = [[_plain(value) for value in axis] for axis in entry["params"]]
    values = dict(zip(itertools.product(*axes), entry["result"] or itertools.repeat(None), strict=False))
    unit = "MB" if method.startswith(("peakmem_", "mem_")) else "ms"
    if LIBRARY not in names:
        header, rows = [*names, unit], [[*key, _number(value, unit)] for key, value in values.items()]
        return _markdown(header, rows)

    at = names.index(LIBRARY)
    ours, *peers = axes[at]
    header = [n for n in names if n != LIBRARY] + [f"{ours}, {unit}"]
    for peer in peers:
        header += [f"{peer}, {unit}", "ratio"]
    rows = []
    for key in itertools.product(*(axis for i, axis in enumerate(axes) if i != at)):
        of = {library: values.get((*key[:at], library, *key[at:])) for library in axes[at]}
        row = [*key, _number(of[ours], unit)]
        for peer in peers:
            row += [_number(of[peer], unit), _ratio(of[ours], of[peer])]
        rows.append(row)
    return _markdown(header, rows)


def _question(name: str) -> str:
    text = _attribute(name.rpartition(".")[0]).__doc__ or ""
    return text.strip().splitlines()[0]


def _attribute(path: str) -> type:
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(f"asv_benchmarks.{module}"), attribute)


def _plain(value: str) -> str:
    return value.strip("'\"")


def _number(value: float | None, unit: str) -> str:
    if value is None or math.isnan(value):
        return "failed" if value is None else "not run"
    return f"{value / 1e6:.0f}" if unit == "MB" else f"{value * 1e3:.3g}"


def _ratio(ours: float | None, peer: float | None) -> str:
    if ours is None or peer is None or math.isnan(ours) or math.isnan(peer):
        return ""
    return f"{ours / peer:.2f}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    line = [
        f"| {' | '.join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in [header, *rows]
    ]
    return [line[0], f"|{'|'.join('-' * (width + 1) + ':' for width in widths)}|", *line[1:]]
