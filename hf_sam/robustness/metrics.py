# SPDX-License-Identifier: Apache-2.0
"""Every score of a set of predictions, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_sam.robustness import calibration, selective
from hf_sam.robustness.extras import needed
from hf_sam.robustness.predictions import Array, Predictions
from hf_sam.robustness.results import finite

ComputeMetrics = Callable[[Any], Mapping[str, float]]
"""As the Trainer's: of an `EvalPrediction`."""


@dataclass(frozen=True)
class Metric:
    """What a score is called, and how it is read.

    Attributes:
        title: a plain name.
        help: what it says, in a sentence.
        better: 1 if larger is better, -1 if smaller is, 0 if neither.
        percent: whether it is a share, which people write in percent.
    """

    title: str
    help: str
    better: int
    percent: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "Share of right answers.", 1, True),
    "nll": Metric(
        "Negative log-likelihood",
        "Mean of -log of the probability that the model gave to the right answer, in nats: sure and wrong costs most.",
        -1,
    ),
    "brier": Metric(
        "Brier score", "Mean squared distance of the probabilities from 0 and 1, summed over the classes: 0 to 2.", -1
    ),
    "ece": Metric(
        "Calibration error (ECE)",
        "Mean gap between confidence and accuracy over 15 bins of equal width: 0 if 80 % sure means right 8 times in "
        "10.",
        -1, True,
    ),
    "ece_adaptive": Metric(
        "Calibration error, adaptive bins", "The same over 15 bins that hold equally many examples.", -1, True
    ),
    "roc_auc": Metric(
        "ROC-AUC",
        "Chance that an example of a class gets a higher probability for it than one of another class; mean over the "
        "classes.",
        1,
    ),
    "selective_accuracy": Metric(
        "Accuracy at 80 % coverage", "Share of right answers among the 80 % that the model is surest of.", 1, True
    ),
    "aurc": Metric(
        "Area under risk-coverage", "Mean share of wrong answers over all numbers of surest examples.", -1, True
    ),
    "temperature": Metric(
        "Temperature", "What the logits are divided by after temperature scaling: above 1 the model was too sure.", 0
    ),
    "nll_scaled": Metric("Negative log-likelihood, scaled", "The same after temperature scaling.", -1),
    "ece_scaled": Metric("Calibration error, scaled", "ECE after temperature scaling.", -1, True),
    "rmse": Metric("Root mean squared error", "In the unit of the labels.", -1),
    "mae": Metric("Mean absolute error", "In the unit of the labels.", -1),
    "r2": Metric("R²", "Share of the labels' variance that is explained.", 1),
    "pearson": Metric("Pearson correlation", "Of answers and labels.", 1),
    "spearman": Metric("Spearman correlation", "Of the orders of answers and labels.", 1),
    "perplexity": Metric(
        "Perplexity", "exp of the mean loss of a token: among how many equally likely ones the model guesses.", -1
    ),
}  # fmt: skip
"""All that may be measured. What `compute_metrics` adds is not in here: larger is taken to be better."""

MAIN = {"classification": "accuracy", "multilabel": "accuracy", "regression": "rmse", "causal_lm": "perplexity"}
"""The score that stands for the whole, by the kind of model."""


def metric_of(name: str) -> Metric:
    """Return how a score is read; one of the user's by its own name."""
    plain = name.replace("_", " ")
    return METRICS.get(name, Metric(plain[:1].upper() + plain[1:], "As compute_metrics says it.", 1))


def scores(
    found: Predictions, temperature: float | None = None, compute_metrics: ComputeMetrics | None = None
) -> dict[str, float | None]:
    """Return every score of the predictions; None where one is not defined.

    Args:
        found: the predictions.
        temperature: fitted on other examples; without one there are no scores after temperature scaling.
        compute_metrics: the user's own scores of logits and labels, which come first.
    """
    values: dict[str, float] = {}
    if compute_metrics is not None:
        values |= compute_metrics(_evaluated(found))
    if found.kind == "causal_lm":
        values |= _of_tokens(found)
    elif found.kind == "regression":
        values |= _of_numbers(found.logits, found.labels)
    else:
        values |= _of_classes(*found.decisions(), temperature)
    return {name: finite(float(value)) for name, value in values.items()}


