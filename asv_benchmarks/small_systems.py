"""Thousands of small diagonal systems at once, beside loops over python-control and SLICOT and what one can write in batched NumPy and PyTorch.

``python -m asv_benchmarks.small_systems`` measures all of them in turn and prints the table. Systems are real and continuous, for control.hsvd knows
nothing else; what has no batches is timed on the first systems and counted for all.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import diagonal_system

Computation = Callable[[], Any]
SHAPES = [(5120, 16), (1024, 128)]
IN_LOOPS = 16  # systems that are enough to time a loop
BATCHED = [
    "numpy cholesky",
    "numpy cholesky eigvalsh",
    "numpy eigh",
    "torch cholesky",
    "torch cholesky eigvalsh",
    "torch eigh",
]
LOOPS = ["python-control", "slycot"]
TASKS = ["values", "truncation", "diagonalization", "precision"]


def gramians(xp: Any, poles: Any, B: Any, C: Any) -> tuple[Any, Any]:
    """Return both Gramians in closed form, in NumPy or PyTorch: one division an entry."""
    inverse = -1.0 / (poles[..., :, None] + poles[..., None, :])
    return B * B.swapaxes(-1, -2) * inverse, C.swapaxes(-1, -2) * C * inverse


def cholesky(xp: Any, P: Any) -> Any:
    """Return a Cholesky factor of the batch, with the least multiple of the largest diagonal entry added with which all of it succeeds."""
    n = P.shape[-1]
    diagonal = P.diagonal(0, -2, -1)
    top = diagonal.max(-1) if xp is np else diagonal.amax(-1)
    jitter, eye = 0.0, xp.eye(n, dtype=P.dtype)
    while True:
        try:
            return xp.linalg.cholesky(P + (jitter * top)[..., None, None] * eye if jitter else P)
        except (np.linalg.LinAlgError, RuntimeError):  # torch's LinAlgError is a RuntimeError
            jitter = max(10 * jitter, n * float(np.finfo(np.float64).eps))


def eigh_factor(xp: Any, P: Any) -> Any:
    """Return a factor from the eigendecomposition, negative eigenvalues set to zero."""
    values, vectors = xp.linalg.eigh(P)
    return vectors * xp.sqrt(values.clip(0.0))[..., None, :]


def batched_values(library: str, system: hsv.DiagonalStateSpace) -> Computation:
    """Prepare the Hankel values in a few lines of batched NumPy or PyTorch."""
    name, _, method = library.partition(" ")
    arrays = system.poles(), system.B, system.C
    if name == "torch":
        import torch

        xp: Any = torch
        arrays = tuple(torch.from_numpy(x) for x in arrays)
    else:
        xp = np

    def values() -> Any:
        P, Q = gramians(xp, *arrays)
        if method.endswith("eigvalsh"):  # the squares of the values: half the digits, half the time
            L = cholesky(xp, P)
            return xp.sqrt(xp.linalg.eigvalsh(L.swapaxes(-1, -2) @ Q @ L).clip(0.0))
        factor = cholesky if method == "cholesky" else eigh_factor
        return xp.linalg.svdvals(factor(xp, Q).swapaxes(-1, -2) @ factor(xp, P))

    return values


def hankel_values(library: str, system: hsv.DiagonalStateSpace) -> Computation:
    """Prepare all Hankel values of a batch; a loop goes over the dense form of its systems."""
    if library == "hsv":
        return lambda: hsv.hankel_singular_values(system)
    if library in BATCHED:
        return batched_values(library, system)
    return libraries.hankel_singular_values(library, system.to_dense())


def truncation(library: str, system: hsv.DiagonalStateSpace, order: int) -> Computation:
    """Prepare balanced truncations of a batch to one order."""
    if library == "hsv":
        return lambda: hsv.balanced_truncation(system, order)
    if library == "numpy":

        def reduce() -> Any:
            P, Q = gramians(np, system.poles(), system.B, system.C)
            Lc, Lo = cholesky(np, P), cholesky(np, Q)
            U, sigma, Vh = np.linalg.svd(Lo.swapaxes(-1, -2) @ Lc)
            root = sigma[:, None, :order] ** -0.5
            left, right = Lo @ U[..., :order] * root, Lc @ Vh.swapaxes(-1, -2)[..., :order] * root
            left = left.swapaxes(-1, -2)
            return left @ (system.poles()[..., None] * right), left @ system.B, system.C @ right

        return reduce
    return libraries.balanced_truncation(library, system.to_dense(), order)


def diagonalization(library: str, system: hsv.DiagonalStateSpace, order: int) -> Computation:
    """Prepare balanced truncations whose results are diagonalised again, as a layer with diagonal states needs them, with the condition numbers."""
    reduce = truncation(library, system, order)
    if library == "hsv":
        return lambda: hsv.diagonalize(reduce().system)

    def diagonalize() -> Any:
        A, B, C = reduce()
        poles, V = np.linalg.eig(A)
        return poles, np.linalg.solve(V, B), C @ V, np.linalg.cond(V)

    return diagonalize


def precision(library: str, system: hsv.DiagonalStateSpace, order: int) -> Computation:
    """Prepare values, truncations and the way back of our own, from input in double or in single precision."""
    if library == "single precision":
        poles, B, C = (x.astype(np.float32) for x in (system.poles(), system.B, system.C))
        system = hsv.DiagonalStateSpace(poles, B, C, dt=system.dt)
    elif library != "hsv":
        raise ValueError(library)
    reduce = diagonalization("hsv", system, order)
    return lambda: (hsv.hankel_singular_values(system), reduce())


def systems(shape: tuple[int, int], library: str = "hsv") -> hsv.DiagonalStateSpace:
    """Return a batch of real systems with one input and output, or its first ones for a library that has no batches."""
    count, n = shape
    batch = diagonal_system(n, dt=0, batch=(count,), dtype="float64")
    if library not in LOOPS:
        return batch
    return hsv.DiagonalStateSpace(batch.poles()[:IN_LOOPS], batch.B[:IN_LOOPS], batch.C[:IN_LOOPS], dt=0)


class Values:
    """What do all Hankel values of many small diagonal systems cost, beside batched NumPy and PyTorch?"""

    params = (sizes([(512, 16)], SHAPES), ["hsv", *BATCHED])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        self.compute = prepared(hankel_values(library, systems(shape)), library)

    def time_values(self, shape, library):
        self.compute()

    def peakmem_values(self, shape, library):
        self.compute()


class Truncation:
    """What do balanced truncations of many small diagonal systems to a quarter of their states cost, beside batched NumPy?"""

    params = (sizes([(512, 16)], SHAPES), ["hsv", "numpy"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        warnings.simplefilter("ignore", hsv.OrderWarning)
        self.compute = prepared(truncation(library, systems(shape), shape[1] // 4), library)

    def time_truncation(self, shape, library):
        self.compute()

    def peakmem_truncation(self, shape, library):
        self.compute()


class Diagonalization:
    """What do those truncations cost together with the way back to diagonal states?"""

    params = Truncation.params
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        warnings.simplefilter("ignore", hsv.OrderWarning)
        self.compute = prepared(diagonalization(library, systems(shape), shape[1] // 4), library)

    def time_truncation_and_diagonalization(self, shape, library):
        self.compute()

    def peakmem_truncation_and_diagonalization(self, shape, library):
        self.compute()


def in_turn(computations: dict[str, Computation], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds of each computation in each round, and its result."""
    seconds: dict[str, list[float]] = {name: [] for name in computations}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, compute in computations.items():
            begin = time.perf_counter()
            results[name] = compute()
            seconds[name].append(time.perf_counter() - begin)
    return seconds, results


