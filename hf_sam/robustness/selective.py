# SPDX-License-Identifier: Apache-2.0
"""The share of wrong answers where a model is sure: answers from the most confident one on."""

from __future__ import annotations

import numpy as np

from hf_sam.robustness.predictions import Array
from hf_sam.robustness.results import RiskCoverage

COVERAGE = 0.8
"""Share of the examples that selective accuracy answers."""
POINTS = 100


def risks(p: Array, labels: Array) -> Array:
    """Return the share of wrong answers among the k most confident ones, for k = 1, 2, ...

    Where confidences are equal, each answer counts as the mean of those that share it: no order of the examples is
    better than another.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> risks(p, np.array([0, 0, 0])).tolist()
        [0.0, 0.5, 0.3333333333333333]
    """
    confidence, wrong = p.max(axis=1), (p.argmax(axis=1) != labels).astype(float)
    order = np.argsort(-confidence, kind="stable")
    _, same = np.unique(-confidence[order], return_inverse=True)
    shared = np.bincount(same, wrong[order]) / np.bincount(same)
    return np.cumsum(shared[same]) / np.arange(1, len(wrong) + 1)


def area_under(found: Array) -> float:
    """Return the mean risk over all coverages, AURC (Geifman et al. 2019)."""
    return float(found.mean())


def selective_accuracy(found: Array, coverage: float = COVERAGE) -> float:
    """Return the accuracy on the `coverage` most confident examples."""
    return 1 - float(found[max(1, round(coverage * len(found))) - 1])


def risk_coverage(found: Array) -> RiskCoverage:
    """Return the curve, thinned to what a figure can show; every point of it was measured."""
    count = len(found)
    kept = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
    return RiskCoverage([float((i + 1) / count) for i in kept], [float(found[i]) for i in kept])
