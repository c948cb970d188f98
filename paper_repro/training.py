"""One training run: steps, cuts, validations, checkpoints, and the result at its end."""

from __future__ import annotations

import contextlib
import datetime
import math
import shlex
import sys
import tempfile
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
from paper_repro.configuration import ARMS_WITH_A_RULE, RunConfig
from paper_repro.cuts import cut_before_training, make_calibration, make_compressor
from paper_repro.distillation import distillation_loss
from paper_repro.errors import ConfigurationError, ReproError, ResultError
from paper_repro.evaluation import count_parameters, cross_entropy, evaluate
from paper_repro.finished_runs import Start, find_usable_result, load_start, save_best_model
from paper_repro.journal import Journal
from paper_repro.learning_rate import make_scheduler
from paper_repro.methods import make_criterion
from paper_repro.model import Model, make_model
from paper_repro.regularisation import PENALTIES
from paper_repro.results import Evaluation, Provenance, RunResult, Spectrum, States, Timing, append_result
from paper_repro.sequences import Batch, Dataset
from paper_repro.tasks import load_dataset

CHECKPOINT_FILE = "checkpoint.safetensors"
STEPS_BETWEEN_PROGRESS = 25


class RunInterruptedError(ReproError):
    """A run was asked to stop; its checkpoint is written and the same command goes on from there."""


class DivergedError(ReproError):
    """The loss of a run is no longer a finite number."""


class Training:
    """A run in progress: everything that a checkpoint holds.

    Parameters
    ----------
    config : RunConfig
    dataset : Dataset
        On the device of the run.
    start : Start, optional
        What the arms post_training and distilled start from.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, start: Start | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.dataset = dataset
        self._clock = time.process_time if _counts_processor_time(config) else time.perf_counter
        self.step = 0
        self.model = build_model(config, dataset)
        self.batches = make_batches(config, dataset)
        groups = hsv_torch.parameter_groups(
            self.model, lr=config.learning_rate, ssm_lr_factor=config.ssm_lr_factor, weight_decay=config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.scheduler = make_scheduler(self.optimizer, config)
        self.compressor = make_compressor(
            config,
            self.model,
            self.optimizer,
            dataset=dataset,
            validation_accuracy=self._validation_accuracy,
            state={"scheduler": self.scheduler, "loader": self.batches},
        )
        self.start = start
        self.teacher = start.model.to(torch.device(config.device)) if start and config.arm == "distilled" else None
        self.best: dict[str, Any] | None = None
        self.journal = Journal(started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def advance(self) -> None:
        """Take one optimizer step, cut if it is time, and validate if it is time."""
        start = self._clock()
        batch = self.batches.next()
        self.model.train()
        loss = self._loss(batch)
        if not math.isfinite(value := loss.item()):
            raise DivergedError(
                f"{self.config.run_id}: the loss is {value} at step {self.step + 1}; a smaller learning_rate than "
                f"{self.config.learning_rate:g} may help"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._is_penalised():
            self._penalise()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self._wait_for_device()
        self.journal.step_seconds.append(self._clock() - start)
        self.step += 1
        self._compress(value)
        if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
            self._validate()

    def _loss(self, batch: Batch) -> torch.Tensor:
        scores = self.model(*batch.arguments)
        if self.teacher is None:
            return cross_entropy(scores, batch.labels)
        self._wait_for_device()
        start = self._clock()
        with torch.no_grad():
            wanted = self.teacher(*batch.arguments)
        self._wait_for_device()
        self.journal.teacher_seconds += self._clock() - start
        return distillation_loss(
            scores,
            wanted,
            batch.labels,
            temperature=self.config.temperature,
            weight=self.config.distillation_weight,
        )

    def _is_penalised(self) -> bool:
        config = self.config
        return (
            config.arm == "regularised"
            and self.step < config.last_step_of_window
            and (self.step + 1) % config.penalty_every == 0
        )

    def _penalise(self) -> None:
        """Add the gradient of the penalty to the gradients, apart from that of the loss so that its time is known."""
        assert self.config.penalty_weight is not None
        self._wait_for_device()
        start = self._clock()
        weight = self.config.penalty_weight * self.config.penalty_every
        (weight * PENALTIES[self.config.penalty_by](self.model)).backward()
        self._wait_for_device()
        self.journal.penalty_seconds += self._clock() - start

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
            "journal": self.journal.to_dict(),
        }
        hsv_torch.save_checkpoint(self.model, path, optimizer=self.optimizer, extra=extra)

    @classmethod
    def restore(cls, config: RunConfig, dataset: Dataset, path: Path, start: Start | None = None) -> Training:
        """Return the run as it was when it was saved to `path`."""
        training = cls(config, dataset, start)
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
        """Record sizes and spectra before the first step; in the arm post_training, put the model in that is cut, and cut it."""
        if self.config.arm != "post_training":
            self._record_sizes()
            self._record_spectra()
            return
        assert self.start is not None
        resize_layers(self.model, layer_sizes(self.start.model), self.optimizer)
        self.model.load_state_dict(self.start.model.state_dict())
        self._record_sizes()
        self._record_spectra()
        start = self._clock()
        history = cut_before_training(self.config, self.model, self.optimizer, self.dataset)
        self._wait_for_device()
        self.journal.reduction_seconds += self._clock() - start
        self.journal.first_cut = history.to_dict()
        self._record_sizes()
        self._validate()

    def result(self, *, evaluate_test: bool) -> RunResult:
        """Return what the finished run found; `evaluate_test` decides whether the test set is looked at, once."""
        assert self.best is not None
        assert self.step == self.config.steps
        journal = self.journal
        test = evaluate(self.best_model(), self.dataset.test, self.step) if evaluate_test else None
        sizes = [States(**entry) for entry in journal.states]
        before, after = journal.median_step_seconds()
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
                training=journal.training_seconds,
                reductions=journal.reduction_seconds,
                step_before=before,
                step_after=after,
                penalty=journal.penalty_seconds,
                teacher=journal.teacher_seconds,
                undone=journal.undone_seconds,
                clock="processor" if _counts_processor_time(self.config) else "wall",
                earlier=0.0 if self.start is None else self.start.result.timing.with_earlier_runs,
            ),
            states_before=sizes[0].states,
            states_after=sizes[-1].states,
            n_parameters_before=parameters_before,
            n_parameters_after=count_parameters(self.model),
            best=Evaluation(**self.best["evaluation"]),
            test_accuracy=None if test is None else test.accuracy,
            validations=tuple(Evaluation(**entry) for entry in journal.validations),
            states=tuple(sizes),
            history=journal.first_cut if self.compressor is None else self.compressor.history.to_dict(),
            spectra=tuple(Spectrum(**entry) for entry in journal.spectra),
        )

    def best_model(self) -> Model:
        """Return the model as it was at its best validation after the window of the cuts."""
        assert self.best is not None
        model = build_model(self.config, self.dataset)
        resize_layers(model, self.best["sizes"])
        model.load_state_dict(self.best["model"])
        return model.eval()

    def _compress(self, loss: float) -> None:
        if self.compressor is None:
            return
        start = self._clock()
        event = self.compressor.step(loss)
        self._wait_for_device()
        self.journal.reduction_seconds += self._clock() - start
        if event is None:
            return
        if self.compressor.steps < self.step:  # a cut was undone, and with it the steps since
            self.step = self.compressor.steps
            self.journal.take_back(self.step)
            self.best = None
        if self.model.n_states != tuple(self.journal.states[-1]["states"]):
            self._record_sizes()
            self.best = None  # a cut that was put off may come after the window: what was best before it is larger

    def _validation_accuracy(self) -> float:
        return evaluate(self.model, self.dataset.validation, self.step).accuracy

    def _validate(self) -> None:
        evaluation = evaluate(self.model, self.dataset.validation, self.step)
        self.journal.validations.append(evaluation.model_dump())
        self._record_spectra()
        if self.step < self.config.last_step_of_window:
            return  # what is best now may be larger than what the run ends with, or be undone
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

    def _record_sizes(self) -> None:
        self.journal.states.append({"step": self.step, "states": self.model.n_states})

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
        Gets ``results.jsonl``, and ``<run_id>/`` with the checkpoint while the run goes and the best model at its end. A run that starts from another one's
        best model finds it there.
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
        If the configuration does not fit the machine or the data, what the run starts from is not there, or `directory` cannot be written.
    """
    finished = find_usable_result(directory, config, evaluate_test=evaluate_test)
    if finished is not None:
        return finished
    device = _device(config)
    start = load_start(config, directory)
    check_writable(directory)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data_dir = Path(config.data_dir) if config.data_dir is not None else None
    dataset = (dataset or load_dataset(config.task, data_dir, config.task_options)).to(device)
    run_directory = directory / config.run_id
    checkpoint = run_directory / CHECKPOINT_FILE
    warm_up_seconds = warm_up(config, dataset)
    if checkpoint.is_file():
        training = Training.restore(config, dataset, checkpoint, start)
    else:
        training = Training(config, dataset, start)
        training.record_start()
    training.begin_session(warm_up_seconds)
    _run_to_end(training, checkpoint, progress, should_stop)
    result = training.result(evaluate_test=evaluate_test)
    save_best_model(training.best_model(), config, run_directory, extra=result.best.model_dump())
    append_result(directory, result)
    checkpoint.unlink(missing_ok=True)
    return result


