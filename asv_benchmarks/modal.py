"""Benchmarks of `hsv/_modal.py`."""

import warnings

import numpy as np

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system, diagonal_system


class ModalTruncation:
    """How long does modal truncation of one dense continuous system to a quarter of its states take, beside NumPy's eigenvectors alone?"""

    params = (sizes([16, 128], [256]), ["hsv", "numpy"])
    param_names = ("states", "library")

    def setup(self, states, library):
        warnings.simplefilter("ignore", hsv.OrderWarning)  # one state less where a pair would be split
        system = dense_system(states, dt=0)
        if library == "hsv":
            self.compute = prepared(lambda: hsv.modal_truncation(system, states // 4), library)
        else:
            self.compute = lambda: np.linalg.eig(system.A)

    def time_modal_truncation(self, states, library):
        self.compute()


class ModeScores:
    """How long do the H-infinity and the H2 scores of all modes of many diagonal systems take?"""

    params = (sizes([(512, 16)], [(5120, 64)]), ["gains", "energies"])
    param_names = ("(systems, states)", "score")

    def setup(self, shape, score):
        systems, states = shape
        system = diagonal_system(states, dt=True, batch=(systems,))
        function = hsv.mode_gains if score == "gains" else hsv.mode_energies
        self.compute = prepared(lambda: function(system), "hsv")

    def time_scores(self, shape, score):
        self.compute()
