import warnings
from fractions import Fraction

import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hsv
from hsv import time_varying as tv
from tests.hsv.time_varying.test_gramians import KINDS, as_dense, hermitian, random_sequence
from tests.hsv.time_varying.test_hankel import input_output_matrix


def maps(A, B, C, *, layer_convention=False):
    """The whole map from inputs to outputs of each dense system of a batch, ``(batch, T p, T m)``."""
    size, T, n, m = B.shape
    p = C.shape[-2]
    G, X = np.zeros((size, T, p, T * m), np.result_type(A, B, C)), np.zeros((size, n, T * m), np.result_type(A, B, C))
    for t in range(T):
        if not layer_convention:
            G[:, t] = C[:, t] @ X
        X = A[:, t] @ X
        X[:, :, t * m : (t + 1) * m] += B[:, t]
        if layer_convention:
            G[:, t] = C[:, t] @ X
    return G.reshape(size, T * p, T * m)


def worst_gain(A, B, C, red, *, layer_convention=False):
    """Norm of the error and of the full map for each system of a batch; the first is what the worst input of all does."""
    kind = KINDS[B.ndim - A.ndim]
    full = maps(as_dense(A, B.shape[-2], kind), B, C, layer_convention=layer_convention)
    small = maps(as_dense(red.A, red.B.shape[-2], kind), red.B, red.C, layer_convention=layer_convention)
    return tuple(np.linalg.norm(x, 2, axis=(-2, -1)) for x in (full - small, full))


def assert_certified(A, B, C, red, *, layer_convention=False):
    """Both inequalities for every t, and the bound from P and Q alone."""
    n, kind = B.shape[-2], KINDS[B.ndim - A.ndim]
    dense = as_dense(A, n, kind)
    later = np.concatenate([dense[..., 1:, :, :], 0 * dense[..., :1, :, :]], axis=-3) if layer_convention else dense
    P, Q = red.P[..., None, :, :], red.Q[..., None, :, :]
    for X, slack in (
        (P, P - dense @ P @ hermitian(dense) - B @ hermitian(B)),
        (Q, Q - hermitian(later) @ Q @ later - hermitian(C) @ C),
    ):
        assert (np.linalg.eigvalsh(slack) >= -1e-13 * np.abs(X).max((-2, -1))[..., None]).all()
    # Block diagonal, and the bound from the blocks of what is cut off.
    onto = red.right @ hermitian(red.left)
    beside = np.eye(n) - onto
    blocks = []
    for X, projection in ((red.P, beside), (red.Q, hermitian(beside))):
        scale = np.abs(X).max((-2, -1)) * np.abs(onto).max((-2, -1)).clip(1) ** 2
        mixed = (np.eye(n) - projection) @ X @ hermitian(projection)
        assert (np.abs(mixed).max((-2, -1)) <= 1e-12 * scale).all()
        blocks.append(projection @ X @ hermitian(projection))
    values = np.sort(np.sqrt(np.abs(np.linalg.eigvals(blocks[0] @ blocks[1]))), axis=-1)[..., ::-1]
    there = np.arange(n) < n - np.asarray(red.orders)[..., None]
    bound = 2 * (values * there).sum(-1)
    # P and Q are rounded where they are large, in what is kept, and the values are square roots
    sizes = [[np.abs(X).max((-2, -1)) for X in pair] for pair in ((red.P, red.Q), blocks)]
    rounding = 1e-7 * (np.sqrt(sizes[0][0] * sizes[1][1]) + np.sqrt(sizes[1][0] * sizes[0][1]))
    rounding = (rounding + 1e-12 * np.sqrt(sizes[0][0] * sizes[0][1])) * np.abs(onto).max((-2, -1)).clip(1) ** 2
    assert (np.abs(bound - red.error_bound) <= 1e-9 * red.error_bound + rounding).all()


def random_batch(rng, size, kind, *, complex_):
    """Sequences of one shape and of many characters: slow and fast, smooth and rough in time, with strong and weak states."""
    T, n = int(rng.integers(2, 40)), int(rng.integers(2, 7))
    m, p = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=m, p=p, batch=(size,), complex_=complex_)
    per_system = (size,) + (1,) * (A.ndim - 1)
    modulus = 1 - 10.0 ** -rng.uniform(0.1, 1.5, A.shape)
    constant = rng.random(per_system) < 0.3  # such as a time-invariant system
    phase = np.where(rng.random(per_system) < 0.5, 1.0, A / np.abs(A))  # decays, as in layers, or anything
    A = phase * np.where(constant, modulus[:, :1], modulus)
    A = np.where(constant, A[:, :1], A)
    frozen = rng.random((size, 1, 1, 1)) < 0.3
    B, C = np.where(frozen, B[:, :1], B), np.where(frozen, C[:, :1], C)
    strength = 10.0 ** -(rng.uniform(0, 3, (size, 1, 1, 1)) * np.linspace(0, 1, n)[:, None])
    return A, B * strength, C * np.swapaxes(strength, -1, -2)


