import tracemalloc

import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from hsv import _cauchy, _kernels
from hsv._cauchy import cauchy_adjoint, cauchy_factors, denominators, differences
from hsv._kernels import _reference
from tests.hsv.exact import diagonal_hankel_values
from tests.hsv.test_systems import random_diagonal


def layer(rng, n, m, phase, *, batch=()):
    """A layer's system from log-poles: moduli in [.9, .999], angles up to `phase`."""
    logs = 0.5 * np.log(rng.uniform(0.9**2, 0.999**2, (*batch, n))) + 1j * phase * rng.uniform(size=(*batch, n))
    B, C = (rng.normal(size=(*batch, *shape, 2)) @ [1, 1j] for shape in ((n, m), (m, n)))
    return hsv.DiagonalStateSpace.from_log_poles(logs, B, C)


def values_of(factors):
    Lc, Lo = factors
    return np.linalg.svd(Lo.conj().swapaxes(-1, -2) @ Lc, compute_uv=False)


def elimination_values(sys):
    return values_of((hsv.controllability_factor(sys), hsv.observability_factor(sys)))


@pytest.fixture
def outcomes(monkeypatch):
    """For each Gramian that Cholesky's method was tried on: whether it was found well conditioned."""
    found = []

    def recorded(P):
        L = original(P)
        found.append(L is not None)
        return L

    original = _cauchy._cholesky_factor
    monkeypatch.setattr(_cauchy, "_cholesky_factor", recorded)
    return found


@pytest.mark.parametrize(("n", "m", "phase"), [(64, 8, 2 * np.pi), (48, 8, 0.8), (48, 48, 0.0)])
def test_many_inputs_against_exact_arithmetic(n, m, phase, rng, outcomes):
    sys = layer(rng, n, m, phase)
    exact = diagonal_hankel_values(sys.log_poles, sys.B, sys.C, log_poles=True)
    values = values_of(cauchy_factors(sys))
    assert outcomes == [True, True]
    np.testing.assert_allclose(values, exact, atol=1e-14 * exact[0])
    np.testing.assert_allclose(values, exact, rtol=1e-12)


@pytest.mark.parametrize("kind", ["logarithms", "discrete", "continuous", "real"])
def test_what_is_too_badly_conditioned_goes_to_the_elimination(kind, rng, outcomes):
    """Ever narrower phases: every value agrees with the elimination's, on both sides of the limit."""
    for phase in (6.0, 1.0, 0.3, 0.1, 0.01):
        sys = layer(rng, 64, 4, phase)
        if kind == "discrete":
            sys = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C, dt=True)
        elif kind == "continuous":
            sys = hsv.DiagonalStateSpace(sys.log_poles, sys.B, sys.C, dt=0)
        elif kind == "real":
            sys = hsv.DiagonalStateSpace(phase / 6.2 - abs(sys.poles()), sys.B.real, sys.C.real, dt=True)
        expected = elimination_values(sys)
        values = values_of(cauchy_factors(sys))
        np.testing.assert_allclose(values, expected, atol=2e-14 * expected[0])
        # Factors whose error is eps times a condition of at most 1e4, or the elimination's own
        np.testing.assert_allclose(values, expected, rtol=1e-10)
    assert False in outcomes
    assert kind == "real" or True in outcomes


def test_a_batch_of_easy_and_hard_systems(rng, outcomes):
    systems = [layer(rng, 50, 3, phase) for phase in (2 * np.pi, 1e-2, 2 * np.pi)]
    batch = hsv.DiagonalStateSpace.from_log_poles(
        *(np.array([getattr(s, name) for s in systems]) for name in ("log_poles", "B", "C"))
    )
    first, second = cauchy_factors(batch)
    assert outcomes == [True, True, False, True, True]  # where the first Gramian is hard, the second is not tried
    for i, sys in enumerate(systems):
        for L, expected in zip((first[i], second[i]), cauchy_factors(sys), strict=True):
            np.testing.assert_array_equal(L, expected)
        for L, X in ((first[i], hsv.controllability_gramian(sys)), (second[i], hsv.observability_gramian(sys))):
            np.testing.assert_allclose(L @ L.conj().T, X, atol=1e-13 * np.abs(X).max())


