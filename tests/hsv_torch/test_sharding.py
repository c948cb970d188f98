"""Models that `fully_shard` has split over processes: they are cut, undone, saved and loaded as the same model in one process."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import hsv
import hsv_torch
from hsv_torch import InTrainingCompressor, Rollback, Schedule, Sizes
from hsv_torch.distributed import RankError
from tests.hsv_torch.models import batch
from tests.hsv_torch.processes import run

STEPS = 52


class Model(nn.Module):
    """Without batch statistics and dropout: the gradient of a batch is the mean of those of its parts. Layers that scan and one that convolves."""

    def __init__(self, n_states=16):
        super().__init__()
        torch.manual_seed(0)
        options = {"max_phase": 0.5, "dtype": torch.float64}
        self.encoder = nn.Linear(1, 4, dtype=torch.float64)
        self.layers = nn.ModuleList(
            hsv_torch.LRU(4, n_states, mode=mode, **options) for mode in ("scan", "scan", "convolution")
        )
        self.head = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        x = self.encoder(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x.mean(1))


def split(model, size, **options):
    """Two layers on their own, the third with the rest."""
    mesh = init_device_mesh("cpu", (size,))
    for layer in model.layers[:2]:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def data(step, rank, size):
    x, y = batch(step)
    part = 4 // size
    return x[:4].double()[rank * part : (rank + 1) * part], y[:4][rank * part : (rank + 1) * part]


def make(size, *, split_options=None, **options):
    model = Model() if size == 1 else split(Model(), size, **(split_options or {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options = {"rule": hsv.HankelSum(discard=0.2), "schedule": Schedule(STEPS, at=(3, 6))} | options
    return model, optimizer, InTrainingCompressor(model, optimizer, **options)


def train_step(model, optimizer, step, rank, size):
    x, y = data(step, rank, size)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(model, optimizer, compressor, rank, size, steps=STEPS):
    losses, events = [], []
    while compressor.steps < steps:
        losses.append(train_step(model, optimizer, compressor.steps, rank, size))
        event = compressor.step()
        events += [] if event is None else [event]
    return losses, events


def full(tensor):
    if isinstance(tensor, DTensor):
        tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()
    return tensor.detach().clone()


def everything(model, optimizer):
    """Whole parameters and moments by name."""
    found = {name: full(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name}/{key}": full(value) for key, value in optimizer.state[p].items()}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in optimizer.state} == set(held)
    return found


def equal(first, second, **tolerance):
    assert list(first) == list(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.fixture(scope="module")
def of_two():
    """Starting processes takes longest, so that two of them go through everything."""
    return run(
        [
            same_run,
            undone,
            resumed,
            one_fails,
            averages,
            policies,
            half_precision,
            uneven_axis,
            selective,
            waits,
            refused,
        ],
        2,
    )


def same_run(rank, size):
    model, optimizer, compressor = make(size)
    losses, first = train(model, optimizer, compressor, rank, size, steps=3)
    after_the_cut = everything(model, optimizer)
    more, second = train(model, optimizer, compressor, rank, size)
    for event in (*first, *second):
        assert len(event.replaced) == 15
        assert all(isinstance(p, DTensor) == (size > 1) for pair in event.replaced.values() for p in pair)
    for name, (_, new) in second[-1].replaced.items():
        assert model.get_parameter(name) is new
    parts = {name: isinstance(p, DTensor) for name, p in model.named_parameters()}
    sizes = [[record.n_states_after for record in event.layers] for event in (*first, *second)]
    return sizes, losses + more, after_the_cut, everything(model, optimizer), parts


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_they_cut_and_train_as_one_process(size, of_two):
    sizes, losses, after_the_cut, end, _ = same_run(0, 1)
    found = of_two["same_run"] if size == 2 else run([same_run], size)["same_run"]
    assert all(later < earlier < 16 for earlier, later in zip(*sizes, strict=True))
    assert any(n % size for each in sizes for n in each)  # some cannot be divided evenly
    for each in found:
        assert each[0] == sizes
        equal(each[2], after_the_cut, rtol=1e-9, atol=1e-11)
        equal(each[3], end, rtol=1e-9, atol=1e-11)
        assert all(each[4].values())
    mean = torch.tensor([each[1] for each in found], dtype=torch.float64).mean(0)
    torch.testing.assert_close(mean, torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=1e-11)


class Position:
    """A loader that counts."""

    value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def undone(rank, size):
    """A run whose cuts are undone at once, one whose cut is undone two steps later, and one that never cuts."""
    found = []
    for after_steps, offload in ((0, False), (2, True)):
        metric = iter([1.0, 0.0] * 2)
        guard = Rollback(lambda metric=metric: next(metric), max_drop=0.5, after_steps=after_steps, offload=offload)
        options = {"guard": guard, "state": {"loader": Position()}}
        model, optimizer, compressor = make(size, **options)
        before = list(model.parameters())
        _, events = train(model, optimizer, compressor, rank, size, steps=8)
        assert sum(event.undone for event in events) == 2
        assert all(p is q for p, q in zip(model.parameters(), before, strict=True))
        found.append(everything(model, optimizer))
    model, optimizer, compressor = make(size, schedule=Schedule(STEPS, at=(STEPS,)))
    train(model, optimizer, compressor, rank, size, steps=8)
    return [*found, everything(model, optimizer)]


def test_a_cut_that_is_undone_leaves_no_trace(of_two):
    for at_once, later, never in of_two["undone"]:
        equal(at_once, never, rtol=0, atol=0)
        equal(later, never, rtol=0, atol=0)


def resumed(rank, size):
    """Training goes on from a checkpoint as if nothing had happened, also one from between a cut and the decision on it; a plain model loads it too."""
    folder = [None]
    if rank == 0:
        import tempfile

        folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder)
    path = f"{folder[0]}/run.safetensors"
    found = []
    for stop, after_steps in ((4, 0), (5, 3)):

        def start(after_steps=after_steps):
            metric = {0: 1.0}  # the first evaluation; all later ones are bad
            guard = Rollback(lambda: metric.pop(0, 0.0), max_drop=0.0, after_steps=3)
            options = {"guard": guard, "state": {"loader": Position()}} if after_steps else {}
            return make(size, schedule=Schedule(STEPS, at=(3,)), **options)

        model, optimizer, compressor = start()
        train(model, optimizer, compressor, rank, size, steps=stop)
        extra = {"compressor": compressor.state_dict()}
        hsv_torch.save_checkpoint(model, path, optimizer=optimizer, extra=extra)
        at_the_stop = everything(model, optimizer)
        _, events = train(model, optimizer, compressor, rank, size, steps=9)
        assert [event.undone for event in events] == ([True] if after_steps else [])
        end = everything(model, optimizer)

        model, optimizer, compressor = start()
        compressor.load_state_dict(hsv_torch.load_checkpoint(path).extra["compressor"])
        hsv_torch.load_into(model, path, optimizer=optimizer)
        equal(everything(model, optimizer), at_the_stop, rtol=0, atol=0)
        if after_steps:
            compressor.guard.evaluate()  # the one before the cut
        train(model, optimizer, compressor, rank, size, steps=9)
        equal(everything(model, optimizer), end, rtol=0, atol=0)

        plain = Model()
        optimizer = torch.optim.AdamW(plain.parameters())
        hsv_torch.load_into(plain, path, optimizer=optimizer)
        equal(everything(plain, optimizer), at_the_stop, rtol=0, atol=0)
        found.append([layer.n_states for layer in plain.layers])
    with pytest.raises(FileNotFoundError if rank == 0 else RankError, match="there is no folder"):
        hsv_torch.save_checkpoint(model, "nowhere/at/all.safetensors")
    missing = path if rank == 0 else "nowhere.safetensors"
    with pytest.raises((RankError, FileNotFoundError), match="nowhere"):
        hsv_torch.load_into(model, missing)
    return found


def test_checkpoints(of_two):
    for sizes in of_two["resumed"]:
        assert sizes[0] == sizes[1]
        assert all(n < 16 for n in sizes[0])


def one_fails(rank, size):
    """Planning fails in process 0, then a cut of the second layer in process 1; afterwards all train on as if nothing had been tried."""
    model, optimizer, compressor = make(size, rule=8)
    adapter = type(hsv_torch.adapter_of(model.layers[0]))
    plan, apply = adapter.reduce, adapter.apply
    messages = []
    for number in range(8):
        train_step(model, optimizer, number, rank, size)
        if compressor.steps == 2 and rank == 0:
            adapter.reduce = lambda *_: 1 / 0
        if compressor.steps == 5 and rank == 1:
            adapter.apply = lambda self, layer, cut: 1 / 0 if layer is model.layers[1] else apply(self, layer, cut)
        try:
            compressor.step()
        except (RankError, ZeroDivisionError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        adapter.reduce, adapter.apply = plan, apply
    never, same, other = make(size, schedule=Schedule(STEPS, at=(STEPS,)))
    train(never, same, other, rank, size, steps=8)
    equal(everything(model, optimizer), everything(never, same), rtol=0, atol=0)
    return messages, [layer.n_states for layer in model.layers], compressor.done


def test_a_failure_in_one_process_is_one_in_all_and_nothing_hangs(of_two):
    first, second = of_two["one_fails"]
    assert first[0][0].startswith("ZeroDivisionError")
    assert first[0][1].startswith("RankError: process 1 failed: ZeroDivisionError: division by zero (<lambda>")
    assert second[0][0].startswith("RankError: process 0 failed: ZeroDivisionError: division by zero")
    assert second[0][1].startswith("ZeroDivisionError")
    assert first[1] == second[1] == [16, 16, 16]
    assert first[2]


def averages(rank, size):
    """Copies of the model, split and whole, are cut along."""
    model, whole = Model(), Model()
    average = copy.deepcopy(model)
    split(model, size)
    split(average, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"ema": average, "replica": whole}
    compressor = InTrainingCompressor(model, optimizer, rule=[8, 5], schedule=Schedule(STEPS, at=(1, 2)), state=state)
    train(model, optimizer, compressor, rank, size, steps=4)
    with torch.no_grad():
        average(data(0, rank, size)[0])
        average.reshard()
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 0.5)
    return [[layer.n_states for layer in each.layers] for each in (model, average, whole)]


def test_averages_of_the_weights(of_two):
    assert all(sizes == [[5, 5, 5]] * 3 for sizes in of_two["averages"])


def policies(rank, size):
    """What `fully_shard` was told of precision, resharding and offloading holds after a cut."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    precision = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    found = []
    for options in (
        {"mp_policy": precision},
        {"reshard_after_forward": False},
        {"reshard_after_forward": True, "offload_policy": CPUOffloadPolicy(pin_memory=False)},
    ):
        guard = Rollback(lambda: 1.0, max_drop=0.0)  # nothing is undone
        model, optimizer, compressor = make(size, split_options=options, guard=guard)
        seen = []
        model.layers[0].register_forward_pre_hook(
            lambda layer, *_, seen=seen: seen.append((layer.B.dtype, layer.B.shape))
        )
        train(model, optimizer, compressor, rank, size, steps=8)
        unsharded = [not isinstance(layer.B, DTensor) for layer in model.layers]
        with torch.no_grad():
            model(data(0, rank, size)[0])
        kept = [not isinstance(layer.B, DTensor) for layer in model.layers]
        model.reshard()
        found.append((seen[-1][0], seen[-1][1][0], model.layers[0].n_states, unsharded, kept))
    return found


