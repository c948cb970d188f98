"""The compiled pipeline for small diagonal systems: its kernels against their references, the whole against exact arithmetic and the general path."""

import inspect
import shutil
import subprocess
import sys
import warnings

import mpmath
import numba
import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

import hsv
from hsv import _small_systems
from hsv._kernels import _small_systems as fast
from hsv._kernels import _small_systems_reference as plain
from tests.hsv.exact import diagonal_hankel_values
from tests.tolerances import tolerance

# systems, states, inputs, outputs: one of each, none, one lane of a vector, one more than a vector, and both layouts of matrices
SHAPES = [
    (1, 1, 1, 1),
    (0, 3, 1, 1),
    (9, 2, 1, 1),
    (3, 5, 2, 3),
    (8, 16, 1, 1),
    (2, 17, 4, 1),
    (2, 33, 1, 1),
    (2, 65, 1, 2),
]


def random_numbers(rng, shape, complex_):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape) if complex_ else rng.normal(size=shape)


def random_system(rng, batch, n, m, p, *, complex_, dt, phase=2 * np.pi):
    """Poles in general position, where every path has every digit."""
    if dt:
        poles = np.sqrt(rng.uniform(0.1, 0.99, (batch, n))) * np.exp(1j * phase * rng.uniform(size=(batch, n)))
    else:
        poles = -np.exp(rng.normal(size=(batch, n))) + 3j * rng.normal(size=(batch, n))
    poles = poles if complex_ else poles.real
    B, C = random_numbers(rng, (batch, n, m), complex_), random_numbers(rng, (batch, p, n), complex_)
    return hsv.DiagonalStateSpace(poles, B, C, dt=dt)


def planes(x):
    return np.stack([x.real, x.imag], axis=-1) if np.iscomplexobj(x) else x[..., None].copy()


def kernel_arguments(sys):
    return sys.is_discrete, planes(sys.poles()), np.empty((0, 1, 1)), planes(sys.B), planes(sys.C)


