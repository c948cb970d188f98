"""Small systems on a GPU: CuPy arrays and CUDA tensors are handed to the kernels of `_kernels/_cuda.py` where they lie.

Nothing is copied to the host but one number that says whether all went well.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from hsv._array import (
    Array,
    device,
    flat_memory,
    in_cuda_memory,
    is_complex,
    namespace,
    transpose,
)
from hsv._backends import look_for
from hsv._errors import HsvError

_MOST_STATES = 256
_usable: bool | None = None


def kernels_serve(x: Array, n: int) -> bool:
    """Tell whether systems of `n` states in the memory of `x` go to the kernels. Says once if they would, were Numba's CUDA target there."""
    global _usable
    if n > _MOST_STATES or not in_cuda_memory(x):
        return False
    if _usable is None:
        found = look_for("numba-cuda")
        _usable = found.available
        if not _usable:
            remedy = f"; {found.install}" if found.install else ""
            warnings.warn(
                f"numba-cuda is not available ({found.reason}{remedy}): small systems on {device(x)} take the array library's own routines, "
                "which solve one system after another and promise fewer digits of small singular values",
                UserWarning,
                stacklevel=2,
            )
    return _usable


def cauchy_factor(kind: str, poles: Array, gaps: Array, generators: Array) -> Array:
    """Factor the matrices ``g_i g_j^H / d_ij`` of a batch; see :func:`hsv.controllability_factor`.

    `kind` says what `poles` ``(..., n)`` are: "discrete", "continuous", or "logarithms" of discrete ones; `gaps` ``(..., n)`` are the
    diagonal's denominators, real, to full accuracy; `generators` have shape ``(..., n, m)``.
    """
    from hsv._kernels import _cuda

    xp = namespace(generators)
    *batch, n, m = generators.shape
    complex_ = is_complex(poles) or is_complex(generators)
    dtype = xp.complex128 if complex_ else xp.float64
    poles, generators = xp.astype(poles, dtype, copy=False), xp.astype(generators, dtype, copy=False)
    logs, poles = (poles, xp.exp(poles)) if kind == "logarithms" else (poles, poles)
    columns = xp.empty((*batch, n, n), dtype=dtype, device=device(generators))
    count = math.prod(batch)
    if count:
        with _on_device_of(generators) as stream:
            plan = _cuda.factor_plan(n, m, is_complex=complex_, most_shared=_cuda.most_shared_bytes())
            workspace = xp.empty((count * plan.workspace,), dtype=xp.float64, device=device(generators))
            _cuda.factors(
                tuple(_kernel_argument(x) for x in (poles, logs, gaps, generators, columns, workspace)),
                plan,
                n=n,
                m=m,
                kind={
                    "discrete": _cuda.DISCRETE,
                    "logarithms": _cuda.DISCRETE_FROM_LOGS,
                    "continuous": _cuda.CONTINUOUS,
                }[kind],
                is_complex=complex_,
                batch=count,
                stream=stream,
            )
    return transpose(columns)


def singular_values(matrices: Array) -> Array:
    """Return the singular values of square matrices ``(..., n, n)``, descending.

    Small ones on a GPU by Householder reflections with pivoting and one-sided Jacobi rotations: graded matrices keep the relative accuracy of
    every value that their entries determine, and nothing overflows or underflows on the way. All others by their array library.
    """
    if kernels_serve(matrices, matrices.shape[-1]):
        return _decompose(matrices, with_vectors=False)[0]
    return namespace(matrices).linalg.svdvals(matrices)


def svd(matrices: Array) -> tuple[Array, Array, Array]:
    """Return ``U, s, Vh`` of square matrices ``(..., n, n)``; see :func:`singular_values`. From the kernel, rows of ``Vh`` that belong to an exact 0 are zero."""
    if kernels_serve(matrices, matrices.shape[-1]):
        values, left, right = _decompose(matrices, with_vectors=True)
        return left, values, right
    U, s, Vh = namespace(matrices).linalg.svd(matrices, full_matrices=False)
    return U, s, Vh


def _decompose(matrices: Array, *, with_vectors: bool) -> tuple[Array, Array, Array]:
    from hsv._kernels import _cuda

    xp = namespace(matrices)
    *batch, n, _ = matrices.shape
    complex_ = is_complex(matrices)
    where = device(matrices)
    count = math.prod(batch)
    values = xp.empty((*batch, n), dtype=xp.float64, device=where)
    shape = (*batch, n, n) if with_vectors else (1,)
    left, right = (xp.empty(shape, dtype=matrices.dtype, device=where) for _ in range(2))
    if not count:
        return values, left, right
    sweeps = xp.empty((count,), dtype=xp.float64, device=where)
    with _on_device_of(matrices) as stream:
        plan = _cuda.decomposition_plan(
            n, is_complex=complex_, with_vectors=with_vectors, most_shared=_cuda.most_shared_bytes()
        )
        workspaces = [xp.empty((count * plan.workspace,), dtype=xp.float64, device=where) for _ in range(2)]
        _cuda.decompositions(
            tuple(_kernel_argument(x) for x in (matrices, values, left, right, sweeps, *workspaces)),
            plan,
            n=n,
            is_complex=complex_,
            with_vectors=with_vectors,
            batch=count,
            stream=stream,
        )
    most = float(xp.max(sweeps))
    if not _cuda.converged(most):
        raise HsvError(
            "the singular values of a batch did not converge; the likely cause is an overflow in its factors: scale B and C down"
        )
    return values, left, right


@contextlib.contextmanager
def _on_device_of(x: Array) -> Iterator[Any]:
    """Launch on the array's device, in the stream that its library is using, so that kernels run in the order of the calls."""
    from numba import cuda

    library = sys.modules[type(x).__module__.partition(".")[0]]
    stream = 0
    with cuda.gpus[_device_index(x)]:
        if library.__name__ == "torch":
            stream = library.cuda.current_stream(x.device).cuda_stream
        elif library.__name__ == "cupy":
            stream = library.cuda.get_current_stream().ptr
        with warnings.catch_warnings():
            # one system is one block: Numba finds that too few for the device, which is so
            warnings.filterwarnings("ignore", message="Grid size")
            yield cuda.external_stream(stream) if stream else stream


def _device_index(x: Array) -> int:
    where = device(x)
    index = getattr(where, "index", None)  # torch
    if not isinstance(index, int):
        index = getattr(where, "id", None)  # CuPy
    return index if isinstance(index, int) else 0


def _kernel_argument(x: Array) -> Any:
    """The array's memory as Numba sees it: one axis of float64. NumPy arrays go to Numba's simulator as they are."""
    flat = flat_memory(x)
    if hasattr(flat, "__cuda_array_interface__"):
        from numba import cuda

        flat = cuda.as_cuda_array(flat, sync=False)
    return flat.view(np.float64)
