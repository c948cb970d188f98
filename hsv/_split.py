"""The stable and the unstable part of a system."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from hsv import _array
from hsv._array import Array, namespace, on_host, round_to, to_host, widen
from hsv._errors import IllConditionedError
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_dense, require_system, stability_margin


def split_unstable(sys: LinearSystem) -> tuple[LinearSystem, LinearSystem]:
    r"""Write a system as the sum of a stable and an unstable one.

    .. math:: G = G_{\text{stable}} + G_{\text{unstable}}

    Poles on the stability boundary count as unstable. ``D`` stays with the stable part.

    Returns
    -------
    stable, unstable : StateSpace or DiagonalStateSpace
        As `sys` is. Where a part has no pole, or in a batch fewer than that of another system, it is padded with states that
        nothing enters or leaves: zero rows and columns of ``B`` and ``C``, poles at 0 (discrete) or -1 (continuous).

    Raises
    ------
    IllConditionedError
        Stable and unstable poles are too close to be told apart.

    Notes
    -----
    Dense systems: an ordered Schur form and a Sylvester equation for the block-diagonal form, on the host, ``O(n^3)``. The two parts
    are as well determined as their poles are far apart. Diagonal systems: a choice of states, exact.

    References
    ----------
    Golub and Van Loan, "Matrix Computations", section 7.6.3.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([2.0, 0.5], [[1.0], [1.0]], [[3.0, 4.0]], dt=True)
    >>> stable, unstable = hsv.split_unstable(sys)
    >>> stable.poles(), unstable.poles()
    (array([0.5]), array([2.]))
    """
    require_system(sys)
    if isinstance(sys, DiagonalStateSpace):
        stable = to_host(stability_margin(sys) > 0)
        return _choose_states(sys, stable, sys.D), _choose_states(sys, ~stable, sys.D * 0)
    sys = require_dense(sys)
    parts = on_host(
        lambda A, B, C: _split_host(A, B, C, discrete=sys.is_discrete),
        *(widen(x) for x in (sys.A, sys.B, sys.C)),
        reason="the Schur form",
    )
    A1, B1, C1, A2, B2, C2 = (round_to(x, sys.A) for x in parts)
    return StateSpace(A1, B1, C1, sys.D, dt=sys.dt), StateSpace(A2, B2, C2, sys.D * 0, dt=sys.dt)


def _choose_states(sys: DiagonalStateSpace, chosen: np.ndarray, D: Array) -> DiagonalStateSpace:
    """Keep the chosen states of every system, in their order, padded to the largest number of them."""
    xp = namespace(sys.B)
    size = max(int(chosen.sum(axis=-1).max(initial=0)), 1)
    order = np.argsort(~chosen, axis=-1, kind="stable")[..., :size]
    index = _array.from_host(order, sys.B)
    kept = _array.from_host(np.take_along_axis(chosen, order, axis=-1).astype(np.float64), sys.B)

    def take(x: Array, axis: int) -> Array:
        at = index[..., :, None] if axis == -2 else index[..., None, :]
        keep = kept[..., :, None] if axis == -2 else kept[..., None, :]
        shape = list(x.shape)
        shape[axis] = size
        return xp.take_along_axis(x, xp.broadcast_to(at, tuple(shape)), axis=axis) * xp.astype(keep, x.dtype)

    B, C = take(sys.B, -2), take(sys.C, -1)
    if sys.log_poles is not None and bool(np.take_along_axis(chosen, order, axis=-1).all()):
        return DiagonalStateSpace.from_log_poles(take(sys.log_poles[..., None, :], -1)[..., 0, :], B, C, D, dt=sys.dt)
    poles = take(sys.poles()[..., None, :], -1)[..., 0, :]
    return DiagonalStateSpace(
        poles if sys.is_discrete else poles - xp.astype(1 - kept, poles.dtype), B, C, D, dt=sys.dt
    )


def _split_host(A: np.ndarray, B: np.ndarray, C: np.ndarray, *, discrete: bool) -> tuple[np.ndarray, ...]:
    batch, n = A.shape[:-2], A.shape[-1]
    split = {index: _split_one(A[index], B[index], C[index], discrete=discrete) for index in np.ndindex(*batch)}
    stable_size = max((parts[0].shape[0] for parts in split.values()), default=0)
    unstable_size = max((n - parts[0].shape[0] for parts in split.values()), default=0)
    sizes = (max(stable_size, 1), max(unstable_size, 1))
    out = []
    for size in sizes:
        padding = (0.0 if discrete else -1.0) * np.eye(size, dtype=A.dtype)
        out += [
            np.tile(padding, (*batch, 1, 1)),
            np.zeros((*batch, size, B.shape[-1]), A.dtype),
            np.zeros((*batch, C.shape[-2], size), A.dtype),
        ]
    for index, parts in split.items():
        for target, part in zip(out, parts, strict=True):
            target[index][: part.shape[0], : part.shape[1]] = part  # what lies beyond is decoupled
    return tuple(out)


def _split_one(A: np.ndarray, B: np.ndarray, C: np.ndarray, *, discrete: bool) -> tuple[np.ndarray, ...]:
    def is_stable(re: float | complex, im: float = 0.0) -> bool:
        pole = complex(re) + 1j * im
        return abs(pole) < 1 if discrete else pole.real < 0

    # Powers of two, no digit changes; states in units far apart would blur which poles are stable.
    A, (scale, _) = scipy.linalg.matrix_balance(A, permute=False, separate=True)
    B, C = B / scale[:, None], C * scale
    try:
        T, Z, k = scipy.linalg.schur(A, output="complex" if np.iscomplexobj(A) else "real", sort=is_stable)
    except np.linalg.LinAlgError as error:
        raise IllConditionedError(
            "A has stable and unstable poles so close that their order in the Schur form is not determined; shift one of them"
        ) from error
    ZB, CZ = Z.conj().T @ B, C @ Z
    X = np.zeros((k, len(A) - k), A.dtype)
    if 0 < k < len(A):
        X = scipy.linalg.solve_sylvester(T[:k, :k], -T[k:, k:], -T[:k, k:])
        if not np.all(np.isfinite(X)):
            raise IllConditionedError("A has stable and unstable poles too close to be separated; shift one of them")
    stable = T[:k, :k], ZB[:k] - X @ ZB[k:], CZ[:, :k]
    return *stable, T[k:, k:], ZB[k:], CZ[:, :k] @ X + CZ[:, k:]
