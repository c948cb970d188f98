"""Benchmarks of `hsv/_limited.py`."""

import hsv
from asv_benchmarks import sizes
from asv_benchmarks.systems import dense_system

METHODS = {
    "all": lambda system, order: hsv.balanced_truncation(system, order),
    "band": lambda system, order: hsv.frequency_limited_truncation(system, order, (0.1, 2.0)),
    "band, stable": lambda system, order: hsv.frequency_limited_truncation(
        system, order, (0.1, 2.0), stability="absolute-value"
    ),
    "band, steady state": lambda system, order: hsv.frequency_limited_singular_perturbation(system, order, (0.1, 2.0)),
    "window": lambda system, order: hsv.time_limited_truncation(system, order, 4.0),
    "window, stable": lambda system, order: hsv.time_limited_truncation(system, order, 4.0, stability="absolute-value"),
}


class Limited:
    """What does a limit in frequency or time cost, beside truncation without one?"""

    params = (sizes([16, 128], [256]), list(METHODS))
    param_names = ("states", "limit")

    def setup(self, states, limit):
        system = dense_system(states, dt=0)
        self.compute = lambda: METHODS[limit](system, 4)
        self.compute()

    def time_truncation(self, states, limit):
        self.compute()