def test_policies_stay(of_two):
    for precision, no_reshard, offload in of_two["policies"]:
        assert precision[0] is torch.float32
        assert no_reshard[0] is offload[0] is torch.float64
        for each in (precision, no_reshard, offload):
            assert each[1] == each[2] < 16
            assert each[3] == [False] * 3
        assert precision[4] == [False, False, True]  # the default: the root is not split again after the forward pass
        assert no_reshard[4] == [True] * 3
        assert offload[4] == [False] * 3


def half_precision(rank, size):
    """The rest of the model in bfloat16, the layers in float32: cuts are made in the precision of the parameters that are trained."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    mesh = init_device_mesh("cpu", (size,))
    model = Model().float()
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(output_dtype=torch.bfloat16))
    fully_shard(model, mesh=mesh, mp_policy=half)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    compressor = InTrainingCompressor(model, optimizer, rule=[8, 5], schedule=Schedule(STEPS, at=(2, 4)))
    seen = []
    model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append((layer.B.dtype, args[0].dtype)))
    while compressor.steps < 6:
        x, y = data(compressor.steps, rank, size)
        loss = nn.functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
    kept = {p.dtype for p in model.parameters()} | {optimizer.state[p]["exp_avg"].dtype for p in model.parameters()}
    return [layer.n_states for layer in model.layers], set(seen), kept, loss.isfinite().item()


def test_half_precision(of_two):
    for sizes, seen, kept, finite in of_two["half_precision"]:
        assert sizes == [5, 5, 5]
        assert seen == {(torch.float32, torch.bfloat16)}
        assert kept == {torch.float32}
        assert finite


def uneven_axis(rank, size):
    """A parameter that is split along its second axis, as `shard_placement_fn` asks, can be cut to multiples only."""
    from torch.distributed.tensor import Shard

    options = {"shard_placement_fn": lambda p: Shard(1) if p.ndim == 3 and p.shape[0] == 4 else None}
    model, optimizer, compressor = make(size, split_options=options, rule=5)
    with pytest.raises(hsv.HsvError, match=r"cannot be split over 2 processes along axis 1.*multiple_of=2"):
        train(model, optimizer, compressor, rank, size, steps=8)
    train_step(model, optimizer, 3, rank, size)
    model, optimizer, compressor = make(size, split_options=options, rule=5, sizes=Sizes(multiple_of=size))
    train(model, optimizer, compressor, rank, size, steps=8)
    placements = {str(layer.C.placements) for layer in model.layers}
    return [layer.n_states for layer in model.layers], placements


def test_the_axis_of_a_split_stays(of_two):
    for sizes, placements in of_two["uneven_axis"]:
        assert sizes == [6, 6, 6]
        assert placements == {"(Shard(dim=1),)"}


def mamba():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4, dtype=torch.float64),
        hsv_torch.Mamba(4, n_states=8, dtype=torch.float64),
        nn.LayerNorm(4, dtype=torch.float64),
    )


def selective(rank, size):
    """Layers whose systems depend on their input: all processes run calibration data, the first one's counts."""
    batches = [torch.randn(2, 12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    mine = batches[:2] if rank == 0 else batches[2:]
    sizes = []
    model = fully_shard(mamba(), mesh=init_device_mesh("cpu", (size,)))
    alone = mamba()
    for each in (model, alone):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        calibration = mine if each is model else batches[:2]
        compressor = InTrainingCompressor(
            each, optimizer, rule=3, schedule=Schedule(4, at=(1,)), calibration=calibration
        )
        assert compressor.step().changed
        sizes.append(each[1].n_states)
    equal(
        {name: full(p) for name, p in model.named_parameters()},
        {name: p.detach() for name, p in alone.named_parameters()},
        rtol=1e-9,
        atol=1e-12,
    )
    model(batches[0]).sum().backward()
    model = fully_shard(mamba(), mesh=init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(4, at=(1,))
    compressor = InTrainingCompressor(model, optimizer, rule=3, schedule=schedule, calibration=batches[: 1 + rank])
    with pytest.raises(hsv.HsvError, match="more batches in some processes than in others"):
        compressor.step()
    model(batches[0]).sum().backward()
    return sizes


def test_selective_layers(of_two):
    assert of_two["selective"] == [[3, 3], [3, 3]]


def waits(rank, size):
    """An attempt that waits until the ranking has settled: each process gives its part of the systems."""
    ready = hsv_torch.RankingSettles(correlation=0.5, every=2)
    model, optimizer, compressor = make(size, ready=ready, rule=8, schedule=Schedule.once(STEPS, 2))
    _, events = train(model, optimizer, compressor, rank, size, steps=8)
    return [(event.step, event.put_off) for event in events]


def test_attempts_that_wait(of_two):
    assert of_two["waits"][0] == of_two["waits"][1] == waits(0, 1)
    assert of_two["waits"][0][0] == (2, True)


def refused(rank, size):
    """What a model that is split cannot have."""
    messages = []
    mesh = init_device_mesh("cpu", (size,))
    model = Model()
    for name in ("weight", "bias"):
        whole = getattr(model.head, name).detach()
        from torch.distributed.tensor import Replicate, distribute_tensor

        setattr(model.head, name, nn.Parameter(distribute_tensor(whole, mesh, [Replicate()])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model_split, _, _ = make(size)
    timed = hsv_torch.Budget(seconds=1.0, measure=lambda model: 1.0)
    accumulated, other, compressor = make(size, schedule=Schedule.once(STEPS, 1))
    accumulated.set_requires_gradient_sync(False)
    nn.functional.cross_entropy(accumulated(data(0, rank, size)[0]), data(0, rank, size)[1]).backward()
    for attempt in (
        lambda: InTrainingCompressor(model, optimizer, rule=8, schedule=Schedule.once(4, 1)),
        lambda: make(size, rule=timed),
        lambda: InTrainingCompressor(
            plain := Model(),
            torch.optim.SGD(plain.parameters()),
            schedule=Schedule.once(4, 1),
            state={"ema": model_split},
        ),
        compressor.step,
        lambda: hsv_torch.compress_(model_split, 4),
    ):
        with pytest.raises(hsv.HsvError) as error:
            attempt()
        messages.append(str(error.value))
    accumulated.set_requires_gradient_sync(True)
    train_step(accumulated, other, 0, rank, size)
    return messages


def test_what_is_refused(of_two):
    for other_split, seconds, copies, micro_batches, at_once in of_two["refused"]:
        assert "'head.weight' is split over processes by something other than fully_shard" in other_split
        assert "a Budget in seconds measures copies" in seconds
        assert "'ema' is split over processes, and the model is not" in copies
        assert "between micro-batches" in micro_batches
        assert at_once.startswith(
            "the model's parameters are split over processes (fully_shard), which compress_ cannot cut: cut before"
        )


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning")
@pytest.mark.parametrize("offload", [False, True])
def test_on_a_gpu(offload):
    """Layers that scan, parameters on the device or offloaded: cut, undone and cut again as a plain model."""
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cuda", (1,))
        ends = []
        for is_split in (True, False):
            model = Model().float().cuda()
            for layer in model.layers:
                layer.mode = "scan"
            if is_split:
                policy = CPUOffloadPolicy() if offload else OffloadPolicy()
                for part in (*model.layers, model):
                    fully_shard(part, mesh=mesh, offload_policy=policy)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            metric = iter([1.0, 0.0, 1.0, 1.0])
            guard = Rollback(lambda metric=metric: next(metric), max_drop=0.5)
            compressor = InTrainingCompressor(model, optimizer, rule=7, schedule=Schedule(9, at=(2, 4)), guard=guard)
            while compressor.steps < 8:
                x, y = (part.cuda() for part in data(compressor.steps, 0, 1))
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x.float()), y).backward()
                optimizer.step()
                compressor.step()
            assert [event.undone for event in compressor.history.events] == [True, False]
            ends.append({name: value.cpu() for name, value in everything(model, optimizer).items()})
        equal(*ends, rtol=1e-3, atol=1e-4)
    finally:
        distributed.destroy_process_group()