def general(function, *arguments):
    """What the general path gives, with its warnings left out."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(_small_systems, "fits", lambda sys: False)
        warnings.simplefilter("ignore", hsv.OrderWarning)
        return function(*arguments)


@pytest.mark.parametrize(("batch", "n", "m", "p"), SHAPES)
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
def test_values_and_bases(dt, complex_, batch, n, m, p, rng):
    sys = random_system(rng, batch, n, m, p, complex_=complex_, dt=dt)
    arguments = kernel_arguments(sys)
    before = [x.copy() for x in arguments[1:]]
    shape = (batch, n, n, 2 if complex_ else 1)
    results = []
    for module in (fast, plain):
        values, alone = np.full((2, batch, n), np.nan)
        left, right = np.full((2, *shape), np.nan)
        assert module.hankel_values(0, batch, *arguments, False, alone, *np.empty((2, 0, 0, 0, 0)))
        assert module.hankel_values(0, batch, *arguments, True, values, left, right)
        np.testing.assert_allclose(values, alone, rtol=0, atol=tolerance(float) * values.max(initial=0.0))
        results.append((values, *map(plain.numbers, (left, right))))
    for x, old in zip(arguments[1:], before, strict=True):
        np.testing.assert_array_equal(x, old)
    (values, left, right), (plain_values, plain_left, plain_right) = results
    top = plain_values.max(axis=-1, initial=0.0)[:, None]
    np.testing.assert_allclose(values / top, plain_values / top, rtol=0, atol=tolerance(float))
    # Phases and clusters are free; Lo U S^-1/2 and Lc V S^-1/2 are biorthogonal, and their products on the large values agree.
    for k in range(batch):
        large = values[k] > 1e-3 * top[k]
        x, y = left[k][:, large] / values[k][large], right[k][:, large]
        np.testing.assert_allclose(x.conj().T @ y, np.eye(large.sum()), rtol=0, atol=tolerance(float, factor=1e4))
        u, v = plain_left[k][:, large] / plain_values[k][large], plain_right[k][:, large]
        difference = x @ y.conj().T @ v - u @ v.conj().T @ v
        # the spaces of values that are nearly equal across the cut turn into each other
        np.testing.assert_allclose(difference, 0.0, rtol=0, atol=1e-9 * np.abs(u @ v.conj().T @ v).max())


@pytest.mark.parametrize(
    ("batch", "n", "m", "p", "r"), [(1, 1, 1, 1, 1), (0, 3, 1, 1, 2), (9, 7, 2, 3, 4), (2, 5, 1, 1, 5)]
)
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_project(discrete, complex_, batch, n, m, p, r, rng):
    shapes = (batch, n), (batch, n, m), (batch, p, n), (batch, n, n), (batch, n, n)
    poles, B, C, left, right = (random_numbers(rng, shape, complex_) for shape in shapes)
    right = right + left  # not far from biorthogonal
    values = -np.sort(-rng.uniform(0.1, 1.0, (batch, n)), axis=-1)
    orders = rng.integers(0, r + 1, batch)
    results = []
    for module in (fast, plain):
        reduced = [
            np.full(s, np.nan, B.dtype)
            for s in ((batch, n, r), (batch, n, r), (batch, r, r), (batch, r, m), (batch, p, r))
        ]
        module.project(0, batch, discrete, poles, B, C, values, orders, left, right, *reduced)
        results.append(reduced)
    for x, y in zip(*results, strict=True):
        # random matrices are not always well-conditioned
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance(float, factor=1e5) * np.abs(y).max(initial=1.0))
    assert all(np.all(x[:, :, k][orders <= k] == 0) for x in results[0][:2] for k in range(r))


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_stable(n, discrete, complex_, rng):
    A = random_numbers(rng, (12, n, n), complex_)
    for k in range(12):  # the largest real part, or modulus, on either side of the boundary, and near to it
        poles = np.linalg.eigvals(A[k])
        distance = [0.5, -0.5, 1e-3, -1e-3, 1e-9, -1e-9][k % 6]
        A[k] = (
            A[k] * (1 - distance) / abs(poles).max() if discrete else A[k] - (poles.real.max() + distance) * np.eye(n)
        )
    verdicts, expected = np.zeros((2, 12), bool)
    fast.stable(0, 12, discrete, A, verdicts)
    plain.stable(0, 12, discrete, A, expected)
    np.testing.assert_array_equal(verdicts, expected)
    np.testing.assert_array_equal(verdicts, [True, False] * 6)
    zero, verdict = np.zeros((1, n, n), A.dtype), np.zeros(1, bool)
    fast.stable(0, 1, discrete, zero, verdict)  # an integrator in continuous time
    assert verdict[0] == discrete


@pytest.mark.parametrize(("batch", "n"), [(0, 2), (1, 1), (9, 2), (3, 7), (17, 16)])
@pytest.mark.parametrize("complex_", [True, False])
def test_condition_numbers(complex_, batch, n, rng):
    poles, vectors = np.linalg.eig(random_numbers(rng, (batch, n, n), complex_))
    poles, vectors = poles.astype(complex), vectors.astype(complex)
    found, expected = np.full((2, batch), np.nan)
    assert fast.condition_numbers(0, batch, not complex_, poles, vectors, found)
    assert plain.condition_numbers(0, batch, not complex_, poles, vectors, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    if batch:  # one entry of many
        alone = np.full(batch, np.nan)
        assert fast.condition_numbers(batch // 2, batch // 2 + 1, not complex_, poles, vectors, alone)
        np.testing.assert_array_equal(alone[batch // 2], found[batch // 2])
        assert np.isnan(alone).sum() == batch - 1
    vectors[:, 0] = vectors[:, -1] = 1.0  # two equal rows, of rank n - 1: rounding errors are all that is left
    if n > 1 and complex_:
        assert fast.condition_numbers(0, batch, False, poles, vectors, found)
        assert np.all(found > 1e14)


@pytest.mark.parametrize("n_planes", [1, 2])
def test_exponentials_in_twice_the_working_precision(n_planes, rng):
    logs = np.stack([-np.exp(rng.uniform(-30, 3, 37)), rng.uniform(-10, 10, 37)], axis=-1)
    logs[:10, 1] = [0, 1, 2, 3, 4, 5, 6, -1, 1e6, -1e6]
    logs[10:14, 0] = [0.0, -650.0, -800.0, 0.5]
    logs = logs[:, :n_planes].copy()
    values, rests, plain_values, plain_rests = np.empty((4, *logs.shape))
    fast.exponentials(0, 37, logs, values, rests)
    plain.exponentials(0, 37, logs, plain_values, plain_rests)
    np.testing.assert_allclose(values, plain_values, rtol=0, atol=tolerance(float, factor=2))
    with mpmath.workdps(60):
        for log, value, rest in zip(logs, values, rests, strict=True):
            if log[0] < -700.0:  # nothing is left of it beside 1
                np.testing.assert_array_equal(value, 0.0)
                continue
            exact = mpmath.exp(mpmath.mpc(*log))
            found = mpmath.mpc(*value) + mpmath.mpc(*rest)
            assert abs(found - exact) <= 1e-29 * abs(exact)


def test_signatures_are_those_of_the_references():
    for name, function in vars(plain).items():
        if (
            inspect.isfunction(function)
            and function.__module__ == plain.__name__
            and name not in ("numbers", "_factors")
        ):
            assert inspect.signature(getattr(fast, name).py_func) == inspect.signature(function), name


@pytest.mark.parametrize(("n", "m"), [(7, 1), (16, 2), (40, 1)])
@pytest.mark.parametrize("complex_", [True, False])
def test_results_depend_on_the_system_alone_bit_for_bit(complex_, n, m, rng, monkeypatch):
    sys = random_system(rng, 150, n, m, m, complex_=complex_, dt=True, phase=0.5)
    poles = sys.poles().copy()
    poles[5] = poles[5, 0]  # the neighbours have less to do
    sys = hsv.DiagonalStateSpace(poles, sys.B, sys.C, dt=True)
    rule = hsv.Order(min(n, 4)) if m > 1 else hsv.Threshold(1e-2)

    def results(which):
        part = hsv.DiagonalStateSpace(poles[which], sys.B[which], sys.C[which], dt=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hsv.OrderWarning)
            red = hsv.balanced_truncation(part, rule)
        return hsv.hankel_singular_values(part), red.hankel_singular_values, red.system.A, red.left, red.right

    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
        whole = results(slice(None))
    assert all(np.isfinite(x).all() for x in whole)  # NaN equals NaN below
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "NUMBA_NUM_THREADS", 5)
        for x, y in zip(whole, results(slice(None)), strict=True):
            np.testing.assert_array_equal(x, y)
    for which in ([5], [7, 5], np.arange(3, 12), np.arange(149, 0, -17)):
        for x, y in zip(whole, results(which), strict=True):
            core = tuple(slice(k) for k in y.shape[1:])  # the largest order may be smaller
            np.testing.assert_array_equal(x[which][(slice(None), *core)], y)
    monkeypatch.setattr(_small_systems, "_BLOCK", 1000)
    monkeypatch.setattr(_small_systems, "_BASES", 11 * n * n)
    for x, y in zip(whole, results(slice(None)), strict=True):
        np.testing.assert_array_equal(x, y)


class SameForAll(hsv.Threshold):
    """A rule that looks at all systems of a batch: every system gets the largest order."""

    def choose(self, sigma):
        return np.broadcast_to(super().choose(sigma).max(initial=0), sigma.shape[:-1])


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("rule", [hsv.Threshold(1e-2), SameForAll(1e-2)])
def test_orders_that_grow_from_block_to_block(rule, dt, rng, monkeypatch):
    """Results get more columns on the way; a rule that looks at all systems at once gets what it asks for."""
    sys = random_system(rng, 23, 9, 2, 1, complex_=False, dt=dt)
    orders = hsv.Threshold(1e-2).choose(hsv.hankel_singular_values(sys))
    assert len(set(orders)) > 2
    order = np.argsort(orders, kind="stable")
    sys = hsv.DiagonalStateSpace(sys.poles()[order], sys.B[order], sys.C[order], dt=dt)
    whole = hsv.balanced_truncation(sys, rule)
    monkeypatch.setattr(_small_systems, "_BASES", 5 * 81)
    parts = hsv.balanced_truncation(sys, rule)
    np.testing.assert_array_equal(parts.orders, rule.choose(whole.hankel_singular_values))
    for name in ("orders", "hankel_singular_values", "error_bound", "left", "right"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    for name in "ABC":
        np.testing.assert_array_equal(getattr(parts.system, name), getattr(whole.system, name))


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (6, 1, 1), (16, 2, 3), (40, 1, 1), (64, 1, 8)])
@pytest.mark.parametrize("complex_", [True, False])
def test_truncation_is_that_of_the_general_path(complex_, n, m, p, dt, rng):
    sys = random_system(rng, 5, n, m, p, complex_=complex_, dt=dt)
    for rule in (hsv.HankelSum(keep=0.9), hsv.Order(1), hsv.Threshold(1e-6)):
        red, expected = hsv.balanced_truncation(sys, rule), general(hsv.balanced_truncation, sys, rule)
        np.testing.assert_array_equal(red.orders, expected.orders)
        assert red.notes == expected.notes
        top = expected.hankel_singular_values[:, :1]
        np.testing.assert_allclose(
            red.hankel_singular_values / top, expected.hankel_singular_values / top, rtol=0, atol=tolerance(float)
        )
        np.testing.assert_allclose(
            red.error_bound / top[:, 0], expected.error_bound / top[:, 0], rtol=0, atol=tolerance(float, factor=1e4)
        )
        w = np.linspace(-3, 3, 9)
        response, other = red.system.frequency_response(w), expected.system.frequency_response(w)
        # a kept value of 1e-6 of the largest one is known to 1e-10 of itself on the general path
        np.testing.assert_allclose(response, other, rtol=0, atol=1e-9 * np.abs(other).max())
        kept = np.arange(red.system.n_states) < red.orders[:, None]
        gram = red.left.conj().swapaxes(-1, -2) @ red.right
        np.testing.assert_allclose(gram, np.eye(red.system.n_states) * kept[:, None], rtol=0, atol=tolerance(float))
        for k in range(5):
            one = red.select(k)
            left = one.left.conj().T
            np.testing.assert_allclose(
                one.system.A, left @ (sys.poles()[k][:, None] * one.right), atol=1e-12 * top.max()
            )
            np.testing.assert_allclose(one.system.B, left @ sys.B[k], atol=1e-12 * top.max())
            np.testing.assert_allclose(one.system.C, sys.C[k] @ one.right, atol=1e-12 * top.max())
            padding = red.system.A[k] - block_diag(
                one.system.A, np.zeros((red.system.n_states - int(red.orders[k]),) * 2)
            )
            np.testing.assert_array_equal(padding, np.diag(-1.0 * ~kept[k]) if dt == 0 else 0.0)


def test_equal_poles_zero_rows_and_poles_at_zero():
    """States that cannot be told apart, or that nothing enters or leaves, have the value zero, exactly."""
    poles = np.array([0.5, 0.5, 0.0, -0.25, -0.25, 0.75, 0.0, 0.1])
    B = np.array([1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 1.0, 0.0])[:, None]
    C = np.array([[2.0, 1.0, 1.0, 5.0, 0.0, 1.0, 1.0, 1.0]])
    for kind in (float, complex):
        values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles.astype(kind), B, C, dt=True))
        merged = diagonal_hankel_values(
            np.array([0.5, 0.0, 0.75]), np.array([[1.0], [1.0], [2.0]]), np.array([[4.0, 4.0, 1.0]])
        )
        np.testing.assert_allclose(values[:3], merged, rtol=tolerance(float, factor=100))
        np.testing.assert_array_equal(values[3:], 0.0)
        nothing = hsv.DiagonalStateSpace(poles.astype(kind), 0 * B, C, dt=True)
        np.testing.assert_array_equal(hsv.hankel_singular_values(nothing), 0.0)
        with pytest.warns(hsv.OrderWarning, match="all Hankel singular values are zero"):
            red = hsv.balanced_truncation(nothing, hsv.Threshold(0.1))
        assert int(red.orders) == 0
        with pytest.warns(hsv.OrderWarning, match="capped at 3"):
            red = hsv.balanced_truncation(hsv.DiagonalStateSpace(poles.astype(kind), B, C, dt=True), 5)
        expected = hsv.DiagonalStateSpace(poles, B, C, dt=True).impulse_response(6)
        np.testing.assert_allclose(red.system.impulse_response(6), expected, rtol=0, atol=tolerance(float))


@pytest.mark.parametrize("n", [6, 40])
def test_the_projections_are_those_of_the_factors_where_one_map_is_zero(n, rng):
    """A state that no output sees still has its row in `right`: ``right = P right_gram`` for the Gramian of all states."""
    sys = random_system(rng, 3, n, 1, 1, complex_=True, dt=True, phase=0.3)
    C = sys.C.copy()
    C[:, :, 0] = 0.0
    red = hsv.balanced_truncation(hsv.DiagonalStateSpace(sys.poles(), sys.B, C, dt=True), 2)
    P = hsv.controllability_gramian(sys)
    expected = P @ red.left / red.hankel_singular_values[:, None, :2]  # P Lo U S^-1/2 = Lc V S^1/2
    np.testing.assert_allclose(expected, red.right, rtol=0, atol=1e-10 * np.abs(red.right).max())
    assert np.all(np.abs(red.right[:, 0]) > 0)


@pytest.mark.parametrize("n", [10, 70])
def test_sizes_of_the_maps_change_nothing(n, rng):
    sys = random_system(rng, 3, n, 1, 1, complex_=False, dt=0)
    values = hsv.hankel_singular_values(sys)
    for left, right in ((2.0**-300, 2.0**300), (2.0**400, 1.0), (1.0, 2.0**-100)):
        scaled = hsv.DiagonalStateSpace(sys.poles(), sys.B * left, sys.C * right, dt=0)
        np.testing.assert_allclose(hsv.hankel_singular_values(scaled), values * (left * right), rtol=tolerance(float))
    states = 2.0 ** rng.integers(-200, 200, n)  # other coordinates of the states
    moved = hsv.DiagonalStateSpace(sys.poles(), sys.B * states[:, None], sys.C / states, dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(moved), values, rtol=tolerance(float))


@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("n", [12, 34, 64])
def test_every_value_to_full_relative_accuracy(n, complex_, rng):
    """Cauchy matrices of condition numbers up to 1e100 and more: what double precision as such is far from."""
    phase = 0.2 if complex_ else 0.0
    sys = random_system(rng, 3, n, 1, 1, complex_=complex_, dt=True, phase=phase)
    sys = hsv.DiagonalStateSpace(sys.poles() if complex_ else np.abs(sys.poles()), sys.B, sys.C, dt=True)
    values = hsv.hankel_singular_values(sys)
    for k in range(3 if n < 40 else 1):
        exact = diagonal_hankel_values(sys.poles()[k], sys.B[k], sys.C[k])
        large = exact > 1e-38 * exact[0]
        np.testing.assert_allclose(values[k][large], exact[large], rtol=1e-12)


def test_log_poles_keep_their_digits_in_a_batch(rng):
    logs = (
        -(10.0 ** rng.uniform(-12, 0, (5, 9)))
        + 1j * rng.uniform(-4, 4, (5, 1))
        + 1j * 10.0 ** rng.uniform(-9, -1, (5, 9))
    )
    B, C = random_numbers(rng, (5, 9, 1), True), random_numbers(rng, (5, 1, 9), True)
    for kind in (complex, float):
        systems = (x.real if kind is float else x for x in (logs, B, C))
        logs_, B_, C_ = systems
        values = hsv.hankel_singular_values(hsv.DiagonalStateSpace.from_log_poles(logs_, B_, C_))
        for k in range(5):
            exact = diagonal_hankel_values(logs_[k], B_[k], C_[k], log_poles=True)
            np.testing.assert_allclose(values[k], exact, rtol=1e-11)


@pytest.mark.parametrize("single", [np.float32, np.complex64])
def test_single_precision_is_computed_in_double_and_rounded_once(single, rng):
    sys = random_system(rng, 11, 9, 1, 1, complex_=single is np.complex64, dt=True)
    arrays = [x.astype(single) for x in (sys.poles(), sys.B, sys.C)]
    small = hsv.DiagonalStateSpace(*arrays, dt=True)
    wide = hsv.DiagonalStateSpace(*(x.astype(sys.B.dtype) for x in arrays), dt=True)
    values, red, expected = (
        hsv.hankel_singular_values(small),
        hsv.balanced_truncation(small, 3),
        hsv.balanced_truncation(wide, 3),
    )
    np.testing.assert_array_equal(values, hsv.hankel_singular_values(wide).astype(np.float32))
    assert red.system.A.dtype == red.left.dtype == single
    for name in ("A", "B", "C"):
        np.testing.assert_array_equal(getattr(red.system, name), getattr(expected.system, name).astype(single))
    np.testing.assert_array_equal(red.left, expected.left.astype(single))
    assert np.all(red.error_bound >= expected.error_bound)


def test_torch_tensors_and_batches_of_several_axes(rng):
    sys = random_system(rng, 6, 5, 2, 1, complex_=True, dt=True)
    arrays = [torch.asarray(x.reshape(2, 3, *x.shape[1:])) for x in (sys.poles(), sys.B, sys.C)]
    tensors = hsv.DiagonalStateSpace(*arrays, dt=True)
    values, red = hsv.hankel_singular_values(tensors), hsv.balanced_truncation(tensors, hsv.HankelSum(keep=0.8))
    expected = hsv.balanced_truncation(sys, hsv.HankelSum(keep=0.8))
    assert isinstance(values, torch.Tensor)
    assert isinstance(red.left, torch.Tensor)
    assert red.orders.shape == (2, 3)
    np.testing.assert_array_equal(values.reshape(6, 5), hsv.hankel_singular_values(sys))
    np.testing.assert_array_equal(red.system.A.reshape(expected.system.A.shape), expected.system.A)
    empty = hsv.DiagonalStateSpace(torch.zeros(0, 4), torch.ones(0, 4, 1), torch.ones(0, 1, 4), dt=True)
    assert hsv.hankel_singular_values(empty).shape == (0, 4)
    assert hsv.balanced_truncation(empty, 2).system.A.shape == (0, 1, 1)


def test_poles_of_one_system_for_all_and_arrays_that_cannot_be_written(rng):
    poles = np.array([0.5, 0.7, -0.2])
    B = rng.normal(size=(4, 3, 1))
    for x in (poles, B):
        x.flags.writeable = False
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B, np.ones((1, 3)), dt=True))
    for k in range(4):
        single = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B[k], np.ones((1, 3)), dt=True))
        np.testing.assert_array_equal(values[k], single)


def test_which_systems_fit(rng):
    def fits(n=4, m=1, dt=True, scale=1.0, complex_=False, logs=None):
        poles = np.full(n, -0.5 * scale, complex if complex_ else float)
        if logs is not None:
            return _small_systems.fits(hsv.DiagonalStateSpace.from_log_poles([logs], [[1.0]], [[1.0]]))
        return _small_systems.fits(hsv.DiagonalStateSpace(poles, np.ones((n, m)), np.ones((1, n)), dt=dt))

    assert fits()
    assert fits(n=128)
    assert not fits(n=129)
    assert fits(n=64, complex_=True)
    assert not fits(n=65, complex_=True)
    assert not fits(m=20)
    assert fits(dt=0)
    assert not fits(dt=0, scale=1e120)
    assert not fits(dt=0, scale=1e-120)
    assert fits(logs=-0.1 + 100.0j)
    assert not fits(logs=-0.1 + 1e7j)
    assert not _small_systems.fits(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True))


def test_an_unstable_system_is_named():
    poles = np.full((20, 3), 0.5)
    poles[13, 1] = 1.5
    sys = hsv.DiagonalStateSpace(poles, np.ones((3, 1)), np.ones((1, 3)), dt=True)
    for function in (hsv.hankel_singular_values, lambda s: hsv.balanced_truncation(s, 1)):
        with pytest.raises(hsv.UnstableSystemError, match=r"system \(13,\), state 1"):
            function(sys)


def test_an_iteration_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(fast, "hankel_values", lambda *arguments: False)
    with pytest.raises(hsv.HsvError, match="did not converge"):
        hsv.hankel_singular_values(hsv.DiagonalStateSpace([0.5], [[1.0]], [[1.0]], dt=True))


def test_the_warning_points_at_the_caller():
    sys = hsv.DiagonalStateSpace([0.5, 0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    with pytest.warns(hsv.OrderWarning) as caught:
        hsv.balanced_truncation(sys, 2)
    assert caught[0].filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hsv.hankel_singular_values(sys)", "hsv.balanced_truncation(sys, 4)"])
def test_a_hundred_thousand_systems_need_less_than_two_gigabytes(task):
    script = f"""
