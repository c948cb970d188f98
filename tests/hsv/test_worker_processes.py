"""Objects pickle and functions run as they are in other processes: what Dask, Ray and multiprocessing need."""

import concurrent.futures
import functools
import inspect
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

import hsv
from tests.hsv import reference_systems as known


def assert_equal(found, expected, where="object"):
    """Compare two objects bit by bit, attribute by attribute."""
    assert type(found) is type(expected), where
    if isinstance(expected, np.ndarray | torch.Tensor):
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=where)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(expected, hsv.LinearSystem):
        assert_equal(found.__getstate__(), expected.__getstate__(), where)
    elif type(expected).__module__.startswith("hsv"):
        assert_equal(vars(found), vars(expected), where)
    else:
        assert found == expected or found is expected, where


def diagonal_systems():
    rng = np.random.default_rng(1)
    poles = 0.95 * np.sqrt(rng.uniform(size=(3, 5))) * np.exp(1j * rng.uniform(0, 3, (3, 5)))
    return hsv.DiagonalStateSpace(poles, rng.normal(size=(3, 5, 1)), rng.normal(size=(3, 1, 5)), dt=0.5)


def systems():
    diagonal = diagonal_systems()
    logs = hsv.DiagonalStateSpace.from_log_poles(np.log(diagonal.poles()), diagonal.B, diagonal.C)
    tensors = [torch.asarray(x) for x in (diagonal.poles(), diagonal.B, diagonal.C)]
    return {
        "dense": diagonal.to_dense(),
        "diagonal": diagonal,
        "log-poles": logs,
        "real part": hsv.real_part(diagonal),
        "real part of tensors": hsv.real_part(hsv.DiagonalStateSpace(*tensors, dt=True)),
    }


RULES = {
    hsv.Order: hsv.Order(2),
    hsv.HankelSum: hsv.HankelSum(keep=0.9),
    hsv.HankelEnergy: hsv.HankelEnergy(discard=0.01),
    hsv.Threshold: hsv.Threshold(0.3),
    hsv.ErrorBound: hsv.ErrorBound(5.0),
    hsv.LargestGap: hsv.LargestGap(at_most=3),
    hsv.PrefixShare: hsv.PrefixShare(0.1),
}

METHODS = [
    hsv.balanced_truncation,
    hsv.balancing_free_truncation,
    hsv.singular_perturbation,
    hsv.hankel_norm_approximation,
    hsv.modal_truncation,
]


def sequences():
    rng = np.random.default_rng(2)
    return {
        "A": rng.uniform(0.5, 0.9, (4, 6, 3)),
        "B": rng.normal(size=(4, 6, 3, 1)),
        "C": rng.normal(size=(4, 6, 1, 3)),
    }


def estimator():
    est = hsv.time_varying.GramianEstimator()
    est.update(**sequences())
    return est


def selective_estimator():
    rng = np.random.default_rng(3)
    est = hsv.time_varying.SelectiveEstimator(-rng.uniform(0.5, 2, (4, 3)), gramians=("diagonal", "shared"))
    est.update(rng.uniform(0.1, 0.5, (2, 6, 4)), *rng.normal(size=(2, 2, 6, 3)), x=rng.normal(size=(2, 6, 4)))
    return est


def test_every_rule_is_here():
    public = {x for x in vars(hsv).values() if inspect.isclass(x) and issubclass(x, hsv.Rule) and x is not hsv.Rule}
    assert public <= RULES.keys()


@pytest.mark.parametrize("name", systems())
def test_systems(name):
    original = systems()[name]
    copy = pickle.loads(pickle.dumps(original))
    assert_equal(copy, original)
    assert_equal(hsv.hankel_singular_values(copy), hsv.hankel_singular_values(original))


@pytest.mark.parametrize("rule", RULES.values(), ids=repr)
def test_rules(rule):
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    values = np.array([[3.0, 1.0, 0.1], [3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(copy.choose(values), rule.choose(values))


@pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)
def test_reductions(method):
    red = method(diagonal_systems(), 2)
    copy = pickle.loads(pickle.dumps(red))
    assert_equal(copy, red)
    assert_equal(copy.select(1), red.select(1))


def test_reductions_of_sequences():
    for reduce in (hsv.time_varying.balanced_truncation, hsv.time_varying.certified_truncation):
        red = reduce(*(np.ascontiguousarray(x[0]) for x in sequences().values()), 2)
        assert_equal(pickle.loads(pickle.dumps(red)), red)


@pytest.mark.parametrize("make", [estimator, selective_estimator])
def test_estimators_go_on_where_they_were(make):
    est = make()
    copy = pickle.loads(pickle.dumps(est))
    assert_equal(copy.scores(), est.scores())
    assert_equal(copy.standard_error(), est.standard_error())
    est.merge(make())
    copy.merge(make())
    assert_equal(copy.scores(), est.scores())


def test_errors():
    for kind in (x for x in vars(hsv).values() if inspect.isclass(x) and issubclass(x, Exception)):
        copy = pickle.loads(pickle.dumps(kind("what was wrong")))
        assert type(copy) is kind
        assert str(copy) == "what was wrong"


def public_functions():
    return [
        f
        for module in (hsv, hsv.time_varying)
        for name in module.__all__
        if inspect.isfunction(f := getattr(module, name))
    ]


@pytest.mark.parametrize("function", public_functions(), ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_functions_pickle_by_name(function):
    assert pickle.loads(pickle.dumps(function)) is function


def test_results_in_a_worker_process_are_the_same():
    """A fresh interpreter, which has nothing of this one's state: bit by bit the same numbers."""
    rng = np.random.default_rng(4)
    tasks = [functools.partial(method, diagonal_systems(), hsv.Threshold(0.2)) for method in METHODS[:4]]
    dense = known.random_stable(rng, 6, 2, 2, dt=0)
    tasks += [functools.partial(f, dense) for f in (hsv.hankel_singular_values, hsv.hinf_norm, hsv.h2_norm)]
    tasks += [functools.partial(hsv.solve_lyapunov_factored, dense.A, dense.B, discrete=False), estimator]
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(run, tasks, timeout=200))
    for task, result in zip(tasks, found, strict=True):
        expected = task()
        if task is estimator:
            result, expected = result.scores(), expected.scores()
        assert_equal(result, expected, str(task))


def run(task):
    return task()
