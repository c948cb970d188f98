"""Benchmarks of `hsv/_files.py`."""

import tempfile
from pathlib import Path

import scipy.io

import hsv
from asv_benchmarks import prepared, sizes
from asv_benchmarks.systems import dense_system


class SaveAndLoad:
    """How long does it take to write a dense system and to read it again, by the kind of file, beside SciPy's .mat?"""

    params = (sizes([256], [1024]), ["npz", "mat", "json"], ["hsv", "scipy"])
    param_names = ("states", "kind", "library")

    def setup(self, states, kind, library):
        if library == "scipy" and kind != "mat":
            raise NotImplementedError("SciPy has no such format for systems")
        system = dense_system(states, dt=0)
        self.folder = tempfile.TemporaryDirectory()
        path = str(Path(self.folder.name) / f"system.{kind}")
        if library == "hsv":
            self.compute = prepared(lambda: (hsv.save(system, path, overwrite=True), hsv.load(path)), library)
        else:
            matrices = {"A": system.A, "B": system.B, "C": system.C, "D": system.D}
            self.compute = lambda: (scipy.io.savemat(path, matrices), scipy.io.loadmat(path))

    def teardown(self, states, kind, library):
        self.folder.cleanup()

    def time_save_and_load(self, states, kind, library):
        self.compute()
