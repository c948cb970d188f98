"""Moment matching: the reduction that agrees with a system in value and derivatives at one point."""

import numpy as np

import hsv


def moment_matching(sys: hsv.StateSpace, rule: hsv.Rule | int, point: complex = 0.0) -> hsv.Reduction:
    r"""Return :math:`(V^H A V, V^H B, C V, D)` with the columns of `V` an orthonormal basis of the Krylov space.

    .. math:: \operatorname{span}\{(sI - A)^{-1} B, (sI - A)^{-2} B, \dots\}

    For one input the first ``r`` Taylor coefficients of the transfer function at ``s`` are those of the system. There is no error bound, and stability is not kept in general.

    Parameters
    ----------
    sys : StateSpace
        One system with one input, NumPy arrays.
    rule : Rule or int
        Sees the Hankel singular values of `sys`.
    point : complex
        Where to match; no pole of `sys`.
    """
    if sys.batch_shape or sys.n_inputs != 1:
        raise hsv.ShapeError(
            f"`sys` must be one system with one input, got batch {sys.batch_shape} and {sys.n_inputs} inputs"
        )
    sigma = hsv.hankel_singular_values(sys)
    order = int(hsv.as_rule(rule).choose(sigma))
    shifted = point * np.eye(sys.n_states) - sys.A
    columns = [np.linalg.solve(shifted, sys.B)]
    for _ in range(order - 1):
        columns.append(np.linalg.solve(shifted, columns[-1] / np.linalg.norm(columns[-1])))
    V, _ = np.linalg.qr(np.concatenate(columns, axis=1))
    small = hsv.StateSpace(V.conj().T @ sys.A @ V, V.conj().T @ sys.B, sys.C @ V, sys.D, dt=sys.dt)
    return hsv.Reduction(small, np.asarray(order), sigma, error_bound=None, left=V, right=V)
