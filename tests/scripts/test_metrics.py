# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest

from hf_sam.cli.common.metrics import (
    F1,
    Accuracy,
    LocalMetric,
    MatthewsCorrelation,
    Pearson,
    Spearman,
    make_compute_metrics,
)
from hf_sam.cli.tasks.glue import GLUE

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.integers(0, 2, 200)
GUESS = np.where(GENERATOR.random(200) < 0.7, TRUTH, 1 - TRUTH)
SCORES = GENERATOR.uniform(0, 5, 200)
ESTIMATES = SCORES + GENERATOR.normal(0, 1, 200)


def confusion() -> tuple[int, int, int, int]:
    """True and false positives, true and false negatives."""
    pairs = list(zip(GUESS.tolist(), TRUTH.tolist(), strict=True))
    return tuple(pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))  # type: ignore[return-value]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / math.sqrt((x @ x) * (y @ y)))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks with the mean rank for ties, the slow way."""
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


def value(metric: LocalMetric, guess: np.ndarray, truth: np.ndarray) -> float:
    return metric.compute(predictions=guess, references=truth)[metric.key]


def test_classification_metrics_equal_their_definitions() -> None:
    tp, fp, tn, fn = confusion()
    assert value(Accuracy(), GUESS, TRUTH) == pytest.approx((tp + tn) / 200)
    assert value(F1(), GUESS, TRUTH) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert value(MatthewsCorrelation(), GUESS, TRUTH) == pytest.approx((tp * tn - fp * fn) / root)


def test_regression_metrics_equal_their_definitions_with_ties() -> None:
    truth = np.round(SCORES)
    assert value(Pearson(), ESTIMATES, truth) == pytest.approx(pearson(ESTIMATES, truth))
    assert value(Spearman(), ESTIMATES, truth) == pytest.approx(pearson(ranks(ESTIMATES), ranks(truth)))


def test_they_are_metrics_of_evaluate() -> None:
    assert isinstance(Accuracy(), evaluate.Metric)
    assert evaluate.combine([Accuracy(), F1()]).compute(predictions=[0, 1], references=[0, 1]) == {
        "accuracy": 1,
        "f1": 1,
    }


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("name", GLUE)
def test_constant_predictions_give_numbers_that_json_can_hold(name: str, constant: int) -> None:
    spec = GLUE[name]
    size = max(len(spec.classes), 1)
    logits = np.tile(np.eye(3)[constant][:size] if size > 1 else [float(constant)], (200, 1))
    compute = make_compute_metrics([metric() for metric in spec.metrics], regression=not spec.classes)
    truth = TRUTH if spec.classes else SCORES
    json.dumps(compute(SimpleNamespace(predictions=logits, label_ids=truth)), allow_nan=False)


def test_each_task_has_its_official_metrics() -> None:
    expected = {
        "cola": {"matthews_correlation"}, "sst2": {"accuracy"}, "mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"},
        "stsb": {"pearson", "spearmanr"}, "mnli": {"accuracy"}, "qnli": {"accuracy"}, "rte": {"accuracy"},
        "wnli": {"accuracy"},
    }  # fmt: skip
    assert {name: {metric.key for metric in spec.metrics} for name, spec in GLUE.items()} == expected


def test_two_metrics_add_their_mean_as_combined_score() -> None:
    logits = np.eye(2)[GUESS]
    result = make_compute_metrics([Accuracy(), F1()])(SimpleNamespace(predictions=(logits, None), label_ids=TRUTH))
    assert result["combined_score"] == pytest.approx((result["accuracy"] + result["f1"]) / 2)
