# SPDX-License-Identifier: Apache-2.0
"""Which loss does the trainer minimise, so that accumulation does not change the model?

Heads such as BERT's accept `num_items_in_batch` through `**kwargs` and then ignore it: Trainer believes their mean loss
to be divided by the whole batch already, and four micro-batches give a gradient four times too long. A loss of our own
that divides by `num_items_in_batch` is right for every head, and for micro-batches of different size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

Loss = Callable[..., torch.Tensor]


def classification_loss(label_smoothing: float = 0.0, weights: Sequence[float] | None = None) -> Loss:
    """Return cross-entropy as Trainer's `compute_loss_func`, with a weight for each class if there are any."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = _logits(outputs).float()
        total = functional.cross_entropy(
            logits,
            labels.to(logits.device),
            weight=None if weights is None else logits.new_tensor(weights),
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def multilabel_loss(weights: Sequence[float] | None = None) -> Loss:
    """Return binary cross-entropy as Trainer's `compute_loss_func`; weights are those of a label that is there.

    Trainer counts the labels of all classes as items, so that dividing by them is the mean over rows and classes.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = _logits(outputs).float()
        total = functional.binary_cross_entropy_with_logits(
            logits,
            labels.to(logits),
            reduction="sum",
            pos_weight=None if weights is None else logits.new_tensor(weights),
        )
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


def regression_loss() -> Loss:
    """Return the squared error as Trainer's `compute_loss_func`."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        predictions = _logits(outputs).float().squeeze(-1)
        total = functional.mse_loss(predictions, labels.to(predictions), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def balanced_weights(labels: Sequence[Any], classes: int) -> list[float]:
    """Return a weight for each class, so that all weigh the same in the loss of the training data.

    For single classes their mean over the examples is 1; for labels of 0 and 1 a 1 weighs as all 0s over all 1s.
    """
    found = torch.tensor(labels)
    if found.dim() == 2:
        positive = found.sum(dim=0)
        return ((len(found) - positive) / positive.clamp(min=1)).tolist()
    counts = torch.bincount(found, minlength=classes)
    return (len(found) / (int((counts > 0).sum()) * counts.clamp(min=1))).tolist()


def _logits(outputs: Any) -> torch.Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0]
