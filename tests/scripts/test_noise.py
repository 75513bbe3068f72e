# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest

from hf_sam.cli.common.noise import flip_labels

LABELS = [row % 5 for row in range(1000)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.999])
def test_flips_exactly_the_asked_share_and_always_to_another_class(share: float) -> None:
    flipped, count = flip_labels(LABELS, 5, share=share, seed=0)
    assert count == round(1000 * share) == sum(a != b for a, b in zip(LABELS, flipped, strict=True))
    assert set(flipped) <= set(range(5))


def test_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert flip_labels(LABELS, 5, share=0.4, seed=1) == flip_labels(LABELS, 5, share=0.4, seed=1)
    assert flip_labels(LABELS, 5, share=0.4, seed=1) != flip_labels(LABELS, 5, share=0.4, seed=2)


def test_the_other_classes_are_equally_likely() -> None:
    flipped, _ = flip_labels([2] * 40_000, 5, share=0.5, seed=0)
    counts = Counter(flipped)
    assert counts[2] == 20_000
    assert all(abs(counts[other] - 5_000) < 350 for other in (0, 1, 3, 4))  # five standard deviations
