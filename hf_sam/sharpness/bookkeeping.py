# SPDX-License-Identifier: Apache-2.0
"""Count what a measurement costs, put the shares of several processes together, and sum a report up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from hf_sam.sharpness.loss_function import Problem

Found = tuple[float, float, float]
"""Rise of the loss, the loss, the norm of epsilon."""


@contextmanager
def measuring(problem: Problem, settings: dict[str, Any], **call: Any) -> Iterator[dict[str, Any]]:
    """Yield what every result is made with; it is filled in at the end: settings, counts and time."""
    before, start = asdict(problem.counts), time.perf_counter()
    how: dict[str, Any] = {"settings": {**settings, **call}}
    yield how
    how.update({name: count - before[name] for name, count in asdict(problem.counts).items()})
    how["seconds"] = time.perf_counter() - start


def over_groups(
    problem: Problem, m: int | None, measure: Callable[[Problem], Found]
) -> tuple[list[Found], list[float]]:
    """Return what `measure` finds on each group of m examples, and each group's share of the examples.

    Without m the whole is one group, which all processes measure together; groups are measured by one process each.
    """
    if m is None:
        return [measure(problem)], [1.0]
    probes = problem.probe.groups(m)
    count = len(problem.probe.examples)
    shares = [len(probe.examples) / count for probe in probes]
    mine: dict[int, Found] = {}
    for i in range(problem.rank, len(probes), problem.processes):
        group = problem.on(probes[i])
        mine[i] = measure(group)
        for name, value in asdict(group.counts).items():
            setattr(problem.counts, name, getattr(problem.counts, name) + value * shares[i])
    everything: list[Any] = [mine]
    if problem.processes > 1:
        everything = [None] * problem.processes
        torch.distributed.all_gather_object(everything, mine)
    found = {i: each for part in everything for i, each in part.items()}
    return [found[i] for i in range(len(probes))], shares


def summary_of(analyzer: Any, rho: float, k: int, products: int, steps: int) -> dict[str, Any]:
    """Return the numbers of `SharpnessAnalyzer.report`; its arguments."""
    loss, gradient = analyzer.problem.gradient()
    weights = float(analyzer.problem.weights().norm())
    k = min(k, analyzer.problem.size)
    top = analyzer.top_eigenvalues(k)
    results = {"top_eigenvalues": top, "trace": analyzer.trace(products), "sam_sharpness": analyzer.sam_sharpness(rho)}
    return {
        "settings": dict(analyzer.settings),
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        "weight_norm": weights,
        "lambda_max": top.values[0],
        "lambda_max_relative": top.values[0] * weights**2 / analyzer.problem.size,
        f"lambda_max / lambda_{k}": top.values[0] / top.values[-1] if top.values[-1] else None,
        **{name: result.as_dict() for name, result in results.items()},
        "worst_case": analyzer.worst_case(rho, steps).as_dict(),
    }
