import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import _reduction
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance

SMALL = hsv.StateSpace([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]], dt=0)  # sigma = 24.42686, 0.5731395


def worst_error(sys, reduced, n=400):
    """H-infinity error on a grid with the angles of all poles in it: a lower bound."""
    if sys.is_discrete:
        w = np.concatenate(
            [np.linspace(-np.pi, np.pi, n), np.angle(sys.poles().ravel()), np.angle(reduced.poles().ravel())]
        )
    else:
        w = np.concatenate(
            [np.r_[-1, 1][:, None] * np.geomspace(1e-3, 1e3, n), np.imag(sys.poles()).reshape(1, -1)], axis=None
        )
    difference = sys.frequency_response(w) - reduced.frequency_response(w)
    return np.linalg.norm(difference, 2, axis=(-2, -1)).max(-1)


@pytest.mark.parametrize("dt", [0, True, 0.2])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_promises(make, complex_, dt, rng):
    sys = make(rng, n=8, complex_=complex_, dt=dt)
    sigma = hsv.hankel_singular_values(sys)
    for r in range(1, 9):
        red = hsv.balanced_truncation(sys, r)
        assert red.system.n_states == int(red.orders) == r
        assert red.system.dt == sys.dt
        assert red.system.is_complex == complex_
        poles = red.system.poles()
        assert (np.abs(poles).max() if dt else 1 + poles.real.max()) < 1
        assert worst_error(sys, red.system) <= red.error_bound + tolerance(float) * sigma[0]
        # a bound of dense systems allows for eps |A| / margin, some 1e3 roundings here
        np.testing.assert_allclose(red.error_bound, 2 * sigma[r:].sum(), rtol=1e-10, atol=1e-12)
        assert red.error_bound >= 2 * sigma[r:].sum()
        left_h = red.left.conj().T
        np.testing.assert_allclose(left_h @ red.right, np.eye(r), atol=1e-13)
        dense = sys.to_dense()
        np.testing.assert_allclose(left_h @ dense.A @ red.right, red.system.A, atol=1e-12)
        np.testing.assert_allclose(left_h @ dense.B, red.system.B, atol=1e-12)
        np.testing.assert_allclose(dense.C @ red.right, red.system.C, atol=1e-12)
        np.testing.assert_array_equal(red.system.D, dense.D)
        np.testing.assert_allclose(red.hankel_singular_values, sigma, rtol=1e-12)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_full_order_is_the_same_system_balanced(make, dt, rng):
    sys = make(rng, n=6, dt=dt)
    bal = hsv.balance(sys)
    w = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(bal.system.frequency_response(w), sys.frequency_response(w), rtol=1e-10, atol=1e-10)
    sigma = np.diag(hsv.hankel_singular_values(sys))
    np.testing.assert_allclose(hsv.controllability_gramian(bal.system), sigma, atol=1e-11 * sigma.max())
    np.testing.assert_allclose(hsv.observability_gramian(bal.system), sigma, atol=1e-11 * sigma.max())
    assert float(bal.error_bound) == 0


def test_first_order_by_hand():
    """The balanced first-order truncation of the small system: B_r^2 = C_r^2 and B_r^2 = -2 A_r sigma_1."""
    red = hsv.balanced_truncation(SMALL, 1)
    a, b, c = (float(x.squeeze()) for x in (red.system.A, red.system.B, red.system.C))
    np.testing.assert_allclose([b * b, abs(b * c)], [-2 * a * 24.42686] * 2, rtol=1e-6)


def test_transposing_complex_matrices_would_be_wrong(rng):
    """`.T` where the conjugate transpose belongs leaves a valid-looking result that is not balanced: the bound must hold here."""
    for seed in range(20):
        sys = random_diagonal(np.random.default_rng(seed), n=6, m=1, p=1)
        red = hsv.balanced_truncation(sys, 3)
        reduced = np.diag(red.hankel_singular_values[:3])
        # discrete truncation is not balanced exactly, but both of its Gramians are at most diag(sigma)
        for gramian in (hsv.controllability_gramian(red.system), hsv.observability_gramian(red.system)):
            assert np.linalg.eigvalsh(reduced - gramian).min() > -1e-12 * reduced.max()
        assert worst_error(sys, red.system) <= red.error_bound


