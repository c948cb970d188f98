"""What the study does: tasks, points of the training, sizes, methods, and the jobs that they amount to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from paper_repro.configuration import RunConfig, make_config, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.methods import METHODS
from paper_repro.study.measurements import Kind, key_of

JobKind = Literal["full", "scratch", "cuts", "trained_on", "ranking"]
POINTS = {"early": 0.35, "late": 0.75}


@dataclass(frozen=True)
class TaskPlan:
    """One task: a preset, values in place of its own, and the sizes that its model is cut to.

    The full model, and so the cut ones, are trained with the preset's learning rate; models from scratch with each of `scratch_rates`, and
    the tables take the best of them by validation accuracy.
    """

    preset: str
    values: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (32, 16, 8)
    sizes_trained_on: tuple[int, ...] = (8, 2)
    scratch_rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class StudyPlan:
    """Everything that the study does.

    `methods` are measured right after the cut, at all sizes; `methods_trained_on` after training on too. Rankings are made from
    `counts` sequences, `draws` times from others, at the late point and the smallest size.
    """

    tasks: tuple[TaskPlan, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = tuple(METHODS)
    methods_trained_on: tuple[str, ...] = (
        "greedy",
        "shared_basis",
        "channel_basis_mean_system",
        "random_uncompensated",
    )
    methods_ranked: tuple[str, ...] = ("greedy", "hankel", "ghost", "shared_basis")
    counts: tuple[int, ...] = (4, 16, 64, 256)
    draws: int = 3
    calibration_sequences: int = 64


def restricted(
    plan: StudyPlan,
    *,
    tasks: Sequence[str] | None = None,
    seeds: int | None = None,
    methods: Sequence[str] | None = None,
    methods_trained_on: Sequence[str] | None = None,
    sizes_trained_on: Sequence[int] | None = None,
) -> StudyPlan:
    """Return the part of `plan` that is asked for; None: all of it.

    Raises
    ------
    ConfigurationError
        If the plan has no such task.
    """
    known = [task.preset for task in plan.tasks]
    unknown = [name for name in tasks or () if name not in known]
    if unknown:
        raise ConfigurationError(f"the study has no task {unknown[0]!r}; it has {', '.join(known)}")
    chosen = tuple(task for task in plan.tasks if not tasks or task.preset in tasks)
    if sizes_trained_on:
        chosen = tuple(dataclasses.replace(task, sizes_trained_on=tuple(sizes_trained_on)) for task in chosen)
    changes: dict[str, Any] = {"tasks": chosen}
    if seeds is not None:
        changes["seeds"] = tuple(range(seeds))
    if methods:
        changes["methods"] = tuple(methods)
    if methods_trained_on:
        changes["methods_trained_on"] = tuple(methods_trained_on)
    return dataclasses.replace(plan, **changes)


@dataclass(frozen=True)
class Job:
    """One piece of work, which yields the measurements of `keys`; all but ``full`` and ``scratch`` need the full run's checkpoints."""

    kind: JobKind
    task: str
    config: RunConfig
    n_states: int = 0
    point: str = ""
    methods: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    draws: int = 0
    learning_rate: float | None = None  # of a model from scratch

    @property
    def needs_full(self) -> bool:
        """Whether the job starts from a checkpoint of the full run."""
        return self.kind not in ("full", "scratch")

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the measurements that the job makes."""
        run = self.config.run_id
        if self.kind == "full":
            full = self.config.states_of_blocks[0]
            return frozenset({key_of(run, "full", full), *(key_of(run, "point", full, point) for point in POINTS)})
        if self.kind == "scratch":
            return frozenset({key_of(run, "scratch", self.n_states, learning_rate=self.learning_rate)})
        if self.kind == "ranking":
            return frozenset(
                key_of(run, "ranking", self.n_states, self.point, method, count, draw)
                for method in self.methods
                for count in self.counts
                for draw in range(self.draws)
            )
        kind: Kind = "cut" if self.kind == "cuts" else "trained_on"
        return frozenset(key_of(run, kind, size, self.point, method) for method in self.methods for size in self.sizes)

    def describe(self) -> str:
        """Return the job in words."""
        words = {
            "full": "full model",
            "scratch": f"from scratch, {self.n_states} states",
            "cuts": f"{len(self.methods)} methods, cuts {self.point} to {', '.join(map(str, self.sizes))}",
            "trained_on": f"{', '.join(self.methods)}, cut {self.point} to {', '.join(map(str, self.sizes))} and trained on",
            "ranking": f"rankings from {', '.join(map(str, self.counts))} sequences",
        }
        return f"{self.task}, seed {self.config.seed}: {words[self.kind]}"


def full_config(plan: StudyPlan, task: TaskPlan, seed: int) -> RunConfig:
    """Return the run of the full model."""
    values = {**read_preset(task.preset), **task.values, "arm": "full", "seed": seed}
    config = make_config({**values, "calibration_sequences": plan.calibration_sequences})
    return config.with_values(evaluate_every=config.steps, checkpoint_every=config.steps)


def make_jobs(plan: StudyPlan) -> list[Job]:
    """Return the jobs of `plan`, in the order in which they shall start: seed by seed, so that what is there is always of some use.

    Raises
    ------
    ConfigurationError
        If a method is unknown, or a size is not below that of the full model.
    """
    for method in (*plan.methods, *plan.methods_trained_on, *plan.methods_ranked):
        if method not in METHODS:
            raise ConfigurationError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    jobs: list[Job] = []
    for seed in plan.seeds:
        configs = [(task, full_config(plan, task, seed)) for task in plan.tasks]
        jobs += [Job("full", task.preset, config) for task, config in configs]
        for task, config in configs:
            _check_sizes(task, config)
            jobs += _jobs_after(plan, task, config)
    return jobs


def _jobs_after(plan: StudyPlan, task: TaskPlan, config: RunConfig) -> Iterator[Job]:
    """Give the jobs of one task and seed; those whose models are slow to train come last."""
    name = task.preset
    for point in POINTS:
        if plan.methods:
            yield Job("cuts", name, config, point=point, methods=plan.methods, sizes=task.sizes)
    for method in plan.methods_trained_on:
        if not method.startswith("channel_basis"):
            yield from _trained_on(task, config, method)
    for size in task.sizes_trained_on:
        for rate in task.scratch_rates:
            yield Job("scratch", name, config, n_states=size, learning_rate=rate)
    if plan.methods_ranked:
        yield Job(
            "ranking", name, config, n_states=min(task.sizes), point="late", methods=plan.methods_ranked,
            counts=plan.counts, draws=plan.draws,
        )  # fmt: skip
    for method in plan.methods_trained_on:
        if method.startswith("channel_basis"):
            yield from _trained_on(task, config, method)


def _trained_on(task: TaskPlan, config: RunConfig, method: str) -> Iterator[Job]:
    for point in POINTS:
        for size in task.sizes_trained_on:
            yield Job("trained_on", task.preset, config, point=point, methods=(method,), sizes=(size,))


def _check_sizes(task: TaskPlan, config: RunConfig) -> None:
    full = min(config.states_of_blocks)
    wrong = [size for size in (*task.sizes, *task.sizes_trained_on) if not 1 <= size < full]
    if wrong:
        raise ConfigurationError(
            f"{task.preset}: sizes must lie in [1, {full - 1}], below the full model's, got {wrong}"
        )


DEFAULT = StudyPlan(
    tasks=(
        TaskPlan("mqar", {"task_options": {"n_test": 1_024}}, sizes=(32, 16, 8, 4), sizes_trained_on=(8, 4, 2)),
        TaskPlan("selective_copying", {"task_options": {"n_test": 1_024}}),
        TaskPlan("digits_mamba"),
    )
)

TINY = {"n_states": 8, "d_model": 8, "batch_size": 8, "steps": 40}
FEW_SEQUENCES = {"n_train": 512, "n_validation": 32, "n_test": 64}
QUICK = StudyPlan(
    tasks=(
        TaskPlan(
            "mqar",
            {**TINY, "task_options": {**FEW_SEQUENCES, "pairs": 4, "queries": 4, "keys": 8, "values": 4}},
            sizes=(4, 2),
            sizes_trained_on=(2,),
            scratch_rates=(1e-2, 2e-2),
        ),
        TaskPlan(
            "selective_copying",
            {**TINY, "task_options": {**FEW_SEQUENCES, "context": 10, "copied": 2, "symbols": 4}},
            sizes=(4, 2),
            sizes_trained_on=(2,),
            scratch_rates=(1e-2, 2e-2),
        ),
    ),
    seeds=(0, 1),
    methods_trained_on=("greedy", "random_uncompensated"),
    methods_ranked=("greedy", "hankel"),
    counts=(4, 16),
    draws=2,
    calibration_sequences=16,
)
