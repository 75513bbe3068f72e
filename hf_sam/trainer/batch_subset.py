# SPDX-License-Identifier: Apache-2.0
"""The part of a step's examples that the ascent gradient is computed from, when not from all of them.

A quarter of the batch is enough for a good direction (Bahri et al. 2022) and costs a quarter of a pass. Whole
micro-batches are taken when there are several, otherwise a part of the rows of every tensor that has the batch
dimension; both evenly spread, so that batches sorted by length give short and long examples alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SIZED = ("labels", "input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
"""Inputs whose first dimension is certainly the batch, by transformers' names; else the first tensor's is taken."""

ROUNDING = 1e-9
"""What a product of a fraction and a count is above or below a whole number by chance."""


class BatchSubset(list[Mapping[str, Any]]):
    """Inputs of the ascent passes.

    Attributes:
        share: how much of the micro-batches' examples they hold, counted in micro-batches and rows, in (0, 1].
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], share: float) -> None:
        super().__init__(parts)
        self.share = share


def batch_subset(inputs: Sequence[Mapping[str, Any]], fraction: float) -> BatchSubset:
    """Return a part of the micro-batches in `inputs`, rounded up to whole examples.

    Args:
        inputs: arguments of `training_step`, one mapping per micro-batch; they are not changed.
        fraction: how much of them, in (0, 1].
    """
    several = fraction * len(inputs)
    if several >= 1 - ROUNDING:
        chosen = _spread(len(inputs), several)
        return BatchSubset([inputs[i] for i in chosen], len(chosen) / len(inputs))
    (middle,) = _spread(len(inputs), 1)
    rows = batch_size(inputs[middle])
    chosen = _spread(rows, several * rows)
    return BatchSubset([_rows(inputs[middle], chosen, rows)], len(chosen) / rows / len(inputs))


def batch_size(inputs: Mapping[str, Any]) -> int:
    """Return the number of examples in one micro-batch.

    Raises:
        ValueError: if no tensor says so.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 0}
    for name in (*SIZED, *tensors):
        if name in tensors:
            return len(tensors[name])
    raise ValueError(
        "`ascent_fraction` below 1 needs batches that are mappings with tensors, "
        f"got {sorted(inputs)}. Leave ascent_fraction=1."
    )


def _spread(count: int, wanted: float) -> list[int]:
    """Return `wanted`, rounded up, of the numbers below `count`, evenly spread."""
    n = min(count, max(1, math.ceil(wanted - ROUNDING)))
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]


def _rows(value: Any, chosen: list[int], size: int) -> Any:
    """Return `value` with the chosen rows only, wherever a tensor has `size` of them; containers keep their type.

    A list of `size` items holds one for each example (texts, an object detector's labels), unless all it holds are
    tensors of `size` rows (layers, views).
    """
    if isinstance(value, Tensor):
        has_rows = value.dim() > 0 and len(value) == size
        return value[torch.tensor(chosen, device=value.device)] if has_rows else value
    if isinstance(value, Mapping):
        make: Any = type(value)  # a BatchEncoding stays one
        return make({name: _rows(item, chosen, size) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        if len(value) == size and not all(_has_rows(item, size) for item in value):
            return type(value)(value[i] for i in chosen)
        return type(value)(_rows(item, chosen, size) for item in value)
    return value


def _has_rows(value: Any, size: int) -> bool:
    """Return whether `value` is a tensor of `size` rows, or holds only such."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == size
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return bool(items) and all(_has_rows(item, size) for item in items)
