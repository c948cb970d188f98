import functools
import itertools
import json

import array_api_strict as strict
import numpy as np
import pytest
import torch

import hsv
from hsv import time_varying as tv
from tests.tolerances import tolerance

KINDS = ("dense", "diagonal", "scalar")


def random_sequences(rng, kind="dense", *, batch=(5,), T=12, n=4, m=2, p=3, complex_=True):
    def draw(*shape):
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if complex_ else x

    A = draw(*batch, T, *{"dense": (n, n), "diagonal": (n,), "scalar": ()}[kind])
    A *= 0.8 / (np.linalg.norm(A, 2, axis=(-2, -1), keepdims=True) if kind == "dense" else np.abs(A))
    return A, draw(*batch, T, n, m), draw(*batch, T, p, n)


def random_mask(batch, T):
    """Padding right, left, at both ends, a hole, and none."""
    mask = np.ones((batch, T), bool)
    mask[0, T // 2 :] = False
    mask[1, : T // 3] = False
    mask[2, :2] = mask[2, -3:] = False
    mask[3, 4:7] = False
    return mask


def means(A, B, C, mask, *, window=None, layer_convention=True):
    """P, Q and diag(P) |C|^2, each a mean over the steps that count; from all impulse responses, without any recursion."""
    n = B.shape[-2]
    sums, steps = [np.zeros((n, n), complex), np.zeros((n, n), complex), np.zeros(n)], 0
    for i in range(len(B)):
        keep = np.flatnonzero(mask[i])
        if A.ndim == B.ndim:
            As = A[i, keep]
        else:
            As = (A[i, keep, :, None] if A.ndim == B.ndim - 1 else A[i, keep, None, None]) * np.eye(n)
        Bs, Cs, T = B[i, keep], C[i, keep], len(keep)
        steps += T
        block = T if window is None else (window + 1) // 2
        for t in range(T):
            # the state after (layers) or before the input of step t
            reached = [
                functools.reduce(lambda x, k: As[k] @ x, range(s + 1, t + layer_convention), Bs[s])
                for s in range(t + layer_convention)
            ]
            P = sum((x @ x.conj().T for x in reached), np.zeros((n, n)))
            end = T if window is None else min(t // block * block + window, T)
            seen = []
            for s in range(t, end):
                factors = range(t + 1, s + 1) if layer_convention else range(t, s)
                seen.append(Cs[s] @ functools.reduce(lambda x, k: As[k] @ x, factors, np.eye(n)))
            sums[0] = sums[0] + P
            sums[1] = sums[1] + sum(y.conj().T @ y for y in seen)
            sums[2] = sums[2] + np.diag(P).real * np.sum(np.abs(Cs[t]) ** 2, axis=0)
    return [s / steps for s in sums]


def filled(*sequences, mask=None, **options):
    est = tv.GramianEstimator(**options)
    est.update(*sequences, mask)
    return est


def assert_same_state(a, b, *, rtol=0.0):
    a, b = a.state_dict() if not isinstance(a, dict) else a, b.state_dict() if not isinstance(b, dict) else b
    assert a["settings"] == b["settings"]
    assert a["n_sequences"] == b["n_sequences"]
    assert a["sums"].keys() == b["sums"].keys()
    for name, values in a["sums"].items():
        np.testing.assert_allclose(
            values, b["sums"][name], rtol=rtol, atol=rtol * np.abs(values).max(initial=0.0), err_msg=name
        )


@pytest.mark.parametrize("layer_convention", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4, 5, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_means_from_impulse_responses(kind, window, layer_convention, rng):
    sequences, mask = random_sequences(rng, kind), random_mask(5, 12)
    options = {"window": window, "layer_convention": layer_convention}
    est = filled(*sequences, mask=mask, **options)
    P, Q, product = means(*sequences, mask, **options)
    ours = est.mean_gramians()
    np.testing.assert_allclose(ours[0], P, atol=tolerance(float) * np.abs(P).max())
    np.testing.assert_allclose(ours[1], Q, atol=tolerance(float) * np.abs(Q).max())
    p, q = np.diag(P).real, np.diag(Q).real
    np.testing.assert_allclose(est.scores(), np.sqrt(p * q), rtol=tolerance(float))
    np.testing.assert_allclose(est.scores("ghost"), np.sqrt(product), rtol=tolerance(float))
    np.testing.assert_allclose(est.scores("second_moment"), np.sqrt(p), rtol=tolerance(float))
    assert est.n_sequences == 5
    assert est.n_steps == mask.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_the_exact_gramians(kind, rng):
    A, B, C = random_sequences(rng, kind)
    P, Q = tv.controllability_gramians(A, B), tv.observability_gramians(A, C)
    ours = filled(A, B, C, layer_convention=False).mean_gramians()
    np.testing.assert_allclose(ours[0], P[:, :-1].mean(axis=(0, 1)), atol=tolerance(float) * np.abs(P).max())
    np.testing.assert_allclose(ours[1], Q[:, :-1].mean(axis=(0, 1)), atol=tolerance(float) * np.abs(Q).max())
    following = np.concatenate([A[:, 1:], A[:, :1]], axis=1)  # layers: the last entry is not used
    Q = tv.observability_gramians(following, C)
    ours = filled(A, B, C).mean_gramians()
    np.testing.assert_allclose(ours[0], P[:, 1:].mean(axis=(0, 1)), atol=tolerance(float) * np.abs(P).max())
    np.testing.assert_allclose(ours[1], Q[:, :-1].mean(axis=(0, 1)), atol=tolerance(float) * np.abs(Q).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_invariant_system_gives_the_time_invariant_answer(kind, rng):
    a, b, c = (x[0] for x in random_sequences(rng, kind, batch=(), T=1))
    T = 400
    est = filled(*(np.broadcast_to(x, (2, T, *x.shape)).copy() for x in (a, b, c)), window=200)
    sys = est.mean_system()
    assert isinstance(sys, hsv.StateSpace if kind == "dense" else hsv.DiagonalStateSpace)
    dense = sys.to_dense()
    np.testing.assert_allclose(
        dense.A, a if kind == "dense" else a * np.eye(4), rtol=tolerance(float), atol=tolerance(float)
    )
    np.testing.assert_allclose(sys.B, b, rtol=tolerance(float))
    np.testing.assert_allclose(sys.C, c, rtol=tolerance(float))
    # P is missing what came before the beginning, Q what came after the end: of 400 steps some 5 each, for the norm of A is 0.8
    P, Q = est.mean_gramians()
    for mean, exact in ((P, hsv.controllability_gramian(sys)), (Q, hsv.observability_gramian(sys))):
        np.testing.assert_allclose(mean, exact, atol=0.02 * np.abs(exact).max())
    finite = np.mean([hsv.controllability_gramian(sys, k) for k in range(1, T + 1)], axis=0)
    np.testing.assert_allclose(P, finite, atol=tolerance(float) * np.abs(finite).max())


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"layer_convention": False}])
def test_padding_changes_nothing(options, rng):
    A, B, C = random_sequences(rng)
    mask = random_mask(5, 12)
    est = tv.GramianEstimator(**options)
    for i in range(5):
        est.update(*(x[i, mask[i]] for x in (A, B, C)))  # one sequence, without a batch axis
    for x in (A, B, C):
        x[~mask] = np.nan
    assert_same_state(filled(A, B, C, mask=mask, **options), est, rtol=tolerance(float))


def test_merging_is_associative_and_equals_one_long_stream(rng):
    sequences = random_sequences(rng, batch=(70,), T=4)
    whole = filled(*sequences)
    cuts = (0, 20, 55, 70)

    def parts():
        return [filled(*(x[a:b] for x in sequences)) for a, b in itertools.pairwise(cuts)]

    a, b, c = parts()
    left = a.merge(b).merge(c)
    a, b, c = parts()
    right = a.merge(b.merge(c))
    assert_same_state(left, right, rtol=tolerance(float))
    assert_same_state(left, whole, rtol=tolerance(float))
    np.testing.assert_allclose(left.standard_error(), whole.standard_error(), rtol=1e-9)
    empty = tv.GramianEstimator()
    assert_same_state(empty.merge(whole), whole)
    assert_same_state(whole.merge(tv.GramianEstimator()), empty)


def test_merging_leaves_the_other_one_alone(rng):
    one, other = filled(*random_sequences(rng)), filled(*random_sequences(rng))
    before = other.state_dict()
    one.merge(other)
    one.update(*random_sequences(rng))
    assert_same_state(other, before)


def test_merging_what_does_not_belong_together(rng):
    est = filled(*random_sequences(rng))
    before = est.state_dict()
    with pytest.raises(hsv.HsvError, match="other must have been made with the same arguments, got window=3"):
        est.merge(filled(*random_sequences(rng), window=3))
    with pytest.raises(hsv.ShapeError, match="same sizes"):
        est.merge(filled(*random_sequences(rng, n=5)))
    with pytest.raises(hsv.DtypeError, match="must be a GramianEstimator, got a SelectiveEstimator"):
        est.merge(tv.SelectiveEstimator([[-1.0]]))
    assert_same_state(est, before)


def test_saving_and_loading(rng, tmp_path):
    est = filled(*random_sequences(rng), window=3)
    est.save(tmp_path / "estimator.npz")
    loaded = tv.GramianEstimator.load(tmp_path / "estimator.npz")
    assert_same_state(est, loaded)
    more = random_sequences(rng)
    for e in (est, loaded):
        e.update(*more)
    assert_same_state(est, loaded)
    other = tv.GramianEstimator(window=3)
    other.load_state_dict(est.state_dict())
    assert_same_state(est, other)
    assert repr(other) == repr(est) == "<GramianEstimator: 10 sequences, 120 steps, window=3, layer_convention=True>"


def test_loading_what_is_not_an_estimator(rng, tmp_path):
    est = tv.GramianEstimator()
    with pytest.raises(hsv.HsvError, match="it lacks constants, n_sequences, settings"):
        est.load_state_dict({"sums": {}})
    with pytest.raises(hsv.HsvError, match="state must have been made with the same arguments, got window=3"):
        est.load_state_dict(filled(*random_sequences(rng), window=3).state_dict())
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(hsv.HsvError, match="it has no header"):
        tv.GramianEstimator.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", header=json.dumps({"class": "SelectiveEstimator"}))
    with pytest.raises(hsv.HsvError, match="must hold a GramianEstimator, it holds a SelectiveEstimator"):
        tv.GramianEstimator.load(tmp_path / "other.npz")


def test_standard_error_of_a_mean(rng):
    """Where each sequence is a group and the score is a root of a mean, the jackknife is close to s / sqrt(N) / (2 score)."""
    b = rng.normal(size=(32, 1, 1, 1))
    est = filled(np.zeros((32, 1)), b, np.ones_like(b))  # P = b^2
    expected = np.std(b**2, ddof=1) / np.sqrt(32) / 2 / np.sqrt(np.mean(b**2))
    # the root's curvature is of the order of the relative error of the mean, a fifth here
    np.testing.assert_allclose(est.standard_error("second_moment"), [expected], rtol=0.1)


def test_standard_errors_are_the_spread_of_repeated_streams(rng):
    """Streams of 200 sequences of unequal lengths: the scores' spread over 300 streams is what one stream says of itself."""
    scores, errors = [], []
    for _ in range(300):
        b = rng.normal(size=(200, 3, 2, 1)) * rng.exponential(size=(200, 1, 1, 1))
        mask = np.arange(3) < rng.integers(1, 4, 200)[:, None]
        est = filled(np.full((200, 3), 0.5), b, rng.normal(size=(200, 3, 1, 2)), mask=mask)
        scores.append(est.scores())
        errors.append(est.standard_error())
    spread = np.std(scores, axis=0)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), spread, rtol=0.15)


