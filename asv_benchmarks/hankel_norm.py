"""Benchmarks of `hsv/_hankel_norm.py` and `hsv/_con_eigenvalues.py`. slycot has no AB09CD, so that no peer computes this."""

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system


class Dense:
    """How long does an optimal Hankel-norm approximation of a dense continuous system take, beside our balanced truncation to the same order, by the square root and balancing-free?"""

    params = (sizes([16, 64], [256]), ["hsv", "hsv, balanced", "hsv, balancing-free"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        method = {
            "hsv": hsv.hankel_norm_approximation,
            "hsv, balanced": hsv.balanced_truncation,
            "hsv, balancing-free": hsv.balancing_free_truncation,
        }[library]
        self.compute = prepared(lambda: method(system, states // 4), "hsv")

    def time_hankel_norm_approximation(self, states, library):
        self.compute()


class Diagonal:
    """How long does the approximation of a diagonal system with one input and output take by con-eigenvectors (checked, and diagonal again), beside the dense way?"""

    params = (sizes([16, 64], [256]), ["hsv", "hsv, dense"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = diagonal_system(states, dt=True)
        system = system if library == "hsv" else system.to_dense()
        self.compute = prepared(lambda: hsv.hankel_norm_approximation(system, states // 4), "hsv")

    def time_hankel_norm_approximation(self, states, library):
        self.compute()
