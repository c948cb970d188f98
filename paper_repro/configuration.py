"""What a run does: one flat, typed, closed set of keys, read from a preset and `key=value` overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pydantic
from pydantic import Field, model_validator

from paper_repro.errors import ConfigurationError
from paper_repro.tasks import make_task

PRESETS = resources.files("paper_repro") / "presets"
Arm = Literal["full", "in_training", "from_scratch", "pragmatic", "post_training", "distilled", "regularised"]
ARMS: tuple[Arm, ...] = get_args(Arm)
ARMS_WITH_A_START: tuple[Arm, ...] = ("post_training", "distilled")
ARMS_WITH_A_RULE: tuple[Arm, ...] = ("in_training", "post_training", "regularised")
Reading = Literal[
    "complex",
    "real",
    "h2_optimal",
    "last",
    "aire",
    "h2",
    "hinf",
    "hankel",
    "magnitude",
    "random_modes",
    "smallest",
    "random",
]

# These say where a run reads, how often it saves and why it has its size, but change nothing that it computes.
KEYS_OUTSIDE_THE_IDENTITY = frozenset({"data_dir", "checkpoint_every", "sizes_of"})
KEYS_OF_CUTS = frozenset(
    {
        "tau",
        "order",
        "budget",
        "gradual",
        "attempts",
        "reading",
        "horizon",
        "method",
        "calibration_sequences",
        "ready_by",
        "ready_to",
        "moments",
        "max_drop",
    }
)
RULES = ("tau", "order", "budget")
"""Keys that choose the sizes."""
KEYS_OF_ONE_CUT = frozenset({*RULES, "reading", "horizon", "method", "calibration_sequences"})
# Keys that some arms do without, and which arms these are: an arm ignores those of the others.
KEYS_OF_ARMS: dict[Arm, frozenset[str]] = {
    "full": frozenset(),
    "in_training": KEYS_OF_CUTS,
    "from_scratch": frozenset(),
    "pragmatic": (KEYS_OF_CUTS - {"tau", "order", "budget", "gradual"}) | {"share_of_cut", "decide_after"},
    "post_training": KEYS_OF_ONE_CUT | {"starts_from"},
    "distilled": frozenset({"starts_from", "temperature", "distillation_weight"}),
    "regularised": KEYS_OF_ONE_CUT | {"moments", "penalty_weight", "penalty_by", "penalty_every"},
}
KEYS_OF_LRU = ("min_radius", "max_radius", "max_phase")
KEYS_OF_SELECTIVE_LAYERS = ("method", "calibration_sequences")
SELECTIVE_LAYERS = ("mamba",)


class RunConfig(pydantic.BaseModel):
    """One training run. Every key is checked; a key that is not listed here is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str = Field(description="one of `paper_repro.tasks.TASKS`")
    task_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="of the task: sizes and seed of a generated one, which form of the data"
    )
    arm: Arm = "full"
    seed: int = Field(
        0, ge=0, lt=2**32, description="of the weights, the dropout and the order of the data; not of the split"
    )
    data_dir: str | None = Field(None, description="folder of the data files; None: the usual places")

    layer: Literal["lru", "s5", "s4d", "mamba"] = "lru"
    layer_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="further arguments of the layer, by its own names"
    )
    n_blocks: int = Field(1, ge=1)
    d_model: int = Field(8, ge=1, description="width H of the model")
    n_states: int | tuple[int, ...] = Field(
        64, description="states of each layer at the start: one number, or one a block"
    )
    sizes_of: str | None = Field(None, description="the run that n_states was taken from")
    dropout: float = Field(0.1, ge=0, lt=1)
    dropout_mask: Literal["element", "sequence"] = "element"
    norm: Literal["batch", "layer", "rms"] = "batch"
    final_norm: bool = Field(False, description="the same norm before the head")
    pooling: Literal["mean", "last"] = "mean"
    bidirectional: bool = False
    min_radius: float = Field(0.9, ge=0, lt=1, description="of the LRU's poles at the start")
    max_radius: float = Field(0.999, gt=0, lt=1)
    max_phase: float = Field(2 * math.pi, gt=0, le=2 * math.pi, description="of the same poles, in radians")

    starts_from: str | None = Field(
        None, description="the finished run whose best model is cut (arm post_training) or teaches (arm distilled)"
    )
    steps: int = Field(3000, ge=0, description="of the optimizer; 0 in the arm post_training: no fine-tuning")
    batch_size: int = Field(50, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    ssm_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of the state space parameters, relative to the others"
    )
    weight_decay: float = Field(0.0, ge=0)
    lr_schedule: Literal["constant", "warmup_cosine"] = "constant"
    warmup: float = Field(0.1, ge=0, le=1, description="fraction of the steps, of warmup_cosine")
    floor_rate: float = Field(1e-7, gt=0, description="learning rate at both ends of warmup_cosine")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of a gradient; None: any")
    evaluate_every: int = Field(100, ge=1, description="steps between validations")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints to resume from")

    tau: float | None = Field(
        None, gt=0, lt=1, description="discard at most this share of the sum of Hankel values, at every cut"
    )
    order: int | tuple[int, ...] | None = Field(
        None, description="or cut to this many states: one number, or one a block"
    )
    budget: int | None = Field(
        None,
        ge=1,
        description="or to this many states in all blocks together, shared out by what the reading makes of each",
    )
    gradual: bool = Field(
        False, description="approach `order` or `budget` in equal ratios, and meet it at the last attempt"
    )
    attempts: int = Field(4, ge=1)
    window: tuple[float, float] = Field((0.0, 0.1), description="of the attempts, as fractions of the steps")
    reading: Reading = Field(
        "complex",
        description="of a time-invariant layer's system: balanced truncation of the complex system (the paper's) or of the real one; or a "
        "score of its states, see `paper_repro.methods`",
    )
    horizon: float | None = Field(
        None,
        gt=0,
        description="steps that the reading looks back, see `hsv_torch.Discounted`; the length of the sequences, say. None: for ever",
    )
    method: str | None = Field(
        None, description="of the cuts of a selective layer, see `paper_repro.methods`; None: the layer's default"
    )
    calibration_sequences: int = Field(
        64, ge=1, description="of the training set, that a selective layer is observed on before a cut"
    )
    ready_by: float | None = Field(
        None, gt=0, lt=1, description="put attempts off until the mean loss has fallen by this fraction"
    )
    ready_to: float | None = Field(None, gt=0, description="or to this value")
    moments: Literal["carry", "reset"] = Field("carry", description="of the optimizer, at a cut")
    max_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="undo a cut after which validation accuracy falls by more; None: never, or by any (arm pragmatic)",
    )
    share_of_cut: float = Field(0.1, gt=0, lt=1, description="of the states, that the arm pragmatic cuts at an attempt")
    decide_after: int | None = Field(
        None,
        ge=1,
        description="steps after which the arm pragmatic keeps a cut or undoes it; None: right before the next attempt",
    )

    temperature: float = Field(2.0, gt=0, description="of both models' scores, in the arm distilled")
    distillation_weight: float = Field(
        0.5, ge=0, le=1, description="of the teacher's scores in the loss; the labels have the rest"
    )
    penalty_weight: float | None = Field(
        None, gt=0, description="of the sum of all Hankel values in the loss, in the arm regularised, up to its cut"
    )
    penalty_by: Literal["gramians", "eigenvalues"] = Field(
        "gramians", description="factors with a gradient of their own, or eigenvalues of the product of dense Gramians"
    )
    penalty_every: int = Field(1, ge=1, description="steps between two penalties, each with that many times the weight")

    device: str = Field("cpu", description="cpu, or a name that torch knows")
    threads: int | None = Field(None, ge=1, description="of torch; None: torch's choice")

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        make_task(self.task, self.task_options)
        if self.min_radius >= self.max_radius:
            raise ValueError(f"min_radius must be below max_radius, got {self.min_radius} and {self.max_radius}")
        if self.layer != "lru":
            self._refuse_unless_default(KEYS_OF_LRU, "only layer lru has it")
        if self.layer in SELECTIVE_LAYERS:
            self._refuse_unless_default(
                ("reading", "horizon"), "only a time-invariant layer has one, and `method` stands for it here"
            )
        else:
            self._refuse_unless_default(
                KEYS_OF_SELECTIVE_LAYERS, "only a selective layer is cut by what it does with data"
            )
        if self.ready_by is not None and self.ready_to is not None:
            raise ValueError(f"ready_by or ready_to: give one of them, got {self.ready_by} and {self.ready_to}")
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(f"window must be two fractions with 0 <= first < second <= 1, got {list(self.window)}")
        if min(self.states_of_blocks) < 1:
            raise ValueError(f"n_states must be at least 1, got {self.n_states}")
        if len(self.states_of_blocks) != self.n_blocks:
            raise ValueError(f"n_states names {len(self.states_of_blocks)} blocks, but n_blocks is {self.n_blocks}")
        self._check_cuts()
        self._check_arm()
        return self

    def _check_cuts(self) -> None:
        rules = {key: getattr(self, key) for key in RULES}
        if self.arm in ARMS_WITH_A_RULE and sum(value is not None for value in rules.values()) != 1:
            found = ", ".join(f"{key}={value}" for key, value in rules.items())
            raise ValueError(f"tau, order or budget: arm {self.arm} needs exactly one of them, got {found}")
        orders = self.orders_of_blocks
        if orders is not None and min(orders) < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")
        if orders is not None and len(orders) != self.n_blocks:
            raise ValueError(f"order names {len(orders)} blocks, but n_blocks is {self.n_blocks}")
        if self.arm == "in_training" and self.gradual and self.budget is None and not isinstance(self.order, int):
            raise ValueError(
                f"gradual: only a budget or one order for all blocks can be approached step by step, got order={self.order}"
            )

    def _check_arm(self) -> None:
        if self.steps == 0 and self.arm != "post_training":
            raise ValueError(f"steps must be at least 1, got 0; only arm post_training can do without, not {self.arm}")
        if self.starts_from is not None and self.arm not in ARMS_WITH_A_START:
            raise ValueError(
                f"starts_from is set to {self.starts_from!r}, but arm {self.arm} starts from new weights; arms that have it: "
                f"{', '.join(ARMS_WITH_A_START)}"
            )
        if self.arm == "regularised":
            if self.penalty_weight is None:
                raise ValueError("penalty_weight: arm regularised needs a positive number, got None")
            if self.layer in SELECTIVE_LAYERS:
                raise ValueError(
                    f"layer {self.layer} has no Hankel values to penalise, for its system depends on its input; arm regularised needs a "
                    "time-invariant layer"
                )

    def _refuse_unless_default(self, keys: Iterable[str], why: str) -> None:
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is set to {getattr(self, key)!r}, but the layer is {self.layer}: {why}")

    @property
    def states_of_blocks(self) -> tuple[int, ...]:
        """States of each block at the start."""
        return (self.n_states,) * self.n_blocks if isinstance(self.n_states, int) else self.n_states

    @property
    def orders_of_blocks(self) -> tuple[int, ...] | None:
        """States to which each block is cut; None where a share of the Hankel sum decides."""
        return (self.order,) * self.n_blocks if isinstance(self.order, int) else self.order

    @property
    def last_step_of_window(self) -> int:
        """Optimizer step after which no cut comes any more; the best checkpoint is chosen after it, in every arm.

        Arms without cuts have it too, so that all choose among equally many; the arm post_training is cut before its first step.
        """
        if self.arm == "post_training":
            return 0
        last = round(self.steps * self.window[1])
        return last + self.steps_to_decide if self.arm == "pragmatic" else last

    @property
    def steps_to_decide(self) -> int:
        """Steps after an attempt of the arm pragmatic at which its cut is kept or undone."""
        if self.decide_after is not None:
            return self.decide_after
        return max(1, int(self.steps * (self.window[1] - self.window[0]) / self.attempts) - 1)

    @property
    def run_id(self) -> str:
        """A readable name that differs whenever what is trained does."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.task}-{self.arm}-seed{self.seed}-{digest}"

    def identity(self) -> dict[str, Any]:
        """Return the values that decide what is trained and differ from the defaults, as plain numbers, strings and lists.

        Defaults are left out so that a key that is added later changes no run's name; a default must therefore never
        change once runs were made with it.
        """
        ignored = KEYS_OUTSIDE_THE_IDENTITY | (frozenset().union(*KEYS_OF_ARMS.values()) - KEYS_OF_ARMS[self.arm])
        return self.model_dump(mode="json", exclude=set(ignored), exclude_defaults=True)

    def with_values(self, **values: Any) -> Self:
        """Return a checked copy with other values."""
        return type(self)(**{**dict(self), **values})


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the values of a preset of the package, or of a TOML file where `name` ends in ``.toml``.

    Raises
    ------
    ConfigurationError
        If there is no such preset or file, or if it is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigurationError(f"preset file {path} does not exist")
        text = path.read_text(encoding="utf-8")
    elif name in preset_names():
        text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise ConfigurationError(f"unknown preset {name!r}{_suggestion(name, preset_names())}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"preset {name!r} is not valid TOML: {error}") from error


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Read assignments such as ``tau=0.1``, ``window=[0, 0.2]``, ``norm=batch`` or ``order=none``.

    A value is read as TOML (numbers, ``true``, lists); what is not TOML is taken as text, ``none`` as no value.

    Raises
    ------
    ConfigurationError
        If an assignment has no key, or a key comes twice.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not key or not equals:
            raise ConfigurationError(f"--set takes KEY=VALUE, got {assignment!r}")
        if key in values:
            raise ConfigurationError(f"--set gives key {key!r} twice")
        values[key] = _parse_value(text)
    return values


def overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `overrides` in their place; one of the keys that choose the sizes replaces the others, for a run has one of them."""
    chosen = set(RULES) if overrides.keys() & set(RULES) else set()
    return {key: value for key, value in values.items() if key not in chosen} | dict(overrides)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration.

    Raises
    ------
    ConfigurationError
        One line for each key that is unknown or has an impossible value.
    """
    try:
        # From JSON, for there a list may stand for a tuple while a text still may not stand for a number.
        return RunConfig.model_validate_json(json.dumps(dict(values)))
    except pydantic.ValidationError as error:
        raise ConfigurationError("\n".join(_describe(fault) for fault in error.errors())) from error


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(fault: Any) -> str:
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(key, list(RunConfig.model_fields))}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"key {key!r}: {message}, got {fault['input']!r}" if key else message


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
