"""What all balancings that rest on Riccati equations have in common; each has a file of its own for the rest."""

import dataclasses
from collections.abc import Callable
from functools import partial

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import strategies as st

import hsv
from hsv import _array
from tests.hsv import reference_systems
from tests.hsv.another_device import ELSEWHERE, bring, move
from tests.hsv.test_array_libraries import convert
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

# Arguments of `random_system`, and a seed.
draws = st.fixed_dictionaries(
    {
        "n": st.integers(2, 7),
        "m": st.integers(1, 3),
        "p": st.integers(1, 3),
        "complex_": st.booleans(),
        "dt": st.sampled_from([0, True, 0.2]),
        "seed": st.integers(0, 10**6),
    }
)


def adjoint(x):
    return x.conj().swapaxes(-1, -2)


def frequencies(sys, count=301):
    """Both signs, dense in discrete time, up to a thousand times the poles in continuous time."""
    half = np.pi * (1 - 1e-3)
    angles = np.linspace(-half, half, count)
    return angles / float(sys.dt) if sys.is_discrete else np.tan(angles / 2)


def with_feedthrough(sys, D):
    if isinstance(sys, hsv.DiagonalStateSpace):
        return hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C, D, dt=sys.dt)
    return hsv.StateSpace(sys.A, sys.B, sys.C, D, dt=sys.dt)


def unstable(make, rng, *, complex_=True, dt=True, **options):
    """A system some of whose poles are unstable."""
    sys = make(rng, complex_=complex_, dt=dt, **options)
    if isinstance(sys, hsv.DiagonalStateSpace):
        return hsv.DiagonalStateSpace(sys.poles() * 1.3 if dt else sys.poles() + 0.4, sys.B, sys.C, sys.D, dt=dt)
    return hsv.StateSpace(sys.A * 1.5 if dt else sys.A + 0.5 * np.eye(sys.n_states), sys.B, sys.C, sys.D, dt=dt)


def uneven(rng, batch=(), **options):
    """Diagonal systems whose states matter less and less, at another rate in each system of a batch."""
    sys = random_diagonal(rng, batch=batch, **options)
    rate = rng.uniform(0.1, 1, (*batch, 1, 1))
    return hsv.DiagonalStateSpace(
        sys.poles(), sys.B * rate ** np.arange(sys.n_states)[:, None], sys.C, sys.D, dt=sys.dt
    )


def stable(make, rng, **options):
    return make(rng, **options)


def passive(make, rng, *, m=2, p=2, **options):
    """A square system whose feedthrough makes it passive, by a tenth of what it takes."""
    sys = make(rng, m=m, p=m, **options)
    response = sys.frequency_response(frequencies(sys))
    least = np.linalg.eigvalsh(response + adjoint(response))[..., 0].min()
    return with_feedthrough(sys, sys.D + 0.5 * 1.1 * abs(least) * np.eye(m))


def of_norm_one(make, rng, **options):
    """A system with an H-infinity norm of 0.9 (the largest of a batch)."""
    sys = make(rng, **options)
    scale = 0.9 / float(np.max(hsv.hinf_norm(sys)))
    if isinstance(sys, hsv.DiagonalStateSpace):
        return hsv.DiagonalStateSpace(sys.poles(), sys.B, scale * sys.C, scale * sys.D, dt=sys.dt)
    return hsv.StateSpace(sys.A, sys.B, scale * sys.C, scale * sys.D, dt=sys.dt)


def wide(make, rng, **options):
    """A stable system with fewer outputs than inputs, all its zeros inside the stability region: its feedthrough is large."""
    sys = make(rng, m=3, p=2, **options)
    size = float(np.max(hsv.hinf_norm(sys)))
    return with_feedthrough(sys, sys.D + 2 * size * np.eye(2, 3))


@dataclasses.dataclass(frozen=True)
class Method:
    reduce: Callable
    make: Callable
    bound: str

    def __repr__(self):
        return getattr(self.reduce, "__name__", self.bound)


METHODS = [
    Method(hsv.lqg_balanced_truncation, unstable, "factor_error_bound"),
    Method(hsv.coprime_factor_reduction, unstable, "factor_error_bound"),
    Method(hsv.bounded_real_truncation, of_norm_one, "error_bound"),
    Method(hsv.positive_real_truncation, passive, "scattering_error_bound"),
    Method(hsv.stochastic_truncation, wide, "relative_error_bound"),
    Method(partial(hsv.stochastic_truncation, alpha=0.5), stable, "relative_error_bound"),
]
BOUNDS = ["error_bound", "factor_error_bound", "scattering_error_bound", "relative_error_bound"]
each_method = pytest.mark.parametrize("method", METHODS, ids=repr)


