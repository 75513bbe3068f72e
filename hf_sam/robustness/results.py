# SPDX-License-Identifier: Apache-2.0
"""Results: the scores under one condition, and those of one model under all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_sam.robustness.predictions import Predictions

BASE = "as trained"
"""The condition that nothing is changed in: what all others are compared with."""


@dataclass(frozen=True)
class Condition:
    """What was done to the model or to its inputs before it was measured.

    Attributes:
        name: unique in a report, such as "int4 weights" or "pruned 50 %".
        group: what it belongs to: "as trained", "quantisation", "pruning", "corruption", "shift", "merging".
        kind: what in the group, such as "noise" or "int dynamic"; the name itself where there is one only.
        level: how much: bits, share of weights removed, severity, alpha; None where there is no such number.
    """

    name: str
    group: str
    kind: str
    level: float | None = None


@dataclass(frozen=True)
class Bin:
    """Examples whose confidence, the largest probability, lies between two others.

    Attributes:
        low, high: ends of the interval; the lower one belongs to it.
        count: examples in it.
        confidence: their mean; None without examples, as `accuracy`.
        accuracy: the share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class RiskCoverage:
    """The share of wrong answers among the most confident ones.

    Attributes:
        coverage: share of the examples that are answered, at most 100 points, the last one 1.
        risk: share of these that are wrong.
    """

    coverage: list[float]
    risk: list[float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The scores of a model under one condition, with what they were made with.

    Attributes:
        condition: what was changed.
        scores: by metric; None where it is not defined, as the ROC-AUC of a single class.
        examples: how many.
        changed: share of the weights that the condition changes, or of the inputs; None where nothing is.
        reliability: the bins of the reliability diagram; none for regressors and language models.
        risk_coverage: the same.
        settings: of the analyzer.
        seconds: wall time.
        predictions: the model's answers, by which models are compared in pairs; not part of `as_dict`.
    """

    condition: Condition
    scores: dict[str, float | None]
    examples: int
    changed: float | None = None
    reliability: list[Bin] = field(default_factory=list, repr=False)
    risk_coverage: RiskCoverage | None = field(default=None, repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    predictions: Predictions | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the predictions, as JSON can hold it."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "predictions"}
        values["condition"] = asdict(self.condition)
        values["reliability"] = [asdict(each) for each in self.reliability]
        values["risk_coverage"] = asdict(self.risk_coverage) if self.risk_coverage else None
        return values


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one model scores under every condition that was asked for.

    Attributes:
        measurements: by the condition's name; "as trained" is the first.
        settings: of the analyzer.
    """

    measurements: dict[str, Measurement]
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, condition: str) -> Measurement:
        return self.measurements[condition]

    def of(self, *groups: str) -> Iterator[Measurement]:
        """Yield the measurements of these groups, in the order of the report."""
        yield from (each for each in self.measurements.values() if each.condition.group in groups)

    def drop(self, condition: str, metric: str) -> float | None:
        """Return a score minus that of the model as it was trained; None where one is not defined."""
        value, base = self[condition].scores.get(metric), self[BASE].scores.get(metric)
        return None if value is None or base is None else value - base

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the predictions, as JSON can hold it."""
        found = [each.as_dict() for each in self.measurements.values()]
        for each in found:
            del each["settings"]  # the same for all
        return {"settings": dict(self.settings), "measurements": found}


def finite(value: float) -> float | None:
    """Return a number that JSON can hold; None for infinity and not-a-number."""
    return float(value) if math.isfinite(value) else None
