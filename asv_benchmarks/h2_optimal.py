"""Benchmarks of `hsv/_h2_optimal.py`; ``python -m asv_benchmarks.h2_optimal`` prints errors beside balanced truncation and IRKA."""

import time
import warnings

import numpy as np

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import diagonal_system, lru_system

# states, inputs and outputs, what is kept; the batch is that of an S4D layer
LAYERS = {
    "64 to 16, 8 ports": (lambda: lru_system(64, 8), 16),
    "128 to 32, 32 ports": (lambda: lru_system(128, 32), 32),
    "384 to 96, 512 ports": (lambda: lru_system(384, 512), 96),
    "64 to 16, 64 systems": (lambda: diagonal_system(64, dt=True, batch=(64,)), 16),
}
METHODS = {
    "hsv": lambda sys, order: hsv.h2_optimal_reduction(sys, order, tolerance=1e-6),
    "hsv irka": hsv.irka,
    "hsv balanced": hsv.balanced_truncation,
}


def quietly(method, sys, order):
    """Reduce; what has not settled is in the notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        return METHODS[method](sys, order)


class H2Optimal:
    """How long does an H2-optimal reduction of a diagonal layer take, to a share of 1e-6 of the squared error, beside IRKA and balanced truncation?"""

    params = (sizes(list(LAYERS)[:2], list(LAYERS)[2:]), list(METHODS))
    param_names = ("system", "library")
    timeout = 300

    def setup(self, system, library):
        make, order = LAYERS[system]
        sys = make()
        self.compute = prepared(lambda: quietly(library, sys, order), library)

    def time_reduction(self, system, library):
        self.compute()


def main():
    """Print relative H2 errors and seconds."""
    print("H2 error relative to the norm of the system (root mean square over the batch), and seconds")
    for name, (make, order) in LAYERS.items():
        sys, parts = make(), []
        norm = hsv.h2_norm(sys)
        for method in METHODS:
            begin = time.perf_counter()
            red = quietly(method, sys, order)
            seconds = time.perf_counter() - begin
            error = np.sqrt(np.mean((hsv.h2_norm(sys - red.system) / norm) ** 2))
            parts.append(f"{method}: {error:.5f} in {seconds:.2f} s")
        print(f"  {name:24s} {'   '.join(parts)}")


if __name__ == "__main__":
    main()
