"""Benchmarks of `hsv/_low_rank.py`.

``python -m asv_benchmarks.low_rank [--states 100000] [--only heat] [--rounds 3]``: both Gramians of large sparse systems and a balanced truncation from them, by `hsv` and by pyMOR in turn, each in a
process of its own: seconds, peak memory, residuals computed from the factors alone, and the error of the cut.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

import hsv
from asv_benchmarks import sizes
from tests.hsv import sparse_reference_systems as known

ORDER = 6
TOLERANCE = 1e-10  # pyMOR's own
FREQUENCIES = np.array([0.0, 1.0, 10.0, 100.0, 1000.0])

PROBLEMS: dict[str, Callable[[int], tuple]] = {
    "heat": lambda n: known.heat_in_a_square(math.isqrt(n)),
    "flow": lambda n: known.convection_diffusion(math.isqrt(n)),
    "fast flow": lambda n: known.convection_diffusion(math.isqrt(n), (1000.0, 0.0)),
    "finite elements": known.rod_of_finite_elements,
}


class BalancedTruncation:
    """How long does balanced truncation of a large sparse system to 6 states take, beside pyMOR's by the same iteration?"""

    params = (sizes([900, 10_000], [100_000]), ["heat", "flow"], ["hsv", "pymor"])
    param_names = ("states", "problem", "library")
    timeout = 600

    def setup(self, states, problem, library):
        self.compute = computation(library, PROBLEMS[problem](states))

    def time_balanced_truncation(self, states, problem, library):
        self.compute()

    def peakmem_balanced_truncation(self, states, problem, library):
        self.compute()


class Shifts:
    """How long do both Gramians take by each way to choose shifts, and how many factorisations?"""

    params = (
        ["heat", "fast flow", "finite elements"],
        ["ProjectionShifts", "PenzlShifts", "WachspressShifts"],
    )
    param_names = ("problem", "shifts")
    states = 10_000

    def setup(self, problem, shifts):
        if (problem, shifts) == ("fast flow", "WachspressShifts"):
            raise NotImplementedError("the spectrum is too far from the real axis")
        self.system = sparse_system(PROBLEMS[problem](self.states))
        self.shifts = getattr(hsv, shifts)()

    def time_low_rank_gramians(self, problem, shifts):
        hsv.low_rank_gramians(self.system, shifts=self.shifts)

    def track_factorisations(self, problem, shifts):
        return len(hsv.low_rank_gramians(self.system, shifts=self.shifts).history)


class OneSide:
    """How long does the factor of one Gramian take?"""

    params = (sizes([10_000], [100_000]),)
    param_names = ("states",)

    def setup(self, states):
        self.system = sparse_system(PROBLEMS["heat"](states))

    def time_low_rank_controllability_factor(self, states):
        hsv.low_rank_controllability_factor(self.system)

    def time_low_rank_observability_factor(self, states):
        hsv.low_rank_observability_factor(self.system)


def sparse_system(problem: tuple) -> hsv.SparseStateSpace:
    """Return the system of ``(A, B, C, E)``."""
    A, B, C, E = problem
    return hsv.SparseStateSpace(A, B, C, None, E, dt=0)


def computation(library: str, problem: tuple) -> Callable[[], Any]:
    """Prepare both Gramians and the reduction; it returns both factors and the reduced system."""
    A, B, C, E = problem
    if library == "hsv":
        system = sparse_system(problem)

        def compute() -> Any:
            gramians = hsv.low_rank_gramians(system, tolerance=TOLERANCE)
            reduced = hsv.balanced_truncation(gramians, ORDER).system
            return gramians.controllability.factor, gramians.observability.factor, reduced

        return compute
    if library == "pymor":
        from pymor.core.logger import set_log_levels
        from pymor.models.iosys import LTIModel
        from pymor.reductors.bt import BTReductor
        from pymor.solvers.matrix_equations.adi import ADILyapunovSolver
        from pymor.solvers.matrix_equations.default import MatrixEquationSolvers

        set_log_levels({"pymor": "ERROR"})
        solvers = MatrixEquationSolvers(lyapunov_lr=ADILyapunovSolver(adi_tol=TOLERANCE))
        matrices = [scipy.sparse.csc_matrix(A), B, C]
        mass = None if E is None else scipy.sparse.csc_matrix(E)

        def compute() -> Any:
            model = LTIModel.from_matrices(*matrices, E=mass, matrix_equation_solvers=solvers)
            reduced = hsv.from_pymor(BTReductor(model).reduce(ORDER))
            factors = [np.asarray(model.gramian(kind).to_numpy()) for kind in ("c_lr", "o_lr")]
            return *(Z if len(Z) == A.shape[0] else Z.T for Z in factors), reduced

        return compute
    raise ValueError(library)


