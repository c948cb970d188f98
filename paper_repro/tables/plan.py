"""What a table trains: rows, tasks and seeds, read from a TOML file, and the figures of the paper beside them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pydantic
from pydantic import Field, model_validator

from paper_repro.configuration import RunConfig, make_config, overridden, preset_names, read_preset
from paper_repro.errors import ConfigurationError

PLANS = Path(__file__).parent
Variant = Literal["quick", "cpu", "gpu", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class _Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Row(_Closed):
    """One method: its arm, and what it has in place of the values of the task."""

    key: str
    label: str
    arm: str
    values: dict[str, Any] = Field(default_factory=dict, description="keys of a run; the text none: no value")
    sizes_of: str | None = Field(None, description="row whose runs end with the states that this one starts with")
    starts_from: str | None = Field(None, description="row whose best models this one starts from or is taught by")
    rate_of: str | None = Field(
        None,
        description="row, of this table or of the file of the choice, whose rate is taken; None: its own, else its arm's",
    )
    sweep: Literal["tau", "order"] | None = Field(None, description="one row for each tau, or order, of the task")
    tasks: tuple[str, ...] | None = Field(None, description="tasks that have this row; None: all")
    variants: tuple[Variant, ...] | None = Field(None, description="variants that have this row; None: all")


class TaskPlan(_Closed):
    """One task of a variant: a preset, the seeds, and where the learning rates come from."""

    preset: str
    name: str = Field("", description="what the table calls it; default: the preset")
    seeds: tuple[int, ...] = Field(min_length=1)
    tau: tuple[float, ...] = Field((), description="of the rows that sweep it")
    order: tuple[int, ...] = Field((), description="of the rows that sweep it")
    values: dict[str, Any] = Field(default_factory=dict, description="in place of those of the preset")
    choice: str | None = Field(
        None, description="file in `choices` with the learning rates; None: the preset's rate for all"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:
        return {"name": values.get("preset", ""), **values} if isinstance(values, dict) else values

    def base(self) -> RunConfig:
        """Return the full model of the task: what all rows share."""
        return _config(self.preset, self.values, {"arm": "full"})

    def swept(self, row: Row) -> tuple[float | int | None, ...]:
        """Return the values over which `row` sweeps; one None where it does not."""
        return (None,) if row.sweep is None else self.tau if row.sweep == "tau" else self.order


class PaperFigure(_Closed):
    """What the paper has in the same place: states a layer and test accuracy in percent."""

    task: str
    row: str
    at: float | None = Field(None, description="tau or order, in a row that sweeps")
    states: float | None = None
    accuracy: float | None = None
    speed: float | None = Field(None, description="times as fast as the full model")


class TablePlan(_Closed):
    """A table: its rows, the tasks of each variant, and the paper's figures."""

    name: str
    number: int
    title: str
    about: str
    source: str = Field(description="where the paper's figures come from")
    rows: tuple[Row, ...] = Field(min_length=1)
    variants: dict[Variant, tuple[TaskPlan, ...]]
    against: tuple[str, ...] = Field(("full", "from_scratch"), description="rows that the others are compared with")
    paper: tuple[PaperFigure, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        keys = [row.key for row in self.rows]
        if len(set(keys)) != len(keys):
            raise ValueError(f"two rows have one key: {keys}")
        for row in self.rows:
            for parent in (row.sizes_of, row.starts_from):
                if parent is not None and parent not in keys:
                    raise ValueError(f"row {row.key}: there is no row {parent!r}; there are {', '.join(keys)}")
        for tasks in self.variants.values():
            for task in tasks:
                if task.preset not in preset_names():
                    raise ValueError(f"there is no preset {task.preset!r}; there are {', '.join(preset_names())}")
        return self

    def row(self, key: str) -> Row:
        """Return the row of that key."""
        return next(row for row in self.rows if row.key == key)

    def tasks(self, variant: Variant) -> tuple[TaskPlan, ...]:
        """Return the tasks of a variant.

        Raises
        ------
        ConfigurationError
            If the table has no such variant.
        """
        if variant not in self.variants:
            known = ", ".join(f"--{name}" for name in self.variants)
            raise ConfigurationError(f"table {self.name} has no variant --{variant}; it has {known}")
        return self.variants[variant]

    def cells(self, variant: Variant) -> Iterator[Cell]:
        """Return what is trained for every task, row and value that it sweeps, parents before the rows that need them."""
        for task in self.tasks(variant):
            rows = [row for row in self.rows if _has(row.variants, variant) and _has(row.tasks, task.name)]
            for row in sorted(rows, key=lambda row: self._depth(row)):
                for at in task.swept(row):
                    yield Cell(self, task, row, at)

    def paper_figure(self, cell: Cell) -> PaperFigure | None:
        """Return the paper's figure in the place of `cell`."""
        place = (cell.task.name, cell.row.key, cell.at)
        return next((figure for figure in self.paper if (figure.task, figure.row, figure.at) == place), None)

    def _depth(self, row: Row) -> int:
        parents = [self.row(parent) for parent in (row.sizes_of, row.starts_from) if parent is not None]
        return 1 + max(map(self._depth, parents), default=-1)


@dataclass(frozen=True)
class Cell:
    """One row of one task, at one tau or order where the row sweeps."""

    plan: TablePlan
    task: TaskPlan
    row: Row
    at: float | int | None

    @property
    def key(self) -> str:
        """A name that no other cell of the table has."""
        return f"{self.task.name}/{self.row.key}" + ("" if self.at is None else f"/{self.row.sweep} {self.at:g}")

    @property
    def label(self) -> str:
        """What the row is called in the table."""
        if self.at is None:
            return self.row.label
        return f"{self.row.label}, " + (f"tau {self.at:g}" if self.row.sweep == "tau" else f"{self.at} states")

    def parent(self, key: str | None) -> Cell | None:
        """Return the cell of the row `key` of the same task, at the same tau or order where it has one."""
        if key is None:
            return None
        row = self.plan.row(key)
        return Cell(self.plan, self.task, row, self.at if row.sweep else None)

    def config(self, seed: int, learning_rate: float | None = None) -> RunConfig:
        """Return the run of one seed; None: with the learning rate of the preset."""
        swept: dict[str, Any] = {} if self.row.sweep is None else {self.row.sweep: self.at}
        rate: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
        layers = (self.task.values, rate, self.row.values, swept)
        return _config(self.task.preset, *layers, {"arm": self.row.arm, "seed": seed})


def _config(preset: str, *layers: Mapping[str, Any]) -> RunConfig:
    """Return the run of a preset with the values of `layers`, the later ones first."""
    merged: dict[str, Any] = {}
    for values in (read_preset(preset), *layers):
        merged = overridden(merged, values)
    return make_config({key: None if value == "none" else value for key, value in merged.items()})


def plan_names() -> list[str]:
    """Return the names of the tables, in the order of their numbers."""
    return [plan.name for plan in sorted(map(_read, PLANS.glob("*.toml")), key=lambda plan: plan.number)]


def find_plan(name: str) -> TablePlan | None:
    """Return the table called `name`, or ``table`` and its number; None if there is none."""
    plans = map(_read, sorted(PLANS.glob("*.toml")))
    return next((plan for plan in plans if name in (plan.name, f"table{plan.number}")), None)


def read_plan(name: str) -> TablePlan:
    """Return the table called `name`, or ``table`` and its number.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    plan = find_plan(name)
    if plan is None:
        close = difflib.get_close_matches(name, plan_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(plan_names())}"
        raise ConfigurationError(f"there is no table {name!r}; {hint}")
    return plan


def _read(path: Path) -> TablePlan:
    try:
        values: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return TablePlan.model_validate({"name": path.stem, **values})
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
        raise ConfigurationError(f"{path} is not the plan of a table: {error}") from error


def _has(names: tuple[str, ...] | None, name: str) -> bool:
    return names is None or name in names