def show(title: str, seconds: dict[str, list[float]], scale: dict[str, float], agree: dict[str, float]) -> None:
    """Print medians, ratios to hsv, and the share of values that agree with hsv's to six digits."""
    print(f"\n{title}\n\n| library | s | ratio to hsv | values that agree to 1e-6 |\n|---|---:|---:|---:|")
    for name, times in seconds.items():
        ratio = statistics.median(t / own for t, own in zip(times, seconds["hsv"], strict=True)) * scale[name]
        share = f"{agree[name]:.0%}" if name in agree else ""
        print(f"| {name} | {statistics.median(times) * scale[name]:.4f} | {ratio:.1f} | {share} |")


def agreement(own: np.ndarray, results: dict[str, Any]) -> dict[str, float]:
    """Return the share of each library's values that agree with ours to six digits."""
    agree = {}
    for name, result in results.items():
        values = np.sort(np.real(np.stack([np.asarray(v) for v in result])), axis=-1)
        expected = np.sort(own[: len(values)], axis=-1)
        agree[name] = float(np.mean(np.abs(values - expected) <= 1e-6 * expected))
    return agree


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.small_systems", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("SYSTEMS", "STATES"))
    parser.add_argument("--task", action="append", choices=TASKS, help="the tables to print; all of them otherwise")
    parser.add_argument("--library", action="append", help="a peer; all of them otherwise")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", hsv.OrderWarning)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {arguments.rounds} rounds")
    for shape in [tuple(s) for s in arguments.shape or SHAPES]:
        count, n = shape
        order = n // 4
        for task in arguments.task or TASKS:
            title, prepare, peers = {
                "values": ("All Hankel values", hankel_values, [*BATCHED, *LOOPS]),
                "truncation": (f"Truncation to {order} states", truncation, ["numpy", "slycot"]),
                "diagonalization": (f"Truncation to {order} states and back to diagonal ones", diagonalization, ["numpy"]),
                "precision": ("Values, truncation and the way back", precision, ["single precision"]),
            }[task]  # fmt: skip
            names = ["hsv", *(name for name in peers if name in (arguments.library or peers))]
            more = () if task == "values" else (order,)
            own = names if task == "precision" else ["hsv"]
            computations = {
                name: prepared(prepare(name, systems(shape, name), *more), "hsv" if name in own else name)
                for name in names
            }
            seconds, results = in_turn(computations, arguments.rounds)
            agree = agreement(results["hsv"], results) if task == "values" else {}
            scale = {name: count / IN_LOOPS if name in LOOPS else 1.0 for name in names}
            show(f"{title}: {count} systems of {n} states", seconds, scale, agree)


if __name__ == "__main__":
    main()
