# SPDX-License-Identifier: Apache-2.0
"""The part of a step's examples that the ascent gradient is computed from, when not from all of them.

A quarter of the batch is enough for a good direction (Bahri et al. 2022) and costs a quarter of a pass. Whole
micro-batches are taken when there are several, otherwise a part of the examples of one; both evenly spread, so that
batches sorted by length give short and long examples alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_sam.trainer.batch_rows import Rows

ROUNDING = 1e-9
"""What a product of a fraction and a count is above or below a whole number by chance."""


class BatchSubset(list[Mapping[str, Any]]):
    """Inputs of the ascent passes.

    Attributes:
        share: how much of the micro-batches' examples they hold, counted in micro-batches and examples, in (0, 1].
        cut: whether they are rows of a micro-batch, not whole ones.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], share: float, *, cut: bool = False) -> None:
        super().__init__(parts)
        self.share, self.cut = share, cut


def batch_subset(
    inputs: Sequence[Mapping[str, Any]], fraction: float, group_size: int = 1, placeholders: Sequence[int] = ()
) -> BatchSubset:
    """Return a part of the micro-batches in `inputs`, rounded up to whole examples.

    Args:
        inputs: arguments of `training_step`, one mapping per micro-batch; they are not changed.
        fraction: how much of them, in (0, 1].
        group_size: rows that are one example, >= 1.
        placeholders: see `hf_sam.trainer.batch_rows.Rows`.

    Raises:
        UnknownRowsError: if one has to be cut, and it is not certain where.
    """
    several = fraction * len(inputs)
    if several >= 1 - ROUNDING:
        chosen = _spread(len(inputs), several)
        return BatchSubset([inputs[i] for i in chosen], len(chosen) / len(inputs))
    whole = one_micro_batch(inputs)
    rows = Rows(whole[0], group_size, placeholders)
    chosen = _spread(rows.examples, several * rows.examples)
    if len(chosen) == rows.examples:
        return whole
    return BatchSubset([rows.take(whole[0], chosen)], len(chosen) / rows.examples / len(inputs), cut=True)


def one_micro_batch(inputs: Sequence[Mapping[str, Any]]) -> BatchSubset:
    """Return the micro-batch in the middle, whole."""
    (middle,) = _spread(len(inputs), 1)
    return BatchSubset([inputs[middle]], 1 / len(inputs))


def placeholders_of(model: Any) -> list[int]:
    """Return the ids of the tokens that stand for images, films or sounds in the texts of a model."""
    config = getattr(model, "config", None)
    names = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]
    found = [getattr(config, name, None) for name in names]
    return [token for token in found if isinstance(token, int) and not isinstance(token, bool)]


def _spread(count: int, wanted: float) -> list[int]:
    """Return `wanted`, rounded up, of the numbers below `count`, evenly spread."""
    n = min(count, max(1, math.ceil(wanted - ROUNDING)))
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]
