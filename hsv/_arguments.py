"""Checks of plain arguments that several methods have."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from hsv._array import is_array, to_host
from hsv._errors import DtypeError, HsvError


def checked_count(name: str, value: Any) -> int:
    """Return an int of at least 1; NumPy's and others' integers are ints, truth values are not."""
    rule = f"{name} must be an int of at least 1, got {value!r}"
    if isinstance(value, (bool, np.bool_)):
        raise DtypeError(rule)
    try:
        count = operator.index(value)
    except TypeError as error:
        raise DtypeError(rule) from error
    if count < 1:
        raise HsvError(rule)
    return count


def as_number(value: Any) -> float | None:
    """Return a real number as a float, Python's, NumPy's or an array's without axes; None for anything else, a truth value and a text among it."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, numbers.Real):  # NumPy's are
        try:
            return float(value)
        except OverflowError:  # an int or a fraction
            return math.inf if value == abs(value) else -math.inf
    if not is_array(value) or value.ndim:
        return None
    number = to_host(value)
    return float(number) if number.dtype.kind in "iuf" else None


def checked_tolerance(value: Any, *, zero: bool = False) -> float:
    """Return a number between 0 and 1, which may be 0 where `zero` says so."""
    rule = f"tolerance must be a number in {'[' if zero else '('}0, 1), got {value!r}"
    number = as_number(value)
    if number is None:
        raise DtypeError(rule)
    if not (0 < number < 1 or (zero and number == 0)):
        raise HsvError(rule)
    return number


def checked_flag(name: str, value: Any) -> bool:
    """Return True or False, and refuse what only can be taken for one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise DtypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
