import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import hsv
from tests.hsv.sparse_reference_systems import (
    complex_advection,
    convection_diffusion,
    heat_in_a_square,
    implicit_euler,
    rod_of_finite_elements,
)
from tests.hsv.test_pencils import Dense

W = np.array([-30.0, -1.0, 0.0, 0.3, 8.0])


def sparse_system(A, B, C, E, D=None, dt=0):
    return hsv.SparseStateSpace(A, B, C, D, E, dt=dt)


@pytest.mark.parametrize("make", [convection_diffusion, complex_advection, rod_of_finite_elements])
@pytest.mark.parametrize("discrete", [False, True])
def test_frequency_response_is_that_of_the_dense_system(make, discrete, rng):
    A, B, C, E = make(12)
    if discrete:
        A, B, C, E = implicit_euler(A, B, C, E, 0.1)
    D = rng.standard_normal((C.shape[0], B.shape[1]))
    sys = sparse_system(A, B, C, E, D, dt=0.1 if discrete else 0)
    np.testing.assert_allclose(sys.frequency_response(W), sys.to_dense().frequency_response(W), rtol=1e-9, atol=1e-10)


def test_fewer_outputs_than_inputs_or_more(rng):
    A, _, _, _ = convection_diffusion(6)
    B, C = rng.standard_normal((36, 4)), rng.standard_normal((2, 36))
    wide = sparse_system(A, B, C, None).frequency_response(W)
    tall = sparse_system(A.T, C.T, B.T, None).frequency_response(W)
    np.testing.assert_allclose(wide, np.swapaxes(tall, -1, -2), rtol=1e-11)


def test_singular_mass_matrices_have_a_frequency_response():
    """x1' = -x1 + u, 0 = x2 - x1: a pole at -1 and an algebraic equation."""
    A, E = sp.csc_array(np.array([[-1.0, 0.0], [-1.0, 1.0]])), sp.diags_array([1.0, 0.0])
    sys = hsv.SparseStateSpace(A, [[1.0], [0.0]], [[0.0, 1.0]], None, E, dt=0)
    np.testing.assert_allclose(sys.frequency_response([2.0])[0, 0, 0], 1 / (1 + 2j), rtol=1e-14)
    with pytest.raises(hsv.IllConditionedError, match="E must be invertible"):
        hsv.balanced_truncation(sys, 1)


def test_a_pole_on_a_frequency_is_said():
    sys = hsv.SparseStateSpace(sp.csc_array([[0.0, 1.0], [-1.0, 0.0]]), [[0.0], [1.0]], [[1.0, 0.0]], dt=0)
    with pytest.raises(hsv.IllConditionedError, match="a pole lies at 0\\+1j"):
        sys.frequency_response([1.0])


def test_differences_are_sparse_and_right():
    sys = sparse_system(*rod_of_finite_elements(40))
    red = hsv.balanced_truncation(sys, 3).system
    error = sys - red
    assert isinstance(error, hsv.SparseStateSpace)
    assert error.n_states == 43
    expected = sys.frequency_response(W) - red.frequency_response(W)
    np.testing.assert_allclose(error.frequency_response(W), expected, atol=1e-13)
    twice = sys + sys
    np.testing.assert_allclose(twice.frequency_response(W), 2 * sys.frequency_response(W), rtol=1e-13)
    with pytest.raises(hsv.HsvError, match="must have the same dt"):
        sys + hsv.StateSpace(red.A, red.B, red.C, dt=True)
    with pytest.raises(hsv.ShapeError, match="same inputs and outputs"):
        sys - hsv.StateSpace(red.A, red.B, red.C[:1], dt=0)
    batch = hsv.StateSpace(np.stack([red.A, red.A]), red.B, red.C, dt=0)
    with pytest.raises(hsv.ShapeError, match="batch"):
        sys - batch
    operator = hsv.SparseStateSpace(Dense(red.A), red.B, red.C, dt=0)
    with pytest.raises(hsv.HsvError, match="cannot be added"):
        operator - red
    with pytest.raises(TypeError):
        sys + 3


def test_dense_forms_and_poles():
    A, B, C, E = rod_of_finite_elements(30)
    sys = sparse_system(A, B, C, E)
    exact = np.linalg.eigvals(np.linalg.solve(E.toarray(), A.toarray())).real
    np.testing.assert_allclose(np.sort(sys.poles().real), np.sort(exact), rtol=1e-10)
    plain = sparse_system(A, B, C, None)
    np.testing.assert_array_equal(plain.to_dense().A, A.toarray())
    with pytest.raises(hsv.HsvError, match=r"matrix of 30 states takes .* to_dense\(most_states=20\)"):
        sys.to_dense(most_states=20)
    with pytest.raises(hsv.HsvError, match="operator has no dense form"):
        hsv.SparseStateSpace(Dense(-np.eye(2)), np.ones((2, 1)), np.ones((1, 2)), dt=0).to_dense()


