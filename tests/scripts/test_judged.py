# SPDX-License-Identifier: Apache-2.0
"""Does each kind of label give the loss and the doubt that its definition says?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import EvalPrediction

from hf_sam.cli.common.judged import condense, judge, judge_condensed

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0], [1.0, 1.5, 0.0]])


def test_one_class() -> None:
    judged = judge(EvalPrediction(LOGITS, np.array([0, 2, 0])), {0: "a", 1: "b", 2: "c"})
    assert judged is not None
    truth = torch.tensor([0, 2, 0])
    loss = functional.cross_entropy(torch.tensor(LOGITS), truth, reduction="none").numpy()
    assert judged.loss == pytest.approx(loss)
    assert judged.doubt == pytest.approx(1 - np.exp(-loss))
    assert (judged.given, judged.predicted) == (["a", "c", "a"], ["a", "b", "b"])
    assert judged.differs.tolist() == [False, True, True]
    assert judged.order().tolist() == [1, 2, 0]


def test_condensed_outputs_are_judged_alike() -> None:
    names = {0: "a", 1: "b", 2: "c"}
    for labels in (np.array([0, 2, 0]), np.eye(3), np.array([0.5, 1.0, 2.0])):
        logits = LOGITS[:, :1] if labels.dtype == float and labels.ndim == 1 else LOGITS
        small = condense((torch.tensor(logits),), torch.tensor(labels)).numpy()
        whole, less = (
            judge(EvalPrediction(logits, labels), names),
            judge_condensed(EvalPrediction(small, labels), names),
        )
        assert whole is not None
        assert less is not None
        assert (less.given, less.predicted) == (whole.given, whole.predicted)
        assert less.doubt == pytest.approx(whole.doubt)
        assert less.loss == pytest.approx(whole.loss)
    assert condense(torch.tensor(LOGITS), torch.tensor([0, 2, 0])).shape == (3, 2)
    broken = EvalPrediction(np.array([[np.nan, 1.0]]), np.array([0]))
    assert judge_condensed(broken, names) is None


def test_several_labels() -> None:
    labels = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    judged = judge(EvalPrediction((LOGITS, None), labels), {0: "a", 1: "b", 2: "c"}, "; ")
    assert judged is not None
    loss = functional.binary_cross_entropy_with_logits(torch.tensor(LOGITS), torch.tensor(labels), reduction="none")
    assert judged.loss == pytest.approx(loss.mean(-1).numpy())
    assert judged.given == ["a", "b", "a; b; c"]
    assert judged.predicted == ["a", "b; c", "a; b"]
    assert judged.doubt[1] == pytest.approx(1 / (1 + np.exp(-1.0)))  # of the label c that is not given
    assert judged.differs.tolist() == [False, True, True]


def test_numbers() -> None:
    judged = judge(EvalPrediction(np.array([[1.0], [2.0], [0.5]]), np.array([1.5, -1.0, 0.5])), {0: "LABEL_0"})
    assert judged is not None
    assert judged.doubt.tolist() == [-0.5, 3.0, 0.0]
    assert judged.loss.tolist() == [0.25, 9.0, 0.0]
    assert judged.order().tolist() == [1, 0, 2]
    assert (judged.given[0], judged.predicted[0]) == ("1.5", "1")


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((2, 5, 3)), np.zeros((2, 5), dtype=int)),  # a label for each token
        (LOGITS, None),
        (LOGITS * np.nan, np.array([0, 1, 2])),
        (LOGITS, np.array([0, -100, 2])),
        (None, np.array([0, 1, 2])),
        (np.zeros((0, 3)), np.zeros(0, dtype=int)),
    ],
    ids=["tokens", "no labels", "diverged", "a missing label", "no predictions", "no examples"],
)
def test_anything_else_is_not_judged(logits: object, labels: object) -> None:
    assert judge(EvalPrediction(logits, labels), {0: "a", 1: "b", 2: "c"}) is None