def _evaluated(found: Predictions) -> Any:
    from transformers import EvalPrediction

    if found.kind == "causal_lm" or len(found.example) != found.examples:
        raise ValueError("`RobustnessAnalyzer(compute_metrics=...)` needs one answer an example, not one a token.")
    logits = found.logits[:, None] if found.kind == "regression" else found.logits
    return EvalPrediction(predictions=logits, label_ids=found.labels)


def _of_classes(logits: Array, labels: Array, temperature: float | None) -> dict[str, float]:
    if not np.isfinite(logits).all():  # of a model that a condition has broken: there are no probabilities
        right = float((np.nan_to_num(logits).argmax(axis=1) == labels).mean())
        names = ("nll", "brier", "ece", "ece_adaptive", "roc_auc", "selective_accuracy", "aurc")
        return {"accuracy": right, **dict.fromkeys(names, float("nan"))}
    p = calibration.probabilities(logits)
    risks = selective.risks(p, labels)
    found = {
        "accuracy": float((p.argmax(axis=1) == labels).mean()),
        "nll": calibration.negative_log_likelihood(logits, labels),
        "brier": float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1).mean()),
        "ece": calibration.expected_calibration_error(p, labels),
        "ece_adaptive": calibration.adaptive_calibration_error(p, labels),
        "roc_auc": _roc_auc(p, labels),
        "selective_accuracy": selective.selective_accuracy(risks),
        "aurc": selective.area_under(risks),
    }
    if temperature is not None:
        scaled = logits.astype(np.float64) / temperature
        found["temperature"] = temperature
        found["nll_scaled"] = calibration.negative_log_likelihood(scaled, labels)
        found["ece_scaled"] = calibration.expected_calibration_error(calibration.probabilities(scaled), labels)
    return found


def _roc_auc(p: Array, labels: Array) -> float:
    """Return the area under the ROC curve, the mean over classes of one against the rest; of two classes it is one.

    It is that of scikit-learn, from ranks (Mann and Whitney 1947): one sort for all classes, a tenth of the time.
    """
    count = np.bincount(labels, minlength=p.shape[1])
    if not count.all() or len(labels) == count.max():
        return float("nan")
    ranks = needed("scipy.stats").rankdata(p, axis=0)
    of_class = np.zeros(p.shape[1])
    np.add.at(of_class, labels, ranks[np.arange(len(labels)), labels])
    areas = (of_class - count * (count + 1) / 2) / (count * (len(labels) - count))
    return float(areas.mean())


def _of_numbers(answers: Array, labels: Array) -> dict[str, float]:
    metrics, stats = needed("sklearn.metrics"), needed("scipy.stats")
    answers, labels = answers.astype(np.float64), labels.astype(np.float64)
    if not np.isfinite(answers).all():
        return dict.fromkeys(("rmse", "mae", "r2", "pearson", "spearman"), float("nan"))
    varied = len(answers) > 1 and np.ptp(answers) > 0 and np.ptp(labels) > 0
    return {
        "rmse": float(np.sqrt(metrics.mean_squared_error(labels, answers))),
        "mae": float(metrics.mean_absolute_error(labels, answers)),
        "r2": float(metrics.r2_score(labels, answers)) if len(answers) > 1 else float("nan"),
        "pearson": float(stats.pearsonr(answers, labels).statistic) if varied else float("nan"),
        "spearman": float(stats.spearmanr(answers, labels).statistic) if varied else float("nan"),
    }


def _of_tokens(found: Predictions) -> dict[str, float]:
    loss = float(found.logits.mean())
    return {"perplexity": float(np.exp(min(loss, 700.0))), "nll": loss}
