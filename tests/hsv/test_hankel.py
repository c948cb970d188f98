import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from tests.hsv.exact import dense_hankel_values, diagonal_hankel_values
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
def test_dense_systems_against_exact_arithmetic(dt, complex_, rng):
    sys = random_system(rng, n=6, complex_=complex_, dt=dt)
    exact = dense_hankel_values(sys.A, sys.B, sys.C, discrete=bool(dt))
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), exact, atol=tolerance(float) * exact[0])


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
def test_diagonal_systems_against_exact_arithmetic(dt, complex_, rng):
    sys = random_diagonal(rng, n=10, complex_=complex_, dt=dt)
    exact = diagonal_hankel_values(sys.poles(), sys.B, sys.C, discrete=bool(dt))
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), exact, atol=1e-14 * exact[0])


@pytest.mark.parametrize(
    ("n", "m", "phase"), [(24, 8, 2 * np.pi), (24, 1, 0.31), (24, 1, 0.0), (40, 1, 2 * np.pi), (24, 3, 0.31)]
)
def test_layers_against_exact_arithmetic(n, m, phase, rng):
    """The cases of which the published implementations get half the digits, or NaN: |pole| in [.9, .999], narrow phases."""
    poles = np.sqrt(rng.uniform(0.9**2, 0.999**2, n)) * np.exp(1j * phase * rng.uniform(size=n))
    B = rng.normal(size=(n, m)) + 1j * rng.normal(size=(n, m))
    C = rng.normal(size=(m, n)) + 1j * rng.normal(size=(m, n))
    exact = diagonal_hankel_values(poles, B, C)
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B, C, dt=True))
    np.testing.assert_allclose(values, exact, atol=1e-14 * exact[0])
    # The factors are so graded that even the smallest values are right; no promise beyond the absolute accuracy above.
    np.testing.assert_allclose(values, exact, rtol=1e-10)


def check_one_input_and_output(seed):
    """Every value to 1e-12 of itself, down to 1e-38 of the largest, with poles up to 0.99999: what SciPy's and the peers' values are far from."""
    rng = np.random.default_rng(seed)
    for n, phase, least, largest in [
        (24, 0.31, 0.9, 0.99999),
        (24, 0.0, 0.9, 0.99999),
        (24, 2 * np.pi, 0.9, 0.99999),
        (24, 0.05, 0.99, 0.99999),
        (36, 0.31, 0.9, 0.999),
    ]:
        poles = np.sqrt(rng.uniform(least**2, largest**2, n)) * np.exp(1j * phase * rng.uniform(size=n))
        B, C = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for shape in ((n, 1), (1, n)))
        if phase == 0.0:
            poles, B, C = poles.real, B.real, C.real
        exact = diagonal_hankel_values(poles, B, C)
        values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B, C, dt=True))
        large = exact > 1e-38 * exact[0]
        np.testing.assert_allclose(values[large], exact[large], rtol=1e-12)
    poles = -(10.0 ** rng.uniform(-3, 3, 20))
    B, C = rng.normal(size=(20, 1)), rng.normal(size=(1, 20))
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace(poles, B, C, dt=0))
    np.testing.assert_allclose(values, diagonal_hankel_values(poles, B, C, discrete=False), rtol=1e-12)


def test_one_input_and_output_to_full_relative_accuracy():
    check_one_input_and_output(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 41))
def test_one_input_and_output_to_full_relative_accuracy_often(seed):
    check_one_input_and_output(seed)


def test_log_poles_next_to_the_circle_against_exact_arithmetic(rng):
    logs = -np.array([1e-9, 1e-6, 2e-6, 0.1]) + 1j * np.array([0.1, 0.1, 0.1 + 1e-7, 2.0])
    B, C = rng.normal(size=(4, 1)) + 0j, rng.normal(size=(1, 4)) + 0j
    exact = diagonal_hankel_values(logs, B, C, log_poles=True)
    values = hsv.hankel_singular_values(hsv.DiagonalStateSpace.from_log_poles(logs, B, C))
    np.testing.assert_allclose(values, exact, rtol=1e-11)


@given(st.integers(0, 10**6))
def test_values_do_not_change_with_the_coordinates(seed):
    rng = np.random.default_rng(seed)
    sys = random_system(rng, n=4)
    T = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
    if np.linalg.cond(T) > 1e3:
        return
    moved = hsv.StateSpace(np.linalg.solve(T, sys.A @ T), np.linalg.solve(T, sys.B), sys.C @ T, dt=True)
    values = hsv.hankel_singular_values(sys)
    # the change of basis itself loses cond(T)^2 of the digits
    np.testing.assert_allclose(hsv.hankel_singular_values(moved), values, atol=1e-8 * values[0])


def test_values_are_the_singular_values_of_the_hankel_matrix(rng):
    sys = random_diagonal(rng, n=4, m=2, p=3)
    h = sys.impulse_response(1001)[1:]
    hankel = np.block([[h[i + j] for j in range(500)] for i in range(500)])
    values = hsv.hankel_singular_values(sys)
    np.testing.assert_allclose(np.linalg.svd(hankel, compute_uv=False)[:4], values, rtol=1e-9)


