# SPDX-License-Identifier: Apache-2.0
"""What did a measurement cost, and how are the shares of several processes put together?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from hf_sam.sharpness.problem import Problem

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
