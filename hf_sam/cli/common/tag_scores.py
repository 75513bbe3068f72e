# SPDX-License-Identifier: Apache-2.0
"""Score predicted tags: by entity, as seqeval and conlleval count, or by word where tags mark none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as entity_scores
from sklearn.metrics import f1_score, precision_recall_fscore_support

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.tag_schemes import Scheme, as_entities

UNSEEN = -100  # the label of a piece that is not scored
ENTITY_NAMES = ("f1", "precision", "recall", "accuracy")
WORD_NAMES = ("accuracy", "macro_f1")
Rows = list[list[str]]


def check_best_tag_metric(training: Any, scheme: Scheme) -> None:
    """Let the best model be chosen by a metric there is.

    Raises:
        UserError: if `--metric_for_best_model` is none of this scheme.
    """
    name = training.metric_for_best_model
    known = (*(ENTITY_NAMES if scheme.entities else WORD_NAMES), "loss")
    if name is not None and name.removeprefix("eval_") not in known:
        kind = "entities" if scheme.entities else "tags that mark no entities"
        raise UserError(f"--metric_for_best_model {name} is unknown for {kind}: use {', '.join(known)}.")


class TagScores:
    """Trainer's `compute_metrics`. `per_class` is the table of the last evaluation: a line for each type, or tag."""

    def __init__(self, names: Sequence[str], scheme: Scheme) -> None:
        self.names, self.scheme = list(names), scheme
        self.per_class: list[dict[str, Any]] = []

    def __call__(self, output: Any) -> dict[str, float]:
        """Return the scores by name."""
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        labels, predicted = np.asarray(output.label_ids), np.asarray(logits).argmax(axis=-1)
        counted = labels != UNSEEN
        self.per_class = []
        names = ENTITY_NAMES if self.scheme.entities else WORD_NAMES
        if not np.isfinite(np.asarray(logits)[counted]).all() or not counted.any():
            return dict.fromkeys(names, float("nan"))  # named all the same, or choosing the best would fail
        accuracy = float((labels == predicted)[counted].mean())
        if not self.scheme.entities:
            return {"accuracy": accuracy, "macro_f1": self._of_words(labels[counted], predicted[counted])}
        truth, found = (self._rows(values, counted) for values in (labels, predicted))
        precision, recall, f1, _ = entity_scores(truth, found, average="micro", zero_division=0)
        self.per_class = by_type(truth, found)
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "accuracy": accuracy}

    def _rows(self, values: np.ndarray, counted: np.ndarray) -> Rows:
        rows = zip(values, counted, strict=True)
        return [as_entities([self.names[number] for number in row[there]]) for row, there in rows]

    def _of_words(self, truth: np.ndarray, found: np.ndarray) -> float:
        numbers = list(range(len(self.names)))
        columns = precision_recall_fscore_support(truth, found, labels=numbers, average=None, zero_division=0)
        self.per_class = _table(self.names, columns)
        return float(f1_score(truth, found, average="macro", zero_division=0))


def by_type(truth: Rows, found: Rows) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of entities of each type."""
    types = sorted({entity[0] for rows in (truth, found) for entity in get_entities(rows)})
    return _table(types, entity_scores(truth, found, average=None, zero_division=0)) if types else []


def _table(names: Sequence[str], columns: Sequence[Any]) -> list[dict[str, Any]]:
    keys = ("precision", "recall", "f1", "support")
    rows = zip(names, *columns, strict=True)
    return [{"class": name, **dict(zip(keys, map(float, values), strict=True))} for name, *values in rows]
