# SPDX-License-Identifier: Apache-2.0
"""Judge each label by the logits of a model: whether another one is right, and how sure the model is of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, log_softmax
from torch.nn import functional


@dataclass
class Judged:
    """Of each example: its labels in words, its loss, and how far the model is from the given one."""

    kind: str
    given: list[str]
    predicted: list[str]
    loss: np.ndarray
    doubt: np.ndarray  # the probability that the given label is wrong; of numbers: predicted minus given
    differs: np.ndarray  # whether the model says something else

    def order(self) -> np.ndarray:
        """Return the examples, those first that the model doubts most."""
        return np.argsort(-np.abs(self.doubt), kind="stable")


def judge(output: Any, names: Mapping[int, str], separator: str = "|") -> Judged | None:
    """Return what the outputs of an evaluation say about each example.

    Args:
        output: Logits and labels, as the Trainer gives them to `compute_metrics`.
        names: Of the classes, by number.
        separator: What stands between several labels.

    Returns:
        None where there is not one label, one set of labels or one number for each example, or the model diverged.
    """
    logits, labels = (part[0] if isinstance(part, tuple) else part for part in (output.predictions, output.label_ids))
    if labels is None or np.ndim(logits) != 2 or len(logits) != len(labels):
        return None
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or not np.isfinite(logits).all():
        return None
    if labels.shape == logits.shape and logits.shape[1] == len(names):
        return _several(logits, labels, names, separator)
    if labels.ndim != 1:
        return None
    if np.issubdtype(labels.dtype, np.integer):
        return _classes(logits, labels, names) if 0 <= labels.min() <= labels.max() < logits.shape[1] else None
    return _numbers(logits[:, 0], labels) if logits.shape[1] == 1 else None


def condense(logits: Any, labels: Any) -> torch.Tensor:
    """Return loss and predicted class of each example where it has one class, else its logits.

    Trainer's `preprocess_logits_for_metrics`: the logits of a large set and many classes do not fit into memory.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    if labels is None or labels.dim() != 1 or labels.is_floating_point() or logits.dim() != 2:
        return logits
    loss = functional.cross_entropy(logits.float(), labels, reduction="none")
    return torch.stack([loss, logits.argmax(dim=-1).to(loss.dtype)], dim=1)


def judge_condensed(output: Any, names: Mapping[int, str], separator: str = "|") -> Judged | None:
    """Return what `judge` does, of outputs that `condense` has made smaller."""
    rows, labels = np.asarray(output.predictions), np.asarray(output.label_ids)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return judge(output, names, separator)
    if rows.shape != (len(labels), 2) or not len(rows) or not np.isfinite(rows).all():
        return None
    return _of_classes(rows[:, 0].astype(np.float64), rows[:, 1].astype(np.int64), labels, names)


def _classes(logits: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> Judged:
    loss = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return _of_classes(loss, logits.argmax(axis=-1), labels, names)


def _of_classes(loss: np.ndarray, predicted: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> Judged:
    given, others = ([names[int(number)] for number in numbers] for numbers in (labels, predicted))
    return Judged("classification", given, others, loss, -np.expm1(-loss), predicted != labels)


def _several(logits: np.ndarray, labels: np.ndarray, names: Mapping[int, str], separator: str) -> Judged:
    there, predicted = labels > 0.5, logits > 0
    right = expit(np.where(there, logits, -logits))
    loss = np.logaddexp(0.0, np.where(there, -logits, logits)).mean(axis=-1)
    given, others = (
        [separator.join(names[place] for place in np.flatnonzero(row).tolist()) for row in rows]
        for rows in (there, predicted)
    )
    return Judged("multilabel", given, others, loss, 1 - right.min(axis=-1), (there != predicted).any(axis=-1))


def _numbers(predicted: np.ndarray, labels: np.ndarray) -> Judged:
    residual = predicted - labels
    given, others = ([f"{value:.6g}" for value in values] for values in (labels, predicted))
    return Judged("regression", given, others, residual**2, residual, np.ones(len(labels), dtype=bool))
