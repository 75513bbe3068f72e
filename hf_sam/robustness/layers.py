# SPDX-License-Identifier: Apache-2.0
"""Which weights are rounded and pruned: the matrices of linear layers and convolutions, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is a matrix.

    Attributes:
        name: its path in the model.
        module: the layer.
        turned: whether the outputs are the second dimension of the weight and not the first.
    """

    name: str
    module: nn.Module
    turned: bool

    @property
    def weight(self) -> Tensor:
        """The weight that the layer holds now."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    def rows(self) -> Tensor:
        """Return the weight as a matrix with a row for each output."""
        weight = self.weight.detach()
        return (weight.transpose(0, 1) if self.turned else weight).flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return a matrix of rows in the weight's shape."""
        if not self.turned:
            return rows.reshape(self.weight.shape)
        first, second, *rest = self.weight.shape
        return rows.reshape(second, first, *rest).transpose(0, 1).contiguous()


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the linear layers and convolutions of a model, `Conv1D` of GPT-2 among them.

    Embeddings, normalisation, biases and recurrent layers are not: nor are layers whose weights are stored in few bits.

    Raises:
        ValueError: if there is none.
    """
    found = [
        Layer(name, module, isinstance(module, (Conv1D, _ConvTransposeNd)))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, _ConvNd)) and _is_plain(module.weight)
    ]
    if not found:
        raise ValueError(
            "`RobustnessAnalyzer(model, ...)` rounds and prunes linear layers and convolutions in floating point, and "
            f"{type(model).__name__} has none."
        )
    return found


def replace_weights(layers: Mapping[str, Layer], change: Callable[[Layer], Tensor]) -> int:
    """Give each layer a weight of its own, made by `change`, and return the number of elements.

    A layer that shares its weight with an embedding no longer does: the embedding stays as it is. To be called inside
    `BorrowedModel.with_copies`, which puts every weight back.
    """
    count = 0
    with torch.no_grad():
        changed = {name: change(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.module.weight = nn.Parameter(changed[name], requires_grad=False)
        count += changed[name].numel()
    return count


def _is_plain(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() > 1