@pytest.mark.parametrize("complex_", [True, False])
def test_a_batch_is_its_systems(complex_, rng):
    sys = random_diagonal(rng, n=6, batch=(2, 3), complex_=complex_)
    red = hsv.balanced_truncation(sys, hsv.HankelSum(keep=0.95))
    assert red.orders.shape == (2, 3)
    assert red.system.batch_shape == (2, 3)
    assert red.system.n_states == red.orders.max() > red.orders.min()
    for i in np.ndindex(2, 3):
        single = hsv.DiagonalStateSpace(sys.poles()[i], sys.B[i], sys.C[i], sys.D[i], dt=True)
        alone, chosen = hsv.balanced_truncation(single, hsv.HankelSum(keep=0.95)), red.select(i)
        r = int(alone.orders)
        assert chosen.system.n_states == int(chosen.orders) == r
        np.testing.assert_allclose(chosen.system.impulse_response(20), alone.system.impulse_response(20), atol=1e-12)
        np.testing.assert_allclose(chosen.error_bound, alone.error_bound, rtol=1e-10)
        np.testing.assert_allclose(chosen.left.conj().T @ chosen.right, np.eye(r), atol=1e-13)
        # the padding: poles at zero, and nothing goes in or out
        padded = red.system
        np.testing.assert_array_equal(padded.A[i][r:, :], 0)
        np.testing.assert_array_equal(padded.A[i][:, r:], 0)
        np.testing.assert_array_equal(padded.B[i][r:, :], 0)
        np.testing.assert_array_equal(padded.C[i][:, r:], 0)
        np.testing.assert_array_equal(red.left[i][:, r:], 0)


def test_select_must_name_a_system(rng):
    red = hsv.balanced_truncation(random_diagonal(rng, batch=(2,)), 2)
    with pytest.raises(hsv.HsvError, match="1 indices"):
        red.select((0, 0))
    with pytest.raises(hsv.HsvError, match="inside the batch"):
        red.select(2)
    assert hsv.balanced_truncation(random_diagonal(rng), 2).select().system.n_states == 2


@pytest.mark.parametrize("dt", [0, True])
def test_continuous_padding_is_no_instability(dt, rng):
    poles = np.array([[-0.5, -0.6, -0.7], [-0.1, -0.2, -0.9]])
    B = np.array([[[1.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]]])
    sys = hsv.DiagonalStateSpace(poles, B, np.ones((2, 1, 3)), dt=dt)
    red = hsv.balanced_truncation(sys, hsv.Threshold(1e-6))
    np.testing.assert_array_equal(red.orders, [1, 3])
    np.testing.assert_allclose(red.system.frequency_response([0.0]), sys.frequency_response([0.0]), rtol=1e-9)
    assert np.all(np.isfinite(hsv.hankel_singular_values(red.system)))


def check_unit_bound(seed, n, m):
    rng = np.random.default_rng(seed)
    sys = random_diagonal(rng, n=n, m=m, p=m, dt=bool(seed % 2) or 0)
    r = int(rng.integers(1, n + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)  # some of these systems are not of full numerical rank
        red = hsv.balanced_truncation(sys, r)
    assert worst_error(sys, red.system, n=100) <= red.error_bound + 1e-10 * red.hankel_singular_values[0]


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3))
def test_the_bound_holds(seed, n, m):
    check_unit_bound(seed, n, m)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 4))
def test_the_bound_holds_for_larger_systems(seed, n, m):
    check_unit_bound(seed, n, m)


def test_complex_and_real_readings_obey_their_bounds_on_the_real_output():
    """Both bounds hold for Re(y), and the conjugate-aware reduction is the better one on average at the same number of pairs."""
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        poles = rng.uniform(0.9, 0.999, 16) * np.exp(1j * rng.uniform(0, 2 * np.pi, 16))
        B = (rng.normal(size=(16, 4)) + 1j * rng.normal(size=(16, 4))) * np.sqrt(1 - np.abs(poles[:, None]) ** 2)
        C = rng.normal(size=(4, 16)) + 1j * rng.normal(size=(4, 16))
        sys = hsv.DiagonalStateSpace(poles, B, C, dt=True)
        twice = hsv.real_part(sys)
        by_complex, by_real = hsv.balanced_truncation(sys, 8), hsv.balanced_truncation(twice, 16)
        assert not by_real.system.is_complex
        assert by_real.system.n_states == 16
        error_complex = worst_error(twice, hsv.real_part(by_complex.system), n=1000)
        error_real = worst_error(twice, by_real.system, n=1000)
        assert error_complex <= by_complex.error_bound
        assert error_real <= by_real.error_bound
        ratios.append(error_real / error_complex)
    assert np.mean(ratios) < 0.95


