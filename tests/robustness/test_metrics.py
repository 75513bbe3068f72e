# SPDX-License-Identifier: Apache-2.0
"""Are the scores those of independent implementations, and of examples computed by hand?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.text import perplexity

from hf_sam.robustness import METRICS, calibration, selective
from hf_sam.robustness.metrics import MAIN, scores
from hf_sam.robustness.predictions import Predictions


def answers(kind: str, logits: np.ndarray, labels: np.ndarray) -> Predictions:
    return Predictions(kind, logits, labels, np.arange(len(labels)), len(labels))


def drawn(classes: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    labels = generator.integers(classes, size=rows)
    logits = 2 * generator.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifiers_scores_are_those_of_scikit_learn_and_torchmetrics(classes: int) -> None:
    logits, labels = drawn(classes)
    p = torch.from_numpy(logits).double().softmax(1).numpy()
    found = scores(answers("classification", logits, labels))
    assert found["accuracy"] == sk.accuracy_score(labels, p.argmax(1))
    assert found["nll"] == pytest.approx(sk.log_loss(labels, p), rel=1e-9)
    one_hot = np.eye(classes)[labels]
    assert found["brier"] == pytest.approx(sum(sk.brier_score_loss(one_hot[:, c], p[:, c]) for c in range(classes)))
    area = [sk.roc_auc_score(one_hot[:, c], p[:, c]) for c in range(classes)]
    assert found["roc_auc"] == pytest.approx(np.mean(area))
    expected = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=classes, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert set(found) <= set(METRICS)


def test_scores_of_four_examples_computed_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    labels = np.array([0, 1, 1, 0])  # right, right, wrong, right
    found = scores(answers("classification", np.log(p), labels))
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean())
    assert found["brier"] == pytest.approx(2 * (0.1**2 + 0.2**2 + 0.6**2 + 0.3**2) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4, abs=1e-6)  # four bins with one each
    assert found["roc_auc"] == 1.0  # both of class 1 have a higher p(1) than both of class 0
    assert found["aurc"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    assert found["selective_accuracy"] == 1.0  # three of four


def test_no_probability_is_cut_off_in_the_likelihood() -> None:
    found = scores(answers("classification", np.array([[800.0, 0.0]] * 2), np.array([1, 0])))
    assert found["nll"] == 400


def test_the_bins_of_the_diagram_add_up_to_the_calibration_error() -> None:
    logits, labels = drawn(3)
    p = calibration.probabilities(logits)
    p[0] = [1, 0, 0]  # the upper end belongs to the last bin
    bins = calibration.reliability(p, labels)
    gaps = sum(b.count * abs(b.confidence - b.accuracy) for b in bins if b.count)
    assert sum(b.count for b in bins) == len(labels)
    assert gaps / len(labels) == pytest.approx(calibration.expected_calibration_error(p, labels), abs=1e-6)
    for each in bins:
        assert each.confidence is None or each.low <= each.confidence <= each.high


def test_the_temperature_is_the_best_one() -> None:
    logits, labels = drawn(4)
    t = calibration.fitted_temperature(logits, labels)
    losses = {s: calibration.negative_log_likelihood(logits / (s * t), labels) for s in (0.99, 1.0, 1.01)}
    assert min(losses, key=losses.get) == 1.0
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits).double() / scale, torch.tensor(labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert t == pytest.approx(float(scale.detach()), rel=1e-4)


def test_scaled_scores_are_those_of_the_divided_logits() -> None:
    logits, labels = drawn(3)
    found = scores(answers("classification", logits, labels), temperature=2.0)
    halved = scores(answers("classification", logits / 2, labels))
    assert (found["temperature"], found["nll_scaled"]) == (2.0, pytest.approx(halved["nll"]))
    assert found["ece_scaled"] == pytest.approx(halved["ece"], abs=1e-6)
    assert "nll_scaled" not in halved


def test_risk_is_the_mean_over_all_orders_of_equally_sure_answers() -> None:
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.9, 0.1], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 1])
    expected = []
    for order in ([2, 0, 1, 3], [2, 1, 0, 3]):
        wrong = (p.argmax(1) != labels)[order]
        expected.append(np.cumsum(wrong) / np.arange(1, 5))
    np.testing.assert_allclose(selective.risks(p, labels), np.mean(expected, axis=0))


def test_several_labels_are_as_many_decisions() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(30, 4)), generator.integers(2, size=(30, 4)).astype(float)
    found = scores(answers("multilabel", logits, labels))
    p = 1 / (1 + np.exp(-logits))
    assert found["accuracy"] == pytest.approx(((p > 0.5) == labels).mean())
    assert found["nll"] == pytest.approx(sk.log_loss(labels.reshape(-1), p.reshape(-1)))


def test_a_regressors_scores_are_those_of_scikit_learn_and_scipy() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=50)
    found = scores(answers("regression", (labels + generator.normal(size=50)).astype(np.float32), labels))
    answered = answers("regression", labels, labels)
    assert scores(answered)["rmse"] == 0
    generator = np.random.default_rng(0)
    again = generator.normal(size=50) + generator.normal(size=50)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, again), rel=1e-5)
    assert found["r2"] == pytest.approx(sk.r2_score(labels, again), rel=1e-4)
    assert found["spearman"] == pytest.approx(stats.spearmanr(labels, again).statistic)


def test_perplexity_is_that_of_torchmetrics() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").numpy()
    found = scores(Predictions("causal_lm", losses, labels.flatten().numpy(), np.repeat(np.arange(3), 5), 3))
    assert found["perplexity"] == pytest.approx(float(perplexity(logits, labels)), rel=1e-5)


def test_what_is_not_defined_is_none() -> None:
    one_class = scores(answers("classification", np.zeros((4, 2)), np.zeros(4, dtype=int)))
    assert one_class["roc_auc"] is None
    broken = scores(answers("classification", np.full((4, 2), np.nan), np.zeros(4, dtype=int)))
    assert broken["nll"] is None
    assert broken["accuracy"] is not None
    assert scores(answers("regression", np.ones(4), np.arange(4.0)))["pearson"] is None
    assert scores(answers("regression", np.full(4, np.nan), np.arange(4.0)))["rmse"] is None
    assert set(MAIN.values()) <= set(METRICS)


def test_the_users_own_scores_come_first() -> None:
    logits, labels = drawn(3)
    found = scores(answers("classification", logits, labels), compute_metrics=lambda out: {"rows": len(out.label_ids)})
    assert next(iter(found.items())) == ("rows", 400)
