import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import _con_eigenvalues, _hankel_norm
from hsv._con_eigenvalues import PoleResidueForm, hankel_norm_of_difference, minimal_system
from tests.hsv.exact import diagonal_hankel_values
from tests.tolerances import tolerance


def siso(poles, residues, dt, D=None):
    """A diagonal system with one input and one output whose maps differ."""
    weights = np.linspace(0.5, 2.0, len(poles))
    return hsv.DiagonalStateSpace(poles, weights[:, None], (residues / weights)[None, :], D, dt=dt)


def spread(rng, n, dt):
    """Complex poles and residues; Hankel values that fall slowly."""
    residues = rng.normal(size=(n, 2)) @ [1, 1j]
    if dt:
        return siso(np.sqrt(rng.uniform(0.81, 0.99, n)) * np.exp(1j * rng.uniform(0, 2 * np.pi, n)), residues, dt)
    return siso(-np.geomspace(0.1, 10, n) * np.exp(1j * rng.uniform(-1.2, 1.2, n)), residues, dt)


def relaxation(n, dt):
    """Real poles and positive residues, as of diffusion: values that fall by a digit and more each."""
    poles = np.linspace(0.1, 0.95, n) if dt else -np.linspace(0.5, 20, n)
    return siso(poles, np.linspace(1.0, 2.0, n), dt)


def exact_error(sys, reduced):
    """The Hankel norm of the difference of two diagonal systems, in ball arithmetic."""
    poles = np.concatenate([sys.poles(), reduced.poles()])
    B, C = np.vstack([sys.B, reduced.B]), np.hstack([sys.C, -reduced.C])
    return diagonal_hankel_values(poles, B, C, discrete=sys.is_discrete)[0]


def rounding(sys, sigma):
    """What the poles and residues of a result cost that are rounded to double precision."""
    return 32 * sys.n_states * np.finfo(float).eps * sigma[0]


