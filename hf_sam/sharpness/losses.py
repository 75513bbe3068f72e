# SPDX-License-Identifier: Apache-2.0
"""The loss of a batch, and the number of terms that it is the mean of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.step.replay import RandomState, devices_of

BatchLoss = Callable[[nn.Module, Mapping[str, Any]], "tuple[Tensor, float]"]
"""Returns the mean loss of a batch, 0-dim, and the number of terms that the mean is over."""
IGNORED = -100
"""The label that models of transformers leave out of the loss."""


class ModelLoss:
    """The loss that the model itself returns, the mean over the tokens or rows that have a label.

    Language models shift the labels inside and so leave out the first token's. To find out whether a model does, it is
    called once with no label but the first: if it shifts, its loss is the mean over nothing, which is not a number.
    """

    def __init__(self) -> None:
        self._shifts: bool | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Return the mean loss and the number of its terms.

        Raises:
            ValueError: if the model returns no loss.
        """
        return _loss(model, batch), float(self._terms(model, batch))

    def _terms(self, model: nn.Module, batch: Mapping[str, Any]) -> int:
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and not labels.is_floating_point():
            if labels.dim() == 2 and self._shifted(model, batch):
                labels = labels[:, 1:]
            return int((labels != IGNORED).sum())
        rows = [len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()]
        return rows[0] if rows else 1

    def _shifted(self, model: nn.Module, batch: Mapping[str, Any]) -> bool:
        if self._shifts is None:
            labels = torch.full_like(batch["labels"], IGNORED)
            labels[:, 0] = batch["labels"].clamp(min=0)[:, 0]
            streams = RandomState(devices_of(model.parameters()))
            try:
                with torch.no_grad():
                    self._shifts = not math.isfinite(float(_loss(model, {**batch, "labels": labels})))
            finally:
                streams.restore()
        return self._shifts


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"The model returned no loss for a batch with {', '.join(batch)}: the examples need labels under a name "
            "that the model knows, or `SharpnessAnalyzer(loss=...)` a function (model, batch) -> (mean loss, terms)."
        )
    return loss
