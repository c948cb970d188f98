import array_api_strict
import ctrlsys
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from tests.hsv.reference_systems import complex_normal
from tests.tolerances import tolerance

SOLVERS = {False: hsv.solve_continuous_riccati, True: hsv.solve_discrete_riccati}
SCIPY = {False: scipy.linalg.solve_continuous_are, True: scipy.linalg.solve_discrete_are}


def adjoint(x):
    return x.conj().swapaxes(-1, -2)


def parts(a, b, q, r, s, x, *, discrete):
    """The residual of the equation as it is written, its largest term, and the closed loop: nothing shared with the code under test."""
    if discrete:
        weight, cross = r + adjoint(b) @ x @ b, adjoint(a) @ x @ b + s
        terms = [adjoint(a) @ x @ a, -x]
    else:
        weight, cross = r, x @ b + s
        terms = [adjoint(a) @ x, x @ a]
    gain = -np.linalg.solve(weight, adjoint(cross))
    terms += [cross @ gain, q]
    size = sum(np.linalg.norm(t) for t in terms)
    return np.linalg.norm(sum(terms)) / size, a + b @ gain


def stable(closed, *, discrete):
    poles = np.linalg.eigvals(closed)
    return bool(np.all(np.abs(poles) < 1 if discrete else poles.real < 0))


def random_problem(rng, n, m, *, discrete, complex_, growth=1.3):
    """A control problem with some unstable poles, ``r`` and all of ``[[q, s], [s^H, r]]`` positive."""
    normal = complex_normal if complex_ else lambda rng, shape: rng.normal(size=shape)
    a = normal(rng, (n, n))
    a = growth * a / np.abs(np.linalg.eigvals(a)).max()
    a = a if discrete else a - np.eye(n)
    b, c, d = normal(rng, (n, m)), normal(rng, (m + 1, n)), normal(rng, (m + 1, m))
    return a, b, adjoint(c) @ c, adjoint(d) @ d + np.eye(m), adjoint(c) @ d


