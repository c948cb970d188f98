"""What a compression did: plain records that can be saved, and that never hide a cut that was undone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from hsv_torch.adapters import Replaced

Outcome: TypeAlias = Literal["cut", "undone", "refused", "unchanged"]


@dataclass(frozen=True)
class Drift:
    """How far a layer's Hankel singular values moved since the attempt before, and how far they could have.

    `largest_change` is the largest ``|sigma_i(G1) - sigma_i(G2)|``, `bound` the Hankel norm of ``G1 - G2``, which no
    change exceeds (Weyl). ``G1`` is the system as the attempt before left it, so the cut itself is not part of it.
    """

    since_step: int
    largest_change: float
    bound: float


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What one attempt found in one layer, and what it did.

    Attributes
    ----------
    layer : str
        Dotted name in the model.
    outcome : str
        ``"cut"``; ``"undone"``: cut and put back by the guard; ``"refused"``: could not be cut, see `reason`;
        ``"unchanged"``: the rule chose too many states for a cut to be worth it.
    n_states_before, n_states_after : int
        States before the attempt, and after it and after the guard's decision. They differ only for ``"cut"``.
    n_states_chosen : int or None
        What the rule chose; None where it could not choose.
    hankel_singular_values : ndarray or None
        Those of the layer before the attempt, descending.
    order : int or None
        How many of these values the cut that was planned keeps; more than `n_states_chosen` where a conjugate pair takes
        one state of the layer.
    error_bound : float or None
        Bound of the H-infinity error of the cut that was planned.
    eigenvector_condition : float or None
        Condition number of the eigenvectors of the truncated system.
    reason : str or None
        Why nothing was cut.
    notes : tuple of str
        What the adapter found remarkable.
    drift : Drift or None
        None at the first attempt, and where it could not be computed.
    margin : float or None
        How far the rule was from another choice: the distance between its limit and the nearest number that it compares with it, as a share of the sum
        (``HankelSum``, ``HankelEnergy``, ``PrefixShare``), of the largest value (``Threshold``) or of the bound (``ErrorBound``). Runs whose rounding
        errors are smaller than this choose alike. None for rules without a limit, and for budgets.
    """

    layer: str
    outcome: Outcome
    n_states_before: int
    n_states_after: int
    n_states_chosen: int | None
    hankel_singular_values: np.ndarray | None
    order: int | None = None
    error_bound: float | None = None
    eigenvector_condition: float | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    drift: Drift | None = None
    margin: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists."""
        values = self.hankel_singular_values
        drift = self.drift
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "hankel_singular_values": None if values is None else values.tolist(),
            "notes": list(self.notes),
            "drift": None if drift is None else [drift.since_step, drift.largest_change, drift.bound],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LayerRecord:
        """The inverse of :meth:`to_dict`."""
        values, drift = state["hankel_singular_values"], state["drift"]
        changed = {
            "hankel_singular_values": None if values is None else np.asarray(values, dtype=np.float64),
            "notes": tuple(state["notes"]),
            "drift": None if drift is None else Drift(*drift),
        }
        return cls(**{**state, **changed})


@dataclass(frozen=True, eq=False)
class Event:
    """One attempt to cut, or the guard's later decision on one.

    Attributes
    ----------
    attempt : int
        From 1.
    step : int
        Optimizer steps made before the attempt.
    layers : tuple of LayerRecord
        One for each layer; none for an attempt that was put off.
    seconds : float
        Spent measuring and cutting, without the guard's evaluations.
    evaluation_seconds : float
        Spent in the guard's `evaluate`.
    metric_before, metric_after : float or None
        What `evaluate` returned before and after the cut.
    undone : bool
        The guard put the large model back.
    pending : bool
        The guard has yet to decide (``after_steps > 0``).
    put_off : bool
        The attempt was due, but the loss had not fallen yet (:class:`hsv_torch.LossFalls`); it is another event once it is made.
    reason : str or None
        Why it was undone or put off.
    steps_timed, step_seconds : int, float
        Training steps since the attempt before, and the wall-clock seconds that they took, with all that the training
        loop did between them.
    memory_before, memory_after : int or None
        Bytes of the model's parameters and buffers and of the optimizer's state before and after the attempt, as this process holds
        them; after a cut that was undone the same as before.
    peak_memory : int or None
        Most bytes that PyTorch has had allocated on the model's CUDA device, since the program began or ``torch.cuda.reset_peak_memory_stats()`` was
        called; None without such a device.
    replaced : dict
        ``{"layer.parameter": (old, new)}`` of a cut that stands, or of one that the guard undid after some steps: those of the small model, and
        those that are back. Only what :meth:`InTrainingCompressor.step` returns has it; the history keeps no tensors.
    """

    attempt: int
    step: int
    layers: tuple[LayerRecord, ...]
    seconds: float
    evaluation_seconds: float = 0.0
    metric_before: float | None = None
    metric_after: float | None = None
    undone: bool = False
    pending: bool = False
    put_off: bool = False
    reason: str | None = None
    steps_timed: int = 0
    step_seconds: float = 0.0
    memory_before: int | None = None
    memory_after: int | None = None
    peak_memory: int | None = None
    replaced: Replaced = field(default_factory=dict, repr=False)

    @property
    def changed(self) -> bool:
        """Whether some layer has fewer states than before."""
        return any(record.outcome == "cut" for record in self.layers)

    def scalars(self) -> dict[str, float]:
        """What a logger shows over the steps: of each layer states, Hankel sum, error bound, margin and drift; the guard's metric; seconds and memory.

        For TensorBoard, ``for name, value in event.scalars().items(): writer.add_scalar(name, value, event.step)``; for Weights & Biases,
        ``wandb.log(event.scalars(), step=event.step)``.
        """
        numbers: dict[str, float | None] = {
            "compression/seconds": self.seconds,
            "compression/undone": float(self.undone),
            "compression/metric_before": self.metric_before,
            "compression/metric_after": self.metric_after,
            "compression/memory": self.memory_after,
            "compression/peak_memory": self.peak_memory,
        }
        for record in self.layers:
            sigma, drift = record.hankel_singular_values, record.drift
            numbers |= {
                f"states/{record.layer}": record.n_states_after,
                f"hankel_sum/{record.layer}": None if sigma is None else float(sigma.sum()),
                f"error_bound/{record.layer}": record.error_bound,
                f"margin/{record.layer}": record.margin,
                f"drift/{record.layer}": None if drift is None else drift.largest_change,
                f"drift_bound/{record.layer}": None if drift is None else drift.bound,
            }
        return {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists; without the parameters."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "replaced"}
        return {**plain, "layers": [record.to_dict() for record in self.layers]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Event:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**state, "layers": tuple(LayerRecord.from_dict(record) for record in state["layers"])})


@dataclass(frozen=True, eq=False)
class History:
    """The whole story of a compressor; pictures and tables of it are in :mod:`hsv_torch.report`.

    Attributes
    ----------
    initial_sizes : dict
        States of each layer when the compressor was made.
    events : tuple of Event
        In the order in which they happened; a cut that was undone is there and says so.
    total_steps, steps : int
        Optimizer steps of the schedule, and steps made so far.
    steps_timed, step_seconds : int, float
        As in :class:`Event`, since the last attempt.
    """

    initial_sizes: Mapping[str, int]
    events: tuple[Event, ...]
    total_steps: int
    steps: int
    steps_timed: int = 0
    step_seconds: float = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        """The dotted names of the layers."""
        return tuple(self.initial_sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """States of each layer now."""
        return {layer: self.sizes_over_steps(layer)[1][-1] for layer in self.layers}

    @property
    def reduction_seconds(self) -> float:
        """Seconds spent measuring and cutting, in all."""
        return sum(event.seconds for event in self.events)

    @property
    def evaluation_seconds(self) -> float:
        """Seconds spent in the guard's evaluations, in all."""
        return sum(event.evaluation_seconds for event in self.events)

    @property
    def seconds_per_step(self) -> tuple[float | None, ...]:
        """Mean wall-clock seconds a training step took before the first attempt, between attempts, after the last."""
        stretches: Sequence[Event | History] = (*self.events, self)
        return tuple(part.step_seconds / part.steps_timed if part.steps_timed else None for part in stretches)

    def records(self, layer: str) -> tuple[tuple[Event, LayerRecord], ...]:
        """What each attempt found in `layer`."""
        return tuple((event, record) for event in self.events for record in event.layers if record.layer == layer)

    def sizes_over_steps(self, layer: str) -> tuple[list[int], list[int]]:
        """Steps at which the number of states of `layer` changed for good, and the number from there on."""
        steps, sizes = [0], [self.initial_sizes[layer]]
        for event, record in self.records(layer):
            if record.outcome == "cut":
                steps.append(event.step)
                sizes.append(record.n_states_after)
        return steps, sizes

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists: fit for JSON."""
        return {
            "initial_sizes": dict(self.initial_sizes),
            "events": [event.to_dict() for event in self.events],
            "total_steps": self.total_steps,
            "steps": self.steps,
            "steps_timed": self.steps_timed,
            "step_seconds": self.step_seconds,
        }

    def to_json(self) -> str:
        """The same as one JSON text; numbers that JSON does not have (a bound that is infinite, a metric that is NaN) become null."""
        return json_text(self.to_dict())

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> History:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**state, "events": tuple(Event.from_dict(event) for event in state["events"])})


@dataclass(frozen=True, eq=False)
class CompressionReport:
    """What :func:`hsv_torch.compress_` did.

    Attributes
    ----------
    layers : tuple of LayerRecord
        One for each layer that was cut.
    seconds : float
        Spent measuring and cutting.
    replaced : dict
        ``{"layer.parameter": (old, new)}``.
    """

    layers: tuple[LayerRecord, ...]
    seconds: float
    replaced: Replaced = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        lines = [
            f"{record.layer}: {record.n_states_before} -> {record.n_states_after} states"
            + (f", error at most {record.error_bound:.3g}" if record.error_bound is not None else "")
            for record in self.layers
        ]
        return "\n".join((*lines, f"{self.seconds:.3f} s"))


def json_text(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return `content` as one JSON object, with null for numbers that JSON does not have."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(content), indent=indent, allow_nan=False)
