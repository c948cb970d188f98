import array_api_strict
import numpy as np
import pytest
import slycot
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import _norms
from hsv._array import to_host
from tests.hsv import reference_systems as known
from tests.hsv.test_systems import random_diagonal, random_system
from tests.tolerances import tolerance


def one_pole(pole, b=1.0, c=1.0, d=0.0, *, dt):
    return hsv.StateSpace([[pole]], [[b]], [[c]], [[d]], dt=dt)


def oscillator(damping, *, frequency=1.0, dt=0):
    """``1 / (s^2 + 2 z w s + w^2)``: the peak is ``1 / (2 z w^2 sqrt(1 - z^2))`` for ``z < 1/sqrt(2)``, else the gain at 0."""
    A = [[0.0, 1.0], [-(frequency**2), -2 * damping * frequency]]
    return hsv.StateSpace(A, [[0.0], [1.0]], [[1.0, 0.0]], dt=dt)


def on_a_dense_grid(respond, extra, n_points=20001):
    """The plain way: many frequencies, then closer ones around the best, for discrete systems."""
    w = np.concatenate([np.linspace(-np.pi, np.pi, n_points), extra])
    best = 0.0
    for width in (1e-3, 1e-5, 1e-7):
        gains = np.concatenate([np.linalg.norm(respond(part), 2, axis=(-2, -1)) for part in np.array_split(w, 20)])
        best = max(best, gains.max())
        w = w[gains.argmax()] + np.linspace(-width, width, 401)
    return best


class TestH2:
    @given(st.integers(0, 2**20), st.integers(1, 8), st.booleans())
    def test_slicot(self, seed, n, discrete):
        rng = np.random.default_rng(seed)
        sys = known.random_stable(rng, n, 2, 3, dt=True if discrete else 0, damping=10 ** rng.uniform(-5, -0.5))
        D = rng.normal(size=(3, 2)) if discrete else np.zeros((3, 2))
        sys = hsv.StateSpace(sys.A, sys.B, sys.C, D, dt=sys.dt)
        theirs = slycot.ab13bd("D" if discrete else "C", "H", n, 2, 3, sys.A, sys.B, sys.C, D)
        # the damping goes down to 1e-5, and its reciprocal's rounding errors are in both
        np.testing.assert_allclose(hsv.h2_norm(sys), theirs, rtol=1e-9)

    def test_is_the_energy_of_the_impulse_response(self, rng):
        sys = known.random_stable(rng, 5, 2, 3, dt=True, complex_=True, damping=0.2)
        sys = hsv.StateSpace(sys.A, sys.B, sys.C, known.complex_normal(rng, (3, 2)), dt=True)
        response = sys.impulse_response(200)
        np.testing.assert_allclose(hsv.h2_norm(sys), np.linalg.norm(response), rtol=1e-12)
        np.testing.assert_allclose(hsv.h2_norm(sys - sys), 0, atol=1e-12 * np.linalg.norm(response))

    def test_direct_term(self):
        assert hsv.h2_norm(one_pole(0.6, 4.0, d=12.0, dt=True)) == pytest.approx(13.0)
        assert hsv.h2_norm(one_pole(-2.0, 6.0, d=1e-300, dt=0)) == np.inf
        batch = hsv.StateSpace([[-2.0]], [[6.0]], [[1.0]], np.array([[[0.0]], [[1.0]]]), dt=0)
        np.testing.assert_array_equal(hsv.h2_norm(batch), [3.0, np.inf])

    def test_diagonal_and_dense_agree(self, rng):
        sys = known.lru_initialisation(rng, 20, 3, batch=(2,))
        np.testing.assert_allclose(hsv.h2_norm(sys), hsv.h2_norm(sys.to_dense()), rtol=1e-10)
        # in the order of magnitude at which a trace would have lost every digit
        difference = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C * (1 + 1e-10), dt=True) - sys
        np.testing.assert_allclose(hsv.h2_norm(difference), 1e-10 * hsv.h2_norm(sys), rtol=1e-4)