def test_stopping_rule(rng):
    est = tv.GramianEstimator()
    assert not est.converged()
    sizes = []
    while not est.converged(0.05, keep=2):
        assert est.n_sequences < 5000
        b = rng.normal(size=(50, 1, 4, 1)) * np.array([4.0, 3.0, 1.0, 0.5])[:, None]
        est.update(np.zeros((50, 1)), b, np.ones((50, 1, 1, 4)))
        sizes.append(np.linalg.norm(est.standard_error()) / np.linalg.norm(est.scores()))
    assert sizes[-1] <= 0.05 < sizes[0]
    assert est.converged(0.05)
    assert not est.converged(1e-3)


def test_stopping_rule_where_the_choice_is_a_matter_of_luck(rng):
    """All states are alike: their scores are known well, and yet halves of the stream disagree on the best."""
    b = rng.normal(size=(600, 1, 64, 1))
    est = filled(np.zeros((600, 1)), b, np.ones((600, 1, 1, 64)))
    assert est.converged(0.1)
    assert not est.converged(0.1, keep=8)
    assert est.converged(0.1, keep=64)


@pytest.mark.parametrize("library", [strict, torch], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_every_library_gives_the_numbers_of_numpy(dtype, kind, library, rng):
    sequences = [x.astype(dtype) for x in random_sequences(rng, kind, complex_="complex" in dtype)]
    mask = random_mask(5, 12)
    est = filled(*sequences, mask=mask, window=4)
    other = filled(*(library.asarray(x) for x in sequences), mask=library.asarray(mask), window=4)
    results = {
        "P": lambda e: e.mean_gramians()[0],
        "Q": lambda e: e.mean_gramians()[1],
        "scores": lambda e: e.scores(),
        "standard_error": lambda e: e.standard_error("ghost"),
        "poles": lambda e: e.mean_system().poles() if kind != "dense" else e.mean_system().A,
    }
    for name, call in results.items():
        ours, theirs = call(est), call(other)
        assert type(theirs) is type(library.asarray(1.0)), name
        assert ours.dtype == (np.dtype(dtype) if name in "PQpoles" else np.zeros(0, dtype).real.dtype), name
        assert str(theirs.dtype).rsplit(".", 1)[-1] == ours.dtype.name
        theirs = np.asarray(theirs) if library is torch else np.from_dlpack(theirs)
        np.testing.assert_allclose(theirs, ours, atol=tolerance(ours.dtype) * np.abs(ours).max(), err_msg=name)


def test_tensors_that_need_gradients_are_only_read(rng):
    A, B, C = (torch.tensor(x, requires_grad=True) for x in random_sequences(rng))
    est = filled(A, B, C)
    assert not est.scores().requires_grad


def test_nan_in_one_sequence_is_refused_by_name(rng):
    sequences = random_sequences(rng)
    est = filled(*sequences)
    before = est.state_dict()
    for k, name in enumerate("ABC"):
        broken = [x.copy() for x in sequences]
        broken[k][(3, 7, *(0,) * (broken[k].ndim - 2))] = np.nan
        with pytest.raises(
            hsv.NonFiniteError, match=f"{name} must be finite, found .*nan.* in sequence 3 at step 7 .*unchanged"
        ):
            est.update(*broken)
        assert_same_state(est, before)
        mask = np.ones((5, 12), bool)
        mask[3, 7] = False
        est_masked = filled(*broken, mask=mask)
        assert np.all(np.isfinite(est_masked.scores()))


@pytest.mark.parametrize("kind", KINDS)
def test_growth_until_overflow_is_refused_by_name(kind, rng):
    A, B, C = random_sequences(rng, kind)
    est = filled(A, B, C)
    before = est.state_dict()
    A[2] *= 1e60
    with pytest.raises(hsv.UnstableSystemError, match="sequence 2 overflow: A_t grows; the estimator is unchanged"):
        est.update(A, B, C)
    assert_same_state(est, before)


def test_an_estimator_that_has_seen_nothing():
    est = tv.GramianEstimator()
    assert est.n_sequences == est.n_steps == 0
    for call in (est.mean_gramians, est.mean_system, est.scores):
        with pytest.raises(hsv.HsvError, match="at least 1 sequence, it has seen 0; call update first"):
            call()
    with pytest.raises(hsv.HsvError, match="at least 2 sequences, it has seen 0"):
        est.standard_error()


def test_one_sequence_has_no_standard_error(rng):
    est = filled(*random_sequences(rng, batch=(1,)))
    with pytest.raises(hsv.HsvError, match="at least 2 sequences, it has seen 1"):
        est.standard_error()
    assert not est.converged()


def wrong(position, change):
    return lambda sequences: tuple(change(x) if k == position else x for k, x in enumerate(sequences))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (wrong(0, lambda A: A[:, :-1]), hsv.ShapeError, "A must have shape"),
        (wrong(0, lambda A: A[:4]), hsv.ShapeError, "A must have shape"),
        (wrong(0, lambda A: A[..., 0, 0, None, None, None]), hsv.ShapeError, "A must have shape"),
        (wrong(1, lambda B: B[..., :0]), hsv.ShapeError, "no axis of it empty"),
        (wrong(1, lambda B: B[0, 0]), hsv.ShapeError, "B must have shape"),
        (wrong(2, lambda C: C[..., :3]), hsv.ShapeError, "C must have shape"),
        (wrong(2, lambda C: C[:, :3]), hsv.ShapeError, "C must have shape"),
        (lambda s: tuple(x[:0] for x in s), hsv.ShapeError, "no axis of it empty"),
        (lambda s: tuple(x[:, :0] for x in s), hsv.ShapeError, "no axis of it empty"),
        (lambda s: (*s, np.zeros((5, 12), bool)), hsv.HsvError, "all of sequence 0 is masked"),
        (lambda s: (*s, np.arange(5)[:, None] * np.ones(12) != 4), hsv.HsvError, "all of sequence 4 is masked"),
        (lambda s: (*s, np.ones((5, 11), bool)), hsv.ShapeError, "mask must have shape"),
        (lambda s: (*s, np.ones((5, 12))), hsv.DtypeError, "mask must be boolean"),
        (lambda s: (s[0], torch.tensor(s[1]), s[2]), hsv.DtypeError, "one array library"),
        (lambda s: (s[0][..., :3, :3], s[1][..., :3, :], s[2][..., :3]), hsv.ShapeError, "systems of one size"),
    ],
)
def test_bad_input(change, error, match, rng):
    sequences = random_sequences(rng)
    est = filled(*sequences)
    before = est.state_dict()
    with pytest.raises(error, match=match):
        est.update(*change(sequences))
    assert_same_state(est, before)


