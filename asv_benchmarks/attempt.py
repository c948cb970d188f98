"""What compression costs a training run: a call between attempts, an attempt, and an attempt under a guard.

``python -m asv_benchmarks.attempt [--threads 2] [--repeats 5] [--blocks 6] [--width 512] [--states 384] [--keep 96]``

The call between attempts stands beside a training step of a small classifier of digits. An attempt is measured on a model that has made a training
step with AdamW, so that there are moments to carry: planning, new parameters, moments; under the guard also the snapshot, and not its evaluations. The second
attempt, on what the first has left, measures drift too. Last come two attempts that find that nothing is worth cutting.
"""

import argparse
import os
import statistics
import time

import torch
from torch import nn

import hsv
import hsv_torch
from asv_benchmarks.lru_step import CONFIGURATIONS, Classifier, training_step


def idle_seconds(calls: int = 100_000) -> float:
    """Seconds of a call of ``compressor.step()`` between attempts."""
    model = nn.Sequential(hsv_torch.LRU(8, 13))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = hsv_torch.Schedule.once(10 * calls, 10 * calls)
    compressor = hsv_torch.InTrainingCompressor(model, optimizer, schedule=schedule)
    begin = time.perf_counter()
    for _ in range(calls):
        compressor.step()
    return (time.perf_counter() - begin) / calls


def step_seconds(rounds: int = 50) -> float:
    """Median seconds of a training step of the classifier of digits at the size that its cuts leave."""
    length, width, batch, blocks, sizes = CONFIGURATIONS["digits"]
    step = training_step("hsv_torch auto", length=length, width=width, batch=batch, n_states=sizes[-1], blocks=blocks)
    times = []
    for _ in range(rounds + 3):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def attempts(blocks: int, width: int, states: int, keep: int | None, *, guarded: bool = False) -> list[float]:
    """Seconds of two attempts on a fresh model with moments, to `keep` states and to half of them; None: by a rule that keeps nearly all twice."""
    torch.manual_seed(0)
    model = Classifier([hsv_torch.LRU(width, states) for _ in range(blocks)], width)
    optimizer = torch.optim.AdamW(model.parameters())
    compressor = hsv_torch.InTrainingCompressor(
        model,
        optimizer,
        rule=hsv.HankelSum(discard=1e-3) if keep is None else [hsv.Order(keep), hsv.Order(keep // 2)],
        schedule=hsv_torch.Schedule(10, at=(1, 2)),
        guard=hsv_torch.Rollback(lambda: 1.0, max_drop=0.0) if guarded else None,
    )
    times = []
    for _ in compressor.schedule.steps:
        model(torch.randn(1, 32, 1)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        begin = time.perf_counter()
        event = compressor.step()
        seconds = time.perf_counter() - begin
        assert event is not None
        assert all(record.outcome == ("unchanged" if keep is None else "cut") for record in event.layers)
        times.append(seconds - event.evaluation_seconds)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.attempt", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--states", type=int, default=384)
    parser.add_argument("--keep", type=int, default=96, help="states that the attempt keeps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    idle, step = statistics.median(idle_seconds() for _ in range(3)), step_seconds()
    print(
        f"a call between attempts: {1e9 * idle:.0f} ns, {100 * idle / step:.3f} % of a step of {1e3 * step:.2f} ms (digits, 13 states)"
    )
    size, keep = (arguments.blocks, arguments.width, arguments.states), arguments.keep
    print(f"an attempt on {size[0]} layers with H = {size[1]}, AdamW; seconds: median (least)")
    attempts(*size, keep, guarded=False)  # compiles
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(arguments.repeats):
        for guarded, found in times.items():
            found.append(attempts(*size, keep, guarded=guarded))
    unchanged = [attempts(*size, None) for _ in range(arguments.repeats)]
    for guarded, found in times.items():
        name = "with the guard's snapshot" if guarded else "without a guard"
        first, second = zip(*found, strict=True)
        print(
            f"  {name:26s} {size[2]} to {keep} states: {statistics.median(first):.3f} ({min(first):.3f})   "
            f"{keep} to {keep // 2}: {statistics.median(second):.3f} ({min(second):.3f})"
        )
    first, second = zip(*unchanged, strict=True)
    print(
        f"  {'where nothing is cut':26s} first: {statistics.median(first):.3f} ({min(first):.3f})   "
        f"second, with drift: {statistics.median(second):.3f} ({min(second):.3f})"
    )


if __name__ == "__main__":
    main()
