"""Doing one job of the study: training, cutting, evaluating."""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hsv
import hsv_torch
from hsv_torch.calibration import observe
from hsv_torch.selective import SelectiveObservation
from paper_repro import provenance
from paper_repro.configuration import RunConfig
from paper_repro.cuts import CALIBRATION_BATCH, make_calibration
from paper_repro.evaluation import evaluate
from paper_repro.methods import selective_criterion
from paper_repro.sequences import Calibration, Dataset
from paper_repro.study.measurements import Kind, Measurement
from paper_repro.study.plan import POINTS, Job
from paper_repro.tasks import load_dataset
from paper_repro.training import DivergedError, RunInterruptedError, Training

ESTIMATED_SCORES = ("hankel", "ghost", "second_moment")
RANKING_STREAM = 2  # of the random numbers of a seed


def perform(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    """Do `job`, with the checkpoints of full runs in `directory`, and return what was measured.

    Raises
    ------
    RunInterruptedError
        If `should_stop` said so.
    """
    if job.config.threads is not None:
        torch.set_num_threads(job.config.threads)
    work = {"full": _full, "scratch": _scratch, "cuts": _cuts, "trained_on": _trained_on, "ranking": _rankings}
    return work[job.kind](job, directory, should_stop)


def checkpoint_path(directory: Path, config: RunConfig, point: str) -> Path:
    """Return where the full run of `config` is kept as it was at `point`."""
    return directory / config.run_id / f"{point}.pt"


def _full(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    config, start = job.config, time.perf_counter()
    training = Training(config, _dataset_of(config))
    points = {round(config.steps * fraction): point for point, fraction in POINTS.items()}
    found = []
    while training.step < config.steps:
        _advance(training, should_stop)
        point = points.get(training.step)
        if point is not None:
            training.save(checkpoint_path(directory, config, point))
            found.append(_measure(job, training, "point", start, point=point))
    return [*found, _measure(job, training, "full", start)]


def _scratch(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    del directory
    start = time.perf_counter()
    config = job.config.with_values(arm="from_scratch", n_states=job.n_states, learning_rate=job.learning_rate)
    training = Training(config, _dataset_of(config))
    found = _train_to_end(job, training, "scratch", start, should_stop, learning_rate=job.learning_rate)
    validation = None if found.accuracy is None else evaluate(training.model, training.dataset.validation, 0).accuracy
    return [found.model_copy(update={"validation": validation})]


def _cuts(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    training = _restore(job, directory)
    calibration = make_calibration(job.config, training.dataset)
    found = []
    for method in job.methods:
        for size in job.sizes:
            _stop_if_asked(should_stop, job)
            model = copy.deepcopy(training.model)
            values: dict[str, Any] = {"point": job.point, "method": method, "n_states": size}
            start = time.perf_counter()
            reason = _cut(model, job.config, method, size, calibration)
            seconds = time.perf_counter() - start
            found.append(
                _measurement(job, "cut", None if reason else _accuracy(model, training), seconds, reason, values)
            )
    return found


def _trained_on(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    found = []
    for method in job.methods:
        for size in job.sizes:
            start = time.perf_counter()
            training = _restore(job, directory)
            calibration = make_calibration(job.config, training.dataset)
            values: dict[str, Any] = {"point": job.point, "method": method, "n_states": size}
            reason = _cut(training.model, job.config, method, size, calibration, optimizer=training.optimizer)
            if reason:
                found.append(_measurement(job, "trained_on", None, time.perf_counter() - start, reason, values))
            else:
                found.append(_train_to_end(job, training, "trained_on", start, should_stop, **values))
    return found


def _rankings(job: Job, directory: Path, should_stop: Callable[[], bool]) -> list[Measurement]:
    training = _restore(job, directory)
    train = training.dataset.train
    found = []
    for count in job.counts:
        for draw in range(job.draws):
            random = np.random.default_rng([job.config.seed, RANKING_STREAM, count, draw])
            chosen = torch.from_numpy(random.choice(len(train), size=min(count, len(train)), replace=False))
            calibration = train.calibration(chosen, CALIBRATION_BATCH)
            for method in job.methods:
                _stop_if_asked(should_stop, job)
                model = copy.deepcopy(training.model)
                values: dict[str, Any] = {
                    "point": job.point, "method": method, "n_states": job.n_states, "n_sequences": count, "draw": draw,
                }  # fmt: skip
                start = time.perf_counter()
                reason = _cut(model, job.config, method, job.n_states, calibration)
                seconds = time.perf_counter() - start
                if reason is None:
                    values["kept"] = kept_states(training.model, model)
                    values["error"] = relative_error_of_scores(training.model, job.config, method, calibration)
                accuracy = None if reason else _accuracy(model, training)
                found.append(_measurement(job, "ranking", accuracy, seconds, reason, values))
    return found


def kept_states(before: torch.nn.Module, after: torch.nn.Module) -> tuple[tuple[int, ...], ...] | None:
    """Return, for each layer that was cut, the states of `before` that are states of `after`: those with the same rates in all channels.

    None where a layer has a state that the old one did not have, as after a change of basis.
    """
    kept = []
    for name, layer in hsv_torch.compressible_layers(after).items():
        old, new = before.get_submodule(name).A_log, layer.A_log  # (channels, states)
        assert isinstance(old, torch.Tensor)
        assert isinstance(new, torch.Tensor)
        if old.shape[0] != new.shape[0]:
            return None
        distance = (old.detach()[:, :, None] - new.detach()[:, None, :]).abs().amax(dim=0)  # (old states, new states)
        if float(distance.amin(dim=0).max()) > SAME_RATE:
            return None
        kept.append(tuple(sorted(distance.argmin(dim=0).tolist())))
    return tuple(kept)


def relative_error_of_scores(
    model: torch.nn.Module, config: RunConfig, method: str, calibration: Sequence[Calibration]
) -> float | None:
    """Return the standard error of a state's score over the sequences, relative to the score, in the median over the states of all layers.

    None for methods whose score is no mean over sequences.
    """
    if method not in ESTIMATED_SCORES:
        return None
    layers = hsv_torch.compressible_layers(model)
    criterion = selective_criterion(method, config.seed)
    observations = observe(model, layers, dict.fromkeys(layers, criterion), list(calibration))
    errors = []
    for observation in observations.values():
        assert isinstance(observation, SelectiveObservation)
        estimator = observation.estimator()
        scores, deviations = (np.asarray(a) for a in (estimator.scores(method), estimator.standard_error(method)))
        errors += (deviations / scores).tolist()
    return float(np.median(errors))


SAME_RATE = 1e-4  # of the logarithm of a rate: written back in float32, through its exponential


def _cut(
    model: torch.nn.Module,
    config: RunConfig,
    method: str,
    n_states: int,
    calibration: Any,
    optimizer: torch.optim.Optimizer | None = None,
) -> str | None:
    """Cut every layer of `model` and return None, or why it was refused."""
    criterion = selective_criterion(method, config.seed)
    try:
        hsv_torch.compress_(
            model, hsv.Order(n_states), criterion=criterion, calibration=calibration, optimizer=optimizer
        )
    except hsv_torch.CutRefusedError as error:
        return str(error)
    return None


def _train_to_end(
    job: Job, training: Training, kind: Kind, start: float, should_stop: Callable[[], bool], **values: Any
) -> Measurement:
    try:
        while training.step < training.config.steps:
            _advance(training, should_stop)
    except DivergedError as error:
        return _measurement(job, kind, None, time.perf_counter() - start, str(error), values)
    return _measure(job, training, kind, start, **values)


def _advance(training: Training, should_stop: Callable[[], bool]) -> None:
    training.advance()
    if should_stop():
        raise RunInterruptedError(f"{training.config.run_id} stopped; the same command starts this part again")


def _stop_if_asked(should_stop: Callable[[], bool], job: Job) -> None:
    if should_stop():
        raise RunInterruptedError(f"{job.describe()}: stopped; the same command starts this part again")


def _measure(job: Job, training: Training, kind: Kind, start: float, **values: Any) -> Measurement:
    seconds = time.perf_counter() - start
    return _measurement(job, kind, _accuracy(training.model, training), seconds, None, values)


def _measurement(
    job: Job, kind: Kind, accuracy: float | None, seconds: float, reason: str | None, values: Mapping[str, Any]
) -> Measurement:
    sizes = {"n_states": job.n_states or job.config.states_of_blocks[0]}
    return Measurement(
        run=job.config.run_id,
        task=job.task,
        seed=job.config.seed,
        kind=kind,
        accuracy=accuracy,
        seconds=seconds,
        reason=reason,
        commit=provenance.commit(),
        **{**sizes, **values},
    )


def _accuracy(model: torch.nn.Module, training: Training) -> float:
    return evaluate(model, training.dataset.test, training.step).accuracy


def _restore(job: Job, directory: Path) -> Training:
    config = job.config
    return Training.restore(config, _dataset_of(config), checkpoint_path(directory, config, job.point))


def _dataset_of(config: RunConfig) -> Dataset:
    return _load(config.task, config.data_dir, json.dumps(config.task_options))


@functools.lru_cache(maxsize=1)
def _load(task: str, data_dir: str | None, options: str) -> Dataset:
    return load_dataset(task, None if data_dir is None else Path(data_dir), json.loads(options))
