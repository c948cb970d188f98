"""Methods of the cuts by name: readings and scores of time-invariant layers, choices and bases of selective ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import get_args, get_type_hints

from torch import Tensor

import hsv
import hsv_torch
from hsv_torch.selective import (
    Auto,
    ChannelBasis,
    LocalDistillation,
    SelectiveCriterion,
    SharedBasis,
    StateChoice,
)
from paper_repro.configuration import SELECTIVE_LAYERS, Reading, RunConfig
from paper_repro.errors import ConfigurationError


def h2_norms(system: hsv.DiagonalStateSpace) -> Tensor:
    """Return the H2 norm that each state has alone."""
    norms: Tensor = hsv.mode_energies(system).sqrt()
    return norms


def hinf_norms(system: hsv.DiagonalStateSpace) -> Tensor:
    """Return the H-infinity norm that each state has alone."""
    norms: Tensor = hsv.mode_gains(system)
    return norms


READINGS: dict[Reading, Callable[[int], hsv_torch.DiagonalCriterion]] = {
    "complex": lambda seed: hsv_torch.ComplexHankel(),
    "real": lambda seed: hsv_torch.RealHankel(),
    "h2_optimal": lambda seed: hsv_torch.H2Optimal(),
    "last": lambda seed: hsv_torch.ModeChoice("last"),
    "aire": lambda seed: hsv_torch.ModeChoice("aire"),
    "h2": lambda seed: hsv_torch.ModeChoice(h2_norms),
    "hinf": lambda seed: hsv_torch.ModeChoice(hinf_norms),
    "hankel": lambda seed: hsv_torch.ModeChoice("hankel"),
    "magnitude": lambda seed: hsv_torch.ModeChoice("magnitude"),
    "random_modes": lambda seed: hsv_torch.ModeChoice("random", seed=seed),
    "smallest": lambda seed: hsv_torch.BalancedChoice("smallest"),
    "random": lambda seed: hsv_torch.BalancedChoice("random", seed=seed),
}
"""What makes the criterion of each reading from the seed of the run.

"complex" and "real" truncate a balanced system: the complex one, as the paper does, or the one with real outputs, conjugate-aware. "h2_optimal" improves on them in the H2 norm of the real outputs. "last" to "random_modes" keep the
states that have the highest scores as they are; LAST's and "hinf" rank alike, as do AIRE's and "h2", which differ where a share of the sum of the scores decides.
"smallest" (it drops the top) and "random" keep other balanced states than the leading ones.
"""
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
        criterion = READINGS[config.reading](config.seed)
        return criterion if config.horizon is None else hsv_torch.Discounted(config.horizon, criterion)
    return None if config.method is None else selective_criterion(config.method, config.seed)
