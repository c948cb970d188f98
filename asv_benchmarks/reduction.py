"""Benchmarks of `hsv/_reduction.py`."""

import control

import hsv
from asv_benchmarks import sizes
from asv_benchmarks.peers import slycot_ab09ad, to_control
from asv_benchmarks.systems import dense_system, lru_system


class Continuous:
    """How long does balanced truncation of one dense continuous system to 10 states take, beside control.balred and SLICOT?"""

    params = (sizes([16, 100, 256], [512]), ["hsv", "python-control", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        self.system = dense_system(states, dt=0)
        self.peer = to_control(self.system)
        hsv.balanced_truncation(self.system, 10)  # compiles the kernel

    def time_balanced_truncation(self, states, library):
        if library == "hsv":
            hsv.balanced_truncation(self.system, 10)
        elif library == "python-control":
            control.balred(self.peer, 10)
        else:
            slycot_ab09ad(self.system, 10)


class LruLayer:
    """How long does it take to cut an LRU layer with 128 channels to a quarter, beside SLICOT on the real system of twice the states?"""

    params = (sizes([64, 256], [384]), ["hsv", "slycot"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        self.system = lru_system(states, width=128)
        if library == "slycot":
            self.system = hsv.real_part(self.system).to_dense()

    def time_balanced_truncation(self, states, library):
        if library == "hsv":
            hsv.balanced_truncation(self.system, states // 4)
        else:
            slycot_ab09ad(self.system, states // 2)


class Batch:
    """How long does balanced truncation of many small continuous systems to 4 states take in one call, beside a loop over control.balred?"""

    params = (sizes([(512, 16), (32, 128)], [(5120, 16), (1024, 128)]), ["hsv", "python-control"])
    param_names = ("(systems, states)", "library")
    timeout = 600

    def setup(self, shape, library):
        systems, states = shape
        self.system = dense_system(states, dt=0, batch=(systems,))
        if library == "python-control":
            each = zip(self.system.A, self.system.B, self.system.C, strict=True)
            self.peers = [control.ss(A, B, C, 0) for A, B, C in each]
        hsv.balanced_truncation(dense_system(4, dt=0, batch=(2,)), 2)

    def time_balanced_truncation(self, shape, library):
        if library == "hsv":
            hsv.balanced_truncation(self.system, 4)
        else:
            for peer in self.peers:
                control.balred(peer, 4)
