"""The scans on a GPU: what each takes, how that follows the number of states, and which share of the memory's bandwidth it has.

``python -m asv_benchmarks.scan_gpu [--rounds 20] [--write]`` on a CUDA device; ``--write`` puts the figures into ``docs/data/scan_gpu.json``
with the device, the date and the commit. ``--quick`` runs everything once at tiny sizes, on the CPU where there is no GPU, and measures nothing.

mamba_ssm and flash-linear-attention are measured in turn with ours where they can be imported.
"""

import argparse
import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hsv_torch
from hsv_torch.scan import choose_mode, diagonal_state_space, gated_linear_attention, linear_scan, selective_scan

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "data" / "scan_gpu.json"
STATES = (12, 16, 64, 128)

Row = dict[str, Any]
Times = dict[str, list[float]]


class Clock:
    """Milliseconds of calls on a device, after the work that is still on its way."""

    def __init__(self, device: str, rounds: int) -> None:
        self.on_gpu = device == "cuda"
        self.rounds = rounds

    def once(self, compute: Callable[[], object]) -> float:
        if not self.on_gpu:
            begin = time.perf_counter()
            compute()
            return 1e3 * (time.perf_counter() - begin)
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin_event.record()
        compute()
        end_event.record()
        torch.cuda.synchronize()
        return begin_event.elapsed_time(end_event)

    def in_turn(self, runs: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Medians, after three rounds that compile and warm up; the runs take turns."""
        times: Times = {name: [] for name in runs}
        for k in range(self.rounds + 3):
            for name, run in runs.items():
                elapsed = self.once(run)
                if k >= min(3, self.rounds):
                    times[name].append(elapsed)
        return {name: statistics.median(values) for name, values in times.items()}


def passes(function: Callable[..., Tensor], arguments: list[Tensor]) -> dict[str, Callable[[], object]]:
    """A forward pass without gradients, and a forward and a backward pass."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*arguments)

    weight = torch.randn_like(forward())
    return {
        "forward": forward,
        "forward and backward": lambda: torch.autograd.grad(function(*arguments), arguments, weight),
    }


def leaves(*tensors: Tensor) -> list[Tensor]:
    """Arguments that gradients are asked for."""
    return [t.detach().requires_grad_() for t in tensors]


def copy_bandwidth(clock: Clock, device: str, quick: bool) -> float:
    """Bytes read and written in a nanosecond by a copy of 1 GiB."""
    source = torch.randn(2**10 if quick else 2**28, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / clock.in_turn({"copy": lambda: target.copy_(source)})["copy"] / 1e6


def linear_rows(clock: Clock, device: str, quick: bool, bandwidth: float) -> Iterator[Row]:
    """The linear scan, and its share of the copy's bandwidth: forward two passes through memory, backward three more."""
    shapes = [(2, 50, 4)] if quick else [(64, 2048, 1024), (8, 65536, 256), (1, 262144, 64)]
    for batch, length, n in shapes:
        for dtype, varying in ((torch.complex64, False), (torch.float32, False), (torch.float32, True)):
            a = 0.9 * torch.rand((batch, length, n) if varying else (n,), device=device).to(dtype)
            u = torch.randn(batch, length, n, device=device, dtype=dtype)
            times = clock.in_turn(passes(linear_scan, leaves(a, u)))
            signal = u.numel() * u.element_size()
            least = {
                "forward": (3 if varying else 2) * signal,
                "forward and backward": (8 if varying else 5) * signal,
            }
            for name, value in times.items():
                yield {
                    "scan": "linear",
                    "sizes": [batch, length, n],
                    "dtype": str(dtype).removeprefix("torch."),
                    "varying": varying,
                    "pass": name,
                    "library": "hsv_torch",
                    "ms": value,
                    "share of copy": least[name] / value / 1e6 / bandwidth,
                }


def selective_libraries() -> dict[str, Callable[..., Tensor]]:
    """Ours, and mamba_ssm's kernel if it is there."""
    libraries: dict[str, Callable[..., Tensor]] = {"hsv_torch": selective_scan}
    if importlib.util.find_spec("mamba_ssm") is not None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        libraries["mamba_ssm"] = lambda x, delta, A, B, C: selective_scan_fn(x.mT, delta.mT, A, B.mT, C.mT).mT
    return libraries


def attention_libraries(n: int, per_key: bool) -> dict[str, Callable[..., Tensor]]:
    """Ours, and flash-linear-attention's kernel if it is there and takes this number of keys: a power of two from 16 on."""
    libraries: dict[str, Callable[..., Tensor]] = {"hsv_torch": gated_linear_attention}
    if importlib.util.find_spec("fla") is not None and n >= 16 and n & (n - 1) == 0:
        from fla.ops.gla import chunk_gla
        from fla.ops.simple_gla import chunk_simple_gla

        peer = chunk_gla if per_key else chunk_simple_gla
        libraries["flash-linear-attention"] = lambda q, k, v, g: peer(q, k, v, g, scale=1.0)[0]
    return libraries


def compared(clock: Clock, libraries: dict[str, Callable[..., Tensor]], arguments: list[Tensor], row: Row) -> list[Row]:
    """Every library on the same arguments, in turn."""
    runs = {
        (library, name): run
        for library, function in libraries.items()
        for name, run in passes(function, arguments).items()
    }
    times = clock.in_turn({" ".join(key): run for key, run in runs.items()})
    return [row | {"library": key[0], "pass": key[1], "ms": times[" ".join(key)]} for key in runs]


def selective_rows(clock: Clock, device: str, quick: bool) -> Iterator[Row]:
    """Mamba's scan, at the sizes of a model of 130 million parameters, and of a small one."""
    shapes = [(1, 10, 8)] if quick else [(8, 2048, 1536), (4, 256, 256)]
    for batch, length, d in shapes:
        for n in (2, 3) if quick else STATES:
            x, noise = (torch.randn(batch, length, d, device=device) for _ in range(2))
            B, C = (torch.randn(batch, length, n, device=device) for _ in range(2))
            A = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
            arguments = leaves(x, 0.01 * (noise + 1).exp(), A, B, C)
            row = {"scan": "selective", "sizes": [batch, length, d], "states": n, "dtype": "float32"}
            for result in compared(clock, selective_libraries(), arguments, row):
                steps = batch * length * d * n
                yield result | {"steps of a state in a nanosecond": steps / result["ms"] / 1e6}


def attention_rows(clock: Clock, device: str, quick: bool) -> Iterator[Row]:
    """Mamba-2's recurrence and gated linear attention, heads of 64 values, in float32 and in TensorFloat-32."""
    batch, length, heads, p = (1, 10, 2, 4) if quick else (8, 2048, 24, 64)
    for n in (2, 3) if quick else STATES:
        for per_key in (False, True):
            q, k = (torch.randn(batch, length, heads, n, device=device) / n**0.25 for _ in range(2))
            v = torch.randn(batch, length, heads, p, device=device)
            rate = torch.randn(*((batch, length, heads, n) if per_key else (batch, length, heads)), device=device)
            arguments = leaves(q, k, v, nn.functional.logsigmoid(rate + 2))
            for precision in ("ieee", "tf32"):
                before = torch.backends.cuda.matmul.fp32_precision
                torch.backends.cuda.matmul.fp32_precision = precision
                try:
                    row = {"scan": "attention", "sizes": [batch, length, heads, p], "states": n, "per key": per_key}
                    yield from compared(
                        clock, attention_libraries(n, per_key), arguments, row | {"dtype": f"float32, {precision}"}
                    )
                finally:
                    torch.backends.cuda.matmul.fp32_precision = before


def diagonal_rows(clock: Clock, device: str, quick: bool) -> Iterator[Row]:
    """Scan beside convolution, and what the rule would have chosen: what its constants are to be fitted to."""
    shapes = [(2, 20, 3)] if quick else [(50, 784, 8), (16, 1024, 128), (4, 1024, 512), (8, 4096, 16), (1, 16384, 64)]
    for batch, length, channels in shapes:
        for n in (2, 3) if quick else (12, 28, 92, 256, 384):
            x = torch.randn(batch, length, channels, device=device)
            poles = torch.complex(-0.05 * torch.rand(n), 6.28 * torch.rand(n)).to(device)
            B, C = (
                torch.randn(s, device=device, dtype=torch.complex64) / n**0.5 for s in ((n, channels), (channels, n))
            )
            arguments = leaves(x, poles, B, C)
            runs = {
                mode: passes(lambda *t, mode=mode: diagonal_state_space(*t, mode=mode), arguments)[
                    "forward and backward"
                ]
                for mode in ("scan", "convolution")
            }
            sizes = {"batch": batch, "length": length, "n_inputs": channels, "n_outputs": channels}
            yield {
                "scan": "diagonal",
                "sizes": [batch, length, channels],
                "states": n,
                "pass": "forward and backward",
                "library": "hsv_torch",
                **{f"{mode} ms": value for mode, value in clock.in_turn(runs).items()},
                "chosen": choose_mode(**sizes, n_states=n, device=device),
            }


class Blocks(nn.Module):
    """Residual Mamba blocks with RMS normalisation."""

    def __init__(self, width: int, n_states: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(hsv_torch.Mamba(width, n_states) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


def training_rows(clock: Clock, device: str, quick: bool) -> Iterator[Row]:
    """A training step of a Mamba (forward, mean square, backward, AdamW), and how much quicker it is than with 128 states."""
    shapes = [(1, 10, 8, 1)] if quick else [(8, 2048, 768, 4), (4, 256, 128, 2)]
    for batch, length, width, layers in shapes:
        steps = {}
        for n in (2, 3) if quick else STATES:
            torch.manual_seed(0)
            model = Blocks(width, n, layers).to(device)
            steps[n] = training_step(model, torch.randn(batch, length, width, device=device))
        times = clock.in_turn({str(n): step for n, step in steps.items()})
        largest = times[str(max(steps))]
        for n in steps:
            yield {
                "scan": "Mamba training step",
                "sizes": [batch, length, width, layers],
                "states": n,
                "library": "hsv_torch",
                "pass": "training step",
                "ms": times[str(n)],
                f"quicker than with {max(steps)} states": largest / times[str(n)],
            }


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that does one step on fixed random data."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=x.is_cuda)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def main() -> int:
    """Print a table, and write it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.scan_gpu", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny sizes once, on any device: does it run?")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--only", help="linear, selective, attention, diagonal or training")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.quick:
        parser.error("no CUDA device: torch.cuda.is_available() is False; `--quick` tries the script on the CPU")
    if options.quick and options.write:
        parser.error("`--quick` measures nothing that is worth writing")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = Clock(device, 1 if options.quick else options.rounds)
    bandwidth = copy_bandwidth(clock, device, options.quick)
    parts = {
        "linear": lambda: linear_rows(clock, device, options.quick, bandwidth),
        "selective": lambda: selective_rows(clock, device, options.quick),
        "attention": lambda: attention_rows(clock, device, options.quick),
        "diagonal": lambda: diagonal_rows(clock, device, options.quick),
        "training": lambda: training_rows(clock, device, options.quick),
    }
    rows: list[Row] = []
    for name, part in parts.items():
        if options.only in (None, name):
            for row in part():
                rows.append(row)
                print("  ".join(f"{key}: {_short(value)}" for key, value in row.items()), flush=True)
    print(f"copy: {bandwidth:.0f} GB/s read and written")
    if options.write:
        RESULTS.write_text(json.dumps(_heading(bandwidth) | {"rows": rows}, indent=1) + "\n")
    return 0


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _heading(bandwidth: float) -> Row:
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    triton = importlib.import_module("triton")
    return {
        "command": "python -m asv_benchmarks.scan_gpu --write",
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy, GB/s read and written": bandwidth,
    }


if __name__ == "__main__":
    sys.exit(main())
