# SPDX-License-Identifier: Apache-2.0
"""The loss of a batch: the model's own, that of a criterion, or that of a trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

BatchLoss = Callable[[nn.Module, Mapping[str, Any]], "Tensor | tuple[Tensor, float]"]
"""Returns the loss of a batch, 0-dim, alone or with the number of terms that it is the mean of."""


def batch_loss_of(loss: BatchLoss | nn.Module | None) -> BatchLoss:
    """Return the function that `SharpnessAnalyzer(loss=...)` stands for."""
    if loss is None:
        return model_loss
    return CriterionLoss(loss) if isinstance(loss, nn.Module) else loss


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss that the model itself returns.

    Raises:
        ValueError: if it returns none.
    """
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor) and not output[0].dim():
        loss = output[0]
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"The model returned no loss for a batch with {', '.join(batch)}: the examples need labels under a name "
            "that the model knows, or `SharpnessAnalyzer(loss=...)` a function (model, batch) -> (mean loss, terms)."
        )
    return loss


def objects_of(loss: Any) -> list[Any]:
    """Return the objects whose attributes a call of the loss may change."""
    if isinstance(loss, TrainerLoss):
        trainer = loss.trainer
        return [trainer, getattr(trainer, "compute_loss_func", None), getattr(trainer, "label_smoother", None)]
    modules = loss.modules() if isinstance(loss, nn.Module) else ()
    return [loss, getattr(loss, "__self__", None), *modules]


class CriterionLoss:
    """The loss of a module such as `nn.CrossEntropyLoss(weight=...)`, of the model's logits and the labels."""

    def __init__(self, criterion: nn.Module) -> None:
        self.criterion = copy.deepcopy(criterion)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return criterion(logits, labels)."""
        output = model(**{key: value for key, value in batch.items() if key != "labels"})
        logits = output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output)
        loss: Tensor = self.criterion.to(logits.device, logits.dtype)(logits, batch["labels"])
        return loss


class TrainerLoss:
    """What `trainer.evaluate()` calls the loss: that of `compute_loss`, with its class weights or label smoothing."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @property
    def columns(self) -> list[str] | None:
        """What the Trainer gives to `compute_loss` besides what the model takes; None for all."""
        args = self.trainer.args
        return list(getattr(self.trainer, "label_names", None) or []) if args.remove_unused_columns else None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of the trainer's `compute_loss`."""
        named = {}
        count = getattr(self.trainer, "_get_num_items_in_batch", None)
        if count is not None and self.trainer.args.world_size == 1:  # it gathers, and each process has other batches
            items = count([batch], self.trainer.args.device)
            named = {} if items is None else {"num_items_in_batch": items}
        loss: Tensor = self.trainer.compute_loss(model, dict(batch), **named)
        return loss
