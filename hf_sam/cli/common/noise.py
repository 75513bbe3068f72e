# SPDX-License-Identifier: Apache-2.0
"""How does a model cope with wrong labels? Give a share of the training examples a random other class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def flip_labels(labels: Sequence[int], num_labels: int, *, share: float, seed: int) -> tuple[list[int], int]:
    """Return the labels with `share` of them moved to a uniformly random other class, and how many were moved.

    The number is exact (rounded), so that two seeds are equally hard; which examples and which classes is random.
    """
    generator = np.random.default_rng(seed)
    flipped = np.array(labels, dtype=np.int64)
    chosen = generator.permutation(len(flipped))[: round(share * len(flipped))]
    offset = generator.integers(1, num_labels, size=len(chosen))
    flipped[chosen] = (flipped[chosen] + offset) % num_labels
    return flipped.tolist(), len(chosen)


def noise_seed(training: Any) -> int:
    """Return the seed of what is random in the data: which rows are taken, which labels are flipped."""
    return training.seed if training.data_seed is None else training.data_seed