def test_repeated_poles_and_rows_of_zeros_among_many_inputs(rng, outcomes):
    sys = layer(rng, 60, 8, 2 * np.pi)
    logs, B = sys.log_poles.copy(), sys.B.copy()
    logs[40:] = logs[:20]
    B[:3] = 0
    B[50] = B[10]
    sys = hsv.DiagonalStateSpace.from_log_poles(logs, B, sys.C)
    values, expected = values_of(cauchy_factors(sys)), elimination_values(sys)
    assert outcomes[0] is False
    np.testing.assert_allclose(values, expected, atol=1e-14 * expected[0])
    assert np.sum(values < 1e-14 * values[0]) >= 4


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("complex_", [True, False])
def test_every_library_gives_the_numbers_of_numpy(library, complex_, rng, outcomes):
    for phase in (6.0, 0.01):
        sys = layer(rng, 50, 5, phase)
        if not complex_:
            sys = hsv.DiagonalStateSpace.from_log_poles(20 * sys.log_poles.real, sys.B.real, sys.C.real)
        other = hsv.DiagonalStateSpace.from_log_poles(*(library.asarray(x) for x in (sys.log_poles, sys.B, sys.C)))
        factors = cauchy_factors(other)
        assert all(type(L) is type(other.B) for L in factors)
        values, expected = (values_of([np.asarray(L) for L in pair]) for pair in (factors, cauchy_factors(sys)))
        np.testing.assert_allclose(values, expected, atol=1e-14 * expected[0])
    assert outcomes == ([True] * 4 + [False] * 2 if complex_ else [False] * 4)


@pytest.mark.parametrize("spread", [1.0, 1e-9])
def test_the_compiled_pairs_are_the_reference(spread, rng):
    logs = -spread * rng.uniform(0.1, 3, (3, 9)) + 1j * spread * rng.uniform(-7, 7, (3, 9))
    logs[1, :2] = -800.0 + 2j, -0.5 + 2j  # a pole that underflows
    gaps, pairs = _kernels.log_pole_pairs(logs)
    expected_gaps, expected_pairs = _reference.log_pole_pairs(logs)
    np.testing.assert_allclose(gaps, expected_gaps, rtol=2e-14)
    np.testing.assert_allclose(pairs, expected_pairs, rtol=2e-15)

    first, second = rng.normal(size=(2, 3, 9, 9, 2)) @ [1, 1j]
    both = [x.copy() for x in (first, second)]
    _kernels.divide_by_log_pole_pairs(logs, first, second)
    _reference.divide_by_log_pole_pairs(logs, *both)
    np.testing.assert_allclose(first, both[0], rtol=2e-14)
    np.testing.assert_allclose(second, both[1], rtol=2e-14)


@pytest.mark.parametrize(("batch", "n", "m"), [(1, 1, 1), (3, 5, 1), (2, 6, 4), (1, 40, 3), (0, 4, 2)])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("dt", [0, True])
def test_the_compiled_elimination_is_the_reference(batch, n, m, complex_, dt, rng):
    sys = random_diagonal(rng, n=n, m=m, batch=(batch,), complex_=complex_, dt=dt)
    arguments = sys.B, differences(sys), denominators(sys)
    expected = _reference.cauchy_factor(*arguments)
    compiled = _kernels.cauchy_factor(*(np.ascontiguousarray(x) for x in arguments))
    np.testing.assert_allclose(compiled, expected, atol=1e-12 * np.abs(expected).max(initial=1))
    assert compiled.dtype == sys.B.dtype


def test_the_elimination_stops_at_the_rank(rng):
    """Repeated poles: the pivots that are left are zero, exactly for one input, and so are the columns."""
    sys = hsv.DiagonalStateSpace([0.5, 0.5, 0.25], np.ones((3, 1)), np.ones((1, 3)), dt=True)
    for elimination in (_kernels.cauchy_factor, _reference.cauchy_factor):
        L = elimination(sys.B[None], differences(sys)[None], denominators(sys)[None])[0]
        np.testing.assert_array_equal(L[:, 2], 0)
        np.testing.assert_allclose(L @ L.T, hsv.controllability_gramian(sys), rtol=1e-15)


def test_the_compiled_adjoint_is_the_reference(rng):
    logs = -rng.uniform(1e-3, 3, (3, 9)) + 1j * rng.uniform(-7, 7, (3, 9))
    S, product = (x + x.conj().swapaxes(-1, -2) for x in rng.normal(size=(2, 3, 9, 9, 2)) @ [1, 1j])
    expected = S.copy()
    rows, expected_rows = (
        kernels.adjoint_log_pole_pairs(logs, x, product) for kernels, x in ((_kernels, S), (_reference, expected))
    )
    np.testing.assert_allclose(S, expected, rtol=2e-14)
    np.testing.assert_allclose(rows, expected_rows, atol=1e-13 * np.abs(expected_rows).max())


