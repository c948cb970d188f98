"""Benchmarks of `hsv/_empirical.py` and `hsv/_projection.py`."""

import numpy as np

import hsv
from asv_benchmarks import sizes

STEPS = 100


def _network(states):
    """A line of nonlinear resistors: many states, one input, one output."""

    def rate(x, u, t):
        change = np.diff(x, axis=-1, prepend=0.0, append=0.0)
        force = change + change**3
        rate = force[..., 1:] - force[..., :-1] - 0.1 * x
        rate[..., 0] += u[..., 0]
        return rate

    return rate, lambda x, u, t: x[..., :1], np.zeros(states)


class Experiments:
    """What does it bring that experiments are simulated together, by a function that takes many at once?"""

    params = (sizes([32], [256]), ["controllability", "observability", "cross"], ["together", "one by one"])
    param_names = ("states", "Gramian", "experiments")

    def setup(self, states, gramian, experiments):
        rate, output, origin = _network(states)
        system = hsv.NonlinearSystem.from_functions(rate, output, steady_state=origin, steady_input=[0.0], dt=0)
        if experiments == "one by one":
            system = hsv.NonlinearSystem.from_simulation(
                system.simulate, steady_state=origin, steady_input=[0.0], dt=0, batched=False
            )
        compute = {
            "controllability": hsv.empirical_controllability_gramian,
            "observability": hsv.empirical_observability_gramian,
            "cross": hsv.empirical_cross_gramian,
        }[gramian]
        times = np.linspace(0, 10, STEPS + 1)
        self.compute = lambda: compute(system, times)

    def time_gramian(self, states, gramian, experiments):
        self.compute()


class Projections:
    """How long do projections from given Gramians take?"""

    params = ([32, 256], ["balancing", "cross"])
    param_names = ("states", "projection")

    def setup(self, states, projection):
        L = np.random.default_rng(0).normal(size=(2, states, states))
        P, Q = L @ L.swapaxes(-1, -2)
        self.compute = {
            "balancing": lambda: hsv.balancing_projection(P, Q, 4),
            "cross": lambda: hsv.cross_gramian_projection(P, 4),
        }[projection]

    def time_projection(self, states, projection):
        self.compute()