def check_writable(directory: Path) -> None:
    """Make `directory` and write a file into it that is gone again, so that a wrong folder is not found out after hours of training.

    Raises
    ------
    ConfigurationError
        If it cannot be made, or holds no file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"0")
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror or str(error)
        raise ConfigurationError(
            f"--out must be a folder that can be written, but {directory} cannot be ({reason}); name another one, or mend this one"
        ) from error


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
    if config.arm == "regularised":
        PENALTIES[config.penalty_by](model).backward()
    if config.arm == "pragmatic" or config.arm in ARMS_WITH_A_RULE:
        with contextlib.suppress(hsv_torch.CutRefusedError):  # whether a throw-away model can be cut does not matter
            hsv_torch.compress_(
                model,
                hsv.Order(1),
                criterion=make_criterion(config),
                calibration=make_calibration(config, dataset),
                optimizer=optimizer,
            )
    return time.perf_counter() - start


def build_model(config: RunConfig, dataset: Dataset, states: tuple[int, ...] | None = None) -> Model:
    """Return a new model for `dataset`, with other numbers of states than in `config` where `states` is given."""
    sized = config if states is None else config.with_values(n_states=states)
    return make_model(sized, dataset.shape).to(torch.device(config.device))


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


def _counts_processor_time(config: RunConfig) -> bool:
    """Say whether steps are timed by what the processor did for this process: with one thread that is the time on an idle machine."""
    return config.threads == 1 and torch.device(config.device).type == "cpu"


def _describe(training: Training) -> str:
    states = "+".join(str(count) for count in training.model.n_states)
    validations = training.journal.validations
    accuracy = f", validation {validations[-1]['accuracy']:.1%}" if validations else ""
    return f"{states} states{accuracy}"


def _device(config: RunConfig) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"key 'device': torch cannot use {config.device!r} here ({reason})") from error
    return device
