# SPDX-License-Identifier: Apache-2.0
"""Measure what rounding, pruning, noise and merging leave of each checkpoint."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import Progress
from torch.utils.data import Subset

from hf_sam.cli.common.errors import UserError
from hf_sam.robustness import Comparison, Report, RobustnessAnalyzer, compared
from hf_sam.robustness.metrics import MAIN, METRICS, metric_of
from hf_sam.robustness.results import BASE
from hf_sam.sharpness import Difference

FOLDS = 20
SHOWN_SEVERITIES = (1, 3, 5)
MEANING = (
    "Rounding and pruning are of the weights as they are, with no training after it, and are computed in floating "
    "point: nothing is said about speed."
)


@dataclass
class Robustness:
    """What was measured of all checkpoints: a report for each, several where a name has several seeds."""

    reports: dict[str, list[Report]]
    comparison: Comparison | None
    main: str  # the score that is shown for every condition
    data: str  # which examples
    calibration: str = ""  # which examples the temperature is from

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        found = {
            "examples": self.data,
            "calibration": self.calibration or None,
            "main_metric": self.main,
            "reports": {name: [each.as_dict() for each in reports] for name, reports in self.reports.items()},
        }
        if self.comparison is not None:
            whole = self.comparison.as_dict()
            found["comparison"] = {key: whole[key] for key in ("baseline", "over", "differences", "drops")}
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the user can ask for."""
    add = parser.add_argument_group("robustness").add_argument
    add("--robustness", action="store_true", help="measure what is left after rounding, pruning, noise, shift, merging")
    add("--no_flatness", action="store_true", help="with --robustness: leave the flatness out")
    add("--robustness_examples", type=int, default=2000, help="of the evaluation data, at most so many (2000)")
    add("--calibration", metavar="SPLIT", help="fit a temperature on: train, test, or a share of the evaluation data")
    add("--group", type=int, help="inputs that share a step in rounded weights, such as 128 (a whole row)")
    add("--shifted", action="append", default=[], metavar="NAME=FILE", help="other evaluation data, may be repeated")
    add("--merge", action="append", default=[], metavar="FOLDER", help="checkpoint to merge with, may be repeated")
    add("--origin", metavar="FOLDER", help="what all were trained from: task arithmetic besides the average")


