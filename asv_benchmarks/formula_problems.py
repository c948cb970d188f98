"""Problems that a formula defines: how many Hankel values come out right, in `hsv` and in its peers, and whether the promises of a cut are kept.

The truth is arithmetic of 190 digits on exactly the binary numbers that every library is given. A peer that is not installed has no column;
one that cannot take a problem at all (python-control and pyMOR have no Hankel values in discrete time that could be compared) has an empty cell.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks import libraries
from tests.hsv import reference_systems as known

WRONG = 0.01
"""A value counts as wrong when it is off by more than this share of itself."""


@dataclass(frozen=True)
class Problem:
    """A system, its exact Hankel values (the largest ones at least) and the order of the cut that is tried."""

    name: str
    make: Callable[[], hsv.StateSpace]
    exact: Callable[[hsv.StateSpace], np.ndarray]
    rule: hsv.Rule
    slow: bool = False
    error: Callable[[hsv.StateSpace, hsv.StateSpace], float] = lambda sys, reduced: float(hsv.hinf_error(sys, reduced))


def problems(*, slow: bool) -> Iterator[Problem]:
    """Yield the problems in the order of the table; those of a minute and more only if asked for."""
    everything = [
        Problem("heat equation", lambda: known.heat_equation(60).system(), _exact_heat, hsv.Threshold(1e-6)),
        Problem("heat equation", lambda: known.heat_equation(200).system(), _exact_heat, hsv.Threshold(1e-6), True),
        Problem("clamped beam", lambda: known.clamped_beam(25).system(), _exact, hsv.Threshold(1e-3)),
        Problem("CTLEX 4.1", lambda: _lyapunov_benchmark(20, discrete=False), _exact, hsv.Threshold(1e-4)),
        Problem("DTLEX 4.1", lambda: _lyapunov_benchmark(20, discrete=True), _exact, hsv.Threshold(1e-4)),
        Problem("prescribed values", lambda: _prescribed(0), _exact, hsv.Threshold(1e-5)),
        Problem("prescribed values, coordinates of condition 1e4", lambda: _prescribed(4), _exact, hsv.Threshold(1e-5)),
        Problem("the same, discrete", lambda: _discrete(_prescribed(4)), _exact, hsv.Threshold(1e-5)),
        Problem("FOM", lambda: known.penzl_fom().system(), _exact_fom, hsv.Threshold(1e-6), True, _error_on_a_grid),
    ]
    yield from (problem for problem in everything if slow or not problem.slow)


def table(*, slow: bool, only: str = "") -> list[list[str]]:
    """Return header and rows: the cut of ours, then for each library the first wrong value and the worst error."""
    present = {name: values for name, values in PEERS.items() if importlib.util.find_spec(values.package) is not None}
    rows = [["problem", "states", "kept", "stable", "error / bound", "hsv", *present]]
    for problem in problems(slow=slow):
        if only not in problem.name:
            continue
        sys = problem.make()
        truth = problem.exact(sys)
        red = hsv.balanced_truncation(sys, problem.rule)
        stable = bool(np.all(_margin(red.system) > 0))
        ratio = problem.error(sys, red.system) / float(red.error_bound)
        cells = [_judged(np.asarray(hsv.hankel_singular_values(sys)), truth)]
        cells += [_judged(peer.values(sys), truth) if peer.takes(sys) else "" for peer in present.values()]
        kept = [
            str(sys.n_states),
            str(int(red.orders)),
            "yes" if stable else "no",
            f"{math.ceil(ratio * 1e3) / 1e3:.3f}",
        ]  # rounded up: 1.000 is kept, 1.001 is not
        rows.append([problem.name, *kept, *cells])
    return rows


def equation_table() -> list[list[str]]:
    """Return header and rows: the relative error of the solution of Lyapunov equations whose solution is a formula."""
    rows = [["equation", "n", "hsv", "SciPy", "slycot SB03MD"]]
    for discrete in (False, True):
        for n in (10, 20, 30):
            a, b, x = known.lyapunov_benchmark(n, discrete=discrete)
            errors = [np.linalg.norm(found - x) / np.linalg.norm(x) for found in _solutions(a, b @ b.T, discrete)]
            rows.append(["DTLEX 4.1" if discrete else "CTLEX 4.1", str(n), *(f"{error:.0e}" for error in errors)])
    return rows


@dataclass(frozen=True)
class Peer:
    """A library that computes Hankel values of dense systems."""

    package: str
    discrete: bool
    values: Callable[[hsv.StateSpace], np.ndarray]

    def takes(self, sys: hsv.StateSpace) -> bool:
        """Return whether it has an answer for this time base."""
        return self.discrete or not sys.is_discrete


def _python_control_values(sys: hsv.StateSpace) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex results where the product of Gramians has negative eigenvalues
        return np.asarray(libraries.hankel_singular_values("python-control", sys)()[0]).ravel()


def _slycot_values(sys: hsv.StateSpace) -> np.ndarray:
    return np.asarray(libraries.hankel_singular_values("slycot", sys)()[0])


def _pymor_values(sys: hsv.StateSpace) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(hsv.to_pymor(sys).hsv())


PEERS = {
    "python-control": Peer("control", False, _python_control_values),
    "slycot": Peer("slycot", True, _slycot_values),
    "pyMOR": Peer("pymor", False, _pymor_values),
}


def first_wrong(values: np.ndarray, truth: np.ndarray) -> int | None:
    """Return the place, from 1, of the first value that is off by more than 1 %, or missing, or None."""
    found = np.full(len(truth), np.nan, complex)
    ordered = sorted(values, key=lambda x: -abs(x))[: len(truth)]
    found[: len(ordered)] = ordered
    wrong = ~(np.abs(found - truth) <= WRONG * truth)  # NaN is wrong
    return int(np.argmax(wrong)) + 1 if wrong.any() else None


def _judged(values: np.ndarray, truth: np.ndarray) -> str:
    place = first_wrong(values, truth)
    ordered = np.array(sorted(values, key=lambda x: -abs(x))[: len(truth)])
    worst = np.max(np.abs(ordered - truth[: len(ordered)])) / truth[0]
    return f"{'none' if place is None else place} ({worst:.0e})"


def _solutions(a: np.ndarray, q: np.ndarray, discrete: bool) -> Iterator[np.ndarray]:
    import slycot

    if discrete:
        yield hsv.solve_discrete_lyapunov(a, q)
        yield scipy.linalg.solve_discrete_lyapunov(a, q)
    else:
        yield hsv.solve_continuous_lyapunov(a, -q)
        yield scipy.linalg.solve_continuous_lyapunov(a, -q)
    yield slycot.sb03md57(a.T, C=-q, dico="D" if discrete else "C")[2]


def _lyapunov_benchmark(n: int, *, discrete: bool) -> hsv.StateSpace:
    a, b, _ = known.lyapunov_benchmark(n, discrete=discrete)
    return hsv.StateSpace(a, b, b.T, dt=True if discrete else 0)


def _prescribed(digits_lost: int) -> hsv.StateSpace:
    rng = np.random.default_rng(7)
    return known.prescribed_hankel_values(rng, np.geomspace(1, 1e-12, 40), 2, condition=10.0**digits_lost).system()


def _discrete(sys: hsv.StateSpace) -> hsv.StateSpace:
    return hsv.discretize(sys, 1.0, "bilinear")


def _margin(sys: hsv.StateSpace) -> np.ndarray:
    poles = np.asarray(sys.poles())
    return 1 - np.abs(poles) if sys.is_discrete else -poles.real


def _error_on_a_grid(sys: hsv.StateSpace, reduced: hsv.StateSpace) -> float:
    """Return the largest error at 2,000 frequencies, the three resonances among them: a lower bound of the norm."""
    diagonal = known.penzl_fom_modes()
    w = np.unique(np.concatenate([np.geomspace(1e-2, 1e5, 2000), [100.0, 200.0, 400.0]]))
    difference = diagonal.frequency_response(w) - reduced.frequency_response(w)
    return float(np.abs(difference).max())


def _exact(sys: hsv.StateSpace) -> np.ndarray:
    from tests.hsv import exact_dense

    return exact_dense.hankel_values(sys.A, sys.B, sys.C, discrete=sys.is_discrete)


def _exact_heat(sys: hsv.StateSpace) -> np.ndarray:
    from tests.hsv import exact

    values = exact.heat_equation_hankel_values(sys.n_states)
    return values[values > 1e-60 * values[0]]


def _exact_fom(sys: hsv.StateSpace) -> np.ndarray:
    import flint

    from tests.hsv import exact_dense

    saved, flint.ctx.prec = flint.ctx.prec, exact_dense.BITS
    try:
        modes = known.penzl_fom_modes(sys.n_states - 6)
        ten = flint.arb(10) / flint.arb(2).sqrt()  # the eigenvectors of a block are (1, +-i) / sqrt(2)
        poles = [flint.acb(float(p.real), float(p.imag)) for p in modes.poles()]
        b = [flint.acb(ten, -ten if p.imag > 0 else ten) if p.imag else flint.acb(1) for p in modes.poles()]
        return exact_dense.long_diagonal_hankel_values(poles, b, [x.conjugate() for x in b])
    finally:
        flint.ctx.prec = saved
