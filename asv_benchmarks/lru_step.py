"""One LRU training step beside the same step with the recurrence in plain PyTorch, measured in turn in one run.

``python -m asv_benchmarks.lru_step [--threads 2] [--rounds 30] [--configuration smnist|digits|scifar] [--cpu-time]``

Forward, cross entropy, backward and AdamW of a classifier: Linear(1, H), blocks of LayerNorm, LRU, GELU, dropout, GLU,
dropout, residual, then mean over time, Linear(H, 10). Every variant is the same model with the same parameters; "no recurrence" is
the step without any and bounds from below what a variant can reach.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import hsv_torch
from asv_benchmarks.scan_peers import PLAIN

# name: (length, channels, batch, blocks, numbers of states)
CONFIGURATIONS = {
    "smnist": (784, 8, 50, 1, (256, 28, 13)),
    "digits": (64, 8, 50, 1, (64, 13)),
    "scifar": (1024, 512, 4, 6, (384, 92)),
}
OURS = ("hsv_torch auto", "hsv_torch scan", "hsv_torch convolution")


def feasible(variant: str, width: int) -> bool:
    """Whether a variant fits in memory: a convolution's kernel has H x H x L numbers a block."""
    return "convolution" not in variant or width < 64


class PlainLRU(hsv_torch.LRU):
    """The layer with another way of running its recurrence."""

    recurrence: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.D * x
        return y if self.recurrence is None else y + self.recurrence(x, *self._system())


class Block(nn.Module):
    """A layer with what stands around it in the published networks."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.layer, self.glu = nn.LayerNorm(width), layer, nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(nn.functional.gelu(self.layer(self.norm(x))))
        return x + self.dropout(nn.functional.glu(self.glu(y), dim=-1))


class Classifier(nn.Module):
    """The network of the published configurations."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(1, width), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*(Block(layer, width) for layer in layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.encoder(x)).mean(1))


def training_step(
    variant: str, *, length: int, width: int, batch: int, n_states: int, blocks: int = 1
) -> Callable[[], None]:
    """Return a function that does one step on fixed random data."""
    torch.manual_seed(0)
    kind, _, mode = variant.partition(" ")

    def layer() -> nn.Module:
        if kind == "hsv_torch":
            return hsv_torch.LRU(width, n_states, mode=mode)
        plain = PlainLRU(width, n_states)
        plain.recurrence = PLAIN.get(variant)
        return plain

    model = Classifier([layer() for _ in range(blocks)], width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)
    x, target = torch.randn(batch, length, 1), torch.randint(10, (batch,))

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step, the variants in turn, after three steps that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 3):
        for name, step in steps.items():
            begin = clock()
            step()
            if k >= 3:
                times[name].append(clock() - begin)
    return times


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.lru_step", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--configuration", choices=CONFIGURATIONS, action="append")
    parser.add_argument(
        "--fastest-only", action="store_true", help="leave out the loop and the associative scan, which are slow"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="for a busy machine: one thread, time on a core, not on the wall"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        arguments.threads = 1
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; milliseconds: median (least)"
    )
    for name in arguments.configuration or CONFIGURATIONS:
        length, width, batch, blocks, sizes = CONFIGURATIONS[name]
        for n_states in sizes:
            plain = [way for way in PLAIN if feasible(way, width)]
            if arguments.fastest_only:
                plain = plain[:1]
            variants = [*(variant for variant in OURS if feasible(variant, width)), *plain, "no recurrence"]
            size = {"length": length, "width": width, "batch": batch, "n_states": n_states, "blocks": blocks}
            times = measure({v: training_step(v, **size) for v in variants}, arguments.rounds, clock)
            chosen = hsv_torch.LRU(width, n_states).chosen_mode(batch, length)
            print(f"\n{name}: L {length}, H {width}, batch {batch}, {n_states} states; auto is the {chosen}")
            best = min((v for v in plain), key=lambda v: statistics.median(times[v]))
            for variant in variants:
                t = times[variant]
                ratios = statistics.median(a / b for a, b in zip(t, times[best], strict=True))
                print(
                    f"  {variant:24s} {1e3 * statistics.median(t):8.2f} ({1e3 * min(t):7.2f})   {ratios:5.2f} of {best}"
                )


if __name__ == "__main__":
    main()
