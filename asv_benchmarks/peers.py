"""How each peer computes what the benchmarks ask for."""

import control
import numpy as np
import slycot

import hsv


def to_control(sys: hsv.StateSpace) -> control.StateSpace:
    """Return one real system as python-control's object."""
    return control.ss(sys.A, sys.B, sys.C, sys.D, sys.dt)


def slycot_ab09ad(sys: hsv.StateSpace, order: int) -> tuple:
    """Call SLICOT's AB09AD (square-root balanced truncation): order, A, B, C and all Hankel values of one real system."""
    kind = "D" if sys.is_discrete else "C"
    return slycot.ab09ad(kind, "B", "N", sys.n_states, sys.n_inputs, sys.n_outputs, sys.A, sys.B, sys.C, nr=order)


def plain_hankel_singular_values(sys: hsv.DiagonalStateSpace) -> np.ndarray:
    """Return the values as a few lines of NumPy give them: closed-form Gramians, Cholesky, SVD. Fails where a Gramian is near singular."""
    poles, B, C = sys.poles(), sys.B, sys.C
    gap = 1 - poles[:, None] * poles.conj()
    P = B @ B.conj().T / gap
    Q = C.conj().T @ C / gap.conj()
    return np.linalg.svd(np.linalg.cholesky(Q).conj().T @ np.linalg.cholesky(P), compute_uv=False)
