"""A short warm-up of the learning rate after a cut."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch

from hsv import DtypeError, HsvError


class Rewarm:
    """Scales the learning rates of an optimizer's next steps by ``1/(n+1), 2/(n+1), ..., n/(n+1)``, from when it is told to.

    Inside ``optimizer.step()`` only: before and after it every group has the rate that the user or a scheduler gave it, so that schedulers
    which go on from the present rate are not disturbed. A step that ends in an exception puts them back too, and is made again with the same factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
        if isinstance(n_steps, bool) or not isinstance(n_steps, int):
            raise DtypeError(f"`rewarm_steps` must be an int (optimizer steps), got {n_steps!r}")
        if n_steps < 0:
            raise HsvError(f"`rewarm_steps` must be at least 0, got {n_steps}")
        self.n_steps = n_steps
        self.made = n_steps  # of the present warm-up; all of them: none is on
        self._rates: list[Any] | None = None
        if n_steps:
            optimizer.register_step_pre_hook(self._lower)
            optimizer.register_step_post_hook(self._put_back)
            self._put_back_on_errors(optimizer)

    def start(self) -> None:
        """Begin a warm-up with the optimizer's next step."""
        self.made = 0

    def _lower(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._put_rates(optimizer)  # of a failed step that was called past the instance's `step`
        if self.made >= self.n_steps:
            return
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * ((self.made + 1) / (self.n_steps + 1))

    def _put_back(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._rates is not None:
            self._put_rates(optimizer)
            self.made += 1

    def _put_back_on_errors(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap the optimizer's `step` as schedulers do: torch calls no hook after one that fails, and whatever changes the rates next would start from the lowered ones."""
        step: Any = optimizer.step
        is_method = hasattr(step, "__func__")  # else a scheduler has wrapped it already, and knows the optimizer
        function = step.__func__ if is_method else step
        reference = weakref.ref(optimizer)  # no cycle: an optimizer that is dropped shall free its memory at once

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            held = reference()
            assert held is not None
            try:
                return function(held, *args, **kwargs) if is_method else function(*args, **kwargs)
            except BaseException:
                self._put_rates(held)
                raise

        def of_instance(_: torch.optim.Optimizer, /, *args: Any, **kwargs: Any) -> Any:
            return guarded(*args, **kwargs)

        guarded.__func__ = of_instance  # type: ignore[attr-defined]  # what a scheduler that comes later asks a `step` for
        optimizer.step = guarded  # type: ignore[method-assign]

    def _put_rates(self, optimizer: torch.optim.Optimizer) -> None:
        if self._rates is not None:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None
