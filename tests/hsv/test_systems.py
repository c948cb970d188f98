import pickle

import array_api_strict
import numba
import numpy as np
import pytest
import scipy.signal
import scipy.sparse
import torch

import hsv
from hsv import _array
from hsv._kernels import _small_systems
from hsv._large_systems import LargeSystem
from hsv._systems import require_system
from tests.tolerances import tolerance


def random_system(rng, n=5, m=2, p=3, batch=(), complex_=True, dt=True):
    def draw(*shape):
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if complex_ else x

    A = draw(*batch, n, n)
    A = A / (1.2 * np.abs(np.linalg.eigvals(A)).max(-1)[..., None, None])
    if not dt:
        A = A - 1.1 * np.eye(n)
    return hsv.StateSpace(A, draw(*batch, n, m), draw(*batch, p, n), draw(*batch, p, m), dt=dt)


def random_diagonal(rng, n=5, m=2, p=3, batch=(), complex_=True, dt=True):
    def draw(*shape):
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if complex_ else x

    poles = draw(*batch, n)
    poles = 0.95 * poles / np.abs(poles).max(-1, keepdims=True)
    if not dt:
        poles = poles - 1.0
    return hsv.DiagonalStateSpace(poles, draw(*batch, n, m), draw(*batch, p, n), draw(*batch, p, m), dt=dt)


def simulate(sys, u):
    """Response to `u (steps, m)` from rest, by the definition."""
    dense, x, ys = sys.to_dense(), np.zeros(sys.n_states), []
    for u_k in u:
        ys.append(dense.C @ x + dense.D @ u_k)
        x = dense.A @ x + dense.B @ u_k
    return np.array(ys)


@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("complex_", [True, False])
def test_impulse_response_is_the_response_to_an_impulse(make, complex_, rng):
    sys = make(rng, complex_=complex_)
    for n_steps in (1, 2, 3, 9):
        h = sys.impulse_response(n_steps)
        assert h.shape == (n_steps, 3, 2)
        assert np.iscomplexobj(h) == complex_
        for j in range(2):
            u = np.zeros((n_steps, 2))
            u[0, j] = 1
            np.testing.assert_allclose(h[:, :, j], simulate(sys, u), atol=tolerance(float))


@pytest.mark.parametrize("make", [random_system, random_diagonal])
@pytest.mark.parametrize("dt", [0, True, 0.1])
def test_frequency_response_solves_the_resolvent(make, dt, rng):
    sys = make(rng, batch=(2,), dt=dt)
    w = np.array([-3.0, 0.0, 0.7, 2.0])
    response = sys.frequency_response(w)
    assert response.shape == (2, 4, 3, 2)
    dense = sys.to_dense()
    for b in range(2):
        for k, frequency in enumerate(w):
            z = np.exp(1j * frequency * float(dt)) if dt else 1j * frequency
            expected = dense.C[b] @ np.linalg.inv(z * np.eye(5) - dense.A[b]) @ dense.B[b] + dense.D[b]
            np.testing.assert_allclose(response[b, k], expected, rtol=tolerance(float), atol=tolerance(float))


