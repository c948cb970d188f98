"""Benchmarks of `hsv/_hankel.py`."""

import control
import numpy as np

import hsv
from asv_benchmarks import sizes
from asv_benchmarks.peers import plain_hankel_singular_values, slycot_ab09ad, to_control
from asv_benchmarks.systems import dense_system, lru_system


class Continuous:
    """How long do all Hankel values of one dense continuous system take, beside control.hsvd and SLICOT?

    AB09AD computes a reduction too; slycot has no routine for the values alone.
    """

    params = (sizes([16, 100, 256], [512]), ["hsv", "python-control", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.system = dense_system(states, dt=0)
        self.peer = to_control(self.system)
        hsv.hankel_singular_values(self.system)  # compiles the kernel

    def time_hankel_singular_values(self, states, library):
        if library == "hsv":
            hsv.hankel_singular_values(self.system)
        elif library == "python-control":
            control.hsvd(self.peer)
        else:
            slycot_ab09ad(self.system, 1)


class Discrete:
    """How long do all Hankel values of one dense discrete system take, beside SLICOT? (control.hsvd has no discrete time.)"""

    params = (sizes([16, 100, 256], [512]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.system = dense_system(states, dt=True)
        hsv.hankel_singular_values(self.system)

    def time_hankel_singular_values(self, states, library):
        if library == "hsv":
            hsv.hankel_singular_values(self.system)
        else:
            slycot_ab09ad(self.system, 1)


class LruLayer:
    """What do all Hankel values of an LRU layer with 128 channels cost in time and memory, beside plain NumPy and SLICOT on the real system of twice the states?"""

    params = (sizes([64, 256], [384]), ["hsv", "numpy", "slycot"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        self.system = lru_system(states, width=128)
        if library == "slycot":
            self.system = hsv.real_part(self.system).to_dense()

    def compute(self, library):
        if library == "hsv":
            hsv.hankel_singular_values(self.system)
        elif library == "numpy":
            plain_hankel_singular_values(self.system)
        else:
            slycot_ab09ad(self.system, 1)

    def time_hankel_singular_values(self, states, library):
        self.compute(library)

    def peakmem_hankel_singular_values(self, states, library):
        self.compute(library)


class Batch:
    """What do all Hankel values of many small continuous systems cost in one call, beside loops over control.hsvd and SLICOT?"""

    params = (sizes([(512, 16), (32, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control", "slycot"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        self.system = dense_system(states, dt=0, batch=(systems,))
        each = zip(self.system.A, self.system.B, self.system.C, strict=True)
        if library == "python-control":
            self.peers = [control.ss(A, B, C, 0) for A, B, C in each]
        elif library == "slycot":
            self.peers = [hsv.StateSpace(A, B, C, dt=0) for A, B, C in each]
        hsv.hankel_singular_values(dense_system(4, dt=0, batch=(2,)))

    def compute(self, library):
        if library == "hsv":
            hsv.hankel_singular_values(self.system)
        elif library == "python-control":
            np.stack([control.hsvd(peer) for peer in self.peers])
        else:
            np.stack([slycot_ab09ad(peer, 1)[-1] for peer in self.peers])

    def time_hankel_singular_values(self, shape, library):
        self.compute(library)

    def peakmem_hankel_singular_values(self, shape, library):
        self.compute(library)
