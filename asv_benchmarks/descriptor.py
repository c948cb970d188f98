"""Benchmarks of `hsv/_descriptor.py`."""

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


def mass_matrix(states: int) -> np.ndarray:
    """Return a matrix near the identity."""
    return np.eye(states) + 0.1 * np.random.default_rng(states).standard_normal((states, states)) / np.sqrt(states)


class GeneralizedFactor:
    """How long does a factor of the Gramian of a descriptor system take, E not inverted, beside SLICOT's SG03BD?"""

    params = (sizes([16, 128], [256]), ["continuous", "discrete"], ["hsv", "slycot"])
    param_names = ("states", "time", "library")

    def setup(self, states, time, library):
        discrete = time == "discrete"
        system, e = dense_system(states, dt=discrete or 0), mass_matrix(states)
        a, b = e @ system.A, system.B
        if library == "hsv":
            self.compute = prepared(
                lambda: hsv.solve_generalized_lyapunov_factored(a, e, b, discrete=discrete), library
            )
            return
        import slycot

        m, one, workspace = b.shape[1], np.eye(states), 8 * states**2 + 64 * states
        room = np.hstack([b, np.zeros((states, states - m))])
        kind = "D" if discrete else "C"
        self.compute = lambda: slycot.sg03bd(states, m, a, e, one, one, room, kind, trans="T", ldwork=workspace)

    def time_solve_generalized_lyapunov_factored(self, states, time, library):
        self.compute()


class GeneralizedDiscreteLyapunov:
    """How long does a generalised discrete Lyapunov equation take, beside SLICOT's SG03AD?"""

    params = (sizes([16, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system, e = dense_system(states, dt=True), mass_matrix(states)
        a, q = e @ system.A, system.B @ system.B.T
        if library == "hsv":
            self.compute = prepared(lambda: hsv.solve_generalized_discrete_lyapunov(a, e, q), library)
            return
        import slycot

        one, workspace = np.eye(states), 2 * states**2 + 8 * states + 16
        self.compute = lambda: slycot.sg03ad("D", "X", "N", "T", "U", states, a, e, one, one, -q, ldwork=workspace)

    def time_solve_generalized_discrete_lyapunov(self, states, library):
        self.compute()


class FromDescriptor:
    """How long does the standard system of many descriptor systems take, beside a loop of SciPy's solves?"""

    params = (sizes([(1, 128), (512, 16)], [(1, 256)]), ["hsv", "scipy"])
    param_names = ("(systems, states)", "library")

    def setup(self, shape, library):
        systems, states = shape
        system, e = dense_system(states, dt=0, batch=(systems,)), mass_matrix(states)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.from_descriptor(e, system.A, system.B, system.C, dt=0), library)
        else:
            rights = [np.hstack(pair) for pair in zip(system.A, system.B, strict=True)]
            self.compute = lambda: [scipy.linalg.solve(e, right) for right in rights]

    def time_from_descriptor(self, shape, library):
        self.compute()
