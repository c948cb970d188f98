"""The printed examples of other packages: what they print, and what `hsv` finds for the same input.

The inputs and the printed answers stand in `tests/hsv/reference_systems.py` and `tests/hsv/slicot_examples.py`, each with its source; nothing here repeats a number of an answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import hsv
from tests.hsv import reference_systems as known
from tests.hsv import slicot_examples as slicot

Method = Callable[[hsv.LinearSystem, hsv.Rule | int], hsv.Reduction]
Reduce = Callable[[], hsv.Reduction]


@dataclass(frozen=True)
class Example:
    """One printed answer, and how to compute it."""

    source: str
    quantity: str
    call: str
    printed: np.ndarray
    decimals: int
    """Digits of `printed` after the decimal point that are compared."""
    compute: Callable[[], np.ndarray]

    def difference(self) -> float:
        """Return the largest difference, in units of the last printed digit; rounding alone explains 0.5."""
        return float(np.max(np.abs(np.asarray(self.compute()) - self.printed))) * 10.0**self.decimals


def examples() -> Iterator[Example]:
    """Yield every example, in the order of the table."""
    yield from _slicot_reductions()
    yield from _slicot_weighted_reductions()
    yield from _slicot_riccati_reductions()
    yield from _slicot_equations()
    yield from _slicot_riccati_equations()
    yield from _two_states()
    yield from _transfer_functions()
    yield from _varga()


def table() -> list[list[str]]:
    """Return header and rows: printed and found, both to the printed digits."""
    rows = [["source", "quantity", "by", "printed", "found", "largest difference"]]
    for example in examples():
        printed, found = (_text(x, example.decimals) for x in (example.printed, example.compute()))
        rows.append(
            [example.source, example.quantity, f"`{example.call}`", printed, found, f"{example.difference():.1f}"]
        )
    return rows


def _slicot_reductions() -> Iterator[Example]:
    power = known.slicot_power_system()
    sys, sigma = power.system(), power.hankel_singular_values
    answers = power.reductions
    yield Example(
        "SLICOT AB09AD",
        "Hankel values",
        "hankel_singular_values",
        sigma,
        power.digits,
        lambda: hsv.hankel_singular_values(sys),
    )
    relative = answers["balanced_truncation"]["threshold"] / sigma[0]  # SLICOT's tolerance is absolute
    yield Example(
        "SLICOT AB09AD",
        "order for the tolerance 0.1",
        "balanced_truncation",
        np.asarray(answers["balanced_truncation"]["order"]),
        0,
        lambda: hsv.balanced_truncation(sys, hsv.Threshold(relative)).orders,
    )
    perturbation = answers["singular_perturbation"]
    yield Example(
        "SLICOT AB09BD",
        "D, order 5",
        "singular_perturbation",
        perturbation["D"],
        4,
        lambda: hsv.singular_perturbation(sys, perturbation["order"]).system.D,
    )
    optimal = answers["hankel_norm_approximation"]
    yield Example(
        "SLICOT AB09CD",
        "poles, order 5",
        "hankel_norm_approximation",
        _sorted(optimal["poles"]),
        4,
        lambda: _sorted(hsv.hankel_norm_approximation(sys, optimal["order"]).system.poles()),
    )
    yield Example(
        "SLICOT AB09CD",
        "D, order 5",
        "hankel_norm_approximation",
        optimal["D"],
        4,
        lambda: hsv.hankel_norm_approximation(sys, optimal["order"]).system.D,
    )
    yield Example(
        "SLICOT AB09MD",
        "Hankel values of the part left of -0.6",
        "split_unstable",
        answers["part_left_of_-0.6"]["hankel_singular_values"],
        4,
        lambda: hsv.hankel_singular_values(part_left_of(sys, -0.6)),
    )


def _slicot_weighted_reductions() -> Iterator[Example]:
    enns, optimal = slicot.ab09id(), slicot.ab09jd()

    def truncation() -> hsv.Reduction:
        return hsv.reduce_stable_part(
            enns.sys,
            enns.order - 1,  # the unstable pole counts
            lambda stable, rule: hsv.frequency_weighted_truncation(stable, rule, output_weight=enns.weight),
        )

    def approximation() -> hsv.Reduction:
        return hsv.frequency_weighted_hankel_norm_approximation(
            optimal.sys, optimal.rule(), output_weight=optimal.weight
        )

    names = ("SLICOT AB09ID", "frequency_weighted_truncation")
    yield _printed_values(
        *names, "weighted Hankel values of the stable part", enns, lambda: truncation().hankel_singular_values
    )
    yield Example(
        names[0],
        "poles, order 2",
        names[1],
        _sorted(enns.reduced.poles()),
        slicot.DIGITS,
        lambda: _sorted(truncation().system.poles()),
    )
    names = ("SLICOT AB09JD, AB09KD", "frequency_weighted_hankel_norm_approximation")
    yield _printed_values(*names, "weighted Hankel values", optimal, lambda: approximation().hankel_singular_values)
    yield _printed_order(*names, optimal, approximation)
    yield _printed_feedthrough(*names, optimal, approximation)


def _slicot_riccati_reductions() -> Iterator[Example]:
    stochastic = slicot.ab09hd()

    def stochastic_truncation() -> hsv.Reduction:
        return hsv.stochastic_truncation(stochastic.sys, stochastic.rule(), alpha=1.0)

    names = ("SLICOT AB09HD", "stochastic_truncation")
    yield _printed_values(
        *names, "characteristic values", stochastic, lambda: stochastic_truncation().characteristic_values
    )
    yield _printed_order(*names, stochastic, stochastic_truncation)
    truncated, perturbed = slicot.ab09fd(), slicot.ab09gd()

    def of_factors(printed: slicot.PrintedReduction, method: Method) -> hsv.Reduction:
        inner = hsv.inner_coprime_factors
        return hsv.coprime_factor_reduction(printed.sys, printed.rule(), factorization=inner, method=method)

    def truncation() -> hsv.Reduction:
        return of_factors(truncated, hsv.balanced_truncation)

    def perturbation() -> hsv.Reduction:
        return of_factors(perturbed, hsv.singular_perturbation)

    names = ("SLICOT AB09FD", "coprime_factor_reduction")
    yield _printed_values(*names, "Hankel values of the factors", truncated, lambda: truncation().characteristic_values)
    yield _printed_order(*names, truncated, truncation)
    yield _printed_states(*names, truncated, truncation)
    names = ("SLICOT AB09GD", "coprime_factor_reduction")
    yield _printed_states(*names, perturbed, perturbation)
    yield _printed_feedthrough(*names, perturbed, perturbation)


def _slicot_equations() -> Iterator[Example]:
    factored, b = known.slicot_sb03od(), known.slicot_sb03od_factor()

    def solution() -> np.ndarray:
        L = hsv.solve_lyapunov_factored(factored.a, b, discrete=False)
        return L @ L.T

    yield Example("SLICOT SB03OD", "X = L L^T", "solve_lyapunov_factored", factored.x, 4, solution)
    stein = known.slicot_sb03md()
    yield Example(
        "SLICOT SB03MD",
        "X",
        "solve_discrete_lyapunov",
        stein.x,
        4,
        lambda: hsv.solve_discrete_lyapunov(stein.a, stein.q),
    )


def _slicot_riccati_equations() -> Iterator[Example]:
    for source, equation in (("SLICOT SB02OD, SG02AD", slicot.sb02od()), ("SLICOT SB02MD", slicot.sb02md())):
        yield Example(
            source,
            "X",
            "solve_continuous_riccati",
            equation.x,
            slicot.DIGITS,
            lambda e=equation: hsv.solve_continuous_riccati(e.a, e.b, e.q, e.r),
        )
    singular = slicot.sb02nd()
    yield Example(
        "SLICOT SB02ND",
        "X, with r = 0",
        "solve_discrete_riccati",
        singular.x,
        slicot.DIGITS,
        lambda: hsv.solve_discrete_riccati(singular.a, singular.b, singular.q, singular.r),
    )


def _two_states() -> Iterator[Example]:
    lag, sampled, oscillator = known.two_state_lag(), known.two_state_lag_sampled(), known.two_state_oscillator()
    yield Example(
        "python-control's tests, after MATLAB's `hsvd`",
        "Hankel values",
        "hankel_singular_values",
        lag.hankel_singular_values,
        lag.digits,
        lambda: hsv.hankel_singular_values(lag.system()),
    )
    yield Example(
        "python-control's tests, after MATLAB's `gram`",
        "P",
        "controllability_gramian",
        lag.controllability_gramian,
        lag.digits,
        lambda: hsv.controllability_gramian(lag.system()),
    )
    yield Example(
        "python-control's tests, after MATLAB's `gram`",
        "P, sampled every 0.2 s",
        "discretize",
        sampled.controllability_gramian,
        sampled.digits,
        lambda: hsv.controllability_gramian(hsv.discretize(lag.system(), sampled.dt)),
    )
    yield Example(
        "MATLAB's `dgram`",
        "Q, discrete",
        "observability_gramian",
        oscillator.observability_gramian,
        oscillator.digits,
        lambda: hsv.observability_gramian(oscillator.system()),
    )


def _transfer_functions() -> Iterator[Example]:
    quotient = known.four_state_transfer_function()
    sys = quotient.system()
    truncation = quotient.reductions["balanced_truncation"]
    yield Example(
        "python-control's tests, after MATLAB's `balred`",
        "A, order 2",
        "balanced_truncation",
        truncation["A"],
        quotient.digits,
        lambda: _with_signs_of(truncation["A"], hsv.balanced_truncation(sys, truncation["order"]).system.A),
    )
    matched = quotient.reductions["singular_perturbation"]
    yield Example(
        "50-digit arithmetic",
        "A, order 2, matched DC gain",
        "singular_perturbation",
        matched["A"],
        9,
        lambda: _with_signs_of(matched["A"], hsv.singular_perturbation(sys, matched["order"]).system.A),
    )
    yield Example(
        "50-digit arithmetic",
        "D, order 2, matched DC gain",
        "singular_perturbation",
        matched["D"],
        11,
        lambda: hsv.singular_perturbation(sys, matched["order"]).system.D,
    )


def _varga() -> Iterator[Example]:
    printed = known.varga_weighted()
    plant, weights = printed.system(), printed.weights()

    def reduced() -> hsv.StateSpace:
        return hsv.frequency_weighted_singular_perturbation(plant, printed.order, **weights).system.to_dense()

    names = ("Varga, weighted reduction", "frequency_weighted_singular_perturbation")
    yield Example(
        names[0],
        "numerator and denominator, order 1",
        names[1],
        np.asarray(printed.reduced),
        3,
        lambda: _polynomials_of_first_order(reduced()),
    )
    yield Example(
        names[0],
        "weighted error",
        f"{names[1]}`, `hinf_norm",
        np.asarray(printed.weighted_error),
        4,
        lambda: hsv.hinf_norm(weighted_error(plant - reduced(), **weights)),
    )


def _printed_values(
    source: str, call: str, quantity: str, printed: slicot.PrintedReduction, found: Callable[[], np.ndarray]
) -> Example:
    return Example(source, quantity, call, printed.values, slicot.DIGITS, found)


def _printed_order(source: str, call: str, printed: slicot.PrintedReduction, reduce: Reduce) -> Example:
    quantity = f"order for the tolerance {printed.tolerance}"
    return Example(source, quantity, call, np.asarray(printed.order), 0, lambda: reduce().orders)


def _printed_feedthrough(source: str, call: str, printed: slicot.PrintedReduction, reduce: Reduce) -> Example:
    return Example(
        source, f"D, order {printed.order}", call, printed.reduced.D, slicot.DIGITS, lambda: reduce().system.D
    )


def _printed_states(source: str, call: str, printed: slicot.PrintedReduction, reduce: Reduce) -> Example:
    A = printed.reduced.A
    quantity = f"A, order {printed.order}"
    return Example(source, quantity, call, A, slicot.DIGITS, lambda: _with_signs_of(A, reduce().system.A))


def part_left_of(sys: hsv.StateSpace, boundary: float) -> hsv.StateSpace:
    """Return the part of a continuous system with the poles left of a vertical line: the stable part of the system shifted by it."""
    shift = boundary * np.eye(sys.n_states)
    part, _ = hsv.split_unstable(replace_A(sys, sys.A - shift))
    return replace_A(part, part.A + boundary * np.eye(part.n_states))


def replace_A(sys: hsv.StateSpace, A: np.ndarray) -> hsv.StateSpace:
    """Return the system with another state matrix."""
    return hsv.StateSpace(A, sys.B, sys.C, sys.D, dt=sys.dt)


def weighted_error(
    error: hsv.StateSpace, input_weight: hsv.StateSpace, output_weight: hsv.StateSpace
) -> hsv.StateSpace:
    """Return output weight, error and input weight in series."""
    return _series(_series(input_weight, error), output_weight)


def _series(first: hsv.StateSpace, second: hsv.StateSpace) -> hsv.StateSpace:
    A = np.block([[first.A, np.zeros((first.n_states, second.n_states))], [second.B @ first.C, second.A]])
    B = np.concatenate([first.B, second.B @ first.D])
    return hsv.StateSpace(A, B, np.hstack([second.D @ first.C, second.C]), second.D @ first.D, dt=first.dt)


def _sorted(poles: np.ndarray) -> np.ndarray:
    """Sort by the real part, then the imaginary one, of the digits that are printed: the two of a pair differ in their last bits."""
    poles = np.asarray(poles, complex)
    return poles[np.lexsort((poles.imag, poles.real.round(4)))]


def _with_signs_of(printed: np.ndarray, A: np.ndarray) -> np.ndarray:
    """Balanced coordinates are determined up to signs: turn all states but the first so that the first row has the printed signs."""
    turn = np.sign(A[0] * printed[0])
    turn[0] = 1
    return turn[:, None] * A * turn


def _polynomials_of_first_order(sys: hsv.StateSpace) -> np.ndarray:
    """Return numerator and denominator by falling powers."""
    a, b, c, d = (x.item() for x in (sys.A, sys.B, sys.C, sys.D))
    return np.array([[d, c * b - d * a], [1, -a]])


def _text(values: np.ndarray, decimals: int) -> str:
    def number(x: complex) -> str:
        re, im = (round(float(part), decimals) + 0.0 for part in (np.real(x), np.imag(x)))
        return f"{re:.{decimals}f}" + (f"{im:+.{decimals}f}i" if im else "")

    return "; ".join(" ".join(number(x) for x in row) for row in np.atleast_2d(values))
