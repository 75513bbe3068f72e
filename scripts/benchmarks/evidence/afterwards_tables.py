# SPDX-License-Identifier: Apache-2.0
"""What are the weights good for after training? Tables of what transfer.py and pretrained_image.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.common.paired import paired
from scripts.benchmarks.common.runs import read_runs
from scripts.benchmarks.common.summaries import points
from scripts.benchmarks.evidence.method_tables import mean_text, thousandths, with_p
from scripts.benchmarks.evidence.pages import markdown

BASE, SHORT, LONG = "adamw", "adamw, half of the epochs", "full"
TASKS = {"sst2": "SST-2", "mpqa": "MPQA", "subj": "Subj"}
TRANSFER: dict[str, str] = {
    **{f"{title}, as trained": f"own, {task}" for task, title in TASKS.items()},
    **{f"{title}, half of the weights pruned": f"half pruned, {task}" for task, title in TASKS.items()},
    "trained on SST-2, tested on MPQA": "shift, sst2 to mpqa",
    "trained on MPQA, tested on SST-2": "shift, mpqa to sst2",
    **{f"{title}, mean of the three models": f"merged, average, {task}" for task, title in TASKS.items()},
    **{f"{title}, task arithmetic, 0.5": f"merged, alpha 0.5, {task}" for task, title in TASKS.items()},
    "SST-2, after MPQA": "after 2 tasks, sst2",
    "SST-2, after MPQA and Subj": "after 3 tasks, sst2",
    "MPQA, after SST-2 and Subj": "after 3 tasks, mpqa",
}
"""Line of the table: what was measured."""
IMAGE = {
    "as trained": "as trained",
    "int8 weights": "8 bits",
    "int4 weights": "4 bits",
    "pruned, 30 %": "30 % pruned",
    "noise, severity 1": "noise",
    "blur, severity 1": "blur",
    "contrast, severity 1": "low contrast",
    "jpeg, severity 1": "JPEG",
}
"""Condition: its name in the table."""
Values = Mapping[str, Mapping[int, float]]
"""By method and seed."""


def transfer(results: Path, metric: str) -> list[str]:
    """Return the table of one score after shift, pruning, merging and training on, a condition per line."""
    runs = read_runs(results / "transfer" / "runs")
    lines = {
        title: {
            method: {run["seed"]: run["scores"][name][metric] for run in runs if run["method"] == method}
            for method in (BASE, SHORT, LONG)
        }
        for title, name in TRANSFER.items()
    }
    return _table(lines, (BASE, SHORT, LONG), metric)


def image(results: Path, task: str, metric: str) -> list[str]:
    """Return the table of one score of the pretrained image model under each condition."""
    runs = [run for run in read_runs(results / "image" / "runs") if run["task"] == task]
    methods = (BASE, SHORT, "free", LONG)
    lines = {
        title: {method: _under(runs, method, condition, metric) for method in methods}
        for condition, title in IMAGE.items()
        if any(condition in run["robustness"] for run in runs)
    }
    return _table(lines, methods, metric)


def _under(runs: list[dict[str, Any]], method: str, condition: str, metric: str) -> dict[int, float]:
    return {run["seed"]: run["robustness"][condition][metric] for run in runs if run["method"] == method}


def _table(lines: Mapping[str, Values], methods: Sequence[str], metric: str) -> list[str]:
    """Return means by method, and the differences of SAM to AdamW of the same length and to the shorter run."""
    percent = metric != "nll"
    methods = [m for m in methods if any(line[m] for line in lines.values())]
    others = [m for m in (BASE, SHORT) if m in methods]
    scaled = {
        title: {m: {seed: (100 if percent else 1) * x for seed, x in found.items()} for m, found in line.items()}
        for title, line in lines.items()
    }
    pairs = [(title, [paired(line[LONG], line[m]) for m in others]) for title, line in scaled.items()]
    differences = with_p(pairs, points if percent else thousandths)
    rows = [
        [title, *[mean_text(line[m], 1 if percent else 3) for m in methods], *cells[1:]]
        for (title, line), cells in zip(scaled.items(), differences, strict=True)
    ]
    count = max((len(found) for line in scaled.values() for found in line.values()), default=0)
    head = f"{'test loss' if metric == 'nll' else metric + ' (%)'} (n = {count})"
    return markdown([head, *methods, *[f"{LONG} - {m}" for m in others]], rows)
