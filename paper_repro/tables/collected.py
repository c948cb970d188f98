"""The results that the repository keeps: one file a table and variant, each run a line, without what is large."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pydantic

from paper_repro.errors import ResultError
from paper_repro.provenance import plain_command
from paper_repro.results import Record, RunResult, Spectrum, read_lines, write_atomically
from paper_repro.tables.graph import Extent, finished, table_jobs
from paper_repro.tables.plan import VARIANTS, TablePlan, Variant

RESULTS = Path(__file__).parents[1] / "results"
SPECTRA_KEPT = 12  # of each layer of a run, evenly over the steps
DIGITS = 6


class Head(Record):
    """First line of a file of results: what was run, and the command that does it."""

    table: str
    variant: Variant
    shared_rate: bool
    command: str


def collected_path(plan: TablePlan, variant: Variant, directory: Path = RESULTS) -> Path:
    """Return where the results of a variant are kept."""
    return directory / f"{plan.name}_{variant}.jsonl"


def collect(plan: TablePlan, extent: Extent, runs: Path, directory: Path = RESULTS) -> tuple[Path, int, int]:
    """Copy the finished runs of the table from the folder `runs`; return the file, how many there are and how many there should be.

    Spectra are kept of the first seed of every row, at a few steps; numbers are rounded to six digits, but not those of a configuration.

    Raises
    ------
    ResultError
        If none is finished.
    """
    results = read_lines(runs / "results.jsonl")
    jobs = table_jobs(plan, extent, shown=results)
    found = finished(jobs, results)
    if not found:
        raise ResultError(
            f"{runs} has no finished run of table {plan.name} --{extent.variant}; `python -m paper_repro run` makes them"
        )
    rate = " --shared-rate" if extent.shared_rate else ""
    head = Head(
        table=plan.name,
        variant=extent.variant,
        shared_rate=extent.shared_rate,
        command=f"python -m paper_repro run {plan.name} --{extent.variant}{rate}",
    )
    seeds = {job.key: job.config.seed for job in jobs}
    first = {
        key.rpartition("/")[0]: min(s for k, s in seeds.items() if k.rpartition("/")[0] == key.rpartition("/")[0])
        for key in seeds
    }
    lines = [head.model_dump_json()]
    written: set[str] = set()
    for key, result in found.items():
        if result.run_id not in written:  # rows may share a run
            written.add(result.run_id)
            lines.append(json.dumps(thinned(result, with_spectra=result.config.seed == first[key.rpartition("/")[0]])))
    path = collected_path(plan, extent.variant, directory)
    write_atomically(("\n".join(lines) + "\n").encode(), path)
    return path, len(found), len(jobs)


def read_collected(path: Path) -> tuple[Head, list[RunResult]]:
    """Return the head and the runs of a file that `collect` wrote.

    Raises
    ------
    ResultError
        If it is missing or spoilt.
    """
    if not path.is_file():
        raise ResultError(f"there is no {path}; `python -m paper_repro collect` writes it from finished runs")
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return Head.model_validate_json(lines[0]), [RunResult.model_validate_json(line) for line in lines[1:]]
    except (IndexError, pydantic.ValidationError) as error:
        raise ResultError(f"{path} is not a file of results: {error}") from error


def collected_variants(plan: TablePlan, directory: Path = RESULTS) -> list[Variant]:
    """Return the variants of a table of which there are results."""
    return [variant for variant in VARIANTS if collected_path(plan, variant, directory).is_file()]


def thinned(result: RunResult, *, with_spectra: bool) -> dict[str, Any]:
    """Return `result` as plain numbers, strings and lists, without most of its spectra."""
    values = _rounded(result.model_dump(mode="json", exclude={"config", "spectra"}))
    values["config"] = result.config.model_dump(mode="json", exclude_defaults=True)
    values["provenance"]["command"] = _command(result.provenance.command)
    values["spectra"] = [_rounded(s.model_dump(mode="json")) for s in _few(result.spectra)] if with_spectra else []
    return values


def _few(spectra: Sequence[Spectrum]) -> Iterable[Spectrum]:
    steps = sorted({spectrum.step for spectrum in spectra})
    if len(steps) > SPECTRA_KEPT:
        steps = [steps[round(number * (len(steps) - 1) / (SPECTRA_KEPT - 1))] for number in range(SPECTRA_KEPT)]
    return (spectrum for spectrum in spectra if spectrum.step in steps)


def _command(text: str) -> str:
    """Return the command without the path of the program and without the folders, which are others on every machine."""
    program, *arguments = shlex.split(text)
    return plain_command(arguments) if program.endswith("__main__.py") else text


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