@each_method
@pytest.mark.parametrize("dt", [0, True, 0.3])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_what_comes_back(method, make, complex_, dt, rng):
    n = 6
    sys = method.make(make, rng, n=n, complex_=complex_, dt=dt)
    red = method.reduce(sys, 3)
    assert isinstance(red, hsv.RiccatiReduction)
    assert red.system.n_states == int(red.orders) == 3
    assert (red.system.dt, red.system.is_complex) == (sys.dt, complex_)
    assert red.hankel_singular_values is None
    values = red.characteristic_values
    assert values.shape == (n,)
    assert np.all(np.diff(values) <= 0)
    assert np.all(values >= 0)
    for name in BOUNDS:
        assert (getattr(red, name) is not None) == (name == method.bound)
    full = method.reduce(sys, n)
    w = frequencies(sys, 31)
    np.testing.assert_allclose(
        full.system.frequency_response(w),
        sys.frequency_response(w),
        atol=1e-8 * np.abs(sys.frequency_response(w)).max(),
    )
    assert getattr(full, method.bound) == 0
    if red.left is not None:
        dense = sys.to_dense()
        np.testing.assert_allclose(adjoint(red.left) @ red.right, np.eye(3), atol=1e-12)
        for part, expected in [
            (red.system.A, adjoint(red.left) @ dense.A @ red.right),
            (red.system.B, adjoint(red.left) @ dense.B),
            (red.system.C, dense.C @ red.right),
        ]:
            np.testing.assert_allclose(part, expected, atol=1e-8 * max(1, np.abs(expected).max()))


@each_method
@pytest.mark.parametrize("dt", [0, True])
def test_a_batch_is_its_systems_one_by_one(method, dt, rng):
    sys = method.make(uneven, rng, n=6, batch=(2, 2), dt=dt)
    rule = hsv.HankelSum(discard=0.02)
    red = method.reduce(sys, rule)
    assert red.orders.shape == (2, 2)
    assert len(set(red.orders.ravel().tolist())) > 1
    w = frequencies(sys, 11)
    for index in np.ndindex(2, 2):
        one = hsv.StateSpace(sys.to_dense().A[index], sys.B[index], sys.C[index], sys.D[index], dt=dt)
        alone, mine = method.reduce(one, rule), red.select(index)
        assert isinstance(mine, hsv.RiccatiReduction)
        assert mine.system.n_states == alone.system.n_states == int(red.orders[index])
        response = alone.system.frequency_response(w)
        for other in (mine.system, red.system):
            found = other.frequency_response(w)[index if other is red.system else ...]
            np.testing.assert_allclose(found, response, atol=1e-8 * np.abs(response).max())
        np.testing.assert_allclose(mine.characteristic_values, alone.characteristic_values, atol=1e-9)
        np.testing.assert_allclose(getattr(mine, method.bound), getattr(alone, method.bound), rtol=1e-7)


@each_method
def test_the_error_bound_rule_is_about_the_methods_own_bound(method, rng):
    sys = method.make(random_system, rng, n=7, dt=0)
    for order in range(1, 7):
        bound = float(getattr(method.reduce(sys, order), method.bound))
        chosen = method.reduce(sys, hsv.ErrorBound(bound * (1 + 1e-6)))
        assert int(chosen.orders) == order
        assert int(method.reduce(sys, hsv.ErrorBound(bound * 0.99)).orders) == order + 1


@each_method
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("library", [array_api_strict, torch], ids=["array_api_strict", "torch"])
def test_other_array_libraries(method, library, dt, rng):
    for make in (random_system, random_diagonal):
        sys = method.make(make, rng, n=5, batch=(2,), dt=dt)
        red, expected = method.reduce(convert(sys, library), 3), method.reduce(sys, 3)
        for found, known in [
            (red.system.frequency_response([0.1, 1.0]), expected.system.frequency_response([0.1, 1.0])),
            (red.characteristic_values, expected.characteristic_values),
            (getattr(red, method.bound), getattr(expected, method.bound)),
        ]:
            host = found.numpy() if library is torch else np.from_dlpack(found)
            np.testing.assert_allclose(host, known, atol=1e-8 * np.abs(known).max())


@each_method
def test_arrays_of_another_device_come_back_there_and_the_copy_is_said(method, rng, monkeypatch):
    monkeypatch.setattr(_array, "_warned_host_copy", set())
    sys = method.make(random_system, rng, n=4, dt=0)
    moved = hsv.StateSpace(*(move(x) for x in (sys.A, sys.B, sys.C, sys.D)), dt=0)
    with pytest.warns(UserWarning, match="the Riccati equation runs on the host"):
        red = method.reduce(moved, 2)
    for part in (red.system.A, red.characteristic_values, red.left, red.right, red.orders, getattr(red, method.bound)):
        assert _array.device(part) == ELSEWHERE
    np.testing.assert_allclose(bring(red.characteristic_values), method.reduce(sys, 2).characteristic_values, rtol=1e-9)


