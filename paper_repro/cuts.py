"""When and to what size each arm cuts its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import hsv
import hsv_torch
from paper_repro.configuration import RunConfig
from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.methods import make_criterion, needs_data
from paper_repro.sequences import Calibration, Dataset

CALIBRATION_BATCH = 16
CALIBRATION_STREAM = 1  # of the random numbers of a seed: the choice of calibration sequences draws none of the others
NORMALISED_BY_PREFIX = ("last", "aire")  # the level that serves all blocks is that of LAST and AIRE-Prune
ARMS_WITH_A_COMPRESSOR = ("in_training", "pragmatic", "regularised")


def make_compressor(
    config: RunConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    dataset: Dataset,
    validation_accuracy: Callable[[], float],
    state: Mapping[str, Any],
) -> hsv_torch.InTrainingCompressor | None:
    """Return what cuts the model while it trains; None in arms that do not.

    - in_training: the rule at every attempt of the window.
    - pragmatic: a tenth of the states at every attempt; a cut is undone, and no other made, if validation is worse some steps later.
    - regularised: the rule once, at the end of the window.

    Parameters
    ----------
    config : RunConfig
    model, optimizer, dataset
        Those of the run.
    validation_accuracy : callable
        What a guard asks for.
    state : mapping
        What is rewound with the model: scheduler and batches.

    Raises
    ------
    ConfigurationError
        If the attempts do not fit into the steps.
    """
    if config.arm not in ARMS_WITH_A_COMPRESSOR:
        return None
    try:
        return hsv_torch.InTrainingCompressor(
            model,
            optimizer,
            rule=_rule_of_attempt(config),
            schedule=_schedule(config),
            criterion=make_criterion(config),
            calibration=make_calibration(config, dataset),
            guard=_guard(config, validation_accuracy),
            ready=_ready(config),
            moments=config.moments,
            sizes=_sizes(config, model),
            min_reduction=0.0 if config.arm == "pragmatic" else 0.05,
            state=state,
        )
    except hsv.OrderError as error:
        raise ConfigurationError(f"key 'order': {error}") from error
    except hsv.HsvError as error:
        keys = (
            "'steps', 'window' and 'attempts'"
            if config.arm != "pragmatic"
            else "'window', 'attempts' and 'decide_after'"
        )
        raise ConfigurationError(f"keys {keys}: {error}") from error


def cut_before_training(
    config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, dataset: Dataset
) -> hsv_torch.History:
    """Cut `model` by the rule of `config`, as the arm post_training does, and return the history of the one cut. No random number is drawn.

    Raises
    ------
    ResultError
        If the cut is refused.
    """
    before = {
        name: hsv_torch.adapter_of(layer).n_states(layer)
        for name, layer in hsv_torch.compressible_layers(model).items()
    }
    random_state = torch.get_rng_state()
    try:
        report = hsv_torch.compress_(
            model,
            _rule(config),
            optimizer=optimizer,
            criterion=make_criterion(config),
            calibration=make_calibration(config, dataset),
            sizes=_sizes(config, model),
        )
    except hsv_torch.CutRefusedError as error:
        raise ResultError(f"{config.run_id}: the model that it starts from cannot be cut: {error}") from error
    finally:
        torch.set_rng_state(random_state)
    event = hsv_torch.Event(1, 0, report.layers, report.seconds)
    return hsv_torch.History(before, (event,), config.steps, 0)


def make_calibration(config: RunConfig, dataset: Dataset) -> list[Calibration] | None:
    """Return batches of training sequences, drawn with the run's seed, that a selective layer is observed on; None for other layers.

    Raises
    ------
    ConfigurationError
        If there are fewer training sequences than are asked for.
    """
    if not needs_data(config):
        return None
    count = config.calibration_sequences
    if count > len(dataset.train):
        raise ConfigurationError(
            f"key 'calibration_sequences': the training set has {len(dataset.train)} sequences, {count} are asked for"
        )
    random = np.random.default_rng([config.seed, 0, CALIBRATION_STREAM])
    chosen = torch.from_numpy(random.choice(len(dataset.train), size=count, replace=False))
    return dataset.train.calibration(chosen, CALIBRATION_BATCH)


def _schedule(config: RunConfig) -> hsv_torch.Schedule:
    if config.arm == "regularised":
        return hsv_torch.Schedule.once(config.steps, max(1, config.last_step_of_window))
    return hsv_torch.Schedule(total_steps=config.steps, window=config.window, attempts=config.attempts)


def _rule_of_attempt(config: RunConfig) -> Any:
    """Return a rule, or the function of an attempt's number and their count that returns it."""
    if config.arm == "pragmatic":
        kept = 1 - config.share_of_cut
        return lambda attempt, attempts: hsv_torch.Budget(keep=kept**attempt, gradual=False)
    if config.arm == "in_training" and config.gradual and config.budget is None:
        first, last = max(config.states_of_blocks), config.order
        assert isinstance(last, int)
        return lambda attempt, attempts: hsv.Order(max(1, round(first * (last / first) ** (attempt / attempts))))
    return _rule(config)


def _rule(config: RunConfig) -> hsv.Rule | hsv_torch.Budget:
    if config.budget is not None:
        share: Literal["sum", "prefix"] = "prefix" if config.reading in NORMALISED_BY_PREFIX else "sum"
        return hsv_torch.Budget(states=config.budget, share=share, gradual=config.gradual)
    orders = config.orders_of_blocks
    if orders is not None:
        return hsv.Order(min(orders))  # where blocks differ, `_sizes` says which gets how many
    assert config.tau is not None
    return hsv.HankelSum(discard=config.tau)


def _sizes(config: RunConfig, model: nn.Module) -> hsv_torch.Sizes | None:
    if config.arm == "pragmatic" or not isinstance(config.order, tuple):
        return None
    sizes = dict(zip(hsv_torch.compressible_layers(model), config.order, strict=True))
    return hsv_torch.Sizes(floor=sizes, ceiling=sizes)


def _guard(config: RunConfig, validation_accuracy: Callable[[], float]) -> hsv_torch.Rollback | None:
    if config.arm == "pragmatic":
        return hsv_torch.Rollback(
            validation_accuracy, max_drop=config.max_drop or 0.0, after_steps=config.steps_to_decide, then="stop"
        )
    if config.arm == "in_training" and config.max_drop is not None:
        return hsv_torch.Rollback(validation_accuracy, max_drop=config.max_drop)
    return None


def _ready(config: RunConfig) -> hsv_torch.LossFalls | None:
    if config.arm == "regularised" or (config.ready_by is None and config.ready_to is None):
        return None
    return hsv_torch.LossFalls(by=config.ready_by, to=config.ready_to)
