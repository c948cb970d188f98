"""Benchmarks of the Sylvester and the continuous Lyapunov solvers in `hsv/_lyapunov.py` and `hsv/_doubling.py`."""

import scipy.linalg

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class Sylvester:
    """How long does a Sylvester equation with two matrices of the same size take, beside SciPy and SLICOT's SB04MD?"""

    params = (sizes([16, 128], [256]), ["hsv", "scipy", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        a, b, q = system.A, system.A.T - 1.0, system.B @ system.C
        if library == "slycot":
            import slycot

            self.compute = lambda: slycot.sb04md(states, states, a, b, q)
            return
        solve = hsv.solve_sylvester if library == "hsv" else scipy.linalg.solve_sylvester
        self.compute = prepared(lambda: solve(a, b, q), "hsv")

    def time_solve_sylvester(self, states, library):
        self.compute()


class ContinuousLyapunov:
    """How long does one continuous Lyapunov equation take, by a Schur form and by doubling, beside SciPy?"""

    params = (sizes([16, 128], [256, 512]), ["hsv", "hsv, doubling", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        a, q = system.A, -system.B @ system.B.T
        solve = {
            "hsv": hsv.solve_continuous_lyapunov,
            "hsv, doubling": hsv.solve_continuous_lyapunov_by_doubling,
            "scipy": scipy.linalg.solve_continuous_lyapunov,
        }[library]
        self.compute = prepared(lambda: solve(a, q), "hsv")

    def time_solve_continuous_lyapunov(self, states, library):
        self.compute()