@each_method
def test_single_precision_is_rounded_once(method, rng):
    sys = method.make(random_system, rng, n=5, dt=0)
    single = hsv.StateSpace(*(x.astype(np.complex64) for x in (sys.A, sys.B, sys.C, sys.D)), dt=0)
    red = method.reduce(single, 3)
    assert red.system.A.dtype == np.complex64
    assert red.characteristic_values.dtype == getattr(red, method.bound).dtype == np.float32
    widened = hsv.StateSpace(*(x.astype(np.complex128) for x in (single.A, single.B, single.C, single.D)), dt=0)
    np.testing.assert_allclose(
        red.characteristic_values, method.reduce(widened, 3).characteristic_values, rtol=1e-6, atol=1e-6
    )


@each_method
def test_the_real_part_of_a_diagonal_system_stays_real(method, rng):
    sys = method.make(
        lambda *arguments, **options: hsv.real_part(random_diagonal(*arguments, **options)).to_dense(), rng, n=3
    )
    assert not sys.is_complex
    red = method.reduce(sys, 4)
    assert not red.system.is_complex
    diagonal = hsv.real_part(hsv.DiagonalStateSpace([0.5 + 0.3j, 0.2j], [[0.1], [0.2]], [[0.3, 0.4]], [[0.5]], dt=True))
    red, dense = (method.reduce(s, 2) for s in (diagonal, diagonal.to_dense()))
    assert not red.system.is_complex
    np.testing.assert_allclose(red.characteristic_values, dense.characteristic_values, rtol=1e-10)
    if red.left is not None:
        reduced = adjoint(red.left) @ (diagonal.poles()[:, None] * red.right)
        np.testing.assert_allclose(reduced, red.system.A, atol=1e-12)


@each_method
def test_a_change_of_coordinates_changes_nothing(method, rng):
    sys = method.make(random_system, rng, n=5, dt=0)
    T = np.linalg.qr(rng.normal(size=(5, 5)))[0] * 10.0 ** rng.uniform(-4, 4, 5)
    inverse = np.linalg.inv(T)
    moved = hsv.StateSpace(inverse @ sys.A @ T, inverse @ sys.B, sys.C @ T, sys.D, dt=0)
    red, other = method.reduce(sys, 2), method.reduce(moved, 2)
    np.testing.assert_allclose(
        other.characteristic_values, red.characteristic_values, atol=1e-8 * red.characteristic_values[0]
    )
    w = frequencies(sys, 11)
    response = red.system.frequency_response(w)
    np.testing.assert_allclose(other.system.frequency_response(w), response, atol=1e-6 * np.abs(response).max())


@each_method
def test_states_beyond_the_numerical_rank_are_never_kept(method, rng):
    """A system beside a state that inputs hardly reach."""
    sys = method.make(random_system, rng, n=3, dt=0)
    A = np.zeros((4, 4), complex)
    A[:3, :3], A[3, 3] = sys.A, -1.0
    B, C = np.concatenate([sys.B, 1e-17 * sys.B[:1]]), np.concatenate([sys.C, sys.C[:, :1]], axis=1)
    padded = hsv.StateSpace(A, B, C, sys.D, dt=0)
    with pytest.warns(hsv.OrderWarning, match="capped at 3"):
        red = method.reduce(padded, 4)
    assert red.system.n_states == 3
    assert any("capped" in note for note in red.notes)
    with pytest.raises(hsv.OrderError, match="no order meets ErrorBound"):
        method.reduce(padded, hsv.ErrorBound(1e-30))


@each_method
def test_inputs_are_not_changed(method, rng):
    sys = method.make(random_system, rng, n=4, dt=True)
    before = [x.copy() for x in (sys.A, sys.B, sys.C, sys.D)]
    method.reduce(sys, 2)
    for x, y in zip((sys.A, sys.B, sys.C, sys.D), before, strict=True):
        np.testing.assert_array_equal(x, y)


@each_method
def test_sparse_systems_are_refused_by_name(method):
    sys = hsv.SparseStateSpace(scipy.sparse.diags([-1.0, -2.0]).tocsc(), np.ones((2, 1)), np.ones((1, 2)), dt=0)
    with pytest.raises(
        hsv.DtypeError, match=r"got a SparseStateSpace, for which this method has no path; pass sys\.to_dense\(\)"
    ):
        method.reduce(sys, 1)


