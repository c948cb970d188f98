"""Compression while a model trains: a schedule of attempts, a rule that chooses, a guard that puts back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import hsv
from hsv import DtypeError, HsvError
from hsv_torch.adapters import Cut, Observation, Replaced, adapter_of
from hsv_torch.allocation import Budget, Sizes, margin
from hsv_torch.calibration import Forward, check_calibration, observe
from hsv_torch.checkpoint import resize_layers, sizes_of
from hsv_torch.clock import StepClock
from hsv_torch.compress import (
    KeepsTooManyError,
    PlannedCut,
    Planner,
    check_unshared,
    checked_sizes,
    chosen_criteria,
    chosen_layers,
    cut_record,
    eager,
    recurrent_parameters,
    without_autocast,
)
from hsv_torch.compress import checked_rule as check_rule
from hsv_torch.criteria import Criterion
from hsv_torch.cutting import Cutter
from hsv_torch.distributed import Ranks
from hsv_torch.guard import Rollback, check_guard
from hsv_torch.history import Drift, Event, History, LayerRecord
from hsv_torch.optimizer import Moments, check_optimizer
from hsv_torch.rewarm import Rewarm
from hsv_torch.schedule import LossFalls, LossMeter, RankingMeter, RankingSettles, Schedule
from hsv_torch.sharding import whole
from hsv_torch.snapshot import (
    Placement,
    RandomState,
    Snapshot,
    copy_system,
    held_bytes,
    keepable,
    pack_systems,
    unpack_systems,
    without_trace,
)

_STATE_KEYS = (
    "schedule",
    "steps",
    "attempts_made",
    "sizes",
    "history",
    "systems",
    "waiting",
    "delay",
    "abandoned",
    "halvings",
    "retry",
    "rewarmed",
    "ready",
    "pending",
)

AnyRule: TypeAlias = hsv.Rule | int | Budget
RuleOfAttempt: TypeAlias = Callable[[int, int], AnyRule]
"""``rule(attempt, attempts)``, the first from 1."""


@dataclass
class _Pending:
    """A cut that the guard has yet to decide on."""

    decision_step: int
    snapshot: Snapshot
    sizes: dict[str, dict[str, int]]  # before the cut
    systems: dict[str, tuple[int, hsv.DiagonalStateSpace]]  # before the cut
    rewarmed: int  # steps of the warm-up that was on before the cut


class InTrainingCompressor:
    """Shrinks a model's state-space layers while the model trains.

    Call :meth:`step` after each ``optimizer.step()``. At each attempt of the schedule every layer's Hankel singular values
    are computed, the rule chooses how many states to keep, and the layers for which that is worth it are cut, with new
    parameters in the model and the optimizer and the moments carried into the new coordinates. Between attempts a call
    costs well under a microsecond.

    An attempt draws no random numbers: the order of data and the dropout masks after it are those of a run without it.

    Parameters
    ----------
    model
        The model; its layers are replaced in place. Of a ``torch.compile`` the model inside is cut, which compiles anew at its next call. In a
        ``DistributedDataParallel`` the model inside is cut: every process makes its own compressor and calls
        :meth:`step`, the first one measures and decides, all cut alike, and the wrapper reduces the new parameters from then on.
    optimizer
        The optimizer that trains them. Its moments are carried, and so are gradients that have been accumulated and not yet used.
    rule
        See :func:`hsv_torch.compress_`; it is applied again at every attempt, so that losses compound. A list has a rule for each attempt, and a function
        ``rule(attempt, attempts)`` returns it, the first attempt being 1: it is asked for every attempt when the compressor is made, so that an impossible
        rule is found then, and again at each attempt. A :class:`Budget` is approached in equal ratios and met at the last attempt.
    schedule
        When attempts are made.
    criterion, layers, calibration, forward
        See :func:`hsv_torch.compress_`. The calibration batches are gone through at every attempt, so a generator will not do.
    guard
        A :class:`Rollback`, or None.
    ready
        A :class:`LossFalls` or a :class:`RankingSettles`: an attempt that is due is put off until the loss has begun to fall, or until
        the ranking of the states has settled, and the later ones by as many steps. The history says so. For a :class:`LossFalls` :meth:`step` must be
        given the loss.
    state
        What the guard rewinds beside model and optimizer: anything with ``state_dict`` and ``load_state_dict`` (scheduler,
        gradient scaler, moving average, stateful loader) or a ``torch.Generator``. A module with the layers of `model`, such as a
        ``torch.optim.swa_utils.AveragedModel`` of it or a plain copy, is cut along: its cut layers take the values that the model's have after the cut, and
        their average begins anew there.
    min_reduction
        A layer is cut only if it loses more than this fraction of its states.
    moments
        ``"reset"`` forgets the optimizer's state of the parameters that are replaced instead of carrying it.
    sizes
        What sizes are allowed: floors, ceilings, multiples, one size for all; see :class:`Sizes`.
    rewarm_steps
        After each cut that many optimizer steps are made with learning rates that rise from near 0 to what they would be; schedulers do not notice.

    Raises
    ------
    hsv.HsvError
        If an argument is impossible: no layer to cut, an optimizer whose state cannot be carried, attempts closer together
        than the guard takes to decide, a guard that needs a loader and has none, a module in `state` that has layers that can be cut and is no copy of the model.

    See Also
    --------
    compress_ : one cut of a trained model.

    References
    ----------
    .. [1] Chahine, Nazari, Rus, Rusch, "The Curious Case of In-Training Compression of State Space Models", ICLR 2026.

    Examples
    --------
    >>> import hsv, hsv_torch
    >>> model = torch.nn.Sequential(hsv_torch.LRU(4, 64), torch.nn.Linear(4, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> compressor = hsv_torch.InTrainingCompressor(
    ...     model, optimizer, rule=hsv.Order(16), schedule=hsv_torch.Schedule(total_steps=10, window=(0.0, 0.2), attempts=1)
    ... )
    >>> for _ in range(10):
    ...     loss = model(torch.randn(2, 12, 4)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     event = compressor.step()
    ...     if event is not None:
    ...         print(event.step, event.layers[0].n_states_before, event.layers[0].n_states_after)
    2 64 16
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rule: AnyRule | Sequence[AnyRule] | RuleOfAttempt = hsv.HankelSum(discard=0.1),  # noqa: B008  (frozen)
        schedule: Schedule,
        criterion: Criterion | Mapping[str, Criterion] | None = None,
        layers: Iterable[str] | None = None,
        forward: Forward | None = None,
        calibration: Any = None,
        guard: Rollback | None = None,
        ready: LossFalls | RankingSettles | None = None,
        state: Mapping[str, Any] | None = None,
        min_reduction: float = 0.05,
        moments: Moments = "carry",
        sizes: Sizes | None = None,
        rewarm_steps: int = 0,
    ) -> None:
        ranks = Ranks(model)
        model = ranks.model
        chosen = chosen_layers(model, layers)
        criteria = chosen_criteria(chosen, criterion)
        check_calibration(chosen, calibration, forward)
        if isinstance(calibration, Iterator):
            raise TypeError(
                f"`calibration` is used at every attempt, and a {type(calibration).__qualname__} can be gone through only once: pass a list or a loader"
            )
        if not isinstance(schedule, Schedule):
            raise TypeError(f"`schedule` must be a hsv_torch.Schedule, got {schedule!r}")
        if not isinstance(ready, LossFalls | RankingSettles | None):
            raise TypeError(f"`ready` must be a hsv_torch.LossFalls, a hsv_torch.RankingSettles or None, got {ready!r}")
        if not 0 <= min_reduction < 1:
            raise HsvError(f"`min_reduction` is a fraction of the states and must be in [0, 1), got {min_reduction!r}")
        check_unshared(model, chosen)
        check_optimizer(optimizer, recurrent_parameters(chosen), moments)
        self._ranks = ranks
        self.model = model
        self.optimizer = optimizer
        self.rules = _checked_rules(rule, schedule, ranks)
        self.schedule = schedule
        self.sizes = checked_sizes(sizes, chosen)
        self.criteria = criteria
        self.calibration = calibration
        self.forward = forward
        self.guard = guard
        self.min_reduction = min_reduction
        self.moments: Moments = moments
        self._objects = _checked_objects(state)
        check_guard(guard, schedule, self._objects)
        self._layers = tuple(chosen)
        self._cutter = Cutter(ranks, optimizer, self._layers, self._objects, moments)
        self._rewarm = Rewarm(optimizer, rewarm_steps)
        self._initial_sizes = {name: adapter_of(layer).n_states(layer) for name, layer in chosen.items()}
        self._events: list[Event] = []
        self._attempts_made = 0
        self._pending: _Pending | None = None
        self._systems: dict[str, tuple[int, hsv.DiagonalStateSpace]] = {}  # as the last attempt left them, and its step
        self._steps = 0
        self._meter: LossMeter | RankingMeter | None = None if ready is None else ready.meter(self._present_systems)
        self._waiting = False  # an attempt is due and put off
        self._delay = 0  # steps by which attempts that were put off have moved the schedule
        self._abandoned = False  # the rest of the attempts is not made
        self._halvings = 0  # of what the present attempt takes away, after cuts that were undone
        self._retry = False  # the attempt is made again at the next step
        self._due = schedule.steps[0]  # the next step at which something happens; 0: never
        self._clock = StepClock()

    def step(self, loss: float | Tensor | None = None) -> Event | None:
        """Count one optimizer step, and make an attempt (or the guard's decision) if it is due.

        Parameters
        ----------
        loss
            The loss of this step; needed with `ready`, without effect otherwise.

        Returns
        -------
        Event or None
            None between attempts. An event says what was found in each layer, also where nothing was cut. With a guard
            that decides later (``after_steps > 0``), a second event follows at its decision. With `ready`, an event says
            that an attempt is put off, and another is the attempt itself, once the loss has fallen.
        """
        self._steps += 1
        self._clock.tick()
        if self._meter is not None:
            if loss is None and self._meter.needs_loss:
                self._steps -= 1
                raise TypeError(
                    "`loss` is missing: this compressor was made with `ready`, which waits for the loss to fall"
                )
            self._meter.see(loss)  # type: ignore[arg-type]
        if self._steps != self._due:
            return None
        return self._act()

    @property
    def done(self) -> bool:
        """Whether all attempts have been made and decided on."""
        return self._due == 0

    @property
    def steps(self) -> int:
        """Optimizer steps counted; a cut that is undone later takes its steps back."""
        return self._steps

    @property
    def history(self) -> History:
        """All that happened so far, cuts that were undone included."""
        return History(
            self._initial_sizes, tuple(self._events), self.schedule.total_steps, self._steps, *self._clock.read()
        )

    def _act(self) -> Event | None:
        try:
            event = self._next_event()
        finally:  # an exception does not end the schedule for who catches it
            self._due = self._next_due()
        if event is not None:
            self._events.append(dataclasses.replace(event, replaced={}))
            self._clock.reset()
        return event

    def _next_event(self) -> Event | None:
        pending = self._pending
        if pending is not None and pending.decision_step == self._steps:
            return self._decide(pending)
        if self._retry:
            self._retry = False
            return self._attempt()
        objection = self._objection()
        planned = self.schedule.steps[self._attempts_made] + self._delay
        if self._steps >= self._last_attempt_step and (objection is not None or planned > self._steps):
            self._abandoned = True
            return self._no_attempt(objection or f"put off by {self._delay} steps, it would come after the end")
        if objection is not None:
            if self._waiting:
                return None
            self._waiting = True
            return self._no_attempt(objection)
        if self._waiting:
            self._waiting = False
            self._delay += self._steps - planned
        return self._attempt()

    def _objection(self) -> str | None:
        """Why the attempt is to wait, if it is; the first process says so."""
        if self._meter is None:
            return None
        if not self._ranks.split:
            return self._ranks.decide(self._meter.objection)
        found = self._ranks.together(self._meter.objection, lambda: None)  # all of them give their parts of the systems
        return self._ranks.decide(lambda: found)

    def _no_attempt(self, objection: str) -> Event:
        timed, attempt = self._clock.read(), self._attempts_made + 1
        if self._abandoned:
            reason = f"attempts {attempt} to {self.schedule.attempts} are not made: {objection}"
        else:
            reason = f"attempt {attempt} is put off: {objection}"
        return Event(
            attempt, self._steps, (), 0.0, put_off=True, reason=reason, steps_timed=timed[0], step_seconds=timed[1]
        )

    def _next_due(self) -> int:
        if self._pending is not None:
            return self._pending.decision_step
        if self._retry:
            return self._steps + 1
        steps = self.schedule.steps
        if self._attempts_made >= len(steps) or self._abandoned:
            return 0
        due = self._steps + 1 if self._waiting else steps[self._attempts_made] + self._delay
        return min(due, self._last_attempt_step)

    @property
    def _last_attempt_step(self) -> int:
        """The last step at which an attempt can be made and decided on before the training ends."""
        return self.schedule.total_steps - (self.guard.after_steps if self.guard is not None else 0)

    def _attempt(self) -> Event:
        started = time.perf_counter()
        timed = self._clock.read()
        random_state = RandomState.take()
        memory = held_bytes(self.model, self.optimizer)
        if not self._halvings:
            self._attempts_made += 1
        records, cuts = self._measured()
        plans = {name: self._planned(name, cut) for name, cut in cuts.items()}
        event = Event(
            self._attempts_made, self._steps, tuple(records.values()), 0.0, steps_timed=timed[0], step_seconds=timed[1]
        )
        if plans:
            event = self._cut(event, plans, random_state)
        else:
            self._halvings = 0
            random_state.restore()
        event = self._with_memory(dataclasses.replace(event, memory_before=memory))
        seconds = time.perf_counter() - started - event.evaluation_seconds
        return dataclasses.replace(event, seconds=seconds)

    def _with_memory(self, event: Event) -> Event:
        """The event with what it says of memory after it."""
        device = next(self.model.parameters()).device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return dataclasses.replace(event, memory_after=held_bytes(self.model, self.optimizer), peak_memory=peak)

    def _planned(self, name: str, cut: Cut) -> PlannedCut:
        layer = self.model.get_submodule(name)
        return PlannedCut(layer, adapter_of(layer), cut)

    def _measured(self) -> tuple[dict[str, LayerRecord], dict[str, Cut]]:
        """What the first process finds and plans; where parameters are split, all of them run the calibration data and give their parts."""
        with without_autocast(self.model):
            if not self._ranks.split:
                return self._ranks.decide(lambda: self._measure(self._observe(self.calibration)))
            data = self.calibration
            batches = None if data is None else self._ranks.in_step([data] if isinstance(data, Tensor) else data)
            observations = self._ranks.together(lambda: self._observe(batches), lambda: None)
            layers = [layer for _, layer in self._named_layers()]
            with whole(self.model, layers, keep=self._ranks.rank == 0):
                return self._ranks.decide(lambda: self._measure(observations))

    def _observe(self, calibration: Any) -> dict[str, Observation]:
        with eager(self.model):
            return observe(self.model, dict(self._named_layers()), self.criteria, calibration, self.forward)

    def _measure(self, observations: Mapping[str, Observation]) -> tuple[dict[str, LayerRecord], dict[str, Cut]]:
        """Find out what the rule chooses for each layer; changes nothing but the systems that drift is measured from."""
        records: dict[str, LayerRecord] = {}
        plans: dict[str, Cut] = {}
        layers = dict(self._named_layers())
        planner = Planner(self.model, layers, self.criteria, observations, self.sizes, self.min_reduction)
        rule, remaining = self.rules(self._attempts_made), self.schedule.attempts - self._attempts_made + 1
        try:
            found = planner.cuts(rule, remaining=remaining, first=self._initial_sizes)
        except hsv.OrderError as error:  # a budget that cannot be met
            found = dict.fromkeys(layers, error)
        for name, plan in self._halved(planner, found).items():
            n = planner.states[name]
            few = f"not fewer than {1 - self.min_reduction:g} of them"
            if isinstance(plan, KeepsTooManyError):
                reason, values = f"{plan}, {few}", plan.hankel_singular_values
                records[name] = LayerRecord(name, "unchanged", n, n, plan.order, values, plan.order, reason=reason)
            elif isinstance(plan, HsvError):
                spectrum = getattr(plan, "hankel_singular_values", None)
                records[name] = LayerRecord(name, "refused", n, n, None, spectrum, reason=str(plan))
            else:
                record = cut_record(name, plan)
                if plan.n_states_after < (1 - self.min_reduction) * n:
                    plans[name] = plan
                else:
                    reason = f"the rule keeps {plan.n_states_after} of {n} states, {few}"
                    record = dataclasses.replace(record, outcome="unchanged", n_states_after=n, reason=reason)
                records[name] = record
            spectrum = records[name].hankel_singular_values
            if spectrum is not None and not self._halvings:
                records[name] = dataclasses.replace(records[name], margin=margin(rule, spectrum))
            records[name] = self._with_drift(records[name])
        return records, plans

    def _halved(self, planner: Planner, found: dict[str, Cut | HsvError]) -> dict[str, Cut | HsvError]:
        """The cuts with half of what they take away, as many times as the guard has undone this attempt."""
        if not self._halvings:
            return found
        gentler = dict(found)
        for name, plan in found.items():
            if isinstance(plan, Cut):
                n, size = plan.n_states_before, plan.n_states_after
                gentler[name] = planner.cut(name, hsv.Order(n - ((n - size) >> self._halvings)))
        return gentler

    def _with_drift(self, record: LayerRecord) -> LayerRecord:
        """Compare the layer's system with what the attempt before left, and remember it for the next one."""
        layer = self.model.get_submodule(record.layer)
        try:
            system = adapter_of(layer).system(layer)
            if system is None:  # it depends on the layer's input
                return record
            before = self._systems.get(record.layer)
            self._systems[record.layer] = (self._steps, copy_system(system))
            if before is None:
                return record
            return dataclasses.replace(record, drift=_drift(before[0], before[1], system))
        except HsvError as error:
            self._systems.pop(record.layer, None)
            return dataclasses.replace(record, notes=(*record.notes, f"drift was not measured: {error}"))

    def _cut(
        self,
        event: Event,
        plans: dict[str, PlannedCut],
        random_state: RandomState,
    ) -> Event:
        if self.guard is None:
            replaced = self._apply(plans)
            random_state.restore()
            self._remember_systems(plans)
            return dataclasses.replace(event, replaced=replaced)
        rewarmed = self._rewarm.made
        snapshot = Snapshot.take(
            self.model,
            self.optimizer,
            layers=[plan.layer for plan in plans.values()],
            objects=self._objects,
            random_state=random_state,
            copies=self._cutter.copies,
            offload=self.guard.offload,
        )
        sizes = sizes_of({name: plan.layer for name, plan in plans.items()})
        systems = dict(self._systems)
        try:
            before, seconds = self._evaluate()
            replaced = self._apply(plans)
            event = dataclasses.replace(event, metric_before=before, evaluation_seconds=seconds, replaced=replaced)
            if self.guard.after_steps > 0:
                random_state.restore()
                self._remember_systems(plans)
                self._pending = _Pending(self._steps + self.guard.after_steps, snapshot, sizes, systems, rewarmed)
                return dataclasses.replace(event, pending=True)
            after, more_seconds = self._evaluate()
            event = dataclasses.replace(event, metric_after=after, evaluation_seconds=seconds + more_seconds)
            objection = self.guard.objection(before, after)
            if objection is not None:
                self._put_back(snapshot, rewarmed)
                return self._undone(event, objection)
            random_state.restore()
        except BaseException:
            self._put_back(snapshot, rewarmed)
            raise
        self._halvings = 0
        self._remember_systems(plans)
        return event

    def _put_back(self, snapshot: Snapshot, rewarmed: int) -> None:
        snapshot.restore()
        self._rewarm.made = rewarmed
        self._ranks.rebuild()

    def _apply(self, plans: Mapping[str, PlannedCut]) -> Replaced:
        replaced = self._cutter.apply(plans)
        self._rewarm.start()
        return replaced

    def _put_in_place_of(
        self, small: dict[str, nn.Parameter]
    ) -> dict[str, tuple[nn.Parameter | None, nn.Parameter | None]]:
        large = recurrent_parameters(dict(self._named_layers()))
        pairs = {name: (small.get(name), large.get(name)) for name in small | large}
        return {name: pair for name, pair in pairs.items() if pair[0] is not pair[1]}

    def _undone(self, event: Event, objection: str) -> Event:
        """Note the cut as undone, and decide what follows."""
        assert self.guard is not None
        if self._halvings < self.guard.gentler and self._steps < self._last_attempt_step:
            self._halvings += 1
            self._retry = True
            follows = "; tried again with half of the reduction at the next step"
        else:
            self._halvings = 0
            self._abandoned = self.guard.then == "stop"
            follows = "; no further attempts are made" if self._abandoned else ""
        return _undone(event, objection + follows)

    def _remember_systems(self, plans: Mapping[str, PlannedCut]) -> None:
        for name, plan in plans.items():
            with whole(self.model, [plan.layer]):
                system = plan.adapter.system(plan.layer)
            if system is not None:
                self._systems[name] = (self._steps, copy_system(system))

    def _decide(self, pending: _Pending) -> Event:
        assert self.guard is not None
        started = time.perf_counter()
        timed = self._clock.read()
        index, cut_event = self._pending_event()
        assert cut_event.metric_before is not None
        after, seconds = self._evaluate()
        self._pending = None
        decided = dataclasses.replace(cut_event, pending=False, metric_after=after)
        objection = self.guard.objection(cut_event.metric_before, after)
        if objection is not None:
            small = recurrent_parameters(dict(self._named_layers()))
            self._put_back(pending.snapshot, pending.rewarmed)
            self._steps = cut_event.step
            self._systems = pending.systems
            decided = dataclasses.replace(self._undone(decided, objection), replaced=self._put_in_place_of(small))
        else:
            self._halvings = 0
        # The history has one event for the cut, with the decision in it; its own costs stay with it.
        del self._events[index]
        return dataclasses.replace(
            self._with_memory(decided),
            evaluation_seconds=cut_event.evaluation_seconds + seconds,
            seconds=cut_event.seconds + time.perf_counter() - started - seconds,
            steps_timed=cut_event.steps_timed + timed[0],
            step_seconds=cut_event.step_seconds + timed[1],
        )

    def _pending_event(self) -> tuple[int, Event]:
        return next((index, event) for index, event in enumerate(self._events) if event.pending)

    def _evaluate(self) -> tuple[float, float]:
        """The guard's metric and the seconds it took; leaves no trace in generators, modes or buffers."""
        assert self.guard is not None
        started = time.perf_counter()
        evaluate = self.guard.evaluate
        with without_trace(self.model):
            return self._ranks.mean(lambda: float(evaluate())), time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on exactly: numbers, strings, lists, tensors.

        While the guard has yet to decide, this contains a copy of the model and the optimizer of before the cut.
        """
        pending = self._pending
        return {
            "version": 1,
            "schedule": [self.schedule.total_steps, list(self.schedule.steps)],
            "steps": self._steps,
            "attempts_made": self._attempts_made,
            "sizes": sizes_of(dict(self._named_layers())),
            "history": self.history.to_dict(),
            "systems": _packed(self._systems),
            "waiting": self._waiting,
            "delay": self._delay,
            "abandoned": self._abandoned,
            "halvings": self._halvings,
            "retry": self._retry,
            "rewarmed": self._rewarm.made,
            "ready": None if self._meter is None else self._meter.state_dict(),
            "pending": None
            if pending is None
            else {
                "decision_step": pending.decision_step,
                "sizes": {name: dict(size) for name, size in pending.sizes.items()},
                "systems": _packed(pending.systems),
                "rewarmed": pending.rewarmed,
                "snapshot": pending.snapshot.state_dict(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another compressor was saved.

        Layers are given the sizes they had then, in the model and in the optimizer, with values unset: load the model's and
        the optimizer's state *after* this. A model that has its sizes already is left alone.

        Raises
        ------
        HsvError
            If the state is of another schedule, or of a model with other layers; or it was saved while the guard had yet to decide, and this compressor has
            no guard or other objects in `state`. Compressor, model and optimizer are then as they were.
        """
        self._check_state(state)
        meter = copy.copy(self._meter)  # loading assigns, and leaves what this one has as it is
        try:
            history = History.from_dict(state["history"])
            systems = _unpacked(state["systems"])
            if meter is not None:
                meter.load_state_dict(state["ready"])
            flags = {key: bool(state[key]) for key in ("waiting", "abandoned", "retry")}
            numbers = {key: int(state[key]) for key in ("delay", "halvings", "rewarmed", "steps", "attempts_made")}
            pending = None if state["pending"] is None else self._unpacked_pending(state["pending"])
        except HsvError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise HsvError(
                f"`state` is damaged, or not what `state_dict` returned: its parts do not fit together: {error!r}"
            ) from error
        before = self._placements()
        try:
            resize_layers(self.model, state["sizes"], self.optimizer)
            self._cutter.resize_copies(state["sizes"])
            self._ranks.rebuild()
        except BaseException:
            for placement in before:
                placement.restore()
            raise
        self._meter, self._pending, self._systems = meter, pending, systems
        self._waiting, self._abandoned, self._retry = flags["waiting"], flags["abandoned"], flags["retry"]
        self._delay, self._halvings, self._rewarm.made = numbers["delay"], numbers["halvings"], numbers["rewarmed"]
        self._steps, self._attempts_made = numbers["steps"], numbers["attempts_made"]
        self._initial_sizes = dict(history.initial_sizes)
        self._events = list(history.events)
        self._due = self._next_due()
        self._clock = StepClock(history.steps_timed, history.step_seconds)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Raise if the state cannot be one of this compressor's."""
        if not isinstance(state, Mapping) or state.get("version") != 1:
            found = f"version {state.get('version')!r}" if isinstance(state, Mapping) else type(state).__qualname__
            raise HsvError(f"`state` is no state of an InTrainingCompressor that this release reads ({found})")
        missing = [key for key in _STATE_KEYS if key not in state]
        if missing:
            raise HsvError(f"`state` is no whole state of an InTrainingCompressor: it lacks {missing}")
        own = [self.schedule.total_steps, list(self.schedule.steps)]
        if list(state["schedule"]) != own:
            raise HsvError(
                f"`state` was saved with the schedule {state['schedule']}, and this compressor has {own}; make it with that one"
            )
        stored_layers = state["history"]["initial_sizes"]
        if set(stored_layers) != set(self._layers):
            raise HsvError(
                f"`state` was saved for the layers {sorted(stored_layers)}, and this compressor cuts {sorted(self._layers)}"
            )
        if (state["ready"] is None) != (self._meter is None):
            raise HsvError(
                f"`state` was saved {'without' if state['ready'] is None else 'with'} `ready`, and this compressor was made "
                f"{'without' if self._meter is None else 'with'} it"
            )
        if state["pending"] is not None and self.guard is None:
            raise HsvError(
                f"`state` was saved while the guard had yet to decide, at step {state['pending']['decision_step']}, on a cut, and this compressor was made "
                "without `guard`; make it with the one that it had"
            )

    def _placements(self) -> list[Placement]:
        """What stands where in the model, the optimizer and the copies of the model."""
        layers = [layer for _, layer in self._named_layers()]
        copies = self._cutter.copies
        return [
            Placement(self.model, self.optimizer, layers),
            *(Placement(copied, None, copied.modules()) for copied in copies),
        ]

    def _unpacked_pending(self, pending: Mapping[str, Any]) -> _Pending:
        """Rebuild the snapshot at the sizes of before the cut, and leave the model as it is."""
        now = self._placements()
        try:
            resize_layers(self.model, pending["sizes"], self.optimizer)
            self._cutter.resize_copies(pending["sizes"])
            snapshot = Snapshot.take(
                self.model,
                self.optimizer,
                layers=[layer for _, layer in self._named_layers()],
                objects=self._objects,
                copies=self._cutter.copies,
            )
            snapshot.load_values(pending["snapshot"])
        finally:
            for placement in now:
                placement.restore()
        return _Pending(
            int(pending["decision_step"]),
            snapshot,
            dict(pending["sizes"]),
            _unpacked(pending["systems"]),
            int(pending["rewarmed"]),
        )

    def _present_systems(self) -> dict[str, hsv.DiagonalStateSpace]:
        """The systems of the layers that have one, not to be changed by training."""
        systems = {}
        for name, layer in self._named_layers():
            with whole(self.model, [layer]):
                system = adapter_of(layer).system(layer)
            if system is not None:
                systems[name] = copy_system(system)
        return systems

    def _named_layers(self) -> list[tuple[str, nn.Module]]:
        return [(name, self.model.get_submodule(name)) for name in self._layers]

    def __repr__(self) -> str:
        sizes = {name: adapter_of(layer).n_states(layer) for name, layer in self._named_layers()}
        return f"InTrainingCompressor(step {self._steps}, {self._attempts_made} of {self.schedule.attempts} attempts, states {sizes})"


def _undone(event: Event, reason: str) -> Event:
    layers = tuple(
        dataclasses.replace(record, outcome="undone", n_states_after=record.n_states_before, reason=reason)
        if record.outcome == "cut"
        else record
        for record in event.layers
    )
    return dataclasses.replace(event, layers=layers, undone=True, reason=reason, replaced={})


def _drift(since_step: int, before: hsv.DiagonalStateSpace, now: hsv.DiagonalStateSpace) -> Drift:
    earlier, later = (_host(hsv.hankel_singular_values(system)) for system in (before, now))
    size = max(earlier.shape[-1], later.shape[-1])
    earlier, later = (np.pad(s, [(0, 0)] * (s.ndim - 1) + [(0, size - s.shape[-1])]) for s in (earlier, later))
    return Drift(since_step, float(np.abs(earlier - later).max()), float(_host(hsv.hankel_norm(now - before)).max()))


def _host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _packed(systems: Mapping[str, tuple[int, hsv.DiagonalStateSpace]]) -> dict[str, Any]:
    steps = {name: step for name, (step, _) in systems.items()}
    return {"steps": steps, "systems": pack_systems({name: system for name, (_, system) in systems.items()})}


def _unpacked(packed: Mapping[str, Any]) -> dict[str, tuple[int, hsv.DiagonalStateSpace]]:
    return {name: (int(packed["steps"][name]), system) for name, system in unpack_systems(packed["systems"]).items()}


def _checked_rules(
    rule: AnyRule | Sequence[AnyRule] | RuleOfAttempt, schedule: Schedule, ranks: Ranks
) -> Callable[[int], hsv.Rule | Budget]:
    """The rule of each attempt, from 1."""

    def checked_rule(rule: AnyRule | type) -> hsv.Rule | Budget:
        if isinstance(rule, type):
            raise DtypeError(
                f"`rule` must be a rule, an int or a function of the attempt, got the class {rule.__qualname__}; make one of it, as "
                f"{rule.__qualname__}(...)"
            )
        found = check_rule(rule)
        if ranks.split and isinstance(found, Budget) and found.unit == "seconds":
            raise HsvError(
                "a Budget in seconds measures copies of the model, and one that is split over processes cannot be copied; give the budget in states, "
                "parameters or flops"
            )
        return found

    if isinstance(rule, Sequence) and not isinstance(rule, str):
        rules = [checked_rule(each) for each in rule]
        if len(rules) != schedule.attempts:
            raise HsvError(
                f"`rule` is a list of {len(rules)} rules, and the schedule has {schedule.attempts} attempts; give one for each"
            )
        return lambda attempt: rules[attempt - 1]
    if callable(rule) and not isinstance(rule, type):
        asked = _asked(rule, schedule.attempts, checked_rule)
        for attempt in range(1, schedule.attempts + 1):
            asked(attempt)
        return asked
    same = checked_rule(rule)
    return lambda attempt: same


def _asked(
    rule: RuleOfAttempt, attempts: int, check: Callable[[AnyRule], hsv.Rule | Budget]
) -> Callable[[int], hsv.Rule | Budget]:
    """The function of an attempt that asks `rule`; what comes of a bad one says so."""
    try:
        inspect.signature(rule).bind(1, attempts)
    except TypeError as error:
        raise DtypeError(
            f"`rule` is called as rule(attempt, attempts), and {rule!r} cannot be: {error}; give it these two arguments"
        ) from error
    except ValueError:  # a function that does not say what it takes
        pass

    def ask(attempt: int) -> hsv.Rule | Budget:
        try:
            return check(rule(attempt, attempts))
        except Exception as error:
            error.add_note(
                f"this came of `rule`, called as rule({attempt}, {attempts}); it is asked for every attempt when the compressor is made, and again at each"
            )
            raise

    return ask


def _checked_objects(state: Mapping[str, Any] | None) -> dict[str, Any]:
    objects = dict(state or {})
    for name, value in objects.items():
        if not keepable(value):
            raise TypeError(
                f"`state`: {name!r} ({type(value).__qualname__}) cannot be put back: it has neither state_dict and "
                "load_state_dict nor get_state and set_state"
            )
    return objects
