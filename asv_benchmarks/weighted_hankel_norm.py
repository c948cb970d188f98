"""Benchmarks of `hsv/_weighted_hankel_norm.py`."""

import numpy as np

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class OutputWeight:
    """How long does Hankel-norm approximation with an invertible weight of 4 states take, beside SLICOT's AB09JD by ctrlsys?"""

    params = (sizes([16], [64]), ["hsv", "ctrlsys"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        size, rng = system.n_outputs, np.random.default_rng(1)
        A = np.diag(np.arange(1.0, 5.0))  # unstable poles, and zeros near them
        V = hsv.StateSpace(A, 0.1 * rng.normal(size=(4, size)), 0.1 * rng.normal(size=(size, 4)), np.eye(size), dt=0)
        order = states // 4
        if library == "hsv":
            self.compute = prepared(
                lambda: hsv.frequency_weighted_hankel_norm_approximation(system, order, output_weight=V), library
            )
            return
        import ctrlsys

        nothing = np.zeros((1, 1), order="F")
        matrices = [x for s in (system, V) for x in (s.A, s.B, s.C, s.D)]
        self.compute = lambda: ctrlsys.ab09jd(
            *("V", "N", "I", "C", "N", "F", states, 4, 0, system.n_inputs, size, order, 0.0),
            *(np.asfortranarray(x.copy()) for x in matrices),  # it writes into them
            *(nothing, nothing, nothing, nothing, 0.0, 0.0),
        )

    def time_hankel_norm(self, states, library):
        self.compute()
