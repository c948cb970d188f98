import numpy as np
import pytest

from hsv import _blas
from hsv._errors import HsvError


def numbers(rng, *shape, complex_):
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def graded(rng, n, complex_, least):
    """Columns that fall in size down to `least`, as in products of Gramian factors."""
    return numbers(rng, n, n, complex_=complex_) * np.geomspace(1, least, n)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("n", [3, 40])  # below and above the size that is left to NumPy
def test_products_are_numpys_in_every_layout(n, complex_, rng):
    shapes = [((n, n), (n, n)), ((n, n), (n, 1)), ((4, n, n), (n, n)), ((2, 1, n, n), (3, n, n)), ((0, n, n), (n, n))]
    for left, right in shapes:
        x, y = numbers(rng, *left, complex_=complex_), numbers(rng, *right, complex_=complex_)
        before = x.copy(), y.copy()
        for a in (x, np.swapaxes(x, -1, -2), x.conj()[..., ::-1, :], x.real):
            for b in (y, np.asfortranarray(y), y[..., ::-1]):
                found = _blas.product(a, b)
                assert found.dtype == np.result_type(a, b)
                np.testing.assert_allclose(found, np.matmul(a, b), rtol=1e-13, atol=1e-13 * n)
        np.testing.assert_array_equal(before[0], x)
        np.testing.assert_array_equal(before[1], y)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("n", [3, 40])
def test_inverses_and_eigenvalues(n, complex_, rng):
    x = numbers(rng, 2, 3, n, n, complex_=complex_)
    before = x.copy()
    np.testing.assert_allclose(_blas.inverse(x) @ x, np.broadcast_to(np.eye(n), x.shape), atol=1e-10)
    found = _blas.eigenvalues(x)
    assert (found.dtype, found.shape) == (np.complex128, (2, 3, n))
    for values, matrix in zip(found.reshape(-1, n), x.reshape(-1, n, n), strict=True):
        np.testing.assert_allclose(np.poly(values)[1], -np.trace(matrix), rtol=1e-10)
        expected = np.linalg.eigvals(matrix)
        assert np.abs(values[:, None] - expected).min(axis=1).max() < 1e-10
    np.testing.assert_array_equal(x, before)
    with pytest.raises(np.linalg.LinAlgError):
        _blas.inverse(np.zeros((n, n)))


def test_single_precision_is_left_alone(rng):
    x = rng.standard_normal((40, 40)).astype(np.float32)
    assert _blas.product(x, x).dtype == np.float32


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("least", [1e-2, 1e-40, 1e-200])
@pytest.mark.parametrize("n", [1, 2, 30, 70])
def test_decompositions(n, least, complex_, rng):
    x = np.stack([graded(rng, n, complex_, least), graded(rng, n, complex_, 1e-3)])
    before = x.copy()
    U, s, Vh = _blas.svd(x)
    np.testing.assert_array_equal(x, before)
    assert (U.dtype, s.shape, Vh.shape) == (x.dtype, (2, n), x.shape)
    np.testing.assert_allclose((U * s[:, None, :]) @ Vh, x, atol=1e-13 * s[0, 0])
    for vectors in (np.swapaxes(U.conj(), -1, -2) @ U, Vh @ np.swapaxes(Vh.conj(), -1, -2)):
        kept = np.arange(n) < np.sum(s > n * 2.2e-16 * s[:, :1], axis=-1)[:, None]  # at least
        expected = np.eye(n) * kept[:, None, :]
        np.testing.assert_allclose(vectors * (kept[:, None, :] & kept[:, :, None]), expected, atol=1e-13)
    values = _blas.singular_values(x)
    np.testing.assert_array_equal(values, -np.sort(-values))
    np.testing.assert_allclose(s, values, atol=1e-14 * n * s.max())
    np.testing.assert_allclose(values, np.linalg.svd(x, compute_uv=False), atol=1e-14 * n * s.max())


def test_values_of_graded_matrices_keep_their_digits(rng):
    """Diagonal blocks a rounding error of a rounding error apart, whose values are known."""
    n = 90
    left, right = (np.linalg.qr(rng.standard_normal((30, 30)))[0] for _ in range(2))
    x, exact = np.zeros((n, n)), []
    for k, scale in enumerate((1.0, 1e-18, 1e-45)):
        values = scale * np.geomspace(1, 0.1, 30)
        x[30 * k : 30 * k + 30, 30 * k : 30 * k + 30] = (left * values) @ right
        exact.extend(values)
    for found in (_blas.singular_values(x), _blas.svd(x)[1]):
        np.testing.assert_allclose(found, exact, rtol=1e-13)


@pytest.mark.parametrize("n", [5, 80])
def test_zero_matrices(n):
    U, s, Vh = _blas.svd(np.zeros((2, n, n)))
    assert not s.any()
    assert np.isfinite(U).all()
    assert np.isfinite(Vh).all()
    assert not _blas.singular_values(np.zeros((n, n))).any()
    assert _blas.singular_values(np.zeros((0, n, n))).shape == (0, n)


@pytest.mark.parametrize("n", [5, 80])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_overflow_is_an_error_that_names_its_cause(n, bad):
    x = np.full((n, n), bad)
    for decompose in (_blas.svd, _blas.singular_values):
        with pytest.raises(HsvError, match="scale B and C down"):
            decompose(x)


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("batch", [(), (2,), (2, 2), (0,)])
@pytest.mark.parametrize(("n", "k"), [(4, 7), (60, 30), (30, 60), (40, 40)])
def test_factorisations_of_a_batch(n, k, batch, complex_, rng):
    x = rng.normal(size=(*batch, n, k)) + (1j * rng.normal(size=(*batch, n, k)) if complex_ else 0)
    Q, R = _blas.qr(x)
    size = min(n, k)
    assert (Q.shape, R.shape) == ((*batch, n, size), (*batch, size, k))
    np.testing.assert_allclose(Q @ R, x, atol=1e-12)
    np.testing.assert_allclose(
        Q.conj().swapaxes(-1, -2) @ Q, np.broadcast_to(np.eye(size), (*batch, size, size)), atol=1e-12
    )
    np.testing.assert_allclose(_blas.triangle(x), R, atol=1e-12)
    values, vectors = _blas.eigh(x @ x.conj().swapaxes(-1, -2))
    np.testing.assert_allclose(
        (vectors * values[..., None, :]) @ vectors.conj().swapaxes(-1, -2), x @ x.conj().swapaxes(-1, -2), atol=1e-11
    )
    if n <= k:
        singular, rows = _blas.row_space(x)
        assert rows.shape == (*batch, k, k)
        np.testing.assert_allclose(
            rows @ rows.conj().swapaxes(-1, -2), np.broadcast_to(np.eye(k), rows.shape), atol=1e-12
        )
        np.testing.assert_allclose(singular**2, values[..., ::-1], atol=1e-10)
        np.testing.assert_allclose((x @ rows.conj().swapaxes(-1, -2))[..., n:], 0, atol=1e-12)
