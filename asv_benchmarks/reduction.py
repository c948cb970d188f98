"""Benchmarks of `hsv/_reduction.py`."""

import time

from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, lru_system


class Continuous:
    """How long does balanced truncation of one dense continuous system to 10 states take, beside control.balred and SLICOT's AB09AD?"""

    params = (sizes([16, 100, 256], [512]), ["hsv", "python-control", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.compute = prepared(libraries.balanced_truncation(library, dense_system(states, dt=0), 10), library)

    def time_balanced_truncation(self, states, library):
        self.compute()


class ProcessorTime:
    """How much processor time does balanced truncation of one dense continuous system take, beside SLICOT's AB09AD? (To be run with --threads 1.)"""

    params = (sizes([10, 50, 100, 256], [512]), ["hsv", "slycot"])
    param_names = ("states", "library")
    timer = time.process_time  # other programs on the machine count for less than on the clock

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        self.compute = prepared(libraries.balanced_truncation(library, system, min(10, states // 2)), library)

    def time_balanced_truncation(self, states, library):
        self.compute()


class LruLayer:
    """How long does it take to cut an LRU layer with 128 channels to a quarter, beside AB09AD on the real system of twice the states?"""

    params = (sizes([64, 256], [384]), ["hsv", "slycot"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        system = lru_system(states, width=128)
        self.compute = prepared(libraries.balanced_truncation(library, system, states // 4), library)

    def time_balanced_truncation(self, states, library):
        self.compute()


class Batch:
    """How long does balanced truncation of many small continuous systems to 4 states take in one call, beside loops over control.balred and AB09AD?"""

    params = (sizes([(512, 16), (16, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control", "slycot"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=0, batch=(systems,))
        self.compute = prepared(libraries.balanced_truncation(library, system, 4), library)

    def time_balanced_truncation(self, shape, library):
        self.compute()
