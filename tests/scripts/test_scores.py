# SPDX-License-Identifier: Apache-2.0
"""Are scores of each kind those of scikit-learn, and losses with weights the same however a batch is cut?"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch.nn import functional

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.losses import balanced_weights, classification_loss, multilabel_loss
from hf_sam.cli.common.problem import Problem
from hf_sam.cli.common.scores import Scores, check_best_metric

CLASSES = Problem("classification", ["a", "b", "c"], "")
SEVERAL = Problem("multilabel", ["a", "b"], "")


def scored(problem: Problem, logits: Any, truth: Any) -> dict[str, float]:
    return Scores(problem)(SimpleNamespace(predictions=np.asarray(logits), label_ids=np.asarray(truth)))


def test_scores_of_classes() -> None:
    logits = np.random.default_rng(0).normal(size=(30, 3))
    truth = np.arange(30) % 3
    found = scored(CLASSES, logits, truth)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, logits.argmax(-1), average="macro"))
    assert found["micro_f1"] == pytest.approx(found["accuracy"])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr"))
    scores = Scores(CLASSES)
    scores(SimpleNamespace(predictions=logits, label_ids=truth))
    rows = scores.per_class
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert sum(row["support"] for row in rows) == 30


@pytest.mark.filterwarnings("ignore:A single label")
def test_scores_where_some_are_not_defined() -> None:
    found = scored(CLASSES, [[1.0, 0.0, 0.0]] * 4, [0, 0, 0, 0])
    assert "auc" not in found
    assert found["accuracy"] == 1
    diverged = scored(CLASSES, [[float("nan")] * 3] * 4, [0, 1, 2, 0])
    assert diverged.keys() == {"accuracy", "macro_f1", "micro_f1", "matthews_correlation", "auc"}
    assert math.isnan(diverged.pop("auc"))
    assert diverged["accuracy"] == diverged["micro_f1"] == 0.5, "it still predicts a class, the first one"


def test_scores_of_several_labels_and_of_numbers() -> None:
    found = scored(SEVERAL, [[1, -1], [1, 1], [-1, -1]], [[1, 0], [1, 0], [0, 1]])
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["accuracy"] == pytest.approx(1 / 3)
    numbers = scored(Problem("regression", [], ""), [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0])
    assert numbers["mae"] == pytest.approx(1 / 3)
    assert numbers["spearmanr"] == pytest.approx(1)


def test_the_best_model_is_chosen_by_a_metric_there_is() -> None:
    training = SimpleNamespace(metric_for_best_model="eval_mae", greater_is_better=True)
    check_best_metric(training, "regression")
    assert training.greater_is_better is False
    with pytest.raises(UserError, match="--metric_for_best_model f1 is unknown for multilabel: use micro_f1, macro_f1"):
        check_best_metric(SimpleNamespace(metric_for_best_model="f1"), "multilabel")


@pytest.mark.parametrize("make", [classification_loss, multilabel_loss])
def test_weights_and_smoothing_are_the_same_in_parts(make: Any) -> None:
    logits = torch.randn(6, 3)
    labels = torch.arange(6) % 3 if make is classification_loss else (torch.randn(6, 3) > 0).float()
    smoothing = [0.1] if make is classification_loss else []
    loss = make(*smoothing, [0.5, 1.0, 3.0])
    items = torch.tensor(labels.numel())
    parts = [loss({"logits": logits[cut]}, labels[cut], items) for cut in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), loss({"logits": logits}, labels))
    plain = functional.cross_entropy if make is classification_loss else functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(make()({"logits": logits}, labels), plain(logits, labels))


def test_balanced_weights_make_classes_weigh_the_same() -> None:
    weights = balanced_weights([0] * 6 + [1] * 3 + [2], 4)
    assert weights[:3] == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert sum(weights[label] for label in [0] * 6 + [1] * 3 + [2]) == pytest.approx(10)
    assert balanced_weights([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 2) == pytest.approx([1.0, 3.0])
