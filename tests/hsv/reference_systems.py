"""Systems and equations whose answers are known, each with where its numbers come from, and families of systems by formula.

Compare poles, Hankel singular values and transfer functions of reduced systems; never the entries of their matrices, which depend on
the coordinates. The printed answers have as many digits as their source: `digits` counts them after the decimal point.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.signal

import hsv


@dataclass(frozen=True)
class ReferenceSystem:
    """A system, where it comes from, and what is known of it."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    dt: float | bool
    source: str
    D: np.ndarray | None = None
    hankel_singular_values: np.ndarray | None = None
    controllability_gramian: np.ndarray | None = None
    observability_gramian: np.ndarray | None = None
    digits: int = 14
    reductions: dict[str, dict[str, object]] = field(default_factory=dict)
    """What a method gives: ``{"singular_perturbation": {"order": 5, "D": ...}}``."""

    def system(self) -> hsv.StateSpace:
        """Return it as a system of the library."""
        return hsv.StateSpace(self.A, self.B, self.C, self.D, dt=self.dt)


@dataclass(frozen=True)
class ReferenceEquation:
    """Coefficients and the printed solution of a matrix equation."""

    a: np.ndarray
    q: np.ndarray
    x: np.ndarray
    source: str


def slicot_power_system() -> ReferenceSystem:
    """Seven states, two inputs, three outputs: two coupled areas of a power network."""
    B = np.zeros((7, 2))
    B[1, 0] = B[5, 1] = 12.5
    return ReferenceSystem(
        A=np.array(
            [
                [-0.04165, 0, 4.92, -4.92, 0, 0, 0],
                [-5.21, -12.5, 0, 0, 0, 0, 0],
                [0, 3.33, -3.33, 0, 0, 0, 0],
                [0.545, 0, 0, 0, -0.545, 0, 0],
                [0, 0, 0, 4.92, -0.04165, 0, 4.92],
                [0, 0, 0, 0, -5.21, -12.5, 0],
                [0, 0, 0, 0, 0, 3.33, -3.33],
            ]
        ),
        B=B,
        C=np.eye(7)[[0, 3, 4]],
        dt=0,
        source="printed results of the example programs of SLICOT's AB09AD, AB09BD, AB09CD and AB09MD",
        hankel_singular_values=np.array(
            [2.51387937, 2.08456252, 1.91779535, 0.7666415, 0.54728542, 0.02526614, 0.02458239]
        ),
        digits=8,
        reductions={
            "balanced_truncation": {"threshold": 0.1, "order": 5},
            "singular_perturbation": {
                "order": 5,
                "D": np.array([[0.0498, -0.0007], [0.0010, -0.0010], [-0.0007, 0.0498]]),
            },
            "hankel_norm_approximation": {
                "order": 5,
                "poles": np.array(
                    [-1.5171, -1.2925 + 2.1397j, -1.2925 - 2.1397j, -0.5038 + 3.1211j, -0.5038 - 3.1211j]
                ),
                "D": np.array([[0.0126, -0.0126], [0.0005, -0.0005], [-0.0126, 0.0126]]),
            },
            "part_left_of_-0.6": {"hankel_singular_values": np.array([1.9178, 0.8621, 0.7666, 0.0336, 0.0246])},
        },
    )


def two_state_lag() -> ReferenceSystem:
    """Two states, one input, one output, continuous."""
    return ReferenceSystem(
        A=np.array([[1.0, -2.0], [3.0, -4.0]]),
        B=np.array([[5.0], [7.0]]),
        C=np.array([[6.0, 8.0]]),
        dt=0,
        source="Hankel values and Gramian: python-control's tests, after MATLAB's hsvd and gram",
        hankel_singular_values=np.array([24.42686, 0.5731395]),
        controllability_gramian=np.array([[7.166667, 9.833333], [9.833333, 13.5]]),
        digits=5,
    )


def two_state_lag_sampled() -> ReferenceSystem:
    r"""`two_state_lag` sampled with a zero-order hold every 0.2 s; :math:`A = V \operatorname{diag}(-1, -2) V^{-1}` in closed form."""
    lag, step = two_state_lag(), 0.2
    V, poles = np.array([[1.0, 2.0], [1.0, 3.0]]), np.array([-1.0, -2.0])
    Vinv = np.array([[3.0, -2.0], [-1.0, 1.0]])
    return ReferenceSystem(
        A=V @ np.diag(np.exp(poles * step)) @ Vinv,
        B=V @ np.diag(np.expm1(poles * step) / poles) @ Vinv @ lag.B,
        C=lag.C,
        dt=step,
        source="python-control's tests, after MATLAB's gram",
        controllability_gramian=np.array([[1.418978, 1.946180], [1.946180, 2.670758]]),
        digits=6,
    )