def test_real_part_halves_the_work_of_no_value(rng):
    """A system that is real already, written with complex poles: its real part has the same values and n zeros."""
    poles = 0.9 * np.exp(1j * np.array([0.3, 1.1]))
    B, C = (
        rng.normal(size=(2, 1)) + 1j * rng.normal(size=(2, 1)),
        rng.normal(size=(1, 2)) + 1j * rng.normal(size=(1, 2)),
    )
    pairs = hsv.DiagonalStateSpace(
        np.r_[poles, poles.conj()], np.r_[B, B.conj()], np.concatenate([C, C.conj()], axis=1), dt=True
    )
    expected = hsv.hankel_singular_values(pairs)
    half = hsv.real_part(hsv.DiagonalStateSpace(poles, B, 2 * C, dt=True))
    np.testing.assert_allclose(hsv.hankel_singular_values(half), expected, rtol=1e-12)
    np.testing.assert_allclose(hsv.hankel_singular_values(half.to_dense()), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", [np, torch])
@pytest.mark.parametrize("diagonal", [True, False])
def test_values_are_real_in_the_precision_of_the_input(library, dtype, diagonal):
    kind = getattr(library, dtype)
    B, C = library.ones((2, 1), dtype=kind), library.ones((1, 2), dtype=kind)
    if diagonal:
        sys = hsv.DiagonalStateSpace(library.asarray([0.5, -0.25], dtype=kind), B, C, dt=True)
    else:
        sys = hsv.StateSpace(library.asarray([[0.5, 0.0], [0.0, -0.25]], dtype=kind), B, C, dt=True)
    values = hsv.hankel_singular_values(sys)
    assert type(values) is type(B)
    assert str(values.dtype).endswith(dtype.replace("complex64", "float32").replace("complex128", "float64"))
    # P = Q = [[4/3, 8/9], [8/9, 16/15]], so the values are the eigenvalues of P
    np.testing.assert_allclose(
        np.asarray(values), [1.2 + np.hypot(2 / 15, 8 / 9), 1.2 - np.hypot(2 / 15, 8 / 9)], rtol=tolerance(dtype)
    )


def test_uncontrollable_and_unobservable_states_have_the_value_zero():
    sys = hsv.DiagonalStateSpace([0.5, 0.6, 0.7], [[1.0], [0.0], [1.0]], [[1.0, 1.0, 0.0]], dt=True)
    values = hsv.hankel_singular_values(sys)
    np.testing.assert_allclose(values, [4 / 3, 0, 0], atol=1e-16)


def test_a_single_state_by_hand():
    sys = hsv.DiagonalStateSpace([0.5], [[3.0]], [[2.0]], dt=True)
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), [8.0])  # 3 * 2 / (1 - 0.25)
    sys = hsv.StateSpace([[-0.5]], [[3.0]], [[2.0]], dt=0)
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), [6.0])  # 3 * 2 / (2 * 0.5)


def lru(rng, n, m, dtype, max_phase=2 * np.pi):
    """The published initialisation of an LRU layer."""
    log_radius = 0.5 * np.log(rng.uniform(0.9**2, 0.999**2, n))
    gamma = np.sqrt(-np.expm1(2 * log_radius))[:, None]
    B = gamma * (rng.normal(size=(n, m)) + 1j * rng.normal(size=(n, m))) / np.sqrt(2 * m)
    C = (rng.normal(size=(m, n)) + 1j * rng.normal(size=(m, n))) / np.sqrt(n)
    logs = log_radius + 1j * rng.uniform(0, max_phase, n)
    return hsv.DiagonalStateSpace.from_log_poles(*(x.astype(dtype) for x in (logs, B, C)))


def check_lru_initialisation(seed):
    """Real, not negative, not NaN, stable, and within the bound: for one random initialisation in both precisions."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 257)), int(rng.choice([1, 2, 8, 32]))
    phase = float(rng.choice([2 * np.pi, np.pi / 10, 0.0]))
    keep = float(rng.choice([0.5, 0.9, 0.99]))
    for dtype in ("complex64", "complex128"):
        complex_sys = lru(np.random.default_rng(seed), n, m, dtype, phase)
        for sys in (complex_sys, hsv.real_part(complex_sys)):
            values = hsv.hankel_singular_values(sys)
            assert np.isrealobj(values)
            assert np.all(values >= 0)
            assert np.all(np.diff(values) <= 0)
            red = hsv.balanced_truncation(sys, hsv.HankelSum(keep=keep))
            poles = red.system.poles()
            assert np.abs(poles).max() < 1
            angles = np.angle(np.concatenate([sys.poles(), poles]))
            w = np.unique(np.concatenate([np.linspace(-np.pi, np.pi, 65), angles]))
            error = sys.frequency_response(w).astype(complex) - red.system.frequency_response(w)
            worst = np.linalg.norm(error, 2, axis=(-2, -1)).max()
            # rounding to the precision of the input moves a pole by eps / (1 - |pole|), relatively
            rounding = 100 * np.finfo(dtype).eps / (1 - 0.999) * values[0]
            assert worst <= float(red.error_bound) + rounding


@pytest.mark.parametrize("seed", range(50))
def test_lru_initialisations(seed):
    check_lru_initialisation(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50, 1050))
def test_a_thousand_lru_initialisations(seed):
    check_lru_initialisation(seed)
