"""Several processes, as torchrun starts them, on the CPU: they cut alike, fail together, and train what one process with the whole batch trains."""

import os
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hsv
import hsv_torch
from hsv_torch import InTrainingCompressor, Rollback, Schedule
from hsv_torch.distributed import RankError
from tests.hsv_torch.models import batch
from tests.hsv_torch.processes import free_port, run

STEPS = 60


class Model(nn.Module):
    """Without batch statistics and dropout: the gradient of a batch is the mean of those of its parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(1, 4)
        self.layers = nn.ModuleList(hsv_torch.LRU(4, 16, max_phase=0.5) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.encoder(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x.mean(1))


def data(step, rank, size):
    x, y = batch(step)
    x, y = x[:4], y[:4]
    part = 4 // size
    return x[rank * part : (rank + 1) * part], y[rank * part : (rank + 1) * part]


def make(rank, size, **options):
    model = Model()
    trained = DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options.setdefault("rule", hsv.HankelSum(discard=0.2))
    compressor = InTrainingCompressor(trained, optimizer, schedule=Schedule(STEPS, at=(3, 6)), **options)
    return model, trained, optimizer, compressor


def train(rank, size, steps=STEPS, **options):
    model, trained, optimizer, compressor = make(rank, size, **options)
    losses = []
    for step in range(steps):
        x, y = data(step, rank, size)
        loss = nn.functional.cross_entropy(trained(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
        losses.append(loss.item())
    return model, compressor, losses


@pytest.fixture(scope="module")
def of_two():
    """Starting processes takes longest, so that two of them go through everything."""
    return run([same_cuts, margins, one_metric_for_all, one_fails, wrapper_keeps_its_options], 2)


def same_cuts(rank, size):
    model, compressor, losses = train(rank, size)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return (
        [layer.n_states for layer in model.layers],
        flat.tolist(),
        losses,
        [e.step for e in compressor.history.events],
    )


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_they_cut_alike_and_train_what_one_process_trains(size, of_two):
    alone = same_cuts(0, 1)
    found = (of_two if size == 2 else run([same_cuts], size))["same_cuts"]
    sizes, parameters, _, steps = alone
    assert all(n < 16 for n in sizes)
    for each in found:
        assert each[0] == sizes
        assert each[1] == found[0][1]  # bit for bit
        assert each[3] == steps == [3, 6]
    mean = torch.tensor([each[2] for each in found]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(alone[2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found[0][1]), torch.tensor(parameters), rtol=1e-3, atol=1e-4)


def margins(rank, size):
    """Margin and choice of each layer at each attempt, for several rules."""
    found = []
    for discard in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        _, compressor, _ = train(rank, size, steps=7, rule=hsv.HankelSum(discard=discard))
        found.append([[(r.margin, r.n_states_chosen) for r in e.layers] for e in compressor.history.events])
    return found


def test_they_choose_alike_wherever_the_margin_is_above_rounding(of_two):
    """In both directions: the margin that either of them reports is enough to know the other's choice."""
    compared = 0
    for alone, together in zip(margins(0, 1), of_two["margins"][0], strict=True):
        for mine, theirs in zip(alone, together, strict=True):
            for (margin, chosen), (other_margin, other_chosen) in zip(mine, theirs, strict=True):
                if max(margin, other_margin) > 1e-4:
                    assert chosen == other_chosen
                    assert margin == pytest.approx(other_margin, abs=1e-4)
                    compared += 1
            if [chosen for _, chosen in mine] != [chosen for _, chosen in theirs]:
                break  # two models from here on
    assert compared > 20
    assert of_two["margins"][0] == of_two["margins"][1]


def one_metric_for_all(rank, size):
    # before, after: the first cut stays by the mean, though it would not in process 1; the second does not, though it would in process 0
    mine = iter([[0.5, 0.9, 0.5, 0.6], [0.5, 0.3, 0.5, 0.1]][rank])
    guard = Rollback(lambda: next(mine), max_drop=0.0)
    model, compressor, _ = train(rank, size, steps=8, guard=guard)
    events = compressor.history.events
    return [e.undone for e in events], [e.metric_after for e in events], [n.n_states for n in model.layers]