def four_state_transfer_function() -> ReferenceSystem:
    """(s^3 + 11 s^2 + 45 s + 32) / (s^4 + 15 s^3 + 60 s^2 + 200 s + 60), in controller form."""
    return ReferenceSystem(
        A=np.vstack([[-15.0, -60.0, -200.0, -60.0], np.eye(3, 4)]),
        B=np.eye(4, 1),
        C=np.array([[1.0, 11.0, 45.0, 32.0]]),
        dt=0,
        source="python-control's tests of balred, after MATLAB's documentation; the DC-matched reduction from 50-digit arithmetic",
        digits=3,
        reductions={
            "balanced_truncation": {"order": 2, "A": np.array([[-1.958, -1.194], [-1.194, -0.8344]])},
            "singular_perturbation": {
                "order": 2,
                "A": np.array([[-4.4311947204, 4.5521484693], [4.5521484693, -5.36124947403]]),
                "D": np.array([[-0.0838415234725]]),
            },
        },
    )


def two_state_oscillator() -> ReferenceSystem:
    """Two states, discrete; only the output matters."""
    return ReferenceSystem(
        A=np.array([[-0.31, 0.21], [-0.68, -0.57]]),
        B=np.eye(2),
        C=np.array([[1.32, -0.55]]),
        dt=True,
        source="printed discrete observability Gramian, MATLAB's dgram",
        observability_gramian=np.array([[2.06193690, -0.57482614], [-0.57482614, 0.78661650]]),
        digits=8,
    )


@dataclass(frozen=True)
class WeightedReduction:
    """A frequency-weighted reduction with its printed answer; numerators and denominators by falling powers."""

    plant: tuple[list[float], list[float]]
    input_weight: tuple[list[float], list[float]]
    output_weight: tuple[list[float], list[float]]
    order: int
    reduced: tuple[list[float], list[float]]
    weighted_error: float
    source: str

    def system(self) -> hsv.StateSpace:
        """Return the plant."""
        return _from_polynomials(*self.plant)

    def weights(self) -> dict[str, hsv.StateSpace]:
        """Return both weights, named as the arguments of the weighted methods."""
        return {
            "input_weight": _from_polynomials(*self.input_weight),
            "output_weight": _from_polynomials(*self.output_weight),
        }


def varga_weighted() -> WeightedReduction:
    """Singular perturbation of order 1 between two weights."""
    return WeightedReduction(
        plant=([8.0, 6.0, 2.0], [1.0, 4.0, 5.0, 2.0]),
        input_weight=([1.0], [1.0, 3.0]),
        output_weight=([1.0], [1.0, 4.0]),
        order=1,
        reduced=([2.398, 1.739], [1.0, 1.739]),
        weighted_error=0.0855,
        source="Varga, on frequency-weighted balanced reduction in SLICOT",
    )


def _from_polynomials(numerator: list[float], denominator: list[float]) -> hsv.StateSpace:
    return hsv.from_scipy(scipy.signal.TransferFunction(numerator, denominator))


def slicot_sb03od() -> ReferenceEquation:
    """``a x + x a^H = q`` with ``q = -b b^H``; ``b`` is `slicot_sb03od_factor`."""
    A = np.array([[-1.0, 37, -12, -12], [-1, -10, 0, 4], [2, -4, 7, -6], [2, 2, 7, -9]])
    b = slicot_sb03od_factor()
    x = np.array([[1.0, 3, 2, -1], [3, 10, 5, -2], [2, 5, 6, -5], [-1, -2, -5, 7]])
    return ReferenceEquation(a=A.T, q=-b @ b.T, x=x, source="printed result of SLICOT's example program of SB03OD")


def slicot_sb03od_factor() -> np.ndarray:
    """More inputs (5) than states (4)."""
    return np.array([[1, 2.5, 1, 3.5], [0, 1, 0, 1], [-1, -2.5, -1, -1.5], [1, 2.5, 4, -5.5], [-1, -2.5, -4, 3.5]]).T


def slicot_sb03md() -> ReferenceEquation:
    """``a x a^H - x + q = 0`` with an ``a`` that is not stable and a ``q`` that is not negative."""
    A = np.array([[3.0, 1, 1], [1, 3, 0], [0, 0, 3]])
    q = -np.array([[25.0, 24, 15], [24, 32, 8], [15, 8, 40]])
    x = np.array([[2.0, 1, 1], [1, 3, 0], [1, 0, 4]])
    return ReferenceEquation(a=A.T, q=q, x=x, source="printed result of SLICOT's example program of SB03MD")


