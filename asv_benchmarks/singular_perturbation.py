"""Benchmarks of `hsv/_singular_perturbation.py`."""

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class Continuous:
    """How long does singular perturbation of one dense continuous system to a quarter of its states take, beside SLICOT's AB09ND, python-control's way? (AB09BD as slycot calls it corrupts the heap.)"""

    params = (sizes([16, 128], [256]), ["hsv", "slycot"])
    param_names = ("states", "library")

    def setup(self, states, library):
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.singular_perturbation(system, states // 4), library)
            return
        import slycot

        sizes_ = states, system.n_inputs, system.n_outputs
        matrices = system.A, system.B, system.C, system.D
        self.compute = lambda: slycot.ab09nd("C", "B", "N", *sizes_, *matrices, nr=states // 4)

    def time_singular_perturbation(self, states, library):
        self.compute()
