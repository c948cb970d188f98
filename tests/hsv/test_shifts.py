import numpy as np
import pytest
import scipy.sparse as sp

import hsv
from hsv._pencils import SparsePencil
from hsv._shifts import arnoldi_values, as_shifts, orthonormal, project, wachspress_shifts
from tests.hsv.sparse_reference_systems import (
    convection_diffusion,
    damped_chain,
    heat_in_a_square,
    rod_of_finite_elements,
)


def product(shifts, x):
    return np.prod([abs((x + p.real) / (x - p.real)) for p in shifts], axis=0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 10.0), (1.0, 1e4), (1e-3, 1e9)])
def test_wachspress_shifts_equioscillate(low, high):
    """The solution of Zolotarev's problem has its largest modulus at both ends and between any two shifts."""
    shifts = wachspress_shifts(np.array([-low, -high]), 1e-8)
    places = np.sort([-p.real for p in shifts])
    assert low < places[0]
    assert places[-1] < high
    x = np.geomspace(low, high, 40001)
    sizes = product(shifts, x)
    parts = np.split(sizes, np.searchsorted(x, places))
    np.testing.assert_allclose([part.max() for part in parts], sizes.max(), rtol=1e-3)
    assert sizes.max() ** 2 <= 1e-8
    assert product(wachspress_shifts(np.array([-low, -high]), 1e-6), x).max() ** 2 > 1e-8  # no more of them than needed


def test_wachspress_shifts_of_one_number_and_of_a_wide_spectrum():
    assert wachspress_shifts(np.array([-3.0, -3.0]), 1e-8) == [-3.0]
    with pytest.raises(hsv.HsvError, match="degrees from the real axis"):
        wachspress_shifts(np.array([-1.0 + 30.0j, -1.0 - 30.0j, -2.0]), 1e-8)


def test_arnoldi_finds_the_ends_of_the_spectrum():
    A, _, _, E = rod_of_finite_elements(200)
    values = arnoldi_values(SparsePencil(A, E), 40, 20)
    exact = np.linalg.eigvals(np.linalg.solve(E.toarray(), A.toarray())).real
    np.testing.assert_allclose(values.real.max(), exact.max(), rtol=1e-10)
    np.testing.assert_allclose(values.real.min(), exact.min(), rtol=1e-3)
    # A space that is invariant after two steps ends the iteration.
    assert len(arnoldi_values(SparsePencil(sp.diags_array([-1.0, -2.0]).tocsc(), None), 40, 20)) == 4
    with pytest.raises(hsv.HsvError, match="no eigenvalue in the left half plane"):
        arnoldi_values(SparsePencil(sp.diags_array([1.0, 2.0]).tocsc(), None), 5, 5)


def test_projection_on_the_whole_space_gives_the_eigenvalues_and_the_residual(rng):
    A, _, _, E = rod_of_finite_elements(12)
    residual = rng.standard_normal((12, 2))
    found = project(SparsePencil(A, E), rng.standard_normal((12, 12)), residual, adjoint=False)
    exact = np.linalg.eigvals(np.linalg.solve(E.toarray(), A.toarray()))
    np.testing.assert_allclose(np.sort(found.values.real), np.sort(exact.real), rtol=1e-9)
    parts = found.basis @ found.vectors @ found.parts
    np.testing.assert_allclose(parts, np.linalg.solve(E.toarray(), residual), atol=1e-9)


def test_projection_leaves_out_what_the_mass_matrix_does_not_see():
    E = sp.diags_array([1.0, -1.0, 1.0]).tocsc()
    A = sp.diags_array([-1.0, 2.0, -3.0]).tocsc()
    found = project(SparsePencil(A, E), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.ones((3, 1)), adjoint=False)
    np.testing.assert_allclose(found.values, [-3.0])


def test_dependent_columns_are_left_out(rng):
    basis = orthonormal(np.array([[1.0, 2.0, 0.0, 1e-9], [0.0, 0.0, 0.0, 1e-9]]))
    assert basis.shape == (2, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-15)


def steps(problem, shifts, **options):
    A, B, C, E = problem
    history = hsv.low_rank_gramians(hsv.SparseStateSpace(A, B, C, None, E, dt=0), shifts=shifts, **options).history
    return len(history)


def test_projection_shifts_need_about_as_few_steps_as_the_optimum():
    """Wachspress' are optimal for the interval that real spectra lie in."""
    for problem in (heat_in_a_square(24), rod_of_finite_elements(1000)):
        assert steps(problem, None) <= steps(problem, hsv.WachspressShifts()) + 1


def test_projection_shifts_follow_a_spectrum_off_the_real_axis():
    flow, chain = convection_diffusion(40, (1000.0, 0.0)), damped_chain(100, 0.5)
    assert steps(flow, None) < steps(flow, hsv.PenzlShifts())
    assert 1.3 * steps(chain, None) < steps(chain, hsv.PenzlShifts(), max_iterations=1000)


def test_penzl_shifts_of_a_spectrum_off_the_real_axis():
    assert steps(damped_chain(15, 0.8), hsv.PenzlShifts(n_shifts=16)) < 150


def test_numbers_are_used_in_turn_and_conjugates_in_pairs():
    sys = hsv.SparseStateSpace(*damped_chain(3, 1.0)[:3], dt=0)
    gramians = hsv.low_rank_gramians(sys, shifts=[-1.0, -0.5 + 1j, -0.5 - 1j], tolerance=1e-6)
    assert [step.shift for step in gramians.history[:3]] == [-1.0, -0.5 + 1j, -1.0]
    assert gramians.controllability.factor.dtype == np.float64
    # Without its conjugate a number stands for both as well.
    other = hsv.low_rank_gramians(sys, shifts=[-1.0, -0.5 - 1j], tolerance=1e-6)
    np.testing.assert_allclose(abs(other.controllability.factor), abs(gramians.controllability.factor))


@pytest.mark.parametrize("wrong", [[1.0], [-1.0, np.nan], [], [-np.inf], [0.0]])
def test_numbers_on_the_wrong_side_are_refused(wrong):
    with pytest.raises(hsv.HsvError, match=r"negative real parts|sequence of numbers"):
        as_shifts(wrong)


def test_bad_options_are_refused():
    with pytest.raises(hsv.DtypeError, match="shifts must be"):
        as_shifts("projection")
    with pytest.raises(hsv.DtypeError, match="shifts must be"):
        as_shifts(3.0)
    with pytest.raises(hsv.HsvError, match="most_columns"):
        hsv.ProjectionShifts(0)
    with pytest.raises(hsv.HsvError, match="n_small"):
        hsv.PenzlShifts(n_small=True)
    with pytest.raises(hsv.HsvError, match="tolerance"):
        hsv.WachspressShifts(tolerance=2.0)


def test_inputs_that_the_state_matrix_does_not_see_still_get_a_shift():
    """A B = 0 on the projection: the first shift comes from the size of A."""
    A = sp.csc_array(np.array([[0.0, 1.0], [-1.0, -1.0]]))
    sys = hsv.SparseStateSpace(A, [[1.0], [0.0]], [[1.0, 0.0]], dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), hsv.hankel_singular_values(sys.to_dense()), rtol=1e-9)
