# SPDX-License-Identifier: Apache-2.0
"""Is one method better than another on the same seeds, or is that chance?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

Scores = Mapping[int, float]
"""By seed."""


@dataclass(frozen=True)
class Paired:
    """The mean difference over the seeds that both methods have.

    Attributes:
        n: seeds.
        mean: of the differences.
        low, high: ends of its 95 % interval by Student's t; None for a single seed.
        p: two-sided, of the paired t-test; None for a single seed and where all differences are the same.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired(own: Scores, other: Scores) -> Paired | None:
    """Compare two methods; None if they have no seed in common."""
    differences = [own[seed] - other[seed] for seed in sorted(set(own) & set(other))]
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    if n == 1:
        return Paired(n, mean)
    error = statistics.stdev(differences) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if error > 0 else None
    return Paired(n, mean, mean - half, mean + half, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of one table corrected for their number (Holm 1979); None stays None and does not count.

    The chance that any of the table's differences comes out below a level by luck alone is then at most that level.
    """
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (values[i] or 0.0)))
        corrected[i] = largest
    return corrected


def mean_and_spread(scores: Scores) -> tuple[float, float | None]:
    """Return mean and standard deviation, None for that of a single seed."""
    values = list(scores.values())
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def percent(rows: list[dict[str, Any]], key: str) -> dict[int, float]:
    """Return 100 times a number of some runs, by seed, without those that have none."""
    return {row["seed"]: 100 * row[key] for row in rows if row.get(key) is not None}
