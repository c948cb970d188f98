"""Benchmarks of `hsv/_irka.py`."""

import importlib.util
import warnings

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system

PEERS = ["pymor"] if importlib.util.find_spec("pymor") else []


class Irka:
    """How long does IRKA take, a dense continuous system to 8 states, from the same kind of start and to the same change of the poles (beside pyMOR where it is installed)?"""

    params = (sizes([32, 128], [256]), ["hsv", *PEERS])
    param_names = ("states", "library")
    timeout = 300

    def setup(self, states, library):
        system = dense_system(states, dt=0, ports=1)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.irka(system, 8, tolerance=1e-4), library)
            return
        from pymor.models.iosys import LTIModel
        from pymor.reductors.h2 import IRKAReductor

        model = LTIModel.from_matrices(system.A, system.B, system.C)
        self.compute = lambda: IRKAReductor(model).reduce(8, tol=1e-4, maxit=100, compute_errors=False)

    def time_irka(self, states, library):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.compute()
