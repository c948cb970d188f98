import numpy as np
import pytest

import hsv
from hsv import _kernels
from hsv._cauchy import denominators, differences
from hsv._kernels import _reference
from tests.hsv.test_systems import random_diagonal


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