@each_method
def test_orders_that_do_not_exist(method, rng):
    sys = method.make(random_system, rng, n=3, dt=True)
    for order in (0, 4):
        with pytest.raises(hsv.OrderError):
            method.reduce(sys, order)
    with pytest.raises(hsv.DtypeError):
        method.reduce(sys, 0.5)


@pytest.mark.parametrize("method", METHODS[2:], ids=repr)
def test_unstable_systems_are_refused_where_the_method_needs_stable_ones(method, rng):
    with pytest.raises(hsv.UnstableSystemError, match="below"):
        method.reduce(unstable(random_system, rng, n=4, m=2, p=2), 2)


def test_a_reduction_prints_the_bound_that_it_has():
    sys = hsv.StateSpace(np.diag([1.0, -5.0]), np.eye(2), np.eye(2), dt=0)
    red = hsv.lqg_balanced_truncation(sys, 1)
    assert repr(red) == "<Reduction: 2 -> 1 states, error of the factors at most 0.197>"
    assert "error of the factors at most 0.197" in red._repr_html_()
    stable_part = hsv.reduce_stable_part(
        hsv.StateSpace(np.diag([2.0, -1.0, -8.0]), np.eye(3), np.eye(3), np.eye(3), dt=0), 1, hsv.stochastic_truncation
    )
    assert repr(stable_part) == "<Reduction: 3 -> 2 states, relative error at most 0.125>"


def with_norm_one_and_a_feedthrough(sys):
    """Any stable square system, made passive, invertible and bounded: of norm 1 beside a feedthrough of 1.05."""
    norm = float(hsv.hinf_norm(sys))
    return hsv.StateSpace(sys.A, sys.B, sys.C / norm, 1.05 * np.eye(sys.n_inputs), dt=sys.dt)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize(
    "reference",
    [reference_systems.heat_equation(60), reference_systems.clamped_beam(15), reference_systems.penzl_fom(5)],
    ids=["heat equation", "clamped beam", "FOM"],
)
def test_badly_scaled_and_lightly_damped_systems(reference, dt):
    """The beam has a norm of 1e10 and poles 0.03 from the axis: without balancing of the equation, or with fewer steps of Newton's method, it is not solved."""
    sys = with_norm_one_and_a_feedthrough(reference.system())
    sys = hsv.discretize(sys, 0.1, "bilinear") if dt else sys
    w = frequencies(sys, 101)
    for method, order in [
        (hsv.lqg_balanced_truncation, 6),
        (partial(hsv.bounded_real_truncation, gamma=2.06), 6),
        (hsv.positive_real_truncation, 6),
        (hsv.stochastic_truncation, 6),
        (partial(hsv.coprime_factor_reduction, factorization=hsv.inner_coprime_factors), 6),
    ]:
        red = method(sys, order)
        bound = next(float(getattr(red, name)) for name in BOUNDS if getattr(red, name) is not None)
        # |G| and |G_r| are below 2.1: (1 + 2.1^2) times the gap, (1 + 2.1)^2 / 2 times the error of the scattering function
        error = np.abs(sys.frequency_response(w) - red.system.frequency_response(w)).max()
        assert error <= 5.5 * bound
        assert np.all(np.isfinite(red.characteristic_values))


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("name", ["lqg", "bounded", "positive"])
def test_small_values_keep_the_digits_that_the_solutions_lose(name, dt):
    """Decoupled states, each with a value by formula: a square root of the eigenvalues of X Y would be noise below 1e-8 of the largest value."""
    c = np.geomspace(1, 1e-5, 6)
    D = 0.5 * np.eye(6) if name == "positive" else None
    sys = hsv.StateSpace(-np.eye(6), np.diag(c), np.diag(c), D, dt=0)
    k = c**2
    exact = {
        "lqg": k / (1 + np.sqrt(1 + k**2)),  # k mu^2 + 2 mu - k = 0
        "bounded": k / 2 / (1 + np.sqrt(1 - (k / 2) ** 2)),  # at gamma = 2
        "positive": k / (1 + k + np.sqrt((1 + k) ** 2 - k**2)),
    }[name]
    if dt:
        sys = hsv.discretize(sys, 2.0, "bilinear")
    method = {
        "lqg": hsv.lqg_balanced_truncation,
        "bounded": partial(hsv.bounded_real_truncation, gamma=2.0),
        "positive": hsv.positive_real_truncation,
    }[name]
    red = method(sys, 6)
    scale = 2.0 if name == "bounded" else 1.0
    np.testing.assert_allclose(red.characteristic_values / scale, exact, rtol=1e-9, atol=tolerance(float) * exact[0])