problems = st.fixed_dictionaries(
    {
        "n": st.integers(1, 8),
        "m": st.integers(1, 3),
        "discrete": st.booleans(),
        "complex_": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


@given(problems)
def test_the_solution_solves_and_stabilises(problem):
    discrete = problem["discrete"]
    rng = np.random.default_rng(problem.pop("seed"))
    a, b, q, r, s = random_problem(rng, **problem)
    x = SOLVERS[discrete](a, b, q, r, s=s)
    residual, closed = parts(a, b, q, r, s, x, discrete=discrete)
    # the terms as written are larger than the solution by up to |b|^2 |x|
    assert residual <= tolerance(float, factor=1e4)
    assert stable(closed, discrete=discrete)
    np.testing.assert_array_equal(x, adjoint(x))
    assert np.iscomplexobj(x) == problem["complex_"]
    assert np.linalg.eigvalsh(x).min() >= -tolerance(float) * np.linalg.norm(x)  # positive for a positive cost


@given(problems)
def test_scipy_agrees(problem):
    discrete = problem["discrete"]
    rng = np.random.default_rng(problem.pop("seed"))
    a, b, q, r, s = random_problem(rng, **problem, growth=1.1)
    x, theirs = SOLVERS[discrete](a, b, q, r, s=s), SCIPY[discrete](a, b, q, r, s=s)
    # SciPy's solution has lost some digits of its own; the next test has the truth
    np.testing.assert_allclose(x, theirs, atol=1e-8 * np.abs(theirs).max())


def known_solution(rng, n, m, *, discrete, complex_, sign):
    """An equation made from its answer: a stable closed loop, any Hermitian x, a weight of either sign."""
    normal = complex_normal if complex_ else lambda rng, shape: rng.normal(size=shape)
    closed = normal(rng, (n, n))
    closed = 0.8 * closed / np.abs(np.linalg.eigvals(closed)).max()
    closed = closed if discrete else closed - np.eye(n)
    b, s = normal(rng, (n, m)), normal(rng, (n, m))
    x = normal(rng, (n, n))
    x = x + adjoint(x)
    r = sign * np.eye(m)
    if not discrete:
        # a = closed - b f with f = -r^-1 (b^H x + s^H)
        a = closed + b @ np.linalg.solve(r, adjoint(b) @ x + adjoint(s))
        q = (x @ b + s) @ np.linalg.solve(r, adjoint(b) @ x + adjoint(s)) - adjoint(a) @ x - x @ a
    else:
        # (r + b^H x b) f = -(b^H x a + s^H) and a = closed - b f give r f = -(b^H x closed + s^H)
        f = -np.linalg.solve(r, adjoint(b) @ x @ closed + adjoint(s))
        a = closed - b @ f
        cross = adjoint(a) @ x @ b + s
        q = x - adjoint(a) @ x @ a - cross @ f
    return (a, b, 0.5 * (q + adjoint(q)), r, s), x


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_indefinite_equations_made_from_their_solution(discrete, complex_, sign, rng):
    for n, m in [(1, 1), (2, 1), (5, 2), (9, 3)]:
        (a, b, q, r, s), x = known_solution(rng, n, m, discrete=discrete, complex_=complex_, sign=sign)
        found = SOLVERS[discrete](a, b, q, r, s=s)
        # the data are rounded: errors grow with the sensitivity of the equation
        np.testing.assert_allclose(found, x, atol=1e-9 * np.abs(x).max() * max(1, np.linalg.norm(a)) ** 2)


@pytest.mark.parametrize("discrete", [True, False])
def test_slicot_agrees(discrete, rng):
    a, b, q, r, s = random_problem(rng, 7, 2, discrete=discrete, complex_=False)
    x = SOLVERS[discrete](a, b, q, r, s=s)
    time, f = "D" if discrete else "C", np.asfortranarray
    plain = SOLVERS[discrete](a, b, q, r)
    extended = ctrlsys.sb02od(time, "B", "N", "U", "N", "S", 7, 2, 0, *(f(y.copy()) for y in (a, b, q, r, s)), 0.0)
    np.testing.assert_allclose(x, extended[0], atol=1e-9 * np.abs(x).max())
    generalised = ctrlsys.sg02ad(
        time, "B", "N", "U", "N", "N", "S", "N", 7, 2, 0, *(f(y.copy()) for y in (a, np.eye(7), b, q, r, s)), 0.0
    )
    np.testing.assert_allclose(x, generalised[0], atol=1e-9 * np.abs(x).max())
    g = b @ np.linalg.solve(r, b.T)
    schur = ctrlsys.sb02md(time, "I", "U", "N", "S", 7, *(f(y.copy()) for y in (a, g, q)))
    np.testing.assert_allclose(plain, schur[0], atol=1e-9 * np.abs(x).max())


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("complex_", [True, False])
def test_a_batch_is_its_equations_one_by_one(discrete, complex_, rng):
    draws = [random_problem(rng, 4, 2, discrete=discrete, complex_=complex_) for _ in range(6)]
    a, b, q, r, s = (np.stack(x).reshape(2, 3, *x[0].shape) for x in zip(*draws, strict=True))
    x = SOLVERS[discrete](a, b, q, r, s=s)
    assert x.shape == (2, 3, 4, 4)
    for index in np.ndindex(2, 3):
        alone = SOLVERS[discrete](a[index], b[index], q[index], r[index], s=s[index])
        np.testing.assert_allclose(x[index], alone, atol=1e-12 * np.abs(alone).max())
    broadcast = SOLVERS[discrete](a, b[0, 0], q[0, 0], r[0, 0])
    alone = SOLVERS[discrete](a[1, 2], b[0, 0], q[0, 0], r[0, 0])
    np.testing.assert_allclose(broadcast[1, 2], alone, atol=1e-12 * np.abs(alone).max())


@pytest.mark.parametrize("discrete", [True, False])
def test_units_of_the_states_cost_no_digits(discrete, rng):
    a, b, q, r, s = random_problem(rng, 6, 2, discrete=discrete, complex_=False)
    x = SOLVERS[discrete](a, b, q, r, s=s)
    e = 2.0 ** rng.integers(-30, 30, 6)
    scaled = SOLVERS[discrete](a * e / e[:, None], b / e[:, None], e[:, None] * q * e, r, s=e[:, None] * s)
    np.testing.assert_allclose(scaled / e / e[:, None], x, atol=1e-11 * np.abs(x).max())


def test_the_residual_is_below_scipys(rng):
    """Newton's method on the equation itself: two decimal digits, on equations where x is a thousand times the size of q."""
    ours, theirs = [], []
    for _ in range(5):
        for discrete in (True, False):
            problem = random_problem(rng, 30, 2, discrete=discrete, complex_=False, growth=1.05)
            for found, x in (
                (ours, SOLVERS[discrete](*problem[:4], s=problem[4])),
                (theirs, SCIPY[discrete](*problem[:4], s=problem[4])),
            ):
                found.append(parts(*problem, x, discrete=discrete)[0])
    assert np.median(ours) < 0.1 * np.median(theirs)


def test_a_singular_weight_in_discrete_time():
    """SLICOT's SB02ND: r = 0 is no obstacle where b^H x b is regular."""
    x = hsv.solve_discrete_riccati([[2.0, -1.0], [1.0, 0.0]], [[1.0], [0.0]], np.diag([0.0, 1.0]), [[0.0]])
    np.testing.assert_allclose(x, np.eye(2), atol=1e-13)


@pytest.mark.parametrize("a", [np.zeros((2, 2)), [[0.0, 1.0], [0.0, 0.0]], np.diag([-1.5, 1.5]), np.diag([1e-9, 3.0])])
def test_special_state_matrices_in_discrete_time(a):
    a = np.asarray(a)
    b, q, r = np.eye(2), np.diag([1.0, 2.0]), np.eye(2)
    x = hsv.solve_discrete_riccati(a, b, q, r)
    residual, closed = parts(a, b, q, r, np.zeros((2, 2)), x, discrete=True)
    assert residual < tolerance(float)
    assert stable(closed, discrete=True)


@pytest.mark.parametrize("discrete", [True, False])
def test_poles_that_cost_nothing_are_mirrored(discrete, rng):
    """With q = 0 the closed loop has the stable poles and the mirrored unstable ones, and x has the rank of the latter."""
    poles = np.array([2.0, 1.25, -0.5, 0.25]) if discrete else np.array([2.0, 0.5, -1.0, -3.0])
    v = rng.normal(size=(4, 4))
    a, b = v @ np.diag(poles) @ np.linalg.inv(v), rng.normal(size=(4, 2))
    x = SOLVERS[discrete](a, b, np.zeros((4, 4)), np.eye(2))
    _, closed = parts(a, b, np.zeros((4, 4)), np.eye(2), np.zeros((4, 2)), x, discrete=discrete)
    expected = [0.5, 0.8, -0.5, 0.25] if discrete else [-2.0, -0.5, -1.0, -3.0]
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(closed).real), np.sort(expected), atol=1e-9)
    assert np.linalg.matrix_rank(x, tol=1e-9 * np.abs(x).max()) == 2


