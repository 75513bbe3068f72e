# SPDX-License-Identifier: Apache-2.0
"""How well does a trained model point at the labels that are wrong? A table of what suspects.py found."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmarks.common.paired import mean_and_spread
from scripts.benchmarks.common.runs import read_runs
from scripts.benchmarks.evidence.pages import markdown

NAMES = {"adamw": "AdamW", "sam": "SAM, rho 0.2", "asam": "ASAM"}
COLUMNS = {
    "suspects": ("labels in the list", 1.0),
    "suspects_precision": ("of these wrong (%)", 100.0),
    "suspects_recall": ("of the wrong labels in it (%)", 100.0),
    "eval_accuracy": ("test accuracy (%)", 100.0),
}


def table(results: Path) -> list[str]:
    """Return means and standard deviations over the seeds, a method per line."""
    runs = read_runs(results / "suspects")
    rows = []
    for method, title in NAMES.items():
        own = [run for run in runs if run["method"] == method]
        if own:
            cells = [{run["seed"]: scale * run[key] for run in own} for key, (_, scale) in COLUMNS.items()]
            rows.append([f"{title} (n = {len(own)})", *map(_text, cells)])
    return markdown(["method", *[title for title, _ in COLUMNS.values()]], rows)


def _text(values: dict[int, float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
