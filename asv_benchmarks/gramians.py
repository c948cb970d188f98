"""Benchmarks of `hsv/_gramians.py`."""

from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system


class ControllabilityGramian:
    """How long does the Gramian of one dense continuous system take, beside control.gram (SLICOT) and SciPy's Lyapunov solver?"""

    params = (sizes([16, 256], [100, 512]), ["hsv", "python-control", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.compute = prepared(libraries.gramian(library, dense_system(states, dt=0)), library)

    def time_controllability_gramian(self, states, library):
        self.compute()


class ControllabilityFactor:
    """How long does a factor of the Gramian take, without forming the Gramian, beside control.gram with "cf" (SLICOT)?"""

    params = (sizes([16, 256], [100, 512]), ["hsv", "python-control"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.compute = prepared(libraries.factor(library, dense_system(states, dt=0)), library)

    def time_controllability_factor(self, states, library):
        self.compute()


class BatchOfGramians:
    """How long do the Gramians of many small continuous systems take in one call, beside loops over control.gram and SciPy?"""

    params = (sizes([(512, 16), (16, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control", "scipy"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        self.compute = prepared(libraries.gramian(library, dense_system(states, dt=0, batch=(systems,))), library)

    def time_controllability_gramian(self, shape, library):
        self.compute()