@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("discrete", [True, False])
def test_other_array_libraries_and_precisions(discrete, library, rng):
    problem = random_problem(rng, 4, 2, discrete=discrete, complex_=True)
    expected = SOLVERS[discrete](*problem[:4], s=problem[4])
    *arrays, s = (library.asarray(x) for x in problem)
    found = SOLVERS[discrete](*arrays, s=s)
    assert type(found) is type(arrays[0])
    host = found.numpy() if library is torch else np.from_dlpack(found)
    np.testing.assert_allclose(host, expected, rtol=1e-12)
    single = SOLVERS[discrete](*(x.astype(np.complex64) for x in problem[:4]), s=problem[4].astype(np.complex64))
    assert single.dtype == np.complex64
    np.testing.assert_allclose(single, expected, atol=1e-3 * np.abs(expected).max())


def test_inputs_are_not_changed(rng):
    for discrete in (True, False):
        problem = random_problem(rng, 3, 1, discrete=discrete, complex_=False)
        before = [x.copy() for x in problem]
        SOLVERS[discrete](*problem[:4], s=problem[4])
        for x, y in zip(problem, before, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("discrete", [True, False])
class TestRefusals:
    def test_a_pole_that_nothing_moves(self, discrete):
        a, b = np.diag([2.0, -0.5]), [[0.0], [1.0]]
        with pytest.raises(hsv.IllConditionedError, match="no stabilising solution"):
            SOLVERS[discrete](a, b, np.eye(2), [[1.0]])

    def test_a_pole_on_the_boundary_that_costs_nothing(self, discrete):
        with pytest.raises(hsv.IllConditionedError, match="boundary"):
            SOLVERS[discrete]([[1.0 if discrete else 0.0]], [[1.0]], [[0.0]], [[1.0]])

    def test_an_indefinite_equation_without_solution(self, discrete):
        """The bounded-real equation of a gain that crosses the level 1: between 2.4 and 0.8, and between 1.2 and 0."""
        a = [[0.5 if discrete else -1.0]]
        with pytest.raises(hsv.IllConditionedError, match="no stabilising solution"):
            SOLVERS[discrete](a, [[1.0]], [[1.44]], [[-1.0]])

    def test_which_equation_of_a_batch(self, discrete):
        a = np.array([[[0.5]], [[1.0 if discrete else 0.0]]]) - (0 if discrete else np.array([[[1.0]], [[0.0]]]))
        with pytest.raises(hsv.IllConditionedError, match=r"system \(1,\)"):
            SOLVERS[discrete](a, [[1.0]], [[0.0]], [[1.0]])

    def test_matrices_that_are_not_hermitian(self, discrete):
        eye = np.eye(2)
        with pytest.raises(hsv.HsvError, match="q must be Hermitian"):
            SOLVERS[discrete](eye / 2, eye, [[1.0, 0.1], [0.0, 1.0]], eye)
        with pytest.raises(hsv.HsvError, match="r must be Hermitian"):
            SOLVERS[discrete](eye / 2, eye, eye, 1j * eye)

    def test_shapes_and_numbers(self, discrete):
        eye = np.eye(2)
        for arguments, name in [
            ((np.ones((2, 3)), eye, eye, eye), "a"),
            ((eye, np.ones((3, 1)), eye, eye), "b"),
            ((eye, eye, np.eye(3), eye), "q"),
            ((eye, eye, eye, [[1.0]]), "r"),
            ((eye, eye, eye, eye), "s"),
        ]:
            with pytest.raises(hsv.ShapeError, match=f"^{name} must have shape"):
                SOLVERS[discrete](*arguments, s=np.ones((1, 2)) if name == "s" else None)
        with pytest.raises(hsv.ShapeError, match="at least one column"):
            SOLVERS[discrete](eye, np.ones((2, 0)), eye, np.ones((0, 0)))
        with pytest.raises(hsv.NonFiniteError, match="r must be finite"):
            SOLVERS[discrete](eye, eye, eye, np.nan * eye)


def test_a_singular_weight_in_continuous_time():
    with pytest.raises(hsv.IllConditionedError, match="r must be invertible"):
        hsv.solve_continuous_riccati(-np.eye(2), np.eye(2), np.eye(2), np.diag([1.0, 0.0]))


def test_a_discrete_input_that_does_nothing_and_costs_nothing():
    with pytest.raises(hsv.IllConditionedError, match="singular"):
        hsv.solve_discrete_riccati([[0.5]], [[0.0]], [[1.0]], [[0.0]])
