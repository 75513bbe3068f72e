# SPDX-License-Identifier: Apache-2.0
"""Are intervals and p-values what the textbook says?"""

from __future__ import annotations

import math

import pytest
from scipy import stats

from scripts.benchmarks.common.paired import holm, paired


def test_the_interval_and_the_p_value_are_students() -> None:
    own, other = {1: 90.0, 2: 92.0, 3: 97.0, 4: 1.0}, {1: 89.0, 2: 89.0, 3: 92.0, 5: 0.0}
    found = paired(own, other)
    assert found is not None
    assert (found.n, found.mean) == (3, 3.0)  # of 1, 3, 5
    error = 2 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((3 - 4.302653 * error, 3 + 4.302653 * error), rel=1e-6)
    assert found.p == pytest.approx(stats.ttest_rel([90, 92, 97], [89, 89, 92]).pvalue)
    # t = 3 / error with 2 degrees of freedom has a closed form
    t = 3 / error
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_one_seed_has_no_interval_and_equal_differences_no_p() -> None:
    one = paired({1: 3.0}, {1: 1.0, 2: 2.0})
    assert one is not None
    assert (one.n, one.mean, one.low, one.high, one.p) == (1, 2.0, None, None, None)
    same = paired({1: 3.0, 2: 4.0}, {1: 1.0, 2: 2.0})
    assert same is not None
    assert (same.mean, same.low, same.high, same.p) == (2.0, 2.0, 2.0, None)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_p_values_are_corrected_for_their_number_as_holm_says() -> None:
    # The smallest times 4, the next times 3, ..., none below an earlier one, none above 1; by hand.
    assert holm([0.04, 0.001, None, 0.03, 0.6]) == pytest.approx([0.09, 0.004, None, 0.09, 0.6])
    assert holm([0.5, 0.4]) == [0.8, 0.8]
    assert holm([None]) == [None]
    assert holm([]) == []