class TestHankel:
    def test_closed_form(self):
        assert hsv.hankel_norm(one_pole(0.5, c=3.0, d=100.0, dt=True)) == pytest.approx(4.0)

    @given(st.integers(0, 2**20), st.integers(1, 8), st.booleans())
    def test_lies_between_the_bounds_that_h_infinity_sets(self, seed, n, discrete):
        sys = known.random_stable(
            np.random.default_rng(seed), n, 2, 2, dt=True if discrete else 0, complex_=bool(seed % 2)
        )
        hankel, largest = hsv.hankel_norm(sys), hsv.hinf_norm(sys)
        assert hankel <= largest * (1 + 1e-9)
        assert largest <= 2 * np.sum(hsv.hankel_singular_values(sys)) * (1 + 1e-9)

    def test_bounds_the_drift_of_every_value(self, rng):
        one = known.random_stable(rng, 6, 2, 2, dt=True)
        other = hsv.StateSpace(one.A + 0.005 * rng.normal(size=(6, 6)), one.B, one.C, dt=True)
        drift = np.abs(hsv.hankel_singular_values(one) - hsv.hankel_singular_values(other))
        assert drift.max() <= hsv.hankel_norm(one - other) * (1 + 1e-12)


class TestHInfinity:
    @pytest.mark.parametrize("damping", [1.0, 0.8, 0.6, 0.1, 1e-3, 1e-6])
    @pytest.mark.parametrize("frequency", [1e-4, 1.0, 1e5])
    def test_oscillator(self, damping, frequency):
        peak = 1 / (2 * damping * np.sqrt(1 - damping**2)) if damping < np.sqrt(0.5) else 1.0
        np.testing.assert_allclose(
            hsv.hinf_norm(oscillator(damping, frequency=frequency)), peak / frequency**2, rtol=1e-9
        )

    @pytest.mark.parametrize(
        ("sys", "norm"),
        [
            (one_pole(0.5, c=3.0, dt=True), 6.0),  # at w = 0
            (one_pole(-0.5, c=3.0, dt=True), 6.0),  # at w = pi
            (one_pole(0.5j, c=3.0, dt=True), 6.0),  # at w = pi / 2 alone: a positive frequency
            (one_pole(-0.5j, c=3.0, dt=True), 6.0),  # at w = -pi / 2 alone: a negative one
            (one_pole(-1.0 - 50j, c=3.0, dt=0), 3.0),
            (one_pole(-1.0 + 50j, c=3.0, dt=0), 3.0),
            (one_pole(-1.0, -1.0, 1.0, 1.0, dt=0), 1.0),  # s / (s + 1): at infinity
            (one_pole(-1.0, 1e-9, 1.0, 2.0, dt=0), 2.0 + 1e-9),
            (one_pole(0.0, 2.0, 3.0, dt=True), 6.0),  # a delay: all-pass
            (one_pole(0.5, 0.0, 1.0, 0.0, dt=True), 0.0),
            (one_pole(0.5, 0.0, 1.0, -7.0, dt=True), 7.0),
            (one_pole(0.5, c=3.0, dt=0.01), 6.0),  # seconds change nothing
        ],
    )
    def test_closed_forms(self, sys, norm):
        np.testing.assert_allclose(hsv.hinf_norm(sys), norm, rtol=1e-14)

    @pytest.mark.parametrize("discrete", [True, False])
    @pytest.mark.parametrize("seed", range(60))
    def test_slicot(self, discrete, seed):
        rng = np.random.default_rng([seed, discrete])
        n, m, p = (int(rng.integers(1, high)) for high in (30, 4, 4))
        sys = known.random_stable(rng, n, m, p, dt=True if discrete else 0, damping=10 ** rng.uniform(-4, -0.5))
        D = rng.normal(size=(p, m)) * (seed % 2)
        sys = hsv.StateSpace(sys.A, sys.B, sys.C, D, dt=sys.dt)
        theirs = slycot.ab13dd(
            "D" if discrete else "C", "I", "N", "D", n, m, p, sys.A, np.eye(n), sys.B, sys.C, D, tol=1e-12
        )[0]
        np.testing.assert_allclose(hsv.hinf_norm(sys), theirs, rtol=1e-9)

    @pytest.mark.parametrize("max_phase", [2 * np.pi, 0.31, 0.0])
    @pytest.mark.parametrize(("n", "m"), [(1, 1), (24, 1), (64, 3), (200, 2)])
    def test_no_narrow_peak_is_missed(self, n, m, max_phase, rng):
        """Layers as they are initialised: hundreds of peaks of width 0.001 to 0.1."""
        sys = known.lru_initialisation(rng, n, m, max_phase=max_phase)
        dense = on_a_dense_grid(sys.frequency_response, np.angle(sys.poles()))
        np.testing.assert_allclose(hsv.hinf_norm(sys), dense, rtol=1e-9)

    def test_very_narrow_peak(self):
        poles = np.concatenate([[(1 - 1e-9) * np.exp(2.5j)], 0.5 * np.exp(1j * np.linspace(0, 6, 20))])
        C = np.concatenate([[1e-7], np.ones(20)])[None, :]
        sys = hsv.DiagonalStateSpace(poles, np.ones((21, 1)), C, dt=True)
        response = np.abs(sys.frequency_response([2.5])[0, 0, 0])
        assert hsv.hinf_norm(sys) >= response
        # 1 - |pole| = 1e-9 holds seven digits of the pole
        np.testing.assert_allclose(hsv.hinf_norm(sys), response, rtol=1e-2)

    def test_dense_diagonal_transposed_and_real_forms_agree(self, rng):
        sys = known.lru_initialisation(rng, 16, 4, p=2)
        norm = hsv.hinf_norm(sys)
        np.testing.assert_allclose(hsv.hinf_norm(sys.to_dense()), norm, rtol=1e-10)
        A, B, C = (x.swapaxes(-1, -2) for x in (sys.to_dense().A, sys.C, sys.B))
        np.testing.assert_allclose(hsv.hinf_norm(hsv.StateSpace(A, B, C, dt=True)), norm, rtol=1e-10)
        real = hsv.real_part(sys)
        np.testing.assert_allclose(hsv.hinf_norm(real), hsv.hinf_norm(real.to_dense()), rtol=1e-10)
        assert hsv.hinf_norm(real) <= norm * (1 + 1e-10)

    def test_a_batch_is_its_systems_one_by_one(self, rng):
        for dt in (0, True):
            batch = known.random_stable(rng, 5, 2, 3, dt=dt, complex_=True, batch=(2, 3))
            norms = hsv.hinf_norm(batch)
            assert norms.shape == (2, 3)
            for i in np.ndindex(2, 3):
                one = hsv.StateSpace(batch.A[i], batch.B[i], batch.C[i], dt=dt)
                np.testing.assert_allclose(norms[i], hsv.hinf_norm(one), rtol=1e-11)
        empty = hsv.StateSpace(batch.A[:0], batch.B[:0], batch.C[:0], dt=0)
        assert hsv.hinf_norm(empty).shape == (0, 3)

    def test_work_in_pieces_changes_nothing(self, rng, monkeypatch):
        sys = known.random_stable(rng, 6, 2, 2, dt=True, batch=(3,))
        whole = hsv.hinf_norm(sys)
        monkeypatch.setattr("hsv._norms._CHUNK", 200)
        np.testing.assert_allclose(hsv.hinf_norm(sys), whole, rtol=1e-14)


