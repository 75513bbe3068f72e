# SPDX-License-Identifier: Apache-2.0
"""What do the methods cost, and how do others do? Tables of scripts/benchmarks/results/bench."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hf_sam import VARIANTS
from scripts.benchmarks.common.bench_settings import SETTINGS
from scripts.benchmarks.evidence.pages import markdown

LIMITED = ("sam", "pytorch-optimizer, by hand", "momentum")
WORDS = Path(__file__).parent / "methods.yaml"
"""What is not measured: formulas, papers, when to choose what."""


def read(path: Path) -> dict[str, Any]:
    """Return the results of a benchmark."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def words() -> dict[str, Any]:
    """Return the texts of the tables."""
    found: dict[str, Any] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return found


@cache
def costs(results: Path) -> dict[str, Any]:
    """Return what each case costs, by its name: of the setting with all cases, or of the 35M encoder before it."""
    folder, every = results / "bench", next(key for key, setting in SETTINGS.items() if setting.cases is None)
    path = folder / f"{every}.json"
    found: dict[str, Any] = read(path if path.exists() else folder / "cpu.json")["results"]
    return found


def limits(results: Path) -> list[str]:
    """Return the table of steps against what their passes and one update take at least."""
    files = [path for key in SETTINGS if (path := results / "bench" / f"{key}.json").exists()]
    rows = []
    for measured in map(read, files):
        found = measured["results"]
        cells = [measured["settings"]["title"], f"{found['plain']['limit']:.2f}"]
        rows.append([*cells, *[against_limit(found[case]) if case in found else "" for case in LIMITED]])
    return markdown(["", "limit of two passes", *[f"{case}, against its limit" for case in LIMITED]], rows)


def against_limit(row: dict[str, Any]) -> str:
    """Return the ratio with its interval."""
    low, high = row["against_limit_interval"]
    return f"{row['against_limit']:.3f} ({low:.3f} to {high:.3f})"


def variants(results: Path) -> list[str]:
    """Return the table of variants."""
    measured = costs(results)
    rows = []
    for name, text in words()["variants"].items():
        row = measured[text["case"]]
        default = f"{VARIANTS[name].default_rho:g}"
        rows.append([f'[`"{name}"`]({name}.md)', text["formula"], text["paper"], times(row), copies(row), default])
        rows[-1].append(text["when"])
    header = ["`sam_variant`", "perturbation and gradient", "paper", "cost", "memory", "default rho", "when"]
    return markdown(header, rows)


def variant(results: Path, name: str) -> list[str]:
    """Return the table of one variant: what a step costs, how often it passes over the data."""
    kind, text = VARIANTS[name], words()["variants"][name]
    row = costs(results)[text["case"]]
    base = "LoRA's" if row["base"] != "plain" else "a plain"
    copied = f"{copies(row)} copies of the trained weights"
    passes = {"two": "two", "one": "one", "plain": "one plain"}[kind.passes]
    header = [f"time of a step, against {base} step", "memory on top of it", "passes", "default rho"]
    return markdown(header, [[times(row), copied, passes, f"{kind.default_rho:g}"]])


def citation(results: Path, name: str) -> list[str]:
    """Return the BibTeX of a variant's paper; `results` is not used."""
    del results
    return ["```bibtex", *VARIANTS[name].citation.splitlines(), "```"]


def savings(results: Path) -> list[str]:
    """Return the table of cheaper ways."""
    measured = costs(results)
    rows = []
    for case, text in words()["savings"].items():
        rows.append([text, times(measured[case]), copies(measured[case])])
    return markdown(["setting", "cost", "memory"], rows)


def times(row: dict[str, Any]) -> str:
    """Return a ratio of times as people read it."""
    return f"{row['time_ratio']:.2f}x"


def copies(row: dict[str, Any]) -> str:
    """Return the extra memory in copies of the weights."""
    return f"{row['extra_copies_of_the_weights']:.1f}".replace("-0.0", "0.0")


def flatness_bench(results: Path) -> list[str]:
    """Return the table of lambda_max by several libraries."""
    measured, rows = read(results / "bench" / "flatness.json")["results"], []
    ours = measured["hf_sam"]["seconds"]
    for name, row in measured.items():
        ratios = [theirs / own for theirs, own in zip(row["seconds"], ours, strict=True)]
        own = name == "hf_sam"
        spread = "1" if own else f"{min(ratios):.2f} to {max(ratios):.2f}"
        note = words()["libraries"].get(name, "")
        difference = "" if own else f"{row['difference']:.0e}{note}"
        rows.append([name, str(row["products"]), spread, difference])
    return markdown(["", "products", "time", "lambda_max against ours"], rows)
