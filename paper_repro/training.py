"""One training run: steps, cuts, validations, checkpoints, and the result at its end."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch.checkpoint import layer_sizes, resize_layers
from paper_repro import provenance
from paper_repro.batches import ShuffledBatches
from paper_repro.configuration import RunConfig
from paper_repro.datasets import load_dataset, task_shape
from paper_repro.errors import ConfigurationError, ReproError, ResultError
from paper_repro.learning_rate import make_scheduler
from paper_repro.methods import make_criterion, needs_data
from paper_repro.model import make_model
from paper_repro.results import (
    Evaluation,
    Provenance,
    RunResult,
    Spectrum,
    States,
    Timing,
    append_result,
    find_result,
    write_atomically,
)
from paper_repro.sequences import NOT_ASKED, Calibration, Dataset, Sequences

EVALUATION_BATCH = 256
CALIBRATION_BATCH = 16
CHECKPOINT_FILE, BEST_FILE, CONFIG_FILE = "checkpoint.safetensors", "best.safetensors", "config.json"
STEPS_BETWEEN_PROGRESS = 25
CALIBRATION_STREAM = 1  # of the random numbers of a seed: the choice of calibration sequences draws none of the others


class RunInterruptedError(ReproError):
    """A run was asked to stop; its checkpoint is written and the same command goes on from there."""


class DivergedError(ReproError):
    """The loss of a run is no longer a finite number."""


@dataclasses.dataclass
class Journal:
    """What a run has recorded so far."""

    started: str = ""
    warm_up_seconds: float = 0.0
    commits: list[str | None] = dataclasses.field(default_factory=list)
    code_digests: list[str] = dataclasses.field(default_factory=list)
    wall_seconds: float = 0.0
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    reduction_seconds: float = 0.0
    validations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    spectra: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Training:
    """A run in progress: everything that a checkpoint holds.

    Parameters
    ----------
    config : RunConfig
    dataset : Dataset
        On the device of the run.
    """

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.dataset = dataset
        self.step = 0
        self.model = build_model(config, dataset)
        self.batches = make_batches(config, dataset)
        groups = hsv_torch.parameter_groups(
            self.model, lr=config.learning_rate, ssm_lr_factor=config.ssm_lr_factor, weight_decay=config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.scheduler = make_scheduler(self.optimizer, config)
        self.compressor = self._make_compressor() if config.arm == "in_training" else None
        self.best: dict[str, Any] | None = None
        self.journal = Journal(started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def advance(self) -> None:
        """Take one optimizer step, cut if it is time, and validate if it is time."""
        start = time.perf_counter()
        batch = self.batches.next()
        self.model.train()
        loss = cross_entropy(self.model(*batch.arguments), batch.labels)
        if not math.isfinite(value := loss.item()):
            raise DivergedError(
                f"{self.config.run_id}: the loss is {value} at step {self.step + 1}; a smaller learning_rate than "
                f"{self.config.learning_rate:g} may help"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self._wait_for_device()
        self.journal.step_seconds.append(time.perf_counter() - start)
        self.step += 1
        self._compress(value)
        if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
            self._validate()

    def save(self, path: Path) -> None:
        """Write all that `restore` needs; the file has either its old or its new content at every moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = {
            "step": self.step,
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.state_dict(),
            "compressor": self.compressor.state_dict() if self.compressor else None,
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            "best": self.best,
            "journal": dataclasses.asdict(self.journal),
        }
        hsv_torch.save_checkpoint(self.model, path, optimizer=self.optimizer, extra=extra)

    @classmethod
    def restore(cls, config: RunConfig, dataset: Dataset, path: Path) -> Training:
        """Return the run as it was when it was saved to `path`."""
        training = cls(config, dataset)
        try:
            extra = hsv_torch.load_into(training.model, path, optimizer=training.optimizer)
        except hsv_torch.CheckpointError as error:
            raise ResultError(f"{error}; remove {path} to start this run anew") from error
        training.step = extra["step"]
        training.scheduler.load_state_dict(extra["scheduler"])
        training.batches.load_state_dict(extra["batches"])
        if training.compressor:
            training.compressor.load_state_dict(extra["compressor"])
        training.best = extra["best"]
        training.journal = Journal(**extra["journal"])
        torch.set_rng_state(extra["random"]["cpu"].cpu())
        if extra["random"]["cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in extra["random"]["cuda"]])
        return training

    def begin_session(self, warm_up_seconds: float) -> None:
        """Note which code goes on with this run, and what it took to get ready."""
        self.journal.warm_up_seconds += warm_up_seconds
        self.journal.commits.append(provenance.commit())
        self.journal.code_digests.append(provenance.code_digest())

    def record_start(self) -> None:
        """Record sizes and spectra before the first step."""
        self.journal.states.append({"step": 0, "states": self.model.n_states})
        self._record_spectra()

    def result(self, *, evaluate_test: bool) -> RunResult:
        """Return what the finished run found; `evaluate_test` decides whether the test set is looked at, once."""
        assert self.best is not None
        assert self.step == self.config.steps
        journal = self.journal
        test = evaluate(self.best_model(), self.dataset.test, self.step) if evaluate_test else None
        sizes = [States(**entry) for entry in journal.states]
        before, after = self._median_step_seconds(sizes)
        parameters_before = count_parameters(build_model(self.config, self.dataset, sizes[0].states))
        return RunResult(
            run_id=self.config.run_id,
            config=self.config,
            provenance=Provenance(
                commits=tuple(journal.commits),
                code_digests=tuple(journal.code_digests),
                versions=provenance.versions(),
                device=provenance.device_name(torch.device(self.config.device)),
                threads=torch.get_num_threads(),
                started=journal.started,
                command=shlex.join(sys.argv),
            ),
            timing=Timing(
                warm_up=journal.warm_up_seconds,
                wall=journal.wall_seconds,
                training=sum(journal.step_seconds) + journal.reduction_seconds,
                reductions=journal.reduction_seconds,
                step_before=before,
                step_after=after,
            ),
            states_before=sizes[0].states,
            states_after=sizes[-1].states,
            n_parameters_before=parameters_before,
            n_parameters_after=count_parameters(self.model),
            best=Evaluation(**self.best["evaluation"]),
            test_accuracy=None if test is None else test.accuracy,
            validations=tuple(Evaluation(**entry) for entry in journal.validations),
            states=tuple(sizes),
            history=None if self.compressor is None else self.compressor.history.to_dict(),
            spectra=tuple(Spectrum(**entry) for entry in journal.spectra),
        )

    def best_model(self) -> hsv_torch.SequenceModel:
        """Return the model as it was at its best validation after the window of the cuts."""
        assert self.best is not None
        model = build_model(self.config, self.dataset)
        resize_layers(model, self.best["sizes"])
        model.load_state_dict(self.best["model"])
        return model.eval()

    def _make_compressor(self) -> hsv_torch.InTrainingCompressor:
        config = self.config
        guard = None
        if config.max_drop is not None:
            guard = hsv_torch.Rollback(self._validation_accuracy, max_drop=config.max_drop, higher_is_better=True)
        try:
            schedule = hsv_torch.Schedule(total_steps=config.steps, window=config.window, attempts=config.attempts)
        except hsv.HsvError as error:
            raise ConfigurationError(f"keys 'steps', 'window' and 'attempts': {error}") from error
        return hsv_torch.InTrainingCompressor(
            self.model,
            self.optimizer,
            rule=_rule(config),
            schedule=schedule,
            criterion=make_criterion(config),
            calibration=make_calibration(config, self.dataset),
            guard=guard,
            ready=_ready(config),
            moments=config.moments,
            state={"scheduler": self.scheduler, "loader": self.batches},
        )

    def _compress(self, loss: float) -> None:
        if self.compressor is None:
            return
        start = time.perf_counter()
        event = self.compressor.step(loss)
        self._wait_for_device()
        self.journal.reduction_seconds += time.perf_counter() - start
        states = self.model.n_states
        if event is not None and states != tuple(self.journal.states[-1]["states"]):
            self.journal.states.append({"step": self.step, "states": states})
            self.best = None  # a cut that was put off may come after the window: what was best before it is larger

    def _validation_accuracy(self) -> float:
        return evaluate(self.model, self.dataset.validation, self.step).accuracy

    def _validate(self) -> None:
        evaluation = evaluate(self.model, self.dataset.validation, self.step)
        self.journal.validations.append(evaluation.model_dump())
        self._record_spectra()
        if self.step < self.config.last_step_of_window:
            return  # what is best now may be larger than what the run ends with
        if self.best is None or evaluation.is_better_than(Evaluation(**self.best["evaluation"])):
            self.best = {
                "evaluation": evaluation.model_dump(),
                "sizes": layer_sizes(self.model),
                "model": {name: value.detach().clone() for name, value in self.model.state_dict().items()},
            }

    def _record_spectra(self) -> None:
        for name, layer in hsv_torch.compressible_layers(self.model).items():
            system = hsv_torch.adapter_of(layer).system(layer)
            if system is None:  # it depends on the layer's input
                continue
            values = np.asarray(hsv.hankel_singular_values(system).cpu())
            values = values.reshape(-1, values.shape[-1]).mean(axis=0)  # over the channels, where each has a system
            self.journal.spectra.append({"step": self.step, "layer": name, "values": tuple(values.tolist())})

    def _median_step_seconds(self, sizes: list[States]) -> tuple[float, float]:
        """Return the medians over the steps with the first and with the last size."""
        seconds = np.asarray(self.journal.step_seconds)
        first_change = sizes[1].step if len(sizes) > 1 else len(seconds)
        last_change = sizes[-1].step if sizes[-1].step < len(seconds) else 0
        return float(np.median(seconds[:first_change])), float(np.median(seconds[last_change:]))

    def _wait_for_device(self) -> None:
        if torch.device(self.config.device).type == "cuda":
            torch.cuda.synchronize()


def train(
    config: RunConfig,
    directory: Path,
    *,
    dataset: Dataset | None = None,
    evaluate_test: bool = True,
    progress: Callable[[int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RunResult:
    """Train as `config` says and return the result; go on from a checkpoint, or return the result that is there.

    Parameters
    ----------
    config : RunConfig
    directory : Path
        Gets ``results.jsonl``, and ``<run_id>/`` with the checkpoint while the run goes and the best model at its end.
    dataset : Dataset, optional
        Default: the one that `config` names.
    evaluate_test : bool
        Whether the test set is evaluated at the end. Choices of hyperparameters are made without it.
    progress : callable, optional
        Is told the number of steps done and a short description, every few steps.
    should_stop : callable, optional
        Is asked after every step; True ends the run with its checkpoint written.

    Raises
    ------
    RunInterruptedError
        If `should_stop` said so.
    ConfigurationError
        If the configuration does not fit the machine or the data.
    """
    finished = find_usable_result(directory, config, evaluate_test=evaluate_test)
    if finished is not None:
        return finished
    device = _device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data_dir = Path(config.data_dir) if config.data_dir is not None else None
    dataset = (dataset or load_dataset(config.task, data_dir, config.task_options)).to(device)
    run_directory = directory / config.run_id
    checkpoint = run_directory / CHECKPOINT_FILE
    warm_up_seconds = warm_up(config, dataset)
    if checkpoint.is_file():
        training = Training.restore(config, dataset, checkpoint)
    else:
        training = Training(config, dataset)
        training.record_start()
    training.begin_session(warm_up_seconds)
    _run_to_end(training, checkpoint, progress, should_stop)
    result = training.result(evaluate_test=evaluate_test)
    write_atomically(config.model_dump_json(indent=2).encode(), run_directory / CONFIG_FILE)
    hsv_torch.save_checkpoint(training.best_model(), run_directory / BEST_FILE, extra=result.best.model_dump())
    append_result(directory, result)
    checkpoint.unlink(missing_ok=True)
    return result


def warm_up(config: RunConfig, dataset: Dataset) -> float:
    """Use everything that is compiled when it is first used, on a model that is thrown away; return the seconds it took.

    Else the first step and the first reduction of a process would be timed with the compilation of their kernels.
    """
    start = time.perf_counter()
    model = build_model(config, dataset)
    batches = make_batches(config, dataset)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = batches.next()
    cross_entropy(model(*batch.arguments), batch.labels).backward()
    optimizer.step()
    for layer in hsv_torch.compressible_layers(model).values():
        system = hsv_torch.adapter_of(layer).system(layer)
        if system is not None:
            hsv.hankel_singular_values(system - system)
    if config.arm == "in_training":
        with contextlib.suppress(hsv_torch.CutRefusedError):  # whether a throw-away model can be cut does not matter
            hsv_torch.compress_(
                model,
                hsv.Order(1),
                criterion=make_criterion(config),
                calibration=make_calibration(config, dataset),
                optimizer=optimizer,
            )
    return time.perf_counter() - start


def find_usable_result(directory: Path, config: RunConfig, *, evaluate_test: bool) -> RunResult | None:
    """Return the finished run of `config` in `directory`, if there is one and it looked at the test set where asked to."""
    finished = find_result(directory, config.run_id)
    if finished is not None and (finished.test_accuracy is not None or not evaluate_test):
        return finished
    return None


def load_best_model(run_directory: Path) -> hsv_torch.SequenceModel:
    """Return the best model of a finished run, with the sizes that it was saved with, in evaluation mode."""
    config = RunConfig.model_validate_json((run_directory / CONFIG_FILE).read_bytes())
    model = make_model(config, task_shape(config.task, config.task_options))
    hsv_torch.load_into(model, run_directory / BEST_FILE)
    return model.eval()


def build_model(config: RunConfig, dataset: Dataset, states: tuple[int, ...] | None = None) -> hsv_torch.SequenceModel:
    """Return a new model for `dataset`, with other numbers of states than in `config` where `states` is given."""
    sized = config if states is None else config.with_values(n_states=states)
    return make_model(sized, dataset.shape).to(torch.device(config.device))


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


def make_batches(config: RunConfig, dataset: Dataset) -> ShuffledBatches:
    """Return the batches of the run.

    Raises
    ------
    ConfigurationError
        If a batch is larger than the training set.
    """
    try:
        return ShuffledBatches(dataset.train, config.batch_size, config.seed)
    except ValueError as error:
        raise ConfigurationError(f"key 'batch_size': {error}") from error


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return mean or sum over all labels, those of the steps at which something is asked where a sequence has a label a step."""
    return nn.functional.cross_entropy(
        scores.flatten(0, -2), labels.flatten(), ignore_index=NOT_ASKED, reduction=reduction
    )


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Sequences, step: int) -> Evaluation:
    """Return accuracy and mean cross-entropy of `model`, which is left in the mode that it was in; both over all labels."""
    was_training = model.training
    model.eval()
    correct, asked, loss = 0, 0, 0.0
    for batch in sequences.batches(EVALUATION_BATCH):
        scores = model(*batch.arguments)
        correct += int((scores.argmax(dim=-1) == batch.labels).sum())
        asked += int((batch.labels != NOT_ASKED).sum())
        loss += float(cross_entropy(scores, batch.labels, reduction="sum"))
    model.train(was_training)
    return Evaluation(step=step, accuracy=correct / asked, loss=loss / asked)


def count_parameters(model: nn.Module) -> int:
    """Return the number of real numbers that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _run_to_end(
    training: Training,
    checkpoint: Path,
    progress: Callable[[int, str], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    config = training.config
    start, earlier = time.perf_counter(), training.journal.wall_seconds
    while training.step < config.steps:
        training.advance()
        training.journal.wall_seconds = earlier + time.perf_counter() - start
        stop = should_stop is not None and should_stop()
        if stop or (training.step % config.checkpoint_every == 0 and training.step < config.steps):
            training.save(checkpoint)
        if progress is not None and (training.step % STEPS_BETWEEN_PROGRESS == 0 or training.step == config.steps):
            progress(training.step, _describe(training))
        if stop:
            raise RunInterruptedError(
                f"{config.run_id} stopped after step {training.step} of {config.steps}; the same command goes on"
            )


def _describe(training: Training) -> str:
    states = "+".join(str(count) for count in training.model.n_states)
    validations = training.journal.validations
    accuracy = f", validation {validations[-1]['accuracy']:.1%}" if validations else ""
    return f"{states} states{accuracy}"


def _rule(config: RunConfig) -> hsv.Rule:
    if config.order is not None:
        return hsv.Order(config.order)
    assert config.tau is not None
    return hsv.HankelSum(discard=config.tau)


def _ready(config: RunConfig) -> hsv_torch.LossFalls | None:
    if config.ready_by is None and config.ready_to is None:
        return None
    return hsv_torch.LossFalls(by=config.ready_by, to=config.ready_to)


def _device(config: RunConfig) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"key 'device': torch cannot use {config.device!r} here ({reason})") from error
    return device