class TestError:
    def test_by_hand(self):
        sys = hsv.DiagonalStateSpace([0.5, -0.5], [[1.0], [1.0]], [[3.0, 1.0]], 5.0, dt=True)
        kept = hsv.StateSpace([[0.5]], [[1.0]], [[3.0]], 4.0, dt=True)
        # 1 + 1 / (z + 0.5): 1 + 2 / 3 at z = 1, 1 - 2 at z = -1
        np.testing.assert_allclose(hsv.hinf_error(sys, kept), 1 + 2 / 3)

    @pytest.mark.parametrize("dt", [0, True])
    def test_is_the_norm_of_the_difference(self, dt, rng):
        sys = known.random_stable(rng, 8, 2, 3, dt=dt, complex_=True, batch=(2,))
        reduced = hsv.balanced_truncation(sys, 3).system
        np.testing.assert_allclose(hsv.hinf_error(sys, reduced), hsv.hinf_norm(sys - reduced), rtol=1e-10)
        assert np.all(hsv.hinf_error(sys, sys) <= 1e-12 * hsv.hinf_norm(sys))

    @pytest.mark.parametrize("seed", range(5))
    def test_a_truncated_layer_obeys_its_bound(self, seed):
        rng = np.random.default_rng(seed)
        sys = known.lru_initialisation(rng, 40, 2, max_phase=[0.3, 2 * np.pi][seed % 2])
        reduced = hsv.balanced_truncation(sys, 12)
        error = hsv.hinf_error(sys, reduced.system)
        assert reduced.hankel_singular_values[12] * (1 - 1e-9) <= error <= reduced.error_bound
        dense = on_a_dense_grid(
            lambda w: sys.frequency_response(w) - reduced.system.frequency_response(w), np.angle(sys.poles()), 4001
        )
        np.testing.assert_allclose(error, dense, rtol=1e-7)

    def test_padding_of_a_batch_does_no_harm(self, rng):
        for dt in (0, True):
            poles = np.array([[-0.5, -0.6], [-0.1, -0.9]])
            B, C = np.array([[[1.0], [0.0]], [[1.0], [1.0]]]), np.ones((1, 2))
            sys = hsv.DiagonalStateSpace(poles, B, C, dt=dt)
            reduced = hsv.balanced_truncation(sys, hsv.Threshold(1e-6))
            assert reduced.orders.tolist() == [1, 2]
            for padded in (reduced.system, hsv.diagonalize(reduced.system)[0]):
                for norm in (hsv.hinf_norm, hsv.h2_norm, hsv.hankel_norm):
                    np.testing.assert_allclose(norm(padded), norm(sys), rtol=1e-9)
                np.testing.assert_allclose(hsv.hinf_error(sys, padded), 0, atol=1e-12)

    def test_systems_that_do_not_fit_are_refused(self):
        sys = one_pole(0.5, dt=True)
        with pytest.raises(hsv.ShapeError, match="1 -> 1, got 2 -> 1"):
            hsv.hinf_error(sys, hsv.StateSpace([[0.5]], [[1.0, 1.0]], [[1.0]], dt=True))
        for dt in (0.5, 1.0):
            with pytest.raises(hsv.HsvError, match=f"dt of sys, True, got {dt}"):
                hsv.hinf_error(sys, one_pole(0.5, dt=dt))