def test_what_a_system_says_and_keeps():
    A, B, C, E = rod_of_finite_elements(10)
    before = A.copy(), B.copy(), E.copy()
    sys = sparse_system(A, sp.csc_array(B), sp.csr_array(C), E, dt=0.5)
    assert repr(sys) == "<SparseStateSpace: 10 states, 1 inputs, 2 outputs, discrete, dt=0.5 s, float64>"
    assert "10 states" in sys._repr_html_()
    assert (sys.n_states, sys.n_inputs, sys.n_outputs, sys.batch_shape) == (10, 1, 2, ())
    A.data[:] = 7.0
    assert np.max(abs((sys.A - before[0]).toarray())) == 0
    np.testing.assert_array_equal(B, before[1])
    with pytest.raises(AttributeError, match="frozen"):
        sys.A = A
    again = pickle.loads(pickle.dumps(sys))
    np.testing.assert_array_equal(again.frequency_response(W), sys.frequency_response(W))
    negative = -sys
    np.testing.assert_array_equal(negative.frequency_response(W), -sys.frequency_response(W))


def test_single_precision_in_and_out():
    A, B, C, _ = heat_in_a_square(8)
    sys = hsv.SparseStateSpace(A.astype(np.float32), B.astype(np.float32), C.astype(np.float32), dt=0)
    red = hsv.balanced_truncation(sys, 2)
    assert red.system.A.dtype == red.left.dtype == hsv.hankel_singular_values(sys).dtype == np.float32
    assert sys.frequency_response(W).dtype == np.complex64
    wide = hsv.balanced_truncation(hsv.SparseStateSpace(A, B, C, dt=0), 2)
    np.testing.assert_allclose(abs(red.system.A), abs(wide.system.A), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"A": np.eye(3)}, hsv.DtypeError, "A must be a SciPy sparse matrix or an operator"),
        ({"A": sp.csc_array(np.ones((3, 2)))}, hsv.ShapeError, "A must have shape"),
        ({"A": sp.csc_array([[np.nan]])}, hsv.ShapeError, "B must have shape"),
        ({"A": sp.diags_array([np.nan, -1.0, -1.0])}, hsv.NonFiniteError, "A must be finite"),
        ({"E": np.eye(3)}, hsv.DtypeError, "E must be a SciPy sparse matrix"),
        ({"E": sp.eye_array(2)}, hsv.ShapeError, "same size"),
        ({"B": np.ones((2, 1))}, hsv.ShapeError, "B must have shape"),
        ({"B": np.ones((2, 3, 1))}, hsv.ShapeError, "one system"),
        ({"B": torch.ones(3, 1), "C": torch.ones(1, 3)}, hsv.DtypeError, "must be NumPy arrays"),
        ({"C": np.full((1, 3), np.inf)}, hsv.NonFiniteError, "C must be finite"),
        ({"dt": None}, hsv.DtypeError, "dt must be"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    given = {"A": -sp.eye_array(3), "B": np.ones((3, 1)), "C": np.ones((1, 3)), "dt": 0} | arguments
    with pytest.raises(error, match=message):
        hsv.SparseStateSpace(**given)


def test_frequencies_have_one_axis():
    sys = sparse_system(*heat_in_a_square(3))
    with pytest.raises(hsv.ShapeError, match=r"shape \(k,\)"):
        sys.frequency_response(np.ones((2, 2)))


@pytest.mark.parametrize(
    "function",
    [
        hsv.h2_norm, hsv.hinf_norm, hsv.diagonalize, hsv.split_unstable, hsv.controllability_gramian, hsv.observability_gramian, hsv.observability_factor,
        hsv.cross_gramian, hsv.mode_gains, lambda sys: hsv.modal_truncation(sys, 1), lambda sys: hsv.reduce_stable_part(sys, 1),
        lambda sys: hsv.discretize(sys, 0.1, "bilinear"), lambda sys: hsv.hinf_error(sys, hsv.balanced_truncation(sys, 1).system),
    ],
)  # fmt: skip
def test_methods_for_dense_systems_say_what_to_do(function):
    sys = hsv.SparseStateSpace(sp.diags_array([-1.0, -2.0, -3.0]), np.ones((3, 1)), np.ones((1, 3)), dt=0)
    with pytest.raises(
        hsv.DtypeError,
        match=r"got a SparseStateSpace, for which this method has no path; pass sys.to_dense\(\), or reduce it",
    ):
        function(sys)