import resource, numpy, hsv
rng = numpy.random.default_rng(0)
poles, B, C = rng.uniform(0.1, 0.99, (100_000, 64)), rng.normal(size=(100_000, 64, 1)), rng.normal(size=(100_000, 1, 64))
sys = hsv.DiagonalStateSpace(poles, B, C, dt=True)
result = {task}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2 * 2**20  # kilobytes


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="counts in glibc's malloc"
)
def test_values_of_a_system_need_four_squares_of_numbers():
    command = [sys.executable, "-m", "asv_benchmarks.peak_memory"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    most = {(int(n), dtype): float(peak) for n, dtype, task, peak, _ in rows if task == "values"}
    for case in ((64, "float64"), (128, "float64"), (64, "complex128")):
        assert most[case] <= 4.0


@pytest.mark.parametrize("compute", [hsv.hankel_singular_values, lambda sys: hsv.balanced_truncation(sys, 3)])
@pytest.mark.parametrize("n", [8, 200])
def test_values_that_overflow_are_an_error_and_no_nan(compute, n):
    poles = np.linspace(0.5, 0.8, n) * np.ones((3, 1))
    B = np.ones((3, n, 1))
    B[1] *= 1e300
    sys = hsv.DiagonalStateSpace(poles, B, B.swapaxes(1, 2), dt=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the overflow itself
        with pytest.raises(hsv.HsvError, match=r"scale B and C down|choose other units for the inputs"):
            compute(sys)
