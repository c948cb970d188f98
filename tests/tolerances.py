"""How far a computed number may be from the exact one, for each precision."""

from typing import Any

import numpy as np


def unit_roundoff(dtype: Any) -> float:
    """Return the distance from 1 to the next number of a dtype (its real part's, for complex), of any array library.

    >>> unit_roundoff(np.complex64) == unit_roundoff("float32") == 2.0**-23
    True
    """
    name = (
        dtype
        if isinstance(dtype, str)
        else getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    )
    name = {"complex64": "float32", "complex128": "float64"}.get(name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1])
    return float(np.finfo(name).eps)


def tolerance(dtype: Any, *, factor: float = 1e3) -> float:
    """Return the relative error that a well-conditioned computation of moderate size may have.

    `factor` counts roundings: 1e3 suits sums and factorisations of up to some hundreds of states. A larger factor loosens
    the test; its reason belongs on the line above the call.

    >>> tolerance(np.float64)  # 1e3 roundings of double precision
    2.220446049250313e-13
    """
    return factor * unit_roundoff(dtype)
