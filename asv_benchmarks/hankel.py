"""Benchmarks of `hsv/_hankel.py`. AB09AD computes a reduction too; slycot has no routine for the values alone."""

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system, lru_system


class Continuous:
    """How long do all Hankel values of one dense continuous system take, beside control.hsvd and SLICOT's AB09AD?"""

    params = (sizes([16, 256], [100, 512]), ["hsv", "python-control", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.compute = prepared(libraries.hankel_singular_values(library, dense_system(states, dt=0)), library)

    def time_hankel_singular_values(self, states, library):
        self.compute()


class Discrete:
    """How long do all Hankel values of one dense discrete system take, beside AB09AD? (control.hsvd has no discrete time.)"""

    params = (sizes([16, 256], [100, 512]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.compute = prepared(libraries.hankel_singular_values(library, dense_system(states, dt=True)), library)

    def time_hankel_singular_values(self, states, library):
        self.compute()


class LruLayer:
    """What do all Hankel values of an LRU layer with 128 channels cost, beside plain NumPy and AB09AD on the real system of twice the states?"""

    params = (sizes([64, 256], [384]), ["hsv", "numpy", "slycot"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        self.compute = prepared(libraries.hankel_singular_values(library, lru_system(states, width=128)), library)

    def time_hankel_singular_values(self, states, library):
        self.compute()

    def peakmem_hankel_singular_values(self, states, library):
        self.compute()


class Batch:
    """What do all Hankel values of many small continuous systems cost in one call, beside loops over control.hsvd and AB09AD?"""

    params = (sizes([(512, 16), (16, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control", "slycot"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=0, batch=(systems,))
        self.compute = prepared(libraries.hankel_singular_values(library, system), library)

    def time_hankel_singular_values(self, shape, library):
        self.compute()

    def peakmem_hankel_singular_values(self, shape, library):
        self.compute()


class ArraysAndPrecisions:
    """What do all Hankel values of many diagonal systems with 4 inputs and outputs cost, by precision, in NumPy arrays and in tensors?"""

    params = (
        sizes([(512, 16)], [(5120, 16), (1024, 128)]),
        ["float32", "float64", "complex64", "complex128"],
        ["hsv", "hsv, torch"],
    )
    param_names = ("(systems, states)", "dtype", "library")
    timeout = 300

    def setup(self, shape, dtype, library):
        systems, states = shape
        system = diagonal_system(states, dt=True, batch=(systems,), ports=4, dtype=dtype)
        system = libraries.in_arrays(library, system)
        self.compute = prepared(lambda: hsv.hankel_singular_values(system), "hsv")

    def time_hankel_singular_values(self, shape, dtype, library):
        self.compute()