def tightness(rng, systems, per_batch):
    """Error over bound for that many random reductions; every one is checked."""
    ratios = {"scalar": [], "diagonal": []}
    for k in range(systems // per_batch):
        kind, complex_, layer_convention = KINDS[1 + k % 2], bool(k // 2 % 2), bool(k // 4 % 2)
        A, B, C = random_batch(rng, per_batch, kind, complex_=complex_)
        r = int(rng.integers(1, B.shape[-2]))
        with warnings.catch_warnings():  # constant B_t and one input have a certificate of rank one
            warnings.simplefilter("ignore", hsv.OrderWarning)
            red = tv.certified_truncation(A, B, C, r, layer_convention=layer_convention)
        error, gain = worst_gain(A, B, C, red, layer_convention=layer_convention)
        assert (error <= red.error_bound + 1e-13 * gain).all()
        assert_certified(A, B, C, red, layer_convention=layer_convention)
        lossy = red.error_bound > 1e-9 * gain  # the others are rounding errors on both sides
        ratios[kind].append(error[lossy] / red.error_bound[lossy])
    return {kind: np.concatenate(values) for kind, values in ratios.items()}


def test_certificates_hold_on_random_reductions(rng):
    ratios = tightness(rng, 320, 20)
    assert all(r.max() <= 1 for r in ratios.values())


@pytest.mark.slow
def test_certificates_hold_on_ten_thousand_random_reductions(rng):
    """Prints what the page on time-varying systems quotes (``-s``)."""
    ratios = tightness(rng, 10_000, 50)
    assert sum(map(len, ratios.values())) > 8_000
    for kind, values in ratios.items():
        shares = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95, 1])
        print(f"\n{kind}: error / bound, 5 25 50 75 95 100 %: {np.array2string(shares, precision=3)}", end="")
        assert values.max() <= 1
        assert np.quantile(values, 0.95) > 0.1  # there are systems on which little is given away


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_no_input_that_power_iteration_finds_breaks_the_bound(kind, rng):
    """Long sequences: the error operator and its adjoint by simulation, from several starts."""
    T, n, r, starts = 120, 6, 3, 4
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=2, p=1, complex_=False, size=0.999)
    red = tv.certified_truncation(A, B, C, r)
    systems = [(as_dense(A, n, kind), B, C), (as_dense(red.A, r, kind), red.B, red.C)]

    def forward(u):
        total = 0
        for sign, (a, b, c) in zip((1, -1), systems, strict=True):
            x, ys = np.zeros((a.shape[-1], starts)), []
            for t in range(T):
                ys.append(c[t] @ x)
                x = a[t] @ x + b[t] @ u[t]
            total = total + sign * np.array(ys)
        return total

    def adjoint(y):
        total = 0
        for sign, (a, b, c) in zip((1, -1), systems, strict=True):
            x, us = np.zeros((a.shape[-1], starts)), []
            for t in reversed(range(T)):
                us.append(b[t].T @ x)
                x = a[t].T @ x + c[t].T @ y[t]
            total = total + sign * np.array(us[::-1])
        return total

    u, y = rng.normal(size=(T, 2, starts)), rng.normal(size=(T, 1, starts))
    np.testing.assert_allclose((forward(u) * y).sum((0, 1)), (u * adjoint(y)).sum((0, 1)), rtol=1e-9)
    for _ in range(30):
        u = adjoint(forward(u))
        u = u / np.linalg.norm(u, axis=(0, 1))
    found = np.linalg.norm(forward(u), axis=(0, 1)).max()
    exact, _ = worst_gain(A[None], B[None], C[None], red_of_one(red))
    assert 0.9 * exact[0] <= found <= exact[0] * (1 + 1e-9)
    assert found <= red.error_bound


def red_of_one(red):
    """The same reduction as a batch of one."""
    fields = ("A", "B", "C", "orders", "certified_values", "error_bound", "left", "right", "P", "Q")
    return tv.CertifiedReduction(**{name: np.asarray(getattr(red, name))[None] for name in fields})


