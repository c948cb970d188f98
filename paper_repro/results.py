"""What a run found, and the JSON-lines file that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from hsv_torch import History
from paper_repro.configuration import RunConfig
from paper_repro.errors import ResultError

try:
    import fcntl
except ImportError:  # Windows, where a network drive locks by itself
    fcntl = None  # type: ignore[assignment]

RESULTS_FILE = "results.jsonl"


class Record(pydantic.BaseModel):
    """Base of what is written to results: closed and frozen."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Evaluation(Record):
    """Accuracy (a fraction) and mean cross-entropy after `step` optimizer steps."""

    step: int
    accuracy: float
    loss: float

    def is_better_than(self, other: Evaluation) -> bool:
        """Say whether the accuracy is higher, or equal at a lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class Spectrum(Record):
    """Hankel singular values of one layer after `step` optimizer steps, descending."""

    step: int
    layer: str
    values: tuple[float, ...]


class States(Record):
    """States of every block from `step` on."""

    step: int
    states: tuple[int, ...]


class Provenance(Record):
    """Where a result comes from. `commits` lists the code of every session that trained the run, oldest first."""

    commits: tuple[str | None, ...]
    code_digests: tuple[str, ...]
    versions: dict[str, str]
    device: str
    threads: int
    started: str
    command: str


class Timing(Record):
    """Seconds of the run.

    `step_before` and `step_after` are medians over the optimizer steps taken with the first and with the last size;
    they are equal where the size never changed. `training` counts optimizer steps and reductions, `warm_up` what was
    spent before on compiling or loading kernels, `wall` everything but that. Parts of `training` are `penalty` (with its gradient), `teacher` (its
    forward passes) and `undone` (steps that were taken back with a cut); `earlier`, the training of the model that the run started from, is none.
    `clock` says by what all of them but `warm_up` and `wall` were taken: with one thread on a CPU the processor time of the process, which other programs
    hardly change, else the time on the wall.
    """

    warm_up: float
    wall: float
    training: float
    reductions: float
    step_before: float
    step_after: float
    penalty: float = 0.0
    teacher: float = 0.0
    undone: float = 0.0
    earlier: float = 0.0
    clock: Literal["wall", "processor"] = "wall"

    @property
    def with_earlier_runs(self) -> float:
        """Seconds of training, that of the model that the run started from included."""
        return self.training + self.earlier

    @property
    def share_of_reductions(self) -> float:
        """Part of the training time that went into reductions."""
        return self.reductions / self.training


class RunResult(Record):
    """One finished run.

    The best checkpoint is the one with the best validation among those after the window of the cuts; the test set was
    seen once, by that checkpoint, or not at all (`test_accuracy` None).
    """

    run_id: str
    config: RunConfig
    provenance: Provenance
    timing: Timing
    states_before: tuple[int, ...]
    states_after: tuple[int, ...]
    n_parameters_before: int
    n_parameters_after: int
    best: Evaluation
    test_accuracy: float | None
    validations: tuple[Evaluation, ...]
    states: tuple[States, ...]
    spectra: tuple[Spectrum, ...]
    history: dict[str, Any] | None

    def compression(self) -> History | None:
        """Return the history of the compressor; None where nothing was to be cut."""
        return None if self.history is None else History.from_dict(self.history)


def append_result(directory: Path, result: RunResult) -> None:
    """Add `result` to the results of `directory`, in one write under a lock, so that parallel runs, on other machines too, do not mix their lines.

    Where the last line is only half there, for a disk was full or a process stopped, the result gets a line of its own below it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    line = (result.model_dump_json() + "\n").encode()
    descriptor = os.open(directory / RESULTS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(descriptor)
        if not _ends_with_a_line(descriptor):
            line = b"\n" + line
        written = os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise ResultError(
            f"{directory / RESULTS_FILE}: only {written} of {len(line)} bytes were written; is the disk full?"
        )


def _lock(descriptor: int) -> None:
    """Lock the file until it is closed; appending is not atomic on the network drives that machines of a cluster share."""
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)


def _ends_with_a_line(descriptor: int) -> bool:
    """Say whether the file is empty or its last byte ends a line."""
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return True
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) == b"\n"


def read_results(directory: Path) -> list[RunResult]:
    """Return the results of `directory`, each run once: the latest line of its id.

    Raises
    ------
    ResultError
        If a line is half-written, or not a result.
    """
    return read_lines(directory / RESULTS_FILE)


def read_lines(path: Path, *, only: str | None = None) -> list[RunResult]:
    """Return the results in the file `path`, each run once: the latest line of its id; `only`: nothing but the run of that id.

    Raises
    ------
    ResultError
        If a line is half-written, or not a result.
    """
    if not path.is_file():
        return []
    wanted = None if only is None else json.dumps(only).encode()
    latest: dict[str, RunResult] = {}
    lines = path.read_bytes().split(b"\n")  # bytes: half a line may be half a character
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (wanted is not None and wanted not in line):  # to look is much faster than to parse
            continue
        try:
            result = RunResult.model_validate_json(line)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            if fault["type"] == "json_invalid":
                raise ResultError(
                    f"{path}, line {number} is damaged or half-written (a stopped disk or process?); remove the line and repeat the command"
                ) from error
            place = ".".join(str(part) for part in fault["loc"])
            raise ResultError(
                f"{path}, line {number}: not a result of this version ({place}: {fault['msg']})"
            ) from error
        latest.pop(result.run_id, None)
        latest[result.run_id] = result
    return list(latest.values())


def find_result(directory: Path, run_id: str) -> RunResult | None:
    """Return the result of the run called `run_id`, or None."""
    results = read_lines(directory / RESULTS_FILE, only=run_id)
    return next((result for result in results if result.run_id == run_id), None)


def write_atomically(content: bytes, path: Path) -> None:
    """Write `content` to `path`, which holds either its old or its new content at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_measurements(
    lines: Sequence[Mapping[str, Any]], name: str, provenance: Mapping[str, Any], path: Path
) -> None:
    """Write what one study measured as JSON, where it comes from first, then the list called `name` with a line a measurement."""
    text = ",\n".join("  " + json.dumps(line) for line in lines)
    write_atomically(f'{{\n "provenance": {json.dumps(provenance)},\n "{name}": [\n{text}\n ]\n}}\n'.encode(), path)


def read_measurements(path: Path, name: str, what: str) -> list[dict[str, Any]]:
    """Return the list called `name` that :func:`write_measurements` wrote.

    Raises
    ------
    ResultError
        If it is no such file; `what` says in the message what was looked for.
    """
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} has no {what}: {error}") from error
