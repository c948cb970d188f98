"""A Lightning callback that cuts the model's state-space layers while it trains.

Examples
--------
>>> import lightning, hsv, hsv_torch
>>> from hsv_torch.integrations.lightning import CompressionCallback
>>> callback = CompressionCallback(rule=hsv.HankelSum(discard=0.1))
>>> # lightning.Trainer(max_steps=10_000, callbacks=[callback]).fit(module, loader)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hsv import HsvError
from hsv_torch.checkpoint import layer_sizes, resize_layers
from hsv_torch.history import Event, History
from hsv_torch.in_training import InTrainingCompressor
from hsv_torch.schedule import Schedule
from hsv_torch.sharding import IN_A_LOOP, check_unsplit
from hsv_torch.third_party._packages import required_package

_pytorch = required_package("lightning.pytorch", "lightning")


class CompressionCallback(_pytorch.Callback):  # type: ignore[name-defined]
    """Makes an :class:`hsv_torch.InTrainingCompressor` for the module that is trained, steps it after every optimizer step, logs what it
    does, and keeps its state in Lightning's checkpoints, so that ``fit(ckpt_path=...)`` goes on with layers of the right sizes.

    The module must have one optimizer and leave the steps to Lightning. Gradient accumulation, mixed precision and DDP are Lightning's affair; a
    model that its strategy splits over processes (FSDP) is refused.

    Parameters
    ----------
    **options
        What :class:`hsv_torch.InTrainingCompressor` takes beside model and optimizer. Each may also be a function ``(trainer, module)`` that returns it once training
        begins, where it needs them (a guard that evaluates, calibration from the data module): for `schedule`, `guard`, `state` and `calibration`. Without
        `schedule` it is the paper's, over ``trainer.estimated_stepping_batches`` steps; the learning-rate schedulers are part of `state` unless you
        give one.

    Examples
    --------
    >>> from hsv_torch import Schedule
    >>> callback = CompressionCallback(rule=16, schedule=lambda trainer, module: Schedule.once(trainer.max_steps, 500))
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.compressor: InTrainingCompressor | None = None
        self._steps = 0
        self._stored: Mapping[str, Any] | None = None

    @property
    def history(self) -> History:
        """What happened so far."""
        if self.compressor is None:
            raise HsvError("the training has not begun, so there is no history yet")
        return self.compressor.history

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See that a checkpoint's sizes are taken before its weights."""
        own: Callable[[Any, Any], None] = type(pl_module).on_load_checkpoint

        def resize_first(checkpoint: Any) -> None:
            stored = checkpoint.get("callbacks", {}).get(self.state_key)
            if stored is not None:
                resize_layers(pl_module, stored["sizes"])
            own(pl_module, checkpoint)

        pl_module.on_load_checkpoint = resize_first
        self._module = pl_module

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was found."""
        del pl_module.on_load_checkpoint

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the compressor."""
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise HsvError(
                f"CompressionCallback needs one optimizer and automatic optimization, got {len(trainer.optimizers)} optimizers and "
                f"automatic_optimization={pl_module.automatic_optimization}; use hsv_torch.InTrainingCompressor in your own training_step"
            )
        check_unsplit(trainer.strategy.model, "this callback cannot save and resume", IN_A_LOOP)
        options = dict(self.options)
        for name in ("schedule", "guard", "state", "calibration"):
            if callable(options.get(name)):
                options[name] = options[name](trainer, pl_module)
        if "schedule" not in options:
            options["schedule"] = Schedule(total_steps=int(trainer.estimated_stepping_batches))
        if "state" not in options:
            options["state"] = {f"scheduler_{i}": c.scheduler for i, c in enumerate(trainer.lr_scheduler_configs)}
        self.compressor = InTrainingCompressor(trainer.strategy.model, trainer.optimizers[0], **options)
        if self._stored is not None:
            self.compressor.load_state_dict(self._stored)
            self._stored = None
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count an optimizer step, if this batch ended in one."""
        assert self.compressor is not None
        if trainer.global_step == self._steps:  # gradients are being accumulated
            return
        self._steps = trainer.global_step
        event = self.compressor.step(_loss(outputs))
        if event is not None:
            self._log(trainer, event)

    def state_dict(self) -> dict[str, Any]:
        """The compressor's state and the sizes of all layers."""
        if self.compressor is None:
            return {}
        return {"compressor": self.compressor.state_dict(), "sizes": layer_sizes(self._module)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep a state for when the training begins."""
        self._stored = state_dict.get("compressor")

    def _log(self, trainer: Any, event: Event) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(event.scalars(), step=trainer.global_step)


def load_sizes(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Give the layers of a module the sizes that a Lightning checkpoint was saved with.

    For ``load_from_checkpoint`` and ``trainer.test``, where no callback is at hand: call it in the module's own ``on_load_checkpoint(checkpoint)``.

    Raises
    ------
    hsv.HsvError
        The checkpoint was saved without a :class:`CompressionCallback`.
    """
    for stored in checkpoint.get("callbacks", {}).values():
        if isinstance(stored, Mapping) and {"compressor", "sizes"} <= set(stored):
            resize_layers(module, stored["sizes"])
            return
    raise HsvError("the checkpoint was saved without a CompressionCallback, so it does not say the sizes of its layers")


def _loss(outputs: Any) -> Tensor | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if isinstance(loss, Tensor) else None
