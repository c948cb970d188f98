"""The tasks by name, each with its options, its shape, one fixed split and a way to its data.

No split depends on a run's seed, and no validation sequence is a test sequence. ``python -m paper_repro tasks`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paper_repro.errors import ConfigurationError
from paper_repro.sequences import Dataset, TaskShape
from paper_repro.tasks.images import Cifar10, Digits, FashionMnist, Mnist
from paper_repro.tasks.listops import ListOps
from paper_repro.tasks.memory import InductionHeads, MultiQueryRecall, SelectiveCopying
from paper_repro.tasks.pathfinder import Pathfinder
from paper_repro.tasks.task import Option, Task, suggestion
from paper_repro.tasks.texts import Aan, Imdb

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Digits,
        Mnist,
        FashionMnist,
        Cifar10,
        ListOps,
        Imdb,
        Aan,
        Pathfinder,
        MultiQueryRecall,
        InductionHeads,
        SelectiveCopying,
    )
}


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task `name` with `options` in place of its defaults.

    Raises
    ------
    ConfigurationError
        If there is no such task, or if an option is unknown or impossible.
    """
    if name not in TASKS:
        raise ConfigurationError(f"key 'task': unknown task {name!r}{suggestion(name, TASKS)}")
    return TASKS[name].from_options(options or {})


def load_dataset(name: str, data_dir: Path | None = None, options: Mapping[str, Any] | None = None) -> Dataset:
    """Return the dataset of the task `name`.

    Parameters
    ----------
    name : str
    data_dir : Path, optional
        Folder of the data files, or of the folder that an archive unpacks to. Default: the usual places.
    options : mapping, optional

    Raises
    ------
    ConfigurationError
        If there is no such task, or if an option is unknown or impossible.
    DataError
        If a file is missing or damaged.
    """
    return make_task(name, options).load(data_dir)


def task_shape(name: str, options: Mapping[str, Any] | None = None) -> TaskShape:
    """Return what a model of the task `name` must take and give, without its data."""
    return make_task(name, options).shape


@dataclass(frozen=True)
class TaskDescription:
    """What there is to know of a task before it is loaded."""

    name: str
    summary: str
    reference: str
    where: str
    shape: TaskShape
    longest: int
    sizes: tuple[int, int, int]
    options: dict[str, Option]


def describe_tasks() -> list[TaskDescription]:
    """Return a description of every task with its default options, in the order of the registry."""
    return [
        TaskDescription(
            name=task.name,
            summary=task.summary,
            reference=task.reference,
            where=task.where(),
            shape=task.shape,
            longest=task.longest,
            sizes=task.sizes,
            options={field.name: getattr(task, field.name) for field in fields(task)},
        )
        for task in (kind() for kind in TASKS.values())
    ]
