"""Systems on a GPU beside this machine's CPU with two threads: Hankel values, truncations, doubling.

``python -m asv_benchmarks.gpu [--rounds 10] [--write]`` on a CUDA device; ``--write`` puts the figures into ``docs/data/gpu.json`` with the device, the date,
the commit and the versions. ``--quick`` runs everything once at tiny sizes, on the CPU where there is no GPU, and measures nothing.

Needs what `hsv` needs, and the extra ``cuda13`` (or ``cuda12``) with torch or CuPy: what is installed of the two is measured. ``numba-cuda`` compiles for the
device with NVVM, which is in that extra or in a CUDA toolkit.

Which question each group answers:
batch: how much faster than two CPU threads are thousands of small diagonal systems, all values and whole truncations?
layer: and one system of the size of an LRU layer, with 128 inputs and outputs, from log-poles?
doubling: and one large dense system, by doubling on the device, beside Hammarling's method on the CPU?
decomposition: what do the singular values of many small matrices take, beside the array library's own routine?
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import hsv
from asv_benchmarks.run import THREAD_VARIABLES
from asv_benchmarks.systems import dense_system, diagonal_system, lru_system

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "data" / "gpu.json"
CPU_THREADS = "2"
PACKAGES = ("hsv-control", "numpy", "scipy", "numba", "numba-cuda", "torch", "cupy-cuda13x", "cupy-cuda12x")

DIFFERENCE = "largest difference to the CPU, relative to the largest value"

Row = dict[str, Any]


class Library:
    """Moves arrays to the device, back, and waits for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "torch":
            import torch

            self.move: Callable[[Any], Any] = lambda x: torch.asarray(x, device="cuda")
            self.bring: Callable[[Any], Any] = lambda x: x.cpu().numpy()
            self.wait: Callable[[], Any] = torch.cuda.synchronize
            self.svdvals: Callable[[Any], Any] = torch.linalg.svdvals
        elif name == "cupy":
            import cupy

            self.move, self.bring, self.wait = cupy.asarray, cupy.asnumpy, cupy.cuda.Device().synchronize
            self.svdvals = lambda M: cupy.linalg.svd(M, compute_uv=False)
        else:
            self.move = self.bring = np.asarray
            self.wait = lambda: None
            self.svdvals = lambda M: np.linalg.svd(M, compute_uv=False)

    def system(self, sys: hsv.LinearSystem) -> hsv.LinearSystem:
        """Return the same system there."""
        B, C, D = (self.move(x) for x in (sys.B, sys.C, sys.D))
        if isinstance(sys, hsv.StateSpace):
            return hsv.StateSpace(self.move(sys.A), B, C, D, dt=sys.dt)
        assert isinstance(sys, hsv.DiagonalStateSpace)
        if sys.log_poles is not None:
            return hsv.DiagonalStateSpace.from_log_poles(self.move(sys.log_poles), B, C, D, dt=sys.dt)
        return hsv.DiagonalStateSpace(self.move(sys.poles()), B, C, D, dt=sys.dt)


def once(compute: Callable[[], Any], wait: Callable[[], Any]) -> tuple[float, Any]:
    """Return the time of a call until the device has finished, and its result."""
    wait()
    begin = time.perf_counter()
    result = compute()
    wait()
    return time.perf_counter() - begin, result


def median(compute: Callable[[], Any], wait: Callable[[], Any], rounds: int) -> float:
    """Return the median of some calls."""
    return statistics.median(once(compute, wait)[0] for _ in range(rounds))


def compared(
    group: str,
    question: Row,
    sys: hsv.LinearSystem,
    compute: Callable[[Any], Any],
    values: Callable[[Any], Any],
    libraries: list[Library],
    rounds: int,
) -> Iterator[Row]:
    """One computation on the CPU and by every library on the device; `values` takes from a result the numbers to be compared."""
    expected = np.asarray(values(compute(sys)))
    on_cpu = median(lambda: compute(sys), lambda: None, min(rounds, 3))
    for library in libraries:
        run = partial(compute, library.system(sys))
        first, result = once(run, library.wait)
        found = library.bring(values(result))
        on_device = median(run, library.wait, rounds)
        yield {
            "group": group,
            **question,
            "library": library.name,
            "seconds": on_device,
            "seconds of the first call at this size": first,
            f"seconds on the CPU, {CPU_THREADS} threads": on_cpu,
            "times as fast": on_cpu / on_device,
            DIFFERENCE: float(np.abs(found - expected).max() / np.abs(expected).max()),
        }


def hankel(sys: Any) -> Any:
    """All Hankel values."""
    return hsv.hankel_singular_values(sys)


def truncation(order: int) -> Callable[[Any], Any]:
    """A whole truncation."""
    return lambda sys: hsv.balanced_truncation(sys, hsv.Order(order))


def same(values: Any) -> Any:
    """Hankel values are compared as they are."""
    return values


def of_reduction(red: hsv.Reduction) -> Any:
    """Of a reduction, the Hankel values are compared: the matrices depend on the coordinates."""
    return red.hankel_singular_values


