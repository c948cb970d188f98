"""What a training step costs with the Hankel-nuclear-norm penalty, without it, and after a cut, measured in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper_repro.configuration import RunConfig, make_config, read_preset
from paper_repro.results import read_measurements, write_measurements
from paper_repro.tasks import load_dataset
from paper_repro.training import Training, warm_up

MARKS = ("<!-- table: written by regularisation -->", "<!-- end of the table of regularisation -->")


@dataclass(frozen=True)
class Plan:
    """Steps of the preset's full model, plain and penalised, and of one with the states that a cut leaves.

    Attributes
    ----------
    preset : str
    states_after : int
        Of each block after the cut.
    every : int
        Steps between two penalties where they come seldom.
    rounds : int
        In each, every way takes `every` steps if its penalty comes seldom, else one.
    first_rounds : int
        Left out of the figures.
    overrides : mapping
        Further keys of the configuration, `device` say.
    """

    preset: str = "fashion_mnist_short"
    states_after: int = 28
    every: int = 16
    rounds: int = 30
    first_rounds: int = 5
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def configs(self) -> dict[str, RunConfig]:
        """Return the run of each way."""
        values = {**read_preset(self.preset), **self.overrides}
        base = make_config({**values, "arm": "full", "evaluate_every": values["steps"]})
        penalised = base.with_values(arm="regularised", penalty_weight=base.penalty_weight or 1e-3)
        return {
            "plain": base,
            "after the cut": base.with_values(arm="from_scratch", n_states=self.states_after),
            "penalty by factors": penalised,
            "penalty by factors, seldom": penalised.with_values(penalty_every=self.every),
            "penalty by eigenvalues": penalised.with_values(penalty_by="eigenvalues"),
        }


QUICK = Plan(preset="digits", states_after=4, every=2, rounds=2, first_rounds=1, overrides={"n_states": 8})


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Return a line for each way: seconds of a step, median and quartiles over the rounds, and the part of the penalty."""
    configs = plan.configs()
    plain = configs["plain"]
    data_dir = Path(plain.data_dir) if plain.data_dir is not None else None
    dataset = load_dataset(plain.task, data_dir, plain.task_options).to(torch.device(plain.device))
    trainings = {}
    for way, config in configs.items():
        warm_up(config, dataset)
        trainings[way] = Training(config, dataset)
    seconds: dict[str, list[float]] = {way: [] for way in configs}
    penalties: dict[str, list[float]] = {way: [] for way in configs}
    for _ in range(plan.first_rounds + plan.rounds):
        for way, training in trainings.items():
            steps, journal = configs[way].penalty_every, training.journal
            before = journal.penalty_seconds
            for _ in range(steps):
                training.advance()
            seconds[way].append(sum(journal.step_seconds[-steps:]) / steps)
            penalties[way].append((journal.penalty_seconds - before) / steps)
    return [_line(plan, way, configs[way], seconds[way], penalties[way]) for way in configs]


def _line(
    plan: Plan, way: str, config: RunConfig, seconds: Sequence[float], penalties: Sequence[float]
) -> dict[str, Any]:
    low, median, high = np.quantile(seconds[plan.first_rounds :], (0.25, 0.5, 0.75)).tolist()
    return {
        "way": way,
        "task": config.task,
        "layer": config.layer,
        "states": list(config.states_of_blocks),
        "width": config.d_model,
        "batch": config.batch_size,
        "penalty_every": config.penalty_every if config.arm == "regularised" else None,
        "rounds": plan.rounds,
        "seconds": median,
        "quartiles": [low, high],
        "penalty_seconds": float(np.median(penalties[plan.first_rounds :])),
    }


def write_results(lines: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any], path: Path) -> None:
    """Write the measurements with where they come from as JSON, a line a way."""
    write_measurements(lines, "steps", provenance, path)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of the file; :class:`ResultError` if it is no such file."""
    return read_measurements(path, "steps", "times of penalised steps")


def times_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row for each way, its step in milliseconds, and how many plain steps and steps after the cut it is worth."""
    seconds = {line["way"]: line["seconds"] for line in lines}
    rows = [
        "| step | states | ms, median (quartiles) | penalty, ms | plain steps | steps after the cut |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        every = f" (one in {line['penalty_every']})" if (line["penalty_every"] or 1) > 1 else ""
        low, high = (f"{1e3 * edge:.1f}" for edge in line["quartiles"])
        cells = (
            f"{line['way']}{every}",
            "+".join(map(str, line["states"])),
            f"{1e3 * line['seconds']:.1f} ({low} to {high})",
            f"{1e3 * line['penalty_seconds']:.1f}" if line["penalty_every"] else "",
            f"{line['seconds'] / seconds['plain']:.2f}",
            f"{line['seconds'] / seconds['after the cut']:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
