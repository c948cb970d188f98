import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from paper_repro.distillation import distillation_loss
from paper_repro.sequences import NOT_ASKED


def by_the_formula(student, teacher, labels, temperature, weight):
    """Mean over the labels of (1 - a) H(y, s) + a T^2 KL(t || s), written out in NumPy, a label at a time."""
    total = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = log_softmax(t / temperature), log_softmax(s / temperature)
        total += -(1 - weight) * log_softmax(s)[label] + weight * temperature**2 * np.sum(np.exp(p) * (p - q))
    return total / len(labels)


@pytest.mark.parametrize(("temperature", "weight"), [(2.0, 0.5), (1.0, 0.3), (5.0, 1.0), (2.0, 0.0)])
def test_the_loss_is_that_of_the_formula(temperature, weight):
    random = np.random.default_rng(3)
    student, teacher, labels = random.normal(size=(7, 5)), 3 * random.normal(size=(7, 5)), random.integers(5, size=7)
    found = distillation_loss(
        *map(torch.from_numpy, (student, teacher, labels)), temperature=temperature, weight=weight
    )
    np.testing.assert_allclose(found, by_the_formula(student, teacher, labels, temperature, weight), rtol=1e-12)


def test_steps_at_which_nothing_is_asked_count_neither_for_the_labels_nor_for_the_teacher():
    random = np.random.default_rng(3)
    student, teacher, labels = (
        random.normal(size=(2, 4, 5)),
        random.normal(size=(2, 4, 5)),
        random.integers(5, size=(2, 4)),
    )
    asked = np.array([[True, False, False, True], [False, True, False, False]])
    labels[~asked] = NOT_ASKED
    found = distillation_loss(*map(torch.from_numpy, (student, teacher, labels)), temperature=2.0, weight=0.5)
    np.testing.assert_allclose(
        found, by_the_formula(student[asked], teacher[asked], labels[asked], 2.0, 0.5), rtol=1e-12
    )


def test_the_gradient_keeps_its_size_when_the_temperature_rises_and_never_reaches_the_teacher():
    torch.manual_seed(0)
    student, teacher = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = torch.randint(5, (6,))
    sizes = []
    for temperature in (1e3, 1e4):
        student.grad = None
        distillation_loss(student, teacher, labels, temperature=temperature, weight=1.0).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)
    assert teacher.grad is None


def test_the_gradient_is_that_of_differences():
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, NOT_ASKED, 3])
    assert torch.autograd.gradcheck(
        lambda s: distillation_loss(s, teacher, labels, temperature=2.0, weight=0.5), student.requires_grad_()
    )
