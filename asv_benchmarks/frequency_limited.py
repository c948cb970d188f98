"""Benchmarks of `hsv/_frequency_limited.py`."""

import scipy.linalg

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class FrequencyLimitedGramians:
    """How long do both Gramians over a band of frequencies take, beside SciPy's two Lyapunov equations over all of them?"""

    params = (sizes([16, 128], [256]), ["hsv", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.frequency_limited_gramians(system, (0.1, 2.0)), library)
            return
        solve = scipy.linalg.solve_continuous_lyapunov
        A, B, C = system.A, system.B, system.C
        self.compute = lambda: (solve(A, -B @ B.T), solve(A.T, -C.T @ C))

    def time_frequency_limited_gramians(self, states, library):
        self.compute()
