"""HiPPO-N against the dense HiPPO-LegS matrix, written down entry by entry."""

import numpy as np
import pytest
import torch

from hsv_torch.layers._hippo import hippo_normal
from tests.tolerances import tolerance


def hippo_legs(n):
    """The matrix and the input vector of the LegS measure, by their definition."""
    A, b = np.zeros((n, n)), np.zeros(n)
    for j in range(n):
        b[j] = np.sqrt(2 * j + 1)
        for k in range(j):
            A[j, k] = -np.sqrt(2 * j + 1) * np.sqrt(2 * k + 1)
        A[j, j] = -(j + 1)
    return A, b


@pytest.mark.parametrize("n", [1, 2, 3, 8, 65, 256])
def test_the_parts_put_together_are_hippo_legs(n):
    hippo = hippo_normal(n)
    A, b = hippo_legs(n)
    V, p = hippo.eigenvectors, hippo.low_rank[:, None]
    scale = float(np.abs(A).max() * n)
    together = V @ (torch.diag(hippo.eigenvalues) - p @ p.mH) @ V.mH
    np.testing.assert_allclose(together, A, rtol=0, atol=scale * tolerance(np.float64))
    np.testing.assert_allclose(V @ hippo.input_vector, b, rtol=0, atol=scale * tolerance(np.float64))
    np.testing.assert_allclose(V.mH @ V, np.eye(n), rtol=0, atol=tolerance(np.float64))


@pytest.mark.parametrize("n", [2, 3, 16, 64])
def test_eigenvalues_are_those_of_the_normal_part_and_come_in_pairs(n):
    eigenvalues = hippo_normal(n).eigenvalues.numpy()
    A, _ = hippo_legs(n)
    P = np.sqrt(np.arange(n) + 0.5)
    expected = np.linalg.eigvals(A + np.outer(P, P))
    expected = expected[np.argsort(expected.imag)]
    np.testing.assert_allclose(eigenvalues, expected, rtol=0, atol=n**2 * tolerance(np.float64))
    assert (eigenvalues.real == -0.5).all()
    assert (np.diff(eigenvalues.imag) > 0).all()
    np.testing.assert_allclose(eigenvalues, eigenvalues[::-1].conj(), rtol=0, atol=n**2 * tolerance(np.float64))


def test_small_matrices_have_the_eigenvalues_of_their_characteristic_polynomials():
    # n = 2: K = [[0, r], [-r, 0]] with r = sqrt(3) / 2.  n = 3: w (w^2 - (3 + 5 + 15) / 4) = 0.
    np.testing.assert_allclose(hippo_normal(2).eigenvalues.imag, [-np.sqrt(3) / 2, np.sqrt(3) / 2], rtol=1e-14)
    np.testing.assert_allclose(
        hippo_normal(3).eigenvalues.imag, [-np.sqrt(23) / 2, 0, np.sqrt(23) / 2], rtol=1e-14, atol=1e-14
    )
