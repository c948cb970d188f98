import itertools

import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from hsv import time_varying as tv
from hsv._array import to_host
from hsv._kernels import _threads
from tests.hsv.time_varying.test_estimator import assert_same_state, random_mask
from tests.tolerances import tolerance

NAMES = ("delta", "B", "C", "x", "weight")


def random_layer(rng, *, d=3, n=4, T=24, batch=5, dtype=float):
    """A, and the recorded arrays of `batch` sequences."""
    A = -np.exp(rng.normal(size=(d, n)))
    delta = np.exp(rng.normal(size=(batch, T, d)) - 2)
    B, C = rng.normal(size=(2, batch, T, n))
    x, weight = rng.normal(size=(2, batch, T, d))
    return A.astype(dtype), {k: v.astype(dtype) for k, v in zip(NAMES, (delta, B, C, x, weight), strict=True)}


def sums(A, data, mask, *, inputs, window=None):
    """P, Q of each channel and h^2 (weight C)^2, means over the steps that count: every pair of steps on its own."""
    (d, n), steps = A.shape, mask.sum()
    P, Q, product = np.zeros((d, n, n)), np.zeros((d, n, n)), np.zeros((d, n))
    for i in range(len(mask)):
        delta, B, C, x, weight = (data[k][i, mask[i]] for k in NAMES)
        T = len(delta)
        block = T if window is None else (window + 1) // 2
        for c in range(d):
            for t in range(T):
                pulses = [np.exp(A[c] * delta[s + 1 : t + 1, c].sum()) * delta[s, c] * B[s] for s in range(t + 1)]
                if inputs == "white":
                    now = sum(np.outer(h, h) for h in pulses)
                else:
                    h = sum(pulse * x[s, c] for s, pulse in enumerate(pulses))
                    now = np.outer(h, h)
                P[c] += now
                product[c] += np.diag(now) * (weight[t, c] * C[t]) ** 2
                end = T if window is None else min(t // block * block + window, T)
                for s in range(t, end):
                    g = np.exp(A[c] * delta[t + 1 : s + 1, c].sum()) * weight[s, c] * C[s]
                    Q[c] += np.outer(g, g)
    return P / steps, Q / steps, product / steps


def filled(A, data, mask=None, **options):
    est = tv.SelectiveEstimator(A, **options)
    est.update(**data, mask=mask)
    return est


def diagonal(gramians):
    return np.diagonal(gramians, axis1=-2, axis2=-1)


@pytest.mark.parametrize("inputs", ["recorded", "white"])
@pytest.mark.parametrize("window", [None, 1, 6, 7, 100])
def test_against_every_pair_of_steps(window, inputs, rng):
    A, data = random_layer(rng)
    mask = random_mask(5, 24)
    est = filled(A, data, mask, gramians=("channel",), inputs=inputs, window=window)
    P, Q, product = sums(A, data, mask, inputs=inputs, window=window)
    p, q = est.diagonal_gramians()
    expected = {
        "p": (p, diagonal(P)),
        "q": (q, diagonal(Q)),
        "P": (est.channel_gramians()[0], P),
        "Q": (est.channel_gramians()[1], Q),
        "shared P": (est.shared_gramians()[0], P.sum(axis=0)),
        "shared Q": (est.shared_gramians()[1], Q.sum(axis=0)),
        "hankel": (est.scores(), np.sqrt((diagonal(P) * diagonal(Q)).sum(axis=0))),
        "hankel of channels": (est.scores(per_channel=True), np.sqrt(diagonal(P) * diagonal(Q))),
        "ghost": (est.scores("ghost"), np.sqrt(product.sum(axis=0))),
        "ghost of channels": (est.scores("ghost", per_channel=True), np.sqrt(product)),
        "second moment": (est.scores("second_moment"), np.sqrt(diagonal(P).sum(axis=0))),
    }
    for name, (ours, exact) in expected.items():
        np.testing.assert_allclose(ours, exact, atol=tolerance(float) * np.abs(exact).max(), err_msg=name)
    shared = filled(A, data, mask, gramians=("shared",), inputs=inputs, window=window)
    np.testing.assert_allclose(shared.shared_gramians(), est.shared_gramians(), rtol=1e-10, atol=1e-12)
    plain = filled(A, data, mask, inputs=inputs, window=window)
    np.testing.assert_array_equal(plain.diagonal_gramians(), est.diagonal_gramians())


def test_against_the_exact_gramians_of_the_frozen_systems(rng):
    """P[t+1] of (A, B) and Q[t] of (A[1:], C) are the layer's pair; a channel is a sequence of its own there."""
    A, data = random_layer(rng)
    del data["x"], data["weight"]
    est = filled(A, data, gramians=("channel",), inputs="white")
    At, Bt, Ct = tv.mamba_system(A, data["delta"], data["B"], data["C"])
    P = tv.controllability_gramians(At, Bt)[..., 1:, :, :]
    Q = tv.observability_gramians(np.concatenate([At[..., 1:, :], At[..., :1, :]], axis=-2), Ct)[..., :-1, :, :]
    ours = est.channel_gramians()
    np.testing.assert_allclose(ours[0], P.mean(axis=(0, 2)), atol=tolerance(float) * np.abs(P).max())
    np.testing.assert_allclose(ours[1], Q.mean(axis=(0, 2)), atol=tolerance(float) * np.abs(Q).max())
    one = tv.GramianEstimator(window=5)
    one.update(At[:, 0], Bt[:, 0], Ct[:, 0])
    short = filled(A, data, inputs="white", window=5)
    for kind in ("hankel", "ghost", "second_moment"):
        np.testing.assert_allclose(short.scores(kind, per_channel=True)[0], one.scores(kind), rtol=1e-11)
        np.testing.assert_allclose(
            short.standard_error(kind, per_channel=True)[0], one.standard_error(kind), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("inputs", ["recorded", "white"])
def test_random_signs_converge_to_the_exact_gramians(inputs, rng):
    """The same sequences with 400 seeds: the mean is within five of its own standard errors of the exact recursion, everywhere."""
    A, data = random_layer(rng, d=2, T=12, batch=2)
    exact = filled(A, data, gramians=("channel",), inputs=inputs).channel_gramians()
    options = {"gramians": ("channel",), "inputs": inputs, "exact": False}
    draws = [filled(A, data, seed=k, **options).channel_gramians() for k in range(400)]
    for k, name in ((0, "P"), (1, "Q")):
        sample = np.stack([draw[k] for draw in draws])
        error = sample.std(axis=0, ddof=1) / np.sqrt(len(draws))
        if name == "P" and inputs == "recorded":
            np.testing.assert_allclose(sample, np.broadcast_to(exact[k], sample.shape), rtol=1e-10, atol=1e-12)
            continue
        assert np.all(error > 0)
        assert np.all(np.abs(sample.mean(axis=0) - exact[k]) < 5 * error), name


def test_the_signs_depend_on_the_seed_and_on_the_number_of_the_sequence_alone(rng):
    A, data = random_layer(rng)
    options = {"gramians": ("shared",), "exact": False}
    whole = filled(A, data, **options)
    again = tv.SelectiveEstimator(A, **options)
    for i in range(5):
        again.update(**{k: v[i : i + 1] for k, v in data.items()})
    assert_same_state(whole, again, rtol=tolerance(float))
    assert not np.allclose(filled(A, data, seed=1, **options).shared_gramians()[1], whole.shared_gramians()[1])


def test_a_time_invariant_system_gives_the_time_invariant_answer(rng):
    A, data = random_layer(rng, batch=2, T=600)
    data = {k: np.broadcast_to(v[:1, :1], v.shape).copy() for k, v in data.items()}
    data["delta"] += 0.1
    est = filled(A, data, gramians=("channel",), inputs="white")
    sys = est.mean_system()
    np.testing.assert_allclose(sys.poles(), np.exp(A * data["delta"][0, 0, :, None]), rtol=tolerance(float))
    assert sys.batch_shape == (3,)
    finite = np.mean([hsv.controllability_gramian(sys, k) for k in range(1, 601)], axis=0)
    np.testing.assert_allclose(est.channel_gramians()[0], finite, atol=1e-11 * np.abs(finite).max())
    weighted = hsv.DiagonalStateSpace(sys.poles(), sys.B, sys.C * data["weight"][0, 0, :, None, None], dt=True)
    finite = np.mean([hsv.observability_gramian(weighted, k) for k in range(1, 601)], axis=0)
    np.testing.assert_allclose(est.channel_gramians()[1], finite, atol=1e-11 * np.abs(finite).max())
    continuous = est.mean_continuous_system()
    assert continuous.dt == 0
    np.testing.assert_array_equal(continuous.poles(), A)
    np.testing.assert_allclose(continuous.B * data["delta"][0, 0, :, None, None], sys.B, rtol=tolerance(float))
    np.testing.assert_allclose(est.mean_step(), data["delta"][0, 0], rtol=tolerance(float))


def test_mean_surrogate(rng):
    A, data = random_layer(rng)
    mask = random_mask(5, 24)
    est = filled(A, data, mask)
    delta, B, C = (data[k][mask] for k in ("delta", "B", "C"))  # (steps, ...)
    sys = est.mean_system()
    np.testing.assert_allclose(sys.poles(), np.exp(delta[:, :, None] * A).mean(axis=0), rtol=tolerance(float))
    np.testing.assert_allclose(sys.B[..., 0], (delta[:, :, None] * B[:, None, :]).mean(axis=0), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(sys.C[:, 0], np.broadcast_to(C.mean(axis=0), (3, 4)), rtol=tolerance(float))
    continuous = est.mean_continuous_system()
    np.testing.assert_allclose(continuous.B[..., 0], np.broadcast_to(B.mean(axis=0), (3, 4)), rtol=tolerance(float))
    np.testing.assert_array_equal(continuous.C, sys.C)


@pytest.mark.parametrize("options", [{}, {"inputs": "white", "window": 5}, {"gramians": ("channel",), "window": 4}])
def test_padding_changes_nothing(options, rng):
    A, data = random_layer(rng)
    mask = random_mask(5, 24)
    est = tv.SelectiveEstimator(A, **options)
    for i in range(5):
        est.update(**{k: v[i : i + 1, mask[i]] for k, v in data.items()})
    for v in data.values():
        v[~mask] = np.nan
    assert_same_state(filled(A, data, mask, **options), est, rtol=tolerance(float))
    data["delta"][~mask] = -1.0
    assert_same_state(filled(A, data, mask, **options), est, rtol=tolerance(float))


@pytest.mark.parametrize("length", [1, 5, 7, 24])
def test_trajectories_longer_than_the_buffer(length, rng, monkeypatch):
    """Pieces of time and blocks of channels, against one piece: the buffer holds 7 steps here."""
    A, data = random_layer(rng, T=length)
    options = {"gramians": ("channel",), "inputs": "white", "exact": False}
    whole = filled(A, data, **options), filled(A, data, window=9, **options)
    monkeypatch.setattr("hsv.time_varying._selective._N_ROWS", 7)
    assert_same_state(filled(A, data, **options), whole[0], rtol=tolerance(float))
    assert_same_state(filled(A, data, window=9, **options), whole[1], rtol=tolerance(float))


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize(("inputs", "dtype"), [("recorded", np.float64), ("white", np.float32)])
@pytest.mark.parametrize(
    ("gramians", "exact"),
    [((), True), (("shared",), True), (("channel",), True), (("shared",), False), (("channel",), False)],
)
def test_every_library_gives_the_numbers_of_numpy(gramians, exact, inputs, dtype, library, rng, monkeypatch):
    A, data = random_layer(rng, dtype=dtype)
    monkeypatch.setattr("hsv.time_varying._selective_arrays.N_ELEMENTS", 2 * 5 * 12)  # two sequences at a time
    for window in (None, 7):
        for mask in (None, random_mask(5, 24)):
            options = {"gramians": gramians, "inputs": inputs, "window": window, "exact": exact}
            est = filled(A, data, mask, **options)
            converted = {k: library.asarray(v) for k, v in data.items()}
            other = filled(library.asarray(A), converted, None if mask is None else library.asarray(mask), **options)
            assert_same_state(other, est, rtol=tolerance(dtype))
            scores = other.scores()
            assert type(scores) is type(library.asarray(1.0))
            assert str(scores.dtype).endswith(np.dtype(dtype).name)
            assert other.scores("ghost", per_channel=True).shape == (3, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("gramians", [(), ("shared",), ("channel",)])
def test_tensors_on_a_gpu(gramians, exact, rng):
    A, data = random_layer(rng, d=8, n=16, T=100, dtype=np.float32)
    mask = np.arange(100) < rng.integers(20, 100, 5)[:, None]
    for inputs in ("recorded", "white"):
        options = {"gramians": gramians, "inputs": inputs, "exact": exact}
        est = filled(A, data, mask, **options)
        converted = {k: torch.tensor(v, device="cuda") for k, v in data.items()}
        other = filled(torch.tensor(A, device="cuda"), converted, torch.tensor(mask), **options)
        # doubling multiplies other pairs of decays than the recurrence
        assert_same_state(other, est, rtol=tolerance(np.float32))
        assert other.scores().device.type == "cuda"


@pytest.mark.parametrize("make", [lambda x: torch.tensor(x, requires_grad=True), lambda x: strict.asarray(x)])
def test_weight_left_out_is_one(make, rng):
    A, data = random_layer(rng)
    data["weight"][:] = 1.0
    est = filled(A, data)
    del data["weight"]
    assert_same_state(filled(A, data), est)
    other = filled(make(A), {k: make(v) for k, v in data.items()})
    assert_same_state(other, est, rtol=tolerance(float))
    assert not getattr(other.scores(), "requires_grad", False)


def test_single_precision_is_close(rng):
    A, data = random_layer(rng, d=8, n=16, T=700)
    double = filled(A, data)
    single = filled(A.astype(np.float32), {k: v.astype(np.float32) for k, v in data.items()})
    assert single.scores().dtype == np.float32
    # states that forget within some 1000 steps here: 1e-7 / |delta A| is up to 1e-4
    for kind in ("hankel", "ghost", "second_moment"):
        np.testing.assert_allclose(single.scores(kind), double.scores(kind), rtol=1e-4)


def test_decay_beyond_the_smallest_number(rng):
    """exp(delta A) underflows: each state is its last input alone."""
    for dtype in (np.float32, np.float64):
        A, data = random_layer(rng, dtype=dtype)
        data["delta"] += dtype(1e6)
        est = filled(A, data, inputs="white")
        p, q = est.diagonal_gramians()
        expected = (data["delta"][..., None] * data["B"][:, :, None, :]) ** 2
        np.testing.assert_allclose(p, expected.mean(axis=(0, 1)), rtol=tolerance(dtype))
        expected = (data["weight"][..., None] * data["C"][:, :, None, :]) ** 2
        np.testing.assert_allclose(q, expected.mean(axis=(0, 1)), rtol=tolerance(dtype))


def test_steps_of_no_length_hold_the_state(rng):
    """softplus underflows to 0 in single precision: the state stays, and no input enters."""
    A, data = random_layer(rng, T=3)
    data["delta"][:, 1:] = 0.0
    p, _ = filled(A, data).diagonal_gramians()
    first = data["delta"][:, 0, :, None] * data["B"][:, 0, None, :] * data["x"][:, 0, :, None]
    np.testing.assert_allclose(p, np.mean(first**2, axis=0), rtol=tolerance(float))


def test_merging_is_associative_and_equals_one_long_stream(rng):
    A, data = random_layer(rng, batch=70, T=5)
    cuts = (0, 20, 55, 70)

    def parts():
        spans = itertools.pairwise(cuts)
        return [filled(A, {k: v[a:b] for k, v in data.items()}, seed=s) for s, (a, b) in enumerate(spans)]

    whole = filled(A, data)
    a, b, c = parts()
    left = a.merge(b).merge(c)
    a, b, c = parts()
    right = a.merge(b.merge(c))
    assert_same_state(left, right, rtol=tolerance(float))
    assert_same_state(left, whole, rtol=tolerance(float))
    np.testing.assert_allclose(left.standard_error(), whole.standard_error(), rtol=1e-9)
    with pytest.raises(hsv.HsvError, match="other must have been made with the same A"):
        left.merge(filled(2 * A, data))
    with pytest.raises(hsv.HsvError, match="same arguments, got gramians="):
        left.merge(filled(A, data, gramians=("shared",)))
    assert_same_state(left, right, rtol=tolerance(float))


def test_saving_and_loading(rng, tmp_path):
    A, data = random_layer(rng)
    est = filled(A, data, gramians=("shared",), window=4, seed=3)
    est.save(tmp_path / "estimator.npz")
    loaded = tv.SelectiveEstimator.load(tmp_path / "estimator.npz")
    np.testing.assert_array_equal(loaded.A, A)
    fresh = tv.SelectiveEstimator(A, gramians=("shared",), window=4)
    fresh.load_state_dict(est.state_dict())
    for other in (loaded, fresh):
        assert_same_state(other, est)
    for e in (est, loaded, fresh):
        e.update(**data)
    for other in (loaded, fresh):
        assert_same_state(other, est)
    with pytest.raises(hsv.HsvError, match="state must have been made with the same A"):
        tv.SelectiveEstimator(A + 0.01 * A, gramians=("shared",), window=4).load_state_dict(est.state_dict())


def test_stopping_rule(rng):
    A, _ = random_layer(rng)
    est = tv.SelectiveEstimator(A)
    while not est.converged(0.1, keep=2, agreement=1.0):
        assert est.n_sequences < 2000
        _, data = random_layer(rng, batch=16)
        data["B"] *= np.array([1.0, 4.0, 0.3, 10.0])
        est.update(**data)
    assert np.linalg.norm(est.standard_error()) <= 0.1 * np.linalg.norm(est.scores())
    assert set(np.argsort(est.scores())[-2:]) == {1, 3}


@pytest.mark.parametrize("library", [np, strict], ids=["numpy", "array_api_strict"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_in_one_sequence_is_refused_by_name(name, library, rng):
    A, data = random_layer(rng)
    est = filled(library.asarray(A), {k: library.asarray(v) for k, v in data.items()}, gramians=("shared",))
    before = est.state_dict()
    broken = {k: v.copy() for k, v in data.items()}
    broken[name][3, 7, 1] = np.nan
    with pytest.raises(
        hsv.NonFiniteError, match=f"{name} must be finite, found nan in sequence 3 at step 7 .*unchanged"
    ):
        est.update(**{k: library.asarray(v) for k, v in broken.items()})
    assert_same_state(est, before)
    mask = np.ones((5, 24), bool)
    mask[3, 7] = False
    est.update(**{k: library.asarray(v) for k, v in broken.items()}, mask=library.asarray(mask))
    assert est.n_steps == 5 * 24 * 2 - 1


@pytest.mark.parametrize("library", [np, strict], ids=["numpy", "array_api_strict"])
@pytest.mark.parametrize("gramians", [(), ("channel",)])
def test_overflow_in_one_sequence_is_refused_by_name(gramians, library, rng):
    A, data = random_layer(rng, dtype=np.float32)
    est = tv.SelectiveEstimator(library.asarray(A), gramians=gramians)
    est.update(**{k: library.asarray(v) for k, v in data.items()})
    before = est.state_dict()
    data["x"][2] *= np.float32(1e25)
    with pytest.raises(hsv.NonFiniteError, match="sequence 2 overflow float32; the estimator is unchanged"):
        est.update(**{k: library.asarray(v) for k, v in data.items()})
    assert_same_state(est, before)


def change(name, function):
    return lambda data: data | {name: function(data[name])}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            change("delta", lambda v: -v),
            hsv.UnstableSystemError,
            "delta must not be negative.* in sequence 0 at step 0",
        ),
        (change("delta", lambda v: v[..., :2]), hsv.ShapeError, r"delta must have shape \(batch, T, d\).* d = 3"),
        (change("delta", lambda v: v[0]), hsv.ShapeError, "delta must have shape"),
        (change("B", lambda v: v[..., :3]), hsv.ShapeError, r"B must have shape \(batch, T, n\) = \(5, 24, 4\)"),
        (change("C", lambda v: v[:, :3]), hsv.ShapeError, "C must have shape"),
        (change("x", lambda v: v[:4]), hsv.ShapeError, r"x must have shape \(batch, T, d\) = \(5, 24, 3\)"),
        (change("weight", lambda v: v[..., 0]), hsv.ShapeError, "weight must have shape"),
        (change("B", lambda v: v + 1j), hsv.DtypeError, "must be real; use GramianEstimator"),
        (change("C", torch.tensor), hsv.DtypeError, "one array library"),
        (lambda data: data | {"x": None}, hsv.HsvError, 'x must be given with inputs="recorded"'),
        (lambda data: {k: v[:0] for k, v in data.items()}, hsv.ShapeError, "batch, T >= 1"),
        (lambda data: {k: v[:, :0] for k, v in data.items()}, hsv.ShapeError, "batch, T >= 1"),
        (lambda data: data | {"mask": np.zeros((5, 24), bool)}, hsv.HsvError, "all of sequence 0 is masked"),
        (
            lambda data: data | {"mask": np.arange(5)[:, None] + np.zeros(24) != 2},
            hsv.HsvError,
            "all of sequence 2 is masked",
        ),
        (
            lambda data: data | {"mask": np.ones((24, 5), bool)},
            hsv.ShapeError,
            r"mask must have shape \(batch, T\) = \(5, 24\)",
        ),
        (lambda data: data | {"mask": np.ones((5, 24))}, hsv.DtypeError, "mask must be boolean"),
    ],
)
def test_bad_input(make, error, match, rng):
    A, data = random_layer(rng)
    est = filled(A, data)
    before = est.state_dict()
    with pytest.raises(error, match=match):
        est.update(**make(data))
    assert_same_state(est, before)


def test_bad_arguments(rng):
    A, data = random_layer(rng)
    with pytest.raises(hsv.ShapeError, match=r"A must have shape \(d, n\)"):
        tv.SelectiveEstimator(A[0])
    with pytest.raises(hsv.ShapeError, match=r"A must have shape \(d, n\)"):
        tv.SelectiveEstimator(A[:0])
    with pytest.raises(hsv.DtypeError, match="A must be real"):
        tv.SelectiveEstimator(A + 0j)
    with pytest.raises(hsv.NonFiniteError, match="A must be finite"):
        tv.SelectiveEstimator(np.full((2, 2), np.nan))
    A[1, 2] = 0.0
    with pytest.raises(
        hsv.UnstableSystemError, match=r"A must be negative .*0\.0 in channel 1, state 2; Mamba stores log"
    ):
        tv.SelectiveEstimator(A)
    A[1, 2] = -1.0
    for options, match in (
        ({"gramians": "shared"}, "gramians must be a sequence of 'diagonal', 'shared', 'channel', got 'shared'"),
        ({"gramians": ("full",)}, "gramians must be a sequence"),
        ({"inputs": "noise"}, "inputs must be 'recorded' or 'white', got 'noise'"),
        ({"window": 0}, "window must be a positive number"),
        ({"seed": -1}, "seed must be a non-negative integer"),
    ):
        with pytest.raises(hsv.HsvError, match=match):
            tv.SelectiveEstimator(A, **options)
    est = tv.SelectiveEstimator(A)
    for call in (est.diagonal_gramians, est.mean_system, est.mean_continuous_system, est.mean_step, est.scores):
        with pytest.raises(hsv.HsvError, match="at least 1 sequence, it has seen 0; call update first"):
            call()
    est.update(**data)
    with pytest.raises(hsv.HsvError, match="gramians must contain 'shared' for this"):
        est.shared_gramians()
    with pytest.raises(hsv.HsvError, match="gramians must contain 'channel' for this"):
        filled(A, data, gramians=("shared",)).channel_gramians()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("gramians", ["shared", "channel"])
def test_results_do_not_depend_on_the_number_of_threads(gramians, exact, rng, monkeypatch):
    A, data = random_layer(rng, d=40, n=32, T=200, batch=2, dtype=np.float32)
    options = {"gramians": (gramians,), "inputs": "white", "exact": exact}
    several = filled(A, data, **options)
    calls = []

    def alone(kernel, n_tasks, *arguments, operations):
        calls.append(operations)
        kernel(0, n_tasks, *arguments)

    monkeypatch.setattr(_threads, "run", alone)
    assert_same_state(filled(A, data, **options), several)
    assert max(calls) > 4e6  # enough for several threads


def test_an_error_in_a_thread_is_raised(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 3)
    monkeypatch.setattr(_threads, "_pool", None)
    seen = []

    def kernel(first, last):
        seen.extend(range(first, last))

    _threads.run(kernel, 100, operations=1e9)
    assert sorted(seen) == list(range(100))

    def broken(first, last):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _threads.run(broken, 100, operations=1e9)


@pytest.mark.parametrize("library", [np, strict, torch], ids=["numpy", "array_api_strict", "torch"])
def test_frozen_systems_of_the_layers(library, rng):
    """The outputs of the frozen system, one input at a time, are those of the layer's own recurrence."""
    T, d, n, heads = 6, 2, 3, 4

    def outputs(A, B, C, u):  # A diagonal or scalar; u (..., T)
        h, y = 0.0, []
        for t in range(T):
            a = A[..., t, :] if A.ndim == B.ndim - 1 else A[..., t, None]
            h = a * h + B[..., t, :, 0] * u[..., t, None]
            y.append(np.sum(C[..., t, 0, :] * h, axis=-1))
        return np.stack(y, axis=-1)

    def host(*arrays):
        return [to_host(a) for a in arrays]

    A, data = random_layer(rng, d=d, n=n, T=T, batch=2)
    delta, B, C, x, _ = (data[k] for k in NAMES)
    system = host(*tv.mamba_system(*(library.asarray(a) for a in (A, delta, B, C))))
    h, expected = np.zeros((2, d, n)), np.zeros((2, d, T))
    for t in range(T):
        h = np.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        expected[..., t] = np.einsum("bdn,bn->bd", h, C[:, t])
    np.testing.assert_allclose(outputs(*system, x.swapaxes(-1, -2)), expected, atol=1e-13)

    A, delta = -np.exp(rng.normal(size=heads)), np.exp(rng.normal(size=(2, T, heads)))
    B, C = rng.normal(size=(2, 2, T, 2, n))  # two groups
    x = rng.normal(size=(2, T, heads))
    system = host(*tv.mamba2_system(*(library.asarray(a) for a in (A, delta, B, C))))
    h, expected = np.zeros((2, heads, n)), np.zeros((2, heads, T))
    for t in range(T):
        for k in range(heads):
            h[:, k] = (
                np.exp(delta[:, t, k, None] * A[k]) * h[:, k]
                + delta[:, t, k, None] * B[:, t, k // 2] * x[:, t, k, None]
            )
            expected[:, k, t] = np.sum(h[:, k] * C[:, t, k // 2], axis=-1)
    np.testing.assert_allclose(outputs(*system, x.swapaxes(-1, -2)), expected, atol=1e-13)

    decay, keys, queries = rng.uniform(size=(2, T, heads, n)), *rng.normal(size=(2, 2, T, heads, n))
    system = host(*tv.gated_linear_attention_system(*(library.asarray(a) for a in (decay, keys, queries))))
    S, expected = np.zeros((2, heads, n)), np.zeros((2, heads, T))
    for t in range(T):
        S = decay[:, t] * S + keys[:, t] * x[:, t, :, None]
        expected[..., t] = np.sum(S * queries[:, t], axis=-1)
    np.testing.assert_allclose(outputs(*system, x.swapaxes(-1, -2)), expected, atol=1e-13)


def test_frozen_systems_refuse_growth_and_shapes_that_do_not_fit(rng):
    A, data = random_layer(rng)
    delta, B, C = data["delta"], data["B"], data["C"]
    with pytest.raises(hsv.UnstableSystemError, match="A must be negative"):
        tv.mamba_system(-A, delta, B, C)
    with pytest.raises(hsv.UnstableSystemError, match="delta must not be negative"):
        tv.mamba_system(A, -delta, B, C)
    with pytest.raises(hsv.DtypeError, match="A must be real"):
        tv.mamba_system(A + 0j, delta, B, C)
    with pytest.raises(hsv.ShapeError, match="the same d"):
        tv.mamba_system(A, delta[..., :2], B, C)
    with pytest.raises(hsv.ShapeError, match="C must have shape"):
        tv.mamba_system(A, delta, B, C[:, 1:])
    with pytest.raises(hsv.ShapeError, match="the same heads"):
        tv.mamba2_system(A, delta, B, C)
    with pytest.raises(hsv.ShapeError, match="divides the 3 heads"):
        tv.mamba2_system(A[:, 0], delta, np.stack([B, B], axis=-2), np.stack([C, C], axis=-2))
    keys = rng.normal(size=(5, 2, 3))
    for decay in (np.full((5, 2, 3), 1.1), np.full((5, 2, 3), -0.1), np.full((5, 2, 3), 0.5j)):
        with pytest.raises(hsv.UnstableSystemError, match=r"decay must be real and in \[0, 1\]"):
            tv.gated_linear_attention_system(decay, keys, keys)
    with pytest.raises(hsv.ShapeError, match="queries must have shape"):
        tv.gated_linear_attention_system(np.full((5, 2, 3), 0.5), keys, keys[1:])
    with pytest.raises(hsv.NonFiniteError, match="keys must be finite"):
        tv.gated_linear_attention_system(np.full((5, 2, 3), 0.5), keys * np.nan, keys)
