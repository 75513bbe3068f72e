# SPDX-License-Identifier: Apache-2.0
"""How good are the predictions? The GLUE metrics as `evaluate` metrics that need no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_CITATION = "Wang et al. 2019, GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding"


class LocalMetric(evaluate.Metric):
    """One number from predictions and references, computed in memory: no script from the Hub, no cache file."""

    key: str
    value_type: str = "int64"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value(self.value_type), "references": Value(self.value_type)})
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation=_CITATION, features=features)

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {self.key: float(self.score(np.asarray(predictions), np.asarray(references)))}

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        """Return the number."""
        raise NotImplementedError


class Accuracy(LocalMetric):
    """Share of examples with the right class."""

    key = "accuracy"

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        return accuracy_score(references, predictions)


class F1(LocalMetric):
    """F1 of class 1; 0 when class 1 is neither predicted nor there."""

    key = "f1"

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        return f1_score(references, predictions, zero_division=0)


class MatthewsCorrelation(LocalMetric):
    """Matthews correlation coefficient; 0 for constant predictions."""

    key = "matthews_correlation"

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        return matthews_corrcoef(references, predictions)


class Pearson(LocalMetric):
    """Pearson correlation; 0 where it is undefined (constant predictions)."""

    key = "pearson"
    value_type = "float64"

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        return _correlation(pearsonr, predictions, references)


class Spearman(LocalMetric):
    """Spearman rank correlation; 0 where it is undefined (constant predictions)."""

    key = "spearmanr"
    value_type = "float64"

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """Return the score of these predictions."""
        return _correlation(spearmanr, predictions, references)


def _correlation(measure: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    if len(predictions) < 2 or not _varies(predictions) or not _varies(references):
        return 0.0  # NaN is no JSON, and a constant tells nothing about the order
    return float(measure(predictions, references).statistic)


def _varies(values: np.ndarray) -> bool:
    # A spread below rounding error is a constant to scipy as well, which then warns and may return NaN.
    return bool(np.ptp(values) > 1e-13 * np.abs(values).max())


def make_compute_metrics(
    metrics: Sequence[LocalMetric], *, regression: bool = False
) -> Callable[[Any], dict[str, float]]:
    """Return Trainer's `compute_metrics`; more than one metric adds their mean, `combined_score`, as GLUE does."""

    def compute_metrics(output: Any) -> dict[str, float]:
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        predictions = np.squeeze(logits, axis=-1) if regression else np.argmax(logits, axis=-1)
        results: dict[str, float] = {}
        for metric in metrics:
            results |= metric.compute(predictions=predictions, references=output.label_ids)
        if len(results) > 1:
            results["combined_score"] = float(np.mean(list(results.values())))
        return results

    return compute_metrics