def make_integrators(kind, library):
    """Two systems with two states, the second of which has a pole at 0."""
    poles, B, C = np.array([[-1.0, -2.0], [-1.0, 0.0]]), np.ones((2, 1)), np.ones((1, 2))
    if kind == "sparse":
        return hsv.SparseStateSpace(scipy.sparse.diags_array(poles[1]), B, C, dt=0)
    A = poles if kind == "diagonal" else poles[..., None] * np.eye(2)
    make = hsv.DiagonalStateSpace if kind == "diagonal" else hsv.StateSpace
    return make(*(library(x) for x in (A, B, C)), dt=0)


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor, array_api_strict.asarray])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "sparse"])
def test_frequency_response_at_a_pole_names_the_frequency(kind, library):
    sys = make_integrators(kind, library)
    which = "" if kind == "sparse" else r" of system \(1,\)"
    message = rf"frequency response{which} is infinite at w=0: a pole lies at 0\+0j; leave this"
    with pytest.raises(hsv.IllConditionedError, match=message):
        sys.frequency_response([1.0, 0.0, 2.0])
    assert np.isfinite(_array.to_host(sys.frequency_response([1.0, 1e-300]))).all()
    discrete = hsv.DiagonalStateSpace(
        library(np.array([1.0 + 0j])), library(np.ones((1, 1))), library(np.ones((1, 1))), dt=0.1
    )
    for one in (discrete, discrete.to_dense()):
        with pytest.raises(hsv.IllConditionedError, match=r"response is infinite at w=0: a pole lies at 1\+0j"):
            one.frequency_response(np.array([0.5, 0.0]))


def test_frequency_response_at_a_pole_where_the_solver_raises_nothing(monkeypatch):
    """As CuPy's, which returns NaN."""

    def solve(a, b):
        return np.full(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + b.shape[-2:], np.nan)

    monkeypatch.setattr(_array._NUMPY.linalg, "solve", solve)
    with pytest.raises(hsv.IllConditionedError, match=r"of system \(1,\) is infinite at w=0"):
        make_integrators("dense", np.asarray).frequency_response([1.0, 0.0])


def test_impulse_and_frequency_response_are_a_fourier_pair(rng):
    sys = random_diagonal(rng)
    h = sys.impulse_response(2000)
    w = 0.9
    series = np.tensordot(np.exp(-1j * w * np.arange(2000)), h, axes=1)
    np.testing.assert_allclose(sys.frequency_response([w])[0], series, rtol=1e-11)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_difference_of_two_systems_has_the_difference_of_their_responses(make, dt, rng):
    left, right = make(rng, dt=dt), random_diagonal(rng, n=3, dt=dt)
    w = np.linspace(-2, 2, 5)
    expected = left.frequency_response(w) - right.frequency_response(w)
    difference = left - right
    assert difference.n_states == 8
    np.testing.assert_allclose(difference.frequency_response(w), expected, atol=1e-12)


def test_log_poles_survive_a_difference(rng):
    sys = hsv.DiagonalStateSpace.from_log_poles([-1e-12], [[1.0]], [[1.0]])
    assert (sys - sys).log_poles is not None
    mixed = sys - hsv.DiagonalStateSpace([0.5], [[1.0]], [[1.0]], dt=True)
    assert mixed.log_poles is None


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_real_part_gives_the_real_part_of_the_output(make, dt, rng):
    sys = make(rng, dt=dt)
    twice = hsv.real_part(sys)
    dense = twice.to_dense()
    assert twice.n_states == 2 * sys.n_states
    assert not dense.is_complex
    discrete = sys if dt else hsv.StateSpace(*(getattr(sys.to_dense(), k) for k in "ABCD"), dt=True)  # same matrices
    real = dense if dt else hsv.StateSpace(dense.A, dense.B, dense.C, dense.D, dt=True)
    np.testing.assert_allclose(
        real.impulse_response(12),
        discrete.impulse_response(12).real,
        rtol=tolerance(float),
        atol=tolerance(float) * 1e3,
    )
    w = np.linspace(-2, 2, 7)
    np.testing.assert_allclose(twice.frequency_response(w), dense.frequency_response(w), atol=tolerance(float))


def test_real_part_of_a_real_system_is_itself(rng):
    sys = random_system(rng, complex_=False)
    assert hsv.real_part(sys) is sys
    twice = hsv.real_part(random_diagonal(rng))
    assert hsv.real_part(twice) is twice


