"""Benchmarks of `hsv/_riccati.py` and of the balancings that rest on it."""

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class Equation:
    """How long does one Riccati equation take, beside SciPy's ordered QZ and SLICOT's SB02MD (an ordered Schur form, no refinement)?"""

    params = (["continuous", "discrete"], sizes([16, 128], [256]), ["hsv", "scipy", "slycot"])
    param_names = ("time", "states", "library")

    def setup(self, time, states, library):
        discrete = time == "discrete"
        system = dense_system(states, dt=True if discrete else 0)
        A, B, Q, R = system.A, system.B, system.C.T @ system.C, np.eye(system.n_inputs)
        if library == "slycot":
            import slycot

            G = B @ B.T
            # "I" and "S" give the stabilising solution in both times
            self.compute = lambda: slycot.sb02md(states, A, G, Q, "D" if discrete else "C", hinv="I", sort="S")
            return
        ours = hsv.solve_discrete_riccati if discrete else hsv.solve_continuous_riccati
        theirs = scipy.linalg.solve_discrete_are if discrete else scipy.linalg.solve_continuous_are
        solve = ours if library == "hsv" else theirs
        self.compute = prepared(lambda: solve(A, B, Q, R), library)

    def time_riccati(self, time, states, library):
        self.compute()


class Balancing:
    """How long does a reduction of a dense continuous system to a quarter of its states take by each method, beside pyMOR's reductor and our balanced truncation?"""

    params = (
        ["LQG", "bounded real", "positive real"],
        sizes([16, 64], [128]),
        ["hsv", "hsv, balanced truncation", "pymor"],
    )
    param_names = ("method", "states", "library")

    def setup(self, method, states, library):
        system = dense_system(states, dt=0)
        gamma = 1.2 * float(hsv.hinf_norm(system))
        if method == "positive real":
            D = gamma * np.eye(system.n_inputs)
            system = hsv.StateSpace(system.A, system.B, system.C, D, dt=0)
        order = states // 4
        if library == "pymor":
            from pymor.models.iosys import LTIModel
            from pymor.reductors.bt import BRBTReductor, LQGBTReductor, PRBTReductor

            def reduce():
                model = LTIModel.from_matrices(system.A, system.B, system.C, system.D)
                if method == "bounded real":
                    return BRBTReductor(model, gamma=gamma).reduce(order)
                return (LQGBTReductor if method == "LQG" else PRBTReductor)(model).reduce(order)

            self.compute = reduce
            return
        ours = {
            "LQG": hsv.lqg_balanced_truncation,
            "bounded real": lambda sys, rule: hsv.bounded_real_truncation(sys, rule, gamma=gamma),
            "positive real": hsv.positive_real_truncation,
        }[method]
        reduction = ours if library == "hsv" else hsv.balanced_truncation
        self.compute = prepared(lambda: reduction(system, order), "hsv")

    def time_balancing(self, method, states, library):
        self.compute()


class StochasticAndCoprime:
    """How long do balanced stochastic truncation and the reduction of coprime factors to a quarter of the states take, beside our balanced truncation?"""

    params = (
        ["continuous", "discrete"],
        sizes([16, 128], [256]),
        ["hsv, stochastic", "hsv, coprime", "hsv, balanced truncation"],
    )
    param_names = ("time", "states", "library")

    def setup(self, time, states, library):
        system = dense_system(states, dt=True if time == "discrete" else 0)
        method = {
            "hsv, stochastic": lambda sys, rule: hsv.stochastic_truncation(sys, rule, alpha=1.0),
            "hsv, coprime": hsv.coprime_factor_reduction,
            "hsv, balanced truncation": hsv.balanced_truncation,
        }[library]
        self.compute = prepared(lambda: method(system, states // 4), "hsv")

    def time_reduction(self, time, states, library):
        self.compute()


class Factorisation:
    """How long do coprime factors of a dense unstable system take: normalised, with an inner denominator, and with a prescribed decay, beside one Riccati equation of SciPy?"""

    params = (sizes([16, 128], [256]), ["hsv, normalised", "hsv, inner", "hsv, stable", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        A = system.A + 1.8 * np.eye(states)  # the rightmost poles become unstable
        system = hsv.StateSpace(A, system.B, system.C, dt=0)
        if library == "scipy":
            R = np.eye(system.n_outputs)
            self.compute = lambda: scipy.linalg.solve_continuous_are(A.T, system.C.T, system.B @ system.B.T, R)
            return
        factorize = {
            "hsv, normalised": hsv.normalized_coprime_factors,
            "hsv, inner": hsv.inner_coprime_factors,
            "hsv, stable": lambda sys: hsv.stable_coprime_factors(sys, 0.1),
        }[library]
        self.compute = prepared(lambda: factorize(system), "hsv")

    def time_factorisation(self, states, library):
        self.compute()
