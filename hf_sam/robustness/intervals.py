# SPDX-License-Identifier: Apache-2.0
"""Intervals for what a difference would be on other examples: a jackknife over folds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_sam.robustness.extras import needed
from hf_sam.robustness.metrics import ComputeMetrics, scores
from hf_sam.robustness.results import BASE, Report
from hf_sam.sharpness.compare import Difference

Scores = dict[str, float | None]
Parts = dict[str, list[Scores]]
"""By condition: the scores on all examples, then those without each fold."""


def left_out(report: Report, conditions: Iterable[str], folds: int, compute_metrics: ComputeMetrics | None) -> Parts:
    """Return the scores on all examples and without each fold in turn.

    Raises:
        ValueError: if the report holds no predictions.
    """
    found: Parts = {}
    for condition in conditions:
        measured = report[condition]
        answers = measured.predictions
        if answers is None:
            raise ValueError("`compared(reports)` needs reports with predictions, as `report()` returns them.")
        fold_of = np.arange(answers.examples) % folds
        temperature = measured.scores.get("temperature")
        found[condition] = [
            measured.scores,
            *(scores(answers.where(fold_of != i), temperature, compute_metrics) for i in np.unique(fold_of)),
        ]
    return found


def over_examples(ours: Parts, theirs: Parts, condition: str) -> dict[str, tuple[Difference, Difference]]:
    """Return by metric the difference of two models' scores, and of their drops, with 95 % intervals.

    A fold's examples are left out of both models' scores and of both conditions'. A shifted data set has other examples
    than the one without a shift, and as many folds.
    """
    found = {}
    sides = ours[condition], ours[BASE], theirs[condition], theirs[BASE]
    for metric in theirs[condition][0]:
        if metric == "temperature":  # fitted on other examples: leaving these out says nothing about it
            continue
        columns = [[each.get(metric) for each in side] for side in sides]
        if any(value is None for column in columns for value in column):
            continue
        v, v0, u, u0 = (np.array(column, dtype=float) for column in columns)
        found[metric] = _jackknife(v - u), _jackknife((v - v0) - (u - u0))
    return found


def _jackknife(values: NDArray[Any]) -> Difference:
    return jackknife(float(values[0]), values[1:].tolist())


def jackknife(whole: float, parts: Sequence[float]) -> Difference:
    """Return a value with its 95 % interval, from the values without each fold in turn (Efron 1982, chapter 2).

    The standard error is the spread of these values times (n - 1) / sqrt(n).

    Example:
        >>> jackknife(2.0, [2.5, 2.0, 1.5])  # the mean of 1, 2, 3: standard error 1 / sqrt(3)
        Difference(mean=2.0, low=-0.48..., high=4.48...)
    """
    n = len(parts)
    error = (n - 1) / math.sqrt(n) * statistics.stdev(parts)
    half = float(needed("scipy.stats").t.ppf(0.975, n - 1)) * error
    return Difference(whole, whole - half, whole + half)
