"""Benchmarks of `hsv/_gramians.py`."""

import control
import scipy.linalg

import hsv
from asv_benchmarks import sizes
from asv_benchmarks.peers import to_control
from asv_benchmarks.systems import dense_system


class ControllabilityGramian:
    """How long does the Gramian of one dense continuous system take, beside control.gram (SLICOT) and SciPy's Lyapunov solver?"""

    params = (sizes([16, 100, 256], [512]), ["hsv", "python-control", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.system = dense_system(states, dt=0)
        self.peer = to_control(self.system)
        hsv.controllability_gramian(self.system)  # compiles the kernel

    def time_controllability_gramian(self, states, library):
        if library == "hsv":
            hsv.controllability_gramian(self.system)
        elif library == "python-control":
            control.gram(self.peer, "c")
        else:
            scipy.linalg.solve_continuous_lyapunov(self.system.A, -self.system.B @ self.system.B.T)


class ControllabilityFactor:
    """How long does a factor of the Gramian take, without forming the Gramian, beside control.gram with "cf" (SLICOT)?"""

    params = (sizes([16, 100, 256], [512]), ["hsv", "python-control"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.system = dense_system(states, dt=0)
        self.peer = to_control(self.system)
        hsv.controllability_factor(self.system)

    def time_controllability_factor(self, states, library):
        if library == "hsv":
            hsv.controllability_factor(self.system)
        else:
            control.gram(self.peer, "cf")


class BatchOfGramians:
    """How long do the Gramians of many small continuous systems take in one call, beside a loop over control.gram?"""

    params = (sizes([(512, 16), (32, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        self.system = dense_system(states, dt=0, batch=(systems,))
        if library == "python-control":
            each = zip(self.system.A, self.system.B, self.system.C, strict=True)
            self.peers = [control.ss(A, B, C, 0) for A, B, C in each]
        hsv.controllability_gramian(dense_system(4, dt=0, batch=(2,)))

    def time_controllability_gramian(self, shape, library):
        if library == "hsv":
            hsv.controllability_gramian(self.system)
        else:
            for peer in self.peers:
                control.gram(peer, "c")
