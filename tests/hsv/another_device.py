"""A device that is not the host, without hardware: array_api_strict's second one, and a record of what is copied from it."""

import array_api_strict as strict
import numpy as np

ELSEWHERE = strict.Device("device1")
_HERE = strict.Device("CPU_DEVICE")
_Array = type(strict.asarray(0.0))


def move(x):
    """Return the numbers as an array over there."""
    return strict.asarray(np.asarray(x), device=ELSEWHERE)


def bring(x):
    """Return the numbers as a NumPy array, without being recorded."""
    return np.from_dlpack(x.to_device(_HERE))


def record_copies(monkeypatch):
    """Return a list to which the shape of every array is appended that NumPy reads from over there, through the one door that is open (DLPack)."""
    shapes, real = [], _Array.__dlpack__

    def dlpack(self, **kwargs):
        if self.device == ELSEWHERE:
            shapes.append(tuple(self.shape))
        return real(self, **kwargs)

    monkeypatch.setattr(_Array, "__dlpack__", dlpack)
    return shapes