def test_bad_arguments(rng):
    for window in (0, -1, 2.5, True):
        with pytest.raises(hsv.HsvError, match="window must be a positive number of steps or None"):
            tv.GramianEstimator(window=window)
    est = filled(*random_sequences(rng))
    with pytest.raises(hsv.HsvError, match="kind must be one of 'hankel', 'ghost', 'second_moment', got 'hankle'"):
        est.scores("hankle")
    for options in ({"relative": 0}, {"agreement": 0}, {"agreement": 1.1}, {"keep": 0}, {"keep": 5}, {"keep": 1.5}):
        with pytest.raises(hsv.HsvError, match="must be"):
            est.converged(**{"relative": 1e9} | options)


@pytest.mark.parametrize("core", [0, 1, 2])
def test_a_sequence_of_weight_two_counts_twice(core, rng):
    A = 0.9 * rng.uniform(-1, 1, (3, 6, *(4,) * core)) / (4 if core == 2 else 1)
    B, C = rng.normal(size=(3, 6, 4, 2)), rng.normal(size=(3, 6, 1, 4))
    mask = np.ones((3, 6), bool)
    mask[1, 4:] = False
    weighted, repeated = hsv.time_varying.GramianEstimator(window=3), hsv.time_varying.GramianEstimator(window=3)
    weighted.update(A, B, C, mask, weights=[1.0, 2.0, 3.0])
    for k, times in enumerate((1, 2, 3)):
        for _ in range(times):
            repeated.update(A[[k]], B[[k]], C[[k]], mask[[k]])
    assert weighted.n_steps == repeated.n_steps == 6 + 2 * 4 + 3 * 6
    for mine, expected in zip(weighted.mean_gramians(), repeated.mean_gramians(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12)
    for kind in ("hankel", "ghost", "second_moment"):
        np.testing.assert_allclose(weighted.scores(kind), repeated.scores(kind), rtol=1e-12)
    mine, expected = weighted.mean_system().to_dense(), repeated.mean_system().to_dense()
    for name in "ABC":
        np.testing.assert_allclose(getattr(mine, name), getattr(expected, name), rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"weights must have shape \(3,\)"),
        ([1.0, 0.0, 1.0], "positive and finite, found 0"),
        ([1, np.nan, 1], "nan"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message, rng):
    est = hsv.time_varying.GramianEstimator()
    A, B, C = np.full((3, 6), 0.5), rng.normal(size=(3, 6, 4, 2)), rng.normal(size=(3, 6, 1, 4))
    with pytest.raises(hsv.HsvError, match=message):
        est.update(A, B, C, weights=weights)
    assert est.n_sequences == 0
