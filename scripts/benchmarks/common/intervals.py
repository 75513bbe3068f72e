# SPDX-License-Identifier: Apache-2.0
"""How sure is a median, or a mean, of a few rounds?"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

SAMPLES = 2000
Centre = Callable[[Sequence[float]], float]


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float], centre: Centre = statistics.median) -> Interval:
    """Return the centre of the values with its 95 % bootstrap interval (percentiles; the same for the same values)."""
    generator = random.Random(0)
    found = sorted(centre(generator.choices(values, k=len(values))) for _ in range(SAMPLES))
    return Interval(centre(values), found[SAMPLES // 40], found[-SAMPLES // 40])
