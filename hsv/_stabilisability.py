"""Which unstable poles inputs can move, and the gains that move them."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from hsv._blas import eigenvalues
from hsv._errors import IllConditionedError
from hsv._lyapunov import Matrix, adjoint
from hsv._riccati import StabilisingSolution, stabilising_solution

_EPS = float(np.finfo(np.float64).eps)


def control_solution(A: Matrix, B: Matrix, C: Matrix, D: Matrix, *, discrete: bool) -> StabilisingSolution:
    """Solve the normalised control equation, of the weights ``|y|^2 + |u|^2``."""
    R = np.eye(D.shape[-1]) + adjoint(D) @ D
    return stabilising_solution(A, B, adjoint(C) @ C, R, adjoint(C) @ D, discrete=discrete)


def require_regulable(A: Matrix, B: Matrix | None, C: Matrix | None, *, discrete: bool, decay: float = 0.0) -> None:
    """Raise where a pole on or outside the stability boundary, or one that decays no faster than asked for, is moved by no input, or seen by no output, of those given.

    By the test of Popov, Belevitch and Hautus. `decay` is that of a unit of time, or of a step.
    """
    poles = eigenvalues(A)
    slow = np.abs(poles) >= np.exp(-decay) if discrete else poles.real >= -decay
    for index in zip(*np.nonzero(slow), strict=True):
        system, pole = index[:-1], complex(poles[index])
        found = []
        if B is not None and _distance(A[system], B[system], pole) <= 4 * A.shape[-1] * _EPS:
            found.append("moved by no input")
        if (
            C is not None
            and _distance(adjoint(A[system]), adjoint(C[system]), pole.conjugate()) <= 4 * A.shape[-1] * _EPS
        ):
            found.append("seen by no output")
        if found:
            where = f" (system {tuple(int(i) for i in system)})" if system else ""
            kind = f"decays no faster than {decay:.6g}" if decay else "is not stable"
            raise IllConditionedError(
                f"the pole {pole:.6g}{where} {kind} and is {' and '.join(found)}: no controller can change that; take such states out first"
            )


def _distance(A: Matrix, B: Matrix, pole: complex) -> float:
    """Return the smallest singular value of ``[A - pole I, B]`` relative to ``|A|``, in units of the states that balance ``A`` and of the inputs that make ``B`` as large."""
    A, (scale, _) = scipy.linalg.matrix_balance(A, permute=False, separate=True)
    B = B / scale[:, None]
    size, reach = np.linalg.norm(A), np.linalg.norm(B)
    B = B * (size / reach) if reach > 0 else B
    pencil = np.concatenate([A - pole * np.eye(len(A)), B], axis=-1)
    return float(scipy.linalg.svdvals(pencil)[-1] / size) if size > 0 else float(reach > 0)
