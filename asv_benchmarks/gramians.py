"""Benchmarks of `hsv/_gramians.py`."""

import numpy as np
import scipy.linalg

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system


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


class CrossGramian:
    """How long does the cross Gramian of one dense continuous system take, beside SciPy's Sylvester solver?"""

    params = (sizes([16, 128], [256]), ["hsv", "scipy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.cross_gramian(system), library)
        else:
            A, q = system.A, -system.B @ system.C
            self.compute = lambda: scipy.linalg.solve_sylvester(A, A, q)

    def time_cross_gramian(self, states, library):
        self.compute()


class FiniteHorizon:
    """How long does the Gramian over 1,000 steps of one dense discrete system take, by doubling, beside a loop over the steps?"""

    params = (sizes([16, 64], [256]), ["hsv", "numpy"])
    param_names = ("states", "library")
    timeout = 120

    def setup(self, states, library):
        system = dense_system(states, dt=True)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.controllability_gramian(system, 1000), library)
            return
        A, BB = system.A, system.B @ system.B.T

        def compute() -> np.ndarray:
            P = np.zeros_like(A)
            for _ in range(1000):
                P = A @ P @ A.T + BB
            return P

        self.compute = compute

    def time_controllability_gramian(self, states, library):
        self.compute()


class DiagonalFactors:
    """How long do accurate factors of the Gramians of many diagonal systems take, by precision, in NumPy arrays and in tensors, beside torch's Cholesky factors of the closed form (which need the jitter they get here, and lose the small values)?"""

    params = (
        sizes([(512, 16), (64, 128)], [(5120, 16), (1024, 128)]),
        sizes(["complex64", "complex128"], ["float32", "float64"]),
        ["hsv", "hsv, torch", "torch"],
    )
    param_names = ("(systems, states)", "dtype", "library")
    timeout = 300

    def setup(self, shape, dtype, library):
        systems, states = shape
        system = libraries.in_arrays(library, diagonal_system(states, dt=True, batch=(systems,), dtype=dtype))
        if library != "torch":
            self.compute = prepared(lambda: hsv.controllability_factor(system), "hsv")
            return
        import torch

        poles, B = system.poles(), system.B
        wide = torch.complex128 if poles.is_complex() else torch.float64
        poles, B = poles.to(wide), B.to(wide)
        jitter = 1e-10 * torch.eye(states, dtype=wide)

        def compute() -> torch.Tensor:
            P = B @ B.mH / (1 - poles[..., :, None] * poles.conj()[..., None, :])
            size = P.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
            return torch.linalg.cholesky(P + size * jitter)

        self.compute = compute

    def time_controllability_factor(self, shape, dtype, library):
        self.compute()