@pytest.mark.parametrize("layer_convention", [False, True])
@pytest.mark.parametrize("complex_", [True, False])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_reduced_system_and_projections(kind, complex_, layer_convention, rng):
    T, n, r = 12, 5, 3
    A, B, C = random_sequence(rng, kind, T=T, n=n, m=2, p=3, complex_=complex_)
    red = tv.certified_truncation(A, B, C, r, layer_convention=layer_convention)
    assert red.B.shape == (T, r, 2)
    assert red.C.shape == (T, 3, r)
    assert red.left.shape == red.right.shape == (n, r)
    left_h = hermitian(red.left)
    np.testing.assert_allclose(left_h @ red.right, np.eye(r), atol=1e-13)
    np.testing.assert_allclose(red.B, left_h @ B, atol=1e-12)
    np.testing.assert_allclose(red.C, C @ red.right, atol=1e-12)
    np.testing.assert_allclose(as_dense(red.A, r, kind), left_h @ as_dense(A, n, kind) @ red.right, atol=1e-12)
    if kind == "diagonal":  # columns of the identity, in the order of the states
        states = np.argmax(red.left, axis=0)
        np.testing.assert_array_equal(red.left, np.eye(n)[:, states])
        np.testing.assert_array_equal(red.A, A[:, states])
        assert (np.diff(states) > 0).all()
    assert (np.diff(red.certified_values) <= 0).all()
    assert red.error_bound <= 2 * red.certified_values[r:].sum() * 1.001  # certified anew, on what is cut off
    full = tv.certified_truncation(A, B, C, n, layer_convention=layer_convention)
    error, gain = worst_gain(A[None], B[None], C[None], red_of_one(full), layer_convention=layer_convention)
    assert error < 1e-12 * gain
    assert full.error_bound < 1e-9 * gain


def test_a_certificate_bounds_every_gramian(rng):
    for kind in ("scalar", "diagonal"):
        A, B, C = random_sequence(rng, kind, T=30, batch=(3,))
        P, Q = tv.controllability_certificate(A, B), tv.observability_certificate(A, C)
        for X, gramians in ((P, tv.controllability_gramians(A, B)), (Q, tv.observability_gramians(A, C))):
            slack = np.linalg.eigvalsh(X[:, None] - gramians)
            assert (slack >= -1e-14 * np.abs(X).max()).all()
            if kind == "diagonal":
                np.testing.assert_array_equal(X, X * np.eye(4))


def is_positive_semidefinite(matrix):
    """In exact arithmetic, by elimination."""
    matrix = [list(row) for row in matrix]
    n = len(matrix)
    for k in range(n):
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and any(matrix[k][j] != 0 for j in range(k, n))):
            return False
        for i in range(k + 1, n):
            if pivot != 0:
                factor = matrix[i][k] / pivot
                matrix[i] = [x - factor * y for x, y in zip(matrix[i], matrix[k], strict=True)]
    return True


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
@pytest.mark.parametrize("character", ["random", "few inputs", "nearly parallel", "weak states"])
def test_the_inequality_holds_exactly_for_the_numbers_returned(kind, character, rng):
    T, n, m = (2 if character == "few inputs" else 7), 4, (1 if character != "random" else 2)
    for _ in range(5):
        A, B, _ = random_sequence(rng, kind, T=T, n=n, m=m, complex_=False, size=0.9999)
        if character == "nearly parallel":
            B = np.ones_like(B) + 1e-9 * B
        if character == "weak states":
            B = B * 10.0 ** -(4.0 * np.arange(n))[:, None]
        P = tv.controllability_certificate(A, B)
        exact_P, dense = [[Fraction(x) for x in row] for row in P], as_dense(A, n, kind)
        for t in range(T):
            a, b = [Fraction(x) for x in np.diag(dense[t])], [[Fraction(x) for x in row] for row in B[t]]
            slack = [
                [
                    exact_P[i][j] * (1 - a[i] * a[j]) - sum(x * y for x, y in zip(b[i], b[j], strict=True))
                    for j in range(n)
                ]
                for i in range(n)
            ]
            assert is_positive_semidefinite(slack)
    assert not is_positive_semidefinite([[Fraction(1), Fraction(2)], [Fraction(2), Fraction(1)]])


