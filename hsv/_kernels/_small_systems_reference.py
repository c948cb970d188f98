"""The kernels for small diagonal systems in plain NumPy: what each one means, and what `_small_systems` is compared with.

``poles (batch, n, planes)``, ``B (batch, n, m, planes)``, ``C (batch, p, n, planes)``: double precision, real parts in the first plane, imaginary parts in
the second one if there is one. ``rests``, of the shape of the poles or empty, is what the poles lack to be exact. Kernels
do the systems from `first` to `last` and write to their last arguments. The callers have checked shapes and stability.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hsv._kernels._reference import cauchy_factor

RealArray: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[Any]  # float64 or complex128


def exponentials(first: int, last: int, logs: RealArray, values: RealArray, rests: RealArray) -> None:
    """``exp`` of the numbers ``logs (k, planes)`` in twice the working precision, here in extended precision at best."""
    wide = numbers(logs[first:last].astype(np.longdouble))
    exact = np.exp(wide)
    parts = np.stack([exact.real, exact.imag], axis=-1)[..., : logs.shape[-1]]
    values[first:last] = parts
    rests[first:last] = parts - values[first:last]


def hankel_values(
    first: int,
    last: int,
    discrete: bool,
    poles: RealArray,
    rests: RealArray,
    B: RealArray,
    C: RealArray,
    strict: bool,
    values: RealArray,
    left_bases: RealArray,
    right_bases: RealArray,
) -> bool:
    """Write all Hankel singular values, descending, to ``values (batch, n)``; returns whether every iteration converged.

    If they are not empty, the bases ``Lo U`` and ``Lc V`` of ``Lo^H Lc = U S V^H``, both ``(batch, n, n, planes)``, are written as well. `strict` values are
    those that come with the bases, to the last bit; others may take fewer steps.
    """
    for s in range(first, last):
        X, Y = _factors(s, discrete, poles, rests, B, C)
        U, values[s], Vh = np.linalg.svd(X.T @ Y)
        for target, basis in ((left_bases, X.conj() @ U), (right_bases, Y @ Vh.conj().T)):
            if len(target):
                target[s] = np.stack([basis.real, basis.imag], axis=-1)[..., : target.shape[-1]]
    return True


def _factors(
    s: int, discrete: bool, poles: RealArray, rests: RealArray, B: RealArray, C: RealArray
) -> tuple[Numbers, Numbers]:
    """``conj(Lo)`` and ``Lc``: their Gramians have the same denominators, and the generators ``C^T`` and ``B``."""
    pole, rest = numbers(poles[s]), numbers(rests[s]) if len(rests) else 0.0 * numbers(poles[s])
    if discrete:
        cross = np.outer(pole, rest.conj())
        pairs = 1.0 - np.outer(pole, pole.conj()) - cross - cross.conj().T
    else:
        pairs = -(pole[:, None] + pole.conj())
    gaps = pole[:, None] - pole + (rest[:, None] - rest)
    X, Y = (cauchy_factor(G[None], gaps[None], pairs[None])[0] for G in (numbers(C[s]).T, numbers(B[s])))
    return X, Y


def project(
    first: int,
    last: int,
    discrete: bool,
    poles: Numbers,
    B: Numbers,
    C: Numbers,
    values: RealArray,
    orders: NDArray[np.int64],
    left_bases: Numbers,
    right_bases: Numbers,
    left: Numbers,
    right: Numbers,
    A_r: Numbers,
    B_r: Numbers,
    C_r: Numbers,
) -> None:
    """Scale the first `orders` columns of bases ``(batch, n, n)`` to ``left^H right = I``, zero in the others of ``(batch, n, r)``, and reduce the systems.

    Here arrays are real or complex, without planes, and results may be in single precision. The padding of ``A_r`` is zero, or -1 on the diagonal in continuous time.
    """
    for s in range(first, last):
        r, most = orders[s], A_r.shape[-1]
        scale = 1.0 / np.sqrt(values[s, :r])
        basis, y = left_bases[s, :, :r] * scale, right_bases[s, :, :r] * scale
        x = np.linalg.solve(basis.conj().T @ y, basis.conj().T).conj().T
        for target, result in (
            (left, x),
            (right, y),
            (A_r, x.conj().T @ (poles[s][:, None] * y)),
            (B_r, x.conj().T @ B[s]),
            (C_r, C[s] @ y),
        ):
            target[s] = 0.0
            target[s][tuple(slice(size) for size in result.shape)] = result
        if not discrete:
            A_r[s] -= np.diag(np.arange(most) >= r)


def condition_numbers(
    first: int, last: int, paired: bool, poles: Numbers, vectors: Numbers, conditions: RealArray
) -> bool:
    """The 2-norm condition numbers of ``vectors (batch, n, n)``; returns whether every iteration converged.

    Eigenvectors of real matrices are `paired`: those of ``poles (batch, n)`` above the real axis are the conjugates of those below, one beside the
    other, and ``(v, conj v)`` is ``sqrt(2) (Re v, Im v)`` times a unitary matrix.
    """
    conditions[first:last] = np.linalg.cond(vectors[first:last])
    return True


def stable(first: int, last: int, discrete: bool, A: Numbers, verdicts: NDArray[np.bool_]) -> None:
    """Tell of each matrix of ``A (batch, n, n)`` whether its powers are found to vanish, or those of its Cayley transform.

    A yes is certain but for rounding errors; a no says only that 50 squarings did not show it.
    """
    for s in range(first, last):
        x = A[s]
        if not discrete:
            shift = max(2.0 * float(np.linalg.norm(x)), 2.0**-1000) * np.eye(len(x))
            x = np.linalg.solve(shift - x, shift + x)
        for _ in range(50):
            if not 0.5 <= np.linalg.norm(x) ** 2 < 1e100:
                break
            x = x @ x
        verdicts[s] = np.linalg.norm(x) ** 2 < 0.5


def side_by_side(n: int, planes: int) -> int:
    """How many systems share a vector, for ranges of systems that leave no lane empty; nothing to share here."""
    return 1


def numbers(x: Numbers) -> Numbers:
    """Real or complex numbers from their parts on the last axis."""
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