def check(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    asked = [
        name for name in ("no_flatness", "calibration", "group", "shifted", "merge", "origin") if vars(options)[name]
    ]
    if asked and not options.robustness:
        raise UserError(f"--{asked[0]} does nothing without --robustness.")
    if options.origin and not options.merge:
        raise UserError("--origin needs a checkpoint to merge with: add --merge FOLDER.")
    if options.calibration and options.calibration not in ("train", "test") and not 0 < _share(options.calibration) < 1:
        raise UserError(
            f"--calibration must be train, test or a share of the evaluation data between 0 and 1, got "
            f"{options.calibration}."
        )


def measure(
    models: dict[str, list[Any]],
    task: Any,
    shifted: dict[str, Any],
    options: argparse.Namespace,
    settings: dict[str, Any],
    bar: Progress,
) -> Robustness:
    """Measure every checkpoint under every condition, and compare them in pairs."""
    data, held_out, where = evaluation_data(task, options.calibration)
    reports: dict[str, list[Report]] = {}
    for name, seeds in models.items():
        reports[name] = []
        for i, model in enumerate(seeds):
            one = RobustnessAnalyzer(
                model, data, calibration=held_out, processing_class=task.processing_class,
                compute_metrics=own_metric(task.compute_metrics, options.metric),
                max_examples=options.robustness_examples, **settings,
            )  # fmt: skip
            text = f"{name}: robustness" + (f", seed {i + 1}" if len(seeds) > 1 else "")
            asked = {"group": options.group, "shifted": shifted, "others": options.merge, "origin": options.origin}
            track = lambda todo, text=text: bar.track(todo, description=text)  # noqa: E731
            reports[name].append(one.report(progress=track, **asked))
    comparison = None
    if len(reports) > 1:
        metrics = own_metric(task.compute_metrics, options.metric)
        comparison = compared(reports, folds=FOLDS, compute_metrics=metrics)
    first = next(iter(reports.values()))[0]
    main = options.metric if options.metric in first[BASE].scores else MAIN[first.settings["kind"]]
    return Robustness(reports, comparison, main, f"{first.settings['examples']:,} evaluation examples", where)


def own_metric(
    compute_metrics: Callable[[Any], dict[str, float]], name: str
) -> Callable[[Any], dict[str, float]] | None:
    """Return what computes the task's main metric, and no other; None where it is measured anyway."""
    if name in METRICS:
        return None
    return lambda output: {key: value for key, value in compute_metrics(output).items() if key == name}


def evaluation_data(task: Any, calibration: str | None) -> tuple[Any, Any, str]:
    """Return the examples to measure on, those that a temperature is fitted on, and how these are called."""
    split = next(iter(task.evaluation.values()))
    if not split.labelled:
        raise UserError("--robustness needs evaluation data with labels.")
    if calibration is None:
        return split.data, None, ""
    if calibration == "train":
        return split.data, task.train, "the training data"
    if calibration == "test":
        test = next(iter(task.test.values()), None)
        if test is None or not test.labelled:
            raise UserError("--calibration test needs test data with labels.")
        return split.data, test.data, "the test data"
    count = round(_share(calibration) * len(split.data))
    if not 0 < count < len(split.data):
        raise UserError(f"--calibration {calibration} of {len(split.data)} evaluation examples leaves a set empty.")
    order = np.random.default_rng(0).permutation(len(split.data)).tolist()
    parts = [Subset(split.data, sorted(rows)) for rows in (order[count:], order[:count])]
    return parts[0], parts[1], f"{count:,} other evaluation examples"


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


# ----------------------------------------------------------------------------------------------------------------------
# What is shown
# ----------------------------------------------------------------------------------------------------------------------
def shown_rows(found: Robustness) -> Iterator[tuple[str, str, str]]:
    """Yield a title, the condition and the score of each line of a table; of a heading the title alone."""
    first = next(iter(found.reports.values()))[0]
    title = metric_of(found.main).title
    yield "As trained", "", ""
    for metric in first[BASE].scores:
        yield metric_of(metric).title, BASE, metric
    group = ""
    for each in first.measurements.values():
        condition = each.condition
        if condition.group == BASE or (condition.group == "corruption" and condition.level not in SHOWN_SEVERITIES):
            continue
        if condition.group != group:
            group = condition.group
            yield (
                f"{title} after {group}"
                if group in ("quantisation", "pruning", "merging")
                else f"{title} under {group}",
                "",
                "",
            )
        yield condition.name, condition.name, found.main


def value_of(reports: Sequence[Report], condition: str, metric: str) -> str:
    """Return a score as it stands in a table, with the standard deviation where there are several seeds."""
    values = [report[condition].scores.get(metric) for report in reports]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean = number(metric, statistics.mean(known))
    return mean if len(known) == 1 else f"{mean} ± {number(metric, statistics.stdev(known))}"


def number(metric: str, value: float, sign: str = "") -> str:
    """Return a score as people write it: shares in percent."""
    return f"{100 * value:{sign}.1f} %" if metric_of(metric).percent else f"{value:{sign}.3g}"


def difference_of(found: Robustness, name: str, condition: str, metric: str) -> tuple[str, bool]:
    """Return the difference to the baseline with its interval, and whether zero is outside of it."""
    known = found.comparison.differences.get(condition, {}).get(metric, {}) if found.comparison else {}
    if name not in known:
        return "", False
    each: Difference = known[name]
    percent = metric_of(metric).percent
    scale = 100 if percent else 1
    form = "+.1f" if percent else "+.2g"
    mean, low, high = (format(scale * value, form) for value in (each.mean, each.low, each.high))
    return f"{mean} ({low} to {high})", each.low > 0 or each.high < 0