def test_ellipsoids_with_known_answers():
    def P_of(points):
        M = np.asarray(points)[:, :, None]
        return tv.controllability_certificate(np.zeros(len(M)), M)

    n = 5
    np.testing.assert_allclose(P_of(np.eye(n)), np.eye(n), atol=0.01 * n)  # around the cross-polytope
    np.testing.assert_allclose(P_of([[1, 1], [1, -1.0]]), 2 * np.eye(2), atol=0.02)  # around the square
    np.testing.assert_allclose(P_of([[1, 0], [0.5, 0.5], [0, 1], [0.1, 0.6]]), np.eye(2), atol=0.02)  # two inside
    np.testing.assert_allclose(P_of([[1, 1j], [1, -1j]]), 2 * np.eye(2), atol=0.02)
    circle = np.exp(2j * np.pi * np.arange(7) / 7)
    np.testing.assert_allclose(P_of(np.stack([circle.real, circle.imag], -1)), np.eye(2), atol=0.02)
    # one ellipsoid only: itself
    M = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    P = tv.controllability_certificate(np.zeros(4), np.broadcast_to(M, (4, 2, 3)))
    np.testing.assert_allclose(P, M @ M.T, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("complex_", [True, False])
def test_ellipsoids_have_nearly_the_least_volume(m, complex_, rng):
    """Against the bound of duality: log det S + n log n of any weights on points is at most log det P of any certificate."""
    A, B, _ = random_sequence(rng, "scalar", T=20, n=3, m=m, complex_=complex_)
    M = B / np.sqrt(1 - np.abs(A) ** 2)[:, None, None]
    angles = rng.normal(size=(m, 200)) + (1j * rng.normal(size=(m, 200)) if complex_ else 0)
    directions = np.eye(1) if m == 1 else angles / np.linalg.norm(angles, axis=0)
    points = np.moveaxis(M @ directions, 1, 0).reshape(3, -1)
    weights = np.full(points.shape[1], 1 / points.shape[1])
    for _ in range(3000):  # multiplicative updates: slow, and independent of the algorithm under test
        S = (points * weights) @ hermitian(points)
        weights = weights * np.sum((points.conj() * np.linalg.solve(S, points)).real, axis=0) / 3
    bound = np.linalg.slogdet(S)[1] + 3 * np.log(3)
    volume = np.linalg.slogdet(tv.controllability_certificate(A, B))[1]
    assert bound - 1e-6 <= volume <= bound + 3 * 0.03


def test_diagonal_certificates_with_known_answers(rng):
    # one time: sum g_i / p_i <= 1 with the least product has p_i = n g_i
    b = np.array([1.0, 2.0, 3.0])
    P = tv.controllability_certificate(np.full((1, 3), 0.5), b[None, :, None])
    np.testing.assert_allclose(np.diag(P), 3 * b**2 / 0.75, rtol=0.011)
    # states that never meet: each has its own largest value
    B = np.zeros((6, 2, 1))
    B[::2, 0, 0], B[1::2, 1, 0] = [1, 2, 3], [4, 6, 5]
    np.testing.assert_allclose(tv.controllability_certificate(np.zeros((6, 2)), B), np.diag([9, 36]), rtol=0.011)
    # a state that nothing reaches costs nothing
    B = np.array([[[1.0], [0.0]]])
    np.testing.assert_allclose(tv.controllability_certificate([[0.6, 0.9]], B), np.diag([1 / 0.64, 0]), rtol=0.011)


def test_diagonal_certificates_are_nearly_the_best(rng):
    """The convex problem in the logarithms, by SciPy's general solver."""
    from scipy.optimize import minimize

    A, B, _ = random_sequence(rng, "diagonal", T=8, n=3, m=1, complex_=False)
    g = B[:, :, 0] ** 2 / (1 - A**2)
    solution = minimize(
        np.sum,
        np.log(3 * g.max(0)),
        constraints={"type": "ineq", "fun": lambda u: -np.log((g * np.exp(-u)).sum(-1))},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    found = np.log(np.diag(tv.controllability_certificate(A, B))).sum()
    assert solution.success
    assert solution.fun - 1e-6 <= found <= solution.fun + 0.03


def test_the_shares_of_the_tail_solve_the_joint_problem(rng):
    """`_tail_axes` against SciPy's general solver of the same geometric programme."""
    from scipy.optimize import minimize

    from hsv.time_varying._certificates import _tail_axes

    M, N = rng.normal(size=(2, 1, 9, 3, 1))
    M[:, :, 2], N[:, :, 1] = 0.05 * M[:, :, 2], 0.2 * N[:, :, 1]
    p, q = _tail_axes(M, N, np.ones((1, 3), bool))
    g, h = M[0, :, :, 0] ** 2, N[0, :, :, 0] ** 2

    def constraint(x):
        return -np.log(np.concatenate([(g * np.exp(-x[:3])).sum(-1), (h * np.exp(-x[3:])).sum(-1)]))

    solution = minimize(
        lambda x: np.log(np.exp((x[:3] + x[3:]) / 2).sum()),
        np.log(np.concatenate([4 * g.max(0), 4 * h.max(0)])),
        constraints={"type": "ineq", "fun": constraint},
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert solution.success
    found = np.log(np.sqrt(p * q).sum())
    assert solution.fun - 1e-6 <= found <= solution.fun + 0.03


@pytest.mark.parametrize("rule", [hsv.Order(2), hsv.HankelSum(keep=0.9), hsv.Threshold(0.05), hsv.ErrorBound(1.0)])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_a_batch_is_its_systems_and_rules_see_the_certified_values(kind, rule, rng):
    A, B, C = random_sequence(rng, kind, T=9, n=4, m=1, p=1, batch=(2, 3), complex_=False)
    C[0] *= np.array([1, 1e-1, 1e-2, 1e-3])
    red = tv.certified_truncation(A, B, C, rule)
    np.testing.assert_array_equal(red.orders, rule.choose(red.certified_values))
    if isinstance(rule, hsv.ErrorBound):
        assert (red.error_bound <= rule.bound).all()
    for i in np.ndindex(2, 3):
        alone = tv.certified_truncation(A[i], B[i], C[i], rule)
        r = int(alone.orders)
        assert int(red.orders[i]) == r
        np.testing.assert_allclose(red.error_bound[i], alone.error_bound, rtol=0.05)
        np.testing.assert_array_equal(red.B[i][:, r:], 0)
        np.testing.assert_array_equal(red.C[i][:, :, r:], 0)
        np.testing.assert_array_equal(red.left[i][:, r:], 0)
        error, gain = worst_gain(A[i][None], B[i][None], C[i][None], red_of_one(alone))
        assert error <= alone.error_bound + 1e-14 * gain


def test_a_time_invariant_system_is_certified_too(rng):
    """One pole, one input: the certificate is the Gramian, and cutting the weak output direction costs what balanced truncation says."""
    A, B, C = np.full(50, 0.8), np.tile([[1.0], [0.0]], (50, 1, 1)), np.tile([[1.0, 0.3]], (50, 1, 1))
    red = tv.certified_truncation(A, B, C, 1)
    G = input_output_matrix(as_dense(A, 2, "scalar"), B, C, layer_convention=False)
    Gr = input_output_matrix(as_dense(red.A, 1, "scalar"), red.B, red.C, layer_convention=False)
    np.testing.assert_allclose(Gr, G, atol=1e-9)  # the second state is not reached at all
    assert red.error_bound < 1e-9
    np.testing.assert_allclose(red.certified_values[0], 1 / 0.36, rtol=1e-2)


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_every_library_gives_the_numbers_of_numpy(kind, library, rng):
    arrays = random_sequence(rng, kind, T=6, batch=(2,))
    expected = tv.certified_truncation(*arrays, 2)
    given = [library.asarray(x) for x in arrays]
    red = tv.certified_truncation(*given, 2)

    def host(x):
        return np.asarray(x) if library is torch else np.from_dlpack(x)

    fields = ("A", "B", "C", "orders", "certified_values", "error_bound", "left", "right", "P", "Q")
    assert {type(getattr(red, name)) for name in fields} == {type(given[0])}
    # A last digit of the input decides ties between points, so that the search may stop elsewhere within its gap of 1 %.
    for name in ("certified_values", "error_bound"):
        np.testing.assert_allclose(host(getattr(red, name)), getattr(expected, name), rtol=0.02, err_msg=name)
    ours = tv.CertifiedReduction(**{name: host(getattr(red, name)) for name in fields})
    assert_certified(*arrays, ours)
    error, _ = worst_gain(*arrays, ours)
    assert (error <= ours.error_bound).all()
    P = tv.controllability_certificate(*given[:2])
    assert type(P) is type(given[0])
    np.testing.assert_allclose(host(P), tv.controllability_certificate(*arrays[:2]), rtol=0.05, atol=0.05)


def test_single_precision_is_certified_in_double(rng):
    A, B, C = (x.astype(np.float32) for x in random_sequence(rng, "diagonal", complex_=False))
    red = tv.certified_truncation(A, B, C, 2)
    assert red.A.dtype == red.B.dtype == red.C.dtype == red.left.dtype == np.float32
    assert red.P.dtype == red.Q.dtype == red.error_bound.dtype == red.certified_values.dtype == np.float64
    assert tv.controllability_certificate(A, B).dtype == np.float64
    wide = tv.certified_truncation(*(x.astype(float) for x in (A, B, C)), 2)
    np.testing.assert_array_equal(red.P, wide.P)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from(["scalar", "diagonal"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_inputs_are_left_alone_and_small_systems_work(T, n, m, kind, layer_convention, seed):
    A, B, C = random_sequence(np.random.default_rng(seed), kind, T=T, n=n, m=m)
    copies = A.copy(), B.copy(), C.copy()
    red = tv.certified_truncation(A, B, C, 1, layer_convention=layer_convention)
    for array, copy in zip((A, B, C), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    error, gain = worst_gain(A[None], B[None], C[None], red_of_one(red), layer_convention=layer_convention)
    assert error <= red.error_bound + 1e-13 * gain


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_an_empty_batch_is_a_batch(kind):
    A = np.zeros((0, 3) if kind == "scalar" else (0, 3, 2))
    B, C = np.zeros((0, 3, 2, 1)), np.zeros((0, 3, 1, 2))
    assert tv.controllability_certificate(A, B).shape == (0, 2, 2)
    red = tv.certified_truncation(A, B, C, 1)
    assert red.B.shape == (0, 3, 1, 1)
    assert red.error_bound.shape == (0,)


def test_steps_that_only_hold_the_state_are_allowed(rng):
    """|a_t| = 1 with nothing in and nothing out, as in padded sequences."""
    for kind in ("scalar", "diagonal"):
        A, B, C = random_sequence(rng, kind, T=8)
        A[5:], B[5:], C[5:] = 1.0, 0.0, 0.0
        held, plain = tv.certified_truncation(A, B, C, 2), tv.certified_truncation(A[:5], B[:5], C[:5], 2)
        np.testing.assert_allclose(held.error_bound, plain.error_bound, rtol=1e-2)


def test_where_there_is_no_certificate(rng):
    A, B, C = random_sequence(rng, "dense")
    for call in (
        lambda: tv.controllability_certificate(A, B),
        lambda: tv.observability_certificate(A, C),
        lambda: tv.certified_truncation(A, B, C, 1),
    ):
        with pytest.raises(hsv.HsvError, match="no certificate is known for a dense A"):
            call()
    A, B, C = random_sequence(rng, "scalar", batch=(2,), complex_=False)
    A[1, 3] = -1.25
    with pytest.raises(hsv.UnstableSystemError, match=r"modulus below 1 .* found 1.25 at index \(1, 3\)"):
        tv.controllability_certificate(A, B)
    A, B, C = random_sequence(rng, "diagonal", complex_=False)
    A[3, 2] = 1.0
    with pytest.raises(hsv.UnstableSystemError, match=r"found 1 at index \(3, 2\)"):
        tv.certified_truncation(A, B, C, 1)
    with pytest.raises(hsv.UnstableSystemError, match="1 where C is zero"):
        tv.observability_certificate(A, C)
    B[3, 2] = 0
    assert np.isfinite(tv.controllability_certificate(A, B)).all()


def test_what_is_asked_in_vain(rng):
    A, B, C = random_sequence(rng, "scalar", T=6, n=4)
    with pytest.raises(hsv.OrderError, match=r"must be in \[1, 4\]"):
        tv.certified_truncation(A, B, C, 5)
    with pytest.raises(hsv.DtypeError, match="rule must be"):
        tv.certified_truncation(A, B, C, 0.5)
    for kind in ("scalar", "diagonal"):
        A, B, C = random_sequence(rng, kind, T=6, n=4)
        with pytest.warns(hsv.OrderWarning, match="all certified values are zero"):
            red = tv.certified_truncation(A, 0 * B, C, 2)
        assert int(red.orders) == 0
        assert float(red.error_bound) == 0
        np.testing.assert_array_equal(red.B, np.zeros((6, 1, 2)))
    A, B, C = random_sequence(rng, "diagonal", T=6, n=4)
    B[:, 2:] = 0
    with pytest.warns(hsv.OrderWarning, match="capped at 2 instead of 3"):
        tv.certified_truncation(A, B, C, 3)
    with pytest.raises(hsv.ShapeError, match="along time"):
        tv.certified_truncation(A[1:], B, C, 2)
    with pytest.raises(hsv.NonFiniteError, match="B must be finite"):
        tv.certified_truncation(A, np.nan * B, C, 2)