def batch_rows(libraries: list[Library], rounds: int, quick: bool) -> Iterator[Row]:
    """Thousands of diagonal systems with one input and one output, discrete."""
    for systems, n, order in [(3, 4, 2)] if quick else [(5120, 16, 4), (5120, 64, 16), (1024, 128, 32), (256, 256, 64)]:
        for dtype in ("complex128", "float64"):
            sys = diagonal_system(n, dt=True, batch=(systems,), dtype=dtype)
            question = {"systems": systems, "states": n, "dtype": dtype}
            yield from compared("batch", question | {"computes": "Hankel values"}, sys, hankel, same, libraries, rounds)
            question |= {"computes": f"truncation to {order}"}
            yield from compared("batch", question, sys, truncation(order), of_reduction, libraries, rounds)


def layer_rows(libraries: list[Library], rounds: int, quick: bool) -> Iterator[Row]:
    """One system with many inputs and outputs."""
    for n, width, order in [(4, 2, 2)] if quick else [(64, 128, 16), (256, 128, 64), (384, 128, 92)]:
        sys = lru_system(n, width)
        question = {"systems": 1, "states": n, "inputs and outputs": width, "dtype": "complex128"}
        yield from compared("layer", question | {"computes": "Hankel values"}, sys, hankel, same, libraries, rounds)
        question |= {"computes": f"truncation to {order}"}
        yield from compared("layer", question, sys, truncation(order), of_reduction, libraries, rounds)


def doubling_rows(libraries: list[Library], rounds: int, quick: bool) -> Iterator[Row]:
    """One large dense system with four inputs and outputs."""
    for n in [4] if quick else [256, 512, 1024]:
        for dt in (0, True):
            sys = dense_system(n, dt=dt)
            question = {"systems": 1, "states": n, "time": "discrete" if dt else "continuous", "dtype": "float64"}
            question |= {"computes": "Hankel values"}
            yield from compared("doubling", question, sys, hankel, same, libraries, min(rounds, 3))


def decomposition_rows(libraries: list[Library], rounds: int, quick: bool) -> Iterator[Row]:
    """Singular values alone; the array library's routine solves one matrix after another above 32 rows."""
    from hsv import _device

    for count, n in [(2, 3)] if quick else [(1024, 16), (1024, 32), (1024, 64), (256, 128), (64, 256)]:
        rng = np.random.default_rng(n)
        M = rng.standard_normal((count, n, n, 2)) @ [1, 1j]
        for library in libraries:
            there = library.move(M)
            ours = library.svdvals if library.name == "numpy" else _device.singular_values
            first, found = once(partial(ours, there), library.wait)
            kernel = median(partial(ours, there), library.wait, rounds)
            own = median(partial(library.svdvals, there), library.wait, min(rounds, 3))
            expected = np.linalg.svd(M, compute_uv=False)
            difference = float(np.abs(library.bring(found) - expected).max() / expected.max())
            yield {
                "group": "decomposition",
                "systems": count,
                "states": n,
                "dtype": "complex128",
                "computes": "singular values",
                "library": library.name,
                "seconds": kernel,
                "seconds of the first call at this size": first,
                "seconds of the array library's own routine": own,
                "times as fast": own / kernel,
                DIFFERENCE: difference,
            }


GROUPS = {"batch": batch_rows, "layer": layer_rows, "doubling": doubling_rows, "decomposition": decomposition_rows}


def main() -> int:
    """Print the figures, and write them where asked to."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=sorted(GROUPS), default=list(GROUPS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes once, on any device: does it run?")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--commit", help="what to write as the commit, where the folder is no git repository")
    asked = parser.parse_args()
    if any(os.environ.get(name) != CPU_THREADS for name in THREAD_VARIABLES):
        # the libraries read the variables when they are loaded, and NumPy is
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, CPU_THREADS)}
        return subprocess.run(
            [sys.executable, "-m", "asv_benchmarks.gpu", *sys.argv[1:]], cwd=ROOT, env=environment, check=False
        ).returncode
    found = hsv.backends(probe=True)
    print(found, flush=True)
    libraries = [Library(name) for name in ("torch", "cupy") if len(_gpus(found[name]))]
    if not asked.quick and (not libraries or not found["numba-cuda"].available):
        parser.error(
            "no CUDA device for torch or CuPy and numba-cuda, see above; `--quick` tries the script on the CPU"
        )
    if asked.quick and asked.write:
        parser.error("`--quick` measures nothing that is worth writing")
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        for name in asked.only:
            for row in GROUPS[name](libraries or [Library("numpy")], 1 if asked.quick else asked.rounds, asked.quick):
                rows.append(row)
                print("  ".join(f"{key}: {_short(value)}" for key, value in row.items()), flush=True)
    if asked.write:
        RESULTS.write_text(json.dumps(heading(found, asked.commit) | {"rows": rows}, indent=1) + "\n")
    return 0


def heading(found: hsv.Backends, commit: str | None) -> Row:
    """What the figures were made with."""
    if commit is None:
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "command": "python -m asv_benchmarks.gpu --write",
        "device": found["numba-cuda"].devices[0],
        "CPU": f"{_processor()}, {CPU_THREADS} threads",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _gpus(backend: hsv.Backend) -> list[str]:
    return [device for device in backend.devices if not device.startswith("CPU")] if backend.available else []


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
