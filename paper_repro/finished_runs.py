"""What finished runs leave: a result and their best model, from which other runs may start."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import hsv_torch
from paper_repro.configuration import ARMS_WITH_A_START, RunConfig
from paper_repro.errors import ConfigurationError, ResultError
from paper_repro.model import Model, make_model
from paper_repro.results import RunResult, find_result, write_atomically
from paper_repro.tasks import task_shape

BEST_FILE, CONFIG_FILE = "best.safetensors", "config.json"


@dataclass(frozen=True)
class Start:
    """The best model of a finished run, in evaluation mode, and the run's result."""

    model: Model
    result: RunResult


def find_usable_result(directory: Path, config: RunConfig, *, evaluate_test: bool) -> RunResult | None:
    """Return the finished run of `config` in `directory`, if there is one and it looked at the test set where asked to."""
    finished = find_result(directory, config.run_id)
    if finished is not None and (finished.test_accuracy is not None or not evaluate_test):
        return finished
    return None


def listing_command(directory: Path) -> str:
    """Return the command that lists the finished runs of `directory`, between backquotes."""
    return f"`python -m paper_repro table --out {shlex.quote(str(directory))}`"


def save_best_model(model: nn.Module, config: RunConfig, run_directory: Path, extra: Any) -> None:
    """Write what `load_best_model` reads."""
    write_atomically(config.model_dump_json(indent=2).encode(), run_directory / CONFIG_FILE)
    hsv_torch.save_checkpoint(model, run_directory / BEST_FILE, extra=extra)


def load_best_model(run_directory: Path) -> Model:
    """Return the best model of a finished run, with the sizes that it was saved with, in evaluation mode."""
    config = RunConfig.model_validate_json((run_directory / CONFIG_FILE).read_bytes())
    model = make_model(config, task_shape(config.task, config.task_options))
    hsv_torch.load_into(model, run_directory / BEST_FILE)
    return model.eval()


def load_start(config: RunConfig, directory: Path) -> Start | None:
    """Return what `config` starts from; None in arms that start from new weights.

    Raises
    ------
    ConfigurationError
        If no run is named, it is not among the finished ones of `directory`, or it is of another task or size.
    ResultError
        If its model is gone.
    """
    if config.arm not in ARMS_WITH_A_START:
        return None
    if config.starts_from is None:
        raise ConfigurationError(f"key 'starts_from': arm {config.arm} needs the name of a finished run, got None")
    result = find_result(directory, config.starts_from)
    if result is None:
        raise ConfigurationError(
            f"key 'starts_from': no finished run {config.starts_from!r} in {directory}; {listing_command(directory)} lists them"
        )
    _check_start(config, result)
    run_directory = directory / config.starts_from
    if not (run_directory / BEST_FILE).is_file():
        raise ResultError(
            f"{run_directory / BEST_FILE} is gone, and {config.run_id} starts from it; take the line of {config.starts_from} out of the "
            "results and train it again"
        )
    return Start(load_best_model(run_directory), result)


def _check_start(config: RunConfig, start: RunResult) -> None:
    keys = ("task", "task_options", *(("layer", "n_blocks", "d_model") if config.arm == "post_training" else ()))
    for key in keys:
        here, there = getattr(config, key), getattr(start.config, key)
        if here != there:
            raise ConfigurationError(
                f"key {key!r}: this run has {here!r}, and {start.run_id}, from which it starts, {there!r}"
            )
    if config.arm == "post_training" and config.states_of_blocks != start.states_after:
        raise ConfigurationError(
            f"key 'n_states': this run has {config.states_of_blocks}, and {start.run_id}, from which it starts, ended with {start.states_after}"
        )
