"""How good a model is on a set of sequences, and how large."""

from __future__ import annotations

import torch
from torch import nn

from paper_repro.results import Evaluation
from paper_repro.sequences import NOT_ASKED, Sequences

EVALUATION_BATCH = 256


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return mean or sum over all labels, those of the steps at which something is asked where a sequence has a label a step."""
    return nn.functional.cross_entropy(
        scores.flatten(0, -2), labels.flatten(), ignore_index=NOT_ASKED, reduction=reduction
    )


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Sequences, step: int) -> Evaluation:
    """Return accuracy and mean cross-entropy of `model`, which is left in the mode that it was in; both over all labels."""
    was_training = model.training
    model.eval()
    correct, asked, loss = 0, 0, 0.0
    for batch in sequences.batches(EVALUATION_BATCH):
        scores = model(*batch.arguments)
        correct += int((scores.argmax(dim=-1) == batch.labels).sum())
        asked += int((batch.labels != NOT_ASKED).sum())
        loss += float(cross_entropy(scores, batch.labels, reduction="sum"))
    model.train(was_training)
    return Evaluation(step=step, accuracy=correct / asked, loss=loss / asked)


def count_parameters(model: nn.Module) -> int:
    """Return the number of real numbers that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
