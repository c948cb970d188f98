"""Large sparse systems in small sizes: each returns ``(A, B, C, E)`` with SciPy's sparse arrays."""

import numpy as np
import scipy.sparse as sp


def second_difference(n):
    one = np.ones(n)
    return sp.diags_array([one[1:], -2 * one, one[1:]], offsets=[-1, 0, 1])


def heat_in_a_square(k):
    """Five-point Laplacian on k x k inner points, heated in one corner region, measured in another."""
    T = (k + 1.0) ** 2 * second_difference(k)
    x, y = np.meshgrid(*2 * [np.arange(1, k + 1) / (k + 1)], indexing="ij")
    B = ((x < 0.3) & (y < 0.3)).astype(float).reshape(-1, 1)
    C = ((x > 0.6) & (y > 0.5)).astype(float).reshape(1, -1) / k**2
    return sp.kronsum(T, T, format="csc"), B, C, None


def convection_diffusion(k, velocity=(10.0, 100.0), n_inputs=2, n_outputs=3, seed=0):
    """Central differences of ``laplace(x) - velocity . grad(x)``: not symmetric, strongly non-normal for a large velocity."""
    one, h = np.ones(k), 1 / (k + 1)
    T, D = second_difference(k) / h**2, sp.diags_array([-one[1:], one[1:]], offsets=[-1, 1]) / (2 * h)
    A = sp.kron(T - velocity[0] * D, sp.eye_array(k)) + sp.kron(sp.eye_array(k), T - velocity[1] * D)
    rng = np.random.default_rng(seed)
    return A.tocsc(), rng.standard_normal((k * k, n_inputs)), rng.standard_normal((n_outputs, k * k)), None


def rod_of_finite_elements(n):
    """Linear elements on a rod that is cold at the left and heated at the right; the mass matrix is not lumped."""
    h, one = 1 / n, np.ones(n)
    last = np.r_[one[1:], 0.5]
    E = sp.diags_array([one[1:] * h / 6, last * 4 * h / 6, one[1:] * h / 6], offsets=[-1, 0, 1]).tocsc()
    A = sp.diags_array([one[1:] / h, -2 * last / h, one[1:] / h], offsets=[-1, 0, 1]).tocsc()
    B, C = np.zeros((n, 1)), np.zeros((2, n))
    B[-1], C[0, n // 2], C[1, -1] = 1, 1, 1
    return A, B, C, E


def damped_chain(k, damping):
    """Masses and springs in a row, in first order form: 2 k states, poles near the imaginary axis for little damping."""
    K = -second_difference(k)
    A = sp.block_array([[None, sp.eye_array(k)], [-K, -damping * K - 1e-3 * sp.eye_array(k)]], format="csc")
    B, C = np.zeros((2 * k, 1)), np.zeros((1, 2 * k))
    B[k], C[0, k - 1] = 1, 1
    return A, B, C, None


def resonances(k, seed=0):
    """Like the arm of a CD player: k lightly damped modes over three decades, two inputs and two outputs."""
    blocks = [np.array([[-0.01 * w, w], [-w, -0.01 * w]]) for w in np.logspace(1, 4, k)]
    rng = np.random.default_rng(seed)
    return sp.block_diag(blocks, format="csc"), rng.standard_normal((2 * k, 2)), rng.standard_normal((2, 2 * k)), None


def complex_advection(n, seed=0):
    """A complex non-normal matrix: diffusion on a line with a complex potential and complex inputs and outputs."""
    rng = np.random.default_rng(seed)
    potential = sp.diags_array(-1.0 - np.linspace(0, 3, n) + 1j * rng.uniform(-40, 5, n))
    A = ((n / 8) ** 2 * second_difference(n)).tocsc() + potential.tocsc()
    B = rng.standard_normal((n, 2)) + 1j * rng.standard_normal((n, 2))
    C = rng.standard_normal((1, n)) + 1j * rng.standard_normal((1, n))
    return A.tocsc(), B, C, None


def implicit_euler(A, B, C, E, step):
    """The discrete system of one step of the implicit Euler method: ``(E - step A) x+ = E x + step B u``."""
    mass = sp.eye_array(A.shape[0], format="csc") if E is None else E
    return mass, step * B, C, (mass - step * A).tocsc()
