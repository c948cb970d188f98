"""Benchmarks of `hsv/_frequency_weighted.py`."""

import numpy as np

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


def _weight(states, size, rng):
    A = rng.normal(size=(states, states))
    A = A / (1.2 * np.abs(np.linalg.eigvals(A)).max()) - 1.1 * np.eye(states)
    return hsv.StateSpace(A, rng.normal(size=(states, size)), rng.normal(size=(size, states)), np.eye(size), dt=0)


class BothWeights:
    """How long does a reduction to a quarter of the states take with weights of 8 states on both sides, beside SLICOT's AB09ID by ctrlsys?"""

    params = (
        sizes([16, 128], [256]),
        ["truncation", "singular perturbation", "truncation, stable"],
        ["hsv", "ctrlsys"],
    )
    param_names = ("states", "method", "library")

    def setup(self, states, method, library):
        system, rng = dense_system(states, dt=0), np.random.default_rng(1)
        V, W = _weight(8, system.n_outputs, rng), _weight(8, system.n_inputs, rng)
        order, stable = states // 4, method.endswith("stable")
        if library == "hsv":
            reduce = (
                hsv.frequency_weighted_singular_perturbation
                if method.startswith("singular")
                else hsv.frequency_weighted_truncation
            )
            options = {"input_weight": W, "output_weight": V, "input_mix": 1.0, "output_mix": 1.0}
            if stable:
                options |= {"stability": "positive-part", "input_mix": 0.5, "output_mix": 0.5}
            self.compute = prepared(lambda: reduce(system, order, **options), library)
            return
        import ctrlsys

        sizes_ = states, system.n_inputs, system.n_outputs, 8, system.n_outputs, 8, system.n_inputs
        choice, mix = ("E", 0.5) if stable else ("S", 1.0)
        job = "S" if method.startswith("singular") else "B"
        matrices = [x for s in (system, V, W) for x in (s.A, s.B, s.C, s.D)]
        self.compute = lambda: ctrlsys.ab09id(
            *("C", choice, choice, job, "B", "N", "F", *sizes_, order, 0.0, mix, mix),
            *(np.asfortranarray(x.copy()) for x in matrices),  # it writes into them
            *(0.0, 0.0),
        )

    def time_reduction(self, states, method, library):
        self.compute()


class Gramians:
    """How long do weighted Gramians take, with one weight of 8 states?"""

    params = (sizes([16, 128], [256]),)
    param_names = ("states",)

    def setup(self, states):
        self.system = dense_system(states, dt=0)
        self.weight = _weight(8, self.system.n_inputs, np.random.default_rng(1))
        self.time_gramians(states)

    def time_gramians(self, states):
        hsv.frequency_weighted_gramians(self.system, input_weight=self.weight)