@pytest.mark.parametrize("dt", [0, True, 0.5])
@pytest.mark.parametrize("complex_", [True, False])
def test_it_is_the_system_of_the_dense_construction(complex_, dt, rng):
    sys = spread(rng, 7, dt) if complex_ else relaxation(5, dt)
    sys = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C, [[0.25]], dt=dt)
    w = np.linspace(-3, 3, 9)
    for r in range(1, sys.n_states):
        red, dense = hsv.hankel_norm_approximation(sys, r), hsv.hankel_norm_approximation(sys.to_dense(), r)
        assert isinstance(red.system, hsv.DiagonalStateSpace)
        assert (red.system.dt, red.system.n_states, int(red.orders)) == (sys.dt, r, r)
        found, expected = (x.system.frequency_response(w) for x in (red, dense))
        # the dense construction balances first, and inverts by what the Hankel values differ
        np.testing.assert_allclose(found, expected, atol=tolerance(float, factor=1e5) * np.abs(expected).max())
        np.testing.assert_allclose(red.hankel_singular_values, dense.hankel_singular_values, atol=1e-12)
        np.testing.assert_allclose(red.error_bound, dense.error_bound, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("family", ["spread", "relaxation", "narrow"])
def test_the_error_is_the_least_one_down_to_rounding(family, dt, rng):
    """In ball arithmetic, of the reduced system as it was rounded: down to 1e-12 of the largest value."""
    if family == "narrow":
        angles = rng.uniform(0, 0.4, 16)
        poles = 0.95 * np.exp(1j * angles) if dt else -0.3 + 3j * angles
        sys = siso(poles, rng.normal(size=(16, 2)) @ [1, 1j], dt)
    else:
        sys = spread(rng, 16, dt) if family == "spread" else relaxation(16, dt)
    sigma = diagonal_hankel_values(sys.poles(), sys.B, sys.C, discrete=sys.is_discrete)
    orders = np.flatnonzero(sigma > 1e-12 * sigma[0])[1::3]
    assert family == "spread" or sigma[orders[-1]] < 1e-9 * sigma[0]
    for r in orders:
        red = hsv.hankel_norm_approximation(sys, int(r))
        error = exact_error(sys, red.system)
        assert sigma[r] * (1 - 1e-12) <= error <= sigma[r] * (1 + 1e-6) + rounding(sys, sigma)


@pytest.mark.parametrize("dt", [0, True])
def test_the_bound_in_h_infinity(dt, rng):
    """The error is sigma_{r+1} times a function of modulus one, and a rest of twice the sum of the values after it at the most."""
    w = (
        np.concatenate([np.linspace(-np.pi, np.pi, 500), np.geomspace(4, 1e4, 50)])
        if not dt
        else np.linspace(-3.1416, 3.1416, 500)
    )
    sys = spread(rng, 8, dt)
    sigma = hsv.hankel_singular_values(sys)
    for r in range(1, 8):
        red = hsv.hankel_norm_approximation(sys, r)
        error = np.abs(sys.frequency_response(w) - red.system.frequency_response(w)).max()
        assert error <= (sigma[r] + 2 * sigma[r + 1 :].sum()) * (1 + 1e-9)
        assert error <= red.error_bound
    np.testing.assert_allclose(
        np.abs(sys.frequency_response(w) - red.system.frequency_response(w)), sigma[7], rtol=1e-9
    )


def exact_poles(poles, residues, order, digits=60):
    """The poles of the optimal approximant of a discrete system, by the definition, in `digits` digits.

    The eigenvectors of ``X conj(X)``, with ``X = diag(a) K`` and ``K_ij = 1 / (1 - l_i conj(l_j))``, give ``v(z) = sum x_j / (1 - z conj(l_j))``; its zeros
    are those of a polynomial.
    """
    with mpmath.workdps(digits):
        lam, a = [mpmath.mpc(z) for z in poles], [mpmath.mpc(z) for z in residues]
        n = len(lam)
        X = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                X[i, j] = a[i] / (1 - lam[i] * mpmath.conj(lam[j]))
        values, vectors = mpmath.eig(X.apply(mpmath.conj) * X)  # X x = sigma e^{i theta} conj(x)
        ranked = sorted(range(n), key=lambda k: -abs(values[k]))
        x = vectors[:, ranked[order]]
        polynomial = [mpmath.mpf(0)] * n
        for j in range(n):
            term = [x[j]]
            for k in range(n):
                if k != j:
                    term = [t - mpmath.conj(lam[k]) * s for t, s in zip([*term, 0], [0, *term], strict=True)]
            polynomial = [p + t for p, t in zip(polynomial, term, strict=True)]
        zeros = mpmath.polyroots(polynomial[::-1], maxsteps=500, extraprec=400)
        return np.array([complex(z) for z in zeros if abs(z) < 1])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_poles_are_those_of_the_definition(order, rng):
    sys = relaxation(7, True) if order == 2 else spread(rng, 7, True)
    expected = exact_poles(sys.poles(), (sys.C[0] * sys.B[:, 0]), order)
    assert len(expected) == order
    found = hsv.hankel_norm_approximation(sys, order).system.poles()
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), rtol=1e-11)


class TestRealSystems:
    @pytest.mark.parametrize("dt", [0, True])
    def test_real_poles_with_residues_of_both_signs(self, dt, rng):
        """The optimal poles may be complex: they come in exact pairs, and the transfer function is real."""
        poles = rng.uniform(-0.9, 0.95, 12) if dt else -np.geomspace(0.01, 10, 12)
        sys = siso(poles, rng.normal(size=12), dt)
        paired = 0
        for r in range(1, 8):
            red = hsv.hankel_norm_approximation(sys, r).system
            assert set(red.poles().tolist()) == set(red.poles().conj().tolist())
            paired += int(np.any(red.poles().imag != 0))
            assert red.D.imag == 0
            response = red.frequency_response(np.array([-1.3, 1.3]))[:, 0, 0]
            np.testing.assert_allclose(response[0], response[1].conj(), rtol=1e-12)
        assert paired

    def test_the_real_part_of_a_complex_system(self, rng):
        sys = hsv.real_part(spread(rng, 6, True))
        sigma = hsv.hankel_singular_values(sys)
        for r in (2, 5, 11):
            red = hsv.hankel_norm_approximation(sys, r)
            np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[r], rtol=1e-8, atol=1e-13 * sigma[0])
            assert set(red.system.poles().tolist()) == set(red.system.poles().conj().tolist())


