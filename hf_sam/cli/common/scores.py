# SPDX-License-Identifier: Apache-2.0
"""How good are predictions of each kind: one class, several labels, a number? By scikit-learn and scipy, offline."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_recall_fscore_support,
    root_mean_squared_error,
)
from sklearn.metrics import roc_auc_score as roc_auc

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.metrics import Pearson, Spearman
from hf_sam.cli.common.problem import Kind, Problem

NAMES: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "micro_f1", "matthews_correlation", "auc"),
    "multilabel": ("micro_f1", "macro_f1", "accuracy", "auc"),
    "regression": ("pearson", "spearmanr", "mae", "rmse"),
}
MAIN: dict[Kind, str] = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "pearson"}
SMALLER_IS_BETTER = ("mae", "rmse")


def check_best_metric(training: Any, kind: Kind) -> None:
    """Let the best model be chosen by a metric there is, in the direction that is better.

    Raises:
        UserError: if `--metric_for_best_model` is no metric of this kind of problem.
    """
    if training.metric_for_best_model is None:
        return
    name = training.metric_for_best_model.removeprefix("eval_")
    known = (*NAMES[kind], "loss")
    if name not in known:
        raise UserError(
            f"--metric_for_best_model {training.metric_for_best_model} is unknown for {kind}: use {', '.join(known)}."
        )
    if name in SMALLER_IS_BETTER:  # Trainer takes everything but a loss for something to make larger
        training.greater_is_better = False


class Scores:
    """Trainer's `compute_metrics`. `per_class` is the table of the last evaluation; none for numbers."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.per_class: list[dict[str, Any]] = []

    def __call__(self, output: Any) -> dict[str, float]:
        """Return the scores by name."""
        kinds = {"classification": _classes, "multilabel": _several, "regression": _numbers}
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        logits = np.asarray(logits, dtype=np.float64)
        truth, finite = np.asarray(output.label_ids), bool(np.isfinite(logits).all())
        found = kinds[self.problem.kind](logits, truth) if finite else {}
        if not finite and self.problem.kind == "classification":  # it still predicts some class for each example
            found = {**_classes(np.nan_to_num(logits), truth), "auc": float("nan")}
        self.per_class = per_class(logits, truth, self.problem) if finite and self.problem.names else []
        # A run that diverged has no scores, but an evaluation has to name each, or choosing the best would fail.
        names = NAMES[self.problem.kind]
        return {name: found.get(name, float("nan")) for name in names if found.get(name, 0) is not None}


def _classes(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    predicted = logits.argmax(axis=-1)
    shares = softmax(logits, axis=-1)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(truth, predicted)),
        "auc": _auc(np.eye(logits.shape[-1])[truth], shares),
    }


def _several(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    predicted = logits > 0  # a probability above one half
    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth.astype(bool), predicted)),
        "auc": _auc(truth, expit(logits)),
    }


def _numbers(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    predicted = logits.squeeze(-1)
    return {
        "pearson": float(Pearson().score(predicted, truth)),
        "spearmanr": float(Spearman().score(predicted, truth)),
        "mae": float(mean_absolute_error(truth, predicted)),
        "rmse": float(root_mean_squared_error(truth, predicted)),
    }


def _auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the mean over the classes of one against the rest; a class that is always or never there has none."""
    found = [
        roc_auc(truth[:, column], scores[:, column])
        for column in range(truth.shape[1])
        if 0 < truth[:, column].sum() < len(truth)
    ]
    return float(np.mean(found)) if found else None


def per_class(logits: np.ndarray, truth: np.ndarray, problem: Problem) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of examples of each class."""
    predicted = logits > 0 if problem.kind == "multilabel" else logits.argmax(axis=-1)
    columns = precision_recall_fscore_support(
        truth, predicted, labels=list(range(len(problem.names))), average=None, zero_division=0
    )
    keys = ("precision", "recall", "f1", "support")
    rows = zip(problem.names, *columns, strict=True)
    return [{"class": name, **dict(zip(keys, map(float, values), strict=True))} for name, *values in rows]