def test_projections_of_a_real_part_act_on_its_diagonal_form(rng):
    twice = hsv.real_part(random_diagonal(rng, n=6))
    red = hsv.balanced_truncation(twice, 5)
    left_h = red.left.conj().T
    np.testing.assert_allclose(left_h @ red.right, np.eye(5), atol=1e-13)
    np.testing.assert_allclose(left_h @ np.diag(twice.poles()) @ red.right, red.system.A, atol=1e-12)
    np.testing.assert_allclose(left_h @ twice.B, red.system.B, atol=1e-12)
    np.testing.assert_allclose(twice.C @ red.right, red.system.C, atol=1e-12)
    np.testing.assert_allclose(red.right[:6], red.right[6:].conj(), atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", [np, torch])
@pytest.mark.parametrize("diagonal", [True, False])
def test_array_library_and_precision_are_kept(library, dtype, diagonal):
    kind = getattr(library, dtype)
    B, C = library.ones((3, 1), dtype=kind), library.ones((1, 3), dtype=kind)
    poles = library.asarray([0.5, -0.25, 0.875], dtype=kind)
    sys = (
        hsv.DiagonalStateSpace(poles, B, C, dt=True) if diagonal else hsv.StateSpace(library.diag(poles), B, C, dt=True)
    )
    red = hsv.balanced_truncation(sys, 2)
    real_kind = dtype.replace("complex64", "float32").replace("complex128", "float64")
    for array in (red.system.A, red.system.B, red.system.C, red.system.D, red.left, red.right):
        assert type(array) is type(B)
        assert array.dtype == kind
    for array in (red.error_bound, red.hankel_singular_values):
        assert str(array.dtype).endswith(real_kind)
    wide = hsv.balanced_truncation(
        hsv.DiagonalStateSpace([0.5, -0.25, 0.875], np.ones((3, 1)), np.ones((1, 3)), dt=True), 2
    )
    # the bound of the single-precision run is not below the true one
    assert float(red.error_bound) >= float(wide.error_bound) * (1 - 1e-15)
    np.testing.assert_allclose(float(red.error_bound), float(wide.error_bound), rtol=1e-6)


def test_an_order_above_the_minimal_one_is_capped_and_said():
    sys = hsv.DiagonalStateSpace([0.5, 0.6, 0.7], [[1.0], [0.0], [1.0]], [[1.0, 1.0, 0.0]], dt=True)
    with pytest.warns(hsv.OrderWarning, match="capped at 1 instead of 3"):
        red = hsv.balanced_truncation(sys, 3)
    assert int(red.orders) == 1
    assert "capped" in red.notes[0]
    np.testing.assert_allclose(red.system.A, [[0.5]])
    assert int(hsv.balance(sys).orders) == 1  # there the cap is what was asked for: no warning


def test_nearly_minimal_systems_stay_biorthogonal_at_the_cap(rng):
    """Beyond the numerical rank left^H right was seen to be wrong by 5.6."""
    sys = hsv.DiagonalStateSpace(np.linspace(0.1, 0.9, 30), np.ones((30, 1)), np.ones((1, 30)), dt=True)
    with pytest.warns(hsv.OrderWarning, match="capped"):
        red = hsv.balanced_truncation(sys, 30)
    r = int(red.orders)
    assert 8 <= r < 30
    np.testing.assert_allclose(red.left.conj().T @ red.right, np.eye(r), atol=1e-12)
    assert worst_error(sys, red.system) < 1e-12 * red.hankel_singular_values[0]


def test_a_cut_inside_a_cluster_is_said():
    # two identical, decoupled channels: every value comes twice
    sys = hsv.DiagonalStateSpace(
        [0.5, 0.9, 0.5, 0.9], np.repeat(np.eye(2), 2, axis=0), np.repeat(np.eye(2), 2, axis=1), dt=True
    )
    with pytest.warns(hsv.OrderWarning, match="splits a cluster"):
        red = hsv.balanced_truncation(sys, 1)
    assert worst_error(sys, red.system) <= red.error_bound
    assert hsv.balanced_truncation(sys, 2).notes == ()


def test_a_system_without_input_or_output_is_only_its_feedthrough():
    sys = hsv.DiagonalStateSpace([0.5, 0.6], np.zeros((2, 1)), np.ones((1, 2)), [[3.0]], dt=True)
    with pytest.warns(hsv.OrderWarning, match="all Hankel singular values are zero"):
        red = hsv.balanced_truncation(sys, hsv.HankelSum(keep=0.9))
    assert int(red.orders) == 0
    np.testing.assert_array_equal(red.system.impulse_response(3)[:, 0, 0], [3, 0, 0])


def test_an_error_bound_that_no_order_certifies_is_an_error():
    sys = hsv.DiagonalStateSpace(np.linspace(0.1, 0.9, 30), np.ones((30, 1)), np.ones((1, 30)), dt=True)
    with pytest.raises(hsv.OrderError, match="smallest bound that double precision can certify"):
        hsv.balanced_truncation(sys, hsv.ErrorBound(1e-200))
    assert int(hsv.balanced_truncation(SMALL, hsv.ErrorBound(1e-200)).orders) == 2


def test_bad_input_is_refused(rng):
    with pytest.raises(hsv.OrderError, match=r"Order must be in \[1, 2\], got 3"):
        hsv.balanced_truncation(SMALL, 3)
    with pytest.raises(hsv.OrderError, match="at least 1"):
        hsv.balanced_truncation(SMALL, 0)
    with pytest.raises(hsv.DtypeError, match="rule must be an int"):
        hsv.balanced_truncation(SMALL, 0.5)
    with pytest.raises(hsv.UnstableSystemError, match="must be below 0"):
        hsv.balanced_truncation(hsv.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=0), 1)
    with pytest.raises(hsv.UnstableSystemError, match="state 0"):
        hsv.balanced_truncation(hsv.DiagonalStateSpace([1.0], [[1.0]], [[1.0]], dt=True), 1)


