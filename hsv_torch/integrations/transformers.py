"""A callback for the Trainer of Hugging Face transformers that cuts the model's state-space layers while it trains.

Examples
--------
>>> import transformers, hsv, hsv_torch
>>> from hsv_torch.integrations.transformers import CompressionCallback
>>> callback = CompressionCallback(rule=hsv.Order(8), calibration=[{"input_ids": ...}])
>>> # transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hsv import HsvError
from hsv_torch.checkpoint import layer_sizes, load_checkpoint, resize_layers, save_checkpoint
from hsv_torch.history import History
from hsv_torch.in_training import InTrainingCompressor
from hsv_torch.schedule import Schedule
from hsv_torch.sharding import IN_A_LOOP, check_unsplit
from hsv_torch.third_party._packages import required_package

_callbacks = required_package("transformers.trainer_callback", "transformers")

_FILE = "compression.safetensors"


class CompressionCallback(_callbacks.TrainerCallback):  # type: ignore[name-defined]
    """Makes an :class:`hsv_torch.InTrainingCompressor` when training begins, steps it after every optimizer step, and saves its state with each checkpoint.

    To resume, let :meth:`resume` prepare the model first: ``callback.resume(model, folder)``, then ``trainer.train(resume_from_checkpoint=folder)``.

    Parameters
    ----------
    trainer
        The ``Trainer``; needed where several processes train, for it has the wrapped model. Set ``callback.trainer`` after making both.
    **options
        What :class:`hsv_torch.InTrainingCompressor` takes beside model and optimizer. Without `schedule` it is the paper's, over the
        steps of the training; the learning-rate scheduler is part of `state` unless you give one.

    Raises
    ------
    hsv.HsvError
        When training begins: several processes and no `trainer`, or a model that is split over processes (FSDP).
    """

    def __init__(self, *, trainer: Any = None, **options: Any) -> None:
        self.trainer = trainer
        self.options = options
        self.compressor: InTrainingCompressor | None = None
        self._stored: Mapping[str, Any] | None = None

    @property
    def history(self) -> History:
        """What happened so far."""
        if self.compressor is None:
            raise HsvError("the training has not begun, so there is no history yet")
        return self.compressor.history

    def resume(self, model: nn.Module, folder: str | os.PathLike[str]) -> None:
        """Give the model's layers the sizes of a checkpoint folder of the Trainer, and keep the compressor's state for when training begins.

        Raises
        ------
        FileNotFoundError
            The folder was not written by a training with this callback.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: the checkpoint was saved without a CompressionCallback")
        stored = load_checkpoint(path).extra
        resize_layers(model, stored["sizes"])
        self._stored = stored["compressor"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the compressor."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if args.world_size > 1:
            if self.trainer is None:
                raise HsvError(
                    f"{args.world_size} processes train this model: set `callback.trainer = trainer` before trainer.train(), so that all of them "
                    "cut alike"
                )
            model = self.trainer.model_wrapped
        check_unsplit(model, "this callback cannot save and resume", IN_A_LOOP)
        options = dict(self.options)
        if "schedule" not in options:
            options["schedule"] = Schedule(total_steps=int(state.max_steps))
        if "state" not in options and kwargs.get("lr_scheduler") is not None:
            options["state"] = {"scheduler": kwargs["lr_scheduler"]}
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self.compressor = InTrainingCompressor(model, inner, **options)
        if self._stored is not None:
            self.compressor.load_state_dict(self._stored)
            self._stored = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step."""
        assert self.compressor is not None
        event = self.compressor.step()
        if event is not None and not event.put_off:
            state.log_history.append({"step": state.global_step, **event.scalars()})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the compressor's state beside the Trainer's checkpoint."""
        assert self.compressor is not None
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        extra = {"sizes": layer_sizes(self.compressor.model), "compressor": self.compressor.state_dict()}
        save_checkpoint(nn.Module(), folder / _FILE, extra=extra)
