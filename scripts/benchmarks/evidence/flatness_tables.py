# SPDX-License-Identifier: Apache-2.0
"""How flat is what was trained with SAM, and without? A table of the reports in scripts/benchmarks/results/flatness."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.evidence.pages import markdown

Report = dict[str, Any]

COLUMNS: dict[str, Callable[[Report], float]] = {
    "loss": lambda report: report["loss"],
    "lambda_max": lambda report: report["lambda_max"],
    "lambda_max / lambda_5": lambda report: report["lambda_max / lambda_5"],
    "trace": lambda report: report["trace"]["value"],
    "rise one SAM step up": lambda report: report["sam_sharpness"]["value"],
    "highest rise": lambda report: report["worst_case"]["value"],
}
TITLES = {
    "digits_noise": "digits, 40 % wrong labels, small ViT",
    "fashion": "Fashion-MNIST, small ViT",
    "sst2": "SST-2, MiniLM",
    "cola": "CoLA, MiniLM",
}
"""By the names of the files, before the seed."""


def flatness(results: Path) -> list[str]:
    """Return the table: a task and a method per line, means and standard deviations over seeds."""
    scores, rows = json.loads((results / "flatness" / "scores.json").read_text("utf-8")), []
    for name, title in TITLES.items():
        reports = [
            json.loads(path.read_text("utf-8")) for path in sorted((results / "flatness").glob(f"{name}-*.json"))
        ]
        for method in reports[0]["models"] if reports else ():
            models = [report["models"][method] for report in reports]
            values = [100 * value for value in scores[name][method].values()]
            score = f"{mean_and_spread(values)} ({scores[name]['metric']})"
            cells = [mean_and_spread([column(model) for model in models]) for column in COLUMNS.values()]
            rows.append([title, method, score, *cells])
    return markdown(["", "", "test score (%)", *COLUMNS], rows)


def mean_and_spread(values: list[float]) -> str:
    """Return both, rounded to the second digit of the spread."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3g} (n = 1)"
    spread = statistics.stdev(values)
    place = math.floor(math.log10(spread)) - 1 if spread > 0 else -2
    decimals = max(0, -place)
    return f"{round(mean, -place):,.{decimals}f} ± {round(spread, -place):,.{decimals}f}"