def test_single_precision_that_would_round_onto_the_circle_is_an_error():
    sys = hsv.DiagonalStateSpace.from_log_poles(
        *(np.array(x, dtype=np.float32) for x in ([-1e-9, -0.5], [[1], [1]], [[1, 1]]))
    )
    with pytest.raises(hsv.OrderError, match="double precision"):
        hsv.balanced_truncation(sys, 1)
    red = hsv.balanced_truncation(hsv.DiagonalStateSpace.from_log_poles([-1e-9, -0.5], [[1], [1]], [[1, 1]]), 1)
    np.testing.assert_allclose(1 - red.system.A[0, 0], 1e-9, rtol=1e-3)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_balancing_free_truncation_is_the_same_system_in_orthonormal_bases(make, dt, rng):
    sys = make(rng, batch=(2,), n=7, dt=dt)
    w = np.linspace(-3, 3, 9)
    for rule in (3, hsv.Threshold(0.1)):
        red, balanced = hsv.balancing_free_truncation(sys, rule), hsv.balanced_truncation(sys, rule)
        np.testing.assert_array_equal(red.orders, balanced.orders)
        np.testing.assert_array_equal(red.error_bound, balanced.error_bound)
        found, expected = (r.system.frequency_response(w) for r in (red, balanced))
        np.testing.assert_allclose(found, expected, atol=1e-9)
        for i in range(2):
            one = red.select(i)
            r = one.system.n_states
            np.testing.assert_allclose(one.right.conj().T @ one.right, np.eye(r), atol=1e-13)
            np.testing.assert_allclose(one.left.conj().T @ one.right, np.eye(r), atol=1e-12)


