"""Every compiled kernel against its reference, element by element, at the edges too."""

import inspect
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from scipy.linalg import schur

from hsv._kernels import _numba, _reference
from tests.hsv.reference_systems import complex_normal
from tests.tolerances import tolerance

# batch, states, inputs: one of each, none of some, more inputs than states
SHAPES = [(1, 1, 1), (3, 1, 2), (2, 7, 3), (2, 5, 0), (0, 4, 2), (3, 4, 9), (1, 40, 2)]


def triangular(rng, batch, n, *, discrete):
    """A stable, non-normal triangular matrix with garbage below its diagonal, which nothing may read."""
    t = np.triu(complex_normal(rng, (batch, n, n)), 1) / max(1, n) + np.tril(np.full((batch, n, n), np.nan), -1)
    poles = complex_normal(rng, (batch, n))
    if discrete:
        poles *= rng.uniform(0.0, 0.999, (batch, n)) / np.abs(poles)
    else:
        poles = -np.abs(poles.real) - 1e-3 + 1j * poles.imag
    t[:, np.arange(n), np.arange(n)] = poles
    return t


def without_garbage(t):
    return np.triu(t)


def assert_same(name, *arguments, factor=1e4):
    """The order of the sums differs, and a triangular solve amplifies that: hence a factor of 1e4."""
    fast, plain = getattr(_numba, name)(*arguments), getattr(_reference, name)(*arguments)
    for x, y in zip(np.atleast_1d(fast, plain)[:1], np.atleast_1d(fast, plain)[1:], strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype == np.complex128
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance(float, factor=factor) * np.abs(y).max(initial=1.0))


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("name", ["continuous_lyapunov_factor", "discrete_lyapunov_factor"])
def test_lyapunov_factors(name, batch, n, m, rng):
    t, b = triangular(rng, batch, n, discrete="discrete" in name), complex_normal(rng, (batch, n, m))
    before = t.copy(), b.copy()
    assert_same(name, without_garbage(t), b)
    np.testing.assert_array_equal(getattr(_numba, name)(t, b), getattr(_numba, name)(without_garbage(t), b))
    np.testing.assert_array_equal(t, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("name", ["continuous_lyapunov_factor", "discrete_lyapunov_factor"])
@pytest.mark.parametrize("module", [_numba, _reference], ids=["numba", "reference"])
def test_lyapunov_factors_solve_their_equation(module, name, rng):
    t, b = without_garbage(triangular(rng, 4, 6, discrete="discrete" in name)), complex_normal(rng, (4, 6, 2))
    u = getattr(module, name)(t, b)
    p, th = u @ u.conj().swapaxes(-1, -2), t.conj().swapaxes(-1, -2)
    left = t @ p @ th - p if "discrete" in name else t @ p + p @ th
    np.testing.assert_allclose(left, -b @ b.conj().swapaxes(-1, -2), atol=tolerance(float) * np.abs(p).max())
    diagonal = np.diagonal(u, axis1=-2, axis2=-1)
    assert np.all(diagonal.imag == 0)
    assert np.all(diagonal.real > 0)
    np.testing.assert_array_equal(u, np.triu(u))


def real_form(rng, batch, n, kind, *, discrete):
    """Stable real Schur forms: of random matrices, with pairs of poles alone, with real poles alone, nearly skew-symmetric."""
    forms = np.empty((batch, n, n))
    for k in range(batch):
        a = rng.normal(size=(n, n))
        if kind == "pairs":
            a = np.kron(np.eye((n + 1) // 2), [[0, 3], [-2, 0]])[:n, :n] + 0.3 * np.triu(a, 1)
        elif kind == "real":
            a = np.triu(a)
        elif kind == "skew":
            a = a - a.T + 0.1 * np.triu(a)
        poles = np.linalg.eigvals(a)
        a = 0.95 * a / np.abs(poles).max(initial=0.1) if discrete else a - (poles.real.max() + 0.1) * np.eye(n)
        forms[k] = schur(a, output="real")[0]
    return forms


REAL_FACTORS = ["real_continuous_lyapunov_factor", "real_discrete_lyapunov_factor"]
KINDS = ["random", "pairs", "real", "skew"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "n", "m"), [*SHAPES[:-1], (1, 2, 1), (2, 2, 5), (1, 20, 3)])
@pytest.mark.parametrize("name", REAL_FACTORS)
def test_real_lyapunov_factors(name, batch, n, m, kind, rng):
    t, b = real_form(rng, batch, n, kind, discrete="discrete" in name), rng.normal(size=(batch, n, m))
    before = t.copy(), b.copy()
    fast, plain = getattr(_numba, name)(t, b), getattr(_reference, name)(t, b)
    assert fast.shape == plain.shape
    assert fast.dtype == plain.dtype == np.float64
    np.testing.assert_allclose(fast, plain, rtol=0, atol=tolerance(float, factor=1e4) * np.abs(plain).max(initial=1.0))
    np.testing.assert_array_equal(t, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REAL_FACTORS)
@pytest.mark.parametrize("module", [_numba, _reference], ids=["numba", "reference"])
def test_real_lyapunov_factors_are_the_complex_ones_up_to_a_unitary_matrix(module, name, kind, rng):
    t, b = real_form(rng, 3, 9, kind, discrete="discrete" in name), rng.normal(size=(3, 9, 2))
    u = getattr(module, name)(t, b)
    p, tt = u @ u.swapaxes(-1, -2), t.swapaxes(-1, -2)
    left = t @ p @ tt - p if "discrete" in name else t @ p + p @ tt
    size = max(np.linalg.norm(t, axis=(-2, -1)).max(), 1.0) ** 2 * np.abs(p).max()
    np.testing.assert_allclose(left, -b @ b.swapaxes(-1, -2), atol=tolerance(float) * size)
    np.testing.assert_array_equal(u, np.triu(u))
    assert np.all(np.diagonal(u, axis1=-2, axis2=-1) >= 0)
    s, z = module.complex_schur_form(t, np.broadcast_to(np.eye(9), t.shape))
    v = z @ getattr(module, name.removeprefix("real_"))(s, z.conj().swapaxes(-1, -2) @ b)
    np.testing.assert_allclose(v @ v.conj().swapaxes(-1, -2), p, atol=tolerance(float, factor=1e4) * np.abs(p).max())


@pytest.mark.parametrize("name", REAL_FACTORS)
@pytest.mark.parametrize("module", [_numba, _reference], ids=["numba", "reference"])
def test_blocks_without_input_and_extreme_sizes(module, name, rng):
    kernel = getattr(module, name)
    t, b = real_form(rng, 1, 6, "pairs", discrete="discrete" in name), rng.normal(size=(1, 6, 2))
    t[:, :4, 4:] = 0.0
    b[:, 4:] = 0.0
    np.testing.assert_array_equal(kernel(t, b)[:, 4:], 0.0)
    b = rng.normal(size=(1, 6, 2))
    for scale in (2.0**-900, 2.0**900):
        np.testing.assert_allclose(kernel(t, b * scale) / scale, kernel(t, b), rtol=tolerance(float), atol=1e-14)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("name", REAL_FACTORS)
def test_a_pair_of_nearly_equal_poles_keeps_its_digits(name, m, rng):
    """The factor of one block against 50 digits, entry by entry: a pair a +- i f with f from 0.7 to 1e-12, and inputs that hardly reach one of its states."""
    for f in (0.7, 1e-4, 1e-8, 1e-12):
        for reach in (1.0, 1e-6, f * f):
            t = np.array([[[-0.5, 2.0], [-f * f / 2, -0.5]]])
            b = rng.normal(size=(1, 2, m)) * [[1.0], [reach]]
            u = getattr(_numba, name)(t, b)[0]
            with mpmath.workdps(80):
                S, B = mpmath.matrix(t[0].tolist()), mpmath.matrix(b[0].tolist())
                one = mpmath.eye(2)
                Q, operator = B * B.T, mpmath.zeros(4)
                for i, j, k, h in np.ndindex(2, 2, 2, 2):
                    if "discrete" in name:
                        operator[2 * i + j, 2 * k + h] = one[i, k] * one[j, h] - S[i, k] * S[j, h]
                    else:
                        operator[2 * i + j, 2 * k + h] = -S[i, k] * one[j, h] - one[i, k] * S[j, h]
                p00, p01, _, p11 = mpmath.lu_solve(operator, mpmath.matrix([Q[0, 0], Q[0, 1], Q[1, 0], Q[1, 1]]))
                last = mpmath.sqrt(p11)
                exact = [mpmath.sqrt(p00 - p01**2 / p11), p01 / last, last]
            # The diagonal to nearly full relative accuracy. Parallel inputs share out what is left over, hence a little more than rounding.
            found, exact = np.array([u[0, 0], u[0, 1], u[1, 1]]), np.array([float(x) for x in exact])
            np.testing.assert_allclose(found[[0, 2]], exact[[0, 2]], rtol=tolerance(float, factor=10))
            np.testing.assert_allclose(found[1], exact[1], rtol=0, atol=tolerance(float) * np.hypot(*exact[:2]))


@pytest.mark.parametrize("name", ["continuous_lyapunov_factor", "discrete_lyapunov_factor"])
@pytest.mark.parametrize("module", [_numba, _reference], ids=["numba", "reference"])
def test_rows_without_input_and_extreme_sizes(module, name, rng):
    """A row of zeros gives a row of zeros, and sizes whose squares overflow or underflow change nothing."""
    kernel = getattr(module, name)
    t, b = without_garbage(triangular(rng, 1, 5, discrete="discrete" in name)), complex_normal(rng, (1, 5, 2))
    t[:, 3, 4] = 0.0
    b[:, 3:] = 0.0
    np.testing.assert_array_equal(kernel(t, b)[:, 3:], 0.0)
    for scale in (2.0**-900, 2.0**900):
        np.testing.assert_allclose(kernel(t, b * scale) / scale, kernel(t, b), rtol=tolerance(float))
    t[:, 4, 4] = 0.0 if "discrete" in name else -1e-300
    assert np.all(np.isfinite(kernel(t, complex_normal(rng, (1, 5, 2)))))


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
def test_triangular_sylvester(batch, n, m, rng):
    s, t = (without_garbage(triangular(rng, batch, k, discrete=False)) for k in (n, m))
    q = complex_normal(rng, (batch, n, m))
    assert_same("triangular_sylvester", s, t, q)
    x = _numba.triangular_sylvester(s, t, q)
    np.testing.assert_allclose(s @ x + x @ t, q, atol=tolerance(float, factor=1e4) * np.abs(x).max(initial=1.0))


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
def test_triangular_stein(batch, n, m, rng):
    s = without_garbage(triangular(rng, batch, n, discrete=True))
    q = complex_normal(rng, (batch, n, n))
    assert_same("triangular_stein", s, q)
    x = _numba.triangular_stein(s, q)
    residual = s @ x @ s.conj().swapaxes(-1, -2) - x + q
    np.testing.assert_allclose(residual, 0, atol=tolerance(float, factor=1e4) * np.abs(x).max(initial=1.0))


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
def test_triangular_pencil(batch, n, m, rng):
    s, u = (triangular(rng, batch, n, discrete=d) for d in (True, False))
    t, v = (triangular(rng, batch, m, discrete=d) for d in (False, True))
    q = complex_normal(rng, (batch, n, m))
    assert_same("triangular_pencil", s, t, u, v, q)
    x = _numba.triangular_pencil(s, t, u, v, q)
    s, t, u, v = (without_garbage(k) for k in (s, t, u, v))
    residual = s @ x @ t.conj().swapaxes(-1, -2) + u @ x @ v.conj().swapaxes(-1, -2) - q
    # the terms are larger than the solution, and a sum of two triangles is not always well-conditioned
    np.testing.assert_allclose(residual, 0, atol=tolerance(float, factor=1e5) * np.abs(x).max(initial=1.0))


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("n_points", [0, 1, 5])
def test_triangular_resolvent(batch, n, m, n_points, rng):
    t = without_garbage(triangular(rng, batch, n, discrete=True))
    points = np.exp(1j * rng.uniform(-np.pi, np.pi, (batch, n_points)))
    assert_same("triangular_resolvent", t, points, complex_normal(rng, (batch, n, m)))


@pytest.mark.parametrize(("batch", "n"), [(1, 1), (2, 2), (3, 9), (0, 4), (1, 30)])
def test_complex_schur_form(batch, n, rng):
    a = rng.normal(size=(batch, n, n))
    forms = [schur(matrix, output="real") for matrix in a]
    t, z = (np.array([form[i] for form in forms]).reshape(batch, n, n) for i in (0, 1))
    (fast_t, fast_z), (plain_t, plain_z) = _numba.complex_schur_form(t, z), _reference.complex_schur_form(t, z)
    np.testing.assert_allclose(fast_t, plain_t, atol=tolerance(float) * n)
    np.testing.assert_allclose(fast_z, plain_z, atol=tolerance(float))
    np.testing.assert_array_equal(fast_t, np.triu(fast_t))
    np.testing.assert_allclose(fast_z @ fast_t @ fast_z.conj().swapaxes(-1, -2), a, atol=tolerance(float) * n)
    for poles in np.diagonal(fast_t, axis1=-2, axis2=-1):  # pairs are conjugates to the last bit
        np.testing.assert_array_equal(np.sort_complex(poles), np.sort_complex(poles.conj()))


@pytest.mark.parametrize(("length", "d", "n"), [(1, 1, 1), (5, 3, 4), (130, 2, 33), (0, 2, 3), (7, 0, 3)])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selective_kernels(dtype, flag, keep, length, d, n, rng):
    A = -np.exp(rng.normal(size=(d, n)))
    delta, (B, C) = np.exp(rng.normal(size=(length, d)) - 1), rng.normal(size=(2, length, n))
    delta[3:4] = 0.0
    delta[4:5] *= 1e4  # the decay underflows
    x, weight = rng.normal(size=(2, length, d))
    A, delta, B, C, x, weight = (v.astype(dtype) for v in (A, delta, B, C, x, weight))
    first, last, base = (0, d - 1, 1) if d > 1 else (0, d, 0)
    before = [v.copy() for v in (A, delta, B, C, x, weight)]
    results = []
    for module in (_numba, _reference):
        carry, back = np.ones((2, 2, d, n), dtype)
        totals, trajectories = np.ones((5, d, n)), np.zeros((2, d * keep, length, n), dtype)
        arguments = A, delta, x, weight
        module.selective_forward(first, last, base, *arguments, B, C, flag, carry, *totals[:4], trajectories[0])
        module.selective_backward(first, last, base, *arguments, C, flag, back, totals[4], trajectories[1])
        results.append((carry, back, *totals, *trajectories))
    for v, old in zip((A, delta, B, C, x, weight), before, strict=True):
        np.testing.assert_array_equal(v, old)
    for fast, plain in zip(*results, strict=True):
        assert fast.dtype == plain.dtype
        np.testing.assert_allclose(fast, plain, rtol=0, atol=tolerance(dtype) * np.abs(plain).max(initial=1.0))


@pytest.mark.parametrize(
    ("batch", "length", "n"), [(1, 1, 1), (3, 64, 32), (4, 65, 33), (2, 1100, 5), (2, 0, 3), (0, 4, 3), (1, 7, 130)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_products(dtype, batch, length, n, rng):
    rows = rng.normal(size=(batch, length, n)).astype(dtype)
    fast, plain = np.ones((2, batch, n, n))
    for k in (0, batch // 2):  # the first ones twice
        _numba.add_products(0, batch - k, rows, fast)
        _reference.add_products(0, batch - k, rows, plain)
    np.testing.assert_allclose(fast, plain, rtol=0, atol=tolerance(dtype) * np.abs(plain).max(initial=1.0))
    np.testing.assert_array_equal(fast, fast.swapaxes(-1, -2))


@pytest.mark.parametrize(
    ("length", "d", "n", "skip"),
    [(1, 1, 1, 0), (33, 3, 32, 5), (70, 2, 33, 32), (600, 2, 5, 0), (7, 2, 3, 7), (0, 2, 3, 0), (4, 0, 3, 1)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gramian_recursion(dtype, length, d, n, skip, rng):
    A, delta = -np.exp(rng.normal(size=(d, n))), np.exp(rng.normal(size=(length, d)) - 2)
    scale, vectors = rng.normal(size=(length, d)), rng.normal(size=(length, n))
    first, last, base = (0, d - 1, 1) if d > 1 else (0, d, 0)
    arguments = [v.astype(dtype) for v in (A, delta, scale, vectors)]
    fast, plain = np.ones((2, d, n, n))
    for module, gramians in ((_numba, fast), (_reference, plain)):
        module.gramian_recursion(first, last, base, *arguments, skip, gramians)
    np.testing.assert_allclose(fast, plain, rtol=0, atol=tolerance(dtype) * np.abs(plain).max(initial=1.0))
    np.testing.assert_array_equal(fast, fast.swapaxes(-1, -2))


@pytest.mark.parametrize(("dtype", "lowest"), [(np.float32, -87.0), (np.float64, -708.0)])
def test_the_exponential_of_the_selective_kernels(dtype, lowest):
    """Each step's sum of decays is the exponential itself: to two roundings, down to the smallest numbers and to 1 at 0."""
    x = np.concatenate([np.linspace(lowest, 0.0, 200_001), -np.geomspace(1e-30, 1.0, 10_000)]).astype(dtype)
    one, sums, empty = np.ones((1, 1), dtype), np.zeros((4, 1, len(x))), np.empty((0, 0, len(x)), dtype)
    row = np.ones((1, len(x)), dtype)
    _numba.selective_forward(
        0, 1, 0, x[None], one, one, one, row, row, False, np.zeros((2, 1, len(x)), dtype), *sums, empty
    )
    exact = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(sums[0, 0] / exact - 1)) < 2 * np.finfo(dtype).eps
    assert sums[0, 0, 200_000] == 1.0


def test_both_modules_have_the_same_functions_with_the_same_signatures():
    def functions(module):
        found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
        found = {name: getattr(f, "py_func", f) for name, f in found.items()}
        return {
            name: inspect.signature(f)
            for name, f in found.items()
            if inspect.isfunction(f) and f.__module__ == module.__name__
        }

    assert functions(_numba) == functions(_reference)
    assert functions(_numba)


def test_numba_is_imported_only_when_a_kernel_is_called():
    code = """
import sys, hsv
assert "numba" not in sys.modules
hsv.solve_discrete_lyapunov([[0.5]], [[3.0]])
assert "numba" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
