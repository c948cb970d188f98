"""What stands where a system should is refused by name at every entry, and plain arguments are checked alike everywhere."""

import functools

import numpy as np
import pytest
import scipy.signal
import scipy.sparse

import hsv
from hsv._arguments import as_number, checked_count, checked_flag

GOOD = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[1.0]], dt=0)
ENTRIES = {
    "bounded_real_truncation": lambda sys: hsv.bounded_real_truncation(sys, 1),
    "coprime_factor_reduction": lambda sys: hsv.coprime_factor_reduction(sys, 1),
    "discretize": lambda sys: hsv.discretize(sys, 0.1),
    "frequency_limited_gramians": lambda sys: hsv.frequency_limited_gramians(sys, (0, 1)),
    "frequency_limited_singular_perturbation": lambda sys: hsv.frequency_limited_singular_perturbation(sys, 1, (0, 1)),
    "frequency_limited_truncation": lambda sys: hsv.frequency_limited_truncation(sys, 1, (0, 1)),
    "frequency_weighted_gramians": hsv.frequency_weighted_gramians,
    "frequency_weighted_hankel_norm_approximation": lambda sys: hsv.frequency_weighted_hankel_norm_approximation(
        sys, 1
    ),
    "frequency_weighted_singular_perturbation": lambda sys: hsv.frequency_weighted_singular_perturbation(sys, 1),
    "frequency_weighted_truncation": lambda sys: hsv.frequency_weighted_truncation(sys, 1),
    "h2_norm": hsv.h2_norm,
    "h2_optimal_reduction": lambda sys: hsv.h2_optimal_reduction(sys, 1),
    "hankel_norm": hsv.hankel_norm,
    "hinf_error": lambda sys: hsv.hinf_error(sys, GOOD),
    "hinf_norm": hsv.hinf_norm,
    "inner_coprime_factors": hsv.inner_coprime_factors,
    "irka": lambda sys: hsv.irka(sys, 1),
    "lqg_balanced_truncation": lambda sys: hsv.lqg_balanced_truncation(sys, 1),
    "modal_truncation": lambda sys: hsv.modal_truncation(sys, 1),
    "mode_energies": hsv.mode_energies,
    "mode_gains": hsv.mode_gains,
    "normalized_coprime_factors": hsv.normalized_coprime_factors,
    "positive_real_truncation": lambda sys: hsv.positive_real_truncation(sys, 1),
    "split_unstable": hsv.split_unstable,
    "stable_coprime_factors": lambda sys: hsv.stable_coprime_factors(sys, 1.0),
    "stochastic_truncation": lambda sys: hsv.stochastic_truncation(sys, 1),
    "time_limited_truncation": lambda sys: hsv.time_limited_truncation(sys, 1, 1.0),
    "to_control": hsv.to_control,
    "to_pymor": hsv.to_pymor,
    "to_scipy": hsv.to_scipy,
}
SPARSE = hsv.SparseStateSpace(scipy.sparse.diags_array([-1.0, -2.0]), [[1.0], [1.0]], [[1.0, 1.0]], dt=0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_system_is_refused_by_name(entry):
    call = ENTRIES[entry]
    for other, found in (
        (None, "got None"),
        (np.eye(2), "got a ndarray of numpy"),
        (
            scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]]),
            r"of scipy; convert it first: hsv.from_scipy\(sys\)",
        ),
    ):
        with pytest.raises(hsv.DtypeError, match=f"sys must be .*{found}"):
            call(other)
    if entry != "hankel_norm":
        with pytest.raises(hsv.DtypeError, match=r"sys must be .* got a SparseStateSpace.*to_dense\(\)"):
            call(SPARSE)


def test_the_other_systems_of_a_call_are_refused_by_their_own_names():
    with pytest.raises(hsv.DtypeError, match="reduced must be a StateSpace or a DiagonalStateSpace of hsv, got None"):
        hsv.hinf_error(GOOD, None)
    weighted = functools.partial(hsv.frequency_weighted_truncation, GOOD, 1)
    with pytest.raises(hsv.DtypeError, match=r"input_weight must be a StateSpace .* got a SparseStateSpace"):
        weighted(input_weight=SPARSE)
    with pytest.raises(hsv.DtypeError, match="output_weight must be a system, got float; a constant gain is the D"):
        weighted(output_weight=2.0)
    with pytest.raises(hsv.DtypeError, match=r"sys must be a hsv.SparseStateSpace, got hsv\.StateSpace; dense"):
        hsv.low_rank_gramians(GOOD)


def test_numbers_and_what_only_looks_like_them():
    assert [as_number(x) for x in (2, 2.5, np.float32(0.5), np.int64(3), np.array(4.0))] == [2.0, 2.5, 0.5, 3.0, 4.0]
    assert as_number(10**400) == np.inf
    assert all(as_number(x) is None for x in (True, np.True_, "1", None, 1j, np.array([1.0]), np.array(1j), [1.0]))
    assert [checked_count("n", x) for x in (3, np.int64(3), np.array(3))] == [3, 3, 3]
    for x in (True, np.True_, 3.0, "3", None):
        with pytest.raises(hsv.DtypeError, match="n must be an int of at least 1, got"):
            checked_count("n", x)
    with pytest.raises(hsv.HsvError, match="n must be an int of at least 1, got 0"):
        checked_count("n", 0)
    assert checked_flag("left", np.True_) is True
    with pytest.raises(hsv.DtypeError, match="left must be True or False, got 1"):
        checked_flag("left", 1)
