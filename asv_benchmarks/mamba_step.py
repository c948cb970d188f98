"""One training step of a small Mamba beside mambapy and Hugging Face's slow path, measured in turn in one run.

``python -m asv_benchmarks.mamba_step [--threads 2] [--rounds 15] [--states 128 --states 16] [--with-slow] [--cpu-time]``

Forward, mean square, backward and AdamW of residual blocks with RMS normalisation: 128 channels, 2 layers, 256 steps, 4 sequences. "no scan" is our
step with the scan replaced by one product an element, and bounds from below what a faster scan could reach.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import hsv_torch
from asv_benchmarks import sizes

WIDTH, LAYERS, LENGTH, BATCH = 128, 2, 256, 4
STATES = (128, 64, 16, 12)


class NoScan(hsv_torch.Mamba):
    """The layer without its recurrence; every gradient is there all the same."""

    def _scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return u * delta + (B * C * self.A_log[:1].exp()).sum(-1, keepdim=True)


class Blocks(nn.Module):
    """Layers of ours, each after a normalisation and beside a residual connection, as mambapy and Hugging Face have them."""

    def __init__(self, layer: type[hsv_torch.Mamba], n_states: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(WIDTH, n_states) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


class HuggingFace(nn.Module):
    """Blocks of Hugging Face transformers, without their kernels: what a CPU has."""

    def __init__(self, n_states: int) -> None:
        super().__init__()
        from transformers import MambaConfig, MambaModel

        config = MambaConfig(
            vocab_size=2, hidden_size=WIDTH, state_size=n_states, num_hidden_layers=LAYERS, use_cache=False
        )
        self.model = MambaModel(config)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(inputs_embeds=x).last_hidden_state
        return y


def model(library: str, n_states: int) -> nn.Module:
    """Return the blocks of a library."""
    if library == "mambapy":
        from mambapy.mamba import Mamba, MambaConfig

        return Mamba(MambaConfig(d_model=WIDTH, n_layers=LAYERS, d_state=n_states))
    if library == "transformers":
        return HuggingFace(n_states)
    return Blocks(NoScan if library == "no scan" else hsv_torch.Mamba, n_states)


LIBRARIES = ("hsv_torch", "no scan", "mambapy")
SLOW = "transformers"


def training_step(library: str, n_states: int) -> Callable[[], None]:
    """Return a function that does one step on fixed random data."""
    torch.manual_seed(0)
    blocks = model(library, n_states)
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=1e-3)
    x = torch.randn(BATCH, LENGTH, WIDTH)

    def step() -> None:
        blocks(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class MambaStep:
    """What does one training step of a small Mamba take on the CPU, beside mambapy?"""

    params = (sizes([128, 12], [64, 16]), list(LIBRARIES))
    param_names = ("states", "library")
    timeout = 300

    def setup(self, states, library):
        self.step = training_step(library, states)
        self.step()

    def time_step(self, states, library):
        self.step()

    def peakmem_step(self, states, library):
        self.step()


def main() -> None:
    """Print milliseconds a step, and ratios to ours in the same round."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.mamba_step", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--states", type=int, action="append", help=f"{', '.join(map(str, STATES))} unless given")
    parser.add_argument("--with-slow", action="store_true", help="Hugging Face's slow path too: seconds a step")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads together, for a machine that is busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    names = [*(LIBRARIES[:2] if options.ours_only else LIBRARIES), *((SLOW,) if options.with_slow else ())]
    # All sizes in every round, so that ratios between sizes are of the same minutes.
    steps = {(n, name): training_step(name, n) for n in options.states or STATES for name in names}
    times: dict[tuple[int, str], list[float]] = {key: [] for key in steps}
    for k in range(options.rounds + 2):
        for key, step in steps.items():
            if key[1] == SLOW and k >= options.rounds:  # no rounds that are not counted
                continue
            begin = clock()
            step()
            if k >= 2 or key[1] == SLOW:
                times[key].append(1e3 * (clock() - begin))
    print(f"{options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {clock.__name__}")
    print(
        "states  library         median ms   least ms   median of ratios to hsv_torch, to hsv_torch with the fewest states"
    )
    fewest = min(n for n, _ in steps)
    for (n, name), t in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(t, times[other], strict=False))
            for other in ((n, "hsv_torch"), (fewest, "hsv_torch"))
        ]
        print(f"{n:6d}  {name:14s} {statistics.median(t):10.2f} {min(t):10.2f} {ratios[0]:10.2f} {ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
