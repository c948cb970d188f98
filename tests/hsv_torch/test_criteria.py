"""Criteria over batches of systems, the maps that a cut makes, and the parts of systems with real poles."""

import numpy as np
import pytest
import torch

import hsv
from hsv_torch import ComplexHankel, CutRefusedError, RealHankel, RealPoles, SymmetricHankel
from hsv_torch._diagonal_form import _diagonalize_here, diagonalize, fit_into, slots_needed, truncated
from hsv_torch.diagonal_cut import WidelyLinearMap

READINGS = pytest.mark.parametrize("criterion", [ComplexHankel(), RealHankel()], ids=lambda c: type(c).__name__)


def draw(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def systems(*batch, n=6, m=2, p=3, seed=0):
    """Poles of modulus 0.5 to 0.95, some close together."""
    uniform = torch.rand(*batch, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    log_poles = torch.complex(torch.log(0.5 + 0.45 * uniform[..., 0]), uniform[..., 1])
    return hsv.DiagonalStateSpace.from_log_poles(log_poles, draw(*batch, n, m, seed=1), draw(*batch, p, n, seed=2))


def relaxations(*batch, n=6, seed=0):
    """Real systems with one input and one output, and weights of both signs."""
    poles = 0.2 + 0.75 * torch.rand(*batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return hsv.DiagonalStateSpace(poles, draw(*batch, n, 1, seed=1, dtype=torch.float64), draw(*batch, 1, n, seed=2, dtype=torch.float64), dt=True)  # fmt: skip


def select(system, index):
    """One system of a batch."""
    B, C = system.B[index], system.C[index]
    if system.log_poles is None:
        return hsv.DiagonalStateSpace(system.poles()[index], B, C, dt=True)
    return hsv.DiagonalStateSpace.from_log_poles(system.log_poles[index], B, C)


def markov(plan, index=()):
    """``Re(C Lambda^k B)`` of a planned cut for 40 steps."""
    poles = torch.exp(plan.log_poles[index][:, None] * torch.arange(40))
    return torch.einsum("pn,nk,nm->kpm", plan.C[index], poles, plan.B[index]).real


class TestMaps:
    def test_factors_before_and_after(self):
        f = WidelyLinearMap(draw(2, 5, 3), draw(2, 5, 3, seed=1))
        rows, columns, z = draw(2, 5, seed=2), draw(2, 3, seed=3), draw(2, 3, 1, seed=4)
        torch.testing.assert_close(
            f.between(rows, columns)(z), rows[..., None] * f(columns[..., None] * z), rtol=1e-13, atol=1e-13
        )

    def test_batches_are_the_single_maps(self):
        f, g = WidelyLinearMap(draw(4, 5, 3), draw(4, 5, 3, seed=1)), draw(4, 5, 2, seed=2)
        for squared in (False, True):
            alone = [WidelyLinearMap(f.linear[i], f.conjugate[i]).pull_back(g[i], squared=squared) for i in range(4)]
            torch.testing.assert_close(f.pull_back(g, squared=squared), torch.stack(alone))

    @READINGS
    def test_scaling_states_changes_no_response(self, criterion):
        plan = criterion.reduce(systems(3), 4)
        factors = draw(3, plan.n_states, seed=7)
        for other in (plan.scale(factors), plan.rescale(factors.abs())):
            for i in range(3):
                torch.testing.assert_close(markov(other, i), markov(plan, i))
            # B_old = M(B_new) holds as well as before, and so does C_old^T = M(C_new^T).
            for left, right in ((other.states(other.B), plan.states(plan.B)), (other.outputs(other.C.mT), plan.outputs(plan.C.mT))):  # fmt: skip
                torch.testing.assert_close(left, right)
        torch.testing.assert_close(torch.linalg.vector_norm(plan.rescale(factors.abs()).B, dim=-1), factors.abs())


@READINGS
@pytest.mark.parametrize("rule", [3, hsv.HankelSum(discard=0.1), hsv.ErrorBound(4.0)], ids=str)
def test_batches_with_two_axes_are_cut_as_single_systems(criterion, rule):
    system = systems(2, 3)
    plan = criterion.reduce(system, rule)
    size = 0
    for index in np.ndindex(2, 3):
        size = max(size, criterion.reduce(select(system, index), rule).n_states)
    assert plan.n_states == size
    for index in np.ndindex(2, 3):
        alone = criterion.reduce(select(system, index), size)
        np.testing.assert_allclose(plan.hankel_singular_values[index], alone.hankel_singular_values, atol=1e-12)
        torch.testing.assert_close(markov(plan, index), markov(alone), rtol=1e-9, atol=1e-9)
        assert alone.error_bound <= plan.error_bound * (1 + 1e-12)
        assert alone.eigenvector_condition <= plan.eigenvector_condition * (1 + 1e-9)


def test_fitting_into_slots_finds_the_largest_order_of_each_system():
    """Against trying every order of every system, from above."""
    real = hsv.real_part(systems(8, n=7, m=1, p=1, seed=3))
    for slots in (2, 4, 6):
        red = truncated(real, hsv.Order(2 * slots))
        found = fit_into(red, slots)
        for i in range(8):
            for order in range(int(red.orders[i]), 0, -1):
                poles = np.linalg.eigvals(red.system.A[i, :order, :order].numpy())
                if np.sum(poles.imag >= 0) <= slots:
                    break
            assert int(found.orders[i]) == order
            assert int(slots_needed(red.system.A[i], torch.tensor(order))) == np.sum(poles.imag >= 0)
            lost = 2 * float(red.hankel_singular_values[i, order:].sum())
            assert float(found.error_bound[i]) == pytest.approx(lost, rel=1e-6, abs=1e-9)


@READINGS
def test_one_system_without_outputs_does_not_stop_the_others(criterion):
    system = systems(3)
    C = system.C.clone()
    C[1] = 0
    plan = criterion.reduce(hsv.DiagonalStateSpace.from_log_poles(system.log_poles, system.B, C), 2)
    assert plan.padding.sum(-1).tolist() == [0, plan.n_states, 0]
    assert plan.log_poles.isfinite().all()
    assert not plan.states.linear[1].any()
    plan.rescale(torch.ones(3, plan.n_states))  # an empty row has no norm to divide by
    with pytest.raises(CutRefusedError, match="no input reaches the output"):
        criterion.reduce(hsv.DiagonalStateSpace.from_log_poles(system.log_poles, system.B, 0 * C), 2)


class TestSymmetric:
    def test_values_are_the_eigenvalues_of_both_gramians(self):
        system = relaxations(4)
        found = SymmetricHankel().spectrum(system)
        for i in range(4):
            poles, gain = system.poles()[i].numpy(), (system.B[i, :, 0] * system.C[i, 0]).numpy()
            expected = []
            for sign in (1, -1):
                part = np.where(sign * gain > 0, np.sqrt(np.abs(gain)), 0)
                gramian = np.outer(part, part) / (1 - np.outer(poles, poles))
                values = np.linalg.eigvalsh(gramian)
                expected.extend(values[6 - np.count_nonzero(part) :])
            np.testing.assert_allclose(found[i], np.sort(expected)[::-1], atol=1e-13)

    @pytest.mark.parametrize("order", [1, 2, 4, 5])
    def test_the_response_obeys_the_bound_and_poles_interlace(self, order):
        system = relaxations(50, seed=order)
        plan = SymmetricHankel().reduce(system, order)
        assert plan.eigenvector_condition == 1.0
        assert not plan.log_poles.imag.any()
        poles = plan.log_poles.real.exp()
        assert bool((poles >= system.poles().amin(-1, keepdim=True) - 1e-12).all())
        assert bool((poles <= system.poles().amax(-1, keepdim=True) + 1e-12).all())
        reduced = hsv.DiagonalStateSpace(poles, plan.B.real, plan.C.real, dt=True)
        tails = 2 * plan.hankel_singular_values[:, order:].sum(1)
        errors = hsv.hinf_error(system, reduced).numpy()
        assert (errors <= tails * (1 + 1e-9) + 1e-12).all()
        assert plan.error_bound == pytest.approx(tails.max(), rel=1e-6)

    def test_full_order_is_the_same_system(self):
        system = relaxations(5)
        plan = SymmetricHankel().reduce(system, 6)
        steps = torch.arange(40)
        expected = torch.einsum("bn,bnk->bk", system.B[..., 0] * system.C[:, 0], system.poles()[..., None] ** steps)
        found = torch.stack([markov(plan, i)[:, 0, 0] for i in range(5)])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    def test_a_single_system_and_negative_poles(self):
        poles = torch.tensor([-0.8, -0.1, 0.5, 0.9], dtype=torch.float64)
        B, C = torch.ones(4, 1, dtype=torch.float64), torch.tensor([[1.0, 2.0, -0.1, 1.0]], dtype=torch.float64)
        system = hsv.DiagonalStateSpace(poles, B, C, dt=True)
        plan = SymmetricHankel().reduce(system, 3)
        found = torch.exp(plan.log_poles)
        assert float(found.imag.abs().max()) < 1e-15
        reduced = hsv.DiagonalStateSpace(found.real, plan.B.real, plan.C.real, dt=True)
        assert float(hsv.hinf_error(system, reduced)) <= plan.error_bound

    def test_what_it_does_not_take(self):
        with pytest.raises(hsv.HsvError, match="got a complex one with 2 inputs and 3 outputs; use ComplexHankel"):
            SymmetricHankel().reduce(systems(), 2)
        with pytest.raises(hsv.OrderError, match="Order must be in"):
            SymmetricHankel().reduce(relaxations(), 7)
        silent = relaxations()
        with pytest.raises(CutRefusedError, match="no input reaches the output"):
            SymmetricHankel().reduce(hsv.DiagonalStateSpace(silent.poles(), silent.B, 0 * silent.C, dt=True), 2)


class TestRealPoles:
    @pytest.mark.parametrize("order", [1, 2, 4, 5])
    def test_every_system_has_the_smaller_bound_of_what_is_possible(self, order):
        """Against trying each order of each system by itself."""
        system = relaxations(40, seed=order)
        plan = RealPoles().reduce(system, order)
        apart = SymmetricHankel().reduce(system, order)
        poles = plan.log_poles.exp()
        assert not poles.imag.any()
        assert bool(((poles.real > 0) & (poles.real < 1)).all())
        bounds = []
        for i in range(40):
            best = 2 * apart.hankel_singular_values[i, order:].sum()
            for k in range(order, 0, -1):
                red = hsv.balanced_truncation(select(system, i), k)
                found = np.linalg.eigvals(red.system.A.numpy())
                if not found.imag.any() and found.real.min() > 0:
                    best = min(best, float(red.error_bound))
                    break
            bounds.append(best)
        reduced = hsv.DiagonalStateSpace(poles.real, plan.B.real, plan.C.real, dt=True)
        assert (hsv.hinf_error(system, reduced).numpy() <= np.array(bounds) * (1 + 1e-9) + 1e-11).all()
        assert plan.error_bound == pytest.approx(max(bounds), rel=1e-6)

    def test_negative_poles_are_allowed_where_there_were_some(self):
        """``(-0.8)^k + 0.05 (0.9)^k``: the first pole alone is the best of order 1."""
        system = hsv.DiagonalStateSpace(torch.tensor([-0.8, 0.9], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1.0, 0.05]], dtype=torch.float64), dt=True)  # fmt: skip
        plan = RealPoles().reduce(system, 1)
        assert float(plan.log_poles.exp().real) == pytest.approx(-0.8, abs=0.05)
        # Weights of two signs: together the best pole is below 0, where none was.
        system = hsv.DiagonalStateSpace(torch.tensor([0.1, 0.3], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1.5, -1.0]], dtype=torch.float64), dt=True)  # fmt: skip
        assert float(ComplexHankel().reduce(system, 1).log_poles.exp().real) < 0
        assert float(RealPoles().reduce(system, 1).log_poles.exp().real) > 0

    def test_ill_conditioned_wholes_are_no_candidates(self):
        system = relaxations(40)
        strict = RealPoles(max_condition=1.0 + 1e-12).reduce(system, 4)
        apart = SymmetricHankel().reduce(system, 4)
        assert strict.eigenvector_condition < 1.1
        free = RealPoles().reduce(system, 4)
        assert 1.1 < free.eigenvector_condition <= 1e6
        assert free.error_bound <= strict.error_bound * (1 + 1e-9) <= apart.error_bound * (1 + 1e-8)

    def test_a_single_system(self):
        system = relaxations(3)
        plan = RealPoles().reduce(system, 3)
        for i in range(3):
            alone = RealPoles().reduce(select(system, i), 3)
            torch.testing.assert_close(markov(plan, i), markov(alone), rtol=1e-8, atol=1e-10)