class TestWhatIsParticular:
    def test_equal_values_at_the_cut(self):
        """An impulse response of odd samples alone has every Hankel value twice; one state of a pair gains nothing."""
        sys = siso(np.array([0.9, -0.9, 0.5, -0.5]), np.array([1.0, -1.0, 2.0, -2.0]), True)
        sigma = hsv.hankel_singular_values(sys)
        np.testing.assert_allclose(sigma[::2], sigma[1::2])
        red = hsv.hankel_norm_approximation(sys, 2)
        assert isinstance(red.system, hsv.DiagonalStateSpace)
        np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[2], rtol=1e-9)
        with pytest.warns(hsv.OrderWarning) as warned:
            inside = hsv.hankel_norm_approximation(sys, 3)
        messages = [str(w.message) for w in warned]
        assert any("splits a cluster" in m for m in messages)
        assert any("the order is 2 instead of 3" in m for m in messages)
        assert int(inside.orders) == 2
        np.testing.assert_allclose(np.sort_complex(inside.select().system.poles()), np.sort_complex(red.system.poles()))

    def test_equal_poles_and_states_without_a_residue(self, rng):
        plain = spread(rng, 5, True)
        more = np.concatenate([plain.poles(), plain.poles()[:2], [0.5, 0.7]])
        B = np.concatenate([plain.B[:, 0], [1.0, 2.0, 0.0, 1.0]])[:, None]
        C = np.concatenate([plain.C[0], [0.5, -0.25, 1.0, 0.0]])[None]
        sys = hsv.DiagonalStateSpace(more, B, C, dt=True)
        merged = hsv.DiagonalStateSpace(
            plain.poles(), np.ones((5, 1)), plain.C * plain.B.T + [[0.5, -0.5, 0, 0, 0]], dt=True
        )
        w = np.linspace(-3, 3, 7)
        for r in (2, 5):
            found, expected = (hsv.hankel_norm_approximation(s, r).system for s in (sys, merged))
            np.testing.assert_allclose(found.frequency_response(w), expected.frequency_response(w), rtol=1e-10)
        np.testing.assert_allclose(np.sort_complex(found.poles()), np.sort_complex(plain.poles()))

    def test_all_states_are_the_system_itself(self, rng):
        sys = spread(rng, 4, 0)
        red = hsv.hankel_norm_approximation(sys, 4)
        assert set(red.system.poles().tolist()) == set(sys.poles().tolist())
        np.testing.assert_allclose((red.system.C * red.system.B.T).sum(), (sys.C * sys.B.T).sum())

    def test_the_numerical_minimal_order(self):
        """Values of which double precision holds 12: the thirteenth state is not to be had, and the rest lose nothing but rounding."""
        sys = relaxation(24, True)
        with pytest.warns(hsv.OrderWarning, match="capped at"):
            red = hsv.hankel_norm_approximation(sys, 24)
        assert int(red.orders) < 20
        sigma = hsv.hankel_singular_values(sys)
        # and the distance of its poles to the circle is rounded too
        assert exact_error(sys, red.system) <= sigma[int(red.orders)] * (1 + 1e-5) + 2 * rounding(sys, sigma)

    def test_an_error_below_rounding_is_refused(self, rng, monkeypatch):
        """What the check is for: a con-eigenvector with an error of 1e-6."""
        sys = relaxation(8, True)
        for module, name in ((_con_eigenvalues, "approximate"), (_hankel_norm, "_approximate_by_balancing")):
            right = getattr(module, name)

            def wrong(system, order, right=right):
                kept = right(system, order)
                return kept._replace(residues=kept.residues * (1 + 1e-6))

            monkeypatch.setattr(module, name, wrong)
        hsv.hankel_norm_approximation(sys, 1)  # its error is far above 1e-6 of the largest value
        with pytest.raises(hsv.IllConditionedError, match=r"of order 5 has an error of .* where .* is the least"):
            hsv.hankel_norm_approximation(sys, 5)
        batch = hsv.DiagonalStateSpace(np.stack([sys.poles()] * 2), sys.B, sys.C, dt=True)
        with pytest.raises(hsv.IllConditionedError, match=r"of system \(0,\) of order 5"):
            hsv.hankel_norm_approximation(batch, 5)

    def test_poles_close_to_the_unit_circle(self, rng):
        """By their logarithms, the closest at 1 - 1e-9."""
        logs = -np.geomspace(1e-9, 0.5, 12) + 1j * rng.uniform(-3, 3, 12)
        sizes = (-logs.real) ** 0.4
        sys = hsv.DiagonalStateSpace.from_log_poles(logs, sizes[:, None], sizes[None] + 0j)
        sigma = hsv.hankel_singular_values(sys)
        for r in (1, 4, 9):
            red = hsv.hankel_norm_approximation(sys, r)
            assert np.all(red.system.log_poles.real < 0)
            # small coordinates of v have the rounding errors of its large ones, and count where poles are close to the circle
            np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[r], rtol=1e-5)

    def test_a_large_system(self, rng):
        sys = spread(rng, 200, True)
        sigma = hsv.hankel_singular_values(sys)
        red = hsv.hankel_norm_approximation(sys, 60)
        np.testing.assert_allclose(hsv.hankel_norm(sys - red.system), sigma[60], rtol=1e-8)

    def test_nothing_to_keep(self):
        sys = hsv.DiagonalStateSpace([0.5, 0.1], [[0.0], [1.0]], [[1.0, 0.0]], [[2.0]], dt=True)
        with pytest.warns(hsv.OrderWarning, match="all Hankel singular values are zero"):
            red = hsv.hankel_norm_approximation(sys, 1)
        assert int(red.orders) == 0
        np.testing.assert_allclose(red.system.frequency_response([0.3]), [[[2.0]]])

    def test_a_pole_where_the_real_line_is(self):
        """G = 1 / (z - 1/2) + 1 / (z + 1/2) = 2 z / (z^2 - 1/4): even samples alone; order 1 by hand.

        The Hankel matrix has the blocks (2, 1/2, ...) and (1/2, ...): values 2 / (1 - 1/16) and a quarter of it, and v of the second is z / (1 - z^2 / 4).
        """
        sys = hsv.DiagonalStateSpace([0.5, -0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
        red = hsv.hankel_norm_approximation(sys, 1)
        np.testing.assert_allclose(red.hankel_singular_values, [32 / 15, 8 / 15])
        np.testing.assert_allclose(red.system.poles(), [0], atol=1e-14)
        np.testing.assert_allclose(red.system.C * red.system.B, [[32 / 15]])


class TestArrays:
    @pytest.mark.parametrize("dt", [0, True])
    def test_batches_of_different_orders(self, dt, rng):
        each = [spread(rng, 6, dt) for _ in range(4)]
        sys = hsv.DiagonalStateSpace(
            *(np.stack(x) for x in zip(*((s.poles(), s.B, s.C) for s in each), strict=True)), dt=dt
        )
        values = np.sort(hsv.hankel_singular_values(sys)[:, 3] / hsv.hankel_singular_values(sys)[:, 0])
        rule = hsv.Threshold(0.5 * (values[1] + values[2]))
        red = hsv.hankel_norm_approximation(sys, rule)
        assert len(set(red.orders.tolist())) > 1
        w = np.linspace(-3, 3, 7)
        for i, one in enumerate(each):
            expected = hsv.hankel_norm_approximation(one, rule).system.frequency_response(w)
            np.testing.assert_allclose(red.select(i).system.frequency_response(w), expected, rtol=1e-9)
            np.testing.assert_allclose(red.system.frequency_response(w)[i], expected, rtol=1e-9)
        padding = red.system.poles()[red.orders < red.orders.max()][:, -1]
        np.testing.assert_array_equal(padding, 0 if dt else -1)

    def test_tensors_in_single_precision(self, rng):
        host = spread(rng, 5, True)
        parts = [torch.asarray(x).to(torch.complex64) for x in (host.poles(), host.B, host.C)]
        sys = hsv.DiagonalStateSpace(*parts, dt=True)
        red = hsv.hankel_norm_approximation(sys, 2)
        assert red.system.B.dtype == red.system.D.dtype == red.system.poles().dtype == torch.complex64
        assert red.hankel_singular_values.dtype == torch.float32
        assert red.orders.dtype == torch.int64
        expected = hsv.hankel_norm_approximation(host, 2).system
        np.testing.assert_allclose(
            np.sort_complex(red.system.poles().numpy()), np.sort_complex(expected.poles()), rtol=1e-5
        )

    def test_a_pole_that_single_precision_cannot_hold(self):
        poles, ones = np.array([1 - 1e-9, 0.5, 0.1j]), np.ones((3, 1))
        sys = hsv.DiagonalStateSpace(poles, ones, ones.T, dt=True)
        reduced = hsv.hankel_norm_approximation(sys, 1).system
        single = hsv.DiagonalStateSpace(*(x.astype(np.complex64) for x in (poles * (1 - 1e-7), ones, ones.T)), dt=True)
        assert abs(reduced.poles()[0]) > 1 - 1e-8
        with pytest.raises(hsv.OrderError, match="closer to the stability boundary than its precision"):
            _hankel_norm._check_poles(
                hsv.DiagonalStateSpace(np.ones(1, np.complex64), ones[:1], ones[:1], dt=True), np.array(1)
            )
        assert np.all(np.abs(hsv.hankel_norm_approximation(single, 1).system.poles()) < 1)

    def test_unstable_and_impossible(self):
        with pytest.raises(hsv.UnstableSystemError):
            hsv.hankel_norm_approximation(hsv.DiagonalStateSpace([1.1], [[1.0]], [[1.0]], dt=True), 1)
        with pytest.raises(hsv.OrderError):
            hsv.hankel_norm_approximation(hsv.DiagonalStateSpace([0.1], [[1.0]], [[1.0]], dt=True), 2)


def test_the_check_itself(rng):
    """Against ball arithmetic, where both systems differ by 1e-12."""
    sys = spread(rng, 6, True)
    plain = minimal_system(sys)
    near = PoleResidueForm(plain.poles, plain.residues * (1 + 1e-12 * rng.normal(size=6)))
    roots = np.sqrt(near.residues)
    reduced = hsv.DiagonalStateSpace(near.poles, roots[:, None], roots[None], dt=True)
    found = hankel_norm_of_difference(plain, near)
    assert 0 < found < 1e-11 * hsv.hankel_norm(sys)
    np.testing.assert_allclose(found, hsv.hankel_norm(sys - reduced), rtol=1e-3)
    assert hankel_norm_of_difference(plain, PoleResidueForm(plain.poles, plain.residues)) == 0


@given(seed=st.integers(0, 2**20), n=st.integers(1, 12), discrete=st.booleans(), complex_=st.booleans())
def test_random_systems_of_every_bad_kind(seed, n, discrete, complex_):
    """Poles from 1e-5 of the boundary on, some equal or nearly so, residues over twelve orders of magnitude: the error is the least one, or it is said."""
    rng = np.random.default_rng(seed)
    margin, phase = 10 ** rng.uniform(-5, 0, n), rng.uniform(-3, 3, n) * 10 ** rng.uniform(-3, 0)
    poles = (1 - margin) * np.exp(1j * phase) if discrete else margin * 10 ** rng.uniform(-3, 3) * (-1 + 1j * phase)
    poles = poles if complex_ else poles.real
    kind = rng.integers(4)
    if kind == 1:
        poles[: n // 2] = poles[n - n // 2 :]
    if kind == 2:
        poles[-1] = poles[0] * (1 - 1e-13)
    residues = rng.normal(size=n) * (10.0 ** rng.uniform(-6, 6, n) if kind == 3 else 1.0)
    sys = siso(poles, residues, True if discrete else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        try:
            red = hsv.hankel_norm_approximation(sys, int(rng.integers(1, n + 1)))
        except hsv.IllConditionedError:
            return  # one in five hundred
    sigma, order = red.hankel_singular_values, int(red.orders)
    least = sigma[order] if order < n else 0.0
    assert np.all(np.abs(red.system.poles()) < 1 if discrete else red.system.poles().real < 0)
    # poles at 1e-5 of the boundary are stored with eleven digits of their distance to it
    assert exact_error(sys, red.system) <= least * (1 + 2e-5) + 1e-9 * sigma[0]
