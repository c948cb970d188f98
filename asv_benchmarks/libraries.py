"""What each library is asked to compute: functions that take a system and return the computation, ready to be run.

A peer is imported only where it computes, so that its imports weigh on nobody else's memory. Peers without batches get a loop,
with their objects made beforehand.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

import hsv

Computation = Callable[[], Any]


def gramian(library: str, system: hsv.StateSpace) -> Computation:
    """Prepare the controllability Gramians of real continuous systems."""
    if library == "hsv":
        return lambda: hsv.controllability_gramian(system)
    if library == "python-control":
        import control

        peers = to_control(system)
        return lambda: [control.gram(peer, "c") for peer in peers]
    if library == "scipy":
        return lambda: [scipy.linalg.solve_continuous_lyapunov(s.A, -s.B @ s.B.T) for s in members(system)]
    raise ValueError(library)


def factor(library: str, system: hsv.StateSpace) -> Computation:
    """Prepare factors of the controllability Gramians of real continuous systems."""
    if library == "hsv":
        return lambda: hsv.controllability_factor(system)
    if library == "python-control":
        import control

        peers = to_control(system)
        return lambda: [control.gram(peer, "cf") for peer in peers]
    raise ValueError(library)


def hankel_singular_values(library: str, system: hsv.StateSpace | hsv.DiagonalStateSpace) -> Computation:
    """Prepare all Hankel singular values; complex systems for SLICOT as the real system of ``u -> Re(y)``."""
    if library == "hsv":
        return lambda: hsv.hankel_singular_values(system)
    if library == "python-control":
        import control

        peers = to_control(system)
        return lambda: [control.hsvd(peer) for peer in peers]
    if library == "slycot":
        calls = slycot_ab09ad(system, 1)  # slycot has no routine for the values alone
        return lambda: [call()[-1] for call in calls]
    if library == "numpy":
        return lambda: plain_hankel_singular_values(system)
    raise ValueError(library)


def balanced_truncation(library: str, system: hsv.StateSpace | hsv.DiagonalStateSpace, order: int) -> Computation:
    """Prepare balanced truncations; a complex system for SLICOT as the real one of twice the states, cut to twice the order."""
    if library == "hsv":
        return lambda: hsv.balanced_truncation(system, order)
    if library == "python-control":
        import control

        peers = to_control(system)
        return lambda: [control.balred(peer, order) for peer in peers]
    if library == "slycot":
        calls = slycot_ab09ad(system, 2 * order if system.is_complex else order)
        return lambda: [call() for call in calls]
    raise ValueError(library)


def in_arrays(library: str, system: Any, dtype: str | None = None) -> Any:
    """Return the system with torch tensors for a library whose name ends in "torch", in another precision if asked."""
    parts = [system.poles() if isinstance(system, hsv.DiagonalStateSpace) else system.A, system.B, system.C, system.D]
    if dtype is not None:
        parts = [x.astype(dtype) for x in parts]
    if library.endswith("torch"):
        import torch

        parts = [torch.asarray(x) for x in parts]
    return type(system)(*parts, dt=system.dt)


def members(system: hsv.StateSpace) -> list[hsv.StateSpace]:
    """Return the systems of a batch with one axis, or the one system."""
    if not system.batch_shape:
        return [system]
    each = zip(system.A, system.B, system.C, system.D, strict=True)
    return [hsv.StateSpace(A, B, C, D, dt=system.dt) for A, B, C, D in each]


def to_control(system: hsv.StateSpace) -> list[Any]:
    """Return python-control's object for each system of a batch."""
    import control

    return [control.ss(s.A, s.B, s.C, s.D, s.dt) for s in members(system)]


def slycot_ab09ad(system: hsv.StateSpace | hsv.DiagonalStateSpace, order: int) -> list[Computation]:
    """Prepare a call of AB09AD (square-root balanced truncation, all Hankel values last) for each system of a batch."""
    import slycot

    real = hsv.real_part(system).to_dense() if system.is_complex else system
    kind = "D" if system.is_discrete else "C"

    def call(s: hsv.StateSpace) -> Computation:
        return lambda: slycot.ab09ad(
            kind, "B", "N", s.n_states, s.n_inputs, s.n_outputs, s.A, s.B, s.C, nr=order
        )  # fmt: skip

    return [call(s) for s in members(real)]


def plain_hankel_singular_values(system: hsv.DiagonalStateSpace) -> np.ndarray:
    """Return the values as a few lines of NumPy give them, which fail where a Gramian is nearly singular."""
    poles, B, C = system.poles(), system.B, system.C
    gap = 1 - poles[:, None] * poles.conj()
    P = B @ B.conj().T / gap
    Q = C.conj().T @ C / gap.conj()
    return np.linalg.svd(np.linalg.cholesky(Q).conj().T @ np.linalg.cholesky(P), compute_uv=False)
