"""Knowledge distillation: a small model learns from the labels and from the scores of a large one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paper_repro.sequences import NOT_ASKED


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, weight: float) -> Tensor:
    r"""Return the loss of a student who has a teacher, the mean over all labels:

    .. math::
        \mathcal L = (1 - \alpha)\, H(y, \mathrm{softmax}(s)) + \alpha\, T^2\, D_{KL}\bigl(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T)\bigr).

    The factor :math:`T^2` keeps the size of the second term's gradient when the temperature changes (Hinton, Vinyals, Dean, "Distilling the knowledge in a neural
    network", 2015).

    Parameters
    ----------
    student, teacher : Tensor
        Scores, ``(batch, classes)``, or ``(batch, length, classes)`` with a label a step. No gradient reaches the teacher.
    labels : Tensor
        ``(batch,)`` or ``(batch, length)``; steps with the label `NOT_ASKED` do not count, neither for the labels nor for the teacher.
    temperature : float
        :math:`T`, of both models' scores.
    weight : float
        :math:`\alpha`, in [0, 1].

    Examples
    --------
    >>> scores, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> agreed = distillation_loss(scores, scores, labels, temperature=2.0, weight=0.5)
    >>> round(float(agreed / nn.functional.cross_entropy(scores, labels)), 6)
    0.5
    """
    asked = labels.flatten() != NOT_ASKED
    student, teacher = (scores.flatten(0, -2)[asked] for scores in (student, teacher.detach()))
    by_labels = nn.functional.cross_entropy(student, labels.flatten()[asked])
    by_teacher = nn.functional.kl_div(
        torch.log_softmax(student / temperature, dim=-1),
        torch.log_softmax(teacher / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - weight) * by_labels + weight * temperature**2 * by_teacher
