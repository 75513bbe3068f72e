# SPDX-License-Identifier: Apache-2.0
"""The section of a model card about what was left of the model under changes."""

from __future__ import annotations

from pathlib import Path

from hf_sam._model_card import with_section
from hf_sam.robustness.metrics import MAIN, metric_of
from hf_sam.robustness.results import BASE, Report

HEADING = "### Robustness"
END = "<!-- end of the robustness -->"


def robustness_section(report: Report, main: str | None = None) -> str:
    """Return the Markdown section for a report.

    Args:
        report: of `RobustnessAnalyzer.report`.
        main: the score that is shown for every condition; accuracy, error or perplexity without it.
    """
    settings = report.settings
    main = main or MAIN[settings["kind"]]
    base = report[BASE]
    how = (
        f"Measured with hf_sam on {settings['examples']:,} examples, {settings['dtype']}, seed {settings['seed']}. "
        "Rounding and pruning are of the weights as they are here, with no training after it, and were simulated in "
        "floating point."
    )
    if settings["calibration_examples"]:
        how += f" The temperature was fitted on {settings['calibration_examples']:,} other examples."
    lines = [HEADING, "", how, "", "| as trained | value |", "|---|---|"]
    lines += [f"| {metric_of(name).title} | {shown(name, value)} |" for name, value in base.scores.items()]
    if others := [each for each in report.measurements.values() if each.condition.name != BASE]:
        lines += ["", f"| condition | {metric_of(main).title} | difference |", "|---|---|---|"]
        for each in others:
            drop = report.drop(each.condition.name, main)
            lines.append(
                f"| {each.condition.name} | {shown(main, each.scores[main])} | {shown(main, drop, sign='+')} |"
            )
    return "\n".join([*lines, "", END, ""])


def add_to_card(card: str | Path, report: Report, main: str | None = None) -> None:
    """Put the section into a model card, in place of the one of an earlier call.

    Args:
        card: a README.md, or the folder of a checkpoint that has one.
        report: of `RobustnessAnalyzer.report`.
        main: the score that is shown for every condition.

    Raises:
        FileNotFoundError: if there is no card.
    """
    path = Path(card) / "README.md" if Path(card).is_dir() else Path(card)
    text = with_section(path.read_text(encoding="utf-8"), robustness_section(report, main), end=END)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)  # a process that is killed leaves the old card or the new one


def shown(metric: str, value: float | None, sign: str = "") -> str:
    """Return a score as people write it: shares in percent, others with four digits; a dash where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:{sign}.1f} %" if metric_of(metric).percent else f"{value:{sign}.4g}"
