"""Benchmarks of `hsv/_systems.py`."""

import numpy as np
import scipy.signal

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system

FREQUENCIES = np.geomspace(1e-2, 1e2, 200)


class FrequencyResponse:
    """How long do 200 frequencies of one dense continuous system take, beside python-control (SLICOT's TB05AD) and a loop of NumPy solves?"""

    params = (sizes([16, 128], [256]), ["hsv", "python-control", "numpy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: system.frequency_response(FREQUENCIES), library)
        elif library == "python-control":
            (peer,) = libraries.to_control(system)
            self.compute = lambda: peer.frequency_response(FREQUENCIES)
        else:
            A, B, C, one = system.A, system.B, system.C, np.eye(states)
            self.compute = lambda: [C @ np.linalg.solve(1j * w * one - A, B) for w in FREQUENCIES]

    def time_frequency_response(self, states, library):
        self.compute()


class ImpulseResponse:
    """How long do 1,000 steps of a dense discrete system take, beside SciPy's loop over steps?"""

    params = (sizes([16, 128], [256]), ["hsv", "scipy"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        system = dense_system(states, dt=True)
        if library == "hsv":
            self.compute = prepared(lambda: system.impulse_response(1000), library)
        else:
            peer = scipy.signal.dlti(system.A, system.B, system.C, system.D, dt=1.0)
            self.compute = lambda: peer.impulse(n=1000)

    def time_impulse_response(self, states, library):
        self.compute()


class BatchOfDiagonalSystems:
    """How long do 64 frequencies and 64 steps of many diagonal systems take, by NumPy arrays and by tensors?"""

    params = (sizes([(512, 64)], [(5120, 64)]), ["frequency response", "impulse response"], ["hsv", "hsv, torch"])
    param_names = ("(systems, states)", "what", "library")

    def setup(self, shape, what, library):
        systems, states = shape
        system = libraries.in_arrays(library, diagonal_system(states, dt=True, batch=(systems,)))
        if what == "frequency response":
            self.compute = prepared(lambda: system.frequency_response(np.linspace(-3, 3, 64)), "hsv")
        else:
            self.compute = prepared(lambda: system.impulse_response(64), "hsv")

    def time_response(self, shape, what, library):
        self.compute()

    def peakmem_response(self, shape, what, library):
        self.compute()


class Diagonalize:
    """How long does the change to eigenvector coordinates take, with its condition, beside NumPy's eigenvectors alone?"""

    params = (sizes([(1, 128), (512, 16)], [(1, 256)]), ["hsv", "numpy"])
    param_names = ("(systems, states)", "library")

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=True, batch=(systems,))
        if library == "hsv":
            self.compute = prepared(lambda: hsv.diagonalize(system), library)
        else:
            self.compute = lambda: np.linalg.eig(system.A)

    def time_diagonalize(self, shape, library):
        self.compute()
