"""Benchmarks of `hsv/_split.py` and `hsv/_unstable.py`."""

import numpy as np

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


def unstable_system(states: int) -> hsv.StateSpace:
    """Return a dense continuous system with a few poles in the right half-plane."""
    system = dense_system(states, dt=0)
    A = system.A + 2.5 * np.eye(states) - 0.7 * np.eye(states)  # the eigenvalues fill a disc of radius 1 around -0.7
    return hsv.StateSpace(A, system.B, system.C, dt=0)


class SplitUnstable:
    """How long does it take to split off the unstable part of one dense system, beside an ordered Schur form (SciPy) alone?"""

    params = (sizes([16, 128], [256]), ["hsv", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = unstable_system(states)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.split_unstable(system), library)
            return
        import scipy.linalg

        self.compute = lambda: scipy.linalg.schur(system.A, sort="lhp")

    def time_split_unstable(self, states, library):
        self.compute()


class ReduceStablePart:
    """How long does a reduction of the stable part to 10 states take, the unstable one kept, beside SLICOT's AB09MD?"""

    params = (sizes([32, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = unstable_system(states)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.reduce_stable_part(system, 10), library)
            return
        import slycot

        unstable = int(np.sum(np.linalg.eigvals(system.A).real >= 0))
        arguments = states, system.n_inputs, system.n_outputs, system.A, system.B, system.C
        self.compute = lambda: slycot.ab09md("C", "B", "N", *arguments, nr=10 + unstable)

    def time_reduce_stable_part(self, states, library):
        self.compute()
