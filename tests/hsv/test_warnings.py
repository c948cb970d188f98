"""Warnings point at the code that called the package, whichever method another one wraps."""

import functools
import warnings

import pytest

import hsv
from hsv._warnings import WarnTheCaller, level_outside

# The second state is moved by no input: an order of 2 is capped.
DENSE = hsv.StateSpace([[-1.0, 0.0], [0.0, -2.0]], [[1.0], [0.0]], [[1.0, 1.0]], [[1.0]], dt=0)
DIAGONAL = hsv.DiagonalStateSpace([-1.0, -2.0], [[1.0], [0.0]], [[1.0, 1.0]], dt=0)


@pytest.mark.parametrize(
    ("call", "sys"),
    [
        (hsv.irka, DENSE),
        (hsv.irka, DIAGONAL),
        (hsv.h2_optimal_reduction, DIAGONAL),
        (hsv.coprime_factor_reduction, DENSE),
        (functools.partial(hsv.coprime_factor_reduction, method=hsv.irka), DENSE),
        (hsv.frequency_weighted_hankel_norm_approximation, DENSE),
        (hsv.frequency_weighted_hankel_norm_approximation, DIAGONAL),
    ],
)
def test_a_capped_order_is_said_where_the_method_was_called(call, sys):
    with pytest.warns(hsv.OrderWarning, match="the order was capped at 1") as said:
        call(sys, 2)
    assert {warning.filename for warning in said} == {__file__}
    assert len(said) == len({str(warning.message) for warning in said})


def test_every_call_is_told_apart_by_default():
    """A warning that points inside the package is shown for the first of all calls only."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        hsv.irka(DENSE, 2)
        hsv.irka(DENSE, 2)
    assert len(said) == 2


def test_warnings_of_a_region_that_raises_are_dropped():
    def fails():
        with WarnTheCaller():
            warnings.warn("never seen", hsv.OrderWarning, stacklevel=1)
            raise hsv.OrderError("in the middle")

    with pytest.raises(hsv.OrderError):
        fails()


def test_the_level_outside_the_package_is_that_of_its_caller():
    assert level_outside() == 1  # asked from outside: this very line
