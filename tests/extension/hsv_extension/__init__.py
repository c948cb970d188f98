"""What a package outside the repository needs in order to add a solver and a layer: the public names of `hsv` and `hsv_torch`."""

from hsv_extension.layer import OscillatorBank
from hsv_extension.solver import moment_matching

__all__ = ["OscillatorBank", "moment_matching"]
