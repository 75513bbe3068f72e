# SPDX-License-Identifier: Apache-2.0
"""Calibration: how far probabilities are from being right, bins of a reliability diagram, temperature scaling."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from hf_sam.robustness.extras import needed
from hf_sam.robustness.predictions import Array
from hf_sam.robustness.results import Bin

BINS = 15
HOTTEST = 5.0
"""Largest |log T|: a model that is never wrong on the split would have T = 0."""


def probabilities(logits: Array) -> Array:
    """Return the softmax, in 64 bits."""
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    """Return the mean of -log p(label), from logits: no probability is cut off."""
    return float(F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels).long()))


def expected_calibration_error(p: Array, labels: Array, bins: int = BINS) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, eq. 3)."""
    module = needed("torchmetrics.functional.classification")
    found = module.multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(labels).long(), num_classes=p.shape[1], n_bins=bins, norm="l1"
    )
    return float(found)


def adaptive_calibration_error(p: Array, labels: Array, bins: int = BINS) -> float:
    """Return the same over bins of equal size, of examples in the order of their confidence (Nguyen, O'Connor 2015).

    Example:
        >>> p = np.array([[0.6, 0.4], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
        >>> adaptive_calibration_error(p, np.array([1, 1, 1, 1]), bins=2)  # |0.65 - 0.5| / 2 + |0.85 - 1| / 2
        0.15
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts]
    return round(float(sum(gaps)) / len(order), 12)


def reliability(p: Array, labels: Array, bins: int = BINS) -> list[Bin]:
    """Return confidence and accuracy in bins of equal width, the ones that the calibration error is the mean over."""
    confidence, right = p.max(axis=1).astype(np.float32), p.argmax(axis=1) == labels
    edges = torch.linspace(0, 1, bins + 1)
    place = (torch.bucketize(torch.from_numpy(confidence), edges, right=True) - 1).clamp(max=bins - 1).numpy()
    found = []
    for i in range(bins):
        inside = place == i
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)
        found.append(Bin(i / bins, (i + 1) / bins, int(inside.sum()), *means))
    return found


def fitted_temperature(logits: Array, labels: Array) -> float:
    """Return the T at which softmax(logits / T) has the smallest loss on these examples (Guo et al. 2017, section 4.2).

    Example:
        >>> logits = np.array([[2.0, 0.0]] * 4)  # right three times in four, so the odds should be three to one
        >>> round(float(fitted_temperature(logits, np.array([0, 0, 0, 1])) * np.log(3)), 4)
        2.0
    """
    values, wanted = torch.from_numpy(logits).double(), torch.from_numpy(labels).long()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(values / np.exp(log_t), wanted))

    found = needed("scipy.optimize").minimize_scalar(
        loss, bounds=(-HOTTEST, HOTTEST), method="bounded", options={"xatol": 1e-7}
    )
    return float(np.exp(found.x))
