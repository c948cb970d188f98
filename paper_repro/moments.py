"""What a cut does with the optimizer's moments: carried into the new coordinates, with few steps' weight or with all, sliced, or forgotten; and the loss after it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import hsv
import hsv_torch
from paper_repro.batches import ShuffledBatches
from paper_repro.results import read_measurements, write_measurements
from paper_repro.sequences import Dataset
from paper_repro.statistics import paired_difference, summarise
from paper_repro.tasks import load_dataset

Way = Literal["carried", "with all steps", "sliced", "reset"]
WAYS: tuple[Way, ...] = get_args(Way)
MARKS = ("<!-- table: written by moments -->", "<!-- end of the table -->")


@dataclass(frozen=True)
class Plan:
    """One model a seed and optimizer is trained up to the cut; copies of it are cut and trained on with the same batches, a copy a size and way."""

    task: str = "digits"
    optimizers: tuple[str, ...] = ("AdamW", "SGD")
    rates: tuple[float, ...] = (4e-3, 2e-2)
    d_model: int = 8
    n_states: int = 64
    sizes: tuple[int, ...] = (48, 32, 16, 8)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    batch_size: int = 50
    steps_before: int = 600
    steps_after: int = 200
    first_steps: int = 20
    batches_of_ratio: int = 28  # about an epoch


QUICK = Plan(n_states=16, sizes=(4,), seeds=(0, 1), steps_before=4, steps_after=3, first_steps=2, batches_of_ratio=2)


def make_optimizer(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with momentum 0.9."""
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def cut(model: nn.Module, optimizer: torch.optim.Optimizer, size: int, way: Way) -> None:
    """Cut every layer to `size` states.

    "with all steps" gives carried moments of Adam the count of steps, and so the weight, that the old ones had; "sliced" keeps the leading entries of each moment, though the new
    states are none of the old ones.
    """
    before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    moments: Literal["carry", "reset"] = "carry" if way in ("carried", "with all steps") else "reset"
    report = hsv_torch.compress_(model, hsv.Order(size), optimizer=optimizer, moments=moments)
    for old, new in report.replaced.values():
        if old in before and new is not None:
            if way == "sliced":
                optimizer.state[new] = {key: _leading(value, new) for key, value in before[old].items()}
            elif way == "with all steps" and "step" in before[old]:
                _give_steps(optimizer.state[new], before[old]["step"], optimizer.defaults["betas"])


def _give_steps(state: dict[str, Any], step: torch.Tensor, betas: tuple[float, float]) -> None:
    """Change the count of steps, and the moments so that their values after the bias correction stay."""
    for key, beta in zip(("exp_avg", "exp_avg_sq"), betas, strict=True):
        state[key] = state[key] * (1 - beta ** float(step)) / (1 - beta ** float(state["step"]))
    state["step"] = step.clone()


def second_moment_ratio(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: ShuffledBatches, count: int
) -> float | None:
    """Median of the second moments in the optimizer over the mean squared gradients of `count` batches, over the entries that depend on the states; None without such moments."""
    names = {name: p for name, p in model.named_parameters() if "exp_avg_sq" in optimizer.state.get(p, {})}
    if not names:
        return None
    squares: dict[str, torch.Tensor] = {}
    trial = copy.deepcopy(model)
    for _ in range(count):
        batch = batches.next()
        trial.zero_grad()
        nn.functional.cross_entropy(trial(*batch.arguments), batch.labels).backward()
        for name, p in trial.named_parameters():
            assert p.grad is not None
            squares[name] = squares.get(name, 0.0) + p.grad.square() / count
    ratios = []
    for name, p in names.items():
        state = optimizer.state[p]
        if ".layer." in name and not name.endswith(".D"):
            bias = 1 - optimizer.defaults["betas"][1] ** float(state["step"])
            ratios.append((state["exp_avg_sq"] / bias / squares[name].clamp_min(1e-30)).flatten())
    return float(torch.cat(ratios).median())


