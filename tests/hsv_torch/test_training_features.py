"""What a training loop adds to plain steps, through a cut: compiled models, mixed precision, gradient scaling, micro-batches, checkpointed blocks, lists of parameters."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import hsv_torch
from hsv_torch import InTrainingCompressor, Rollback, Schedule

STEPS = 7
CUTS = (2, 4)


def make(layer="lru", *, dtype=None, n_blocks=2, **options):
    torch.manual_seed(0)
    config = hsv_torch.SequenceModelConfig(
        layer=layer, d_model=4, n_states=8, n_blocks=n_blocks, head="regression", n_inputs=3, n_outputs=1, **options
    )
    return hsv_torch.SequenceModel(config, dtype=dtype)


def batch(step, size=6, dtype=None):
    return torch.randn(size, 10, 3, generator=torch.Generator().manual_seed(step), dtype=dtype)


def loss_of(call, x):
    return (call(x) - x.mean((1, 2))[:, None]).square().mean()


def compressor_of(model, optimizer, **options):
    options = {"rule": [6, 3], "schedule": Schedule(STEPS, at=CUTS)} | options
    return InTrainingCompressor(model, optimizer, **options)


def train(call, optimizer, compressor, steps=STEPS):
    losses = []
    while compressor.steps < steps:
        loss = loss_of(call, batch(compressor.steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
        losses.append(loss.item())
    return losses


def same(first, second, **tolerance):
    for (name, p), (other, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(p, q, **tolerance)


class TestCompile:
    """Backend aot_eager: graphs are traced, guarded and differentiated as for any backend, and run without code generation."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def compiled(self, model, how):
        """The counter, what the loop calls, and what the compressor is given."""
        counter = CompileCounterWithBackend("aot_eager")
        if how == "in place":
            model.compile(backend=counter)
            return counter, model, model
        if how == "blocks":
            for block in model.blocks:
                block.compile(backend=counter)
            return counter, model, model
        call = torch.compile(model, backend=counter)
        return counter, call, call if how == "given compiled" else model

    @pytest.mark.parametrize(
        ("layer", "how"),
        [
            ("lru", "given compiled"),
            ("lru", "given original"),
            ("lru", "in place"),
            pytest.param(
                "lru", "blocks", marks=pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
            ),
            ("mamba", "given compiled"),
        ],
    )
    def test_one_compilation_a_cut(self, layer, how):
        model = make(layer)
        plain = copy.deepcopy(model)
        data = {"calibration": [batch(99)]} if layer == "mamba" else {}
        counter, call, given = self.compiled(model, how)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        compressor = compressor_of(given, optimizer, **data)
        compilations, events = [], []
        while compressor.steps < STEPS:
            optimizer.zero_grad()
            loss_of(call, batch(compressor.steps)).backward()
            optimizer.step()
            event = compressor.step()
            events += [] if event is None else [event]
            compilations.append(counter.frame_count)
        assert compilations == [1, 1, 2, 2, 3, 3, 3]
        assert [record.layer for record in events[0].layers] == ["blocks.0.layer", "blocks.1.layer"]
        assert all(record.outcome == "cut" for event in events for record in event.layers)
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
        train(plain, optimizer, compressor_of(plain, optimizer, **data))
        assert plain.n_states == model.n_states == (3, 3)
        same(model, plain, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(("limit", "compilations"), [(None, 8), (16, 11)])
    def test_more_cuts_than_are_compiled_by_default(self, limit, compilations):
        """PyTorch compiles one function 8 times, and runs it uncompiled from then on unless it is told another limit; the results are those of any run."""
        torch.manual_seed(0)
        model = nn.Sequential(hsv_torch.LRU(3, 14))
        plain = copy.deepcopy(model)
        counter = CompileCounterWithBackend("aot_eager")
        call = torch.compile(model, backend=counter, recompile_limit=limit)
        for each, given in ((model, call), (plain, plain)):
            optimizer = torch.optim.SGD(each.parameters(), lr=1e-2)
            schedule = Schedule(24, at=tuple(range(2, 22, 2)))
            compressor = InTrainingCompressor(given, optimizer, rule=list(range(13, 3, -1)), schedule=schedule)
            while compressor.steps < 22:
                optimizer.zero_grad()
                given(batch(compressor.steps)).square().mean().backward()
                optimizer.step()
                compressor.step()
            assert each[0].n_states == 4
        assert counter.frame_count == compilations
        same(model, plain, rtol=1e-3, atol=1e-4)

    def test_a_cut_that_is_undone_needs_no_compilation(self):
        model = make()
        counter, call, given = self.compiled(model, "given compiled")
        optimizer = torch.optim.AdamW(model.parameters())
        metric = iter([1.0, 0.0, 1.0, 0.0])
        guard = Rollback(lambda: next(metric), max_drop=0.0)
        train(call, optimizer, compressor_of(given, optimizer, guard=guard))
        assert model.n_states == (8, 8)
        assert counter.frame_count == 1

    def test_of_a_trained_model(self):
        model = make(n_blocks=1)
        counter, call, _ = self.compiled(model, "given compiled")
        call(batch(0))
        report = hsv_torch.compress_(call, 4)
        assert report.layers[0].layer == "blocks.0.layer"
        assert torch.equal(call(batch(0)), call(batch(0)))
        torch.testing.assert_close(call(batch(0)), model(batch(0)))
        assert counter.frame_count == 2

    def test_an_average_of_the_compiled_model_is_cut_along(self):
        model = make(n_blocks=1)
        _, call, given = self.compiled(model, "given compiled")
        average = AveragedModel(model)
        optimizer = torch.optim.AdamW(model.parameters())
        compressor = compressor_of(given, optimizer, state={"ema": average})
        train(call, optimizer, compressor)
        average.update_parameters(model)
        assert average.module.n_states == model.n_states == (3,)


class TestAutocast:
    def run(self, inside):
        """Train under autocast, with the compressor called inside or outside of it."""
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        compressor = compressor_of(model, optimizer)
        while compressor.steps < STEPS:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, batch(compressor.steps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                compressor.step()
        return model, optimizer

    def test_cuts_are_computed_in_the_precision_of_the_parameters(self):
        (inside, first), (outside, second) = self.run(inside=True), self.run(inside=False)
        assert inside.n_states == (3, 3)
        same(inside, outside, rtol=0, atol=0)
        for p, q in zip(inside.parameters(), outside.parameters(), strict=True):
            assert p.dtype == first.state[p]["exp_avg"].dtype == torch.float32
            assert torch.equal(first.state[p]["exp_avg"], second.state[q]["exp_avg"])

    def test_so_is_the_cut_of_a_trained_model(self):
        inside, outside = make(), make()
        hsv_torch.compress_(outside, 3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hsv_torch.compress_(inside, 3)
            assert torch.is_autocast_enabled("cpu")
        same(inside, outside, rtol=0, atol=0)

    def test_observations_of_selective_layers_too(self):
        inside, outside = make("mamba"), make("mamba")
        hsv_torch.compress_(outside, 3, calibration=batch(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hsv_torch.compress_(inside, 3, calibration=batch(0))
        same(inside, outside, rtol=0, atol=0)


class TestGradScaler:
    def step(self, model, optimizer, scaler, step, *, overflow=False):
        loss = loss_of(model, batch(step)) * (float("inf") if overflow else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def test_a_step_that_was_skipped_right_before_the_cut(self):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        compressor = compressor_of(model, optimizer)
        while compressor.steps < STEPS:
            skipped = compressor.steps + 1 == CUTS[0]
            before = [p.detach().clone() for p in model.parameters()]
            self.step(model, optimizer, scaler, compressor.steps, overflow=skipped)
            if skipped:
                assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
                assert any(not p.grad.isfinite().all() for p in model.parameters())
            compressor.step()
        assert model.n_states == (3, 3)
        assert scaler.get_scale() == 2.0**9
        assert all(p.isfinite().all() for p in model.parameters())
        # carried moments count as two steps
        assert max(int(state["step"]) for state in optimizer.state.values()) == STEPS - 1

    def test_a_rollback_puts_the_scaler_back(self):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        metric = iter([1.0, 0.0])
        position = Position()
        compressor = compressor_of(
            model,
            optimizer,
            schedule=Schedule.once(STEPS, 2),
            rule=3,
            guard=Rollback(lambda: next(metric), max_drop=0.0, after_steps=2),
            state={"scaler": scaler, "loader": position},
        )
        scales = []
        for k in range(STEPS):
            self.step(model, optimizer, scaler, k, overflow=k == 3)
            position.value += 1
            if k == 1:
                at_the_cut = scaler.state_dict()
            event = compressor.step()
            scales.append(scaler.get_scale())
            if event is not None and event.undone:
                break
        assert k == 3
        assert at_the_cut["scale"] == 2.0**11
        assert scaler.state_dict() == at_the_cut
        assert scales == [2.0**10, 2.0**11, 2.0**11, 2.0**11]
        assert position.value == 2
        self.step(model, optimizer, scaler, 2)
        assert model.n_states == (8, 8)


class Position:
    """A loader that counts."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def padded(model):
    """Make the last three of eight states unreachable and unobservable: a cut to five loses nothing."""
    with torch.no_grad():
        for block in model.blocks:
            block.layer.B[5:] = 0
            block.layer.C[:, 5:] = 0
    return model


class TestAccumulation:
    def test_between_windows_nothing_changes(self):
        """Three micro-batches a step give what one batch gives, cuts included."""
        whole, parts = make(dtype=torch.float64), make(dtype=torch.float64)
        for model, pieces in ((whole, 1), (parts, 3)):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
            compressor = compressor_of(model, optimizer)
            while compressor.steps < STEPS:
                optimizer.zero_grad()
                for x in batch(compressor.steps, dtype=torch.float64).chunk(pieces):
                    (loss_of(model, x) / pieces).backward()
                optimizer.step()
                compressor.step()
        assert parts.n_states == (3, 3)
        same(parts, whole, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("way", ["in training", "trained"])
    def test_a_cut_within_a_window_keeps_what_was_accumulated(self, way):
        """After two of three micro-batches, by a cut that loses nothing: the gradient is that of the small model over all three."""
        model = padded(make(dtype=torch.float64))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        compressor = compressor_of(model, optimizer, rule=5, schedule=Schedule.once(3, 2))
        first, second, third = batch(0, dtype=torch.float64).chunk(3)
        loss_of(model, first).backward()
        compressor.step()
        loss_of(model, second).backward()
        if way == "trained":
            hsv_torch.compress_(model, 5, optimizer=optimizer)
        else:
            assert compressor.step().changed
        loss_of(model, third).backward()
        assert model.n_states == (5, 5)
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        for x in (first, second, third):
            loss_of(model, x).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-10)

    def test_without_gradients_there_are_none_after_it(self):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        loss_of(model, batch(0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor_of(model, optimizer, schedule=Schedule.once(STEPS, 1), rule=3).step()
        assert model.n_states == (3, 3)
        assert all(p.grad is None for p in model.parameters())

    def test_a_frozen_parameter_gets_none(self):
        model = make(n_blocks=1)
        model.blocks[0].layer.theta.requires_grad_(False)
        loss_of(model, batch(0)).backward()
        hsv_torch.compress_(model, 3)
        grads = {name: p.grad for name, p in model.blocks[0].layer.named_parameters()}
        assert grads.pop("theta") is None
        assert all(grad.shape == model.blocks[0].layer.get_parameter(name).shape for name, grad in grads.items())

    def test_a_guard_puts_them_back(self):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        loss_of(model, batch(0)).backward()
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        metric = iter([1.0, 0.0])
        guard = Rollback(lambda: next(metric), max_drop=0.0)
        event = compressor_of(model, optimizer, schedule=Schedule.once(STEPS, 1), rule=3, guard=guard).step()
        assert event.undone
        assert all(torch.equal(before[name], p.grad) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "layer",
    [
        "lru",
        "mamba",
    ],
)
def test_checkpointed_blocks(layer):
    """Blocks whose activations are computed again in the backward pass train as without it, through the cuts."""
    data = {"calibration": [batch(99)]} if layer == "mamba" else {}
    plain, again = make(layer), make(layer)
    for block in again.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    losses = []
    for model in (plain, again):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses.append(train(model, optimizer, compressor_of(model, optimizer, **data)))
    assert again.n_states == (3, 3)
    assert losses[0] == losses[1]
    same(again, plain, rtol=0, atol=0)


def test_drift_of_a_model_in_double_precision():
    """The system that drift is measured from is a copy: parameters in double precision are not cast, and go on changing."""
    model = make(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compressor = compressor_of(model, optimizer, rule=8)
    while compressor.steps < STEPS:
        optimizer.zero_grad()
        loss_of(model, batch(compressor.steps, dtype=torch.float64)).backward()
        optimizer.step()
        compressor.step()
    first, second = (event.layers[0] for event in compressor.history.events)
    change = abs(first.hankel_singular_values - second.hankel_singular_values).max()
    assert change > 1e-3
    assert second.drift.largest_change == pytest.approx(change, rel=1e-9)
    assert second.drift.bound >= change


def test_the_ranking_of_a_model_in_double_precision():
    """The systems that a ranking is compared with are copies, too: nothing settles while values move by more than is allowed."""
    model = make(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ready = hsv_torch.RankingSettles(correlation=0.5, drift=1e-9, every=1)
    compressor = compressor_of(model, optimizer, rule=3, ready=ready, schedule=Schedule.once(STEPS, 2))
    while compressor.steps < STEPS:
        optimizer.zero_grad()
        loss_of(model, batch(compressor.steps, dtype=torch.float64)).backward()
        optimizer.step()
        compressor.step()
    assert model.n_states == (8, 8)
    assert [event.put_off for event in compressor.history.events] == [True, True]
    assert "may have moved" in compressor.history.events[-1].reason


class TestListsOfParameters:
    """Lists that were made before a cut, as for clipping: `event.replaced` has the old and the new parameters."""

    def test_after_a_cut(self):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        compressor = compressor_of(model, optimizer)
        clipped = list(model.parameters())
        while compressor.steps < STEPS:
            optimizer.zero_grad()
            loss_of(model, batch(compressor.steps)).backward()
            expected = nn.utils.get_total_norm([p.grad for p in model.parameters()])
            assert torch.isclose(nn.utils.clip_grad_norm_(clipped, 1e-3), expected)
            assert nn.utils.get_total_norm([p.grad for p in model.parameters()]) < 1.001e-3 < expected
            optimizer.step()
            event = compressor.step()
            if event is not None:
                new_of = dict(event.replaced.values())
                clipped = [new_of.get(p, p) for p in clipped]
        assert all(p is q for p, q in zip(clipped, model.parameters(), strict=True))

    @pytest.mark.parametrize("resumed", [False, True])
    def test_after_one_that_is_undone_some_steps_later(self, resumed):
        def start(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            guard = Rollback(lambda: -float(model.n_states[0] < 8), max_drop=0.0, after_steps=2)
            options = {"schedule": Schedule.once(STEPS, 2), "rule": 3, "state": {"loader": Position()}}
            return optimizer, compressor_of(model, optimizer, guard=guard, **options)

        model = make()
        optimizer, compressor = start(model)
        train(model, optimizer, compressor, steps=1)
        large = list(model.parameters())
        event = compressor.step()
        assert event.pending
        new_of = dict(event.replaced.values())
        held = [new_of.get(p, p) for p in large]
        if resumed:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "compressor": compressor.state_dict()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            model = make()
            optimizer, compressor = start(model)
            compressor.load_state_dict(state["compressor"])
            model.load_state_dict(state["model"])
            held = list(model.parameters())
        assert compressor.step() is None
        event = compressor.step()
        assert event.undone
        assert model.n_states == (8, 8)
        old_of = dict(event.replaced.values())
        assert len(old_of) == 10  # five in each layer
        held = [old_of.get(p, p) for p in held]
        assert all(p is q for p, q in zip(held, model.parameters(), strict=True))
        assert resumed or all(p is q for p, q in zip(held, large, strict=True))
        assert not compressor.history.events[-1].replaced


@pytest.mark.gpu
class TestOnAGpu:
    pytestmark = pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning")

    def captured(self, model, optimizer, x):
        """A training step as one CUDA graph; the memory of `x` is what it reads."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                loss_of(model, x).backward()
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        model.load_state_dict(kept[0])  # the warm-up leaves no trace
        optimizer.load_state_dict(kept[1])
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            loss_of(model, x).backward()
            optimizer.step()
        return graph

    def test_cuda_graphs_are_captured_again_after_a_cut(self):
        models, x = [make().cuda() for _ in range(2)], batch(0).cuda()
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, capturable=True) for model in models]
        for model, optimizer in zip(models, optimizers, strict=True):  # one step, so that there is a state to keep
            loss_of(model, x).backward()
            optimizer.step()
        compressors = [compressor_of(*pair) for pair in zip(models, optimizers, strict=True)]
        plain, replayed = models
        graph, captures = self.captured(replayed, optimizers[1], x), 1
        while compressors[0].steps < STEPS:
            x.copy_(batch(compressors[0].steps))
            optimizers[0].zero_grad()
            loss_of(plain, x).backward()
            optimizers[0].step()
            graph.replay()
            event, _ = compressors[1].step(), compressors[0].step()
            if event is not None:
                graph, captures = self.captured(replayed, optimizers[1], x), captures + 1
        assert captures == 3
        assert replayed.n_states == plain.n_states == (3, 3)
        same(replayed, plain, rtol=1e-2, atol=1e-3)

    def test_scaled_half_precision(self):
        model = make().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        scaler, compressor = torch.amp.GradScaler("cuda"), compressor_of(model, optimizer)
        while compressor.steps < STEPS:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = loss_of(model, batch(compressor.steps).cuda())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            compressor.step()
        assert model.n_states == (3, 3)
        assert all(p.isfinite().all() for p in model.parameters())
