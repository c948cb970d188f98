"""Choosing each arm's learning rate on validation data, and the file that keeps the choice."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from paper_repro import provenance
from paper_repro.configuration import KEYS_OUTSIDE_THE_IDENTITY, RunConfig, make_config
from paper_repro.errors import ConfigurationError
from paper_repro.progress import RunProgress
from paper_repro.results import Record, RunResult
from paper_repro.statistics import percent_with_spread, summarise
from paper_repro.workers import Job, run_jobs

CHOICES = Path(__file__).parent / "choices"
ARMS = ("full", "in_training", "from_scratch")  # of a preset; a table has a rate for each of its rows
CHOSEN_KEYS = ("learning_rate",)
KEYS_OF_ONE_RUN = frozenset({"arm", "seed", *CHOSEN_KEYS}) | KEYS_OUTSIDE_THE_IDENTITY


class Trial(Record):
    """One learning rate of one arm: the best validation accuracy of each seed, and the states it ended with."""

    learning_rate: float
    validation: tuple[float, ...]
    states: tuple[tuple[int, ...], ...]

    @property
    def mean(self) -> float:
        """Mean validation accuracy over the seeds."""
        return math.fsum(self.validation) / len(self.validation)


class ArmChoice(Record):
    """The learning rate of one arm, with everything that was tried."""

    learning_rate: float
    tried: tuple[Trial, ...]

    @property
    def is_at_edge(self) -> bool:
        """Whether no lower, or no higher, rate was tried than the one that was best."""
        rates = [trial.learning_rate for trial in self.tried]
        return self.learning_rate in (min(rates), max(rates))


class Choice(Record):
    """Learning rates chosen on validation data, for one set of other values; `arms` has them by arm, or by the row of a table."""

    command: str
    commit: str | None = None
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    arms: dict[str, ArmChoice]

    def differing_settings(self, config: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Return the keys in which `config` differs from what the choice was made with: name to (then, now).

        A key that did not exist then has its default, which is what was done then.
        """
        now = settings_of(config)
        then = {key: self.settings.get(key, _default(key)) for key in now}
        return {key: (then[key], value) for key, value in now.items() if then[key] != value}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the values that all arms and seeds of an experiment share; what is None is left out."""
    values = config.model_dump(mode="json", exclude=set(KEYS_OF_ONE_RUN))
    return {key: value for key, value in values.items() if value is not None}


def _default(key: str) -> Any:
    return RunConfig.model_fields[key].get_default(call_default_factory=True)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def choose(trials: Sequence[Trial]) -> ArmChoice:
    """Return the rate with the best mean validation accuracy; of equals, the lowest rate."""
    best = max(trials, key=lambda trial: (trial.mean, -trial.learning_rate))
    return ArmChoice(learning_rate=best.learning_rate, tried=tuple(trials))


def select_learning_rates(
    values: Mapping[str, Any],
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    directory: Path,
    n_workers: int,
    progress: RunProgress,
    command: str,
) -> Choice:
    """Train every arm with every rate and seed, never looking at the test set, and return the best rate of each arm.

    The arm from scratch starts with the sizes that the cut arm ended with at its chosen rate, seed by seed.
    """
    if not rates or not seeds:
        raise ConfigurationError("at least one learning rate and one seed are needed")
    trained: dict[str, ArmChoice] = {}

    def config(arm: str, rate: float, seed: int) -> RunConfig:
        return make_config({**values, "arm": arm, "learning_rate": rate, "seed": seed})

    def key(arm: str, rate: float, seed: int) -> str:
        return f"{arm} {rate} {seed}"

    def run(jobs: list[Job]) -> dict[str, RunResult]:
        return run_jobs(jobs, directory, n_workers=n_workers, progress=progress, evaluate_test=False)

    def trials(arm: str, results: Mapping[str, RunResult]) -> list[Trial]:
        found = {rate: [results[key(arm, rate, seed)] for seed in seeds] for rate in rates}
        return [
            Trial(
                learning_rate=rate,
                validation=tuple(result.best.accuracy for result in runs),
                states=tuple(result.states_after for result in runs),
            )
            for rate, runs in found.items()
        ]

    large = [
        Job(key(arm, rate, seed), config(arm, rate, seed), label=f", rate {rate:g}")
        for arm in ("in_training", "full")
        for rate in rates
        for seed in seeds
    ]
    results = run(large)
    for arm in ("in_training", "full"):
        trained[arm] = choose(trials(arm, results))
    cut = {seed: results[key("in_training", trained["in_training"].learning_rate, seed)] for seed in seeds}
    small = [
        Job(
            key("from_scratch", rate, seed),
            config("from_scratch", rate, seed).with_values(n_states=cut[seed].states_after, sizes_of=cut[seed].run_id),
            label=f", rate {rate:g}",
        )
        for rate in rates
        for seed in seeds
    ]
    trained["from_scratch"] = choose(trials("from_scratch", run(small)))
    return Choice(
        command=command,
        commit=provenance.commit(),
        seeds=tuple(seeds),
        settings=settings_of(config("full", rates[0], seeds[0])),
        arms={arm: trained[arm] for arm in ARMS},
    )


def choice_path(preset: str) -> Path:
    """Return where the choice for `preset` is kept."""
    return CHOICES / f"{Path(preset).stem}.toml"


def write_choice(choice: Choice, path: Path) -> None:
    """Write `choice` as TOML, with the validation figures in words."""
    lines = [
        "# Learning rates chosen on validation data; the test set was not looked at. Written by",
        f"#   {choice.command}",
        f"# Each figure is the best validation accuracy, {'of one seed' if len(choice.seeds) == 1 else f'mean of {len(choice.seeds)} seeds'}; the highest was taken.",
        "#",
        *(f"# {line}" for line in describe_choice(choice)),
        "",
        f"command = {json.dumps(choice.command)}",
        *([f"commit = {json.dumps(choice.commit)}"] if choice.commit else []),
        f"seeds = {list(choice.seeds)}",
        "",
        "[settings]",
        *(f"{key} = {_toml(value)}" for key, value in choice.settings.items()),
    ]
    for arm, chosen in choice.arms.items():
        lines += ["", f"[arms.{arm}]", f"learning_rate = {chosen.learning_rate}"]
        for trial in chosen.tried:
            lines += [
                "",
                f"[[arms.{arm}.tried]]",
                f"learning_rate = {trial.learning_rate}",
                f"validation = {[round(value, 5) for value in trial.validation]}",
                f"states = {[list(states) for states in trial.states]}",
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe_choice(choice: Choice, arms: Sequence[str] | None = None) -> list[str]:
    """Return a line for each of `arms`, None for all: its rates with mean and deviation of the accuracy, and the one that was taken."""
    lines = []
    for arm in choice.arms if arms is None else arms:
        chosen = choice.arms[arm]
        tried = [
            f"{trial.learning_rate:g}: {percent_with_spread(summarise(trial.validation))}" for trial in chosen.tried
        ]
        edge = " (the edge of what was tried)" if chosen.is_at_edge else ""
        lines.append(f"{arm.replace('_', ' ')}: {', '.join(tried)} → {chosen.learning_rate:g}{edge}")
    return lines


def read_choice(path: Path) -> Choice:
    """Return the choice in `path`.

    Raises
    ------
    ConfigurationError
        If the file is missing or is not a choice.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist; write it with `python -m paper_repro select-lr {path.stem}`, "
            "or give one rate to all arms with --set learning_rate=..."
        )
    try:
        return Choice.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
        raise ConfigurationError(f"{path} is not a choice of learning rates: {error}") from error
