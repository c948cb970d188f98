"""Which unstable poles inputs can move, and the gains that move them."""

from __future__ import annotations

import numpy as np

from hsv._blas import eigenvalues
from hsv._errors import IllConditionedError
from hsv._lyapunov import Matrix, adjoint
from hsv._riccati import StabilisingSolution, stabilising_solution

# [A - l I, B] of a mode that nothing moves has a singular value of some eps |A|; one of 1e-10 |A| still gives equations that can be solved.
_UNMOVED = 1e-13


def control_solution(A: Matrix, B: Matrix, C: Matrix, D: Matrix, *, discrete: bool) -> StabilisingSolution:
    """Solve the normalised control equation, of the weights ``|y|^2 + |u|^2``."""
    R = np.eye(D.shape[-1]) + adjoint(D) @ D
    return stabilising_solution(A, B, adjoint(C) @ C, R, adjoint(C) @ D, discrete=discrete)


def require_movable(A: Matrix, B: Matrix, *, discrete: bool, what: str) -> None:
    """Raise where a pole on or outside the stability boundary is an eigenvalue that ``B`` does not reach (Popov, Belevitch, Hautus)."""
    n = A.shape[-1]
    poles = eigenvalues(A)
    outside = np.abs(poles) >= 1 if discrete else poles.real >= 0
    size = np.linalg.norm(A, axis=(-2, -1)) + np.linalg.norm(B, axis=(-2, -1))
    for index in zip(*np.nonzero(outside), strict=True):
        system = index[:-1]
        pencil = np.concatenate([A[system] - poles[index] * np.eye(n), B[system]], axis=-1)
        distance = np.linalg.svd(pencil, compute_uv=False)[-1]
        if distance <= _UNMOVED * size[system]:
            where = f" (system {tuple(int(i) for i in system)})" if system else ""
            raise IllConditionedError(
                f"the pole {complex(poles[index]):.6g}{where} is not stable and is {what}: no controller stabilises the system; take it out with hsv.split_unstable"
            )
