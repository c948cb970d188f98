"""Whether the importance of the states settles early: their ranking and their Hankel values along the training of the full model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from scipy import stats

import hsv
import hsv_torch
from paper_repro import provenance
from paper_repro.configuration import RunConfig, make_config, read_preset
from paper_repro.errors import ResultError
from paper_repro.results import Record, write_atomically
from paper_repro.tasks import load_dataset
from paper_repro.training import Training

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
EARLY = 0.1  # where the paper's cuts are over
SHARE_KEPT = 8  # one state in so many: the cut that the rankings are compared for


class Moment(Record):
    r"""The first layer of a run after a fraction of its steps.

    `scores` are the Hankel values that each state has alone, :math:`|B_k| |C_k| / (1 - |\lambda_k|^2)`, in the order of the states; `sigma` are the Hankel
    singular values of the layer, descending; `bound_to_previous` and `bound_to_end` are Hankel norms of the difference to the layer at the previous
    fraction and at the end, which by Weyl's inequality no singular value can have moved by more than.
    """

    preset: str
    seed: int
    fraction: float
    scores: tuple[float, ...]
    sigma: tuple[float, ...]
    bound_to_previous: float | None
    bound_to_end: float
    accuracy: float


class Rankings(Record):
    """All moments, and where they come from."""

    command: str
    commit: str | None
    versions: dict[str, str]
    moments: tuple[Moment, ...]

    def runs(self) -> list[list[Moment]]:
        """Return the moments run by run, in their order."""
        keys = dict.fromkeys((moment.preset, moment.seed) for moment in self.moments)
        return [[moment for moment in self.moments if (moment.preset, moment.seed) == key] for key in keys]


def measure_rankings(preset: str, seeds: Iterable[int], overrides: dict[str, Any]) -> Iterator[Moment]:
    """Train the full model of `preset` with every seed, and look at its first layer at each of `FRACTIONS`."""
    for seed in seeds:
        config = make_config({**read_preset(preset), **overrides, "arm": "full", "seed": seed})
        yield from _moments(preset, config)


def _moments(preset: str, config: RunConfig) -> Iterator[Moment]:
    training = Training(config, load_dataset(config.task, None, config.task_options))
    systems, accuracies = [], []
    for fraction in FRACTIONS:
        while training.step < round(fraction * config.steps):
            training.advance()
        layer = next(iter(hsv_torch.compressible_layers(training.model).values()))
        system = hsv_torch.adapter_of(layer).system(layer)
        if not isinstance(system, hsv.DiagonalStateSpace):
            raise ResultError(
                f"preset {preset}: the system of layer {config.layer} is not diagonal, or depends on its input"
            )
        systems.append(system)
        validations = training.journal.validations
        accuracies.append(validations[-1]["accuracy"] if validations else 0.0)
    for number, (fraction, system) in enumerate(zip(FRACTIONS, systems, strict=True)):
        yield Moment(
            preset=preset,
            seed=config.seed,
            fraction=fraction,
            scores=_numbers(single_hankel_values(system)),
            sigma=_numbers(hsv.hankel_singular_values(system).cpu().numpy()),
            bound_to_previous=None if number == 0 else float(hsv.hankel_norm(system - systems[number - 1])),
            bound_to_end=0.0 if system is systems[-1] else float(hsv.hankel_norm(system - systems[-1])),
            accuracy=accuracies[number],
        )


def single_hankel_values(system: hsv.DiagonalStateSpace) -> np.ndarray:
    """Return ``|B_k| |C_k| / (1 - |l_k|^2)`` of every state of a discrete system."""
    poles, B, C = (x.cpu().numpy() for x in (system.poles(), system.B, system.C))
    values: np.ndarray = np.linalg.norm(B, axis=1) * np.linalg.norm(C, axis=0) / (1 - np.abs(poles) ** 2)
    return values


def rank_correlation(first: Moment, second: Moment) -> float:
    """Return Spearman's correlation of the scores of the states at two moments."""
    return float(stats.spearmanr(first.scores, second.scores).statistic)


def overlap(first: Moment, second: Moment, count: int) -> float:
    """Return which part of the `count` states with the highest scores is the same at two moments."""
    top = [set(np.argsort(moment.scores)[-count:].tolist()) for moment in (first, second)]
    return len(top[0] & top[1]) / count


def largest_change(first: Moment, second: Moment) -> float:
    """Return by how much a Hankel singular value has moved at most between two moments."""
    return float(np.max(np.abs(np.subtract(first.sigma, second.sigma))))


def changes(run: Sequence[Moment]) -> list[tuple[Moment, float, float]]:
    """Return, for every moment but the first, the largest change since the previous one and Weyl's bound of it."""
    found = []
    for before, after in pairwise(run):
        assert after.bound_to_previous is not None
        found.append((after, largest_change(before, after), after.bound_to_previous))
    return found


def write_rankings(moments: Iterable[Moment], command: str, path: Path) -> None:
    """Write the moments and where they come from."""
    rankings = Rankings(
        command=command, commit=provenance.commit(), versions=provenance.versions(), moments=tuple(moments)
    )
    write_atomically((json.dumps(rankings.model_dump(mode="json")) + "\n").encode(), path)


def read_rankings(path: Path) -> Rankings:
    """Return what `write_rankings` wrote.

    Raises
    ------
    ResultError
        If the file is missing or spoilt.
    """
    if not path.is_file():
        raise ResultError(f"there is no {path}; `python -m paper_repro ranking` writes it")
    try:
        return Rankings.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise ResultError(f"{path} is not a file of rankings: {error}") from error


def _numbers(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
