"""Benchmarks of `hsv/_lyapunov.py`, `hsv/_doubling.py` and `hsv/_descriptor.py`."""

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class DiscreteLyapunov:
    """How long does one Stein equation take, by a Schur form and by doubling, beside SciPy's bilinear method and SLICOT's SB03MD?"""

    params = (sizes([16, 128], [256, 512]), ["hsv", "hsv, doubling", "scipy", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=True)
        a, q = system.A, system.B @ system.B.T
        if library == "slycot":
            import control

            self.compute = lambda: control.dlyap(a, q)
            return
        self.compute = {
            "hsv": lambda: hsv.solve_discrete_lyapunov(a, q),
            "hsv, doubling": lambda: hsv.solve_discrete_lyapunov_by_doubling(a, q),
            "scipy": lambda: scipy.linalg.solve_discrete_lyapunov(a, q, method="bilinear"),
        }[library]
        prepared(self.compute, library)

    def time_solve_discrete_lyapunov(self, states, library):
        self.compute()


class BatchOfFactors:
    """How long do factors of the Gramians of many small systems take in one call, by Hammarling's method and by doubling?"""

    params = (sizes([(512, 16), (16, 128)], [(5120, 16), (1024, 128)]), ["hsv", "hsv, doubling"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=0, batch=(systems,))
        solve = hsv.solve_lyapunov_factored if library == "hsv" else hsv.solve_lyapunov_factored_by_doubling
        self.compute = prepared(lambda: solve(system.A, system.B, discrete=False), library)

    def time_factors(self, shape, library):
        self.compute()


class GeneralizedLyapunov:
    """How long does a generalised continuous Lyapunov equation take, beside SLICOT's SG03AD?"""

    params = (sizes([16, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        a, q = system.A, -system.B @ system.B.T
        e = np.eye(states) + 0.1 * np.random.default_rng(states).standard_normal((states, states)) / np.sqrt(states)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.solve_generalized_continuous_lyapunov(a, e, q), library)
            return
        import slycot

        one, workspace = np.eye(states), 2 * states**2 + 8 * states + 16
        self.compute = lambda: slycot.sg03ad("C", "X", "N", "T", "U", states, a, e, one, one, q, ldwork=workspace)

    def time_solve_generalized_continuous_lyapunov(self, states, library):
        self.compute()
