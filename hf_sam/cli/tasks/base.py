# SPDX-License-Identifier: Apache-2.0
"""What is a task? Everything the driver needs to train, evaluate and predict, and nothing about how it was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.losses import Loss


@dataclass
class Split:
    """A set to evaluate or to predict on."""

    data: Any
    labelled: bool = True
    file_name: str = "predictions.tsv"
    files: list[str] | None = None  # the names of the files that the rows were


@dataclass
class Task:
    """One learning problem, ready for a Trainer."""

    name: str
    model: Any
    train: Any
    evaluation: dict[str, Split]  # the key is "" unless there are several, as for MNLI
    test: dict[str, Split]
    processing_class: Any  # tokenizer or image processor: saved with the model, so that a pipeline finds it
    compute_loss: Loss
    compute_metrics: Callable[[Any], dict[str, float]]
    format_predictions: Callable[[np.ndarray], list[str]]
    pipeline: str  # the name of the transformers pipeline that loads the result
    auto_class: str
    example: str  # Python expression for the pipeline's input, shown in the summary
    data_collator: Any = None
    flipped_labels: int = 0
    card: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    def write_predictions(self, split: Split, logits: Any, folder: Path) -> Path:
        """Write one prediction per line in GLUE's format: index and prediction, and the file if the rows are files."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        header = "index\tprediction" if split.files is None else "index\tprediction\tfile"
        lines = [f"{row}\t{text}" for row, text in enumerate(self.format_predictions(np.asarray(logits)))]
        if split.files is not None:
            lines = [f"{line}\t{name}" for line, name in zip(lines, split.files, strict=True)]
        path = folder / split.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path


def hold_out(task: Task, share: float | None) -> None:
    """Evaluate on a share of the training data, labels and all, which are then not trained on; None does nothing.

    They are the same rows whatever the seed, unless the seed chooses the training data.

    Raises:
        UserError: if there are no training data, nothing to evaluate, or one of the two parts would be empty.
    """
    if share is None:
        return
    if task.train is None or not task.evaluation:
        raise UserError("--hold_out needs training and evaluation: leave --do_train and --do_eval on.")
    count = round(share * len(task.train))
    if not 0 < count < len(task.train):
        raise UserError(f"--hold_out {share} of {len(task.train)} training rows leaves a set empty.")
    order = np.random.default_rng(0).permutation(len(task.train)).tolist()
    held, task.train = Subset(task.train, sorted(order[:count])), Subset(task.train, sorted(order[count:]))
    task.evaluation = {next(iter(task.evaluation)): Split(held)}