def test_diagonalize_keeps_the_response_and_tells_the_condition(rng):
    sys = random_system(rng, batch=(3,))
    diagonal, V, condition = hsv.diagonalize(sys)
    assert isinstance(diagonal, hsv.DiagonalStateSpace)
    np.testing.assert_allclose(diagonal.impulse_response(9), sys.impulse_response(9), atol=1e-11)
    np.testing.assert_allclose(V * diagonal.poles()[..., None, :], sys.A @ V, atol=1e-12)
    np.testing.assert_allclose(condition, np.linalg.cond(V), rtol=1e-9)


def test_diagonalize_of_a_real_system_gives_conjugate_pairs(rng):
    diagonal, _, _ = hsv.diagonalize(random_system(rng, complex_=False))
    assert diagonal.is_complex
    np.testing.assert_allclose(np.sort_complex(diagonal.poles()), np.sort_complex(diagonal.poles().conj()))


@pytest.mark.parametrize("n", [1, 2, 8, 16, 17, 32, 33])
@pytest.mark.parametrize("complex_", [True, False])
def test_diagonalize_of_a_batch_is_that_of_each_matrix(complex_, n, rng, monkeypatch):
    A = rng.normal(size=(2, 70, n, n)) + (1j * rng.normal(size=(2, 70, n, n)) if complex_ else 0)
    A[0, 3] = np.diag(np.arange(1, n + 1))  # real poles among complex ones
    sys = hsv.StateSpace(A, rng.normal(size=(n, 1)), rng.normal(size=(2, n)), dt=True)
    results = []
    for threads in (1, 5):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
        diagonal, V, condition = hsv.diagonalize(sys)
        results.append((diagonal.poles(), diagonal.B, diagonal.C, V, condition))
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(condition, np.linalg.cond(V), rtol=1e-10)
    for index in ((0, 3), (1, 69)):
        single = hsv.diagonalize(hsv.StateSpace(A[index], sys.B[index], sys.C[index], dt=True))
        parts = single[0].poles(), single[0].B, single[0].C, *single[1:]
        for x, y in zip(results[0], parts, strict=True):
            np.testing.assert_array_equal(x[index], y)
    if not complex_:
        poles = diagonal.poles()
        first, second = poles.imag > 0, poles.imag < 0
        np.testing.assert_array_equal(poles[first], poles[second].conj())
        for x in (V.swapaxes(-1, -2), diagonal.C.swapaxes(-1, -2)):
            np.testing.assert_array_equal(x[first], x[second].conj())


def test_condition_number_of_nearly_parallel_eigenvectors():
    """Of ``[[1, 1], [0, 1 + d]]`` the cosine is ``1 / sqrt(1 + d^2)``: the condition number is ``(1 + sqrt(1 + d^2)) / d``."""
    d = 2.0 ** -np.arange(1.0, 48.0)
    A = np.broadcast_to([[1.0, 1.0], [0.0, 1.0]], (47, 2, 2)).copy()
    A[:, 1, 1] += d
    for kind in (float, complex):
        _, _, condition = hsv.diagonalize(hsv.StateSpace(A.astype(kind), np.ones((2, 1)), np.ones((1, 2)), dt=True))
        np.testing.assert_allclose(condition, (1 + np.sqrt(1 + d**2)) / d, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 40])
def test_diagonalize_of_no_matrix_and_of_one_that_is_defective_among_others(n, rng):
    none = hsv.StateSpace(np.zeros((0, n, n)), np.zeros((n, 1)), np.zeros((1, n)), dt=True)
    diagonal, V, condition = hsv.diagonalize(none)
    assert (diagonal.poles().shape, V.shape, condition.shape) == ((0, n), (0, n, n), (0,))
    A = rng.normal(size=(20, n, n))
    A[13] = 0.5 * np.eye(n) + np.eye(n, k=1)
    with pytest.raises(hsv.IllConditionedError, match="defective"):
        hsv.diagonalize(hsv.StateSpace(A, np.ones((n, 1)), np.ones((1, n)), dt=True))


