# SPDX-License-Identifier: Apache-2.0
"""Compare checkpoints on the same examples.

Is one flatter than another, or is it the choice of examples?
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hf_sam._checks import check_count, checked_choice
from hf_sam.sharpness.analyzer import SharpnessAnalyzer
from hf_sam.sharpness.measures import MEASURES

USUAL = ("loss", "gradient_norm", "lambda_max", "sam_sharpness")


@dataclass(frozen=True)
class Difference:
    """A model against the baseline, on the same folds.

    Attributes:
        mean: of the model's value minus the baseline's.
        low, high: ends of the 95 % interval of Student's t over the folds.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Values of several models on the same folds of the same examples.

    Attributes:
        baseline: the model that the others are compared with.
        folds: how many, and examples in each.
        values: by measure and model, a value per fold.
        differences: by measure and model; none for the baseline.
        settings: of the analyzers.
    """

    baseline: str
    folds: list[int]
    values: dict[str, dict[str, list[float]]]
    differences: dict[str, dict[str, Difference]]
    settings: dict[str, Any] = field(default_factory=dict)

    def mean(self, measure: str, model: str) -> float:
        """Return the mean over the folds."""
        return statistics.mean(self.values[measure][model])


def compare(
    models: Mapping[str, nn.Module | str | Path],
    dataset: Iterable[Any],
    *,
    baseline: str | None = None,
    measures: Iterable[str] = USUAL,
    folds: int = 8,
    rho: float = 0.05,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **analyzer: Any,
) -> Comparison:
    """Measure models on the same examples and seeds, fold by fold, and compare them fold by fold.

    The examples are dealt into folds. A value on a fold is that of its examples alone: lambda_max of 32 examples is
    another quantity than lambda_max of 256, and larger. What differs between folds but not between models drops out of
    the differences. The interval covers the choice of examples, not that of training runs: for those, compare seeds.

    Args:
        models: by name; a checkpoint's folder or name is loaded as the class that its config says.
        dataset: for all of them.
        baseline: a name; the first one without it.
        measures: of "loss", "gradient_norm", "lambda_max", "sam_sharpness", "worst_case", "trace".
        folds: >= 2.
        rho: of the rises.
        progress: wraps the iterable of the loop over measures and folds, as `tqdm.tqdm` does.
        analyzer: arguments of `SharpnessAnalyzer`.

    Raises:
        ValueError: if an argument is out of range, or there are fewer examples than folds.
    """
    names, measures = list(models), list(measures)
    for measure in measures:
        checked_choice("compare(measures=...)", measure, tuple(MEASURES))
    check_count("compare", "folds", folds, least=2)
    if len(names) < 2:
        raise ValueError(f"`compare(models)` needs two models or more, got {len(names)}.")
    baseline = names[0] if baseline is None else baseline
    checked_choice("compare(baseline=...)", baseline, names)
    values: dict[str, dict[str, list[float]]] = {measure: {name: [] for name in names} for measure in measures}
    sizes: list[int] = []
    settings: dict[str, Any] = {}
    for name in names:
        one = SharpnessAnalyzer(loaded(models[name]), dataset, **analyzer)
        if len(one.examples.rows) < folds:
            raise ValueError(f"`compare(folds=...)` must be at most {len(one.examples.rows)}, the number of examples.")
        settings = settings or one.settings
        parts = one.examples.folds(folds)
        sizes = [len(part.rows) for part in parts]
        for measure, part in progress([(m, p) for m in measures for p in parts]):
            values[measure][name].append(MEASURES[measure](one.loss_function.on(part), rho, one.seed))
    differences = {
        measure: {name: difference(found[name], found[baseline]) for name in names if name != baseline}
        for measure, found in values.items()
    }
    return Comparison(baseline, sizes, values, differences, {**settings, "rho": rho})


def difference(values: list[float], others: list[float]) -> Difference:
    """Return the mean of the paired differences and its 95 % interval (Student's t)."""
    from scipy.stats import t

    pairs = [value - other for value, other in zip(values, others, strict=True)]
    mean = statistics.mean(pairs)
    half = float(t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half)


def loaded(model: nn.Module | str | Path) -> nn.Module:
    """Return a model; a checkpoint as the class that its config names.

    Raises:
        ValueError: if the config names none.
    """
    if isinstance(model, nn.Module):
        return model
    import transformers

    config = transformers.AutoConfig.from_pretrained(model)
    names = getattr(config, "architectures", None) or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise ValueError(f"The config of {str(model)!r} names no class of transformers; give the model itself.")
    made: nn.Module = kind.from_pretrained(model)
    return made
