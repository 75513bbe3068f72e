# SPDX-License-Identifier: Apache-2.0
"""What do the presets cost and gain, and what is `make run` to show?"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from scripts.benchmarks.evidence.bench_tables import costs, times, words
from scripts.benchmarks.evidence.method_tables import read
from scripts.benchmarks.evidence.pages import markdown

SHOWN = {
    "radius": ("subj_noise", "mpqa_noise", "agnews_noise", "mpqa"),
    "noise": ("digits_0", "digits_40", "fashion_40", "cifar10_40"),
}
"""By grid, the tasks that the table of presets has; the evidence has all of them."""
LABELS = {"noise_adamw": "AdamW", "noise_sam": "AdamW + SAM, rho 0.2"}


def presets(results: Path) -> list[str]:
    """Return the table of presets: cost, and points against AdamW on texts and images with and without wrong labels."""
    measured = costs(results)
    titles, columns = [], []
    for name, tasks in SHOWN.items():
        grid, summary = read(results, name)
        titles += [grid.titles[task] for task in tasks if task in summary]
        columns += [summary[task] for task in tasks if task in summary]
    rows = []
    for name, text in words()["presets"].items():
        cells = []
        for lines in columns:
            line = lines.get(text.get("method"))
            cells.append(
                f"{round(line.difference.mean, 1) + 0:+.1f}"
                if line and line.difference
                else text.get("elsewhere", "not measured")
            )
        rows.append([f'`"{name}"`', text["what"], times(measured[text["case"]]) + text.get("of", ""), *cells])
    return markdown(["preset", "what it is", "cost", *titles], rows)


def side_by_side(results: Path) -> list[str]:
    """Return the table of what `make run` trains."""
    runs = json.loads((results / "digits_noise" / "seeds.json").read_text(encoding="utf-8"))["runs"]
    rows = []
    for name, label in LABELS.items():
        values = [100 * result["test_accuracy"] for result in runs[name]["results"]]
        rows.append([label, *[f"{value:.1f} %" for value in values], f"{statistics.fmean(values):.1f} %"])
    seeds = runs["noise_adamw"]["seeds"]
    return markdown(["", *[f"seed {seed}" for seed in seeds], "mean"], rows)


def find_rho(results: Path) -> list[str]:
    """Return what find_rho recommended and what came of it, beside the best radius of the search."""
    grid, found = read(results, "find_rho")
    _, searched = read(results, "rho_auto")
    rows = []
    for task, lines in found.items():
        own = lines["sam found"]
        fixed = {m: line for m, line in searched[task].items() if m.startswith("sam 0")}
        best = max(fixed, key=lambda method: fixed[method].mean)
        rows.append([grid.titles[task], str(grid.tasks[task]["rho"]), f"{own.mean:.1f} ± {own.spread:.1f}"])
        rows[-1] += [best.removeprefix("sam "), f"{fixed[best].mean:.1f} ± {fixed[best].spread:.1f}"]
    return markdown(["", "recommended", "score (%)", "best of the search", "score (%)"], rows)