def test_condition_numbers_that_do_not_converge_are_an_error(monkeypatch):
    monkeypatch.setattr(_small_systems, "condition_numbers", lambda *arguments: False)
    with pytest.raises(hsv.HsvError, match="did not converge"):
        hsv.diagonalize(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True))


def test_diagonalize_refuses_a_jordan_block():
    with pytest.raises(hsv.IllConditionedError, match="defective"):
        hsv.diagonalize(hsv.StateSpace([[0.5, 1.0], [0.0, 0.5]], [[0.0], [1.0]], [[1.0, 0.0]], dt=True))


def test_batch_axes_broadcast(rng):
    A = rng.normal(size=(4, 1, 2, 2)) * 0.1
    sys = hsv.StateSpace(A, rng.normal(size=(3, 2, 1)), rng.normal(size=(1, 2)), dt=True)
    assert sys.batch_shape == (4, 3)
    assert sys.A.shape == (4, 3, 2, 2)
    assert sys.D.shape == (4, 3, 1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", [np, torch])
def test_array_library_and_precision_are_kept(library, dtype):
    kind = getattr(library, dtype)
    A = library.asarray([[0.5, 0.1], [0.0, 0.3]], dtype=kind)
    sys = hsv.StateSpace(A, library.ones((2, 1), dtype=kind), [[1.0, 2.0]], 0.5, dt=True)
    for array in (sys.A, sys.B, sys.C, sys.D, sys.impulse_response(4)):
        assert type(array) is type(A)
        assert array.dtype == kind
    assert "complex" in str(sys.frequency_response([0.1]).dtype)
    assert "complex" in str(sys.poles().dtype)


def test_a_system_is_frozen_and_pickles(rng):
    sys = random_diagonal(rng)
    with pytest.raises(AttributeError, match="frozen"):
        sys.B = None
    for original in (sys, hsv.real_part(sys), sys.to_dense()):
        copy = pickle.loads(pickle.dumps(original))
        np.testing.assert_array_equal(copy.to_dense().A, original.to_dense().A)
        with pytest.raises(AttributeError, match="frozen"):
            copy.dt = 1


def test_inputs_are_not_changed(rng):
    A, B, C = rng.normal(size=(3, 3)) * 0.2, rng.normal(size=(3, 1)), rng.normal(size=(1, 3))
    copies = A.copy(), B.copy(), C.copy()
    sys = hsv.StateSpace(A, B, C, dt=True)
    hsv.balanced_truncation(sys, 2)
    hsv.diagonalize(sys)
    for array, copy in zip((A, B, C), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


ONE = [[1.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0, 2.0]], ONE, ONE), hsv.ShapeError, r"A must have shape \(..., n, n\)"),
        ((np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0))), hsv.ShapeError, "n >= 1"),
        ((np.eye(2), ONE, [[1.0, 1.0]]), hsv.ShapeError, r"B must have shape \(..., 2, m\)"),
        ((np.eye(2), np.ones((2, 1)), np.ones((2, 1))), hsv.ShapeError, "C must have .* transposed"),
        ((np.eye(2), np.ones((2, 1)), np.ones((1, 2)), np.ones((2, 2))), hsv.ShapeError, "D must have shape"),
        (([[np.nan]], ONE, ONE), hsv.NonFiniteError, r"A must be finite, found nan at index \(0, 0\)"),
        (([[0.5]], [[np.inf]], ONE), hsv.NonFiniteError, "B must be finite"),
        (([["a"]], ONE, ONE), hsv.DtypeError, "A must be an array of numbers"),
        ((np.eye(1, dtype=np.float16), ONE, ONE), hsv.DtypeError, "A must be in single or double precision"),
        ((np.ones((2, 1, 1)), np.ones((3, 1, 1)), ONE), hsv.ShapeError, "must broadcast"),
        ((torch.eye(1), np.ones((1, 1)), ONE), hsv.DtypeError, "one array library"),
    ],
)
def test_bad_arrays_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        hsv.StateSpace(*arguments, dt=True)


