# SPDX-License-Identifier: Apache-2.0
"""A measurement made of predictions: the scores, the reliability diagram and the risk-coverage curve."""

from __future__ import annotations

from typing import Any

from hf_sam.robustness import calibration, selective
from hf_sam.robustness.metrics import ComputeMetrics, scores
from hf_sam.robustness.predictions import Predictions
from hf_sam.robustness.results import Condition, Measurement


def measurement_of(
    condition: Condition,
    found: Predictions,
    temperature: float | None,
    compute_metrics: ComputeMetrics | None,
    how: dict[str, Any],
) -> Measurement:
    """Return what was measured under a condition.

    Args:
        condition: what was changed.
        found: the model's answers.
        temperature: fitted on other examples.
        compute_metrics: the user's own scores.
        how: the share that was changed, the settings and the time.
    """
    values = scores(found, temperature, compute_metrics)
    bins, curve = [], None
    if values.get("nll") is not None and found.kind in ("classification", "multilabel"):
        logits, labels = found.decisions()
        p = calibration.probabilities(logits)
        bins = calibration.reliability(p, labels)
        curve = selective.risk_coverage(selective.risks(p, labels))
    return Measurement(
        condition=condition,
        scores=values,
        examples=found.examples,
        reliability=bins,
        risk_coverage=curve,
        predictions=found,
        **how,
    )