def test_the_guard_decides_by_the_mean(of_two):
    first, second = of_two["one_metric_for_all"]
    assert first == second
    assert first[0] == [False, True]
    assert first[1] == pytest.approx([0.6, 0.35])


def one_fails(rank, size):
    """Planning fails in process 0, then a cut in process 1; afterwards all train on as if nothing had been tried."""
    model, trained, optimizer, compressor = make(rank, size, rule=8)

    def step(number):
        x, y = data(number, rank, size)
        loss = nn.functional.cross_entropy(trained(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    messages = []
    adapter = type(hsv_torch.adapter_of(model.layers[0]))
    plan, apply = adapter.reduce, adapter.apply
    for number in range(8):
        step(number)
        if compressor.steps == 2 and rank == 0:
            adapter.reduce = lambda *_: 1 / 0
        if compressor.steps == 5 and rank == 1:
            adapter.apply = lambda *_: 1 / 0
        try:
            compressor.step()
        except (RankError, ZeroDivisionError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        adapter.reduce, adapter.apply = plan, apply
    step(8)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return messages, [layer.n_states for layer in model.layers], flat.tolist(), compressor.done


def test_a_failure_in_one_process_is_one_in_all_and_nothing_hangs(of_two):
    first, second = of_two["one_fails"]
    assert first[0][0].startswith("ZeroDivisionError")
    assert first[0][1].startswith("RankError: process 1 failed: ZeroDivisionError: division by zero (<lambda>")
    assert second[0][0].startswith("RankError: process 0 failed: ZeroDivisionError: division by zero")
    assert second[0][1].startswith("ZeroDivisionError")
    assert first[1] == second[1] == [16, 16]
    assert first[2] == second[2]
    assert first[3]


def wrapper_keeps_its_options(rank, size):
    model = Model()
    trained = DistributedDataParallel(model, bucket_cap_mb=3, gradient_as_bucket_view=True, forward_sync_buffers=False)
    calls, reduced = [], []
    trained.register_forward_hook(lambda *_: calls.append(1))

    def hook(state, bucket):
        reduced.append(sum(p.numel() for p in bucket.parameters()))
        distributed.all_reduce(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer() / size)
        return done

    trained.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compressor = InTrainingCompressor(trained, optimizer, rule=4, schedule=Schedule(4, at=(1,)))
    trained.eval()
    for step in range(3):
        x, y = data(step, rank, size)
        nn.functional.cross_entropy(trained(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        compressor.step()
    options = trained.bucket_bytes_cap, trained.gradient_as_bucket_view, trained.forward_sync_buffers, trained.training
    return options, len(calls), reduced[0], reduced[-1], sum(p.numel() for p in model.parameters())


def test_the_wrapper_keeps_its_options_and_hooks(of_two):
    for options, calls, first, last, now in of_two["wrapper_keeps_its_options"]:
        assert options == (3 * 2**20, True, False, False)
        assert calls == 3
        assert first > last == now


def _dies(rank, size, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=20))
    model, _, _, compressor = make(rank, size, rule=8)
    if rank == 1:
        adapter = type(hsv_torch.adapter_of(model.layers[0]))
        adapter.apply = lambda *_: os._exit(9)
    try:
        while compressor.step() is None:
            pass
    except RankError as error:
        results.put((str(error), [layer.n_states for layer in model.layers]))
    os._exit(0)


@pytest.mark.slow
def test_a_process_that_dies_in_a_cut_leaves_no_other_waiting():
    context = torch.multiprocessing.get_context("spawn")
    results, port = context.SimpleQueue(), free_port()
    processes = [context.Process(target=_dies, args=(rank, 2, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 9]
    message, sizes = results.get()
    assert message.startswith("another process is gone, or did not answer")
    assert sizes == [16, 16]


def test_one_process_needs_no_group():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compressor = InTrainingCompressor(model, optimizer, rule=4, schedule=Schedule(4, at=(1,)))
    assert compressor.step().changed
    assert not distributed.is_initialized()
