"""What the study measures, and the JSON-lines file that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pydantic

from paper_repro.errors import ResultError
from paper_repro.results import Record

Kind = Literal["full", "point", "scratch", "cut", "trained_on", "ranking"]


class Measurement(Record):
    """One accuracy on the test set, and what the model was that has it.

    `kind` says which: a full model at its end, a full model at a point of its training, a model trained from scratch at `n_states`, one right after a
    cut to `n_states`, one cut and trained on to the end, one cut by a ranking from `n_sequences` sequences only. `accuracy` is None
    where there is no model, and `reason` says why.
    """

    run: str  # of the full model, whatever is made of it
    task: str
    seed: int
    kind: Kind
    n_states: int
    accuracy: float | None
    seconds: float
    commit: str | None
    point: str | None = None
    method: str | None = None
    n_sequences: int | None = None
    draw: int | None = None
    kept: tuple[tuple[int, ...], ...] | None = None  # a layer: the states that a choice keeps
    error: float | None = None  # relative standard error of the scores, median over the states
    learning_rate: float | None = None  # of a model from scratch; the others have that of the full model
    validation: float | None = None  # accuracy of a model from scratch, which its rate is chosen by
    reason: str | None = None

    @property
    def key(self) -> str:
        """What tells this measurement from others, whatever it found."""
        return key_of(
            self.run, self.kind, self.n_states, self.point, self.method, self.n_sequences, self.draw, self.learning_rate
        )


def key_of(
    run: str,
    kind: Kind,
    n_states: int,
    point: str | None = None,
    method: str | None = None,
    n_sequences: int | None = None,
    draw: int | None = None,
    learning_rate: float | None = None,
) -> str:
    """Return the key of a measurement."""
    parts = (run, kind, n_states, point, method, n_sequences, draw, learning_rate)
    return "/".join("-" if part is None else str(part) for part in parts)


def append_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Add lines to the file, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_compact(measurement)) + "\n" for measurement in measurements)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read_measurements(path: Path) -> list[Measurement]:
    """Return the measurements in the file, each once: the latest line of its key.

    Raises
    ------
    ResultError
        If a line is not a measurement.
    """
    if not path.is_file():
        return []
    latest: dict[str, Measurement] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            measurement = Measurement.model_validate_json(line)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"])
            raise ResultError(f"{path}, line {number}: not a measurement ({place}: {fault['msg']})") from error
        latest[measurement.key] = measurement
    return list(latest.values())


def _compact(measurement: Measurement) -> dict[str, Any]:
    values = measurement.model_dump(mode="json", exclude_defaults=True)
    for name, digits in (("accuracy", 5), ("validation", 5), ("seconds", 2), ("error", 4)):
        if values.get(name) is not None:
            values[name] = round(values[name], digits)
    return values
