"""Benchmarks of `hsv/_norms.py`."""

import hsv
from asv_benchmarks import libraries, prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system


class H2:
    """How long does the H2 norm of one dense continuous system take, beside SLICOT's AB13BD?"""

    params = (sizes([16, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.h2_norm(system), library)
            return
        import slycot

        n, m, p = states, system.n_inputs, system.n_outputs
        self.compute = lambda: slycot.ab13bd(
            "C", "H", n, m, p, *(x.copy() for x in (system.A, system.B, system.C, system.D))
        )

    def time_h2_norm(self, states, library):
        self.compute()


class HInfinity:
    """How long does the H-infinity norm of one dense continuous system take, to 10 digits, beside SLICOT's AB13DD?"""

    params = (sizes([16, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")
    timeout = 300

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.hinf_norm(system), library)
            return
        import numpy as np
        import slycot

        arguments = states, system.n_inputs, system.n_outputs, system.A, np.eye(states), system.B, system.C, system.D
        self.compute = lambda: slycot.ab13dd("C", "I", "N", "D", *arguments, tol=1e-10)

    def time_hinf_norm(self, states, library):
        self.compute()


class ErrorOfAReduction:
    """How long does the H-infinity error of a balanced truncation to a quarter of the states take, for one diagonal system as it is and as a dense one?"""

    params = (sizes([32], [128]), ["hsv", "hsv, dense"])
    param_names = ("states", "library")
    timeout = 300

    def setup(self, states, library):
        system = diagonal_system(states, dt=True)
        reduced = hsv.balanced_truncation(system, states // 4).system
        system = system if library == "hsv" else system.to_dense()
        self.compute = prepared(lambda: hsv.hinf_error(system, reduced), "hsv")

    def time_hinf_error(self, states, library):
        self.compute()


class BatchOfNorms:
    """How long do the Hankel norms of many small continuous systems take in one call, beside control.hsvd in a loop?"""

    params = (sizes([(512, 16)], [(5120, 16)]), ["hsv", "python-control"])
    param_names = ("(systems, states)", "library")
    timeout = 300

    def setup(self, shape, library):
        systems, states = shape
        system = dense_system(states, dt=0, batch=(systems,))
        if library == "hsv":
            self.compute = prepared(lambda: hsv.hankel_norm(system), library)
            return
        values = libraries.hankel_singular_values(library, system)
        self.compute = lambda: [each[0] for each in values()]

    def time_hankel_norm(self, shape, library):
        self.compute()
