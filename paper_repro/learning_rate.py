"""Learning rate over the steps, as a factor of each parameter group's own rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from paper_repro.configuration import RunConfig


def warmup_cosine_factor(step: int, *, steps: int, warmup: float, floor: float) -> float:
    """Return the factor at optimizer step `step` (0 is the first).

    It rises linearly from `floor` to 1 over the first ``warmup * steps`` steps and falls along half a cosine to
    `floor` at step ``steps``.
    """
    rising = round(warmup * steps)
    if step < rising:
        return floor + (1 - floor) * step / rising
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def make_scheduler(optimizer: Optimizer, config: RunConfig) -> LambdaLR:
    """Return the scheduler that `config` asks for; step it once after each optimizer step."""
    factor: Callable[[int], float]
    if config.lr_schedule == "constant":

        def factor(step: int) -> float:
            return 1.0

    else:
        floor = min(1.0, config.floor_rate / config.learning_rate)

        def factor(step: int) -> float:
            return warmup_cosine_factor(step, steps=config.steps, warmup=config.warmup, floor=floor)

    return LambdaLR(optimizer, factor)
