# SPDX-License-Identifier: Apache-2.0
"""The section of a model card about the flatness that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sam._model_card import with_section

HEADING = "### Flatness of the loss"
END = "<!-- end of the flatness of the loss -->"
ROWS = {
    "loss": "loss",
    "lambda_max": "largest eigenvalue of the Hessian, lambda_max",
    "lambda_max_relative": "lambda_max \\|\\|w\\|\\|^2 / P",
    "trace": "trace of the Hessian",
    "sam_sharpness": "rise of the loss one SAM step up",
    "worst_case": "highest rise found within the radius",
}
"""Keys of the report that get a line, and what they are called."""


def flatness_section(report: Mapping[str, Any]) -> str:
    """Return the Markdown section for what `SharpnessAnalyzer.report` returned."""
    settings = report["settings"]
    how = (
        f"Measured with hf_sam on {settings['examples']} examples, {settings['number_of_parameters']:,} parameters "
        f"({settings['parameters']}), {settings['dtype']}, seed {settings['seed']}. These numbers describe the loss "
        "around the weights; they do not predict accuracy, and cannot be compared between weights of other scale."
    )
    rows = [f"| {_titled(title, report[key])} | {_value(report[key])} |" for key, title in ROWS.items()]
    return "\n".join([HEADING, "", how, "", "| quantity | value |", "|---|---|", *rows, "", END, ""])


def add_to_card(card: str | Path, report: Mapping[str, Any]) -> None:
    """Put the section into a model card, in place of the one of an earlier call.

    Args:
        card: a README.md, or the folder of a checkpoint that has one.
        report: what `SharpnessAnalyzer.report` returned.

    Raises:
        FileNotFoundError: if there is no card.
    """
    path = Path(card) / "README.md" if Path(card).is_dir() else Path(card)
    text = with_section(path.read_text(encoding="utf-8"), flatness_section(report), end=END)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)  # a process that is killed leaves the old card or the new one


def _titled(title: str, value: Any) -> str:
    return f"{title}, {value['name']}" if isinstance(value, dict) and "name" in value else title


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.4g}"
    error = value.get("standard_error")
    return f"{value['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")
