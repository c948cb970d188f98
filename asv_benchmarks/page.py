"""The page "How fast" of the documentation, from the last results of the benchmarks.

``python -m asv_benchmarks.page``: put every result in .asv/results that is newer than the stored one into docs/data/benchmarks.json, and write the generated
sections of docs/benchmarks.md from that file. ``--stored`` leaves the stored results as they are. ``--check`` writes nothing and fails if the page is not what the
stored results give. Text outside of the markers is written by hand.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

from asv_benchmarks import table
from asv_benchmarks.accuracy import with_section

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DATA, PAGE = (
    ROOT / ".asv" / "results",
    ROOT / "docs" / "data" / "benchmarks.json",
    ROOT / "docs" / "benchmarks.md",
)
LIBRARIES = ("numpy", "scipy", "numba", "control", "slycot", "torch", "mambapy", "pymor")


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if the page was to be checked and is another one."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.page", description=__doc__.splitlines()[0])
    parser.add_argument("--stored", action="store_true", help="take no new results")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the page does not correspond to the stored results"
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="take new results only of benchmarks with this in their name"
    )
    parser.add_argument(
        "--note", default="", help='what a reader must know of the new results, for instance "one thread"'
    )
    asked = parser.parse_args(arguments)
    stored = json.loads(DATA.read_text()) if DATA.exists() else {"runs": [], "benchmarks": {}}
    if not (asked.stored or asked.check):
        stored = updated(stored, sorted(RESULTS.glob("*/*-existing-*.json")), asked.only, asked.note)
    before = PAGE.read_text()
    after = page(before, stored)
    if asked.check:
        if before != after:
            print(
                f"{PAGE.relative_to(ROOT)} is not what {DATA.relative_to(ROOT)} gives: run python -m asv_benchmarks.page --stored",
                file=sys.stderr,
            )
        return int(before != after)
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(serialised(stored))
    PAGE.write_text(after)
    return 0


def updated(stored: dict[str, Any], files: list[Path], only: str = "", note: str = "") -> dict[str, Any]:
    """Return the stored results with those of asv's files that are newer."""
    benchmarks, runs = dict(stored["benchmarks"]), list(stored["runs"])
    for path in files:
        commit = json.loads(path.read_text())["commit_hash"][:8]
        for name, entry in table.entries(path).items():
            if only not in name or (name in benchmarks and benchmarks[name]["date"] >= entry["date"]):
                continue
            run = {
                "commit": commit,
                "machine": table.machine(path),
                "note": note,
                "python": platform.python_version(),
                "versions": _versions(),
            }
            if run not in runs:
                runs.append(run)
            values = [None if x is None or math.isnan(x) else float(f"{x:.4g}") for x in entry["values"]]
            skipped = [i for i, x in enumerate(entry["values"]) if x is not None and math.isnan(x)]
            benchmarks[name] = {**entry, "values": values, "skipped": skipped, "run": runs.index(run)}
    used = sorted({entry["run"] for entry in benchmarks.values()})
    return {
        "runs": [runs[i] for i in used],
        "benchmarks": {
            name: {**benchmarks[name], "run": used.index(benchmarks[name]["run"])} for name in sorted(benchmarks)
        },
    }


def serialised(stored: dict[str, Any]) -> str:
    """Return the file's text: a line for each benchmark, so that a new measurement changes one line."""
    parts = [f'    "{name}": {json.dumps(entry)}' for name, entry in stored["benchmarks"].items()]
    runs = ",\n".join(f"    {json.dumps(run)}" for run in stored["runs"])
    return '{\n  "runs": [\n' + runs + '\n  ],\n  "benchmarks": {\n' + ",\n".join(parts) + "\n  }\n}\n"


def page(text: str, stored: dict[str, Any]) -> str:
    """Return the page with its generated sections renewed."""
    return with_section(with_section(text, "glance", "\n".join(glance(stored))), "results", "\n".join(results(stored)))


def glance(stored: dict[str, Any]) -> list[str]:
    """Return one table: ours and the fastest peer, at the largest size of each benchmark that was measured."""
    rows = [["what", "size", "ours, ms", "fastest peer", "its ms", "ours / peer"]]
    for name, entry in stored["benchmarks"].items():
        if entry["unit"] != "ms" or table.LIBRARY not in entry["param_names"]:
            continue
        ours = entry["params"][entry["param_names"].index(table.LIBRARY)][0]
        candidates = []
        for key, of in table.by_library(_with_skips(entry)).items():
            peers = {k: v for k, v in of.items() if not k.startswith("hsv") and v is not None and not math.isnan(v)}
            if of[ours] is not None and not math.isnan(of[ours]) and peers:
                best = min(peers, key=peers.__getitem__)
                candidates.append(
                    [
                        _short(name),
                        ", ".join(key),
                        table.number(of[ours], "ms"),
                        best,
                        table.number(peers[best], "ms"),
                        f"{of[ours] / peers[best]:.2g}",
                    ]
                )
        rows += candidates[-1:]
    return table.markdown(rows)


def results(stored: dict[str, Any]) -> list[str]:
    """Return a section for each benchmark, and where the numbers come from."""
    lines = ["Medians. The ratio is ours / peer in the same run: below 1, ours takes less; - was not run."]
    last = ""
    for name, entry in stored["benchmarks"].items():
        file = name.partition(".")[0]
        if file != last:
            lines += ["", f"### {file}.py"]
            last = file
        what = " (peak memory of the process)" if entry["unit"] == "MB" else ""
        lines += [
            "",
            f"**{_short(name)}**{what}: {entry['question']} [{entry['run'] + 1}]",
            "",
            *table.section(_with_skips(entry)),
        ]
    lines += ["", "### Where these numbers come from", ""]
    for i, run in enumerate(stored["runs"]):
        versions = ", ".join(f"{library} {version}" for library, version in run["versions"].items())
        dates = sorted({entry["date"][:10] for entry in stored["benchmarks"].values() if entry["run"] == i})
        about = ", ".join(
            x for x in (f"commit `{run['commit']}`", run["machine"], run["note"], " and ".join(dates)) if x
        )
        lines.append(f"- [{i + 1}] {about}; Python {run['python']}, {versions}.")
    return lines


def _with_skips(entry: dict[str, Any]) -> dict[str, Any]:
    values = list(entry["values"])
    for i in entry["skipped"]:
        values[i] = math.nan
    return {**entry, "values": values}


def _short(name: str) -> str:
    return f"`{name.rpartition('.')[0]}`"


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