@pytest.mark.parametrize("norm", [hsv.h2_norm, hsv.hankel_norm, hsv.hinf_norm])
@pytest.mark.parametrize("library", [np, torch, array_api_strict], ids=["numpy", "torch", "strict"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_library_and_precision_are_kept(norm, library, dtype, diagonal, rng):
    sys = known.lru_initialisation(rng, 5, 2, max_phase=0 if dtype.startswith("float") else 6)
    poles, B, C = (np.asarray(x if "complex" in dtype else x.real, dtype=dtype) for x in (sys.poles(), sys.B, sys.C))
    first = poles if diagonal else np.diag(poles)
    arrays = [library.asarray(x.tolist(), dtype=getattr(library, dtype)) for x in (first, B, C)]
    make = hsv.DiagonalStateSpace if diagonal else hsv.StateSpace
    value = norm(make(*arrays, dt=True))
    assert type(value) is type(arrays[0]) or isinstance(value, np.floating)
    assert value.dtype == getattr(library, {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype))
    wide = norm(make(*(x.astype(np.result_type(x, np.float64)) for x in (first, B, C)), dt=True))
    np.testing.assert_allclose(to_host(value), wide, rtol=tolerance(dtype, factor=50))


@pytest.mark.parametrize("norm", [hsv.h2_norm, hsv.hankel_norm, hsv.hinf_norm])
@pytest.mark.parametrize(("pole", "dt"), [(1.0, True), (-1.5, True), (0.0, 0), (0.5, 0)])
@pytest.mark.parametrize("diagonal", [True, False])
def test_unstable_systems_are_refused(norm, pole, dt, diagonal):
    sys = one_pole(pole, dt=dt) if not diagonal else hsv.DiagonalStateSpace([pole], [[1.0]], [[1.0]], dt=dt)
    with pytest.raises(hsv.UnstableSystemError, match="must be below"):
        norm(sys)


@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_h2_on_a_window(make, rng):
    sys = make(rng, batch=(2,), n=5, dt=True)
    response = sys.impulse_response(8)
    np.testing.assert_allclose(hsv.h2_norm(sys, 7), np.linalg.norm(response.reshape(2, -1), axis=1), rtol=1e-12)
    np.testing.assert_allclose(hsv.h2_norm(sys, 5000), hsv.h2_norm(sys), rtol=1e-9)
    sys = make(rng, batch=(2,), n=5, dt=0)
    sys = type(sys)(sys.poles() if make is random_diagonal else sys.A, sys.B, sys.C, dt=0)
    np.testing.assert_allclose(hsv.h2_norm(sys, 1e4), hsv.h2_norm(sys), rtol=1e-9)
    assert (hsv.h2_norm(sys, 0.1) < hsv.h2_norm(sys, 0.2)).all()
    one = hsv.StateSpace([[-2.0]], [[6.0]], [[1.0]], dt=0)
    np.testing.assert_allclose(hsv.h2_norm(one, 0.5), np.sqrt(36 / 4 * -np.expm1(-2)), rtol=1e-12)
    unstable = hsv.StateSpace([[2.0]], [[1.0]], [[1.0]], dt=True)
    np.testing.assert_allclose(hsv.h2_norm(unstable, 3), np.sqrt(1 + 4 + 16), rtol=1e-15)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("make", [random_system, random_diagonal])
def test_the_level_sets_find_the_peak_from_anywhere(make, complex_, dt, rng):
    """Begun at the gain of one arbitrary frequency, with no grid at all."""
    for _ in range(5):
        sys = make(rng, batch=(3,), n=7, complex_=complex_, dt=dt)
        difference = _norms._Difference.of((sys, hsv.balanced_truncation(sys, 2).system), (3,))
        somewhere = difference.gain(np.full((3, 1), 0.7))[:, 0]
        found = _norms._exceed_nowhere(difference, somewhere)
        expected = _norms._peak(difference)
        assert (expected > 1.01 * somewhere).any()
        np.testing.assert_allclose(found, expected, rtol=3e-9)


def test_a_peak_at_infinity_or_at_minus_one_is_no_trouble():
    """The gain grows up to the highest frequency: a level is touched there and nowhere crossed."""
    high_pass = hsv.StateSpace([[-1.0]], [[1.0]], [[-1.0]], [[1.0]], dt=0)  # s / (s + 1)
    np.testing.assert_allclose(hsv.hinf_norm(high_pass), 1.0, rtol=1e-12)
    alternating = hsv.StateSpace([[-0.999999]], [[1.0]], [[1.0]], dt=True)
    np.testing.assert_allclose(hsv.hinf_norm(alternating), 1e6, rtol=1e-9)


@pytest.mark.parametrize(("b", "c"), [(1e160, 1e-160), (1e-200, 1e200), (1e100, 1e100), (1e-100, 1e-100)])
@pytest.mark.parametrize(("dt", "exact"), [(0, 2.0), (True, 4.0)])
def test_the_largest_gain_in_units_far_apart(b, c, dt, exact):
    """1 / (s + 1) + 1 / (s + 1) and its discrete counterpart; two outputs and one have kernels of their own."""
    A = 0.5 * np.eye(2) if dt else -np.eye(2)
    sys = hsv.StateSpace(A, [[b], [b]], [[c, c]], dt=dt)
    np.testing.assert_allclose(hsv.hinf_norm(sys) / b / c, exact, rtol=1e-9)
    twice = hsv.StateSpace(A, [[b], [b]], [[c, c], [c, c]], dt=dt)
    np.testing.assert_allclose(hsv.hinf_norm(twice) / b / c, np.sqrt(2) * exact, rtol=1e-9)
    half = hsv.StateSpace(A[:1, :1], [[1.0]], [[b * c]], dt=dt)
    np.testing.assert_allclose(hsv.hinf_error(sys, half) / b / c, exact / 2, rtol=1e-9)