def test_a_real_system_has_one_reading():
    system = relaxations(3)
    with_complex, with_real = (criterion.reduce(system, 2) for criterion in (ComplexHankel(), RealHankel()))
    assert torch.equal(with_complex.log_poles, with_real.log_poles)
    assert with_real.hankel_singular_values.shape == (3, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.complex64])
def test_the_eigenvectors_of_large_systems_are_those_of_the_control_library(dtype):
    n = 40
    A = draw(2, n, n, dtype=dtype) / 3
    system = hsv.StateSpace(A, draw(2, n, 3, seed=1, dtype=dtype), draw(2, 2, n, seed=2, dtype=dtype), dt=True)
    found, condition = diagonalize(system)
    expected, vectors, expected_condition = hsv.diagonalize(system)
    assert found[0].B.dtype == torch.complex128  # rounded when the layer takes it
    tolerance = 1e-9 if dtype != torch.complex64 else 1e-3
    torch.testing.assert_close(condition, expected_condition.to(condition.dtype), rtol=tolerance, atol=0)
    order, expected_order = (
        torch.argsort(x.poles().abs() + 0.1 * x.poles().angle(), dim=-1) for x in (found[0], expected)
    )
    for mine, other in ((found[0].poles(), expected.poles()), (found[1], vectors)):
        first, second = (
            torch.take_along_dim(mine, order if mine.ndim == 2 else order[:, None], -1),
            torch.take_along_dim(other, expected_order if other.ndim == 2 else expected_order[:, None], -1),
        )
        torch.testing.assert_close(first.abs(), second.abs().to(torch.float64), rtol=tolerance, atol=tolerance)
    w = torch.linspace(-3, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        found[0].frequency_response(w), system.frequency_response(w).to(torch.complex128), rtol=100 * tolerance, atol=100 * tolerance
    )  # fmt: skip


def test_a_defective_large_matrix_has_no_diagonal_form():
    A = 0.5 * torch.eye(40, dtype=torch.float64) + torch.diag(torch.ones(39, dtype=torch.float64), 1)
    system = hsv.StateSpace(A, torch.ones(40, 1, dtype=torch.float64), torch.ones(1, 40, dtype=torch.float64), dt=True)
    found, condition = _diagonalize_here(system)
    assert found is None
    assert condition > 1e15
