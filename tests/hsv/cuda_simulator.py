"""What `test_cuda_kernels.py` runs in a process of its own, in which Numba simulates a GPU.

A simulated thread is a thread of Python: a few states take a second. Sizes are small, and every kind of memory is taken at each.
"""

import sys

import numpy as np
import pytest


def start():
    """Make the simulator's many threads wait less for each other."""
    sys.setswitchinterval(1e-4)


def flat(array):
    """Return the numbers as the kernels take them: one axis, float64, a complex number as two."""
    return np.ascontiguousarray(array).reshape(-1).view(np.float64)


def factor(poles, gaps, generators, kind, most_shared):
    """Eliminate a batch of generators ``(batch, n, m)``; the factors, ``(batch, n, n)``, and how it was launched."""
    from hsv._kernels import _cuda

    batch, n, m = generators.shape
    complex_ = np.iscomplexobj(generators)
    plan = _cuda.factor_plan(n, m, is_complex=complex_, most_shared=most_shared)
    columns = np.full((batch, n, n), np.nan, dtype=generators.dtype)
    logs, poles = (poles, np.exp(poles)) if kind == _cuda.DISCRETE_FROM_LOGS else (poles, poles)
    arrays = [flat(x) for x in (poles, logs, gaps, generators, columns)]
    workspace = np.full(batch * plan.workspace, np.nan)
    _cuda.factors((*arrays, workspace), plan, n=n, m=m, kind=kind, is_complex=complex_, batch=batch, stream=0)
    return columns.swapaxes(-1, -2), plan


def decomposition(matrices, with_vectors, most_shared):
    """Decompose a batch ``(batch, n, n)``: left vectors, values, right vectors, whether it converged, and how it was launched."""
    from hsv._kernels import _cuda

    batch, n, _ = matrices.shape
    complex_ = np.iscomplexobj(matrices)
    plan = _cuda.decomposition_plan(n, is_complex=complex_, with_vectors=with_vectors, most_shared=most_shared)
    values, sweeps = np.full((batch, n), np.nan), np.full(batch, np.nan)
    left, right = (np.full((batch, n, n), np.nan, dtype=matrices.dtype) for _ in range(2))
    arrays = [flat(x) for x in (matrices, values, left, right, sweeps)]
    workspaces = [np.full(batch * plan.workspace, np.nan) for _ in range(2)]
    _cuda.decompositions(
        (*arrays, *workspaces), plan, n=n, is_complex=complex_, with_vectors=with_vectors, batch=batch, stream=0
    )
    return left, values, right, _cuda.converged(sweeps.max()), plan


def public(call, sys, arguments=()):
    """Call a public function as if NumPy arrays were a GPU's; return its result and how often each kernel was launched."""
    import hsv
    from hsv import _array, _cauchy, _device, _reduction, _small_systems
    from hsv._kernels import _cuda

    launched = {"factors": 0, "decompositions": 0}

    def counted(kernel):
        launch = getattr(_cuda, kernel)

        def count(*args, **kwargs):
            launched[kernel] += 1
            return launch(*args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for kernel in launched:
            patch.setattr(_cuda, kernel, counted(kernel))
        patch.setattr(_device, "in_cuda_memory", lambda x: True)
        for module in (_array, _cauchy, _reduction, _small_systems):
            patch.setattr(module, "in_host_memory", lambda x: False)
        return getattr(hsv, call)(sys, *arguments), launched
