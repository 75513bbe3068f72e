# SPDX-License-Identifier: Apache-2.0
"""Which loss does the trainer minimise, so that accumulation does not change the model?

Heads such as BERT's accept `num_items_in_batch` through `**kwargs` and then ignore it: Trainer believes their mean loss
to be divided by the whole batch already, and four micro-batches give a gradient four times too long. A loss of our own
that divides by `num_items_in_batch` is right for every head, and for micro-batches of different size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Loss = Callable[..., torch.Tensor]


def classification_loss(label_smoothing: float = 0.0) -> Loss:
    """Return cross-entropy as Trainer's `compute_loss_func`."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = _logits(outputs).float()
        total = functional.cross_entropy(
            logits, labels.to(logits.device), reduction="sum", label_smoothing=label_smoothing
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def regression_loss() -> Loss:
    """Return the squared error as Trainer's `compute_loss_func`."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        predictions = _logits(outputs).float().squeeze(-1)
        total = functional.mse_loss(predictions, labels.to(predictions), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _logits(outputs: Any) -> torch.Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0]
