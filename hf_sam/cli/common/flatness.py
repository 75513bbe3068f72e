# SPDX-License-Identifier: Apache-2.0
"""What is measured of each checkpoint, and how are the numbers written?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from transformers import EvalPrediction

from hf_sam.sharpness import (
    Density,
    Difference,
    Interpolation,
    Landscape,
    SharpnessAnalyzer,
    interpolate,
    landscape_1d,
    landscape_2d,
)

COLUMNS = {
    "loss": "loss",
    "||gradient||": "gradient_norm",
    "||weights||": "weight_norm",
    "lambda_max": "lambda_max",
    "lambda_max ||w||² / P": "lambda_max_relative",
    "lambda_max / lambda_k": "lambda_ratio",
    "trace": "trace",
    "one step up": "sam_sharpness",
    "worst case": "worst_case",
}
"""Lines of the table, and the keys of the report they show."""

NORMAL = (
    "Flatness does not predict the accuracy of a fine-tuned model (Andriushchenko et al. 2023), and lambda_max cannot "
    "be compared between weights of different scale."
)


@dataclass
class Measured:
    """What was measured of one checkpoint."""

    report: dict[str, Any]
    density: Density | None = None
    line: Landscape | None = None
    square: Landscape | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        parts = {"density": self.density, "landscape_1d": self.line, "landscape_2d": self.square}
        return {**self.report, **{name: part.as_dict() for name, part in parts.items() if part is not None}}


def measure(one: SharpnessAnalyzer, options: argparse.Namespace, bar: Progress, name: str) -> Measured:
    """Measure one checkpoint, with a bar for each part that takes long."""
    steps = bar.add_task(f"{name}: eigenvalues, trace, rises", total=None)
    report = one.report(options.radius, options.eigenvalues, options.products)
    k = len(report["top_eigenvalues"]["values"])
    report["lambda_ratio"] = report[f"lambda_max / lambda_{k}"]
    bar.update(steps, total=1, completed=1)
    found = Measured(report)
    if options.density:
        steps = bar.add_task(f"{name}: spectrum", total=None)
        found.density = one.density(options.density)
        bar.update(steps, total=1, completed=1)
    if options.landscape:
        track = _tracker(bar, f"{name}: landscape")
        found.line = landscape_1d(one, options.span, 2 * options.landscape - 1, progress=track)
        found.square = landscape_2d(one, options.span, options.landscape, progress=track)
    return found


def ways(
    models: dict[str, Any], task: Any, options: argparse.Namespace, settings: dict[str, Any], bar: Progress
) -> dict[str, Interpolation]:
    """Return the loss on the training examples, and the task's metric, between the first checkpoint and the others."""
    first, *others = models
    data = next(iter(task.evaluation.values())).data

    def at(model: Any) -> tuple[float, float]:
        return SharpnessAnalyzer(model, task.train, **settings).loss(), _metric(
            model, data, task, options.metric, settings
        )

    return {
        f"{first} to {name}": interpolate(
            models[first], models[name], at, options.interpolate, progress=_tracker(bar, f"{first} to {name}")
        )
        for name in others
    }


@torch.no_grad()
def _metric(model: Any, data: Any, task: Any, name: str, settings: dict[str, Any]) -> float:
    """Return the task's metric on the evaluation examples."""
    one = SharpnessAnalyzer(model, data, **settings)
    model.train(False)
    logits, labels = [], []
    for batch in one.examples.batches():
        logits.append(model(**{k: v for k, v in batch.items() if k != "labels"}).logits.float().numpy())
        labels.append(batch["labels"].numpy())
    return float(task.compute_metrics(EvalPrediction(np.concatenate(logits), np.concatenate(labels)))[name])


def metric_of(defaults: dict[str, Any]) -> str:
    """Return the name of a task's main metric, without what several evaluation sets put before it."""
    return str(defaults["metric_for_best_model"]).removeprefix("matched_")


def _tracker(bar: Progress, text: str) -> Callable[[Any], Any]:
    return lambda todo: bar.track(todo, description=text)


def cell(report: dict[str, Any], key: str) -> str:
    """Return a number of the report as it stands in a table, with its standard error if it has one."""
    value = report.get(key)
    if isinstance(value, dict):
        error = value.get("standard_error")
        return f"{value['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")
    return "" if value is None else f"{value:.4g}"


def interval(difference: Difference) -> str:
    """Return a difference with its interval."""
    return f"{difference.mean:+.3g}  ({difference.low:+.3g} to {difference.high:+.3g})"
