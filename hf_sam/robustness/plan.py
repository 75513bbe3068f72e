# SPDX-License-Identifier: Apache-2.0
"""Which conditions are measured when a report is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_sam.robustness.corruptions import SEVERITIES, corruptions_for
from hf_sam.robustness.merging import Checkpoint
from hf_sam.robustness.results import Measurement

Progress = Callable[[Iterable[Any]], Iterable[Any]]
BITS = (8, 4, 3)
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
ALPHAS = (0.2, 0.3, 0.5)


def planned(
    one: Any,
    *,
    bits: Sequence[int] = BITS,
    group: int | None = None,
    dynamic: bool = True,
    shares: Sequence[float] = SHARES,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    shifted: Mapping[str, Iterable[Any]] | None = None,
    others: Sequence[Checkpoint] = (),
    origin: Checkpoint | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> list[Callable[[], Measurement]]:
    """Return a function for each measurement, the model as it was trained first.

    Args:
        one: the `RobustnessAnalyzer`.
        bits: of the weights that are rounded.
        group: inputs that share a step.
        dynamic: whether int8 as `quantize_dynamic` computes it is measured too; for models with a linear layer.
        shares: of the weights that are pruned.
        corruptions: by name; all that the inputs can have if there is a `processing_class`, without it none.
        severities: of these.
        shifted: other data sets, by name.
        others: checkpoints to merge with, into their mean and, with an `origin`, by task arithmetic.
        origin: what all were trained from.
        alphas: of task arithmetic.
    """
    if corruptions is None:
        ready = one.processing_class is not None and one.kind in ("classification", "multilabel", "regression")
        corruptions = corruptions_for(one.examples.rows[0]) if ready else ()
    part = functools.partial
    todo: list[Callable[[], Measurement]] = [one.as_trained]
    todo += [part(one.quantised, dynamic=True)] if dynamic else []
    todo += [part(one.quantised, each, group=group) for each in bits]
    todo += [part(one.pruned, each) for each in shares]
    todo += [part(one.on, data, name) for name, data in (shifted or {}).items()]
    todo += [part(one.corrupted, name, severity) for name in corruptions for severity in severities]
    if others:
        todo += [part(one.merged, others)]
        todo += [part(one.merged, others, origin=origin, alpha=each) for each in alphas] if origin is not None else []
    return todo
