"""Methods of the cuts by name: the readings of time-invariant layers, and the choices and bases of selective ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import get_args, get_type_hints

import hsv_torch
from hsv_torch.selective import (
    Auto,
    ChannelBasis,
    LocalDistillation,
    SelectiveCriterion,
    SharedBasis,
    StateChoice,
)
from paper_repro.configuration import SELECTIVE_LAYERS, RunConfig
from paper_repro.errors import ConfigurationError

READINGS: dict[str, type[hsv_torch.Criterion]] = {"complex": hsv_torch.ComplexHankel, "real": hsv_torch.RealHankel}
SCORES: tuple[str, ...] = get_args(get_type_hints(StateChoice)["score"])
UNCOMPENSATED, DISTILLED = "_uncompensated", "_distilled"


def _choice(score: str, compensate: bool) -> Callable[[int], SelectiveCriterion]:
    return lambda seed: StateChoice(score=score, compensate=compensate, seed=seed)  # type: ignore[arg-type]


def _distilled(inner: Callable[[int], SelectiveCriterion]) -> Callable[[int], SelectiveCriterion]:
    return lambda seed: LocalDistillation(inner(seed), seed=seed)


def _methods() -> dict[str, Callable[[int], SelectiveCriterion]]:
    """Return what makes the criterion of each method from the seed of the run, which random choices and distillation use."""
    methods = {score: _choice(score, compensate=True) for score in SCORES}
    methods |= {f"{score}{UNCOMPENSATED}": _choice(score, compensate=False) for score in SCORES}
    methods["shared_basis"] = lambda seed: SharedBasis(transforms=False)
    methods["shared_basis_white"] = lambda seed: SharedBasis(gramians="white", transforms=False)
    methods["shared_basis_transforms"] = lambda seed: SharedBasis(transforms=True)
    methods["channel_basis"] = lambda seed: ChannelBasis()
    methods["channel_basis_galerkin"] = lambda seed: ChannelBasis(projection="galerkin")
    methods["channel_basis_mean_system"] = lambda seed: ChannelBasis(gramians="mean_system")
    distilled = ("greedy", "shared_basis")
    methods |= {f"{name}{DISTILLED}": _distilled(methods[name]) for name in distilled}
    methods["auto"] = lambda seed: Auto()
    return methods


METHODS = _methods()


def selective_criterion(method: str, seed: int) -> SelectiveCriterion:
    """Return the criterion of the method called `method`.

    Raises
    ------
    ConfigurationError
        If there is no such method.
    """
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(METHODS)}"
        raise ConfigurationError(f"key 'method': unknown method {method!r}; {hint}")
    return METHODS[method](seed)


def needs_data(config: RunConfig) -> bool:
    """Say whether a cut of the run's layers is planned from what they do with training sequences."""
    return config.layer in SELECTIVE_LAYERS


def make_criterion(config: RunConfig) -> hsv_torch.Criterion | None:
    """Return the criterion of the run's cuts; None: the layer's default."""
    if not needs_data(config):
        return READINGS[config.reading]()
    return None if config.method is None else selective_criterion(config.method, config.seed)
