import numpy as np
import pytest
import scipy.sparse as sp

import hsv
from hsv._pencils import OperatorPencil, SparseFactorization, SparsePencil
from tests.hsv.sparse_reference_systems import convection_diffusion, damped_chain, rod_of_finite_elements


class Dense:
    """A state operator made of a dense matrix, and of E for the shifted solves."""

    def __init__(self, A, E=None):
        self.A, self.E = A, np.eye(len(A)) if E is None else E
        self.shape, self.dtype = A.shape, A.dtype

    def apply(self, x):
        return self.A @ x

    def apply_adjoint(self, x):
        return self.A.conj().T @ x

    def solve_shifted(self, shift, rhs):
        return np.linalg.solve(self.A + shift * self.E, rhs)

    def solve_shifted_adjoint(self, shift, rhs):
        return np.linalg.solve((self.A + shift * self.E).conj().T, rhs)


@pytest.mark.parametrize("shift", [-3.0, -2.0 + 5.0j])
@pytest.mark.parametrize("complex_", [False, True])
def test_solves_of_both_sides_come_from_one_factorisation(shift, complex_, rng):
    A, _, _, _ = convection_diffusion(8)
    if complex_:
        A = A + 1j * sp.eye_array(64, format="csc")
    E = sp.diags_array(rng.uniform(1, 2, 64)).tocsc()
    pencil = SparsePencil(A, E)
    solves = pencil.shifted(shift)
    matrix = (A + shift * E).toarray()
    for rhs in (rng.standard_normal((64, 3)), rng.standard_normal((64, 2)) * (1 + 2j)):
        np.testing.assert_allclose(solves.solve(rhs), np.linalg.solve(matrix, rhs), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(
            solves.solve(rhs, adjoint=True), np.linalg.solve(matrix.conj().T, rhs), rtol=1e-10, atol=1e-14
        )


def test_pivots_off_the_diagonal_are_taken_where_those_on_it_fail(rng):
    """Pivots of 1e-20 on the diagonal lose everything; the backward error shows it."""
    n = 40
    A = np.kron(np.eye(n // 2), [[1e-20, 1.0], [1.0, 1e-20]]) + np.diag(0.3 * np.ones(n - 2), 2)
    solves = SparseFactorization(sp.csc_array(A), diagonal_pivots=True)
    assert np.max(abs(A @ solves._raw(np.ones((n, 1)), False) - 1)) > 1e-3
    rhs = rng.standard_normal((n, 2))
    np.testing.assert_allclose(solves.solve(rhs), np.linalg.solve(A, rhs), rtol=1e-12)
    np.testing.assert_allclose(solves.solve(rhs, adjoint=True), np.linalg.solve(A.T, rhs), rtol=1e-12)


def test_damped_vibrations_do_not_fill_the_factors():
    """Pivots off the diagonal make the factors of this one denser by a factor of dozens."""
    A, _, _, _ = damped_chain(2000, 0.01)
    solves = SparsePencil(A, None).shifted(-100.0)
    assert solves._lu.nnz < 10 * A.nnz


def test_singular_matrices_are_refused():
    with pytest.raises(hsv.IllConditionedError, match="exactly singular"):
        SparsePencil(sp.diags_array([1.0, 2.0]).tocsc(), None).shifted(-2.0)
    nearly = sp.csc_array(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-16 * 3]]))
    with pytest.raises(hsv.IllConditionedError, match="singular"):
        SparsePencil(nearly, nearly).mass_factorization()


def test_equations_in_different_units_are_not_singular():
    A, _, _, E = rod_of_finite_elements(30)
    units = sp.diags_array(np.logspace(-12, 12, 30))
    SparsePencil(A, (units @ E).tocsc()).mass_factorization()


def test_condition_numbers(rng):
    E = sp.csc_array(rng.standard_normal((30, 30)))
    scaled = E.toarray() / abs(E.toarray()).sum(axis=1)[:, None]
    found = SparsePencil(E, E).mass_factorization().condition()
    assert 0.3 * np.linalg.cond(scaled, 1) <= found <= 1.0001 * np.linalg.cond(scaled, 1)


@pytest.mark.parametrize("shift", [-0.5, -0.3 + 2.0j, -1.0])
def test_operators_do_what_matrices_do(shift, rng):
    A, _, _, E = rod_of_finite_elements(20)
    A = A + 0.1 * sp.diags_array(rng.standard_normal(19), offsets=1, shape=(20, 20))
    x = rng.standard_normal((20, 2))
    for make in (lambda p: p, lambda p: p.cayley()):
        matrix = make(SparsePencil(A.tocsc(), E))
        operator = make(OperatorPencil(Dense(A.toarray(), E.toarray()), E))
        for adjoint in (False, True):
            np.testing.assert_allclose(operator.apply(x, adjoint=adjoint), matrix.apply(x, adjoint=adjoint), atol=1e-11)
            np.testing.assert_allclose(operator.mass(x, adjoint=adjoint), matrix.mass(x, adjoint=adjoint), atol=1e-11)
            p = operator.admissible(shift)
            assert abs(p - shift) <= 2e-6
            np.testing.assert_allclose(
                operator.shifted(p).solve(x, adjoint=adjoint),
                matrix.shifted(p).solve(x, adjoint=adjoint),
                rtol=1e-8,
                atol=1e-8,
            )
            np.testing.assert_allclose(
                operator.mass_factorization().solve(x, adjoint=adjoint),
                matrix.mass_factorization().solve(x, adjoint=adjoint),
                rtol=1e-9,
                atol=1e-12,
            )
        for found, expected in zip(operator.sizes(), matrix.sizes(), strict=True):
            assert 0.1 * expected < found <= expected


def test_what_operators_return_is_checked():
    operator = Dense(-np.eye(3))
    operator.solve_shifted = lambda shift, rhs: rhs[:2]
    with pytest.raises(hsv.ShapeError, match="must return the shape"):
        OperatorPencil(operator, None).shifted(-1.0).solve(np.ones((3, 1)))
    operator.solve_shifted = solve_to_nan
    with pytest.raises(hsv.IllConditionedError, match="solve_to_nan returned NaN"):
        OperatorPencil(operator, None).shifted(-1.0).solve(np.ones((3, 1)))


def solve_to_nan(shift, rhs):
    return np.full_like(rhs, np.nan)
