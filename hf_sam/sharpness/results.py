# SPDX-License-Identifier: Apache-2.0
"""Results: measured numbers with the settings, counts and time that they were made with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A result with the settings, counts and time that it was made with.

    Attributes:
        settings: of the analyzer and of the call: parameters, number of them, examples, dtype, seed and so on.
        evaluations, gradients, products: how many were computed, each over all examples: values of the loss, gradients,
            products of the Hessian with a vector.
        seconds: wall time.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: float = 0
    gradients: float = 0
    products: float = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but the vectors, as JSON can hold them: None stands for infinity and not-a-number."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "vectors"}
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class Eigenvalues(Measured):
    """Eigenvalues of the Hessian.

    Attributes:
        values: from the one asked for first: the largest, or for "SA" the smallest.
        residuals: ||H v - lambda v||, ||v|| = 1: some eigenvalue is at most this far from lambda.
        vectors: (k, size), if asked for.
    """

    values: list[float]
    residuals: list[float]
    vectors: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Estimate(Measured):
    """A mean of random draws.

    Attributes:
        value: the mean.
        standard_error: of it, from the spread of the draws; not a number for a single one.
        draws: the number of them.
    """

    value: float
    standard_error: float
    draws: int


@dataclass(frozen=True, kw_only=True)
class Rise(Measured):
    """How far the loss rises within a distance of the weights.

    Attributes:
        name: which quantity this is, with rho, norm and m: those of other settings are other quantities.
        value: L(w + eps) - L(w), the mean over groups of examples or draws.
        loss: L(w).
        standard_error: over groups or draws; not a number where there is one.
        norm: the mean Euclidean norm of eps.
        parts: the rise of each group or draw.
    """

    name: str
    value: float
    loss: float
    standard_error: float
    norm: float
    parts: list[float] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Density(Measured):
    """The spectrum of the Hessian, as weighted points (stochastic Lanczos quadrature).

    Attributes:
        nodes: eigenvalues, (runs, steps).
        weights: shares of the eigenvalues, (runs, steps), each run's sum is 1.
    """

    nodes: list[list[float]]
    weights: list[list[float]]

    def curve(self, points: int = 400, width: float | None = None) -> tuple[list[float], list[float]]:
        """Return eigenvalues and the density at each, smoothed by a normal distribution.

        Args:
            points: how many.
            width: standard deviation of the smoothing; a hundredth of the range by default.
        """
        nodes, weights = np.concatenate(self.nodes), np.concatenate(self.weights) / len(self.nodes)
        extent = float(nodes.max() - nodes.min()) or 1.0
        width = width or extent / 100
        at = np.linspace(nodes.min() - 3 * width, nodes.max() + 3 * width, points)
        bumps = np.exp(-0.5 * ((at[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return at.tolist(), (bumps @ weights).tolist()

    def share_below(self, value: float) -> float:
        """Return the share of eigenvalues below `value`; negative curvature for 0."""
        nodes, weights = np.concatenate(self.nodes), np.concatenate(self.weights) / len(self.nodes)
        return float(weights[nodes < value].sum())


def rise_of(
    name: str, found: Sequence[tuple[float, float, float]], shares: Sequence[float], how: dict[str, Any]
) -> Rise:
    """Return the result for (rise, loss, norm) of each group or draw, and each one's share."""
    rises, losses, norms = zip(*found, strict=True)

    def mean(values: Sequence[float]) -> float:
        return sum(value * share for value, share in zip(values, shares, strict=True))

    return Rise(
        name=name,
        value=mean(rises),
        loss=mean(losses),
        standard_error=standard_error(rises),
        norm=mean(norms),
        parts=list(rises),
        **how,
    )


def standard_error(draws: Sequence[float]) -> float:
    """Return the standard error of the mean; not a number for a single draw."""
    return statistics.stdev(draws) / math.sqrt(len(draws)) if len(draws) > 1 else math.nan


def name_of(kind: str, rho: float, adaptive: bool, m: int) -> str:
    """Return a name that two results have in common only if they are the same quantity."""
    return f"{kind}(rho={rho:g}, {'adaptive, ' if adaptive else ''}m={m})"