def _leading(value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return value[tuple(slice(length) for length in parameter.shape)].clone()


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield, for each optimizer, seed, size and way, the mean training loss over the first steps and over all steps after the cut."""
    data = load_dataset(plan.task)
    for name, rate in zip(plan.optimizers, plan.rates, strict=True):
        for seed in plan.seeds:
            torch.manual_seed(seed)
            model = hsv_torch.SequenceModel(_model_config(plan, data))
            optimizer = make_optimizer(name, model, rate)
            batches = ShuffledBatches(data.train, plan.batch_size, seed)
            before = _train(model, optimizer, batches, plan.steps_before)
            taken = batches.state_dict()
            for size in plan.sizes:
                for way in WAYS:
                    model_of_way, optimizer_of_way = copy.deepcopy((model, optimizer))
                    cut(model_of_way, optimizer_of_way, size, way)
                    ratio = None
                    if way == "carried":
                        batches.load_state_dict(taken)
                        ratio = second_moment_ratio(model_of_way, optimizer_of_way, batches, plan.batches_of_ratio)
                    batches.load_state_dict(taken)
                    losses = _train(model_of_way, optimizer_of_way, batches, plan.steps_after)
                    yield {
                        "optimizer": name,
                        "rate": rate,
                        "seed": seed,
                        "states": size,
                        "way": way,
                        "loss_before": _mean(before[-plan.first_steps :]),
                        "loss_first": _mean(losses[: plan.first_steps]),
                        "loss": _mean(losses),
                        "second_moment_ratio": ratio,
                    }


def _model_config(plan: Plan, data: Dataset) -> hsv_torch.SequenceModelConfig:
    return hsv_torch.SequenceModelConfig(
        layer="lru",
        d_model=plan.d_model,
        n_states=plan.n_states,
        head="classification",
        n_inputs=data.shape.n_inputs,
        n_outputs=data.shape.n_outputs,
        norm="batch",
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: ShuffledBatches, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        batch = batches.next()
        loss = nn.functional.cross_entropy(model(*batch.arguments), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _mean(values: Sequence[float]) -> float:
    return summarise(values).mean


def write_results(results: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any], path: Path) -> None:
    """Write the measurements with where they come from as JSON, a line a measurement."""
    write_measurements(results, "measurements", provenance, path)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of the file; :class:`ResultError` if it is no such file."""
    return read_measurements(path, "measurements", "measurements of moments")


def moments_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row for each optimizer and size; losses of the ways, paired differences to the carried moments, and how large the carried second moments are."""
    others = WAYS[1:]
    head = [
        "optimizer, states left",
        "loss after the cut",
        *WAYS,
        *(f"{way} - carried" for way in others),
        "carried second moment / new one",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for optimizer, states in dict.fromkeys((r["optimizer"], r["states"]) for r in results):
        rows = [r for r in results if (r["optimizer"], r["states"]) == (optimizer, states)]
        for key, name in (("loss_first", "first steps"), ("loss", "all steps")):
            values = {way: {r["seed"]: r[key] for r in rows if r["way"] == way} for way in WAYS}
            means = [f"{_mean(list(values[way].values())):.4f}" for way in WAYS]
            differences = [_difference(values[way], values["carried"]) for way in others]
            ratios = [r["second_moment_ratio"] for r in rows if r["second_moment_ratio"] is not None]
            ratio = f"{statistics.median(ratios):.2g}" if ratios and key == "loss_first" else ""
            lines.append(f"| {' | '.join((f'{optimizer}, {states}', name, *means, *differences, ratio))} |")
    return "\n".join(lines)


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    found = paired_difference(first, second)
    if found.interval is None:
        return f"{found.mean:+.4f}"
    text = f"{found.mean:+.4f} ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})"
    return f"**{text}**" if found.is_clear else text
