# SPDX-License-Identifier: Apache-2.0
"""List the training labels that may be wrong: those that the trained model contradicts, the surest first."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.judged import Judged, condense, judge_condensed
from hf_sam.cli.common.origins import Origin
from hf_sam.cli.tasks.base import Task

FILE = "suspects.csv"


class Suspects:
    """The training examples whose label the model doubts, in the order of the file."""

    def __init__(self, judged: Judged, origin: Origin, labels: Any) -> None:
        self.judged, self.origin = judged, origin
        self.places = [int(place) for place in judged.order() if judged.differs[place]]
        self.labels = labels

    def facts(self) -> dict[str, Any]:
        """Return how many there are, and where labels were flipped on purpose, how many of them are among these."""
        found: dict[str, Any] = {"suspects": len(self.places)}
        if self.origin.truth is not None:
            wrong = np.asarray(self.origin.truth) != np.asarray(self.labels)
            hits = int(wrong[self.places].sum())
            found["suspects_precision"] = hits / len(self.places) if self.places else None
            found["suspects_recall"] = hits / int(wrong.sum()) if wrong.any() else None
        return found

    def write(self, folder: Path) -> Path:
        """Write the file, whole or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        path = folder / FILE
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(self._rows())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{path} cannot be written: {one_line(error)} The model is saved.") from error
        return path

    def _rows(self) -> list[list[Any]]:
        judged, shown = self.judged, bool(self.origin.columns)
        measure = "residual" if judged.kind == "regression" else "confidence"
        rows: list[list[Any]] = [["row", *([self.origin.kind] if shown else []), "given", "predicted", measure]]
        for place in self.places:
            text = [self.origin.text(place)] if shown else []
            doubt = f"{judged.doubt[place]:.4f}" if judged.kind != "regression" else f"{judged.doubt[place]:.6g}"
            rows.append([self.origin.rows[place], *text, judged.given[place], judged.predicted[place], doubt])
        return rows


def find_suspects(trainer: Any, task: Task) -> Suspects | None:
    """Let the trained model predict its training data; all processes take part.

    Returns:
        None for a task without a label for each example, and where the model diverged.
    """
    origin = task.origins.get("train")
    if origin is None:
        return None
    own = trainer.compute_metrics, trainer.preprocess_logits_for_metrics  # the first keeps tables of what came last
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = None, condense
    try:
        output = trainer.predict(task.train, metric_key_prefix="train")
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = own
    judged = judge_condensed(output, task.model.config.id2label, task.separator)
    return None if judged is None else Suspects(judged, origin, output.label_ids)


def keep_private(folder: Path, training: Any) -> None:
    """Keep the training texts in an earlier file from the Hub, to which the whole folder is pushed.

    Raises:
        UserError: if the file would be pushed and is not about to be written anew.
    """
    path = folder / FILE
    if not path.exists() or not training.should_save:
        return
    if training.do_train:  # of another model
        path.unlink()
    elif training.push_to_hub:
        raise UserError(f"--push_to_hub would publish {path}, which holds training texts: move it out of the folder.")
