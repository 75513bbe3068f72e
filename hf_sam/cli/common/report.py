# SPDX-License-Identifier: Apache-2.0
"""Write the measurements: report.json, figures, and report.html, which says what was measured on what."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_sam.cli.common import flatness_report, page, robustness_report
from hf_sam.cli.common.environment import environment


def write(options: Any, found: dict[str, Any]) -> None:
    """Write the report into its folder.

    Raises:
        OSError: if that cannot be done.
    """
    options.report.mkdir(parents=True, exist_ok=True)
    report = as_dict(options, found)
    (options.report / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    parts = [page.paragraph(first_paragraph(report, found))]
    if found["robustness"] is not None:
        figures = robustness_report.drawn(found["robustness"])
        _save(figures, options.report)
        parts += robustness_report.section(found["robustness"], figures)
    if found["models"]:
        figures = flatness_report.drawn(found)
        _save(figures, options.report)
        parts += flatness_report.section(found, figures)
    parts += ["<h2>How it was measured</h2>", page.facts(_provenance(report, found))]
    text = page.page(_title(found), parts)
    (options.report / "report.html").write_text(text, encoding="utf-8")


def as_dict(options: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was measured, for JSON."""
    return {
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": found["command"],
        "task": found["task"],
        "data": found["sources"],
        "checkpoints": {name: paths[0] if len(paths) == 1 else paths for name, paths in options.named.items()},
        "models": {name: each.as_dict() for name, each in found["models"].items()},
        "comparison": asdict(found["comparison"]) if found["comparison"] else None,
        "interpolation": {name: asdict(line) for name, line in found["lines"].items()},
        "robustness": found["robustness"].as_dict() if found["robustness"] is not None else None,
        "environment": environment(),
    }


def first_paragraph(report: dict[str, Any], found: dict[str, Any]) -> str:
    """Return what was measured on what, when, and with what."""
    names = list(report["checkpoints"])
    count = sum(len(paths) if isinstance(paths, list) else 1 for paths in report["checkpoints"].values())
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    what = f"{listed}, {count} checkpoints" if count > 1 else f"{listed}, one checkpoint"
    date = datetime.datetime.fromisoformat(report["measured"])
    said = [
        f"This report is about {what} of {found['kind']}, measured on {date:%d %B %Y} on the task {report['task']}."
    ]
    if found["robustness"] is not None:
        said.append(
            f"Robustness is measured on {found['robustness'].data}: how good the answers are, how right the "
            "probabilities, and what is left of that when weights are rounded, pruned or merged and inputs are noisy."
        )
    if found["models"]:
        settings = next(iter(found["models"].values())).report["settings"]
        said.append(f"Flatness is that of the loss on {settings['examples']:,} training examples.")
    built = report["environment"]
    commit = f" (commit {built['commit']})" if built["commit"] else ""
    said.append(f"Measured with hf_sam {built['hf_sam']}{commit} and torch {built['torch']}.")
    return " ".join(said)


def _title(found: dict[str, Any]) -> str:
    both = found["models"] and found["robustness"] is not None
    what = "Robustness and flatness" if both else "Flatness of the loss" if found["models"] else "Robustness"
    return f"{what}: {found['task']}"


def _provenance(report: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    rows = {"date": report["measured"], "command": report["command"]}
    rows |= {f"checkpoint {name}": path for name, path in report["checkpoints"].items()}
    rows["model"] = found["kind"]
    rows |= {f"{split} data": where for split, where in found["sources"].items()}
    if found["models"]:
        settings = next(iter(found["models"].values())).report["settings"]
        rows["flatness"] = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    if found["robustness"] is not None:
        settings = next(iter(found["robustness"].reports.values()))[0].settings
        rows["robustness"] = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    return {**rows, **{key: value for key, value in report["environment"].items() if value is not None}}


def _save(figures: dict[str, tuple[str, Figure]], folder: Path) -> None:
    for name, (_, figure) in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