def test_balancing_free_coordinates_stay_well_conditioned(rng):
    sys = random_diagonal(rng, n=8, m=1, p=1, dt=True)
    balanced, free = (np.linalg.cond(f(sys, 6).right) for f in (hsv.balanced_truncation, hsv.balancing_free_truncation))
    assert free < 1 + 1e-12
    assert balanced > 3


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("dt", [0, True])
def test_stability_is_proved_without_eigenvalues_where_inputs_are_many(dt, library, rng):
    n, r = 80, 40
    poles = 0.9 * rng.uniform(size=n) * np.exp(2j * np.pi * rng.uniform(size=n))
    B, C = (rng.normal(size=(*shape, 2)) @ [1, 1j] for shape in ((n, 50), (50, n)))
    arrays = (library.asarray(x) for x in (poles if dt else poles - 1.5, B, C))
    sys = hsv.DiagonalStateSpace(*arrays, dt=dt)
    red = hsv.balanced_truncation(sys, r)
    sigma, orders = np.asarray(red.hankel_singular_values), np.asarray(red.orders)
    assert _reduction._contracts(red.system, sigma, orders)
    spectrum = np.abs(np.asarray(red.system.poles())) if dt else np.asarray(red.system.poles()).real
    assert spectrum.max() < (1 if dt else 0)
    # the same matrix moved so far that its outermost pole lies just outside; and too few inputs for a proof
    shift = 1.0001 / spectrum.max() if dt else -1.0001 * spectrum.max()
    A = red.system.A * shift if dt else red.system.A + shift * library.eye(r)
    assert not _reduction._contracts(hsv.StateSpace(A, red.system.B, red.system.C, dt=dt), sigma, orders)
    with pytest.raises(hsv.OrderError, match="not stable to working precision"):
        _reduction.check_stability(hsv.StateSpace(A, red.system.B, red.system.C, dt=dt), sigma, orders)
    narrow = hsv.StateSpace(red.system.A, red.system.B[:, :1], red.system.C, dt=dt)
    assert not _reduction._contracts(narrow, sigma[: r + 1], orders)


MAPS = [[1.0], [2.0]], [[3.0, 1.0]], [[5.0]]
WITH_FEEDTHROUGH = {
    "dense": hsv.StateSpace([[0.5, 0.1], [0.0, -0.5]], *MAPS, dt=True),
    "diagonal": hsv.DiagonalStateSpace([0.5, -0.5], *MAPS, dt=True),
    "complex diagonal": hsv.DiagonalStateSpace([0.5 + 0.1j, -0.5], *(np.asarray(x) + 0j for x in MAPS), dt=True),
    "real part": hsv.real_part(hsv.DiagonalStateSpace([0.5 + 0.1j, -0.5], *MAPS, dt=True)),
    "sparse": hsv.SparseStateSpace(scipy.sparse.diags_array([0.5, -0.5]), *MAPS, dt=True),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, kind) for method in (hsv.balanced_truncation, hsv.singular_perturbation) for kind in WITH_FEEDTHROUGH]
    + [(hsv.balancing_free_truncation, "dense"), (hsv.lqg_balanced_truncation, "dense")]
    + [(hsv.hankel_norm_approximation, kind) for kind in ("dense", "diagonal", "real part")]
    + [(hsv.irka, kind) for kind in ("dense", "diagonal", "real part")]
    + [(hsv.modal_truncation, kind) for kind in ("dense", "diagonal")]
    + [(hsv.h2_optimal_reduction, kind) for kind in ("diagonal", "complex diagonal")],
)
def test_reductions_have_a_feedthrough_of_their_own(method, kind, order):
    sys = WITH_FEEDTHROUGH[kind]
    method(sys, order).system.D[...] = 0
    assert sys.D == [[5.0]]


@pytest.mark.parametrize(
    "method",
    [
        hsv.balanced_truncation,
        hsv.singular_perturbation,
        hsv.modal_truncation,
        hsv.hankel_norm_approximation,
        lambda sys, order: hsv.time_limited_truncation(sys, order, 3),
    ],
)
def test_the_graph_of_tensors_ends_at_a_reduction(method):
    arrays = [[0.5, 0.2], [[1.0], [1.0]], [[1.0, 2.0]], [[5.0]]]
    poles, B, C, D = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays)
    for sys in (hsv.DiagonalStateSpace(poles, B, C, D, dt=True), hsv.StateSpace(torch.diag(poles), B, C, D, dt=True)):
        red = method(sys, 1)
        fields = (red.left, red.right, red.error_bound, red.hankel_singular_values)
        for x in (red.system.B, red.system.C, red.system.D, red.system.poles(), *fields):
            assert x is None or not x.requires_grad
        assert sys.B.requires_grad


def test_the_h2_norm_over_an_infinite_horizon_has_no_graph():
    B = torch.ones((1, 1), dtype=torch.float64, requires_grad=True)
    sys = hsv.DiagonalStateSpace(torch.tensor([0.5], dtype=torch.float64), B, B, B, dt=True)
    assert not hsv.h2_norm(sys).requires_grad
    assert hsv.h2_norm(sys, 5).requires_grad
