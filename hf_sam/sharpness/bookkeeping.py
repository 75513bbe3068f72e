# SPDX-License-Identifier: Apache-2.0
"""Counts of what a measurement costs, results put together over processes, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from hf_sam.sharpness.loss_function import LossFunction

Found = tuple[float, float, float]
"""Rise of the loss, the loss, the norm of epsilon."""


def settings_of(loss_function: LossFunction, parameters: str, dtype: str, seed: int) -> dict[str, Any]:
    """Return what all results of an analyzer are made with."""
    return {
        "parameters": parameters,
        "number_of_parameters": loss_function.size,
        "examples": len(loss_function.examples.rows),
        "batch_size": loss_function.examples.batch_size,
        "dtype": dtype,
        "seed": seed,
        "processes": loss_function.processes,
        "terms": "not known yet",
    }


@contextmanager
def measuring(loss_function: LossFunction, settings: dict[str, Any], **call: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings, counts and time that a result is made with; counts and time are filled in at the end."""
    before, start = asdict(loss_function.counts), time.perf_counter()
    how: dict[str, Any] = {"settings": {**settings, **call}}
    yield how
    settings["terms"] = how["settings"]["terms"] = loss_function.terms.counted or "one batch"
    how.update({name: count - before[name] for name, count in asdict(loss_function.counts).items()})
    how["seconds"] = time.perf_counter() - start


def over_groups(
    loss_function: LossFunction, m: int | None, measure: Callable[[LossFunction], Found]
) -> tuple[list[Found], list[float]]:
    """Return what `measure` finds on each group of m examples, and each group's share of the examples.

    Without m all examples are one group, which all processes measure together. A group of m is measured by one process.
    """
    if m is None:
        return [measure(loss_function)], [1.0]
    groups = loss_function.examples.groups(m)
    count = len(loss_function.examples.rows)
    shares = [len(examples.rows) / count for examples in groups]
    mine: dict[int, Found] = {}
    for i in range(loss_function.rank, len(groups), loss_function.processes):
        group = loss_function.on(groups[i])
        mine[i] = measure(group)
        for name, value in asdict(group.counts).items():
            setattr(loss_function.counts, name, getattr(loss_function.counts, name) + value * shares[i])
    everything: list[Any] = [mine]
    if loss_function.processes > 1:
        everything = [None] * loss_function.processes
        torch.distributed.all_gather_object(everything, mine)
    found = {i: each for part in everything for i, each in part.items()}
    return [found[i] for i in range(len(groups))], shares


def summary_of(analyzer: Any, rho: float, k: int, products: int, steps: int) -> dict[str, Any]:
    """Return the numbers of `SharpnessAnalyzer.report`; its arguments."""
    loss, gradient = analyzer.loss_function.gradient()
    weights = float(analyzer.loss_function.weights().norm())
    k = min(k, analyzer.loss_function.size)
    top = analyzer.top_eigenvalues(k)
    results = {"top_eigenvalues": top, "trace": analyzer.trace(products), "sam_sharpness": analyzer.sam_sharpness(rho)}
    return {
        "settings": dict(analyzer.settings),
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        "weight_norm": weights,
        "lambda_max": top.values[0],
        "lambda_max_relative": top.values[0] * weights**2 / analyzer.loss_function.size,
        f"lambda_max / lambda_{k}": top.values[0] / top.values[-1] if top.values[-1] else None,
        **{name: result.as_dict() for name, result in results.items()},
        "worst_case": analyzer.worst_case(rho, steps).as_dict(),
    }
