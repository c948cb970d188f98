"""Benchmarks of `hsv/_discretize.py`."""

import scipy.signal

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system


class ZeroOrderHold:
    """How long does sampling many dense continuous systems with a zero-order hold take, beside loops over SciPy and python-control?"""

    params = (sizes([(1, 128), (512, 16)], [(1, 256)]), ["hsv", "scipy", "python-control"])
    param_names = ("(systems, states)", "library")

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=0, batch=(systems,))
        if library == "hsv":
            self.compute = prepared(lambda: hsv.discretize(system, 0.1, "zoh"), library)
        elif library == "scipy":
            each = [(s.A, s.B, s.C, s.D) for s in libraries.members(system)]
            self.compute = lambda: [scipy.signal.cont2discrete(one, 0.1, method="zoh") for one in each]
        else:
            peers = libraries.to_control(system)
            self.compute = lambda: [peer.sample(0.1, method="zoh") for peer in peers]

    def time_discretize(self, shape, library):
        self.compute()


class Diagonal:
    """How long does it take for many diagonal systems at once, by NumPy arrays and by tensors?"""

    params = (sizes([(5120, 64)], [(100_000, 64)]), ["hsv", "hsv, torch"])
    param_names = ("(systems, states)", "library")

    def setup(self, shape, library):
        systems, states = shape
        system = libraries.in_arrays(library, diagonal_system(states, dt=0, batch=(systems,)))
        self.compute = prepared(lambda: hsv.discretize(system, 0.1, "zoh"), "hsv")

    def time_discretize(self, shape, library):
        self.compute()