def residual(A: Any, E: Any, B: np.ndarray, Z: np.ndarray) -> float:
    """Return the norm of ``A Z Z^T E^T + E Z Z^T A^T + B B^T`` relative to that of ``B B^T``, by a QR factorisation of ``[A Z, E Z, B]``."""
    image = Z if E is None else E @ Z
    R = scipy.linalg.qr(np.hstack([A @ Z, image, B]), mode="r", overwrite_a=True)[0][: 2 * Z.shape[1] + B.shape[1]]
    k = Z.shape[1]
    one = R[:, :k] @ R[:, k : 2 * k].T
    return float(np.linalg.norm(one + one.T + R[:, 2 * k :] @ R[:, 2 * k :].T, 2) / np.linalg.norm(B.T @ B, 2))


def measure(library: str, name: str, states: int) -> dict[str, float]:
    """Time one computation in this process and look at its result."""
    problem = PROBLEMS[name](states)
    A, B, C, E = problem
    compute = computation(library, problem)
    wall, processor = time.perf_counter(), time.process_time()
    Zc, Zo, reduced = compute()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    difference = sparse_system(problem).frequency_response(FREQUENCIES) - reduced.frequency_response(FREQUENCIES)
    return {
        "wall": wall,
        "processor": processor,
        "peak": peak,
        "columns": Zc.shape[1] + Zo.shape[1],
        "controllability": residual(A, E, B, Zc),
        "observability": residual(A.T, None if E is None else E.T, C.T, Zo),
        "error": float(np.max(np.linalg.norm(difference, 2, axis=(1, 2)))),
    }


def main() -> None:
    """Print a table of `hsv` beside pyMOR."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.low_rank", description=main.__doc__)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--only", metavar="PROBLEM", choices=PROBLEMS, help="one problem instead of all")
    parser.add_argument("--library", choices=["hsv", "pymor"], help="one library instead of both")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    asked = parser.parse_args()
    libraries = [asked.library] if asked.library else ["hsv", "pymor"]
    if asked.here:
        print(json.dumps(measure(libraries[0], asked.only, asked.states)))
        return
    print(f"tolerance {TOLERANCE:g}, cut to {ORDER} states, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    print(
        "| problem | states | library | s | processor s | peak GiB | columns | residuals | error of the cut | ratio |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---|---:|---:|")
    for name in [asked.only] if asked.only else PROBLEMS:
        runs: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
        for _ in range(asked.rounds):
            for library in libraries:
                runs[library].append(_in_a_process(library, name, asked.states))
        for library in libraries:
            typical = {key: statistics.median(run[key] for run in runs[library]) for key in runs[library][0]}
            ratios = [
                other["wall"] / ours["wall"] for ours, other in zip(runs[libraries[0]], runs[library], strict=True)
            ]
            print(
                f"| {name} | {PROBLEMS[name](asked.states)[0].shape[0]:,} | {library} | {typical['wall']:.1f} | {typical['processor']:.1f} | {typical['peak']:.2f} | "
                f"{typical['columns']:.0f} | {typical['controllability']:.0e}, {typical['observability']:.0e} | {typical['error']:.2e} | {statistics.median(ratios):.2f} |"
            )


def _in_a_process(library: str, name: str, states: int) -> dict[str, float]:
    options = ["--here", "--only", name, "--library", library, "--states", str(states)]
    command = [sys.executable, "-m", "asv_benchmarks.low_rank", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