@pytest.mark.parametrize(
    "dt",
    [None, False, np.False_, np.array(False), torch.tensor(False), "1", b"0.1", 1j, np.complex128(1), [1.0], object()],
)
def test_a_time_base_that_is_no_number_is_a_type_error(dt):
    with pytest.raises(hsv.DtypeError, match="dt must be 0"):
        hsv.StateSpace(ONE, ONE, ONE, dt=dt)


@pytest.mark.parametrize("dt", [-1.0, float("nan"), float("inf")])
def test_a_time_base_must_be_positive(dt):
    with pytest.raises(hsv.HsvError, match="dt must be 0"):
        hsv.StateSpace(ONE, ONE, ONE, dt=dt)


@pytest.mark.parametrize("dt", [True, np.True_, np.array(True), torch.tensor(True)])
def test_a_truth_of_any_library_is_discrete_time(dt):
    assert hsv.StateSpace(ONE, ONE, ONE, dt=dt).dt is True
    assert hsv.DiagonalStateSpace.from_log_poles([-1.0], ONE, ONE, dt=dt).dt is True
    assert hsv.StateSpace(ONE, ONE, ONE, dt=torch.tensor(0.5)).dt == 0.5


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("A", lambda: hsv.StateSpace(None, ONE, ONE, dt=0)),
        ("B", lambda: hsv.StateSpace(ONE, None, ONE, dt=0)),
        ("poles", lambda: hsv.DiagonalStateSpace(None, ONE, ONE, dt=0)),
        ("C", lambda: hsv.SparseStateSpace(scipy.sparse.diags_array([-1.0]), ONE, None, dt=0)),
        ("a", lambda: hsv.solve_continuous_riccati(None, ONE, ONE, ONE)),
        ("r", lambda: hsv.solve_discrete_riccati(ONE, ONE, ONE, None)),
        ("q", lambda: hsv.solve_continuous_lyapunov(ONE, None)),
        ("E", lambda: hsv.from_descriptor(None, ONE, ONE, ONE, dt=0)),
        ("P", lambda: hsv.balancing_projection(None, ONE, 1)),
    ],
)
def test_none_is_no_array(name, call):
    with pytest.raises(hsv.DtypeError, match=f"^{name} must be an array of numbers, got None"):
        call()


def test_ragged_lists_and_masked_entries_are_refused():
    with pytest.raises(hsv.ShapeError, match="B must be an array, which this list is not: its rows differ in length"):
        hsv.StateSpace(ONE, [[1.0], [2.0, 3.0]], ONE, dt=0)
    masked = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]])
    with pytest.raises(hsv.DtypeError, match=r"A has masked entries \(1\), .* A\.filled"):
        hsv.StateSpace(masked, np.ones((2, 1)), np.ones((1, 2)), dt=0)
    whole = hsv.StateSpace(-np.ma.masked_array(np.eye(2)), np.ones((2, 1)), np.ones((1, 2)), dt=0)
    assert hsv.hankel_singular_values(whole)[0] == 1


def test_dt_has_no_default():
    with pytest.raises(TypeError, match="dt"):
        hsv.StateSpace(ONE, ONE, ONE)


def test_a_difference_needs_one_time_base_and_one_shape(rng):
    sys = random_system(rng)
    with pytest.raises(hsv.HsvError, match="same dt"):
        sys - random_system(rng, dt=0)
    with pytest.raises(hsv.ShapeError, match="same inputs and outputs"):
        sys - random_system(rng, m=1)
    with pytest.raises(hsv.HsvError, match="same dt"):  # a unit step is not a second
        sys - random_system(rng, dt=1.0)