@pytest.mark.parametrize("kind", ["logarithms", "discrete", "continuous"])
def test_the_adjoint_on_every_library(kind, rng):
    """By the change of ``Re tr(S^H P)`` along a direction: central differences."""
    logs = layer(rng, 6, 2, 6.0, batch=(2,)).log_poles
    make = {
        "logarithms": hsv.DiagonalStateSpace.from_log_poles,
        "discrete": lambda poles, B, C: hsv.DiagonalStateSpace(poles, B, C, dt=True),
        "continuous": lambda poles, B, C: hsv.DiagonalStateSpace(poles, B, C, dt=0),
    }[kind]
    poles = np.exp(logs) if kind == "discrete" else logs
    B, C = rng.normal(size=(2, 6, 2, 2)) @ [1, 1j], np.ones((2, 2, 6), complex)
    S = rng.normal(size=(2, 6, 6, 2)) @ [1, 1j]
    S = S + S.conj().swapaxes(-1, -2)
    found = cauchy_adjoint(make(poles, B, C), S.copy())
    d_poles, d_B = (1e-3 * rng.normal(size=(*x.shape, 2)) @ [1, 1j] for x in (poles, B))
    d_poles = d_poles * np.abs(logs.real)
    change = [
        np.vdot(S, hsv.controllability_gramian(make(poles + s * d_poles, B + s * d_B, C))).real for s in (1e-3, -1e-3)
    ]
    slope = sum(np.vdot(g, d).real for g, d in zip(found, (d_poles, d_B), strict=True))
    np.testing.assert_allclose(slope, (change[0] - change[1]) / 2e-3, rtol=1e-6)
    for library in (strict, torch):
        arrays = [library.asarray(x) for x in (poles, B, C, S)]
        for x, expected in zip(cauchy_adjoint(make(*arrays[:3]), arrays[3]), found, strict=True):
            np.testing.assert_allclose(np.asarray(x), expected, rtol=1e-10)


# Where the values fall fast, blocks of rows of a triangle are copied, part of a fifth array, and two threads that eliminate side by side have one more.
@pytest.mark.parametrize(("phase", "arrays"), [(2 * np.pi, 4.25), (1e-3, 6.1)])
def test_a_few_matrices_are_enough(phase, arrays, rng):
    """All Hankel values of a large layer take four to six n x n arrays at a time, beyond small ones."""
    n = 250
    sys = layer(rng, n, 8, phase)
    hsv.hankel_singular_values(sys)  # the compiled kernels are loaded
    tracemalloc.start()
    hsv.hankel_singular_values(sys)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < arrays * 16 * n**2


@pytest.mark.parametrize("n", [16, 150])  # the pipeline of small systems, and the general path
@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("library", [np, strict])
@pytest.mark.parametrize("complex_", [True, False])
def test_equal_poles_leave_as_many_values_as_inputs_and_no_nan(complex_, library, m, n, rng):
    """The Gramian has rank m, and what elimination leaves of it falls by rounding errors of rounding errors."""
    pole = 0.8 * np.exp(0.4j) if complex_ else 0.8
    B, C = (rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_ else 0) for shape in ((n, m), (m, n)))
    sys = hsv.DiagonalStateSpace(*(library.asarray(x) for x in (np.full(n, pole), B, C)), dt=True)
    found = np.asarray(hsv.hankel_singular_values(sys))
    # all states move alike: C B of rank m, times the impulse response of one state
    expected = np.linalg.svd(C @ B, compute_uv=False) / (1 - abs(pole) ** 2)
    np.testing.assert_allclose(found[:m], expected, rtol=1e-10)
    assert (found[m:] <= 1e-12 * found[0]).all()
    assert np.isfinite(found).all()
    for factor in (hsv.controllability_factor(sys), hsv.observability_factor(sys)):
        assert np.isfinite(np.asarray(factor)).all()


@pytest.mark.parametrize("scale", [1e-170, 1e170])
@pytest.mark.parametrize("n", [8, 150])
def test_maps_whose_squares_are_no_numbers_are_refused(n, scale, rng):
    B, C = rng.normal(size=(2, n, 2)), rng.normal(size=(2, 2, n))
    B[1] *= scale
    sys = hsv.DiagonalStateSpace(np.linspace(0.3, 0.9, n) * np.ones((2, 1)), B, C, dt=True)
    for compute in (hsv.hankel_singular_values, lambda sys: hsv.balanced_truncation(sys, 3)):
        with pytest.raises(
            hsv.HsvError, match=r"the largest entry of B must be zero or have a size in \[1e-150, 1e150\], found"
        ):
            compute(sys)
