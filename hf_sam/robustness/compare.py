# SPDX-License-Identifier: Apache-2.0
"""Compare checkpoints under the same conditions, in pairs, with intervals over examples or seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hf_sam._checks import check_count, checked_choice
from hf_sam.robustness.analyzer import RobustnessAnalyzer
from hf_sam.robustness.intervals import left_out, over_examples
from hf_sam.robustness.metrics import ComputeMetrics
from hf_sam.robustness.plan import Progress
from hf_sam.robustness.results import Report
from hf_sam.sharpness.compare import Difference, difference, loaded

Model = nn.Module | str | Path
Table = dict[str, dict[str, dict[str, Difference]]]
"""By condition, metric and model."""
EXAMPLES, SEEDS = "examples", "seeds"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of several models under the same conditions, and how far they are from those of one of them.

    Attributes:
        baseline: the model that the others are compared with.
        over: what the intervals cover: "seeds" where each model was trained with several, else "examples".
        reports: by model, one for each seed.
        differences: by condition, metric and model; none for the baseline.
        drops: the same of score minus score as trained: who loses less?
    """

    baseline: str
    over: str
    reports: dict[str, list[Report]] = field(repr=False)
    differences: Table = field(repr=False)
    drops: Table = field(repr=False)

    def mean(self, condition: str, metric: str, model: str) -> float | None:
        """Return the mean score over the seeds; None where one has none."""
        found = [report[condition].scores.get(metric) for report in self.reports[model]]
        values = [value for value in found if value is not None]
        return statistics.mean(values) if len(values) == len(found) else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the predictions, as JSON can hold it."""
        return {
            "baseline": self.baseline,
            "over": self.over,
            "reports": {name: [each.as_dict() for each in reports] for name, reports in self.reports.items()},
            "differences": _plain(self.differences),
            "drops": _plain(self.drops),
        }


def compare(
    models: Mapping[str, Model | Sequence[Model]],
    dataset: Iterable[Any],
    *,
    baseline: str | None = None,
    folds: int = 20,
    conditions: Mapping[str, Any] | None = None,
    progress: Progress = iter,
    **analyzer: Any,
) -> Comparison:
    """Measure models on the same examples and corruptions, and compare them in pairs.

    With one checkpoint a model, the interval of a difference covers the choice of examples (a jackknife over folds, in
    which both models lose the same examples). It does not cover the training run: give each model a list of
    checkpoints, trained with the same seeds in the same order, and it is the interval of a paired t-test over seeds.

    Args:
        models: by name, one checkpoint or a list; a folder or name is loaded as the class that its config says.
        dataset: for all of them.
        baseline: a name; the first one without it.
        folds: of the examples, >= 2; fewer where a data set has not so many.
        conditions: arguments of `RobustnessAnalyzer.report`.
        progress: wraps the iterable of the loop over conditions, as `tqdm.tqdm` does.
        analyzer: arguments of `RobustnessAnalyzer`.

    Raises:
        ValueError: if an argument is out of range, or models have different numbers of seeds.
    """
    check_count("compare", "folds", folds, least=2)
    reports: dict[str, list[Report]] = {}
    for name, given in models.items():
        seeds = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        reports[name] = []
        for model in seeds:
            one = RobustnessAnalyzer(loaded(model), dataset, **analyzer)
            reports[name].append(one.report(progress=progress, **(conditions or {})))
    return compared(reports, baseline=baseline, folds=folds, compute_metrics=analyzer.get("compute_metrics"))


def compared(
    reports: Mapping[str, Sequence[Report]],
    *,
    baseline: str | None = None,
    folds: int = 20,
    compute_metrics: ComputeMetrics | None = None,
) -> Comparison:
    """Compare reports that are there already, under the conditions that all of them have.

    Args:
        reports: by model, one for each seed, of the same examples.
        baseline: a name; the first one without it.
        folds: of the examples, where there is one seed.
        compute_metrics: that they were made with.

    Raises:
        ValueError: if there are fewer than two models, or they do not have the same seeds or examples.
    """
    names = list(reports)
    if len(names) < 2:
        raise ValueError(f"`compare(models)` needs two models or more, got {len(names)}.")
    baseline = checked_choice("compare(baseline=...)", names[0] if baseline is None else baseline, names)
    _check_alike(reports)
    kept = {name: list(found) for name, found in reports.items()}
    over = SEEDS if len(kept[baseline]) > 1 else EXAMPLES
    common = [name for name in kept[baseline][0].measurements if all(name in r.measurements for r in _all(kept))]
    folds = min([folds, *(report[name].examples for report in _all(kept) for name in common)])
    differences: Table = {name: {} for name in common}
    drops: Table = {name: {} for name in common}
    parts = {} if over == SEEDS else {name: left_out(kept[name][0], common, folds, compute_metrics) for name in names}
    for condition, name in ((c, n) for c in common for n in names if n != baseline):
        if over == SEEDS:
            found = _over_seeds(kept[name], kept[baseline], condition)
        else:
            found = over_examples(parts[name], parts[baseline], condition)
        for metric, (absolute, lost) in found.items():
            differences[condition].setdefault(metric, {})[name] = absolute
            drops[condition].setdefault(metric, {})[name] = lost
    return Comparison(baseline=baseline, over=over, reports=kept, differences=differences, drops=drops)


def _all(reports: Mapping[str, Sequence[Report]]) -> list[Report]:
    return [report for found in reports.values() for report in found]


def _check_alike(reports: Mapping[str, Sequence[Report]]) -> None:
    counts = {name: len(found) for name, found in reports.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise ValueError(f"`compare(models)` needs the same seeds for each, got {counts} checkpoints.")
    least = min(each.examples for report in _all(reports) for each in report.measurements.values())
    if least < 2:
        raise ValueError(f"`compare(dataset)` needs two examples or more for an interval, got {least}.")
    for setting in ("examples", "seed", "kind"):
        found = {str(report.settings[setting]) for report in _all(reports)}
        if len(found) > 1:
            raise ValueError(f"`compare(models)` needs the same {setting} for each, got {', '.join(sorted(found))}.")


def _over_seeds(
    ours: Sequence[Report], theirs: Sequence[Report], condition: str
) -> dict[str, tuple[Difference, Difference]]:
    """Return the differences of the scores, and of the drops, with their intervals over seeds."""
    found = {}
    for metric in theirs[0][condition].scores:
        pairs = [[each[condition].scores.get(metric) for each in side] for side in (ours, theirs)]
        drops = [[each.drop(condition, metric) for each in side] for side in (ours, theirs)]
        if any(value is None for side in (*pairs, *drops) for value in side):
            continue
        found[metric] = difference(*pairs), difference(*drops)  # type: ignore[arg-type]
    return found


def _plain(found: Table) -> dict[str, Any]:
    return {
        condition: {metric: {name: asdict(each) for name, each in by.items()} for metric, by in metrics.items()}
        for condition, metrics in found.items()
    }
