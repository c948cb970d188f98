"""``left`` and ``right`` of every reduction that has them: ``left^H right = I``, and the reduced matrices come from those of the system by them."""

import functools
import warnings

import numpy as np
import pytest

import hsv
from hsv._systems import DiagonalStateSpace
from tests.hsv.test_systems import random_diagonal, random_system


def weight(sys):
    """Of every input: a slow and a fast part."""
    one = np.eye(2)
    return hsv.StateSpace((0.5 if sys.is_discrete else -0.5) * one, one, one, one, dt=sys.dt)


METHODS = {
    "balanced": hsv.balanced_truncation,
    "balancing-free": hsv.balancing_free_truncation,
    "irka": hsv.irka,
    "modal": hsv.modal_truncation,
    "weighted": lambda sys, r: hsv.frequency_weighted_truncation(sys, r, input_weight=weight(sys)),
    "band": functools.partial(hsv.frequency_limited_truncation, band=(0.1, 1.5)),
    "window": functools.partial(hsv.time_limited_truncation, horizon=20),
    "bounded-real": lambda sys, r: hsv.bounded_real_truncation(sys, r, gamma=2 * float(np.max(hsv.hinf_norm(sys)))),
    "positive-real": hsv.positive_real_truncation,
    "LQG": hsv.lqg_balanced_truncation,
    "H2-optimal": functools.partial(hsv.h2_optimal_reduction, tolerance=1e-15),
}
KINDS = {
    "real": functools.partial(random_system, complex_=False),
    "complex": random_system,
    "diagonal": random_diagonal,
    "real part": lambda *args, **options: hsv.real_part(random_diagonal(*args, **options)),
}


@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_reduced_matrices_come_from_the_bases(method, kind, dt, rng):
    batch = (2,) if method in ("balanced", "modal", "irka") else ()
    sys = KINDS[kind](rng, n=6 if kind != "real part" else 4, m=2, p=2, batch=batch, dt=dt)
    if method == "H2-optimal" and not isinstance(sys, DiagonalStateSpace):
        pytest.skip("of diagonal systems only")
    if (
        method == "H2-optimal"
    ):  # poles far apart: the bases are as good as the descent has converged, and an optimum with a double pole has none
        poles = np.array([-0.1 + 3j, -0.3 + 1j, -0.2 + 8j, -0.9 + 5j])
        sys = hsv.DiagonalStateSpace(
            np.exp(0.2 * poles) if dt else poles, sys.B[:4], sys.C[:, :4] * (1 + (kind == "real part")), dt=dt
        )
        sys = hsv.real_part(sys) if kind == "real part" else sys
    if method == "positive-real":  # made passive by what stands at infinity
        passive = (1 + float(np.max(hsv.hinf_norm(sys)))) * np.eye(2)
        sys = sys._with_outputs(sys.C, 0 * sys.D + passive) if kind != "real part" else with_feedthrough(sys, passive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsv.OrderWarning)
        red = METHODS[method](sys, 2 if method == "H2-optimal" else 4)
    A = sys.poles()[..., None] * np.eye(sys.n_states) if isinstance(sys, DiagonalStateSpace) else sys.A
    r, left_h, small = red.system.n_states, red.left.conj().swapaxes(-1, -2), red.system.to_dense()
    assert red.left.shape == red.right.shape == (*batch, sys.n_states, r)
    if method == "H2-optimal":  # its systems of pairs are diagonal and complex
        small = red.system
        small = hsv.StateSpace(small.poles() * np.eye(r), small.B, small.C, dt=small.dt)
    present = np.diagonal(left_h @ red.right, axis1=-2, axis2=-1).real.round()  # fewer where a pair would be split
    np.testing.assert_allclose(left_h @ red.right, present[..., None] * np.eye(r), atol=1e-8)
    limit = 1e-3 if method == "H2-optimal" else 1e-7
    padding = (1 - present[..., None]) * np.eye(r)
    for found, expected in (
        (left_h @ A @ red.right - (0 if sys.is_discrete else 1) * padding, small.A),
        (left_h @ sys.B, small.B),
        (sys.C @ red.right, small.C),
    ):
        np.testing.assert_allclose(found, expected, atol=limit * np.abs(expected).max())


def with_feedthrough(sys, D):
    """The real part of a diagonal system with another ``D``."""
    half = sys.n_states // 2
    return hsv.real_part(
        hsv.DiagonalStateSpace(sys.poles()[:half], sys.B[:half], 2 * sys.C[:, :half], D + 0j, dt=sys.dt)
    )