def test_time_must_fit_the_question(rng):
    with pytest.raises(hsv.HsvError, match="discretize"):
        random_system(rng, dt=0).impulse_response(3)
    with pytest.raises(hsv.DtypeError, match="n_steps must be an int"):
        random_system(rng).impulse_response(3.0)
    with pytest.raises(hsv.HsvError, match="at least 1"):
        random_system(rng).impulse_response(0)
    with pytest.raises(hsv.DtypeError, match="w must be real"):
        random_system(rng).frequency_response([1j])
    with pytest.raises(hsv.ShapeError, match=r"pass \[w\]"):
        random_system(rng).frequency_response(0.3)
    with pytest.raises(hsv.HsvError, match="log_poles describe a discrete system"):
        hsv.DiagonalStateSpace.from_log_poles([-1.0], ONE, ONE, dt=0)


def foreign_systems():
    one = ([[-1.0]], [[1.0]], [[1.0]], [[0.0]])
    sparse = hsv.SparseStateSpace(scipy.sparse.diags_array([-1.0, -2.0]), [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    reduction = hsv.balanced_truncation(hsv.StateSpace(*one, dt=0), 1)
    return {
        "got None; make a system of its matrices": None,
        r"got a ndarray of numpy; make a system of its matrices: hsv\.StateSpace": np.eye(2),
        "got a tuple; make": one,
        r"of scipy; convert it first: hsv\.from_scipy\(sys\)": scipy.signal.StateSpace(*one),
        "got a coo_array of scipy; make": scipy.sparse.coo_array(np.eye(2)),
        r"got a SparseStateSpace, for which .* pass sys\.to_dense\(\)": sparse,
        r"got a LowRankGramians, for which .* pass sys\.system\.to_dense\(\)": hsv.low_rank_gramians(sparse),
        r"got a Reduction; pass sys\.system": reduction,
    }


def test_what_is_no_system_is_named_with_the_way_to_make_it_one():
    for message, wrong in foreign_systems().items():
        with pytest.raises(hsv.DtypeError, match=message):
            require_system(wrong)
    with pytest.raises(hsv.DtypeError, match=r"input_weight must be .*from_scipy\(input_weight\)"):
        require_system(scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), name="input_weight")
    require_system(foreign_systems()[r"got a SparseStateSpace, for which .* pass sys\.to_dense\(\)"], LargeSystem)


ONE_ARGUMENT = (
    "balance",
    "controllability_factor",
    "controllability_gramian",
    "cross_gramian",
    "diagonalize",
    "hankel_norm",
    "hankel_singular_values",
    "observability_factor",
    "observability_gramian",
    "real_part",
)
WITH_A_RULE = (
    "balanced_truncation",
    "balancing_free_truncation",
    "hankel_norm_approximation",
    "reduce_stable_part",
    "singular_perturbation",
)


@pytest.mark.parametrize("wrong", [None, np.eye(2), scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]])])
@pytest.mark.parametrize("name", [*ONE_ARGUMENT, *WITH_A_RULE])
def test_every_function_of_a_system_says_what_it_was_given(name, wrong):
    with pytest.raises(hsv.DtypeError, match=r"^sys must be a StateSpace.* DiagonalStateSpace.* of hsv, got"):
        getattr(hsv, name)(wrong, *([1] if name in WITH_A_RULE else []))


def test_what_is_no_system_is_not_saved(tmp_path):
    with pytest.raises(hsv.DtypeError, match=r"^sys must be a StateSpace or a DiagonalStateSpace of hsv, got None"):
        hsv.save(None, tmp_path / "model.npz")


@pytest.mark.parametrize(
    ("module", "converter"), [("control.statesp", "from_control"), ("pymor.models.iosys", "from_pymor")]
)
def test_the_packages_that_are_converted_are_known_by_the_module(module, converter):
    wrong = type("StateSpace", (), {"__module__": module})()
    with pytest.raises(
        hsv.DtypeError, match=rf"got a StateSpace of {module.split('.')[0]}; convert it first: hsv\.{converter}\(sys\)"
    ):
        require_system(wrong)
