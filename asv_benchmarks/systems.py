"""The systems that the benchmarks share, all from fixed seeds."""

import numpy as np

import hsv


def dense_system(n_states: int, *, dt: float | bool, batch: tuple[int, ...] = (), ports: int = 4) -> hsv.StateSpace:
    """Return random dense systems, far from the stability boundary, with as many outputs as inputs."""
    rng = np.random.default_rng(n_states)
    A = rng.standard_normal((*batch, n_states, n_states)) / np.sqrt(n_states)  # eigenvalues fill the unit disc
    A = A / 2 if dt else A - 2.5 * np.eye(n_states)
    B = rng.standard_normal((*batch, n_states, ports))
    C = rng.standard_normal((*batch, ports, n_states))
    return hsv.StateSpace(A, B, C, dt=dt)


def lru_system(n_states: int, width: int) -> hsv.DiagonalStateSpace:
    """Return the complex system of an LRU layer as initialised: moduli in [0.9, 0.999], any phase, normalised inputs."""
    rng = np.random.default_rng(n_states)
    modulus = np.sqrt(rng.uniform(0.9**2, 0.999**2, n_states))
    log_poles = np.log(modulus) + 1j * rng.uniform(0, 2 * np.pi, n_states)
    B = rng.standard_normal((n_states, width, 2)) @ [1, 1j] / np.sqrt(2 * width)
    C = rng.standard_normal((width, n_states, 2)) @ [1, 1j] / np.sqrt(n_states)
    return hsv.DiagonalStateSpace.from_log_poles(log_poles, np.sqrt(1 - modulus**2)[:, None] * B, C)


def diagonal_system(
    n_states: int, *, dt: float | bool, batch: tuple[int, ...] = (), ports: int = 1, dtype: str = "complex128"
) -> hsv.DiagonalStateSpace:
    """Return random diagonal systems, complex or real, with moduli (discrete time) or decay rates (continuous time) of two orders of magnitude."""
    rng = np.random.default_rng(n_states)
    decay = 10 ** rng.uniform(-2, 0, (*batch, n_states))
    poles = -decay.astype(dtype)
    B, C = rng.standard_normal((*batch, n_states, ports)), rng.standard_normal((*batch, ports, n_states))
    if poles.dtype.kind == "c":
        poles = poles + 1j * rng.uniform(-3, 3, (*batch, n_states))
        C = C + 1j * rng.standard_normal((*batch, ports, n_states))
    poles = np.exp(poles) if dt else poles
    return hsv.DiagonalStateSpace(*(x.astype(dtype) for x in (poles, B, C)), dt=dt)