def lyapunov_benchmark(
    n: int, *, discrete: bool, r: float = 1.5, s: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Return ``a, b`` and the exact solution ``x`` of the Lyapunov equation with right-hand side ``-b b^T``.

    ``a = W diag(l) W^{-1}`` with ``W`` of condition ``s^(n-1)``; eigenvalues ``-r^(i-1)`` in continuous time, ``(r^(i-1) - 1) /
    (r^(i-1) + 1)`` in discrete time. In the coordinates of the eigenvectors ``b_i = i``, and ``x_ij = i j / -(l_i + l_j)`` or
    ``i j / (1 - l_i l_j)``.

    Kressner, Mehrmann and Penzl, "CTLEX" and "DTLEX", SLICOT working notes 1999-6 and 1999-7, examples 4.1.
    """
    index = np.arange(1, n + 1)
    growth = r ** (index - 1.0)
    poles = (growth - 1) / (growth + 1) if discrete else -growth
    first = np.eye(n) - 2 / n
    signs = (-1.0) ** index
    second = np.eye(n) - 2 / n * np.outer(signs, signs)
    scaling = s ** (index - 1.0)
    V, V_inverse = second @ np.diag(scaling) @ first, first @ np.diag(1 / scaling) @ second
    denominators = 1 - np.outer(poles, poles) if discrete else -np.add.outer(poles, poles)
    W, W_inverse = V_inverse.T, V.T  # the benchmark is stated for a^T x + x a = -b^T b
    x = W @ (np.outer(index, index) / denominators) @ W.T
    return W @ np.diag(poles) @ W_inverse, W @ index[:, None].astype(float), x


def heat_equation(n: int) -> ReferenceSystem:
    """A rod of length 1 with cold ends in `n` inner points, heated at a third of it, measured at two thirds.

    The second difference, ``(n + 1)^2 tridiag(1, -2, 1)``. Its Hankel values fall by orders of magnitude from one to the next.
    """
    A = (n + 1.0) ** 2 * (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n))
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[n // 3, 0] = n + 1.0
    C[0, (2 * n) // 3] = 1.0
    return ReferenceSystem(
        A=A, B=B, C=C, dt=0, source="finite differences; as in the collection of Chahlaoui and Van Dooren (2002)"
    )


def penzl_fom(n_real: int = 1000) -> ReferenceSystem:
    """Penzl's "FOM": three lightly damped modes at 100, 200 and 400 rad/s, and real poles -1, ..., -`n_real`.

    Penzl, "Algorithms for model reduction of large dynamical systems", Linear Algebra Appl. 415 (2006), example 2.
    """
    n = 6 + n_real
    A = np.zeros((n, n))
    for i, frequency in enumerate((100.0, 200.0, 400.0)):
        A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[-1.0, frequency], [-frequency, -1.0]]
    A[np.arange(6, n), np.arange(6, n)] = -np.arange(1.0, n_real + 1)
    B = np.ones((n, 1))
    B[:6] = 10.0
    return ReferenceSystem(A=A, B=B, C=B.T.copy(), dt=0, source="Penzl (2006), example 2")


def penzl_fom_modes(n_real: int = 1000) -> hsv.DiagonalStateSpace:
    """`penzl_fom` in the coordinates of its eigenvectors, which are orthonormal: ``(1, +-i) / sqrt(2)`` in each block."""
    frequencies = 1j * np.array([100.0, 200.0, 400.0])
    poles = np.concatenate([-1 + frequencies, -1 - frequencies, -np.arange(1.0, n_real + 1)])
    b = np.concatenate([np.full(3, 10 - 10j) / np.sqrt(2), np.full(3, 10 + 10j) / np.sqrt(2), np.ones(n_real)])
    return hsv.DiagonalStateSpace(poles, b[:, None], b.conj()[None, :], dt=0)


def clamped_beam(n_elements: int) -> ReferenceSystem:
    """A light beam of length 1, clamped at one end, pushed at the other, where its deflection is measured; ``4 n_elements`` states.

    Euler and Bernoulli's beam of unit stiffness and mass per length in cubic finite elements with consistent mass; damping ``0.05 M + 1e-5 K``. The first
    frequency is 1.8751^2 = 3.516 rad/s, the first damping ratio 0.7 %.
    """
    h = 1 / n_elements
    stiffness = np.array([[12, 6 * h, -12, 6 * h], [6 * h, 4 * h**2, -6 * h, 2 * h**2]])
    mass = np.array([[156, 22 * h, 54, -13 * h], [22 * h, 4 * h**2, 13 * h, -3 * h**2]])
    turned = [2, 3, 0, 1], np.array([1, -1, 1, -1])  # the other end of an element, seen from there
    stiffness, mass = (
        np.vstack([m, (m * turned[1])[:, turned[0]] * np.array([[1], [-1]])]) * scale
        for m, scale in ((stiffness, h**-3), (mass, h / 420))
    )
    n = 2 * n_elements
    K, M = np.zeros((n + 2, n + 2)), np.zeros((n + 2, n + 2))
    for first in range(0, n, 2):
        K[first : first + 4, first : first + 4] += stiffness
        M[first : first + 4, first : first + 4] += mass
    K, M = K[2:, 2:], M[2:, 2:]  # neither deflection nor slope at the clamp
    force = np.zeros((n, 1))
    force[n - 2] = 1.0
    damping = 0.05 * M + 1e-5 * K
    A = np.block([[np.zeros((n, n)), np.eye(n)], [-np.linalg.solve(M, K), -np.linalg.solve(M, damping)]])
    B = np.vstack([np.zeros((n, 1)), np.linalg.solve(M, force)])
    return ReferenceSystem(
        A=A, B=B, C=np.vstack([force, np.zeros((n, 1))]).T, dt=0, source="finite elements by formula"
    )


def prescribed_hankel_values(
    rng: np.random.Generator, sigma: np.ndarray, ports: int, *, condition: float = 1.0
) -> ReferenceSystem:
    r"""Draw a real continuous system with these Hankel values, distinct and positive, and as many outputs as inputs.

    Rows :math:`b_i` of ``B`` and columns :math:`c_i` of ``C`` of equal length, in random directions, and

    .. math:: A_{ij} = \frac{\sigma_i c_i^T c_j - \sigma_j b_i^T b_j}{\sigma_j^2 - \sigma_i^2}, \qquad A_{ii} = -\frac{b_i^T b_i}{2 \sigma_i},

    make both Gramians :math:`\operatorname{diag}(\sigma)`; then random coordinates of the given condition. Rounding of the entries moves the values by
    about ``eps * condition^2`` of the largest.
    """
    n = len(sigma)

    def directions() -> np.ndarray:
        rows = rng.normal(size=(n, ports))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.sqrt(sigma)[:, None]

    b, c = directions(), directions()
    gap = sigma[None, :] ** 2 - sigma[:, None] ** 2 + np.eye(n)  # (i, j); the diagonal is written below
    A = (sigma[:, None] * (c @ c.T) - sigma[None, :] * (b @ b.T)) / gap
    A[np.arange(n), np.arange(n)] = -0.5  # b_i^T b_i = sigma_i
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    stretch = np.geomspace(1, 1 / condition, n)
    T, T_inverse = left * stretch @ right.T, right / stretch @ left.T
    return ReferenceSystem(
        A=T @ A @ T_inverse,
        B=T @ b,
        C=c.T @ T_inverse,
        dt=0,
        source="balanced realisations: Pernebo and Silverman (1982), Ober (1987)",
        hankel_singular_values=sigma,
    )


def lru_initialisation(
    rng: np.random.Generator,
    n: int,
    m: int,
    *,
    p: int | None = None,
    max_phase: float = 2 * np.pi,
    min_radius: float = 0.9,
    max_radius: float = 0.999,
    batch: tuple[int, ...] = (),
) -> hsv.DiagonalStateSpace:
    """Draw a linear recurrent unit as it is initialised: poles uniform on a ring sector, Glorot maps, and inputs scaled to keep the state's size.

    Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 2023, section 3.
    """
    p = m if p is None else p
    radius = np.sqrt(rng.uniform(min_radius**2, max_radius**2, (*batch, n)))
    poles = radius * np.exp(1j * rng.uniform(0, max_phase, (*batch, n)))
    B = complex_normal(rng, (*batch, n, m)) / np.sqrt(m) * np.sqrt((1 - radius) * (1 + radius))[..., None]
    C = complex_normal(rng, (*batch, p, n)) / np.sqrt(n)
    return hsv.DiagonalStateSpace(poles, B, C, dt=True)


def random_stable(
    rng: np.random.Generator,
    n: int,
    m: int,
    p: int,
    *,
    dt: float | bool,
    complex_: bool = False,
    damping: float = 0.05,
    batch: tuple[int, ...] = (),
) -> hsv.StateSpace:
    """Draw a dense, non-normal system whose least damped pole has ``1 - |pole|`` or ``-Re(pole) / radius`` equal to `damping`."""
    draw = complex_normal if complex_ else lambda rng, shape: rng.normal(size=shape)
    A = draw(rng, (*batch, n, n))
    eigenvalues = np.linalg.eigvals(A)
    radius = np.abs(eigenvalues).max(axis=-1)[..., None, None]
    if dt:
        A = A * ((1 - damping) / radius)
    else:
        A = A / radius
        A = A - (np.linalg.eigvals(A).real.max(axis=-1)[..., None, None] + damping) * np.eye(n)
    return hsv.StateSpace(A, draw(rng, (*batch, n, m)), draw(rng, (*batch, p, n)), dt=dt)


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw complex normal numbers of unit variance."""
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)
